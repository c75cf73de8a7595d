/* pretok.c: the pre-tokenizers `qwen2` and `qwen35` as a hand-written matcher.
 *
 * Each piece is what this regular expression matches, alternatives tried in order:
 *   1  (?i:'s|'t|'re|'ve|'m|'ll|'d)      the case folding lets U+017F stand for s
 *   2  [^\r\n\p{L}\p{N}]?\p{L}+
 *   3  \p{N}
 *   4   ?[^\s\p{L}\p{N}]+[\r\n]*
 *   5  \s*[\r\n]+                         backtracks to the last line break of the white space
 *   6  \s+(?!\S)                          leaves the last white space before a word to it
 *   7  \s+
 * qwen35 has [\p{L}\p{M}] for \p{L} in the body of 2 and in the class of 4. Any thread; no state.
 */
#include "text/pretok.h"

#include <stdbool.h>

#include "text/unicode_tables.h"

#define BIT(class) (1u << (class))

/* Set of the classes of the code point at pos as one bit; *len becomes its length. */
static inline unsigned class_at(const char *s, size_t pos, size_t *len)
{
    return BIT(qw_unicode(qw_unicode_read(s + pos, len)) & QW_UNI_CLASS);
}

static inline bool is_break(char c)
{
    return c == '\r' || c == '\n';
}

/* End of the longest run of code points of the given classes from pos on. */
static size_t run_end(const char *s, size_t n, size_t pos, unsigned classes)
{
    size_t len;
    while (pos < n && (class_at(s, pos, &len) & classes)) pos += len;
    return pos;
}

/* Length of a contraction's letters at s, after the apostrophe, or 0. */
static size_t contraction(const char *s, size_t n)
{
    if (n >= 2 && (unsigned char)s[0] == 0xC5 && (unsigned char)s[1] == 0xBF) return 2; /* U+017F */
    if (n == 0) return 0;
    char a = (char)(s[0] | 0x20), b = n >= 2 ? (char)(s[1] | 0x20) : '\0';
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 1;
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 2;
    return 0;
}

/* Alternatives 5 to 7: white space at pos. */
static size_t space_end(const char *s, size_t n, size_t pos)
{
    size_t end = pos, last = pos, after_break = 0, len;
    while (end < n && (class_at(s, end, &len) & BIT(QW_UNI_SPACE))) {
        if (is_break(s[end])) after_break = end + 1;
        last = end;
        end += len;
    }
    if (after_break) return after_break;
    return end == n || last == pos ? end : last;
}

size_t qw_pretok_next(qw_pre pre, const char *s, size_t n, size_t pos)
{
    const unsigned word = pre == QW_PRE_QWEN35 ? BIT(QW_UNI_LETTER) | BIT(QW_UNI_MARK) : BIT(QW_UNI_LETTER);
    const unsigned punct = ~(word | BIT(QW_UNI_NUMBER) | BIT(QW_UNI_SPACE));
    size_t len, next_len;
    if (s[pos] == '\'') {
        size_t letters = contraction(s + pos + 1, n - pos - 1);
        if (letters) return pos + 1 + letters;
    }
    unsigned class = class_at(s, pos, &len);
    if (class & word) return run_end(s, n, pos + len, word);
    unsigned next = pos + len < n ? class_at(s, pos + len, &next_len) : 0;
    if (class & BIT(QW_UNI_NUMBER)) return pos + len;
    if ((next & word) && !is_break(s[pos])) return run_end(s, n, pos + len, word);
    if ((class & punct) || (s[pos] == ' ' && (next & punct))) {
        size_t end = run_end(s, n, pos + len, punct);
        while (end < n && is_break(s[end])) end++;
        return end;
    }
    return space_end(s, n, pos);
}
