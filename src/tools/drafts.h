/* drafts.h: how often the guesses of multi-token prediction are what the model itself would say.
 *
 * The model continues the beginning of a text greedily; at each position of the continuation its MTP layer drafts some
 * tokens, each built on the guess before, until one differs. One thread.
 */
#ifndef QW_TOOLS_DRAFTS_H
#define QW_TOOLS_DRAFTS_H

#include "tools/compute.h"

enum { QW_DRAFTS_MAX = 16 };

typedef struct qw_drafts {
    size_t n_max;                                            /* tokens of a draft */
    size_t drafted[QW_DRAFTS_MAX], accepted[QW_DRAFTS_MAX]; /* by place in the draft */
} qw_drafts;

/* Of the continuation of prompt [n_prompt] by n_more tokens, added to d. c has room for one sequence of both, and was opened
 * with mtp. */
qw_status qw_drafts_measure(qw_compute *c, const int32_t *prompt, size_t n_prompt, size_t n_more, qw_drafts *d,
                            qw_err *err) QW_MUST_CHECK;

#endif
