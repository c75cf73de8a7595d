/* delta_ref.c: convolution and recurrence of gated delta-net layers in plain C: what every other level must reproduce bit
 * for bit. Source: transformers, modeling_qwen3_next (torch_recurrent_gated_delta_rule). Pure functions over caller
 * memory, any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/ref/float_ref.h"
#include "kernels/ref/fma_ref.h"

enum { SUMS = 2 };

static void conv_silu_ref(const float *const *u, const float *w, size_t ld_w, size_t n_taps, size_t n, float *out)
{
    for (size_t i = 0; i < n; i++) {
        float sum = w[i] * u[0][i];
        for (size_t j = 1; j < n_taps; j++) sum = qw_ref_fma(w[j * ld_w + i], u[j][i], sum);
        out[i] = sum / (1.0f + qw_ref_exp(-sum));
    }
}

/* One token, one value element: s [dk] with QW_DELTA_LANES floats from one to the next. */
static float delta_lane(float *s, size_t dk, const float *q, const float *k, float v, float g, float beta)
{
    float m[SUMS] = {0}, o[SUMS] = {0};
    for (size_t i = 0; i < dk; i++) m[i % SUMS] = qw_ref_fma(s[i * QW_DELTA_LANES], k[i], m[i % SUMS]);
    float delta = beta * qw_ref_fma(-g, m[0] + m[1], v);
    for (size_t i = 0; i < dk; i++) {
        float *at = &s[i * QW_DELTA_LANES];
        float decayed = *at * g;
        *at = qw_ref_fma(k[i], delta, decayed);
        o[i % SUMS] = qw_ref_fma(*at, q[i], o[i % SUMS]);
    }
    return o[0] + o[1];
}

static void delta_rule_ref(float *s, size_t dk, size_t n_tokens, const float *q, const float *k, size_t ld_qk, const float *v,
                           size_t ld_v, const float *gates, size_t ld_gates, float *out, size_t ld_out)
{
    for (size_t t = 0; t < n_tokens; t++) {
        float g = gates[t * ld_gates], beta = gates[t * ld_gates + 1];
        for (size_t lane = 0; lane < QW_DELTA_LANES; lane++) {
            out[t * ld_out + lane] =
                delta_lane(s + lane, dk, q + t * ld_qk, k + t * ld_qk, v[t * ld_v + lane], g, beta);
        }
    }
}

void qw_delta_init_ref(qw_kernels *t)
{
    t->conv_silu = conv_silu_ref;
    t->delta_rule = delta_rule_ref;
}
