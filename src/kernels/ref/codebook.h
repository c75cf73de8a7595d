/* codebook.h: the levels of the uneven 4-bit formats, and the scale of MXFP4. Private to src/kernels/ref. */
#ifndef QW_KERNELS_REF_CODEBOOK_H
#define QW_KERNELS_REF_CODEBOOK_H

#include <stdint.h>

#include "kernels/ref/half.h"

/* IQ4_NL and IQ4_XS: dense around zero, where most weights are. Part of the format. */
static const int8_t CODEBOOK_IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

/* MXFP4: the 4-bit float E2M1 (sign, two exponent bits, one fraction bit), doubled to be whole. */
static const int8_t CODEBOOK_MXFP4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* Half of 2^(e - 127), because the levels are doubled. Exponents 0 and 1 give float32 subnormals. */
static inline float mxfp4_scale(uint8_t e)
{
    return half_bits_f32(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23);
}

/* NVFP4: half of an 8-bit float without sign (four exponent bits, three fraction bits, bias 7), again because the levels are
 * doubled. The NaN, 0x7f, is 0 as the public reference has it; the top bit does not count. */
static inline float nvfp4_scale(uint8_t e4m3)
{
    int exponent = e4m3 >> 3 & 15, fraction = e4m3 & 7;
    if ((e4m3 == 0) || e4m3 == 0x7f) return 0.0f;
    if (exponent == 0) return (float)fraction * 0x1p-10f;
    return half_bits_f32((uint32_t)(exponent - 8 + 127) << 23 | (uint32_t)fraction << 20);
}

#endif
