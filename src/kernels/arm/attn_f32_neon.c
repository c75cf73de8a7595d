/* attn_f32_neon.c: float attention over one tile of 64 positions with AArch64 Advanced SIMD.
 *
 * Bits as query_f32() of ref/attn_ref.c. A tile, for each query on its own:
 *   score[key] = fma over d = 0..hd-1 of q[d], K[d][key]       lanes are keys
 *   mt = fold of max over the visible scores, p[key] = exp(score - mt), st = fold of sum over p
 *   ot[d] = fma over keys 0..n_keys-1 of p[key], V[key][d]      lanes are dimensions
 *   M = max(m, mt), a = exp(m - M), b = exp(mt - M); s = fma(st, b, s * a); o = fma(ot, b, o * a)
 * Both products are one small matrix product, C[j][lane] = sum over i of A[j][i] * B[i][lane], with up to 4 queries x 4
 * vectors in registers, 8 vectors for one query or two. No step mixes queries, so a block's size cannot change bits.
 * Pure functions over caller memory, any thread.
 */
#include <string.h>

#include "kernels/attn_blocks.h"
#include "kernels/kernels_private.h"
#include "kernels/arm/float_neon.h"

enum {
    BLOCK_Q = 4, /* queries in one block */
    LANES = NEON_LANES,
    WIDTHS = 3   /* widths of the product: 1, 4, 8 vectors; NULL where registers are too few */
};
static const size_t width_vecs[WIDTHS] = {1, 4, 8};

/* a [nq, lda], b [n_i, ldb] c [nq, ldc]; `more` continues the sums found in c. */
typedef void product_fn(const float *a, size_t lda, const float *b, size_t ldb, size_t n_i, float *c, size_t ldc,
                        bool more);

static inline __attribute__((always_inline)) void product(const float *a, size_t lda, const float *b, size_t ldb,
                                                          size_t n_i, float *c, size_t ldc, bool more,
                                                          const int nq, const int nv)
{
    float32x4_t acc[BLOCK_Q][8];
    for (int j = 0; j < nq; j++)
        for (int v = 0; v < nv; v++)
            acc[j][v] = more ? vld1q_f32(c + (size_t)j * ldc + (size_t)v * LANES) : vdupq_n_f32(0.0f);
    for (size_t i = 0; i < n_i; i++) {
        float32x4_t bv[8];
        for (int v = 0; v < nv; v++) bv[v] = vld1q_f32(b + i * ldb + (size_t)v * LANES);
        for (int j = 0; j < nq; j++) {
            float aj = a[(size_t)j * lda + i];
            for (int v = 0; v < nv; v++) acc[j][v] = vfmaq_n_f32(acc[j][v], bv[v], aj);
        }
    }
    for (int j = 0; j < nq; j++)
        for (int v = 0; v < nv; v++) vst1q_f32(c + (size_t)j * ldc + (size_t)v * LANES, acc[j][v]);
}

#define PRODUCT(NQ, NV)                                                                                 \
    static void product_##NQ##x##NV(const float *a, size_t lda, const float *b, size_t ldb, size_t n_i, \
                                    float *c, size_t ldc, bool more)                                    \
    {                                                                                                   \
        product(a, lda, b, ldb, n_i, c, ldc, more, NQ, NV);                                             \
    }
PRODUCT(1, 1)
PRODUCT(1, 4)
PRODUCT(1, 8)
PRODUCT(2, 1)
PRODUCT(2, 4)
PRODUCT(2, 8)
PRODUCT(3, 1)
PRODUCT(3, 4)
PRODUCT(4, 1)
PRODUCT(4, 4)

static product_fn *const products[BLOCK_Q][WIDTHS] = {
    {product_1x1, product_1x4, product_1x8},
    {product_2x1, product_2x4, product_2x8},
    {product_3x1, product_3x4, NULL},
    {product_4x1, product_4x4, NULL},
};

/* The product over n_lanes (a multiple of 4) columns of b, in the widest pieces that fit. */
static void product_lanes(size_t nq, const float *a, size_t lda, const float *b, size_t ldb, size_t n_i,
                          float *c, size_t ldc, bool more, size_t n_lanes)
{
    product_fn *const *fn = products[nq - 1];
    size_t width = WIDTHS - 1;
    for (size_t at = 0; at < n_lanes; at += LANES * width_vecs[width]) {
        while (fn[width] == NULL || LANES * width_vecs[width] > n_lanes - at) width--;
        fn[width](a, lda, b + at, ldb, n_i, c + at, ldc, more);
    }
}

typedef struct tile {
    const float *k; /* [hd, QW_KV_TILE] */
    const float *v; /* [QW_KV_TILE, hd] */
    size_t hd;
} tile;

/* A block's intermediate results. */
typedef struct block {
    float p[BLOCK_Q][QW_KV_TILE];      /* scores, then weights */
    float o[BLOCK_Q][QW_HEAD_DIM_MAX];
    float m[BLOCK_Q], s[BLOCK_Q];      /* of the tile; lanes are queries */
} block;

/* Scores in b->p to weights; fills b->m and b->s. */
static void block_softmax(block *b, size_t nq, const uint32_t *n_keys)
{
    static const uint32_t lanes[LANES] = {0, 1, 2, 3};
    const float32x4_t none = vdupq_n_f32(-INFINITY);
    for (size_t j = 0; j < nq; j++) {
        float *p = b->p[j];
        float32x4_t x[NEON_VECS], tree[NEON_VECS];
        uint32x4_t key = vld1q_u32(lanes), n = vdupq_n_u32(n_keys[j]);
        for (int v = 0; v < NEON_VECS; v++, key = vaddq_u32(key, vdupq_n_u32(LANES)))
            x[v] = tree[v] = vbslq_f32(vcltq_u32(key, n), vld1q_f32(p + LANES * v), none);
        float m = fold_neon_max(tree);
        for (int v = 0; v < NEON_VECS; v++) {
            x[v] = exp_neon_nonpos(vsubq_f32(x[v], vdupq_n_f32(m)));
            vst1q_f32(p + LANES * v, x[v]);
        }
        b->m[j] = m;
        b->s[j] = fold_neon_sum(x);
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

    /* hd is no multiple of 4: the last dimensions go through a padded copy. */
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
    merge_neon(nq, b->m, b->s, m, s, old_scale, new_scale);
    for (size_t j = 0; j < nq; j++) {
        float *oj = o + j * hd;
        size_t d = 0;
        for (; d + LANES <= hd; d += LANES) {
            float32x4_t old = vmulq_n_f32(vld1q_f32(oj + d), old_scale[j]);
            vst1q_f32(oj + d, vfmaq_n_f32(old, vld1q_f32(b->o[j] + d), new_scale[j]));
        }
        for (; d < hd; d++) oj[d] = fmaf(b->o[j][d], new_scale[j], oj[d] * old_scale[j]);
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
    memset(&b, 0, sizeof b); /* lanes without a query or a key are loaded, though never used */
    for (attn_span at = {0}; attn_next_span(&at, n_keys, n_q, BLOCK_Q);) {
        size_t i = at.first;
        attn_block(&t, &b, &at, q + i * hd, n_keys + i, m + i, s + i, o + i * hd);
    }
}

void qw_attn_f32_init_neon(qw_kernels *t)
{
    t->attn_f32 = attn_f32;
}
