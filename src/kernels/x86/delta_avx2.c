/* delta_avx2.c: convolution and recurrence of gated delta-net layers, AVX2 with FMA. Bits as ref/delta_ref.c.
 *
 * A row of the state's slice is two registers. As in delta_avx512.c one pass over the slice writes the state of a token
 * and reads it for the next: both sums, 8 registers, with factors and a row fit the 16. Pure functions over caller
 * memory, any thread.
 */
#include "kernels/kernels_private.h"
#include "kernels/x86/float_avx2.h"

enum { LANES = 8, HALVES = QW_DELTA_LANES / LANES, SUMS = 2 };

static inline __m256 silu(__m256 x)
{
    __m256 e = exp256(_mm256_xor_ps(x, _mm256_set1_ps(-0.0f)));
    return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

static void conv_silu_avx2(const float *const *u, const float *w, size_t ld_w, size_t n_taps, size_t n, float *out)
{
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        __m256 sum = _mm256_mul_ps(_mm256_loadu_ps(w + i), _mm256_loadu_ps(u[0] + i));
        for (size_t j = 1; j < n_taps; j++)
            sum = _mm256_fmadd_ps(_mm256_loadu_ps(w + j * ld_w + i), _mm256_loadu_ps(u[j] + i), sum);
        _mm256_storeu_ps(out + i, silu(sum));
    }
    if (i == n) return;
    float rest[LANES] = {0};
    for (size_t l = 0; l < n - i; l++) {
        rest[l] = w[i + l] * u[0][i + l];
        for (size_t j = 1; j < n_taps; j++) rest[l] = fmaf(w[j * ld_w + i + l], u[j][i + l], rest[l]);
    }
    _mm256_storeu_ps(rest, silu(_mm256_loadu_ps(rest)));
    memcpy(out + i, rest, (n - i) * sizeof *out);
}

/* QW_DELTA_LANES floats, and partial sums of them. */
typedef struct lanes {
    __m256 h[HALVES];
} lanes;
typedef struct sums {
    lanes p[SUMS];
} sums;

static inline lanes total(const sums *x)
{
    lanes all;
    for (size_t h = 0; h < HALVES; h++) all.h[h] = _mm256_add_ps(x->p[0].h[h], x->p[1].h[h]);
    return all;
}

static inline __attribute__((always_inline)) void read_row(const float *s, float k, lanes *m)
{
    for (size_t h = 0; h < HALVES; h++)
        m->h[h] = _mm256_fmadd_ps(_mm256_loadu_ps(s + h * LANES), _mm256_set1_ps(k), m->h[h]);
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
static inline __attribute__((always_inline)) void update_row(float *s, float q, float k, const float *next_k, __m256 g,
                                                             const lanes *delta, lanes *o, lanes *m)
{
    for (size_t h = 0; h < HALVES; h++) {
        __m256 decayed = _mm256_mul_ps(_mm256_loadu_ps(s + h * LANES), g);
        __m256 x = _mm256_fmadd_ps(_mm256_set1_ps(k), delta->h[h], decayed);
        _mm256_storeu_ps(s + h * LANES, x);
        o->h[h] = _mm256_fmadd_ps(x, _mm256_set1_ps(q), o->h[h]);
        if (next_k) m->h[h] = _mm256_fmadd_ps(x, _mm256_set1_ps(*next_k), m->h[h]);
    }
}

/* All rows; returns o, and in *next_m the m of the next token. */
static inline __attribute__((always_inline)) lanes update_state(float *s, size_t dk, const float *q, const float *k,
                                                                const float *next_k, __m256 g, lanes delta, lanes *next_m)
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

static void delta_rule_avx2(float *s, size_t dk, size_t n_tokens, const float *q, const float *k, size_t ld_qk, const float *v,
                            size_t ld_v, const float *gates, size_t ld_gates, float *out, size_t ld_out)
{
    if (n_tokens == 0) return;
    lanes m = read_state(s, dk, k), delta, o;
    for (size_t t = 0; t < n_tokens; t++, q += ld_qk, k += ld_qk, v += ld_v, gates += ld_gates, out += ld_out) {
        __m256 g = _mm256_set1_ps(gates[0]), beta = _mm256_set1_ps(gates[1]);
        for (size_t h = 0; h < HALVES; h++)
            delta.h[h] = _mm256_mul_ps(beta, _mm256_fnmadd_ps(g, m.h[h], _mm256_loadu_ps(v + h * LANES)));
        if (t + 1 < n_tokens)
            o = update_state(s, dk, q, k, k + ld_qk, g, delta, &m);
        else
            o = update_state(s, dk, q, k, NULL, g, delta, &m);
        for (size_t h = 0; h < HALVES; h++) _mm256_storeu_ps(out + h * LANES, o.h[h]);
    }
}

void qw_delta_init_avx2(qw_kernels *t)
{
    t->conv_silu = conv_silu_avx2;
    t->delta_rule = delta_rule_avx2;
}
