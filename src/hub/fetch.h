/* fetch.h: one file over HTTP(S) into a partial file, resumable.
 *
 * One thread, blocking, ticking. https only, except from this machine itself; redirects are followed here,
 * one by one, and each is checked like the first URL; a token goes to its own origin and nowhere else.
 */
#ifndef QW_HUB_FETCH_H
#define QW_HUB_FETCH_H

#include "hub/names.h"
#include "hub/work.h"

typedef struct qw_hub_fetch {
    const char *url;
    const char *token;      /* bearer token or NULL */
    const char *token_base; /* URL whose scheme, host and port may receive it */
    const char *part_path;  /* the bytes so far */
    const char *meta_path;  /* where they came from: qw_hub_partial */
    const char *space_dir;  /* where space is needed */
    uint64_t bytes;         /* the right size; 0: not known */
    const char *sha256;     /* the right sum; "": not known */
} qw_hub_fetch;

typedef struct qw_hub_fetched {
    char sha256[65]; /* the sum the hub published for the file, or "" */
    bool resumed;    /* part of the file was there before */
} qw_hub_fetched;

/* QW_OK: the partial file is complete and on disk (not yet verified). QW_E_NETWORK, QW_E_NOT_FOUND,
 * QW_E_FORMAT, QW_E_CORRUPT (another file than wanted): the source is of no use now, the message begins with
 * the host. QW_E_LIMIT (space), QW_E_IO, QW_E_CANCELLED: no other source would help. */
qw_status qw_hub_fetch_run(const qw_hub_fetch *f, qw_hub_meter *m, qw_hub_fetched *out,
                           qw_err *err) QW_MUST_CHECK;

/* What is known of a partial file; kept beside it. */
typedef struct qw_hub_partial {
    char source[QW_HUB_SPEC_MAX];
    char etag[256];  /* strong validator, or "": cannot be resumed over HTTP */
    char sha256[65]; /* the sum the hub published, or "" */
    uint64_t total;  /* expected bytes, 0: not known */
    uint64_t bytes;  /* pip: whole packages so far, in bytes; http: 0 */
    size_t packages; /* pip: how many those are */
} qw_hub_partial;

bool qw_hub_partial_read(const char *path, qw_hub_partial *out); /* false: none, or not readable */
qw_status qw_hub_partial_write(const char *path, const qw_hub_partial *p, qw_err *err) QW_MUST_CHECK;

#endif
