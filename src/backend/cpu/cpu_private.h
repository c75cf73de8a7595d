/* cpu_private.h: what the files of the CPU backend share. */
#ifndef QW_BACKEND_CPU_PRIVATE_H
#define QW_BACKEND_CPU_PRIVATE_H

#include "backend/backend.h"
#include "base/pool.h"

enum {
    QW_CPU_QUERIES_MAX = 64, /* queries of one KV head that share a pass over its tiles */
    QW_CPU_INLINE_ROWS = 4,  /* fewer rows of an elementwise operation run in the caller's thread */
    QW_CPU_SLICE = 256       /* elements of a row that are quantised together at the end of a product: a whole number
                                of groups of any qw_act */
};

typedef struct qw_cpu {
    qw_backend base;
    qw_pool *pool;
    const qw_kernels *kernels;
    qw_cpu_sizes sizes;
    int n_threads;
    uint8_t *act[QW_ACT_COUNT];       /* [n_rows_max] records of the current input; NULL: not wanted */
    uint8_t *act_gated[QW_ACT_COUNT]; /* the same of a gated product, while the current input is still read */
    uint8_t *scratch;           /* [n_threads][thread_bytes] */
    size_t thread_bytes;
} qw_cpu;

/* Scratch of one thread, thread_bytes long. */
static inline float *qw_cpu_scratch(const qw_cpu *cpu, int thread)
{
    return (float *)(void *)(cpu->scratch + (size_t)thread * cpu->thread_bytes);
}

/* Bytes of scratch that products and attention want for one thread. */
size_t qw_cpu_linear_scratch(const qw_cpu_sizes *s);
size_t qw_cpu_attention_scratch(const qw_cpu_sizes *s);

/* Operations of the table (backend.h). */
void qw_cpu_linear(qw_backend *be, const float *x, size_t ld_x, size_t n_rows, const qw_linear *products,
                   size_t n_products);
void qw_cpu_swiglu(qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_swiglu *w, float *x,
                   size_t ld_x);
void qw_cpu_kv_store(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows, size_t n_rows,
                     const float *k, const float *v, size_t ld);
void qw_cpu_attention(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows, size_t n_rows,
                      const float *q, float *out, size_t ld);

#endif
