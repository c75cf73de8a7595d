/* answer.h: what becomes of the tokens of one answer, from the first one to the terminal event.
 *
 *     token -> characters -> stop strings -> output parser -> events -> the queue that is polled
 *
 * It is given one sampled token at a time and knows nothing of how that came about: no pass, no sequence, no loop.
 * Whoever drives it looks after each token whether `finish` was set by it, and ends the answer in any case, once. What
 * is held back and what rides with which event is in docs/chat.md. Any number may live at a time; engine thread only.
 */
#ifndef QW_ENGINE_ANSWER_H
#define QW_ENGINE_ANSWER_H

#include "engine/engine_private.h"

typedef struct qw_engine_answer {
    const qw_job *job;             /* borrows, until the end */
    const qw_tokenizer *tokenizer; /* borrows; NULL: tokens have no text */
    qw_event_queue *events;        /* borrows */
    qw_detok detok;
    qw_stop stop;
    qw_buf decoded;                /* characters that the newest token completed */
    qw_buf text;                   /* of these, what stop strings let through */
    const qw_sample *sample;       /* the newest token, while no event carries it */
    qw_think think;
    qw_spoken *spoken;             /* borrows of the job; NULL: it is not written down */
    size_t n_decoded;              /* bytes of all text so far, held back or not */
    char call_name[QW_PARSE_NAME_MAX + 1];
    bool in_call;
    qw_buf call_arguments;         /* of the call being written, so far */
    uint32_t n_calls, n_broken;    /* calls begun, and broken off */
    bool closed, told_closed;      /* to be complete in time, its form did not let it go on; a warning said so */
    bool cut;                      /* the only call is made: what follows is dropped, as after a stop string */
    qw_usage usage;
    qw_cache_use cache;            /* set by whoever drives it */
    qw_timings timings;
    int64_t started_us, first_token_us;
    qw_finish finish;              /* not NONE: the answer ends by what was pushed */
} qw_engine_answer;

/* The job's work begins. tokenizer: NULL when the model has none. */
void qw_engine_answer_begin(qw_engine_answer *a, const qw_job *job, const qw_tokenizer *tokenizer,
                            qw_event_queue *events);
void qw_engine_answer_free(qw_engine_answer *a);

/* n tokens of the prompt were found computed already. */
void qw_engine_answer_reused(qw_engine_answer *a, uint32_t n);
/* n more tokens of the prompt are computed; while some are left, an event tells. */
qw_status qw_engine_answer_prefilled(qw_engine_answer *a, uint32_t n, qw_err *err) QW_MUST_CHECK;
/* Looks at a token that was drawn, before anything is done with it: one that closes the thinking may take its place, with
 * log-probability 0, as it was certain. */
void qw_engine_answer_choose(qw_engine_answer *a, qw_sample *drawn);
/* The token to be pushed next is not the one that was drawn first: the answer's form has to be complete in time. */
void qw_engine_answer_closes(qw_engine_answer *a);
/* A sampled token; `sample` is not needed afterwards. Nothing may be pushed once a->finish is set. */
qw_status qw_engine_answer_push(qw_engine_answer *a, const qw_sample *sample, qw_err *err) QW_MUST_CHECK;

/* The end, exactly once: what was held back and DONE; or ERROR. */
void qw_engine_answer_end(qw_engine_answer *a, qw_finish finish);
void qw_engine_answer_fail(qw_engine_answer *a, const qw_err *err);

#endif
