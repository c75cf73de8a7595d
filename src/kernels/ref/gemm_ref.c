/* gemm_ref.c: quantised matrix products in plain C. This is their definition: every other level gives the same bits.
 *
 * Blocks of 32, in order of k, acc from 0:
 *     acc = fma((float)sum(w * a), d * da, acc)
 *     acc = fma(m, da * (float)sum(a), acc)                           (Q4_1, Q5_1: types with a minimum)
 * Blocks of 256, in order of k:
 *     t = fma((float)sum(w * a), d * scale, t) for each sub-block in order, from 0
 *     t = fma((float)sum over sub-blocks of min * sum(a), -dmin, t)   (Q2_K, Q4_K, Q5_K: types with minima)
 *     acc = fma(t, da, acc)
 * w is the signed integer weight (unsigned where there is a minimum), a the quantised activation; sums are exact int32
 * (docs/kernels.md proves it), products of two scales are rounded to float once. Pure functions, any thread.
 */
#include <string.h>

#include "kernels/kernels_private.h"
#include "kernels/pack_layout.h"
#include "kernels/ref/codebook.h"
#include "kernels/ref/fma_ref.h"
#include "kernels/ref/half.h"

enum { ROWS = QW_GROUP_ROWS };

/* ---- unpacking: 32 elements of 16 rows as w [32][16] -------------------------------------------- */

typedef void unpack_fn(const uint8_t *src, int16_t w[32][ROWS]);

static void unpack_nibbles(const uint8_t *src, int16_t w[32][ROWS])
{
    for (size_t j = 0; j < QW_NIBBLE_LINES; j++)
        for (size_t r = 0; r < ROWS; r++)
            for (size_t i = 0; i < 4; i++) {
                uint8_t pair = src[j * QW_LINE + 4 * r + i];
                w[8 * j + i][r] = pair & 15;
                w[8 * j + 4 + i][r] = pair >> 4;
            }
}

/* Adds fields of `width` bits, whose place in the weight is `at`. A line of them serves 8 / width words. */
static void add_fields(const uint8_t *fields, size_t width, int at, int16_t w[32][ROWS])
{
    for (size_t j = 0; j < QW_WORDS; j++) {
        const uint8_t *line = fields + j * width / 8 * QW_LINE;
        for (size_t r = 0; r < ROWS; r++)
            for (size_t i = 0; i < 4; i++) {
                int field = line[4 * r + i] >> (j * width % 8) & ((1 << width) - 1);
                w[4 * j + i][r] = (int16_t)(w[4 * j + i][r] | field << at);
            }
    }
}

static void add_offset(int offset, int16_t w[32][ROWS])
{
    for (size_t e = 0; e < 32; e++)
        for (size_t r = 0; r < ROWS; r++) w[e][r] = (int16_t)(w[e][r] + offset);
}

static void look_up(const int8_t book[16], int16_t w[32][ROWS])
{
    for (size_t e = 0; e < 32; e++)
        for (size_t r = 0; r < ROWS; r++) w[e][r] = book[w[e][r]];
}

static void unpack_q4_0(const uint8_t *src, int16_t w[32][ROWS])
{
    unpack_nibbles(src, w);
    add_offset(-8, w);
}

static void unpack_5_bits(const uint8_t *src, int16_t w[32][ROWS])
{
    unpack_nibbles(src + QW_LINE, w);
    add_fields(src, 1, 4, w);
}

static void unpack_q5_0(const uint8_t *src, int16_t w[32][ROWS])
{
    unpack_5_bits(src, w);
    add_offset(-16, w);
}

static void unpack_q8_0(const uint8_t *src, int16_t w[32][ROWS])
{
    for (size_t j = 0; j < QW_WORDS; j++)
        for (size_t r = 0; r < ROWS; r++)
            for (size_t i = 0; i < 4; i++) w[4 * j + i][r] = (int16_t)(src[j * QW_LINE + 4 * r + i] - 128);
}

static void unpack_iq4(const uint8_t *src, int16_t w[32][ROWS])
{
    unpack_nibbles(src, w);
    look_up(CODEBOOK_IQ4, w);
}

static void unpack_mxfp4(const uint8_t *src, int16_t w[32][ROWS])
{
    unpack_nibbles(src, w);
    look_up(CODEBOOK_MXFP4, w);
}

static void unpack_q2_k(const uint8_t *src, int16_t w[32][ROWS])
{
    memset(w, 0, 32 * sizeof *w);
    add_fields(src, 2, 0, w);
}

static void unpack_q3_k(const uint8_t *src, int16_t w[32][ROWS])
{
    unpack_q2_k(src + QW_LINE, w);
    add_fields(src, 1, 2, w);
    add_offset(-4, w);
}

static void unpack_q6_k(const uint8_t *src, int16_t w[32][ROWS])
{
    unpack_nibbles(src + 2 * QW_LINE, w);
    add_fields(src, 2, 4, w);
    add_offset(-32, w);
}

static void load_halves(const void *src, float out[ROWS])
{
    qw_half h[ROWS];
    memcpy(h, src, sizeof h);
    for (size_t r = 0; r < ROWS; r++) out[r] = half_to_f32(h[r]);
}

/* isum[r] = sum of w[e][r] * a[e] over n elements. */
static void dot_rows(int16_t w[][ROWS], const int8_t *a, size_t n, int32_t isum[ROWS])
{
    for (size_t r = 0; r < ROWS; r++) isum[r] = 0;
    for (size_t e = 0; e < n; e++)
        for (size_t r = 0; r < ROWS; r++) isum[r] += w[e][r] * a[e];
}

static int32_t sum_of(const int8_t *a, size_t n)
{
    int32_t sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i];
    return sum;
}

static void zero_out(size_t n_groups, size_t n_cols, float *out, size_t ld_out)
{
    for (size_t c = 0; c < n_cols; c++) memset(out + c * ld_out, 0, n_groups * ROWS * sizeof *out);
}

/* ---- blocks of 32 ------------------------------------------------------------------------------- */

/* A block of 16 rows taken apart. */
typedef struct block_32 {
    int16_t w[32][ROWS];
    float d[ROWS], m[ROWS];
    int has_m;
} block_32;

/* Block b of a group of n_blocks. */
typedef void load_32_fn(const uint8_t *group, size_t n_blocks, size_t b, block_32 *out);

static void load_front(unpack_fn *unpack, size_t block_bytes, const uint8_t *group, size_t n_blocks, size_t b,
                       block_32 *out)
{
    unpack(group + qw_scales_bytes(n_blocks) + b * block_bytes, out->w);
    load_halves(group + b * QW_HALF_LINE, out->d);
    out->has_m = 0;
}

static void load_q4_0(const uint8_t *group, size_t n_blocks, size_t b, block_32 *out)
{
    load_front(unpack_q4_0, QW_Q4_BYTES, group, n_blocks, b, out);
}

static void load_q5_0(const uint8_t *group, size_t n_blocks, size_t b, block_32 *out)
{
    load_front(unpack_q5_0, QW_Q5_BYTES, group, n_blocks, b, out);
}

static void load_q8_0(const uint8_t *group, size_t n_blocks, size_t b, block_32 *out)
{
    load_front(unpack_q8_0, QW_Q8_BYTES, group, n_blocks, b, out);
}

static void load_iq4_nl(const uint8_t *group, size_t n_blocks, size_t b, block_32 *out)
{
    load_front(unpack_iq4, QW_Q4_BYTES, group, n_blocks, b, out);
}

static void load_mxfp4(const uint8_t *group, size_t n_blocks, size_t b, block_32 *out)
{
    unpack_mxfp4(group + qw_exponents_bytes(n_blocks) + b * QW_Q4_BYTES, out->w);
    for (size_t r = 0; r < ROWS; r++) out->d[r] = mxfp4_scale(group[b * QW_BYTE_LINE + r]);
    out->has_m = 0;
}

static void load_q1(unpack_fn *unpack, const uint8_t *block, block_32 *out)
{
    const qw_packed_q1 *src = (const qw_packed_q1 *)block;
    unpack(src->quants, out->w);
    load_halves(src->d, out->d);
    load_halves(src->m, out->m);
    out->has_m = 1;
}

static void load_q4_1(const uint8_t *group, size_t n_blocks, size_t b, block_32 *out)
{
    (void)n_blocks;
    load_q1(unpack_nibbles, group + b * QW_Q41_BYTES, out);
}

static void load_q5_1(const uint8_t *group, size_t n_blocks, size_t b, block_32 *out)
{
    (void)n_blocks;
    load_q1(unpack_5_bits, group + b * QW_Q51_BYTES, out);
}

/* acc [16] += the block times one column's. */
static void col_32(block_32 *w, const qw_act32 *a, float *acc)
{
    int32_t isum[ROWS];
    float da_sum = a->d * (float)sum_of(a->q, 32);
    dot_rows(w->w, a->q, 32, isum);
    for (size_t r = 0; r < ROWS; r++) acc[r] = qw_ref_fma((float)isum[r], w->d[r] * a->d, acc[r]);
    if (!w->has_m) return;
    for (size_t r = 0; r < ROWS; r++) acc[r] = qw_ref_fma(w->m[r], da_sum, acc[r]);
}

static void gemm_32(load_32_fn *load, qw_pack form, const uint8_t *packed, size_t n_groups, size_t k,
                    const uint8_t *act, size_t n_cols, float *out, size_t ld_out)
{
    size_t act_bytes = qw_act_bytes(QW_ACT_Q8_32, k);
    block_32 block;
    zero_out(n_groups, n_cols, out, ld_out);
    for (size_t g = 0; g < n_groups; g++, packed += qw_pack_group_bytes(form, k), out += ROWS)
        for (size_t b = 0; b < k / 32; b++) {
            load(packed, k / 32, b, &block);
            for (size_t c = 0; c < n_cols; c++)
                col_32(&block, (const qw_act32 *)(act + c * act_bytes) + b, out + c * ld_out);
        }
}

/* ---- blocks of 256 ------------------------------------------------------------------------------ */

/* A block of 16 rows taken apart: n_subs sub-blocks (8 or 16). */
typedef struct block_256 {
    int16_t w[256][ROWS];
    int32_t scale[16][ROWS], min[16][ROWS];
    size_t n_subs;
    int has_min, in_floats; /* scales are applied to floats, else to integers */
    float d[ROWS], dmin[ROWS];
} block_256;

typedef void load_256_fn(const uint8_t *group, size_t n_blocks, size_t b, block_256 *out);

static void load_subs(unpack_fn *unpack, size_t sub_bytes, const uint8_t *quants, block_256 *out)
{
    for (size_t s = 0; s < QW_SUBS; s++) unpack(quants + s * sub_bytes, out->w + s * 32);
}

static void load_kq(unpack_fn *unpack, size_t sub_bytes, const uint8_t *block, block_256 *out)
{
    const qw_packed_kq *src = (const qw_packed_kq *)block;
    load_halves(src->d, out->d);
    load_halves(src->dmin, out->dmin);
    out->n_subs = 8;
    out->has_min = 1;
    for (size_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < 4; i++) {
            int s0 = src->scales[0][4 * r + i], s1 = src->scales[1][4 * r + i], m = src->scales[2][4 * r + i];
            out->scale[i][r] = s0 & 63;
            out->scale[4 + i][r] = s1 & 63;
            out->min[i][r] = m & 63;
            out->min[4 + i][r] = s0 >> 6 | s1 >> 6 << 2 | m >> 6 << 4;
        }
    load_subs(unpack, sub_bytes, src->quants, out);
}

static void load_q4_k(const uint8_t *group, size_t n_blocks, size_t b, block_256 *out)
{
    (void)n_blocks;
    load_kq(unpack_nibbles, QW_Q4_BYTES, group + b * QW_Q4K_BYTES, out);
}

static void load_q5_k(const uint8_t *group, size_t n_blocks, size_t b, block_256 *out)
{
    (void)n_blocks;
    load_kq(unpack_5_bits, QW_Q5_BYTES, group + b * QW_Q5K_BYTES, out);
}

static void load_q6_k(const uint8_t *group, size_t n_blocks, size_t b, block_256 *out)
{
    const qw_packed_q6k *src = (const qw_packed_q6k *)(group + qw_scales_bytes(n_blocks)) + b;
    load_halves(group + b * QW_HALF_LINE, out->d);
    out->n_subs = 16;
    out->has_min = 0;
    for (size_t s = 0; s < 16; s++)
        for (size_t r = 0; r < ROWS; r++) out->scale[s][r] = src->scales[s / 4][4 * r + s % 4];
    load_subs(unpack_q6_k, QW_Q6_BYTES, src->quants[0], out);
}

static void load_q2_k(const uint8_t *group, size_t n_blocks, size_t b, block_256 *out)
{
    (void)n_blocks;
    const qw_packed_q2k *src = (const qw_packed_q2k *)group + b;
    load_halves(src->d, out->d);
    load_halves(src->dmin, out->dmin);
    out->n_subs = 16;
    out->has_min = 1;
    for (size_t s = 0; s < 16; s++)
        for (size_t r = 0; r < ROWS; r++) {
            out->scale[s][r] = src->scales[s / 4][4 * r + s % 4] & 15;
            out->min[s][r] = src->scales[s / 4][4 * r + s % 4] >> 4;
        }
    load_subs(unpack_q2_k, QW_Q2_BYTES, src->quants[0], out);
}

static void load_q3_k(const uint8_t *group, size_t n_blocks, size_t b, block_256 *out)
{
    const qw_packed_q3k *src = (const qw_packed_q3k *)(group + qw_scales_bytes(n_blocks)) + b;
    load_halves(group + b * QW_HALF_LINE, out->d);
    out->n_subs = 16;
    out->has_min = 0;
    for (size_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < 4; i++) {
            int last = 0;
            for (size_t v = 0; v < 3; v++) {
                out->scale[4 * v + i][r] = (src->scales[v][4 * r + i] & 63) - 32;
                last |= src->scales[v][4 * r + i] >> 6 << (2 * v);
            }
            out->scale[12 + i][r] = last - 32;
        }
    load_subs(unpack_q3_k, QW_Q3_BYTES, src->quants[0], out);
}

static void load_iq4_xs(const uint8_t *group, size_t n_blocks, size_t b, block_256 *out)
{
    (void)n_blocks;
    const qw_packed_iq4xs *src = (const qw_packed_iq4xs *)group + b;
    load_halves(src->d, out->d);
    out->n_subs = 8;
    out->has_min = 0;
    out->in_floats = 1;
    for (size_t s = 0; s < 8; s++)
        for (size_t r = 0; r < ROWS; r++)
            out->scale[s][r] =
                (int)((src->scale_low[r] >> (4 * s) & 15) | (uint32_t)(src->scale_high[r] >> (2 * s) & 3) << 4) - 32;
    load_subs(unpack_iq4, QW_Q4_BYTES, src->quants[0], out);
}

static void load_book(const uint8_t *group, size_t n_blocks, size_t b, block_256 *out)
{
    const qw_packed_book *src = (const qw_packed_book *)(group + qw_book_front(n_blocks)) + b;
    int8_t book[16];
    for (size_t i = 0; i < 16; i++) book[i] = (int8_t)(group[i] - QW_BOOK_OFFSET);
    memcpy(out->d, group + QW_LINE * (1 + b), sizeof out->d);
    out->n_subs = 16;
    out->has_min = 0;
    for (size_t s = 0; s < 16; s++)
        for (size_t r = 0; r < ROWS; r++) out->scale[s][r] = src->scales[s / 4][4 * r + s % 4];
    load_subs(unpack_nibbles, QW_Q4_BYTES, src->quants[0], out);
    for (size_t s = 0; s < QW_SUBS; s++) look_up(book, out->w + s * 32);
}

/* acc [16] += the block times one column's. */
static void col_256(block_256 *w, const qw_act256 *a, float *acc)
{
    int32_t isum[ROWS], total[ROWS] = {0}, msum[ROWS] = {0};
    float t[ROWS] = {0};
    size_t n = 256 / w->n_subs;
    for (size_t s = 0; s < w->n_subs; s++) {
        dot_rows(w->w + s * n, a->q + s * n, n, isum);
        for (size_t r = 0; r < ROWS; r++) {
            if (w->in_floats)
                t[r] = qw_ref_fma((float)isum[r], w->d[r] * (float)w->scale[s][r], t[r]);
            else
                total[r] += isum[r] * w->scale[s][r];
        }
    }
    for (size_t r = 0; r < ROWS && !w->in_floats; r++) t[r] = (float)total[r] * w->d[r];
    if (w->has_min) {
        for (size_t s = 0; s < w->n_subs; s++)
            for (size_t r = 0; r < ROWS; r++) msum[r] += w->min[s][r] * sum_of(a->q + s * n, n);
        for (size_t r = 0; r < ROWS; r++) t[r] = qw_ref_fma((float)msum[r], -w->dmin[r], t[r]);
    }
    for (size_t r = 0; r < ROWS; r++) acc[r] = qw_ref_fma(t[r], a->d, acc[r]);
}

static void gemm_256(load_256_fn *load, qw_pack form, const uint8_t *packed, size_t n_groups, size_t k,
                     const uint8_t *act, size_t n_cols, float *out, size_t ld_out)
{
    size_t act_bytes = qw_act_bytes(QW_ACT_Q8_256, k);
    block_256 block = {0};
    zero_out(n_groups, n_cols, out, ld_out);
    for (size_t g = 0; g < n_groups; g++, packed += qw_pack_group_bytes(form, k), out += ROWS)
        for (size_t b = 0; b < k / 256; b++) {
            load(packed, k / 256, b, &block);
            for (size_t c = 0; c < n_cols; c++)
                col_256(&block, (const qw_act256 *)(act + c * act_bytes) + b, out + c * ld_out);
        }
}

/* ---- slots -------------------------------------------------------------------------------------- */

#define GEMM_SLOT(name, form, block_n)                                                                              \
    static void gemm_##name(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,          \
                            float *out, size_t ld_out)                                                              \
    {                                                                                                               \
        gemm_##block_n(load_##name, form, packed, n_groups, k, act, n_cols, out, ld_out);                           \
    }
GEMM_SLOT(q4_0, QW_PACK_Q4_0, 32)
GEMM_SLOT(q4_1, QW_PACK_Q4_1, 32)
GEMM_SLOT(q5_0, QW_PACK_Q5_0, 32)
GEMM_SLOT(q5_1, QW_PACK_Q5_1, 32)
GEMM_SLOT(q8_0, QW_PACK_Q8_0, 32)
GEMM_SLOT(iq4_nl, QW_PACK_IQ4_NL, 32)
GEMM_SLOT(mxfp4, QW_PACK_MXFP4, 32)
GEMM_SLOT(q2_k, QW_PACK_Q2_K, 256)
GEMM_SLOT(q3_k, QW_PACK_Q3_K, 256)
GEMM_SLOT(q4_k, QW_PACK_Q4_K, 256)
GEMM_SLOT(q5_k, QW_PACK_Q5_K, 256)
GEMM_SLOT(q6_k, QW_PACK_Q6_K, 256)
GEMM_SLOT(iq4_xs, QW_PACK_IQ4_XS, 256)
GEMM_SLOT(book, QW_PACK_BOOK, 256)

void qw_gemm_init_ref(qw_kernels *t)
{
    t->gemm[QW_PACK_Q4_0] = gemm_q4_0;
    t->gemm[QW_PACK_Q4_1] = gemm_q4_1;
    t->gemm[QW_PACK_Q5_0] = gemm_q5_0;
    t->gemm[QW_PACK_Q5_1] = gemm_q5_1;
    t->gemm[QW_PACK_Q8_0] = gemm_q8_0;
    t->gemm[QW_PACK_IQ4_NL] = gemm_iq4_nl;
    t->gemm[QW_PACK_MXFP4] = gemm_mxfp4;
    t->gemm[QW_PACK_Q2_K] = gemm_q2_k;
    t->gemm[QW_PACK_Q3_K] = gemm_q3_k;
    t->gemm[QW_PACK_Q4_K] = gemm_q4_k;
    t->gemm[QW_PACK_Q5_K] = gemm_q5_k;
    t->gemm[QW_PACK_Q6_K] = gemm_q6_k;
    t->gemm[QW_PACK_IQ4_XS] = gemm_iq4_xs;
    for (qw_pack p = QW_PACK_IQ2_XXS; p <= QW_PACK_IQ3_S; p++) t->gemm[p] = gemm_book;
}
