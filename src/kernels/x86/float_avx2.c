/* float_avx2.c: the float kernels, AVX2 with FMA and F16C. Bits as ref/float_ref.c, which defines every
 * order; the 64 partials of a reduction are the lanes of 8 vectors. Tails run the same operations in
 * scalar (fmaf() is the instruction here) or on a zero-padded copy. Attention is in attn_avx2.c.
 * Pure functions over caller memory, any thread.
 */
#include <string.h>

#include "kernels/kernels_private.h"
#include "kernels/x86/float_avx2.h"

enum { LANES = 8, VECS = 8, PARTIALS = 64 };

static float dot(const float *w, const float *x, size_t k)
{
    __m256 acc[VECS];
    for (size_t v = 0; v < VECS; v++) acc[v] = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + PARTIALS <= k; i += PARTIALS)
        for (size_t v = 0; v < VECS; v++)
            acc[v] = _mm256_fmadd_ps(_mm256_loadu_ps(w + i + v * LANES), _mm256_loadu_ps(x + i + v * LANES),
                                     acc[v]);
    if (i < k) {
        float wt[PARTIALS] = {0}, xt[PARTIALS] = {0};
        memcpy(wt, w + i, (k - i) * sizeof *w);
        memcpy(xt, x + i, (k - i) * sizeof *x);
        for (size_t v = 0; v < VECS; v++)
            acc[v] = _mm256_fmadd_ps(_mm256_loadu_ps(wt + v * LANES), _mm256_loadu_ps(xt + v * LANES), acc[v]);
    }
    return fold256_sum(acc);
}

static void dot_f32_avx2(const float *w, size_t k, const float *x, size_t ld_x, size_t n_cols, float *out,
                         size_t ld_out)
{
    for (size_t c = 0; c < n_cols; c++) out[c * ld_out] = dot(w, x + c * ld_x, k);
}

static void rms_norm_avx2(const float *x, const float *w, size_t k, float eps, float *out)
{
    float scale = 1.0f / sqrtf(dot(x, x, k) / (float)k + eps);
    __m256 sv = _mm256_set1_ps(scale);
    size_t i = 0;
    for (; i + LANES <= k; i += LANES) {
        __m256 xv = _mm256_mul_ps(_mm256_loadu_ps(x + i), sv);
        _mm256_storeu_ps(out + i, _mm256_mul_ps(xv, _mm256_loadu_ps(w + i)));
    }
    for (; i < k; i++) out[i] = (x[i] * scale) * w[i];
}

static void add_avx2(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        _mm256_storeu_ps(x + i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i)));
    for (; i < n; i++) x[i] += y[i];
}

static void add_scaled_avx2(float *x, const float *y, float scale, size_t n)
{
    const __m256 factor = _mm256_set1_ps(scale);
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        _mm256_storeu_ps(x + i, _mm256_fmadd_ps(factor, _mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
    for (; i < n; i++) x[i] = fmaf(scale, y[i], x[i]);
}

static void exp_avx2(float *x, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) _mm256_storeu_ps(x + i, exp256(_mm256_loadu_ps(x + i)));
    if (i == n) return;
    float t[LANES] = {0};
    memcpy(t, x + i, (n - i) * sizeof *t);
    _mm256_storeu_ps(t, exp256(_mm256_loadu_ps(t)));
    memcpy(x + i, t, (n - i) * sizeof *t);
}

static inline __m256 silu_mul(__m256 g, __m256 u)
{
    __m256 e = exp256(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
    return _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1.0f), e)), u);
}

static void silu_mul_avx2(const float *gate, const float *up, size_t n, float *out)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        _mm256_storeu_ps(out + i, silu_mul(_mm256_loadu_ps(gate + i), _mm256_loadu_ps(up + i)));
    if (i == n) return;
    float g[LANES] = {0}, u[LANES] = {0}, r[LANES];
    memcpy(g, gate + i, (n - i) * sizeof *g);
    memcpy(u, up + i, (n - i) * sizeof *u);
    _mm256_storeu_ps(r, silu_mul(_mm256_loadu_ps(g), _mm256_loadu_ps(u)));
    memcpy(out + i, r, (n - i) * sizeof *r);
}

static inline __m256 sigmoid_mul(__m256 x, __m256 g)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    __m256 e = exp256(_mm256_xor_ps(g, _mm256_set1_ps(-0.0f)));
    return _mm256_mul_ps(x, _mm256_div_ps(one, _mm256_add_ps(one, e)));
}

static void sigmoid_mul_avx2(const float *x, const float *gate, size_t n, float *out)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) _mm256_storeu_ps(out + i, sigmoid_mul(_mm256_loadu_ps(x + i), _mm256_loadu_ps(gate + i)));
    if (i == n) return;
    float xt[LANES] = {0}, g[LANES] = {0}, r[LANES];
    memcpy(xt, x + i, (n - i) * sizeof *xt);
    memcpy(g, gate + i, (n - i) * sizeof *g);
    _mm256_storeu_ps(r, sigmoid_mul(_mm256_loadu_ps(xt), _mm256_loadu_ps(g)));
    memcpy(out + i, r, (n - i) * sizeof *r);
}

static void rope_avx2(float *x, const float *cos, const float *sin, size_t n)
{
    size_t half = n / 2, i = 0;
    for (; i + LANES <= half; i += LANES) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + half + i);
        __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
        _mm256_storeu_ps(x + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
        _mm256_storeu_ps(x + half + i, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
    }
    for (; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = fmaf(a, cos[i], -(b * sin[i]));
        x[i + half] = fmaf(b, cos[i], a * sin[i]);
    }
}

static void f16_to_f32(const qw_half *x, size_t n, float *out)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
    for (; i < n; i++) out[i] = _cvtsh_ss(x[i]);
}

/* Halves have an instruction; the block formats are vector code in the reference already. */
static void dequantize_row_avx2(qw_type type, const void *src, float *dst, size_t k)
{
    if (type == QW_TYPE_F16)
        f16_to_f32(src, k, dst);
    else
        qw_dequantize_row(type, src, dst, k);
}

void qw_float_init_avx2(qw_kernels *t)
{
    t->dot_f32 = dot_f32_avx2;
    t->dequantize_row = dequantize_row_avx2;
    t->rms_norm = rms_norm_avx2;
    t->add = add_avx2;
    t->add_scaled = add_scaled_avx2;
    t->exp = exp_avx2;
    t->silu_mul = silu_mul_avx2;
    t->sigmoid_mul = sigmoid_mul_avx2;
    t->rope = rope_avx2;
}
