/* talk.h: a conversation that is played without a model.
 *
 * Each prompt is rendered, tokenised and answered with a random text in the form of thinking, words and calls, cut into tokens
 * at random, as a model may well do that does not write what the tokenizer would. The answer goes through qw_engine_answer;
 * what its events say is what the client sends back. Then the next prompt has to begin with this prompt, the sampled tokens
 * and the end token, wherever the template shows the thinking.
 */
#ifndef QW_TESTS_TALK_H
#define QW_TESTS_TALK_H

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

enum { TURNS_MAX = 24, TEXT_MAX = 4096, N_IDS = N_SMALL + 3 };
enum { ID_THINK = N_SMALL, ID_THINK_END, ID_LINE_A };

#define TOOLS                                                                                                  \
    "[{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"parameters\": {\"type\": \"object\", "  \
    "\"properties\": {\"place\": {\"type\": \"string\"}, \"days\": {\"type\": \"integer\"}}}}}]"
#define TEXT(s) ((qw_text){s, sizeof s - 1})

static small_vocab vocab;
static qw_tokenizer *tokenizer;
static uint64_t random_state;

static inline uint32_t below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33) % n;
}

/* The small vocabulary with the tags of thinking, and a line break with a letter, which no merge leads to. */
static inline void open_vocab(void)
{
    static qw_text tokens[N_IDS];
    static uint8_t types[N_IDS];
    qw_err err;
    small_vocab_fill(&vocab);
    memcpy(tokens, vocab.tokens, sizeof vocab.tokens);
    memcpy(types, vocab.types, sizeof vocab.types);
    tokens[ID_THINK] = TEXT("<think>");
    tokens[ID_THINK_END] = TEXT("</think>");
    tokens[ID_LINE_A] = TEXT("\xC4\x8A" "a");
    types[ID_LINE_A] = 1;
    types[ID_THINK] = types[ID_THINK_END] = 4;
    if (qw_tokenizer_open(tokens, types, N_IDS, vocab.merges, N_SMALL_MERGES, QW_PRE_QWEN2, &tokenizer, &err) != QW_OK)
        fail_msg("%s", err.text);
}

/* ---- a conversation ------------------------------------------------------------------------------- */

/* What a client keeps of one message. */
typedef struct kept {
    char content[TEXT_MAX], reasoning[TEXT_MAX], arguments[4][TEXT_MAX], names[4][64], ids[4][QW_CALL_ID_BYTES];
    size_t n_content, n_reasoning;
    qw_tool_call calls[4];
} kept;

typedef struct talk {
    qw_chat_format format;
    qw_chat_options options;
    qw_memory *memory;
    uint8_t owner[QW_OWNER_BYTES];
    qw_message messages[TURNS_MAX];
    kept *kept[TURNS_MAX];
    size_t n;
    qw_memory_answer *said; /* holds the last answer; NULL: there is none */
    qw_tokens prompt;    /* of the last answer, then its tokens and the end token */
    size_t n_prompt;
    uint64_t place;
    char lead[64];
    bool in_thinking;
    char text[1 << 16];  /* of the prompt */
} talk;

static inline talk *talk_open(qw_chat_format format, qw_memory *memory, const char *owner)
{
    talk *t = calloc(1, sizeof *t);
    assert_non_null(t);
    t->format = format;
    t->memory = memory;
    strcpy((char *)t->owner, owner);
    return t;
}

/* Before its memory goes. */
static inline void talk_release(talk *t)
{
    qw_memory_release(t->said);
    t->said = NULL;
}

static inline void talk_close(talk *t)
{
    talk_release(t);
    for (size_t i = 0; i < t->n; i++) free(t->kept[i]);
    qw_tokens_free(&t->prompt);
    free(t);
}

static inline kept *add_message(talk *t, const char *role, const char *content)
{
    kept *k = calloc(1, sizeof *k);
    assert_non_null(k);
    assert_true(t->n < TURNS_MAX);
    k->n_content = strlen(content);
    memcpy(k->content, content, k->n_content);
    t->messages[t->n] = (qw_message){.role = role, .content = {k->content, k->n_content}};
    t->kept[t->n++] = k;
    return k;
}

/* The ids of the conversation as it stands, with or without the memory. */
static inline void render(talk *t, bool remembers, qw_tokens *ids, char *text, size_t n_text)
{
    qw_rendered r = {0};
    qw_memory_reader reader;
    const qw_chat_memory memory = {.ctx = &reader, .recall = qw_memory_recall};
    qw_edges edges = {0};
    qw_err err;
    qw_memory_read(&reader, t->memory, t->owner);
    if (qw_chat_render_recalled(t->format, t->messages, t->n, TEXT(TOOLS), &t->options, true, remembers ? &memory : NULL,
                                &r, &err) != QW_OK ||
        qw_chat_tokenize(tokenizer, &r, ids, &edges, &err) != QW_OK)
        fail_msg("%s", err.text);
    assert_int_equal(edges.at[edges.n - 1].n_messages, t->n);
    if (remembers) {
        t->place = qw_memory_place(&reader, (qw_text){r.text.data, r.answer_at});
        snprintf(t->lead, sizeof t->lead, "%s", r.text.data + r.answer_at);
        t->in_thinking = r.in_thinking;
    }
    snprintf(text, n_text, "%s", qw_buf_str(&r.text));
    qw_memory_read_end(&reader);
    qw_rendered_free(&r);
    free(edges.at);
}

static inline void begin_prompt(talk *t)
{
    t->prompt.n = 0;
    render(t, true, &t->prompt, t->text, sizeof t->text);
    t->n_prompt = t->prompt.n;
}

/* ---- an answer ------------------------------------------------------------------------------------ */

static inline void take(kept *k, qw_message *m, const qw_event *ev)
{
    if (ev->type == QW_EVENT_TEXT) {
        memcpy(k->content + k->n_content, ev->text.s, ev->text.n);
        k->n_content += ev->text.n;
    } else if (ev->type == QW_EVENT_REASONING) {
        memcpy(k->reasoning + k->n_reasoning, ev->text.s, ev->text.n);
        k->n_reasoning += ev->text.n;
    } else if (ev->type == QW_EVENT_CALL_END) {
        size_t i = m->n_tool_calls++;
        assert_true(i < 4 && i == ev->call_index);
        memcpy(k->arguments[i], ev->call->arguments.s, ev->call->arguments.n);
        snprintf(k->names[i], sizeof k->names[i], "%s", ev->call->name);
        snprintf(k->ids[i], sizeof k->ids[i], "%s", ev->call->id);
        k->calls[i] = (qw_tool_call){k->ids[i], k->names[i], {k->arguments[i], ev->call->arguments.n}};
    }
}

/* The prompt is answered with these tokens. The message joins the conversation as a client keeps it. */
static inline kept *answer(talk *t, const int32_t *ids, size_t n, qw_finish finish, const char *stop)
{
    char word[8] = "", *stops[1] = {word};
    qw_job job = {.id = 1, .n_tokens = 1, .stop = stops, .n_stop = stop != NULL, .submitted_us = 1};
    qw_parse_options o = {.tools = TEXT(TOOLS), .thinks = true, .in_thinking = t->in_thinking,
                          .xml_calls = qw_chat_format_traits(t->format).xml_calls};
    qw_event_queue events = {0};
    qw_engine_answer a;
    qw_event ev;
    qw_err err;
    if (stop) snprintf(word, sizeof word, "%s", stop);
    assert_int_equal(qw_events_init(&events, QW_BACKLOG_MAX, &err), QW_OK);
    assert_int_equal(qw_feed_create(&job.feed, &err), QW_OK);
    qw_events_open(&events, job.feed, job.id);
    assert_int_equal(qw_parser_create(&o, &job.parser, &err), QW_OK);
    assert_int_equal(qw_memory_begin(t->memory, t->owner, t->place, qw_text_of(t->lead), &job.said, &err), QW_OK);
    qw_engine_answer_begin(&a, &job, tokenizer, &events);
    kept *k = add_message(t, "assistant", "");
    qw_message *m = &t->messages[t->n - 1];
    for (size_t i = 0; i < n && a.finish == QW_FINISH_NONE; i++) {
        qw_sample s = {.token = ids[i]};
        assert_int_equal(qw_engine_answer_push(&a, &s, &err), QW_OK);
        assert_int_equal(qw_tokens_push(&t->prompt, ids[i], &err), QW_OK);
    }
    qw_engine_answer_end(&a, a.finish == QW_FINISH_NONE ? finish : a.finish);
    assert_int_equal(qw_tokens_push(&t->prompt, ID_IM_END, &err), QW_OK);
    while (qw_events_poll(&events, 0, &ev)) take(k, m, &ev);
    m->content.n = k->n_content;
    if (k->n_reasoning > 0) m->reasoning = (qw_text){k->reasoning, k->n_reasoning};
    m->tool_calls = k->calls;
    qw_engine_answer_free(&a);
    qw_parser_destroy(job.parser);
    talk_release(t);
    t->said = job.said;
    qw_events_free(&events);
    qw_feed_release(job.feed);
    return k;
}

/* A text in tokens of its own choice: tags as what they are, other bytes by the tokenizer or one by one. */
static inline void cut(const char *text, qw_tokens *out)
{
    qw_err err;
    size_t n = strlen(text), at, len;
    int32_t id;
    for (size_t i = 0; i < n;) {
        bool tag = qw_tokenizer_find_added(tokenizer, text, n, i, &at, &len, &id);
        size_t end = tag ? at : n, piece = 1 + below(6);
        if (end == i) {
            assert_int_equal(qw_tokens_push(out, id, &err), QW_OK);
            i += len;
            continue;
        }
        if (piece > end - i) piece = end - i;
        assert_int_equal(qw_tokenizer_encode(tokenizer, text + i, piece, false, out, &err), QW_OK);
        i += piece;
    }
}

static inline void words(char *out, size_t n_words)
{
    static const char *const some[] = {"hello", " hello", "aaaa", "\n", "  ", "a", "\xC3\xA9", "\n\n", ".", "{", "abc", "<t"};
    for (size_t i = 0; i < n_words; i++) strcat(out, some[below(sizeof some / sizeof *some)]);
    strcat(out, "x"); /* not a space, which formats trim */
}

static inline void random_call(char *out, bool xml)
{
    static const char *const json[] = {
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"place\": \"aa\", \"days\": 3}}\n</tool_call>",
        "<tool_call>{\"name\":\"weather\",\"arguments\":{\"days\":3,  \"place\":\"\\u00e9\"}}</tool_call>",
        "<tool_call>\n{ \"arguments\": {\"place\": \"a\"}, \"name\": \"weather\" }\n\n</tool_call>"};
    static const char *const tags[] = {
        "<tool_call>\n<function=weather>\n<parameter=place>\naa\n</parameter>\n</function>\n</tool_call>",
        "<tool_call><function=weather><parameter=days>3</parameter><parameter=place>\nhello\n</parameter></function></tool_call>"};
    strcat(out, xml ? tags[below(2)] : json[below(3)]);
}

/* An answer to the prompt that stands. */
static inline kept *random_answer(talk *t, bool calls)
{
    char text[TEXT_MAX] = "";
    qw_tokens ids = {0};
    bool xml = qw_chat_format_traits(t->format).xml_calls;
    bool thinks = t->in_thinking || (qw_chat_thinks(t->format, &t->options) && !*t->lead);
    if (thinks && !t->in_thinking) strcat(text, "<think>\n");
    if (thinks) {
        words(text, below(8));
        strcat(text, below(2) ? "\n</think>\n\n" : "</think>\n\n");
    }
    if (!calls || below(2)) strcat(text, "a"), words(text, below(12));
    if (!calls && below(2)) strcat(text, "  \n"); /* which some formats trim */
    for (uint32_t i = 0, n = calls ? 1 + below(3) : 0; i < n; i++) {
        if (text[0]) strcat(text, "\n");
        random_call(text, xml);
    }
    cut(text, &ids);
    kept *k = answer(t, ids.ids, ids.n, QW_FINISH_STOP, NULL);
    qw_tokens_free(&ids);
    return k;
}

/* ---- what is expected ----------------------------------------------------------------------------- */

static inline bool begins_with(const qw_tokens *ids, const qw_tokens *head)
{
    return ids->n >= head->n && memcmp(ids->ids, head->ids, head->n * sizeof *head->ids) == 0;
}

static inline void expect_continued(talk *t, const char *what)
{
    qw_tokens ids = {0};
    char text[1 << 15];
    render(t, true, &ids, text, sizeof text);
    if (!begins_with(&ids, &t->prompt)) fail_msg("%s (format %d): %s\n-- after --\n%s", what, (int)t->format, text, t->text);
    qw_tokens_free(&ids);
}

/* ---- any turns ------------------------------------------------------------------------------------ */

typedef struct talk_case {
    qw_chat_format format;
    qw_chat_options options;
    bool asks; /* the user asks again: only formats that show all then still begin with it */
} talk_case;

/* Tool loops show their thinking, formats without thinking and those that keep it show everything. */
static const talk_case talk_cases[] = {
    {QW_CHAT_QWEN25, {0}, true},
    {QW_CHAT_QWEN3_INSTRUCT, {0}, true},
    {QW_CHAT_QWEN3_CODER, {0}, true},
    {QW_CHAT_QWEN3, {0}, false},
    {QW_CHAT_QWEN3_THINKING, {0}, false},
    {QW_CHAT_QWEN35, {0}, false},
    {QW_CHAT_QWEN35, {.thinking = QW_SWITCH_OFF}, false},
    {QW_CHAT_QWEN36, {.preserve_thinking = QW_SWITCH_ON}, true},
    {QW_CHAT_QWEN38, {0}, true},
    {QW_CHAT_QWEN38_MAX, {0}, true},
};
enum { N_TALK_CASES = sizeof talk_cases / sizeof *talk_cases };

/* An answer, from a client that may drop the thinking or name calls itself, and the message after it. */
static inline void random_turn(talk *t, bool asks)
{
    begin_prompt(t);
    bool calls = !asks || below(2);
    kept *k = random_answer(t, calls);
    if (below(2)) t->messages[t->n - 1].reasoning = (qw_text){0};
    if (below(2)) k->calls[0].id = NULL;
    add_message(t, calls ? "tool" : "user", "\n42");
}

/* ---- memories ------------------------------------------------------------------------------------- */

static inline qw_memory *open_memory(size_t bytes)
{
    qw_memory *m;
    qw_err err;
    if (qw_memory_create(bytes, &m, &err) != QW_OK) fail_msg("%s", err.text);
    return m;
}

static inline void close_talk(talk *t)
{
    qw_memory *m = t->memory;
    talk_close(t);
    qw_memory_destroy(m);
}

#endif
