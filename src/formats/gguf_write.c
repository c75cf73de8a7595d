/* gguf_write.c: see gguf_write.h. Keys and tensor infos are kept as bytes, apart from each other, because the counts in
 * front of them are known last; offsets follow from the order (docs/gguf.md, 29 to 33).
 */
#include "formats/gguf_write.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/new_file.h"
#include "formats/gguf_private.h"

enum { VERSION = 3, ALIGNMENT = GGUF_ALIGNMENT_DEFAULT, PIECE_BYTES = 16 << 20 };

typedef struct written_tensor {
    uint64_t n_rows;
    size_t row_bytes;
} written_tensor;

struct qw_gguf_writer {
    qw_buf keys, infos, header;
    uint64_t n_keys;
    written_tensor *tensors; /* [cap], owns */
    size_t n_tensors, cap;
    uint64_t data_bytes;     /* of all tensors, each padded */
};

qw_status qw_gguf_writer_create(qw_gguf_writer **out, qw_err *err)
{
    qw_gguf_writer *w;
    QW_TRY(qw_alloc(&w, 1, sizeof *w, "a model file's header", err));
    qw_buf_init(&w->keys, GGUF_METADATA_BYTES_MAX, "the keys of a model file");
    qw_buf_init(&w->infos, GGUF_METADATA_BYTES_MAX, "the tensor infos of a model file");
    qw_buf_init(&w->header, 2 * (size_t)GGUF_METADATA_BYTES_MAX + 64, "the header of a model file");
    *out = w;
    return QW_OK;
}

void qw_gguf_writer_destroy(qw_gguf_writer *w)
{
    if (w == NULL) return;
    qw_buf_free(&w->keys);
    qw_buf_free(&w->infos);
    qw_buf_free(&w->header);
    free(w->tensors);
    free(w);
}

/* ---- keys ------------------------------------------------------------------------------------- */

static qw_status add_u32(qw_buf *b, uint32_t v, qw_err *err)
{
    v = htole32(v);
    return qw_buf_add(b, &v, sizeof v, err);
}

static qw_status add_u64(qw_buf *b, uint64_t v, qw_err *err)
{
    v = htole64(v);
    return qw_buf_add(b, &v, sizeof v, err);
}

static qw_status add_text(qw_buf *b, const char *s, size_t n, qw_err *err)
{
    if (n > GGUF_STRING_BYTES_MAX)
        return qw_fail(err, QW_E_LIMIT, "%s: a string of %zu bytes, the limit is %d", b->name, n, GGUF_STRING_BYTES_MAX);
    QW_TRY(add_u64(b, n, err));
    return qw_buf_add(b, s, n, err);
}

static qw_status add_key(qw_gguf_writer *w, const char *key, size_t n, qw_gguf_type type, qw_err *err)
{
    if (w->n_keys == GGUF_KEYS_MAX)
        return qw_fail(err, QW_E_LIMIT, "a model file has at most %d keys", GGUF_KEYS_MAX);
    w->n_keys++;
    QW_TRY(add_text(&w->keys, key, n, err));
    return add_u32(&w->keys, (uint32_t)type, err);
}

static qw_status add_array(qw_gguf_writer *w, const char *key, qw_gguf_type elem, size_t n, qw_err *err)
{
    if (n > GGUF_ARRAY_MAX)
        return qw_fail(err, QW_E_LIMIT, "key '%s': an array of %zu elements, the limit is %d", key, n, GGUF_ARRAY_MAX);
    QW_TRY(add_key(w, key, strlen(key), QW_GGUF_ARRAY, err));
    QW_TRY(add_u32(&w->keys, (uint32_t)elem, err));
    return add_u64(&w->keys, n, err);
}

qw_status qw_gguf_put_u32(qw_gguf_writer *w, const char *key, uint32_t v, qw_err *err)
{
    QW_TRY(add_key(w, key, strlen(key), QW_GGUF_U32, err));
    return add_u32(&w->keys, v, err);
}

qw_status qw_gguf_put_u64(qw_gguf_writer *w, const char *key, uint64_t v, qw_err *err)
{
    QW_TRY(add_key(w, key, strlen(key), QW_GGUF_U64, err));
    return add_u64(&w->keys, v, err);
}

qw_status qw_gguf_put_f32(qw_gguf_writer *w, const char *key, float v, qw_err *err)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    QW_TRY(add_key(w, key, strlen(key), QW_GGUF_F32, err));
    return add_u32(&w->keys, bits, err);
}

qw_status qw_gguf_put_bool(qw_gguf_writer *w, const char *key, bool v, qw_err *err)
{
    uint8_t byte = v;
    QW_TRY(add_key(w, key, strlen(key), QW_GGUF_BOOL, err));
    return qw_buf_add(&w->keys, &byte, 1, err);
}

qw_status qw_gguf_put_str(qw_gguf_writer *w, const char *key, qw_text v, qw_err *err)
{
    QW_TRY(add_key(w, key, strlen(key), QW_GGUF_STRING, err));
    return add_text(&w->keys, v.s, v.n, err);
}

qw_status qw_gguf_put_i32s(qw_gguf_writer *w, const char *key, const int32_t *v, size_t n, qw_err *err)
{
    QW_TRY(add_array(w, key, QW_GGUF_I32, n, err));
    for (size_t i = 0; i < n; i++) QW_TRY(add_u32(&w->keys, (uint32_t)v[i], err));
    return QW_OK;
}

qw_status qw_gguf_put_i64s(qw_gguf_writer *w, const char *key, const int64_t *v, size_t n, qw_err *err)
{
    QW_TRY(add_array(w, key, QW_GGUF_I64, n, err));
    for (size_t i = 0; i < n; i++) QW_TRY(add_u64(&w->keys, (uint64_t)v[i], err));
    return QW_OK;
}

qw_status qw_gguf_put_bools(qw_gguf_writer *w, const char *key, const bool *v, size_t n, qw_err *err)
{
    QW_TRY(add_array(w, key, QW_GGUF_BOOL, n, err));
    for (size_t i = 0; i < n; i++) {
        uint8_t byte = v[i];
        QW_TRY(qw_buf_add(&w->keys, &byte, 1, err));
    }
    return QW_OK;
}

qw_status qw_gguf_put_strs(qw_gguf_writer *w, const char *key, const qw_text *v, size_t n, qw_err *err)
{
    QW_TRY(add_array(w, key, QW_GGUF_STRING, n, err));
    for (size_t i = 0; i < n; i++) QW_TRY(add_text(&w->keys, v[i].s, v[i].n, err));
    return QW_OK;
}

qw_status qw_gguf_put_copy(qw_gguf_writer *w, const qw_gguf *from, size_t i, qw_err *err)
{
    const gguf_kv *kv = &from->parts[0].kv[i];
    QW_TRY(add_key(w, kv->key.s, kv->key.n, kv->type, err));
    if (kv->type == QW_GGUF_STRING) return add_text(&w->keys, (const char *)kv->value, kv->bytes, err);
    if (kv->type == QW_GGUF_ARRAY) {
        QW_TRY(add_u32(&w->keys, (uint32_t)kv->elem, err));
        QW_TRY(add_u64(&w->keys, kv->n, err));
    }
    return qw_buf_add(&w->keys, kv->value, kv->bytes, err);
}

/* ---- tensors ---------------------------------------------------------------------------------- */

static qw_status too_large(const char *name, qw_err *err)
{
    return qw_fail(err, QW_E_LIMIT, "tensor '%s': the file would have more than 2^63 bytes", name);
}

static uint64_t padded(uint64_t n)
{
    return (n + ALIGNMENT - 1) & ~(uint64_t)(ALIGNMENT - 1);
}

/* Rows and their bytes of a tensor, added to the list and to the file's bytes. */
static qw_status add_tensor(qw_gguf_writer *w, const char *name, qw_type type, uint32_t n_dims, const uint64_t *ne,
                            qw_err *err)
{
    written_tensor t = {.n_rows = 1, .row_bytes = qw_type_row_bytes(type, ne[0])};
    uint64_t bytes;
    for (uint32_t d = 1; d < n_dims; d++)
        if (__builtin_mul_overflow(t.n_rows, ne[d], &t.n_rows)) return too_large(name, err);
    if (__builtin_mul_overflow(t.n_rows, t.row_bytes, &bytes) || bytes > INT64_MAX - ALIGNMENT ||
        __builtin_add_overflow(w->data_bytes, padded(bytes), &w->data_bytes) || w->data_bytes > INT64_MAX / 2)
        return too_large(name, err);
    if (w->n_tensors == w->cap) {
        size_t cap = w->cap ? 2 * w->cap : 256;
        QW_TRY(qw_grow(&w->tensors, w->cap, cap, sizeof *w->tensors, "the list of tensors", err));
        w->cap = cap;
    }
    w->tensors[w->n_tensors++] = t;
    return QW_OK;
}

qw_status qw_gguf_put_tensor(qw_gguf_writer *w, const char *name, qw_type type, uint32_t n_dims, const uint64_t *ne,
                             qw_err *err)
{
    uint64_t offset = w->data_bytes;
    QW_ASSERT(n_dims >= 1 && n_dims <= GGUF_DIMS_MAX && ne[0] % qw_type_get(type)->block_n == 0);
    if (w->n_tensors == GGUF_TENSORS_MAX)
        return qw_fail(err, QW_E_LIMIT, "a model file has at most %d tensors", GGUF_TENSORS_MAX);
    if (strlen(name) > GGUF_NAME_BYTES_MAX)
        return qw_fail(err, QW_E_LIMIT, "tensor '%s': the name has %zu bytes, the limit is %d", name, strlen(name),
                       GGUF_NAME_BYTES_MAX);
    QW_TRY(add_tensor(w, name, type, n_dims, ne, err));
    QW_TRY(add_text(&w->infos, name, strlen(name), err));
    QW_TRY(add_u32(&w->infos, n_dims, err));
    for (uint32_t d = 0; d < n_dims; d++) QW_TRY(add_u64(&w->infos, ne[d], err));
    QW_TRY(add_u32(&w->infos, (uint32_t)type, err));
    return add_u64(&w->infos, offset, err);
}

/* ---- header ----------------------------------------------------------------------------------- */

enum { FIXED_BYTES = 4 + 4 + 8 + 8 }; /* magic, version, two counts */

static qw_status add_padding(qw_buf *b, qw_err *err)
{
    static const char zeros[ALIGNMENT];
    return qw_buf_add(b, zeros, (size_t)(padded(b->n) - b->n), err);
}

qw_status qw_gguf_writer_header(qw_gguf_writer *w, const uint8_t **data, size_t *n, qw_err *err)
{
    qw_buf *b = &w->header;
    qw_buf_clear(b);
    QW_TRY(qw_buf_add(b, "GGUF", 4, err));
    QW_TRY(add_u32(b, VERSION, err));
    QW_TRY(add_u64(b, w->n_tensors, err));
    QW_TRY(add_u64(b, w->n_keys, err));
    QW_TRY(qw_buf_add(b, w->keys.data, w->keys.n, err));
    QW_TRY(qw_buf_add(b, w->infos.data, w->infos.n, err));
    QW_TRY(add_padding(b, err));
    *data = (const uint8_t *)b->data;
    *n = b->n;
    return QW_OK;
}

uint64_t qw_gguf_writer_bytes(const qw_gguf_writer *w)
{
    return padded(FIXED_BYTES + w->keys.n + w->infos.n) + w->data_bytes;
}

/* ---- file ------------------------------------------------------------------------------------- */

typedef struct file_writer {
    const qw_gguf_writer *w;
    const qw_gguf_write_options *o;
    qw_new_file file;
    uint8_t *piece; /* [PIECE_BYTES, or the longest row], owns */
} file_writer;

static qw_status go_on(const file_writer *f, qw_err *err)
{
    if (!f->o->progress || f->o->progress(f->o->user, f->file.n_bytes, qw_gguf_writer_bytes(f->w))) return QW_OK;
    return qw_fail(err, QW_E_CANCELLED, "%s: interrupted, nothing was written", f->file.path);
}

static qw_status write_tensor(file_writer *f, size_t i, qw_err *err)
{
    static const uint8_t zeros[ALIGNMENT];
    const written_tensor *t = &f->w->tensors[i];
    size_t rows_at_once = t->row_bytes < PIECE_BYTES ? PIECE_BYTES / t->row_bytes : 1;
    for (uint64_t row = 0; row < t->n_rows;) {
        size_t n = t->n_rows - row < rows_at_once ? (size_t)(t->n_rows - row) : rows_at_once;
        QW_TRY(go_on(f, err));
        QW_TRY(f->o->rows(f->o->rows_ctx, i, row, n, f->piece, err));
        QW_TRY(qw_new_file_write(&f->file, f->piece, n * t->row_bytes, err));
        row += n;
    }
    return qw_new_file_write(&f->file, zeros, (size_t)(padded(f->file.n_bytes) - f->file.n_bytes), err);
}

static qw_status write_all(file_writer *f, const uint8_t *header, size_t n, qw_err *err)
{
    size_t longest = PIECE_BYTES;
    for (size_t i = 0; i < f->w->n_tensors; i++)
        if (f->w->tensors[i].row_bytes > longest) longest = f->w->tensors[i].row_bytes;
    QW_TRY(qw_alloc(&f->piece, longest, 1, "a piece of a model file", err));
    QW_TRY(qw_new_file_reserve(&f->file, qw_gguf_writer_bytes(f->w), err));
    QW_TRY(qw_new_file_write(&f->file, header, n, err));
    for (size_t i = 0; i < f->w->n_tensors; i++) QW_TRY(write_tensor(f, i, err));
    QW_TRY(go_on(f, err));
    return qw_new_file_publish(&f->file, f->o->replace, err);
}

qw_status qw_gguf_write(qw_gguf_writer *w, const char *path, const qw_gguf_write_options *o, qw_err *err)
{
    file_writer f = {.w = w, .o = o};
    const uint8_t *header = NULL;
    size_t n = 0;
    qw_status status;
    QW_TRY(qw_gguf_writer_header(w, &header, &n, err));
    QW_TRY_GOTO(qw_new_file_open(&f.file, path, err));
    status = write_all(&f, header, n, err);
fail:
    qw_new_file_close(&f.file);
    free(f.piece);
    return status;
}
