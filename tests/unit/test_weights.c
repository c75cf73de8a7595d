/* test_weights.c: the side file of packed weights: made once, mapped ever after, rebuilt when it is not right.
 *
 * Runs from the repository's root on the committed tiny models. The yardstick is the bits of logits: with weights
 * packed into memory, freshly built and mapped they must be the same. Cache folders are temporary.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/side_files.h"
#include "gguf_writer.h"
#include "model/runtime.h"
#include "model/weights.h"
#include "temp_dir.h"

#define Q4KM "tests/fixtures/tiny-q4km.gguf"
#define MIX "tests/fixtures/tiny-mix.gguf"
#define F32 "tests/fixtures/tiny-f32.gguf"

enum { N_TOKENS = 12, N_LOGITS_MAX = 1024, PAGE = 4096 };
/* Of the header: where the version is, and the path of the model file; what follows that are three sums. */
enum { VERSION_AT = 8, SOURCE_AT = 208, SOURCE_END = 1232, HEADER_BYTES = 1328 };

/* What one opening of a model with a cache folder gave. */
typedef struct result {
    float logits[N_LOGITS_MAX]; /* after the last token */
    size_t n_vocab;
    bool mapped;
    char note[QW_ERR_TEXT_MAX + 64];
    char cache_path[4096]; /* of the side file; "" without a folder */
    uint64_t packed_bytes;
} result;

static qw_status compute(const char *path, const char *cache_dir, int n_threads, result *r)
{
    qw_gguf *file = NULL;
    qw_net *net = NULL;
    qw_weights *weights = NULL;
    qw_runtime rt = {0};
    qw_seq *seq = NULL;
    qw_row rows[N_TOKENS];
    uint32_t last = N_TOKENS - 1;
    qw_runtime_options o = {.n_threads = n_threads, .n_rows_max = N_TOKENS, .n_seqs = 1, .seq_tokens_max = N_TOKENS};
    qw_err err = {0};
    qw_status status;
    memset(r, 0, sizeof *r);
    QW_TRY_GOTO(qw_gguf_open(path, &file, &err));
    QW_TRY_GOTO(qw_net_open(file, &net, &err));
    QW_TRY_GOTO(qw_runtime_create(net, &o, &rt, &err));
    r->packed_bytes = qw_weights_packed_bytes(net);
    QW_TRY_GOTO(qw_weights_create(net, cache_dir, rt.pool, &weights, &err));
    r->mapped = qw_weights_mapped(weights);
    snprintf(r->note, sizeof r->note, "%s", qw_weights_note(weights));
    if (cache_dir) qw_weights_cache_path(file, cache_dir, r->cache_path, sizeof r->cache_path);
    r->n_vocab = net->hp.n_vocab;
    QW_TRY_GOTO(qw_seq_create(rt.seqs, &seq, &err));
    QW_TRY_GOTO(qw_seq_reserve(seq, N_TOKENS, &err));
    for (uint32_t i = 0; i < N_TOKENS; i++) {
        rows[i] = (qw_row){.seq = seq, .pos = i, .token = (int32_t)((i * 37 + 11) % r->n_vocab)};
    }
    qw_forward(rt.pass, rows, N_TOKENS);
    qw_pass_logits(rt.pass, &last, 1, r->logits, N_LOGITS_MAX);
fail:
    if (status != QW_OK) printf("%s\n", err.text);
    qw_seq_release(seq);
    qw_runtime_destroy(&rt);
    qw_weights_destroy(weights);
    qw_net_close(net);
    qw_gguf_close(file);
    return status;
}

static void compute_well(const char *path, const char *cache_dir, result *r)
{
    assert_int_equal(compute(path, cache_dir, 2, r), QW_OK);
}

static void assert_same_bits(const result *a, const result *b)
{
    assert_int_equal(a->n_vocab, b->n_vocab);
    assert_memory_equal(a->logits, b->logits, a->n_vocab * sizeof(float));
}

/* A new empty cache folder's path, not yet made. */
static const char *new_cache(void)
{
    static int n;
    char name[32];
    snprintf(name, sizeof name, "cache-%d/packed", n++);
    return temp_path(name);
}

static size_t n_files(const char *dir)
{
    size_t n = 0;
    DIR *d = opendir(dir);
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static struct stat stat_of(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) fail_msg("%s is not there", path);
    return st;
}

/* True when the name leads to another file than before: it was made anew. */
static bool is_new(const char *path, const struct stat *before)
{
    struct stat st = stat_of(path);
    return st.st_ino != before->st_ino || st.st_mtim.tv_sec != before->st_mtim.tv_sec ||
           st.st_mtim.tv_nsec != before->st_mtim.tv_nsec;
}

static void read_all(const char *path, char **data, size_t *n)
{
    assert_int_equal(qw_file_read(path, 64 << 20, data, n, NULL), QW_OK);
}

static void write_all(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(n ? fwrite(data, 1, n, f) : 0, n);
    assert_int_equal(fclose(f), 0);
}

static void flip(const char *path, long at, int bit)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    int c = fgetc(f);
    assert_true(c != EOF);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    assert_true(fputc(c ^ 1 << bit, f) != EOF);
    assert_int_equal(fclose(f), 0);
}

static qw_status verify(const char *path, const char *cache_dir, qw_err *err)
{
    qw_gguf *file;
    memset(err, 0, sizeof *err);
    assert_int_equal(qw_gguf_open(path, &file, NULL), QW_OK);
    qw_status status = qw_weights_verify(file, cache_dir, err);
    qw_gguf_close(file);
    return status;
}

/* ---- made once -------------------------------------------------------------------------------- */

static void test_made_once(void **state)
{
    (void)state;
    static const char *const models[] = {Q4KM, MIX, F32};
    for (size_t m = 0; m < 3; m++) {
        result memory, built, mapped;
        qw_err err;
        const char *cache = new_cache();
        compute_well(models[m], NULL, &memory);
        assert_false(memory.mapped);
        assert_string_equal(memory.note, "");
        assert_int_equal(verify(models[m], cache, &err), QW_OK); /* nothing there yet */
        compute_well(models[m], cache, &built);
        assert_true(built.mapped);
        assert_string_equal(built.note, "");
        assert_int_equal(n_files(cache), 1); /* no temporary file */
        struct stat st = stat_of(built.cache_path);
        assert_int_equal(st.st_mode & 077, 0); /* what a model holds is nobody else's business */
        assert_true((uint64_t)st.st_size >= built.packed_bytes);
        compute_well(models[m], cache, &mapped);
        assert_true(mapped.mapped);
        assert_false(is_new(built.cache_path, &st));
        assert_same_bits(&memory, &built);
        assert_same_bits(&memory, &mapped);
        assert_int_equal(verify(models[m], cache, &err), QW_OK);
    }
}

/* The number of threads that pack changes no byte. */
static void test_threads(void **state)
{
    (void)state;
    char *first = NULL, *data;
    size_t n_first = 0, n;
    for (int t = 1; t <= 3; t++) {
        result r;
        assert_int_equal(compute(Q4KM, new_cache(), t, &r), QW_OK);
        read_all(r.cache_path, &data, &n);
        if (!first) {
            first = data;
            n_first = n;
            continue;
        }
        assert_int_equal(n, n_first);
        assert_memory_equal(data, first, n);
        free(data);
    }
    free(first);
}

/* ---- rebuilt ---------------------------------------------------------------------------------- */

/* The side file is not what it should be: it is made anew, and the logits are right. */
static void assert_rebuilt(const char *cache, const result *good, const char *what)
{
    result r;
    struct stat st = stat_of(good->cache_path);
    compute_well(Q4KM, cache, &r);
    if (!r.mapped || !is_new(good->cache_path, &st)) fail_msg("%s: the side file was used", what);
    assert_same_bits(good, &r);
    assert_int_equal(n_files(cache), 1);
}

static void test_damaged_header(void **state)
{
    (void)state;
    result good;
    qw_err err;
    char what[64];
    const char *cache = new_cache();
    compute_well(Q4KM, cache, &good);
    for (long at = 0; at < HEADER_BYTES; at += at >= SOURCE_AT && at < SOURCE_END ? 64 : 1) {
        int bit = (int)(at * 5 % 8);
        flip(good.cache_path, at, bit);
        if (verify(Q4KM, cache, &err) != QW_E_CORRUPT) fail_msg("verify passes over byte %ld", at);
        assert_non_null(strstr(err.text, good.cache_path));
        snprintf(what, sizeof what, "byte %ld bit %d", at, bit);
        assert_rebuilt(cache, &good, what);
    }
    flip(good.cache_path, PAGE, 0); /* the sum of the first block */
    assert_int_equal(verify(Q4KM, cache, &err), QW_E_CORRUPT);
    assert_rebuilt(cache, &good, "block sums");
    assert_int_equal(verify(Q4KM, cache, &err), QW_OK);
}

static void test_cut_or_longer(void **state)
{
    (void)state;
    result good;
    qw_err err;
    const char *cache = new_cache();
    compute_well(Q4KM, cache, &good);
    off_t size = stat_of(good.cache_path).st_size;
    const off_t sizes[] = {0, 1, HEADER_BYTES, PAGE - 1, PAGE, PAGE + 32, size / 2, size - 1, size + 1, size + 100000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_int_equal(truncate(good.cache_path, sizes[i]), 0);
        assert_int_not_equal(verify(Q4KM, cache, &err), QW_OK);
        assert_rebuilt(cache, &good, "another size");
        assert_int_equal(stat_of(good.cache_path).st_size, size);
    }
}

/* A whole and right side file, but of another model. */
static void test_of_another_model(void **state)
{
    (void)state;
    result good, other;
    char *data;
    size_t n;
    const char *cache = new_cache(), *cache2 = new_cache();
    compute_well(Q4KM, cache, &good);
    compute_well(MIX, cache2, &other);
    read_all(other.cache_path, &data, &n);
    write_all(good.cache_path, data, n);
    free(data);
    assert_rebuilt(cache, &good, "another model's file");
    /* the same bytes under another identity: a copy of the model */
    const char *copy = temp_path("copy.gguf");
    result of_copy;
    read_all(Q4KM, &data, &n);
    write_all(copy, data, n);
    free(data);
    compute_well(copy, cache2, &of_copy);
    assert_same_bits(&good, &of_copy);
    assert_string_not_equal(strrchr(of_copy.cache_path, '/'), strrchr(good.cache_path, '/'));
    read_all(of_copy.cache_path, &data, &n);
    write_all(good.cache_path, data, n);
    free(data);
    assert_rebuilt(cache, &good, "a copy's file");
}

/* A model file that is replaced, or written anew in place, gets a side file of its own. */
static void test_model_replaced(void **state)
{
    (void)state;
    result first, replaced, in_place, q4km, mix;
    char *data_a, *data_b;
    size_t n_a, n_b;
    const char *cache = new_cache(), *model = temp_path("model.gguf"), *next = temp_path("model.new");
    compute_well(Q4KM, NULL, &q4km);
    compute_well(MIX, NULL, &mix);
    read_all(Q4KM, &data_a, &n_a);
    read_all(MIX, &data_b, &n_b);
    write_all(model, data_a, n_a);
    compute_well(model, cache, &first);
    assert_same_bits(&first, &q4km);
    write_all(next, data_b, n_b);
    assert_int_equal(rename(next, model), 0);
    compute_well(model, cache, &replaced);
    assert_same_bits(&replaced, &mix);
    write_all(model, data_a, n_a); /* the same inode */
    compute_well(model, cache, &in_place);
    assert_same_bits(&in_place, &q4km);
    assert_string_not_equal(first.cache_path, replaced.cache_path);
    assert_string_not_equal(in_place.cache_path, replaced.cache_path);
    assert_int_equal(n_files(cache), 3);
    free(data_a);
    free(data_b);
}

/* ---- damage in the weights -------------------------------------------------------------------- */

static void test_verify(void **state)
{
    (void)state;
    result good;
    qw_err err;
    const char *cache = new_cache();
    compute_well(Q4KM, cache, &good);
    long size = (long)stat_of(good.cache_path).st_size, region = size - (long)good.packed_bytes;
    const long at[] = {region, region + 1, region + (long)good.packed_bytes / 2, size - 1};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        flip(good.cache_path, at[i], (int)i);
        if (verify(Q4KM, cache, &err) != QW_E_CORRUPT) fail_msg("a flipped bit at byte %ld is not found", at[i]);
        assert_non_null(strstr(err.text, good.cache_path));
        assert_non_null(strstr(err.text, "remove this file")); /* what to do */
        flip(good.cache_path, at[i], (int)i);
        assert_int_equal(verify(Q4KM, cache, &err), QW_OK);
    }
}

/* ---- no place to write ------------------------------------------------------------------------ */

static void test_no_place(void **state)
{
    (void)state;
    result good, r;
    compute_well(Q4KM, NULL, &good);
    /* the folder cannot be made: a file is in its way */
    const char *file = temp_path("a-file");
    write_all(file, "x", 1);
    char below[600];
    snprintf(below, sizeof below, "%s/packed", file);
    compute_well(Q4KM, below, &r);
    assert_false(r.mapped);
    assert_memory_equal(r.note, "packed weights are kept in memory: ", 35);
    assert_non_null(strstr(r.note, file));
    assert_same_bits(&good, &r);
    /* a folder stands where the file should be */
    const char *cache = new_cache();
    compute_well(Q4KM, cache, &r);
    assert_int_equal(unlink(r.cache_path), 0);
    assert_int_equal(mkdir(r.cache_path, 0700), 0);
    compute_well(Q4KM, cache, &r);
    assert_false(r.mapped);
    assert_non_null(strstr(r.note, "cannot rename"));
    assert_same_bits(&good, &r);
    assert_int_equal(n_files(cache), 1); /* the folder: no temporary file */
}

/* No room: the limit on a file's size stands for a full disk. */
static void test_no_room(void **state)
{
    (void)state;
    result good, r;
    struct rlimit before, small = {.rlim_cur = 100000};
    const char *cache = new_cache();
    compute_well(Q4KM, NULL, &good);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    qw_status status = compute(Q4KM, cache, 2, &r);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, QW_OK);
    assert_false(r.mapped);
    assert_non_null(strstr(r.note, "cannot reserve"));
    assert_same_bits(&good, &r);
    assert_int_equal(n_files(cache), 0);
    compute_well(Q4KM, cache, &r); /* and with room it works */
    assert_true(r.mapped);
}

/* ---- several processes ------------------------------------------------------------------------ */

/* What a killed process left is removed; what a living one is writing stays. */
static void test_orphans(void **state)
{
    (void)state;
    result r;
    char orphan[4200], busy[4200];
    const char *cache = new_cache();
    compute_well(Q4KM, cache, &r);
    snprintf(orphan, sizeof orphan, "%s.a1B2c3", r.cache_path);
    snprintf(busy, sizeof busy, "%s.x9Y8z7", r.cache_path);
    write_all(orphan, "half", 4);
    write_all(busy, "half", 4);
    assert_int_equal(unlink(r.cache_path), 0);
    int fd = open(busy, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    compute_well(Q4KM, cache, &r);
    assert_true(r.mapped);
    assert_int_equal(access(orphan, F_OK), -1);
    assert_int_equal(access(busy, F_OK), 0);
    assert_int_equal(n_files(cache), 2);
    close(fd);
}

/* Several build at the same moment: all are right, one whole file stays. */
static void test_at_once(void **state)
{
    (void)state;
    enum { N = 3, ROUNDS = 4 };
    result good, r;
    compute_well(Q4KM, NULL, &good);
    for (int round = 0; round < ROUNDS; round++) {
        int gate[2];
        pid_t pids[N];
        const char *cache = new_cache();
        assert_int_equal(pipe(gate), 0);
        fflush(stdout);
        for (int i = 0; i < N; i++) {
            pids[i] = fork();
            assert_true(pids[i] >= 0);
            if (pids[i] == 0) {
                char go;
                close(gate[1]);
                bool ok = read(gate[0], &go, 1) == 0; /* the gate opens for all when it is closed */
                ok = ok && compute(Q4KM, cache, 1 + i % 2, &r) == QW_OK && r.mapped && r.note[0] == 0;
                _exit(ok && memcmp(r.logits, good.logits, good.n_vocab * sizeof(float)) == 0 ? 0 : 1);
            }
        }
        close(gate[0]);
        close(gate[1]);
        for (int i = 0; i < N; i++) {
            int status;
            assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
            assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
        }
        assert_int_equal(n_files(cache), 1);
        compute_well(Q4KM, cache, &r);
        struct stat st = stat_of(r.cache_path);
        compute_well(Q4KM, cache, &r);
        assert_false(is_new(r.cache_path, &st));
        assert_same_bits(&good, &r);
    }
}

/* ---- the bound -------------------------------------------------------------------------------- */

static uint64_t folder_bytes(const char *dir)
{
    qw_side_file *files;
    size_t n;
    uint64_t bytes = 0;
    assert_int_equal(qw_side_list(dir, &files, &n, NULL), QW_OK);
    for (size_t i = 0; i < n; i++) bytes += files[i].bytes;
    free(files);
    return bytes;
}

static bool there(const result *r)
{
    return access(r->cache_path, F_OK) == 0;
}

static void set_age(const result *r, int64_t age_s)
{
    struct timespec times[2] = {{.tv_sec = time(NULL) - age_s}, {.tv_sec = time(NULL) - age_s}};
    assert_int_equal(utimensat(AT_FDCWD, r->cache_path, times, 0), 0);
}

/* QW_CACHE_MAX for `n` side files of this size, and a little. */
static void allow(const result *r, uint64_t n)
{
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)(n * (uint64_t)stat_of(r->cache_path).st_size + 1000));
    assert_int_equal(setenv("QW_CACHE_MAX", text, 1), 0);
}

/* Another process that has a model open with this cache folder until it is ended. */
static pid_t open_elsewhere(const char *model, const char *cache)
{
    int ready[2];
    char c = 0;
    assert_int_equal(pipe(ready), 0);
    fflush(stdout);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        qw_gguf *file;
        qw_net *net;
        qw_pool *pool;
        qw_weights *weights;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        bool ok = qw_gguf_open(model, &file, NULL) == QW_OK && qw_net_open(file, &net, NULL) == QW_OK &&
                  qw_pool_create(1, &pool, NULL) == QW_OK &&
                  qw_weights_create(net, cache, pool, &weights, NULL) == QW_OK && qw_weights_mapped(weights);
        if (!ok || write(ready[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    close(ready[0]);
    return pid;
}

static void end(pid_t pid)
{
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* One has room at a time: the other makes way, unless a process uses it. */
static void test_bound(void **state)
{
    (void)state;
    result q4km, mix, r;
    const char *cache = new_cache();
    compute_well(Q4KM, cache, &q4km);
    allow(&q4km, 1);
    compute_well(MIX, cache, &mix);
    assert_true(mix.mapped && there(&mix) && !there(&q4km));
    compute_well(Q4KM, cache, &r);
    assert_true(r.mapped && there(&q4km) && !there(&mix));
    assert_same_bits(&q4km, &r);

    pid_t pid = open_elsewhere(Q4KM, cache);
    compute_well(MIX, cache, &r);
    assert_false(r.mapped);
    assert_true(there(&q4km));
    assert_memory_equal(r.note, "packed weights are kept in memory: ", 35);
    assert_non_null(strstr(r.note, "raise QW_CACHE_MAX")); /* what to do */
    assert_same_bits(&mix, &r);
    assert_int_equal(n_files(cache), 1);
    end(pid);
    compute_well(MIX, cache, &r);
    assert_true(r.mapped && there(&mix) && !there(&q4km));

    setenv("QW_CACHE_MAX", "100000", 1); /* less than any needs: the one that is there goes on being used */
    compute_well(Q4KM, cache, &r);
    assert_false(r.mapped);
    assert_true(there(&mix));
    compute_well(MIX, cache, &r);
    assert_true(r.mapped);
    unsetenv("QW_CACHE_MAX");
}

static void test_bound_of_zero(void **state)
{
    (void)state;
    result good, r;
    const char *cache = new_cache();
    compute_well(Q4KM, NULL, &good);
    setenv("QW_CACHE_MAX", "0", 1);
    compute_well(Q4KM, cache, &r);
    assert_false(r.mapped);
    assert_string_equal(r.note, ""); /* it is what was asked for */
    assert_same_bits(&good, &r);
    assert_int_equal(access(cache, F_OK), -1);
    setenv("QW_CACHE_MAX", "lots", 1);
    compute_well(Q4KM, cache, &r);
    assert_false(r.mapped);
    assert_non_null(strstr(r.note, "QW_CACHE_MAX is \"lots\""));
    unsetenv("QW_CACHE_MAX");
}

/* Three copies of one model in room for two. */
typedef struct three {
    const char *cache;
    char model[3][600];
    result r[3];
} three;

static void copy_of(const char *from, const char *to)
{
    char *data;
    size_t n;
    read_all(from, &data, &n);
    write_all(to, data, n);
    free(data);
}

/* The first two have side files, used age_s[i] seconds ago. */
static void make_three(three *t, const int64_t age_s[2])
{
    static int n;
    t->cache = new_cache();
    for (int i = 0; i < 3; i++) {
        snprintf(t->model[i], sizeof t->model[i], "%s/three-%d-%d.gguf", temp_dir, n, i);
        copy_of(MIX, t->model[i]);
    }
    n++;
    for (int i = 0; i < 2; i++) {
        compute_well(t->model[i], t->cache, &t->r[i]);
        set_age(&t->r[i], age_s[i]);
    }
    allow(&t->r[0], 2);
}

/* The third comes; is the first still there? */
static bool third_leaves_first(three *t)
{
    compute_well(t->model[2], t->cache, &t->r[2]);
    assert_true(t->r[2].mapped);
    assert_int_equal(n_files(t->cache), 2);
    assert_true(there(&t->r[0]) != there(&t->r[1]));
    unsetenv("QW_CACHE_MAX");
    return there(&t->r[0]);
}

static void poke_version(const result *r, uint32_t version)
{
    int fd = open(r->cache_path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &version, sizeof version, VERSION_AT), sizeof version);
    close(fd);
}

static void test_who_goes(void **state)
{
    (void)state;
    enum { HOUR = 3600 };
    static const int64_t first_older[2] = {3 * HOUR, 2 * HOUR}, first_newer[2] = {2 * HOUR, 3 * HOUR};
    three *t = calloc(1, sizeof *t);
    result r;
    make_three(t, first_older);
    assert_false(third_leaves_first(t));
    make_three(t, first_newer);
    assert_true(third_leaves_first(t));
    make_three(t, first_older); /* using it counts */
    compute_well(t->model[0], t->cache, &r);
    assert_true(r.mapped);
    assert_in_range(stat_of(r.cache_path).st_mtim.tv_sec, time(NULL) - 60, time(NULL) + 1);
    assert_true(third_leaves_first(t));
    make_three(t, first_newer); /* a layout that this version does not read any more */
    poke_version(&t->r[0], 1);
    set_age(&t->r[0], HOUR);
    assert_false(third_leaves_first(t));
    make_three(t, first_newer); /* of a later version: somebody may have it */
    poke_version(&t->r[0], 1000);
    set_age(&t->r[0], HOUR);
    assert_true(third_leaves_first(t));
    make_three(t, first_newer); /* its model is gone */
    assert_int_equal(unlink(t->model[0]), 0);
    assert_false(third_leaves_first(t));
    make_three(t, first_newer); /* its model is another one */
    copy_of(Q4KM, t->model[0]);
    assert_false(third_leaves_first(t));
    make_three(t, first_newer); /* its model cannot be reached, which does not mean that it is gone */
    char aside[700];
    snprintf(aside, sizeof aside, "%s.aside", t->model[0]);
    assert_int_equal(rename(t->model[0], aside), 0);
    assert_int_equal(symlink(t->model[0], t->model[0]), 0);
    assert_true(third_leaves_first(t));
    make_three(t, first_newer); /* a damaged one makes way for itself */
    flip(t->r[0].cache_path, HEADER_BYTES - 1, 0);
    compute_well(t->model[0], t->cache, &r);
    assert_true(r.mapped && there(&t->r[1]));
    unsetenv("QW_CACHE_MAX");
    free(t);
}

/* Waits until a process stands before a lock that another one has. */
static void wait_for_blocked(pid_t pid)
{
    for (int i = 0; i < 10000; i++) {
        char line[256], want[32];
        bool blocked = false;
        FILE *f = fopen("/proc/locks", "re");
        assert_non_null(f);
        snprintf(want, sizeof want, " %d ", (int)pid);
        while (fgets(line, sizeof line, f)) blocked |= strstr(line, "-> FLOCK") && strstr(line, want);
        fclose(f);
        if (blocked) return;
        usleep(1000);
    }
    fail_msg("process %d waits for no lock", (int)pid);
}

/* Who waited for the folder while another process made the same side file takes that one. */
static void test_made_meanwhile(void **state)
{
    (void)state;
    result made, r;
    int lock, status;
    const char *cache = new_cache();
    char aside[4200];
    compute_well(Q4KM, cache, &made);
    snprintf(aside, sizeof aside, "%s/aside", cache);
    assert_int_equal(rename(made.cache_path, aside), 0);
    struct stat st = stat_of(aside);
    assert_int_equal(qw_side_lock(cache, &lock, NULL), QW_OK);
    fflush(stdout);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        qw_side_unlock(lock); /* our copy; the parent still has it */
        bool ok = compute(Q4KM, cache, 1, &r) == QW_OK && r.mapped;
        _exit(ok && memcmp(r.logits, made.logits, made.n_vocab * sizeof(float)) == 0 ? 0 : 1);
    }
    wait_for_blocked(pid);
    assert_int_equal(rename(aside, made.cache_path), 0);
    qw_side_unlock(lock);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_false(is_new(made.cache_path, &st));
}

/* Processes that start different models in room for one, while another removes what it may: all are right, what is
 * mapped stays readable, and the bound holds. */
static void test_bound_at_once(void **state)
{
    (void)state;
    enum { N = 3, ROUNDS = 12 };
    static const char *const models[2] = {Q4KM, MIX};
    result good[2], r;
    pid_t pids[N], remover;
    const char *cache = new_cache();
    for (int m = 0; m < 2; m++) compute_well(models[m], NULL, &good[m]);
    compute_well(Q4KM, cache, &r);
    allow(&r, 1);
    uint64_t most = (uint64_t)stat_of(r.cache_path).st_size + 1000;
    fflush(stdout);
    for (int i = 0; i < N; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] > 0) continue;
        bool ok = true;
        for (int round = 0; round < ROUNDS && ok; round++) {
            int m = (round + i) % 2;
            ok = compute(models[m], cache, 1, &r) == QW_OK && r.mapped == (r.note[0] == 0);
            ok = ok && memcmp(r.logits, good[m].logits, good[m].n_vocab * sizeof(float)) == 0;
        }
        _exit(ok ? 0 : 1);
    }
    remover = fork();
    assert_true(remover >= 0);
    if (remover == 0) prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (remover == 0) {
        int lock;
        qw_side_file *files;
        size_t n;
        uint64_t bytes = 0;
        if (qw_side_lock(cache, &lock, NULL) != QW_OK || qw_side_list(cache, &files, &n, NULL) != QW_OK) _exit(1);
        for (size_t i = 0; i < n; i++) bytes += files[i].bytes;
        if (bytes > most) _exit(1);
        for (size_t i = 0; i < n; i++) qw_side_remove_unused(cache, files[i].name);
        free(files);
        qw_side_unlock(lock);
        usleep(3000);
    }
    for (int i = 0; i < N; i++) {
        int status;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    assert_int_equal(waitpid(remover, NULL, WNOHANG), 0); /* it found nothing wrong so far */
    end(remover);
    compute_well(MIX, cache, &r);
    assert_true(r.mapped);
    assert_true(folder_bytes(cache) <= most);
    assert_int_equal(n_files(cache), 1);
    unsetenv("QW_CACHE_MAX");
}

/* ---- memory ----------------------------------------------------------------------------------- */

enum { BIG_HIDDEN = 256, BIG_FFN = 65536, BIG_MATRIX_BYTES = BIG_HIDDEN * BIG_FFN / 32 * 34 };

/* A model of one layer with three large Q8_0 matrices, 53 MB: packing goes through several pieces. */
static void make_big(const char *path)
{
    static const struct {
        const char *name;
        uint64_t k, rows; /* rows 0: float32 [k] */
    } tensors[] = {
        {"token_embd.weight", BIG_HIDDEN, 512},        {"blk.0.attn_norm.weight", BIG_HIDDEN, 0},
        {"blk.0.attn_q.weight", BIG_HIDDEN, 256},      {"blk.0.attn_q.bias", 256, 0},
        {"blk.0.attn_k.weight", BIG_HIDDEN, 64},       {"blk.0.attn_k.bias", 64, 0},
        {"blk.0.attn_v.weight", BIG_HIDDEN, 64},       {"blk.0.attn_v.bias", 64, 0},
        {"blk.0.attn_output.weight", 256, BIG_HIDDEN}, {"blk.0.ffn_norm.weight", BIG_HIDDEN, 0},
        {"blk.0.ffn_gate.weight", BIG_HIDDEN, BIG_FFN}, {"blk.0.ffn_up.weight", BIG_HIDDEN, BIG_FFN},
        {"blk.0.ffn_down.weight", BIG_FFN, BIG_HIDDEN}, {"output_norm.weight", BIG_HIDDEN, 0},
    };
    enum { N = sizeof tensors / sizeof *tensors };
    gw w = {0};
    uint64_t offset = 0;
    gw_header(&w, 3, N, 9);
    gw_kv_str(&w, "general.architecture", "qwen2");
    gw_kv_u32(&w, "qwen2.block_count", 1);
    gw_kv_u32(&w, "qwen2.context_length", 128);
    gw_kv_u32(&w, "qwen2.embedding_length", BIG_HIDDEN);
    gw_kv_u32(&w, "qwen2.feed_forward_length", BIG_FFN);
    gw_kv_u32(&w, "qwen2.attention.head_count", 4);
    gw_kv_u32(&w, "qwen2.attention.head_count_kv", 1);
    gw_kv_f32(&w, "qwen2.rope.freq_base", 1e6f);
    gw_kv_f32(&w, "qwen2.attention.layer_norm_rms_epsilon", 1e-6f);
    for (size_t i = 0; i < N; i++) {
        uint32_t type = tensors[i].rows ? QW_TYPE_Q8_0 : QW_TYPE_F32;
        gw_info(&w, tensors[i].name, tensors[i].k, tensors[i].rows, type, offset);
        offset += tensors[i].rows ? tensors[i].rows * tensors[i].k / 32 * 34 : tensors[i].k * 4;
        offset = (offset + 31) / 32 * 32;
    }
    gw_pad(&w, 32);
    gw_save(&w, path);
    gw_free(&w);
    FILE *f = fopen(path, "ab");
    assert_non_null(f);
    uint32_t words[1 << 14], x = 1;
    for (uint64_t at = 0; at < offset; at += sizeof words) {
        for (size_t i = 0; i < sizeof words / sizeof *words; i++) words[i] = x = x * 1664525 + 1013904223;
        size_t n = offset - at < sizeof words ? (size_t)(offset - at) : sizeof words;
        assert_int_equal(fwrite(words, 1, n, f), n);
    }
    assert_int_equal(fclose(f), 0);
}

/* Most memory that this process ever had, bytes. */
static uint64_t peak_bytes(void)
{
    char line[256];
    unsigned long long kb = 0;
    FILE *f = fopen("/proc/self/status", "re");
    while (f && fgets(line, sizeof line, f)) sscanf(line, "VmHWM: %llu", &kb);
    if (f) fclose(f);
    return kb << 10;
}

static void check_packed(void *ctx, qw_weight *w)
{
    bool *ok = ctx;
    uint8_t *group = NULL;
    qw_pack pack = qw_pack_of(w->type);
    size_t group_bytes = qw_pack_group_bytes(pack, w->k);
    *ok = *ok && w->packed && qw_alloc_aligned(&group, group_bytes, "group", NULL) == QW_OK;
    for (size_t row = 0; *ok && row < w->rows; row += QW_GROUP_ROWS) {
        qw_pack_group(pack, w->data + row * w->row_bytes, w->row_bytes, QW_GROUP_ROWS, w->k, group);
        const uint8_t *got = (const uint8_t *)w->packed + row / QW_GROUP_ROWS * group_bytes;
        *ok = memcmp(got, group, group_bytes) == 0;
    }
    qw_free_aligned(group, group_bytes);
}

/* Packs the big model in a process of its own. Its memory must not grow by more than share of the packed bytes, and
 * every group must be where it belongs, also where one lies across two pieces. */
static void assert_peak(const char *model, const char *cache, double share)
{
    fflush(stdout);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        qw_gguf *file;
        qw_net *net;
        qw_pool *pool;
        qw_weights *weights;
        if (qw_gguf_open(model, &file, NULL) != QW_OK || qw_net_open(file, &net, NULL) != QW_OK ||
            qw_pool_create(2, &pool, NULL) != QW_OK)
            _exit(1);
        uint64_t before = peak_bytes();
        bool ok = before > 0 && qw_weights_create(net, cache, pool, &weights, NULL) == QW_OK &&
                  qw_weights_mapped(weights) == (cache != NULL);
        double grown = (double)(peak_bytes() - before), packed = (double)qw_weights_packed_bytes(net);
        if (grown > share * packed) {
            printf("memory grew by %.1f MB for %.1f MB of packed weights\n", grown / 1e6, packed / 1e6);
            ok = false;
        }
        qw_net_each_weight(net, check_packed, &ok);
        fflush(stdout);
        _exit(ok ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* The model file and its packed copy are never in our memory together: a side file takes a buffer, no more. */
static void test_peak(void **state)
{
    (void)state;
    const char *model = temp_path("big.gguf"), *cache = new_cache();
    make_big(model);
    assert_peak(model, NULL, 1.5);
    assert_peak(model, cache, 0.75);
    assert_peak(model, cache, 0.1); /* made: a start reads nothing but its header */
}

/* A side file that is replaced while it is mapped does not disturb who has it; one that shrinks is noticed. */
static void test_shrinks(void **state)
{
    (void)state;
    qw_gguf *file;
    qw_net *net;
    qw_weights *weights;
    qw_pool *pool;
    char path[4096];
    const char *cache = new_cache();
    assert_int_equal(qw_gguf_open(Q4KM, &file, NULL), QW_OK);
    assert_int_equal(qw_net_open(file, &net, NULL), QW_OK);
    assert_int_equal(qw_pool_create(1, &pool, NULL), QW_OK);
    assert_int_equal(qw_weights_create(net, cache, pool, &weights, NULL), QW_OK);
    qw_weights_cache_path(file, cache, path, sizeof path);
    assert_false(qw_weights_failed(weights));
    char *data;
    size_t n;
    read_all(path, &data, &n);
    assert_int_equal(qw_file_write(path, data, n / 2, NULL), QW_OK); /* another file under the name */
    assert_false(qw_weights_failed(weights));
    qw_weights_destroy(weights);
    assert_int_equal(qw_weights_create(net, cache, pool, &weights, NULL), QW_OK);
    assert_true(qw_weights_mapped(weights));
    assert_int_equal(truncate(path, (off_t)n / 2), 0);
    assert_true(qw_weights_failed(weights));
    free(data);
    qw_weights_destroy(weights);
    qw_pool_destroy(pool);
    qw_net_close(net);
    qw_gguf_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_made_once),
        cmocka_unit_test(test_threads),          cmocka_unit_test(test_damaged_header),
        cmocka_unit_test(test_cut_or_longer),    cmocka_unit_test(test_of_another_model),
        cmocka_unit_test(test_model_replaced),   cmocka_unit_test(test_verify),
        cmocka_unit_test(test_no_place),         cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_orphans),          cmocka_unit_test(test_at_once),
        cmocka_unit_test(test_shrinks),          cmocka_unit_test(test_bound),
        cmocka_unit_test(test_bound_of_zero),    cmocka_unit_test(test_who_goes),
        cmocka_unit_test(test_made_meanwhile),   cmocka_unit_test(test_bound_at_once),
        cmocka_unit_test(test_peak),
    };
    unsetenv("QW_CACHE_MAX"); /* tests set it */
    return cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
}
