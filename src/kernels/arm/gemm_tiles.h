/* gemm_tiles.h: what the AArch64 matrix products share: the walk over groups and column tiles, and how weights, scales
 * and minima come out of a packed group.
 *
 * A tile function multiplies one group (16 rows) with N columns; N is a compile-time constant of each instance, so that
 * its sums stay in registers. One column's sums never depend on N or on the walk. A 64-byte word of a group, 16 rows x
 * 4 k, is four registers, the quads: quad q holds rows 4q..4q+3. Included by one file per level; everything is static.
 * Any thread.
 */
#ifndef QW_KERNELS_ARM_GEMM_TILES_H
#define QW_KERNELS_ARM_GEMM_TILES_H

#include <arm_neon.h>
#include <string.h>

#include "kernels/pack_layout.h"

#define TILE_INLINE static inline __attribute__((always_inline))

/* Loops over columns, quads and words have constant counts and must vanish, or sums would live in memory. */
#if defined(__clang__)
#define TILE_UNROLL _Pragma("clang loop unroll(full)")
#define TILE_ROLLED _Pragma("clang loop unroll(disable)")
#else
#define TILE_UNROLL _Pragma("GCC unroll 16")
#define TILE_ROLLED _Pragma("GCC unroll 1")
#endif

enum {
    TILE_QUADS = 4,              /* registers of 4 rows in a group */
    TILE_QUAD_BYTES = 16,
    TILE_CHUNK_BYTES = 192 << 10 /* weights that several column tiles read again: part of an L2 cache */
};

/* One packed group times the N columns whose records start at act, act_bytes apart: 16 floats a column into
 * out [N, ld_out]. */
typedef void tile_fn(const uint8_t *group, size_t n_blocks, const uint8_t *act, size_t act_bytes, float *out,
                     size_t ld_out);

/* tiles [1..n_max]: instances. Columns go in the fewest tiles, split evenly (9 columns in tiles of at most 8: 5 + 4).
 * Tiles are outside, the groups of a chunk inside: the weights come again from L2, one tile's activations stay in L1. */
static void tile_gemm(tile_fn *const *tiles, size_t n_max, qw_pack form, size_t n_blocks, const uint8_t *packed,
                      size_t n_groups, size_t k, const uint8_t *act, size_t n_cols, float *out, size_t ld_out)
{
    size_t group_bytes = qw_pack_group_bytes(form, k), act_bytes = qw_act_bytes(qw_pack_act(form), k);
    size_t n_tiles = (n_cols + n_max - 1) / n_max, chunk = TILE_CHUNK_BYTES / group_bytes + 1;
    if (n_tiles == 1) chunk = n_groups;
    for (size_t first = 0; first < n_groups; first += chunk) {
        size_t end = n_groups - first < chunk ? n_groups : first + chunk;
        for (size_t t = 0, c = 0, n; t < n_tiles; t++, c += n) {
            n = (n_cols - c + n_tiles - t - 1) / (n_tiles - t);
            for (size_t g = first; g < end; g++)
                tiles[n](packed + g * group_bytes, n_blocks, act + c * act_bytes, act_bytes,
                         out + c * ld_out + g * QW_GROUP_ROWS, ld_out);
        }
    }
}

/* One instance of a tile template `tile(form, N, ...)`, and the slot that walks over an array of them. */
#define TILE_INSTANCE(name, form, tile, n)                                                                             \
    static void name##_x##n(const uint8_t *group, size_t n_blocks, const uint8_t *act, size_t act_bytes, float *out,   \
                            size_t ld_out)                                                                             \
    {                                                                                                                  \
        tile(form, n, group, n_blocks, act, act_bytes, out, ld_out);                                                   \
    }
#define TILE_WALK(name, form, n_blocks)                                                                                \
    tile_gemm(name##_tiles, sizeof name##_tiles / sizeof name##_tiles[0] - 1, form, n_blocks, packed, n_groups, k,     \
              act, n_cols, out, ld_out)

/* The slots that the level above uses too, for fewer columns than its tiles want. */
qw_gemm_fn qw_gemm_q4_0_dotprod, qw_gemm_q5_0_dotprod, qw_gemm_q8_0_dotprod;
qw_gemm_fn qw_gemm_q4_k_dotprod, qw_gemm_q5_k_dotprod, qw_gemm_q6_k_dotprod;

/* An array that is touched once a (sub-)block: in memory when more than two columns need the registers for their sums. */
#define TILE_IN_MEMORY(N, array)                   \
    do {                                           \
        if ((N) > 2) __asm__("" : "+m"(array));    \
    } while (0)

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* How the bits above the nibble are stored. */
enum { HIGH_NONE, HIGH_1, HIGH_2 };

/* x >> by: the instruction wants a literal. */
TILE_INLINE uint8x16_t shifted_down(uint8x16_t x, int by)
{
    switch (by) {
    case 0: return x;
    case 1: return vshrq_n_u8(x, 1);
    case 2: return vshrq_n_u8(x, 2);
    case 3: return vshrq_n_u8(x, 3);
    case 4: return vshrq_n_u8(x, 4);
    case 5: return vshrq_n_u8(x, 5);
    case 6: return vshrq_n_u8(x, 6);
    default: return vshrq_n_u8(x, 7);
    }
}

/* One quad of word j: the low nibbles of x with field j of the line of high bits over them. */
TILE_INLINE uint8x16_t with_high(int high, uint8x16_t x, uint8x16_t line, int j)
{
    if (high == HIGH_NONE) return vandq_u8(x, vdupq_n_u8(15));
    x = vsliq_n_u8(x, shifted_down(line, high == HIGH_1 ? j : 2 * (j % 4)), 4);
    return vandq_u8(x, vdupq_n_u8(high == HIGH_1 ? 0x1f : 0x3f));
}

/* A quad of words 2i and 2i + 1 of 32 elements. lines: the lines of high bits, then the nibble lines. */
TILE_INLINE uint8x16x2_t unpack_words(int high, const uint8_t *lines, int i, int q)
{
    const uint8_t *high_line = lines + (high == HIGH_2 ? i / 2 * QW_LINE : 0) + q * TILE_QUAD_BYTES;
    const uint8_t *nibbles = lines + ((high == HIGH_NONE ? 0 : high == HIGH_1 ? 1 : 2) + i) * QW_LINE;
    uint8x16_t x = vld1q_u8(nibbles + q * TILE_QUAD_BYTES), line = high == HIGH_NONE ? x : vld1q_u8(high_line);
    uint8x16_t upper = vshrq_n_u8(x, 4);
    uint8x16x2_t w = {{with_high(high, x, line, 2 * i),
                       high == HIGH_NONE ? upper : with_high(high, upper, line, 2 * i + 1)}};
    return w;
}

/* ---- scales and minima ------------------------------------------------------------------------------------------- */

/* A quad of 16 half scales. */
TILE_INLINE float32x4_t quad_halves(const void *halves, int q)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)halves + 4 * q)));
}

/* Scales of sub-block s (32 elements) of Q4_K and Q5_K, and s (16 elements) of Q6_K, as floats: a byte of each row's
 * 32 bits. */
TILE_INLINE float32x4_t quad_scale_kq(const qw_packed_kq *head, int s, int q)
{
    uint32x4_t x = vreinterpretq_u32_u8(vld1q_u8(head->scales[s / 4] + q * TILE_QUAD_BYTES));
    x = vshlq_u32(x, vdupq_n_s32(-8 * (s % 4)));
    return vcvtq_f32_u32(vandq_u32(x, vdupq_n_u32(63)));
}

TILE_INLINE float32x4_t quad_scale_q6k(const qw_packed_q6k *head, int s, int q)
{
    int32x4_t x = vreinterpretq_s32_s8(vld1q_s8(head->scales[s / 4] + q * TILE_QUAD_BYTES));
    return vcvtq_f32_s32(vshrq_n_s32(vshlq_s32(x, vdupq_n_s32(24 - 8 * (s % 4))), 24));
}

/* Minima of sub-blocks 0..3 and of 4..7: two words of weights, so to speak. */
TILE_INLINE uint8x16x2_t quad_minima(const qw_packed_kq *head, int q)
{
    uint8x16_t l0 = vld1q_u8(head->scales[0] + q * TILE_QUAD_BYTES);
    uint8x16_t l1 = vld1q_u8(head->scales[1] + q * TILE_QUAD_BYTES);
    uint8x16_t l2 = vld1q_u8(head->scales[2] + q * TILE_QUAD_BYTES);
    uint8x16_t high = vsliq_n_u8(vshrq_n_u8(l0, 6), vshrq_n_u8(l1, 6), 2);
    uint8x16x2_t m = {{vandq_u8(l2, vdupq_n_u8(63)), vsliq_n_u8(high, vshrq_n_u8(l2, 6), 4)}};
    return m;
}

/* And their activations: a column's sums of 32 as bytes, sum = 128 * high + low. Words 0 and 1 are the low bytes of sums
 * 0..3 and 4..7, words 2 and 3 the high ones. |sum| <= 4064, so both fit 8 bits signed. */
TILE_INLINE int8x16_t sum_bytes(const qw_act256 *a)
{
    static const uint8_t order[16] = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    int16x8_t sum = vld1q_s16(a->sum32[0]);
    int16x8_t low = vandq_s16(sum, vdupq_n_s16(127)), high = vshrq_n_s16(sum, 7);
    int8x16_t bytes = vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high));
    return vqtbl1q_s8(bytes, vld1q_u8(order));
}

#endif
