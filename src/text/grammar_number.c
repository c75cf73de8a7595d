/* grammar_number.c: numbers between bounds, digit by digit.
 *
 * A bound is compared as a decimal, exactly: a number is above another when it has more digits before the point, or a
 * greater digit where they first differ. That is a regular language, so bounds become automata and are intersected
 * with the form that numbers are written in. Numbers with bounds have at most 15 significant digits: that many read
 * back as different doubles, so whoever compares them as doubles comes to the same result. Owner: the thread that
 * compiles.
 */
#include <stdlib.h>

#include "text/grammar_private.h"

enum {
    INTEGER_DIGITS = 18,   /* of an integer */
    NUMBER_DIGITS = 15,    /* of a number with bounds, before and behind the point together */
    DECIMAL_MAX = 64,      /* digits kept of a bound on each side of the point */
    EXPONENT_FAR = 100000,
    MULTIPLE_STATES = 4096
};

/* A JSON number as decimal digits. whole: without leading zeros; fraction: without trailing ones. */
typedef struct decimal {
    bool negative, huge;   /* huge: more digits before the point than are kept */
    bool more;             /* more digits behind the point than are kept, not all zero */
    uint8_t whole[DECIMAL_MAX], fraction[DECIMAL_MAX];
    int n_whole, n_fraction;
} decimal;

/* Digit at a power of ten of the digits in text, whose last one has the power `last`. */
static void place_digit(decimal *d, int digit, long power)
{
    if (digit == 0 && !(power >= 0 && d->n_whole > 0)) return;
    if (power >= DECIMAL_MAX) {
        d->huge |= digit != 0;
    } else if (power >= 0) {
        if (d->n_whole == 0) d->n_whole = (int)power + 1;
        d->whole[d->n_whole - 1 - (int)power] = (uint8_t)digit;
    } else if (-power <= DECIMAL_MAX) {
        d->fraction[-power - 1] = (uint8_t)digit;
        if (-power > d->n_fraction) d->n_fraction = (int)-power;
    } else {
        d->more = true;
    }
}

static decimal decimal_of(qw_text t)
{
    decimal d = {0};
    size_t i = 0, end, n_whole = 0;
    long exponent = 0;
    bool minus = false, point = false;
    d.negative = t.n > 0 && t.s[0] == '-';
    i = d.negative;
    for (end = i; end < t.n && t.s[end] != 'e' && t.s[end] != 'E'; end++) {
        point |= t.s[end] == '.';
        n_whole += !point;
    }
    for (size_t k = end + 1; k < t.n; k++) {
        if (t.s[k] == '-') minus = true;
        else if (t.s[k] != '+' && exponent < EXPONENT_FAR) exponent = exponent * 10 + (t.s[k] - '0');
    }
    long power = (long)n_whole - 1 + (minus ? -exponent : exponent);
    for (; i < end; i++)
        if (t.s[i] != '.') place_digit(&d, t.s[i] - '0', power--);
    return d;
}

static bool is_zero(const decimal *d)
{
    return d->n_whole == 0 && d->n_fraction == 0 && !d->huge && !d->more;
}

static int compare_sizes(const decimal *x, const decimal *y)
{
    if (x->huge != y->huge) return x->huge ? 1 : -1;
    if (x->n_whole != y->n_whole) return x->n_whole > y->n_whole ? 1 : -1;
    int order = memcmp(x->whole, y->whole, (size_t)x->n_whole);
    if (order == 0) order = memcmp(x->fraction, y->fraction, sizeof x->fraction);
    if (order == 0) order = (int)x->more - (int)y->more;
    return order;
}

int grammar_number_compare(qw_text x, qw_text y)
{
    decimal a = decimal_of(x), b = decimal_of(y);
    if (is_zero(&a) && is_zero(&b)) return 0;
    bool a_minus = a.negative && !is_zero(&a), b_minus = b.negative && !is_zero(&b);
    if (a_minus != b_minus) return a_minus ? -1 : 1;
    return a_minus ? compare_sizes(&b, &a) : compare_sizes(&a, &b);
}

bool grammar_number_is_integer(qw_text x)
{
    decimal d = decimal_of(x);
    return d.n_fraction == 0 && !d.more;
}

/* ---- digits as expressions -------------------------------------------------------------------- */

static uint32_t digit_range(grammar_build *b, unsigned lo, unsigned hi)
{
    return ast_range(b, '0' + lo, '0' + hi);
}

static uint32_t digits(grammar_build *b, uint32_t min, uint32_t max)
{
    return ast_repeat(b, digit_range(b, 0, 9), min, max);
}

/* Digits d[0, n) as they are. */
static uint32_t exactly(grammar_build *b, const uint8_t *d, int n)
{
    char text[DECIMAL_MAX];
    for (int i = 0; i < n; i++) text[i] = (char)('0' + d[i]);
    return ast_bytes(b, text, (size_t)n);
}

/* A point and digits, or nothing. */
static uint32_t any_fraction(grammar_build *b)
{
    return ast_repeat(b, ast_cat(b, ast_text(b, "."), digits(b, 1, UINT32_MAX)), 0, 1);
}

static uint32_t cat3(grammar_build *b, uint32_t x, uint32_t y, uint32_t z)
{
    return ast_cat(b, ast_cat(b, x, y), z);
}

/* Whole parts of n digits that first differ from d at a place, where they are greater (or smaller); any fraction. */
static void add_differing(grammar_build *b, uint32_t alt, const decimal *d, bool greater)
{
    for (int p = 0; p < d->n_whole; p++) {
        unsigned own = d->whole[p], lo = greater ? own + 1 : p == 0, hi = greater ? 9 : own - 1;
        if ((greater && own == 9) || (!greater && own <= (p == 0))) continue;
        uint32_t rest = (uint32_t)(d->n_whole - p - 1);
        uint32_t tail = ast_cat(b, digits(b, rest, rest), any_fraction(b));
        ast_add(b, alt, cat3(b, exactly(b, d->whole, p), digit_range(b, lo, hi), tail));
    }
}

static uint32_t same_whole(grammar_build *b, const decimal *d)
{
    return d->n_whole ? exactly(b, d->whole, d->n_whole) : ast_text(b, "0");
}

/* Zeros, a digit that is none, any digits. */
static uint32_t not_zero(grammar_build *b)
{
    return cat3(b, ast_repeat(b, digit_range(b, 0, 0), 0, UINT32_MAX), digit_range(b, 1, 9), digits(b, 0, UINT32_MAX));
}

/* Numbers without sign that are at least d; strict: above it. */
static uint32_t at_least(grammar_build *b, const decimal *d, bool strict)
{
    uint32_t alt = ast_new(b, AST_ALT, 0, 0), same = ast_new(b, AST_ALT, 0, 0);
    if (d->huge) return ast_new(b, AST_NEVER, 0, 0);
    strict |= d->more;
    ast_add(b, alt, cat3(b, digit_range(b, 1, 9), digits(b, (uint32_t)d->n_whole, UINT32_MAX), any_fraction(b)));
    add_differing(b, alt, d, true);
    for (int p = 0; p < d->n_fraction; p++)
        if (d->fraction[p] < 9)
            ast_add(b, same, cat3(b, exactly(b, d->fraction, p), digit_range(b, d->fraction[p] + 1u, 9),
                                  digits(b, 0, UINT32_MAX)));
    ast_add(b, same, ast_cat(b, exactly(b, d->fraction, d->n_fraction), strict ? not_zero(b) : digits(b, 0, UINT32_MAX)));
    same = ast_cat(b, ast_text(b, "."), same);
    if (d->n_fraction == 0 && !strict) same = ast_repeat(b, same, 0, 1);
    ast_add(b, alt, ast_cat(b, same_whole(b, d), same));
    return alt;
}

/* Numbers without sign that are at most d; strict: below it. */
static uint32_t at_most(grammar_build *b, const decimal *d, bool strict)
{
    uint32_t alt = ast_new(b, AST_ALT, 0, 0), same = ast_new(b, AST_ALT, 0, 0);
    if (d->huge) return ast_cat(b, digits(b, 1, UINT32_MAX), any_fraction(b));
    if (d->more) strict = false; /* what is cut off makes d greater than the digits here */
    if (d->n_whole >= 1) ast_add(b, alt, ast_cat(b, ast_text(b, "0"), any_fraction(b)));
    if (d->n_whole >= 2)
        ast_add(b, alt, cat3(b, digit_range(b, 1, 9), digits(b, 0, (uint32_t)d->n_whole - 2), any_fraction(b)));
    add_differing(b, alt, d, false);
    for (int p = 0; p < d->n_fraction; p++) {
        if (d->fraction[p] > 0)
            ast_add(b, same, cat3(b, exactly(b, d->fraction, p), digit_range(b, 0, d->fraction[p] - 1u),
                                  digits(b, 0, UINT32_MAX)));
        if (p > 0) ast_add(b, same, exactly(b, d->fraction, p));
    }
    if (!strict)
        ast_add(b, same, ast_cat(b, exactly(b, d->fraction, d->n_fraction),
                                 ast_repeat(b, digit_range(b, 0, 0), 0, UINT32_MAX)));
    same = ast_cat(b, ast_text(b, "."), same);
    if (d->n_fraction > 0 || !strict) same = ast_repeat(b, same, 0, 1);
    ast_add(b, alt, ast_cat(b, same_whole(b, d), same));
    return alt;
}

/* ---- the whole -------------------------------------------------------------------------------- */

static uint32_t whole_digits(grammar_build *b, uint32_t max)
{
    uint32_t alt = ast_new(b, AST_ALT, 0, 0);
    ast_add(b, alt, ast_text(b, "0"));
    ast_add(b, alt, ast_cat(b, digit_range(b, 1, 9), digits(b, 0, max - 1)));
    return alt;
}

/* How a number is written: integers, or up to NUMBER_DIGITS digits. */
static uint32_t form(grammar_build *b, bool integer)
{
    if (integer) return whole_digits(b, INTEGER_DIGITS);
    uint32_t alt = ast_new(b, AST_ALT, 0, 0);
    for (uint32_t k = 1; k <= NUMBER_DIGITS; k++) {
        uint32_t whole = k == 1 ? digit_range(b, 0, 9) : ast_cat(b, digit_range(b, 1, 9), digits(b, k - 1, k - 1));
        uint32_t fraction = k == NUMBER_DIGITS ? ast_new(b, AST_EMPTY, 0, 0)
                            : ast_repeat(b, ast_cat(b, ast_text(b, "."), digits(b, 1, NUMBER_DIGITS - k)), 0, 1);
        ast_add(b, alt, ast_cat(b, whole, fraction));
    }
    return alt;
}

/* Multiples of m: a state for each remainder. */
static uint32_t multiples(grammar_build *b, uint32_t m)
{
    uint32_t index = grammar_dfa_new(b);
    for (uint32_t r = 0; r < m && grammar_ok(b); r++) {
        dfa_add_state(b, &b->dfas[index], r == 0);
        for (uint32_t c = 0; c < 10 && grammar_ok(b); c++)
            dfa_add_edge(b, &b->dfas[index], (uint8_t)('0' + c), (uint8_t)('0' + c), (r * 10 + c) % m);
    }
    return index;
}

static uint32_t narrowed(grammar_build *b, uint32_t dfa, uint32_t ast)
{
    return grammar_dfa_both(b, dfa, grammar_dfa_one(b, ast, FORM_RAW));
}

/* Numbers of one sign between the bounds, as an expression without the sign. */
static uint32_t one_sign(grammar_build *b, const number_bounds *bounds, bool minus)
{
    static const decimal zero;
    decimal min = decimal_of(bounds->min), max = decimal_of(bounds->max);
    bool min_minus = min.negative && !is_zero(&min), max_minus = max.negative && !is_zero(&max);
    if (minus ? bounds->min.s && !min_minus : bounds->max.s && max_minus) return ast_new(b, AST_NEVER, 0, 0);
    uint32_t dfa = grammar_dfa_one(b, form(b, bounds->integer), FORM_RAW);
    if (minus) dfa = narrowed(b, dfa, at_least(b, &zero, true)); /* there is no -0 */
    if (minus && bounds->min.s) dfa = narrowed(b, dfa, at_most(b, &min, bounds->min_exclusive));
    if (minus && max_minus) dfa = narrowed(b, dfa, at_least(b, &max, bounds->max_exclusive));
    if (!minus && bounds->min.s && !min_minus) dfa = narrowed(b, dfa, at_least(b, &min, bounds->min_exclusive));
    if (!minus && bounds->max.s) dfa = narrowed(b, dfa, at_most(b, &max, bounds->max_exclusive));
    if (bounds->multiple > 1) dfa = grammar_dfa_both(b, dfa, multiples(b, bounds->multiple));
    return ast_new(b, AST_DFA, dfa, 0);
}

/* Any number: up to 18 digits before the point, 17 behind it, an exponent of one or two. */
static uint32_t free_number(grammar_build *b)
{
    static const char pattern[] = "-?(?:0|[1-9][0-9]{0,17})(?:\\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,2})?";
    return grammar_regex_ast(b, (qw_text){pattern, sizeof pattern - 1}, true, "numbers");
}

uint32_t grammar_number_ast(grammar_build *b, const number_bounds *bounds)
{
    if (!bounds->integer && !bounds->min.s && !bounds->max.s && bounds->multiple == 0) return free_number(b);
    if (bounds->multiple > MULTIPLE_STATES) {
        grammar_fail(b, QW_E_LIMIT, "multipleOf is above %d", MULTIPLE_STATES);
        return 0;
    }
    uint32_t alt = ast_new(b, AST_ALT, 0, 0);
    ast_add(b, alt, one_sign(b, bounds, false));
    ast_add(b, alt, ast_cat(b, ast_text(b, "-"), one_sign(b, bounds, true)));
    return alt;
}
