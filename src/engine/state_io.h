/* state_io.h: the store of computed pasts, off the engine's thread.
 *
 * The engine thread submits operations and polls for those that are done; neither call waits for a disk. An operation is an
 * object of the caller, which the store has between submit and poll; so long the caller keeps the memory that it reads or
 * fills as it is. Loads go before saves, the pieces of a load are read by all threads at once. A disk that is full, slow,
 * read-only or gone costs what could have been saved, and nothing else.
 * qw_state_store is the interface that the engine sees, so that a simulation can stand in for the disk.
 */
#ifndef QW_ENGINE_STATE_IO_H
#define QW_ENGINE_STATE_IO_H

#include "engine/state_files.h"

enum {
    QW_STATE_FRONT_MAX = 128, /* finds and loads that are not polled yet */
    QW_STATE_BACK_MAX = 256,  /* saves and touches */
    QW_STATE_ANSWERS_BYTES_MAX = 8 << 20, /* of answers that are not saved yet; one may be longer */
    QW_STATE_THREADS_MAX = 8
};

typedef enum qw_state_what {
    QW_STATE_FIND,  /* what there is of the tokens */
    QW_STATE_LOAD,  /* what a find found */
    QW_STATE_SAVE,  /* a page, or a snapshot: the tokens are its own */
    QW_STATE_TOUCH  /* the pages of the tokens are in use */
} qw_state_what;

typedef struct qw_state_op {
    struct qw_state_op *next; /* of whoever has it */
    qw_state_what what;
    void *user;
    qw_state_id parent; /* the past at a page's border that the tokens follow */
    uint32_t depth;     /* its tokens */
    int32_t *tokens;    /* [n_tokens], owns */
    size_t n_tokens;
    qw_state_past past; /* found, or what to load: the caller may want less than was found */

    bool snapshot;      /* save: not a page. touch: the snapshot after the tokens too */
    const void *source; /* save: borrows */
    uint8_t **pages;    /* load: where the full pages and the last one go; owns the table, borrows the memory */
    uint8_t *state;     /* load: where the snapshot goes; NULL: nowhere */

    qw_status status;   /* find, save */
    uint32_t n_good;    /* load: leading pages that hold what they should; all others hold anything */
    bool state_good;    /* load: so does the snapshot */

    qw_state_id *ids;   /* load: the store's own; [past.n_full + 1], owns */
    uint32_t n_begun, n_ended; /* load: the store's own; pieces */
} qw_state_op;

/* Copies the tokens. */
qw_status qw_state_op_create(qw_state_what what, qw_state_id parent, uint32_t depth, const int32_t *tokens,
                             size_t n_tokens, qw_state_op **out, qw_err *err) QW_MUST_CHECK;
/* A find that was polled becomes the load of what it found. The caller fills in `pages` [qw_state_op_pages], and `state`
 * when past.snapshot_at > 0. */
qw_status qw_state_op_make_load(qw_state_op *op, qw_err *err) QW_MUST_CHECK;
uint32_t qw_state_op_pages(const qw_state_op *op);
void qw_state_op_free(qw_state_op *op);

/* One thread at a time. */
typedef struct qw_state_store {
    void *ctx;
    qw_state_id (*root_id)(void *ctx, const uint8_t owner[QW_STATE_OWNER_BYTES]);
    qw_state_id (*child_id)(void *ctx, qw_state_id parent, const int32_t *tokens, uint32_t n);
    bool (*submit)(void *ctx, qw_state_op *op);    /* false: too many are under way, op is still the caller's */
    qw_state_op *(*poll)(void *ctx);               /* one that is done, the caller's again; NULL: none is */
    bool (*wait)(void *ctx, int64_t timeout_us);   /* until one is done; false: none was */
} qw_state_store;

typedef struct qw_state_io qw_state_io;

typedef struct qw_state_io_options {
    qw_state_files *files;     /* borrows */
    int n_threads;             /* 1..QW_STATE_THREADS_MAX; one of several is always kept for loads */
    void (*wake)(void *ctx);   /* an operation is done; called by any of the threads. NULL: nobody wants to know */
    void *wake_ctx;
} qw_state_io_options;

qw_status qw_state_io_open(const qw_state_io_options *o, qw_state_io **out, qw_err *err) QW_MUST_CHECK;
/* Saves go on for at most flush_us, one that was begun to its end; everything else is given up. Frees all operations. */
void qw_state_io_close(qw_state_io *io, int64_t flush_us);
qw_state_store qw_state_io_store(qw_state_io *io);
/* Why the first save that failed did; true once. Any thread. */
bool qw_state_io_report(qw_state_io *io, qw_err *out);

/* ---- answers; any thread --------------------------------------------------------------------------- */

/* Whose threads they are, for ids and loads, which need none of them. */
qw_state_files *qw_state_io_files(qw_state_io *io);
/* Saves the data under each of the ids, before any piece of state: it is small, and what has been computed behind it can be
 * found by its tokens alone. Done by the time of qw_state_io_close. Takes the data; not waited for. */
void qw_state_io_save_answer(qw_state_io *io, const qw_state_id *ids, size_t n_ids, qw_buf *data);

#endif
