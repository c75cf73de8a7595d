/* init_avx512.c: the slots of level "avx512" (AVX-512 F, BW, DQ, VL). Called by qw_kernels_get() alone, after the
 * levels below it. Any thread.
 */
#include "kernels/kernels_private.h"

void qw_kernels_init_avx512(qw_kernels *t)
{
    qw_gemm_float_init_avx512(t);
    qw_float_init_avx512(t);
    qw_delta_init_avx512(t);
    qw_attn_f32_init_avx512(t);
    qw_attn_i16_init_avx512(t);
}
