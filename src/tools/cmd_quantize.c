/* cmd_quantize.c: `qw quantize`: a model file with smaller weights.
 *
 * Row by row: read, made floats, quantised on all threads, written. Nothing of the model is held but the mapped file, so
 * its size does not matter; the result appears under its name when it is whole. Which tensor becomes what:
 * quant_mix.h; how: kernels/ref/quantize.c. Main thread.
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

enum {
    SLICE_ELEMENTS = 1 << 20, /* quantised between two looks at Ctrl-C */
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
    float *scratch;      /* [n_threads, k_max] */
    size_t k_max;
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

static void quantize_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    rows_work *w = ctx;
    const qw_tensor *t = qw_gguf_tensor(w->q->in, w->tensor);
    qw_type type = w->q->types[w->tensor];
    const float *importances = w->q->importances[w->tensor];
    float *x = w->q->scratch + (size_t)thread * w->q->k_max;
    size_t k = (size_t)t->ne[0], in_bytes = qw_type_row_bytes(t->type, k), out_bytes = qw_type_row_bytes(type, k);
    for (int64_t i = begin; i < end; i++) {
        uint64_t row = w->row0 + (uint64_t)i;
        const uint8_t *in = t->data + row * in_bytes;
        uint8_t *out = w->out + (size_t)i * out_bytes;
        qw_dequantize_row(t->type, in, x, k);
        qw_quantize_row(type, x, out, k, importances ? importances + row / t->ne[1] * k : NULL);
        if (!qw_row_finite(t->type, in, k) || !qw_row_finite(type, out, k)) atomic_store(&w->bad_row, row);
    }
}

/* qw_gguf_rows_fn: rows of the result. */
static qw_status make_rows(void *ctx, size_t tensor, uint64_t row0, size_t n, uint8_t *out, qw_err *err)
{
    quantize *q = ctx;
    const qw_tensor *t = qw_gguf_tensor(q->in, tensor);
    size_t k = (size_t)t->ne[0], out_bytes = qw_type_row_bytes(q->types[tensor], k);
    size_t at_once = SLICE_ELEMENTS / k + 1;
    if (q->types[tensor] == t->type) memcpy(out, t->data + row0 * out_bytes, n * out_bytes);
    for (size_t done = 0; done < n && q->types[tensor] != t->type; done += at_once) {
        rows_work w = {.q = q, .tensor = tensor, .row0 = row0 + done, .out = out + done * out_bytes,
                       .bad_row = UINT64_MAX};
        if (qw_cli_interrupted)
            return qw_fail(err, QW_E_CANCELLED, "%s: interrupted, nothing was written", q->out_path);
        qw_pool_run(q->pool, (int64_t)(n - done < at_once ? n - done : at_once), 1, quantize_rows, &w);
        uint64_t bad_row = atomic_load(&w.bad_row);
        if (bad_row != UINT64_MAX)
            return qw_fail(err, QW_E_CORRUPT, "%s: tensor %s has a value in row %llu that %s cannot hold",
                           qw_gguf_path(q->in), t->name, (unsigned long long)bad_row,
                           qw_type_get((uint32_t)q->types[tensor])->name);
    }
    if (qw_gguf_map_failed(q->in))
        return qw_fail(err, QW_E_IO, "%s: the file shrank or could not be read", qw_gguf_path(q->in));
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
    for (size_t i = 0; i < qw_gguf_n_tensors(q->in); i++)
        if (qw_gguf_tensor(q->in, i)->source) /* of a folder: rows that are made */
            return qw_fail(err, QW_E_UNSUPPORTED, "%s: is a folder: `qw convert` makes a file of it first", qw_gguf_path(q->in));
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

static qw_status prepare(quantize *q, const char *in_path, int n_threads, qw_err *err)
{
    QW_TRY(qw_gguf_open(in_path, &q->in, err));
    if (q->imatrix_path) QW_TRY(qw_importances_open(q->imatrix_path, &q->imatrix, err));
    size_t n = qw_gguf_n_tensors(q->in), all;
    QW_TRY(qw_alloc(&q->types, n, sizeof *q->types, "types of tensors", err));
    QW_TRY(qw_alloc(&q->importances, n, sizeof *q->importances, "importances", err));
    QW_TRY(qw_quant_mix_types(q->mix, q->in, q->imatrix != NULL, q->types, err));
    QW_TRY(check_source(q, err));
    QW_TRY(read_importances(q, err));
    for (size_t i = 0; i < n; i++) {
        size_t k = (size_t)qw_gguf_tensor(q->in, i)->ne[0];
        if (k > q->k_max) q->k_max = k;
    }
    QW_TRY(qw_pool_create(n_threads, &q->pool, err));
    if (qw_mul_overflows(q->k_max, (size_t)n_threads, &all)) all = SIZE_MAX;
    return qw_alloc(&q->scratch, all, sizeof *q->scratch, "rows as floats", err);
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
    qw_pool_destroy(q->pool);
    for (size_t i = 0; q->importances && i < qw_gguf_n_tensors(q->in); i++) free(q->importances[i]);
    free(q->importances);
    free(q->types);
    free(q->scratch);
    qw_gguf_close(q->imatrix);
    qw_gguf_close(q->in);
}

int qw_cmd_quantize(int argc, char **argv)
{
    quantize q = {0};
    int64_t n_threads = 0;
    char names[256], details[640], path[QW_CLI_PATH_MAX];
    const qw_cli_opt opts[] = {
        {0, "imatrix", QW_CLI_STR, &q.imatrix_path, "FILE", "importances of the inputs, from qw imatrix", 0, 0},
        {0, "requantize", QW_CLI_FLAG, &q.requantize, NULL, "also what is quantised already", 0, 0},
        {0, "replace", QW_CLI_FLAG, &q.replace, NULL, "a file that has the name OUT", 0, 0},
        {0, "dry-run", QW_CLI_FLAG, &q.dry_run, NULL, "only list each tensor's type, old and new", 0, 0},
        {'t', "threads", QW_CLI_INT, &n_threads, "N", "threads (the cores this process may use)", 1, 1024},
    };
    qw_quant_mix_names(names, sizeof names);
    snprintf(details, sizeof details, "TYPE is one of\n%s\nas llama.cpp's tools understand them: most matrices get that "
             "type, some a better one.\n", names);
    const qw_cli_spec spec = {
        .name = "quantize", .usage = "IN OUT TYPE [options]", .summary = "Writes a model with smaller weights.",
        .opts = opts, .n_opts = QW_CLI_COUNT(opts), .n_args_min = 3, .n_args_max = 3, .details = details,
        .examples = "qw quantize model-BF16.gguf model-Q4_K_M.gguf Q4_K_M\n",
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
