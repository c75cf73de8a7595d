/* moe.c: feed-forward blocks of experts of the CPU backend.
 *
 * Rows are routed, and the pairs of a row and an expert are put in the order of the experts, so that an expert's rows lie
 * together: one product for each expert, cut into chunks of weight rows. Few rows read only the experts they chose; many rows
 * read each once. The way down, a thread takes the same chunk of all experts, one after the other: their sums are its own.
 *
 *     route -> gather records -> gate, up, silu -> quantise -> down and its weighted sums
 *
 * Source: transformers, modeling_qwen3_moe and modeling_qwen2_moe. A pair's result depends on its own row alone.
 */
#include <string.h>

#include "backend/cpu/cpu_private.h"
#include "backend/gates.h"

enum {
    CHUNK_GROUPS = 8,  /* of 16 weight rows: what a thread takes at a time */
    CHUNK_ROWS = CHUNK_GROUPS * QW_GROUP_ROWS,
    BLOCK_COLUMNS = 64 /* pairs in one call of a kernel */
};

typedef struct moe_run {
    qw_cpu *cpu;
    const qw_moe *w;
    const float *n;
    float *x;
    size_t ld_n, ld_x, n_rows, n_pairs, n_active;
    const qw_weight *stack; /* the product at work */
    bool packed;
} moe_run;

size_t qw_cpu_moe_scratch(const qw_cpu_sizes *s)
{
    return s->n_experts ? (2 * BLOCK_COLUMNS * CHUNK_ROWS + s->k_max) * sizeof(float) : 0;
}

/* ---- memory ------------------------------------------------------------------------------------- */

/* Of k elements, or of the next number that the form can hold. */
static size_t record_bytes(qw_act act, size_t k)
{
    size_t unit = act == QW_ACT_F32 ? 1 : qw_act_group(act);
    return qw_act_bytes(act, (k + unit - 1) / unit * unit);
}

size_t qw_cpu_moe_divide(const qw_cpu_sizes *s, qw_cpu_moe *m)
{
    size_t rows = s->n_rows_max, pairs = rows * s->n_used, at = 0;
    if (s->n_experts == 0) return 0;
    struct piece {
        void *ptr; /* to the pointer */
        size_t bytes;
    } pieces[] = {
        {&m->logits, rows * s->n_experts * sizeof(float)},
        {&m->scale, rows * sizeof(float)},
        {&m->weight, pairs * sizeof(float)},
        {&m->expert, pairs * sizeof(uint32_t)},
        {&m->pair, pairs * sizeof(uint32_t)},
        {&m->row, pairs * sizeof(uint32_t)},
        {&m->share, pairs * sizeof(float)},
        {&m->first, (s->n_experts + 1) * sizeof(uint32_t)},
        {&m->active, s->n_experts * sizeof(uint32_t)},
        {&m->mid, pairs * s->expert_ffn * sizeof(float)},
        {&m->sum, rows * s->hidden * sizeof(float)},
        {&m->shared, rows * s->hidden * sizeof(float)},
    };
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        uint8_t *here = m->arena ? m->arena + at : NULL;
        if (m->arena) memcpy(pieces[i].ptr, &here, sizeof here);
        at += (pieces[i].bytes + 63) / 64 * 64;
    }
    for (int act = 0; act < QW_ACT_COUNT; act++) {
        if (!s->acts[act]) continue;
        if (m->arena) m->in[act] = m->arena + at;
        at += pairs * record_bytes((qw_act)act, s->hidden);
        if (m->arena) m->act_mid[act] = m->arena + at;
        at += pairs * record_bytes((qw_act)act, s->expert_ffn);
    }
    return at;
}

/* ---- routing ------------------------------------------------------------------------------------ */

static void route_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const moe_run *a = ctx;
    const qw_cpu_moe *m = &a->cpu->moe;
    for (size_t r = (size_t)begin; r < (size_t)end; r++)
        qw_moe_route(a->cpu->kernels, a->w, m->logits + r * a->w->n_experts, m->expert + r * a->w->n_used,
                     m->weight + r * a->w->n_used);
}

/* Numbers the pairs by expert, then by row. */
static void sort_pairs(moe_run *a)
{
    qw_cpu_moe *m = &a->cpu->moe;
    size_t n_experts = a->w->n_experts;
    memset(m->first, 0, (n_experts + 1) * sizeof *m->first);
    for (size_t i = 0; i < a->n_pairs; i++) m->first[m->expert[i] + 1]++;
    a->n_active = 0;
    for (size_t e = 0; e < n_experts; e++) {
        if (m->first[e + 1]) m->active[a->n_active++] = (uint32_t)e;
        m->first[e + 1] += m->first[e];
    }
    for (size_t i = 0; i < a->n_pairs; i++) {
        uint32_t at = m->first[m->expert[i]]++;
        m->pair[i] = at;
        m->row[at] = (uint32_t)(i / a->w->n_used);
        m->share[at] = m->weight[i];
    }
    for (size_t e = n_experts; e > 0; e--) m->first[e] = m->first[e - 1]; /* back to where they began */
    m->first[0] = 0;
}

/* ---- records ------------------------------------------------------------------------------------ */

static void records_of_row(const moe_run *a, size_t r, qw_act act)
{
    const qw_cpu_moe *m = &a->cpu->moe;
    size_t bytes = qw_act_bytes(act, a->stack->k), n = a->w->n_used;
    uint8_t *first = m->in[act] + m->pair[r * n] * bytes;
    a->cpu->kernels->quantize_act[act](a->n + r * a->ld_n, a->stack->k, first);
    for (size_t i = 1; i < n; i++) memcpy(m->in[act] + m->pair[r * n + i] * bytes, first, bytes);
}

static void gather_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const moe_run *a = ctx;
    qw_act gate = qw_pack_act(a->w->gate->pack), up = qw_pack_act(a->w->up->pack);
    for (size_t r = (size_t)begin; r < (size_t)end; r++) {
        records_of_row(a, r, gate);
        if (up != gate) records_of_row(a, r, up);
    }
}

static void quantize_mid(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const moe_run *a = ctx;
    const qw_cpu_moe *m = &a->cpu->moe;
    size_t k = a->w->down->k;
    qw_act act = qw_pack_act(a->w->down->pack);
    for (size_t i = (size_t)begin; i < (size_t)end; i++)
        a->cpu->kernels->quantize_act[act](m->mid + i * k, k, m->act_mid[act] + i * qw_act_bytes(act, k));
}

/* ---- products ----------------------------------------------------------------------------------- */

/* Weight rows [row0, row0 + n) of one expert, and its pairs. */
typedef struct chunk {
    size_t expert, row0, n, pair0, n_pairs;
} chunk;

static size_t n_chunks(const qw_weight *w)
{
    return (w->rows + CHUNK_ROWS - 1) / CHUNK_ROWS;
}

/* Number `piece` of the expert's. */
static chunk chunk_of(const moe_run *a, size_t expert, size_t piece)
{
    const uint32_t *first = a->cpu->moe.first;
    chunk c = {.expert = expert, .row0 = piece * CHUNK_ROWS, .pair0 = first[expert],
               .n_pairs = first[expert + 1] - first[expert]};
    c.n = a->stack->rows - c.row0 < CHUNK_ROWS ? a->stack->rows - c.row0 : CHUNK_ROWS;
    return c;
}

/* Columns [i0, i1) of the records `act` times the chunk: out [i1 - i0, CHUNK_ROWS]. */
static void packed_block(const moe_run *a, const qw_weight *w, chunk c, uint8_t *const *records, size_t i0, size_t i1,
                         float *out)
{
    size_t group_bytes = qw_pack_group_bytes(w->pack, w->k), n_groups = (c.n + QW_GROUP_ROWS - 1) / QW_GROUP_ROWS;
    const uint8_t *groups = (const uint8_t *)w->packed +
                            (c.expert * qw_weight_groups(w) + c.row0 / QW_GROUP_ROWS) * group_bytes;
    qw_act act = qw_pack_act(w->pack);
    a->cpu->kernels->gemm[w->pack](groups, n_groups, w->k, records[act] + i0 * qw_act_bytes(act, w->k), i1 - i0, out,
                                   CHUNK_ROWS);
    qw_cpu_apply_scale(w, c.expert, out, i1 - i0, c.n, CHUNK_ROWS);
}

/* The same in float: column i is row row_of[i] of x, or row i when row_of is NULL. */
static void float_block(const moe_run *a, const qw_weight *w, chunk c, const float *x, size_t ld_x, const uint32_t *row_of,
                        size_t i0, size_t i1, int thread, float *row, float *out)
{
    for (size_t j = 0; j < c.n; j++) {
        a->cpu->kernels->dequantize_row(w->type, qw_cpu_row(a->cpu, w, c.expert, c.row0 + j, thread), row, w->k);
        for (size_t i = i0; i < i1; i++) {
            const float *column = x + (row_of ? row_of[i] : i) * ld_x;
            a->cpu->kernels->dot_f32(row, w->k, column, 0, 1, &out[(i - i0) * CHUNK_ROWS + j], 1);
        }
    }
    qw_cpu_apply_scale(w, c.expert, out, i1 - i0, c.n, CHUNK_ROWS);
}

static void gate_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    const moe_run *a = ctx;
    const qw_cpu_moe *m = &a->cpu->moe;
    float *gate = qw_cpu_scratch(a->cpu, thread), *up = gate + BLOCK_COLUMNS * CHUNK_ROWS, *row = up + BLOCK_COLUMNS * CHUNK_ROWS;
    size_t per_expert = n_chunks(a->stack);
    for (int64_t item = begin; item < end; item++) {
        chunk c = chunk_of(a, m->active[(size_t)item / per_expert], (size_t)item % per_expert);
        for (size_t i0 = c.pair0, i1, stop = c.pair0 + c.n_pairs; i0 < stop; i0 = i1) {
            i1 = stop - i0 < BLOCK_COLUMNS ? stop : i0 + BLOCK_COLUMNS;
            if (a->packed) {
                packed_block(a, a->w->gate, c, m->in, i0, i1, gate);
                packed_block(a, a->w->up, c, m->in, i0, i1, up);
            } else {
                float_block(a, a->w->gate, c, a->n, a->ld_n, m->row, i0, i1, thread, row, gate);
                float_block(a, a->w->up, c, a->n, a->ld_n, m->row, i0, i1, thread, row, up);
            }
            for (size_t i = i0; i < i1; i++) {
                size_t at = (i - i0) * CHUNK_ROWS;
                a->cpu->kernels->silu_mul(gate + at, up + at, c.n, m->mid + i * a->stack->rows + c.row0);
            }
        }
    }
}

/* Adds the chunk's results to the sums of its rows. */
static void down_chunk(const moe_run *a, chunk c, int thread)
{
    const qw_cpu_moe *m = &a->cpu->moe;
    float *part = qw_cpu_scratch(a->cpu, thread), *row = part + BLOCK_COLUMNS * CHUNK_ROWS;
    for (size_t i0 = c.pair0, i1, stop = c.pair0 + c.n_pairs; i0 < stop; i0 = i1) {
        i1 = stop - i0 < BLOCK_COLUMNS ? stop : i0 + BLOCK_COLUMNS;
        if (a->packed)
            packed_block(a, a->stack, c, m->act_mid, i0, i1, part);
        else
            float_block(a, a->stack, c, m->mid, a->stack->k, NULL, i0, i1, thread, row, part);
        for (size_t i = i0; i < i1; i++)
            a->cpu->kernels->add_scaled(m->sum + m->row[i] * a->stack->rows + c.row0, part + (i - i0) * CHUNK_ROWS,
                                        m->share[i], c.n);
    }
}

/* A row takes its experts in the order of their numbers, then the shared one; the sum is added to x. */
static void down_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    const moe_run *a = ctx;
    const qw_cpu_moe *m = &a->cpu->moe;
    const qw_kernels *kernels = a->cpu->kernels;
    size_t h = a->stack->rows;
    for (size_t piece = (size_t)begin; piece < (size_t)end; piece++) {
        size_t at = piece * CHUNK_ROWS, n = h - at < CHUNK_ROWS ? h - at : CHUNK_ROWS;
        for (size_t r = 0; r < a->n_rows; r++) memset(m->sum + r * h + at, 0, n * sizeof *m->sum);
        for (size_t e = 0; e < a->n_active; e++) down_chunk(a, chunk_of(a, m->active[e], piece), thread);
        for (size_t r = 0; r < a->n_rows; r++) {
            float *sum = m->sum + r * h + at;
            if (a->w->shared_down) kernels->add_scaled(sum, m->shared + r * h + at, a->w->shared_scale ? m->scale[r] : 1.0f, n);
            kernels->add(a->x + r * a->ld_x + at, sum, n);
        }
    }
}

static void shared_expert(moe_run *a)
{
    const qw_moe *w = a->w;
    qw_cpu_moe *m = &a->cpu->moe;
    qw_backend *be = &a->cpu->base;
    size_t h = w->shared_down->rows;
    qw_swiglu shared = {.gate = w->shared_gate, .up = w->shared_up, .down = w->shared_down, .gate_out = w->gate_out,
                        .up_out = w->up_out};
    qw_linear scale = {.w = w->shared_scale, .out = m->scale, .ld = 1};
    if (w->shared_scale) {
        be->ops->linear(be, a->n, a->ld_n, a->n_rows, &scale, 1);
        qw_sigmoid(a->cpu->kernels, m->scale, a->n_rows);
    }
    memset(m->shared, 0, a->n_rows * h * sizeof *m->shared);
    be->ops->swiglu(be, a->n, a->ld_n, a->n_rows, &shared, m->shared, h);
}

/* Of a few rows, in this thread: it takes less time than to wake another. */
static void run_rows(const moe_run *a, size_t n, qw_pool_fn *fn)
{
    void *ctx = (void *)(uintptr_t)a;
    if (a->n_rows < QW_CPU_INLINE_ROWS)
        fn(ctx, 0, (int64_t)n, 0);
    else
        qw_pool_run(a->cpu->pool, (int64_t)n, 1 + (int64_t)n / (8 * a->cpu->n_threads), fn, ctx);
}

void qw_cpu_moe_run(qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_moe *w, float *x, size_t ld_x)
{
    qw_cpu *cpu = (qw_cpu *)be;
    moe_run a = {.cpu = cpu, .w = w, .n = n, .ld_n = ld_n, .x = x, .ld_x = ld_x, .n_rows = n_rows,
                 .n_pairs = n_rows * w->n_used, .packed = w->gate->pack != QW_PACK_NONE};
    QW_ASSERT(w->n_experts <= cpu->sizes.n_experts && w->n_used <= cpu->sizes.n_used && n_rows <= cpu->sizes.n_rows_max);
    qw_linear router = {.w = w->router, .out = cpu->moe.logits, .ld = w->n_experts};
    be->ops->linear(be, n, ld_n, n_rows, &router, 1);
    if (w->shared_down) shared_expert(&a);
    run_rows(&a, n_rows, route_rows);
    sort_pairs(&a);
    a.stack = w->gate;
    if (a.packed) run_rows(&a, n_rows, gather_rows);
    qw_pool_run(cpu->pool, (int64_t)(a.n_active * n_chunks(a.stack)), 1, gate_items, &a);
    a.stack = w->down;
    if (a.packed) run_rows(&a, a.n_pairs, quantize_mid);
    qw_pool_run(cpu->pool, (int64_t)n_chunks(a.stack), 1, down_items, &a);
}
