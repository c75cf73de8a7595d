/* init_avx512vnni.c: the slots of level "avx512vnni" (AVX-512 with VNNI). Called by qw_kernels_get() alone, after the
 * levels below it. Any thread.
 */
#include "kernels/kernels_private.h"

void qw_kernels_init_avx512_vnni(qw_kernels *t)
{
    qw_gemm_init_avx512_vnni(t);
    qw_attn_i16_init_avx512_vnni(t);
}
