/* attn_i16_avx2.c: integer attention over one tile of 64 positions, AVX2 with FMA.
 *
 * Bits as query_i16() of ref/attn_ref.c. Both products are C[j][lane] = sum over i of A[j][i] * B[i][lane], where an
 * element is a pair of 16-bit numbers, which vpmaddwd multiplies and adds: lanes are keys, i pairs of dimensions, then
 * lanes are dimensions, i pairs of keys. Up to 6 queries x 2 vectors stay in registers, 1 x 8 or 2 x 4 when there are
 * fewer. No step mixes queries, so a block's size cannot change bits. Pure functions over caller memory, any thread.
 */
#include <string.h>

#include "kernels/attn_blocks.h"
#include "kernels/attn_layout.h"
#include "kernels/kernels_private.h"
#include "kernels/ref/float_ref.h"
#include "kernels/tile.h"
#include "kernels/x86/float_avx2.h"

enum {
    BLOCK_Q = 6, /* queries in one block */
    LANES = 8,
    VECS = QW_KV_TILE / LANES,
    WIDTHS = 3   /* widths of the product: 2, 4, 8 vectors; NULL where registers are too few */
};

/* a [nq, lda], b [n_i, ldb] of pairs, c [nq, ldc]; next: like b, fetched at the pace of the work */
typedef void product_fn(const int32_t *a, size_t lda, const int32_t *b, const int32_t *next, size_t ldb, size_t n_i,
                        int32_t *c, size_t ldc);

static inline __m256i load(const void *p)
{
    return _mm256_loadu_si256((const __m256i *)p);
}

TILE_INLINE void product(const int nq, const int nv, const int32_t *a, size_t lda, const int32_t *b,
                         const int32_t *next, size_t ldb, size_t n_i, int32_t *c, size_t ldc)
{
    __m256i acc[BLOCK_Q][VECS];
    TILE_UNROLL
    for (int j = 0; j < nq; j++) {
        TILE_UNROLL
        for (int v = 0; v < nv; v++) acc[j][v] = _mm256_setzero_si256();
    }
    for (size_t i = 0; i < n_i; i++) {
        __m256i bv[VECS];
        TILE_UNROLL
        for (int v = 0; v < nv; v++) {
            bv[v] = load(b + i * ldb + v * LANES);
            if (v % 2 == 0) _mm_prefetch((const char *)(next + i * ldb + v * LANES), _MM_HINT_T1);
        }
        TILE_UNROLL
        for (int j = 0; j < nq; j++) {
            __m256i av = _mm256_set1_epi32(a[(size_t)j * lda + i]);
            TILE_UNROLL
            for (int v = 0; v < nv; v++) acc[j][v] = _mm256_add_epi32(acc[j][v], _mm256_madd_epi16(av, bv[v]));
        }
    }
    TILE_UNROLL
    for (int j = 0; j < nq; j++) {
        TILE_UNROLL
        for (int v = 0; v < nv; v++) _mm256_storeu_si256((__m256i *)(void *)(c + (size_t)j * ldc + v * LANES), acc[j][v]);
    }
}

#define PRODUCT(NQ, NV)                                                                                             \
    static void product_##NQ##x##NV(const int32_t *a, size_t lda, const int32_t *b, const int32_t *next,            \
                                    size_t ldb, size_t n_i, int32_t *c, size_t ldc)                                 \
    {                                                                                                               \
        product(NQ, NV, a, lda, b, next, ldb, n_i, c, ldc);                                                         \
    }
PRODUCT(1, 2)
PRODUCT(1, 8)
PRODUCT(2, 2)
PRODUCT(2, 4)
PRODUCT(3, 2)
PRODUCT(4, 2)
PRODUCT(5, 2)
PRODUCT(6, 2)

static product_fn *const products[BLOCK_Q][WIDTHS] = {
    {product_1x2, NULL, product_1x8}, {product_2x2, product_2x4, NULL}, {product_3x2, NULL, NULL},
    {product_4x2, NULL, NULL},        {product_5x2, NULL, NULL},        {product_6x2, NULL, NULL},
};

/* The product over n_lanes (a multiple of 16) lanes of b, in the widest pieces that fit. */
static void product_lanes(size_t nq, const int32_t *a, size_t lda, const int32_t *b, const int32_t *next,
                          size_t ldb, size_t n_i, int32_t *c, size_t ldc, size_t n_lanes)
{
    product_fn *const *fn = products[nq - 1];
    size_t width = WIDTHS - 1;
    for (size_t at = 0; at < n_lanes; at += (2 * (size_t)LANES) << width) {
        while (fn[width] == NULL || ((2 * (size_t)LANES) << width) > n_lanes - at) width--;
        fn[width](a, lda, b + at, next + at, ldb, n_i, c + at, ldc);
    }
}

/* A block's intermediate results. */
typedef struct block {
    _Alignas(32) int32_t score[BLOCK_Q][QW_KV_TILE];
    _Alignas(32) int16_t weight[BLOCK_Q][QW_KV_TILE];
    _Alignas(32) int32_t o[BLOCK_Q][QW_HEAD_DIM_MAX];
    _Alignas(32) float m[LANES], s[LANES], d[LANES]; /* maximum, sum, scale of the weights; lanes are queries */
} block;

/* Weights as integers; returns their scale, or 0 and none. sum: of p */
static float quantize_weights(const __m256 w[VECS], float sum, int16_t *out)
{
    float d = fold256_max(w) * (1.0f / QW_ATTN_WEIGHT_MOST);
    if (!(d >= QW_ATTN_D_MIN) || isnan(sum)) {
        memset(out, 0, QW_KV_TILE * sizeof *out);
        return 0.0f;
    }
    __m256 inverse = _mm256_set1_ps(1.0f / d);
    for (int v = 0; v < VECS; v += 2) {
        __m256i lo = _mm256_cvtps_epi32(_mm256_mul_ps(w[v], inverse));
        __m256i hi = _mm256_cvtps_epi32(_mm256_mul_ps(w[v + 1], inverse));
        __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
        _mm256_storeu_si256((__m256i *)(void *)(out + LANES * v), both);
    }
    return d;
}

/* Scores to weights. dk, dv: scales of the keys and values. */
static void block_softmax(block *b, size_t nq, const float *dk, const float *dv, const float *dq, const uint32_t *n_keys)
{
    const __m256 none = _mm256_set1_ps(-INFINITY);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    for (size_t j = 0; j < nq; j++) {
        __m256 x[VECS], w[VECS], seen[VECS], scale = _mm256_set1_ps(dq[j]);
        for (int v = 0; v < VECS; v++) {
            seen[v] = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)n_keys[j] - LANES * v), lane));
            __m256 factor = _mm256_mul_ps(scale, _mm256_loadu_ps(dk + LANES * v));
            __m256 score = _mm256_mul_ps(_mm256_cvtepi32_ps(load(b->score[j] + LANES * v)), factor);
            x[v] = _mm256_blendv_ps(none, score, seen[v]);
        }
        b->m[j] = fold256_max(x);
        __m256 m = _mm256_set1_ps(b->m[j]);
        for (int v = 0; v < VECS; v++) {
            x[v] = exp256_nonpos(_mm256_sub_ps(x[v], m));
            w[v] = _mm256_and_ps(_mm256_mul_ps(x[v], _mm256_loadu_ps(dv + LANES * v)), seen[v]);
        }
        b->s[j] = fold256_sum(x);
        b->d[j] = quantize_weights(w, b->s[j], b->weight[j]);
    }
}

/* Merges the tile's result into the running m, s [nq] and o [nq, hd]. */
static void block_merge(const block *b, size_t nq, size_t hd, float *m, float *s, float *o)
{
    float old_scale[LANES], new_scale[LANES];
    merge256(nq, b->m, b->s, m, s, old_scale, new_scale);
    for (size_t j = 0; j < nq; j++) {
        __m256 aj = _mm256_set1_ps(old_scale[j]), wj = _mm256_set1_ps(new_scale[j] * b->d[j]);
        for (size_t d = 0; d < hd; d += LANES) {
            float *to = o + j * hd + d;
            __m256 sum = _mm256_cvtepi32_ps(load(b->o[j] + d));
            _mm256_storeu_ps(to, _mm256_fmadd_ps(sum, wj, _mm256_mul_ps(_mm256_loadu_ps(to), aj)));
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
    size_t nq = at->n, lanes = (at->most + (2 * LANES) - 1) / (2 * LANES) * (2 * LANES), pairs = (at->most + 1) / 2;
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
    memset(&b, 0, sizeof b); /* lanes without a query or a key are loaded, though never used */
    for (attn_span at = {0}; attn_next_span(&at, n_keys, n_q, BLOCK_Q); next = t) { /* to fetch it once is enough */
        size_t i = at.first;
        attn_block(t, next, hd, &b, &at, q + i * hd, dq + i, n_keys + i, m + i, s + i, o + i * hd);
    }
}

/* The largest magnitude as a float's bits: above FLT_MAX's there are infinities or NaN. */
static int32_t max_bits(const float *x, size_t n)
{
    const __m256i no_sign = _mm256_set1_epi32(INT32_MAX);
    __m256i most = _mm256_setzero_si256();
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) most = _mm256_max_epi32(most, _mm256_and_si256(load(x + i), no_sign));
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    h = _mm_max_epi32(h, _mm_unpackhi_epi64(h, h));
    int32_t bits = _mm_cvtsi128_si32(_mm_max_epi32(h, _mm_shuffle_epi32(h, 1)));
    for (; i < n; i++) {
        int32_t one;
        memcpy(&one, x + i, sizeof one);
        one &= INT32_MAX;
        bits = one > bits ? one : bits;
    }
    return bits;
}

static float quantize_i16(const float *x, size_t n, float most, float norm_most, float norm2, int16_t *q)
{
    float amax;
    int32_t bits = max_bits(x, n);
    if (bits > 0x7f7fffff) return qw_ref_quantize_i16(x, n, most, norm_most, norm2, q);
    memcpy(&amax, &bits, sizeof amax);
    if (amax < QW_ATTN_AMAX_MIN) {
        memset(q, 0, n * sizeof *q);
        return 0.0f;
    }
    float factor = qw_attn_factor(amax, n, most, norm_most, norm2);
    __m256 by = _mm256_set1_ps(factor);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        __m256i v = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), by)); /* nearest even */
        __m128i h = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
        _mm_storeu_si128((__m128i *)(void *)(q + i), h);
    }
    for (; i < n; i++) q[i] = (int16_t)_mm_cvtss_si32(_mm_set_ss(x[i] * factor));
    return 1.0f / factor;
}

void qw_attn_i16_init_avx2(qw_kernels *t)
{
    t->quantize_i16 = quantize_i16;
    t->attn_i16 = attn_i16;
}
