/* cmd_eval.c: `qw eval`: perplexity of a text, or how good the guesses of multi-token prediction are.
 *
 * The text's tokens are cut into windows of -c tokens, each read on its own from position 0; the second half of a
 * window counts, so that every scored token has at least half a window before it. With --mtp the first half of each
 * window is continued instead (drafts.h). Main thread.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "text/tokenizer.h"
#include "tools/compute.h"
#include "tools/drafts.h"

enum { TEXT_BYTES_MAX = 1 << 30, HEAD_ROWS = 32 };

typedef struct score {
    const int32_t *window; /* ids of the current window */
    size_t n_window;
    float *rows;           /* [HEAD_ROWS, n_vocab] */
    double nll, nll_squared;
    size_t n;
} score;

static double negative_log_likelihood(const float *logits, size_t n_vocab, int32_t token)
{
    float max = logits[0];
    double sum = 0;
    for (size_t i = 1; i < n_vocab; i++) max = logits[i] > max ? logits[i] : max;
    for (size_t i = 0; i < n_vocab; i++) sum += exp((double)(logits[i] - max));
    return (double)max + log(sum) - (double)logits[token];
}

/* Row r of the pass predicts token first + r + 1 of the window. */
static qw_status score_rows(void *ctx, qw_compute *c, size_t first, size_t n_rows, qw_err *err)
{
    (void)err;
    score *s = ctx;
    uint32_t rows[HEAD_ROWS];
    size_t n_vocab = c->net->hp.n_vocab;
    size_t begin = s->n_window / 2 > first + 1 ? s->n_window / 2 - first - 1 : 0;
    size_t end = first + n_rows < s->n_window ? n_rows : n_rows - 1;
    for (size_t r = begin; r < end; r += HEAD_ROWS) {
        size_t n = end - r < HEAD_ROWS ? end - r : HEAD_ROWS;
        for (size_t i = 0; i < n; i++) rows[i] = (uint32_t)(r + i);
        qw_pass_logits(c->rt.pass, rows, n, s->rows, n_vocab);
        for (size_t i = 0; i < n; i++) {
            double nll = negative_log_likelihood(s->rows + i * n_vocab, n_vocab, s->window[first + r + i + 1]);
            s->nll += nll;
            s->nll_squared += nll * nll;
            s->n++;
        }
    }
    return QW_OK;
}

static qw_status score_text(qw_compute *c, const qw_tokens *tokens, size_t window, score *s, qw_err *err)
{
    qw_seq *seq = NULL;
    qw_status status;
    QW_TRY_GOTO(qw_alloc(&s->rows, (size_t)HEAD_ROWS * c->net->hp.n_vocab, sizeof(float), "logits", err));
    QW_TRY_GOTO(qw_seq_create(c->rt.seqs, &seq, err));
    for (size_t at = 0; at + window <= tokens->n; at += window) {
        s->window = tokens->ids + at;
        s->n_window = window;
        QW_TRY_GOTO(qw_compute_tokens(c, seq, s->window, window, score_rows, s, err));
        QW_TRY_GOTO(qw_seq_truncate(seq, 0, NULL, err));
    }
fail:
    qw_seq_release(seq);
    free(s->rows);
    return status;
}

static void report(const score *s, size_t n_tokens, size_t window, double seconds, bool json)
{
    double mean = s->nll / (double)s->n;
    double variance = s->nll_squared / (double)s->n - mean * mean;
    double ppl = exp(mean), ppl_err = s->n > 1 ? ppl * sqrt(variance / (double)(s->n - 1)) : 0;
    if (json) {
        printf("{\"test\":\"perplexity\",\"tokens\":%zu,\"scored\":%zu,\"context\":%zu,\"nll\":%.8f,"
               "\"perplexity\":%.6f,\"stderr\":%.6f,\"seconds\":%.3f}\n",
               n_tokens, s->n, window, mean, ppl, ppl_err, seconds);
    } else {
        printf("perplexity %.4f +/- %.4f over %zu of %zu tokens, windows of %zu, %.1f s\n", ppl, ppl_err, s->n,
               n_tokens, window, seconds);
    }
}

static void report_drafts(const qw_drafts *d, bool json)
{
    if (json) printf("{\"test\":\"drafts\",\"accepted\":[");
    for (size_t i = 0; i < d->n_max; i++) {
        double share = d->drafted[i] ? (double)d->accepted[i] / (double)d->drafted[i] : 0;
        if (json)
            printf("%s{\"drafted\":%zu,\"accepted\":%zu}", i ? "," : "", d->drafted[i], d->accepted[i]);
        else
            printf("draft %zu: %zu of %zu accepted (%.1f%%)\n", i + 1, d->accepted[i], d->drafted[i], 100 * share);
    }
    if (json) puts("]}");
}

/* What to measure. */
typedef struct eval_options {
    const char *text;
    int64_t n_drafts; /* 0: perplexity */
    bool json;
} eval_options;

static qw_status eval_text(qw_compute *c, const qw_tokens *tokens, size_t window, const eval_options *wanted, qw_err *err)
{
    score s = {0};
    int64_t start = qw_clock_us();
    QW_TRY(score_text(c, tokens, window, &s, err));
    report(&s, tokens->n, window, (double)(qw_clock_us() - start) / 1e6, wanted->json);
    return QW_OK;
}

static qw_status eval_drafts(qw_compute *c, const qw_tokens *tokens, size_t window, const eval_options *wanted,
                             qw_err *err)
{
    qw_drafts d = {.n_max = (size_t)wanted->n_drafts};
    for (size_t at = 0; at + window <= tokens->n; at += window)
        QW_TRY(qw_drafts_measure(c, tokens->ids + at, window / 2, window - window / 2, &d, err));
    report_drafts(&d, wanted->json);
    return QW_OK;
}

static qw_status evaluate(const qw_compute_options *o, const eval_options *wanted, qw_err *err)
{
    qw_compute c = {0};
    qw_tokenizer *tokenizer = NULL;
    qw_tokens tokens = {0};
    const char *text_path = wanted->text;
    char *text = NULL;
    size_t n_bytes, window = o->seq_tokens_max;
    qw_status status;
    QW_TRY_GOTO(qw_file_read(text_path, TEXT_BYTES_MAX, &text, &n_bytes, err));
    QW_TRY_GOTO(qw_compute_open(o, &c, err));
    QW_TRY_GOTO(qw_tokenizer_open_gguf(c.file, &tokenizer, err));
    QW_TRY_GOTO(qw_tokenizer_encode(tokenizer, text, n_bytes, false, &tokens, err));
    if (tokens.n < window) {
        status = qw_fail(err, QW_E_ARG, "%s has %zu tokens, at least one window of %zu is needed (-c)", text_path,
                         tokens.n, window);
        goto fail;
    }
    if (wanted->n_drafts)
        QW_TRY_GOTO(eval_drafts(&c, &tokens, window, wanted, err));
    else
        QW_TRY_GOTO(eval_text(&c, &tokens, window, wanted, err));
fail:
    qw_tokens_free(&tokens);
    qw_tokenizer_close(tokenizer);
    qw_compute_close(&c);
    free(text);
    return status;
}

int qw_cmd_eval(int argc, char **argv)
{
    qw_cli_model model = {0};
    eval_options wanted = {0};
    const qw_cli_opt opts[] = {
        QW_CLI_MODEL_OPTS(&model),
        {0, "text", QW_CLI_STR, &wanted.text, "FILE", "the text to score (- for standard input)", 0, 0},
        {0, "mtp", QW_CLI_INT, &wanted.n_drafts, "N", "instead: how many of N drafted tokens the model accepts", 1,
         QW_DRAFTS_MAX},
        {0, "json", QW_CLI_FLAG, &wanted.json, NULL, "one JSON line", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "eval", .usage = "--text FILE [options]",
        .summary = "Measures the perplexity of a text, or the acceptance of drafts.",
        .opts = opts, .n_opts = QW_CLI_COUNT(opts),
        .details = "The text is read in windows of -c tokens (512); the second half of each counts. With --mtp\n"
                   "the model continues the first half, and its layer for multi-token prediction guesses ahead.\n",
        .examples = "qw eval --text book.txt\nqw eval --text book.txt -c 2048 --json\n",
    };
    char path[QW_CLI_PATH_MAX];
    qw_err err;
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    if (!wanted.text) return qw_cli_usage("eval", "--text is missing: which text should be scored?");
    if ((rc = qw_cli_resolve(&model, path, sizeof path)) != 0) return rc;
    int64_t window = model.context ? model.context : 512;
    if (window < 4) return qw_cli_usage("eval", "-c %lld is too short a window", (long long)window);
    qw_compute_options o = {.path = path, .n_threads = (int)model.n_threads, .exact = model.exact, .quantize = model.quantize,
                            .no_pack_cache = model.no_pack_cache, .mtp = wanted.n_drafts > 0, .n_seqs = 1,
                            .seq_tokens_max = (uint32_t)window};
    return evaluate(&o, &wanted, &err) == QW_OK ? qw_cli_finish() : qw_cli_error(&err);
}
