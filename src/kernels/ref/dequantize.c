/* dequantize.c: stored blocks to floats, and the check for scales that are no numbers.
 *
 * Contract: the bits of every value are those of the `gguf` Python package, so each formula here has
 * its order of float32 operations. The inner loops run over a constant number of elements without a
 * branch, so that the compiler turns them into vector code: types without a packed product kernel are
 * multiplied through these functions. Rows are aligned as their block is (2 bytes; F32: 4). Layouts:
 * docs/blocks.md. Pure functions, any thread.
 */
#include "base/status.h"
#include "kernels/blocks.h"
#include "kernels/ref/codebook.h"
#include "kernels/ref/grids.h"
#include "kernels/ref/half.h"

typedef void dequantize_fn(const void *src, float *restrict y, size_t n_blocks);

/* ---- plain numbers: a block is one element ---------------------------------------------------- */

static void dequantize_f32(const void *src, float *restrict y, size_t n)
{
    memcpy(y, src, n * sizeof *y);
}

static void dequantize_f16(const void *src, float *restrict y, size_t n)
{
    const qw_half *x = src;
    for (size_t i = 0; i < n; i++) y[i] = half_to_f32(x[i]);
}

static void dequantize_bf16(const void *src, float *restrict y, size_t n)
{
    const uint16_t *x = src;
    for (size_t i = 0; i < n; i++) y[i] = bf16_to_f32(x[i]);
}

/* ---- blocks of 32 with one scale ---------------------------------------------------------------- */

/* Byte j of the 4-bit formats holds element j in its low and element j + 16 in its high nibble. A byte
 * array between, because compilers make better vector code of two short steps than of one long one. */
static inline void unpack_nibbles(const uint8_t qs[16], uint8_t q[32])
{
    for (int j = 0; j < 16; j++) q[j] = qs[j] & 15;
    for (int j = 0; j < 16; j++) q[j + 16] = qs[j] >> 4;
}

/* Adds the 32 fifth bits: element j's is bit j % 8 of byte j / 8. */
static inline void unpack_fifth(const uint8_t qh[4], uint8_t q[32])
{
    static const uint8_t BIT[32] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128,
                                    1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8_t spread[32];
    for (int i = 0; i < 4; i++) memset(spread + 8 * i, qh[i], 8);
    for (int j = 0; j < 32; j++) q[j] |= (spread[j] & BIT[j]) ? 16 : 0;
}

static void dequantize_q4_0(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_q4_0 *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++, y += 32) {
        float d = half_to_f32(b->d);
        uint8_t q[32];
        unpack_nibbles(b->qs, q);
        for (int j = 0; j < 32; j++) y[j] = d * (float)(q[j] - 8);
    }
}

static void dequantize_q4_1(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_q4_1 *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++, y += 32) {
        float d = half_to_f32(b->d), m = half_to_f32(b->m);
        uint8_t q[32];
        unpack_nibbles(b->qs, q);
        for (int j = 0; j < 32; j++) y[j] = d * (float)q[j] + m;
    }
}

static void dequantize_q5_0(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_q5_0 *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++, y += 32) {
        float d = half_to_f32(b->d);
        uint8_t q[32];
        unpack_nibbles(b->qs, q);
        unpack_fifth(b->qh, q);
        for (int j = 0; j < 32; j++) y[j] = d * (float)(q[j] - 16);
    }
}

static void dequantize_q5_1(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_q5_1 *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++, y += 32) {
        float d = half_to_f32(b->d), m = half_to_f32(b->m);
        uint8_t q[32];
        unpack_nibbles(b->qs, q);
        unpack_fifth(b->qh, q);
        for (int j = 0; j < 32; j++) y[j] = d * (float)q[j] + m;
    }
}

static void dequantize_q8_0(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_q8_0 *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++, y += 32) {
        float d = half_to_f32(b->d);
        for (int j = 0; j < 32; j++) y[j] = d * (float)b->qs[j];
    }
}

static void dequantize_iq4_nl(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_iq4_nl *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++, y += 32) {
        float d = half_to_f32(b->d);
        for (int j = 0; j < 16; j++) y[j] = d * (float)CODEBOOK_IQ4[b->qs[j] & 15];
        for (int j = 0; j < 16; j++) y[j + 16] = d * (float)CODEBOOK_IQ4[b->qs[j] >> 4];
    }
}

/* level = CODEBOOK_MXFP4[code] in byte arithmetic, which vector units can do: magnitudes 0..4 stand for
 * themselves, 5 6 7 for 6 8 12; bit 3 is the sign. */
static inline void mxfp4_levels(const uint8_t code[32], int8_t level[32])
{
    for (int j = 0; j < 32; j++) {
        int8_t magnitude = (int8_t)(code[j] & 7);
        magnitude = (int8_t)(magnitude + (magnitude > 4 ? 1 : 0) + (magnitude > 5 ? 1 : 0) +
                             (magnitude > 6 ? 3 : 0));
        level[j] = (int8_t)(code[j] > 7 ? -magnitude : magnitude);
    }
}

static void dequantize_mxfp4(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_mxfp4 *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++, y += 32) {
        float d = mxfp4_scale(b->e);
        uint8_t code[32];
        int8_t level[32];
        unpack_nibbles(b->qs, code);
        mxfp4_levels(code, level);
        for (int j = 0; j < 32; j++) y[j] = d * (float)level[j];
    }
}

/* ---- super-blocks of 256: sub-blocks with small integer scales of their own --------------------- */

static void dequantize_q2_k(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_q2_k *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        float d = half_to_f32(b->d), dmin = half_to_f32(b->dmin);
        for (int sub = 0; sub < 16; sub++, y += 16) {
            /* 128 elements share 32 bytes: 32 in the lowest bit pairs, the next 32 in the next pairs. */
            const uint8_t *qs = b->qs + (sub >> 3) * 32 + (sub & 1) * 16;
            int shift = (sub & 6); /* 2 * (sub % 8 / 2) */
            float dl = d * (float)(b->scales[sub] & 15), ml = dmin * (float)(b->scales[sub] >> 4);
            for (int j = 0; j < 16; j++) y[j] = dl * (float)((qs[j] >> shift) & 3) - ml;
        }
    }
}

/* Sixteen 6-bit scales: low nibbles in bytes 0..7 (scale i and i + 8 share byte i), the upper two bits
 * in bytes 8..11, bit pair i / 4 of byte 8 + i % 4. */
static inline void unpack_scales_q3_k(const uint8_t packed[12], int scales[16])
{
    for (int i = 0; i < 8; i++) scales[i] = packed[i] & 15;
    for (int i = 0; i < 8; i++) scales[i + 8] = packed[i] >> 4;
    for (int i = 0; i < 16; i++) scales[i] |= ((packed[8 + (i & 3)] >> (2 * (i >> 2))) & 3) << 4;
}

static void dequantize_q3_k(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_q3_k *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        float d = half_to_f32(b->d);
        int scales[16];
        unpack_scales_q3_k(b->scales, scales);
        for (int sub = 0; sub < 16; sub++, y += 16) {
            const uint8_t *qs = b->qs + (sub >> 3) * 32 + (sub & 1) * 16;
            const uint8_t *high = b->hmask + (sub & 1) * 16;
            int shift = (sub & 6), bit = sub >> 1;
            float dl = d * (float)(scales[sub] - 32);
            for (int j = 0; j < 16; j++) {
                int q = ((qs[j] >> shift) & 3) | (((high[j] >> bit) & 1) << 2);
                y[j] = dl * (float)(q - 4);
            }
        }
    }
}

/* Eight 6-bit scales and minima in 12 bytes: numbers 0..3 in the low six bits of bytes 0..3 and 4..7;
 * numbers 4..7 have their low nibbles in bytes 8..11 and their upper bits on top of the first ones. */
static inline void unpack_scales_q4_k(const uint8_t packed[12], int scales[8], int mins[8])
{
    for (int i = 0; i < 4; i++) {
        scales[i] = packed[i] & 63;
        mins[i] = packed[i + 4] & 63;
        scales[i + 4] = (packed[i + 8] & 15) | ((packed[i] >> 6) << 4);
        mins[i + 4] = (packed[i + 8] >> 4) | ((packed[i + 4] >> 6) << 4);
    }
}

static void dequantize_q4_k(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_q4_k *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        float d = half_to_f32(b->d), dmin = half_to_f32(b->dmin);
        int scales[8], mins[8];
        unpack_scales_q4_k(b->scales, scales, mins);
        for (int pair = 0; pair < 4; pair++, y += 64) {
            const uint8_t *qs = b->qs + 32 * pair;
            float d0 = d * (float)scales[2 * pair], m0 = dmin * (float)mins[2 * pair];
            float d1 = d * (float)scales[2 * pair + 1], m1 = dmin * (float)mins[2 * pair + 1];
            for (int j = 0; j < 32; j++) y[j] = d0 * (float)(qs[j] & 15) - m0;
            for (int j = 0; j < 32; j++) y[j + 32] = d1 * (float)(qs[j] >> 4) - m1;
        }
    }
}

static void dequantize_q5_k(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_q5_k *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        float d = half_to_f32(b->d), dmin = half_to_f32(b->dmin);
        int scales[8], mins[8];
        unpack_scales_q4_k(b->scales, scales, mins);
        for (int sub = 0; sub < 8; sub++, y += 32) {
            const uint8_t *qs = b->qs + 32 * (sub >> 1), *high = b->qh;
            int shift = 4 * (sub & 1);
            float dl = d * (float)scales[sub], ml = dmin * (float)mins[sub];
            for (int j = 0; j < 32; j++) {
                int q = ((qs[j] >> shift) & 15) | (((high[j] >> sub) & 1) << 4);
                y[j] = dl * (float)q - ml;
            }
        }
    }
}

static void dequantize_q6_k(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_q6_k *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        float d = half_to_f32(b->d);
        for (int sub = 0; sub < 16; sub++, y += 16) {
            /* Of 128 elements the first 64 are low nibbles of 64 bytes, the next 64 their high ones. */
            const uint8_t *low = b->ql + (sub >> 3) * 64 + (sub & 3) * 16;
            const uint8_t *high = b->qh + (sub >> 3) * 32 + (sub & 1) * 16;
            int low_shift = sub & 4, high_shift = sub & 6;
            float dl = d * (float)b->scales[sub];
            for (int j = 0; j < 16; j++) {
                int q = ((low[j] >> low_shift) & 15) | (((high[j] >> high_shift) & 3) << 4);
                y[j] = dl * (float)(q - 32);
            }
        }
    }
}

static void dequantize_iq4_xs(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_iq4_xs *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++) {
        float d = half_to_f32(b->d);
        for (int sub = 0; sub < 8; sub++, y += 32) {
            const uint8_t *qs = b->qs + 16 * sub;
            int scale = ((b->scales_l[sub >> 1] >> (4 * (sub & 1))) & 15) |
                        (((b->scales_h >> (2 * sub)) & 3) << 4);
            float dl = d * (float)(scale - 32);
            for (int j = 0; j < 16; j++) y[j] = dl * (float)CODEBOOK_IQ4[qs[j] & 15];
            for (int j = 0; j < 16; j++) y[j + 16] = dl * (float)CODEBOOK_IQ4[qs[j] >> 4];
        }
    }
}

/* ---- code books: a half, odd scales for 16, levels --------------------------------------------------- */

/* Every product is exact, so this order gives the bits of any other. */
static void dequantize_grid(qw_type type, const uint8_t *src, float *restrict y, size_t n_blocks)
{
    const qw_grid *grid = qw_grid_of(type);
    size_t block_bytes = qw_type_get(type)->block_bytes;
    float unit = 1.0f / (float)(1 << grid->shift);
    qw_grid_block b;
    for (size_t k = 0; k < n_blocks; k++, src += block_bytes) {
        grid->read(src, &b);
        float d = half_to_f32(b.d) * unit;
        for (int sub = 0; sub < 16; sub++, y += 16) {
            float dl = d * (float)b.scale[sub];
            for (int j = 0; j < 16; j++) y[j] = dl * (float)b.level[16 * sub + j];
        }
    }
}

/* ---- blocks of 64 with four 8-bit float scales ------------------------------------------------------- */

static void dequantize_nvfp4(const void *src, float *restrict y, size_t n_blocks)
{
    const qw_block_nvfp4 *b = src;
    for (size_t k = 0; k < n_blocks; k++, b++)
        for (int sub = 0; sub < 4; sub++, y += 16) {
            const uint8_t *qs = b->qs + 8 * sub;
            float d = nvfp4_scale(b->d[sub]);
            for (int j = 0; j < 8; j++) y[j] = d * (float)CODEBOOK_MXFP4[qs[j] & 15];
            for (int j = 0; j < 8; j++) y[j + 8] = d * (float)CODEBOOK_MXFP4[qs[j] >> 4];
        }
}

static dequantize_fn *const DEQUANTIZE[QW_TYPE_LIMIT] = {
    [QW_TYPE_F32] = dequantize_f32,       [QW_TYPE_F16] = dequantize_f16,
    [QW_TYPE_BF16] = dequantize_bf16,     [QW_TYPE_Q4_0] = dequantize_q4_0,
    [QW_TYPE_Q4_1] = dequantize_q4_1,     [QW_TYPE_Q5_0] = dequantize_q5_0,
    [QW_TYPE_Q5_1] = dequantize_q5_1,     [QW_TYPE_Q8_0] = dequantize_q8_0,
    [QW_TYPE_Q2_K] = dequantize_q2_k,     [QW_TYPE_Q3_K] = dequantize_q3_k,
    [QW_TYPE_Q4_K] = dequantize_q4_k,     [QW_TYPE_Q5_K] = dequantize_q5_k,
    [QW_TYPE_Q6_K] = dequantize_q6_k,     [QW_TYPE_IQ4_NL] = dequantize_iq4_nl,
    [QW_TYPE_IQ4_XS] = dequantize_iq4_xs, [QW_TYPE_MXFP4] = dequantize_mxfp4,
    [QW_TYPE_NVFP4] = dequantize_nvfp4,
};

void qw_dequantize_row(qw_type type, const void *src, float *dst, size_t n)
{
    const qw_type_info *info = qw_type_get((uint32_t)type);
    QW_ASSERT(info->name && n % info->block_n == 0);
    if (qw_grid_of(type))
        dequantize_grid(type, src, dst, n / info->block_n);
    else
        DEQUANTIZE[type](src, dst, n / info->block_n);
}

/* ---- finite scales ------------------------------------------------------------------------------
 * Where a type keeps numbers that may be NaN or infinite: up to two fields of `width` bytes in a block,
 * whose `exponent` bits are all ones in that case. */

typedef struct scale_fields {
    uint8_t n, width;
    uint8_t at[2];     /* byte offsets in the block */
    uint32_t exponent;
} scale_fields;

#define ONE_HALF(block, f) {1, 2, {offsetof(block, f), 0}, 0x7c00}
#define TWO_HALVES(block, f, g) {2, 2, {offsetof(block, f), offsetof(block, g)}, 0x7c00}

static const scale_fields SCALES[QW_TYPE_LIMIT] = {
    [QW_TYPE_F32] = {1, 4, {0, 0}, 0x7f800000},
    [QW_TYPE_F16] = {1, 2, {0, 0}, 0x7c00},
    [QW_TYPE_BF16] = {1, 2, {0, 0}, 0x7f80},
    [QW_TYPE_Q4_0] = ONE_HALF(qw_block_q4_0, d),
    [QW_TYPE_Q4_1] = TWO_HALVES(qw_block_q4_1, d, m),
    [QW_TYPE_Q5_0] = ONE_HALF(qw_block_q5_0, d),
    [QW_TYPE_Q5_1] = TWO_HALVES(qw_block_q5_1, d, m),
    [QW_TYPE_Q8_0] = ONE_HALF(qw_block_q8_0, d),
    [QW_TYPE_Q2_K] = TWO_HALVES(qw_block_q2_k, d, dmin),
    [QW_TYPE_Q3_K] = ONE_HALF(qw_block_q3_k, d),
    [QW_TYPE_Q4_K] = TWO_HALVES(qw_block_q4_k, d, dmin),
    [QW_TYPE_Q5_K] = TWO_HALVES(qw_block_q5_k, d, dmin),
    [QW_TYPE_Q6_K] = ONE_HALF(qw_block_q6_k, d),
    [QW_TYPE_IQ4_NL] = ONE_HALF(qw_block_iq4_nl, d),
    [QW_TYPE_IQ4_XS] = ONE_HALF(qw_block_iq4_xs, d),
    [QW_TYPE_IQ2_XXS] = ONE_HALF(qw_block_iq2_xxs, d),
    [QW_TYPE_IQ2_XS] = ONE_HALF(qw_block_iq2_xs, d),
    [QW_TYPE_IQ2_S] = ONE_HALF(qw_block_iq2_s, d),
    [QW_TYPE_IQ3_XXS] = ONE_HALF(qw_block_iq3_xxs, d),
    [QW_TYPE_IQ3_S] = ONE_HALF(qw_block_iq3_s, d),
    [QW_TYPE_IQ1_S] = ONE_HALF(qw_block_iq1_s, d),
    [QW_TYPE_TQ1_0] = ONE_HALF(qw_block_tq1_0, d),
    [QW_TYPE_TQ2_0] = ONE_HALF(qw_block_tq2_0, d),
};

/* With exponents above 252 the level 12 is beyond float32; 255 is NaN in the MX specification. */
enum { MXFP4_E_MAX = 252 };

static bool mxfp4_finite(const qw_block_mxfp4 *b, size_t n_blocks)
{
    unsigned bad = 0;
    for (size_t k = 0; k < n_blocks; k++) bad |= b[k].e > MXFP4_E_MAX;
    return !bad;
}

/* The half is in the upper four bits of four words: all ones in its exponent are 0x7c00 of it. */
static bool iq1_m_finite(const qw_block_iq1_m *b, size_t n_blocks)
{
    unsigned bad = 0;
    for (size_t k = 0; k < n_blocks; k++)
        bad |= (b[k].scales[3] & 0x7000) == 0x7000 && (b[k].scales[2] & 0xc000) == 0xc000;
    return !bad;
}

bool qw_row_finite(qw_type type, const void *src, size_t n)
{
    const qw_type_info *info = qw_type_get((uint32_t)type);
    QW_ASSERT(info->name && n % info->block_n == 0);
    size_t n_blocks = n / info->block_n;
    if (type == QW_TYPE_MXFP4) return mxfp4_finite(src, n_blocks);
    if (type == QW_TYPE_IQ1_M) return iq1_m_finite(src, n_blocks);

    const scale_fields *s = &SCALES[type];
    for (unsigned f = 0; f < s->n; f++) {
        const uint8_t *at = (const uint8_t *)src + s->at[f];
        unsigned bad = 0;
        for (size_t k = 0; k < n_blocks; k++, at += info->block_bytes) {
            uint32_t bits = 0;
            memcpy(&bits, at, s->width);
            bad |= (bits & s->exponent) == s->exponent;
        }
        if (bad) return false;
    }
    return true;
}
