/* catalog.h: the models qw knows by name: share/catalog.json, compiled into the program.
 *
 * Immutable after open; any thread. Pointers borrow until qw_hub_catalog_close. A catalogue given as a file
 * is as untrusted as any other input: every text that becomes part of a path, URL or command line is checked
 * here.
 */
#ifndef QW_HUB_CATALOG_H
#define QW_HUB_CATALOG_H

#include "hub/names.h"

typedef struct qw_hub_entry {
    char *id; /* all strings are owned by the catalogue */
    char **aliases;
    size_t n_aliases;
    char *description, *licence, *quantization;
    char *file; /* name of the file where it comes from */
    uint64_t bytes;
    char sha256[65];
    qw_hub_source *sources; /* in the order to try */
    size_t n_sources;
} qw_hub_entry;

typedef struct qw_hub_catalog {
    qw_hub_entry *entries;
    size_t n_entries;
    char *default_id;
    char *hf_base, *ms_base; /* "https://huggingface.co" */
} qw_hub_catalog;

/* path NULL: the catalogue inside the program. */
qw_status qw_hub_catalog_open(const char *path, qw_hub_catalog **out, qw_err *err) QW_MUST_CHECK;
void qw_hub_catalog_close(qw_hub_catalog *c);
/* By id or alias (lower case); NULL: none. */
const qw_hub_entry *qw_hub_catalog_find(const qw_hub_catalog *c, const char *name);

#endif
