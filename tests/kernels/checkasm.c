/* checkasm.c: checks every kernel of every instruction-set level of this machine against the reference.
 *
 *   checkasm [--seed N] [--level NAME] [--quick] [--list] [--bench [FILTER]] [--threads N] [--k N]
 *
 * Prints one line per failure and "N passed, M failed" at the end; exit code 1 when something failed.
 * --quick leaves out large shapes, most repetitions and the slots that a level has from the one below: for emulators.
 * --list says which levels the program has and which of them run here. --bench runs the benchmarks instead, of the
 * slots whose "level name" contains FILTER.
 * In the manner of dav1d's program of this name: the table is raised one level at a time.
 */
#include "checkasm.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { GUARD_BYTES = 256, GUARD_BYTE = 0xa5, LINE = 64 };

uint64_t ca_rand(ca_ctx *ctx)
{
    uint64_t z = (ctx->rng += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint32_t ca_rand_below(ca_ctx *ctx, uint32_t n)
{
    return (uint32_t)(ca_rand(ctx) % n);
}

float ca_rand_uniform(ca_ctx *ctx)
{
    return (float)((double)(ca_rand(ctx) >> 40) * 0x1p-23 - 1.0);
}

/* Sum of 12 uniforms: close enough to normal, and the same on every machine. */
float ca_rand_normal(ca_ctx *ctx)
{
    float s = 0.0f;
    for (int i = 0; i < 12; i++) s += ca_rand_uniform(ctx);
    return s * 0.5f;
}

void ca_fill_bytes(ca_ctx *ctx, void *p, size_t n)
{
    uint8_t *out = p;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t v = ca_rand(ctx);
        memcpy(out + i, &v, n - i < 8 ? n - i : 8);
    }
}

void ca_fill_normal(ca_ctx *ctx, float *p, size_t n, float scale)
{
    for (size_t i = 0; i < n; i++) p[i] = ca_rand_normal(ctx) * scale;
}

ca_buf ca_buf_new(size_t bytes, size_t misalign)
{
    ca_buf buf = {.bytes = bytes, .total = (2 * GUARD_BYTES + bytes + misalign + LINE - 1) / LINE * LINE};
    buf.base = aligned_alloc(LINE, buf.total);
    if (!buf.base) {
        fprintf(stderr, "checkasm: out of memory: %zu bytes\n", buf.total);
        exit(2);
    }
    memset(buf.base, GUARD_BYTE, buf.total);
    buf.data = buf.base + GUARD_BYTES + misalign;
    return buf;
}

void ca_buf_free(ca_buf *buf)
{
    free(buf->base);
    *buf = (ca_buf){0};
}

bool ca_buf_intact(const ca_buf *buf)
{
    const uint8_t *data = buf->data, *end = buf->base + buf->total;
    for (const uint8_t *p = buf->base; p < data; p++)
        if (*p != GUARD_BYTE) return false;
    for (const uint8_t *p = data + buf->bytes; p < end; p++)
        if (*p != GUARD_BYTE) return false;
    return true;
}

bool ca_check(ca_ctx *ctx, bool ok, const char *fmt, ...)
{
    if (ok) {
        ctx->passed++;
        return true;
    }
    ctx->failed++;
    va_list ap;
    va_start(ap, fmt);
    printf("FAIL %s ", qw_isa_name(ctx->t->isa));
    vprintf(fmt, ap);
    printf(" (seed %llu)\n", (unsigned long long)ctx->seed);
    va_end(ap);
    return false;
}

size_t ca_first_diff(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof *a) != 0) return i;
    return n;
}

bool ca_bench_wanted(const ca_ctx *ctx, const char *name)
{
    char full[128];
    snprintf(full, sizeof full, "%s %s", qw_isa_name(ctx->t->isa), name);
    return !ctx->filter || strstr(full, ctx->filter);
}

double ca_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- main --------------------------------------------------------------------------------------- */

typedef void group_fn(ca_ctx *ctx);
/* Groups that every level above ref goes through, and those that need the reference alone. */
static group_fn *const level_groups[] = {check_gemm, check_float, check_attention, check_delta};
static group_fn *const ref_groups[] = {check_pack};
static group_fn *const benches[] = {bench_gemm, bench_float};

#define COUNT(a) (sizeof(a) / sizeof(a)[0])

typedef struct options {
    uint64_t seed;
    bool bench;
    const char *filter;
    int threads;
    size_t k;
    int level; /* -1: all */
    bool quick, list;
} options;

static int usage(void)
{
    fprintf(stderr, "usage: checkasm [--seed N] [--level NAME] [--quick] [--list] [--bench [FILTER]] [--threads N] "
                    "[--k N]\n");
    return 2;
}

static bool parse(int argc, char **argv, options *out)
{
    *out = (options){.seed = 1, .threads = 1, .k = 1536, .level = -1};
    for (int i = 1; i < argc; i++) {
        const char *next = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--bench") == 0) {
            out->bench = true;
            if (next && strncmp(next, "--", 2) != 0) out->filter = argv[++i];
            continue;
        }
        if (strcmp(argv[i], "--quick") == 0 || strcmp(argv[i], "--list") == 0) {
            *(argv[i][2] == 'q' ? &out->quick : &out->list) = true;
            continue;
        }
        if (!next) return false;
        i++;
        qw_isa isa;
        if (strcmp(argv[i - 1], "--seed") == 0) {
            out->seed = strtoull(next, NULL, 0);
        } else if (strcmp(argv[i - 1], "--threads") == 0) {
            out->threads = atoi(next);
            if (out->threads < 1 || out->threads > 256) return false;
        } else if (strcmp(argv[i - 1], "--k") == 0) {
            out->k = strtoull(next, NULL, 10);
            if (out->k == 0 || out->k % 256 != 0 || out->k > 1 << 16) return false;
        } else if (strcmp(argv[i - 1], "--level") == 0 && qw_isa_parse(next, &isa)) {
            out->level = (int)isa;
        } else {
            return false;
        }
    }
    return true;
}

static void run_level(ca_ctx *ctx, const options *opt, int isa)
{
    if (opt->level >= 0 && opt->level != isa) return;
    ctx->t = qw_kernels_get((qw_isa)isa);
    ctx->below = qw_kernels_get((qw_isa)(isa > 0 ? isa - 1 : 0));
    ctx->rng = ctx->seed * 0x100 + (uint64_t)isa;
    if (opt->bench) {
        for (size_t i = 0; i < COUNT(benches); i++) benches[i](ctx);
        return;
    }
    int passed = ctx->passed, failed = ctx->failed;
    if (isa == QW_ISA_REF)
        for (size_t i = 0; i < COUNT(ref_groups); i++) ref_groups[i](ctx);
    else
        for (size_t i = 0; i < COUNT(level_groups); i++) level_groups[i](ctx);
    printf("%s: %d passed, %d failed\n", qw_isa_name((qw_isa)isa), ctx->passed - passed, ctx->failed - failed);
}

static int list_levels(void)
{
    for (int isa = 0; isa < QW_ISA_COUNT; isa++)
        printf("%s %s\n", qw_isa_name((qw_isa)isa), isa <= (int)qw_cpu_isa() ? "runs here" : "does not run here");
    return 0;
}

int main(int argc, char **argv)
{
    options opt;
    if (!parse(argc, argv, &opt)) return usage();
    if (opt.list) return list_levels();
    setvbuf(stdout, NULL, _IOLBF, 0);
    ca_ctx ctx = {
        .ref = qw_kernels_get(QW_ISA_REF),
        .seed = opt.seed,
        .filter = opt.filter,
        .threads = opt.threads,
        .k = opt.k,
        .quick = opt.quick,
    };
    printf("checkasm: %s, up to %s, seed %llu\n", qw_cpu_name(), qw_isa_name(qw_cpu_isa()),
           (unsigned long long)opt.seed);
    for (int isa = 0; isa <= (int)qw_cpu_isa(); isa++) run_level(&ctx, &opt, isa);
    if (opt.bench) return 0;
    printf("%d passed, %d failed\n", ctx.passed, ctx.failed);
    return ctx.failed > 0 || ctx.passed == 0;
}
