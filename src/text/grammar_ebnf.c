/* grammar_ebnf.c: grammars in a small notation, and choices.
 *
 *   name ::= "text" other [a-z0-9]+ ( "x" | "y" )? .{2,5}    # to the end of the line
 *
 * A rule goes on until the next one begins. Escapes and classes are those of regular expressions. Owner: the thread
 * that compiles.
 */
#include "base/utf8.h"
#include "text/grammar_chars.h"

typedef struct ebnf {
    grammar_build *b;
    chars c;
    int depth;
} ebnf;

static uint32_t alternatives(ebnf *x);

static void skip_space(ebnf *x)
{
    while (!chars_end(&x->c)) {
        char c = x->c.s[x->c.pos];
        if (c == '#')
            while (!chars_end(&x->c) && x->c.s[x->c.pos] != '\n') x->c.pos++;
        else if (c == ' ' || c == '\t' || c == '\n' || c == '\r') x->c.pos++;
        else return;
    }
}

static bool is_name(char c, bool first)
{
    char lower = (char)(c | 0x20);
    return (lower >= 'a' && lower <= 'z') || c == '_' || (!first && ((c >= '0' && c <= '9') || c == '-'));
}

/* The name here, or an empty text; does not move. */
static qw_text peek_name(const ebnf *x)
{
    qw_text name = {x->c.s + x->c.pos, 0};
    while (x->c.pos + name.n < x->c.n && is_name(name.s[name.n], name.n == 0)) name.n++;
    return name;
}

/* Reads "::=" or "=". */
static bool take_is(ebnf *x)
{
    size_t from = x->c.pos;
    if (chars_take(&x->c, ':') && !chars_take(&x->c, ':')) x->c.pos = from;
    if (chars_take(&x->c, '=')) return true;
    x->c.pos = from;
    return false;
}

/* Does a rule begin here? Does not move. */
static bool rule_begins(ebnf *x)
{
    size_t from = x->c.pos;
    x->c.pos += peek_name(x).n;
    skip_space(x);
    bool is = x->c.pos > from && take_is(x);
    x->c.pos = from;
    return is;
}

/* Number of a name's rule, made when it is new. */
static uint32_t rule_named(ebnf *x, qw_text name)
{
    grammar_build *b = x->b;
    if (name.n >= sizeof b->rules->name) {
        grammar_fail(b, QW_E_LIMIT, "the grammar: a rule's name at byte %zu has more than %zu characters", x->c.pos,
                     sizeof b->rules->name - 1);
        return 0;
    }
    for (uint32_t i = 1; i < b->n_rules && grammar_work(b, 1); i++)
        if (strlen(b->rules[i].name) == name.n && memcmp(b->rules[i].name, name.s, name.n) == 0) return i;
    uint32_t rule = grammar_rule_new(b, RULE_AST);
    if (rule) memcpy(b->rules[rule].name, name.s, name.n);
    return rule;
}

/* "text" or 'text' */
static uint32_t literal(ebnf *x, char quote)
{
    uint32_t cat = ast_new(x->b, AST_CAT, 0, 0);
    chars_take(&x->c, quote);
    while (grammar_ok(x->b) && !chars_end(&x->c) && x->c.s[x->c.pos] != quote) {
        cp_range ranges[CHARS_RANGES_MAX];
        bool negated = false;
        char text[4];
        if (chars_take(&x->c, '\\')) {
            if (chars_escape(&x->c, ranges, &negated) != 1 || negated || ranges[0].lo != ranges[0].hi)
                chars_bad(&x->c, "an escape that is no character");
        } else {
            ranges[0].lo = chars_next(&x->c);
        }
        if (grammar_ok(x->b)) ast_add(x->b, cat, ast_bytes(x->b, text, (size_t)qw_utf8_encode(ranges[0].lo, text)));
    }
    if (!chars_take(&x->c, quote)) chars_bad(&x->c, "a text is not closed");
    return cat;
}

static uint32_t group(ebnf *x)
{
    chars_take(&x->c, '(');
    if (++x->depth > GRAMMAR_NEST_MAX) {
        grammar_fail(x->b, QW_E_LIMIT, "the grammar: groups are nested deeper than %d", GRAMMAR_NEST_MAX);
        return 0;
    }
    uint32_t inner = alternatives(x);
    x->depth--;
    if (!chars_take(&x->c, ')')) chars_bad(&x->c, "a group is not closed");
    return inner;
}

static uint32_t term(ebnf *x)
{
    char c = x->c.s[x->c.pos];
    qw_text name = peek_name(x);
    if (name.n > 0) {
        uint32_t rule = rule_named(x, name);
        x->c.pos += name.n;
        return rule ? ast_call(x->b, rule) : 0;
    }
    if (c == '"' || c == '\'') return literal(x, c);
    if (c == '[') return chars_class(&x->c, x->b);
    if (c == '(') return group(x);
    if (chars_take(&x->c, '.')) return ast_any(x->b);
    chars_bad(&x->c, "a text, a class, a group or a rule's name was expected");
    return 0;
}

static uint32_t quantified(ebnf *x, uint32_t inner)
{
    uint32_t min = 0, max = UINT32_MAX;
    skip_space(x);
    if (chars_take(&x->c, '*')) {
        /* any number */
    } else if (chars_take(&x->c, '+')) {
        min = 1;
    } else if (chars_take(&x->c, '?')) {
        max = 1;
    } else if (chars_take(&x->c, '{')) {
        bool ok = chars_number(&x->c, &min);
        max = min;
        if (ok && chars_take(&x->c, ',')) {
            max = UINT32_MAX;
            if (chars_peek(&x->c) != '}') ok = chars_number(&x->c, &max);
        }
        if (!ok || !chars_take(&x->c, '}')) chars_bad(&x->c, "a repetition is {m}, {m,} or {m,n}");
    } else {
        return inner;
    }
    return chars_repeat_ok(&x->c, min, max) ? ast_repeat(x->b, inner, min, max) : 0;
}

static uint32_t sequence(ebnf *x)
{
    uint32_t cat = ast_new(x->b, AST_CAT, 0, 0);
    for (skip_space(x); grammar_ok(x->b) && !chars_end(&x->c); skip_space(x)) {
        char c = x->c.s[x->c.pos];
        if (c == '|' || c == ')' || c == ';' || rule_begins(x)) break;
        ast_add(x->b, cat, quantified(x, term(x)));
    }
    return cat;
}

static uint32_t alternatives(ebnf *x)
{
    uint32_t alt = ast_new(x->b, AST_ALT, 0, 0);
    do ast_add(x->b, alt, sequence(x));
    while (grammar_ok(x->b) && chars_take(&x->c, '|'));
    return alt;
}

static void rule(ebnf *x)
{
    qw_text name = peek_name(x);
    if (name.n == 0 || !rule_begins(x)) {
        chars_bad(&x->c, "a rule begins with its name and ::=");
        return;
    }
    uint32_t number = rule_named(x, name);
    x->c.pos += name.n;
    skip_space(x);
    take_is(x);
    uint32_t body = alternatives(x);
    if (!grammar_ok(x->b)) return;
    if (x->b->rules[number].defined)
        grammar_fail(x->b, QW_E_ARG, "the grammar: the rule %s is there twice", x->b->rules[number].name);
    x->b->rules[number].defined = true;
    x->b->rules[number].ast = body;
    chars_take(&x->c, ';');
}

uint32_t grammar_ebnf_rules(grammar_build *b, qw_text source)
{
    ebnf x = {.b = b, .c = {.b = b, .s = source.s, .n = source.n, .what = "the grammar"}};
    uint32_t first = b->n_rules, root = first;
    if (!grammar_ok(b)) return 0;
    if (!qw_utf8_valid(source.s, source.n)) {
        grammar_fail(b, QW_E_ARG, "the grammar is not UTF-8");
        return 0;
    }
    for (skip_space(&x); grammar_ok(b) && !chars_end(&x.c); skip_space(&x)) rule(&x);
    if (grammar_ok(b) && b->n_rules == first) grammar_fail(b, QW_E_ARG, "the grammar has no rule");
    for (uint32_t i = first; i < b->n_rules && grammar_ok(b); i++) {
        if (!b->rules[i].defined)
            grammar_fail(b, QW_E_ARG, "the grammar: the rule %s is used and not there", b->rules[i].name);
        if (strcmp(b->rules[i].name, "root") == 0) root = i;
    }
    return grammar_ok(b) ? root : 0;
}
