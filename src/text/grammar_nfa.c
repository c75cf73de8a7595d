/* grammar_nfa.c: expressions as nondeterministic automata.
 *
 * Thompson's construction: a piece leads from one state to another. A set of code points becomes sequences of byte
 * ranges; a repetition becomes copies. Recursion follows the nesting of expressions, which the notations bound
 * (GRAMMAR_NEST_MAX). Owner: the thread that compiles.
 */
#include "text/grammar_nfa.h"

#include <stdlib.h>

#include "base/utf8.h"

static uint32_t state_new(grammar_build *b, grammar_nfa *nfa)
{
    static const char what[] = "states before they are made deterministic";
    if (!grammar_work(b, 1) ||
        !grammar_room(b, &nfa->first, nfa->n, 1, &nfa->first_cap, sizeof *nfa->first, GRAMMAR_NFA_STATES_MAX, what) ||
        !grammar_room(b, &nfa->label, nfa->n, 1, &nfa->label_cap, sizeof *nfa->label, GRAMMAR_NFA_STATES_MAX, what))
        return 0;
    nfa->first[nfa->n] = nfa->label[nfa->n] = 0;
    return nfa->n++;
}

static void edge_new(grammar_build *b, grammar_nfa *nfa, uint32_t from, nfa_edge edge)
{
    if (nfa->n_edges == 0) nfa->n_edges = 1;
    if (!grammar_room(b, &nfa->edges, nfa->n_edges, 1, &nfa->edges_cap, sizeof *nfa->edges, 4 * GRAMMAR_NFA_STATES_MAX,
                      "edges before they are made deterministic"))
        return;
    edge.next = nfa->first[from];
    nfa->edges[nfa->n_edges] = edge;
    nfa->first[from] = nfa->n_edges++;
}

static void join(grammar_build *b, grammar_nfa *nfa, uint32_t from, uint32_t to)
{
    edge_new(b, nfa, from, (nfa_edge){.kind = NFA_EMPTY, .to = to});
}

static void byte_edge(grammar_build *b, grammar_nfa *nfa, uint32_t from, uint32_t to, unsigned lo, unsigned hi)
{
    edge_new(b, nfa, from, (nfa_edge){.kind = NFA_BYTE, .lo = (uint8_t)lo, .hi = (uint8_t)hi, .to = to});
}

/* A path of n bytes. */
static void bytes_path(grammar_build *b, grammar_nfa *nfa, uint32_t from, uint32_t to, const char *s, size_t n)
{
    for (size_t i = 0; i < n && grammar_ok(b); i++) {
        uint32_t next = i + 1 < n ? state_new(b, nfa) : to;
        byte_edge(b, nfa, from, next, (uint8_t)s[i], (uint8_t)s[i]);
        from = next;
    }
    if (n == 0) join(b, nfa, from, to);
}

/* ---- code points ------------------------------------------------------------------------------ */

/* Code points lo to hi, all of n bytes. Cut until each byte but the last that differs is followed by all
 * continuation bytes; depth is at most that of four bytes. */
static void utf8_split(grammar_build *b, grammar_nfa *nfa, uint32_t from, uint32_t to, uint32_t lo, uint32_t hi, int n)
{
    for (int k = 1; k < n; k++) {
        uint32_t low = ((uint32_t)1 << 6 * k) - 1;
        if ((lo & ~low) == (hi & ~low)) continue;
        if (lo & low) {
            utf8_split(b, nfa, from, to, lo, lo | low, n);
            utf8_split(b, nfa, from, to, (lo | low) + 1, hi, n);
            return;
        }
        if ((hi & low) != low) {
            utf8_split(b, nfa, from, to, lo, (hi & ~low) - 1, n);
            utf8_split(b, nfa, from, to, hi & ~low, hi, n);
            return;
        }
    }
    char first[4], last[4];
    qw_utf8_encode(lo, first);
    qw_utf8_encode(hi, last);
    for (int i = 0; i < n && grammar_ok(b); i++) {
        uint32_t next = i + 1 < n ? state_new(b, nfa) : to;
        byte_edge(b, nfa, from, next, (uint8_t)first[i], (uint8_t)last[i]);
        from = next;
    }
}

/* A range as UTF-8, without surrogates. */
static void utf8_range(grammar_build *b, grammar_nfa *nfa, uint32_t from, uint32_t to, uint32_t lo, uint32_t hi)
{
    static const struct {
        uint32_t lo, hi;
        int n;
    } lengths[] = {{0, 0x7F, 1}, {0x80, 0x7FF, 2}, {0x800, 0xD7FF, 3}, {0xE000, 0xFFFF, 3}, {0x10000, 0x10FFFF, 4}};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        uint32_t l = lo > lengths[i].lo ? lo : lengths[i].lo, h = hi < lengths[i].hi ? hi : lengths[i].hi;
        if (l <= h) utf8_split(b, nfa, from, to, l, h, lengths[i].n);
    }
}

/* How JSON writes a character that must be escaped. */
static void escape_path(grammar_build *b, grammar_nfa *nfa, uint32_t from, uint32_t to, unsigned c)
{
    static const char named[] = "\b\f\n\r\t\"\\", letters[] = "bfnrt\"\\", hex[] = "0123456789abcdef";
    const char *at = c ? strchr(named, (int)c) : NULL;
    char text[6] = {'\\', at ? letters[at - named] : 'u', '0', '0', hex[c >> 4], hex[c & 15]};
    bytes_path(b, nfa, from, to, text, at ? 2 : 6);
}

static bool must_escape(uint32_t c)
{
    return c < 0x20 || c == '"' || c == '\\';
}

static void range_path(grammar_build *b, grammar_nfa *nfa, uint32_t from, uint32_t to, cp_range r, grammar_form form)
{
    if (form == FORM_RAW) {
        utf8_range(b, nfa, from, to, r.lo, r.hi);
        return;
    }
    for (uint32_t c = r.lo; c <= '\\' && c <= r.hi && form == FORM_JSON; c++)
        if (must_escape(c)) escape_path(b, nfa, from, to, c);
    static const cp_range plain[] = {{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, 0x10FFFF}};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        uint32_t lo = r.lo > plain[i].lo ? r.lo : plain[i].lo, hi = r.hi < plain[i].hi ? r.hi : plain[i].hi;
        if (lo <= hi) utf8_range(b, nfa, from, to, lo, hi);
    }
}

/* ---- expressions ------------------------------------------------------------------------------ */

static void piece(grammar_build *b, grammar_nfa *nfa, uint32_t ast, grammar_form form, uint32_t from, uint32_t to);

static void cat_piece(grammar_build *b, grammar_nfa *nfa, const ast_node *node, grammar_form form, uint32_t from,
                      uint32_t to)
{
    uint32_t child = node->first;
    if (child == 0) join(b, nfa, from, to);
    for (; child && grammar_ok(b); child = b->ast[child].next) {
        uint32_t next = b->ast[child].next ? state_new(b, nfa) : to;
        piece(b, nfa, child, form, from, next);
        from = next;
    }
}

/* min copies, then a loop, or as many copies as may be left out. */
static void repeat_piece(grammar_build *b, grammar_nfa *nfa, const ast_node *node, grammar_form form, uint32_t from,
                         uint32_t to)
{
    uint32_t child = node->first, min = node->a, max = node->b;
    for (uint32_t i = 0; i < min && grammar_ok(b); i++) {
        uint32_t next = state_new(b, nfa);
        piece(b, nfa, child, form, from, next);
        from = next;
    }
    if (max == UINT32_MAX) {
        uint32_t loop = state_new(b, nfa), back = state_new(b, nfa);
        join(b, nfa, from, loop);
        piece(b, nfa, child, form, loop, back);
        join(b, nfa, back, loop);
        from = loop;
    }
    for (uint32_t i = min; max != UINT32_MAX && i < max && grammar_ok(b); i++) {
        uint32_t next = state_new(b, nfa);
        join(b, nfa, from, to);
        piece(b, nfa, child, form, from, next);
        from = next;
    }
    join(b, nfa, from, to);
}

static void dfa_piece(grammar_build *b, grammar_nfa *nfa, uint32_t dfa, uint32_t from, uint32_t to)
{
    uint32_t base = nfa->n;
    for (uint32_t i = 0; i < b->dfas[dfa].n; i++) state_new(b, nfa);
    if (!grammar_ok(b) || b->dfas[dfa].n == 0) return;
    join(b, nfa, from, base);
    for (uint32_t i = 0; i < b->dfas[dfa].n && grammar_ok(b); i++) {
        const dfa_state *s = &b->dfas[dfa].states[i];
        for (uint32_t k = 0; k < s->n_edges; k++) {
            const dfa_edge *e = &b->dfas[dfa].edges[s->edges + k];
            byte_edge(b, nfa, base + i, base + e->to, e->lo, e->hi);
        }
        for (uint32_t k = 0; k < s->n_links; k++) {
            const dfa_link *l = &b->dfas[dfa].links[s->links + k];
            edge_new(b, nfa, base + i,
                     (nfa_edge){.kind = l->token ? NFA_TOKEN : NFA_CALL, .value = l->what, .to = base + l->to});
        }
        if (s->label) join(b, nfa, base + i, to);
    }
}

static void piece(grammar_build *b, grammar_nfa *nfa, uint32_t ast, grammar_form form, uint32_t from, uint32_t to)
{
    if (!grammar_ok(b) || ast == 0) return;
    const ast_node node = b->ast[ast];
    switch (node.op) {
    case AST_NEVER: break;
    case AST_EMPTY: join(b, nfa, from, to); break;
    case AST_BYTES: bytes_path(b, nfa, from, to, b->bytes + node.a, node.b); break;
    case AST_SET:
        for (uint32_t i = 0; i < node.b; i++) range_path(b, nfa, from, to, b->ranges[node.a + i], form);
        break;
    case AST_CAT: cat_piece(b, nfa, &node, form, from, to); break;
    case AST_ALT:
        for (uint32_t child = node.first; child; child = b->ast[child].next) piece(b, nfa, child, form, from, to);
        break;
    case AST_REPEAT: repeat_piece(b, nfa, &node, form, from, to); break;
    case AST_CALL:
        if (b->rules[node.a].leaf) piece(b, nfa, b->rules[node.a].ast, FORM_RAW, from, to);
        else edge_new(b, nfa, from, (nfa_edge){.kind = NFA_CALL, .value = node.a, .to = to});
        break;
    case AST_TOKEN: edge_new(b, nfa, from, (nfa_edge){.kind = NFA_TOKEN, .value = node.a, .to = to}); break;
    case AST_DFA: dfa_piece(b, nfa, node.a, from, to); break;
    case AST_BEGIN: edge_new(b, nfa, from, (nfa_edge){.kind = NFA_BEGIN, .to = to}); break;
    case AST_END: edge_new(b, nfa, from, (nfa_edge){.kind = NFA_END, .to = to}); break;
    }
}

void nfa_add(grammar_build *b, grammar_nfa *nfa, const labelled_ast *part)
{
    if (nfa->n == 0) state_new(b, nfa);
    uint32_t begin = state_new(b, nfa), end = state_new(b, nfa);
    if (!grammar_ok(b)) return;
    nfa->label[end] = part->label;
    join(b, nfa, 0, begin);
    piece(b, nfa, part->ast, part->form, begin, end);
}

void nfa_free(grammar_nfa *nfa)
{
    free(nfa->first);
    free(nfa->label);
    free(nfa->edges);
}
