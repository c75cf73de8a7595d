/* compute.h: a network ready to compute, for tools that look at logits or time passes.
 *
 * What the engine has, without queue, sampling or text: the tools need tensors, which the public door does not
 * carry. One thread.
 */
#ifndef QW_TOOLS_COMPUTE_H
#define QW_TOOLS_COMPUTE_H

#include "model/runtime.h"
#include "model/weights.h"

enum { QW_COMPUTE_ROWS = 512 }; /* rows in one pass */

typedef struct qw_compute {
    qw_gguf *file;
    qw_net *net;
    qw_weights *weights;
    qw_runtime rt;
} qw_compute;

typedef struct qw_compute_options {
    const char *path;
    const char *quantize;      /* as in qw_model_options */
    int n_threads;             /* 0: the cores this process may use */
    bool exact, no_pack_cache;
    bool mtp;                  /* with multi-token prediction; QW_E_UNSUPPORTED where the model has none */
    uint32_t n_seqs;           /* sequences that exist at the same time */
    uint32_t seq_tokens_max;   /* positions of each */
} qw_compute_options;

qw_status qw_compute_open(const qw_compute_options *options, qw_compute *out, qw_err *err) QW_MUST_CHECK;
void qw_compute_close(qw_compute *c); /* after its sequences were released; a zeroed one is fine */

/* Appends n tokens (each checked against the vocabulary) to a sequence, in passes of QW_COMPUTE_ROWS. After each
 * pass `each` is called, unless NULL, with the index of the pass's first token and its number of rows; it may ask
 * for all of their logits. Without it only those of the last token can be asked for, when all is done. */
typedef qw_status qw_compute_fn(void *ctx, qw_compute *c, size_t first, size_t n_rows, qw_err *err);
qw_status qw_compute_tokens(qw_compute *c, qw_seq *seq, const int32_t *tokens, size_t n, qw_compute_fn *each,
                            void *ctx, qw_err *err) QW_MUST_CHECK;

#endif
