/* grammar_regex.c: regular expressions of ECMA-262 as expressions of the grammar compiler.
 *
 * The part of the notation that is regular: what needs memory or looks around (\1, (?=...), \b) is refused by name.
 * There is no backtracking anywhere: the expression becomes a deterministic automaton of bounded size. Owner: the
 * thread that compiles.
 */
#include "base/utf8.h"
#include "text/grammar_chars.h"

typedef struct regex {
    grammar_build *b;
    chars c;
    int depth;
} regex;

static uint32_t alternatives(regex *x);

static bool at_end(const regex *x)
{
    return chars_end(&x->c);
}

/* {m}, {m,}, {m,n}; false where the brace is none and stands for itself. */
static bool braces(regex *x, uint32_t *min, uint32_t *max)
{
    chars saved = x->c;
    chars_take(&x->c, '{');
    bool ok = chars_number(&x->c, min);
    *max = *min;
    if (ok && chars_take(&x->c, ',')) {
        *max = UINT32_MAX;
        if (chars_peek(&x->c) != '}') ok = chars_number(&x->c, max);
    }
    ok = ok && chars_take(&x->c, '}');
    if (!ok) x->c = saved;
    return ok;
}

/* A quantifier behind an atom, if there is one. Lazy or not: the texts are the same. */
static uint32_t quantified(regex *x, uint32_t atom)
{
    uint32_t min = 0, max = UINT32_MAX;
    switch (chars_peek(&x->c)) {
    case '*': chars_take(&x->c, '*'); break;
    case '+': min = chars_take(&x->c, '+'); break;
    case '?': max = chars_take(&x->c, '?'); break;
    case '{':
        if (!braces(x, &min, &max)) return atom;
        break;
    default: return atom;
    }
    chars_take(&x->c, '?');
    if (!chars_repeat_ok(&x->c, min, max)) return 0;
    return ast_repeat(x->b, atom, min, max);
}

/* (...), (?:...), (?<name>...) */
static uint32_t group(regex *x)
{
    chars_take(&x->c, '(');
    if (chars_take(&x->c, '?')) {
        if (chars_take(&x->c, ':')) {
            /* nothing is captured anyway */
        } else if (chars_take(&x->c, '<') && chars_peek(&x->c) != '=' && chars_peek(&x->c) != '!') {
            while (!at_end(x) && chars_peek(&x->c) != '>') chars_next(&x->c);
            chars_take(&x->c, '>');
        } else {
            chars_refuse(&x->c, "looking ahead or behind, and flags of groups");
            return 0;
        }
    }
    if (++x->depth > GRAMMAR_NEST_MAX) {
        grammar_fail(x->b, QW_E_LIMIT, "%s: groups are nested deeper than %d", x->c.what, GRAMMAR_NEST_MAX);
        return 0;
    }
    uint32_t inner = alternatives(x);
    x->depth--;
    if (!chars_take(&x->c, ')')) chars_bad(&x->c, "a group is not closed");
    return inner;
}

static uint32_t escaped(regex *x)
{
    cp_range ranges[CHARS_RANGES_MAX];
    bool negated = false;
    chars_take(&x->c, '\\');
    uint32_t n = chars_escape(&x->c, ranges, &negated);
    return n ? ast_set(x->b, ranges, n, negated) : 0;
}

static uint32_t atom(regex *x)
{
    static const cp_range lines[] = {{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};
    switch (chars_peek(&x->c)) {
    case '(': return group(x);
    case '[': return chars_class(&x->c, x->b);
    case '\\': return escaped(x);
    case '.': chars_take(&x->c, '.'); return ast_set(x->b, lines, 3, true);
    case '*':
    case '+':
    case '?': chars_bad(&x->c, "nothing to repeat"); return 0;
    default: {
        uint32_t c = chars_next(&x->c);
        return ast_range(x->b, c, c);
    }
    }
}

static uint32_t sequence(regex *x)
{
    uint32_t cat = ast_new(x->b, AST_CAT, 0, 0);
    while (grammar_ok(x->b) && !at_end(x) && chars_peek(&x->c) != '|' && chars_peek(&x->c) != ')') {
        if (chars_take(&x->c, '^')) ast_add(x->b, cat, ast_new(x->b, AST_BEGIN, 0, 0));
        else if (chars_take(&x->c, '$')) ast_add(x->b, cat, ast_new(x->b, AST_END, 0, 0));
        else ast_add(x->b, cat, quantified(x, atom(x)));
    }
    return cat;
}

static uint32_t alternatives(regex *x)
{
    uint32_t alt = ast_new(x->b, AST_ALT, 0, 0);
    do ast_add(x->b, alt, sequence(x));
    while (grammar_ok(x->b) && chars_take(&x->c, '|'));
    return alt;
}

uint32_t grammar_regex_ast(grammar_build *b, qw_text pattern, bool whole, const char *what)
{
    regex x = {.b = b, .c = {.b = b, .s = pattern.s, .n = pattern.n, .what = what}};
    if (!grammar_ok(b)) return 0;
    if (!qw_utf8_valid(pattern.s, pattern.n)) {
        grammar_fail(b, QW_E_ARG, "%s: the expression is not UTF-8", what);
        return 0;
    }
    uint32_t inner = alternatives(&x), all = ast_new(b, AST_CAT, 0, 0);
    if (!at_end(&x)) chars_bad(&x.c, "a ) without its (");
    if (!whole) ast_add(b, all, ast_repeat(b, ast_any(b), 0, UINT32_MAX));
    ast_add(b, all, inner);
    if (!whole) ast_add(b, all, ast_repeat(b, ast_any(b), 0, UINT32_MAX));
    return grammar_ok(b) ? all : 0;
}
