/* guesser.h: drafts (draft.h) as the guesses of a core: a chain for each lane. Engine thread only. */
#ifndef QW_ENGINE_GUESSER_H
#define QW_ENGINE_GUESSER_H

#include "engine/core.h"
#include "engine/draft.h"
#include "engine/draft_mtp.h"

typedef struct qw_guesses qw_guesses;

typedef struct qw_guesses_options {
    uint32_t n_lanes, n_vocab, context;
    double us_per_pass;    /* of one row, a guess, until it was measured */
    qw_draft_model model;  /* another one that drafts, told the lane's number; propose NULL: none */
    qw_draft_mtp *mtp;     /* borrows; when that is the model's own layer: hears what was computed. NULL: it is not */
} qw_guesses_options;

qw_status qw_guesses_create(const qw_guesses_options *o, qw_guesses **out, qw_err *err) QW_MUST_CHECK;
size_t qw_guesses_bytes(uint32_t n_lanes, uint32_t n_vocab, uint32_t context); /* that create will take */
void qw_guesses_destroy(qw_guesses *g);
qw_guesser qw_guesses_guesser(qw_guesses *g); /* borrows */

#endif
