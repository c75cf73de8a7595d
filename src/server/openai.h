/* openai.h: the wire format of OpenAI's chat completions: requests in, replies out.
 *
 * Pure translation between JSON and include/qw.h; no sockets, no state. Any thread.
 */
#ifndef QW_SERVER_OPENAI_H
#define QW_SERVER_OPENAI_H

#include <jansson.h>

#include "qw.h"
#include "server/fields.h"
#include "server/id.h"

enum { QW_TOOLS_MAX = 128, QW_CHOICES_MAX = 1024 };

/* ---- requests --------------------------------------------------------------------------------- */

typedef struct qw_chat_request {
    qw_request request; /* borrows from the rest of this struct */
    const char *model;  /* as asked for; "" when absent */
    bool stream, include_usage, logprobs;

    /* inside */
    int64_t n_answers;
    int32_t top_logprobs, top_k; /* -1 and -2: not given */
    bool has_stream_options, without_tools, strict_tools;
    int n_forms;             /* fields that hold the answer to a form */
    json_t *root, *texts;    /* own; the texts everything borrows */
    qw_message *messages;    /* owns */
    qw_tool_call **calls;    /* owns each; [n_messages] */
    const char **stop;       /* owns the array */
    qw_text *choices;        /* owns the array */
    qw_logit_bias *bias;     /* owns */
} qw_chat_request;

/* Fills out (also on failure: qw_chat_request_free). The defaults of what is absent are the model's. */
bool qw_chat_request_read(const qw_model *model, const char *body, size_t n, qw_chat_request *out,
                          qw_api_error *e) QW_MUST_CHECK;
void qw_chat_request_free(qw_chat_request *r);

/* ---- replies ---------------------------------------------------------------------------------- */

/* What all objects of one answer have in common. */
typedef struct qw_chat_head {
    char id[QW_ID_BYTES]; /* "chatcmpl-..." */
    int64_t created_s;
    const char *model;    /* borrows */
} qw_chat_head;

/* New references; NULL when memory is out. Arguments called `takes` are released in any case. */
json_t *qw_chat_tokens(const qw_model *model, const qw_event *ev);       /* logprobs.content of an event */
json_t *qw_chat_text(qw_text text);                                      /* bytes that are no UTF-8: U+FFFD */
json_t *qw_chat_usage(const qw_usage *usage);
/* How the prompt was served, for the member "qw_cache" beside "usage": docs/engine.md. */
json_t *qw_chat_cache(const qw_event *done);
/* How much it was allowed to think, for the member "qw_thinking" there: docs/engine-thinking.md. */
json_t *qw_chat_thinking(const qw_event *done);
/* What an event adds to the message, or NULL: it adds nothing. */
json_t *qw_chat_delta(const qw_event *ev);
json_t *qw_chat_call(const qw_tool_call *call); /* one of message.tool_calls */
/* delta (takes); tokens (takes): logprobs.content or NULL; with_usage: "usage": null */
json_t *qw_chat_chunk(const qw_chat_head *h, json_t *delta, json_t *tokens, bool with_usage);
json_t *qw_chat_first_chunk(const qw_chat_head *h, bool with_usage);
json_t *qw_chat_last_chunk(const qw_chat_head *h, const qw_event *done, bool with_usage);
json_t *qw_chat_usage_chunk(const qw_chat_head *h, const qw_event *done);
/* tokens, calls: takes; NULL: none */
json_t *qw_chat_completion(const qw_chat_head *h, qw_text text, qw_text reasoning, json_t *calls, json_t *tokens,
                           const qw_event *done);
json_t *qw_model_object(const char *id, int64_t created_s);

/* ---- errors ----------------------------------------------------------------------------------- */

void qw_api_error_from(qw_api_error *e, const qw_err *err); /* of the engine */
void qw_api_error_set(qw_api_error *e, int http, const char *code, const char *param, const char *text);
json_t *qw_api_error_object(const qw_api_error *e); /* {"error": {...}} */

/* One line; free(). NULL when memory is out. Takes the object. */
char *qw_json_line(json_t *object);

#endif
