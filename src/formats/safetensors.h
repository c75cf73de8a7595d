/* safetensors.h: one safetensors file, mapped, with every byte of its header checked.
 *
 * The format: the length of a JSON header as 8 bytes, the header (name, dtype, shape and place of every tensor), the data.
 * After opening, tensors cover the data exactly, each lies inside the mapping, names are unique. docs/huggingface.md lists
 * the checks. Source: the format's description and reference rules (huggingface/safetensors). Immutable after open.
 */
#ifndef QW_FORMATS_SAFETENSORS_H
#define QW_FORMATS_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"

enum { QW_ST_DIMS_MAX = 8, QW_ST_NAME_MAX = 512, QW_ST_TENSORS_MAX = 65536 };

typedef struct qw_st_dtype {
    const char *name; /* "BF16" */
    uint32_t bits;
} qw_st_dtype;

typedef struct qw_st_tensor {
    char *name;               /* owns */
    const qw_st_dtype *dtype; /* of the constant table */
    uint32_t n_dims;          /* 0..QW_ST_DIMS_MAX */
    uint64_t shape[QW_ST_DIMS_MAX]; /* the slowest first */
    uint64_t n;               /* elements */
    const uint8_t *data;      /* in the mapping, any alignment */
    size_t offset, bytes;     /* in the data section */
    bool used;                /* the reader's own mark */
} qw_st_tensor;

typedef struct qw_st_file {
    char *path;             /* owns */
    qw_map *map;            /* owns */
    qw_st_tensor *tensors;  /* [n], owns; in the order of their data */
    size_t n;
} qw_st_file;

/* On failure f holds what qw_st_close must free. */
qw_status qw_st_open(const char *path, qw_st_file *f, qw_err *err) QW_MUST_CHECK;
void qw_st_close(qw_st_file *f);

static inline bool qw_st_is(const qw_st_tensor *t, const char *dtype)
{
    return __builtin_strcmp(t->dtype->name, dtype) == 0;
}

#endif
