/* float_ref.h: what the reference's float operations and its attention share. Pure functions, any thread. */
#ifndef QW_KERNELS_REF_FLOAT_REF_H
#define QW_KERNELS_REF_FLOAT_REF_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>

enum { PARTIALS = 64 };

/* Folds by halves; the array is used up. */
float qw_ref_fold_sum(float p[PARTIALS]);
float qw_ref_fold_max(float p[PARTIALS]);
/* The larger one; the second where they compare equal or one is NaN (as the x86 instruction does). */
float qw_ref_max(float a, float b);
float qw_ref_exp(float x);
/* The slot quantize_i16 (attn_ref.c), for levels that leave infinities and NaN to it. */
float qw_ref_quantize_i16(const float *x, size_t n, float most, float norm_most, float norm2, int16_t *q);

/* The value that stands for x where it is quantised: NaN is 0, infinities are the largest float. */
static inline float qw_ref_finite(float x)
{
    x = isnan(x) ? 0.0f : x;
    x = x > FLT_MAX ? FLT_MAX : x;
    return x < -FLT_MAX ? -FLT_MAX : x;
}

#endif
