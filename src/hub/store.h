/* store.h: the folder that holds models: blobs, manifests, partial downloads, locks.
 *
 *     HOME/blobs/sha256-<64 hex>     a file, named by its content; never written to once it is there
 *     HOME/models/NAME.json          the manifest: a model exists when, and only when, this file does
 *     HOME/models/NAME.parts/FILE    of split models: hard links to blobs, beside each other
 *     HOME/partial/NAME/             what an unfinished pull has so far
 *     HOME/locks/NAME.lock, .store   flock()ed while a model, or the set of all, is changed
 *
 * (In NAME the ":" of a model's name is "@".) One thread at a time; any number of processes. Everything
 * appears by rename after fsync, so that a kill or a power loss at any point leaves the old state or the new
 * one.
 */
#ifndef QW_HUB_STORE_H
#define QW_HUB_STORE_H

#include "hub/names.h"
#include "hub/work.h"

typedef struct qw_hub_store {
    char home[QW_HUB_PATH_MAX - 512]; /* leaves room for every name below it */
} qw_hub_store;

typedef struct qw_hub_file {
    char name[256]; /* valid component */
    uint64_t bytes;
    char sha256[65];
} qw_hub_file;

typedef struct qw_hub_manifest {
    char name[QW_HUB_NAME_MAX];
    char id[QW_HUB_NAME_MAX]; /* catalogue id or "" */
    char source[QW_HUB_SPEC_MAX];
    char quantization[32], architecture[32];
    int64_t added_s;
    qw_hub_file *files; /* owns; [n_files] */
    size_t n_files;
} qw_hub_manifest;

qw_status qw_hub_store_open(qw_hub_store *s, qw_err *err) QW_MUST_CHECK;       /* creates nothing */
qw_status qw_hub_store_make(const qw_hub_store *s, qw_err *err) QW_MUST_CHECK; /* the folders */

/* The only way from a checksum to a path: refuses what is not 64 hexadecimal digits. */
qw_status qw_hub_blob_path(const qw_hub_store *s, const char *sha256, char out[QW_HUB_PATH_MAX],
                           qw_err *err) QW_MUST_CHECK;
/* HOME/partial/NAME; name is valid. */
void qw_hub_partial_path(const qw_hub_store *s, const char *name, char out[QW_HUB_PATH_MAX]);

/* QW_E_NOT_FOUND: no such model; QW_E_FORMAT: the manifest is damaged. */
qw_status qw_hub_manifest_read(const qw_hub_store *s, const char *name, qw_hub_manifest *out,
                               qw_err *err) QW_MUST_CHECK;
void qw_hub_manifest_clear(qw_hub_manifest *m);
uint64_t qw_hub_manifest_bytes(const qw_hub_manifest *m);
/* Path of the (first) file as the loader wants it. */
qw_status qw_hub_manifest_path(const qw_hub_store *s, const qw_hub_manifest *m, char out[QW_HUB_PATH_MAX],
                               qw_err *err) QW_MUST_CHECK;
/* Looks at sizes alone; false and a reason when a stored file is missing or has another size. */
bool qw_hub_manifest_whole(const qw_hub_store *s, const qw_hub_manifest *m, char fault[160]);
/* Computes every sum; QW_E_CORRUPT names what differs. */
qw_status qw_hub_manifest_verify(const qw_hub_store *s, const qw_hub_manifest *m, qw_hub_meter *meter,
                                 qw_err *err) QW_MUST_CHECK;

/* Names of all manifests, sorted; each and the array are freed by qw_hub_names_free. */
qw_status qw_hub_store_names(const qw_hub_store *s, char ***out, size_t *n, qw_err *err) QW_MUST_CHECK;
void qw_hub_names_free(char **names, size_t n);

/* An exclusive lock on one model (name) or, name NULL, on the set of all models. Waiting says one line and
 * ticks. */
qw_status qw_hub_lock(const qw_hub_store *s, const char *name, qw_hub_meter *m, int *fd,
                      qw_err *err) QW_MUST_CHECK;
void qw_hub_unlock(int fd); /* -1: nothing */

/* Moves the verified files staged[0..n_files) into place and writes the manifest. The caller holds the
 * model's lock. */
qw_status qw_hub_commit(const qw_hub_store *s, const qw_hub_manifest *m, const char *const *staged,
                        qw_hub_meter *meter, qw_err *err) QW_MUST_CHECK;
/* Removes manifest, files and side files. The caller holds the model's lock. */
qw_status qw_hub_uncommit(const qw_hub_store *s, const qw_hub_manifest *m, qw_hub_meter *meter,
                          uint64_t *freed_bytes, qw_err *err) QW_MUST_CHECK;

/* Removes a file or a folder with all in it; a missing one is fine. */
qw_status qw_hub_remove_tree(const char *path, qw_err *err) QW_MUST_CHECK;

#endif
