/* grammar_object.c: objects of a schema: their properties in order, and keys that the schema does not name.
 *
 * Properties are written in the order in which the schema names them. Keys that match a pattern, or that nothing names,
 * may come once all required ones are there; they are written without escapes, so that two keys are the same when their
 * bytes are. A pattern whose keys could run out (it has only some, or can be cut off from all but some) is used once in
 * an object: then there is always a key left. Owner: the thread that compiles.
 */
#include <stdlib.h>

#include "base/mem.h"
#include "text/grammar_schema.h"
#include "text/json_view.h"

typedef struct object_name {
    qw_text key;     /* JSON text, with its quotes */
    uint32_t node;   /* the first that describes it; c->n: none does */
    qw_text value;   /* its schema there */
    bool required;
} object_name;

typedef struct object_pattern {
    uint32_t node, dfa; /* dfa: of whole keys, unquoted */
    qw_text value;
} object_pattern;

typedef struct object_builder {
    schema_compiler *c;
    grammar_build *b;
    object_name *names; /* owns */
    uint32_t n_names, names_cap;
    object_pattern patterns[SCHEMA_PATTERNS_MAX];
    uint32_t n_patterns;
    bool free_keys;     /* keys that nothing names are allowed */
    uint32_t min, max;
    uint32_t dfa;       /* of keys */
} object_builder;

/* ---- names ------------------------------------------------------------------------------------ */

static object_name *find_name(object_builder *x, qw_text key)
{
    for (uint32_t i = 0; i < x->n_names && grammar_work(x->b, 1); i++)
        if (x->names[i].key.n == key.n && memcmp(x->names[i].key.s, key.s, key.n) == 0) return &x->names[i];
    return NULL;
}

static void add_name(object_builder *x, object_name name)
{
    object_name *known = find_name(x, name.key);
    if (known) {
        known->required |= name.required;
        return;
    }
    if (!grammar_room(x->b, &x->names, x->n_names, 1, &x->names_cap, sizeof *x->names, GRAMMAR_COUNT_MAX / 2,
                      "properties of one object"))
        return;
    x->names[x->n_names++] = name;
}

static void add_names(object_builder *x, uint32_t i)
{
    const schema_node *node = &x->c->nodes[i];
    qw_text list = node->kw[KW_PROPERTIES], key, value;
    if (list.s && qw_json_first(list) != '{') schema_fail(x->c, QW_E_ARG, node->item.s, "properties is no object");
    for (size_t pos = 0; list.s && grammar_ok(x->b) && qw_json_next(list, &pos, &key, &value);)
        add_name(x, (object_name){.key = key, .node = i, .value = value});
}

static void add_required(object_builder *x, uint32_t i)
{
    const schema_node *node = &x->c->nodes[i];
    qw_text list = node->kw[KW_REQUIRED], key, value;
    if (list.s && qw_json_first(list) != '[') schema_fail(x->c, QW_E_ARG, node->item.s, "required is no array");
    for (size_t pos = 0; list.s && grammar_ok(x->b) && qw_json_next(list, &pos, &key, &value);) {
        if (qw_json_first(value) != '"') schema_fail(x->c, QW_E_ARG, node->item.s, "required holds what is no text");
        add_name(x, (object_name){.key = value, .node = x->c->n, .required = true});
    }
}

/* ---- patterns --------------------------------------------------------------------------------- */

/* The expression of a pattern's keys. */
static uint32_t pattern_ast(object_builder *x, qw_text key)
{
    qw_buf text;
    qw_buf_init(&text, QW_SCHEMA_BYTES_MAX, "a pattern");
    if (grammar_ok(x->b)) x->b->status = qw_json_unquote(key, &text, x->b->err);
    uint32_t ast = grammar_regex_ast(x->b, (qw_text){qw_buf_str(&text), text.n}, false, "patternProperties");
    qw_buf_free(&text);
    return ast;
}

static void add_patterns(object_builder *x, uint32_t i, labelled_ast *keys)
{
    const schema_node *node = &x->c->nodes[i];
    qw_text list = node->kw[KW_PATTERN_PROPERTIES], key, value;
    if (list.s && qw_json_first(list) != '{') schema_fail(x->c, QW_E_ARG, node->item.s, "patternProperties is no object");
    for (size_t pos = 0; list.s && grammar_ok(x->b) && qw_json_next(list, &pos, &key, &value);) {
        if (x->n_patterns == SCHEMA_PATTERNS_MAX) {
            schema_fail(x->c, QW_E_LIMIT, node->item.s, "more than %d patterns for one object", SCHEMA_PATTERNS_MAX);
            return;
        }
        uint32_t dfa = grammar_dfa_one(x->b, pattern_ast(x, key), FORM_RAW);
        keys[x->n_patterns] = (labelled_ast){pattern_ast(x, key), LABEL_WEAK + 1 + x->n_patterns, FORM_KEY};
        x->patterns[x->n_patterns++] = (object_pattern){.node = i, .dfa = dfa, .value = value};
    }
}

/* ---- values ----------------------------------------------------------------------------------- */

/* Rule of a named property: what each schema says of it, by its properties, its patterns, or else by
 * additionalProperties. */
static uint32_t name_rule(object_builder *x, const object_name *name, bool raw)
{
    schema_item items[SCHEMA_SET_MAX + SCHEMA_PATTERNS_MAX];
    uint32_t n = 0;
    qw_buf key;
    qw_buf_init(&key, QW_SCHEMA_BYTES_MAX, "a property's name");
    if (x->n_patterns && grammar_ok(x->b)) x->b->status = qw_json_unquote(name->key, &key, x->b->err);
    for (uint32_t i = 0; i < x->c->n && grammar_ok(x->b); i++) {
        const schema_node *node = &x->c->nodes[i];
        qw_text own = i == name->node ? name->value : (qw_text){0};
        if (i > name->node && node->kw[KW_PROPERTIES].s && grammar_work(x->b, node->kw[KW_PROPERTIES].n))
            own = schema_member(node->kw[KW_PROPERTIES], name->key);
        bool described = own.s != NULL;
        if (own.s) items[n++] = (schema_item){.s = own};
        for (uint32_t k = 0; k < x->n_patterns; k++) {
            const object_pattern *p = &x->patterns[k];
            if (p->node != i || !grammar_dfa_accepts(x->b, p->dfa, qw_buf_str(&key), key.n)) continue;
            items[n++] = (schema_item){.s = p->value};
            described = true;
        }
        if (!described && node->kw[KW_ADDITIONAL].s) items[n++] = (schema_item){.s = node->kw[KW_ADDITIONAL]};
    }
    qw_buf_free(&key);
    if (n > SCHEMA_SET_MAX) {
        schema_fail(x->c, QW_E_LIMIT, name->key, "more than %d schemas apply to one property", SCHEMA_SET_MAX);
        return 0;
    }
    return schema_goal_rule(x->c, items, n, raw);
}

/* Rule of keys that match one pattern (of node `of`), or none (of: c->n): the other schemas see an additional one. */
static uint32_t other_rule(object_builder *x, uint32_t of, qw_text value)
{
    schema_item items[SCHEMA_SET_MAX + 1];
    uint32_t n = 0;
    if (value.s) items[n++] = (schema_item){.s = value};
    for (uint32_t i = 0; i < x->c->n; i++)
        if (i != of && x->c->nodes[i].kw[KW_ADDITIONAL].s)
            items[n++] = (schema_item){.s = x->c->nodes[i].kw[KW_ADDITIONAL]};
    return schema_goal_rule(x->c, items, n, false);
}

/* ---- keys that run out ------------------------------------------------------------------------ */

/* Marks in on[] the states that lead to a key with this label. */
static void lead_to(object_builder *x, const grammar_dfa *d, uint32_t label, uint8_t *on)
{
    for (uint32_t i = 0; i < d->n; i++) on[i] = d->states[i].label == label;
    for (bool changed = true; changed && grammar_work(x->b, d->n_edges);) {
        changed = false;
        for (uint32_t i = d->n; i-- > 0;)
            for (uint32_t k = 0; !on[i] && k < d->states[i].n_edges; k++)
                if (on[d->edges[d->states[i].edges + k].to]) on[i] = changed = true;
    }
}

/* Is there, from each state that leads to a key with this label, no end of such keys? States from which all paths end
 * are taken away; none may go. */
static bool never_runs_out(object_builder *x, uint32_t label)
{
    const grammar_dfa *d = &x->b->dfas[x->dfa];
    uint8_t *on = NULL;
    bool endless = true;
    if (!grammar_ok(x->b) || d->n == 0) return true;
    x->b->status = qw_alloc(&on, d->n, 1, "keys", x->b->err);
    if (!grammar_ok(x->b)) return true;
    lead_to(x, d, label, on);
    for (uint32_t i = 0; i < d->n && endless; i++) {
        bool goes_on = !on[i];
        for (uint32_t k = 0; !goes_on && k < d->states[i].n_edges; k++) goes_on = on[d->edges[d->states[i].edges + k].to];
        endless = goes_on; /* a state that leads nowhere on its way: its keys are few */
    }
    free(on);
    return endless;
}

/* ---- the whole -------------------------------------------------------------------------------- */

static void read_set(object_builder *x, labelled_ast *patterns)
{
    bool described = false, additional = false;
    schema_compiler *c = x->c;
    for (uint32_t i = 0; i < c->n && grammar_ok(x->b); i++) add_names(x, i);
    for (uint32_t i = 0; i < c->n && grammar_ok(x->b); i++) add_required(x, i);
    for (uint32_t i = 0; i < c->n && grammar_ok(x->b); i++) {
        add_patterns(x, i, patterns);
        described |= c->nodes[i].kw[KW_PROPERTIES].s || c->nodes[i].kw[KW_PATTERN_PROPERTIES].s;
        additional |= c->nodes[i].kw[KW_ADDITIONAL].s != NULL;
    }
    /* Where nobody says anything of other keys, an object with properties has none. */
    x->free_keys = additional || !described || x->min > x->n_names;
    if (x->min > x->n_names + MATCH_MIN_OPEN)
        schema_fail(c, QW_E_LIMIT, c->nodes[0].item.s, "minProperties asks for more than %d keys that it does not name",
                    MATCH_MIN_OPEN);
}

/* The automaton of all keys, labelled by what they are. */
static void make_keys(object_builder *x, const labelled_ast *patterns)
{
    grammar_build *b = x->b;
    labelled_ast *keys = NULL;
    size_t n = 0;
    if (!grammar_ok(b)) return;
    b->status = qw_alloc(&keys, x->n_names + x->n_patterns + 1u, sizeof *keys, "keys", b->err);
    for (uint32_t i = 0; i < x->n_names && grammar_ok(b); i++) {
        qw_text key = x->names[i].key;
        keys[n++] = (labelled_ast){ast_bytes(b, key.s + 1, key.n - 2), LABEL_ACCEPT + i, FORM_RAW};
    }
    for (uint32_t i = 0; i < x->n_patterns && grammar_ok(b); i++) keys[n++] = patterns[i];
    if (x->free_keys && grammar_ok(b))
        keys[n++] = (labelled_ast){ast_repeat(b, ast_any(b), 0, UINT32_MAX), LABEL_WEAKEST + 1, FORM_KEY};
    x->dfa = grammar_dfa_of(b, keys, n);
    free(keys);
}

static void add_part(object_builder *x, uint32_t rule, bool required)
{
    grammar_build *b = x->b;
    if (!grammar_room(b, &b->parts, b->n_parts, 1, &b->parts_cap, sizeof *b->parts, QW_GRAMMAR_STATES_MAX, "properties"))
        return;
    b->parts[b->n_parts++] = (object_part){rule, required};
}

/* Adds the entries of patterns and free keys of one sort, open or not, and notes their numbers. */
static uint32_t add_others(object_builder *x, bool open, const bool *is_open, uint32_t first, uint32_t *number)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i <= x->n_patterns && grammar_ok(x->b); i++) {
        bool is_free = i == x->n_patterns;
        if (is_open[i] != open || (is_free && !x->free_keys)) continue;
        const object_pattern *p = &x->patterns[i];
        add_part(x, is_free ? other_rule(x, x->c->n, (qw_text){0}) : other_rule(x, p->node, p->value), false);
        number[i] = first + n++;
    }
    return n;
}

/* Gives the automaton's labels the numbers of entries. */
static void relabel(object_builder *x, const uint32_t *number)
{
    grammar_dfa *d = &x->b->dfas[x->dfa];
    for (uint32_t i = 0; i < d->n; i++) {
        uint32_t *label = &d->states[i].label;
        if (*label >= LABEL_WEAKEST) *label = 1 + number[x->n_patterns];
        else if (*label >= LABEL_WEAK) *label = 1 + number[*label - LABEL_WEAK - 1];
    }
}

static uint32_t build_rule(object_builder *x)
{
    grammar_build *b = x->b;
    bool is_open[SCHEMA_PATTERNS_MAX + 1];
    uint32_t number[SCHEMA_PATTERNS_MAX + 1] = {0}, parts = b->n_parts, n = x->n_names, n_open;
    for (uint32_t i = 0; i < x->n_patterns; i++) is_open[i] = never_runs_out(x, LABEL_WEAK + 1 + i);
    is_open[x->n_patterns] = never_runs_out(x, LABEL_WEAKEST + 1);
    for (uint32_t i = 0; i < x->n_names && grammar_ok(b); i++)
        add_part(x, name_rule(x, &x->names[i], false), x->names[i].required);
    n += add_others(x, false, is_open, n, number);
    n_open = add_others(x, true, is_open, n, number);
    uint32_t rule = grammar_rule_new(b, RULE_OBJECT);
    if (!grammar_ok(b)) return 0;
    relabel(x, number);
    grammar_rule *r = &b->rules[rule];
    r->min = x->min;
    r->max = x->max;
    r->parts = parts;
    r->n_parts = n + n_open;
    r->n_open = n_open;
    r->dfa = x->dfa;
    return rule;
}

uint32_t schema_object_rule(schema_compiler *c)
{
    labelled_ast patterns[SCHEMA_PATTERNS_MAX];
    object_builder x = {.c = c, .b = c->b};
    uint32_t rule = 0;
    if (!schema_property_counts(c, &x.min, &x.max)) return 0;
    read_set(&x, patterns);
    make_keys(&x, patterns);
    if (grammar_ok(c->b)) rule = build_rule(&x);
    free(x.names);
    return rule;
}

/* ---- parameters of the XML form --------------------------------------------------------------- */

static uint32_t parameter_ast(object_builder *x, const object_name *name)
{
    grammar_build *b = x->b;
    qw_buf key;
    uint32_t cat = ast_new(b, AST_CAT, 0, 0);
    qw_buf_init(&key, QW_SCHEMA_BYTES_MAX, "a parameter's name");
    if (grammar_ok(b)) b->status = qw_json_unquote(name->key, &key, b->err);
    if (memchr(qw_buf_str(&key), '>', key.n) || memchr(qw_buf_str(&key), '\n', key.n))
        schema_fail(x->c, QW_E_UNSUPPORTED, name->key, "this model's calls cannot have a parameter called %.*s",
                    name->key.n < 60 ? (int)name->key.n : 60, name->key.s);
    ast_add(b, cat, ast_text(b, "<parameter="));
    ast_add(b, cat, ast_bytes(b, qw_buf_str(&key), key.n));
    ast_add(b, cat, ast_text(b, ">\n"));
    ast_add(b, cat, ast_call(b, name_rule(x, name, true)));
    ast_add(b, cat, ast_text(b, "\n</parameter>\n"));
    qw_buf_free(&key);
    return name->required ? cat : ast_repeat(b, cat, 0, 1);
}

uint32_t schema_parameters_ast(schema_compiler *c)
{
    labelled_ast patterns[SCHEMA_PATTERNS_MAX];
    object_builder x = {.c = c, .b = c->b};
    uint32_t cat = ast_new(c->b, AST_CAT, 0, 0), required = 0;
    for (uint32_t i = 0; i < c->n; i++) {
        const schema_node *node = &c->nodes[i];
        if (node->kw[KW_ANY_OF].s || node->kw[KW_ONE_OF].s || node->kw[KW_ENUM].s || node->kw[KW_CONST].s ||
            node->kw[KW_PATTERN_PROPERTIES].s || !(schema_types(c, node) & TYPE_OBJECT) || node->never)
            schema_fail(c, QW_E_UNSUPPORTED, node->item.s,
                        "this model's calls have parameters by name: the schema must be an object with properties");
    }
    if (schema_property_counts(c, &x.min, &x.max)) read_set(&x, patterns);
    for (uint32_t i = 0; i < x.n_names && grammar_ok(c->b); i++) {
        required += x.names[i].required;
        ast_add(c->b, cat, parameter_ast(&x, &x.names[i]));
    }
    if (x.min > required || x.max < x.n_names)
        schema_fail(c, QW_E_UNSUPPORTED, c->root, "minProperties and maxProperties cannot be had in this model's calls");
    free(x.names);
    return cat;
}
