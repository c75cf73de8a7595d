/* stream.h: the residual stream and how blocks hang on it: one stream, or several joined by hyper-connections; and the
 * per-layer embedding that is added to it.
 *
 * One stream: n = RMSNorm(x), and a block adds to x itself. Several, side by side in a row of x (Qwen4 experimental):
 *     n_s = RMSNorm_s(x_s);  m = sigmoid(Wup silu(Wdown n / S));  n = mean over s of m_s * n_s
 *     x_s += 2 sigmoid((Winject n)_s / S) * block(n)
 * Source: Hyper-Connections (Zhu et al.); transformers, modeling_qwen4_exp. Engine thread only.
 */
#ifndef QW_MODEL_STREAM_H
#define QW_MODEL_STREAM_H

#include "model/forward.h"

/* x = the tokens' embeddings, in every stream. */
void qw_stream_begin(qw_pass *p, const qw_weight *embed);
/* pass->normed = the input of a block, pass->sum = where it adds its result. */
void qw_stream_enter(qw_pass *p, const qw_connection *c);
/* After the block. */
void qw_stream_leave(qw_pass *p);
/* out [n, hidden] = what the connection makes of rows of x: the hidden state at the end. */
void qw_stream_read(qw_pass *p, const qw_connection *c, const uint32_t *rows, size_t n, float *out);

/* Rows of the n-gram table for each row of the batch, from its token and those before it in its sequence. */
void qw_ngram_find(qw_pass *p, const qw_row *rows);
/* Adds the per-layer embedding to the stream. */
void qw_ple_add(qw_pass *p);

#endif
