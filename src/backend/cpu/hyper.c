/* hyper.c: hyper-connections and per-layer embeddings of the CPU backend, row by row. Source: transformers,
 * modeling_qwen4_exp (GatedResidual, PLELayer). A row's result depends on its own sequence alone.
 */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu_private.h"
#include "backend/gates.h"

enum {
    STREAMS_MAX = 16, /* src/model/hparams.c takes no more */
    CHANNELS = 512    /* of a row, in one piece */
};

typedef struct hyper_args {
    qw_cpu *cpu;
    const float *a, *b, *c;
    float *x;
    size_t n_rows, k;
    uint32_t n_streams;
} hyper_args;

static void run_rows(hyper_args *a, qw_pool_fn *fn)
{
    if (a->n_rows < QW_CPU_INLINE_ROWS)
        fn(a, 0, (int64_t)a->n_rows, 0);
    else
        qw_pool_run(a->cpu->pool, (int64_t)a->n_rows, 1 + (int64_t)a->n_rows / (4 * a->cpu->n_threads), fn, a);
}

static void gate_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    hyper_args *a = ctx;
    float *x = a->x + (size_t)begin * a->k, streams = (float)a->n_streams;
    size_t n = (size_t)(end - begin) * a->k;
    for (size_t i = 0; i < n; i++) x[i] /= streams;
    a->cpu->kernels->sigmoid_mul(x, x, n, x);
}

void qw_cpu_hyper_gate(qw_backend *be, float *x, size_t n_rows, size_t k, uint32_t n_streams)
{
    hyper_args a = {.cpu = (qw_cpu *)be, .x = x, .n_rows = n_rows, .k = k, .n_streams = n_streams};
    run_rows(&a, gate_rows);
}

/* Channels [at, at + n) of row r. a: the normed streams, b: the logits of their mix */
static void mix_piece(const hyper_args *a, size_t r, size_t at, size_t n)
{
    const qw_kernels *kernels = a->cpu->kernels;
    float part[CHANNELS], *out = a->x + r * a->k + at, streams = (float)a->n_streams;
    for (uint32_t s = 0; s < a->n_streams; s++) {
        size_t from = (r * a->n_streams + s) * a->k + at;
        kernels->sigmoid_mul(a->a + from, a->b + from, n, s == 0 ? out : part);
        if (s > 0) kernels->add(out, part, n);
    }
    for (size_t i = 0; i < n; i++) out[i] /= streams;
}

static void mix_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const hyper_args *a = ctx;
    for (size_t r = (size_t)begin; r < (size_t)end; r++)
        for (size_t at = 0; at < a->k; at += CHANNELS) mix_piece(a, r, at, a->k - at < CHANNELS ? a->k - at : CHANNELS);
}

void qw_cpu_hyper_mix(qw_backend *be, const float *x, const float *mix, size_t n_rows, size_t k, uint32_t n_streams,
                      float *out)
{
    hyper_args a = {.cpu = (qw_cpu *)be, .a = x, .b = mix, .x = out, .n_rows = n_rows, .k = k, .n_streams = n_streams};
    run_rows(&a, mix_rows);
}

/* a: what the block gave, b: the logits of its weight in each stream */
static void inject_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    hyper_args *a = ctx;
    for (size_t r = (size_t)begin; r < (size_t)end; r++) {
        const float *y = a->a + r * a->k;
        float share[STREAMS_MAX];
        for (uint32_t s = 0; s < a->n_streams; s++) share[s] = a->b[r * a->n_streams + s] / (float)a->n_streams;
        qw_sigmoid(a->cpu->kernels, share, a->n_streams);
        for (uint32_t s = 0; s < a->n_streams; s++) {
            float *x = a->x + (r * a->n_streams + s) * a->k, by = 2.0f * share[s];
            for (size_t i = 0; i < a->k; i++) x[i] += by * y[i];
        }
    }
}

void qw_cpu_hyper_inject(qw_backend *be, float *x, const float *y, const float *inject, size_t n_rows, size_t k,
                         uint32_t n_streams)
{
    hyper_args a = {.cpu = (qw_cpu *)be, .a = y, .b = inject, .x = x, .n_rows = n_rows, .k = k, .n_streams = n_streams};
    QW_ASSERT(n_streams <= STREAMS_MAX);
    run_rows(&a, inject_rows);
}

/* a: keys, b: queries, c: the value */
static void ple_gate_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    hyper_args *a = ctx;
    float by = sqrtf((float)a->k);
    for (size_t r = (size_t)begin; r < (size_t)end; r++) {
        const float *value = a->c + r * a->k;
        float gate[STREAMS_MAX];
        for (uint32_t s = 0; s < a->n_streams; s++) {
            size_t at = (r * a->n_streams + s) * a->k;
            float dot;
            a->cpu->kernels->dot_f32(a->a + at, a->k, a->b + at, a->k, 1, &dot, 1);
            dot /= by;
            gate[s] = dot == 0 ? 0.0f : copysignf(sqrtf(fmaxf(fabsf(dot), 1e-6f)), dot);
        }
        qw_sigmoid(a->cpu->kernels, gate, a->n_streams);
        for (uint32_t s = 0; s < a->n_streams; s++) {
            float *x = a->x + (r * a->n_streams + s) * a->k;
            for (size_t i = 0; i < a->k; i++) x[i] = gate[s] * value[i];
        }
    }
}

void qw_cpu_ple_gate(qw_backend *be, const float *key, const float *query, const float *value, size_t n_rows, size_t k,
                     uint32_t n_streams, float *out)
{
    hyper_args a = {.cpu = (qw_cpu *)be, .a = key, .b = query, .c = value, .x = out, .n_rows = n_rows, .k = k,
                    .n_streams = n_streams};
    QW_ASSERT(n_streams <= STREAMS_MAX);
    run_rows(&a, ple_gate_rows);
}

/* ---- the short convolution ----------------------------------------------------------------------- */

enum { TAPS_MAX = 8 };

typedef struct conv_args {
    qw_cpu *cpu;
    const qw_ple_conv *c;
    const qw_kv_row *rows;
    size_t n_rows;
    const float *u, *y;
    float *x;
} conv_args;

/* Items are ranges of channels, each for all rows in order: a row reads what those before it left in the state. */
static void conv_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    const conv_args *a = ctx;
    const qw_ple_conv *c = a->c;
    size_t n_slots = (c->n_taps - 1) * c->dilation;
    float *out = qw_cpu_scratch(a->cpu, thread);
    for (int64_t item = begin; item < end; item++) {
        size_t at = (size_t)item * CHANNELS, n = c->k - at < CHANNELS ? c->k - at : CHANNELS;
        for (size_t r = 0; r < a->n_rows; r++) {
            float *state = (float *)(void *)(a->rows[r].recurrent + c->offset) + at;
            const float *taps[TAPS_MAX];
            for (uint32_t j = 0; j + 1 < c->n_taps; j++) { /* oldest first; the oldest lies where this row will */
                size_t back = (c->n_taps - 1 - j) * c->dilation;
                taps[j] = state + (a->rows[r].pos + n_slots - back) % n_slots * c->k;
            }
            taps[c->n_taps - 1] = a->u + r * c->k + at;
            a->cpu->kernels->conv_silu(taps, c->w + at, c->k, c->n_taps, n, out);
            float *x = a->x + r * c->k + at;
            const float *y = a->y + r * c->k + at;
            for (size_t i = 0; i < n; i++) x[i] += y[i] + out[i];
            memcpy(state + a->rows[r].pos % n_slots * c->k, taps[c->n_taps - 1], n * sizeof *state);
            if (!a->rows[r].keep) continue;
            float *copy = (float *)(void *)(a->rows[r].keep + c->offset) + at;
            for (size_t slot = 0; slot < n_slots; slot++) memcpy(copy + slot * c->k, state + slot * c->k, n * sizeof *state);
        }
    }
}

void qw_cpu_ple_conv(qw_backend *be, const qw_ple_conv *c, const qw_kv_row *rows, size_t n_rows, const float *u,
                     const float *y, float *x)
{
    qw_cpu *cpu = (qw_cpu *)be;
    conv_args a = {.cpu = cpu, .c = c, .rows = rows, .n_rows = n_rows, .u = u, .y = y, .x = x};
    QW_ASSERT(c->n_taps >= 2 && c->n_taps <= TAPS_MAX);
    qw_pool_run(cpu->pool, (int64_t)((c->k + CHANNELS - 1) / CHANNELS), 1, conv_items, &a);
}
