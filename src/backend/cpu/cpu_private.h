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

/* A pair is a row and one of its experts. Pairs are numbered by expert, then by row. */
typedef struct qw_cpu_moe {
    float *logits;     /* [n_rows_max, n_experts] */
    float *scale;      /* [n_rows_max]: of the shared expert */
    float *weight;     /* [n_rows_max, n_used] */
    uint32_t *expert;  /* [n_rows_max, n_used], ascending in a row */
    uint32_t *pair;    /* [n_rows_max, n_used]: number of that pair */
    uint32_t *row;     /* [pairs] */
    float *share;      /* [pairs]: the expert's weight in the row */
    uint32_t *first;   /* [n_experts + 1]: the expert's first pair */
    uint32_t *active;  /* [n_experts]: experts with pairs */
    float *mid;        /* [pairs, ffn]: gate times up */
    float *sum;        /* [n_rows_max, hidden] */
    float *shared;     /* [n_rows_max, hidden] */
    uint8_t *in[QW_ACT_COUNT], *act_mid[QW_ACT_COUNT]; /* [pairs] records of the inputs of gate and up, and of down */
    uint8_t *arena;    /* owns all of them; NULL: the model has no experts */
    size_t bytes;
} qw_cpu_moe;

typedef struct qw_cpu {
    qw_backend base;
    qw_pool *pool;
    const qw_kernels *kernels;
    qw_cpu_sizes sizes;
    int n_threads;
    uint8_t *act[QW_ACT_COUNT];       /* [n_rows_max] records of the current input; NULL: not wanted */
    uint8_t *act_gated[QW_ACT_COUNT]; /* the same of a gated product, while the current input is still read */
    qw_cpu_moe moe;
    uint32_t *chosen;           /* [n_rows_max, index_top]: blocks, with block-sparse attention */
    uint8_t *own_tiles;         /* [n_threads][own_tile_bytes]: the chosen positions of a query */
    size_t own_tile_bytes;
    uint8_t *scratch;           /* [n_threads][thread_bytes] */
    size_t thread_bytes;
    uint8_t *made;              /* [n_threads][made_bytes]: a row that is made, and its scratch */
    size_t made_bytes;
} qw_cpu;

/* Scratch of one thread, thread_bytes long. */
static inline float *qw_cpu_scratch(const qw_cpu *cpu, int thread)
{
    return (float *)(void *)(cpu->scratch + (size_t)thread * cpu->thread_bytes);
}

/* A row of a weight that is not packed; valid until the same thread asks for another. */
static inline const uint8_t *qw_cpu_row(const qw_cpu *cpu, const qw_weight *w, size_t stacked, size_t row, int thread)
{
    return qw_weight_read(w, stacked, row, 1, cpu->made + (size_t)thread * cpu->made_bytes);
}

/* What was computed with matrix number `stacked` of w, [n_rows, n] with ld, times the matrix's own scale. */
static inline void qw_cpu_apply_scale(const qw_weight *w, size_t stacked, float *out, size_t n_rows, size_t n, size_t ld)
{
    for (size_t r = 0; w->scales && r < n_rows; r++)
        for (size_t i = 0; i < n; i++) out[r * ld + i] *= w->scales[stacked];
}

/* Bytes of scratch that products, attention, experts and delta-nets want for one thread. */
size_t qw_cpu_linear_scratch(const qw_cpu_sizes *s);
size_t qw_cpu_attention_scratch(const qw_cpu_sizes *s);
size_t qw_cpu_moe_scratch(const qw_cpu_sizes *s);
size_t qw_cpu_delta_scratch(const qw_cpu_sizes *s);

/* Operations of the table (backend.h). */
void qw_cpu_linear(qw_backend *be, const float *x, size_t ld_x, size_t n_rows, const qw_linear *products,
                   size_t n_products);
void qw_cpu_swiglu(qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_swiglu *w, float *x,
                   size_t ld_x);
void qw_cpu_kv_store(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows, size_t n_rows,
                     const float *k, const float *v, size_t ld);
void qw_cpu_attention(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_kv_row *rows, size_t n_rows,
                      qw_heads q, float *out, size_t ld_out);
void qw_cpu_delta_net(qw_backend *be, const qw_delta *d, const qw_kv_row *rows, size_t n_rows, const qw_delta_in *in,
                      float *out);
void qw_cpu_moe_run(qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_moe *w, float *x, size_t ld_x);

void qw_cpu_index_store(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_index *index,
                        const qw_kv_row *rows, size_t n_rows, const float *keys);
void qw_cpu_sparse_attention(qw_backend *be, const qw_kv_shape *shape, uint32_t layer, const qw_index *index,
                             const qw_kv_row *rows, size_t n_rows, qw_heads q, const float *index_q, float *out,
                             size_t ld_out);
void qw_cpu_hyper_gate(qw_backend *be, float *x, size_t n_rows, size_t k, uint32_t n_streams);
void qw_cpu_hyper_mix(qw_backend *be, const float *x, const float *mix, size_t n_rows, size_t k, uint32_t n_streams,
                      float *out);
void qw_cpu_hyper_inject(qw_backend *be, float *x, const float *y, const float *inject, size_t n_rows, size_t k,
                         uint32_t n_streams);
void qw_cpu_ple_gate(qw_backend *be, const float *key, const float *query, const float *value, size_t n_rows, size_t k,
                     uint32_t n_streams, float *out);
void qw_cpu_ple_conv(qw_backend *be, const qw_ple_conv *c, const qw_kv_row *rows, size_t n_rows, const float *u,
                     const float *y, float *x);

/* Divides moe->arena, or only measures it when that is NULL; returns its bytes, 0 without experts. */
size_t qw_cpu_moe_divide(const qw_cpu_sizes *s, qw_cpu_moe *moe);

#endif
