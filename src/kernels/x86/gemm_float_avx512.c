/* gemm_float_avx512.c: matrix products with float weights with AVX-512: a group's 16 rows are one register, up to 8
 * columns and two groups a tile. Bits as ref/gemm_float_ref.c. Any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/x86/gemm_tiles.h"

typedef __m512 float_vec;
enum { FLOAT_LANES = 16, FLOAT_N_MAX = 8 };

TILE_INLINE float_vec float_load(const void *p)
{
    return _mm512_loadu_ps(p);
}

TILE_INLINE void float_store(float *p, float_vec x)
{
    _mm512_storeu_ps(p, x);
}

TILE_INLINE float_vec float_set(float x)
{
    return _mm512_set1_ps(x);
}

TILE_INLINE float_vec float_fma(float_vec a, float_vec b, float_vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

TILE_INLINE float_vec float_weights(qw_pack form, const uint8_t *pair, int v, size_t e)
{
    (void)v;
    if (form == QW_PACK_F32) return float_load(pair + e * QW_LINE);
    if (form == QW_PACK_F16)
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(pair + e * QW_HALF_LINE)));
    __m512i both = _mm512_loadu_si512(pair);
    return _mm512_castsi512_ps(e == 0 ? _mm512_slli_epi32(both, 16)
                                      : _mm512_and_si512(both, _mm512_set1_epi32((int)0xffff0000)));
}

#include "kernels/x86/gemm_float.h"

FLOAT_TILES_8(f32, QW_PACK_F32, 1)
FLOAT_TILES_8(f16, QW_PACK_F16, 1)
FLOAT_TILES_8(bf16, QW_PACK_BF16, 1)
FLOAT_TILES_8(f32_pair, QW_PACK_F32, 2)
FLOAT_TILES_8(f16_pair, QW_PACK_F16, 2)
FLOAT_TILES_8(bf16_pair, QW_PACK_BF16, 2)
FLOAT_SLOT(f32, QW_PACK_F32)
FLOAT_SLOT(f16, QW_PACK_F16)
FLOAT_SLOT(bf16, QW_PACK_BF16)

void qw_gemm_float_init_avx512(qw_kernels *t)
{
    t->gemm[QW_PACK_F32] = gemm_f32;
    t->gemm[QW_PACK_F16] = gemm_f16;
    t->gemm[QW_PACK_BF16] = gemm_bf16;
}
