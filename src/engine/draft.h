/* draft.h: guesses of a sequence's next tokens, to be checked by the model several at a time.
 *
 *     begin -> [ propose -> the model computes the newest token and the guesses in one pass -> advance ] ...
 *
 * Guesses come as a tree: node i stands for the tokens from the sequence's end to it, a node's parent is before it. Where
 * the model can only go straight on (recurrent state), as a chain. Sources are what followed the same tokens in this
 * conversation, what the model lately thought could follow a token, and another model where there is one. How
 * probable a guess of each kind is, is learned from every token of every answer, also while nothing is drafted; so is what
 * a pass costs. A draft is as wide as pays by these numbers, and empty where nothing does.
 * Guesses cannot change an answer, only its speed. Nothing allocates after create. Engine thread only.
 */
#ifndef QW_ENGINE_DRAFT_H
#define QW_ENGINE_DRAFT_H

#include <stdbool.h>

#include "base/status.h"
#include "engine/top.h"

enum {
    QW_DRAFT_NODES_MAX = 31, /* of one sequence in one pass */
    QW_DRAFT_DEPTH_MAX = 24,
    QW_DRAFT_MODEL_DEPTH = 8 /* tokens that another model drafts at a time */
};

#define QW_DRAFT_ROOT (-1) /* the sequence's newest token */

typedef enum qw_draft_source {
    QW_DRAFT_NGRAM = 0, /* of this conversation */
    QW_DRAFT_RECYCLED,  /* what the model lately thought could follow the same token */
    QW_DRAFT_MODEL,     /* another model's */
    QW_DRAFT_SOURCES
} qw_draft_source;

typedef struct qw_draft_node {
    int32_t token;
    int16_t parent;     /* index of a node before this one, or QW_DRAFT_ROOT */
    uint8_t depth;      /* 1: follows the newest token */
    uint8_t source;     /* qw_draft_source */
    float probability;  /* that the answer goes this way */
} qw_draft_node;

/* Another model that drafts: a small one, or the layers for multi-token prediction. Its tokens cost time before the pass, so it
 * is asked only when they pay. */
typedef struct qw_draft_model {
    void *ctx;
    /* At most n <= QW_DRAFT_MODEL_DEPTH most probable tokens in a row after tokens [n_tokens], of the same vocabulary; it goes
     * on while the probability that all are right, as it sees it, is at least `sure`. Returns how many there are, 0 when it is
     * not ready. `user` says which sequence. */
    uint32_t (*propose)(void *ctx, void *user, const int32_t *tokens, uint32_t n_tokens, uint32_t n, double sure, int32_t *out);
    /* How many tokens it has to compute before it can say something, should that be more than a few: it does so in pieces, one
     * each time that it is asked. NULL: never any. */
    uint32_t (*lacks)(void *ctx, void *user, const int32_t *tokens, uint32_t n_tokens);
    double us_per_token, us_per_lacking; /* above 0 where there are any: guesses, until they were measured */
    int64_t (*clock_us)(void *ctx);
} qw_draft_model;

typedef struct qw_drafts qw_drafts; /* of an engine */
typedef struct qw_draft qw_draft;   /* of a running sequence */

typedef struct qw_drafts_options {
    uint32_t n_vocab;
    double us_per_pass;    /* of one row, a guess, until it was measured */
    qw_draft_model model;  /* propose NULL: none */
    uint32_t sources;      /* bit for each that is used (1 << QW_DRAFT_NGRAM, ...); 0: all */
} qw_drafts_options;

typedef struct qw_draft_counts {
    /* Nodes that were checked, by source and depth: the way to them was right; and those that were right themselves. */
    uint64_t checked[QW_DRAFT_SOURCES][QW_DRAFT_DEPTH_MAX + 1], right[QW_DRAFT_SOURCES][QW_DRAFT_DEPTH_MAX + 1];
    uint64_t proposed[QW_DRAFT_SOURCES]; /* nodes, each a row of a pass */
    uint64_t steps, drafted_steps;       /* calls of propose; those that gave something */
} qw_draft_counts;

qw_status qw_drafts_create(const qw_drafts_options *o, qw_drafts **out, qw_err *err) QW_MUST_CHECK;
void qw_drafts_destroy(qw_drafts *ds); /* after its sequences' */
/* What the model thought could follow `token`: logits [n_vocab] as they come from the pass. For rows whose token is
 * right; about 50 us for a vocabulary of 150000. */
void qw_drafts_note_logits(qw_drafts *ds, int32_t token, const float *logits);
void qw_drafts_note_top(qw_drafts *ds, int32_t token, const qw_top *top, size_t n); /* the same, largest first */
/* A pass of answers and drafts alone took so long. */
void qw_drafts_note_cost(qw_drafts *ds, uint32_t n_rows, double us);
double qw_drafts_cost_us(const qw_drafts *ds, uint32_t n_rows); /* expected; n_rows >= 1 */
void qw_drafts_get_counts(const qw_drafts *ds, qw_draft_counts *out);

/* user: for the other model. */
qw_status qw_draft_create(qw_drafts *ds, uint32_t n_tokens_max, void *user, qw_draft **out, qw_err *err) QW_MUST_CHECK;
void qw_draft_destroy(qw_draft *d);
/* A new sequence, whose tokens are and will be in `tokens` (borrowed until the next begin); n are known. */
void qw_draft_begin(qw_draft *d, const int32_t *tokens, uint32_t n);

typedef struct qw_draft_ask {
    uint32_t n_max;       /* nodes there is room for; any number */
    uint32_t depth_max;   /* of nodes that are of use: what the answer may still get, less the one of the pass itself */
    uint32_t n_rows;      /* already in the pass, this sequence's newest token not counted */
    double n_expected;    /* tokens which those are expected to give */
    bool chain;
} qw_draft_ask;

/* Nodes for the next pass into out [QW_DRAFT_NODES_MAX], most probable first; 0 when none pay. *n_expected (may be NULL):
 * tokens that this sequence is expected to get from the pass. */
uint32_t qw_draft_propose(qw_draft *d, const qw_draft_ask *ask, qw_draft_node *out, double *n_expected);
/* The child of a node with that token, or -1: for following the tokens that were drawn. */
int qw_draft_child(const qw_draft_node *nodes, uint32_t n, int parent, int32_t token);
/* The sequence has n tokens now. What is new is compared with what was proposed last. When it is less than before, those
 * cut off are still in place. */
void qw_draft_advance(qw_draft *d, uint32_t n);

#endif
