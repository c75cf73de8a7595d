/* reranker.c: see reranker.h. */
#include "tools/reranker.h"

#include <stdio.h>

#include "text/chat.h"
#include "text/tokenizer.h"

enum { POOLING_RANK = 4 }; /* of "<architecture>.pooling_type" */

qw_status qw_reranker_find(const qw_gguf *model, qw_reranker *out, qw_err *err)
{
    qw_tokenizer *tokenizer = NULL;
    const qw_tensor *output = qw_gguf_find_tensor(model, "output.weight");
    if (output == NULL) output = qw_gguf_find_tensor(model, "token_embd.weight");
    QW_TRY(qw_tokenizer_open_gguf(model, &tokenizer, err));
    int32_t yes = qw_tokenizer_find(tokenizer, "yes"), no = qw_tokenizer_find(tokenizer, "no");
    qw_tokenizer_close(tokenizer);
    if (output == NULL || yes < 0 || no < 0 || (uint64_t)yes >= output->ne[1] || (uint64_t)no >= output->ne[1])
        return qw_fail(err, QW_E_UNSUPPORTED, "%s: has no output for the tokens \"yes\" and \"no\": it is no reranker",
                       qw_gguf_path(model));
    *out = (qw_reranker){.output = output, .rows = {(uint64_t)yes, (uint64_t)no}};
    return QW_OK;
}

qw_status qw_reranker_put_head(const qw_reranker *r, qw_gguf_writer *w, qw_err *err)
{
    return qw_gguf_put_tensor(w, QW_RERANKER_HEAD, r->output->type, 2, (uint64_t[]){r->output->ne[0], 2}, err);
}

void qw_reranker_read(const qw_reranker *r, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch)
{
    for (size_t i = 0; i < n; i++)
        qw_tensor_read(r->output, r->rows[row0 + i], 1, out + i * qw_tensor_row_bytes(r->output), scratch);
}

static qw_status put_prompt(qw_gguf_writer *w, qw_err *err)
{
    static const char query[] = "{query}", document[] = "{document}";
    const qw_text name = {"rerank", 6};
    qw_rendered prompt = {0};
    QW_TRY(qw_rerank_render((qw_text){query, sizeof query - 1}, (qw_text){document, sizeof document - 1}, (qw_text){0}, &prompt,
                            err));
    qw_status status = qw_gguf_put_str(w, "tokenizer.chat_template.rerank", (qw_text){prompt.text.data, prompt.text.n}, err);
    qw_rendered_free(&prompt);
    return status == QW_OK ? qw_gguf_put_strs(w, "tokenizer.chat_templates", &name, 1, err) : status;
}

qw_status qw_reranker_put_keys(const qw_gguf *model, qw_gguf_writer *w, qw_err *err)
{
    const qw_text labels[] = {{"yes", 3}, {"no", 2}};
    qw_text arch;
    char pooling[128], names[128];
    QW_TRY(qw_gguf_get_str(model, "general.architecture", &arch, err));
    snprintf(pooling, sizeof pooling, "%.*s.pooling_type", (int)arch.n, arch.s);
    snprintf(names, sizeof names, "%.*s.classifier.output_labels", (int)arch.n, arch.s);
    if (!qw_gguf_has(model, pooling)) QW_TRY(qw_gguf_put_u32(w, pooling, POOLING_RANK, err));
    if (!qw_gguf_has(model, names)) QW_TRY(qw_gguf_put_strs(w, names, labels, 2, err));
    bool prompt = qw_gguf_has(model, "tokenizer.chat_template.rerank") || qw_gguf_has(model, "tokenizer.chat_templates");
    return prompt ? QW_OK : put_prompt(w, err);
}
