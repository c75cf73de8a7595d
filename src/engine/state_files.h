/* state_files.h: computed pasts on disk: pages of keys and values, and snapshots of recurrent state, a file each; and the
 * answers that were given.
 *
 * A past has an id, a keyed hash of the id of the past before it and of the tokens between: whoever has a past's id and
 * knows which tokens follow knows the names of the files. So nothing is loaded at the start, and processes share a store
 * without locks: a file appears whole under its name and is never changed; a newer answer takes the place of an older one as a
 * whole. What is read is checked against everything that is known about it, and by sums; what does not fit is as if it were
 * not there, is counted, and is removed. Files are kept within limits of bytes and age, and those go first that were not used
 * for the longest time.
 * The formats of files are state_format.c's and state_answers.c's. Any thread.
 */
#ifndef QW_ENGINE_STATE_FILES_H
#define QW_ENGINE_STATE_FILES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qw.h"

#include "backend/backend.h"
#include "base/buf.h"

enum {
    QW_STATE_NUMERICS = 1,  /* raise it when the same tokens give other bits than before, or mean others in a page */
    QW_STATE_TOUCH_S = 3600 /* how exactly the last use is remembered */
};

/* What has to be equal for a file to be of use. */
typedef struct qw_state_layout {
    char model[65];         /* identity of the weights: qw_gguf_identity */
    bool exact;             /* they are computed with in float32 */
    qw_kv_shape shape;
    size_t page_bytes;
    size_t recurrent_bytes; /* of a snapshot; 0: the model has no recurrent state */
} qw_state_layout;

typedef struct qw_state_limits {
    uint64_t bytes_max; /* of all files of the store, whatever their layout */
    uint64_t free_min;  /* bytes of the file system that stay free */
    int64_t age_s_max;  /* since the last use; 0: no limit */
} qw_state_limits;

typedef struct qw_state_files qw_state_files;

/* Makes the folder, and the key in it, when they are not there. */
qw_status qw_state_files_open(const char *dir, const qw_state_layout *layout, const qw_state_limits *limits,
                              qw_state_files **out, qw_err *err) QW_MUST_CHECK;
void qw_state_files_close(qw_state_files *s);

/* ---- ids ------------------------------------------------------------------------------------------ */

enum { QW_STATE_OWNER_BYTES = 32 };

typedef struct qw_state_id {
    uint64_t w[2];
} qw_state_id;

/* The empty past of an owner. Ids say nothing about owner or tokens to who does not have the key. */
qw_state_id qw_state_root_id(const qw_state_files *s, const uint8_t owner[QW_STATE_OWNER_BYTES]);
/* The past that goes on with n tokens, 1..QW_KV_TILE. Nothing is allocated. */
qw_state_id qw_state_child_id(const qw_state_files *s, qw_state_id parent, const int32_t *tokens, uint32_t n);

/* ---- pieces --------------------------------------------------------------------------------------- */

/* What one file holds: the page of n_tokens tokens that follow `parent`, or the state after them. */
typedef struct qw_state_piece {
    qw_state_id parent;    /* at a page's border */
    bool snapshot;
    uint32_t depth;        /* tokens of the parent: of one past the deeper pieces go first */
    uint32_t n_tokens;     /* 1..QW_KV_TILE */
    const int32_t *tokens; /* borrows */
} qw_state_piece;

/* Writes page_bytes or recurrent_bytes from data, unless the file is there. A page takes the place of pages that hold the
 * beginning of its tokens. QW_E_LIMIT: the limits do not allow it. The disk is not waited for: what a loss of power tears
 * is found when it is read. */
qw_status qw_state_save(qw_state_files *s, const qw_state_piece *p, const void *data, qw_err *err) QW_MUST_CHECK;
/* Fills data. False: the file is not there, or was damaged or foreign and is removed; data holds anything then. */
bool qw_state_load(qw_state_files *s, const qw_state_piece *p, void *data);
/* Remembers that it was used now, at most once in QW_STATE_TOUCH_S seconds. */
void qw_state_touch(qw_state_files *s, const qw_state_piece *p);

/* What there is of some tokens that follow a past. */
typedef struct qw_state_past {
    uint32_t n_tokens;        /* that can be continued, at most n - 1; 0: nothing. What has to be loaded for it: */
    uint32_t n_full;          /* full pages of the tokens */
    uint32_t n_last;          /* tokens on one more page, of which the first ones are those wanted; 0: none */
    int32_t last[QW_KV_TILE]; /* [n_last] */
    uint32_t snapshot_at;     /* a snapshot after so many tokens, = n_tokens; 0 without recurrent state */
} qw_state_past;

/* Looks for the longest past in n >= 1 tokens that follow `parent`, which is at a page's border. The contents of files are
 * not read, but for the headers of pages that may have a beginning in common. */
qw_status qw_state_find(qw_state_files *s, qw_state_id parent, const int32_t *tokens, size_t n, qw_state_past *out,
                        qw_err *err) QW_MUST_CHECK;

/* ---- answers -------------------------------------------------------------------------------------- */

enum { QW_STATE_ANSWER_BYTES_MAX = 128 << 20 };

/* What an answer is found by; kinds are the caller's, and hash in worlds of their own. */
typedef struct qw_state_answer_key {
    uint32_t kind;
    qw_text a, b; /* borrows */
} qw_state_answer_key;

/* Like the ids of pasts: it tells nothing to who does not have the store's key, and differs by layout and owner. */
qw_state_id qw_state_answer_id(const qw_state_files *s, const uint8_t owner[QW_STATE_OWNER_BYTES],
                               const qw_state_answer_key *key);
/* In place of what has this id. Limits and the disk as with pieces. */
qw_status qw_state_save_answer(qw_state_files *s, qw_state_id id, qw_text data, qw_err *err) QW_MUST_CHECK;
/* Adds it to out; *saved_s: when it was saved. False: there is none, or what there was is damaged or foreign and is removed. */
bool qw_state_load_answer(qw_state_files *s, qw_state_id id, qw_buf *out, int64_t *saved_s);

/* ---- limits --------------------------------------------------------------------------------------- */

/* Removes what is too old, and what was not used for the longest time until all fits the limits with some room for more;
 * and what killed writers left. Looks at a bounded number of files. */
qw_status qw_state_trim(qw_state_files *s, qw_err *err) QW_MUST_CHECK;
/* It was not done yet, an hour ago, or much was written since. */
bool qw_state_trim_due(const qw_state_files *s);

typedef struct qw_state_counts {
    uint64_t saved, saved_bytes;
    uint64_t already_there; /* saves that had nothing to do */
    uint64_t failed;        /* saves */
    uint64_t loaded, loaded_bytes;
    uint64_t missing;       /* loads of what was not there */
    uint64_t damaged;       /* files with wrong contents */
    uint64_t trimmed, trimmed_bytes;
    uint64_t bytes;         /* of all files, as far as this process knows */
} qw_state_counts;
void qw_state_get_counts(const qw_state_files *s, qw_state_counts *out);

#endif
