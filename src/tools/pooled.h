/* pooled.h: what embedding and reranking models say of a text, from its last token.
 *
 * Source: Qwen3-Embedding and Qwen3-Reranker model cards. Texts are computed one after the other, each from position 0.
 * One thread.
 */
#ifndef QW_TOOLS_POOLED_H
#define QW_TOOLS_POOLED_H

#include "qw.h"

#include "text/chat.h"
#include "tools/compute.h"

typedef struct qw_pooled {
    qw_compute c;
    qw_tokenizer *tokenizer;
    qw_seq *seq;
    qw_tokens tokens;        /* of the current text */
    float *values;           /* [hidden or n_vocab] */
    int32_t yes, no;         /* those tokens; -1: not in the vocabulary */
} qw_pooled;

/* options: n_seqs and seq_tokens_max are set here; context 0: what the model was trained for, at most 32768. */
qw_status qw_pooled_open(qw_compute_options *options, uint32_t context, qw_pooled *out, qw_err *err) QW_MUST_CHECK;
void qw_pooled_close(qw_pooled *p);

/* Embedding of a text, with <|endoftext|> added: the hidden state of the last token, its first
 * n_dims numbers (0: all), with length 1. out [n_dims or hidden]. instruction: NULL for a document; a query is embedded
 * with what it is for. */
qw_status qw_pooled_embed(qw_pooled *p, qw_text text, const char *instruction, uint32_t n_dims, float *out,
                          qw_err *err) QW_MUST_CHECK;
/* The probability that the document answers the query. instruction: NULL for QW_SEARCH_INSTRUCTION. */
qw_status qw_pooled_rerank(qw_pooled *p, const char *instruction, qw_text query, qw_text document, double *score,
                           qw_err *err) QW_MUST_CHECK;

#endif
