/* core.h: the engine as a step: which tokens of which requests are computed next, and what becomes of the results.
 *
 *     add -> waiting -> [a lane: prefix found, pieces of the prompt, one token a step] -> ended
 *
 * The step is a function of the requests, the state and the clock: it has no thread, waits for nothing and allocates
 * nothing. What computes is behind qw_compute, so that all of this runs on a fake model with a fake clock (tests/sim).
 * A request whose reader does not keep up pauses, and gives its lane to whoever wants one; nothing waits for it.
 * In a step every answer gets its next token, and what room is left goes to prompts, in this order: priority; the owner who
 * had less for its weight; the request that would be ready first had each begun when it came. Without room in memory the
 * newest request of the lowest priority steps back and goes on later, from what is still kept of it.
 * A sequence's tokens are the same whatever shares its steps. Engine thread only.
 */
#ifndef QW_ENGINE_CORE_H
#define QW_ENGINE_CORE_H

#include "engine/answer.h"
#include "engine/form.h"
#include "engine/prefix.h"
#include "engine/sampler.h"
#include "model/forward.h"

enum {
    QW_PIECE_US = 100000,       /* of a prompt, while others wait for their next token */
    QW_PIECE_ALONE_US = 1000000,
    QW_PIECE_ROWS_MIN = 16,
    QW_ANSWER_ROWS = 12,        /* of all answers in a step, guesses among them, beyond one for each */
    QW_SNAPSHOT_TOKENS = 1024,  /* between snapshots inside a long message */
    QW_SAVE_AFTER_US = 2000000, /* something was computed it is saved, if there is a store */
    QW_MASKS_KEPT = 256,        /* of states of forms */
    QW_REMEMBERED_MAX = 16384   /* pages that are gone and still known, for explanations */
};

/* Rows in, logits out; as qw_forward and qw_pass_logits. */
typedef struct qw_compute {
    void *ctx;
    void (*forward)(void *ctx, const qw_row *rows, size_t n_rows);
    void (*logits)(void *ctx, const uint32_t *rows, size_t n, float *out, size_t ld);
    bool (*failed)(void *ctx, qw_err *err); /* what was computed cannot be trusted, and why */
    int64_t (*clock_us)(void *ctx);
} qw_compute;

typedef struct qw_guess_ask {
    uint32_t n_max;    /* guesses there is room for, at least one */
    uint32_t n_rows;   /* that share the pass: the newest tokens of all answers but its own, and guesses before it; */
    double n_expected; /* tokens which those are expected to give */
} qw_guess_ask;

/* Guesses of the tokens that follow; guess NULL: none. A guess that equals the token drawn at its place saves a step.
 * Sequences are known by their lanes. */
typedef struct qw_guesser {
    void *ctx;
    void (*begin)(void *ctx, uint32_t lane, const qw_job *job, uint32_t n);      /* job->tokens [n] are known */
    /* At most ask->n_max; returns how many. *n_expected: tokens that the pass is expected to give this sequence. */
    uint32_t (*guess)(void *ctx, uint32_t lane, const qw_guess_ask *ask, int32_t *out, double *n_expected);
    void (*advance)(void *ctx, uint32_t lane, uint32_t n);                       /* n are known now */
    void (*note_logits)(void *ctx, int32_t token, const float *logits);          /* what may follow token */
    void (*note_cost)(void *ctx, uint32_t n_rows, double us);                    /* of a pass of answers and guesses alone */
    /* After a pass and its draws: rows [first_row, first_row + n) of it are what the lane's sequence goes on with, from pos on;
     * what follows them is known. Only rows of the newest n_hidden tokens that were known are told. */
    void (*computed)(void *ctx, uint32_t lane, uint32_t first_row, uint32_t n, uint32_t pos);
    uint32_t n_hidden;
} qw_guesser;

typedef struct qw_core qw_core;

typedef struct qw_core_options {
    qw_compute compute;
    qw_seq_pool *pool;              /* borrows */
    const qw_tokenizer *tokenizer;  /* borrows; NULL: tokens have no text */
    qw_event_queue *events;         /* borrows */
    uint32_t n_vocab;
    qw_guesser guesser;
    const int32_t *banned;          /* [n_banned] ids that are never sampled; borrows */
    size_t n_banned;
    uint32_t context;               /* tokens of a sequence, at most the pool's */
    uint32_t n_lanes;               /* sequences that run at the same time */
    uint32_t n_rows_max;            /* of a pass; at least qw_core_logits_max() + QW_ANSWER_ROWS */
    uint32_t n_snapshots;           /* slots of the pool beyond one for each lane, or two with a guesser */
    double us_per_row;              /* a guess, until it was measured */
    const qw_state_store *store;    /* borrows; NULL: nothing is saved. Closed before the core is destroyed */
    qw_sip_key key;
    void (*ended)(void *ctx, qw_job *job); /* after its terminal event; takes the job */
    void *ended_ctx;
} qw_core_options;

qw_status qw_core_create(const qw_core_options *o, qw_core **out, qw_err *err) QW_MUST_CHECK;
/* Rows of logits that are held at a time. */
uint32_t qw_core_logits_max(uint32_t n_lanes, bool guesses);
/* Bytes it takes beside pages, logits and guesses, when all lanes are in use with all that a request can ask for, and nobody
 * reads; o->pool is not looked at. */
uint64_t qw_core_bytes(const qw_core_options *o, uint32_t n_pages);
/* Ends what is left, cancelled. */
void qw_core_destroy(qw_core *c);

/* Takes the job. Its terminal event comes in some step. */
void qw_core_add(qw_core *c, qw_job *job);
typedef enum qw_step {
    QW_STEP_IDLE = 0, /* no requests */
    QW_STEP_DONE,     /* something was computed, or ended */
    QW_STEP_WAITS     /* nothing can be done before the store is done with something, or a reader polls */
} qw_step;
/* One pass, and all that follows from it. */
qw_step qw_core_step(qw_core *c);
/* Ends every request with this error. */
void qw_core_fail(qw_core *c, const qw_err *err);
bool qw_core_idle(const qw_core *c); /* no requests */
bool qw_core_has_unsaved(const qw_core *c); /* a step has to look after that, now and then, without requests too */
/* Ends all requests, cancelled, and saves what is not saved yet; takes at most so long. */
void qw_core_finish(qw_core *c, int64_t us_max);

typedef struct qw_core_counts {
    uint32_t n_waiting, n_running;
    uint64_t waiting_tokens; /* of the prompts of those who wait */
    uint64_t steps, rows, preemptions; /* rows: computed, of all requests */
    uint64_t guessed, guessed_right;
    uint64_t requests, reused_tokens, prompt_tokens;
    uint64_t restored_tokens; /* of the reused ones, from the store */
    uint64_t missed[QW_MISS_SNAPSHOT + 1]; /* requests by qw_cache_miss */
    qw_prefix_counts prefix;
} qw_core_counts;
void qw_core_get_counts(const qw_core *c, qw_core_counts *out);
/* Compares what is linked and counted with what should be; for tests. */
void qw_core_check(const qw_core *c);

#endif
