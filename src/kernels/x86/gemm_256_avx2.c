/* gemm_256_avx2.c: matrix products with AVX2 for forms with blocks of 256: Q4_K, Q5_K and IQ4_XS with a
 * scale for 32 elements, Q2_K, Q3_K and Q6_K for 16. How: gemm_avx2.h. Bits as ref/gemm_ref.c. Any thread.
 */
#include "kernels/x86/gemm_avx2.h"

/* What a block has beside its quants, taken apart: the rows' scales and those of 8 or 16 sub-blocks, each twice in 16
 * bits, or of IQ4_XS as floats (d * scale); minima in 16-bit pairs as the records' sums are ordered. */
typedef struct block_head {
    _Alignas(QW_LINE) rows d, dmin;
    union {
        int16_t twice[2 * QW_SUBS][2 * QW_GROUP_ROWS];
        rows floats[QW_SUBS];
    } scale;
    uint8_t min[QW_SUBS][QW_LINE];
} block_head;

/* A block taken apart. */
typedef struct whole_block {
    block_head head;
    _Alignas(QW_LINE) uint8_t w[QW_SUBS * SIGNS_BYTES];
} whole_block;

/* How a form computes. */
typedef enum scheme {
    DEEP,       /* a scale for 32: all 8 words are summed in 16 bits */
    SPLIT,      /* a scale for 32: 4 words are, and then 4 */
    EIGHT_BITS, /* a scale for 32 */
    SIXTEEN,    /* a scale for 16: 4 words are summed in 16 bits */
    SIXTEEN_32  /* the same, from -32 * sum of the activations */
} scheme;

typedef struct form_256 {
    scheme how;
    quant_kind kind;
    int n_minima;  /* pairs of minima in 16 bits */
    bool up_front; /* wide tiles take weights apart before all columns, not with the first few */
    char add;      /* what makes the offset 32 when they are taken apart */
    size_t front;  /* bytes for each block that lie in front of all blocks */
    size_t head;   /* bytes before a block's quants */
} form_256;

TILE_INLINE form_256 form_of(qw_pack form)
{
    switch (form) {
    case QW_PACK_Q4_K: return (form_256){DEEP, NIBBLES, 4, false, 0, 0, sizeof(qw_packed_kq)};
    case QW_PACK_Q5_K: return (form_256){SPLIT, NIBBLES_1, 4, true, 0, 0, sizeof(qw_packed_kq)};
    case QW_PACK_IQ4_XS: return (form_256){EIGHT_BITS, BOOK, 0, false, 0, 0, offsetof(qw_packed_iq4xs, quants)};
    case QW_PACK_Q2_K: return (form_256){SIXTEEN, PAIRS, 8, false, 0, 0, offsetof(qw_packed_q2k, quants)};
    case QW_PACK_Q3_K:
        return (form_256){SIXTEEN_32, PAIRS_1, 0, true, 28, QW_HALF_LINE, offsetof(qw_packed_q3k, quants)};
    default: return (form_256){SIXTEEN_32, NIBBLES_2, 0, true, 0, QW_HALF_LINE, offsetof(qw_packed_q6k, quants)};
    }
}

/* Quants of a scheme that were taken apart. */
TILE_INLINE form_256 form_apart(scheme how, int n_minima)
{
    return (form_256){how, how == EIGHT_BITS ? SIGNS : BYTES, n_minima, false, 0, 0, 0};
}

TILE_INLINE size_t block_bytes_of(form_256 f)
{
    return f.head + QW_SUBS * quant_bytes(f.kind);
}

/* ---- heads -------------------------------------------------------------------------------------- */

/* The rows' scales, or another 16 halves. */
TILE_INLINE void put_halves(rows *to, int h, const qw_half *from)
{
    _mm256_store_ps(*to + 8 * h, eight_halves(from + 8 * h));
}

/* Scales s to s + 3: byte i, signed, of each row's 32-bit lane, twice in 16 bits; one half of the rows. */
TILE_INLINE void put_scales(block_head *out, int s, int h, __m256i bytes)
{
    TILE_UNROLL
    for (int i = 0; i < 4; i++) {
        const int from = i << 24 | i << 8 | 0x800080, row = 4 << 24 | 4 << 8; /* 0x80: a zero */
        __m128i top = _mm_setr_epi32(from, from + row, from + 2 * row, from + 3 * row);
        __m256i x = _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(top));
        store(out->scale.twice[s + i] + 16 * h, _mm256_srai_epi16(x, 8));
    }
}

TILE_INLINE void head_kq(const qw_packed_kq *src, block_head *out)
{
    const __m256i six = _mm256_set1_epi8(63), two = _mm256_set1_epi8(3), even = _mm256_set1_epi32(0x00ff00ff);
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) {
        __m256i l0 = load(src->scales[0] + HALF * h), l1 = load(src->scales[1] + HALF * h);
        __m256i l2 = load(src->scales[2] + HALF * h);
        put_halves(&out->d, h, src->d);
        put_halves(&out->dmin, h, src->dmin);
        put_scales(out, 0, h, _mm256_and_si256(l0, six));
        put_scales(out, 4, h, _mm256_and_si256(l1, six));
        __m256i m0 = _mm256_and_si256(l2, six);
        __m256i m4 = _mm256_and_si256(_mm256_srli_epi16(l0, 6), two);
        m4 = _mm256_or_si256(m4, _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(l1, 6), two), 2));
        m4 = _mm256_or_si256(m4, _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(l2, 6), two), 4));
        store(out->min[0] + HALF * h, _mm256_and_si256(m0, even));
        store(out->min[1] + HALF * h, _mm256_and_si256(_mm256_srli_epi16(m0, 8), even));
        store(out->min[2] + HALF * h, _mm256_and_si256(m4, even));
        store(out->min[3] + HALF * h, _mm256_and_si256(_mm256_srli_epi16(m4, 8), even));
    }
}

TILE_INLINE void head_q2k(const qw_packed_q2k *src, block_head *out)
{
    const __m256i four = _mm256_set1_epi8(15), even = _mm256_set1_epi32(0x000f000f);
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) {
        put_halves(&out->d, h, src->d);
        put_halves(&out->dmin, h, src->dmin);
        TILE_UNROLL
        for (int v = 0; v < 4; v++) {
            __m256i x = load(src->scales[v] + HALF * h);
            put_scales(out, 4 * v, h, _mm256_and_si256(x, four));
            store(out->min[2 * v] + HALF * h, _mm256_and_si256(_mm256_srli_epi32(x, 4), even));
            store(out->min[2 * v + 1] + HALF * h, _mm256_and_si256(_mm256_srli_epi32(x, 12), even));
        }
    }
}

TILE_INLINE void head_q3k(const qw_half *d_at, const qw_packed_q3k *src, block_head *out)
{
    const __m256i six = _mm256_set1_epi8(63), two = _mm256_set1_epi8(3), offset = _mm256_set1_epi8(32);
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) {
        put_halves(&out->d, h, d_at);
        __m256i last = _mm256_setzero_si256();
        TILE_UNROLL
        for (int v = 0; v < 3; v++) {
            __m256i x = load(src->scales[v] + HALF * h);
            put_scales(out, 4 * v, h, _mm256_sub_epi8(_mm256_and_si256(x, six), offset));
            last = _mm256_or_si256(last, shifted(_mm256_and_si256(_mm256_srli_epi16(x, 6), two), 2 * v));
        }
        put_scales(out, 12, h, _mm256_sub_epi8(last, offset));
    }
}

TILE_INLINE void head_q6k(const qw_half *d_at, const qw_packed_q6k *src, block_head *out)
{
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) {
        put_halves(&out->d, h, d_at);
        TILE_UNROLL
        for (int v = 0; v < 4; v++) put_scales(out, 4 * v, h, load(src->scales[v] + HALF * h));
    }
}

TILE_INLINE void head_iq4xs(const qw_packed_iq4xs *src, block_head *out)
{
    const __m256i four = _mm256_set1_epi32(15), two = _mm256_set1_epi32(0x30), offset = _mm256_set1_epi32(32);
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) {
        __m256 d = eight_halves(src->d + 8 * h);
        __m256i low = load(src->scale_low + 8 * h);
        __m256i high = _mm256_cvtepu16_epi32(_mm_load_si128((const __m128i *)(const void *)(src->scale_high + 8 * h)));
        high = _mm256_slli_epi32(high, 4);
        TILE_UNROLL
        for (int s = 0; s < QW_SUBS; s++) {
            __m256i x = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(low, 4 * s), four),
                                        _mm256_and_si256(_mm256_srli_epi32(high, 2 * s), two));
            x = _mm256_sub_epi32(x, offset);
            _mm256_store_ps(out->scale.floats[s] + 8 * h, _mm256_mul_ps(d, _mm256_cvtepi32_ps(x)));
        }
    }
}

/* front: the block's scales that lie before all blocks, where the form has such. */
TILE_INLINE void take_head(qw_pack form, const uint8_t *front, const uint8_t *block, block_head *out)
{
    const qw_half *d = (const qw_half *)(const void *)front;
    switch (form) {
    case QW_PACK_IQ4_XS: head_iq4xs((const qw_packed_iq4xs *)block, out); return;
    case QW_PACK_Q2_K: head_q2k((const qw_packed_q2k *)block, out); return;
    case QW_PACK_Q3_K: head_q3k(d, (const qw_packed_q3k *)block, out); return;
    case QW_PACK_Q6_K: head_q6k(d, (const qw_packed_q6k *)block, out); return;
    default: head_kq((const qw_packed_kq *)block, out); return;
    }
}

/* ---- products ----------------------------------------------------------------------------------- */

/* t += sums in 16 bits with their scale: vpmaddwd widens them and multiplies at once. t holds integers. */
TILE_INLINE void add_sub(int N, float_sums *t, sums sum, const int16_t *twice)
{
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) {
        __m256i scale = load(twice + 16 * h);
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            float *at = t->of[n] + 8 * h;
            store(at, _mm256_add_epi32(load(at), _mm256_madd_epi16(sum[h][n], scale)));
        }
    }
}

/* t += 32 elements at w with one scale, words [0, QW_WORDS) summed `deep` words at a time. */
TILE_INLINE void sub_32(quant_kind kind, int deep, int N, float_sums *t, const uint8_t *w, const int16_t *twice,
                        __m256i book, const int8_t *const *a, apart out)
{
    TILE_UNROLL
    for (int j = 0; j < QW_WORDS; j += deep) {
        sums sum;
        dot_words(kind, true, N, sum, w, j, deep, book, a, out);
        add_sub(N, t, sum, twice);
        t = keep(N, t);
    }
}

/* t += 32 elements at w with two scales. neg_lane: of each column, -32 * sums of the two 16s' activations,
 * in lanes. */
TILE_INLINE void sub_16(form_256 f, int N, float_sums *t, const uint8_t *w, const int16_t (*twice)[2 * QW_GROUP_ROWS],
                        __m256i book, const int8_t *const *a, const int16_t (*const *neg_lane)[2], apart out)
{
    TILE_UNROLL
    for (int i = 0; i < 2; i++) {
        sums sum;
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            if (f.how == SIXTEEN) continue;
            sum[0][n] = _mm256_set1_epi32(tile_i32(neg_lane[n][i]));
            if (f.kind == PAIRS_1) sum[0][n] = _mm256_srai_epi16(sum[0][n], 3); /* stored, they are 4 above */
            sum[1][n] = sum[0][n];
        }
        dot_words(f.kind, f.how == SIXTEEN, N, sum, w, QW_WORDS / 2 * i, QW_WORDS / 2, book, a, out);
        add_sub(N, t, sum, twice[i]);
    }
}

/* t += 32 elements of 8 bits at w with one scale; t holds floats. */
TILE_INLINE void sub_8_bits(quant_kind kind, int N, float_sums *t, const uint8_t *w, const float *scale, __m256i book,
                            const int8_t *const *a, apart out)
{
    sums sum;
    dot_8_bits(kind, N, sum, w, book, a, out);
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) {
        TILE_UNROLL
        for (int n = 0; n < N; n++) add_scaled(t->of[n] + 8 * h, sum[h][n], _mm256_load_ps(scale + 8 * h));
    }
}

/* acc [N, ld] += (t - minima * sums of activations) * scales of the columns' block */
TILE_INLINE void add_block(form_256 f, int N, const float_sums *t, const block_head *head,
                           const qw_act256 *const *rec, float *acc, size_t ld)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        const int16_t(*asum)[2] = f.n_minima == 8 ? rec[n]->sum16 : rec[n]->sum32;
        __m256i msum[HALVES];
        TILE_UNROLL
        for (int i = 0; i < f.n_minima; i++) {
            __m256i x = _mm256_set1_epi32(tile_i32(asum[i]));
            TILE_UNROLL
            for (int h = 0; h < HALVES; h++) {
                __m256i m = _mm256_madd_epi16(x, load(head->min[i] + HALF * h));
                msum[h] = i == 0 ? m : _mm256_add_epi32(msum[h], m);
            }
        }
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) {
            float *at = acc + (size_t)n * ld + 8 * h;
            __m256 x = _mm256_load_ps(t->of[n] + 8 * h);
            if (f.how != EIGHT_BITS)
                x = _mm256_mul_ps(_mm256_cvtepi32_ps(load(t->of[n] + 8 * h)), _mm256_load_ps(head->d + 8 * h));
            if (f.n_minima) x = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(msum[h]), _mm256_load_ps(head->dmin + 8 * h), x);
            _mm256_storeu_ps(at, _mm256_fmadd_ps(x, _mm256_set1_ps(rec[n]->d), _mm256_loadu_ps(at)));
        }
    }
}

/* acc [N, ld] += a block with its quants at w, which are left in `out` as well. Prefetches: what is packed
 * at `next` into L2; beside weights that were taken apart, the next tile's records, which are there,
 * act_bytes apart, into L1. Returns next, moved by what it prefetched of packed weights. */
TILE_INLINE const uint8_t *block_256(form_256 f, int N, const block_head *head, const uint8_t *w, __m256i book,
                                     const qw_act256 *const *rec, size_t act_bytes, float *acc, size_t ld,
                                     const uint8_t *next, apart out)
{
    const bool was_taken_apart = f.kind == BYTES || f.kind == SIGNS;
    float_sums memory, *t = &memory;
    begin_sums(N, t);
    TILE_ROLLED
    for (int s = 0; s < QW_SUBS; s++, w += quant_bytes(f.kind)) {
        const int8_t *a[N_MAX];
        const int16_t(*neg_lane[N_MAX])[2];
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            a[n] = rec[n]->q + 32 * s;
            neg_lane[n] = rec[n]->neg_lane16 + 2 * s;
        }
        if (was_taken_apart)
            fetch_records(N, next, act_bytes, (size_t)s * QW_LINE);
        else
            next = tile_prefetch(next, quant_bytes(f.kind));
        t = keep(N, t);
        if (f.how == SIXTEEN || f.how == SIXTEEN_32)
            sub_16(f, N, t, w, head->scale.twice + 2 * s, book, a, neg_lane, out);
        else if (f.how == EIGHT_BITS)
            sub_8_bits(f.kind, N, t, w, head->scale.floats[s], book, a, out);
        else
            sub_32(f.kind, f.how == DEEP ? QW_WORDS : QW_WORDS / 2, N, t, w, head->scale.twice[s], book, a, out);
        if (out.to) out.to += quant_bytes(form_apart(f.how, 0).kind);
    }
    add_block(f, N, keep(N, t), head, rec, acc, ld);
    return next;
}

/* The columns' records of a block. act: those of block 0. */
TILE_INLINE void records_256(int N, const qw_act256 **rec, const uint8_t *act, size_t act_bytes, size_t b)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) rec[n] = (const qw_act256 *)(act + (size_t)n * act_bytes) + b;
}

TILE_INLINE place place_of(form_256 f, const uint8_t *group, tile_part part)
{
    const uint8_t *blocks = group + (f.front ? qw_scales_bytes(part.n_blocks) : 0);
    const uint8_t *block = blocks + part.b0 * block_bytes_of(f);
    return (place){group + part.b0 * f.front, block, block + part.ahead};
}

TILE_INLINE void tile_256(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                          size_t act_bytes, float *out, size_t ld_out)
{
    const form_256 f = form_of(form);
    const __m256i book = book_of(form);
    place at = place_of(f, group, part);
    block_head head;
    TILE_UNROLL
    for (int n = 0; n < N; n++)
        if (part.b0 == 0) memset(out + (size_t)n * ld_out, 0, sizeof(rows));
    for (size_t b = part.b0; b < part.b1; b++, at.front += f.front, at.block += block_bytes_of(f)) {
        const qw_act256 *rec[N_MAX];
        records_256(N, rec, act, act_bytes, b);
        at.ahead = tile_prefetch(at.ahead, f.front + f.head);
        take_head(form, at.front, at.block, &head);
        at.ahead = block_256(f, N, &head, at.block + f.head, book, rec, 0, out, ld_out, at.ahead, (apart){NULL, 0});
    }
}

/* ---- wide tiles --------------------------------------------------------------------------------- */

/* acc [N of each tile] += a block, taken apart, times n_tiles tiles of columns whose records of it start at
 * act. */
typedef void cols_fn(const whole_block *block, const uint8_t *act, size_t act_bytes, size_t n_tiles, rows *acc);

TILE_INLINE void cols_256(scheme how, int n_minima, int N, const whole_block *block, const uint8_t *act,
                          size_t act_bytes, size_t n_tiles, rows *acc)
{
    const form_256 f = form_apart(how, n_minima);
    for (; n_tiles; n_tiles--, acc += N) {
        const qw_act256 *rec[N_MAX];
        records_256(N, rec, act, act_bytes, 0);
        act += (size_t)N * act_bytes;
        block_256(f, N, &block->head, block->w, _mm256_setzero_si256(), rec, act_bytes, *acc, QW_GROUP_ROWS, act,
                  (apart){NULL, 0});
    }
}

#define COLS(name, how, n_minima, N)                                                                           \
    static void name##_##N(const whole_block *block, const uint8_t *act, size_t act_bytes,                     \
                           size_t n_tiles, rows *acc)                                                          \
    {                                                                                                          \
        cols_256(how, n_minima, N, block, act, act_bytes, n_tiles, acc);                                       \
    }
#define COLS_2_TO_4(name, how, n_minima)                                                                       \
    COLS(name, how, n_minima, 2)                                                                               \
    COLS(name, how, n_minima, 3)                                                                               \
    COLS(name, how, n_minima, 4)                                                                               \
    static cols_fn *const name[N_MAX + 1] = {NULL, NULL, name##_2, name##_3, name##_4};

COLS_2_TO_4(cols_deep, DEEP, 4)
COLS_2_TO_4(cols_split, SPLIT, 4)
COLS_2_TO_4(cols_8_bits, EIGHT_BITS, 0)
COLS_2_TO_4(cols_16, SIXTEEN, 8)
COLS_2_TO_4(cols_16_32, SIXTEEN_32, 0)

TILE_INLINE cols_fn *const *cols_of(scheme how)
{
    switch (how) {
    case DEEP: return cols_deep;
    case SPLIT: return cols_split;
    case EIGHT_BITS: return cols_8_bits;
    case SIXTEEN: return cols_16;
    default: return cols_16_32;
    }
}

/* Takes a block's weights apart into `whole`, up front, or with the first tile of columns: acc += their
 * product. rec: the records of 4 columns. Returns at.ahead, moved. */
TILE_INLINE const uint8_t *first_256(form_256 f, size_t n_cols, whole_block *whole, place at, __m256i book,
                                     const qw_act256 *const *rec, rows *acc)
{
    const uint8_t *w = at.block + f.head;
    apart out = {whole->w, f.add};
    if (!f.up_front && n_cols == 4)
        return block_256(f, 4, &whole->head, w, book, rec, 0, *acc, QW_GROUP_ROWS, at.ahead, out);
    if (!f.up_front) return block_256(f, 3, &whole->head, w, book, rec, 0, *acc, QW_GROUP_ROWS, at.ahead, out);
    TILE_ROLLED
    for (int s = 0; s < QW_SUBS; s++, w += quant_bytes(f.kind), out.to += quant_bytes(BYTES)) {
        at.ahead = tile_prefetch(at.ahead, quant_bytes(f.kind));
        TILE_UNROLL
        for (int i = 0; i < HALVES * QW_WORDS; i++) {
            int h = i / QW_WORDS, j = i % QW_WORDS;
            put_bytes(out, j, h, half_word(f.kind, w + h * HALF, j, book));
        }
    }
    return at.ahead;
}

TILE_INLINE void wide_256(qw_pack form, const uint8_t *group, tile_part part, const uint8_t *act, size_t act_bytes,
                          size_t n_cols, float *out, size_t ld_out)
{
    const form_256 f = form_of(form);
    const __m256i book = book_of(form);
    place at = place_of(f, group, part);
    whole_block whole;
    wide_sums acc;
    cols_fn *const *cols = cols_of(f.how);
    wide_split split = split_columns(n_cols);
    const size_t first = f.up_front ? 0 : split_first(&split);
    begin_wide(&acc, part, n_cols, out, ld_out);
    for (size_t b = part.b0; b < part.b1; b++, at.front += f.front, at.block += block_bytes_of(f)) {
        const uint8_t *a = act + b * sizeof(qw_act256);
        const qw_act256 *rec[N_MAX];
        size_t c = first;
        records_256(N_MAX, rec, a, act_bytes, 0);
        at.ahead = tile_prefetch(at.ahead, f.front + f.head);
        take_head(form, at.front, at.block, &whole.head);
        at.ahead = first_256(f, first, &whole, at, book, rec, acc.of);
        if (split.n_more) cols[split.n + 1](&whole, a + c * act_bytes, act_bytes, split.n_more, acc.of + c);
        c += split.n_more * (split.n + 1);
        if (split.n_less) cols[split.n](&whole, a + c * act_bytes, act_bytes, split.n_less, acc.of + c);
    }
    end_wide(&acc, n_cols, out, ld_out);
}

GEMM_4_WIDE(q2_k, QW_PACK_Q2_K, 256, tile_256, wide_256)
GEMM_4_WIDE(q3_k, QW_PACK_Q3_K, 256, tile_256, wide_256)
GEMM_4_WIDE(q4_k, QW_PACK_Q4_K, 256, tile_256, wide_256)
GEMM_4_WIDE(q5_k, QW_PACK_Q5_K, 256, tile_256, wide_256)
GEMM_4_WIDE(q6_k, QW_PACK_Q6_K, 256, tile_256, wide_256)
GEMM_4_WIDE(iq4_xs, QW_PACK_IQ4_XS, 256, tile_256, wide_256)

void qw_gemm_256_init_avx2(qw_kernels *t)
{
    t->gemm[QW_PACK_Q2_K] = gemm_q2_k;
    t->gemm[QW_PACK_Q3_K] = gemm_q3_k;
    t->gemm[QW_PACK_Q4_K] = gemm_q4_k;
    t->gemm[QW_PACK_Q5_K] = gemm_q5_k;
    t->gemm[QW_PACK_Q6_K] = gemm_q6_k;
    t->gemm[QW_PACK_IQ4_XS] = gemm_iq4_xs;
}
