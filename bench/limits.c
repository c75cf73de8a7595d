/* limits.c: what this machine can do at most: read bandwidth, integer and float multiply-accumulates a second.
 *
 * Use: limits [--threads N] [--mib N] [--json] [--quick] [--all]
 *
 * Decoding is bounded by reading the weights, prefill by integer products; bench/bench.py states speeds as shares of
 * these. Measured with one thread and with N (default: the processors this process may use), on whatever instruction
 * sets the processor has:
 *
 *   read     best of many ways to read a buffer far larger than the last-level cache: dealt out in pieces or one share
 *            for each thread, from 1 to 8 places at once, software prefetch at several distances into L1, L2 or past
 *            them, small and large pages. Every byte is read and enters a sum.
 *   integer  8-bit products summed to 32 bits, in registers alone. "16-bit sums" adds eight products of a 4-bit and an
 *            8-bit number before it widens: the most that a processor without VNNI can do.
 *   float    fused multiply-adds of 32-bit floats, in registers alone.
 *
 * --quick takes less than a second: N threads, the best instruction, and the ways to read that win most often. It is
 * run between the samples of a speed test, because a virtual machine's bandwidth changes within minutes. --all prints
 * every way and not only the best. Each thread owns its counters; threads share the buffer and a counter of pieces.
 */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

enum {
    THREADS_MAX = 1024,
    LINE = 64,
    STEP = 256,           /* bytes that are read from one place before the next one's turn */
    PIECE = 1 << 20,      /* bytes dealt out at a time */
    HUGE_PAGE = 2 << 20,
    SLACK = 1 << 20       /* prefetch runs past the end */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- all threads at once ---------------------------------------------------------------------- */

typedef void task_fn(void *ctx, int thread, int n_threads);

typedef struct team {
    task_fn *fn;
    void *ctx;
    int n_threads;
    pthread_barrier_t barrier;
} team;

typedef struct member {
    team *team;
    int index;
    double start, end;
} member;

static void *member_main(void *arg)
{
    member *m = arg;
    pthread_barrier_wait(&m->team->barrier);
    m->start = now();
    m->team->fn(m->team->ctx, m->index, m->team->n_threads);
    m->end = now();
    return NULL;
}

/* Seconds from the moment the first thread begins until the last one has done its part. Each reads the clock itself: one
 * that the system wakes late would miss what the others did before it. */
static double run_on(int n_threads, task_fn *fn, void *ctx)
{
    static pthread_t threads[THREADS_MAX];
    static member members[THREADS_MAX];
    team t = {.fn = fn, .ctx = ctx, .n_threads = n_threads};
    pthread_barrier_init(&t.barrier, NULL, (unsigned)n_threads);
    for (int i = 0; i < n_threads; i++) {
        members[i] = (member){.team = &t, .index = i};
        if (i > 0 && pthread_create(&threads[i], NULL, member_main, &members[i]) != 0) {
            fprintf(stderr, "limits: cannot start thread %d\n", i);
            exit(1);
        }
    }
    member_main(&members[0]);
    double start = members[0].start, end = members[0].end;
    for (int i = 1; i < n_threads; i++) {
        pthread_join(threads[i], NULL);
        if (members[i].start < start) start = members[i].start;
        if (members[i].end > end) end = members[i].end;
    }
    pthread_barrier_destroy(&t.barrier);
    return end - start;
}

/* ---- read bandwidth --------------------------------------------------------------------------- */

typedef enum hint { HINT_NONE = 0, HINT_L1, HINT_L2, HINT_PAST, HINT_COUNT } hint;

static const char *const hint_names[HINT_COUNT] = {"", "L1", "L2", "no cache"};

/* One way to read the buffer. */
typedef struct pattern {
    hint hint;
    size_t ahead;  /* bytes */
    size_t places; /* read in turns */
    bool dealt;    /* pieces from a common counter, else one share for each thread */
} pattern;

typedef uint64_t vec __attribute__((vector_size(64), aligned(64)));

/* Reads `bytes` from each of `places` places that lie `bytes` apart; returns a sum over all of it. */
#define DEFINE_READ(name, target, prefetch)                                                            \
    target static uint64_t name(const uint8_t *p, size_t bytes, size_t places, size_t ahead)           \
    {                                                                                                  \
        vec a = {0}, b = {0};                                                                          \
        for (size_t at = 0; at < bytes; at += STEP) {                                                  \
            for (size_t k = 0; k < places; k++) {                                                      \
                const uint8_t *q = p + k * bytes + at;                                                 \
                prefetch(q + ahead);                                                                   \
                prefetch(q + ahead + LINE);                                                            \
                prefetch(q + ahead + 2 * LINE);                                                        \
                prefetch(q + ahead + 3 * LINE);                                                        \
                a += *(const vec *)(const void *)q;                                                    \
                b += *(const vec *)(const void *)(q + LINE);                                           \
                a += *(const vec *)(const void *)(q + 2 * LINE);                                       \
                b += *(const vec *)(const void *)(q + 3 * LINE);                                       \
            }                                                                                          \
        }                                                                                              \
        a += b;                                                                                        \
        return a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];                                  \
    }
#define FETCH_NONE(p) (void)(p)
#define FETCH_L1(p) __builtin_prefetch((p), 0, 3)
#define FETCH_L2(p) __builtin_prefetch((p), 0, 2)
#define FETCH_PAST(p) __builtin_prefetch((p), 0, 0)
#define DEFINE_READS(level, target)                  \
    DEFINE_READ(read_none_##level, target, FETCH_NONE) \
    DEFINE_READ(read_l1_##level, target, FETCH_L1)     \
    DEFINE_READ(read_l2_##level, target, FETCH_L2)     \
    DEFINE_READ(read_past_##level, target, FETCH_PAST)

typedef uint64_t read_fn(const uint8_t *p, size_t bytes, size_t places, size_t ahead);

DEFINE_READS(plain, )
#if defined(__x86_64__)
DEFINE_READS(avx2, __attribute__((target("avx2"))))
DEFINE_READS(avx512, __attribute__((target("avx512f"))))
#endif

/* The widest loads that this processor has. */
static read_fn *const *read_functions(void)
{
    static read_fn *const plain[HINT_COUNT] = {read_none_plain, read_l1_plain, read_l2_plain, read_past_plain};
#if defined(__x86_64__)
    static read_fn *const avx2[HINT_COUNT] = {read_none_avx2, read_l1_avx2, read_l2_avx2, read_past_avx2};
    static read_fn *const avx512[HINT_COUNT] = {read_none_avx512, read_l1_avx512, read_l2_avx512, read_past_avx512};
    if (__builtin_cpu_supports("avx512f")) return avx512;
    if (__builtin_cpu_supports("avx2")) return avx2;
#endif
    return plain;
}

typedef struct reading {
    const uint8_t *buffer;
    size_t bytes; /* a multiple of PIECE */
    const pattern *pattern;
    read_fn *read;
    atomic_size_t next;  /* piece */
    atomic_ullong total; /* so that nothing is read in vain */
} reading;

static void read_task(void *ctx, int thread, int n_threads)
{
    reading *r = ctx;
    const pattern *p = r->pattern;
    uint64_t sum = 0;
    if (p->dealt) {
        for (size_t i; (i = atomic_fetch_add(&r->next, 1)) < r->bytes / PIECE;) {
            sum += r->read(r->buffer + i * PIECE, PIECE / p->places, p->places, p->ahead);
        }
    } else {
        size_t n_pieces = r->bytes / PIECE, begin = n_pieces * (size_t)thread / (size_t)n_threads;
        size_t end = n_pieces * ((size_t)thread + 1) / (size_t)n_threads;
        sum = r->read(r->buffer + begin * PIECE, (end - begin) * PIECE / p->places, p->places, p->ahead);
    }
    atomic_fetch_add(&r->total, sum);
}

/* No two pages alike, so that nobody below can serve them from one place. */
static void fill_task(void *ctx, int thread, int n_threads)
{
    reading *r = ctx;
    size_t n_pieces = r->bytes / PIECE, begin = n_pieces * (size_t)thread / (size_t)n_threads;
    size_t end = n_pieces * ((size_t)thread + 1) / (size_t)n_threads;
    uint64_t *words = (uint64_t *)(uintptr_t)r->buffer, x = 0x9e3779b97f4a7c15u * ((uint64_t)thread + 1);
    for (size_t i = begin * PIECE / sizeof x; i < end * PIECE / sizeof x; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        words[i] = x;
    }
}

/* Anonymous memory on a large page's border, filled; `whole` is what to unmap. */
static bool map_buffer(reading *r, bool huge, int n_threads, void **whole)
{
    *whole = mmap(NULL, r->bytes + SLACK + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (*whole == MAP_FAILED) {
        fprintf(stderr, "limits: cannot map %zu MiB\n", r->bytes >> 20);
        return false;
    }
    uint8_t *buffer = (uint8_t *)(((uintptr_t)*whole + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    madvise(buffer, r->bytes + SLACK, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    r->buffer = buffer;
    run_on(n_threads, fill_task, r);
    return true;
}

static double gb_per_s(reading *r, const pattern *p, int n_threads)
{
    r->pattern = p;
    r->read = read_functions()[p->hint];
    atomic_store(&r->next, 0);
    return (double)r->bytes / run_on(n_threads, read_task, r) * 1e-9;
}

/* ---- multiply-accumulates in registers -------------------------------------------------------- */

/* The value may be anything afterwards, as far as the compiler knows: it can neither fold nor hoist. */
#if defined(__x86_64__)
#define OPAQUE(v) __asm__ volatile("" : "+v"(v))
#elif defined(__aarch64__)
#define OPAQUE(v) __asm__ volatile("" : "+w"(v))
#endif
#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

typedef enum rate_kind { RATE_INTEGER = 0, RATE_FLOAT, RATE_COUNT } rate_kind;

static const char *const rate_names[RATE_COUNT] = {"integer", "float"};

/* A loop of n rounds; a round does so many multiply-accumulates. */
typedef struct rate {
    rate_kind kind;
    const char *name;
    double macs_per_round;
    void (*run)(long n_rounds);
    bool (*supported)(void);
} rate;

#if defined(__x86_64__)

#define TARGET(t) __attribute__((target(t)))
#define DECLARE_ZMM(i) __m512i s##i = _mm512_set1_epi32(i);
#define DECLARE_YMM(i) __m256i s##i = _mm256_set1_epi32(i);
#define KEEP(i) OPAQUE(s##i);

TARGET("avx512f,avx512vnni") static void vnni_zmm(long n)
{
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(2);
    TWELVE(DECLARE_ZMM)
    OPAQUE(a);
    OPAQUE(b);
#define DOT(i) s##i = _mm512_dpbusd_epi32(s##i, a, b);
    for (long k = 0; k < n; k++) { TWELVE(DOT) TWELVE(KEEP) }
#undef DOT
}

TARGET("avx512f,avx512vl,avx512vnni") static void vnni_ymm(long n)
{
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(2);
    TWELVE(DECLARE_YMM)
    OPAQUE(a);
    OPAQUE(b);
#define DOT(i) s##i = _mm256_dpbusd_epi32(s##i, a, b);
    for (long k = 0; k < n; k++) { TWELVE(DOT) TWELVE(KEEP) }
#undef DOT
}

TARGET("avx2,avxvnni") static void avx_vnni_ymm(long n)
{
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(2);
    TWELVE(DECLARE_YMM)
    OPAQUE(a);
    OPAQUE(b);
#define DOT(i) s##i = _mm256_dpbusd_avx_epi32(s##i, a, b);
    for (long k = 0; k < n; k++) { TWELVE(DOT) TWELVE(KEEP) }
#undef DOT
}

/* Products of pairs in 16 bits, then pairs of those in 32 bits. */
TARGET("avx2") static void maddubs_ymm(long n)
{
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(2), ones = _mm256_set1_epi16(1);
    TWELVE(DECLARE_YMM)
    OPAQUE(b);
    OPAQUE(ones);
#define DOT(i) OPAQUE(a); s##i = _mm256_add_epi32(s##i, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
    for (long k = 0; k < n; k++) { TWELVE(DOT) TWELVE(KEEP) }
#undef DOT
}

TARGET("avx512f,avx512bw") static void maddubs_zmm(long n)
{
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(2), ones = _mm512_set1_epi16(1);
    TWELVE(DECLARE_ZMM)
    OPAQUE(b);
    OPAQUE(ones);
#define DOT(i) OPAQUE(a); s##i = _mm512_add_epi32(s##i, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones));
    for (long k = 0; k < n; k++) { TWELVE(DOT) TWELVE(KEEP) }
#undef DOT
}

#define FOUR(X) X(0) X(1) X(2) X(3)

/* Eight products of pairs summed in 16 bits, then widened once. */
TARGET("avx2") static void sums16_ymm(long n)
{
    __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(2), scale = _mm256_set1_epi16(1);
    FOUR(DECLARE_YMM)
    OPAQUE(b);
    OPAQUE(scale);
#define FIRST(i) OPAQUE(a); __m256i h##i = _mm256_maddubs_epi16(a, b);
#define MORE(i) OPAQUE(a); h##i = _mm256_add_epi16(h##i, _mm256_maddubs_epi16(a, b));
#define WIDEN(i) s##i = _mm256_add_epi32(s##i, _mm256_madd_epi16(h##i, scale));
    for (long k = 0; k < n; k++) {
        FOUR(FIRST) FOUR(MORE) FOUR(MORE) FOUR(MORE) FOUR(MORE) FOUR(MORE) FOUR(MORE) FOUR(MORE) FOUR(WIDEN) FOUR(KEEP)
    }
#undef FIRST
#undef MORE
#undef WIDEN
}

TARGET("avx512f,avx512bw") static void sums16_zmm(long n)
{
    __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(2), scale = _mm512_set1_epi16(1);
    FOUR(DECLARE_ZMM)
    OPAQUE(b);
    OPAQUE(scale);
#define FIRST(i) OPAQUE(a); __m512i h##i = _mm512_maddubs_epi16(a, b);
#define MORE(i) OPAQUE(a); h##i = _mm512_add_epi16(h##i, _mm512_maddubs_epi16(a, b));
#define WIDEN(i) s##i = _mm512_add_epi32(s##i, _mm512_madd_epi16(h##i, scale));
    for (long k = 0; k < n; k++) {
        FOUR(FIRST) FOUR(MORE) FOUR(MORE) FOUR(MORE) FOUR(MORE) FOUR(MORE) FOUR(MORE) FOUR(MORE) FOUR(WIDEN) FOUR(KEEP)
    }
#undef FIRST
#undef MORE
#undef WIDEN
}

TARGET("avx512f") static void fma_zmm(long n)
{
    __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(1.0f);
#define DECLARE(i) __m512 s##i = _mm512_set1_ps(i);
    TWELVE(DECLARE)
    OPAQUE(a);
    OPAQUE(b);
#define DOT(i) s##i = _mm512_fmadd_ps(s##i, a, b);
    for (long k = 0; k < n; k++) { TWELVE(DOT) TWELVE(KEEP) }
#undef DOT
#undef DECLARE
}

TARGET("avx2,fma") static void fma_ymm(long n)
{
    __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(1.0f);
#define DECLARE(i) __m256 s##i = _mm256_set1_ps(i);
    TWELVE(DECLARE)
    OPAQUE(a);
    OPAQUE(b);
#define DOT(i) s##i = _mm256_fmadd_ps(s##i, a, b);
    for (long k = 0; k < n; k++) { TWELVE(DOT) TWELVE(KEEP) }
#undef DOT
#undef DECLARE
}

#define SUPPORTS(name, condition) static bool name(void) { return condition; }
SUPPORTS(has_vnni, __builtin_cpu_supports("avx512vnni") != 0)
SUPPORTS(has_vnni_vl, __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl"))
SUPPORTS(has_bw, __builtin_cpu_supports("avx512bw") != 0)
SUPPORTS(has_avx512, __builtin_cpu_supports("avx512f") != 0)
SUPPORTS(has_avx2, __builtin_cpu_supports("avx2") != 0)
SUPPORTS(has_fma, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))

/* Not a name that every compiler's __builtin_cpu_supports knows: leaf 7.1, EAX bit 4, and the AVX state enabled. */
static bool has_avx_vnni(void)
{
    unsigned eax = 7, ebx, ecx = 1, edx;
    if (!has_avx2()) return false;
    __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return (eax >> 4 & 1) != 0;
}

static const rate rates[] = {
    {RATE_INTEGER, "vpdpbusd, 512 bits (AVX-512 VNNI)", 12 * 64, vnni_zmm, has_vnni},
    {RATE_INTEGER, "vpdpbusd, 256 bits (AVX-512 VNNI)", 12 * 32, vnni_ymm, has_vnni_vl},
    {RATE_INTEGER, "vpdpbusd, 256 bits (AVX-VNNI)", 12 * 32, avx_vnni_ymm, has_avx_vnni},
    {RATE_INTEGER, "vpmaddubsw and vpmaddwd, 512 bits (AVX-512)", 12 * 64, maddubs_zmm, has_bw},
    {RATE_INTEGER, "vpmaddubsw and vpmaddwd, 256 bits (AVX2)", 12 * 32, maddubs_ymm, has_avx2},
    {RATE_INTEGER, "vpmaddubsw with 16-bit sums, 512 bits (AVX-512)", 4 * 8 * 64, sums16_zmm, has_bw},
    {RATE_INTEGER, "vpmaddubsw with 16-bit sums, 256 bits (AVX2)", 4 * 8 * 32, sums16_ymm, has_avx2},
    {RATE_FLOAT, "vfmadd, 512 bits (AVX-512)", 12 * 16, fma_zmm, has_avx512},
    {RATE_FLOAT, "vfmadd, 256 bits (FMA)", 12 * 8, fma_ymm, has_fma},
};

#elif defined(__aarch64__)

#define DECLARE_S32(i) int32x4_t s##i = vdupq_n_s32(i);
#define KEEP(i) OPAQUE(s##i);

__attribute__((target("arch=armv8.2-a+dotprod"))) static void sdot(long n)
{
    int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(2);
    TWELVE(DECLARE_S32)
    OPAQUE(a);
    OPAQUE(b);
#define DOT(i) s##i = vdotq_s32(s##i, a, b);
    for (long k = 0; k < n; k++) { TWELVE(DOT) TWELVE(KEEP) }
#undef DOT
}

__attribute__((target("arch=armv8.2-a+i8mm"))) static void smmla(long n)
{
    int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(2);
    TWELVE(DECLARE_S32)
    OPAQUE(a);
    OPAQUE(b);
#define DOT(i) s##i = vmmlaq_s32(s##i, a, b);
    for (long k = 0; k < n; k++) { TWELVE(DOT) TWELVE(KEEP) }
#undef DOT
}

static void fmla(long n)
{
    float32x4_t a = vdupq_n_f32(0.5f), b = vdupq_n_f32(1.0f);
#define DECLARE(i) float32x4_t s##i = vdupq_n_f32(i);
    TWELVE(DECLARE)
    OPAQUE(a);
    OPAQUE(b);
#define DOT(i) s##i = vfmaq_f32(s##i, a, b);
    for (long k = 0; k < n; k++) { TWELVE(DOT) TWELVE(KEEP) }
#undef DOT
#undef DECLARE
}

/* Bits of the kernel's hardware capabilities; not every libc names them. */
static bool has_dotprod(void) { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; }
static bool has_i8mm(void) { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }
static bool has_neon(void) { return true; }

static const rate rates[] = {
    {RATE_INTEGER, "sdot (dotprod)", 12 * 16, sdot, has_dotprod},
    {RATE_INTEGER, "smmla (i8mm)", 12 * 32, smmla, has_i8mm},
    {RATE_FLOAT, "fmla (NEON)", 12 * 4, fmla, has_neon},
};

#else

#define OPAQUE(v) __asm__ volatile("" : "+r"(v))
#define DECLARE_INT(i) unsigned s##i = i;
#define KEEP(i) OPAQUE(s##i);

static void plain_int(long n)
{
    unsigned a = 3, b = 2;
    TWELVE(DECLARE_INT)
    OPAQUE(b);
#define DOT(i) OPAQUE(a); s##i += a * b;
    for (long k = 0; k < n; k++) { TWELVE(DOT) TWELVE(KEEP) }
#undef DOT
}

static bool always(void) { return true; }

static const rate rates[] = {{RATE_INTEGER, "32-bit integers, no vectors", 12, plain_int, always}};

#endif

enum { N_RATES = sizeof rates / sizeof *rates };

typedef struct rate_job {
    const rate *rate;
    long n_rounds;
} rate_job;

static void rate_task(void *ctx, int thread, int n_threads)
{
    (void)thread;
    (void)n_threads;
    const rate_job *j = ctx;
    j->rate->run(j->n_rounds);
}

/* Best of n_runs runs of about so many seconds. */
static double gmac_per_s(const rate *r, int n_threads, double seconds, int n_runs)
{
    rate_job j = {.rate = r, .n_rounds = 20000};
    double best = 0;
    double once = run_on(n_threads, rate_task, &j);
    j.n_rounds = 1 + (long)((double)j.n_rounds * seconds / once);
    for (int i = 0; i < n_runs; i++) {
        double took = run_on(n_threads, rate_task, &j);
        double speed = (double)j.n_rounds * r->macs_per_round * n_threads / took * 1e-9;
        if (speed > best) best = speed;
    }
    return best;
}

/* ---- report ----------------------------------------------------------------------------------- */

typedef struct options {
    int n_threads;
    size_t bytes;
    bool json, quick, all;
} options;

static void print_limit(const options *o, const char *limit, const char *how, int n_threads, double value,
                        const char *unit, const char *field)
{
    if (o->json) {
        printf("{\"limit\":\"%s\",\"threads\":%d,\"%s\":%.2f,\"how\":\"%s\"}\n", limit, n_threads, field, value, how);
    } else {
        printf("%-8s %3d thread%s %8.1f %-6s  %s\n", limit, n_threads, n_threads == 1 ? " " : "s", value, unit, how);
    }
    fflush(stdout);
}

static void describe(const pattern *p, bool huge, char *out, size_t cap)
{
    char fetch[64] = "";
    if (p->hint) snprintf(fetch, sizeof fetch, ", prefetch %zu B ahead (%s)", p->ahead, hint_names[p->hint]);
    snprintf(out, cap, "%zu place%s%s, %s, %s pages", p->places, p->places > 1 ? "s" : "", fetch,
             p->dealt ? "dealt" : "shares", huge ? "large" : "small");
}

typedef struct best_read {
    double gb_per_s;
    char how[128];
} best_read;

static void try_pattern(reading *r, const options *o, const pattern *p, bool huge, int n_threads, best_read *best)
{
    double speed = gb_per_s(r, p, n_threads);
    char how[128];
    describe(p, huge, how, sizeof how);
    if (o->all) print_limit(o, "read", how, n_threads, speed, "GB/s", "gb_per_s");
    if (speed <= best->gb_per_s) return;
    best->gb_per_s = speed;
    memcpy(best->how, how, sizeof how);
}

/* Every way once. Called again for another chance: what counts is the best that the machine gave. */
static void try_patterns(reading *r, const options *o, bool huge, int n_threads, best_read *best)
{
    static const size_t distances[] = {1 << 10, 2 << 10, 4 << 10, 8 << 10};
    static const size_t n_distances = sizeof distances / sizeof *distances;
    for (int dealt = 0; dealt < (n_threads > 1 ? 2 : 1); dealt++) {
        for (size_t places = 1; places <= 8; places *= 2) {
            for (int h = 0; h < HINT_COUNT; h++) {
                for (size_t d = 0; d < (h == HINT_NONE ? 1 : n_distances); d++) {
                    pattern p = {.hint = (hint)h, .ahead = h ? distances[d] : 0, .places = places, .dealt = dealt};
                    try_pattern(r, o, &p, huge, n_threads, best);
                }
            }
        }
    }
}

/* The winners of try_patterns on the machines seen so far. */
static void try_few_patterns(reading *r, const options *o, int n_threads, best_read *best)
{
    static const pattern few[] = {
        {HINT_NONE, 0, 1, true},       {HINT_NONE, 0, 4, false},       {HINT_L1, 2 << 10, 4, false},
        {HINT_L1, 4 << 10, 4, true},   {HINT_L2, 1 << 10, 4, false},   {HINT_L2, 2 << 10, 2, true},
        {HINT_L2, 8 << 10, 1, true},   {HINT_PAST, 2 << 10, 2, false}, {HINT_PAST, 1 << 10, 4, false},
    };
    for (size_t i = 0; i < sizeof few / sizeof *few; i++) try_pattern(r, o, &few[i], true, n_threads, best);
}

static bool report_read(const options *o)
{
    reading r = {.bytes = o->bytes / PIECE * PIECE};
    best_read one = {0}, all = {0};
    for (int huge = o->quick; huge < 2; huge++) {
        void *whole;
        if (!map_buffer(&r, huge, o->n_threads, &whole)) return false;
        for (int round = 0; round < 2; round++) {
            if (o->quick) {
                try_few_patterns(&r, o, o->n_threads, &all);
            } else {
                if (o->n_threads > 1) try_patterns(&r, o, huge, 1, &one);
                try_patterns(&r, o, huge, o->n_threads, &all);
            }
        }
        munmap(whole, r.bytes + SLACK + HUGE_PAGE);
    }
    if (one.gb_per_s > 0) print_limit(o, "read", one.how, 1, one.gb_per_s, "GB/s", "gb_per_s");
    print_limit(o, "read", all.how, o->n_threads, all.gb_per_s, "GB/s", "gb_per_s");
    return true;
}

/* The best instruction of a kind, or every one with --all. */
static void report_rate(const options *o, rate_kind kind, int n_threads)
{
    const rate *best = NULL;
    double best_speed = 0;
    for (size_t i = 0; i < N_RATES; i++) {
        if (rates[i].kind != kind || !rates[i].supported()) continue;
        double speed = gmac_per_s(&rates[i], n_threads, o->quick ? 0.004 : 0.03, o->quick ? 3 : 4);
        if (o->all) print_limit(o, rate_names[kind], rates[i].name, n_threads, speed, "GMAC/s", "gmac_per_s");
        if (speed <= best_speed) continue;
        best = &rates[i];
        best_speed = speed;
    }
    if (best && !o->all) {
        print_limit(o, rate_names[kind], best->name, n_threads, best_speed, "GMAC/s", "gmac_per_s");
    }
}

static long cpus_allowed(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
}

/* Far beyond the last-level cache: 512 MiB, or eight times the cache. */
static size_t default_bytes(void)
{
    size_t bytes = (size_t)512 << 20;
    unsigned long kib = 0;
    FILE *file = fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r");
    if (file) {
        if (fscanf(file, "%luK", &kib) == 1 && (kib << 10) * 8 > bytes) bytes = (kib << 10) * 8;
        fclose(file);
    }
    return bytes;
}

static bool parse_number(const char *text, long min, long max, long *out)
{
    char *end;
    *out = strtol(text, &end, 10);
    return *text && !*end && *out >= min && *out <= max;
}

static bool parse(int argc, char **argv, options *o)
{
    long value;
    for (int i = 1; i < argc; i++) {
        const char *next = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--json") == 0) {
            o->json = true;
        } else if (strcmp(argv[i], "--quick") == 0) {
            o->quick = true;
        } else if (strcmp(argv[i], "--all") == 0) {
            o->all = true;
        } else if (strcmp(argv[i], "--threads") == 0 && parse_number(next, 1, THREADS_MAX, &value)) {
            o->n_threads = (int)value;
            i++;
        } else if (strcmp(argv[i], "--mib") == 0 && parse_number(next, 64, 1 << 20, &value)) {
            o->bytes = (size_t)value << 20;
            i++;
        } else {
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv)
{
    options o = {.n_threads = (int)cpus_allowed(), .bytes = default_bytes()};
    if (!parse(argc, argv, &o)) {
        fprintf(stderr, "use: limits [--threads 1..%d] [--mib 64..] [--json] [--quick] [--all]\n", THREADS_MAX);
        return 2;
    }
    if (!report_read(&o)) return 1;
    for (int kind = 0; kind < RATE_COUNT; kind++) {
        if (o.quick && kind != RATE_INTEGER) continue;
        if (!o.quick && o.n_threads > 1) report_rate(&o, (rate_kind)kind, 1);
        report_rate(&o, (rate_kind)kind, o.n_threads);
    }
    return 0;
}
