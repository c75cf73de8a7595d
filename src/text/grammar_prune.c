/* grammar_prune.c: what can never end goes, and what matching has to know of each state is computed.
 *
 * All of it are least fixed points, reached by passes over the states from the last to the first, because edges mostly
 * lead on. Each pass is counted as work. Owner: the thread that compiles.
 */
#include <stdlib.h>

#include "base/mem.h"
#include "text/grammar_link.h"

bool grammar_pass(linker *l)
{
    return grammar_work(l->b, (uint64_t)l->g->n_states + l->g->n_edges + l->g->n_calls);
}

/* ---- what can end ----------------------------------------------------------------------------- */

/* Can the object behind { be completed, with the entries whose values can? */
static bool object_can_end(const qw_grammar *g, const grammar_object *o, const uint8_t *good)
{
    uint64_t required = 0, usable = 0;
    bool open = false;
    for (uint32_t i = 0; i < o->n; i++) {
        const grammar_part *p = &g->parts[o->parts + i];
        if (!good[p->state] && p->required) return false;
        required += p->required;
        if (i >= o->n - o->n_open) open |= good[p->state];
        else usable += good[p->state];
    }
    return required <= o->max && (open || usable >= o->min);
}

static bool state_can_end(const qw_grammar *g, uint32_t i, const uint8_t *good)
{
    const grammar_state *s = &g->states[i];
    if (s->flags & STATE_OPENED) return object_can_end(g, &g->objects[s->object - 1], good);
    if (s->flags & STATE_ACCEPT) return true;
    for (uint32_t k = 0; k < s->n_edges; k++)
        if (good[g->edges[s->edges + k].to]) return true;
    for (uint32_t k = 0; k < s->n_calls; k++) {
        const grammar_call *c = &g->calls[s->calls + k];
        if (good[c->to] && (c->token || good[c->what])) return true;
    }
    return false;
}

static void find_good(linker *l, uint8_t *good)
{
    for (bool changed = true; changed && grammar_pass(l);) {
        changed = false;
        for (uint32_t i = l->g->n_states; i-- > 1;)
            if (!good[i] && state_can_end(l->g, i, good)) good[i] = changed = true;
    }
}

/* Removes edges and calls that lead to no end, and the marks of entries that cannot be used. */
static void remove_bad(qw_grammar *g, const uint8_t *good)
{
    for (uint32_t i = 1; i < g->n_states; i++) {
        grammar_state *s = &g->states[i];
        uint16_t n_edges = 0, n_calls = 0;
        for (uint32_t k = 0; k < s->n_edges; k++) {
            grammar_edge e = g->edges[s->edges + k];
            if (good[e.to]) g->edges[s->edges + n_edges++] = e;
        }
        for (uint32_t k = 0; k < s->n_calls; k++) {
            grammar_call c = g->calls[s->calls + k];
            if (good[c.to] && (c.token || good[c.what])) g->calls[s->calls + n_calls++] = c;
        }
        s->n_edges = n_edges;
        s->n_calls = n_calls;
    }
    for (uint32_t i = 0; i < g->n_parts; i++) g->parts[i].usable = good[g->parts[i].state];
}

/* ---- keys ------------------------------------------------------------------------------------- */

/* Entries that the states of an object's keys lead to. */
static void find_reach(linker *l, grammar_object *o)
{
    qw_grammar *g = l->g;
    uint64_t words = (uint64_t)o->n_keys * o->words;
    o->reach = g->n_reach;
    if (words > UINT32_MAX / 2 || !grammar_room(l->b, &g->reach, g->n_reach, (uint32_t)words, &g->reach_cap,
                                                sizeof *g->reach, 8u << 20, "pairs of keys and properties"))
        return;
    g->n_reach += (uint32_t)words;
    uint64_t *reach = g->reach + o->reach;
    for (uint32_t i = 0; i < o->n_keys; i++) {
        uint32_t ends = g->states[o->keys + i].lo;
        if (ends && g->parts[o->parts + ends - 1].usable)
            reach[(size_t)i * o->words + (ends - 1) / 64] |= UINT64_C(1) << (ends - 1) % 64;
    }
    for (bool changed = true; changed && grammar_work(l->b, words * 4);) {
        changed = false;
        for (uint32_t i = o->n_keys; i-- > 0;) {
            const grammar_state *s = &g->states[o->keys + i];
            uint64_t *own = reach + (size_t)i * o->words;
            for (uint32_t k = 0; k < s->n_edges; k++) {
                const grammar_edge *e = &g->edges[s->edges + k];
                if (e->guard != GUARD_PATH) continue;
                for (uint32_t w = 0; w < o->words; w++) {
                    uint64_t more = reach[(size_t)(e->to - o->keys) * o->words + w] & ~own[w];
                    own[w] |= more;
                    changed |= more != 0;
                }
            }
        }
    }
}

/* ---- bytes that a state can take -------------------------------------------------------------- */

static bool gather(linker *l, uint32_t i)
{
    qw_grammar *g = l->g;
    const grammar_state *s = &g->states[i];
    uint64_t set[4];
    uint8_t nullable = g->nullable[i] | (s->flags & STATE_ACCEPT);
    memcpy(set, g->first[i], sizeof set);
    for (uint32_t k = 0; k < s->n_calls; k++) {
        const grammar_call *c = &g->calls[s->calls + k];
        if (c->token) continue;
        for (int w = 0; w < 4; w++) set[w] |= g->first[c->what][w];
        if (!g->nullable[c->what]) continue;
        for (int w = 0; w < 4; w++) set[w] |= g->first[c->to][w];
        nullable |= g->nullable[c->to];
    }
    bool changed = nullable != g->nullable[i] || memcmp(set, g->first[i], sizeof set) != 0;
    memcpy(g->first[i], set, sizeof set);
    g->nullable[i] = nullable;
    return changed;
}

static void find_first(linker *l)
{
    qw_grammar *g = l->g;
    for (uint32_t i = 1; i < g->n_states && grammar_work(l->b, 32 * (uint64_t)g->states[i].n_edges); i++)
        for (uint32_t k = 0; k < g->states[i].n_edges; k++) {
            const grammar_edge *e = &g->edges[g->states[i].edges + k];
            for (unsigned c = e->lo; c <= e->hi; c++) g->first[i][c / 64] |= UINT64_C(1) << c % 64;
        }
    for (bool changed = true; changed && grammar_pass(l);) {
        changed = false;
        for (uint32_t i = g->n_states; i-- > 1;) changed |= gather(l, i);
    }
}

/* ---- rules that call themselves --------------------------------------------------------------- */

static const char *rule_name(linker *l, uint32_t state)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < l->b->n_rules; i++)
        if (l->b->rules[i].start <= state && l->b->rules[i].start >= l->b->rules[best].start) best = i;
    return l->b->rules[best].name[0] ? l->b->rules[best].name : "(unnamed)";
}

/* Calls, and returns from what may take nothing, must not lead in a circle: following them would not end. States that
 * nothing leads to are taken away until none is left, or a circle. */
static void refuse_circles(linker *l)
{
    qw_grammar *g = l->g;
    uint32_t *in = NULL, *queue = NULL, n = 0, done = 0;
    l->b->status = qw_alloc(&in, g->n_states, sizeof *in, "states", l->b->err);
    if (grammar_ok(l->b)) l->b->status = qw_alloc(&queue, g->n_states, sizeof *queue, "states", l->b->err);
    if (!grammar_ok(l->b)) goto done;
    for (uint32_t i = 0; i < g->n_states; i++)
        for (uint32_t k = 0; k < g->states[i].n_calls; k++) {
            const grammar_call *c = &g->calls[g->states[i].calls + k];
            if (c->token) continue;
            in[c->what]++;
            if (g->nullable[c->what]) in[c->to]++;
        }
    for (uint32_t i = 0; i < g->n_states; i++)
        if (in[i] == 0) queue[n++] = i;
    for (; done < n; done++)
        for (uint32_t k = 0; k < g->states[queue[done]].n_calls; k++) {
            const grammar_call *c = &g->calls[g->states[queue[done]].calls + k];
            if (c->token) continue;
            if (--in[c->what] == 0) queue[n++] = c->what;
            if (g->nullable[c->what] && --in[c->to] == 0) queue[n++] = c->to;
        }
    for (uint32_t i = 0; i < g->n_states && grammar_ok(l->b); i++)
        if (in[i] > 0)
            grammar_fail(l->b, QW_E_ARG, "the rule %s comes back to itself without taking a character", rule_name(l, i));
done:
    free(in);
    free(queue);
}

/* ---- frames that are needed ------------------------------------------------------------------- */

static bool is_tail(const qw_grammar *g, uint32_t i)
{
    const grammar_state *s = &g->states[i];
    return (s->flags & STATE_ACCEPT) && !(s->flags & STATE_COUNT) && s->n_edges == 0 && s->n_calls == 0;
}

static int compare_needs(const void *x, const void *y)
{
    uint16_t a = *(const uint16_t *)x, b = *(const uint16_t *)y;
    return (a > b) - (a < b);
}

/* Frames for the values of an object: those of the required ones, and of the cheapest others that it takes to have
 * enough. scratch: [n]. */
static uint16_t object_need(const qw_grammar *g, const grammar_object *o, uint16_t *scratch)
{
    uint32_t need = 0, open = GRAMMAR_NEED_NEVER, n = 0, required = 0;
    for (uint32_t i = 0; i < o->n; i++) {
        const grammar_part *p = &g->parts[o->parts + i];
        uint16_t own = g->states[p->state].need;
        required += p->required;
        if (p->required && own > need) need = own;
        else if (!p->usable || p->required) continue;
        else if (i < o->n - o->n_open) scratch[n++] = own;
        else if (own < open) open = own;
    }
    if (required >= o->min) return (uint16_t)need;
    /* As many others as are missing, or keys that come again and again. */
    uint32_t missing = o->min - required, other = open;
    qsort(scratch, n, sizeof *scratch, compare_needs);
    if (missing <= n && scratch[missing - 1] < other) other = scratch[missing - 1];
    return (uint16_t)(other > need ? other : need);
}

static uint16_t state_need(const qw_grammar *g, uint32_t i, uint16_t *scratch)
{
    const grammar_state *s = &g->states[i];
    uint32_t need = GRAMMAR_NEED_NEVER;
    if (s->flags & STATE_OPENED) return object_need(g, &g->objects[s->object - 1], scratch);
    if (s->flags & STATE_ACCEPT) return 0;
    for (uint32_t k = 0; k < s->n_edges; k++) {
        uint32_t to = g->states[g->edges[s->edges + k].to].need;
        if (to < need) need = to;
    }
    for (uint32_t k = 0; k < s->n_calls; k++) {
        const grammar_call *c = &g->calls[s->calls + k];
        uint32_t to = g->states[c->to].need, inner = c->token ? 0 : g->states[c->what].need + !is_tail(g, c->to);
        if (inner > to) to = inner;
        if (to < need) need = to;
    }
    return (uint16_t)(need < GRAMMAR_NEED_NEVER ? need : GRAMMAR_NEED_NEVER);
}

static void find_need(linker *l)
{
    qw_grammar *g = l->g;
    uint16_t *scratch = NULL;
    l->b->status = qw_alloc(&scratch, g->n_parts, sizeof *scratch, "properties", l->b->err);
    for (uint32_t i = 0; i < g->n_states; i++) g->states[i].need = GRAMMAR_NEED_NEVER;
    for (bool changed = true; changed && grammar_pass(l);) {
        changed = false;
        for (uint32_t i = g->n_states; i-- > 1;) {
            uint16_t need = state_need(g, i, scratch);
            changed |= need < g->states[i].need;
            if (need < g->states[i].need) g->states[i].need = need;
        }
    }
    free(scratch);
}

/* What an object can still hold from each of its entries on. */
static void count_parts(qw_grammar *g)
{
    for (uint32_t k = 0; k < g->n_objects; k++) {
        const grammar_object *o = &g->objects[k];
        uint16_t base = g->states[o->opened].need;
        uint32_t required = 0, cheap = 0, next = o->n - o->n_open;
        for (uint32_t i = o->n; i-- > 0;) {
            grammar_part *p = &g->parts[o->parts + i];
            bool open = i >= o->n - o->n_open;
            p->need = g->states[p->state].need;
            p->cheap = p->usable && p->need <= base;
            if (!open && p->required) {
                required++;
                next = i;
            }
            cheap += !open && p->cheap;
            p->required_after = (uint16_t)required;
            p->cheap_after = (uint16_t)cheap;
            p->next_required = next;
        }
    }
}

/* ---- ordinary characters ---------------------------------------------------------------------- */

/* Ordinary characters, as ranges of their bytes: all but controls, quotes, backslashes, < and, because patterns leave
 * them out of ".", U+2028 and U+2029. */
typedef struct byte_range {
    uint8_t lo, hi;
} byte_range;
static const struct {
    int n;
    byte_range bytes[4];
} plain[] = {
    {1, {{' ', '!'}}},  {1, {{'#', ';'}}},  {1, {{'=', '['}}},  {1, {{']', 0x7F}}},
    {2, {{0xC2, 0xDF}, {0x80, 0xBF}}},
    {3, {{0xE0, 0xE0}, {0xA0, 0xBF}, {0x80, 0xBF}}}, {3, {{0xE1, 0xE1}, {0x80, 0xBF}, {0x80, 0xBF}}},
    {3, {{0xE2, 0xE2}, {0x80, 0x80}, {0x80, 0xA7}}}, {3, {{0xE2, 0xE2}, {0x80, 0x80}, {0xAA, 0xBF}}},
    {3, {{0xE2, 0xE2}, {0x81, 0xBF}, {0x80, 0xBF}}}, {3, {{0xE3, 0xEC}, {0x80, 0xBF}, {0x80, 0xBF}}},
    {3, {{0xED, 0xED}, {0x80, 0x9F}, {0x80, 0xBF}}}, {3, {{0xEE, 0xEF}, {0x80, 0xBF}, {0x80, 0xBF}}},
    {4, {{0xF0, 0xF0}, {0x90, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}}},
    {4, {{0xF1, 0xF3}, {0x80, 0xBF}, {0x80, 0xBF}, {0x80, 0xBF}}},
    {4, {{0xF4, 0xF4}, {0x80, 0x8F}, {0x80, 0xBF}, {0x80, 0xBF}}},
};

/* The least room behind n bytes from s, each in its range; 0: some of them lead nowhere. Edges with conditions count
 * when they lead back to home, where the conditions are the same. */
static uint32_t room_behind(const qw_grammar *g, uint32_t s, const byte_range *bytes, int n, uint32_t home)
{
    uint32_t room = GRAMMAR_ROOM_MAX;
    unsigned lo = bytes->lo;
    for (uint32_t k = 0; k < g->states[s].n_edges && lo <= bytes->hi && room > 0; k++) {
        const grammar_edge *e = &g->edges[g->states[s].edges + k];
        uint32_t own;
        if (e->hi < lo) continue;
        if (e->lo > lo || (e->guard > GUARD_MORE && e->guard != GUARD_PATH)) return 0;
        bool conditions = (g->states[e->to].flags & (STATE_COUNT | STATE_OPENED)) || e->guard != GUARD_NONE;
        if (n > 1) own = room_behind(g, e->to, bytes + 1, n - 1, home);
        else if (e->to == home) own = GRAMMAR_ROOM_MAX;
        else own = conditions ? 0 : 1u + g->states[e->to].room;
        if (n > 1 && conditions && own < GRAMMAR_ROOM_MAX) own = 0;
        if (own < room) room = own;
        lo = e->hi + 1u;
    }
    return lo > bytes->hi ? room : 0;
}

static uint16_t state_room(const qw_grammar *g, uint32_t s)
{
    uint32_t room = GRAMMAR_ROOM_MAX;
    for (size_t i = 0; i < sizeof plain / sizeof *plain && room > 0; i++) {
        uint32_t own = room_behind(g, s, plain[i].bytes, plain[i].n, s);
        if (own < room) room = own;
    }
    return (uint16_t)room;
}

/* How many ordinary characters each state takes for sure: from above, until nothing gets less. */
static void find_room(linker *l)
{
    qw_grammar *g = l->g;
    for (uint32_t i = 1; i < g->n_states; i++) g->states[i].room = GRAMMAR_ROOM_MAX;
    for (bool changed = true; changed && grammar_pass(l);) {
        changed = false;
        for (uint32_t i = g->n_states; i-- > 1;) {
            if (g->states[i].room == 0) continue;
            uint16_t room = state_room(g, i);
            changed |= room < g->states[i].room;
            if (room < g->states[i].room) g->states[i].room = room;
        }
    }
}

/* ---- the whole -------------------------------------------------------------------------------- */

static void set_flags(qw_grammar *g)
{
    for (uint32_t i = 1; i < g->n_states; i++) {
        if (is_tail(g, i)) g->states[i].flags |= STATE_TAIL;
        if (g->states[i].room >= GRAMMAR_ROOM_MIN) g->states[i].flags |= STATE_ABSORBS;
        for (uint32_t k = 0; k < g->states[i].n_calls; k++)
            if (!g->calls[g->states[i].calls + k].token) g->states[i].flags |= STATE_CALLS;
    }
}

void grammar_prune(linker *l)
{
    grammar_build *b = l->b;
    qw_grammar *g = l->g;
    uint8_t *good = NULL;
    if (!grammar_ok(b)) return;
    b->status = qw_alloc(&good, g->n_states, 1, "states", b->err);
    if (grammar_ok(b)) b->status = qw_alloc(&g->first, g->n_states, sizeof *g->first, "states", b->err);
    if (grammar_ok(b)) b->status = qw_alloc(&g->nullable, g->n_states, 1, "states", b->err);
    if (grammar_ok(b)) find_good(l, good);
    if (grammar_ok(b) && !good[g->start]) grammar_fail(b, QW_E_ARG, "no text satisfies the grammar");
    if (grammar_ok(b)) remove_bad(g, good);
    free(good);
    for (uint32_t i = 0; i < g->n_objects && grammar_ok(b); i++) find_reach(l, &g->objects[i]);
    if (grammar_ok(b)) find_first(l);
    if (grammar_ok(b)) refuse_circles(l);
    if (grammar_ok(b)) find_need(l);
    if (!grammar_ok(b)) return;
    if (g->states[g->start].need > QW_GRAMMAR_DEPTH_MAX) {
        grammar_fail(b, QW_E_LIMIT, "the shortest text has more than %d values inside each other", QW_GRAMMAR_DEPTH_MAX);
        return;
    }
    count_parts(g);
    grammar_find_far(l);
    find_room(l);
    set_flags(g);
}
