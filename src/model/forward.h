/* forward.h: the one forward pass, for prefill, decode and any batch of (sequence, position) rows.
 *
 * A qw_pass is the scratch of one batch on one backend, sized at create; nothing allocates afterwards.
 * qw_forward fills pass->x with the last hidden states of the rows that are not silent and writes the keys and values
 * of all into the sequences; qw_pass_logits turns asked rows into logits. A row's bits depend on its own sequence's tokens
 * and nothing else: not on other rows, not on how a prompt was cut, not on the number of threads.
 * Engine thread only.
 */
#ifndef QW_MODEL_FORWARD_H
#define QW_MODEL_FORWARD_H

#include "model/net.h"
#include "model/seq.h"

typedef struct qw_row {
    qw_seq *seq;   /* reserved up to pos */
    uint32_t pos;  /* positions of a sequence come in order: all before are computed or earlier in the batch */
    int32_t token; /* 0 <= token < n_vocab */
    bool silent;   /* its logits will not be asked for: the last layer ends with its keys and values */
    uint8_t *keep; /* the recurrent state after this position is copied here [recurrent_bytes]; NULL: not */
} qw_row;

#define QW_SILENT UINT32_MAX

struct qw_pass {
    const qw_net *net;
    qw_backend *be;
    qw_kv_shape kv;
    uint32_t kv_first;   /* kv_index of the layer that comes first in the sequences' pages: they may be of the last one alone */
    size_t n_rows_max, n_rows; /* n_rows: of the batch; from the last layer on, of those not silent */
    size_t n_batch;
    bool dropped;        /* the silent rows */
    uint32_t *slot;      /* [n_batch] row of x after the pass, or QW_SILENT */
    qw_kv_row *kv_rows;  /* [n_rows_max] */
    int32_t *tokens;     /* [n_rows_max] */
    float *x;            /* [n_rows, n_streams * hidden]: the residual stream */
    float *normed;       /* [n_rows, hidden]: input of a block */
    float *sum;          /* [n_rows, hidden]: where a block adds its result; x, or block_out */
    float *q;            /* [n_rows, n_heads * head_dim], or with the gates twice that */
    float *k, *v;        /* [n_rows, n_kv_heads * head_dim] */
    float *mixed;        /* [n_rows, n_heads * head_dim or n_v_heads * v_dim]: output of attention or delta-net */
    float *gate, *up;    /* [n_rows, ffn] */
    float *cos, *sin;    /* [n_rows, n_rot / 2] of the rows' positions */
    float *inv_freq;     /* [n_rot / 2] */
    /* of delta-nets: */
    float *qkv;          /* [n_rows, channels] */
    float *z;            /* [n_rows, n_v_heads * v_dim] */
    float *beta, *alpha; /* [n_rows, 2 * n_v_heads] together */
    /* of hyper-connections, per-layer embedding and block-sparse attention: */
    float *wide, *mix;   /* [n_rows, n_streams * hidden]: normed streams; how much of each is read */
    float *low;          /* [n_rows, hyper_rank] */
    float *inject;       /* [n_rows, n_streams] */
    float *block_out;    /* [n_rows, hidden] */
    float *grams;        /* [n_rows, n-gram heads * row] */
    float *gated;        /* [n_rows, n_streams * hidden] */
    float *index_q, *index_k; /* [n_rows, index_heads * index_dim], [n_rows, index_dim] */
    int32_t *gram_rows;  /* [n_rows_max, n-gram heads] */
    float *joined;       /* [n_rows, 2 * hidden]: input of multi-token prediction */
    float rope_scale;    /* of cos and sin */
    const qw_connection *output; /* of the last pass: the network's, or that of multi-token prediction */
    const qw_weight *head;       /* the same */
    float *arena;        /* owns what the float pointers above divide */
    size_t arena_bytes;
};

/* Shape of KV pages for this network. mtp: with room for multi-token prediction, which the network has. */
qw_kv_shape qw_net_kv_shape(const qw_net *net, qw_kv_type type, bool mtp);
/* What the backend's scratch must hold for batches of n_rows_max rows. packed: the weights will be. */
qw_cpu_sizes qw_net_cpu_sizes(const qw_net *net, size_t n_rows_max, bool packed);
size_t qw_pass_bytes(const qw_net *net, size_t n_rows_max);
/* Borrows net and be. kv: as the sequences' pool has it. */
qw_status qw_pass_create(const qw_net *net, qw_backend *be, const qw_kv_shape *kv, size_t n_rows_max, qw_pass **out,
                         qw_err *err) QW_MUST_CHECK;
void qw_pass_destroy(qw_pass *pass);

/* 1 <= n_rows <= n_rows_max. Advances no sequence: the caller does, with qw_seq_advance. */
void qw_forward(qw_pass *pass, const qw_row *rows, size_t n_rows);
/* Drops the silent rows from x, normed and what belongs to them, unless that is done; for the last layer's block, once
 * its keys and values are stored. n_rows may become 0. */
void qw_pass_drop_silent(qw_pass *pass);
/* The same pass for multi-token prediction. Row i stands at a position whose hidden state is hidden[i * ld] [hidden], after
 * the final norm; its token is the one that follows that position, and its logits guess the token after that. In place of
 * the network's, hidden may be that of an earlier such pass: a guess built on a guess. Writes keys and values of its own
 * layer at the row's position. Source: DeepSeek-V3 technical report; llama.cpp's and vLLM's Qwen3-Next. */
void qw_forward_mtp(qw_pass *pass, const qw_row *rows, size_t n_rows, const float *hidden, size_t ld);

/* Of rows[i], not silent, of the last pass, i < n <= n_rows_max: */
/* logits, out[i * ld + token], ld >= n_vocab. May be called once per pass for any subset; overwrites scratch that forward
 * no longer needs. */
void qw_pass_logits(qw_pass *pass, const uint32_t *rows, size_t n, float *out, size_t ld);
/* hidden states after the final norm, out [n, hidden]; */
void qw_pass_hidden(qw_pass *pass, const uint32_t *rows, size_t n, float *out);
/* scores of a reranker, out[2 * i] yes, out[2 * i + 1] no; the network has `cls`. */
void qw_pass_scores(qw_pass *pass, const uint32_t *rows, size_t n, float *out);

#endif
