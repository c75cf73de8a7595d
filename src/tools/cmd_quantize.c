/* cmd_quantize.c: `qw quantize`: a model file or folder as a file with smaller weights.
 *
 * Row by row: read, made floats, quantised on all threads, written. Nothing of the model is held but the mapped files, so
 * its size does not matter; the result appears under its name when it is whole. A folder's rows are made as they are read,
 * so it gives the same bytes as the file that `qw convert` makes of it. Which tensor becomes what: quant_mix.h; how:
 * kernels/ref/quantize.c. Main thread.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/pool.h"
#include "cli/cli.h"
#include "formats/gguf_write.h"
#include "tools/importances.h"
#include "tools/progress.h"
#include "tools/quant_mix.h"
#include "tools/reranker.h"

enum {
    SLICE_ELEMENTS = 1 << 20, /* that a thread quantises between two looks at Ctrl-C */
    QUANTIZATION_VERSION = 2  /* of all block formats that are in use */
};

typedef struct quantize {
    const qw_quant_mix *mix;
    const char *out_path, *imatrix_path; /* NULL: none */
    bool requantize, replace, dry_run;
    qw_gguf *in, *imatrix;
    qw_type *types;      /* [n_tensors] */
    float **importances; /* [n_tensors], NULL: none */
    size_t n_weighted;
    qw_pool *pool;
    uint8_t *scratch;    /* [n_threads][scratch_bytes], owns: a row of floats, rows that are made, what making them takes */
    size_t float_bytes, made_bytes, scratch_bytes;
    qw_tool_progress progress;
} quantize;

/* Some rows of one tensor. */
typedef struct rows_work {
    quantize *q;
    size_t tensor;
    uint64_t row0;
    uint8_t *out;
    _Atomic uint64_t bad_row; /* one whose result has a number that is none, or UINT64_MAX */
} rows_work;

/* n rows of a tensor: where they lie, or made in the buffer and with the scratch behind it. */
static const uint8_t *rows_of(const quantize *q, const qw_tensor *t, uint64_t row0, size_t n, uint8_t *buffer)
{
    if (t->data) return t->data + row0 * qw_tensor_row_bytes(t);
    qw_tensor_read(t, row0, n, buffer, buffer + q->made_bytes);
    return buffer;
}

/* A few rows that follow each other; the first one is row i of the work. */
static void quantize_few(rows_work *w, size_t i, size_t n, uint8_t *scratch)
{
    const quantize *q = w->q;
    const qw_tensor *t = qw_gguf_tensor(q->in, w->tensor);
    qw_type type = q->types[w->tensor];
    const float *importances = q->importances[w->tensor];
    size_t k = (size_t)t->ne[0], in_bytes = qw_tensor_row_bytes(t), out_bytes = qw_type_row_bytes(type, k);
    const uint8_t *in = rows_of(q, t, w->row0 + i, n, scratch + q->float_bytes);
    float *x = (float *)(void *)scratch;
    uint8_t *out = w->out + i * out_bytes;
    for (uint64_t row = w->row0 + i; n > 0; n--, row++, in += in_bytes, out += out_bytes) {
        qw_dequantize_row(t->type, in, x, k);
        qw_quantize_row(type, x, out, k, importances ? importances + row / t->ne[1] * k : NULL);
        if (!qw_row_finite(t->type, in, k) || !qw_row_finite(type, out, k)) atomic_store(&w->bad_row, row);
    }
}

static void quantize_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    rows_work *w = ctx;
    uint8_t *scratch = w->q->scratch + (size_t)thread * w->q->scratch_bytes;
    for (size_t i = (size_t)begin, n; i < (size_t)end; i += n) {
        n = (size_t)end - i < QW_ROWS_AT_ONCE ? (size_t)end - i : QW_ROWS_AT_ONCE;
        quantize_few(w, i, n, scratch);
    }
}

/* Rows of a tensor that keeps its type. */
static void copy_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    const rows_work *w = ctx;
    const qw_tensor *t = qw_gguf_tensor(w->q->in, w->tensor);
    qw_tensor_read(t, w->row0 + (uint64_t)begin, (size_t)(end - begin), w->out + (size_t)begin * qw_tensor_row_bytes(t),
                   w->q->scratch + (size_t)thread * w->q->scratch_bytes);
}

/* qw_gguf_rows_fn: rows of the result. */
static qw_status make_rows(void *ctx, size_t tensor, uint64_t row0, size_t n, uint8_t *out, qw_err *err)
{
    quantize *q = ctx;
    const qw_tensor *t = qw_gguf_tensor(q->in, tensor);
    size_t k = (size_t)t->ne[0], out_bytes = qw_type_row_bytes(q->types[tensor], k);
    size_t at_once = (size_t)qw_pool_threads(q->pool) * (SLICE_ELEMENTS / k + 1);
    for (size_t done = 0; done < n; done += at_once) {
        rows_work w = {.q = q, .tensor = tensor, .row0 = row0 + done, .out = out + done * out_bytes,
                       .bad_row = UINT64_MAX};
        if (qw_cli_interrupted)
            return qw_fail(err, QW_E_CANCELLED, "%s: interrupted, nothing was written", q->out_path);
        qw_pool_run(q->pool, (int64_t)(n - done < at_once ? n - done : at_once), t->data ? 1 : QW_ROWS_AT_ONCE,
                    q->types[tensor] == t->type ? copy_rows : quantize_rows, &w);
        uint64_t bad_row = atomic_load(&w.bad_row);
        if (bad_row != UINT64_MAX)
            return qw_fail(err, QW_E_CORRUPT, "%s: tensor %s has a value in row %llu that %s cannot hold",
                           qw_gguf_path(q->in), t->name, (unsigned long long)bad_row,
                           qw_type_get((uint32_t)q->types[tensor])->name);
    }
    qw_gguf_drop_pages(q->in, NULL, 0);
    if (qw_gguf_map_failed(q->in))
        return qw_fail(err, QW_E_IO, "%s: a file shrank or could not be read", qw_gguf_path(q->in));
    return QW_OK;
}

static bool on_progress(void *user, uint64_t done_bytes, uint64_t total_bytes)
{
    qw_tool_progress_at(&((quantize *)user)->progress, done_bytes, total_bytes);
    return !qw_cli_interrupted;
}

/* ---- what the result is ------------------------------------------------------------------------- */

/* Blocks that were rounded once are not rounded again by accident. */
static qw_status check_source(const quantize *q, qw_err *err)
{
    for (size_t i = 0; i < qw_gguf_n_tensors(q->in) && !q->requantize; i++) {
        const qw_tensor *t = qw_gguf_tensor(q->in, i);
        if (q->types[i] == t->type || qw_type_get((uint32_t)t->type)->block_n == 1) continue;
        return qw_fail(err, QW_E_ARG, "%s: tensor %s is quantised already (%s), and a second rounding adds to its error: "
                       "take the model in BF16, F16 or F32, or add --requantize", qw_gguf_path(q->in), t->name,
                       qw_type_get((uint32_t)t->type)->name);
    }
    return QW_OK;
}

static qw_status read_importances(quantize *q, qw_err *err)
{
    size_t n_without = 0;
    const char *without = NULL;
    if (!q->imatrix) return QW_OK;
    for (size_t i = 0; i < qw_gguf_n_tensors(q->in); i++) {
        const qw_tensor *t = qw_gguf_tensor(q->in, i);
        if (q->types[i] == t->type || qw_type_get((uint32_t)q->types[i])->block_n == 1) continue;
        QW_TRY(qw_importances_read(q->imatrix, t, &q->importances[i], err));
        if (q->importances[i]) {
            q->n_weighted++;
        } else {
            n_without++;
            without = t->name;
        }
    }
    if (n_without > 0)
        fprintf(stderr, "qw: %s has no importances for %zu of %zu matrices, %s among them\n", q->imatrix_path, n_without,
                n_without + q->n_weighted, without);
    return QW_OK;
}

/* Keys that say something about the old file, not the model. */
static bool is_replaced(qw_text key)
{
    static const char *const keys[] = {"general.file_type", "general.quantization_version", "general.alignment",
                                       "split.no", "split.count", "split.tensors.count"};
    static const char imatrix[] = "quantize.imatrix.";
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (key.n == strlen(keys[i]) && memcmp(key.s, keys[i], key.n) == 0) return true;
    return key.n > strlen(imatrix) && memcmp(key.s, imatrix, strlen(imatrix)) == 0;
}

static qw_status put_header(const quantize *q, qw_gguf_writer *w, qw_err *err)
{
    for (size_t i = 0; i < qw_gguf_n_kv(q->in); i++)
        if (!is_replaced(qw_gguf_kv_key(q->in, i))) QW_TRY(qw_gguf_put_copy(w, q->in, i, err));
    if (qw_gguf_find_tensor(q->in, QW_RERANKER_HEAD)) QW_TRY(qw_reranker_put_keys(q->in, w, err));
    QW_TRY(qw_gguf_put_u32(w, "general.file_type", q->mix->file_type, err));
    QW_TRY(qw_gguf_put_u32(w, "general.quantization_version", QUANTIZATION_VERSION, err));
    if (q->imatrix) {
        QW_TRY(qw_gguf_put_str(w, "quantize.imatrix.file", qw_text_of(q->imatrix_path), err));
        QW_TRY(qw_gguf_put_u32(w, "quantize.imatrix.entries_count", (uint32_t)q->n_weighted, err));
    }
    for (size_t i = 0; i < qw_gguf_n_tensors(q->in); i++) {
        const qw_tensor *t = qw_gguf_tensor(q->in, i);
        QW_TRY(qw_gguf_put_tensor(w, t->name, q->types[i], t->n_dims, t->ne, err));
    }
    return QW_OK;
}

/* ---- the command -------------------------------------------------------------------------------- */

static size_t round64(size_t n)
{
    return (n + 63) / 64 * 64;
}

/* What a thread needs for the largest tensors. */
static qw_status make_scratch(quantize *q, qw_err *err)
{
    size_t maker_bytes = 0, all;
    for (size_t i = 0; i < qw_gguf_n_tensors(q->in); i++) {
        const qw_tensor *t = qw_gguf_tensor(q->in, i);
        size_t floats = round64((size_t)t->ne[0] * sizeof(float)), made = round64(QW_ROWS_AT_ONCE * qw_tensor_row_bytes(t));
        if (floats > q->float_bytes) q->float_bytes = floats;
        if (t->source && made > q->made_bytes) q->made_bytes = made;
        if (qw_tensor_scratch(t) > maker_bytes) maker_bytes = qw_tensor_scratch(t);
    }
    q->scratch_bytes = q->float_bytes + q->made_bytes + maker_bytes;
    if (qw_mul_overflows(q->scratch_bytes, (size_t)qw_pool_threads(q->pool), &all)) all = SIZE_MAX;
    return qw_alloc_aligned(&q->scratch, all, "rows of tensors", err);
}

static qw_status prepare(quantize *q, const char *in_path, int n_threads, qw_err *err)
{
    QW_TRY(qw_gguf_open(in_path, &q->in, err));
    qw_cli_print_notes(qw_gguf_note(q->in));
    if (q->imatrix_path) QW_TRY(qw_importances_open(q->imatrix_path, &q->imatrix, err));
    size_t n = qw_gguf_n_tensors(q->in);
    QW_TRY(qw_alloc(&q->types, n, sizeof *q->types, "types of tensors", err));
    QW_TRY(qw_alloc(&q->importances, n, sizeof *q->importances, "importances", err));
    QW_TRY(qw_quant_mix_types(q->mix, q->in, q->imatrix != NULL, q->types, err));
    QW_TRY(check_source(q, err));
    QW_TRY(read_importances(q, err));
    QW_TRY(qw_pool_create(n_threads, &q->pool, err));
    return make_scratch(q, err);
}

/* What each tensor is and becomes, without doing it. */
static void print_types(const quantize *q)
{
    for (size_t i = 0; i < qw_gguf_n_tensors(q->in); i++) {
        const qw_tensor *t = qw_gguf_tensor(q->in, i);
        printf("%s\t%s\t%s\n", t->name, qw_type_get((uint32_t)t->type)->name, qw_type_get((uint32_t)q->types[i])->name);
    }
}

static qw_status write_out(quantize *q, qw_gguf_writer *w, qw_err *err)
{
    const qw_gguf_write_options o = {.rows = make_rows, .rows_ctx = q, .progress = on_progress, .user = q,
                                     .replace = q->replace};
    qw_tool_progress_begin(&q->progress, "quantising");
    qw_status status = qw_gguf_write(w, q->out_path, &o, err);
    qw_tool_progress_end(&q->progress);
    return status;
}

static qw_status run(quantize *q, const char *in_path, int n_threads, qw_err *err)
{
    qw_gguf_writer *w = NULL;
    qw_status status;
    QW_TRY_GOTO(prepare(q, in_path, n_threads, err));
    QW_TRY_GOTO(qw_gguf_writer_create(&w, err));
    QW_TRY_GOTO(put_header(q, w, err));
    if (q->dry_run)
        print_types(q);
    else
        QW_TRY_GOTO(write_out(q, w, err));
    printf("%s: %s, %zu tensors, %.1f MB (%s: %.1f MB)\n", q->dry_run ? "not written" : q->out_path, q->mix->name,
           qw_gguf_n_tensors(q->in), (double)qw_gguf_writer_bytes(w) / 1e6, in_path, (double)qw_gguf_bytes(q->in) / 1e6);
fail:
    qw_gguf_writer_destroy(w);
    return status;
}

static void clean_up(quantize *q)
{
    if (q->scratch) qw_free_aligned(q->scratch, q->scratch_bytes * (size_t)qw_pool_threads(q->pool));
    qw_pool_destroy(q->pool);
    for (size_t i = 0; q->importances && i < qw_gguf_n_tensors(q->in); i++) free(q->importances[i]);
    free(q->importances);
    free(q->types);
    qw_gguf_close(q->imatrix);
    qw_gguf_close(q->in);
}

int qw_cmd_quantize(int argc, char **argv)
{
    quantize q = {0};
    int64_t n_threads = 0;
    char names[256], details[800], path[QW_CLI_PATH_MAX];
    const qw_cli_opt opts[] = {
        {0, "imatrix", QW_CLI_STR, &q.imatrix_path, "FILE", "importances of the inputs, from qw imatrix", 0, 0},
        {0, "requantize", QW_CLI_FLAG, &q.requantize, NULL, "also what is quantised already", 0, 0},
        {0, "replace", QW_CLI_FLAG, &q.replace, NULL, "a file that has the name OUT", 0, 0},
        {0, "dry-run", QW_CLI_FLAG, &q.dry_run, NULL, "only list each tensor's type, old and new", 0, 0},
        {'t', "threads", QW_CLI_INT, &n_threads, "N", "threads (the cores this process may use)", 1, 1024},
    };
    qw_quant_mix_names(names, sizeof names);
    snprintf(details, sizeof details, "TYPE is one of\n%s\nas llama.cpp's tools understand them: most matrices get that "
             "type, some a better one.\nIN is a GGUF file or a Hugging Face folder. The file appears when it is whole; "
             "interrupted,\nit leaves nothing.\n", names);
    const qw_cli_spec spec = {
        .name = "quantize", .usage = "IN OUT TYPE [options]", .summary = "Writes a model with smaller weights.",
        .opts = opts, .n_opts = QW_CLI_COUNT(opts), .n_args_min = 3, .n_args_max = 3, .details = details,
        .examples = "qw quantize model-BF16.gguf model-Q4_K_M.gguf Q4_K_M\n"
                    "qw quantize ./Qwen3-0.6B qwen3-0.6b-Q4_K_M.gguf Q4_K_M\n",
    };
    qw_err err;
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    q.out_path = argv[2];
    q.mix = qw_quant_mix_find(argv[3]);
    if (!q.mix) return qw_cli_usage("quantize", "unknown type \"%s\"", argv[3]);
    const qw_cli_model model = {.name = argv[1]};
    if ((rc = qw_cli_resolve(&model, path, sizeof path)) != 0) return rc;
    qw_cli_catch_interrupt(false);
    qw_status status = run(&q, path, n_threads ? (int)n_threads : qw_cpu_count(), &err);
    clean_up(&q);
    return status == QW_OK ? qw_cli_finish() : qw_cli_error(&err);
}
