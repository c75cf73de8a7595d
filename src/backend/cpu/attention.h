/* attention.h: queries that go over tiles of keys and values, for the CPU backend's kinds of attention. */
#ifndef QW_BACKEND_CPU_ATTENTION_H
#define QW_BACKEND_CPU_ATTENTION_H

#include "backend/cpu/cpu_private.h"
#include "kernels/attn_layout.h"

/* A thread's queries and what becomes of them, in its scratch; hd: elements from one query to the next. */
typedef struct qw_cpu_queries {
    size_t n_q, hd;
    float *o, *m, *s; /* values [n_q, hd], maxima and sums [n_q] */
    union {
        float *f32;
        int16_t *i16;
    } q;              /* [n_q, hd] */
    float *dq;        /* [n_q]: of integer queries */
} qw_cpu_queries;

/* Queries of rows [r0, r0 + n) of KV head h as the kernels want them, and nothing attended to. */
qw_cpu_queries qw_cpu_queries_begin(const qw_cpu *cpu, const qw_kv_shape *s, qw_heads q, size_t r0, size_t n, uint32_t h,
                                    int thread);
/* One tile, of which query i sees the first n_keys[i] positions; next: the tile after it, or NULL. */
void qw_cpu_queries_tile(const qw_cpu *cpu, const qw_kv_shape *s, const qw_cpu_queries *st, const uint8_t *tile,
                         const uint8_t *next, const uint32_t *n_keys);
void qw_cpu_queries_end(const qw_cpu_queries *st, const qw_kv_shape *s, size_t r0, uint32_t h, float *out, size_t ld_out);

#endif
