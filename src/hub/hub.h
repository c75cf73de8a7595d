/* hub.h: models on disk: the catalogue, the store, downloads.
 *
 * The door that commands use. A qw_hub is a catalogue and the path of a store ($QW_HOME, see base/file.h);
 * one thread at a time may use it, any number of processes may share the store (docs/store.md describes its
 * layout). Nothing here prints: what happens during a pull or a verification is told through a qw_hub_watch.
 * Reading (list, find, resolve) needs no write permission and takes no lock.
 */
#ifndef QW_HUB_HUB_H
#define QW_HUB_HUB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum {
    QW_HUB_NAME_MAX = 128, /* bytes of a model's name, NUL included */
    QW_HUB_PATH_MAX = 4096,
    QW_HUB_SPEC_MAX = 2048, /* bytes of what may be pulled: a name, URL or path */
    QW_HUB_PARTS_MAX = 1000 /* files of a split model */
};

typedef struct qw_hub qw_hub;

/* ---- what a long operation tells --------------------------------------------------------------- */

typedef enum qw_hub_stage {
    QW_HUB_DOWNLOAD = 1, /* bytes come in */
    QW_HUB_CHECKSUM,     /* SHA-256 of a file is computed */
    QW_HUB_COPY,         /* a local file is copied into the store */
    QW_HUB_WAIT          /* another process works on the same model */
} qw_hub_stage;

typedef struct qw_hub_progress {
    const char *model;  /* borrows until the callback returns */
    const char *source; /* where the bytes come from: a host, "pip", a path */
    qw_hub_stage stage;
    uint64_t done_bytes;
    uint64_t total_bytes;   /* 0: not known */
    uint64_t resumed_bytes; /* of done_bytes, there before this run: leave them out of a rate */
    size_t part, n_parts;   /* of a split model, from 1; n_parts is 1 otherwise */
} qw_hub_progress;

typedef struct qw_hub_watch {
    void *user;
    /* One line of news for people ("huggingface.co: could not resolve host, trying the next source"). */
    void (*line)(void *user, const char *text);
    /* Comes several times a second while anything goes on, also when no byte moves. False stops the
     * operation with QW_E_CANCELLED. May be NULL. */
    bool (*progress)(void *user, const qw_hub_progress *p);
} qw_hub_watch;

/* ---- open -------------------------------------------------------------------------------------- */

/* catalog_path: a catalogue file, or NULL for the one inside the program. Creates nothing on disk. */
qw_status qw_hub_open(const char *catalog_path, qw_hub **out, qw_err *err) QW_MUST_CHECK;
void qw_hub_close(qw_hub *hub);

/* ---- looking ----------------------------------------------------------------------------------- */

typedef struct qw_hub_model {
    char name[QW_HUB_NAME_MAX];
    bool installed;
    bool in_catalog;         /* the name is a catalogue id */
    const char *description; /* borrows from the hub; "" for models that are not in the catalogue */
    const char *licence;
    uint64_t bytes;        /* of all parts */
    char quantization[32]; /* "Q4_K_M", or "" */
    char architecture[32]; /* "qwen2", or "" */
    char sha256[65];       /* of the (first) file */
    int64_t added_s;       /* seconds since 1970; 0 when not installed */
    size_t n_parts;
    char source[QW_HUB_SPEC_MAX]; /* what to pull to get it again */
    char file[256];               /* name of the (first) file where it came from */
    char path[QW_HUB_PATH_MAX];   /* of the (first) file; "" when not installed */
    char fault[160];              /* "" or why the stored files cannot be used; `qw pull NAME` repairs */
    /* Set by qw_hub_list alone: what its side file of packed weights is named after, "" when the model's file cannot be
     * read, and that side file's size, 0 when there is none. */
    char identity[65];
    uint64_t packed_bytes;
} qw_hub_model;

/* Installed models in order of their names; with catalog also those of the catalogue that are not installed,
 * after them. *out is freed with free(). */
qw_status qw_hub_list(const qw_hub *hub, bool catalog, qw_hub_model **out, size_t *n,
                      qw_err *err) QW_MUST_CHECK;

/* An installed model by name, alias or unique beginning of a name. QW_E_NOT_FOUND says how to get it, or
 * which names are near. *out is large: do not put many on a stack. */
qw_status qw_hub_find(const qw_hub *hub, const char *name, qw_hub_model *out, qw_err *err) QW_MUST_CHECK;

/* True when the text means a file rather than a name: it holds a '/', ends in .gguf, or is a file or a
 * Hugging Face folder that exists. */
bool qw_hub_is_path(const char *name_or_path);

/* Path of the model file for a name or a path, with the program's own catalogue. */
qw_status qw_hub_resolve(const char *name_or_path, char *path, size_t cap, qw_err *err) QW_MUST_CHECK;

/* ---- side files of packed weights (base/side_files.h) ------------------------------------------ */

/* Path of the side file that belongs to a model file, and its size, 0 when there is none yet. False when the model
 * file cannot be read or there is no cache folder; path is "" then. */
bool qw_hub_packed_find(const char *model_path, char path[QW_HUB_PATH_MAX], uint64_t *bytes);

typedef struct qw_hub_packed {
    size_t n_files;
    uint64_t bytes;
    uint64_t other_bytes; /* of bytes: of none of the models asked about */
    uint64_t bytes_max;   /* QW_CACHE_MAX or its default */
} qw_hub_packed;

/* The whole folder. models: a list of qw_hub_list with what is installed. QW_E_ARG: QW_CACHE_MAX is no size. */
qw_status qw_hub_packed_total(const qw_hub_model *models, size_t n, qw_hub_packed *out, qw_err *err) QW_MUST_CHECK;

typedef struct qw_hub_packed_removal {
    size_t n_removed, n_kept; /* kept: a process uses them */
    uint64_t freed_bytes, kept_bytes;
} qw_hub_packed_removal;

/* Removes every side file that no process uses, whatever model it belongs to. */
qw_status qw_hub_packed_clear(qw_hub_packed_removal *out, qw_err *err) QW_MUST_CHECK;

/* The model that a new user gets. */
const char *qw_hub_default_model(void);

/* ---- changing ---------------------------------------------------------------------------------- */

typedef struct qw_hub_pull_options {
    const char *spec; /* NAME, hf:OWNER/REPO/FILE.gguf, ms:..., https://..., ./file.gguf */
    const char *name; /* --name: what to call it; NULL: the catalogue's name, or made from the file name */
    bool if_missing;  /* an installed model is taken as it is, its checksum not computed again */
} qw_hub_pull_options;

/* Brings a model into the store. name receives what it is called there. A model that is there and whole is
 * left alone, a damaged one is fetched again. On QW_E_CANCELLED and network failures what came is kept for
 * the next pull of the same name. */
qw_status qw_hub_pull(qw_hub *hub, const qw_hub_pull_options *options, const qw_hub_watch *watch,
                      char name[QW_HUB_NAME_MAX], qw_err *err) QW_MUST_CHECK;

/* SHA-256 of every stored file of a model against its manifest; QW_E_CORRUPT names the file. */
qw_status qw_hub_verify(const qw_hub *hub, const char *name, const qw_hub_watch *watch, qw_hub_model *out,
                        qw_err *err) QW_MUST_CHECK;

/* Removes a model: first its manifest, then the files no other model uses, their packed side files in the
 * cache, and partial downloads of that name. freed_bytes counts files and side files. */
qw_status qw_hub_remove(qw_hub *hub, const char *name, const qw_hub_watch *watch, uint64_t *freed_bytes,
                        qw_err *err) QW_MUST_CHECK;

#endif
