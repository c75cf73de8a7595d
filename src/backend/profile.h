/* profile.h: a backend that passes every operation on to another one and measures it.
 *
 * For `qw bench --profile`: a pass that is given this backend instead of the real one computes the same bits, and
 * afterwards there is a row for each kind of operation. Products are told apart by the names of their weights without
 * the number of the layer. For `qw imatrix` it also shows the inputs of products. Whoever does not ask for a profile pays
 * nothing. One thread, the one that runs passes.
 */
#ifndef QW_BACKEND_PROFILE_H
#define QW_BACKEND_PROFILE_H

#include "backend/steps.h"

enum { QW_PROFILE_ROWS_MAX = 64 }; /* kinds of operations; what comes after them is counted in the last row */

typedef struct qw_profile_row {
    const char *op;    /* "linear"; static */
    char weights[64];  /* "ffn_gate+ffn_up", cut when longer; "" for an operation without matrices */
    uint64_t n_calls;
    int64_t ns;        /* time from call to return, waiting for other threads included */
    uint64_t n_bytes;  /* read: each weight, key, value and activation of a call counts once, as it is stored */
    uint64_t n_macs;   /* of matrix products and of attention; 0 for the others */
} qw_profile_row;

/* Borrows inner, which must outlive it. ops->destroy frees the new backend alone. */
qw_status qw_profile_create(qw_backend *inner, qw_backend **out, qw_err *err) QW_MUST_CHECK;
/* From now on shows every product's input to a function before it is computed. Gated blocks then run in steps: results
 * are equal up to rounding. sizes: the largest batch and block of experts. At most once. */
qw_status qw_profile_watch(qw_backend *profile, const qw_cpu_sizes *sizes, qw_input_fn *input, void *ctx,
                           qw_err *err) QW_MUST_CHECK;
void qw_profile_clear(qw_backend *profile); /* forgets all rows */
/* Number of rows, in order of their first call; *rows borrows until the next operation. */
size_t qw_profile_rows(const qw_backend *profile, const qw_profile_row **rows);

#endif
