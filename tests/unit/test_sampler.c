/* test_sampler.c: from logits to a token, against a plain reference in double precision.
 *
 * The reference sorts, cuts and sums as the field defines top-k, top-p and min-p; with the published uniform number of
 * a draw it predicts the very token, which checks the kept set and its order exactly. Frequencies are checked apart
 * from it. All seeds are fixed and printed; nothing here needs a model.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/sampler.h"

enum { SEED = 20240905 };

static uint64_t rng_state;
static uint64_t rng(void)
{
    uint64_t z = rng_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}
static double rng_unit(void)
{
    return (double)(rng() >> 11) * 0x1.0p-53;
}

static qw_sampling plain(float temperature)
{
    return (qw_sampling){
        .temperature = temperature, .top_p = 1, .repetition_penalty = 1, .top_logprobs = -1, .seed = 7};
}

/* A sampler and the answer it draws for. */
typedef struct subject {
    uint32_t n_vocab;
    qw_sampler *sampler;
    qw_sampling_run *run;
} subject;

static subject *make(uint32_t n_vocab)
{
    subject *s = calloc(1, sizeof *s);
    qw_err err;
    assert_non_null(s);
    s->n_vocab = n_vocab;
    if (qw_sampler_create(n_vocab, &s->sampler, &err) != QW_OK) fail_msg("%s", err.text);
    return s;
}

static void destroy(subject *s)
{
    qw_sampler_destroy(s->sampler);
    qw_sampling_run_destroy(s->run);
    free(s);
}

static void begin(subject *s, const qw_sampling *p, const int32_t *prompt, size_t n_prompt)
{
    qw_err err;
    qw_sampling_run_destroy(s->run);
    if (qw_sampling_run_create(p, s->n_vocab, prompt, n_prompt, 1000, &s->run, &err) != QW_OK) fail_msg("%s", err.text);
}

/* One draw on a copy of the logits. */
static qw_sample draw_at(subject *s, const float *logits, size_t n, uint64_t position)
{
    qw_sample out;
    float *copy = malloc(n * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, logits, n * sizeof *copy);
    qw_sampler_draw(s->sampler, s->run, copy, position, &out);
    free(copy);
    assert_in_range(out.token, 0, n - 1);
    return out;
}

/* ---- reference -------------------------------------------------------------------------------- */

typedef struct ref_token {
    double logit, share;
    int32_t id;
} ref_token;

typedef struct reference {
    ref_token *kept; /* [n], owns; best first, shares sum to 1 */
    size_t n;
    bool borderline; /* a cut falls so near a threshold that rounding may decide it */
} reference;

static int best_first(const void *a, const void *b)
{
    const ref_token *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

static void normalise(reference *r)
{
    double sum = 0;
    for (size_t i = 0; i < r->n; i++) sum += r->kept[i].share;
    for (size_t i = 0; i < r->n; i++) r->kept[i].share /= sum;
}

/* Bias, penalties (counts may be NULL), temperature, top-k, top-p, min-p. */
static reference refer(const float *logits, size_t n, const qw_sampling *p, const uint8_t *seen, const uint32_t *counts)
{
    reference r = {.kept = calloc(n, sizeof *r.kept)};
    double *l = calloc(n, sizeof *l);
    assert_true(r.kept && l);
    for (size_t i = 0; i < n; i++) l[i] = (double)logits[i];
    for (size_t i = 0; i < p->n_bias; i++) {
        l[p->bias[i].token] = p->bias[i].bias <= -100 ? -INFINITY : l[p->bias[i].token] + (double)p->bias[i].bias;
    }
    for (size_t i = 0; i < n; i++) {
        double repeat = seen && seen[i] ? (double)p->repetition_penalty : 1;
        l[i] = l[i] > 0 ? l[i] / repeat : l[i] * repeat;
        if (counts && counts[i]) l[i] -= (double)p->presence_penalty + (double)p->frequency_penalty * counts[i];
        if (l[i] > -INFINITY) r.kept[r.n++] = (ref_token){.logit = l[i], .id = (int32_t)i};
    }
    free(l);
    qsort(r.kept, r.n, sizeof *r.kept, best_first);
    if (p->top_k > 0 && r.n > (size_t)p->top_k) r.n = (size_t)p->top_k;
    for (size_t i = 0; i < r.n; i++) {
        r.kept[i].share = exp((r.kept[i].logit - r.kept[0].logit) / (double)p->temperature);
    }
    normalise(&r);
    double cumulative = 0;
    for (size_t i = 0; p->top_p < 1 && i < r.n; i++) {
        cumulative += r.kept[i].share;
        if (fabs(cumulative - (double)p->top_p) < 1e-5) r.borderline = true;
        if (cumulative >= (double)p->top_p) r.n = i + 1;
    }
    size_t n_floor = 0;
    for (; n_floor < r.n; n_floor++) {
        double relative = r.kept[n_floor].share / r.kept[0].share;
        if (p->min_p > 0 && n_floor > 0 && fabs(relative / (double)p->min_p - 1) < 1e-5) r.borderline = true;
        if (n_floor > 0 && relative < (double)p->min_p) break;
    }
    r.n = n_floor;
    normalise(&r);
    return r;
}

/* The token that a uniform number picks, best first; -1 when it falls on the edge between two. */
static int32_t predict(const reference *r, double u)
{
    double cumulative = 0;
    for (size_t i = 0; i < r->n; i++) {
        cumulative += r->kept[i].share;
        if (i + 1 < r->n && fabs(u - cumulative) < 1e-5) return -1;
        if (u < cumulative || i + 1 == r->n) return r->kept[i].id;
    }
    return -1;
}

static bool is_kept(const reference *r, int32_t id)
{
    for (size_t i = 0; i < r->n; i++) {
        if (r->kept[i].id == id) return true;
    }
    return false;
}

/* Logits: a few shapes that stress different cuts. */
enum { SHAPE_SPREAD, SHAPE_FLAT, SHAPE_TIES, SHAPE_BANS, N_SHAPES };
static void fill_logits(float *logits, size_t n, int shape)
{
    for (size_t i = 0; i < n; i++) {
        double u = rng_unit(), v = rng_unit();
        double gauss = sqrt(-2 * log(u + 1e-300)) * cos(6.283185307179586 * v);
        switch (shape) {
        case SHAPE_SPREAD: logits[i] = (float)(3 * gauss); break;
        case SHAPE_FLAT: logits[i] = (float)(0.01 * gauss); break;
        case SHAPE_TIES: logits[i] = (float)floor(2 * gauss); break;
        default: logits[i] = i % 3 == 1 ? -INFINITY : (float)(2 * gauss); break;
        }
    }
}

/* ---- greedy ----------------------------------------------------------------------------------- */

static void test_greedy(void **state)
{
    (void)state;
    enum { N = 300 };
    float logits[N];
    subject *s = make(N);
    qw_sampling p = plain(0);
    p.top_k = 3; /* cuts mean nothing to greedy */
    p.top_p = 0.1f;
    begin(s, &p, NULL, 0);
    rng_state = SEED;
    for (int round = 0; round < 200; round++) {
        fill_logits(logits, N, round % N_SHAPES);
        size_t best = 0;
        for (size_t i = 1; i < N; i++) {
            if (logits[i] > logits[best]) best = i; /* the first of equals */
        }
        assert_int_equal(draw_at(s, logits, N, (uint64_t)round).token, best);
    }
    for (size_t i = 0; i < N; i++) logits[i] = 1;
    assert_int_equal(draw_at(s, logits, N, 0).token, 0);
    logits[17] = logits[41] = 2;
    assert_int_equal(draw_at(s, logits, N, 0).token, 17);
    destroy(s);
}

/* A temperature so small that its reciprocal is no float is still the greedy choice, ties by draw. */
static void test_tiny_temperature(void **state)
{
    (void)state;
    const float logits[] = {1, 5, -2, 4.999f, 0};
    static const float tiny[] = {1e-3f, 1e-20f, 1e-38f, 1e-40f, 1e-45f};
    static const float top_p[] = {1, 0.9f};
    subject *s = make(5);
    for (size_t t = 0; t < sizeof tiny / sizeof *tiny; t++) {
        for (int cut = 0; cut < 4; cut++) {
            qw_sampling p = plain(tiny[t]);
            p.top_p = top_p[cut % 2];
            p.top_k = cut / 2 * 3;
            assert_int_equal(qw_sampling_check(&p, 5, NULL), QW_OK);
            begin(s, &p, NULL, 0);
            for (uint64_t i = 0; i < 100; i++) {
                int32_t token = draw_at(s, logits, 5, i).token;
                if (t > 0 && token != 1) fail_msg("temperature %g drew token %d", (double)tiny[t], token);
            }
        }
    }
    destroy(s);
}

/* ---- cuts ------------------------------------------------------------------------------------- */

static void check_cuts(subject *s, const float *logits, size_t n, const qw_sampling *p, size_t *n_checked)
{
    reference r = refer(logits, n, p, NULL, NULL);
    /* without any cut the order is free: frequencies are checked below */
    bool cut = (p->top_k > 0 && (size_t)p->top_k < n) || p->top_p < 1 || p->min_p > 0;
    begin(s, p, NULL, 0);
    for (uint64_t i = 0; i < 60 && !r.borderline; i++) {
        uint64_t position = rng() % 100000;
        int32_t want = predict(&r, qw_sampler_uniform(p->seed, position));
        int32_t got = draw_at(s, logits, n, position).token;
        if (!is_kept(&r, got) || (cut && want >= 0 && got != want)) {
            fail_msg("n %zu temperature %g top_k %d top_p %g min_p %g: token %d, the reference draws %d of %zu kept", n,
                     (double)p->temperature, p->top_k, (double)p->top_p, (double)p->min_p, got, want, r.n);
        }
        *n_checked += want >= 0;
    }
    free(r.kept);
}

static void test_kept_set(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 2, 7, 128, 129, 700, 5000};
    static const float temperatures[] = {0.3f, 0.7f, 1, 2.5f};
    static const int32_t top_k[] = {0, 1, 2, 20, 129, 1000000};
    static const float top_p[] = {1, 0, 0.3f, 0.8f, 0.999f};
    static const float min_p[] = {0, 0.02f, 0.5f, 1};
    size_t n_checked = 0;
    rng_state = SEED;
    for (size_t size = 0; size < sizeof sizes / sizeof *sizes; size++) {
        size_t n = sizes[size];
        float *logits = malloc(n * sizeof *logits);
        subject *s = make((uint32_t)n);
        for (size_t i = 0; i < 4 * 6 * 5 * 4; i++) {
            qw_sampling p = plain(temperatures[i % 4]);
            if (n > 700 && rng() % 6 != 0) continue; /* a sixth is enough there */
            p.top_k = top_k[i / 4 % 6];
            p.top_p = top_p[i / 24 % 5];
            p.min_p = min_p[i / 120];
            p.seed = rng();
            fill_logits(logits, n, (int)(i % 31 % N_SHAPES));
            check_cuts(s, logits, n, &p, &n_checked);
        }
        destroy(s);
        free(logits);
    }
    printf("seed %d: %zu draws predicted\n", SEED, n_checked);
    assert_true(n_checked > 60000);
}

/* Many draws: each kept token as often as its share says, within five standard deviations. */
static void test_frequencies(void **state)
{
    (void)state;
    enum { N = 9, DRAWS = 60000 };
    const float logits[N] = {0.5f, -1, 2, 1.5f, 0, 2, -0.5f, 1, -3};
    const qw_sampling cases[] = {
        {.temperature = 1, .top_p = 1},
        {.temperature = 0.6f, .top_p = 1},
        {.temperature = 1.7f, .top_p = 1, .top_k = 4},
        {.temperature = 1, .top_p = 0.75f},
        {.temperature = 1, .top_p = 1, .min_p = 0.2f},
        {.temperature = 0.9f, .top_p = 0.9f, .top_k = 6, .min_p = 0.05f},
    };
    subject *s = make(N);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        qw_sampling p = cases[c];
        uint32_t hits[N] = {0};
        p.repetition_penalty = 1;
        p.top_logprobs = -1;
        reference r = refer(logits, N, &p, NULL, NULL);
        for (uint64_t i = 0; i < DRAWS; i++) {
            if (i % 1000 == 0) { /* 60 seeds, 1000 positions each */
                p.seed = i * 977 + c;
                begin(s, &p, NULL, 0);
            }
            hits[draw_at(s, logits, N, i % 1000).token]++;
        }
        for (size_t i = 0; i < r.n; i++) {
            double want = r.kept[i].share * DRAWS, sigma = sqrt(want * (1 - r.kept[i].share));
            if (fabs(hits[r.kept[i].id] - want) > 5 * sigma + 1e-9) {
                fail_msg("case %zu token %d: %u draws of %d, want %.0f", c, r.kept[i].id, hits[r.kept[i].id], DRAWS,
                         want);
            }
            hits[r.kept[i].id] = 0;
        }
        for (size_t i = 0; i < N; i++) assert_int_equal(hits[i], 0); /* nothing outside the kept set */
        free(r.kept);
    }
    destroy(s);
}

/* ---- randomness ------------------------------------------------------------------------------- */

static void test_uniform(void **state)
{
    (void)state;
    enum { N = 200000, BUCKETS = 100 };
    /* by position, by seed, by both */
    for (int along = 0; along < 3; along++) {
        uint32_t buckets[BUCKETS] = {0};
        double sum = 0, product = 0, last = 0.5;
        for (uint64_t i = 0; i < N; i++) {
            double u = qw_sampler_uniform(along == 0 ? 42 : i, along == 1 ? 42 : i);
            assert_true(u >= 0 && u < 1);
            buckets[(int)(u * BUCKETS)]++;
            sum += u;
            product += (u - 0.5) * (last - 0.5);
            last = u;
        }
        double chi2 = 0, want = (double)N / BUCKETS;
        for (int b = 0; b < BUCKETS; b++) chi2 += (buckets[b] - want) * (buckets[b] - want) / want;
        assert_true(fabs(sum / N - 0.5) < 5 * 0.2887 / sqrt(N));
        assert_true(fabs(product / N) < 5 * 0.0834 / sqrt(N)); /* neighbours are not related */
        assert_true(chi2 > 50 && chi2 < 170);                 /* 99 degrees of freedom */
    }
    static const uint64_t extremes[] = {0, 1, 2, UINT64_MAX - 1, UINT64_MAX, 0x123456789abcdef0};
    for (size_t i = 0; i < 36; i++) {
        double u = qw_sampler_uniform(extremes[i / 6], extremes[i % 6]);
        assert_true(u >= 0 && u < 1);
        for (size_t j = 0; j < i; j++) assert_true(u != qw_sampler_uniform(extremes[j / 6], extremes[j % 6]));
    }
}

/* A draw depends on (seed, position) alone: not on what was drawn before, nor on which sampler draws. */
static void test_order_of_draws(void **state)
{
    (void)state;
    enum { N = 400, DRAWS = 500 };
    float logits[N];
    int32_t forward[DRAWS];
    subject *a = make(N), *b = make(N);
    qw_sampling p = plain(1), other = plain(1.3f);
    size_t n_same = 0;
    other.seed = 8;
    rng_state = SEED;
    fill_logits(logits, N, SHAPE_SPREAD);
    begin(a, &p, NULL, 0);
    for (uint64_t i = 0; i < DRAWS; i++) forward[i] = draw_at(a, logits, N, i).token;
    begin(b, &other, NULL, 0);
    for (uint64_t i = 0; i < DRAWS; i++) n_same += draw_at(b, logits, N, i).token == forward[i];
    assert_true(n_same < DRAWS / 2);
    begin(b, &p, NULL, 0);
    for (uint64_t i = DRAWS; i-- > 0;) assert_int_equal(draw_at(b, logits, N, i).token, forward[i]);
    for (uint64_t i = 0; i < DRAWS; i += 7) assert_int_equal(draw_at(b, logits, N, i).token, forward[i]);
    destroy(a);
    destroy(b);
}

/* ---- penalties, bias -------------------------------------------------------------------------- */

/* Greedy choice and kept set after a prompt and some accepted tokens. */
static void check_penalties(subject *s, const qw_sampling *p, size_t n, size_t n_prompt, size_t n_answer)
{
    float *logits = malloc(n * sizeof *logits);
    uint8_t *seen = calloc(n, 1);
    uint32_t *counts = calloc(n, sizeof *counts);
    int32_t *prompt = calloc(n_prompt + 1, sizeof *prompt);
    for (size_t i = 0; i < n_prompt; i++) seen[prompt[i] = (int32_t)(rng() % n)] = 1;
    begin(s, p, prompt, n_prompt);
    for (size_t i = 0; i < n_answer; i++) {
        int32_t token = (int32_t)(rng() % n);
        seen[token] = 1;
        counts[token]++;
        qw_sampling_run_accept(s->run, token);
    }
    fill_logits(logits, n, SHAPE_SPREAD);
    reference r = refer(logits, n, p, seen, counts);
    for (uint64_t i = 0; i < 40; i++) {
        int32_t want = p->temperature == 0 ? r.kept[0].id : predict(&r, qw_sampler_uniform(p->seed, i));
        int32_t got = draw_at(s, logits, n, i).token;
        if (want >= 0 && got != want) {
            fail_msg("after %zu prompt and %zu answer tokens: %d, want %d", n_prompt, n_answer, got, want);
        }
    }
    free(r.kept);
    free(logits);
    free(seen);
    free(counts);
    free(prompt);
}

static void test_penalties(void **state)
{
    (void)state;
    enum { N = 60 };
    static const qw_sampling cases[] = {
        {.repetition_penalty = 1.3f},
        {.repetition_penalty = 0.8f},
        {.repetition_penalty = 1, .presence_penalty = 1.5f},
        {.repetition_penalty = 1, .frequency_penalty = 0.7f},
        {.repetition_penalty = 1, .presence_penalty = -1, .frequency_penalty = -0.5f},
        {.repetition_penalty = 1.05f, .presence_penalty = 0.5f, .frequency_penalty = 0.5f},
    };
    subject *s = make(N);
    rng_state = SEED;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        for (int round = 0; round < 40; round++) { /* one sampler throughout: begin forgets the last answer */
            qw_sampling p = cases[c];
            p.temperature = round % 2 ? 0 : 0.9f;
            p.top_k = 30;
            p.top_p = 1;
            p.top_logprobs = -1;
            p.seed = rng();
            check_penalties(s, &p, N, rng() % 40, rng() % 40);
        }
    }
    destroy(s);
}

/* Worked by hand: presence and frequency look at the answer alone, repetition at both. */
static void test_penalties_by_hand(void **state)
{
    (void)state;
    const float logits[] = {4, 3.5f, -1, 3, 2.9f};
    const int32_t prompt[] = {0, 0, 0};
    subject *s = make(5);
    qw_sampling p = plain(0);
    p.presence_penalty = 2;
    begin(s, &p, prompt, 3);
    assert_int_equal(draw_at(s, logits, 5, 3).token, 0); /* in the prompt only: no presence penalty */
    qw_sampling_run_accept(s->run, 0);
    assert_int_equal(draw_at(s, logits, 5, 4).token, 1); /* 4 - 2 < 3.5 */
    p.presence_penalty = 0;
    p.frequency_penalty = 0.3f;
    begin(s, &p, prompt, 3);
    qw_sampling_run_accept(s->run, 0);
    assert_int_equal(draw_at(s, logits, 5, 4).token, 0); /* 3.7 */
    qw_sampling_run_accept(s->run, 0);
    assert_int_equal(draw_at(s, logits, 5, 5).token, 1); /* 3.4 < 3.5 */
    p.frequency_penalty = 0;
    p.repetition_penalty = 1.25f;
    begin(s, &p, prompt, 3);
    assert_int_equal(draw_at(s, logits, 5, 3).token, 1); /* 4 / 1.25 = 3.2, once for the prompt */
    qw_sampling_run_accept(s->run, 1);
    assert_int_equal(draw_at(s, logits, 5, 4).token, 0); /* 3.5 / 1.25 = 2.8; 0 is still 3.2 */
    const float negative[] = {-4, -4.5f, -9};
    destroy(s);
    s = make(3);
    begin(s, &p, prompt, 3);
    assert_int_equal(draw_at(s, negative, 3, 3).token, 1); /* -4 * 1.25 = -5 */
    destroy(s);
}

static void test_bias(void **state)
{
    (void)state;
    enum { N = 40 };
    float logits[N];
    subject *s = make(N);
    rng_state = SEED;
    for (int round = 0; round < 300; round++) {
        qw_logit_bias bias[12];
        qw_sampling p = plain(round % 3 ? 1.0f : 0);
        p.top_p = 0.95f;
        p.n_bias = (size_t)(rng() % 12);
        p.bias = bias;
        p.seed = rng();
        fill_logits(logits, N, SHAPE_SPREAD);
        for (size_t i = 0; i < p.n_bias; i++) {
            static const float values[] = {-100, -101, -99, 5, -5, 100, 0.5f};
            bias[i] = (qw_logit_bias){.token = (int32_t)(rng() % N), .bias = values[rng() % 7]};
        }
        reference r = refer(logits, N, &p, NULL, NULL);
        begin(s, &p, NULL, 0);
        for (uint64_t i = 0; i < 30; i++) {
            int32_t want = p.temperature == 0 ? r.kept[0].id : predict(&r, qw_sampler_uniform(p.seed, i));
            int32_t got = draw_at(s, logits, N, i).token;
            if (!r.borderline && want >= 0) assert_int_equal(got, want);
            assert_true(is_kept(&r, got) || r.borderline || p.temperature == 0);
        }
        free(r.kept);
    }
    destroy(s);
}

/* The caller's array may go away after begin. */
static void test_bias_is_copied(void **state)
{
    (void)state;
    const float logits[] = {0, 1, 2};
    qw_logit_bias bias[] = {{2, -100}, {1, -100}};
    subject *s = make(3);
    qw_sampling p = plain(1);
    p.bias = bias;
    p.n_bias = 2;
    begin(s, &p, NULL, 0);
    memset(bias, 0, sizeof bias);
    for (uint64_t i = 0; i < 50; i++) assert_int_equal(draw_at(s, logits, 3, i).token, 0);
    destroy(s);
}

/* Everything banned, or no number at all: still a token of the vocabulary, the same each time. */
static void test_nothing_to_choose(void **state)
{
    (void)state;
    const float values[] = {-INFINITY, NAN};
    subject *s = make(4);
    for (size_t v = 0; v < 2; v++) {
        float logits[4] = {values[v], values[v], values[v], values[v]};
        for (int i = 0; i < 6; i++) {
            qw_sampling p = plain(i % 2 ? 1.0f : 0);
            p.top_k = i / 2 == 1 ? 2 : 0;
            p.top_p = i / 2 == 2 ? 0.5f : 1;
            begin(s, &p, NULL, 0);
            int32_t first = draw_at(s, logits, 4, 0).token;
            for (uint64_t j = 1; j < 20; j++) assert_int_equal(draw_at(s, logits, 4, j).token, first);
        }
    }
    qw_logit_bias bias[4] = {{0, -100}, {1, -100}, {2, -100}, {3, -100}};
    const float finite[4] = {1, 2, 3, 4};
    qw_sampling p = plain(1);
    p.bias = bias;
    p.n_bias = 4;
    begin(s, &p, NULL, 0);
    (void)draw_at(s, finite, 4, 0);
    /* one token that is no number does not hide the others */
    const float mixed[4] = {NAN, 1, 3, NAN};
    p = plain(0);
    begin(s, &p, NULL, 0);
    assert_int_equal(draw_at(s, mixed, 4, 0).token, 2);
    destroy(s);
}

/* ---- log-probabilities ------------------------------------------------------------------------ */

/* Of the model's own distribution, whatever bias, penalties and temperature did to the choice. */
static void test_logprobs(void **state)
{
    (void)state;
    enum { N = 500 };
    float logits[N];
    qw_logit_bias bias[] = {{3, 50}, {4, -100}};
    const int32_t prompt[] = {1, 2, 3};
    subject *s = make(N);
    rng_state = SEED;
    for (int round = 0; round < 120; round++) {
        qw_sampling p = {.temperature = round % 2 ? 0 : 1.4f, .top_p = 0.9f, .top_k = 10, .repetition_penalty = 1.5f,
                         .bias = bias, .n_bias = 2, .seed = rng(), .top_logprobs = round % 22 - 1};
        fill_logits(logits, N, round % N_SHAPES);
        double total = 0;
        for (size_t i = 0; i < N; i++) total += exp((double)logits[i]);
        qw_sampling model = plain(1);
        reference r = refer(logits, N, &model, NULL, NULL);
        begin(s, &p, prompt, 3);
        qw_sample got = draw_at(s, logits, N, 5);
        if (p.top_logprobs < 0) {
            assert_int_equal(got.n_top, 0);
            assert_true(got.logprob == 0);
        } else {
            double want = (double)logits[got.token] - log(total);
            assert_true(isinf(want) ? got.logprob == -INFINITY : fabs((double)got.logprob - want) < 1e-4);
            assert_int_equal(got.n_top, p.top_logprobs);
        }
        for (size_t i = 0; i < got.n_top; i++) {
            assert_int_equal(got.top[i].token, r.kept[i].id); /* best first, ties to the lower id */
            assert_true(fabs((double)got.top[i].logprob - log(r.kept[i].share)) < 1e-4);
        }
        /* asking for log-probabilities changes no choice */
        p.top_logprobs = -1;
        begin(s, &p, prompt, 3);
        assert_int_equal(draw_at(s, logits, N, 5).token, got.token);
        free(r.kept);
    }
    destroy(s);
}

/* Fewer tokens than asked for. */
static void test_few_logprobs(void **state)
{
    (void)state;
    const float logits[] = {1, -INFINITY, 2};
    subject *s = make(3);
    qw_sampling p = plain(0);
    p.top_logprobs = 20;
    begin(s, &p, NULL, 0);
    qw_sample got = draw_at(s, logits, 3, 0);
    assert_int_equal(got.n_top, 2);
    assert_int_equal(got.top[0].token, 2);
    assert_int_equal(got.top[1].token, 0);
    destroy(s);
}

/* ---- parameters ------------------------------------------------------------------------------- */

static void test_parameter_errors(void **state)
{
    (void)state;
    const qw_sampling good = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .top_logprobs = -1};
    const qw_logit_bias low = {-1, 0}, high = {100, 0}, nan_bias = {5, NAN}, inf_bias = {5, INFINITY},
                        huge_bias = {5, 3e38f};
#define GOOD .temperature = 1, .top_p = 1, .repetition_penalty = 1, .top_logprobs = -1
#define WITH(field, value) {#field, {GOOD, .field = value}}
#define WITH_BIAS(b) {"logit_bias", {GOOD, .bias = &b, .n_bias = 1}}
    /* the later initialiser of a field wins, which is what the table is about */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init"
    const struct {
        const char *field;
        qw_sampling p;
    } bad[] = {
        WITH(temperature, -0.1f), WITH(temperature, 101), WITH(temperature, NAN), WITH(temperature, INFINITY),
        WITH(top_k, -1), WITH(top_p, -0.1f), WITH(top_p, 1.1f), WITH(top_p, NAN),
        WITH(min_p, -0.1f), WITH(min_p, 1.5f), WITH(min_p, NAN),
        WITH(repetition_penalty, 0), WITH(repetition_penalty, -1), WITH(repetition_penalty, 1000),
        WITH(repetition_penalty, NAN), WITH(presence_penalty, 101), WITH(presence_penalty, NAN),
        WITH(frequency_penalty, -101), WITH(frequency_penalty, NAN),
        WITH(top_logprobs, -2), WITH(top_logprobs, 21),
        WITH_BIAS(low), WITH_BIAS(high), WITH_BIAS(nan_bias), WITH_BIAS(inf_bias), WITH_BIAS(huge_bias),
    };
#pragma GCC diagnostic pop
    qw_err err = {0};
    assert_int_equal(qw_sampling_check(&good, 100, &err), QW_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(&err, 0, sizeof err);
        if (qw_sampling_check(&bad[i].p, 100, &err) != QW_E_ARG || !strstr(err.text, bad[i].field)) {
            fail_msg("row %zu, %s: status %d, '%s'", i, bad[i].field, (int)err.status, err.text);
        }
    }
    static qw_logit_bias many[QW_LOGIT_BIAS_MAX + 1];
    qw_sampling p = good;
    p.bias = many;
    p.n_bias = QW_LOGIT_BIAS_MAX;
    assert_int_equal(qw_sampling_check(&p, 100, &err), QW_OK);
    p.n_bias++;
    assert_int_equal(qw_sampling_check(&p, 100, &err), QW_E_ARG);
    assert_non_null(strstr(err.text, "logit_bias"));
    assert_non_null(strstr(err.text, "301"));
    /* the edges are inside */
    p = (qw_sampling){.temperature = 100, .top_p = 0, .min_p = 1, .repetition_penalty = 100, .presence_penalty = -100,
                      .frequency_penalty = 100, .top_k = INT32_MAX, .top_logprobs = 20};
    assert_int_equal(qw_sampling_check(&p, 100, &err), QW_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),           cmocka_unit_test(test_tiny_temperature),
        cmocka_unit_test(test_kept_set),         cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_uniform),          cmocka_unit_test(test_order_of_draws),
        cmocka_unit_test(test_penalties),        cmocka_unit_test(test_penalties_by_hand),
        cmocka_unit_test(test_bias),             cmocka_unit_test(test_bias_is_copied),
        cmocka_unit_test(test_nothing_to_choose), cmocka_unit_test(test_logprobs),
        cmocka_unit_test(test_few_logprobs),     cmocka_unit_test(test_parameter_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
