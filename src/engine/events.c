/* events.c: events on their way from the engine thread to whoever polls. See engine_private.h.
 *
 * An event is in two lists: of all events, in the order in which they came, and of its request's feed. Nobody waits for a
 * reader: a feed that grows long makes the core pause its request.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "engine/engine_private.h"

qw_status qw_events_init(qw_event_queue *q, uint32_t n_backlog_max, qw_err *err)
{
    QW_ASSERT(n_backlog_max > 0);
    q->n_backlog_max = n_backlog_max;
    pthread_mutex_init(&q->lock, NULL);
    qw_cond_init(&q->readable);
    q->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (q->fd < 0) return qw_fail_errno(err, "cannot make an event descriptor");
    return QW_OK;
}

void qw_event_node_free(qw_event_node *node)
{
    if (!node) return;
    free(node->text);
    free(node);
}

/* ---- feeds ------------------------------------------------------------------------------------ */

qw_status qw_feed_create(qw_feed **out, qw_err *err)
{
    QW_TRY(qw_alloc(out, 1, sizeof **out, "request", err));
    atomic_store(&(*out)->n_holders, 1);
    return QW_OK;
}

void qw_feed_release(qw_feed *f)
{
    if (f && atomic_fetch_sub(&f->n_holders, 1) == 1) free(f);
}

void qw_events_open(qw_event_queue *q, qw_feed *f, uint64_t request)
{
    f->request = request;
    atomic_fetch_add(&f->n_holders, 1);
    pthread_mutex_lock(&q->lock);
    f->next = q->feeds;
    if (f->next) f->next->prev = f;
    q->feeds = f;
    pthread_mutex_unlock(&q->lock);
}

/* Its last event was read, or nobody will read it. Under the lock. */
static void close_feed(qw_event_queue *q, qw_feed *f)
{
    if (f->prev) f->prev->next = f->next;
    else q->feeds = f->next;
    if (f->next) f->next->prev = f->prev;
    q->n_ended -= f->ended;
    qw_event_node_free(f->current);
    f->current = NULL;
    qw_feed_release(f);
    pthread_cond_broadcast(&q->readable); /* somebody may wait for it */
}

bool qw_feed_is_full(const qw_event_queue *q, const qw_feed *f, bool was_full)
{
    uint32_t n = atomic_load(&f->n);
    return n >= q->n_backlog_max || (was_full && n > q->n_backlog_max / 2);
}

/* ---- events; under the lock --------------------------------------------------------------------- */

static void link_node(qw_event_queue *q, qw_event_node *node)
{
    qw_feed *f = node->feed;
    node->next = node->feed_next = NULL;
    node->prev = q->last;
    if (q->last) q->last->next = node;
    else q->first = node;
    q->last = node;
    if (f->last) f->last->feed_next = node;
    else f->first = node;
    f->last = node;
    atomic_fetch_add(&f->n, 1);
    q->n++;
}

/* The oldest of its feed. */
static void unlink_node(qw_event_queue *q, qw_event_node *node)
{
    qw_feed *f = node->feed;
    QW_ASSERT(f->first == node);
    if (node->prev) node->prev->next = node->next;
    else q->first = node->next;
    if (node->next) node->next->prev = node->prev;
    else q->last = node->prev;
    f->first = node->feed_next;
    if (!f->first) f->last = NULL;
    q->n--;
}

void qw_events_push(qw_event_queue *q, qw_feed *f, qw_event_node *node)
{
    uint64_t one = 1;
    pthread_mutex_lock(&q->lock);
    if (q->closed) {
        qw_event_node_free(node);
    } else {
        QW_ASSERT(!f->ended);
        node->feed = f;
        link_node(q, node);
        f->ended = qw_event_is_terminal(&node->event);
        q->n_ended += f->ended;
        bool told = q->n > 1 || write(q->fd, &one, sizeof one) == sizeof one || errno == EAGAIN;
        QW_ASSERT(told); /* an eventfd below its maximum takes every write */
        pthread_cond_broadcast(&q->readable);
    }
    pthread_mutex_unlock(&q->lock);
}

/* Gives the event out and keeps what it points to in *held. True: its request may go on. */
static bool give(qw_event_queue *q, qw_event_node *node, qw_event_node **held, qw_event *out)
{
    qw_feed *f = node->feed;
    uint64_t count;
    *held = node;
    *out = node->event;
    unlink_node(q, node);
    bool resumes = atomic_fetch_sub(&f->n, 1) == q->n_backlog_max / 2 + 1;
    bool emptied = q->n > 0 || read(q->fd, &count, sizeof count) == sizeof count || errno == EAGAIN;
    QW_ASSERT(emptied);
    if (qw_event_is_terminal(out)) close_feed(q, f); /* such an event points to nothing */
    return resumes;
}

/* ---- reading ---------------------------------------------------------------------------------- */

void qw_events_close(qw_event_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->readable);
    pthread_mutex_unlock(&q->lock);
}

/* False: the time is up. Under the lock. */
static bool wait_for_one(qw_event_queue *q, int timeout_ms, int64_t until_us)
{
    if (q->closed || timeout_ms == 0) return false;
    if (timeout_ms < 0) return pthread_cond_wait(&q->readable, &q->lock) == 0;
    return qw_cond_wait_until(&q->readable, &q->lock, until_us);
}

static int64_t end_of(int timeout_ms)
{
    return timeout_ms > 0 ? qw_clock_us() + (int64_t)timeout_ms * 1000 : 0;
}

bool qw_events_poll(qw_event_queue *q, int timeout_ms, qw_event *out)
{
    int64_t until_us = end_of(timeout_ms);
    bool resumes = false;
    pthread_mutex_lock(&q->lock);
    qw_event_node_free(q->current);
    q->current = NULL;
    while (!q->first && wait_for_one(q, timeout_ms, until_us)) {}
    bool got = q->first != NULL;
    if (got) resumes = give(q, q->first, &q->current, out);
    pthread_mutex_unlock(&q->lock);
    if (resumes && q->wake) q->wake(q->wake_ctx);
    return got;
}

static qw_feed *feed_of(const qw_event_queue *q, uint64_t request)
{
    qw_feed *f = q->feeds;
    while (f && f->request != request) f = f->next;
    return f;
}

bool qw_events_poll_one(qw_event_queue *q, uint64_t request, int timeout_ms, qw_event *out)
{
    int64_t until_us = end_of(timeout_ms);
    bool resumes = false, got = false;
    pthread_mutex_lock(&q->lock);
    qw_feed *f = feed_of(q, request);
    if (f) {
        qw_event_node_free(f->current);
        f->current = NULL;
    }
    while (f && !f->first && wait_for_one(q, timeout_ms, until_us)) f = feed_of(q, request);
    f = feed_of(q, request); /* others may have read it meanwhile */
    if (f && f->first) {
        qw_event_node *held;
        got = true;
        resumes = give(q, f->first, &held, out);
        if (qw_event_is_terminal(out)) qw_event_node_free(held);
        else f->current = held;
    }
    pthread_mutex_unlock(&q->lock);
    if (resumes && q->wake) q->wake(q->wake_ctx);
    return got;
}

uint32_t qw_events_ended(qw_event_queue *q)
{
    pthread_mutex_lock(&q->lock);
    uint32_t n = q->n_ended;
    pthread_mutex_unlock(&q->lock);
    return n;
}

void qw_events_free(qw_event_queue *q)
{
    while (q->first) {
        qw_event_node *node = q->first;
        unlink_node(q, node);
        qw_event_node_free(node);
    }
    while (q->feeds) close_feed(q, q->feeds);
    qw_event_node_free(q->current);
    if (q->fd >= 0) close(q->fd);
    pthread_cond_destroy(&q->readable);
    pthread_mutex_destroy(&q->lock);
}
