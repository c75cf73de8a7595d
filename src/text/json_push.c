/* json_push.c: see json_push.h. */
#include "text/json_push.h"

#include <stddef.h>
#include <string.h>

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool to(qw_json_push *p, qw_json_state state)
{
    p->state = state;
    return state != QW_JSON_BAD;
}

/* A value has ended. */
static bool ended(qw_json_push *p)
{
    return to(p, p->depth > 0 ? QW_JSON_AFTER : QW_JSON_DONE);
}

static bool open_level(qw_json_push *p, bool object)
{
    if (p->depth == QW_JSON_DEPTH_MAX) return to(p, QW_JSON_BAD);
    p->depth++;
    p->objects = p->objects << 1 | object;
    return to(p, object ? QW_JSON_FIRST_KEY : QW_JSON_FIRST);
}

static bool close_level(qw_json_push *p, char c)
{
    if (p->depth == 0 || (c == '}') != (p->objects & 1)) return to(p, QW_JSON_BAD);
    p->depth--;
    p->objects >>= 1;
    return ended(p);
}

static bool begin_value(qw_json_push *p, char c)
{
    p->key = false;
    switch (c) {
    case '{':
    case '[': return open_level(p, c == '{');
    case ']': return p->state == QW_JSON_FIRST ? close_level(p, c) : to(p, QW_JSON_BAD);
    case '"': return to(p, QW_JSON_STRING);
    case '-': return to(p, QW_JSON_MINUS);
    case '0': return to(p, QW_JSON_ZERO);
    case 't': p->word = "rue"; break;
    case 'f': p->word = "alse"; break;
    case 'n': p->word = "ull"; break;
    default: return to(p, is_digit(c) ? QW_JSON_WHOLE : QW_JSON_BAD);
    }
    return to(p, QW_JSON_WORD);
}

/* Between values: white space was taken already. */
static bool between(qw_json_push *p, char c)
{
    switch (p->state) {
    case QW_JSON_VALUE:
    case QW_JSON_FIRST: return begin_value(p, c);
    case QW_JSON_FIRST_KEY:
    case QW_JSON_KEY:
        if (c == '}' && p->state == QW_JSON_FIRST_KEY) return close_level(p, c);
        p->key = true;
        return to(p, c == '"' ? QW_JSON_STRING : QW_JSON_BAD);
    case QW_JSON_COLON: return to(p, c == ':' ? QW_JSON_VALUE : QW_JSON_BAD);
    case QW_JSON_AFTER:
        if (c == ',') return to(p, p->objects & 1 ? QW_JSON_KEY : QW_JSON_VALUE);
        return c == '}' || c == ']' ? close_level(p, c) : to(p, QW_JSON_BAD);
    default: return to(p, QW_JSON_BAD);
    }
}

static bool in_string(qw_json_push *p, char c)
{
    if (p->state == QW_JSON_ESCAPE) {
        p->left = 4;
        return to(p, c == 'u' ? QW_JSON_HEX : c && strchr("\"\\/bfnrt", c) ? QW_JSON_STRING : QW_JSON_BAD);
    }
    if (p->state == QW_JSON_HEX) {
        if (!is_digit(c) && !((c | 0x20) >= 'a' && (c | 0x20) <= 'f')) return to(p, QW_JSON_BAD);
        return to(p, --p->left > 0 ? QW_JSON_HEX : QW_JSON_STRING);
    }
    if ((unsigned char)c < 0x20) return to(p, QW_JSON_BAD);
    if (c == '\\') return to(p, QW_JSON_ESCAPE);
    if (c != '"') return true;
    return p->key ? to(p, QW_JSON_COLON) : ended(p);
}

/* A byte of a number; what cannot belong to it ends it, where it may end, and is looked at again. */
static bool in_number(qw_json_push *p, char c)
{
    bool whole = p->state == QW_JSON_ZERO || p->state == QW_JSON_WHOLE, digit = is_digit(c);
    bool exponent = whole || p->state == QW_JSON_FRACTION;
    if (digit) {
        switch (p->state) {
        case QW_JSON_MINUS: return to(p, c == '0' ? QW_JSON_ZERO : QW_JSON_WHOLE);
        case QW_JSON_WHOLE: return true;
        case QW_JSON_POINT:
        case QW_JSON_FRACTION: return to(p, QW_JSON_FRACTION);
        case QW_JSON_ZERO: return to(p, QW_JSON_BAD);
        default: return to(p, QW_JSON_EXPONENT);
        }
    }
    if (whole && c == '.') return to(p, QW_JSON_POINT);
    if (exponent && (c == 'e' || c == 'E')) return to(p, QW_JSON_E);
    if (p->state == QW_JSON_E && (c == '+' || c == '-')) return to(p, QW_JSON_SIGN);
    if (!exponent && p->state != QW_JSON_EXPONENT) return to(p, QW_JSON_BAD);
    ended(p);
    return is_space(c) || between(p, c);
}

bool qw_json_push_byte(qw_json_push *p, char c)
{
    switch (p->state) {
    case QW_JSON_STRING:
    case QW_JSON_ESCAPE:
    case QW_JSON_HEX: return in_string(p, c);
    case QW_JSON_MINUS:
    case QW_JSON_ZERO:
    case QW_JSON_WHOLE:
    case QW_JSON_POINT:
    case QW_JSON_FRACTION:
    case QW_JSON_E:
    case QW_JSON_SIGN:
    case QW_JSON_EXPONENT: return in_number(p, c);
    case QW_JSON_WORD:
        if (c != *p->word) return to(p, QW_JSON_BAD);
        return *++p->word ? true : ended(p);
    case QW_JSON_BAD: return false;
    default: return is_space(c) || between(p, c);
    }
}
