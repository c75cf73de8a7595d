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
#include <sys/mman.h>
#include <unistd.h>

#include "checkasm.h"
#include "kernels/ref/fma_ref.h"

static const double U = 0x1p-24; /* unit roundoff of float */

static const size_t LENGTHS[] = {1,  2,  3,  7,  8,   9,   15,  16,  17,  31,  32,  33,  47,   63,   64,  65,
                                 79, 95, 97, 127, 128, 129, 191, 200, 255, 257, 320, 511, 896, 1000, 1536, 4864};
enum { N_LENGTHS = sizeof LENGTHS / sizeof LENGTHS[0] };

/* ---- inputs: read-only in spirit, the last byte is the last of a page ------------------------------ */

typedef struct input {
    void *data;
    void *map;
    size_t map_bytes;
} input;

/* Bytes between an input and the unreadable page. None, but for qemu: 7.2 reads 16 bytes where a scalar FMA of AVX2
 * reads 4. */
static size_t slack;

static input input_new(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (bytes + slack + page - 1) / page * page;
    input in = {.map_bytes = room + page};
    in.map = mmap(NULL, in.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (in.map == MAP_FAILED || mprotect((char *)in.map + room, page, PROT_NONE) != 0) {
        fputs("check_float: no memory for an input\n", stderr);
        exit(1);
    }
    in.data = (char *)in.map + (room - slack - bytes);
    return in;
}

static input input_normal(ca_ctx *ctx, size_t n, float scale)
{
    input in = input_new(n * sizeof(float));
    ca_fill_normal(ctx, in.data, n, scale);
    return in;
}

static void input_free(input *in)
{
    munmap(in->map, in->map_bytes);
}

static float f32_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Index of the first difference, or n. NaN equals NaN: the payload is not promised. */
static size_t first_diff(const float *a, const float *b, size_t n)
{
    size_t i = 0;
    while (i < n && (memcmp(a + i, b + i, sizeof *a) == 0 || (isnan(a[i]) && isnan(b[i])))) i++;
    return i;
}

static void expect_same(ca_ctx *ctx, const float *got, const float *want, size_t n, const char *what, size_t shape)
{
    size_t i = first_diff(got, want, n);
    ca_check(ctx, i == n, "%s, shape %zu: element %zu is %a, reference has %a", what, shape, i,
             i < n ? (double)got[i] : 0.0, i < n ? (double)want[i] : 0.0);
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
        if (first_diff(&got, &want, 1) == 0) bad++;
    }
    ca_check(ctx, bad == 0, "the reference's fma differs from fmaf() in %ld of 300000 cases", bad);
}

static void check_dot(ca_ctx *ctx, size_t k, size_t n_cols)
{
    size_t ld_x = k + n_cols % 3, ld_out = 1 + n_cols % 2 * 4, n_out = (n_cols - 1) * ld_out + 1;
    input w = input_normal(ctx, k, 1.0f), x = input_normal(ctx, (n_cols - 1) * ld_x + k, 1.0f);
    ca_buf out = ca_buf_new(n_out * sizeof(float), 4 * (k % 16));
    float *want = calloc(n_out, sizeof *want), *got = out.data;
    for (size_t i = 0; i < n_out; i++) got[i] = want[i] = -7.0f; /* between the columns nothing changes */
    const float *wp = w.data, *xp = x.data;
    ctx->ref->dot_f32(wp, k, xp, ld_x, n_cols, want, ld_out);
    ctx->t->dot_f32(wp, k, xp, ld_x, n_cols, got, ld_out);
    expect_same(ctx, got, want, n_out, "dot_f32", k);
    ca_check(ctx, ca_buf_intact(&out), "dot_f32, k %zu, %zu columns: wrote outside", k, n_cols);
    for (size_t c = 0; c < n_cols; c++) {
        float alone;
        ctx->t->dot_f32(wp, k, xp + c * ld_x, ld_x, 1, &alone, 1);
        expect_same(ctx, &got[c * ld_out], &alone, 1, "dot_f32 alone and beside other columns", k);
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
    input_free(&w);
    input_free(&x);
}

static void check_rms_norm(ca_ctx *ctx, size_t k)
{
    input x = input_normal(ctx, k, k % 2 ? 3.0f : 1e-3f), w = input_normal(ctx, k, 1.0f);
    ca_buf out = ca_buf_new(k * sizeof(float), 4 * (k % 16));
    float *want = calloc(k, sizeof *want), eps = 1e-6f;
    ctx->ref->rms_norm(x.data, w.data, k, eps, want);
    ctx->t->rms_norm(x.data, w.data, k, eps, out.data);
    expect_same(ctx, out.data, want, k, "rms_norm", k);
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
    input_free(&x);
    input_free(&w);
}

static void check_add(ca_ctx *ctx, size_t n)
{
    input x = input_normal(ctx, n, 1.0f), y = input_normal(ctx, n, 1.0f);
    ca_buf out = ca_buf_new(n * sizeof(float), 4 * (n % 16));
    float *want = malloc(n * sizeof *want);
    memcpy(out.data, x.data, n * sizeof(float));
    for (size_t i = 0; i < n; i++) want[i] = ((const float *)x.data)[i] + ((const float *)y.data)[i];
    ctx->ref->add(x.data, y.data, n);
    ctx->t->add(out.data, y.data, n);
    expect_same(ctx, x.data, want, n, "add of the reference", n);
    expect_same(ctx, out.data, want, n, "add", n);
    ca_check(ctx, ca_buf_intact(&out), "add, n %zu: wrote outside", n);
    free(want);
    ca_buf_free(&out);
    input_free(&x);
    input_free(&y);
}

static void check_silu_mul(ca_ctx *ctx, size_t n)
{
    static const float edges[] = {0.0f, -0.0f, 1e-40f, -1e-40f, 88.0f, -88.0f, 89.0f, -89.0f, 1e4f, -1e4f, 1e38f};
    input gate = input_normal(ctx, n, n % 2 ? 4.0f : 40.0f), up = input_normal(ctx, n, 1.0f);
    float *g = gate.data;
    for (size_t i = 0; i < n; i += 5) g[i] = edges[ca_rand_below(ctx, sizeof edges / sizeof edges[0])];
    ca_buf out = ca_buf_new(n * sizeof(float), 4 * (n % 16));
    float *want = calloc(n, sizeof *want);
    ctx->ref->silu_mul(gate.data, up.data, n, want);
    ctx->t->silu_mul(gate.data, up.data, n, out.data);
    expect_same(ctx, out.data, want, n, "silu_mul", n);
    ctx->t->silu_mul(gate.data, up.data, n, gate.data);
    expect_same(ctx, gate.data, want, n, "silu_mul in place", n);
    ca_check(ctx, ca_buf_intact(&out), "silu_mul, n %zu: wrote outside", n);
    free(want);
    ca_buf_free(&out);
    input_free(&gate);
    input_free(&up);
}

static void check_rope(ca_ctx *ctx, size_t n)
{
    n &= ~(size_t)1;
    if (n == 0) return;
    input x = input_normal(ctx, n, 1.0f), cs = input_normal(ctx, n / 2, 1.0f), sn = input_normal(ctx, n / 2, 1.0f);
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
    expect_same(ctx, out.data, now, n, "rope", n);
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
    input_free(&x);
    input_free(&cs);
    input_free(&sn);
}

static void check_f32_to_f16(ca_ctx *ctx, size_t n)
{
    input x = input_new(n * sizeof(float));
    float *xp = x.data;
    for (size_t i = 0; i < n; i++) {
        /* Any float, and floats in the range of halves with ties between two of them. */
        uint32_t bits = (uint32_t)ca_rand(ctx), exponent = 96 + bits % 54;
        xp[i] = f32_of(i % 2 ? bits : (bits & 0x807ff000) | exponent << 23);
    }
    ca_buf out = ca_buf_new(n * sizeof(qw_half), 2 * (n % 32));
    qw_half *want = calloc(n, sizeof *want), *got = out.data;
    ctx->ref->f32_to_f16(xp, n, want);
    ctx->t->f32_to_f16(xp, n, got);
    size_t i = 0;
    while (i < n && got[i] == want[i] && got[i] == qw_f32_to_half(xp[i])) i++;
    ca_check(ctx, i == n, "f32_to_f16, n %zu: element %zu of %a differs", n, i, i < n ? (double)xp[i] : 0.0);
    ca_check(ctx, ca_buf_intact(&out), "f32_to_f16, n %zu: wrote outside", n);
    free(want);
    ca_buf_free(&out);
    input_free(&x);
}

/* n halves; with n = 65536 every half there is. */
static void check_f16_to_f32(ca_ctx *ctx, size_t n)
{
    input x = input_new(n * sizeof(qw_half));
    qw_half *xp = x.data;
    for (size_t i = 0; i < n; i++) xp[i] = (qw_half)(n == 65536 ? i : ca_rand(ctx));
    ca_buf out = ca_buf_new(n * sizeof(float), 4 * (n % 16));
    float *want = calloc(n, sizeof *want), *got = out.data;
    ctx->ref->f16_to_f32(xp, n, want);
    ctx->t->f16_to_f32(xp, n, got);
    size_t i = 0;
    while (i < n && memcmp(got + i, want + i, sizeof *got) == 0) {
        float one = qw_half_to_f32(xp[i]);
        if (memcmp(got + i, &one, sizeof one) != 0) break;
        i++;
    }
    ca_check(ctx, i == n, "f16_to_f32, n %zu: half %#x differs", n, i < n ? xp[i] : 0u);
    ca_check(ctx, ca_buf_intact(&out), "f16_to_f32, n %zu: wrote outside", n);
    free(want);
    ca_buf_free(&out);
    input_free(&x);
}

static void check_dequantize_row(ca_ctx *ctx, qw_type type)
{
    const qw_type_info *info = qw_type_get((uint32_t)type);
    if (!info->name) return;
    for (size_t n_blocks = 1; n_blocks <= 37; n_blocks += 4) {
        size_t n = n_blocks * info->block_n, bytes = n_blocks * info->block_bytes;
        input src = input_new(bytes);
        ca_fill_bytes(ctx, src.data, bytes);
        ca_buf out = ca_buf_new(n * sizeof(float), 4 * (n_blocks % 16));
        float *want = calloc(n, sizeof *want);
        qw_dequantize_row(type, src.data, want, n);
        ctx->t->dequantize_row(type, src.data, out.data, n);
        expect_same(ctx, out.data, want, n, info->name, n);
        ca_check(ctx, ca_buf_intact(&out), "dequantize_row %s, n %zu: wrote outside", info->name, n);
        free(want);
        ca_buf_free(&out);
        input_free(&src);
    }
}

/* ---- the exponential, seen through the slots ------------------------------------------------------- */

/* One attention call computes exp() of 63 numbers: head size 64, score of key i = x[i], values the unit
 * matrix, key 63 with the score 0 as the maximum; so o = p. Scores must be <= 0. x, p [64], x[63] = 0 */
static void exp_of(const qw_kernels *t, const float x[QW_KV_TILE], float p[QW_KV_TILE])
{
    static float k[QW_KV_TILE * QW_KV_TILE], v[QW_KV_TILE * QW_KV_TILE], q[QW_KV_TILE];
    float m = -INFINITY, s = 0.0f;
    uint32_t n_keys = QW_KV_TILE;
    memcpy(k, x, QW_KV_TILE * sizeof *x);
    q[0] = 1.0f;
    for (size_t i = 0; i < QW_KV_TILE; i++) v[i * QW_KV_TILE + i] = 1.0f;
    memset(p, 0, QW_KV_TILE * sizeof *p);
    t->attn_tile_f32(k, v, QW_KV_TILE, q, 1, &n_keys, &m, &s, p);
}

static void check_exp(ca_ctx *ctx)
{
    const uint32_t last = 0x42c80000; /* -100.0 without its sign; normal numbers from -2^-60 on */
    double worst = 0, worst_at = 0;
    int broken = 0;
    for (uint32_t bits = 0x21800000; bits < last;) {
        float x[QW_KV_TILE] = {0}, p[QW_KV_TILE];
        for (size_t i = 0; i < QW_KV_TILE - 1; i++, bits += 3001) x[i] = -f32_of(bits);
        exp_of(ctx->t, x, p);
        for (size_t i = 0; i < QW_KV_TILE - 1; i++) {
            double exact = exp((double)x[i]);
            int e;
            frexp(exact, &e);
            double ulps = fabs((double)p[i] - exact) / ldexp(1.0, e - 24);
            if (x[i] >= -87.336f && ulps > worst) {
                worst = ulps;
                worst_at = (double)x[i];
            }
            if (p[i] != 0.0f && p[i] < 0x1p-126f) broken++;     /* a subnormal */
            if (x[i] < -87.3365f && p[i] != 0.0f) broken++;
        }
    }
    ca_check(ctx, worst <= 0.9, "exp: error %g ulp at %a", worst, worst_at);
    ca_check(ctx, broken == 0, "exp: %d small results are not 0", broken);

    float x[QW_KV_TILE] = {-INFINITY, -0.0f, -1e30f, -FLT_MAX, -0x1p-149f}, p[QW_KV_TILE];
    exp_of(ctx->t, x, p);
    ca_check(ctx, p[0] == 0 && p[1] == 1 && p[2] == 0 && p[3] == 0 && p[4] == 1 && p[63] == 1,
             "exp at the edges: %g %g %g %g %g %g", (double)p[0], (double)p[1], (double)p[2], (double)p[3],
             (double)p[4], (double)p[63]);
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

/* ---- attention ------------------------------------------------------------------------------------- */

enum { TILES = 3 };

/* One attention problem: TILES tiles, each in its own guarded memory. */
typedef struct problem {
    size_t hd, n_q;
    bool half;
    input k[TILES], v[TILES], q;
    uint32_t n_keys[TILES][80];
} problem;

/* Running state of all queries of a problem. */
typedef struct state {
    ca_buf m, s, o;
} state;

enum pattern { FULL, CAUSAL, RANDOM, N_PATTERNS };

static uint32_t keys_of(ca_ctx *ctx, enum pattern pattern, size_t tile, size_t query)
{
    if (pattern == FULL) return QW_KV_TILE;
    if (pattern == CAUSAL) { /* rows from position 60 on, 7 queries a row */
        size_t seen = 60 + query / 7 + 1, before = tile * QW_KV_TILE;
        return seen <= before ? 0 : seen - before >= QW_KV_TILE ? QW_KV_TILE : (uint32_t)(seen - before);
    }
    return ca_rand_below(ctx, QW_KV_TILE + 1);
}

static void store(problem *p, input *in, size_t i, float x)
{
    if (p->half)
        ((qw_half *)in->data)[i] = qw_f32_to_half(x);
    else
        ((float *)in->data)[i] = x;
}

static problem problem_new(ca_ctx *ctx, size_t hd, size_t n_q, bool half, enum pattern pattern)
{
    static const float poison[] = {NAN, INFINITY, -INFINITY, 6e4f};
    problem p = {.hd = hd, .n_q = n_q, .half = half, .q = input_normal(ctx, n_q * hd, pattern == FULL ? 0.3f : 1.0f)};
    size_t unit = half ? sizeof(qw_half) : sizeof(float);
    for (size_t t = 0; t < TILES; t++) {
        uint32_t most = 0;
        for (size_t i = 0; i < n_q; i++) {
            p.n_keys[t][i] = keys_of(ctx, pattern, t, i);
            if (p.n_keys[t][i] > most) most = p.n_keys[t][i];
        }
        p.k[t] = input_new(hd * QW_KV_TILE * unit);
        p.v[t] = input_new(hd * QW_KV_TILE * unit);
        for (size_t key = 0; key < QW_KV_TILE; key++)
            for (size_t d = 0; d < hd; d++) {
                bool hidden = key >= most; /* another owner's bytes */
                float x = poison[ca_rand_below(ctx, 4)];
                store(&p, &p.k[t], d * QW_KV_TILE + key, hidden ? x : ca_rand_normal(ctx));
                store(&p, &p.v[t], key * hd + d, hidden ? x : ca_rand_normal(ctx));
            }
    }
    return p;
}

static void problem_free(problem *p)
{
    for (size_t t = 0; t < TILES; t++) {
        input_free(&p->k[t]);
        input_free(&p->v[t]);
    }
    input_free(&p->q);
}

static state state_new(size_t n_q, size_t hd)
{
    state st = {ca_buf_new(n_q * sizeof(float), 4), ca_buf_new(n_q * sizeof(float), 8),
                ca_buf_new(n_q * hd * sizeof(float), 4 * (hd % 16))};
    for (size_t i = 0; i < n_q; i++) ((float *)st.m.data)[i] = -INFINITY;
    memset(st.s.data, 0, st.s.bytes);
    memset(st.o.data, 0, st.o.bytes);
    return st;
}

static void state_free(state *st)
{
    ca_buf_free(&st->m);
    ca_buf_free(&st->s);
    ca_buf_free(&st->o);
}

/* Queries [from, from + n) of a problem over one tile. */
static void run_tile(const qw_kernels *t, const problem *p, state *st, size_t tile, size_t from, size_t n)
{
    qw_attn_tile_fn *fn = p->half ? t->attn_tile_f16 : t->attn_tile_f32;
    fn(p->k[tile].data, p->v[tile].data, p->hd, (const float *)p->q.data + from * p->hd, n, p->n_keys[tile] + from,
       (float *)st->m.data + from, (float *)st->s.data + from, (float *)st->o.data + from * p->hd);
}

static void expect_states(ca_ctx *ctx, const problem *p, const state *got, const state *want, const char *what)
{
    size_t shape = p->hd * 1000 + p->n_q;
    expect_same(ctx, got->m.data, want->m.data, p->n_q, what, shape);
    expect_same(ctx, got->s.data, want->s.data, p->n_q, what, shape);
    expect_same(ctx, got->o.data, want->o.data, p->n_q * p->hd, what, shape);
    ca_check(ctx, ca_buf_intact(&got->m) && ca_buf_intact(&got->s) && ca_buf_intact(&got->o),
             "%s, head %zu, %zu queries: wrote outside", what, p->hd, p->n_q);
}

static double element(const problem *p, const input *in, size_t i)
{
    return p->half ? (double)qw_half_to_f32(((const qw_half *)in->data)[i]) : (double)((const float *)in->data)[i];
}

/* One query of all tiles in double; the bound grows with the chain lengths and the size of the scores. */
static void expect_near(ca_ctx *ctx, const problem *p, const state *st, size_t i)
{
    double score[TILES * QW_KV_TILE], max = -INFINITY, sum = 0, score_error = 0;
    const float *q = (const float *)p->q.data + i * p->hd, *o = (const float *)st->o.data + i * p->hd;
    size_t n = 0, at[TILES * QW_KV_TILE];
    for (size_t t = 0; t < TILES; t++)
        for (size_t key = 0; key < p->n_keys[t][i]; key++, n++) {
            double size = 0;
            score[n] = 0;
            at[n] = t * QW_KV_TILE + key;
            for (size_t d = 0; d < p->hd; d++) {
                double term = (double)q[d] * element(p, &p->k[t], d * QW_KV_TILE + key);
                score[n] += term;
                size += fabs(term);
            }
            score_error = fmax(score_error, (double)p->hd * U * size + U * fabs(score[n]));
            max = fmax(max, score[n]);
        }
    if (n == 0) return;
    for (size_t j = 0; j < n; j++) sum += score[j] = exp(score[j] - max);
    double s = (double)((const float *)st->s.data)[i], worst = -1.0, error_at = 0;
    double bound = 2.0 * expm1(2.0 * score_error + 2.0 * fabs(max) * U) + ((double)n + 16.0 * TILES) * U;
    for (size_t d = 0; d < p->hd; d++) {
        double exact = 0, size = 0;
        for (size_t j = 0; j < n; j++) {
            double v = element(p, &p->v[at[j] / QW_KV_TILE], at[j] % QW_KV_TILE * p->hd + d);
            exact += score[j] * v;
            size += score[j] * fabs(v);
        }
        double error = fabs((double)o[d] / s - exact / sum) - bound * size / sum;
        if (error > worst) {
            worst = error;
            error_at = exact / sum;
        }
    }
    ca_check(ctx, worst <= 0.0, "attention, head %zu, query %zu of %zu: %g beyond the bound near %g", p->hd, i, p->n_q,
             worst, error_at);
}

static void check_attn(ca_ctx *ctx, size_t hd, size_t n_q, bool half, enum pattern pattern)
{
    problem p = problem_new(ctx, hd, n_q, half, pattern);
    state want = state_new(n_q, hd), got = state_new(n_q, hd), alone = state_new(n_q, hd), cut = state_new(n_q, hd);
    for (size_t t = 0; t < TILES; t++) {
        run_tile(ctx->ref, &p, &want, t, 0, n_q);
        run_tile(ctx->t, &p, &got, t, 0, n_q);
    }
    expect_states(ctx, &p, &got, &want, half ? "attn_tile_f16" : "attn_tile_f32");
    /* Each query with all its tiles alone; then groups of a random size, tile by tile. */
    for (size_t i = 0; i < n_q; i++)
        for (size_t t = 0; t < TILES; t++) run_tile(ctx->t, &p, &alone, t, i, 1);
    expect_states(ctx, &p, &alone, &want, "attention, each query alone");
    for (size_t t = 0; t < TILES; t++)
        for (size_t i = 0, n = 0; i < n_q; i += n) {
            n = 1 + ca_rand_below(ctx, (uint32_t)(n_q - i));
            run_tile(ctx->t, &p, &cut, t, i, n);
        }
    expect_states(ctx, &p, &cut, &want, "attention, queries in random groups");
    for (size_t i = 0; i < n_q; i++) expect_near(ctx, &p, &got, i);
    state_free(&want);
    state_free(&got);
    state_free(&alone);
    state_free(&cut);
    problem_free(&p);
}

/* No visible key: the state is not touched, whatever it holds. */
static void check_attn_untouched(ca_ctx *ctx, bool half)
{
    problem p = problem_new(ctx, 64, 9, half, RANDOM);
    for (size_t i = 0; i < 9; i += 2) p.n_keys[0][i] = 0;
    state st = state_new(9, 64);
    memset(st.m.data, 0xa5, st.m.bytes);
    memset(st.s.data, 0xa5, st.s.bytes);
    memset(st.o.data, 0xa5, st.o.bytes);
    run_tile(ctx->t, &p, &st, 0, 0, 9);
    size_t changed = 0;
    const unsigned char *m = st.m.data, *s = st.s.data, *o = st.o.data;
    for (size_t i = 0; i < 9; i += 2) {
        for (size_t j = i * 4; j < i * 4 + 4; j++) changed += m[j] != 0xa5 || s[j] != 0xa5;
        for (size_t j = i * 256; j < i * 256 + 256; j++) changed += o[j] != 0xa5;
    }
    ca_check(ctx, changed == 0, "attention without keys: %zu bytes changed", changed);
    state_free(&st);
    problem_free(&p);
}

/* A key or value that is NaN spoils the queries that see it, and no other. */
static void check_attn_nan(ca_ctx *ctx, bool half, bool in_value)
{
    problem p = problem_new(ctx, 64, 14, half, FULL);
    for (size_t i = 0; i < 14; i++) p.n_keys[0][i] = i % 2 ? 40 : 30;
    store(&p, in_value ? &p.v[0] : &p.k[0], in_value ? 35 * 64 + 3 : 3 * QW_KV_TILE + 35, NAN);
    state want = state_new(14, 64), got = state_new(14, 64);
    run_tile(ctx->ref, &p, &want, 0, 0, 14);
    run_tile(ctx->t, &p, &got, 0, 0, 14);
    expect_states(ctx, &p, &got, &want, "attention with a NaN");
    size_t wrong = 0;
    for (size_t i = 0; i < 14; i++) wrong += isnan(((float *)got.o.data)[i * 64 + 3]) != (int)(i % 2);
    ca_check(ctx, wrong == 0, "attention with a NaN: %zu queries have it wrong", wrong);
    state_free(&want);
    state_free(&got);
    problem_free(&p);
}

/* Large scores: weights underflow to 0, nothing overflows. */
static void check_attn_extreme(ca_ctx *ctx, float scale)
{
    problem p = problem_new(ctx, 64, 13, false, RANDOM);
    for (size_t i = 0; i < 13 * 64; i++) ((float *)p.q.data)[i] *= scale;
    state want = state_new(13, 64), got = state_new(13, 64);
    for (size_t t = 0; t < TILES; t++) {
        run_tile(ctx->ref, &p, &want, t, 0, 13);
        run_tile(ctx->t, &p, &got, t, 0, 13);
    }
    expect_states(ctx, &p, &got, &want, "attention with extreme scores");
    size_t bad = 0;
    for (size_t i = 0; i < 13 * 64; i++) bad += isfinite(((float *)got.o.data)[i]) ? 0 : 1;
    ca_check(ctx, bad == 0, "attention with scores x %g: %zu results are not finite", (double)scale, bad);
    state_free(&want);
    state_free(&got);
    problem_free(&p);
}

static void check_attention(ca_ctx *ctx)
{
    static const size_t heads[] = {1, 8, 15, 16, 40, 64, 80, 100, 128, 255, 256};
    static const size_t queries[] = {1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 64};
    for (size_t h = 0; h < sizeof heads / sizeof heads[0]; h++)
        for (size_t n = 0; n < sizeof queries / sizeof queries[0]; n++) {
            bool common = heads[h] == 64 || heads[h] == 128;
            if (!common && queries[n] != 1 && queries[n] != 7 && queries[n] != 13) continue;
            for (int half = 0; half < 2; half++)
                for (enum pattern pattern = FULL; pattern < N_PATTERNS; pattern++) {
                    if (ctx->quick && (h + n + pattern) % N_PATTERNS != 0) continue;
                    check_attn(ctx, heads[h], queries[n], half, pattern);
                }
        }
    for (int half = 0; half < 2; half++) {
        check_attn_untouched(ctx, half);
        check_attn_nan(ctx, half, false);
        check_attn_nan(ctx, half, true);
    }
    check_attn_extreme(ctx, 1e4f);
    check_attn_extreme(ctx, 1e30f);
    check_attn_extreme(ctx, 1e-38f);
}

/* All slots but the products are those of the level below. */
static bool inherited(const ca_ctx *ctx)
{
    qw_kernels both[2] = {*ctx->t, *ctx->below};
    for (int i = 0; i < 2; i++) {
        both[i].isa = QW_ISA_REF;
        memset(both[i].gemm, 0, sizeof both[i].gemm);
        memset(both[i].quantize_act, 0, sizeof both[i].quantize_act);
    }
    return memcmp(&both[0], &both[1], sizeof both[0]) == 0;
}

void check_float(ca_ctx *ctx)
{
    if (ctx->quick && inherited(ctx)) return;
#if defined(__x86_64__)
    slack = ctx->quick ? 16 : 0;
#endif
    check_fma_ref(ctx);
    for (size_t i = 0; i < N_LENGTHS; i++) {
        size_t n = LENGTHS[i];
        for (size_t n_cols = 1; n_cols <= 9; n_cols++) check_dot(ctx, n, n_cols);
        check_rms_norm(ctx, n);
        check_add(ctx, n);
        check_silu_mul(ctx, n);
        check_rope(ctx, n);
        check_f32_to_f16(ctx, n);
        check_f16_to_f32(ctx, n);
    }
    check_f32_to_f16(ctx, 100003);
    check_f16_to_f32(ctx, 65536);
    for (int type = 0; type < QW_TYPE_LIMIT; type++) check_dequantize_row(ctx, (qw_type)type);
    check_exp(ctx);
    check_silu_accuracy(ctx);
    check_attention(ctx);
}

/* ---- benchmarks -------------------------------------------------------------------------------------- */

static float bench_x[64 * 4864], bench_y[64 * 4864], bench_out[64 * 4864];
static float bench_k[QW_KV_TILE * QW_HEAD_DIM_MAX], bench_v[QW_KV_TILE * QW_HEAD_DIM_MAX];
static qw_half bench_kh[QW_KV_TILE * QW_HEAD_DIM_MAX], bench_vh[QW_KV_TILE * QW_HEAD_DIM_MAX];

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

static void run_silu_mul(const qw_kernels *t, size_t n, size_t unused)
{
    (void)unused;
    t->silu_mul(bench_x, bench_y, n, bench_out);
}

static void run_rope(const qw_kernels *t, size_t n, size_t unused)
{
    (void)unused;
    t->rope(bench_out, bench_x, bench_y, n);
}

static void run_f32_to_f16(const qw_kernels *t, size_t n, size_t unused)
{
    (void)unused;
    t->f32_to_f16(bench_x, n, bench_kh);
}

static void run_attn(const qw_kernels *t, bool half, size_t hd, size_t n_q)
{
    static float m[64], s[64];
    static uint32_t n_keys[64];
    for (size_t i = 0; i < n_q; i++) n_keys[i] = QW_KV_TILE;
    if (half)
        t->attn_tile_f16(bench_kh, bench_vh, hd, bench_x, n_q, n_keys, m, s, bench_out);
    else
        t->attn_tile_f32(bench_k, bench_v, hd, bench_x, n_q, n_keys, m, s, bench_out);
}

static void run_attn_f16(const qw_kernels *t, size_t hd, size_t n_q)
{
    run_attn(t, true, hd, n_q);
}

static void run_attn_f32(const qw_kernels *t, size_t hd, size_t n_q)
{
    run_attn(t, false, hd, n_q);
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
    {"silu_mul n=4864", run_silu_mul, 4864, 0, 4864, "Gelem/s"},
    {"rope n=128", run_rope, 128, 0, 128, "Gelem/s"},
    {"f32_to_f16 n=4864", run_f32_to_f16, 4864, 0, 4864, "Gelem/s"},
    {"attn_tile_f16 hd=64 q=1", run_attn_f16, 64, 1, 2 * 64 * 64, "GFMA/s"},
    {"attn_tile_f16 hd=64 q=7", run_attn_f16, 64, 7, 7 * 2 * 64 * 64, "GFMA/s"},
    {"attn_tile_f16 hd=64 q=56", run_attn_f16, 64, 56, 56 * 2 * 64 * 64, "GFMA/s"},
    {"attn_tile_f16 hd=128 q=1", run_attn_f16, 128, 1, 2 * 64 * 128, "GFMA/s"},
    {"attn_tile_f16 hd=128 q=6", run_attn_f16, 128, 6, 6 * 2 * 64 * 128, "GFMA/s"},
    {"attn_tile_f16 hd=128 q=48", run_attn_f16, 128, 48, 48 * 2 * 64 * 128, "GFMA/s"},
    {"attn_tile_f32 hd=128 q=48", run_attn_f32, 128, 48, 48 * 2 * 64 * 128, "GFMA/s"},
};

void bench_float(ca_ctx *ctx)
{
    ca_fill_normal(ctx, bench_x, sizeof bench_x / sizeof bench_x[0], 0.1f);
    ca_fill_normal(ctx, bench_y, sizeof bench_y / sizeof bench_y[0], 0.1f);
    ca_fill_normal(ctx, bench_k, sizeof bench_k / sizeof bench_k[0], 1.0f);
    ca_fill_normal(ctx, bench_v, sizeof bench_v / sizeof bench_v[0], 1.0f);
    ctx->ref->f32_to_f16(bench_k, sizeof bench_k / sizeof bench_k[0], bench_kh);
    ctx->ref->f32_to_f16(bench_v, sizeof bench_v / sizeof bench_v[0], bench_vh);
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
