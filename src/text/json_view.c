/* json_view.c: see json_view.h. */
#include "text/json_view.h"

#include <stdint.h>
#include <string.h>

#include "base/utf8.h"

char qw_json_first(qw_text value)
{
    if (value.n == 0) return 'x';
    return strchr("{[\"tfn", value.s[0]) ? value.s[0] : '\0';
}

/* End of the string that begins at s[pos]. */
static size_t string_end(qw_text t, size_t pos)
{
    for (pos++; pos < t.n && t.s[pos] != '"'; pos++)
        if (t.s[pos] == '\\') pos++;
    return pos < t.n ? pos + 1 : t.n;
}

/* End of the value that begins at s[pos]: strings are skipped, brackets counted. */
static size_t value_end(qw_text t, size_t pos)
{
    size_t depth = 0;
    while (pos < t.n) {
        char c = t.s[pos];
        if (c == '"') {
            pos = string_end(t, pos);
        } else if (depth == 0 && (c == ',' || c == '}' || c == ']')) {
            return pos;
        } else {
            depth += c == '{' || c == '[';
            depth -= c == '}' || c == ']';
            pos++;
        }
        if (depth == 0 && (c == '"' || c == '}' || c == ']')) return pos;
    }
    return t.n;
}

bool qw_json_next(qw_text container, size_t *pos, qw_text *key, qw_text *value)
{
    size_t at = *pos == 0 ? 1 : *pos + 2; /* behind the bracket, or behind ", " */
    *key = (qw_text){0};
    if (container.n < 2 || at >= container.n - 1) return false;
    if (container.s[0] == '{') {
        size_t end = string_end(container, at);
        *key = (qw_text){container.s + at, end - at};
        at = end + 2;
    }
    *pos = value_end(container, at);
    *value = (qw_text){container.s + at, *pos - at};
    return true;
}

qw_text qw_json_member(qw_text object, const char *key)
{
    size_t pos = 0, n = strlen(key);
    qw_text name, value;
    if (qw_json_first(object) != '{') return (qw_text){0};
    while (qw_json_next(object, &pos, &name, &value))
        if (name.n == n + 2 && memcmp(name.s + 1, key, n) == 0) return value;
    return (qw_text){0};
}

static uint32_t hex4(const char *s)
{
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) v = v << 4 | (uint32_t)(s[i] <= '9' ? s[i] - '0' : (s[i] | 0x20) - 'a' + 10);
    return v;
}

qw_status qw_json_unquote(qw_text string, qw_buf *out, qw_err *err)
{
    static const char letters[] = "bfnrt", values[] = "\b\f\n\r\t";
    for (size_t i = 1; i + 1 < string.n;) {
        const char *stop = memchr(string.s + i, '\\', string.n - 1 - i);
        size_t run = stop ? (size_t)(stop - (string.s + i)) : string.n - 1 - i;
        QW_TRY(qw_buf_add(out, string.s + i, run, err));
        i += run;
        if (!stop) break;
        char c = string.s[i + 1], text[4];
        const char *at = strchr(letters, c);
        if (c == 'u') QW_TRY(qw_buf_add(out, text, (size_t)qw_utf8_encode(hex4(string.s + i + 2), text), err));
        else QW_TRY(qw_buf_add(out, at ? values + (at - letters) : &c, 1, err));
        i += c == 'u' ? 6 : 2;
    }
    return QW_OK;
}
