/* guesser.h: drafts (draft.h) as the guesses of a core: a chain for each lane. Engine thread only. */
#ifndef QW_ENGINE_GUESSER_H
#define QW_ENGINE_GUESSER_H

#include "engine/core.h"
#include "engine/draft.h"

typedef struct qw_guesses qw_guesses;

/* us_per_pass: of one row, a guess, until it was measured. */
qw_status qw_guesses_create(uint32_t n_lanes, uint32_t n_vocab, uint32_t context, double us_per_pass, qw_guesses **out,
                            qw_err *err) QW_MUST_CHECK;
size_t qw_guesses_bytes(uint32_t n_lanes, uint32_t n_vocab, uint32_t context); /* that create will take */
void qw_guesses_destroy(qw_guesses *g);
qw_guesser qw_guesses_guesser(qw_guesses *g); /* borrows */

#endif
