/* test_base.c: errors, memory, buffers, cursor, files, mappings and their guard, pool, cores, UTF-8, siphash. */
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
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/cpu.h"
#include "base/cpu_count.h"
#include "base/cursor.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/siphash.h"
#include "base/utf8.h"
#include "temp_dir.h"

/* Under a sanitizer: a request that is too large fails, as it does without. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}
const char *__tsan_default_options(void);
const char *__tsan_default_options(void)
{
    return "allocator_may_return_null=1";
}

static void put_file(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void put_text(const char *path, const char *text)
{
    put_file(path, text, strlen(text));
}

/* ---- siphash ---------------------------------------------------------------------------------- */

/* The vectors of the paper's reference implementation: key 00..0f, input 00, 01, ... */
static void test_siphash(void **state)
{
    (void)state;
    const qw_sip_key key = {{0x0706050403020100u, 0x0f0e0d0c0b0a0908u}};
    const uint64_t seed = 0x0706050403020100u;
    const uint8_t in[] = {8, 9, 10, 11, 12, 13, 14};
    assert_true(qw_siphash(&key, seed, in, 7) == 0xa129ca6149be45e5u);
    assert_true(qw_siphash(&key, seed, in, 0) == 0x93f5f5799a932462u);
}

/* ---- status ----------------------------------------------------------------------------------- */

static void test_fail_cleans_text(void **state)
{
    (void)state;
    qw_err err;
    assert_int_equal(qw_fail(&err, QW_E_FORMAT, "a\tb\nc\x1b[31m\x7f \xc2\x9b|\xff|\xc3\xa9|\xe4\xbd\xa0\n"),
                     QW_E_FORMAT);
    assert_string_equal(err.text, "a b c?[31m? ?|?|\xc3\xa9|\xe4\xbd\xa0");
    assert_int_equal(err.status, QW_E_FORMAT);
    assert_int_equal(qw_fail(NULL, QW_E_BUSY, "nobody listens"), QW_E_BUSY);
}

static void test_fail_cuts_at_a_character(void **state)
{
    (void)state;
    char text[3 * QW_ERR_TEXT_MAX + 1];
    for (size_t i = 0; i < QW_ERR_TEXT_MAX; i++) memcpy(text + 3 * i, "\xe4\xbd\xa0", 3);
    text[sizeof text - 1] = '\0';
    for (int shift = 0; shift < 3; shift++) {
        qw_err err;
        qw_fail(&err, QW_E_LIMIT, "%.*s%s", shift, "xy", text);
        size_t n = strlen(err.text);
        assert_true(n < QW_ERR_TEXT_MAX && n > QW_ERR_TEXT_MAX - 8);
        /* The formatting buffer may end inside a character; then its bytes show as '?', never raw. */
        assert_true(qw_utf8_valid(err.text, n));
    }
}

static void test_errno_and_prefix(void **state)
{
    (void)state;
    qw_err err;
    errno = ENOENT;
    assert_int_equal(qw_fail_errno(&err, "%s", "file"), QW_E_NOT_FOUND);
    assert_string_equal(err.text, "file: No such file or directory");
    errno = EACCES;
    assert_int_equal(qw_fail_errno(&err, "file"), QW_E_IO);
    assert_int_equal(qw_err_prefix(&err, "part %d", 2), QW_E_IO);
    assert_string_equal(err.text, "part 2: file: Permission denied");
    qw_fail(&err, QW_E_ARG, "again: %s", err.text); /* an argument inside the message itself */
    assert_string_equal(err.text, "again: part 2: file: Permission denied");
}

static void test_status_names_differ(void **state)
{
    (void)state;
    for (int a = QW_OK; a <= QW_E_INTERNAL; a++) {
        assert_string_not_equal(qw_status_name((qw_status)a), "unknown");
        for (int b = QW_OK; b < a; b++)
            assert_string_not_equal(qw_status_name((qw_status)a), qw_status_name((qw_status)b));
    }
    assert_string_equal(qw_status_name((qw_status)(QW_E_INTERNAL + 1)), "unknown");
}

/* ---- memory ----------------------------------------------------------------------------------- */

static void test_alloc(void **state)
{
    (void)state;
    qw_err err;
    uint32_t *p = NULL;
    assert_int_equal(qw_alloc(&p, 10, sizeof *p, "numbers", &err), QW_OK);
    for (int i = 0; i < 10; i++) {
        assert_int_equal(p[i], 0);
        p[i] = (uint32_t)i;
    }
    assert_int_equal(qw_grow(&p, 10, 1000, sizeof *p, "numbers", &err), QW_OK);
    for (int i = 0; i < 1000; i++) assert_int_equal(p[i], i < 10 ? i : 0);
    uint32_t *before = p;
    assert_int_equal(qw_grow(&p, 1000, SIZE_MAX / 2, sizeof *p, "numbers", &err), QW_E_MEMORY);
    assert_non_null(strstr(err.text, "out of memory: numbers needs"));
    assert_ptr_equal(p, before);
    free(p);
    assert_int_equal(qw_alloc(&p, SIZE_MAX / 2, 4, "numbers", &err), QW_E_MEMORY);
    assert_int_equal(qw_alloc(&p, (size_t)1 << 62, 1, "numbers", &err), QW_E_MEMORY);
    assert_string_equal(err.text, "out of memory: numbers needs 4611686018427387904 bytes");
    assert_int_equal(qw_alloc(&p, 0, 4, "nothing", &err), QW_OK);
    assert_non_null(p);
    free(p);
    char *s = NULL;
    assert_int_equal(qw_strndup(&s, "hello", 4, &err), QW_OK);
    assert_string_equal(s, "hell");
    free(s);
}

static void test_alloc_aligned(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 63, 4096, (4u << 20) - 1, 4u << 20, (4u << 20) + 1, 9000001};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint8_t *p = NULL;
        assert_int_equal(qw_alloc_aligned(&p, sizes[i], "a block", NULL), QW_OK);
        assert_int_equal((uintptr_t)p % (sizes[i] >= 4u << 20 ? 2u << 20 : 64u), 0);
        for (size_t k = 0; k < sizes[i]; k += 511) {
            assert_int_equal(p[k], 0);
            p[k] = 1;
        }
        if (sizes[i] > 0) p[sizes[i] - 1] = 1;
        qw_free_aligned(p, sizes[i]);
    }
    qw_err err;
    uint8_t *p = NULL;
    assert_int_equal(qw_alloc_aligned(&p, SIZE_MAX - 4096, "the scratch", &err), QW_E_MEMORY);
    assert_non_null(strstr(err.text, "out of memory: the scratch needs"));
    qw_free_aligned(NULL, 8u << 20);
}

/* ---- buffer and cursor ------------------------------------------------------------------------ */

static void test_buf(void **state)
{
    (void)state;
    qw_err err;
    qw_buf b;
    qw_buf_init(&b, 100, "the reply");
    assert_string_equal(qw_buf_str(&b), "");
    assert_int_equal(qw_buf_add(&b, "ab", 2, &err), QW_OK);
    assert_int_equal(qw_buf_add_str(&b, "cd", &err), QW_OK);
    assert_int_equal(qw_buf_printf(&b, &err, "%d-%s", 7, "x"), QW_OK);
    assert_string_equal(qw_buf_str(&b), "abcd7-x");
    assert_int_equal(qw_buf_printf(&b, &err, "%94s", "y"), QW_E_LIMIT);
    assert_string_equal(err.text, "the reply: more than 100 bytes");
    assert_string_equal(qw_buf_str(&b), "abcd7-x");
    assert_int_equal(qw_buf_printf(&b, &err, "%93s", "y"), QW_OK);
    assert_int_equal(b.n, 100);
    assert_int_equal(qw_buf_add(&b, "z", 1, &err), QW_E_LIMIT);
    assert_int_equal(qw_buf_add(&b, NULL, 0, &err), QW_OK);
    assert_int_equal(qw_buf_add(&b, "z", SIZE_MAX, &err), QW_E_LIMIT);
    qw_buf_clear(&b);
    assert_string_equal(qw_buf_str(&b), "");
    qw_buf_free(&b);
    assert_int_equal(qw_buf_add_str(&b, "again", &err), QW_OK);
    assert_string_equal(qw_buf_str(&b), "again");
    qw_buf_free(&b);
}

static void test_cursor(void **state)
{
    (void)state;
    static const uint8_t bytes[] = {1, 0x34, 0x12, 0x78, 0x56, 0x34, 0x92, 8, 7, 6, 5, 4, 3, 2, 0x81, 99};
    qw_cursor c = {.data = bytes, .n = sizeof bytes, .what = "x.bin"};
    uint8_t u8;
    uint16_t u16;
    uint32_t u32;
    uint64_t u64;
    const uint8_t *p;
    qw_err err;
    assert_int_equal(qw_cursor_u8(&c, "a", &u8, &err), QW_OK);
    assert_int_equal(qw_cursor_u16(&c, "b", &u16, &err), QW_OK);
    assert_int_equal(qw_cursor_u32(&c, "c", &u32, &err), QW_OK);
    assert_int_equal(qw_cursor_u64(&c, "d", &u64, &err), QW_OK);
    assert_int_equal(u8, 1);
    assert_int_equal(u16, 0x1234);
    assert_int_equal(u32, 0x92345678);
    assert_true(u64 == 0x8102030405060708);
    assert_int_equal(qw_cursor_remaining(&c), 1);
    assert_int_equal(qw_cursor_u16(&c, "e", &u16, &err), QW_E_FORMAT);
    assert_string_equal(err.text, "x.bin: ends inside e: 2 bytes are needed at byte 15, 1 remain");
    assert_int_equal(qw_cursor_take(&c, SIZE_MAX, "f", &p, &err), QW_E_FORMAT);
    assert_int_equal(qw_cursor_take(&c, 1, "g", &p, &err), QW_OK);
    assert_int_equal(*p, 99);
    assert_int_equal(qw_cursor_take(&c, 0, "h", &p, &err), QW_OK);
    assert_int_equal(qw_cursor_u8(&c, "i", &u8, &err), QW_E_FORMAT);
}

/* ---- files ------------------------------------------------------------------------------------ */

static void test_file_write_read(void **state)
{
    (void)state;
    qw_err err;
    char *data = NULL;
    size_t n = 0;
    const char *path = temp_path("a.txt");
    assert_int_equal(qw_file_write(path, "one", 3, &err), QW_OK);
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(qw_file_write(path, "two\0x", 5, &err), QW_OK);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    assert_int_equal(qw_file_read(path, 5, &data, &n, &err), QW_OK);
    assert_int_equal(n, 5);
    assert_memory_equal(data, "two\0x", 6); /* and the NUL after the end */
    free(data);
    assert_int_equal(qw_file_read(path, 4, &data, &n, &err), QW_E_LIMIT);
    assert_non_null(strstr(err.text, "a.txt: more than 4 bytes"));
    assert_int_equal(qw_file_read(temp_path("none"), 4, &data, &n, &err), QW_E_NOT_FOUND);
    assert_int_equal(qw_file_write(temp_path("none/b.txt"), "x", 1, &err), QW_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "none/b.txt: cannot be written: "));
    assert_int_equal(mkdir(temp_path("dir"), 0700), 0);
    assert_int_equal(qw_file_read(temp_path("dir"), 4, &data, &n, &err), QW_E_IO);
    assert_int_equal(qw_file_write(temp_path("dir"), "x", 1, &err), QW_E_IO); /* rename onto a folder */

    DIR *d = opendir(temp_dir); /* no temporary file is left behind, also after failures */
    assert_non_null(d);
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) assert_null(strstr(e->d_name, ".tmp-"));
    closedir(d);
}

static void test_file_read_stdin(void **state)
{
    (void)state;
    int saved = dup(STDIN_FILENO), fd = open(temp_path("in.txt"), O_RDWR | O_CREAT, 0600);
    char *text = malloc(100000), *data = NULL;
    size_t n = 0;
    assert_non_null(text);
    for (size_t i = 0; i < 100000; i++) text[i] = (char)('a' + i % 26);
    assert_true(saved >= 0 && fd >= 0);
    assert_int_equal(write(fd, text, 100000), 100000);
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    assert_int_equal(dup2(fd, STDIN_FILENO), STDIN_FILENO);
    qw_status status = qw_file_read("-", 100000, &data, &n, NULL);
    dup2(saved, STDIN_FILENO);
    close(saved);
    close(fd);
    assert_int_equal(status, QW_OK);
    assert_int_equal(n, 100000);
    assert_memory_equal(data, text, n);
    free(data);
    free(text);
}

static void test_dirs(void **state)
{
    (void)state;
    qw_err err;
    char out[256], path[600];
    const char *deep = temp_path("p/q/r/");
    assert_int_equal(qw_make_dirs(deep, &err), QW_OK);
    assert_int_equal(qw_make_dirs(deep, &err), QW_OK);
    struct stat st;
    assert_int_equal(stat(deep, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(qw_sync_dir(deep, &err), QW_OK);
    put_text(temp_path("p/file"), "x");
    assert_int_equal(qw_make_dirs(temp_path("p/file/s"), &err), QW_E_IO);
    assert_non_null(strstr(err.text, "p/file: the folder cannot be made: Not a directory"));
    assert_int_equal(qw_make_dirs("", &err), QW_E_ARG);
    assert_int_equal(qw_sync_dir(temp_path("nowhere"), &err), QW_E_NOT_FOUND);

    unsetenv("QW_HOME");
    unsetenv("XDG_DATA_HOME");
    setenv("XDG_CACHE_HOME", "relative", 1); /* ignored, as the XDG rules say */
    setenv("HOME", "/h", 1);
    assert_int_equal(qw_home_dir(out, sizeof out, &err), QW_OK);
    assert_string_equal(out, "/h/.local/share/qw");
    assert_int_equal(qw_cache_dir(out, sizeof out, &err), QW_OK);
    assert_string_equal(out, "/h/.cache/qw");
    setenv("XDG_DATA_HOME", "/d", 1);
    setenv("XDG_CACHE_HOME", "/c", 1);
    assert_int_equal(qw_home_dir(out, sizeof out, &err), QW_OK);
    assert_string_equal(out, "/d/qw");
    assert_int_equal(qw_cache_dir(out, sizeof out, &err), QW_OK);
    assert_string_equal(out, "/c/qw");
    setenv("QW_HOME", "/own", 1);
    assert_int_equal(qw_home_dir(out, sizeof out, &err), QW_OK);
    assert_string_equal(out, "/own");
    assert_int_equal(qw_cache_dir(out, sizeof out, &err), QW_OK);
    assert_string_equal(out, "/own/cache");
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    setenv("QW_HOME", path, 1);
    assert_int_equal(qw_home_dir(out, sizeof out, &err), QW_E_LIMIT);
    unsetenv("QW_HOME");
    unsetenv("XDG_DATA_HOME");
    unsetenv("XDG_CACHE_HOME");
    unsetenv("HOME");
    assert_int_equal(qw_home_dir(out, sizeof out, &err), QW_E_NOT_FOUND);
    assert_string_equal(err.text, "neither QW_HOME nor HOME is set: set QW_HOME to the folder qw shall use");
}

/* ---- mappings --------------------------------------------------------------------------------- */

enum { PAGES = 8 };

/* A file of PAGES pages of the byte 'x'. */
static size_t put_pages(const char *path)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = PAGES * page;
    char *data = malloc(n);
    assert_non_null(data);
    memset(data, 'x', n);
    put_file(path, data, n);
    free(data);
    return page;
}

static void test_map(void **state)
{
    (void)state;
    qw_err err;
    qw_map *m = NULL, *again = NULL;
    const char *path = temp_path("map.bin");
    size_t page = put_pages(path);
    assert_int_equal(qw_map_open(path, &m, &err), QW_OK);
    assert_int_equal(qw_map_bytes(m), PAGES * page);
    qw_map_will_need(m, 5, page);
    qw_map_will_need(m, 0, SIZE_MAX);
    qw_map_will_need(m, SIZE_MAX, 1);
    assert_int_equal(qw_map_data(m)[PAGES * page - 1], 'x');
    assert_false(qw_map_failed(m));
    char id[96], other[96];
    qw_map_identity(m, id);
    assert_int_equal(qw_map_open(path, &again, &err), QW_OK);
    qw_map_identity(again, other);
    assert_string_equal(id, other);
    qw_map_close(again);
    put_text(temp_path("new.bin"), "other");
    assert_int_equal(rename(temp_path("new.bin"), path), 0);
    assert_false(qw_map_failed(m)); /* the name has another file now; ours is untouched */
    assert_int_equal(qw_map_data(m)[0], 'x');
    qw_map_close(m);
    qw_map_close(NULL);
}

static void test_map_refuses(void **state)
{
    (void)state;
    qw_err err;
    qw_map *m = NULL;
    put_text(temp_path("empty"), "");
    assert_int_equal(mkfifo(temp_path("fifo"), 0600), 0);
    assert_int_equal(qw_map_open(temp_path("nothing"), &m, &err), QW_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "nothing: cannot be opened: No such file"));
    assert_int_equal(qw_map_open(temp_path("empty"), &m, &err), QW_E_FORMAT);
    assert_non_null(strstr(err.text, "empty: the file is empty"));
    assert_int_equal(qw_map_open(temp_path("fifo"), &m, &err), QW_E_FORMAT); /* and does not wait */
    assert_non_null(strstr(err.text, "fifo: is a pipe, want a regular file"));
    assert_int_equal(qw_map_open(temp_dir, &m, &err), QW_E_FORMAT);
    assert_non_null(strstr(err.text, "is a folder, want a regular file"));
    assert_int_equal(qw_map_open("/dev/zero", &m, &err), QW_E_FORMAT);
    assert_non_null(strstr(err.text, "is a device, want a regular file"));
}

static void test_map_shrinks(void **state)
{
    (void)state;
    qw_map *m = NULL;
    const char *path = temp_path("shrink.bin");
    size_t page = put_pages(path);
    assert_int_equal(qw_map_open(path, &m, NULL), QW_OK);
    const volatile uint8_t *data = qw_map_data(m);
    assert_int_equal(truncate(path, (off_t)(2 * page)), 0);
    assert_true(qw_map_failed(m)); /* seen by size, before any fault */
    assert_int_equal(data[5 * page + 3], 0);
    assert_int_equal(data[3 * page], 0); /* a second fault, before the first */
    assert_int_equal(data[7 * page], 0);
    assert_int_equal(data[page], 'x');
    assert_int_equal(truncate(path, (off_t)(PAGES * page)), 0);
    assert_true(qw_map_failed(m)); /* growing it again does not bring the model back */
    qw_map_close(m);
}

static void touch_all(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const volatile uint8_t *data = ctx;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int64_t i = begin; i < end; i++) assert_int_equal(data[(size_t)i * page], 0);
}

static void test_map_shrinks_under_workers(void **state)
{
    (void)state;
    qw_map *m = NULL;
    qw_pool *pool = NULL;
    const char *path = temp_path("shrink2.bin");
    put_pages(path);
    assert_int_equal(qw_pool_create(3, &pool, NULL), QW_OK);
    assert_int_equal(qw_map_open(path, &m, NULL), QW_OK);
    assert_int_equal(truncate(path, 0), 0);
    union {
        const uint8_t *in;
        void *out;
    } data = {.in = qw_map_data(m)};
    qw_pool_run(pool, PAGES, 1, touch_all, data.out);
    assert_true(qw_map_failed(m));
    qw_map_close(m);
    qw_pool_destroy(pool);
}

static sigjmp_buf foreign_jump;
static volatile sig_atomic_t foreign_seen;

static void foreign_handler(int sig)
{
    (void)sig;
    foreign_seen++;
    siglongjmp(foreign_jump, 1);
}

/* Touches a shrunk mapping that is none of qw's. */
static void touch_foreign(const char *path)
{
    size_t page = put_pages(path);
    int fd = open(path, O_RDWR);
    volatile uint8_t *p = mmap(NULL, PAGES * page, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED || ftruncate(fd, 0) != 0) abort();
    (void)p[page];
    close(fd);
}

static struct sigaction chained_to;

/* What a well-behaved library does that finds qw's handler in place: calls it. */
static void chaining_handler(int sig, siginfo_t *info, void *context)
{
    chained_to.sa_sigaction(sig, info, context);
}

/* In a child process: a fault that is none of qw's ends it as it always did, also when two handlers
 * call each other. */
static void fault_in_child(bool chain)
{
    put_text(temp_path("first"), "x");
    const char *first = temp_path("first"), *foreign = temp_path("foreign0");
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct rlimit none = {0, 0};
        struct sigaction sa = {.sa_sigaction = chaining_handler, .sa_flags = SA_SIGINFO};
        qw_map *m = NULL, *second = NULL;
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGBUS, SIG_DFL); /* cmocka has its own in place */
        if (freopen("/dev/null", "w", stderr) == NULL || qw_map_open(first, &m, NULL) != QW_OK) _exit(0);
        if (chain) {
            sigaction(SIGBUS, &sa, &chained_to);
            if (qw_map_open(first, &second, NULL) != QW_OK) _exit(0);
        }
        touch_foreign(foreign);
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGBUS);
}

static void test_foreign_fault_still_kills(void **state)
{
    (void)state;
    fault_in_child(false);
}

static void test_handlers_in_a_circle(void **state)
{
    (void)state;
    fault_in_child(true);
}

static void test_foreign_fault_reaches_earlier_handler(void **state)
{
    (void)state;
    struct sigaction sa = {.sa_handler = foreign_handler}, old;
    qw_map *m = NULL;
    assert_int_equal(sigaction(SIGBUS, &sa, &old), 0);
    put_text(temp_path("first"), "x");
    assert_int_equal(qw_map_open(temp_path("first"), &m, NULL), QW_OK);
    if (sigsetjmp(foreign_jump, 1) == 0) touch_foreign(temp_path("foreign1"));
    assert_int_equal(foreign_seen, 1);
    if (sigsetjmp(foreign_jump, 1) == 0) raise(SIGBUS);
    assert_int_equal(foreign_seen, 2);
    assert_false(qw_map_failed(m));
    qw_map_close(m);
    assert_int_equal(sigaction(SIGBUS, &old, NULL), 0);
}

/* ---- pool ------------------------------------------------------------------------------------- */

typedef struct counts {
    _Atomic int hits[1000];
    _Atomic int wrong;
    int64_t chunk, n_items;
    int n_threads;
    _Atomic int busy[8]; /* a thread index is used by one thread at a time */
} counts;

static void count_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    counts *c = ctx;
    bool too_few = end - begin < c->chunk && end != c->n_items;
    if (end <= begin || end > c->n_items || too_few || thread < 0 || thread >= c->n_threads ||
        atomic_fetch_add(&c->busy[thread], 1) != 0)
        atomic_fetch_add(&c->wrong, 1);
    for (int64_t i = begin; i < end; i++) atomic_fetch_add(&c->hits[i], 1);
    atomic_fetch_sub(&c->busy[thread], 1);
}

static void test_pool_every_item_once(void **state)
{
    (void)state;
    static const int64_t ns[] = {0, 1, 2, 3, 7, 64, 999, 1000}, chunks[] = {1, 2, 16, 1000, 5000};
    for (int t = 1; t <= 5; t++) {
        qw_pool *pool = NULL;
        assert_int_equal(qw_pool_create(t, &pool, NULL), QW_OK);
        assert_int_equal(qw_pool_threads(pool), t);
        for (size_t a = 0; a < sizeof ns / sizeof ns[0]; a++) {
            for (size_t b = 0; b < sizeof chunks / sizeof chunks[0]; b++) {
                counts c = {.chunk = chunks[b], .n_items = ns[a], .n_threads = t};
                for (int rep = 1; rep <= 20; rep++) {
                    qw_pool_run(pool, ns[a], chunks[b], count_items, &c);
                    for (int64_t i = 0; i < 1000; i++)
                        assert_int_equal(atomic_load(&c.hits[i]), i < ns[a] ? rep : 0);
                }
                assert_int_equal(atomic_load(&c.wrong), 0);
            }
        }
        qw_pool_destroy(pool);
    }
}

static void sum_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    for (int64_t i = begin; i < end; i++) atomic_fetch_add((_Atomic int64_t *)ctx, i);
}

static void test_pool_many_runs(void **state)
{
    (void)state;
    qw_pool *pool = NULL;
    assert_int_equal(qw_pool_create(4, &pool, NULL), QW_OK);
    _Atomic int64_t sum = 0;
    for (int r = 0; r < 70000; r++) qw_pool_run(pool, 5, 1, sum_items, &sum); /* past 2^16 runs */
    assert_int_equal(atomic_load(&sum), 70000 * 10);
    for (int r = 0; r < 30; r++) { /* workers asleep in between */
        usleep(1000);
        qw_pool_run(pool, 100, 3, sum_items, &sum);
    }
    assert_int_equal(atomic_load(&sum), 70000 * 10 + 30 * 4950);
    qw_pool_destroy(pool);
}

/* Threads of this process that the kernel shows as running or ready, the caller not counted. */
static int threads_awake(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/task");
    assert_non_null(d);
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        char path[300], text[256] = "";
        if (e->d_name[0] == '.' || atoi(e->d_name) == gettid()) continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/stat", e->d_name);
        FILE *f = fopen(path, "r");
        if (f == NULL) continue;
        if (fgets(text, sizeof text, f) != NULL) {
            const char *paren = strrchr(text, ')');
            n += paren != NULL && paren[1] != '\0' && paren[2] == 'R';
        }
        fclose(f);
    }
    closedir(d);
    return n;
}

static void test_pool_sleeps_when_idle(void **state)
{
    (void)state;
    qw_pool *pool = NULL;
    _Atomic int64_t sum = 0;
    assert_int_equal(qw_pool_create(4, &pool, NULL), QW_OK);
    qw_pool_run(pool, 100, 1, sum_items, &sum);
    int awake = 1;
    for (int i = 0; i < 1000 && awake > 0; i++) { /* far more time than the spin takes */
        usleep(10000);
        awake = threads_awake();
    }
    assert_int_equal(awake, 0);
    qw_pool_destroy(pool);
}

static void test_pool_refuses(void **state)
{
    (void)state;
    qw_err err;
    qw_pool *pool = NULL;
    assert_int_equal(qw_pool_create(0, &pool, &err), QW_E_ARG);
    assert_string_equal(err.text, "0 threads asked for: want 1 to 1024");
    assert_int_equal(qw_pool_create(1000000, &pool, &err), QW_E_ARG);
    qw_pool_destroy(NULL);
}

/* ---- cores and instruction sets --------------------------------------------------------------- */

static void test_cpu_quota(void **state)
{
    (void)state;
    const char *list = temp_path("cgroup"), *root = temp_path("cg");
    qw_err err;
    assert_int_equal(qw_cpu_quota(temp_path("no-such-list"), root), 0);
    assert_int_equal(qw_make_dirs(temp_path("cg/a/b"), &err), QW_OK);
    assert_int_equal(qw_make_dirs(temp_path("cg/cpu,cpuacct/d/e"), &err), QW_OK);

    put_text(list, "0::/a/b\n");
    assert_int_equal(qw_cpu_quota(list, root), 0);
    put_text(temp_path("cg/a/b/cpu.max"), "max 100000\n");
    assert_int_equal(qw_cpu_quota(list, root), 0);
    put_text(temp_path("cg/a/cpu.max"), "250000 100000\n"); /* the parent's binds, rounded up */
    assert_int_equal(qw_cpu_quota(list, root), 3);
    put_text(temp_path("cg/a/b/cpu.max"), "50000 100000\n");
    assert_int_equal(qw_cpu_quota(list, root), 1);
    put_text(temp_path("cg/a/b/cpu.max"), "nonsense\n");
    assert_int_equal(qw_cpu_quota(list, root), 3);
    put_text(list, "0::/docker/0123456789abcdef\n"); /* a path of the host: only the mount itself is ours */
    assert_int_equal(qw_cpu_quota(list, root), 0);
    put_text(temp_path("cg/cpu.max"), "400000 100000\n");
    assert_int_equal(qw_cpu_quota(list, root), 4);

    put_text(list, "12:cpuset:/x\n4:cpu,cpuacct:/d/e\n1:name=systemd:/y\n");
    assert_int_equal(qw_cpu_quota(list, root), 0);
    put_text(temp_path("cg/cpu,cpuacct/d/e/cpu.cfs_quota_us"), "-1\n");
    put_text(temp_path("cg/cpu,cpuacct/d/e/cpu.cfs_period_us"), "100000\n");
    assert_int_equal(qw_cpu_quota(list, root), 0);
    put_text(temp_path("cg/cpu,cpuacct/d/e/cpu.cfs_quota_us"), "200000\n");
    assert_int_equal(qw_cpu_quota(list, root), 2);
    assert_true(qw_cpu_count() >= 1);
}

static void test_cpu(void **state)
{
    (void)state;
    qw_isa isa;
    for (int i = 0; i < QW_ISA_COUNT; i++) {
        assert_true(qw_isa_parse(qw_isa_name((qw_isa)i), &isa));
        assert_int_equal(isa, i);
    }
    assert_false(qw_isa_parse("mmx", &isa));
    assert_true(qw_cpu_isa() < QW_ISA_COUNT);
    assert_true(strlen(qw_cpu_name()) > 0);
#if defined(__x86_64__)
    /* The compiler's own detection as the judge. */
    assert_true(!__builtin_cpu_supports("avx2") == (qw_cpu_isa() < QW_ISA_AVX2));
    assert_true(!__builtin_cpu_supports("avx512vnni") == (qw_cpu_isa() < QW_ISA_AVX512_VNNI));
#endif
    int64_t t = qw_clock_us();
    for (int i = 0; i < 1000; i++) {
        int64_t now = qw_clock_us();
        assert_true(now >= t);
        t = now;
    }
    assert_true(qw_wall_s() > 1700000000);
}

/* ---- UTF-8 ------------------------------------------------------------------------------------ */

static uint8_t starts[3][1 << 21]; /* bitmaps: proper prefixes of 1, 2 and 3 bytes of well-formed sequences */

static bool start_bit(int n, const uint8_t *s, bool set)
{
    uint32_t i = 0;
    for (int k = 0; k < n; k++) i = i << 8 | s[k];
    if (set) starts[n - 1][i / 8] |= (uint8_t)(1 << i % 8);
    return (starts[n - 1][i / 8] >> i % 8) & 1;
}

static void test_utf8_all_scalars(void **state)
{
    (void)state;
    size_t n_valid = 0;
    for (uint32_t cp = 0; cp <= 0x10ffff; cp++) {
        if (cp >= 0xd800 && cp <= 0xdfff) continue;
        char s[4];
        uint32_t back = UINT32_MAX;
        int n = qw_utf8_encode(cp, s);
        assert_int_equal(n, cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4);
        assert_int_equal(qw_utf8_decode(s, 4 < n ? 4 : (size_t)n, &back), n);
        assert_int_equal(back, cp);
        for (int k = 1; k < n; k++) {
            assert_int_equal(qw_utf8_decode(s, (size_t)k, &back), 0);
            start_bit(k, (const uint8_t *)s, true);
        }
        n_valid++;
    }
    assert_int_equal(n_valid, 0x110000 - 0x800);
    /* Everything of two and three bytes that decodes is what encoding gives: nothing overlong, no more. */
    for (uint32_t v = 0; v < 1u << 24; v++) {
        char s[4] = {(char)(v >> 16), (char)(v >> 8), (char)v, 0}, again[4];
        uint32_t cp;
        int n = qw_utf8_decode(s, 3, &cp);
        if (n == 0) continue;
        assert_true(qw_utf8_encode(cp, again) == n && memcmp(s, again, (size_t)n) == 0);
        assert_true(cp <= 0x10ffff && (cp < 0xd800 || cp > 0xdfff));
    }
    static const char *const bad[] = {"\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xc0\x80",
                                      "\xed\xa0\x80",     "\xf1\x80\x80x",     "\x80"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_false(qw_utf8_valid(bad[i], strlen(bad[i])));
        char text[32];
        snprintf(text, sizeof text, "0123456789%s", bad[i]);
        assert_false(qw_utf8_valid(text, strlen(text)));
    }
    assert_true(qw_utf8_valid("plain text, \xc3\xa9, \xe4\xbd\xa0, \xf0\x9f\x98\x80 and more", 35));
    assert_true(qw_utf8_valid("", 0));
}

/* Runs after test_utf8_all_scalars, which fills `starts`. */
static void test_utf8_incomplete_tail(void **state)
{
    (void)state;
    static const uint8_t alphabet[] = {0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc2,
                                       0xdf, 0xe0, 0xe1, 0xed, 0xef, 0xf0, 0xf1, 0xf4, 0xf5, 0xff};
    enum { A = sizeof alphabet };
    for (size_t v = 0; v < (size_t)A * A * A * A; v++) {
        uint8_t s[4] = {alphabet[v % A], alphabet[v / A % A], alphabet[v / A / A % A], alphabet[v / A / A / A]};
        for (size_t n = 0; n <= 4; n++) {
            size_t want = 0;
            for (size_t k = 1; k <= 3 && k <= n; k++)
                if (start_bit((int)k, s + n - k, false)) want = k;
            assert_int_equal(qw_utf8_incomplete_tail((const char *)s, n), want);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_siphash),
        cmocka_unit_test(test_foreign_fault_still_kills),
        cmocka_unit_test(test_handlers_in_a_circle),
        cmocka_unit_test(test_foreign_fault_reaches_earlier_handler),
        cmocka_unit_test(test_fail_cleans_text),
        cmocka_unit_test(test_fail_cuts_at_a_character),
        cmocka_unit_test(test_errno_and_prefix),
        cmocka_unit_test(test_status_names_differ),
        cmocka_unit_test(test_alloc),
        cmocka_unit_test(test_alloc_aligned),
        cmocka_unit_test(test_buf),
        cmocka_unit_test(test_cursor),
        cmocka_unit_test(test_file_write_read),
        cmocka_unit_test(test_file_read_stdin),
        cmocka_unit_test(test_dirs),
        cmocka_unit_test(test_map),
        cmocka_unit_test(test_map_refuses),
        cmocka_unit_test(test_map_shrinks),
        cmocka_unit_test(test_map_shrinks_under_workers),
        cmocka_unit_test(test_pool_every_item_once),
        cmocka_unit_test(test_pool_many_runs),
        cmocka_unit_test(test_pool_sleeps_when_idle),
        cmocka_unit_test(test_pool_refuses),
        cmocka_unit_test(test_cpu_quota),
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_utf8_all_scalars),
        cmocka_unit_test(test_utf8_incomplete_tail),
    };
    return cmocka_run_group_tests_name("base", tests, temp_dir_setup, temp_dir_teardown);
}
