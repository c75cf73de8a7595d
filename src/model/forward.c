/* forward.c: see forward.h. The layer loop reads like the paper; what a layer does is in block_*.c. */
#include "model/forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/stream.h"

qw_kv_shape qw_net_kv_shape(const qw_net *net, qw_kv_type type, bool mtp)
{
    QW_ASSERT(!mtp || net->mtp);
    const qw_hparams *hp = &net->hp;
    return (qw_kv_shape){.type = type, .n_layers = net->n_kv_layers + (mtp ? 1 : 0), .n_heads = hp->n_heads,
                         .n_kv_heads = hp->n_kv_heads, .head_dim = hp->head_dim, .index_dim = hp->index_dim,
                         .index_block = hp->index_block};
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Floats of a row between a mixer's output and its last product. */
static size_t mixed_floats(const qw_hparams *hp)
{
    return max_size((size_t)hp->n_heads * hp->head_dim, (size_t)hp->n_v_heads * hp->v_dim);
}

static size_t n_gram_heads(const qw_hparams *hp)
{
    return hp->ngram.n ? (size_t)(hp->ngram.n - 1) * hp->ngram.heads_per_gram : 0;
}

static size_t gram_floats(const qw_hparams *hp)
{
    return n_gram_heads(hp) * hp->ngram.row;
}

qw_cpu_sizes qw_net_cpu_sizes(const qw_net *net, size_t n_rows_max, bool packed)
{
    const qw_hparams *hp = &net->hp;
    size_t k_max = max_size(max_size(hp->hidden, max_size(hp->ffn, hp->shared_ffn)), mixed_floats(hp));
    qw_cpu_sizes sizes = {.n_rows_max = n_rows_max, .k_max = max_size(k_max, hp->expert_ffn), .head_dim = hp->head_dim,
                          .n_experts = hp->n_experts, .n_used = hp->n_experts_used, .hidden = hp->hidden,
                          .expert_ffn = hp->expert_ffn, .k_dim = hp->k_dim, .v_dim = hp->v_dim};
    size_t wide = (size_t)hp->n_streams * hp->hidden;
    sizes.k_max = max_size(sizes.k_max, max_size(wide, max_size(hp->hyper_rank, gram_floats(hp))));
    sizes.index_top = hp->index_top;
    if (net->mtp) sizes.k_max = max_size(sizes.k_max, 2 * (size_t)hp->hidden);
    sizes.source_bytes = net->source_bytes;
    if (packed) memcpy(sizes.acts, net->acts, sizeof sizes.acts);
    return sizes;
}

/* Divides the arena, or only measures it when pass->arena is NULL. Every piece starts on a cache line. */
static size_t divide(qw_pass *p, const qw_net *net, size_t n)
{
    const qw_hparams *hp = &net->hp;
    size_t q = (size_t)hp->n_heads * hp->head_dim * (hp->family->gated_attention ? 2 : 1);
    size_t kv = (size_t)hp->n_kv_heads * hp->head_dim, half = hp->n_rot / 2, ffn = max_size(hp->ffn, hp->shared_ffn);
    size_t value = (size_t)hp->n_v_heads * hp->v_dim, channels = 2 * (size_t)hp->n_k_heads * hp->k_dim + value;
    size_t gates = 2 * (size_t)hp->n_v_heads, wide = (size_t)hp->n_streams * hp->hidden;
    size_t streams = hp->family->streams ? n : 0; /* rows of what hyper-connections need */
    struct piece {
        float **ptr;
        size_t n_floats;
    } pieces[] = {
        {&p->x, n * wide}, {&p->normed, n * hp->hidden}, {&p->q, n * q},     {&p->k, n * kv},
        {&p->v, n * kv},         {&p->mixed, n * mixed_floats(hp)},
        {&p->gate, n * ffn},     {&p->up, n * ffn},            {&p->cos, n * half},
        {&p->sin, n * half},     {&p->inv_freq, half},         {&p->qkv, n * channels},
        {&p->z, n * value},      {&p->beta, n * gates},        {&p->alpha, n * gates / 2},
        {&p->joined, net->mtp ? 2 * n * hp->hidden : 0},
        {&p->wide, streams * wide},    {&p->mix, streams * wide},  {&p->low, streams * hp->hyper_rank},
        {&p->inject, streams * hp->n_streams}, {&p->block_out, streams * hp->hidden},
        {&p->grams, n * gram_floats(hp)}, {&p->gated, n_gram_heads(hp) ? n * wide : 0},
        {&p->index_q, n * hp->index_heads * hp->index_dim}, {&p->index_k, n * hp->index_dim},
    };
    size_t at = 0;
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
        if (p->arena) *pieces[i].ptr = p->arena + at;
        at += (pieces[i].n_floats + 15) / 16 * 16;
    }
    return at * sizeof(float);
}

size_t qw_pass_bytes(const qw_net *net, size_t n_rows_max)
{
    qw_pass measure = {0};
    size_t row = sizeof(qw_kv_row) + sizeof(int32_t) * (1 + n_gram_heads(&net->hp)) + sizeof(uint32_t);
    return divide(&measure, net, n_rows_max) + n_rows_max * row;
}

/* Dimension whose wave turns `turns` times over the original context (YaRN; transformers, modeling_rope_utils). */
static double yarn_dimension(const qw_hparams *hp, float turns)
{
    double pi = 3.14159265358979323846;
    return hp->n_rot * log((double)hp->yarn.original_context / ((double)turns * 2 * pi)) / (2 * log((double)hp->rope_base));
}

/* theta^(-2i/d), rounded to float32 at the steps where the official implementation rounds
 * (transformers, modeling_rope_utils): the angle of a late position depends on the last bit. With YaRN the slow waves are
 * stretched by the factor, the fast ones stay, and those between are mixed. */
static void fill_inv_freq(float *inv_freq, const qw_hparams *hp)
{
    uint32_t half = hp->n_rot / 2;
    double low = 0, high = 0;
    if (hp->yarn.factor > 0) {
        low = fmax(floor(yarn_dimension(hp, hp->yarn.beta_fast)), 0);
        high = fmin(ceil(yarn_dimension(hp, hp->yarn.beta_slow)), hp->n_rot - 1);
        if (low == high) high += 0.001;
    }
    for (uint32_t i = 0; i < half; i++) {
        float exponent = (float)(2 * i) / (float)hp->n_rot;
        float power = (float)pow((double)hp->rope_base, (double)exponent);
        inv_freq[i] = 1.0f / power;
        if (hp->yarn.factor <= 0) continue;
        float ramp = ((float)i - (float)low) / (float)(high - low);
        float keep = 1.0f - fminf(fmaxf(ramp, 0.0f), 1.0f);
        inv_freq[i] = 1.0f / (hp->yarn.factor * power) * (1.0f - keep) + inv_freq[i] * keep;
    }
}

qw_status qw_pass_create(const qw_net *net, qw_backend *be, const qw_kv_shape *kv, size_t n_rows_max, qw_pass **out,
                         qw_err *err)
{
    qw_pass *p = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&p, 1, sizeof *p, "pass", err));
    p->net = net;
    p->be = be;
    p->kv = *kv;
    p->n_rows_max = n_rows_max;
    QW_ASSERT(n_rows_max >= 2); /* the head takes half a batch at a time */
    QW_TRY_GOTO(qw_alloc(&p->kv_rows, n_rows_max, sizeof *p->kv_rows, "batch rows", err));
    QW_TRY_GOTO(qw_alloc(&p->slot, n_rows_max, sizeof *p->slot, "batch rows", err));
    QW_TRY_GOTO(qw_alloc(&p->tokens, n_rows_max, sizeof *p->tokens, "batch tokens", err));
    QW_TRY_GOTO(qw_alloc(&p->gram_rows, n_rows_max * n_gram_heads(&net->hp), sizeof *p->gram_rows, "n-grams", err));
    p->arena_bytes = divide(p, net, n_rows_max);
    QW_TRY_GOTO(qw_alloc_aligned(&p->arena, p->arena_bytes, "activations", err));
    divide(p, net, n_rows_max);
    fill_inv_freq(p->inv_freq, &net->hp);
    p->rope_scale = net->hp.yarn.factor > 0 ? net->hp.yarn.attention_factor : 1.0f;
    *out = p;
    return QW_OK;
fail:
    qw_pass_destroy(p);
    return status;
}

void qw_pass_destroy(qw_pass *p)
{
    if (!p) return;
    if (p->arena) qw_free_aligned(p->arena, p->arena_bytes);
    free(p->kv_rows);
    free(p->tokens);
    free(p->slot);
    free(p->gram_rows);
    free(p);
}

static void fill_rope(qw_pass *p, const qw_row *rows)
{
    size_t half = p->net->hp.n_rot / 2;
    for (size_t r = 0; r < p->n_rows; r++) {
        for (size_t i = 0; i < half; i++) {
            float angle = (float)rows[r].pos * p->inv_freq[i];
            double s, c;
            sincos((double)angle, &s, &c);
            p->cos[r * half + i] = (float)c * p->rope_scale;
            p->sin[r * half + i] = (float)s * p->rope_scale;
        }
    }
}

void qw_pass_drop_silent(qw_pass *p)
{
    const qw_hparams *hp = &p->net->hp;
    size_t h = hp->hidden, wide = hp->n_streams * h, half = hp->n_rot / 2, n = 0;
    if (p->dropped) return;
    p->dropped = true;
    for (size_t r = 0; r < p->n_batch; r++) {
        if (p->slot[r] == QW_SILENT) continue;
        if (n < r) {
            memcpy(p->x + n * wide, p->x + r * wide, wide * sizeof *p->x);
            memcpy(p->normed + n * h, p->normed + r * h, h * sizeof *p->normed);
            memcpy(p->cos + n * half, p->cos + r * half, half * sizeof *p->cos);
            memcpy(p->sin + n * half, p->sin + r * half, half * sizeof *p->sin);
            p->kv_rows[n] = p->kv_rows[r];
            if (hp->family->streams)
                memcpy(p->inject + n * hp->n_streams, p->inject + r * hp->n_streams, hp->n_streams * sizeof *p->inject);
        }
        n++;
    }
    p->n_rows = n;
}

/* Where the rows stand, and which of them will be asked for. */
static void begin(qw_pass *p, const qw_row *rows, size_t n_rows)
{
    QW_ASSERT(n_rows >= 1 && n_rows <= p->n_rows_max);
    p->n_rows = p->n_batch = n_rows;
    p->dropped = false;
    uint32_t n_asked = 0;
    for (size_t r = 0; r < n_rows; r++) {
        p->slot[r] = rows[r].silent ? QW_SILENT : n_asked++;
        QW_ASSERT(rows[r].token >= 0 && (uint32_t)rows[r].token < p->net->hp.n_vocab);
        QW_ASSERT(rows[r].pos / QW_KV_TILE < rows[r].seq->n_pages);
        p->tokens[r] = rows[r].token;
        p->kv_rows[r] = (qw_kv_row){.pages = rows[r].seq->pages, .recurrent = rows[r].seq->recurrent,
                                    .keep = rows[r].keep, .pos = rows[r].pos};
    }
    fill_rope(p, rows);
}

/* False: the last layer, and nobody asks for anything. */
static bool run_layer(qw_pass *p, const qw_layer *layer)
{
    if (layer->ple) qw_ple_add(p);
    qw_stream_enter(p, &layer->to_mixer);
    layer->mixer->forward(p, layer);
    if (p->n_rows == 0) return false;
    qw_stream_leave(p);
    qw_stream_enter(p, &layer->to_ffn);
    layer->ffn->forward(p, layer);
    qw_stream_leave(p);
    return true;
}

void qw_forward(qw_pass *p, const qw_row *rows, size_t n_rows)
{
    const qw_net *net = p->net;
    begin(p, rows, n_rows);
    if (net->hp.ngram.n) qw_ngram_find(p, rows);
    p->output = &net->output;
    p->head = &net->head;
    qw_stream_begin(p, &net->embed);
    for (uint32_t il = 0; il < net->hp.n_layers; il++)
        if (!run_layer(p, &net->layers[il])) return;
    qw_pass_drop_silent(p); /* where the last layer has no attention, which does it */
}

void qw_forward_mtp(qw_pass *p, const qw_row *rows, size_t n_rows, const float *hidden, size_t ld)
{
    const qw_mtp *m = p->net->mtp;
    const qw_backend_ops *ops = p->be->ops;
    size_t h = p->net->hp.hidden;
    float eps = p->net->hp.rms_eps;
    QW_ASSERT(m && p->kv_first + p->kv.n_layers > p->net->n_kv_layers);
    begin(p, rows, n_rows);
    p->output = &m->output;
    p->head = m->head;
    /* x = Wjoin [norm(embedding); norm(hidden)] */
    ops->embed(p->be, m->embed, p->tokens, n_rows, p->joined, 2 * h);
    ops->rms_norm(p->be, p->joined, m->embed_norm, n_rows, h, 2 * h, eps, p->joined);
    for (size_t r = 0; r < n_rows; r++) memcpy(p->joined + (2 * r + 1) * h, hidden + r * ld, h * sizeof *hidden);
    ops->rms_norm(p->be, p->joined + h, m->hidden_norm, n_rows, h, 2 * h, eps, p->joined + h);
    qw_linear join = {.w = &m->join, .out = p->x, .ld = h};
    ops->linear(p->be, p->joined, 2 * h, n_rows, &join, 1);
    run_layer(p, &m->layer);
}

void qw_pass_hidden(qw_pass *p, const uint32_t *rows, size_t n, float *out)
{
    qw_stream_read(p, p->output, rows, n, out);
}

/* A product decides between near-equal tokens and is read once for few rows: its activations get 16 bits, which costs
 * nothing where memory is the limit. */
static void project(qw_pass *p, const qw_weight *w, const uint32_t *rows, size_t n, float *out, size_t ld)
{
    size_t h = p->net->hp.hidden, step = p->n_rows_max / 2;
    QW_ASSERT(n <= p->n_rows_max);
    qw_pass_hidden(p, rows, n, p->normed);
    for (size_t i = 0; i < n; i += step) {
        qw_linear product = {.w = w, .out = out + i * ld, .ld = ld, .fine = true};
        p->be->ops->linear(p->be, p->normed + i * h, h, n - i < step ? n - i : step, &product, 1);
    }
}

void qw_pass_logits(qw_pass *p, const uint32_t *rows, size_t n, float *out, size_t ld)
{
    project(p, p->head, rows, n, out, ld);
}

void qw_pass_scores(qw_pass *p, const uint32_t *rows, size_t n, float *out)
{
    QW_ASSERT(qw_weight_exists(&p->net->cls));
    project(p, &p->net->cls, rows, n, out, 2);
}
