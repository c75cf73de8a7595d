/* steps.h: gated feed-forward blocks as products of their own, for whoever wants to see the inputs of every matrix.
 *
 * A backend computes swiglu and moe in one piece, and what goes into their inner matrices exists nowhere whole. Here the
 * same is done with the backend's plain operations, slower and equal up to rounding; each product's input is shown to a
 * function first. One thread, the one that runs passes.
 */
#ifndef QW_BACKEND_STEPS_H
#define QW_BACKEND_STEPS_H

#include "backend/backend.h"

/* x [n_rows, ld]: the inputs of matrix `stacked` of w. */
typedef void qw_input_fn(void *ctx, const qw_weight *w, size_t stacked, const float *x, size_t ld, size_t n_rows);

typedef struct qw_steps {
    qw_input_fn *input;
    void *ctx;
    const qw_kernels *kernels;
    qw_cpu_sizes sizes; /* the largest batch and block of experts */
    float *scratch;     /* [n_scratch], owns */
    size_t n_scratch;
} qw_steps;

qw_status qw_steps_create(const qw_cpu_sizes *sizes, qw_input_fn *input, void *ctx, qw_steps **out,
                          qw_err *err) QW_MUST_CHECK;
void qw_steps_destroy(qw_steps *s);

/* As the operations of these names of `be`. */
void qw_steps_linear(qw_steps *s, qw_backend *be, const float *x, size_t ld_x, size_t n_rows, const qw_linear *products,
                     size_t n_products);
void qw_steps_swiglu(qw_steps *s, qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_swiglu *w, float *x,
                     size_t ld_x);
void qw_steps_moe(qw_steps *s, qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_moe *w, float *x,
                  size_t ld_x);

#endif
