/* manifest.c: the record of one stored model (HOME/models/NAME.json), read, written and checked.
 *
 * Owner: the thread of the caller. Contract: see store.h. A manifest is read with the same suspicion as a
 * file from the network: names and sums in it decide paths, so they pass names.c first.
 */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/mem.h"
#include "hub/manifest.h"

enum { MANIFEST_BYTES_MAX = 1 << 20 };

void qw_hub_manifest_clear(qw_hub_manifest *m)
{
    free(m->files);
    memset(m, 0, sizeof(*m));
}

uint64_t qw_hub_manifest_bytes(const qw_hub_manifest *m)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < m->n_files; i++)
        if (__builtin_add_overflow(sum, m->files[i].bytes, &sum)) return UINT64_MAX;
    return sum;
}

void qw_hub_manifest_file(const qw_hub_store *s, const char *name, char out[QW_HUB_PATH_MAX])
{
    char leaf[QW_HUB_NAME_MAX];
    qw_hub_name_to_file(name, leaf);
    snprintf(out, QW_HUB_PATH_MAX, "%s/models/%s.json", s->home, leaf);
}

void qw_hub_parts_path(const qw_hub_store *s, const char *name, char out[QW_HUB_PATH_MAX])
{
    char leaf[QW_HUB_NAME_MAX];
    qw_hub_name_to_file(name, leaf);
    snprintf(out, QW_HUB_PATH_MAX, "%s/models/%s.parts", s->home, leaf);
}

static void copy_text(const json_t *o, const char *key, char *out, size_t cap)
{
    const char *s = json_string_value(json_object_get(o, key));
    size_t n = 0;
    for (; s && s[n] && n + 1 < cap; n++) out[n] = (unsigned char)s[n] < 0x20 || s[n] == 0x7f ? '?' : s[n];
    out[n] = 0;
}

static bool read_file(const json_t *o, qw_hub_file *f)
{
    const char *name = json_string_value(json_object_get(o, "name"));
    const char *sum = json_string_value(json_object_get(o, "sha256"));
    json_t *size = json_object_get(o, "size");
    if (!name || !sum || !json_is_integer(size) || json_integer_value(size) <= 0) return false;
    if (!qw_hub_component_valid(name, strlen(name)) || strlen(sum) != 64 || !qw_hub_digest_valid(sum))
        return false;
    snprintf(f->name, sizeof(f->name), "%s", name);
    memcpy(f->sha256, sum, 65);
    f->bytes = (uint64_t)json_integer_value(size);
    return true;
}

static qw_status read_root(const json_t *root, const char *name, qw_hub_manifest *m, qw_err *err)
{
    const json_t *files = json_object_get(root, "files");
    size_t n = json_array_size(files);
    if (json_integer_value(json_object_get(root, "format")) != 1)
        return qw_fail(err, QW_E_FORMAT, "unknown format");
    copy_text(root, "name", m->name, sizeof(m->name));
    if (strcmp(m->name, name) != 0) return qw_fail(err, QW_E_FORMAT, "it describes another model");
    copy_text(root, "id", m->id, sizeof(m->id));
    copy_text(root, "source", m->source, sizeof(m->source));
    copy_text(root, "quantization", m->quantization, sizeof(m->quantization));
    copy_text(root, "architecture", m->architecture, sizeof(m->architecture));
    m->added_s = json_integer_value(json_object_get(root, "added"));
    if (n == 0 || n > QW_HUB_PARTS_MAX) return qw_fail(err, QW_E_FORMAT, "it lists no files");
    QW_TRY(qw_alloc(&m->files, n, sizeof(*m->files), "a model's manifest", err));
    m->n_files = n;
    for (size_t i = 0; i < n; i++)
        if (!read_file(json_array_get(files, i), &m->files[i]))
            return qw_fail(err, QW_E_FORMAT, "file %zu is not described", i + 1);
    return QW_OK;
}

qw_status qw_hub_manifest_read(const qw_hub_store *s, const char *name, qw_hub_manifest *out, qw_err *err)
{
    char path[QW_HUB_PATH_MAX];
    char *data = NULL;
    size_t n = 0;
    memset(out, 0, sizeof(*out));
    qw_hub_manifest_file(s, name, path);
    QW_TRY(qw_file_read(path, MANIFEST_BYTES_MAX, &data, &n, err));
    json_t *root = json_loadb(data, n, JSON_REJECT_DUPLICATES, NULL);
    free(data);
    qw_status status = root ? read_root(root, name, out, err) : qw_fail(err, QW_E_FORMAT, "not JSON");
    json_decref(root);
    if (status == QW_OK) return QW_OK;
    qw_hub_manifest_clear(out);
    qw_err_prefix(err, "the record of model %s is damaged, pull it again from its source (%.300s)", name,
                  path);
    return status;
}

qw_status qw_hub_manifest_write(const qw_hub_store *s, const qw_hub_manifest *m, qw_err *err)
{
    char path[QW_HUB_PATH_MAX];
    json_t *files = json_array();
    for (size_t i = 0; i < m->n_files; i++)
        json_array_append_new(files, json_pack("{s:s, s:I, s:s}", "name", m->files[i].name, "size",
                                               (json_int_t)m->files[i].bytes, "sha256", m->files[i].sha256));
    json_t *root = json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:I, s:o}", "format", 1, "name", m->name, "id",
                             m->id, "source", m->source, "quantization", m->quantization, "architecture",
                             m->architecture, "added", (json_int_t)m->added_s, "files", files);
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    json_decref(root);
    if (!text) return qw_fail(err, QW_E_MEMORY, "out of memory: writing the record of model %s", m->name);
    qw_hub_manifest_file(s, m->name, path);
    qw_status status = qw_file_write(path, text, strlen(text), err);
    free(text);
    return status;
}

qw_status qw_hub_manifest_path(const qw_hub_store *s, const qw_hub_manifest *m, char out[QW_HUB_PATH_MAX],
                               qw_err *err)
{
    if (m->n_files == 1) return qw_hub_blob_path(s, m->files[0].sha256, out, err);
    char folder[QW_HUB_PATH_MAX];
    qw_hub_parts_path(s, m->name, folder);
    if (snprintf(out, QW_HUB_PATH_MAX, "%s/%s", folder, m->files[0].name) >= QW_HUB_PATH_MAX)
        return qw_fail(err, QW_E_LIMIT, "the path of model %s is too long", m->name);
    return QW_OK;
}

/* Path i of the model: the blob, or the link that the loader opens. */
static bool file_path(const qw_hub_store *s, const qw_hub_manifest *m, size_t i, bool link,
                      char out[QW_HUB_PATH_MAX])
{
    char folder[QW_HUB_PATH_MAX];
    if (!link) return qw_hub_blob_path(s, m->files[i].sha256, out, NULL) == QW_OK;
    qw_hub_parts_path(s, m->name, folder);
    return snprintf(out, QW_HUB_PATH_MAX, "%s/%s", folder, m->files[i].name) < QW_HUB_PATH_MAX;
}

bool qw_hub_manifest_whole(const qw_hub_store *s, const qw_hub_manifest *m, char fault[160])
{
    char path[QW_HUB_PATH_MAX];
    struct stat st;
    fault[0] = 0;
    for (size_t i = 0; i < m->n_files; i++) {
        for (int link = 0; link <= (m->n_files > 1); link++) {
            if (!file_path(s, m, i, link, path) || stat(path, &st) != 0 || !S_ISREG(st.st_mode)) {
                snprintf(fault, 160, "%.80s is missing from the store", m->files[i].name);
                return false;
            }
            if ((uint64_t)st.st_size != m->files[i].bytes) {
                snprintf(fault, 160, "%.60s has %lld bytes in the store, %llu are right", m->files[i].name,
                         (long long)st.st_size, (unsigned long long)m->files[i].bytes);
                return false;
            }
        }
    }
    return true;
}

/* What is read is what the loader reads: of a split model the links, which may be other files than the blobs
 * after somebody replaced one. */
qw_status qw_hub_manifest_verify(const qw_hub_store *s, const qw_hub_manifest *m, qw_hub_meter *meter,
                                 qw_err *err)
{
    char path[QW_HUB_PATH_MAX], sum[65], fault[160];
    if (!qw_hub_manifest_whole(s, m, fault)) return qw_fail(err, QW_E_CORRUPT, "%s: %s", m->name, fault);
    meter->now.n_parts = m->n_files;
    for (size_t i = 0; i < m->n_files; i++) {
        uint64_t bytes = 0;
        meter->now.part = i + 1;
        if (!file_path(s, m, i, m->n_files > 1, path))
            return qw_fail(err, QW_E_LIMIT, "the path of %s is too long", m->name);
        QW_TRY(qw_hub_sha256_file(path, meter, sum, &bytes, err));
        if (strcmp(sum, m->files[i].sha256) != 0)
            return qw_fail(err, QW_E_CORRUPT, "%s: %s is damaged: its SHA-256 is %.16s..., %.16s... is right",
                           m->name, m->files[i].name, sum, m->files[i].sha256);
    }
    return QW_OK;
}
