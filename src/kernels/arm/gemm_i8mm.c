/* gemm_i8mm.c: quantised matrix products with FEAT_I8MM: USMMLA multiplies 2 rows x 8 k of unsigned weights with
 * 8 k x 2 columns of activations into 4 exact int32 sums, twice the products of SDOT.
 *
 * Two words of a quad zipped by 32 bits are two registers of 2 rows x 8 k, the activations of two columns zipped by 64
 * bits are 8 k x 2 columns. The zips of the weights are paid once for all columns of a tile: at fewer than four columns
 * they cost more than they save, and the level below does the work. A tile is 8 rows x up to 8 columns in 16 registers
 * of sums {row 0: column 0, column 1, row 1: column 0, column 1}, the two halves of a group in turn; running floats
 * keep that arrangement in memory and come apart when they are stored. A last column without a partner is its own, and
 * half of that result is dropped. Bits as ref/gemm_ref.c. Any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/arm/gemm_tiles.h"

enum { N_MIN = 4, N_MAX = 8, PAIRS_MAX = N_MAX / 2, HALVES = 2, ROW_PAIRS = 4 /* of 8 rows */ };

/* The floats of 8 rows, and of a group; row pair r of a half is rows 2r, 2r + 1. */
typedef float32x4_t half_floats[PAIRS_MAX][ROW_PAIRS];
typedef int32x4_t half_ints[PAIRS_MAX][ROW_PAIRS];

TILE_INLINE int n_pairs(int N)
{
    return (N + 1) / 2;
}

/* Column of half h of pair p. */
TILE_INLINE int column(int N, int p, int h)
{
    return 2 * p + h < N ? 2 * p + h : N - 1;
}

/* Rows 0, 1 and rows 2, 3 of a quad times 8 k. */
TILE_INLINE uint8x16x2_t zip_rows(uint8x16x2_t words)
{
    uint32x4_t lo = vreinterpretq_u32_u8(words.val[0]), hi = vreinterpretq_u32_u8(words.val[1]);
    uint8x16x2_t rows = {{vreinterpretq_u8_u32(vzip1q_u32(lo, hi)), vreinterpretq_u8_u32(vzip2q_u32(lo, hi))}};
    return rows;
}

/* 8 k of two columns. */
TILE_INLINE int8x16_t zip_columns(const int8_t *c0, const int8_t *c1)
{
    return vcombine_s8(vld1_s8(c0), vld1_s8(c1));
}

/* sum += 8 k (two words) of quad q of a half. x: those k of the column pairs. */
TILE_INLINE void multiply(int N, int32x4_t sum[][ROW_PAIRS], int q, uint8x16x2_t words, const int8x16_t *x)
{
    uint8x16x2_t rows = zip_rows(words);
    TILE_UNROLL
    for (int p = 0; p < n_pairs(N); p++) {
        sum[p][2 * q] = vusmmlaq_s32(sum[p][2 * q], rows.val[0], x[p]);
        sum[p][2 * q + 1] = vusmmlaq_s32(sum[p][2 * q + 1], rows.val[1], x[p]);
    }
}

/* sum += the products of pairs [i0, i1) of words of 32 elements, of half h; a: the columns' 32 quants. */
TILE_INLINE void dot_words(qw_pack form, int N, int32x4_t sum[][ROW_PAIRS], const uint8_t *lines, int h, int i0, int i1,
                           uint8x16_t book, const int8_t *const *a)
{
    TILE_UNROLL
    for (int i = i0; i < i1; i++) {
        int8x16_t x[PAIRS_MAX];
        TILE_UNROLL
        for (int p = 0; p < n_pairs(N); p++)
            x[p] = zip_columns(a[column(N, p, 0)] + 8 * i, a[column(N, p, 1)] + 8 * i);
        TILE_UNROLL
        for (int q = 0; q < 2; q++) {
            const uint8_t *quad = lines + (2 * h + q) * TILE_QUAD_BYTES;
            uint8x16x2_t words = {{quad_word(kind_of(form), quad, 2 * i, book),
                                   quad_word(kind_of(form), quad, 2 * i + 1, book)}};
            multiply(N, sum, q, words, x);
        }
    }
}

TILE_INLINE void zero_floats(int N, float32x4_t x[][ROW_PAIRS])
{
    TILE_UNROLL
    for (int p = 0; p < n_pairs(N); p++) {
        TILE_UNROLL
        for (int r = 0; r < ROW_PAIRS; r++) x[p][r] = vdupq_n_f32(0.0f);
    }
}

/* {x0, x1, x0, x1}: a number of each column of a pair, for both rows. */
TILE_INLINE int32x4_t two_ints(int32_t x0, int32_t x1)
{
    int32x2_t pair = vset_lane_s32(x1, vdup_n_s32(x0), 1);
    return vcombine_s32(pair, pair);
}

TILE_INLINE float32x4_t two_floats(float x0, float x1)
{
    float32x2_t pair = vset_lane_f32(x1, vdup_n_f32(x0), 1);
    return vcombine_f32(pair, pair);
}

/* {y0, y0, y1, y1}: a number of each row of pair r of a quad. */
TILE_INLINE float32x4_t two_rows(float32x4_t quad, int r)
{
    return r == 0 ? vzip1q_f32(quad, quad) : vzip2q_f32(quad, quad);
}

/* All row pairs of column pair p begin at the same numbers. */
TILE_INLINE int32x4_t two_int_rows(int32x4_t quad, int r)
{
    return r == 0 ? vzip1q_s32(quad, quad) : vzip2q_s32(quad, quad);
}

TILE_INLINE void begin_sum(int32x4_t sum[][ROW_PAIRS], int p, int32x4_t start)
{
    TILE_UNROLL
    for (int r = 0; r < ROW_PAIRS; r++) sum[p][r] = start;
}

/* Out of pairs into columns. */
TILE_INLINE void store(int N, float32x4_t acc[][PAIRS_MAX][ROW_PAIRS], float *out, size_t ld_out)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) {
            float32x4_t r01 = acc[q / 2][n / 2][q % 2 * 2], r23 = acc[q / 2][n / 2][q % 2 * 2 + 1];
            vst1q_f32(out + (size_t)n * ld_out + 4 * q, n % 2 == 0 ? vuzp1q_f32(r01, r23) : vuzp2q_f32(r01, r23));
        }
    }
}

/* ---- blocks of 32 ------------------------------------------------------------------------------------------------ */

/* acc = fma(sum, d * da, acc), and the minimum; one row pair. d, m: of the row pair. */
TILE_INLINE void add_block_32(qw_pack form, int N, float32x4_t acc[][ROW_PAIRS], int32x4_t sum[][ROW_PAIRS], int r,
                              float32x4_t d, float32x4_t m, const qw_act32 *const *rec)
{
    TILE_UNROLL
    for (int p = 0; p < n_pairs(N); p++) {
        const qw_act32 *c0 = rec[column(N, p, 0)], *c1 = rec[column(N, p, 1)];
        acc[p][r] = vfmaq_f32(acc[p][r], vcvtq_f32_s32(sum[p][r]), vmulq_f32(d, two_floats(c0->d, c1->d)));
        if (has_minimum(form)) acc[p][r] = vfmaq_f32(acc[p][r], m, two_floats(c0->d_sum, c1->d_sum));
    }
}

TILE_INLINE void tile_32(qw_pack form, int N, const uint8_t *group, size_t n_blocks, const uint8_t *act,
                         size_t act_bytes, float *out, size_t ld_out)
{
    const blocks_32 at = layout_32(form, n_blocks);
    const uint8x16_t book = book_of(form);
    const uint8_t *front = group, *block = group + at.first;
    half_floats acc[HALVES];
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) zero_floats(N, acc[h]);
    for (size_t b = 0; b < n_blocks; b++, block += at.bytes, front += at.front) {
        const qw_act32 *rec[N_MAX];
        const int8_t *a[N_MAX];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act32 *)(act + (size_t)n * act_bytes) + b;
            a[n] = rec[n]->q;
        }
        TILE_ROLLED
        for (int h = 0; h < HALVES; h++) {
            int32x4_t sum[PAIRS_MAX][ROW_PAIRS];
            TILE_UNROLL
            for (int p = 0; p < n_pairs(N); p++)
                begin_sum(sum, p, two_ints(start_32(form, false, rec[column(N, p, 0)]),
                                           start_32(form, false, rec[column(N, p, 1)])));
            TILE_IN_MEMORY(N, acc);
            dot_words(form, N, sum, block + at.head, h, 0, QW_WORDS / 2, book, a);
            TILE_UNROLL
            for (int r = 0; r < ROW_PAIRS; r++) {
                float32x4_t d = two_rows(quad_scale_32(form, front, block, 2 * h + r / 2), r % 2), m = d;
                if (has_minimum(form)) m = two_rows(quad_halves(block + QW_HALF_LINE, 2 * h + r / 2), r % 2);
                add_block_32(form, N, acc[h], sum, r, d, m, rec);
            }
        }
    }
    TILE_IN_MEMORY(N, acc);
    store(N, acc, out, ld_out);
}

/* ---- blocks of 256 ----------------------------------------------------------------------------------------------- */

/* acc = fma(t, da, acc): the end of a block. */
TILE_INLINE void add_block(int N, half_floats *acc, half_floats *t, const qw_act256 *const *rec)
{
    TILE_UNROLL
    for (int p = 0; p < n_pairs(N); p++) {
        float32x4_t da = two_floats(rec[column(N, p, 0)]->d, rec[column(N, p, 1)]->d);
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) {
            TILE_UNROLL
            for (int r = 0; r < ROW_PAIRS; r++) acc[h][p][r] = vfmaq_f32(acc[h][p][r], t[h][p][r], da);
        }
    }
}

/* t = fma(sum, scale, t): a quad of a half's sub-block. */
TILE_INLINE void add_scaled(int N, float32x4_t t[][ROW_PAIRS], int32x4_t sum[][ROW_PAIRS], int q, float32x4_t scale)
{
    TILE_UNROLL
    for (int r = 2 * q; r < 2 * q + 2; r++) {
        float32x4_t s = two_rows(scale, r % 2);
        TILE_UNROLL
        for (int p = 0; p < n_pairs(N); p++) t[p][r] = vfmaq_f32(t[p][r], vcvtq_f32_s32(sum[p][r]), s);
    }
}

/* The same in integers: t += sum * scale. */
TILE_INLINE void add_integers(int N, int32x4_t t[][ROW_PAIRS], int32x4_t sum[][ROW_PAIRS], int q, int32x4_t scale)
{
    TILE_UNROLL
    for (int r = 2 * q; r < 2 * q + 2; r++) {
        int32x4_t s = two_int_rows(scale, r % 2);
        TILE_UNROLL
        for (int p = 0; p < n_pairs(N); p++) t[p][r] = vmlaq_s32(t[p][r], sum[p][r], s);
    }
}

/* t = (float)total * d, of a half. */
TILE_INLINE void scale_totals(int N, float32x4_t t[][ROW_PAIRS], int32x4_t total[][ROW_PAIRS], const uint8_t *halves, int h)
{
    TILE_UNROLL
    for (int r = 0; r < ROW_PAIRS; r++) {
        float32x4_t d = two_rows(quad_halves(halves, 2 * h + r / 2), r % 2);
        TILE_UNROLL
        for (int p = 0; p < n_pairs(N); p++) t[p][r] = vmulq_f32(vcvtq_f32_s32(total[p][r]), d);
    }
}

/* Words 2i and 2i + 1 of two columns' sums. */
TILE_INLINE int8x16_t zip_sums(int8x16_t c0, int8x16_t c1, int i)
{
    int64x2_t x0 = vreinterpretq_s64_s8(c0), x1 = vreinterpretq_s64_s8(c1);
    return vreinterpretq_s8_s64(i == 0 ? vzip1q_s64(x0, x1) : vzip2q_s64(x0, x1));
}

/* t = fma(minima * sums of activations, -dmin, t), one half. */
TILE_INLINE void subtract_minima(qw_pack form, int N, float32x4_t t[][ROW_PAIRS], const uint8_t *block, int h,
                                 const qw_act256 *const *rec)
{
    const int n_words = parts_of(form); /* pairs of them */
    TILE_UNROLL
    for (int p = 0; p < n_pairs(N); p++) {
        sum_bytes c0 = sums_of(form, rec[column(N, p, 0)]), c1 = sums_of(form, rec[column(N, p, 1)]);
        TILE_UNROLL
        for (int q = 0; q < 2; q++) {
            float32x4_t dmin = quad_halves(block + QW_HALF_LINE, 2 * h + q);
            int32x4_t sum[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
            TILE_UNROLL
            for (int i = 0; i < n_words; i++) {
                uint8x16x2_t rows = zip_rows(quad_minima(form, block, i, 2 * h + q));
                TILE_UNROLL
                for (int r = 0; r < 2; r++) sum[r] = vusmmlaq_s32(sum[r], rows.val[r], zip_sums(c0.high, c1.high, i));
            }
            TILE_UNROLL
            for (int r = 0; r < 2; r++) sum[r] = vshlq_n_s32(sum[r], 7);
            TILE_UNROLL
            for (int i = 0; i < n_words; i++) {
                uint8x16x2_t rows = zip_rows(quad_minima(form, block, i, 2 * h + q));
                TILE_UNROLL
                for (int r = 0; r < 2; r++) sum[r] = vusmmlaq_s32(sum[r], rows.val[r], zip_sums(c0.low, c1.low, i));
            }
            TILE_UNROLL
            for (int r = 0; r < 2; r++)
                t[p][2 * q + r] = vfmsq_f32(t[p][2 * q + r], vcvtq_f32_s32(sum[r]), two_rows(dmin, r));
        }
    }
}

TILE_INLINE void tile_256(qw_pack form, int N, const uint8_t *group, size_t n_blocks, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    const bool in_front = form == QW_PACK_Q6_K || form == QW_PACK_Q3_K; /* the half scales */
    const size_t head = head_bytes_256(form), sub_bytes = quant_bytes(kind_of(form));
    const int n_parts = parts_of(form);
    const uint8x16_t book = book_of(form);
    const uint8_t *front = group, *block = group + (in_front ? qw_scales_bytes(n_blocks) : 0);
    half_floats acc[HALVES], t[HALVES];
    half_ints total[HALVES]; /* what t is before it is a float */
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) zero_floats(N, acc[h]);
    for (size_t b = 0; b < n_blocks; b++, front += QW_HALF_LINE) {
        const uint8_t *w = block + head, *halves = in_front ? front : block;
        const qw_act256 *rec[N_MAX];
        const int8_t *a[N_MAX];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act256 *)(act + (size_t)n * act_bytes) + b;
            a[n] = rec[n]->q;
        }
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) {
            zero_floats(N, t[h]);
            TILE_UNROLL
            for (int p = 0; p < n_pairs(N); p++) begin_sum(total[h], p, vdupq_n_s32(0));
        }
        TILE_ROLLED
        for (int s = 0; s < QW_SUBS; s++, w += sub_bytes) {
            TILE_ROLLED
            for (int h = 0; h < HALVES; h++) {
                TILE_UNROLL
                for (int part = 0; part < n_parts; part++) {
                    const int at = n_parts * s + part;
                    int32x4_t sum[PAIRS_MAX][ROW_PAIRS];
                    if (scales_floats(form)) TILE_IN_MEMORY(N, t);
                    if (!scales_floats(form)) TILE_IN_MEMORY(N, total);
                    TILE_UNROLL
                    for (int p = 0; p < n_pairs(N); p++)
                        begin_sum(sum, p, two_ints(start_256(form, false, rec[column(N, p, 0)], at),
                                                   start_256(form, false, rec[column(N, p, 1)], at)));
                    dot_words(form, N, sum, w, h, part * 2, part * 2 + QW_WORDS / 2 / n_parts, book, a);
                    TILE_UNROLL
                    for (int q = 0; q < 2; q++) {
                        int32x4_t scale = quad_scale(form, block, at, 2 * h + q);
                        float32x4_t d = quad_halves(halves, 2 * h + q);
                        if (scales_floats(form))
                            add_scaled(N, t[h], sum, q, vmulq_f32(d, vcvtq_f32_s32(scale)));
                        else
                            add_integers(N, total[h], sum, q, scale);
                    }
                }
            }
            TILE_UNROLL
            for (int n = 0; n < N; n++) a[n] += 32;
        }
        if (!scales_floats(form)) {
            TILE_UNROLL
            for (int h = 0; h < HALVES; h++) scale_totals(N, t[h], total[h], halves, h);
        }
        TILE_IN_MEMORY(N, t);
        if (has_minima(form)) {
            TILE_ROLLED
            for (int h = 0; h < HALVES; h++) subtract_minima(form, N, t[h], block, h, rec);
        }
        TILE_IN_MEMORY(N, acc);
        add_block(N, acc, t, rec);
        block = w;
    }
    TILE_IN_MEMORY(N, acc);
    store(N, acc, out, ld_out);
}

#define GEMM_I8MM_SLOT(level, name, form, block_n)                                                                    \
    TILE_INSTANCE(name, form, tile_##block_n, 4)                                                                      \
    TILE_INSTANCE(name, form, tile_##block_n, 5)                                                                      \
    TILE_INSTANCE(name, form, tile_##block_n, 6)                                                                      \
    TILE_INSTANCE(name, form, tile_##block_n, 7)                                                                      \
    TILE_INSTANCE(name, form, tile_##block_n, 8)                                                                      \
    static tile_fn *const name##_tiles[] = {NULL,      NULL,      NULL,      NULL,     name##_x4,                     \
                                            name##_x5, name##_x6, name##_x7, name##_x8};                              \
    static void qw_gemm_##name##_##level(const void *packed, size_t n_groups, size_t k, const void *act,              \
                                         size_t n_cols, float *out, size_t ld_out)                                    \
    {                                                                                                                 \
        if (n_cols < N_MIN)                                                                                           \
            qw_gemm_##name##_dotprod(packed, n_groups, k, act, n_cols, out, ld_out);                                  \
        else                                                                                                          \
            TILE_WALK(name, form, k / (block_n)); /* more columns than N_MAX make tiles of N_MIN or more */           \
    }
TILE_FORMS(GEMM_I8MM_SLOT, i8mm)

void qw_gemm_init_i8mm(qw_kernels *t)
{
    TILE_FORMS(TILE_SET, i8mm)
}
