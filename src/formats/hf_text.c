/* hf_text.c: the tokenizer and the chat template of a Hugging Face folder as GGUF keys. The opening thread alone.
 *
 * tokenizer.json holds everything: vocabulary, merges, added tokens and the expression that cuts text into words, which is
 * only recognised, never run. A folder without it is a model without text. Template files are carried, not executed.
 * Kinds of rows are those that GGUF files of these models have: added tokens like <|...|> are control tokens, whatever the
 * file calls them, other added ones are text; rows beyond the last id are padding.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "formats/hf_private.h"

enum { TYPE_NORMAL = 1, TYPE_CONTROL = 3, TYPE_USER = 4, TYPE_UNUSED = 5, PAD_BYTES = 24, MERGES_MAX = 1 << 20 };

/* The two expressions, by the letters they join. */
#define WORDS(letters, others)                                                                                                 \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?" letters "+|\\p{N}| ?[^\\s" others "\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|" \
    "\\s+(?!\\S)|\\s+"
static const struct {
    const char *regex, *name;
} words[] = {
    {WORDS("\\p{L}", "\\p{L}"), "qwen2"},
    {WORDS("[\\p{L}\\p{M}]", "\\p{L}\\p{M}"), "qwen35"},
};

typedef struct text_reader {
    qw_hf *hf;
    const char *path; /* of tokenizer.json */
    qw_text *tokens;  /* [n], owns the list; borrows texts from JSON and pads */
    int32_t *types;   /* [n], owns */
    char *pads;       /* [n][PAD_BYTES], owns */
    size_t n;
    qw_gguf_writer *w;
    qw_err *err;
} text_reader;

/* ---- tokenizer.json --------------------------------------------------------------------------- */

static qw_status put_token(text_reader *r, qw_text text, const json_t *id, int32_t type)
{
    json_int_t i = json_is_integer(id) ? json_integer_value(id) : -1;
    if (i < 0 || (size_t)i >= r->n)
        return qw_fail(r->err, QW_E_FORMAT, "%s: token \"%.100s\" has id %lld, the embedding has %zu rows", r->path, text.s,
                       (long long)i, r->n);
    if (r->types[i] != 0 && (r->tokens[i].n != text.n || memcmp(r->tokens[i].s, text.s, text.n) != 0))
        return qw_fail(r->err, QW_E_FORMAT, "%s: tokens \"%.100s\" and \"%.100s\" have the same id %lld", r->path,
                       r->tokens[i].s, text.s, (long long)i);
    r->tokens[i] = text;
    r->types[i] = type;
    return QW_OK;
}

static qw_status read_vocab(text_reader *r, json_t *vocab)
{
    const char *text;
    json_t *id;
    if (!json_is_object(vocab)) return qw_fail(r->err, QW_E_FORMAT, "%s: model.vocab is no object", r->path);
    json_object_foreach(vocab, text, id) QW_TRY(put_token(r, (qw_text){text, strlen(text)}, id, TYPE_NORMAL));
    return QW_OK;
}

static bool looks_special(qw_text t)
{
    return t.n > 4 && memcmp(t.s, "<|", 2) == 0 && memcmp(t.s + t.n - 2, "|>", 2) == 0;
}

static qw_status read_added(text_reader *r, const json_t *added)
{
    for (size_t i = 0; i < json_array_size(added); i++) {
        qw_json o = {.path = r->path, .object = json_array_get(added, i)};
        bool special;
        qw_text text;
        QW_TRY(qw_json_str(o, "content", &text, r->err));
        if (text.n == 0) return qw_fail(r->err, QW_E_FORMAT, "%s: added_tokens[%zu] has no content", r->path, i);
        QW_TRY(qw_json_bool(o, "special", false, &special, r->err));
        QW_TRY(put_token(r, text, json_object_get(o.object, "id"), special || looks_special(text) ? TYPE_CONTROL : TYPE_USER));
    }
    return QW_OK;
}

/* Rows without a token: "[PAD5]" with the row's number. */
static void fill_padding(text_reader *r)
{
    for (size_t i = 0; i < r->n; i++) {
        if (r->types[i] != 0) continue;
        char *s = r->pads + i * PAD_BYTES;
        r->tokens[i] = (qw_text){s, (size_t)snprintf(s, PAD_BYTES, "[PAD%zu]", i)};
        r->types[i] = TYPE_UNUSED;
    }
}

/* One merge, "left right", or the pair of both. */
static qw_status read_merge(text_reader *r, const json_t *m, size_t i, qw_buf *text)
{
    const json_t *left = json_array_get(m, 0), *right = json_array_get(m, 1);
    if (json_is_string(m)) return qw_buf_add(text, json_string_value(m), json_string_length(m), r->err);
    if (!json_is_array(m) || json_array_size(m) != 2 || !json_is_string(left) || !json_is_string(right))
        return qw_fail(r->err, QW_E_FORMAT, "%s: model.merges[%zu] is no pair of texts", r->path, i);
    QW_TRY(qw_buf_add(text, json_string_value(left), json_string_length(left), r->err));
    QW_TRY(qw_buf_add(text, " ", 1, r->err));
    return qw_buf_add(text, json_string_value(right), json_string_length(right), r->err);
}

static qw_status put_merges(text_reader *r, const json_t *merges)
{
    size_t n = json_array_size(merges);
    qw_text *list = NULL;
    qw_buf text;
    qw_status status;
    if (!json_is_array(merges) || n > MERGES_MAX)
        return qw_fail(r->err, QW_E_FORMAT, "%s: model.merges: want a list of at most %d", r->path, MERGES_MAX);
    qw_buf_init(&text, 2 * (size_t)HF_TOKENIZER_BYTES_MAX, "the merges of a tokenizer");
    QW_TRY_GOTO(qw_alloc(&list, n, sizeof *list, "the merges of a tokenizer", r->err));
    for (size_t i = 0; i < n; i++) {
        size_t from = text.n;
        QW_TRY_GOTO(read_merge(r, json_array_get(merges, i), i, &text));
        list[i].n = text.n - from;
    }
    const char *at = qw_buf_str(&text); /* does not move any more */
    for (size_t i = 0; i < n; at += list[i++].n) list[i].s = at;
    status = qw_gguf_put_strs(r->w, "tokenizer.ggml.merges", list, n, r->err);
fail:
    qw_buf_free(&text);
    free(list);
    return status;
}

/* The expression of the Split step, which may be one step of several. */
static const char *find_regex(const json_t *step)
{
    const json_t *steps = json_object_get(step, "pretokenizers");
    const char *regex = json_string_value(json_object_get(json_object_get(step, "pattern"), "Regex"));
    for (size_t i = 0; i < json_array_size(steps) && regex == NULL; i++)
        regex = json_string_value(json_object_get(json_object_get(json_array_get(steps, i), "pattern"), "Regex"));
    return regex;
}

static qw_status put_kind(text_reader *r, const json_t *root)
{
    const json_t *model = json_object_get(root, "model");
    const char *type = json_string_value(json_object_get(model, "type"));
    const char *regex = find_regex(json_object_get(root, "pre_tokenizer"));
    if (type == NULL || strcmp(type, "BPE") != 0)
        return qw_fail(r->err, QW_E_UNSUPPORTED, "%s: the model's type is \"%.40s\"; the Qwen models have \"BPE\"", r->path,
                       type ? type : "");
    QW_TRY(qw_gguf_put_str(r->w, "tokenizer.ggml.model", (qw_text){"gpt2", 4}, r->err));
    for (size_t i = 0; regex != NULL && i < sizeof words / sizeof *words; i++)
        if (strcmp(regex, words[i].regex) == 0)
            return qw_gguf_put_str(r->w, "tokenizer.ggml.pre", (qw_text){words[i].name, strlen(words[i].name)}, r->err);
    return qw_fail(r->err, QW_E_UNSUPPORTED, "%s: text is cut by an expression that no Qwen model has", r->path);
}

static qw_status put_tokens(text_reader *r, const json_t *root)
{
    json_t *model = json_object_get(root, "model");
    QW_TRY(put_kind(r, root));
    QW_TRY(qw_alloc(&r->tokens, r->n, sizeof *r->tokens, "the tokens of a tokenizer", r->err));
    QW_TRY(qw_alloc(&r->types, r->n, sizeof *r->types, "the tokens of a tokenizer", r->err));
    QW_TRY(qw_alloc(&r->pads, r->n, PAD_BYTES, "the tokens of a tokenizer", r->err));
    QW_TRY(read_vocab(r, json_object_get(model, "vocab")));
    QW_TRY(read_added(r, json_object_get(root, "added_tokens")));
    fill_padding(r);
    QW_TRY(qw_gguf_put_strs(r->w, "tokenizer.ggml.tokens", r->tokens, r->n, r->err));
    QW_TRY(qw_gguf_put_i32s(r->w, "tokenizer.ggml.token_type", r->types, r->n, r->err));
    return put_merges(r, json_object_get(model, "merges"));
}

/* ---- special ids ------------------------------------------------------------------------------ */

/* Id of a token that tokenizer_config.json names, as text or as an object with its text; -1: none. */
static int64_t named_id(const text_reader *r, const json_t *config, const char *key)
{
    const json_t *v = json_object_get(config, key);
    if (json_is_object(v)) v = json_object_get(v, "content");
    const char *s = json_string_value(v);
    for (size_t i = 0; s != NULL && i < r->n; i++)
        if (r->tokens[i].n == strlen(s) && memcmp(r->tokens[i].s, s, r->tokens[i].n) == 0) return (int64_t)i;
    return -1;
}

static qw_status put_id(text_reader *r, const char *key, int64_t id)
{
    return id >= 0 ? qw_gguf_put_u32(r->w, key, (uint32_t)id, r->err) : QW_OK;
}

/* What ends an answer: generation_config.json, else the tokenizer's own, else config.json. */
static qw_status put_ends(text_reader *r, const hf_config *c, const json_t *config, const json_t *generation)
{
    uint64_t ids[2];
    size_t n = 0;
    if (generation != NULL)
        QW_TRY(hf_read_eos((qw_json){"generation_config.json", generation}, ids, &n, r->err));
    int64_t own = named_id(r, config, "eos_token");
    if (n == 0 && own >= 0) ids[n++] = (uint64_t)own;
    if (n == 0) {
        memcpy(ids, c->eos, sizeof ids);
        n = c->n_eos;
    }
    for (size_t i = 0; i < n; i++)
        if (ids[i] >= r->n)
            return qw_fail(r->err, QW_E_FORMAT, "%s: eos_token_id is %llu, but there are %zu tokens", r->hf->dir,
                           (unsigned long long)ids[i], r->n);
    if (n > 0) QW_TRY(put_id(r, "tokenizer.ggml.eos_token_id", (int64_t)ids[0]));
    if (n > 1) QW_TRY(put_id(r, "tokenizer.ggml.eot_token_id", (int64_t)ids[1]));
    QW_TRY(put_id(r, "tokenizer.ggml.padding_token_id", named_id(r, config, "pad_token")));
    return qw_gguf_put_bool(r->w, "tokenizer.ggml.add_bos_token", false, r->err);
}

/* How to sample from the model, unless it is meant to be greedy. */
static qw_status put_sampling(text_reader *r, const json_t *generation)
{
    static const char *const names[][2] = {{"temperature", "general.sampling.temp"},
                                           {"top_p", "general.sampling.top_p"},
                                           {"min_p", "general.sampling.min_p"},
                                           {"repetition_penalty", "general.sampling.penalty_repeat"}};
    qw_json o = {"generation_config.json", generation};
    uint64_t k;
    bool samples;
    if (generation == NULL) return QW_OK;
    QW_TRY(qw_json_bool(o, "do_sample", true, &samples, r->err));
    if (!samples) return QW_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        double v;
        if (!qw_json_get(o, names[i][0])) continue;
        QW_TRY(qw_json_f64(o, names[i][0], 0, &v, r->err));
        QW_TRY(qw_gguf_put_f32(r->w, names[i][1], (float)v, r->err));
    }
    if (!qw_json_get(o, "top_k")) return QW_OK;
    QW_TRY(qw_json_u64(o, "top_k", 0, INT32_MAX, 0, &k, r->err));
    return qw_gguf_put_u32(r->w, "general.sampling.top_k", (uint32_t)k, r->err);
}

/* ---- chat template ---------------------------------------------------------------------------- */

/* A text, or the entry called "default" of a list of {name, template}. */
static qw_text template_of(const json_t *config)
{
    const json_t *v = json_object_get(config, "chat_template");
    for (size_t i = 0; json_is_array(v) && i < json_array_size(v); i++) {
        const json_t *entry = json_array_get(v, i);
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name != NULL && strcmp(name, "default") == 0) {
            v = json_object_get(entry, "template");
            break;
        }
    }
    return json_is_string(v) ? (qw_text){json_string_value(v), json_string_length(v)} : (qw_text){0};
}

/* chat_template.jinja, where it exists, is the newer one. */
static qw_status put_template(text_reader *r, const json_t *config)
{
    static const char key[] = "tokenizer.chat_template";
    char path[PATH_MAX];
    qw_text text = template_of(config);
    char *data = NULL;
    size_t n = 0;
    if (snprintf(path, sizeof path, "%s/chat_template.jinja", r->hf->dir) >= (int)sizeof path)
        return qw_fail(r->err, QW_E_LIMIT, "%s: the path is too long", r->hf->dir);
    qw_status status = qw_file_read(path, HF_CONFIG_BYTES_MAX, &data, &n, r->err);
    if (status == QW_E_NOT_FOUND) return text.s ? qw_gguf_put_str(r->w, key, text, r->err) : QW_OK;
    if (status != QW_OK) return status;
    if (!qw_utf8_valid(data, n)) status = qw_fail(r->err, QW_E_FORMAT, "%s: is not valid UTF-8", path);
    if (status == QW_OK) status = qw_gguf_put_str(r->w, key, (qw_text){data, n}, r->err);
    free(data);
    return status;
}

/* ---- the whole -------------------------------------------------------------------------------- */

/* A file that may be absent: *out is NULL then. */
static qw_status read_optional(qw_hf *hf, const char *name, size_t bytes_max, json_t **out, qw_err *err)
{
    qw_status status = qw_json_read(hf->dir, name, bytes_max, &hf->identity, out, err);
    return status == QW_E_NOT_FOUND ? QW_OK : status;
}

qw_status hf_text_keys(qw_hf *hf, const hf_config *c, size_t n_vocab, qw_gguf_writer *w, qw_err *err)
{
    char path[PATH_MAX];
    json_t *root = NULL, *config = NULL, *generation = NULL;
    text_reader r = {.hf = hf, .path = path, .n = n_vocab, .w = w, .err = err};
    qw_status status;
    QW_TRY(read_optional(hf, "tokenizer.json", HF_TOKENIZER_BYTES_MAX, &root, err));
    if (root == NULL) return qw_buf_add_str(&hf->note, "there is no tokenizer.json: only token ids can be used\n", err);
    snprintf(path, sizeof path, "%s/tokenizer.json", hf->dir);
    QW_TRY_GOTO(read_optional(hf, "tokenizer_config.json", HF_TOKENIZER_BYTES_MAX, &config, err));
    QW_TRY_GOTO(read_optional(hf, "generation_config.json", HF_CONFIG_BYTES_MAX, &generation, err));
    QW_TRY_GOTO(put_tokens(&r, root));
    QW_TRY_GOTO(put_ends(&r, c, config, generation));
    QW_TRY_GOTO(put_sampling(&r, generation));
    status = put_template(&r, config);
fail:
    json_decref(root);
    json_decref(config);
    json_decref(generation);
    free(r.tokens);
    free(r.types);
    free(r.pads);
    return status;
}
