/* test_events.c: events on their way from the engine thread to their readers: order, who gets which, the descriptor, the end.
 *
 * Nothing here depends on how long anything takes: where a reader waits, another thread brings what it waits for.
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

enum { BACKLOG = 8 };

static qw_event_queue *open_queue(void)
{
    qw_event_queue *q = calloc(1, sizeof *q);
    assert_non_null(q);
    assert_int_equal(qw_events_init(q, BACKLOG, NULL), QW_OK);
    return q;
}

static void close_queue(qw_event_queue *q)
{
    qw_events_free(q);
    free(q);
}

/* A request that may be polled; the caller holds its feed, as a job does. */
static qw_feed *open_feed(qw_event_queue *q, uint64_t request)
{
    qw_feed *f;
    assert_int_equal(qw_feed_create(&f, NULL), QW_OK);
    qw_events_open(q, f, request);
    return f;
}

/* The mark comes back as the number of tokens of the prompt. */
static void push(qw_event_queue *q, qw_feed *f, qw_event_type type, uint32_t mark)
{
    qw_event_node *node;
    assert_int_equal(qw_alloc(&node, 1, sizeof *node, "event", NULL), QW_OK);
    node->event.type = type;
    node->event.request = f->request;
    node->event.usage.prompt_tokens = mark;
    if (type == QW_EVENT_TEXT) {
        node->text = strdup("a text of its own");
        node->event.text = (qw_text){node->text, 17};
    }
    qw_events_push(q, f, node);
}

static void expect(const qw_event *ev, uint64_t request, uint32_t mark)
{
    assert_int_equal(ev->request, request);
    assert_int_equal(ev->usage.prompt_tokens, mark);
    if (ev->type == QW_EVENT_TEXT) assert_memory_equal(ev->text.s, "a text of its own", 17);
}

static bool readable(const qw_event_queue *q)
{
    struct pollfd p = {.fd = q->fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

/* One reader of all gets them in the order in which they came, far beyond what a request may have waiting: nobody waits. */
static void test_order(void **state)
{
    (void)state;
    enum { N = 5000 };
    qw_event_queue *q = open_queue();
    qw_feed *f[2] = {open_feed(q, 1), open_feed(q, 2)};
    qw_event ev;
    assert_false(readable(q));
    for (uint32_t i = 0; i < N; i++) push(q, f[i % 3 == 0], QW_EVENT_TEXT, i);
    for (uint32_t i = 0; i < N; i++) {
        assert_true(readable(q));
        assert_true(qw_events_poll(q, -1, &ev));
        expect(&ev, i % 3 == 0 ? 2 : 1, i);
    }
    assert_false(qw_events_poll(q, 0, &ev));
    assert_false(readable(q));
    qw_feed_release(f[0]);
    qw_feed_release(f[1]);
    close_queue(q);
}

/* Who polls one request gets its events alone, and nothing after its end; the others are still there. */
static void test_one_request(void **state)
{
    (void)state;
    qw_event_queue *q = open_queue();
    qw_feed *a = open_feed(q, 10), *b = open_feed(q, 11);
    qw_event ev, kept;
    for (uint32_t i = 0; i < 6; i++) push(q, i % 2 ? b : a, QW_EVENT_TEXT, i);
    push(q, b, QW_EVENT_DONE, 6);
    assert_int_equal(qw_events_ended(q), 1);
    assert_true(qw_events_poll_one(q, 11, 0, &kept));
    assert_true(qw_events_poll(q, 0, &ev)); /* the oldest of all: what the other reader holds stays valid */
    expect(&ev, 10, 0);
    expect(&kept, 11, 1);
    assert_true(qw_events_poll_one(q, 11, 0, &ev));
    expect(&ev, 11, 3);
    assert_true(qw_events_poll_one(q, 11, 0, &ev));
    assert_true(qw_events_poll_one(q, 11, -1, &ev));
    assert_int_equal(ev.type, QW_EVENT_DONE);
    assert_int_equal(qw_events_ended(q), 0);
    assert_false(qw_events_poll_one(q, 11, -1, &ev)); /* at once: nothing can come */
    assert_false(qw_events_poll_one(q, 12, -1, &ev)); /* nor of a request that never was */
    assert_true(readable(q));
    assert_true(qw_events_poll_one(q, 10, 0, &ev));
    expect(&ev, 10, 2);
    assert_true(qw_events_poll(q, 0, &ev));
    expect(&ev, 10, 4);
    assert_false(readable(q));
    assert_false(qw_events_poll_one(q, 10, 0, &ev)); /* not ended, nothing yet */
    push(q, a, QW_EVENT_ERROR, 7);
    qw_feed_release(a); /* before it was read */
    assert_true(qw_events_poll(q, 0, &ev));
    expect(&ev, 10, 7);
    qw_feed_release(b);
    close_queue(q);
}

static void count_wake(void *ctx)
{
    ++*(int *)ctx;
}

/* Full at the limit, until half of it was read; then whoever sleeps is woken, once. */
static void test_backlog(void **state)
{
    (void)state;
    qw_event_queue *q = open_queue();
    qw_feed *f = open_feed(q, 1), *other = open_feed(q, 2);
    qw_event ev;
    int n_woken = 0;
    q->wake = count_wake;
    q->wake_ctx = &n_woken;
    bool full = false;
    for (uint32_t i = 1; i <= BACKLOG + 3; i++) {
        push(q, f, QW_EVENT_TEXT, i);
        full = qw_feed_is_full(q, f, full);
        assert_int_equal(full, i >= BACKLOG);
        assert_false(qw_feed_is_full(q, other, false));
    }
    for (uint32_t left = BACKLOG + 3; left-- > 0;) {
        assert_true(left % 2 ? qw_events_poll(q, 0, &ev) : qw_events_poll_one(q, 1, 0, &ev));
        full = qw_feed_is_full(q, f, full);
        assert_int_equal(full, left > BACKLOG / 2);
        assert_int_equal(n_woken, left <= BACKLOG / 2);
    }
    qw_feed_release(f);
    qw_feed_release(other);
    close_queue(q);
}

/* ---- readers that wait ------------------------------------------------------------------------ */

typedef struct late {
    qw_event_queue *q;
    qw_feed *f;
    qw_event_type type; /* what comes; 0: the queue is closed */
} late;

static void *act_late(void *arg)
{
    late *l = arg;
    usleep(20000);
    if (l->type) push(l->q, l->f, l->type, 5);
    else qw_events_close(l->q);
    return NULL;
}

static void test_waiting(void **state)
{
    (void)state;
    qw_event_queue *q = open_queue();
    qw_feed *f = open_feed(q, 3);
    qw_event ev;
    pthread_t thread;
    for (int one = 0; one < 2; one++) {
        late l = {.q = q, .f = f, .type = QW_EVENT_TEXT};
        assert_int_equal(pthread_create(&thread, NULL, act_late, &l), 0);
        assert_true(one ? qw_events_poll_one(q, 3, -1, &ev) : qw_events_poll(q, 60000, &ev));
        expect(&ev, 3, 5);
        pthread_join(thread, NULL);
        assert_false(one ? qw_events_poll_one(q, 3, 5, &ev) : qw_events_poll(q, 5, &ev));
    }
    for (int one = 0; one < 2; one++) { /* the end lets them go */
        late l = {.q = q};
        q->closed = false;
        assert_int_equal(pthread_create(&thread, NULL, act_late, &l), 0);
        assert_false(one ? qw_events_poll_one(q, 3, -1, &ev) : qw_events_poll(q, -1, &ev));
        pthread_join(thread, NULL);
    }
    push(q, f, QW_EVENT_TEXT, 6); /* freed: nobody will read it */
    assert_false(qw_events_poll(q, 0, &ev));
    qw_feed_release(f);
    close_queue(q);
}

/* What nobody reads is freed with the queue, also what readers hold. */
static void test_unread(void **state)
{
    (void)state;
    qw_event_queue *q = open_queue();
    qw_feed *f[3];
    qw_event ev;
    for (uint32_t i = 0; i < 3; i++) {
        f[i] = open_feed(q, 1 + i);
        push(q, f[i], QW_EVENT_TEXT, i);
        push(q, f[i], QW_EVENT_TEXT, i);
        if (i < 2) push(q, f[i], QW_EVENT_DONE, i);
        qw_feed_release(f[i]);
    }
    assert_int_equal(qw_events_ended(q), 2);
    assert_true(qw_events_poll(q, 0, &ev));
    assert_true(qw_events_poll_one(q, 3, 0, &ev));
    close_queue(q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),   cmocka_unit_test(test_one_request), cmocka_unit_test(test_backlog),
        cmocka_unit_test(test_waiting), cmocka_unit_test(test_unread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
