/* connection.h: HTTP connections: bytes in, requests out, replies back, and every way a client can leave.
 *
 * Owner: the event loop's thread, which also calls the handler. A request is read whole, handed to the handler
 * and answered before the next one of the same connection is looked at. Reading goes on while an answer is
 * written, so that a client that leaves is seen in every state. Everything held for a client is bounded.
 */
#ifndef QW_SERVER_CONNECTION_H
#define QW_SERVER_CONNECTION_H

#include <event2/bufferevent.h>
#include <event2/event.h>
#include <sys/socket.h>

#include "server/http_parse.h"
#include "server/id.h"

enum {
    QW_CONNECTIONS_MAX = 256,           /* more are answered with 503 */
    QW_CONNECTIONS_REFUSED_MAX = 32,    /* being told so at a time; more are just closed */
    QW_BODIES_BYTES_MAX = 256 << 20,    /* request bodies held at a time, of all clients */
    QW_OUTPUT_BYTES_MAX = 256 << 10,    /* of a stream its client does not read */
    QW_PIPELINED_BYTES_MAX = 64 << 10,  /* sent by a client while it waits for an answer */
    QW_SEND_BUFFER_BYTES = 128 << 10,   /* the system's own buffer of a connection */
    QW_FIRST_BYTE_S = 10,               /* from accepting a connection to its first byte */
    QW_HEADER_S = 10,
    QW_BODY_S = 60,
    QW_KEEP_ALIVE_S = 75,               /* between requests */
    QW_WRITE_STALL_S = 30,              /* output waits and the client reads nothing */
    QW_LINGER_S = 2                     /* after the last reply, for the client to read it and close */
};

typedef struct qw_conns qw_conns;
typedef struct qw_conn qw_conn;

/* What the service does with connections. A callback may reply; it must not free the connection. */
typedef struct qw_conn_handler {
    void *ctx;
    /* The header of a request with a body is complete: replying now refuses it before the body is read. */
    void (*head)(void *ctx, qw_conn *c);
    /* The request is complete: reply now, or keep `c` and reply later. */
    void (*request)(void *ctx, qw_conn *c);
    /* The bytes are no acceptable request, or a limit was reached: reply with this status. */
    void (*refuse)(void *ctx, qw_conn *c, int status, const char *reason);
    /* The client left before its reply was complete. `c` is not valid afterwards. */
    void (*gone)(void *ctx, qw_conn *c);
    /* A reply is complete. */
    void (*finished)(void *ctx, const qw_conn *c);
    /* The last connection was closed while draining. */
    void (*drained)(void *ctx);
} qw_conn_handler;

struct qw_conns {
    struct event_base *base; /* borrows */
    qw_conn_handler handler;
    qw_conn *first, *dead;
    struct event *reaper; /* frees the dead when no callback is using them */
    size_t n, bodies_bytes;
    bool draining;
};

typedef enum qw_conn_state {
    QW_CONN_IDLE = 0, /* no byte of a request yet */
    QW_CONN_HEADER,
    QW_CONN_BODY,
    QW_CONN_ANSWER,   /* the handler owes a reply */
    QW_CONN_LINGER    /* the last reply was written; what still comes is thrown away */
} qw_conn_state;

struct qw_conn {
    qw_conn *next, *prev;
    qw_conns *set;
    struct bufferevent *bev; /* owns */
    struct event *timer;     /* owns */
    qw_http_parser http;     /* the request; valid in the callbacks and while a reply is owed */
    qw_conn_state state;
    bool dead, eof, shut;
    bool keep;               /* another request may follow */
    bool chunked;            /* the reply being written */
    size_t counted_bytes;    /* of the body, in set->bodies_bytes */
    int64_t began_us;        /* when the request was complete */
    char id[QW_ID_BYTES];    /* of the request */
    char peer[64];
    int status;              /* of the reply */
    size_t reply_bytes;
    void *answer;            /* the handler's */
};

qw_status qw_conns_init(qw_conns *set, struct event_base *base, qw_conn_handler handler, qw_err *err) QW_MUST_CHECK;
void qw_conns_free(qw_conns *set); /* closes all without a word to the handler */
/* Takes the socket. */
void qw_conns_accept(qw_conns *set, evutil_socket_t fd, const struct sockaddr *peer);
/* Closes idle connections, and the others after the reply they wait for. handler.drained follows when none is
 * left, at once if there is none. */
void qw_conns_drain(qw_conns *set);

typedef struct qw_reply {
    int status;
    const char *content_type;
    const char *headers; /* more lines, each ended by CRLF; or NULL */
    const void *body;    /* copied */
    size_t body_bytes;
} qw_reply;

void qw_conn_reply(qw_conn *c, const qw_reply *r);

/* A reply whose length is not known: begin, any number of writes, end. r->body is not used. */
void qw_conn_stream_begin(qw_conn *c, const qw_reply *r);
/* False when the client has not read for so long that QW_OUTPUT_BYTES_MAX are waiting: end the stream. */
bool qw_conn_stream_write(qw_conn *c, const void *data, size_t n);
void qw_conn_stream_end(qw_conn *c, bool keep); /* keep = false: the connection is closed after it */

/* The request's body is not needed any more. */
void qw_conn_drop_body(qw_conn *c);

#endif
