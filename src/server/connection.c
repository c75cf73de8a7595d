/* connection.c: the life of a connection (contract in connection.h).
 *
 *     IDLE -> HEADER -> BODY -> ANSWER -> IDLE ...      or, after the last reply, -> LINGER -> closed
 *
 * Event loop's thread. A connection is closed at once but freed by the reaper, after the callbacks that may
 * still hold it have returned. Pipelined requests wait in the input until the reply before them is written out:
 * so a client that does not read cannot make replies pile up.
 */
#include "server/connection.h"

#include <arpa/inet.h>
#include <event2/buffer.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"

static void process(qw_conn *c);

/* ---- small things ----------------------------------------------------------------------------- */

static size_t output_bytes(const qw_conn *c)
{
    return evbuffer_get_length(bufferevent_get_output(c->bev));
}

static void set_timer(qw_conn *c, int seconds)
{
    struct timeval t = {.tv_sec = seconds};
    if (seconds > 0)
        evtimer_add(c->timer, &t);
    else
        evtimer_del(c->timer);
}

static void count_body(qw_conn *c, size_t bytes)
{
    c->set->bodies_bytes += bytes - c->counted_bytes; /* modulo 2^N: the difference may be negative */
    c->counted_bytes = bytes;
}

void qw_conn_drop_body(qw_conn *c)
{
    qw_buf_free(&c->http.body);
    count_body(c, 0);
}

/* ---- closing ---------------------------------------------------------------------------------- */

static void free_conn(qw_conn *c)
{
    qw_http_free(&c->http);
    free(c);
}

static void reap(evutil_socket_t fd, short what, void *arg)
{
    qw_conns *set = arg;
    (void)fd;
    (void)what;
    while (set->dead != NULL) {
        qw_conn *next = set->dead->next;
        free_conn(set->dead);
        set->dead = next;
    }
    if (set->draining && set->n == 0) set->handler.drained(set->handler.ctx);
}

static void close_conn(qw_conn *c)
{
    qw_conns *set = c->set;
    if (c->dead) return;
    c->dead = true;
    count_body(c, 0);
    bufferevent_free(c->bev);
    event_free(c->timer);
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        set->first = c->next;
    if (c->next != NULL) c->next->prev = c->prev;
    set->n--;
    c->next = set->dead;
    set->dead = c;
    event_active(set->reaper, EV_TIMEOUT, 0);
}

/* The client cannot be answered any more. */
static void abandon(qw_conn *c)
{
    if (c->state == QW_CONN_ANSWER) c->set->handler.gone(c->set->handler.ctx, c);
    close_conn(c);
}

/* Everything is written: tells the client that no more comes and gives it time to read. Closing at once would
 * make the system reset the connection if unread input is left, and the reply could be lost. */
static void linger(qw_conn *c)
{
    if (c->shut) return;
    c->shut = true;
    shutdown(bufferevent_getfd(c->bev), SHUT_WR);
    if (c->eof)
        close_conn(c);
    else
        set_timer(c, QW_LINGER_S);
}

/* ---- replies ---------------------------------------------------------------------------------- */

static const char *status_text(int status)
{
    static const struct {
        int status;
        const char *text;
    } rows[] = {
        {200, "OK"},
        {204, "No Content"},
        {400, "Bad Request"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {503, "Service Unavailable"},
        {505, "HTTP Version Not Supported"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
        if (rows[i].status == status) return rows[i].text;
    return "Status";
}

static void add_date(struct evbuffer *out)
{
    static const char days[] = "SunMonTueWedThuFriSat", months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    time_t now = (time_t)qw_wall_s();
    struct tm t;
    gmtime_r(&now, &t);
    evbuffer_add_printf(out, "Date: %.3s, %02d %.3s %04d %02d:%02d:%02d GMT\r\n", days + 3 * t.tm_wday, t.tm_mday,
                        months + 3 * t.tm_mon, t.tm_year + 1900, t.tm_hour, t.tm_min, t.tm_sec);
}

/* Status line and headers. body_bytes: -1 when the length is not known. */
static void write_head(qw_conn *c, const qw_reply *r, long long body_bytes)
{
    struct evbuffer *out = bufferevent_get_output(c->bev);
    if (c->state != QW_CONN_ANSWER || c->set->draining) c->keep = false; /* not all of the request was read */
    c->chunked = body_bytes < 0 && c->http.minor == 1;
    if (body_bytes < 0 && !c->chunked) c->keep = false; /* HTTP/1.0: closing is the end of the reply */
    if (c->id[0] == 0) qw_id_make(c->id, "req_");
    c->status = r->status;
    c->reply_bytes = 0;
    evbuffer_add_printf(out, "HTTP/1.1 %d %s\r\n", r->status, status_text(r->status));
    add_date(out);
    if (r->content_type != NULL) evbuffer_add_printf(out, "Content-Type: %s\r\n", r->content_type);
    if (body_bytes >= 0 && r->status != 204) evbuffer_add_printf(out, "Content-Length: %lld\r\n", body_bytes);
    if (c->chunked) evbuffer_add_printf(out, "Transfer-Encoding: chunked\r\n");
    if (!c->keep)
        evbuffer_add_printf(out, "Connection: close\r\n");
    else if (c->http.minor == 0)
        evbuffer_add_printf(out, "Connection: keep-alive\r\n");
    evbuffer_add_printf(out, "X-Content-Type-Options: nosniff\r\nX-Request-Id: %s\r\n%s\r\n", c->id,
                        r->headers != NULL ? r->headers : "");
}

static bool without_body(const qw_conn *c)
{
    return strcmp(c->http.method, "HEAD") == 0;
}

/* The reply is complete: on to the next request, or to the end. */
static void finish(qw_conn *c)
{
    c->set->handler.finished(c->set->handler.ctx, c);
    count_body(c, 0);
    c->answer = NULL;
    c->id[0] = 0;
    qw_http_reset(&c->http);
    c->state = c->keep ? QW_CONN_IDLE : QW_CONN_LINGER;
    set_timer(c, c->keep ? QW_KEEP_ALIVE_S : 0);
    if (c->state == QW_CONN_LINGER && output_bytes(c) == 0) linger(c);
}

static void add_body(qw_conn *c, const void *data, size_t n)
{
    if (without_body(c)) return;
    evbuffer_add(bufferevent_get_output(c->bev), data, n);
    c->reply_bytes += n;
}

void qw_conn_reply(qw_conn *c, const qw_reply *r)
{
    write_head(c, r, (long long)r->body_bytes);
    add_body(c, r->body, r->body_bytes);
    finish(c);
}

void qw_conn_stream_begin(qw_conn *c, const qw_reply *r)
{
    write_head(c, r, -1);
}

bool qw_conn_stream_write(qw_conn *c, const void *data, size_t n)
{
    struct evbuffer *out = bufferevent_get_output(c->bev);
    if (n == 0) return true; /* an empty chunk would be the end */
    if (c->chunked) evbuffer_add_printf(out, "%zx\r\n", n);
    add_body(c, data, n);
    if (c->chunked) evbuffer_add(out, "\r\n", 2);
    return output_bytes(c) <= QW_OUTPUT_BYTES_MAX;
}

void qw_conn_stream_end(qw_conn *c, bool keep)
{
    if (!keep) c->keep = false;
    if (c->chunked) evbuffer_add(bufferevent_get_output(c->bev), "0\r\n\r\n", 5);
    finish(c);
}

/* ---- requests --------------------------------------------------------------------------------- */

static void refuse(qw_conn *c, int status, const char *reason)
{
    c->set->handler.refuse(c->set->handler.ctx, c, status, reason);
}

static void on_header(qw_conn *c)
{
    c->state = QW_CONN_HEADER;
    c->keep = c->http.keep_alive;
    qw_id_make(c->id, "req_");
    if (!c->http.has_body) return;
    c->set->handler.head(c->set->handler.ctx, c);
    if (c->dead || c->state != QW_CONN_HEADER) return;
    c->state = QW_CONN_BODY;
    set_timer(c, QW_BODY_S);
    if (c->http.expect_continue && evbuffer_get_length(bufferevent_get_input(c->bev)) == 0)
        evbuffer_add_printf(bufferevent_get_output(c->bev), "HTTP/1.1 100 Continue\r\n\r\n");
}

static void on_step(qw_conn *c, qw_http_step step)
{
    count_body(c, c->http.body.n);
    if (c->set->bodies_bytes > QW_BODIES_BYTES_MAX) {
        refuse(c, 503, "too many large requests at a time; try again");
        return;
    }
    switch (step) {
    case QW_HTTP_MORE:
        if (c->state == QW_CONN_IDLE && qw_http_begun(&c->http)) {
            c->state = QW_CONN_HEADER;
            set_timer(c, QW_HEADER_S);
        }
        break;
    case QW_HTTP_HEAD: on_header(c); break;
    case QW_HTTP_DONE:
        c->state = QW_CONN_ANSWER;
        c->began_us = qw_clock_us();
        set_timer(c, 0);
        c->set->handler.request(c->set->handler.ctx, c);
        break;
    case QW_HTTP_BAD: refuse(c, c->http.status, c->http.reason); break;
    }
}

/* Takes requests from the input while no reply is on its way. */
static void process(qw_conn *c)
{
    struct evbuffer *in = bufferevent_get_input(c->bev);
    while (!c->dead && c->state <= QW_CONN_BODY && output_bytes(c) == 0) {
        size_t used = 0, n = evbuffer_get_contiguous_space(in);
        const char *data = n > 0 ? (const char *)evbuffer_pullup(in, (ev_ssize_t)n) : "";
        qw_http_step step = qw_http_parse(&c->http, data, n, &used);
        evbuffer_drain(in, used);
        if (step == QW_HTTP_MORE && n == 0) { /* the input is used up */
            if (c->eof) close_conn(c);
            return;
        }
        on_step(c, step);
    }
    if (!c->dead && c->state == QW_CONN_LINGER) evbuffer_drain(in, evbuffer_get_length(in));
}

/* ---- events of the socket --------------------------------------------------------------------- */

static void on_read(struct bufferevent *bev, void *arg)
{
    qw_conn *c = arg;
    if (c->state == QW_CONN_ANSWER && evbuffer_get_length(bufferevent_get_input(bev)) >= QW_PIPELINED_BYTES_MAX)
        abandon(c); /* reading would have to stop, and then a client that leaves is not seen */
    else
        process(c);
}

static void on_written(struct bufferevent *bev, void *arg)
{
    qw_conn *c = arg;
    (void)bev;
    if (c->state == QW_CONN_LINGER)
        linger(c);
    else
        process(c);
}

static void on_event(struct bufferevent *bev, short what, void *arg)
{
    qw_conn *c = arg;
    (void)bev;
    if ((what & BEV_EVENT_EOF) && c->state != QW_CONN_ANSWER) {
        c->eof = true; /* what was asked before is still answered */
        if (output_bytes(c) == 0) close_conn(c);
        return;
    }
    abandon(c); /* reset, write stall, or nobody waits for the answer */
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    qw_conn *c = arg;
    (void)fd;
    (void)what;
    if (c->state == QW_CONN_HEADER || c->state == QW_CONN_BODY)
        refuse(c, 408, c->state == QW_CONN_BODY ? "the body did not arrive within 60 seconds"
                                                : "the header did not arrive within 10 seconds");
    else
        close_conn(c);
}

/* ---- the set ---------------------------------------------------------------------------------- */

qw_status qw_conns_init(qw_conns *set, struct event_base *base, qw_conn_handler handler, qw_err *err)
{
    *set = (qw_conns){.base = base, .handler = handler};
    set->reaper = event_new(base, -1, 0, reap, set);
    return set->reaper != NULL ? QW_OK : qw_fail(err, QW_E_MEMORY, "out of memory: connections");
}

void qw_conns_free(qw_conns *set)
{
    while (set->first != NULL) close_conn(set->first);
    while (set->dead != NULL) {
        qw_conn *next = set->dead->next;
        free_conn(set->dead);
        set->dead = next;
    }
    if (set->reaper != NULL) event_free(set->reaper);
    *set = (qw_conns){0};
}

static void name_peer(qw_conn *c, const struct sockaddr *peer)
{
    const void *address = NULL;
    snprintf(c->peer, sizeof(c->peer), "?");
    if (peer->sa_family == AF_INET) address = &((const struct sockaddr_in *)(const void *)peer)->sin_addr;
    if (peer->sa_family == AF_INET6) address = &((const struct sockaddr_in6 *)(const void *)peer)->sin6_addr;
    if (address != NULL) inet_ntop(peer->sa_family, address, c->peer, sizeof(c->peer));
}

static qw_conn *new_conn(qw_conns *set, evutil_socket_t fd)
{
    static const struct timeval write_stall = {.tv_sec = QW_WRITE_STALL_S};
    qw_conn *c = NULL;
    if (qw_alloc(&c, 1, sizeof(*c), "connection", NULL) != QW_OK) return NULL;
    c->set = set;
    qw_http_init(&c->http);
    c->timer = evtimer_new(set->base, on_timer, c);
    c->bev = bufferevent_socket_new(set->base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (c->timer == NULL || c->bev == NULL) {
        if (c->timer != NULL) event_free(c->timer);
        if (c->bev != NULL) bufferevent_free(c->bev);
        else evutil_closesocket(fd);
        free_conn(c);
        return NULL;
    }
    bufferevent_setcb(c->bev, on_read, on_written, on_event, c);
    bufferevent_setwatermark(c->bev, EV_READ, 0, QW_PIPELINED_BYTES_MAX);
    bufferevent_set_timeouts(c->bev, NULL, &write_stall);
    return c;
}

void qw_conns_accept(qw_conns *set, evutil_socket_t fd, const struct sockaddr *peer)
{
    int send_bytes = QW_SEND_BUFFER_BYTES, on = 1;
    qw_conn *c = NULL;
    if (set->n >= QW_CONNECTIONS_MAX + QW_CONNECTIONS_REFUSED_MAX) {
        evutil_closesocket(fd);
        return;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof(send_bytes)); /* without it megabytes may wait there */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    c = new_conn(set, fd);
    if (c == NULL) return;
    name_peer(c, peer);
    c->next = set->first;
    if (c->next != NULL) c->next->prev = c;
    set->first = c;
    set->n++;
    bufferevent_enable(c->bev, EV_READ | EV_WRITE);
    set_timer(c, QW_FIRST_BYTE_S);
    if (set->n > QW_CONNECTIONS_MAX) refuse(c, 503, "256 connections are open, which is the most; try again");
}

/* Input that the system holds and the event loop has not read yet. */
static bool unread(const qw_conn *c)
{
    int bytes = 0;
    return ioctl(bufferevent_getfd(c->bev), FIONREAD, &bytes) == 0 && bytes > 0;
}

void qw_conns_drain(qw_conns *set)
{
    qw_conn *next = NULL;
    set->draining = true;
    for (qw_conn *c = set->first; c != NULL; c = next) {
        next = c->next;
        c->keep = false;
        if (c->state != QW_CONN_IDLE || unread(c)) continue; /* closing over a request would reset the connection */
        if (output_bytes(c) == 0)
            close_conn(c);
        else
            c->state = QW_CONN_LINGER; /* its reply is still being written */
    }
    event_active(set->reaper, EV_TIMEOUT, 0);
}
