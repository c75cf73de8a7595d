/* compute.c: see compute.h. */
#include "tools/compute.h"

#include "base/file.h"

static qw_status open_weights(const qw_compute_options *o, qw_compute *c, qw_err *err)
{
    char dir[4096];
    if (o->exact) return QW_OK;
    bool cached = !o->no_pack_cache && qw_packed_dir(dir, sizeof dir, NULL) == QW_OK;
    return qw_weights_create(c->net, cached ? dir : NULL, c->rt.pool, &c->weights, err);
}

qw_status qw_compute_open(const qw_compute_options *o, qw_compute *c, qw_err *err)
{
    qw_runtime_options ro = {.n_threads = o->n_threads, .exact = o->exact, .mtp = o->mtp, .n_rows_max = QW_COMPUTE_ROWS,
                             .n_seqs = o->n_seqs, .seq_tokens_max = o->seq_tokens_max};
    qw_gguf_options container;
    qw_status status;
    *c = (qw_compute){0};
    QW_TRY_GOTO(qw_gguf_options_parse(o->quantize, &container, err));
    QW_TRY_GOTO(qw_gguf_open_as(o->path, &container, &c->file, err));
    QW_TRY_GOTO(qw_net_open(c->file, &c->net, err));
    if (o->mtp && !c->net->mtp) {
        status = qw_fail(err, QW_E_UNSUPPORTED, "%s: the model has no layer for multi-token prediction", o->path);
        goto fail;
    }
    QW_TRY_GOTO(qw_runtime_create(c->net, &ro, &c->rt, err));
    QW_TRY_GOTO(open_weights(o, c, err));
    return QW_OK;
fail:
    qw_compute_close(c);
    return status;
}

void qw_compute_close(qw_compute *c)
{
    qw_runtime_destroy(&c->rt);
    qw_weights_destroy(c->weights);
    qw_net_close(c->net);
    qw_gguf_close(c->file);
    *c = (qw_compute){0};
}

qw_status qw_compute_tokens(qw_compute *c, qw_seq *seq, const int32_t *tokens, size_t n, qw_compute_fn *each,
                            void *ctx, qw_err *err)
{
    qw_row rows[QW_COMPUTE_ROWS];
    for (size_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= c->net->hp.n_vocab) {
            return qw_fail(err, QW_E_ARG, "token %d at index %zu is not in the vocabulary of %u", tokens[i], i,
                           c->net->hp.n_vocab);
        }
    }
    for (size_t first = 0; first < n;) {
        size_t n_rows = n - first < QW_COMPUTE_ROWS ? n - first : QW_COMPUTE_ROWS;
        QW_TRY(qw_seq_reserve(seq, seq->n_tokens + (uint32_t)n_rows, err));
        for (size_t r = 0; r < n_rows; r++) {
            rows[r] = (qw_row){.seq = seq, .pos = seq->n_tokens + (uint32_t)r, .token = tokens[first + r],
                               .silent = !each && first + r + 1 < n};
        }
        qw_forward(c->rt.pass, rows, n_rows);
        qw_seq_advance(seq, tokens + first, (uint32_t)n_rows);
        if (each) QW_TRY(each(ctx, c, first, n_rows, err));
        first += n_rows;
    }
    if (qw_gguf_map_failed(c->file) || (c->weights && qw_weights_failed(c->weights))) {
        return qw_fail(err, QW_E_CORRUPT, "%s: the file changed or could not be read while it was in use",
                       qw_gguf_path(c->file));
    }
    return QW_OK;
}
