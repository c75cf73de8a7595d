/* grammar_link.h: between laying out states and pruning them. Internal to the grammar compiler; one thread. */
#ifndef QW_TEXT_GRAMMAR_LINK_H
#define QW_TEXT_GRAMMAR_LINK_H

#include "text/grammar_private.h"

typedef struct linker {
    grammar_build *b;
    qw_grammar *g;
} linker;

/* Removes what can never end and computes what matching needs: bytes that a state can take, frames it needs, what an
 * object can still hold. Sets the error when nothing is left, or when a rule calls itself without taking a byte. */
void grammar_prune(linker *l);
/* Counts a pass over all states as work. False: an error is set. */
bool grammar_pass(linker *l);
/* Sets what grammar_to_end needs; needs all else that pruning computes of objects and frames. */
void grammar_find_far(linker *l);

#endif
