/* test_tokenizer.c: the tokenizer on a small vocabulary: pieces, merges, NFC, added tokens, the way back, and
 * what is refused. Parity with the official tokenizers on a real vocabulary is tests/parity/tokenizer.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf_writer.h"
#include "small_vocab.h"
#include "temp_dir.h"
#include "text/nfc.h"
#include "text/pretok.h"
#include "text/unicode_tables.h"

static small_vocab vocab;
static qw_tokenizer *tokenizer;

static int setup(void **state)
{
    qw_err err;
    small_vocab_fill(&vocab);
    if (temp_dir_setup(state)) return -1;
    return small_vocab_open(&vocab, QW_PRE_QWEN2, &tokenizer, &err) == QW_OK ? 0 : -1;
}

static int teardown(void **state)
{
    qw_tokenizer_close(tokenizer);
    return temp_dir_teardown(state);
}

/* ---- pieces ----------------------------------------------------------------------------------- */

/* Pieces of text joined by '|'. */
static const char *pieces(qw_pre pre, const char *text)
{
    static char out[512];
    size_t n = strlen(text), used = 0;
    for (size_t pos = 0; pos < n;) {
        size_t end = qw_pretok_next(pre, text, n, pos);
        assert_true(end > pos && end <= n);
        if (pos) out[used++] = '|';
        memcpy(out + used, text + pos, end - pos);
        used += end - pos;
        pos = end;
    }
    out[used] = '\0';
    return out;
}

static void test_pieces(void **state)
{
    static const struct {
        const char *text, *qwen2, *qwen35; /* NULL: as qwen2 */
    } cases[] = {
        {"hello world", "hello| world", NULL},
        {"It's WE'LL they'Re 'dx", "It|'s| WE|'LL| they|'Re| '|dx", NULL},
        {"'\xC5\xBF'\xC5\xBFx 'x", "'\xC5\xBF|'\xC5\xBF|x| '|x", NULL}, /* U+017F is an s */
        {"a1234b", "a|1|2|3|4|b", NULL},
        {"a  b", "a| | b", NULL},
        {"a   ", "a|   ", NULL},
        {"a \n \n  b", "a| \n \n| | b", NULL},
        {"x\r\n\r\ny", "x|\r\n\r\n|y", NULL},
        {"a\tb\t\tc", "a|\tb|\t|\tc", NULL},
        {" !?\n\nx", " !?\n\n|x", NULL},
        {"!!a!b", "!!|a|!b", NULL},
        {"\nab", "\n|ab", NULL},
        {"1 2", "1| |2", NULL},
        {" \xC2\xA0x", " |\xC2\xA0x", NULL},          /* no-break space is white space and no letter */
        {"x\xCC\x81y", "x|\xCC\x81y", "x\xCC\x81y"},  /* x has no composed form with U+0301 */
        {" \xCC\x81 a", " \xCC\x81| a", NULL},
        {"-\xCC\x81\xCC\x81.", "-\xCC\x81\xCC\x81.", "-\xCC\x81\xCC\x81|."},
        {"\xE0\xA4\x95\xE0\xA5\x8D\xE0\xA4\xB7", "\xE0\xA4\x95|\xE0\xA5\x8D\xE0\xA4\xB7",
         "\xE0\xA4\x95\xE0\xA5\x8D\xE0\xA4\xB7"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_string_equal(pieces(QW_PRE_QWEN2, cases[i].text), cases[i].qwen2);
        assert_string_equal(pieces(QW_PRE_QWEN35, cases[i].text), cases[i].qwen35 ? cases[i].qwen35 : cases[i].qwen2);
    }
}

/* ---- NFC -------------------------------------------------------------------------------------- */

static void test_nfc(void **state)
{
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"", ""}, {"plain \xC3\xA9", "plain \xC3\xA9"},
        {"e\xCC\x81", "\xC3\xA9"},                                 /* e + acute */
        {"\xCC\x81x", "\xCC\x81x"},                                /* a mark with nothing before it */
        {"\xC3\xA9\xCC\xA7", "\xC8\xA9\xCC\x81"},                  /* cedilla goes before the acute */
        {"\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", "\xED\x95\x9C"},  /* jamo */
        {"<\xCC\xB8", "\xE2\x89\xAE"}, {"\xE2\x84\xA6", "\xCE\xA9"},
        {"a\xCC\x85\xCC\x81", "a\xCC\x85\xCC\x81"},              /* blocked by a mark of the same class */
        {"a\xCC\xA7\xCC\x81", "\xC3\xA1\xCC\xA7"},                  /* not by one of a lower class */
        {"\xE1\x84\x92\xCC\x81\xE1\x85\xA1", "\xE1\x84\x92\xCC\x81\xE1\x85\xA1"}, /* jamo apart */
        {"\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC"},              /* excluded from composition */
        /* Newer than the official normaliser: U+1ACC stays where it is, U+11935 U+11930 are not joined. */
        {"a\xE1\xAB\x8C\xCC\x81", "a\xE1\xAB\x8C\xCC\x81"},
        {"\xF0\x90\x97\x92\xCC\x87", "\xF0\x90\x97\x92\xCC\x87"}, /* nor U+105D2 U+0307, composed in 16.0 */
        {"\xF0\x91\xA4\xB5\xF0\x91\xA4\xB0", "\xF0\x91\xA4\xB5\xF0\x91\xA4\xB0"},
    };
    qw_nfc w = {0};
    (void)state;
    assert_string_equal(qw_unicode_class_version, "16.0");
    assert_string_equal(qw_unicode_nfc_version, "9.0");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        qw_text out, in = {cases[i].in, strlen(cases[i].in)};
        assert_int_equal(qw_nfc_run(&w, in, &out, NULL), QW_OK);
        assert_int_equal(out.n, strlen(cases[i].out));
        assert_memory_equal(out.s, cases[i].out, out.n);
        if (i < 2) assert_ptr_equal(out.s, in.s); /* nothing to do: no copy */
    }
    qw_nfc_free(&w);
}

/* A long run of marks in falling order: sorted, none lost. */
static void test_nfc_long(void **state)
{
    enum { EACH = 100000 };
    char *text = malloc(4 * EACH + 1);
    qw_nfc w = {0};
    qw_text out;
    (void)state;
    assert_non_null(text);
    text[0] = 'x';
    for (size_t i = 0; i < EACH; i++) {
        memcpy(text + 1 + 2 * i, "\xCD\x85", 2);            /* U+0345, class 240 */
        memcpy(text + 1 + 2 * (EACH + i), "\xCC\xB4", 2);   /* U+0334, class 1 */
    }
    assert_int_equal(qw_nfc_run(&w, (qw_text){text, 4 * EACH + 1}, &out, NULL), QW_OK);
    assert_int_equal(out.n, 4 * EACH + 1);
    for (size_t i = 0; i < 2 * EACH; i++)
        assert_memory_equal(out.s + 1 + 2 * i, i < EACH ? "\xCC\xB4" : "\xCD\x85", 2);
    qw_nfc_free(&w);
    free(text);
}

/* ---- encode ----------------------------------------------------------------------------------- */

#define ENCODES(text, special, ...)                                                                          \
    check_encode(tokenizer, text, sizeof text - 1, special, (const int32_t[]){__VA_ARGS__},                  \
                 sizeof(const int32_t[]){__VA_ARGS__} / sizeof(int32_t))

static void check_encode(const qw_tokenizer *t, const char *text, size_t n, bool special, const int32_t *want,
                         size_t n_want)
{
    qw_tokens ids = {0};
    assert_int_equal(qw_tokenizer_encode(t, text, n, special, &ids, NULL), QW_OK);
    assert_int_equal(ids.n, n_want);
    for (size_t i = 0; i < n_want; i++) assert_int_equal(ids.ids[i], want[i]);
    qw_tokens_free(&ids);
}

static void test_merges(void **state)
{
    (void)state;
    enum { SP2 = 256, HE, LL, HELL, HELLO, SP_HELLO, AA, AAAA, E_ACUTE, APOS_S, NL2, BC, AB };
    ENCODES("hello", false, HELLO);
    ENCODES("hello", false, HELLO); /* now by the cache */
    ENCODES(" hello", false, SP_HELLO);
    ENCODES("hell he", false, HELL, ' ', HE);
    ENCODES("aaa", false, AA, 'a');
    ENCODES("aaaaa", false, AAAA, 'a');
    ENCODES("abc", false, 'a', BC); /* the lower rank first, though "ab" stands before it */
    ENCODES("e\xCC\x81", false, E_ACUTE);
    ENCODES("x's", false, 'x', APOS_S);
    ENCODES("x\n\n\n", false, 'x', NL2, '\n');
    ENCODES("x    y", false, 'x', SP2, ' ', ' ', 'y');
    check_encode(tokenizer, "", 0, true, NULL, 0);
}

static void test_long_piece(void **state)
{
    enum { N = 100003, AAAA = 263 };
    char *text = malloc(N);
    qw_tokens ids = {0};
    (void)state;
    assert_non_null(text);
    memset(text, 'a', N);
    assert_int_equal(qw_tokenizer_encode(tokenizer, text, N, false, &ids, NULL), QW_OK);
    assert_int_equal(ids.n, N / 4 + 2); /* N = 4k + 3: one "aa" and one "a" stay */
    for (size_t i = 0; i < N / 4; i++) assert_int_equal(ids.ids[i], AAAA);
    assert_int_equal(ids.ids[N / 4], AAAA - 1);
    assert_int_equal(ids.ids[N / 4 + 1], 'a');
    qw_tokens_free(&ids);
    free(text);
}

/* The scan for short pieces and the heap for long ones give the same: a long piece of parts that end in a
 * byte no merge takes is the parts one by one. */
static void test_scan_equals_heap(void **state)
{
    uint32_t random = 12345;
    (void)state;
    for (int round = 0; round < 200; round++) {
        char text[512];
        qw_tokens all = {0}, parts = {0};
        size_t n = 0;
        while (n < 400) {
            size_t begin = n, len = 1 + (random >> 16) % 40;
            for (size_t i = 0; i < len; i++) {
                random = random * 1664525u + 1013904223u;
                text[n++] = "abcehlo"[(random >> 16) % 7];
            }
            text[n++] = 'z';
            assert_int_equal(qw_tokenizer_encode(tokenizer, text + begin, n - begin, false, &parts, NULL), QW_OK);
        }
        assert_int_equal(qw_tokenizer_encode(tokenizer, text, n, false, &all, NULL), QW_OK);
        assert_int_equal(all.n, parts.n);
        assert_memory_equal(all.ids, parts.ids, all.n * sizeof *all.ids);
        qw_tokens_free(&all);
        qw_tokens_free(&parts);
    }
}

static void test_added(void **state)
{
    (void)state;
    ENCODES("a<|im_end|>b", true, 'a', ID_IM_END, 'b');
    ENCODES("<|im_end|>!<|im_end|>", true, ID_IM_END_X, ID_IM_END); /* the longest */
    ENCODES("<<|im_start|>", true, '<', ID_IM_START);
    ENCODES("<|im_start", true, '<', '|', 'i', 'm', '_', 's', 't', 'a', 'r', 't');
    ENCODES("<|im_end|>", false, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>');
    ENCODES("[PAD7][PAD8]", true, '[', 'P', 'A', 'D', '7', ']', '[', 'P', 'A', 'D', '8', ']');
    ENCODES("e<tool_call>\xCC\x81", true, 'e', ID_TOOL_CALL, 0xCC, 0x81); /* NFC does not reach across */
    size_t at, len;
    int32_t id;
    assert_true(qw_tokenizer_find_added(tokenizer, "x<tool_call>y", 13, 0, &at, &len, &id));
    assert_int_equal(at, 1);
    assert_int_equal(len, 11);
    assert_int_equal(id, ID_TOOL_CALL);
    assert_false(qw_tokenizer_find_added(tokenizer, "x<tool_call>y", 11, 0, &at, &len, &id)); /* cut off */
    assert_false(qw_tokenizer_find_added(tokenizer, "x<tool_call>y", 13, 2, &at, &len, &id));
}

static void test_ill_formed(void **state)
{
    enum { HE = 257 };
    (void)state;
    ENCODES("he\xFFhe", false, HE, 0xFF, HE);
    ENCODES("\xE4\xB8", false, 0xE4, 0xB8);
    ENCODES("\xED\xA0\x80x", false, 0xED, 0xA0, 0x80, 'x'); /* a surrogate */
    ENCODES("\xC3\x28", false, 0xC3, '(');
    ENCODES("\0x", false, 0, 'x');
}

static void test_questions(void **state)
{
    int32_t prefix, middle, suffix;
    (void)state;
    assert_int_equal(qw_tokenizer_n_vocab(tokenizer), N_SMALL);
    assert_int_equal(qw_tokenizer_find(tokenizer, "<|im_end|>"), ID_IM_END);
    assert_int_equal(qw_tokenizer_find(tokenizer, " hello"), 261);
    assert_int_equal(qw_tokenizer_find(tokenizer, "[PAD8]"), -1);
    assert_int_equal(qw_tokenizer_find(tokenizer, "nothing"), -1);
    assert_true(qw_tokenizer_is_control(tokenizer, ID_IM_END));
    assert_false(qw_tokenizer_is_control(tokenizer, ID_TOOL_CALL));
    assert_true(qw_tokenizer_is_unused(tokenizer, ID_PAD7));
    assert_true(qw_tokenizer_is_unused(tokenizer, ID_PAD8));
    assert_false(qw_tokenizer_is_unused(tokenizer, ID_IM_END));
    assert_true(qw_tokenizer_is_end(tokenizer, ID_IM_END));
    assert_true(qw_tokenizer_is_end(tokenizer, ID_ENDOFTEXT));
    assert_false(qw_tokenizer_is_end(tokenizer, ID_IM_START));
    assert_false(qw_tokenizer_is_end(tokenizer, -1));
    qw_text bytes = qw_tokenizer_bytes(tokenizer, 261);
    assert_int_equal(bytes.n, 6);
    assert_memory_equal(bytes.s, " hello", 6);
    assert_int_equal(qw_tokenizer_bytes(tokenizer, N_SMALL).n, 0);
    assert_int_equal(qw_tokenizer_bytes(tokenizer, -1).n, 0);
    qw_tokenizer_fim(tokenizer, &prefix, &middle, &suffix);
    assert_int_equal(prefix, -1);
    assert_int_equal(middle, -1);
    assert_int_equal(suffix, -1);
}

/* ---- the way back ----------------------------------------------------------------------------- */

/* Bytes (as their tokens) give this text; -1 in `bytes` ends them, 1000 stands for a control token. */
static void check_detok(const int *bytes, const char *want)
{
    qw_detok d = {0};
    qw_buf out;
    qw_buf_init(&out, 1000, "text");
    for (; *bytes >= 0; bytes++)
        assert_int_equal(qw_detok_push(&d, tokenizer, *bytes == 1000 ? ID_IM_END : *bytes, &out, NULL), QW_OK);
    assert_true(qw_utf8_valid(qw_buf_str(&out), out.n));
    assert_int_equal(qw_detok_flush(&d, &out, NULL), QW_OK);
    assert_string_equal(qw_buf_str(&out), want);
    assert_int_equal(qw_detok_flush(&d, &out, NULL), QW_OK);
    assert_string_equal(qw_buf_str(&out), want);
    qw_buf_free(&out);
}

#define FFFD "\xEF\xBF\xBD"

static void test_detok(void **state)
{
    (void)state;
    check_detok((const int[]){'a', 0xE4, 0xB8, 0xAD, 'b', -1}, "a\xE4\xB8\xAD" "b");
    check_detok((const int[]){0xE4, 1000, 0xB8, 0xAD, -1}, "\xE4\xB8\xAD"); /* control adds nothing */
    check_detok((const int[]){0xE4, 0xB8, -1}, FFFD);
    check_detok((const int[]){0xE4, 0xB8, 'x', -1}, FFFD "x");
    check_detok((const int[]){0xE0, 0x80, -1}, FFFD FFFD);
    check_detok((const int[]){0xF0, 0x9F, 0x98, 0xF0, 0x9F, 0x98, 0x80, -1}, FFFD "\xF0\x9F\x98\x80");
    check_detok((const int[]){0xED, 0xA0, 0x80, -1}, FFFD FFFD FFFD);
    check_detok((const int[]){0xF5, 0x80, 0xFF, -1}, FFFD FFFD FFFD);
    check_detok((const int[]){0xC0, 0xAF, -1}, FFFD FFFD);
    check_detok((const int[]){'h', 261, ID_TOOL_CALL, -1}, "h hello<tool_call>");
    qw_detok d = {0};
    qw_buf out;
    qw_err err;
    qw_buf_init(&out, 100, "text");
    assert_int_equal(qw_detok_push(&d, tokenizer, 0xE4, &out, NULL), QW_OK);
    assert_int_equal(out.n, 0); /* half a character is held back */
    assert_int_equal(qw_detok_push(&d, tokenizer, N_SMALL, &out, &err), QW_E_ARG);
    qw_buf_free(&out);
}

/* ---- what is refused -------------------------------------------------------------------------- */

static void check_refused(const small_vocab *v, size_t n, size_t n_merges, const char *part)
{
    qw_tokenizer *t;
    qw_err err;
    assert_int_equal(qw_tokenizer_open(v->tokens, v->types, n, v->merges, n_merges, QW_PRE_QWEN2, &t, &err),
                     QW_E_FORMAT);
    assert_null(t);
    if (!strstr(err.text, part)) fail_msg("\"%s\" does not say \"%s\"", err.text, part);
}

static void test_refused(void **state)
{
    static small_vocab v;
    static char long_text[70000];
    (void)state;
    memset(long_text, 'x', sizeof long_text);
#define REFUSED(change, part)                                                                                \
    do {                                                                                                     \
        small_vocab_fill(&v);                                                                                \
        change;                                                                                              \
        check_refused(&v, N_SMALL, N_SMALL_MERGES, part);                                                    \
    } while (0)
#define TEXT(s) ((qw_text){s, sizeof s - 1})
    REFUSED(v.merges[3] = TEXT("hell"), "tokenizer.ggml.merges[3] \"hell\" is not two tokens");
    REFUSED(v.merges[3] = TEXT(" hell"), "tokenizer.ggml.merges[3]");
    REFUSED(v.merges[3] = TEXT("hell "), "tokenizer.ggml.merges[3]");
    REFUSED(v.merges[3] = TEXT(""), "tokenizer.ggml.merges[3]");
    REFUSED(v.merges[3] = TEXT("he l l"), "tokenizer.ggml.merges[3]");
    REFUSED(v.merges[3] = TEXT("he \xE4\xB8\xAD"), "tokenizer.ggml.merges[3]");
    REFUSED(v.merges[3] = TEXT("xy ll"), "its left part is not a token");
    REFUSED(v.merges[3] = TEXT("he xy"), "its right part is not a token");
    REFUSED(v.merges[3] = TEXT("he l"), "what it gives is not a token");
    REFUSED(v.merges[3] = v.merges[1], "tokenizer.ggml.merges[3] \"h e\" is the same pair as merge 1");
    REFUSED(v.tokens[65] = TEXT("\xFF"), "tokenizer.ggml.tokens[65] is not UTF-8");
    REFUSED(v.tokens[65] = TEXT("AA"), "no token stands for the byte 0x41");
    REFUSED(v.tokens[256] = TEXT(""), "tokenizer.ggml.tokens[256] is empty");
    REFUSED(v.tokens[256] = ((qw_text){long_text, sizeof long_text}), "tokenizer.ggml.tokens[256] has 70000 bytes");
    REFUSED(v.tokens[ID_IM_END] = ((qw_text){long_text, 600}), "the limit is 512");
    REFUSED(v.types[256] = 7, "tokenizer.ggml.token_type[256] is 7");
    small_vocab_fill(&v);
    check_refused(&v, 0, 0, "tokenizer.ggml.tokens is empty");
    check_refused(&v, 255, 0, "no token stands for the byte 0xFF");
}

/* ---- GGUF ------------------------------------------------------------------------------------- */

/* What is wrong with a file; zero: nothing. */
struct wrong {
    const char *model, *pre;
    size_t n_types, n_scores, rows;
    const char *id_key;
    uint32_t id;
};

/* Writes a file with the small vocabulary and opens its tokenizer. */
static qw_status open_file(const struct wrong *w, qw_tokenizer **out, qw_err *err)
{
    gw f = {0};
    const char *path = temp_path("vocab.gguf");
    const char *model = w->model ? w->model : "gpt2", *pre = w->pre ? w->pre : "qwen2";
    size_t n_types = w->n_types ? w->n_types : N_SMALL, rows = w->rows ? w->rows : N_SMALL;
    bool optional[] = {*model != 0, *pre != 0, w->n_scores != 0, w->id_key != NULL};
    uint64_t n_kv = 5;
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++) n_kv += optional[i];
    gw_header(&f, 3, 1, n_kv);
    gw_kv_str(&f, "general.architecture", "qwen2");
    if (*model) gw_kv_str(&f, "tokenizer.ggml.model", model);
    if (*pre) gw_kv_str(&f, "tokenizer.ggml.pre", pre);
    gw_kv_array(&f, "tokenizer.ggml.tokens", 8, N_SMALL);
    for (size_t i = 0; i < N_SMALL; i++) gw_bytes(&f, vocab.tokens[i].s, vocab.tokens[i].n);
    gw_kv_array(&f, "tokenizer.ggml.token_type", 5, n_types);
    for (size_t i = 0; i < n_types; i++) gw_le(&f, vocab.types[i], 4, true);
    if (w->n_scores) {
        gw_kv_array(&f, "tokenizer.ggml.scores", 6, w->n_scores);
        for (size_t i = 0; i < w->n_scores; i++) gw_le(&f, 0, 4, true);
    }
    gw_kv_array(&f, "tokenizer.ggml.merges", 8, N_SMALL_MERGES);
    for (size_t i = 0; i < N_SMALL_MERGES; i++) gw_bytes(&f, vocab.merges[i].s, vocab.merges[i].n);
    gw_kv_u32(&f, "tokenizer.ggml.eos_token_id", ID_IM_START);
    if (w->id_key) gw_kv_u32(&f, w->id_key, w->id);
    gw_info(&f, "token_embd.weight", 8, rows, 0, 0);
    gw_pad(&f, 32);
    gw_fill(&f, rows * 8 * 4, 0);
    gw_pad(&f, 32);
    gw_save(&f, path);
    gw_free(&f);
    qw_gguf *g;
    *out = NULL;
    qw_status status = qw_gguf_open(path, &g, err);
    if (status != QW_OK) return status;
    status = qw_tokenizer_open_gguf(g, out, err);
    qw_gguf_close(g); /* nothing of it is borrowed */
    return status;
}

static void test_gguf(void **state)
{
    qw_tokenizer *t;
    qw_err err;
    int32_t prefix, middle, suffix;
    (void)state;
    if (open_file(&(struct wrong){.id_key = "tokenizer.ggml.fim_mid_token_id", .id = 5}, &t, &err) != QW_OK)
        fail_msg("%s", err.text);
    check_encode(t, " hello<|im_end|>", 16, true, (const int32_t[]){261, ID_IM_END}, 2);
    assert_true(qw_tokenizer_is_end(t, ID_IM_START)); /* the file's eos */
    assert_true(qw_tokenizer_is_end(t, ID_IM_END));
    qw_tokenizer_fim(t, &prefix, &middle, &suffix);
    assert_int_equal(middle, 5);
    assert_int_equal(prefix, -1);
    qw_tokenizer_close(t);
    if (open_file(&(struct wrong){.pre = "qwen35"}, &t, &err) != QW_OK) fail_msg("%s", err.text);
    check_encode(t, "he\xCC\xA3", 4, false, (const int32_t[]){'h', 0xE1, 0xBA, 0xB9}, 4);
    qw_tokenizer_close(t);
}

static void test_gguf_refused(void **state)
{
    static const struct {
        struct wrong wrong;
        qw_status status;
        const char *part;
    } cases[] = {
        {{.model = ""}, QW_E_UNSUPPORTED, "the file has no tokenizer"},
        {{.model = "llama"}, QW_E_UNSUPPORTED, "tokenizer.ggml.model is \"llama\""},
        {{.pre = ""}, QW_E_UNSUPPORTED, "tokenizer.ggml.pre is missing"},
        {{.pre = "gpt-4o"}, QW_E_UNSUPPORTED, "tokenizer.ggml.pre is \"gpt-4o\""},
        {{.n_types = N_SMALL - 1}, QW_E_FORMAT, "tokenizer.ggml.token_type has"},
        {{.n_scores = N_SMALL - 1}, QW_E_FORMAT, "tokenizer.ggml.scores has"},
        {{.rows = N_SMALL + 1}, QW_E_FORMAT, "token_embd.weight has"},
        {{.id_key = "tokenizer.ggml.bos_token_id", .id = N_SMALL}, QW_E_FORMAT, "tokenizer.ggml.bos_token_id is"},
        {{.id_key = "tokenizer.ggml.eot_token_id", .id = 0x80000000u}, QW_E_FORMAT, "tokenizer.ggml.eot_token_id is"},
        {{.id_key = "tokenizer.ggml.padding_token_id", .id = 0xFFFFFFFFu}, QW_E_FORMAT, "padding_token_id is"},
        {{.id_key = "tokenizer.ggml.fim_pre_token_id", .id = N_SMALL}, QW_E_FORMAT, "fim_pre_token_id is"},
    };
    qw_tokenizer *t;
    qw_err err;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(open_file(&cases[i].wrong, &t, &err), cases[i].status);
        assert_null(t);
        if (!strstr(err.text, cases[i].part) || !strstr(err.text, "vocab.gguf: "))
            fail_msg("\"%s\" does not say \"%s\"", err.text, cases[i].part);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces),      cmocka_unit_test(test_nfc),
        cmocka_unit_test(test_nfc_long),    cmocka_unit_test(test_merges),
        cmocka_unit_test(test_long_piece),  cmocka_unit_test(test_scan_equals_heap),
        cmocka_unit_test(test_added),       cmocka_unit_test(test_ill_formed),
        cmocka_unit_test(test_questions),   cmocka_unit_test(test_detok),
        cmocka_unit_test(test_refused),     cmocka_unit_test(test_gguf),
        cmocka_unit_test(test_gguf_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
