/* spoken.c: see spoken.h. */
#include "text/spoken.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

qw_status qw_spoken_create(qw_text lead, qw_spoken **out, qw_err *err)
{
    qw_spoken *s;
    *out = NULL;
    QW_TRY(qw_alloc(&s, 1, sizeof *s, "answer", err));
    qw_buf_init(&s->lead, QW_SPOKEN_BYTES_MAX, "answer");
    qw_buf_init(&s->text, QW_SPOKEN_BYTES_MAX, "answer");
    qw_buf_init(&s->thinking, QW_SPOKEN_BYTES_MAX, "answer");
    qw_buf_init(&s->content, QW_SPOKEN_BYTES_MAX, "answer");
    qw_status status = qw_buf_add(&s->lead, lead.s, lead.n, err);
    if (status == QW_OK) *out = s;
    else qw_spoken_destroy(s);
    return status;
}

void qw_spoken_destroy(qw_spoken *s)
{
    if (!s) return;
    for (size_t i = 0; i < s->n_calls; i++) {
        free(s->calls[i].name);
        qw_buf_free(&s->calls[i].arguments);
    }
    free(s->calls);
    free(s->tokens);
    free(s->words);
    qw_buf_free(&s->lead);
    qw_buf_free(&s->text);
    qw_buf_free(&s->thinking);
    qw_buf_free(&s->content);
    free(s);
}

static bool is_added(const qw_tokenizer *t, int32_t id)
{
    qw_text bytes = qw_tokenizer_bytes(t, id);
    size_t at, n;
    int32_t found;
    if (qw_tokenizer_is_control(t, id) || qw_tokenizer_is_unused(t, id)) return true;
    return qw_tokenizer_find_added(t, bytes.s, bytes.n, 0, &at, &n, &found) && found == id;
}

void qw_spoken_token_add(qw_spoken *s, const qw_tokenizer *t, int32_t id, size_t n_decoded, bool inside)
{
    if (s->lost) return;
    if (s->n_tokens == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 64;
        s->lost = n_decoded > QW_SPOKEN_BYTES_MAX ||
                  qw_grow(&s->tokens, s->cap, cap, sizeof *s->tokens, "answer", NULL) != QW_OK;
        if (s->lost) return;
        s->cap = cap;
    }
    s->tokens[s->n_tokens++] =
        (qw_spoken_token){.id = id, .end = (uint32_t)n_decoded, .inside = inside, .added = is_added(t, id)};
}

/* ---- events ------------------------------------------------------------------------------------- */

/* n more bytes of the text are words. */
static bool add_words(qw_spoken *s, size_t n)
{
    uint32_t begin = (uint32_t)s->text.n, end = (uint32_t)(s->text.n + n);
    if (n == 0) return true;
    if (s->n_words > 0 && s->words[s->n_words - 1].end == begin) {
        s->words[s->n_words - 1].end = end;
        return true;
    }
    if (s->n_words == s->words_cap) {
        size_t cap = s->words_cap ? 2 * s->words_cap : 8;
        if (qw_grow(&s->words, s->words_cap, cap, sizeof *s->words, "answer", NULL) != QW_OK) return false;
        s->words_cap = cap;
    }
    s->words[s->n_words].begin = begin;
    s->words[s->n_words++].end = end;
    return true;
}

static bool begin_call(qw_spoken *s, qw_text name, bool in_thinking)
{
    if (s->n_calls == QW_SPOKEN_CALLS_MAX ||
        qw_grow(&s->calls, s->n_calls, s->n_calls + 1, sizeof *s->calls, "answer", NULL) != QW_OK)
        return false;
    qw_spoken_call *call = &s->calls[s->n_calls++];
    qw_buf_init(&call->arguments, QW_SPOKEN_BYTES_MAX, "answer");
    s->called_in_thinking = s->called_in_thinking || in_thinking;
    return qw_strndup(&call->name, name.s, name.n, NULL) == QW_OK;
}

/* The answer proper begins before the text of this event, if it did not yet. */
static void note_answer(qw_spoken *s)
{
    if (!s->answered) s->answer_at = s->text.n;
    s->answered = true;
}

static bool take(qw_spoken *s, const qw_parse_event *ev, bool in_thinking)
{
    qw_buf *into = NULL;
    switch (ev->kind) {
    case QW_PARSE_MARKUP:
    case QW_PARSE_WARNING: return true;
    case QW_PARSE_CALL:
        if (!in_thinking) note_answer(s);
        return begin_call(s, ev->text, in_thinking);
    case QW_PARSE_CALL_END: s->broken = s->broken || !ev->complete; return true;
    case QW_PARSE_THINKING: into = &s->thinking; break;
    case QW_PARSE_CONTENT:
        note_answer(s);
        into = &s->content;
        break;
    case QW_PARSE_ARGUMENTS: into = &s->calls[s->n_calls - 1].arguments; break;
    }
    return add_words(s, ev->raw.n) && qw_buf_add(into, ev->text.s, ev->text.n, NULL) == QW_OK;
}

void qw_spoken_event(qw_spoken *s, const qw_parse_event *ev, bool in_thinking)
{
    if (s->lost) return;
    s->lost = !take(s, ev, in_thinking) || qw_buf_add(&s->text, ev->raw.s, ev->raw.n, NULL) != QW_OK;
}

/* ---- the end ------------------------------------------------------------------------------------ */

/* Tokens before the first added one that touches words, and before the end of what was given out. */
static size_t usable(const qw_spoken *s)
{
    size_t begin = 0, w = 0;
    for (size_t i = 0; i < s->n_tokens; begin = s->tokens[i++].end) {
        const qw_spoken_token *t = &s->tokens[i];
        while (w < s->n_words && s->words[w].end <= begin) w++;
        bool touches = w < s->n_words && s->words[w].begin < t->end;
        if (t->end > s->text.n || (t->added && (touches || t->end == begin))) return i;
    }
    return s->n_tokens;
}

void qw_spoken_finish(qw_spoken *s, bool in_thinking)
{
    if (s->lost) return;
    if (!s->answered) s->answer_at = s->text.n;
    s->n_usable = usable(s);
    size_t end = s->n_usable > 0 ? s->tokens[s->n_usable - 1].end : 0;
    s->whole = s->n_usable == s->n_tokens && end == s->text.n && !in_thinking && !s->broken &&
               (s->n_tokens == 0 || !s->tokens[s->n_tokens - 1].inside);
}

size_t qw_spoken_bytes(const qw_spoken *s)
{
    size_t n = sizeof *s + s->cap * sizeof *s->tokens + s->words_cap * sizeof *s->words + s->lead.cap + s->text.cap +
               s->thinking.cap + s->content.cap;
    for (size_t i = 0; i < s->n_calls; i++)
        n += sizeof *s->calls + strlen(s->calls[i].name) + 1 + s->calls[i].arguments.cap;
    return n;
}
