/* model.c: opening a model and asking about it. See qw.h. */
#include "engine/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"

qw_text qw_text_of(const char *s)
{
    return (qw_text){.s = s ? s : "", .n = s ? strlen(s) : 0};
}

qw_model_options qw_model_options_default(void)
{
    return (qw_model_options){0};
}

static void read_name(qw_model *m)
{
    qw_text name;
    if (qw_gguf_has(m->file, "general.name") && qw_gguf_get_str(m->file, "general.name", &name, NULL) == QW_OK) {
        snprintf(m->name, sizeof m->name, "%.*s", (int)(name.n > 200 ? 200 : name.n), name.s);
        return;
    }
    const char *slash = strrchr(qw_gguf_path(m->file), '/');
    snprintf(m->name, sizeof m->name, "%s", slash ? slash + 1 : qw_gguf_path(m->file));
}

/* A file without a tokenizer still computes logits; one with a broken tokenizer is refused. */
static qw_status open_text(qw_model *m, qw_err *err)
{
    qw_text template_text;
    bool known;
    if (!qw_gguf_has(m->file, "tokenizer.ggml.model")) return QW_OK;
    QW_TRY(qw_tokenizer_open_gguf(m->file, &m->tokenizer, err));
    if (qw_tokenizer_n_vocab(m->tokenizer) != m->net->hp.n_vocab) {
        return qw_fail(err, QW_E_FORMAT, "%s: the vocabulary has %zu tokens, token_embd.weight has %u rows",
                       qw_gguf_path(m->file), qw_tokenizer_n_vocab(m->tokenizer), m->net->hp.n_vocab);
    }
    if (!qw_gguf_has(m->file, "tokenizer.chat_template")) return QW_OK;
    QW_TRY(qw_gguf_get_str(m->file, "tokenizer.chat_template", &template_text, err));
    m->chat = qw_chat_detect(template_text, &known);
    m->chat_known = known;
    if (m->chat == QW_CHAT_NONE) return QW_OK;
    QW_TRY(qw_memory_create(QW_MEMORY_BYTES_MAX, &m->memory, err));
    return qw_chat_format_traits(m->chat).thinks ? qw_think_words_create(m->tokenizer, &m->think_words, err) : QW_OK;
}

qw_status qw_model_open(const qw_model_options *options, qw_model **out, qw_err *err)
{
    qw_model *m = NULL;
    qw_gguf_options container;
    qw_status status;
    *out = NULL;
    if (!options->path) return qw_fail(err, QW_E_ARG, "no model file was named");
    QW_TRY(qw_alloc(&m, 1, sizeof *m, "model", err));
    pthread_mutex_init(&m->lock, NULL);
    m->exact = options->exact;
    m->no_pack_cache = options->no_pack_cache;
    QW_TRY_GOTO(qw_gguf_options_parse(options->quantize, &container, err));
    QW_TRY_GOTO(qw_gguf_open_as(options->path, &container, &m->file, err));
    QW_TRY_GOTO(qw_net_open(m->file, &m->net, err));
    QW_TRY_GOTO(open_text(m, err));
    QW_TRY_GOTO(qw_sampling_read(m->file, &m->sampling, err));
    read_name(m);
    *out = m;
    return QW_OK;
fail:
    qw_model_close(m);
    return status;
}

void qw_model_close(qw_model *m)
{
    if (!m) return;
    qw_weights_destroy(m->weights);
    qw_token_trie_destroy(m->trie);
    qw_memory_destroy(m->memory);
    qw_think_words_free(&m->think_words);
    qw_tokenizer_close(m->tokenizer);
    qw_net_close(m->net);
    qw_gguf_close(m->file);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

void qw_model_get_info(const qw_model *m, qw_model_info *out)
{
    const qw_hparams *hp = &m->net->hp;
    qw_chat_traits traits = qw_chat_format_traits(m->chat);
    int32_t prefix = -1, middle = -1, suffix = -1;
    if (m->tokenizer) qw_tokenizer_fim(m->tokenizer, &prefix, &middle, &suffix);
    *out = (qw_model_info){
        .path = qw_gguf_path(m->file),
        .architecture = hp->family->architecture,
        .name = m->name,
        .quantization = m->net->quantization,
        .chat_format = qw_chat_format_name(m->chat),
        .chat_template_known = m->chat_known,
        .file_bytes = qw_gguf_bytes(m->file),
        .n_params = m->net->n_params,
        .n_layers = hp->n_layers,
        .hidden = hp->hidden,
        .n_heads = hp->n_heads,
        .n_kv_heads = hp->n_kv_heads,
        .head_dim = hp->head_dim,
        .ffn = hp->ffn,
        .n_vocab = hp->n_vocab,
        .context_length = hp->context_length,
        .has_tokenizer = m->tokenizer != NULL,
        .has_fim = prefix >= 0 && middle >= 0 && suffix >= 0,
        .thinks = traits.thinks,
        .thinks_always = traits.thinks && !traits.switches,
    };
}

bool qw_model_cache_dir(const qw_model *m, char *out, size_t cap)
{
    return !m->no_pack_cache && qw_packed_dir(out, cap, NULL) == QW_OK;
}

qw_status qw_model_prepare(qw_model *m, qw_pool *pool, qw_err *err)
{
    char dir[4096];
    qw_status status = QW_OK;
    pthread_mutex_lock(&m->lock);
    if (!m->exact && !m->weights) {
        bool cached = qw_model_cache_dir(m, dir, sizeof dir);
        status = qw_weights_create(m->net, cached ? dir : NULL, pool, &m->weights, err);
    }
    pthread_mutex_unlock(&m->lock);
    return status;
}

void qw_model_weight_bytes(const qw_model *m, uint64_t *mapped, uint64_t *in_memory)
{
    char dir[4096];
    *in_memory = 0;
    if (m->exact) {
        *mapped = qw_gguf_bytes(m->file);
        return;
    }
    /* The packed region, and the embedding that is read by row. */
    uint64_t packed = qw_weights_packed_bytes(m->net), rest = 0;
    bool tied = m->net->embed.name == m->net->head.name;
    if (!tied && m->net->embed.data) rest += (uint64_t)m->net->embed.rows * m->net->embed.row_bytes;
    bool cached = qw_model_cache_dir(m, dir, sizeof dir);
    *mapped = rest + (cached ? packed : 0);
    *in_memory = cached ? 0 : packed;
}

qw_status qw_model_verify(const qw_model *m, qw_err *err)
{
    char dir[4096];
    QW_TRY(qw_gguf_check_finite(m->file, err));
    return qw_packed_dir(dir, sizeof dir, NULL) == QW_OK ? qw_weights_verify(m->file, dir, err) : QW_OK;
}

bool qw_model_failed(const qw_model *m)
{
    return qw_gguf_map_failed(m->file) || (m->weights && qw_weights_failed(m->weights));
}

/* ---- text ------------------------------------------------------------------------------------- */

qw_status qw_tokenize(const qw_model *m, qw_text text, bool special, int32_t **ids, size_t *n, qw_err *err)
{
    qw_tokens tokens = {0};
    *ids = NULL;
    *n = 0;
    if (!m->tokenizer) {
        return qw_fail(err, QW_E_UNSUPPORTED, "%s carries no tokenizer: only token ids can be used with it",
                       qw_gguf_path(m->file));
    }
    qw_status status = qw_tokenizer_encode(m->tokenizer, text.s, text.n, special, &tokens, err);
    if (status != QW_OK) {
        qw_tokens_free(&tokens);
        return status;
    }
    *ids = tokens.ids;
    *n = tokens.n;
    return QW_OK;
}

qw_text qw_token_text(const qw_model *m, int32_t id)
{
    if (!m->tokenizer || id < 0 || (size_t)id >= qw_tokenizer_n_vocab(m->tokenizer)) return (qw_text){.s = ""};
    return qw_tokenizer_bytes(m->tokenizer, id);
}
