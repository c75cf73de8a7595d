/* cmd_convert.c: `qw convert`: a Hugging Face folder as a GGUF file. Main thread; rows are made by all threads.
 *
 * The folder is opened into the view that everything else in qw uses, and what is written is that view: its keys, its
 * tensors' infos, their rows. So a converted file and the folder cannot differ.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/pool.h"
#include "cli/cli.h"
#include "formats/gguf_write.h"
#include "tools/reranker.h"

enum { REDRAW_US = 200000 };

typedef struct conversion {
    qw_gguf *view;
    qw_pool *pool;
    uint8_t *scratch; /* [threads][scratch_bytes], owns */
    size_t scratch_bytes;
    const qw_reranker *reranker; /* whose head is one tensor more; NULL: none */
    bool terminal;
    int64_t drawn_us;
} conversion;

/* ---- rows ------------------------------------------------------------------------------------- */

typedef struct rows_args {
    const conversion *c;
    const qw_tensor *t;
    uint64_t row0;
    uint8_t *out;
} rows_args;

static void read_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    const rows_args *a = ctx;
    qw_tensor_read(a->t, a->row0 + (uint64_t)begin, (size_t)(end - begin), a->out + (size_t)begin * qw_tensor_row_bytes(a->t),
                   a->c->scratch + (size_t)thread * a->c->scratch_bytes);
}

static qw_status make_rows(void *ctx, size_t tensor, uint64_t row0, size_t n, uint8_t *out, qw_err *err)
{
    conversion *c = ctx;
    if (tensor == qw_gguf_n_tensors(c->view)) {
        qw_reranker_read(c->reranker, row0, n, out, c->scratch);
    } else {
        rows_args args = {.c = c, .t = qw_gguf_tensor(c->view, tensor), .row0 = row0, .out = out};
        qw_pool_run(c->pool, (int64_t)n, QW_ROWS_AT_ONCE, read_rows, &args);
    }
    qw_gguf_drop_pages(c->view, NULL, 0);
    if (!qw_gguf_map_failed(c->view)) return QW_OK;
    return qw_fail(err, QW_E_CORRUPT, "%s: a file changed or could not be read while it was converted", qw_gguf_path(c->view));
}

/* ---- progress --------------------------------------------------------------------------------- */

static bool on_progress(void *user, uint64_t done, uint64_t total)
{
    conversion *c = user;
    int64_t now = qw_clock_us();
    if (c->terminal && (now - c->drawn_us >= REDRAW_US || done == total)) {
        fprintf(stderr, "\r%3.0f %%  %.2f of %.2f GB%s", 100.0 * (double)done / (double)total, (double)done / 1e9,
                (double)total / 1e9, done == total ? "\n" : "");
        fflush(stderr);
        c->drawn_us = now;
    }
    return !qw_cli_interrupted;
}

/* ---- the file --------------------------------------------------------------------------------- */

/* The view's header, as it is, and what a reranker has beside it. */
static qw_status make_header(const conversion *c, qw_gguf_writer *w, qw_err *err)
{
    const qw_gguf *view = c->view;
    for (size_t i = 0; i < qw_gguf_n_kv(view); i++) {
        qw_text key = qw_gguf_kv_key(view, i);
        bool alignment = key.n == 17 && memcmp(key.s, "general.alignment", 17) == 0;
        bool split = key.n > 6 && memcmp(key.s, "split.", 6) == 0;
        if (!alignment && !split) QW_TRY(qw_gguf_put_copy(w, view, i, err));
    }
    if (c->reranker || qw_gguf_find_tensor(view, QW_RERANKER_HEAD)) QW_TRY(qw_reranker_put_keys(view, w, err));
    for (size_t i = 0; i < qw_gguf_n_tensors(view); i++) {
        const qw_tensor *t = qw_gguf_tensor(view, i);
        QW_TRY(qw_gguf_put_tensor(w, t->name, t->type, t->n_dims, t->ne, err));
    }
    return c->reranker ? qw_reranker_put_head(c->reranker, w, err) : QW_OK;
}

static qw_status prepare(conversion *c, int n_threads, qw_err *err)
{
    for (size_t i = 0; i < qw_gguf_n_tensors(c->view); i++) {
        size_t bytes = qw_tensor_scratch(qw_gguf_tensor(c->view, i));
        if (bytes > c->scratch_bytes) c->scratch_bytes = bytes;
    }
    QW_TRY(qw_pool_create(n_threads > 0 ? n_threads : qw_cpu_count(), &c->pool, err));
    return qw_alloc_aligned(&c->scratch, c->scratch_bytes * (size_t)qw_pool_threads(c->pool), "rows of tensors", err);
}

typedef struct convert_options {
    const char *from, *to, *quantize; /* quantize NULL: as they are */
    int n_threads;
    bool force, rerank;
} convert_options;

static qw_status convert(conversion *c, const convert_options *wanted, qw_err *err)
{
    const char *to = wanted->to;
    qw_gguf_options options;
    qw_gguf_writer *w = NULL;
    qw_gguf_write_options o = {.rows = make_rows, .rows_ctx = c, .progress = on_progress, .user = c, .replace = wanted->force};
    qw_reranker reranker;
    qw_status status;
    if (!wanted->force && access(to, F_OK) == 0) /* said before the work; the writer makes sure */
        return qw_fail(err, QW_E_ARG, "%s: exists already; --force replaces it", to);
    QW_TRY(qw_gguf_options_parse(wanted->quantize, &options, err));
    QW_TRY(qw_gguf_open_as(wanted->from, &options, &c->view, err));
    qw_cli_print_notes(qw_gguf_note(c->view));
    if (wanted->rerank && !qw_gguf_find_tensor(c->view, QW_RERANKER_HEAD)) {
        QW_TRY(qw_reranker_find(c->view, &reranker, err));
        c->reranker = &reranker;
    }
    QW_TRY(prepare(c, wanted->n_threads, err));
    QW_TRY(qw_gguf_writer_create(&w, err));
    QW_TRY_GOTO(make_header(c, w, err));
    status = qw_gguf_write(w, to, &o, err);
fail:
    c->reranker = NULL;
    qw_gguf_writer_destroy(w);
    return status;
}

int qw_cmd_convert(int argc, char **argv)
{
    convert_options wanted = {0};
    int64_t n_threads = 0;
    bool quiet = false;
    const qw_cli_opt opts[] = {
        {0, "quant", QW_CLI_STR, &wanted.quantize, "TYPE", "quantise float matrices: q8_0, q4_k, ... (as they are)", 0, 0},
        {0, "rerank", QW_CLI_FLAG, &wanted.rerank, NULL, "with a head of \"yes\" and \"no\": other programs want one to rank", 0,
         0},
        {'t', "threads", QW_CLI_INT, &n_threads, "N", "threads (the cores this process may use)", 1, 1024},
        {'f', "force", QW_CLI_FLAG, &wanted.force, NULL, "replace OUT.gguf when it is there", 0, 0},
        {'q', "quiet", QW_CLI_FLAG, &quiet, NULL, "no progress", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "convert",
        .usage = "[options] FOLDER OUT.gguf",
        .summary = "Makes a GGUF file from a Hugging Face folder (config.json, tokenizer.json, *.safetensors).",
        .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .n_args_min = 2,
        .n_args_max = 2,
        .details = "Numbers stay what they are: FP8, GPTQ and AWQ weights are written as F32 or, where that says the same,\n"
                   "as Q4_0. The file appears when it is whole. An interrupted conversion leaves nothing.\n",
        .examples = "qw convert ./Qwen3-0.6B qwen3-0.6b.gguf\nqw convert --quant q8_0 ./Qwen3.5-4B-FP8 qwen3.5-4b-q8_0.gguf\n",
    };
    qw_err err;
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    conversion c = {.terminal = !quiet && isatty(STDERR_FILENO) == 1};
    qw_cli_catch_interrupt(true);
    wanted.from = argv[1];
    wanted.to = argv[2];
    wanted.n_threads = (int)n_threads;
    qw_status status = convert(&c, &wanted, &err);
    if (status != QW_OK && c.drawn_us != 0) fputc('\n', stderr);
    if (c.scratch) qw_free_aligned(c.scratch, c.scratch_bytes * (size_t)qw_pool_threads(c.pool));
    qw_pool_destroy(c.pool);
    qw_gguf_close(c.view);
    return status == QW_OK ? qw_cli_finish() : qw_cli_error(&err);
}
