/* init_neon.c: the slots of level "neon" (AArch64 Advanced SIMD). Called by qw_kernels_get() alone, after the
 * levels below it. Any thread.
 */
#include "kernels/kernels_private.h"

void qw_kernels_init_neon(qw_kernels *t)
{
    qw_gemm_init_neon(t);
    qw_gemm_float_init_neon(t);
    qw_float_init_neon(t);
    qw_delta_init_neon(t);
    qw_attn_f32_init_neon(t);
    qw_attn_i16_init_neon(t);
}
