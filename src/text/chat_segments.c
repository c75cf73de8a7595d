/* chat_segments.c: the segments of a rendered conversation, and their token ids. See chat.h. */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/chat_private.h"

void qw_rendered_free(qw_rendered *r)
{
    qw_buf_free(&r->text);
    free(r->segments);
    qw_tokens_free(&r->tokens);
    *r = (qw_rendered){0};
}

qw_status qw_chat_mark(const chat_renderer *w, qw_segment_kind kind)
{
    qw_rendered *r = w->out;
    qw_segment *last = r->n ? &r->segments[r->n - 1] : NULL;
    size_t begin = last ? last->end : 0;
    if (kind != QW_SEGMENT_EDGE && begin == r->text.n) return QW_OK;
    if (last && last->kind == kind) {
        last->end = r->text.n;
        return QW_OK;
    }
    if (r->n == r->cap) {
        if (r->n >= QW_SEGMENTS_MAX)
            return qw_fail(w->err, QW_E_LIMIT, "the conversation has more than %d segments", QW_SEGMENTS_MAX);
        size_t cap = r->cap ? r->cap * 2 : 32;
        QW_TRY(qw_grow(&r->segments, r->cap, cap, sizeof *r->segments, "chat segments", w->err));
        r->cap = cap;
    }
    r->segments[r->n++] = (qw_segment){.kind = kind, .begin = begin, .end = r->text.n, .n_messages = w->n_done};
    return QW_OK;
}

qw_status qw_chat_markup(const chat_renderer *w, const char *s)
{
    QW_TRY(qw_buf_add_str(&w->out->text, s, w->err));
    return qw_chat_mark(w, QW_SEGMENT_MARKUP);
}

qw_status qw_chat_plain(const chat_renderer *w, qw_text s)
{
    if (s.n == 0) return QW_OK;
    QW_TRY(qw_buf_add(&w->out->text, s.s, s.n, w->err));
    return qw_chat_mark(w, QW_SEGMENT_PLAIN);
}

/* ---- sampled tokens ----------------------------------------------------------------------------- */

static qw_status put_tokens(const chat_renderer *w, const qw_recalled *r)
{
    qw_rendered *out = w->out;
    size_t token = out->tokens.n;
    for (size_t i = 0; i < r->n_tokens; i++) QW_TRY(qw_tokens_push(&out->tokens, r->tokens[i].id, w->err));
    QW_TRY(qw_buf_add(&out->text, r->text.s, r->text.n, w->err));
    if (r->text.n == 0) return QW_OK; /* nothing was said */
    QW_TRY(qw_chat_mark(w, QW_SEGMENT_TOKENS));
    out->segments[out->n - 1].token = token;
    out->segments[out->n - 1].n_tokens = r->n_tokens;
    return QW_OK;
}

/* Writes again what a rendering had from byte `from` on. */
static qw_status put_rest(const chat_renderer *w, const qw_rendered *was, size_t from)
{
    for (size_t i = 0; i < was->n; i++) {
        const qw_segment *s = &was->segments[i];
        size_t begin = s->begin > from ? s->begin : from;
        if (s->end <= begin) continue;
        QW_TRY(qw_buf_add(&w->out->text, qw_buf_str(&was->text) + begin, s->end - begin, w->err));
        QW_TRY(qw_chat_mark(w, s->kind));
    }
    return QW_OK;
}

/* Moves what stands behind byte `at` into *tail, whose bytes count from there. */
static qw_status cut_tail(const chat_renderer *w, size_t at, qw_rendered *tail)
{
    qw_rendered *r = w->out;
    size_t first = r->n;
    while (first > 0 && r->segments[first - 1].end > at) first--;
    QW_TRY(qw_buf_add(&tail->text, qw_buf_str(&r->text) + at, r->text.n - at, w->err));
    QW_TRY(qw_grow(&tail->segments, 0, r->n - first, sizeof *tail->segments, "chat segments", w->err));
    for (size_t i = first; i < r->n; i++) {
        qw_segment *s = &tail->segments[tail->n++];
        *s = r->segments[i];
        s->begin = s->begin > at ? s->begin - at : 0;
        s->end -= at;
    }
    r->text.n = at;
    r->n = first;
    if (tail->n > 0 && r->text.n > (first > 0 ? r->segments[first - 1].end : 0))
        return qw_chat_mark(w, tail->segments[0].kind); /* its beginning stays */
    return QW_OK;
}

qw_status qw_chat_put_recalled(const chat_renderer *w, size_t at, const qw_recalled *r)
{
    qw_rendered tail = {0};
    qw_status status;
    qw_buf_init(&tail.text, QW_RENDERED_BYTES_MAX, "the rendered conversation");
    QW_TRY_GOTO(cut_tail(w, at, &tail));
    QW_TRY_GOTO(qw_chat_markup(w, r->lead));
    QW_TRY_GOTO(put_tokens(w, r));
    QW_TRY_GOTO(put_rest(w, &tail, r->n_replaced));
fail:
    qw_rendered_free(&tail);
    return status;
}

/* ---- token ids ---------------------------------------------------------------------------------- */

/* The text up to byte `at` gave n_tokens: notes the edge that is there, and passes those before it, which lie within a token. */
static qw_status note_edges(const qw_rendered *r, size_t at, size_t n_tokens, size_t *next, qw_edges *edges, qw_err *err)
{
    for (; edges && *next < r->n && r->segments[*next].begin <= at; ++*next) {
        const qw_segment *s = &r->segments[*next];
        if (s->kind != QW_SEGMENT_EDGE || s->begin != at) continue;
        if (edges->n == edges->cap) {
            size_t cap = edges->cap ? 2 * edges->cap : 16;
            QW_TRY(qw_grow(&edges->at, edges->cap, cap, sizeof *edges->at, "edges of messages", err));
            edges->cap = cap;
        }
        edges->at[edges->n++] = (qw_edge){.n_tokens = (uint32_t)n_tokens, .n_messages = (uint32_t)s->n_messages};
    }
    return QW_OK;
}

static qw_status put_ids(const qw_rendered *r, const qw_segment *s, qw_tokens *out, qw_err *err)
{
    for (size_t i = 0; i < s->n_tokens; i++) QW_TRY(qw_tokens_push(out, r->tokens.ids[s->token + i], err));
    return QW_OK;
}

/* Added tokens are recognised inside markup only. What stands between two of them, or between one and sampled tokens, is
 * one text for the tokenizer, markup and plain together: the pieces it is cut into may span both. */
qw_status qw_chat_tokenize(const qw_tokenizer *t, const qw_rendered *r, qw_tokens *out, qw_edges *edges, qw_err *err)
{
    const char *text = qw_buf_str(&r->text);
    size_t done = 0, before = out->n, next_edge = 0;
    qw_status status;
    for (size_t i = 0; i < r->n; i++) {
        size_t at, len, pos = r->segments[i].begin;
        int32_t id;
        if (r->segments[i].kind == QW_SEGMENT_TOKENS) {
            QW_TRY_GOTO(qw_tokenizer_encode(t, text + done, pos - done, false, out, err));
            QW_TRY_GOTO(note_edges(r, pos, out->n, &next_edge, edges, err));
            QW_TRY_GOTO(put_ids(r, &r->segments[i], out, err));
            done = r->segments[i].end;
        }
        if (r->segments[i].kind != QW_SEGMENT_MARKUP) continue;
        while (qw_tokenizer_find_added(t, text, r->segments[i].end, pos, &at, &len, &id)) {
            QW_TRY_GOTO(qw_tokenizer_encode(t, text + done, at - done, false, out, err));
            QW_TRY_GOTO(note_edges(r, at, out->n, &next_edge, edges, err));
            QW_TRY_GOTO(qw_tokens_push(out, id, err));
            done = pos = at + len;
        }
    }
    QW_TRY_GOTO(qw_tokenizer_encode(t, text + done, r->text.n - done, false, out, err));
    return note_edges(r, r->text.n, out->n, &next_edge, edges, err);
fail:
    out->n = before;
    return status;
}
