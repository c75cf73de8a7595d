/* test_state.c: computed pasts on disk: what is found, what is never trusted, limits, threads, crashes; and the simulation's
 * store, which has to find the same. Seeds are printed on failure. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/file.h"
#include "engine/state_io.h"
#include "engine/state_private.h"
#include "../sim/fake_state.h"
#include "temp_dir.h"

#define COUNT(a) (sizeof(a) / sizeof(a)[0])

enum {
    PAGE_BYTES = 5003, /* of no round size */
    STATE_BYTES = 611,
    BIG_BYTES = 600000, /* three blocks */
    DAY_S = 86400
};

static const uint8_t owner_a[QW_STATE_OWNER_BYTES] = {1}, owner_b[QW_STATE_OWNER_BYTES] = {2};
static const qw_state_limits no_limits = {.bytes_max = (uint64_t)1 << 40};

static qw_state_layout layout_of(size_t page_bytes, size_t recurrent_bytes)
{
    return (qw_state_layout){.model = "0123456789abcdef", .page_bytes = page_bytes, .recurrent_bytes = recurrent_bytes,
                             .shape = {.n_layers = 2, .n_heads = 4, .n_kv_heads = 2, .head_dim = 64}};
}

static const char *new_dir(void)
{
    static int n;
    char name[16];
    snprintf(name, sizeof name, "%d", n++);
    return temp_path(name);
}

static qw_state_files *open_with(const char *dir, const qw_state_layout *l, const qw_state_limits *limits)
{
    qw_state_files *s;
    qw_err err;
    if (qw_state_files_open(dir, l, limits, &s, &err) != QW_OK) fail_msg("%s", err.text);
    return s;
}

static qw_state_files *open_store(const char *dir)
{
    const qw_state_layout l = layout_of(PAGE_BYTES, STATE_BYTES);
    return open_with(dir, &l, &no_limits);
}

static qw_state_counts counts_of(const qw_state_files *s)
{
    qw_state_counts c;
    qw_state_get_counts(s, &c);
    return c;
}

/* ---- chance, contents ----------------------------------------------------------------------------- */

static uint64_t rng;

static uint32_t below(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng >> 33) % n);
}

/* Contents that follow from a number. */
static void fill(uint8_t *data, size_t n, uint64_t of)
{
    uint64_t x = of * 0x9E3779B97F4A7C15u + 1;
    for (size_t i = 0; i < n; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        data[i] = (uint8_t)(x >> 56);
    }
}

static bool filled(const uint8_t *data, size_t n, uint64_t of)
{
    uint8_t *want = malloc(n);
    assert_non_null(want);
    fill(want, n, of);
    bool same = memcmp(data, want, n) == 0;
    free(want);
    return same;
}

/* n tokens that follow from a number. */
static const int32_t *tokens_of(uint32_t number)
{
    static int32_t tokens[QW_KV_TILE];
    for (int i = 0; i < QW_KV_TILE; i++) tokens[i] = (int32_t)(number * 100 + (uint32_t)i);
    return tokens;
}

static qw_state_piece piece_of(const qw_state_files *s, uint32_t number, bool snapshot)
{
    return (qw_state_piece){.parent = qw_state_root_id(s, owner_a), .snapshot = snapshot,
                            .n_tokens = 1 + number % QW_KV_TILE, .tokens = tokens_of(number)};
}

static void save_number(qw_state_files *s, uint32_t number, bool snapshot)
{
    size_t n = snapshot ? s->recurrent_bytes : s->page_bytes;
    uint8_t *data = malloc(n);
    qw_err err;
    const qw_state_piece p = piece_of(s, number, snapshot);
    assert_non_null(data);
    fill(data, n, number);
    if (qw_state_save(s, &p, data, &err) != QW_OK) fail_msg("%s", err.text);
    free(data);
}

/* True: it is there, and right. What is there and wrong fails. */
static bool load_number(qw_state_files *s, uint32_t number, bool snapshot)
{
    size_t n = snapshot ? s->recurrent_bytes : s->page_bytes;
    uint8_t *data = malloc(n);
    const qw_state_piece p = piece_of(s, number, snapshot);
    assert_non_null(data);
    bool got = qw_state_load(s, &p, data);
    if (got && !filled(data, n, number)) fail_msg("piece %u has other contents", number);
    free(data);
    return got;
}

static const char *path_of_number(const qw_state_files *s, uint32_t number, bool snapshot)
{
    static char paths[8][sizeof temp_dir + 400];
    static int next;
    char name[STATE_NAME_MAX], *out = paths[next++ % 8];
    const qw_state_piece p = piece_of(s, number, snapshot);
    state_name_of(&(state_name){.parent = p.parent, .n_tokens = p.n_tokens, .snapshot = snapshot,
                                .id = qw_state_child_id(s, p.parent, p.tokens, p.n_tokens)},
                  name);
    snprintf(out, sizeof paths[0], "%s/%s", s->dir, name);
    return out;
}

static bool there(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

static void put_file(const char *path, const void *data, size_t n)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, n), n);
    close(fd);
}

static uint8_t *get_file(const char *path, size_t *n)
{
    char *data;
    assert_int_equal(qw_file_read(path, 1 << 24, &data, n, NULL), QW_OK);
    return (uint8_t *)data;
}

static void set_age(const char *path, int64_t age_s)
{
    const struct timespec t = {.tv_sec = time(NULL) - age_s}, times[2] = {t, t};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static int64_t age_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (int64_t)(time(NULL) - st.st_mtim.tv_sec);
}

/* Files below the store's folders. */
static size_t n_files(const char *dir)
{
    size_t n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char path[1024];
        if (e->d_name[0] == '.' || strlen(e->d_name) != 3 || strcmp(e->d_name, "key") == 0) continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        DIR *sub = opendir(path);
        assert_non_null(sub);
        for (struct dirent *f; (f = readdir(sub));) n += f->d_name[0] != '.';
        closedir(sub);
    }
    closedir(d);
    return n;
}

/* ---- sums ----------------------------------------------------------------------------------------- */

static void test_checksum(void **state)
{
    (void)state;
    static const struct {
        size_t n;
        uint64_t sum;
    } vectors[] = {{0, 0xdbd62681896f563bu}, {1, 0xca14c1856e12cdfcu}, {8, 0xffb9184482d630bau},
                   {63, 0x1b602d56d1bbdfd4u}, {64, 0x0b334e7e75078159u}, {127, 0x156542117cd62005u},
                   {128, 0x972a70a0225d3c2bu}, {1000, 0x4543f42aa6b81646u}};
    enum { N = 1000, SOME = 300 };
    uint8_t a[N + 8] = {0};
    for (size_t i = 0; i < N; i++) a[i] = (uint8_t)(i * 7 + 3);
    for (size_t i = 0; i < COUNT(vectors); i++) {
        uint64_t got = qw_checksum(a, vectors[i].n);
        if (got != vectors[i].sum) fail_msg("%zu bytes: 0x%016llx", vectors[i].n, (unsigned long long)got);
    }
    uint64_t sum = qw_checksum(a, N);
    for (size_t bit = 0; bit < 8 * N; bit++) {
        a[bit / 8] ^= (uint8_t)(1u << bit % 8);
        if (qw_checksum(a, N) == sum) fail_msg("bit %zu does not count", bit);
        a[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    uint64_t sum_of_some = qw_checksum(a, SOME);
    for (size_t bit = 0; bit < 8 * SOME; bit++) { /* every two bits of some rows */
        a[bit / 8] ^= (uint8_t)(1u << bit % 8);
        for (size_t other = bit + 1; other < 8 * SOME; other++) {
            a[other / 8] ^= (uint8_t)(1u << other % 8);
            if (qw_checksum(a, SOME) == sum_of_some) fail_msg("bits %zu and %zu cancel", bit, other);
            a[other / 8] ^= (uint8_t)(1u << other % 8);
        }
        a[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    for (size_t i = 0; i < N / 8; i++) {
        for (size_t k = i + 1; k < N / 8; k++) {
            uint8_t b[N];
            memcpy(b, a, N);
            if (memcmp(a + 8 * i, a + 8 * k, 8) == 0) continue;
            memcpy(b + 8 * i, a + 8 * k, 8);
            memcpy(b + 8 * k, a + 8 * i, 8);
            if (qw_checksum(b, N) == sum) fail_msg("words %zu and %zu can be swapped", i, k);
        }
    }
    memset(a, 0, sizeof a);
    for (size_t n = 0; n < 200; n++) /* zeros at the end count; so does where it begins in memory not */
        for (size_t m = 0; m < n; m++) assert_true(qw_checksum(a, n) != qw_checksum(a, m));
    memset(a + 1, 5, 200);
    memset(a + 300, 5, 200);
    assert_true(qw_checksum(a + 1, 200) == qw_checksum(a + 300, 200));
}

/* ---- names ---------------------------------------------------------------------------------------- */

#define ID_1 "0123456789abcdef0123456789abcdef"
#define ID_2 "fedcba9876543210fedcba9876543210"

static void test_names(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "", "key", ID_1, ID_1 "-" ID_2, ID_1 "-" ID_2 "-0.kv", ID_1 "-" ID_2 "-65.kv", ID_1 "-" ID_2 "-05.kv",
        ID_1 "-" ID_2 "-100.kv", ID_1 "-" ID_2 "-.kv", ID_1 "-" ID_2 "-5.kw", ID_1 "-" ID_2 "-5.kv2", ID_1 "-" ID_2 "-5",
        ID_1 "-" ID_2 "-5.kv.tmp", ID_1 "-" ID_2 "-5.an", ID_1 "-" ID_2 ".an", ID_1 "-.an", ID_1 ".ans", ID_1 ".kv", ".an",
         "0" ID_1 "-" ID_2 "-5.kv", ID_1 "_" ID_2 "-5.kv", ID_1 "-0" ID_2 "-5.kv",
        "0123456789ABCDEF0123456789abcdef-" ID_2 "-5.kv"};
    state_name n;
    char text[STATE_NAME_MAX];
    for (size_t i = 0; i < COUNT(bad); i++)
        if (state_name_parse(bad[i], &n)) fail_msg("\"%s\" is taken for a name", bad[i]);
    assert_true(state_name_parse(ID_1 "-" ID_2 "-64.kv", &n));
    assert_true(n.n_tokens == 64 && !n.snapshot && !n.unfinished && n.parent.w[0] == 0x0123456789abcdef);
    state_name_of(&n, text);
    assert_string_equal(text, "012/" ID_1 "-" ID_2 "-64.kv");
    assert_true(state_name_parse(ID_1 "-" ID_2 "-1.st.tmp-12-3456789a", &n));
    assert_true(n.n_tokens == 1 && n.snapshot && n.unfinished && n.id.w[1] == 0xfedcba9876543210);
    assert_true(state_name_parse(ID_2 ".an", &n));
    assert_true(n.answer && !n.snapshot && !n.unfinished && n.parent.w[0] == 0xfedcba9876543210 && n.n_tokens == 0);
    state_name_of(&n, text);
    assert_string_equal(text, "fed/" ID_2 ".an");
    assert_true(state_name_parse(ID_2 ".an.tmp-12-3456789a", &n) && n.answer && n.unfinished);
}

/* ---- round trip ----------------------------------------------------------------------------------- */

static void test_round_trip(void **state)
{
    (void)state;
    const char *dir = new_dir();
    struct stat st;
    for (int big = 0; big < 2; big++) {
        const qw_state_layout l = layout_of(big ? BIG_BYTES : PAGE_BYTES, big ? BIG_BYTES - 1 : STATE_BYTES);
        qw_state_files *s = open_with(dir, &l, &no_limits);
        for (uint32_t i = 0; i < 70; i++) {
            assert_false(load_number(s, i, i % 2));
            save_number(s, i, i % 2);
            assert_true(load_number(s, i, i % 2));
            save_number(s, i, i % 2); /* it is there */
        }
        assert_int_equal(stat(path_of_number(s, 3, true), &st), 0);
        assert_int_equal(st.st_mode, S_IFREG | 0600);
        assert_int_equal(st.st_size % 4096, l.recurrent_bytes % 4096); /* data on a border of 4096 bytes */
        qw_state_files_close(s);
        s = open_with(dir, &l, &no_limits); /* another process, later */
        for (uint32_t i = 0; i < 70; i++) assert_true(load_number(s, i, i % 2));
        qw_state_counts c = counts_of(s);
        assert_true(c.loaded == 70 && c.loaded_bytes == 35 * (l.page_bytes + l.recurrent_bytes) && c.damaged == 0);
        save_number(s, 100, false);
        save_number(s, 100, false);
        c = counts_of(s);
        assert_true(c.saved == 1 && c.already_there == 1 && c.saved_bytes >= l.page_bytes && c.failed == 0);
        qw_state_files_close(s);
    }
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode, S_IFDIR | 0700);
    assert_int_equal(n_files(dir), 2 * 71);
}

/* ---- finding -------------------------------------------------------------------------------------- */

enum { TOKENS_MAX = 330, SAVED_MAX = 600 };

/* All that was saved, by the tokens from the beginning: nothing is known of ids and of pages that go. */
typedef struct saved {
    int32_t tokens[TOKENS_MAX];
    uint32_t n; /* up to the end of the piece */
    bool snapshot;
    int owner;
} saved;

typedef struct model {
    saved *all; /* [SAVED_MAX] */
    size_t n;
} model;

static bool is_same(const saved *s, int owner, bool snapshot, const int32_t *tokens, uint32_t n)
{
    return s->owner == owner && s->snapshot == snapshot && memcmp(s->tokens, tokens, n * sizeof *tokens) == 0;
}

/* Can the first p tokens be read from pages, each of which follows whole ones? */
static bool covered(const model *m, int owner, const int32_t *tokens, uint32_t p)
{
    for (uint32_t begin = 0; begin < p; begin += QW_KV_TILE) {
        uint32_t end = begin + QW_KV_TILE < p ? begin + QW_KV_TILE : p;
        bool found = false;
        for (size_t i = 0; i < m->n && !found; i++) {
            const saved *s = &m->all[i];
            found = s->n >= end && (s->n - 1) / QW_KV_TILE * QW_KV_TILE == begin && is_same(s, owner, false, tokens, end);
        }
        if (!found) return false;
    }
    return true;
}

static uint32_t best_of(const model *m, int owner, const int32_t *tokens, uint32_t n, bool recurrent)
{
    for (uint32_t p = n - 1; p > 0; p--) {
        bool snapshot = !recurrent;
        for (size_t i = 0; i < m->n && !snapshot; i++)
            snapshot = m->all[i].n == p && is_same(&m->all[i], owner, true, tokens, p);
        if (snapshot && covered(m, owner, tokens, p)) return p;
    }
    return 0;
}

static uint64_t hash_of(const int32_t *tokens, uint32_t n)
{
    return qw_checksum(tokens, n * sizeof *tokens);
}

/* A past that has a beginning in common with one that was saved, mostly. */
static uint32_t draw_past(const model *m, int32_t *tokens)
{
    uint32_t n = 1 + below(TOKENS_MAX), n_old = 0;
    if (m->n > 0 && below(10) > 0) {
        const saved *s = &m->all[below((uint32_t)m->n)];
        n_old = below(3) == 0 ? s->n : below(s->n + 1);
        memcpy(tokens, s->tokens, s->n * sizeof *tokens);
    }
    for (uint32_t i = n_old; i < TOKENS_MAX; i++) tokens[i] = (int32_t)below(3);
    return n;
}

static void do_op(const qw_state_store *store, qw_state_op *op)
{
    assert_true(store->submit(store->ctx, op));
    while (!store->wait(store->ctx, 1000000)) {}
    assert_ptr_equal(store->poll(store->ctx), op);
    assert_null(store->poll(store->ctx));
}

static void save_piece(const qw_state_store *store, model *m, int owner, const int32_t *tokens, uint32_t n, bool snapshot)
{
    uint8_t data[PAGE_BYTES];
    qw_state_op *op;
    qw_state_id id = store->root_id(store->ctx, owner ? owner_b : owner_a);
    uint32_t begin = (n - 1) / QW_KV_TILE * QW_KV_TILE;
    for (uint32_t at = 0; at < begin; at += QW_KV_TILE) id = store->child_id(store->ctx, id, tokens + at, QW_KV_TILE);
    assert_int_equal(qw_state_op_create(QW_STATE_SAVE, id, begin, tokens + begin, n - begin, &op, NULL), QW_OK);
    fill(data, snapshot ? STATE_BYTES : PAGE_BYTES, hash_of(tokens, n));
    op->snapshot = snapshot;
    op->source = data;
    do_op(store, op);
    assert_int_equal(op->status, QW_OK);
    qw_state_op_free(op);
    assert_true(m->n < SAVED_MAX);
    saved *s = &m->all[m->n++];
    *s = (saved){.n = n, .snapshot = snapshot, .owner = owner};
    memcpy(s->tokens, tokens, n * sizeof *tokens);
}

/* Its pages, but for some, and some snapshots. */
static void save_past(const qw_state_store *store, model *m, int owner, const int32_t *tokens, uint32_t n, bool recurrent)
{
    for (uint32_t at = QW_KV_TILE; at <= n; at += QW_KV_TILE)
        if (below(12) > 0) save_piece(store, m, owner, tokens, at, false);
    if (n % QW_KV_TILE > 0 && below(4) > 0) save_piece(store, m, owner, tokens, n, false);
    for (int i = 0; recurrent && i < 3; i++)
        if (below(2) == 0) save_piece(store, m, owner, tokens, below(4) == 0 ? n : 1 + below(n), true);
}

/* Loads what was found and looks whether it is what was saved. */
static void check_loaded(const qw_state_store *store, const model *m, qw_state_op *op, int owner)
{
    uint32_t n = op->past.n_full + (op->past.n_last > 0);
    uint8_t *data = malloc((size_t)(n + 1) * PAGE_BYTES), state[STATE_BYTES];
    assert_non_null(data);
    assert_int_equal(qw_state_op_make_load(op, NULL), QW_OK);
    assert_int_equal(qw_state_op_pages(op), n);
    for (uint32_t i = 0; i < n; i++) op->pages[i] = data + (size_t)i * PAGE_BYTES;
    if (op->past.snapshot_at > 0) op->state = state;
    do_op(store, op);
    assert_int_equal(op->n_good, n);
    assert_int_equal(op->state_good, op->past.snapshot_at > 0);
    if (op->state_good) assert_true(filled(state, STATE_BYTES, hash_of(op->tokens, op->past.snapshot_at)));
    int32_t tokens[TOKENS_MAX + QW_KV_TILE];
    memcpy(tokens, op->tokens, (size_t)op->past.n_full * QW_KV_TILE * sizeof *tokens);
    memcpy(tokens + (size_t)op->past.n_full * QW_KV_TILE, op->past.last, sizeof op->past.last);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t end = i < op->past.n_full ? (i + 1) * QW_KV_TILE : i * QW_KV_TILE + op->past.n_last;
        assert_true(covered(m, owner, tokens, end));
        assert_true(filled(op->pages[i], PAGE_BYTES, hash_of(tokens, end)));
    }
    free(data);
}

static void find_past(const qw_state_store *store, const model *m, int owner, const int32_t *tokens, uint32_t n,
                      bool recurrent, int seed)
{
    qw_state_op *op;
    qw_state_id root = store->root_id(store->ctx, owner ? owner_b : owner_a);
    uint32_t want = best_of(m, owner, tokens, n, recurrent);
    assert_int_equal(qw_state_op_create(QW_STATE_FIND, root, 0, tokens, n, &op, NULL), QW_OK);
    do_op(store, op);
    assert_int_equal(op->status, QW_OK);
    if (op->past.n_tokens != want) fail_msg("seed %d: found %u tokens of %u, want %u", seed, op->past.n_tokens, n, want);
    uint32_t most = op->past.n_full * QW_KV_TILE + (op->past.n_last > 0 ? op->past.n_last : 0);
    assert_true(want <= most && (want == 0) == (most == 0) && op->past.snapshot_at == (recurrent ? want : 0));
    assert_true(want > (op->past.n_full - (op->past.n_last == 0 && want > 0)) * QW_KV_TILE || want == 0); /* none in vain */
    check_loaded(store, m, op, owner);
    qw_state_op_free(op);
}

static void find_in_tree(const qw_state_store *store, bool recurrent, int seed)
{
    model m = {.all = calloc(SAVED_MAX, sizeof *m.all)};
    int32_t tokens[TOKENS_MAX];
    assert_non_null(m.all);
    rng = (uint64_t)seed * 7919 + 17;
    for (int round = 0; round < 25; round++) {
        uint32_t n = draw_past(&m, tokens);
        save_past(store, &m, (int)below(2), tokens, n, recurrent);
        for (int i = 0; i < 4; i++) {
            n = draw_past(&m, tokens);
            find_past(store, &m, (int)below(2), tokens, n, recurrent, seed);
        }
    }
    free(m.all);
}

static void test_find(void **state)
{
    (void)state;
    for (int seed = 1; seed <= 12; seed++) {
        const qw_state_layout l = layout_of(PAGE_BYTES, seed % 2 ? STATE_BYTES : 0);
        qw_state_files *s = open_with(new_dir(), &l, &no_limits);
        qw_state_io *io;
        assert_int_equal(qw_state_io_open(&(qw_state_io_options){.files = s, .n_threads = 1 + seed % 3}, &io, NULL), QW_OK);
        const qw_state_store store = qw_state_io_store(io);
        find_in_tree(&store, seed % 2, seed);
        qw_state_io_close(io, 0);
        qw_state_counts c = counts_of(s);
        assert_true(c.damaged == 0 && c.failed == 0 && c.missing == 0 && c.loaded > 0);
        qw_state_files_close(s);
    }
}

/* The simulation's store keeps the same promises. */
static void test_fake_finds(void **state)
{
    (void)state;
    for (int seed = 1; seed <= 30; seed++) {
        fake_state *f = fake_state_create(&(fake_state_options){.seed = (uint64_t)seed, .page_bytes = PAGE_BYTES,
                                                                .recurrent_bytes = seed % 2 ? STATE_BYTES : 0,
                                                                .delay_us_max = 500});
        const qw_state_store store = fake_state_store(f);
        find_in_tree(&store, seed % 2, seed);
        fake_state_destroy(f);
    }
}

/* It hurts as it is told to, and what was damaged is never handed out. */
static void test_fake_hurts(void **state)
{
    (void)state;
    enum { N = 2000, PIECES = 40 };
    fake_state *f = fake_state_create(&(fake_state_options){.seed = 5, .page_bytes = PAGE_BYTES, .delay_us_max = 10,
                                                            .n_pieces_max = PIECES / 2, .refuse_permille = 50,
                                                            .fail_permille = 50, .lose_permille = 50, .damage_permille = 50});
    const qw_state_store store = fake_state_store(f);
    uint8_t data[PAGE_BYTES], *pages[1] = {data};
    fake_state_counts c;
    rng = 3;
    for (int i = 0; i < N; i++) {
        uint32_t number = below(PIECES) * QW_KV_TILE + QW_KV_TILE - 1; /* full pages */
        qw_state_op *op;
        bool is_save = below(2);
        assert_int_equal(qw_state_op_create(is_save ? QW_STATE_SAVE : QW_STATE_FIND, store.root_id(store.ctx, owner_a), 0,
                                            tokens_of(number), QW_KV_TILE, &op, NULL),
                         QW_OK);
        fill(data, sizeof data, number);
        op->source = data;
        if (!is_save) {
            assert_int_equal(qw_state_op_make_load(op, NULL), QW_OK);
            op->past.n_full = 1;
            free(op->pages);
            op->pages = malloc(sizeof pages);
            assert_non_null(op->pages);
            memcpy(op->pages, pages, sizeof pages);
        }
        if (store.submit(store.ctx, op)) {
            fake_state_set_now(f, fake_state_next_us(f) == INT64_MAX ? i * 20 : fake_state_next_us(f) + i % 2);
            assert_ptr_equal(store.poll(store.ctx), op);
            if (!is_save && op->n_good) assert_true(filled(data, sizeof data, number));
        }
        qw_state_op_free(op);
    }
    fake_state_get_counts(f, &c);
    assert_true(c.saves > N / 4 && c.loads > N / 4 && c.refused > 0 && c.failed > 0 && c.lost > 0);
    assert_true(c.damaged > 0 && c.damage_found > 0 && c.n_pieces > 0 && c.n_pieces <= PIECES / 2);
    fake_state_lose_all(f);
    fake_state_get_counts(f, &c);
    assert_int_equal(c.n_pieces, 0);
    fake_state_destroy(f);
}

/* ---- never trusted -------------------------------------------------------------------------------- */

/* This file, in place of the one of number 7, is not loaded, is counted, and is gone. */
static void expect_damaged(qw_state_files *s, bool snapshot, const uint8_t *data, size_t n, const char *what, size_t at)
{
    const char *path = path_of_number(s, 7, snapshot);
    uint64_t before = counts_of(s).damaged;
    put_file(path, data, n);
    if (load_number(s, 7, snapshot)) fail_msg("%s %zu: is trusted", what, at);
    if (counts_of(s).damaged != before + 1 || there(path)) fail_msg("%s %zu: is not removed", what, at);
}

static void test_damage(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        const qw_state_layout l = layout_of(kind == 2 ? BIG_BYTES : PAGE_BYTES, STATE_BYTES);
        qw_state_files *s = open_with(new_dir(), &l, &no_limits);
        bool snapshot = kind == 1;
        size_t n;
        save_number(s, 7, snapshot);
        uint8_t *data = get_file(path_of_number(s, 7, snapshot), &n);
        rng = 11;
        for (size_t i = 0; i < STATE_HEADER_UNIT; i++) {
            uint8_t flip = (uint8_t)(1u << below(8));
            data[i] ^= flip;
            expect_damaged(s, snapshot, data, n, "a bit of header byte", i);
            data[i] ^= flip;
        }
        for (int i = 0; i < 200; i++) {
            size_t at = i == 0 ? 0 : i == 1 ? n - STATE_HEADER_UNIT - 1 : below((uint32_t)n - STATE_HEADER_UNIT);
            at += STATE_HEADER_UNIT;
            uint8_t flip = (uint8_t)(1 + below(255));
            data[at] ^= flip;
            expect_damaged(s, snapshot, data, n, "data byte", at);
            data[at] ^= flip;
        }
        for (int i = 0; i < 50; i++) {
            size_t shorter = i == 0 ? 0 : i == 1 ? n - 1 : below((uint32_t)n);
            expect_damaged(s, snapshot, data, shorter, "cut at", shorter);
        }
        expect_damaged(s, snapshot, data, n + 1, "with one more than", n); /* get_file keeps a NUL */
        for (size_t hole = STATE_HEADER_UNIT; hole < n; hole += 256 << 10) { /* what a loss of power leaves */
            uint8_t *torn = calloc(n, 1);
            assert_non_null(torn);
            memcpy(torn, data, hole);
            expect_damaged(s, snapshot, torn, n, "zeros from", hole);
            free(torn);
        }
        put_file(path_of_number(s, 7, snapshot), data, n); /* unchanged it is right */
        assert_true(load_number(s, 7, snapshot));
        free(data);
        qw_state_files_close(s);
    }
}

static void test_no_files(void **state)
{
    (void)state;
    qw_state_files *s = open_store(new_dir());
    size_t n;
    save_number(s, 7, false);
    const char *path = path_of_number(s, 7, false), *other = temp_path("elsewhere");
    uint8_t *data = get_file(path, &n);
    assert_int_equal(rename(path, other), 0);
    assert_int_equal(symlink(other, path), 0);
    assert_false(load_number(s, 7, false)); /* not even a link to the right bytes */
    assert_true(!there(path) && there(other));
    assert_int_equal(mkdir(path, 0700), 0);
    assert_false(load_number(s, 7, false));
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_false(load_number(s, 7, false)); /* and it is not waited for */
    assert_false(there(path));
    put_file(path, data, 100); /* what is cut is written anew */
    save_number(s, 7, false);
    assert_true(load_number(s, 7, false));
    free(data);
    qw_state_files_close(s);
}

/* A file is good for its own tokens, past, kind, layout, owner and store, and for nothing else. */
static void test_foreign(void **state)
{
    (void)state;
    const char *dir = new_dir(), *dir_2 = new_dir();
    qw_state_layout layouts[] = {[0 ... 7] = layout_of(PAGE_BYTES, STATE_BYTES)};
    layouts[1].model[0]++;
    layouts[2].exact = true;
    layouts[3].shape.type = QW_KV_F32;
    layouts[4].shape.n_layers++;
    layouts[5].shape.index_block++;
    layouts[6].recurrent_bytes++;
    layouts[7].page_bytes += 4096;
    qw_state_files *s = open_store(dir), *other = open_store(dir_2);
    size_t n;
    save_number(s, 7, false);
    uint8_t *data = get_file(path_of_number(s, 7, false), &n);
    for (size_t i = 1; i < COUNT(layouts); i++) {
        qw_state_files *l = open_with(dir, &layouts[i], &no_limits); /* the same key */
        assert_false(load_number(l, 7, false));
        assert_int_equal(counts_of(l).missing, 1); /* has another name */
        assert_int_equal(mkdir(temp_path("x"), 0700), 0);
        save_number(l, 7, false); /* makes the folder */
        expect_damaged(l, false, data, n, "layout", i);
        qw_state_files_close(l);
        assert_int_equal(rmdir(temp_path("x")), 0);
    }
    assert_false(load_number(other, 7, false)); /* another key, another name */
    save_number(other, 7, false);
    assert_string_not_equal(strrchr(path_of_number(s, 7, false), '/'), strrchr(path_of_number(other, 7, false), '/'));
    expect_damaged(other, false, data, n, "store", 2);
    save_number(s, 8, false);
    uint8_t *data_8 = get_file(path_of_number(s, 8, false), &n);
    expect_damaged(s, false, data_8, n, "another page's", 8);
    save_number(s, 7, true);
    uint8_t *data_st = get_file(path_of_number(s, 7, true), &n);
    expect_damaged(s, false, data_st, n, "a snapshot's", 7);
    assert_true(qw_state_root_id(s, owner_a).w[0] != qw_state_root_id(s, owner_b).w[0]);
    free(data);
    free(data_8);
    free(data_st);
    qw_state_files_close(s);
    qw_state_files_close(other);
}

/* ---- key ------------------------------------------------------------------------------------------ */

typedef struct opener {
    pthread_t thread;
    const char *dir;
    qw_state_id root;
} opener;

static void *open_once(void *arg)
{
    opener *o = arg;
    const qw_state_layout l = layout_of(PAGE_BYTES, STATE_BYTES);
    qw_state_files *s;
    if (qw_state_files_open(o->dir, &l, &no_limits, &s, NULL) != QW_OK) return NULL;
    o->root = qw_state_root_id(s, owner_a);
    qw_state_files_close(s);
    return o;
}

static void test_key(void **state)
{
    (void)state;
    enum { N = 8 };
    for (int round = 0; round < 20; round++) { /* many make a store at once: it has one key */
        opener o[N];
        const char *dir = new_dir();
        for (int i = 0; i < N; i++) {
            o[i].dir = dir;
            assert_int_equal(pthread_create(&o[i].thread, NULL, open_once, &o[i]), 0);
        }
        for (int i = 0; i < N; i++) {
            void *done;
            assert_int_equal(pthread_join(o[i].thread, &done), 0);
            assert_non_null(done);
            assert_true(state_id_equal(o[i].root, o[0].root));
        }
    }
    const char *dir = new_dir();
    char key[600];
    struct stat st;
    qw_err err;
    qw_state_files *s = open_store(dir);
    qw_state_files_close(s);
    snprintf(key, sizeof key, "%s/key", dir);
    assert_int_equal(stat(key, &st), 0);
    assert_true(st.st_mode == (S_IFREG | 0600) && st.st_size == 32);
    const qw_state_layout l = layout_of(PAGE_BYTES, STATE_BYTES);
    assert_int_equal(chmod(key, 0640), 0);
    assert_int_equal(qw_state_files_open(dir, &l, &no_limits, &s, &err), QW_E_ARG);
    assert_non_null(strstr(err.text, "this user alone"));
    assert_int_equal(chmod(key, 0600), 0);
    assert_int_equal(truncate(key, 31), 0);
    assert_int_equal(qw_state_files_open(dir, &l, &no_limits, &s, &err), QW_E_CORRUPT);
    assert_non_null(strstr(err.text, "want 32 bytes"));
    assert_int_equal(qw_state_files_open(key, &l, &no_limits, &s, &err), QW_E_IO); /* no folder */
}

/* ---- two processes on one folder ------------------------------------------------------------------ */

static void test_two_stores(void **state)
{
    (void)state;
    enum { N = 60 };
    const char *dir = new_dir();
    qw_state_files *a = open_store(dir), *b = open_store(dir);
    for (uint32_t i = 0; i < N; i++) save_number(i % 2 ? a : b, i, false);
    for (uint32_t i = 0; i < N; i++) assert_true(load_number(i % 2 ? b : a, i, false));
    save_number(a, 0, false);
    assert_int_equal(counts_of(a).already_there, 1);
    assert_int_equal(unlink(path_of_number(a, 5, false)), 0);
    assert_false(load_number(b, 5, false));
    assert_true(counts_of(b).missing == 1 && counts_of(b).damaged == 0);
    qw_state_files_close(a);
    qw_state_files_close(b);
}

/* A page takes the place of those it goes on from, and of no others. */
static void test_shorter_pages_go(void **state)
{
    (void)state;
    qw_state_files *s = open_store(new_dir());
    uint8_t data[PAGE_BYTES] = {1};
    const int32_t *tokens = tokens_of(1);
    int32_t other[QW_KV_TILE];
    memcpy(other, tokens, sizeof other);
    other[9] = -1;
    qw_state_piece p = {.parent = qw_state_root_id(s, owner_a), .tokens = tokens, .n_tokens = 10}, q = p;
    q.tokens = other;
    assert_int_equal(qw_state_save(s, &p, data, NULL), QW_OK);
    assert_int_equal(qw_state_save(s, &q, data, NULL), QW_OK);
    p.snapshot = true;
    assert_int_equal(qw_state_save(s, &p, data, NULL), QW_OK);
    p.snapshot = false;
    p.n_tokens = 11;
    assert_int_equal(qw_state_save(s, &p, data, NULL), QW_OK);
    assert_true(qw_state_load(s, &p, data) && qw_state_load(s, &q, data));
    p.n_tokens = 10;
    assert_false(qw_state_load(s, &p, data));
    p.snapshot = true;
    assert_true(qw_state_load(s, &p, data));
    qw_state_files_close(s);
}

/* ---- use and limits ------------------------------------------------------------------------------- */

static void test_touch(void **state)
{
    (void)state;
    static const struct {
        int64_t age_s;
        bool touched;
    } cases[] = {{QW_STATE_TOUCH_S + 60, true}, {QW_STATE_TOUCH_S - 60, false}, {-600, true}};
    qw_state_files *s = open_store(new_dir());
    const char *path = path_of_number(s, 7, false);
    for (int how = 0; how < 3; how++) {
        for (size_t i = 0; i < COUNT(cases); i++) {
            const qw_state_piece p = piece_of(s, 7, false);
            save_number(s, 7, false);
            set_age(path, cases[i].age_s);
            if (how == 0) qw_state_touch(s, &p);
            if (how == 1) assert_true(load_number(s, 7, false));
            if (how == 2) save_number(s, 7, false);
            bool touched = age_of(path) >= 0 && age_of(path) < 100;
            assert_int_equal(touched, cases[i].touched);
        }
    }
    assert_int_equal(unlink(path), 0);
    const qw_state_piece p = piece_of(s, 7, false);
    qw_state_touch(s, &p); /* nothing happens */
    assert_false(there(path));
    qw_state_files_close(s);
}

/* Of a past that was used at one time the end goes first. */
static void test_use_time(void **state)
{
    (void)state;
    struct timespec shallow = state_use_time(0), deep = state_use_time(1 << 20), deepest = state_use_time(UINT32_MAX);
    assert_true(shallow.tv_nsec > deep.tv_nsec && deep.tv_nsec > deepest.tv_nsec && deepest.tv_nsec == 0);
    assert_true(shallow.tv_nsec < 1000000000 && deep.tv_sec - shallow.tv_sec < 60);
}

static void test_trim_size(void **state)
{
    (void)state;
    enum { N = 40 };
    const qw_state_layout l = layout_of(PAGE_BYTES, STATE_BYTES);
    const char *dir = new_dir();
    qw_state_files *s = open_with(dir, &l, &no_limits);
    size_t bytes = state_file_bytes(s, false);
    for (uint32_t i = 0; i < N; i++) {
        save_number(s, i, false);
        set_age(path_of_number(s, i, false), 100 * ((i * 7) % N + 1));
    }
    assert_int_equal(counts_of(s).bytes, N * bytes);
    qw_state_files_close(s);
    const qw_state_limits limits = {.bytes_max = 16 * bytes};
    s = open_with(dir, &l, &limits);
    assert_true(qw_state_trim_due(s)); /* once at the start */
    assert_int_equal(qw_state_trim(s, NULL), QW_OK);
    assert_false(qw_state_trim_due(s));
    for (uint32_t i = 0; i < N; i++) assert_int_equal(there(path_of_number(s, i, false)), (i * 7) % N + 1 <= 14);
    qw_state_counts c = counts_of(s);
    assert_true(c.trimmed == N - 14 && c.trimmed_bytes == (N - 14) * bytes && c.bytes == 14 * bytes);
    save_number(s, N + 1, false);
    assert_true(qw_state_trim_due(s)); /* a sixteenth was written */
    save_number(s, N + 2, false);
    assert_int_equal(counts_of(s).bytes, 16 * bytes);
    qw_err err;
    uint8_t data[PAGE_BYTES] = {0};
    qw_state_piece p = piece_of(s, N + 3, false);
    assert_int_equal(qw_state_save(s, &p, data, &err), QW_E_LIMIT); /* the limit holds between trims too */
    assert_non_null(strstr(err.text, dir));
    assert_int_equal(qw_state_trim(s, NULL), QW_OK);
    assert_int_equal(qw_state_save(s, &p, data, &err), QW_OK);
    assert_int_equal(counts_of(s).failed, 1);
    qw_state_files_close(s);
}

static void test_trim_age(void **state)
{
    (void)state;
    const qw_state_limits limits = {.bytes_max = (uint64_t)1 << 40, .age_s_max = 7 * DAY_S};
    const qw_state_layout l = layout_of(PAGE_BYTES, STATE_BYTES);
    const char *dir = new_dir(), *folder, *path;
    char name[600], left[700], fresh[700], strange[700];
    qw_state_files *s = open_with(dir, &l, &limits);
    for (uint32_t i = 0; i < 20; i++) {
        save_number(s, i, i % 2);
        set_age(path_of_number(s, i, i % 2), (int64_t)i * DAY_S + 60);
    }
    set_age(path_of_number(s, 3, true), -400 * DAY_S); /* from a clock that was wrong */
    path = path_of_number(s, 1, true);
    snprintf(name, sizeof name, "%s", path);
    snprintf(left, sizeof left, "%s.tmp-1-00000001", name);
    snprintf(fresh, sizeof fresh, "%s.tmp-2-00000002", name);
    put_file(left, "x", 1);
    set_age(left, 7200);
    put_file(fresh, "x", 1); /* somebody may be at it */
    *strrchr(name, '/') = '\0';
    folder = name;
    snprintf(strange, sizeof strange, "%s/notes", folder);
    put_file(strange, "x", 1); /* not ours */
    set_age(strange, 100 * DAY_S);
    assert_int_equal(qw_state_trim(s, NULL), QW_OK);
    for (uint32_t i = 0; i < 20; i++) assert_int_equal(there(path_of_number(s, i, i % 2)), i < 7);
    assert_true(!there(left) && there(fresh) && there(strange));
    assert_in_range(age_of(path_of_number(s, 3, true)), 0, 100);
    assert_int_equal(counts_of(s).trimmed, 14);
    qw_state_files_close(s);
}

/* A file in a folder where nobody looks for it. */
static void test_trim_strays(void **state)
{
    (void)state;
    const char *dir = new_dir();
    qw_state_files *s = open_store(dir);
    char path[600], stray[600], name[200];
    save_number(s, 1, false);
    snprintf(path, sizeof path, "%s", path_of_number(s, 1, false));
    snprintf(name, sizeof name, "%s", strrchr(path, '/') + 1);
    const char *folder = strncmp(name, "000", 3) == 0 ? "001" : "000";
    snprintf(stray, sizeof stray, "%s/%s", dir, folder);
    assert_int_equal(mkdir(stray, 0700), 0);
    snprintf(stray, sizeof stray, "%s/%s/%s", dir, folder, name);
    assert_int_equal(rename(path, stray), 0);
    assert_false(load_number(s, 1, false));
    assert_int_equal(qw_state_trim(s, NULL), QW_OK);
    assert_int_equal(n_files(dir), 0);
    qw_state_files_close(s);
}

static void test_free_space(void **state)
{
    (void)state;
    const qw_state_limits limits = {.bytes_max = (uint64_t)1 << 40, .free_min = (uint64_t)1 << 60};
    const qw_state_layout l = layout_of(PAGE_BYTES, STATE_BYTES);
    const char *dir = new_dir();
    qw_state_files *s = open_with(dir, &l, &no_limits);
    for (uint32_t i = 0; i < 5; i++) save_number(s, i, false);
    qw_state_files_close(s);
    s = open_with(dir, &l, &limits); /* a disk that is never free enough */
    uint8_t data[PAGE_BYTES] = {0};
    const qw_state_piece p = piece_of(s, 9, false);
    qw_err err;
    assert_int_equal(qw_state_save(s, &p, data, &err), QW_E_LIMIT);
    assert_non_null(strstr(err.text, "stay free"));
    assert_true(load_number(s, 1, false)); /* reading needs none */
    assert_int_equal(qw_state_trim(s, NULL), QW_OK);
    assert_int_equal(n_files(dir), 0); /* what can go has gone */
    qw_state_files_close(s);
}

/* ---- disks that fail ------------------------------------------------------------------------------ */

/* Files cannot grow beyond what the limit of the process allows: the same errors as of a full disk. */
static void test_disk_full(void **state)
{
    (void)state;
    const char *dir = new_dir();
    fflush(stdout);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        const struct rlimit most = {4096, 4096};
        qw_state_files *s = open_store(dir);
        uint8_t data[PAGE_BYTES] = {0};
        const qw_state_piece p = piece_of(s, 9, false);
        qw_err err = {0};
        signal(SIGXFSZ, SIG_IGN);
        if (setrlimit(RLIMIT_FSIZE, &most) != 0) _exit(2);
        qw_status status = qw_state_save(s, &p, data, &err);
        _exit(status == QW_E_IO && strstr(err.text, dir) && counts_of(s).failed == 1 && n_files(dir) == 0 ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_folder_gone(void **state)
{
    (void)state;
    const char *dir = new_dir(), *aside = temp_path("aside");
    qw_state_files *s = open_store(dir);
    uint8_t data[PAGE_BYTES] = {0};
    qw_err err;
    const qw_state_piece p = piece_of(s, 9, false);
    qw_state_past past;
    save_number(s, 7, false);
    assert_int_equal(rename(dir, aside), 0);
    assert_int_equal(qw_state_save(s, &p, data, &err), QW_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "the folder cannot be made"));
    assert_false(load_number(s, 7, false));
    assert_int_equal(qw_state_find(s, p.parent, p.tokens, p.n_tokens, &past, NULL), QW_OK);
    assert_int_equal(past.n_tokens, 0);
    assert_int_equal(qw_state_trim(s, NULL), QW_OK);
    assert_int_equal(rename(aside, dir), 0); /* it is back */
    assert_true(load_number(s, 7, false));
    assert_int_equal(qw_state_save(s, &p, data, &err), QW_OK);
    qw_state_files_close(s);
}

/* ---- kill -9 -------------------------------------------------------------------------------------- */

enum { KILL_FILES = 400 };

/* Saves in two threads of the store, and says in the pipe what was saved. */
static _Noreturn void save_until_killed(const char *dir, const qw_state_layout *l, int out)
{
    static uint8_t data[KILL_FILES / 8][BIG_BYTES];
    qw_state_files *s;
    qw_state_io *io;
    if (qw_state_files_open(dir, l, &no_limits, &s, NULL) != QW_OK) _exit(1);
    if (qw_state_io_open(&(qw_state_io_options){.files = s, .n_threads = 3}, &io, NULL) != QW_OK) _exit(1);
    const qw_state_store store = qw_state_io_store(io);
    for (uint32_t i = 0;; i++) {
        const uint32_t number = i % KILL_FILES;
        qw_state_op *op;
        while (i >= COUNT(data) / 2 && !store.wait(store.ctx, 1000)) {}
        while ((op = store.poll(store.ctx))) {
            const uint32_t done = (uint32_t)(uintptr_t)op->user;
            if (op->status != QW_OK || write(out, &done, sizeof done) != sizeof done) _exit(1);
            qw_state_op_free(op);
        }
        const qw_state_piece p = piece_of(s, number, false);
        if (qw_state_op_create(QW_STATE_SAVE, p.parent, 0, p.tokens, p.n_tokens, &op, NULL) != QW_OK) _exit(1);
        fill(data[i % COUNT(data)], l->page_bytes, number);
        op->source = data[i % COUNT(data)];
        op->user = (void *)(uintptr_t)number;
        if (!store.submit(store.ctx, op)) _exit(1);
    }
}

static void test_kill(void **state)
{
    (void)state;
    const qw_state_layout l = layout_of(150000, 0);
    rng = 23;
    for (int round = 0; round < 12; round++) {
        const char *dir = new_dir();
        int ends[2];
        bool told[KILL_FILES] = {false};
        assert_int_equal(pipe(ends), 0);
        fflush(stdout);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) save_until_killed(dir, &l, ends[1]);
        close(ends[1]);
        uint32_t number, n_wanted = 1 + below(60), n_there = 0, status;
        for (uint32_t i = 0; i < n_wanted; i++) {
            assert_int_equal(read(ends[0], &number, sizeof number), sizeof number);
            told[number] = true;
        }
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, (int *)&status, 0), pid);
        while (read(ends[0], &number, sizeof number) == sizeof number) told[number] = true;
        close(ends[0]);
        qw_state_files *s = open_with(dir, &l, &no_limits);
        for (uint32_t i = 0; i < KILL_FILES; i++) {
            bool got = load_number(s, i, false);
            if (told[i] && !got) fail_msg("round %d: page %u was saved and is not there", round, i);
            n_there += got;
        }
        assert_int_equal(counts_of(s).damaged, 0);
        assert_int_equal(n_files(dir), n_there);
        qw_state_files_close(s);
    }
}

/* ---- threads -------------------------------------------------------------------------------------- */

static void count_wake(void *ctx)
{
    atomic_fetch_add((atomic_int *)ctx, 1);
}

static qw_state_op *save_op(const qw_state_store *store, uint32_t number, const uint8_t *source)
{
    qw_state_op *op;
    assert_int_equal(qw_state_op_create(QW_STATE_SAVE, store->root_id(store->ctx, owner_a), 0, tokens_of(number),
                                        1 + number % QW_KV_TILE, &op, NULL),
                     QW_OK);
    op->source = source;
    return op;
}

/* Many under way at once: every one comes back once, whole; the queue has an end. */
static void test_io_many(void **state)
{
    (void)state;
    enum { N = QW_STATE_BACK_MAX };
    static uint8_t data[N][PAGE_BYTES];
    for (int n_threads = 1; n_threads <= 4; n_threads++) {
        qw_state_files *s = open_store(new_dir());
        qw_state_io *io;
        atomic_int wakes = 0;
        assert_int_equal(qw_state_io_open(&(qw_state_io_options){.files = s, .n_threads = n_threads, .wake = count_wake,
                                                                 .wake_ctx = &wakes},
                                          &io, NULL),
                         QW_OK);
        const qw_state_store store = qw_state_io_store(io);
        assert_false(store.wait(store.ctx, 1000));
        for (uint32_t i = 0; i < N; i++) {
            fill(data[i], PAGE_BYTES, i);
            assert_true(store.submit(store.ctx, save_op(&store, i, data[i])));
        }
        qw_state_op *op = save_op(&store, N, data[0]);
        assert_false(store.submit(store.ctx, op)); /* nothing was polled */
        qw_state_op_free(op);
        uint32_t n_done = 0;
        while (n_done < N) {
            while (!store.wait(store.ctx, 1000000)) {}
            for (; (op = store.poll(store.ctx)); n_done++) {
                assert_int_equal(op->status, QW_OK);
                qw_state_op_free(op);
            }
        }
        for (uint32_t i = 0; i < N; i++) assert_true(load_number(s, i, false));
        qw_state_io_close(io, 0);
        assert_int_equal(wakes, N);
        qw_state_files_close(s);
    }
}

enum { CHAIN = 30 };

/* A past of so many full pages, and a snapshot at its end. */
static void save_chain(const qw_state_store *store, int32_t *tokens)
{
    model m = {.all = calloc(CHAIN + 2, sizeof *m.all)};
    uint8_t data[PAGE_BYTES];
    qw_state_id id = store->root_id(store->ctx, owner_a);
    assert_non_null(m.all);
    for (uint32_t i = 0; i < CHAIN * QW_KV_TILE; i++) tokens[i] = (int32_t)below(1000);
    for (uint32_t i = 0; i <= CHAIN; i++) {
        uint32_t page = i < CHAIN ? i : CHAIN - 1; /* the snapshot: in the last page's place */
        qw_state_op *op;
        assert_int_equal(qw_state_op_create(QW_STATE_SAVE, id, page * QW_KV_TILE, tokens + page * QW_KV_TILE, QW_KV_TILE, &op,
                                            NULL),
                         QW_OK);
        fill(data, sizeof data, page);
        op->source = data;
        op->snapshot = i == CHAIN;
        do_op(store, op);
        assert_int_equal(op->status, QW_OK);
        qw_state_op_free(op);
        if (i + 1 < CHAIN) id = store->child_id(store->ctx, id, tokens + page * QW_KV_TILE, QW_KV_TILE);
    }
    free(m.all);
}

/* Finds the chain and has what `take_away` breaks in between. */
static void load_chain(qw_state_files *s, const qw_state_store *store, const int32_t *tokens, int missing, bool no_state)
{
    static uint8_t data[CHAIN][PAGE_BYTES], state[STATE_BYTES];
    int32_t more[CHAIN * QW_KV_TILE + 1];
    qw_state_op *op;
    char path[600], name[STATE_NAME_MAX];
    memcpy(more, tokens, sizeof more - sizeof *more);
    more[CHAIN * QW_KV_TILE] = 1;
    assert_int_equal(qw_state_op_create(QW_STATE_FIND, store->root_id(store->ctx, owner_a), 0, more, COUNT(more), &op, NULL),
                     QW_OK);
    do_op(store, op);
    assert_true(op->past.n_tokens == CHAIN * QW_KV_TILE && op->past.n_full == CHAIN);
    assert_int_equal(op->past.snapshot_at, op->past.n_tokens);
    qw_state_id id = store->root_id(store->ctx, owner_a);
    for (int i = 0; i < CHAIN; i++) {
        const state_name n = {.parent = id, .n_tokens = QW_KV_TILE, .snapshot = no_state && i == CHAIN - 1,
                              .id = store->child_id(store->ctx, id, tokens + i * QW_KV_TILE, QW_KV_TILE)};
        state_name_of(&n, name);
        snprintf(path, sizeof path, "%s/%s", s->dir, name);
        if (i == missing || n.snapshot) assert_int_equal(truncate(path, 5000), 0);
        id = n.id;
    }
    assert_int_equal(qw_state_op_make_load(op, NULL), QW_OK);
    for (int i = 0; i < CHAIN; i++) op->pages[i] = data[i];
    op->state = state;
    do_op(store, op);
    assert_int_equal(op->n_good, missing >= 0 ? missing : CHAIN);
    assert_int_equal(op->state_good, !no_state);
    for (uint32_t i = 0; i < op->n_good; i++) assert_true(filled(data[i], PAGE_BYTES, i));
    if (op->state_good) assert_true(filled(state, STATE_BYTES, CHAIN - 1));
    qw_state_op_free(op);
}

/* What goes between finding and loading costs what comes after it. */
static void test_io_load(void **state)
{
    (void)state;
    static const struct {
        int missing;
        bool no_state;
    } cases[] = {{-1, false}, {0, false}, {CHAIN - 1, false}, {13, false}, {-1, true}};
    int32_t tokens[CHAIN * QW_KV_TILE];
    rng = 99;
    for (int n_threads = 1; n_threads <= 4; n_threads++) {
        for (size_t i = 0; i < COUNT(cases); i++) {
            qw_state_files *s = open_store(new_dir());
            qw_state_io *io;
            assert_int_equal(qw_state_io_open(&(qw_state_io_options){.files = s, .n_threads = n_threads}, &io, NULL), QW_OK);
            const qw_state_store store = qw_state_io_store(io);
            save_chain(&store, tokens);
            load_chain(s, &store, tokens, cases[i].missing, cases[i].no_state);
            qw_state_io_close(io, 0);
            qw_state_files_close(s);
        }
    }
}

/* All pages of a past are touched, and its snapshot. */
static void test_io_touch(void **state)
{
    (void)state;
    qw_state_files *s = open_store(new_dir());
    qw_state_io *io;
    int32_t tokens[CHAIN * QW_KV_TILE];
    char path[CHAIN + 1][600], name[STATE_NAME_MAX];
    qw_state_op *op;
    assert_int_equal(qw_state_io_open(&(qw_state_io_options){.files = s, .n_threads = 2}, &io, NULL), QW_OK);
    const qw_state_store store = qw_state_io_store(io);
    save_chain(&store, tokens);
    qw_state_id id = store.root_id(store.ctx, owner_a);
    for (int i = 0; i <= CHAIN; i++) {
        const int32_t *of = tokens + (i < CHAIN ? i : CHAIN - 1) * QW_KV_TILE;
        const state_name n = {.parent = id, .n_tokens = QW_KV_TILE, .snapshot = i == CHAIN,
                              .id = store.child_id(store.ctx, id, of, QW_KV_TILE)};
        state_name_of(&n, name);
        snprintf(path[i], sizeof path[i], "%s/%s", s->dir, name);
        set_age(path[i], DAY_S);
        if (i + 1 < CHAIN) id = n.id;
    }
    for (int snapshot = 0; snapshot < 2; snapshot++) {
        assert_int_equal(qw_state_op_create(QW_STATE_TOUCH, store.root_id(store.ctx, owner_a), 0, tokens, COUNT(tokens), &op,
                                            NULL),
                         QW_OK);
        op->snapshot = snapshot;
        do_op(&store, op);
        qw_state_op_free(op);
        for (int i = 0; i <= CHAIN; i++) assert_int_equal(age_of(path[i]) < 100, i < CHAIN || snapshot);
    }
    qw_state_io_close(io, 0);
    qw_state_files_close(s);
}

/* The end saves what it is given time for, and frees everything. */
static void test_io_close(void **state)
{
    (void)state;
    enum { N = 100 };
    static uint8_t data[N][PAGE_BYTES];
    for (int flush = 0; flush < 2; flush++) {
        const char *dir = new_dir();
        qw_state_files *s = open_store(dir);
        qw_state_io *io;
        assert_int_equal(qw_state_io_open(&(qw_state_io_options){.files = s, .n_threads = 2}, &io, NULL), QW_OK);
        const qw_state_store store = qw_state_io_store(io);
        for (uint32_t i = 0; i < N; i++) {
            fill(data[i], PAGE_BYTES, i);
            assert_true(store.submit(store.ctx, save_op(&store, i, data[i])));
        }
        qw_state_op *op;
        assert_int_equal(qw_state_op_create(QW_STATE_FIND, store.root_id(store.ctx, owner_a), 0, tokens_of(1), 9, &op, NULL),
                         QW_OK);
        assert_true(store.submit(store.ctx, op));
        qw_state_io_close(io, flush ? (int64_t)600 * 1000000 : 0);
        for (uint32_t i = 0; flush && i < N; i++) assert_true(load_number(s, i, false));
        for (uint32_t i = 0; !flush && i < N; i++) (void)load_number(s, i, false); /* there or not, but right */
        assert_int_equal(counts_of(s).damaged, 0);
        qw_state_files_close(s);
    }
}

/* A failure is told once, in words, and every operation comes back. */
static void test_io_report(void **state)
{
    (void)state;
    const char *dir = new_dir(), *aside = temp_path("aside-2");
    qw_state_files *s = open_store(dir);
    qw_state_io *io;
    static uint8_t data[PAGE_BYTES];
    qw_err err;
    assert_int_equal(qw_state_io_open(&(qw_state_io_options){.files = s, .n_threads = 2}, &io, NULL), QW_OK);
    const qw_state_store store = qw_state_io_store(io);
    assert_int_equal(rename(dir, aside), 0);
    assert_false(qw_state_io_report(io, &err));
    for (uint32_t i = 0; i < 3; i++) {
        qw_state_op *op = save_op(&store, i, data);
        do_op(&store, op);
        assert_int_equal(op->status, QW_E_NOT_FOUND);
        qw_state_op_free(op);
        assert_int_equal(qw_state_io_report(io, &err), i == 0);
        assert_non_null(strstr(err.text, dir));
    }
    assert_int_equal(counts_of(s).failed, 3);
    qw_state_io_close(io, 0);
    qw_state_files_close(s);
}

/* The threads trim by themselves: what is saved without end stays within the limit. */
static void test_io_trims(void **state)
{
    (void)state;
    enum { N = 600, FIT = 64 };
    const char *dir = new_dir();
    const qw_state_layout l = layout_of(PAGE_BYTES, STATE_BYTES);
    qw_state_files *s = open_with(dir, &l, &no_limits);
    const qw_state_limits limits = {.bytes_max = FIT * state_file_bytes(s, false)};
    qw_state_files_close(s);
    s = open_with(dir, &l, &limits);
    qw_state_io *io;
    static uint8_t data[PAGE_BYTES];
    assert_int_equal(qw_state_io_open(&(qw_state_io_options){.files = s, .n_threads = 2}, &io, NULL), QW_OK);
    const qw_state_store store = qw_state_io_store(io);
    for (uint32_t i = 0; i < N; i++) {
        qw_state_op *op = save_op(&store, i, data);
        do_op(&store, op);
        assert_int_equal(op->status, QW_OK);
        qw_state_op_free(op);
        if (i % 10 == 0) assert_true(n_files(dir) <= FIT);
    }
    assert_true(n_files(dir) <= FIT && n_files(dir) >= FIT * 3 / 4 && counts_of(s).trimmed > 0);
    qw_state_io_close(io, 0);
    qw_state_files_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_checksum),    cmocka_unit_test(test_names),      cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_find),        cmocka_unit_test(test_fake_finds), cmocka_unit_test(test_fake_hurts),
        cmocka_unit_test(test_damage),      cmocka_unit_test(test_no_files),   cmocka_unit_test(test_foreign),
        cmocka_unit_test(test_key),         cmocka_unit_test(test_two_stores), cmocka_unit_test(test_shorter_pages_go),
        cmocka_unit_test(test_touch),       cmocka_unit_test(test_use_time),   cmocka_unit_test(test_trim_size),
        cmocka_unit_test(test_trim_age),    cmocka_unit_test(test_trim_strays), cmocka_unit_test(test_free_space),
        cmocka_unit_test(test_disk_full),   cmocka_unit_test(test_folder_gone), cmocka_unit_test(test_kill),
        cmocka_unit_test(test_io_many),     cmocka_unit_test(test_io_load),    cmocka_unit_test(test_io_touch),
        cmocka_unit_test(test_io_close),    cmocka_unit_test(test_io_report),  cmocka_unit_test(test_io_trims),
    };
    return cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
}
