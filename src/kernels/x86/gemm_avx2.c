/* gemm_avx2.c: quantised matrix products with AVX2: 16 rows are two registers of 8 lanes, up to 4 columns
 * a tile; and the quantisation of activations.
 *
 * vpmaddubsw multiplies unsigned weights with signed activations and adds pairs into 16-bit lanes, which
 * are summed as deep as is exact (docs/kernels.md has the bounds) before one vpmaddwd widens them, by ones
 * or by the integer scale. Where weights are signed, the lanes start at -offset * sum(activations), so
 * that they end in the signed range. Sums that are touched once a block live in memory: 8 sums in 16 bits
 * and the unpacked weights fill the 16 registers. Bits as ref/gemm_ref.c. Any thread.
 */
#include <float.h>

#include "kernels/kernels_private.h"
#include "kernels/x86/gemm_tiles.h"

enum { N_MAX = 4, HALVES = 2 }; /* half 0: rows 0-7, half 1: rows 8-15 */

TILE_INLINE __m256i load(const void *p)
{
    return _mm256_loadu_si256(p);
}

TILE_INLINE __m256 eight_halves(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* Fixes a running sum in a register at this point of the program. Compilers may regroup integer sums, and
 * gcc does: it puts all products of a block aside (in memory) and adds them up at the end. */
TILE_INLINE void pin(__m256i *sum)
{
    __asm__("" : "+x"(*sum));
}

/* sum[h][n] += w[h] [8 rows, 4] * a[n] [4], in 16-bit lanes. */
TILE_INLINE void dot4(int N, __m256i sum[HALVES][N_MAX], __m256i w0, __m256i w1, const int8_t *const *a,
                      size_t at)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        __m256i x = _mm256_set1_epi32(tile_i32(a[n] + at));
        sum[0][n] = _mm256_add_epi16(sum[0][n], _mm256_maddubs_epi16(w0, x));
        sum[1][n] = _mm256_add_epi16(sum[1][n], _mm256_maddubs_epi16(w1, x));
        pin(&sum[0][n]);
        pin(&sum[1][n]);
    }
}

enum { HIGH_NONE, HIGH_1, HIGH_2 };

/* x shifted up by `by` bits, or down when negative: the instruction wants a literal. */
TILE_INLINE __m256i shifted(__m256i x, int by)
{
    switch (by) {
    case 4: return _mm256_slli_epi16(x, 4);
    case 3: return _mm256_slli_epi16(x, 3);
    case 2: return _mm256_slli_epi16(x, 2);
    case 1: return _mm256_slli_epi16(x, 1);
    case 0: return x;
    case -1: return _mm256_srli_epi16(x, 1);
    case -2: return _mm256_srli_epi16(x, 2);
    default: return _mm256_srli_epi16(x, 3);
    }
}

/* Word j of 32 elements: its nibbles plus field j of the line of high bits. */
TILE_INLINE __m256i with_high(int high, __m256i nibble, const uint8_t *line, int j)
{
    if (high == HIGH_NONE) return nibble;
    int at = high == HIGH_1 ? j : 2 * (j % 4); /* where the field is; it belongs at bit 4 */
    __m256i mask = _mm256_set1_epi8(high == HIGH_1 ? 0x10 : 0x30);
    return _mm256_or_si256(nibble, _mm256_and_si256(shifted(load(line), 4 - at), mask));
}

/* sum += the dot products of words [j0, j0 + n_words) of 32 elements. lines: high bits, nibble lines. */
TILE_INLINE void dot_words(int high, int N, __m256i sum[HALVES][N_MAX], const uint8_t *lines, int j0,
                           int n_words, const int8_t *const *a)
{
    const __m256i low = _mm256_set1_epi8(15);
    const uint8_t *high_line = lines + (high == HIGH_2 ? j0 / 4 : 0) * QW_LINE;
    const uint8_t *nibble_lines = lines + (high == HIGH_NONE ? 0 : high == HIGH_1 ? 1 : 2) * QW_LINE;
    TILE_UNROLL
    for (int j = j0; j < j0 + n_words; j += 2) {
        const uint8_t *line = nibble_lines + j / 2 * QW_LINE;
        __m256i x0 = load(line), x1 = load(line + 32);
        dot4(N, sum, with_high(high, _mm256_and_si256(x0, low), high_line, j),
             with_high(high, _mm256_and_si256(x1, low), high_line + 32, j), a, (size_t)(4 * j));
        x0 = _mm256_and_si256(_mm256_srli_epi16(x0, 4), low);
        x1 = _mm256_and_si256(_mm256_srli_epi16(x1, 4), low);
        dot4(N, sum, with_high(high, x0, high_line, j + 1), with_high(high, x1, high_line + 32, j + 1), a,
             (size_t)(4 * j + 4));
    }
}

/* out[16] = fma((float)isum, scale * da, out), 8 rows of it. */
TILE_INLINE void accumulate(float *out, __m256i isum, __m256 scale, float da)
{
    __m256 acc = _mm256_loadu_ps(out);
    acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), _mm256_mul_ps(scale, _mm256_set1_ps(da)), acc);
    _mm256_storeu_ps(out, acc);
}

TILE_INLINE void zero_out(int N, float *out, size_t ld_out)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) memset(out + (size_t)n * ld_out, 0, QW_GROUP_ROWS * sizeof *out);
}

/* ---- one scale for 32: Q4_0, Q5_0 --------------------------------------------------------------- */

TILE_INLINE void tile_q32(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    const size_t block_bytes = form == QW_PACK_Q4_0 ? QW_Q4_BYTES : QW_Q5_BYTES;
    const int offset_shift = form == QW_PACK_Q4_0 ? 3 : 4;
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t *scales = group + part.b0 * QW_HALF_LINE;
    const uint8_t *w = group + qw_scales_bytes(part.n_blocks) + part.b0 * block_bytes, *ahead = w + part.ahead;
    if (part.b0 == 0) zero_out(N, out, ld_out);
    for (size_t b = part.b0; b < part.b1; b++, w += block_bytes, scales += QW_HALF_LINE) {
        const qw_act32 *rec[N_MAX];
        const int8_t *a[N_MAX];
        __m256i sum[HALVES][N_MAX];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act32 *)(act + (size_t)n * act_bytes) + b;
            a[n] = rec[n]->q;
            sum[0][n] = _mm256_slli_epi16(_mm256_set1_epi32(tile_i32(rec[n]->neg_lane)), offset_shift);
            sum[1][n] = sum[0][n];
        }
        ahead = tile_prefetch(ahead, block_bytes + QW_HALF_LINE);
        dot_words(form == QW_PACK_Q5_0 ? HIGH_1 : HIGH_NONE, N, sum, w, 0, QW_WORDS, a);
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) {
            __m256 dw = eight_halves(scales + 16 * h);
            TILE_UNROLL
            for (int n = 0; n < N; n++)
                accumulate(out + (size_t)n * ld_out + 8 * h, _mm256_madd_epi16(sum[h][n], ones), dw, rec[n]->d);
        }
    }
}

/* ---- Q8_0: no 16-bit sum of two products' pairs is exact, so each word is widened. |w| times the
 * activation with w's sign: 2 * 128 * 127 fits 16 bits. ------------------------------------------- */

TILE_INLINE void tile_q8_0(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    (void)form;
    const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(-128);
    const uint8_t *scales = group + part.b0 * QW_HALF_LINE;
    const uint8_t *w = group + qw_scales_bytes(part.n_blocks) + part.b0 * QW_Q8_BYTES, *ahead = w + part.ahead;
    if (part.b0 == 0) zero_out(N, out, ld_out);
    for (size_t b = part.b0; b < part.b1; b++, w += QW_Q8_BYTES, scales += QW_HALF_LINE) {
        const qw_act32 *rec[N_MAX];
        __m256i sum[HALVES][N_MAX]; /* of 32 bits here */
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act32 *)(act + (size_t)n * act_bytes) + b;
            sum[0][n] = sum[1][n] = _mm256_setzero_si256();
        }
        ahead = tile_prefetch(ahead, QW_Q8_BYTES + QW_HALF_LINE);
        TILE_UNROLL
        for (int j = 0; j < QW_WORDS; j++) {
            TILE_UNROLL
            for (int h = 0; h < HALVES; h++) {
                __m256i x = _mm256_xor_si256(load(w + j * QW_LINE + 32 * h), flip), x_abs = _mm256_abs_epi8(x);
                TILE_UNROLL
                for (int n = 0; n < N; n++) {
                    __m256i q = _mm256_sign_epi8(_mm256_set1_epi32(tile_i32(rec[n]->q + 4 * j)), x);
                    __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(x_abs, q), ones);
                    sum[h][n] = _mm256_add_epi32(sum[h][n], products);
                    pin(&sum[h][n]);
                }
            }
        }
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) {
            __m256 dw = eight_halves(scales + 16 * h);
            TILE_UNROLL
            for (int n = 0; n < N; n++) accumulate(out + (size_t)n * ld_out + 8 * h, sum[h][n], dw, rec[n]->d);
        }
    }
}

/* ---- one scale for 256 -------------------------------------------------------------------------- */

/* The sums of a 256-block: in memory, see the head of the file. The compiler must not keep them in registers, hence
 * the barrier: it hides that nothing else writes them. */
typedef struct block_sums {
    float rows[N_MAX][QW_GROUP_ROWS];
} block_sums;

TILE_INLINE block_sums *hide(block_sums *t)
{
    __asm__("" : "+r"(t) : : "memory");
    return t;
}

/* t += isum * scale, of one half of one column */
TILE_INLINE void add_scaled(float *t, __m256i isum, __m256 scale)
{
    _mm256_storeu_ps(t, _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), scale, _mm256_loadu_ps(t)));
}

/* -16 * the activations' lane sums of sub-block s: where the 16-bit sums of 5-bit weights begin. */
TILE_INLINE __m256i q5_offset(const qw_act256 *rec, int s)
{
    __m256i first = _mm256_set1_epi32(tile_i32(rec->neg_lane16[2 * s])); /* -32 * 16 elements */
    __m256i second = _mm256_set1_epi32(tile_i32(rec->neg_lane16[2 * s + 1]));
    return _mm256_add_epi16(_mm256_srai_epi16(first, 1), _mm256_srai_epi16(second, 1));
}

/* t -= minima * sums of activations, of one half */
TILE_INLINE void subtract_minima(int N, block_sums *t, const qw_act256 *const *rec, const qw_packed_kq *head, int h)
{
    const __m256i six = _mm256_set1_epi8(63), two = _mm256_set1_epi8(3), even = _mm256_set1_epi32(0x00ff00ff);
    __m256i l0 = load(head->scales[0] + 32 * h), l1 = load(head->scales[1] + 32 * h);
    __m256i l2 = load(head->scales[2] + 32 * h), m[4];
    m[0] = _mm256_and_si256(l2, six);
    m[2] = _mm256_and_si256(_mm256_srli_epi16(l0, 6), two);
    m[2] = _mm256_or_si256(m[2], _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(l1, 6), two), 2));
    m[2] = _mm256_or_si256(m[2], _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(l2, 6), two), 4));
    m[1] = _mm256_and_si256(_mm256_srli_epi16(m[0], 8), even);
    m[3] = _mm256_and_si256(_mm256_srli_epi16(m[2], 8), even);
    m[0] = _mm256_and_si256(m[0], even);
    m[2] = _mm256_and_si256(m[2], even);
    __m256 dmin = eight_halves((const uint8_t *)(head->dmin + 8 * h));
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        __m256i msum = _mm256_setzero_si256();
        TILE_UNROLL
        for (int i = 0; i < 4; i++)
            msum = _mm256_add_epi32(
                msum, _mm256_madd_epi16(m[i], _mm256_set1_epi32(tile_i32(rec[n]->sum32[i]))));
        float *at = t->rows[n] + 8 * h;
        _mm256_storeu_ps(at, _mm256_fnmadd_ps(_mm256_cvtepi32_ps(msum), dmin, _mm256_loadu_ps(at)));
    }
}

/* out += t * scales of the columns' block */
TILE_INLINE void add_block(int N, const block_sums *t, const qw_act256 *const *rec, float *out, size_t ld_out)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        __m256 d = _mm256_set1_ps(rec[n]->d);
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) {
            float *at = out + (size_t)n * ld_out + 8 * h;
            _mm256_storeu_ps(at, _mm256_fmadd_ps(_mm256_loadu_ps(t->rows[n] + 8 * h), d, _mm256_loadu_ps(at)));
        }
    }
}

/* The records of a block and their quants. */
TILE_INLINE void begin_block(int N, const uint8_t *act, size_t act_bytes, size_t b, const qw_act256 **rec,
                             const int8_t **a)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        rec[n] = (const qw_act256 *)(act + (size_t)n * act_bytes) + b;
        a[n] = rec[n]->q;
    }
}

/* All 8 words of a sub-block are summed in 16 bits, those of Q5_K from a negative offset that is taken off again. */
TILE_INLINE void tile_kq(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                         size_t act_bytes, float *out, size_t ld_out)
{
    const size_t sub_bytes = form == QW_PACK_Q4_K ? QW_Q4_BYTES : QW_Q5_BYTES;
    const int high = form == QW_PACK_Q4_K ? HIGH_NONE : HIGH_1;
    const __m256i six = _mm256_set1_epi32(63), ones = _mm256_set1_epi16(1);
    block_sums memory, *t = &memory;
    if (part.b0 == 0) zero_out(N, out, ld_out);
    group += part.b0 * (sizeof(qw_packed_kq) + QW_SUBS * sub_bytes);
    const uint8_t *ahead = group + part.ahead;
    for (size_t b = part.b0; b < part.b1; b++) {
        const qw_packed_kq *head = (const qw_packed_kq *)group;
        const uint8_t *w = head->quants;
        const qw_act256 *rec[N_MAX];
        const int8_t *a[N_MAX];
        begin_block(N, act, act_bytes, b, rec, a);
        memset(t, 0, (size_t)N * sizeof t->rows[0]);
        t = hide(t);
        ahead = tile_prefetch(ahead, sizeof *head);
        TILE_ROLLED
        for (int s = 0; s < QW_SUBS; s++, w += sub_bytes) {
            __m256i sum[HALVES][N_MAX];
            ahead = tile_prefetch(ahead, sub_bytes);
            TILE_UNROLL
            for (int n = 0; n < N; n++)
                sum[0][n] = sum[1][n] = form == QW_PACK_Q5_K ? q5_offset(rec[n], s) : _mm256_setzero_si256();
            dot_words(high, N, sum, w, 0, QW_WORDS, a);
            TILE_UNROLL
            for (int h = 0; h < HALVES; h++) {
                __m256i bits = _mm256_srli_epi32(load(head->scales[s / 4] + 32 * h), 8 * (s % 4));
                __m256 d = eight_halves((const uint8_t *)(head->d + 8 * h));
                __m256 scale = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_and_si256(bits, six)));
                TILE_UNROLL
                for (int n = 0; n < N; n++) {
                    __m256i isum = _mm256_madd_epi16(sum[h][n], ones);
                    if (form == QW_PACK_Q5_K)
                        isum = _mm256_sub_epi32(isum, _mm256_madd_epi16(q5_offset(rec[n], s), ones));
                    add_scaled(t->rows[n] + 8 * h, isum, scale);
                }
            }
            TILE_UNROLL
            for (int n = 0; n < N; n++) a[n] += 32;
        }
        t = hide(t);
        subtract_minima(N, t, rec, head, 0);
        subtract_minima(N, t, rec, head, 1);
        add_block(N, t, rec, out, ld_out);
        group = w;
    }
}

/* Q6_K: 16 elements have a scale; their 4 words are summed in 16 bits from the negative offset. */
TILE_INLINE void tile_q6k(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    (void)form;
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t *d = group + part.b0 * QW_HALF_LINE;
    const uint8_t *block = group + qw_scales_bytes(part.n_blocks) + part.b0 * QW_Q6K_BYTES, *ahead = block + part.ahead;
    block_sums memory, *t = &memory;
    if (part.b0 == 0) zero_out(N, out, ld_out);
    for (size_t b = part.b0; b < part.b1; b++, block += QW_Q6K_BYTES, d += QW_HALF_LINE) {
        const qw_packed_q6k *src = (const qw_packed_q6k *)block;
        const qw_act256 *rec[N_MAX];
        const int8_t *a[N_MAX];
        begin_block(N, act, act_bytes, b, rec, a);
        memset(t, 0, (size_t)N * sizeof t->rows[0]);
        t = hide(t);
        ahead = tile_prefetch(ahead, sizeof src->scales + QW_HALF_LINE);
        TILE_ROLLED
        for (int s = 0; s < QW_SUBS; s++) {
            ahead = tile_prefetch(ahead, QW_Q6_BYTES);
            TILE_UNROLL
            for (int i = 0; i < 2; i++) {
                __m256i sum[HALVES][N_MAX];
                TILE_UNROLL
                for (int n = 0; n < N; n++)
                    sum[0][n] = sum[1][n] = _mm256_set1_epi32(tile_i32(rec[n]->neg_lane16[2 * s + i]));
                dot_words(HIGH_2, N, sum, src->quants[s], 4 * i, 4, a);
                TILE_UNROLL
                for (int h = 0; h < HALVES; h++) {
                    __m256i bits = _mm256_slli_epi32(load(src->scales[s / 2] + 32 * h), 24 - 8 * (s % 2 * 2 + i));
                    __m256 scale = _mm256_cvtepi32_ps(_mm256_srai_epi32(bits, 24));
                    scale = _mm256_mul_ps(eight_halves(d + 16 * h), scale);
                    TILE_UNROLL
                    for (int n = 0; n < N; n++)
                        add_scaled(t->rows[n] + 8 * h, _mm256_madd_epi16(sum[h][n], ones), scale);
                }
            }
            TILE_UNROLL
            for (int n = 0; n < N; n++) a[n] += 32;
        }
        t = hide(t);
        add_block(N, t, rec, out, ld_out);
    }
}

GEMM_4(q4_0, QW_PACK_Q4_0, 32, tile_q32)
GEMM_4(q5_0, QW_PACK_Q5_0, 32, tile_q32)
GEMM_4(q8_0, QW_PACK_Q8_0, 32, tile_q8_0)
GEMM_4(q4_k, QW_PACK_Q4_K, 256, tile_kq)
GEMM_4(q5_k, QW_PACK_Q5_K, 256, tile_kq)
GEMM_4(q6_k, QW_PACK_Q6_K, 256, tile_q6k)

/* ---- activations -------------------------------------------------------------------------------- */

/* NaN becomes 0, infinities the largest float. */
TILE_INLINE __m256 act_values(const float *x)
{
    const __m256 max = _mm256_set1_ps(FLT_MAX), min = _mm256_set1_ps(-FLT_MAX);
    __m256 v = _mm256_loadu_ps(x);
    v = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q));
    return _mm256_max_ps(_mm256_min_ps(v, max), min);
}

TILE_INLINE __m256 abs_max(__m256 amax, __m256 v)
{
    return _mm256_max_ps(amax, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v));
}

TILE_INLINE float max_of(__m256 v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

/* 32 floats times `inverse`, rounded to nearest even (the mode every thread runs in), as bytes. */
TILE_INLINE __m256i quantize_32(const float *x, __m256 inverse)
{
    __m256i q[4];
    TILE_UNROLL
    for (int i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(act_values(x + 8 * i), inverse));
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* 16-bit sums of byte pairs: element 2i is the first lane of word i, 2i + 1 its second. */
TILE_INLINE __m256i pair_sums(__m256i q)
{
    return _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
}

static void quantize_q8_32(const float *x, size_t k, void *record)
{
    qw_act32 *a = record;
    size_t n = k / 32;
    for (size_t b = 0; b < n; b++, a++, x += 32) {
        __m256 amax = _mm256_setzero_ps();
        TILE_UNROLL
        for (int i = 0; i < 4; i++) amax = abs_max(amax, act_values(x + 8 * i));
        float m = max_of(amax);
        bool zero = m < QW_ACT_AMAX_MIN;
        __m256i q = quantize_32(x, _mm256_set1_ps(zero ? 0.0f : 127.0f / m));
        _mm256_storeu_si256((__m256i *)(void *)a->q, q);
        a->d = zero ? 0.0f : m / 127.0f;
        __m256i pairs = pair_sums(q);
        __m128i lanes = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        lanes = _mm_add_epi16(lanes, _mm_unpackhi_epi64(lanes, lanes));
        lanes = _mm_sub_epi16(_mm_setzero_si128(), _mm_add_epi16(lanes, _mm_srli_epi64(lanes, 32)));
        int32_t both = _mm_cvtsi128_si32(lanes);
        memcpy(a->neg_lane, &both, sizeof both);
        a->neg_sum = a->neg_lane[0] + a->neg_lane[1];
        a->d_sum = a->d * (float)-a->neg_sum;
    }
    memset(a, 0, qw_act_bytes(QW_ACT_Q8_32, k) - n * sizeof *a);
}

/* The sums of 32 quants at sub-block s of a record: lanes of each 16, and both 16s. */
TILE_INLINE int sums_32(__m256i q, qw_act256 *a, size_t s)
{
    __m256i p = pair_sums(q); /* a 16 is one half of the register */
    p = _mm256_add_epi16(p, _mm256_shuffle_epi32(p, 0x4e));
    p = _mm256_add_epi16(p, _mm256_shuffle_epi32(p, 0xb1));
    __m256i total = _mm256_madd_epi16(p, _mm256_set1_epi16(1));
    __m256i lanes = _mm256_slli_epi16(_mm256_sub_epi16(_mm256_setzero_si256(), p), 5);
    int32_t lane[2] = {_mm256_cvtsi256_si32(lanes), _mm256_extract_epi32(lanes, 4)};
    int32_t sum[2] = {_mm256_cvtsi256_si32(total), _mm256_extract_epi32(total, 4)};
    memcpy(a->neg_lane16[2 * s], lane, sizeof lane);
    a->neg_sum16[2 * s] = -32 * sum[0];
    a->neg_sum16[2 * s + 1] = -32 * sum[1];
    return sum[0] + sum[1];
}

/* The record's sums of 16 as 16-bit pairs. */
TILE_INLINE void store_sums_16(qw_act256 *a)
{
    const __m128i order = _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    __m256i low = _mm256_srai_epi32(load(a->neg_sum16), 5), high = _mm256_srai_epi32(load(a->neg_sum16 + 8), 5);
    __m256i neg = _mm256_packs_epi32(low, high);
    __m256i sums = _mm256_sub_epi16(_mm256_setzero_si256(), _mm256_permute4x64_epi64(neg, 0xd8));
    _mm256_storeu_si256((__m256i *)(void *)a->sum16, _mm256_shuffle_epi8(sums, _mm256_broadcastsi128_si256(order)));
}

static void quantize_q8_256(const float *x, size_t k, void *record)
{
    qw_act256 *a = record;
    for (size_t b = 0; b < k / 256; b++, a++, x += 256) {
        __m256 amax = _mm256_setzero_ps();
        for (size_t i = 0; i < 256; i += 8) amax = abs_max(amax, act_values(x + i));
        float m = max_of(amax);
        bool zero = m < QW_ACT_AMAX_MIN;
        __m256 inverse = _mm256_set1_ps(zero ? 0.0f : 127.0f / m);
        int sum[QW_SUBS];
        for (size_t s = 0; s < QW_SUBS; s++) {
            __m256i q = quantize_32(x + 32 * s, inverse);
            _mm256_storeu_si256((__m256i *)(void *)(a->q + 32 * s), q);
            sum[s] = sums_32(q, a, s);
        }
        a->d = zero ? 0.0f : m / 127.0f;
        for (size_t i = 0; i < QW_SUBS; i++) a->sum32[i / 2][i % 2] = (int16_t)sum[qw_sum32_order[i]];
        store_sums_16(a);
        memset(a->pad, 0, sizeof a->pad);
    }
}

void qw_gemm_init_avx2(qw_kernels *t)
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
