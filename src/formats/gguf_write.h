/* gguf_write.h: makes GGUF files, version 3.
 *
 * First the header: keys and tensor infos, in the order of the calls. Then the file: header, and the rows of every tensor
 * as a function of the caller makes them, piece by piece. It has its name when it is whole and on the disk, and a failure,
 * an interruption or a killed process leaves nothing behind. The limits are those of reading (docs/gguf.md); what is
 * written is what qw_gguf_open accepts. One thread at a time.
 */
#ifndef QW_FORMATS_GGUF_WRITE_H
#define QW_FORMATS_GGUF_WRITE_H

#include "formats/gguf.h"

typedef struct qw_gguf_writer qw_gguf_writer;

qw_status qw_gguf_writer_create(qw_gguf_writer **out, qw_err *err) QW_MUST_CHECK;
void qw_gguf_writer_destroy(qw_gguf_writer *w);

/* ---- keys: the caller gives each one once ------------------------------------------------------ */

qw_status qw_gguf_put_u32(qw_gguf_writer *w, const char *key, uint32_t v, qw_err *err) QW_MUST_CHECK;
qw_status qw_gguf_put_u64(qw_gguf_writer *w, const char *key, uint64_t v, qw_err *err) QW_MUST_CHECK;
qw_status qw_gguf_put_f32(qw_gguf_writer *w, const char *key, float v, qw_err *err) QW_MUST_CHECK;
qw_status qw_gguf_put_bool(qw_gguf_writer *w, const char *key, bool v, qw_err *err) QW_MUST_CHECK;
qw_status qw_gguf_put_str(qw_gguf_writer *w, const char *key, qw_text v, qw_err *err) QW_MUST_CHECK;
/* Arrays: of i32, of bool, of strings. */
qw_status qw_gguf_put_i32s(qw_gguf_writer *w, const char *key, const int32_t *v, size_t n, qw_err *err) QW_MUST_CHECK;
qw_status qw_gguf_put_i64s(qw_gguf_writer *w, const char *key, const int64_t *v, size_t n, qw_err *err) QW_MUST_CHECK;
qw_status qw_gguf_put_bools(qw_gguf_writer *w, const char *key, const bool *v, size_t n, qw_err *err) QW_MUST_CHECK;
qw_status qw_gguf_put_strs(qw_gguf_writer *w, const char *key, const qw_text *v, size_t n, qw_err *err) QW_MUST_CHECK;
/* Key i of another file, with its value as it is. Leave out "general.alignment" and "split.*": the new file has its own. */
qw_status qw_gguf_put_copy(qw_gguf_writer *w, const qw_gguf *from, size_t i, qw_err *err) QW_MUST_CHECK;

/* ---- tensors ----------------------------------------------------------------------------------- */

/* n_dims sizes, the fastest first: ne[0] is a multiple of the type's block. */
qw_status qw_gguf_put_tensor(qw_gguf_writer *w, const char *name, qw_type type, uint32_t n_dims, const uint64_t *ne,
                             qw_err *err) QW_MUST_CHECK;

/* The header so far, up to the first tensor's data; borrows until the next call. */
qw_status qw_gguf_writer_header(qw_gguf_writer *w, const uint8_t **data, size_t *n, qw_err *err) QW_MUST_CHECK;
/* What the whole file will have. */
uint64_t qw_gguf_writer_bytes(const qw_gguf_writer *w);

/* ---- the file ---------------------------------------------------------------------------------- */

/* Makes rows [row0, row0 + n) of a tensor (number in the order of qw_gguf_put_tensor), one after the other, in its type:
 * out has n times the bytes of a row. Rows of all further dimensions are counted through. */
typedef qw_status qw_gguf_rows_fn(void *ctx, size_t tensor, uint64_t row0, size_t n, uint8_t *out, qw_err *err);

typedef struct qw_gguf_write_options {
    qw_gguf_rows_fn *rows;
    void *rows_ctx;
    /* Called before every piece, of at most 16 MiB or one row; false ends it all with QW_E_CANCELLED. May be NULL. */
    bool (*progress)(void *user, uint64_t done_bytes, uint64_t total_bytes);
    void *user;
    bool replace; /* a file that has the name; without it that is QW_E_ARG */
} qw_gguf_write_options;

qw_status qw_gguf_write(qw_gguf_writer *w, const char *path, const qw_gguf_write_options *o, qw_err *err) QW_MUST_CHECK;

#endif
