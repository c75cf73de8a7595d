/* chat_history.c: what of an earlier answer is shown again. Source: the official templates; see chat_private.h. */
#include <string.h>

#include "text/chat_private.h"
#include "text/py_text.h"

/* A tool result that a client put into a user's message. */
static bool is_wrapped_result(qw_text s)
{
    static const char open[] = "<tool_response>", close[] = "</tool_response>";
    size_t n_open = sizeof open - 1, n_close = sizeof close - 1;
    return s.n >= n_close && memcmp(s.s, open, n_open) == 0 && memcmp(s.s + s.n - n_close, close, n_close) == 0;
}

size_t qw_chat_query(const chat_renderer *w)
{
    for (size_t i = w->n; i-- > 0;) {
        const qw_message *m = &w->messages[i];
        qw_text content = w->row->strips ? qw_py_strip(m->content) : m->content;
        if (strcmp(m->role, "user") == 0 && !is_wrapped_result(content)) return i;
    }
    return w->n - 1;
}

/* Thinking that stands in the content becomes the turn's reasoning. */
static void split(chat_turn *t)
{
    if (!qw_py_has(t->content, "</think>")) return;
    qw_text before = qw_py_rstrip_lines(qw_py_before(t->content, "</think>"));
    t->reasoning = qw_py_lstrip_lines(qw_py_after_last(before, "<think>"));
    t->content = qw_py_lstrip_lines(qw_py_after_last(t->content, "</think>"));
}

static chat_turn cut_turn(const chat_renderer *w, size_t i)
{
    qw_text content = w->messages[i].content;
    chat_turn t = {.content = content, .spoken = content.n > 0};
    if (w->row->history == CHAT_HISTORY_CUT || i + 1 < w->n)
        t.content = qw_py_lstrip_lines(qw_py_after_last(content, "</think>"));
    return t;
}

chat_turn qw_chat_turn(const chat_renderer *w, size_t i, size_t query)
{
    const qw_message *m = &w->messages[i];
    const chat_row *row = w->row;
    if (row->history == CHAT_HISTORY_CUT || row->history == CHAT_HISTORY_CUT_OLD) return cut_turn(w, i);
    chat_turn t = {.content = m->content, .reasoning = m->reasoning};
    /* Qwen3-Coder strips the words before calls alone. */
    t.strips = row->strips || (qw_chat_xml_calls(row) && m->n_tool_calls > 0);
    if (t.strips) t.content = qw_py_strip(t.content);
    if (row->history != CHAT_HISTORY_WHOLE && row->history != CHAT_HISTORY_FIELD && !m->reasoning.s) split(&t);
    t.spoken = (row->strips ? qw_py_strip(t.content) : t.content).n > 0;
    if (row->history == CHAT_HISTORY_QUERY) {
        t.may_block = i > query;
        t.block = t.may_block && (i + 1 == w->n || t.reasoning.n > 0);
        t.reasoning = qw_py_lstrip_lines(qw_py_rstrip_lines(t.reasoning));
        if (t.block) t.content = qw_py_lstrip_lines(t.content);
    } else if (row->history != CHAT_HISTORY_WHOLE) {
        t.block = t.may_block = w->keeps || i > query;
        t.reasoning = qw_py_strip(t.reasoning);
    }
    return t;
}
