/* attn_i16_avx512vnni.c: integer attention with AVX-512 VNNI. Any thread. */
#include <immintrin.h>

#define ATTN_DOT(sum, a, b) _mm512_dpwssd_epi32(sum, a, b)
#include "kernels/x86/attn_i16_avx512.h"

void qw_attn_i16_init_avx512_vnni(qw_kernels *t)
{
    t->attn_i16 = attn_i16;
}
