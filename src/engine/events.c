/* events.c: the bounded queue from the engine thread to the one who polls. See engine_private.h. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/engine_private.h"

enum { LOOK_AGAIN_US = 50000 };

qw_status qw_events_init(qw_event_queue *q, qw_err *err)
{
    pthread_mutex_init(&q->lock, NULL);
    qw_cond_init(&q->readable);
    qw_cond_init(&q->writable);
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

void qw_events_free(qw_event_queue *q)
{
    while (q->first) {
        qw_event_node *next = q->first->next;
        qw_event_node_free(q->first);
        q->first = next;
    }
    qw_event_node_free(q->current);
    if (q->fd >= 0) close(q->fd);
    pthread_cond_destroy(&q->readable);
    pthread_cond_destroy(&q->writable);
    pthread_mutex_destroy(&q->lock);
}

void qw_events_push(qw_event_queue *q, qw_event_node *node, const atomic_bool *cancelled)
{
    uint64_t one = 1;
    pthread_mutex_lock(&q->lock);
    while (q->n >= QW_EVENTS_MAX && !q->closed && !atomic_load(cancelled)) {
        qw_cond_wait_until(&q->writable, &q->lock, qw_clock_us() + LOOK_AGAIN_US); /* cancelled is not signalled */
    }
    if (q->closed) {
        qw_event_node_free(node);
    } else {
        node->next = NULL;
        if (q->last) q->last->next = node;
        else q->first = node;
        q->last = node;
        bool told = q->n++ > 0 || write(q->fd, &one, sizeof one) == sizeof one || errno == EAGAIN;
        QW_ASSERT(told); /* an eventfd below its maximum takes every write */
        pthread_cond_signal(&q->readable);
    }
    pthread_mutex_unlock(&q->lock);
}

void qw_events_close(qw_event_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->closed = true;
    pthread_cond_broadcast(&q->writable);
    pthread_cond_broadcast(&q->readable);
    pthread_mutex_unlock(&q->lock);
}

bool qw_events_poll(qw_event_queue *q, int timeout_ms, qw_event *out)
{
    int64_t until_us = timeout_ms > 0 ? qw_clock_us() + (int64_t)timeout_ms * 1000 : 0;
    uint64_t count;
    bool got = false;
    pthread_mutex_lock(&q->lock);
    qw_event_node_free(q->current);
    q->current = NULL;
    while (q->n == 0 && !q->closed && timeout_ms != 0) {
        if (timeout_ms < 0) pthread_cond_wait(&q->readable, &q->lock);
        else if (!qw_cond_wait_until(&q->readable, &q->lock, until_us)) break;
    }
    if (q->n > 0) {
        q->current = q->first;
        q->first = q->first->next;
        if (!q->first) q->last = NULL;
        bool emptied = --q->n > 0 || read(q->fd, &count, sizeof count) == sizeof count || errno == EAGAIN;
        QW_ASSERT(emptied);
        pthread_cond_signal(&q->writable);
        *out = q->current->event;
        got = true;
    }
    pthread_mutex_unlock(&q->lock);
    return got;
}
