/* spoken_packed.c: an answer as bytes, to be kept beyond the process. See spoken.h.
 *
 *     4 each   tokens, of them usable, places of words, calls, where the answer begins, flags
 *     texts    lead, text, thinking, content: 4 bytes of length, then the bytes
 *     tokens   id 4, end 4, flags 1
 *     words    begin 4, end 4
 *     calls    name, arguments: as texts
 *
 * Little-endian, without padding. What is read back holds to everything that writing guarantees, whatever the bytes are: who
 * uses an answer need not ask where it comes from.
 */
#include "text/spoken.h"

#include <string.h>

#include "base/cursor.h"
#include "base/mem.h"

enum { ANSWERED = 1, CALLED_IN_THINKING = 2, BROKEN = 4, WHOLE = 8, ANSWER_FLAGS = 15 };
enum { INSIDE = 1, ADDED = 2, TOKEN_FLAGS = 3 };
enum { TOKEN_BYTES = 9, WORDS_BYTES = 8 };

/* ---- writing -------------------------------------------------------------------------------------- */

static qw_status put_u32(qw_buf *out, size_t n, qw_err *err)
{
    const uint8_t bytes[4] = {(uint8_t)n, (uint8_t)(n >> 8), (uint8_t)(n >> 16), (uint8_t)(n >> 24)};
    QW_ASSERT(n <= UINT32_MAX);
    return qw_buf_add(out, bytes, sizeof bytes, err);
}

static qw_status put_text(qw_buf *out, const char *s, size_t n, qw_err *err)
{
    QW_TRY(put_u32(out, n, err));
    return qw_buf_add(out, s, n, err);
}

static qw_status put_buf(qw_buf *out, const qw_buf *b, qw_err *err)
{
    return put_text(out, qw_buf_str(b), b->n, err);
}

static qw_status put_token(qw_buf *out, const qw_spoken_token *t, qw_err *err)
{
    const uint8_t flags = (uint8_t)((t->inside ? INSIDE : 0) | (t->added ? ADDED : 0));
    QW_TRY(put_u32(out, (uint32_t)t->id, err));
    QW_TRY(put_u32(out, t->end, err));
    return qw_buf_add(out, &flags, 1, err);
}

qw_status qw_spoken_pack(const qw_spoken *s, qw_buf *out, qw_err *err)
{
    const qw_buf *const texts[] = {&s->lead, &s->text, &s->thinking, &s->content};
    const size_t flags = (s->answered ? ANSWERED : 0) | (s->called_in_thinking ? CALLED_IN_THINKING : 0) |
                         (s->broken ? BROKEN : 0) | (s->whole ? WHOLE : 0);
    const size_t counts[] = {s->n_tokens, s->n_usable, s->n_words, s->n_calls, s->answer_at, flags};
    QW_ASSERT(!s->lost);
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) QW_TRY(put_u32(out, counts[i], err));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) QW_TRY(put_buf(out, texts[i], err));
    for (size_t i = 0; i < s->n_tokens; i++) QW_TRY(put_token(out, &s->tokens[i], err));
    for (size_t i = 0; i < s->n_words; i++) {
        QW_TRY(put_u32(out, s->words[i].begin, err));
        QW_TRY(put_u32(out, s->words[i].end, err));
    }
    for (size_t i = 0; i < s->n_calls; i++) {
        QW_TRY(put_text(out, s->calls[i].name, strlen(s->calls[i].name), err));
        QW_TRY(put_buf(out, &s->calls[i].arguments, err));
    }
    return QW_OK;
}

/* ---- reading -------------------------------------------------------------------------------------- */

typedef struct counts {
    uint32_t n_tokens, n_usable, n_words, n_calls, answer_at, flags;
} counts;

static qw_status wrong(const qw_cursor *c, const char *what, qw_err *err)
{
    return qw_fail(err, QW_E_FORMAT, "%s: %s before byte %zu", c->what, what, c->pos);
}

static qw_status get_counts(qw_cursor *c, counts *n, qw_err *err)
{
    uint32_t *const fields[] = {&n->n_tokens, &n->n_usable, &n->n_words, &n->n_calls, &n->answer_at, &n->flags};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) QW_TRY(qw_cursor_u32(c, "the counts", fields[i], err));
    bool fits = (uint64_t)n->n_tokens * TOKEN_BYTES + (uint64_t)n->n_words * WORDS_BYTES <= qw_cursor_remaining(c);
    if (!fits || n->n_usable > n->n_tokens || n->n_calls > QW_SPOKEN_CALLS_MAX || (n->flags & ~(uint32_t)ANSWER_FLAGS))
        return wrong(c, "counts that cannot be", err);
    return QW_OK;
}

static qw_status get_text(qw_cursor *c, qw_text *out, qw_err *err)
{
    uint32_t n;
    const uint8_t *bytes;
    QW_TRY(qw_cursor_u32(c, "a length", &n, err));
    QW_TRY(qw_cursor_take(c, n, "a text", &bytes, err));
    *out = (qw_text){(const char *)bytes, n};
    return QW_OK;
}

static qw_status get_buf(qw_cursor *c, qw_buf *into, qw_err *err)
{
    qw_text text;
    QW_TRY(get_text(c, &text, err));
    return qw_buf_add(into, text.s, text.n, err);
}

static qw_status get_tokens(qw_cursor *c, size_t n_vocab, qw_spoken *s, size_t n, qw_err *err)
{
    QW_TRY(qw_alloc(&s->tokens, n, sizeof *s->tokens, "answer", err));
    s->cap = n;
    for (uint32_t begin = 0, id = 0, end = 0; s->n_tokens < n; begin = end) {
        uint8_t flags = 0;
        QW_TRY(qw_cursor_u32(c, "a token", &id, err));
        QW_TRY(qw_cursor_u32(c, "a token", &end, err));
        QW_TRY(qw_cursor_u8(c, "a token", &flags, err));
        if (id >= n_vocab || end < begin || (flags & ~TOKEN_FLAGS)) return wrong(c, "a token that cannot be", err);
        s->tokens[s->n_tokens++] =
            (qw_spoken_token){.id = (int32_t)id, .end = end, .inside = flags & INSIDE, .added = flags & ADDED};
    }
    return QW_OK;
}

static qw_status get_words(qw_cursor *c, qw_spoken *s, size_t n, qw_err *err)
{
    QW_TRY(qw_alloc(&s->words, n, sizeof *s->words, "answer", err));
    s->words_cap = n;
    for (uint32_t from = 0, begin = 0, end = 0; s->n_words < n; from = end) {
        QW_TRY(qw_cursor_u32(c, "a place of words", &begin, err));
        QW_TRY(qw_cursor_u32(c, "a place of words", &end, err));
        if (begin < from || end <= begin || end > s->text.n) return wrong(c, "a place of words that cannot be", err);
        s->words[s->n_words].begin = begin;
        s->words[s->n_words++].end = end;
    }
    return QW_OK;
}

static qw_status get_calls(qw_cursor *c, qw_spoken *s, size_t n, qw_err *err)
{
    qw_text name;
    QW_TRY(qw_alloc(&s->calls, n, sizeof *s->calls, "answer", err));
    while (s->n_calls < n) {
        QW_TRY(get_text(c, &name, err));
        if (memchr(name.s, '\0', name.n)) return wrong(c, "a name with a zero", err);
        qw_spoken_call *call = &s->calls[s->n_calls];
        QW_TRY(qw_strndup(&call->name, name.s, name.n, err));
        qw_buf_init(&call->arguments, QW_SPOKEN_BYTES_MAX, "answer");
        s->n_calls++;
        QW_TRY(get_buf(c, &call->arguments, err));
    }
    return QW_OK;
}

/* What qw_spoken_finish would say of it. */
static bool is_finished(const qw_spoken *s, bool whole)
{
    size_t end = s->n_usable > 0 ? s->tokens[s->n_usable - 1].end : 0;
    if (end > s->text.n || s->answer_at > s->text.n) return false;
    return !whole || (s->n_usable == s->n_tokens && end == s->text.n && !s->broken &&
                      (s->n_tokens == 0 || !s->tokens[s->n_tokens - 1].inside));
}

static qw_status get_all(qw_cursor *c, size_t n_vocab, qw_spoken *s, qw_err *err)
{
    counts n;
    qw_buf *const texts[] = {&s->lead, &s->text, &s->thinking, &s->content};
    QW_TRY(get_counts(c, &n, err));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) QW_TRY(get_buf(c, texts[i], err));
    QW_TRY(get_tokens(c, n_vocab, s, n.n_tokens, err));
    QW_TRY(get_words(c, s, n.n_words, err));
    QW_TRY(get_calls(c, s, n.n_calls, err));
    s->n_usable = n.n_usable;
    s->answer_at = n.answer_at;
    s->answered = n.flags & ANSWERED;
    s->called_in_thinking = n.flags & CALLED_IN_THINKING;
    s->broken = n.flags & BROKEN;
    s->whole = n.flags & WHOLE;
    if (!is_finished(s, s->whole) || qw_cursor_remaining(c) > 0) return wrong(c, "an answer that cannot be", err);
    return QW_OK;
}

qw_status qw_spoken_unpack(qw_text bytes, size_t n_vocab, qw_spoken **out, qw_err *err)
{
    qw_cursor c = {.data = (const uint8_t *)bytes.s, .n = bytes.n, .what = "an answer"};
    qw_spoken *s;
    *out = NULL;
    QW_TRY(qw_spoken_create((qw_text){"", 0}, &s, err));
    qw_status status = get_all(&c, n_vocab, s, err);
    if (status == QW_OK) *out = s;
    else qw_spoken_destroy(s);
    return status;
}
