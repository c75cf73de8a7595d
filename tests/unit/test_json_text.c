/* test_json_text.c: JSON rewritten as Python's json.dumps(..., ensure_ascii=False) prints it.
 *
 * The expected texts are Python's. Thousands of further values are compared in tests/parity/chat.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/status.h"
#include "text/json_number.h"
#include "text/json_push.h"
#include "text/json_text.h"

static qw_text text_of(const char *s)
{
    return (qw_text){s, strlen(s)};
}

static void check(const char *json, const char *want)
{
    qw_buf out;
    qw_err err;
    qw_buf_init(&out, 1 << 20, "json");
    assert_int_equal(qw_buf_add_str(&out, "before ", NULL), QW_OK);
    if (qw_json_rewrite(text_of(json), &out, &err) != QW_OK) fail_msg("%s: %s", json, err.text);
    assert_string_equal(qw_buf_str(&out) + 7, want);
    qw_buf_free(&out);
}

static void check_bad(const char *json, size_t n, qw_status status, const char *part)
{
    qw_buf out;
    qw_err err;
    qw_buf_init(&out, 1 << 20, "json");
    assert_int_equal(qw_buf_add_str(&out, "before", NULL), QW_OK);
    if (qw_json_rewrite((qw_text){json, n}, &out, &err) != status) fail_msg("%s: wrong status", json);
    if (!strstr(err.text, part)) fail_msg("\"%s\" does not say \"%s\"", err.text, part);
    assert_string_equal(qw_buf_str(&out), "before"); /* nothing stays behind */
    qw_buf_free(&out);
}

static void test_values(void **state)
{
    (void)state;
    check("null", "null");
    check(" \t\r\n true ", "true");
    check("{}", "{}");
    check("[ ]", "[]");
    check("[1,2 , 3]", "[1, 2, 3]");
    check("{\"b\":1,\"a\":[false,{\"c\":null}]}", "{\"b\": 1, \"a\": [false, {\"c\": null}]}");
    check("[[],{},[[{}]]]", "[[], {}, [[{}]]]");
    check("{\"a\":{\"a\":1},\"b\":[{\"a\":1},{\"a\":1}]}", "{\"a\": {\"a\": 1}, \"b\": [{\"a\": 1}, {\"a\": 1}]}");
}

static void test_strings(void **state)
{
    (void)state;
    check("\"a\\u0062\\/\\\"\\\\\"", "\"ab/\\\"\\\\\"");
    check("\"\\b\\f\\n\\r\\t\\u000b\\u0000\\u001F\\u007f\"", "\"\\b\\f\\n\\r\\t\\u000b\\u0000\\u001f\x7F\"");
    check("\"\\u4e2d\\ud83d\\ude00 \xC3\xA9\"", "\"\xE4\xB8\xAD\xF0\x9F\x98\x80 \xC3\xA9\"");
    check("\"<|im_end|>&'\"", "\"<|im_end|>&'\"");
    qw_buf out;
    qw_buf_init(&out, 100, "json");
    assert_int_equal(qw_json_write_string((qw_text){"\"\x01\n\0x\xC3\xA9", 7}, &out, NULL), QW_OK);
    assert_string_equal(qw_buf_str(&out), "\"\\\"\\u0001\\n\\u0000x\xC3\xA9\"");
    assert_int_equal(qw_json_write_string(text_of("\xFF"), &out, NULL), QW_E_FORMAT);
    qw_buf_free(&out);
}

static void test_numbers(void **state)
{
    static const char *const same[] = {
        "0", "-1", "123456789012345678901234567890", "1.0", "-0.0", "0.1", "1e-07", "1e+16", "1.5e+300",
        "123456789.125", "0.0001", "1e-05", "1000000000000000.0", "1.7976931348623157e+308", "5e-324",
        "2.2250738585072014e-308", "5.684341886080802e-14", "9007199254740993", "8.98846567431158e+307",
    };
    (void)state;
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) check(same[i], same[i]);
    check("-0", "0");
    check("1E400", "Infinity");
    check("-1e999999999999999999999", "-Infinity");
    check("1e-400", "0.0");
    check("-1e-999999999999999999999", "-0.0");
    check("1e16", "1e+16");
    check("1e15", "1000000000000000.0");
    check("0.00010", "0.0001");
    check("12E-1", "1.2");
    check("9007199254740993.0", "9007199254740992.0"); /* halfway: to even */
    check("9007199254740993.00000000000000000001", "9007199254740994.0");
    check("100e-2", "1.0");
}

/* More digits than are kept: the far digit still decides a halfway case. */
static void test_long_number(void **state)
{
    char text[2100];
    (void)state;
    int n = snprintf(text, sizeof text, "9007199254740993.");
    memset(text + n, '0', 2000);
    text[n + 2000] = '\0';
    check(text, "9007199254740992.0");
    text[n + 1999] = '1';
    check(text, "9007199254740994.0");
    memset(text, '0', 2000);
    memcpy(text, "0.", 2);
    memcpy(text + 2000, "123e1998", 9);
    check(text, "0.123");
}

/* Every double reads back, with no digit more than needed, in any locale. */
static void test_doubles(void **state)
{
    uint64_t bits = 88172645463325252u;
    char text[QW_JSON_DOUBLE_MAX];
    (void)state;
    const char *comma = setlocale(LC_NUMERIC, "de_DE.UTF-8");
    for (int i = 0; i < 20000; i++) {
        double value;
        bits ^= bits << 13;
        bits ^= bits >> 7;
        bits ^= bits << 17;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value)) continue;
        size_t n = qw_json_double_text(value, text);
        assert_int_equal(n, strlen(text));
        assert_true(n < QW_JSON_DOUBLE_MAX);
        assert_null(strchr(text, ','));
        assert_true(qw_json_double_value(text, n) == value);
    }
    for (int e = -1074; e <= 1023; e++) {
        double value = ldexp(1.0, e);
        size_t n = qw_json_double_text(value, text);
        assert_true(qw_json_double_value(text, n) == value);
    }
    if (comma) setlocale(LC_NUMERIC, "C");
    qw_json_double_text((double)NAN, text);
    assert_string_equal(text, "NaN");
    qw_json_double_text(-DBL_MAX * 10, text);
    assert_string_equal(text, "-Infinity");
}

static void test_not_json(void **state)
{
    static const char *const bad[] = {
        "", " ", "{", "[", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}",
        "{1:1}", "[1}", "{\"a\":1]", "]", "nul", "nulls", "True", "NaN", "Infinity", "-Infinity", "01", "-", "+1",
        ".5", "1.", "1e", "1e+", "0x1", "\"", "\"a", "\"\\", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\t\"",
        "\"\\ud800\"", "\"\\ud800\\u0041\"", "\"\\ude00\"", "1 2", "{} {}", "'a'", "\xEF\xBB\xBF{}", "\"\xFF\"",
        "//", "[1] x",
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) check_bad(bad[i], strlen(bad[i]), QW_E_FORMAT, "not JSON");
    check_bad("[1]\0", 4, QW_E_FORMAT, "byte 3");
    check_bad("[1, x]", 6, QW_E_FORMAT, "byte 4");
}

static void test_keys(void **state)
{
    (void)state;
    check_bad("{\"a\":1,\"a\":2}", 13, QW_E_ARG, "the key \"a\" twice");
    check_bad("{\"a\":1,\"b\":{\"c\":1},\"\\u0061\":2}", 31, QW_E_ARG, "the key \"a\" twice");
    check_bad("[{\"x\":[{\"\":1,\"\":2}]}]", 21, QW_E_ARG, "the key \"\" twice");
    /* Many keys: sorted, not compared pair by pair. */
    enum { N = 50000 };
    size_t used = 0;
    char *text = malloc(16 * N + 64);
    assert_non_null(text);
    text[used++] = '{';
    for (int i = 0; i < N; i++) used += (size_t)sprintf(text + used, "%s\"k%d\": 1", i ? ", " : "", i);
    size_t end = used;
    memcpy(text + used, "}", 2);
    check(text, text);
    used = end + (size_t)sprintf(text + end, ", \"k777\": 1}");
    check_bad(text, used, QW_E_ARG, "the key \"k777\" twice");
    free(text);
}

static void test_depth(void **state)
{
    char text[2 * QW_JSON_DEPTH_MAX + 8];
    (void)state;
    memset(text, '[', QW_JSON_DEPTH_MAX);
    memset(text + QW_JSON_DEPTH_MAX, ']', QW_JSON_DEPTH_MAX);
    text[2 * QW_JSON_DEPTH_MAX] = '\0';
    check(text, text);
    memset(text, '[', QW_JSON_DEPTH_MAX + 1);
    check_bad(text, QW_JSON_DEPTH_MAX + 1, QW_E_LIMIT, "more than 64 deep");
}

static void test_list(void **state)
{
    qw_buf out;
    qw_err err;
    size_t n;
    (void)state;
    qw_buf_init(&out, 1000, "json");
    assert_int_equal(qw_json_rewrite_list(text_of(" [{\"a\":[1,2]} , {}]"), "\n", &out, &n, &err), QW_OK);
    assert_int_equal(n, 2);
    assert_string_equal(qw_buf_str(&out), "\n{\"a\": [1, 2]}\n{}");
    qw_buf_clear(&out);
    assert_int_equal(qw_json_rewrite_list(text_of("[]"), "\n", &out, &n, &err), QW_OK);
    assert_int_equal(n, 0);
    assert_int_equal(qw_json_rewrite_list(text_of(" null "), "\n", &out, &n, &err), QW_OK);
    assert_int_equal(n, 0);
    assert_int_equal(out.n, 0);
    assert_int_equal(qw_json_rewrite_list(text_of("null x"), "\n", &out, &n, &err), QW_E_FORMAT);
    assert_int_equal(qw_json_rewrite_list(text_of("{}"), "\n", &out, &n, &err), QW_E_ARG);
    assert_int_equal(qw_json_rewrite_list(text_of("[{},1]"), "\n", &out, &n, &err), QW_E_ARG);
    assert_non_null(strstr(err.text, "element 1"));
    assert_int_equal(qw_json_rewrite_list(text_of("[{}"), "\n", &out, &n, &err), QW_E_FORMAT);
    assert_int_equal(out.n, 0);
    qw_buf_free(&out);
}

static void test_limit(void **state)
{
    qw_buf out;
    qw_err err;
    (void)state;
    qw_buf_init(&out, 8, "small");
    assert_int_equal(qw_json_rewrite(text_of("[1,2,3,4]"), &out, &err), QW_E_LIMIT);
    assert_int_equal(out.n, 0);
    qw_buf_free(&out);
}

/* Byte by byte the same texts are JSON, but for what only a whole text shows: a key twice. */
static void test_push(void **state)
{
    static const char *const bits[] = {"{", "}", "[", "]", ",", ":", "\"a\"", "\"b\"", " ", "\n", "1", "0", "-", ".",
                                       "e", "E+", "true", "null", "fals", "e", "\"\\n\"", "\"\\u00e9\"",
                                       "\"\\x\"", "\"\\u12", "\"\t\"", "{\"a\":"};
    enum { ROUNDS = 200000, N_BITS = sizeof bits / sizeof *bits };
    uint64_t seed = 4242;
    size_t n_json = 0;
    (void)state;
    printf("seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < ROUNDS; round++) {
        char text[128] = "";
        qw_json_push p = {0};
        qw_buf out;
        for (uint64_t k = 1 + seed % 9; k > 0; k--) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            strcat(text, bits[seed % N_BITS]);
        }
        qw_buf_init(&out, 1 << 16, "json");
        qw_status status = qw_json_rewrite(text_of(text), &out, NULL);
        qw_buf_free(&out);
        for (size_t i = 0; text[i]; i++) qw_json_push_byte(&p, text[i]);
        qw_json_push_byte(&p, ' '); /* a number ends */
        bool json = status == QW_OK || status == QW_E_ARG;
        if ((p.state == QW_JSON_DONE) != json) fail_msg("%s: %s", text, json ? "is JSON" : "is not JSON");
        n_json += json;
    }
    assert_true(n_json > ROUNDS / 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),   cmocka_unit_test(test_strings),     cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_doubles),  cmocka_unit_test(test_long_number), cmocka_unit_test(test_not_json),
        cmocka_unit_test(test_keys),     cmocka_unit_test(test_depth),       cmocka_unit_test(test_list),
        cmocka_unit_test(test_limit),    cmocka_unit_test(test_push),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
