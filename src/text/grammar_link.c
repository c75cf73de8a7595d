/* grammar_link.c: rules become one array of states, without dead ends.
 *
 * First each rule is laid out: expressions as deterministic automata; strings with lengths, arrays and objects in
 * their own way, with edges that their counters guard. Then what can never end is removed (grammar_prune.c). Owner: the
 * thread that compiles.
 */
#include <stdatomic.h>
#include <stdlib.h>

#include "base/mem.h"
#include "text/grammar_link.h"

enum { LEAF_SIZE_MAX = 32 };

/* ---- making ----------------------------------------------------------------------------------- */

static uint32_t state_new(linker *l, unsigned flags)
{
    qw_grammar *g = l->g;
    if (!grammar_work(l->b, 1) || !grammar_room(l->b, &g->states, g->n_states, 1, &g->states_cap, sizeof *g->states,
                                                QW_GRAMMAR_STATES_MAX, "states"))
        return 0;
    g->states[g->n_states] = (grammar_state){.edges = g->n_edges, .calls = g->n_calls,
                                                .flags = (uint16_t)flags};
    return g->n_states++;
}

/* An edge of the state made last. Edges of a state are added in the order of their bytes. */
static void edge(linker *l, unsigned lo, unsigned hi, grammar_guard guard, uint32_t to)
{
    qw_grammar *g = l->g;
    if (!grammar_room(l->b, &g->edges, g->n_edges, 1, &g->edges_cap, sizeof *g->edges, QW_GRAMMAR_EDGES_MAX, "edges"))
        return;
    g->edges[g->n_edges++] = (grammar_edge){(uint8_t)lo, (uint8_t)hi, (uint8_t)guard, to};
    g->states[g->n_states - 1].n_edges++;
}

/* A call of the state made last. what: a rule's number until all rules have their states. */
static void call(linker *l, bool token, uint32_t what, grammar_guard guard, uint32_t to)
{
    qw_grammar *g = l->g;
    if (!grammar_room(l->b, &g->calls, g->n_calls, 1, &g->calls_cap, sizeof *g->calls, QW_GRAMMAR_EDGES_MAX, "calls"))
        return;
    if (g->states[g->n_states ? g->n_states - 1 : 0].n_calls == UINT16_MAX) {
        grammar_fail(l->b, QW_E_LIMIT, "the grammar has more than %d alternatives in one place", UINT16_MAX);
        return;
    }
    g->calls[g->n_calls++] = (grammar_call){token, (uint8_t)guard, what, to};
    g->states[g->n_states - 1].n_calls++;
}

/* ---- expressions ------------------------------------------------------------------------------ */

/* Appends an automaton; returns its first state. */
static uint32_t lay_dfa(linker *l, uint32_t index)
{
    uint32_t base = l->g->n_states;
    for (uint32_t i = 0; i < l->b->dfas[index].n && grammar_ok(l->b); i++) {
        const grammar_dfa *d = &l->b->dfas[index];
        const dfa_state *s = &d->states[i];
        state_new(l, s->label ? STATE_ACCEPT : 0);
        for (uint32_t k = 0; k < s->n_edges; k++)
            edge(l, d->edges[s->edges + k].lo, d->edges[s->edges + k].hi, GUARD_NONE, base + d->edges[s->edges + k].to);
        for (uint32_t k = 0; k < s->n_links; k++) {
            const dfa_link *link = &d->links[s->links + k];
            call(l, link->token, link->what, GUARD_NONE, base + link->to);
        }
    }
    return base;
}

static uint32_t lay_ast(linker *l, const grammar_rule *rule)
{
    uint32_t dfa = grammar_dfa_one(l->b, rule->ast, FORM_RAW);
    if (!grammar_ok(l->b)) return 0;
    return grammar_dfa_empty(l->b, dfa) ? state_new(l, 0) : lay_dfa(l, dfa);
}

/* ---- JSON's own ------------------------------------------------------------------------------- */

/* Gives all states from s on the numbers that their counter is compared with, and the rule of what it counts. */
static void set_counts(linker *l, uint32_t s, uint32_t lo, uint32_t hi, uint32_t item)
{
    for (uint32_t i = s; i < l->g->n_states; i++) {
        l->g->states[i].lo = (uint16_t)lo;
        l->g->states[i].hi = (uint16_t)hi;
        l->g->states[i].item = item; /* until all rules have their states */
    }
}

/* A space, or a line break and spaces. */
static uint32_t lay_gap(linker *l)
{
    uint32_t begin = state_new(l, 0), line = begin + 1, space = begin + 2;
    edge(l, '\n', '\n', GUARD_NONE, line);
    edge(l, ' ', ' ', GUARD_NONE, space);
    state_new(l, STATE_ACCEPT | STATE_COUNT);
    edge(l, ' ', ' ', GUARD_MORE, line);
    state_new(l, STATE_ACCEPT);
    set_counts(l, begin, 0, GRAMMAR_INDENT_MAX + 1, 0); /* the line break is counted, too */
    return begin;
}

static void hex_edges(linker *l, uint32_t to)
{
    edge(l, '0', '9', GUARD_NONE, to);
    edge(l, 'A', 'F', GUARD_NONE, to);
    edge(l, 'a', 'f', GUARD_NONE, to);
}

/* States of a JSON string: behind the quote, inside UTF-8, inside escapes. Offsets from the first. */
enum {
    STR_BEGIN, STR_BODY, STR_END, STR_LAST, STR_LAST2, STR_E0, STR_ED, STR_F0, STR_LAST3, STR_F4, STR_ESCAPE,
    STR_U1, STR_U2, STR_U3, STR_U4, STR_UD, STR_H3, STR_H4, STR_LOW_ESCAPE, STR_LOW_U, STR_LOW1, STR_LOW2, STR_STATES
};

/* Characters as they are, while one more fits; the end, when there are enough. */
static void lay_string_body(linker *l, uint32_t s)
{
    state_new(l, STATE_COUNT);
    edge(l, 0x20, '"' - 1, GUARD_MORE, s + STR_BODY);
    edge(l, '"', '"', GUARD_DONE, s + STR_END);
    edge(l, '"' + 1, '\\' - 1, GUARD_MORE, s + STR_BODY);
    edge(l, '\\', '\\', GUARD_MORE, s + STR_ESCAPE);
    edge(l, '\\' + 1, 0x7F, GUARD_MORE, s + STR_BODY);
    edge(l, 0xC2, 0xDF, GUARD_MORE, s + STR_LAST);
    edge(l, 0xE0, 0xE0, GUARD_MORE, s + STR_E0);
    edge(l, 0xE1, 0xEC, GUARD_MORE, s + STR_LAST2);
    edge(l, 0xED, 0xED, GUARD_MORE, s + STR_ED);
    edge(l, 0xEE, 0xEF, GUARD_MORE, s + STR_LAST2);
    edge(l, 0xF0, 0xF0, GUARD_MORE, s + STR_F0);
    edge(l, 0xF1, 0xF3, GUARD_MORE, s + STR_LAST3);
    edge(l, 0xF4, 0xF4, GUARD_MORE, s + STR_F4);
}

/* Continuation bytes; the tables are Unicode's 3-7. */
static void lay_string_utf8(linker *l, uint32_t s)
{
    static const struct { uint8_t lo, hi, to; } rows[] = {
        {0x80, 0xBF, STR_BODY},  {0x80, 0xBF, STR_LAST},  {0xA0, 0xBF, STR_LAST}, {0x80, 0x9F, STR_LAST},
        {0x90, 0xBF, STR_LAST2}, {0x80, 0xBF, STR_LAST2}, {0x80, 0x8F, STR_LAST2},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        state_new(l, 0);
        edge(l, rows[i].lo, rows[i].hi, GUARD_NONE, s + rows[i].to);
    }
}

/* Escapes. What \u gives is a scalar value: a high surrogate is followed by a low one, which never comes alone. */
static void lay_string_escapes(linker *l, uint32_t s)
{
    static const char letters[] = "\"/\\bfnrt";
    state_new(l, 0); /* ESCAPE */
    for (const char *c = letters; *c; c++) edge(l, (uint8_t)*c, (uint8_t)*c, GUARD_NONE, s + STR_BODY);
    edge(l, 'u', 'u', GUARD_NONE, s + STR_U1);
    state_new(l, 0); /* U1: the first of four digits */
    edge(l, '0', '9', GUARD_NONE, s + STR_U2);
    edge(l, 'A', 'C', GUARD_NONE, s + STR_U2);
    edge(l, 'D', 'D', GUARD_NONE, s + STR_UD);
    edge(l, 'E', 'F', GUARD_NONE, s + STR_U2);
    edge(l, 'a', 'c', GUARD_NONE, s + STR_U2);
    edge(l, 'd', 'd', GUARD_NONE, s + STR_UD);
    edge(l, 'e', 'f', GUARD_NONE, s + STR_U2);
    state_new(l, 0);
    hex_edges(l, s + STR_U3);
    state_new(l, 0);
    hex_edges(l, s + STR_U4);
    state_new(l, 0);
    hex_edges(l, s + STR_BODY);
    state_new(l, 0); /* UD: the second digit says whether it is a high surrogate */
    edge(l, '0', '7', GUARD_NONE, s + STR_U3);
    edge(l, '8', '9', GUARD_NONE, s + STR_H3);
    edge(l, 'A', 'B', GUARD_NONE, s + STR_H3);
    edge(l, 'a', 'b', GUARD_NONE, s + STR_H3);
    state_new(l, 0);
    hex_edges(l, s + STR_H4);
    state_new(l, 0);
    hex_edges(l, s + STR_LOW_ESCAPE);
    state_new(l, 0);
    edge(l, '\\', '\\', GUARD_NONE, s + STR_LOW_U);
    state_new(l, 0);
    edge(l, 'u', 'u', GUARD_NONE, s + STR_LOW1);
    state_new(l, 0);
    edge(l, 'D', 'D', GUARD_NONE, s + STR_LOW2);
    edge(l, 'd', 'd', GUARD_NONE, s + STR_LOW2);
    state_new(l, 0);
    edge(l, 'C', 'F', GUARD_NONE, s + STR_U3);
    edge(l, 'c', 'f', GUARD_NONE, s + STR_U3);
}

static uint32_t lay_string(linker *l, const grammar_rule *rule)
{
    uint32_t s = state_new(l, 0);
    edge(l, '"', '"', GUARD_NONE, s + STR_BODY);
    lay_string_body(l, s);
    state_new(l, STATE_ACCEPT);
    lay_string_utf8(l, s);
    lay_string_escapes(l, s);
    QW_ASSERT(!grammar_ok(l->b) || l->g->n_states == s + STR_STATES);
    /* The opening quote enters the body, too: counts are one higher. */
    set_counts(l, s, rule->min + 1, rule->max >= GRAMMAR_COUNT_MAX ? GRAMMAR_UNLIMITED : rule->max + 1, 0);
    return s;
}

/* ---- arrays ----------------------------------------------------------------------------------- */

typedef struct array_layout {
    uint32_t close, end; /* white space was read and ] must come; behind the ] */
    uint32_t gap;
} array_layout;

/* Behind an item: a comma, or the end, under guards. */
static void lay_after_item(linker *l, const array_layout *a, bool more, grammar_guard more_guard, uint32_t next,
                           bool done, grammar_guard done_guard)
{
    if (more) edge(l, ',', ',', more_guard, next);
    if (done) edge(l, ']', ']', done_guard, a->end);
    if (done) call(l, false, a->gap, done_guard, a->close);
}

/* Behind the [: the end if it may be empty, white space, or the first item. */
static void lay_array_begin(linker *l, const array_layout *a, bool empty, uint32_t item, uint32_t behind_item)
{
    for (int with_gap = 1; with_gap >= 0; with_gap--) {
        state_new(l, 0);
        if (empty) edge(l, ']', ']', GUARD_NONE, a->end);
        if (with_gap) call(l, false, a->gap, GUARD_NONE, l->g->n_states);
        if (item) call(l, false, item, GUARD_NONE, behind_item);
    }
}

/* A place of an item: where it may come, the same behind white space, and behind the item. */
static void lay_array_place(linker *l, const array_layout *a, uint32_t item, bool loops)
{
    uint32_t here = state_new(l, 0);
    call(l, false, a->gap, GUARD_NONE, here + 1);
    call(l, false, item, GUARD_NONE, here + 2);
    state_new(l, 0);
    call(l, false, item, GUARD_NONE, here + 2);
    state_new(l, loops ? STATE_COUNT : 0);
}

/* [, two states behind it, three for each of the first items and for the others, white space before ], ] */
static uint32_t lay_array(linker *l, const grammar_rule *rule, uint32_t gap)
{
    uint32_t n = rule->n_parts < rule->max ? rule->n_parts : rule->max;
    bool rest = rule->rest && rule->max > n;
    uint32_t s = state_new(l, 0), places = s + 3, n_places = n + rest;
    array_layout a = {.close = places + 3 * n_places, .end = places + 3 * n_places + 1, .gap = gap};
    edge(l, '[', '[', GUARD_NONE, s + 1);
    uint32_t first = n_places == 0 ? 0 : n > 0 ? l->b->list[rule->parts] : rule->rest;
    lay_array_begin(l, &a, rule->min == 0, first, places + 2);
    for (uint32_t i = 0; i < n_places && grammar_ok(l->b); i++) {
        bool loops = i == n;
        lay_array_place(l, &a, loops ? rule->rest : l->b->list[rule->parts + i], loops);
        if (loops) lay_after_item(l, &a, true, GUARD_MORE, places + 3 * i, true, GUARD_DONE);
        else lay_after_item(l, &a, i + 1 < n_places, GUARD_NONE, places + 3 * (i + 1), i + 1 >= rule->min, GUARD_NONE);
    }
    state_new(l, 0);
    edge(l, ']', ']', GUARD_NONE, a.end);
    state_new(l, STATE_ACCEPT);
    uint32_t max = rule->max >= GRAMMAR_UNLIMITED ? GRAMMAR_UNLIMITED : rule->max - n;
    set_counts(l, s, rule->min > n ? rule->min - n : 0, max, rule->rest);
    return s;
}

/* ---- objects ---------------------------------------------------------------------------------- */

enum { OBJ_BEGIN, OBJ_OPENED, OBJ_OPENED_GAP, OBJ_COMMA, OBJ_COMMA_GAP, OBJ_AFTER, OBJ_CLOSE, OBJ_END, OBJ_PARTS };

/* The fixed states: { then a key or }, after a value a comma or }, white space where it may be. */
static void lay_object_frame(linker *l, uint32_t s, uint32_t keys, uint32_t gap)
{
    state_new(l, STATE_OPENED);
    edge(l, '"', '"', GUARD_KEY, keys);
    edge(l, '}', '}', GUARD_CLOSE, s + OBJ_END);
    call(l, false, gap, GUARD_NONE, s + OBJ_OPENED_GAP);
    state_new(l, 0);
    edge(l, '"', '"', GUARD_KEY, keys);
    edge(l, '}', '}', GUARD_CLOSE, s + OBJ_END);
    state_new(l, 0); /* COMMA */
    edge(l, '"', '"', GUARD_KEY, keys);
    call(l, false, gap, GUARD_NONE, s + OBJ_COMMA_GAP);
    state_new(l, 0);
    edge(l, '"', '"', GUARD_KEY, keys);
    state_new(l, 0); /* AFTER */
    edge(l, ',', ',', GUARD_KEY, s + OBJ_COMMA);
    edge(l, '}', '}', GUARD_CLOSE, s + OBJ_END);
    call(l, false, gap, GUARD_CLOSE, s + OBJ_CLOSE);
    state_new(l, 0);
    edge(l, '}', '}', GUARD_NONE, s + OBJ_END);
    state_new(l, STATE_ACCEPT);
}

/* Behind the key of entry i: a colon, perhaps a space, the value. */
static void lay_object_part(linker *l, uint32_t s, uint32_t i, bool open, const object_part *part)
{
    uint32_t here = s + OBJ_PARTS + 3 * i;
    state_new(l, open ? STATE_OPEN_KEY : 0);
    edge(l, ':', ':', GUARD_NONE, here + 1);
    state_new(l, 0);
    edge(l, ' ', ' ', GUARD_NONE, here + 2);
    call(l, false, part->rule, GUARD_NONE, s + OBJ_AFTER);
    state_new(l, 0);
    call(l, false, part->rule, GUARD_NONE, s + OBJ_AFTER);
}

/* The automaton of keys, with the closing quotes between the other bytes. */
static void lay_keys(linker *l, uint32_t s, uint32_t keys, uint32_t index)
{
    for (uint32_t i = 0; i < l->b->dfas[index].n && grammar_ok(l->b); i++) {
        const grammar_dfa *d = &l->b->dfas[index];
        const dfa_state *from = &d->states[i];
        uint32_t k = 0;
        state_new(l, i ? STATE_KEY : STATE_KEY | STATE_KEY_BEGIN);
        for (; k < from->n_edges && d->edges[from->edges + k].hi < '"'; k++)
            edge(l, d->edges[from->edges + k].lo, d->edges[from->edges + k].hi, GUARD_PATH,
                 keys + d->edges[from->edges + k].to);
        if (from->label) edge(l, '"', '"', GUARD_TAKE, s + OBJ_PARTS + 3 * (from->label - 1));
        for (; k < from->n_edges; k++)
            edge(l, d->edges[from->edges + k].lo, d->edges[from->edges + k].hi, GUARD_PATH,
                 keys + d->edges[from->edges + k].to);
        if (!grammar_ok(l->b)) return;
        l->g->states[keys + i].lo = (uint16_t)from->label;
    }
    if (l->b->dfas[index].n == 0) state_new(l, STATE_KEY); /* there are no keys: nothing comes here */
}

static uint32_t lay_object(linker *l, const grammar_rule *rule, uint32_t gap)
{
    qw_grammar *g = l->g;
    uint32_t n = rule->n_parts, s = state_new(l, 0), keys = s + OBJ_PARTS + 3 * n;
    if (!grammar_room(l->b, &g->objects, g->n_objects, 1, &g->objects_cap, sizeof *g->objects, QW_GRAMMAR_RULES_MAX,
                      "objects") ||
        !grammar_room(l->b, &g->parts, g->n_parts, n, &g->parts_cap, sizeof *g->parts, QW_GRAMMAR_STATES_MAX,
                      "properties"))
        return 0;
    grammar_object *o = &g->objects[g->n_objects++];
    *o = (grammar_object){.n = n, .n_open = rule->n_open, .min = rule->min, .max = rule->max,
                          .opened = s + OBJ_OPENED, .parts = g->n_parts, .keys = keys,
                          .n_keys = l->b->dfas[rule->dfa].n ? l->b->dfas[rule->dfa].n : 1, .words = (n + 63) / 64};
    g->n_parts += n;
    edge(l, '{', '{', GUARD_NONE, s + OBJ_OPENED);
    lay_object_frame(l, s, keys, gap);
    for (uint32_t i = 0; i < n && grammar_ok(l->b); i++) {
        const object_part part = l->b->parts[rule->parts + i];
        g->parts[o->parts + i] = (grammar_part){.state = s + OBJ_PARTS + 3 * i, .required = part.required};
        lay_object_part(l, s, i, i >= n - rule->n_open, &part);
    }
    lay_keys(l, s, keys, rule->dfa);
    for (uint32_t i = s; grammar_ok(l->b) && i < g->n_states; i++) g->states[i].object = g->n_objects;
    return s;
}

/* ---- the whole -------------------------------------------------------------------------------- */

static uint32_t lay_rule(linker *l, const grammar_rule *rule, uint32_t gap)
{
    switch (rule->kind) {
    case RULE_GAP: return lay_gap(l);
    case RULE_STRING: return lay_string(l, rule);
    case RULE_ARRAY: return lay_array(l, rule, gap);
    case RULE_OBJECT: return lay_object(l, rule, gap);
    default: return lay_ast(l, rule);
    }
}

/* Size of an expression, more than LEAF_SIZE_MAX when it calls anything but leaves. Stops when that is known. */
static uint32_t leaf_size(const grammar_build *b, uint32_t ast, int depth)
{
    const ast_node *node = &b->ast[ast];
    uint32_t size = 1;
    if (depth == GRAMMAR_NEST_MAX) return LEAF_SIZE_MAX + 1;
    if (node->op == AST_TOKEN || (node->op == AST_CALL && !b->rules[node->a].leaf)) return LEAF_SIZE_MAX + 1;
    if (node->op == AST_CALL) size += leaf_size(b, b->rules[node->a].ast, depth + 1);
    if (node->op == AST_BYTES) size += node->b;
    if (node->op == AST_DFA) size += b->dfas[node->a].n;
    for (uint32_t child = node->first; child && size <= LEAF_SIZE_MAX; child = b->ast[child].next)
        size += leaf_size(b, child, depth + 1);
    if (node->op == AST_REPEAT && (node->a > LEAF_SIZE_MAX || (node->b > LEAF_SIZE_MAX && node->b != UINT32_MAX)))
        return LEAF_SIZE_MAX + 1;
    return node->op == AST_REPEAT ? size * (1 + (node->b == UINT32_MAX ? node->a : node->b)) : size;
}

/* Small rules that call nothing go where they are called: characters, digits, names of things. Passes, because a leaf
 * may call leaves; a rule that comes back to itself never is one. */
static void find_leaves(linker *l)
{
    grammar_build *b = l->b;
    for (bool changed = true; changed && grammar_work(b, b->n_ast);) {
        changed = false;
        for (uint32_t i = b->n_rules; i-- > 1;) {
            grammar_rule *rule = &b->rules[i];
            if (rule->kind != RULE_AST || rule->leaf || rule->ast == 0) continue;
            rule->leaf = leaf_size(b, rule->ast, 0) <= LEAF_SIZE_MAX;
            changed |= rule->leaf;
        }
    }
}

static void lay_all(linker *l)
{
    grammar_build *b = l->b;
    find_leaves(l);
    state_new(l, 0); /* state 0 is none */
    for (uint32_t i = 1; i < b->n_rules && grammar_ok(b); i++) {
        const grammar_rule rule = b->rules[i];
        uint32_t start = lay_rule(l, &rule, b->gap);
        b->rules[i].start = start;
    }
    for (uint32_t i = 0; i < l->g->n_calls && grammar_ok(b); i++)
        if (!l->g->calls[i].token) l->g->calls[i].what = b->rules[l->g->calls[i].what].start;
    for (uint32_t i = 1; i < l->g->n_states && grammar_ok(b); i++)
        if (l->g->states[i].item) l->g->states[i].item = b->rules[l->g->states[i].item].start;
}

qw_grammar *grammar_link(grammar_build *b, uint32_t root, const qw_grammar_options *options)
{
    static _Atomic uint64_t serials;
    linker l = {.b = b};
    if (grammar_ok(b) && options && options->after_thinking) {
        uint32_t whole = grammar_rule_new(b, RULE_AST);
        uint32_t body = ast_cat(b, ast_repeat(b, ast_range(b, '\n', '\n'), 0, 2), ast_call(b, root));
        if (grammar_ok(b)) b->rules[whole].ast = body;
        root = whole;
    }
    if (grammar_ok(b)) grammar_gap(b);
    if (grammar_ok(b)) b->status = qw_alloc(&l.g, 1, sizeof *l.g, "the grammar", b->err);
    if (!grammar_ok(b)) return NULL;
    l.g->serial = 1 + atomic_fetch_add(&serials, 1);
    lay_all(&l);
    if (grammar_ok(b)) l.g->start = b->rules[root].start;
    grammar_prune(&l);
    if (grammar_ok(b)) return l.g;
    qw_grammar_destroy(l.g);
    return NULL;
}

void qw_grammar_destroy(qw_grammar *g)
{
    if (!g) return;
    free(g->states);
    free(g->edges);
    free(g->calls);
    free(g->objects);
    free(g->parts);
    free(g->reach);
    free(g->first);
    free(g->nullable);
    free(g);
}

size_t qw_grammar_n_states(const qw_grammar *g)
{
    return g->n_states;
}
