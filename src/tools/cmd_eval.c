/* cmd_eval.c: `qw eval`: perplexity of a text, how far a model is from another one, or how good the guesses of multi-token
 * prediction are.
 *
 * The text's tokens are cut into windows of -c tokens, the second half of which counts (windows.h). With --kl a reference
 * reads them too (divergence.h); with --mtp the first half of each window is continued instead (drafts.h). Main thread.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "text/tokenizer.h"
#include "tools/compute.h"
#include "tools/divergence.h"
#include "tools/drafts.h"
#include "tools/windows.h"

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
    size_t n_vocab = c->net->hp.n_vocab, begin, end;
    qw_window_rows(s->n_window, first, n_rows, &begin, &end);
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

/* A mean of n numbers from their sum and sum of squares, with its standard error. */
typedef struct mean_of {
    double mean, error;
} mean_of;

static mean_of mean_from(double sum, double sum_squared, size_t n)
{
    double mean = sum / (double)n, variance = sum_squared / (double)n - mean * mean;
    return (mean_of){.mean = mean, .error = n > 1 && variance > 0 ? sqrt(variance / (double)(n - 1)) : 0};
}

static void report(const score *s, size_t n_tokens, size_t window, double seconds, bool json)
{
    mean_of nll = mean_from(s->nll, s->nll_squared, s->n);
    double mean = nll.mean, ppl = exp(mean), ppl_err = ppl * nll.error;
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

static void report_divergence(const qw_divergence *d, const char *reference, size_t n_tokens, size_t window, double seconds,
                              bool json)
{
    mean_of kl = mean_from(d->sum, d->sum_squared, d->n), nll = mean_from(d->nll, d->nll_squared, d->n);
    mean_of change = mean_from(d->change, d->change_squared, d->n);
    double ppl = exp(nll.mean), ppl_reference = exp(d->nll_reference / (double)d->n);
    double rms = sqrt(d->change_squared / (double)d->n), same_top = (double)d->n_same_top / (double)d->n;
    double median = qw_divergence_quantile(d, 0.5), p90 = qw_divergence_quantile(d, 0.9);
    double p99 = qw_divergence_quantile(d, 0.99), most = qw_divergence_quantile(d, 1);
    if (json) {
        printf("{\"test\":\"divergence\",\"tokens\":%zu,\"scored\":%zu,\"context\":%zu,\"kl\":{\"mean\":%.9g,\"stderr\":%.9g,"
               "\"median\":%.9g,\"p90\":%.9g,\"p99\":%.9g,\"max\":%.9g},\"same_top\":%.9g,\"perplexity\":%.9g,"
               "\"reference_perplexity\":%.9g,\"probability_change\":{\"mean\":%.9g,\"rms\":%.9g},\"seconds\":%.3f}\n",
               n_tokens, d->n, window, kl.mean, kl.error, median, p90, p99, most, same_top, ppl, ppl_reference, change.mean,
               rms, seconds);
        return;
    }
    printf("against %s: %zu of %zu tokens, windows of %zu, %.1f s\n", reference, d->n, n_tokens, window, seconds);
    printf("divergence   %.6f +/- %.6f nats; median %.6f, 90%% %.6f, 99%% %.6f, largest %.6f\n", kl.mean, kl.error, median, p90,
           p99, most);
    printf("same top     %.2f%% of the positions\n", 100 * same_top);
    printf("perplexity   %.4f +/- %.4f, the reference's %.4f (%+.2f%%)\n", ppl, ppl * nll.error, ppl_reference,
           100 * (ppl / ppl_reference - 1));
    printf("probability  of the text's token: %+.3f%% on average, %.3f%% root mean square\n", 100 * change.mean, 100 * rms);
}

/* What to measure. */
typedef struct eval_options {
    const char *text;
    const char *reference, *reference_name; /* of the divergence: path, and as it was asked for; NULL: none */
    bool reference_exact;
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

/* The same text has to be the same tokens, of a vocabulary of the same size. */
static qw_status check_reference(const qw_compute *c, const qw_compute *reference, const qw_tokens *tokens, const char *text,
                                 size_t n_bytes, qw_err *err)
{
    qw_tokenizer *tokenizer = NULL;
    qw_tokens theirs = {0};
    qw_status status;
    if (reference->net->hp.n_vocab != c->net->hp.n_vocab)
        return qw_fail(err, QW_E_ARG, "%s has a vocabulary of %u, %s of %u: only models with the same can be compared",
                       qw_gguf_path(c->file), c->net->hp.n_vocab, qw_gguf_path(reference->file), reference->net->hp.n_vocab);
    QW_TRY_GOTO(qw_tokenizer_open_gguf(reference->file, &tokenizer, err));
    QW_TRY_GOTO(qw_tokenizer_encode(tokenizer, text, n_bytes, false, &theirs, err));
    if (theirs.n != tokens->n || memcmp(theirs.ids, tokens->ids, tokens->n * sizeof *tokens->ids) != 0)
        status = qw_fail(err, QW_E_ARG, "the text has other tokens for %s than for %s: only models with the same can be compared",
                         qw_gguf_path(reference->file), qw_gguf_path(c->file));
fail:
    qw_tokens_free(&theirs);
    qw_tokenizer_close(tokenizer);
    return status;
}

static qw_status eval_divergence(qw_compute *c, const qw_compute_options *o, const qw_tokens *tokens, const char *text,
                                 size_t n_bytes, const eval_options *wanted, qw_err *err)
{
    qw_compute reference = {0};
    qw_divergence d = {0};
    qw_compute_options ro = {.path = wanted->reference, .n_threads = o->n_threads, .no_pack_cache = o->no_pack_cache,
                             .exact = o->exact || wanted->reference_exact, .n_seqs = 1, .seq_tokens_max = o->seq_tokens_max};
    size_t window = o->seq_tokens_max;
    int64_t start = qw_clock_us();
    qw_status status;
    QW_TRY_GOTO(qw_compute_open(&ro, &reference, err));
    QW_TRY_GOTO(check_reference(c, &reference, tokens, text, n_bytes, err));
    for (size_t at = 0; at + window <= tokens->n; at += window)
        QW_TRY_GOTO(qw_divergence_add(&d, c, &reference, tokens->ids + at, window, err));
    qw_divergence_sort(&d);
    report_divergence(&d, wanted->reference_name, tokens->n, window, (double)(qw_clock_us() - start) / 1e6, wanted->json);
fail:
    qw_divergence_free(&d);
    qw_compute_close(&reference);
    return status;
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
    if (wanted->reference)
        QW_TRY_GOTO(eval_divergence(&c, o, &tokens, text, n_bytes, wanted, err));
    else if (wanted->n_drafts)
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
    qw_cli_model model = {0}, reference = {0};
    eval_options wanted = {0};
    const qw_cli_opt opts[] = {
        QW_CLI_MODEL_OPTS(&model),
        {0, "text", QW_CLI_STR, &wanted.text, "FILE", "the text to score (- for standard input)", 0, 0},
        {0, "kl", QW_CLI_STR, &reference.name, "REF", "instead: how far the model's predictions are from those of REF", 0, 0},
        {0, "kl-exact", QW_CLI_FLAG, &wanted.reference_exact, NULL, "compute REF with float32 weights and activations", 0, 0},
        {0, "mtp", QW_CLI_INT, &wanted.n_drafts, "N", "instead: how many of N drafted tokens the model accepts", 1,
         QW_DRAFTS_MAX},
        {0, "json", QW_CLI_FLAG, &wanted.json, NULL, "one JSON line", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "eval", .usage = "--text FILE [options]",
        .summary = "Measures the perplexity of a text, the distance to another model, or the acceptance of drafts.",
        .opts = opts, .n_opts = QW_CLI_COUNT(opts),
        .details = "The text is read in windows of -c tokens (512); the second half of each counts. With --kl a second\n"
                   "model of the same vocabulary reads along, and at each position the Kullback-Leibler divergence of the\n"
                   "model from it is measured: 0 for itself. With --mtp the model continues the first half, and its layer\n"
                   "for multi-token prediction guesses ahead.\n",
        .examples = "qw eval --text book.txt\nqw eval --text book.txt -c 2048 --json\n"
                    "qw eval -m model-Q4_K_M.gguf --text book.txt --kl model-BF16.gguf\n",
    };
    char path[QW_CLI_PATH_MAX], reference_path[QW_CLI_PATH_MAX];
    qw_err err;
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    if (reference.name && wanted.n_drafts) return qw_cli_usage("eval", "--kl and --mtp are two things: give one of them");
    if (wanted.reference_exact && !reference.name) return qw_cli_usage("eval", "--kl-exact goes with --kl");
    if (!wanted.text) return qw_cli_usage("eval", "--text is missing: which text should be scored?");
    if ((rc = qw_cli_resolve(&model, path, sizeof path)) != 0) return rc;
    if (reference.name) {
        if ((rc = qw_cli_resolve(&reference, reference_path, sizeof reference_path)) != 0) return rc;
        wanted.reference = reference_path;
        wanted.reference_name = reference.name;
    }
    int64_t window = model.context ? model.context : 512;
    if (window < 4) return qw_cli_usage("eval", "-c %lld is too short a window", (long long)window);
    qw_compute_options o = {.path = path, .n_threads = (int)model.n_threads, .exact = model.exact, .quantize = model.quantize,
                            .no_pack_cache = model.no_pack_cache, .mtp = wanted.n_drafts > 0, .n_seqs = 1,
                            .seq_tokens_max = (uint32_t)window};
    return evaluate(&o, &wanted, &err) == QW_OK ? qw_cli_finish() : qw_cli_error(&err);
}
