/* check_attn.c: attention over tiles, in floats and in integers, and the quantisation that the latter wants.
 *
 * Every level against the reference bit for bit, all queries together, alone and in random groups; and against a
 * computation in double within a bound derived from the number of roundings. Positions that no query sees hold
 * whatever another owner left. Inputs end at an unreadable page; outputs lie in guarded buffers. Deterministic.
 */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "inputs.h"
#include "kernels/attn_layout.h"

static const double U = 0x1p-24; /* unit roundoff of float */

enum { TILES = 3, QUERIES = 80 };

typedef struct problem {
    bool ints;
    size_t hd, n_q;
    ca_input k[TILES], v[TILES], q; /* in floats */
    ca_input tile[TILES], iq, dq;   /* in integers */
    uint32_t n_keys[TILES][QUERIES];
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

static void float_tile(ca_ctx *ctx, problem *p, size_t t, size_t n_seen)
{
    static const float poison[] = {NAN, INFINITY, -INFINITY, 6e4f};
    p->k[t] = ca_input_new(ctx, p->hd * QW_KV_TILE * sizeof(float));
    p->v[t] = ca_input_new(ctx, p->hd * QW_KV_TILE * sizeof(float));
    float *k = p->k[t].data, *v = p->v[t].data;
    for (size_t key = 0; key < QW_KV_TILE; key++)
        for (size_t d = 0; d < p->hd; d++) {
            float x = poison[ca_rand_below(ctx, 4)];
            k[d * QW_KV_TILE + key] = key < n_seen ? ca_rand_normal(ctx) : x;
            v[key * p->hd + d] = key < n_seen ? ca_rand_normal(ctx) : x;
        }
}

/* A query or a key as the backend quantises it. */
static float quantize_vector(ca_ctx *ctx, const float *x, size_t n, int16_t *q)
{
    float norm2;
    ctx->ref->dot_f32(x, n, x, n, 1, &norm2, 1);
    return ctx->ref->quantize_i16(x, n, QW_ATTN_MOST, QW_ATTN_NORM_MOST, norm2, q);
}

/* Magnitudes of values differ from key to key, as they do in models. */
static void int_tile(ca_ctx *ctx, problem *p, size_t t, size_t n_seen)
{
    float k[QW_HEAD_DIM_MAX], v[QW_HEAD_DIM_MAX];
    int16_t ik[QW_HEAD_DIM_MAX], iv[QW_HEAD_DIM_MAX];
    p->tile[t] = ca_input_new(ctx, qw_attn_tile_bytes(p->hd));
    ca_fill_bytes(ctx, p->tile[t].data, qw_attn_tile_bytes(p->hd)); /* scales too, NaN among them */
    for (size_t key = 0; key < n_seen; key++) {
        ca_fill_normal(ctx, k, p->hd, 1.0f);
        if (key % 3 == 0) k[ca_rand_below(ctx, (uint32_t)p->hd)] *= 50.0f;
        ca_fill_normal(ctx, v, p->hd, ldexpf(1.0f, (int)ca_rand_below(ctx, 8) - 4));
        float dk = quantize_vector(ctx, k, p->hd, ik);
        float dv = ctx->ref->quantize_i16(v, p->hd, QW_ATTN_VALUE_MOST, 0.0f, 0.0f, iv);
        qw_attn_tile_set(p->tile[t].data, p->hd, key, ik, dk, iv, dv);
    }
}

/* hd: a multiple of QW_ATTN_UNIT if in integers */
static problem problem_new(ca_ctx *ctx, size_t hd, size_t n_q, bool ints, enum pattern pattern)
{
    float scale = pattern == FULL ? 0.3f : 1.0f;
    problem p = {.ints = ints, .hd = hd, .n_q = n_q, .q = ca_input_normal(ctx, n_q * hd, scale)};
    if (ints) {
        p.iq = ca_input_new(ctx, n_q * hd * sizeof(int16_t));
        p.dq = ca_input_new(ctx, n_q * sizeof(float));
        for (size_t i = 0; i < n_q; i++)
            ((float *)p.dq.data)[i] = quantize_vector(ctx, (float *)p.q.data + i * hd, hd, (int16_t *)p.iq.data + i * hd);
    }
    for (size_t t = 0; t < TILES; t++) {
        uint32_t most = 0;
        for (size_t i = 0; i < n_q; i++) {
            p.n_keys[t][i] = keys_of(ctx, pattern, t, i);
            if (p.n_keys[t][i] > most) most = p.n_keys[t][i];
        }
        (ints ? int_tile : float_tile)(ctx, &p, t, most);
    }
    return p;
}

static void problem_free(problem *p)
{
    for (size_t t = 0; t < TILES; t++) {
        if (p->ints) {
            ca_input_free(&p->tile[t]);
        } else {
            ca_input_free(&p->k[t]);
            ca_input_free(&p->v[t]);
        }
    }
    ca_input_free(&p->q);
    if (!p->ints) return;
    ca_input_free(&p->iq);
    ca_input_free(&p->dq);
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
    const uint32_t *n_keys = p->n_keys[tile] + from;
    float *m = (float *)st->m.data + from, *s = (float *)st->s.data + from, *o = (float *)st->o.data + from * p->hd;
    if (p->ints)
        t->attn_i16(p->tile[tile].data, tile + 1 < TILES ? p->tile[tile + 1].data : NULL, p->hd,
                    (const int16_t *)p->iq.data + from * p->hd, (const float *)p->dq.data + from, n, n_keys, m, s, o);
    else
        t->attn_f32(p->k[tile].data, p->v[tile].data, p->hd, (const float *)p->q.data + from * p->hd, n, n_keys, m, s, o);
}

static void expect_states(ca_ctx *ctx, const problem *p, const state *got, const state *want, const char *what)
{
    size_t shape = p->hd * 1000 + p->n_q;
    ca_expect_same(ctx, got->m.data, want->m.data, p->n_q, what, shape);
    ca_expect_same(ctx, got->s.data, want->s.data, p->n_q, what, shape);
    ca_expect_same(ctx, got->o.data, want->o.data, p->n_q * p->hd, what, shape);
    ca_check(ctx, ca_buf_intact(&got->m) && ca_buf_intact(&got->s) && ca_buf_intact(&got->o),
             "%s, head %zu, %zu queries: wrote outside", what, p->hd, p->n_q);
}

/* Element d of a query, of a key, of a value. */
static double query_at(const problem *p, size_t i, size_t d)
{
    if (!p->ints) return (double)((const float *)p->q.data)[i * p->hd + d];
    return (double)((const float *)p->dq.data)[i] * ((const int16_t *)p->iq.data)[i * p->hd + d];
}

static double key_at(const problem *p, size_t t, size_t key, size_t d)
{
    if (!p->ints) return (double)((const float *)p->k[t].data)[d * QW_KV_TILE + key];
    qw_attn_tile tile = qw_attn_tile_at(p->tile[t].data, p->hd);
    return (double)tile.dk[key] * tile.k[d / 2 * (2 * QW_KV_TILE) + 2 * key + d % 2];
}

static double value_at(const problem *p, size_t t, size_t key, size_t d)
{
    if (!p->ints) return (double)((const float *)p->v[t].data)[key * p->hd + d];
    qw_attn_tile tile = qw_attn_tile_at(p->tile[t].data, p->hd);
    return (double)tile.dv[key] * tile.v[key / 2 * (2 * p->hd) + 2 * d + key % 2];
}

/* One query of all tiles in double. */
typedef struct exact {
    size_t n, tile[TILES * QW_KV_TILE], key[TILES * QW_KV_TILE];
    double p[TILES * QW_KV_TILE], max, sum;
    double score_error; /* of a score, at most */
    double unit[TILES]; /* of integer weights: what one can be off by, times two */
} exact;

static exact exact_of(const problem *p, size_t i)
{
    exact e = {.max = -INFINITY};
    for (size_t t = 0; t < TILES; t++)
        for (size_t key = 0; key < p->n_keys[t][i]; key++, e.n++) {
            double size = 0, score = 0;
            for (size_t d = 0; d < p->hd; d++) {
                double term = query_at(p, i, d) * key_at(p, t, key, d);
                score += term;
                size += fabs(term);
            }
            e.tile[e.n] = t;
            e.key[e.n] = key;
            e.p[e.n] = score;
            e.score_error = fmax(e.score_error, (double)p->hd * U * size + 4 * U * fabs(score));
            e.max = fmax(e.max, score);
        }
    for (size_t j = 0; j < e.n; j++) {
        e.sum += e.p[j] = exp(e.p[j] - e.max);
        if (!p->ints) continue;
        qw_attn_tile tile = qw_attn_tile_at(p->tile[e.tile[j]].data, p->hd);
        double unit = e.p[j] * (double)tile.dv[e.key[j]] / QW_ATTN_WEIGHT_MOST;
        e.unit[e.tile[j]] = fmax(e.unit[e.tile[j]], unit);
    }
    return e;
}

/* The bound grows with the chain lengths and the size of the scores; a weight is off by half a unit. */
static void expect_near(ca_ctx *ctx, const problem *p, const state *st, size_t i)
{
    exact e = exact_of(p, i);
    const float *o = (const float *)st->o.data + i * p->hd;
    if (e.n == 0) return;
    double s = (double)((const float *)st->s.data)[i], worst = -1.0, error_at = 0;
    double bound = 2.0 * expm1(2.0 * e.score_error + 2.0 * fabs(e.max) * U) + ((double)e.n + 16.0 * TILES) * U;
    for (size_t d = 0; d < p->hd; d++) {
        double value = 0, size = 0, off = 0;
        for (size_t j = 0; j < e.n; j++) {
            double v = value_at(p, e.tile[j], e.key[j], d);
            value += e.p[j] * v;
            size += e.p[j] * fabs(v);
            if (!p->ints) continue;
            double dv = (double)qw_attn_tile_at(p->tile[e.tile[j]].data, p->hd).dv[e.key[j]];
            off += 0.5 * e.unit[e.tile[j]] * fabs(v) / dv;
        }
        double error = fabs((double)o[d] / s - value / e.sum) - (bound * size + (1.0 + bound) * off) / e.sum;
        if (error > worst) {
            worst = error;
            error_at = value / e.sum;
        }
    }
    ca_check(ctx, worst <= 0.0, "attention, head %zu, query %zu of %zu: %g beyond the bound near %g", p->hd, i, p->n_q,
             worst, error_at);
}

static void check_problem(ca_ctx *ctx, const problem *p, const char *what)
{
    size_t n_q = p->n_q;
    state want = state_new(n_q, p->hd), got = state_new(n_q, p->hd), alone = state_new(n_q, p->hd);
    state cut = state_new(n_q, p->hd);
    for (size_t t = 0; t < TILES; t++) {
        run_tile(ctx->ref, p, &want, t, 0, n_q);
        run_tile(ctx->t, p, &got, t, 0, n_q);
    }
    expect_states(ctx, p, &got, &want, what);
    /* Each query with all its tiles alone; then groups of a random size, tile by tile. */
    for (size_t i = 0; i < n_q; i++)
        for (size_t t = 0; t < TILES; t++) run_tile(ctx->t, p, &alone, t, i, 1);
    expect_states(ctx, p, &alone, &want, "attention, each query alone");
    for (size_t t = 0; t < TILES; t++)
        for (size_t i = 0, n = 0; i < n_q; i += n) {
            n = 1 + ca_rand_below(ctx, (uint32_t)(n_q - i));
            run_tile(ctx->t, p, &cut, t, i, n);
        }
    expect_states(ctx, p, &cut, &want, "attention, queries in random groups");
    for (size_t i = 0; i < n_q; i++) expect_near(ctx, p, &got, i);
    state_free(&want);
    state_free(&got);
    state_free(&alone);
    state_free(&cut);
}

static void check_attn(ca_ctx *ctx, size_t hd, size_t n_q, bool ints, enum pattern pattern)
{
    problem p = problem_new(ctx, hd, n_q, ints, pattern);
    check_problem(ctx, &p, ints ? "attn_i16" : "attn_f32");
    problem_free(&p);
}

/* Vectors with the largest norm there is, of equal elements or of two, all of one sign; all weights alike: no sum leaves
 * 32 bits. */
static void check_attn_limits(ca_ctx *ctx, size_t hd, bool two)
{
    problem p = problem_new(ctx, hd, 7, true, FULL);
    int16_t k[QW_HEAD_DIM_MAX] = {0}, v[QW_HEAD_DIM_MAX], *q = p.iq.data;
    for (size_t d = 0; d < hd; d++) {
        k[d] = (int16_t)(two ? (d < 2 ? QW_ATTN_NORM_MOST / sqrt(2.0) : 0.0) : QW_ATTN_NORM_MOST / sqrt((double)hd) + 0.5);
        v[d] = d % 2 ? QW_ATTN_VALUE_MOST : -QW_ATTN_VALUE_MOST;
    }
    for (size_t t = 0; t < TILES; t++)
        for (size_t key = 0; key < QW_KV_TILE; key++)
            qw_attn_tile_set(p.tile[t].data, hd, key, k, t == 1 ? -1.0f : 1.0f, v, 1.0f);
    for (size_t i = 0; i < 7; i++) {
        memcpy(q + i * hd, k, hd * sizeof *k);
        ((float *)p.dq.data)[i] = 0x1p-31f;
    }
    check_problem(ctx, &p, "attn_i16 at its limits");
    problem_free(&p);
}

/* No visible key: the state is not touched, whatever it holds. */
static void check_attn_untouched(ca_ctx *ctx, bool ints)
{
    problem p = problem_new(ctx, 64, 9, ints, RANDOM);
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

/* A key or value that is NaN (in integers: has a scale that is) spoils the queries that see it, and no other. */
static void check_attn_nan(ca_ctx *ctx, bool ints, bool in_value)
{
    problem p = problem_new(ctx, 64, 14, ints, FULL);
    for (size_t i = 0; i < 14; i++) p.n_keys[0][i] = i % 2 ? 40 : 30;
    if (ints)
        qw_attn_tile_at(p.tile[0].data, 64).dk[35] = NAN;
    else if (in_value)
        ((float *)p.v[0].data)[35 * 64 + 3] = NAN;
    else
        ((float *)p.k[0].data)[3 * QW_KV_TILE + 35] = NAN;
    state want = state_new(14, 64), got = state_new(14, 64);
    run_tile(ctx->ref, &p, &want, 0, 0, 14);
    run_tile(ctx->t, &p, &got, 0, 0, 14);
    expect_states(ctx, &p, &got, &want, "attention with a NaN");
    size_t wrong = 0;
    for (size_t i = 0; i < 14; i++) {
        float o = ((float *)got.o.data)[i * 64 + 3], s = ((float *)got.s.data)[i];
        wrong += isnan(o / s) != (int)(i % 2);
    }
    ca_check(ctx, wrong == 0, "attention with a NaN: %zu queries have it wrong", wrong);
    state_free(&want);
    state_free(&got);
    problem_free(&p);
}

/* Large scores: weights underflow to 0, nothing overflows. */
static void check_attn_extreme(ca_ctx *ctx, bool ints, float scale)
{
    problem p = problem_new(ctx, 64, 13, ints, RANDOM);
    for (size_t i = 0; i < 13 * 64; i++) ((float *)p.q.data)[i] *= scale;
    for (size_t i = 0; ints && i < 13; i++) ((float *)p.dq.data)[i] *= scale;
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

/* ---- the quantisation ------------------------------------------------------------------------------- */

static void check_quantize(ca_ctx *ctx, const float *x, size_t n, float most, float norm_most)
{
    ca_input in = ca_input_new(ctx, n * sizeof *x);
    memcpy(in.data, x, n * sizeof *x);
    ca_buf out = ca_buf_new(n * sizeof(int16_t), 2 * (n % 32));
    int16_t *want = calloc(n, sizeof *want), *got = out.data;
    float norm2 = 0.0f;
    if (norm_most > 0) ctx->ref->dot_f32(x, n, x, n, 1, &norm2, 1);
    float d_want = ctx->ref->quantize_i16(in.data, n, most, norm_most, norm2, want);
    float d = ctx->t->quantize_i16(in.data, n, most, norm_most, norm2, got);
    ca_check(ctx, memcmp(&d, &d_want, sizeof d) == 0 && memcmp(got, want, n * sizeof *got) == 0,
             "quantize_i16, n %zu, most %g: differs from the reference", n, (double)most);
    ca_check(ctx, ca_buf_intact(&out), "quantize_i16, n %zu: wrote outside", n);
    size_t wrong = 0;
    double norm = 0;
    for (size_t i = 0; i < n; i++) {
        double error = fabs((double)x[i] - (double)d * got[i]);
        wrong += abs(got[i]) > (int)most || (isfinite(x[i]) && d > 0 && error > (double)d * (0.5 + most * 4 * U));
        norm += (double)got[i] * got[i];
    }
    norm = sqrt(norm);
    /* 11 roundings at most in a sum of squares, then root, quotient and product; each quant is off by half */
    if (norm_most > 0) wrong += norm > (double)norm_most * (1 + 16 * U) + sqrt((double)n) / 2;
    ca_check(ctx, wrong == 0, "quantize_i16, n %zu, most %g: %zu elements are wrong, norm %g", n, (double)most, wrong, norm);
    free(want);
    ca_buf_free(&out);
    ca_input_free(&in);
}

static void check_quantization(ca_ctx *ctx)
{
    static const float specials[] = {NAN, INFINITY, -INFINITY, FLT_MAX, 0.0f, 1e-40f};
    static float x[300], zero[300];
    for (size_t n = 1; n <= 300; n += n < 40 ? 1 : 13)
        for (int vector = 0; vector < 2; vector++) {
            float most = vector ? QW_ATTN_MOST : QW_ATTN_VALUE_MOST, norm_most = vector ? QW_ATTN_NORM_MOST : 0.0f;
            ca_fill_normal(ctx, x, n, ldexpf(1.0f, (int)ca_rand_below(ctx, 100) - 50));
            check_quantize(ctx, x, n, most, norm_most);
            size_t at = ca_rand_below(ctx, (uint32_t)n);
            x[at] *= 100.0f;
            check_quantize(ctx, x, n, most, norm_most);
            x[at] = specials[ca_rand_below(ctx, 6)];
            check_quantize(ctx, x, n, most, norm_most);
            check_quantize(ctx, zero, n, most, norm_most);
        }
}

/* All slots of attention are those of the level below. */
static bool inherited(const ca_ctx *ctx)
{
    const qw_kernels *a = ctx->t, *b = ctx->below;
    return a->quantize_i16 == b->quantize_i16 && a->attn_i16 == b->attn_i16 && a->attn_f32 == b->attn_f32;
}

void check_attention(ca_ctx *ctx)
{
    static const size_t heads[] = {1, 8, 15, 16, 40, 64, 80, 100, 128, 255, 256};
    static const size_t queries[] = {1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 64};
    if (ctx->quick && inherited(ctx)) return;
    check_quantization(ctx);
    for (size_t h = 0; h < sizeof heads / sizeof heads[0]; h++)
        for (size_t n = 0; n < sizeof queries / sizeof queries[0]; n++) {
            bool common = heads[h] == 64 || heads[h] == 128;
            if (!common && queries[n] != 1 && queries[n] != 7 && queries[n] != 13) continue;
            for (int ints = 0; ints < 2; ints++)
                for (enum pattern pattern = FULL; pattern < N_PATTERNS; pattern++) {
                    if (ctx->quick && (h + n + pattern) % N_PATTERNS != 0) continue;
                    check_attn(ctx, ints ? qw_attn_padded(heads[h]) : heads[h], queries[n], ints, pattern);
                }
        }
    for (int ints = 0; ints < 2; ints++) {
        check_attn_untouched(ctx, ints);
        check_attn_nan(ctx, ints, false);
        check_attn_nan(ctx, ints, true);
        check_attn_extreme(ctx, ints, 1e4f);
        check_attn_extreme(ctx, ints, 1e30f);
        check_attn_extreme(ctx, ints, 1e-38f);
    }
    for (size_t hd = 16; hd <= QW_HEAD_DIM_MAX; hd *= 2) {
        check_attn_limits(ctx, hd, false);
        check_attn_limits(ctx, hd, true);
    }
}
