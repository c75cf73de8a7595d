/* vocab.h: a vocabulary with its merges, and the merging of one piece (byte-level BPE).
 *
 * Both hash tables are built once and never change afterwards, so any thread may merge; only `whole` is
 * written later, one atomic byte per token, and every thread would write the same. Internal to src/text.
 */
#ifndef QW_TEXT_VOCAB_H
#define QW_TEXT_VOCAB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qw_types.h"

#include "base/status.h"
#include "text/tokenizer.h"

enum {
    QW_VOCAB_BITS = 22,                        /* ids, ranks and hash slots are packed in these */
    QW_VOCAB_MAX = (1 << QW_VOCAB_BITS) - 1,   /* tokens of a vocabulary */
    QW_MERGES_MAX = 1 << 20,                   /* merges of a vocabulary */
    QW_TOKEN_BYTES_MAX = 64 << 10,             /* text of one token */
    QW_ADDED_BYTES_MAX = 512                   /* text of one added token, looked for at every byte */
};
#define QW_RANK_NONE UINT32_MAX

/* What a row is, from its GGUF type and text. */
typedef enum qw_row { QW_ROW_NORMAL = 0, QW_ROW_CONTROL, QW_ROW_USER, QW_ROW_UNUSED } qw_row;

typedef struct qw_vocab {
    size_t n;
    char *bytes;               /* owns: text of all tokens, out of the GPT-2 mapping */
    uint32_t *begin;           /* owns: [n + 1], offsets into bytes */
    uint8_t *row;              /* owns: [n], qw_row */
    uint64_t secret[2];        /* random: nobody can prepare colliding tokens */
    uint64_t *slots;           /* owns: normal tokens by text; hash bits above, id below */
    unsigned slot_bits;
    uint64_t *pairs;           /* owns: left id, right id, rank; all ones: empty */
    unsigned pair_bits;
    uint32_t *merged;          /* owns: [n_merges], id that the merge of a rank gives */
    size_t n_merges;
    uint32_t byte_id[256];     /* token of a single byte */
    size_t token_bytes_max;    /* longest normal token */
    _Atomic uint8_t *whole;    /* owns: [n], does the text of a token merge to just that token? */
} qw_vocab;

/* Builds from tokens in the GPT-2 mapping; see qw_tokenizer_open. Errors name the GGUF key. */
qw_status qw_vocab_build(qw_vocab *v, const qw_text *tokens, const uint8_t *types, size_t n,
                         const qw_text *merges, size_t n_merges, qw_err *err) QW_MUST_CHECK;
void qw_vocab_free(qw_vocab *v);

static inline qw_text qw_vocab_text(const qw_vocab *v, uint32_t id)
{
    return (qw_text){v->bytes + v->begin[id], v->begin[id + 1] - v->begin[id]};
}
/* Normal token with this text, or -1. */
int32_t qw_vocab_find(const qw_vocab *v, const char *s, size_t n);

/* Rank of the merge of two ids, or QW_RANK_NONE. */
static inline uint32_t qw_vocab_rank(const qw_vocab *v, uint32_t left, uint32_t right)
{
    uint64_t key = (uint64_t)left << QW_VOCAB_BITS | right;
    uint64_t mask = ((uint64_t)1 << v->pair_bits) - 1;
    for (uint64_t i = key * v->secret[0] >> (64 - v->pair_bits);; i = (i + 1) & mask) {
        uint64_t slot = v->pairs[i];
        if (slot == UINT64_MAX) return QW_RANK_NONE;
        if (slot >> 20 == key) return (uint32_t)(slot & (QW_MERGES_MAX - 1));
    }
}

/* Scratch for long pieces, one thread's. Zero-initialise. */
typedef struct qw_merger {
    uint32_t *ids, *prev, *next, *ranks; /* owns: [cap] */
    size_t cap;
    uint64_t *heap;                      /* owns: rank above, position below */
    size_t heap_n, heap_cap;
} qw_merger;
void qw_merger_free(qw_merger *m);

/* Appends the ids of one piece of n >= 1 bytes. */
qw_status qw_vocab_merge(const qw_vocab *v, qw_merger *m, const char *piece, size_t n, qw_tokens *out,
                         qw_err *err) QW_MUST_CHECK;

#endif
