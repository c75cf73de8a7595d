/* openai_reply.c: answers and errors as OpenAI's JSON objects (contract in openai.h). Any thread; no state. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"
#include "server/openai.h"

enum { TEXT_BYTES_MAX = 1 << 30 };
#define FINGERPRINT "qw-" QW_VERSION
#define LOGPROB_MIN (-9999.0) /* what OpenAI writes for minus infinity, which JSON has no number for */

/* ---- texts and tokens ------------------------------------------------------------------------- */

json_t *qw_chat_text(qw_text text)
{
    qw_buf b;
    qw_status status = QW_OK;
    if (text.n == 0) return json_string("");
    if (qw_utf8_valid(text.s, text.n)) return json_stringn(text.s, text.n);
    qw_buf_init(&b, TEXT_BYTES_MAX, "text");
    for (size_t i = 0; i < text.n && status == QW_OK;) {
        uint32_t cp = 0;
        int n = qw_utf8_decode(text.s + i, text.n - i, &cp);
        status = n > 0 ? qw_buf_add(&b, text.s + i, (size_t)n, NULL) : qw_buf_add_str(&b, "\xEF\xBF\xBD", NULL);
        i += n > 0 ? (size_t)n : 1;
    }
    json_t *out = status == QW_OK ? json_stringn(b.data, b.n) : NULL;
    qw_buf_free(&b);
    return out;
}

static json_t *token_object(const qw_model *model, int32_t id, float logprob)
{
    qw_text text = qw_token_text(model, id);
    json_t *bytes = json_array();
    for (size_t i = 0; i < text.n; i++) json_array_append_new(bytes, json_integer((unsigned char)text.s[i]));
    double value = isfinite(logprob) && logprob > LOGPROB_MIN ? (double)logprob : LOGPROB_MIN;
    return json_pack("{s:o, s:f, s:o}", "token", qw_chat_text(text), "logprob", value, "bytes", bytes);
}

json_t *qw_chat_tokens(const qw_model *model, const qw_event *ev)
{
    json_t *out = json_array();
    for (size_t i = 0; i < ev->n_tokens; i++) {
        const qw_event_token *t = &ev->tokens[i];
        json_t *one = token_object(model, t->token, t->logprob), *top = json_array();
        for (size_t k = 0; k < t->n_top; k++)
            json_array_append_new(top, token_object(model, t->top[k].token, t->top[k].logprob));
        json_object_set_new(one, "top_logprobs", top);
        json_array_append_new(out, one);
    }
    return out;
}

static json_t *logprobs_object(json_t *tokens)
{
    return tokens != NULL ? json_pack("{s:o, s:n}", "content", tokens, "refusal") : json_null();
}

json_t *qw_chat_usage(const qw_usage *u)
{
    return json_pack("{s:I, s:I, s:I, s:{s:I}, s:{s:I}}", "prompt_tokens", (json_int_t)u->prompt_tokens,
                     "completion_tokens", (json_int_t)u->completion_tokens, "total_tokens",
                     (json_int_t)u->prompt_tokens + (json_int_t)u->completion_tokens, "prompt_tokens_details",
                     "cached_tokens", (json_int_t)u->cached_tokens, "completion_tokens_details", "reasoning_tokens",
                     (json_int_t)u->reasoning_tokens);
}

json_t *qw_chat_cache(const qw_event *done)
{
    static const char *const misses[] = {"none", "unknown", "evicted", "no_snapshot"};
    const qw_cache_use *c = &done->cache;
    return json_pack("{s:I, s:I, s:I, s:s, s:{s:I, s:I, s:I}}", "reused_tokens",
                     (json_int_t)done->usage.cached_tokens, "restored_tokens", (json_int_t)c->restored_tokens,
                     "computed_tokens", (json_int_t)done->usage.computed_tokens, "miss", misses[c->miss],
                     "same_as_known", "tokens", (json_int_t)c->known_tokens, "messages", (json_int_t)c->known_messages,
                     "bytes_of_next", (json_int_t)c->known_bytes);
}

json_t *qw_chat_thinking(const qw_event *done)
{
    static const char *const efforts[] = {NULL, "low", "medium", "xhigh"};
    const qw_thinking_use *t = &done->thinking;
    return json_pack("{s:s, s:o, s:s?}", "mode", t->on ? "on" : "off", "budget",
                     t->tokens_max > 0 ? json_integer(t->tokens_max) : json_null(), "effort", efforts[t->effort]);
}

/* What is told once about an answer, beside its choices. */
static void add_summary(json_t *out, const qw_event *done)
{
    json_object_set_new(out, "usage", qw_chat_usage(&done->usage));
    json_object_set_new(out, "qw_cache", qw_chat_cache(done));
    json_object_set_new(out, "qw_thinking", qw_chat_thinking(done));
}

static const char *finish_reason(qw_finish finish)
{
    if (finish == QW_FINISH_TOOL_CALLS) return "tool_calls";
    return finish == QW_FINISH_STOP ? "stop" : "length";
}

/* OpenAI has no word for a loop, for time that is up, or for a form that was closed: it is told beside finish_reason. */
static json_t *with_reason(json_t *choice, qw_finish finish, bool closed)
{
    const char *reason = closed ? "closed" : NULL;
    if (finish == QW_FINISH_REPETITION) reason = "repetition";
    if (finish == QW_FINISH_DEADLINE) reason = "deadline";
    if (choice != NULL && reason != NULL) json_object_set_new(choice, "stop_reason", json_string(reason));
    return choice;
}

/* ---- calls and thinking ----------------------------------------------------------------------- */

json_t *qw_chat_call(const qw_tool_call *call)
{
    return json_pack("{s:s, s:s, s:{s:o, s:o}}", "id", call->id, "type", "function", "function", "name",
                     qw_chat_text(qw_text_of(call->name)), "arguments", qw_chat_text(call->arguments));
}

/* Clients know thinking by one of two names; the values are one object. */
static json_t *reasoning_object(qw_text text)
{
    json_t *value = qw_chat_text(text);
    return json_pack("{s:O, s:o}", "reasoning_content", value, "reasoning", value);
}

json_t *qw_chat_delta(const qw_event *ev)
{
    switch (ev->type) {
    case QW_EVENT_TEXT: return json_pack("{s:o}", "content", qw_chat_text(ev->text));
    case QW_EVENT_REASONING: return reasoning_object(ev->text);
    case QW_EVENT_CALL_BEGIN: {
        json_t *call = qw_chat_call(ev->call);
        json_object_set_new(call, "index", json_integer(ev->call_index));
        return json_pack("{s:[o]}", "tool_calls", call);
    }
    case QW_EVENT_CALL_ARGUMENTS:
        return json_pack("{s:[{s:I, s:{s:o}}]}", "tool_calls", "index", (json_int_t)ev->call_index, "function",
                         "arguments", qw_chat_text(ev->text));
    default: return NULL;
    }
}

/* ---- chunks and the whole --------------------------------------------------------------------- */

/* choices: takes */
static json_t *answer_object(const qw_chat_head *h, const char *object, json_t *choices)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:o}", "id", h->id, "object", object, "created",
                     (json_int_t)h->created_s, "model", h->model, "system_fingerprint", FINGERPRINT, "choices",
                     choices);
}

/* delta and tokens: takes; done: NULL while the answer goes on */
static json_t *chunk(const qw_chat_head *h, json_t *delta, json_t *tokens, const qw_event *done, bool with_usage)
{
    const qw_finish finish = done ? done->finish : QW_FINISH_NONE;
    json_t *choice = json_pack("{s:i, s:o, s:o, s:s?}", "index", 0, "delta", delta, "logprobs",
                               logprobs_object(tokens), "finish_reason",
                               finish != QW_FINISH_NONE ? finish_reason(finish) : NULL);
    json_t *out = answer_object(h, "chat.completion.chunk", json_pack("[o]", with_reason(choice, finish, done && done->closed)));
    if (out != NULL && with_usage) json_object_set_new(out, "usage", json_null());
    return out;
}

json_t *qw_chat_first_chunk(const qw_chat_head *h, bool with_usage)
{
    return chunk(h, json_pack("{s:s, s:s, s:n}", "role", "assistant", "content", "", "refusal"), NULL,
                 NULL, with_usage);
}

json_t *qw_chat_chunk(const qw_chat_head *h, json_t *delta, json_t *tokens, bool with_usage)
{
    return chunk(h, delta, tokens, NULL, with_usage);
}

json_t *qw_chat_last_chunk(const qw_chat_head *h, const qw_event *done, bool with_usage)
{
    return chunk(h, json_object(), NULL, done, with_usage);
}

json_t *qw_chat_usage_chunk(const qw_chat_head *h, const qw_event *done)
{
    json_t *out = answer_object(h, "chat.completion.chunk", json_array());
    add_summary(out, done);
    return out;
}

json_t *qw_chat_completion(const qw_chat_head *h, qw_text text, qw_text reasoning, json_t *calls, json_t *tokens,
                           const qw_event *done)
{
    json_t *content = calls != NULL && text.n == 0 ? json_null() : qw_chat_text(text);
    json_t *message = json_pack("{s:s, s:o, s:n}", "role", "assistant", "content", content, "refusal");
    if (reasoning.n > 0) {
        json_t *thinking = reasoning_object(reasoning);
        json_object_update(message, thinking);
        json_decref(thinking);
    }
    if (calls != NULL) json_object_set_new(message, "tool_calls", calls);
    json_t *choice = json_pack("{s:i, s:o, s:o, s:s}", "index", 0, "message", message, "logprobs",
                               logprobs_object(tokens), "finish_reason", finish_reason(done->finish));
    json_t *out = answer_object(h, "chat.completion", json_pack("[o]", with_reason(choice, done->finish, done->closed)));
    add_summary(out, done);
    return out;
}

json_t *qw_model_object(const char *id, int64_t created_s)
{
    return json_pack("{s:s, s:s, s:I, s:s}", "id", id, "object", "model", "created", (json_int_t)created_s,
                     "owned_by", "qw");
}

/* ---- errors ----------------------------------------------------------------------------------- */

void qw_api_error_set(qw_api_error *e, int http, const char *code, const char *param, const char *text)
{
    *e = (qw_api_error){.http = http, .type = http >= 500 ? "server_error" : "invalid_request_error", .code = code};
    snprintf(e->param, sizeof(e->param), "%s", param);
    snprintf(e->text, sizeof(e->text), "%s", text);
}

void qw_api_error_from(qw_api_error *e, const qw_err *err)
{
    static const struct {
        qw_status status;
        int http;
        const char *code, *param;
        int retry_after_s;
    } rows[] = {
        {QW_E_ARG, 400, NULL, "", 0},
        {QW_E_NOT_FOUND, 404, NULL, "", 0},
        {QW_E_FORMAT, 400, NULL, "", 0},
        {QW_E_UNSUPPORTED, 400, "unsupported", "", 0},
        {QW_E_LIMIT, 400, "context_length_exceeded", "messages", 0},
        {QW_E_MEMORY, 503, NULL, "", 1},
        {QW_E_CANCELLED, 503, NULL, "", 1},
        {QW_E_BUSY, 503, "overloaded", "", 1},
    };
    qw_api_error_set(e, 500, NULL, "", err->text); /* QW_E_CORRUPT, _IO, _INTERNAL and whatever comes */
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        if (rows[i].status != err->status) continue;
        qw_api_error_set(e, rows[i].http, rows[i].code, rows[i].param, err->text);
        e->retry_after_s = rows[i].retry_after_s;
    }
}

json_t *qw_api_error_object(const qw_api_error *e)
{
    return json_pack("{s:{s:o, s:s, s:s?, s:s?}}", "error", "message", qw_chat_text(qw_text_of(e->text)), "type",
                     e->type, "param", e->param[0] != 0 ? e->param : NULL, "code", e->code);
}

char *qw_json_line(json_t *object)
{
    char *line = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9));
    json_decref(object);
    return line;
}
