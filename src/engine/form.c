/* form.c: see form.h. */
#include "engine/form.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "engine/dial.h"

typedef enum form_state {
    FORM_OPENS,   /* the model opens its thinking itself: nothing else may come first */
    FORM_THINKS,  /* until the thinking is closed */
    FORM_HELD     /* to the grammar */
} form_state;

struct qw_form {
    form_state state;
    const qw_tokenizer *tokenizer;
    const qw_token_trie *trie;
    int32_t think, think_end; /* ids of the tags; -1: the vocabulary has none */
    qw_grammar *grammar;      /* owns */
    qw_matcher *matcher;      /* owns */
};

/* ---- making -------------------------------------------------------------------------------------- */

static int32_t added_id(const qw_tokenizer *t, const char *text)
{
    size_t at, len, n = strlen(text);
    int32_t id;
    return qw_tokenizer_find_added(t, text, n, 0, &at, &len, &id) && at == 0 && len == n ? id : -1;
}

/* Where the answer begins: inside thinking, before it, or with the form. */
static qw_status choose_state(const qw_model *m, const qw_request *r, bool in_thinking, qw_form *f, qw_err *err)
{
    const qw_dial dial = qw_dial_of(m->chat, r);
    bool thinks = in_thinking || (r->kind == QW_PROMPT_CHAT && qw_chat_thinks(m->chat, &dial.chat));
    f->state = in_thinking ? FORM_THINKS : thinks ? FORM_OPENS : FORM_HELD;
    f->think = added_id(f->tokenizer, "<think>");
    f->think_end = added_id(f->tokenizer, "</think>");
    if (f->state != FORM_HELD && (f->think < 0 || f->think_end < 0)) {
        return qw_fail(err, QW_E_UNSUPPORTED, "a form after thinking needs tokens for <think> and </think>, which this "
                                              "vocabulary does not have: switch thinking off");
    }
    return QW_OK;
}

static qw_status compile(const qw_model *m, const qw_request *r, const qw_grammar_options *o, qw_grammar **out, qw_err *err)
{
    const qw_form_request *form = &r->form;
    const qw_grammar_calls calls = {.tools = r->tools, .only = form->source, .required = form->call_required,
                                    .one = r->one_call, .xml_calls = qw_chat_format_traits(m->chat).xml_calls,
                                    .tokenizer = m->tokenizer};
    switch (form->kind) {
    case QW_FORM_NONE: break;
    case QW_FORM_JSON: return qw_grammar_json_object(o, out, err);
    case QW_FORM_SCHEMA: return qw_grammar_schema(form->source, o, out, err);
    case QW_FORM_REGEX: return qw_grammar_regex(form->source, o, out, err);
    case QW_FORM_CHOICE: return qw_grammar_choice(form->choices, form->n_choices, o, out, err);
    case QW_FORM_GRAMMAR: return qw_grammar_ebnf(form->source, o, out, err);
    case QW_FORM_CALLS:
        if (r->kind == QW_PROMPT_CHAT && r->tools.n > 0) return qw_grammar_tools(&calls, o, out, err);
        return qw_fail(err, QW_E_ARG, "calls are wanted, and the request has no tools");
    }
    return qw_fail(err, QW_E_ARG, "unknown kind of form %d", (int)form->kind);
}

/* The model's trie of tokens, made by the first who needs it. */
static qw_status get_trie(qw_model *m, const qw_token_trie **out, qw_err *err)
{
    pthread_mutex_lock(&m->lock);
    qw_status status = m->trie ? QW_OK : qw_token_trie_create(m->tokenizer, &m->trie, err);
    *out = m->trie;
    pthread_mutex_unlock(&m->lock);
    return status;
}

qw_status qw_form_create(qw_model *m, const qw_request *r, bool in_thinking, qw_form **out, qw_err *err)
{
    qw_form *f = NULL;
    qw_status status;
    *out = NULL;
    if (r->form.kind == QW_FORM_NONE) return QW_OK;
    if (!m->tokenizer) return qw_fail(err, QW_E_UNSUPPORTED, "a form needs a tokenizer, which this model does not have");
    if (r->ignore_eos) return qw_fail(err, QW_E_ARG, "an answer that is held to a form ends with it: not with ignore_eos");
    QW_TRY(qw_alloc(&f, 1, sizeof *f, "form of an answer", err));
    f->tokenizer = m->tokenizer;
    QW_TRY_GOTO(choose_state(m, r, in_thinking, f, err));
    const qw_grammar_options o = {.after_thinking = f->state != FORM_HELD};
    QW_TRY_GOTO(compile(m, r, &o, &f->grammar, err));
    QW_TRY_GOTO(get_trie(m, &f->trie, err));
    QW_TRY_GOTO(qw_matcher_create(f->grammar, f->tokenizer, &f->matcher, err));
    *out = f;
    return QW_OK;
fail:
    qw_form_destroy(f);
    return status;
}

void qw_form_destroy(qw_form *f)
{
    if (!f) return;
    qw_matcher_destroy(f->matcher);
    qw_grammar_destroy(f->grammar);
    free(f);
}

const qw_token_trie *qw_form_trie(const qw_form *f)
{
    return f->trie;
}

/* ---- drawing -------------------------------------------------------------------------------------- */

static void ban_all_but(float *logits, uint32_t n_vocab, int32_t token)
{
    float kept = logits[token];
    for (uint32_t i = 0; i < n_vocab; i++) logits[i] = -INFINITY;
    logits[token] = isfinite(kept) ? kept : 0;
}

static void ban_ends(const qw_form *f, float *logits, uint32_t n_vocab)
{
    for (uint32_t i = 0; i < n_vocab; i++)
        if (qw_tokenizer_is_end(f->tokenizer, (int32_t)i)) logits[i] = -INFINITY;
}

/* Within a string nearly all words are full. */
static void ban_unset(const uint32_t *bits, float *logits, uint32_t n_vocab)
{
    for (uint32_t word = 0; word * 32 < n_vocab; word++) {
        float *of_word = logits + word * 32;
        uint32_t banned = ~bits[word], n = n_vocab - word * 32 < 32 ? n_vocab - word * 32 : 32;
        for (uint32_t i = 0; banned && i < n; i++)
            if (banned >> i & 1) of_word[i] = -INFINITY;
    }
}

void qw_form_mask(const qw_form *f, qw_masker *w, uint32_t *bits, float *logits, uint32_t n_vocab)
{
    switch (f->state) {
    case FORM_OPENS: ban_all_but(logits, n_vocab, f->think); break;
    case FORM_THINKS: ban_ends(f, logits, n_vocab); break;
    case FORM_HELD:
        qw_masker_fill(w, f->matcher, bits);
        ban_unset(bits, logits, n_vocab);
        break;
    }
}

/* ---- ending in time ------------------------------------------------------------------------------- */

/* May a text from whose end it is n_bytes be ended with so many tokens, whatever they are? Each byte can be a token, the end is
 * one, and a fourth more is for what the bound does not know: keys that are taken already, the depth. */
static bool fits(uint32_t n_bytes, uint32_t n_tokens)
{
    return n_bytes < n_tokens && n_bytes / 4 < n_tokens - n_bytes;
}

/* The least number of bytes that do not fit. */
static uint32_t room_of(uint32_t n_tokens)
{
    return n_tokens > 0 ? (uint32_t)((4 * (uint64_t)(n_tokens - 1) + 3) / 5 + 1) : 0;
}

/* Where more bytes than tokens are left from the beginning, tokens of several bytes may still do it. What a form asks for by
 * name comes with three bytes or more a token; closing before would take the model's words where it has not said any. */
static bool may_fit(uint32_t n_bytes, uint32_t n_tokens)
{
    enum { TOKEN_BYTES = 3 };
    return n_bytes / TOKEN_BYTES + 1 < n_tokens;
}

/* A text that fits goes on with tokens behind which it still does, if there are any; then it fits to its end. */
static bool fits_now(const qw_form *f, uint32_t n_left)
{
    return fits(qw_matcher_to_end(f->matcher), n_left);
}

bool qw_form_overruns(const qw_form *f, int32_t token, uint32_t n_left)
{
    if (f->state != FORM_HELD || qw_tokenizer_is_end(f->tokenizer, token)) return false;
    uint32_t n_bytes = qw_matcher_to_end_after(f->matcher, token);
    return !fits(n_bytes, n_left - 1) && (fits_now(f, n_left) || !may_fit(n_bytes, n_left - 1));
}

void qw_form_close(const qw_form *f, qw_masker *w, uint32_t *bits, float *logits, uint32_t n_vocab, uint32_t n_left)
{
    qw_masker_close(w, f->matcher, fits_now(f, n_left) ? room_of(n_left - 1) : 0, bits);
    ban_unset(bits, logits, n_vocab);
}

void qw_form_take(qw_form *f, int32_t token)
{
    if (f->state == FORM_OPENS) {
        f->state = FORM_THINKS;
    } else if (f->state == FORM_THINKS) {
        if (token == f->think_end) f->state = FORM_HELD;
    } else {
        qw_status taken = qw_matcher_advance(f->matcher, token, NULL);
        QW_ASSERT(taken == QW_OK); /* it was drawn under the mask */
    }
}
