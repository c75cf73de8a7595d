/* grammar_nfa.h: nondeterministic automata, between expressions and deterministic ones. Internal to the grammar
 * compiler; one thread.
 */
#ifndef QW_TEXT_GRAMMAR_NFA_H
#define QW_TEXT_GRAMMAR_NFA_H

#include "text/grammar_private.h"

typedef enum nfa_kind { NFA_EMPTY = 0, NFA_BEGIN, NFA_END, NFA_BYTE, NFA_CALL, NFA_TOKEN } nfa_kind;

typedef struct nfa_edge {
    uint8_t kind, lo, hi;
    uint32_t value, to, next; /* value: rule or token; next: edge of the same state, 0: none */
} nfa_edge;

/* State 0 is the beginning; edges count from 1. */
typedef struct grammar_nfa {
    uint32_t *first;  /* owns: [n], first edge of a state */
    uint32_t *label;  /* owns: [n] */
    nfa_edge *edges;  /* owns */
    uint32_t n, first_cap, label_cap, n_edges, edges_cap;
} grammar_nfa;

/* Adds an expression; the text it accepts leads from the beginning to a state with the label. */
void nfa_add(grammar_build *b, grammar_nfa *nfa, const labelled_ast *part);
void nfa_free(grammar_nfa *nfa);

#endif
