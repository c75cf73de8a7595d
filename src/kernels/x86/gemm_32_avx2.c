/* gemm_32_avx2.c: matrix products with AVX2 for forms with blocks of 32: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0,
 * IQ4_NL, MXFP4. How: gemm_avx2.h. Bits as ref/gemm_ref.c. Any thread.
 */
#include "kernels/x86/gemm_avx2.h"

enum { BLOCKS = 8 }; /* that a wide tile takes apart at once */

/* Scales, and minima where the form has such. */
typedef struct block_scales {
    _Alignas(QW_LINE) rows d;
    rows m;
} block_scales;

/* Blocks taken apart. */
typedef struct whole_blocks {
    block_scales scales[BLOCKS];
    _Alignas(QW_LINE) uint8_t w[BLOCKS * SIGNS_BYTES];
    size_t n_blocks;
} whole_blocks;

/* How a form computes. */
typedef enum scheme {
    OFFSET,    /* all 8 words are summed in 16 bits, from -2^shift * sum of the activations */
    MINIMUM,   /* the same without an offset, and a minimum */
    MINIMUM_5, /* 5 bits and a minimum: the offset is taken off again */
    EIGHT_BITS
} scheme;

typedef struct form_32 {
    scheme how;
    quant_kind kind;
    int shift;    /* of the offset */
    char add;     /* what makes that offset 16: so all forms are alike when they are taken apart */
    size_t front; /* bytes for each block that lie in front of all blocks */
    size_t head;  /* bytes before a block's quants */
} form_32;

TILE_INLINE form_32 form_of(qw_pack form)
{
    switch (form) {
    case QW_PACK_Q4_0: return (form_32){OFFSET, NIBBLES, 3, 8, QW_HALF_LINE, 0};
    case QW_PACK_Q5_0: return (form_32){OFFSET, NIBBLES_1, 4, 0, QW_HALF_LINE, 0};
    case QW_PACK_MXFP4: return (form_32){OFFSET, BOOK, QW_BOOK_MXFP4_SHIFT, 0, QW_BYTE_LINE, 0};
    case QW_PACK_Q4_1: return (form_32){MINIMUM, NIBBLES, 0, 0, 0, sizeof(qw_packed_q1)};
    case QW_PACK_Q5_1: return (form_32){MINIMUM_5, NIBBLES_1, 4, 0, 0, sizeof(qw_packed_q1)};
    case QW_PACK_IQ4_NL: return (form_32){EIGHT_BITS, BOOK, 0, 0, QW_HALF_LINE, 0};
    default: return (form_32){EIGHT_BITS, BYTES, 0, 0, QW_HALF_LINE, 0};
    }
}

/* Quants of a scheme that were taken apart. */
TILE_INLINE form_32 form_apart(scheme how)
{
    return (form_32){how, how == EIGHT_BITS ? SIGNS : BYTES, 4, 0, 0, 0};
}

/* ---- scales ------------------------------------------------------------------------------------- */

/* Half of 2^(e - 127), of 8 exponents: below e = 2 a subnormal number. */
TILE_INLINE __m256 exponents(const uint8_t *p)
{
    __m256i e = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
    __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
    __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, is_small));
}

/* front: the block's scales that lie before all blocks, where the form has such. */
TILE_INLINE void take_scales(form_32 f, const uint8_t *front, const uint8_t *block, block_scales *out)
{
    const qw_packed_q1 *head = (const qw_packed_q1 *)block;
    TILE_UNROLL
    for (size_t i = 0; i < QW_GROUP_ROWS; i += 8) {
        __m256 d;
        if (f.head)
            d = eight_halves(head->d + i);
        else
            d = f.front == QW_BYTE_LINE ? exponents(front + i) : eight_halves(front + i * sizeof(qw_half));
        _mm256_store_ps(out->d + i, d);
        if (f.head) _mm256_store_ps(out->m + i, eight_halves(head->m + i));
    }
}

/* ---- products ----------------------------------------------------------------------------------- */

/* acc += a block with its quants at w */
TILE_INLINE void block_32(form_32 f, int N, float_sums *acc, const block_scales *scales, const uint8_t *w,
                          __m256i book, const qw_act32 *const *rec, apart out)
{
    const bool has_offset = f.how == OFFSET || f.how == MINIMUM_5, has_m = f.how == MINIMUM || f.how == MINIMUM_5;
    const __m256i ones = _mm256_set1_epi16(1);
    const int8_t *a[N_MAX];
    sums sum;
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        a[n] = rec[n]->q;
        if (has_offset)
            sum[0][n] = sum[1][n] = _mm256_slli_epi16(_mm256_set1_epi32(tile_i32(rec[n]->neg_lane)), f.shift);
    }
    if (f.how == EIGHT_BITS)
        dot_8_bits(f.kind, N, sum, w, book, a, out);
    else
        dot_words(f.kind, !has_offset, N, sum, w, 0, QW_WORDS, book, a, out);
    TILE_UNROLL
    for (int h = 0; h < HALVES; h++) {
        __m256 d = _mm256_load_ps(scales->d + 8 * h);
        TILE_UNROLL
        for (int n = 0; n < N; n++) {
            float *at = acc->of[n] + 8 * h;
            __m256i isum = f.how == EIGHT_BITS ? sum[h][n] : _mm256_madd_epi16(sum[h][n], ones);
            if (f.how == MINIMUM_5)
                isum = _mm256_sub_epi32(isum, _mm256_slli_epi32(_mm256_set1_epi32(rec[n]->neg_sum), f.shift));
            add_scaled(at, isum, _mm256_mul_ps(d, _mm256_set1_ps(rec[n]->d)));
            if (!has_m) continue;
            __m256 m = _mm256_load_ps(scales->m + 8 * h);
            _mm256_store_ps(at, _mm256_fmadd_ps(m, _mm256_set1_ps(rec[n]->d_sum), _mm256_load_ps(at)));
        }
    }
}

TILE_INLINE place place_of(form_32 f, const uint8_t *group, tile_part part)
{
    size_t fronts = f.front == 0              ? 0
                    : f.front == QW_BYTE_LINE ? qw_exponents_bytes(part.n_blocks)
                                              : qw_scales_bytes(part.n_blocks);
    const uint8_t *block = group + fronts + part.b0 * (f.head + quant_bytes(f.kind));
    return (place){group + part.b0 * f.front, block, block + part.ahead};
}

/* acc += the block at a place. Leaves its scales in `scales` and its weights in `out`. Returns the next
 * block's place. */
TILE_INLINE place step_32(form_32 f, int N, float_sums *acc, place at, __m256i book, const qw_act32 *const *rec,
                          block_scales *scales, apart out)
{
    const size_t block_bytes = f.head + quant_bytes(f.kind);
    at.ahead = tile_prefetch(at.ahead, f.front + block_bytes);
    take_scales(f, at.front, at.block, scales);
    block_32(f, N, keep(N, acc), scales, at.block + f.head, book, rec, out);
    return (place){at.front + f.front, at.block + block_bytes, at.ahead};
}

/* The columns' records of a block. act: those of block 0. */
TILE_INLINE void records_32(int N, const qw_act32 **rec, const uint8_t *act, size_t act_bytes, size_t b)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++) rec[n] = (const qw_act32 *)(act + (size_t)n * act_bytes) + b;
}

TILE_INLINE void tile_32(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                         size_t act_bytes, float *out, size_t ld_out)
{
    const form_32 f = form_of(form);
    const __m256i book = book_of(form);
    place at = place_of(f, group, part);
    float_sums acc;
    block_scales scales;
    begin_sums(N, &acc);
    TILE_UNROLL
    for (int i = 0; i < 2 * N; i++) {
        const float *from = out + (size_t)(i / 2) * ld_out + i % 2 * 8;
        if (part.b0 > 0) _mm256_store_ps(acc.of[i / 2] + i % 2 * 8, _mm256_loadu_ps(from));
    }
    for (size_t b = part.b0; b < part.b1; b++) {
        const qw_act32 *rec[N_MAX];
        records_32(N, rec, act, act_bytes, b);
        at = step_32(f, N, &acc, at, book, rec, &scales, (apart){NULL, 0});
    }
    TILE_UNROLL
    for (int i = 0; i < 2 * N; i++)
        _mm256_storeu_ps(out + (size_t)(i / 2) * ld_out + i % 2 * 8, _mm256_load_ps(acc.of[i / 2] + i % 2 * 8));
}

/* ---- wide tiles --------------------------------------------------------------------------------- */

/* acc [N of each tile] += blocks, taken apart, times n_tiles tiles of columns whose records of the first
 * block start at act. */
typedef void cols_fn(const whole_blocks *blocks, const uint8_t *act, size_t act_bytes, size_t n_tiles, rows *acc);

TILE_INLINE void cols_32(scheme how, int N, const whole_blocks *blocks, const uint8_t *act, size_t act_bytes,
                         size_t n_tiles, rows *acc)
{
    const form_32 f = form_apart(how);
    for (; n_tiles; n_tiles--, acc += N) {
        const uint8_t *w = blocks->w, *next = act + (size_t)N * act_bytes;
        float_sums *t = (float_sums *)acc;
        TILE_ROLLED
        for (size_t b = 0; b < blocks->n_blocks; b++, w += quant_bytes(f.kind)) {
            const qw_act32 *rec[N_MAX];
            records_32(N, rec, act, act_bytes, b);
            fetch_records(N, next, act_bytes, b * sizeof(qw_act32));
            t = keep(N, t);
            block_32(f, N, t, &blocks->scales[b], w, _mm256_setzero_si256(), rec, (apart){NULL, 0});
        }
        act = next;
    }
}

#define COLS(name, how, N)                                                                                     \
    static void name##_##N(const whole_blocks *blocks, const uint8_t *act, size_t act_bytes,                   \
                           size_t n_tiles, rows *acc)                                                          \
    {                                                                                                          \
        cols_32(how, N, blocks, act, act_bytes, n_tiles, acc);                                                 \
    }
#define COLS_2_TO_4(name, how)                                                                                 \
    COLS(name, how, 2)                                                                                         \
    COLS(name, how, 3)                                                                                         \
    COLS(name, how, 4)                                                                                         \
    static cols_fn *const name[N_MAX + 1] = {NULL, NULL, name##_2, name##_3, name##_4};

COLS_2_TO_4(cols_offset, OFFSET)
COLS_2_TO_4(cols_minimum, MINIMUM)
COLS_2_TO_4(cols_minimum_5, MINIMUM_5)
COLS_2_TO_4(cols_8_bits, EIGHT_BITS)

TILE_INLINE cols_fn *const *cols_of(scheme how)
{
    switch (how) {
    case OFFSET: return cols_offset;
    case MINIMUM: return cols_minimum;
    case MINIMUM_5: return cols_minimum_5;
    default: return cols_8_bits;
    }
}

/* The first tile of N columns: takes the blocks apart while it computes. */
TILE_INLINE place first_32(form_32 f, int N, whole_blocks *whole, place at, __m256i book, const uint8_t *act,
                           size_t act_bytes, rows *acc)
{
    uint8_t *to = whole->w;
    TILE_ROLLED
    for (size_t i = 0; i < whole->n_blocks; i++, to += quant_bytes(form_apart(f.how).kind)) {
        const qw_act32 *rec[N_MAX];
        records_32(N, rec, act, act_bytes, i);
        at = step_32(f, N, (float_sums *)acc, at, book, rec, &whole->scales[i], (apart){to, f.add});
    }
    return at;
}

TILE_INLINE void wide_32(qw_pack form, const uint8_t *group, tile_part part, const uint8_t *act, size_t act_bytes,
                         size_t n_cols, float *out, size_t ld_out)
{
    const form_32 f = form_of(form);
    const __m256i book = book_of(form);
    place at = place_of(f, group, part);
    whole_blocks whole;
    wide_sums acc;
    cols_fn *const *cols = cols_of(f.how);
    wide_split split = split_columns(n_cols);
    const size_t first = split_first(&split);
    begin_wide(&acc, part, n_cols, out, ld_out);
    for (size_t b = part.b0; b < part.b1; b += whole.n_blocks) {
        const uint8_t *a = act + b * sizeof(qw_act32);
        size_t c = first;
        whole.n_blocks = part.b1 - b < BLOCKS ? part.b1 - b : BLOCKS;
        if (first == 4)
            at = first_32(f, 4, &whole, at, book, a, act_bytes, acc.of);
        else
            at = first_32(f, 3, &whole, at, book, a, act_bytes, acc.of);
        if (split.n_more) cols[split.n + 1](&whole, a + c * act_bytes, act_bytes, split.n_more, acc.of + c);
        c += split.n_more * (split.n + 1);
        if (split.n_less) cols[split.n](&whole, a + c * act_bytes, act_bytes, split.n_less, acc.of + c);
    }
    end_wide(&acc, n_cols, out, ld_out);
}

GEMM_4_WIDE(q4_0, QW_PACK_Q4_0, 32, tile_32, wide_32)
GEMM_4_WIDE(q4_1, QW_PACK_Q4_1, 32, tile_32, wide_32)
GEMM_4_WIDE(q5_0, QW_PACK_Q5_0, 32, tile_32, wide_32)
GEMM_4_WIDE(q5_1, QW_PACK_Q5_1, 32, tile_32, wide_32)
GEMM_4_WIDE(q8_0, QW_PACK_Q8_0, 32, tile_32, wide_32)
GEMM_4_WIDE(iq4_nl, QW_PACK_IQ4_NL, 32, tile_32, wide_32)
GEMM_4_WIDE(mxfp4, QW_PACK_MXFP4, 32, tile_32, wide_32)

void qw_gemm_32_init_avx2(qw_kernels *t)
{
    t->gemm[QW_PACK_Q4_0] = gemm_q4_0;
    t->gemm[QW_PACK_Q4_1] = gemm_q4_1;
    t->gemm[QW_PACK_Q5_0] = gemm_q5_0;
    t->gemm[QW_PACK_Q5_1] = gemm_q5_1;
    t->gemm[QW_PACK_Q8_0] = gemm_q8_0;
    t->gemm[QW_PACK_IQ4_NL] = gemm_iq4_nl;
    t->gemm[QW_PACK_MXFP4] = gemm_mxfp4;
}
