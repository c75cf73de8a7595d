/* float_avx512.h: the project's exponential on 16 lanes and the fold of 64 partials, for the AVX-512 files.
 * Bit-equal to qw_ref_exp() and its folds in ref/float_ref.c. Any thread.
 */
#ifndef QW_KERNELS_X86_FLOAT_AVX512_H
#define QW_KERNELS_X86_FLOAT_AVX512_H

#include <immintrin.h>
#include <math.h>

#include "kernels/exp_const.h"
#include "kernels/kernels.h"

/* exp(x) for x <= QW_EXP_MAX or NaN. */
static inline __m512 exp512_nonpos(__m512 x)
{
    const __m512 magic = _mm512_set1_ps(QW_EXP_MAGIC), one = _mm512_set1_ps(1.0f);
    __mmask16 in = _mm512_cmp_ps_mask(x, _mm512_set1_ps(QW_EXP_MIN), _CMP_NLT_UQ);
    __m512 n = _mm512_sub_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(QW_EXP_LOG2E), magic), magic);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-QW_EXP_LN2_HI), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-QW_EXP_LN2_LO), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(QW_EXP_C6), r, _mm512_set1_ps(QW_EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(QW_EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(QW_EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(QW_EXP_C2));
    p = _mm512_fmadd_ps(p, r, one);
    p = _mm512_fmadd_ps(p, r, one);
    return _mm512_maskz_scalef_ps(in, p, n); /* exact: the result is a normal number */
}

static inline __m512 exp512(__m512 x)
{
    __mmask16 over = _mm512_cmp_ps_mask(x, _mm512_set1_ps(QW_EXP_MAX), _CMP_GT_OQ);
    return _mm512_mask_blend_ps(over, exp512_nonpos(x), _mm512_set1_ps(INFINITY));
}

static inline float fold512_sum(__m512 p0, __m512 p1, __m512 p2, __m512 p3)
{
    __m512 z = _mm512_add_ps(_mm512_add_ps(p0, p2), _mm512_add_ps(p1, p3));
    __m256 y = _mm256_add_ps(_mm512_castps512_ps256(z), _mm512_extractf32x8_ps(z, 1));
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

static inline float fold512_max(__m512 p0, __m512 p1, __m512 p2, __m512 p3)
{
    __m512 z = _mm512_max_ps(_mm512_max_ps(p0, p2), _mm512_max_ps(p1, p3));
    __m256 y = _mm256_max_ps(_mm512_castps512_ps256(z), _mm512_extractf32x8_ps(z, 1));
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

/* Takes a tile's maxima and sums of nq (at most 16) queries into the running m, s; the factors [16] of what was there before
 * and of what the tile adds. */
static inline void merge512(size_t nq, const float m_tile[16], const float s_tile[16], float *m, float *s,
                            float old_scale[16], float new_scale[16])
{
    __mmask16 active = (__mmask16)((1u << nq) - 1);
    __m512 m_old = _mm512_maskz_loadu_ps(active, m), m_add = _mm512_maskz_loadu_ps(active, m_tile);
    __m512 m_new = _mm512_max_ps(m_old, m_add);
    __m512 a = exp512_nonpos(_mm512_sub_ps(m_old, m_new)), w = exp512_nonpos(_mm512_sub_ps(m_add, m_new));
    __m512 s_old = _mm512_maskz_loadu_ps(active, s), s_add = _mm512_maskz_loadu_ps(active, s_tile);
    _mm512_mask_storeu_ps(m, active, m_new);
    _mm512_mask_storeu_ps(s, active, _mm512_fmadd_ps(s_add, w, _mm512_mul_ps(s_old, a)));
    _mm512_storeu_ps(old_scale, a);
    _mm512_storeu_ps(new_scale, w);
}

#endif
