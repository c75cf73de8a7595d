/* test_mem_left.c: limits of control groups, both versions, from files made here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem_left.h"
#include "temp_dir.h"

static void put(const char *name, const char *text)
{
    char folder[600];
    snprintf(folder, sizeof folder, "%s", temp_path(name));
    *strrchr(folder, '/') = 0;
    assert_int_equal(qw_make_dirs(folder, NULL), QW_OK);
    assert_int_equal(qw_file_write(temp_path(name), text, strlen(text), NULL), QW_OK);
}

static uint64_t left(void)
{
    return qw_mem_quota_left(temp_path("list"), temp_path("cg"));
}

static void test_version_2(void **state)
{
    (void)state;
    assert_true(left() == UINT64_MAX); /* no list at all */
    put("list", "0::/slice/service\n");
    assert_true(left() == UINT64_MAX);
    put("cg/slice/service/memory.max", "max\n");
    put("cg/slice/service/memory.current", "123456\n");
    assert_true(left() == UINT64_MAX);
    put("cg/slice/service/memory.max", "1000000\n");
    assert_int_equal(left(), 1000000 - 123456);
    /* pages of the file cache can be taken back */
    put("cg/slice/service/memory.stat", "anon 5\nfile 90000\ninactive_file_not 7\ninactive_file 60000\n"
                                        "active_file 3000\n");
    assert_int_equal(left(), 1000000 - 123456 + 63000);
    put("cg/slice/service/memory.stat", "inactive_file 99999999\n"); /* more than is used: nothing is */
    assert_int_equal(left(), 1000000);
    put("cg/slice/service/memory.current", "2000000\n"); /* above a limit that was lowered */
    put("cg/slice/service/memory.stat", "");
    assert_int_equal(left(), 0);
    put("cg/slice/service/memory.current", "0\n");
    /* a parent's limit binds, and that of the place it is mounted at */
    put("cg/slice/memory.max", "500000\n");
    put("cg/slice/memory.current", "100000\n");
    assert_int_equal(left(), 400000);
    put("cg/memory.max", "300000\n");
    assert_int_equal(left(), 300000);
    put("list", "0::/of/the/host\n"); /* inside a container: a path that is not there */
    assert_int_equal(left(), 300000);
    put("list", "0::/\n");
    assert_int_equal(left(), 300000);
}

static void test_version_1(void **state)
{
    (void)state;
    put("list", "3:cpu:/a\n4:memory:/a/b\n");
    assert_true(left() == UINT64_MAX);
    put("cg/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"); /* none */
    assert_true(left() == UINT64_MAX);
    put("cg/memory/a/b/memory.limit_in_bytes", "1000000\n");
    put("cg/memory/a/b/memory.usage_in_bytes", "600000\n");
    put("cg/memory/a/b/memory.stat", "inactive_file 1\ntotal_inactive_file 100000\ntotal_active_file 50000\n");
    assert_int_equal(left(), 550000);
    put("cg/memory/memory.limit_in_bytes", "200000\n");
    put("cg/memory/memory.usage_in_bytes", "150000\n");
    assert_int_equal(left(), 50000);
    put("list", "3:cpu:/a\n"); /* not ours */
    assert_true(left() == UINT64_MAX);
    put("list", "nonsense\n:\n::\n\n4:memory\n");
    (void)left();
}

static void test_this_machine(void **state)
{
    (void)state;
    assert_true(qw_mem_left() > 1 << 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_version_2),
        cmocka_unit_test(test_version_1),
        cmocka_unit_test(test_this_machine),
    };
    return cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
}
