/* detok.c: a token stream becomes text, character by character.
 *
 * Tokens may end inside a character: up to three bytes wait in the qw_detok until the character is whole
 * or can no longer become one. Each longest ill-formed prefix of a character becomes one U+FFFD, so that
 * all output together is what Python's bytes.decode("utf-8", "replace") gives. One thread a stream.
 */
#include "text/tokenizer.h"

#include <string.h>

static const char replacement[] = "\xEF\xBF\xBD";

/* Looks at s[0, n), n >= 1. Returns the length of a whole character (*whole true), or of the bytes that can
 * become none (*whole false), or 0 when the n bytes may still become one. */
static size_t scan(const unsigned char *s, size_t n, bool *whole)
{
    unsigned lead = s[0];
    size_t len = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
    *whole = len == 1;
    if (len <= 1) return 1;
    unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    for (size_t i = 1; i < len; i++) {
        if (i == n) return 0;
        if (s[i] < low || s[i] > high) return i;
        low = 0x80;
        high = 0xBF;
    }
    *whole = true;
    return len;
}

/* Completes the character that is held with bytes of s; *pos becomes the number of bytes used. */
static qw_status feed_held(qw_detok *d, const char *s, size_t n, size_t *pos, qw_buf *out, qw_err *err)
{
    for (*pos = 0; d->n_held > 0 && *pos < n;) {
        bool whole;
        d->held[d->n_held] = s[*pos];
        size_t len = scan((const unsigned char *)d->held, d->n_held + 1, &whole);
        if (len == 0) {
            d->n_held++;
            ++*pos;
            continue;
        }
        QW_TRY(whole ? qw_buf_add(out, d->held, len, err) : qw_buf_add(out, replacement, 3, err));
        if (whole) ++*pos; /* else the byte that did not fit begins something new */
        d->n_held = 0;
    }
    return QW_OK;
}

/* Feeds bytes to the stream. */
static qw_status feed(qw_detok *d, const char *s, size_t n, qw_buf *out, qw_err *err)
{
    size_t pos;
    QW_TRY(feed_held(d, s, n, &pos, out, err));
    size_t begin = pos; /* s[begin, pos) is whole characters not yet written */
    while (pos < n) {
        bool whole;
        size_t len = scan((const unsigned char *)s + pos, n - pos, &whole);
        if (len > 0 && whole) {
            pos += len;
            continue;
        }
        QW_TRY(qw_buf_add(out, s + begin, pos - begin, err));
        if (len > 0) {
            QW_TRY(qw_buf_add(out, replacement, 3, err));
            pos += len;
        } else {
            d->n_held = n - pos;
            memcpy(d->held, s + pos, d->n_held);
            pos = n;
        }
        begin = pos;
    }
    return qw_buf_add(out, s + begin, n - begin, err);
}

qw_status qw_detok_push(qw_detok *d, const qw_tokenizer *t, int32_t id, qw_buf *out, qw_err *err)
{
    if (id < 0 || (size_t)id >= qw_tokenizer_n_vocab(t))
        return qw_fail(err, QW_E_ARG, "token id %d is outside the vocabulary of %zu", id,
                       qw_tokenizer_n_vocab(t));
    if (qw_tokenizer_is_control(t, id) || qw_tokenizer_is_unused(t, id)) return QW_OK;
    qw_text bytes = qw_tokenizer_bytes(t, id);
    return feed(d, bytes.s, bytes.n, out, err);
}

qw_status qw_detok_flush(qw_detok *d, qw_buf *out, qw_err *err)
{
    if (d->n_held == 0) return QW_OK;
    d->n_held = 0;
    return qw_buf_add(out, replacement, 3, err);
}
