/* request.c: from a request to the token ids of its prompt, in the caller's thread. See qw.h. */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <openssl/evp.h>

#include "base/mem.h"
#include "engine/dial.h"
#include "engine/model.h"
#include "engine/request.h"

qw_request qw_request_default(const qw_model *model)
{
    (void)model; /* what is open is filled in by qw_submit, which knows whether the answer thinks */
    qw_request r = {.sampling = qw_sampling_open};
    if (getrandom(&r.sampling.seed, sizeof r.sampling.seed, 0) != sizeof r.sampling.seed) r.sampling.seed = 0;
    return r;
}

qw_sampling qw_request_sampling(const qw_model *m, const qw_request *r)
{
    qw_sampling s = r->sampling;
    const qw_chat_options said = qw_dial_of(m->chat, r).chat, silent = {0};
    bool thinks = qw_chat_thinks(m->chat, &said);
    /* What the model's makers wrote into the file is meant for the mode it is in by itself. */
    if (thinks == qw_chat_thinks(m->chat, &silent)) qw_sampling_fill(&s, &m->sampling);
    qw_sampling_fill(&s, qw_sampling_recommended(m->chat, thinks, m->net->hp.n_experts > 0));
    return s;
}

/* ---- memory of answers ------------------------------------------------------------------------ */

void qw_request_owner(const qw_request *r, uint8_t out[QW_OWNER_BYTES])
{
    unsigned n = QW_OWNER_BYTES;
    int hashed = EVP_Digest(r->owner.n ? r->owner.s : "", r->owner.n, out, &n, EVP_sha256(), NULL);
    QW_ASSERT(hashed == 1 && n == QW_OWNER_BYTES);
}

qw_status qw_request_said(const qw_model *m, const qw_request *r, const qw_prompt *prompt, qw_memory_answer **out,
                          qw_err *err)
{
    uint8_t owner[QW_OWNER_BYTES];
    *out = NULL;
    if (r->kind != QW_PROMPT_CHAT) return QW_OK;
    qw_request_owner(r, owner);
    return qw_memory_begin(m->memory, owner, prompt->place, qw_text_of(prompt->lead), out, err);
}

/* Renders with what is remembered, and notes where the answer will stand. */
static qw_status render_remembered(const qw_model *m, const qw_request *r, qw_rendered *rendered, qw_prompt *out, qw_err *err)
{
    qw_memory_reader reader;
    uint8_t owner[QW_OWNER_BYTES];
    const qw_chat_memory memory = {.ctx = &reader, .recall = qw_memory_recall};
    const qw_dial dial = qw_dial_of(m->chat, r);
    qw_request_owner(r, owner);
    qw_memory_read(&reader, m->memory, owner);
    qw_status status = qw_chat_render_recalled(m->chat, r->messages, r->n_messages, r->tools, &dial.chat, true, &memory,
                                               rendered, err);
    const char *text = qw_buf_str(&rendered->text);
    if (status == QW_OK) {
        out->place = qw_memory_place(&reader, (qw_text){text, rendered->answer_at});
        status = qw_strndup(&out->lead, text + rendered->answer_at, rendered->text.n - rendered->answer_at, err);
    }
    qw_memory_read_end(&reader);
    return status;
}

/* ---- prompts ---------------------------------------------------------------------------------- */

static qw_status render_chat(const qw_model *m, const qw_request *r, qw_prompt *out, qw_err *err)
{
    qw_rendered rendered = {0};
    if (m->chat == QW_CHAT_NONE) {
        return qw_fail(err, QW_E_UNSUPPORTED, "%s has no chat format; use a raw prompt", qw_gguf_path(m->file));
    }
    if (r->n_messages == 0) return qw_fail(err, QW_E_ARG, "messages is empty: at least one message is needed");
    if (r->n_messages > QW_MESSAGES_MAX) {
        return qw_fail(err, QW_E_LIMIT, "%zu messages, at most %d are allowed", r->n_messages, QW_MESSAGES_MAX);
    }
    qw_status status = render_remembered(m, r, &rendered, out, err);
    if (status == QW_OK) status = qw_chat_tokenize(m->tokenizer, &rendered, &out->tokens, &out->edges, err);
    out->in_thinking = rendered.in_thinking;
    qw_rendered_free(&rendered);
    return status;
}

/* <|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>, the order Qwen2.5-Coder was trained with. */
static qw_status render_fim(const qw_model *m, const qw_request *r, qw_tokens *out, qw_err *err)
{
    int32_t prefix, middle, suffix;
    qw_tokenizer_fim(m->tokenizer, &prefix, &middle, &suffix);
    if (prefix < 0 || middle < 0 || suffix < 0) {
        return qw_fail(err, QW_E_UNSUPPORTED, "%s cannot fill in the middle: its vocabulary has no FIM tokens",
                       qw_gguf_path(m->file));
    }
    QW_TRY(qw_tokens_push(out, prefix, err));
    QW_TRY(qw_tokenizer_encode(m->tokenizer, r->text.s, r->text.n, false, out, err));
    QW_TRY(qw_tokens_push(out, suffix, err));
    QW_TRY(qw_tokenizer_encode(m->tokenizer, r->suffix.s, r->suffix.n, false, out, err));
    return qw_tokens_push(out, middle, err);
}

static qw_status copy_tokens(const qw_model *m, const qw_request *r, qw_tokens *out, qw_err *err)
{
    for (size_t i = 0; i < r->n_tokens; i++) {
        if (r->tokens[i] < 0 || (uint32_t)r->tokens[i] >= m->net->hp.n_vocab) {
            return qw_fail(err, QW_E_ARG, "token %d at index %zu is not in the vocabulary of %u", r->tokens[i], i,
                           m->net->hp.n_vocab);
        }
        QW_TRY(qw_tokens_push(out, r->tokens[i], err));
    }
    return QW_OK;
}

static size_t prompt_bytes(const qw_request *r)
{
    size_t n = r->text.n + r->suffix.n + r->tools.n;
    for (size_t i = 0; i < r->n_messages && n <= QW_PROMPT_BYTES_MAX; i++) {
        const qw_message *m = &r->messages[i];
        n += m->content.n + m->reasoning.n;
        for (size_t k = 0; k < m->n_tool_calls && n <= QW_PROMPT_BYTES_MAX; k++) n += m->tool_calls[k].arguments.n;
    }
    return n;
}

void qw_prompt_free(qw_prompt *p)
{
    qw_tokens_free(&p->tokens);
    free(p->edges.at);
    free(p->lead);
    *p = (qw_prompt){0};
}

qw_status qw_request_prompt(const qw_model *m, const qw_request *r, qw_prompt *out, qw_err *err)
{
    qw_tokens *tokens = &out->tokens;
    if (r->kind != QW_PROMPT_TOKENS && !m->tokenizer) {
        return qw_fail(err, QW_E_UNSUPPORTED, "%s carries no tokenizer: only token ids can be used with it",
                       qw_gguf_path(m->file));
    }
    if (prompt_bytes(r) > QW_PROMPT_BYTES_MAX) {
        return qw_fail(err, QW_E_LIMIT, "the prompt is longer than %d MiB", QW_PROMPT_BYTES_MAX >> 20);
    }
    switch (r->kind) {
    case QW_PROMPT_CHAT: QW_TRY(render_chat(m, r, out, err)); break;
    case QW_PROMPT_RAW:
        QW_TRY(qw_tokenizer_encode(m->tokenizer, r->text.s, r->text.n, r->raw_special, tokens, err));
        break;
    case QW_PROMPT_FIM: QW_TRY(render_fim(m, r, tokens, err)); break;
    case QW_PROMPT_TOKENS: QW_TRY(copy_tokens(m, r, tokens, err)); break;
    default: return qw_fail(err, QW_E_ARG, "unknown kind of prompt %d", (int)r->kind);
    }
    if (tokens->n == 0) return qw_fail(err, QW_E_ARG, "the prompt is empty");
    return QW_OK;
}

qw_status qw_request_parser(const qw_model *m, const qw_request *r, bool in_thinking, qw_parser **out, qw_err *err)
{
    qw_chat_traits traits = qw_chat_format_traits(m->chat);
    qw_parse_options options = {.thinks = traits.thinks, .in_thinking = in_thinking, .xml_calls = traits.xml_calls};
    *out = NULL;
    if (r->kind != QW_PROMPT_CHAT) return QW_OK;
    if (traits.tools) options.tools = r->tools;
    return options.thinks || options.tools.n > 0 ? qw_parser_create(&options, out, err) : QW_OK;
}

/* ---- thinking and loops ------------------------------------------------------------------------ */

qw_think qw_request_think(const qw_model *m, const qw_request *r)
{
    bool any = r->kind == QW_PROMPT_CHAT && qw_chat_format_traits(m->chat).thinks;
    return (qw_think){.words = any ? &m->think_words : NULL, .tokens_max = qw_dial_of(m->chat, r).tokens_max};
}

qw_status qw_request_loops(const qw_request *r, qw_loops **out, qw_err *err)
{
    bool by_default = r->kind == QW_PROMPT_CHAT && !r->ignore_eos;
    bool stops = r->stop_loops == QW_SWITCH_DEFAULT ? by_default : r->stop_loops == QW_SWITCH_ON;
    *out = NULL;
    return stops ? qw_loops_create(out, err) : QW_OK;
}

qw_status qw_render(const qw_model *m, const qw_request *r, int32_t **ids, size_t *n, qw_err *err)
{
    qw_prompt prompt = {0};
    *ids = NULL;
    *n = 0;
    qw_status status = qw_request_prompt(m, r, &prompt, err);
    if (status == QW_OK) {
        *ids = prompt.tokens.ids;
        *n = prompt.tokens.n;
        prompt.tokens = (qw_tokens){0};
    }
    qw_prompt_free(&prompt);
    return status;
}

static qw_status check_stops(const qw_request *r, qw_err *err)
{
    if (r->n_stop > QW_STOP_MAX) {
        return qw_fail(err, QW_E_ARG, "%zu stop strings, at most %d are allowed", r->n_stop, QW_STOP_MAX);
    }
    for (size_t i = 0; i < r->n_stop; i++) {
        size_t n = strlen(r->stop[i]);
        if (n == 0 || n > QW_STOP_BYTES_MAX) {
            return qw_fail(err, QW_E_ARG, "stop string %zu has %zu bytes, want 1 to %d", i + 1, n, QW_STOP_BYTES_MAX);
        }
    }
    return QW_OK;
}

qw_status qw_request_check(const qw_model *m, const qw_request *r, const qw_sampling *sampling, qw_err *err)
{
    QW_TRY(qw_sampling_check(sampling, m->net->hp.n_vocab, err));
    if (r->max_tokens < 0) {
        return qw_fail(err, QW_E_ARG, "max_tokens is %lld, want 0 (no limit) or more", (long long)r->max_tokens);
    }
    if (r->thinking_tokens_max < 0) {
        return qw_fail(err, QW_E_ARG, "thinking_tokens_max is %lld, want 0 (no limit) or more",
                       (long long)r->thinking_tokens_max);
    }
    if (r->owner_weight > QW_OWNER_WEIGHT_MAX) {
        return qw_fail(err, QW_E_ARG, "owner_weight is %u, want 0 (as 1) to %d", r->owner_weight, QW_OWNER_WEIGHT_MAX);
    }
    if (r->deadline_ms < 0 || r->deadline_ms > QW_DEADLINE_MS_MAX) {
        return qw_fail(err, QW_E_ARG, "deadline_ms is %lld, want 0 (never) to %d", (long long)r->deadline_ms,
                       QW_DEADLINE_MS_MAX);
    }
    return check_stops(r, err);
}
