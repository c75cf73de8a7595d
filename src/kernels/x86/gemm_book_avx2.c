/* gemm_book_avx2.c: matrix products with AVX2 for the forms with a book of 16 levels and a scale for 16 elements. How:
 * gemm_avx2.h. Bits as ref/gemm_ref.c. Any thread.
 *
 * Levels go to 62, so only two words fit 16-bit sums: two vpmaddubsw of magnitudes with activations that took the weights'
 * signs, then vpmaddwd with the scale. Tiles of up to 4 columns; more take the weights apart again.
 */
#include "kernels/x86/gemm_avx2.h"

/* Levels, signed. */
TILE_INLINE __m256i signed_book(const uint8_t *group)
{
    __m256i x = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)(const void *)group));
    return _mm256_sub_epi8(x, _mm256_set1_epi8(QW_BOOK_OFFSET));
}

/* Scale i of each row's four, signed bytes, twice in 16 bits. */
TILE_INLINE __m256i twice_scale(__m256i bytes, int i)
{
    return _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, _mm256_setr_epi8(
        -128, (char)i, -128, (char)i, -128, (char)(4 + i), -128, (char)(4 + i), -128, (char)(8 + i), -128, (char)(8 + i),
        -128, (char)(12 + i), -128, (char)(12 + i), -128, (char)i, -128, (char)i, -128, (char)(4 + i), -128, (char)(4 + i),
        -128, (char)(8 + i), -128, (char)(8 + i), -128, (char)(12 + i), -128, (char)(12 + i))), 8);
}

/* total += words j and j + 1 of 32 elements, whose scales are `scale`. */
TILE_INLINE void two_words(int N, sums total, const uint8_t *lines, int j, const __m256i *scale, __m256i book,
                           const int8_t *const *a)
{
    __m256i w[2][HALVES], magnitude[2][HALVES];
    TILE_UNROLL
    for (int i = 0; i < 2; i++)
        for (int h = 0; h < HALVES; h++) {
            w[i][h] = half_word(BOOK, lines + h * HALF, j + i, book);
            magnitude[i][h] = _mm256_abs_epi8(w[i][h]);
        }
    TILE_UNROLL
    for (int n = 0; n < N; n++) {
        __m256i x0 = _mm256_set1_epi32(tile_i32(a[n] + 4 * j)), x1 = _mm256_set1_epi32(tile_i32(a[n] + 4 * j + 4));
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) {
            __m256i p = _mm256_maddubs_epi16(magnitude[0][h], _mm256_sign_epi8(x0, w[0][h]));
            p = _mm256_add_epi16(p, _mm256_maddubs_epi16(magnitude[1][h], _mm256_sign_epi8(x1, w[1][h])));
            total[h][n] = _mm256_add_epi32(total[h][n], _mm256_madd_epi16(p, scale[h]));
            pin(&total[h][n]);
        }
    }
}

/* total = a block's sum with its scales. Returns ahead, moved. */
TILE_INLINE const uint8_t *dot_block(int N, sums total, const qw_packed_book *block, __m256i book,
                                     const qw_act256 *const *rec, const uint8_t *ahead)
{
    TILE_UNROLL
    for (int n = 0; n < N; n++)
        for (int h = 0; h < HALVES; h++) total[h][n] = _mm256_setzero_si256();
    TILE_ROLLED
    for (size_t v = 0; v < 4; v++) {
        const int8_t *a[N_MAX];
        __m256i bytes[HALVES], scale[HALVES];
        TILE_UNROLL
        for (int h = 0; h < HALVES; h++) bytes[h] = load((const uint8_t *)block->scales[v] + HALF * h);
        TILE_UNROLL
        for (int i = 0; i < 4; i++) {
            const size_t s = 2 * v + (size_t)i / 2;
            if (i % 2 == 0) ahead = tile_prefetch(ahead, QW_Q4_BYTES);
            TILE_UNROLL
            for (int h = 0; h < HALVES; h++) scale[h] = twice_scale(bytes[h], i);
            TILE_UNROLL
            for (int n = 0; n < N; n++) a[n] = rec[n]->q + 32 * s;
            two_words(N, total, block->quants[s], 4 * (i % 2), scale, book, a);
            two_words(N, total, block->quants[s], 4 * (i % 2) + 2, scale, book, a);
        }
    }
    return ahead;
}

TILE_INLINE void tile_book(qw_pack form, int N, const uint8_t *group, tile_part part, const uint8_t *act,
                           size_t act_bytes, float *out, size_t ld_out)
{
    (void)form;
    const __m256i book = signed_book(group);
    const float *d = (const float *)(const void *)(group + QW_LINE) + part.b0 * QW_GROUP_ROWS;
    const qw_packed_book *block = (const qw_packed_book *)(group + qw_book_front(part.n_blocks)) + part.b0;
    const uint8_t *ahead = (const uint8_t *)block + part.ahead;
    for (int n = 0; n < N && part.b0 == 0; n++) memset(out + (size_t)n * ld_out, 0, sizeof(rows));
    for (size_t b = part.b0; b < part.b1; b++, block++, d += QW_GROUP_ROWS) {
        const qw_act256 *rec[N_MAX];
        sums total;
        TILE_UNROLL
        for (int n = 0; n < N; n++) rec[n] = (const qw_act256 *)(act + (size_t)n * act_bytes) + b;
        ahead = dot_block(N, total, block, book, rec, tile_prefetch(ahead, sizeof block->scales + QW_LINE));
        TILE_UNROLL
        for (int n = 0; n < N; n++)
            for (int h = 0; h < HALVES; h++) {
                float *at = out + (size_t)n * ld_out + 8 * h;
                __m256 t = _mm256_mul_ps(_mm256_cvtepi32_ps(total[h][n]), _mm256_load_ps(d + 8 * h));
                _mm256_storeu_ps(at, _mm256_fmadd_ps(t, _mm256_set1_ps(rec[n]->d), _mm256_loadu_ps(at)));
            }
    }
}

TILE_INSTANCE(book, QW_PACK_BOOK, tile_book, 1)
TILE_INSTANCE(book, QW_PACK_BOOK, tile_book, 2)
TILE_INSTANCE(book, QW_PACK_BOOK, tile_book, 3)
TILE_INSTANCE(book, QW_PACK_BOOK, tile_book, 4)
static tile_fn *const book_tiles[] = {NULL, book_x1, book_x2, book_x3, book_x4};
TILE_SLOT(book, QW_PACK_BOOK, 256, NULL)

void qw_gemm_book_init_avx2(qw_kernels *t)
{
    for (qw_pack p = QW_PACK_IQ2_XXS; p <= QW_PACK_IQ3_S; p++) t->gemm[p] = gemm_book;
}
