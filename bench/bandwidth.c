/* Read bandwidth of this machine, the ceiling of decode speed: bench/peers.py builds and runs it in every run.
 *
 * Use: cc -O3 -march=native -pthread -o bandwidth bandwidth.c && ./bandwidth THREADS [MIB] [ROUNDS] [quick]
 *
 * Prints one line a pattern: name, GB/s (best of ROUNDS). Patterns differ in how the buffer is dealt to the threads
 * (one block each, or turns of 64 KiB), in how many places each thread reads at once, in software prefetch distance,
 * and in page size; "quick" runs two patterns with large pages only. The buffer (default 1024 MiB) must be much larger
 * than the last-level cache. Every byte is read once a round and enters a sum, so no read can be dropped. Threads share
 * nothing but the barrier.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { THREADS_MAX = 256, TURN_BYTES = 64 * 1024, LINE_BYTES = 64 };

typedef uint64_t vec __attribute__((vector_size(64)));

typedef struct pattern {
    const char *name;
    int n_places;       /* places one thread reads at once */
    int prefetch_lines; /* distance in cache lines, 0 = none */
    int turns;          /* 1: threads take turns of TURN_BYTES; 0: one block each */
    int huge;           /* 1: ask for large pages */
    int quick;          /* 1: part of the quick run */
} pattern;

static const pattern patterns[] = {
    {"sequential", 1, 0, 0, 0, 0},
    {"sequential, prefetch 16 lines", 1, 16, 0, 0, 0},
    {"sequential, prefetch 64 lines", 1, 64, 0, 0, 0},
    {"sequential, prefetch 128 lines", 1, 128, 0, 0, 0},
    {"sequential, turns, prefetch 128 lines", 1, 128, 1, 0, 0},
    {"4 places", 4, 0, 0, 0, 0},
    {"4 places, prefetch 16 lines", 4, 16, 0, 0, 0},
    {"4 places, prefetch 64 lines", 4, 64, 0, 0, 0},
    {"8 places, prefetch 64 lines", 8, 64, 0, 0, 0},
    {"sequential, large pages", 1, 0, 0, 1, 1},
    {"sequential, large pages, prefetch 64 lines", 1, 64, 0, 1, 0},
    {"sequential, large pages, prefetch 128 lines", 1, 128, 0, 1, 0},
    {"4 places, large pages", 4, 0, 0, 1, 1},
    {"4 places, large pages, prefetch 64 lines", 4, 64, 0, 1, 0},
};

typedef struct job {
    const unsigned char *base; /* borrows the buffer until join */
    size_t bytes;
    int index, n_threads, n_rounds;
    const pattern *shape;
    pthread_barrier_t *barrier;
    double seconds_best; /* of thread 0: from barrier to barrier */
    uint64_t sum;
} job;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* One place: reads n bytes (multiple of 256) in order. */
static inline void read_run(const unsigned char *p, size_t n, int ahead, vec *sum)
{
    vec a = *sum, b = {0}, c = {0}, d = {0};
    if (ahead > 0) {
        size_t far = (size_t)ahead * LINE_BYTES;
        for (size_t i = 0; i < n; i += 256) {
            for (size_t k = 0; k < 256; k += LINE_BYTES)
                __builtin_prefetch(p + i + far + k, 0, 3);
            a += *(const vec *)(p + i);
            b += *(const vec *)(p + i + 64);
            c += *(const vec *)(p + i + 128);
            d += *(const vec *)(p + i + 192);
        }
    } else {
        for (size_t i = 0; i < n; i += 256) {
            a += *(const vec *)(p + i);
            b += *(const vec *)(p + i + 64);
            c += *(const vec *)(p + i + 128);
            d += *(const vec *)(p + i + 192);
        }
    }
    *sum = a + b + c + d;
}

static uint64_t read_share(const job *j)
{
    const pattern *s = j->shape;
    size_t n = (size_t)j->n_threads;
    vec sum = {0};
    if (s->turns) {
        for (size_t at = (size_t)j->index * TURN_BYTES; at + TURN_BYTES <= j->bytes; at += n * TURN_BYTES)
            read_run(j->base + at, TURN_BYTES, s->prefetch_lines, &sum);
    } else {
        size_t share = j->bytes / n / TURN_BYTES * TURN_BYTES;
        size_t part = share / (size_t)s->n_places / 1024 * 1024;
        const unsigned char *p = j->base + (size_t)j->index * share;
        for (size_t at = 0; at < part; at += 1024)
            for (int k = 0; k < s->n_places; k++)
                read_run(p + (size_t)k * part + at, 1024, s->prefetch_lines, &sum);
    }
    uint64_t total = 0;
    for (int k = 0; k < 8; k++)
        total += sum[k];
    return total;
}

static void *work(void *argument)
{
    job *j = argument;
    j->seconds_best = 1e9;
    for (int r = 0; r < j->n_rounds; r++) {
        pthread_barrier_wait(j->barrier);
        double begin = now();
        j->sum += read_share(j);
        pthread_barrier_wait(j->barrier);
        double seconds = now() - begin;
        if (seconds < j->seconds_best)
            j->seconds_best = seconds;
    }
    return NULL;
}

/* No two pages alike, so that nobody below (a host that merges equal pages) can serve them from one place. */
static void fill(unsigned char *p, size_t bytes)
{
    uint64_t x = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(p + i, &x, 8);
    }
}

int main(int argc, char **argv)
{
    int n_threads = argc > 1 ? atoi(argv[1]) : 1;
    size_t mib = argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 1024;
    int n_rounds = argc > 3 ? atoi(argv[3]) : 3;
    int quick = argc > 4 && strcmp(argv[4], "quick") == 0;
    if (n_threads < 1 || n_threads > THREADS_MAX || mib < 1 || n_rounds < 1) {
        fprintf(stderr, "use: bandwidth THREADS [MIB] [ROUNDS] [quick]\n");
        return 2;
    }
    size_t bytes = mib << 20, slack = 1 << 20; /* slack: prefetch runs past the end */
    uint64_t check = 0;
    unsigned char *whole, *buffer;
    size_t whole_bytes = bytes + slack + (2 << 20);
    for (int huge = quick; huge < 2; huge++) {
        whole = mmap(NULL, whole_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (whole == MAP_FAILED) {
            fprintf(stderr, "bandwidth: cannot map %zu MiB\n", mib);
            return 1;
        }
        buffer = (unsigned char *)(((uintptr_t)whole + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
        madvise(buffer, bytes + slack, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        fill(buffer, bytes + slack);
        for (size_t i = 0; i < sizeof patterns / sizeof patterns[0]; i++) {
            if (patterns[i].huge != huge || (quick && !patterns[i].quick))
                continue;
            pthread_barrier_t barrier;
            pthread_t thread[THREADS_MAX];
            job jobs[THREADS_MAX];
            pthread_barrier_init(&barrier, NULL, (unsigned)n_threads);
            for (int t = 0; t < n_threads; t++) {
                jobs[t] = (job){.base = buffer, .bytes = bytes, .index = t, .n_threads = n_threads,
                                .n_rounds = n_rounds, .shape = &patterns[i], .barrier = &barrier};
                if (pthread_create(&thread[t], NULL, work, &jobs[t]) != 0) {
                    fprintf(stderr, "bandwidth: cannot start thread %d\n", t);
                    return 1;
                }
            }
            for (int t = 0; t < n_threads; t++) {
                pthread_join(thread[t], NULL);
                check += jobs[t].sum;
            }
            pthread_barrier_destroy(&barrier);
            printf("%.2f\t%s\n", (double)bytes / jobs[0].seconds_best * 1e-9, patterns[i].name);
            fflush(stdout);
        }
        munmap(whole, whole_bytes);
    }
    if (check == 0)
        fprintf(stderr, "bandwidth: sum is zero\n");
    return 0;
}
