/* gates.h: sigmoid and softplus of a few numbers, with the exponential of the kernels. Order: docs/numerics.md. Any thread. */
#ifndef QW_BACKEND_GATES_H
#define QW_BACKEND_GATES_H

#include <math.h>
#include <stddef.h>

#include "base/status.h"
#include "kernels/kernels.h"

/* x = 1 / (1 + exp(-x)), all [n] */
static inline void qw_sigmoid(const qw_kernels *kernels, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) x[i] = -x[i];
    kernels->exp(x, n);
    for (size_t i = 0; i < n; i++) x[i] = 1.0f / (1.0f + x[i]);
}

enum { QW_SOFTPLUS_MAX = 64 /* numbers in one call */ };

/* x = log(1 + exp(x)), all [n] */
static inline void qw_softplus(const qw_kernels *kernels, float *x, size_t n)
{
    float e[QW_SOFTPLUS_MAX];
    QW_ASSERT(n <= QW_SOFTPLUS_MAX);
    for (size_t i = 0; i < n; i++) e[i] = -fabsf(x[i]);
    kernels->exp(e, n);
    for (size_t i = 0; i < n; i++) x[i] = fmaxf(x[i], 0.0f) + (float)log1p((double)e[i]);
}

#endif
