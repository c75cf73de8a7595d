/* json_file.c: see json_file.h. */
#include "formats/json_file.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/utf8.h"

qw_status qw_json_parse(const char *path, const char *text, size_t n, json_t **out, qw_err *err)
{
    json_error_t why;
    *out = NULL;
    if (!qw_utf8_valid(text, n)) return qw_fail(err, QW_E_FORMAT, "%s: is not valid UTF-8", path);
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    if (*out == NULL)
        return qw_fail(err, QW_E_FORMAT, "%s: no valid JSON in line %d, column %d: %s", path, why.line, why.column,
                       why.text);
    return QW_OK;
}

static qw_status read_object(const char *path, size_t bytes_max, const qw_map *map, json_t **out, qw_err *err)
{
    size_t n = qw_map_bytes(map);
    if (n > bytes_max)
        return qw_fail(err, QW_E_LIMIT, "%s: %zu bytes, the limit is %zu", path, n, bytes_max);
    QW_TRY(qw_json_parse(path, (const char *)qw_map_data(map), n, out, err));
    if (qw_map_failed(map)) return qw_fail(err, QW_E_CORRUPT, "%s: became shorter while it was read", path);
    if (!json_is_object(*out)) return qw_fail(err, QW_E_FORMAT, "%s: want a JSON object", path);
    return QW_OK;
}

qw_status qw_json_read(const char *dir, const char *name, size_t bytes_max, qw_buf *ids, json_t **out, qw_err *err)
{
    char path[PATH_MAX], identity[96];
    qw_map *map = NULL;
    *out = NULL;
    if (snprintf(path, sizeof path, "%s/%s", dir, name) >= (int)sizeof path)
        return qw_fail(err, QW_E_LIMIT, "%s: the path is too long", dir);
    QW_TRY(qw_map_open(path, &map, err));
    qw_map_identity(map, identity);
    qw_status status = read_object(path, bytes_max, map, out, err);
    qw_map_close(map);
    if (status == QW_OK) status = qw_buf_printf(ids, err, "%s %s\n", name, identity);
    if (status == QW_OK) return QW_OK;
    json_decref(*out);
    *out = NULL;
    return status;
}

const json_t *qw_json_get(qw_json o, const char *key)
{
    const json_t *v = json_object_get(o.object, key);
    return json_is_null(v) ? NULL : v;
}

static qw_status missing(qw_json o, const char *key, qw_err *err)
{
    return qw_fail(err, QW_E_FORMAT, "%s: \"%s\" is missing", o.path, key);
}

qw_status qw_json_u64(qw_json o, const char *key, uint64_t min, uint64_t max, int64_t absent, uint64_t *out, qw_err *err)
{
    const json_t *v = qw_json_get(o, key);
    *out = absent >= 0 ? (uint64_t)absent : 0;
    if (v == NULL) return absent >= 0 ? QW_OK : missing(o, key, err);
    if (!json_is_integer(v)) return qw_fail(err, QW_E_FORMAT, "%s: \"%s\" is no integer", o.path, key);
    json_int_t n = json_integer_value(v);
    if (n < 0 || (uint64_t)n < min || (uint64_t)n > max)
        return qw_fail(err, QW_E_FORMAT, "%s: \"%s\" is %lld, want %llu to %llu", o.path, key, (long long)n,
                       (unsigned long long)min, (unsigned long long)max);
    *out = (uint64_t)n;
    return QW_OK;
}

qw_status qw_json_f64(qw_json o, const char *key, double absent, double *out, qw_err *err)
{
    const json_t *v = qw_json_get(o, key);
    *out = absent;
    if (v == NULL) return isnan(absent) ? missing(o, key, err) : QW_OK;
    if (!json_is_number(v)) return qw_fail(err, QW_E_FORMAT, "%s: \"%s\" is no number", o.path, key);
    *out = json_number_value(v);
    if (!isfinite(*out)) return qw_fail(err, QW_E_FORMAT, "%s: \"%s\" is not a finite number", o.path, key);
    return QW_OK;
}

qw_status qw_json_bool(qw_json o, const char *key, bool absent, bool *out, qw_err *err)
{
    const json_t *v = qw_json_get(o, key);
    *out = absent;
    if (v == NULL) return QW_OK;
    if (!json_is_boolean(v)) return qw_fail(err, QW_E_FORMAT, "%s: \"%s\" is neither true nor false", o.path, key);
    *out = json_is_true(v);
    return QW_OK;
}

qw_status qw_json_str(qw_json o, const char *key, qw_text *out, qw_err *err)
{
    const json_t *v = qw_json_get(o, key);
    *out = (qw_text){0};
    if (v == NULL) return QW_OK;
    if (!json_is_string(v)) return qw_fail(err, QW_E_FORMAT, "%s: \"%s\" is no text", o.path, key);
    *out = (qw_text){.s = json_string_value(v), .n = json_string_length(v)};
    return QW_OK;
}
