/* names.h: model names and what can be pulled. Any thread; no state.
 *
 * The only place that decides which texts of a user or of a stored file may become part of a path or URL. A
 * name that passed here contains no '/', no "..", no leading '.', and no byte outside its small alphabet.
 */
#ifndef QW_HUB_NAMES_H
#define QW_HUB_NAMES_H

#include "hub/hub.h"

/* [a-z0-9][a-z0-9._-]*, and once ":" and the same again. */
bool qw_hub_name_valid(const char *name);
/* Lower case of a name as people type it; QW_E_ARG when the result is not a valid name. */
qw_status qw_hub_name_normal(const char *typed, char out[QW_HUB_NAME_MAX], qw_err *err) QW_MUST_CHECK;
/* The name as part of a file name (":" becomes "@"), and back; back fails on anything it did not make. */
void qw_hub_name_to_file(const char *name, char out[QW_HUB_NAME_MAX]);
bool qw_hub_name_from_file(const char *file, size_t n, char out[QW_HUB_NAME_MAX]);
/* A valid name made from a file name: "Foo_Q4.gguf" gives "foo_q4"; a split part loses its number. */
qw_status qw_hub_name_from_gguf(const char *file, char out[QW_HUB_NAME_MAX], qw_err *err) QW_MUST_CHECK;

/* A name that is one component of a path: letters, digits, '.', '_', '-', '+', '='; no leading '.'. */
bool qw_hub_component_valid(const char *s, size_t n);
/* 64 lower-case hexadecimal digits and the end. */
bool qw_hub_digest_valid(const char *sha256);
/* Edit distance of two short texts, at most `limit` + 1. */
size_t qw_hub_distance(const char *a, const char *b, size_t limit);

typedef enum qw_hub_source_kind {
    QW_HUB_SRC_HF = 1, /* repo, file: a file of a Hugging Face repository */
    QW_HUB_SRC_MS,     /* repo, file: a file of a ModelScope repository */
    QW_HUB_SRC_URL,    /* url */
    QW_HUB_SRC_PIP,    /* Python packages (catalogue only) */
    QW_HUB_SRC_FILE    /* url holds a path of this machine */
} qw_hub_source_kind;

typedef struct qw_hub_source {
    qw_hub_source_kind kind;
    char *repo;      /* owns */
    char *file;      /* owns; of hf and ms the path inside the repository */
    char *url;       /* owns */
    char *version;   /* owns; pip */
    char **packages; /* owns; pip: n_packages names */
    char **members;  /* owns; pip: the file inside each package */
    size_t n_packages;
} qw_hub_source;

void qw_hub_source_clear(qw_hub_source *s);
/* hf:OWNER/REPO/FILE.gguf, ms:..., https://..., http://127.0.0.1/..., or a path. QW_E_NOT_FOUND when the text
 * is none of these (it is a name then); QW_E_ARG when it begins like one and is not. */
qw_status qw_hub_source_parse(const char *spec, qw_hub_source *out, qw_err *err) QW_MUST_CHECK;
/* Name of the file the source gives ("x-00001-of-00003.gguf"). */
qw_status qw_hub_source_file_name(const qw_hub_source *s, char out[256], qw_err *err) QW_MUST_CHECK;
/* Splits "NAME-00002-of-00005.gguf"; false when the text is not of that form. stem_bytes: length of NAME. */
bool qw_hub_split_parse(const char *file, size_t *stem_bytes, size_t *no, size_t *count);
/* Writes number `no` over the number of the part in text[0..], which ends in (or, for URLs, contains before a
 * '?') such a name. False when it does not. */
bool qw_hub_split_renumber(char *text, size_t no);

/* One parser for every URL that is used: https, or http to this machine itself. Fills host (for messages and
 * origins: "host" or "host:port") and whether it is plain http. */
qw_status qw_hub_url_check(const char *url, char host[256], bool *plain, qw_err *err) QW_MUST_CHECK;

#endif
