/* engine.c: the engine's life: create, the thread, the inbox of requests, destroy. See qw.h; core.h is what it does. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/thread.h"
#include "engine/dial.h"
#include "engine/draft_small.h"
#include "engine/guesser.h"
#include "engine/request.h"

enum {
    SAVE_LOOK_US = 200000,
    FLUSH_US = 10000000, /* at the end, for what is not saved yet */
    STATE_THREADS = 2
};

qw_engine_options qw_engine_options_default(void)
{
    return (qw_engine_options){0};
}

/* ---- jobs ------------------------------------------------------------------------------------- */

void qw_job_free(qw_job *job)
{
    if (!job) return;
    for (size_t i = 0; i < job->n_stop; i++) free(job->stop[i]);
    free(job->stop);
    free(job->tokens);
    free(job->edges);
    qw_sampling_run_destroy(job->draws);
    qw_parser_destroy(job->parser);
    qw_form_destroy(job->form);
    qw_loops_destroy(job->loops);
    qw_memory_release(job->said);
    qw_feed_release(job->feed);
    free(job);
}

/* Takes the prompt and makes room for those of the answer. */
static qw_status set_tokens(const qw_engine *e, const qw_request *r, const qw_sampling *sampling, qw_job *job,
                            qw_prompt *prompt, qw_err *err)
{
    qw_tokens *tokens = &prompt->tokens;
    if (tokens->n >= e->context) {
        return qw_fail(err, QW_E_LIMIT, "the prompt has %zu tokens and the context holds %u, one of them for the "
                                        "answer: shorten it or take a larger context",
                       tokens->n, e->context);
    }
    size_t most = e->context - tokens->n + 1; /* the last one need not be computed */
    if (r->max_tokens > 0 && (uint64_t)r->max_tokens < most) most = (size_t)r->max_tokens;
    job->n_tokens = tokens->n;
    job->n_tokens_max = tokens->n + most;
    job->tokens = tokens->ids;
    size_t n_had = tokens->n;
    *tokens = (qw_tokens){0};
    job->edges = prompt->edges.at;
    job->n_edges = prompt->edges.n;
    prompt->edges = (qw_edges){0};
    QW_TRY(qw_grow(&job->tokens, n_had, job->n_tokens_max, sizeof *job->tokens, "tokens of an answer", err));
    return qw_sampling_run_create(sampling, e->model->net->hp.n_vocab, job->tokens, job->n_tokens, most, &job->draws, err);
}

static qw_status job_create(const qw_engine *e, const qw_request *r, qw_job **out, qw_err *err)
{
    qw_job *job = NULL;
    qw_prompt prompt = {0};
    qw_sampling sampling = qw_request_sampling(e->model, r);
    qw_status status;
    QW_TRY_GOTO(qw_alloc(&job, 1, sizeof *job, "request", err));
    QW_TRY_GOTO(qw_request_check(e->model, r, &sampling, err));
    QW_TRY_GOTO(qw_request_prompt(e->model, r, &prompt, err));
    QW_TRY_GOTO(qw_request_parser(e->model, r, prompt.in_thinking, &job->parser, err));
    QW_TRY_GOTO(qw_form_create(e->model, r, prompt.in_thinking, &job->form, err));
    QW_TRY_GOTO(qw_request_said(e->model, r, &prompt, &job->said, err));
    QW_TRY_GOTO(qw_request_loops(r, &job->loops, err));
    QW_TRY_GOTO(qw_feed_create(&job->feed, err));
    QW_TRY_GOTO(set_tokens(e, r, &sampling, job, &prompt, err));
    job->think = qw_request_think(e->model, r);
    job->thinking = qw_dial_use(e->model->chat, r);
    job->user = r->user;
    job->max_tokens = r->max_tokens;
    job->ignore_eos = r->ignore_eos;
    job->fim = r->kind == QW_PROMPT_FIM;
    job->one_call = r->one_call;
    job->priority = r->priority;
    job->weight = r->owner_weight;
    qw_request_owner(r, job->owner);
    QW_TRY_GOTO(qw_alloc(&job->stop, r->n_stop, sizeof *job->stop, "stop strings", err));
    for (; job->n_stop < r->n_stop; job->n_stop++) {
        const char *s = r->stop[job->n_stop];
        QW_TRY_GOTO(qw_strndup(&job->stop[job->n_stop], s, strlen(s), err));
    }
    *out = job;
    job = NULL;
    status = QW_OK;
fail:
    qw_prompt_free(&prompt);
    qw_job_free(job);
    return status;
}

/* Under the lock. */
static void put_into_inbox(qw_engine *e, qw_job *job)
{
    job->id = ++e->next_id;
    qw_events_open(&e->events, job->feed, job->id);
    if (e->last) e->last->next = job;
    else e->first = job;
    e->last = job;
    e->n_inbox++;
    e->inbox_tokens += job->n_tokens;
    job->all_next = e->all;
    if (e->all) e->all->all_prev = job;
    e->all = job;
    pthread_cond_signal(&e->work);
}

/* Is there room for one more? Under the lock. */
static qw_status check_queue(qw_engine *e, const qw_job *job, qw_err *err)
{
    uint32_t n = e->n_inbox + e->n_waiting, n_ended = qw_events_ended(&e->events);
    uint64_t n_tokens = e->inbox_tokens + e->waiting_tokens;
    if (n >= e->n_queue_max)
        return qw_fail(err, QW_E_BUSY, "%u requests are waiting, which is the most this engine keeps; try again", n);
    if (n > 0 && n_tokens + job->n_tokens > e->queue_tokens_max) {
        return qw_fail(err, QW_E_BUSY, "requests with %llu tokens are waiting, and with %zu more it would be above %llu, the most "
                                       "this engine keeps; try again",
                       (unsigned long long)n_tokens, job->n_tokens, (unsigned long long)e->queue_tokens_max);
    }
    if (n_ended >= QW_UNREAD_MAX)
        return qw_fail(err, QW_E_BUSY, "%u answers have ended and wait to be polled: poll them first", n_ended);
    return QW_OK;
}

qw_status qw_submit(qw_engine *e, const qw_request *r, uint64_t *id, qw_err *err)
{
    qw_job *job = NULL;
    qw_status status = QW_OK;
    QW_TRY(job_create(e, r, &job, err));
    job->submitted_us = qw_clock_us();
    if (r->deadline_ms > 0) job->deadline_us = job->submitted_us + r->deadline_ms * 1000;
    pthread_mutex_lock(&e->lock);
    if (e->dead.status != QW_OK) {
        if (err) *err = e->dead;
        status = e->dead.status;
    } else if ((status = check_queue(e, job, err)) == QW_OK) {
        put_into_inbox(e, job);
        *id = job->id;
    }
    pthread_mutex_unlock(&e->lock);
    if (status != QW_OK) qw_job_free(job);
    return status;
}

void qw_cancel(qw_engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->lock);
    for (qw_job *job = e->all; job; job = job->all_next) {
        if (job->id != id) continue;
        atomic_store(&job->cancelled, true);
        e->woken = true; /* it may wait for the store or for a reader */
        pthread_cond_signal(&e->work);
    }
    pthread_mutex_unlock(&e->lock);
}

bool qw_poll(qw_engine *e, int timeout_ms, qw_event *out)
{
    return qw_events_poll(&e->events, timeout_ms, out);
}

bool qw_poll_request(qw_engine *e, uint64_t id, int timeout_ms, qw_event *out)
{
    return qw_events_poll_one(&e->events, id, timeout_ms, out);
}

int qw_engine_fd(const qw_engine *e)
{
    return e->events.fd;
}

uint32_t qw_engine_context(const qw_engine *e)
{
    return e->context;
}

void qw_engine_get_stats(qw_engine *e, qw_engine_stats *out)
{
    pthread_mutex_lock(&e->lock);
    *out = e->stats;
    out->n_waiting = e->n_inbox + e->n_waiting;
    memcpy(out->save_fault, e->save_fault, sizeof out->save_fault);
    pthread_mutex_unlock(&e->lock);
}

int qw_engine_threads(const qw_engine *e)
{
    return e->rt.n_threads;
}

const char *qw_engine_note(const qw_engine *e)
{
    if (e->note[0]) return e->note;
    return e->model->weights ? qw_weights_note(e->model->weights) : "";
}

/* ---- thread ----------------------------------------------------------------------------------- */

/* The core is done with a job. */
static void job_ended(void *ctx, qw_job *job)
{
    qw_engine *e = ctx;
    pthread_mutex_lock(&e->lock);
    if (job->all_prev) job->all_prev->all_next = job->all_next;
    else e->all = job->all_next;
    if (job->all_next) job->all_next->all_prev = job->all_prev;
    pthread_mutex_unlock(&e->lock);
    qw_job_free(job);
}

static qw_engine_stats stats_of(const qw_core_counts *c)
{
    qw_engine_stats s = {.n_running = c->n_running, .requests = c->requests, .prompt_tokens = c->prompt_tokens,
                         .reused_tokens = c->reused_tokens, .computed_tokens = c->rows, .preemptions = c->preemptions,
                         .cached_pages = c->prefix.n_pages, .cached_snapshots = c->prefix.n_snapshots,
                         .restored_tokens = c->restored_tokens, .guessed = c->guessed, .guessed_right = c->guessed_right,
                         .evicted_pages = c->prefix.pages_evicted, .evicted_snapshots = c->prefix.snapshots_evicted,
                         .save_failures = c->prefix.save_failures};
    memcpy(s.missed, c->missed, sizeof s.missed);
    return s;
}

/* Until there is work; with unsaved pasts not for ever. False: it is time to look after those. Under the lock. */
static bool sleep_a_while(qw_engine *e)
{
    if (!qw_core_has_unsaved(e->core) && !e->waits) return pthread_cond_wait(&e->work, &e->lock) == 0;
    return qw_cond_wait_until(&e->work, &e->lock, qw_clock_us() + SAVE_LOOK_US);
}

/* The store is done with something, or a reader came back. */
static void wake(void *ctx)
{
    qw_engine *e = ctx;
    pthread_mutex_lock(&e->lock);
    e->woken = true;
    pthread_cond_signal(&e->work);
    pthread_mutex_unlock(&e->lock);
}

/* Tells callers how the core stands. */
static void publish(qw_engine *e)
{
    qw_core_counts counts;
    qw_err fault;
    qw_core_get_counts(e->core, &counts);
    bool faulty = e->state && qw_state_io_report(e->state, &fault);
    pthread_mutex_lock(&e->lock);
    if (faulty) memcpy(e->save_fault, fault.text, sizeof e->save_fault);
    e->n_waiting = counts.n_waiting;
    e->waiting_tokens = counts.waiting_tokens;
    e->stats = stats_of(&counts);
    pthread_mutex_unlock(&e->lock);
}

/* Moves the inbox to the core; waits for something to do. False: the engine stops. */
static bool take_jobs(qw_engine *e)
{
    publish(e);
    pthread_mutex_lock(&e->lock);
    while (!e->first && !e->stop && !e->woken && (e->waits || qw_core_idle(e->core))) {
        if (!sleep_a_while(e)) break;
    }
    e->woken = false;
    bool go_on = !e->stop;
    qw_job *job = e->first, *next;
    e->first = e->last = NULL;
    e->n_waiting += e->n_inbox; /* until they are counted */
    e->waiting_tokens += e->inbox_tokens;
    e->n_inbox = 0;
    e->inbox_tokens = 0;
    pthread_mutex_unlock(&e->lock);
    for (; job; job = next) {
        next = job->next;
        qw_core_add(e->core, job);
    }
    return go_on;
}

static void *engine_main(void *arg)
{
    qw_engine *e = arg;
    while (take_jobs(e)) e->waits = qw_core_step(e->core) == QW_STEP_WAITS;
    if (e->state) qw_core_finish(e->core, FLUSH_US);
    return NULL;
}

/* ---- what the core computes with ---------------------------------------------------------------- */

static void forward(void *ctx, const qw_row *rows, size_t n_rows)
{
    qw_forward(((qw_engine *)ctx)->rt.pass, rows, n_rows);
}

static void logits(void *ctx, const uint32_t *rows, size_t n, float *out, size_t ld)
{
    qw_pass_logits(((qw_engine *)ctx)->rt.pass, rows, n, out, ld);
}

/* A model that failed once is not used again. */
static bool failed(void *ctx, qw_err *err)
{
    qw_engine *e = ctx;
    if (!qw_model_failed(e->model)) return false;
    qw_fail(err, QW_E_CORRUPT, "the model's file changed or could not be read while it was in use; load it again");
    pthread_mutex_lock(&e->lock);
    e->dead = *err;
    pthread_mutex_unlock(&e->lock);
    return true;
}

static int64_t clock_us(void *ctx)
{
    (void)ctx;
    return qw_clock_us();
}

/* ---- life ------------------------------------------------------------------------------------- */

/* Padding rows of the vocabulary have finite logits and no text. */
static qw_status find_banned(qw_engine *e, qw_err *err)
{
    const qw_tokenizer *t = e->model->tokenizer;
    uint32_t n_vocab = e->model->net->hp.n_vocab;
    QW_TRY(qw_alloc(&e->banned, n_vocab, sizeof *e->banned, "banned tokens", err));
    for (uint32_t i = 0; t && i < n_vocab; i++) {
        if (qw_tokenizer_is_unused(t, (int32_t)i)) e->banned[e->n_banned++] = (int32_t)i;
    }
    return QW_OK;
}

enum { PASS_ROWS = 8 /* of a prompt take about as long as one row alone: a guess, until it was measured */ };

/* A guess of what a row of a prompt takes, likewise. */
static double us_per_row(const qw_engine *e, const qw_model *m)
{
    enum { MAC_PER_US = 50000 }; /* of one thread */
    return (double)m->net->n_params / ((double)MAC_PER_US * e->rt.n_threads) + 1;
}

static qw_status create_core(qw_engine *e, const qw_plan *plan, qw_err *err)
{
    const qw_guesser none = {0};
    qw_core_options o = {
        .compute = {.ctx = e, .forward = forward, .logits = logits, .failed = failed, .clock_us = clock_us},
        .pool = e->rt.seqs, .tokenizer = e->model->tokenizer, .events = &e->events, .n_vocab = e->model->net->hp.n_vocab,
        .banned = e->banned, .n_banned = e->n_banned, .context = e->context, .n_lanes = plan->n_parallel,
        .guesser = e->guesses ? qw_guesses_guesser(e->guesses) : none, .n_rows_max = QW_BATCH_ROWS,
        .n_snapshots = plan->n_snapshots, .us_per_row = us_per_row(e, e->model), .store = e->state ? &e->store : NULL,
        .ended = job_ended, .ended_ctx = e};
    if (getrandom(&o.key, sizeof o.key, 0) != sizeof o.key) return qw_fail_errno(err, "cannot draw a random key");
    return qw_core_create(&o, &e->core, err);
}

/* Opens the folder of saved pasts. */
static qw_status open_store(qw_engine *e, const qw_engine_options *o, qw_err *err)
{
    const qw_seq_pool_options *po = qw_seq_pool_get_options(e->rt.seqs);
    qw_state_layout layout = {.exact = e->model->exact, .shape = po->shape, .page_bytes = qw_page_bytes(e->rt.seqs),
                              .recurrent_bytes = po->recurrent_bytes};
    const qw_state_limits limits = {.bytes_max = o->state_bytes_max ? o->state_bytes_max : QW_STATE_BYTES_DEFAULT,
                                    .free_min = QW_STATE_FREE_MIN, .age_s_max = QW_STATE_AGE_S};
    qw_state_io_options io = {.n_threads = STATE_THREADS, .wake = wake, .wake_ctx = e};
    if (!o->state_dir) return QW_OK;
    qw_gguf_identity(e->model->file, layout.model);
    QW_TRY(qw_state_files_open(o->state_dir, &layout, &limits, &e->state_files, err));
    io.files = e->state_files;
    QW_TRY(qw_state_io_open(&io, &e->state, err));
    e->store = qw_state_io_store(e->state);
    if (e->model->memory) qw_memory_attach(e->model->memory, e->state, e->model->net->hp.n_vocab);
    return QW_OK;
}

/* Without a folder that can be used the engine still works. */
static void open_state(qw_engine *e, const qw_engine_options *o)
{
    qw_err err;
    if (open_store(e, o, &err) == QW_OK) return;
    snprintf(e->note, sizeof e->note, "nothing that is computed can be saved: %s", err.text);
    if (e->state_files) qw_state_files_close(e->state_files);
    e->state_files = NULL;
    e->state = NULL;
}

static qw_status create_small(qw_engine *e, const qw_engine_options *o, const qw_plan *plan, qw_err *err)
{
    qw_draft_small_options so = {.small = o->draft, .pool = e->rt.pool, .n_lanes = plan->n_parallel, .context = e->context,
                                 .us_per_row = us_per_row(e, o->draft)};
    QW_TRY(qw_draft_small_check(e->model, o->draft, &so.n_common, err));
    QW_TRY(qw_draft_small_create(&so, &e->small, err));
    if (o->draft->weights && o->draft != e->model && qw_weights_note(o->draft->weights)[0])
        snprintf(e->note, sizeof e->note, "of the draft model: %s", qw_weights_note(o->draft->weights));
    return QW_OK;
}

static qw_status create_guesses(qw_engine *e, const qw_engine_options *o, const qw_plan *plan, qw_err *err)
{
    qw_guesses_options g = {.n_lanes = plan->n_parallel, .n_vocab = e->model->net->hp.n_vocab, .context = e->context,
                            .us_per_pass = PASS_ROWS * us_per_row(e, e->model)};
    if (o->plain_decoding) return QW_OK;
    if (o->draft) {
        QW_TRY(create_small(e, o, plan, err));
        g.model = qw_draft_small_model(e->small);
    } else if (qw_engine_uses_mtp(e->model, o)) {
        double us_per_token = g.us_per_pass / e->model->net->hp.n_layers; /* a layer, and a head that may be large */
        QW_TRY(qw_draft_mtp_create(e->rt.pass, e->model->exact, plan->n_parallel, 2 * us_per_token, &e->mtp, err));
        g.model = qw_draft_mtp_model(e->mtp);
        g.mtp = e->mtp;
    }
    return qw_guesses_create(&g, &e->guesses, err);
}

static qw_status create_compute(qw_engine *e, const qw_engine_options *o, const qw_plan *plan, qw_err *err)
{
    qw_runtime_options ro = qw_engine_runtime_options(e->model, o, plan);
    QW_TRY(qw_runtime_create(e->model->net, &ro, &e->rt, err));
    QW_TRY(qw_model_prepare(e->model, e->rt.pool, err));
    QW_TRY(find_banned(e, err));
    QW_TRY(create_guesses(e, o, plan, err));
    open_state(e, o);
    return create_core(e, plan, err);
}

qw_status qw_engine_create(qw_model *model, const qw_engine_options *o, qw_engine **out, qw_err *err)
{
    qw_engine *e = NULL;
    qw_plan plan;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_engine_plan(model, o, &plan, err));
    QW_TRY(qw_alloc(&e, 1, sizeof *e, "engine", err));
    e->model = model;
    e->context = plan.context;
    e->n_queue_max = o->n_queue_max ? o->n_queue_max : QW_QUEUE_DEFAULT;
    e->queue_tokens_max = o->queue_tokens_max ? o->queue_tokens_max : (uint64_t)QW_QUEUE_CONTEXTS * plan.context;
    pthread_mutex_init(&e->lock, NULL);
    qw_cond_init(&e->work);
    e->events.fd = -1;
    QW_TRY_GOTO(qw_events_init(&e->events, QW_BACKLOG_MAX, err));
    e->events.wake = wake;
    e->events.wake_ctx = e;
    QW_TRY_GOTO(create_compute(e, o, &plan, err));
    if (qw_thread_create(&e->thread, engine_main, e) != 0) {
        status = qw_fail(err, QW_E_MEMORY, "cannot start the engine thread");
        goto fail;
    }
    e->thread_started = true;
    *out = e;
    return QW_OK;
fail:
    qw_engine_destroy(e);
    return status;
}

static void stop_thread(qw_engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->stop = true;
    for (qw_job *job = e->all; job; job = job->all_next) atomic_store(&job->cancelled, true);
    pthread_cond_broadcast(&e->work);
    pthread_mutex_unlock(&e->lock);
    qw_events_close(&e->events);
    pthread_join(e->thread, NULL);
}

void qw_engine_destroy(qw_engine *e)
{
    if (!e) return;
    if (e->thread_started) stop_thread(e);
    while (e->first) {
        qw_job *next = e->first->next;
        qw_job_free(e->first);
        e->first = next;
    }
    if (e->state && e->model->memory) qw_memory_detach(e->model->memory, e->state);
    if (e->state) qw_state_io_close(e->state, 0); /* what could be saved is, by now; but for answers */
    if (e->state_files) qw_state_files_close(e->state_files);
    qw_core_destroy(e->core);
    qw_guesses_destroy(e->guesses);
    qw_draft_small_destroy(e->small);
    qw_draft_mtp_destroy(e->mtp);
    free(e->banned);
    qw_runtime_destroy(&e->rt);
    qw_events_free(&e->events);
    pthread_cond_destroy(&e->work);
    pthread_mutex_destroy(&e->lock);
    free(e);
}
