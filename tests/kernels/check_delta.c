/* check_delta.c: convolution and recurrence of delta-nets, one level of this machine against the reference.
 *
 * Bit for bit; and the reference against a computation in double within a bound derived from the number of roundings. Many
 * tokens in one call, one by one, and cut anywhere must agree. Inputs end at an unreadable page and rows have gaps of any
 * length; outputs and the state lie in guarded buffers. Deterministic, one thread.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "inputs.h"

static const double U = 0x1p-24; /* unit roundoff of float */

enum { TAPS_MAX = 8, LANES = QW_DELTA_LANES };

/* ---- convolution --------------------------------------------------------------------------------- */

static void check_conv(ca_ctx *ctx, size_t n_taps, size_t n, float scale)
{
    size_t ld_w = n + n_taps % 3 * 5;
    ca_input w = ca_input_normal(ctx, (n_taps - 1) * ld_w + n, scale), in[TAPS_MAX];
    const float *u[TAPS_MAX], *weight = w.data;
    for (size_t j = 0; j < n_taps; j++) {
        in[j] = ca_input_normal(ctx, n, 1.0f);
        u[j] = in[j].data;
    }
    ca_buf out = ca_buf_new(n * sizeof(float), 4 * (n % 16));
    float *want = calloc(n, sizeof *want);
    ctx->ref->conv_silu(u, w.data, ld_w, n_taps, n, want);
    ctx->t->conv_silu(u, w.data, ld_w, n_taps, n, out.data);
    ca_expect_same(ctx, out.data, want, n, "conv_silu", n);
    ca_check(ctx, ca_buf_intact(&out), "conv_silu, n %zu: wrote outside", n);
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double sum = 0, size = 0;
        for (size_t j = 0; j < n_taps; j++) {
            sum += (double)weight[j * ld_w + i] * (double)u[j][i];
            size += fabs((double)weight[j * ld_w + i] * (double)u[j][i]);
        }
        /* silu is 1.1 steep at most; itself it rounds 4 times. Below -88 it is 0 instead of a tiny number. */
        double bound = (1.1 * (double)n_taps * size + 4.0 * fabs(sum)) * U + 1e-36;
        worst = fmax(worst, fabs((double)want[i] - sum / (1.0 + exp(-sum))) / bound);
    }
    ca_check(ctx, worst <= 1.0, "conv_silu, n %zu, %zu taps: %g times the bound", n, n_taps, worst);
    free(want);
    ca_buf_free(&out);
    for (size_t j = 0; j < n_taps; j++) ca_input_free(&in[j]);
    ca_input_free(&w);
}

/* ---- the rule ------------------------------------------------------------------------------------- */

typedef struct problem {
    size_t dk, n, ld_qk, ld_v, ld_gates, ld_out;
    ca_input q, k, v, gates, s;
    size_t n_out;
} problem;

/* Values and the state at the start are scaled; keys and queries have a norm of about 1, and of 0 here and there. */
static problem new_problem(ca_ctx *ctx, size_t dk, size_t n, float scale)
{
    problem p = {.dk = dk, .n = n, .ld_qk = dk + n % 4, .ld_v = LANES + n % 5 * 3, .ld_gates = 2 + n % 3,
                 .ld_out = LANES + dk % 7, .n_out = 0};
    float unit = 1.0f / sqrtf((float)dk);
    p.n_out = (n - 1) * p.ld_out + LANES;
    p.q = ca_input_normal(ctx, (n - 1) * p.ld_qk + dk, unit);
    p.k = ca_input_normal(ctx, (n - 1) * p.ld_qk + dk, unit);
    p.v = ca_input_normal(ctx, (n - 1) * p.ld_v + LANES, scale);
    p.gates = ca_input_new(ctx, ((n - 1) * p.ld_gates + 2) * sizeof(float));
    p.s = ca_input_normal(ctx, dk * LANES, scale);
    float *gates = p.gates.data, *k = p.k.data;
    for (size_t t = 0; t < n; t++) {
        float edge = t % 11 == 3 ? 0.0f : 1.0f;
        gates[t * p.ld_gates] = t % 5 == 4 ? edge : 0.5f + 0.5f * fabsf(ca_rand_uniform(ctx));
        gates[t * p.ld_gates + 1] = t % 7 == 6 ? edge : fabsf(ca_rand_uniform(ctx));
        if (t % 13 == 12) memset(k + t * p.ld_qk, 0, dk * sizeof *k);
    }
    return p;
}

static void free_problem(problem *p)
{
    ca_input *all[] = {&p->q, &p->k, &p->v, &p->gates, &p->s};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) ca_input_free(all[i]);
}

/* Tokens [t0, t1) with the state s. */
static void run(const qw_kernels *t, const problem *p, size_t t0, size_t t1, float *s, float *out)
{
    const float *q = p->q.data, *k = p->k.data, *v = p->v.data, *gates = p->gates.data;
    t->delta_rule(s, p->dk, t1 - t0, q + t0 * p->ld_qk, k + t0 * p->ld_qk, p->ld_qk, v + t0 * p->ld_v, p->ld_v,
                  gates + t0 * p->ld_gates, p->ld_gates, out + t0 * p->ld_out, p->ld_out);
}

static float *gap_filled(size_t n)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = -7.0f; /* between the tokens' results nothing changes */
    return x;
}

/* The level's results, in calls of at most `cut` tokens, against the reference's. */
static void compare(ca_ctx *ctx, const problem *p, size_t cut, const float *want_s, const float *want)
{
    ca_buf out = ca_buf_new(p->n_out * sizeof(float), 4 * (p->dk % 16));
    ca_buf s = ca_buf_new(p->dk * LANES * sizeof(float), cut % 2 ? 0 : 4);
    memcpy(s.data, p->s.data, s.bytes);
    for (size_t i = 0; i < p->n_out; i++) ((float *)out.data)[i] = -7.0f;
    for (size_t t = 0; t < p->n; t += cut) run(ctx->t, p, t, p->n - t < cut ? p->n : t + cut, s.data, out.data);
    ca_expect_same(ctx, out.data, want, p->n_out, "delta_rule", p->dk);
    ca_expect_same(ctx, s.data, want_s, p->dk * LANES, "state of delta_rule", p->dk);
    ca_check(ctx, ca_buf_intact(&out) && ca_buf_intact(&s), "delta_rule, dk %zu, %zu tokens: wrote outside", p->dk, p->n);
    ca_buf_free(&s);
    ca_buf_free(&out);
}

/* In double as the papers write it: decay, then correct. Errors of a step stay in the state, which neither decay nor
 * correction makes larger when keys have a norm of 1; theirs is up to 2, hence few tokens. */
static void check_accuracy(ca_ctx *ctx, const problem *p, const float *want)
{
    double *s = calloc(p->dk * LANES, sizeof *s), worst = 0, size = 0;
    const float *q = p->q.data, *k = p->k.data, *v = p->v.data, *gates = p->gates.data, *start = p->s.data;
    for (size_t i = 0; i < p->dk * LANES; i++) s[i] = (double)start[i];
    for (size_t t = 0; t < p->n; t++) {
        for (size_t l = 0; l < LANES; l++) {
            double m = 0, o = 0;
            for (size_t i = 0; i < p->dk; i++) m += (s[i * LANES + l] *= (double)gates[t * p->ld_gates]) * (double)k[t * p->ld_qk + i];
            double delta = (double)gates[t * p->ld_gates + 1] * ((double)v[t * p->ld_v + l] - m);
            for (size_t i = 0; i < p->dk; i++) {
                s[i * LANES + l] += (double)k[t * p->ld_qk + i] * delta;
                size = fmax(size, fabs(s[i * LANES + l]));
                o += s[i * LANES + l] * (double)q[t * p->ld_qk + i];
            }
            worst = fmax(worst, fabs(o - (double)want[t * p->ld_out + l]));
        }
    }
    double bound = (double)p->n * (double)p->dk * U * (size + 1e-30);
    ca_check(ctx, worst <= bound, "delta_rule, dk %zu, %zu tokens: error %g, bound %g", p->dk, p->n, worst, bound);
    free(s);
}

static void check_rule(ca_ctx *ctx, size_t dk, size_t n, float scale)
{
    problem p = new_problem(ctx, dk, n, scale);
    float *want = gap_filled(p.n_out), *s = malloc(dk * LANES * sizeof *s);
    memcpy(s, p.s.data, dk * LANES * sizeof *s);
    run(ctx->ref, &p, 0, n, s, want);
    compare(ctx, &p, n, s, want);
    compare(ctx, &p, 1, s, want);
    compare(ctx, &p, 1 + ca_rand_below(ctx, (uint32_t)n), s, want);
    if (n <= 8 && scale < 1e3f) check_accuracy(ctx, &p, want);
    free(s);
    free(want);
    free_problem(&p);
}

/* What is not a number stays in its own lane. */
static void check_poison(ca_ctx *ctx)
{
    static const float poison[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-40f};
    problem p = new_problem(ctx, 32, 6, 1.0f);
    float *v = p.v.data;
    for (size_t t = 0; t < p.n; t++) v[t * p.ld_v + t] = poison[t];
    float *want = gap_filled(p.n_out), *s = malloc(p.dk * LANES * sizeof *s);
    memcpy(s, p.s.data, p.dk * LANES * sizeof *s);
    run(ctx->ref, &p, 0, p.n, s, want);
    compare(ctx, &p, p.n, s, want);
    compare(ctx, &p, 1, s, want);
    bool clean = true;
    for (size_t l = p.n; l < LANES; l++) clean = clean && isfinite(want[(p.n - 1) * p.ld_out + l]);
    ca_check(ctx, clean && isnan(want[(p.n - 1) * p.ld_out]), "delta_rule: a NaN in lane 0 and nowhere else");
    free(s);
    free(want);
    free_problem(&p);
}

/* Both slots are those of the level below. */
static bool inherited(const ca_ctx *ctx)
{
    return ctx->t->delta_rule == ctx->below->delta_rule && ctx->t->conv_silu == ctx->below->conv_silu;
}

void check_delta(ca_ctx *ctx)
{
    static const size_t lengths[] = {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 128, 129, 200};
    static const size_t dims[] = {8, 9, 10, 11, 16, 32, 63, 64, 128, 192, 256};
    static const size_t tokens[] = {1, 2, 3, 4, 5, 8, 17, 33, 63, 64, 65, 70, 128, 1000};
    if (ctx->quick && inherited(ctx)) return;
    for (size_t n_taps = 1; n_taps <= TAPS_MAX; n_taps++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            check_conv(ctx, n_taps, lengths[i], i % 4 == 3 ? 60.0f : 1.0f);
    for (size_t d = 0; d < sizeof dims / sizeof *dims; d++)
        for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) {
            if (ctx->quick && tokens[i] > 8 && dims[d] > 16) continue;
            if (tokens[i] > 70 && dims[d] != 16 && dims[d] != 128) continue;
            check_rule(ctx, dims[d], tokens[i], 1.0f);
            if (i % 3 == 0) check_rule(ctx, dims[d], tokens[i], d % 2 ? 1e30f : 1e-38f);
        }
    check_poison(ctx);
}
