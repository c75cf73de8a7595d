/* cpu.c: the CPU backend: rows and weight groups spread over a thread pool, computed by the kernel table.
 *
 * Owner: the engine thread calls; the pool's threads work. Every operation is one qw_pool_run, or none when
 * the work is too small to be worth waking anybody. The order in which items are computed never changes a
 * result: each output element is computed by one kernel call in one order.
 */
#include <stdlib.h>

#include "backend/cpu/attention.h"
#include "base/mem.h"

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

static size_t thread_scratch_bytes(const qw_cpu_sizes *s)
{
    size_t wanted[] = {qw_cpu_linear_scratch(s), qw_cpu_attention_scratch(s), qw_cpu_moe_scratch(s), qw_cpu_delta_scratch(s)};
    size_t most = 0;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) most = wanted[i] > most ? wanted[i] : most;
    return round_up(most, 4096);
}

static size_t act_buffer_bytes(const qw_cpu_sizes *s, qw_act act)
{
    size_t k = round_up(s->k_max, 256);
    if (!s->acts[act]) return 0;
    return round_up(qw_act_bytes(act, k) * s->n_rows_max, 4096);
}

/* Of either type. */
static size_t own_tile_bytes(const qw_cpu_sizes *s)
{
    size_t floats = 2 * (size_t)s->head_dim * QW_KV_TILE * sizeof(float);
    return s->index_top ? round_up(floats + qw_attn_tile_bytes(qw_attn_padded(s->head_dim)), 4096) : 0;
}

static size_t chosen_bytes(const qw_cpu_sizes *s)
{
    return s->n_rows_max * s->index_top * sizeof(uint32_t);
}

static size_t made_bytes(const qw_cpu_sizes *s)
{
    return round_up(s->source_bytes, 64);
}

size_t qw_cpu_scratch_bytes(const qw_cpu_sizes *sizes, int n_threads)
{
    size_t bytes = (thread_scratch_bytes(sizes) + made_bytes(sizes)) * (size_t)n_threads;
    for (int a = 0; a < QW_ACT_COUNT; a++) bytes += 2 * act_buffer_bytes(sizes, (qw_act)a);
    bytes += own_tile_bytes(sizes) * (size_t)n_threads + chosen_bytes(sizes);
    return bytes + qw_cpu_moe_divide(sizes, &(qw_cpu_moe){0});
}

/* ---- elementwise ------------------------------------------------------------------------------ */

typedef struct row_args {
    const qw_cpu *cpu;
    const qw_kernels *kernels;
    float *x;
    const float *y, *w, *cos, *sin;
    float *out;
    size_t k, ld;
    float eps;
    qw_heads heads;
    uint32_t n_rot;
    const qw_weight *weight;
    const int32_t *tokens;
} row_args;

static void run_rows(qw_cpu *cpu, size_t n_rows, qw_pool_fn *fn, row_args *args)
{
    args->cpu = cpu;
    args->kernels = cpu->kernels;
    if (n_rows < QW_CPU_INLINE_ROWS) {
        fn(args, 0, (int64_t)n_rows, 0);
    } else {
        qw_pool_run(cpu->pool, (int64_t)n_rows, 1 + (int64_t)n_rows / (4 * cpu->n_threads), fn, args);
    }
}

static void embed_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    row_args *a = ctx;
    for (int64_t r = begin; r < end; r++) {
        const uint8_t *src = qw_cpu_row(a->cpu, a->weight, 0, (size_t)a->tokens[r], thread);
        a->kernels->dequantize_row(a->weight->type, src, a->out + (size_t)r * a->ld, a->weight->k);
        qw_cpu_apply_scale(a->weight, 0, a->out + (size_t)r * a->ld, 1, a->weight->k, a->ld);
    }
}

static void cpu_embed(qw_backend *be, const qw_weight *w, const int32_t *tokens, size_t n_rows, float *out, size_t ld)
{
    row_args args = {.weight = w, .tokens = tokens, .out = out, .ld = ld};
    run_rows((qw_cpu *)be, n_rows, embed_rows, &args);
}

static void norm_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    row_args *a = ctx;
    for (int64_t r = begin; r < end; r++) {
        size_t at = (size_t)r * a->ld;
        a->kernels->rms_norm(a->y + at, a->w, a->k, a->eps, a->out + at);
    }
}

static void cpu_rms_norm(qw_backend *be, const float *x, const float *w, size_t n_rows, size_t k, size_t ld, float eps,
                         float *out)
{
    row_args args = {.y = x, .w = w, .k = k, .ld = ld, .eps = eps, .out = out};
    run_rows((qw_cpu *)be, n_rows, norm_rows, &args);
}

static void silu_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    row_args *a = ctx;
    for (int64_t r = begin; r < end; r++) {
        float *gate = a->x + (size_t)r * a->ld;
        a->kernels->silu_mul(gate, a->y + (size_t)r * a->ld, a->k, gate);
    }
}

static void cpu_silu_mul(qw_backend *be, float *gate, const float *up, size_t n_rows, size_t k, size_t ld)
{
    row_args args = {.x = gate, .y = up, .k = k, .ld = ld};
    run_rows((qw_cpu *)be, n_rows, silu_rows, &args);
}

static void gate_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    row_args *a = ctx;
    for (int64_t r = begin; r < end; r++) {
        float *x = a->x + (size_t)r * a->ld, *gate = a->heads.x + (size_t)r * a->heads.ld;
        for (uint32_t h = 0; h < a->heads.n; h++) {
            float *head = x + (size_t)h * a->heads.dim;
            a->kernels->sigmoid_mul(head, gate + h * a->heads.stride, a->heads.dim, head);
        }
    }
}

static void cpu_sigmoid_gate(qw_backend *be, float *x, size_t ld, size_t n_rows, qw_heads gate)
{
    row_args args = {.x = x, .ld = ld, .heads = gate};
    run_rows((qw_cpu *)be, n_rows, gate_rows, &args);
}

static void rope_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    row_args *a = ctx;
    size_t half = a->n_rot / 2;
    for (int64_t r = begin; r < end; r++) {
        float *x = a->heads.x + (size_t)r * a->heads.ld;
        for (uint32_t h = 0; h < a->heads.n; h++)
            a->kernels->rope(x + h * a->heads.stride, a->cos + (size_t)r * half, a->sin + (size_t)r * half, a->n_rot);
    }
}

static void cpu_rope(qw_backend *be, qw_heads x, size_t n_rows, uint32_t n_rot, const float *cos, const float *sin)
{
    row_args args = {.heads = x, .n_rot = n_rot, .cos = cos, .sin = sin};
    run_rows((qw_cpu *)be, n_rows, rope_rows, &args);
}

/* ---- life ------------------------------------------------------------------------------------- */

static void cpu_destroy(qw_backend *be)
{
    qw_cpu *cpu = (qw_cpu *)be;
    if (!cpu) return;
    for (int a = 0; a < QW_ACT_COUNT; a++) {
        qw_free_aligned(cpu->act[a], act_buffer_bytes(&cpu->sizes, (qw_act)a));
        qw_free_aligned(cpu->act_gated[a], act_buffer_bytes(&cpu->sizes, (qw_act)a));
    }
    qw_free_aligned(cpu->moe.arena, cpu->moe.bytes);
    qw_free_aligned(cpu->chosen, chosen_bytes(&cpu->sizes));
    qw_free_aligned(cpu->own_tiles, cpu->own_tile_bytes * (size_t)cpu->n_threads);
    qw_free_aligned(cpu->scratch, cpu->thread_bytes * (size_t)cpu->n_threads);
    qw_free_aligned(cpu->made, cpu->made_bytes * (size_t)cpu->n_threads);
    free(cpu);
}

static const qw_backend_ops cpu_ops = {
    .name = "cpu",
    .destroy = cpu_destroy,
    .embed = cpu_embed,
    .rms_norm = cpu_rms_norm,
    .linear = qw_cpu_linear,
    .swiglu = qw_cpu_swiglu,
    .moe = qw_cpu_moe_run,
    .silu_mul = cpu_silu_mul,
    .sigmoid_gate = cpu_sigmoid_gate,
    .rope = cpu_rope,
    .kv_store = qw_cpu_kv_store,
    .attention = qw_cpu_attention,
    .index_store = qw_cpu_index_store,
    .sparse_attention = qw_cpu_sparse_attention,
    .delta_net = qw_cpu_delta_net,
    .hyper_gate = qw_cpu_hyper_gate,
    .hyper_mix = qw_cpu_hyper_mix,
    .hyper_inject = qw_cpu_hyper_inject,
    .ple_gate = qw_cpu_ple_gate,
    .ple_conv = qw_cpu_ple_conv,
};

qw_status qw_cpu_create(qw_pool *pool, qw_isa isa, const qw_cpu_sizes *sizes, qw_backend **out, qw_err *err)
{
    qw_cpu *cpu;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&cpu, 1, sizeof *cpu, "CPU backend", err));
    cpu->base.ops = &cpu_ops;
    cpu->pool = pool;
    cpu->kernels = qw_kernels_get(isa);
    cpu->sizes = *sizes;
    cpu->n_threads = qw_pool_threads(pool);
    cpu->thread_bytes = thread_scratch_bytes(sizes);
    for (int a = 0; a < QW_ACT_COUNT; a++) {
        if (!sizes->acts[a]) continue;
        QW_TRY_GOTO(qw_alloc_aligned(&cpu->act[a], act_buffer_bytes(sizes, (qw_act)a), "activations", err));
        QW_TRY_GOTO(qw_alloc_aligned(&cpu->act_gated[a], act_buffer_bytes(sizes, (qw_act)a), "activations", err));
    }
    QW_TRY_GOTO(
        qw_alloc_aligned(&cpu->scratch, cpu->thread_bytes * (size_t)cpu->n_threads, "thread scratch", err));
    cpu->made_bytes = made_bytes(sizes);
    QW_TRY_GOTO(qw_alloc_aligned(&cpu->made, cpu->made_bytes * (size_t)cpu->n_threads, "thread scratch", err));
    cpu->own_tile_bytes = own_tile_bytes(sizes);
    if (sizes->index_top) {
        QW_TRY_GOTO(qw_alloc_aligned(&cpu->chosen, chosen_bytes(sizes), "chosen blocks", err));
        QW_TRY_GOTO(qw_alloc_aligned(&cpu->own_tiles, cpu->own_tile_bytes * (size_t)cpu->n_threads, "chosen blocks", err));
    }
    cpu->moe.bytes = qw_cpu_moe_divide(sizes, &cpu->moe);
    if (cpu->moe.bytes) {
        QW_TRY_GOTO(qw_alloc_aligned(&cpu->moe.arena, cpu->moe.bytes, "scratch for experts", err));
        qw_cpu_moe_divide(sizes, &cpu->moe);
    }
    *out = &cpu->base;
    return QW_OK;
fail:
    cpu_destroy(&cpu->base);
    return status;
}
