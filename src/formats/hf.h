/* hf.h: a Hugging Face folder (config.json, tokenizer.json, *.safetensors) as the header and the tensors of a GGUF file.
 *
 * Everything that differs between the two containers is done here, once: names, order of heads, numbers that are stored in
 * another form, quantised formats (docs/huggingface.md). gguf.c parses the header with the checks of a file and takes the
 * tensors, so that nobody else knows which container a model came from. Immutable after open; any thread.
 */
#ifndef QW_FORMATS_HF_H
#define QW_FORMATS_HF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"
#include "kernels/blocks.h"
#include "kernels/rows.h"

typedef struct qw_hf qw_hf;

qw_status qw_hf_open(const char *dir, qw_hf **out, qw_err *err) QW_MUST_CHECK;
void qw_hf_close(qw_hf *hf);
/* A GGUF header without data, and the bytes that a file with data would have. */
void qw_hf_header(const qw_hf *hf, const uint8_t **header, size_t *n, uint64_t *file_bytes);
/* Tensor i of the header: bytes in a mapping or in memory, or a maker of its rows. One of both is NULL. */
void qw_hf_tensor(const qw_hf *hf, size_t i, const uint8_t **data, const qw_rows **rows);
size_t qw_hf_bytes(const qw_hf *hf);       /* of all safetensors files */
bool qw_hf_map_failed(const qw_hf *hf);    /* one of them shrank or could not be read */
size_t qw_hf_n_maps(const qw_hf *hf);      /* the safetensors files' mappings */
const qw_map *qw_hf_map(const qw_hf *hf, size_t i);
const char *qw_hf_identity(const qw_hf *hf); /* names and identities (qw_map_identity) of all files that were read */
const char *qw_hf_note(const qw_hf *hf);   /* what was left out and why, "" when nothing */
const char *qw_hf_first_file(const qw_hf *hf); /* a file whose replacement makes this another model */

#endif
