/* cpu.c: the CPU backend: rows and weight groups spread over a thread pool, computed by the kernel table.
 *
 * Owner: the engine thread calls; the pool's threads work. Every operation is one qw_pool_run, or none when
 * the work is too small to be worth waking anybody. The order in which items are computed never changes a
 * result: each output element is computed by one kernel call in one order.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/backend.h"
#include "base/mem.h"
#include "base/pool.h"

enum {
    CHUNK_BYTES = 128 << 10,   /* packed weights that stay in L2 while all columns pass over them */
    CHUNKS_PER_THREAD = 8,     /* so that a late thread costs little at the end of a product */
    QUERIES_MAX = 64,          /* queries of one KV head that share a pass over its tiles */
    INLINE_ROWS = 4            /* fewer rows of an elementwise operation run in the caller's thread */
};

typedef struct qw_cpu {
    qw_backend base;
    qw_pool *pool;
    const qw_kernels *kernels;
    qw_cpu_sizes sizes;
    int n_threads;
    uint8_t *act[QW_ACT_COUNT]; /* [n_rows_max] records of the current input */
    size_t act_bytes;           /* of each act buffer */
    uint8_t *scratch;           /* [n_threads][thread_bytes] */
    size_t thread_bytes;
} qw_cpu;

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* Per-thread scratch: a dequantised row or a partial group of columns; or queries, values, maxima and sums. */
static size_t thread_scratch_bytes(const qw_cpu_sizes *s)
{
    size_t row = s->k_max * sizeof(float);
    size_t group = s->n_rows_max * QW_GROUP_ROWS * sizeof(float);
    size_t attn = QUERIES_MAX * (2 * (size_t)s->head_dim + 3) * sizeof(float);
    size_t most = row > group ? row : group;
    return round_up(most > attn ? most : attn, 4096);
}

static size_t act_buffer_bytes(const qw_cpu_sizes *s, qw_act act)
{
    size_t k = round_up(s->k_max, 256);
    return round_up(qw_act_bytes(act, k) * s->n_rows_max, 4096);
}

size_t qw_cpu_scratch_bytes(const qw_cpu_sizes *sizes, int n_threads)
{
    size_t bytes = thread_scratch_bytes(sizes) * (size_t)n_threads;
    for (int a = 0; a < QW_ACT_COUNT; a++) bytes += act_buffer_bytes(sizes, (qw_act)a);
    return bytes;
}

/* ---- elementwise ------------------------------------------------------------------------------ */

typedef struct row_args {
    const qw_kernels *kernels;
    float *x;
    const float *y, *w, *cos, *sin;
    float *out;
    size_t k, ld;
    float eps;
    uint32_t n_heads, head_dim;
    const qw_weight *weight;
    const int32_t *tokens;
} row_args;

static void run_rows(qw_cpu *cpu, size_t n_rows, qw_pool_fn *fn, row_args *args)
{
    args->kernels = cpu->kernels;
    if (n_rows < INLINE_ROWS) {
        fn(args, 0, (int64_t)n_rows, 0);
    } else {
        qw_pool_run(cpu->pool, (int64_t)n_rows, 1 + (int64_t)n_rows / (4 * cpu->n_threads), fn, args);
    }
}

static void embed_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    row_args *a = ctx;
    for (int64_t r = begin; r < end; r++) {
        const uint8_t *src = a->weight->data + (size_t)a->tokens[r] * a->weight->row_bytes;
        a->kernels->dequantize_row(a->weight->type, src, a->out + (size_t)r * a->ld, a->weight->k);
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

static void add_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    row_args *a = ctx;
    for (int64_t r = begin; r < end; r++) a->kernels->add(a->x + (size_t)r * a->ld, a->y + (size_t)r * a->ld, a->k);
}

static void cpu_add(qw_backend *be, float *x, const float *y, size_t n_rows, size_t k, size_t ld)
{
    row_args args = {.x = x, .y = y, .k = k, .ld = ld};
    run_rows((qw_cpu *)be, n_rows, add_rows, &args);
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

static void rope_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    row_args *a = ctx;
    size_t half = a->head_dim / 2;
    for (int64_t r = begin; r < end; r++) {
        float *x = a->x + (size_t)r * a->ld;
        for (uint32_t h = 0; h < a->n_heads; h++) {
            a->kernels->rope(x + (size_t)h * a->head_dim, a->cos + (size_t)r * half, a->sin + (size_t)r * half,
                             a->head_dim);
        }
    }
}

static void cpu_rope(qw_backend *be, float *x, size_t n_rows, size_t ld, uint32_t n_heads, uint32_t head_dim,
                     const float *cos, const float *sin)
{
    row_args args = {.x = x, .ld = ld, .n_heads = n_heads, .head_dim = head_dim, .cos = cos, .sin = sin};
    run_rows((qw_cpu *)be, n_rows, rope_rows, &args);
}

/* ---- products --------------------------------------------------------------------------------- */

/* Work on a product is counted in groups of 16 rows, packed or not. */
static size_t n_groups_of(const qw_weight *w)
{
    return (w->rows + QW_GROUP_ROWS - 1) / QW_GROUP_ROWS;
}

typedef struct linear_args {
    qw_cpu *cpu;
    const float *x; /* [n_rows, ld_x] */
    size_t ld_x, n_rows, k;
    const qw_linear *products;
    size_t n_products;
    qw_act act; /* being quantised */
    bool fine;  /* n_rows further columns hold what quantising the first n_rows lost */
} linear_args;

static void quantize_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    linear_args *a = ctx;
    size_t bytes = qw_act_bytes(a->act, a->k);
    float *lost = (float *)(void *)(a->cpu->scratch + (size_t)thread * a->cpu->thread_bytes); /* [k] */
    for (int64_t r = begin; r < end; r++) {
        const float *x = a->x + (size_t)r * a->ld_x;
        uint8_t *record = a->cpu->act[a->act] + (size_t)r * bytes;
        a->cpu->kernels->quantize_act[a->act](x, a->k, record);
        if (!a->fine) continue;
        qw_act_residual(a->act, x, a->k, record, lost);
        a->cpu->kernels->quantize_act[a->act](lost, a->k, record + a->n_rows * bytes);
    }
}

/* One group through scratch, for what the kernel cannot write in place: the last group of a matrix, whose padding would
 * land in the next row of out, and fine products, whose two parts are added. */
static void one_group(const linear_args *a, const qw_linear *p, size_t g, int thread)
{
    const qw_weight *w = p->w;
    size_t row0 = g * QW_GROUP_ROWS, n = w->rows - row0 < QW_GROUP_ROWS ? w->rows - row0 : QW_GROUP_ROWS;
    size_t n_cols = a->fine ? 2 * a->n_rows : a->n_rows;
    float *part = (float *)(void *)(a->cpu->scratch + (size_t)thread * a->cpu->thread_bytes); /* [n_cols, 16] */
    const uint8_t *packed = (const uint8_t *)w->packed + g * qw_pack_group_bytes(w->pack, w->k);
    a->cpu->kernels->gemm[w->pack](packed, 1, w->k, a->cpu->act[qw_pack_act(w->pack)], n_cols, part, QW_GROUP_ROWS);
    for (size_t r = 0; r < a->n_rows; r++) {
        float *out = p->out + r * p->ld + row0;
        const float *rough = part + r * QW_GROUP_ROWS, *rest = rough + a->n_rows * QW_GROUP_ROWS;
        for (size_t i = 0; i < n; i++) out[i] = a->fine ? rough[i] + rest[i] : rough[i];
    }
}

/* Groups [g0, g1) of a packed product. */
static void packed_groups(const linear_args *a, const qw_linear *p, size_t g0, size_t g1, int thread)
{
    const qw_weight *w = p->w;
    size_t n_whole = a->fine ? 0 : w->rows / QW_GROUP_ROWS, whole_end = g1 < n_whole ? g1 : n_whole;
    if (whole_end > g0) {
        const uint8_t *packed = (const uint8_t *)w->packed + g0 * qw_pack_group_bytes(w->pack, w->k);
        a->cpu->kernels->gemm[w->pack](packed, whole_end - g0, w->k, a->cpu->act[qw_pack_act(w->pack)], a->n_rows,
                                       p->out + g0 * QW_GROUP_ROWS, p->ld);
    }
    for (size_t g = g0 > n_whole ? g0 : n_whole; g < g1; g++) one_group(a, p, g, thread);
}

/* The same groups computed in float on dequantised rows. */
static void float_groups(const linear_args *a, const qw_linear *p, size_t g0, size_t g1, int thread)
{
    const qw_weight *w = p->w;
    float *row = (float *)(void *)(a->cpu->scratch + (size_t)thread * a->cpu->thread_bytes);
    size_t end = g1 * QW_GROUP_ROWS < w->rows ? g1 * QW_GROUP_ROWS : w->rows;
    for (size_t i = g0 * QW_GROUP_ROWS; i < end; i++) {
        a->cpu->kernels->dequantize_row(w->type, w->data + i * w->row_bytes, row, w->k);
        a->cpu->kernels->dot_f32(row, w->k, a->x, a->ld_x, a->n_rows, p->out + i, p->ld);
    }
}

static void add_bias(const linear_args *a, const qw_linear *p, size_t g0, size_t g1)
{
    size_t begin = g0 * QW_GROUP_ROWS;
    size_t end = g1 * QW_GROUP_ROWS < p->w->rows ? g1 * QW_GROUP_ROWS : p->w->rows;
    for (size_t r = 0; r < a->n_rows; r++) {
        float *out = p->out + r * p->ld;
        for (size_t i = begin; i < end; i++) out[i] += p->bias[i];
    }
}

/* Items are the groups of all products, one after the other; a chunk may cross from one into the next. */
static void linear_groups(void *ctx, int64_t begin, int64_t end, int thread)
{
    linear_args *a = ctx;
    size_t first = 0; /* item number of the current product's first group */
    for (size_t i = 0; i < a->n_products && (int64_t)first < end; i++) {
        const qw_linear *p = &a->products[i];
        size_t n_groups = n_groups_of(p->w);
        if (begin < (int64_t)(first + n_groups)) {
            size_t g0 = begin > (int64_t)first ? (size_t)begin - first : 0;
            size_t g1 = end < (int64_t)(first + n_groups) ? (size_t)end - first : n_groups;
            if (p->w->pack != QW_PACK_NONE) {
                packed_groups(a, p, g0, g1, thread);
            } else {
                float_groups(a, p, g0, g1, thread);
            }
            if (p->bias) add_bias(a, p, g0, g1);
        }
        first += n_groups;
    }
}

static void cpu_linear(qw_backend *be, const float *x, size_t ld_x, size_t n_rows, const qw_linear *products,
                       size_t n_products)
{
    qw_cpu *cpu = (qw_cpu *)be;
    linear_args args = {.cpu = cpu, .x = x, .ld_x = ld_x, .n_rows = n_rows, .k = products[0].w->k,
                        .products = products, .n_products = n_products, .fine = products[0].fine};
    QW_ASSERT(!args.fine || 2 * n_rows <= cpu->sizes.n_rows_max);
    bool wants[QW_ACT_COUNT] = {false};
    size_t n_groups = 0, bytes = 0;
    for (size_t i = 0; i < n_products; i++) {
        const qw_weight *w = products[i].w;
        QW_ASSERT(w->k == args.k && w->k <= cpu->sizes.k_max && n_rows <= cpu->sizes.n_rows_max);
        QW_ASSERT(products[i].fine == args.fine);
        if (w->pack != QW_PACK_NONE) wants[qw_pack_act(w->pack)] = true;
        n_groups += n_groups_of(w);
        bytes += n_groups_of(w) * QW_GROUP_ROWS * w->row_bytes;
    }
    for (int act = 0; act < QW_ACT_COUNT; act++) {
        if (!wants[act]) continue;
        args.act = (qw_act)act;
        if (n_rows < INLINE_ROWS) {
            quantize_rows(&args, 0, (int64_t)n_rows, 0);
        } else {
            qw_pool_run(cpu->pool, (int64_t)n_rows, 1 + (int64_t)n_rows / (4 * cpu->n_threads), quantize_rows, &args);
        }
    }
    size_t chunk = CHUNK_BYTES / (bytes / n_groups + 1);
    size_t fair = n_groups / (size_t)(CHUNKS_PER_THREAD * cpu->n_threads);
    if (chunk > fair) chunk = fair;
    if (chunk < 1) chunk = 1;
    qw_pool_run(cpu->pool, (int64_t)n_groups, (int64_t)chunk, linear_groups, &args);
}

/* ---- attention -------------------------------------------------------------------------------- */

typedef struct attn_args {
    qw_cpu *cpu;
    const qw_kv_shape *shape;
    uint32_t layer;
    const qw_kv_row *rows;
    size_t n_rows;
    const float *q, *k, *v;
    float *out;
    size_t ld;
} attn_args;

static void kv_store_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    attn_args *a = ctx;
    const qw_kv_shape *s = a->shape;
    size_t hd = s->head_dim;
    for (int64_t r = begin; r < end; r++) {
        size_t slot = a->rows[r].pos % QW_KV_TILE;
        uint8_t *page = a->rows[r].pages[a->rows[r].pos / QW_KV_TILE];
        for (uint32_t h = 0; h < s->n_kv_heads; h++) {
            uint8_t *keys = page + qw_kv_offset(s, a->layer, h);
            uint8_t *values = keys + qw_kv_tile_bytes(s);
            const float *k = a->k + (size_t)r * a->ld + h * hd, *v = a->v + (size_t)r * a->ld + h * hd;
            if (s->type == QW_KV_F32) {
                float *kt = (float *)(void *)keys;
                for (size_t d = 0; d < hd; d++) kt[d * QW_KV_TILE + slot] = k[d];
                memcpy((float *)(void *)values + slot * hd, v, hd * sizeof(float));
            } else {
                qw_half half[QW_HEAD_DIM_MAX];
                qw_half *kt = (qw_half *)(void *)keys;
                a->cpu->kernels->f32_to_f16(k, hd, half);
                for (size_t d = 0; d < hd; d++) kt[d * QW_KV_TILE + slot] = half[d];
                a->cpu->kernels->f32_to_f16(v, hd, (qw_half *)(void *)values + slot * hd);
            }
        }
    }
}

static void cpu_kv_store(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows,
                         size_t n_rows, const float *k, const float *v, size_t ld)
{
    qw_cpu *cpu = (qw_cpu *)be;
    attn_args args = {.cpu = cpu, .shape = shape, .layer = layer, .rows = rows, .k = k, .v = v, .ld = ld};
    if (n_rows < INLINE_ROWS) {
        kv_store_rows(&args, 0, (int64_t)n_rows, 0);
    } else {
        qw_pool_run(cpu->pool, (int64_t)n_rows, 1 + (int64_t)n_rows / (4 * cpu->n_threads), kv_store_rows, &args);
    }
}

/* Rows that may share a pass over the tiles: consecutive positions of one sequence, at most n_max. */
static size_t run_length(const qw_kv_row *rows, size_t n_rows, size_t n_max)
{
    size_t n = 1;
    while (n < n_rows && n < n_max && rows[n].pages == rows[0].pages && rows[n].pos == rows[0].pos + n) n++;
    return n;
}

/* All queries of rows [r0, r0 + n) that read KV head h: every tile up to the last row's position. */
static void attend(const attn_args *a, size_t r0, size_t n, uint32_t h, int thread)
{
    const qw_kv_shape *s = a->shape;
    size_t hd = s->head_dim, group = s->n_heads / s->n_kv_heads, n_q = n * group;
    float *q = (float *)(void *)(a->cpu->scratch + (size_t)thread * a->cpu->thread_bytes); /* [n_q, hd] */
    float *o = q + QUERIES_MAX * hd;                                                      /* [n_q, hd] */
    float *m = o + QUERIES_MAX * hd, *sum = m + QUERIES_MAX;                              /* [n_q] */
    uint32_t n_keys[QUERIES_MAX];
    float scale = 1.0f / sqrtf((float)hd);
    for (size_t i = 0; i < n_q; i++) {
        const float *src = a->q + (r0 + i / group) * a->ld + (h * group + i % group) * hd;
        for (size_t d = 0; d < hd; d++) q[i * hd + d] = src[d] * scale;
        m[i] = -INFINITY;
        sum[i] = 0;
    }
    memset(o, 0, n_q * hd * sizeof(float));
    qw_attn_tile_fn *tile_fn =
        s->type == QW_KV_F16 ? a->cpu->kernels->attn_tile_f16 : a->cpu->kernels->attn_tile_f32;
    uint32_t last = a->rows[r0 + n - 1].pos;
    size_t offset = qw_kv_offset(s, a->layer, h), tile_bytes = qw_kv_tile_bytes(s);
    for (uint32_t t = 0; t <= last / QW_KV_TILE; t++) {
        for (size_t i = 0; i < n_q; i++) {
            int64_t seen = (int64_t)a->rows[r0 + i / group].pos + 1 - (int64_t)t * QW_KV_TILE;
            n_keys[i] = seen < 0 ? 0 : seen > QW_KV_TILE ? QW_KV_TILE : (uint32_t)seen;
        }
        const uint8_t *keys = a->rows[r0].pages[t] + offset;
        tile_fn(keys, keys + tile_bytes, hd, q, n_q, n_keys, m, sum, o);
    }
    for (size_t i = 0; i < n_q; i++) {
        float *dst = a->out + (r0 + i / group) * a->ld + (h * group + i % group) * hd;
        float inv = 1.0f / sum[i];
        for (size_t d = 0; d < hd; d++) dst[d] = o[i * hd + d] * inv;
    }
}

static size_t rows_per_item(const qw_kv_shape *s)
{
    size_t rows = QUERIES_MAX / (s->n_heads / s->n_kv_heads);
    return rows < 1 ? 1 : rows;
}

/* Items are (block of rows, KV head), the block's head fastest. Blocks are found by walking, which is cheap
 * beside the work. */
static void attention_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    attn_args *a = ctx;
    size_t n_max = rows_per_item(a->shape);
    int64_t item = 0;
    for (size_t r = 0; r < a->n_rows && item < end;) {
        size_t n = run_length(a->rows + r, a->n_rows - r, n_max);
        for (uint32_t h = 0; h < a->shape->n_kv_heads; h++, item++) {
            if (item >= begin && item < end) attend(a, r, n, h, thread);
        }
        r += n;
    }
}

static void cpu_attention(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows,
                          size_t n_rows, const float *q, float *out, size_t ld)
{
    qw_cpu *cpu = (qw_cpu *)be;
    QW_ASSERT(shape->n_heads / shape->n_kv_heads <= QUERIES_MAX && shape->head_dim <= cpu->sizes.head_dim);
    attn_args args = {.cpu = cpu, .shape = shape, .layer = layer, .rows = rows, .n_rows = n_rows, .q = q,
                      .out = out, .ld = ld};
    size_t n_max = rows_per_item(shape);
    int64_t n_items = 0;
    for (size_t r = 0; r < n_rows; n_items += shape->n_kv_heads) r += run_length(rows + r, n_rows - r, n_max);
    qw_pool_run(cpu->pool, n_items, 1, attention_items, &args);
}

/* ---- life ------------------------------------------------------------------------------------- */

static void cpu_destroy(qw_backend *be)
{
    qw_cpu *cpu = (qw_cpu *)be;
    if (!cpu) return;
    for (int a = 0; a < QW_ACT_COUNT; a++) qw_free_aligned(cpu->act[a], act_buffer_bytes(&cpu->sizes, (qw_act)a));
    qw_free_aligned(cpu->scratch, cpu->thread_bytes * (size_t)cpu->n_threads);
    free(cpu);
}

static const qw_backend_ops cpu_ops = {
    .name = "cpu",
    .destroy = cpu_destroy,
    .embed = cpu_embed,
    .rms_norm = cpu_rms_norm,
    .linear = cpu_linear,
    .add = cpu_add,
    .silu_mul = cpu_silu_mul,
    .rope = cpu_rope,
    .kv_store = cpu_kv_store,
    .attention = cpu_attention,
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
        QW_TRY_GOTO(qw_alloc_aligned(&cpu->act[a], act_buffer_bytes(sizes, (qw_act)a), "activations", err));
    }
    QW_TRY_GOTO(
        qw_alloc_aligned(&cpu->scratch, cpu->thread_bytes * (size_t)cpu->n_threads, "thread scratch", err));
    *out = &cpu->base;
    return QW_OK;
fail:
    cpu_destroy(&cpu->base);
    return status;
}
