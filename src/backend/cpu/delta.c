/* delta.c: gated delta-net layers of the CPU backend.
 *
 *     c = silu(conv(qkv));  q, k, v = split(c);  q = l2norm(q) / sqrt(k_dim);  k = l2norm(k)
 *     beta = sigmoid(b);  g = exp(a * softplus(alpha + dt));  o = gated delta rule(q, k, v, g, beta)
 *     out = rms_norm(o) * act(z), head by head
 *
 * Source: transformers, modeling_qwen3_next and modeling_qwen3_5. An item is one key head of one sequence, with the value
 * heads that read it: its channels, its state and its part of every scratch buffer are nobody else's, so one run does all
 * of it, for the sequence's rows in order. The recurrence runs token by token, whatever the batch: a cut changes no bit.
 */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu_private.h"

enum { TAPS_MAX = 8 };

typedef struct delta_args {
    qw_cpu *cpu;
    const qw_delta *d;
    const qw_kv_row *rows;
    size_t n_rows;
    const qw_delta_in *in;
    float *out;
} delta_args;

/* A range of channels: where they are in a row of qkv, and how many. */
typedef struct channels {
    size_t at, n;
} channels;

typedef struct state {
    float *conv; /* [n_taps - 1, channels] */
    float *s;    /* [n_v_heads][v_dim / QW_DELTA_LANES][k_dim][QW_DELTA_LANES] */
} state;

static state state_of(const qw_delta *d, const qw_kv_row *row)
{
    float *at = (float *)(void *)(row->recurrent + d->offset);
    return (state){.conv = at, .s = at + (d->n_taps - 1) * qw_delta_channels(d)};
}

static bool same_sequence(const qw_kv_row *a, const qw_kv_row *b)
{
    return a->recurrent == b->recurrent;
}

/* The next row after r of its sequence, n_rows when there is none. Rows of a sequence mostly lie together. */
static size_t next_row(const delta_args *a, size_t r)
{
    size_t n = r + 1;
    while (n < a->n_rows && !same_sequence(&a->rows[n], &a->rows[r])) n++;
    return n;
}

static bool is_first(const delta_args *a, size_t r)
{
    for (size_t i = r; i-- > 0;) {
        if (same_sequence(&a->rows[i], &a->rows[r])) return false;
    }
    return true;
}

/* ---- convolution ------------------------------------------------------------------------------- */

/* Those channels of all of the sequence's rows, and of its state. */
static void convolve(const delta_args *a, size_t first, channels c)
{
    const qw_delta *d = a->d;
    size_t n_channels = qw_delta_channels(d), n_past = d->n_taps - 1;
    float *past = state_of(d, &a->rows[first]).conv + c.at;
    const float *u[TAPS_MAX];
    for (size_t j = 0; j < n_past; j++) u[j] = past + j * n_channels;
    for (size_t r = first; r < a->n_rows; r = next_row(a, r)) {
        u[n_past] = a->in->qkv + r * n_channels + c.at;
        a->cpu->kernels->conv_silu(u, d->conv + c.at, n_channels, d->n_taps, c.n, a->in->mixed + r * n_channels + c.at);
        for (size_t j = 0; j < n_past; j++) u[j] = u[j + 1];
    }
    /* u[0..n_past) are the last inputs now; those that were in the state move down, oldest first. */
    for (size_t j = 0; j < n_past; j++) {
        if (u[j] != past + j * n_channels) memmove(past + j * n_channels, u[j], c.n * sizeof *past);
    }
}

/* ---- one head ---------------------------------------------------------------------------------- */

/* x / |x|, times scale. */
static void l2_norm(const qw_kernels *kernels, float *x, size_t n, float scale)
{
    float sum;
    kernels->dot_f32(x, n, x, n, 1, &sum, 1);
    float by = 1.0f / sqrtf(sum + 1e-6f);
    for (size_t i = 0; i < n; i++) x[i] = x[i] * by * scale;
}

static float softplus(float x)
{
    return x > 20.0f ? x : log1pf(expf(x));
}

static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

static size_t value_head(const qw_delta *d, size_t k_head, size_t i)
{
    return d->tiled ? k_head + i * d->n_k_heads : k_head * (d->n_v_heads / d->n_k_heads) + i;
}

/* decays[r, 2j], [2j + 1]: g and beta of value head j */
static void gates(const delta_args *a, size_t r, size_t k_head, size_t i)
{
    const qw_delta *d = a->d;
    size_t j = value_head(d, k_head, i);
    size_t at = r * a->in->ld_gates + (a->in->per_k_head ? k_head * a->in->per_k_head + i : j);
    float *to = a->in->decays + (r * d->n_v_heads + j) * 2;
    to[0] = expf(d->a[j] * softplus(a->in->alpha[at] + d->dt[j]));
    to[1] = sigmoid(a->in->beta[at]);
}

/* Rows [r, r + n) follow each other in one sequence. */
static void recur(const delta_args *a, size_t r, size_t n, size_t k_head, size_t j)
{
    const qw_delta *d = a->d;
    size_t n_channels = qw_delta_channels(d), key = (size_t)d->n_k_heads * d->k_dim, value = (size_t)d->n_v_heads * d->v_dim;
    const float *row = a->in->mixed + r * n_channels;
    float *s = state_of(d, &a->rows[r]).s + j * d->k_dim * d->v_dim;
    for (size_t v = 0; v < d->v_dim; v += QW_DELTA_LANES) {
        a->cpu->kernels->delta_rule(s + v * d->k_dim, d->k_dim, n, row + k_head * d->k_dim, row + key + k_head * d->k_dim,
                                    n_channels, row + 2 * key + j * d->v_dim + v, n_channels,
                                    a->in->decays + (r * d->n_v_heads + j) * 2, 2 * (size_t)d->n_v_heads,
                                    a->out + r * value + j * d->v_dim + v, value);
    }
}

static void finish(const delta_args *a, size_t r, size_t j)
{
    const qw_delta *d = a->d;
    size_t at = r * d->n_v_heads * d->v_dim + j * d->v_dim;
    float *o = a->out + at;
    const float *z = a->in->z + at;
    a->cpu->kernels->rms_norm(o, d->norm, d->v_dim, d->eps, o);
    if (d->sigmoid_gate)
        a->cpu->kernels->sigmoid_mul(o, z, d->v_dim, o);
    else
        a->cpu->kernels->silu_mul(z, o, d->v_dim, o);
}

/* Key head k_head of the sequence whose first row in the batch is `first`. */
static void delta_head(const delta_args *a, size_t first, size_t k_head)
{
    const qw_delta *d = a->d;
    size_t n_channels = qw_delta_channels(d), key = (size_t)d->n_k_heads * d->k_dim, ratio = d->n_v_heads / d->n_k_heads;
    float scale = 1.0f / sqrtf((float)d->k_dim);
    convolve(a, first, (channels){k_head * d->k_dim, d->k_dim});
    convolve(a, first, (channels){key + k_head * d->k_dim, d->k_dim});
    for (size_t i = 0; i < ratio; i++)
        convolve(a, first, (channels){2 * key + value_head(d, k_head, i) * d->v_dim, d->v_dim});
    for (size_t r = first; r < a->n_rows; r = next_row(a, r)) {
        float *q = a->in->mixed + r * n_channels + k_head * d->k_dim;
        l2_norm(a->cpu->kernels, q, d->k_dim, scale);
        l2_norm(a->cpu->kernels, q + key, d->k_dim, 1.0f);
        for (size_t i = 0; i < ratio; i++) gates(a, r, k_head, i);
    }
    for (size_t r = first, n; r < a->n_rows;) {
        for (n = 1; r + n < a->n_rows && same_sequence(&a->rows[r + n], &a->rows[r]);) n++;
        for (size_t i = 0; i < ratio; i++) recur(a, r, n, k_head, value_head(d, k_head, i));
        r = next_row(a, r + n - 1);
    }
    for (size_t r = first; r < a->n_rows; r = next_row(a, r))
        for (size_t i = 0; i < ratio; i++) finish(a, r, value_head(d, k_head, i));
}

/* Items: sequences in the order of their first rows, the key head fastest. */
static void delta_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const delta_args *a = ctx;
    int64_t item = 0;
    for (size_t r = 0; r < a->n_rows && item < end; r++) {
        if (!is_first(a, r)) continue;
        for (size_t k_head = 0; k_head < a->d->n_k_heads; k_head++, item++)
            if (item >= begin && item < end) delta_head(a, r, k_head);
    }
}

void qw_cpu_delta_net(qw_backend *be, const qw_delta *d, const qw_kv_row *rows, size_t n_rows, const qw_delta_in *in,
                      float *out)
{
    qw_cpu *cpu = (qw_cpu *)be;
    delta_args args = {.cpu = cpu, .d = d, .rows = rows, .n_rows = n_rows, .in = in, .out = out};
    int64_t n_items = 0;
    QW_ASSERT(d->n_taps >= 1 && d->n_taps <= TAPS_MAX && d->v_dim % QW_DELTA_LANES == 0);
    for (size_t r = 0; r < n_rows; r++) n_items += is_first(&args, r) ? d->n_k_heads : 0;
    qw_pool_run(cpu->pool, n_items, 1, delta_items, &args);
}
