/* think.h: an upper bound for the thinking of an answer, and no end of text within it.
 *
 * Both close the thought by saying so in the model's own voice: instead of what was drawn, the tokens of some closing words
 * come next, and then the model answers. They are tokens of the answer like all others. Asked once for each token that was
 * drawn, before it becomes part of the answer. docs/engine-thinking.md has the meaning for each family. Engine thread only.
 */
#ifndef QW_ENGINE_THINK_H
#define QW_ENGINE_THINK_H

#include <stdbool.h>

#include "text/tokenizer.h"

/* A model's closing words, as tokens. Zeroed: it has none, and nothing is ever closed. Owns. */
typedef struct qw_think_words {
    qw_tokens limit; /* when the budget is used up */
    qw_tokens end;   /* where an end token was drawn */
} qw_think_words;
qw_status qw_think_words_create(const qw_tokenizer *t, qw_think_words *out, qw_err *err) QW_MUST_CHECK;
void qw_think_words_free(qw_think_words *w);

typedef struct qw_think {
    const qw_think_words *words; /* borrows; NULL: this answer is left alone */
    int64_t tokens_max;          /* of thinking; 0: no limit */
    int64_t n_tokens;            /* of thinking so far */
    const int32_t *next;         /* [n_next] of the closing words that are still to come */
    size_t n_next;
    bool closed;                 /* once is all: a thought that goes on after that is the model's own affair */
    bool caught;                 /* it was an end token that closed it */
} qw_think;

/* Where the answer stands before this token. */
typedef struct qw_think_at {
    bool in_thinking;
    bool between; /* no character and no call is open: something else may follow */
    bool ends;    /* the token that was drawn is an end token */
} qw_think_at;

/* The token that comes next: `drawn`, or one of the closing words. */
int32_t qw_think_next(qw_think *t, int32_t drawn, qw_think_at at);

#endif
