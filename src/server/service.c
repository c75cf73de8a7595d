/* service.c: the event loop: listening, the engine's events, signals and the end (contract in service.h).
 *
 * One thread. The end: the first SIGINT or SIGTERM stops listening and closes idle connections, running answers
 * may finish for QW_DRAIN_S; then, or with the second signal, clients are told and the loop ends.
 */
#include "server/service.h"

#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

/* ---- addresses -------------------------------------------------------------------------------- */

static qw_status resolve(const char *host, int port, struct addrinfo **out, qw_err *err)
{
    char service[8], bare[128];
    size_t n = strlen(host);
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    snprintf(service, sizeof(service), "%d", port);
    bool bracketed = n > 2 && n < sizeof(bare) && host[0] == '[' && host[n - 1] == ']';
    if (bracketed) snprintf(bare, sizeof(bare), "%.*s", (int)(n - 2), host + 1);
    int rc = n > 0 ? getaddrinfo(bracketed ? bare : host, service, &hints, out) : EAI_NONAME;
    if (rc == 0) return QW_OK;
    return qw_fail(err, QW_E_ARG, "--host %s: %s; use an address of this machine", host, gai_strerror(rc));
}

static bool is_loopback(const struct sockaddr *sa)
{
    if (sa->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)sa)->sin_addr.s_addr) >> 24 == 127;
    if (sa->sa_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr);
    return false;
}

static qw_status check_reach(const qw_service_options *o, const struct addrinfo *found, qw_err *err)
{
    if (is_loopback(found->ai_addr) || o->allow_remote) return QW_OK;
    return qw_fail(err, QW_E_ARG, "--host %s can be reached from other machines, and whoever reaches the service may "
                                  "use it: there are no keys yet; add --allow-remote if that is meant",
                   o->host);
}

qw_status qw_service_check_host(const qw_service_options *o, qw_err *err)
{
    struct addrinfo *found = NULL;
    QW_TRY(resolve(o->host, o->port, &found, err));
    qw_status status = check_reach(o, found, err);
    freeaddrinfo(found);
    return status;
}

/* ---- accepting -------------------------------------------------------------------------------- */

static void on_accept(struct evconnlistener *l, evutil_socket_t fd, struct sockaddr *peer, int n, void *arg)
{
    qw_service *s = arg;
    (void)l;
    (void)n;
    qw_conns_accept(&s->conns, fd, peer);
}

/* The system has no descriptor or memory left: trying again at once would spin. */
static void on_accept_error(struct evconnlistener *l, void *arg)
{
    static const struct timeval pause = {.tv_usec = QW_ACCEPT_PAUSE_MS * 1000};
    qw_service *s = arg;
    evconnlistener_disable(l);
    evtimer_add(s->accept_timer, &pause);
}

static void on_accept_again(evutil_socket_t fd, short what, void *arg)
{
    qw_service *s = arg;
    (void)fd;
    (void)what;
    if (s->listener != NULL) evconnlistener_enable(s->listener);
}

/* Ends listening. Who has connected already is still served: closing the socket would reset them. */
static void stop_listening(qw_service *s)
{
    struct sockaddr_storage peer;
    socklen_t n = sizeof(peer);
    int listening = evconnlistener_get_fd(s->listener), fd = -1;
    while ((fd = accept4(listening, (struct sockaddr *)&peer, &n, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        qw_conns_accept(&s->conns, fd, (struct sockaddr *)&peer);
        n = sizeof(peer);
    }
    evconnlistener_free(s->listener);
    s->listener = NULL;
}

static void name_url(qw_service *s)
{
    struct sockaddr_storage bound;
    socklen_t n = sizeof(bound);
    int port = 0;
    if (getsockname(evconnlistener_get_fd(s->listener), (struct sockaddr *)&bound, &n) == 0) {
        port = bound.ss_family == AF_INET6 ? ntohs(((struct sockaddr_in6 *)(void *)&bound)->sin6_port)
                                           : ntohs(((struct sockaddr_in *)(void *)&bound)->sin_port);
    }
    bool brackets = strchr(s->o.host, ':') != NULL && s->o.host[0] != '[';
    snprintf(s->url, sizeof(s->url), "http://%s%.250s%s:%d", brackets ? "[" : "", s->o.host, brackets ? "]" : "", port);
}

static qw_status listen_on(qw_service *s, qw_err *err)
{
    struct addrinfo *found = NULL;
    unsigned flags = LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_REUSEABLE;
    QW_TRY(resolve(s->o.host, s->o.port, &found, err));
    qw_status status = check_reach(&s->o, found, err);
    s->loopback = is_loopback(found->ai_addr);
    if (status == QW_OK) {
        s->listener = evconnlistener_new_bind(s->base, on_accept, s, flags, 128, found->ai_addr,
                                              (int)found->ai_addrlen);
        if (s->listener == NULL)
            status = qw_fail_errno(err, "cannot listen on %s port %d; --port takes another one, 0 a free one",
                                   s->o.host, s->o.port);
    }
    freeaddrinfo(found);
    if (status != QW_OK) return status;
    evconnlistener_set_error_cb(s->listener, on_accept_error);
    name_url(s);
    return QW_OK;
}

/* ---- the engine's events ----------------------------------------------------------------------- */

static void on_engine(evutil_socket_t fd, short what, void *arg)
{
    qw_service *s = arg;
    qw_event ev;
    (void)fd;
    (void)what;
    for (int i = 0; i < QW_EVENTS_AT_ONCE && qw_poll(s->engine, 0, &ev); i++) qw_answer_event(ev.user, &ev);
}

/* ---- log and end ------------------------------------------------------------------------------- */

static void on_finished(void *arg, const qw_conn *c)
{
    const qw_service *s = arg;
    if (!s->o.verbose) return;
    bool known = c->http.method[0] != 0;
    fprintf(stderr, "%s %s %s %d %zu bytes %lld ms %s\n", c->peer, known ? c->http.method : "-",
            known ? qw_http_path(&c->http) : "-", c->status, c->reply_bytes,
            c->began_us > 0 ? (long long)(qw_clock_us() - c->began_us) / 1000 : 0LL, c->id);
}

static void on_drained(void *arg)
{
    qw_service *s = arg;
    event_base_loopbreak(s->base);
}

static void stop_now(qw_service *s)
{
    static const struct timeval farewell = {.tv_usec = QW_FAREWELL_MS * 1000};
    qw_answers_end(s, "the service is shutting down");
    event_base_loopexit(s->base, &farewell); /* on_drained ends it earlier */
}

static void on_drain_timer(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    stop_now(arg);
}

static void on_signal(evutil_socket_t fd, short what, void *arg)
{
    static const struct timeval limit = {.tv_sec = QW_DRAIN_S};
    qw_service *s = arg;
    (void)fd;
    (void)what;
    if (s->draining) {
        stop_now(s);
        return;
    }
    s->draining = true;
    stop_listening(s);
    evtimer_add(s->timer, &limit);
    qw_conns_drain(&s->conns);
}

/* ---- life ------------------------------------------------------------------------------------- */

static qw_status make_events(qw_service *s, qw_err *err)
{
    s->engine_event = event_new(s->base, qw_engine_fd(s->engine), EV_READ | EV_PERSIST, on_engine, s);
    s->on_sigint = evsignal_new(s->base, SIGINT, on_signal, s);
    s->on_sigterm = evsignal_new(s->base, SIGTERM, on_signal, s);
    s->timer = evtimer_new(s->base, on_drain_timer, s);
    s->accept_timer = evtimer_new(s->base, on_accept_again, s);
    if (s->engine_event == NULL || s->on_sigint == NULL || s->on_sigterm == NULL || s->timer == NULL ||
        s->accept_timer == NULL || event_add(s->engine_event, NULL) != 0 || event_add(s->on_sigint, NULL) != 0 ||
        event_add(s->on_sigterm, NULL) != 0)
        return qw_fail(err, QW_E_MEMORY, "out of memory: the event loop");
    return QW_OK;
}

qw_status qw_service_open(qw_service *s, const qw_service_options *o, const qw_model *model, qw_engine *engine,
                          qw_err *err)
{
    qw_status status = QW_OK;
    *s = (qw_service){.o = *o, .model = model, .engine = engine, .started_s = qw_wall_s()};
    qw_conn_handler handler = {.ctx = s,
                               .head = qw_route_head,
                               .request = qw_route_request,
                               .refuse = qw_route_refuse,
                               .gone = qw_answer_gone,
                               .finished = on_finished,
                               .drained = on_drained};
    if (gethostname(s->host_name, sizeof(s->host_name) - 1) != 0) s->host_name[0] = 0;
    s->base = event_base_new();
    if (s->base == NULL) return qw_fail(err, QW_E_MEMORY, "out of memory: the event loop");
    QW_TRY_GOTO(qw_conns_init(&s->conns, s->base, handler, err));
    QW_TRY_GOTO(make_events(s, err));
    QW_TRY_GOTO(listen_on(s, err));
    return QW_OK;
fail:
    qw_service_close(s);
    return status;
}

qw_status qw_service_run(qw_service *s, qw_err *err)
{
    if (event_base_dispatch(s->base) < 0) return qw_fail(err, QW_E_INTERNAL, "the event loop failed");
    return QW_OK;
}

void qw_service_close(qw_service *s)
{
    struct event *const events[] = {s->engine_event, s->on_sigint, s->on_sigterm, s->timer, s->accept_timer};
    qw_answers_free(s);
    qw_conns_free(&s->conns);
    for (size_t i = 0; i < sizeof(events) / sizeof(*events); i++)
        if (events[i] != NULL) event_free(events[i]);
    if (s->listener != NULL) evconnlistener_free(s->listener);
    if (s->base != NULL) event_base_free(s->base);
    *s = (qw_service){0};
}
