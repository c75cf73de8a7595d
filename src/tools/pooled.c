/* pooled.c: embedding and reranking (pooled.h). */
#include "tools/pooled.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

enum { CONTEXT_DEFAULT = 32768 };

qw_status qw_pooled_open(qw_compute_options *o, uint32_t context, qw_pooled *p, qw_err *err)
{
    qw_status status;
    *p = (qw_pooled){0};
    o->n_seqs = 1;
    o->seq_tokens_max = context ? context : CONTEXT_DEFAULT;
    QW_TRY_GOTO(qw_compute_open(o, &p->c, err));
    const qw_hparams *hp = &p->c.net->hp;
    if (context > hp->context_length) {
        status = qw_fail(err, QW_E_ARG, "context %u is more than the %u tokens the model was trained for", context,
                         hp->context_length);
        goto fail;
    }
    QW_TRY_GOTO(qw_tokenizer_open_gguf(p->c.file, &p->tokenizer, err));
    if (qw_tokenizer_n_vocab(p->tokenizer) != hp->n_vocab) {
        status = qw_fail(err, QW_E_FORMAT, "%s: the vocabulary has %zu tokens, token_embd.weight has %u rows",
                         qw_gguf_path(p->c.file), qw_tokenizer_n_vocab(p->tokenizer), hp->n_vocab);
        goto fail;
    }
    QW_TRY_GOTO(qw_seq_create(p->c.rt.seqs, &p->seq, err));
    QW_TRY_GOTO(qw_alloc(&p->values, hp->n_vocab > hp->hidden ? hp->n_vocab : hp->hidden, sizeof *p->values, "results", err));
    p->yes = qw_tokenizer_find(p->tokenizer, "yes");
    p->no = qw_tokenizer_find(p->tokenizer, "no");
    return QW_OK;
fail:
    qw_pooled_close(p);
    return status;
}

void qw_pooled_close(qw_pooled *p)
{
    qw_seq_release(p->seq);
    qw_tokens_free(&p->tokens);
    qw_tokenizer_close(p->tokenizer);
    qw_compute_close(&p->c);
    free(p->values);
    *p = (qw_pooled){0};
}

/* Computes p->tokens; afterwards the pass can be asked about the last of them, whose row in it is *row. */
static qw_status compute(qw_pooled *p, uint32_t *row, qw_err *err)
{
    size_t n = p->tokens.n, most = p->c.rt.pass->n_rows_max;
    uint32_t trained = p->c.net->hp.context_length;
    if (n > trained)
        return qw_fail(err, QW_E_LIMIT, "a text of %zu tokens is longer than the %u the model was trained for", n, trained);
    QW_TRY(qw_seq_truncate(p->seq, 0, NULL, err));
    QW_TRY(qw_compute_tokens(&p->c, p->seq, p->tokens.ids, n, NULL, NULL, err));
    *row = (uint32_t)((n - 1) % most);
    return QW_OK;
}

/* Computes a rendered prompt, which is freed. */
static qw_status compute_rendered(qw_pooled *p, qw_rendered *prompt, uint32_t *row, qw_err *err)
{
    p->tokens.n = 0;
    qw_status status = qw_chat_tokenize(p->tokenizer, prompt, &p->tokens, NULL, err);
    qw_rendered_free(prompt);
    return status == QW_OK ? compute(p, row, err) : status;
}

qw_status qw_pooled_embed(qw_pooled *p, qw_text text, const char *instruction, uint32_t n_dims, float *out, qw_err *err)
{
    uint32_t row, hidden = p->c.net->hp.hidden, n = n_dims ? n_dims : hidden;
    qw_text instruct = {instruction, instruction ? strlen(instruction) : 0};
    qw_rendered prompt;
    double sum = 0;
    if (n > hidden) return qw_fail(err, QW_E_ARG, "%u dimensions are wanted, the model has %u", n, hidden);
    QW_TRY(qw_embed_render(text, instruct, &prompt, err));
    QW_TRY(compute_rendered(p, &prompt, &row, err));
    qw_pass_hidden(p->c.rt.pass, &row, 1, p->values);
    for (uint32_t i = 0; i < n; i++) sum += (double)p->values[i] * (double)p->values[i];
    for (uint32_t i = 0; i < n; i++) out[i] = (float)((double)p->values[i] / fmax(sqrt(sum), 1e-12));
    return QW_OK;
}

qw_status qw_pooled_rerank(qw_pooled *p, const char *instruction, qw_text query, qw_text document, double *score, qw_err *err)
{
    uint32_t row;
    double yes, no;
    qw_text instruct = {instruction, instruction ? strlen(instruction) : 0};
    qw_rendered prompt;
    bool cls = qw_weight_exists(&p->c.net->cls);
    if (!cls && (p->yes < 0 || p->no < 0))
        return qw_fail(err, QW_E_UNSUPPORTED, "%s: no tokens \"yes\" and \"no\" to rank with", qw_gguf_path(p->c.file));
    QW_TRY(qw_rerank_render(query, document, instruct, &prompt, err));
    QW_TRY(compute_rendered(p, &prompt, &row, err));
    if (cls) {
        qw_pass_scores(p->c.rt.pass, &row, 1, p->values);
        yes = (double)p->values[0];
        no = (double)p->values[1];
    } else {
        qw_pass_logits(p->c.rt.pass, &row, 1, p->values, p->c.net->hp.n_vocab);
        yes = (double)p->values[p->yes];
        no = (double)p->values[p->no];
    }
    *score = 1.0 / (1.0 + exp(no - yes));
    return QW_OK;
}
