/* fma_ref.h: a fused multiply-add of floats from plain double arithmetic, for the reference level.
 *
 * Why not fmaf(): on a processor without the instruction the C library's version switches the rounding
 * mode and costs tens of nanoseconds. The product of two floats is exact in double; the sum is rounded
 * to odd (by the exact error of the addition), so that the final rounding to float, which has 29 bits
 * less, is correct: the same bits as fmaf() for every input, subnormals included; NaN for NaN. Any thread.
 */
#ifndef QW_KERNELS_REF_FMA_REF_H
#define QW_KERNELS_REF_FMA_REF_H

#include <stdint.h>
#include <string.h>

static inline float qw_ref_fma(float a, float b, float c)
{
    double p = (double)a * (double)b, s = p + (double)c;
    double t = s - p, e = (p - (s - t)) + ((double)c - t); /* s + e is the exact sum */
    uint64_t su, eu;
    memcpy(&su, &s, sizeof su);
    memcpy(&eu, &e, sizeof eu);
    uint64_t inexact_even = (uint64_t)((e < 0.0) | (e > 0.0)) & ~su & 1; /* 0 for infinities, NaN */
    su += inexact_even * (1 - 2 * ((su ^ eu) >> 63)); /* one step towards the exact sum */
    memcpy(&s, &su, sizeof s);
    return (float)s;
}

#endif
