/* safetensors.c: see safetensors.h. The numbers in comments are those of docs/huggingface.md. */
#include "formats/safetensors.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "formats/json_file.h"

enum { LENGTH_BYTES = 8, HEADER_BYTES_MAX = 100000000, METADATA_BYTES_MAX = 1 << 20 };
#define INTEGER_MAX ((uint64_t)1 << 53)

/* 8: the dtypes of the format. */
static const qw_st_dtype dtypes[] = {
    {"BF16", 16},  {"F16", 16}, {"F32", 32}, {"F64", 64},  {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"F8_E8M0", 8}, {"F4", 4},
    {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"BOOL", 8}, {"U8", 8}, {"I8", 8},     {"U16", 16},    {"I16", 16},    {"U32", 32},
    {"I32", 32},   {"U64", 64}, {"I64", 64}, {"C64", 64},
};

/* ---- header ----------------------------------------------------------------------------------- */

/* 1 to 4: where the header is and that it is one object followed by nothing but spaces. */
static qw_status find_header(const qw_st_file *f, const char **text, size_t *n, qw_err *err)
{
    const uint8_t *data = qw_map_data(f->map);
    size_t bytes = qw_map_bytes(f->map);
    uint64_t length;
    if (bytes < LENGTH_BYTES)
        return qw_fail(err, QW_E_FORMAT, "%s: the file is cut short: %zu bytes are no safetensors header", f->path, bytes);
    memcpy(&length, data, sizeof length);
    length = le64toh(length);
    if (length > HEADER_BYTES_MAX)
        return qw_fail(err, QW_E_FORMAT, "%s: a header of %llu bytes, the limit is %d: no safetensors file?", f->path,
                       (unsigned long long)length, HEADER_BYTES_MAX);
    if (length > bytes - LENGTH_BYTES)
        return qw_fail(err, QW_E_FORMAT, "%s: the file is cut short: a header of %llu bytes, %zu remain", f->path,
                       (unsigned long long)length, bytes - LENGTH_BYTES);
    *text = (const char *)data + LENGTH_BYTES;
    *n = (size_t)length;
    size_t end = *n;
    while (end > 0 && (*text)[end - 1] == ' ') end--;
    if (end == 0 || (*text)[0] != '{' || (*text)[end - 1] != '}')
        return qw_fail(err, QW_E_FORMAT, "%s: the header is no JSON object followed by spaces", f->path);
    return QW_OK;
}

/* 6 */
static qw_status check_metadata(const qw_st_file *f, json_t *metadata, qw_err *err)
{
    const char *key;
    json_t *value;
    size_t bytes = 0;
    if (!json_is_object(metadata))
        return qw_fail(err, QW_E_FORMAT, "%s: __metadata__ is no object", f->path);
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value))
            return qw_fail(err, QW_E_FORMAT, "%s: __metadata__: \"%.100s\" is no text", f->path, key);
        bytes += strlen(key) + json_string_length(value);
    }
    if (bytes > METADATA_BYTES_MAX)
        return qw_fail(err, QW_E_LIMIT, "%s: __metadata__ has %zu bytes, the limit is %d", f->path, bytes,
                       METADATA_BYTES_MAX);
    return QW_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------- */

/* 5: integers are written as such and lie from 0 to 2^53. */
static bool get_integer(const json_t *v, uint64_t *out)
{
    json_int_t n = json_is_integer(v) ? json_integer_value(v) : -1;
    *out = n >= 0 ? (uint64_t)n : 0;
    return n >= 0 && *out <= INTEGER_MAX;
}

static qw_status bad(const qw_st_file *f, const qw_st_tensor *t, const char *what, qw_err *err)
{
    return qw_fail(err, QW_E_FORMAT, "%s: tensor '%.200s': %s", f->path, t->name, what);
}

/* 8 */
static const qw_st_dtype *find_dtype(const json_t *v)
{
    const char *name = json_string_value(v);
    for (size_t i = 0; name != NULL && i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(dtypes[i].name, name) == 0) return &dtypes[i];
    return NULL;
}

/* 9, 10: elements and bytes that the shape asks for. */
static qw_status read_shape(const qw_st_file *f, qw_st_tensor *t, const json_t *shape, size_t *bytes, qw_err *err)
{
    uint64_t bits;
    if (!json_is_array(shape)) return bad(f, t, "\"shape\" is no list", err);
    if (json_array_size(shape) > QW_ST_DIMS_MAX) return bad(f, t, "more than 8 dimensions", err);
    t->n_dims = (uint32_t)json_array_size(shape);
    t->n = 1;
    for (uint32_t d = 0; d < t->n_dims; d++) {
        if (!get_integer(json_array_get(shape, d), &t->shape[d]))
            return bad(f, t, "\"shape\": want integers from 0 to 2^53", err);
        if (__builtin_mul_overflow(t->n, t->shape[d], &t->n)) return bad(f, t, "more than 2^64 elements", err);
    }
    if (__builtin_mul_overflow(t->n, t->dtype->bits, &bits)) return bad(f, t, "more than 2^64 bits", err);
    if (bits % 8 != 0) return bad(f, t, "does not end with a whole byte", err);
    *bytes = (size_t)(bits / 8);
    return QW_OK;
}

/* 7 to 12 */
static qw_status read_tensor(const qw_st_file *f, qw_st_tensor *t, json_t *v, size_t data_bytes, qw_err *err)
{
    uint64_t begin, end;
    size_t bytes = 0;
    if (!json_is_object(v) || json_object_size(v) != 3)
        return bad(f, t, "want exactly \"dtype\", \"shape\" and \"data_offsets\"", err);
    const json_t *offsets = json_object_get(v, "data_offsets");
    t->dtype = find_dtype(json_object_get(v, "dtype"));
    if (t->dtype == NULL) return bad(f, t, "\"dtype\" is missing or unknown", err);
    QW_TRY(read_shape(f, t, json_object_get(v, "shape"), &bytes, err));
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !get_integer(json_array_get(offsets, 0), &begin) ||
        !get_integer(json_array_get(offsets, 1), &end))
        return bad(f, t, "\"data_offsets\": want two integers from 0 to 2^53", err);
    if (begin > end || end > data_bytes)
        return qw_fail(err, QW_E_FORMAT, "%s: tensor '%.200s': bytes %llu to %llu, the data has %zu", f->path, t->name,
                       (unsigned long long)begin, (unsigned long long)end, data_bytes);
    if (end - begin != bytes)
        return qw_fail(err, QW_E_FORMAT, "%s: tensor '%.200s': has %llu bytes, its shape asks for %zu", f->path, t->name,
                       (unsigned long long)(end - begin), bytes);
    t->offset = (size_t)begin;
    t->bytes = bytes;
    return QW_OK;
}

static int by_offset(const void *a, const void *b)
{
    const qw_st_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes; /* empty ones first */
}

/* 13, 14: one after the other from 0 to the end of the file. */
static qw_status place(qw_st_file *f, const uint8_t *data, size_t data_bytes, qw_err *err)
{
    size_t at = 0;
    qsort(f->tensors, f->n, sizeof *f->tensors, by_offset);
    for (size_t i = 0; i < f->n; i++) {
        qw_st_tensor *t = &f->tensors[i];
        if (t->offset != at)
            return qw_fail(err, QW_E_FORMAT, "%s: tensor '%.200s': begins at byte %zu %s: want %zu", f->path, t->name,
                           t->offset, t->offset < at ? "and overlaps the one before it" : "and leaves a gap", at);
        t->data = data + at;
        at += t->bytes;
    }
    if (at != data_bytes)
        return qw_fail(err, QW_E_FORMAT, "%s: %zu bytes follow the last tensor: want none", f->path, data_bytes - at);
    return QW_OK;
}

static qw_status read_tensors(qw_st_file *f, json_t *header, size_t data_bytes, qw_err *err)
{
    const char *name;
    json_t *value;
    QW_TRY(qw_alloc(&f->tensors, json_object_size(header), sizeof *f->tensors, "the list of tensors", err));
    json_object_foreach(header, name, value)
    {
        size_t n = strlen(name);
        if (strcmp(name, "__metadata__") == 0) {
            QW_TRY(check_metadata(f, value, err));
            continue;
        }
        if (n == 0 || n > QW_ST_NAME_MAX) /* 16 */
            return qw_fail(err, QW_E_FORMAT, "%s: a tensor's name has %zu bytes, want 1 to %d", f->path, n, QW_ST_NAME_MAX);
        qw_st_tensor *t = &f->tensors[f->n++];
        QW_TRY(qw_strndup(&t->name, name, n, err));
        QW_TRY(read_tensor(f, t, value, data_bytes, err));
    }
    return QW_OK;
}

static qw_status read_file(qw_st_file *f, qw_err *err)
{
    const char *text = NULL;
    size_t n = 0;
    json_t *header = NULL;
    QW_TRY(find_header(f, &text, &n, err));
    QW_TRY(qw_json_parse(f->path, text, n, &header, err)); /* 3, 5 */
    size_t data_bytes = qw_map_bytes(f->map) - LENGTH_BYTES - n;
    qw_status status = QW_OK;
    if (json_object_size(header) > QW_ST_TENSORS_MAX + 1) /* 16 */
        status = qw_fail(err, QW_E_LIMIT, "%s: %zu tensors, the limit is %d", f->path, json_object_size(header),
                         QW_ST_TENSORS_MAX);
    if (status == QW_OK) status = read_tensors(f, header, data_bytes, err);
    json_decref(header);
    return status == QW_OK ? place(f, (const uint8_t *)text + n, data_bytes, err) : status;
}

qw_status qw_st_open(const char *path, qw_st_file *f, qw_err *err)
{
    *f = (qw_st_file){0};
    QW_TRY(qw_strndup(&f->path, path, strlen(path), err));
    QW_TRY(qw_map_open(path, &f->map, err));
    qw_status status = read_file(f, err);
    if (qw_map_failed(f->map))
        return qw_fail(err, QW_E_CORRUPT, "%s: the file became shorter or unreadable while it was opened", path);
    return status;
}

void qw_st_close(qw_st_file *f)
{
    for (size_t i = 0; i < f->n; i++) free(f->tensors[i].name);
    free(f->tensors);
    qw_map_close(f->map);
    free(f->path);
    *f = (qw_st_file){0};
}
