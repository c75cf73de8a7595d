/* delta.c: gated delta-net layers of the CPU backend.
 *
 *     c = silu(conv(qkv));  q, k, v = split(c);  q = l2norm(q) / sqrt(k_dim);  k = l2norm(k)
 *     beta = sigmoid(b);  g = exp(a * softplus(alpha + dt));  o = gated delta rule(q, k, v, g, beta)
 *     out = rms_norm(o) * act(z), head by head
 *
 * Source: transformers, modeling_qwen3_next and modeling_qwen3_5. An item is one key head of one sequence, with the value
 * heads that read it: its channels and its state are nobody else's, so one run does all of it. Its rows pass in order, in
 * blocks that lie densely in the thread's scratch: rows of the batch are a power of two of bytes apart, and a head's part of
 * many of them would meet in a few lines of the cache. The recurrence runs token by token, whatever the batch: a cut
 * changes no bit.
 */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu_private.h"
#include "backend/gates.h"

enum {
    TAPS_MAX = 8,
    BLOCK_ROWS = 32,
    ROWS_AHEAD = 4 /* whose part of the batch is fetched: the processor sees no pattern in them */
};

typedef struct delta_args {
    qw_cpu *cpu;
    const qw_delta *d;
    const qw_kv_row *rows;
    size_t n_rows;
    const qw_delta_in *in;
    float *out;
} delta_args;

/* Some rows of a sequence, and one key head's part of them. */
typedef struct block {
    size_t n, row[BLOCK_ROWS];          /* their numbers in the batch */
    const float *past[TAPS_MAX - 1];    /* [channels] each: inputs before the first of them, oldest first */
    float *q, *k;                       /* [n, k_dim] */
    float *v, *o;                       /* [n, v_dim] of one value head */
    float *gates;                       /* [n, 2] of one value head: g and beta */
} block;

size_t qw_cpu_delta_scratch(const qw_cpu_sizes *s)
{
    return BLOCK_ROWS * (2 * s->k_dim + 2 * s->v_dim + 2) * sizeof(float);
}

static block new_block(const delta_args *a, int thread)
{
    const qw_delta *d = a->d;
    block b = {.q = qw_cpu_scratch(a->cpu, thread)};
    b.k = b.q + (size_t)BLOCK_ROWS * d->k_dim;
    b.v = b.k + (size_t)BLOCK_ROWS * d->k_dim;
    b.o = b.v + (size_t)BLOCK_ROWS * d->v_dim;
    b.gates = b.o + (size_t)BLOCK_ROWS * d->v_dim;
    return b;
}

/* A range of channels: where they are in a row of qkv, and how many. */
typedef struct channels {
    size_t at, n;
} channels;

static size_t value_head(const qw_delta *d, size_t k_head, size_t i)
{
    return d->tiled ? k_head + i * d->n_k_heads : k_head * (d->n_v_heads / d->n_k_heads) + i;
}

static channels q_channels(const qw_delta *d, size_t k_head)
{
    return (channels){k_head * d->k_dim, d->k_dim};
}

static channels k_channels(const qw_delta *d, size_t k_head)
{
    return (channels){(d->n_k_heads + k_head) * d->k_dim, d->k_dim};
}

static channels v_channels(const qw_delta *d, size_t v_head)
{
    return (channels){2 * (size_t)d->n_k_heads * d->k_dim + v_head * d->v_dim, d->v_dim};
}

typedef struct state {
    float *conv; /* [n_taps - 1, channels] */
    float *s;    /* [n_v_heads][v_dim / QW_DELTA_LANES][k_dim][QW_DELTA_LANES] */
} state;

/* base: of a sequence's recurrent state */
static state state_at(const qw_delta *d, uint8_t *base)
{
    float *at = (float *)(void *)(base + d->offset);
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

/* Asks for n floats of a row to come. */
static void fetch(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += 64 / sizeof *x) __builtin_prefetch(x + i);
}

/* ---- convolution ------------------------------------------------------------------------------- */

/* out [n, c.n] */
static void convolve(const delta_args *a, const block *b, channels c, float *out)
{
    const qw_delta *d = a->d;
    size_t n_channels = qw_delta_channels(d), n_past = d->n_taps - 1;
    const float *u[TAPS_MAX];
    for (size_t j = 0; j < n_past; j++) u[j] = b->past[j] + c.at;
    for (size_t i = 0; i < b->n; i++) {
        if (i + ROWS_AHEAD < b->n) fetch(a->in->qkv + b->row[i + ROWS_AHEAD] * n_channels + c.at, c.n);
        u[n_past] = a->in->qkv + b->row[i] * n_channels + c.at;
        a->cpu->kernels->conv_silu(u, d->conv + c.at, n_channels, d->n_taps, c.n, out + i * c.n);
        for (size_t j = 0; j < n_past; j++) u[j] = u[j + 1];
    }
}

static void pass_block(const delta_args *a, block *b)
{
    size_t n_channels = qw_delta_channels(a->d), n_past = a->d->n_taps - 1;
    for (size_t i = 0; i < b->n; i++) {
        for (size_t j = 0; j + 1 < n_past; j++) b->past[j] = b->past[j + 1];
        b->past[n_past - 1] = a->in->qkv + b->row[i] * n_channels;
    }
}

/* The last inputs become the state's; those that were there already move down, oldest first. */
static void keep_past(const delta_args *a, const block *b, float *conv, channels c)
{
    size_t n_channels = qw_delta_channels(a->d);
    for (size_t j = 0; j + 1 < a->d->n_taps; j++)
        memmove(conv + j * n_channels + c.at, b->past[j] + c.at, c.n * sizeof *conv);
}

/* ---- one head ---------------------------------------------------------------------------------- */

/* x / |x|, times scale. */
static void l2_norm(const qw_kernels *kernels, float *x, size_t n, float scale)
{
    float sum;
    kernels->dot_f32(x, n, x, n, 1, &sum, 1);
    float by = scale / sqrtf(sum + 1e-6f);
    for (size_t i = 0; i < n; i++) x[i] *= by;
}

/* at: the value head's place in the rows of alpha and beta */
static void find_gates(const delta_args *a, block *b, size_t v_head, size_t at)
{
    const qw_delta *d = a->d;
    const qw_kernels *kernels = a->cpu->kernels;
    float g[BLOCK_ROWS], beta[BLOCK_ROWS];
    for (size_t i = 0; i < b->n; i++) {
        size_t from = b->row[i] * a->in->ld_gates + at;
        g[i] = a->in->alpha[from] + d->dt[v_head];
        beta[i] = a->in->beta[from];
    }
    qw_softplus(kernels, g, b->n);
    for (size_t i = 0; i < b->n; i++) g[i] *= d->a[v_head];
    kernels->exp(g, b->n);
    qw_sigmoid(kernels, beta, b->n);
    for (size_t i = 0; i < b->n; i++) {
        b->gates[2 * i] = g[i];
        b->gates[2 * i + 1] = beta[i];
    }
}

static void recur(const delta_args *a, const block *b, float *s)
{
    const qw_delta *d = a->d;
    for (size_t v = 0; v < d->v_dim; v += QW_DELTA_LANES) {
        a->cpu->kernels->delta_rule(s + v * d->k_dim, d->k_dim, b->n, b->q, b->k, d->k_dim, b->v + v, d->v_dim, b->gates, 2,
                                    b->o + v, d->v_dim);
    }
}

static void finish(const delta_args *a, const block *b, size_t v_head)
{
    const qw_delta *d = a->d;
    const qw_kernels *kernels = a->cpu->kernels;
    size_t value = (size_t)d->n_v_heads * d->v_dim, at_head = v_head * d->v_dim;
    for (size_t i = 0; i < b->n; i++) {
        size_t at = b->row[i] * value + at_head;
        float *o = b->o + i * d->v_dim;
        if (i + ROWS_AHEAD < b->n) fetch(a->in->z + b->row[i + ROWS_AHEAD] * value + at_head, d->v_dim);
        kernels->rms_norm(o, d->norm, d->v_dim, d->eps, o);
        if (d->sigmoid_gate)
            kernels->sigmoid_mul(o, a->in->z + at, d->v_dim, a->out + at);
        else
            kernels->silu_mul(a->in->z + at, o, d->v_dim, a->out + at);
    }
}

static void delta_block(const delta_args *a, block *b, size_t k_head, float *s)
{
    const qw_delta *d = a->d;
    size_t ratio = d->n_v_heads / d->n_k_heads;
    float scale = 1.0f / sqrtf((float)d->k_dim);
    convolve(a, b, q_channels(d, k_head), b->q);
    convolve(a, b, k_channels(d, k_head), b->k);
    for (size_t i = 0; i < b->n; i++) {
        l2_norm(a->cpu->kernels, b->q + i * d->k_dim, d->k_dim, scale);
        l2_norm(a->cpu->kernels, b->k + i * d->k_dim, d->k_dim, 1.0f);
    }
    for (size_t i = 0; i < ratio; i++) {
        size_t v_head = value_head(d, k_head, i);
        convolve(a, b, v_channels(d, v_head), b->v);
        find_gates(a, b, v_head, a->in->per_k_head ? k_head * a->in->per_k_head + i : v_head);
        recur(a, b, s + v_head * d->k_dim * d->v_dim);
        finish(a, b, v_head);
    }
}

/* The last inputs of all channels that belong to a key head. */
static void keep_inputs(const delta_args *a, const block *b, float *conv, size_t k_head)
{
    const qw_delta *d = a->d;
    keep_past(a, b, conv, q_channels(d, k_head));
    keep_past(a, b, conv, k_channels(d, k_head));
    for (size_t i = 0; i < d->n_v_heads / d->n_k_heads; i++)
        keep_past(a, b, conv, v_channels(d, value_head(d, k_head, i)));
}

/* A copy of the key head's part of the state, as it is after the block. */
static void copy_state(const delta_args *a, const block *b, const state *from, const state *to, size_t k_head)
{
    const qw_delta *d = a->d;
    size_t n = (size_t)d->k_dim * d->v_dim;
    keep_inputs(a, b, to->conv, k_head);
    for (size_t i = 0; i < d->n_v_heads / d->n_k_heads; i++) {
        size_t at = value_head(d, k_head, i) * n;
        memcpy(to->s + at, from->s + at, n * sizeof *to->s);
    }
}

/* Key head k_head of the sequence whose first row in the batch is `first`. */
static void delta_head(const delta_args *a, size_t first, size_t k_head, int thread)
{
    const qw_delta *d = a->d;
    state st = state_at(d, a->rows[first].recurrent), copy;
    block b = new_block(a, thread);
    for (size_t j = 0; j + 1 < d->n_taps; j++) b.past[j] = st.conv + j * qw_delta_channels(d);
    for (size_t r = first; r < a->n_rows;) {
        uint8_t *keep = NULL;
        for (b.n = 0; b.n < BLOCK_ROWS && r < a->n_rows && !keep; r = next_row(a, r)) {
            b.row[b.n++] = r;
            keep = a->rows[r].keep;
        }
        delta_block(a, &b, k_head, st.s);
        pass_block(a, &b);
        if (!keep) continue;
        copy = state_at(d, keep);
        copy_state(a, &b, &st, &copy, k_head);
    }
    keep_inputs(a, &b, st.conv, k_head);
}

/* Items: sequences in the order of their first rows, the key head fastest. */
static void delta_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    const delta_args *a = ctx;
    int64_t item = 0;
    for (size_t r = 0; r < a->n_rows && item < end; r++) {
        if (!is_first(a, r)) continue;
        for (size_t k_head = 0; k_head < a->d->n_k_heads; k_head++, item++)
            if (item >= begin && item < end) delta_head(a, r, k_head, thread);
    }
}

void qw_cpu_delta_net(qw_backend *be, const qw_delta *d, const qw_kv_row *rows, size_t n_rows, const qw_delta_in *in,
                      float *out)
{
    qw_cpu *cpu = (qw_cpu *)be;
    delta_args args = {.cpu = cpu, .d = d, .rows = rows, .n_rows = n_rows, .in = in, .out = out};
    int64_t n_items = 0;
    QW_ASSERT(d->k_dim <= cpu->sizes.k_dim && d->v_dim <= cpu->sizes.v_dim);
    QW_ASSERT(d->n_taps >= 2 && d->n_taps <= TAPS_MAX && d->v_dim % QW_DELTA_LANES == 0);
    for (size_t r = 0; r < n_rows; r++) n_items += is_first(&args, r) ? d->n_k_heads : 0;
    qw_pool_run(cpu->pool, n_items, 1, delta_items, &args);
}
