/* py_text.c: see py_text.h. */
#include "text/py_text.h"

#include <stdbool.h>
#include <string.h>
#include <utf8proc.h>

#include "base/utf8.h"
#include "text/json_view.h"

/* ---- str methods ------------------------------------------------------------------------------ */

static bool is_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || (cp >= 0x1C && cp <= 0x20) || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F ||
           cp == 0x3000;
}

/* Length of the white space character that ends s, or 0. */
static int last_space(qw_text s)
{
    uint32_t cp;
    for (int n = 1; n <= 3 && (size_t)n <= s.n; n++)
        if (qw_utf8_decode(s.s + s.n - n, (size_t)n, &cp) == n) return is_space(cp) ? n : 0;
    return 0;
}

qw_text qw_py_strip(qw_text s)
{
    uint32_t cp;
    int n;
    while (s.n > 0 && (n = qw_utf8_decode(s.s, s.n, &cp)) > 0 && is_space(cp)) {
        s.s += n;
        s.n -= (size_t)n;
    }
    while (s.n > 0 && (n = last_space(s)) > 0) s.n -= (size_t)n;
    return s;
}

qw_text qw_py_lstrip_lines(qw_text s)
{
    for (; s.n > 0 && s.s[0] == '\n'; s.n--) s.s++;
    return s;
}

qw_text qw_py_rstrip_lines(qw_text s)
{
    while (s.n > 0 && s.s[s.n - 1] == '\n') s.n--;
    return s;
}

qw_text qw_py_before(qw_text s, const char *part)
{
    const char *at = s.n > 0 ? memmem(s.s, s.n, part, strlen(part)) : NULL;
    return at ? (qw_text){s.s, (size_t)(at - s.s)} : s;
}

qw_text qw_py_after_last(qw_text s, const char *part)
{
    size_t n = strlen(part);
    for (const char *at; s.n > 0 && (at = memmem(s.s, s.n, part, n)) != NULL;) {
        s.n -= (size_t)(at - s.s) + n;
        s.s = at + n;
    }
    return s;
}

bool qw_py_has(qw_text s, const char *part)
{
    return s.n > 0 && memmem(s.s, s.n, part, strlen(part)) != NULL;
}

/* ---- str() and repr() -------------------------------------------------------------------------- */

static bool is_printable(uint32_t cp)
{
    if (cp < 0x7F) return cp >= 0x20;
    switch (utf8proc_category((utf8proc_int32_t)cp)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS: return false;
    default: return true;
    }
}

static qw_status repr_char(uint32_t cp, char quote, qw_buf *out, qw_err *err)
{
    char text[4];
    if (cp == (unsigned char)quote || cp == '\\') return qw_buf_printf(out, err, "\\%c", (char)cp);
    if (cp == '\n') return qw_buf_add(out, "\\n", 2, err);
    if (cp == '\r') return qw_buf_add(out, "\\r", 2, err);
    if (cp == '\t') return qw_buf_add(out, "\\t", 2, err);
    if (is_printable(cp)) return qw_buf_add(out, text, (size_t)qw_utf8_encode(cp, text), err);
    if (cp < 0x100) return qw_buf_printf(out, err, "\\x%02x", (unsigned)cp);
    return qw_buf_printf(out, err, cp < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)cp);
}

/* repr() of a string: in single quotes, unless it holds one and no double quote. */
static qw_status repr_string(qw_text json, qw_buf *out, qw_err *err)
{
    qw_buf raw;
    qw_status status;
    qw_buf_init(&raw, json.n + 1, "a string");
    QW_TRY_GOTO(qw_json_unquote(json, &raw, err));
    qw_text s = {qw_buf_str(&raw), raw.n};
    char quote = s.n > 0 && memchr(s.s, '\'', s.n) && !memchr(s.s, '"', s.n) ? '"' : '\'';
    QW_TRY_GOTO(qw_buf_add(out, &quote, 1, err));
    for (size_t i = 0; i < s.n;) {
        uint32_t cp = 0;
        int n = qw_utf8_decode(s.s + i, s.n - i, &cp);
        QW_TRY_GOTO(repr_char(cp, quote, out, err));
        i += n > 0 ? (size_t)n : 1;
    }
    QW_TRY_GOTO(qw_buf_add(out, &quote, 1, err));
fail:
    qw_buf_free(&raw);
    return status;
}

/* A number, true, false, null or what json.dumps makes of an infinity. */
static qw_status scalar(qw_text json, qw_buf *out, qw_err *err)
{
    static const char *const words[][2] = {{"true", "True"}, {"false", "False"}, {"null", "None"},
                                           {"Infinity", "inf"}, {"-Infinity", "-inf"}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (json.n == strlen(words[i][0]) && memcmp(json.s, words[i][0], json.n) == 0)
            return qw_buf_add_str(out, words[i][1], err);
    return qw_buf_add(out, json.s, json.n, err);
}

/* repr(): strings, words and numbers anew, punctuation as it stands: [1, "a"] and {"a": true} are written with the
 * same separators by json.dumps and by repr. */
static qw_status repr(qw_text json, qw_buf *out, qw_err *err)
{
    for (size_t i = 0; i < json.n;) {
        size_t end = i;
        if (json.s[i] == '"') {
            for (end++; json.s[end] != '"'; end++)
                if (json.s[end] == '\\') end++;
            end++;
            QW_TRY(repr_string((qw_text){json.s + i, end - i}, out, err));
        } else if (strchr("{}[],: ", json.s[i])) {
            QW_TRY(qw_buf_add(out, json.s + i, ++end - i, err));
        } else {
            while (end < json.n && !strchr("}],", json.s[end])) end++;
            QW_TRY(scalar((qw_text){json.s + i, end - i}, out, err));
        }
        i = end;
    }
    return QW_OK;
}

qw_status qw_py_str(qw_text json, qw_buf *out, qw_err *err)
{
    return qw_json_first(json) == '"' ? qw_json_unquote(json, out, err) : repr(json, out, err);
}
