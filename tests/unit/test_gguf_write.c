/* test_gguf_write.c: files that qw makes: read back, interrupted, refused, killed. */
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
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "base/new_file.h"
#include "formats/gguf.h"
#include "formats/gguf_write.h"
#include "temp_dir.h"

/* Files in the folder, finished or not. */
static size_t n_files(void)
{
    size_t n = 0;
    DIR *d = opendir(temp_dir);
    assert_non_null(d);
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Rows whose bytes say where they belong, and what the writer asked for. */
typedef struct rows {
    const size_t *row_bytes; /* of each tensor */
    size_t n_calls, n_rows_most;
    size_t fail_at;          /* call that fails, counted from 1; 0: none */
    bool killed;             /* instead of failing, the process ends */
} rows;

static uint8_t byte_of(size_t tensor, uint64_t row, size_t i)
{
    return (uint8_t)(tensor * 31 + row * 7 + i);
}

static qw_status make_rows(void *ctx, size_t tensor, uint64_t row0, size_t n, uint8_t *out, qw_err *err)
{
    rows *r = ctx;
    size_t bytes = r->row_bytes[tensor];
    if (++r->n_calls == r->fail_at && r->killed) kill(getpid(), SIGKILL);
    if (r->n_calls == r->fail_at) return qw_fail(err, QW_E_CORRUPT, "the rows are gone");
    if (n > r->n_rows_most) r->n_rows_most = n;
    for (size_t k = 0; k < n; k++)
        for (size_t i = 0; i < bytes; i++) out[k * bytes + i] = byte_of(tensor, row0 + k, i);
    return QW_OK;
}

static void put_keys(qw_gguf_writer *w)
{
    const int32_t ints[] = {1, -2, INT32_MAX};
    const bool truths[] = {true, false, true};
    const qw_text texts[] = {{"one", 3}, {"", 0}, {"three\n\xc3\xa4", 8}};
    assert_int_equal(qw_gguf_put_str(w, "general.architecture", (qw_text){"qwen2", 5}, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_u32(w, "t.u32", 4000000000u, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_u64(w, "t.u64", UINT64_MAX, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_f32(w, "t.f32", -1.5f, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_bool(w, "t.bool", true, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_i32s(w, "t.i32s", ints, 3, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_bools(w, "t.bools", truths, 3, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_strs(w, "t.strs", texts, 3, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_strs(w, "t.none", NULL, 0, NULL), QW_OK);
}

/* "a" Q8_0 [3][64], "b" F32 [5], "c" BF16 [2][3][4]: none ends on the alignment. */
static const size_t small_bytes[] = {68, 20, 8};
enum { SMALL_CALLS = 3 };

static void put_tensors(qw_gguf_writer *w)
{
    assert_int_equal(qw_gguf_put_tensor(w, "a", QW_TYPE_Q8_0, 2, (uint64_t[]){64, 3}, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_tensor(w, "b", QW_TYPE_F32, 1, (uint64_t[]){5}, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_tensor(w, "c", QW_TYPE_BF16, 3, (uint64_t[]){4, 3, 2}, NULL), QW_OK);
}

static qw_gguf_writer *small(void)
{
    qw_gguf_writer *w = NULL;
    assert_int_equal(qw_gguf_writer_create(&w, NULL), QW_OK);
    put_keys(w);
    put_tensors(w);
    return w;
}

static void check_keys(const qw_gguf *g)
{
    uint64_t u = 0;
    double f = 0;
    bool b = false;
    qw_text s;
    qw_gguf_array a;
    assert_int_equal(qw_gguf_n_kv(g), 9);
    assert_int_equal(qw_gguf_get_str(g, "general.architecture", &s, NULL), QW_OK);
    assert_true(s.n == 5 && memcmp(s.s, "qwen2", 5) == 0);
    assert_int_equal(qw_gguf_get_u64(g, "t.u32", &u, NULL), QW_OK);
    assert_int_equal(u, 4000000000u);
    assert_int_equal(qw_gguf_get_u64(g, "t.u64", &u, NULL), QW_OK);
    assert_true(u == UINT64_MAX);
    assert_int_equal(qw_gguf_get_f64(g, "t.f32", &f, NULL), QW_OK);
    assert_true(f == -1.5);
    assert_int_equal(qw_gguf_get_bool(g, "t.bool", &b, NULL), QW_OK);
    assert_true(b);
    assert_int_equal(qw_gguf_get_array(g, "t.i32s", QW_GGUF_I32, &a, NULL), QW_OK);
    assert_true(a.n == 3 && qw_gguf_array_int(&a, 1) == -2 && qw_gguf_array_int(&a, 2) == INT32_MAX);
    assert_int_equal(qw_gguf_get_array(g, "t.bools", QW_GGUF_BOOL, &a, NULL), QW_OK);
    assert_true(a.n == 3 && qw_gguf_array_int(&a, 0) == 1 && qw_gguf_array_int(&a, 1) == 0);
    assert_int_equal(qw_gguf_get_array(g, "t.strs", QW_GGUF_STRING, &a, NULL), QW_OK);
    s = qw_gguf_array_str(&a, 2);
    assert_true(a.n == 3 && s.n == 8 && memcmp(s.s, "three\n\xc3\xa4", 8) == 0 && qw_gguf_array_str(&a, 1).n == 0);
    assert_int_equal(qw_gguf_get_array(g, "t.none", QW_GGUF_STRING, &a, NULL), QW_OK);
    assert_int_equal(a.n, 0);
}

static void check_tensors(const qw_gguf *g)
{
    const char *const names[] = {"a", "b", "c"};
    const qw_type types[] = {QW_TYPE_Q8_0, QW_TYPE_F32, QW_TYPE_BF16};
    const uint64_t ne[][4] = {{64, 3, 1, 1}, {5, 1, 1, 1}, {4, 3, 2, 1}};
    assert_int_equal(qw_gguf_n_tensors(g), 3);
    for (size_t i = 0; i < 3; i++) {
        const qw_tensor *t = qw_gguf_tensor(g, i);
        assert_string_equal(t->name, names[i]);
        assert_int_equal(t->type, types[i]);
        assert_memory_equal(t->ne, ne[i], sizeof ne[i]);
        for (size_t k = 0; k < t->bytes; k++)
            assert_int_equal(t->data[k], byte_of(i, k / small_bytes[i], k % small_bytes[i]));
    }
}

static void test_read_back(void **state)
{
    (void)state;
    qw_err err;
    qw_gguf *g = NULL;
    rows r = {.row_bytes = small_bytes};
    qw_gguf_writer *w = small();
    qw_gguf_write_options o = {.rows = make_rows, .rows_ctx = &r};
    uint64_t bytes = qw_gguf_writer_bytes(w);
    assert_int_equal(qw_gguf_write(w, temp_path("a.gguf"), &o, &err), QW_OK);
    assert_int_equal(r.n_calls, SMALL_CALLS);
    assert_int_equal(qw_gguf_open(temp_path("a.gguf"), &g, &err), QW_OK);
    assert_int_equal(qw_gguf_version(g), 3);
    assert_int_equal(qw_gguf_bytes(g), bytes);
    assert_int_equal(bytes % 32, 0);
    check_keys(g);
    check_tensors(g);
    qw_gguf_close(g);
    qw_gguf_writer_destroy(w);
}

/* Every key of a file copied is the same header again. */
static void test_copy(void **state)
{
    (void)state;
    qw_gguf *g = NULL;
    qw_gguf_writer *w = small(), *copy = NULL;
    const uint8_t *a, *b;
    size_t na, nb;
    rows r = {.row_bytes = small_bytes};
    qw_gguf_write_options o = {.rows = make_rows, .rows_ctx = &r};
    assert_int_equal(qw_gguf_write(w, temp_path("copy.gguf"), &o, NULL), QW_OK);
    assert_int_equal(qw_gguf_open(temp_path("copy.gguf"), &g, NULL), QW_OK);
    assert_int_equal(qw_gguf_writer_create(&copy, NULL), QW_OK);
    for (size_t i = 0; i < qw_gguf_n_kv(g); i++) assert_int_equal(qw_gguf_put_copy(copy, g, i, NULL), QW_OK);
    put_tensors(copy);
    assert_int_equal(qw_gguf_writer_header(w, &a, &na, NULL), QW_OK);
    assert_int_equal(qw_gguf_writer_header(copy, &b, &nb, NULL), QW_OK);
    assert_int_equal(na, nb);
    assert_memory_equal(a, b, na);
    qw_gguf_writer_destroy(copy);
    qw_gguf_writer_destroy(w);
    qw_gguf_close(g);
}

/* A tensor comes in pieces of at most 16 MiB, and a row that is longer alone. */
static void test_pieces(void **state)
{
    (void)state;
    const size_t bytes[] = {4 << 20, 20 << 20};
    rows r = {.row_bytes = bytes};
    qw_gguf *g = NULL;
    qw_gguf_writer *w = NULL;
    qw_gguf_write_options o = {.rows = make_rows, .rows_ctx = &r};
    assert_int_equal(qw_gguf_writer_create(&w, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_tensor(w, "a", QW_TYPE_F32, 2, (uint64_t[]){1 << 20, 9}, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_tensor(w, "b", QW_TYPE_F32, 2, (uint64_t[]){5 << 20, 2}, NULL), QW_OK);
    assert_int_equal(qw_gguf_write(w, temp_path("pieces.gguf"), &o, NULL), QW_OK);
    assert_int_equal(r.n_calls, 3 + 2);
    assert_int_equal(r.n_rows_most, 4);
    assert_int_equal(qw_gguf_open(temp_path("pieces.gguf"), &g, NULL), QW_OK);
    for (size_t i = 0; i < 2; i++) {
        const qw_tensor *t = qw_gguf_tensor(g, i);
        for (size_t k = 0; k < t->bytes; k += 4093)
            assert_int_equal(t->data[k], byte_of(i, k / bytes[i], k % bytes[i]));
    }
    qw_gguf_close(g);
    qw_gguf_writer_destroy(w);
    assert_int_equal(unlink(temp_path("pieces.gguf")), 0);
}

typedef struct watch {
    uint64_t last, total;
    size_t n_calls, stop_at;
} watch;

static bool on_progress(void *user, uint64_t done, uint64_t total)
{
    watch *p = user;
    assert_true(done >= p->last && done <= total);
    p->last = done;
    p->total = total;
    return ++p->n_calls != p->stop_at;
}

/* Stopped before any piece, and at the very end, or with rows that cannot be had: no file, and no other name. */
static void test_nothing_stays(void **state)
{
    (void)state;
    qw_err err;
    size_t before = n_files();
    qw_gguf_writer *w = small();
    watch all = {0};
    rows r = {.row_bytes = small_bytes};
    qw_gguf_write_options o = {.rows = make_rows, .rows_ctx = &r, .progress = on_progress, .user = &all};
    assert_int_equal(qw_gguf_write(w, temp_path("whole.gguf"), &o, &err), QW_OK);
    assert_int_equal(all.n_calls, SMALL_CALLS + 1);
    assert_int_equal(all.last, all.total);
    assert_int_equal(unlink(temp_path("whole.gguf")), 0);
    for (size_t stop = 1; stop <= all.n_calls; stop++) {
        watch p = {.stop_at = stop};
        o.user = &p;
        assert_int_equal(qw_gguf_write(w, temp_path("stopped.gguf"), &o, &err), QW_E_CANCELLED);
        assert_non_null(strstr(err.text, "stopped.gguf: interrupted, nothing was written"));
        assert_int_equal(n_files(), before);
    }
    for (size_t call = 1; call <= SMALL_CALLS; call++) {
        r = (rows){.row_bytes = small_bytes, .fail_at = call};
        o.progress = NULL;
        assert_int_equal(qw_gguf_write(w, temp_path("failed.gguf"), &o, &err), QW_E_CORRUPT);
        assert_string_equal(err.text, "the rows are gone");
        assert_int_equal(n_files(), before);
    }
    qw_gguf_writer_destroy(w);
}

/* Where files without a name exist, a killed process leaves none. */
static void test_killed(void **state)
{
    (void)state;
    size_t before = n_files();
    qw_new_file probe;
    assert_int_equal(qw_new_file_open(&probe, temp_path("probe"), NULL), QW_OK);
    bool unnamed = probe.temp[0] == '\0';
    qw_new_file_close(&probe);
    if (!unnamed) skip();
    qw_gguf_writer *w = small();
    pid_t pid = fork();
    if (pid == 0) {
        rows r = {.row_bytes = small_bytes, .fail_at = 2, .killed = true};
        qw_gguf_write_options o = {.rows = make_rows, .rows_ctx = &r};
        _exit(qw_gguf_write(w, temp_path("killed.gguf"), &o, NULL) == QW_OK ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_int_equal(n_files(), before);
    qw_gguf_writer_destroy(w);
}

static void test_names(void **state)
{
    (void)state;
    qw_err err;
    char *data = NULL;
    size_t n = 0;
    struct stat st;
    qw_gguf_writer *w = small();
    rows r = {.row_bytes = small_bytes};
    qw_gguf_write_options o = {.rows = make_rows, .rows_ctx = &r};
    const char *path = temp_path("taken.gguf");
    assert_int_equal(qw_file_write(path, "old", 3, NULL), QW_OK);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(qw_gguf_write(w, path, &o, &err), QW_E_ARG);
    assert_non_null(strstr(err.text, "taken.gguf: exists already"));
    assert_int_equal(qw_file_read(path, 3, &data, &n, NULL), QW_OK);
    assert_string_equal(data, "old");
    free(data);
    o.replace = true;
    assert_int_equal(qw_gguf_write(w, path, &o, &err), QW_OK);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal((uint64_t)st.st_size, qw_gguf_writer_bytes(w));
    assert_int_equal(st.st_mode & 0777, 0640);
    assert_int_equal(qw_gguf_write(w, temp_path("none/x.gguf"), &o, &err), QW_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "none/x.gguf: cannot be written: "));
    qw_gguf_writer_destroy(w);
}

/* A disk or a limit that is too small: an error with the name, and nothing stays. */
static void test_no_room(void **state)
{
    (void)state;
    size_t before = n_files();
    qw_gguf_writer *w = small();
    pid_t pid = fork();
    if (pid == 0) {
        qw_err err;
        rows r = {.row_bytes = small_bytes};
        qw_gguf_write_options o = {.rows = make_rows, .rows_ctx = &r};
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){.rlim_cur = 256, .rlim_max = 256});
        qw_status status = qw_gguf_write(w, temp_path("large.gguf"), &o, &err);
        _exit(status == QW_E_IO && strstr(err.text, "large.gguf: cannot ") != NULL ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(n_files(), before);
    qw_gguf_writer_destroy(w);
}

static void test_limits(void **state)
{
    (void)state;
    qw_err err;
    qw_gguf_writer *w = NULL;
    char name[65];
    memset(name, 'n', sizeof name);
    name[64] = '\0';
    assert_int_equal(qw_gguf_writer_create(&w, NULL), QW_OK);
    assert_int_equal(qw_gguf_put_tensor(w, name, QW_TYPE_F32, 1, (uint64_t[]){1}, &err), QW_E_LIMIT);
    assert_non_null(strstr(err.text, "the name has 64 bytes, the limit is 63"));
    assert_int_equal(qw_gguf_put_tensor(w, "a", QW_TYPE_F32, 4, (uint64_t[]){1, 1u << 31, 1u << 31, 4}, &err), QW_E_LIMIT);
    assert_string_equal(err.text, "tensor 'a': the file would have more than 2^63 bytes");
    assert_int_equal(qw_gguf_put_bools(w, "k", NULL, (size_t)65 << 20, &err), QW_E_LIMIT);
    assert_string_equal(err.text, "key 'k': an array of 68157440 elements, the limit is 67108864");
    char *text = calloc(1, (16 << 20) + 1);
    assert_non_null(text);
    assert_int_equal(qw_gguf_put_str(w, "k", (qw_text){text, (16 << 20) + 1}, &err), QW_E_LIMIT);
    assert_non_null(strstr(err.text, "a string of 16777217 bytes, the limit is 16777216"));
    free(text);
    qw_gguf_writer_destroy(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read_back), cmocka_unit_test(test_copy),   cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_nothing_stays), cmocka_unit_test(test_killed), cmocka_unit_test(test_names),
        cmocka_unit_test(test_no_room),   cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
}
