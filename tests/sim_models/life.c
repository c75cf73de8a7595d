/* life.c: one process of sim_models: the engine's core on a model and on the store on disk, with clients that go on with what
 * others before it have left. The clock is a fake one, the disk and its threads are real. See sim_models.h.
 *
 * Checked as it happens, since the process may not live to see the end: every token and the bits of the logits that it was
 * drawn from, one terminal event for each request, all links and counts after every step. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sim_models.h"

enum {
    LANES_MAX = 4,
    HASHES_MAX = LANES_MAX + QW_ANSWER_ROWS,
    DISK_THREADS = 2,
    WAIT_US = 100000,
    WAITS_MAX = 600,
    FINISH_US = 20000000,
    STEPS_MAX = 20000
};

typedef struct talker {
    const client *script;
    const turn *turn; /* asked; NULL: it is away */
    int64_t back_us;
    uint64_t request;
    qw_job *job;      /* while it runs, to cancel it */
    uint32_t n_answer;
} talker;

typedef struct life {
    sim_model *model;
    const script *script;
    const life_options *o;
    shared *sh;
    dice dice;
    qw_seq_pool *pool;
    qw_core *core;
    qw_event_queue events;
    qw_state_files *files;
    qw_state_io *io;
    qw_state_store store;
    bool (*wait)(void *ctx, int64_t timeout_us); /* the store's own */
    int64_t now_us, pass_us, row_us;
    uint32_t n_passes, n_requests;
    uint64_t hashes[HASHES_MAX]; /* of the rows of logits of the last pass that tokens were drawn from, in that order */
    uint32_t n_hashes, n_taken;
    uint64_t told[N_COUNTS]; /* of what the engine counts: added to those of all */
    talker talkers[CLIENTS_MAX];
    struct {
        const talker *talker;
        uint32_t n; /* tokens known */
    } lanes[LANES_MAX];
} life;

static void must(qw_status status, const qw_err *err)
{
    if (status == QW_OK) return;
    printf("sim_models: %s\n", err->text);
    fflush(stdout);
    abort();
}

/* ---- what the core computes with ------------------------------------------------------------------ */

/* A prompt's piece ends in a row that nobody asks for. */
static uint64_t n_pieces(const qw_row *rows, size_t n)
{
    uint64_t pieces = 0;
    for (size_t i = 0; i < n; i++) pieces += rows[i].silent && (i + 1 == n || rows[i + 1].seq != rows[i].seq);
    return pieces;
}

static void call_killer(const life *l)
{
    if (write(l->o->told_fd, "", 1) != 1) abort();
}

static void forward(void *ctx, const qw_row *rows, size_t n)
{
    life *l = ctx;
    if (l->n_passes++ == l->o->told_pass) call_killer(l);
    l->model->forward(l->model, rows, n);
    l->now_us += l->pass_us + l->row_us * (int64_t)n;
    l->n_hashes = l->n_taken = 0;
    l->sh->n[N_ROWS] += n;
    l->sh->n[N_PIECES] += n_pieces(rows, n);
}

static void logits(void *ctx, const uint32_t *rows, size_t n, float *out, size_t ld)
{
    life *l = ctx;
    l->model->logits(l->model, rows, n, out, ld);
}

static void note_logits(void *ctx, int32_t token, const float *row)
{
    life *l = ctx;
    (void)token;
    if (l->n_hashes == HASHES_MAX) abort();
    l->hashes[l->n_hashes++] = sim_hash_floats(row, l->model->n_vocab);
}

static bool never_failed(void *ctx, qw_err *err)
{
    (void)ctx, (void)err;
    return false;
}

static int64_t fake_clock(void *ctx)
{
    return ((life *)ctx)->now_us;
}

/* ---- guesses: right three times in four ----------------------------------------------------------- */

static void begin_lane(void *ctx, uint32_t lane, const qw_job *job, uint32_t n)
{
    life *l = ctx;
    l->lanes[lane].talker = job->user;
    l->lanes[lane].n = n;
}

static void advance(void *ctx, uint32_t lane, uint32_t n)
{
    ((life *)ctx)->lanes[lane].n = n;
}

static uint32_t guess(void *ctx, uint32_t lane, const qw_guess_ask *ask, int32_t *out, double *n_expected)
{
    life *l = ctx;
    const turn *t = l->lanes[lane].talker->turn;
    uint32_t n = l->lanes[lane].n, most = t->n_prompt + t->n_answer - n, n_guesses = below(&l->dice, ask->n_max + 1);
    if (n_guesses > most) n_guesses = most;
    for (uint32_t i = 0; i < n_guesses; i++)
        out[i] = chance(&l->dice, 75) ? t->tokens[n + i] : (int32_t)below(&l->dice, l->model->n_vocab);
    *n_expected = 1 + 0.5 * n_guesses;
    return n_guesses;
}

/* ---- clients -------------------------------------------------------------------------------------- */

static qw_job *make_job(life *l, talker *c)
{
    const turn *t = c->turn;
    qw_job *job = calloc(1, sizeof *job);
    if (!job) abort();
    job->id = c->request;
    job->user = c;
    job->n_tokens = t->n_prompt;
    job->n_tokens_max = t->n_prompt + t->n_answer;
    job->tokens = calloc(job->n_tokens_max, sizeof *job->tokens);
    job->edges = calloc(t->n_edges, sizeof *job->edges);
    if (!job->tokens || !job->edges) abort();
    memcpy(job->tokens, t->tokens, t->n_prompt * sizeof *job->tokens);
    job->n_edges = t->n_edges;
    for (uint32_t i = 0; i < t->n_edges; i++) job->edges[i] = (qw_edge){.n_tokens = t->edges[i], .n_messages = i + 1};
    job->max_tokens = t->n_answer;
    job->owner[0] = c->script->owner;
    job->priority = chance(&l->dice, 10);
    job->submitted_us = l->now_us;
    if (qw_feed_create(&job->feed, NULL) != QW_OK) abort();
    qw_events_open(&l->events, job->feed, job->id);
    qw_status status = qw_sampling_run_create(&t->sampling, l->model->n_vocab, job->tokens, t->n_prompt, t->n_answer,
                                              &job->draws, NULL);
    if (status != QW_OK) abort();
    return job;
}

static uint32_t number_of(const life *l, const talker *c)
{
    return (uint32_t)(c - l->talkers);
}

static bool is_done(const life *l, const talker *c)
{
    return l->sh->next[number_of(l, c)] == c->script->n_turns;
}

static void ask(life *l, talker *c)
{
    c->turn = &c->script->turns[l->sh->next[number_of(l, c)]];
    c->request = ++l->n_requests;
    c->n_answer = 0;
    c->job = make_job(l, c);
    l->sh->n_waiting++;
    qw_core_add(l->core, c->job);
}

/* Whoever is back asks; now and then somebody who waits has enough. When nobody waits time passes until somebody is back.
 * False: all is said. */
static bool clients_act(life *l)
{
    int64_t next_us = INT64_MAX;
    for (uint32_t i = 0; i < l->script->n_clients; i++) {
        talker *c = &l->talkers[i];
        if (!c->turn && !is_done(l, c) && c->back_us <= l->now_us) ask(l, c);
        if (c->job && below(&l->dice, 1000) < 4) atomic_store(&c->job->cancelled, true);
        if (!c->turn && !is_done(l, c) && c->back_us < next_us) next_us = c->back_us;
    }
    if (l->sh->n_waiting > 0) return true;
    if (next_us < INT64_MAX) l->now_us = next_us;
    return next_us < INT64_MAX;
}

static void end_turn(life *l, talker *c, const qw_event *ev)
{
    uint32_t number = number_of(l, c);
    bool whole = ev->finish == QW_FINISH_LENGTH && c->n_answer == c->turn->n_answer;
    if (ev->type == QW_EVENT_ERROR) FAIL(l->sh, l->script->seed, "client %u: an error: %s", number, ev->error.text);
    else if (!whole && ev->finish != QW_FINISH_CANCELLED)
        FAIL(l->sh, l->script->seed, "client %u: an answer ends after %u of %u tokens", number, c->n_answer, c->turn->n_answer);
    if (ev->finish == QW_FINISH_CANCELLED) l->sh->n[N_CANCELLED]++;
    l->sh->n[N_REQUESTS]++;
    if (ev->cache.restored_tokens > 0) {
        l->sh->n[N_RESTORES]++;
        l->sh->n[N_RESTORED] += ev->cache.restored_tokens;
        l->sh->n[N_COMPARED_RESTORED] += c->n_answer;
    }
    c->turn = NULL;
    c->back_us = l->now_us + below(&l->dice, chance(&l->dice, 30) ? 6000000 : 50000);
    l->sh->n_waiting--;
    l->sh->next[number]++; /* a cancelled one knows what would have come */
}

static void take_token(life *l, talker *c, int32_t token)
{
    uint32_t i = c->n_answer++;
    const turn *t = c->turn;
    bool known = i < t->n_answer && l->n_taken < l->n_hashes;
    if (known && token == t->tokens[t->n_prompt + i] && l->hashes[l->n_taken] == t->hashes[i]) l->sh->n[N_COMPARED]++;
    else if (!known) FAIL(l->sh, l->script->seed, "client %u: a token that was not drawn", number_of(l, c));
    else FAIL(l->sh, l->script->seed, "client %u: token %u of the answer to %u tokens is %d, alone it is %d%s", number_of(l, c),
              i, t->n_prompt, token, t->tokens[t->n_prompt + i],
              token == t->tokens[t->n_prompt + i] ? ", from other logits" : "");
    l->n_taken++;
}

static void take_events(life *l)
{
    qw_event ev;
    while (qw_events_poll(&l->events, 0, &ev)) {
        talker *c = ev.user;
        if (!c->turn || ev.request != c->request) {
            FAIL(l->sh, l->script->seed, "an event of a request after its end");
            continue;
        }
        for (size_t i = 0; i < ev.n_tokens; i++) take_token(l, c, ev.tokens[i].token);
        if (qw_event_is_terminal(&ev)) end_turn(l, c, &ev);
    }
}

static void job_ended(void *ctx, qw_job *job)
{
    (void)ctx;
    ((talker *)job->user)->job = NULL;
    qw_job_free(job);
}

/* ---- life ----------------------------------------------------------------------------------------- */

static void tell(life *l, count what, uint64_t now)
{
    l->sh->n[what] += now - l->told[what];
    l->told[what] = now;
}

static void tell_counts(life *l)
{
    qw_core_counts core;
    qw_state_counts files;
    qw_core_get_counts(l->core, &core);
    qw_state_get_counts(l->files, &files);
    tell(l, N_GUESSES, core.guessed_right);
    tell(l, N_PREEMPTIONS, core.preemptions);
    tell(l, N_EVICTIONS, core.prefix.pages_evicted + core.prefix.snapshots_evicted);
    tell(l, N_SAVED, files.saved);
    tell(l, N_TRIMMED, files.trimmed);
    tell(l, N_FOUND_BAD, files.damaged);
    l->sh->n_saving = core.prefix.n_saving;
}

/* What the core waits for takes real time, so the fake clock goes on. */
static life *waiting;

static bool wait_for_disk(void *disk, int64_t timeout_us)
{
    waiting->now_us += timeout_us;
    tell_counts(waiting);
    return waiting->wait(disk, timeout_us);
}

static void open_disk(life *l)
{
    const qw_seq_pool_options *po = qw_seq_pool_get_options(l->pool);
    const qw_state_layout layout = {.model = "sim_models", .shape = po->shape, .page_bytes = qw_page_bytes(l->pool),
                                    .recurrent_bytes = po->recurrent_bytes};
    const qw_state_limits limits = {.bytes_max = (uint64_t)l->o->n_store_max * (qw_page_bytes(l->pool) + 4096)};
    qw_err err;
    must(qw_state_files_open(l->o->dir, &layout, &limits, &l->files, &err), &err);
    must(qw_state_io_open(&(qw_state_io_options){.files = l->files, .n_threads = DISK_THREADS}, &l->io, &err), &err);
    l->store = qw_state_io_store(l->io);
    l->wait = l->store.wait;
    l->store.wait = wait_for_disk;
    waiting = l;
}

/* Memory for little more than the longest conversation, so that most of what was computed has to go. */
static void open_life(life *l)
{
    qw_err err;
    dice *d = &l->dice;
    bool guesses = chance(d, 40);
    uint32_t n_lanes = 1 + below(d, LANES_MAX), n_pages = l->script->n_longest / QW_KV_TILE + 2 + below(d, 6);
    uint32_t n_snapshots = below(d, chance(d, 50) ? 4 : 16), n_rows_max = n_lanes + 2 * QW_ANSWER_ROWS + below(d, 60);
    l->pass_us = 10000 + below(d, 900000);
    l->row_us = 1 + below(d, 5000);
    must(qw_events_init(&l->events, QW_BACKLOG_MAX, &err), &err);
    l->pool = l->model->open_run(l->model, l->o->seed, n_pages, (guesses ? 2 : 1) * n_lanes + n_snapshots, n_rows_max, CONTEXT);
    open_disk(l);
    const qw_core_options o = {
        .compute = {.ctx = l, .forward = forward, .logits = logits, .failed = never_failed, .clock_us = fake_clock},
        .guesser = {.ctx = l, .begin = begin_lane, .guess = guesses ? guess : NULL, .advance = advance,
                    .note_logits = note_logits},
        .pool = l->pool, .events = &l->events, .n_vocab = l->model->n_vocab, .context = CONTEXT, .n_lanes = n_lanes,
        .n_rows_max = n_rows_max, .n_snapshots = n_snapshots, .us_per_row = 1 + below(d, 5000), .store = &l->store,
        .key = {{l->o->seed, 2}}, .ended = job_ended, .ended_ctx = l};
    must(qw_core_create(&o, &l->core, &err), &err);
    for (uint32_t i = 0; i < l->script->n_clients; i++)
        l->talkers[i] = (talker){.script = &l->script->clients[i], .back_us = below(d, 500000)};
}

/* In good order: what is not saved yet is. */
static void close_life(life *l)
{
    if (l->o->told_pass == AT_END) call_killer(l);
    qw_core_finish(l->core, FINISH_US);
    take_events(l);
    tell_counts(l);
    qw_state_io_close(l->io, 0);
    qw_state_files_close(l->files);
    qw_core_destroy(l->core);
    l->model->close_run(l->model); /* asserts that every page and slot came back */
    qw_events_free(&l->events);
}

void life_run(sim_model *m, const script *s, const life_options *o, shared *sh)
{
    life l = {.model = m, .script = s, .o = o, .sh = sh, .dice = {o->seed}, .now_us = 1};
    uint32_t n_waits = 0;
    sh->n_waiting = sh->n_saving = 0;
    open_life(&l);
    for (uint32_t step = 0; clients_act(&l) && !sh->failed; step++) {
        qw_step done = qw_core_step(l.core);
        bool waits = done == QW_STEP_WAITS && !l.store.wait(l.store.ctx, WAIT_US);
        n_waits = waits ? n_waits + 1 : 0;
        take_events(&l);
        qw_core_check(l.core);
        tell_counts(&l);
        if (n_waits > WAITS_MAX) FAIL(sh, s->seed, "it waits for nothing");
        if (step > STEPS_MAX) FAIL(sh, s->seed, "no end after %d steps", STEPS_MAX);
        l.now_us += 10;
    }
    if (!sh->failed) close_life(&l);
}
