/* gemm_avx512vnni.c: quantised matrix products with AVX-512 VNNI: 16 rows are the 16 lanes of a register,
 * up to 8 columns a tile.
 *
 * vpdpbusd multiplies 4 unsigned weights of each row with 4 activations broadcast from memory and adds
 * them to exact int32 lanes. The offset of signed weights is in the sum's start value. Bits as
 * ref/gemm_ref.c. Any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/x86/gemm_tiles.h"

enum { N_MAX = 8 };

TILE_INLINE __m512i load(const void *p)
{
    return _mm512_loadu_si512(p);
}

TILE_INLINE __m512 halves(const void *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256(p));
}

TILE_INLINE void store(int N, const __m512 *acc, float *out, size_t ld_out)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) _mm512_storeu_ps(out + (size_t)n * ld_out, acc[n]);
}

/* The sums so far: none before block 0. */
TILE_INLINE void begin(int N, __m512 *acc, tile_part part, const float *out, size_t ld_out)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++)
        acc[n] = part.b0 == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(out + (size_t)n * ld_out);
}

/* isum[n] += w [16 rows, 4] * a[n] [4]; a: N pointers to the columns' quants. */
TILE_INLINE void dot4(int N, __m512i *isum, __m512i w, const int8_t *const *a, size_t at)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++)
        isum[n] = _mm512_dpbusd_epi32(isum[n], w, _mm512_set1_epi32(tile_i32(a[n] + at)));
}

/* How the bits above the nibble are stored. */
enum { HIGH_NONE, HIGH_1, HIGH_2 };

/* x shifted up by `by` bits, or down when negative: the instruction wants a literal. */
TILE_INLINE __m512i shifted(__m512i x, int by)
{
    switch (by) {
    case 4: return _mm512_slli_epi16(x, 4);
    case 3: return _mm512_slli_epi16(x, 3);
    case 2: return _mm512_slli_epi16(x, 2);
    case 1: return _mm512_slli_epi16(x, 1);
    case 0: return x;
    case -1: return _mm512_srli_epi16(x, 1);
    case -2: return _mm512_srli_epi16(x, 2);
    default: return _mm512_srli_epi16(x, 3);
    }
}

/* Word `j` of 32 elements: its nibbles plus field j of the line(s) of high bits. */
TILE_INLINE __m512i with_high(int high, __m512i nibble, __m512i line, int j)
{
    if (high == HIGH_NONE) return nibble;
    int at = high == HIGH_1 ? j : 2 * (j % 4); /* where the field is; it belongs at bit 4 */
    __m512i mask = _mm512_set1_epi8(high == HIGH_1 ? 0x10 : 0x30);
    return _mm512_ternarylogic_epi32(nibble, shifted(line, 4 - at), mask, 0xf8); /* nibble | (shifted & mask) */
}

/* isum[n] += the dot products of words [j0, j0 + n_words) of 32 elements. lines: the nibble lines, high
 * bits in front of them. */
TILE_INLINE void dot_words(int high, int N, __m512i *isum, const uint8_t *lines, int j0, int n_words,
                           const int8_t *const *a)
{
    const __m512i low = _mm512_set1_epi8(15);
    __m512i high_line = low;
    if (high == HIGH_1) high_line = load(lines);
    if (high == HIGH_2) high_line = load(lines + j0 / 4 * QW_LINE);
    const uint8_t *nibble_lines = lines + (high == HIGH_NONE ? 0 : high == HIGH_1 ? 1 : 2) * QW_LINE;
    TILE_UNROLL
    for (int j = j0; j < j0 + n_words; j += 2) {
        const uint8_t *line = nibble_lines + j / 2 * QW_LINE;
        __m512i x = load(line);
        __m512i lo = with_high(high, _mm512_and_si512(x, low), high_line, j);
        dot4(N, isum, lo, a, (size_t)(4 * j));
        __m512i hi = with_high(high, _mm512_and_si512(_mm512_srli_epi16(x, 4), low), high_line, j + 1);
        dot4(N, isum, hi, a, (size_t)(4 * j + 4));
    }
}

/* ---- one scale for 32: Q4_0, Q5_0, Q8_0 --------------------------------------------------------- */

TILE_INLINE void dot_bytes(int N, __m512i *isum, const uint8_t *words, const int8_t *const *a)
{
    TILE_UNROLL
    for (int j = 0; j < QW_WORDS; j++) dot4(N, isum, load(words + j * QW_LINE), a, (size_t)(4 * j));
}

TILE_INLINE void tile_q32(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    const size_t block_bytes = form == QW_PACK_Q4_0   ? QW_Q4_BYTES
                               : form == QW_PACK_Q5_0 ? QW_Q5_BYTES
                                                      : QW_Q8_BYTES;
    const unsigned offset_shift = form == QW_PACK_Q4_0 ? 3 : form == QW_PACK_Q5_0 ? 4 : 7;
    const uint8_t *scales = group + part.b0 * QW_HALF_LINE;
    const uint8_t *w = group + qw_scales_bytes(part.n_blocks) + part.b0 * block_bytes, *ahead = w + part.ahead;
    __m512 acc[N_MAX];
    begin(N, acc, part, out, ld_out);
    for (size_t b = part.b0; b < part.b1; b++, w += block_bytes, scales += QW_HALF_LINE) {
        const qw_act32 *rec[N_MAX];
        const int8_t *a[N_MAX];
        __m512i isum[N_MAX];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act32 *)(act + (size_t)n * act_bytes) + b;
            a[n] = rec[n]->q;
            isum[n] = _mm512_slli_epi32(_mm512_set1_epi32(rec[n]->neg_sum), offset_shift);
        }
        ahead = tile_prefetch(ahead, block_bytes + QW_HALF_LINE);
        if (form == QW_PACK_Q8_0)
            dot_bytes(N, isum, w, a);
        else
            dot_words(form == QW_PACK_Q5_0 ? HIGH_1 : HIGH_NONE, N, isum, w, 0, QW_WORDS, a);
        __m512 dw = halves(scales);
        TILE_UNROLL
        for (int n = 0; n < N; n++)
            acc[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[n]), _mm512_mul_ps(dw, _mm512_set1_ps(rec[n]->d)), acc[n]);
    }
    store(N, acc, out, ld_out);
}

/* ---- one scale for 256, 6-bit scales and minima for 32: Q4_K, Q5_K ------------------------------ */

/* t -= minima * sums of activations, of a block */
TILE_INLINE void subtract_minima(int N, __m512 *t, const qw_act256 *const *rec, const qw_packed_kq *head)
{
    const __m512i six = _mm512_set1_epi8(63), two = _mm512_set1_epi8(3), even = _mm512_set1_epi32(0x00ff00ff);
    __m512i l0 = load(head->scales[0]), l1 = load(head->scales[1]), l2 = load(head->scales[2]), m[4];
    m[0] = _mm512_and_si512(l2, six);
    m[2] = _mm512_and_si512(_mm512_srli_epi16(l0, 6), two);
    m[2] = _mm512_or_si512(m[2], _mm512_slli_epi16(_mm512_and_si512(_mm512_srli_epi16(l1, 6), two), 2));
    m[2] = _mm512_or_si512(m[2], _mm512_slli_epi16(_mm512_and_si512(_mm512_srli_epi16(l2, 6), two), 4));
    m[1] = _mm512_and_si512(_mm512_srli_epi16(m[0], 8), even);
    m[3] = _mm512_and_si512(_mm512_srli_epi16(m[2], 8), even);
    m[0] = _mm512_and_si512(m[0], even);
    m[2] = _mm512_and_si512(m[2], even);
    __m512 dmin = halves(head->dmin);
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        __m512i msum = _mm512_setzero_si512();
        TILE_UNROLL
        for (int i = 0; i < 4; i++)
            msum = _mm512_dpwssd_epi32(msum, m[i], _mm512_set1_epi32(tile_i32(rec[n]->sum32[i])));
        t[n] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum), dmin, t[n]);
    }
}

/* t[n] += isum[n] * scale */
TILE_INLINE void add_scaled(int N, __m512 *t, const __m512i *isum, __m512 scale)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) t[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[n]), scale, t[n]);
}

/* acc[n] += t[n] * scale of the column's block */
TILE_INLINE void add_block(int N, __m512 *acc, const __m512 *t, const qw_act256 *const *rec)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) acc[n] = _mm512_fmadd_ps(t[n], _mm512_set1_ps(rec[n]->d), acc[n]);
}

/* The records of a block, their quants, and sums of nothing. */
TILE_INLINE void begin_block(int N, const uint8_t *act, size_t act_bytes, size_t b, const qw_act256 **rec,
                             const int8_t **a, __m512 *t)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        rec[n] = (const qw_act256 *)(act + (size_t)n * act_bytes) + b;
        a[n] = rec[n]->q;
        t[n] = _mm512_setzero_ps();
    }
}

TILE_INLINE void tile_kq(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                         size_t act_bytes, float *out, size_t ld_out)
{
    const size_t sub_bytes = form == QW_PACK_Q4_K ? QW_Q4_BYTES : QW_Q5_BYTES;
    const __m512i six = _mm512_set1_epi8(63), byte = _mm512_set1_epi32(255);
    __m512 acc[N_MAX];
    begin(N, acc, part, out, ld_out);
    group += part.b0 * (sizeof(qw_packed_kq) + QW_SUBS * sub_bytes);
    const uint8_t *ahead = group + part.ahead;
    for (size_t b = part.b0; b < part.b1; b++) {
        const qw_packed_kq *head = (const qw_packed_kq *)group;
        const qw_act256 *rec[N_MAX];
        const int8_t *a[N_MAX];
        __m512 t[N_MAX], d = halves(head->d);
        begin_block(N, act, act_bytes, b, rec, a, t);
        const uint8_t *w = head->quants;
        ahead = tile_prefetch(ahead, sizeof *head);
        TILE_ROLLED
        for (int v = 0; v < 2; v++) {
            __m512i scales = _mm512_and_si512(load(head->scales[v]), six);
            TILE_ROLLED
            for (int s = 0; s < 4; s++) {
                __m512i isum[N_MAX];
                ahead = tile_prefetch(ahead, sub_bytes);
                TILE_UNROLL
                for (int n = 0; n < N; n++) isum[n] = _mm512_setzero_si512();
                dot_words(form == QW_PACK_Q5_K ? HIGH_1 : HIGH_NONE, N, isum, w, 0, QW_WORDS, a);
                __m512 scale = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_and_si512(scales, byte)));
                scales = _mm512_srli_epi32(scales, 8);
                add_scaled(N, t, isum, scale);
                TILE_UNROLL
                for (int n = 0; n < N; n++) a[n] += 32;
                w += sub_bytes;
            }
        }
        group = w;
        subtract_minima(N, t, rec, head);
        add_block(N, acc, t, rec);
    }
    store(N, acc, out, ld_out);
}

/* ---- one scale for 256, 8-bit scales for 16: Q6_K ----------------------------------------------- */

TILE_INLINE void tile_q6k(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    (void)form;
    const uint8_t *halves_at = group + part.b0 * QW_HALF_LINE;
    const uint8_t *block = group + qw_scales_bytes(part.n_blocks) + part.b0 * QW_Q6K_BYTES, *ahead = block + part.ahead;
    __m512 acc[N_MAX];
    begin(N, acc, part, out, ld_out);
    for (size_t b = part.b0; b < part.b1; b++, block += QW_Q6K_BYTES, halves_at += QW_HALF_LINE) {
        const qw_packed_q6k *src = (const qw_packed_q6k *)block;
        const qw_act256 *rec[N_MAX];
        const int8_t *a[N_MAX];
        __m512 t[N_MAX], d = halves(halves_at);
        begin_block(N, act, act_bytes, b, rec, a, t);
        ahead = tile_prefetch(ahead, QW_HALF_LINE);
        TILE_ROLLED
        for (int v = 0; v < 4; v++) {
            __m512i scales = load(src->scales[v]);
            ahead = tile_prefetch(ahead, QW_LINE);
            TILE_ROLLED
            for (int s = 0; s < 2; s++) {
                const uint8_t *w = src->quants[2 * v + s];
                ahead = tile_prefetch(ahead, QW_Q6_BYTES);
                TILE_UNROLL
                for (int half = 0; half < 2; half++) {
                    __m512i isum[N_MAX];
                    TILE_UNROLL
                    for (int n = 0; n < N; n++)
                        isum[n] = _mm512_set1_epi32(rec[n]->neg_sum16[4 * v + 2 * s + half]);
                    dot_words(HIGH_2, N, isum, w, 4 * half, 4, a);
                    __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(scales, 24), 24);
                    scales = _mm512_srli_epi32(scales, 8);
                    add_scaled(N, t, isum, _mm512_mul_ps(d, _mm512_cvtepi32_ps(low)));
                }
                TILE_UNROLL
                for (int n = 0; n < N; n++) a[n] += 32;
            }
        }
        add_block(N, acc, t, rec);
    }
    store(N, acc, out, ld_out);
}

GEMM_8(q4_0, QW_PACK_Q4_0, 32, tile_q32)
GEMM_8(q5_0, QW_PACK_Q5_0, 32, tile_q32)
GEMM_8(q8_0, QW_PACK_Q8_0, 32, tile_q32)
GEMM_8(q4_k, QW_PACK_Q4_K, 256, tile_kq)
GEMM_8(q5_k, QW_PACK_Q5_K, 256, tile_kq)
GEMM_8(q6_k, QW_PACK_Q6_K, 256, tile_q6k)

void qw_gemm_init_avx512_vnni(qw_kernels *t)
{
    t->gemm[QW_PACK_Q4_0] = gemm_q4_0;
    t->gemm[QW_PACK_Q5_0] = gemm_q5_0;
    t->gemm[QW_PACK_Q8_0] = gemm_q8_0;
    t->gemm[QW_PACK_Q4_K] = gemm_q4_k;
    t->gemm[QW_PACK_Q5_K] = gemm_q5_k;
    t->gemm[QW_PACK_Q6_K] = gemm_q6_k;
}
