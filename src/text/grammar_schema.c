/* grammar_schema.c: JSON schemas become rules.
 *
 * A goal is a set of schemas that must all hold. Its schemas are collected ($ref and allOf add to the set), alternatives
 * (anyOf, oneOf) become one goal for each branch, and what is left is said type by type. Source: JSON Schema draft
 * 2020-12, core and validation. Owner: the thread that compiles.
 */
#include "text/grammar_schema.h"

#include <stdlib.h>

#include "base/mem.h"
#include "text/json_text.h"
#include "text/json_view.h"

enum { ALTERNATIVES_MAX = 4096, SCHEMA_ITEMS_MAX = 256 << 10 };

/* ---- goals ------------------------------------------------------------------------------------ */

static bool same_items(const schema_compiler *c, const schema_goal *g, const schema_item *items)
{
    for (uint32_t i = 0; i < g->n; i++) {
        const schema_item *x = &c->items[g->items + i], *y = &items[i];
        if (x->s.s != y->s.s || x->any_chosen != y->any_chosen || x->one_chosen != y->one_chosen || x->branch != y->branch)
            return false;
    }
    return true;
}

uint32_t schema_goal_rule(schema_compiler *c, const schema_item *items, uint32_t n, bool raw)
{
    uint64_t hash = n + raw;
    for (uint32_t i = 0; i < n; i++)
        hash = (hash ^ (uint64_t)(uintptr_t)items[i].s.s) * UINT64_C(0x9E3779B97F4A7C15) + items[i].any_chosen;
    uint32_t *bucket = &c->buckets[(hash >> 40) % BUCKETS];
    for (uint32_t i = *bucket; i && grammar_work(c->b, 1); i = c->goals[i].next)
        if (c->goals[i].n == n && c->goals[i].raw == raw && same_items(c, &c->goals[i], items)) return c->goals[i].rule;
    uint32_t rule = grammar_rule_new(c->b, RULE_AST);
    if (!grammar_room(c->b, &c->goals, c->n_goals, 1, &c->goals_cap, sizeof *c->goals, QW_GRAMMAR_RULES_MAX, "rules") ||
        !grammar_room(c->b, &c->items, c->n_items, n, &c->items_cap, sizeof *c->items, SCHEMA_ITEMS_MAX,
                      "schemas beside each other"))
        return 0;
    c->goals[c->n_goals] = (schema_goal){.items = c->n_items, .n = n, .rule = rule, .raw = raw, .next = *bucket};
    if (n > 0) memcpy(c->items + c->n_items, items, n * sizeof *items);
    c->n_items += n;
    *bucket = c->n_goals++;
    return rule;
}

/* ---- the set of a goal ------------------------------------------------------------------------ */

/* Node i is asked for again, by `parent`. It must not be there because of itself, nor be what the branch was chosen
 * for: a value would satisfy it if it satisfies it. */
static void check_circle(schema_compiler *c, uint32_t i, uint32_t parent, qw_text at)
{
    bool chosen = c->nodes[i].item.any_chosen || c->nodes[i].item.one_chosen;
    if (parent >= c->n) return;
    bool circle = chosen && c->nodes[parent].item.branch;
    for (uint32_t up = parent; !circle; up = c->nodes[up].parent) {
        circle = up == i;
        if (c->nodes[up].parent == up) break;
    }
    if (circle) schema_fail(c, QW_E_ARG, at, "the schema refers to itself and nothing else");
}

/* Adds a schema to the set, unless it is there. */
static void add_schema(schema_compiler *c, const schema_item *item, uint32_t parent, qw_text at)
{
    for (uint32_t i = 0; i < c->n; i++) {
        if (c->nodes[i].item.s.s != item->s.s) continue;
        bool branch = item->branch || (parent < c->n && c->nodes[parent].item.branch);
        check_circle(c, i, parent, at);
        c->again |= branch && !c->nodes[i].item.branch;
        c->nodes[i].item.branch |= branch;
        return;
    }
    if (c->n == SCHEMA_SET_MAX) {
        schema_fail(c, QW_E_LIMIT, at, "more than %d schemas apply to one place", SCHEMA_SET_MAX);
        return;
    }
    schema_node *node = &c->nodes[c->n];
    if (!schema_read(c, item->s, node)) return;
    node->item = *item;
    node->item.branch |= parent < c->n && c->nodes[parent].item.branch;
    node->parent = parent < c->n ? parent : c->n;
    c->n++;
}

/* Follows $ref and allOf of node i. */
static void follow(schema_compiler *c, uint32_t i)
{
    qw_text ref = c->nodes[i].kw[KW_REF], all = c->nodes[i].kw[KW_ALL_OF], at = c->nodes[i].item.s, key, value;
    if (ref.s) {
        qw_text target = schema_resolve(c, ref, at);
        if (target.s) add_schema(c, &(schema_item){.s = target}, i, at);
    }
    if (all.s && qw_json_first(all) != '[') schema_fail(c, QW_E_ARG, at, "allOf is no array");
    for (size_t pos = 0; all.s && grammar_ok(c->b) && qw_json_next(all, &pos, &key, &value);)
        add_schema(c, &(schema_item){.s = value}, i, at);
}

/* Fills c->nodes with all schemas of a goal. */
static void collect(schema_compiler *c, const schema_goal *g)
{
    c->n = 0;
    for (uint32_t i = 0; i < g->n && grammar_ok(c->b); i++) {
        const schema_item item = c->items[g->items + i];
        add_schema(c, &item, UINT32_MAX, item.s);
    }
    do {
        c->again = false;
        for (uint32_t i = 0; i < c->n && grammar_ok(c->b); i++) follow(c, i);
    } while (c->again && grammar_ok(c->b));
}

/* ---- alternatives ----------------------------------------------------------------------------- */

/* Branches of oneOf must exclude each other: then at least one is as good as exactly one. */
static void check_exclusive(schema_compiler *c, qw_text branches, qw_text at)
{
    qw_text key, x, y;
    uint32_t i = 0, k;
    for (size_t pos = 0; grammar_ok(c->b) && qw_json_next(branches, &pos, &key, &x); i++) {
        k = i + 1;
        for (size_t next = pos; grammar_ok(c->b) && qw_json_next(branches, &next, &key, &y); k++)
            if (!schema_disjoint(c, x, y) && grammar_ok(c->b))
                schema_fail(c, QW_E_UNSUPPORTED, at,
                            "a value could satisfy both branches %u and %u of oneOf; say anyOf, or let them differ in "
                            "type or in a required const", i, k);
    }
}

/* The expression of node i's alternatives: a goal for each branch, with all the other schemas. */
static uint32_t branches_ast(schema_compiler *c, uint32_t i, bool one, bool raw)
{
    schema_item items[SCHEMA_SET_MAX + 1];
    uint32_t n = 0, alt = ast_new(c->b, AST_ALT, 0, 0), count = 0;
    qw_text branches = c->nodes[i].kw[one ? KW_ONE_OF : KW_ANY_OF], at = c->nodes[i].item.s, key, value;
    if (qw_json_first(branches) != '[' || branches.n == 2) {
        schema_fail(c, QW_E_ARG, at, "%s is no array of schemas", one ? "oneOf" : "anyOf");
        return 0;
    }
    if (one) check_exclusive(c, branches, at);
    bool other = false; /* does the schema say anything else? */
    for (int k = 0; k < KW_COUNT; k++) other |= c->nodes[i].kw[k].s && k != (one ? KW_ONE_OF : KW_ANY_OF);
    for (uint32_t k = 0; k < c->n; k++) {
        if (k == i && c->n == 1 && !other) continue;
        items[n] = c->nodes[k].item;
        items[n].branch = false;
        if (k == i) *(one ? &items[n].one_chosen : &items[n].any_chosen) = true;
        n++;
    }
    for (size_t pos = 0; grammar_ok(c->b) && qw_json_next(branches, &pos, &key, &value); count++) {
        if (count == ALTERNATIVES_MAX) schema_fail(c, QW_E_LIMIT, at, "more than %d alternatives", ALTERNATIVES_MAX);
        items[n] = (schema_item){.s = value, .branch = true};
        ast_add(c->b, alt, ast_call(c->b, schema_goal_rule(c, items, n + 1, raw)));
    }
    return alt;
}

/* ---- by type ---------------------------------------------------------------------------------- */

static void narrow_bound(qw_text *bound, bool *exclusive, qw_text value, bool value_exclusive, int keep)
{
    int order = bound->s ? grammar_number_compare(value, *bound) : keep;
    if (order != 0 && order != keep) return;
    *exclusive = order == 0 ? *exclusive || value_exclusive : value_exclusive;
    *bound = value;
}

static bool check_number(schema_compiler *c, const schema_node *node, schema_keyword k, const char *name)
{
    qw_text v = node->kw[k];
    if (!v.s) return false;
    bool ok = qw_json_first(v) == '\0' && v.s[v.n - 1] >= '0' && v.s[v.n - 1] <= '9';
    if (!ok) schema_fail(c, QW_E_ARG, node->item.s, "%s is no number", name);
    return ok;
}

/* multipleOf of all schemas together; only whole numbers are exact when they are divided. */
static uint32_t common_multiple(schema_compiler *c)
{
    uint64_t all = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        const schema_node *node = &c->nodes[i];
        if (!check_number(c, node, KW_MULTIPLE_OF, "multipleOf")) continue;
        qw_text v = node->kw[KW_MULTIPLE_OF];
        uint64_t m = 0, x, y;
        if (v.s[0] == '-' || !grammar_number_is_integer(v) || grammar_number_compare(v, (qw_text){"0", 1}) <= 0 ||
            grammar_number_compare(v, (qw_text){"4096", 4}) > 0) {
            schema_fail(c, QW_E_UNSUPPORTED, node->item.s, "multipleOf %.*s: only whole numbers from 1 to 4096 can be had",
                        v.n < 40 ? (int)v.n : 40, v.s);
            return 0;
        }
        for (size_t k = 0; k < v.n && v.s[k] >= '0' && v.s[k] <= '9'; k++) m = m * 10 + (uint64_t)(v.s[k] - '0');
        for (x = all ? all : m, y = m; y; ) { /* greatest common divisor */
            uint64_t rest = x % y;
            x = y;
            y = rest;
        }
        all = all ? all / x * m : m;
        if (all > 4096) schema_fail(c, QW_E_LIMIT, node->item.s, "multipleOf: the common multiple is above 4096");
    }
    return (uint32_t)all;
}

static uint32_t number_ast(schema_compiler *c, bool integer)
{
    number_bounds bounds = {.integer = integer};
    for (uint32_t i = 0; i < c->n && grammar_ok(c->b); i++) {
        const schema_node *node = &c->nodes[i];
        if (check_number(c, node, KW_MINIMUM, "minimum"))
            narrow_bound(&bounds.min, &bounds.min_exclusive, node->kw[KW_MINIMUM], false, 1);
        if (check_number(c, node, KW_EXCLUSIVE_MINIMUM, "exclusiveMinimum"))
            narrow_bound(&bounds.min, &bounds.min_exclusive, node->kw[KW_EXCLUSIVE_MINIMUM], true, 1);
        if (check_number(c, node, KW_MAXIMUM, "maximum"))
            narrow_bound(&bounds.max, &bounds.max_exclusive, node->kw[KW_MAXIMUM], false, -1);
        if (check_number(c, node, KW_EXCLUSIVE_MAXIMUM, "exclusiveMaximum"))
            narrow_bound(&bounds.max, &bounds.max_exclusive, node->kw[KW_EXCLUSIVE_MAXIMUM], true, -1);
    }
    bounds.multiple = common_multiple(c);
    if (bounds.multiple) bounds.integer = true;
    return grammar_number_ast(c->b, &bounds);
}

static unsigned common_types(schema_compiler *c)
{
    unsigned types = TYPE_EVERY;
    for (uint32_t i = 0; i < c->n; i++) types &= schema_types(c, &c->nodes[i]);
    return types;
}

/* In the XML form a parser takes a string for JSON when it looks like a value of another type that the schema has. */
static void check_raw_types(schema_compiler *c, unsigned types)
{
    if ((types & TYPE_STRING) && (types & ~(unsigned)(TYPE_STRING | TYPE_NULL)) && types != TYPE_EVERY)
        schema_fail(c, QW_E_UNSUPPORTED, c->n ? c->nodes[0].item.s : c->root,
                    "a parameter that is a string or something else cannot be told apart in this model's calls");
}

static uint32_t typed_ast(schema_compiler *c, bool raw)
{
    grammar_build *b = c->b;
    unsigned types = common_types(c);
    if (raw) check_raw_types(c, types);
    if (raw && types == TYPE_EVERY) types = TYPE_STRING; /* a parameter that is not described is text */
    uint32_t alt = ast_new(b, AST_ALT, 0, 0);
    if (types & TYPE_NULL) ast_add(b, alt, ast_text(b, "null"));
    if (types & TYPE_BOOL) {
        ast_add(b, alt, ast_text(b, "true"));
        ast_add(b, alt, ast_text(b, "false"));
    }
    if (types & (TYPE_NUMBER | TYPE_INTEGER)) ast_add(b, alt, number_ast(c, !(types & TYPE_NUMBER)));
    if (types & TYPE_STRING) ast_add(b, alt, schema_string_ast(c, raw));
    if (types & TYPE_ARRAY) {
        uint32_t rule = schema_array_rule(c);
        if (rule) ast_add(b, alt, ast_call(b, rule));
    }
    if (types & TYPE_OBJECT) {
        uint32_t rule = schema_object_rule(c);
        if (rule) ast_add(b, alt, ast_call(b, rule));
    }
    return alt;
}

static uint32_t goal_ast(schema_compiler *c, bool raw)
{
    bool values = false;
    for (uint32_t i = 0; i < c->n; i++) {
        const schema_node *node = &c->nodes[i];
        if (node->never) return ast_new(c->b, AST_NEVER, 0, 0);
        if (node->kw[KW_ANY_OF].s && !node->item.any_chosen) return branches_ast(c, i, false, raw);
        if (node->kw[KW_ONE_OF].s && !node->item.one_chosen) return branches_ast(c, i, true, raw);
        values |= node->kw[KW_ENUM].s || node->kw[KW_CONST].s;
    }
    return values ? schema_values_ast(c, raw) : typed_ast(c, raw);
}

/* ---- the whole -------------------------------------------------------------------------------- */

static void compile_goals(schema_compiler *c)
{
    for (uint32_t i = 1; i < c->n_goals && grammar_ok(c->b); i++) {
        const schema_goal goal = c->goals[i];
        collect(c, &goal);
        if (!grammar_ok(c->b)) return;
        uint32_t ast = goal_ast(c, goal.raw);
        if (grammar_ok(c->b)) c->b->rules[goal.rule].ast = ast;
    }
}

static qw_status rewrite(schema_compiler *c, qw_text schema, qw_err *err)
{
    qw_err why;
    if (schema.n > QW_SCHEMA_BYTES_MAX)
        return qw_fail(err, QW_E_LIMIT, "%s: the schema has %zu bytes; the limit is %d", c->what, schema.n,
                       QW_SCHEMA_BYTES_MAX);
    qw_status status = qw_json_rewrite(schema, &c->text, &why);
    if (status != QW_OK) return qw_fail(err, status, "%s: the schema: %s", c->what, why.text);
    c->root = (qw_text){qw_buf_str(&c->text), c->text.n};
    return QW_OK;
}

static schema_compiler *begin(grammar_build *b, qw_text schema, const char *what)
{
    schema_compiler *c = NULL;
    if (!grammar_ok(b)) return NULL;
    b->status = qw_alloc(&c, 1, sizeof *c, "a schema", b->err);
    if (!grammar_ok(b)) return NULL;
    c->b = b;
    c->what = what;
    c->n_goals = 1;
    qw_buf_init(&c->text, 8 * QW_SCHEMA_BYTES_MAX, what);
    b->status = rewrite(c, schema, b->err);
    grammar_room(b, &c->goals, 0, 1, &c->goals_cap, sizeof *c->goals, QW_GRAMMAR_RULES_MAX, "rules");
    return c;
}

/* Compiles what is queued and frees the compiler. */
static void finish(schema_compiler *c)
{
    if (!c) return;
    compile_goals(c);
    qw_buf_free(&c->text);
    free(c->items);
    free(c->goals);
    free(c);
}

uint32_t grammar_schema_rule(grammar_build *b, qw_text schema, const char *what)
{
    schema_compiler *c = begin(b, schema, what);
    uint32_t rule = grammar_ok(b) ? schema_goal_rule(c, &(schema_item){.s = c->root}, 1, false) : 0;
    finish(c);
    return grammar_ok(b) ? rule : 0;
}

uint32_t grammar_schema_parameters(grammar_build *b, qw_text schema, const char *what)
{
    schema_compiler *c = begin(b, schema, what);
    uint32_t ast = 0;
    if (grammar_ok(b)) add_schema(c, &(schema_item){.s = c->root}, UINT32_MAX, c->root);
    for (uint32_t i = 0; grammar_ok(b) && i < c->n; i++) follow(c, i);
    if (grammar_ok(b)) ast = schema_parameters_ast(c);
    finish(c);
    return grammar_ok(b) ? ast : 0;
}
