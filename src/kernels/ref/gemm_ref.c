/* gemm_ref.c: quantised matrix products and the quantisation of activations in plain C. This is their
 * definition: every other level must give the same bits.
 *
 * Per block of 32 (Q4_0, Q5_0, Q8_0), in order of k:
 *     acc = fma((float)sum(w * a), dw * da, acc)
 * Per block of 256 (K types), in order of k, sums in exact int32:
 *     acc = fma((float)sum over sub-blocks of scale * sum(w * a), d * da, acc)
 *     acc = fma((float)sum over sub-blocks of min * sum(a), -(dmin * da), acc)       (Q4_K, Q5_K only)
 * w is the signed integer weight (Q4_K, Q5_K: unsigned), products of scales are rounded to float once.
 * docs/kernels.md proves that no integer sum leaves int32. Pure functions, any thread.
 */
#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/kernels_private.h"
#include "kernels/pack_layout.h"
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

/* Adds the bits above the nibble and takes off the form's offset. Fields of `width` bits; a line of them
 * serves 8 / width words. */
static void add_high(const uint8_t *high, size_t width, int16_t w[32][ROWS])
{
    for (size_t j = 0; j < QW_WORDS; j++) {
        const uint8_t *line = high + j * width / 8 * QW_LINE;
        for (size_t r = 0; r < ROWS; r++)
            for (size_t i = 0; i < 4; i++) {
                int field = line[4 * r + i] >> (j * width % 8) & ((1 << width) - 1);
                w[4 * j + i][r] = (int16_t)(w[4 * j + i][r] | field << 4);
            }
    }
}

static void add_offset(int offset, int16_t w[32][ROWS])
{
    for (size_t e = 0; e < 32; e++)
        for (size_t r = 0; r < ROWS; r++) w[e][r] = (int16_t)(w[e][r] + offset);
}

static void unpack_q4_0(const uint8_t *src, int16_t w[32][ROWS])
{
    unpack_nibbles(src, w);
    add_offset(-8, w);
}

static void unpack_q5_0(const uint8_t *src, int16_t w[32][ROWS])
{
    unpack_nibbles(src + QW_LINE, w);
    add_high(src, 1, w);
    add_offset(-16, w);
}

static void unpack_q8_0(const uint8_t *src, int16_t w[32][ROWS])
{
    for (size_t j = 0; j < QW_WORDS; j++)
        for (size_t r = 0; r < ROWS; r++)
            for (size_t i = 0; i < 4; i++) w[4 * j + i][r] = (int16_t)(src[j * QW_LINE + 4 * r + i] - 128);
}

static void unpack_q5_k(const uint8_t *src, int16_t w[32][ROWS])
{
    unpack_nibbles(src + QW_LINE, w);
    add_high(src, 1, w);
}

static void unpack_q6_k(const uint8_t *src, int16_t w[32][ROWS])
{
    unpack_nibbles(src + 2 * QW_LINE, w);
    add_high(src, 2, w);
    add_offset(-32, w);
}

/* isum[r] = sum of w[e][r] * a[e] over n elements. */
static void dot_rows(int16_t w[][ROWS], const int8_t *a, size_t n, int32_t isum[ROWS])
{
    for (size_t r = 0; r < ROWS; r++) isum[r] = 0;
    for (size_t e = 0; e < n; e++)
        for (size_t r = 0; r < ROWS; r++) isum[r] += w[e][r] * a[e];
}

/* ---- forms with one scale for 32 ---------------------------------------------------------------- */

/* One group. act: n_cols records of act_bytes each. out: 16 floats a column, already zero. */
static void group_q32(unpack_fn *unpack, size_t block_bytes, const uint8_t *group, size_t n_blocks,
                      const uint8_t *act, size_t act_bytes, size_t n_cols, float *out, size_t ld_out)
{
    const uint8_t *src = group + qw_scales_bytes(n_blocks);
    int16_t w[32][ROWS];
    int32_t isum[ROWS];
    for (size_t b = 0; b < n_blocks; b++, src += block_bytes) {
        qw_half dw[ROWS];
        memcpy(dw, group + b * QW_HALF_LINE, sizeof dw);
        unpack(src, w);
        for (size_t c = 0; c < n_cols; c++) {
            const qw_act32 *a = (const qw_act32 *)(act + c * act_bytes) + b;
            float *acc = out + c * ld_out;
            dot_rows(w, a->q, 32, isum);
            for (size_t r = 0; r < ROWS; r++)
                acc[r] = qw_ref_fma((float)isum[r], half_to_f32(dw[r]) * a->d, acc[r]);
        }
    }
}

static void gemm_q32(unpack_fn *unpack, size_t block_bytes, const uint8_t *packed, size_t n_groups, size_t k,
                     const uint8_t *act, size_t n_cols, float *out, size_t ld_out)
{
    size_t n_blocks = k / 32, act_bytes = qw_act_bytes(QW_ACT_Q8_32, k);
    size_t group_bytes = qw_scales_bytes(n_blocks) + n_blocks * block_bytes;
    for (size_t c = 0; c < n_cols; c++) memset(out + c * ld_out, 0, n_groups * ROWS * sizeof *out);
    for (size_t g = 0; g < n_groups; g++)
        group_q32(unpack, block_bytes, packed + g * group_bytes, n_blocks, act, act_bytes, n_cols,
                  out + g * ROWS, ld_out);
}

static void gemm_q4_0(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,
                      float *out, size_t ld_out)
{
    gemm_q32(unpack_q4_0, QW_Q4_BYTES, packed, n_groups, k, act, n_cols, out, ld_out);
}

static void gemm_q5_0(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,
                      float *out, size_t ld_out)
{
    gemm_q32(unpack_q5_0, QW_Q5_BYTES, packed, n_groups, k, act, n_cols, out, ld_out);
}

static void gemm_q8_0(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,
                      float *out, size_t ld_out)
{
    gemm_q32(unpack_q8_0, QW_Q8_BYTES, packed, n_groups, k, act, n_cols, out, ld_out);
}

/* ---- forms with one scale for 256 --------------------------------------------------------------- */

/* A 256-block taken apart. Q6_K has 16 scales (one for 16 elements) and no minima; Q4_K and Q5_K have 8. */
typedef struct k_block {
    int16_t w[256][ROWS];
    int32_t scale[16][ROWS], min[8][ROWS];
    size_t scale_n; /* elements a scale covers */
    float d[ROWS], dmin[ROWS];
} k_block;

static void load_halves(const void *src, float out[ROWS])
{
    qw_half h[ROWS];
    memcpy(h, src, sizeof h);
    for (size_t r = 0; r < ROWS; r++) out[r] = half_to_f32(h[r]);
}

static void load_kq(unpack_fn *unpack, size_t sub_bytes, const uint8_t *src, k_block *out)
{
    const qw_packed_kq *head = (const qw_packed_kq *)src;
    load_halves(head->d, out->d);
    load_halves(head->dmin, out->dmin);
    out->scale_n = 32;
    for (size_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < 4; i++) {
            int s0 = head->scales[0][4 * r + i], s1 = head->scales[1][4 * r + i], m = head->scales[2][4 * r + i];
            out->scale[i][r] = s0 & 63;
            out->scale[4 + i][r] = s1 & 63;
            out->min[i][r] = m & 63;
            out->min[4 + i][r] = s0 >> 6 | s1 >> 6 << 2 | m >> 6 << 4;
        }
    for (size_t s = 0; s < QW_SUBS; s++) unpack(head->quants + s * sub_bytes, out->w + s * 32);
}

static void load_q6_k(const uint8_t *scales, const uint8_t *src, k_block *out)
{
    const qw_packed_q6k *block = (const qw_packed_q6k *)src;
    load_halves(scales, out->d);
    out->scale_n = 16;
    for (size_t s = 0; s < 16; s++)
        for (size_t r = 0; r < ROWS; r++) out->scale[s][r] = block->scales[s / 4][4 * r + s % 4];
    for (size_t s = 0; s < QW_SUBS; s++) unpack_q6_k(block->quants[s], out->w + s * 32);
}

/* acc [16] += the block times one column's. */
static void block_col(k_block *w, const qw_act256 *a, float *acc)
{
    int32_t isum[ROWS], msum[ROWS] = {0};
    float t[ROWS] = {0};
    for (size_t s = 0; s < 256 / w->scale_n; s++) {
        dot_rows(w->w + s * w->scale_n, a->q + s * w->scale_n, w->scale_n, isum);
        for (size_t r = 0; r < ROWS; r++)
            t[r] = qw_ref_fma((float)isum[r], w->d[r] * (float)w->scale[s][r], t[r]);
    }
    if (w->scale_n != 16) {
        for (size_t i = 0; i < QW_SUBS; i++)
            for (size_t r = 0; r < ROWS; r++) msum[r] += w->min[qw_sum32_order[i]][r] * a->sum32[i / 2][i % 2];
        for (size_t r = 0; r < ROWS; r++) t[r] = qw_ref_fma((float)msum[r], -w->dmin[r], t[r]);
    }
    for (size_t r = 0; r < ROWS; r++) acc[r] = qw_ref_fma(t[r], a->d, acc[r]);
}

static void cols_k(k_block *block, size_t b, const uint8_t *act, size_t act_bytes, size_t n_cols, float *out,
                   size_t ld_out)
{
    for (size_t c = 0; c < n_cols; c++)
        block_col(block, (const qw_act256 *)(act + c * act_bytes) + b, out + c * ld_out);
}

static void gemm_kq(unpack_fn *unpack, size_t sub_bytes, const uint8_t *packed, size_t n_groups, size_t k,
                    const void *act, size_t n_cols, float *out, size_t ld_out)
{
    size_t n_blocks = k / 256, act_bytes = qw_act_bytes(QW_ACT_Q8_256, k);
    k_block block;
    for (size_t c = 0; c < n_cols; c++) memset(out + c * ld_out, 0, n_groups * ROWS * sizeof *out);
    for (size_t g = 0; g < n_groups; g++, out += ROWS)
        for (size_t b = 0; b < n_blocks; b++, packed += sizeof(qw_packed_kq) + QW_SUBS * sub_bytes) {
            load_kq(unpack, sub_bytes, packed, &block);
            cols_k(&block, b, act, act_bytes, n_cols, out, ld_out);
        }
}

static void gemm_q4_k(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,
                      float *out, size_t ld_out)
{
    gemm_kq(unpack_nibbles, QW_Q4_BYTES, packed, n_groups, k, act, n_cols, out, ld_out);
}

static void gemm_q5_k(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,
                      float *out, size_t ld_out)
{
    gemm_kq(unpack_q5_k, QW_Q5_BYTES, packed, n_groups, k, act, n_cols, out, ld_out);
}

static void gemm_q6_k(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,
                      float *out, size_t ld_out)
{
    size_t n_blocks = k / 256, act_bytes = qw_act_bytes(QW_ACT_Q8_256, k);
    const uint8_t *group = packed;
    k_block block;
    for (size_t c = 0; c < n_cols; c++) memset(out + c * ld_out, 0, n_groups * ROWS * sizeof *out);
    for (size_t g = 0; g < n_groups; g++, out += ROWS) {
        const uint8_t *src = group + qw_scales_bytes(n_blocks);
        for (size_t b = 0; b < n_blocks; b++, src += QW_Q6K_BYTES) {
            load_q6_k(group + b * QW_HALF_LINE, src, &block);
            cols_k(&block, b, act, act_bytes, n_cols, out, ld_out);
        }
        group = src;
    }
}

/* ---- activations -------------------------------------------------------------------------------- */

/* The value that stands for x: NaN is 0, infinities are the largest float. */
static float act_value(float x)
{
    x = isnan(x) ? 0.0f : x;
    x = x > FLT_MAX ? FLT_MAX : x;
    return x < -FLT_MAX ? -FLT_MAX : x;
}

/* Quantises n floats with one scale, which it returns. Rounding to nearest even by adding 1.5 * 2^23:
 * |x * 127 / amax| stays below 2^22 by far. */
static float quantize_group(const float *x, size_t n, int8_t *q)
{
    const float magic = 0x1.8p23f;
    float amax = 0.0f;
    for (size_t i = 0; i < n; i++) {
        float v = fabsf(act_value(x[i]));
        amax = v > amax ? v : amax;
    }
    if (amax < QW_ACT_AMAX_MIN) {
        memset(q, 0, n);
        return 0.0f;
    }
    float inverse = 127.0f / amax;
    for (size_t i = 0; i < n; i++) q[i] = (int8_t)(int)((act_value(x[i]) * inverse + magic) - magic);
    return amax / 127.0f;
}

static void lane_sums(const int8_t *q, size_t n, int lane[2])
{
    lane[0] = lane[1] = 0;
    for (size_t i = 0; i < n; i += 4) {
        lane[0] += q[i] + q[i + 1];
        lane[1] += q[i + 2] + q[i + 3];
    }
}

static void quantize_q8_32(const float *x, size_t k, void *record)
{
    qw_act32 *a = record;
    size_t n = k / 32;
    for (size_t b = 0; b < n; b++, a++, x += 32) {
        int lane[2];
        a->d = quantize_group(x, 32, a->q);
        lane_sums(a->q, 32, lane);
        a->neg_sum = -(lane[0] + lane[1]);
        a->neg_lane[0] = (int16_t)-lane[0];
        a->neg_lane[1] = (int16_t)-lane[1];
    }
    memset(a, 0, qw_act_bytes(QW_ACT_Q8_32, k) - n * sizeof *a);
}

static void quantize_q8_256(const float *x, size_t k, void *record)
{
    qw_act256 *a = record;
    for (size_t b = 0; b < k / 256; b++, a++, x += 256) {
        int sum[16];
        a->d = quantize_group(x, 256, a->q);
        for (size_t s = 0; s < 16; s++) {
            int lane[2];
            lane_sums(a->q + s * 16, 16, lane);
            sum[s] = lane[0] + lane[1];
            a->neg_sum16[s] = -32 * sum[s];
            a->neg_lane16[s][0] = (int16_t)(-32 * lane[0]);
            a->neg_lane16[s][1] = (int16_t)(-32 * lane[1]);
        }
        for (size_t i = 0; i < QW_SUBS; i++) {
            size_t s = qw_sum32_order[i];
            a->sum32[i / 2][i % 2] = (int16_t)(sum[2 * s] + sum[2 * s + 1]);
        }
        memset(a->pad, 0, sizeof a->pad);
    }
}

void qw_gemm_init_ref(qw_kernels *t)
{
    t->quantize_act[QW_ACT_Q8_32] = quantize_q8_32;
    t->quantize_act[QW_ACT_Q8_256] = quantize_q8_256;
    t->gemm[QW_PACK_Q4_0] = gemm_q4_0;
    t->gemm[QW_PACK_Q5_0] = gemm_q5_0;
    t->gemm[QW_PACK_Q8_0] = gemm_q8_0;
    t->gemm[QW_PACK_Q4_K] = gemm_q4_k;
    t->gemm[QW_PACK_Q5_K] = gemm_q5_k;
    t->gemm[QW_PACK_Q6_K] = gemm_q6_k;
}
