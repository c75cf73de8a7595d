/* hub.c: looking at the store and removing from it (the pulling half is pull.c).
 *
 * Owner: one thread per qw_hub. Contract: see hub.h. Looking takes no lock: manifests appear and go by rename
 * and unlink, so a reader sees a model whole or not at all.
 */
#include "hub/hub.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "formats/gguf.h"
#include "hub/hub_internal.h"
#include "hub/packed.h"
#include "kernels/blocks.h"

enum { NEAR_MAX = 4, NEAR_DISTANCE = 4 };

static const char default_model[] = "qwen2.5-coder:0.5b";

const char *qw_hub_default_model(void)
{
    return default_model;
}

qw_status qw_hub_open(const char *catalog_path, qw_hub **out, qw_err *err)
{
    qw_hub *hub = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&hub, 1, sizeof(*hub), "the model store", err));
    QW_TRY_GOTO(qw_hub_catalog_open(catalog_path, &hub->catalog, err));
    QW_TRY_GOTO(qw_hub_store_open(&hub->store, err));
    *out = hub;
    return QW_OK;
fail:
    qw_hub_close(hub);
    return status;
}

void qw_hub_close(qw_hub *hub)
{
    if (!hub) return;
    qw_hub_catalog_close(hub->catalog);
    free(hub);
}

/* ---- describing -------------------------------------------------------------------------------- */

/* general.file_type, for the types qw reads. */
static const struct {
    uint64_t id;
    const char *name;
} file_types[] = {
    {0, "F32"},     {1, "F16"},     {2, "Q4_0"},    {3, "Q4_1"},    {7, "Q8_0"},    {8, "Q5_0"},
    {9, "Q5_1"},    {10, "Q2_K"},   {11, "Q3_K_S"}, {12, "Q3_K_M"}, {13, "Q3_K_L"}, {14, "Q4_K_S"},
    {15, "Q4_K_M"}, {16, "Q5_K_S"}, {17, "Q5_K_M"}, {18, "Q6_K"},   {21, "Q2_K_S"}, {25, "IQ4_NL"},
    {30, "IQ4_XS"}, {32, "BF16"},   {38, "MXFP4"},  {19, "IQ2_XXS"}, {20, "IQ2_XS"}, {22, "IQ3_XS"},
    {23, "IQ3_XXS"}, {24, "IQ1_S"}, {26, "IQ3_S"},  {27, "IQ3_M"},  {28, "IQ2_S"},  {29, "IQ2_M"},
    {31, "IQ1_M"},  {36, "TQ1_0"},  {37, "TQ2_0"},  {39, "NVFP4"},
};

void qw_hub_describe(const char *path, char quantization[32], char architecture[32])
{
    qw_gguf *g = NULL;
    uint64_t type;
    qw_text arch;
    quantization[0] = architecture[0] = 0;
    if (qw_gguf_open(path, &g, NULL) != QW_OK) return;
    if (qw_gguf_get_str(g, "general.architecture", &arch, NULL) == QW_OK && arch.n < 32 &&
        qw_hub_component_valid(arch.s, arch.n))
        snprintf(architecture, 32, "%.*s", (int)arch.n, arch.s);
    if (qw_gguf_get_u64(g, "general.file_type", &type, NULL) == QW_OK)
        for (size_t i = 0; i < sizeof(file_types) / sizeof(file_types[0]); i++)
            if (file_types[i].id == type) snprintf(quantization, 32, "%s", file_types[i].name);
    qw_gguf_close(g);
}

static void fill_entry(qw_hub_model *out, const qw_hub_entry *e)
{
    out->in_catalog = true;
    out->description = e->description;
    out->licence = e->licence;
    if (out->installed) return;
    snprintf(out->name, sizeof(out->name), "%s", e->id);
    snprintf(out->source, sizeof(out->source), "%s", e->id);
    snprintf(out->quantization, sizeof(out->quantization), "%.31s", e->quantization);
    snprintf(out->file, sizeof(out->file), "%.255s", e->file);
    memcpy(out->sha256, e->sha256, sizeof(out->sha256));
    out->bytes = e->bytes;
    out->n_parts = 1;
}

static const qw_hub_entry *entry_by_id(const qw_hub *hub, const char *id)
{
    const qw_hub_entry *e = qw_hub_catalog_find(hub->catalog, id);
    return e && strcmp(e->id, id) == 0 ? e : NULL;
}

static qw_status fill_installed(const qw_hub *hub, const char *name, qw_hub_model *out, qw_err *err)
{
    qw_hub_manifest m;
    memset(out, 0, sizeof(*out));
    out->description = out->licence = "";
    QW_TRY(qw_hub_manifest_read(&hub->store, name, &m, err));
    out->installed = true;
    snprintf(out->name, sizeof(out->name), "%s", m.name);
    snprintf(out->source, sizeof(out->source), "%s", m.source);
    snprintf(out->quantization, sizeof(out->quantization), "%s", m.quantization);
    snprintf(out->architecture, sizeof(out->architecture), "%s", m.architecture);
    snprintf(out->file, sizeof(out->file), "%s", m.files[0].name);
    memcpy(out->sha256, m.files[0].sha256, sizeof(out->sha256));
    out->bytes = qw_hub_manifest_bytes(&m);
    out->n_parts = m.n_files;
    out->added_s = m.added_s;
    const qw_hub_entry *e = entry_by_id(hub, m.name);
    if (e) fill_entry(out, e);
    qw_hub_manifest_whole(&hub->store, &m, out->fault);
    qw_status status = qw_hub_manifest_path(&hub->store, &m, out->path, err);
    qw_hub_manifest_clear(&m);
    return status;
}

static void fill_packed(qw_hub_model *m)
{
    char path[QW_HUB_PATH_MAX];
    if (m->path[0]) qw_hub_packed_identity(m->path, m->identity);
    m->packed_bytes = qw_hub_packed_bytes(m->identity, path);
}

/* ---- list -------------------------------------------------------------------------------------- */

qw_status qw_hub_list(const qw_hub *hub, bool catalog, qw_hub_model **out, size_t *n, qw_err *err)
{
    char **names = NULL;
    size_t n_names = 0, k = 0;
    qw_hub_model *list = NULL;
    qw_status status;
    *out = NULL;
    *n = 0;
    QW_TRY(qw_hub_store_names(&hub->store, &names, &n_names, err));
    QW_TRY_GOTO(qw_alloc(&list, n_names + hub->catalog->n_entries, sizeof(*list), "the list of models", err));
    for (size_t i = 0; i < n_names; i++) {
        qw_err why = {0};
        if (fill_installed(hub, names[i], &list[k], &why) == QW_E_NOT_FOUND) continue; /* removed just now */
        if (why.status != QW_OK) {
            /* A record nobody can read is shown, not hidden: `qw rm` and `qw pull` work on it. */
            snprintf(list[k].name, sizeof(list[k].name), "%s", names[i]);
            snprintf(list[k].fault, sizeof(list[k].fault), "its record is damaged");
            list[k].installed = true;
        }
        fill_packed(&list[k++]);
    }
    for (size_t i = 0; catalog && i < hub->catalog->n_entries; i++) {
        const qw_hub_entry *e = &hub->catalog->entries[i];
        bool there = false;
        for (size_t j = 0; j < n_names; j++) there |= strcmp(names[j], e->id) == 0;
        if (there) continue;
        fill_entry(&list[k++], e);
    }
    *out = list;
    *n = k;
fail:
    qw_hub_names_free(names, n_names);
    return status;
}

/* ---- find -------------------------------------------------------------------------------------- */

/* Adds `text` to a list "a, b, c" unless it is there. */
static void add_near(char list[512], const char *text, size_t *n)
{
    size_t at = strlen(list);
    if (*n >= NEAR_MAX || strstr(list, text) || at + strlen(text) + 3 > 512) return;
    snprintf(list + at, 512 - at, "%s%s", at ? ", " : "", text);
    ++*n;
}

static bool near(const char *typed, const char *name)
{
    size_t n = strlen(typed);
    return strncmp(typed, name, n) == 0 || (n > 3 && strstr(name, typed)) ||
           qw_hub_distance(typed, name, NEAR_DISTANCE) <= NEAR_DISTANCE;
}

qw_status qw_hub_unknown(const qw_hub *hub, const char *name, qw_err *err)
{
    char list[512] = "";
    char **names = NULL;
    size_t n = 0, n_near = 0;
    if (qw_hub_store_names(&hub->store, &names, &n, NULL) == QW_OK)
        for (size_t i = 0; i < n; i++)
            if (near(name, names[i])) add_near(list, names[i], &n_near);
    qw_hub_names_free(names, n);
    for (size_t i = 0; i < hub->catalog->n_entries; i++) {
        const qw_hub_entry *e = &hub->catalog->entries[i];
        bool is_near = near(name, e->id);
        for (size_t j = 0; j < e->n_aliases; j++) is_near |= near(name, e->aliases[j]);
        if (is_near) add_near(list, e->id, &n_near);
    }
    if (list[0])
        return qw_fail(err, QW_E_NOT_FOUND,
                       "no model is called %.100s; near names: %s (`qw list --all` shows all)", name, list);
    return qw_fail(err, QW_E_NOT_FOUND, "no model is called %.100s; `qw list --all` shows what there is",
                   name);
}

static qw_status not_installed(const qw_hub *hub, const char *name, qw_err *err)
{
    const qw_hub_entry *e = qw_hub_catalog_find(hub->catalog, name);
    char size[32];
    if (!e) return qw_hub_unknown(hub, name, err);
    qw_hub_size_text(e->bytes, size);
    return qw_fail(err, QW_E_NOT_FOUND, "%s is not installed; `qw pull %s` fetches it (%s)", e->id, e->id,
                   size);
}

/* The installed names that begin with `start`; *found is the only one. */
static qw_status by_prefix(const qw_hub *hub, const char *start, char found[QW_HUB_NAME_MAX], qw_err *err)
{
    char list[512] = "";
    char **names = NULL;
    size_t n = 0, n_hits = 0, n_near = 0;
    QW_TRY(qw_hub_store_names(&hub->store, &names, &n, err));
    for (size_t i = 0; i < n; i++) {
        if (strncmp(names[i], start, strlen(start)) != 0) continue;
        n_hits++;
        add_near(list, names[i], &n_near);
        snprintf(found, QW_HUB_NAME_MAX, "%s", names[i]);
    }
    qw_hub_names_free(names, n);
    if (n_hits == 1) return QW_OK;
    if (n_hits > 1)
        return qw_fail(err, QW_E_NOT_FOUND, "%.100s may be %s: write more of the name", start, list);
    return not_installed(hub, start, err);
}

/* Whether a record of that name exists, readable or not. */
static bool recorded(const qw_hub *hub, const char *name)
{
    qw_hub_manifest m;
    qw_status status = qw_hub_manifest_read(&hub->store, name, &m, NULL);
    if (status == QW_OK) qw_hub_manifest_clear(&m);
    return status == QW_OK || status == QW_E_FORMAT;
}

/* What a typed name means among the installed models. */
static qw_status installed_name(const qw_hub *hub, const char *typed, char out[QW_HUB_NAME_MAX], qw_err *err)
{
    char name[QW_HUB_NAME_MAX];
    QW_TRY(qw_hub_name_normal(typed, name, err));
    const qw_hub_entry *e = qw_hub_catalog_find(hub->catalog, name);
    const char *sure = recorded(hub, name) ? name : e && recorded(hub, e->id) ? e->id : NULL;
    if (!sure) return by_prefix(hub, name, out, err);
    snprintf(out, QW_HUB_NAME_MAX, "%s", sure);
    return QW_OK;
}

qw_status qw_hub_find(const qw_hub *hub, const char *name, qw_hub_model *out, qw_err *err)
{
    char found[QW_HUB_NAME_MAX];
    QW_TRY(installed_name(hub, name, found, err));
    return fill_installed(hub, found, out, err);
}

static qw_status find_path(const qw_hub *hub, const char *name, char *path, size_t cap, qw_err *err)
{
    qw_hub_model *m = NULL;
    QW_TRY(qw_alloc(&m, 1, sizeof(*m), "a model's description", err));
    qw_status status = qw_hub_find(hub, name, m, err);
    if (status == QW_OK && m->fault[0])
        status = qw_fail(err, QW_E_CORRUPT, "%s: %s; `qw pull %s` repairs it", m->name, m->fault, m->name);
    if (status == QW_OK && snprintf(path, cap, "%s", m->path) >= (int)cap)
        status = qw_fail(err, QW_E_LIMIT, "the path of model %s is too long", m->name);
    free(m);
    return status;
}

qw_status qw_hub_resolve(const char *name_or_path, char *path, size_t cap, qw_err *err)
{
    QW_ASSERT(cap > 0 && cap <= INT32_MAX);
    path[0] = 0;
    if (qw_hub_is_path(name_or_path)) {
        if (snprintf(path, cap, "%s", name_or_path) >= (int)cap)
            return qw_fail(err, QW_E_LIMIT, "the path %.100s... is too long", name_or_path);
        return QW_OK;
    }
    qw_hub *hub = NULL;
    QW_TRY(qw_hub_open(NULL, &hub, err));
    qw_status status = find_path(hub, name_or_path, path, cap, err);
    qw_hub_close(hub);
    return status;
}

/* ---- verify and remove ------------------------------------------------------------------------- */

qw_status qw_hub_verify(const qw_hub *hub, const char *name, const qw_hub_watch *watch, qw_hub_model *out,
                        qw_err *err)
{
    qw_hub_manifest m;
    QW_TRY(qw_hub_find(hub, name, out, err));
    QW_TRY(qw_hub_manifest_read(&hub->store, out->name, &m, err));
    qw_hub_meter meter = {.watch = watch,
                          .now = {.model = out->name, .source = "the store", .n_parts = 1, .part = 1}};
    qw_status status = qw_hub_manifest_verify(&hub->store, &m, &meter, err);
    qw_hub_manifest_clear(&m);
    if (status != QW_E_CORRUPT || !err) return status;
    size_t at = strlen(err->text);
    snprintf(err->text + at, sizeof(err->text) - at, "; `qw pull %s` repairs it", out->name);
    return status;
}

/* What `qw rm NAME` means: an installed model, or one of which only a partial download or a broken record is
 * there. Never a beginning of a name: removal wants the whole one. */
static qw_status removal_name(const qw_hub *hub, const char *typed, char out[QW_HUB_NAME_MAX], qw_err *err)
{
    char partial[QW_HUB_PATH_MAX];
    struct stat st;
    QW_TRY(qw_hub_name_normal(typed, out, err));
    const qw_hub_entry *e = qw_hub_catalog_find(hub->catalog, out);
    qw_hub_partial_path(&hub->store, out, partial);
    if (recorded(hub, out) || lstat(partial, &st) == 0) return QW_OK;
    if (e) {
        snprintf(out, QW_HUB_NAME_MAX, "%s", e->id);
        qw_hub_partial_path(&hub->store, out, partial);
        if (recorded(hub, out) || lstat(partial, &st) == 0) return QW_OK;
        return qw_fail(err, QW_E_NOT_FOUND, "%s is not installed", out);
    }
    return qw_hub_unknown(hub, out, err);
}

qw_status qw_hub_remove(qw_hub *hub, const char *name, const qw_hub_watch *watch, uint64_t *freed_bytes,
                        qw_err *err)
{
    char found[QW_HUB_NAME_MAX], partial[QW_HUB_PATH_MAX];
    qw_hub_manifest m;
    int lock = -1;
    *freed_bytes = 0;
    QW_TRY(removal_name(hub, name, found, err));
    QW_TRY(qw_hub_store_make(&hub->store, err));
    qw_hub_meter meter = {.watch = watch,
                          .now = {.model = found, .source = "the store", .n_parts = 1, .part = 1}};
    QW_TRY(qw_hub_lock(&hub->store, found, &meter, &lock, err));
    qw_status status = qw_hub_manifest_read(&hub->store, found, &m, err);
    if (status == QW_E_FORMAT || status == QW_E_NOT_FOUND) {
        /* No blob is known to be its own: the record alone goes. */
        memset(&m, 0, sizeof(m));
        snprintf(m.name, sizeof(m.name), "%s", found);
        status = QW_OK;
    }
    if (status == QW_OK) status = qw_hub_uncommit(&hub->store, &m, &meter, freed_bytes, err);
    qw_hub_manifest_clear(&m);
    qw_hub_partial_path(&hub->store, found, partial);
    if (status == QW_OK) status = qw_hub_remove_tree(partial, err);
    qw_hub_unlock(lock);
    return status;
}
