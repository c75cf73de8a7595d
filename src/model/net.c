/* net.c: binding a model file to the blocks of its family. See net.h. */
#include "model/net.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/hparams.h"

enum { VOCAB_MAX = 1 << 20 };

/* ---- binder ----------------------------------------------------------------------------------- */

static void format_name(const char *name_fmt, uint32_t il, char name[64])
{
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(name, 64, name_fmt, il);
#pragma GCC diagnostic pop
}

static const qw_tensor *find(qw_binder *b, const char *name_fmt, uint32_t il, bool optional, char name[64])
{
    format_name(name_fmt, il, name);
    const qw_tensor *t = qw_gguf_find_tensor(b->file, name);
    if (!t && !optional) qw_faults_add(&b->faults, "%s is missing", name);
    if (t) b->bound[t - qw_gguf_tensor(b->file, 0)] = true;
    return t;
}

bool qw_bind_has(const qw_binder *b, const char *name_fmt, uint32_t il)
{
    char name[64];
    format_name(name_fmt, il, name);
    return qw_gguf_find_tensor(b->file, name) != NULL;
}

/* "[3,4]", slowest dimension first, as the rest of the world writes shapes. */
typedef struct shape_text {
    char s[96];
} shape_text;

static shape_text shape_of(const qw_tensor *t)
{
    shape_text text;
    size_t at = 0;
    for (uint32_t i = t->n_dims; i-- > 0 && at < sizeof text.s;) {
        at += (size_t)snprintf(text.s + at, sizeof text.s - at, "%s%llu", at ? "," : "[", (unsigned long long)t->ne[i]);
    }
    if (at < sizeof text.s) snprintf(text.s + at, sizeof text.s - at, "]");
    return text;
}

static bool is_float_type(const qw_tensor *t)
{
    return t->type == QW_TYPE_F32 || t->type == QW_TYPE_F16 || t->type == QW_TYPE_BF16;
}

/* n floats that live as long as the network. */
static float *new_vector(qw_binder *b, const char *name, size_t n)
{
    qw_net *net = b->net;
    float *v;
    if (qw_grow(&net->vectors, net->n_vectors, net->n_vectors + 1, sizeof *net->vectors, "tensors", NULL) != QW_OK ||
        qw_alloc(&v, n, sizeof *v, name, NULL) != QW_OK) {
        qw_faults_add(&b->faults, "%s: out of memory", name);
        return NULL;
    }
    net->vectors[net->n_vectors++] = v;
    net->n_params += n;
    return v;
}

void qw_bind_vector(qw_binder *b, const char *name_fmt, uint32_t il, size_t n, bool optional, const float **out)
{
    char name[64];
    *out = NULL;
    const qw_tensor *t = find(b, name_fmt, il, optional, name);
    if (!t) return;
    if (t->n_dims != 1 || t->ne[0] != n) {
        qw_faults_add(&b->faults, "%s: want [%zu], file has %s", name, n, shape_of(t).s);
        return;
    }
    if (!is_float_type(t)) {
        qw_faults_add(&b->faults, "%s: want F32, F16 or BF16, file has %s", name, qw_type_get(t->type)->name);
        return;
    }
    float *copy = new_vector(b, name, n);
    if (copy) qw_dequantize_row(t->type, t->data, copy, n);
    *out = copy;
}

/* Beside NAME.weight there may be NAME.scale, a factor for each of its n matrices: what NVFP4 has beyond its blocks. The
 * NAME.input_scale that goes with it is for processors that multiply in four bits, and nothing here needs it. */
static const float *bind_scales(qw_binder *b, const qw_tensor *t, size_t n)
{
    static const char end[] = ".weight";
    const float *scales = NULL;
    char name[64], unused[64];
    int stem = (int)(strlen(t->name) - strlen(end));
    QW_ASSERT(stem > 0 && strcmp(t->name + stem, end) == 0);
    snprintf(name, sizeof name, "%.*s.input_scale", stem, t->name);
    find(b, name, 0, true, unused);
    snprintf(name, sizeof name, "%.*s.scale", stem, t->name);
    qw_bind_vector(b, name, 0, n, true, &scales);
    for (size_t i = 0; scales && i < n; i++) {
        if (isfinite(scales[i])) continue;
        qw_faults_add(&b->faults, "%s: number %zu is not finite", name, i);
        break;
    }
    return scales;
}

static qw_weight weight_of(qw_binder *b, const qw_tensor *t, size_t n, size_t rows, size_t k)
{
    size_t row_bytes = qw_type_row_bytes(t->type, k);
    qw_weight w = (qw_weight){.name = t->name, .type = t->type, .rows = rows, .k = k, .n_stacked = n, .data = t->data,
                       .source = t->source, .row_bytes = row_bytes, .stack_bytes = rows * row_bytes,
                       .scales = bind_scales(b, t, n)};
    size_t source_bytes = qw_weight_source_bytes(&w, 1);
    if (source_bytes > b->net->source_bytes) b->net->source_bytes = source_bytes;
    return w;
}

void qw_bind_matrix(qw_binder *b, const char *name_fmt, uint32_t il, size_t rows, size_t k, qw_weight *out)
{
    char name[64];
    const qw_tensor *t = find(b, name_fmt, il, false, name);
    if (!t) return;
    bool row = t->n_dims == 1 && rows == 1; /* some files store a single row as a vector */
    if (!(t->n_dims == 2 || row) || t->ne[0] != k || (!row && t->ne[1] != rows)) {
        qw_faults_add(&b->faults, "%s: want [%zu,%zu], file has %s", name, rows, k, shape_of(t).s);
        return;
    }
    *out = weight_of(b, t, 1, rows, k);
    b->net->n_params += (uint64_t)rows * k;
}

void qw_bind_stack(qw_binder *b, const char *name_fmt, uint32_t il, size_t n, size_t rows, size_t k, qw_weight *out)
{
    char name[64];
    const qw_tensor *t = find(b, name_fmt, il, false, name);
    if (!t) return;
    if (t->n_dims != 3 || t->ne[0] != k || t->ne[1] != rows || t->ne[2] != n) {
        qw_faults_add(&b->faults, "%s: want [%zu,%zu,%zu], file has %s", name, n, rows, k, shape_of(t).s);
        return;
    }
    *out = weight_of(b, t, n, rows, k);
    b->net->n_params += (uint64_t)n * rows * k;
}

qw_weight qw_weight_rows(const qw_weight *w, size_t row0, size_t rows)
{
    qw_weight part = *w;
    part.rows = rows;
    if (part.data) part.data += row0 * w->row_bytes;
    else part.source_row += row0;
    return part;
}

void qw_each_of(qw_weight *const *all, size_t n, qw_net_weight_fn *fn, void *ctx)
{
    for (size_t i = 0; i < n; i++) {
        if (qw_weight_exists(all[i])) fn(ctx, all[i]);
    }
}

void qw_bind_turned(qw_binder *b, const char *name_fmt, uint32_t il, size_t rows, size_t k, const float **out)
{
    char name[64];
    float row[64], *turned;
    *out = NULL;
    const qw_tensor *t = find(b, name_fmt, il, false, name);
    if (!t) return;
    QW_ASSERT(k <= sizeof row / sizeof *row);
    if (t->n_dims != 2 || t->ne[0] != k || t->ne[1] != rows || !is_float_type(t)) {
        qw_faults_add(&b->faults, "%s: want [%zu,%zu] in F32, F16 or BF16, file has %s in %s", name, rows, k, shape_of(t).s,
                      qw_type_get(t->type)->name);
        return;
    }
    turned = new_vector(b, name, rows * k);
    for (size_t r = 0; turned && r < rows; r++) {
        qw_dequantize_row(t->type, t->data + r * qw_type_row_bytes(t->type, k), row, k);
        for (size_t i = 0; i < k; i++) turned[i * rows + r] = row[i];
    }
    *out = turned;
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
                  first, b->net->hp.family->architecture, n - 1);
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

/* prefix: what its tensors' names begin with, "blk.%u.attn_norm" or "blk.%u.hc_attn_". */
static void bind_connection(qw_binder *b, const qw_hparams *hp, uint32_t il, const char *prefix, qw_connection *c)
{
    char name[64];
    size_t wide = (size_t)hp->n_streams * hp->hidden;
    if (!hp->family->streams) {
        snprintf(name, sizeof name, "%s.weight", prefix);
        qw_bind_vector(b, name, il, hp->hidden, false, &c->norm);
        return;
    }
    snprintf(name, sizeof name, "%snorm.weight", prefix);
    qw_bind_vector(b, name, il, wide, false, &c->norm);
    snprintf(name, sizeof name, "%sdown.weight", prefix);
    qw_bind_matrix(b, name, il, hp->hyper_rank, wide, &c->down);
    snprintf(name, sizeof name, "%sup.weight", prefix);
    qw_bind_matrix(b, name, il, wide, hp->hyper_rank, &c->up);
    snprintf(name, sizeof name, "%sinject.weight", prefix);
    if (strncmp(prefix, "output", 6) != 0) qw_bind_matrix(b, name, il, hp->n_streams, wide, &c->inject);
}

/* The two blocks of layer il and how they hang on the stream. */
static void bind_blocks(qw_binder *b, const qw_net *net, uint32_t il, bool recurrent, qw_layer *layer)
{
    const qw_hparams *hp = &net->hp;
    char ffn_norm[64];
    bool experts = hp->family->experts && (hp->ffn == 0 || qw_bind_has(b, "blk.%u.ffn_gate_inp.weight", il));
    if (hp->family->streams)
        snprintf(ffn_norm, sizeof ffn_norm, "blk.%%u.hc_ffn_");
    else
        snprintf(ffn_norm, sizeof ffn_norm, "blk.%%u.%s", hp->family->ffn_norm);
    layer->mixer = recurrent ? &qw_block_delta : &qw_block_attention;
    layer->ffn = experts ? &qw_block_moe : &qw_block_swiglu;
    bind_connection(b, hp, il, hp->family->streams ? "blk.%u.hc_attn_" : "blk.%u.attn_norm", &layer->to_mixer);
    layer->mixer->bind(b, hp, il, layer);
    bind_connection(b, hp, il, ffn_norm, &layer->to_ffn);
    layer->ffn->bind(b, hp, il, layer);
}

/* Blocks for multi-token prediction come after the layers. Some files hold only parts of one: those are left alone. */
static void bind_mtp(qw_binder *b, qw_net *net)
{
    const qw_hparams *hp = &net->hp;
    uint32_t il = hp->n_layers;
    size_t h = hp->hidden;
    for (size_t i = 0; hp->n_mtp && i < qw_gguf_n_tensors(b->file); i++) {
        unsigned block;
        if (sscanf(qw_gguf_tensor(b->file, i)->name, "blk.%u.", &block) == 1 && block >= il) b->bound[i] = true;
    }
    if (!hp->n_mtp || !qw_bind_has(b, "blk.%u.nextn.eh_proj.weight", il)) return;
    if (qw_alloc(&net->mtp, 1, sizeof *net->mtp, "multi-token prediction", NULL) != QW_OK) {
        qw_faults_add(&b->faults, "blk.%u: out of memory", il);
        return;
    }
    qw_mtp *m = net->mtp;
    qw_bind_matrix(b, "blk.%u.nextn.eh_proj.weight", il, h, 2 * h, &m->join);
    qw_bind_vector(b, "blk.%u.nextn.enorm.weight", il, h, false, &m->embed_norm);
    qw_bind_vector(b, "blk.%u.nextn.hnorm.weight", il, h, false, &m->hidden_norm);
    qw_bind_vector(b, "blk.%u.nextn.shared_head_norm.weight", il, h, false, &m->output.norm);
    if (qw_bind_has(b, "blk.%u.nextn.embed_tokens.weight", il))
        qw_bind_matrix(b, "blk.%u.nextn.embed_tokens.weight", il, hp->n_vocab, h, &m->own_embed);
    if (qw_bind_has(b, "blk.%u.nextn.shared_head_head.weight", il))
        qw_bind_matrix(b, "blk.%u.nextn.shared_head_head.weight", il, hp->n_vocab, h, &m->own_head);
    m->embed = qw_weight_exists(&m->own_embed) ? &m->own_embed : &net->embed;
    m->head = qw_weight_exists(&m->own_head) ? &m->own_head : &net->head;
    bind_blocks(b, net, il, false, &m->layer);
    m->layer.last = true;
    m->layer.kv_index = net->n_kv_layers;
}

/* A list in the file wins over the interval; the last layer of an interval has attention. */
static bool is_recurrent(const qw_binder *b, const qw_hparams *hp, uint32_t il)
{
    char key[128];
    qw_gguf_array list;
    if (!hp->family->hybrid) return false;
    snprintf(key, sizeof key, "%s.attention.recurrent_layers", hp->family->architecture);
    if (qw_gguf_has(b->file, key) && qw_gguf_get_array(b->file, key, QW_GGUF_BOOL, &list, NULL) == QW_OK && il < list.n)
        return qw_gguf_array_int(&list, il) != 0;
    return (il + 1) % hp->full_attention_interval != 0;
}

/* Room in a sequence's recurrent state; returns where. */
static size_t take_state(qw_net *net, size_t bytes)
{
    size_t at = net->recurrent_bytes;
    net->recurrent_bytes += (bytes + 63) / 64 * 64;
    return at;
}

static void bind_layer(qw_binder *b, qw_net *net, uint32_t il)
{
    qw_layer *layer = &net->layers[il];
    bool recurrent = is_recurrent(b, &net->hp, il);
    bind_blocks(b, net, il, recurrent, layer);
    layer->last = il + 1 == net->hp.n_layers;
    if (recurrent) {
        layer->delta.net.offset = take_state(net, qw_delta_state_bytes(&layer->delta.net));
        return;
    }
    layer->kv_index = net->n_kv_layers++;
    if (net->hp.index_block)
        layer->attn.index.offset = take_state(net, (net->hp.index_block - 1) * net->hp.index_dim * sizeof(float));
}

static void bind_ple(qw_binder *b, qw_net *net)
{
    const qw_hparams *hp = &net->hp;
    const qw_ngram *g = &hp->ngram;
    size_t wide = (size_t)hp->n_streams * hp->hidden, n_heads = (size_t)(g->n - 1) * g->heads_per_gram;
    size_t embedding = n_heads * g->row, n_rows = 0;
    uint32_t il = g->layer;
    qw_ple *p = &net->ple;
    char name[64];
    for (size_t h = 0; h < n_heads; h++) {
        size_t end = (size_t)g->offsets[h] + (size_t)g->sizes[h];
        n_rows = end > n_rows ? end : n_rows;
    }
    for (uint32_t i = 0; i < g->n; i++) {
        if (g->multipliers[i] <= INT64_MAX / (int64_t)VOCAB_MAX) continue;
        if (hp->n_vocab && g->multipliers[i] > INT64_MAX / (int64_t)hp->n_vocab)
            qw_faults_add(&b->faults, "ple.layer_multipliers: %lld times a token leaves 63 bits", (long long)g->multipliers[i]);
    }
    const qw_tensor *t = find(b, "per_layer_token_embd.weight", 0, false, name);
    if (t && (t->n_dims != 2 || t->ne[0] != g->row || t->ne[1] < n_rows || t->ne[1] > INT32_MAX))
        qw_faults_add(&b->faults, "%s: want [%zu or more,%u], file has %s", name, n_rows, g->row, shape_of(t).s);
    else if (t)
        net->ngram_table = weight_of(b, t, 1, (size_t)t->ne[1], g->row);
    net->n_params += net->ngram_table.rows * g->row;
    qw_bind_matrix(b, "blk.%u.ple_key.weight", il, wide, embedding, &p->key);
    qw_bind_matrix(b, "blk.%u.ple_value.weight", il, hp->hidden, embedding, &p->value);
    qw_bind_vector(b, "blk.%u.ple_norm_key.weight", il, wide, false, &p->key_norm);
    qw_bind_vector(b, "blk.%u.ple_norm_query.weight", il, wide, false, &p->query_norm);
    qw_bind_vector(b, "blk.%u.ple_norm_conv.weight", il, wide, false, &p->conv_norm);
    p->conv = (qw_ple_conv){.n_taps = g->n_taps, .dilation = g->n, .k = wide};
    qw_bind_turned(b, "blk.%u.ple_conv1d.weight", il, wide, g->n_taps, &p->conv.w);
    p->conv.offset = take_state(net, (size_t)(g->n_taps - 1) * g->n * wide * sizeof(float));
    net->layers[il].ple = true;
}

static void bind_all(qw_binder *b, qw_net *net)
{
    bind_vocabulary(b, net);
    bind_connection(b, &net->hp, 0, net->hp.family->streams ? "output_hc_" : "output_norm", &net->output);
    for (uint32_t il = 0; il < net->hp.n_layers; il++) bind_layer(b, net, il);
    if (net->hp.ngram.n) bind_ple(b, net);
    bind_mtp(b, net);
    if (qw_bind_has(b, "cls.output.weight", 0)) qw_bind_matrix(b, "cls.output.weight", 0, 2, net->hp.hidden, &net->cls);
    refuse_unknown_tensors(b);
}

static void count_type(void *ctx, qw_weight *w)
{
    uint64_t *bytes = ctx;
    bytes[w->type] += (uint64_t)w->n_stacked * w->rows * w->row_bytes;
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
    qw_net_each_mtp_weight(net, note_act, net->acts);
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
    free(net->mtp);
    free(net);
}

static void each_of_connection(qw_connection *c, qw_net_weight_fn *fn, void *ctx)
{
    qw_weight *const all[] = {&c->down, &c->up, &c->inject};
    qw_each_of(all, sizeof all / sizeof *all, fn, ctx);
}

static void each_of_layer(qw_layer *l, qw_net_weight_fn *fn, void *ctx)
{
    each_of_connection(&l->to_mixer, fn, ctx);
    each_of_connection(&l->to_ffn, fn, ctx);
    l->mixer->each_weight(l, fn, ctx);
    l->ffn->each_weight(l, fn, ctx);
}

void qw_net_each_weight(qw_net *net, qw_net_weight_fn *fn, void *ctx)
{
    for (uint32_t il = 0; il < net->hp.n_layers; il++) each_of_layer(&net->layers[il], fn, ctx);
    qw_weight *const rest[] = {&net->ple.key, &net->ple.value, &net->cls};
    each_of_connection(&net->output, fn, ctx);
    qw_each_of(rest, sizeof rest / sizeof *rest, fn, ctx);
    fn(ctx, &net->head);
}

void qw_net_each_mtp_weight(qw_net *net, qw_net_weight_fn *fn, void *ctx)
{
    if (!net->mtp) return;
    each_of_layer(&net->mtp->layer, fn, ctx);
    fn(ctx, &net->mtp->join);
    if (qw_weight_exists(&net->mtp->own_head)) fn(ctx, &net->mtp->own_head);
}
