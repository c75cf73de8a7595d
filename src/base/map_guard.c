/* map_guard.c: a mapped file that shrinks, or whose disk fails, must not end the process.
 *
 * Reading such a page raises SIGBUS in the thread that reads. The handler looks the address up in a
 * fixed table of ranges (atomics only: it may interrupt anything), marks the range failed, and puts
 * zero pages from the faulting page to the range's end. To the end, because a file shrinks at its
 * end: one fault instead of one a page, and never more than one extra mapping a file. Faults outside
 * the table, and SIGBUS sent by a process, go to whoever handled them before. Whoever sets a handler
 * of his own later takes ours away; the next map puts it back in front of his.
 *
 * A slot's range changes only while its sequence number is odd; the handler skips slots that change
 * under it. The range it looks for cannot: closing a map that another thread reads is a defect.
 */
#include "base/map_guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct guard_slot {
    _Atomic uint32_t seq; /* odd: being written */
    _Atomic uintptr_t begin, end;
    _Atomic bool failed;
    bool used; /* under `lock` */
} guard_slot;

static guard_slot slots[QW_MAPS_MAX];
static _Atomic int n_slots; /* slots [0, n_slots) were used at least once */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uintptr_t page_bytes; /* under `lock` until the first handler is installed, then constant */

/* Handlers found in front of which ours was put. An entry never changes once `current` was set to it,
 * because a handler may be reading it. */
enum { EARLIER_MAX = 16 };
static struct sigaction earlier[EARLIER_MAX];
static int n_earlier; /* under `lock` */
static _Atomic int current;

/* The signal being passed on by this thread and the frame that does it: the same record seen again from
 * a deeper frame means that the handler before us calls us in turn. (A flag would stay set when that
 * handler leaves by siglongjmp.) */
static _Thread_local const siginfo_t *passing_info;
static _Thread_local uintptr_t passing_frame;

/* The slot whose range holds addr, or -1. Async-signal-safe. */
static int find_slot(uintptr_t addr, uintptr_t *end)
{
    int n = atomic_load_explicit(&n_slots, memory_order_acquire);
    for (int i = 0; i < n; i++) {
        guard_slot *s = &slots[i];
        uint32_t before = atomic_load(&s->seq);
        uintptr_t from = atomic_load(&s->begin), to = atomic_load(&s->end);
        if (before % 2 != 0 || atomic_load(&s->seq) != before) continue;
        if (addr < from || addr >= to) continue;
        *end = to;
        return i;
    }
    return -1;
}

/* Hands the signal to the handler that was there before, or to the default action. That handler may
 * leave by siglongjmp: nothing here waits for its return. */
static void pass_on(int sig, siginfo_t *info, void *context)
{
    const struct sigaction *before = &earlier[atomic_load(&current)];
    bool plain = (before->sa_flags & SA_SIGINFO) == 0;
    uintptr_t frame = (uintptr_t)__builtin_frame_address(0);
    bool circle = passing_info == info && frame < passing_frame;
    passing_info = info;
    passing_frame = frame;
    if (circle || (plain && before->sa_handler == SIG_DFL) ||
        (plain && before->sa_handler == SIG_IGN && info->si_code > 0)) {
        /* A fault happens again on return and then ends the process as it would have without us. */
        struct sigaction standard = {.sa_handler = SIG_DFL};
        sigaction(sig, &standard, NULL);
        if (info->si_code <= 0) raise(sig); /* sent by a process: taken when this handler returns */
    } else if (!plain) {
        before->sa_sigaction(sig, info, context);
    } else if (before->sa_handler != SIG_IGN) {
        before->sa_handler(sig);
    }
    passing_info = NULL;
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
    int saved = errno, slot = -1;
    uintptr_t addr = (uintptr_t)info->si_addr, end = 0;
    if (info->si_code > 0) slot = find_slot(addr, &end);
    if (slot >= 0) {
        uintptr_t page = addr & ~(page_bytes - 1);
        atomic_store(&slots[slot].failed, true);
        void *zeros = mmap((void *)page, end - page, PROT_READ,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        if (zeros == MAP_FAILED) slot = -1;
    }
    if (slot < 0) pass_on(sig, info, context);
    errno = saved;
}

static bool same_handler(const struct sigaction *a, const struct sigaction *b)
{
    if ((a->sa_flags & SA_SIGINFO) != (b->sa_flags & SA_SIGINFO)) return false;
    if (a->sa_flags & SA_SIGINFO) return a->sa_sigaction == b->sa_sigaction;
    return a->sa_handler == b->sa_handler;
}

/* Puts our handler in front when it is not there. Under `lock`. */
static int install(void)
{
    struct sigaction found, ours = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    ours.sa_sigaction = on_sigbus;
    sigemptyset(&ours.sa_mask);
    if (page_bytes == 0) page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    if (sigaction(SIGBUS, NULL, &found) != 0) return -1;
    if (same_handler(&found, &ours)) return 0;
    int i = 0;
    while (i < n_earlier && !same_handler(&earlier[i], &found)) i++;
    if (i == n_earlier && n_earlier < EARLIER_MAX) earlier[n_earlier++] = found;
    if (i < n_earlier) atomic_store(&current, i); /* a table that is full keeps the last known one */
    return sigaction(SIGBUS, &ours, NULL);
}

static void set_range(guard_slot *s, uintptr_t begin, uintptr_t end)
{
    atomic_fetch_add(&s->seq, 1);
    atomic_store(&s->begin, begin);
    atomic_store(&s->end, end);
    atomic_fetch_add(&s->seq, 1);
}

qw_status qw_map_guard_add(const void *begin, size_t bytes, int *slot, qw_err *err)
{
    pthread_mutex_lock(&lock);
    if (install() != 0) {
        qw_status status = qw_fail_errno(err, "the guard of mapped files cannot be installed");
        pthread_mutex_unlock(&lock);
        return status;
    }
    int i = 0, n = atomic_load(&n_slots);
    while (i < n && slots[i].used) i++;
    if (i < QW_MAPS_MAX) {
        uintptr_t rounded = ((uintptr_t)bytes + page_bytes - 1) & ~(page_bytes - 1);
        slots[i].used = true;
        atomic_store(&slots[i].failed, false);
        set_range(&slots[i], (uintptr_t)begin, (uintptr_t)begin + rounded);
        if (i == n) atomic_store(&n_slots, n + 1);
    }
    pthread_mutex_unlock(&lock);
    if (i == QW_MAPS_MAX)
        return qw_fail(err, QW_E_LIMIT, "more than %d files are mapped at a time", QW_MAPS_MAX);
    *slot = i;
    return QW_OK;
}

void qw_map_guard_remove(int slot)
{
    pthread_mutex_lock(&lock);
    set_range(&slots[slot], 0, 0);
    slots[slot].used = false;
    pthread_mutex_unlock(&lock);
}

bool qw_map_guard_failed(int slot)
{
    return atomic_load_explicit(&slots[slot].failed, memory_order_relaxed);
}
