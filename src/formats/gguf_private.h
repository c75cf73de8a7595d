/* gguf_private.h: what a GGUF file is made of in memory; shared by the gguf*.c files.
 *
 * A model is one part or several; keys come from the first, tensors from all. Lengths and offsets here
 * were checked against the mapping and are never read from it again, so that a file somebody changes
 * in place can spoil values but never move an access outside.
 */
#ifndef QW_FORMATS_GGUF_PRIVATE_H
#define QW_FORMATS_GGUF_PRIVATE_H

#include "formats/gguf.h"

#include "base/cursor.h"
#include "base/file.h"
#include "formats/hf.h"
#include "formats/name_set.h"

/* Limits; each has its own message. */
#define GGUF_FILE_BYTES_MAX ((uint64_t)4 << 40)
enum {
    GGUF_FILE_BYTES_MIN = 24, /* magic, version, two counts */
    GGUF_TENSORS_MAX = 65536, /* of all parts */
    GGUF_KEYS_MAX = 65536,
    GGUF_KEY_BYTES_MAX = 65535,
    GGUF_NAME_BYTES_MAX = 63,
    GGUF_STRING_BYTES_MAX = 16 << 20,
    GGUF_ARRAY_MAX = 64 << 20,
    GGUF_METADATA_BYTES_MAX = 256 << 20,
    GGUF_ALIGNMENT_MIN = 8,
    GGUF_ALIGNMENT_MAX = 65536,
    GGUF_ALIGNMENT_DEFAULT = 32,
    GGUF_DIMS_MAX = 4,
    GGUF_SPLITS_MAX = 1000,
    GGUF_TYPE_COUNT = QW_GGUF_F64 + 1
};
#define GGUF_DIM_MAX ((uint64_t)1 << 31)

typedef struct gguf_span {
    uint32_t offset, bytes; /* of a string's bytes, from gguf_kv.value; metadata is below 4 GiB */
} gguf_span;

typedef struct gguf_kv {
    qw_text key; /* borrows from the mapping */
    qw_gguf_type type, elem;
    size_t n;             /* elements of an array, else 1 */
    size_t bytes;         /* of the value: of a string without its length, of an array without its head */
    const uint8_t *value; /* [bytes], in the mapping, unaligned */
    gguf_span *spans;     /* [n] for an array of strings, else NULL; owns */
} gguf_kv;

typedef struct gguf_part {
    char *path;  /* owns */
    qw_map *map; /* owns; NULL: a header without data, made by a folder */
    const uint8_t *bytes; /* [n_bytes]: the mapping, or that header */
    size_t n_bytes;
    uint64_t file_bytes;  /* what the file has, or would have with its data */
    uint32_t version;
    gguf_kv *kv; /* [n_kv], owns */
    size_t n_kv, n_kv_max;
    name_set keys;
    uint32_t alignment;
    size_t n_tensors;
    qw_tensor *tensors;                        /* [n_tensors], owns; data is set by the layout */
    uint64_t *offsets;                         /* [n_tensors] from data_start, owns */
    char (*names)[GGUF_NAME_BYTES_MAX + 1];    /* [n_tensors], owns; what qw_tensor.name points to */
    size_t infos_end;                          /* first byte after the tensor infos */
    size_t data_start;
} gguf_part;

struct qw_gguf {
    qw_hf *folder;    /* owns; NULL: GGUF files */
    gguf_part *parts; /* [n_parts], owns */
    size_t n_parts;
    qw_tensor *tensors; /* [n_tensors] of all parts, in their order, owns */
    size_t n_tensors;
    name_set names;
    qw_gguf_options options;
    struct qw_rows_as *converted; /* [n_tensors], owns; makers of rows that are quantised now; NULL: none */
};

/* Name of a value type ("u32"), and its bytes (0 for strings and arrays). */
extern const char *const qw_gguf_type_names[GGUF_TYPE_COUNT];
extern const uint8_t qw_gguf_type_bytes[GGUF_TYPE_COUNT];

/* Maps the file and reads header, keys and tensor infos (checks 1 to 29). On failure the part holds what
 * qw_gguf_part_free() must free. */
qw_status qw_gguf_part_open(gguf_part *part, const char *path, qw_err *err) QW_MUST_CHECK;
/* The same for a header in memory, which stays where it is, of a file that would have file_bytes with its data. */
qw_status qw_gguf_part_open_header(gguf_part *part, const char *path, const uint8_t *bytes, size_t n, uint64_t file_bytes,
                                   qw_err *err) QW_MUST_CHECK;
void qw_gguf_part_free(gguf_part *part);
/* Places every tensor in the file (checks 29 to 33) and sets its data. */
qw_status qw_gguf_part_layout(gguf_part *part, qw_err *err) QW_MUST_CHECK;

/* Reads key values of one part; gguf.h's typed reads do this on the first part. */
const gguf_kv *qw_gguf_part_find(const gguf_part *part, const char *key);
qw_status qw_gguf_part_get_u64(const gguf_part *part, const char *key, uint64_t *out,
                            qw_err *err) QW_MUST_CHECK;

#endif
