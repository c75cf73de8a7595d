/* hf.c: see hf.h. Opens the parts of a folder in the order in which they depend on each other. */
#include "formats/hf.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "formats/hf_private.h"

enum { IDENTITY_BYTES_MAX = 1 << 20, NOTE_BYTES_MAX = 16 << 10 };

static qw_status set_paths(qw_hf *hf, const char *dir, qw_err *err)
{
    size_t n = strlen(dir);
    qw_buf path;
    while (n > 1 && dir[n - 1] == '/') n--;
    QW_TRY(qw_strndup(&hf->dir, dir, n, err));
    qw_buf_init(&path, 1 << 16, "a path");
    qw_status status = qw_buf_printf(&path, err, "%s/config.json", hf->dir);
    if (status == QW_OK) status = qw_strndup(&hf->config_path, path.data, path.n, err);
    qw_buf_free(&path);
    return status;
}

static qw_status read_config(qw_hf *hf, hf_config *c, qw_err *err)
{
    json_t *root = NULL;
    qw_status status = qw_json_read(hf->dir, "config.json", HF_CONFIG_BYTES_MAX, &hf->identity, &root, err);
    if (status == QW_E_NOT_FOUND)
        return qw_fail(err, QW_E_NOT_FOUND, "%s: is a folder without config.json: want a GGUF file or a Hugging Face folder",
                       hf->dir);
    if (status == QW_OK) status = hf_config_read(hf, root, c, err);
    json_decref(root);
    return status;
}

static qw_status make_view(qw_hf *hf, qw_err *err)
{
    hf_config c;
    size_t n_vocab = 0, n_mtp = 0;
    QW_TRY(read_config(hf, &c, err));
    QW_TRY(hf_open_shards(hf, err));
    QW_TRY(qw_gguf_writer_create(&hf->writer, err));
    QW_TRY(hf_tensors_count(hf, &c, &n_vocab, &n_mtp, err));
    QW_TRY(hf_config_keys(hf, &c, n_mtp, hf->writer, err));
    if (c.gram_size > 0) QW_TRY(hf_ngram_keys(hf, &c, hf->writer, err));
    QW_TRY(hf_text_keys(hf, &c, n_vocab, hf->writer, err));
    QW_TRY(hf_tensors_map(hf, &c, n_mtp, err));
    if (qw_hf_map_failed(hf))
        return qw_fail(err, QW_E_CORRUPT, "%s: a file became shorter or unreadable while it was opened", hf->dir);
    return qw_gguf_writer_header(hf->writer, &hf->header, &hf->header_bytes, err);
}

qw_status qw_hf_open(const char *dir, qw_hf **out, qw_err *err)
{
    qw_hf *hf = NULL;
    qw_status status;
    QW_TRY(qw_alloc(&hf, 1, sizeof *hf, "a model folder", err));
    qw_buf_init(&hf->identity, IDENTITY_BYTES_MAX, "the identity of a model folder");
    qw_buf_init(&hf->note, NOTE_BYTES_MAX, "notes on a model folder");
    QW_TRY_GOTO(set_paths(hf, dir, err));
    QW_TRY_GOTO(make_view(hf, err));
    *out = hf;
    return QW_OK;
fail:
    qw_hf_close(hf);
    return status;
}

void qw_hf_close(qw_hf *hf)
{
    if (hf == NULL) return;
    qw_gguf_writer_destroy(hf->writer);
    for (size_t i = 0; i < hf->n_shards; i++) qw_st_close(&hf->shards[i]);
    for (size_t i = 0; i < hf->n_owned; i++) free(hf->owned[i]);
    free(hf->shards);
    free(hf->tensors);
    qw_name_set_free(&hf->names);
    free(hf->owned);
    free(hf->outs);
    qw_buf_free(&hf->identity);
    qw_buf_free(&hf->note);
    free(hf->dir);
    free(hf->config_path);
    free(hf);
}

void qw_hf_header(const qw_hf *hf, const uint8_t **header, size_t *n, uint64_t *file_bytes)
{
    *header = hf->header;
    *n = hf->header_bytes;
    *file_bytes = qw_gguf_writer_bytes(hf->writer);
}

void qw_hf_tensor(const qw_hf *hf, size_t i, const uint8_t **data, const qw_rows **rows)
{
    *data = hf->outs[i].data;
    *rows = hf->outs[i].rows;
}

size_t qw_hf_bytes(const qw_hf *hf)
{
    size_t n = 0;
    for (size_t i = 0; i < hf->n_shards; i++) n += qw_map_bytes(hf->shards[i].map);
    return n;
}

bool qw_hf_map_failed(const qw_hf *hf)
{
    for (size_t i = 0; i < hf->n_shards; i++)
        if (qw_map_failed(hf->shards[i].map)) return true;
    return false;
}

size_t qw_hf_n_maps(const qw_hf *hf)
{
    return hf->n_shards;
}

const qw_map *qw_hf_map(const qw_hf *hf, size_t i)
{
    return hf->shards[i].map;
}

const char *qw_hf_identity(const qw_hf *hf)
{
    return qw_buf_str(&hf->identity);
}

const char *qw_hf_note(const qw_hf *hf)
{
    return qw_buf_str(&hf->note);
}

const char *qw_hf_first_file(const qw_hf *hf)
{
    return hf->shards[0].path;
}
