/* attention.c: keys, values and attention of the CPU backend: blocks of rows times KV heads, shared out to the threads. */
#include <math.h>
#include <string.h>

#include "backend/cpu/cpu_private.h"

size_t qw_cpu_attention_scratch(const qw_cpu_sizes *s)
{
    return QW_CPU_QUERIES_MAX * (2 * (size_t)s->head_dim + 3) * sizeof(float); /* queries, values, maxima and sums */
}

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

void qw_cpu_kv_store(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows,
                         size_t n_rows, const float *k, const float *v, size_t ld)
{
    qw_cpu *cpu = (qw_cpu *)be;
    attn_args args = {.cpu = cpu, .shape = shape, .layer = layer, .rows = rows, .k = k, .v = v, .ld = ld};
    if (n_rows < QW_CPU_INLINE_ROWS) {
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
    float *q = qw_cpu_scratch(a->cpu, thread); /* [n_q, hd] */
    float *o = q + QW_CPU_QUERIES_MAX * hd;                                                      /* [n_q, hd] */
    float *m = o + QW_CPU_QUERIES_MAX * hd, *sum = m + QW_CPU_QUERIES_MAX;                              /* [n_q] */
    uint32_t n_keys[QW_CPU_QUERIES_MAX];
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
    size_t rows = QW_CPU_QUERIES_MAX / (s->n_heads / s->n_kv_heads);
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

void qw_cpu_attention(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows,
                          size_t n_rows, const float *q, float *out, size_t ld)
{
    qw_cpu *cpu = (qw_cpu *)be;
    QW_ASSERT(shape->n_heads / shape->n_kv_heads <= QW_CPU_QUERIES_MAX && shape->head_dim <= cpu->sizes.head_dim);
    attn_args args = {.cpu = cpu, .shape = shape, .layer = layer, .rows = rows, .n_rows = n_rows, .q = q,
                      .out = out, .ld = ld};
    size_t n_max = rows_per_item(shape);
    int64_t n_items = 0;
    for (size_t r = 0; r < n_rows; n_items += shape->n_kv_heads) r += run_length(rows + r, n_rows - r, n_max);
    qw_pool_run(cpu->pool, n_items, 1, attention_items, &args);
}
