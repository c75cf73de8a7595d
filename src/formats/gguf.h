/* gguf.h: model files: GGUF versions 2 and 3, whole or split, memory-mapped; and Hugging Face folders, which look the same.
 *
 * qw_gguf_open() checks every byte it uses (docs/gguf.md lists the checks by number, docs/huggingface.md those of folders);
 * afterwards all accessors are total: a tensor's data lies inside the mapping, names are unique, types are known.
 * Immutable after open; any thread. Pointers borrow until qw_gguf_close.
 */
#ifndef QW_FORMATS_GGUF_H
#define QW_FORMATS_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qw_types.h"

#include "base/status.h"
#include "kernels/blocks.h"
#include "kernels/rows.h"

typedef struct qw_gguf qw_gguf;

typedef enum qw_gguf_type {
    QW_GGUF_U8 = 0, QW_GGUF_I8, QW_GGUF_U16, QW_GGUF_I16, QW_GGUF_U32, QW_GGUF_I32, QW_GGUF_F32,
    QW_GGUF_BOOL, QW_GGUF_STRING, QW_GGUF_ARRAY, QW_GGUF_U64, QW_GGUF_I64, QW_GGUF_F64
} qw_gguf_type;

typedef struct qw_tensor {
    const char *name;    /* NUL-terminated */
    qw_type type;
    uint32_t n_dims;     /* 1..4 */
    uint64_t ne[4];      /* ne[0] is the fastest dimension (row length); unused ones are 1 */
    const uint8_t *data; /* inside the mapping, aligned as the file says; may be unaligned for C types; NULL: */
    const qw_rows *source; /* its rows are made when they are wanted */
    size_t bytes;
} qw_tensor;

/* Rows of a tensor, those of all dimensions above the first counted through, and the bytes of one. */
static inline uint64_t qw_tensor_rows(const qw_tensor *t)
{
    return t->ne[1] * t->ne[2] * t->ne[3];
}
static inline size_t qw_tensor_row_bytes(const qw_tensor *t)
{
    return qw_type_row_bytes(t->type, t->ne[0]);
}
/* Bytes of scratch that reading rows takes; 0 for a tensor with data. */
static inline size_t qw_tensor_scratch(const qw_tensor *t)
{
    return t->source ? t->source->scratch_bytes : 0;
}
/* Rows [row0, row0 + n) one after the other, in the tensor's type. scratch: 64-byte aligned. */
void qw_tensor_read(const qw_tensor *t, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch);

typedef struct qw_gguf_options {
    bool quantize; /* matrices that are stored as floats become `type`, or Q8_0 where its blocks do not fit their rows; small
                      ones and routers stay as they are */
    qw_type type;
} qw_gguf_options;

/* Options for a type's name ("q8_0", any case), or none for NULL. QW_E_ARG: unknown. */
qw_status qw_gguf_options_parse(const char *quantize, qw_gguf_options *out, qw_err *err) QW_MUST_CHECK;

/* Opens a file; of a split model ("NAME-00001-of-00003.gguf") the first part is given and the others
 * are found beside it. A folder is opened as a Hugging Face folder. */
qw_status qw_gguf_open(const char *path, qw_gguf **out, qw_err *err) QW_MUST_CHECK;
qw_status qw_gguf_open_as(const char *path, const qw_gguf_options *options, qw_gguf **out, qw_err *err) QW_MUST_CHECK;
void qw_gguf_close(qw_gguf *g);
const char *qw_gguf_path(const qw_gguf *g);
uint32_t qw_gguf_version(const qw_gguf *g);
size_t qw_gguf_bytes(const qw_gguf *g);     /* of all parts */
bool qw_gguf_map_failed(const qw_gguf *g);  /* a mapped part shrank or could not be read */
/* What of a folder was left out, lines of text; "" when nothing. */
const char *qw_gguf_note(const qw_gguf *g);
/* The file whose replacement makes this another model: the (first) GGUF or safetensors file. */
const char *qw_gguf_first_file(const qw_gguf *g);
/* Identity text of all parts (see qw_map_identity), hashed to 64 hex digits. */
void qw_gguf_identity(const qw_gguf *g, char out[65]);
/* Tells the kernel that the files' pages are not needed for now: those of a range that a tensor's data points to (nothing
 * when that is not in a file), or all for NULL. A hint; they come back from the files. */
void qw_gguf_drop_pages(const qw_gguf *g, const uint8_t *data, size_t bytes);
/* Reads every weight: QW_E_CORRUPT naming the first tensor with a scale or value that is no number (NaN, infinite). */
qw_status qw_gguf_check_finite(const qw_gguf *g, qw_err *err) QW_MUST_CHECK;

size_t qw_gguf_n_tensors(const qw_gguf *g);
const qw_tensor *qw_gguf_tensor(const qw_gguf *g, size_t i);
const qw_tensor *qw_gguf_find_tensor(const qw_gguf *g, const char *name); /* NULL: absent */

size_t qw_gguf_n_kv(const qw_gguf *g);
/* Key and type by index, to list them. elem_type is meaningful for arrays, n is the array length or 1. */
qw_text qw_gguf_kv_key(const qw_gguf *g, size_t i);
void qw_gguf_kv_type(const qw_gguf *g, size_t i, qw_gguf_type *type, qw_gguf_type *elem_type, size_t *n);
/* A value as short text for people ("[151936 strings]", "qwen2", "32768"), cut at cap. */
void qw_gguf_kv_text(const qw_gguf *g, size_t i, char *out, size_t cap);

bool qw_gguf_has(const qw_gguf *g, const char *key);
/* Typed reads. A missing key is QW_E_FORMAT "<file>: key K is missing"; a wrong type or a value outside
 * its type says so. Integers accept every integer type whose value fits. */
qw_status qw_gguf_get_u64(const qw_gguf *g, const char *key, uint64_t *out, qw_err *err) QW_MUST_CHECK;
qw_status qw_gguf_get_f64(const qw_gguf *g, const char *key, double *out, qw_err *err) QW_MUST_CHECK;
qw_status qw_gguf_get_bool(const qw_gguf *g, const char *key, bool *out, qw_err *err) QW_MUST_CHECK;
qw_status qw_gguf_get_str(const qw_gguf *g, const char *key, qw_text *out, qw_err *err) QW_MUST_CHECK;

/* Arrays. get_array checks presence and element type (any integer type when elem is QW_GGUF_I32). */
typedef struct qw_gguf_array {
    qw_gguf_type elem;
    size_t n;
    const void *impl; /* borrows */
} qw_gguf_array;
qw_status qw_gguf_get_array(const qw_gguf *g, const char *key, qw_gguf_type elem, qw_gguf_array *out,
                            qw_err *err) QW_MUST_CHECK;
qw_text qw_gguf_array_str(const qw_gguf_array *a, size_t i);  /* i < n, string arrays; constant time */
int64_t qw_gguf_array_int(const qw_gguf_array *a, size_t i); /* integer and bool arrays */
double qw_gguf_array_f64(const qw_gguf_array *a, size_t i);  /* float arrays */

#endif
