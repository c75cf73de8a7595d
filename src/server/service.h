/* service.h: the HTTP service: one engine, one event loop, its connections and answers.
 *
 * Owner: the thread that calls qw_service_run(), which is the event loop's. The engine computes on its own thread;
 * its events reach the loop through qw_engine_fd(). Rendering and tokenising happen inside qw_submit() on the
 * loop's thread for now: a prompt of many megabytes holds up the other clients for that time.
 */
#ifndef QW_SERVER_SERVICE_H
#define QW_SERVER_SERVICE_H

#include <event2/listener.h>

#include "qw.h"
#include "server/connection.h"
#include "server/fields.h"
#include "server/openai.h"

enum {
    QW_DRAIN_S = 10,        /* for running answers after the first signal */
    QW_FAREWELL_MS = 500,   /* for the last bytes to leave when that time is over */
    QW_ACCEPT_PAUSE_MS = 200, /* when the system has no descriptor left */
    QW_EVENTS_AT_ONCE = 8,   /* of the engine, before the loop looks at the sockets again */
    QW_ANSWER_BYTES_MAX = 64 << 20 /* text of an answer that is not streamed */
};

typedef struct qw_service_options {
    const char *host;         /* name or address to listen on */
    int port;                 /* 0: the system picks one */
    bool allow_remote;        /* host may be reachable from other machines */
    bool verbose;             /* a line on standard error for every request */
    const char *model_id;     /* what clients call the model */
    const char *const *aliases; /* other names they may use; [n_aliases] */
    size_t n_aliases;
    const char *const *hosts; /* names accepted in Host beside the usual; [n_hosts] */
    size_t n_hosts;
} qw_service_options;

/* One chat being answered. It lives until the engine's terminal event, also when its client has left. */
typedef struct qw_answer {
    struct qw_answer *next, *prev;
    struct qw_service *service;
    qw_conn *conn; /* borrows; NULL: nobody waits any more */
    uint64_t id;   /* of the engine */
    bool stream, include_usage, logprobs;
    bool begun;    /* the stream's header was written */
    qw_chat_head head;
    qw_buf text, reasoning; /* not streamed: so far */
    json_t *tokens, *calls; /* the same for logprobs.content and tool_calls; own; NULL: none */
    size_t calls_bytes;     /* text in them */
} qw_answer;

/* Counted since the start; shown by /health. */
typedef struct qw_service_totals {
    uint64_t answers, prompt_tokens, completion_tokens;
    uint64_t warnings; /* about answers that were not understood in part */
} qw_service_totals;

typedef struct qw_service {
    qw_service_options o; /* borrows what it points to */
    const qw_model *model;
    qw_engine *engine;
    int64_t started_s;
    struct event_base *base;
    struct evconnlistener *listener;
    struct event *engine_event, *on_sigint, *on_sigterm, *timer, *accept_timer;
    qw_conns conns;
    qw_answer *answers;
    size_t n_answers;
    qw_service_totals totals;
    char host_name[256];   /* of this machine */
    char url[320];         /* http://HOST:PORT */
    bool loopback;         /* only this machine can reach it */
    bool draining, failed; /* failed: the engine's model is unusable */
    bool told_unsaved;     /* that what was computed cannot be saved */
} qw_service;

/* QW_E_ARG when the host could be reached from other machines and that was not allowed, or is no host. */
qw_status qw_service_check_host(const qw_service_options *o, qw_err *err) QW_MUST_CHECK;
/* Listens. The strings and arrays of `o` are borrowed until qw_service_close. */
qw_status qw_service_open(qw_service *s, const qw_service_options *o, const qw_model *model, qw_engine *engine,
                          qw_err *err) QW_MUST_CHECK;
/* Serves until SIGINT or SIGTERM; then finishes what runs (QW_DRAIN_S, a second signal: at once). */
qw_status qw_service_run(qw_service *s, qw_err *err) QW_MUST_CHECK;
void qw_service_close(qw_service *s);

/* ---- route.c: what is answered where ----------------------------------------------------------- */

void qw_route_head(void *service, qw_conn *c);
void qw_route_request(void *service, qw_conn *c);
void qw_route_refuse(void *service, qw_conn *c, int status, const char *reason);
void qw_reply_json(qw_conn *c, int status, const char *headers, json_t *object /* takes */);
void qw_reply_error(qw_conn *c, const qw_api_error *e);

/* ---- answer.c: chats ---------------------------------------------------------------------------- */

void qw_answer_begin(qw_service *s, qw_conn *c);                /* POST /v1/chat/completions */
void qw_answer_event(qw_answer *a, const qw_event *ev);
void qw_answer_gone(void *service, qw_conn *c);                 /* its client left */
void qw_answers_end(qw_service *s, const char *why);            /* tells every waiting client and cancels */
void qw_answers_free(qw_service *s);                            /* after the loop */

#endif
