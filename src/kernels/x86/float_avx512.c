/* float_avx512.c: the float kernels, AVX-512. Bits as ref/float_ref.c, which defines every order; the 64
 * partials of a reduction are the lanes of 4 vectors, tails are loaded as zeros. Attention is in
 * attn_avx512.c. Pure functions over caller memory, any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/x86/float_avx512.h"

enum { LANES = 16, PARTIALS = 64, COLS = 4 };

static inline __mmask16 first_n(size_t n)
{
    return (__mmask16)(n >= LANES ? 0xffffu : (1u << n) - 1);
}

/* n_cols (constant, 1..4) dot products that share w. */
static inline __attribute__((always_inline)) void dot_cols(const float *w, size_t k, const float *x, size_t ld_x,
                                                           const size_t n_cols, float *out, size_t ld_out)
{
    __m512 acc[COLS][4];
    for (size_t c = 0; c < n_cols; c++)
        for (size_t v = 0; v < 4; v++) acc[c][v] = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + PARTIALS <= k; i += PARTIALS) {
        __m512 wv[4];
        for (size_t v = 0; v < 4; v++) wv[v] = _mm512_loadu_ps(w + i + v * LANES);
        for (size_t c = 0; c < n_cols; c++)
            for (size_t v = 0; v < 4; v++)
                acc[c][v] = _mm512_fmadd_ps(wv[v], _mm512_loadu_ps(x + c * ld_x + i + v * LANES), acc[c][v]);
    }
    if (i < k) {
        for (size_t v = 0; v < 4; v++) {
            __mmask16 in = k - i > v * LANES ? first_n(k - i - v * LANES) : 0;
            __m512 wv = _mm512_maskz_loadu_ps(in, w + i + v * LANES);
            for (size_t c = 0; c < n_cols; c++)
                acc[c][v] = _mm512_fmadd_ps(wv, _mm512_maskz_loadu_ps(in, x + c * ld_x + i + v * LANES),
                                            acc[c][v]);
        }
    }
    for (size_t c = 0; c < n_cols; c++)
        out[c * ld_out] = fold512_sum(acc[c][0], acc[c][1], acc[c][2], acc[c][3]);
}

static void dot_f32_avx512(const float *w, size_t k, const float *x, size_t ld_x, size_t n_cols, float *out,
                           size_t ld_out)
{
    size_t c = 0;
    for (; c + COLS <= n_cols; c += COLS) dot_cols(w, k, x + c * ld_x, ld_x, COLS, out + c * ld_out, ld_out);
    for (; c < n_cols; c++) dot_cols(w, k, x + c * ld_x, ld_x, 1, out + c * ld_out, ld_out);
}

static void rms_norm_avx512(const float *x, const float *w, size_t k, float eps, float *out)
{
    float sum;
    dot_cols(x, k, x, k, 1, &sum, 1);
    __m512 scale = _mm512_set1_ps(1.0f / sqrtf(sum / (float)k + eps));
    for (size_t i = 0; i < k; i += LANES) {
        __mmask16 in = first_n(k - i);
        __m512 xv = _mm512_mul_ps(_mm512_maskz_loadu_ps(in, x + i), scale);
        _mm512_mask_storeu_ps(out + i, in, _mm512_mul_ps(xv, _mm512_maskz_loadu_ps(in, w + i)));
    }
}

static void add_avx512(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 in = first_n(n - i);
        __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(in, x + i), _mm512_maskz_loadu_ps(in, y + i));
        _mm512_mask_storeu_ps(x + i, in, sum);
    }
}

static void add_scaled_avx512(float *x, const float *y, float scale, size_t n)
{
    const __m512 factor = _mm512_set1_ps(scale);
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 in = first_n(n - i);
        __m512 sum = _mm512_fmadd_ps(factor, _mm512_maskz_loadu_ps(in, y + i), _mm512_maskz_loadu_ps(in, x + i));
        _mm512_mask_storeu_ps(x + i, in, sum);
    }
}

static void exp_avx512(float *x, size_t n)
{
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 in = first_n(n - i);
        _mm512_mask_storeu_ps(x + i, in, exp512(_mm512_maskz_loadu_ps(in, x + i)));
    }
}

static void silu_mul_avx512(const float *gate, const float *up, size_t n, float *out)
{
    const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-0.0f);
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 in = first_n(n - i);
        __m512 g = _mm512_maskz_loadu_ps(in, gate + i), u = _mm512_maskz_loadu_ps(in, up + i);
        __m512 e = exp512(_mm512_xor_ps(g, minus));
        __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, e));
        _mm512_mask_storeu_ps(out + i, in, _mm512_mul_ps(silu, u));
    }
}

static void sigmoid_mul_avx512(const float *x, const float *gate, size_t n, float *out)
{
    const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-0.0f);
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 in = first_n(n - i);
        __m512 e = exp512(_mm512_xor_ps(_mm512_maskz_loadu_ps(in, gate + i), minus));
        __m512 sigmoid = _mm512_div_ps(one, _mm512_add_ps(one, e));
        _mm512_mask_storeu_ps(out + i, in, _mm512_mul_ps(_mm512_maskz_loadu_ps(in, x + i), sigmoid));
    }
}

static void rope_avx512(float *x, const float *cos, const float *sin, size_t n)
{
    size_t half = n / 2;
    for (size_t i = 0; i < half; i += LANES) {
        __mmask16 in = first_n(half - i);
        __m512 a = _mm512_maskz_loadu_ps(in, x + i), b = _mm512_maskz_loadu_ps(in, x + half + i);
        __m512 c = _mm512_maskz_loadu_ps(in, cos + i), s = _mm512_maskz_loadu_ps(in, sin + i);
        _mm512_mask_storeu_ps(x + i, in, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
        _mm512_mask_storeu_ps(x + half + i, in, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
    }
}

void qw_float_init_avx512(qw_kernels *t)
{
    t->dot_f32 = dot_f32_avx512;
    t->rms_norm = rms_norm_avx512;
    t->add = add_avx512;
    t->add_scaled = add_scaled_avx512;
    t->exp = exp_avx512;
    t->silu_mul = silu_mul_avx512;
    t->sigmoid_mul = sigmoid_mul_avx512;
    t->rope = rope_avx512;
}
