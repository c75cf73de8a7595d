/* engine.c: the engine's life: create, the thread, the queue of requests, destroy. See qw.h.
 *
 * Requests are served one after the other in order of arrival.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/engine_private.h"
#include "engine/request.h"

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
    free(job->bias);
    free(job->tokens);
    qw_parser_destroy(job->parser);
    free(job);
}

static qw_status job_create(const qw_engine *e, const qw_request *r, qw_job **out, qw_err *err)
{
    qw_job *job = NULL;
    qw_tokens tokens = {0};
    bool in_thinking = false;
    qw_status status;
    QW_TRY_GOTO(qw_alloc(&job, 1, sizeof *job, "request", err));
    job->sampling = qw_request_sampling(e->model, r);
    QW_TRY_GOTO(qw_request_check(e->model, r, &job->sampling, err));
    QW_TRY_GOTO(qw_request_tokens(e->model, r, &tokens, &in_thinking, err));
    QW_TRY_GOTO(qw_request_parser(e->model, r, in_thinking, &job->parser, err));
    if (tokens.n >= e->context) {
        status = qw_fail(err, QW_E_LIMIT, "the prompt has %zu tokens and the context holds %u, one of them for the "
                                          "answer: shorten it or take a larger context",
                         tokens.n, e->context);
        goto fail;
    }
    job->tokens = tokens.ids;
    job->n_tokens = tokens.n;
    tokens = (qw_tokens){0};
    job->user = r->user;
    job->max_tokens = r->max_tokens;
    job->ignore_eos = r->ignore_eos;
    job->fim = r->kind == QW_PROMPT_FIM;
    job->one_call = r->one_call;
    QW_TRY_GOTO(qw_alloc(&job->bias, r->sampling.n_bias, sizeof *job->bias, "logit bias", err));
    if (r->sampling.n_bias) memcpy(job->bias, r->sampling.bias, r->sampling.n_bias * sizeof *job->bias);
    job->sampling.bias = job->bias;
    QW_TRY_GOTO(qw_alloc(&job->stop, r->n_stop, sizeof *job->stop, "stop strings", err));
    for (; job->n_stop < r->n_stop; job->n_stop++) {
        const char *s = r->stop[job->n_stop];
        QW_TRY_GOTO(qw_strndup(&job->stop[job->n_stop], s, strlen(s), err));
    }
    *out = job;
    return QW_OK;
fail:
    qw_tokens_free(&tokens);
    qw_job_free(job);
    return status;
}

qw_status qw_submit(qw_engine *e, const qw_request *r, uint64_t *id, qw_err *err)
{
    qw_job *job = NULL;
    qw_status status = QW_OK;
    QW_TRY(job_create(e, r, &job, err));
    job->submitted_us = qw_clock_us();
    pthread_mutex_lock(&e->lock);
    if (e->dead.status != QW_OK) {
        if (err) *err = e->dead;
        status = e->dead.status;
    } else if (e->n_queue >= e->n_queue_max) {
        status = qw_fail(err, QW_E_BUSY, "%u requests are waiting, which is the most this engine keeps; try again",
                         e->n_queue);
    } else {
        *id = job->id = ++e->next_id;
        if (e->last) e->last->next = job;
        else e->first = job;
        e->last = job;
        e->n_queue++;
        pthread_cond_signal(&e->work);
    }
    pthread_mutex_unlock(&e->lock);
    if (status != QW_OK) qw_job_free(job);
    return status;
}

void qw_cancel(qw_engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->lock);
    if (e->running && e->running->id == id) atomic_store(&e->running->cancelled, true);
    for (qw_job *job = e->first; job; job = job->next) {
        if (job->id == id) atomic_store(&job->cancelled, true);
    }
    pthread_mutex_unlock(&e->lock);
}

bool qw_poll(qw_engine *e, int timeout_ms, qw_event *out)
{
    return qw_events_poll(&e->events, timeout_ms, out);
}

int qw_engine_fd(const qw_engine *e)
{
    return e->events.fd;
}

uint32_t qw_engine_context(const qw_engine *e)
{
    return e->context;
}

int qw_engine_threads(const qw_engine *e)
{
    return e->rt.n_threads;
}

const char *qw_engine_note(const qw_engine *e)
{
    return e->model->weights ? qw_weights_note(e->model->weights) : "";
}

/* ---- thread ----------------------------------------------------------------------------------- */

static qw_job *next_job(qw_engine *e)
{
    qw_job *job = NULL;
    pthread_mutex_lock(&e->lock);
    while (!e->first && !e->stop) pthread_cond_wait(&e->work, &e->lock);
    if (!e->stop) {
        job = e->first;
        e->first = job->next;
        if (!e->first) e->last = NULL;
        e->n_queue--;
        e->running = job;
    }
    pthread_mutex_unlock(&e->lock);
    return job;
}

static void *engine_main(void *arg)
{
    qw_engine *e = arg;
    qw_job *job;
    while ((job = next_job(e))) {
        qw_engine_run_job(e, job);
        pthread_mutex_lock(&e->lock);
        e->running = NULL;
        pthread_mutex_unlock(&e->lock);
        qw_job_free(job);
    }
    return NULL;
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

static qw_status create_compute(qw_engine *e, const qw_engine_options *o, qw_err *err)
{
    uint32_t n_vocab = e->model->net->hp.n_vocab;
    qw_runtime_options ro = qw_engine_runtime_options(e->model, o, e->context);
    QW_TRY(qw_runtime_create(e->model->net, &ro, &e->rt, err));
    QW_TRY(qw_model_prepare(e->model, e->rt.pool, err));
    QW_TRY(qw_seq_create(e->rt.seqs, &e->seq, err));
    QW_TRY(qw_alloc(&e->seq_tokens, e->context, sizeof *e->seq_tokens, "token ids", err));
    QW_TRY(qw_alloc(&e->logits, n_vocab, sizeof *e->logits, "logits", err));
    QW_TRY(qw_sampler_create(n_vocab, &e->sampler, err));
    return find_banned(e, err);
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
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->work, NULL);
    e->events.fd = -1;
    QW_TRY_GOTO(qw_events_init(&e->events, err));
    QW_TRY_GOTO(create_compute(e, o, err));
    if (pthread_create(&e->thread, NULL, engine_main, e) != 0) {
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
    if (e->running) atomic_store(&e->running->cancelled, true);
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
    qw_sampler_destroy(e->sampler);
    free(e->banned);
    free(e->logits);
    free(e->seq_tokens);
    if (e->seq) qw_seq_release(e->seq);
    qw_runtime_destroy(&e->rt);
    qw_events_free(&e->events);
    pthread_cond_destroy(&e->work);
    pthread_mutex_destroy(&e->lock);
    free(e);
}
