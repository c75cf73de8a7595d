/* attn_i16_neon.c: integer attention over one tile of 64 positions with AArch64 Advanced SIMD.
 *
 * Bits as query_i16() of ref/attn_ref.c. Both products are C[j][lane] = sum over i of A[j][i] * B[i][lane], where an
 * element is a pair of 16-bit numbers: lanes are keys, i pairs of dimensions, then lanes are dimensions, i pairs of keys.
 * LD2 takes the pairs of 8 lanes apart, SMLAL multiplies each half. 4 queries x 16 lanes stay in registers. No step mixes
 * queries, so a block's size cannot change bits. Pure functions over caller memory, any thread.
 */
#include <string.h>

#include "kernels/arm/float_neon.h"
#include "kernels/attn_blocks.h"
#include "kernels/attn_layout.h"
#include "kernels/kernels_private.h"
#include "kernels/ref/float_ref.h"
#include "kernels/tile.h"

enum {
    BLOCK_Q = 4, /* queries in one block */
    LANES = NEON_LANES,
    WIDE = 16    /* lanes of a product */
};

/* a [nq, lda], b [n_i, ldb] of pairs, c [nq, ldc]; next: like b, fetched at the pace of the work */
typedef void product_fn(const int16_t *a, size_t lda, const int16_t *b, const int16_t *next, size_t ldb, size_t n_i,
                        int32_t *c, size_t ldc);

TILE_INLINE void product(const int nq, const int16_t *a, size_t lda, const int16_t *b, const int16_t *next, size_t ldb,
                         size_t n_i, int32_t *c, size_t ldc)
{
    int32x4_t acc[BLOCK_Q][4];
    TILE_UNROLL
    for (int j = 0; j < nq; j++) {
        TILE_UNROLL
        for (int v = 0; v < 4; v++) acc[j][v] = vdupq_n_s32(0);
    }
    for (size_t i = 0; i < n_i; i++) {
        __builtin_prefetch(next + 2 * i * ldb, 0, 2);
        int16x8x2_t b0 = vld2q_s16(b + 2 * i * ldb), b1 = vld2q_s16(b + 2 * (i * ldb + 8));
        TILE_UNROLL
        for (int j = 0; j < nq; j++) {
            TILE_UNROLL
            for (int half = 0; half < 2; half++) {
                int16_t aj = a[2 * ((size_t)j * lda + i) + (size_t)half];
                acc[j][0] = vmlal_n_s16(acc[j][0], vget_low_s16(b0.val[half]), aj);
                acc[j][1] = vmlal_n_s16(acc[j][1], vget_high_s16(b0.val[half]), aj);
                acc[j][2] = vmlal_n_s16(acc[j][2], vget_low_s16(b1.val[half]), aj);
                acc[j][3] = vmlal_n_s16(acc[j][3], vget_high_s16(b1.val[half]), aj);
            }
        }
    }
    TILE_UNROLL
    for (int j = 0; j < nq; j++) {
        TILE_UNROLL
        for (int v = 0; v < 4; v++) vst1q_s32(c + (size_t)j * ldc + v * LANES, acc[j][v]);
    }
}

#define PRODUCT(NQ)                                                                                             \
    static void product_##NQ(const int16_t *a, size_t lda, const int16_t *b, const int16_t *next, size_t ldb,   \
                             size_t n_i, int32_t *c, size_t ldc)                                                \
    {                                                                                                           \
        product(NQ, a, lda, b, next, ldb, n_i, c, ldc);                                                         \
    }
PRODUCT(1)
PRODUCT(2)
PRODUCT(3)
PRODUCT(4)
static product_fn *const products[BLOCK_Q] = {product_1, product_2, product_3, product_4};

/* The product over n_lanes (a multiple of 16) lanes of b. */
static void product_lanes(size_t nq, const int16_t *a, size_t lda, const int16_t *b, const int16_t *next, size_t ldb,
                          size_t n_i, int32_t *c, size_t ldc, size_t n_lanes)
{
    for (size_t at = 0; at < n_lanes; at += WIDE) products[nq - 1](a, lda, b + 2 * at, next + 2 * at, ldb, n_i, c + at, ldc);
}

/* A block's intermediate results. */
typedef struct block {
    int32_t score[BLOCK_Q][QW_KV_TILE];
    int16_t weight[BLOCK_Q][QW_KV_TILE];
    int32_t o[BLOCK_Q][QW_HEAD_DIM_MAX];
    float m[BLOCK_Q], s[BLOCK_Q], d[BLOCK_Q]; /* maximum, sum, scale of the weights; lanes are queries */
} block;

/* Weights as integers; returns their scale, or 0 and none. sum: of p */
static float quantize_weights(const float32x4_t w[NEON_VECS], float sum, int16_t *out)
{
    float32x4_t tree[NEON_VECS];
    memcpy(tree, w, sizeof tree);
    float d = fold_neon_max(tree) * (1.0f / QW_ATTN_WEIGHT_MOST);
    if (!(d >= QW_ATTN_D_MIN) || isnan(sum)) {
        memset(out, 0, QW_KV_TILE * sizeof *out);
        return 0.0f;
    }
    float inverse = 1.0f / d;
    for (int v = 0; v < NEON_VECS; v++)
        vst1_s16(out + LANES * v, vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(w[v], inverse))));
    return d;
}

/* Scores to weights. dk, dv: scales of the keys and values. */
static void block_softmax(block *b, size_t nq, const float *dk, const float *dv, const float *dq, const uint32_t *n_keys)
{
    static const uint32_t lanes[LANES] = {0, 1, 2, 3};
    for (size_t j = 0; j < nq; j++) {
        float32x4_t x[NEON_VECS], w[NEON_VECS], tree[NEON_VECS];
        uint32x4_t key = vld1q_u32(lanes), n = vdupq_n_u32(n_keys[j]), seen[NEON_VECS];
        for (int v = 0; v < NEON_VECS; v++, key = vaddq_u32(key, vdupq_n_u32(LANES))) {
            seen[v] = vcltq_u32(key, n);
            float32x4_t factor = vmulq_n_f32(vld1q_f32(dk + LANES * v), dq[j]);
            float32x4_t score = vmulq_f32(vcvtq_f32_s32(vld1q_s32(b->score[j] + LANES * v)), factor);
            x[v] = tree[v] = vbslq_f32(seen[v], score, vdupq_n_f32(-INFINITY));
        }
        b->m[j] = fold_neon_max(tree);
        for (int v = 0; v < NEON_VECS; v++) {
            x[v] = exp_neon_nonpos(vsubq_f32(x[v], vdupq_n_f32(b->m[j])));
            float32x4_t scaled = vmulq_f32(x[v], vld1q_f32(dv + LANES * v));
            w[v] = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(scaled), seen[v]));
        }
        b->s[j] = fold_neon_sum(x);
        b->d[j] = quantize_weights(w, b->s[j], b->weight[j]);
    }
}

/* Merges the tile's result into the running m, s [nq] and o [nq, hd]. */
static void block_merge(const block *b, size_t nq, size_t hd, float *m, float *s, float *o)
{
    float old_scale[LANES], new_scale[LANES];
    merge_neon(nq, b->m, b->s, m, s, old_scale, new_scale);
    for (size_t j = 0; j < nq; j++)
        for (size_t d = 0; d < hd; d += LANES) {
            float *to = o + j * hd + d;
            float32x4_t old = vmulq_n_f32(vld1q_f32(to), old_scale[j]);
            vst1q_f32(to, vfmaq_n_f32(old, vcvtq_f32_s32(vld1q_s32(b->o[j] + d)), new_scale[j] * b->d[j]));
        }
}

/* One block, whose first query is at q, dq, n_keys, m, s and o. */
static void attn_block(qw_attn_tile t, qw_attn_tile next, size_t hd, block *b, const attn_span *at, const int16_t *q,
                       const float *dq, const uint32_t *n_keys, float *m, float *s, float *o)
{
    size_t nq = at->n, lanes = (at->most + WIDE - 1) / WIDE * WIDE, pairs = (at->most + 1) / 2;
    product_lanes(nq, q, hd / 2, t.k, next.k, QW_KV_TILE, hd / 2, b->score[0], QW_KV_TILE, lanes);
    block_softmax(b, nq, t.dk, t.dv, dq, n_keys);
    product_lanes(nq, b->weight[0], QW_KV_TILE / 2, t.v, next.v, hd, pairs, b->o[0], QW_HEAD_DIM_MAX, hd);
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

static float quantize_i16(const float *x, size_t n, float most, float norm_most, float norm2, int16_t *q)
{
    uint32x4_t all = vdupq_n_u32(0);
    uint32_t bits = 0;
    float amax;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) all = vmaxq_u32(all, vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i))));
    bits = vmaxvq_u32(all);
    for (; i < n; i++) {
        uint32_t one;
        memcpy(&one, x + i, sizeof one);
        one &= INT32_MAX;
        bits = one > bits ? one : bits;
    }
    if (bits > 0x7f7fffff) return qw_ref_quantize_i16(x, n, most, norm_most, norm2, q); /* infinities or NaN */
    memcpy(&amax, &bits, sizeof amax);
    if (amax < QW_ATTN_AMAX_MIN) {
        memset(q, 0, n * sizeof *q);
        return 0.0f;
    }
    float factor = qw_attn_factor(amax, n, most, norm_most, norm2);
    for (i = 0; i + LANES <= n; i += LANES)
        vst1_s16(q + i, vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i), factor))));
    for (; i < n; i++) q[i] = (int16_t)vcvtns_s32_f32(x[i] * factor);
    return 1.0f / factor;
}

void qw_attn_i16_init_neon(qw_kernels *t)
{
    t->quantize_i16 = quantize_i16;
    t->attn_i16 = attn_i16;
}
