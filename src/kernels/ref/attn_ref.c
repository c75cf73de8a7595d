/* attn_ref.c: attention over one tile in plain C: what every other level must reproduce bit for bit.
 *
 * The functions are the definition of the order (docs/numerics.md tells it in words). Folds and "fma": float_ref.c.
 * Pure functions over caller memory, any thread.
 */
#include <math.h>
#include <string.h>

#include "kernels/attn_layout.h"
#include "kernels/kernels_private.h"
#include "kernels/ref/float_ref.h"
#include "kernels/ref/fma_ref.h"

/* p becomes exp(p - max), unseen scores are -INFINITY; returns the sum. */
static float softmax(float p[QW_KV_TILE], float *max)
{
    float tree[QW_KV_TILE];
    memcpy(tree, p, sizeof tree);
    *max = qw_ref_fold_max(tree);
    for (size_t key = 0; key < QW_KV_TILE; key++) p[key] = qw_ref_exp(p[key] - *max);
    memcpy(tree, p, sizeof tree);
    return qw_ref_fold_sum(tree);
}

/* Merges a tile's maximum and sum into the running ones; what its values and the running ones are to be multiplied
 * with. */
static void merge(float m_tile, float s_tile, float *m, float *s, float *new_scale, float *old_scale)
{
    float m_new = qw_ref_max(*m, m_tile);
    *old_scale = qw_ref_exp(*m - m_new);
    *new_scale = qw_ref_exp(m_tile - m_new);
    *m = m_new;
    *s = qw_ref_fma(s_tile, *new_scale, *s * *old_scale);
}

/* One query over one tile, in floats. k [hd, QW_KV_TILE], v [QW_KV_TILE, hd], q and o [hd], n_keys >= 1. The rest of
 * a page may hold anything: scores of keys at n_keys and after are replaced, their values never read. */
static void query_f32(const float *k, const float *v, size_t hd, const float *q, size_t n_keys, float *m, float *s,
                      float *o)
{
    float p[QW_KV_TILE] = {0}, o_tile[QW_HEAD_DIM_MAX] = {0}, m_tile, b, a;
    for (size_t d = 0; d < hd; d++)
        for (size_t key = 0; key < QW_KV_TILE; key++)
            p[key] = qw_ref_fma(q[d], k[d * QW_KV_TILE + key], p[key]);
    for (size_t key = n_keys; key < QW_KV_TILE; key++) p[key] = -INFINITY;
    float s_tile = softmax(p, &m_tile);
    for (size_t key = 0; key < n_keys; key++)
        for (size_t d = 0; d < hd; d++) o_tile[d] = qw_ref_fma(p[key], v[key * hd + d], o_tile[d]);
    merge(m_tile, s_tile, m, s, &b, &a);
    for (size_t d = 0; d < hd; d++) o[d] = qw_ref_fma(o_tile[d], b, o[d] * a);
}

static void attn_f32_ref(const float *k_tile, const float *v_tile, size_t hd, const float *q, size_t n_q,
                         const uint32_t *n_keys, float *m, float *s, float *o)
{
    for (size_t i = 0; i < n_q; i++) {
        if (n_keys[i] == 0) continue;
        query_f32(k_tile, v_tile, hd, q + i * hd, n_keys[i], m + i, s + i, o + i * hd);
    }
}

/* Weights w to integers; returns their scale. All are 0 where that would be tiny, or sum,
 * the tile's of p, is no number. */
static float quantize_weights(const float w[QW_KV_TILE], float sum, int32_t quant[QW_KV_TILE])
{
    float tree[QW_KV_TILE];
    memcpy(tree, w, sizeof tree);
    float d = qw_ref_fold_max(tree) * (1.0f / QW_ATTN_WEIGHT_MOST);
    bool none = !(d >= QW_ATTN_D_MIN) || isnan(sum);
    float inverse = none ? 0.0f : 1.0f / d;
    for (size_t key = 0; key < QW_KV_TILE; key++)
        quant[key] = none ? 0 : (int32_t)((w[key] * inverse + 0x1.8p23f) - 0x1.8p23f); /* nearest even */
    return none ? 0.0f : d;
}

/* One query over one tile, in integers. q, o [hd], n_keys >= 1. */
static void query_i16(qw_attn_tile t, size_t hd, const int16_t *q, float dq, size_t n_keys, float *m, float *s, float *o)
{
    float p[QW_KV_TILE], w[QW_KV_TILE], m_tile, b, a;
    int32_t weight[QW_KV_TILE];
    for (size_t key = 0; key < QW_KV_TILE; key++) {
        int32_t sum = 0;
        for (size_t d = 0; d < hd && key < n_keys; d++)
            sum += q[d] * t.k[d / 2 * (2 * QW_KV_TILE) + 2 * key + d % 2];
        p[key] = key < n_keys ? (float)sum * (dq * t.dk[key]) : -INFINITY;
    }
    float s_tile = softmax(p, &m_tile);
    for (size_t key = 0; key < QW_KV_TILE; key++) w[key] = key < n_keys ? p[key] * t.dv[key] : 0.0f;
    float dw = quantize_weights(w, s_tile, weight);
    merge(m_tile, s_tile, m, s, &b, &a);
    b *= dw;
    for (size_t d = 0; d < hd; d++) {
        int32_t sum = 0;
        for (size_t key = 0; key < n_keys; key++) sum += weight[key] * t.v[key / 2 * (2 * hd) + 2 * d + key % 2];
        o[d] = qw_ref_fma((float)sum, b, o[d] * a);
    }
}

static void attn_i16_ref(const void *tile, const void *next, size_t hd, const int16_t *q, const float *dq, size_t n_q,
                         const uint32_t *n_keys, float *m, float *s, float *o)
{
    (void)next;
    qw_attn_tile t = qw_attn_tile_at((void *)(uintptr_t)tile, hd);
    for (size_t i = 0; i < n_q; i++) {
        if (n_keys[i] == 0) continue;
        query_i16(t, hd, q + i * hd, dq[i], n_keys[i], m + i, s + i, o + i * hd);
    }
}

float qw_ref_quantize_i16(const float *x, size_t n, float most, float norm_most, float norm2, int16_t *q)
{
    float amax = 0.0f;
    for (size_t i = 0; i < n; i++) {
        float v = fabsf(qw_ref_finite(x[i]));
        amax = v > amax ? v : amax;
    }
    bool none = amax < QW_ATTN_AMAX_MIN;
    float factor = none ? 0.0f : qw_attn_factor(amax, n, most, norm_most, norm2);
    for (size_t i = 0; i < n; i++)
        q[i] = (int16_t)(int)((qw_ref_finite(x[i]) * factor + 0x1.8p23f) - 0x1.8p23f); /* nearest even */
    return none ? 0.0f : 1.0f / factor;
}

void qw_attn_init_ref(qw_kernels *t)
{
    t->quantize_i16 = qw_ref_quantize_i16;
    t->attn_i16 = attn_i16_ref;
    t->attn_f32 = attn_f32_ref;
}
