/* gemm_float_avx2.c: matrix products with float weights with AVX2: a group's 16 rows are two registers, up to 6 columns
 * a tile, and two groups for the fewest columns, so that there are sums enough to hide an addition's latency. Bits as
 * ref/gemm_float_ref.c. Any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/x86/gemm_tiles.h"

typedef __m256 float_vec;
enum { FLOAT_LANES = 8, FLOAT_N_MAX = 6 };

TILE_INLINE float_vec float_load(const void *p)
{
    return _mm256_loadu_ps(p);
}

TILE_INLINE void float_store(float *p, float_vec x)
{
    _mm256_storeu_ps(p, x);
}

TILE_INLINE float_vec float_set(float x)
{
    return _mm256_set1_ps(x);
}

TILE_INLINE float_vec float_fma(float_vec a, float_vec b, float_vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

TILE_INLINE float_vec float_weights(qw_pack form, const uint8_t *pair, int v, size_t e)
{
    if (form == QW_PACK_F32) return float_load(pair + e * QW_LINE + 32 * v);
    if (form == QW_PACK_F16)
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(pair + e * QW_HALF_LINE + 16 * v)));
    __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)(pair + 32 * v));
    return _mm256_castsi256_ps(e == 0 ? _mm256_slli_epi32(both, 16)
                                      : _mm256_and_si256(both, _mm256_set1_epi32((int)0xffff0000)));
}

#include "kernels/x86/gemm_float.h"

FLOAT_TILES_6(f32, QW_PACK_F32, 1)
FLOAT_TILES_6(f16, QW_PACK_F16, 1)
FLOAT_TILES_6(bf16, QW_PACK_BF16, 1)
FLOAT_TILES_2(f32_pair, QW_PACK_F32, 2)
FLOAT_TILES_2(f16_pair, QW_PACK_F16, 2)
FLOAT_TILES_2(bf16_pair, QW_PACK_BF16, 2)
FLOAT_SLOT(f32, QW_PACK_F32)
FLOAT_SLOT(f16, QW_PACK_F16)
FLOAT_SLOT(bf16, QW_PACK_BF16)

void qw_gemm_float_init_avx2(qw_kernels *t)
{
    t->gemm[QW_PACK_F32] = gemm_f32;
    t->gemm[QW_PACK_F16] = gemm_f16;
    t->gemm[QW_PACK_BF16] = gemm_bf16;
}
