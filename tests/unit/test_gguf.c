/* test_gguf.c: GGUF files, good, bad, split, shrinking, with flipped bits and cut anywhere.
 *
 * The bad files are made here; each case carries the number of the check in docs/gguf.md and the exact
 * words of its message. Nothing here needs a real model.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "formats/gguf.h"
#include "gguf_writer.h"
#include "temp_dir.h"

enum { F32 = 0, F16 = 1, Q8_0 = 8, Q4_K = 12 };
enum { U8, I8, U16, I16, U32, I32, FLOAT32, BOOL, STRING, ARRAY, U64, I64, FLOAT64 };

/* The tensors of the common small file: "a" is Q8_0 [32] (34 bytes, padded to 64), "b" F32 [8,4] (128). */
static void put_infos(gw *w)
{
    gw_info(w, "a", 32, 0, Q8_0, 0);
    gw_info(w, "b", 8, 4, F32, 64);
}

static void put_data(gw *w, size_t alignment)
{
    gw_pad(w, alignment);
    for (int i = 0; i < 64 + 128; i++) gw_fill(w, 1, i < 34 || i >= 64 ? (uint8_t)(i + 1) : 0);
}

/* Header, one key, and the tensors. The bad files are this with one thing wrong. */
static void put_rest(gw *w)
{
    put_infos(w);
    put_data(w, 32);
}

/* One key of every type, in the order of value types. */
static void put_good(gw *w, uint32_t version)
{
    gw_header(w, version, 2, 17);
    gw_kv_int(w, "t.u8", U8, 1, 200);
    gw_kv_int(w, "t.i8", I8, 1, (uint8_t)-5);
    gw_kv_int(w, "t.u16", U16, 2, 60000);
    gw_kv_int(w, "t.i16", I16, 2, (uint16_t)-300);
    gw_kv_int(w, "t.u32", U32, 4, 4000000000u);
    gw_kv_int(w, "t.i32", I32, 4, (uint32_t)-70000);
    gw_kv_f32(w, "t.f32", 1.5f);
    gw_kv_int(w, "t.bool", BOOL, 1, 1);
    gw_kv_str(w, "t.string", "two\nlines");
    gw_kv_int(w, "t.u64", U64, 8, UINT64_MAX);
    gw_kv_int(w, "t.i64", I64, 8, (uint64_t)-1);
    gw_kv_int(w, "t.f64", FLOAT64, 8, 0x4009000000000000); /* 3.125 */
    gw_kv_array(w, "t.strings", STRING, 3);
    gw_str(w, "x");
    gw_str(w, "");
    gw_str(w, "yz");
    gw_kv_array(w, "t.ints", I16, 3);
    for (int i = 0; i < 3; i++) gw_le(w, (uint16_t)(i - 1), 2, true);
    gw_kv_array(w, "t.floats", FLOAT32, 2);
    gw_le(w, 0x3f000000, 4, true);
    gw_le(w, 0xc0000000, 4, true);
    gw_kv_array(w, "t.bools", BOOL, 2);
    gw_le(w, 0, 1, true);
    gw_le(w, 1, 1, true);
    gw_kv_str(w, "general.architecture", "qwen2");
    put_infos(w);
    put_data(w, 32);
}

static const char *save(gw *w, const char *name)
{
    const char *path = temp_path(name);
    gw_save(w, path);
    gw_free(w);
    return path;
}

static qw_gguf *open_good(const char *path)
{
    qw_gguf *g = NULL;
    qw_err err;
    if (qw_gguf_open(path, &g, &err) != QW_OK) fail_msg("%s", err.text);
    return g;
}

/* The file is refused, and the message is "PATH: text". */
static void assert_refused(const char *path, qw_status status, const char *text)
{
    qw_gguf *g = NULL;
    qw_err err = {0};
    char want[QW_ERR_TEXT_MAX];
    assert_int_not_equal(qw_gguf_open(path, &g, &err), QW_OK);
    snprintf(want, sizeof want, "%s: %s", path, text);
    assert_string_equal(err.text, want);
    assert_int_equal(err.status, status);
    assert_null(g);
}

/* ---- good files ------------------------------------------------------------------------------- */

static void check_scalars(const qw_gguf *g)
{
    qw_err err;
    uint64_t u = 0;
    double d = 0;
    bool b = false;
    qw_text s = {0};
    assert_int_equal(qw_gguf_get_u64(g, "t.u8", &u, &err), QW_OK);
    assert_int_equal(u, 200);
    assert_int_equal(qw_gguf_get_u64(g, "t.u16", &u, &err), QW_OK);
    assert_int_equal(u, 60000);
    assert_int_equal(qw_gguf_get_u64(g, "t.u32", &u, &err), QW_OK);
    assert_int_equal(u, 4000000000u);
    assert_int_equal(qw_gguf_get_u64(g, "t.u64", &u, &err), QW_OK);
    assert_true(u == UINT64_MAX);
    assert_int_equal(qw_gguf_get_f64(g, "t.f32", &d, &err), QW_OK);
    assert_true(d == 1.5);
    assert_int_equal(qw_gguf_get_f64(g, "t.f64", &d, &err), QW_OK);
    assert_true(d == 3.125);
    assert_int_equal(qw_gguf_get_bool(g, "t.bool", &b, &err), QW_OK);
    assert_true(b);
    assert_int_equal(qw_gguf_get_str(g, "t.string", &s, &err), QW_OK);
    assert_int_equal(s.n, 9);
    assert_memory_equal(s.s, "two\nlines", 9);
}

static void check_arrays(const qw_gguf *g)
{
    static const char *const want[] = {"x", "", "yz"};
    qw_gguf_array a;
    assert_int_equal(qw_gguf_get_array(g, "t.strings", QW_GGUF_STRING, &a, NULL), QW_OK);
    assert_int_equal(a.n, 3);
    for (size_t i = 0; i < 3; i++) {
        qw_text t = qw_gguf_array_str(&a, i);
        assert_int_equal(t.n, strlen(want[i]));
        assert_memory_equal(t.s, want[i], t.n);
    }
    assert_int_equal(qw_gguf_get_array(g, "t.ints", QW_GGUF_I32, &a, NULL), QW_OK);
    assert_int_equal(a.n, 3);
    for (size_t i = 0; i < 3; i++) assert_int_equal(qw_gguf_array_int(&a, i), (int64_t)i - 1);
    assert_int_equal(qw_gguf_get_array(g, "t.floats", QW_GGUF_F32, &a, NULL), QW_OK);
    assert_true(a.n == 2 && qw_gguf_array_f64(&a, 0) == 0.5 && qw_gguf_array_f64(&a, 1) == -2.0);
    assert_int_equal(qw_gguf_get_array(g, "t.bools", QW_GGUF_BOOL, &a, NULL), QW_OK);
    assert_true(a.n == 2 && qw_gguf_array_int(&a, 0) == 0 && qw_gguf_array_int(&a, 1) == 1);
}

static void check_tensors(const qw_gguf *g)
{
    assert_int_equal(qw_gguf_n_tensors(g), 2);
    const qw_tensor *a = qw_gguf_tensor(g, 0), *b = qw_gguf_find_tensor(g, "b");
    assert_ptr_equal(b, qw_gguf_tensor(g, 1));
    assert_null(qw_gguf_find_tensor(g, "c"));
    assert_string_equal(a->name, "a");
    assert_true(a->type == QW_TYPE_Q8_0 && a->n_dims == 1 && a->ne[0] == 32 && a->ne[1] == 1 && a->bytes == 34);
    assert_true(b->type == QW_TYPE_F32 && b->n_dims == 2 && b->ne[0] == 8 && b->ne[1] == 4 && b->ne[3] == 1);
    assert_int_equal(b->bytes, 128);
    assert_int_equal(a->data[0], 1);
    assert_int_equal(b->data[0], 65);
    assert_int_equal(b->data[127], 192);
}

static void check_good(uint32_t version)
{
    gw w = {0};
    put_good(&w, version);
    size_t bytes = w.n;
    const char *path = save(&w, "good.gguf");
    qw_gguf *g = open_good(path);
    assert_string_equal(qw_gguf_path(g), path);
    assert_int_equal(qw_gguf_version(g), version);
    assert_int_equal(qw_gguf_bytes(g), bytes);
    assert_int_equal(qw_gguf_n_kv(g), 17);
    assert_true(qw_gguf_has(g, "t.u8"));
    assert_false(qw_gguf_has(g, "t.u"));
    assert_false(qw_gguf_map_failed(g));
    check_scalars(g);
    check_arrays(g);
    check_tensors(g);
    assert_int_equal(qw_gguf_check_finite(g, NULL), QW_OK);
    char id[65], again[65];
    qw_gguf_identity(g, id);
    qw_gguf_identity(g, again);
    assert_int_equal(strspn(id, "0123456789abcdef"), 64);
    assert_string_equal(id, again);
    qw_gguf_close(g);
}

static void test_good_v2(void **state)
{
    (void)state;
    check_good(2);
}

static void test_good_v3(void **state)
{
    (void)state;
    check_good(3);
    qw_gguf_close(NULL);
}

static void test_values_for_people(void **state)
{
    (void)state;
    static const char *const want[] = {"200", "-5", "60000", "-300", "4000000000", "-70000", "1.5", "true",
                                       "two lines", "18446744073709551615", "-1", "3.125", "[3 strings]",
                                       "[3 integers]", "[2 numbers]", "[2 truth values]", "qwen2"};
    gw w = {0};
    put_good(&w, 3);
    qw_gguf *g = open_good(save(&w, "people.gguf"));
    for (size_t i = 0; i < qw_gguf_n_kv(g); i++) {
        char text[40];
        qw_gguf_kv_text(g, i, text, sizeof text);
        assert_string_equal(text, want[i]);
        for (size_t cap = 0; cap <= 12; cap++) { /* never past the end */
            memset(text, 0x55, sizeof text);
            qw_gguf_kv_text(g, i, text, cap);
            assert_int_equal(text[cap], 0x55);
            if (cap > 0) assert_true(strlen(text) < cap);
        }
    }
    char text[9];
    qw_gguf_kv_text(g, 8, text, sizeof text);
    assert_string_equal(text, "two l...");
    qw_gguf_type type, elem;
    size_t n;
    qw_gguf_kv_type(g, 13, &type, &elem, &n);
    assert_true(type == QW_GGUF_ARRAY && elem == QW_GGUF_I16 && n == 3);
    qw_gguf_kv_type(g, 0, &type, &elem, &n);
    assert_true(type == QW_GGUF_U8 && n == 1);
    assert_memory_equal(qw_gguf_kv_key(g, 0).s, "t.u8", qw_gguf_kv_key(g, 0).n);
    qw_gguf_close(g);
}

/* Other alignments, an unpadded end, and no tensors at all are fine. */
static void test_good_variants(void **state)
{
    (void)state;
    gw w = {0};
    gw_header(&w, 3, 1, 1);
    gw_kv_u32(&w, "general.alignment", 4096);
    gw_info(&w, "only", 3, 0, F32, 0);
    gw_pad(&w, 4096);
    gw_fill(&w, 12, 7);
    qw_gguf *g = open_good(save(&w, "aligned.gguf"));
    assert_int_equal(qw_gguf_tensor(g, 0)->data[11], 7);
    qw_gguf_close(g);

    gw_header(&w, 3, 0, 0);
    g = open_good(save(&w, "none.gguf"));
    assert_int_equal(qw_gguf_n_tensors(g), 0);
    assert_int_equal(qw_gguf_n_kv(g), 0);
    assert_null(qw_gguf_find_tensor(g, "a"));
    assert_false(qw_gguf_has(g, "k"));
    qw_gguf_close(g);
}

/* ---- bad files, one for each check ------------------------------------------------------------ */

static void start(gw *w) /* two tensors and one key follow */
{
    gw_header(w, 3, 2, 1);
}

static void bad_2(gw *w) { gw_put(w, "GGUF\3\0\0\0aaaabbbbccccddd", 23, false); }
static void bad_6(gw *w) { gw_put(w, "GGUG\3\0\0\0aaaabbbbccccddddeeee", 28, false); }
static void bad_6_lfs(gw *w)
{
    static const char text[] = "version https://git-lfs.github.com/spec/v1\noid sha256:00\n";
    gw_put(w, text, sizeof text - 1, false);
}
static void bad_6_web(gw *w) { gw_put(w, "<!DOCTYPE html><html>Not found</html>", 37, false); }
static void bad_6_zip(gw *w) { gw_put(w, "PK\3\4xxxxxxxxxxxxxxxxxxxxxxxxx", 29, false); }
static void bad_6_ggml(gw *w) { gw_put(w, "tjggxxxxxxxxxxxxxxxxxxxxxxxxxx", 29, false); }
static void bad_7_zero(gw *w) { gw_header(w, 0, 0, 0); }
static void bad_7_one(gw *w) { gw_header(w, 1, 0, 0); }
static void bad_7_swapped(gw *w) { gw_header(w, 0x03000000, 0, 0); }
static void bad_7_newer(gw *w) { gw_header(w, 4, 0, 0); }
static void bad_8_limit(gw *w) { gw_header(w, 3, 65537, 0); }
static void bad_8_huge(gw *w) { gw_header(w, 3, UINT64_MAX, 0); }
static void bad_8_room(gw *w)
{
    gw_header(w, 3, 4, 0);
    gw_fill(w, 131, 0);
}
static void bad_9_limit(gw *w) { gw_header(w, 3, 0, 65537); }
static void bad_9_room(gw *w)
{
    gw_header(w, 3, 0, 3);
    gw_fill(w, 41, 0);
}
static void bad_10(gw *w)
{
    gw_header(w, 3, 0, 1);
    gw_key(w, "k", U64);
    gw_fill(w, 3, 0);
}

static void bad_11_empty(gw *w) { start(w), gw_kv_u32(w, "", 1), put_rest(w); }
static void bad_11_long(gw *w)
{
    start(w);
    gw_u64(w, 65536);
    gw_fill(w, 65536, 'k');
    gw_u32(w, U8);
    gw_fill(w, 1, 0);
    put_rest(w);
}
static void bad_11_zero(gw *w)
{
    start(w);
    gw_bytes(w, "a\0b", 3);
    gw_u32(w, U32);
    gw_le(w, 1, 4, true);
    put_rest(w);
}
static void bad_11_charset(gw *w) { start(w), gw_kv_u32(w, "caf\xc3\xa9", 1), put_rest(w); }
static void bad_12(gw *w)
{
    gw_header(w, 3, 2, 3);
    gw_kv_u32(w, "x.one", 1);
    gw_kv_u32(w, "x.two", 1);
    gw_kv_str(w, "x.one", "1");
    put_rest(w);
}
static void bad_13(gw *w) { start(w), gw_kv_int(w, "k", 13, 4, 1), put_rest(w); }
static void bad_14_type(gw *w) { start(w), gw_kv_array(w, "k", 77, 0), put_rest(w); }
static void bad_14_nested(gw *w) { start(w), gw_kv_array(w, "k", ARRAY, 1), gw_fill(w, 12, 0), put_rest(w); }
static void bad_15(gw *w) { gw_header(w, 3, 0, 1), gw_kv_array(w, "k", U32, 1000), gw_fill(w, 3999, 0); }
static void bad_15_strings(gw *w) { gw_header(w, 3, 0, 1), gw_kv_array(w, "k", STRING, 10), gw_fill(w, 79, 0); }
static void bad_16(gw *w)
{
    start(w);
    gw_key(w, "k", STRING);
    gw_u64(w, (16u << 20) + 1);
    put_rest(w);
}
static void bad_16_in_array(gw *w)
{
    start(w);
    gw_kv_array(w, "k", STRING, 2);
    gw_str(w, "fine");
    gw_u64(w, UINT64_MAX);
    put_rest(w);
}
static void bad_16_array(gw *w) { start(w), gw_kv_array(w, "k", U8, (64u << 20) + 1), put_rest(w); }
static void bad_18(gw *w) { start(w), gw_kv_int(w, "k", BOOL, 1, 2), put_rest(w); }
static void bad_18_array(gw *w)
{
    start(w);
    gw_kv_array(w, "k", BOOL, 2);
    gw_le(w, 0xff01, 2, true);
    put_rest(w);
}

static void bad_20(gw *w, uint32_t n) { start(w), gw_kv_u32(w, "general.alignment", n), put_rest(w); }
static void bad_20_type(gw *w) { start(w), gw_kv_int(w, "general.alignment", U64, 8, 32), put_rest(w); }
static void bad_20_zero(gw *w) { bad_20(w, 0); }
static void bad_20_power(gw *w) { bad_20(w, 48); }
static void bad_20_small(gw *w) { bad_20(w, 4); }
static void bad_20_large(gw *w) { bad_20(w, 131072); }

/* One key and two tensors, the second as a caller likes it. */
static void start_info(gw *w)
{
    gw_header(w, 3, 2, 1);
    gw_kv_str(w, "general.architecture", "qwen2");
    gw_info(w, "a", 32, 0, Q8_0, 0);
}
static void one_info(gw *w, const char *name, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset)
{
    start_info(w);
    gw_info(w, name, ne0, ne1, type, offset);
    put_data(w, 32);
}

static void bad_22_empty(gw *w) { one_info(w, "", 8, 4, F32, 64); }
static void bad_22_long(gw *w)
{
    one_info(w, "0123456789012345678901234567890123456789012345678901234567890123", 8, 4, F32, 64);
}
static void bad_22_zero(gw *w)
{
    start_info(w);
    gw_bytes(w, "b\0c", 3);
    gw_u32(w, 1);
    gw_u64(w, 32);
    gw_u32(w, F32);
    gw_u64(w, 64);
    put_data(w, 32);
}
static void bad_22_utf8(gw *w) { one_info(w, "b\xff", 8, 4, F32, 64); }
static void bad_22_twice(gw *w) { one_info(w, "a", 8, 4, F32, 64); }
static void bad_23(gw *w, uint32_t n_dims)
{
    start_info(w);
    gw_str(w, "b");
    gw_u32(w, n_dims);
    for (uint32_t i = 0; i < n_dims; i++) gw_u64(w, 2);
    gw_u32(w, F32);
    gw_u64(w, 64);
    put_data(w, 32);
}
static void bad_23_none(gw *w) { bad_23(w, 0); }
static void bad_23_five(gw *w) { bad_23(w, 5); }
static void bad_24_zero(gw *w) { one_info(w, "b", 0, 4, F32, 64); }
static void bad_24_large(gw *w) { one_info(w, "b", 8, ((uint64_t)1 << 31) + 1, F32, 64); }
static void bad_25(gw *w)
{
    start_info(w);
    gw_str(w, "b");
    gw_u32(w, 3);
    for (int i = 0; i < 3; i++) gw_u64(w, (uint64_t)1 << 31);
    gw_u32(w, F32);
    gw_u64(w, 64);
    put_data(w, 32);
}
static void bad_26_foreign(gw *w) { one_info(w, "b", 256, 0, 36, 64); }
static void bad_26_removed(gw *w) { one_info(w, "b", 256, 0, 4, 64); }
static void bad_26_unknown(gw *w) { one_info(w, "b", 256, 0, 63, 64); }
static void bad_26_huge(gw *w) { one_info(w, "b", 256, 0, UINT32_MAX, 64); }
static void bad_27(gw *w) { one_info(w, "b", 255, 4, Q4_K, 64); }
static void bad_28(gw *w) { one_info(w, "b", (uint64_t)1 << 31, (uint64_t)1 << 31, F32, 64); }
static void bad_29(gw *w) { one_info(w, "b", 8, 4, F32, 65); }
static void bad_30(gw *w) { one_info(w, "b", 8, 4, F32, 96); }
static void bad_30_huge(gw *w) { one_info(w, "b", 8, 4, F32, UINT64_MAX - 31); }
static void bad_31_overlap(gw *w) { one_info(w, "b", 8, 4, F32, 32); }
static void bad_31_gap(gw *w) { one_info(w, "b", 8, 3, F32, 96); }
static void bad_32(gw *w) { one_info(w, "b", 8, 5, F32, 64); }
static void bad_32_sum(gw *w)
{
    start_info(w);
    w->data[8] = 3; /* n_tensors */
    gw_info(w, "b", (uint64_t)1 << 31, (uint64_t)1 << 29, F32, 64);
    gw_info(w, "c", (uint64_t)1 << 31, (uint64_t)1 << 29, F32, 64 + ((uint64_t)1 << 62));
    put_data(w, 32);
}
static void bad_33(gw *w) { one_info(w, "b", 8, 4, F32, 64), gw_fill(w, 5, 0); }
static void bad_33_lost(gw *w) /* what a count that lost its last tensor looks like */
{
    gw_header(w, 3, 1, 0);
    put_rest(w);
}

typedef struct bad_case {
    const char *name;
    void (*build)(gw *w);
    qw_status status;
    const char *text;
} bad_case;

static bad_case bad_cases[] = {
    {"check 2: short", bad_2, QW_E_FORMAT, "the file is cut short: 23 bytes are no GGUF header (want 24)"},
    {"check 6: magic", bad_6, QW_E_FORMAT, "not a GGUF file: the first bytes are 47 47 55 47, want 47 47 55 46"},
    {"check 6: lfs", bad_6_lfs, QW_E_FORMAT,
     "not a GGUF file but a Git LFS pointer: download the file it stands for"},
    {"check 6: web", bad_6_web, QW_E_FORMAT,
     "not a GGUF file but a web page: the download went to the wrong address"},
    {"check 6: zip", bad_6_zip, QW_E_FORMAT,
     "not a GGUF file but a ZIP archive or PyTorch file: convert the model to GGUF"},
    {"check 6: ggml", bad_6_ggml, QW_E_FORMAT, "not a GGUF file but an old GGML file: convert the model to GGUF"},
    {"check 7: version 0", bad_7_zero, QW_E_FORMAT, "GGUF version 0 does not exist"},
    {"check 7: version 1", bad_7_one, QW_E_UNSUPPORTED,
     "GGUF version 1 is too old: convert the model again (want version 2 or 3)"},
    {"check 7: byte order", bad_7_swapped, QW_E_UNSUPPORTED, "a big-endian GGUF file: convert it to little-endian"},
    {"check 7: version 4", bad_7_newer, QW_E_UNSUPPORTED, "GGUF version 4 is newer than this program (want 2 or 3)"},
    {"check 8: limit", bad_8_limit, QW_E_LIMIT, "the header asks for 65537 tensors, the limit is 65536"},
    {"check 8: huge", bad_8_huge, QW_E_LIMIT,
     "the header asks for 18446744073709551615 tensors, the limit is 65536"},
    {"check 8: room", bad_8_room, QW_E_FORMAT,
     "the file is cut short: 4 tensors need at least 132 bytes, 131 remain"},
    {"check 9: limit", bad_9_limit, QW_E_LIMIT, "the header asks for 65537 keys, the limit is 65536"},
    {"check 9: room", bad_9_room, QW_E_FORMAT, "the file is cut short: 3 keys need at least 42 bytes, 41 remain"},
    {"check 10", bad_10, QW_E_FORMAT, "ends inside key 'k': 8 bytes are needed at byte 37, 3 remain"},
    {"check 11: empty", bad_11_empty, QW_E_FORMAT, "the name of key 1: is empty"},
    {"check 11: long", bad_11_long, QW_E_LIMIT, "the name of key 1: has 65536 bytes, the limit is 65535"},
    {"check 11: zero byte", bad_11_zero, QW_E_FORMAT,
     "the name of key 1: has the byte 0x00 at position 2: want printable ASCII"},
    {"check 11: charset", bad_11_charset, QW_E_FORMAT,
     "the name of key 1: has the byte 0xc3 at position 4: want printable ASCII"},
    {"check 12", bad_12, QW_E_FORMAT, "key 'x.one': is there twice"},
    {"check 13", bad_13, QW_E_FORMAT, "key 'k': unknown value type 13"},
    {"check 14: type", bad_14_type, QW_E_FORMAT, "key 'k': array elements of unknown type 77"},
    {"check 14: nested", bad_14_nested, QW_E_UNSUPPORTED, "key 'k': an array of arrays"},
    {"check 15: numbers", bad_15, QW_E_FORMAT,
     "key 'k': the file is cut short: an array of 1000 elements needs at least 4000 bytes, 3999 remain"},
    {"check 15: strings", bad_15_strings, QW_E_FORMAT,
     "key 'k': the file is cut short: an array of 10 elements needs at least 80 bytes, 79 remain"},
    {"check 16: string", bad_16, QW_E_LIMIT, "key 'k': a string of 16777217 bytes at byte 37, the limit is 16777216"},
    {"check 16: string in array", bad_16_in_array, QW_E_LIMIT,
     "key 'k': a string of 18446744073709551615 bytes at byte 61, the limit is 16777216"},
    {"check 16: array", bad_16_array, QW_E_LIMIT, "key 'k': an array of 67108865 elements, the limit is 67108864"},
    {"check 18: bool", bad_18, QW_E_FORMAT, "key 'k': a truth value is 2: want 0 or 1"},
    {"check 18: bools", bad_18_array, QW_E_FORMAT, "key 'k': a truth value is 255: want 0 or 1"},
    {"check 20: type", bad_20_type, QW_E_FORMAT, "key 'general.alignment' is of type u64: want u32"},
    {"check 20: zero", bad_20_zero, QW_E_FORMAT,
     "key 'general.alignment' is 0: want a power of two from 8 to 65536"},
    {"check 20: power", bad_20_power, QW_E_FORMAT,
     "key 'general.alignment' is 48: want a power of two from 8 to 65536"},
    {"check 20: small", bad_20_small, QW_E_FORMAT,
     "key 'general.alignment' is 4: want a power of two from 8 to 65536"},
    {"check 20: large", bad_20_large, QW_E_FORMAT,
     "key 'general.alignment' is 131072: want a power of two from 8 to 65536"},
    {"check 22: empty", bad_22_empty, QW_E_FORMAT, "the name of tensor 2 is empty"},
    {"check 22: long", bad_22_long, QW_E_LIMIT, "the name of tensor 2 has 64 bytes, the limit is 63"},
    {"check 22: zero byte", bad_22_zero, QW_E_FORMAT, "the name of tensor 2 has a zero byte in it"},
    {"check 22: UTF-8", bad_22_utf8, QW_E_FORMAT, "the name of tensor 2 is not valid UTF-8"},
    {"check 22: twice", bad_22_twice, QW_E_FORMAT, "tensor 'a' is there twice"},
    {"check 23: none", bad_23_none, QW_E_FORMAT, "tensor 'b' has 0 dimensions: want 1 to 4"},
    {"check 23: five", bad_23_five, QW_E_FORMAT, "tensor 'b' has 5 dimensions: want 1 to 4"},
    {"check 24: zero", bad_24_zero, QW_E_FORMAT, "tensor 'b' has 0 as dimension 1: want 1 to 2147483648"},
    {"check 24: large", bad_24_large, QW_E_FORMAT,
     "tensor 'b' has 2147483649 as dimension 2: want 1 to 2147483648"},
    {"check 25", bad_25, QW_E_FORMAT, "tensor 'b' has more than 2^63 elements"},
    {"check 26: foreign", bad_26_foreign, QW_E_UNSUPPORTED,
     "tensor 'b' is of type IQ4_NL_4_4 (36), which is not supported: take a file with another quantization, such as "
     "Q4_K_M or Q8_0"},
    {"check 26: removed", bad_26_removed, QW_E_UNSUPPORTED,
     "tensor 'b' is of type Q4_2 (4), which is not supported: take a file with another quantization, such as "
     "Q4_K_M or Q8_0"},
    {"check 26: unknown", bad_26_unknown, QW_E_FORMAT, "tensor 'b' is of unknown type 63"},
    {"check 26: huge", bad_26_huge, QW_E_FORMAT, "tensor 'b' is of unknown type 4294967295"},
    {"check 27", bad_27, QW_E_FORMAT, "tensor 'b' has rows of 255 elements: Q4_K wants a multiple of 256"},
    {"check 28", bad_28, QW_E_FORMAT, "tensor 'b' has more than 2^63 bytes"},
    {"check 29", bad_29, QW_E_FORMAT, "tensor 'b' begins at offset 65: want a multiple of 32"},
    {"check 30", bad_30, QW_E_FORMAT,
     "tensor 'b' lies outside the file: offset 96 and 128 bytes, the data has 192"},
    {"check 30: huge", bad_30_huge, QW_E_FORMAT,
     "tensor 'b' lies outside the file: offset 18446744073709551584 and 128 bytes, the data has 192"},
    {"check 31: overlap", bad_31_overlap, QW_E_FORMAT,
     "tensor 'b' begins at offset 32 and overlaps the tensors before it, which reach to 64"},
    {"check 31: gap", bad_31_gap, QW_E_FORMAT, "tensor 'b' begins at offset 96 and leaves a gap: want 64"},
    {"check 32", bad_32, QW_E_FORMAT, "the file is cut short: 352 bytes, the header asks for 384"},
    {"check 32: sum", bad_32_sum, QW_E_FORMAT, "the tensors up to 'c' have more than 2^63 bytes together"},
    {"check 33: trailing", bad_33, QW_E_FORMAT, "5 bytes follow the last tensor: want none"},
    {"check 33: lost tensor", bad_33_lost, QW_E_FORMAT, "192 bytes follow the last tensor: want none"},
};
enum { N_BAD = sizeof bad_cases / sizeof bad_cases[0] };

static void run_bad_case(void **state)
{
    const bad_case *c = *state;
    gw w = {0};
    c->build(&w);
    assert_refused(save(&w, "bad.gguf"), c->status, c->text);
}

/* ---- checks that need more than a few bytes --------------------------------------------------- */

static void test_check_1_regular_file(void **state)
{
    (void)state;
    assert_int_equal(mkfifo(temp_path("fifo.gguf"), 0600), 0);
    assert_int_equal(mkdir(temp_path("dir.gguf"), 0700), 0);
    gw w = {0};
    save(&w, "empty.gguf");
    assert_refused(temp_path("fifo.gguf"), QW_E_FORMAT, "is a pipe, want a regular file");
    assert_refused(temp_path("dir.gguf"), QW_E_NOT_FOUND,
                   "is a folder without config.json: want a GGUF file or a Hugging Face folder");
    assert_refused("/dev/null", QW_E_FORMAT, "is a device, want a regular file");
    assert_refused(temp_path("empty.gguf"), QW_E_FORMAT, "the file is empty");
    assert_refused(temp_path("no.gguf"), QW_E_NOT_FOUND, "cannot be opened: No such file or directory");
}

static void test_check_2_too_large(void **state)
{
    (void)state;
    gw w = {0};
    gw_header(&w, 3, 0, 0);
    const char *path = save(&w, "large.gguf");
    if (truncate(path, ((off_t)4 << 40) + 1) != 0) skip(); /* a file system without such files */
    qw_gguf *g = NULL;
    qw_err err;
    if (qw_gguf_open(path, &g, &err) == QW_E_IO) skip(); /* valgrind has no room for such a mapping */
    assert_refused(path, QW_E_LIMIT,
                   "4398046511105 bytes are more than a model file may have (4398046511104)");
    unlink(path);
}

/* The file that was opened stays the model, whatever its name stands for later. */
static void test_check_3_never_reopened(void **state)
{
    (void)state;
    gw w = {0};
    put_good(&w, 3);
    const char *path = save(&w, "renamed.gguf");
    qw_gguf *g = open_good(path);
    assert_int_equal(unlink(path), 0);
    gw_put(&w, "something else", 14, true);
    save(&w, "renamed.gguf");
    check_tensors(g);
    assert_false(qw_gguf_map_failed(g));
    qw_gguf_close(g);
}

static void put_at(int fd, size_t at, const gw *w)
{
    assert_int_equal(pwrite(fd, w->data, w->n, (off_t)at), (ssize_t)w->n);
}

/* Sparse files: half a gigabyte of metadata that takes no space on disk. */
static void test_check_17_metadata(void **state)
{
    (void)state;
    gw w = {0};
    gw_header(&w, 3, 0, 1);
    gw_kv_array(&w, "k", U64, 64 << 20);
    const char *path = save(&w, "metadata.gguf");
    assert_int_equal(truncate(path, (off_t)600 << 20), 0);
    assert_refused(path, QW_E_LIMIT, "key 'k': the keys take more than 268435456 bytes together");
    unlink(path);

    gw_header(&w, 3, 0, 1); /* seventeen strings of 16 MiB */
    gw_kv_array(&w, "k", STRING, 17);
    size_t at = w.n;
    path = save(&w, "metadata.gguf");
    assert_int_equal(truncate(path, (off_t)600 << 20), 0);
    int fd = open(path, O_WRONLY);
    for (int i = 0; i < 17; i++) {
        gw_u64(&w, 16 << 20);
        put_at(fd, at, &w);
        at += 8 + (16 << 20);
        gw_free(&w);
    }
    close(fd);
    assert_refused(path, QW_E_LIMIT, "key 'k': the keys take more than 268435456 bytes together");
    unlink(path);
}

static void test_check_19_and_typed_reads(void **state)
{
    (void)state;
    gw w = {0};
    gw_header(&w, 3, 2, 7);
    gw_kv_int(&w, "nan", FLOAT32, 4, 0x7fc00000);
    gw_kv_int(&w, "inf", FLOAT64, 8, 0x7ff0000000000000);
    gw_kv_array(&w, "nans", FLOAT32, 2);
    gw_le(&w, 0, 4, true);
    gw_le(&w, 0x7f800000, 4, true);
    gw_kv_int(&w, "minus", I16, 2, 0xffff);
    gw_kv_array(&w, "large", U64, 2);
    gw_le(&w, 1, 8, true);
    gw_le(&w, UINT64_MAX, 8, true);
    gw_kv_str(&w, "text", "32");
    gw_kv_int(&w, "flag", BOOL, 1, 1);
    put_rest(&w);
    const char *path = save(&w, "reads.gguf");
    qw_gguf *g = open_good(path);
    qw_err err;
    uint64_t u;
    double d;
    bool b;
    qw_text t;
    qw_gguf_array a;
#define REFUSED(call, want)                                                                        \
    do {                                                                                           \
        assert_int_equal(call, QW_E_FORMAT);                                                       \
        assert_string_equal(err.text + strlen(path), ": " want);                                   \
    } while (0)
    REFUSED(qw_gguf_get_f64(g, "nan", &d, &err), "key 'nan' is not a finite number");
    REFUSED(qw_gguf_get_f64(g, "inf", &d, &err), "key 'inf' is not a finite number");
    REFUSED(qw_gguf_get_array(g, "nans", QW_GGUF_F32, &a, &err), "key 'nans' is not a finite number");
    REFUSED(qw_gguf_get_u64(g, "minus", &u, &err), "key 'minus' is -1: want 0 or more");
    REFUSED(qw_gguf_get_array(g, "large", QW_GGUF_I32, &a, &err),
            "key 'large' holds 18446744073709551615 at position 2: want less than 2^63");
    REFUSED(qw_gguf_get_u64(g, "none", &u, &err), "key 'none' is missing");
    REFUSED(qw_gguf_get_u64(g, "text", &u, &err), "key 'text' is of type string: want an integer");
    REFUSED(qw_gguf_get_u64(g, "flag", &u, &err), "key 'flag' is of type bool: want an integer");
    REFUSED(qw_gguf_get_u64(g, "nans", &u, &err), "key 'nans' is of type array of f32: want an integer");
    REFUSED(qw_gguf_get_f64(g, "minus", &d, &err), "key 'minus' is of type i16: want f32 or f64");
    REFUSED(qw_gguf_get_bool(g, "minus", &b, &err), "key 'minus' is of type i16: want bool");
    REFUSED(qw_gguf_get_str(g, "minus", &t, &err), "key 'minus' is of type i16: want a string");
    REFUSED(qw_gguf_get_array(g, "text", QW_GGUF_STRING, &a, &err),
            "key 'text' is of type string: want array of strings");
    REFUSED(qw_gguf_get_array(g, "large", QW_GGUF_STRING, &a, &err),
            "key 'large' is of type array of u64: want array of strings");
    REFUSED(qw_gguf_get_array(g, "large", QW_GGUF_F32, &a, &err),
            "key 'large' is of type array of u64: want array of f32 or f64");
    REFUSED(qw_gguf_get_array(g, "nans", QW_GGUF_I32, &a, &err),
            "key 'nans' is of type array of f32: want array of integers");
#undef REFUSED
    qw_gguf_close(g);
}

/* Duplicates are found without comparing each with each: 65,536 keys and as many tensors. */
static void test_largest_counts(void **state)
{
    (void)state;
    enum { N = 65536 };
    gw w = {0};
    char name[32];
    gw_header(&w, 3, N, N);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "key.%d", i);
        gw_kv_int(&w, name, U8, 1, (uint8_t)i);
    }
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "tensor.%d", i);
        gw_info(&w, name, 8, 0, F32, (uint64_t)i * 32);
    }
    gw_pad(&w, 32);
    gw_fill(&w, (size_t)N * 32, 1);
    qw_gguf *g = open_good(save(&w, "many.gguf"));
    uint64_t u = 0;
    assert_int_equal(qw_gguf_get_u64(g, "key.65535", &u, NULL), QW_OK);
    assert_int_equal(u, 255);
    assert_ptr_equal(qw_gguf_find_tensor(g, "tensor.65535"), qw_gguf_tensor(g, N - 1));
    qw_gguf_close(g);
}

/* ---- 4: split files --------------------------------------------------------------------------- */

typedef struct split_spec {
    int no, count, total; /* as the keys say; total -1 leaves its key out */
    const char *tensor;   /* name of the part's only tensor */
} split_spec;

static const char *put_part(const char *name, split_spec s)
{
    gw w = {0};
    gw_header(&w, 3, 1, s.total < 0 ? 2 : 3);
    gw_kv_u16(&w, "split.no", (uint16_t)s.no);
    gw_kv_u16(&w, "split.count", (uint16_t)s.count);
    if (s.total >= 0) gw_kv_int(&w, "split.tensors.count", I32, 4, (uint32_t)s.total);
    gw_info(&w, s.tensor, 8, 0, F32, 0);
    gw_pad(&w, 32);
    gw_fill(&w, 32, (uint8_t)s.no);
    return save(&w, name);
}

/* Three good parts; each test then replaces what it wants wrong. */
static const char *put_three(void)
{
    put_part("m-00003-of-00003.gguf", (split_spec){2, 3, 3, "c"});
    put_part("m-00002-of-00003.gguf", (split_spec){1, 3, 3, "b"});
    return put_part("m-00001-of-00003.gguf", (split_spec){0, 3, 3, "a"});
}

static void test_check_4_good_split(void **state)
{
    (void)state;
    const char *first = put_three();
    qw_gguf *g = open_good(first);
    assert_int_equal(qw_gguf_n_tensors(g), 3);
    static const char *const names[] = {"a", "b", "c"};
    for (size_t i = 0; i < 3; i++) {
        const qw_tensor *t = qw_gguf_find_tensor(g, names[i]);
        assert_ptr_equal(t, qw_gguf_tensor(g, i));
        assert_int_equal(t->data[31], i);
    }
    struct stat st;
    assert_int_equal(stat(first, &st), 0);
    assert_int_equal(qw_gguf_bytes(g), 3 * st.st_size);
    assert_string_equal(qw_gguf_path(g), first);
    char id[65], other[65];
    qw_gguf_identity(g, id);
    assert_int_equal(truncate(temp_path("m-00003-of-00003.gguf"), 10), 0);
    assert_true(qw_gguf_map_failed(g)); /* any part counts */
    qw_gguf_close(g);

    put_three();
    g = open_good(first);
    qw_gguf_identity(g, other);
    assert_string_not_equal(id, other); /* other files, or at least other times */
    qw_gguf_close(g);

    put_part("merged.gguf", (split_spec){0, 0, 1, "a"}); /* what merging tools leave behind */
    qw_gguf_close(open_good(temp_path("merged.gguf")));
    put_part("one-00001-of-00001.gguf", (split_spec){0, 1, 1, "a"});
    qw_gguf_close(open_good(temp_path("one-00001-of-00001.gguf")));
}

static void test_check_4_first_part(void **state)
{
    (void)state;
    put_three();
    assert_refused(temp_path("m-00002-of-00003.gguf"), QW_E_ARG,
                   "this is part 2 of 3: open the first part (-00001-of-00003.gguf)");
    assert_refused(put_part("plain.gguf", (split_spec){0, 3, 3, "a"}), QW_E_FORMAT,
                   "the header says 3 parts: want a name that ends in -00001-of-00003.gguf");
    assert_refused(put_part("m-0001-of-00003.gguf", (split_spec){0, 3, 3, "a"}), QW_E_FORMAT,
                   "the header says 3 parts: want a name that ends in -00001-of-00003.gguf");
    assert_refused(put_part("m-00001-of-0000x.gguf", (split_spec){0, 3, 3, "a"}), QW_E_FORMAT,
                   "the header says 3 parts: want a name that ends in -00001-of-00003.gguf");
    assert_refused(put_part("-00001-of-00003.gguf", (split_spec){0, 3, 3, "a"}), QW_E_FORMAT,
                   "the header says 3 parts: want a name that ends in -00001-of-00003.gguf");
    assert_refused(put_part("n-00001-of-00004.gguf", (split_spec){0, 3, 3, "a"}), QW_E_FORMAT,
                   "the name says 4 parts, the header says 3");
    assert_refused(put_part("n-00001-of-00003.gguf", (split_spec){1, 3, 3, "a"}), QW_E_FORMAT,
                   "the name says part 1, the header says part 2");
    assert_refused(put_part("n-00001-of-01001.gguf", (split_spec){0, 1001, 3, "a"}), QW_E_LIMIT,
                   "split into 1001 parts, the limit is 1000");
    assert_refused(put_part("n-00001-of-00003.gguf", (split_spec){0, 3, 65537, "a"}), QW_E_LIMIT,
                   "the parts have 65537 tensors together, the limit is 65536");
    assert_refused(put_part("n-00001-of-00003.gguf", (split_spec){0, 3, -1, "a"}), QW_E_FORMAT,
                   "key 'split.tensors.count' is missing");
    gw w = {0};
    put_good(&w, 3);
    assert_refused(save(&w, "w-00001-of-00002.gguf"), QW_E_FORMAT,
                   "the name says part 1 of 2, the header says one file");
}

/* Opens the three parts; the message is about the later part (or about `about`). */
static void refuse_three(qw_status status, const char *text)
{
    qw_gguf *g = NULL;
    qw_err err;
    char want[QW_ERR_TEXT_MAX], with_dir[QW_ERR_TEXT_MAX];
    assert_int_equal(qw_gguf_open(temp_path("m-00001-of-00003.gguf"), &g, &err), status);
    snprintf(with_dir, sizeof with_dir, "%s/", temp_dir);
    size_t n = 0;
    for (const char *p = err.text; *p != '\0' && n + 1 < sizeof want;) { /* without the folder's name */
        if (strncmp(p, with_dir, strlen(with_dir)) == 0)
            p += strlen(with_dir);
        else
            want[n++] = *p++;
    }
    want[n] = '\0';
    assert_string_equal(want, text);
}

static void test_check_4_later_parts(void **state)
{
    (void)state;
    put_three();
    unlink(temp_path("m-00003-of-00003.gguf"));
    refuse_three(QW_E_NOT_FOUND, "m-00001-of-00003.gguf: part 3 of 3: m-00003-of-00003.gguf: cannot be opened: "
                                 "No such file or directory");
    put_three();
    put_part("m-00002-of-00003.gguf", (split_spec){1, 2, 3, "b"});
    refuse_three(QW_E_FORMAT, "m-00002-of-00003.gguf: the header says 2 parts, the first part says 3");
    put_part("m-00002-of-00003.gguf", (split_spec){2, 3, 3, "b"});
    refuse_three(QW_E_FORMAT, "m-00002-of-00003.gguf: the name says part 2, the header says part 3");
    put_part("m-00002-of-00003.gguf", (split_spec){1, 3, 4, "b"});
    refuse_three(QW_E_FORMAT,
                 "m-00002-of-00003.gguf: the header says 4 tensors in all parts, the first part says 3");
    put_part("m-00002-of-00003.gguf", (split_spec){1, 3, 3, "a"});
    refuse_three(QW_E_FORMAT, "m-00002-of-00003.gguf: tensor 'a' is there twice");
    gw w = {0};
    put_good(&w, 3);
    save(&w, "m-00002-of-00003.gguf");
    refuse_three(QW_E_FORMAT, "m-00002-of-00003.gguf: the header says 1 parts, the first part says 3");
    put_part("m-00003-of-00003.gguf", (split_spec){2, 3, 4, "c"});
    put_part("m-00002-of-00003.gguf", (split_spec){1, 3, 4, "b"});
    put_part("m-00001-of-00003.gguf", (split_spec){0, 3, 4, "a"});
    refuse_three(QW_E_FORMAT, "m-00001-of-00003.gguf: the parts hold 3 tensors, the header says 4");
}

/* ---- 46: numbers -------------------------------------------------------------------------------- */

static void test_check_46_not_a_number(void **state)
{
    (void)state;
    static const uint8_t nan_bits[4] = {0, 0, 0xc0, 0x7f};
    gw w = {0};
    qw_err err;
    put_good(&w, 3);
    memcpy(w.data + w.n - 4 - 32, nan_bits, sizeof nan_bits); /* of "b" [4, 8], F32: one row from the end */
    qw_gguf *g = open_good(save(&w, "nan.gguf"));
    assert_int_equal(qw_gguf_check_finite(g, &err), QW_E_CORRUPT);
    assert_non_null(strstr(err.text, "nan.gguf: tensor b has a value in row 2 that is not a number"));
    qw_gguf_close(g);
}

/* ---- 48 to 50: the mapping -------------------------------------------------------------------- */

static void test_check_50_file_shrinks(void **state)
{
    (void)state;
    gw w = {0};
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = 64 * page;
    gw_header(&w, 3, 1, 1);
    gw_kv_str(&w, "general.architecture", "qwen2");
    gw_info(&w, "big", n / 4, 0, F32, 0);
    gw_pad(&w, 32);
    size_t data_start = w.n;
    gw_fill(&w, n, 9);
    const char *path = save(&w, "shrinks.gguf");
    qw_gguf *g = open_good(path);
    const qw_tensor *t = qw_gguf_find_tensor(g, "big");
    assert_false(qw_gguf_map_failed(g));
    assert_int_equal(truncate(path, (off_t)(data_start + 2 * page)), 0);
    for (size_t i = 0; i < t->bytes; i += 512) /* the process lives; what is gone reads as zeros */
        assert_int_equal(*(const volatile uint8_t *)(t->data + i), i + 1 <= 2 * page ? 9 : 0);
    assert_true(qw_gguf_map_failed(g));
    qw_text arch;
    assert_int_equal(qw_gguf_get_str(g, "general.architecture", &arch, NULL), QW_OK);
    qw_gguf_close(g);
}

/* ---- every bit and every length --------------------------------------------------------------- */

/* All that the accessors say, as text. Without `names`, only what must not depend on the content of
 * names and values: counts, shapes, sizes and places. */
static void describe(const qw_gguf *g, bool names, qw_buf *out)
{
    char text[64];
    qw_buf_clear(out);
    assert_int_equal(qw_buf_printf(out, NULL, "%zu %zu\n", qw_gguf_n_kv(g), qw_gguf_n_tensors(g)), QW_OK);
    for (size_t i = 0; i < qw_gguf_n_kv(g); i++) {
        qw_gguf_type type, elem;
        size_t n;
        qw_gguf_kv_type(g, i, &type, &elem, &n);
        qw_gguf_kv_text(g, i, text, sizeof text);
        qw_text key = qw_gguf_kv_key(g, i);
        assert_int_equal(qw_buf_printf(out, NULL, "%zu %d %d\n", n, type == QW_GGUF_ARRAY, (int)key.n), QW_OK);
        if (names) assert_int_equal(qw_buf_printf(out, NULL, "%.*s %s\n", (int)key.n, key.s, text), QW_OK);
    }
    const uint8_t *base = qw_gguf_n_tensors(g) > 0 ? qw_gguf_tensor(g, 0)->data : NULL;
    for (size_t i = 0; i < qw_gguf_n_tensors(g); i++) {
        const qw_tensor *t = qw_gguf_tensor(g, i);
        assert_int_equal(qw_buf_printf(out, NULL, "%d %u %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %zu %td %d\n",
                                       (int)t->type, t->n_dims, t->ne[0], t->ne[1], t->ne[2], t->ne[3], t->bytes,
                                       t->data - base, t->data[0]),
                         QW_OK);
        if (names) assert_int_equal(qw_buf_printf(out, NULL, "%s\n", t->name), QW_OK);
    }
}

/* Every typed read of the keys in put_good(); false when one is refused, as a model would be. */
static bool typed_reads(const qw_gguf *g)
{
    static const char *const ints[] = {"t.u8", "t.u16", "t.u32", "t.u64"};
    uint64_t u;
    double d;
    bool b;
    qw_text t;
    qw_gguf_array a;
    for (size_t i = 0; i < 4; i++)
        if (qw_gguf_get_u64(g, ints[i], &u, NULL) != QW_OK) return false;
    if (qw_gguf_get_f64(g, "t.f32", &d, NULL) != QW_OK || qw_gguf_get_f64(g, "t.f64", &d, NULL) != QW_OK ||
        qw_gguf_get_bool(g, "t.bool", &b, NULL) != QW_OK || qw_gguf_get_str(g, "t.string", &t, NULL) != QW_OK ||
        qw_gguf_get_str(g, "general.architecture", &t, NULL) != QW_OK)
        return false;
    if (qw_gguf_get_array(g, "t.strings", QW_GGUF_STRING, &a, NULL) != QW_OK) return false;
    size_t sum = 0;
    for (size_t i = 0; i < a.n; i++) {
        t = qw_gguf_array_str(&a, i);
        for (size_t k = 0; k < t.n; k++) sum += (uint8_t)t.s[k];
    }
    if (qw_gguf_get_array(g, "t.ints", QW_GGUF_I32, &a, NULL) != QW_OK) return false;
    for (size_t i = 0; i < a.n; i++) sum += (size_t)qw_gguf_array_int(&a, i);
    if (qw_gguf_get_array(g, "t.floats", QW_GGUF_F32, &a, NULL) != QW_OK) return false;
    for (size_t i = 0; i < a.n; i++) sum += qw_gguf_array_f64(&a, i) > 0;
    if (qw_gguf_get_array(g, "t.bools", QW_GGUF_BOOL, &a, NULL) != QW_OK) return false;
    return sum != SIZE_MAX;
}

/* A flipped bit of structure is an error or changes nothing; one of a name or value may change that
 * name or value and nothing else. */
static void test_every_flipped_bit(void **state)
{
    (void)state;
    gw w = {0};
    qw_buf whole, shape, now;
    qw_buf_init(&whole, 1 << 16, "a description");
    qw_buf_init(&shape, 1 << 16, "a description");
    qw_buf_init(&now, 1 << 16, "a description");
    put_good(&w, 3);
    const char *path = temp_path("flip.gguf");
    gw_save(&w, path);
    qw_gguf *g = open_good(path);
    describe(g, true, &whole);
    describe(g, false, &shape);
    assert_true(typed_reads(g));
    size_t header = w.n - 192;
    qw_gguf_close(g);

    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    size_t n_refused = 0, n_same = 0, n_content = 0;
    for (size_t bit = 0; bit < header * 8; bit++) {
        uint8_t byte = w.data[bit / 8], flipped = (uint8_t)(byte ^ 1u << bit % 8);
        qw_err err = {0};
        g = NULL;
        assert_int_equal(pwrite(fd, &flipped, 1, (off_t)(bit / 8)), 1);
        if (qw_gguf_open(path, &g, &err) != QW_OK) {
            assert_true(strncmp(err.text, path, strlen(path)) == 0 && strchr(err.text, '\n') == NULL);
            n_refused++;
        } else if (w.content[bit / 8]) {
            describe(g, false, &now);
            assert_string_equal(qw_buf_str(&now), qw_buf_str(&shape));
            typed_reads(g);
            n_content++;
        } else if (!typed_reads(g)) {
            n_refused++;
        } else {
            describe(g, true, &now);
            if (strcmp(qw_buf_str(&now), qw_buf_str(&whole)) != 0) {
                /* A signed type for an unsigned one or back is the only way left: same bytes, same place. */
                describe(g, false, &now);
                if (strcmp(qw_buf_str(&now), qw_buf_str(&shape)) != 0)
                    fail_msg("bit %zu of byte %zu: accepted and different", bit % 8, bit / 8);
            }
            n_same++;
        }
        qw_gguf_close(g);
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)(bit / 8)), 1);
    }
    close(fd);
    print_message("%zu bits: %zu refused, %zu without effect, %zu in names and values\n", header * 8, n_refused, n_same,
                  n_content);
    assert_true(n_refused > n_same + n_content);
    assert_int_equal(n_refused + n_same + n_content, header * 8);
    qw_buf_free(&whole);
    qw_buf_free(&shape);
    qw_buf_free(&now);
    gw_free(&w);
}

static void test_every_truncation(void **state)
{
    (void)state;
    gw w = {0};
    put_good(&w, 3);
    const char *path = temp_path("cut.gguf");
    gw_save(&w, path);
    qw_gguf_close(open_good(path));
    for (size_t n = w.n; n-- > 0;) {
        qw_gguf *g = NULL;
        qw_err err = {0};
        assert_int_equal(truncate(path, (off_t)n), 0);
        assert_int_equal(qw_gguf_open(path, &g, &err), QW_E_FORMAT);
        assert_true(strncmp(err.text, path, strlen(path)) == 0);
        const char *why = err.text + strlen(path);
        assert_true(strstr(why, "cut short") != NULL || strstr(why, "ends inside") != NULL ||
                    strstr(why, "is empty") != NULL);
    }
    gw_free(&w);
}

/* Random bytes in random places of the header: no crash, no read outside (run with SAN=1). */
static void test_random_damage(void **state)
{
    (void)state;
    uint64_t seed = 20240607, x = seed;
    print_message("seed %" PRIu64 "\n", seed);
    gw w = {0};
    put_good(&w, 3);
    const char *path = temp_path("random.gguf");
    gw_save(&w, path);
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    size_t n_good = 0;
    for (int round = 0; round < 4000; round++) {
        put_at(fd, 0, &w);
        for (int k = 0; k < 1 + round % 3; k++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            uint8_t byte = (uint8_t)(x >> 56);
            if (x >> 40 & 1) byte = (uint8_t)(byte & 0x1f); /* small numbers get further */
            assert_int_equal(pwrite(fd, &byte, 1, (off_t)((x >> 16) % (w.n - 192))), 1);
        }
        qw_gguf *g = NULL;
        if (qw_gguf_open(path, &g, NULL) != QW_OK) continue;
        typed_reads(g);
        for (size_t i = 0; i < qw_gguf_n_tensors(g); i++) { /* all of it inside the mapping */
            const qw_tensor *t = qw_gguf_tensor(g, i);
            volatile uint8_t sum = 0;
            for (size_t b = 0; b < t->bytes; b++) sum = (uint8_t)(sum + t->data[b]);
        }
        n_good++;
        qw_gguf_close(g);
    }
    assert_true(n_good > 0 && n_good < 4000);
    close(fd);
    gw_free(&w);
}

int main(void)
{
    static const struct CMUnitTest others[] = {
        cmocka_unit_test(test_good_v2),
        cmocka_unit_test(test_good_v3),
        cmocka_unit_test(test_values_for_people),
        cmocka_unit_test(test_good_variants),
        cmocka_unit_test(test_check_1_regular_file),
        cmocka_unit_test(test_check_2_too_large),
        cmocka_unit_test(test_check_3_never_reopened),
        cmocka_unit_test(test_check_17_metadata),
        cmocka_unit_test(test_check_19_and_typed_reads),
        cmocka_unit_test(test_largest_counts),
        cmocka_unit_test(test_check_4_good_split),
        cmocka_unit_test(test_check_4_first_part),
        cmocka_unit_test(test_check_4_later_parts),
        cmocka_unit_test(test_check_46_not_a_number),
        cmocka_unit_test(test_check_50_file_shrinks),
        cmocka_unit_test(test_every_flipped_bit),
        cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_random_damage),
    };
    enum { N_OTHERS = sizeof others / sizeof others[0] };
    struct CMUnitTest tests[N_OTHERS + N_BAD];
    memcpy(tests, others, sizeof others);
    for (size_t i = 0; i < N_BAD; i++)
        tests[N_OTHERS + i] = (struct CMUnitTest){
            .name = bad_cases[i].name, .test_func = run_bad_case, .initial_state = &bad_cases[i]};
    return cmocka_run_group_tests_name("gguf", tests, temp_dir_setup, temp_dir_teardown);
}
