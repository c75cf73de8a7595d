/* pull.c: brings a model into the store.
 *
 * Owner: the thread of the caller. Contract: see hub.h. The path is: what is meant (identify), the model's
 * lock, what is there already (present), every file from the first source that can give it (fetch_file), its
 * sum on the temporary file, and the commit. A source fails with one line and the next is tried; only what no
 * source could change (space, a disk error, Ctrl-C) ends the pull.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "formats/gguf.h"
#include "hub/fetch.h"
#include "hub/hub_internal.h"
#include "hub/pip.h"

enum { FOLDER_MAX = QW_HUB_PATH_MAX - 256 };

typedef struct pull {
    qw_hub *hub;
    const qw_hub_pull_options *options;
    qw_hub_meter meter;
    const qw_hub_entry *entry; /* what the name must be, or NULL */
    qw_hub_source own;         /* owns: the source that was given, when one was */
    const qw_hub_source *sources;
    size_t n_sources;
    qw_hub_manifest want;    /* owns: name, files; sums and sizes empty where nobody knows them yet */
    char **staged;           /* owns [n_files]: where the verified files lie */
    char folder[FOLDER_MAX]; /* HOME/partial/NAME */
} pull;

/* ---- what is meant ----------------------------------------------------------------------------- */

/* A source that was given: name from --name or from the file. */
static qw_status identify_source(pull *p, qw_err *err)
{
    char file[256];
    QW_TRY(qw_hub_source_file_name(&p->own, file, err));
    if (p->options->name) QW_TRY(qw_hub_name_normal(p->options->name, p->want.name, err));
    else QW_TRY(qw_hub_name_from_gguf(file, p->want.name, err));
    /* A catalogue name may be given to a local copy, since only the right file gets it. */
    p->entry = qw_hub_catalog_find(p->hub->catalog, p->want.name);
    if (p->entry) snprintf(p->want.name, sizeof(p->want.name), "%s", p->entry->id);
    p->sources = &p->own;
    p->n_sources = 1;
    snprintf(p->want.source, sizeof(p->want.source), "%.2047s", p->options->spec);
    if (p->entry) snprintf(p->want.source, sizeof(p->want.source), "%s", p->entry->id);
    else if (p->own.kind == QW_HUB_SRC_FILE) {
        char *full = realpath(p->own.url, NULL);
        if (!full) return qw_fail_errno(err, "%.400s", p->own.url);
        bool fits = strlen(full) < sizeof(p->want.source) && qw_utf8_valid(full, strlen(full));
        snprintf(p->want.source, sizeof(p->want.source), "%.2047s", fits ? full : "");
        free(full);
    }
    return QW_OK;
}

/* An installed model that is not in the catalogue: from where it came. */
static qw_status identify_installed(pull *p, const char *name, qw_err *err)
{
    qw_hub_manifest m;
    qw_status status = qw_hub_manifest_read(&p->hub->store, name, &m, err);
    if (status == QW_E_NOT_FOUND) return qw_hub_unknown(p->hub, name, err);
    QW_TRY(status);
    snprintf(p->want.name, sizeof(p->want.name), "%s", name);
    memcpy(p->want.source, m.source, sizeof(p->want.source));
    qw_hub_manifest_clear(&m);
    if (qw_hub_source_parse(p->want.source, &p->own, NULL) != QW_OK)
        return qw_fail(err, QW_E_NOT_FOUND, "%s: its record names no source to fetch it from", name);
    p->sources = &p->own;
    p->n_sources = 1;
    return QW_OK;
}

static qw_status identify_name(pull *p, qw_err *err)
{
    char name[QW_HUB_NAME_MAX];
    QW_TRY(qw_hub_name_normal(p->options->spec, name, err));
    p->entry = qw_hub_catalog_find(p->hub->catalog, name);
    if (!p->entry) {
        if (p->options->name)
            return qw_fail(err, QW_E_ARG, "--name goes with a source, not with the name %s", name);
        return identify_installed(p, name, err);
    }
    snprintf(p->want.name, sizeof(p->want.name), "%s", p->entry->id);
    snprintf(p->want.source, sizeof(p->want.source), "%s", p->entry->id);
    if (p->options->name) {
        QW_TRY(qw_hub_name_normal(p->options->name, p->want.name, err));
        const qw_hub_entry *other = qw_hub_catalog_find(p->hub->catalog, p->want.name);
        if (other && other != p->entry)
            return qw_fail(err, QW_E_ARG, "%s is the name of another model of the catalogue", p->want.name);
    }
    p->sources = p->entry->sources;
    p->n_sources = p->entry->n_sources;
    return QW_OK;
}

/* A stored file's name: what the source calls it, with everything outside the small alphabet made '-'. */
static void tidy_file_name(char *file)
{
    for (char *c = file; *c; c++)
        if (!qw_hub_component_valid(c, 1) && *c != '.') *c = '-';
    if (file[0] == '.') file[0] = '-';
    if (strlen(file) > 200) memmove(file, file + strlen(file) - 200, 201);
    if (file[0] == '.') file[0] = '-';
}

/* The files the model consists of: one, or as many as the name of the first part says. */
static qw_status plan_files(pull *p, qw_err *err)
{
    char file[256];
    size_t stem, no, count = 1;
    if (p->entry) snprintf(file, sizeof(file), "%.255s", p->entry->file);
    else {
        QW_TRY(qw_hub_source_file_name(&p->own, file, err));
        tidy_file_name(file);
    }
    if (!p->entry && qw_hub_split_parse(file, &stem, &no, &count)) {
        if (no != 1)
            return qw_fail(err, QW_E_ARG,
                           "%s is a part of a split model: give the first part, -00001-of-%05zu", file,
                           count);
        if (count < 1 || count > QW_HUB_PARTS_MAX)
            return qw_fail(err, QW_E_LIMIT, "%s: a model has at most %d parts", file, QW_HUB_PARTS_MAX);
    } else count = 1;
    QW_TRY(qw_alloc(&p->want.files, count, sizeof(*p->want.files), "a model's record", err));
    QW_TRY(qw_alloc(&p->staged, count, sizeof(*p->staged), "a model's record", err));
    p->want.n_files = count;
    for (size_t i = 0; i < count; i++) {
        snprintf(p->want.files[i].name, sizeof(p->want.files[i].name), "%s", file);
        if (count > 1 && !qw_hub_split_renumber(p->want.files[i].name, i + 1))
            return qw_fail(err, QW_E_INTERNAL, "%s: cannot be numbered", file);
    }
    if (p->entry) {
        p->want.files[0].bytes = p->entry->bytes;
        memcpy(p->want.files[0].sha256, p->entry->sha256, 65);
        snprintf(p->want.id, sizeof(p->want.id), "%s", p->entry->id);
    }
    p->meter.now.n_parts = count;
    p->meter.now.model = p->want.name;
    return QW_OK;
}

static qw_status identify(pull *p, qw_err *err)
{
    qw_status status = qw_hub_source_parse(p->options->spec, &p->own, err);
    if (status == QW_OK) QW_TRY(identify_source(p, err));
    else if (status == QW_E_NOT_FOUND) QW_TRY(identify_name(p, err));
    else return status;
    QW_TRY(plan_files(p, err));
    char path[QW_HUB_PATH_MAX];
    qw_hub_partial_path(&p->hub->store, p->want.name, path);
    if (snprintf(p->folder, sizeof(p->folder), "%s", path) >= (int)sizeof(p->folder))
        return qw_fail(err, QW_E_LIMIT, "the path of the model store is too long");
    return QW_OK;
}

/* ---- what is there already --------------------------------------------------------------------- */

/* *done: the model is installed and whole, nothing is to be done. */
static qw_status present(pull *p, bool *done, qw_err *err)
{
    qw_hub_manifest have;
    char fault[160];
    qw_err why = {0};
    *done = false;
    if (qw_hub_manifest_read(&p->hub->store, p->want.name, &have, NULL) != QW_OK) return QW_OK;
    qw_status status = QW_OK;
    bool same = strcmp(have.source, p->want.source) == 0 ||
                (p->entry && have.n_files == 1 && strcmp(have.files[0].sha256, p->entry->sha256) == 0);
    if (!same) {
        status = qw_fail(
            err, QW_E_ARG,
            "%s is installed already, from %.300s; `qw rm %s` first, or give another name with --name",
            p->want.name, have.source[0] ? have.source : "another source", p->want.name);
    } else if (p->options->if_missing && qw_hub_manifest_whole(&p->hub->store, &have, fault)) {
        *done = true;
    } else if ((status = qw_hub_manifest_verify(&p->hub->store, &have, &p->meter, &why)) == QW_OK) {
        *done = true;
        qw_hub_say(p->meter.watch, "%s is installed already and whole", p->want.name);
    } else if (status == QW_E_CANCELLED) {
        if (err) *err = why;
    } else {
        status = QW_OK;
        qw_hub_say(p->meter.watch, "%s, fetching it again", why.text);
        for (size_t i = 0; have.n_files == p->want.n_files && i < have.n_files;
             i++) /* a repair brings the same bytes */
            p->want.files[i] = have.files[i];
    }
    qw_hub_manifest_clear(&have);
    return status;
}

/* A blob with the right sum may be there: left by a kill before the manifest, or another model's. */
static qw_status reuse_blob(pull *p, size_t i, bool *found, qw_err *err)
{
    qw_hub_file *f = &p->want.files[i];
    char path[QW_HUB_PATH_MAX], sum[65];
    struct stat st;
    uint64_t bytes;
    *found = false;
    if (!f->sha256[0]) return QW_OK;
    QW_TRY(qw_hub_blob_path(&p->hub->store, f->sha256, path, err));
    if (stat(path, &st) != 0 || (uint64_t)st.st_size != f->bytes) return QW_OK;
    qw_status status = qw_hub_sha256_file(path, &p->meter, sum, &bytes, err);
    if (status == QW_E_CANCELLED) return status;
    if (status != QW_OK || strcmp(sum, f->sha256) != 0) return QW_OK;
    *found = true;
    return qw_strndup(&p->staged[i], path, strlen(path), err);
}

/* ---- one file from one source ------------------------------------------------------------------ */

typedef struct place {
    char part[QW_HUB_PATH_MAX], meta[QW_HUB_PATH_MAX], work[QW_HUB_PATH_MAX];
} place;

static void place_of(const pull *p, size_t i, place *at)
{
    snprintf(at->part, sizeof(at->part), "%s/%05zu.part", p->folder, i + 1);
    snprintf(at->meta, sizeof(at->meta), "%s/%05zu.json", p->folder, i + 1);
    snprintf(at->work, sizeof(at->work), "%s/pip", p->folder);
}

/* Takes a complete temporary file when its sum is right. published: a sum the source gave, or "". */
static qw_status accept_file(pull *p, size_t i, const char *path, const char *published, const char *from,
                             qw_err *err)
{
    qw_hub_file *f = &p->want.files[i];
    char sum[65];
    uint64_t bytes = 0;
    const char *right = f->sha256[0] ? f->sha256 : published;
    QW_TRY(qw_hub_sha256_file(path, &p->meter, sum, &bytes, err));
    if ((f->bytes && bytes != f->bytes) || (right[0] && strcmp(sum, right) != 0))
        return qw_fail(err, QW_E_CORRUPT,
                       "%s: gave another file: SHA-256 %.16s... (%llu bytes), wanted %.16s...", from, sum,
                       (unsigned long long)bytes, right[0] ? right : "a known one");
    f->bytes = bytes;
    memcpy(f->sha256, sum, sizeof(f->sha256));
    return qw_strndup(&p->staged[i], path, strlen(path), err);
}

/* URL of part i at this source. */
static qw_status source_url(const pull *p, const qw_hub_source *s, size_t i, char url[QW_HUB_SPEC_MAX],
                            qw_err *err)
{
    const qw_hub_catalog *c = p->hub->catalog;
    int n = s->kind == QW_HUB_SRC_HF
                ? snprintf(url, QW_HUB_SPEC_MAX, "%s/%s/resolve/main/%s", c->hf_base, s->repo, s->file)
            : s->kind == QW_HUB_SRC_MS ? snprintf(url, QW_HUB_SPEC_MAX, "%s/models/%s/resolve/master/%s",
                                                  c->ms_base, s->repo, s->file)
                                       : snprintf(url, QW_HUB_SPEC_MAX, "%s", s->url);
    if (n < 0 || n >= QW_HUB_SPEC_MAX)
        return qw_fail(err, QW_E_LIMIT, "the URL of %s is too long", p->want.name);
    if (p->want.n_files > 1 && !qw_hub_split_renumber(url, i + 1))
        return qw_fail(err, QW_E_ARG, "%.200s: the parts of a split model cannot be told from this URL", url);
    return QW_OK;
}

/* The bytes of file i into its partial file. from: whom messages speak of; published: the sum the source
 * says, or "". */
static qw_status fetch_bytes(pull *p, const qw_hub_source *s, size_t i, const place *at, char from[256],
                             char published[65], bool *resumed, qw_err *err)
{
    char url[QW_HUB_SPEC_MAX];
    bool plain;
    qw_hub_fetched got = {0};
    const qw_hub_file *f = &p->want.files[i];
    published[0] = 0;
    if (s->kind == QW_HUB_SRC_PIP) {
        const qw_hub_pip job = {.source = s,
                                .part_path = at->part,
                                .meta_path = at->meta,
                                .work_dir = at->work,
                                .bytes = f->bytes};
        snprintf(from, 256, "pip");
        return qw_hub_pip_run(&job, &p->meter, resumed, err);
    }
    QW_TRY(source_url(p, s, i, url, err));
    QW_TRY(qw_hub_url_check(url, from, &plain, err));
    const bool hub = s->kind == QW_HUB_SRC_HF;
    const qw_hub_fetch job = {
        .url = url,
        .token = hub ? getenv("HF_TOKEN") : NULL,
        .token_base = hub ? p->hub->catalog->hf_base : NULL,
        .part_path = at->part,
        .meta_path = at->meta,
        .space_dir = p->folder,
        .bytes = f->bytes,
        .sha256 = f->sha256,
    };
    qw_status status = qw_hub_fetch_run(&job, &p->meter, &got, err);
    *resumed = got.resumed;
    memcpy(published, got.sha256, sizeof(got.sha256));
    return status;
}

/* A local file is cloned under a name that is never opened for writing: it may be the user's own inode. */
static qw_status from_file(pull *p, const qw_hub_source *s, size_t i, qw_err *err)
{
    char from[QW_HUB_PATH_MAX], to[QW_HUB_PATH_MAX];
    if (snprintf(from, sizeof(from), "%s", s->url) >= (int)sizeof(from))
        return qw_fail(err, QW_E_LIMIT, "the path is too long");
    if (p->want.n_files > 1 && !qw_hub_split_renumber(from, i + 1))
        return qw_fail(err, QW_E_ARG, "%.300s: not named like a part of a split model", from);
    snprintf(to, sizeof(to), "%s/%05zu.import", p->folder, i + 1);
    p->meter.now.source = s->url;
    QW_TRY(qw_hub_remove_tree(to, err));
    QW_TRY(qw_hub_clone(from, to, &p->meter, err));
    qw_status status = accept_file(p, i, to, "", from, err);
    if (status != QW_OK) unlink(to);
    return status;
}

static qw_status from_source(pull *p, const qw_hub_source *s, size_t i, qw_err *err)
{
    place at;
    char from[256], published[65];
    if (s->kind == QW_HUB_SRC_FILE) return from_file(p, s, i, err);
    place_of(p, i, &at);
    for (int attempt = 0;; attempt++) {
        bool resumed = false;
        p->meter.now.source = from;
        qw_status status = fetch_bytes(p, s, i, &at, from, published, &resumed, err);
        if (status == QW_OK) {
            status = accept_file(p, i, at.part, published, from, err);
            if (status != QW_E_CORRUPT) goto out;
            unlink(at.meta);
            unlink(at.part);
            /* What was there before this run may be to blame: one attempt from the beginning. */
            if (resumed && attempt == 0) {
                qw_hub_say(p->meter.watch, "%s; fetching it from the beginning", err ? err->text : from);
                continue;
            }
        }
    out:
        p->meter.now.source = "";
        return status;
    }
}

/* Whether no other source could change it. */
static bool is_final(qw_status status)
{
    return status == QW_E_CANCELLED || status == QW_E_LIMIT || status == QW_E_IO || status == QW_E_MEMORY ||
           status == QW_E_INTERNAL;
}

static qw_status fetch_file(pull *p, size_t i, qw_err *err)
{
    bool found;
    p->meter.now.part = i + 1;
    QW_TRY(reuse_blob(p, i, &found, err));
    if (found) return QW_OK;
    for (size_t k = 0; k < p->n_sources; k++) {
        qw_err why = {0};
        qw_status status = from_source(p, &p->sources[k], i, &why);
        if (status == QW_OK) return QW_OK;
        if (is_final(status) || k + 1 == p->n_sources) {
            if (err) *err = why;
            if (is_final(status) || p->n_sources == 1) return status;
            qw_err_prefix(err, "no source could give %s; the last said", p->want.name);
            return status;
        }
        qw_hub_say(p->meter.watch, "%s, trying the next source", why.text);
    }
    return qw_fail(err, QW_E_INTERNAL, "%s has no sources", p->want.name);
}

/* ---- all together ------------------------------------------------------------------------------ */

/* A file that no catalogue vouches for must at least be a whole GGUF file. Split parts are looked at beside
 * each other, under their own names. */
static qw_status check_container(pull *p, qw_err *err)
{
    char dir[QW_HUB_PATH_MAX], at[QW_HUB_PATH_MAX];
    qw_gguf *g = NULL;
    snprintf(dir, sizeof(dir), "%s/check", p->folder);
    QW_TRY(qw_hub_remove_tree(dir, err));
    QW_TRY(qw_make_dirs(dir, err));
    qw_status status = QW_OK;
    for (size_t i = p->want.n_files;
         status == QW_OK && i-- > 0;) { /* the first part is last: its path stays in `at` */
        if (snprintf(at, sizeof(at), "%s/%s", dir, p->want.files[i].name) >= (int)sizeof(at))
            status = qw_fail(err, QW_E_LIMIT, "%.200s: the path is too long", dir);
        else if (link(p->staged[i], at) != 0 && symlink(p->staged[i], at) != 0)
            status = qw_fail_errno(err, "%.400s", at);
    }
    if (status == QW_OK) {
        status = qw_gguf_open(at, &g, err);
        if (status == QW_OK) status = qw_gguf_check_finite(g, err);
        if (status == QW_OK) qw_hub_describe(at, p->want.quantization, p->want.architecture);
        else if (status == QW_E_FORMAT || status == QW_E_UNSUPPORTED || status == QW_E_CORRUPT)
            qw_err_prefix(err, "%.300s is not taken into the store", p->want.source);
        qw_gguf_close(g);
    }
    if (qw_hub_remove_tree(dir, NULL) != QW_OK) qw_hub_say(p->meter.watch, "%s could not be removed", dir);
    return status;
}

static qw_status install(pull *p, qw_err *err)
{
    bool done = false;
    QW_TRY(present(p, &done, err));
    if (done) return QW_OK;
    QW_TRY(qw_make_dirs(p->folder, err));
    /* The catalogue's size is known before any source is asked. */
    if (p->entry && p->own.kind != QW_HUB_SRC_FILE) {
        struct stat st;
        place at;
        place_of(p, 0, &at);
        uint64_t have = stat(at.part, &st) == 0 && st.st_size > 0 ? (uint64_t)st.st_size : 0;
        QW_TRY(qw_hub_space(p->folder, p->entry->bytes > have ? p->entry->bytes - have : 0, err));
    }
    for (size_t i = 0; i < p->want.n_files; i++) QW_TRY(fetch_file(p, i, err));
    if (!p->entry) {
        qw_status status = check_container(p, err);
        if (status == QW_E_FORMAT || status == QW_E_UNSUPPORTED) /* no use keeping it */
            if (qw_hub_remove_tree(p->folder, NULL) != QW_OK)
                qw_hub_say(p->meter.watch, "%s could not be removed", p->folder);
        if (status != QW_OK) return status;
    } else qw_hub_describe(p->staged[0], p->want.quantization, p->want.architecture);
    if (p->entry)
        snprintf(p->want.quantization, sizeof(p->want.quantization), "%.31s", p->entry->quantization);
    p->want.added_s = qw_wall_s();
    return qw_hub_commit(&p->hub->store, &p->want, (const char *const *)p->staged, &p->meter, err);
}

/* "stopped" alone helps nobody: says what is kept. */
static qw_status say_stopped(const pull *p, qw_err *err)
{
    struct stat st;
    place at;
    char size[32];
    uint64_t kept = 0;
    for (size_t i = 0; i < p->want.n_files; i++) {
        place_of(p, i, &at);
        if (stat(at.part, &st) == 0 && st.st_size > 0) kept += (uint64_t)st.st_size;
    }
    if (kept == 0) return qw_fail(err, QW_E_CANCELLED, "stopped");
    qw_hub_size_text(kept, size);
    return qw_fail(err, QW_E_CANCELLED, "stopped; %s are kept, `qw pull %s` goes on from there", size,
                   p->options->spec);
}

qw_status qw_hub_pull(qw_hub *hub, const qw_hub_pull_options *options, const qw_hub_watch *watch,
                      char name[QW_HUB_NAME_MAX], qw_err *err)
{
    pull *p = NULL;
    int lock = -1;
    qw_status status;
    name[0] = 0;
    QW_TRY(qw_alloc(&p, 1, sizeof(*p), "a download", err));
    p->hub = hub;
    p->options = options;
    p->meter.watch = watch;
    p->meter.now.source = "";
    QW_TRY_GOTO(identify(p, err));
    QW_TRY_GOTO(qw_hub_store_make(&hub->store, err));
    QW_TRY_GOTO(qw_hub_lock(&hub->store, p->want.name, &p->meter, &lock, err));
    status = install(p, err);
    if (status != QW_OK) rmdir(p->folder); /* when nothing is kept in it */
    if (status == QW_E_CANCELLED) status = say_stopped(p, err);
    if (status == QW_OK) snprintf(name, QW_HUB_NAME_MAX, "%s", p->want.name);
fail:
    qw_hub_unlock(lock);
    for (size_t i = 0; p->staged && i < p->want.n_files; i++) free(p->staged[i]);
    free(p->staged);
    qw_hub_source_clear(&p->own);
    qw_hub_manifest_clear(&p->want);
    free(p);
    return status;
}
