/* state.c: how fast a past comes back from disk, beside reading the same files with read().
 *
 *     state FOLDER [N_TOKENS [ROUNDS]]
 *
 * Saves a past of N_TOKENS (20000) tokens below FOLDER, of pages as Qwen2.5-Coder-0.5B has them, without and with a snapshot
 * of 19 MB, then finds and loads it into fresh memory, ROUNDS (9) times, in turn with the two ways to only read: into one
 * small buffer, and into fresh memory. With the system's cache warm, and with the files dropped from it. Medians, in ms;
 * then loading in terms of reading. Removes what it wrote.
 */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/clock.h"
#include "engine/state_io.h"

enum {
    TOKEN_BYTES = 12700,
    PAGE_BYTES = TOKEN_BYTES * QW_KV_TILE,
    STATE_BYTES = 19 << 20,
    FILES_MAX = 65536,
    ROUNDS_MAX = 99,
    BUFFER_BYTES = 1 << 20
};

typedef enum how {
    LOAD,        /* find and load, all threads */
    READ_BUFFER, /* read() into a buffer that stays */
    READ_FRESH,  /* read() into memory that was never touched */
    N_HOWS
} how;
static const char *const names[N_HOWS] = {"find and load", "read into a buffer", "read into fresh memory"};

static char *paths[FILES_MAX];
static size_t sizes[FILES_MAX], n_paths;
static int32_t *tokens;
static size_t n_tokens, n_pages;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int collect(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)ftw;
    if (flag != FTW_F || st->st_size < BUFFER_BYTES / 4 || n_paths == FILES_MAX) return 0;
    paths[n_paths] = strdup(path);
    sizes[n_paths++] = (size_t)st->st_size;
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

static void *fresh(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) die("mmap");
    (void)madvise(at, bytes, MADV_HUGEPAGE); /* as the sequences' memory */
    return at;
}

static void drop_cached(void)
{
    for (size_t i = 0; i < n_paths; i++) {
        int fd = open(paths[i], O_RDONLY);
        if (fd < 0 || fsync(fd) != 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) != 0) die(paths[i]);
        close(fd);
    }
}

static void run_op(const qw_state_store *store, qw_state_op *op)
{
    if (!store->submit(store->ctx, op)) die("submit");
    while (!store->wait(store->ctx, 1000000)) {}
    store->poll(store->ctx);
}

static void save_all(const qw_state_store *store, bool recurrent)
{
    uint8_t owner[QW_STATE_OWNER_BYTES] = {0}, *data = fresh(STATE_BYTES + PAGE_BYTES);
    qw_state_id id = store->root_id(store->ctx, owner);
    for (size_t i = 0; i < STATE_BYTES + PAGE_BYTES; i++) data[i] = (uint8_t)(i * 2654435761u >> 13);
    for (size_t i = 0; i < n_pages + recurrent; i++) {
        size_t page = i < n_pages ? i : n_pages - 1, left = n_tokens - page * QW_KV_TILE;
        qw_state_op *op;
        if (qw_state_op_create(QW_STATE_SAVE, id, (uint32_t)(page * QW_KV_TILE), tokens + page * QW_KV_TILE,
                               left < QW_KV_TILE ? left : QW_KV_TILE, &op, NULL) != QW_OK)
            die("save");
        op->source = data + i % 100 * 64;
        op->snapshot = i == n_pages;
        run_op(store, op);
        if (op->status != QW_OK) die("save");
        if (i + 1 < n_pages) id = store->child_id(store->ctx, id, op->tokens, QW_KV_TILE);
        qw_state_op_free(op);
    }
    munmap(data, STATE_BYTES + PAGE_BYTES);
}

static void load_all(const qw_state_store *store, uint8_t *to, bool recurrent)
{
    uint8_t owner[QW_STATE_OWNER_BYTES] = {0};
    qw_state_op *op;
    if (qw_state_op_create(QW_STATE_FIND, store->root_id(store->ctx, owner), 0, tokens, n_tokens + 1, &op, NULL) != QW_OK)
        die("find");
    run_op(store, op);
    if (op->past.n_tokens != n_tokens || qw_state_op_make_load(op, NULL) != QW_OK) die("find");
    for (uint32_t i = 0; i < n_pages; i++) op->pages[i] = to + (size_t)i * PAGE_BYTES;
    if (recurrent) op->state = to + n_pages * PAGE_BYTES;
    run_op(store, op);
    if (op->n_good != n_pages || op->state_good != recurrent) die("load");
    qw_state_op_free(op);
}

static void read_all(uint8_t *to, bool keep)
{
    for (size_t i = 0; i < n_paths; i++) {
        int fd = open(paths[i], O_RDONLY);
        if (fd < 0) die(paths[i]);
        for (size_t at = 0; at < sizes[i];) {
            ssize_t got = read(fd, to, BUFFER_BYTES);
            if (got <= 0) die(paths[i]);
            at += (size_t)got;
            if (keep) to += got;
        }
        close(fd);
    }
}

static int64_t cpu_clock_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

static void measure(const qw_state_store *store, bool recurrent, bool cold, int rounds)
{
    static int64_t us[N_HOWS][ROUNDS_MAX], cpu_us[N_HOWS][ROUNDS_MAX];
    size_t bytes = n_pages * PAGE_BYTES + STATE_BYTES + n_paths * 4096 + BUFFER_BYTES;
    uint8_t *buffer = fresh(BUFFER_BYTES);
    read_all(buffer, false);
    for (int r = 0; r < rounds; r++) {
        for (int h = 0; h < N_HOWS; h++) {
            uint8_t *to = fresh(bytes);
            if (cold) drop_cached();
            int64_t begin = qw_clock_us(), cpu_begin = cpu_clock_us();
            if (h == LOAD) load_all(store, to, recurrent);
            else read_all(h == READ_FRESH ? to : buffer, h == READ_FRESH);
            us[h][r] = qw_clock_us() - begin;
            cpu_us[h][r] = cpu_clock_us() - cpu_begin;
            munmap(to, bytes);
        }
    }
    munmap(buffer, BUFFER_BYTES);
    printf("%s, %s\n", recurrent ? "pages and a snapshot" : "pages alone", cold ? "cold" : "warm");
    for (int h = 0; h < N_HOWS; h++) {
        qsort(us[h], (size_t)rounds, sizeof us[h][0], by_value);
        qsort(cpu_us[h], (size_t)rounds, sizeof cpu_us[h][0], by_value);
        printf("  %-24s %8.1f   (best %.1f; of processors %.1f)\n", names[h], (double)us[h][rounds / 2] / 1e3,
               (double)us[h][0] / 1e3, (double)cpu_us[h][rounds / 2] / 1e3);
    }
    for (int h = READ_BUFFER; h < N_HOWS; h++)
        printf("  %.2f of %s   (of the best %.2f; of processors' time %.2f)\n",
               (double)us[LOAD][rounds / 2] / (double)us[h][rounds / 2], names[h], (double)us[LOAD][0] / (double)us[h][0],
               (double)cpu_us[LOAD][rounds / 2] / (double)cpu_us[h][rounds / 2]);
}

static void measure_sum(void)
{
    enum { ROUNDS = 400, BYTES = 256 << 10 };
    static uint8_t data[BYTES];
    int64_t best = INT64_MAX;
    uint64_t sum = 0;
    for (int r = 0; r < ROUNDS; r++) {
        int64_t begin = qw_clock_us();
        for (int i = 0; i < 16; i++) sum += qw_checksum(data, BYTES);
        int64_t us = qw_clock_us() - begin;
        if (us < best) best = us;
    }
    printf("sums, in the cache: %.1f GB/s (%llx)\n", 16.0 * BYTES / (double)best / 1e3, (unsigned long long)sum);
}

int main(int argc, char **argv)
{
    int rounds = argc > 3 ? atoi(argv[3]) : 9;
    char dir[4096];
    if (argc < 2) {
        fprintf(stderr, "usage: state FOLDER [N_TOKENS [ROUNDS]]\n");
        return 2;
    }
    n_tokens = argc > 2 ? strtoul(argv[2], NULL, 10) : 20000;
    n_pages = (n_tokens + QW_KV_TILE - 1) / QW_KV_TILE;
    if (n_tokens < 1 || rounds < 1 || rounds > ROUNDS_MAX) return 2;
    tokens = calloc(n_tokens + 1, sizeof *tokens);
    if (!tokens) die("tokens");
    for (size_t i = 0; i < n_tokens; i++) tokens[i] = (int32_t)(i * i % 1009);
    measure_sum();
    for (int recurrent = 0; recurrent < 2; recurrent++) {
        const qw_state_layout l = {.page_bytes = PAGE_BYTES, .recurrent_bytes = recurrent ? STATE_BYTES : 0};
        const qw_state_limits limits = {.bytes_max = (uint64_t)1 << 40};
        qw_state_files *s;
        qw_state_io *io;
        snprintf(dir, sizeof dir, "%s/state-bench-%ld", argv[1], (long)getpid());
        if (qw_state_files_open(dir, &l, &limits, &s, NULL) != QW_OK) die(dir);
        if (qw_state_io_open(&(qw_state_io_options){.files = s, .n_threads = 2}, &io, NULL) != QW_OK) die(dir);
        const qw_state_store store = qw_state_io_store(io);
        save_all(&store, recurrent);
        n_paths = 0;
        nftw(dir, collect, 16, FTW_PHYS);
        for (int cold = 0; cold < 2; cold++) measure(&store, recurrent, cold, rounds);
        qw_state_io_close(io, 0);
        qw_state_files_close(s);
        nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    }
    free(tokens);
    return 0;
}
