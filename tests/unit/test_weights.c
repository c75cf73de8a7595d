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
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "model/runtime.h"
#include "model/weights.h"
#include "temp_dir.h"

#define Q4KM "tests/fixtures/tiny-q4km.gguf"
#define MIX "tests/fixtures/tiny-mix.gguf"
#define F32 "tests/fixtures/tiny-f32.gguf"

enum { N_TOKENS = 12, N_LOGITS_MAX = 1024, HEADER_BYTES = 208, PAGE = 4096 };

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
    static const char *const models[] = {Q4KM, MIX};
    for (size_t m = 0; m < 2; m++) {
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

static void test_nothing_to_pack(void **state)
{
    (void)state;
    result memory, cached;
    const char *cache = new_cache();
    compute_well(F32, NULL, &memory);
    compute_well(F32, cache, &cached);
    assert_int_equal(memory.packed_bytes, 0);
    assert_false(cached.mapped);
    assert_string_equal(cached.note, "");
    assert_int_equal(n_files(cache), 0);
    assert_same_bits(&memory, &cached);
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
    for (long at = 0; at < HEADER_BYTES; at++) {
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
        cmocka_unit_test(test_made_once),        cmocka_unit_test(test_nothing_to_pack),
        cmocka_unit_test(test_threads),          cmocka_unit_test(test_damaged_header),
        cmocka_unit_test(test_cut_or_longer),    cmocka_unit_test(test_of_another_model),
        cmocka_unit_test(test_model_replaced),   cmocka_unit_test(test_verify),
        cmocka_unit_test(test_no_place),         cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_orphans),          cmocka_unit_test(test_at_once),
        cmocka_unit_test(test_shrinks),
    };
    return cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
}
