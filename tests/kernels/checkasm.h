/* checkasm.h: the harness that all kernel checks share.
 *
 * checkasm.c owns main() and runs every group once per instruction-set level of this machine above ref,
 * with the table of that level and the reference's (check_pack: with the reference alone). A group draws
 * random inputs from ca_rand*(), runs both tables and compares. Outputs live in guarded buffers: bytes around them must
 * stay untouched.
 * Everything is deterministic in --seed. One thread (benchmarks start their own).
 */
#ifndef QW_TESTS_CHECKASM_H
#define QW_TESTS_CHECKASM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/kernels.h"

typedef struct ca_ctx {
    const qw_kernels *ref; /* the reference's table */
    const qw_kernels *t;   /* the level under test; equal to ref in check_pack */
    const qw_kernels *below; /* the level below it */
    uint64_t rng;          /* state of ca_rand */
    uint64_t seed;         /* printed; --seed */
    const char *filter;    /* --bench FILTER, or NULL */
    int threads;           /* --threads of benchmarks, at least 1 */
    size_t k;              /* --k of matrix benchmarks: a multiple of 256 */
    bool quick;            /* --quick: an emulator runs this: leave out what takes long, and slots of the level below */
    int passed, failed;
} ca_ctx;

/* ---- random numbers: splitmix64, so that a seed gives the same inputs everywhere ---------------- */
uint64_t ca_rand(ca_ctx *ctx);
uint32_t ca_rand_below(ca_ctx *ctx, uint32_t n);     /* [0, n), n > 0 */
float ca_rand_uniform(ca_ctx *ctx);                   /* [-1, 1) */
float ca_rand_normal(ca_ctx *ctx);                    /* about N(0, 1) */
void ca_fill_bytes(ca_ctx *ctx, void *p, size_t n);
void ca_fill_normal(ca_ctx *ctx, float *p, size_t n, float scale);

/* ---- guarded buffers ---------------------------------------------------------------------------- */
typedef struct ca_buf {
    void *data;    /* where the kernel may write: `bytes` long, at `misalign` bytes past a 64-byte line */
    size_t bytes;
    uint8_t *base; /* owns */
    size_t total;
} ca_buf;
/* Ends the process with a sentence when memory is out: a test cannot go on. */
ca_buf ca_buf_new(size_t bytes, size_t misalign);
void ca_buf_free(ca_buf *buf);
/* True when no byte before or after data was changed. */
bool ca_buf_intact(const ca_buf *buf);

/* ---- results ------------------------------------------------------------------------------------ */
/* Counts one check; a failing one prints "FAIL <level> <printf text> (seed N)". Returns ok. */
bool ca_check(ca_ctx *ctx, bool ok, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Bit comparison of n floats (NaN payloads included): index of the first difference, or n. */
size_t ca_first_diff(const float *a, const float *b, size_t n);

/* ---- groups: each is called once per level; benches only with --bench --------------------------- */
void check_gemm(ca_ctx *ctx);  /* check_gemm.c: products, activations */
void check_pack(ca_ctx *ctx);  /* check_gemm.c: packers against dequantised rows, with the reference */
void bench_gemm(ca_ctx *ctx);  /* bench_gemm.c */
void check_float(ca_ctx *ctx); /* check_float.c: the float slots */
void bench_float(ca_ctx *ctx); /* check_float.c: of all slots but products */
void check_attention(ca_ctx *ctx); /* check_attn.c */
void check_delta(ca_ctx *ctx);     /* check_delta.c */

/* True when "<level> <name>" contains the filter, or there is none. */
bool ca_bench_wanted(const ca_ctx *ctx, const char *name);
double ca_now(void); /* seconds, monotonic */

#endif
