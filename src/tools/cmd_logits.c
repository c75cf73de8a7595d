/* cmd_logits.c: `qw logits`: the logits of given token ids, as a NumPy file. The oracle's counterpart: works
 * without a tokenizer. Main thread.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "tools/compute.h"

enum { TOKENS_BYTES_MAX = 64 << 20, HEAD_ROWS = 32 /* rows whose logits are computed and written together */ };

/* Ids separated by commas or white space; brackets of a JSON array are white space too. */
static qw_status parse_tokens(const char *text, int32_t **out, size_t *n_out, qw_err *err)
{
    size_t cap = 0, n = 0;
    int32_t *ids = NULL;
    qw_status status = QW_OK;
    for (const char *p = text; *p;) {
        if (isspace((unsigned char)*p) || *p == ',' || *p == '[' || *p == ']') {
            p++;
            continue;
        }
        char *end;
        errno = 0;
        long v = strtol(p, &end, 10);
        if (end == p || errno || v < 0 || v > INT32_MAX) {
            status = qw_fail(err, QW_E_ARG, "'%.20s' is not a list of token ids", p);
            break;
        }
        if (n == cap) {
            status = qw_grow(&ids, cap, cap ? 2 * cap : 1024, sizeof *ids, "token ids", err);
            if (status != QW_OK) break;
            cap = cap ? 2 * cap : 1024;
        }
        ids[n++] = (int32_t)v;
        p = end;
    }
    if (status == QW_OK && n == 0) status = qw_fail(err, QW_E_ARG, "no token ids were given");
    if (status != QW_OK) {
        free(ids);
        return status;
    }
    *out = ids;
    *n_out = n;
    return QW_OK;
}

typedef struct npy {
    FILE *file;
    float *rows; /* [HEAD_ROWS, n_vocab] */
    const char *path;
} npy;

/* Format version 1.0: magic, header padded to a multiple of 64 bytes, then the data. */
static qw_status write_header(npy *out, size_t n, size_t n_vocab, qw_err *err)
{
    char text[128];
    memset(text, ' ', sizeof text);
    memcpy(text, "\x93NUMPY\x01\x00\x76\x00", 10);
    int len = snprintf(text + 10, sizeof text - 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }",
                       n, n_vocab);
    text[10 + len] = ' ';
    text[sizeof text - 1] = '\n';
    if (fwrite(text, sizeof text, 1, out->file) != 1) return qw_fail_errno(err, "%s: cannot write", out->path);
    return QW_OK;
}

static qw_status write_rows(void *ctx, qw_compute *c, size_t first, size_t n_rows, qw_err *err)
{
    (void)first;
    npy *out = ctx;
    uint32_t rows[HEAD_ROWS];
    size_t n_vocab = c->net->hp.n_vocab;
    for (size_t r = 0; r < n_rows; r += HEAD_ROWS) {
        size_t n = n_rows - r < HEAD_ROWS ? n_rows - r : HEAD_ROWS;
        for (size_t i = 0; i < n; i++) rows[i] = (uint32_t)(r + i);
        qw_pass_logits(c->rt.pass, rows, n, out->rows, n_vocab);
        if (fwrite(out->rows, n_vocab * sizeof(float), n, out->file) != n) {
            return qw_fail_errno(err, "%s: cannot write", out->path);
        }
    }
    return QW_OK;
}

/* Hidden states of all tokens, for multi-token prediction. */
static qw_status keep_hidden(void *ctx, qw_compute *c, size_t first, size_t n_rows, qw_err *err)
{
    (void)err;
    float *hidden = ctx;
    uint32_t rows[QW_COMPUTE_ROWS];
    for (size_t i = 0; i < n_rows; i++) rows[i] = (uint32_t)i;
    qw_pass_hidden(c->rt.pass, rows, n_rows, hidden + first * c->net->hp.hidden);
    return QW_OK;
}

/* Logits after each token but the last, of the token after the next. */
static qw_status compute_mtp(qw_compute *c, qw_seq *seq, const int32_t *ids, size_t n, npy *out, qw_err *err)
{
    size_t h = c->net->hp.hidden;
    qw_row rows[QW_COMPUTE_ROWS];
    float *hidden = NULL;
    qw_status status;
    QW_TRY_GOTO(qw_alloc(&hidden, n * h, sizeof *hidden, "hidden states", err));
    QW_TRY_GOTO(qw_compute_tokens(c, seq, ids, n, keep_hidden, hidden, err));
    for (size_t at = 0, step; at + 1 < n; at += step) {
        step = n - 1 - at < QW_COMPUTE_ROWS ? n - 1 - at : QW_COMPUTE_ROWS;
        for (size_t i = 0; i < step; i++)
            rows[i] = (qw_row){.seq = seq, .pos = (uint32_t)(at + i), .token = ids[at + i + 1]};
        qw_forward_mtp(c->rt.pass, rows, step, hidden + at * h, h);
        QW_TRY_GOTO(write_rows(out, c, at, step, err));
    }
fail:
    free(hidden);
    return status;
}

static qw_status compute(const qw_compute_options *o, const int32_t *ids, size_t n, const char *path, FILE *file,
                         qw_err *err)
{
    qw_compute c;
    qw_seq *seq = NULL;
    npy out = {.file = file, .path = path};
    qw_status status;
    QW_TRY(qw_compute_open(o, &c, err));
    QW_TRY_GOTO(qw_alloc(&out.rows, (size_t)HEAD_ROWS * c.net->hp.n_vocab, sizeof(float), "logits", err));
    QW_TRY_GOTO(qw_seq_create(c.rt.seqs, &seq, err));
    QW_TRY_GOTO(write_header(&out, o->mtp ? n - 1 : n, c.net->hp.n_vocab, err));
    if (o->mtp)
        QW_TRY_GOTO(compute_mtp(&c, seq, ids, n, &out, err));
    else
        QW_TRY_GOTO(qw_compute_tokens(&c, seq, ids, n, write_rows, &out, err));
fail:
    qw_seq_release(seq);
    free(out.rows);
    qw_compute_close(&c);
    return status;
}

/* The file appears under its name only when it is whole. */
static qw_status write_logits(const qw_compute_options *o, const int32_t *ids, size_t n, const char *path,
                              qw_err *err)
{
    char temp[QW_CLI_PATH_MAX + 16];
    snprintf(temp, sizeof temp, "%s.XXXXXX", path);
    int fd = mkstemp(temp);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "wb");
    if (!file) {
        qw_status status = qw_fail_errno(err, "%s: cannot create", path);
        if (fd >= 0) close(fd);
        return status;
    }
    qw_status status = compute(o, ids, n, path, file, err);
    if (fclose(file) != 0 && status == QW_OK) status = qw_fail_errno(err, "%s: cannot write", path);
    if (status == QW_OK && rename(temp, path) != 0) status = qw_fail_errno(err, "%s: cannot rename", path);
    if (status != QW_OK) unlink(temp);
    return status;
}

int qw_cmd_logits(int argc, char **argv)
{
    qw_cli_model model = {0};
    const char *tokens = NULL, *tokens_file = NULL, *output = NULL;
    bool mtp = false;
    const qw_cli_opt opts[] = {
        QW_CLI_MODEL_OPTS(&model),
        {0, "tokens", QW_CLI_STR, &tokens, "ID,...", "token ids", 0, 0},
        {0, "tokens-file", QW_CLI_STR, &tokens_file, "FILE", "a file with token ids (- for standard input)", 0, 0},
        {'o', "output", QW_CLI_STR, &output, "OUT.npy", "float32 [tokens, vocabulary] in NumPy's format", 0, 0},
        {0, "mtp", QW_CLI_FLAG, &mtp, NULL, "those of multi-token prediction, for all tokens but the last", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "logits", .usage = "--tokens 1,2,3 | --tokens-file FILE  -o OUT.npy [options]",
        .summary = "Computes the logits after each of the given tokens.", .opts = opts, .n_opts = QW_CLI_COUNT(opts),
        .examples = "qw logits -m model.gguf --tokens 9707,11,1879 -o logits.npy --exact\n"
                    "qw tokenize --json < text | qw logits --tokens-file - -o logits.npy\n",
    };
    char path[QW_CLI_PATH_MAX];
    char *text = NULL;
    size_t n_bytes, n = 0;
    int32_t *ids = NULL;
    qw_err err;
    qw_status status;
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    if (!output) return qw_cli_usage("logits", "-o is missing: where should the logits go?");
    if (!tokens == !tokens_file) return qw_cli_usage("logits", "give either --tokens or --tokens-file");
    if ((rc = qw_cli_resolve(&model, path, sizeof path)) != 0) return rc;
    if (tokens_file) {
        QW_TRY_GOTO(qw_file_read(tokens_file, TOKENS_BYTES_MAX, &text, &n_bytes, &err));
    }
    QW_TRY_GOTO(parse_tokens(text ? text : tokens, &ids, &n, &err));
    if (model.context > 0 && n > (size_t)model.context) {
        status = qw_fail(&err, QW_E_LIMIT, "%zu tokens were given, the context (-c) holds %lld", n,
                         (long long)model.context);
        goto fail;
    }
    qw_compute_options o = {.path = path, .n_threads = (int)model.n_threads, .exact = model.exact, .quantize = model.quantize,
                            .no_pack_cache = model.no_pack_cache, .mtp = mtp, .n_seqs = 1,
                            .seq_tokens_max = (uint32_t)n};
    QW_TRY_GOTO(write_logits(&o, ids, n, output, &err));
fail:
    free(ids);
    free(text);
    return status == QW_OK ? qw_cli_finish() : qw_cli_error(&err);
}
