/* answer.c: one chat from its request to its last byte: qw_submit, typed events, JSON, cancellation.
 *
 * Event loop's thread. A streamed reply begins with the engine's first event, so that an error before it still
 * has a status of its own. An answer without a client is kept until its terminal event, then forgotten.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "server/service.h"

/* ---- life ------------------------------------------------------------------------------------- */

static void free_answer(qw_answer *a)
{
    qw_service *s = a->service;
    if (a->prev != NULL)
        a->prev->next = a->next;
    else
        s->answers = a->next;
    if (a->next != NULL) a->next->prev = a->prev;
    s->n_answers--;
    qw_buf_free(&a->text);
    qw_buf_free(&a->reasoning);
    json_decref(a->tokens);
    json_decref(a->calls);
    free(a);
}

static qw_answer *new_answer(qw_service *s, const qw_chat_request *r)
{
    qw_answer *a = NULL;
    if (qw_alloc(&a, 1, sizeof(*a), "answer", NULL) != QW_OK) return NULL;
    a->service = s;
    a->stream = r->stream;
    a->include_usage = r->include_usage;
    a->logprobs = r->logprobs;
    qw_id_make(a->head.id, "chatcmpl-");
    a->head.created_s = qw_wall_s();
    a->head.model = s->o.model_id;
    qw_buf_init(&a->text, QW_ANSWER_BYTES_MAX, "answer");
    qw_buf_init(&a->reasoning, QW_ANSWER_BYTES_MAX, "reasoning of an answer");
    if (r->logprobs && !r->stream) a->tokens = json_array();
    a->next = s->answers;
    if (a->next != NULL) a->next->prev = a;
    s->answers = a;
    s->n_answers++;
    return a;
}

/* Its client hears no more from it; the engine is told to stop. */
static void detach(qw_answer *a)
{
    a->conn = NULL;
    qw_cancel(a->service->engine, a->id);
}

/* ---- requests --------------------------------------------------------------------------------- */

/* Every model is called by its own name, an alias given at the start, "default", or nothing at all. */
static bool check_model(const qw_service *s, const char *name, qw_api_error *e)
{
    char text[512];
    if (*name == 0 || strcmp(name, "default") == 0 || strcmp(name, s->o.model_id) == 0) return true;
    for (size_t i = 0; i < s->o.n_aliases; i++)
        if (strcmp(name, s->o.aliases[i]) == 0) return true;
    snprintf(text, sizeof(text), "the model \"%.200s\" is not served here; this is %.200s", name, s->o.model_id);
    qw_api_error_set(e, 404, "model_not_found", "model", text);
    return false;
}

static bool submit(qw_service *s, qw_conn *c, qw_chat_request *r, qw_api_error *e)
{
    qw_err err = {.status = QW_E_MEMORY, .text = "the request does not fit into memory now; try again"};
    qw_answer *a = new_answer(s, r);
    if (a == NULL) {
        qw_api_error_from(e, &err);
        return false;
    }
    r->request.user = a;
    if (qw_submit(s->engine, &r->request, &a->id, &err) != QW_OK) {
        s->failed = s->failed || err.status == QW_E_CORRUPT;
        qw_api_error_from(e, &err);
        free_answer(a);
        return false;
    }
    s->totals.answers++;
    a->conn = c;
    c->answer = a;
    return true;
}

void qw_answer_begin(qw_service *s, qw_conn *c)
{
    qw_chat_request r;
    qw_api_error e = {0};
    bool ok = qw_chat_request_read(s->model, qw_buf_str(&c->http.body), c->http.body.n, &r, &e) &&
              check_model(s, r.model, &e) && submit(s, c, &r, &e);
    qw_chat_request_free(&r);
    if (ok)
        qw_conn_drop_body(c); /* it was copied; the answer may take long */
    else
        qw_reply_error(c, &e);
}

void qw_answer_gone(void *service, qw_conn *c)
{
    (void)service;
    if (c->answer != NULL) detach(c->answer);
}

/* ---- streams ---------------------------------------------------------------------------------- */

/* One event of the stream. Takes the object. False: memory is out, or the client does not read. */
static bool send_object(qw_answer *a, json_t *object, const char **why)
{
    static const char prefix[] = "data: ";
    char *line = qw_json_line(object);
    qw_buf b;
    qw_buf_init(&b, QW_ANSWER_BYTES_MAX, "event");
    bool made = line != NULL && qw_buf_add_str(&b, prefix, NULL) == QW_OK && qw_buf_add_str(&b, line, NULL) == QW_OK &&
                qw_buf_add_str(&b, "\n\n", NULL) == QW_OK;
    bool fits = made && qw_conn_stream_write(a->conn, b.data, b.n);
    *why = !made ? "out of memory" : "the client reads too slowly: 256 KiB of the answer are waiting";
    free(line);
    qw_buf_free(&b);
    return fits;
}

/* Ends the reply with an error: as a reply of its own, or as an event of the stream that has begun. */
static void fail_answer(qw_answer *a, const qw_api_error *e)
{
    const char *ignored = NULL;
    qw_conn *c = a->conn;
    if (!a->begun) {
        a->conn = NULL;
        qw_reply_error(c, e);
        return;
    }
    send_object(a, qw_api_error_object(e), &ignored);
    a->conn = NULL;
    qw_conn_stream_end(c, false);
}

/* The same for an answer the engine still works on. */
static void break_off(qw_answer *a, int http, const char *why)
{
    qw_api_error e;
    qw_api_error_set(&e, http, NULL, "", why);
    fail_answer(a, &e);
    detach(a);
}

static void send_or_break(qw_answer *a, json_t *object)
{
    const char *why = NULL;
    if (!send_object(a, object, &why)) break_off(a, 503, why);
}

static void begin_stream(qw_answer *a)
{
    if (a->begun) return;
    a->begun = true;
    qw_conn_stream_begin(a->conn, &(qw_reply){.status = 200, .content_type = "text/event-stream; charset=utf-8",
                                              .headers = "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"});
    send_or_break(a, qw_chat_first_chunk(&a->head, a->include_usage));
}

static void stream_event(qw_answer *a, const qw_event *ev)
{
    bool with_tokens = a->logprobs && ev->n_tokens > 0;
    bool shows = ev->text.n > 0 || ev->type == QW_EVENT_CALL_BEGIN;
    if (!shows && !with_tokens) return;
    json_t *delta = shows ? qw_chat_delta(ev) : json_object();
    json_t *tokens = with_tokens ? qw_chat_tokens(a->service->model, ev) : NULL;
    send_or_break(a, qw_chat_chunk(&a->head, delta, tokens, a->include_usage));
}

static void end_stream(qw_answer *a, const qw_event *ev)
{
    static const char done[] = "data: [DONE]\n\n";
    const char *why = NULL;
    qw_conn *c = a->conn;
    bool ok = send_object(a, qw_chat_last_chunk(&a->head, ev, a->include_usage), &why);
    if (ok && a->include_usage) ok = send_object(a, qw_chat_usage_chunk(&a->head, ev), &why);
    if (ok) qw_conn_stream_write(c, done, sizeof(done) - 1);
    a->conn = NULL;
    qw_conn_stream_end(c, ok);
}

/* ---- whole replies ---------------------------------------------------------------------------- */

static qw_status collect_text(qw_answer *a, const qw_event *ev, qw_err *err)
{
    if (ev->type == QW_EVENT_TEXT) return qw_buf_add(&a->text, ev->text.s, ev->text.n, err);
    if (ev->type == QW_EVENT_REASONING) return qw_buf_add(&a->reasoning, ev->text.s, ev->text.n, err);
    return QW_OK;
}

static qw_status collect_call(qw_answer *a, const qw_tool_call *call, qw_err *err)
{
    a->calls_bytes += strlen(call->name) + call->arguments.n;
    if (a->calls_bytes > QW_ANSWER_BYTES_MAX)
        return qw_fail(err, QW_E_LIMIT, "tool calls of an answer: more than %d bytes", QW_ANSWER_BYTES_MAX);
    if (a->calls == NULL) a->calls = json_array();
    json_array_append_new(a->calls, qw_chat_call(call));
    return QW_OK;
}

static void collect(qw_answer *a, const qw_event *ev)
{
    qw_err err;
    qw_status status = ev->type == QW_EVENT_CALL_END ? collect_call(a, ev->call, &err) : collect_text(a, ev, &err);
    if (status != QW_OK) {
        break_off(a, 503, err.text);
        return;
    }
    if (!a->logprobs || ev->n_tokens == 0) return;
    json_t *tokens = qw_chat_tokens(a->service->model, ev);
    json_array_extend(a->tokens, tokens);
    json_decref(tokens);
}

static void reply_whole(qw_answer *a, const qw_event *ev)
{
    qw_conn *c = a->conn;
    json_t *tokens = a->tokens, *calls = a->calls;
    a->tokens = a->calls = NULL; /* taken */
    a->conn = NULL;
    qw_reply_json(c, 200, NULL,
                  qw_chat_completion(&a->head, (qw_text){qw_buf_str(&a->text), a->text.n},
                                     (qw_text){qw_buf_str(&a->reasoning), a->reasoning.n}, calls, tokens, ev));
}

/* ---- events of the engine ---------------------------------------------------------------------- */

static void end_answer(qw_answer *a, const qw_event *ev)
{
    qw_service *s = a->service;
    s->totals.prompt_tokens += ev->usage.prompt_tokens;
    s->totals.completion_tokens += ev->usage.completion_tokens;
    if (ev->type == QW_EVENT_ERROR && ev->error.status == QW_E_CORRUPT) s->failed = true;
    if (a->conn == NULL) return;
    qw_api_error e;
    if (ev->type == QW_EVENT_ERROR) {
        qw_api_error_from(&e, &ev->error);
        fail_answer(a, &e);
    } else if (ev->finish == QW_FINISH_CANCELLED) {
        qw_api_error_set(&e, 503, NULL, "", "the answer was stopped by the server");
        fail_answer(a, &e);
    } else if (a->stream) {
        begin_stream(a);
        if (a->conn != NULL) end_stream(a, ev);
    } else {
        reply_whole(a, ev);
    }
}

/* The sentences are ours and repeat nothing of what was said. */
static void note_warning(const qw_answer *a, const qw_event *ev)
{
    qw_service *s = a->service;
    s->totals.warnings++;
    if (s->o.verbose) fprintf(stderr, "%s: %.*s\n", a->head.id, (int)ev->text.n, ev->text.s);
}

/* Once, for whoever runs the service: the reason names a folder of this machine, which is nothing for its clients. */
static void tell_unsaved(qw_service *s)
{
    qw_engine_stats stats;
    if (s->told_unsaved) return;
    qw_engine_get_stats(s->engine, &stats);
    if (stats.save_fault[0] == 0) return;
    fprintf(stderr, "qw: conversations are not saved: %s\n", stats.save_fault);
    s->told_unsaved = true;
}

void qw_answer_event(qw_answer *a, const qw_event *ev)
{
    if (ev->type == QW_EVENT_WARNING) note_warning(a, ev);
    if (qw_event_is_terminal(ev)) {
        tell_unsaved(a->service);
        end_answer(a, ev);
        free_answer(a);
        return;
    }
    if (a->conn == NULL) return;
    if (a->stream) begin_stream(a);
    if (a->conn == NULL || ev->type == QW_EVENT_PROGRESS || ev->type == QW_EVENT_WARNING) return;
    if (a->stream)
        stream_event(a, ev);
    else
        collect(a, ev);
}

void qw_answers_end(qw_service *s, const char *why)
{
    for (qw_answer *a = s->answers; a != NULL; a = a->next)
        if (a->conn != NULL) break_off(a, 503, why);
}

void qw_answers_free(qw_service *s)
{
    while (s->answers != NULL) free_answer(s->answers);
}
