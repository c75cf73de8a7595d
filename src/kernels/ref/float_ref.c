/* float_ref.c: the float kernels in plain C: what every other level must reproduce bit for bit.
 *
 * Each function below is the definition of its operation's order (docs/numerics.md tells it in words);
 * "fma" is one fused multiply-add, all other operations round once each. Reductions keep 64 partial
 * results, element i in partial i % 64 (as if the input were padded with zeros to a multiple of 64), and
 * fold them by halves: partial i takes partial i + 32, then i + 16, 8, 4, 2, 1.
 * Pure functions over caller memory, any thread.
 */
#include <math.h>
#include <string.h>

#include "kernels/exp_const.h"
#include "kernels/kernels_private.h"
#include "kernels/ref/float_ref.h"
#include "kernels/ref/fma_ref.h"

float qw_ref_fold_sum(float p[PARTIALS])
{
    for (size_t half = PARTIALS / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++) p[i] += p[i + half];
    return p[0];
}

float qw_ref_max(float a, float b)
{
    return a > b ? a : b;
}

float qw_ref_fold_max(float p[PARTIALS])
{
    for (size_t half = PARTIALS / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++) p[i] = qw_ref_max(p[i], p[i + half]);
    return p[0];
}

float qw_ref_exp(float x)
{
    if (x < QW_EXP_MIN) return 0.0f;
    if (x > QW_EXP_MAX) return INFINITY;
    if (isnan(x)) return x;
    float t = qw_ref_fma(x, QW_EXP_LOG2E, QW_EXP_MAGIC);
    float n = t - QW_EXP_MAGIC;
    float r = qw_ref_fma(n, -QW_EXP_LN2_HI, x);
    r = qw_ref_fma(n, -QW_EXP_LN2_LO, r);
    float p = qw_ref_fma(QW_EXP_C6, r, QW_EXP_C5);
    p = qw_ref_fma(p, r, QW_EXP_C4);
    p = qw_ref_fma(p, r, QW_EXP_C3);
    p = qw_ref_fma(p, r, QW_EXP_C2);
    p = qw_ref_fma(p, r, 1.0f);
    p = qw_ref_fma(p, r, 1.0f);
    uint32_t n_bits, p_bits;
    memcpy(&n_bits, &t, sizeof n_bits);
    memcpy(&p_bits, &p, sizeof p_bits);
    p_bits += n_bits << 23; /* times 2^n: in range by the two comparisons above */
    memcpy(&p, &p_bits, sizeof p);
    return p;
}

/* One dot product in the canonical order. w, x [k] */
static float dot(const float *w, const float *x, size_t k)
{
    float p[PARTIALS] = {0};
    size_t i = 0;
    for (; i + PARTIALS <= k; i += PARTIALS)
        for (size_t j = 0; j < PARTIALS; j++) p[j] = qw_ref_fma(w[i + j], x[i + j], p[j]);
    if (i < k) {
        for (size_t j = 0; j < PARTIALS; j++) {
            bool in = i + j < k;
            p[j] = qw_ref_fma(in ? w[i + j] : 0.0f, in ? x[i + j] : 0.0f, p[j]);
        }
    }
    return qw_ref_fold_sum(p);
}

static void dot_f32_ref(const float *w, size_t k, const float *x, size_t ld_x, size_t n_cols, float *out,
                        size_t ld_out)
{
    for (size_t c = 0; c < n_cols; c++) out[c * ld_out] = dot(w, x + c * ld_x, k);
}

static void rms_norm_ref(const float *x, const float *w, size_t k, float eps, float *out)
{
    float scale = 1.0f / sqrtf(dot(x, x, k) / (float)k + eps);
    for (size_t i = 0; i < k; i++) out[i] = (x[i] * scale) * w[i];
}

static void add_ref(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] += y[i];
}

static void add_scaled_ref(float *x, const float *y, float scale, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = qw_ref_fma(scale, y[i], x[i]);
}

static void exp_ref(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = qw_ref_exp(x[i]);
}

static void silu_mul_ref(const float *gate, const float *up, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + qw_ref_exp(-gate[i])) * up[i];
}

static void sigmoid_mul_ref(const float *x, const float *gate, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) out[i] = x[i] * (1.0f / (1.0f + qw_ref_exp(-gate[i])));
}

static void rope_ref(float *x, const float *cos, const float *sin, size_t n)
{
    size_t half = n / 2;
    for (size_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = qw_ref_fma(a, cos[i], -(b * sin[i]));
        x[i + half] = qw_ref_fma(b, cos[i], a * sin[i]);
    }
}

void qw_float_init_ref(qw_kernels *t)
{
    t->dot_f32 = dot_f32_ref;
    t->dequantize_row = qw_dequantize_row;
    t->rms_norm = rms_norm_ref;
    t->add = add_ref;
    t->add_scaled = add_scaled_ref;
    t->exp = exp_ref;
    t->silu_mul = silu_mul_ref;
    t->sigmoid_mul = sigmoid_mul_ref;
    t->rope = rope_ref;
}
