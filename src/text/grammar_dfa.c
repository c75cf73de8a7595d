/* grammar_dfa.c: deterministic automata: made from nondeterministic ones, combined, and made small.
 *
 * Subset construction over bytes, where calls of rules and tokens are symbols like bytes. What cannot lead to an
 * accepting state is removed, so a place in an automaton is never a dead end; states that accept the same are joined.
 * Owner: the thread that compiles.
 */
#include <stdlib.h>

#include "base/mem.h"
#include "text/grammar_nfa.h"

enum { MINIMIZE_MAX = 4096, DEAD = UINT32_MAX };

/* ---- building --------------------------------------------------------------------------------- */

uint32_t dfa_add_state(grammar_build *b, grammar_dfa *d, uint32_t label)
{
    if (!grammar_work(b, 4) || !grammar_room(b, &d->states, d->n, 1, &d->cap, sizeof *d->states, QW_DFA_STATES_MAX,
                                             "states of one expression"))
        return 0;
    d->states[d->n] = (dfa_state){.edges = d->n_edges, .links = d->n_links, .label = label};
    return d->n++;
}

bool dfa_add_edge(grammar_build *b, grammar_dfa *d, uint8_t lo, uint8_t hi, uint32_t to)
{
    dfa_state *s = &d->states[d->n - 1];
    if (s->n_edges > 0) { /* neighbours to the same place are one */
        dfa_edge *last = &d->edges[d->n_edges - 1];
        if (last->to == to && last->hi + 1 == lo) {
            last->hi = hi;
            return true;
        }
    }
    if (!grammar_room(b, &d->edges, d->n_edges, 1, &d->edges_cap, sizeof *d->edges, QW_GRAMMAR_EDGES_MAX, "edges"))
        return false;
    d->edges[d->n_edges++] = (dfa_edge){lo, hi, to};
    s->n_edges++;
    return true;
}

/* The state that it belongs to counts it. */
static bool add_link(grammar_build *b, grammar_dfa *d, dfa_link link)
{
    if (!grammar_room(b, &d->links, d->n_links, 1, &d->links_cap, sizeof *d->links, QW_GRAMMAR_EDGES_MAX, "calls"))
        return false;
    d->links[d->n_links++] = link;
    return true;
}

static void dfa_free(grammar_dfa *d)
{
    free(d->states);
    free(d->edges);
    free(d->links);
    *d = (grammar_dfa){0};
}

/* A table from hashes to numbers that the caller compares; open addressing, doubled at half load. */
typedef struct number_table {
    uint64_t *hashes;  /* owns */
    uint32_t *numbers; /* owns: 1 + number, 0: free */
    uint32_t size, n;
} number_table;

static void table_free(number_table *t)
{
    free(t->hashes);
    free(t->numbers);
}

static void table_put(number_table *t, uint64_t hash, uint32_t number)
{
    uint32_t i = (uint32_t)(hash >> 20) & (t->size - 1);
    while (t->numbers[i]) i = (i + 1) & (t->size - 1);
    t->hashes[i] = hash;
    t->numbers[i] = number + 1;
    t->n++;
}

static bool table_grow(grammar_build *b, number_table *t)
{
    number_table grown = {.size = t->size ? t->size * 2 : 64};
    if (2 * t->n < t->size) return true;
    b->status = qw_alloc(&grown.hashes, grown.size, sizeof *grown.hashes, "states", b->err);
    if (grammar_ok(b)) b->status = qw_alloc(&grown.numbers, grown.size, sizeof *grown.numbers, "states", b->err);
    if (!grammar_ok(b)) {
        table_free(&grown);
        return false;
    }
    for (uint32_t i = 0; i < t->size; i++)
        if (t->numbers[i]) table_put(&grown, t->hashes[i], t->numbers[i] - 1);
    table_free(t);
    *t = grown;
    return true;
}

/* The next number with this hash; *at begins at UINT32_MAX. False: there is none. */
static bool table_next(const number_table *t, uint64_t hash, uint32_t *at, uint32_t *number)
{
    if (t->size == 0) return false;
    uint32_t i = *at == UINT32_MAX ? (uint32_t)(hash >> 20) & (t->size - 1) : (*at + 1) & (t->size - 1);
    for (; t->numbers[i]; i = (i + 1) & (t->size - 1))
        if (t->hashes[i] == hash) {
            *at = i;
            *number = t->numbers[i] - 1;
            return true;
        }
    return false;
}

static inline uint64_t mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * UINT64_C(0x9E3779B97F4A7C15);
    return h ^ h >> 29;
}

/* ---- trimming --------------------------------------------------------------------------------- */

/* Marks the states from which something is accepted. Passes from the end: most edges lead on. */
static void mark_alive(grammar_build *b, const grammar_dfa *d, uint8_t *alive)
{
    for (bool changed = true; changed && grammar_work(b, d->n_edges + d->n_links);) {
        changed = false;
        for (uint32_t i = d->n; i-- > 0;) {
            const dfa_state *s = &d->states[i];
            bool is = alive[i] || s->label;
            for (uint32_t k = 0; !is && k < s->n_edges; k++) is = alive[d->edges[s->edges + k].to];
            for (uint32_t k = 0; !is && k < s->n_links; k++) is = alive[d->links[s->links + k].to];
            changed |= is != alive[i];
            alive[i] = is;
        }
    }
}

/* Copies the states with keep[i] to a new automaton, edges renamed by name[]; those to DEAD vanish. */
static void copy_states(grammar_build *b, grammar_dfa *d, const uint8_t *keep, const uint32_t *name)
{
    grammar_dfa out = {0};
    for (uint32_t i = 0; i < d->n && grammar_ok(b); i++) {
        const dfa_state s = d->states[i];
        if (!keep[i]) continue;
        dfa_add_state(b, &out, s.label);
        for (uint32_t k = 0; k < s.n_edges && grammar_ok(b); k++) {
            dfa_edge e = d->edges[s.edges + k];
            if (name[e.to] != DEAD) dfa_add_edge(b, &out, e.lo, e.hi, name[e.to]);
        }
        for (uint32_t k = 0; k < s.n_links && grammar_ok(b); k++) {
            dfa_link l = d->links[s.links + k];
            l.to = name[l.to];
            if (l.to != DEAD && add_link(b, &out, l)) out.states[out.n - 1].n_links++;
        }
    }
    dfa_free(d);
    *d = out;
}

static void trim(grammar_build *b, grammar_dfa *d)
{
    uint8_t *alive = NULL;
    uint32_t *name = NULL, n = 0;
    if (!grammar_ok(b) || d->n == 0) return;
    b->status = qw_alloc(&alive, d->n, 1, "states", b->err);
    if (grammar_ok(b)) b->status = qw_alloc(&name, d->n, sizeof *name, "states", b->err);
    if (grammar_ok(b)) mark_alive(b, d, alive);
    if (grammar_ok(b)) {
        for (uint32_t i = 0; i < d->n; i++) name[i] = alive[i] ? n++ : DEAD;
        if (!alive[0]) dfa_free(d);
        else if (n < d->n) copy_states(b, d, alive, name);
    }
    free(alive);
    free(name);
}

/* ---- making small ----------------------------------------------------------------------------- */

/* The edge of s that begins at k, joined with its neighbours that lead to the same class; moves k behind them. */
static dfa_edge class_edge(const grammar_dfa *d, const dfa_state *s, const uint32_t *class, uint32_t *k)
{
    dfa_edge e = d->edges[s->edges + *k];
    for (++*k; *k < s->n_edges; ++*k) {
        dfa_edge next = d->edges[s->edges + *k];
        if (next.lo != e.hi + 1 || class[next.to] != class[e.to]) break;
        e.hi = next.hi;
    }
    e.to = class[e.to];
    return e;
}

static uint64_t signature(const grammar_dfa *d, uint32_t i, const uint32_t *class)
{
    const dfa_state *s = &d->states[i];
    uint64_t h = mix(class[i], s->n_links);
    for (uint32_t k = 0; k < s->n_edges;) {
        dfa_edge e = class_edge(d, s, class, &k);
        h = mix(h, (uint64_t)e.to << 16 | (uint64_t)e.lo << 8 | e.hi);
    }
    for (uint32_t k = 0; k < s->n_links; k++) {
        const dfa_link *l = &d->links[s->links + k];
        h = mix(h, (uint64_t)class[l->to] << 32 | l->what << 1 | l->token);
    }
    return h;
}

static bool same(const grammar_dfa *d, uint32_t i, uint32_t j, const uint32_t *class)
{
    const dfa_state *s = &d->states[i], *t = &d->states[j];
    uint32_t k = 0, l = 0;
    if (class[i] != class[j] || s->n_links != t->n_links) return false;
    while (k < s->n_edges && l < t->n_edges) {
        dfa_edge e = class_edge(d, s, class, &k), f = class_edge(d, t, class, &l);
        if (e.lo != f.lo || e.hi != f.hi || e.to != f.to) return false;
    }
    if (k < s->n_edges || l < t->n_edges) return false;
    for (k = 0; k < s->n_links; k++) {
        const dfa_link *x = &d->links[s->links + k], *y = &d->links[t->links + k];
        if (x->what != y->what || x->token != y->token || class[x->to] != class[y->to]) return false;
    }
    return true;
}

/* One round: classes[i] becomes the number of its kind of state. Returns how many there are. */
static uint32_t refine(grammar_build *b, const grammar_dfa *d, uint32_t *class, uint32_t *next, uint32_t *first)
{
    number_table table = {0};
    uint32_t n = 0;
    for (uint32_t i = 0; i < d->n && table_grow(b, &table); i++) {
        uint64_t hash = signature(d, i, class);
        uint32_t at = UINT32_MAX, found = 0;
        bool known = false;
        while (!known && table_next(&table, hash, &at, &found)) known = same(d, i, first[found], class);
        if (!known) {
            found = n++;
            first[found] = i;
            table_put(&table, hash, found);
        }
        next[i] = found;
    }
    table_free(&table);
    memcpy(class, next, d->n * sizeof *class);
    return n;
}

/* Joins states that accept the same. The class of state 0 is 0 in every round, so it stays the beginning. */
static void minimize(grammar_build *b, grammar_dfa *d)
{
    uint32_t *class = NULL, n = 0;
    uint8_t *keep = NULL;
    if (!grammar_ok(b) || d->n < 2 || d->n > MINIMIZE_MAX) return;
    b->status = qw_alloc(&class, 3 * (size_t)d->n, sizeof *class, "states", b->err);
    if (grammar_ok(b)) b->status = qw_alloc(&keep, d->n, 1, "states", b->err);
    for (uint32_t i = 0; grammar_ok(b) && i < d->n; i++) class[i] = d->states[i].label;
    uint32_t *next = class + d->n, *first = class + 2 * (size_t)d->n;
    for (uint32_t before = 0; grammar_work(b, 2 * d->n_edges + d->n);) {
        n = refine(b, d, class, next, first);
        if (n == before) break;
        before = n;
    }
    if (grammar_ok(b) && n < d->n) {
        for (uint32_t i = 0; i < n; i++) keep[first[i]] = 1;
        copy_states(b, d, keep, class);
    }
    free(class);
    free(keep);
}

/* ---- subset construction ---------------------------------------------------------------------- */

typedef struct subset {
    grammar_build *b;
    const grammar_nfa *nfa;
    grammar_dfa *dfa;
    uint32_t *members;     /* owns: those of all sets */
    uint32_t n_members, members_cap;
    uint32_t *begin;       /* owns: [dfa->n], of a set in members */
    uint32_t begin_cap;
    uint32_t *mark;        /* owns: [nfa->n], round in which a state was last seen */
    uint32_t *stack;       /* owns: [nfa->n] */
    uint32_t round;
    number_table table;
} subset;

static bool is_kept(const grammar_nfa *nfa, uint32_t s)
{
    if (nfa->label[s]) return true;
    for (uint32_t e = nfa->first[s]; e; e = nfa->edges[e].next)
        if (nfa->edges[e].kind > NFA_BEGIN) return true;
    return false;
}

static void follow(subset *x, uint32_t to, uint32_t *n)
{
    if (x->mark[to] == x->round) return;
    x->mark[to] = x->round;
    x->stack[(*n)++] = to;
}

/* Follows empty edges from stack[0, n), which were marked; returns how many states it holds then. */
static uint32_t close_set(subset *x, uint32_t n, bool begin, bool end)
{
    for (uint32_t i = 0; i < n && grammar_work(x->b, 1); i++)
        for (uint32_t e = x->nfa->first[x->stack[i]]; e; e = x->nfa->edges[e].next) {
            const nfa_edge *edge = &x->nfa->edges[e];
            if (edge->kind == NFA_EMPTY || (edge->kind == NFA_BEGIN && begin) || (edge->kind == NFA_END && end))
                follow(x, edge->to, &n);
        }
    return n;
}

static int compare_numbers(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static uint32_t best_label(uint32_t x, uint32_t y)
{
    if (x == y || y == LABEL_NONE) return x;
    if (x == LABEL_NONE) return y;
    bool weak = x >= LABEL_WEAK && x < LABEL_WEAKEST && y >= LABEL_WEAK && y < LABEL_WEAKEST;
    if (weak) return LABEL_WEAK; /* two of them: none, and nothing weaker either */
    return x < y ? x : y;
}

/* Label of the set whose members are stack[0, n). */
static uint32_t label_of(subset *x, uint32_t n, bool begin)
{
    uint32_t label = LABEL_NONE;
    x->round++;
    for (uint32_t i = 0; i < n; i++) x->mark[x->stack[i]] = x->round;
    n = close_set(x, n, begin, true);
    for (uint32_t i = 0; i < n; i++) label = best_label(label, x->nfa->label[x->stack[i]]);
    return label == LABEL_WEAK ? LABEL_NONE : label;
}

/* The state whose set is closed in stack[0, n); made when it is new. begin: it is the first one. */
static uint32_t intern(subset *x, uint32_t n, bool begin)
{
    uint32_t kept = 0, at = UINT32_MAX, found;
    uint64_t hash = 1;
    for (uint32_t i = 0; i < n; i++)
        if (is_kept(x->nfa, x->stack[i])) x->stack[kept++] = x->stack[i];
    qsort(x->stack, kept, sizeof *x->stack, compare_numbers);
    for (uint32_t i = 0; i < kept; i++) hash = mix(hash, x->stack[i]);
    while (!begin && table_next(&x->table, hash, &at, &found)) {
        uint32_t from = x->begin[found], to = found + 1 < x->dfa->n ? x->begin[found + 1] : x->n_members;
        if (to - from == kept && memcmp(x->members + from, x->stack, kept * sizeof *x->stack) == 0) return found;
    }
    if (!table_grow(x->b, &x->table) ||
        !grammar_room(x->b, &x->members, x->n_members, kept, &x->members_cap, sizeof *x->members, 8u << 20,
                      "states that are possible at once") ||
        !grammar_room(x->b, &x->begin, x->dfa->n, 1, &x->begin_cap, sizeof *x->begin, QW_DFA_STATES_MAX + 1,
                      "states of one expression"))
        return 0;
    if (kept > 0) memcpy(x->members + x->n_members, x->stack, kept * sizeof *x->stack);
    x->begin[x->dfa->n] = x->n_members;
    x->n_members += kept;
    if (!begin) table_put(&x->table, hash, x->dfa->n);
    /* Its edges are set when it is its turn: they have to lie in one piece. */
    return dfa_add_state(x->b, x->dfa, label_of(x, kept, begin));
}

/* State that a symbol leads to from members[from, to): edges of that kind whose bytes hold lo, or that value. */
static uint32_t move(subset *x, uint32_t from, uint32_t to, nfa_kind kind, uint32_t value)
{
    uint32_t n = 0;
    x->round++;
    for (uint32_t i = from; i < to; i++)
        for (uint32_t e = x->nfa->first[x->members[i]]; e; e = x->nfa->edges[e].next) {
            const nfa_edge *edge = &x->nfa->edges[e];
            if (edge->kind != kind) continue;
            bool hit = kind == NFA_BYTE ? edge->lo <= value && value <= edge->hi : edge->value == value;
            if (hit) follow(x, edge->to, &n);
        }
    return n ? intern(x, close_set(x, n, false, false), false) : DEAD;
}

/* The edges of state i, which has none yet. */
static void add_edges(grammar_build *b, grammar_dfa *d, uint32_t i, const dfa_edge *edges, uint32_t n)
{
    if (n == 0 || !grammar_room(b, &d->edges, d->n_edges, n, &d->edges_cap, sizeof *d->edges, QW_GRAMMAR_EDGES_MAX,
                                "edges"))
        return;
    memcpy(d->edges + d->n_edges, edges, n * sizeof *edges);
    d->states[i].edges = d->n_edges;
    d->states[i].n_edges = n;
    d->n_edges += n;
}

/* Edges of state i, whose set is members[from, to). They are collected first: making states appends too. */
static void expand_bytes(subset *x, uint32_t i, uint32_t from, uint32_t to)
{
    bool cut[257] = {false};
    dfa_edge edges[256];
    uint32_t n = 0;
    for (uint32_t m = from; m < to; m++)
        for (uint32_t e = x->nfa->first[x->members[m]]; e; e = x->nfa->edges[e].next)
            if (x->nfa->edges[e].kind == NFA_BYTE) cut[x->nfa->edges[e].lo] = cut[x->nfa->edges[e].hi + 1] = true;
    for (unsigned lo = 0, hi; lo < 256 && grammar_work(x->b, to - from); lo = hi) {
        for (hi = lo + 1; hi < 256 && !cut[hi]; hi++) continue;
        uint32_t target = move(x, from, to, NFA_BYTE, lo);
        if (target == DEAD) continue;
        if (n > 0 && edges[n - 1].to == target && edges[n - 1].hi + 1u == lo) edges[n - 1].hi = (uint8_t)(hi - 1);
        else edges[n++] = (dfa_edge){(uint8_t)lo, (uint8_t)(hi - 1), target};
    }
    add_edges(x->b, x->dfa, i, edges, n);
}

/* Calls and tokens of state i, each once. */
static void expand_links(subset *x, uint32_t i, uint32_t from, uint32_t to)
{
    grammar_dfa *d = x->dfa;
    uint32_t begin = d->n_links;
    for (uint32_t m = from; m < to && grammar_ok(x->b); m++)
        for (uint32_t e = x->nfa->first[x->members[m]]; e && grammar_ok(x->b); e = x->nfa->edges[e].next) {
            const nfa_edge edge = x->nfa->edges[e];
            bool known = edge.kind != NFA_CALL && edge.kind != NFA_TOKEN, token = edge.kind == NFA_TOKEN;
            for (uint32_t k = begin; !known && k < d->n_links && grammar_work(x->b, 1); k++)
                known = d->links[k].what == edge.value && d->links[k].token == token;
            if (known) continue;
            uint32_t target = move(x, from, to, edge.kind, edge.value);
            if (grammar_ok(x->b)) add_link(x->b, d, (dfa_link){token, edge.value, target});
        }
    if (!grammar_ok(x->b)) return;
    d->states[i].links = begin;
    d->states[i].n_links = d->n_links - begin;
}

static void construct(subset *x)
{
    grammar_build *b = x->b;
    uint32_t n = 0;
    b->status = qw_alloc(&x->mark, x->nfa->n, sizeof *x->mark, "states", b->err);
    if (grammar_ok(b)) b->status = qw_alloc(&x->stack, x->nfa->n, sizeof *x->stack, "states", b->err);
    if (!grammar_ok(b)) return;
    x->round++;
    follow(x, 0, &n);
    intern(x, close_set(x, n, true, false), true);
    for (uint32_t i = 0; i < x->dfa->n && grammar_ok(b); i++) {
        uint32_t from = x->begin[i], to = i + 1 < x->dfa->n ? x->begin[i + 1] : x->n_members;
        expand_bytes(x, i, from, to);
        expand_links(x, i, from, to);
    }
}

/* Takes d into the build as a new automaton. */
static uint32_t enter(grammar_build *b, grammar_dfa *d)
{
    trim(b, d);
    minimize(b, d);
    uint32_t index = grammar_dfa_new(b);
    if (index) b->dfas[index] = *d;
    else dfa_free(d);
    return index;
}

uint32_t grammar_dfa_of(grammar_build *b, const labelled_ast *parts, size_t n)
{
    grammar_nfa nfa = {0};
    grammar_dfa dfa = {0};
    for (size_t i = 0; i < n; i++) nfa_add(b, &nfa, &parts[i]);
    subset x = {.b = b, .nfa = &nfa, .dfa = &dfa};
    if (grammar_ok(b) && n > 0) construct(&x);
    table_free(&x.table);
    free(x.members);
    free(x.begin);
    free(x.mark);
    free(x.stack);
    nfa_free(&nfa);
    return enter(b, &dfa);
}

/* ---- combining -------------------------------------------------------------------------------- */

/* States of a product are pairs; DEAD: the second automaton has given up. When characters are counted, the second
 * state is the count, and below it what is left of a character. */
enum { INSIDE_NONE = 0, INSIDE_LAST, INSIDE_LAST2, INSIDE_LAST3, INSIDE_ESCAPE, INSIDE_HEX, INSIDE_BITS = 4 };

typedef struct product {
    grammar_build *b;
    uint32_t x, y;         /* automata; y is 0 when characters are counted instead */
    bool without;
    uint32_t min, max;     /* characters */
    grammar_form form;
    grammar_dfa out;
    struct { uint32_t x, y; } *pairs; /* owns: [out.n] */
    uint32_t pairs_cap;
    number_table table;
} product;

static uint32_t pair_state(product *p, uint32_t x, uint32_t y)
{
    uint64_t hash = mix(mix(1, x), y);
    uint32_t at = UINT32_MAX, found;
    while (table_next(&p->table, hash, &at, &found))
        if (p->pairs[found].x == x && p->pairs[found].y == y) return found;
    if (!table_grow(p->b, &p->table) || !grammar_room(p->b, &p->pairs, p->out.n, 1, &p->pairs_cap, sizeof *p->pairs,
                                                      QW_DFA_STATES_MAX + 1, "states of one expression"))
        return 0;
    p->pairs[p->out.n].x = x;
    p->pairs[p->out.n].y = y;
    table_put(&p->table, hash, p->out.n);
    bool second = p->y == 0 ? y >> INSIDE_BITS >= p->min : y != DEAD && p->b->dfas[p->y].states[y].label;
    bool accepts = p->b->dfas[p->x].states[x].label && second != p->without;
    return dfa_add_state(p->b, &p->out, accepts ? LABEL_ACCEPT : LABEL_NONE);
}

/* Where the count goes from y with byte c. The text is known to be of the form. */
static uint32_t count_byte(const product *p, uint32_t y, uint8_t c)
{
    uint32_t inside = y & ((1u << INSIDE_BITS) - 1), count = y >> INSIDE_BITS;
    if (inside == INSIDE_NONE && count == p->max) return DEAD;
    if (inside == INSIDE_NONE && c >= 0xC0) inside = c >= 0xF0 ? INSIDE_LAST3 : c >= 0xE0 ? INSIDE_LAST2 : INSIDE_LAST;
    else if (inside == INSIDE_NONE && c == '\\' && p->form == FORM_JSON) inside = INSIDE_ESCAPE;
    else if (inside == INSIDE_ESCAPE && c == 'u') inside = INSIDE_HEX + 3;
    else if ((inside > INSIDE_LAST && inside <= INSIDE_LAST3) || inside > INSIDE_HEX) inside--;
    else inside = INSIDE_NONE;
    if (inside == INSIDE_NONE && (p->max != UINT32_MAX || count < p->min)) count++;
    return count << INSIDE_BITS | inside;
}

/* Where the second automaton goes from y with byte c, and in *hi the last byte for which that is so. */
static uint32_t step_until(const grammar_dfa *d, uint32_t y, unsigned c, unsigned *hi)
{
    *hi = 255;
    if (y == DEAD) return DEAD;
    for (uint32_t k = 0; k < d->states[y].n_edges; k++) {
        const dfa_edge *e = &d->edges[d->states[y].edges + k];
        if (c > e->hi) continue;
        *hi = c < e->lo ? e->lo - 1u : e->hi;
        return c < e->lo ? DEAD : e->to;
    }
    return DEAD;
}

static void expand_pair(product *p, uint32_t i)
{
    dfa_edge edges[256];
    uint32_t n = 0, x = p->pairs[i].x, y = p->pairs[i].y;
    for (uint32_t k = 0; k < p->b->dfas[p->x].states[x].n_edges; k++) {
        const dfa_edge e = p->b->dfas[p->x].edges[p->b->dfas[p->x].states[x].edges + k];
        for (unsigned c = e.lo, hi; c <= e.hi && grammar_work(p->b, 1); c = hi + 1) {
            uint32_t to = p->y ? step_until(&p->b->dfas[p->y], y, c, &hi) : count_byte(p, y, (uint8_t)(hi = c));
            if (hi > e.hi) hi = e.hi;
            if (to == DEAD && !p->without) continue;
            to = pair_state(p, e.to, to);
            if (n > 0 && edges[n - 1].to == to && edges[n - 1].hi + 1u == c) edges[n - 1].hi = (uint8_t)hi;
            else edges[n++] = (dfa_edge){(uint8_t)c, (uint8_t)hi, to};
        }
    }
    add_edges(p->b, &p->out, i, edges, n);
}

/* The product from its first pair on. y: state of the second automaton. */
static uint32_t combine(product *p, uint32_t y)
{
    if (!grammar_ok(p->b)) return 0;
    if (p->b->dfas[p->x].n > 0) pair_state(p, 0, y);
    for (uint32_t i = 0; i < p->out.n && grammar_ok(p->b); i++) expand_pair(p, i);
    table_free(&p->table);
    free(p->pairs);
    return enter(p->b, &p->out);
}

uint32_t grammar_dfa_both(grammar_build *b, uint32_t x, uint32_t y)
{
    product p = {.b = b, .x = x, .y = y};
    if (grammar_ok(b) && grammar_dfa_empty(b, y)) return y;
    return combine(&p, 0);
}

uint32_t grammar_dfa_without(grammar_build *b, uint32_t x, uint32_t y)
{
    product p = {.b = b, .x = x, .y = y, .without = true};
    if (grammar_ok(b) && grammar_dfa_empty(b, y)) return x;
    return combine(&p, 0);
}

uint32_t grammar_dfa_of_length(grammar_build *b, uint32_t x, uint32_t min, uint32_t max, grammar_form form)
{
    product p = {.b = b, .x = x, .min = min, .max = max, .form = form};
    return combine(&p, 0);
}

bool grammar_dfa_accepts(const grammar_build *b, uint32_t dfa, const char *s, size_t n)
{
    const grammar_dfa *d = &b->dfas[dfa];
    uint32_t at = 0;
    if (d->n == 0) return false;
    for (size_t i = 0; i < n; i++) {
        unsigned hi;
        at = step_until(d, at, (uint8_t)s[i], &hi);
        if (at == DEAD) return false;
    }
    return d->states[at].label != LABEL_NONE;
}
