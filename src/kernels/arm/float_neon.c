/* float_neon.c: the float kernels with AArch64 Advanced SIMD. Bits as ref/float_ref.c, which defines every order; the
 * 64 partials of a reduction are the lanes of 16 vectors. Tails run the same operations in scalar (fmaf() is the
 * instruction here) or on a zero-padded copy. Attention is in attn_neon.c. Pure functions over caller memory, any
 * thread.
 */
#include <string.h>

#include "kernels/kernels_private.h"
#include "kernels/arm/float_neon.h"
#include "kernels/ref/half.h"

enum { LANES = NEON_LANES, VECS = NEON_VECS, PARTIALS = 64 };

static float dot(const float *w, const float *x, size_t k)
{
    float32x4_t acc[VECS];
    for (size_t v = 0; v < VECS; v++) acc[v] = vdupq_n_f32(0.0f);
    size_t i = 0;
    for (; i + PARTIALS <= k; i += PARTIALS)
        for (size_t v = 0; v < VECS; v++)
            acc[v] = vfmaq_f32(acc[v], vld1q_f32(w + i + v * LANES), vld1q_f32(x + i + v * LANES));
    if (i < k) {
        float wt[PARTIALS] = {0}, xt[PARTIALS] = {0};
        memcpy(wt, w + i, (k - i) * sizeof *w);
        memcpy(xt, x + i, (k - i) * sizeof *x);
        for (size_t v = 0; v < VECS; v++)
            acc[v] = vfmaq_f32(acc[v], vld1q_f32(wt + v * LANES), vld1q_f32(xt + v * LANES));
    }
    return fold_neon_sum(acc);
}

static void dot_f32_neon(const float *w, size_t k, const float *x, size_t ld_x, size_t n_cols, float *out,
                         size_t ld_out)
{
    for (size_t c = 0; c < n_cols; c++) out[c * ld_out] = dot(w, x + c * ld_x, k);
}

static void rms_norm_neon(const float *x, const float *w, size_t k, float eps, float *out)
{
    float scale = 1.0f / sqrtf(dot(x, x, k) / (float)k + eps);
    size_t i = 0;
    for (; i + LANES <= k; i += LANES)
        vst1q_f32(out + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), scale), vld1q_f32(w + i)));
    for (; i < k; i++) out[i] = (x[i] * scale) * w[i];
}

static void add_neon(float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) vst1q_f32(x + i, vaddq_f32(vld1q_f32(x + i), vld1q_f32(y + i)));
    for (; i < n; i++) x[i] += y[i];
}

static void add_scaled_neon(float *x, const float *y, float scale, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) vst1q_f32(x + i, vfmaq_n_f32(vld1q_f32(x + i), vld1q_f32(y + i), scale));
    for (; i < n; i++) x[i] = fmaf(scale, y[i], x[i]);
}

static void exp_slot_neon(float *x, size_t n)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) vst1q_f32(x + i, exp_neon(vld1q_f32(x + i)));
    if (i == n) return;
    float t[LANES] = {0};
    memcpy(t, x + i, (n - i) * sizeof *t);
    vst1q_f32(t, exp_neon(vld1q_f32(t)));
    memcpy(x + i, t, (n - i) * sizeof *t);
}

static inline float32x4_t silu_mul(float32x4_t g, float32x4_t u)
{
    return vmulq_f32(vdivq_f32(g, vaddq_f32(vdupq_n_f32(1.0f), exp_neon(vnegq_f32(g)))), u);
}

static void silu_mul_neon(const float *gate, const float *up, size_t n, float *out)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) vst1q_f32(out + i, silu_mul(vld1q_f32(gate + i), vld1q_f32(up + i)));
    if (i == n) return;
    float g[LANES] = {0}, u[LANES] = {0}, r[LANES];
    memcpy(g, gate + i, (n - i) * sizeof *g);
    memcpy(u, up + i, (n - i) * sizeof *u);
    vst1q_f32(r, silu_mul(vld1q_f32(g), vld1q_f32(u)));
    memcpy(out + i, r, (n - i) * sizeof *r);
}

static inline float32x4_t sigmoid_mul(float32x4_t x, float32x4_t g)
{
    const float32x4_t one = vdupq_n_f32(1.0f);
    return vmulq_f32(x, vdivq_f32(one, vaddq_f32(one, exp_neon(vnegq_f32(g)))));
}

static void sigmoid_mul_neon(const float *x, const float *gate, size_t n, float *out)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) vst1q_f32(out + i, sigmoid_mul(vld1q_f32(x + i), vld1q_f32(gate + i)));
    if (i == n) return;
    float xt[LANES] = {0}, g[LANES] = {0}, r[LANES];
    memcpy(xt, x + i, (n - i) * sizeof *xt);
    memcpy(g, gate + i, (n - i) * sizeof *g);
    vst1q_f32(r, sigmoid_mul(vld1q_f32(xt), vld1q_f32(g)));
    memcpy(out + i, r, (n - i) * sizeof *r);
}

static void rope_neon(float *x, const float *cos, const float *sin, size_t n)
{
    size_t half = n / 2, i = 0;
    for (; i + LANES <= half; i += LANES) {
        float32x4_t a = vld1q_f32(x + i), b = vld1q_f32(x + half + i), c = vld1q_f32(cos + i), s = vld1q_f32(sin + i);
        vst1q_f32(x + i, vfmaq_f32(vnegq_f32(vmulq_f32(b, s)), a, c));
        vst1q_f32(x + half + i, vfmaq_f32(vmulq_f32(a, s), b, c));
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
    for (; i + LANES <= n; i += LANES) vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + i))));
    for (; i < n; i++) out[i] = half_to_f32(x[i]);
}

/* Halves have an instruction; the block formats are vector code in the reference already. */
static void dequantize_row_neon(qw_type type, const void *src, float *dst, size_t k)
{
    if (type == QW_TYPE_F16)
        f16_to_f32(src, k, dst);
    else
        qw_dequantize_row(type, src, dst, k);
}

void qw_float_init_neon(qw_kernels *t)
{
    t->dot_f32 = dot_f32_neon;
    t->dequantize_row = dequantize_row_neon;
    t->rms_norm = rms_norm_neon;
    t->add = add_neon;
    t->add_scaled = add_scaled_neon;
    t->exp = exp_slot_neon;
    t->silu_mul = silu_mul_neon;
    t->sigmoid_mul = sigmoid_mul_neon;
    t->rope = rope_neon;
}
