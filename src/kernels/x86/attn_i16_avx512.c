/* attn_i16_avx512.c: integer attention with AVX-512 without VNNI. Any thread. */
#include <immintrin.h>

#define ATTN_DOT(sum, a, b) _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
#include "kernels/x86/attn_i16_avx512.h"

void qw_attn_i16_init_avx512(qw_kernels *t)
{
    t->attn_i16 = attn_i16;
}
