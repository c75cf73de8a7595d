/* steps.c: see steps.h. */
#include "backend/steps.h"

#include <stdlib.h>
#include <string.h>

#include "backend/gates.h"
#include "base/mem.h"

enum { EXPERTS_USED_MAX = 64 }; /* src/model/hparams.c takes no more */

/* Pieces of the scratch that a block of experts needs, in floats. */
typedef struct moe_scratch {
    float *weight;  /* [n_rows, n_experts]: the router's result, then an expert's share in a row or 0 */
    float *in;      /* [n_rows, hidden]: one expert's rows, together */
    float *gate, *up; /* [n_rows, expert_ffn] */
    float *out;     /* [n_rows, hidden] */
    float *scale;   /* [n_rows]: of the shared expert */
} moe_scratch;

/* With a NULL base only counts. */
static size_t divide(const qw_cpu_sizes *z, float *base, moe_scratch *m)
{
    size_t rows = z->n_rows_max, at = 0;
    const struct {
        float **to;
        size_t n;
    } pieces[] = {
        {&m->weight, rows * z->n_experts}, {&m->in, rows * z->hidden}, {&m->gate, rows * z->expert_ffn},
        {&m->up, rows * z->expert_ffn},    {&m->out, rows * z->hidden}, {&m->scale, rows},
    };
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces && z->n_experts > 0; i++) {
        if (base) *pieces[i].to = base + at;
        at += pieces[i].n;
    }
    return at;
}

qw_status qw_steps_create(const qw_cpu_sizes *sizes, qw_input_fn *input, void *ctx, qw_steps **out, qw_err *err)
{
    moe_scratch unused;
    qw_steps *s;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&s, 1, sizeof *s, "blocks in steps", err));
    *s = (qw_steps){.input = input, .ctx = ctx, .kernels = qw_kernels_get(qw_cpu_isa()), .sizes = *sizes,
                    .n_scratch = divide(sizes, NULL, &unused)};
    QW_TRY_GOTO(qw_alloc(&s->scratch, s->n_scratch, sizeof *s->scratch, "blocks in steps", err));
    *out = s;
    return QW_OK;
fail:
    free(s);
    return status;
}

void qw_steps_destroy(qw_steps *s)
{
    if (!s) return;
    free(s->scratch);
    free(s);
}

void qw_steps_linear(qw_steps *s, qw_backend *be, const float *x, size_t ld_x, size_t n_rows, const qw_linear *products,
                     size_t n_products)
{
    for (size_t i = 0; i < n_products; i++) s->input(s->ctx, products[i].w, 0, x, ld_x, n_rows);
    be->ops->linear(be, x, ld_x, n_rows, products, n_products);
}

void qw_steps_swiglu(qw_steps *s, qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_swiglu *w, float *x,
                     size_t ld_x)
{
    size_t ffn = w->gate->rows;
    const qw_linear both[] = {{.w = w->gate, .out = w->gate_out, .ld = ffn}, {.w = w->up, .out = w->up_out, .ld = ffn}};
    const qw_linear down = {.w = w->down, .out = x, .ld = ld_x, .add = true};
    qw_steps_linear(s, be, n, ld_n, n_rows, both, 2);
    be->ops->silu_mul(be, w->gate_out, w->up_out, n_rows, ffn, ffn);
    qw_steps_linear(s, be, w->gate_out, ffn, n_rows, &down, 1);
}

/* ---- experts ------------------------------------------------------------------------------------ */

/* p [n_experts]: the router's product, then each expert's weight in the row, 0 for those not chosen. */
static void route(const qw_steps *s, const qw_moe *w, float *p)
{
    uint32_t expert[EXPERTS_USED_MAX];
    float weight[EXPERTS_USED_MAX];
    QW_ASSERT(w->n_used <= EXPERTS_USED_MAX);
    qw_moe_route(s->kernels, w, p, expert, weight);
    memset(p, 0, w->n_experts * sizeof *p);
    for (size_t i = 0; i < w->n_used; i++) p[expert[i]] = weight[i];
}

/* x [n_rows] += expert e's results for the rows that chose it. */
static void run_expert(qw_steps *s, qw_backend *be, const moe_scratch *m, const float *n, size_t ld_n, size_t n_rows,
                       const qw_moe *w, size_t e, float *x, size_t ld_x)
{
    size_t h = w->gate->k, ffn = w->gate->rows, n_mine = 0;
    const qw_weight gate = qw_weight_matrix(w->gate, e), up = qw_weight_matrix(w->up, e), down = qw_weight_matrix(w->down, e);
    const qw_linear both[] = {{.w = &gate, .out = m->gate, .ld = ffn}, {.w = &up, .out = m->up, .ld = ffn}};
    const qw_linear last = {.w = &down, .out = m->out, .ld = h};
    for (size_t r = 0; r < n_rows; r++)
        if (m->weight[r * w->n_experts + e] > 0) memcpy(m->in + n_mine++ * h, n + r * ld_n, h * sizeof *n);
    if (n_mine == 0) return;
    s->input(s->ctx, w->gate, e, m->in, h, n_mine);
    s->input(s->ctx, w->up, e, m->in, h, n_mine);
    be->ops->linear(be, m->in, h, n_mine, both, 2);
    be->ops->silu_mul(be, m->gate, m->up, n_mine, ffn, ffn);
    s->input(s->ctx, w->down, e, m->gate, ffn, n_mine);
    be->ops->linear(be, m->gate, ffn, n_mine, &last, 1);
    const float *y = m->out;
    for (size_t r = 0; r < n_rows; r++) {
        float weight = m->weight[r * w->n_experts + e];
        if (!(weight > 0)) continue;
        for (size_t j = 0; j < h; j++) x[r * ld_x + j] += weight * y[j];
        y += h;
    }
}

static void run_shared(qw_steps *s, qw_backend *be, const moe_scratch *m, const float *n, size_t ld_n, size_t n_rows,
                       const qw_moe *w, float *x, size_t ld_x)
{
    size_t h = w->shared_down->rows;
    const qw_swiglu shared = {.gate = w->shared_gate, .up = w->shared_up, .down = w->shared_down, .gate_out = w->gate_out,
                              .up_out = w->up_out};
    const qw_linear scale = {.w = w->shared_scale, .out = m->scale, .ld = 1};
    if (w->shared_scale) {
        qw_steps_linear(s, be, n, ld_n, n_rows, &scale, 1);
        qw_sigmoid(s->kernels, m->scale, n_rows);
    }
    memset(m->out, 0, n_rows * h * sizeof *m->out);
    qw_steps_swiglu(s, be, n, ld_n, n_rows, &shared, m->out, h);
    for (size_t r = 0; r < n_rows; r++) {
        float weight = w->shared_scale ? m->scale[r] : 1.0f;
        for (size_t j = 0; j < h; j++) x[r * ld_x + j] += weight * m->out[r * h + j];
    }
}

void qw_steps_moe(qw_steps *s, qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_moe *w, float *x,
                  size_t ld_x)
{
    moe_scratch m;
    QW_ASSERT(w->n_experts <= s->sizes.n_experts && n_rows <= s->sizes.n_rows_max && w->gate->k <= s->sizes.hidden &&
              w->gate->rows <= s->sizes.expert_ffn);
    divide(&s->sizes, s->scratch, &m);
    const qw_linear router = {.w = w->router, .out = m.weight, .ld = w->n_experts};
    qw_steps_linear(s, be, n, ld_n, n_rows, &router, 1);
    for (size_t r = 0; r < n_rows; r++) route(s, w, m.weight + r * w->n_experts);
    for (size_t e = 0; e < w->n_experts; e++) run_expert(s, be, &m, n, ld_n, n_rows, w, e, x, ld_x);
    if (w->shared_down) run_shared(s, be, &m, n, ld_n, n_rows, w, x, ld_x);
}
