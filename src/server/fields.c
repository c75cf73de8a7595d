/* fields.c: table-driven reading of JSON objects (contract in fields.h). Any thread; no state. */
#include "server/fields.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool qw_field_bad(qw_api_error *e, const char *param, const char *fmt, ...)
{
    char text[QW_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    *e = (qw_api_error){.http = 400, .type = "invalid_request_error"};
    snprintf(e->param, sizeof(e->param), "%s", param);
    snprintf(e->text, sizeof(e->text), "%s%s%.900s", param, *param != 0 ? ": " : "", text);
    return false;
}

void qw_field_name(char out[QW_PARAM_BYTES], const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(out, QW_PARAM_BYTES, fmt, ap);
    va_end(ap);
}

const char *qw_json_kind(const json_t *value)
{
    static const char *const names[] = {[JSON_OBJECT] = "an object",   [JSON_ARRAY] = "an array",
                                        [JSON_STRING] = "a string",    [JSON_INTEGER] = "an integer",
                                        [JSON_REAL] = "a real number", [JSON_TRUE] = "a boolean",
                                        [JSON_FALSE] = "a boolean",    [JSON_NULL] = "null"};
    return value != NULL ? names[json_typeof(value)] : "nothing";
}

static bool take_number(const qw_field *f, const char *param, json_t *value, void *at, qw_api_error *e)
{
    bool is_float = f->kind == QW_FIELD_FLOAT;
    if (is_float ? !json_is_number(value) : !json_is_integer(value))
        return qw_field_bad(e, param, "want %s, got %s", is_float ? "a number" : "an integer", qw_json_kind(value));
    double v = json_number_value(value);
    if (!(v >= f->min && v <= f->max))
        return qw_field_bad(e, param, "want %s from %.10g to %.10g, got %.10g", is_float ? "a number" : "an integer",
                            f->min, f->max, v);
    if (f->kind == QW_FIELD_FLOAT)
        *(float *)at = (float)v;
    else if (f->kind == QW_FIELD_I32)
        *(int32_t *)at = (int32_t)json_integer_value(value);
    else
        *(int64_t *)at = (int64_t)json_integer_value(value);
    return true;
}

static bool take_field(const qw_field *f, const char *param, json_t *value, void *target, qw_api_error *e)
{
    void *at = (char *)target + f->offset;
    switch (f->kind) {
    case QW_FIELD_BOOL:
        if (!json_is_boolean(value)) return qw_field_bad(e, param, "want true or false, got %s", qw_json_kind(value));
        *(bool *)at = json_is_true(value);
        return true;
    case QW_FIELD_CUSTOM: return f->take(target, param, value, e);
    default: return take_number(f, param, value, at, e);
    }
}

bool qw_fields_read(const qw_field *fields, size_t n, json_t *object, const char *path, void *target, qw_api_error *e)
{
    for (size_t i = 0; i < n; i++) {
        char param[QW_PARAM_BYTES];
        json_t *value = json_object_get(object, fields[i].name);
        if (value == NULL || json_is_null(value)) continue;
        qw_field_name(param, "%s%s", path, fields[i].name);
        if (!take_field(&fields[i], param, value, target, e)) return false;
    }
    return true;
}

bool qw_json_bounded(const char *s, size_t n, qw_api_error *e)
{
    size_t depth = 0, n_values = 1;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (in_string) {
            if (c == '\\') i++; /* the next byte cannot end the string */
            if (c == '"') in_string = false;
            continue;
        }
        if (c == '"') in_string = true;
        if (c == '[' || c == '{') depth++;
        if ((c == ']' || c == '}') && depth > 0) depth--;
        n_values += c == ',' || c == '[' || c == '{' || c == ':';
        if (depth > QW_BODY_DEPTH_MAX)
            return qw_field_bad(e, "", "the JSON has more than %d arrays and objects inside each other",
                                QW_BODY_DEPTH_MAX);
        if (n_values > QW_BODY_VALUES_MAX)
            return qw_field_bad(e, "", "the JSON has more than %d values", QW_BODY_VALUES_MAX);
    }
    return true;
}
