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
#include <stdbool.h>
#include <string.h>

#include "kernels/pack_layout.h"
#include "kernels/tile.h"

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
 * Tiles are outside, the groups of a chunk inside: weights come again from L2, one tile's activations stay in L1. */
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

/* All quantised forms: X(level, name, form, block_n). */
#define TILE_FORMS(X, level)                   \
    X(level, q4_0, QW_PACK_Q4_0, 32)           \
    X(level, q4_1, QW_PACK_Q4_1, 32)           \
    X(level, q5_0, QW_PACK_Q5_0, 32)           \
    X(level, q5_1, QW_PACK_Q5_1, 32)           \
    X(level, q8_0, QW_PACK_Q8_0, 32)           \
    X(level, iq4_nl, QW_PACK_IQ4_NL, 32)       \
    X(level, mxfp4, QW_PACK_MXFP4, 32)         \
    X(level, q2_k, QW_PACK_Q2_K, 256)          \
    X(level, q3_k, QW_PACK_Q3_K, 256)          \
    X(level, q4_k, QW_PACK_Q4_K, 256)          \
    X(level, q5_k, QW_PACK_Q5_K, 256)          \
    X(level, q6_k, QW_PACK_Q6_K, 256)          \
    X(level, iq4_xs, QW_PACK_IQ4_XS, 256)

/* The slots of level dotprod: the level above has them do fewer columns than its tiles want. */
#define TILE_DECLARE(level, name, form, block_n) qw_gemm_fn qw_gemm_##name##_##level;
TILE_FORMS(TILE_DECLARE, dotprod)

#define TILE_SET(level, name, form, block_n) t->gemm[form] = qw_gemm_##name##_##level;

/* An array that is touched once a (sub-)block: in memory when more than two columns need registers for their sums. */
#define TILE_IN_MEMORY(N, array)                   \
    do {                                           \
        if ((N) > 2) __asm__("" : "+m"(array));    \
    } while (0)

/* ---- weights ---------------------------------------------------------------------------------------------------- */

/* How a quant is stored: bytes; a nibble, with one or two bits more in lines of their own; a nibble that is looked up
 * in a table; two bits, with a third one in a line of its own. */
typedef enum quant_kind { BYTES, NIBBLES, NIBBLES_1, NIBBLES_2, BOOK, PAIRS, PAIRS_1 } quant_kind;

TILE_INLINE quant_kind kind_of(qw_pack form)
{
    switch (form) {
    case QW_PACK_Q8_0: return BYTES;
    case QW_PACK_Q5_0:
    case QW_PACK_Q5_1:
    case QW_PACK_Q5_K: return NIBBLES_1;
    case QW_PACK_Q6_K: return NIBBLES_2;
    case QW_PACK_IQ4_NL:
    case QW_PACK_IQ4_XS:
    case QW_PACK_MXFP4: return BOOK;
    case QW_PACK_Q2_K: return PAIRS;
    case QW_PACK_Q3_K: return PAIRS_1;
    default: return NIBBLES;
    }
}

/* Bytes of 32 elements. */
TILE_INLINE size_t quant_bytes(quant_kind kind)
{
    switch (kind) {
    case BYTES: return QW_Q8_BYTES;
    case NIBBLES_1: return QW_Q5_BYTES;
    case NIBBLES_2: return QW_Q6_BYTES;
    case PAIRS: return QW_Q2_BYTES;
    case PAIRS_1: return QW_Q3_BYTES;
    default: return QW_Q4_BYTES;
    }
}

/* Weights come out of a group unsigned, 2^n above the signed ones; where that is 128 a level may want them signed. */
TILE_INLINE bool offset_is_128(qw_pack form)
{
    return form == QW_PACK_Q8_0 || form == QW_PACK_IQ4_NL || form == QW_PACK_IQ4_XS;
}

TILE_INLINE uint8x16_t book_of(qw_pack form)
{
    return vld1q_u8(form == QW_PACK_MXFP4 ? qw_book_mxfp4 : qw_book_iq4);
}

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

/* Bits 0.. of x below bit `to`, field `field` of `width` bits of the line over them. */
TILE_INLINE uint8x16_t with_field(uint8x16_t x, const uint8_t *line, int field, int width, int to)
{
    uint8x16_t over = shifted_down(vld1q_u8(line), field * width);
    x = to == 2 ? vsliq_n_u8(x, over, 2) : vsliq_n_u8(x, over, 4);
    return vandq_u8(x, vdupq_n_u8((uint8_t)((1 << (to + width)) - 1)));
}

/* A quad of word j of 32 elements, unsigned. lines: where they begin, at the quad's bytes; book: for BOOK. */
TILE_INLINE uint8x16_t quad_word(quant_kind kind, const uint8_t *lines, int j, uint8x16_t book)
{
    const uint8_t *nibbles = lines + (kind == NIBBLES_1 ? 1 : kind == NIBBLES_2 ? 2 : 0) * QW_LINE + j / 2 * QW_LINE;
    if (kind == BYTES) return vld1q_u8(lines + j * QW_LINE);
    if (kind == PAIRS) return vandq_u8(shifted_down(vld1q_u8(lines + j / 4 * QW_LINE), 2 * (j % 4)), vdupq_n_u8(3));
    if (kind == PAIRS_1)
        return with_field(shifted_down(vld1q_u8(lines + QW_LINE + j / 4 * QW_LINE), 2 * (j % 4)), lines, j, 1, 2);
    uint8x16_t x = vld1q_u8(nibbles);
    if (j % 2 == 1) x = vshrq_n_u8(x, 4);
    if (kind == NIBBLES_1) return with_field(x, lines, j, 1, 4);
    if (kind == NIBBLES_2) return with_field(x, lines + j / 4 * QW_LINE, j % 4, 2, 4);
    if (j % 2 == 0) x = vandq_u8(x, vdupq_n_u8(15));
    return kind == BOOK ? vqtbl1q_u8(book, x) : x;
}

/* ---- scales and minima ------------------------------------------------------------------------------------------- */

/* A quad of 16 half scales. */
TILE_INLINE float32x4_t quad_halves(const void *halves, int q)
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)halves + 4 * q)));
}

/* A quad of MXFP4's scales: half of 2^(e - 127), below e = 2 a subnormal number. */
TILE_INLINE float32x4_t quad_exponents(const uint8_t *exponents, int q)
{
    uint32_t four;
    memcpy(&four, exponents + 4 * q, sizeof four);
    uint32x4_t e = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
    uint32x4_t normal = vshlq_n_u32(vsubq_u32(e, vdupq_n_u32(1)), 23);
    uint32x4_t subnormal = vshlq_u32(vdupq_n_u32(0x00200000), vreinterpretq_s32_u32(e));
    return vreinterpretq_f32_u32(vbslq_u32(vcltq_u32(e, vdupq_n_u32(2)), subnormal, normal));
}

/* Byte i of each row's 32 bits of a line, at the quad's bytes. */
TILE_INLINE uint32x4_t quad_byte(const uint8_t *line, int i)
{
    uint32x4_t x = vshlq_u32(vreinterpretq_u32_u8(vld1q_u8(line)), vdupq_n_s32(-8 * i));
    return vandq_u32(x, vdupq_n_u32(255));
}

/* Q3_K: six bits, below 12 those of a byte, from there on the upper two of three. */
TILE_INLINE uint32x4_t quad_scale_q3k(const uint8_t *lines, int s)
{
    if (s < 12) return vandq_u32(quad_byte(lines + s / 4 * QW_LINE, s % 4), vdupq_n_u32(63));
    uint32x4_t x = vshrq_n_u32(quad_byte(lines, s % 4), 6);
    x = vsliq_n_u32(x, vshrq_n_u32(quad_byte(lines + QW_LINE, s % 4), 6), 2);
    return vsliq_n_u32(x, vshrq_n_u32(quad_byte(lines + 2 * QW_LINE, s % 4), 6), 4);
}

TILE_INLINE uint32x4_t quad_scale_iq4xs(const qw_packed_iq4xs *head, int s, int q)
{
    uint32x4_t low = vshlq_u32(vld1q_u32(head->scale_low + 4 * q), vdupq_n_s32(-4 * s));
    uint32x4_t high = vshlq_u32(vmovl_u16(vld1_u16(head->scale_high + 4 * q)), vdupq_n_s32(-2 * s));
    low = vandq_u32(low, vdupq_n_u32(15));
    return vorrq_u32(low, vshlq_n_u32(vandq_u32(high, vdupq_n_u32(3)), 4));
}

/* A quad of the integer scales of sub-block s of a 256-block. */
TILE_INLINE int32x4_t quad_scale(qw_pack form, const uint8_t *block, int s, int q)
{
    const size_t lines = form == QW_PACK_Q6_K || form == QW_PACK_Q3_K ? 0 : 2 * QW_HALF_LINE;
    const uint8_t *line = block + lines + s / 4 * QW_LINE + q * TILE_QUAD_BYTES;
    const int32x4_t offset = vdupq_n_s32(32);
    uint32x4_t x;
    switch (form) {
    case QW_PACK_Q3_K:
        x = quad_scale_q3k(block + q * TILE_QUAD_BYTES, s);
        return vsubq_s32(vreinterpretq_s32_u32(x), offset);
    case QW_PACK_IQ4_XS:
        x = quad_scale_iq4xs((const qw_packed_iq4xs *)(const void *)block, s, q);
        return vsubq_s32(vreinterpretq_s32_u32(x), offset);
    case QW_PACK_Q6_K:
        x = vshlq_u32(vreinterpretq_u32_u8(vld1q_u8(line)), vdupq_n_s32(24 - 8 * (s % 4)));
        return vshrq_n_s32(vreinterpretq_s32_u32(x), 24);
    default:
        return vreinterpretq_s32_u32(vandq_u32(quad_byte(line, s % 4), vdupq_n_u32(form == QW_PACK_Q2_K ? 15 : 63)));
    }
}

/* What is in front of the quants of a 256-block. */
TILE_INLINE size_t head_bytes_256(qw_pack form)
{
    switch (form) {
    case QW_PACK_Q2_K: return sizeof(qw_packed_q2k) - QW_SUBS * QW_Q2_BYTES;
    case QW_PACK_Q3_K: return sizeof(qw_packed_q3k) - QW_SUBS * QW_Q3_BYTES;
    case QW_PACK_Q6_K: return sizeof(qw_packed_q6k) - QW_SUBS * QW_Q6_BYTES;
    case QW_PACK_IQ4_XS: return sizeof(qw_packed_iq4xs) - QW_SUBS * QW_Q4_BYTES;
    default: return sizeof(qw_packed_kq);
    }
}

/* Sub-blocks that have a scale, in 32 elements. */
TILE_INLINE int parts_of(qw_pack form)
{
    return form == QW_PACK_Q2_K || form == QW_PACK_Q3_K || form == QW_PACK_Q6_K ? 2 : 1;
}

/* Scales are applied to floats, where sums with their scales would be wider than what they gain; else to integers. */
TILE_INLINE bool scales_floats(qw_pack form)
{
    return form == QW_PACK_IQ4_XS;
}

TILE_INLINE bool has_minima(qw_pack form)
{
    return form == QW_PACK_Q2_K || form == QW_PACK_Q4_K || form == QW_PACK_Q5_K;
}

/* Where the sum of sub-block s begins: at the offset of its weights times the sum of its activations. */
TILE_INLINE int32_t start_256(qw_pack form, bool is_signed, const qw_act256 *a, int s)
{
    if (form == QW_PACK_Q6_K) return a->neg_sum16[s];     /* 32 */
    if (form == QW_PACK_Q3_K) return a->neg_sum16[s] / 8; /* 4 */
    if (form != QW_PACK_IQ4_XS || is_signed) return 0;
    return 4 * (a->neg_sum16[2 * s] + a->neg_sum16[2 * s + 1]); /* 128 */
}

/* The same of a block of 32. */
TILE_INLINE int32_t start_32(qw_pack form, bool is_signed, const qw_act32 *a)
{
    switch (form) {
    case QW_PACK_Q4_0: return 8 * a->neg_sum;
    case QW_PACK_Q5_0:
    case QW_PACK_MXFP4: return 16 * a->neg_sum;
    case QW_PACK_Q8_0:
    case QW_PACK_IQ4_NL: return is_signed ? 0 : 128 * a->neg_sum;
    default: return 0;
    }
}

/* Minima of 256 elements are multiplied like weights: word v holds those of four sub-blocks. Q2_K has four words, Q4_K
 * and Q5_K two. A quad of words 2i and 2i + 1. */
TILE_INLINE uint8x16x2_t quad_minima(qw_pack form, const uint8_t *block, int i, int q)
{
    const uint8_t *lines = block + 2 * QW_HALF_LINE + q * TILE_QUAD_BYTES;
    uint8x16x2_t m;
    if (form == QW_PACK_Q2_K) {
        m.val[0] = vshrq_n_u8(vld1q_u8(lines + 2 * i * QW_LINE), 4);
        m.val[1] = vshrq_n_u8(vld1q_u8(lines + (2 * i + 1) * QW_LINE), 4);
        return m;
    }
    uint8x16_t l0 = vld1q_u8(lines), l1 = vld1q_u8(lines + QW_LINE), l2 = vld1q_u8(lines + 2 * QW_LINE);
    uint8x16_t high = vsliq_n_u8(vshrq_n_u8(l0, 6), vshrq_n_u8(l1, 6), 2);
    m.val[0] = vandq_u8(l2, vdupq_n_u8(63));
    m.val[1] = vsliq_n_u8(high, vshrq_n_u8(l2, 6), 4);
    return m;
}

/* What they are multiplied with: a column's sums as bytes, sum = 128 * high + low; |sum| <= 4064, so both fit 8 bits
 * signed. Words 0 and 1 are the sums of minima's words 0 and 1, words 2 and 3 those of 2 and 3 (Q2_K). */
typedef struct sum_bytes {
    int8x16_t low, high;
} sum_bytes;

TILE_INLINE sum_bytes sums_of(qw_pack form, const qw_act256 *a)
{
    static const uint8_t order[16] = {0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15};
    int16x8_t s0 = vld1q_s16(form == QW_PACK_Q2_K ? a->sum16[0] : a->sum32[0]);
    int16x8_t s1 = form == QW_PACK_Q2_K ? vld1q_s16(a->sum16[4]) : s0, seven = vdupq_n_s16(127);
    int8x16_t low = vuzp1q_s8(vreinterpretq_s8_s16(vandq_s16(s0, seven)), vreinterpretq_s8_s16(vandq_s16(s1, seven)));
    int8x16_t high = vuzp1q_s8(vreinterpretq_s8_s16(vshrq_n_s16(s0, 7)), vreinterpretq_s8_s16(vshrq_n_s16(s1, 7)));
    sum_bytes out = {vqtbl1q_s8(low, vld1q_u8(order)), vqtbl1q_s8(high, vld1q_u8(order))};
    return out;
}

/* ---- the parts of a block of 32 ---------------------------------------------------------------------------------- */

TILE_INLINE bool has_minimum(qw_pack form)
{
    return form == QW_PACK_Q4_1 || form == QW_PACK_Q5_1;
}

/* Where a group's blocks of 32 begin, and how far apart they and the scales in front of all of them are. */
typedef struct blocks_32 {
    size_t first, front, head, bytes;
} blocks_32;

TILE_INLINE blocks_32 layout_32(qw_pack form, size_t n_blocks)
{
    blocks_32 l = {.head = has_minimum(form) ? sizeof(qw_packed_q1) : 0};
    l.bytes = l.head + quant_bytes(kind_of(form));
    if (has_minimum(form)) return l;
    l.front = form == QW_PACK_MXFP4 ? QW_BYTE_LINE : QW_HALF_LINE;
    l.first = form == QW_PACK_MXFP4 ? qw_exponents_bytes(n_blocks) : qw_scales_bytes(n_blocks);
    return l;
}

/* A quad of the block's scales: from those in front of all blocks, or from the block's head. */
TILE_INLINE float32x4_t quad_scale_32(qw_pack form, const uint8_t *front, const uint8_t *block, int q)
{
    if (form == QW_PACK_MXFP4) return quad_exponents(front, q);
    return quad_halves(has_minimum(form) ? block : front, q);
}

#endif
