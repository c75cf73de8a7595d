/* gemm_dotprod.c: quantised matrix products with FEAT_DotProd: SDOT multiplies 4 rows x 4 k of weights with 4
 * activations, a lane of a register, and adds them to exact int32 lanes, one a row. Weights below 128 are used as they
 * are: the offset of signed ones is in the sum's start. Bits as ref/gemm_ref.c. Any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/arm/gemm_tiles.h"

enum { N_MAX = 4, NARROW = 0, WIDE = 0 };

/* See gemm_dot.h. The instruction wants a literal lane. */
TILE_INLINE void dot_pair(int width, int N, int32x4_t sum[][TILE_QUADS], int q, int8x16_t lo, int8x16_t hi,
                          const int8x16_t *a, int lane)
{
    (void)width;
    TILE_UNROLL
    for (int n = 0; n < N; n++)
        sum[n][q] = lane == 0 ? vdotq_laneq_s32(sum[n][q], lo, a[n], 0) : vdotq_laneq_s32(sum[n][q], lo, a[n], 2);
    TILE_UNROLL
    for (int n = 0; n < N; n++)
        sum[n][q] = lane == 0 ? vdotq_laneq_s32(sum[n][q], hi, a[n], 1) : vdotq_laneq_s32(sum[n][q], hi, a[n], 3);
}

#include "kernels/arm/gemm_dot.h"

TILE_FORMS(GEMM_DOT_SLOT, dotprod)

void qw_gemm_init_dotprod(qw_kernels *t)
{
    TILE_FORMS(TILE_SET, dotprod)
}
