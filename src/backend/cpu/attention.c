/* attention.c: keys, values and attention of the CPU backend: blocks of rows times KV heads, shared out to the threads. */
#include <math.h>
#include <string.h>

#include "backend/cpu/attention.h"

size_t qw_cpu_attention_scratch(const qw_cpu_sizes *s)
{
    return QW_CPU_QUERIES_MAX * (2 * qw_attn_padded(s->head_dim) + 3) * sizeof(float);
}

static qw_cpu_queries queries_in(float *scratch, size_t n_q, size_t hd)
{
    qw_cpu_queries st = {.n_q = n_q, .hd = hd, .o = scratch};
    st.q.f32 = st.o + QW_CPU_QUERIES_MAX * hd;
    st.m = st.q.f32 + QW_CPU_QUERIES_MAX * hd;
    st.s = st.m + QW_CPU_QUERIES_MAX;
    st.dq = st.s + QW_CPU_QUERIES_MAX;
    return st;
}

typedef struct attn_args {
    qw_cpu *cpu;
    const qw_kv_shape *shape;
    uint32_t layer;
    const qw_kv_row *rows;
    size_t n_rows;
    const float *k, *v;
    qw_heads q;
    float *out;
    size_t ld;
} attn_args;

/* Position `slot` of a tile: k, v [head_dim] */
static void store_f32(size_t hd, uint8_t *tile, size_t slot, const float *k, const float *v)
{
    float *keys = (float *)(void *)tile, *values = keys + hd * QW_KV_TILE;
    for (size_t d = 0; d < hd; d++) keys[d * QW_KV_TILE + slot] = k[d];
    memcpy(values + slot * hd, v, hd * sizeof *v);
}

/* A query or a key [head_dim] in integers; returns its scale. */
static float quantize_vector(const qw_kernels *kernels, const float *x, size_t head_dim, int16_t *out)
{
    float norm2;
    kernels->dot_f32(x, head_dim, x, head_dim, 1, &norm2, 1);
    return kernels->quantize_i16(x, head_dim, QW_ATTN_MOST, QW_ATTN_NORM_MOST, norm2, out);
}

static void store_i16(const qw_kernels *kernels, size_t head_dim, uint8_t *tile, size_t slot, const float *k,
                      const float *v)
{
    int16_t ik[QW_HEAD_DIM_MAX] = {0}, iv[QW_HEAD_DIM_MAX] = {0};
    float dk = quantize_vector(kernels, k, head_dim, ik);
    float dv = kernels->quantize_i16(v, head_dim, QW_ATTN_VALUE_MOST, 0.0f, 0.0f, iv);
    qw_attn_tile_set(tile, qw_attn_padded(head_dim), slot, ik, dk, iv, dv);
}

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
            uint8_t *tile = page + qw_kv_offset(s, a->layer, h);
            const float *k = a->k + (size_t)r * a->ld + h * hd, *v = a->v + (size_t)r * a->ld + h * hd;
            if (s->type == QW_KV_F32)
                store_f32(hd, tile, slot, k, v);
            else
                store_i16(a->cpu->kernels, hd, tile, slot, k, v);
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

qw_cpu_queries qw_cpu_queries_begin(const qw_cpu *cpu, const qw_kv_shape *s, qw_heads q, size_t r0, size_t n, uint32_t h,
                                    int thread)
{
    size_t head_dim = s->head_dim, group = s->n_heads / s->n_kv_heads;
    bool floats = s->type == QW_KV_F32;
    qw_cpu_queries st = queries_in(qw_cpu_scratch(cpu, thread), n * group, floats ? head_dim : qw_attn_padded(head_dim));
    float scale = 1.0f / sqrtf((float)head_dim);
    for (size_t i = 0; i < st.n_q; i++) {
        const float *src = q.x + (r0 + i / group) * q.ld + (h * group + i % group) * q.stride;
        if (floats) {
            for (size_t d = 0; d < head_dim; d++) st.q.f32[i * st.hd + d] = src[d] * scale;
        } else {
            int16_t *to = st.q.i16 + i * st.hd;
            st.dq[i] = quantize_vector(cpu->kernels, src, head_dim, to) * scale;
            memset(to + head_dim, 0, (st.hd - head_dim) * sizeof *to);
        }
        st.m[i] = -INFINITY;
        st.s[i] = 0;
    }
    memset(st.o, 0, st.n_q * st.hd * sizeof *st.o);
    return st;
}

void qw_cpu_queries_tile(const qw_cpu *cpu, const qw_kv_shape *s, const qw_cpu_queries *st, const uint8_t *tile,
                         const uint8_t *next, const uint32_t *n_keys)
{
    if (s->type == QW_KV_F32) {
        const float *keys = (const float *)(const void *)tile, *values = keys + (size_t)s->head_dim * QW_KV_TILE;
        cpu->kernels->attn_f32(keys, values, st->hd, st->q.f32, st->n_q, n_keys, st->m, st->s, st->o);
    } else {
        cpu->kernels->attn_i16(tile, next, st->hd, st->q.i16, st->dq, st->n_q, n_keys, st->m, st->s, st->o);
    }
}

void qw_cpu_queries_end(const qw_cpu_queries *st, const qw_kv_shape *s, size_t r0, uint32_t h, float *out, size_t ld_out)
{
    size_t head_dim = s->head_dim, group = s->n_heads / s->n_kv_heads;
    for (size_t i = 0; i < st->n_q; i++) {
        float *dst = out + (r0 + i / group) * ld_out + (h * group + i % group) * head_dim;
        float inv = 1.0f / st->s[i];
        for (size_t d = 0; d < head_dim; d++) dst[d] = st->o[i * st->hd + d] * inv;
    }
}

/* All queries of rows [r0, r0 + n) that read KV head h: every tile up to the last row's position. */
static void attend(const attn_args *a, size_t r0, size_t n, uint32_t h, int thread)
{
    const qw_kv_shape *s = a->shape;
    size_t group = s->n_heads / s->n_kv_heads, offset = qw_kv_offset(s, a->layer, h);
    qw_cpu_queries st = qw_cpu_queries_begin(a->cpu, s, a->q, r0, n, h, thread);
    uint32_t n_keys[QW_CPU_QUERIES_MAX], last = a->rows[r0 + n - 1].pos;
    for (uint32_t t = 0; t <= last / QW_KV_TILE; t++) {
        for (size_t i = 0; i < st.n_q; i++) {
            int64_t seen = (int64_t)a->rows[r0 + i / group].pos + 1 - (int64_t)t * QW_KV_TILE;
            n_keys[i] = seen < 0 ? 0 : seen > QW_KV_TILE ? QW_KV_TILE : (uint32_t)seen;
        }
        const uint8_t *next = t < last / QW_KV_TILE ? a->rows[r0].pages[t + 1] + offset : NULL;
        qw_cpu_queries_tile(a->cpu, s, &st, a->rows[r0].pages[t] + offset, next, n_keys);
    }
    qw_cpu_queries_end(&st, s, r0, h, a->out, a->ld);
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
                      size_t n_rows, qw_heads q, float *out, size_t ld_out)
{
    qw_cpu *cpu = (qw_cpu *)be;
    QW_ASSERT(shape->n_heads / shape->n_kv_heads <= QW_CPU_QUERIES_MAX && shape->head_dim <= cpu->sizes.head_dim);
    attn_args args = {.cpu = cpu, .shape = shape, .layer = layer, .rows = rows, .n_rows = n_rows, .q = q,
                      .out = out, .ld = ld_out};
    size_t n_max = rows_per_item(shape);
    int64_t n_items = 0;
    for (size_t r = 0; r < n_rows; n_items += shape->n_kv_heads) r += run_length(rows + r, n_rows - r, n_max);
    qw_pool_run(cpu->pool, n_items, 1, attention_items, &args);
}
