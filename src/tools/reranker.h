/* reranker.h: what GGUF files of reranking models have beside the language model: a head of two rows, and keys about it.
 *
 * The head, cls.output.weight, is the rows of "yes" and "no" of the output, in that order: a score is the softmax of both
 * products. The keys say so, and hold the prompt. Names and values are those of llama.cpp's converter, so that other
 * programs rank with the file. Main thread.
 */
#ifndef QW_TOOLS_RERANKER_H
#define QW_TOOLS_RERANKER_H

#include "formats/gguf_write.h"

#define QW_RERANKER_HEAD "cls.output.weight"

/* Which rows of a language model make the head. */
typedef struct qw_reranker {
    const qw_tensor *output; /* borrows from the model */
    uint64_t rows[2];        /* of yes and no */
} qw_reranker;

/* QW_E_UNSUPPORTED: the model has no such tokens. */
qw_status qw_reranker_find(const qw_gguf *model, qw_reranker *out, qw_err *err) QW_MUST_CHECK;
/* The head as the writer's next tensor, and its rows [row0, row0 + n); scratch as for the output's. */
qw_status qw_reranker_put_head(const qw_reranker *r, qw_gguf_writer *w, qw_err *err) QW_MUST_CHECK;
void qw_reranker_read(const qw_reranker *r, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch);
/* The keys that the model does not have yet. */
qw_status qw_reranker_put_keys(const qw_gguf *model, qw_gguf_writer *w, qw_err *err) QW_MUST_CHECK;

#endif
