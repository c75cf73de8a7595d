/* gemm_avx2.h: what the AVX2 matrix products share: how packed weights are taken apart and multiplied.
 * Included by one file for blocks of 32 and one for blocks of 256; everything is static. Any thread.
 *
 * 16 rows are two registers of 8 lanes. vpmaddubsw multiplies unsigned weights with signed activations and
 * adds pairs into 16-bit lanes, which are summed as deep as is exact (docs/kernels.md has the bounds) before
 * one vpmaddwd widens them. Where weights are signed, the lanes start at -offset * sum(activations), so that
 * they end in the signed range. Weights of 8 bits leave no room to sum: every product is widened.
 *
 * Up to 4 columns take the weights apart in registers. More columns are a wide tile: a block's weights are
 * taken apart once, into L1, and all columns pass over them, up to 4 at a time.
 */
#ifndef QW_KERNELS_X86_GEMM_AVX2_H
#define QW_KERNELS_X86_GEMM_AVX2_H

#include "kernels/kernels_private.h"
#include "kernels/x86/gemm_tiles.h"

enum { N_MAX = 4, HALVES = 2, HALF = QW_LINE / HALVES }; /* half 0 of a line: rows 0-7, half 1: rows 8-15 */

typedef float rows[QW_GROUP_ROWS];

TILE_INLINE __m256i load(const void *p)
{
    return _mm256_load_si256(p);
}

TILE_INLINE void store(void *p, __m256i x)
{
    _mm256_store_si256(p, x);
}

TILE_INLINE __m256 eight_halves(const void *p)
{
    return _mm256_cvtph_ps(_mm_load_si128(p));
}

/* Fixes a value in a register at this point of the program. Compilers may regroup integer sums, and gcc
 * does: it puts all products of a block aside (in memory) and adds them up at the end. It also loads weights
 * again for each column. */
TILE_INLINE void pin(__m256i *x)
{
    __asm__("" : "+x"(*x));
}

/* ---- weights ------------------------------------------------------------------------------------ */

/* How a quant is stored: bytes; a nibble, with one or two bits more in lines of their own; a nibble that is
 * looked up in a table; two bits, with a third one in a line of its own. Taken apart: bytes, or SIGNS of
 * 8-bit weights: for word j lines 2j, the magnitude, and 2j + 1, the mask of the sign; then 16 int32: row by
 * row the sum of magnitude * mask. */
typedef enum quant_kind { BYTES, NIBBLES, NIBBLES_1, NIBBLES_2, BOOK, PAIRS, PAIRS_1, SIGNS } quant_kind;

enum { SIGNS_SUM = 2 * QW_Q8_BYTES, SIGNS_BYTES = SIGNS_SUM + QW_LINE };

/* Bytes of 32 elements. */
TILE_INLINE size_t quant_bytes(quant_kind kind)
{
    switch (kind) {
    case BYTES: return QW_Q8_BYTES;
    case NIBBLES_1: return QW_Q5_BYTES;
    case NIBBLES_2: return QW_Q6_BYTES;
    case PAIRS: return QW_Q2_BYTES;
    case PAIRS_1: return QW_Q3_BYTES;
    case SIGNS: return SIGNS_BYTES;
    default: return QW_Q4_BYTES;
    }
}

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
    case -3: return _mm256_srli_epi16(x, 3);
    case -4: return _mm256_srli_epi16(x, 4);
    case -5: return _mm256_srli_epi16(x, 5);
    default: return _mm256_srli_epi16(x, 6);
    }
}

/* low | the field at bit `from` of `line`, moved to bit `to`, where mask selects it. */
TILE_INLINE __m256i with_field(__m256i low, const uint8_t *line, int from, int to, char mask)
{
    return _mm256_or_si256(low, _mm256_and_si256(shifted(load(line), to - from), _mm256_set1_epi8(mask)));
}

/* Nibbles of word j: the low ones of a line for an even j, the high ones for an odd. */
TILE_INLINE __m256i nibbles(const uint8_t *lines, int j)
{
    __m256i x = load(lines + j / 2 * QW_LINE);
    return _mm256_and_si256(j % 2 == 0 ? x : _mm256_srli_epi16(x, 4), _mm256_set1_epi8(15));
}

TILE_INLINE __m256i pairs(const uint8_t *lines, int j)
{
    return _mm256_and_si256(shifted(load(lines + j / 4 * QW_LINE), -(2 * (j % 4))), _mm256_set1_epi8(3));
}

/* Half a word j of 32 elements, as stored. lines: where the 32 begin, moved to the half; book: for BOOK. */
TILE_INLINE __m256i half_word(quant_kind kind, const uint8_t *lines, int j, __m256i book)
{
    switch (kind) {
    case NIBBLES: return nibbles(lines, j);
    case NIBBLES_1: return with_field(nibbles(lines + QW_LINE, j), lines, j, 4, 0x10);
    case NIBBLES_2: return with_field(nibbles(lines + 2 * QW_LINE, j), lines + j / 4 * QW_LINE, 2 * (j % 4), 4, 0x30);
    case BOOK: return _mm256_shuffle_epi8(book, nibbles(lines, j));
    case PAIRS: return pairs(lines, j);
    case PAIRS_1: return with_field(pairs(lines + QW_LINE, j), lines, j, 2, 4);
    default: return load(lines + j * QW_LINE);
    }
}

/* The levels of MXFP4 as the sums in 16 bits want them, unsigned; those of the IQ4 forms as 8-bit weights,
 * signed. */
TILE_INLINE __m256i book_of(qw_pack form)
{
    const uint8_t *book = form == QW_PACK_MXFP4 ? qw_book_mxfp4 : qw_book_iq4;
    __m256i x = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)book));
    return form == QW_PACK_MXFP4 ? x : _mm256_xor_si256(x, _mm256_set1_epi8(-128));
}

/* Where a tile that takes weights apart leaves them for later tiles: as BYTES, `add` above the stored ones,
 * or as SIGNS. */
typedef struct apart {
    uint8_t *to; /* NULL: nowhere */
    char add;
} apart;

TILE_INLINE void put_bytes(apart out, int j, int h, __m256i w)
{
    if (!out.to) return;
    store(out.to + j * QW_LINE + h * HALF, out.add ? _mm256_add_epi8(w, _mm256_set1_epi8(out.add)) : w);
}

TILE_INLINE void put_signs(apart out, int j, int h, __m256i magnitude, __m256i sign)
{
    if (!out.to) return;
    store(out.to + 2 * j * QW_LINE + h * HALF, magnitude);
    store(out.to + (2 * j + 1) * QW_LINE + h * HALF, sign);
}

/* ---- products ----------------------------------------------------------------------------------- */

typedef __m256i sums[HALVES][N_MAX];

/* The dot products of words [j0, j0 + n_words) of 32 elements with N columns, in 16-bit lanes; fresh: they
 * start the sums, else they are added. a: N pointers to the columns' quants. */
TILE_INLINE void dot_words(quant_kind kind, bool fresh, int N, sums sum, const uint8_t *lines, int j0, int n_words,
                           __m256i book, const int8_t *const *a, apart out)
{
    TILE_UNROLL
    for (int j = j0; j < j0 + n_words; j++) {
        __m256i w[HALVES];
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) {
            w[h] = half_word(kind, lines + h * HALF, j, book);
            put_bytes(out, j, h, w[h]);
            if (N > 1) pin(&w[h]);
        }
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            __m256i x = _mm256_set1_epi32(tile_i32(a[n] + 4 * j));
            TILE_UNROLL
            for (int h = 0; h < HALVES; h++) {
                __m256i p = _mm256_maddubs_epi16(w[h], x);
                sum[h][n] = fresh && j == j0 ? p : _mm256_add_epi16(sum[h][n], p);
                pin(&sum[h][n]);
            }
        }
    }
}

/* Magnitude and sign of half a word j of 8-bit weights: a mask, or for `negate` anything with the weight's
 * sign. */
TILE_INLINE void split_signs(quant_kind kind, bool negate, const uint8_t *lines, int j, __m256i book,
                             __m256i *magnitude, __m256i *sign)
{
    if (kind == SIGNS) {
        *magnitude = load(lines + 2 * j * QW_LINE);
        *sign = load(lines + (2 * j + 1) * QW_LINE);
        return;
    }
    __m256i w = half_word(kind, lines, j, book);
    if (kind == BYTES) w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    *magnitude = _mm256_abs_epi8(w);
    *sign = negate ? w : _mm256_cmpgt_epi8(_mm256_setzero_si256(), w);
}

/* The dot products of 32 elements with weights of 8 bits, in 32-bit lanes. With m the mask of a weight's
 * sign, 0 or -1, w * a is |w| * ((a ^ m) - m): the exclusive or is done for each column, the sum of |w| * m
 * once for all. For one or two columns vpsignb negates instead, which costs less for a weight and a
 * multiplier's slot for a column. */
TILE_INLINE void dot_8_bits(quant_kind kind, int N, sums sum, const uint8_t *lines, __m256i book,
                            const int8_t *const *a, apart out)
{
    const bool negate = kind != SIGNS && N <= 2;
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i less[HALVES]; /* the sums of |w| * m in 16 bits, then in 32 */
    TILE_UNROLL
    for (int j = 0; j < QW_WORDS; j++) {
        __m256i w[HALVES], sign[HALVES];
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) {
            split_signs(kind, negate, lines + h * HALF, j, book, &w[h], &sign[h]);
            put_signs(out, j, h, w[h], sign[h]);
            if (kind != SIGNS && !negate) {
                __m256i x = _mm256_maddubs_epi16(w[h], sign[h]);
                less[h] = j == 0 ? x : _mm256_add_epi16(less[h], x);
                pin(&less[h]);
            }
            if (N > 1) {
                pin(&w[h]);
                pin(&sign[h]);
            }
        }
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            __m256i x = _mm256_set1_epi32(tile_i32(a[n] + 4 * j));
            TILE_UNROLL
            for (int h = 0; h < HALVES; h++) {
                __m256i q = negate ? _mm256_sign_epi8(x, sign[h]) : _mm256_xor_si256(x, sign[h]);
                __m256i p = _mm256_madd_epi16(_mm256_maddubs_epi16(w[h], q), ones);
                sum[h][n] = j == 0 ? p : _mm256_add_epi32(sum[h][n], p);
                pin(&sum[h][n]);
            }
        }
    }
    if (negate) return;
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) {
        less[h] = kind == SIGNS ? load(lines + SIGNS_SUM + h * HALF) : _mm256_madd_epi16(less[h], ones);
        if (out.to) store(out.to + SIGNS_SUM + h * HALF, less[h]);
        TILE_UNROLL
        for (int n = 0; n < N; n++) sum[h][n] = _mm256_sub_epi32(sum[h][n], less[h]);
    }
}

/* Where a tile is in a group: the part in front of all blocks, the block, what is prefetched next. */
typedef struct place {
    const uint8_t *front, *block, *ahead;
} place;

/* ---- running sums ------------------------------------------------------------------------------- */

/* Running sums of a tile, touched once for 16 or 32 elements: in registers for one or two columns, else in
 * memory. Aligned: sums that lie across the border of two pages cost a third of the speed. */
typedef struct float_sums {
    _Alignas(QW_LINE) rows of[N_MAX];
} float_sums;

/* Keeps the sums of three and more columns in memory: nothing else writes them, but the compiler must not
 * know. */
TILE_INLINE float_sums *keep(int N, float_sums *t)
{
    if (N > 2) __asm__("" : "+r"(t) : : "memory");
    return t;
}

TILE_INLINE void begin_sums(int N, float_sums *t)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        _mm256_store_ps(t->of[n], _mm256_setzero_ps());
        _mm256_store_ps(t->of[n] + 8, _mm256_setzero_ps());
    }
}

/* t [8] = fma((float)isum, scale, t) */
TILE_INLINE void add_scaled(float *t, __m256i isum, __m256 scale)
{
    _mm256_store_ps(t, _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum), scale, _mm256_load_ps(t)));
}

/* ---- wide tiles --------------------------------------------------------------------------------- */

/* The running sums of a wide tile's columns side by side: in `out` they may lie so that they fall out of L1.
 * */
typedef struct wide_sums {
    _Alignas(QW_LINE) rows of[TILE_WIDE];
} wide_sums;

TILE_INLINE void begin_wide(wide_sums *acc, tile_part part, size_t n_cols, const float *out, size_t ld_out)
{
    if (part.b0 == 0) memset(acc, 0, n_cols * sizeof acc->of[0]);
    for (size_t c = 0; c < n_cols && part.b0 > 0; c++) memcpy(acc->of[c], out + c * ld_out, sizeof acc->of[c]);
}

TILE_INLINE void end_wide(const wide_sums *acc, size_t n_cols, float *out, size_t ld_out)
{
    for (size_t c = 0; c < n_cols; c++) memcpy(out + c * ld_out, acc->of[c], sizeof acc->of[c]);
}

/* The columns of a wide tile as tiles: n_more of n + 1 columns, then n_less of n. */
typedef struct wide_split {
    size_t n, n_more, n_less;
} wide_split;

/* n_cols is above N_MAX: the first tile has 3 or 4 columns, and none has one. */
TILE_INLINE wide_split split_columns(size_t n_cols)
{
    size_t n_tiles = (n_cols + N_MAX - 1) / N_MAX;
    return (wide_split){n_cols / n_tiles, n_cols % n_tiles, n_tiles - n_cols % n_tiles};
}

/* Takes the first tile away and returns its columns. */
TILE_INLINE size_t split_first(wide_split *s)
{
    if (s->n_more > 0) {
        s->n_more--;
        return s->n + 1;
    }
    s->n_less--;
    return s->n;
}

/* Fetches a line of each of N records into L1: the next tile's. */
TILE_INLINE void fetch_records(int N, const uint8_t *next, size_t act_bytes, size_t at)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) _mm_prefetch((const char *)next + (size_t)n * act_bytes + at, _MM_HINT_T0);
}

#endif
