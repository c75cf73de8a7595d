/* init_avx2.c: the slots of level "avx2" (AVX2, FMA and F16C). Called by qw_kernels_get() alone, after the
 * levels below it. Any thread.
 */
#include "kernels/kernels_private.h"

void qw_kernels_init_avx2(qw_kernels *t)
{
    qw_act_init_avx2(t);
    qw_gemm_32_init_avx2(t);
    qw_gemm_256_init_avx2(t);
    qw_gemm_book_init_avx2(t);
    qw_gemm_float_init_avx2(t);
    qw_float_init_avx2(t);
    qw_delta_init_avx2(t);
    qw_attn_f32_init_avx2(t);
    qw_attn_i16_init_avx2(t);
}
