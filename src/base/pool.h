/* pool.h: threads that share loops.
 *
 * qw_pool_run() hands [0, n_items) out, by an atomic counter, to the pool's threads,
 * the caller among them, and returns when all are done. Workers spin briefly between calls and then
 * sleep, so that nothing spins while nothing runs. One run at a time, from one thread.
 */
#ifndef QW_BASE_POOL_H
#define QW_BASE_POOL_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct qw_pool qw_pool;

/* Does items [begin, end); `thread` in [0, n_threads) indexes per-thread scratch. */
typedef void qw_pool_fn(void *ctx, int64_t begin, int64_t end, int thread);

/* n_threads >= 1, the caller's included. */
qw_status qw_pool_create(int n_threads, qw_pool **out, qw_err *err) QW_MUST_CHECK;
void qw_pool_destroy(qw_pool *pool);
int qw_pool_threads(const qw_pool *pool);
/* chunk >= 1 items at a time, or more while many are left. The order of items is not fixed: results must not depend on it. */
void qw_pool_run(qw_pool *pool, int64_t n_items, int64_t chunk, qw_pool_fn *fn, void *ctx);

/* Cores this process may use: affinity mask and cgroup CPU quota, at least 1. */
int qw_cpu_count(void);

#endif
