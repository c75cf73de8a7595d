/* state_private.h: what state_files.c, the store, state_format.c, one file of computed state, and state_answers.c, one of an
 * answer, share. */
#ifndef QW_ENGINE_STATE_PRIVATE_H
#define QW_ENGINE_STATE_PRIVATE_H

#include <limits.h>
#include <stdatomic.h>
#include <time.h>

#include "base/siphash.h"
#include "engine/state_files.h"

enum {
    STATE_VERSION = 2, /* of a file */
    STATE_LAYOUT_BYTES = 32,
    STATE_NAME_MAX = 112,    /* "abc/PARENT-ID-64.kv", and with an ending of base/new_file.c */
    STATE_HEADER_UNIT = 4096 /* a header is so many bytes, or a multiple: the data lie on a system page's border */
};

struct qw_state_files {
    char *dir; /* owns */
    qw_sip_key keys[2];
    uint8_t layout[STATE_LAYOUT_BYTES]; /* hash of what must be equal */
    size_t page_bytes, recurrent_bytes;
    qw_state_limits limits;
    struct {
        _Atomic uint64_t saved, saved_bytes, already_there, failed, loaded, loaded_bytes, missing, damaged, trimmed,
            trimmed_bytes;
    } n;
    _Atomic uint64_t bytes;         /* found by the last trim, and written since */
    _Atomic uint64_t bytes_trimmed; /* found by the last trim */
    _Atomic int64_t trimmed_at_us;  /* 0: never */
    _Atomic bool cramped;           /* a limit kept something from being saved since */
};

/* A name below the store's folder, taken apart. */
typedef struct state_name {
    qw_state_id parent, id;
    uint32_t n_tokens;
    bool snapshot;
    bool answer;     /* neither page nor snapshot: an answer, with its id in `parent` and nothing else */
    bool unfinished; /* has a temporary ending */
} state_name;

/* The folder of what follows a past. */
void state_folder(qw_state_id parent, char out[4]);
/* "abc/PARENT-ID-N.kv" or ".st"; "abc/ID.an". */
void state_name_of(const state_name *n, char out[STATE_NAME_MAX]);
/* Of the part behind the '/'. False: no name of ours. */
bool state_name_parse(const char *text, state_name *out);

static inline bool state_id_equal(qw_state_id a, qw_state_id b)
{
    return a.w[0] == b.w[0] && a.w[1] == b.w[1];
}

/* The whole path. */
const char *state_path(const qw_state_files *s, const state_name *n, char out[PATH_MAX]);
/* Makes the folder that what follows a past is in. */
qw_status state_make_folder(const qw_state_files *s, qw_state_id parent, qw_err *err) QW_MUST_CHECK;
/* QW_E_LIMIT: the limits do not allow so many bytes more. */
qw_status state_check_room(const qw_state_files *s, size_t bytes, qw_err *err) QW_MUST_CHECK;
/* Of a file that cannot be what its name says. */
void state_remove_damaged(qw_state_files *s, const char *path);

/* Bytes of a file and of what it holds. */
size_t state_data_bytes(const qw_state_files *s, bool snapshot);
size_t state_file_bytes(const qw_state_files *s, bool snapshot);

typedef enum state_read {
    STATE_READ,
    STATE_MISSING,
    STATE_DAMAGED
} state_read;

/* The descriptor of a regular file, its bytes and its last use; or -1 with the reason. */
int state_open(const char *path, size_t *bytes, int64_t *used_s, state_read *why);
/* False: the file ends, or the disk fails. */
bool state_read_all(int fd, void *data, size_t n, size_t offset);

/* Reads and checks a file that should hold this piece. *used_s: its last use, once it is open. */
state_read state_file_load(const qw_state_files *s, const char *path, const qw_state_piece *p, qw_state_id id, void *data,
                           int64_t *used_s);
/* Reads the tokens of a page from its header: [name->n_tokens]. */
state_read state_file_tokens(const qw_state_files *s, const char *path, const state_name *name,
                             int32_t tokens[QW_KV_TILE]);
/* QW_E_ARG: the name is taken. QW_E_NOT_FOUND: there is no such folder. */
qw_status state_file_save(const qw_state_files *s, const char *path, const qw_state_piece *p, qw_state_id id,
                          const void *data, qw_err *err) QW_MUST_CHECK;
/* The time of a use now, as a file's modification time remembers it. */
struct timespec state_use_time(uint32_t depth);

#endif
