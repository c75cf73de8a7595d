/* run.c: one request from its tokens to its terminal event, on the engine thread.
 *
 *     reuse what the last conversation shares -> prefill in pieces -> { draw, hand to the answer, forward }
 *
 * Between pieces and between tokens a cancelled request ends. What becomes of the tokens is the business of answer.c.
 */
#include <math.h>
#include <string.h>

#include "engine/answer.h"

/* Forward over tokens that follow the sequence; logits of the last one when wanted. */
static qw_status forward(qw_engine *e, const int32_t *tokens, uint32_t n, bool want_logits, qw_err *err)
{
    qw_row rows[QW_BATCH_ROWS];
    QW_TRY(qw_seq_reserve(e->seq, e->seq->n_tokens + n, err));
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
        return qw_fail(err, QW_E_CORRUPT, "the model's file changed or could not be read while it was in use; "
                                          "load it again");
    }
    memmove(e->seq_tokens + e->seq->n_tokens, tokens, n * sizeof *tokens);
    qw_seq_advance(e->seq, tokens, n);
    return QW_OK;
}

/* Keeps what the prompt shares with the conversation computed last, *n tokens. At least one token is computed, since
 * its logits are wanted. */
static qw_status reuse_prefix(qw_engine *e, const qw_job *job, uint32_t *n, qw_err *err)
{
    *n = 0;
    while (*n < e->seq->n_tokens && *n + 1 < job->n_tokens && e->seq_tokens[*n] == job->tokens[*n]) ++*n;
    if (!qw_seq_can_truncate(e->seq, *n)) *n = 0;
    return qw_seq_truncate(e->seq, *n, e->seq_tokens, err);
}

static qw_status prefill(qw_engine *e, const qw_job *job, qw_engine_answer *a, qw_err *err)
{
    uint32_t n_prompt = (uint32_t)job->n_tokens, done;
    if (atomic_load(&job->cancelled)) return QW_OK; /* while it waited: leave the state to whom it belongs */
    QW_TRY(reuse_prefix(e, job, &done, err));
    qw_engine_answer_reused(a, done);
    while (done < n_prompt && !atomic_load(&job->cancelled)) {
        uint32_t left = n_prompt - done, n = left < QW_BATCH_ROWS ? left : QW_BATCH_ROWS;
        QW_TRY(forward(e, job->tokens + done, n, n == left, err));
        QW_TRY(qw_engine_answer_prefilled(a, n, err));
        done += n;
    }
    return QW_OK;
}

/* Draws and feeds back tokens until something ends the answer. */
static qw_status decode(qw_engine *e, const qw_job *job, qw_engine_answer *a, qw_finish *finish, qw_err *err)
{
    qw_sample sample;
    for (*finish = QW_FINISH_NONE; *finish == QW_FINISH_NONE;) {
        qw_sampler_draw(e->sampler, e->logits, e->seq->n_tokens, &sample);
        qw_sampler_accept(e->sampler, sample.token);
        QW_TRY(qw_engine_answer_push(a, &sample, err));
        if (a->finish != QW_FINISH_NONE) {
            *finish = a->finish;
        } else if (e->seq->n_tokens >= e->context) {
            *finish = QW_FINISH_CONTEXT;
        } else if (atomic_load(&job->cancelled)) {
            *finish = QW_FINISH_CANCELLED;
        } else {
            QW_TRY(forward(e, &sample.token, 1, true, err));
        }
    }
    return QW_OK;
}

static void give_up(qw_engine *e, const qw_err *err)
{
    pthread_mutex_lock(&e->lock);
    e->dead = *err;
    pthread_mutex_unlock(&e->lock);
}

void qw_engine_run_job(qw_engine *e, qw_job *job)
{
    qw_engine_answer a;
    qw_err err;
    qw_finish finish = QW_FINISH_CANCELLED;
    qw_engine_answer_begin(&a, job, e->model->tokenizer, &e->events);
    qw_sampler_begin(e->sampler, &job->sampling, job->tokens, job->n_tokens);
    qw_status status = prefill(e, job, &a, &err);
    if (status == QW_OK && !atomic_load(&job->cancelled)) status = decode(e, job, &a, &finish, &err);
    if (status == QW_OK) qw_engine_answer_end(&a, finish);
    else qw_engine_answer_fail(&a, &err);
    qw_engine_answer_free(&a);
    if (status == QW_E_CORRUPT) give_up(e, &err);
}
