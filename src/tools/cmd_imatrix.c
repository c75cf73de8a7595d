/* cmd_imatrix.c: `qw imatrix`: how much each input column of a model's matrices matters, measured over a text.
 *
 * The text is read in windows of -c tokens; for every product the squares of its inputs are added up, column by column,
 * for experts apart from each other. The result is for `qw quantize --imatrix` and llama.cpp's tools (importances.h).
 * The output matrix is left out, as it is there. Main thread.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/profile.h"
#include "base/file.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "formats/gguf_write.h"
#include "text/tokenizer.h"
#include "tools/compute.h"
#include "tools/progress.h"

enum { TEXT_BYTES_MAX = 1 << 30 };

/* One matrix, or the stack of an expert block. */
typedef struct entry {
    const char *name; /* borrows from the model */
    size_t k, n;
    double *sums;     /* [n, k], owns */
    uint64_t *counts; /* [n], owns */
} entry;

typedef struct collector {
    entry *entries; /* [n_entries], owns */
    size_t n_entries, cap;
    qw_status status; /* of making the entries */
    qw_err *err;
    uint64_t n_done, n_total; /* tokens */
    qw_tool_progress progress;
} collector;

static entry *find(const collector *c, const char *name)
{
    for (size_t i = 0; i < c->n_entries; i++)
        if (strcmp(c->entries[i].name, name) == 0) return &c->entries[i];
    return NULL;
}

static qw_status add_entry(collector *c, const qw_weight *w, qw_err *err)
{
    size_t all;
    if (c->n_entries == c->cap) {
        size_t cap = c->cap ? 2 * c->cap : 256;
        QW_TRY(qw_grow(&c->entries, c->cap, cap, sizeof *c->entries, "the list of matrices", err));
        c->cap = cap;
    }
    entry *e = &c->entries[c->n_entries];
    *e = (entry){.name = w->name, .k = w->k, .n = w->n_stacked};
    if (qw_mul_overflows(e->k, e->n, &all)) all = SIZE_MAX;
    QW_TRY(qw_alloc(&e->sums, all, sizeof *e->sums, "sums of squares", err));
    c->n_entries++;
    return qw_alloc(&e->counts, e->n, sizeof *e->counts, "sums of squares", err);
}

/* qw_net_weight_fn: parts of one matrix have one name and one entry. */
static void visit(void *ctx, qw_weight *w)
{
    collector *c = ctx;
    if (c->status == QW_OK && !find(c, w->name)) c->status = add_entry(c, w, c->err);
}

/* qw_input_fn */
static void add_inputs(void *ctx, const qw_weight *w, size_t stacked, const float *x, size_t ld, size_t n_rows)
{
    entry *e = find(ctx, w->name);
    if (!e) return;
    QW_ASSERT(stacked < e->n && w->k == e->k);
    double *sums = e->sums + stacked * e->k;
    for (size_t r = 0; r < n_rows; r++)
        for (size_t i = 0; i < e->k; i++) sums[i] += (double)x[r * ld + i] * (double)x[r * ld + i];
    e->counts[stacked] += n_rows;
}

/* qw_compute_fn: that there is one makes every row go through all layers. */
static qw_status look_around(void *ctx, qw_compute *compute, size_t first, size_t n_rows, qw_err *err)
{
    (void)compute, (void)first;
    collector *c = ctx;
    c->n_done += n_rows;
    qw_tool_progress_at(&c->progress, c->n_done, c->n_total);
    return qw_cli_interrupted ? qw_fail(err, QW_E_CANCELLED, "interrupted, nothing was written") : QW_OK;
}

static qw_status read_text(qw_compute *compute, collector *c, const qw_tokens *tokens, size_t window, qw_err *err)
{
    qw_seq *seq = NULL;
    qw_status status;
    QW_TRY(qw_seq_create(compute->rt.seqs, &seq, err));
    c->n_total = tokens->n / window * window;
    qw_tool_progress_begin(&c->progress, "measuring");
    for (size_t at = 0; at + window <= tokens->n; at += window) {
        QW_TRY_GOTO(qw_compute_tokens(compute, seq, tokens->ids + at, window, look_around, c, err));
        QW_TRY_GOTO(qw_seq_truncate(seq, 0, NULL, err));
    }
    status = QW_OK;
fail:
    qw_tool_progress_end(&c->progress);
    qw_seq_release(seq);
    return status;
}

/* ---- the file ----------------------------------------------------------------------------------- */

/* qw_gguf_rows_fn: tensor 2i has entry i's sums, 2i + 1 its counts. */
static qw_status make_rows(void *ctx, size_t tensor, uint64_t row0, size_t n, uint8_t *out, qw_err *err)
{
    (void)err;
    const entry *e = &((const collector *)ctx)->entries[tensor / 2];
    size_t per_row = tensor % 2 ? 1 : e->k;
    for (size_t i = 0; i < n * per_row; i++) {
        size_t at = (size_t)row0 * per_row + i;
        float f = tensor % 2 ? (float)e->counts[at] : (float)e->sums[at];
        memcpy(out + i * sizeof f, &f, sizeof f);
    }
    return QW_OK;
}

static qw_status put_entry(qw_gguf_writer *w, const entry *e, qw_err *err)
{
    char name[160];
    const uint64_t sums[] = {e->k, e->n}, counts[] = {1, e->n};
    snprintf(name, sizeof name, "%s.in_sum2", e->name);
    QW_TRY(qw_gguf_put_tensor(w, name, QW_TYPE_F32, 2, sums, err));
    snprintf(name, sizeof name, "%s.counts", e->name);
    return qw_gguf_put_tensor(w, name, QW_TYPE_F32, 2, counts, err);
}

/* Matrices that no input reached have nothing to say. */
static void drop_unused(collector *c)
{
    size_t kept = 0;
    for (size_t i = 0; i < c->n_entries; i++) {
        uint64_t all = 0;
        for (size_t j = 0; j < c->entries[i].n; j++) all += c->entries[i].counts[j];
        if (all > 0) {
            entry used = c->entries[i];
            c->entries[i] = c->entries[kept];
            c->entries[kept++] = used;
        }
    }
    for (size_t i = kept; i < c->n_entries; i++) {
        free(c->entries[i].sums);
        free(c->entries[i].counts);
    }
    c->n_entries = kept;
}

static qw_status write_file(collector *c, const char *path, const char *text_path, size_t window, bool replace,
                            qw_err *err)
{
    const qw_text text = qw_text_of(text_path);
    const qw_gguf_write_options o = {.rows = make_rows, .rows_ctx = c, .replace = replace};
    qw_gguf_writer *w = NULL;
    qw_status status;
    QW_TRY(qw_gguf_writer_create(&w, err));
    QW_TRY_GOTO(qw_gguf_put_str(w, "general.type", qw_text_of("imatrix"), err));
    QW_TRY_GOTO(qw_gguf_put_strs(w, "imatrix.datasets", &text, 1, err));
    QW_TRY_GOTO(qw_gguf_put_u32(w, "imatrix.chunk_count", (uint32_t)(c->n_total / window), err));
    QW_TRY_GOTO(qw_gguf_put_u32(w, "imatrix.chunk_size", (uint32_t)window, err));
    for (size_t i = 0; i < c->n_entries; i++) QW_TRY_GOTO(put_entry(w, &c->entries[i], err));
    status = qw_gguf_write(w, path, &o, err);
fail:
    qw_gguf_writer_destroy(w);
    return status;
}

/* ---- the command -------------------------------------------------------------------------------- */

typedef struct wanted {
    const char *text_path, *out_path;
    bool replace;
} wanted;

static qw_status measure(const qw_compute_options *o, const wanted *want, qw_err *err)
{
    qw_compute compute = {0};
    qw_backend *profile = NULL;
    qw_tokenizer *tokenizer = NULL;
    qw_tokens tokens = {0};
    collector c = {.err = err};
    char *text = NULL;
    size_t n_bytes, window = o->seq_tokens_max;
    qw_status status;
    QW_TRY_GOTO(qw_file_read(want->text_path, TEXT_BYTES_MAX, &text, &n_bytes, err));
    QW_TRY_GOTO(qw_compute_open(o, &compute, err));
    QW_TRY_GOTO(qw_tokenizer_open_gguf(compute.file, &tokenizer, err));
    QW_TRY_GOTO(qw_tokenizer_encode(tokenizer, text, n_bytes, false, &tokens, err));
    if (tokens.n < window) {
        status = qw_fail(err, QW_E_ARG, "%s has %zu tokens, at least one window of %zu is needed (-c)", want->text_path,
                         tokens.n, window);
        goto fail;
    }
    qw_net_each_weight(compute.net, visit, &c);
    QW_TRY_GOTO(c.status);
    qw_cpu_sizes sizes = qw_net_cpu_sizes(compute.net, QW_COMPUTE_ROWS, !o->exact);
    QW_TRY_GOTO(qw_profile_create(compute.rt.be, &profile, err));
    QW_TRY_GOTO(qw_profile_watch(profile, &sizes, add_inputs, &c, err));
    compute.rt.pass->be = profile;
    QW_TRY_GOTO(read_text(&compute, &c, &tokens, window, err));
    drop_unused(&c);
    QW_TRY_GOTO(write_file(&c, want->out_path, want->text_path, window, want->replace, err));
    printf("%s: %zu matrices, %llu tokens in windows of %zu\n", want->out_path, c.n_entries,
           (unsigned long long)c.n_total, window);
fail:
    if (profile) profile->ops->destroy(profile);
    for (size_t i = 0; i < c.n_entries; i++) {
        free(c.entries[i].sums);
        free(c.entries[i].counts);
    }
    free(c.entries);
    qw_tokens_free(&tokens);
    qw_tokenizer_close(tokenizer);
    qw_compute_close(&compute);
    free(text);
    return status;
}

int qw_cmd_imatrix(int argc, char **argv)
{
    qw_cli_model model = {0};
    wanted want = {0};
    const qw_cli_opt opts[] = {
        QW_CLI_MODEL_OPTS(&model),
        {'f', "file", QW_CLI_STR, &want.text_path, "TEXT", "the text to read (- for standard input)", 0, 0},
        {'o', "output", QW_CLI_STR, &want.out_path, "OUT", "the file of importances, for qw quantize --imatrix", 0, 0},
        {0, "replace", QW_CLI_FLAG, &want.replace, NULL, "a file that has the name OUT", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "imatrix", .usage = "-f TEXT -o OUT [options]",
        .summary = "Measures how much each input of a model's matrices matters.", .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .details = "The text is read in windows of -c tokens (512); what is left at its end does not count.\n",
        .examples = "qw imatrix -m model-BF16.gguf -f text.txt -o imatrix.gguf\n"
                    "qw quantize model-BF16.gguf model-Q4_K_M.gguf Q4_K_M --imatrix imatrix.gguf\n",
    };
    char path[QW_CLI_PATH_MAX];
    qw_err err;
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    if (!want.text_path) return qw_cli_usage("imatrix", "-f is missing: over which text should be measured?");
    if (!want.out_path) return qw_cli_usage("imatrix", "-o is missing: where should the importances go?");
    if ((rc = qw_cli_resolve(&model, path, sizeof path)) != 0) return rc;
    qw_compute_options o = {.path = path, .n_threads = (int)model.n_threads, .exact = model.exact,
                            .no_pack_cache = model.no_pack_cache, .n_seqs = 1,
                            .seq_tokens_max = (uint32_t)(model.context ? model.context : 512)};
    qw_cli_catch_interrupt(false);
    return measure(&o, &want, &err) == QW_OK ? qw_cli_finish() : qw_cli_error(&err);
}
