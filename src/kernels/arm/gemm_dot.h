/* gemm_dot.h: tiles of the levels that multiply word by word: 4 rows x 4 k of a quad with 4 activations of a column. Up
 * to 4 columns a tile: 16 sums, 4 registers of activations and the weights at hand fit the 32 registers.
 *
 * The file that includes it has defined before, with NARROW for weights of at most 6 bits:
 *   dot_pair(width, N, sum, q, lo, hi, a, lane): sum[n][q] += lo * word `lane` of a[n] + hi * word `lane` + 1, n < N
 * and calls GEMM_DOT_SLOTS(level) for its six slots. Bits as ref/gemm_ref.c. Any thread.
 */
#ifndef QW_KERNELS_ARM_GEMM_DOT_H
#define QW_KERNELS_ARM_GEMM_DOT_H

/* 16 activations of each column. */
TILE_INLINE void load_activations(int N, int8x16_t *x, const int8_t *const *a, int at)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) x[n] = vld1q_s8(a[n] + at);
}

/* sum += the products of pairs [i0, i1) of words of 32 elements; a: the columns' 32 quants. */
TILE_INLINE void dot_words(int high, int N, int32x4_t sum[][TILE_QUADS], const uint8_t *lines, int i0, int i1,
                           const int8_t *const *a)
{
    int8x16_t x[N_MAX];
    TILE_UNROLL
    for (int i = i0; i < i1; i++) {
        if (i % 2 == 0) load_activations(N, x, a, 8 * i);
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) {
            uint8x16x2_t w = unpack_words(high, lines, i, q);
            dot_pair(NARROW, N, sum, q, vreinterpretq_s8_u8(w.val[0]), vreinterpretq_s8_u8(w.val[1]), x, i % 2 * 2);
        }
    }
}

/* The same of Q8_0's 8 words: bytes w + 128, which without their top bit flipped are w. */
TILE_INLINE void dot_bytes(int N, int32x4_t sum[][TILE_QUADS], const uint8_t *words, const int8_t *const *a)
{
    const uint8x16_t flip = vdupq_n_u8(128);
    int8x16_t x[N_MAX];
    TILE_UNROLL
    for (int i = 0; i < QW_WORDS / 2; i++) {
        if (i % 2 == 0) load_activations(N, x, a, 8 * i);
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) {
            const uint8_t *at = words + 2 * i * QW_LINE + q * TILE_QUAD_BYTES;
            int8x16_t lo = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at), flip));
            int8x16_t hi = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(at + QW_LINE), flip));
            dot_pair(WIDE, N, sum, q, lo, hi, x, i % 2 * 2);
        }
    }
}

TILE_INLINE void store(int N, float32x4_t acc[][TILE_QUADS], float *out, size_t ld_out)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) vst1q_f32(out + (size_t)n * ld_out + 4 * q, acc[n][q]);
    }
}

TILE_INLINE void zero_floats(int N, float32x4_t x[][TILE_QUADS])
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) x[n][q] = vdupq_n_f32(0.0f);
    }
}

/* All quads of column n begin at the same number. */
TILE_INLINE void begin_sum(int32x4_t sum[][TILE_QUADS], int n, int32_t start)
{
    TILE_UNROLL
    for (int q = 0; q < TILE_QUADS; q++) sum[n][q] = vdupq_n_s32(start);
}

/* ---- one scale for 32: Q4_0, Q5_0, Q8_0 -------------------------------------------------------------------------- */

TILE_INLINE void tile_q32(qw_pack form, int N, const uint8_t *group, size_t n_blocks, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    const size_t block_bytes = form == QW_PACK_Q4_0   ? QW_Q4_BYTES
                               : form == QW_PACK_Q5_0 ? QW_Q5_BYTES
                                                      : QW_Q8_BYTES;
    const int offset = form == QW_PACK_Q4_0 ? 8 : form == QW_PACK_Q5_0 ? 16 : 0;
    const uint8_t *scales = group, *w = group + qw_scales_bytes(n_blocks);
    float32x4_t acc[N_MAX][TILE_QUADS];
    zero_floats(N, acc);
    for (size_t b = 0; b < n_blocks; b++, w += block_bytes, scales += QW_HALF_LINE) {
        const qw_act32 *rec[N_MAX];
        const int8_t *a[N_MAX];
        int32x4_t sum[N_MAX][TILE_QUADS];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act32 *)(act + (size_t)n * act_bytes) + b;
            a[n] = rec[n]->q;
            begin_sum(sum, n, offset * rec[n]->neg_sum);
        }
        TILE_IN_MEMORY(N, acc);
        if (form == QW_PACK_Q8_0)
            dot_bytes(N, sum, w, a);
        else
            dot_words(form == QW_PACK_Q5_0 ? HIGH_1 : HIGH_NONE, N, sum, w, 0, QW_WORDS / 2, a);
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) {
            float32x4_t dw = quad_halves(scales, q);
            TILE_UNROLL
            for (int n = 0; n < N; n++)
                acc[n][q] = vfmaq_f32(acc[n][q], vcvtq_f32_s32(sum[n][q]), vmulq_n_f32(dw, rec[n]->d));
        }
    }
    store(N, acc, out, ld_out);
}

/* ---- one scale for 256, and a smaller one for 32 or 16 ----------------------------------------------------------- */

/* acc = fma(t, da, acc): the end of a block of 256. */
TILE_INLINE void add_block(int N, float32x4_t acc[][TILE_QUADS], float32x4_t t[][TILE_QUADS],
                           const qw_act256 *const *rec)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) acc[n][q] = vfmaq_n_f32(acc[n][q], t[n][q], rec[n]->d);
    }
}

/* t = fma(sum, d * scale, t), one quad of a sub-block. */
TILE_INLINE void add_scaled(int N, float32x4_t t[][TILE_QUADS], int32x4_t sum[][TILE_QUADS], int q, float32x4_t scale)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) t[n][q] = vfmaq_f32(t[n][q], vcvtq_f32_s32(sum[n][q]), scale);
}

/* t = fma(minima * sums of activations, -dmin, t) */
TILE_INLINE void subtract_minima(int N, float32x4_t t[][TILE_QUADS], const qw_packed_kq *head,
                                 const qw_act256 *const *rec)
{
    int8x16_t x[N_MAX];
    int32x4_t sum[N_MAX][TILE_QUADS];
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        x[n] = sum_bytes(rec[n]);
        begin_sum(sum, n, 0);
    }
    TILE_UNROLL
    for (int q = 0; q < TILE_QUADS; q++) {
        uint8x16x2_t m = quad_minima(head, q);
        int8x16_t lo = vreinterpretq_s8_u8(m.val[0]), hi = vreinterpretq_s8_u8(m.val[1]);
        float32x4_t dmin = quad_halves(head->dmin, q);
        dot_pair(NARROW, N, sum, q, lo, hi, x, 2);
        TILE_UNROLL
        for (int n = 0; n < N; n++) sum[n][q] = vshlq_n_s32(sum[n][q], 7);
        dot_pair(NARROW, N, sum, q, lo, hi, x, 0);
        TILE_UNROLL
        for (int n = 0; n < N; n++) t[n][q] = vfmsq_f32(t[n][q], vcvtq_f32_s32(sum[n][q]), dmin);
    }
}

TILE_INLINE void tile_kq(qw_pack form, int N, const uint8_t *group, size_t n_blocks, const uint8_t *act,
                         size_t act_bytes, float *out, size_t ld_out)
{
    const size_t sub_bytes = form == QW_PACK_Q4_K ? QW_Q4_BYTES : QW_Q5_BYTES;
    float32x4_t acc[N_MAX][TILE_QUADS], t[N_MAX][TILE_QUADS];
    zero_floats(N, acc);
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
        TILE_IN_MEMORY(N, acc);
        zero_floats(N, t);
        TILE_ROLLED
        for (int s = 0; s < QW_SUBS; s++, w += sub_bytes) {
            int32x4_t sum[N_MAX][TILE_QUADS];
            TILE_IN_MEMORY(N, t);
            TILE_UNROLL
            for (int n = 0; n < N; n++) begin_sum(sum, n, 0);
            dot_words(form == QW_PACK_Q5_K ? HIGH_1 : HIGH_NONE, N, sum, w, 0, QW_WORDS / 2, a);
            TILE_UNROLL
            for (int q = 0; q < TILE_QUADS; q++)
                add_scaled(N, t, sum, q, vmulq_f32(quad_halves(head->d, q), quad_scale_kq(head, s, q)));
            TILE_UNROLL
            for (int n = 0; n < N; n++) a[n] += 32;
        }
        TILE_IN_MEMORY(N, t);
        subtract_minima(N, t, head, rec);
        add_block(N, acc, t, rec);
        group = w;
    }
    store(N, acc, out, ld_out);
}

/* Q6_K: two scales in 32 elements; the offset of the weights is in the sums' start. */
TILE_INLINE void tile_q6k(qw_pack form, int N, const uint8_t *group, size_t n_blocks, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    (void)form;
    const uint8_t *halves = group, *block = group + qw_scales_bytes(n_blocks);
    float32x4_t acc[N_MAX][TILE_QUADS], t[N_MAX][TILE_QUADS];
    zero_floats(N, acc);
    for (size_t b = 0; b < n_blocks; b++, block += QW_Q6K_BYTES, halves += QW_HALF_LINE) {
        const qw_packed_q6k *src = (const qw_packed_q6k *)(const void *)block;
        const qw_act256 *rec[N_MAX];
        const int8_t *a[N_MAX];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act256 *)(act + (size_t)n * act_bytes) + b;
            a[n] = rec[n]->q;
        }
        TILE_IN_MEMORY(N, acc);
        zero_floats(N, t);
        TILE_ROLLED
        for (int s = 0; s < QW_SUBS; s++) {
            TILE_UNROLL
            for (int half = 0; half < 2; half++) {
                int32x4_t sum[N_MAX][TILE_QUADS];
                TILE_IN_MEMORY(N, t);
                TILE_UNROLL
                for (int n = 0; n < N; n++) begin_sum(sum, n, rec[n]->neg_sum16[2 * s + half]);
                dot_words(HIGH_2, N, sum, src->quants[s], 2 * half, 2 * half + 2, a);
                TILE_UNROLL
                for (int q = 0; q < TILE_QUADS; q++)
                    add_scaled(N, t, sum, q, vmulq_f32(quad_halves(halves, q), quad_scale_q6k(src, 2 * s + half, q)));
            }
            TILE_UNROLL
            for (int n = 0; n < N; n++) a[n] += 32;
        }
        TILE_IN_MEMORY(N, t);
        add_block(N, acc, t, rec);
    }
    store(N, acc, out, ld_out);
}

/* The slot qw_gemm_<form>_<level> with tiles of 1 to 4 columns. */
#define GEMM_DOT_SLOT(level, name, form, block_n, tile)                                                               \
    TILE_INSTANCE(name, form, tile, 1)                                                                                \
    TILE_INSTANCE(name, form, tile, 2)                                                                                \
    TILE_INSTANCE(name, form, tile, 3)                                                                                \
    TILE_INSTANCE(name, form, tile, 4)                                                                                \
    static tile_fn *const name##_tiles[] = {NULL, name##_x1, name##_x2, name##_x3, name##_x4};                        \
    void qw_gemm_##name##_##level(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,      \
                                  float *out, size_t ld_out)                                                          \
    {                                                                                                                 \
        TILE_WALK(name, form, k / (block_n));                                                                                 \
    }
#define GEMM_DOT_SLOTS(level)                              \
    GEMM_DOT_SLOT(level, q4_0, QW_PACK_Q4_0, 32, tile_q32) \
    GEMM_DOT_SLOT(level, q5_0, QW_PACK_Q5_0, 32, tile_q32) \
    GEMM_DOT_SLOT(level, q8_0, QW_PACK_Q8_0, 32, tile_q32) \
    GEMM_DOT_SLOT(level, q4_k, QW_PACK_Q4_K, 256, tile_kq) \
    GEMM_DOT_SLOT(level, q5_k, QW_PACK_Q5_K, 256, tile_kq) \
    GEMM_DOT_SLOT(level, q6_k, QW_PACK_Q6_K, 256, tile_q6k)

#endif
