/* stream.c: the residual stream and hyper-connections (stream.h). */
#include "model/stream.h"

#include <string.h>

static size_t width(const qw_pass *p)
{
    return (size_t)p->net->hp.n_streams * p->net->hp.hidden;
}

void qw_stream_begin(qw_pass *p, const qw_weight *embed)
{
    size_t h = p->net->hp.hidden, ld = width(p);
    p->be->ops->embed(p->be, embed, p->tokens, p->n_rows, p->x, ld);
    for (size_t r = 0; r < p->n_rows; r++)
        for (size_t at = h; at < ld; at += h) memcpy(p->x + r * ld + at, p->x + r * ld, h * sizeof *p->x);
}

/* out [n_rows, width] = RMSNorm of each stream of x on its own. */
static void norm_streams(qw_pass *p, const float *x, const float *norm, size_t n_rows, float *out)
{
    size_t h = p->net->hp.hidden, ld = width(p);
    for (size_t at = 0; at < ld; at += h)
        p->be->ops->rms_norm(p->be, x + at, norm + at, n_rows, h, ld, p->net->hp.rms_eps, out + at);
}

/* out [n_rows, hidden] = the mix of the normed streams in p->wide. */
static void mix_streams(qw_pass *p, const qw_connection *c, size_t n_rows, float *out)
{
    const qw_backend_ops *ops = p->be->ops;
    size_t h = p->net->hp.hidden, rank = p->net->hp.hyper_rank, ld = width(p);
    uint32_t n_streams = p->net->hp.n_streams;
    bool inject = qw_weight_exists(&c->inject);
    const qw_linear products[] = {{.w = &c->down, .out = p->low, .ld = rank},
                                  {.w = &c->inject, .out = p->inject, .ld = n_streams}};
    qw_linear up = {.w = &c->up, .out = p->mix, .ld = ld};
    ops->linear(p->be, p->wide, ld, n_rows, products, inject ? 2 : 1);
    ops->hyper_gate(p->be, p->low, n_rows, rank, n_streams);
    ops->linear(p->be, p->low, rank, n_rows, &up, 1);
    ops->hyper_mix(p->be, p->wide, p->mix, n_rows, h, n_streams, out);
}

void qw_stream_enter(qw_pass *p, const qw_connection *c)
{
    size_t h = p->net->hp.hidden;
    if (!p->net->hp.family->streams) {
        p->be->ops->rms_norm(p->be, p->x, c->norm, p->n_rows, h, h, p->net->hp.rms_eps, p->normed);
        p->sum = p->x;
        return;
    }
    norm_streams(p, p->x, c->norm, p->n_rows, p->wide);
    mix_streams(p, c, p->n_rows, p->normed);
    p->sum = p->block_out;
    memset(p->sum, 0, p->n_rows * h * sizeof *p->sum);
}

void qw_stream_leave(qw_pass *p)
{
    if (!p->net->hp.family->streams) return;
    p->be->ops->hyper_inject(p->be, p->x, p->block_out, p->inject, p->n_rows, p->net->hp.hidden, p->net->hp.n_streams);
}

void qw_stream_read(qw_pass *p, const qw_connection *c, const uint32_t *rows, size_t n, float *out)
{
    size_t h = p->net->hp.hidden, ld = width(p);
    bool streams = p->net->hp.family->streams;
    for (size_t i = 0; i < n; i++) {
        QW_ASSERT(rows[i] < p->n_batch && p->slot[rows[i]] != QW_SILENT);
        const float *x = p->x + p->slot[rows[i]] * ld;
        if (streams)
            norm_streams(p, x, c->norm, 1, p->wide + i * ld);
        else
            p->be->ops->rms_norm(p->be, x, c->norm, 1, h, h, p->net->hp.rms_eps, out + i * h);
    }
    if (streams) mix_streams(p, c, n, out);
}

/* ---- per-layer embedding -------------------------------------------------------------------------- */

/* The token `back` positions before row r of the batch, or -1 before the beginning. */
static int32_t token_before(const qw_row *rows, size_t r, uint32_t back)
{
    if (rows[r].pos < back) return -1;
    uint32_t pos = rows[r].pos - back;
    for (size_t i = r; i-- > 0;)
        if (rows[i].seq == rows[r].seq && rows[i].pos == pos) return rows[i].token;
    QW_ASSERT(pos < rows[r].seq->n_tokens && rows[r].seq->n_tokens - 1 - pos < QW_SEQ_HISTORY);
    return rows[r].seq->history[rows[r].seq->n_tokens - 1 - pos];
}

void qw_ngram_find(qw_pass *p, const qw_row *rows)
{
    const qw_ngram *g = &p->net->hp.ngram;
    size_t n_heads = (size_t)(g->n - 1) * g->heads_per_gram;
    for (size_t r = 0; r < p->n_batch; r++) {
        int32_t *out = p->gram_rows + r * n_heads;
        uint64_t hash = (uint64_t)rows[r].token * (uint64_t)g->multipliers[0];
        bool cut = false; /* by an end, or the beginning: the end stands for all that lies before it */
        for (uint32_t back = 1; back < g->n; back++) {
            int32_t token = cut ? -1 : token_before(rows, r, back);
            cut = token < 0 || token == g->end;
            hash ^= (uint64_t)(cut ? g->end : token) * (uint64_t)g->multipliers[back];
            for (uint32_t i = 0; i < g->heads_per_gram; i++, out++) {
                size_t head = (size_t)(back - 1) * g->heads_per_gram + i;
                *out = (int32_t)((int64_t)(hash % (uint64_t)g->sizes[head]) + g->offsets[head]);
            }
        }
    }
}

/* e = the n-grams' rows side by side; x_s += gv_s + silu(conv(norm(gv_s))), gv_s = gate(norm(Wkey e)_s, norm(x_s)) Wvalue e */
void qw_ple_add(qw_pass *p)
{
    const qw_hparams *hp = &p->net->hp;
    const qw_backend_ops *ops = p->be->ops;
    const qw_ple *ple = &p->net->ple;
    size_t n = p->n_rows, h = hp->hidden, ld = width(p), n_heads = (size_t)(hp->ngram.n - 1) * hp->ngram.heads_per_gram;
    const qw_linear products[] = {{.w = &ple->key, .out = p->mix, .ld = ld}, {.w = &ple->value, .out = p->block_out, .ld = h}};
    ops->embed(p->be, &p->net->ngram_table, p->gram_rows, n * n_heads, p->grams, hp->ngram.row);
    ops->linear(p->be, p->grams, n_heads * hp->ngram.row, n, products, 2);
    norm_streams(p, p->mix, ple->key_norm, n, p->mix);
    norm_streams(p, p->x, ple->query_norm, n, p->wide);
    ops->ple_gate(p->be, p->mix, p->wide, p->block_out, n, h, hp->n_streams, p->gated);
    norm_streams(p, p->gated, ple->conv_norm, n, p->mix);
    ops->ple_conv(p->be, &ple->conv, p->kv_rows, n, p->mix, p->gated, p->x);
}
