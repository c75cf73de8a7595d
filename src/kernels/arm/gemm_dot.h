/* gemm_dot.h: tiles of the levels that multiply word by word: 4 rows x 4 k of a quad with 4 activations of a column. Up
 * to 4 columns a tile: 16 sums, 4 registers of activations and the weights at hand fit the 32 registers.
 *
 * The file that includes it has defined before, with NARROW for weights of at most 6 bits:
 *   dot_pair(width, N, sum, q, lo, hi, a, lane): sum[n][q] += lo * word `lane` of a[n] + hi * word `lane` + 1, n < N
 * and makes the slots: TILE_FORMS(GEMM_DOT_SLOT, level). Bits as ref/gemm_ref.c. Any thread.
 */
#ifndef QW_KERNELS_ARM_GEMM_DOT_H
#define QW_KERNELS_ARM_GEMM_DOT_H

/* 16 activations of each column. */
TILE_INLINE void load_activations(int N, int8x16_t *x, const int8_t *const *a, int at)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) x[n] = vld1q_s8(a[n] + at);
}

/* A quad of word j as a factor: what is 128 too high with its top bit flipped, which makes it signed. */
TILE_INLINE int8x16_t factor(qw_pack form, const uint8_t *lines, int j, uint8x16_t book)
{
    uint8x16_t x = quad_word(kind_of(form), lines, j, book);
    return vreinterpretq_s8_u8(form == QW_PACK_Q8_0 ? veorq_u8(x, vdupq_n_u8(128)) : x);
}

/* sum += the products of pairs [i0, i1) of words of 32 elements; a: the columns' 32 quants. */
TILE_INLINE void dot_words(qw_pack form, int N, int32x4_t sum[][TILE_QUADS], const uint8_t *lines, int i0, int i1,
                           uint8x16_t book, const int8_t *const *a)
{
    const int width = offset_is_128(form) ? WIDE : NARROW;
    int8x16_t x[N_MAX];
    TILE_UNROLL
    for (int i = i0; i < i1; i++) {
        if (i % 2 == 0) load_activations(N, x, a, 8 * i);
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) {
            const uint8_t *quad = lines + q * TILE_QUAD_BYTES;
            dot_pair(width, N, sum, q, factor(form, quad, 2 * i, book), factor(form, quad, 2 * i + 1, book), x,
                     i % 2 * 2);
        }
    }
}

/* The form's table; signed where its numbers are 128 too high. */
TILE_INLINE uint8x16_t factor_book(qw_pack form)
{
    return offset_is_128(form) ? veorq_u8(book_of(form), vdupq_n_u8(128)) : book_of(form);
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

/* ---- blocks of 32 ------------------------------------------------------------------------------------------------ */

TILE_INLINE void tile_32(qw_pack form, int N, const uint8_t *group, size_t n_blocks, const uint8_t *act,
                         size_t act_bytes, float *out, size_t ld_out)
{
    const blocks_32 at = layout_32(form, n_blocks);
    const uint8x16_t book = factor_book(form);
    const uint8_t *front = group, *block = group + at.first;
    float32x4_t acc[N_MAX][TILE_QUADS];
    zero_floats(N, acc);
    for (size_t b = 0; b < n_blocks; b++, block += at.bytes, front += at.front) {
        const qw_act32 *rec[N_MAX];
        const int8_t *a[N_MAX];
        int32x4_t sum[N_MAX][TILE_QUADS];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act32 *)(act + (size_t)n * act_bytes) + b;
            a[n] = rec[n]->q;
            begin_sum(sum, n, start_32(form, true, rec[n]));
        }
        TILE_IN_MEMORY(N, acc);
        dot_words(form, N, sum, block + at.head, 0, QW_WORDS / 2, book, a);
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) {
            float32x4_t d = quad_scale_32(form, front, block, q);
            TILE_UNROLL
            for (int n = 0; n < N; n++) {
                acc[n][q] = vfmaq_f32(acc[n][q], vcvtq_f32_s32(sum[n][q]), vmulq_n_f32(d, rec[n]->d));
                if (has_minimum(form))
                    acc[n][q] = vfmaq_n_f32(acc[n][q], quad_halves(block + QW_HALF_LINE, q), rec[n]->d_sum);
            }
        }
    }
    store(N, acc, out, ld_out);
}

/* ---- blocks of 256 ----------------------------------------------------------------------------------------------- */

/* acc = fma(t, da, acc): the end of a block. */
TILE_INLINE void add_block(int N, float32x4_t acc[][TILE_QUADS], float32x4_t t[][TILE_QUADS],
                           const qw_act256 *const *rec)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        TILE_UNROLL
        for (int q = 0; q < TILE_QUADS; q++) acc[n][q] = vfmaq_n_f32(acc[n][q], t[n][q], rec[n]->d);
    }
}

/* t = fma(sum, d * scale, t), one quad of a sub-block; in integers t += sum * scale. */
TILE_INLINE void add_scaled(int N, float32x4_t t[][TILE_QUADS], int32x4_t sum[][TILE_QUADS], int q, float32x4_t scale)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) t[n][q] = vfmaq_f32(t[n][q], vcvtq_f32_s32(sum[n][q]), scale);
}

TILE_INLINE void add_integers(int N, int32x4_t t[][TILE_QUADS], int32x4_t sum[][TILE_QUADS], int q, int32x4_t scale)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) t[n][q] = vmlaq_s32(t[n][q], sum[n][q], scale);
}

TILE_INLINE void zero_totals(int N, int32x4_t total[][TILE_QUADS])
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) begin_sum(total, n, 0);
}

/* t = (float)total * d */
TILE_INLINE void scale_totals(int N, float32x4_t t[][TILE_QUADS], int32x4_t total[][TILE_QUADS], const uint8_t *halves)
{
    TILE_UNROLL
    for (int q = 0; q < TILE_QUADS; q++) {
        float32x4_t d = quad_halves(halves, q);
        TILE_UNROLL
        for (int n = 0; n < N; n++) t[n][q] = vmulq_f32(vcvtq_f32_s32(total[n][q]), d);
    }
}

/* sum[n][q] += a quad's minima times x[n] */
TILE_INLINE void dot_minima(qw_pack form, int N, int32x4_t sum[][TILE_QUADS], const uint8_t *block, int q,
                            const int8x16_t *x)
{
    TILE_UNROLL
    for (int i = 0; i < parts_of(form); i++) {
        uint8x16x2_t m = quad_minima(form, block, i, q);
        dot_pair(NARROW, N, sum, q, vreinterpretq_s8_u8(m.val[0]), vreinterpretq_s8_u8(m.val[1]), x, 2 * i);
    }
}

/* t = fma(minima * sums of activations, -dmin, t) */
TILE_INLINE void subtract_minima(qw_pack form, int N, float32x4_t t[][TILE_QUADS], const uint8_t *block,
                                 const qw_act256 *const *rec)
{
    int8x16_t low[N_MAX], high[N_MAX];
    int32x4_t sum[N_MAX][TILE_QUADS];
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        sum_bytes bytes = sums_of(form, rec[n]);
        low[n] = bytes.low;
        high[n] = bytes.high;
        begin_sum(sum, n, 0);
    }
    TILE_UNROLL
    for (int q = 0; q < TILE_QUADS; q++) {
        float32x4_t dmin = quad_halves(block + QW_HALF_LINE, q);
        dot_minima(form, N, sum, block, q, high);
        TILE_UNROLL
        for (int n = 0; n < N; n++) sum[n][q] = vshlq_n_s32(sum[n][q], 7);
        dot_minima(form, N, sum, block, q, low);
        TILE_UNROLL
        for (int n = 0; n < N; n++) t[n][q] = vfmsq_f32(t[n][q], vcvtq_f32_s32(sum[n][q]), dmin);
    }
}

TILE_INLINE void tile_256(qw_pack form, int N, const uint8_t *group, size_t n_blocks, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    const bool in_front = form == QW_PACK_Q6_K || form == QW_PACK_Q3_K; /* the half scales */
    const size_t head = head_bytes_256(form), sub_bytes = quant_bytes(kind_of(form));
    const int n_parts = parts_of(form);
    const uint8x16_t book = factor_book(form);
    const uint8_t *front = group, *block = group + (in_front ? qw_scales_bytes(n_blocks) : 0);
    float32x4_t acc[N_MAX][TILE_QUADS], t[N_MAX][TILE_QUADS];
    int32x4_t total[N_MAX][TILE_QUADS]; /* what t is before it is a float */
    zero_floats(N, acc);
    for (size_t b = 0; b < n_blocks; b++, front += QW_HALF_LINE) {
        const uint8_t *w = block + head, *halves = in_front ? front : block;
        const qw_act256 *rec[N_MAX];
        const int8_t *a[N_MAX];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act256 *)(act + (size_t)n * act_bytes) + b;
            a[n] = rec[n]->q;
        }
        TILE_IN_MEMORY(N, acc);
        zero_totals(N, total);
        zero_floats(N, t);
        TILE_ROLLED
        for (int s = 0; s < QW_SUBS; s++, w += sub_bytes) {
            TILE_UNROLL
            for (int part = 0; part < n_parts; part++) {
                const int at = n_parts * s + part;
                int32x4_t sum[N_MAX][TILE_QUADS];
                if (scales_floats(form)) TILE_IN_MEMORY(N, t);
                if (!scales_floats(form)) TILE_IN_MEMORY(N, total);
                TILE_UNROLL
                for (int n = 0; n < N; n++) begin_sum(sum, n, start_256(form, true, rec[n], at));
                dot_words(form, N, sum, w, part * 2, part * 2 + QW_WORDS / 2 / n_parts, book, a);
                TILE_UNROLL
                for (int q = 0; q < TILE_QUADS; q++) {
                    int32x4_t scale = quad_scale(form, block, at, q);
                    if (scales_floats(form))
                        add_scaled(N, t, sum, q, vmulq_f32(quad_halves(halves, q), vcvtq_f32_s32(scale)));
                    else
                        add_integers(N, total, sum, q, scale);
                }
            }
            TILE_UNROLL
            for (int n = 0; n < N; n++) a[n] += 32;
        }
        if (!scales_floats(form)) scale_totals(N, t, total, halves);
        TILE_IN_MEMORY(N, t);
        if (has_minima(form)) subtract_minima(form, N, t, block, rec);
        add_block(N, acc, t, rec);
        block = w;
    }
    store(N, acc, out, ld_out);
}

/* The slot qw_gemm_<name>_<level> with tiles of 1 to 4 columns. */
#define GEMM_DOT_SLOT(level, name, form, block_n)                                                                     \
    TILE_INSTANCE(name, form, tile_##block_n, 1)                                                                      \
    TILE_INSTANCE(name, form, tile_##block_n, 2)                                                                      \
    TILE_INSTANCE(name, form, tile_##block_n, 3)                                                                      \
    TILE_INSTANCE(name, form, tile_##block_n, 4)                                                                      \
    static tile_fn *const name##_tiles[] = {NULL, name##_x1, name##_x2, name##_x3, name##_x4};                        \
    void qw_gemm_##name##_##level(const void *packed, size_t n_groups, size_t k, const void *act, size_t n_cols,      \
                                  float *out, size_t ld_out)                                                          \
    {                                                                                                                 \
        TILE_WALK(name, form, k / (block_n));                                                                         \
    }

#endif
