/* engine_private.h: the engine's inside: jobs, events, and who may touch what.
 *
 * Callers' threads touch the inbox, `cancelled` and the counters under `lock`; the engine thread alone touches
 * everything under "engine thread". Events travel through the event queue (events.c), which makes nobody wait.
 */
#ifndef QW_ENGINE_ENGINE_PRIVATE_H
#define QW_ENGINE_ENGINE_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/buf.h"
#include "engine/loops.h"
#include "engine/memory.h"
#include "engine/model.h"
#include "engine/sampler.h"
#include "engine/state_io.h"
#include "engine/stop.h"
#include "engine/think.h"
#include "model/runtime.h"
#include "text/parse.h"

enum {
    QW_CONTEXT_DEFAULT = 32768,
    QW_BATCH_ROWS = 512,           /* rows in one pass */
    QW_QUEUE_DEFAULT = 256,
    QW_QUEUE_CONTEXTS = 16,        /* tokens of all prompts that wait, as a multiple of the context */
    QW_BACKLOG_MAX = 256,          /* events of a request that wait to be polled; then it pauses until half of them were */
    QW_UNREAD_MAX = 256,           /* answers that ended and were not polled to their end; then nothing more is accepted */
    QW_PARALLEL_DEFAULT = 8,
    QW_STATE_AGE_S = 30 * 86400,   /* since its last use a saved past goes */
    QW_PARALLEL_MAX = 64,
    QW_SAMPLER_BYTES_PER_TOKEN = 24 /* arrays of a draw, banned tokens */
};

#define QW_STATE_BYTES_DEFAULT ((uint64_t)20 << 30)
#define QW_STATE_FREE_MIN ((uint64_t)4 << 30)

/* A queued request: everything of it copied. */
typedef struct qw_job {
    struct qw_job *next;             /* of the inbox */
    struct qw_job *all_prev, *all_next; /* of all, until their end */
    uint64_t id;
    void *user;
    int32_t *tokens; /* [n_tokens_max], owns; the prompt, then the answer */
    size_t n_tokens, n_tokens_max; /* of the prompt; of both */
    qw_edge *edges;  /* [n_edges], owns; the ends of the prompt's messages */
    size_t n_edges;
    qw_sampling_run *draws; /* owns */
    uint8_t owner[32];  /* hash of its name */
    int32_t priority;
    int64_t deadline_us; /* 0: none */
    uint32_t weight;     /* of its owner's share; 0 counts as 1 */
    char **stop;         /* owns; [n_stop] */
    size_t n_stop;
    int64_t max_tokens;
    bool ignore_eos, fim, one_call;
    struct qw_form *form; /* owns; what the answer is held to; NULL: nothing */
    qw_parser *parser;   /* owns; takes the answer apart; NULL: all of it is text */
    qw_think think;      /* as the answer begins */
    qw_thinking_use thinking; /* what is told about that */
    qw_loops *loops;     /* owns; NULL: it may repeat itself */
    qw_memory_answer *said; /* holds; NULL: nobody will send it back */
    struct qw_feed *feed; /* holds; where its events go */
    atomic_bool cancelled;
    int64_t submitted_us;
} qw_job;

void qw_job_free(qw_job *job);

/* An event and the memory its pointers need. */
typedef struct qw_event_node {
    struct qw_event_node *prev, *next; /* of all */
    struct qw_event_node *feed_next;   /* of its request's */
    struct qw_feed *feed;
    qw_event event;
    char *text;                 /* owns */
    qw_event_token token;
    qw_top_logprob top[QW_TOP_LOGPROBS_MAX];
    qw_tool_call call;
    char call_id[QW_CALL_ID_BYTES];
    char call_name[QW_PARSE_NAME_MAX + 1];
} qw_event_node;
void qw_event_node_free(qw_event_node *node); /* one that was not pushed */

/* The events of one request that wait to be polled. Held by its job and, until the last event was read, by the queue. */
typedef struct qw_feed {
    struct qw_feed *prev, *next;  /* of the queue's */
    uint64_t request;
    qw_event_node *first, *last;
    qw_event_node *current;       /* the one its reader looks at */
    atomic_uint n, n_holders;
    bool ended;                   /* its terminal event is in it */
} qw_feed;
qw_status qw_feed_create(qw_feed **out, qw_err *err) QW_MUST_CHECK;
void qw_feed_release(qw_feed *f); /* NULL is fine */

typedef struct qw_event_queue {
    pthread_mutex_t lock;
    pthread_cond_t readable;
    qw_event_node *first, *last;
    qw_event_node *current; /* the one the reader of all looks at */
    qw_feed *feeds;         /* of requests whose last event was not read */
    size_t n;
    uint32_t n_ended;       /* feeds that have their terminal event */
    uint32_t n_backlog_max; /* of a feed; beyond it only what comes of the same step, and the end */
    int fd;                 /* eventfd: readable while n > 0 */
    bool closed;            /* nobody will read any more */
    void (*wake)(void *ctx); /* NULL: nobody waits; half of a full feed was read */
    void *wake_ctx;
} qw_event_queue;

/* Of a zeroed queue. */
qw_status qw_events_init(qw_event_queue *q, uint32_t n_backlog_max, qw_err *err) QW_MUST_CHECK;
void qw_events_free(qw_event_queue *q);
/* From now on the request can be polled. */
void qw_events_open(qw_event_queue *q, qw_feed *f, uint64_t request);
/* Takes the node. Waits for nobody. */
void qw_events_push(qw_event_queue *q, qw_feed *f, qw_event_node *node);
/* Should its request pause? was_full: it does already. */
bool qw_feed_is_full(const qw_event_queue *q, const qw_feed *f, bool was_full);
uint32_t qw_events_ended(qw_event_queue *q); /* answers that wait for their reader */
void qw_events_close(qw_event_queue *q);
bool qw_events_poll(qw_event_queue *q, int timeout_ms, qw_event *out);
/* The next one of this request; false at once when its last one was read. */
bool qw_events_poll_one(qw_event_queue *q, uint64_t request, int timeout_ms, qw_event *out);

struct qw_core;

struct qw_engine {
    qw_model *model; /* borrows */
    uint32_t context;
    qw_runtime rt;
    pthread_t thread;
    bool thread_started;

    pthread_mutex_t lock; /* guards what follows, up to the events */
    pthread_cond_t work;
    qw_job *first, *last; /* the inbox, in order of arrival */
    qw_job *all;          /* every job until its end, whoever has it */
    uint32_t n_inbox, n_waiting, n_queue_max; /* in the inbox; taken from it and not begun */
    uint64_t inbox_tokens, waiting_tokens, queue_tokens_max; /* of their prompts */
    qw_engine_stats stats; /* as of the last step */
    char save_fault[QW_ERR_TEXT_MAX]; /* why the first save that failed did, or "" */
    bool stop;
    bool woken;           /* by the store, a reader, or who cancels */
    uint64_t next_id;
    qw_err dead;          /* status != QW_OK: the model failed; nothing more is accepted */

    qw_event_queue events;

    /* engine thread */
    struct qw_core *core;
    char note[QW_ERR_TEXT_MAX + 64]; /* why nothing is saved, or "" */
    qw_state_files *state_files; /* owns; NULL: nothing is saved */
    qw_state_io *state;         /* owns */
    qw_state_store store;
    bool waits;                 /* the core waits for the store, or for readers */
    struct qw_guesses *guesses; /* NULL: plain decoding */
    struct qw_draft_small *small; /* owns; NULL: no draft model */
    struct qw_draft_mtp *mtp;   /* owns; NULL: no layer for multi-token prediction, or not wanted */
    int32_t *banned;      /* [n_banned]: padding rows of the vocabulary, never sampled */
    size_t n_banned;
};

/* Whether the model's layer for multi-token prediction drafts: where it has one, unless another model does, or nothing may. */
bool qw_engine_uses_mtp(const qw_model *m, const qw_engine_options *o);
/* What the engine's runtime is made with. */
qw_runtime_options qw_engine_runtime_options(const qw_model *m, const qw_engine_options *o, const qw_plan *plan);

#endif
