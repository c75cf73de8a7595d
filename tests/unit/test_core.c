/* test_core.c: the engine's step on the simulation's fake model: shares of owners, who is asked for guesses, and requests that
 * nobody reads.
 *
 * tests/sim plays everything at random; here are the cases that have a number of their own.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "../sim/model.h"

enum { CONTEXT = 512, ROWS_MAX = 128, BACKLOG = 6, OWNERS = 3, PENDING = 6, STEPS_MAX = 100000 };

typedef struct world {
    sim_model *model;
    qw_core *core;
    qw_event_queue events;
    int64_t now_us;
    uint64_t next_id;
    uint32_t n_live;
    qw_job *newest;
    uint32_t n_asks;      /* for guesses, in the last step; */
    qw_guess_ask asks[8]; /* those */
} world;

/* ---- a core ----------------------------------------------------------------------------------- */

static void forward(void *ctx, const qw_row *rows, size_t n)
{
    world *w = ctx;
    w->model->forward(w->model, rows, n);
    w->now_us += w->model->cost_us(n);
}

static void logits(void *ctx, const uint32_t *rows, size_t n, float *out, size_t ld)
{
    world *w = ctx;
    w->model->logits(w->model, rows, n, out, ld);
}

static bool never_fails(void *ctx, qw_err *err)
{
    (void)ctx;
    (void)err;
    return false;
}

static int64_t clock_us(void *ctx)
{
    return ((world *)ctx)->now_us;
}

static void job_ended(void *ctx, qw_job *job)
{
    ((world *)ctx)->n_live--;
    qw_job_free(job);
}

static void begin_lane(void *ctx, uint32_t lane, const qw_job *job, uint32_t n)
{
    (void)ctx;
    (void)lane;
    (void)job;
    (void)n;
}

static void advance_lane(void *ctx, uint32_t lane, uint32_t n)
{
    (void)ctx;
    (void)lane;
    (void)n;
}

/* One guess, right or wrong. */
static uint32_t guess_one(void *ctx, uint32_t lane, const qw_guess_ask *ask, int32_t *out, double *n_expected)
{
    world *w = ctx;
    assert_true(w->n_asks < sizeof w->asks / sizeof *w->asks);
    w->asks[w->n_asks++] = *ask;
    *out = (int32_t)lane;
    *n_expected = 1.5;
    return 1;
}

static world *open_world(uint64_t seed, uint32_t n_lanes, bool guesses)
{
    world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->model = sim_fake_model();
    w->now_us = 1;
    assert_int_equal(qw_events_init(&w->events, BACKLOG, NULL), QW_OK);
    const qw_core_options o = {
        .compute = {.ctx = w, .forward = forward, .logits = logits, .failed = never_fails, .clock_us = clock_us},
        .guesser = {.ctx = w, .begin = begin_lane, .guess = guesses ? guess_one : NULL, .advance = advance_lane},
        .pool = w->model->open_run(w->model, seed, 40 * n_lanes, 2 * n_lanes + 4, ROWS_MAX, CONTEXT), .events = &w->events,
        .n_vocab = w->model->n_vocab, .context = CONTEXT, .n_lanes = n_lanes, .n_rows_max = ROWS_MAX, .n_snapshots = 4,
        .us_per_row = 500, .key = {{seed, 2}}, .ended = job_ended, .ended_ctx = w};
    assert_int_equal(qw_core_create(&o, &w->core, NULL), QW_OK);
    return w;
}

static void close_world(world *w)
{
    qw_core_destroy(w->core);
    w->model->close_run(w->model); /* asserts that every page and slot came back */
    qw_events_free(&w->events);
    free(w);
}

static const qw_sampling greedy = {.top_p = 1, .repetition_penalty = 1, .top_logprobs = -1};

/* A request for so many tokens; its prompt is like no other. Returns its id. */
static uint64_t ask(world *w, uint8_t owner, uint32_t weight, uint32_t n_prompt, uint32_t n, void *user)
{
    qw_job *job = calloc(1, sizeof *job);
    assert_non_null(job);
    job->id = ++w->next_id;
    job->user = user;
    job->n_tokens = n_prompt;
    job->n_tokens_max = n_prompt + n;
    job->tokens = calloc(job->n_tokens_max, sizeof *job->tokens);
    for (uint32_t i = 0; i < n_prompt; i++) job->tokens[i] = (int32_t)(sim_mix(job->id, i) % w->model->n_vocab);
    job->max_tokens = n;
    job->owner[0] = owner;
    job->weight = weight;
    job->submitted_us = w->now_us;
    assert_int_equal(qw_feed_create(&job->feed, NULL), QW_OK);
    qw_events_open(&w->events, job->feed, job->id);
    assert_int_equal(qw_sampling_run_create(&greedy, w->model->n_vocab, job->tokens, n_prompt, n, &job->draws, NULL), QW_OK);
    w->n_live++;
    w->newest = job;
    qw_core_add(w->core, job);
    return w->next_id;
}

/* ---- shares ----------------------------------------------------------------------------------- */

typedef struct owner {
    uint8_t name;
    uint32_t weight, n_prompt, n_answer;
    uint64_t rows; /* computed for its requests that ended */
} owner;

/* All of them always have more to ask than runs at a time. Rows that each got, of `total`. */
static void share(owner *owners, size_t n, uint32_t n_lanes, uint64_t total)
{
    world *w = open_world(7, n_lanes, false);
    qw_event ev;
    uint64_t rows = 0;
    for (size_t i = 0; i < n; i++) {
        owners[i].rows = 0;
        owners[i].name = (uint8_t)i;
        for (int k = 0; k < PENDING; k++)
            ask(w, owners[i].name, owners[i].weight, owners[i].n_prompt, owners[i].n_answer, &owners[i]);
    }
    for (uint32_t step = 0; rows < total; step++) {
        assert_true(step < STEPS_MAX);
        qw_core_step(w->core);
        while (qw_events_poll(&w->events, 0, &ev)) {
            owner *o = ev.user;
            if (!qw_event_is_terminal(&ev)) continue;
            assert_int_equal(ev.finish, QW_FINISH_LENGTH);
            o->rows += ev.usage.computed_tokens;
            rows += ev.usage.computed_tokens;
            ask(w, o->name, o->weight, o->n_prompt, o->n_answer, o);
        }
    }
    close_world(w);
}

/* Of its due, which is its weight's share of all, an owner gets between 95 and 105 of a hundred. */
static void assert_shares(const owner *owners, size_t n)
{
    uint64_t rows = 0, weights = 0;
    for (size_t i = 0; i < n; i++) {
        rows += owners[i].rows;
        weights += owners[i].weight ? owners[i].weight : 1;
    }
    for (size_t i = 0; i < n; i++) {
        double due = (double)rows * (owners[i].weight ? owners[i].weight : 1) / (double)weights;
        if ((double)owners[i].rows > 0.95 * due && (double)owners[i].rows < 1.05 * due) continue;
        fail_msg("owner %zu of weight %u got %llu of %llu rows", i, owners[i].weight, (unsigned long long)owners[i].rows,
                 (unsigned long long)rows);
    }
}

static void test_weights(void **state)
{
    (void)state;
    enum { ROWS = 200000 };
    owner cases[][OWNERS] = {
        {{.weight = 3, .n_prompt = 100, .n_answer = 20}, {.weight = 1, .n_prompt = 100, .n_answer = 20}},
        {{.weight = 3, .n_prompt = 200, .n_answer = 50}, {.weight = 1, .n_prompt = 20, .n_answer = 5}},
        {{.weight = 3, .n_prompt = 20, .n_answer = 5}, {.weight = 1, .n_prompt = 200, .n_answer = 50}},
        {{.weight = 0, .n_prompt = 100, .n_answer = 20}, {.weight = 1, .n_prompt = 30, .n_answer = 20}}, /* 0 is 1 */
        {{.weight = 1, .n_prompt = 50, .n_answer = 9}, {.weight = 2, .n_prompt = 90, .n_answer = 20},
         {.weight = 5, .n_prompt = 70, .n_answer = 30}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = cases[i][2].n_prompt ? 3 : 2;
        for (uint32_t n_lanes = 1; n_lanes <= 2; n_lanes++) {
            share(cases[i], n, n_lanes, ROWS);
            assert_shares(cases[i], n);
        }
    }
}

/* ---- guesses ----------------------------------------------------------------------------------- */

static void take_step(world *w)
{
    qw_event ev;
    w->n_asks = 0;
    qw_core_step(w->core);
    qw_core_check(w->core);
    while (qw_events_poll(&w->events, 0, &ev)) {}
}

/* Who guesses is told of all that shares the pass, of answers that come after, too; and guesses keep no prompt waiting. */
static void test_guesses(void **state)
{
    (void)state;
    enum { ANSWERS = 4, LANES = 5, N_PROMPT = 60, N = 200 };
    for (uint64_t seed = 1; seed <= 8; seed++) { /* with recurrent state and without */
        world *w = open_world(seed, LANES, true);
        for (int i = 0; i < ANSWERS; i++) ask(w, 1, 1, N_PROMPT, N, NULL);
        for (int k = 0; w->n_asks < ANSWERS; k++) {
            assert_true(k < 20);
            take_step(w);
        }
        assert_int_equal(w->n_asks, ANSWERS);
        for (uint32_t i = 0; i < ANSWERS; i++) {
            assert_true(w->asks[i].n_rows >= ANSWERS - 1 + i); /* the others' newest tokens, and a guess of each before */
            assert_true(w->asks[i].n_expected == 1.5 * i + (ANSWERS - 1 - i)); /* exact in binary */
        }
        ask(w, 2, 1, N_PROMPT, N, NULL);
        take_step(w); /* its prompt is in the pass */
        assert_int_equal(w->n_asks, 0);
        ask(w, 3, 1, N_PROMPT, N, NULL); /* waits for a lane: nothing of it could be computed */
        take_step(w);
        assert_int_equal(w->n_asks, LANES);
        close_world(w);
    }
}

/* ---- readers that stay away ------------------------------------------------------------------- */

typedef struct reader {
    int32_t tokens[CONTEXT];
    uint32_t n;
    bool ended;
    qw_finish finish;
} reader;

static void read_all(world *w, uint64_t id, reader *r)
{
    qw_event ev;
    while (qw_events_poll_one(&w->events, id, 0, &ev)) {
        assert_false(r->ended);
        for (size_t i = 0; i < ev.n_tokens; i++) r->tokens[r->n++] = ev.tokens[i].token;
        r->ended = qw_event_is_terminal(&ev);
        r->finish = ev.finish;
    }
}

/* Steps until the reader's answer is whole. */
static void finish(world *w, uint64_t id, reader *r)
{
    for (int step = 0; !r->ended; step++) {
        assert_true(step < 1000);
        assert_int_not_equal(qw_core_step(w->core), QW_STEP_WAITS);
        qw_core_check(w->core);
        read_all(w, id, r);
    }
}

/* The answer is the one that is computed for the prompt of this request alone. */
static void assert_alone(const world *w, uint64_t id, uint32_t n_prompt, const reader *r)
{
    int32_t prompt[CONTEXT], tokens[CONTEXT];
    uint64_t hashes[CONTEXT];
    sim_solo want = {tokens, hashes};
    for (uint32_t i = 0; i < n_prompt; i++) prompt[i] = (int32_t)(sim_mix(id, i) % w->model->n_vocab);
    w->model->solo(w->model, prompt, n_prompt, &greedy, r->n, &want);
    assert_memory_equal(r->tokens, tokens, r->n * sizeof *tokens);
}

/* Both lanes are taken by answers that nobody reads: they pause, others are answered all the same; who comes back to reading
 * gets the rest, and who is cancelled ends in the next step. */
static void test_unread(void **state)
{
    (void)state;
    enum { N_PROMPT = 70, N = 60 };
    for (uint64_t seed = 1; seed <= 8; seed++) { /* with recurrent state and without */
        world *w = open_world(seed, 2, false);
        static reader a, b, others[6];
        memset(&a, 0, sizeof a);
        memset(&b, 0, sizeof b);
        memset(others, 0, sizeof others);
        uint64_t id_a = ask(w, 1, 1, N_PROMPT, N, NULL), id_b = ask(w, 2, 1, N_PROMPT, N, NULL);
        for (int step = 0; qw_core_step(w->core) != QW_STEP_WAITS; step++) assert_true(step < 100);
        qw_core_counts counts;
        qw_core_get_counts(w->core, &counts);
        uint64_t rows = counts.rows;
        for (int step = 0; step < 10; step++) assert_int_equal(qw_core_step(w->core), QW_STEP_WAITS);
        qw_core_get_counts(w->core, &counts);
        assert_int_equal(counts.rows, rows); /* nothing is computed for nobody */
        assert_int_equal(w->events.n, 2 * BACKLOG);
        for (int i = 0; i < 6; i++) {
            uint64_t id = ask(w, (uint8_t)(i % 3), 1, N_PROMPT, N, NULL);
            finish(w, id, &others[i]);
            assert_int_equal(others[i].n, N);
            assert_alone(w, id, N_PROMPT, &others[i]);
        }
        assert_int_equal(w->events.n, 2 * BACKLOG);
        for (int step = 0; !a.ended; step++) { /* a comes back, and reads as slowly as can be */
            qw_event ev;
            assert_true(step < 1000);
            qw_core_step(w->core);
            if (!qw_events_poll_one(&w->events, id_a, 0, &ev)) continue;
            for (size_t i = 0; i < ev.n_tokens; i++) a.tokens[a.n++] = ev.tokens[i].token;
            a.ended = qw_event_is_terminal(&ev);
        }
        assert_int_equal(a.n, N);
        assert_alone(w, id_a, N_PROMPT, &a);
        assert_int_equal(w->n_live, 1);
        qw_core_fail(w->core, &(qw_err){.status = QW_E_CORRUPT}); /* b's end comes although its feed is full */
        assert_int_equal(w->n_live, 0);
        assert_int_equal(w->events.n, BACKLOG + 1);
        read_all(w, id_b, &b);
        assert_true(b.ended && b.n <= BACKLOG);
        assert_alone(w, id_b, N_PROMPT, &b);
        close_world(w);
    }
}

/* Cancelled or late while it is paused: ended by the next step, with one terminal event behind what was there. */
static void test_unread_ends(void **state)
{
    (void)state;
    for (int late = 0; late < 2; late++) {
        world *w = open_world(3, 1, false);
        static reader r;
        memset(&r, 0, sizeof r);
        uint64_t id = ask(w, 1, 1, 10, 50, NULL);
        qw_job *job = w->newest;
        if (late) job->deadline_us = 1000000;
        for (int step = 0; qw_core_step(w->core) != QW_STEP_WAITS; step++) assert_true(step < 100);
        assert_int_equal(w->n_live, 1);
        if (late) w->now_us = 1000000;
        else atomic_store(&job->cancelled, true);
        qw_core_step(w->core);
        assert_int_equal(w->n_live, 0);
        read_all(w, id, &r);
        assert_true(r.ended && r.n == BACKLOG);
        assert_int_equal(r.finish, late ? QW_FINISH_DEADLINE : QW_FINISH_CANCELLED);
        close_world(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_guesses),
        cmocka_unit_test(test_unread),
        cmocka_unit_test(test_unread_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
