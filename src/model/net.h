/* net.h: a network bound to a model file: hyper-parameters, layers, weights.
 *
 * qw_net_open reads the hyper-parameters, finds every tensor the family's blocks ask for and demands the
 * exact shape; all faults of a file come in one message. No model name appears in the layer loop: a layer is
 * a token mixer and a feed-forward block, each with its own bind and forward function (block_*.c).
 * Immutable after open (qw_weights fills the `packed` pointers before the first pass); any thread.
 */
#ifndef QW_MODEL_NET_H
#define QW_MODEL_NET_H

#include <stdint.h>

#include "backend/backend.h"
#include "base/faults.h"
#include "base/status.h"
#include "formats/gguf.h"

typedef struct qw_hparams {
    char architecture[32];
    uint32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, ffn, n_vocab;
    uint32_t context_length; /* tokens the model was trained for */
    float rope_base, rms_eps;
} qw_hparams;

typedef struct qw_layer qw_layer;
typedef struct qw_pass qw_pass;
typedef struct qw_binder qw_binder;

/* One kind of block. bind finds the weights of layer `il`; forward adds the block's result to pass->x. */
typedef struct qw_block {
    const char *name;
    void (*bind)(qw_binder *b, const qw_hparams *hp, uint32_t il, qw_layer *layer);
    void (*forward)(qw_pass *pass, const qw_layer *layer, uint32_t il);
} qw_block;

extern const qw_block qw_block_attention; /* full causal attention with grouped queries and RoPE */
extern const qw_block qw_block_swiglu;    /* down(silu(gate x) * up x) */

struct qw_layer {
    const qw_block *mixer, *ffn;
    struct {
        const float *norm;        /* [hidden] */
        qw_weight q, k, v, o;     /* [heads*hd, hidden], [kv*hd, hidden] twice, [hidden, heads*hd] */
        const float *bq, *bk, *bv; /* [rows] or NULL */
    } attn;
    struct {
        const float *norm;        /* [hidden] */
        qw_weight gate, up, down; /* [ffn, hidden] twice, [hidden, ffn] */
    } swiglu;
};

typedef struct qw_net {
    const qw_gguf *file; /* borrows */
    qw_hparams hp;
    qw_layer *layers;          /* owns; [n_layers] */
    qw_weight embed;           /* [n_vocab, hidden], read by row */
    qw_weight head;            /* [n_vocab, hidden]: output.weight, or the embedding when tied */
    const float *output_norm;  /* [hidden] */
    float **vectors;           /* owns the float copies of all one-dimensional tensors */
    size_t n_vectors;
    uint64_t n_params;
    bool acts[QW_ACT_COUNT];   /* what its matrices, packed, want their input as */
    const char *quantization;  /* the type that most weight bytes have */
} qw_net;

qw_status qw_net_open(const qw_gguf *file, qw_net **out, qw_err *err) QW_MUST_CHECK;
void qw_net_close(qw_net *net);
/* Calls fn for every matrix, in file-independent order: layers, then the head. The embedding comes only when
 * it is the head (it is otherwise read by row, never multiplied). */
typedef void qw_net_weight_fn(void *ctx, qw_weight *w);
void qw_net_each_weight(qw_net *net, qw_net_weight_fn *fn, void *ctx);

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
/* A float copy of a one-dimensional tensor of n elements. optional: NULL when absent, no fault. */
void qw_bind_vector(qw_binder *b, const char *name_fmt, uint32_t il, size_t n, bool optional, const float **out);

#endif
