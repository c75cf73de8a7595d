/* json_file.h: JSON files of a model folder, read strictly.
 *
 * Whole files up to a limit, valid UTF-8, no key twice, nothing after the value. Numbers and texts are taken with their
 * range in the same call; null counts as absent. Messages name the file and the key. The opening thread alone.
 */
#ifndef QW_FORMATS_JSON_FILE_H
#define QW_FORMATS_JSON_FILE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "qw_types.h"

#include "base/buf.h"
#include "base/status.h"

/* Parses text that came from `path`. *out is the caller's (json_decref). */
qw_status qw_json_parse(const char *path, const char *text, size_t n, json_t **out, qw_err *err) QW_MUST_CHECK;
/* Reads DIR/name, an object. Absent: QW_E_NOT_FOUND. Adds the file's identity (qw_map_identity) to ids. */
qw_status qw_json_read(const char *dir, const char *name, size_t bytes_max, qw_buf *ids, json_t **out,
                       qw_err *err) QW_MUST_CHECK;

/* An object with the name that messages give it. */
typedef struct qw_json {
    const char *path;
    const json_t *object;
} qw_json;

/* NULL: absent or null. */
const json_t *qw_json_get(qw_json o, const char *key);
/* An integer from min to max. absent: what is taken when the key is not there; -1: it has to be. */
qw_status qw_json_u64(qw_json o, const char *key, uint64_t min, uint64_t max, int64_t absent, uint64_t *out,
                      qw_err *err) QW_MUST_CHECK;
/* A number, also one without a fraction, that is finite; absent NAN: it has to be there. */
qw_status qw_json_f64(qw_json o, const char *key, double absent, double *out, qw_err *err) QW_MUST_CHECK;
qw_status qw_json_bool(qw_json o, const char *key, bool absent, bool *out, qw_err *err) QW_MUST_CHECK;
/* s is NULL when the key is absent. Borrows from the object. */
qw_status qw_json_str(qw_json o, const char *key, qw_text *out, qw_err *err) QW_MUST_CHECK;

#endif
