/* test_parse.c: the output parser: events, cuts at every byte, truncation, mutations, and that nothing is lost.
 *
 * Every text goes through in one piece, byte by byte and cut in two; the events must be the same and their raw parts
 * together the text.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/utf8.h"
#include "text/json_text.h"
#include "text/parse.h"

enum { LOG_MAX = 64 << 20 };

#define TOOLS                                                                                                \
    "[{\"type\": \"function\", \"function\": {\"name\": \"get\", \"parameters\": {\"type\": \"object\", "    \
    "\"properties\": {\"city\": {\"type\": \"string\"}, \"days\": {\"type\": \"integer\"}, "                 \
    "\"deep\": {\"type\": \"boolean\"}, \"where\": {\"type\": \"object\"}, \"list\": {\"type\": \"array\"}, " \
    "\"maybe\": {\"type\": [\"string\", \"null\"]}, "                                                         \
    "\"one\": {\"anyOf\": [{\"type\": \"number\"}, {\"type\": \"null\"}]}, "                                   \
    "\"unit\": {\"enum\": [\"C\", \"F\"]}, \"any\": {}}}}}, {\"name\": \"run\", \"parameters\": {}}]"

/* ---- events as text --------------------------------------------------------------------------- */

typedef struct event_log {
    qw_buf events, raw, arguments;
    qw_parse_kind last;
    int n_broken, n_warnings;
} event_log;

static void log_init(event_log *l)
{
    *l = (event_log){0};
    qw_buf_init(&l->events, LOG_MAX, "events");
    qw_buf_init(&l->raw, LOG_MAX, "raw");
    qw_buf_init(&l->arguments, LOG_MAX, "arguments");
}

static void log_free(event_log *l)
{
    qw_buf_free(&l->events);
    qw_buf_free(&l->raw);
    qw_buf_free(&l->arguments);
}

/* A complete call's arguments are JSON, if they are text at all; a key may be there twice. */
static void check_arguments(const event_log *l)
{
    qw_buf out;
    qw_err err;
    const char *s = qw_buf_str(&l->arguments);
    if (!qw_utf8_valid(s, l->arguments.n)) return;
    qw_buf_init(&out, LOG_MAX, "json");
    qw_status status = qw_json_rewrite((qw_text){s, l->arguments.n}, &out, &err);
    qw_buf_free(&out);
    if (status == QW_E_FORMAT && !strstr(err.text, "surrogate")) fail_msg("arguments %s: %s", s, err.text);
}

static qw_status take(void *ctx, const qw_parse_event *ev, qw_err *err)
{
    static const char *const names[] = {[QW_PARSE_THINKING] = "think", [QW_PARSE_CONTENT] = "text",
                                        [QW_PARSE_MARKUP] = "", [QW_PARSE_CALL] = "call",
                                        [QW_PARSE_ARGUMENTS] = "args", [QW_PARSE_CALL_END] = "end",
                                        [QW_PARSE_WARNING] = "warn"};
    event_log *l = ctx;
    QW_TRY(qw_buf_add(&l->raw, ev->raw.s, ev->raw.n, err));
    if (ev->kind == QW_PARSE_CALL) qw_buf_clear(&l->arguments);
    if (ev->kind == QW_PARSE_ARGUMENTS) QW_TRY(qw_buf_add(&l->arguments, ev->text.s, ev->text.n, err));
    if (ev->kind == QW_PARSE_CALL_END && ev->complete) check_arguments(l);
    l->n_broken += ev->kind == QW_PARSE_CALL_END && !ev->complete;
    l->n_warnings += ev->kind == QW_PARSE_WARNING;
    if (ev->kind == QW_PARSE_MARKUP) return QW_OK;
    bool delta = ev->kind == QW_PARSE_THINKING || ev->kind == QW_PARSE_CONTENT || ev->kind == QW_PARSE_ARGUMENTS;
    if (delta && ev->text.n == 0) return QW_OK;
    if (!delta || l->last != ev->kind) QW_TRY(qw_buf_printf(&l->events, err, "|%s:", names[ev->kind]));
    l->last = ev->kind;
    if (ev->kind == QW_PARSE_WARNING) return QW_OK;
    if (ev->kind == QW_PARSE_CALL_END) return qw_buf_add_str(&l->events, ev->complete ? "whole" : "broken", err);
    return qw_buf_add(&l->events, ev->text.s, ev->text.n, err);
}

typedef struct setting {
    const char *tools;
    bool thinks, in_thinking, xml;
} setting;

/* Parses text[0, n) in pieces of the sizes that cut gives. */
static void parse(const setting *o, const char *text, size_t n, size_t (*cut)(void *, size_t), void *ctx, event_log *l)
{
    qw_parser *p;
    qw_err err;
    qw_parse_options options = {.tools = {o->tools, o->tools ? strlen(o->tools) : 0}, .thinks = o->thinks,
                                .in_thinking = o->in_thinking, .xml_calls = o->xml};
    log_init(l);
    if (qw_parser_create(&options, &p, &err) != QW_OK) fail_msg("%s", err.text);
    for (size_t i = 0; i < n;) {
        size_t k = cut(ctx, i);
        if (k > n - i) k = n - i;
        if (qw_parser_push(p, (qw_text){text + i, k}, take, l, &err) != QW_OK) fail_msg("%s", err.text);
        i += k;
    }
    if (qw_parser_finish(p, take, l, &err) != QW_OK) fail_msg("%s", err.text);
    qw_parser_destroy(p);
    if (l->raw.n != n || (n > 0 && memcmp(l->raw.data, text, n) != 0))
        fail_msg("lost: of\n%.*s\nthere is\n%s", (int)n, text, qw_buf_str(&l->raw));
}

static size_t cut_never(void *ctx, size_t at)
{
    (void)ctx;
    (void)at;
    return SIZE_MAX;
}

static size_t cut_bytes(void *ctx, size_t at)
{
    (void)ctx;
    (void)at;
    return 1;
}

static size_t cut_once(void *ctx, size_t at)
{
    size_t where = *(size_t *)ctx;
    return at < where ? where - at : SIZE_MAX;
}

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static size_t cut_randomly(void *ctx, size_t at)
{
    (void)at;
    return 1 + next_random(ctx) % 12;
}

static void same(const event_log *a, const event_log *b, const char *how, const char *text, size_t n)
{
    if (a->events.n != b->events.n || (a->events.n && memcmp(a->events.data, b->events.data, a->events.n) != 0))
        fail_msg("%s:\n%.*s\ngave\n%s\nand whole\n%s", how, (int)n, text, qw_buf_str(&b->events),
                 qw_buf_str(&a->events));
}

/* ---- cases ------------------------------------------------------------------------------------ */

#define GET_JSON "<tool_call>\n{\"name\": \"get\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}\n</tool_call>"
#define GET_BARE "{\"name\": \"get\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}"
#define GET_XML                                                                                              \
    "<tool_call>\n<function=get>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n"  \
    "</function>\n</tool_call>"
#define GET_EVENTS "|call:get|args:{\"city\": \"Köln\", \"days\": 3}|end:whole"
#define XML(key, value)                                                                                      \
    "<tool_call>\n<function=get>\n<parameter=" key ">" value "</parameter>\n</function>\n</tool_call>"

static const setting plain = {TOOLS, false, false, false}, thinks = {TOOLS, true, false, false},
                     in_thinking = {TOOLS, true, true, true}, xml = {TOOLS, false, false, true},
                     no_tools = {NULL, true, false, true};

static const struct {
    const setting *setting;
    const char *text, *events;
} cases[] = {
    {&plain, "", ""},
    {&plain, "Hello\n\n", "|text:Hello\n\n"},
    {&plain, "a < b <tool_cal <<tool", "|text:a < b <tool_cal <<tool"},
    {&plain, "<think>\nx</think>", "|text:<think>\nx</think>"},
    {&thinks, "\n<think>\n\nWhy?\n\n</think>\n\nSo.\n", "|think:Why?|text:So.\n"},
    {&thinks, "<think>\n\n</think>\n\nSo", "|text:So"},
    {&thinks, "x<think>y</think>", "|text:x<think>y</think>"},
    {&thinks, "<thin", "|text:<thin"},
    {&thinks, "<think>a</thin", "|think:a</thin"},
    {&in_thinking, "\nHm.\n\n", "|think:Hm.\n\n"},
    {&in_thinking, "Hm <b> \n</think>\n\n\n", "|think:Hm <b> "},
    {&in_thinking, "Hm\n</think>\n\n" GET_XML "\n" GET_JSON "\n", "|think:Hm" GET_EVENTS GET_EVENTS},
    /* a call in thinking counts when the function is known */
    {&in_thinking, "Hm\n" GET_XML "\nmore\n</think>\nA", "|think:Hm" GET_EVENTS "|think:\nmore|text:A"},
    {&in_thinking, "use <tool_call>\n<function=foo>\n</think>A", "|think:use <tool_call>\n<function=foo>|text:A"},
    {&in_thinking, "use <tool_call> and </think>A", "|think:use <tool_call> and |text:A"},
    /* the JSON form */
    {&plain, GET_JSON, GET_EVENTS},
    {&plain, "Let me see.\n" GET_JSON "\n" GET_JSON "\n", "|text:Let me see." GET_EVENTS GET_EVENTS},
    {&plain, "\n\n" GET_JSON "\n\nDone", GET_EVENTS "|text:\n\nDone"},
    {&plain, "<tool_call>{\"arguments\":{\"a\":[1,{}]},\"name\":\"f\"}</tool_call>",
     "|call:f|args:{\"a\":[1,{}]}|end:whole"},
    {&plain, "<tool_call>{\"name\":\"f\"}</tool_call>", "|call:f|args:{}|end:whole"},
    {&plain, "<tool_call>{\"name\":\"f\",\"parameters\":{}}</tool_call>", "|call:f|args:{}|end:whole"},
    {&plain, "<tool_call>{\"name\":\"f\",\"arguments\":\"{\\\"a\\\": 1}\"}</tool_call>",
     "|call:f|args:{\"a\": 1}|end:whole"},
    {&plain, "<tool_call>{\"name\":\"f\",\"arguments\":\"x\\n\"}</tool_call>", "|call:f|args:\"x\\n\"|end:whole"},
    {&plain, "<tool_call>{\"name\":\"f\",\"arguments\": 12 }</tool_call>", "|call:f|args:12|end:whole"},
    {&plain, "<tool_call>{\"arguments\":-1.5e3,\"name\":\"\\u00e9\"}</tool_call>", "|call:é|args:-1.5e3|end:whole"},
    {&plain, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"x\ny\t\"}}</tool_call>",
     "|call:f|args:{\"a\": \"x\\ny\\t\"}|end:whole"},
    {&plain, "<tool_call>\n{\"name\": \"f\"}\n{\"name\": \"g\"}\n</tool_call>",
     "|call:f|args:{}|end:whole|call:g|args:{}|end:whole"},
    {&plain, "<tool_call>{\"name\": \"f\", \"arguments\": {}}", "|call:f|args:{}|end:whole"},
    {&plain, "<tool_call>{\"name\": \"f\", \"arguments\": {}", "|call:f|args:{}|end:whole"},
    {&plain, "<tool_call>{\"name\": \"f\", \"arguments\": {} } x", "|call:f|args:{}|end:whole|warn:|text: x"},
    {&plain, "<tool_call>{\"name\": \"f\", \"arguments\": {}, \"id\": 1}\n</tool_call>",
     "|call:f|args:{}|end:whole|warn:|text:, \"id\": 1}\n</tool_call>"},
    {&plain, "<tool_call>{\"id\": 1, \"name\": \"f\"}", "|warn:|text:<tool_call>{\"id\": 1, \"name\": \"f\"}"},
    {&plain, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": x}}</tool_call>",
     "|call:f|args:{\"a\": |end:broken|warn:|text:x}}</tool_call>"},
    {&plain, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 01}}</tool_call>",
     "|call:f|args:{\"a\": 0|end:broken|warn:|text:1}}</tool_call>"},
    {&plain, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1", "|call:f|args:{\"a\": 1|end:broken|warn:"},
    {&plain, "<tool_call>{\"name\": \"f", "|warn:|text:<tool_call>{\"name\": \"f"},
    {&plain, "<tool_call>{\"name\": 5}", "|warn:|text:<tool_call>{\"name\": 5}"},
    {&plain, "<tool_call>{}", "|warn:|text:<tool_call>{}"},
    {&plain, "x\n<tool_call>\nnone</tool_call>", "|text:x|warn:|text:\n<tool_call>\nnone</tool_call>"},
    {&plain, "<tool_call><tool_call>{\"name\":\"f\"}</tool_call>", "|warn:|text:<tool_call>|call:f|args:{}|end:whole"},
    {&plain, "<tool_call> [1]", "|warn:|text:<tool_call> [1]"},
    {&no_tools, GET_JSON, "|text:" GET_JSON},
    /* the JSON form without <tool_call>: where nothing stands before it, and for known functions */
    {&plain, GET_BARE, GET_EVENTS},
    {&plain, "\n " GET_BARE, "|text:\n " GET_BARE},
    {&plain, "\n\n" GET_BARE "\n", GET_EVENTS},
    {&plain, GET_BARE "\n" GET_BARE "\n\nDone", GET_EVENTS GET_EVENTS "|text:\n\nDone"},
    {&plain, GET_JSON "\n" GET_BARE, GET_EVENTS GET_EVENTS},
    {&plain, GET_BARE "\n</tool_call>", GET_EVENTS},
    {&plain, "So: " GET_BARE, "|text:So: " GET_BARE},
    {&thinks, "<think>\nx\n</think>\n\n" GET_BARE, "|think:x" GET_EVENTS},
    {&plain, "{\"arguments\": {}, \"name\": \"get\"}", "|call:get|args:{}|end:whole"},
    {&plain, "{\"name\": \"get\", \"arguments\": {\"city\": x}}", "|call:get|args:{\"city\": |end:broken|warn:|text:x}}"},
    {&plain, "{\"name\": \"get\", \"arguments\": {\"ci", "|call:get|args:{\"ci|end:broken|warn:"},
    {&plain, "{\"name\": \"foo\", \"arguments\": {}}", "|text:{\"name\": \"foo\", \"arguments\": {}}"},
    {&plain, "{\"name\": \"Ann\", \"age\": 3}\n", "|text:{\"name\": \"Ann\", \"age\": 3}\n"},
    {&plain, "{\"name\": \"Ann\"}", "|text:{\"name\": \"Ann\"}"},
    {&plain, "{{}}", "|text:{{}}"},
    {&plain, "{\n", "|text:{\n"},
    {&xml, GET_BARE, "|text:" GET_BARE},
    {&no_tools, GET_BARE, "|text:" GET_BARE},
    /* the XML form */
    {&xml, GET_XML, GET_EVENTS},
    {&plain, GET_XML, GET_EVENTS},
    {&xml, "Now:\n\n" GET_XML "\n" GET_XML, "|text:Now:" GET_EVENTS GET_EVENTS},
    {&xml, "<tool_call>\n<function=new>\n</function>\n</tool_call>", "|call:new|args:{}|end:whole"},
    {&xml, "<tool_call><function=get></function><function=run></function></tool_call>",
     "|call:get|args:{}|end:whole|call:run|args:{}|end:whole"},
    {&xml, "Hi\n<function=run>\n</function>\n</tool_call>", "|text:Hi|call:run|args:{}|end:whole"},
    {&xml, "<function=run>\n</function>\nHi", "|call:run|args:{}|end:whole|text:\nHi"},
    {&xml, "see <function=foo>", "|text:see <function=foo>"},
    {&plain, "see <function=run>", "|text:see <function=run>"},
    {&xml, XML("city", "\n\n a\n\"b\\\n\n"), "|call:get|args:{\"city\": \"\\n a\\n\\\"b\\\\\\n\"}|end:whole"},
    {&xml, XML("city", ""), "|call:get|args:{\"city\": \"\"}|end:whole"},
    {&xml, XML("city", "\n"), "|call:get|args:{\"city\": \"\"}|end:whole"},
    {&xml, XML("city", "\n\n"), "|call:get|args:{\"city\": \"\"}|end:whole"},
    {&xml, XML("city", "\n\n\n"), "|call:get|args:{\"city\": \"\\n\"}|end:whole"},
    {&xml, XML("city", "\nnull\n"), "|call:get|args:{\"city\": \"null\"}|end:whole"},
    {&xml, XML("days", "\n 12 \n"), "|call:get|args:{\"days\": 12}|end:whole"},
    {&xml, XML("days", "\nmany\n"), "|call:get|args:{\"days\": \"many\"|warn:|args:}|end:whole"},
    {&xml, XML("days", "\n\"1\"\n"), "|call:get|args:{\"days\": \"\\\"1\\\"\"|warn:|args:}|end:whole"},
    {&xml, XML("deep", "\nTrue\n"), "|call:get|args:{\"deep\": true}|end:whole"},
    {&xml, XML("deep", "false"), "|call:get|args:{\"deep\": false}|end:whole"},
    {&xml, XML("where", "\n{\"a\": [1,\n2]}\n"), "|call:get|args:{\"where\": {\"a\": [1,\n2]}}|end:whole"},
    {&xml, XML("where", "\n{\"a\": 1,}\n"), "|call:get|args:{\"where\": \"{\\\"a\\\": 1,}\"|warn:|args:}|end:whole"},
    {&xml, XML("list", "\n[]\n"), "|call:get|args:{\"list\": []}|end:whole"},
    {&xml, XML("maybe", "\nNone\n"), "|call:get|args:{\"maybe\": null}|end:whole"},
    {&xml, XML("maybe", "\n12\n"), "|call:get|args:{\"maybe\": \"12\"}|end:whole"},
    {&xml, XML("one", "\n1.50\n"), "|call:get|args:{\"one\": 1.50}|end:whole"},
    {&xml, XML("unit", "\nC\n"), "|call:get|args:{\"unit\": \"C\"}|end:whole"},
    {&xml, XML("any", "\n[1]\n"), "|call:get|args:{\"any\": [1]}|end:whole"},
    {&xml, XML("any", "\nword\n"), "|call:get|args:{\"any\": \"word\"}|end:whole"},
    {&xml, XML("other", "\n12\n"), "|call:get|args:{\"other\": \"12\"}|end:whole"},
    {&xml, XML("a\"b", "x"), "|call:get|args:{\"a\\\"b\": \"x\"}|end:whole"},
    {&xml, XML("city", "\na </parameter> <b></parameter>\n<x\n</parameter>\n</para\n"),
     "|call:get|args:{\"city\": \"a </parameter> <b></parameter>\\n<x\\n</parameter>\\n</para\"}|end:whole"},
    {&xml, "<tool_call>\n<function=get>\n<parameter=city>\nx\n</parameter>\n</tool_call>!",
     "|call:get|args:{\"city\": \"x\"}|end:whole|text:!"},
    {&xml, "<tool_call>\n<function=get>\n<parameter=city>\nx\n</par",
     "|call:get|args:{\"city\": \"x\\n</par|end:broken|warn:"},
    {&xml, "<tool_call>\n<function=get>\n<parameter=days>\n12", "|call:get|args:{\"days\": 12|end:broken|warn:"},
    {&xml, "<tool_call>\n<function=get>\n<parameter=city>\nx\n</parameter>\n",
     "|call:get|args:{\"city\": \"x\"|end:broken|warn:"},
    {&xml, "<tool_call>\n<function=get>\n<para", "|call:get|args:{|end:broken|warn:"},
    {&xml, "<tool_call>\n<function=get>\nwhat</function>", "|call:get|args:{|end:broken|warn:|text:\nwhat</function>"},
    {&xml, "<tool_call>\n<function=ge\nt>", "|warn:|text:<tool_call>\n<function=ge\nt>"},
    {&xml, "<tool_call>\n<function=>", "|warn:|text:<tool_call>\n<function=>"},
    {&xml, "<tool_call>\n<function=get></function>\nand", "|call:get|args:{}|end:whole|warn:|text:\nand"},
};
enum { N_CASES = sizeof cases / sizeof *cases };

static void test_events(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++) {
        event_log l;
        parse(cases[i].setting, cases[i].text, strlen(cases[i].text), cut_never, NULL, &l);
        if (strcmp(qw_buf_str(&l.events), cases[i].events) != 0)
            fail_msg("%s\ngave\n%s\nwant\n%s", cases[i].text, qw_buf_str(&l.events), cases[i].events);
        log_free(&l);
    }
}

static void check_cuts(const setting *o, const char *text, size_t n, bool all)
{
    event_log whole, l;
    parse(o, text, n, cut_never, NULL, &whole);
    parse(o, text, n, cut_bytes, NULL, &l);
    same(&whole, &l, "byte by byte", text, n);
    log_free(&l);
    for (size_t at = 1; all && at < n; at++) {
        parse(o, text, n, cut_once, &at, &l);
        same(&whole, &l, "cut in two", text, n);
        log_free(&l);
    }
    log_free(&whole);
}

static void test_cuts(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++) check_cuts(cases[i].setting, cases[i].text, strlen(cases[i].text), true);
}

/* The answer may end anywhere. */
static void test_truncated(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_CASES; i++)
        for (size_t n = 0; n < strlen(cases[i].text); n++) check_cuts(cases[i].setting, cases[i].text, n, false);
}

/* Two answers mixed at every byte: the first goes on inside the second. */
static void test_interleaved(void **state)
{
    static const char *const texts[] = {GET_JSON, GET_XML, "<think>\nx\n</think>\n\ny", XML("days", "\n1\n")};
    char text[1024];
    (void)state;
    for (size_t a = 0; a < 4; a++)
        for (size_t b = 0; b < 4; b++)
            for (size_t at = 0; at <= strlen(texts[a]); at++) {
                int n = snprintf(text, sizeof text, "%.*s%s%s", (int)at, texts[a], texts[b], texts[a] + at);
                check_cuts(&xml, text, (size_t)n, false);
                check_cuts(&in_thinking, text, (size_t)n, false);
            }
}

/* Random changes of the cases. */
static void test_mutated(void **state)
{
    static const char *const bits[] = {"<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", ">",
                                       "</parameter>", "<think>", "</think>", "\n", "<", "{", "}", "\"", "\\", ",", ":",
                                       "[", "]", " ", "get", "city", "\xFF", "1", "true", "</",
                                       "{\"name\": \"get\"}", "e9"};
    enum { ROUNDS = 20000, N_BITS = sizeof bits / sizeof *bits };
    uint64_t seed = 20261128;
    size_t broken = 0, warned = 0;
    (void)state;
    printf("seed %llu\n", (unsigned long long)seed);
    for (int round = 0; round < ROUNDS; round++) {
        size_t which = next_random(&seed) % N_CASES;
        char text[2048];
        size_t n = strlen(cases[which].text), changes = 1 + next_random(&seed) % 4;
        memcpy(text, cases[which].text, n);
        for (size_t k = 0; k < changes; k++) {
            const char *bit = bits[next_random(&seed) % N_BITS];
            size_t at = next_random(&seed) % (n + 1), len = strlen(bit), gone = next_random(&seed) % 4;
            if (gone > n - at) gone = n - at;
            if (next_random(&seed) % 3 == 0) len = 0;
            memmove(text + at + len, text + at + gone, n - at - gone);
            memcpy(text + at, bit, len);
            n += len - gone;
        }
        event_log whole, l;
        parse(cases[which].setting, text, n, cut_never, NULL, &whole);
        parse(cases[which].setting, text, n, cut_randomly, &seed, &l);
        same(&whole, &l, "cut at random", text, n);
        broken += (size_t)whole.n_broken;
        warned += (size_t)whole.n_warnings;
        log_free(&whole);
        log_free(&l);
    }
    assert_true(broken > ROUNDS / 50 && warned > ROUNDS / 20); /* the changes reach the rules for them */
}

/* Long texts of what makes a parser hold back. */
static void test_long(void **state)
{
    static const char *const units[] = {"<", "\n", "<tool_call>", "<tool_call>{", "<tool_call>{\"name\": \"",
                                        "</parameter>\n",
                                        "<tool_call>\n<function=", " ", "<think>", "</", "{\"a\":"};
    static const char *const heads[] = {"", "<think>", "<tool_call>\n<function=get>\n<parameter=city>\n",
                                        "<tool_call>\n<function=get>\n<parameter=list>\n",
                                        "<tool_call>\n{\"arguments\": \"",
                                        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \""};
    enum { BYTES = QW_PARSE_HELD_MAX + (QW_PARSE_HELD_MAX >> 2) };
    char *text = malloc(BYTES + 256);
    (void)state;
    assert_non_null(text);
    for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
        for (size_t u = 0; u < sizeof units / sizeof *units; u++) {
            size_t n = strlen(heads[h]), len = strlen(units[u]);
            event_log l;
            memcpy(text, heads[h], n);
            for (; n < BYTES; n += len) memcpy(text + n, units[u], len);
            uint64_t seed = 7;
            parse(&in_thinking, text + (h == 1 ? 7 : 0), n - (h == 1 ? 7 : 0), cut_randomly, &seed, &l);
            log_free(&l);
        }
    free(text);
}

static qw_status refuse(void *ctx, const qw_parse_event *ev, qw_err *err)
{
    (void)ctx;
    (void)ev;
    return qw_fail(err, QW_E_LIMIT, "no more");
}

static void test_errors(void **state)
{
    qw_parser *p;
    qw_err err;
    (void)state;
    qw_parse_options o = {.tools = {"[1]", 3}};
    assert_int_equal(qw_parser_create(&o, &p, &err), QW_E_ARG);
    assert_null(p);
    o.tools = (qw_text){"[{", 2};
    assert_int_equal(qw_parser_create(&o, &p, &err), QW_E_FORMAT);
    o.tools = (qw_text){0};
    assert_int_equal(qw_parser_create(&o, &p, &err), QW_OK);
    assert_int_equal(qw_parser_push(p, (qw_text){"x", 1}, refuse, NULL, &err), QW_E_LIMIT);
    assert_string_equal(err.text, "no more");
    qw_parser_destroy(p);
    qw_parser_destroy(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_events),      cmocka_unit_test(test_cuts),    cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_interleaved), cmocka_unit_test(test_mutated), cmocka_unit_test(test_long),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
