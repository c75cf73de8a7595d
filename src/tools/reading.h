/* reading.h: how fast this machine reads a model's weights when it does nothing else.
 *
 * A decode step reads every weight once and is bound by that. A virtual machine's bandwidth can double from one second
 * to the next, so the two are measured turn by turn: a step, a reading, a step, ... and each step is compared with the
 * reading right after it. The same bytes at the same addresses are read (of experts as many as a token uses), in one of
 * several ways in turn. One thread calls; a pool of its own reads.
 */
#ifndef QW_TOOLS_READING_H
#define QW_TOOLS_READING_H

#include "model/net.h"

typedef struct qw_reading qw_reading;

typedef struct qw_reading_result {
    double gb_per_s;  /* of the way that leaves the steps the smallest share; its median */
    double share;     /* of that speed that the steps reach; the median of the pairs. 0: no way was tried yet */
    const char *how;
} qw_reading_result;

/* Weights that are not packed: QW_E_ARG. net: borrowed until destroy. */
qw_status qw_reading_create(qw_net *net, int n_threads, qw_reading **out, qw_err *err) QW_MUST_CHECK;
void qw_reading_destroy(qw_reading *r);
/* Reads all weights once, after a step that took step_us and read more_bytes beside them. Returns microseconds. */
int64_t qw_reading_pair(qw_reading *r, int64_t step_us, size_t more_bytes);
/* Of the pairs since the last call. */
qw_reading_result qw_reading_take(qw_reading *r);

#endif
