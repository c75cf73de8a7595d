/* float_neon.h: the project's exponential on 4 lanes and the fold of 64 partials, for the NEON files.
 * Bit-equal to qw_ref_exp() and its folds in ref/float_ref.c. Any thread.
 */
#ifndef QW_KERNELS_ARM_FLOAT_NEON_H
#define QW_KERNELS_ARM_FLOAT_NEON_H

#include <arm_neon.h>
#include <math.h>
#include <string.h>

#include "kernels/exp_const.h"
#include "kernels/kernels.h"

enum { NEON_LANES = 4, NEON_VECS = 16 }; /* vectors that hold the 64 partials of a reduction, or the scores of a tile */

/* The larger one; the second where they compare equal or one is NaN. FMAX would make NaN of the latter. */
static inline float32x4_t max_neon(float32x4_t a, float32x4_t b)
{
    return vbslq_f32(vcgtq_f32(a, b), a, b);
}

/* exp(x) for x <= QW_EXP_MAX or NaN. */
static inline float32x4_t exp_neon_nonpos(float32x4_t x)
{
    const float32x4_t one = vdupq_n_f32(1.0f);
    uint32x4_t under = vcltq_f32(x, vdupq_n_f32(QW_EXP_MIN)), number = vceqq_f32(x, x);
    float32x4_t t = vfmaq_f32(vdupq_n_f32(QW_EXP_MAGIC), x, vdupq_n_f32(QW_EXP_LOG2E));
    float32x4_t n = vsubq_f32(t, vdupq_n_f32(QW_EXP_MAGIC));
    float32x4_t r = vfmaq_f32(x, n, vdupq_n_f32(-QW_EXP_LN2_HI));
    r = vfmaq_f32(r, n, vdupq_n_f32(-QW_EXP_LN2_LO));
    float32x4_t p = vfmaq_f32(vdupq_n_f32(QW_EXP_C5), vdupq_n_f32(QW_EXP_C6), r);
    p = vfmaq_f32(vdupq_n_f32(QW_EXP_C4), p, r);
    p = vfmaq_f32(vdupq_n_f32(QW_EXP_C3), p, r);
    p = vfmaq_f32(vdupq_n_f32(QW_EXP_C2), p, r);
    p = vfmaq_f32(one, p, r);
    p = vfmaq_f32(one, p, r);
    uint32x4_t scaled = vaddq_u32(vreinterpretq_u32_f32(p), vshlq_n_u32(vreinterpretq_u32_f32(t), 23));
    /* All ones is a NaN: NaN arguments stay NaN, whatever the shifted bits made of them. */
    return vreinterpretq_f32_u32(vornq_u32(vbicq_u32(scaled, under), number));
}

static inline float32x4_t exp_neon(float32x4_t x)
{
    uint32x4_t over = vcgtq_f32(x, vdupq_n_f32(QW_EXP_MAX));
    return vbslq_f32(over, vdupq_n_f32(INFINITY), exp_neon_nonpos(x));
}

/* p: vector i holds partials 4 i .. 4 i + 3; destroyed */
static inline float fold_neon_sum(float32x4_t p[NEON_VECS])
{
    for (int half = NEON_VECS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) p[i] = vaddq_f32(p[i], p[i + half]);
    float32x2_t x = vadd_f32(vget_low_f32(p[0]), vget_high_f32(p[0]));
    return vget_lane_f32(x, 0) + vget_lane_f32(x, 1);
}

static inline float fold_neon_max(float32x4_t p[NEON_VECS])
{
    for (int half = NEON_VECS / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) p[i] = max_neon(p[i], p[i + half]);
    float32x2_t lo = vget_low_f32(p[0]), hi = vget_high_f32(p[0]);
    lo = vbsl_f32(vcgt_f32(lo, hi), lo, hi);
    float a = vget_lane_f32(lo, 0), b = vget_lane_f32(lo, 1);
    return a > b ? a : b;
}

/* Takes a tile's maxima and sums of nq (at most 4) queries into the running m, s; the factors [4] of what was there before
 * and of what the tile adds. */
static inline void merge_neon(size_t nq, const float m_tile[4], const float s_tile[4], float *m, float *s,
                              float old_scale[4], float new_scale[4])
{
    float m_run[4] = {0}, s_run[4] = {0};
    memcpy(m_run, m, nq * sizeof *m);
    memcpy(s_run, s, nq * sizeof *s);
    float32x4_t m_old = vld1q_f32(m_run), m_add = vld1q_f32(m_tile), m_new = max_neon(m_old, m_add);
    float32x4_t a = exp_neon_nonpos(vsubq_f32(m_old, m_new)), w = exp_neon_nonpos(vsubq_f32(m_add, m_new));
    vst1q_f32(m_run, m_new);
    vst1q_f32(s_run, vfmaq_f32(vmulq_f32(vld1q_f32(s_run), a), vld1q_f32(s_tile), w));
    vst1q_f32(old_scale, a);
    vst1q_f32(new_scale, w);
    memcpy(m, m_run, nq * sizeof *m);
    memcpy(s, s_run, nq * sizeof *s);
}

#endif
