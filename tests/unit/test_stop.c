/* test_stop.c: stop strings over text that comes in pieces.
 *
 * The reference looks at the whole text, one byte more at a time: the first stop string that ends there wins, of
 * several the longest. Every way to cut a short text into pieces, and random cuts of long ones, must give the same
 * text and the same stop string, and hold back no byte that could have been shown.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/stop.h"

enum { SEED = 20240906 };

typedef struct expected {
    size_t n_shown;  /* bytes of the text before the stop string, or all of it */
    size_t n_read;   /* bytes after which it is found, or all of them */
    const char *hit; /* or NULL */
} expected;

static expected look(const char *text, const char *const *stops, size_t n_stops)
{
    size_t n = strlen(text);
    for (size_t end = 1; end <= n; end++) {
        const char *hit = NULL;
        for (size_t i = 0; i < n_stops; i++) {
            size_t len = strlen(stops[i]);
            bool here = len <= end && memcmp(text + end - len, stops[i], len) == 0;
            if (here && (!hit || len > strlen(hit))) hit = stops[i];
        }
        if (hit) return (expected){.n_shown = end - strlen(hit), .n_read = end, .hit = hit};
    }
    return (expected){.n_shown = n, .n_read = n};
}

/* Bytes of text[0, n) that may still turn out to begin a stop string. */
static size_t must_hold(const char *text, size_t n, const char *const *stops, size_t n_stops)
{
    for (size_t k = n; k > 0; k--) {
        for (size_t i = 0; i < n_stops; i++) {
            if (k < strlen(stops[i]) && memcmp(text + n - k, stops[i], k) == 0) return k;
        }
    }
    return 0;
}

/* Feeds text in pieces; ends[i] is where piece i ends, the last one at the text's end. */
static void check(const char *text, const char *const *stops, size_t n_stops, const size_t *ends, size_t n_ends)
{
    expected want = look(text, stops, n_stops);
    qw_stop s = {0};
    qw_buf out;
    bool found = false;
    size_t at = 0;
    qw_buf_init(&out, 1 << 20, "test");
    qw_stop_begin(&s, stops, n_stops);
    for (size_t i = 0; i < n_ends && !found; at = ends[i++]) {
        assert_int_equal(qw_stop_push(&s, text + at, ends[i] - at, &out, &found, NULL), QW_OK);
        assert_int_equal(found, want.hit && ends[i] >= want.n_read);
        if (!found && out.n != ends[i] - must_hold(text, ends[i], stops, n_stops)) {
            fail_msg("'%s': %zu of %zu bytes are shown, %zu must wait", text, out.n, ends[i],
                     must_hold(text, ends[i], stops, n_stops));
        }
    }
    if (!found) assert_int_equal(qw_stop_flush(&s, &out, NULL), QW_OK);
    if (out.n != want.n_shown || memcmp(qw_buf_str(&out), text, out.n) != 0) {
        fail_msg("'%s': shown '%s', want the first %zu bytes", text, qw_buf_str(&out), want.n_shown);
    }
    if ((s.hit == NULL) != (want.hit == NULL) || (s.hit && strcmp(s.hit, want.hit) != 0)) {
        fail_msg("'%s': stopped by '%s', want '%s'", text, s.hit ? s.hit : "nothing", want.hit ? want.hit : "nothing");
    }
    qw_stop_free(&s);
    qw_buf_free(&out);
}

static void every_cut(const char *text, const char *const *stops, size_t n_stops)
{
    size_t n = strlen(text), ends[16];
    assert_true(n >= 1 && n <= 14);
    for (uint32_t cuts = 0; cuts < 1u << (n - 1); cuts++) {
        size_t n_ends = 0;
        for (size_t i = 1; i < n; i++) {
            if (cuts >> (i - 1) & 1) ends[n_ends++] = i;
        }
        ends[n_ends++] = n;
        check(text, stops, n_stops, ends, n_ends);
    }
}

static void test_every_cut(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *stops[4];
    } cases[] = {
        {"hello world", {"wor"}},
        {"hello world", {"xyz"}},
        {"hello", {"hello"}},
        {"hello", {"o"}},
        {"hello", {"h"}},
        {"hell", {"hello"}},
        {"aaaaaaab", {"aab"}},          /* the open tail moves on byte by byte */
        {"aaaaaaaa", {"aaaaaaaaa"}},
        {"ababababc", {"ababc"}},
        {"abcabcabd", {"abcabd"}},
        {"xabcde", {"abcde", "bcd"}},   /* the inner one ends first */
        {"xabcdx", {"abcde", "bcd"}},
        {"xabcx", {"ab", "abc"}},       /* a prefix of the other */
        {"xabcx", {"abc", "ab"}},
        {"xxabc", {"abc", "bc", "c"}},  /* all end at once: the longest */
        {"one\n\ntwo", {"\n\n", "\n"}},
        {"one\n\ntwo", {"\n\n\n", "\n\n"}},
        {"a</s>b<eos>", {"<eos>", "</s>", "<"}},
        {"a</sb<eos>", {"<eos>", "</s>"}},
        {"\xE4\xBD\xA0\xE5\xA5\xBD!", {"\xE5\xA5\xBD"}},
        {"\xE4\xBD\xA0\xE5\xA5\xBD!", {"\xE5\xA5\xBE", "!"}},
        {"abcd", {"d", "cd", "bcd", "abcd"}},
        {"abc", {"abc", "abc"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t n = 0;
        while (n < 4 && cases[i].stops[n]) n++;
        every_cut(cases[i].text, cases[i].stops, n);
    }
}

/* Random texts and stop strings over two letters, where everything overlaps. */
static void test_random(void **state)
{
    (void)state;
    uint32_t rng = SEED;
    size_t n_hits = 0;
    for (int round = 0; round < 6000; round++) {
        char text[61], stops[4][8];
        const char *list[4];
        size_t ends[60], n_ends = 0, n_stops, n;
#define RNG(below) ((rng = rng * 1664525u + 1013904223u) >> 8) % (below)
        n = 1 + RNG(60);
        n_stops = 1 + RNG(4);
        for (size_t i = 0; i < n; i++) text[i] = (char)('a' + RNG(2));
        text[n] = 0;
        for (size_t i = 0; i < n_stops; i++) {
            size_t len = 1 + RNG(7);
            for (size_t k = 0; k < len; k++) stops[i][k] = (char)('a' + RNG(2));
            stops[i][len] = 0;
            list[i] = stops[i];
        }
        for (size_t at = 0; at < n;) {
            at += 1 + RNG(5);
            ends[n_ends++] = at < n ? at : n;
        }
        check(text, list, n_stops, ends, n_ends);
        n_hits += look(text, list, n_stops).hit != NULL;
    }
    printf("seed %d: %zu texts with a stop string\n", SEED, n_hits);
    assert_true(n_hits > 3000 && n_hits < 6000);
}

/* No stop strings: everything passes at once. Empty pieces change nothing. */
static void test_none(void **state)
{
    (void)state;
    static const char *const stops[] = {"stop"};
    qw_stop s = {0};
    qw_buf out;
    bool found = true;
    qw_buf_init(&out, 100, "test");
    qw_stop_begin(&s, NULL, 0);
    assert_int_equal(qw_stop_push(&s, "abc", 3, &out, &found, NULL), QW_OK);
    assert_false(found);
    assert_string_equal(qw_buf_str(&out), "abc");
    assert_int_equal(qw_stop_flush(&s, &out, NULL), QW_OK);
    assert_string_equal(qw_buf_str(&out), "abc");
    qw_buf_clear(&out);
    qw_stop_begin(&s, stops, 1);
    assert_int_equal(qw_stop_push(&s, "", 0, &out, &found, NULL), QW_OK);
    assert_int_equal(qw_stop_push(&s, "st", 2, &out, &found, NULL), QW_OK);
    assert_int_equal(qw_stop_push(&s, "", 0, &out, &found, NULL), QW_OK);
    assert_int_equal(out.n, 0);
    assert_int_equal(qw_stop_flush(&s, &out, NULL), QW_OK);
    assert_string_equal(qw_buf_str(&out), "st");
    /* a second answer begins with nothing held */
    assert_int_equal(qw_stop_push(&s, "sto", 3, &out, &found, NULL), QW_OK);
    qw_stop_begin(&s, stops, 1);
    qw_buf_clear(&out);
    assert_int_equal(qw_stop_push(&s, "p.", 2, &out, &found, NULL), QW_OK);
    assert_false(found);
    assert_string_equal(qw_buf_str(&out), "p.");
    qw_stop_free(&s);
    qw_buf_free(&out);
}

/* Output that is full is an error, and what was held is still held. */
static void test_full_output(void **state)
{
    (void)state;
    static const char *const stops[] = {"zz"};
    qw_stop s = {0};
    qw_buf out;
    qw_err err = {0};
    bool found;
    qw_buf_init(&out, 4, "small");
    qw_stop_begin(&s, stops, 1);
    assert_int_equal(qw_stop_push(&s, "123456z", 7, &out, &found, &err), QW_E_LIMIT);
    assert_false(found);
    qw_buf_free(&out);
    qw_buf_init(&out, 100, "large");
    assert_int_equal(qw_stop_flush(&s, &out, NULL), QW_OK);
    assert_string_equal(qw_buf_str(&out), "123456z");
    qw_stop_free(&s);
    qw_buf_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_cut),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_none),
        cmocka_unit_test(test_full_output),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
