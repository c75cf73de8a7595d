/* chat_recall.c: see chat_recall.h. */
#include "text/chat_recall.h"

#include <string.h>

#include "text/json_same.h"
#include "text/py_text.h"

static bool same(qw_text a, qw_text b)
{
    return a.n == b.n && (a.n == 0 || memcmp(a.s, b.s, a.n) == 0);
}

static bool begins_with(qw_text s, qw_text head)
{
    return s.n >= head.n && (head.n == 0 || memcmp(s.s, head.s, head.n) == 0);
}

/* ---- is it the same answer? --------------------------------------------------------------------- */

static bool same_content(const qw_spoken *s, const qw_chat_ask *q)
{
    qw_text content = qw_spoken_slice(&s->content);
    if (q->strips) return same(qw_py_strip(content), qw_py_strip(q->content));
    if (q->block) return same(qw_py_lstrip_lines(content), q->content);
    return same(content, q->content);
}

static bool same_calls(const qw_spoken *s, const qw_message *m)
{
    if (s->n_calls != m->n_tool_calls) return false;
    for (size_t i = 0; i < s->n_calls; i++) {
        const qw_spoken_call *mine = &s->calls[i];
        const qw_tool_call *theirs = &m->tool_calls[i];
        if (!theirs->name || strcmp(mine->name, theirs->name) != 0) return false;
        if (!qw_json_same(qw_spoken_slice(&mine->arguments), theirs->arguments)) return false;
    }
    return true;
}

/* ---- how it is shown ----------------------------------------------------------------------------- */

static bool has_block(const qw_spoken *s)
{
    static const qw_text think = {"<think>", 7};
    return begins_with(s->lead.n > 0 ? qw_spoken_slice(&s->lead) : qw_spoken_slice(&s->text), think);
}

static void take_all(const qw_spoken *s, const qw_chat_ask *q, qw_recalled *out)
{
    *out = (qw_recalled){.lead = qw_buf_str(&s->lead), .tokens = s->tokens, .n_tokens = s->n_tokens,
                         .text = qw_spoken_slice(&s->text), .n_replaced = q->turn.n};
}

/* What follows the thinking; false when no token begins there. */
static bool take_answer(const qw_spoken *s, const qw_chat_ask *q, qw_recalled *out)
{
    size_t k = 0, begin = 0;
    while (k < s->n_tokens && begin < s->answer_at) begin = s->tokens[k++].end;
    if (begin != s->answer_at || s->called_in_thinking || (k > 0 && s->tokens[k - 1].inside)) return false;
    *out = (qw_recalled){.lead = "", .tokens = s->tokens + k, .n_tokens = s->n_tokens - k,
                         .text = {qw_buf_str(&s->text) + begin, s->text.n - begin}, .n_replaced = q->turn.n};
    return true;
}

static bool match_whole(const qw_spoken *s, const qw_chat_ask *q, bool sure, qw_recalled *out)
{
    qw_text thinking = qw_py_strip(qw_spoken_slice(&s->thinking));
    bool block = has_block(s);
    bool same_thinking = same(thinking, qw_py_strip(q->reasoning));
    bool restores = sure && !q->reasoning_given && q->may_block && thinking.n > 0;
    if (!s->whole || !same_content(s, q) || !same_calls(s, q->message)) return false;
    if ((q->block && block && same_thinking) || restores || (!q->block && !block)) {
        take_all(s, q, out);
        return true;
    }
    return !q->block && take_answer(s, q, out);
}

/* Are bytes [begin, end) of the turn the format's own? */
static bool is_markup(const qw_chat_ask *q, size_t begin, size_t end)
{
    for (size_t i = q->n_segments; i-- > 0;) {
        const qw_segment *g = &q->segments[i];
        if (g->begin > q->before.n + begin) continue;
        return g->kind == QW_SEGMENT_MARKUP && g->end >= q->before.n + end;
    }
    return false;
}

/* The tokens up to where the texts differ. */
static bool match_part(const qw_spoken *s, const qw_chat_ask *q, qw_recalled *out)
{
    qw_text lead = qw_spoken_slice(&s->lead), text = qw_spoken_slice(&s->text);
    if (!begins_with(q->turn, lead)) return false;
    const char *theirs = q->turn.s + lead.n;
    size_t most = q->turn.n - lead.n, n = 0, k = 0, end = 0;
    if (most > text.n) most = text.n;
    while (n < most && text.s[n] == theirs[n]) n++;
    for (size_t i = 0, begin = 0; i < s->n_usable && s->tokens[i].end <= n; begin = s->tokens[i++].end) {
        const qw_spoken_token *t = &s->tokens[i];
        if (t->added && !is_markup(q, lead.n + begin, lead.n + t->end)) break;
        if (t->inside) continue;
        k = i + 1;
        end = t->end;
    }
    *out = (qw_recalled){.lead = qw_buf_str(&s->lead), .tokens = s->tokens, .n_tokens = k, .text = {text.s, end},
                         .n_replaced = lead.n + end};
    return k > 0;
}

qw_match qw_spoken_match(const qw_spoken *s, const qw_chat_ask *q, bool sure, qw_recalled *out)
{
    if (s->lost || s->n_tokens == 0) return QW_MATCH_NONE;
    if (match_whole(s, q, sure, out)) return QW_MATCH_WHOLE;
    return match_part(s, q, out) ? QW_MATCH_PART : QW_MATCH_NONE;
}
