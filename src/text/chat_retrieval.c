/* chat_retrieval.c: prompts of the embedding and reranking models. Source: their model cards. See chat.h. */
#include "text/chat_private.h"

#define RERANK_SYSTEM                                                                                        \
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "       \
    "Note that the answer can only be \"yes\" or \"no\"."

/* Markup and plain text by turns: pairs of markup and what follows it. */
typedef struct piece {
    const char *markup;
    qw_text plain;
} piece;

static qw_status write_pieces(const piece *pieces, size_t n, qw_rendered *out, qw_err *err)
{
    chat_renderer w = {.out = out, .err = err};
    qw_status status;
    *out = (qw_rendered){0};
    qw_buf_init(&out->text, QW_RENDERED_BYTES_MAX, "the rendered text");
    for (size_t i = 0; i < n; i++) {
        QW_TRY_GOTO(qw_chat_markup(&w, pieces[i].markup));
        QW_TRY_GOTO(qw_chat_plain(&w, pieces[i].plain));
    }
    return QW_OK;
fail:
    qw_rendered_free(out);
    return status;
}

qw_status qw_embed_render(qw_text text, qw_text instruct, qw_rendered *out, qw_err *err)
{
    const piece query[] = {{"Instruct: ", instruct}, {"\nQuery:", text}, {"<|endoftext|>", {0}}};
    const piece document[] = {{"", text}, {"<|endoftext|>", {0}}};
    return instruct.s ? write_pieces(query, 3, out, err) : write_pieces(document, 2, out, err);
}

qw_status qw_rerank_render(qw_text query, qw_text document, qw_text instruct, qw_rendered *out, qw_err *err)
{
    qw_text usual = {QW_SEARCH_INSTRUCTION, sizeof QW_SEARCH_INSTRUCTION - 1};
    const piece pieces[] = {
        {"<|im_start|>system\n" RERANK_SYSTEM "<|im_end|>\n<|im_start|>user\n<Instruct>: ",
         instruct.s ? instruct : usual},
        {"\n<Query>: ", query},
        {"\n<Document>: ", document},
        {"<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", {0}},
    };
    return write_pieces(pieces, sizeof pieces / sizeof *pieces, out, err);
}
