/* tokenizer.h: byte-level BPE of the Qwen vocabularies: text to ids and back.
 *
 * Source: the Qwen tokenizer as published with the models (GPT-2 byte mapping, NFC, the `qwen2` and
 * `qwen35` pre-tokenizers, rank-ordered merges inside each piece). Immutable after open; any thread.
 * Time is linear in the text for every input (a long piece is merged in n log n).
 */
#ifndef QW_TEXT_TOKENIZER_H
#define QW_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/status.h"
#include "formats/gguf.h"

typedef struct qw_tokenizer qw_tokenizer;

/* A growable array of ids. Zero-initialise; owns ids. */
typedef struct qw_tokens {
    int32_t *ids;
    size_t n, cap;
} qw_tokens;
qw_status qw_tokens_push(qw_tokens *t, int32_t id, qw_err *err) QW_MUST_CHECK;
void qw_tokens_free(qw_tokens *t);

typedef enum qw_pre { QW_PRE_QWEN2 = 0, QW_PRE_QWEN35 } qw_pre;

/* Reads tokenizer.ggml.* of a file and checks it (lengths agree, merges resolve, special ids in range).
 * QW_E_UNSUPPORTED when the file has no tokenizer or another kind. Copies what it needs of g. */
qw_status qw_tokenizer_open_gguf(const qw_gguf *g, qw_tokenizer **out, qw_err *err) QW_MUST_CHECK;
/* From plain data, for tests and for other containers: n tokens in the GPT-2 byte mapping, their GGUF
 * types (1 normal, 3 control, 4 user defined, 5 unused; NULL: all normal), merges "A B" in rank order.
 * Copies all. */
qw_status qw_tokenizer_open(const qw_text *tokens, const uint8_t *types, size_t n, const qw_text *merges,
                            size_t n_merges, qw_pre pre, qw_tokenizer **out, qw_err *err) QW_MUST_CHECK;
void qw_tokenizer_close(qw_tokenizer *t);

size_t qw_tokenizer_n_vocab(const qw_tokenizer *t);
/* Appends the ids of text to out. Ill-formed UTF-8 is tokenised byte by byte where it is ill-formed.
 * special: added tokens (control and user defined) found in the text become their id, longest first;
 * without it every text is plain. */
qw_status qw_tokenizer_encode(const qw_tokenizer *t, const char *text, size_t n, bool special, qw_tokens *out,
                              qw_err *err) QW_MUST_CHECK;

/* The first added token that lies within text[from, n), of several at one place the longest. False: none. */
bool qw_tokenizer_find_added(const qw_tokenizer *t, const char *text, size_t n, size_t from, size_t *at,
                             size_t *len, int32_t *id);

/* Id of an added or normal token by its text ("<|im_end|>"), or -1. */
int32_t qw_tokenizer_find(const qw_tokenizer *t, const char *text);
/* Bytes that the token stands for (already out of the GPT-2 mapping); control tokens give their text. */
qw_text qw_tokenizer_bytes(const qw_tokenizer *t, int32_t id);
bool qw_tokenizer_is_control(const qw_tokenizer *t, int32_t id); /* not shown in text */
bool qw_tokenizer_is_added(const qw_tokenizer *t, int32_t id);   /* control or user defined: never made by merges */
bool qw_tokenizer_is_unused(const qw_tokenizer *t, int32_t id);  /* padding row: never sampled */
/* End tokens: the file's eos, <|im_end|> and <|endoftext|> where they exist. */
bool qw_tokenizer_is_end(const qw_tokenizer *t, int32_t id);
/* fim_prefix, fim_middle, fim_suffix: -1 where the vocabulary has none. */
void qw_tokenizer_fim(const qw_tokenizer *t, int32_t *prefix, int32_t *middle, int32_t *suffix);

/* Incremental text of a token stream: holds back bytes that may still become a character. */
typedef struct qw_detok {
    char held[8];
    size_t n_held;
} qw_detok;
/* Appends the whole characters that id completes to out (may be none). Bytes that can no longer become a
 * character appear as U+FFFD. Control tokens add nothing. */
qw_status qw_detok_push(qw_detok *d, const qw_tokenizer *t, int32_t id, qw_buf *out, qw_err *err) QW_MUST_CHECK;
/* At the end: what is still held becomes one U+FFFD. */
qw_status qw_detok_flush(qw_detok *d, qw_buf *out, qw_err *err) QW_MUST_CHECK;

#endif
