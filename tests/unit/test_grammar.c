/* test_grammar.c: constrained output on a small vocabulary: what is accepted, masks beside trying every token, going
 * back, ends, limits, and sources that are nonsense. Outputs that others judge are in tests/parity/grammar.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "small_vocab.h"
#include "text/grammar.h"

/* Ids 0 to 255 are the bytes; then these, then the added tokens. */
static const char *const pieces[] = {
    "{\"", "\":", "\",\"", "\"}", "\", \"", "\": \"", "\n\n", " \"", "]}", "}]", "[[", "]]", "[{\"", "\"]", "\\u",
        "\\\"", "true",
    "null", "false", "12", "123", "-1", "0.", ".5", "e+", "abc", "ab", "a\"", "\"a\":", "\"a\": 1", "\"b\":", "\xC3\xA9",
    "\xE4\xB8", "\xB8\xAD", "\xAD", "\xE4\xB8\xAD\xE6\x96\x87", "x\xF0\x9F", "\x98\x80\"", "<tool", "_call>", "</",
        "parameter", ">\n",
    "\n</", "</parameter>\n", "  ", "    ", ",\n  \"", ":", ": ", ", ", "yes", "no", "es", "hello world", "aaaa", "((",
        "))", "+1",
    "get", "city", "<function=", "\": ", "\"\"", "{}", "[]", "a", "abc", "id", "name\": ", "abcabcabcabcabcabcabc",
        "                                ", "\xE2\x80\xA8",
};
static const struct {
    const char *text;
    uint8_t type;
} added[] = {{"<|endoftext|>", 3}, {"<|im_end|>", 3}, {"<tool_call>", 4}, {"</tool_call>", 4}, {"<think>", 4},
    {"[PAD1]", 5}};
enum {
    N_PIECES = sizeof pieces / sizeof *pieces,
    N_ADDED = sizeof added / sizeof *added,
    N_VOCAB = 256 + N_PIECES + N_ADDED,
    ID_END = 256 + N_PIECES + 1,
    ID_CALL = 256 + N_PIECES + 2,
    ID_CALL_END = ID_CALL + 1,
    N_WORDS = (N_VOCAB + 31) / 32
};

static char names[256 + N_PIECES][64];
static qw_tokenizer *tokenizer;
static qw_token_trie *trie;
static uint64_t random_state;

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state >> 16;
}

static qw_text text_of(const char *s)
{
    return (qw_text){s, strlen(s)};
}

static int setup(void **state)
{
    static qw_text tokens[N_VOCAB];
    static uint8_t types[N_VOCAB];
    (void)state;
    for (size_t i = 0; i < 256 + N_PIECES; i++) {
        char byte = (char)i;
        qw_text bytes = i < 256 ? (qw_text){&byte, 1} : text_of(pieces[i - 256]);
        size_t n = 0;
        for (size_t k = 0; k < bytes.n; k++)
            n += (size_t)qw_utf8_encode(small_alphabet((unsigned char)bytes.s[k]), names[i] + n);
        tokens[i] = (qw_text){names[i], n};
        types[i] = 1;
    }
    for (size_t i = 0; i < N_ADDED; i++) {
        tokens[256 + N_PIECES + i] = text_of(added[i].text);
        types[256 + N_PIECES + i] = added[i].type;
    }
    qw_err err;
    if (qw_tokenizer_open(tokens, types, N_VOCAB, NULL, 0, QW_PRE_QWEN2, &tokenizer, &err) != QW_OK) return -1;
    return qw_token_trie_create(tokenizer, &trie, &err) == QW_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    qw_token_trie_destroy(trie);
    qw_tokenizer_close(tokenizer);
    return 0;
}

/* ---- helpers ---------------------------------------------------------------------------------- */

enum kind { SCHEMA, REGEX, EBNF, CALLS_JSON, CALLS_XML, CALLS_FREE, CALLS_ONE, CALLS_ONE_XML };

static const char tools[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"get\",\"parameters\":{\"type\":\"object\",\"properties\":{"
    "\"city\":{\"type\":\"string\"},\"n\":{\"type\":\"integer\"}},\"required\":[\"city\"]}}},"
    "{\"type\":\"function\",\"function\":{\"name\":\"now\"}}]";

static qw_status compile_n(enum kind kind, qw_text source, int64_t cpu_us, qw_grammar **g, qw_err *err)
{
    qw_grammar_options options = {.cpu_us_max = cpu_us};
    bool one = kind == CALLS_ONE || kind == CALLS_ONE_XML;
    qw_grammar_calls calls = {.tools = source, .tokenizer = tokenizer, .xml_calls = kind == CALLS_XML || kind == CALLS_ONE_XML,
                              .required = kind != CALLS_FREE, .one = one};
    *g = NULL;
    switch (kind) {
    case SCHEMA: return qw_grammar_schema(source, &options, g, err);
    case REGEX: return qw_grammar_regex(source, &options, g, err);
    case EBNF: return qw_grammar_ebnf(source, &options, g, err);
    default: return qw_grammar_tools(&calls, &options, g, err);
    }
}

/* Sanitizers are slow: time is tested in its own place. */
static qw_grammar *compile(enum kind kind, const char *source)
{
    qw_grammar *g;
    qw_err err;
    if (compile_n(kind, text_of(source), 60000000, &g, &err) != QW_OK) fail_msg("%s: %s", source, err.text);
    return g;
}

static qw_matcher *matcher_of(const qw_grammar *g)
{
    qw_matcher *m;
    assert_int_equal(qw_matcher_create(g, tokenizer, &m, NULL), QW_OK);
    return m;
}

static void destroy(qw_grammar *g, qw_matcher *m)
{
    qw_matcher_destroy(m);
    qw_grammar_destroy(g);
}

/* Takes a text byte by byte; returns how many bytes were taken. */
static size_t feed(qw_matcher *m, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (qw_matcher_advance(m, (unsigned char)s[i], NULL) != QW_OK) return i;
    return n;
}

static void check_text(enum kind kind, const char *source, const char *text, bool wanted)
{
    qw_grammar *g = compile(kind, source);
    qw_matcher *m = matcher_of(g);
    bool taken = feed(m, text, strlen(text)) == strlen(text) && qw_matcher_advance(m, ID_END, NULL) == QW_OK;
    if (taken != wanted) fail_msg("%s: %s is %s", source, text, wanted ? "refused" : "taken");
    destroy(g, m);
}

static bool has_bit(const uint32_t *bits, int32_t id)
{
    return bits[id / 32] >> id % 32 & 1;
}

/* ---- what is accepted ------------------------------------------------------------------------- */

static void test_values(void **state)
{
    static const struct {
        const char *schema, *good[6], *bad[8];
    } rows[] = {
        {"{\"type\":\"integer\"}", {"0", "-7", "123456789012345678"}, {"-0", "01", "1.0", "1e3", "+1", "",
         "1234567890123456789"}},
        {"{\"type\":\"number\"}", {"0", "-0.5", "1e9", "2.5E-07", "-0"}, {".5", "1.", "1e", "1e100", "NaN", "01"}},
        {"{\"minimum\":-2.5,\"maximum\":10,\"type\":\"number\"}", {"-2.5", "-2.50", "10", "10.0", "0.001", "9.99"},
         {"-2.51", "10.01", "11", "-3", "-0", "100"}},
        {"{\"exclusiveMinimum\":0,\"exclusiveMaximum\":1,\"type\":\"number\"}", {"0.5", "0.999", "0.00001"}, {"0", "1",
         "0.0", "1.0"}},
        {"{\"minimum\":99,\"maximum\":1001,\"type\":\"integer\"}", {"99", "100", "999", "1000", "1001"}, {"98", "9",
         "1002", "-99", "10010"}},
        {"{\"minimum\":0.1,\"exclusiveMaximum\":0.125,\"type\":\"number\"}", {"0.1", "0.10", "0.1249"}, {"0.125",
         "0.09", "0.13", "0"}},
        {"{\"multipleOf\":12,\"type\":\"integer\"}", {"0", "12", "-24", "120"}, {"1", "13", "-1"}},
        {"{\"maximum\":1e-30,\"minimum\":-1e-30,\"type\":\"number\"}", {"0", "0.0"}, {"0.1", "-0.1"}},
        {"{\"minimum\":1e-70,\"type\":\"number\"}", {"0.1", "0.000000000001"}, {"0", "0.0", "-1"}},
        {"{\"maximum\":-1e-70,\"type\":\"number\"}", {"-0.1"}, {"0", "1"}},
        {"{\"enum\":[1,\"a\",null,{\"k\":[1,2]}]}", {"1", "\"a\"", "null", "{\"k\":[1,2]}", "{ \"k\": [1, 2] }"}, {"2",
         "{\"k\":[1]}", "\"b\""}},
        {"{\"enum\":[1,2,3,\"x\"],\"minimum\":2}", {"2", "3", "\"x\""}, {"1"}},
        {"{\"const\":\"q\\\"\\u00e9\"}", {"\"q\\\"\xC3\xA9\""}, {"\"q\"", "\"q\\\"\\u00e9\""}},
        {"false", {NULL}, {NULL}},
    };
    (void)state;
    for (size_t i = 0; i + 1 < sizeof rows / sizeof *rows; i++) {
        for (size_t k = 0; k < 6 && rows[i].good[k]; k++) check_text(SCHEMA, rows[i].schema, rows[i].good[k], true);
        for (size_t k = 0; k < 8 && rows[i].bad[k]; k++) check_text(SCHEMA, rows[i].schema, rows[i].bad[k], false);
    }
}

static void test_strings(void **state)
{
    static const char any[] = "{\"type\":\"string\"}", three[] = "{\"type\":\"string\",\"minLength\":2,\"maxLength\":3}";
    static const char pattern[] = "{\"type\":\"string\",\"pattern\":\"^a.*\\\"$\"}",
        part[] = "{\"type\":\"string\",\"pattern\":\"b+\",\"maxLength\":4}";
    (void)state;
    check_text(SCHEMA, any, "\"\xE4\xB8\xAD \\n\\u00e9\\ud83d\\ude00\\/\x7F\"", true);
    check_text(SCHEMA, any, "\"\\ud83d\"", false);      /* half a pair */
    check_text(SCHEMA, any, "\"\\ude00\"", false);
    check_text(SCHEMA, any, "\"\\ud83d\\u0041\"", false);
    check_text(SCHEMA, any, "\"\x01\"", false);
    check_text(SCHEMA, any, "\"\n\"", false);
    check_text(SCHEMA, any, "\"\xC0\x80\"", false);     /* overlong */
    check_text(SCHEMA, any, "\"\xED\xA0\x80\"", false); /* a surrogate */
    check_text(SCHEMA, any, "\"\xF4\x90\x80\x80\"", false);
    check_text(SCHEMA, any, "\"\xF4\x8F\xBF\xBF\"", true);
    check_text(SCHEMA, any, "\"\xE4\xB8\"", false);
    check_text(SCHEMA, three, "\"\xE4\xB8\xAD\xF0\x9F\x98\x80\"", true); /* characters are counted, not bytes */
    check_text(SCHEMA, three, "\"\\ud83d\\ude00\\n\\u0041\"", true);
    check_text(SCHEMA, three, "\"a\"", false);
    check_text(SCHEMA, three, "\"abcd\"", false);
    check_text(SCHEMA, three, "\"\xE4\xB8\xAD\xE4\xB8\xAD\xE4\xB8\xAD\xE4\xB8\xAD\"", false);
    check_text(SCHEMA, pattern, "\"abc\\\"\"",
        true); /* what the pattern says of a text holds for the text, not its JSON */
    check_text(SCHEMA, pattern, "\"a\"", false);
    check_text(SCHEMA, pattern, "\"a\\n\\\"\"", false);
    check_text(SCHEMA, part, "\"abbc\"", true);
    check_text(SCHEMA, part, "\"aacc\"", false);
    check_text(SCHEMA, part, "\"abbcc\"", false);
}

static void test_containers(void **state)
{
    static const char two[] = "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"ab\":{\"type\":\"null\"},\"c\":true},\"required\":[\"ab\"]}";
    static const char open[] = "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},\"additionalProperties\":{\"type\":\"boolean\"}}";
    static const char counts[] = "{\"type\":\"object\",\"minProperties\":2,\"maxProperties\":2,\"additionalProperties\":{\"type\":\"null\"}}";
    static const char list[] = "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"null\"}],\"items\":{\"type\":\"integer\"},\"minItems\":1,\"maxItems\":3}";
    static const char keys[] = "{\"type\":\"object\",\"patternProperties\":{\"^x\":{\"type\":\"null\"},\"^[ab]$\":{\"type\":\"integer\"}}}";
    static const char late[] = "{\"type\":\"object\",\"required\":[\"a\"],\"additionalProperties\":{\"type\":\"null\"}}";
    static const char both[] = "{\"type\":\"object\",\"patternProperties\":{\"^a\":{\"type\":\"null\"},\"b$\":{\"type\":\"null\"}}}";
    (void)state;
    check_text(SCHEMA, late, "{\"a\":null,\"b\":null}", true);
    check_text(SCHEMA, late, "{\"b\":null,\"a\":null}", false);   /* what is required comes first */
    check_text(SCHEMA, both, "{\"a\":null,\"b\":null}", true);
    check_text(SCHEMA, both, "{\"ab\":null}", false);            /* it would have to satisfy two schemas */
    check_text(SCHEMA, two, "{\"ab\":null}", true);
    check_text(SCHEMA, two, "{\n  \"a\": 1,\n  \"ab\": null,\n  \"c\": []\n}", true);
    check_text(SCHEMA, two, "{\"a\":1}", false);                   /* ab is required */
    check_text(SCHEMA, two, "{\"ab\":null,\"a\":1}", false);       /* in the schema's order */
    check_text(SCHEMA, two, "{\"ab\":null,\"ab\":null}", false);
    check_text(SCHEMA, two, "{\"ab\":null,\"d\":1}",
        false);       /* closed: it has properties and says nothing of others */
    check_text(SCHEMA, two, "{\"ab\":null,}", false);
    check_text(SCHEMA, two, "{\"ab\"  :null}", false);
    check_text(SCHEMA, open, "{\"a\":1,\"b\":true}", true);
    check_text(SCHEMA, open, "{\"b\":true,\"a\":1,\"ab\":false}", true);
    check_text(SCHEMA, open, "{\"a\":true}", false);
    check_text(SCHEMA, open, "{\"b\":true,\"b\":true}", false);
    check_text(SCHEMA, open, "{\"b\":true,\"bb\":true,\"\":true}", true);
    check_text(SCHEMA, open, "{\"\\u0062\":true}", false);         /* such keys have no escapes */
    check_text(SCHEMA, counts, "{\"a\":null,\"b\":null}", true);
    check_text(SCHEMA, counts, "{\"a\":null}", false);
    check_text(SCHEMA, counts, "{\"a\":null,\"b\":null,\"c\":null}", false);
    check_text(SCHEMA, list, "[null]", true);
    check_text(SCHEMA, list, "[ null, 1,\n2 ]", true);
    check_text(SCHEMA, list, "[]", false);
    check_text(SCHEMA, list, "[null,1,2,3]", false);
    check_text(SCHEMA, list, "[null,]", false);
    check_text(SCHEMA, list, "[1]", false);
    check_text(SCHEMA, keys, "{\"x\":null,\"xy\":null}", true);
    check_text(SCHEMA, keys, "{\"b\":1,\"x\":null}", true);
    check_text(SCHEMA, keys, "{\"x\":1}", false);
    check_text(SCHEMA, keys, "{\"c\":1}", false);
    check_text(SCHEMA, "{\"type\":\"object\"}", "{\"a\":{\"a\":1},\"b\":[{\"a\":1},{\"a\":1}]}", true);
    check_text(SCHEMA, "{\"type\":\"object\"}", "{\"b\":[{\"a\":1}],\"a\":1,\"b\":1}", false);
    check_text(SCHEMA, "{\"type\":\"object\",\"properties\":{},\"additionalProperties\":false}", "{ }", true);
    check_text(SCHEMA, "{\"$ref\":\"#/$defs/a~1b%25\",\"$defs\":{\"a/b%\":{\"type\":\"null\"}}}", "null", true);
}

static void test_white_space(void **state)
{
    char text[128];
    (void)state;
    for (size_t n = 60; n < 70; n++) {
        snprintf(text, sizeof text, "[\n%*s1]", (int)n, "");
        check_text(SCHEMA, "{\"type\":\"array\"}", text, n <= 64);
    }
    check_text(SCHEMA, "{\"type\":\"array\"}", "[  1]", false);
    check_text(SCHEMA, "{\"type\":\"array\"}", "[\n\n1]", false);
    check_text(SCHEMA, "{\"type\":\"array\"}", "[1, 2,3\n]", true);
    check_text(SCHEMA, "{\"type\":\"array\"}", "[1 ,2]", false);
    check_text(SCHEMA, "{\"type\":\"array\"}", " [1]", false);
}

static void test_regex(void **state)
{
    static const struct {
        const char *pattern, *good[4], *bad[4];
    } rows[] = {
        {"a|bc", {"a", "bc"}, {"ab", "b", "", "abc"}},
        {"(?:ab)+?c{2,3}", {"abcc", "ababccc"}, {"abc", "cc", "abcccc"}},
        {"[^a-c\\d]", {"d", "\xE4\xB8\xAD", "\n"}, {"a", "5", "dd", ""}},
        {".", {"x", "\xC3\xA9"}, {"\n", "\r", "\xE2\x80\xA8"}},
        {"\\w\\W\\s\\S\\d\\D", {"a- x1a", "_!\t?0-"}, {"--  1a", "a- x1"}},
        {"^a$|^$", {"a", ""}, {"aa"}},
        {"a^b", {NULL}, {NULL}},
        {"\\u00e9\\x41\\u{1F600}\\cA", {"\xC3\xA9" "A\xF0\x9F\x98\x80\x01"}, {"e"}},
        {"[\\u{10000}-\\u{10FFFF}]", {"\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}, {"\xEF\xBF\xBF"}},
        {"[]|x", {"x"}, {"]"}},
        {"[^]{2}", {"\n\n", "a\xC3\xA9"}, {"a"}},
        {"a{,2}", {"a{,2}"}, {"aa"}},
        {"(?<year>\\d{4})-[\\-x]", {"2026--", "2026-x"}, {"2026-y"}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (size_t k = 0; k < 4 && rows[i].good[k]; k++) check_text(REGEX, rows[i].pattern, rows[i].good[k], true);
        for (size_t k = 0; k < 4 && rows[i].bad[k]; k++) check_text(REGEX, rows[i].pattern, rows[i].bad[k], false);
    }
}

static void test_ebnf(void **state)
{
    static const char nested[] = "root ::= item (\",\" item){0,2} # a list\nitem ::= [a-c]+\n  | '(' root ')' ;\n";
    (void)state;
    check_text(EBNF, nested, "abc,(a,(b)),c", true);
    check_text(EBNF, nested, "a,a,a,a", false);
    check_text(EBNF, nested, "(a", false);
    check_text(EBNF, "x = \"\\u00e9\\n\" y?\ny = . ", "\xC3\xA9\n\xE4\xB8\xAD", true);
    check_text(EBNF, "b ::= root\nroot ::= \"r\" b?", "rrr", true); /* root is the whole, wherever it stands */
    check_text(EBNF, "s ::= e e\ne ::= \"x\"?", "", true);
    check_text(EBNF, "s ::= e e\ne ::= \"x\"?", "xx", true);
    /* Not deterministic: the middle is not known. */
    check_text(EBNF, "s ::= \"a\" s \"a\" | \"b\" s \"b\" | \"c\"?", "abbabbaabbabba", true);
    check_text(EBNF, "s ::= \"a\" s \"a\" | \"b\" s \"b\" | \"c\"?", "abbabbaabbabbb", false);
}

static void test_calls(void **state)
{
    qw_grammar *g = compile(CALLS_JSON, tools);
    qw_matcher *m = matcher_of(g);
    static const char body[] = "\n{\"name\": \"get\", \"arguments\": {\"city\": \"x\"}}\n";
    (void)state;
    assert_int_equal(feed(m, "<tool_call>", 11), 0); /* the tag is a token of its own */
    assert_int_equal(qw_matcher_advance(m, ID_CALL, NULL), QW_OK);
    assert_int_equal(feed(m, body, strlen(body)), strlen(body));
    assert_int_equal(qw_matcher_advance(m, ID_END, NULL), QW_E_ARG);
    assert_int_equal(qw_matcher_advance(m, ID_CALL_END, NULL), QW_OK);
    assert_true(qw_matcher_may_end(m));
    assert_false(qw_matcher_must_end(m));
    assert_int_equal(feed(m, "\n", 1), 1); /* a second call */
    assert_int_equal(qw_matcher_advance(m, ID_CALL, NULL), QW_OK);
    assert_int_equal(feed(m, "\n{\"name\": \"nowhere", 18), 14);
    destroy(g, m);

    static const char xml[] = "\n<function=get>\n<parameter=city>\na \"b\"\n\n</para\n</parameter>\n<parameter=n>\n12\n</parameter>\n</function>\n";
    g = compile(CALLS_XML, tools);
    m = matcher_of(g);
    assert_int_equal(qw_matcher_advance(m, ID_CALL, NULL), QW_OK);
    assert_int_equal(feed(m, xml, strlen(xml)), strlen(xml));
    assert_int_equal(qw_matcher_advance(m, ID_CALL_END, NULL), QW_OK);
    assert_true(qw_matcher_may_end(m));
    destroy(g, m);

    g = compile(CALLS_FREE, tools);
    m = matcher_of(g);
    assert_true(qw_matcher_may_end(m));
    assert_int_equal(feed(m, "I say <tool> and <tool_call", 27), 27);
    assert_int_equal(feed(m, ">", 1), 0); /* the tag's characters are no text */
    assert_int_equal(feed(m, " ", 1), 1);
    assert_int_equal(qw_matcher_advance(m, ID_CALL, NULL), QW_OK);
    assert_false(qw_matcher_may_end(m));
    destroy(g, m);
}

/* ---- masks ------------------------------------------------------------------------------------ */

static const struct {
    enum kind kind;
    const char *source;
} walked[] = {
    {SCHEMA, "{\"type\":\"object\"}"},
    {SCHEMA, "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"abc\":{\"type\":\"string\",\"maxLength\":3},\"id\":true},"
             "\"required\":[\"abc\"],\"additionalProperties\":{\"type\":\"boolean\"},\"maxProperties\":4}"},
    {SCHEMA, "{\"type\":\"string\",\"minLength\":3,\"maxLength\":9}"},
    {SCHEMA, "{\"type\":\"array\",\"items\":{\"type\":\"array\",\"items\":{\"enum\":[[],1,\"a\"]},\"maxItems\":2},\"minItems\":2,\"maxItems\":3}"},
    {SCHEMA, "{\"anyOf\":[{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"string\"}}},{\"type\":\"object\",\"properties\":{\"a\":{"
             "\"type\":\"integer\"},\"b\":{\"type\":\"null\"}},\"required\":[\"b\"]}]}"},
    {SCHEMA, "{\"type\":\"string\",\"pattern\":\"^(abc|\\u4e2d)*x?$\"}"},
    {SCHEMA, "{\"type\":\"number\",\"minimum\":-1.5,\"maximum\":123}"},
    {SCHEMA, "{\"type\":\"object\",\"patternProperties\":{\"^a\":{\"type\":\"null\"},\"^(ab|id)$\":{\"type\":\"boolean\"}},\"minProperties\":2}"},
    {SCHEMA, "{\"$ref\":\"#/$defs/t\",\"$defs\":{\"t\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/t\"},\"minItems\":0,\"maxItems\":2}}}"},
    {SCHEMA, "{\"type\":\"string\",\"pattern\":\"^a?.*[.!]$\",\"maxLength\":45}"},
    {SCHEMA, "{\"type\":\"string\",\"pattern\":\"^.{20,40}$\"}"},
    {REGEX, "(a|ab|aaaa)*b?c"},
    {REGEX, "[^\"]*\"(\\\\.|[^\"])*"},
    {REGEX, "[a-z]+ ?[a-z]+"},
    {EBNF, "s ::= \"(\" s \")\" s | \"a\"*"},
    {EBNF, "s ::= \"a\" s \"a\" | \"a\" s \"b\" | \"\""},
    {CALLS_JSON, tools},
    {CALLS_XML, tools},
    {CALLS_FREE, tools},
};

/* A token of the mask: by chance one byte, so that texts are not all of long tokens. */
static int32_t random_token(const uint32_t *bits)
{
    int32_t ids[N_VOCAB], n = 0, n_bytes = 0;
    for (int32_t id = 0; id < N_VOCAB; id++)
        if (has_bit(bits, id) && !qw_tokenizer_is_end(tokenizer, id)) {
            ids[n++] = id;
            n_bytes += id < 256;
        }
    if (n == 0) return ID_END;
    bool byte = next_random() % 2 && n_bytes;
    return ids[next_random() % (uint64_t)(byte ? n_bytes : n)];
}

/* Every token is in the mask exactly when the matcher takes it; kept masks and fresh ones are the same. */
static void check_mask(const qw_matcher *m, qw_matcher *copy, qw_masker *fresh, qw_masker *keeps, uint32_t *bits)
{
    uint32_t again[N_WORDS], any = 0;
    qw_masker_fill(fresh, m, bits);
    qw_masker_fill(keeps, m, again);
    assert_memory_equal(bits, again, sizeof again);
    for (int32_t id = 0; id < N_VOCAB; id++) {
        qw_matcher_copy(copy, m);
        bool taken = qw_matcher_advance(copy, id, NULL) == QW_OK;
        if (taken != has_bit(bits, id)) fail_msg("token %d is %s and %s the mask", (int)id, taken ? "taken" : "refused",
            taken ? "not in" : "in");
        any |= taken;
    }
    assert_true(any);
}

static void test_masks(void **state)
{
    uint32_t bits[N_WORDS];
    qw_masker *fresh, *keeps;
    (void)state;
    assert_int_equal(qw_masker_create(trie, 0, &fresh, NULL), QW_OK);
    assert_int_equal(qw_masker_create(trie, 256, &keeps, NULL), QW_OK);
    assert_int_equal(qw_masker_n_words(keeps), N_WORDS);
    assert_int_equal(qw_token_trie_n_vocab(trie), N_VOCAB);
    for (size_t i = 0; i < sizeof walked / sizeof *walked; i++) {
        qw_grammar *g = compile(walked[i].kind, walked[i].source);
        for (uint64_t seed = 1; seed <= 6; seed++) {
            qw_matcher *m = matcher_of(g), *copy = matcher_of(g);
            random_state = seed * 0x9E3779B97F4A7C15u + i;
            print_message("mask %zu seed %d\n", i, (int)seed);
            for (int step = 0; step < 40; step++) {
                check_mask(m, copy, fresh, keeps, bits);
                int32_t id = random_token(bits);
                assert_int_equal(qw_matcher_advance(m, id, NULL), QW_OK);
                if (id == ID_END) break;
            }
            qw_matcher_destroy(m);
            qw_matcher_destroy(copy);
        }
        qw_grammar_destroy(g);
    }
    qw_masker_destroy(fresh);
    qw_masker_destroy(keeps);
}

static void test_ends(void **state)
{
    uint32_t bits[N_WORDS];
    qw_masker *w;
    qw_grammar *g = compile(REGEX, "yes");
    qw_matcher *m = matcher_of(g);
    (void)state;
    assert_int_equal(qw_masker_create(trie, 4, &w, NULL), QW_OK);
    qw_masker_fill(w, m, bits);
    assert_true(has_bit(bits, 'y') && !has_bit(bits, ID_END) && !has_bit(bits, 'n'));
    assert_int_equal(qw_matcher_advance(m, ID_END, NULL), QW_E_ARG);
    assert_int_equal(feed(m, "yes", 3), 3);
    assert_true(qw_matcher_may_end(m) && qw_matcher_must_end(m));
    for (int i = 0; i < 2; i++) { /* before the end, and behind it: nothing but an end */
        qw_masker_fill(w, m, bits);
        for (int32_t id = 0; id < N_VOCAB; id++) assert_int_equal(has_bit(bits, id), qw_tokenizer_is_end(tokenizer, id));
        if (i == 0) assert_int_equal(qw_matcher_advance(m, ID_END, NULL), QW_OK);
    }
    assert_int_equal(qw_matcher_advance(m, ID_END, NULL), QW_E_ARG);
    assert_int_equal(qw_matcher_advance(m, -1, NULL), QW_E_ARG);
    assert_int_equal(qw_matcher_advance(m, N_VOCAB, NULL), QW_E_ARG);
    qw_masker_destroy(w);
    destroy(g, m);
}

/* ---- the way to the end ----------------------------------------------------------------------- */

static const struct {
    enum kind kind;
    const char *source, *shortest;
} shortest[] = {
    {SCHEMA, "{\"type\":\"object\"}", "{}"},
    {SCHEMA, "{\"type\":\"string\",\"minLength\":3,\"maxLength\":9}", "\"aaa\""},
    {SCHEMA, "{\"type\":\"array\",\"items\":{\"type\":\"string\",\"minLength\":2},\"minItems\":3}", "[\"aa\",\"aa\",\"aa\"]"},
    {SCHEMA, "{\"type\":\"array\",\"prefixItems\":[{\"const\":12},true],\"items\":{\"type\":\"null\"},\"minItems\":4}",
             "[12,1,null,null]"},
    {SCHEMA, "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"},\"abc\":{\"type\":\"string\"},\"b\":{\"type\":"
             "\"object\",\"properties\":{\"id\":{\"type\":\"null\"}},\"required\":[\"id\"]},\"c\":true},\"required\":[\"abc\",\"b\"]}",
             "{\"abc\":\"\",\"b\":{\"id\":null}}"},
    {SCHEMA, "{\"type\":\"object\",\"properties\":{\"l\":{\"type\":\"array\",\"items\":{\"$ref\":\"#\"}},\"n\":{\"type\":\"integer\"}},"
             "\"required\":[\"l\",\"n\"]}", "{\"l\":[],\"n\":1}"},
    {SCHEMA, "{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"},\"minProperties\":1}", "{\"\":1}"},
    {SCHEMA, "{\"anyOf\":[{\"const\":\"hello\"},{\"type\":\"array\",\"items\":true,\"minItems\":2}]}", "[1,1]"},
    {REGEX, "yes|no|maybe", "no"},
    {REGEX, "(abc){2,}x?", "abcabc"},
    {EBNF, "s ::= \"(\" s \")\" s | \"aa\"", "aa"},
    {EBNF, "s ::= \"x\" s | a\na ::= \"[\" b \"]\"\nb ::= \"1\" | a", "[1]"},
};

static bool is_byte_or_tag(int32_t id)
{
    return id < 256 || id >= 256 + N_PIECES;
}

/* A byte brings the end nearer by one at most, and where the text may end it is there: so the bound is one. */
static void check_bound(const qw_matcher *m, const uint32_t *bits)
{
    uint32_t here = qw_matcher_to_end(m);
    assert_int_equal(here == 0, qw_matcher_may_end(m));
    for (int32_t id = 0; id < N_VOCAB; id++) {
        if (!has_bit(bits, id) || qw_tokenizer_is_end(tokenizer, id)) continue;
        uint32_t behind = qw_matcher_to_end_after(m, id);
        if (is_byte_or_tag(id) && behind + 1 < here) fail_msg("token %d: %u bytes to the end, then %u", (int)id, here, behind);
    }
}

/* Closing leaves the end, and the tokens behind which it is near enough, or else nearest, and nothing else. */
static void check_closed(qw_masker *w, const qw_matcher *m, const uint32_t *bits, uint32_t room)
{
    uint32_t closed[N_WORDS], least = UINT32_MAX, any = 0;
    memcpy(closed, bits, sizeof closed);
    qw_masker_close(w, m, room, closed);
    for (int32_t id = 0; id < N_VOCAB; id++) {
        uint32_t d = has_bit(bits, id) ? qw_matcher_to_end_after(m, id) : UINT32_MAX;
        if (d < least) least = d;
    }
    if (least >= room && !qw_matcher_may_end(m)) room = least + 1;
    for (int32_t id = 0; id < N_VOCAB; id++) {
        bool wanted = has_bit(bits, id) && (qw_tokenizer_is_end(tokenizer, id) || qw_matcher_to_end_after(m, id) < room);
        if (wanted != has_bit(closed, id))
            fail_msg("token %d is %s %u bytes", (int)id, wanted ? "banned within" : "kept beyond", room);
        any += wanted;
    }
    assert_true(any > 0);
}

/* Goes on from m with bytes and tags that bring the end nearest; returns how many it took. */
static uint32_t close_text(qw_masker *w, qw_matcher *m, uint32_t most)
{
    uint32_t bits[N_WORDS], n = 0;
    for (; !qw_matcher_may_end(m); n++) {
        int32_t best = -1;
        uint32_t least = UINT32_MAX;
        if (n == most) fail_msg("not at its end after %u bytes", n);
        qw_masker_fill(w, m, bits);
        for (int32_t id = 0; id < N_VOCAB; id++) {
            if (!has_bit(bits, id) || !is_byte_or_tag(id)) continue;
            uint32_t d = qw_matcher_to_end_after(m, id);
            if (d < least) best = id;
            if (d < least) least = d;
        }
        assert_int_equal(qw_matcher_advance(m, best, NULL), QW_OK);
    }
    return n;
}

static void test_shortest(void **state)
{
    qw_masker *w;
    (void)state;
    assert_int_equal(qw_masker_create(trie, 0, &w, NULL), QW_OK);
    for (size_t i = 0; i < sizeof shortest / sizeof *shortest; i++) {
        qw_grammar *g = compile(shortest[i].kind, shortest[i].source);
        qw_matcher *m = matcher_of(g);
        size_t n = strlen(shortest[i].shortest);
        print_message("shortest %zu\n", i);
        check_text(shortest[i].kind, shortest[i].source, shortest[i].shortest, true);
        assert_int_equal(qw_matcher_to_end(m), n);
        for (size_t k = 0; k < n; k++) { /* and of each place on that way */
            assert_int_equal(feed(m, shortest[i].shortest + k, 1), 1);
            assert_int_equal(qw_matcher_to_end(m), n - k - 1);
        }
        qw_matcher_destroy(m);
        m = matcher_of(g);
        assert_int_equal(close_text(w, m, (uint32_t)n), n);
        destroy(g, m);
    }
    qw_masker_destroy(w);
}

/* From each place of random walks: the bound is one, closing keeps what it should, and bytes alone end the text in what the
 * engine counts on, a fourth above the bound. */
static void test_closing(void **state)
{
    uint32_t bits[N_WORDS];
    qw_masker *w;
    (void)state;
    assert_int_equal(qw_masker_create(trie, 64, &w, NULL), QW_OK);
    for (size_t i = 0; i < sizeof walked / sizeof *walked; i++) {
        qw_grammar *g = compile(walked[i].kind, walked[i].source);
        qw_matcher *copy = matcher_of(g);
        for (uint64_t seed = 1; seed <= 4; seed++) {
            qw_matcher *m = matcher_of(g);
            random_state = seed * 0x9E3779B97F4A7C15u + i;
            print_message("closing %zu seed %d\n", i, (int)seed);
            for (int step = 0; step < 30; step++) {
                qw_masker_fill(w, m, bits);
                uint32_t d = qw_matcher_to_end(m);
                check_bound(m, bits);
                check_closed(w, m, bits, 0);
                check_closed(w, m, bits, d);
                check_closed(w, m, bits, d + 1);
                check_closed(w, m, bits, d + 4);
                qw_matcher_copy(copy, m);
                close_text(w, copy, d + d / 4);
                int32_t id = random_token(bits);
                assert_int_equal(qw_matcher_advance(m, id, NULL), QW_OK);
                if (id == ID_END) break;
            }
            qw_matcher_destroy(m);
        }
        destroy(g, copy);
    }
    qw_masker_destroy(w);
}

/* Random tokens that never end while anything else may come: calls are bounded, and then nothing but the end may come. */
static void test_call_count(void **state)
{
    static const char short_tools[] =
        "[{\"function\":{\"name\":\"get\",\"parameters\":{\"type\":\"object\",\"properties\":{\"n\":{\"type\":\"integer\"}}}}},"
        "{\"function\":{\"name\":\"now\"}}]";
    static const struct {
        enum kind kind;
        int n_calls;
    } rows[] = {{CALLS_JSON, QW_GRAMMAR_CALLS_MAX}, {CALLS_XML, QW_GRAMMAR_CALLS_MAX}, {CALLS_FREE, QW_GRAMMAR_CALLS_MAX},
                {CALLS_ONE, 1}, {CALLS_ONE_XML, 1}};
    uint32_t bits[N_WORDS];
    qw_masker *w;
    (void)state;
    assert_int_equal(qw_masker_create(trie, 256, &w, NULL), QW_OK);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        qw_grammar *g = compile(rows[i].kind, short_tools);
        for (uint64_t seed = 1; seed <= 10; seed++) {
            qw_matcher *m = matcher_of(g);
            int n_calls = 0, n_tokens = 0;
            random_state = seed * 0x9E3779B97F4A7C15u + i;
            for (int32_t id = 0; id != ID_END; n_tokens++) {
                assert_true(n_tokens < 100000);
                qw_masker_fill(w, m, bits);
                id = random_token(bits);
                n_calls += id == ID_CALL;
                assert_int_equal(qw_matcher_advance(m, id, NULL), QW_OK);
            }
            assert_int_equal(n_calls, rows[i].n_calls);
            qw_matcher_destroy(m);
        }
        qw_grammar_destroy(g);
    }
    qw_masker_destroy(w);
}

/* A token that does not fit changes nothing, and a copy is a place to go back to. */
static void test_back(void **state)
{
    qw_grammar *g = compile(SCHEMA, "{\"type\":\"object\"}");
    qw_matcher *m = matcher_of(g), *there = matcher_of(g);
    static const char text[] = "{\"k\":{\"k\":[1,{\"x\":2,\"";
    (void)state;
    assert_int_equal(feed(m, text, strlen(text)), strlen(text));
    qw_matcher_copy(there, m);
    assert_int_equal(qw_matcher_advance(m, 256 + 8, NULL), QW_OK);    /* ]} is part of a key */
    assert_int_equal(qw_matcher_advance(m, 256 + 14, NULL), QW_E_ARG); /* \u is not */
    assert_int_equal(feed(m, "\":3}]}}", 7), 7);
    assert_true(qw_matcher_must_end(m));
    qw_matcher_copy(m, there);
    assert_int_equal(feed(m, "x\"", 2), 1); /* the key x is there already */
    assert_int_equal(feed(m, "y\":2,\"z\":1}],\"k\":1", 18), 15);
    qw_matcher_destroy(there);
    destroy(g, m);
}

/* A kept mask of one place is not used where the same key is there already. */
static void test_known_keys(void **state)
{
    static const char *const texts[] = {"{\"x\":1,\"y", "{\"y\":1,\"y"};
    uint32_t bits[N_WORDS];
    qw_masker *w;
    qw_grammar *g = compile(SCHEMA, "{\"type\":\"object\"}");
    (void)state;
    assert_int_equal(qw_masker_create(trie, 16, &w, NULL), QW_OK);
    for (int i = 0; i < 6; i++) {
        qw_matcher *m = matcher_of(g);
        assert_int_equal(feed(m, texts[i % 2], strlen(texts[i % 2])), strlen(texts[i % 2]));
        qw_masker_fill(w, m, bits);
        assert_int_equal(has_bit(bits, '"'), i % 2 == 0);
        assert_true(has_bit(bits, 'y'));
        qw_matcher_destroy(m);
    }
    qw_masker_destroy(w);
    qw_grammar_destroy(g);
}

static void test_forced(void **state)
{
    char out[64];
    qw_grammar *g = compile(SCHEMA,
        "{\"type\":\"object\",\"properties\":{\"city\":{\"const\":\"Rome\"}},\"required\":[\"city\"]}");
    qw_matcher *m = matcher_of(g);
    (void)state;
    assert_int_equal(qw_matcher_forced(m, out, sizeof out), 1); /* { and then white space or a quote */
    assert_memory_equal(out, "{", 1);
    assert_int_equal(feed(m, "{\"", 2), 2);
    assert_int_equal(qw_matcher_forced(m, out, sizeof out), 6);
    assert_memory_equal(out, "city\":", 6);
    assert_int_equal(qw_matcher_forced(m, out, 3), 3);
    assert_int_equal(feed(m, "city\":\"", 7), 7);
    assert_int_equal(qw_matcher_forced(m, out, sizeof out), 5);
    assert_memory_equal(out, "Rome\"", 5);
    assert_int_equal(feed(m, "Rome\"}", 6), 6);
    assert_int_equal(qw_matcher_forced(m, out, sizeof out), 0);
    destroy(g, m);
}

static void test_after_thinking(void **state)
{
    qw_grammar *g;
    qw_matcher *m;
    (void)state;
    assert_int_equal(qw_grammar_json_object(&(qw_grammar_options){.after_thinking = true}, &g, NULL), QW_OK);
    m = matcher_of(g);
    assert_int_equal(qw_matcher_advance(m, 256 + 6, NULL), QW_OK); /* two line breaks in a token */
    assert_int_equal(feed(m, "\n{}", 3), 0);
    assert_int_equal(feed(m, "{}", 2), 2);
    assert_true(qw_matcher_must_end(m));
    destroy(g, m);
    check_text(SCHEMA, "{\"type\":\"object\"}", "\n{}", false);
}

/* ---- limits ----------------------------------------------------------------------------------- */

/* However deep a text goes, there is a way out. */
static void test_depth(void **state)
{
    char open[400], *close;
    qw_grammar *g = compile(SCHEMA,
        "{\"$ref\":\"#/$defs/t\",\"$defs\":{\"t\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/t\"}}}}");
    qw_matcher *m = matcher_of(g);
    (void)state;
    memset(open, '[', sizeof open);
    size_t n = feed(m, open, sizeof open);
    assert_in_range(n, 100, QW_GRAMMAR_DEPTH_MAX + 1);
    close = open;
    memset(close, ']', n);
    assert_int_equal(feed(m, close, n), n);
    assert_true(qw_matcher_must_end(m));
    destroy(g, m);
    /* Where no frame is left, nothing is begun that needs one. */
    g = compile(EBNF, "s ::= \"(\" s \")\" | \"a\" | \"b\" u \"!\"\nu ::= \"[\" u \"]\" | \"u\"");
    m = matcher_of(g);
    memset(open, '(', sizeof open);
    n = feed(m, open, sizeof open);
    assert_in_range(n, 100, QW_GRAMMAR_DEPTH_MAX);
    assert_int_equal(feed(m, "b", 1), 0);
    assert_int_equal(feed(m, "a)bu!)", 6), 2);
    destroy(g, m);
    /* A required property makes each level need one more. */
    g = compile(SCHEMA, "{\"$ref\":\"#/$defs/t\",\"$defs\":{\"t\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"array\",\"items\":{"
                        "\"type\":\"array\"},\"minItems\":1},\"n\":{\"$ref\":\"#/$defs/t\"}},\"required\":[\"v\"]}}}");
    m = matcher_of(g);
    n = 0;
    while (feed(m, "{\"v\":[[]],\"n\":", 14) == 14) n++;
    assert_in_range(n, 100, QW_GRAMMAR_DEPTH_MAX);
    qw_matcher_destroy(m);
    m = matcher_of(g);
    for (size_t i = 0; i + 1 < n; i++) assert_int_equal(feed(m, "{\"v\":[[]],\"n\":", 14), 14);
    assert_int_equal(feed(m, "{\"v\":[[]]", 9), 9);
    for (size_t i = 0; i < n; i++) assert_int_equal(feed(m, "}", 1), 1);
    assert_true(qw_matcher_must_end(m));
    destroy(g, m);
}

static void test_many_keys(void **state)
{
    char text[32];
    qw_grammar *g = compile(SCHEMA, "{\"type\":\"object\"}");
    qw_matcher *m = matcher_of(g);
    int n = 0;
    (void)state;
    assert_int_equal(feed(m, "{", 1), 1);
    for (;; n++) {
        snprintf(text, sizeof text, "%s\"k%d\":0", n ? "," : "", n);
        if (feed(m, text, strlen(text)) != strlen(text)) break;
    }
    assert_int_equal(n, QW_GRAMMAR_KEYS_MAX);
    assert_int_equal(feed(m, "}", 1), 1);
    destroy(g, m);
}

/* More readings than are followed: no crash, no empty mask, and an end. */
static void test_ambiguous(void **state)
{
    static const char source[] = "s ::= a s | b s | c s | d s | \"x\"\na ::= \"a\" | \"aa\"\nb ::= \"a\" s?\nc ::= \"a\" a?\nd ::= \"aaa\" | a a";
    uint32_t bits[N_WORDS];
    qw_masker *w;
    qw_grammar *g = compile(EBNF, source);
    qw_matcher *m = matcher_of(g), *copy = matcher_of(g);
    (void)state;
    assert_int_equal(qw_masker_create(trie, 0, &w, NULL), QW_OK);
    for (int i = 0; i < 60; i++) {
        assert_int_equal(feed(m, "a", 1), 1);
        check_mask(m, copy, w, w, bits);
        assert_true(has_bit(bits, 'a'));
    }
    assert_int_equal(feed(m, "x", 1), 1);
    assert_true(qw_matcher_may_end(m));
    qw_masker_destroy(w);
    qw_matcher_destroy(copy);
    destroy(g, m);
}

static void check_refused(enum kind kind, qw_text source, int64_t cpu_us, qw_status status, const char *part)
{
    qw_grammar *g;
    qw_err err = {0};
    qw_status got = compile_n(kind, source, cpu_us, &g, &err);
    if (got != status || !strstr(err.text, part)) fail_msg("%.60s: %d, \"%s\"; want %d, \"%s\"", source.s, (int)got,
        err.text, (int)status, part);
    assert_null(g);
}

static void test_refused(void **state)
{
    static const struct {
        enum kind kind;
        const char *source;
        qw_status status;
        const char *part;
    } rows[] = {
        {SCHEMA, "{\"properties\":{\"a\":{\"not\":{}}}}", QW_E_UNSUPPORTED,
         "schema #/properties/a: the keyword \"not\" is not supported"},
        {SCHEMA, "{", QW_E_FORMAT, "schema: the schema: not JSON"},
        {SCHEMA, "{\"a\":1,\"a\":2}", QW_E_ARG, "twice"},
        {SCHEMA, "false", QW_E_ARG, "no text satisfies the grammar"},
        {SCHEMA, "{\"type\":\"string\",\"pattern\":\"[a-\"}", QW_E_ARG, "a class is not closed"},
        {SCHEMA, "{\"enum\":[1e999]}", QW_E_ARG, "beyond all doubles"},
        {REGEX, "a**", QW_E_ARG, "nothing to repeat, at byte 2"},
        {REGEX, "a{3,2}", QW_E_ARG, "out of order"},
        {REGEX, "a{5000}", QW_E_LIMIT, "above 4096"},
        {REGEX, "(?!a)b", QW_E_UNSUPPORTED, "looking ahead"},
        {REGEX, "[b-a]", QW_E_ARG, "a range in a class that is none"},
        {REGEX, "\\q", QW_E_ARG, "an escape that does not exist"},
        {REGEX, "(a|b)*a(a|b){14}", QW_E_LIMIT, "more than 10000 states of one expression"},
        {REGEX, "((a{4000}){4000}){4000}", QW_E_LIMIT, "the grammar has more than"},
        {REGEX, "a$b", QW_E_ARG, "no text satisfies"},
        {EBNF, "s ::= s \"a\" | \"b\"", QW_E_ARG, "the rule s comes back to itself"},
        {EBNF, "s ::= t \"a\" | \"b\"\nt ::= \"x\"? s", QW_E_ARG, "comes back to itself"},
        {EBNF, "s ::= x", QW_E_ARG, "the rule x is used and not there"},
        {EBNF, "s ::= \"a\"\ns ::= \"b\"", QW_E_ARG, "the rule s is there twice"},
        {EBNF, "", QW_E_ARG, "the grammar has no rule"},
        {EBNF, "s ::= s2\ns2 ::= \"a\" s2", QW_E_ARG, "no text satisfies"},
        {EBNF, "s ::= \"a", QW_E_ARG, "a text is not closed"},
        {CALLS_JSON, "[]", QW_E_ARG, "there are no tools"},
        {CALLS_JSON, "{}", QW_E_ARG, "tools: a JSON array was expected"},
        {CALLS_JSON, "[{\"function\":{\"name\":\"f\",\"parameters\":{\"properties\":{\"a\":{\"if\":1}}}}}]",
         QW_E_UNSUPPORTED,
         "tools[0].parameters #/properties/a: the keyword \"if\""},
        {CALLS_XML, "[{\"name\":\"f\",\"parameters\":{\"properties\":{\"a\":{\"type\":[\"string\",\"integer\"]}}}}]",
         QW_E_UNSUPPORTED,
         "cannot be told apart"},
        {CALLS_JSON, "[{\"name\":\"\"}]", QW_E_ARG, "tools[0]: a function needs a name"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_refused(rows[i].kind, text_of(rows[i].source), 60000000, rows[i].status, rows[i].part);
}

static void test_size_and_time(void **state)
{
    size_t n = QW_SCHEMA_BYTES_MAX + 1;
    char *text = malloc(n);
    qw_err err;
    qw_grammar *g;
    (void)state;
    assert_non_null(text);
    memset(text, ' ', n);
    memcpy(text, "{}", 2);
    check_refused(SCHEMA, (qw_text){text, n}, 0, QW_E_LIMIT, "the limit is 262144");
    memset(text, 'a', n);
    check_refused(REGEX, (qw_text){text, n}, 0, QW_E_LIMIT, "the limit is 262144");
    check_refused(EBNF, (qw_text){text, n}, 0, QW_E_LIMIT, "the limit is 262144");
    memset(text, '(', 1000);
    check_refused(REGEX, (qw_text){text, 1000}, 0, QW_E_LIMIT, "nested deeper than 64");
    check_refused(REGEX, text_of("[a-z]{0,200}[0-9]{0,200}"), 1, QW_E_LIMIT, "takes more than");
    qw_text many[] = {text_of("a"), {text, n}, text_of("b"), text_of("")};
    assert_int_equal(qw_grammar_choice(many, 2, NULL, &g, &err), QW_E_LIMIT);
    assert_int_equal(qw_grammar_choice(many + 2, 2, NULL, &g, &err), QW_E_ARG);
    assert_non_null(strstr(err.text, "choice 1 is empty"));
    assert_int_equal(qw_grammar_choice(many, 0, NULL, &g, &err), QW_E_ARG);
    free(text);
}

/* ---- nonsense --------------------------------------------------------------------------------- */

/* Bytes that are mostly of the notations, and some that are not. */
static size_t random_source(char *out, size_t max)
{
    static const char letters[] = "{}[]()|*+?\\\"'^$.,:;-=0129azbu<># \n";
    size_t n = next_random() % max;
    for (size_t i = 0; i < n; i++) {
        bool letter = next_random() % 16 != 0;
        out[i] = letter ? letters[next_random() % (sizeof letters - 1)] : (char)next_random();
    }
    return n;
}

/* Writes a form with the source at each %; returns its length. */
static size_t fill_in(char *out, const char *form, qw_text source)
{
    size_t n = 0;
    for (; *form; form++) {
        if (*form == '%') memcpy(out + n, source.s, source.n);
        else out[n] = *form;
        n += *form == '%' ? source.n : 1;
    }
    return n;
}

static void test_nonsense(void **state)
{
    static const char *const schemas[] = {
        "{\"type\":\"object\",\"properties\":{\"a\":{\"pattern\":\"%\"}}}",
            "{\"patternProperties\":{\"%\":{}},\"minProperties\":1}",
        "{\"$ref\":\"#/%\"}", "{\"enum\":[%]}", "{\"minimum\":%,\"maximum\":%}", "{\"%\":%}", "%",
    };
    char source[128], schema[512];
    uint32_t bits[N_WORDS];
    size_t compiled = 0;
    qw_masker *w;
    (void)state;
    random_state = 20261129;
    assert_int_equal(qw_masker_create(trie, 4, &w, NULL), QW_OK);
    for (int i = 0; i < 6000; i++) {
        enum kind kind = (enum kind)(i % 3);
        size_t n = random_source(source, i % 2 ? 12 : 60);
        qw_text text = {source, n};
        if (kind == SCHEMA) {
            text = (qw_text){schema, fill_in(schema, schemas[next_random() % 7], text)};
        }
        qw_grammar *g;
        qw_err err = {0};
        qw_status status = compile_n(kind, text, 60000000, &g, &err);
        if (status != QW_OK) {
            assert_true(status == QW_E_ARG || status == QW_E_FORMAT || status == QW_E_UNSUPPORTED || status == QW_E_LIMIT);
            assert_true(err.text[0] && !g);
            continue;
        }
        compiled++;
        qw_matcher *m = matcher_of(g);
        for (int step = 0; step < 8; step++) { /* from every place there is a way on */
            qw_masker_fill(w, m, bits);
            int32_t id = random_token(bits);
            if (!has_bit(bits, id)) fail_msg("%.*s: no token is allowed", (int)text.n, text.s);
            assert_int_equal(qw_matcher_advance(m, id, NULL), QW_OK);
            if (id == ID_END) break;
        }
        destroy(g, m);
    }
    print_message("%zu of 6000 were grammars\n", compiled);
    assert_true(compiled > 100);
    qw_masker_destroy(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),     cmocka_unit_test(test_strings),        cmocka_unit_test(test_containers),
        cmocka_unit_test(test_white_space), cmocka_unit_test(test_regex),         cmocka_unit_test(test_ebnf),
        cmocka_unit_test(test_calls),      cmocka_unit_test(test_masks),          cmocka_unit_test(test_ends),
        cmocka_unit_test(test_shortest),   cmocka_unit_test(test_closing),        cmocka_unit_test(test_call_count),
        cmocka_unit_test(test_back),       cmocka_unit_test(test_known_keys),
        cmocka_unit_test(test_forced),         cmocka_unit_test(test_after_thinking),
        cmocka_unit_test(test_depth),      cmocka_unit_test(test_many_keys),      cmocka_unit_test(test_ambiguous),
        cmocka_unit_test(test_refused),    cmocka_unit_test(test_size_and_time),  cmocka_unit_test(test_nonsense),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
