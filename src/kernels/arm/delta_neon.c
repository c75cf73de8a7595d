/* delta_neon.c: convolution and recurrence of gated delta-net layers with AArch64 Advanced SIMD. Bits as
 * ref/delta_ref.c.
 *
 * A row of the state's slice is four registers. One pass over the slice does what token t writes and what token t + 1
 * reads, as in x86/delta_avx512.c: both sums, 16 registers, with factors and a row fit the 32. Pure functions over caller
 * memory, any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/arm/float_neon.h"

enum { LANES = NEON_LANES, QUADS = QW_DELTA_LANES / LANES, SUMS = 2 };

static inline float32x4_t silu(float32x4_t x)
{
    return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), exp_neon(vnegq_f32(x))));
}

static void conv_silu_neon(const float *const *u, const float *w, size_t ld_w, size_t n_taps, size_t n, float *out)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        float32x4_t sum = vmulq_f32(vld1q_f32(w + i), vld1q_f32(u[0] + i));
        for (size_t j = 1; j < n_taps; j++)
            sum = vfmaq_f32(sum, vld1q_f32(w + j * ld_w + i), vld1q_f32(u[j] + i));
        vst1q_f32(out + i, silu(sum));
    }
    if (i == n) return;
    float rest[LANES] = {0};
    for (size_t l = 0; l < n - i; l++) {
        rest[l] = w[i + l] * u[0][i + l];
        for (size_t j = 1; j < n_taps; j++) rest[l] = fmaf(w[j * ld_w + i + l], u[j][i + l], rest[l]);
    }
    vst1q_f32(rest, silu(vld1q_f32(rest)));
    memcpy(out + i, rest, (n - i) * sizeof *out);
}

/* QW_DELTA_LANES floats, and partial sums of them. */
typedef struct lanes {
    float32x4_t quad[QUADS];
} lanes;
typedef struct sums {
    lanes p[SUMS];
} sums;

static inline lanes total(const sums *x)
{
    lanes all;
    for (size_t i = 0; i < QUADS; i++) all.quad[i] = vaddq_f32(x->p[0].quad[i], x->p[1].quad[i]);
    return all;
}

static inline __attribute__((always_inline)) void read_row(const float *s, float k, lanes *m)
{
    for (size_t i = 0; i < QUADS; i++)
        m->quad[i] = vfmaq_n_f32(m->quad[i], vld1q_f32(s + i * LANES), k);
}

/* S^T k of a slice s [dk, QW_DELTA_LANES]. */
static lanes read_state(const float *s, size_t dk, const float *k)
{
    sums m = {0};
    size_t i = 0;
    for (; i + SUMS <= dk; i += SUMS)
        for (size_t j = 0; j < SUMS; j++) read_row(s + (i + j) * QW_DELTA_LANES, k[i + j], &m.p[j]);
    if (i < dk) read_row(s + i * QW_DELTA_LANES, k[i], &m.p[0]);
    return total(&m);
}

/* One row: s <- g s + k delta; o += s q; and m += s next_k, unless that is NULL (constant). */
static inline __attribute__((always_inline)) void update_row(float *s, float q, float k, const float *next_k, float g,
                                                             const lanes *delta, lanes *o, lanes *m)
{
    for (size_t i = 0; i < QUADS; i++) {
        float32x4_t decayed = vmulq_n_f32(vld1q_f32(s + i * LANES), g);
        float32x4_t x = vfmaq_n_f32(decayed, delta->quad[i], k);
        vst1q_f32(s + i * LANES, x);
        o->quad[i] = vfmaq_n_f32(o->quad[i], x, q);
        if (next_k) m->quad[i] = vfmaq_n_f32(m->quad[i], x, *next_k);
    }
}

/* All rows; returns o, and in *next_m the m of the next token. */
static inline __attribute__((always_inline)) lanes update_state(float *s, size_t dk, const float *q, const float *k,
                                                                const float *next_k, float g, lanes delta, lanes *next_m)
{
    sums o = {0}, m = {0};
    size_t i = 0;
    for (; i + SUMS <= dk; i += SUMS)
        for (size_t j = i; j < i + SUMS; j++) {
            update_row(s + j * QW_DELTA_LANES, q[j], k[j], next_k ? next_k + j : NULL, g, &delta, &o.p[j - i],
                       &m.p[j - i]);
        }
    if (i < dk) update_row(s + i * QW_DELTA_LANES, q[i], k[i], next_k ? next_k + i : NULL, g, &delta, &o.p[0], &m.p[0]);
    *next_m = total(&m);
    return total(&o);
}

static void delta_rule_neon(float *s, size_t dk, size_t n_tokens, const float *q, const float *k, size_t ld_qk, const float *v,
                            size_t ld_v, const float *gates, size_t ld_gates, float *out, size_t ld_out)
{
    if (n_tokens == 0) return;
    lanes m = read_state(s, dk, k), delta, o;
    for (size_t t = 0; t < n_tokens; t++, q += ld_qk, k += ld_qk, v += ld_v, gates += ld_gates, out += ld_out) {
        float g = gates[0], beta = gates[1];
        for (size_t i = 0; i < QUADS; i++)
            delta.quad[i] = vmulq_n_f32(vfmaq_n_f32(vld1q_f32(v + i * LANES), m.quad[i], -g), beta);
        if (t + 1 < n_tokens)
            o = update_state(s, dk, q, k, k + ld_qk, g, delta, &m);
        else
            o = update_state(s, dk, q, k, NULL, g, delta, &m);
        for (size_t i = 0; i < QUADS; i++) vst1q_f32(out + i * LANES, o.quad[i]);
    }
}

void qw_delta_init_neon(qw_kernels *t)
{
    t->conv_silu = conv_silu_neon;
    t->delta_rule = delta_rule_neon;
}
