/* core_private.h: what the files of the core share: requests, lanes, and what is done with a lane.
 *
 * core.c has the step, core_lanes.c what a lane holds and who gets one, core_restore.c pasts that come from the store.
 */
#ifndef QW_ENGINE_CORE_PRIVATE_H
#define QW_ENGINE_CORE_PRIVATE_H

#include "engine/core.h"

enum { QW_SNAPS_MAX = 64 /* that wait for their pages in a lane; edges beyond that are not kept */ };

/* Who shares the machine with whom. Lives while it has requests. */
typedef struct qw_owner {
    struct qw_owner *next;
    uint8_t id[QW_OWNER_BYTES];
    double used; /* rows computed for it, each divided by its request's weight, and what others had when it came */
    uint32_t n_runs;
} qw_owner;

typedef struct qw_run qw_run;

/* The state after so many tokens. */
typedef struct qw_snap {
    uint32_t n_tokens, slot;
} qw_snap;

/* A sequence and what is known about its state. */
typedef struct qw_lane {
    qw_seq *seq;
    qw_run *user;          /* NULL: free */
    qw_prefix_node *tip;   /* pinned: the deepest full page */
    uint32_t n_paged;      /* tokens up to its end */
    uint32_t spare;        /* slot for the state before guesses, or QW_NO_SLOT */
    qw_snap snaps[QW_SNAPS_MAX]; /* beyond it, ascending */
    size_t n_snaps;
    qw_state_op *op;       /* loads into it; the user may have gone meanwhile */
    uint32_t n_restored;   /* tokens up to which it came from the store */
} qw_lane;

/* Has a request asked the store what it has? */
typedef enum qw_looking { QW_LOOK = 0, QW_LOOKING, QW_LOOKED } qw_looking;

/* A request on its way. */
struct qw_run {
    qw_run *prev, *next; /* of all, in order of arrival */
    qw_job *job;      /* owns */
    qw_owner *owner;
    qw_lane *lane;    /* NULL: waiting */
    qw_engine_answer answer;
    bool begun;       /* the answer has */
    bool passed;      /* looked at in this step */
    bool paused;      /* its reader does not keep up */
    qw_looking looking; /* for what the store has */
    qw_state_op *found; /* owns; what it has */
    uint32_t n_known; /* of job->tokens: the prompt, and what was drawn since */
    uint32_t n_told;  /* tokens of the prompt that were reported as computed */
    int64_t ready_us; /* when it would have been done with its prompt, had it begun when it came */
    uint32_t first_row, n_rows; /* in this step's pass; */
    uint32_t n_guesses;         /* of them, the last ones: job->tokens from n_known on */
    uint32_t n_again;           /* right guesses whose state was lost among wrong ones: they are computed again */
};

struct qw_core {
    qw_core_options o;
    qw_prefix *prefix;
    qw_sampler *sampler;
    qw_masker *masker;   /* for answers that are held to a form; NULL before the first */
    uint32_t *mask;      /* [qw_masker_n_words] */
    float *masked;       /* [n_vocab], logits that a draw may be made from once more */
    qw_owner *owners;
    qw_run *first, *last;
    qw_lane *lanes;      /* [n_lanes] */
    qw_row *rows;        /* [n_rows_max] of the pass */
    qw_run **in_pass;    /* [n_lanes]: who has rows in it */
    qw_run **order;      /* [n_lanes]: answers, those that stand first before the others */
    uint32_t *asked;     /* [n_logits_max]: rows whose logits are wanted */
    qw_run *starved;     /* found no room in the last step, first of those */
    float *logits;       /* [n_logits_max, n_vocab] */
    bool waits;          /* somebody waits for the store */
    uint32_t n_rows, n_answer_rows, n_in_pass, n_logits_max;
    bool recurrent;
    double us_per_row;
    int64_t now_us;
    qw_core_counts counts;
};

static inline uint32_t qw_run_n_computed(const qw_run *r)
{
    return r->lane ? r->lane->seq->n_tokens : 0;
}

static inline uint32_t qw_lane_number(const qw_core *c, const qw_lane *l)
{
    return (uint32_t)(l - c->lanes);
}

/* ---- core_lanes.c */
/* The order in which memory is given and taken: it does not change while they run, so the first of it always gets on. */
bool qw_run_stands_before(const qw_run *a, const qw_run *b);
void qw_run_find_past(const qw_core *c, const qw_run *r, qw_prefix_match *m);
/* The first time: what was reused, and why not more. */
void qw_run_begin_answer(qw_core *c, qw_run *r, const qw_prefix_match *m);
/* A lane nobody uses, or one of a request with lower priority, which steps back; NULL: none. */
qw_lane *qw_lane_find_free(qw_core *c, const qw_run *r);
/* Gives r a lane and puts it where its past ends. */
bool qw_lane_enter(qw_core *c, qw_run *r);
/* Puts r's lane where the match ends. */
void qw_lane_continue(qw_core *c, qw_run *r, const qw_prefix_match *m);
/* Pages for the tokens up to n_after, at the cost of what is kept and then of those who stand behind. */
bool qw_lane_make_room(qw_core *c, qw_run *r, uint32_t n_after);
/* Pages that became full go into the cache. */
void qw_lane_keep_pages(qw_core *c, qw_lane *l);
void qw_lane_drop_snaps(qw_core *c, qw_lane *l);
/* Everything computed stays in the cache; the lane is free. Nothing to do without a lane. */
void qw_lane_leave(qw_core *c, qw_run *r);
/* The same, and nothing stays. A load may still write to its pages: then it is cleared when that is done. */
void qw_lane_abandon(qw_core *c, qw_run *r);
void qw_lane_clear(qw_core *c, qw_lane *l);

/* ---- core_restore.c */
/* True: r is waiting for the store, or goes on from there. */
bool qw_run_restore(qw_core *c, qw_run *r, const qw_prefix_match *m);
/* What of its past was reused is in use, also for the store's own order of what goes first. */
void qw_run_touch(qw_core *c, const qw_run *r);
/* Operations that are done. */
void qw_core_take_from_store(qw_core *c);

#endif
