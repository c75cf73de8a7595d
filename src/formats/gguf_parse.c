/* gguf_parse.c: from the bytes of one GGUF file to its keys and tensor infos.
 *
 * The opening thread alone. Every byte is taken through the cursor; every count is compared with what
 * the file can still hold before anything is allocated for it. The numbers in comments are those of
 * docs/gguf.md, which lists each check with its message.
 */
#include "formats/gguf_private.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"

const char *const qw_gguf_type_names[GGUF_TYPE_COUNT] = {
    [QW_GGUF_U8] = "u8",   [QW_GGUF_I8] = "i8",         [QW_GGUF_U16] = "u16",   [QW_GGUF_I16] = "i16",
    [QW_GGUF_U32] = "u32", [QW_GGUF_I32] = "i32",       [QW_GGUF_F32] = "f32",   [QW_GGUF_BOOL] = "bool",
    [QW_GGUF_U64] = "u64", [QW_GGUF_STRING] = "string", [QW_GGUF_ARRAY] = "array", [QW_GGUF_I64] = "i64",
    [QW_GGUF_F64] = "f64",
};
const uint8_t qw_gguf_type_bytes[GGUF_TYPE_COUNT] = {
    [QW_GGUF_U8] = 1,  [QW_GGUF_I8] = 1,   [QW_GGUF_U16] = 2,  [QW_GGUF_I16] = 2,
    [QW_GGUF_U32] = 4, [QW_GGUF_I32] = 4,  [QW_GGUF_F32] = 4,  [QW_GGUF_BOOL] = 1,
    [QW_GGUF_U64] = 8, [QW_GGUF_I64] = 8,  [QW_GGUF_F64] = 8,
};

enum {
    KV_BYTES_MIN = 8 + 1 + 4 + 1,         /* key length, one byte of key, type, one byte of value */
    INFO_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8 /* name length and byte, dims, one size, type, offset */
};

/* ---- header ----------------------------------------------------------------------------------- */

/* 6: what a file that is no GGUF begins with, for a message that helps. */
static const struct {
    const char *bytes;
    size_t n;
    const char *what;
} known_beginnings[] = {
    {"version https://git-lfs", 23, "a Git LFS pointer: download the file it stands for"},
    {"<!", 2, "a web page: the download went to the wrong address"},
    {"<html", 5, "a web page: the download went to the wrong address"},
    {"PK\003\004", 4, "a ZIP archive or PyTorch file: convert the model to GGUF"},
    {"tjgg", 4, "an old GGML file: convert the model to GGUF"},
    {"lmgg", 4, "an old GGML file: convert the model to GGUF"},
    {"fmgg", 4, "an old GGML file: convert the model to GGUF"},
    {"algg", 4, "an old GGML file: convert the model to GGUF"},
};

static qw_status check_magic(const gguf_part *part, const uint8_t *magic, qw_err *err)
{
    const uint8_t *data = part->bytes;
    if (memcmp(magic, "GGUF", 4) == 0) return QW_OK;
    for (size_t i = 0; i < sizeof known_beginnings / sizeof known_beginnings[0]; i++)
        if (memcmp(data, known_beginnings[i].bytes, known_beginnings[i].n) == 0)
            return qw_fail(err, QW_E_FORMAT, "%s: not a GGUF file but %s", part->path,
                           known_beginnings[i].what);
    return qw_fail(err, QW_E_FORMAT,
                   "%s: not a GGUF file: the first bytes are %02x %02x %02x %02x, want 47 47 55 46",
                   part->path, magic[0], magic[1], magic[2], magic[3]);
}

/* 7: versions 2 and 3; every other number says which kind of wrong it is. */
static qw_status check_version(const gguf_part *part, uint32_t version, qw_err *err)
{
    if (version == 2 || version == 3) return QW_OK;
    if (version == 0) return qw_fail(err, QW_E_FORMAT, "%s: GGUF version 0 does not exist", part->path);
    if (version == 1)
        return qw_fail(err, QW_E_UNSUPPORTED,
                       "%s: GGUF version 1 is too old: convert the model again (want version 2 or 3)",
                       part->path);
    if ((version & 0xffff) == 0)
        return qw_fail(err, QW_E_UNSUPPORTED,
                       "%s: a big-endian GGUF file: convert it to little-endian", part->path);
    return qw_fail(err, QW_E_UNSUPPORTED, "%s: GGUF version %u is newer than this program (want 2 or 3)",
                   part->path, version);
}

/* 8, 9: a count is bounded by its limit and by what the rest of the file can hold. */
static qw_status check_count(const qw_cursor *c, uint64_t n, uint64_t max, size_t record_min,
                             const char *what, qw_err *err)
{
    if (n > max)
        return qw_fail(err, QW_E_LIMIT, "%s: the header asks for %llu %s, the limit is %llu", c->what,
                       (unsigned long long)n, what, (unsigned long long)max);
    size_t need = (size_t)n * record_min; /* at most 65536 times 33 */
    if (need > qw_cursor_remaining(c))
        return qw_fail(err, QW_E_FORMAT,
                       "%s: the file is cut short: %llu %s need at least %zu bytes, %zu remain", c->what,
                       (unsigned long long)n, what, need, qw_cursor_remaining(c));
    return QW_OK;
}

static qw_status parse_header(gguf_part *part, qw_cursor *c, qw_err *err)
{
    const uint8_t *magic = NULL;
    uint64_t n_tensors = 0, n_kv = 0;
    QW_TRY(qw_cursor_take(c, 4, "the magic", &magic, err));
    QW_TRY(check_magic(part, magic, err));
    QW_TRY(qw_cursor_u32(c, "the version", &part->version, err));
    QW_TRY(check_version(part, part->version, err));
    QW_TRY(qw_cursor_u64(c, "the number of tensors", &n_tensors, err));
    QW_TRY(qw_cursor_u64(c, "the number of keys", &n_kv, err));
    QW_TRY(check_count(c, n_tensors, GGUF_TENSORS_MAX, INFO_BYTES_MIN, "tensors", err));
    QW_TRY(check_count(c, n_kv, GGUF_KEYS_MAX, KV_BYTES_MIN, "keys", err));
    part->n_tensors = (size_t)n_tensors;
    part->n_kv_max = (size_t)n_kv;
    return QW_OK;
}

/* ---- keys and values -------------------------------------------------------------------------- */

/* The key being read, for messages; `field` is "key 'NAME'". */
typedef struct kv_reader {
    const gguf_part *part;
    qw_cursor *c;
    char field[96];
    qw_err *err;
} kv_reader;

static QW_PRINTF(3, 4) qw_status kv_fail(const kv_reader *r, qw_status status, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return qw_fail(r->err, status, "%s: %s: %s", r->part->path, r->field, text);
}

/* 11: printable ASCII without spaces, which is what every writer uses, and UTF-8 by that. */
static qw_status parse_key(kv_reader *r, size_t index, qw_text *out)
{
    uint64_t n = 0;
    const uint8_t *p = NULL;
    snprintf(r->field, sizeof r->field, "the name of key %zu", index + 1);
    QW_TRY(qw_cursor_u64(r->c, r->field, &n, r->err));
    if (n == 0) return kv_fail(r, QW_E_FORMAT, "is empty");
    if (n > GGUF_KEY_BYTES_MAX)
        return kv_fail(r, QW_E_LIMIT, "has %llu bytes, the limit is %d", (unsigned long long)n,
                       GGUF_KEY_BYTES_MAX);
    QW_TRY(qw_cursor_take(r->c, (size_t)n, r->field, &p, r->err));
    for (size_t i = 0; i < n; i++)
        if (p[i] <= ' ' || p[i] > '~')
            return kv_fail(r, QW_E_FORMAT, "has the byte 0x%02x at position %zu: want printable ASCII",
                           p[i], i + 1);
    *out = (qw_text){.s = (const char *)p, .n = (size_t)n};
    snprintf(r->field, sizeof r->field, "key '%.*s'", (int)n, out->s);
    return QW_OK;
}

/* 13, 14 */
static qw_status parse_type(kv_reader *r, bool element, qw_gguf_type *out)
{
    uint32_t type = 0;
    QW_TRY(qw_cursor_u32(r->c, r->field, &type, r->err));
    if (type >= GGUF_TYPE_COUNT)
        return kv_fail(r, QW_E_FORMAT, element ? "array elements of unknown type %u"
                                               : "unknown value type %u",
                       type);
    if (element && type == QW_GGUF_ARRAY) return kv_fail(r, QW_E_UNSUPPORTED, "an array of arrays");
    *out = (qw_gguf_type)type;
    return QW_OK;
}

/* 18 */
static qw_status check_bools(const kv_reader *r, const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] > 1) return kv_fail(r, QW_E_FORMAT, "a truth value is %u: want 0 or 1", p[i]);
    return QW_OK;
}

/* 17: what all keys take together, so that no file makes opening slow or large. */
static qw_status check_metadata(const kv_reader *r, size_t more)
{
    if (r->c->pos > GGUF_METADATA_BYTES_MAX || more > GGUF_METADATA_BYTES_MAX - r->c->pos)
        return kv_fail(r, QW_E_LIMIT, "the keys take more than %d bytes together",
                       GGUF_METADATA_BYTES_MAX);
    return QW_OK;
}

/* 16: one string; *p is its first byte. */
static qw_status parse_string(kv_reader *r, const uint8_t **p, size_t *n)
{
    uint64_t bytes = 0;
    QW_TRY(qw_cursor_u64(r->c, r->field, &bytes, r->err));
    if (bytes > GGUF_STRING_BYTES_MAX)
        return kv_fail(r, QW_E_LIMIT, "a string of %llu bytes at byte %zu, the limit is %d",
                       (unsigned long long)bytes, r->c->pos - 8, GGUF_STRING_BYTES_MAX);
    *n = (size_t)bytes;
    return qw_cursor_take(r->c, *n, r->field, p, r->err);
}

/* Strings of an array: where each begins and how long it is, so that access takes constant time. */
static qw_status parse_strings(kv_reader *r, gguf_kv *kv)
{
    QW_TRY(qw_alloc(&kv->spans, kv->n, sizeof *kv->spans, "the index of an array of strings", r->err));
    for (size_t i = 0; i < kv->n; i++) {
        const uint8_t *p = NULL;
        size_t n = 0;
        QW_TRY(parse_string(r, &p, &n));
        if (r->c->pos > GGUF_METADATA_BYTES_MAX) return check_metadata(r, 0);
        kv->spans[i] = (gguf_span){.offset = (uint32_t)(p - kv->value), .bytes = (uint32_t)n};
    }
    kv->bytes = (size_t)(r->c->data + r->c->pos - kv->value);
    return QW_OK;
}

static qw_status parse_array(kv_reader *r, gguf_kv *kv)
{
    uint64_t n = 0;
    QW_TRY(parse_type(r, true, &kv->elem));
    QW_TRY(qw_cursor_u64(r->c, r->field, &n, r->err));
    if (n > GGUF_ARRAY_MAX)
        return kv_fail(r, QW_E_LIMIT, "an array of %llu elements, the limit is %d", (unsigned long long)n,
                       GGUF_ARRAY_MAX);
    size_t size = qw_gguf_type_bytes[kv->elem];
    size_t need = (size_t)n * (size > 0 ? size : 8); /* 15: a string takes 8 bytes at least; below 2^29 */
    if (need > qw_cursor_remaining(r->c))
        return kv_fail(r, QW_E_FORMAT,
                       "the file is cut short: an array of %llu elements needs at least %zu bytes, "
                       "%zu remain",
                       (unsigned long long)n, need, qw_cursor_remaining(r->c));
    QW_TRY(check_metadata(r, need));
    kv->n = (size_t)n;
    kv->value = r->c->data + r->c->pos;
    if (kv->elem == QW_GGUF_STRING) return parse_strings(r, kv);
    kv->bytes = need;
    QW_TRY(qw_cursor_take(r->c, need, r->field, &kv->value, r->err));
    return kv->elem == QW_GGUF_BOOL ? check_bools(r, kv->value, kv->n) : QW_OK;
}

static qw_status parse_value(kv_reader *r, gguf_kv *kv)
{
    QW_TRY(parse_type(r, false, &kv->type));
    kv->elem = kv->type;
    kv->n = 1;
    if (kv->type == QW_GGUF_ARRAY) return parse_array(r, kv);
    if (kv->type == QW_GGUF_STRING) {
        QW_TRY(parse_string(r, &kv->value, &kv->bytes));
    } else {
        kv->bytes = qw_gguf_type_bytes[kv->type];
        QW_TRY(qw_cursor_take(r->c, kv->bytes, r->field, &kv->value, r->err));
        if (kv->type == QW_GGUF_BOOL) QW_TRY(check_bools(r, kv->value, 1));
    }
    return check_metadata(r, 0);
}

static qw_status parse_keys(gguf_part *part, qw_cursor *c, qw_err *err)
{
    kv_reader r = {.part = part, .c = c, .err = err};
    QW_TRY(qw_alloc(&part->kv, part->n_kv_max, sizeof *part->kv, "the keys of a model", err));
    QW_TRY(qw_name_set_init(&part->keys, part->n_kv_max, err));
    for (size_t i = 0; i < part->n_kv_max; i++) {
        gguf_kv *kv = &part->kv[i];
        part->n_kv = i + 1; /* from here on freeing the part frees the entry's index */
        QW_TRY(parse_key(&r, i, &kv->key));
        if (!qw_name_set_add(&part->keys, kv->key, i)) /* 12 */
            return kv_fail(&r, QW_E_FORMAT, "is there twice");
        QW_TRY(parse_value(&r, kv));
    }
    return QW_OK;
}

/* 20 */
static qw_status find_alignment(gguf_part *part, qw_err *err)
{
    static const char key[] = "general.alignment";
    part->alignment = GGUF_ALIGNMENT_DEFAULT;
    const gguf_kv *kv = qw_gguf_part_find(part, key);
    uint64_t n = 0;
    if (kv == NULL) return QW_OK;
    if (kv->type != QW_GGUF_U32)
        return qw_fail(err, QW_E_FORMAT, "%s: key '%s' is of type %s: want u32", part->path, key,
                       qw_gguf_type_names[kv->type]);
    QW_TRY(qw_gguf_part_get_u64(part, key, &n, err));
    if (n < GGUF_ALIGNMENT_MIN || n > GGUF_ALIGNMENT_MAX || (n & (n - 1)) != 0)
        return qw_fail(err, QW_E_FORMAT, "%s: key '%s' is %llu: want a power of two from %d to %d",
                       part->path, key, (unsigned long long)n, GGUF_ALIGNMENT_MIN, GGUF_ALIGNMENT_MAX);
    part->alignment = (uint32_t)n;
    return QW_OK;
}

/* ---- tensor infos ----------------------------------------------------------------------------- */

/* 22: the name is copied, because it must end in NUL. */
static qw_status parse_name(const gguf_part *part, qw_cursor *c, size_t index, char *name, qw_err *err)
{
    uint64_t n = 0;
    const uint8_t *p = NULL;
    char field[48];
    snprintf(field, sizeof field, "the name of tensor %zu", index + 1);
    QW_TRY(qw_cursor_u64(c, field, &n, err));
    if (n == 0) return qw_fail(err, QW_E_FORMAT, "%s: %s is empty", part->path, field);
    if (n > GGUF_NAME_BYTES_MAX)
        return qw_fail(err, QW_E_LIMIT, "%s: %s has %llu bytes, the limit is %d", part->path, field,
                       (unsigned long long)n, GGUF_NAME_BYTES_MAX);
    QW_TRY(qw_cursor_take(c, (size_t)n, field, &p, err));
    if (memchr(p, 0, (size_t)n) != NULL)
        return qw_fail(err, QW_E_FORMAT, "%s: %s has a zero byte in it", part->path, field);
    if (!qw_utf8_valid((const char *)p, (size_t)n))
        return qw_fail(err, QW_E_FORMAT, "%s: %s is not valid UTF-8", part->path, field);
    memcpy(name, p, (size_t)n);
    name[n] = '\0';
    return QW_OK;
}

/* 26: numbers of the format that qw does not run, by name. */
static const char *foreign_type(uint32_t type)
{
    static const char *const names[] = {
        [4] = "Q4_2",        [5] = "Q4_3",        [9] = "Q8_1",        [15] = "Q8_K",     [24] = "I8",
        [25] = "I16",        [26] = "I32",        [27] = "I64",        [28] = "F64",      [31] = "Q4_0_4_4",
        [32] = "Q4_0_4_8",   [33] = "Q4_0_8_8",   [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8", [38] = "IQ4_NL_8_8",
    };
    return type < sizeof names / sizeof names[0] ? names[type] : NULL;
}

static qw_status check_type(const gguf_part *part, const char *name, uint32_t type, qw_err *err)
{
    const qw_type_info *info = qw_type_get(type);
    if (info->name != NULL && info->block_n > 0 && info->block_bytes > 0) return QW_OK;
    const char *foreign = foreign_type(type);
    if (foreign == NULL)
        return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' is of unknown type %u", part->path, name, type);
    return qw_fail(err, QW_E_UNSUPPORTED,
                   "%s: tensor '%s' is of type %s (%u), which is not supported: take a file with another "
                   "quantization, such as Q4_K_M or Q8_0",
                   part->path, name, foreign, type);
}

/* 25, 27, 28: the bytes of a tensor whose sizes and type are known to be in range. */
static qw_status tensor_bytes(const gguf_part *part, qw_tensor *t, qw_err *err)
{
    const qw_type_info *info = qw_type_get(t->type);
    uint64_t n = 1, bytes;
    for (uint32_t d = 0; d < t->n_dims; d++)
        if (__builtin_mul_overflow(n, t->ne[d], &n) || n > INT64_MAX)
            return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' has more than 2^63 elements", part->path,
                           t->name);
    if (t->ne[0] % info->block_n != 0)
        return qw_fail(err, QW_E_FORMAT,
                       "%s: tensor '%s' has rows of %llu elements: %s wants a multiple of %u",
                       part->path, t->name, (unsigned long long)t->ne[0], info->name, info->block_n);
    if (__builtin_mul_overflow(n / info->block_n, info->block_bytes, &bytes) || bytes > PTRDIFF_MAX)
        return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' has more than 2^63 bytes", part->path, t->name);
    t->bytes = (size_t)bytes;
    return QW_OK;
}

static qw_status parse_info(gguf_part *part, qw_cursor *c, size_t i, qw_err *err)
{
    qw_tensor *t = &part->tensors[i];
    char *name = part->names[i], field[GGUF_NAME_BYTES_MAX + 16];
    uint32_t type = 0;
    QW_TRY(parse_name(part, c, i, name, err));
    t->name = name;
    snprintf(field, sizeof field, "tensor '%s'", name);
    QW_TRY(qw_cursor_u32(c, field, &t->n_dims, err));
    if (t->n_dims < 1 || t->n_dims > GGUF_DIMS_MAX) /* 23 */
        return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' has %u dimensions: want 1 to %d", part->path,
                       name, t->n_dims, GGUF_DIMS_MAX);
    for (uint32_t d = 0; d < GGUF_DIMS_MAX; d++) {
        t->ne[d] = 1;
        if (d >= t->n_dims) continue;
        QW_TRY(qw_cursor_u64(c, field, &t->ne[d], err));
        if (t->ne[d] < 1 || t->ne[d] > GGUF_DIM_MAX) /* 24 */
            return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' has %llu as dimension %u: want 1 to %llu",
                           part->path, name, (unsigned long long)t->ne[d], d + 1,
                           (unsigned long long)GGUF_DIM_MAX);
    }
    QW_TRY(qw_cursor_u32(c, field, &type, err));
    QW_TRY(check_type(part, name, type, err));
    t->type = (qw_type)type;
    QW_TRY(tensor_bytes(part, t, err));
    return qw_cursor_u64(c, field, &part->offsets[i], err);
}

static qw_status parse_infos(gguf_part *part, qw_cursor *c, qw_err *err)
{
    size_t n = part->n_tensors;
    QW_TRY(qw_alloc(&part->tensors, n, sizeof *part->tensors, "the list of tensors", err));
    QW_TRY(qw_alloc(&part->offsets, n, sizeof *part->offsets, "the list of tensors", err));
    QW_TRY(qw_alloc(&part->names, n, sizeof *part->names, "the names of tensors", err));
    for (size_t i = 0; i < n; i++) QW_TRY(parse_info(part, c, i, err));
    part->infos_end = c->pos;
    return QW_OK;
}

/* ---- one part --------------------------------------------------------------------------------- */

static qw_status parse(gguf_part *part, qw_err *err)
{
    qw_cursor c = {.data = part->bytes, .n = part->n_bytes, .what = part->path};
    QW_TRY(parse_header(part, &c, err));
    QW_TRY(parse_keys(part, &c, err));
    QW_TRY(find_alignment(part, err));
    QW_TRY(parse_infos(part, &c, err));
    return qw_gguf_part_layout(part, err);
}

qw_status qw_gguf_part_open(gguf_part *part, const char *path, qw_err *err)
{
    *part = (gguf_part){0};
    QW_TRY(qw_strndup(&part->path, path, strlen(path), err));
    QW_TRY(qw_map_open(path, &part->map, err)); /* 1, 3, 48 */
    size_t bytes = qw_map_bytes(part->map);
    if (bytes < GGUF_FILE_BYTES_MIN) /* 2 */
        return qw_fail(err, QW_E_FORMAT,
                       "%s: the file is cut short: %zu bytes are no GGUF header (want %d)", path, bytes,
                       GGUF_FILE_BYTES_MIN);
    if (bytes > GGUF_FILE_BYTES_MAX)
        return qw_fail(err, QW_E_LIMIT, "%s: %zu bytes are more than a model file may have (%llu)",
                       path, bytes, (unsigned long long)GGUF_FILE_BYTES_MAX);
    part->bytes = qw_map_data(part->map);
    part->n_bytes = bytes;
    part->file_bytes = bytes;
    qw_status status = parse(part, err);
    if (qw_map_failed(part->map)) /* 50: whatever was seen, it was not the file */
        return qw_fail(err, QW_E_CORRUPT,
                       "%s: the file became shorter or unreadable while it was opened", path);
    return status;
}

qw_status qw_gguf_part_open_header(gguf_part *part, const char *path, const uint8_t *bytes, size_t n, uint64_t file_bytes,
                                   qw_err *err)
{
    *part = (gguf_part){.bytes = bytes, .n_bytes = n, .file_bytes = file_bytes};
    QW_TRY(qw_strndup(&part->path, path, strlen(path), err));
    return parse(part, err);
}

void qw_gguf_part_free(gguf_part *part)
{
    for (size_t i = 0; i < part->n_kv; i++) free(part->kv[i].spans);
    free(part->kv);
    qw_name_set_free(&part->keys);
    free(part->tensors);
    free(part->offsets);
    free(part->names);
    qw_map_close(part->map);
    free(part->path);
    *part = (gguf_part){0};
}

const gguf_kv *qw_gguf_part_find(const gguf_part *part, const char *key)
{
    size_t i = qw_name_set_find(&part->keys, (qw_text){.s = key, .n = strlen(key)});
    return i != SIZE_MAX ? &part->kv[i] : NULL;
}
