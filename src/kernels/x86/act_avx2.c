/* act_avx2.c: the quantisation of activations with AVX2. Records: pack_layout.h. Bits as ref/act_ref.c. Any
 * thread.
 *
 * The largest magnitude is found on the floats' bits, as integers: above FLT_MAX it tells that a group has
 * infinities or NaN, and such a group, which no working model has, is done again with its values replaced.
 */
#include <float.h>
#include <immintrin.h>
#include <string.h>

#include "kernels/kernels_private.h"
#include "kernels/pack_layout.h"

enum { GROUPS = 8 }; /* whose scales are found together: a division takes long, several overlap */

#define ACT_INLINE static inline __attribute__((always_inline))

/* NaN becomes 0, infinities the largest float. */
ACT_INLINE __m256 finite(__m256 v)
{
    const __m256 max = _mm256_set1_ps(FLT_MAX), min = _mm256_set1_ps(-FLT_MAX);
    v = _mm256_and_ps(v, _mm256_cmp_ps(v, v, _CMP_ORD_Q));
    return _mm256_max_ps(_mm256_min_ps(v, max), min);
}

ACT_INLINE __m256 values(bool special, const float *x)
{
    __m256 v = _mm256_loadu_ps(x);
    return special ? finite(v) : v;
}

/* The largest |x| of n (a multiple of 32) values, as a float's bits. */
ACT_INLINE int32_t max_bits(bool special, const float *x, size_t n)
{
    const __m256i no_sign = _mm256_set1_epi32(0x7fffffff);
    __m256i m[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t i = 0; i < n; i += 32)
        for (size_t j = 0; j < 4; j++) {
            __m256i bits = _mm256_castps_si256(values(special, x + i + 8 * j));
            m[j] = _mm256_max_epi32(m[j], _mm256_and_si256(bits, no_sign));
        }
    m[0] = _mm256_max_epi32(_mm256_max_epi32(m[0], m[1]), _mm256_max_epi32(m[2], m[3]));
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128(m[0]), _mm256_extracti128_si256(m[0], 1));
    h = _mm_max_epi32(h, _mm_unpackhi_epi64(h, h));
    return _mm_cvtsi128_si32(_mm_max_epi32(h, _mm_shuffle_epi32(h, 1)));
}

/* Not inline: the compiler would keep all values of the first search for a second one. */
static __attribute__((noinline)) int32_t max_bits_special(const float *x, size_t n)
{
    return max_bits(true, x, n);
}

/* How a group is quantised: q = x * inverse, x is about d * q. */
typedef struct act_scale {
    float d, inverse;
    bool special; /* has infinities or NaN */
} act_scale;

ACT_INLINE act_scale scale_of(const float *x, size_t n)
{
    act_scale s = {0};
    float amax;
    int32_t bits = max_bits(false, x, n);
    s.special = bits > 0x7f7fffff;
    if (s.special) bits = max_bits_special(x, n);
    memcpy(&amax, &bits, sizeof amax);
    if (amax < QW_ACT_AMAX_MIN) return s;
    s.inverse = 127.0f / amax;
    s.d = amax / 127.0f;
    return s;
}

/* 32 floats times `inverse`, rounded to nearest even (the mode every thread runs in), as bytes. */
ACT_INLINE __m256i quantize_32(bool special, const float *x, __m256 inverse)
{
    __m256i q[4];
    for (size_t i = 0; i < 4; i++) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(values(special, x + 8 * i), inverse));
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* 16-bit sums of byte pairs: element 2i is the first lane of word i, 2i + 1 its second. */
ACT_INLINE __m256i pair_sums(__m256i q)
{
    return _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
}

/* Scales of up to GROUPS groups of n elements. */
ACT_INLINE void scales_of(const float *x, size_t n, size_t n_groups, act_scale *out)
{
    for (size_t i = 0; i < n_groups && i < GROUPS; i++) out[i] = scale_of(x + n * i, n);
}

static void quantize_q8_32(const float *x, size_t k, void *record)
{
    qw_act32 *a = record;
    act_scale scales[GROUPS];
    size_t n = k / 32;
    for (size_t b = 0; b < n; b++, a++, x += 32) {
        if (b % GROUPS == 0) scales_of(x, 32, n - b, scales);
        act_scale s = scales[b % GROUPS];
        __m256 inverse = _mm256_set1_ps(s.inverse);
        __m256i q = s.special ? quantize_32(true, x, inverse) : quantize_32(false, x, inverse);
        _mm256_storeu_si256((__m256i *)(void *)a->q, q);
        __m256i pairs = pair_sums(q);
        __m128i lanes = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        lanes = _mm_add_epi16(lanes, _mm_unpackhi_epi64(lanes, lanes));
        lanes = _mm_sub_epi16(_mm_setzero_si128(), _mm_add_epi16(lanes, _mm_srli_epi64(lanes, 32)));
        int32_t both = _mm_cvtsi128_si32(lanes);
        memcpy(a->neg_lane, &both, sizeof both);
        a->neg_sum = a->neg_lane[0] + a->neg_lane[1];
        a->d = s.d;
        a->d_sum = s.d * (float)-a->neg_sum;
    }
    memset(a, 0, qw_act_bytes(QW_ACT_Q8_32, k) - n * sizeof *a);
}

/* The 32-bit lanes of a, in pairs of lanes added as 16-bit lanes, beside those of b. */
ACT_INLINE __m256i add_pairs_32(__m256i a, __m256i b)
{
    return _mm256_add_epi16(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}

ACT_INLINE __m256i add_pairs_64(__m256i a, __m256i b)
{
    return _mm256_add_epi16(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

/* The 64-bit lanes of four vectors, each added to its neighbour: 32-bit lanes a0 b0 c0 d0 | a1 b1 c1 d1. */
ACT_INLINE __m256i add_wide(const __m256i v[4])
{
    __m256 ab = _mm256_shuffle_ps(_mm256_castsi256_ps(v[0]), _mm256_castsi256_ps(v[1]), 0x88);
    __m256 cd = _mm256_shuffle_ps(_mm256_castsi256_ps(v[2]), _mm256_castsi256_ps(v[3]), 0x88);
    return _mm256_hadd_epi32(_mm256_castps_si256(ab), _mm256_castps_si256(cd));
}

ACT_INLINE __m128i add_halves(__m256i x)
{
    return _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

ACT_INLINE int32_t max_of(__m128i x)
{
    x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}

/* Writes a record's sums of all kinds. pairs: the sums of byte pairs of each 32, of which a 16 is one half; magnitudes:
 * the sums of 8 magnitudes. */
ACT_INLINE void write_sums(const __m256i pairs[QW_SUBS], const __m256i magnitudes[QW_SUBS], qw_act256 *a)
{
    const __m256i ones = _mm256_set1_epi16(1), zero = _mm256_setzero_si256();
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i total[2], size16[2];
    __m128i twice32[2];
    for (size_t i = 0; i < 2; i++) { /* of the 16s of four 32s: both 16-bit lanes, and added up */
        const __m256i *p = pairs + 4 * i;
        __m256i lanes = add_pairs_64(add_pairs_32(p[0], p[1]), add_pairs_32(p[2], p[3]));
        size16[i] = add_wide(magnitudes + 4 * i);
        /* sum of magnitudes + |sum|: twice the larger one of positive and negative ones */
        twice32[i] = _mm_add_epi32(add_halves(size16[i]), _mm_abs_epi32(add_halves(_mm256_madd_epi16(lanes, ones))));
        lanes = _mm256_permutevar8x32_epi32(lanes, in_order);
        total[i] = _mm256_madd_epi16(lanes, ones);
        lanes = _mm256_slli_epi16(_mm256_sub_epi16(zero, lanes), 5);
        _mm256_storeu_si256((__m256i *)(void *)a->neg_lane16[8 * i], lanes);
        _mm256_storeu_si256((__m256i *)(void *)(a->neg_sum16 + 8 * i),
                            _mm256_slli_epi32(_mm256_sub_epi32(zero, total[i]), 5));
    }
    __m256i most16 = _mm256_max_epi32(size16[0], size16[1]);
    a->most16 = (int16_t)max_of(_mm_max_epi32(_mm256_castsi256_si128(most16), _mm256_extracti128_si256(most16, 1)));
    a->most32 = (int16_t)(max_of(_mm_max_epi32(twice32[0], twice32[1])) / 2);
    /* Entries 1 and 2, and 5 and 6, of 8 change places: qw_sum16_order. */
    const __m256i order = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
    __m256i sum16 = _mm256_permute4x64_epi64(_mm256_packs_epi32(total[0], total[1]), 0xd8);
    __m256i sum32 = _mm256_madd_epi16(sum16, ones);
    sum32 = _mm256_permute4x64_epi64(_mm256_packs_epi32(sum32, sum32), 0xd8);
    _mm256_storeu_si256((__m256i *)(void *)a->sum16, _mm256_shuffle_epi8(sum16, order));
    _mm_storeu_si128((__m128i *)(void *)a->sum32, _mm256_castsi256_si128(_mm256_shuffle_epi8(sum32, order)));
}

ACT_INLINE void quantize_256(bool special, const float *x, __m256 inverse, qw_act256 *a)
{
    __m256i pairs[QW_SUBS], magnitudes[QW_SUBS];
    for (size_t s = 0; s < QW_SUBS; s++) {
        __m256i q = quantize_32(special, x + 32 * s, inverse);
        _mm256_storeu_si256((__m256i *)(void *)(a->q + 32 * s), q);
        pairs[s] = pair_sums(q);
        magnitudes[s] = _mm256_sad_epu8(_mm256_abs_epi8(q), _mm256_setzero_si256());
    }
    write_sums(pairs, magnitudes, a);
}

static void quantize_q8_256(const float *x, size_t k, void *record)
{
    qw_act256 *a = record;
    act_scale scales[GROUPS];
    for (size_t b = 0; b < k / 256; b++, a++, x += 256) {
        if (b % GROUPS == 0) scales_of(x, 256, k / 256 - b, scales);
        act_scale s = scales[b % GROUPS];
        if (s.special)
            quantize_256(true, x, _mm256_set1_ps(s.inverse), a);
        else
            quantize_256(false, x, _mm256_set1_ps(s.inverse), a);
        a->d = s.d;
        memset(a->pad, 0, sizeof a->pad);
    }
}

void qw_act_init_avx2(qw_kernels *t)
{
    t->quantize_act[QW_ACT_Q8_32] = quantize_q8_32;
    t->quantize_act[QW_ACT_Q8_256] = quantize_q8_256;
}
