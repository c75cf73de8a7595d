/* test_side_files.c: the folder of side files: what counts, what is in use, what goes first, and the bound.
 *
 * The files hold nothing; their names, sizes, times and locks are what the folder knows them by. Sizes of the disk are
 * given, so that no test needs a full one.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/file.h"
#include "base/side_files.h"
#include "temp_dir.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const qw_side_limits roomy = {.total_max = 1000, .strict = true, .free_bytes = 1000000, .free_min = 0};

static const char *new_dir(void)
{
    static int n;
    char name[32];
    snprintf(name, sizeof name, "packed-%d", n++);
    const char *dir = temp_path(name);
    assert_int_equal(qw_make_dirs(dir, NULL), QW_OK);
    return dir;
}

/* Path of the side file whose identity is 64 times the digit. */
static const char *side_path(const char *dir, char digit, const char *ending)
{
    static char paths[16][1024];
    static int next;
    char *p = paths[next++ % 16], identity[65];
    memset(identity, digit, 64);
    identity[64] = 0;
    snprintf(p, sizeof paths[0], "%s/%s.qwp%s", dir, identity, ending);
    return p;
}

/* A side file of `bytes` that was used age_s seconds ago. */
static const char *make(const char *dir, char digit, const char *ending, size_t bytes, int64_t age_s)
{
    const char *path = side_path(dir, digit, ending);
    struct timespec times[2] = {{.tv_sec = time(NULL) - age_s}, {.tv_sec = time(NULL) - age_s}};
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    assert_int_equal(futimens(fd, times), 0);
    close(fd);
    return path;
}

static bool there(const char *path)
{
    return access(path, F_OK) == 0;
}

static qw_status room(const char *dir, const qw_side_limits *l, uint64_t bytes, qw_side_useless_fn *fn, qw_err *err)
{
    int lock;
    assert_int_equal(qw_side_lock(dir, &lock, NULL), QW_OK);
    qw_status status = qw_side_make_room(dir, l, bytes, fn, NULL, err);
    qw_side_unlock(lock);
    return status;
}

/* ---- list -------------------------------------------------------------------------------------- */

static void test_list(void **state)
{
    (void)state;
    qw_side_file *files;
    size_t n;
    const char *dir = new_dir();
    assert_int_equal(qw_side_list(temp_path("none"), &files, &n, NULL), QW_OK);
    assert_int_equal(n, 0);
    free(files);
    make(dir, 'a', "", 10, 100);
    make(dir, 'b', "", 20, 300);
    make(dir, 'c', ".x1Y2z3", 30, 200);
    /* none of these is ours */
    static const char *const others[] = {".lock", "notes.txt", "a.qwp", "abc.qwp.x1Y2z3"};
    for (size_t i = 0; i < COUNT(others); i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s", dir, others[i]);
        assert_int_equal(qw_file_write(path, "x", 1, NULL), QW_OK);
    }
    assert_int_equal(qw_file_write(side_path(dir, 'G', ""), "x", 1, NULL), QW_OK);
    assert_int_equal(qw_file_write(side_path(dir, 'd', ".tmp"), "x", 1, NULL), QW_OK);
    assert_int_equal(qw_file_write(side_path(dir, 'd', "x"), "x", 1, NULL), QW_OK);
    assert_int_equal(mkdir(side_path(dir, 'e', ""), 0700), 0);
    assert_int_equal(symlink(side_path(dir, 'a', ""), side_path(dir, 'f', "")), 0);
    assert_int_equal(qw_side_list(dir, &files, &n, NULL), QW_OK);
    assert_int_equal(n, 3);
    assert_int_equal(files[0].name[0], 'b'); /* not used for the longest time */
    assert_int_equal(files[1].name[0], 'c');
    assert_int_equal(files[2].name[0], 'a');
    assert_int_equal(files[0].bytes, 20);
    assert_string_equal(files[1].name + 64, ".qwp.x1Y2z3");
    free(files);
    assert_int_not_equal(qw_side_list(side_path(dir, 'a', ""), &files, &n, NULL), QW_OK); /* no folder */
}

/* Written when the last time is more than an hour away, in either direction, and not more often. */
static void test_touch(void **state)
{
    (void)state;
    static const struct {
        int64_t age_s;
        bool touched;
    } cases[] = {
        {QW_SIDE_TOUCH_S + 60, true}, {10 * QW_SIDE_TOUCH_S, true}, {QW_SIDE_TOUCH_S - 60, false}, {-600, true}};
    const char *dir = new_dir();
    for (size_t i = 0; i < COUNT(cases); i++) {
        const char *path = make(dir, 'a', "", 1, cases[i].age_s);
        struct stat before, after;
        assert_int_equal(stat(path, &before), 0);
        qw_side_touch(path);
        assert_int_equal(stat(path, &after), 0);
        assert_int_equal(before.st_mtim.tv_sec != after.st_mtim.tv_sec, cases[i].touched);
        if (cases[i].touched) assert_in_range(after.st_mtim.tv_sec, time(NULL) - 60, time(NULL) + 1);
    }
    qw_side_touch(side_path(dir, 'b', "")); /* not there: nothing happens */
    assert_false(there(side_path(dir, 'b', "")));
}

/* ---- limits ------------------------------------------------------------------------------------ */

static void test_limits(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},           {"1", 1},           {"1500", 1500},         {"2k", 2000},
                {"3M", 3000000},    {"20G", 20000000000}, {"20gb", 20000000000}, {"1T", 1000000000000}};
    static const char *const bad[] = {"x",    "-1", "+1", " 1",                   "1.5G",     "20X", "20GG",
                                      "20Gx", "B",  "1B", "99999999999999999999", "99999999T"};
    qw_side_limits l;
    qw_err err;
    struct statvfs vfs;
    for (size_t i = 0; i < COUNT(good); i++) {
        setenv("QW_CACHE_MAX", good[i].text, 1);
        assert_int_equal(qw_side_limits_get(temp_dir, &l, &err), QW_OK);
        assert_true(l.strict);
        if (l.total_max != good[i].bytes) fail_msg("%s is %llu", good[i].text, (unsigned long long)l.total_max);
    }
    for (size_t i = 0; i < COUNT(bad); i++) {
        setenv("QW_CACHE_MAX", bad[i], 1);
        if (qw_side_limits_get(temp_dir, &l, &err) != QW_E_ARG) fail_msg("%s is taken for a size", bad[i]);
        assert_non_null(strstr(err.text, "QW_CACHE_MAX"));
        assert_non_null(strstr(err.text, "20G")); /* what to write */
    }
    for (int empty = 0; empty < 2; empty++) {
        if (empty) setenv("QW_CACHE_MAX", "", 1);
        else unsetenv("QW_CACHE_MAX");
        assert_int_equal(qw_side_limits_get(temp_path("not/yet/there"), &l, &err), QW_OK);
        assert_int_equal(statvfs(temp_dir, &vfs), 0);
        uint64_t bytes = (uint64_t)vfs.f_blocks * vfs.f_frsize, twentieth = bytes / 20;
        assert_false(l.strict);
        assert_int_equal(l.total_max, bytes / 5);
        assert_int_equal(l.free_min, twentieth < 4000000000 ? twentieth : 4000000000);
        assert_true(l.free_bytes <= bytes);
    }
    unsetenv("QW_CACHE_MAX");
}

/* ---- room -------------------------------------------------------------------------------------- */

static void test_oldest_go(void **state)
{
    (void)state;
    const char *dir = new_dir();
    const char *a = make(dir, 'a', "", 300, 100), *b = make(dir, 'b', "", 300, 300), *c = make(dir, 'c', "", 300, 200);
    assert_int_equal(room(dir, &roomy, 100, NULL, NULL), QW_OK); /* it just fits */
    assert_true(there(a) && there(b) && there(c));
    assert_int_equal(room(dir, &roomy, 101, NULL, NULL), QW_OK);
    assert_true(there(a) && !there(b) && there(c));
    assert_int_equal(room(dir, &roomy, 1000, NULL, NULL), QW_OK);
    assert_true(!there(a) && !there(c));
}

/* Says that side files of the digits 'd' and 'e' are useless. */
static bool useless_fn(void *ctx, const char *path)
{
    (void)ctx;
    char digit = strrchr(path, '/')[1];
    return digit == 'd' || digit == 'e';
}

static void test_useless_first(void **state)
{
    (void)state;
    const char *dir = new_dir();
    const char *a = make(dir, 'a', "", 200, 900), *b = make(dir, 'b', "", 200, 800);
    const char *d = make(dir, 'd', "", 200, 100), *e = make(dir, 'e', "", 200, 200);
    assert_int_equal(room(dir, &roomy, 200, useless_fn, NULL), QW_OK);
    assert_true(there(a) && there(b) && there(d) && there(e)); /* they count, and stay as long as there is room */
    assert_int_equal(room(dir, &roomy, 201, useless_fn, NULL), QW_OK);
    assert_true(there(a) && there(b) && there(d) && !there(e)); /* by age among themselves */
    assert_int_equal(room(dir, &roomy, 601, useless_fn, NULL), QW_OK);
    assert_true(!there(a) && there(b) && !there(d)); /* then the others */
}

/* Another process that holds a lock on a file until it is ended. */
static pid_t hold(const char *path, int operation)
{
    int ready[2];
    char c = 0;
    assert_int_equal(pipe(ready), 0);
    fflush(stdout);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        int fd = open(path, O_RDONLY);
        if (fd < 0 || flock(fd, operation) != 0 || write(ready[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    close(ready[0]);
    return pid;
}

static void let_go(pid_t pid)
{
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void test_in_use(void **state)
{
    (void)state;
    qw_err err;
    const char *dir = new_dir();
    const char *a = make(dir, 'a', "", 400, 900), *b = make(dir, 'b', "", 400, 100), *d = make(dir, 'd', "", 100, 900);
    pid_t h = hold(a, LOCK_SH), h2 = hold(d, LOCK_SH);
    assert_int_equal(room(dir, &roomy, 500, useless_fn, NULL), QW_OK); /* the oldest and the useless one are in use */
    assert_true(there(a) && !there(b) && there(d));
    b = make(dir, 'b', "", 400, 100);
    assert_int_equal(room(dir, &roomy, 501, NULL, &err), QW_E_LIMIT); /* it cannot fit: nothing goes in vain */
    assert_true(there(a) && there(b) && there(d));
    assert_non_null(strstr(err.text, dir));
    assert_non_null(strstr(err.text, "QW_CACHE_MAX allows 1.0 kB in all, 0.5 kB of it in use; raise QW_CACHE_MAX"));
    let_go(h);
    let_go(h2);
    assert_int_equal(room(dir, &roomy, 501, NULL, &err), QW_OK);
    assert_true(!there(a));
    assert_int_equal(room(dir, &roomy, 1001, NULL, &err), QW_E_LIMIT); /* larger than all that is allowed */
    assert_true(there(b));
}

/* Without QW_CACHE_MAX what is needed now is let in, and the rest makes way as far as it can. */
static void test_default_lets_in(void **state)
{
    (void)state;
    const char *dir = new_dir();
    const qw_side_limits l = {.total_max = 1000, .free_bytes = 1000000};
    const char *a = make(dir, 'a', "", 400, 100), *b = make(dir, 'b', "", 400, 900);
    pid_t h = hold(a, LOCK_SH);
    assert_int_equal(room(dir, &l, 5000, NULL, NULL), QW_OK);
    assert_true(there(a) && !there(b));
    let_go(h);
}

/* The disk is never filled: side files make way for that too. */
static void test_disk(void **state)
{
    (void)state;
    qw_err err;
    for (int strict = 0; strict < 2; strict++) {
        const char *dir = new_dir();
        const qw_side_limits l = {.total_max = 100000, .strict = strict, .free_bytes = 500, .free_min = 200};
        const char *a = make(dir, 'a', "", 400, 100), *b = make(dir, 'b', "", 400, 900);
        assert_int_equal(room(dir, &l, 300, NULL, &err), QW_OK);
        assert_true(there(a) && there(b));
        assert_int_equal(room(dir, &l, 1101, NULL, &err), QW_E_LIMIT);
        assert_true(there(a) && there(b));
        assert_non_null(strstr(err.text, "the disk has 0.5 kB free, 0.2 kB of it stay free; free some space"));
        assert_int_equal(room(dir, &l, 301, NULL, &err), QW_OK);
        assert_true(there(a) && !there(b));
    }
}

/* What a killed writer left goes at once and gives its space; what a living one writes counts and stays. */
static void test_unfinished(void **state)
{
    (void)state;
    const char *dir = new_dir();
    const char *dead = make(dir, 'a', ".x1Y2z3", 500, 0), *living = make(dir, 'b', ".x1Y2z3", 500, 0);
    const char *old = make(dir, 'c', "", 400, 900);
    const qw_side_limits l = {.total_max = 1000, .strict = true, .free_bytes = 100, .free_min = 500};
    pid_t h = hold(living, LOCK_EX);
    assert_int_equal(room(dir, &l, 100, NULL, NULL), QW_OK);
    assert_true(!there(dead) && there(living) && there(old));
    assert_int_equal(room(dir, &roomy, 600, NULL, NULL), QW_E_LIMIT);
    assert_true(there(living) && there(old));
    assert_int_equal(room(dir, &roomy, 500, NULL, NULL), QW_OK);
    assert_true(there(living) && !there(old));
    let_go(h);
}

/* Many processes add files of one size at a time: at no moment is more there than the bound allows. */
static void test_at_once(void **state)
{
    (void)state;
    enum { N = 4, ROUNDS = 50, BYTES = 400 };
    const char *dir = new_dir();
    pid_t pids[N];
    fflush(stdout);
    for (int i = 0; i < N; i++) {
        pids[i] = fork();
        assert_true(pids[i] >= 0);
        if (pids[i] > 0) continue;
        bool ok = true;
        for (int round = 0; round < ROUNDS && ok; round++) {
            int lock;
            qw_side_file *files;
            size_t n;
            uint64_t total = 0;
            ok = qw_side_lock(dir, &lock, NULL) == QW_OK;
            ok = ok && qw_side_make_room(dir, &roomy, BYTES, NULL, NULL, NULL) == QW_OK;
            make(dir, (char)('0' + i), "", BYTES, 0);
            ok = ok && qw_side_list(dir, &files, &n, NULL) == QW_OK;
            for (size_t k = 0; ok && k < n; k++) total += files[k].bytes;
            ok = ok && total >= BYTES && total <= roomy.total_max;
            free(files);
            qw_side_unlock(lock);
        }
        _exit(ok ? 0 : 1);
    }
    for (int i = 0; i < N; i++) {
        int status;
        assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

static void test_lock_errors(void **state)
{
    (void)state;
    int lock;
    qw_err err;
    assert_int_equal(qw_side_lock(temp_path("no-folder"), &lock, &err), QW_E_NOT_FOUND);
    assert_int_equal(lock, -1);
    assert_non_null(strstr(err.text, "no-folder"));
    qw_side_unlock(lock);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list),       cmocka_unit_test(test_touch),        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_oldest_go),  cmocka_unit_test(test_useless_first), cmocka_unit_test(test_in_use),
        cmocka_unit_test(test_disk),       cmocka_unit_test(test_default_lets_in),
        cmocka_unit_test(test_unfinished), cmocka_unit_test(test_at_once),      cmocka_unit_test(test_lock_errors),
    };
    return cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
}
