/* grammar_match.c: a matcher moves through a grammar byte by byte, and by tokens.
 *
 * It follows all readings of the text at once: heads, each with a state, counters and a chain of frames below. A byte
 * is tried on each head's own edges, on those of the rules it calls (when their first bytes admit it), and on what
 * comes after its rule when that may end here. A head only goes where the rest fits into QW_GRAMMAR_DEPTH_MAX frames,
 * so the depth limit is no dead end either. Owner: one thread a matcher.
 */
#include <stdlib.h>

#include "base/mem.h"
#include "text/grammar_private.h"

/* ---- objects ---------------------------------------------------------------------------------- */

/* Can entry i be taken next? */
static bool part_fits(const match_run *r, const grammar_object *o, const match_head *h, uint32_t i)
{
    const grammar_part *p = &r->g->parts[o->parts + i];
    const grammar_part *here = h->a < o->n - o->n_open ? &r->g->parts[o->parts + h->a] : NULL;
    uint32_t closed = o->n - o->n_open, required, others, next = i + 1;
    if (!p->usable || p->need + r->nodes[h->node].depth > QW_GRAMMAR_DEPTH_MAX) return false;
    if (i >= closed) { /* behind all that are required; those that are left stay possible */
        if (here && here->required_after > 0) return false;
        if (r->keys_full && (h->b >= o->min || (here && here->cheap_after >= o->min - h->b))) return false;
        required = 0;
        others = here ? here->cheap_after : 0;
    } else {
        required = next < closed ? r->g->parts[o->parts + next].required_after : 0;
        others = next < closed ? r->g->parts[o->parts + next].cheap_after : 0;
    }
    for (uint32_t k = closed; k < o->n && others < UINT16_MAX; k++)
        if (r->g->parts[o->parts + k].cheap) others = UINT16_MAX;
    return h->b + 1u + required <= o->max && h->b + 1u + others >= o->min;
}

/* Does a state of the keys lead to an entry that can be taken? */
static bool key_fits(const match_run *r, const grammar_object *o, const match_head *h, uint32_t state)
{
    const uint64_t *reach = r->g->reach + o->reach + (size_t)(state - o->keys) * o->words;
    uint32_t closed = o->n - o->n_open, last = h->a < closed ? r->g->parts[o->parts + h->a].next_required : closed;
    for (uint32_t w = h->a / 64; w < o->words; w++)
        for (uint64_t bits = reach[w]; bits; bits &= bits - 1) {
            uint32_t i = w * 64 + (uint32_t)__builtin_ctzll(bits);
            if (i < h->a && i < closed) continue;
            if (i > last && i < closed) continue;
            if (part_fits(r, o, h, i)) return true;
        }
    return false;
}

/* May the key that ends here be taken? Keys that no schema names end at the beginning of a token and are new. */
static bool key_taken(const match_run *r, const grammar_object *o, const match_head *h)
{
    uint32_t i = r->g->states[h->state].lo - 1u, closed = o->n - o->n_open;
    if (i >= closed) return r->at_begin && r->key_is_new && part_fits(r, o, h, i);
    uint32_t last = h->a < closed ? r->g->parts[o->parts + h->a].next_required : closed;
    return i >= h->a && i <= last && part_fits(r, o, h, i);
}

static bool object_closes(const match_run *r, const grammar_object *o, const match_head *h)
{
    uint32_t closed = o->n - o->n_open;
    return h->b >= o->min && (h->a >= closed || r->g->parts[o->parts + h->a].next_required == closed);
}

/* ---- heads ------------------------------------------------------------------------------------ */

static bool allowed(const match_run *r, const match_head *h, unsigned guard, uint32_t to)
{
    const grammar_state *s = &r->g->states[h->state];
    if (guard == GUARD_NONE) return true;
    if (guard == GUARD_MORE) return s->hi == GRAMMAR_UNLIMITED || h->a < s->hi;
    if (guard == GUARD_DONE) return h->a >= s->lo;
    const grammar_object *o = &r->g->objects[s->object - 1];
    if (guard == GUARD_KEY) return key_fits(r, o, h, o->keys);
    if (guard == GUARD_CLOSE) return object_closes(r, o, h);
    if (guard == GUARD_PATH) return key_fits(r, o, h, to);
    return key_taken(r, o, h);
}

/* Where a head stands after it went to a state; guard: of the edge that led there. */
static match_head entered(const match_run *r, match_head h, unsigned guard, uint32_t to)
{
    const grammar_state *s = &r->g->states[to];
    if (guard == GUARD_TAKE) {
        const grammar_object *o = &r->g->objects[s->object - 1];
        uint32_t i = r->g->states[h.state].lo - 1u;
        if (i < o->n - o->n_open) h.a = (uint16_t)(i + 1);
        if (h.b < GRAMMAR_COUNT_MAX) h.b++;
    }
    if (s->flags & STATE_OPENED) {
        h.a = h.b = 0;
        h.level++;
    }
    if ((s->flags & STATE_COUNT) && h.a < GRAMMAR_COUNT_MAX) h.a++;
    h.state = to;
    return h;
}

static bool same_frames(const match_run *r, uint32_t x, uint32_t y)
{
    while (x != y) {
        const match_node *a = &r->nodes[x], *b = &r->nodes[y];
        if (a->depth != b->depth || a->ret != b->ret || a->a != b->a || a->b != b->b || a->level != b->level)
            return false;
        x = a->parent;
        y = b->parent;
    }
    return true;
}

/* Where to put one head more: of those there, in place of the one with the most frames, if it has more. */
static match_head *place_of_deepest(const match_run *r, match_head *heads, uint32_t n, const match_head *h)
{
    match_head *deepest = heads;
    for (uint32_t i = 1; i < n; i++)
        if (r->nodes[heads[i].node].depth > r->nodes[deepest->node].depth) deepest = &heads[i];
    return r->nodes[deepest->node].depth > r->nodes[h->node].depth ? deepest : NULL;
}

/* Adds a head unless it is there or its rest would be too deep. Of too many the simplest stay: each alone can come to
 * an end, so leaving some out makes fewer texts possible and no dead end. */
static void add(const match_run *r, match_head *heads, uint32_t *n, uint32_t max, match_head h)
{
    if (r->nodes[h.node].depth + r->g->states[h.state].need > QW_GRAMMAR_DEPTH_MAX) return;
    for (uint32_t i = 0; i < *n; i++)
        if (heads[i].state == h.state && heads[i].a == h.a && heads[i].b == h.b && heads[i].level == h.level &&
            same_frames(r, heads[i].node, h.node))
            return;
    match_head *place = *n < max ? &heads[(*n)++] : place_of_deepest(r, heads, *n, &h);
    if (place) *place = h;
}

/* The head of a called rule. False: there is no room for its frame. */
static bool called(match_run *r, const match_head *h, const grammar_call *c, match_head *out)
{
    uint32_t node = h->node;
    const grammar_state *ret = &r->g->states[c->to];
    if (!(ret->flags & STATE_TAIL)) {
        if (r->n_nodes == r->nodes_cap || r->nodes[node].depth + ret->need > QW_GRAMMAR_DEPTH_MAX) return false;
        r->nodes[r->n_nodes] = (match_node){.parent = node, .ret = c->to, .a = h->a, .b = h->b, .level = h->level,
                                            .depth = (uint16_t)(r->nodes[node].depth + 1)};
        node = r->n_nodes++;
    }
    *out = (match_head){.state = c->what, .node = node, .level = h->level};
    return true;
}

/* The head behind the rule of h, which ends here; it has a frame. */
static match_head returned(const match_run *r, const match_head *h)
{
    const match_node *f = &r->nodes[h->node];
    return entered(r, (match_head){.node = f->parent, .a = f->a, .b = f->b, .level = f->level}, GUARD_NONE, f->ret);
}

/* Appends where calls and the end of its rule lead from heads[i]. byte: what comes next, or -1: anything. */
static void spread(match_run *r, match_head *heads, uint32_t i, uint32_t *n, int byte)
{
    const grammar_state *s = &r->g->states[heads[i].state];
    for (uint32_t k = 0; k < s->n_calls; k++) {
        const grammar_call *c = &r->g->calls[s->calls + k];
        match_head h;
        if (c->token || !match_admits(r->g, c->what, byte)) continue;
        if (allowed(r, &heads[i], c->guard, c->to) && called(r, &heads[i], c, &h)) add(r, heads, n, MATCH_WORK_MAX, h);
    }
    if ((s->flags & STATE_ACCEPT) && heads[i].node && match_admits(r->g, r->nodes[heads[i].node].ret, byte))
        add(r, heads, n, MATCH_WORK_MAX, returned(r, &heads[i]));
}

static const grammar_edge *edge_of(const qw_grammar *g, const grammar_state *s, uint8_t byte)
{
    const grammar_edge *e = g->edges + s->edges;
    uint32_t lo = 0, hi = s->n_edges;
    while (lo < hi) {
        uint32_t mid = (lo + hi) / 2;
        if (e[mid].hi < byte) lo = mid + 1;
        else hi = mid;
    }
    return lo < s->n_edges && e[lo].lo <= byte ? &e[lo] : NULL;
}

/* The usual case: one head, in a state without calls that cannot end, over an edge without conditions. -1: it is not
 * that case. */
static int simple_byte(const match_run *r, const match_head *in, uint8_t byte, match_head *out)
{
    const grammar_state *s = &r->g->states[in->state];
    if (s->flags & (STATE_CALLS | STATE_ACCEPT)) return -1;
    const grammar_edge *e = edge_of(r->g, s, byte);
    if (!e) return 0;
    const grammar_state *to = &r->g->states[e->to];
    if (e->guard != GUARD_NONE || (to->flags & (STATE_COUNT | STATE_OPENED))) return -1;
    *out = *in;
    out->state = e->to;
    return r->nodes[in->node].depth + to->need <= QW_GRAMMAR_DEPTH_MAX;
}

uint32_t match_byte(match_run *r, const match_head *in, uint32_t n, uint8_t byte, match_head *out)
{
    match_head work[MATCH_WORK_MAX];
    uint32_t n_out = 0;
    int simple = n == 1 ? simple_byte(r, in, byte, out) : -1;
    if (simple >= 0) return (uint32_t)simple;
    memcpy(work, in, n * sizeof *in);
    for (uint32_t i = 0; i < n; i++, r->steps++) {
        const grammar_state *s = &r->g->states[work[i].state];
        const grammar_edge *e = edge_of(r->g, s, byte);
        if (e && allowed(r, &work[i], e->guard, e->to))
            add(r, out, &n_out, QW_GRAMMAR_HEADS_MAX, entered(r, work[i], e->guard, e->to));
        if (!r->closed && (s->flags & (STATE_CALLS | STATE_ACCEPT))) spread(r, work, i, &n, byte);
    }
    return n_out;
}

uint32_t match_closure(match_run *r, const match_head *in, uint32_t n, match_head *out)
{
    memcpy(out, in, n * sizeof *in);
    for (uint32_t i = 0; i < n; i++) spread(r, out, i, &n, -1);
    return n;
}

bool match_may_end(const match_run *r, const match_head *heads, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (heads[i].node == 0 && (r->g->states[heads[i].state].flags & STATE_ACCEPT)) return true;
    return false;
}

/* ---- keys ------------------------------------------------------------------------------------- */

static uint64_t hash_byte(uint64_t h, uint8_t byte)
{
    h = (h ^ byte) * UINT64_C(0x9E3779B97F4A7C15);
    return h ^ h >> 31;
}

/* Has the innermost open object a key with this hash? */
static bool key_known(const qw_matcher *m, uint8_t level)
{
    for (uint32_t i = 0; i < m->n_keys; i++)
        if (m->keys[i].level == level && m->keys[i].hash == m->key) return true;
    return false;
}

/* Keeps the keys of open objects that no schema names, after the heads took a byte. All readings agree on the braces
 * and quotes of the text, so one list is enough for them. */
static void follow_keys(qw_matcher *m, const match_head *heads, uint32_t n, uint8_t byte)
{
    bool key = false, begin = false;
    for (uint32_t i = 0; i < n; i++) {
        unsigned flags = m->g->states[heads[i].state].flags;
        uint8_t level = heads[i].level;
        key |= (flags & STATE_KEY) != 0;
        begin |= (flags & STATE_KEY_BEGIN) != 0 && byte == '"';
        if (flags & STATE_OPENED)
            while (m->n_keys && m->keys[m->n_keys - 1].level >= level) m->n_keys--;
        if (!(flags & STATE_OPEN_KEY) || key_known(m, level)) continue;
        while (m->n_keys && m->keys[m->n_keys - 1].level > level) m->n_keys--;
        if (m->n_keys < MATCH_KEYS_CAP) m->keys[m->n_keys++] = (match_key){m->key, level};
    }
    if (begin) m->key = UINT64_C(0x51ED270B7F4A7C15);
    else if (key) m->key = hash_byte(m->key, byte);
}

void match_run_begin(match_run *r, const qw_matcher *m, match_node *nodes, uint32_t cap)
{
    *r = (match_run){.g = m->g, .nodes = nodes, .n_nodes = m->n_nodes, .nodes_cap = cap, .key_is_new = true};
    memcpy(nodes, m->nodes, m->n_nodes * sizeof *nodes);
    r->keys_full = m->n_keys >= QW_GRAMMAR_KEYS_MAX;
    for (uint32_t i = 0; i < m->n_heads; i++)
        if ((m->g->states[m->heads[i].state].flags & STATE_KEY) && key_known(m, m->heads[i].level)) r->key_is_new = false;
}

/* ---- the matcher ------------------------------------------------------------------------------ */

static void stand_at_begin(qw_matcher *m)
{
    m->nodes[0] = (match_node){0};
    m->n_nodes = 1;
    m->heads[0] = (match_head){.state = m->g->start};
    m->n_heads = 1;
}

size_t qw_matcher_bytes(void)
{
    return 2 * sizeof(qw_matcher) + MATCH_SPARE * sizeof(match_node);
}

qw_status qw_matcher_create(const qw_grammar *g, const qw_tokenizer *t, qw_matcher **out, qw_err *err)
{
    qw_matcher *m = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&m, 1, sizeof *m, "a matcher", err));
    QW_TRY_GOTO(qw_alloc(&m->spare, MATCH_SPARE, sizeof *m->spare, "a matcher", err));
    QW_TRY_GOTO(qw_alloc(&m->saved, 1, sizeof *m->saved, "a matcher", err));
    m->g = m->saved->g = g;
    m->tokenizer = m->saved->tokenizer = t;
    m->saved->spare = m->spare;
    stand_at_begin(m);
    *out = m;
    return QW_OK;
fail:
    qw_matcher_destroy(m);
    return status;
}

void qw_matcher_destroy(qw_matcher *m)
{
    if (!m) return;
    free(m->spare);
    free(m->saved);
    free(m);
}

void qw_matcher_copy(qw_matcher *to, const qw_matcher *from)
{
    QW_ASSERT(to->g == from->g);
    to->ended = from->ended;
    to->n_heads = from->n_heads;
    to->n_nodes = from->n_nodes;
    to->n_keys = from->n_keys;
    to->key = from->key;
    memcpy(to->heads, from->heads, from->n_heads * sizeof *from->heads);
    memcpy(to->keys, from->keys, from->n_keys * sizeof *from->keys);
    memcpy(to->nodes, from->nodes, from->n_nodes * sizeof *from->nodes);
}

/* Keeps of the run's frames those that heads stand on. A frame lies behind its parent, so one pass is enough. */
static void keep_frames(qw_matcher *m, match_run *r, match_head *heads, uint32_t n)
{
    match_node *nodes = r->nodes;
    uint32_t kept = 1;
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t at = heads[i].node; at && !(nodes[at].ret >> 31); at = nodes[at].parent)
            nodes[at].ret |= UINT32_C(1) << 31; /* marked: states are far fewer */
    for (uint32_t i = 1; i < r->n_nodes; i++) {
        if (!(nodes[i].ret >> 31)) continue;
        match_node node = nodes[i];
        node.ret &= ~(UINT32_C(1) << 31);
        node.parent = nodes[node.parent].parent; /* where it went, see below */
        m->nodes[kept] = node;
        nodes[i].parent = kept++; /* its own parent is not looked at again */
    }
    for (uint32_t i = 0; i < n; i++) heads[i].node = heads[i].node ? nodes[heads[i].node].parent : 0;
    m->n_nodes = kept;
}

/* One byte, on the matcher's own frames. False: it does not fit, and m->heads has not changed. */
static bool take_byte(qw_matcher *m, uint8_t byte, bool at_begin)
{
    match_run r;
    match_head out[QW_GRAMMAR_HEADS_MAX];
    match_run_begin(&r, m, m->spare, MATCH_SPARE);
    r.at_begin = at_begin;
    uint32_t n = match_byte(&r, m->heads, m->n_heads, byte, out);
    if (n == 0) return false;
    keep_frames(m, &r, out, n);
    memcpy(m->heads, out, n * sizeof *out);
    m->n_heads = n;
    follow_keys(m, m->heads, n, byte);
    return true;
}

/* A token of its own, such as <tool_call>. */
static bool take_special(qw_matcher *m, int32_t id)
{
    match_run r;
    match_head work[MATCH_WORK_MAX], out[QW_GRAMMAR_HEADS_MAX];
    uint32_t n_out = 0;
    match_run_begin(&r, m, m->spare, MATCH_SPARE);
    uint32_t n = match_closure(&r, m->heads, m->n_heads, work);
    for (uint32_t i = 0; i < n; i++) {
        const grammar_state *s = &m->g->states[work[i].state];
        for (uint32_t k = 0; k < s->n_calls; k++) {
            const grammar_call *c = &m->g->calls[s->calls + k];
            if (c->token && c->what == (uint32_t)id)
                add(&r, out, &n_out, QW_GRAMMAR_HEADS_MAX, entered(&r, work[i], GUARD_NONE, c->to));
        }
    }
    if (n_out == 0) return false;
    keep_frames(m, &r, out, n_out);
    memcpy(m->heads, out, n_out * sizeof *out);
    m->n_heads = n_out;
    return true;
}

static bool take_bytes(qw_matcher *m, qw_text bytes)
{
    for (size_t i = 0; i < bytes.n; i++)
        if (!take_byte(m, (uint8_t)bytes.s[i], i == 0)) return false;
    return bytes.n > 0;
}

static bool take_token(qw_matcher *m, int32_t id)
{
    if (m->ended || id < 0 || (size_t)id >= qw_tokenizer_n_vocab(m->tokenizer)) return false;
    if (qw_tokenizer_is_end(m->tokenizer, id)) return m->ended = qw_matcher_may_end(m);
    if (qw_tokenizer_is_unused(m->tokenizer, id)) return false;
    if (qw_tokenizer_is_added(m->tokenizer, id)) return take_special(m, id);
    qw_text bytes = qw_tokenizer_bytes(m->tokenizer, id);
    return bytes.n <= QW_MASKED_TOKEN_BYTES_MAX && take_bytes(m, bytes);
}

qw_status qw_matcher_advance(qw_matcher *m, int32_t id, qw_err *err)
{
    qw_matcher_copy(m->saved, m);
    if (take_token(m, id)) return QW_OK;
    qw_matcher_copy(m, m->saved);
    return qw_fail(err, QW_E_ARG, "token %d does not fit into the output's form here", (int)id);
}

bool qw_matcher_may_end(const qw_matcher *m)
{
    match_head work[MATCH_WORK_MAX];
    match_run r;
    if (m->ended) return true;
    match_run_begin(&r, m, m->spare, MATCH_SPARE);
    return match_may_end(&r, work, match_closure(&r, m->heads, m->n_heads, work));
}

uint32_t qw_matcher_to_end(const qw_matcher *m)
{
    uint32_t least = GRAMMAR_FAR;
    if (m->ended) return 0;
    for (uint32_t i = 0; i < m->n_heads; i++) {
        uint32_t own = match_to_end(m->g, m->nodes, NULL, 1, &m->heads[i]);
        if (own < least) least = own;
    }
    return least;
}

uint32_t qw_matcher_to_end_after(const qw_matcher *m, int32_t id)
{
    qw_matcher_copy(m->saved, m);
    bool taken = take_token(m->saved, id);
    QW_ASSERT(taken);
    return qw_matcher_to_end(m->saved);
}

/* How many bytes, and tokens of their own, may come next, counted up to two; *byte is one of them. */
static int choices(const qw_matcher *m, uint8_t *byte)
{
    match_head work[MATCH_WORK_MAX];
    match_run r;
    int n = 0;
    match_run_begin(&r, m, m->spare, MATCH_SPARE);
    r.at_begin = true;
    uint32_t n_work = match_closure(&r, m->heads, m->n_heads, work);
    for (uint32_t i = 0; i < n_work && n < 2; i++) {
        const grammar_state *s = &m->g->states[work[i].state];
        for (uint32_t k = 0; k < s->n_edges && n < 2; k++) {
            const grammar_edge *e = &m->g->edges[s->edges + k];
            if (!allowed(&r, &work[i], e->guard, e->to)) continue;
            if (e->lo < e->hi) n = 2;
            else if (n == 0 || e->lo != *byte) n++;
            *byte = e->lo;
        }
        for (uint32_t k = 0; k < s->n_calls; k++)
            if (m->g->calls[s->calls + k].token) n = 2;
    }
    return n;
}

bool qw_matcher_must_end(const qw_matcher *m)
{
    uint8_t byte = 0;
    return m->ended || (qw_matcher_may_end(m) && choices(m, &byte) == 0);
}

size_t qw_matcher_forced(const qw_matcher *m, char *out, size_t n)
{
    size_t used = 0;
    uint8_t byte = 0;
    if (m->ended) return 0;
    qw_matcher_copy(m->saved, m);
    while (used < n && !qw_matcher_may_end(m->saved) && choices(m->saved, &byte) == 1 &&
           take_byte(m->saved, byte, true))
        out[used++] = (char)byte;
    return used;
}
