/* hf_folder.c: the safetensors files of a Hugging Face folder. The opening thread alone.
 *
 * model.safetensors.index.json says which file holds which tensor; without it there is model.safetensors alone. Names of
 * files are made of a small alphabet without '/', so that an index cannot lead out of its folder. The numbers in comments
 * are those of docs/huggingface.md.
 */
#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"
#include "formats/hf_private.h"

enum { INDEX_BYTES_MAX = 64 << 20, FILE_NAME_MAX = 255 };
static const char index_name[] = "model.safetensors.index.json";
static const char single_name[] = "model.safetensors";

qw_status hf_alloc(qw_hf *hf, void *out_ptr, size_t n, size_t size, qw_err *err)
{
    void *p = NULL;
    QW_TRY(qw_grow(&hf->owned, hf->n_owned, hf->n_owned + 1, sizeof *hf->owned, "a model folder", err));
    QW_TRY(qw_alloc(&p, n, size, "tensors of a model folder", err));
    hf->owned[hf->n_owned++] = p;
    memcpy(out_ptr, &p, sizeof p);
    return QW_OK;
}

static qw_status path_in(const qw_hf *hf, const char *name, char out[PATH_MAX], qw_err *err)
{
    if (snprintf(out, PATH_MAX, "%s/%s", hf->dir, name) < PATH_MAX) return QW_OK;
    return qw_fail(err, QW_E_LIMIT, "%s: the path is too long", hf->dir);
}

static bool ends_in(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n > m && strcmp(s + n - m, end) == 0;
}

/* 17: letters, digits, '.', '_' and '-', then the ending; so neither a path nor "..". */
static bool is_shard_name(const char *s)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    return strlen(s) <= FILE_NAME_MAX && s[strspn(s, alphabet)] == '\0' && s[0] != '.' && ends_in(s, ".safetensors");
}

/* ---- shards ----------------------------------------------------------------------------------- */

static qw_status open_shard(qw_hf *hf, const char *name, qw_err *err)
{
    char path[PATH_MAX], identity[96];
    QW_TRY(path_in(hf, name, path, err));
    qw_st_file *f = &hf->shards[hf->n_shards++];
    QW_TRY(qw_st_open(path, f, err));
    qw_map_identity(f->map, identity);
    return qw_buf_printf(&hf->identity, err, "%s %s\n", name, identity);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Every file that the index names, once; names borrow from it. */
static qw_status list_shards(const char *path, json_t *map, const char ***out, size_t *n, qw_err *err)
{
    const char *tensor;
    json_t *value;
    const char **names;
    size_t m = 0, kept = 0;
    QW_TRY(qw_alloc(&names, json_object_size(map), sizeof *names, "the index of a model folder", err));
    *out = names;
    json_object_foreach(map, tensor, value)
    {
        const char *name = json_string_value(value);
        if (name == NULL || !is_shard_name(name))
            return qw_fail(err, QW_E_FORMAT, "%s: tensor '%.200s': \"%.100s\" is no name of a safetensors file", path, tensor,
                           name ? name : "(no text)");
        names[m++] = name;
    }
    qsort(names, m, sizeof *names, by_name);
    for (size_t i = 0; i < m; i++)
        if (i == 0 || strcmp(names[i], names[i - 1]) != 0) names[kept++] = names[i];
    if (kept == 0) return qw_fail(err, QW_E_FORMAT, "%s: names no file", path);
    if (kept > HF_SHARDS_MAX)
        return qw_fail(err, QW_E_LIMIT, "%s: %zu files, the limit is %d", path, kept, HF_SHARDS_MAX);
    *n = kept;
    return QW_OK;
}

/* 17: a model's file that the index does not know would be left out silently. */
static qw_status check_unlisted(const qw_hf *hf, const char *const *names, size_t n, qw_err *err)
{
    DIR *d = opendir(hf->dir);
    qw_status status = QW_OK;
    if (d == NULL) return qw_fail_errno(err, "%s: cannot be opened", hf->dir);
    for (struct dirent *e = readdir(d); e != NULL && status == QW_OK; e = readdir(d)) {
        const char *name = e->d_name;
        if (strncmp(name, "model", 5) != 0 || !ends_in(name, ".safetensors")) continue;
        if (bsearch(&name, names, n, sizeof *names, by_name) == NULL)
            status = qw_fail(err, QW_E_FORMAT, "%s/%s: is not in %s", hf->dir, name, index_name);
    }
    closedir(d);
    return status;
}

/* 16, 17: one list; every name once, and in the file that the index says. */
static qw_status collect(qw_hf *hf, const json_t *map, qw_err *err)
{
    size_t n = 0;
    for (size_t i = 0; i < hf->n_shards; i++) n += hf->shards[i].n;
    if (n > QW_ST_TENSORS_MAX)
        return qw_fail(err, QW_E_LIMIT, "%s: %zu tensors, the limit is %d", hf->dir, n, QW_ST_TENSORS_MAX);
    QW_TRY(qw_alloc(&hf->tensors, n, sizeof *hf->tensors, "the list of tensors", err));
    QW_TRY(qw_name_set_init(&hf->names, n, err));
    for (size_t i = 0; i < hf->n_shards; i++) {
        qw_st_file *f = &hf->shards[i];
        for (size_t k = 0; k < f->n; k++) {
            qw_st_tensor *t = &f->tensors[k];
            const char *said = map ? json_string_value(json_object_get(map, t->name)) : NULL;
            if (map && (said == NULL || strcmp(said, strrchr(f->path, '/') + 1) != 0))
                return qw_fail(err, QW_E_FORMAT, "%s: tensor '%.200s': the index has it in %s", f->path, t->name,
                               said ? said : "no file");
            if (!qw_name_set_add(&hf->names, (qw_text){t->name, strlen(t->name)}, hf->n_tensors))
                return qw_fail(err, QW_E_FORMAT, "%s: tensor '%.200s' is in two files", f->path, t->name);
            hf->tensors[hf->n_tensors++] = t;
        }
    }
    return QW_OK;
}

/* 17: what the index names and no file has. */
static qw_status check_promised(const qw_hf *hf, const char *path, json_t *map, qw_err *err)
{
    const char *name;
    json_t *value;
    json_object_foreach(map, name, value)
    {
        if (qw_name_set_find(&hf->names, (qw_text){name, strlen(name)}) == SIZE_MAX)
            return qw_fail(err, QW_E_FORMAT, "%s: tensor '%.200s': %s does not have it", path, name,
                           json_string_value(value));
    }
    return QW_OK;
}

/* 17: only a note. The sizes of all files and tensors were checked already, and folders that somebody quantised may keep
 * the number of the original. */
static qw_status compare_total(qw_hf *hf, const json_t *index, qw_err *err)
{
    const json_t *total = json_object_get(json_object_get(index, "metadata"), "total_size");
    json_int_t bytes = 0;
    for (size_t i = 0; i < hf->n_tensors; i++) bytes += (json_int_t)hf->tensors[i]->bytes;
    if (!json_is_integer(total) || json_integer_value(total) == bytes) return QW_OK;
    return qw_buf_printf(&hf->note, err, "%s says %lld bytes of tensors, there are %lld\n", index_name,
                         (long long)json_integer_value(total), (long long)bytes);
}

static qw_status open_listed(qw_hf *hf, json_t *index, const char *path, qw_err *err)
{
    json_t *map = json_object_get(index, "weight_map");
    const char **names = NULL;
    size_t n = 0;
    qw_status status;
    if (!json_is_object(map)) return qw_fail(err, QW_E_FORMAT, "%s: \"weight_map\" is no object", path);
    QW_TRY_GOTO(list_shards(path, map, &names, &n, err));
    QW_TRY_GOTO(check_unlisted(hf, names, n, err));
    QW_TRY_GOTO(qw_alloc(&hf->shards, n, sizeof *hf->shards, "the files of a model folder", err));
    for (size_t i = 0; i < n; i++) QW_TRY_GOTO(open_shard(hf, names[i], err));
    QW_TRY_GOTO(collect(hf, map, err));
    QW_TRY_GOTO(check_promised(hf, path, map, err));
    status = compare_total(hf, index, err);
fail:
    free(names);
    return status;
}

/* 20: other formats hold programs. */
static qw_status say_what_is_there(const qw_hf *hf, qw_err *err)
{
    static const char *const others[] = {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"};
    char path[PATH_MAX];
    struct stat st;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        QW_TRY(path_in(hf, others[i], path, err));
        if (stat(path, &st) == 0)
            return qw_fail(err, QW_E_UNSUPPORTED,
                           "%s: has its weights in %s, which can hold programs and is never read: want safetensors files",
                           hf->dir, others[i]);
    }
    return qw_fail(err, QW_E_NOT_FOUND, "%s: has neither %s nor %s", hf->dir, single_name, index_name);
}

qw_status hf_open_shards(qw_hf *hf, qw_err *err)
{
    char path[PATH_MAX];
    struct stat st;
    json_t *index = NULL;
    QW_TRY(path_in(hf, index_name, path, err));
    qw_status status = qw_json_read(hf->dir, index_name, INDEX_BYTES_MAX, &hf->identity, &index, err);
    if (status == QW_OK) {
        status = open_listed(hf, index, path, err);
        json_decref(index);
        return status;
    }
    if (status != QW_E_NOT_FOUND) return status;
    QW_TRY(path_in(hf, single_name, path, err));
    if (stat(path, &st) != 0) return say_what_is_there(hf, err);
    QW_TRY(qw_alloc(&hf->shards, 1, sizeof *hf->shards, "the files of a model folder", err));
    QW_TRY(open_shard(hf, single_name, err));
    return collect(hf, NULL, err);
}

/* ---- tensors ---------------------------------------------------------------------------------- */

qw_st_tensor *hf_find(qw_hf *hf, const char *name)
{
    size_t i = qw_name_set_find(&hf->names, (qw_text){name, strlen(name)});
    if (i == SIZE_MAX) return NULL;
    hf->tensors[i]->used = true;
    return hf->tensors[i];
}

const char *hf_path_of(const qw_hf *hf, const qw_st_tensor *t)
{
    for (size_t i = 0; i < hf->n_shards; i++) {
        const qw_st_file *f = &hf->shards[i];
        if (t >= f->tensors && t < f->tensors + f->n) return f->path;
    }
    return hf->dir;
}
