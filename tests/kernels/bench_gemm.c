/* bench_gemm.c: speed of the matrix products: weights in cache (2 MB a thread) and streamed from memory
 * (400 MB in all), by number of columns, in chunks of groups as the backend hands them out.
 *
 * Prints GMAC/s over all threads and GB/s of packed weights. The best of several runs counts. Threads
 * take chunks from one counter.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "checkasm.h"

static const qw_type types[] = {
    QW_TYPE_Q4_0, QW_TYPE_Q4_1, QW_TYPE_Q5_0, QW_TYPE_Q5_1, QW_TYPE_Q8_0, QW_TYPE_IQ4_NL, QW_TYPE_MXFP4, QW_TYPE_Q2_K,
    QW_TYPE_Q3_K, QW_TYPE_Q4_K, QW_TYPE_Q5_K, QW_TYPE_Q6_K, QW_TYPE_IQ4_XS, QW_TYPE_F32, QW_TYPE_F16, QW_TYPE_BF16,
    QW_TYPE_IQ1_S, QW_TYPE_IQ1_M, QW_TYPE_IQ2_XXS, QW_TYPE_IQ2_XS, QW_TYPE_IQ2_S, QW_TYPE_IQ3_XXS, QW_TYPE_IQ3_S,
    QW_TYPE_TQ1_0, QW_TYPE_TQ2_0, QW_TYPE_NVFP4,
};
enum { N_THREADS_MAX = 256, CHUNK_BYTES = 192 << 10, CHUNK_GROUPS = 8 };
static const size_t CACHED_BYTES = 2u << 20, STREAM_BYTES = 400u << 20;
static const double RUN_S = 0.02; /* a run shorter than this is repeated inside one measurement */

typedef struct job {
    qw_gemm_fn *gemm;
    const uint8_t *packed, *act;
    float *out;
    size_t k, group_bytes, n_groups, chunk, n_cols, n_repeats;
    atomic_size_t next;
    pthread_barrier_t barrier;
} job;

static void work_once(job *j)
{
    size_t n_chunks = (j->n_groups + j->chunk - 1) / j->chunk, i;
    while ((i = atomic_fetch_add(&j->next, 1)) < n_chunks * j->n_repeats) {
        size_t g = i % n_chunks * j->chunk, n = j->n_groups - g < j->chunk ? j->n_groups - g : j->chunk;
        j->gemm(j->packed + g * j->group_bytes, n, j->k, j->act, j->n_cols, j->out + g * QW_GROUP_ROWS,
                j->n_groups * QW_GROUP_ROWS);
    }
}

static void *worker(void *arg)
{
    job *j = arg;
    pthread_barrier_wait(&j->barrier);
    work_once(j);
    pthread_barrier_wait(&j->barrier);
    return NULL;
}

/* Seconds of one pass over all groups and columns. */
static double run_threads(job *j, int n_threads)
{
    pthread_t threads[N_THREADS_MAX];
    atomic_store(&j->next, 0);
    pthread_barrier_init(&j->barrier, NULL, (unsigned)n_threads);
    for (int i = 1; i < n_threads; i++)
        if (pthread_create(&threads[i], NULL, worker, j) != 0) exit(2);
    pthread_barrier_wait(&j->barrier);
    double t = ca_now();
    work_once(j);
    pthread_barrier_wait(&j->barrier);
    t = ca_now() - t;
    for (int i = 1; i < n_threads; i++) pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&j->barrier);
    return t / (double)j->n_repeats;
}

static double best_time(job *j, int n_threads, int n_runs)
{
    j->n_repeats = 1;
    double best = run_threads(j, n_threads);
    if (best < RUN_S) j->n_repeats = 1 + (size_t)(RUN_S / best);
    for (int i = 0; i < n_runs; i++) {
        double t = run_threads(j, n_threads);
        if (t < best) best = t;
    }
    return best;
}

/* In large pages, as packed weights are in the program: small ones cost a third at 4 columns from memory. */
static void *must_alloc(size_t bytes)
{
    size_t whole = (bytes + (2u << 20) - 1) >> 21 << 21;
    void *p = aligned_alloc(2u << 20, whole);
    if (!p) {
        fprintf(stderr, "checkasm: out of memory: %zu bytes\n", bytes);
        exit(2);
    }
    madvise(p, whole, MADV_HUGEPAGE);
    return p;
}

static void bench_form(ca_ctx *ctx, qw_pack pack, const char *where, size_t bytes, uint8_t *packed)
{
    static const size_t columns[] = {1, 2, 4, 8, 16, 64, 512};
    qw_act act = qw_pack_act(pack);
    size_t k = ctx->k, act_bytes = qw_act_bytes(act, k);
    job j = {.gemm = ctx->t->gemm[pack], .packed = packed, .k = k, .group_bytes = qw_pack_group_bytes(pack, k)};
    j.n_groups = bytes / j.group_bytes;
    j.chunk = 1 + (CHUNK_BYTES - 1) / j.group_bytes;
    if (j.chunk < CHUNK_GROUPS) j.chunk = CHUNK_GROUPS;
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++) {
        char name[64];
        j.n_cols = columns[i];
        if (bytes == STREAM_BYTES && j.n_cols > 16) break;
        snprintf(name, sizeof name, "gemm_%s %s x%zu ", qw_pack_name(pack), where, j.n_cols);
        if (!ca_bench_wanted(ctx, name)) continue;
        uint8_t *records = must_alloc(j.n_cols * act_bytes);
        float *x = must_alloc(k * sizeof *x);
        for (size_t c = 0; c < j.n_cols; c++) {
            ca_fill_normal(ctx, x, k, 1.0f);
            ctx->ref->quantize_act[act](x, k, records + c * act_bytes);
        }
        free(x);
        j.act = records;
        j.out = must_alloc(j.n_cols * j.n_groups * QW_GROUP_ROWS * sizeof(float));
        memset(j.out, 0, j.n_cols * j.n_groups * QW_GROUP_ROWS * sizeof(float));
        double s = best_time(&j, ctx->threads, bytes == STREAM_BYTES ? 3 : 8);
        double macs = (double)(j.n_groups * QW_GROUP_ROWS * k) * (double)j.n_cols;
        printf("%-10s gemm_%s %-6s %2d thread%s %4zu columns %9.2f GMAC/s %7.2f GB/s\n", qw_isa_name(ctx->t->isa),
               qw_pack_name(pack), where, ctx->threads, ctx->threads > 1 ? "s" : " ", j.n_cols, macs / s * 1e-9,
               (double)(j.n_groups * j.group_bytes) / s * 1e-9);
        free(records);
        free(j.out);
    }
}

static void bench_quantize(ca_ctx *ctx)
{
    float *x = must_alloc(ctx->k * sizeof *x);
    ca_fill_normal(ctx, x, ctx->k, 1.0f);
    for (qw_act act = 0; act < QW_ACT_COUNT; act++) {
        static const char *const names[QW_ACT_COUNT] = {"quantize_q8_32", "quantize_q8_256", "copy_f32"};
        const char *name = names[act];
        if (!ca_bench_wanted(ctx, name)) continue;
        uint8_t *record = must_alloc(qw_act_bytes(act, ctx->k));
        double best = 1.0;
        for (int run = 0; run < 200; run++) {
            double t = ca_now();
            ctx->t->quantize_act[act](x, ctx->k, record);
            t = ca_now() - t;
            if (t < best) best = t;
        }
        printf("%-10s %-24s %9.2f Gelements/s\n", qw_isa_name(ctx->t->isa), name, (double)ctx->k / best * 1e-9);
        free(record);
    }
    free(x);
}

/* Packing one group, 16 rows: what opening a model without its side file costs. */
static void bench_pack(ca_ctx *ctx, qw_type type, const uint8_t *rows)
{
    char name[64];
    qw_pack pack = qw_pack_of(type);
    snprintf(name, sizeof name, "pack_%s", qw_pack_name(pack));
    if (!ca_bench_wanted(ctx, name)) return;
    size_t row_bytes = qw_type_row_bytes(type, ctx->k);
    uint8_t *out = must_alloc(qw_pack_group_bytes(pack, ctx->k));
    double best = 1.0;
    for (int run = 0; run < 200; run++) {
        double t = ca_now();
        qw_pack_group(pack, rows, row_bytes, QW_GROUP_ROWS, ctx->k, out);
        t = ca_now() - t;
        if (t < best) best = t;
    }
    printf("%-10s %-24s %9.2f GB/s\n", qw_isa_name(ctx->t->isa), name,
           (double)(row_bytes * QW_GROUP_ROWS) / best * 1e-9);
    free(out);
}

void bench_gemm(ca_ctx *ctx)
{
    static uint8_t *packed; /* random bytes make valid groups of any form; kept for all levels */
    if (!packed) {
        packed = must_alloc(STREAM_BYTES);
        for (size_t i = 0; i < STREAM_BYTES; i += 8) {
            /* Halves of about 0.01, exponents that are not extreme: speed must not meet special values. */
            uint64_t v = (ca_rand(ctx) & 0x831f831f831f831fu) | 0x2060206020602060u;
            memcpy(packed + i, &v, sizeof v);
        }
    }
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        qw_pack pack = qw_pack_of(types[i]);
        bench_form(ctx, pack, "cache", CACHED_BYTES * (size_t)ctx->threads, packed);
        if (ctx->t->isa != QW_ISA_REF) bench_form(ctx, pack, "memory", STREAM_BYTES, packed);
    }
    bench_quantize(ctx);
    if (ctx->t->isa != QW_ISA_REF) return;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) bench_pack(ctx, types[i], packed);
}
