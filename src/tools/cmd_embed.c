/* cmd_embed.c: `qw embed` and `qw rerank`: what embedding and reranking models say of texts. Main thread.
 *
 * Texts are the operands, or the lines of standard input. One line of results for each, in their order.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "tools/pooled.h"

/* The texts to work on; `input` owns what was read. */
typedef struct texts {
    qw_text *v; /* owns */
    size_t n;
    char *input;
} texts;

static void texts_free(texts *t)
{
    free(t->v);
    free(t->input);
}

static qw_status add(texts *t, const char *s, size_t n, qw_err *err)
{
    QW_TRY(qw_grow(&t->v, t->n, t->n + 1, sizeof *t->v, "texts", err));
    t->v[t->n++] = (qw_text){s, n};
    return QW_OK;
}

/* Empty lines are left out. */
static qw_status read_lines(texts *t, qw_err *err)
{
    size_t n;
    QW_TRY(qw_file_read("-", QW_PROMPT_BYTES_MAX, &t->input, &n, err));
    for (size_t at = 0; at < n;) {
        const char *end = memchr(t->input + at, '\n', n - at);
        size_t stop = end ? (size_t)(end - t->input) : n, length = stop - at;
        if (length > 0 && t->input[stop - 1] == '\r') length--;
        if (length > 0) QW_TRY(add(t, t->input + at, length, err));
        at = stop + 1;
    }
    return t->n ? QW_OK : qw_fail(err, QW_E_ARG, "there is no text: give it as an operand or on standard input");
}

static qw_status gather(texts *t, int n, char **operands, qw_err *err)
{
    for (int i = 0; i < n; i++) QW_TRY(add(t, operands[i], strlen(operands[i]), err));
    return n ? QW_OK : read_lines(t, err);
}

/* ---- embed -------------------------------------------------------------------------------------- */

typedef struct embed_options {
    const char *instruction; /* NULL: documents */
    uint32_t n_dims;         /* 0: all */
} embed_options;

static void print_embedding(size_t index, const qw_pooled *p, const float *v, uint32_t n)
{
    printf("{\"index\":%zu,\"tokens\":%zu,\"embedding\":[", index, p->tokens.n);
    for (uint32_t i = 0; i < n; i++) printf("%s%.9g", i ? "," : "", (double)v[i]);
    puts("]}");
    fflush(stdout);
}

static qw_status embed_all(qw_pooled *p, const texts *t, const embed_options *o, qw_err *err)
{
    float *v = NULL;
    uint32_t hidden = p->c.net->hp.hidden, n = o->n_dims ? o->n_dims : hidden;
    qw_status status = QW_OK;
    QW_TRY_GOTO(qw_alloc(&v, n, sizeof *v, "an embedding", err));
    for (size_t i = 0; i < t->n && !qw_cli_output_failed(); i++) {
        QW_TRY_GOTO(qw_pooled_embed(p, t->v[i], o->instruction, o->n_dims, v, err));
        print_embedding(i, p, v, n);
    }
fail:
    free(v);
    return status;
}

/* ---- rerank ------------------------------------------------------------------------------------- */

static qw_status rerank_all(qw_pooled *p, const texts *t, const char *instruction, const char *query, qw_err *err)
{
    for (size_t i = 0; i < t->n && !qw_cli_output_failed(); i++) {
        double score;
        QW_TRY(qw_pooled_rerank(p, instruction, (qw_text){query, strlen(query)}, t->v[i], &score, err));
        printf("{\"index\":%zu,\"tokens\":%zu,\"score\":%.9g}\n", i, p->tokens.n, score);
        fflush(stdout);
    }
    return QW_OK;
}

/* ---- both --------------------------------------------------------------------------------------- */

/* query: NULL embeds. */
static int run(const qw_cli_model *model, int n, char **operands, const embed_options *o, const char *query)
{
    qw_pooled p = {0};
    texts t = {0};
    char path[QW_CLI_PATH_MAX];
    qw_err err;
    qw_status status;
    int rc = qw_cli_resolve(model, path, sizeof path);
    if (rc != 0) return rc;
    qw_compute_options options = {.path = path, .n_threads = (int)model->n_threads, .exact = model->exact,
                                  .quantize = model->quantize, .no_pack_cache = model->no_pack_cache};
    QW_TRY_GOTO(gather(&t, n, operands, &err));
    QW_TRY_GOTO(qw_pooled_open(&options, (uint32_t)model->context, &p, &err));
    QW_TRY_GOTO(query ? rerank_all(&p, &t, o->instruction, query, &err) : embed_all(&p, &t, o, &err));
fail:
    qw_pooled_close(&p);
    texts_free(&t);
    return status == QW_OK ? qw_cli_finish() : qw_cli_error(&err);
}

int qw_cmd_embed(int argc, char **argv)
{
    qw_cli_model model = {0};
    embed_options o = {0};
    bool query = false;
    const char *instruction = NULL;
    int64_t n_dims = 0;
    const qw_cli_opt opts[] = {
        QW_CLI_MODEL_OPTS(&model),
        {'q', "query", QW_CLI_FLAG, &query, NULL, "the texts are queries, not documents", 0, 0},
        {0, "instruct", QW_CLI_STR, &instruction, "TEXT", "what the queries are for (a web search)", 0, 0},
        {0, "dims", QW_CLI_INT, &n_dims, "N", "the first N numbers alone, with length 1 again (all)", 1, 1 << 17},
    };
    const qw_cli_spec spec = {
        .name = "embed", .usage = "[options] [TEXT...]", .summary = "Turns texts into embeddings, one JSON line each.",
        .opts = opts, .n_opts = QW_CLI_COUNT(opts), .n_args_max = 1 << 20,
        .details = "Without TEXT each line of standard input is one. Wants a model made for it (Qwen3-Embedding).\n",
        .examples = "qw embed -m qwen3-embedding.gguf 'The capital of China is Beijing.'\n"
                    "qw embed -m qwen3-embedding.gguf -q --dims 256 'What is the capital of China?'\n"
                    "qw embed -m qwen3-embedding.gguf < documents.txt > vectors.jsonl\n",
    };
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    if (instruction && !query) return qw_cli_usage("embed", "--instruct is for queries: add -q");
    o.n_dims = (uint32_t)n_dims;
    if (query) o.instruction = instruction ? instruction : QW_SEARCH_INSTRUCTION;
    return run(&model, argc - 1, argv + 1, &o, NULL);
}

int qw_cmd_rerank(int argc, char **argv)
{
    qw_cli_model model = {0};
    embed_options o = {0};
    const char *query = NULL;
    const qw_cli_opt opts[] = {
        QW_CLI_MODEL_OPTS(&model),
        {'q', "query", QW_CLI_STR, &query, "TEXT", "what the documents should answer", 0, 0},
        {0, "instruct", QW_CLI_STR, &o.instruction, "TEXT", "what makes an answer (a web search's passage)", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "rerank", .usage = "-q TEXT [options] [DOCUMENT...]",
        .summary = "Scores documents by how well they answer a query, one JSON line each.",
        .opts = opts, .n_opts = QW_CLI_COUNT(opts), .n_args_max = 1 << 20,
        .details = "Without DOCUMENT each line of standard input is one. A score is a probability, 0 to 1. Wants a model made\n"
                   "for it (Qwen3-Reranker).\n",
        .examples = "qw rerank -m qwen3-reranker.gguf -q 'capital of China' 'It is Beijing.' 'Paris is nice.'\n",
    };
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    if (!query) return qw_cli_usage("rerank", "-q is missing: what should the documents answer?");
    return run(&model, argc - 1, argv + 1, &o, query);
}
