/* divergence.c: see divergence.h. */
#include "tools/divergence.h"

#include <math.h>
#include <stdlib.h>

#include "base/mem.h"
#include "base/pool.h"
#include "tools/windows.h"

enum { HEAD_ROWS = 32 /* positions whose logits exist at the same time */ };

/* What one position says. */
typedef struct position {
    double kl, nll, nll_reference;
    bool same_top;
} position;

typedef struct comparison {
    qw_divergence *d;
    qw_compute *model, *reference;
    qw_seq *model_seq;
    const int32_t *ids;
    size_t window, first; /* first: token of row 0 of the current pass */
    size_t row0;          /* row of the pass that is row 0 of the logits */
    float *q, *p;         /* [HEAD_ROWS, n_vocab]: the model's and the reference's, owns */
    position positions[HEAD_ROWS];
} comparison;

/* The index of the largest, the first of equal ones. */
static size_t top_of(const float *x, size_t n)
{
    size_t top = 0;
    for (size_t i = 1; i < n; i++)
        if (x[i] > x[top]) top = i;
    return top;
}

/* With a = sum of exp(p), b = sum of exp(q): the sum of exp(p) / a ((p - log a) - (q - log b)). */
static position compare(const float *p, const float *q, size_t n, int32_t token)
{
    size_t top_p = top_of(p, n), top_q = top_of(q, n);
    double a = 0, b = 0, apart = 0;
    for (size_t i = 0; i < n; i++) {
        double e = exp((double)p[i] - (double)p[top_p]);
        a += e;
        b += exp((double)q[i] - (double)q[top_q]);
        apart += e * ((double)p[i] - (double)q[i]);
    }
    double log_a = (double)p[top_p] + log(a), log_b = (double)q[top_q] + log(b), kl = apart / a - log_a + log_b;
    return (position){.kl = kl < 0 ? 0 : kl, /* rounding: it is never negative */
                      .nll = log_b - (double)q[token], .nll_reference = log_a - (double)p[token],
                      .same_top = top_p == top_q};
}

static void compare_some(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    comparison *c = ctx;
    size_t n = c->model->net->hp.n_vocab;
    for (size_t i = (size_t)begin; i < (size_t)end; i++)
        c->positions[i] = compare(c->p + i * n, c->q + i * n, n, c->ids[c->first + c->row0 + i + 1]);
}

static qw_status add_position(qw_divergence *d, const position *at, qw_err *err)
{
    double change = exp(-at->nll) - exp(-at->nll_reference);
    if (!isfinite(at->kl) || !isfinite(at->nll) || !isfinite(at->nll_reference))
        return qw_fail(err, QW_E_CORRUPT, "a logit at scored position %zu is not a number: `qw verify` looks at the weights",
                       d->n);
    if (d->n == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 4096;
        QW_TRY(qw_grow(&d->kl, d->cap, cap, sizeof *d->kl, "divergences", err));
        d->cap = cap;
    }
    d->kl[d->n++] = at->kl;
    d->sum += at->kl;
    d->sum_squared += at->kl * at->kl;
    d->nll += at->nll;
    d->nll_squared += at->nll * at->nll;
    d->nll_reference += at->nll_reference;
    d->change += change;
    d->change_squared += change * change;
    d->n_same_top += at->same_top;
    return QW_OK;
}

/* Both have computed the same rows. */
static qw_status compare_rows(void *ctx, qw_compute *model, size_t unused, size_t n_rows, qw_err *err)
{
    (void)unused; /* of this call for one pass: 0 */
    comparison *c = ctx;
    uint32_t rows[HEAD_ROWS];
    size_t n_vocab = model->net->hp.n_vocab, begin, end;
    qw_window_rows(c->window, c->first, n_rows, &begin, &end);
    for (c->row0 = begin; c->row0 < end; c->row0 += HEAD_ROWS) {
        size_t n = end - c->row0 < HEAD_ROWS ? end - c->row0 : HEAD_ROWS;
        for (size_t i = 0; i < n; i++) rows[i] = (uint32_t)(c->row0 + i);
        qw_pass_logits(model->rt.pass, rows, n, c->q, n_vocab);
        qw_pass_logits(c->reference->rt.pass, rows, n, c->p, n_vocab);
        qw_pool_run(model->rt.pool, (int64_t)n, 1, compare_some, c);
        for (size_t i = 0; i < n; i++) QW_TRY(add_position(c->d, &c->positions[i], err));
    }
    return QW_OK;
}

/* The reference has computed rows: now the model does. */
static qw_status follow(void *ctx, qw_compute *reference, size_t first, size_t n_rows, qw_err *err)
{
    (void)reference;
    comparison *c = ctx;
    c->first = first;
    return qw_compute_tokens(c->model, c->model_seq, c->ids + first, n_rows, compare_rows, c, err);
}

qw_status qw_divergence_add(qw_divergence *d, qw_compute *model, qw_compute *reference, const int32_t *ids, size_t window,
                            qw_err *err)
{
    comparison c = {.d = d, .model = model, .reference = reference, .ids = ids, .window = window};
    qw_seq *seq = NULL;
    size_t n_vocab = model->net->hp.n_vocab;
    qw_status status;
    QW_ASSERT(reference->net->hp.n_vocab == n_vocab);
    QW_TRY_GOTO(qw_alloc(&c.p, HEAD_ROWS * n_vocab, sizeof *c.p, "logits", err));
    QW_TRY_GOTO(qw_alloc(&c.q, HEAD_ROWS * n_vocab, sizeof *c.q, "logits", err));
    QW_TRY_GOTO(qw_seq_create(model->rt.seqs, &c.model_seq, err));
    QW_TRY_GOTO(qw_seq_create(reference->rt.seqs, &seq, err));
    status = qw_compute_tokens(reference, seq, ids, window, follow, &c, err);
fail:
    qw_seq_release(seq);
    qw_seq_release(c.model_seq);
    free(c.p);
    free(c.q);
    return status;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

void qw_divergence_sort(qw_divergence *d)
{
    if (d->n > 0) qsort(d->kl, d->n, sizeof *d->kl, ascending);
}

double qw_divergence_quantile(const qw_divergence *d, double share)
{
    double at = share * (double)(d->n - 1);
    size_t i = (size_t)at;
    return i + 1 < d->n ? d->kl[i] + (at - (double)i) * (d->kl[i + 1] - d->kl[i]) : d->kl[d->n - 1];
}

void qw_divergence_free(qw_divergence *d)
{
    free(d->kl);
    *d = (qw_divergence){0};
}
