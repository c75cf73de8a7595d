/* clock.c: monotonic time and the calendar's seconds. Any thread. */
#include "base/clock.h"

#include <errno.h>
#include <time.h>

int64_t qw_clock_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

void qw_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

bool qw_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t clock_us)
{
    const struct timespec t = {.tv_sec = clock_us / 1000000, .tv_nsec = clock_us % 1000000 * 1000};
    return pthread_cond_timedwait(cond, lock, &t) != ETIMEDOUT;
}

int64_t qw_wall_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec;
}
