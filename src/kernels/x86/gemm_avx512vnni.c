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

typedef int32_t __attribute__((may_alias, aligned(1))) any_i32;

/* sum += a [16 rows, 4] * the 4 bytes at b; and with pairs of 16-bit numbers. Written out, because gcc loads the factor of
 * all rows with an instruction of its own: that takes a register of the 192 that can be in flight, and with twice as many
 * in use the processor sees half as far ahead. */
TILE_INLINE __m512i dot_bytes(__m512i sum, __m512i a, const void *b)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*(const any_i32 *)b));
    return sum;
}

TILE_INLINE __m512i dot_pairs(__m512i sum, __m512i a, const void *b)
{
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(a), "m"(*(const any_i32 *)b));
    return sum;
}

/* isum[n] += w [16 rows, 4] * a[n] [4]; a: N pointers to the columns' quants. */
TILE_INLINE void dot4(int N, __m512i *isum, __m512i w, const int8_t *const *a, size_t at)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) isum[n] = dot_bytes(isum[n], w, a[n] + at);
}

/* How a quant is stored: bytes; a nibble, with one or two bits more in lines of their own; a nibble that is looked up
 * in a table; two bits, with a third one in a line of its own. */
typedef enum quant_kind { BYTES, NIBBLES, NIBBLES_1, NIBBLES_2, BOOK, PAIRS, PAIRS_1 } quant_kind;

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
    case -3: return _mm512_srli_epi16(x, 3);
    case -4: return _mm512_srli_epi16(x, 4);
    case -5: return _mm512_srli_epi16(x, 5);
    default: return _mm512_srli_epi16(x, 6);
    }
}

/* low | the field at bit `from` of `line`, moved to bit `to`, where mask selects it. */
TILE_INLINE __m512i with_field(__m512i low, const uint8_t *line, int from, int to, char mask)
{
    return _mm512_ternarylogic_epi32(low, shifted(load(line), to - from), _mm512_set1_epi8(mask), 0xf8);
}

/* Nibbles of word j: the low ones of a line for an even j, the high ones for an odd. */
TILE_INLINE __m512i nibbles(const uint8_t *lines, int j)
{
    __m512i x = load(lines + j / 2 * QW_LINE);
    return _mm512_and_si512(j % 2 == 0 ? x : _mm512_srli_epi16(x, 4), _mm512_set1_epi8(15));
}

TILE_INLINE __m512i pairs(const uint8_t *lines, int j)
{
    return _mm512_and_si512(shifted(load(lines + j / 4 * QW_LINE), -(2 * (j % 4))), _mm512_set1_epi8(3));
}

/* Word j of 32 elements, unsigned. lines: where they begin; book: for BOOK. */
TILE_INLINE __m512i word(quant_kind kind, const uint8_t *lines, int j, __m512i book)
{
    switch (kind) {
    case BYTES: return load(lines + j * QW_LINE);
    case NIBBLES: return nibbles(lines, j);
    case NIBBLES_1: return with_field(nibbles(lines + QW_LINE, j), lines, j, 4, 0x10);
    case NIBBLES_2: return with_field(nibbles(lines + 2 * QW_LINE, j), lines + j / 4 * QW_LINE, 2 * (j % 4), 4, 0x30);
    case BOOK: return _mm512_shuffle_epi8(book, nibbles(lines, j));
    case PAIRS: return pairs(lines, j);
    default: return with_field(pairs(lines + QW_LINE, j), lines, j, 2, 4);
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

/* isum[n] += the dot products of words [j0, j0 + n_words) of 32 elements. */
TILE_INLINE void dot_words(quant_kind kind, int N, __m512i *isum, const uint8_t *lines, int j0, int n_words,
                           __m512i book, const int8_t *const *a)
{
    TILE_UNROLL
    for (int j = j0; j < j0 + n_words; j++) dot4(N, isum, word(kind, lines, j, book), a, (size_t)(4 * j));
}

TILE_INLINE __m512i book_of(qw_pack form)
{
    const uint8_t *book = form == QW_PACK_MXFP4 ? qw_book_mxfp4 : qw_book_iq4;
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)book));
}

/* ---- blocks of 32: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4 ---------------------------------- */

/* The form's quants; unsigned weights are 2^shift above the signed ones, or not (0). */
TILE_INLINE quant_kind kind_32(qw_pack form)
{
    switch (form) {
    case QW_PACK_Q5_0:
    case QW_PACK_Q5_1: return NIBBLES_1;
    case QW_PACK_Q8_0: return BYTES;
    case QW_PACK_IQ4_NL:
    case QW_PACK_MXFP4: return BOOK;
    default: return NIBBLES;
    }
}

TILE_INLINE unsigned shift_32(qw_pack form)
{
    switch (form) {
    case QW_PACK_Q4_0: return 3;
    case QW_PACK_Q5_0: return 4;
    case QW_PACK_Q8_0: return 7;
    case QW_PACK_IQ4_NL: return QW_BOOK_IQ4_SHIFT;
    case QW_PACK_MXFP4: return QW_BOOK_MXFP4_SHIFT;
    default: return 0;
    }
}

/* Half of 2^(e - 127): below e = 2 a subnormal number. */
TILE_INLINE __m512 exponents(const uint8_t *p)
{
    __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
    __m512i subnormal = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
    __mmask16 small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, small, subnormal));
}

TILE_INLINE void tile_32(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                         size_t act_bytes, float *out, size_t ld_out)
{
    const quant_kind kind = kind_32(form);
    const bool minimum = form == QW_PACK_Q4_1 || form == QW_PACK_Q5_1;
    const size_t front = minimum ? 0 : form == QW_PACK_MXFP4 ? QW_BYTE_LINE : QW_HALF_LINE;
    const size_t head = minimum ? sizeof(qw_packed_q1) : 0, block_bytes = head + quant_bytes(kind);
    const size_t fronts = form == QW_PACK_MXFP4 ? qw_exponents_bytes(part.n_blocks) : qw_scales_bytes(part.n_blocks);
    const __m512i book = book_of(form);
    const uint8_t *scales = group + part.b0 * front;
    const uint8_t *w = group + (minimum ? 0 : fronts) + part.b0 * block_bytes, *ahead = w + part.ahead;
    __m512 acc[N_MAX];
    begin(N, acc, part, out, ld_out);
    for (size_t b = part.b0; b < part.b1; b++, w += block_bytes, scales += front) {
        const qw_act32 *rec[N_MAX];
        const int8_t *a[N_MAX];
        __m512i isum[N_MAX];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            rec[n] = (const qw_act32 *)(act + (size_t)n * act_bytes) + b;
            a[n] = rec[n]->q;
            isum[n] = minimum ? _mm512_setzero_si512()
                              : _mm512_slli_epi32(_mm512_set1_epi32(rec[n]->neg_sum), shift_32(form));
        }
        ahead = tile_prefetch(ahead, block_bytes + front);
        dot_words(kind, N, isum, w + head, 0, QW_WORDS, book, a);
        __m512 d = form == QW_PACK_MXFP4 ? exponents(scales) : halves(minimum ? w : scales);
        __m512 m = minimum ? halves(w + QW_HALF_LINE) : d;
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            acc[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[n]), _mm512_mul_ps(d, _mm512_set1_ps(rec[n]->d)), acc[n]);
            if (minimum) acc[n] = _mm512_fmadd_ps(m, _mm512_set1_ps(rec[n]->d_sum), acc[n]);
        }
    }
    store(N, acc, out, ld_out);
}

/* ---- prefetch for blocks of 256 ------------------------------------------------------------------ */

enum {
    FEW_COLUMNS = 2, /* which wait for memory, not for the multipliers */
    PAGE_BYTES = 4096,
    PAGE_HEAD = 4 * QW_LINE
};

/* For few columns the processor's own prefetchers, which stop at the end of a page, do better than a request for every
 * line, which holds an entry of the L1 cache's miss queue until it comes: ours only start theirs on the next page.
 * Measured, docs/SPEED.md; blocks of 32 do not gain. p: part.ahead bytes ahead, as in tile_prefetch. */
TILE_INLINE const uint8_t *prefetch_256(int N, const uint8_t *p, size_t bytes)
{
    if (N > FEW_COLUMNS) return tile_prefetch(p, bytes);
    size_t to_page = -(uintptr_t)p % PAGE_BYTES;
    if (to_page < bytes) tile_prefetch(p + to_page, PAGE_HEAD);
    return p + bytes;
}

/* ---- blocks of 256 ------------------------------------------------------------------------------ */

/* total[n] += first[n] * (low half of scales) + second[n] * (high half), 16-bit scales. narrow: the sums fit 16 bits, and
 * one multiplication does for both: on the multipliers' pipes half a slot for each, where any other way takes one. */
TILE_INLINE void add_pair(bool narrow, int N, __m512i *total, const __m512i *first, const __m512i *second, __m512i scales)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        if (narrow) {
            __m512i both = _mm512_mask_blend_epi16(0xaaaaaaaa, first[n], _mm512_slli_epi32(second[n], 16));
            total[n] = _mm512_dpwssd_epi32(total[n], both, scales);
        } else {
            __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(scales, 16), 16), high = _mm512_srai_epi32(scales, 16);
            __m512i sum = _mm512_add_epi32(_mm512_mullo_epi32(first[n], low), _mm512_mullo_epi32(second[n], high));
            total[n] = _mm512_add_epi32(total[n], sum);
        }
    }
}

/* Running sums between blocks of 256, where registers are for integers. */
typedef struct float_sums {
    _Alignas(QW_LINE) float of[N_MAX][QW_GROUP_ROWS];
} float_sums;

TILE_INLINE float_sums begin_sums(int N, tile_part part, const float *out, size_t ld_out)
{
    __m512 acc[N_MAX];
    float_sums sums;
    begin(N, acc, part, out, ld_out);
    store(N, acc, sums.of[0], QW_GROUP_ROWS);
    return sums;
}

TILE_INLINE void end_sums(int N, const float_sums *sums, float *out, size_t ld_out)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) _mm512_storeu_ps(out + (size_t)n * ld_out, _mm512_load_ps(sums->of[n]));
}

/* sums += t * scales of the columns' block */
TILE_INLINE void add_block(int N, float_sums *sums, const __m512 *t, const qw_act256 *const *rec)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++)
        _mm512_store_ps(sums->of[n], _mm512_fmadd_ps(t[n], _mm512_set1_ps(rec[n]->d), _mm512_load_ps(sums->of[n])));
}

/* The columns' records of block b. */
TILE_INLINE void first_records(int N, const uint8_t *act, size_t act_bytes, size_t b, const qw_act256 **rec)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) rec[n] = (const qw_act256 *)(act + (size_t)n * act_bytes) + b;
}

TILE_INLINE void next_records(int N, const qw_act256 **rec)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) rec[n]++;
}

TILE_INLINE void scale_totals(int N, __m512 *t, const __m512i *total, __m512 d)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) t[n] = _mm512_mul_ps(_mm512_cvtepi32_ps(total[n]), d);
}

/* ---- scales for 32: Q4_K, Q5_K, IQ4_XS ----------------------------------------------------------- */

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
        for (int i = 0; i < 4; i++) msum = dot_pairs(msum, m[i], rec[n]->sum32[i]);
        t[n] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum), dmin, t[n]);
    }
}

/* Keeps a loop over i as a loop: unrolled, gcc gathers the prefetches of a whole block in one place. */
TILE_INLINE size_t opaque(size_t i)
{
    __asm__("" : "+r"(i));
    return i;
}

/* total[n] = the sum of a block's sub-blocks with their scales: s and s + 2 together, as the scales come apart. Returns
 * ahead, moved. */
TILE_INLINE const uint8_t *dot_kq(quant_kind kind, bool narrow, int N, __m512i *total, const qw_packed_kq *head,
                                  const qw_act256 *const *rec, const uint8_t *ahead)
{
    const size_t sub_bytes = quant_bytes(kind);
    const __m512i six = _mm512_set1_epi32(0x003f003f), none = _mm512_setzero_si512();
    TILE_UNROLL
    for (int n = 0; n < N; n++) total[n] = none;
    TILE_ROLLED
    for (size_t s = 0; s < QW_SUBS; s = opaque(s + (s % 2 ? 3 : 1))) { /* 0, 1, 4, 5 */
        __m512i first[N_MAX], second[N_MAX];
        __m512i scales = load((const uint8_t *)head->scales + s / 4 * QW_LINE + s % 4); /* that of s in byte 0 of a lane */
        const int8_t *a[N_MAX], *later[N_MAX];
        ahead = prefetch_256(N, ahead, 2 * sub_bytes);
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            first[n] = second[n] = none;
            a[n] = rec[n]->q + 32 * s;
            later[n] = a[n] + 64;
        }
        dot_words(kind, N, first, head->quants + s * sub_bytes, 0, QW_WORDS, none, a);
        dot_words(kind, N, second, head->quants + (s + 2) * sub_bytes, 0, QW_WORDS, none, later);
        add_pair(narrow, N, total, first, second, _mm512_and_si512(scales, six));
    }
    return ahead;
}

TILE_INLINE void tile_kq(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                         size_t act_bytes, float *out, size_t ld_out)
{
    const quant_kind kind = form == QW_PACK_Q4_K ? NIBBLES : NIBBLES_1;
    const int limit = INT16_MAX / (form == QW_PACK_Q4_K ? 15 : 31); /* of most32, for sums in 16 bits */
    const size_t block_bytes = sizeof(qw_packed_kq) + QW_SUBS * quant_bytes(kind);
    const uint8_t *block = group + part.b0 * block_bytes, *ahead = block + part.ahead;
    const qw_act256 *rec[N_MAX];
    float_sums sums = begin_sums(N, part, out, ld_out);
    first_records(N, act, act_bytes, part.b0, rec);
    for (size_t b = part.b0; b < part.b1; b++, block += block_bytes, next_records(N, rec)) {
        const qw_packed_kq *head = (const qw_packed_kq *)block;
        __m512i total[N_MAX];
        __m512 t[N_MAX];
        bool narrow = true;
        TILE_UNROLL
        for (int n = 0; n < N; n++) narrow &= rec[n]->most32 <= limit;
        ahead = prefetch_256(N, ahead, sizeof *head);
        if (narrow)
            ahead = dot_kq(kind, true, N, total, head, rec, ahead);
        else
            ahead = dot_kq(kind, false, N, total, head, rec, ahead);
        scale_totals(N, t, total, halves(head->d));
        subtract_minima(N, t, rec, head);
        add_block(N, &sums, t, rec);
    }
    end_sums(N, &sums, out, ld_out);
}

/* t[n] += isum[n] * scale */
TILE_INLINE void add_scaled(int N, __m512 *t, const __m512i *isum, __m512 scale)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) t[n] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[n]), scale, t[n]);
}

/* -128 * sum of the 32 activations of sub-block s, from the record's -32 * sums of 16. */
TILE_INLINE __m512i book_offset(const qw_act256 *rec, int s)
{
    __m512i first = _mm512_set1_epi32(rec->neg_sum16[2 * s]), second = _mm512_set1_epi32(rec->neg_sum16[2 * s + 1]);
    return _mm512_slli_epi32(_mm512_add_epi32(first, second), 2);
}

TILE_INLINE void tile_iq4xs(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                            size_t act_bytes, float *out, size_t ld_out)
{
    const __m512i book = book_of(form), four = _mm512_set1_epi32(15), two = _mm512_set1_epi32(0x30);
    const __m512 offset = _mm512_set1_ps(32.0f);
    const qw_packed_iq4xs *block = (const qw_packed_iq4xs *)group + part.b0;
    const uint8_t *ahead = (const uint8_t *)block + part.ahead;
    const qw_act256 *rec[N_MAX];
    float_sums sums = begin_sums(N, part, out, ld_out);
    first_records(N, act, act_bytes, part.b0, rec);
    for (size_t b = part.b0; b < part.b1; b++, block++, next_records(N, rec)) {
        const int8_t *a[N_MAX];
        __m512 t[N_MAX], d = halves(block->d), d_offset = _mm512_mul_ps(d, offset);
        __m512i low = load(block->scale_low);
        __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)block->scale_high));
        high = _mm512_slli_epi32(high, 4);
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            a[n] = rec[n]->q;
            t[n] = _mm512_setzero_ps();
        }
        ahead = prefetch_256(N, ahead, sizeof *block - sizeof block->quants);
        TILE_ROLLED
        for (int s = 0; s < QW_SUBS; s++) {
            __m512i isum[N_MAX];
            ahead = prefetch_256(N, ahead, QW_Q4_BYTES);
            TILE_UNROLL
            for (int n = 0; n < N; n++) isum[n] = book_offset(rec[n], s);
            dot_words(BOOK, N, isum, block->quants[s], 0, QW_WORDS, book, a);
            __m512i scale = _mm512_ternarylogic_epi32(_mm512_and_si512(low, four), high, two, 0xf8);
            low = _mm512_srli_epi32(low, 4);
            high = _mm512_srli_epi32(high, 2);
            /* d * (scale - 32): exact, like every product of a half and a small integer */
            add_scaled(N, t, isum, _mm512_fmsub_ps(d, _mm512_cvtepi32_ps(scale), d_offset));
            TILE_UNROLL
            for (int n = 0; n < N; n++) a[n] += 32;
        }
        add_block(N, &sums, t, rec);
    }
    end_sums(N, &sums, out, ld_out);
}

/* ---- scales for 16: Q2_K, Q3_K, Q6_K, book ------------------------------------------------------------- */

/* t -= minima * sums of activations, of a block of Q2_K */
TILE_INLINE void subtract_minima_16(int N, __m512 *t, const qw_act256 *const *rec, const qw_packed_q2k *block)
{
    const __m512i even = _mm512_set1_epi32(0x000f000f);
    __m512i m[8];
    TILE_UNROLL
    for (int v = 0; v < 4; v++) {
        __m512i x = load(block->scales[v]);
        m[2 * v] = _mm512_and_si512(_mm512_srli_epi32(x, 4), even);
        m[2 * v + 1] = _mm512_and_si512(_mm512_srli_epi32(x, 12), even);
    }
    __m512 dmin = halves(block->dmin);
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        __m512i msum = _mm512_setzero_si512();
        TILE_UNROLL
        for (int i = 0; i < 8; i++) msum = dot_pairs(msum, m[i], rec[n]->sum16[i]);
        t[n] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum), dmin, t[n]);
    }
}

/* x | the two bits of a line's bytes above the sixth, moved to bit `to`. */
TILE_INLINE __m512i with_top(__m512i x, const uint8_t *line, int to)
{
    return _mm512_ternarylogic_epi32(x, shifted(load(line), to - 6), _mm512_set1_epi8((char)(3 << to)), 0xf8);
}

/* The scales of 16s 4v to 4v + 3 as signed bytes. lines: where the block's scales begin. */
TILE_INLINE __m512i scales_16(qw_pack form, const uint8_t *lines, int v)
{
    if (form == QW_PACK_Q6_K || form == QW_PACK_BOOK) return load(lines + v * QW_LINE);
    if (form == QW_PACK_Q2_K) return _mm512_and_si512(load(lines + v * QW_LINE), _mm512_set1_epi8(15));
    __m512i x;
    if (v < 3) {
        x = _mm512_and_si512(load(lines + v * QW_LINE), _mm512_set1_epi8(63));
    } else {
        x = with_top(with_top(with_top(_mm512_setzero_si512(), lines, 0), lines + QW_LINE, 2), lines + 2 * QW_LINE, 4);
    }
    return _mm512_sub_epi8(x, _mm512_set1_epi8(32));
}

/* Where the sum of 16s s begins: at the offset of its weights times the sum of its activations. */
TILE_INLINE __m512i begin_16(qw_pack form, const qw_act256 *rec, int s)
{
    if (form == QW_PACK_Q2_K) return _mm512_setzero_si512();
    __m512i x = _mm512_set1_epi32(rec->neg_sum16[s]); /* -32 * sum */
    if (form == QW_PACK_BOOK) return _mm512_slli_epi32(x, 1);
    return form == QW_PACK_Q3_K ? _mm512_srai_epi32(x, 3) : x;
}

/* total[n] = the sum of a block's 16s with their scales, in pairs as those come apart. lines: where the scales begin. */
TILE_INLINE const uint8_t *dot_k16(qw_pack form, quant_kind kind, bool narrow, int N, __m512i *total,
                                   const uint8_t *lines, const uint8_t *w, __m512i book, const qw_act256 *const *rec,
                                   const uint8_t *ahead)
{
    const size_t sub_bytes = quant_bytes(kind);
    const int8_t *a[N_MAX], *later[N_MAX];
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        total[n] = _mm512_setzero_si512();
        a[n] = rec[n]->q;
    }
    TILE_ROLLED
    for (size_t v = 0; v < 4; v = opaque(v + 1), w += 2 * sub_bytes) {
        __m512i scales = scales_16(form, lines, (int)v);
        ahead = prefetch_256(N, ahead, 2 * sub_bytes);
        TILE_UNROLL
        for (int n = 0; n < N; n++) later[n] = a[n] + 32;
        TILE_UNROLL
        for (int half = 0; half < 2; half++) {
            __m512i first[N_MAX], second[N_MAX];
            TILE_UNROLL
            for (int n = 0; n < N; n++) {
                first[n] = begin_16(form, rec[n], 4 * (int)v + half);
                second[n] = begin_16(form, rec[n], 4 * (int)v + half + 2);
            }
            dot_words(kind, N, first, w, 4 * half, 4, book, a);
            dot_words(kind, N, second, w + sub_bytes, 4 * half, 4, book, later);
            __m512i pair = half ? scales : _mm512_slli_epi16(scales, 8);
            add_pair(narrow, N, total, first, second, _mm512_srai_epi16(pair, 8));
        }
        TILE_UNROLL
        for (int n = 0; n < N; n++) a[n] += 64;
    }
    return ahead;
}

TILE_INLINE quant_kind kind_k16(qw_pack form)
{
    switch (form) {
    case QW_PACK_Q2_K: return PAIRS;
    case QW_PACK_Q3_K: return PAIRS_1;
    case QW_PACK_BOOK: return BOOK;
    default: return NIBBLES_2;
    }
}

/* The largest magnitude of a weight, where sums of 16 may not fit 16 bits; 0: they always do. */
TILE_INLINE int level_k16(qw_pack form)
{
    return form == QW_PACK_Q6_K ? 32 : form == QW_PACK_BOOK ? QW_BOOK_LEVEL_MOST : 0;
}

TILE_INLINE void tile_k16(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    const quant_kind kind = kind_k16(form);
    const int level = level_k16(form);
    const bool floats = form == QW_PACK_BOOK;          /* the rows' scales; else halves */
    const size_t head = form == QW_PACK_Q2_K ? 64 : 0; /* they are in the block, else in front of all */
    const size_t scale_bytes = form == QW_PACK_Q3_K ? 3 * QW_LINE : 4 * QW_LINE;
    const size_t block_bytes = head + scale_bytes + QW_SUBS * quant_bytes(kind);
    const size_t d_bytes = floats ? QW_LINE : QW_HALF_LINE;
    const size_t front = head ? 0 : floats ? qw_book_front(part.n_blocks) : qw_scales_bytes(part.n_blocks);
    const __m512i book = floats ? _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)group))
                                : _mm512_setzero_si512();
    const uint8_t *d_at = group + (floats ? QW_LINE : 0) + part.b0 * d_bytes;
    const uint8_t *block = group + front + part.b0 * block_bytes;
    const uint8_t *ahead = block + part.ahead;
    const qw_act256 *rec[N_MAX];
    float_sums sums = begin_sums(N, part, out, ld_out);
    first_records(N, act, act_bytes, part.b0, rec);
    for (size_t b = part.b0; b < part.b1; b++, block += block_bytes, d_at += d_bytes, next_records(N, rec)) {
        const uint8_t *lines = block + head, *w = lines + scale_bytes;
        __m512i total[N_MAX];
        __m512 t[N_MAX];
        bool narrow = true; /* quants of Q2_K and Q3_K are small enough for all sums to fit 16 bits */
        TILE_UNROLL
        for (int n = 0; n < N && level > 0; n++) narrow &= rec[n]->most16 <= INT16_MAX / level;
        ahead = prefetch_256(N, ahead, (head ? head : d_bytes) + scale_bytes);
        if (narrow)
            ahead = dot_k16(form, kind, true, N, total, lines, w, book, rec, ahead);
        else
            ahead = dot_k16(form, kind, false, N, total, lines, w, book, rec, ahead);
        scale_totals(N, t, total, floats ? _mm512_loadu_ps(d_at) : halves(head ? block : d_at));
        if (form == QW_PACK_Q2_K) subtract_minima_16(N, t, rec, (const qw_packed_q2k *)block);
        add_block(N, &sums, t, rec);
    }
    end_sums(N, &sums, out, ld_out);
}

GEMM_8(q4_0, QW_PACK_Q4_0, 32, tile_32)
GEMM_8(q4_1, QW_PACK_Q4_1, 32, tile_32)
GEMM_8(q5_0, QW_PACK_Q5_0, 32, tile_32)
GEMM_8(q5_1, QW_PACK_Q5_1, 32, tile_32)
GEMM_8(q8_0, QW_PACK_Q8_0, 32, tile_32)
GEMM_8(iq4_nl, QW_PACK_IQ4_NL, 32, tile_32)
GEMM_8(mxfp4, QW_PACK_MXFP4, 32, tile_32)
GEMM_8(q2_k, QW_PACK_Q2_K, 256, tile_k16)
GEMM_8(q3_k, QW_PACK_Q3_K, 256, tile_k16)
GEMM_8(q4_k, QW_PACK_Q4_K, 256, tile_kq)
GEMM_8(q5_k, QW_PACK_Q5_K, 256, tile_kq)
GEMM_8(q6_k, QW_PACK_Q6_K, 256, tile_k16)
GEMM_8(iq4_xs, QW_PACK_IQ4_XS, 256, tile_iq4xs)
GEMM_8(book, QW_PACK_BOOK, 256, tile_k16)

void qw_gemm_init_avx512_vnni(qw_kernels *t)
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
