/* net.h: a network bound to a model file: hyper-parameters, layers, weights.
 *
 * qw_net_open reads the hyper-parameters, finds every tensor the family's blocks ask for and demands the
 * exact shape; all faults of a file come in one message. No model name appears in the layer loop: a layer is
 * a token mixer and a feed-forward block, each with its own bind and forward function (block_*.c).
 * Immutable after open (qw_weights fills the `packed` pointers before the first pass); any thread.
 */
#ifndef QW_MODEL_NET_H
#define QW_MODEL_NET_H

#include <stdbool.h>
#include <stdint.h>

#include "backend/backend.h"
#include "base/faults.h"
#include "base/status.h"
#include "formats/gguf.h"

/* What makes an architecture: a row of the table in family.c. Everything else is read from the file. */
typedef struct qw_family {
    const char *architecture;
    const char *ffn_norm;  /* name of the feed-forward block's norm */
    bool qkv_bias;         /* q, k and v have biases */
    bool qk_norm;          /* q and k are normed head by head */
    bool gated_attention;  /* q comes with a gate for the attention's output */
    bool hybrid;           /* most layers are gated delta-nets */
    bool tiled;            /* of those: value head j reads key head j % key heads, otherwise j / ratio */
    bool joint_gates;      /* of those: beta and alpha are one matrix, [beta | alpha] for each key head */
    bool sigmoid_gate;     /* of those: the output gate is a sigmoid, otherwise silu */
    bool streams;          /* the residual stream is several, joined by hyper-connections; block-sparse attention */
    bool experts;          /* feed-forward blocks may be experts */
    bool renormalise;      /* their weights, where the file does not say */
} qw_family;

/* NULL: an architecture that qw does not run. */
const qw_family *qw_family_find(const char *name, size_t n);
/* The next row after f, the first after NULL, NULL after the last. */
const qw_family *qw_family_next(const qw_family *f);

typedef struct qw_yarn {
    float factor; /* 0: none */
    float original_context, attention_factor, beta_fast, beta_slow;
} qw_yarn;

enum { QW_NGRAM_MAX = 4, QW_NGRAM_HEADS_MAX = 64 };

/* Per-layer n-gram embedding: a token and those before it are hashed to rows of a large table. */
typedef struct qw_ngram {
    uint32_t n;              /* tokens of the longest n-gram; 0: none */
    uint32_t layer;          /* the one that gets it */
    uint32_t heads_per_gram; /* rows for each length from 2 to n */
    uint32_t row;            /* floats of a row */
    uint32_t n_taps;         /* of the layer's convolution */
    int32_t end;             /* the token that stands for what is missing, and cuts n-grams */
    int64_t multipliers[QW_NGRAM_MAX];
    int64_t offsets[QW_NGRAM_HEADS_MAX], sizes[QW_NGRAM_HEADS_MAX]; /* of a head's part of the table */
} qw_ngram;

typedef struct qw_hparams {
    const qw_family *family;
    uint32_t n_layers, n_mtp; /* n_mtp: further blocks of the file, for multi-token prediction */
    uint32_t hidden, n_heads, n_kv_heads, head_dim, n_vocab;
    uint32_t ffn;             /* of dense blocks; 0: none */
    uint32_t n_rot;           /* elements of a head that are rotated */
    uint32_t n_experts, n_experts_used, expert_ffn, shared_ffn; /* shared_ffn 0: no shared expert */
    bool renormalise;
    uint32_t n_k_heads, n_v_heads, k_dim, v_dim, n_taps; /* of delta-nets */
    uint32_t full_attention_interval; /* of hybrids, where the file has no list */
    uint32_t n_streams, hyper_rank;   /* of the residual stream: 1 and 0 without hyper-connections */
    uint32_t index_heads, index_dim, index_block, index_top; /* block-sparse attention: qw_index; 0: none */
    qw_ngram ngram;
    uint32_t context_length;  /* tokens the model was trained for */
    float rope_base, rms_eps;
    qw_yarn yarn;
} qw_hparams;

typedef struct qw_layer qw_layer;
typedef struct qw_pass qw_pass;
typedef struct qw_binder qw_binder;
typedef void qw_net_weight_fn(void *ctx, qw_weight *w);

/* One kind of block: adds f(pass->normed) to pass->sum. bind finds the weights of layer `il`. */
typedef struct qw_block {
    const char *name;
    void (*bind)(qw_binder *b, const qw_hparams *hp, uint32_t il, qw_layer *layer);
    void (*forward)(qw_pass *pass, const qw_layer *layer);
    void (*each_weight)(qw_layer *layer, qw_net_weight_fn *fn, void *ctx);
} qw_block;

extern const qw_block qw_block_attention; /* full causal attention with grouped queries and RoPE */
extern const qw_block qw_block_delta;     /* gated delta-net: a recurrence instead of attention */
extern const qw_block qw_block_swiglu;    /* down(silu(gate x) * up x) */
extern const qw_block qw_block_moe;       /* experts, a few of which are chosen for each token */

typedef struct qw_ffn {
    qw_weight gate, up, down; /* [ffn, hidden] twice, [hidden, ffn]; of experts: stacks */
} qw_ffn;

/* How a block hangs on the residual stream. */
typedef struct qw_connection {
    const float *norm;          /* [n_streams * hidden] */
    qw_weight down, up, inject; /* several streams: [rank, n_streams * hidden], [n_streams * hidden, rank],
                                   [n_streams, n_streams * hidden] */
} qw_connection;

/* Per-layer embedding, added to the stream before the layer. */
typedef struct qw_ple {
    qw_weight key, value;       /* [n_streams * hidden, embedding], [hidden, embedding] */
    const float *key_norm, *query_norm, *conv_norm; /* [n_streams * hidden] */
    qw_ple_conv conv;
} qw_ple;

struct qw_layer {
    const qw_block *mixer, *ffn;
    qw_connection to_mixer, to_ffn;
    bool ple;                           /* the network's per-layer embedding is added before it */
    uint32_t kv_index;                  /* among the layers with keys and values */
    bool last;                          /* nothing after it looks at other rows than those asked for */
    struct {
        qw_weight q, k, v, o;      /* [heads*hd, hidden], [kv*hd, hidden] twice, [hidden, heads*hd]; a gated q has 2*hd
                                      rows a head: the query, then its gate */
        const float *bq, *bk, *bv; /* [rows] or NULL */
        const float *q_norm, *k_norm; /* [hd] or NULL */
        qw_weight index_q, index_k;   /* block-sparse: [index heads * dim, hidden], [dim, hidden] */
        const float *index_q_norm;    /* [dim] */
        qw_index index;
    } attn;
    struct {
        qw_weight qkv, z, out;     /* [channels, hidden], [value, hidden], [hidden, value] */
        qw_weight beta, alpha;     /* [value heads, hidden] each; joint: beta is [2 * value heads, hidden], alpha unused */
        qw_delta net;
    } delta;
    qw_ffn swiglu;
    struct {
        qw_weight router;          /* [experts, hidden] */
        qw_ffn experts, shared;    /* shared: without rows where there is none */
        qw_weight shared_scale;    /* [1, hidden] */
    } moe;
};

/* Multi-token prediction: a further layer that guesses one token more (forward.h). */
typedef struct qw_mtp {
    qw_layer layer;
    const float *embed_norm, *hidden_norm; /* [hidden] */
    qw_connection output;
    qw_weight join;                /* [hidden, 2 * hidden]: of the token's embedding and the hidden state */
    const qw_weight *embed, *head; /* the network's, or */
    qw_weight own_embed, own_head;
} qw_mtp;

typedef struct qw_net {
    const qw_gguf *file; /* borrows */
    qw_hparams hp;
    qw_layer *layers;          /* owns; [n_layers] */
    qw_weight embed;           /* [n_vocab, hidden], read by row */
    qw_weight head;            /* [n_vocab, hidden]: output.weight, or the embedding when tied */
    qw_connection output;      /* what makes the hidden state of the stream; its `inject` is unused */
    qw_weight ngram_table;     /* [rows, ngram.row], read by row */
    qw_ple ple;                /* of the layer that has it */
    qw_mtp *mtp;               /* owns; NULL: none */
    qw_weight cls;             /* [2, hidden]: scores yes and no of a reranker, where it exists */
    float **vectors;           /* owns the float copies of all one-dimensional tensors */
    size_t n_vectors;
    uint64_t n_params;
    uint32_t n_kv_layers;      /* layers with keys and values, without the one for multi-token prediction */
    size_t recurrent_bytes;    /* of a sequence's recurrent state: all delta-nets */
    bool acts[QW_ACT_COUNT];   /* what its matrices, packed, want their input as */
    size_t source_bytes;       /* the most that reading one row of a weight through its source takes */
    const char *quantization;  /* the type that most weight bytes have */
} qw_net;

qw_status qw_net_open(const qw_gguf *file, qw_net **out, qw_err *err) QW_MUST_CHECK;
void qw_net_close(qw_net *net);
/* Calls fn for every matrix, in file-independent order: layers, then the head. The embedding comes only when
 * it is the head (it is otherwise read by row, never multiplied). */
void qw_net_each_weight(qw_net *net, qw_net_weight_fn *fn, void *ctx);
/* The same for what only multi-token prediction multiplies with. */
void qw_net_each_mtp_weight(qw_net *net, qw_net_weight_fn *fn, void *ctx);

/* ---- for block_*.c ---------------------------------------------------------------------------- */

/* Collects faults instead of stopping at the first. */
struct qw_binder {
    const qw_gguf *file;
    qw_net *net;
    qw_faults faults;
    bool *bound; /* [tensors of the file], owns: those asked for */
};
/* Formats the name with the layer number; wants exactly [rows, k]. */
void qw_bind_matrix(qw_binder *b, const char *name_fmt, uint32_t il, size_t rows, size_t k, qw_weight *out);
/* A matrix for each of n experts: wants exactly [n, rows, k]. */
void qw_bind_stack(qw_binder *b, const char *name_fmt, uint32_t il, size_t n, size_t rows, size_t k, qw_weight *out);
/* A float copy of a one-dimensional tensor of n elements. optional: NULL when absent, no fault. */
void qw_bind_vector(qw_binder *b, const char *name_fmt, uint32_t il, size_t n, bool optional, const float **out);
/* A float copy of a small matrix [rows, k], turned into [k, rows]. */
void qw_bind_turned(qw_binder *b, const char *name_fmt, uint32_t il, size_t rows, size_t k, const float **out);
/* Is there a tensor of this name? Does not count as asking for it. */
bool qw_bind_has(const qw_binder *b, const char *name_fmt, uint32_t il);
/* Rows [row0, row0 + rows) of each matrix of w. */
qw_weight qw_weight_rows(const qw_weight *w, size_t row0, size_t rows);
/* For each_weight: calls fn unless the weight was not bound. */
void qw_each_of(qw_weight *const *all, size_t n, qw_net_weight_fn *fn, void *ctx);

#endif
