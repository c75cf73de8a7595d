/* net.c: binding a model file to the blocks of its family. See net.h. */
#include "model/net.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/hparams.h"

enum { VOCAB_MAX = 1 << 20 };

/* Which blocks a family's layers are made of. */
typedef struct family {
    const char *architecture;
    const qw_block *mixer, *ffn;
} family;

static const family families[] = {
    {"qwen2", &qw_block_attention, &qw_block_swiglu},
};

static const family *find_family(const char *architecture)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (strcmp(families[i].architecture, architecture) == 0) return &families[i];
    }
    return NULL;
}

/* ---- binder ----------------------------------------------------------------------------------- */

static const qw_tensor *find(qw_binder *b, const char *name_fmt, uint32_t il, bool optional, char name[64])
{
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(name, 64, name_fmt, il);
#pragma GCC diagnostic pop
    const qw_tensor *t = qw_gguf_find_tensor(b->file, name);
    if (!t && !optional) qw_faults_add(&b->faults, "%s is missing", name);
    if (t) b->bound[t - qw_gguf_tensor(b->file, 0)] = true;
    return t;
}

void qw_bind_matrix(qw_binder *b, const char *name_fmt, uint32_t il, size_t rows, size_t k, qw_weight *out)
{
    char name[64];
    const qw_tensor *t = find(b, name_fmt, il, false, name);
    if (!t) return;
    if (t->n_dims != 2 || t->ne[0] != k || t->ne[1] != rows) {
        qw_faults_add(&b->faults, "%s: want [%zu,%zu], file has [%llu,%llu%s]", name, rows, k,
                      (unsigned long long)t->ne[1], (unsigned long long)t->ne[0], t->n_dims > 2 ? ",..." : "");
        return;
    }
    *out = (qw_weight){.name = t->name, .type = t->type, .rows = rows, .k = k, .data = t->data,
                       .row_bytes = qw_type_row_bytes(t->type, k)};
    b->net->n_params += (uint64_t)rows * k;
}

void qw_bind_vector(qw_binder *b, const char *name_fmt, uint32_t il, size_t n, bool optional, const float **out)
{
    char name[64];
    float *copy;
    *out = NULL;
    const qw_tensor *t = find(b, name_fmt, il, optional, name);
    if (!t) return;
    if (t->n_dims != 1 || t->ne[0] != n) {
        qw_faults_add(&b->faults, "%s: want [%zu], file has [%llu%s]", name, n, (unsigned long long)t->ne[0],
              t->n_dims > 1 ? ",..." : "");
        return;
    }
    if (t->type != QW_TYPE_F32 && t->type != QW_TYPE_F16 && t->type != QW_TYPE_BF16) {
        qw_faults_add(&b->faults, "%s: want F32, F16 or BF16, file has %s", name, qw_type_get(t->type)->name);
        return;
    }
    qw_net *net = b->net;
    if (qw_grow(&net->vectors, net->n_vectors, net->n_vectors + 1, sizeof *net->vectors, "tensors", NULL) != QW_OK ||
        qw_alloc(&copy, n, sizeof *copy, name, NULL) != QW_OK) {
        qw_faults_add(&b->faults, "%s: out of memory", name);
        return;
    }
    net->vectors[net->n_vectors++] = copy;
    qw_dequantize_row(t->type, t->data, copy, n);
    net->n_params += n;
    *out = copy;
}

/* ---- open ------------------------------------------------------------------------------------- */

/* Tensors nobody asked for would be computed wrongly by being ignored: a file that has them is another
 * architecture, or damaged. */
static void refuse_unknown_tensors(qw_binder *b)
{
    const char *first = NULL;
    size_t n = 0;
    for (size_t i = 0; i < qw_gguf_n_tensors(b->file); i++) {
        if (b->bound[i]) continue;
        if (n++ == 0) first = qw_gguf_tensor(b->file, i)->name;
    }
    if (n == 0) return;
    qw_faults_add(&b->faults, n == 1 ? "%s is not part of the %s architecture"
                                     : "%s is not part of the %s architecture, nor are %zu other tensors",
                  first, b->net->hp.architecture, n - 1);
}

/* The number of rows of the embedding is the size of the vocabulary. */
static void bind_vocabulary(qw_binder *b, qw_net *net)
{
    qw_hparams *hp = &net->hp;
    char name[64];
    const qw_tensor *embed = find(b, "token_embd.weight", 0, false, name);
    bool tied = qw_gguf_find_tensor(b->file, "output.weight") == NULL;
    if (embed && (embed->n_dims != 2 || embed->ne[1] > VOCAB_MAX)) {
        qw_faults_add(&b->faults, "token_embd.weight: the vocabulary has no size qw runs");
        embed = NULL;
    }
    if (!embed) { /* without its size the head cannot be checked */
        if (!tied) find(b, "output.weight", 0, false, name);
        return;
    }
    hp->n_vocab = (uint32_t)embed->ne[1];
    qw_bind_matrix(b, "token_embd.weight", 0, hp->n_vocab, hp->hidden, &net->embed);
    if (tied) net->head = net->embed;
    else qw_bind_matrix(b, "output.weight", 0, hp->n_vocab, hp->hidden, &net->head);
}

static void bind_all(qw_binder *b, qw_net *net)
{
    qw_hparams *hp = &net->hp;
    const family *f = find_family(hp->architecture);
    QW_ASSERT(f);
    bind_vocabulary(b, net);
    qw_bind_vector(b, "output_norm.weight", 0, hp->hidden, false, &net->output_norm);
    for (uint32_t il = 0; il < hp->n_layers; il++) {
        qw_layer *layer = &net->layers[il];
        layer->mixer = f->mixer;
        layer->ffn = f->ffn;
        layer->mixer->bind(b, hp, il, layer);
        layer->ffn->bind(b, hp, il, layer);
    }
    refuse_unknown_tensors(b);
}

static void count_type(void *ctx, qw_weight *w)
{
    uint64_t *bytes = ctx;
    bytes[w->type] += (uint64_t)w->rows * w->row_bytes;
}

static void note_act(void *ctx, qw_weight *w)
{
    bool *acts = ctx;
    acts[qw_pack_act(qw_pack_of(w->type))] = true;
}

static const char *most_used_type(qw_net *net)
{
    uint64_t bytes[QW_TYPE_LIMIT] = {0};
    uint32_t best = 0;
    qw_net_each_weight(net, count_type, bytes);
    for (uint32_t t = 1; t < QW_TYPE_LIMIT; t++) {
        if (bytes[t] > bytes[best]) best = t;
    }
    return qw_type_get(best)->name;
}

qw_status qw_net_open(const qw_gguf *file, qw_net **out, qw_err *err)
{
    qw_net *net = NULL;
    qw_binder b = {.file = file};
    qw_status status;
    *out = NULL;
    QW_TRY_GOTO(qw_alloc(&net, 1, sizeof *net, "model", err));
    net->file = file;
    b.net = net;
    QW_TRY_GOTO(qw_hparams_read(file, &net->hp, err));
    QW_TRY_GOTO(qw_alloc(&net->layers, net->hp.n_layers, sizeof *net->layers, "layers", err));
    QW_TRY_GOTO(qw_alloc(&b.bound, qw_gguf_n_tensors(file), sizeof *b.bound, "tensors", err));
    bind_all(&b, net);
    QW_TRY_GOTO(qw_faults_report(&b.faults, QW_E_FORMAT, qw_gguf_path(file), err));
    net->quantization = most_used_type(net);
    qw_net_each_weight(net, note_act, net->acts);
    free(b.bound);
    *out = net;
    return QW_OK;
fail:
    free(b.bound);
    qw_net_close(net);
    return status;
}

void qw_net_close(qw_net *net)
{
    if (!net) return;
    for (size_t i = 0; i < net->n_vectors; i++) free(net->vectors[i]);
    free(net->vectors);
    free(net->layers);
    free(net);
}

void qw_net_each_weight(qw_net *net, qw_net_weight_fn *fn, void *ctx)
{
    for (uint32_t il = 0; il < net->hp.n_layers; il++) {
        qw_layer *l = &net->layers[il];
        qw_weight *all[] = {&l->attn.q, &l->attn.k, &l->attn.v, &l->attn.o,
                            &l->swiglu.gate, &l->swiglu.up, &l->swiglu.down};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
            if (all[i]->data) fn(ctx, all[i]);
        }
    }
    fn(ctx, &net->head);
}
