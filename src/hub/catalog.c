/* catalog.c: reads and checks the model catalogue.
 *
 * Owner: any thread; a catalogue never changes after it was opened. Contract: see catalog.h. The catalogue's
 * sums are what makes sources interchangeable: whatever server or package gives the bytes, only a file with
 * this size and SHA-256 gets the name, so a source that holds another file costs a line of text and nothing
 * else.
 */
#include "hub/catalog.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"

enum { FILE_BYTES_MAX = 4 << 20, ENTRIES_MAX = 4096, LIST_MAX = 1000, TEXT_BYTES_MAX = 1000 };

extern const char qw_catalog_json[];
extern const size_t qw_catalog_json_bytes;

/* A string field, copied; `need` says whether it must be there. */
static qw_status get_text(const json_t *o, const char *key, bool need, char **out, qw_err *err)
{
    json_t *v = json_object_get(o, key);
    if (!v && !need) return qw_strndup(out, "", 0, err);
    if (!json_is_string(v)) return qw_fail(err, QW_E_FORMAT, "\"%s\" is missing or not a text", key);
    size_t n = json_string_length(v);
    if (n > TEXT_BYTES_MAX)
        return qw_fail(err, QW_E_LIMIT, "\"%s\" is longer than %d bytes", key, TEXT_BYTES_MAX);
    const char *s = json_string_value(v);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] < 0x20 || s[i] == 0x7f)
            return qw_fail(err, QW_E_FORMAT, "\"%s\" holds a control character", key);
    return qw_strndup(out, s, n, err);
}

static qw_status get_list(const json_t *o, const char *key, bool need, char ***out, size_t *n, qw_err *err)
{
    json_t *v = json_object_get(o, key);
    *n = 0;
    if (!v && !need) return QW_OK;
    if (!json_is_array(v) || json_array_size(v) > LIST_MAX)
        return qw_fail(err, QW_E_FORMAT, "\"%s\" is not a list of at most %d texts", key, LIST_MAX);
    size_t count = json_array_size(v);
    QW_TRY(qw_alloc(out, count, sizeof(**out), "the catalogue", err));
    for (size_t i = 0; i < count; i++) {
        json_t *s = json_array_get(v, i);
        if (!json_is_string(s))
            return qw_fail(err, QW_E_FORMAT, "\"%s\" holds something that is not a text", key);
        QW_TRY(qw_strndup(&(*out)[i], json_string_value(s), json_string_length(s), err));
        *n = i + 1;
    }
    return QW_OK;
}

/* Slash-separated components of the small alphabet. */
static bool path_valid(const char *s)
{
    for (;;) {
        size_t n = strcspn(s, "/");
        if (!qw_hub_component_valid(s, n)) return false;
        if (!s[n]) return true;
        s += n + 1;
    }
}

static qw_status read_pip(const json_t *o, qw_hub_source *s, qw_err *err)
{
    size_t n_members = 0, n_packages = 0;
    char **members = NULL;
    s->kind = QW_HUB_SRC_PIP;
    QW_TRY(get_text(o, "version", true, &s->version, err));
    if (!qw_hub_component_valid(s->version, strlen(s->version)))
        return qw_fail(err, QW_E_FORMAT, "\"version\" is not a version");
    qw_status status = get_list(o, "packages", true, &s->packages, &n_packages, err);
    s->n_packages = n_packages;
    if (status == QW_OK) status = get_list(o, "members", true, &members, &n_members, err);
    if (status == QW_OK && (n_packages == 0 || n_members != n_packages))
        status = qw_fail(err, QW_E_FORMAT, "\"packages\" and \"members\" are not of one length");
    for (size_t i = 0; status == QW_OK && i < n_packages; i++)
        if (!qw_hub_component_valid(s->packages[i], strlen(s->packages[i])) || s->packages[i][0] == '-' ||
            !path_valid(members[i]))
            status = qw_fail(err, QW_E_FORMAT, "package %zu or its member has a bad name", i + 1);
    if (status == QW_OK) {
        s->members = members;
        return QW_OK;
    }
    for (size_t i = 0; i < n_members; i++) free(members[i]);
    free(members);
    return status;
}

static qw_status read_source(const json_t *o, qw_hub_source *s, qw_err *err)
{
    const char *type = json_string_value(json_object_get(o, "type"));
    if (!type) return qw_fail(err, QW_E_FORMAT, "a source without \"type\"");
    if (strcmp(type, "pip") == 0) return read_pip(o, s, err);
    if (strcmp(type, "url") == 0) {
        char host[256];
        bool plain;
        s->kind = QW_HUB_SRC_URL;
        QW_TRY(get_text(o, "url", true, &s->url, err));
        return qw_hub_url_check(s->url, host, &plain, err);
    }
    if (strcmp(type, "hf") != 0 && strcmp(type, "ms") != 0)
        return qw_fail(err, QW_E_UNSUPPORTED, "source type \"%.40s\" is not known", type);
    s->kind = type[0] == 'h' ? QW_HUB_SRC_HF : QW_HUB_SRC_MS;
    QW_TRY(get_text(o, "repo", true, &s->repo, err));
    QW_TRY(get_text(o, "file", true, &s->file, err));
    if (!path_valid(s->repo) || !path_valid(s->file))
        return qw_fail(err, QW_E_FORMAT, "a bad repository or file name");
    return QW_OK;
}

static qw_status read_names(qw_hub_entry *e, qw_err *err)
{
    if (!qw_hub_name_valid(e->id)) return qw_fail(err, QW_E_FORMAT, "\"%.100s\" is not a model name", e->id);
    for (size_t i = 0; i < e->n_aliases; i++)
        if (!qw_hub_name_valid(e->aliases[i]))
            return qw_fail(err, QW_E_FORMAT, "\"%.100s\" is not a model name", e->aliases[i]);
    if (!qw_hub_component_valid(e->file, strlen(e->file)))
        return qw_fail(err, QW_E_FORMAT, "\"%.100s\" is not a file name", e->file);
    return QW_OK;
}

static qw_status read_entry(const json_t *o, qw_hub_entry *e, qw_err *err)
{
    char *sum = NULL;
    QW_TRY(get_text(o, "id", true, &e->id, err));
    QW_TRY(get_list(o, "aliases", false, &e->aliases, &e->n_aliases, err));
    QW_TRY(get_text(o, "description", false, &e->description, err));
    QW_TRY(get_text(o, "licence", false, &e->licence, err));
    QW_TRY(get_text(o, "quantization", false, &e->quantization, err));
    QW_TRY(get_text(o, "file", true, &e->file, err));
    QW_TRY(read_names(e, err));
    QW_TRY(get_text(o, "sha256", true, &sum, err));
    bool good = qw_hub_digest_valid(strlen(sum) == 64 ? sum : "");
    if (good) memcpy(e->sha256, sum, 65);
    free(sum);
    if (!good) return qw_fail(err, QW_E_FORMAT, "\"sha256\" is not 64 lower-case hexadecimal digits");
    json_t *size = json_object_get(o, "size");
    if (!json_is_integer(size) || json_integer_value(size) <= 0)
        return qw_fail(err, QW_E_FORMAT, "\"size\" is not a positive number");
    e->bytes = (uint64_t)json_integer_value(size);
    json_t *sources = json_object_get(o, "sources");
    size_t n = json_array_size(sources);
    if (n == 0 || n > LIST_MAX) return qw_fail(err, QW_E_FORMAT, "\"sources\" is not a list of sources");
    QW_TRY(qw_alloc(&e->sources, n, sizeof(*e->sources), "the catalogue", err));
    e->n_sources = n;
    for (size_t i = 0; i < n; i++) {
        qw_status status = read_source(json_array_get(sources, i), &e->sources[i], err);
        if (status != QW_OK) {
            qw_err_prefix(err, "source %zu", i + 1);
            return status;
        }
    }
    return QW_OK;
}

static qw_status read_hosts(const json_t *root, qw_hub_catalog *c, qw_err *err)
{
    const json_t *hosts = json_object_get(root, "hosts");
    char host[256];
    bool plain;
    QW_TRY(get_text(hosts, "hf", true, &c->hf_base, err));
    QW_TRY(get_text(hosts, "ms", true, &c->ms_base, err));
    QW_TRY(qw_hub_url_check(c->hf_base, host, &plain, err));
    return qw_hub_url_check(c->ms_base, host, &plain, err);
}

static qw_status read_root(const json_t *root, qw_hub_catalog *c, qw_err *err)
{
    if (json_integer_value(json_object_get(root, "format")) != 1)
        return qw_fail(err, QW_E_UNSUPPORTED, "\"format\" is not 1");
    QW_TRY(read_hosts(root, c, err));
    QW_TRY(get_text(root, "default", true, &c->default_id, err));
    json_t *models = json_object_get(root, "models");
    size_t n = json_array_size(models);
    if (!json_is_array(models) || n > ENTRIES_MAX)
        return qw_fail(err, QW_E_FORMAT, "\"models\" is not a list of at most %d models", ENTRIES_MAX);
    QW_TRY(qw_alloc(&c->entries, n, sizeof(*c->entries), "the catalogue", err));
    c->n_entries = n;
    for (size_t i = 0; i < n; i++) {
        qw_status status = read_entry(json_array_get(models, i), &c->entries[i], err);
        if (status != QW_OK) {
            qw_err_prefix(err, "model %zu", i + 1);
            return status;
        }
    }
    if (!qw_hub_catalog_find(c, c->default_id))
        return qw_fail(err, QW_E_FORMAT, "the default model \"%.100s\" is not listed", c->default_id);
    return QW_OK;
}

qw_status qw_hub_catalog_open(const char *path, qw_hub_catalog **out, qw_err *err)
{
    char *data = NULL;
    size_t n = qw_catalog_json_bytes;
    json_t *root = NULL;
    json_error_t json_err;
    qw_hub_catalog *c = NULL;
    qw_status status;

    *out = NULL;
    QW_TRY(qw_alloc(&c, 1, sizeof(*c), "the catalogue", err));
    if (path) QW_TRY_GOTO(qw_file_read(path, FILE_BYTES_MAX, &data, &n, err));
    root = json_loadb(path ? data : qw_catalog_json, n, JSON_REJECT_DUPLICATES, &json_err);
    if (!root) {
        status = qw_fail(err, QW_E_FORMAT, "catalogue %.200s: line %d: %.100s", path ? path : "(built in)",
                         json_err.line, json_err.text);
        goto fail;
    }
    status = read_root(root, c, err);
    if (status != QW_OK) {
        qw_err_prefix(err, "catalogue %.200s", path ? path : "(built in)");
        goto fail;
    }
    *out = c;
    c = NULL;
fail:
    json_decref(root);
    free(data);
    qw_hub_catalog_close(c);
    return status;
}

static void free_entry(qw_hub_entry *e)
{
    free(e->id);
    for (size_t i = 0; i < e->n_aliases; i++) free(e->aliases[i]);
    free(e->aliases);
    free(e->description);
    free(e->licence);
    free(e->quantization);
    free(e->file);
    for (size_t i = 0; i < e->n_sources; i++) qw_hub_source_clear(&e->sources[i]);
    free(e->sources);
}

void qw_hub_catalog_close(qw_hub_catalog *c)
{
    if (!c) return;
    for (size_t i = 0; i < c->n_entries; i++) free_entry(&c->entries[i]);
    free(c->entries);
    free(c->default_id);
    free(c->hf_base);
    free(c->ms_base);
    free(c);
}

const qw_hub_entry *qw_hub_catalog_find(const qw_hub_catalog *c, const char *name)
{
    for (size_t i = 0; i < c->n_entries; i++) {
        const qw_hub_entry *e = &c->entries[i];
        if (strcmp(e->id, name) == 0) return e;
        for (size_t j = 0; j < e->n_aliases; j++)
            if (strcmp(e->aliases[j], name) == 0) return e;
    }
    return NULL;
}
