/* test_answer.c: what becomes of sampled tokens: thinking, content, tool calls, warnings, and the one end.
 *
 * Token ids go in as a sampler would hand them over; there is no model. Everything that comes out of the queue is written
 * down as one line, in which neighbouring pieces of one kind are joined: R(thinking) T(content) B0(function) A0(arguments)
 * E0+ or E0- W(warning). Each token has to ride in exactly one event, in order and without delay. Random texts, cut into
 * tokens and pieces at random, must give the line that the parser gives for the whole text.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/answer.h"

#include "small_vocab.h"

enum { SEED = 20260911, LINE_MAX_BYTES = 1 << 16, TOKENS_MAX = 4096 };

#define TOOLS                                                                                                  \
    "[{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"parameters\": {\"type\": \"object\", "  \
    "\"properties\": {\"place\": {\"type\": \"string\"}, \"days\": {\"type\": \"integer\"}}}}}]"
#define CALL(arguments) "<tool_call>\n{\"name\": \"weather\", \"arguments\": " arguments "}\n</tool_call>"

static small_vocab vocab;
static qw_tokenizer *tokenizer;

/* ---- one line of all that came ---------------------------------------------------------------- */

typedef struct line {
    char text[LINE_MAX_BYTES];
    size_t n;
    char open; /* kind of the piece that may go on, or 0 */
} line;

static void put(line *l, const char *s, size_t n)
{
    assert_true(l->n + n < sizeof l->text);
    memcpy(l->text + l->n, s, n);
    l->n += n;
    l->text[l->n] = 0;
}

static void close_piece(line *l)
{
    if (l->open) put(l, ")", 1);
    l->open = 0;
}

/* A piece of kind `mark`; index: of a call, or -1. */
static void put_piece(line *l, char mark, int index, qw_text text)
{
    char head[16];
    if (text.n == 0) return;
    if (l->open != mark || mark == 'W') {
        close_piece(l);
        int n = index >= 0 ? snprintf(head, sizeof head, "%c%d(", mark, index) : snprintf(head, sizeof head, "%c(", mark);
        put(l, head, (size_t)n);
    }
    put(l, text.s, text.n);
    l->open = mark;
    if (mark == 'W' || mark == 'B') close_piece(l);
}

static void put_end(line *l, int index, bool complete)
{
    char end[16];
    close_piece(l);
    put(l, end, (size_t)snprintf(end, sizeof end, "E%d%c", index, complete ? '+' : '-'));
}

/* ---- an answer -------------------------------------------------------------------------------- */

typedef struct options {
    bool thinks, in_thinking, xml, one_call, ignore_eos, no_tools;
    const char *stop;
    int64_t max_tokens;
} options;

typedef struct rig {
    qw_event_queue events;
    qw_job job;
    char *stops[1];
    qw_engine_answer answer;
    line line;
    char arguments[1024]; /* of the newest call, from its pieces */
    int32_t tokens[TOKENS_MAX];
    size_t n_pushed, n_seen;
    bool ended;
    qw_event_type newest;
    qw_event last;        /* the terminal event; its pointers are copied below */
    char stop[QW_STOP_BYTES_MAX + 1];
} rig;

static qw_parse_options parse_options(const options *o)
{
    return (qw_parse_options){.tools = o->no_tools ? (qw_text){0} : (qw_text){TOOLS, sizeof TOOLS - 1},
                              .thinks = o->thinks || o->in_thinking, .in_thinking = o->in_thinking, .xml_calls = o->xml};
}

static rig *rig_open(const options *o, bool parsed)
{
    rig *r = calloc(1, sizeof *r);
    qw_err err;
    assert_non_null(r);
    assert_int_equal(qw_events_init(&r->events, QW_BACKLOG_MAX, &err), QW_OK);
    r->job = (qw_job){.id = 7, .user = r, .n_tokens = 5, .one_call = o->one_call, .ignore_eos = o->ignore_eos,
                      .max_tokens = o->max_tokens, .submitted_us = 1};
    assert_int_equal(qw_feed_create(&r->job.feed, &err), QW_OK);
    qw_events_open(&r->events, r->job.feed, r->job.id);
    if (o->stop) {
        r->stops[0] = strdup(o->stop);
        r->job.stop = r->stops;
        r->job.n_stop = 1;
    }
    qw_parse_options p = parse_options(o);
    if (parsed && qw_parser_create(&p, &r->job.parser, &err) != QW_OK) fail_msg("%s", err.text);
    qw_engine_answer_begin(&r->answer, &r->job, tokenizer, &r->events);
    return r;
}

static void rig_close(rig *r)
{
    qw_engine_answer_free(&r->answer);
    qw_parser_destroy(r->job.parser);
    qw_events_free(&r->events);
    qw_feed_release(r->job.feed);
    free(r->stops[0]);
    free(r);
}

static void see(rig *r, const qw_event *ev)
{
    assert_false(r->ended);
    r->newest = ev->type;
    assert_int_equal(ev->request, 7);
    assert_ptr_equal(ev->user, r);
    assert_true(ev->n_tokens <= 1);
    for (size_t i = 0; i < ev->n_tokens; i++) {
        assert_int_equal(ev->tokens[i].token, r->tokens[r->n_seen++]);
        assert_int_equal(ev->tokens[i].n_top, 2);
        assert_true(ev->tokens[i].logprob == -1.5f && ev->tokens[i].top[1].token == 9);
    }
    switch (ev->type) {
    case QW_EVENT_TEXT: put_piece(&r->line, 'T', -1, ev->text); break;
    case QW_EVENT_REASONING: put_piece(&r->line, 'R', -1, ev->text); break;
    case QW_EVENT_CALL_BEGIN:
        assert_null(ev->call->id);
        assert_int_equal(ev->call->arguments.n, 0);
        r->arguments[0] = 0;
        put_piece(&r->line, 'B', (int)ev->call_index, qw_text_of(ev->call->name));
        break;
    case QW_EVENT_CALL_ARGUMENTS:
        assert_true(ev->text.n > 0);
        strncat(r->arguments, ev->text.s, ev->text.n);
        put_piece(&r->line, 'A', (int)ev->call_index, ev->text);
        break;
    case QW_EVENT_CALL_END: /* the pieces are the whole */
        assert_int_equal(ev->call->arguments.n, strlen(r->arguments));
        assert_memory_equal(ev->call->arguments.s, r->arguments, ev->call->arguments.n);
        assert_non_null(strstr(r->line.text, ev->call->name));
        put_end(&r->line, (int)ev->call_index, ev->complete);
        break;
    case QW_EVENT_WARNING:
        assert_int_equal(ev->n_tokens, 0);
        put_piece(&r->line, 'W', -1, ev->text);
        break;
    default:
        assert_true(qw_event_is_terminal(ev));
        close_piece(&r->line);
        r->ended = true;
        r->last = *ev;
        snprintf(r->stop, sizeof r->stop, "%s", ev->stop);
    }
}

static void drain(rig *r)
{
    qw_event ev;
    while (qw_events_poll(&r->events, 0, &ev)) see(r, &ev);
}

static void push(rig *r, int32_t token)
{
    qw_sample s = {.token = token, .logprob = -1.5f, .top = {{8, -1}, {9, -2}}, .n_top = 2};
    qw_err err;
    if (r->answer.finish != QW_FINISH_NONE) return;
    assert_true(r->n_pushed < TOKENS_MAX);
    r->tokens[r->n_pushed++] = token;
    if (qw_engine_answer_push(&r->answer, &s, &err) != QW_OK) fail_msg("%s", err.text);
    memset(&s, 0xAA, sizeof s); /* it is not looked at again */
    drain(r);
    bool silent_end = token == ID_IM_END && !r->job.ignore_eos;
    assert_int_equal(r->n_seen, r->n_pushed - silent_end);
}

static void say(rig *r, const char *text)
{
    qw_tokens ids = {0};
    qw_err err;
    assert_int_equal(qw_tokenizer_encode(tokenizer, text, strlen(text), true, &ids, &err), QW_OK);
    for (size_t i = 0; i < ids.n; i++) push(r, ids.ids[i]);
    qw_tokens_free(&ids);
}

/* Ends the answer as its driver does: by itself, or for another reason. */
static void end(rig *r, qw_finish other)
{
    qw_engine_answer_end(&r->answer, r->answer.finish != QW_FINISH_NONE ? r->answer.finish : other);
    drain(r);
    assert_true(r->ended);
}

/* Says a text and the end token (unless other says why it ends), and compares line and finish. */
static void check(const options *o, const char *text, qw_finish other, const char *want, qw_finish finish)
{
    rig *r = rig_open(o, true);
    say(r, text);
    if (other == QW_FINISH_NONE) push(r, ID_IM_END);
    end(r, other);
    assert_string_equal(r->line.text, want);
    assert_int_equal(r->last.type, QW_EVENT_DONE);
    assert_int_equal(r->last.finish, finish);
    rig_close(r);
}

/* ---- tests ------------------------------------------------------------------------------------ */

static void test_plain(void **state)
{
    (void)state;
    rig *r = rig_open(&(options){0}, false);
    say(r, "<think>hello</think>" CALL("{}"));
    push(r, ID_IM_END);
    end(r, QW_FINISH_NONE);
    assert_string_equal(r->line.text, "T(<think>hello</think>" CALL("{}") ")");
    assert_int_equal(r->last.finish, QW_FINISH_STOP);
    assert_int_equal(r->last.usage.prompt_tokens, 5);
    assert_int_equal(r->last.usage.completion_tokens, r->n_pushed);
    assert_int_equal(r->last.usage.reasoning_tokens, 0);
    assert_true(r->last.timings.queue_us > 0);
    rig_close(r);
}

/* That a token was not the model's own choice is said once, before it; and at the end, if the text came to one. */
static void test_closed(void **state)
{
    static const qw_finish finishes[] = {QW_FINISH_NONE, QW_FINISH_LENGTH};
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        rig *r = rig_open(&(options){0}, true);
        say(r, "[[");
        qw_engine_answer_closes(&r->answer);
        say(r, "]");
        qw_engine_answer_closes(&r->answer);
        say(r, "]");
        if (finishes[i] == QW_FINISH_NONE) push(r, ID_IM_END);
        end(r, finishes[i]);
        assert_string_equal(r->line.text, "T([[)W(the limit of tokens came near: the answer was brought to its end to keep its form)T(]])");
        assert_int_equal(r->last.closed, finishes[i] == QW_FINISH_NONE);
        rig_close(r);
    }
}

static void test_thinking(void **state)
{
    (void)state;
    const options inside = {.in_thinking = true}, may = {.thinks = true}, never = {0};
    check(&inside, "\nlet me\n\nsee\n</think>\n\nhello\n", QW_FINISH_NONE, "R(let me\n\nsee)T(hello\n)", QW_FINISH_STOP);
    check(&may, "<think>\nlet me see\n</think>\n\nhello", QW_FINISH_NONE, "R(let me see)T(hello)", QW_FINISH_STOP);
    check(&may, "hello <think>x</think>", QW_FINISH_NONE, "T(hello <think>x</think>)", QW_FINISH_STOP);
    check(&never, "<think>x</think>", QW_FINISH_NONE, "T(<think>x</think>)", QW_FINISH_STOP);
    check(&inside, "let me", QW_FINISH_NONE, "R(let me)W(the model ended its answer within its thinking)", QW_FINISH_STOP);
    check(&inside, "let me</thi", QW_FINISH_LENGTH, "R(let me</thi)", QW_FINISH_LENGTH);
    check(&inside, "let me", QW_FINISH_CANCELLED, "R(let me)", QW_FINISH_CANCELLED);
}

/* Every token of the thinking and its tags, and no other. The vocabulary spells the tags byte by byte. */
static void test_reasoning_tokens(void **state)
{
    (void)state;
    static const struct {
        bool inside;
        const char *thinking, *rest;
    } rows[] = {{true, "abc</think>", "\n\nhello"}, {true, "abc", ""}, {false, "", "hello"}, {true, "</think>", "x"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rig *r = rig_open(&(options){.thinks = true, .in_thinking = rows[i].inside}, true);
        say(r, rows[i].thinking);
        size_t n = r->n_pushed;
        say(r, rows[i].rest);
        push(r, ID_IM_END);
        end(r, QW_FINISH_NONE);
        assert_int_equal(r->last.usage.reasoning_tokens, n);
        assert_int_equal(r->last.usage.completion_tokens, r->n_pushed);
        rig_close(r);
    }
}

static void test_calls(void **state)
{
    (void)state;
    const options json = {.thinks = true}, xml = {.xml = true, .in_thinking = true};
    check(&json, "I look.\n" CALL("{\"place\": \"Rom\"}"), QW_FINISH_NONE,
          "T(I look.)B0(weather)A0({\"place\": \"Rom\"})E0+", QW_FINISH_TOOL_CALLS);
    check(&json, CALL("{}") "\n" CALL("{\"days\": 2}"), QW_FINISH_NONE,
          "B0(weather)A0({})E0+B1(weather)A1({\"days\": 2})E1+", QW_FINISH_TOOL_CALLS);
    check(&xml, "hm</think>\n\n<tool_call>\n<function=weather>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
          QW_FINISH_NONE, "R(hm)B0(weather)A0({\"days\": 3})E0+", QW_FINISH_TOOL_CALLS);
    check(&xml, "so " CALL("{}") " then", QW_FINISH_LENGTH, "R(so )B0(weather)A0({})E0+R( then)", QW_FINISH_LENGTH);
    check(&json, CALL("{}"), QW_FINISH_LENGTH, "B0(weather)A0({})E0+", QW_FINISH_LENGTH);
    check(&json, CALL("{}"), QW_FINISH_CANCELLED, "B0(weather)A0({})E0+", QW_FINISH_CANCELLED);
    check(&(options){.no_tools = true, .thinks = true}, CALL("{}"), QW_FINISH_NONE, "T(" CALL("{}") ")", QW_FINISH_STOP);
}

/* A call that breaks off ends as such, what is left of it is content, and the answer did not end with calls. */
static void test_broken_calls(void **state)
{
    (void)state;
    const options json = {0};
    static const char head[] = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"Ro";
    check(&json, head, QW_FINISH_NONE,
          "B0(weather)A0({\"place\": \"Ro)E0-W(the answer ended inside a tool call)", QW_FINISH_STOP);
    check(&json, head, QW_FINISH_LENGTH,
          "B0(weather)A0({\"place\": \"Ro)E0-W(the answer ended inside a tool call)", QW_FINISH_LENGTH);
    check(&json, CALL("{}") "\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {]", QW_FINISH_NONE,
          "B0(weather)A0({})E0+B1(weather)A1({)E1-W(a tool call broke off: its arguments are not JSON)T(])",
          QW_FINISH_STOP);
    check(&json, "<tool_call>\n{\"na", QW_FINISH_NONE,
          "W(what begins like a tool call is none; it is shown as content)T(<tool_call>\n{\"na)", QW_FINISH_STOP);
}

/* They cut the text as the model writes it: thinking, tags and arguments included. */
static void test_stop_strings(void **state)
{
    (void)state;
    const options end_of_thinking = {.in_thinking = true, .stop = "</think>"}, aa = {.in_thinking = true, .stop = "aa"};
    static const char text[] = "hm</think>\nhello" CALL("{\"place\": \"baab\"}");
    check(&end_of_thinking, text, QW_FINISH_NONE, "R(hm)", QW_FINISH_STOP);
    check(&aa, "xaax</think>", QW_FINISH_NONE, "R(x)", QW_FINISH_STOP);
    check(&aa, "x</think>hello aa", QW_FINISH_NONE, "R(x)T(hello )", QW_FINISH_STOP);
    check(&aa, text, QW_FINISH_NONE,
          "R(hm)T(hello)B0(weather)A0({\"place\": \"b)E0-W(the answer ended inside a tool call)", QW_FINISH_STOP);
    check(&aa, "</think>" CALL("{}") "aa", QW_FINISH_NONE, "B0(weather)A0({})E0+", QW_FINISH_TOOL_CALLS);
    check(&(options){.stop = "<tool"}, "a<too", QW_FINISH_NONE, "T(a<too)", QW_FINISH_STOP); /* held, then given out */
    rig *r = rig_open(&aa, true);
    say(r, "xaax");
    end(r, QW_FINISH_NONE);
    assert_string_equal(r->stop, "aa");
    rig_close(r);
}

static void test_one_call(void **state)
{
    (void)state;
    const options one = {.one_call = true};
    check(&one, CALL("{}") "\n" CALL("{}"), QW_FINISH_LENGTH, "B0(weather)A0({})E0+", QW_FINISH_TOOL_CALLS);
    check(&one, "hello " CALL("{\"days\": 1}"), QW_FINISH_LENGTH, "T(hello )B0(weather)A0({\"days\": 1})E0+",
          QW_FINISH_TOOL_CALLS);
    check(&one, "<tool_call>{\"name\": \"weather\", \"arguments\": {\"da", QW_FINISH_LENGTH,
          "B0(weather)A0({\"da)E0-W(the answer ended inside a tool call)", QW_FINISH_LENGTH);
    check(&one, "hello", QW_FINISH_NONE, "T(hello)", QW_FINISH_STOP);
    /* a stop string holds back the end of the call and more, which comes in one piece then: what follows is cut */
    const options held = {.one_call = true, .stop = "</tool_call>\n<tool_call>!"};
    check(&held, CALL("{}") "\n" CALL("{}"), QW_FINISH_LENGTH, "B0(weather)A0({})E0+", QW_FINISH_TOOL_CALLS);
    check(&held, CALL("{}") "\nhello", QW_FINISH_LENGTH, "B0(weather)A0({})E0+", QW_FINISH_TOOL_CALLS);
}

static void test_limits(void **state)
{
    (void)state;
    rig *r = rig_open(&(options){.in_thinking = true, .max_tokens = 3}, true);
    say(r, "xyzabc");
    end(r, QW_FINISH_NONE);
    assert_string_equal(r->line.text, "R(xyz)");
    assert_int_equal(r->last.finish, QW_FINISH_LENGTH);
    assert_int_equal(r->last.usage.completion_tokens, 3);
    rig_close(r);
    r = rig_open(&(options){.ignore_eos = true}, true);
    push(r, 'a');
    push(r, ID_IM_END);
    push(r, 'b');
    end(r, QW_FINISH_CONTEXT);
    assert_string_equal(r->line.text, "T(ab)");
    assert_int_equal(r->last.finish, QW_FINISH_CONTEXT);
    rig_close(r);
}

/* Characters that come in pieces, and one that never becomes whole. */
static void test_characters(void **state)
{
    (void)state;
    rig *r = rig_open(&(options){.in_thinking = true}, true);
    push(r, 0xC3);
    assert_string_equal(r->line.text, "");
    assert_int_equal(r->newest, QW_EVENT_REASONING); /* without text: the kind that it will be */
    push(r, 0xA9);
    push(r, 0xE2);
    end(r, QW_FINISH_LENGTH);
    assert_string_equal(r->line.text, "R(\xC3\xA9\xEF\xBF\xBD)");
    rig_close(r);
    r = rig_open(&(options){.thinks = true}, true);
    push(r, 0xC3);
    assert_int_equal(r->newest, QW_EVENT_TEXT);
    rig_close(r);
}

static void test_progress_and_failure(void **state)
{
    (void)state;
    rig *r = rig_open(&(options){.in_thinking = true}, true);
    qw_event ev;
    qw_err err;
    qw_engine_answer_reused(&r->answer, 1);
    assert_int_equal(qw_engine_answer_prefilled(&r->answer, 3, &err), QW_OK);
    assert_true(qw_events_poll(&r->events, 0, &ev));
    assert_int_equal(ev.type, QW_EVENT_PROGRESS);
    assert_int_equal(ev.usage.prefilled, 4);
    assert_int_equal(ev.usage.cached_tokens, 1);
    assert_int_equal(qw_engine_answer_prefilled(&r->answer, 1, &err), QW_OK); /* that was all: no event */
    say(r, "xy");
    qw_fail(&err, QW_E_CORRUPT, "the file changed");
    qw_engine_answer_fail(&r->answer, &err);
    drain(r);
    assert_string_equal(r->line.text, "R(xy)");
    assert_int_equal(r->last.type, QW_EVENT_ERROR);
    assert_int_equal(r->last.error.status, QW_E_CORRUPT);
    assert_string_equal(r->last.error.text, "the file changed");
    assert_int_equal(r->last.usage.completion_tokens, 2);
    rig_close(r);
}

/* ---- random texts ----------------------------------------------------------------------------- */

typedef struct reference {
    line line;
    int n_calls;
} reference;

static qw_status refer(void *ctx, const qw_parse_event *ev, qw_err *err)
{
    reference *f = ctx;
    (void)err;
    switch (ev->kind) {
    case QW_PARSE_THINKING: put_piece(&f->line, 'R', -1, ev->text); break;
    case QW_PARSE_CONTENT: put_piece(&f->line, 'T', -1, ev->text); break;
    case QW_PARSE_CALL: put_piece(&f->line, 'B', f->n_calls++, ev->text); break;
    case QW_PARSE_ARGUMENTS: put_piece(&f->line, 'A', f->n_calls - 1, ev->text); break;
    case QW_PARSE_CALL_END: put_end(&f->line, f->n_calls - 1, ev->complete); break;
    case QW_PARSE_WARNING: put_piece(&f->line, 'W', -1, ev->text); break;
    case QW_PARSE_MARKUP: break;
    }
    return QW_OK;
}

static uint32_t draw(uint32_t *seed, uint32_t n)
{
    return (*seed = *seed * 1664525u + 1013904223u) / 65536u % n;
}

static void test_random(void **state)
{
    (void)state;
    static const char *const pieces[] = {
        "<think>", "</think>", "\n", "\n\n", "hello ", "<tool_call>", "</tool_call>", "{\"name\": \"weather\", \"arguments\": ",
        "{\"place\": \"x\"}", "}", "<function=weather>", "<parameter=place>", "</parameter>", "</function>", "<", "\xC3\xA9", "{",
        CALL("{\"days\": 1}"), "\"", "aa"};
    uint32_t seed = SEED;
    for (int round = 0; round < 3000; round++) {
        options o = {.thinks = draw(&seed, 2), .in_thinking = draw(&seed, 3) == 0, .xml = draw(&seed, 2)};
        char text[512] = "";
        for (uint32_t n = draw(&seed, 14); n > 0; n--)
            strcat(text, pieces[draw(&seed, sizeof pieces / sizeof *pieces)]);
        rig *r = rig_open(&o, true);
        reference *want = calloc(1, sizeof *want);
        qw_parse_options p = parse_options(&o);
        qw_parser *parser;
        qw_err err;
        assert_non_null(want);
        assert_int_equal(qw_parser_create(&p, &parser, &err), QW_OK);
        assert_int_equal(qw_parser_push(parser, qw_text_of(text), refer, want, &err), QW_OK);
        assert_int_equal(qw_parser_finish(parser, refer, want, &err), QW_OK);
        close_piece(&want->line);
        qw_parser_destroy(parser);
        say(r, text);
        end(r, QW_FINISH_LENGTH);
        if (strcmp(r->line.text, want->line.text) != 0)
            fail_msg("seed %d, round %d: %s\ngot  %s\nwant %s", SEED, round, text, r->line.text, want->line.text);
        free(want);
        rig_close(r);
    }
}

static int open_vocab(void **state)
{
    (void)state;
    qw_err err;
    small_vocab_fill(&vocab);
    return small_vocab_open(&vocab, QW_PRE_QWEN2, &tokenizer, &err) != QW_OK;
}

static int close_vocab(void **state)
{
    (void)state;
    qw_tokenizer_close(tokenizer);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain), cmocka_unit_test(test_closed),        cmocka_unit_test(test_thinking),
        cmocka_unit_test(test_reasoning_tokens), cmocka_unit_test(test_calls),
        cmocka_unit_test(test_broken_calls), cmocka_unit_test(test_stop_strings),
        cmocka_unit_test(test_one_call),     cmocka_unit_test(test_limits),
        cmocka_unit_test(test_characters),   cmocka_unit_test(test_progress_and_failure),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, open_vocab, close_vocab);
}
