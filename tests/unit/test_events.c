/* test_events.c: the bounded queue from the engine thread to the reader: order, its limit, its descriptor, its end.
 *
 * A thread stands for the engine. Where it must have come to a halt, the test waits until the queue says that it is
 * full; nothing depends on how long anything takes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"
#include "engine/engine_private.h"

typedef struct writer {
    qw_event_queue *q;
    atomic_bool cancelled;
    uint64_t first, n;
    atomic_ulong n_pushed;
    pthread_t thread;
} writer;

static void *push_all(void *arg)
{
    writer *w = arg;
    for (uint64_t i = 0; i < w->n; i++) {
        qw_event_node *node;
        if (qw_alloc(&node, 1, sizeof *node, "event", NULL) != QW_OK) return NULL;
        node->event.request = w->first + i;
        node->text = strdup("a text of its own");
        node->event.text = (qw_text){node->text, 17};
        qw_events_push(w->q, node, &w->cancelled);
        atomic_fetch_add(&w->n_pushed, 1);
    }
    return NULL;
}

static void start(writer *w, qw_event_queue *q, uint64_t first, uint64_t n)
{
    *w = (writer){.q = q, .first = first, .n = n};
    assert_int_equal(pthread_create(&w->thread, NULL, push_all, w), 0);
}

static size_t waiting(qw_event_queue *q)
{
    pthread_mutex_lock(&q->lock);
    size_t n = q->n;
    pthread_mutex_unlock(&q->lock);
    return n;
}

static void wait_until_full(qw_event_queue *q)
{
    while (waiting(q) < QW_EVENTS_MAX) usleep(1000);
    usleep(20000); /* time for a writer that does not stop to show itself */
    assert_int_equal(waiting(q), QW_EVENTS_MAX);
}

static bool readable(const qw_event_queue *q)
{
    struct pollfd p = {.fd = q->fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void test_order_and_limit(void **state)
{
    (void)state;
    enum { N = QW_EVENTS_MAX + 1000 };
    qw_event_queue q = {.fd = -1};
    qw_event ev;
    writer w;
    assert_int_equal(qw_events_init(&q, NULL), QW_OK);
    assert_false(readable(&q));
    start(&w, &q, 1, N);
    wait_until_full(&q);
    assert_true(readable(&q));
    for (uint64_t i = 1; i <= N; i++) {
        assert_true(qw_events_poll(&q, -1, &ev));
        assert_int_equal(ev.request, i);
        assert_memory_equal(ev.text.s, "a text of its own", 17);
        assert_true(waiting(&q) <= QW_EVENTS_MAX);
        if (waiting(&q) > 0) assert_true(readable(&q));
    }
    pthread_join(w.thread, NULL);
    assert_false(qw_events_poll(&q, 0, &ev));
    assert_false(readable(&q));
    qw_events_free(&q);
}

/* A cancelled request's writer goes on although nobody reads: its end must get through. */
static void test_cancelled_writer(void **state)
{
    (void)state;
    enum { N = QW_EVENTS_MAX + 50 };
    qw_event_queue q = {.fd = -1};
    qw_event ev;
    writer w;
    assert_int_equal(qw_events_init(&q, NULL), QW_OK);
    start(&w, &q, 1, N);
    wait_until_full(&q);
    atomic_store(&w.cancelled, true);
    pthread_join(w.thread, NULL);
    assert_int_equal(waiting(&q), N);
    for (uint64_t i = 1; i <= N; i++) {
        assert_true(qw_events_poll(&q, 0, &ev));
        assert_int_equal(ev.request, i);
    }
    assert_false(readable(&q));
    qw_events_free(&q);
}

/* Closing lets writer and reader go; what is pushed afterwards is freed. */
static void *close_soon(void *arg)
{
    usleep(20000);
    qw_events_close(arg);
    return NULL;
}

static void test_close(void **state)
{
    (void)state;
    qw_event_queue q = {.fd = -1};
    qw_event ev;
    writer w;
    pthread_t closer;
    assert_int_equal(qw_events_init(&q, NULL), QW_OK);
    start(&w, &q, 1, QW_EVENTS_MAX + 10);
    wait_until_full(&q);
    qw_events_close(&q);
    pthread_join(w.thread, NULL);
    assert_int_equal(atomic_load(&w.n_pushed), QW_EVENTS_MAX + 10);
    assert_int_equal(waiting(&q), QW_EVENTS_MAX);
    assert_true(qw_events_poll(&q, -1, &ev)); /* one in the reader's hands */
    qw_events_free(&q);
    /* a reader that waits without end */
    q = (qw_event_queue){.fd = -1};
    assert_int_equal(qw_events_init(&q, NULL), QW_OK);
    assert_int_equal(pthread_create(&closer, NULL, close_soon, &q), 0);
    assert_false(qw_events_poll(&q, -1, &ev));
    pthread_join(closer, NULL);
    qw_events_free(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_limit),
        cmocka_unit_test(test_cancelled_writer),
        cmocka_unit_test(test_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
