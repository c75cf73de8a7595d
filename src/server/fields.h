/* fields.h: reading the fields of a JSON object into a struct by a table.
 *
 * A wire format is a list of rows (name, kind, range, where it goes); the checks and the words of the errors come
 * from the rows, so they cannot disagree. Fields without a row are ignored, null is the same as absent. The
 * target keeps its defaults for what is absent. Any thread.
 */
#ifndef QW_SERVER_FIELDS_H
#define QW_SERVER_FIELDS_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { QW_PARAM_BYTES = 96 };

/* What an HTTP client is told: status, and the fields of an OpenAI error object. */
typedef struct qw_api_error {
    int http;
    const char *type, *code;    /* static; code may be NULL */
    char param[QW_PARAM_BYTES]; /* the field at fault; may be empty */
    char text[QW_ERR_TEXT_MAX];
    int retry_after_s;          /* 0: not told */
} qw_api_error;

/* 400 invalid_request_error; the message begins with the field. Returns false. */
bool qw_field_bad(qw_api_error *e, const char *param, const char *fmt, ...) QW_PRINTF(3, 4);

/* The name of a field in errors, as in "messages[3].content"; cut when it is too long. */
void qw_field_name(char out[QW_PARAM_BYTES], const char *fmt, ...) QW_PRINTF(2, 3);

typedef enum qw_field_kind { /* what `offset` leads to */
    QW_FIELD_BOOL = 1,       /* bool */
    QW_FIELD_I32,            /* int32_t */
    QW_FIELD_I64,            /* int64_t */
    QW_FIELD_FLOAT,          /* float; a JSON integer is fine */
    QW_FIELD_CUSTOM          /* the row's own function */
} qw_field_kind;

typedef struct qw_field {
    const char *name;
    qw_field_kind kind;
    size_t offset;   /* in the target */
    double min, max; /* of numbers, both included */
    bool (*take)(void *target, const char *param, json_t *value, qw_api_error *e); /* CUSTOM */
} qw_field;

/* path: what the object is called in errors ("" for the request itself, else "stream_options."). */
bool qw_fields_read(const qw_field *fields, size_t n, json_t *object, const char *path, void *target,
                    qw_api_error *e) QW_MUST_CHECK;

const char *qw_json_kind(const json_t *value); /* "a string", "null", ... */

/* Bounds of JSON text before it is parsed: depth and number of values. */
enum { QW_BODY_DEPTH_MAX = 64, QW_BODY_VALUES_MAX = 1000000 };
bool qw_json_bounded(const char *s, size_t n, qw_api_error *e) QW_MUST_CHECK;

#endif
