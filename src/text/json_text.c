/* json_text.c: one walk over a JSON text that checks it and writes it again.
 *
 * The walk keeps a stack of open arrays and objects, at most QW_JSON_DEPTH_MAX, and where the keys of the
 * open objects stand in the output. Keys are compared there, in their written form, which is the same for
 * the same key however it was escaped; sorting them makes that n log n. Any thread; no state.
 */
#include "text/json_text.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/json_number.h"

/* A key in the output. */
struct key {
    size_t begin, n;
};

struct level {
    bool object;
    bool any;          /* holds an element already */
    size_t keys_begin; /* index of an object's first key */
};

struct walk {
    const char *s;
    size_t n, pos;
    const char *list_before; /* written before each element of the outermost array; NULL: usual form */
    size_t list_n;
    qw_buf *out; /* borrows */
    struct level levels[QW_JSON_DEPTH_MAX];
    size_t depth;
    struct key *keys; /* owns */
    size_t keys_n, keys_cap;
    qw_err *err;
};

static qw_status bad(struct walk *w, const char *what)
{
    return qw_fail(w->err, QW_E_FORMAT, "not JSON at byte %zu: %s", w->pos, what);
}

static void skip_space(struct walk *w)
{
    while (w->pos < w->n && (w->s[w->pos] == ' ' || w->s[w->pos] == '\t' || w->s[w->pos] == '\n' ||
                             w->s[w->pos] == '\r'))
        w->pos++;
}

/* The next character after white space, or 0 at the end (a NUL in the text is no JSON either). */
static char peek(struct walk *w)
{
    skip_space(w);
    return w->pos < w->n ? w->s[w->pos] : '\0';
}

/* ---- strings ---------------------------------------------------------------------------------- */

/* Appends one character of a string as Python escapes it. */
static qw_status put_char(uint32_t cp, qw_buf *out, qw_err *err)
{
    static const char named[] = "\b\f\n\r\t\"\\", letters[] = "bfnrt\"\\";
    char text[4];
    const char *at = cp && cp < 0x80 ? strchr(named, (int)cp) : NULL;
    if (at) return qw_buf_printf(out, err, "\\%c", letters[at - named]);
    if (cp < 0x20) return qw_buf_printf(out, err, "\\u%04x", (unsigned)cp);
    return qw_buf_add(out, text, (size_t)qw_utf8_encode(cp, text), err);
}

/* Length of the bytes at s that stand for themselves in a JSON string. */
static size_t plain_run(const char *s, size_t n)
{
    size_t i = 0;
    while (i < n && (unsigned char)s[i] >= 0x20 && s[i] != '"' && s[i] != '\\') i++;
    return i;
}

qw_status qw_json_write_string(qw_text s, qw_buf *out, qw_err *err)
{
    if (!qw_utf8_valid(s.s, s.n)) return qw_fail(err, QW_E_FORMAT, "the text is not UTF-8");
    QW_TRY(qw_buf_add(out, "\"", 1, err));
    for (size_t i = 0; i < s.n; i++) {
        size_t run = plain_run(s.s + i, s.n - i);
        QW_TRY(qw_buf_add(out, s.s + i, run, err));
        i += run;
        if (i < s.n) QW_TRY(put_char((unsigned char)s.s[i], out, err));
    }
    return qw_buf_add(out, "\"", 1, err);
}

/* Four hexadecimal digits at pos. */
static qw_status read_hex(struct walk *w, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < 4; i++, w->pos++) {
        char c = w->pos < w->n ? w->s[w->pos] : '\0';
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                  : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) return bad(w, "\\u needs four hexadecimal digits");
        *out = *out << 4 | (uint32_t)digit;
    }
    return QW_OK;
}

/* An escape; pos is behind the backslash. */
static qw_status read_escape(struct walk *w, uint32_t *cp)
{
    static const char letters[] = "bfnrt\"\\/", values[] = "\b\f\n\r\t\"\\/";
    char c = w->pos < w->n ? w->s[w->pos] : '\0';
    const char *at = c ? strchr(letters, c) : NULL;
    if (at) {
        w->pos++;
        *cp = (uint32_t)values[at - letters];
        return QW_OK;
    }
    if (c != 'u') return bad(w, "unknown escape in a string");
    w->pos++;
    QW_TRY(read_hex(w, cp));
    if (*cp < 0xD800 || *cp > 0xDFFF) return QW_OK;
    uint32_t low = 0;
    if (*cp < 0xDC00 && w->n - w->pos >= 2 && w->s[w->pos] == '\\' && w->s[w->pos + 1] == 'u') {
        w->pos += 2;
        QW_TRY(read_hex(w, &low));
    }
    if (low < 0xDC00 || low > 0xDFFF) return bad(w, "half of a surrogate pair");
    *cp = 0x10000 + ((*cp - 0xD800) << 10) + (low - 0xDC00);
    return QW_OK;
}

/* A string, from its opening quote on. */
static qw_status do_string(struct walk *w)
{
    w->pos++;
    QW_TRY(qw_buf_add(w->out, "\"", 1, w->err));
    for (;;) {
        size_t run = plain_run(w->s + w->pos, w->n - w->pos);
        QW_TRY(qw_buf_add(w->out, w->s + w->pos, run, w->err));
        w->pos += run;
        if (w->pos == w->n) return bad(w, "the text ends inside a string");
        char c = w->s[w->pos];
        if (c == '"') break;
        if (c != '\\') return bad(w, "control character in a string");
        uint32_t cp;
        w->pos++;
        QW_TRY(read_escape(w, &cp));
        QW_TRY(put_char(cp, w->out, w->err));
    }
    w->pos++;
    return qw_buf_add(w->out, "\"", 1, w->err);
}

/* ---- numbers and words ------------------------------------------------------------------------ */

static size_t skip_digits(struct walk *w)
{
    size_t begin = w->pos;
    while (w->pos < w->n && w->s[w->pos] >= '0' && w->s[w->pos] <= '9') w->pos++;
    return w->pos - begin;
}

static bool skip_one(struct walk *w, const char *set)
{
    if (w->pos == w->n || !w->s[w->pos] || !strchr(set, w->s[w->pos])) return false;
    w->pos++;
    return true;
}

qw_status qw_json_write_double(double value, qw_buf *out, qw_err *err)
{
    char text[QW_JSON_DOUBLE_MAX];
    return qw_buf_add(out, text, qw_json_double_text(value, text), err);
}

/* Whole numbers stay as they are, whatever their length; "-0" is Python's 0. */
static qw_status do_number(struct walk *w)
{
    size_t begin = w->pos;
    bool real = false;
    skip_one(w, "-");
    size_t whole = w->pos;
    if (skip_digits(w) == 0) return bad(w, "a number needs a digit");
    if (w->s[whole] == '0' && w->pos - whole > 1) return bad(w, "a number begins with 0");
    if (skip_one(w, ".")) {
        real = true;
        if (skip_digits(w) == 0) return bad(w, "a number needs a digit after its point");
    }
    if (skip_one(w, "eE")) {
        real = true;
        skip_one(w, "+-");
        if (skip_digits(w) == 0) return bad(w, "a number needs a digit in its exponent");
    }
    const char *s = w->s + begin;
    size_t n = w->pos - begin;
    if (real) return qw_json_write_double(qw_json_double_value(s, n), w->out, w->err);
    if (n == 2 && s[0] == '-' && s[1] == '0') return qw_buf_add(w->out, "0", 1, w->err);
    return qw_buf_add(w->out, s, n, w->err);
}

static qw_status do_word(struct walk *w)
{
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i]);
        if (w->n - w->pos < n || memcmp(w->s + w->pos, words[i], n) != 0) continue;
        w->pos += n;
        return qw_buf_add(w->out, words[i], n, w->err);
    }
    return bad(w, w->pos == w->n ? "a value is missing" : "no value begins like this");
}

/* ---- arrays and objects ----------------------------------------------------------------------- */

static int compare_keys(const void *x, const void *y, void *ctx)
{
    const struct key *a = x, *b = y;
    const char *text = ctx;
    int c = memcmp(text + a->begin, text + b->begin, a->n < b->n ? a->n : b->n);
    return c ? c : (a->n > b->n) - (a->n < b->n);
}

/* The innermost object ends: no key twice. */
static qw_status check_keys(struct walk *w)
{
    struct key *keys = w->keys + w->levels[w->depth - 1].keys_begin;
    size_t n = w->keys_n - w->levels[w->depth - 1].keys_begin;
    w->keys_n -= n;
    if (n < 2) return QW_OK;
    qsort_r(keys, n, sizeof *keys, compare_keys, w->out->data);
    for (size_t i = 1; i < n; i++)
        if (compare_keys(&keys[i - 1], &keys[i], w->out->data) == 0)
            return qw_fail(w->err, QW_E_ARG, "an object has the key %.*s twice (it ends at byte %zu)",
                           keys[i].n < 60 ? (int)keys[i].n : 60, w->out->data + keys[i].begin, w->pos);
    return QW_OK;
}

static bool in_list(const struct walk *w)
{
    return w->depth == 1 && w->list_before;
}

static qw_status open_level(struct walk *w, bool object)
{
    if (w->depth == QW_JSON_DEPTH_MAX)
        return qw_fail(w->err, QW_E_LIMIT, "JSON at byte %zu is nested more than %d deep", w->pos,
                       QW_JSON_DEPTH_MAX);
    w->levels[w->depth++] = (struct level){.object = object, .keys_begin = w->keys_n};
    w->pos++;
    return in_list(w) ? QW_OK : qw_buf_add(w->out, object ? "{" : "[", 1, w->err);
}

static qw_status close_level(struct walk *w)
{
    bool object = w->levels[w->depth - 1].object, listed = in_list(w);
    if (w->s[w->pos] != (object ? '}' : ']')) return bad(w, object ? "} was expected" : "] was expected");
    w->pos++;
    if (object) QW_TRY(check_keys(w));
    w->depth--;
    return listed ? QW_OK : qw_buf_add(w->out, object ? "}" : "]", 1, w->err);
}

/* A key, its colon and what is written after it. */
static qw_status do_key(struct walk *w)
{
    if (peek(w) != '"') return bad(w, "a key in quotes was expected");
    if (w->keys_n == w->keys_cap) {
        size_t cap = w->keys_cap ? w->keys_cap * 2 : 32;
        QW_TRY(qw_grow(&w->keys, w->keys_cap, cap, sizeof *w->keys, "JSON keys", w->err));
        w->keys_cap = cap;
    }
    size_t begin = w->out->n;
    QW_TRY(do_string(w));
    w->keys[w->keys_n++] = (struct key){.begin = begin, .n = w->out->n - begin};
    if (peek(w) != ':') return bad(w, ": was expected");
    w->pos++;
    return qw_buf_add(w->out, ": ", 2, w->err);
}

/* Goes on inside the innermost level: to its next element (*more) or past its end. */
static qw_status next_element(struct walk *w, bool *more)
{
    struct level *level = &w->levels[w->depth - 1];
    char c = peek(w);
    *more = false;
    if (c == ']' || c == '}') return close_level(w);
    if (level->any) {
        if (c != ',') return bad(w, w->pos == w->n ? "the text ends too early" : ", was expected");
        w->pos++;
        peek(w);
    }
    if (in_list(w)) {
        if (peek(w) != '{')
            return qw_fail(w->err, QW_E_ARG, "element %zu (byte %zu) is not an object", w->list_n, w->pos);
        w->list_n++;
        QW_TRY(qw_buf_add_str(w->out, w->list_before, w->err));
    } else if (level->any) {
        QW_TRY(qw_buf_add(w->out, ", ", 2, w->err));
    }
    level->any = true;
    *more = true;
    return level->object ? do_key(w) : QW_OK;
}

/* One value; an array or object is only opened. */
static qw_status do_value(struct walk *w)
{
    char c = peek(w);
    if (c == '{' || c == '[') return open_level(w, c == '{');
    if (c == '"') return do_string(w);
    if (c == '-' || (c >= '0' && c <= '9')) return do_number(w);
    return do_word(w);
}

static qw_status do_text(struct walk *w)
{
    if (!qw_utf8_valid(w->s, w->n)) return qw_fail(w->err, QW_E_FORMAT, "not JSON: the text is not UTF-8");
    QW_TRY(do_value(w));
    while (w->depth > 0) {
        bool more;
        QW_TRY(next_element(w, &more));
        if (more) QW_TRY(do_value(w));
    }
    skip_space(w);
    return w->pos == w->n ? QW_OK : bad(w, "something follows the value");
}

static qw_status run(struct walk *w)
{
    size_t before = w->out->n;
    qw_status status = do_text(w);
    free(w->keys);
    if (status != QW_OK && w->out->n > before) {
        w->out->n = before;
        w->out->data[before] = '\0';
    }
    return status;
}

qw_status qw_json_rewrite(qw_text json, qw_buf *out, qw_err *err)
{
    struct walk w = {.s = json.s, .n = json.n, .out = out, .err = err};
    return run(&w);
}

qw_status qw_json_rewrite_list(qw_text json, const char *before, qw_buf *out, size_t *n, qw_err *err)
{
    struct walk w = {.s = json.s, .n = json.n, .out = out, .err = err, .list_before = before};
    *n = 0;
    if (peek(&w) == 'n' && w.n - w.pos >= 4 && memcmp(w.s + w.pos, "null", 4) == 0) {
        w.pos += 4;
        skip_space(&w);
        return w.pos == w.n ? QW_OK : bad(&w, "something follows the value");
    }
    if (w.pos == w.n || w.s[w.pos] != '[') return qw_fail(err, QW_E_ARG, "a JSON array was expected");
    QW_TRY(run(&w));
    *n = w.list_n;
    return QW_OK;
}
