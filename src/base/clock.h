/* clock.h: monotonic time. Any thread. */
#ifndef QW_BASE_CLOCK_H
#define QW_BASE_CLOCK_H

#include <stdint.h>

int64_t qw_clock_us(void); /* microseconds since an arbitrary start; never goes back */
int64_t qw_wall_s(void);   /* seconds since 1970 */

#endif
