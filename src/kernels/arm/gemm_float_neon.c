/* gemm_float_neon.c: matrix products with float weights with AArch64 Advanced SIMD. A row is a lane: its sum is one
 * chain of fused multiply-adds in order of k. A group's 16 rows are four registers, up to four columns a tile; elements
 * of k come in pairs (pack_layout.h). Bits as ref/gemm_float_ref.c. Any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/arm/gemm_tiles.h"

enum { N_MAX = 4 };

/* Weights of element e of a pair, a quad of rows. */
TILE_INLINE float32x4_t quad_weights(qw_pack form, const uint8_t *pair, int q, int e)
{
    if (form == QW_PACK_F32) return vreinterpretq_f32_u8(vld1q_u8(pair + e * QW_LINE + q * TILE_QUAD_BYTES));
    if (form == QW_PACK_F16) return quad_halves(pair + e * QW_HALF_LINE, q);
    uint32x4_t both = vreinterpretq_u32_u8(vld1q_u8(pair + q * TILE_QUAD_BYTES));
    return vreinterpretq_f32_u32(e == 0 ? vshlq_n_u32(both, 16) : vandq_u32(both, vdupq_n_u32(0xffff0000u)));
}

TILE_INLINE void tile_float(qw_pack form, int N, const uint8_t *group, size_t n_pairs, const uint8_t *act,
                            size_t act_bytes, float *out, size_t ld_out)
{
    const size_t pair_bytes = form == QW_PACK_F32 ? 2 * QW_LINE : QW_LINE;
    const float *x[N_MAX];
    float32x4_t acc[N_MAX][TILE_QUADS];
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        x[n] = (const float *)(const void *)(act + (size_t)n * act_bytes);
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) acc[n][q] = vdupq_n_f32(0.0f);
    }
    for (size_t i = 0; i < n_pairs; i++, group += pair_bytes) {
        float32x2_t pair[N_MAX];
        TILE_UNROLL
        for (int n = 0; n < N; n++) pair[n] = vld1_f32(x[n] + 2 * i);
        TILE_UNROLL
        for (int e = 0; e < 2; e++) {
            TILE_UNROLL
            for (int q = 0; q < TILE_QUADS; q++) {
                float32x4_t w = quad_weights(form, group, q, e);
                TILE_UNROLL
                for (int n = 0; n < N; n++)
                    acc[n][q] = e == 0 ? vfmaq_lane_f32(acc[n][q], w, pair[n], 0)
                                       : vfmaq_lane_f32(acc[n][q], w, pair[n], 1);
            }
        }
    }
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) vst1q_f32(out + (size_t)n * ld_out + 4 * q, acc[n][q]);
    }
}

#define FLOAT_SLOT(name, form)                                                                                        \
    TILE_INSTANCE(name, form, tile_float, 1)                                                                          \
    TILE_INSTANCE(name, form, tile_float, 2)                                                                          \
    TILE_INSTANCE(name, form, tile_float, 3)                                                                          \
    TILE_INSTANCE(name, form, tile_float, 4)                                                                          \
    static tile_fn *const name##_tiles[] = {NULL, name##_x1, name##_x2, name##_x3, name##_x4};                        \
    static void gemm_##name(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,            \
                            float *out, size_t ld_out)                                                                \
    {                                                                                                                 \
        TILE_WALK(name, form, qw_float_elements(k) / 2);                                                              \
    }
FLOAT_SLOT(f32, QW_PACK_F32)
FLOAT_SLOT(f16, QW_PACK_F16)
FLOAT_SLOT(bf16, QW_PACK_BF16)

void qw_gemm_float_init_neon(qw_kernels *t)
{
    t->gemm[QW_PACK_F32] = gemm_f32;
    t->gemm[QW_PACK_F16] = gemm_f16;
    t->gemm[QW_PACK_BF16] = gemm_bf16;
}
