/* answer.c: sampled tokens become typed events (contract in answer.h). Engine thread only.
 *
 * Where the request was a chat whose answers may hold thinking or calls, its job has an output parser; other answers
 * are text. A token is in exactly one event: the first that is sent after it was sampled.
 */
#include "engine/answer.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

enum { DECODED_BYTES_MAX = 1 << 20, TEXT_BYTES_MAX = 2 << 20, ARGUMENTS_BYTES_MAX = 64 << 20 };

/* ---- events ----------------------------------------------------------------------------------- */

static qw_event_node *new_event(const qw_engine_answer *a, qw_event_type type, qw_err *err)
{
    qw_event_node *node;
    if (qw_alloc(&node, 1, sizeof *node, "event", err) != QW_OK) return NULL;
    node->event.request = a->job->id;
    node->event.user = a->job->user;
    node->event.type = type;
    node->event.usage = a->usage;
    return node;
}

static void push_event(qw_engine_answer *a, qw_event_node *node)
{
    qw_events_push(a->events, a->job->feed, node);
}

static void attach_token(qw_engine_answer *a, qw_event_node *node)
{
    const qw_sample *s = a->sample;
    if (!s) return;
    memcpy(node->top, s->top, s->n_top * sizeof *node->top);
    node->token = (qw_event_token){.token = s->token, .logprob = s->logprob, .top = node->top, .n_top = s->n_top};
    node->event.tokens = &node->token;
    node->event.n_tokens = 1;
    a->sample = NULL;
}

/* An event that owns a copy of the text. */
static qw_status new_text_event(const qw_engine_answer *a, qw_event_type type, qw_text text, qw_event_node **out,
                                qw_err *err)
{
    *out = new_event(a, type, err);
    if (!*out) return QW_E_MEMORY;
    qw_status status = qw_strndup(&(*out)->text, text.n > 0 ? text.s : "", text.n, err);
    if (status != QW_OK) qw_event_node_free(*out);
    return status;
}

static qw_status send_text(qw_engine_answer *a, qw_event_type type, qw_text text, qw_err *err)
{
    qw_event_node *node;
    QW_TRY(new_text_event(a, type, text, &node, err));
    node->event.text = (qw_text){.s = node->text, .n = text.n};
    if (type == QW_EVENT_CALL_ARGUMENTS) node->event.call_index = a->n_calls - 1;
    if (type != QW_EVENT_WARNING) attach_token(a, node);
    push_event(a, node);
    return QW_OK;
}

/* The beginning or the end of the newest call. */
static qw_status send_call(qw_engine_answer *a, qw_event_type type, qw_text arguments, bool complete, qw_err *err)
{
    qw_event_node *node;
    QW_TRY(new_text_event(a, type, arguments, &node, err));
    memcpy(node->call_name, a->call_name, sizeof node->call_name);
    if (a->job->said) qw_memory_call_id(a->job->said, a->n_calls - 1, node->call_id);
    node->call = (qw_tool_call){
        .id = a->job->said ? node->call_id : NULL,
        .name = node->call_name,
        .arguments = {.s = node->text, .n = arguments.n},
    };
    node->event.call = &node->call;
    node->event.call_index = a->n_calls - 1;
    node->event.complete = complete;
    attach_token(a, node);
    push_event(a, node);
    return QW_OK;
}

/* ---- from text to events ---------------------------------------------------------------------- */

static qw_status begin_call(qw_engine_answer *a, qw_text name, qw_err *err)
{
    size_t n = name.n < QW_PARSE_NAME_MAX ? name.n : QW_PARSE_NAME_MAX; /* the parser's limit */
    memcpy(a->call_name, name.s, n);
    a->call_name[n] = 0;
    a->n_calls++;
    a->in_call = true;
    qw_buf_clear(&a->call_arguments);
    return send_call(a, QW_EVENT_CALL_BEGIN, (qw_text){0}, false, err);
}

static qw_status add_arguments(qw_engine_answer *a, qw_text piece, qw_err *err)
{
    if (piece.n == 0) return QW_OK;
    QW_TRY(qw_buf_add(&a->call_arguments, piece.s, piece.n, err));
    return send_text(a, QW_EVENT_CALL_ARGUMENTS, piece, err);
}

static qw_status end_call(qw_engine_answer *a, bool complete, qw_err *err)
{
    if (!complete) a->n_broken++;
    a->in_call = false;
    a->cut = a->job->one_call;
    if (a->cut && a->finish == QW_FINISH_NONE) a->finish = QW_FINISH_STOP;
    return send_call(a, QW_EVENT_CALL_END, (qw_text){qw_buf_str(&a->call_arguments), a->call_arguments.n}, complete,
                     err);
}

static bool in_thinking(const qw_engine_answer *a)
{
    return a->job->parser && qw_parser_in_thinking(a->job->parser);
}

static qw_status take_parsed(void *ctx, const qw_parse_event *ev, qw_err *err)
{
    qw_engine_answer *a = ctx;
    if (a->cut && ev->kind != QW_PARSE_WARNING) return QW_OK;
    if (a->spoken) qw_spoken_event(a->spoken, ev, in_thinking(a));
    switch (ev->kind) {
    case QW_PARSE_THINKING: return send_text(a, QW_EVENT_REASONING, ev->text, err);
    case QW_PARSE_CONTENT: return send_text(a, QW_EVENT_TEXT, ev->text, err);
    case QW_PARSE_MARKUP: return QW_OK;
    case QW_PARSE_CALL: return begin_call(a, ev->text, err);
    case QW_PARSE_ARGUMENTS: return add_arguments(a, ev->text, err);
    case QW_PARSE_CALL_END: return end_call(a, ev->complete, err);
    case QW_PARSE_WARNING: return send_text(a, QW_EVENT_WARNING, ev->text, err);
    }
    return QW_OK;
}

/* What the stop strings let through. */
static qw_status show_text(qw_engine_answer *a, qw_err *err)
{
    qw_text text = {qw_buf_str(&a->text), a->text.n};
    if (text.n == 0) return QW_OK;
    if (a->job->parser) return qw_parser_push(a->job->parser, text, take_parsed, a, err);
    return take_parsed(a, &(qw_parse_event){.kind = QW_PARSE_CONTENT, .text = text, .raw = text}, err);
}

/* Decoded characters through the stop strings into a->text. */
static qw_status search_stops(qw_engine_answer *a, qw_err *err)
{
    bool found;
    QW_TRY(qw_stop_push(&a->stop, qw_buf_str(&a->decoded), a->decoded.n, &a->text, &found, err));
    if (found) a->finish = QW_FINISH_STOP;
    return QW_OK;
}

/* ---- tokens ----------------------------------------------------------------------------------- */

static bool is_end(const qw_engine_answer *a, int32_t token)
{
    if (a->job->ignore_eos || !a->tokenizer) return false;
    return qw_tokenizer_is_end(a->tokenizer, token) || (a->job->fim && qw_tokenizer_is_control(a->tokenizer, token));
}

static qw_status show_token(qw_engine_answer *a, int32_t token, qw_err *err)
{
    bool thought = in_thinking(a);
    qw_buf_clear(&a->decoded);
    qw_buf_clear(&a->text);
    if (a->tokenizer) QW_TRY(qw_detok_push(&a->detok, a->tokenizer, token, &a->decoded, err));
    a->n_decoded += a->decoded.n;
    if (a->spoken) qw_spoken_token_add(a->spoken, a->tokenizer, token, a->n_decoded, a->detok.n_held > 0);
    QW_TRY(search_stops(a, err));
    QW_TRY(show_text(a, err));
    if (thought || in_thinking(a)) a->usage.reasoning_tokens++;
    if (!a->sample) return QW_OK;
    return send_text(a, in_thinking(a) ? QW_EVENT_REASONING : QW_EVENT_TEXT, (qw_text){0}, err);
}

/* Said once, with the first of the closing words. */
static qw_status warn_caught(qw_engine_answer *a, qw_err *err)
{
    static const char caught[] = "the model would have ended within its thinking; the thinking was closed for it";
    a->think.caught = false;
    return send_text(a, QW_EVENT_WARNING, (qw_text){caught, sizeof caught - 1}, err);
}

void qw_engine_answer_closes(qw_engine_answer *a)
{
    a->closed = true;
}

/* Said once, with the first token that is not what the model chose. */
static qw_status warn_closed(qw_engine_answer *a, qw_err *err)
{
    static const char closed[] = "the limit of tokens came near: the answer was brought to its end to keep its form";
    a->told_closed = true;
    return send_text(a, QW_EVENT_WARNING, (qw_text){closed, sizeof closed - 1}, err);
}

void qw_engine_answer_choose(qw_engine_answer *a, qw_sample *drawn)
{
    const qw_think_at at = {.in_thinking = in_thinking(a), .between = a->detok.n_held == 0 && !a->in_call,
                            .ends = is_end(a, drawn->token)};
    int32_t token = qw_think_next(&a->think, drawn->token, at);
    if (token != drawn->token) *drawn = (qw_sample){.token = token};
}

qw_status qw_engine_answer_push(qw_engine_answer *a, const qw_sample *sample, qw_err *err)
{
    const qw_job *job = a->job;
    QW_ASSERT(a->finish == QW_FINISH_NONE);
    if (!a->first_token_us) a->first_token_us = qw_clock_us();
    a->usage.completion_tokens++;
    if (a->closed && !a->told_closed) QW_TRY(warn_closed(a, err));
    if (is_end(a, sample->token)) {
        a->finish = QW_FINISH_STOP;
        return QW_OK;
    }
    a->sample = sample;
    if (a->think.caught) QW_TRY(warn_caught(a, err));
    QW_TRY(show_token(a, sample->token, err));
    if (job->loops && qw_loops_add(job->loops, sample->token) && a->finish == QW_FINISH_NONE)
        a->finish = QW_FINISH_REPETITION;
    if (a->finish == QW_FINISH_NONE && job->max_tokens > 0 && a->usage.completion_tokens >= job->max_tokens)
        a->finish = QW_FINISH_LENGTH;
    return QW_OK;
}

/* ---- life ------------------------------------------------------------------------------------- */

void qw_engine_answer_begin(qw_engine_answer *a, const qw_job *job, const qw_tokenizer *tokenizer,
                            qw_event_queue *events)
{
    *a = (qw_engine_answer){.job = job, .tokenizer = tokenizer, .events = events, .started_us = qw_clock_us()};
    a->timings.queue_us = a->started_us - job->submitted_us;
    a->usage.prompt_tokens = (uint32_t)job->n_tokens;
    qw_buf_init(&a->decoded, DECODED_BYTES_MAX, "decoded text");
    qw_buf_init(&a->text, TEXT_BYTES_MAX, "answer text");
    qw_buf_init(&a->call_arguments, ARGUMENTS_BYTES_MAX, "arguments of a tool call");
    a->think = job->think;
    a->spoken = job->said && tokenizer ? qw_memory_spoken(job->said) : NULL;
    qw_stop_begin(&a->stop, (const char *const *)job->stop, job->n_stop);
}

void qw_engine_answer_free(qw_engine_answer *a)
{
    qw_stop_free(&a->stop);
    qw_buf_free(&a->decoded);
    qw_buf_free(&a->text);
    qw_buf_free(&a->call_arguments);
}

void qw_engine_answer_reused(qw_engine_answer *a, uint32_t n)
{
    a->usage.cached_tokens = a->usage.prefilled = n;
}

qw_status qw_engine_answer_prefilled(qw_engine_answer *a, uint32_t n, qw_err *err)
{
    a->usage.prefilled += n;
    if (a->usage.prefilled >= a->usage.prompt_tokens) return QW_OK;
    qw_event_node *node = new_event(a, QW_EVENT_PROGRESS, err);
    if (!node) return QW_E_MEMORY;
    push_event(a, node);
    return QW_OK;
}

/* ---- the end ---------------------------------------------------------------------------------- */

/* Text still held by the detokeniser and the stop strings, unless one of these cut it off; and by the parser. */
static qw_status flush(qw_engine_answer *a, qw_err *err)
{
    if (a->cut) return QW_OK;
    qw_buf_clear(&a->decoded);
    qw_buf_clear(&a->text);
    if (!a->stop.hit) {
        QW_TRY(qw_detok_flush(&a->detok, &a->decoded, err));
        QW_TRY(search_stops(a, err)); /* in what a cut character became */
        if (!a->stop.hit) QW_TRY(qw_stop_flush(&a->stop, &a->text, err));
        QW_TRY(show_text(a, err));
    }
    return a->job->parser ? qw_parser_finish(a->job->parser, take_parsed, a, err) : QW_OK;
}

static qw_finish last_finish(const qw_engine_answer *a)
{
    bool called = a->n_calls > 0 && a->n_broken == 0;
    return a->finish == QW_FINISH_STOP && called ? QW_FINISH_TOOL_CALLS : a->finish;
}

static void send_end(qw_engine_answer *a, const qw_err *failure)
{
    qw_err ignored;
    int64_t now = qw_clock_us();
    a->timings.prefill_us = (a->first_token_us ? a->first_token_us : now) - a->started_us;
    a->timings.decode_us = a->first_token_us ? now - a->first_token_us : 0;
    qw_event_node *node = new_event(a, failure ? QW_EVENT_ERROR : QW_EVENT_DONE, &ignored);
    QW_ASSERT(node); /* a request must end; without memory for one event the process cannot go on */
    node->event.timings = a->timings;
    node->event.cache = a->cache;
    node->event.thinking = a->job->thinking;
    node->event.finish = failure ? QW_FINISH_NONE : last_finish(a);
    node->event.closed = a->closed && (node->event.finish == QW_FINISH_STOP || node->event.finish == QW_FINISH_TOOL_CALLS);
    if (failure) node->event.error = *failure;
    if (a->stop.hit) strncpy(node->event.stop, a->stop.hit, QW_STOP_BYTES_MAX);
    push_event(a, node);
}

/* From now on it is found when a client sends it back. */
static void remember(const qw_engine_answer *a)
{
    if (!a->spoken) return;
    qw_spoken_finish(a->spoken, in_thinking(a));
    qw_memory_keep(a->job->said);
}

void qw_engine_answer_end(qw_engine_answer *a, qw_finish finish)
{
    static const char unanswered[] = "the model ended its answer within its thinking";
    qw_err err;
    a->finish = finish;
    qw_status status = flush(a, &err);
    if (status == QW_OK && last_finish(a) == QW_FINISH_STOP && !a->stop.hit && in_thinking(a))
        status = send_text(a, QW_EVENT_WARNING, (qw_text){unanswered, sizeof unanswered - 1}, &err);
    if (status == QW_OK) remember(a); /* before anybody can ask about it */
    send_end(a, status == QW_OK ? NULL : &err);
}

void qw_engine_answer_fail(qw_engine_answer *a, const qw_err *err)
{
    send_end(a, err);
}
