/* grammar_chars.c: see grammar_chars.h. Source of the classes: ECMA-262, CharacterClassEscape and CharacterEscape. */
#include "text/grammar_chars.h"

#include "base/utf8.h"

enum { CLASS_RANGES_MAX = 1024 };

uint32_t chars_peek(const chars *c)
{
    uint32_t cp = CHARS_NONE;
    if (!chars_end(c)) qw_utf8_decode(c->s + c->pos, c->n - c->pos, &cp);
    return cp;
}

uint32_t chars_next(chars *c)
{
    uint32_t cp = CHARS_NONE;
    if (!chars_end(c)) c->pos += (size_t)qw_utf8_decode(c->s + c->pos, c->n - c->pos, &cp);
    return cp;
}

bool chars_take(chars *c, char expected)
{
    if (chars_end(c) || c->s[c->pos] != expected) return false;
    c->pos++;
    return true;
}

bool chars_number(chars *c, uint32_t *value)
{
    size_t from = c->pos;
    *value = 0;
    for (; c->pos < c->n && c->s[c->pos] >= '0' && c->s[c->pos] <= '9' && c->pos - from < 7; c->pos++)
        *value = *value * 10 + (uint32_t)(c->s[c->pos] - '0');
    return c->pos > from;
}

bool chars_repeat_ok(chars *c, uint32_t min, uint32_t max)
{
    if (max < min) chars_bad(c, "a repetition whose numbers are out of order");
    if (min > GRAMMAR_REPEAT_MAX || (max != UINT32_MAX && max > GRAMMAR_REPEAT_MAX))
        grammar_fail(c->b, QW_E_LIMIT, "%s: a repetition at byte %zu is above %d", c->what, c->pos, GRAMMAR_REPEAT_MAX);
    return grammar_ok(c->b);
}

void chars_bad(chars *c, const char *sentence)
{
    grammar_fail(c->b, QW_E_ARG, "%s: %s, at byte %zu", c->what, sentence, c->pos);
}

void chars_refuse(chars *c, const char *what)
{
    grammar_fail(c->b, QW_E_UNSUPPORTED, "%s: %s cannot be had in an output's form, at byte %zu", c->what, what, c->pos);
}

/* ---- escapes ---------------------------------------------------------------------------------- */

static int hex_digit(const chars *c)
{
    if (chars_end(c)) return -1;
    char d = c->s[c->pos];
    if (d >= '0' && d <= '9') return d - '0';
    d |= 0x20;
    return d >= 'a' && d <= 'f' ? d - 'a' + 10 : -1;
}

static bool hex(chars *c, int n, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < n; i++) {
        int d = hex_digit(c);
        if (d < 0) return false;
        *value = *value << 4 | (uint32_t)d;
        c->pos++;
    }
    return true;
}

/* \uXXXX, a pair of them for a character above U+FFFF, or \u{X...}: the u was read. */
static bool unicode_escape(chars *c, uint32_t *cp)
{
    uint32_t low;
    if (chars_take(c, '{')) {
        *cp = 0;
        for (int d; (d = hex_digit(c)) >= 0 && *cp < CHARS_NONE; c->pos++) *cp = *cp << 4 | (uint32_t)d;
        return chars_take(c, '}') && *cp < CHARS_NONE;
    }
    if (!hex(c, 4, cp)) return false;
    if (*cp >= 0xD800 && *cp < 0xDC00 && chars_take(c, '\\')) {
        if (!chars_take(c, 'u') || !hex(c, 4, &low) || low < 0xDC00 || low > 0xDFFF) return false;
        *cp = 0x10000 + ((*cp - 0xD800) << 10) + (low - 0xDC00);
    }
    return *cp < 0xD800 || *cp > 0xDFFF;
}

/* \cX: the c was read. */
static bool control_escape(chars *c, uint32_t *cp)
{
    uint32_t letter = chars_next(c) | 0x20;
    *cp = letter & 0x1F;
    return letter >= 'a' && letter <= 'z';
}

static const struct {
    char letter;
    uint8_t n;
    cp_range ranges[11];
} classes[] = {
    {'d', 1, {{'0', '9'}}},
    {'w', 4, {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}}},
    {'s', 10, {{9, 13}, {' ', ' '}, {0xA0, 0xA0}, {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029},
               {0x202F, 0x202F}, {0x205F, 0x205F}, {0x3000, 0x3000}, {0xFEFF, 0xFEFF}}},
};

uint32_t chars_escape(chars *c, cp_range ranges[CHARS_RANGES_MAX], bool *negated)
{
    static const char letters[] = "tnvfr", values[] = "\t\n\v\f\r";
    uint32_t cp = chars_next(c);
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (cp == (uint32_t)classes[i].letter || cp == (uint32_t)(classes[i].letter - 0x20)) {
            memcpy(ranges, classes[i].ranges, sizeof classes[i].ranges);
            *negated = cp < 'a';
            return classes[i].n;
        }
    const char *at = cp > 0 && cp < 0x80 ? strchr(letters, (int)cp) : NULL;
    bool ok = true;
    if (at) cp = (uint32_t)values[at - letters];
    else if (cp == '0' && hex_digit(c) < 0) cp = 0;
    else if (cp == 'x') ok = hex(c, 2, &cp);
    else if (cp == 'u') ok = unicode_escape(c, &cp);
    else if (cp == 'c') ok = control_escape(c, &cp);
    else if (cp == 'p' || cp == 'P') chars_refuse(c, "\\p, properties of characters,");
    else if (cp == 'b' || cp == 'B') chars_refuse(c, "\\b, edges of words,");
    else if (cp == 'k' || (cp >= '0' && cp <= '9')) chars_refuse(c, "a reference to a group");
    else if ((cp >= 'a' && cp <= 'z') || (cp >= 'A' && cp <= 'Z') || cp == CHARS_NONE) ok = false;
    if (!ok) chars_bad(c, "an escape that does not exist");
    ranges[0] = (cp_range){cp, cp};
    return grammar_ok(c->b) ? 1 : 0;
}

/* ---- classes ---------------------------------------------------------------------------------- */

typedef struct class_ranges {
    cp_range ranges[CLASS_RANGES_MAX];
    uint32_t n;
} class_ranges;

/* One member of a class. *single: a character, which may begin or end a range. */
static bool class_member(chars *c, class_ranges *out, bool *single)
{
    cp_range ranges[CHARS_RANGES_MAX + 1];
    bool negated = false;
    uint32_t n = 1, from = 0;
    *single = true;
    if (out->n + CHARS_RANGES_MAX > CLASS_RANGES_MAX) {
        chars_bad(c, "a class with too many members");
        return false;
    }
    if (chars_take(c, '\\')) {
        if (chars_take(c, 'b')) { /* in a class it is the backspace */
            ranges[0] = (cp_range){'\b', '\b'};
        } else if (chars_peek(c) == '-') {
            ranges[0].lo = ranges[0].hi = chars_next(c);
        } else {
            n = chars_escape(c, ranges, &negated);
            *single = n == 1 && !negated && ranges[0].lo == ranges[0].hi;
        }
    } else {
        ranges[0].lo = ranges[0].hi = chars_next(c);
    }
    if (!grammar_ok(c->b)) return false;
    if (!negated) {
        memcpy(out->ranges + out->n, ranges, n * sizeof *ranges);
        out->n += n;
        return true;
    }
    for (uint32_t i = 0; i < n; i++) { /* those of an escape are in order */
        if (ranges[i].lo > from) out->ranges[out->n++] = (cp_range){from, ranges[i].lo - 1};
        from = ranges[i].hi + 1;
    }
    out->ranges[out->n++] = (cp_range){from, CHARS_NONE - 1};
    return true;
}

uint32_t chars_class(chars *c, grammar_build *b)
{
    class_ranges members, *out = &members;
    chars_take(c, '[');
    bool negated = chars_take(c, '^'), single, second;
    members.n = 0;
    while (grammar_ok(b) && !chars_end(c) && c->s[c->pos] != ']') {
        if (!class_member(c, out, &single)) return 0;
        if (chars_peek(c) != '-' || c->pos + 1 >= c->n || c->s[c->pos + 1] == ']') continue;
        uint32_t lo = out->ranges[out->n - 1].lo;
        chars_take(c, '-');
        if (!class_member(c, out, &second)) return 0;
        uint32_t hi = out->ranges[out->n - 1].lo;
        if (!single || !second || hi < lo) {
            chars_bad(c, "a range in a class that is none");
            return 0;
        }
        out->n--;
        out->ranges[out->n - 1] = (cp_range){lo, hi};
    }
    if (!chars_take(c, ']')) chars_bad(c, "a class is not closed");
    return grammar_ok(b) ? ast_set(b, members.ranges, members.n, negated) : 0;
}
