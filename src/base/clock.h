/* clock.h: monotonic time, and waiting until a time of it. Any thread. */
#ifndef QW_BASE_CLOCK_H
#define QW_BASE_CLOCK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

int64_t qw_clock_us(void); /* microseconds since an arbitrary start; never goes back */
int64_t qw_wall_s(void);   /* seconds since 1970 */

/* A condition for qw_cond_wait_until. */
void qw_cond_init(pthread_cond_t *cond);
/* As pthread_cond_wait, but not beyond that time of qw_clock_us. False: it was reached. */
bool qw_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, int64_t clock_us);

#endif
