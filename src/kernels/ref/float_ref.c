/* float_ref.c: the float kernels in plain C: what every other level must reproduce bit for bit.
 *
 * Each function below is the definition of its operation's order (docs/numerics.md tells it in words);
 * "fma" is one fused multiply-add, all other operations round once each. Reductions keep 64 partial
 * results, element i in partial i % 64 (as if the input were padded with zeros to a multiple of 64), and
 * fold them by halves: partial i takes partial i + 32, then i + 16, 8, 4, 2, 1.
 * Pure functions over caller memory, any thread.
 */
#include <math.h>

#include "kernels/exp_const.h"
#include "kernels/kernels_private.h"
#include "kernels/ref/fma_ref.h"
#include "kernels/ref/half.h"

enum { PARTIALS = 64 };

static float fold_sum(float p[PARTIALS])
{
    for (size_t half = PARTIALS / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++) p[i] += p[i + half];
    return p[0];
}

/* The larger one; the second where they compare equal or one is NaN (as the x86 instruction does). */
static float max2(float a, float b)
{
    return a > b ? a : b;
}

static float fold_max(float p[PARTIALS])
{
    for (size_t half = PARTIALS / 2; half > 0; half /= 2)
        for (size_t i = 0; i < half; i++) p[i] = max2(p[i], p[i + half]);
    return p[0];
}

static float exp_ref(float x)
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
    return fold_sum(p);
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

static void silu_mul_ref(const float *gate, const float *up, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + exp_ref(-gate[i])) * up[i];
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

static void f32_to_f16_ref(const float *x, size_t n, qw_half *out)
{
    for (size_t i = 0; i < n; i++) out[i] = half_from_f32(x[i]);
}

static void f16_to_f32_ref(const qw_half *x, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) out[i] = half_to_f32(x[i]);
}

/* One query over one tile. k [hd, QW_KV_TILE], v [QW_KV_TILE, hd], q and o [hd], n_keys >= 1. The rest of
 * a page may hold anything: scores of keys at n_keys and after are replaced, their values never read. */
static void attn_query(const float *k, const float *v, size_t hd, const float *q, size_t n_keys, float *m,
                       float *s, float *o)
{
    float p[QW_KV_TILE] = {0}, tree[QW_KV_TILE], o_tile[QW_HEAD_DIM_MAX] = {0};
    for (size_t d = 0; d < hd; d++)
        for (size_t key = 0; key < QW_KV_TILE; key++)
            p[key] = qw_ref_fma(q[d], k[d * QW_KV_TILE + key], p[key]);
    for (size_t key = n_keys; key < QW_KV_TILE; key++) p[key] = -INFINITY;

    memcpy(tree, p, sizeof tree);
    float m_tile = fold_max(tree);
    for (size_t key = 0; key < QW_KV_TILE; key++) p[key] = exp_ref(p[key] - m_tile);
    memcpy(tree, p, sizeof tree);
    float s_tile = fold_sum(tree);
    for (size_t key = 0; key < n_keys; key++)
        for (size_t d = 0; d < hd; d++) o_tile[d] = qw_ref_fma(p[key], v[key * hd + d], o_tile[d]);

    float m_new = max2(*m, m_tile);
    float a = exp_ref(*m - m_new), b = exp_ref(m_tile - m_new);
    *m = m_new;
    *s = qw_ref_fma(s_tile, b, *s * a);
    for (size_t d = 0; d < hd; d++) o[d] = qw_ref_fma(o_tile[d], b, o[d] * a);
}

static void attn_tile_f32_ref(const void *k_tile, const void *v_tile, size_t hd, const float *q, size_t n_q,
                              const uint32_t *n_keys, float *m, float *s, float *o)
{
    for (size_t i = 0; i < n_q; i++) {
        if (n_keys[i] == 0) continue;
        attn_query(k_tile, v_tile, hd, q + i * hd, n_keys[i], m + i, s + i, o + i * hd);
    }
}

static void attn_tile_f16_ref(const void *k_tile, const void *v_tile, size_t hd, const float *q, size_t n_q,
                              const uint32_t *n_keys, float *m, float *s, float *o)
{
    float k[QW_HEAD_DIM_MAX * QW_KV_TILE], v[QW_HEAD_DIM_MAX * QW_KV_TILE];
    f16_to_f32_ref(k_tile, hd * QW_KV_TILE, k);
    f16_to_f32_ref(v_tile, hd * QW_KV_TILE, v);
    attn_tile_f32_ref(k, v, hd, q, n_q, n_keys, m, s, o);
}

void qw_float_init_ref(qw_kernels *t)
{
    t->dot_f32 = dot_f32_ref;
    t->dequantize_row = qw_dequantize_row;
    t->rms_norm = rms_norm_ref;
    t->add = add_ref;
    t->silu_mul = silu_mul_ref;
    t->rope = rope_ref;
    t->f32_to_f16 = f32_to_f16_ref;
    t->f16_to_f32 = f16_to_f32_ref;
    t->attn_tile_f16 = attn_tile_f16_ref;
    t->attn_tile_f32 = attn_tile_f32_ref;
}
