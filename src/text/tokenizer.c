/* tokenizer.c: text to ids and back.
 *
 * encode: added tokens are split out (when asked for), what is between is cut at ill-formed UTF-8, each
 * well-formed stretch is brought to NFC, cut into pieces and merged. The tokenizer is immutable after open;
 * any thread. Scratch lives for one call.
 */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "text/added.h"
#include "text/nfc.h"
#include "text/pretok.h"
#include "text/vocab.h"

enum { TEXT_BYTES_MAX = 1 << 30 };

struct qw_tokenizer {
    qw_vocab vocab;
    qw_added added;
    qw_pre pre;
    int32_t ends[4]; /* ids that end an answer; -1: none */
    int32_t fim[3];  /* prefix, middle, suffix */
};

/* ---- ids -------------------------------------------------------------------------------------- */

qw_status qw_tokens_push(qw_tokens *t, int32_t id, qw_err *err)
{
    if (t->n == t->cap) {
        size_t cap = t->cap ? t->cap * 2 : 64;
        QW_TRY(qw_grow(&t->ids, t->cap, cap, sizeof *t->ids, "token ids", err));
        t->cap = cap;
    }
    t->ids[t->n++] = id;
    return QW_OK;
}

void qw_tokens_free(qw_tokens *t)
{
    free(t->ids);
    *t = (qw_tokens){0};
}

/* ---- open ------------------------------------------------------------------------------------- */

static int32_t added_id(const qw_tokenizer *t, const char *name)
{
    return qw_added_find(&t->added, name, strlen(name));
}

qw_status qw_tokenizer_open(const qw_text *tokens, const uint8_t *types, size_t n, const qw_text *merges,
                            size_t n_merges, qw_pre pre, qw_tokenizer **out, qw_err *err)
{
    qw_tokenizer *t = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY(qw_alloc(&t, 1, sizeof *t, "the tokenizer", err));
    QW_TRY_GOTO(qw_vocab_build(&t->vocab, tokens, types, n, merges, n_merges, err));
    QW_TRY_GOTO(qw_added_build(&t->added, &t->vocab, err));
    t->pre = pre;
    t->ends[0] = added_id(t, "<|im_end|>");
    t->ends[1] = added_id(t, "<|endoftext|>");
    t->ends[2] = t->ends[3] = -1;
    t->fim[0] = added_id(t, "<|fim_prefix|>");
    t->fim[1] = added_id(t, "<|fim_middle|>");
    t->fim[2] = added_id(t, "<|fim_suffix|>");
    *out = t;
    return QW_OK;
fail:
    qw_tokenizer_close(t);
    return status;
}

void qw_tokenizer_close(qw_tokenizer *t)
{
    if (!t) return;
    qw_added_free(&t->added);
    qw_vocab_free(&t->vocab);
    free(t);
}

/* ---- open a GGUF file ------------------------------------------------------------------------- */

/* Names of a file's pre-tokenizer. */
static const struct {
    const char *name;
    qw_pre pre;
} pre_names[] = {{"qwen2", QW_PRE_QWEN2}, {"deepseek-r1-qwen", QW_PRE_QWEN2}, {"qwen35", QW_PRE_QWEN35}};

static bool text_is(qw_text text, const char *s)
{
    return text.n == strlen(s) && memcmp(text.s, s, text.n) == 0;
}

static qw_status read_kind(const qw_gguf *g, qw_pre *pre, qw_err *err)
{
    qw_text model, name;
    if (!qw_gguf_has(g, "tokenizer.ggml.model"))
        return qw_fail(err, QW_E_UNSUPPORTED, "%s: the file has no tokenizer (key tokenizer.ggml.model)",
                       qw_gguf_path(g));
    QW_TRY(qw_gguf_get_str(g, "tokenizer.ggml.model", &model, err));
    if (!text_is(model, "gpt2"))
        return qw_fail(err, QW_E_UNSUPPORTED,
                       "%s: tokenizer.ggml.model is \"%.*s\"; the Qwen models have \"gpt2\", byte-level BPE",
                       qw_gguf_path(g), model.n < 40 ? (int)model.n : 40, model.s);
    if (!qw_gguf_has(g, "tokenizer.ggml.pre"))
        return qw_fail(err, QW_E_UNSUPPORTED,
                       "%s: tokenizer.ggml.pre is missing; convert the model again", qw_gguf_path(g));
    QW_TRY(qw_gguf_get_str(g, "tokenizer.ggml.pre", &name, err));
    for (size_t i = 0; i < sizeof pre_names / sizeof *pre_names; i++)
        if (text_is(name, pre_names[i].name)) {
            *pre = pre_names[i].pre;
            return QW_OK;
        }
    return qw_fail(err, QW_E_UNSUPPORTED,
                   "%s: tokenizer.ggml.pre is \"%.*s\"; known are qwen2 and qwen35", qw_gguf_path(g),
                   name.n < 40 ? (int)name.n : 40, name.s);
}

/* All strings of an array key as a heap array. */
static qw_status read_texts(const qw_gguf *g, const char *key, qw_text **out, size_t *n, qw_err *err)
{
    qw_gguf_array array;
    QW_TRY(qw_gguf_get_array(g, key, QW_GGUF_STRING, &array, err));
    QW_TRY(qw_alloc(out, array.n, sizeof **out, key, err));
    for (size_t i = 0; i < array.n; i++) (*out)[i] = qw_gguf_array_str(&array, i);
    *n = array.n;
    return QW_OK;
}

static qw_status read_types(const qw_gguf *g, size_t n, uint8_t **out, qw_err *err)
{
    qw_gguf_array array;
    QW_TRY(qw_gguf_get_array(g, "tokenizer.ggml.token_type", QW_GGUF_I32, &array, err));
    if (array.n != n)
        return qw_fail(err, QW_E_FORMAT, "%s: tokenizer.ggml.token_type has %zu entries for %zu tokens",
                       qw_gguf_path(g), array.n, n);
    QW_TRY(qw_alloc(out, n, 1, "token types", err));
    for (size_t i = 0; i < n; i++) {
        int64_t type = qw_gguf_array_int(&array, i);
        if (type < 0 || type > 6)
            return qw_fail(err, QW_E_FORMAT,
                           "%s: tokenizer.ggml.token_type[%zu] is %lld; types go from 0 to 6",
                           qw_gguf_path(g), i, (long long)type);
        (*out)[i] = (uint8_t)type;
    }
    return QW_OK;
}

/* What has one entry a token must have as many as there are tokens. */
static qw_status check_lengths(const qw_gguf *g, size_t n, qw_err *err)
{
    if (qw_gguf_has(g, "tokenizer.ggml.scores")) {
        qw_gguf_array scores;
        QW_TRY(qw_gguf_get_array(g, "tokenizer.ggml.scores", QW_GGUF_F32, &scores, err));
        if (scores.n != n)
            return qw_fail(err, QW_E_FORMAT, "%s: tokenizer.ggml.scores has %zu entries for %zu tokens",
                           qw_gguf_path(g), scores.n, n);
    }
    const qw_tensor *embeddings = qw_gguf_find_tensor(g, "token_embd.weight");
    if (embeddings && embeddings->ne[1] != n)
        return qw_fail(err, QW_E_FORMAT,
                       "%s: tokenizer.ggml.tokens has %zu tokens, but token_embd.weight has %llu rows",
                       qw_gguf_path(g), n, (unsigned long long)embeddings->ne[1]);
    return QW_OK;
}

/* Keys that hold one token id; where it goes in the tokenizer, if it is used. */
enum { SLOT_NONE = -1, SLOT_END = 0, SLOT_FIM = 8 };
static const struct {
    const char *key;
    int slot;
} id_keys[] = {
    {"tokenizer.ggml.bos_token_id", SLOT_NONE},         {"tokenizer.ggml.eos_token_id", SLOT_END + 2},
    {"tokenizer.ggml.eot_token_id", SLOT_END + 3},      {"tokenizer.ggml.eom_token_id", SLOT_NONE},
    {"tokenizer.ggml.unknown_token_id", SLOT_NONE},     {"tokenizer.ggml.seperator_token_id", SLOT_NONE},
    {"tokenizer.ggml.padding_token_id", SLOT_NONE},     {"tokenizer.ggml.cls_token_id", SLOT_NONE},
    {"tokenizer.ggml.mask_token_id", SLOT_NONE},        {"tokenizer.ggml.fim_pre_token_id", SLOT_FIM + 0},
    {"tokenizer.ggml.fim_mid_token_id", SLOT_FIM + 1},  {"tokenizer.ggml.fim_suf_token_id", SLOT_FIM + 2},
    {"tokenizer.ggml.fim_pad_token_id", SLOT_NONE},     {"tokenizer.ggml.fim_rep_token_id", SLOT_NONE},
    {"tokenizer.ggml.fim_sep_token_id", SLOT_NONE},
};

static qw_status read_ids(const qw_gguf *g, qw_tokenizer *t, qw_err *err)
{
    for (size_t i = 0; i < sizeof id_keys / sizeof *id_keys; i++) {
        uint64_t id;
        if (!qw_gguf_has(g, id_keys[i].key)) continue;
        QW_TRY(qw_gguf_get_u64(g, id_keys[i].key, &id, err));
        if (id >= t->vocab.n)
            return qw_fail(err, QW_E_FORMAT, "%s: %s is %llu, but there are %zu tokens", qw_gguf_path(g),
                           id_keys[i].key, (unsigned long long)id, t->vocab.n);
        int slot = id_keys[i].slot;
        if (slot >= SLOT_FIM) t->fim[slot - SLOT_FIM] = (int32_t)id;
        else if (slot >= SLOT_END) t->ends[slot - SLOT_END] = (int32_t)id;
    }
    return QW_OK;
}

qw_status qw_tokenizer_open_gguf(const qw_gguf *g, qw_tokenizer **out, qw_err *err)
{
    qw_text *tokens = NULL, *merges = NULL;
    uint8_t *types = NULL;
    size_t n, n_merges;
    qw_pre pre = QW_PRE_QWEN2;
    qw_tokenizer *t = NULL;
    qw_status status;
    *out = NULL;
    QW_TRY_GOTO(read_kind(g, &pre, err));
    QW_TRY_GOTO(read_texts(g, "tokenizer.ggml.tokens", &tokens, &n, err));
    QW_TRY_GOTO(check_lengths(g, n, err));
    QW_TRY_GOTO(read_types(g, n, &types, err));
    QW_TRY_GOTO(read_texts(g, "tokenizer.ggml.merges", &merges, &n_merges, err));
    status = qw_tokenizer_open(tokens, types, n, merges, n_merges, pre, &t, err);
    if (status != QW_OK) {
        qw_err_prefix(err, "%s", qw_gguf_path(g));
        goto fail;
    }
    QW_TRY_GOTO(read_ids(g, t, err));
    *out = t;
    t = NULL;
fail:
    qw_tokenizer_close(t);
    free(tokens);
    free(merges);
    free(types);
    return status;
}

/* ---- encode ----------------------------------------------------------------------------------- */

struct scratch {
    qw_nfc nfc;
    qw_merger merger;
};

/* Well-formed text without added tokens. */
static qw_status encode_text(const qw_tokenizer *t, struct scratch *w, qw_text text, qw_tokens *out,
                             qw_err *err) {
    qw_text s;
    QW_TRY(qw_nfc_run(&w->nfc, text, &s, err));
    for (size_t pos = 0; pos < s.n;) {
        size_t end = qw_pretok_next(t->pre, s.s, s.n, pos);
        QW_TRY(qw_vocab_merge(&t->vocab, &w->merger, s.s + pos, end - pos, out, err));
        pos = end;
    }
    return QW_OK;
}

/* Any bytes without added tokens: an ill-formed byte is a token of its own and separates. */
static qw_status encode_bytes(const qw_tokenizer *t, struct scratch *w, const char *s, size_t n, qw_tokens *out,
                              qw_err *err)
{
    if (qw_utf8_valid(s, n)) return encode_text(t, w, (qw_text){s, n}, out, err);
    size_t begin = 0, pos = 0;
    while (pos < n) {
        uint32_t cp;
        int len = qw_utf8_decode(s + pos, n - pos, &cp);
        if (len > 0) {
            pos += (size_t)len;
            continue;
        }
        QW_TRY(encode_text(t, w, (qw_text){s + begin, pos - begin}, out, err));
        QW_TRY(qw_tokens_push(out, (int32_t)t->vocab.byte_id[(unsigned char)s[pos]], err));
        begin = ++pos;
    }
    return encode_text(t, w, (qw_text){s + begin, n - begin}, out, err);
}

bool qw_tokenizer_find_added(const qw_tokenizer *t, const char *text, size_t n, size_t from, size_t *at,
                             size_t *len, int32_t *id)
{
    for (size_t i = from; i < n; i++) {
        if (!t->added.first[(unsigned char)text[i]]) continue;
        int64_t match = qw_added_match(&t->added, text + i, n - i);
        if (match < 0) continue;
        *at = i;
        *len = t->added.tokens[match].n;
        *id = t->added.tokens[match].id;
        return true;
    }
    return false;
}

static qw_status encode_special(const qw_tokenizer *t, struct scratch *w, const char *s, size_t n,
                                qw_tokens *out, qw_err *err) {
    size_t pos = 0, at, len;
    int32_t id;
    while (qw_tokenizer_find_added(t, s, n, pos, &at, &len, &id)) {
        QW_TRY(encode_bytes(t, w, s + pos, at - pos, out, err));
        QW_TRY(qw_tokens_push(out, id, err));
        pos = at + len;
    }
    return encode_bytes(t, w, s + pos, n - pos, out, err);
}

qw_status qw_tokenizer_encode(const qw_tokenizer *t, const char *text, size_t n, bool special, qw_tokens *out,
                              qw_err *err)
{
    struct scratch w = {0};
    size_t before = out->n;
    if (n > TEXT_BYTES_MAX)
        return qw_fail(err, QW_E_LIMIT, "text of %zu bytes is too long to tokenise; the limit is %d", n,
                       TEXT_BYTES_MAX);
    if (n == 0) return QW_OK;
    qw_status status = special ? encode_special(t, &w, text, n, out, err) : encode_bytes(t, &w, text, n,
                                                out, err);
    if (status != QW_OK) out->n = before;
    qw_nfc_free(&w.nfc);
    qw_merger_free(&w.merger);
    return status;
}

/* ---- questions -------------------------------------------------------------------------------- */

static bool in_range(const qw_tokenizer *t, int32_t id)
{
    return id >= 0 && (size_t)id < t->vocab.n;
}

size_t qw_tokenizer_n_vocab(const qw_tokenizer *t)
{
    return t->vocab.n;
}

int32_t qw_tokenizer_find(const qw_tokenizer *t, const char *text)
{
    int32_t id = added_id(t, text);
    return id >= 0 ? id : qw_vocab_find(&t->vocab, text, strlen(text));
}

qw_text qw_tokenizer_bytes(const qw_tokenizer *t, int32_t id)
{
    return in_range(t, id) ? qw_vocab_text(&t->vocab, (uint32_t)id) : (qw_text){"", 0};
}

bool qw_tokenizer_is_control(const qw_tokenizer *t, int32_t id)
{
    return in_range(t, id) && t->vocab.row[id] == QW_ROW_CONTROL;
}

bool qw_tokenizer_is_added(const qw_tokenizer *t, int32_t id)
{
    return in_range(t, id) && (t->vocab.row[id] == QW_ROW_CONTROL || t->vocab.row[id] == QW_ROW_USER);
}

bool qw_tokenizer_is_unused(const qw_tokenizer *t, int32_t id)
{
    return in_range(t, id) && t->vocab.row[id] == QW_ROW_UNUSED;
}

bool qw_tokenizer_is_end(const qw_tokenizer *t, int32_t id)
{
    if (id < 0) return false;
    for (size_t i = 0; i < sizeof t->ends / sizeof *t->ends; i++)
        if (t->ends[i] == id) return true;
    return false;
}

void qw_tokenizer_fim(const qw_tokenizer *t, int32_t *prefix, int32_t *middle, int32_t *suffix)
{
    *prefix = t->fim[0];
    *middle = t->fim[1];
    *suffix = t->fim[2];
}
