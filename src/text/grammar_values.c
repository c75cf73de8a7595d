/* grammar_values.c: named values, strings and arrays of a schema. See grammar_schema.h.
 *
 * A named value (enum, const) is kept when all schemas of the set admit it. Strings with a pattern or a format become
 * automata; without one they are counted (RULE_STRING). Owner: the thread that compiles.
 */
#include "base/utf8.h"
#include "text/grammar_schema.h"
#include "text/json_view.h"

enum { COUNTED_LENGTH_MAX = 512 }; /* of strings with a pattern or a format */

/* ---- numbers and strings that are named ------------------------------------------------------- */

static bool is_multiple(qw_text number, qw_text of)
{
    uint32_t m = 0, rest = 0;
    if (!grammar_number_is_integer(number)) return false;
    for (size_t i = 0; i < of.n && of.s[i] >= '0' && of.s[i] <= '9'; i++) m = m * 10 + (uint32_t)(of.s[i] - '0');
    for (size_t i = number.s[0] == '-'; i < number.n && number.s[i] >= '0' && number.s[i] <= '9'; i++)
        rest = (rest * 10 + (uint32_t)(number.s[i] - '0')) % m;
    return rest == 0;
}

static bool number_fits(schema_compiler *c, const schema_node *node, qw_text v)
{
    const qw_text *kw = node->kw;
    if (kw[KW_MINIMUM].s && grammar_number_compare(v, kw[KW_MINIMUM]) < 0) return false;
    if (kw[KW_MAXIMUM].s && grammar_number_compare(v, kw[KW_MAXIMUM]) > 0) return false;
    if (kw[KW_EXCLUSIVE_MINIMUM].s && grammar_number_compare(v, kw[KW_EXCLUSIVE_MINIMUM]) <= 0) return false;
    if (kw[KW_EXCLUSIVE_MAXIMUM].s && grammar_number_compare(v, kw[KW_EXCLUSIVE_MAXIMUM]) >= 0) return false;
    if (!kw[KW_MULTIPLE_OF].s) return true;
    if (schema_count(c, node, KW_MULTIPLE_OF) == 0 || memchr(v.s, 'e', v.n)) {
        schema_fail(c, QW_E_UNSUPPORTED, node->item.s, "multipleOf beside enum or const can be had for whole numbers only");
        return false;
    }
    return is_multiple(v, kw[KW_MULTIPLE_OF]);
}

static qw_text unquoted(schema_compiler *c, qw_text string, qw_buf *out)
{
    qw_buf_init(out, QW_SCHEMA_BYTES_MAX, "a text");
    if (grammar_ok(c->b)) c->b->status = qw_json_unquote(string, out, c->b->err);
    return (qw_text){qw_buf_str(out), out->n};
}

static uint32_t count_characters(qw_text s)
{
    uint32_t n = 0;
    for (size_t i = 0; i < s.n; i++) n += ((unsigned char)s.s[i] & 0xC0) != 0x80;
    return n;
}

/* The strings that a pattern or a format admits. */
static uint32_t pattern_dfa(schema_compiler *c, const schema_node *node, schema_keyword k, grammar_form form)
{
    qw_buf buf;
    uint32_t ast = 0;
    if (qw_json_first(node->kw[k]) != '"') {
        schema_fail(c, QW_E_ARG, node->item.s, "%s is no text", k == KW_PATTERN ? "pattern" : "format");
        return 0;
    }
    qw_text text = unquoted(c, node->kw[k], &buf);
    if (k == KW_PATTERN) {
        ast = grammar_regex_ast(c->b, text, false, "pattern");
    } else {
        ast = grammar_format_ast(c->b, text);
        if (ast == 0)
            schema_fail(c, QW_E_UNSUPPORTED, node->item.s, "the format %.*s is not supported",
                        node->kw[k].n < 60 ? (int)node->kw[k].n : 60, node->kw[k].s);
    }
    qw_buf_free(&buf);
    return grammar_dfa_one(c->b, ast, form);
}

static bool string_fits(schema_compiler *c, const schema_node *node, qw_text v)
{
    qw_buf buf;
    qw_text text = unquoted(c, v, &buf);
    uint32_t n = count_characters(text);
    bool fits = (!node->kw[KW_MIN_LENGTH].s || n >= schema_count(c, node, KW_MIN_LENGTH)) &&
                (!node->kw[KW_MAX_LENGTH].s || n <= schema_count(c, node, KW_MAX_LENGTH));
    for (int k = KW_PATTERN; k <= KW_FORMAT && fits; k++)
        if (node->kw[k].s)
            fits = grammar_dfa_accepts(c->b, pattern_dfa(c, node, (schema_keyword)k, FORM_RAW), text.s, text.n);
    qw_buf_free(&buf);
    return fits;
}

/* Arrays and objects that are named are only compared, never looked into. */
static bool container_fits(schema_compiler *c, const schema_node *node, bool array)
{
    int from = array ? KW_ITEMS : KW_PROPERTIES, to = array ? KW_UNIQUE_ITEMS : KW_MAX_PROPERTIES;
    for (int k = from; k <= to; k++)
        if (node->kw[k].s)
            schema_fail(c, QW_E_UNSUPPORTED, node->item.s, "%s in enum or const beside other keywords for %s",
                        array ? "an array" : "an object", array ? "arrays" : "objects");
    return true;
}

/* Does one schema admit a named value? */
static bool admits(schema_compiler *c, const schema_node *node, qw_text v)
{
    qw_text key, other;
    bool listed = !node->kw[KW_ENUM].s;
    if (!(schema_types(c, node) & schema_type_of_value(v))) return false;
    if (node->kw[KW_CONST].s && !schema_same_value(v, node->kw[KW_CONST])) return false;
    for (size_t pos = 0; !listed && grammar_work(c->b, 8) && qw_json_next(node->kw[KW_ENUM], &pos, &key, &other);)
        listed = schema_same_value(v, other);
    if (!listed) return false;
    switch (qw_json_first(v)) {
    case '\0': return number_fits(c, node, v);
    case '"': return string_fits(c, node, v);
    case '[': return container_fits(c, node, true);
    case '{': return container_fits(c, node, false);
    default: return true;
    }
}

/* ---- named values as text --------------------------------------------------------------------- */

static uint32_t maybe_gap(grammar_build *b)
{
    return ast_repeat(b, ast_call(b, grammar_gap(b)), 0, 1);
}

/* The text of a value, with white space where JSON has it. Recursion follows the nesting, at most QW_JSON_DEPTH_MAX. */
static uint32_t literal(schema_compiler *c, qw_text v)
{
    grammar_build *b = c->b;
    qw_text key, value;
    char kind = qw_json_first(v);
    if (kind == '\0' && (v.s[v.n - 1] < '0' || v.s[v.n - 1] > '9'))
        schema_fail(c, QW_E_ARG, v, "a number is beyond all doubles");
    if ((kind != '[' && kind != '{') || v.n == 2) return ast_bytes(b, v.s, v.n);
    uint32_t cat = ast_new(b, AST_CAT, 0, 0);
    ast_add(b, cat, ast_bytes(b, v.s, 1));
    for (size_t pos = 0, i = 0; grammar_work(b, 8) && qw_json_next(v, &pos, &key, &value); i++) {
        if (i > 0) ast_add(b, cat, ast_text(b, ","));
        ast_add(b, cat, maybe_gap(b));
        if (key.s) {
            ast_add(b, cat, ast_bytes(b, key.s, key.n));
            ast_add(b, cat, ast_text(b, ":"));
            ast_add(b, cat, ast_repeat(b, ast_text(b, " "), 0, 1));
        }
        ast_add(b, cat, literal(c, value));
    }
    ast_add(b, cat, maybe_gap(b));
    ast_add(b, cat, ast_text(b, kind == '[' ? "]" : "}"));
    return cat;
}

/* The text of a string without its quotes, for a parameter of the XML form. */
static uint32_t raw_literal(schema_compiler *c, qw_text v)
{
    qw_buf buf;
    qw_text text = unquoted(c, v, &buf);
    if (memmem(text.s, text.n, "</parameter>", 12))
        schema_fail(c, QW_E_UNSUPPORTED, v, "a text holds </parameter>, which ends it in this model's calls");
    uint32_t ast = ast_bytes(c->b, text.s, text.n);
    qw_buf_free(&buf);
    return ast;
}

static void add_value(schema_compiler *c, uint32_t alt, qw_text v, bool raw)
{
    bool fits = true;
    for (uint32_t i = 0; i < c->n && fits && grammar_ok(c->b); i++) fits = admits(c, &c->nodes[i], v);
    if (!fits || !grammar_ok(c->b)) return;
    ast_add(c->b, alt, raw && qw_json_first(v) == '"' ? raw_literal(c, v) : literal(c, v));
}

uint32_t schema_values_ast(schema_compiler *c, bool raw)
{
    uint32_t alt = ast_new(c->b, AST_ALT, 0, 0), i = 0;
    qw_text key, v;
    while (!c->nodes[i].kw[KW_ENUM].s && !c->nodes[i].kw[KW_CONST].s) i++;
    const schema_node *node = &c->nodes[i];
    if (node->kw[KW_CONST].s) {
        add_value(c, alt, node->kw[KW_CONST], raw);
        return alt;
    }
    if (qw_json_first(node->kw[KW_ENUM]) != '[') schema_fail(c, QW_E_ARG, node->item.s, "enum is no array");
    for (size_t pos = 0; grammar_ok(c->b) && qw_json_next(node->kw[KW_ENUM], &pos, &key, &v);) add_value(c, alt, v, raw);
    return alt;
}

/* ---- counts ----------------------------------------------------------------------------------- */

/* The highest minimum and the lowest maximum of the set. False: nothing fits, or an error is set. */
static bool common_counts(schema_compiler *c, schema_keyword min_kw, schema_keyword max_kw, uint32_t *min, uint32_t *max)
{
    *min = 0;
    *max = GRAMMAR_UNLIMITED;
    for (uint32_t i = 0; i < c->n; i++) {
        const schema_node *node = &c->nodes[i];
        uint32_t least = node->kw[min_kw].s ? schema_count(c, node, min_kw) : 0;
        uint32_t most = node->kw[max_kw].s ? schema_count(c, node, max_kw) : GRAMMAR_UNLIMITED;
        if (least > *min) *min = least;
        if (most < *max) *max = most;
        if (least > SCHEMA_MIN_MAX)
            schema_fail(c, QW_E_LIMIT, node->item.s, "a minimum is above %d", SCHEMA_MIN_MAX);
    }
    return grammar_ok(c->b) && *min <= *max;
}

bool schema_property_counts(schema_compiler *c, uint32_t *min, uint32_t *max)
{
    return common_counts(c, KW_MIN_PROPERTIES, KW_MAX_PROPERTIES, min, max);
}

/* ---- strings ---------------------------------------------------------------------------------- */

/* All that a parameter of the XML form may hold. */
static uint32_t parameter_dfa(grammar_build *b)
{
    uint32_t any = grammar_dfa_one(b, ast_repeat(b, ast_any(b), 0, UINT32_MAX), FORM_RAW);
    uint32_t end = ast_cat(b, ast_repeat(b, ast_any(b), 0, UINT32_MAX), ast_text(b, "</parameter>"));
    end = ast_cat(b, end, ast_repeat(b, ast_any(b), 0, UINT32_MAX));
    return grammar_dfa_without(b, any, grammar_dfa_one(b, end, FORM_RAW));
}

/* The automaton of strings with a pattern or a format, or of the XML form. */
static uint32_t string_dfa(schema_compiler *c, bool raw, uint32_t min, uint32_t max)
{
    grammar_build *b = c->b;
    grammar_form form = raw ? FORM_RAW : FORM_JSON;
    uint32_t dfa = raw ? parameter_dfa(b) : 0;
    for (uint32_t i = 0; i < c->n; i++)
        for (int k = KW_PATTERN; k <= KW_FORMAT; k++) {
            if (!c->nodes[i].kw[k].s || !grammar_ok(b)) continue;
            uint32_t more = pattern_dfa(c, &c->nodes[i], (schema_keyword)k, form);
            dfa = dfa ? grammar_dfa_both(b, dfa, more) : more;
        }
    if (min == 0 && max == GRAMMAR_UNLIMITED) return dfa;
    if (max != GRAMMAR_UNLIMITED && max > COUNTED_LENGTH_MAX) max = COUNTED_LENGTH_MAX;
    if (max < min)
        schema_fail(c, QW_E_LIMIT, c->nodes[0].item.s, "minLength beside a pattern is above %d", COUNTED_LENGTH_MAX);
    return grammar_dfa_of_length(b, dfa, min, max == GRAMMAR_UNLIMITED ? UINT32_MAX : max, form);
}

/* The rule of strings that are only counted; there is one for each pair of numbers. */
static uint32_t counted_rule(grammar_build *b, uint32_t min, uint32_t max)
{
    for (uint32_t i = 1; i < b->n_rules && grammar_work(b, 1); i++)
        if (b->rules[i].kind == RULE_STRING && b->rules[i].min == min && b->rules[i].max == max) return i;
    uint32_t rule = grammar_rule_new(b, RULE_STRING);
    if (!rule) return 0;
    b->rules[rule].min = min;
    b->rules[rule].max = max;
    return rule;
}

uint32_t schema_string_ast(schema_compiler *c, bool raw)
{
    grammar_build *b = c->b;
    uint32_t min, max;
    bool matched = raw;
    for (uint32_t i = 0; i < c->n; i++) matched |= c->nodes[i].kw[KW_PATTERN].s || c->nodes[i].kw[KW_FORMAT].s;
    if (!common_counts(c, KW_MIN_LENGTH, KW_MAX_LENGTH, &min, &max)) return 0;
    if (!matched) return ast_call(b, counted_rule(b, min, max));
    uint32_t dfa = ast_new(b, AST_DFA, string_dfa(c, raw, min, max), 0);
    return raw ? dfa : ast_cat(b, ast_text(b, "\""), ast_cat(b, dfa, ast_text(b, "\"")));
}

/* ---- arrays ----------------------------------------------------------------------------------- */

/* Number of prefixItems of a node, and the one at an index. */
static uint32_t prefix_item(schema_compiler *c, const schema_node *node, uint32_t index, qw_text *item)
{
    qw_text list = node->kw[KW_PREFIX_ITEMS], key, value;
    uint32_t n = 0;
    if (!list.s) return 0;
    if (qw_json_first(list) != '[') schema_fail(c, QW_E_ARG, node->item.s, "prefixItems is no array");
    for (size_t pos = 0; grammar_work(c->b, 1) && qw_json_next(list, &pos, &key, &value); n++)
        if (n == index) *item = value;
    return n;
}

/* Rule of the item at an index: all schemas that apply there. */
static uint32_t item_rule(schema_compiler *c, uint32_t index)
{
    schema_item items[SCHEMA_SET_MAX];
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        qw_text item = {0};
        uint32_t n_prefix = prefix_item(c, &c->nodes[i], index, &item);
        if (index >= n_prefix) item = c->nodes[i].kw[KW_ITEMS];
        if (item.s) items[n++] = (schema_item){.s = item};
    }
    return schema_goal_rule(c, items, n, false);
}

static void check_unique(schema_compiler *c, uint32_t max)
{
    for (uint32_t i = 0; i < c->n; i++) {
        qw_text unique = c->nodes[i].kw[KW_UNIQUE_ITEMS], items = c->nodes[i].kw[KW_ITEMS];
        if (unique.s && qw_json_first(unique) == 't' && max > 1)
            schema_fail(c, QW_E_UNSUPPORTED, c->nodes[i].item.s, "uniqueItems is not supported");
        if (items.s && qw_json_first(items) == '[')
            schema_fail(c, QW_E_UNSUPPORTED, c->nodes[i].item.s,
                        "items is an array: since draft 2020-12 that is called prefixItems");
    }
}

uint32_t schema_array_rule(schema_compiler *c)
{
    grammar_build *b = c->b;
    uint32_t min, max, n_prefix = 0;
    qw_text none;
    if (!common_counts(c, KW_MIN_ITEMS, KW_MAX_ITEMS, &min, &max)) return 0;
    check_unique(c, max);
    for (uint32_t i = 0; i < c->n; i++) {
        uint32_t n = prefix_item(c, &c->nodes[i], UINT32_MAX, &none);
        if (n > n_prefix) n_prefix = n;
    }
    uint32_t rule = grammar_rule_new(b, RULE_ARRAY), rest = item_rule(c, n_prefix), parts = b->n_list;
    if (!grammar_room(b, &b->list, b->n_list, n_prefix, &b->list_cap, sizeof *b->list, GRAMMAR_AST_MAX, "items"))
        return 0;
    for (uint32_t i = 0; i < n_prefix && grammar_ok(b); i++) b->list[parts + i] = item_rule(c, i);
    b->n_list += n_prefix;
    if (!grammar_ok(b)) return 0;
    grammar_rule *r = &b->rules[rule];
    r->min = min;
    r->max = max;
    r->parts = parts;
    r->n_parts = n_prefix;
    r->rest = rest;
    return rule;
}
