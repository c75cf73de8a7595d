/* attn_f32_avx512.c: float attention over one tile of 64 positions, AVX-512.
 *
 * Bits as query_f32() of ref/attn_ref.c. A tile, for each query on its own:
 *   score[key] = fma over d = 0..hd-1 of q[d], K[d][key]       lanes are keys
 *   mt = fold of max over the visible scores, p[key] = exp(score - mt), st = fold of sum over p
 *   ot[d] = fma over keys 0..n_keys-1 of p[key], V[key][d]      lanes are dimensions
 *   M = max(m, mt), a = exp(m - M), b = exp(mt - M); s = fma(st, b, s * a); o = fma(ot, b, o * a)
 * Both products are one small matrix product, C[j][lane] = sum over i of A[j][i] * B[i][lane], with up to 6
 * queries x 4 vectors in registers. No step mixes queries, so a block's size cannot change bits.
 * Pure functions over caller memory, any thread.
 */
#include "kernels/attn_blocks.h"
#include "kernels/kernels_private.h"
#include "kernels/x86/float_avx512.h"

enum {
    BLOCK_Q = 6,   /* queries in one block */
    LANES = 16,
    PRODUCTS = 3,  /* widths of the product: 1, 2, 4 vectors */
};

/* a [nq, lda], b [n_i, ldb] c [nq, ldc]; `more` continues the sums found in c. */
typedef void product_fn(const float *a, size_t lda, const float *b, size_t ldb, size_t n_i, float *c, size_t ldc,
                        bool more);

static inline __attribute__((always_inline)) void product(const float *a, size_t lda, const float *b, size_t ldb,
                                                          size_t n_i, float *c, size_t ldc, bool more,
                                                          const int nq, const int nv)
{
    __m512 acc[BLOCK_Q][4];
    for (int j = 0; j < nq; j++)
        for (int v = 0; v < nv; v++)
            acc[j][v] = more ? _mm512_loadu_ps(c + (size_t)j * ldc + (size_t)v * LANES) : _mm512_setzero_ps();
    for (size_t i = 0; i < n_i; i++) {
        __m512 bv[4];
        for (int v = 0; v < nv; v++) bv[v] = _mm512_loadu_ps(b + i * ldb + (size_t)v * LANES);
        for (int j = 0; j < nq; j++) {
            __m512 av = _mm512_set1_ps(a[(size_t)j * lda + i]);
            for (int v = 0; v < nv; v++) acc[j][v] = _mm512_fmadd_ps(av, bv[v], acc[j][v]);
        }
    }
    for (int j = 0; j < nq; j++)
        for (int v = 0; v < nv; v++) _mm512_storeu_ps(c + (size_t)j * ldc + (size_t)v * LANES, acc[j][v]);
}

#define PRODUCT(NQ, NV)                                                                                 \
    static void product_##NQ##x##NV(const float *a, size_t lda, const float *b, size_t ldb, size_t n_i, \
                                    float *c, size_t ldc, bool more)                                    \
    {                                                                                                   \
        product(a, lda, b, ldb, n_i, c, ldc, more, NQ, NV);                                             \
    }
#define PRODUCTS_OF(NQ) PRODUCT(NQ, 1) PRODUCT(NQ, 2) PRODUCT(NQ, 4)
PRODUCTS_OF(1)
PRODUCTS_OF(2)
PRODUCTS_OF(3)
PRODUCTS_OF(4)
PRODUCTS_OF(5)
PRODUCTS_OF(6)

#define ROW(NQ) {product_##NQ##x1, product_##NQ##x2, product_##NQ##x4}
static product_fn *const products[BLOCK_Q][PRODUCTS] = {ROW(1), ROW(2), ROW(3), ROW(4), ROW(5), ROW(6)};

/* The product over n_lanes (a multiple of 16) columns of b, in the widest pieces that fit. */
static void product_lanes(size_t nq, const float *a, size_t lda, const float *b, size_t ldb, size_t n_i,
                          float *c, size_t ldc, bool more, size_t n_lanes)
{
    size_t width = PRODUCTS - 1;
    for (size_t at = 0; at < n_lanes;) {
        while (((size_t)LANES << width) > n_lanes - at) width--;
        products[nq - 1][width](a, lda, b + at, ldb, n_i, c + at, ldc, more);
        at += (size_t)LANES << width;
    }
}

typedef struct tile {
    const float *k; /* [hd, QW_KV_TILE] */
    const float *v; /* [QW_KV_TILE, hd] */
    size_t hd;
} tile;

/* A block's intermediate results. */
typedef struct block {
    _Alignas(64) float p[BLOCK_Q][QW_KV_TILE];      /* scores, then weights */
    _Alignas(64) float o[BLOCK_Q][QW_HEAD_DIM_MAX];
    _Alignas(64) float m[LANES], s[LANES];          /* of the tile; lanes are queries */
} block;

/* Scores in b->p to weights; fills b->m and b->s. */
static void block_softmax(block *b, size_t nq, const uint32_t *n_keys)
{
    const __m512 none = _mm512_set1_ps(-INFINITY);
    for (size_t j = 0; j < nq; j++) {
        uint64_t seen = n_keys[j] >= QW_KV_TILE ? UINT64_MAX : (UINT64_C(1) << n_keys[j]) - 1;
        float *p = b->p[j];
        __m512 x[4];
        for (int v = 0; v < 4; v++)
            x[v] = _mm512_mask_loadu_ps(none, (__mmask16)(seen >> (16 * v)), p + 16 * v);
        float m = fold512_max(x[0], x[1], x[2], x[3]);
        __m512 mv = _mm512_set1_ps(m);
        for (int v = 0; v < 4; v++) {
            x[v] = exp512_nonpos(_mm512_sub_ps(x[v], mv));
            _mm512_storeu_ps(p + 16 * v, x[v]);
        }
        b->m[j] = m;
        b->s[j] = fold512_sum(x[0], x[1], x[2], x[3]);
    }
}

/* b->o = weights times values; a query never meets a value beyond its own n_keys. */
static void block_values(const tile *t, block *b, const attn_span *at, const uint32_t *n_keys)
{
    size_t whole = t->hd / LANES * LANES, nq = at->n, common = at->common, most = at->most;
    const float *later = t->v + common * t->hd;
    product_lanes(nq, b->p[0], QW_KV_TILE, t->v, t->hd, common, b->o[0], QW_HEAD_DIM_MAX, false, whole);
    for (size_t j = 0; most > common && j < nq; j++)
        if (n_keys[j] > common)
            product_lanes(1, b->p[j] + common, QW_KV_TILE, later, t->hd, n_keys[j] - common, b->o[j],
                          QW_HEAD_DIM_MAX, true, whole);
    if (whole == t->hd) return;

    /* hd is no multiple of 16: the last dimensions go through a padded copy. */
    float tail[QW_KV_TILE][LANES] = {{0}};
    for (size_t key = 0; key < most; key++)
        for (size_t d = whole; d < t->hd; d++) tail[key][d - whole] = t->v[key * t->hd + d];
    for (size_t j = 0; j < nq; j++)
        product_lanes(1, b->p[j], QW_KV_TILE, tail[0], LANES, n_keys[j], b->o[j] + whole, QW_HEAD_DIM_MAX,
                      false, LANES);
}

/* Merges the tile's result into the running m, s [nq] and o [nq, hd]. */
static void block_merge(const block *b, size_t nq, size_t hd, float *m, float *s, float *o)
{
    float old_scale[LANES], new_scale[LANES];
    merge512(nq, b->m, b->s, m, s, old_scale, new_scale);
    for (size_t j = 0; j < nq; j++) {
        __m512 aj = _mm512_set1_ps(old_scale[j]), wj = _mm512_set1_ps(new_scale[j]);
        float *oj = o + j * hd;
        for (size_t d = 0; d < hd; d += LANES) {
            __mmask16 in = (__mmask16)(hd - d >= LANES ? 0xffffu : (1u << (hd - d)) - 1);
            __m512 old = _mm512_mul_ps(_mm512_maskz_loadu_ps(in, oj + d), aj);
            _mm512_mask_storeu_ps(oj + d, in, _mm512_fmadd_ps(_mm512_loadu_ps(b->o[j] + d), wj, old));
        }
    }
}

/* One block, whose first query is at q, n_keys, m, s and o. */
static void attn_block(const tile *t, block *b, const attn_span *at, const float *q, const uint32_t *n_keys, float *m,
                       float *s, float *o)
{
    size_t nq = at->n, lanes = (at->most + LANES - 1) / LANES * LANES;
    product_lanes(nq, q, t->hd, t->k, QW_KV_TILE, t->hd, b->p[0], QW_KV_TILE, false, lanes);
    block_softmax(b, nq, n_keys);
    block_values(t, b, at, n_keys);
    block_merge(b, nq, t->hd, m, s, o);
}

static void attn_f32(const float *k_tile, const float *v_tile, size_t hd, const float *q, size_t n_q,
                     const uint32_t *n_keys, float *m, float *s, float *o)
{
    tile t = {k_tile, v_tile, hd};
    block b;
    for (attn_span at = {0}; attn_next_span(&at, n_keys, n_q, BLOCK_Q);) {
        size_t i = at.first;
        attn_block(&t, &b, &at, q + i * hd, n_keys + i, m + i, s + i, o + i * hd);
    }
}

void qw_attn_f32_init_avx512(qw_kernels *t)
{
    t->attn_f32 = attn_f32;
}
