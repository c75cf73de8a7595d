/* hf_private.h: what the hf*.c files share: the folder, its configuration, and matrices on their way to a GGUF tensor.
 *
 * Everything is made by the opening thread and read by any afterwards. Memory that lives as long as the folder comes from
 * hf_alloc.
 */
#ifndef QW_FORMATS_HF_PRIVATE_H
#define QW_FORMATS_HF_PRIVATE_H

#include "base/buf.h"
#include "base/faults.h"
#include "formats/gguf_write.h"
#include "formats/hf.h"
#include "formats/json_file.h"
#include "formats/name_set.h"
#include "formats/rows_as.h"
#include "formats/safetensors.h"

/* ---- the folder -------------------------------------------------------------------------------- */

enum { HF_SHARDS_MAX = 1000, HF_CONFIG_BYTES_MAX = 1 << 20, HF_TOKENIZER_BYTES_MAX = 64 << 20 };

typedef struct hf_out { /* a tensor of the view; what its data or rows are is in qw_hf_tensor's words */
    const uint8_t *data;
    const qw_rows *rows;
} hf_out;

struct qw_hf {
    char *dir;          /* owns */
    char *config_path;  /* owns: "DIR/config.json" */
    qw_st_file *shards; /* [n_shards], owns */
    size_t n_shards;
    qw_st_tensor **tensors; /* [n_tensors] of all shards, owns the list */
    size_t n_tensors;
    name_set names;     /* values index tensors */
    void **owned;       /* [n_owned], owns: hf_alloc */
    size_t n_owned;
    qw_buf identity, note;
    qw_gguf_writer *writer; /* owns the header */
    const uint8_t *header;
    size_t header_bytes;
    hf_out *outs;       /* [n_outs], owns */
    size_t n_outs;
};

qw_status hf_alloc(qw_hf *hf, void *out_ptr, size_t n, size_t size, qw_err *err) QW_MUST_CHECK;
/* Opens all shards and lists their tensors. */
qw_status hf_open_shards(qw_hf *hf, qw_err *err) QW_MUST_CHECK;
/* NULL: there is none of that name. Marks it as used. */
qw_st_tensor *hf_find(qw_hf *hf, const char *name);
/* File of a tensor, for messages. */
const char *hf_path_of(const qw_hf *hf, const qw_st_tensor *t);

/* ---- the configuration ------------------------------------------------------------------------- */

typedef enum hf_norm_topk { HF_TOPK_FALSE, HF_TOPK_TRUE, HF_TOPK_ALWAYS } hf_norm_topk; /* defaults, or no choice */

/* What a model_type means: a row of the table in hf_config.c. */
typedef struct hf_kind {
    const char *model_type, *arch; /* in config.json, in GGUF */
    const char *ffn_norm;          /* GGUF name of post_attention_layernorm */
    uint32_t head_dim;             /* where the file does not say; 0: hidden / heads */
    double partial_rotary;         /* the same */
    bool hybrid, moe, qkv_bias;
    bool centred;                  /* norms are stored as w - 1 */
    bool packed;                   /* delta-nets have in_proj_qkvz and in_proj_ba */
    bool tiled;                    /* GGUF has value heads in another order */
    bool streams;                  /* hyper-connections, block-sparse attention, n-grams */
    hf_norm_topk norm_topk;
} hf_kind;

typedef enum hf_quant_method { HF_QUANT_NONE, HF_QUANT_FP8, HF_QUANT_GPTQ, HF_QUANT_AWQ } hf_quant_method;

typedef struct hf_quant {
    hf_quant_method method;
    uint64_t block_rows, block_cols; /* of FP8 */
    uint64_t group;                  /* of GPTQ, AWQ; 0: whole columns */
    uint64_t zero_offset;            /* of GPTQ: 1 where zeros are stored less one */
} hf_quant;

typedef struct hf_rope {
    double theta, partial;
    bool yarn;
    double factor, attention_factor, beta_fast, beta_slow; /* attention_factor 0, betas 0: not given */
    uint64_t original_context;
    int32_t sections[4];
    bool has_sections;
} hf_rope;

typedef struct hf_config {
    const hf_kind *kind;
    uint64_t n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn, context; /* ffn 0: not given */
    bool has_head_dim, tied;
    double eps;
    hf_rope rope;
    uint64_t n_experts, n_experts_used, expert_ffn, shared_ffn;
    bool norm_topk;
    uint64_t n_k_heads, n_v_heads, k_dim, v_dim, n_taps;
    uint64_t n_streams, hyper_rank, index_heads, index_dim, index_budget, index_block; /* of several streams */
    uint64_t gram_layer, gram_size, heads_per_gram, gram_taps, gram_dim, gram_end; /* gram_size 0: no n-grams */
    bool *recurrent; /* [n_layers], of hybrids; hf_alloc */
    hf_quant quant;
    int yes_label;   /* which of two labels is "yes" and the other "no": 0 or 1; -1: neither */
    uint64_t eos[2]; /* from config.json, where generation_config.json has none */
    size_t n_eos;
} hf_config;

qw_status hf_config_read(qw_hf *hf, const json_t *root, hf_config *c, qw_err *err) QW_MUST_CHECK;
/* The keys of a model with n_mtp further blocks. */
qw_status hf_config_keys(const qw_hf *hf, const hf_config *c, size_t n_mtp, qw_gguf_writer *w, qw_err *err) QW_MUST_CHECK;
/* One or several ids under "eos_token_id". */
qw_status hf_read_eos(qw_json o, uint64_t out[2], size_t *n, qw_err *err) QW_MUST_CHECK;
/* tokenizer.json, tokenizer_config.json, generation_config.json, chat_template.jinja as keys; none without the first. */
qw_status hf_text_keys(qw_hf *hf, const hf_config *c, size_t n_vocab, qw_gguf_writer *w, qw_err *err) QW_MUST_CHECK;

/* ---- matrices ---------------------------------------------------------------------------------- */

/* A matrix: rows in a mapping, or made by what hf_alloc owns. */
typedef struct hf_matrix {
    qw_rows_in in;
    uint64_t rows;
} hf_matrix;

/* The matrix `base`.weight as the file stores it, or from base.qweight and its companions; all its tensors become used.
 * *out has data or make; QW_E_NOT_FOUND: there is nothing of that name. */
qw_status hf_matrix_find(qw_hf *hf, const hf_config *c, const char *base, hf_matrix *out, qw_err *err) QW_MUST_CHECK;
/* A float tensor as rows of its last dimension. */
qw_status hf_matrix_of(const qw_hf *hf, const qw_st_tensor *t, hf_matrix *out, qw_err *err) QW_MUST_CHECK;
/* Rows [row0, row0 + rows) of m, which has data. */
hf_matrix hf_matrix_part(const hf_matrix *m, uint64_t row0, uint64_t rows);
/* Matrix of [rows, k] whose element (r, c) is element c * ld + column0 + r of m's data. */
qw_status hf_matrix_turned(qw_hf *hf, const hf_matrix *m, uint64_t column0, uint64_t ld, uint64_t rows, uint64_t k,
                           hf_matrix *out, qw_err *err) QW_MUST_CHECK;
/* Blocks of block_rows rows put one after the other: block i is rows from row from[i] of *in[i], or of *in[0] when n_in is
 * 1. All have one type. */
qw_status hf_matrix_gather(qw_hf *hf, const hf_matrix *in, size_t n_in, const uint64_t *from, size_t n_blocks,
                           uint64_t block_rows, hf_matrix *out, qw_err *err) QW_MUST_CHECK;
/* Blocks of block_k columns in another order: block i of a row is block from[i] of m's. */
qw_status hf_matrix_columns(qw_hf *hf, const hf_matrix *m, const uint64_t *from, size_t n_blocks, uint64_t block_k,
                            hf_matrix *out, qw_err *err) QW_MUST_CHECK;
/* The same numbers in another type: exact when that is F32. */
qw_status hf_matrix_as(qw_hf *hf, const hf_matrix *m, qw_type type, hf_matrix *out, qw_err *err) QW_MUST_CHECK;
/* All rows in memory. */
qw_status hf_matrix_load(qw_hf *hf, const hf_matrix *m, uint8_t **out, qw_err *err) QW_MUST_CHECK;

/* The quantised formats, in hf_quant.c; parts of one matrix that were found by name. */
typedef struct hf_quant_parts {
    const char *base;
    const qw_st_tensor *weight, *scales, *zeros, *g_idx;
} hf_quant_parts;
qw_status hf_matrix_fp8(qw_hf *hf, const hf_quant *q, const hf_quant_parts *p, hf_matrix *out, qw_err *err) QW_MUST_CHECK;
/* Rows [part * n, (part + 1) * n) of each matrix of a stack [matrices, n_parts * n, k]; scales [matrices, blocks down, blocks
 * across]. Down, blocks begin anew with each part when there are as many as that makes: those came from matrices that were
 * quantised one by one. */
qw_status hf_matrix_fp8_fused(qw_hf *hf, const hf_quant *q, const qw_st_tensor *weight, const qw_st_tensor *scales,
                              uint64_t part, uint64_t n_parts, hf_matrix *out, qw_err *err) QW_MUST_CHECK;
qw_status hf_matrix_gptq(qw_hf *hf, const hf_quant *q, const hf_quant_parts *p, hf_matrix *out, qw_err *err) QW_MUST_CHECK;
qw_status hf_matrix_awq(qw_hf *hf, const hf_quant *q, const hf_quant_parts *p, hf_matrix *out, qw_err *err) QW_MUST_CHECK;

/* ---- tensors ----------------------------------------------------------------------------------- */

/* Finds every tensor of the model, transforms it, and puts it into hf->outs and the writer. n_vocab, n_mtp are set first,
 * by hf_tensors_count. */
qw_status hf_tensors_count(qw_hf *hf, const hf_config *c, size_t *n_vocab, size_t *n_mtp, qw_err *err) QW_MUST_CHECK;
/* The constants of the n-grams' hash, which are tensors there and keys in GGUF. */
qw_status hf_ngram_keys(qw_hf *hf, const hf_config *c, qw_gguf_writer *w, qw_err *err) QW_MUST_CHECK;
qw_status hf_tensors_map(qw_hf *hf, const hf_config *c, size_t n_mtp, qw_err *err) QW_MUST_CHECK;

#endif
