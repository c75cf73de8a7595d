/* run.c: one request from its tokens to its terminal event, on the engine thread.
 *
 *     reuse what the last conversation shares -> prefill in pieces -> { draw, decode text, emit, forward }
 *
 * Between pieces and between tokens a cancelled request ends. What ends a request is decided in one place and
 * reported in exactly one terminal event.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/engine_private.h"

/* One answer being made. */
typedef struct answer {
    qw_engine *e;
    qw_job *job;
    qw_detok detok;
    qw_buf decoded; /* characters of the newest token */
    qw_stop stop;
    qw_buf text;    /* safe to show, not yet sent */
    qw_usage usage;
    qw_timings timings;
    int64_t started_us, first_token_us;
    qw_finish finish;
    qw_status status;
    qw_err err;
} answer;

static qw_event_node *new_event(const answer *a, qw_event_type type, qw_err *err)
{
    qw_event_node *node;
    if (qw_alloc(&node, 1, sizeof *node, "event", err) != QW_OK) return NULL;
    node->event.request = a->job->id;
    node->event.user = a->job->user;
    node->event.type = type;
    node->event.usage = a->usage;
    return node;
}

static qw_status send_progress(answer *a)
{
    qw_event_node *node = new_event(a, QW_EVENT_PROGRESS, &a->err);
    if (!node) return a->err.status;
    qw_events_push(&a->e->events, node, &a->job->cancelled);
    return QW_OK;
}

/* Sends what text is ready together with the token behind it; without a token only when there is text. */
static qw_status send_text(answer *a, const qw_sample *sample)
{
    if (!sample && a->text.n == 0) return QW_OK;
    qw_event_node *node = new_event(a, QW_EVENT_TEXT, &a->err);
    if (!node) return a->err.status;
    qw_status status = qw_strndup(&node->text, qw_buf_str(&a->text), a->text.n, &a->err);
    if (status != QW_OK) {
        free(node);
        return status;
    }
    node->event.text = (qw_text){.s = node->text, .n = a->text.n};
    if (sample) {
        memcpy(node->top, sample->top, sample->n_top * sizeof *node->top);
        node->token = (qw_event_token){.token = sample->token, .logprob = sample->logprob, .top = node->top,
                                       .n_top = sample->n_top};
        node->event.tokens = &node->token;
        node->event.n_tokens = 1;
    }
    qw_buf_clear(&a->text);
    qw_events_push(&a->e->events, node, &a->job->cancelled);
    return QW_OK;
}

static void send_end(answer *a)
{
    qw_err ignored;
    int64_t now = qw_clock_us();
    if (a->first_token_us) {
        a->timings.prefill_us = a->first_token_us - a->started_us;
        a->timings.decode_us = now - a->first_token_us;
    } else {
        a->timings.prefill_us = now - a->started_us;
    }
    qw_event_node *node = new_event(a, a->status == QW_OK ? QW_EVENT_DONE : QW_EVENT_ERROR, &ignored);
    QW_ASSERT(node); /* a request must end; without memory for one event the process cannot go on */
    node->event.timings = a->timings;
    node->event.finish = a->finish;
    node->event.error = a->err;
    if (a->status == QW_OK) memset(&node->event.error, 0, sizeof node->event.error);
    if (a->stop.hit) {
        strncpy(node->stop, a->stop.hit, QW_STOP_BYTES_MAX);
        node->event.stop = node->stop;
    }
    qw_events_push(&a->e->events, node, &a->job->cancelled);
}

/* Forward over tokens that follow the sequence; logits of the last one when wanted. */
static qw_status forward(answer *a, const int32_t *tokens, uint32_t n, bool want_logits)
{
    qw_engine *e = a->e;
    qw_row rows[QW_BATCH_ROWS];
    QW_TRY(qw_seq_reserve(e->seq, e->seq->n_tokens + n, &a->err));
    for (uint32_t i = 0; i < n; i++) {
        rows[i] = (qw_row){.seq = e->seq, .pos = e->seq->n_tokens + i, .token = tokens[i],
                            .silent = !want_logits || i + 1 < n};
    }
    qw_forward(e->rt.pass, rows, n);
    if (want_logits) {
        uint32_t last = n - 1;
        qw_pass_logits(e->rt.pass, &last, 1, e->logits, e->model->net->hp.n_vocab);
        for (size_t i = 0; i < e->n_banned; i++) e->logits[e->banned[i]] = -INFINITY;
    }
    if (qw_model_failed(e->model)) {
        return qw_fail(&a->err, QW_E_CORRUPT, "the model's file changed or could not be read while it was in use; "
                                              "load it again");
    }
    memmove(e->seq_tokens + e->seq->n_tokens, tokens, n * sizeof *tokens);
    qw_seq_advance(e->seq, tokens, n);
    return QW_OK;
}

/* Keeps what the prompt shares with the conversation computed last. At least one token is computed, since its
 * logits are wanted. */
static qw_status reuse_prefix(answer *a)
{
    qw_engine *e = a->e;
    uint32_t n = 0;
    while (n < e->seq->n_tokens && n + 1 < a->job->n_tokens && e->seq_tokens[n] == a->job->tokens[n]) n++;
    if (!qw_seq_can_truncate(e->seq, n)) n = 0;
    QW_TRY(qw_seq_truncate(e->seq, n, e->seq_tokens, &a->err));
    a->usage.cached_tokens = n;
    a->usage.prefilled = n;
    return QW_OK;
}

static qw_status prefill(answer *a)
{
    uint32_t n_prompt = (uint32_t)a->job->n_tokens;
    a->usage.prompt_tokens = n_prompt;
    if (atomic_load(&a->job->cancelled)) { /* while it waited: leave the state to whom it belongs */
        a->finish = QW_FINISH_CANCELLED;
        return QW_OK;
    }
    QW_TRY(reuse_prefix(a));
    while (a->usage.prefilled < n_prompt && !atomic_load(&a->job->cancelled)) {
        uint32_t left = n_prompt - a->usage.prefilled, n = left < QW_BATCH_ROWS ? left : QW_BATCH_ROWS;
        QW_TRY(forward(a, a->job->tokens + a->usage.prefilled, n, n == left));
        a->usage.prefilled += n;
        if (left > n) QW_TRY(send_progress(a));
    }
    if (atomic_load(&a->job->cancelled)) a->finish = QW_FINISH_CANCELLED;
    return QW_OK;
}

static bool ends_answer(const answer *a, int32_t token)
{
    const qw_tokenizer *t = a->e->model->tokenizer;
    if (a->job->ignore_eos || !t) return false;
    return qw_tokenizer_is_end(t, token) || (a->job->fim && qw_tokenizer_is_control(t, token));
}

/* Text of a token, through the stop strings, into a->text. */
static qw_status decode_text(answer *a, int32_t token)
{
    bool found;
    if (!a->e->model->tokenizer) return QW_OK;
    qw_buf_clear(&a->decoded);
    QW_TRY(qw_detok_push(&a->detok, a->e->model->tokenizer, token, &a->decoded, &a->err));
    QW_TRY(qw_stop_push(&a->stop, qw_buf_str(&a->decoded), a->decoded.n, &a->text, &found, &a->err));
    if (found) a->finish = QW_FINISH_STOP;
    return QW_OK;
}

/* Draws, shows and feeds back tokens until something ends the answer. */
static qw_status decode(answer *a)
{
    qw_engine *e = a->e;
    qw_sample sample;
    while (a->finish == QW_FINISH_NONE) {
        qw_sampler_draw(e->sampler, e->logits, e->seq->n_tokens, &sample);
        if (!a->first_token_us) a->first_token_us = qw_clock_us();
        a->usage.completion_tokens++;
        qw_sampler_accept(e->sampler, sample.token);
        if (ends_answer(a, sample.token)) {
            a->finish = QW_FINISH_STOP;
            break;
        }
        QW_TRY(decode_text(a, sample.token));
        QW_TRY(send_text(a, &sample));
        if (a->finish != QW_FINISH_NONE) break;
        if (a->job->max_tokens > 0 && a->usage.completion_tokens >= a->job->max_tokens) {
            a->finish = QW_FINISH_LENGTH;
        } else if (e->seq->n_tokens >= e->context) {
            a->finish = QW_FINISH_CONTEXT;
        } else if (atomic_load(&a->job->cancelled)) {
            a->finish = QW_FINISH_CANCELLED;
        } else {
            QW_TRY(forward(a, &sample.token, 1, true));
        }
    }
    return QW_OK;
}

/* Text still held by the detokeniser and the stop strings, unless a stop string cut it off. */
static qw_status flush_text(answer *a)
{
    bool found;
    if (a->stop.hit) return QW_OK;
    qw_buf_clear(&a->decoded);
    QW_TRY(qw_detok_flush(&a->detok, &a->decoded, &a->err));
    QW_TRY(qw_stop_push(&a->stop, qw_buf_str(&a->decoded), a->decoded.n, &a->text, &found, &a->err));
    if (found) a->finish = QW_FINISH_STOP; /* in what a cut character became */
    else QW_TRY(qw_stop_flush(&a->stop, &a->text, &a->err));
    return send_text(a, NULL);
}

void qw_engine_run_job(qw_engine *e, qw_job *job)
{
    answer a = {.e = e, .job = job, .started_us = qw_clock_us()};
    a.timings.queue_us = a.started_us - job->submitted_us;
    qw_buf_init(&a.decoded, 1 << 20, "decoded text");
    qw_buf_init(&a.text, 2 << 20, "answer text");
    qw_stop_begin(&a.stop, (const char *const *)job->stop, job->n_stop);
    qw_sampler_begin(e->sampler, &job->sampling, job->tokens, job->n_tokens);
    a.status = prefill(&a);
    if (a.status == QW_OK && a.finish == QW_FINISH_NONE) a.status = decode(&a);
    if (a.status == QW_OK) a.status = flush_text(&a);
    send_end(&a);
    qw_stop_free(&a.stop);
    qw_buf_free(&a.decoded);
    qw_buf_free(&a.text);
    if (a.status == QW_E_CORRUPT) {
        pthread_mutex_lock(&e->lock);
        e->dead = a.err;
        pthread_mutex_unlock(&e->lock);
    }
}
