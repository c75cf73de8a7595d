/* gguf.c: GGUF model files as the rest of qw sees them: parts put together, typed reads of keys.
 *
 * Opened by one thread, immutable afterwards, read by any. Bounds were checked when the file was
 * opened; the typed reads add what only they know: is the key there, has it the type and range asked
 * for. See docs/gguf.md.
 */
#include "formats/gguf.h"

#include <endian.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "formats/gguf_private.h"
#include "formats/rows_as.h"

/* ---- opening ---------------------------------------------------------------------------------- */

/* "PREFIX-00002-of-00003.gguf" */
typedef struct split_name {
    int prefix_n; /* bytes of the path before the first dash of the pattern */
    unsigned no;  /* 1.. */
    unsigned count;
} split_name;

static bool digits5(const char *s, unsigned *out)
{
    unsigned v = 0;
    for (int i = 0; i < 5; i++) {
        if (s[i] < '0' || s[i] > '9') return false;
        v = v * 10 + (unsigned)(s[i] - '0');
    }
    *out = v;
    return true;
}

/* False when the path does not end in the pattern of a split file. */
static bool parse_split_name(const char *path, split_name *out)
{
    static const size_t tail_n = sizeof "-00001-of-00003.gguf" - 1;
    size_t n = strlen(path);
    if (n <= tail_n || n > INT_MAX) return false;
    const char *tail = path + n - tail_n;
    if (tail[-1] == '/' || tail[0] != '-' || memcmp(tail + 6, "-of-", 4) != 0 ||
        memcmp(tail + 15, ".gguf", 5) != 0)
        return false;
    out->prefix_n = (int)(n - tail_n);
    return digits5(tail + 1, &out->no) && digits5(tail + 10, &out->count);
}

/* split.* keys of a part. count is 1 for a file that is not split (0 is what merging tools leave). */
typedef struct split_keys {
    uint64_t no, count, n_tensors;
} split_keys;

static qw_status read_split_keys(const gguf_part *part, split_keys *out, qw_err *err)
{
    *out = (split_keys){.count = 1, .n_tensors = part->n_tensors};
    if (qw_gguf_part_find(part, "split.count") == NULL) return QW_OK;
    QW_TRY(qw_gguf_part_get_u64(part, "split.count", &out->count, err));
    if (out->count <= 1) {
        out->count = 1;
        return QW_OK;
    }
    if (out->count > GGUF_SPLITS_MAX)
        return qw_fail(err, QW_E_LIMIT, "%s: split into %llu parts, the limit is %d", part->path,
                       (unsigned long long)out->count, GGUF_SPLITS_MAX);
    QW_TRY(qw_gguf_part_get_u64(part, "split.no", &out->no, err));
    QW_TRY(qw_gguf_part_get_u64(part, "split.tensors.count", &out->n_tensors, err));
    if (out->n_tensors > GGUF_TENSORS_MAX)
        return qw_fail(err, QW_E_LIMIT, "%s: the parts have %llu tensors together, the limit is %d",
                       part->path, (unsigned long long)out->n_tensors, GGUF_TENSORS_MAX);
    return QW_OK;
}

/* 4: name and keys of the first part agree. */
static qw_status check_first(const gguf_part *part, const split_keys *keys, split_name *name, qw_err *err)
{
    bool named = parse_split_name(part->path, name);
    if (keys->count == 1) {
        if (named && name->count > 1)
            return qw_fail(err, QW_E_FORMAT, "%s: the name says part %u of %u, the header says one file",
                           part->path, name->no, name->count);
        return QW_OK;
    }
    if (!named)
        return qw_fail(err, QW_E_FORMAT,
                       "%s: the header says %llu parts: want a name that ends in -00001-of-%05llu.gguf",
                       part->path, (unsigned long long)keys->count, (unsigned long long)keys->count);
    if (name->count != keys->count)
        return qw_fail(err, QW_E_FORMAT, "%s: the name says %u parts, the header says %llu", part->path,
                       name->count, (unsigned long long)keys->count);
    if (keys->no + 1 != name->no)
        return qw_fail(err, QW_E_FORMAT, "%s: the name says part %u, the header says part %llu", part->path,
                       name->no, (unsigned long long)keys->no + 1);
    if (name->no != 1)
        return qw_fail(err, QW_E_ARG,
                       "%s: this is part %u of %u: open the first part (-00001-of-%05u.gguf)",
                       part->path, name->no, name->count, name->count);
    return QW_OK;
}

/* 4: a later part belongs to the first. */
static qw_status check_later(const gguf_part *part, const split_keys *first, uint64_t no, qw_err *err)
{
    split_keys keys;
    QW_TRY(read_split_keys(part, &keys, err));
    if (keys.count != first->count)
        return qw_fail(err, QW_E_FORMAT, "%s: the header says %llu parts, the first part says %llu",
                       part->path, (unsigned long long)keys.count, (unsigned long long)first->count);
    if (keys.no != no)
        return qw_fail(err, QW_E_FORMAT, "%s: the name says part %llu, the header says part %llu",
                       part->path, (unsigned long long)no + 1, (unsigned long long)keys.no + 1);
    if (keys.n_tensors != first->n_tensors)
        return qw_fail(err, QW_E_FORMAT,
                       "%s: the header says %llu tensors in all parts, the first part says %llu", part->path,
                       (unsigned long long)keys.n_tensors, (unsigned long long)first->n_tensors);
    return QW_OK;
}

/* Opens parts 2.. beside the first; their names are made here, from the pattern alone. */
static qw_status open_later_parts(qw_gguf *g, const split_keys *first, const split_name *name, qw_err *err)
{
    const char *base = g->parts[0].path;
    for (uint64_t no = 1; no < first->count; no++) {
        char path[PATH_MAX];
        int n = snprintf(path, sizeof path, "%.*s-%05" PRIu64 "-of-%05u.gguf", name->prefix_n, base, no + 1,
                         name->count);
        if (n < 0 || (size_t)n >= sizeof path)
            return qw_fail(err, QW_E_LIMIT, "%s: the path is too long", base);
        gguf_part *part = &g->parts[no];
        g->n_parts = (size_t)no + 1; /* from here on closing frees it */
        qw_status status = qw_gguf_part_open(part, path, err);
        if (status != QW_OK && part->map == NULL) /* most often a part that was not downloaded */
            qw_err_prefix(err, "%s: part %" PRIu64 " of %" PRIu64, base, no + 1, first->count);
        QW_TRY(status);
        QW_TRY(check_later(part, first, no, err));
    }
    return QW_OK;
}

/* One list of all tensors; 4: as many as the first part says; 22: every name once. */
static qw_status collect_tensors(qw_gguf *g, const split_keys *first, qw_err *err)
{
    size_t n = 0;
    for (size_t p = 0; p < g->n_parts; p++) n += g->parts[p].n_tensors; /* at most 1000 times 65536 */
    if (n != first->n_tensors)
        return qw_fail(err, QW_E_FORMAT, "%s: the parts hold %zu tensors, the header says %llu",
                       g->parts[0].path, n, (unsigned long long)first->n_tensors);
    QW_TRY(qw_alloc(&g->tensors, n, sizeof *g->tensors, "the list of tensors", err));
    QW_TRY(qw_name_set_init(&g->names, n, err));
    for (size_t p = 0; p < g->n_parts; p++) {
        const gguf_part *part = &g->parts[p];
        for (size_t i = 0; i < part->n_tensors; i++) {
            const qw_tensor *t = &part->tensors[i];
            if (!qw_name_set_add(&g->names, (qw_text){.s = t->name, .n = strlen(t->name)}, g->n_tensors))
                return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' is there twice", part->path, t->name);
            g->tensors[g->n_tensors++] = *t;
        }
    }
    return QW_OK;
}

static qw_status open_files(qw_gguf *g, const char *path, qw_err *err)
{
    split_keys keys;
    split_name name = {0};
    QW_TRY(qw_gguf_part_open(&g->parts[0], path, err));
    QW_TRY(read_split_keys(&g->parts[0], &keys, err));
    QW_TRY(check_first(&g->parts[0], &keys, &name, err));
    QW_TRY(qw_grow(&g->parts, 1, (size_t)keys.count, sizeof *g->parts, "the parts of a model", err));
    QW_TRY(open_later_parts(g, &keys, &name, err));
    return collect_tensors(g, &keys, err);
}

/* A folder: its header is parsed as a file's is, its tensors come from elsewhere. */
static qw_status open_folder(qw_gguf *g, const char *path, qw_err *err)
{
    const uint8_t *header = NULL;
    size_t n = 0;
    uint64_t file_bytes = 0;
    QW_TRY(qw_hf_open(path, &g->folder, err));
    qw_hf_header(g->folder, &header, &n, &file_bytes);
    QW_TRY(qw_gguf_part_open_header(&g->parts[0], path, header, n, file_bytes, err));
    QW_TRY(collect_tensors(g, &(split_keys){.count = 1, .n_tensors = g->parts[0].n_tensors}, err));
    for (size_t i = 0; i < g->n_tensors; i++) qw_hf_tensor(g->folder, i, &g->tensors[i].data, &g->tensors[i].source);
    return QW_OK;
}

/* ---- quantising now --------------------------------------------------------------------------- */

static bool ends_in(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && memcmp(s + n - m, end, m) == 0;
}

/* Matrices of floats, except those that choose experts or are taps of a convolution: they are small, and other programs want
 * them as floats. */
static bool is_quantizable(const qw_tensor *t)
{
    bool floats = t->type == QW_TYPE_F32 || t->type == QW_TYPE_F16 || t->type == QW_TYPE_BF16;
    return floats && t->n_dims >= 2 && ends_in(t->name, ".weight") && !ends_in(t->name, ".ffn_gate_inp.weight") &&
           !ends_in(t->name, ".ffn_gate_inp_shexp.weight") && !ends_in(t->name, "conv1d.weight");
}

/* The type that was asked for, or Q8_0 where its blocks do not fit the rows, or what the tensor has. */
static qw_type type_for(const qw_tensor *t, qw_type wanted)
{
    if (!is_quantizable(t)) return t->type;
    if (t->ne[0] % qw_type_get(wanted)->block_n == 0) return wanted;
    return t->ne[0] % qw_type_get(QW_TYPE_Q8_0)->block_n == 0 ? QW_TYPE_Q8_0 : t->type;
}

qw_status qw_gguf_options_parse(const char *quantize, qw_gguf_options *out, qw_err *err)
{
    *out = (qw_gguf_options){.quantize = quantize != NULL};
    if (quantize == NULL || (qw_type_parse(quantize, &out->type) && qw_type_can_quantize(out->type))) return QW_OK;
    return qw_fail(err, QW_E_ARG, "\"%.40s\" is no type to quantise to; there are q4_0, q4_k, q5_k, q6_k, q8_0, bf16 and others",
                   quantize);
}

static qw_status quantize_now(qw_gguf *g, qw_err *err)
{
    QW_TRY(qw_alloc(&g->converted, g->n_tensors, sizeof *g->converted, "the list of tensors", err));
    for (size_t i = 0; i < g->n_tensors; i++) {
        qw_tensor *t = &g->tensors[i];
        qw_type type = type_for(t, g->options.type);
        qw_rows_in in = {.type = t->type, .k = t->ne[0], .data = t->data, .make = t->source};
        if (type == t->type) continue;
        qw_rows_as_init(&g->converted[i], &in, type);
        t->type = type;
        t->data = NULL;
        t->source = &g->converted[i].base;
        t->bytes = (size_t)qw_tensor_rows(t) * qw_tensor_row_bytes(t);
    }
    return QW_OK;
}

void qw_tensor_read(const qw_tensor *t, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch)
{
    qw_rows_in in = {.type = t->type, .k = t->ne[0], .data = t->data, .make = t->source};
    qw_rows_in_read(&in, row0, n, out, scratch);
}

/* ---- open and close --------------------------------------------------------------------------- */

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

qw_status qw_gguf_open(const char *path, qw_gguf **out, qw_err *err)
{
    return qw_gguf_open_as(path, &(qw_gguf_options){0}, out, err);
}

qw_status qw_gguf_open_as(const char *path, const qw_gguf_options *options, qw_gguf **out, qw_err *err)
{
    qw_gguf *g = NULL;
    qw_status status = QW_OK;
    QW_TRY(qw_alloc(&g, 1, sizeof *g, "a model file", err));
    QW_TRY_GOTO(qw_alloc(&g->parts, 1, sizeof *g->parts, "a model file", err));
    g->n_parts = 1;
    g->options = *options;
    QW_TRY_GOTO(is_folder(path) ? open_folder(g, path, err) : open_files(g, path, err));
    if (options->quantize) QW_TRY_GOTO(quantize_now(g, err));
    *out = g;
    return QW_OK;
fail:
    qw_gguf_close(g);
    return status;
}

void qw_gguf_close(qw_gguf *g)
{
    if (g == NULL) return;
    for (size_t p = 0; p < g->n_parts; p++) qw_gguf_part_free(&g->parts[p]);
    free(g->parts);
    free(g->tensors);
    free(g->converted);
    qw_name_set_free(&g->names);
    qw_hf_close(g->folder);
    free(g);
}

/* ---- the file --------------------------------------------------------------------------------- */

const char *qw_gguf_path(const qw_gguf *g)
{
    return g->parts[0].path;
}

uint32_t qw_gguf_version(const qw_gguf *g)
{
    return g->parts[0].version;
}

size_t qw_gguf_bytes(const qw_gguf *g)
{
    size_t n = 0;
    if (g->folder) return qw_hf_bytes(g->folder);
    for (size_t p = 0; p < g->n_parts; p++) n += qw_map_bytes(g->parts[p].map);
    return n;
}

bool qw_gguf_map_failed(const qw_gguf *g)
{
    if (g->folder) return qw_hf_map_failed(g->folder);
    for (size_t p = 0; p < g->n_parts; p++)
        if (qw_map_failed(g->parts[p].map)) return true;
    return false;
}

const char *qw_gguf_note(const qw_gguf *g)
{
    return g->folder ? qw_hf_note(g->folder) : "";
}

const char *qw_gguf_first_file(const qw_gguf *g)
{
    return g->folder ? qw_hf_first_file(g->folder) : g->parts[0].path;
}

void qw_gguf_identity(const qw_gguf *g, char out[65])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned n = 0;
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    int ok = md != NULL && EVP_DigestInit_ex(md, EVP_sha256(), NULL);
    for (size_t p = 0; p < g->n_parts && ok && !g->folder; p++) {
        char text[96];
        qw_map_identity(g->parts[p].map, text);
        ok = EVP_DigestUpdate(md, text, strlen(text) + 1);
    }
    if (g->folder) ok = ok && EVP_DigestUpdate(md, qw_hf_identity(g->folder), strlen(qw_hf_identity(g->folder)) + 1);
    if (g->options.quantize) { /* another model, as far as packed weights go */
        const char *type = qw_type_get(g->options.type)->name;
        ok = ok && EVP_DigestUpdate(md, type, strlen(type) + 1);
    }
    ok = ok && EVP_DigestFinal_ex(md, digest, &n);
    EVP_MD_CTX_free(md);
    QW_ASSERT(ok && n == 32);
    for (unsigned i = 0; i < n; i++) snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

static void drop_pages(const qw_map *map, const uint8_t *data, size_t bytes)
{
    if (data) qw_map_drop(map, data, bytes);
    else qw_map_drop(map, qw_map_data(map), qw_map_bytes(map));
}

void qw_gguf_drop_pages(const qw_gguf *g, const uint8_t *data, size_t bytes)
{
    size_t n_maps = g->folder ? qw_hf_n_maps(g->folder) : g->n_parts;
    for (size_t i = 0; i < n_maps; i++)
        drop_pages(g->folder ? qw_hf_map(g->folder, i) : g->parts[i].map, data, bytes);
}

static qw_status check_tensor_finite(const qw_gguf *g, const qw_tensor *t, uint8_t *row, uint8_t *scratch, qw_err *err)
{
    for (uint64_t r = 0; r < qw_tensor_rows(t); r++) {
        const uint8_t *at = t->data ? t->data + r * qw_tensor_row_bytes(t) : row;
        if (!t->data) qw_tensor_read(t, r, 1, row, scratch);
        if (qw_row_finite(t->type, at, t->ne[0])) continue;
        return qw_fail(err, QW_E_CORRUPT, "%s: tensor %s has a value in row %" PRIu64 " that is not a number", qw_gguf_path(g),
                       t->name, r);
    }
    return QW_OK;
}

qw_status qw_gguf_check_finite(const qw_gguf *g, qw_err *err)
{
    size_t row_bytes = 0, scratch_bytes = 0;
    uint8_t *row = NULL, *scratch = NULL;
    qw_status status = QW_OK;
    for (size_t i = 0; i < g->n_tensors; i++) {
        const qw_tensor *t = &g->tensors[i];
        if (t->source && qw_tensor_row_bytes(t) > row_bytes) row_bytes = qw_tensor_row_bytes(t);
        if (qw_tensor_scratch(t) > scratch_bytes) scratch_bytes = qw_tensor_scratch(t);
    }
    QW_TRY_GOTO(qw_alloc_aligned(&row, row_bytes, "a row of a tensor", err));
    QW_TRY_GOTO(qw_alloc_aligned(&scratch, scratch_bytes, "a row of a tensor", err));
    for (size_t i = 0; i < g->n_tensors && status == QW_OK; i++)
        status = check_tensor_finite(g, &g->tensors[i], row, scratch, err);
fail:
    qw_free_aligned(row, row_bytes);
    qw_free_aligned(scratch, scratch_bytes);
    return status;
}

size_t qw_gguf_n_tensors(const qw_gguf *g)
{
    return g->n_tensors;
}

const qw_tensor *qw_gguf_tensor(const qw_gguf *g, size_t i)
{
    return &g->tensors[i];
}

const qw_tensor *qw_gguf_find_tensor(const qw_gguf *g, const char *name)
{
    size_t i = qw_name_set_find(&g->names, (qw_text){.s = name, .n = strlen(name)});
    return i != SIZE_MAX ? &g->tensors[i] : NULL;
}

/* ---- elements --------------------------------------------------------------------------------- */

static uint64_t load_le(const uint8_t *p, size_t bytes)
{
    uint64_t v = 0;
    memcpy(&v, p, bytes);
    return le64toh(v);
}

static bool is_integer(qw_gguf_type type)
{
    return type <= QW_GGUF_I32 || type == QW_GGUF_U64 || type == QW_GGUF_I64;
}

static bool is_signed(qw_gguf_type type)
{
    return type == QW_GGUF_I8 || type == QW_GGUF_I16 || type == QW_GGUF_I32 || type == QW_GGUF_I64;
}

static bool is_float(qw_gguf_type type)
{
    return type == QW_GGUF_F32 || type == QW_GGUF_F64;
}

/* Element i of integers or truth values; a u64 above INT64_MAX comes out negative. */
static int64_t load_int(const gguf_kv *kv, size_t i)
{
    size_t bytes = qw_gguf_type_bytes[kv->elem];
    uint64_t v = load_le(kv->value + i * bytes, bytes);
    if (is_signed(kv->elem)) {
        uint64_t sign = (uint64_t)1 << (8 * bytes - 1);
        v = (v ^ sign) - sign;
    }
    return (int64_t)v;
}

static double load_float(const gguf_kv *kv, size_t i)
{
    if (kv->elem == QW_GGUF_F32) {
        uint32_t bits = (uint32_t)load_le(kv->value + i * 4, 4);
        float f;
        memcpy(&f, &bits, sizeof f);
        return (double)f;
    }
    uint64_t bits = load_le(kv->value + i * 8, 8);
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

/* ---- keys ------------------------------------------------------------------------------------- */

size_t qw_gguf_n_kv(const qw_gguf *g)
{
    return g->parts[0].n_kv;
}

qw_text qw_gguf_kv_key(const qw_gguf *g, size_t i)
{
    return g->parts[0].kv[i].key;
}

void qw_gguf_kv_type(const qw_gguf *g, size_t i, qw_gguf_type *type, qw_gguf_type *elem_type, size_t *n)
{
    const gguf_kv *kv = &g->parts[0].kv[i];
    *type = kv->type;
    *elem_type = kv->elem;
    *n = kv->n;
}

/* A string on one line: control characters become spaces, bytes that are no UTF-8 '?', and a text that
 * does not fit ends in "...". */
static void string_text(const char *s, size_t n, char *out, size_t cap)
{
    size_t i = 0, used = 0, fits = 0; /* fits: where "..." still has room */
    while (i < n) {
        uint32_t cp = 0;
        int len = qw_utf8_decode(s + i, n - i, &cp);
        size_t step = len > 0 ? (size_t)len : 1;
        if (used + step >= cap) break;
        if (len > 0 && cp >= 0x20 && (cp < 0x7f || cp >= 0xa0))
            memcpy(out + used, s + i, step);
        else
            memset(out + used, len > 0 ? ' ' : '?', step);
        used += step;
        i += step;
        if (used + 3 < cap) fits = used;
    }
    if (i < n && cap > 3) {
        memcpy(out + fits, "...", 3);
        used = fits + 3;
    }
    out[used] = '\0';
}

void qw_gguf_kv_text(const qw_gguf *g, size_t i, char *out, size_t cap)
{
    const gguf_kv *kv = &g->parts[0].kv[i];
    if (cap == 0) return;
    if (kv->type == QW_GGUF_ARRAY) {
        const char *what = kv->elem == QW_GGUF_STRING ? "string" : kv->elem == QW_GGUF_BOOL ? "truth value"
                           : is_float(kv->elem)       ? "number"
                                                      : "integer";
        snprintf(out, cap, "[%zu %s%s]", kv->n, what, kv->n == 1 ? "" : "s");
    } else if (kv->type == QW_GGUF_STRING) {
        string_text((const char *)kv->value, kv->bytes, out, cap);
    } else if (kv->type == QW_GGUF_BOOL) {
        snprintf(out, cap, "%s", load_int(kv, 0) != 0 ? "true" : "false");
    } else if (is_float(kv->type)) {
        snprintf(out, cap, kv->type == QW_GGUF_F32 ? "%.7g" : "%.15g", load_float(kv, 0));
    } else if (kv->type == QW_GGUF_U64) {
        snprintf(out, cap, "%" PRIu64, load_le(kv->value, 8));
    } else {
        snprintf(out, cap, "%" PRId64, load_int(kv, 0));
    }
}

bool qw_gguf_has(const qw_gguf *g, const char *key)
{
    return qw_gguf_part_find(&g->parts[0], key) != NULL;
}

/* ---- typed reads ------------------------------------------------------------------------------ */

static qw_status find_key(const gguf_part *part, const char *key, const gguf_kv **out, qw_err *err)
{
    *out = qw_gguf_part_find(part, key);
    if (*out == NULL) return qw_fail(err, QW_E_FORMAT, "%s: key '%s' is missing", part->path, key);
    return QW_OK;
}

static qw_status wrong_type(const gguf_part *part, const gguf_kv *kv, const char *want, qw_err *err)
{
    bool array = kv->type == QW_GGUF_ARRAY;
    return qw_fail(err, QW_E_FORMAT, "%s: key '%.*s' is of type %s%s: want %s", part->path, (int)kv->key.n,
                   kv->key.s, array ? "array of " : "", qw_gguf_type_names[array ? kv->elem : kv->type], want);
}

qw_status qw_gguf_part_get_u64(const gguf_part *part, const char *key, uint64_t *out, qw_err *err)
{
    const gguf_kv *kv = NULL;
    QW_TRY(find_key(part, key, &kv, err));
    if (!is_integer(kv->type)) return wrong_type(part, kv, "an integer", err);
    int64_t v = load_int(kv, 0);
    if (v < 0 && is_signed(kv->type))
        return qw_fail(err, QW_E_FORMAT, "%s: key '%s' is %" PRId64 ": want 0 or more", part->path, key, v);
    *out = (uint64_t)v;
    return QW_OK;
}

qw_status qw_gguf_get_u64(const qw_gguf *g, const char *key, uint64_t *out, qw_err *err)
{
    return qw_gguf_part_get_u64(&g->parts[0], key, out, err);
}

static qw_status not_finite(const gguf_part *part, const char *key, qw_err *err)
{
    return qw_fail(err, QW_E_FORMAT, "%s: key '%s' is not a finite number", part->path, key);
}

qw_status qw_gguf_get_f64(const qw_gguf *g, const char *key, double *out, qw_err *err)
{
    const gguf_part *part = &g->parts[0];
    const gguf_kv *kv = NULL;
    QW_TRY(find_key(part, key, &kv, err));
    if (!is_float(kv->type)) return wrong_type(part, kv, "f32 or f64", err);
    double v = load_float(kv, 0);
    if (!isfinite(v)) return not_finite(part, key, err); /* 19 */
    *out = v;
    return QW_OK;
}

qw_status qw_gguf_get_bool(const qw_gguf *g, const char *key, bool *out, qw_err *err)
{
    const gguf_kv *kv = NULL;
    QW_TRY(find_key(&g->parts[0], key, &kv, err));
    if (kv->type != QW_GGUF_BOOL) return wrong_type(&g->parts[0], kv, "bool", err);
    *out = load_int(kv, 0) != 0;
    return QW_OK;
}

qw_status qw_gguf_get_str(const qw_gguf *g, const char *key, qw_text *out, qw_err *err)
{
    const gguf_kv *kv = NULL;
    QW_TRY(find_key(&g->parts[0], key, &kv, err));
    if (kv->type != QW_GGUF_STRING) return wrong_type(&g->parts[0], kv, "a string", err);
    *out = (qw_text){.s = (const char *)kv->value, .n = kv->bytes};
    return QW_OK;
}

/* Does an array of type `have` serve somebody who asks for `want`? *name says what was asked for. */
static bool elem_fits(qw_gguf_type have, qw_gguf_type want, const char **name)
{
    if (want == QW_GGUF_I32) {
        *name = "array of integers";
        return is_integer(have);
    }
    if (is_float(want)) {
        *name = "array of f32 or f64";
        return is_float(have);
    }
    *name = want == QW_GGUF_STRING ? "array of strings" : want == QW_GGUF_BOOL ? "array of bool"
                                                                               : "array of another type";
    return have == want;
}

qw_status qw_gguf_get_array(const qw_gguf *g, const char *key, qw_gguf_type elem, qw_gguf_array *out,
                            qw_err *err)
{
    const gguf_part *part = &g->parts[0];
    const gguf_kv *kv = NULL;
    const char *want = NULL;
    QW_TRY(find_key(part, key, &kv, err));
    bool fits = elem_fits(kv->elem, elem, &want);
    if (kv->type != QW_GGUF_ARRAY || !fits) return wrong_type(part, kv, want, err);
    for (size_t i = 0; i < kv->n && kv->elem == QW_GGUF_U64; i++)
        if (load_int(kv, i) < 0)
            return qw_fail(err, QW_E_FORMAT,
                           "%s: key '%s' holds %" PRIu64 " at position %zu: want less than 2^63",
                           part->path, key, load_le(kv->value + 8 * i, 8), i + 1);
    for (size_t i = 0; i < kv->n && is_float(kv->elem); i++)
        if (!isfinite(load_float(kv, i))) return not_finite(part, key, err); /* 19 */
    *out = (qw_gguf_array){.elem = kv->elem, .n = kv->n, .impl = kv};
    return QW_OK;
}

qw_text qw_gguf_array_str(const qw_gguf_array *a, size_t i)
{
    const gguf_kv *kv = a->impl;
    return (qw_text){.s = (const char *)kv->value + kv->spans[i].offset, .n = kv->spans[i].bytes};
}

int64_t qw_gguf_array_int(const qw_gguf_array *a, size_t i)
{
    return load_int(a->impl, i);
}

double qw_gguf_array_f64(const qw_gguf_array *a, size_t i)
{
    return load_float(a->impl, i);
}
