/* gemm_i8mm.c: quantised matrix products with FEAT_I8MM: USMMLA multiplies 2 rows x 8 k of unsigned weights with 8 k x 2
 * columns of activations into 4 exact int32 sums, twice the products of SDOT.
 *
 * Two words of a quad zipped by 32 bits are two registers of 2 rows x 8 k, the activations of two columns zipped by 64
 * bits are 8 k x 2 columns. The zips of the weights are paid once for all columns of a tile: at fewer than four columns
 * they cost more than they save, and the level below does the work. A tile is 8 rows x up to 8 columns in 16 registers
 * of sums {row 0: column 0, column 1, row 1: column 0, column 1}, the two halves of a group in turn; running floats keep
 * that arrangement in memory and come apart when they are stored. A last column without a partner is its own, and half
 * of that result is dropped. Bits as ref/gemm_ref.c. Any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/arm/gemm_tiles.h"

enum { N_MIN = 4, N_MAX = 8, PAIRS_MAX = N_MAX / 2, HALVES = 2, ROW_PAIRS = 4 /* of 8 rows */ };

/* The floats of 8 rows, and of a group; row pair r of a half is rows 2r, 2r + 1. */
typedef float32x4_t half_floats[PAIRS_MAX][ROW_PAIRS];

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

enum { BYTES = -1 }; /* Q8_0: words of bytes in place of nibbles */

/* sum += the products of pairs [i0, i1) of words of 32 elements, of half h; a: the columns' 32 quants. */
TILE_INLINE void dot_words(int high, int N, int32x4_t sum[][ROW_PAIRS], const uint8_t *lines, int h, int i0, int i1,
                           const int8_t *const *a)
{
    TILE_UNROLL
    for (int i = i0; i < i1; i++) {
        int8x16_t x[PAIRS_MAX];
        TILE_UNROLL
        for (int p = 0; p < n_pairs(N); p++)
            x[p] = zip_columns(a[column(N, p, 0)] + 8 * i, a[column(N, p, 1)] + 8 * i);
        TILE_UNROLL
        for (int q = 0; q < 2; q++) {
            const uint8_t *bytes = lines + 2 * i * QW_LINE + h * 2 * TILE_QUAD_BYTES + q * TILE_QUAD_BYTES;
            if (high == BYTES) {
                uint8x16x2_t words = {{vld1q_u8(bytes), vld1q_u8(bytes + QW_LINE)}};
                multiply(N, sum, q, words, x);
            } else {
                multiply(N, sum, q, unpack_words(high, lines + h * 2 * TILE_QUAD_BYTES, i, q), x);
            }
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

/* ---- one scale for 32: Q4_0, Q5_0, Q8_0 -------------------------------------------------------------------------- */

TILE_INLINE void tile_q32(qw_pack form, int N, const uint8_t *group, size_t n_blocks, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    const size_t block_bytes = form == QW_PACK_Q4_0   ? QW_Q4_BYTES
                               : form == QW_PACK_Q5_0 ? QW_Q5_BYTES
                                                      : QW_Q8_BYTES;
    const int offset = form == QW_PACK_Q4_0 ? 8 : form == QW_PACK_Q5_0 ? 16 : 128;
    const int high = form == QW_PACK_Q4_0 ? HIGH_NONE : form == QW_PACK_Q5_0 ? HIGH_1 : BYTES;
    const uint8_t *scales = group, *w = group + qw_scales_bytes(n_blocks);
    half_floats acc[HALVES];
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) zero_floats(N, acc[h]);
    for (size_t b = 0; b < n_blocks; b++, w += block_bytes, scales += QW_HALF_LINE) {
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
            for (int p = 0; p < n_pairs(N); p++) {
                int32x4_t start = two_ints(rec[column(N, p, 0)]->neg_sum, rec[column(N, p, 1)]->neg_sum);
                begin_sum(sum, p, vmulq_n_s32(start, offset));
            }
            TILE_IN_MEMORY(N, acc);
            dot_words(high, N, sum, w, h, 0, QW_WORDS / 2, a);
            TILE_UNROLL
            for (int r = 0; r < ROW_PAIRS; r++) {
                float32x4_t dw = two_rows(quad_halves(scales, 2 * h + r / 2), r % 2);
                TILE_UNROLL
                for (int p = 0; p < n_pairs(N); p++) {
                    float32x4_t da = two_floats(rec[column(N, p, 0)]->d, rec[column(N, p, 1)]->d);
                    acc[h][p][r] = vfmaq_f32(acc[h][p][r], vcvtq_f32_s32(sum[p][r]), vmulq_f32(dw, da));
                }
            }
        }
    }
    TILE_IN_MEMORY(N, acc);
    store(N, acc, out, ld_out);
}

/* ---- one scale for 256, and a smaller one for 32 or 16 ----------------------------------------------------------- */

/* acc = fma(t, da, acc): the end of a block of 256. */
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

/* t = fma(minima * sums of activations, -dmin, t), one half. */
TILE_INLINE void subtract_minima(int N, float32x4_t t[][ROW_PAIRS], const qw_packed_kq *head, int h,
                                 const qw_act256 *const *rec)
{
    int8x16_t low[PAIRS_MAX], high[PAIRS_MAX];
    TILE_UNROLL
    for (int p = 0; p < n_pairs(N); p++) {
        int64x2_t c0 = vreinterpretq_s64_s8(sum_bytes(rec[column(N, p, 0)]));
        int64x2_t c1 = vreinterpretq_s64_s8(sum_bytes(rec[column(N, p, 1)]));
        low[p] = vreinterpretq_s8_s64(vzip1q_s64(c0, c1));
        high[p] = vreinterpretq_s8_s64(vzip2q_s64(c0, c1));
    }
    TILE_UNROLL
    for (int q = 0; q < 2; q++) {
        uint8x16x2_t rows = zip_rows(quad_minima(head, 2 * h + q));
        float32x4_t dmin = quad_halves(head->dmin, 2 * h + q);
        TILE_UNROLL
        for (int r = 0; r < 2; r++) {
            TILE_UNROLL
            for (int p = 0; p < n_pairs(N); p++) {
                int32x4_t sum = vshlq_n_s32(vusmmlaq_s32(vdupq_n_s32(0), rows.val[r], high[p]), 7);
                sum = vusmmlaq_s32(sum, rows.val[r], low[p]);
                t[p][2 * q + r] = vfmsq_f32(t[p][2 * q + r], vcvtq_f32_s32(sum), two_rows(dmin, r));
            }
        }
    }
}

TILE_INLINE void tile_kq(qw_pack form, int N, const uint8_t *group, size_t n_blocks, const uint8_t *act,
                         size_t act_bytes, float *out, size_t ld_out)
{
    const size_t sub_bytes = form == QW_PACK_Q4_K ? QW_Q4_BYTES : QW_Q5_BYTES;
    half_floats acc[HALVES], t[HALVES];
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) zero_floats(N, acc[h]);
    for (size_t b = 0; b < n_blocks; b++) {
        const qw_packed_kq *head = (const qw_packed_kq *)(const void *)group;
        const uint8_t *w = head->quants;
        const qw_act256 *rec[N_MAX];
        const int8_t *a[N_MAX];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act256 *)(act + (size_t)n * act_bytes) + b;
            a[n] = rec[n]->q;
        }
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) zero_floats(N, t[h]);
        TILE_ROLLED
        for (int s = 0; s < QW_SUBS; s++, w += sub_bytes) {
            TILE_ROLLED
            for (int h = 0; h < HALVES; h++) {
                int32x4_t sum[PAIRS_MAX][ROW_PAIRS];
                TILE_IN_MEMORY(N, t);
                TILE_UNROLL
                for (int p = 0; p < n_pairs(N); p++) begin_sum(sum, p, vdupq_n_s32(0));
                dot_words(form == QW_PACK_Q5_K ? HIGH_1 : HIGH_NONE, N, sum, w, h, 0, QW_WORDS / 2, a);
                TILE_UNROLL
                for (int q = 0; q < 2; q++) {
                    float32x4_t scale = quad_scale_kq(head, s, 2 * h + q);
                    add_scaled(N, t[h], sum, q, vmulq_f32(quad_halves(head->d, 2 * h + q), scale));
                }
            }
            TILE_UNROLL
            for (int n = 0; n < N; n++) a[n] += 32;
        }
        TILE_IN_MEMORY(N, t);
        TILE_ROLLED
        for (int h = 0; h < HALVES; h++) subtract_minima(N, t[h], head, h, rec);
        TILE_IN_MEMORY(N, acc);
        add_block(N, acc, t, rec);
        group = w;
    }
    TILE_IN_MEMORY(N, acc);
    store(N, acc, out, ld_out);
}

/* Q6_K: two scales in 32 elements; the offset of the weights is in the sums' start. */
TILE_INLINE void tile_q6k(qw_pack form, int N, const uint8_t *group, size_t n_blocks, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    (void)form;
    const uint8_t *halves = group, *block = group + qw_scales_bytes(n_blocks);
    half_floats acc[HALVES], t[HALVES];
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) zero_floats(N, acc[h]);
    for (size_t b = 0; b < n_blocks; b++, block += QW_Q6K_BYTES, halves += QW_HALF_LINE) {
        const qw_packed_q6k *src = (const qw_packed_q6k *)(const void *)block;
        const qw_act256 *rec[N_MAX];
        const int8_t *a[N_MAX];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act256 *)(act + (size_t)n * act_bytes) + b;
            a[n] = rec[n]->q;
        }
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) zero_floats(N, t[h]);
        TILE_ROLLED
        for (int s = 0; s < QW_SUBS; s++) {
            TILE_ROLLED
            for (int h = 0; h < HALVES; h++) {
                TILE_UNROLL
                for (int part = 0; part < 2; part++) {
                    int32x4_t sum[PAIRS_MAX][ROW_PAIRS];
                    int at = 2 * s + part;
                    TILE_IN_MEMORY(N, t);
                    TILE_UNROLL
                    for (int p = 0; p < n_pairs(N); p++) {
                        const int32_t *c0 = rec[column(N, p, 0)]->neg_sum16, *c1 = rec[column(N, p, 1)]->neg_sum16;
                        begin_sum(sum, p, two_ints(c0[at], c1[at]));
                    }
                    dot_words(HIGH_2, N, sum, src->quants[s], h, 2 * part, 2 * part + 2, a);
                    TILE_UNROLL
                    for (int q = 0; q < 2; q++) {
                        float32x4_t scale = quad_scale_q6k(src, at, 2 * h + q);
                        add_scaled(N, t[h], sum, q, vmulq_f32(quad_halves(halves, 2 * h + q), scale));
                    }
                }
            }
            TILE_UNROLL
            for (int n = 0; n < N; n++) a[n] += 32;
        }
        TILE_IN_MEMORY(N, t);
        TILE_IN_MEMORY(N, acc);
        add_block(N, acc, t, rec);
    }
    TILE_IN_MEMORY(N, acc);
    store(N, acc, out, ld_out);
}

#define GEMM_I8MM_SLOT(name, form, block_n, tile)                                                                       \
    TILE_INSTANCE(name, form, tile, 4)                                                                                \
    TILE_INSTANCE(name, form, tile, 5)                                                                                \
    TILE_INSTANCE(name, form, tile, 6)                                                                                \
    TILE_INSTANCE(name, form, tile, 7)                                                                                \
    TILE_INSTANCE(name, form, tile, 8)                                                                                \
    static tile_fn *const name##_tiles[] = {NULL,      NULL,      NULL,      NULL,     name##_x4,                     \
                                            name##_x5, name##_x6, name##_x7, name##_x8};                              \
    static void gemm_##name(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,            \
                            float *out, size_t ld_out)                                                                \
    {                                                                                                                 \
        if (n_cols < N_MIN)                                                                                           \
            qw_gemm_##name##_dotprod(packed, n_groups, k, act, n_cols, out, ld_out);                                  \
        else                                                                                                          \
            TILE_WALK(name, form, k / (block_n)); /* more columns than N_MAX make tiles of N_MIN or more */                       \
    }
GEMM_I8MM_SLOT(q4_0, QW_PACK_Q4_0, 32, tile_q32)
GEMM_I8MM_SLOT(q5_0, QW_PACK_Q5_0, 32, tile_q32)
GEMM_I8MM_SLOT(q8_0, QW_PACK_Q8_0, 32, tile_q32)
GEMM_I8MM_SLOT(q4_k, QW_PACK_Q4_K, 256, tile_kq)
GEMM_I8MM_SLOT(q5_k, QW_PACK_Q5_K, 256, tile_kq)
GEMM_I8MM_SLOT(q6_k, QW_PACK_Q6_K, 256, tile_q6k)

void qw_gemm_init_i8mm(qw_kernels *t)
{
    t->gemm[QW_PACK_Q4_0] = gemm_q4_0;
    t->gemm[QW_PACK_Q5_0] = gemm_q5_0;
    t->gemm[QW_PACK_Q8_0] = gemm_q8_0;
    t->gemm[QW_PACK_Q4_K] = gemm_q4_k;
    t->gemm[QW_PACK_Q5_K] = gemm_q5_k;
    t->gemm[QW_PACK_Q6_K] = gemm_q6_k;
}
