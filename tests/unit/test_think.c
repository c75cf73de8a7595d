/* test_think.c: thinking is closed when its budget is used up and when the model would end inside it; loops are noticed.
 *
 * Scripted tokens take the place of a model. qw_think is tried alone, and in an answer, whose events show that the closing
 * words are thinking and what follows is the answer.
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
#include "engine/dial.h"

#include "small_vocab.h"

enum { SEED = 20261130, TEXT_BYTES = 1 << 14 };
#define LIMIT "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."

static small_vocab vocab;
static qw_tokenizer *tokenizer;
static qw_think_words think_words;

/* ---- alone ---------------------------------------------------------------------------------------- */

static const int32_t limit_ids[] = {101, 102, 103}, end_ids[] = {201, 202};
static const qw_think_words few_words = {.limit = {(int32_t *)(uintptr_t)limit_ids, 3, 3},
                                         .end = {(int32_t *)(uintptr_t)end_ids, 2, 2}};
static const qw_think_at thinking = {.in_thinking = true, .between = true}, answering = {.between = true};
static const qw_think_at busy = {.in_thinking = true}, ending = {.in_thinking = true, .between = true, .ends = true};

static void test_budget(void **state)
{
    (void)state;
    qw_think t = {.words = &few_words, .tokens_max = 3};
    for (int i = 0; i < 3; i++) assert_int_equal(qw_think_next(&t, 7, thinking), 7);
    assert_int_equal(qw_think_next(&t, 7, busy), 7); /* not within a character or a call */
    for (int i = 0; i < 3; i++) assert_int_equal(qw_think_next(&t, 7, thinking), limit_ids[i]);
    assert_int_equal(qw_think_next(&t, 7, answering), 7);
    assert_int_equal(qw_think_next(&t, 7, thinking), 7); /* once is all */
    assert_false(t.caught);
}

static void test_end_is_caught(void **state)
{
    (void)state;
    qw_think t = {.words = &few_words};
    assert_int_equal(qw_think_next(&t, 7, thinking), 7);
    assert_int_equal(qw_think_next(&t, 9, ending), end_ids[0]);
    assert_true(t.caught);
    assert_int_equal(qw_think_next(&t, 9, ending), end_ids[1]);
    assert_int_equal(qw_think_next(&t, 9, (qw_think_at){.between = true, .ends = true}), 9); /* the answer may end */
    assert_int_equal(qw_think_next(&t, 9, ending), 9);                                       /* and it is caught once */
}

static void test_left_alone(void **state)
{
    (void)state;
    qw_think none = {.tokens_max = 1}, free_to_think = {.words = &few_words};
    for (int i = 0; i < 10; i++) {
        assert_int_equal(qw_think_next(&none, 9, ending), 9);
        assert_int_equal(qw_think_next(&free_to_think, 7, thinking), 7);
    }
    assert_int_equal(qw_think_next(&free_to_think, 9, (qw_think_at){.in_thinking = true, .ends = true}), 9); /* in a call */
}

/* ---- the dial ------------------------------------------------------------------------------------- */

static qw_dial dial_of(qw_chat_format f, const char *question, qw_chat_options chat, int64_t budget)
{
    qw_message messages[3] = {{.role = "user", .content = qw_text_of(question)},
                              {.role = "assistant", .content = qw_text_of("no /think")},
                              {.role = "tool", .content = qw_text_of("42 /think")}};
    return qw_dial_of(f, &(qw_request){.messages = messages, .n_messages = 3, .chat = chat, .thinking_tokens_max = budget});
}

static void test_dial(void **state)
{
    const qw_chat_options silent = {0}, on = {.thinking = QW_SWITCH_ON}, low = {.effort = QW_EFFORT_LOW};
    const qw_chat_options medium = {.effort = QW_EFFORT_MEDIUM}, xhigh = {.effort = QW_EFFORT_XHIGH};
    (void)state;
    assert_int_equal(dial_of(QW_CHAT_QWEN3, "hi /no_think \n", silent, 0).chat.thinking, QW_SWITCH_OFF);
    assert_int_equal(dial_of(QW_CHAT_QWEN36, "/think", silent, 0).chat.thinking, QW_SWITCH_ON);
    assert_int_equal(dial_of(QW_CHAT_QWEN3, "hi/no_think", silent, 0).chat.thinking, QW_SWITCH_DEFAULT);
    assert_int_equal(dial_of(QW_CHAT_QWEN3, "/no_think please", silent, 0).chat.thinking, QW_SWITCH_DEFAULT);
    assert_int_equal(dial_of(QW_CHAT_QWEN3, "hi /no_think", on, 0).chat.thinking, QW_SWITCH_ON);
    assert_int_equal(dial_of(QW_CHAT_QWQ, "hi /no_think", silent, 0).chat.thinking, QW_SWITCH_DEFAULT);
    assert_int_equal(dial_of(QW_CHAT_QWEN3, "hi", low, 0).tokens_max, QW_LOW_EFFORT_TOKENS);
    assert_int_equal(dial_of(QW_CHAT_QWEN35, "hi", medium, 0).tokens_max, QW_MEDIUM_EFFORT_TOKENS);
    assert_int_equal(dial_of(QW_CHAT_QWEN3, "hi", xhigh, 0).tokens_max, 0);
    assert_int_equal(dial_of(QW_CHAT_QWEN3, "hi", low, 77).tokens_max, 77);
    assert_int_equal(dial_of(QW_CHAT_QWEN38, "hi", low, 0).tokens_max, 0); /* it has words for that */
    assert_int_equal(dial_of(QW_CHAT_QWEN38, "hi", silent, 5).tokens_max, 5);
    qw_request raw = {.kind = QW_PROMPT_RAW, .chat = low, .thinking_tokens_max = 3};
    assert_int_equal(qw_dial_of(QW_CHAT_QWEN3, &raw).tokens_max, 0);
}

/* What an answer is told to have been allowed, in every kind of format. */
static void test_in_force(void **state)
{
    static const struct {
        qw_chat_format format;
        qw_chat_options chat;
        int64_t budget;
        qw_thinking_use want;
    } rows[] = {
        {QW_CHAT_QWEN25, {.thinking = QW_SWITCH_ON, .effort = QW_EFFORT_LOW}, 9, {0}},
        {QW_CHAT_QWEN3_INSTRUCT, {0}, 0, {0}},
        {QW_CHAT_QWEN3_CODER, {.thinking = QW_SWITCH_ON}, 0, {0}},
        {QW_CHAT_QWQ, {.thinking = QW_SWITCH_OFF}, 0, {.on = true}}, /* it cannot be switched off, */
        {QW_CHAT_QWQ, {.thinking = QW_SWITCH_OFF}, 1, {.on = true, .tokens_max = 1}}, /* but closed at once */
        {QW_CHAT_QWEN3_THINKING, {.effort = QW_EFFORT_MEDIUM}, 0, {.on = true, .tokens_max = QW_MEDIUM_EFFORT_TOKENS}},
        {QW_CHAT_QWEN3, {0}, 0, {.on = true}},
        {QW_CHAT_QWEN3, {.thinking = QW_SWITCH_OFF, .effort = QW_EFFORT_LOW}, 5, {0}},
        {QW_CHAT_QWEN35, {.effort = QW_EFFORT_LOW}, 0, {.on = true, .tokens_max = QW_LOW_EFFORT_TOKENS}},
        {QW_CHAT_QWEN36, {.effort = QW_EFFORT_XHIGH}, 7, {.on = true, .tokens_max = 7}},
        {QW_CHAT_QWEN38, {0}, 0, {.on = true, .effort = QW_EFFORT_XHIGH}}, /* the template's own */
        {QW_CHAT_QWEN38, {.effort = QW_EFFORT_MEDIUM}, 7, {.on = true, .tokens_max = 7, .effort = QW_EFFORT_MEDIUM}},
        {QW_CHAT_QWEN38, {.thinking = QW_SWITCH_OFF, .effort = QW_EFFORT_LOW}, 0, {0}},
        {QW_CHAT_QWEN38_MAX, {.thinking = QW_SWITCH_OFF}, 1, {.on = true, .tokens_max = 1, .effort = QW_EFFORT_XHIGH}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const qw_request r = {.chat = rows[i].chat, .thinking_tokens_max = rows[i].budget};
        qw_thinking_use got = qw_dial_use(rows[i].format, &r), want = rows[i].want;
        if (got.on == want.on && got.tokens_max == want.tokens_max && got.effort == want.effort) continue;
        fail_msg("row %zu: %d, %lld, %d", i, got.on, (long long)got.tokens_max, (int)got.effort);
    }
    const qw_request raw = {.kind = QW_PROMPT_RAW, .thinking_tokens_max = 5};
    assert_false(qw_dial_use(QW_CHAT_QWEN3, &raw).on);
}

/* ---- in an answer --------------------------------------------------------------------------------- */

typedef struct said {
    char reasoning[TEXT_BYTES], text[TEXT_BYTES];
    uint32_t n_warnings;
    qw_event last;
} said;

static void see(said *s, const qw_event *ev)
{
    if (ev->type == QW_EVENT_REASONING) strncat(s->reasoning, ev->text.s, ev->text.n);
    if (ev->type == QW_EVENT_TEXT) strncat(s->text, ev->text.s, ev->text.n);
    s->n_warnings += ev->type == QW_EVENT_WARNING;
    s->last = *ev;
}

/* The script is drawn byte by byte, `|` being the end token. What was drawn where a closing word came is drawn again. */
static said *play(const char *script, int64_t tokens_max, bool loops)
{
    qw_job job = {.id = 1, .n_tokens = 1, .submitted_us = 1,
                  .think = {.words = &think_words, .tokens_max = tokens_max}};
    qw_parse_options o = {.thinks = true, .in_thinking = true};
    qw_event_queue events = {0};
    qw_engine_answer a;
    qw_event ev;
    qw_err err;
    said *s = calloc(1, sizeof *s);
    assert_non_null(s);
    assert_int_equal(qw_events_init(&events, QW_BACKLOG_MAX, &err), QW_OK);
    assert_int_equal(qw_feed_create(&job.feed, &err), QW_OK);
    qw_events_open(&events, job.feed, job.id);
    assert_int_equal(qw_parser_create(&o, &job.parser, &err), QW_OK);
    if (loops) assert_int_equal(qw_loops_create(&job.loops, &err), QW_OK);
    qw_engine_answer_begin(&a, &job, tokenizer, &events);
    for (size_t i = 0, n = strlen(script); a.finish == QW_FINISH_NONE; i++) {
        int32_t drawn = script[i % n] == '|' ? ID_IM_END : (unsigned char)script[i % n];
        bool was_closed = a.think.closed, more = a.think.n_next > 0;
        qw_sample sample = {.token = drawn, .logprob = -1};
        qw_engine_answer_choose(&a, &sample);
        assert_true(sample.logprob == (sample.token == drawn ? -1.0f : 0.0f));
        assert_int_equal(qw_engine_answer_push(&a, &sample, &err), QW_OK);
        bool other = more || a.think.closed != was_closed;
        if (other && (drawn != ID_IM_END || a.think.n_next > 0)) i--;
        while (qw_events_poll(&events, 0, &ev)) see(s, &ev);
    }
    qw_engine_answer_end(&a, a.finish);
    while (qw_events_poll(&events, 0, &ev)) see(s, &ev);
    qw_engine_answer_free(&a);
    qw_parser_destroy(job.parser);
    qw_loops_destroy(job.loops);
    qw_events_free(&events);
    qw_feed_release(job.feed);
    return s;
}

static void expect(said *s, const char *reasoning, const char *text, uint32_t n_warnings, qw_finish finish)
{
    assert_string_equal(s->reasoning, reasoning);
    assert_string_equal(s->text, text);
    assert_int_equal(s->n_warnings, n_warnings);
    assert_int_equal(s->last.finish, finish);
    free(s);
}

static void test_answers(void **state)
{
    (void)state;
    expect(play("abc</think>\n\nyes|", 0, true), "abc", "yes", 0, QW_FINISH_STOP);
    expect(play("abcdefgyes|", 3, true), "abc" LIMIT, "defgyes", 0, QW_FINISH_STOP);
    expect(play("abc|yes|", 0, true), "abc", "yes", 1, QW_FINISH_STOP);
    expect(play("\xC3\xA9\xC3\xA9yes|", 1, true), "\xC3\xA9" LIMIT, "\xC3\xA9yes", 0, QW_FINISH_STOP); /* no half character */
}

static void test_loop_ends_answer(void **state)
{
    (void)state;
    said *s = play("ab ", 0, true);
    assert_int_equal(s->last.finish, QW_FINISH_REPETITION);
    assert_int_equal(s->last.usage.completion_tokens, QW_LOOP_SHORT_TOKENS);
    free(s);
}

/* ---- loops ---------------------------------------------------------------------------------------- */

static qw_loops *open_loops(void)
{
    qw_loops *l;
    qw_err err;
    assert_int_equal(qw_loops_create(&l, &err), QW_OK);
    return l;
}

/* Blocks of every length are noticed at the very token that the rule says, after any beginning. */
static void test_loops(void **state)
{
    static const uint32_t blocks[] = {1, 2, 3, 17, 100, QW_LOOP_SHORT, QW_LOOP_SHORT + 1, 400, QW_LOOP_BLOCK_MAX};
    (void)state;
    for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++) {
        qw_loops *l = open_loops();
        uint32_t n = 0;
        for (int32_t i = 0; i < 700; i++) assert_false(qw_loops_add(l, 100000 + i));
        for (; !qw_loops_add(l, (int32_t)(n % blocks[b])); n++) assert_true(n < 10000);
        assert_int_equal(n + 1, qw_loop_tokens(blocks[b]));
        qw_loops_destroy(l);
    }
}

/* One other token anywhere begins it anew; a block that is too long is none; what counts up is none. */
static void test_no_loops(void **state)
{
    (void)state;
    qw_loops *broken = open_loops(), *longer = open_loops(), *counts = open_loops();
    for (int32_t i = 0; i < 50000; i++) {
        assert_false(qw_loops_add(broken, i % 4000 == 3999 ? 9 : i % 7));
        assert_false(qw_loops_add(longer, i % (QW_LOOP_BLOCK_MAX + 1)));
        assert_false(qw_loops_add(counts, i % 5 == 4 ? i : i % 5));
    }
    qw_loops_destroy(broken);
    qw_loops_destroy(longer);
    qw_loops_destroy(counts);
}

/* Against the rule spelled out: the end of the tokens is a block, again and again. */
static bool is_loop(const int32_t *ids, uint32_t n)
{
    for (uint32_t block = 1; block <= QW_LOOP_BLOCK_MAX; block++) {
        uint32_t same = block; /* tokens at the end that are the block's repetition, and its first one */
        while (same < n && ids[n - 1 - (same - block)] == ids[n - 1 - same]) same++;
        if (same >= QW_LOOP_TOKENS && n >= QW_LOOP_TOKENS) return same >= qw_loop_tokens(block);
    }
    return false;
}

static void test_loops_by_rule(void **state)
{
    enum { N = 14000 };
    static int32_t ids[N];
    uint64_t x = SEED;
    (void)state;
    for (int round = 0; round < 6; round++) {
        qw_loops *l = open_loops();
        uint32_t block = 1 + (uint32_t)(x >> 33) % 300, n = 0;
        while (n < N) { /* runs of one block, broken at random places */
            x = x * 6364136223846793005u + 1442695040888963407u;
            ids[n] = (x >> 40) % 5000 == 0 ? 77777 : (int32_t)(n % block);
            n++;
            bool loop = qw_loops_add(l, ids[n - 1]);
            if (n % 97 == 0 || loop) assert_int_equal(loop, is_loop(ids, n));
        }
        qw_loops_destroy(l);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_budget),   cmocka_unit_test(test_end_is_caught),    cmocka_unit_test(test_left_alone),
        cmocka_unit_test(test_dial),      cmocka_unit_test(test_in_force),
        cmocka_unit_test(test_answers),  cmocka_unit_test(test_loop_ends_answer), cmocka_unit_test(test_loops),
        cmocka_unit_test(test_no_loops), cmocka_unit_test(test_loops_by_rule),
    };
    qw_err err;
    small_vocab_fill(&vocab);
    if (small_vocab_open(&vocab, QW_PRE_QWEN2, &tokenizer, &err) != QW_OK ||
        qw_think_words_create(tokenizer, &think_words, &err) != QW_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    printf("seed %d\n", SEED);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    qw_think_words_free(&think_words);
    qw_tokenizer_close(tokenizer);
    return failed;
}
