/* small_vocab.h: a small vocabulary for tests: all bytes, some merges, some added tokens.
 *
 * Ids 0 to 255 are the bytes 0x00 to 0xFF, then the results of small_merges in their order, then
 * small_added, then two padding rows. All pointers are static or live until the program ends.
 */
#ifndef QW_TESTS_SMALL_VOCAB_H
#define QW_TESTS_SMALL_VOCAB_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "text/tokenizer.h"

static const char *const small_merges[] = {
    "\xC4\xA0 \xC4\xA0", /* two spaces */
    "h e", "l l", "he ll", "hell o", "\xC4\xA0 hello", "a a", "aa aa",
    "\xC3\x83 \xC2\xA9", /* the bytes C3 A9 of U+00E9 */
    "' s", "\xC4\x8A \xC4\x8A", /* two line breaks */
    "b c", "a b",
};
enum { N_SMALL_MERGES = sizeof small_merges / sizeof *small_merges };

static const struct small_added {
    const char *text;
    uint8_t type;
} small_added[] = {
    {"<|endoftext|>", 3}, {"<|im_start|>", 3}, {"<|im_end|>", 3}, {"<tool_call>", 4}, {"</tool_call>", 4},
    {"<|im_end|>!", 4},   {"[PAD7]", 4},       {"[PAD8]", 5},
};
enum {
    N_SMALL_ADDED = sizeof small_added / sizeof *small_added,
    SMALL_MERGE = 256,
    SMALL_ADDED = 256 + N_SMALL_MERGES,
    N_SMALL = SMALL_ADDED + N_SMALL_ADDED,
    ID_ENDOFTEXT = SMALL_ADDED, ID_IM_START, ID_IM_END, ID_TOOL_CALL, ID_TOOL_CALL_END, ID_IM_END_X, ID_PAD7, ID_PAD8
};

typedef struct small_vocab {
    qw_text tokens[N_SMALL];
    uint8_t types[N_SMALL];
    qw_text merges[N_SMALL_MERGES];
    char bytes[256][4];
    char merged[N_SMALL_MERGES][32];
} small_vocab;

/* The character that stands for a byte in GPT-2's mapping. */
static inline uint32_t small_alphabet(int byte)
{
    uint32_t next = 0x100;
    for (int b = 0;; b++) {
        bool itself = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        if (b == byte) return itself ? (uint32_t)b : next;
        next += !itself;
    }
}

static inline void small_vocab_fill(small_vocab *v)
{
    for (int b = 0; b < 256; b++) {
        v->tokens[b] = (qw_text){v->bytes[b], (size_t)qw_utf8_encode(small_alphabet(b), v->bytes[b])};
        v->types[b] = 1;
    }
    for (int i = 0; i < N_SMALL_MERGES; i++) {
        const char *space = strchr(small_merges[i], ' ');
        int n = snprintf(v->merged[i], sizeof v->merged[i], "%.*s%s", (int)(space - small_merges[i]),
                         small_merges[i], space + 1);
        v->merges[i] = (qw_text){small_merges[i], strlen(small_merges[i])};
        v->tokens[SMALL_MERGE + i] = (qw_text){v->merged[i], (size_t)n};
        v->types[SMALL_MERGE + i] = 1;
    }
    for (int i = 0; i < N_SMALL_ADDED; i++) {
        v->tokens[SMALL_ADDED + i] = (qw_text){small_added[i].text, strlen(small_added[i].text)};
        v->types[SMALL_ADDED + i] = small_added[i].type;
    }
}

static inline qw_status small_vocab_open(const small_vocab *v, qw_pre pre, qw_tokenizer **out, qw_err *err)
{
    return qw_tokenizer_open(v->tokens, v->types, N_SMALL, v->merges, N_SMALL_MERGES, pre, out, err);
}

#endif
