/* sim.c: the whole engine but the model, on a fake model (fake_model.c) or a real one (--model), with a fake clock, from a seed.
 *
 *     sim [--seeds N] [--base B] [--model FILE.gguf] [--verbose]
 *
 * Clients talk: they go on, edit, branch, ask again, come back later, cancel, set deadlines, and in some worlds do not read
 * for a while. Checked:
 *   - every answer equals the one that is computed for it alone, and every row of logits its bits; what a cancelled one gave
 *     is the beginning of it
 *   - exactly one terminal event for each request, and nothing after it
 *   - after every step all links and counts; in the end every page and slot is back
 *   - what the cache promises: who goes on computes what was added, who edits computes no more than one message
 *   - requests end: a step that does nothing while there are requests is a failure, unless nobody reads
 *   - who does not read holds up nobody: every other request gets on, and what waits for the reader is bounded
 *   - a request that is cancelled ends in the next step, read or not
 *   - with guesses: the rows that are told as computed are those of the sequence, the newest is told unless it was reused
 * Guesses come from here, or from the engine's own sources with a draft model of which so many tokens in a hundred are right.
 * A failure prints its seed; the last line is "N passed, N failed".
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/guesser.h"
#include "fake_state.h"
#include "model.h"

enum {
    CONTEXT = 1024,
    CLIENTS_MAX = 12,
    MESSAGES_MAX = 40,
    STEPS_MAX = 400000,
    DRAFT_ROWS = 8,     /* that the draft model computes on the way; what it lacks beyond them it computes in pieces, */
    DRAFT_PIECE = 32,
    DRAFT_US = 1000     /* a token of which takes so long */
};

/* ---- chance --------------------------------------------------------------------------------------- */

static uint64_t rng;

static uint32_t below(uint32_t n)
{
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)((rng >> 24) % n);
}

static bool chance(uint32_t percent)
{
    return below(100) < percent;
}

/* ---- the world --------------------------------------------------------------------------------------- */

typedef struct world {
    uint64_t seed;
    bool verbose, failed, recurrent, guesses;
    qw_seq_pool *pool;
    qw_core *core;
    qw_event_queue events;
    fake_state *disk;     /* NULL: there is none */
    qw_state_store store;
    fake_state_options disk_options;
    bool reliable;        /* nothing gets lost there */
    uint64_t n_rows_counted; /* by cores that are gone */
    bool stalls;          /* clients may stop reading */
    bool promises;        /* nothing was lost so far, but what the core says it gave up */
    qw_core_options options;
    uint32_t n_pages;
    uint64_t n_restored, n_restarts;
    int64_t now_us;
    sim_model *model;
    uint64_t hashes[256]; /* of rows of logits, in the order in which their tokens are drawn */
    size_t n_hashes, n_hashes_taken;
    uint64_t n_rows;      /* computed, as the model counts */
    uint32_t n_snapshots;
    struct client *clients;
    struct {
        const struct client *client;
        const qw_job *job;
        uint32_t n;      /* tokens known */
        int64_t newest;  /* position that was told as computed; -1: none */
        uint32_t n_drafted; /* tokens that the draft model has computed */
    } guessed[CLIENTS_MAX]; /* by lane */
    qw_guesses *drafts;  /* the engine's sources; NULL: guesses come from here */
    uint32_t draft_right; /* percent of the draft model's tokens */
    bool by_drafts;
    uint32_t n_clients, n_live;
} world;

#define FAIL(w, ...)                                                     \
    do {                                                                 \
        if (!(w)->failed) {                                              \
            printf("seed %llu: ", (unsigned long long)(w)->seed);        \
            printf(__VA_ARGS__);                                         \
            printf("\n");                                                \
        }                                                                \
        (w)->failed = true;                                              \
    } while (0)

static void forward(void *ctx, const qw_row *rows, size_t n)
{
    world *w = ctx;
    w->model->forward(w->model, rows, n);
    w->n_rows += n;
    w->now_us += w->model->cost_us(n);
    w->n_hashes = w->n_hashes_taken = 0;
}

static void logits(void *ctx, const uint32_t *rows, size_t n, float *out, size_t ld)
{
    world *w = ctx;
    w->model->logits(w->model, rows, n, out, ld);
    for (size_t i = 0; i < n; i++) w->hashes[w->n_hashes++] = sim_hash_floats(out + i * ld, w->model->n_vocab);
}

static bool fake_failed(void *ctx, qw_err *err)
{
    (void)ctx;
    (void)err;
    return false;
}

static int64_t fake_clock(void *ctx)
{
    return ((world *)ctx)->now_us;
}

/* ---- clients ----------------------------------------------------------------------------------------- */

typedef enum client_state { CLIENT_AWAY, CLIENT_WAITS } client_state;

typedef struct client {
    client_state state;
    int64_t back_us;            /* AWAY: until then */
    uint32_t turns_left, owner;
    int32_t tokens[CONTEXT];    /* the conversation */
    uint32_t n_tokens;
    uint32_t edges[MESSAGES_MAX], n_edges;
    /* what was computed of it, as far as this client knows */
    int32_t forwarded[CONTEXT];
    uint32_t n_forwarded, n_forwarded_edges;
    uint32_t forwarded_edges[MESSAGES_MAX];
    /* the request under way */
    uint64_t id;
    qw_sampling sampling;
    uint32_t n_prompt, n_max;
    int32_t answer[CONTEXT];
    uint64_t hashes[CONTEXT];   /* of the logits that each token was drawn from; 0: not known */
    uint32_t n_answer;
    bool terminal, cancelled;
    int64_t reads_us;           /* not before then */
    uint64_t evicted_before;    /* pages and snapshots that had been given up when it was sent */
} client;

static uint64_t n_evicted(const world *w)
{
    qw_core_counts counts;
    qw_core_get_counts(w->core, &counts);
    return counts.prefix.pages_evicted + counts.prefix.snapshots_evicted + counts.prefix.snapshots_refused;
}

static void add_message(const world *w, client *c, uint32_t n)
{
    for (uint32_t i = 0; i < n && c->n_tokens < CONTEXT - 80; i++) c->tokens[c->n_tokens++] = (int32_t)below(w->model->n_vocab);
    if (c->n_edges < MESSAGES_MAX) c->edges[c->n_edges++] = c->n_tokens;
}

/* The same system message for all of an owner: what it says depends on the seed alone. */
static void add_system(const world *w, client *c)
{
    uint32_t n = 20 + (uint32_t)(sim_mix(w->seed, 99) % 250);
    for (uint32_t i = 0; i < n; i++) c->tokens[c->n_tokens++] = (int32_t)(sim_mix(w->seed + 5, i) % w->model->n_vocab);
    c->edges[c->n_edges++] = c->n_tokens;
}

static uint32_t message_tokens(void)
{
    return chance(15) ? 60 + below(200) : 1 + below(40);
}

static void start_over(const world *w, client *c)
{
    c->n_tokens = c->n_edges = 0;
    if (chance(80)) add_system(w, c);
    add_message(w, c, message_tokens());
}

/* Back to the end of a message, and something else from there. */
static void edit(const world *w, client *c)
{
    uint32_t edge = below(c->n_edges);
    c->n_edges = edge;
    c->n_tokens = edge ? c->edges[edge - 1] : 0;
    add_message(w, c, message_tokens());
}

static void branch(const world *w, client *c)
{
    const client *other = &w->clients[below(w->n_clients)];
    if (other == c || other->owner != c->owner || other->n_edges == 0) return;
    uint32_t edge = below(other->n_edges);
    c->n_edges = edge + 1;
    c->n_tokens = other->edges[edge];
    memcpy(c->edges, other->edges, c->n_edges * sizeof *c->edges);
    memcpy(c->tokens, other->tokens, c->n_tokens * sizeof *c->tokens);
    add_message(w, c, message_tokens());
}

static void next_turn(const world *w, client *c)
{
    uint32_t what = below(100);
    if (c->n_tokens == 0 || c->n_tokens > CONTEXT - 300 || c->n_edges > MESSAGES_MAX - 4 || what < 5) start_over(w, c);
    else if (what < 15) edit(w, c);
    else if (what < 20) branch(w, c);
    else if (what < 30) return; /* the same once more */
    else add_message(w, c, message_tokens());
}

static qw_job *make_job(world *w, client *c)
{
    qw_job *job = calloc(1, sizeof *job);
    size_t most = CONTEXT - c->n_tokens + 1;
    if (c->n_max < most) most = c->n_max;
    job->id = c->id;
    job->user = c;
    job->n_tokens = c->n_tokens;
    job->n_tokens_max = c->n_tokens + most;
    job->tokens = calloc(job->n_tokens_max, sizeof *job->tokens);
    memcpy(job->tokens, c->tokens, c->n_tokens * sizeof *job->tokens);
    job->n_edges = c->n_edges;
    job->edges = calloc(c->n_edges + 1, sizeof *job->edges);
    for (uint32_t i = 0; i < c->n_edges; i++) job->edges[i] = (qw_edge){.n_tokens = c->edges[i], .n_messages = i + 1};
    job->max_tokens = c->n_max;
    job->owner[0] = (uint8_t)c->owner;
    job->priority = chance(10) ? 1 : 0;
    job->weight = below(4);
    job->submitted_us = w->now_us;
    if (qw_feed_create(&job->feed, NULL) != QW_OK) abort();
    qw_events_open(&w->events, job->feed, job->id);
    if (chance(4)) job->deadline_us = w->now_us + below(400000);
    qw_status status = qw_sampling_run_create(&c->sampling, w->model->n_vocab, job->tokens, job->n_tokens, most, &job->draws, NULL);
    if (status != QW_OK) abort();
    return job;
}

static qw_job *jobs[CLIENTS_MAX]; /* by client, while they run */
static uint64_t next_id;

static void send(world *w, client *c)
{
    next_turn(w, c);
    c->id = ++next_id;
    c->state = CLIENT_WAITS;
    c->terminal = c->cancelled = false;
    c->reads_us = w->stalls && chance(40) ? w->now_us + below(chance(30) ? 5000000 : 200000) : 0;
    c->n_answer = 0;
    c->n_prompt = c->n_tokens;
    c->n_max = 1 + below(chance(20) ? 200 : 30);
    c->sampling = (qw_sampling){.temperature = chance(50) ? 0.0f : 0.8f, .top_k = chance(50) ? 10 : 0, .top_p = 1,
                                .repetition_penalty = chance(30) ? 1.1f : 1.0f, .top_logprobs = -1, .seed = below(1000)};
    c->evicted_before = n_evicted(w);
    qw_job *job = make_job(w, c);
    jobs[c - w->clients] = job;
    if (w->verbose) printf("%lld us: client %u asks, %u tokens, %u messages\n", (long long)w->now_us, (unsigned)(c - w->clients),
                           c->n_tokens, c->n_edges);
    qw_core_add(w->core, job);
}

/* ---- what should have come ------------------------------------------------------------------------------ */

/* The first n tokens of c's answer, computed alone. */
static sim_solo solo(const world *w, const client *c, uint32_t n)
{
    static int32_t tokens[2 * CONTEXT];
    static uint64_t hashes[2 * CONTEXT];
    sim_solo out = {tokens, hashes};
    w->model->solo(w->model, c->tokens, c->n_prompt, &c->sampling, n, &out);
    return out;
}

static void fake_begin(void *ctx, uint32_t lane, const qw_job *job, uint32_t n)
{
    world *w = ctx;
    w->guessed[lane].client = job->user;
    w->guessed[lane].job = job;
    w->guessed[lane].n = n;
    w->guessed[lane].newest = -1;
    w->guessed[lane].n_drafted = 0;
}

static void fake_advance(void *ctx, uint32_t lane, uint32_t n)
{
    world *w = ctx;
    if (n <= w->guessed[lane].n) FAIL(w, "a step of an answer without a token");
    w->guessed[lane].n = n;
}

static void fake_computed(void *ctx, uint32_t lane, uint32_t first_row, uint32_t n, uint32_t pos)
{
    world *w = ctx;
    const client *c = w->guessed[lane].client;
    const int32_t *tokens = w->guessed[lane].job->tokens;
    uint32_t n_after = pos + n + 1; /* the token after the last of them is known */
    w->guessed[lane].newest = (int64_t)n_after - 2;
    if (!w->model->row || !chance(20)) return;
    sim_solo want = solo(w, c, n_after > c->n_prompt ? n_after - c->n_prompt : 1);
    for (uint32_t i = 0; i < n; i++)
        if (w->model->row(w->model, first_row + i) != w->model->position(w->model, pos + i))
            FAIL(w, "row %u is told to be position %u of lane %u, and is not", first_row + i, pos + i, lane);
    for (uint32_t i = 0; i < n_after; i++)
        if (tokens[i] != (i < c->n_prompt ? c->tokens[i] : want.tokens[i - c->n_prompt]))
            FAIL(w, "position %u was told as computed, and token %u is not known", n_after - 2, i);
}

/* What a model would go on with that is right so many times in a hundred. */
static void guess_tokens(world *w, uint32_t lane, uint32_t right, int32_t *out, uint32_t n)
{
    const client *c = w->guessed[lane].client;
    uint32_t at = w->guessed[lane].n - c->n_prompt;
    sim_solo want = solo(w, c, at + n);
    for (uint32_t i = 0; i < n; i++) out[i] = chance(right) ? want.tokens[at + i] : (int32_t)below(w->model->n_vocab);
}

static uint64_t n_draft_tokens; /* of all seeds */

static uint32_t draft_lacks(void *ctx, void *user, const int32_t *tokens, uint32_t n_tokens)
{
    const world *w = ctx;
    (void)tokens;
    uint32_t n = n_tokens - w->guessed[(uintptr_t)user].n_drafted;
    return n > DRAFT_ROWS ? n : 0;
}

static uint32_t draft_propose(void *ctx, void *user, const int32_t *tokens, uint32_t n_tokens, uint32_t n, double sure,
                              int32_t *out)
{
    world *w = ctx;
    uint32_t lane = (uint32_t)(uintptr_t)user, n_lacking = draft_lacks(ctx, user, tokens, n_tokens);
    if (n_tokens != w->guessed[lane].n || tokens != w->guessed[lane].job->tokens) FAIL(w, "drafts after other tokens");
    if (n_lacking > 0) {
        uint32_t piece = n_lacking < DRAFT_PIECE ? n_lacking : DRAFT_PIECE;
        w->guessed[lane].n_drafted += piece;
        w->now_us += piece * DRAFT_US / 8;
        return 0;
    }
    w->guessed[lane].n_drafted = n_tokens;
    if (n_tokens + n > CONTEXT) return 0;
    if (sure > (double)w->draft_right / 100) n = 1;
    guess_tokens(w, lane, w->draft_right, out, n);
    w->now_us += n * DRAFT_US;
    n_draft_tokens += n;
    return n;
}

static uint32_t fake_guess(void *ctx, uint32_t lane, const qw_guess_ask *ask, int32_t *out, double *n_expected)
{
    world *w = ctx;
    uint32_t n = w->guessed[lane].n, n_guesses;
    bool reused = w->guessed[lane].newest < 0; /* all but the newest token came from the cache */
    if (!reused && w->guessed[lane].newest + 2 != n)
        FAIL(w, "%u tokens are known, position %lld was told last", n, (long long)w->guessed[lane].newest);
    if (w->drafts) {
        qw_guesser g = qw_guesses_guesser(w->drafts);
        return g.guess(g.ctx, lane, ask, out, n_expected);
    }
    n_guesses = below(ask->n_max + 1);
    if (n + n_guesses > CONTEXT) n_guesses = 0;
    if (n_guesses > 0) guess_tokens(w, lane, 75, out, n_guesses);
    *n_expected = 1 + 0.5 * n_guesses;
    return n_guesses;
}

static void draft_begin(void *ctx, uint32_t lane, const qw_job *job, uint32_t n)
{
    world *w = ctx;
    qw_guesser g = qw_guesses_guesser(w->drafts);
    fake_begin(ctx, lane, job, n);
    g.begin(g.ctx, lane, job, n);
}

static void draft_advance(void *ctx, uint32_t lane, uint32_t n)
{
    world *w = ctx;
    qw_guesser g = qw_guesses_guesser(w->drafts);
    fake_advance(ctx, lane, n);
    g.advance(g.ctx, lane, n);
}

static void draft_logits(void *ctx, int32_t token, const float *l)
{
    qw_guesser g = qw_guesses_guesser(((world *)ctx)->drafts);
    g.note_logits(g.ctx, token, l);
}

static void draft_cost(void *ctx, uint32_t n_rows, double us)
{
    qw_guesser g = qw_guesses_guesser(((world *)ctx)->drafts);
    g.note_cost(g.ctx, n_rows, us);
}

static void check_answer(world *w, client *c, qw_finish finish)
{
    sim_solo want = solo(w, c, c->n_answer);
    for (uint32_t i = 0; i < c->n_answer; i++) {
        bool token = c->answer[i] == want.tokens[i], bits = c->hashes[i] == 0 || c->hashes[i] == want.hashes[i];
        if (token && bits) continue;
        FAIL(w, "client %u: token %u of the answer to %u tokens is %d, alone it is %d%s", (unsigned)(c - w->clients), i, c->n_prompt,
             c->answer[i], want.tokens[i], token ? ", from other logits" : "");
        return;
    }
    uint32_t room = CONTEXT - c->n_prompt + 1;
    if (finish == QW_FINISH_LENGTH && c->n_answer != c->n_max) FAIL(w, "length reached after %u of %u", c->n_answer, c->n_max);
    if (finish == QW_FINISH_CONTEXT && c->n_answer != room) FAIL(w, "context full after %u of %u", c->n_answer, room);
}

/* Who comes back finds what it left, unless something was given up meanwhile. */
static void check_promise(world *w, const client *c, const qw_usage *u)
{
    uint32_t common = 0, most = c->n_prompt - 1, promised, edge = 0;
    if (!w->promises || c->evicted_before != n_evicted(w) || c->evicted_before > 0 || (w->recurrent && w->n_snapshots == 0)) return;
    while (common < c->n_forwarded && common < c->n_prompt && c->forwarded[common] == c->tokens[common]) common++;
    promised = common;
    if (w->recurrent && common < c->n_forwarded) {
        if (2 * c->n_forwarded_edges > w->n_snapshots) return; /* not all edges were kept */
        for (uint32_t i = 0; i < c->n_forwarded_edges && c->forwarded_edges[i] <= common; i++) edge = c->forwarded_edges[i];
        promised = edge;
    }
    if (w->recurrent && promised > most) return; /* the whole prompt again: from some edge before */
    if (promised > most) promised = most;
    if (w->recurrent && w->guesses) /* the last right guesses may have lost their state among wrong ones */
        promised = promised > QW_ANSWER_ROWS ? promised - QW_ANSWER_ROWS : 0;
    if (u->cached_tokens < promised)
        FAIL(w, "client %u: %u tokens of %u were computed before (%u in common of %u), %u were reused", (unsigned)(c - w->clients),
             promised, c->n_prompt, common, c->n_forwarded, u->cached_tokens);
}

static void end_turn(world *w, client *c, const qw_event *ev)
{
    if (c->terminal) FAIL(w, "a second terminal event");
    c->terminal = true;
    if (ev->type == QW_EVENT_ERROR) {
        FAIL(w, "an error: %s", ev->error.text);
        return;
    }
    if (ev->usage.completion_tokens != c->n_answer) FAIL(w, "%u tokens counted, %u came", ev->usage.completion_tokens, c->n_answer);
    check_answer(w, c, ev->finish);
    bool begun = c->n_answer > 0;
    if (begun) check_promise(w, c, &ev->usage);
    if (begun) { /* the answer belongs to the conversation, and all but its last token was computed */
        uint32_t n = c->n_answer;
        if (c->n_tokens + n > CONTEXT) n = CONTEXT - c->n_tokens;
        memcpy(c->tokens + c->n_tokens, c->answer, n * sizeof *c->tokens);
        memcpy(c->forwarded, c->tokens, (c->n_tokens + n) * sizeof *c->tokens);
        memcpy(c->forwarded_edges, c->edges, c->n_edges * sizeof *c->edges);
        c->n_forwarded_edges = c->n_edges;
        c->n_tokens += n;
        c->n_forwarded = c->n_tokens - 1;
        if (c->n_edges < MESSAGES_MAX) c->edges[c->n_edges++] = c->n_tokens;
    }
    c->state = CLIENT_AWAY;
    c->back_us = w->now_us + below(chance(30) ? 3000000 : 50000);
    if (--c->turns_left == 0) w->n_live--;
}

static void take_event(world *w, const qw_event *ev)
{
    client *c = ev->user;
    bool known = !w->guesses && !w->stalls; /* which row of logits a token was drawn from */
    if (ev->request != c->id) {
        FAIL(w, "an event of request %llu, after its end", (unsigned long long)ev->request);
        return;
    }
    for (size_t i = 0; i < ev->n_tokens; i++) {
        c->hashes[c->n_answer] = !known || w->n_hashes_taken >= w->n_hashes ? 0 : w->hashes[w->n_hashes_taken++];
        c->answer[c->n_answer++] = ev->tokens[i].token;
    }
    if (qw_event_is_terminal(ev)) end_turn(w, c, ev);
}

/* In order; where some do not read, each client its own. */
static void take_events(world *w)
{
    qw_event ev;
    while (!w->stalls && qw_events_poll(&w->events, 0, &ev)) take_event(w, &ev);
    for (uint32_t i = 0; w->stalls && i < w->n_clients; i++) {
        client *c = &w->clients[i];
        while (c->state == CLIENT_WAITS && c->reads_us <= w->now_us && qw_events_poll_one(&w->events, c->id, 0, &ev))
            take_event(w, &ev);
    }
}

static void take_all_events(world *w)
{
    for (uint32_t i = 0; i < w->n_clients; i++) w->clients[i].reads_us = 0;
    take_events(w);
}

/* Does somebody read whose request is under way? */
static bool somebody_reads(const world *w)
{
    for (uint32_t i = 0; i < w->n_clients; i++)
        if (jobs[i] && w->clients[i].reads_us <= w->now_us) return true;
    return false;
}

/* After a step, before events are taken. */
static void check_readers(world *w)
{
    uint32_t most = w->events.n_backlog_max + QW_ANSWER_ROWS + 2; /* a step's tokens, progress, the end */
    for (uint32_t i = 0; i < w->n_clients; i++) {
        if (jobs[i] && atomic_load(&jobs[i]->feed->n) > most)
            FAIL(w, "client %u: %u events wait, at most %u may", i, atomic_load(&jobs[i]->feed->n), most);
        if (jobs[i] && w->clients[i].cancelled) FAIL(w, "client %u: a request that was cancelled goes on", i);
    }
}

static void job_ended(void *ctx, qw_job *job)
{
    world *w = ctx;
    jobs[(client *)job->user - w->clients] = NULL;
    qw_job_free(job);
}

/* ---- a run ------------------------------------------------------------------------------------------------ */

static uint32_t snapshots_max = 300, turns_max = 12, clients_max = CLIENTS_MAX;

static void must(qw_status status, const qw_err *err)
{
    if (status == QW_OK) return;
    printf("%s\n", err->text);
    exit(1);
}

/* A disk that is slow, and in half of the worlds bad: it refuses, fails, loses and damages. */
static void open_disk(world *w)
{
    w->reliable = chance(50);
    fake_state_options o = {.seed = w->seed, .delay_us_max = below(200000)};
    if (!w->reliable) {
        o.n_pieces_max = chance(50) ? 20 + below(100) : 0;
        o.refuse_permille = below(100);
        o.fail_permille = below(100);
        o.lose_permille = below(50);
        o.damage_permille = below(100);
    }
    w->disk_options = o;
}

/* Whose clock goes on while its core waits for the disk. */
static world *waiting;

static bool wait_for_disk(void *disk, int64_t timeout_us)
{
    int64_t next_us = fake_state_next_us(disk), until_us = waiting->now_us + timeout_us;
    waiting->now_us = next_us < until_us ? next_us > waiting->now_us ? next_us : waiting->now_us : until_us;
    fake_state_set_now(disk, waiting->now_us);
    return true;
}

static void open_core(world *w)
{
    qw_err err;
    uint32_t n_slots = (w->guesses ? 2 : 1) * w->options.n_lanes + w->n_snapshots;
    w->pool = w->model->open_run(w->model, w->seed, w->n_pages, n_slots, w->options.n_rows_max, CONTEXT);
    w->recurrent = w->model->recurrent;
    w->options.pool = w->pool;
    if (w->disk_options.delay_us_max > 0 && !w->disk) {
        w->disk_options.page_bytes = qw_page_bytes(w->pool);
        w->disk_options.recurrent_bytes = qw_seq_pool_get_options(w->pool)->recurrent_bytes;
        w->disk = fake_state_create(&w->disk_options);
        w->store = fake_state_store(w->disk);
        w->store.wait = wait_for_disk;
        waiting = w;
    }
    w->options.store = w->disk ? &w->store : NULL;
    if (w->by_drafts) {
        const qw_draft_model model = {.ctx = w, .propose = draft_propose, .lacks = draft_lacks, .us_per_token = DRAFT_US,
                                      .us_per_lacking = DRAFT_US / 8, .clock_us = fake_clock};
        const qw_guesses_options go = {.n_lanes = w->options.n_lanes, .n_vocab = w->model->n_vocab, .context = CONTEXT,
                                       .us_per_pass = 5000, .model = model};
        must(qw_guesses_create(&go, &w->drafts, &err), &err);
    }
    must(qw_core_create(&w->options, &w->core, &err), &err);
}

static void close_core(world *w)
{
    qw_core_counts counts;
    qw_core_get_counts(w->core, &counts);
    w->n_restored += counts.restored_tokens;
    w->n_rows_counted += counts.rows;
    if (w->disk) fake_state_drop_ops(w->disk);
    qw_core_destroy(w->core);
    qw_guesses_destroy(w->drafts);
    w->drafts = NULL;
    w->model->close_run(w->model); /* asserts that every page and slot came back */
}

static void open_world(world *w, uint64_t seed)
{
    qw_err err;
    rng = sim_mix(seed, 1) | 1;
    w->seed = seed;
    memset(jobs, 0, sizeof jobs);
    uint32_t n_lanes = 1 + below(8), context_pages = CONTEXT / QW_KV_TILE;
    w->guesses = chance(30);
    uint32_t n_pages = context_pages + 1 + below(chance(50) ? 10 : 1500);
    w->n_snapshots = below(chance(50) ? 6 : snapshots_max);
    uint32_t n_rows_max = n_lanes + 2 * QW_ANSWER_ROWS + below(chance(50) ? 40 : 400);
    w->stalls = chance(30);
    must(qw_events_init(&w->events, w->stalls ? 1 + below(20) : QW_BACKLOG_MAX, &err), &err);
    w->by_drafts = w->guesses && chance(50);
    w->draft_right = below(101);
    qw_guesser guesser = {.ctx = w, .begin = fake_begin, .guess = fake_guess, .advance = fake_advance, .computed = fake_computed,
                          .n_hidden = chance(50) ? below(100) : 0};
    if (w->by_drafts) {
        guesser.begin = draft_begin;
        guesser.advance = draft_advance;
        guesser.note_logits = draft_logits;
        guesser.note_cost = draft_cost;
    }
    w->options = (qw_core_options){
        .compute = {.ctx = w, .forward = forward, .logits = logits, .failed = fake_failed, .clock_us = fake_clock},
        .guesser = w->guesses ? guesser : (qw_guesser){0}, .events = &w->events, .n_vocab = w->model->n_vocab,
        .context = CONTEXT, .n_lanes = n_lanes, .n_rows_max = n_rows_max, .n_snapshots = w->n_snapshots,
        .us_per_row = 1 + below(5000), .key = {{seed, 2}}, .ended = job_ended, .ended_ctx = w};
    w->n_pages = n_pages;
    w->promises = true;
    if (chance(50)) open_disk(w);
    w->model->begin(w->model, seed, CONTEXT);
    open_core(w);
    w->n_clients = w->n_live = 1 + below(clients_max);
    w->clients = calloc(w->n_clients, sizeof *w->clients);
    for (uint32_t i = 0; i < w->n_clients; i++) {
        w->clients[i].turns_left = 1 + below(turns_max);
        w->clients[i].owner = below(3);
        w->clients[i].back_us = below(500000);
    }
    if (w->verbose) printf("%s, %u lanes, %u pages, %u snapshots, %u clients%s%s\n", w->recurrent ? "recurrent" : "attention",
                           n_lanes, n_pages, w->n_snapshots, w->n_clients, w->guesses ? ", guesses" : "",
                           w->stalls ? ", stalls" : "");
}

static void close_world(world *w)
{
    close_core(w);
    take_all_events(w);
    if (w->disk) fake_state_destroy(w->disk);
    qw_events_free(&w->events);
    free(w->clients);
}

/* Whoever is back asks; now and then somebody who waits has enough. False: nobody is there yet. */
static bool clients_act(world *w)
{
    bool any = false;
    for (uint32_t i = 0; i < w->n_clients; i++) {
        client *c = &w->clients[i];
        if (c->state == CLIENT_AWAY && c->turns_left > 0 && c->back_us <= w->now_us) send(w, c);
        if (c->state == CLIENT_WAITS && jobs[i] && below(2000) < 3) {
            atomic_store(&jobs[i]->cancelled, true);
            c->cancelled = true;
        }
        any = any || jobs[i] || (c->state == CLIENT_WAITS && c->reads_us <= w->now_us);
    }
    return any;
}

/* The process ends, in good order or not, and another one begins. */
static void restart(world *w)
{
    bool in_order = chance(50);
    if (in_order) {
        qw_core_finish(w->core, 1000000000);
        take_all_events(w);
    }
    bool unsaved = qw_core_has_unsaved(w->core);
    w->promises = w->promises && in_order && w->disk && w->reliable && !unsaved && n_evicted(w) == 0;
    close_core(w);
    take_all_events(w);
    w->n_hashes = w->n_hashes_taken = 0;
    w->n_restarts++;
    if (w->verbose) printf("%lld us: restart%s, promises %d\n", (long long)w->now_us, in_order ? " in order" : "", w->promises);
    open_core(w);
}

/* Until somebody comes back, or back to reading. */
static void pass_time(world *w)
{
    int64_t next = INT64_MAX;
    for (uint32_t i = 0; i < w->n_clients; i++) {
        const client *c = &w->clients[i];
        int64_t at = c->state == CLIENT_WAITS ? c->reads_us : c->turns_left > 0 ? c->back_us : INT64_MAX;
        if (at < next && at > w->now_us) next = at;
    }
    w->now_us = next;
}

/* Nothing can be done now: on to when the disk is done with something, or somebody acts. */
static void wait_a_while(world *w, bool due)
{
    int64_t disk_us = due ? fake_state_next_us(w->disk) : INT64_MAX;
    if (due && disk_us > w->now_us) w->now_us = disk_us;
    else if (!due && !somebody_reads(w)) pass_time(w);
}

static bool run_seed(sim_model *model, uint64_t seed, bool verbose)
{
    world w = {.verbose = verbose, .model = model, .now_us = 1};
    qw_core_counts counts;
    uint64_t idle = 0, n_waits = 0;
    open_world(&w, seed);
    for (uint32_t step = 0; w.n_live > 0 && !w.failed; step++) {
        uint64_t rows = w.n_rows;
        if (!clients_act(&w)) {
            pass_time(&w);
            continue;
        }
        if (below(3000) < (w.disk ? 20 : 2)) restart(&w);
        if (w.disk) fake_state_set_now(w.disk, w.now_us);
        qw_step done = qw_core_step(w.core);
        bool due = w.disk && fake_state_next_us(w.disk) < INT64_MAX; /* else at most what was done at once, and not polled yet */
        n_waits = done == QW_STEP_WAITS && !due && somebody_reads(&w) ? n_waits + 1 : 0;
        if (n_waits > 1) FAIL(&w, "it waits for nothing");
        check_readers(&w);
        if (done == QW_STEP_WAITS) wait_a_while(&w, due);
        take_events(&w);
        qw_core_check(w.core);
        idle = w.n_rows == rows && done != QW_STEP_WAITS && !qw_core_idle(w.core) ? idle + 1 : 0;
        if (idle > 3) FAIL(&w, "nothing is computed while requests wait");
        if (step > STEPS_MAX) FAIL(&w, "no end after %d steps", STEPS_MAX);
        w.now_us += 10;
    }
    qw_core_get_counts(w.core, &counts);
    if (!w.failed && counts.rows + w.n_rows_counted != w.n_rows)
        FAIL(&w, "the engine counts %llu rows, the model %llu", (unsigned long long)(counts.rows + w.n_rows_counted),
             (unsigned long long)w.n_rows);
    if (verbose) printf("%llu restarts, %llu tokens restored; ", (unsigned long long)w.n_restarts,
                        (unsigned long long)(w.n_restored + counts.restored_tokens));
    if (verbose) printf("%llu steps, %llu rows, %llu of %llu prompt tokens reused, %llu preemptions, %llu pages evicted\n",
                        (unsigned long long)counts.steps, (unsigned long long)counts.rows,
                        (unsigned long long)counts.reused_tokens, (unsigned long long)counts.prompt_tokens,
                        (unsigned long long)counts.preemptions, (unsigned long long)counts.prefix.pages_evicted);
    if (!w.failed) close_world(&w); /* a world that failed is left as it is */
    return !w.failed;
}

static uint64_t number(const char *s)
{
    char *end;
    uint64_t n = strtoull(s, &end, 10);
    if (*s && !*end) return n;
    fprintf(stderr, "sim: %s is not a number\n", s);
    exit(2);
}

int main(int argc, char **argv)
{
    uint64_t n_seeds = 200, base = 1, n_failed = 0;
    const char *path = NULL;
    bool verbose = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--verbose") == 0) verbose = true;
        else if (strcmp(argv[i], "--seeds") == 0 && i + 1 < argc) n_seeds = number(argv[++i]);
        else if (strcmp(argv[i], "--model") == 0 && i + 1 < argc) path = argv[++i];
        else if (strcmp(argv[i], "--base") == 0 && i + 1 < argc) base = number(argv[++i]);
        else {
            fprintf(stderr, "usage: sim [--seeds N] [--base B] [--model FILE.gguf] [--verbose]\n");
            return 2;
        }
    }
    sim_model *model = path ? sim_real_model(path) : sim_fake_model();
    if (path) { /* real tokens take real time */
        snapshots_max = 20;
        turns_max = 4;
        clients_max = 4;
    }
    printf("seeds %llu to %llu\n", (unsigned long long)base, (unsigned long long)(base + n_seeds - 1));
    for (uint64_t seed = base; seed < base + n_seeds; seed++) n_failed += !run_seed(model, seed, verbose);
    if (n_seeds >= 100 && n_draft_tokens == 0) {
        printf("the draft model was never asked\n");
        n_failed++;
        n_seeds++;
    }
    model->close(model);
    printf("%llu passed, %llu failed\n", (unsigned long long)(n_seeds - n_failed), (unsigned long long)n_failed);
    return n_failed > 0;
}
