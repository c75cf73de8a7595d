/* attn_i16_avx512.h: integer attention over one tile of 64 positions, AVX-512.
 *
 * Bits as query_i16() of ref/attn_ref.c. Both products are C[j][lane] = sum over i of A[j][i] * B[i][lane], where an
 * element is a pair of 16-bit numbers: lanes are keys, i pairs of dimensions, then lanes are dimensions, i pairs of keys.
 * Up to 6 queries x 4 vectors stay in registers. No step mixes queries, so a block's size cannot change bits.
 * Included by one file per level, which defines ATTN_DOT(sum, a, b). Pure functions over caller memory, any thread.
 */
#include <string.h>

#include "kernels/attn_blocks.h"
#include "kernels/attn_layout.h"
#include "kernels/kernels_private.h"
#include "kernels/tile.h"
#include "kernels/x86/float_avx512.h"

enum {
    BLOCK_Q = 6, /* queries in one block */
    LANES = 16,
    VECS = QW_KV_TILE / LANES
};

/* a [nq, lda], b [n_i, ldb] of pairs, c [nq, ldc]; next: like b, fetched at the pace of the work */
typedef void product_fn(const int32_t *a, size_t lda, const int32_t *b, const int32_t *next, size_t ldb, size_t n_i,
                        int32_t *c, size_t ldc);

TILE_INLINE void product(const int nq, const int nv, const int32_t *a, size_t lda, const int32_t *b,
                         const int32_t *next, size_t ldb, size_t n_i, int32_t *c, size_t ldc)
{
    __m512i acc[BLOCK_Q][VECS];
    TILE_UNROLL
    for (int j = 0; j < nq; j++) {
        TILE_UNROLL
        for (int v = 0; v < nv; v++) acc[j][v] = _mm512_setzero_si512();
    }
    for (size_t i = 0; i < n_i; i++) {
        __m512i bv[VECS];
        TILE_UNROLL
        for (int v = 0; v < nv; v++) {
            bv[v] = _mm512_loadu_si512(b + i * ldb + v * LANES);
            _mm_prefetch((const char *)(next + i * ldb + v * LANES), _MM_HINT_T1);
        }
        TILE_UNROLL
        for (int j = 0; j < nq; j++) {
            __m512i av = _mm512_set1_epi32(a[(size_t)j * lda + i]);
            TILE_UNROLL
            for (int v = 0; v < nv; v++) acc[j][v] = ATTN_DOT(acc[j][v], bv[v], av);
        }
    }
    TILE_UNROLL
    for (int j = 0; j < nq; j++) {
        TILE_UNROLL
        for (int v = 0; v < nv; v++) _mm512_storeu_si512(c + (size_t)j * ldc + v * LANES, acc[j][v]);
    }
}

#define PRODUCT(NQ, NV)                                                                                             \
    static void product_##NQ##x##NV(const int32_t *a, size_t lda, const int32_t *b, const int32_t *next,            \
                                    size_t ldb, size_t n_i, int32_t *c, size_t ldc)                                 \
    {                                                                                                               \
        product(NQ, NV, a, lda, b, next, ldb, n_i, c, ldc);                                                         \
    }
#define PRODUCTS_OF(NQ) PRODUCT(NQ, 1) PRODUCT(NQ, 2) PRODUCT(NQ, 3) PRODUCT(NQ, 4)
PRODUCTS_OF(1)
PRODUCTS_OF(2)
PRODUCTS_OF(3)
PRODUCTS_OF(4)
PRODUCTS_OF(5)
PRODUCTS_OF(6)

#define ROW(NQ) {product_##NQ##x1, product_##NQ##x2, product_##NQ##x3, product_##NQ##x4}
static product_fn *const products[BLOCK_Q][VECS] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};

/* The product over n_lanes (a multiple of 16) lanes of b. */
TILE_INLINE void product_lanes(size_t nq, const int32_t *a, size_t lda, const int32_t *b, const int32_t *next,
                               size_t ldb, size_t n_i, int32_t *c, size_t ldc, size_t n_lanes)
{
    for (size_t at = 0; at < n_lanes; at += VECS * LANES) {
        size_t n = (n_lanes - at) / LANES;
        products[nq - 1][(n < VECS ? n : VECS) - 1](a, lda, b + at, next + at, ldb, n_i, c + at, ldc);
    }
}

/* A block's intermediate results. */
typedef struct block {
    _Alignas(64) int32_t score[BLOCK_Q][QW_KV_TILE];
    _Alignas(64) float p[BLOCK_Q][QW_KV_TILE];
    _Alignas(64) int16_t weight[BLOCK_Q][QW_KV_TILE];
    _Alignas(64) int32_t o[BLOCK_Q][QW_HEAD_DIM_MAX];
    _Alignas(64) float m[LANES], s[LANES], d[LANES]; /* maximum, sum, scale of the weights; lanes are queries */
} block;

/* Scores to weights, in three passes over the queries: what one query waits for, others fill. dk, dv: scales of the keys
 * and values. */
TILE_INLINE void block_softmax(block *b, size_t nq, const float *dk, const float *dv, const float *dq,
                               const uint32_t *n_keys)
{
    const __m512 none = _mm512_set1_ps(-INFINITY);
    __m512 x[VECS];
    uint64_t seen[BLOCK_Q];
    for (size_t j = 0; j < nq; j++) {
        seen[j] = n_keys[j] >= QW_KV_TILE ? UINT64_MAX : (UINT64_C(1) << n_keys[j]) - 1;
        __m512 scale = _mm512_set1_ps(dq[j]);
        TILE_UNROLL
        for (int v = 0; v < VECS; v++) {
            __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(b->score[j] + LANES * v));
            __m512 factor = _mm512_mul_ps(scale, _mm512_loadu_ps(dk + LANES * v));
            x[v] = _mm512_mask_mul_ps(none, (__mmask16)(seen[j] >> (LANES * v)), sum, factor);
            _mm512_store_ps(b->p[j] + LANES * v, x[v]);
        }
        b->m[j] = fold512_max(x[0], x[1], x[2], x[3]);
    }
    for (size_t j = 0; j < nq; j++) {
        __m512 m = _mm512_set1_ps(b->m[j]), w[VECS];
        TILE_UNROLL
        for (int v = 0; v < VECS; v++) {
            x[v] = exp512_nonpos(_mm512_sub_ps(_mm512_load_ps(b->p[j] + LANES * v), m));
            w[v] = _mm512_maskz_mul_ps((__mmask16)(seen[j] >> (LANES * v)), x[v], _mm512_loadu_ps(dv + LANES * v));
            _mm512_store_ps(b->p[j] + LANES * v, w[v]);
        }
        b->s[j] = fold512_sum(x[0], x[1], x[2], x[3]);
        float d = fold512_max(w[0], w[1], w[2], w[3]) * (1.0f / QW_ATTN_WEIGHT_MOST);
        b->d[j] = d >= QW_ATTN_D_MIN && !isnan(b->s[j]) ? d : 0.0f;
    }
    for (size_t j = 0; j < nq; j++) {
        __m512 inverse = _mm512_set1_ps(b->d[j] > 0.0f ? 1.0f / b->d[j] : 0.0f);
        TILE_UNROLL
        for (int v = 0; v < VECS; v++) {
            __m512i quant = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(b->p[j] + LANES * v), inverse));
            _mm256_storeu_si256((__m256i *)(void *)(b->weight[j] + LANES * v), _mm512_cvtepi32_epi16(quant));
        }
    }
}

/* Merges the tile's result into the running m, s [nq] and o [nq, hd]. */
TILE_INLINE void block_merge(const block *b, size_t nq, size_t hd, float *m, float *s, float *o)
{
    float old_scale[LANES], new_scale[LANES];
    merge512(nq, b->m, b->s, m, s, old_scale, new_scale);
    for (size_t j = 0; j < nq; j++) {
        __m512 aj = _mm512_set1_ps(old_scale[j]), wj = _mm512_set1_ps(new_scale[j] * b->d[j]);
        for (size_t d = 0; d < hd; d += LANES) {
            float *to = o + j * hd + d;
            __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(b->o[j] + d));
            _mm512_storeu_ps(to, _mm512_fmadd_ps(sum, wj, _mm512_mul_ps(_mm512_loadu_ps(to), aj)));
        }
    }
}

static inline const int32_t *pairs_at(const int16_t *p)
{
    return (const int32_t *)(const void *)p;
}

/* One block, whose first query is at q, dq, n_keys, m, s and o. */
static void attn_block(qw_attn_tile t, qw_attn_tile next, size_t hd, block *b, const attn_span *at, const int16_t *q,
                       const float *dq, const uint32_t *n_keys, float *m, float *s, float *o)
{
    size_t nq = at->n, lanes = (at->most + LANES - 1) / LANES * LANES, pairs = (at->most + 1) / 2;
    product_lanes(nq, pairs_at(q), hd / 2, pairs_at(t.k), pairs_at(next.k), QW_KV_TILE, hd / 2, b->score[0], QW_KV_TILE,
                  lanes);
    block_softmax(b, nq, t.dk, t.dv, dq, n_keys);
    product_lanes(nq, pairs_at(b->weight[0]), QW_KV_TILE / 2, pairs_at(t.v), pairs_at(next.v), hd, pairs, b->o[0],
                  QW_HEAD_DIM_MAX, hd);
    block_merge(b, nq, hd, m, s, o);
}

static void attn_i16(const void *tile, const void *next_tile, size_t hd, const int16_t *q, const float *dq, size_t n_q,
                     const uint32_t *n_keys, float *m, float *s, float *o)
{
    qw_attn_tile t = qw_attn_tile_at((void *)(uintptr_t)tile, hd);
    qw_attn_tile next = qw_attn_tile_at((void *)(uintptr_t)(next_tile ? next_tile : tile), hd);
    block b;
    memset(b.score, 0, sizeof b.score); /* lanes that nobody sees are converted, though never used */
    for (attn_span at = {0}; attn_next_span(&at, n_keys, n_q, BLOCK_Q); next = t) { /* to fetch it once is enough */
        size_t i = at.first;
        attn_block(t, next, hd, &b, &at, q + i * hd, dq + i, n_keys + i, m + i, s + i, o + i * hd);
    }
}
