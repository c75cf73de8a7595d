/* codebook.h: the two tables of levels of the non-uniform 4-bit formats. Private to the codecs. */
#ifndef QW_KERNELS_REF_CODEBOOK_H
#define QW_KERNELS_REF_CODEBOOK_H

#include <stdint.h>

/* IQ4_NL and IQ4_XS: dense around zero, where most weights are. Part of the format. */
static const int8_t CODEBOOK_IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

/* MXFP4: the 4-bit float E2M1 (sign, two exponent bits, one fraction bit), doubled to be whole. */
static const int8_t CODEBOOK_MXFP4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#endif
