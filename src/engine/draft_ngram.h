/* draft_ngram.h: what followed the last tokens when they stood in the conversation before.
 *
 * An index of the places where each run of 2 and of 4 tokens ends, grown token by token. It borrows the tokens and can be
 * cut. Finding looks at a bounded number of places, the newest first. Nothing allocates after create. Engine thread only.
 */
#ifndef QW_ENGINE_DRAFT_NGRAM_H
#define QW_ENGINE_DRAFT_NGRAM_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    QW_NGRAM_MIN = 1,        /* tokens that must agree */
    QW_NGRAM_LENGTH_MAX = 32, /* that are compared */
    QW_NGRAM_PLACES_MAX = 48  /* that are looked at for runs of one length */
};

typedef struct qw_ngrams qw_ngrams;

typedef struct qw_ngram_guess {
    int32_t token;
    uint32_t length; /* so many tokens before it agree */
} qw_ngram_guess;

qw_status qw_ngrams_create(uint32_t n_tokens_max, qw_ngrams **out, qw_err *err) QW_MUST_CHECK;
void qw_ngrams_destroy(qw_ngrams *g);
/* Forgets all; from now on the sequence is in `tokens`, borrowed until the next begin. */
void qw_ngrams_begin(qw_ngrams *g, const int32_t *tokens);
/* The sequence has n tokens now. When that is less than before, those cut off are still in place. */
void qw_ngrams_set_length(qw_ngrams *g, uint32_t n);
/* What may follow the sequence and then path [n_path]: at most n_max different tokens, the one with most agreement first,
 * of equals the newest. */
size_t qw_ngrams_find(const qw_ngrams *g, const int32_t *path, size_t n_path, qw_ngram_guess *out, size_t n_max);

#endif
