/* kernels.h: the one table of compute kernels.
 *
 * Each slot starts as plain reference C (ref/) and is raised upward by instruction-set level
 * (x86/, arm/); qw_kernels_get() returns the finished table of a level. All kernels
 * are pure functions over caller memory: no allocation, no global state, any thread.
 *
 * Exactness. Integer products are exact and every float step has one written order (docs/numerics.md),
 * with fused multiply-adds where the text says fma: every slot gives the same bits on every level and
 * for every number of columns, queries and rows.
 *
 * Matrix products. A weight matrix W [rows, k] (row-major blocks) is packed once in groups of 16 rows
 * (QW_GROUP_ROWS), interleaved so that a load serves all rows and a dot product ends in lanes. The last
 * group is padded with zero rows. Activations x [n, k] are quantised (or, for float weights, copied) once per
 * product into records of act_bytes(), one a column, opaque outside the kernels.
 * out[c * ld_out + row] = sum_k W[row, k] * x[c, k], in this order (docs/kernels.md):
 *   QW_ACT_Q8_32, per 32:   acc = fma((float)isum, dw * da, acc); for types with a minimum then
 *                           acc = fma(m, da * (float)sum(a), acc)
 *   QW_ACT_Q8_256, per 256: t = (float)sum(scale * isum) * d; for types with minima then
 *                           t = fma((float)sum(min * asum), -dmin, t); acc = fma(t, da, acc). IQ4_XS:
 *                           t = fma((float)isum, d * scale, t) for each sub-block in order, from 0
 *   QW_ACT_F32, per k:      acc = fma(w, x, acc)
 * with exact int32 sums, a product of two scales rounded once, blocks in order of k, acc from 0.
 */
#ifndef QW_KERNELS_KERNELS_H
#define QW_KERNELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/cpu.h"
#include "kernels/blocks.h"

enum {
    QW_GROUP_ROWS = 16,
    QW_KV_TILE = 64,   /* positions in one attention tile, cut at absolute multiples */
    QW_HEAD_DIM_MAX = 256,
    QW_DELTA_LANES = 16 /* value elements of a head in one call of the gated delta rule */
};

/* What activations become; which one a packed form wants is fixed by the form. */
typedef enum qw_act {
    QW_ACT_Q8_32 = 0, /* int8, one float scale for 32 elements, with their sums */
    QW_ACT_Q8_256,    /* int8, one float scale for 256 elements, with sums of 16 and of 32 */
    QW_ACT_F32,       /* the floats themselves */
    QW_ACT_COUNT
} qw_act;

/* Packed weight forms. */
typedef enum qw_pack {
    QW_PACK_NONE = 0, /* not packed: the product runs on dequantised rows (dot_f32) */
    QW_PACK_Q4_0,
    QW_PACK_Q5_0,
    QW_PACK_Q8_0,
    QW_PACK_Q4_K,
    QW_PACK_Q5_K,
    QW_PACK_Q6_K,
    QW_PACK_Q4_1,
    QW_PACK_Q5_1,
    QW_PACK_IQ4_NL,
    QW_PACK_MXFP4,
    QW_PACK_Q2_K,
    QW_PACK_Q3_K,
    QW_PACK_IQ4_XS,
    QW_PACK_F32,
    QW_PACK_F16,
    QW_PACK_BF16,
    QW_PACK_IQ2_XXS, /* from here to IQ3_S one form to the kernels */
    QW_PACK_IQ2_XS,
    QW_PACK_IQ2_S,
    QW_PACK_IQ1_S,
    QW_PACK_IQ1_M,
    QW_PACK_IQ3_XXS,
    QW_PACK_IQ3_S,
    QW_PACK_TQ1_0,  /* laid out as Q2_K */
    QW_PACK_TQ2_0,
    QW_PACK_NVFP4,  /* as BF16, which holds its values exactly */
    QW_PACK_COUNT,
    QW_PACK_BOOK = QW_PACK_IQ2_XXS /* and this is its name: nibbles that stand for one of 16 levels */
} qw_pack;

/* Form of a type: every implemented type has one. */
qw_pack qw_pack_of(qw_type type);
qw_act qw_pack_act(qw_pack pack);
const char *qw_pack_name(qw_pack pack);
/* Bytes of one group of 16 rows of k elements: a multiple of 64. k is a multiple of the type's block. */
size_t qw_pack_group_bytes(qw_pack pack, size_t k);
/* Packs n_rows (1..16) rows that start at src, each row_bytes after the last, into dst (64-byte aligned,
 * qw_pack_group_bytes long); missing rows become zeros. */
void qw_pack_group(qw_pack pack, const void *src, size_t row_bytes, size_t n_rows, size_t k, void *dst);

/* Bytes of one quantised activation column of k elements: a multiple of 64. k is a multiple of 32
 * (QW_ACT_Q8_32) or 256 (QW_ACT_Q8_256). */
size_t qw_act_bytes(qw_act act, size_t k);
/* A record is an array: of so many bytes for each group of so many elements, then padding to 64. */
size_t qw_act_record_bytes(qw_act act);
size_t qw_act_group(qw_act act);
/* What quantisation lost: out[i] = x[i] - d * q[i] (product rounded, then the difference), all [k]. Quantised
 * again it gives a second column whose product refines the first one's. */
void qw_act_residual(qw_act act, const float *x, size_t k, const void *record, float *out);

/* Matrix product of n_groups packed groups with n_cols quantised columns: writes rows
 * [0, 16 * n_groups) of out for each column. n_cols is any number from 1. packed: qw_pack_group_bytes() a
 * group, 64-byte aligned; act: n_cols records of qw_act_bytes(), 64-byte aligned; out: any alignment. Up to
 * 8 columns stream the weights once; more read them again, in chunks that fit L2, so a caller that hands
 * out chunks of groups to threads loses nothing. */
typedef void qw_gemm_fn(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,
                        float *out, size_t ld_out);

/* Attention of n_q queries over one tile of QW_KV_TILE positions of one KV head.
 *   q [n_q, hd]: already scaled by 1/sqrt(head_dim)
 *   k_tile: keys stored dimension-major [hd, QW_KV_TILE]; v_tile [QW_KV_TILE, hd]
 *   n_keys [n_q]: how many leading keys of this tile each query sees, 0..QW_KV_TILE
 *   m, s [n_q] and o [n_q, hd]: running maximum, sum and weighted values; start at -INFINITY, 0, 0
 * Score of a key: fma over d = 0..hd-1 in order. Keys of a tile are summed in order of position, and a
 * tile's partial result (its own max, sum, values) is merged into the running one, so that bits depend
 * only on the query, the keys before it and the absolute tile borders. */
typedef void qw_attn_f32_fn(const float *k_tile, const float *v_tile, size_t hd, const float *q, size_t n_q,
                            const uint32_t *n_keys, float *m, float *s, float *o);

/* The same in integers (attn_layout.h):
 *   tile: QW_KV_TILE positions, 64-byte aligned; next: the tile after it, which is fetched meanwhile, or NULL
 *   hd: a multiple of QW_ATTN_UNIT, elements beyond the head's are zero
 *   q [n_q, hd] with a norm of at most QW_ATTN_NORM_MOST, dq [n_q]: their scale times 1/sqrt(head_dim)
 *   o [n_q, hd]
 * Both products are sums of integers and exact; the steps between them are those of ref/attn_ref.c. */
typedef void qw_attn_i16_fn(const void *tile, const void *next, size_t hd, const int16_t *q, const float *dq,
                            size_t n_q, const uint32_t *n_keys, float *m, float *s, float *o);

/* The gated delta rule for QW_DELTA_LANES of a head's value elements, n_tokens tokens in order:
 *     m = S^T k;  delta = beta (v - g m);  S <- g S + k delta^T;  o = S^T q
 *   s [dk, QW_DELTA_LANES]: the state of these elements, read and written
 *   q, k [n_tokens, dk] with ld_qk floats from one token to the next; v, out [n_tokens, QW_DELTA_LANES] with ld_v, ld_out
 *   gates: g and beta of token t at gates[t * ld_gates] and the float after it
 * Sums over i = 0..dk-1 keep two partial sums, element i in partial i % 2 by fma. v - g m is one fma; g S is rounded, and
 * adding k delta^T to it is one fma. */
typedef void qw_delta_fn(float *s, size_t dk, size_t n_tokens, const float *q, const float *k, size_t ld_qk, const float *v,
                         size_t ld_v, const float *gates, size_t ld_gates, float *out, size_t ld_out);

typedef struct qw_kernels {
    qw_isa isa;

    /* x [k] floats -> one activation record. Per group: q = nearest even of x * (127 / amax), d = amax / 127;
     * a group whose amax is below 2^-120 is all zero with d = 0. NaN counts as 0, infinities as +-FLT_MAX.
     * QW_ACT_F32 copies them as they are. */
    void (*quantize_act[QW_ACT_COUNT])(const float *x, size_t k, void *record);
    qw_gemm_fn *gemm[QW_PACK_COUNT]; /* [QW_PACK_NONE] is NULL */

    /* out[c * ld_out] = sum over k of w[k] * x[c * ld_x + k]: 64 partial sums, element i to partial i % 64
     * by fma, then a fixed pairwise tree. The product of weights that are not packed: with --exact. */
    void (*dot_f32)(const float *w, size_t k, const float *x, size_t ld_x, size_t n_cols, float *out,
                    size_t ld_out);
    /* One stored row of any implemented type to float, same bits as qw_dequantize_row. */
    void (*dequantize_row)(qw_type type, const void *src, float *dst, size_t k);

    /* out = x * rsqrt(mean(x^2) + eps) * w, all [k]; the mean with the partial sums of dot_f32. */
    void (*rms_norm)(const float *x, const float *w, size_t k, float eps, float *out);
    void (*add)(float *x, const float *y, size_t n); /* x += y */
    void (*add_scaled)(float *x, const float *y, float scale, size_t n); /* x = fma(scale, y, x) */
    void (*exp)(float *x, size_t n); /* x = exp(x), as exp_const.h has it */
    /* out = silu(gate) * up, silu(g) = g / (1 + exp(-g)); out may be gate. */
    void (*silu_mul)(const float *gate, const float *up, size_t n, float *out);
    /* out = x * sigmoid(gate), sigmoid(g) = 1 / (1 + exp(-g)); out may be x, gate or both. */
    void (*sigmoid_mul)(const float *x, const float *gate, size_t n, float *out);
    /* One step of a depthwise convolution over time: out = silu(sum over taps j of w[j] * u[j]), u: n_taps pointers to n
     * floats, w [n_taps, ld_w]; the first product is rounded, the others are fma in order of j. n_taps >= 1. */
    void (*conv_silu)(const float *const *u, const float *w, size_t ld_w, size_t n_taps, size_t n, float *out);
    qw_delta_fn *delta_rule;
    /* Rotates pairs (i, i + n/2) of x [n] in place (NeoX order): cos, sin [n/2] of this position. */
    void (*rope)(float *x, const float *cos, const float *sin, size_t n);

    /* q = nearest even of x * s, all [n]; returns 1 / s. s is as large as keeps all |q| <= most (at most 32767) and, when
     * norm2 > 0, their norm at most about norm_most; norm2 is the sum of squares of x by dot_f32. amax below 2^-60
     * gives 0 and q = 0; NaN and infinities as in quantize_act. */
    float (*quantize_i16)(const float *x, size_t n, float most, float norm_most, float norm2, int16_t *q);
    qw_attn_i16_fn *attn_i16;
    qw_attn_f32_fn *attn_f32;
} qw_kernels;

/* The table of a level, which must not be above qw_cpu_isa(). Built on first use; same pointer after. */
const qw_kernels *qw_kernels_get(qw_isa isa);

/* For each level one function raises the slots it has; called in order by qw_kernels_get. */
void qw_kernels_init_ref(qw_kernels *t);
void qw_kernels_init_avx2(qw_kernels *t);
void qw_kernels_init_avx512(qw_kernels *t);
void qw_kernels_init_avx512_vnni(qw_kernels *t);
void qw_kernels_init_neon(qw_kernels *t);
void qw_kernels_init_dotprod(qw_kernels *t);
void qw_kernels_init_i8mm(qw_kernels *t);

#endif
