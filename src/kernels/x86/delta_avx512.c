/* delta_avx512.c: convolution and recurrence of gated delta-net layers, AVX-512. Bits as ref/delta_ref.c.
 *
 * A row of the state's slice is one register. One pass over the slice does what token t writes and what token t + 1 reads:
 * the new state, o of t, and m of t + 1. So a token costs a load and a store of the slice and 4 operations a row, and the
 * slice (8 KB for 128 rows) stays in L1 over all tokens. Pure functions over caller memory, any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/x86/float_avx512.h"

enum { LANES = QW_DELTA_LANES, SUMS = 2 };

static void conv_silu_avx512(const float *const *u, const float *w, size_t ld_w, size_t n_taps, size_t n, float *out)
{
    const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-0.0f);
    for (size_t i = 0; i < n; i += LANES) {
        __mmask16 in = (__mmask16)(n - i >= LANES ? 0xffffu : (1u << (n - i)) - 1);
        __m512 sum = _mm512_mul_ps(_mm512_maskz_loadu_ps(in, w + i), _mm512_maskz_loadu_ps(in, u[0] + i));
        for (size_t j = 1; j < n_taps; j++)
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(in, w + j * ld_w + i), _mm512_maskz_loadu_ps(in, u[j] + i), sum);
        __m512 e = exp512(_mm512_xor_ps(sum, minus));
        _mm512_mask_storeu_ps(out + i, in, _mm512_div_ps(sum, _mm512_add_ps(one, e)));
    }
}

typedef struct sums {
    __m512 p[SUMS];
} sums;

static inline sums no_sums(void)
{
    return (sums){{_mm512_setzero_ps(), _mm512_setzero_ps()}};
}

static inline __m512 total(const sums *x)
{
    return _mm512_add_ps(x->p[0], x->p[1]);
}

/* S^T k of a slice s [dk, LANES]. */
static __m512 read_state(const float *s, size_t dk, const float *k)
{
    sums m = no_sums();
    size_t i = 0;
    for (; i + SUMS <= dk; i += SUMS)
        for (size_t j = 0; j < SUMS; j++)
            m.p[j] = _mm512_fmadd_ps(_mm512_loadu_ps(s + (i + j) * LANES), _mm512_set1_ps(k[i + j]), m.p[j]);
    if (i < dk) m.p[0] = _mm512_fmadd_ps(_mm512_loadu_ps(s + i * LANES), _mm512_set1_ps(k[i]), m.p[0]);
    return total(&m);
}

/* One row: s <- g s + k delta; o += s q; and m += s next_k, unless that is NULL (constant). */
static inline __attribute__((always_inline)) void update_row(float *s, float q, float k, const float *next_k, __m512 g,
                                                             __m512 delta, __m512 *o, __m512 *m)
{
    __m512 x = _mm512_fmadd_ps(_mm512_set1_ps(k), delta, _mm512_mul_ps(_mm512_loadu_ps(s), g));
    _mm512_storeu_ps(s, x);
    *o = _mm512_fmadd_ps(x, _mm512_set1_ps(q), *o);
    if (next_k) *m = _mm512_fmadd_ps(x, _mm512_set1_ps(*next_k), *m);
}

/* All rows; returns o, and in *next_m the m of the next token. */
static inline __attribute__((always_inline)) __m512 update_state(float *s, size_t dk, const float *q, const float *k,
                                                                 const float *next_k, __m512 g, __m512 delta, __m512 *next_m)
{
    sums o = no_sums(), m = no_sums();
    size_t i = 0;
    for (; i + SUMS <= dk; i += SUMS)
        for (size_t j = i; j < i + SUMS; j++)
            update_row(s + j * LANES, q[j], k[j], next_k ? next_k + j : NULL, g, delta, &o.p[j - i], &m.p[j - i]);
    if (i < dk) update_row(s + i * LANES, q[i], k[i], next_k ? next_k + i : NULL, g, delta, &o.p[0], &m.p[0]);
    *next_m = total(&m);
    return total(&o);
}

static void delta_rule_avx512(float *s, size_t dk, size_t n_tokens, const float *q, const float *k, size_t ld_qk, const float *v,
                              size_t ld_v, const float *gates, size_t ld_gates, float *out, size_t ld_out)
{
    if (n_tokens == 0) return;
    __m512 m = read_state(s, dk, k);
    for (size_t t = 0; t < n_tokens; t++, q += ld_qk, k += ld_qk, v += ld_v, gates += ld_gates, out += ld_out) {
        __m512 g = _mm512_set1_ps(gates[0]), delta = _mm512_fnmadd_ps(g, m, _mm512_loadu_ps(v)), o;
        delta = _mm512_mul_ps(_mm512_set1_ps(gates[1]), delta);
        if (t + 1 < n_tokens)
            o = update_state(s, dk, q, k, k + ld_qk, g, delta, &m);
        else
            o = update_state(s, dk, q, k, NULL, g, delta, &m);
        _mm512_storeu_ps(out, o);
    }
}

void qw_delta_init_avx512(qw_kernels *t)
{
    t->conv_silu = conv_silu_avx512;
    t->delta_rule = delta_rule_avx512;
}
