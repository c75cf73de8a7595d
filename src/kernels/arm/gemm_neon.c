/* gemm_neon.c: quantised matrix products for AArch64 processors without dot product instructions, and the quantisation
 * of activations for all.
 *
 * SMULL and SMLAL multiply bytes into 16-bit lanes, four lanes for a row; ADDP makes two of them and SADALP adds those
 * to exact int32 lanes, one a row. A 16-bit lane holds 2 products of weights of 6 bits and ADDP adds two of them:
 * 4 x 63 x 127 = 32,004. Q8_0 takes the words one by one: 2 x 128 x 127 = 32,512. Bits as ref/gemm_ref.c. Any thread.
 */
#include <float.h>
#include <stdlib.h>

#include "kernels/kernels_private.h"
#include "kernels/arm/gemm_tiles.h"

enum { N_MAX = 4, NARROW = 0, WIDE = 1 };

TILE_INLINE int8x16_t word_of(int8x16_t a, int lane)
{
    int32x4_t x = vreinterpretq_s32_s8(a);
    switch (lane) {
    case 0: x = vdupq_laneq_s32(x, 0); break;
    case 1: x = vdupq_laneq_s32(x, 1); break;
    case 2: x = vdupq_laneq_s32(x, 2); break;
    default: x = vdupq_laneq_s32(x, 3); break;
    }
    return vreinterpretq_s8_s32(x);
}

/* See gemm_dot.h. */
TILE_INLINE void dot_pair(int width, int N, int32x4_t sum[][TILE_QUADS], int q, int8x16_t lo, int8x16_t hi,
                          const int8x16_t *a, int lane)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        int8x16_t x0 = word_of(a[n], lane), x1 = word_of(a[n], lane + 1);
        int16x8_t rows_01 = vmull_s8(vget_low_s8(lo), vget_low_s8(x0)), rows_23 = vmull_high_s8(lo, x0);
        if (width == WIDE) {
            sum[n][q] = vpadalq_s16(sum[n][q], vpaddq_s16(rows_01, rows_23));
            rows_01 = vmull_s8(vget_low_s8(hi), vget_low_s8(x1));
            rows_23 = vmull_high_s8(hi, x1);
        } else {
            rows_01 = vmlal_s8(rows_01, vget_low_s8(hi), vget_low_s8(x1));
            rows_23 = vmlal_high_s8(rows_23, hi, x1);
        }
        sum[n][q] = vpadalq_s16(sum[n][q], vpaddq_s16(rows_01, rows_23));
    }
}

#include "kernels/arm/gemm_dot.h"

TILE_FORMS(GEMM_DOT_SLOT, neon)

/* ---- activations ------------------------------------------------------------------------------------------------- */

/* NaN becomes 0, infinities the largest float. */
TILE_INLINE float32x4_t act_values(const float *x)
{
    float32x4_t v = vld1q_f32(x);
    v = vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), vceqq_f32(v, v)));
    return vmaxq_f32(vminq_f32(v, vdupq_n_f32(FLT_MAX)), vdupq_n_f32(-FLT_MAX));
}

static float abs_max(const float *x, size_t n)
{
    float32x4_t amax = vdupq_n_f32(0.0f);
    for (size_t i = 0; i < n; i += 4) amax = vmaxq_f32(amax, vabsq_f32(act_values(x + i)));
    return vmaxvq_f32(amax);
}

/* 16 floats times `inverse`, rounded to nearest even, as bytes. */
TILE_INLINE int8x16_t quantize_16(const float *x, float inverse)
{
    int16x8_t q[2];
    TILE_UNROLL
    for (int i = 0; i < 2; i++) {
        int32x4_t lo = vcvtnq_s32_f32(vmulq_n_f32(act_values(x + 8 * i), inverse));
        int32x4_t hi = vcvtnq_s32_f32(vmulq_n_f32(act_values(x + 8 * i + 4), inverse));
        q[i] = vcombine_s16(vmovn_s32(lo), vmovn_s32(hi));
    }
    return vcombine_s8(vmovn_s16(q[0]), vmovn_s16(q[1]));
}

/* The sums of 16 quants by lane: of elements 4i and 4i + 1 ([0]), of 4i + 2 and 4i + 3 ([1]). */
TILE_INLINE int32x2_t lane_sums(int8x16_t q)
{
    int16x8_t pairs = vpaddlq_s8(q); /* even: first lane, odd: second */
    int16x8_t sums = vaddq_s16(pairs, vextq_s16(pairs, pairs, 4));
    sums = vaddq_s16(sums, vextq_s16(sums, sums, 2));
    return vget_low_s32(vmovl_s16(vget_low_s16(sums)));
}

static void quantize_q8_32(const float *x, size_t k, void *record)
{
    qw_act32 *a = record;
    size_t n = k / 32;
    for (size_t b = 0; b < n; b++, a++, x += 32) {
        float amax = abs_max(x, 32);
        bool zero = amax < QW_ACT_AMAX_MIN;
        float inverse = zero ? 0.0f : 127.0f / amax;
        int8x16_t q0 = quantize_16(x, inverse), q1 = quantize_16(x + 16, inverse);
        int32x2_t lanes = vneg_s32(vadd_s32(lane_sums(q0), lane_sums(q1)));
        vst1q_s8(a->q, q0);
        vst1q_s8(a->q + 16, q1);
        a->d = zero ? 0.0f : amax / 127.0f;
        a->neg_lane[0] = (int16_t)vget_lane_s32(lanes, 0);
        a->neg_lane[1] = (int16_t)vget_lane_s32(lanes, 1);
        a->neg_sum = vaddv_s32(lanes);
        a->d_sum = a->d * (float)-a->neg_sum;
    }
    memset(a, 0, qw_act_bytes(QW_ACT_Q8_32, k) - n * sizeof *a);
}

static void quantize_q8_256(const float *x, size_t k, void *record)
{
    qw_act256 *a = record;
    for (size_t b = 0; b < k / 256; b++, a++, x += 256) {
        float amax = abs_max(x, 256);
        bool zero = amax < QW_ACT_AMAX_MIN;
        float inverse = zero ? 0.0f : 127.0f / amax;
        int sum[16], size[16], most16 = 0, most32 = 0;
        for (size_t s = 0; s < 16; s++) {
            int8x16_t q = quantize_16(x + 16 * s, inverse);
            int32x2_t lanes = lane_sums(q);
            vst1q_s8(a->q + 16 * s, q);
            sum[s] = vaddv_s32(lanes);
            size[s] = vaddlvq_u8(vreinterpretq_u8_s8(vabsq_s8(q)));
            if (size[s] > most16) most16 = size[s];
            a->neg_sum16[s] = -32 * sum[s];
            a->neg_lane16[s][0] = (int16_t)(-32 * vget_lane_s32(lanes, 0));
            a->neg_lane16[s][1] = (int16_t)(-32 * vget_lane_s32(lanes, 1));
        }
        a->d = zero ? 0.0f : amax / 127.0f;
        for (size_t i = 0; i < QW_SUBS; i++) {
            size_t s = qw_sum32_order[i];
            int both = sum[2 * s] + sum[2 * s + 1], twice = size[2 * s] + size[2 * s + 1] + abs(both);
            a->sum32[i / 2][i % 2] = (int16_t)both;
            if (twice > most32) most32 = twice;
        }
        for (size_t i = 0; i < 16; i++) a->sum16[i / 2][i % 2] = (int16_t)sum[qw_sum16_order(i)];
        a->most16 = (int16_t)most16;
        a->most32 = (int16_t)(most32 / 2); /* of positive or negative quants: (sum of magnitudes + |sum|) / 2 */
        memset(a->pad, 0, sizeof a->pad);
    }
}

void qw_gemm_init_neon(qw_kernels *t)
{
    t->quantize_act[QW_ACT_Q8_32] = quantize_q8_32;
    t->quantize_act[QW_ACT_Q8_256] = quantize_q8_256;
    TILE_FORMS(TILE_SET, neon)
}
