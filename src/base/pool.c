/* pool.c: threads that share loops.
 *
 * One thread runs; the workers belong to the pool. All of a run's life is in one 32-bit word `state`:
 * the run's number, whether it is open, and how many workers are inside. A worker joins by
 * compare-and-swap while the word says open; the caller, when no chunk is left, closes it and waits
 * for the count to reach zero. So a worker that is asleep or descheduled never delays a run that the
 * others finish without it, and the run's description cannot change under a worker that is inside.
 * Workers spin for some tens of microseconds after a run and then sleep on `state` (futex).
 */
#include "base/pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/thread.h"

enum {
    THREADS_MAX = 1024,
    SPINS = 2000 /* pauses of 10 to 50 ns, by processor */
};

/* state: [31..16] run number, [15] open, [14..0] workers inside */
#define OPEN 0x8000u
#define INSIDE 0x7fffu
#define RUN_STEP 0x10000u

struct qw_pool {
    /* written by the caller between runs, read by workers inside a run */
    _Alignas(64) qw_pool_fn *fn;
    void *ctx;
    int64_t n_items, chunk;
    _Alignas(64) _Atomic uint32_t state;
    _Alignas(64) _Atomic int64_t next; /* first item not handed out */
    _Alignas(64) _Atomic int n_asleep; /* workers in futex_wait */
    _Atomic bool caller_asleep;
    _Atomic bool stop;
    int n_threads, n_started;
    struct worker {
        qw_pool *pool;
        int index; /* 1.. */
        pthread_t thread;
    } *workers; /* owns */
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0); /* may return early: callers loop */
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

/* Takes items until none is left: at first many at a time, which keeps a stream of memory whole, then fewer, so that
 * the threads end together; never less than a chunk. */
static void work(qw_pool *p, int thread)
{
    int64_t begin = atomic_load_explicit(&p->next, memory_order_relaxed);
    while (begin < p->n_items) {
        int64_t left = p->n_items - begin, n = left / (2 * p->n_threads);
        if (n < p->chunk) n = p->chunk;
        if (n > left) n = left;
        if (atomic_compare_exchange_weak_explicit(&p->next, &begin, begin + n, memory_order_relaxed,
                                                  memory_order_relaxed)) {
            p->fn(p->ctx, begin, begin + n, thread);
            begin = atomic_load_explicit(&p->next, memory_order_relaxed);
        }
    }
}

/* Waits until a run is open that is not the one numbered `done`, and joins it. False: the pool ends. */
static bool join_run(qw_pool *p, uint32_t *done)
{
    for (int spins = 0;;) {
        uint32_t s = atomic_load_explicit(&p->state, memory_order_acquire);
        if (atomic_load_explicit(&p->stop, memory_order_acquire)) return false;
        if ((s & OPEN) && s / RUN_STEP != *done) {
            if (atomic_compare_exchange_weak_explicit(&p->state, &s, s + 1, memory_order_acq_rel,
                                                      memory_order_relaxed)) {
                *done = s / RUN_STEP;
                return true;
            }
            continue;
        }
        if (spins < SPINS) {
            spins++;
            pause_cpu();
            continue;
        }
        /* The order "say so, then look again" (the look is the kernel's) pairs with the caller's "open
         * the run, then see who sleeps": one of the two always notices the other. */
        atomic_fetch_add(&p->n_asleep, 1);
        futex_wait(&p->state, s);
        atomic_fetch_sub(&p->n_asleep, 1);
        spins = 0;
    }
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    qw_pool *p = w->pool;
    uint32_t done = UINT32_MAX; /* no run's number */
    while (join_run(p, &done)) {
        work(p, w->index);
        uint32_t left = atomic_fetch_sub(&p->state, 1) - 1;
        if ((left & (OPEN | INSIDE)) == 0 && atomic_load(&p->caller_asleep))
            futex_wake(&p->state, p->n_threads);
    }
    return NULL;
}

qw_status qw_pool_create(int n_threads, qw_pool **out, qw_err *err)
{
    qw_pool *p = NULL;
    qw_status status = QW_OK;
    if (n_threads < 1 || n_threads > THREADS_MAX)
        return qw_fail(err, QW_E_ARG, "%d threads asked for: want 1 to %d", n_threads, THREADS_MAX);
    QW_TRY(qw_alloc_aligned(&p, sizeof *p, "the thread pool", err));
    p->n_threads = n_threads;
    QW_TRY_GOTO(qw_alloc(&p->workers, (size_t)n_threads, sizeof *p->workers, "the thread pool", err));

    int rc = 0;
    for (int i = 1; i < n_threads && rc == 0; i++) {
        struct worker *w = &p->workers[i];
        *w = (struct worker){.pool = p, .index = i};
        rc = qw_thread_create(&w->thread, worker_main, w);
        if (rc == 0) p->n_started++;
    }
    if (rc != 0) {
        errno = rc;
        status = qw_fail_errno(err, "thread %d of %d cannot be started", p->n_started + 2, n_threads);
        goto fail;
    }
    *out = p;
    return QW_OK;
fail:
    qw_pool_destroy(p);
    return status;
}

void qw_pool_destroy(qw_pool *p)
{
    if (p == NULL) return;
    atomic_store(&p->stop, true);
    atomic_fetch_add(&p->state, RUN_STEP); /* so that nobody goes to sleep on the old value */
    futex_wake(&p->state, p->n_threads);
    for (int i = 1; i <= p->n_started; i++) pthread_join(p->workers[i].thread, NULL);
    free(p->workers);
    qw_free_aligned(p, sizeof *p);
}

int qw_pool_threads(const qw_pool *p)
{
    return p->n_threads;
}

/* Waits until the workers inside have left: briefly spinning, then asleep. */
static void wait_closed(qw_pool *p)
{
    for (int spins = 0;; spins++) {
        uint32_t s = atomic_load_explicit(&p->state, memory_order_acquire);
        if ((s & INSIDE) == 0) return;
        if (spins < SPINS) {
            pause_cpu();
            continue;
        }
        atomic_store(&p->caller_asleep, true);
        futex_wait(&p->state, s);
        atomic_store(&p->caller_asleep, false);
    }
}

void qw_pool_run(qw_pool *p, int64_t n_items, int64_t chunk, qw_pool_fn *fn, void *ctx)
{
    QW_ASSERT(chunk >= 1);
    if (n_items <= 0) return;
    if (p->n_started == 0 || n_items <= chunk) {
        fn(ctx, 0, n_items, 0);
        return;
    }
    uint32_t s = atomic_load_explicit(&p->state, memory_order_relaxed);
    QW_ASSERT((s & (OPEN | INSIDE)) == 0); /* one run at a time, none inside another */
    p->fn = fn;
    p->ctx = ctx;
    p->n_items = n_items;
    p->chunk = chunk;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_store(&p->state, (s + RUN_STEP) | OPEN); /* publishes the fields above */
    int asleep = atomic_load(&p->n_asleep);
    if (asleep > 0) {
        int64_t helpers = (n_items - 1) / chunk; /* chunks beyond the caller's first */
        futex_wake(&p->state, helpers < asleep ? (int)helpers : asleep);
    }
    work(p, 0);
    atomic_fetch_and(&p->state, ~OPEN);
    wait_closed(p);
}
