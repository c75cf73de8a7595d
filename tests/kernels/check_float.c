/* check_float.c: the float slots of the kernel table, one level of this machine against the reference.
 *
 * All float kernels promise the same bits on every level (docs/numerics.md), so the level is compared with
 * the reference bit for bit, and with a computation in double within a bound derived from the number of
 * roundings. Inputs end at an unreadable page, so that reading past the end stops the program, and start
 * at odd places; outputs lie in guarded buffers. Every shape has tails. Deterministic, one thread.
 */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "inputs.h"
#include "kernels/attn_layout.h"
#include "kernels/ref/float_ref.h"
#include "kernels/ref/fma_ref.h"

static const double U = 0x1p-24; /* unit roundoff of float */

static const size_t LENGTHS[] = {1,  2,  3,  7,  8,   9,   15,  16,  17,  31,  32,  33,  47,   63,   64,  65,
                                 79, 95, 97, 127, 128, 129, 191, 200, 255, 257, 320, 511, 896, 1000, 1536, 4864};
enum { N_LENGTHS = sizeof LENGTHS / sizeof LENGTHS[0] };

static float f32_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* ---- one level against the reference on vectors ---------------------------------------------------- */

static void check_fma_ref(ca_ctx *ctx)
{
    long bad = 0;
    for (int i = 0; i < 300000; i++) {
        uint64_t r = ca_rand(ctx);
        float a = f32_of((uint32_t)r), b = f32_of((uint32_t)(r >> 32)), c = f32_of((uint32_t)ca_rand(ctx));
        float near_one = 1.0f + (float)(r % 4096) * 0x1p-23f, below_one = 2.0f - near_one;
        switch (i % 5) {
        case 1: /* near cancellation */
            c = -a * b * (1.0f + (float)(i % 7) * 0x1p-24f);
            break;
        case 2: /* all distances between product and summand */
            c = a * b * ldexpf(1.0f, (int)(r % 60) - 30);
            break;
        case 3: /* just below half of the last place: rounding to double first would make it a tie */
            a = near_one;
            b = below_one;
            c = copysignf(2.0f * (float)(8388608 + (r >> 32) % 8388608), c);
            break;
        case 4: /* the same with a subnormal result */
            a = near_one * 0x1p-75f;
            b = below_one * 0x1p-75f;
            c = copysignf((float)((r >> 32) % 8388608) * 0x1p-149f, c);
            break;
        default: /* any bits */
            break;
        }
        float got = qw_ref_fma(a, b, c), want = fmaf(a, b, c);
        if (ca_first_unlike(&got, &want, 1) == 0) bad++;
    }
    ca_check(ctx, bad == 0, "the reference's fma differs from fmaf() in %ld of 300000 cases", bad);
}

static void check_dot(ca_ctx *ctx, size_t k, size_t n_cols)
{
    size_t ld_x = k + n_cols % 3, ld_out = 1 + n_cols % 2 * 4, n_out = (n_cols - 1) * ld_out + 1;
    ca_input w = ca_input_normal(ctx, k, 1.0f), x = ca_input_normal(ctx, (n_cols - 1) * ld_x + k, 1.0f);
    ca_buf out = ca_buf_new(n_out * sizeof(float), 4 * (k % 16));
    float *want = calloc(n_out, sizeof *want), *got = out.data;
    for (size_t i = 0; i < n_out; i++) got[i] = want[i] = -7.0f; /* between the columns nothing changes */
    const float *wp = w.data, *xp = x.data;
    ctx->ref->dot_f32(wp, k, xp, ld_x, n_cols, want, ld_out);
    ctx->t->dot_f32(wp, k, xp, ld_x, n_cols, got, ld_out);
    ca_expect_same(ctx, got, want, n_out, "dot_f32", k);
    ca_check(ctx, ca_buf_intact(&out), "dot_f32, k %zu, %zu columns: wrote outside", k, n_cols);
    for (size_t c = 0; c < n_cols; c++) {
        float alone;
        ctx->t->dot_f32(wp, k, xp + c * ld_x, ld_x, 1, &alone, 1);
        ca_expect_same(ctx, &got[c * ld_out], &alone, 1, "dot_f32 alone and beside other columns", k);
        double sum = 0, size = 0;
        for (size_t i = 0; i < k; i++) {
            sum += (double)wp[i] * (double)xp[c * ld_x + i];
            size += fabs((double)wp[i] * (double)xp[c * ld_x + i]);
        }
        double bound = ((double)(k / 64) + 8.0) * U * size;
        ca_check(ctx, fabs((double)alone - sum) <= bound, "dot_f32, k %zu: %g, exactly %g, bound %g", k,
                 (double)alone, sum, bound);
    }
    free(want);
    ca_buf_free(&out);
    ca_input_free(&w);
    ca_input_free(&x);
}

static void check_rms_norm(ca_ctx *ctx, size_t k)
{
    ca_input x = ca_input_normal(ctx, k, k % 2 ? 3.0f : 1e-3f), w = ca_input_normal(ctx, k, 1.0f);
    ca_buf out = ca_buf_new(k * sizeof(float), 4 * (k % 16));
    float *want = calloc(k, sizeof *want), eps = 1e-6f;
    ctx->ref->rms_norm(x.data, w.data, k, eps, want);
    ctx->t->rms_norm(x.data, w.data, k, eps, out.data);
    ca_expect_same(ctx, out.data, want, k, "rms_norm", k);
    ca_check(ctx, ca_buf_intact(&out), "rms_norm, k %zu: wrote outside", k);

    const float *xp = x.data, *wp = w.data;
    double sum = 0, worst = 0;
    for (size_t i = 0; i < k; i++) sum += (double)xp[i] * (double)xp[i];
    double scale = 1.0 / sqrt(sum / (double)k + (double)eps);
    for (size_t i = 0; i < k; i++) {
        double exact = (double)xp[i] * scale * (double)wp[i];
        worst = fmax(worst, fabs((double)want[i] - exact) / (fabs(exact) + 1e-30));
    }
    /* Half of the sum's relative error, and one rounding each for /, +, sqrt, 1/, two products. */
    double bound = (((double)(k / 64) + 8.0) / 2.0 + 6.0) * U;
    ca_check(ctx, worst <= bound, "rms_norm, k %zu: relative error %g, bound %g", k, worst, bound);
    free(want);
    ca_buf_free(&out);
    ca_input_free(&x);
    ca_input_free(&w);
}

static void check_add(ca_ctx *ctx, size_t n)
{
    ca_input x = ca_input_normal(ctx, n, 1.0f), y = ca_input_normal(ctx, n, 1.0f);
    ca_buf out = ca_buf_new(n * sizeof(float), 4 * (n % 16));
    float *want = malloc(n * sizeof *want);
    memcpy(out.data, x.data, n * sizeof(float));
    for (size_t i = 0; i < n; i++) want[i] = ((const float *)x.data)[i] + ((const float *)y.data)[i];
    ctx->ref->add(x.data, y.data, n);
    ctx->t->add(out.data, y.data, n);
    ca_expect_same(ctx, x.data, want, n, "add of the reference", n);
    ca_expect_same(ctx, out.data, want, n, "add", n);
    ca_check(ctx, ca_buf_intact(&out), "add, n %zu: wrote outside", n);

    float scale = ca_rand_normal(ctx);
    for (size_t i = 0; i < n; i++) want[i] = fmaf(scale, ((const float *)y.data)[i], want[i]);
    ctx->ref->add_scaled(x.data, y.data, scale, n);
    ctx->t->add_scaled(out.data, y.data, scale, n);
    ca_expect_same(ctx, x.data, want, n, "add_scaled of the reference", n);
    ca_expect_same(ctx, out.data, want, n, "add_scaled", n);
    ca_check(ctx, ca_buf_intact(&out), "add_scaled, n %zu: wrote outside", n);
    free(want);
    ca_buf_free(&out);
    ca_input_free(&x);
    ca_input_free(&y);
}

typedef void gate_fn(const float *a, const float *b, size_t n, float *out);

/* silu_mul or sigmoid_mul: gates with the edges of the exponential among them, and in place. */
static void check_gate(ca_ctx *ctx, const char *name, gate_fn *ref, gate_fn *fn, bool gate_first, size_t n)
{
    static const float edges[] = {0.0f, -0.0f, 1e-40f, -1e-40f, 88.0f, -88.0f, 89.0f, -89.0f, 1e4f, -1e4f, 1e38f};
    ca_input gate = ca_input_normal(ctx, n, n % 2 ? 4.0f : 40.0f), other = ca_input_normal(ctx, n, 1.0f);
    float *g = gate.data;
    for (size_t i = 0; i < n; i += 5) g[i] = edges[ca_rand_below(ctx, sizeof edges / sizeof edges[0])];
    ca_buf out = ca_buf_new(n * sizeof(float), 4 * (n % 16));
    float *want = calloc(n, sizeof *want), *a = gate_first ? gate.data : other.data, *b = gate_first ? other.data : gate.data;
    ref(a, b, n, want);
    fn(a, b, n, out.data);
    ca_expect_same(ctx, out.data, want, n, name, n);
    if (!gate_first) { /* over the gate, and both the same */
        float *over = malloc(n * sizeof *over);
        memcpy(over, g, n * sizeof *over);
        fn(a, over, n, over);
        ca_expect_same(ctx, over, want, n, "sigmoid_mul over its gate", n);
        memcpy(over, g, n * sizeof *over);
        ref(g, g, n, out.data);
        fn(over, over, n, over);
        ca_expect_same(ctx, over, out.data, n, "sigmoid_mul of one vector", n);
        free(over);
    }
    fn(a, b, n, a);
    ca_expect_same(ctx, a, want, n, name, n);
    ca_check(ctx, ca_buf_intact(&out), "%s, n %zu: wrote outside", name, n);
    free(want);
    ca_buf_free(&out);
    ca_input_free(&gate);
    ca_input_free(&other);
}

/* The slot against the function that the sweep of check_exp holds to account. */
static void check_exp_slot(ca_ctx *ctx, size_t n)
{
    static const float edges[] = {0.0f, -0.0f, 1e-40f, 88.0f, -87.0f, -88.0f, 89.0f, 1e38f, -1e38f, INFINITY, -INFINITY, NAN};
    ca_input x = ca_input_normal(ctx, n, n % 2 ? 4.0f : 40.0f);
    float *in = x.data, *want = calloc(n, sizeof *want);
    for (size_t i = 0; i < n; i += 5) in[i] = edges[ca_rand_below(ctx, sizeof edges / sizeof edges[0])];
    ca_buf out = ca_buf_new(n * sizeof(float), 4 * (n % 16));
    memcpy(out.data, in, n * sizeof *in);
    memcpy(want, in, n * sizeof *in);
    ctx->ref->exp(want, n);
    ctx->t->exp(out.data, n);
    ca_expect_same(ctx, out.data, want, n, "exp", n);
    for (size_t i = 0; i < n; i++) want[i] = qw_ref_exp(in[i]);
    ca_expect_same(ctx, out.data, want, n, "exp of the reference", n);
    ca_check(ctx, ca_buf_intact(&out), "exp, n %zu: wrote outside", n);
    free(want);
    ca_buf_free(&out);
    ca_input_free(&x);
}

static void check_rope(ca_ctx *ctx, size_t n)
{
    n &= ~(size_t)1;
    if (n == 0) return;
    ca_input x = ca_input_normal(ctx, n, 1.0f), cs = ca_input_normal(ctx, n / 2, 1.0f), sn = ca_input_normal(ctx, n / 2, 1.0f);
    float *c = cs.data, *s = sn.data;
    for (size_t i = 0; i < n / 2; i++) {
        double angle = (double)ca_rand_uniform(ctx) * 1000.0;
        c[i] = (float)cos(angle);
        s[i] = (float)sin(angle);
    }
    ca_buf out = ca_buf_new(n * sizeof(float), 4 * (n % 16));
    float *was = malloc(n * sizeof *was), *now = x.data;
    memcpy(was, x.data, n * sizeof *was);
    memcpy(out.data, x.data, n * sizeof(float));
    ctx->ref->rope(now, c, s, n);
    ctx->t->rope(out.data, c, s, n);
    ca_expect_same(ctx, out.data, now, n, "rope", n);
    ca_check(ctx, ca_buf_intact(&out), "rope, n %zu: wrote outside", n);
    double worst = 0;
    for (size_t i = 0; i < n / 2; i++) {
        double a = (double)was[i], b = (double)was[i + n / 2], size = fabs(a) + fabs(b);
        double first = a * (double)c[i] - b * (double)s[i], second = b * (double)c[i] + a * (double)s[i];
        worst = fmax(worst, fabs((double)now[i] - first) / size);
        worst = fmax(worst, fabs((double)now[i + n / 2] - second) / size);
    }
    ca_check(ctx, worst <= 2.0 * U, "rope, n %zu: error %g of the pair's size, bound %g", n, worst, 2.0 * U);
    free(was);
    ca_buf_free(&out);
    ca_input_free(&x);
    ca_input_free(&cs);
    ca_input_free(&sn);
}

static void check_dequantize_row(ca_ctx *ctx, qw_type type)
{
    const qw_type_info *info = qw_type_get((uint32_t)type);
    if (!info->name) return;
    for (size_t n_blocks = 1; n_blocks <= 37; n_blocks += 4) {
        size_t n = n_blocks * info->block_n, bytes = n_blocks * info->block_bytes;
        ca_input src = ca_input_new(ctx, bytes);
        ca_fill_bytes(ctx, src.data, bytes);
        ca_buf out = ca_buf_new(n * sizeof(float), 4 * (n_blocks % 16));
        float *want = calloc(n, sizeof *want);
        qw_dequantize_row(type, src.data, want, n);
        ctx->t->dequantize_row(type, src.data, out.data, n);
        ca_expect_same(ctx, out.data, want, n, info->name, n);
        ca_check(ctx, ca_buf_intact(&out), "dequantize_row %s, n %zu: wrote outside", info->name, n);
        free(want);
        ca_buf_free(&out);
        ca_input_free(&src);
    }
}

/* ---- the exponential, seen through the slots ------------------------------------------------------- */

/* The slot against double over both signs: its error, and that no result is a subnormal. */
static void check_exp(ca_ctx *ctx)
{
    enum { N = 4096 };
    static float x[N], p[N];
    const uint32_t last = 0x42c80000; /* 100.0; from 2^-60 on */
    double worst = 0, worst_at = 0;
    int broken = 0;
    for (uint32_t bits = 0x21800000; bits < last;) {
        for (size_t i = 0; i < N; i += 2, bits += 3001) {
            x[i] = f32_of(bits);
            x[i + 1] = -x[i];
        }
        memcpy(p, x, sizeof p);
        ctx->t->exp(p, N);
        for (size_t i = 0; i < N; i++) {
            double exact = exp((double)x[i]);
            int e;
            frexp(exact, &e);
            double ulps = fabs((double)p[i] - exact) / ldexp(1.0, e - 24);
            if (x[i] >= -87.336f && x[i] <= 88.722f && ulps > worst) {
                worst = ulps;
                worst_at = (double)x[i];
            }
            if (p[i] != 0.0f && p[i] < 0x1p-126f) broken++; /* a subnormal */
            if (x[i] < -87.3365f && p[i] != 0.0f) broken++;
            if (x[i] > 88.723f && !isinf(p[i])) broken++;
        }
    }
    ca_check(ctx, worst <= 0.9, "exp: error %g ulp at %a", worst, worst_at);
    ca_check(ctx, broken == 0, "exp: %d results beyond its range are neither 0 nor infinity", broken);

    float edge[8] = {-INFINITY, -0.0f, -1e30f, -FLT_MAX, -0x1p-149f, 0.0f, INFINITY, NAN};
    ctx->t->exp(edge, 8);
    ca_check(ctx, edge[0] == 0 && edge[1] == 1 && edge[2] == 0 && edge[3] == 0 && edge[4] == 1 && edge[5] == 1 &&
             isinf(edge[6]) && isnan(edge[7]), "exp at the edges: %g %g %g %g %g %g %g %g", (double)edge[0], (double)edge[1],
             (double)edge[2], (double)edge[3], (double)edge[4], (double)edge[5], (double)edge[6], (double)edge[7]);
}

/* silu over both signs against double: exp, 1 + e, division and product round once each. */
static void check_silu_accuracy(ca_ctx *ctx)
{
    enum { N = 4096 };
    static float g[N], up[N], out[N];
    double worst = 0, worst_at = 0;
    for (size_t i = 0; i < N; i++) up[i] = 1.0f;
    for (int round = 0; round < 64; round++) {
        for (size_t i = 0; i < N; i++) g[i] = ca_rand_uniform(ctx) * 95.0f;
        ctx->t->silu_mul(g, up, N, out);
        for (size_t i = 0; i < N; i++) {
            double x = (double)g[i], exact = x / (1.0 + exp(-x));
            /* Below -88.72 the kernel's exp(-x) is infinite; the true value is under 3e-37. */
            double error = fmax(0.0, fabs((double)out[i] - exact) - 3e-37) / fabs(exact);
            if (error > worst) {
                worst = error;
                worst_at = x;
            }
        }
    }
    ca_check(ctx, worst <= 4.0 * U, "silu: relative error %g at %a, bound %g", worst, worst_at, 4.0 * U);

    float edge_g[3] = {INFINITY, NAN, -1e30f}, edge_up[3] = {1.0f, 1.0f, 1.0f}, edge_out[3];
    ctx->t->silu_mul(edge_g, edge_up, 3, edge_out);
    ca_check(ctx, isinf(edge_out[0]) && isnan(edge_out[1]) && edge_out[2] == 0.0f, "silu at the edges: %g %g %g",
             (double)edge_out[0], (double)edge_out[1], (double)edge_out[2]);
}

/* sigmoid likewise: exp, 1 + e, division and product. */
static void check_sigmoid_accuracy(ca_ctx *ctx)
{
    enum { N = 4096 };
    static float g[N], x[N], out[N];
    double worst = 0;
    for (size_t i = 0; i < N; i++) {
        x[i] = 1.0f + fabsf(ca_rand_uniform(ctx));
        g[i] = ca_rand_uniform(ctx) * 87.0f;
    }
    ctx->t->sigmoid_mul(x, g, N, out);
    for (size_t i = 0; i < N; i++) {
        double exact = (double)x[i] / (1.0 + exp(-(double)g[i]));
        worst = fmax(worst, fabs((double)out[i] - exact) / exact);
    }
    ca_check(ctx, worst <= 5.0 * U, "sigmoid: relative error %g, bound %g", worst, 5.0 * U);

    float edge_g[4] = {INFINITY, -INFINITY, NAN, -1e30f}, edge_x[4] = {3.0f, 3.0f, 3.0f, 3.0f}, edge_out[4];
    ctx->t->sigmoid_mul(edge_x, edge_g, 4, edge_out);
    ca_check(ctx, edge_out[0] == 3.0f && edge_out[1] == 0.0f && isnan(edge_out[2]) && edge_out[3] == 0.0f,
             "sigmoid at the edges: %g %g %g %g", (double)edge_out[0], (double)edge_out[1], (double)edge_out[2],
             (double)edge_out[3]);
}

/* All slots but products, attention and the delta rule are those of the level below. */
static bool inherited(const ca_ctx *ctx)
{
    qw_kernels both[2] = {*ctx->t, *ctx->below};
    for (int i = 0; i < 2; i++) {
        both[i].isa = QW_ISA_REF;
        memset(both[i].gemm, 0, sizeof both[i].gemm);
        memset(both[i].quantize_act, 0, sizeof both[i].quantize_act);
        both[i].quantize_i16 = NULL;
        both[i].attn_i16 = NULL;
        both[i].attn_f32 = NULL;
        both[i].conv_silu = NULL;
        both[i].delta_rule = NULL;
    }
    return memcmp(&both[0], &both[1], sizeof both[0]) == 0;
}

void check_float(ca_ctx *ctx)
{
    if (ctx->quick && inherited(ctx)) return;
    check_fma_ref(ctx);
    for (size_t i = 0; i < N_LENGTHS; i++) {
        size_t n = LENGTHS[i];
        for (size_t n_cols = 1; n_cols <= 9; n_cols++) check_dot(ctx, n, n_cols);
        check_rms_norm(ctx, n);
        check_add(ctx, n);
        check_gate(ctx, "silu_mul", ctx->ref->silu_mul, ctx->t->silu_mul, true, n);
        check_gate(ctx, "sigmoid_mul", ctx->ref->sigmoid_mul, ctx->t->sigmoid_mul, false, n);
        check_exp_slot(ctx, n);
        check_rope(ctx, n);
    }
    for (int type = 0; type < QW_TYPE_LIMIT; type++) check_dequantize_row(ctx, (qw_type)type);
    check_exp(ctx);
    check_silu_accuracy(ctx);
    check_sigmoid_accuracy(ctx);
}

/* ---- benchmarks -------------------------------------------------------------------------------------- */

static float bench_x[64 * 4864], bench_y[64 * 4864], bench_out[64 * 4864];
static float bench_k[QW_KV_TILE * QW_HEAD_DIM_MAX], bench_v[QW_KV_TILE * QW_HEAD_DIM_MAX];
static _Alignas(64) unsigned char bench_tile[2 * QW_KV_TILE * (QW_HEAD_DIM_MAX * 2 + 4)];
static int16_t bench_q[64 * QW_HEAD_DIM_MAX];

typedef void bench_fn(const qw_kernels *t, size_t a, size_t b);

static void run_dot(const qw_kernels *t, size_t k, size_t n_cols)
{
    t->dot_f32(bench_y, k, bench_x, k, n_cols, bench_out, 1);
}

static void run_rms_norm(const qw_kernels *t, size_t k, size_t unused)
{
    (void)unused;
    t->rms_norm(bench_x, bench_y, k, 1e-6f, bench_out);
}

static void run_exp(const qw_kernels *t, size_t n, size_t unused)
{
    (void)unused;
    memcpy(bench_out, bench_x, n * sizeof *bench_out);
    t->exp(bench_out, n);
}

static void run_silu_mul(const qw_kernels *t, size_t n, size_t unused)
{
    (void)unused;
    t->silu_mul(bench_x, bench_y, n, bench_out);
}

static void run_sigmoid_mul(const qw_kernels *t, size_t n, size_t unused)
{
    (void)unused;
    t->sigmoid_mul(bench_x, bench_y, n, bench_out);
}

static void run_conv_silu(const qw_kernels *t, size_t n, size_t n_taps)
{
    const float *u[] = {bench_x, bench_x + n, bench_x + 2 * n, bench_x + 3 * n};
    t->conv_silu(u, bench_y, n, n_taps, n, bench_out);
}

/* The state goes on from call to call: the decay keeps it small. */
static void run_delta_rule(const qw_kernels *t, size_t dk, size_t n_tokens)
{
    static const float gates[] = {0.9f, 0.5f};
    t->delta_rule(bench_k, dk, n_tokens, bench_x, bench_y, dk, bench_v, QW_DELTA_LANES, gates, 0, bench_out, QW_DELTA_LANES);
}

static void run_rope(const qw_kernels *t, size_t n, size_t unused)
{
    (void)unused;
    t->rope(bench_out, bench_x, bench_y, n);
}

static void run_quantize_i16(const qw_kernels *t, size_t n, size_t unused)
{
    (void)unused;
    t->quantize_i16(bench_x, n, QW_ATTN_MOST, QW_ATTN_NORM_MOST, 1.0f, bench_q);
}

static float bench_m[64], bench_s[64];
static uint32_t bench_n_keys[64];

static void run_attn_i16(const qw_kernels *t, size_t hd, size_t n_q)
{
    t->attn_i16(bench_tile, NULL, hd, bench_q, bench_y, n_q, bench_n_keys, bench_m, bench_s, bench_out);
}

static void run_attn_f32(const qw_kernels *t, size_t hd, size_t n_q)
{
    t->attn_f32(bench_k, bench_v, hd, bench_x, n_q, bench_n_keys, bench_m, bench_s, bench_out);
}

static const struct bench_case {
    const char *name;
    bench_fn *fn;
    size_t a, b;
    double work;      /* operations of a call */
    const char *unit; /* of work per nanosecond */
} BENCHES[] = {
    {"dot_f32 k=896 cols=1", run_dot, 896, 1, 896, "GFMA/s"},
    {"dot_f32 k=896 cols=4", run_dot, 896, 4, 4 * 896, "GFMA/s"},
    {"dot_f32 k=4864 cols=16", run_dot, 4864, 16, 16 * 4864, "GFMA/s"},
    {"rms_norm k=896", run_rms_norm, 896, 0, 896, "Gelem/s"},
    {"exp n=128", run_exp, 128, 0, 128, "Gelem/s"},
    {"silu_mul n=4864", run_silu_mul, 4864, 0, 4864, "Gelem/s"},
    {"sigmoid_mul n=4096", run_sigmoid_mul, 4096, 0, 4096, "Gelem/s"},
    {"conv_silu n=128 taps=4", run_conv_silu, 128, 4, 128, "Gelem/s"},
    {"delta_rule dk=128 tokens=1", run_delta_rule, 128, 1, 4 * 16 * 128, "Gop/s"},
    {"delta_rule dk=128 tokens=64", run_delta_rule, 128, 64, 4 * 64 * 16 * 128, "Gop/s"},
    {"rope n=128", run_rope, 128, 0, 128, "Gelem/s"},
    {"quantize_i16 n=128", run_quantize_i16, 128, 0, 128, "Gelem/s"},
    {"attn_i16 hd=64 q=1", run_attn_i16, 64, 1, 2 * 64 * 64, "GMAC/s"},
    {"attn_i16 hd=64 q=7", run_attn_i16, 64, 7, 7 * 2 * 64 * 64, "GMAC/s"},
    {"attn_i16 hd=64 q=56", run_attn_i16, 64, 56, 56 * 2 * 64 * 64, "GMAC/s"},
    {"attn_i16 hd=128 q=1", run_attn_i16, 128, 1, 2 * 64 * 128, "GMAC/s"},
    {"attn_i16 hd=128 q=6", run_attn_i16, 128, 6, 6 * 2 * 64 * 128, "GMAC/s"},
    {"attn_i16 hd=128 q=48", run_attn_i16, 128, 48, 48 * 2 * 64 * 128, "GFMA/s"},
    {"attn_f32 hd=128 q=48", run_attn_f32, 128, 48, 48 * 2 * 64 * 128, "GFMA/s"},
};

void bench_float(ca_ctx *ctx)
{
    ca_fill_normal(ctx, bench_x, sizeof bench_x / sizeof bench_x[0], 0.1f);
    ca_fill_normal(ctx, bench_y, sizeof bench_y / sizeof bench_y[0], 0.1f);
    ca_fill_normal(ctx, bench_k, sizeof bench_k / sizeof bench_k[0], 1.0f);
    ca_fill_normal(ctx, bench_v, sizeof bench_v / sizeof bench_v[0], 1.0f);
    for (size_t i = 0; i < sizeof bench_n_keys / sizeof bench_n_keys[0]; i++) bench_n_keys[i] = QW_KV_TILE;
    for (size_t i = 0; i < sizeof bench_tile / 4; i++) ((float *)(void *)bench_tile)[i] = bench_k[0]; /* any number */
    for (size_t i = 0; i < sizeof BENCHES / sizeof BENCHES[0]; i++) {
        const struct bench_case *b = &BENCHES[i];
        if (!ca_bench_wanted(ctx, b->name)) continue;
        double best = INFINITY;
        for (int round = 0; round < 20; round++) {
            int calls = 0;
            double start = ca_now(), now;
            do {
                b->fn(ctx->t, b->a, b->b);
                calls++;
                now = ca_now();
            } while (now - start < 1e-3);
            best = fmin(best, (now - start) / calls);
        }
        printf("%-10s %-28s %9.3f us  %7.2f %s\n", qw_isa_name(ctx->t->isa), b->name, best * 1e6,
               b->work / best * 1e-9, b->unit);
    }
}
