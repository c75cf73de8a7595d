/* float_avx2.h: the project's exponential on 8 lanes and the fold of 64 partials, for the AVX2 files.
 * Bit-equal to qw_ref_exp() and its folds in ref/float_ref.c. Any thread.
 */
#ifndef QW_KERNELS_X86_FLOAT_AVX2_H
#define QW_KERNELS_X86_FLOAT_AVX2_H

#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/exp_const.h"
#include "kernels/kernels.h"

/* exp(x) for x <= QW_EXP_MAX or NaN. */
static inline __m256 exp256_nonpos(__m256 x)
{
    const __m256 magic = _mm256_set1_ps(QW_EXP_MAGIC), one = _mm256_set1_ps(1.0f);
    __m256 under = _mm256_cmp_ps(x, _mm256_set1_ps(QW_EXP_MIN), _CMP_LT_OQ);
    __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    __m256 t = _mm256_fmadd_ps(x, _mm256_set1_ps(QW_EXP_LOG2E), magic);
    __m256 n = _mm256_sub_ps(t, magic);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-QW_EXP_LN2_HI), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-QW_EXP_LN2_LO), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(QW_EXP_C6), r, _mm256_set1_ps(QW_EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(QW_EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(QW_EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(QW_EXP_C2));
    p = _mm256_fmadd_ps(p, r, one);
    p = _mm256_fmadd_ps(p, r, one);
    __m256i scaled = _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23));
    /* All ones is a NaN: `or` keeps NaN arguments NaN, whatever the shifted bits made of them. */
    return _mm256_or_ps(_mm256_andnot_ps(under, _mm256_castsi256_ps(scaled)), nan);
}

static inline __m256 exp256(__m256 x)
{
    __m256 over = _mm256_cmp_ps(x, _mm256_set1_ps(QW_EXP_MAX), _CMP_GT_OQ);
    return _mm256_blendv_ps(exp256_nonpos(x), _mm256_set1_ps(INFINITY), over);
}

/* p: 8 vectors, vector i holds partials 8 i .. 8 i + 7 */
static inline float fold256_sum(const __m256 p[8])
{
    __m256 even = _mm256_add_ps(_mm256_add_ps(p[0], p[4]), _mm256_add_ps(p[2], p[6]));
    __m256 odd = _mm256_add_ps(_mm256_add_ps(p[1], p[5]), _mm256_add_ps(p[3], p[7]));
    __m256 y = _mm256_add_ps(even, odd);
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

static inline float fold256_max(const __m256 p[8])
{
    __m256 even = _mm256_max_ps(_mm256_max_ps(p[0], p[4]), _mm256_max_ps(p[2], p[6]));
    __m256 odd = _mm256_max_ps(_mm256_max_ps(p[1], p[5]), _mm256_max_ps(p[3], p[7]));
    __m256 y = _mm256_max_ps(even, odd);
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

/* Takes a tile's maxima and sums of nq (at most 8) queries into the running m, s; the factors [8] of what was there before
 * and of what the tile adds. */
static inline void merge256(size_t nq, const float m_tile[8], const float s_tile[8], float *m, float *s,
                            float old_scale[8], float new_scale[8])
{
    float m_run[8] = {0}, s_run[8] = {0};
    memcpy(m_run, m, nq * sizeof *m);
    memcpy(s_run, s, nq * sizeof *s);
    __m256 m_old = _mm256_loadu_ps(m_run), m_add = _mm256_loadu_ps(m_tile), m_new = _mm256_max_ps(m_old, m_add);
    __m256 a = exp256_nonpos(_mm256_sub_ps(m_old, m_new)), w = exp256_nonpos(_mm256_sub_ps(m_add, m_new));
    _mm256_storeu_ps(m_run, m_new);
    _mm256_storeu_ps(s_run, _mm256_fmadd_ps(_mm256_loadu_ps(s_tile), w, _mm256_mul_ps(_mm256_loadu_ps(s_run), a)));
    _mm256_storeu_ps(old_scale, a);
    _mm256_storeu_ps(new_scale, w);
    memcpy(m, m_run, nq * sizeof *m);
    memcpy(s, s_run, nq * sizeof *s);
}

#endif
