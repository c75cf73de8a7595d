/* grammar_end.c: the least number of bytes from a place to the end of the text.
 *
 * When a grammar is compiled each state learns how far it is to the end of its rule, its conditions left aside but for what an
 * object requires. What counters and keys still ask for is added where the counters are known: at a place of a matcher. It
 * is a lower bound: a key that is taken already, the depth that is left, and what minProperties asks of objects that are not
 * open yet can make it more. A token of its own counts as a byte. Owner: the thread that compiles; then immutable.
 */
#include <stdlib.h>

#include "base/mem.h"
#include "text/grammar_link.h"

enum { ENTRY_BYTES_MIN = 5 }; /* a comma, quotes, a colon, a value */

static uint32_t sum(uint32_t x, uint32_t y)
{
    return x + y < GRAMMAR_FAR ? x + y : GRAMMAR_FAR;
}

static uint32_t product(uint32_t n, uint32_t each)
{
    uint64_t all = (uint64_t)n * each;
    return all < GRAMMAR_FAR ? (uint32_t)all : GRAMMAR_FAR;
}

static bool leads_to(const qw_grammar *g, const grammar_object *o, uint32_t key_state, uint32_t part)
{
    const uint64_t *reach = g->reach + o->reach + (size_t)(key_state - o->keys) * o->words;
    return reach[part / 64] >> part % 64 & 1;
}

/* a: the next entry; b: keys so far. */
static uint32_t object_to_end(const qw_grammar *g, uint32_t state, uint32_t a, uint32_t b)
{
    const grammar_state *s = &g->states[state];
    const grammar_object *o = &g->objects[s->object - 1];
    uint32_t closed = o->n - o->n_open;
    const grammar_part *here = a < closed ? &g->parts[o->parts + a] : NULL;
    uint32_t required = here ? here->required_after : 0, behind = here ? here->behind : 0;
    uint32_t missing = o->min > b + required ? o->min - b - required : 0;
    bool before_key = state <= o->opened + 3 || (s->flags & STATE_KEY); /* s->far holds one entry, or knows of none */
    if (s->flags & STATE_ACCEPT) return 0;
    if (before_key && required == 0 && missing > 0) missing--;
    uint32_t others = product(missing, ENTRY_BYTES_MIN);
    if (!before_key) return sum(sum(s->far, behind), others);
    if (required == 0) return sum(s->far, others);
    if (state < o->opened) return sum(1 + behind, others);
    if (!(s->flags & STATE_KEY)) return sum(behind, others);
    if (!leads_to(g, o, state, here->next_required)) return sum(sum(s->far, behind), others);
    const grammar_part *next = &g->parts[o->parts + here->next_required];
    uint32_t left = next->key_bytes > s->hi ? (uint32_t)next->key_bytes - s->hi : 0;
    uint32_t after = here->next_required + 1 < closed ? next[1].behind : 0;
    return sum(sum(left + 1, g->states[next->state].far), sum(after, others));
}

uint32_t grammar_to_end(const qw_grammar *g, uint32_t state, uint32_t a, uint32_t b, bool returns)
{
    const grammar_state *s = &g->states[state];
    if (s->object) return object_to_end(g, state, a, b);
    if (s->far == 0 || s->lo == 0) return s->far;
    /* The way to the end comes by the counting state once, unless this is it. */
    uint32_t n = a + (returns || !(s->flags & STATE_COUNT));
    if (n >= s->lo) return s->far;
    uint32_t each = s->item ? sum(1, grammar_to_end(g, s->item, 0, 0, false)) : 1;
    return sum(s->far, product(s->lo - n, each));
}

uint32_t match_to_end(const qw_grammar *g, const match_node *nodes, const uint32_t *below, uint32_t n_below,
                      const match_head *h)
{
    uint32_t d = grammar_to_end(g, h->state, h->a, h->b, false), at = h->node;
    for (; at && at >= n_below; at = nodes[at].parent)
        d = sum(d, grammar_to_end(g, nodes[at].ret, nodes[at].a, nodes[at].b, true));
    return at ? sum(d, below[at]) : d;
}

void match_frames_to_end(const qw_grammar *g, const match_node *nodes, uint32_t n, uint32_t *below)
{
    below[0] = 0;
    for (uint32_t i = 1; i < n; i++) /* a frame lies behind its parent */
        below[i] = sum(below[nodes[i].parent], grammar_to_end(g, nodes[i].ret, nodes[i].a, nodes[i].b, true));
}

/* ---- compiling -------------------------------------------------------------------------------- */

/* How many bytes lead to each state of an object's keys, and to each named key. queue: [n_keys]. */
static void measure_keys(qw_grammar *g, const grammar_object *o, uint32_t *queue)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < o->n_keys; i++) g->states[o->keys + i].hi = UINT16_MAX;
    g->states[o->keys].hi = 0;
    queue[n++] = o->keys;
    for (uint32_t done = 0; done < n; done++) {
        const grammar_state *s = &g->states[queue[done]];
        grammar_part *ends = s->lo ? &g->parts[o->parts + s->lo - 1] : NULL;
        if (ends && s->hi < ends->key_bytes) ends->key_bytes = s->hi;
        for (uint32_t k = 0; k < s->n_edges; k++) {
            const grammar_edge *e = &g->edges[s->edges + k];
            if (e->guard != GUARD_PATH || g->states[e->to].hi < UINT16_MAX) continue;
            g->states[e->to].hi = s->hi < UINT16_MAX - 1 ? (uint16_t)(s->hi + 1) : s->hi;
            queue[n++] = e->to;
        }
    }
}

/* An entry with its comma. The way behind the key holds the end of the object, which is not its own. */
static uint32_t entry_bytes(const qw_grammar *g, const grammar_part *p)
{
    return sum(p->key_bytes + 2u, g->states[p->state].far);
}

/* What is required from each of an object's entries on; of the first one. */
static uint32_t sum_required(qw_grammar *g, const grammar_object *o)
{
    uint32_t bytes = 0;
    for (uint32_t i = o->n - o->n_open; i-- > 0;) {
        grammar_part *p = &g->parts[o->parts + i];
        if (p->required) bytes = sum(bytes, entry_bytes(g, p));
        p->behind = bytes;
    }
    return bytes;
}

/* Places that more frames lead to than there are lead nowhere. */
static bool is_usable(const qw_grammar *g, uint32_t state)
{
    return g->states[state].need <= QW_GRAMMAR_DEPTH_MAX;
}

static uint32_t state_far(qw_grammar *g, uint32_t i)
{
    const grammar_state *s = &g->states[i];
    const grammar_object *o = s->object ? &g->objects[s->object - 1] : NULL;
    bool opened = o && (i == o->opened || i == o->opened + 1);
    uint32_t far = GRAMMAR_FAR;
    if (s->flags & STATE_ACCEPT) return 0;
    if (opened && o->n > o->n_open && g->parts[o->parts].required_after > 0) return sum_required(g, o);
    for (uint32_t k = 0; k < s->n_edges; k++) {
        const grammar_edge *e = &g->edges[s->edges + k];
        if (!is_usable(g, e->to) || (opened && o->min > 0 && e->guard == GUARD_CLOSE)) continue;
        uint32_t own = sum(1, g->states[e->to].far);
        if (own < far) far = own;
    }
    for (uint32_t k = 0; k < s->n_calls; k++) {
        const grammar_call *c = &g->calls[s->calls + k];
        if (!is_usable(g, c->to) || (!c->token && !is_usable(g, c->what))) continue;
        uint32_t own = sum(g->states[c->to].far, c->token ? 1 : grammar_to_end(g, c->what, 0, 0, false));
        if (own < far) far = own;
    }
    return far;
}

void grammar_find_far(linker *l)
{
    qw_grammar *g = l->g;
    uint32_t *queue = NULL;
    l->b->status = qw_alloc(&queue, g->n_states, sizeof *queue, "states", l->b->err);
    for (uint32_t i = 0; i < g->n_parts; i++) g->parts[i].key_bytes = UINT16_MAX;
    for (uint32_t i = 0; i < g->n_objects && grammar_ok(l->b); i++) measure_keys(g, &g->objects[i], queue);
    free(queue);
    for (uint32_t i = 0; i < g->n_states; i++) g->states[i].far = GRAMMAR_FAR;
    for (bool changed = true; changed && grammar_pass(l);) {
        changed = false;
        for (uint32_t i = g->n_states; i-- > 1;) {
            uint32_t far = state_far(g, i);
            changed |= far < g->states[i].far;
            if (far < g->states[i].far) g->states[i].far = far;
        }
    }
}
