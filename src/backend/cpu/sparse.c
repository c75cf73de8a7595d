/* sparse.c: block-sparse attention of the CPU backend (qw_index in backend.h). Source: transformers, modeling_qwen4_exp
 * (QSAIndexer).
 *
 * Blocks are chosen row by row; the chosen positions are copied into tiles of the thread's own, in their order, and go
 * through the same kernels as those of plain attention. A row with few enough blocks takes the plain way. Both depend on
 * the row's own position and sequence alone.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/attention.h"

/* A chosen block. The heap's root is the worst: the smallest score, of equal ones the latest block. */
typedef struct choice {
    float score;
    uint32_t block;
} choice;

typedef struct sparse_args {
    qw_cpu *cpu;
    const qw_kv_shape *shape;
    uint32_t layer;
    const qw_index *index;
    const qw_kv_row *rows;
    size_t n_rows;
    qw_heads q;
    const float *index_q;
    float *out;
    size_t ld_out;
} sparse_args;

/* ---- index keys ---------------------------------------------------------------------------------- */

static float *index_key(const qw_kv_shape *s, uint32_t layer, const qw_kv_row *row, uint32_t block)
{
    uint32_t pos = block * s->index_block;
    uint8_t *page = row->pages[pos / QW_KV_TILE] + qw_kv_index_offset(s, layer);
    return (float *)(void *)page + (size_t)(pos % QW_KV_TILE / s->index_block) * s->index_dim;
}

static void rotate(const qw_kernels *kernels, const qw_index *x, float *key, uint32_t pos)
{
    float cos[QW_HEAD_DIM_MAX / 2], sin[QW_HEAD_DIM_MAX / 2];
    for (uint32_t i = 0; i < x->n_rot / 2; i++) {
        double s, c;
        sincos((double)((float)pos * x->inv_freq[i]), &s, &c);
        cos[i] = (float)c * x->rope_scale;
        sin[i] = (float)s * x->rope_scale;
    }
    kernels->rope(key, cos, sin, x->n_rot);
}

/* Ends a block whose other keys were kept. */
static void store_pooled(const qw_kernels *kernels, const qw_kv_shape *shape, uint32_t layer, const qw_index *x,
                         const qw_kv_row *row, const float *kept, const float *key)
{
    float *pooled = index_key(shape, layer, row, row->pos / x->block);
    for (uint32_t i = 0; i < x->dim; i++) {
        float sum = 0;
        for (uint32_t j = 0; j + 1 < x->block; j++) sum += kept[j * x->dim + i];
        pooled[i] = (sum + key[i]) / (float)x->block;
    }
    kernels->rms_norm(pooled, x->k_norm, x->dim, x->eps, pooled);
    rotate(kernels, x, pooled, row->pos + 1 - x->block);
}

void qw_cpu_index_store(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_index *x, const qw_kv_row *rows,
                        size_t n_rows, const float *keys)
{
    const qw_kernels *kernels = ((qw_cpu *)be)->kernels;
    for (size_t r = 0; r < n_rows; r++) {
        float *kept = (float *)(void *)(rows[r].recurrent + x->offset);
        const float *key = keys + r * x->dim;
        uint32_t slot = rows[r].pos % x->block;
        if (slot + 1 < x->block) memcpy(kept + slot * x->dim, key, x->dim * sizeof *kept);
        else store_pooled(kernels, shape, layer, x, &rows[r], kept, key);
        if (rows[r].keep) memcpy(rows[r].keep + x->offset, kept, (x->block - 1) * x->dim * sizeof *kept);
    }
}

/* ---- choosing ------------------------------------------------------------------------------------ */

static bool worse(choice a, choice b)
{
    return a.score < b.score || (a.score == b.score && a.block > b.block);
}

static void sift_down(choice *heap, size_t n, size_t i)
{
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && worse(heap[child + 1], heap[child])) child++;
        if (!worse(heap[child], heap[i])) return;
        choice t = heap[i];
        heap[i] = heap[child];
        heap[child] = t;
    }
}

static float score_block(const sparse_args *a, size_t r, uint32_t block)
{
    const qw_index *x = a->index;
    const float *q = a->index_q + r * x->n_heads * x->dim;
    float sum = 0, dots[64];
    a->cpu->kernels->dot_f32(index_key(a->shape, a->layer, &a->rows[r], block), x->dim, q, x->dim, x->n_heads, dots, 1);
    for (uint32_t h = 0; h < x->n_heads; h++) sum += fmaxf(dots[h], 0.0f);
    return sum;
}

static int by_block(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static uint32_t n_complete(const sparse_args *a, size_t r)
{
    return (a->rows[r].pos + 1) / a->index->block;
}

/* The row's blocks, ascending, into cpu->chosen. */
static void choose(const sparse_args *a, size_t r, choice *heap)
{
    size_t top = a->index->top;
    uint32_t n_blocks = n_complete(a, r), *chosen = a->cpu->chosen + r * top;
    for (uint32_t b = 0; b < n_blocks; b++) {
        choice c = {score_block(a, r, b), b};
        if (b < top) {
            heap[b] = c;
            if (b + 1 == top)
                for (size_t i = top / 2; i-- > 0;) sift_down(heap, top, i);
        } else if (worse(heap[0], c)) {
            heap[0] = c;
            sift_down(heap, top, 0);
        }
    }
    for (size_t i = 0; i < top; i++) chosen[i] = heap[i].block;
    qsort(chosen, top, sizeof *chosen, by_block);
}

static bool is_sparse(const sparse_args *a, size_t r)
{
    return n_complete(a, r) > a->index->top;
}

static void choose_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    const sparse_args *a = ctx;
    for (int64_t r = begin; r < end; r++)
        if (is_sparse(a, (size_t)r)) choose(a, (size_t)r, (choice *)(void *)qw_cpu_scratch(a->cpu, thread));
}

/* ---- attending ----------------------------------------------------------------------------------- */

/* Position `pos` of the row's sequence, KV head h, to place `to` of a tile of our own. */
static void copy_position(const sparse_args *a, size_t r, uint32_t h, uint32_t pos, uint8_t *tile, size_t to)
{
    const qw_kv_shape *s = a->shape;
    const uint8_t *source = a->rows[r].pages[pos / QW_KV_TILE] + qw_kv_offset(s, a->layer, h);
    size_t from = pos % QW_KV_TILE, hd = s->head_dim;
    if (s->type == QW_KV_I16) {
        qw_attn_tile_copy(tile, qw_attn_padded(hd), to, source, from);
        return;
    }
    const float *keys = (const float *)(const void *)source, *values = keys + hd * QW_KV_TILE;
    float *to_keys = (float *)(void *)tile;
    for (size_t d = 0; d < hd; d++) to_keys[d * QW_KV_TILE + to] = keys[d * QW_KV_TILE + from];
    memcpy(to_keys + (QW_KV_TILE + to) * hd, values + from * hd, hd * sizeof *values);
}

static void attend_chosen(const sparse_args *a, size_t r, uint32_t h, int thread)
{
    const qw_kv_shape *s = a->shape;
    uint32_t block = a->index->block, pos = a->rows[r].pos, tail = (pos + 1) / block * block;
    uint32_t n = a->index->top * block, n_all = n + pos + 1 - tail, n_keys[QW_CPU_QUERIES_MAX];
    const uint32_t *chosen = a->cpu->chosen + r * a->index->top;
    qw_cpu_queries q = qw_cpu_queries_begin(a->cpu, s, a->q, r, 1, h, thread);
    uint8_t *tile = a->cpu->own_tiles + (size_t)thread * a->cpu->own_tile_bytes;
    for (uint32_t first = 0; first < n_all; first += QW_KV_TILE) {
        uint32_t here = n_all - first < QW_KV_TILE ? n_all - first : QW_KV_TILE;
        for (uint32_t i = 0; i < here; i++) {
            uint32_t at = first + i;
            copy_position(a, r, h, at < n ? chosen[at / block] * block + at % block : tail + at - n, tile, i);
        }
        for (size_t i = 0; i < q.n_q; i++) n_keys[i] = here;
        qw_cpu_queries_tile(a->cpu, s, &q, tile, NULL, n_keys);
    }
    qw_cpu_queries_end(&q, s, r, h, a->out, a->ld_out);
}

static void sparse_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    const sparse_args *a = ctx;
    for (int64_t item = begin; item < end; item++) {
        size_t r = (size_t)item / a->shape->n_kv_heads;
        if (is_sparse(a, r)) attend_chosen(a, r, (uint32_t)((size_t)item % a->shape->n_kv_heads), thread);
    }
}

void qw_cpu_sparse_attention(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_index *index,
                             const qw_kv_row *rows, size_t n_rows, qw_heads q, const float *index_q, float *out,
                             size_t ld_out)
{
    qw_cpu *cpu = (qw_cpu *)be;
    sparse_args a = {.cpu = cpu, .shape = shape, .layer = layer, .index = index, .rows = rows, .n_rows = n_rows, .q = q,
                     .index_q = index_q, .out = out, .ld_out = ld_out};
    QW_ASSERT(index->top <= cpu->sizes.index_top && index->n_heads <= 64);
    /* Runs of rows that see every block. */
    for (size_t r = 0, n; r < n_rows; r += n) {
        for (n = 1; r + n < n_rows && is_sparse(&a, r + n) == is_sparse(&a, r);) n++;
        if (is_sparse(&a, r)) continue;
        qw_heads part = q;
        part.x += r * q.ld;
        qw_cpu_attention(be, shape, layer, rows + r, n, part, out + r * ld_out, ld_out);
    }
    qw_pool_run(cpu->pool, (int64_t)n_rows, 1, choose_rows, &a);
    qw_pool_run(cpu->pool, (int64_t)(n_rows * shape->n_kv_heads), 1, sparse_items, &a);
}
