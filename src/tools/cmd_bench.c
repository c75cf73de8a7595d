/* cmd_bench.c: `qw bench`: speed of prefill and decode.
 *
 * A prefill test computes -p tokens and the logits of the last, a decode test -n tokens one after the other with
 * the logits of each, for -s sequences side by side; both at a depth of -d tokens already in the context. Tokens
 * are pseudo-random but fixed: speed does not depend on them. A short warm-up, then -r timed runs. With --read the
 * weights are also read plainly after each decode step, which does not count. Main thread.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "tools/compute.h"
#include "tools/profile_report.h"
#include "tools/reading.h"

enum { STREAMS_MAX = 64, RUNS_MAX = 1000 };

/* What a step reads and multiplies at least, from the sizes in the file: with the machine's limits it says what speed
 * is possible. */
typedef struct work {
    size_t weight_bytes;   /* matrices of all layers and the head, as stored: a step reads each once */
    size_t kv_token_bytes; /* keys and values of one position, all layers */
    size_t layer_macs;     /* matrices of all layers, for one token */
    size_t silent_macs;    /* the same when nobody asks for its logits: the last layer ends with keys and values */
    size_t head_macs;      /* the head, for one row of logits */
} work;

typedef struct bench {
    qw_compute c;
    qw_backend *profile; /* owns; NULL: not asked for */
    qw_reading *reading; /* owns; NULL: not asked for */
    int64_t reading_us;  /* of the run so far */
    work work;
    qw_seq *seqs[STREAMS_MAX];
    size_t n_streams;
    int32_t *tokens;  /* [n_tokens_max] */
    float *logits;    /* [STREAMS_MAX, n_vocab] */
    double *samples;  /* [n_runs] tokens a second */
    size_t n_runs;
    bool json;
} bench;

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(const double *v, size_t n)
{
    double sorted[RUNS_MAX];
    for (size_t i = 0; i < n; i++) sorted[i] = v[i];
    qsort(sorted, n, sizeof *sorted, compare);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

typedef qw_status bench_fn(bench *b, int64_t n, qw_err *err);

/* A kind of test. */
typedef struct bench_kind {
    const char *name;
    bench_fn *run;
    int64_t warm_up_max; /* tokens of the warm-up at most */
    bool per_token;      /* the unit of a profile is one step, not the whole run */
    const char *unit;
} bench_kind;

static void report_json(const bench *b, const bench_kind *kind, int64_t n, int64_t depth, double middle,
                        const qw_reading_result *read, const qw_profile_span *span)
{
    printf("{\"test\":\"%s\",\"n\":%lld,\"depth\":%lld,\"streams\":%zu,\"threads\":%d,\"tokens_per_s\":%.3f,"
           "\"samples\":[",
           kind->name, (long long)n, (long long)depth, b->n_streams, b->c.rt.n_threads, middle);
    for (size_t i = 0; i < b->n_runs; i++) printf("%s%.3f", i ? "," : "", b->samples[i]);
    printf("],\"weight_bytes\":%zu,\"kv_token_bytes\":%zu,\"layer_macs\":%zu,\"silent_macs\":%zu,"
           "\"head_macs\":%zu",
           b->work.weight_bytes, b->work.kv_token_bytes, b->work.layer_macs, b->work.silent_macs, b->work.head_macs);
    if (read->share > 0) {
        printf(",\"read_gb_per_s\":%.3f,\"read_share\":%.4f,\"read_how\":\"%s\"", read->gb_per_s, read->share,
               read->how);
    }
    if (b->profile) {
        printf(",\"profile\":");
        qw_profile_print_json(span);
    }
    printf("}\n");
}

static void report(const bench *b, const bench_kind *kind, int64_t n, int64_t depth, double seconds)
{
    double middle = median(b->samples, b->n_runs);
    double n_units = (double)b->n_runs * (kind->per_token ? (double)n : (double)b->n_streams);
    qw_profile_span span = {.profile = b->profile, .n_units = n_units, .seconds = seconds};
    qw_reading_result read = b->reading ? qw_reading_take(b->reading) : (qw_reading_result){0};
    if (b->json) {
        report_json(b, kind, n, depth, middle, &read, &span);
    } else {
        printf("%-8s %6lld tokens  depth %6lld  streams %2zu  threads %2d  %10.2f tokens/s\n", kind->name, (long long)n,
               (long long)depth, b->n_streams, b->c.rt.n_threads, middle);
        if (read.share > 0) {
            printf("  plain reading of the weights, turn by turn: %.1f GB/s (%s); the steps reach %.0f%% of it\n",
                   read.gb_per_s, read.how, 100 * read.share);
        }
        if (b->profile) qw_profile_print(&span, kind->unit);
    }
    fflush(stdout);
}

static qw_status last_logits(bench *b, size_t n_rows_of_pass, size_t n, qw_err *err)
{
    uint32_t rows[STREAMS_MAX];
    (void)err;
    for (size_t i = 0; i < n; i++) rows[i] = (uint32_t)(n_rows_of_pass - n + i);
    qw_pass_logits(b->c.rt.pass, rows, n, b->logits, b->c.net->hp.n_vocab);
    return QW_OK;
}

/* n tokens into every stream, one after the other: prompts are not batched with each other. */
static qw_status run_prefill(bench *b, int64_t n, qw_err *err)
{
    for (size_t s = 0; s < b->n_streams; s++) {
        QW_TRY(qw_compute_tokens(&b->c, b->seqs[s], b->tokens, (size_t)n, NULL, NULL, err));
        QW_TRY(last_logits(b, b->c.rt.pass->n_batch, 1, err));
    }
    return QW_OK;
}

/* n steps; each adds one token to every stream in one pass. */
static qw_status run_decode(bench *b, int64_t n, qw_err *err)
{
    qw_row rows[STREAMS_MAX];
    for (int64_t i = 0; i < n; i++) {
        int64_t start = qw_clock_us();
        size_t kv_bytes = b->work.kv_token_bytes * b->n_streams * (b->seqs[0]->n_tokens + 1);
        for (size_t s = 0; s < b->n_streams; s++) {
            qw_seq *seq = b->seqs[s];
            QW_TRY(qw_seq_reserve(seq, seq->n_tokens + 1, err));
            rows[s] = (qw_row){.seq = seq, .pos = seq->n_tokens, .token = b->tokens[(size_t)i + s]};
        }
        qw_forward(b->c.rt.pass, rows, b->n_streams);
        QW_TRY(last_logits(b, b->n_streams, b->n_streams, err));
        for (size_t s = 0; s < b->n_streams; s++) qw_seq_advance(b->seqs[s], &rows[s].token, 1);
        if (b->reading) b->reading_us += qw_reading_pair(b->reading, qw_clock_us() - start, kv_bytes);
    }
    return QW_OK;
}

static const bench_kind prefill = {"prefill", run_prefill, 512, false, "prefill"};
static const bench_kind decode = {"decode", run_decode, 16, true, "decode step"};

static qw_status fill_to(bench *b, qw_seq *seq, int64_t depth, qw_err *err)
{
    QW_TRY(qw_seq_truncate(seq, 0, NULL, err));
    return depth ? qw_compute_tokens(&b->c, seq, b->tokens, (size_t)depth, NULL, NULL, err) : QW_OK;
}

/* Back to the beginning of a run; a recurrent state has to be computed again. */
static qw_status rewind_to(bench *b, int64_t depth, qw_err *err)
{
    for (size_t s = 0; s < b->n_streams; s++) {
        if (qw_seq_can_truncate(b->seqs[s], (uint32_t)depth))
            QW_TRY(qw_seq_truncate(b->seqs[s], (uint32_t)depth, b->tokens, err));
        else
            QW_TRY(fill_to(b, b->seqs[s], depth, err));
    }
    return QW_OK;
}

static qw_status run_test(bench *b, const bench_kind *kind, int64_t n, int64_t depth, qw_err *err)
{
    double total = 0;
    for (size_t s = 0; s < b->n_streams; s++) QW_TRY(fill_to(b, b->seqs[s], depth, err));
    QW_TRY(kind->run(b, n < kind->warm_up_max ? n : kind->warm_up_max, err));
    QW_TRY(rewind_to(b, depth, err));
    if (b->profile) qw_profile_clear(b->profile);
    if (b->reading) qw_reading_take(b->reading);
    for (size_t r = 0; r < b->n_runs; r++) {
        int64_t start = qw_clock_us();
        b->reading_us = 0;
        QW_TRY(kind->run(b, n, err));
        double seconds = (double)(qw_clock_us() - start - b->reading_us) / 1e6;
        b->samples[r] = (double)n * (double)b->n_streams / seconds;
        total += seconds;
        QW_TRY(rewind_to(b, depth, err));
    }
    report(b, kind, n, depth, total);
    return QW_OK;
}

typedef struct bench_lists {
    qw_cli_ints prompts, steps, depths, streams;
} bench_lists;

static int64_t largest(const qw_cli_ints *v)
{
    int64_t m = 0;
    for (size_t i = 0; i < v->n; i++) m = v->v[i] > m ? v->v[i] : m;
    return m;
}

static qw_status run_all(bench *b, const bench_lists *l, qw_err *err)
{
    for (size_t si = 0; si < l->streams.n; si++) {
        b->n_streams = (size_t)l->streams.v[si];
        for (size_t di = 0; di < l->depths.n; di++) {
            for (size_t i = 0; i < l->prompts.n; i++) {
                if (l->prompts.v[i]) QW_TRY(run_test(b, &prefill, l->prompts.v[i], l->depths.v[di], err));
            }
            for (size_t i = 0; i < l->steps.n; i++) {
                if (l->steps.v[i]) QW_TRY(run_test(b, &decode, l->steps.v[i], l->depths.v[di], err));
            }
        }
    }
    return QW_OK;
}

/* Of experts those that one token uses. */
typedef struct counting {
    size_t n_used, bytes, macs;
} counting;

static void count_weight(void *ctx, qw_weight *w)
{
    counting *sum = ctx;
    size_t n = w->n_stacked > 1 ? sum->n_used : 1;
    sum->bytes += n * w->rows * w->row_bytes;
    sum->macs += n * w->rows * w->k;
}

static work work_of(qw_net *net, const qw_kv_shape *kv)
{
    counting all = {.n_used = net->hp.n_experts_used}, skipped = all;
    size_t head = net->head.rows * net->head.k;
    qw_layer *last = &net->layers[net->hp.n_layers - 1];
    qw_net_each_weight(net, count_weight, &all);
    if (last->mixer == &qw_block_attention) {
        last->mixer->each_weight(last, count_weight, &skipped);
        last->ffn->each_weight(last, count_weight, &skipped);
        skipped.macs -= last->attn.k.rows * last->attn.k.k + last->attn.v.rows * last->attn.v.k;
    }
    return (work){.weight_bytes = all.bytes, .kv_token_bytes = qw_kv_page_bytes(kv) / QW_KV_TILE,
                  .layer_macs = all.macs - head, .silent_macs = all.macs - head - skipped.macs, .head_macs = head};
}

/* From here on the passes go through a backend that measures. */
static qw_status start_profile(bench *b, qw_err *err)
{
    QW_TRY(qw_profile_create(b->c.rt.be, &b->profile, err));
    b->c.rt.pass->be = b->profile;
    return QW_OK;
}

/* What the options ask for. */
typedef struct bench_options {
    size_t n_runs;
    bool json, profile, read;
} bench_options;

static qw_status bench_run(qw_compute_options *o, const bench_lists *l, const bench_options *wanted, qw_err *err)
{
    bench b = {.n_runs = wanted->n_runs, .json = wanted->json};
    size_t n_streams = (size_t)largest(&l->streams);
    int64_t longest = largest(&l->prompts) > largest(&l->steps) ? largest(&l->prompts) : largest(&l->steps);
    size_t n_tokens = (size_t)(longest > largest(&l->depths) ? longest : largest(&l->depths)) + STREAMS_MAX;
    uint32_t state = 12345;
    qw_status status;
    o->n_seqs = (uint32_t)n_streams;
    o->seq_tokens_max = (uint32_t)(longest + largest(&l->depths));
    QW_TRY(qw_compute_open(o, &b.c, err));
    b.work = work_of(b.c.net, &b.c.rt.pass->kv);
    if (wanted->profile) QW_TRY_GOTO(start_profile(&b, err));
    if (wanted->read) QW_TRY_GOTO(qw_reading_create(b.c.net, b.c.rt.n_threads, &b.reading, err));
    QW_TRY_GOTO(qw_alloc(&b.tokens, n_tokens, sizeof *b.tokens, "tokens", err));
    QW_TRY_GOTO(qw_alloc(&b.samples, b.n_runs, sizeof *b.samples, "samples", err));
    QW_TRY_GOTO(qw_alloc(&b.logits, n_streams * b.c.net->hp.n_vocab, sizeof *b.logits, "logits", err));
    for (size_t i = 0; i < n_tokens; i++) {
        state = state * 1664525u + 1013904223u;
        b.tokens[i] = (int32_t)((state >> 8) % b.c.net->hp.n_vocab);
    }
    for (size_t s = 0; s < n_streams; s++) QW_TRY_GOTO(qw_seq_create(b.c.rt.seqs, &b.seqs[s], err));
    status = run_all(&b, l, err);
fail:
    for (size_t s = 0; s < n_streams; s++) qw_seq_release(b.seqs[s]);
    free(b.tokens);
    free(b.samples);
    free(b.logits);
    qw_reading_destroy(b.reading);
    if (b.profile) b.profile->ops->destroy(b.profile);
    qw_compute_close(&b.c);
    return status;
}

/* A list that was not given holds one default. */
static qw_status set_default(qw_cli_ints *list, int64_t value, qw_err *err)
{
    if (list->n) return QW_OK;
    QW_TRY(qw_alloc(&list->v, 1, sizeof *list->v, "options", err));
    list->v[0] = value;
    list->n = 1;
    return QW_OK;
}

int qw_cmd_bench(int argc, char **argv)
{
    qw_cli_model model = {0};
    bench_lists l = {0};
    int64_t n_runs = 5;
    bench_options wanted = {0};
    const qw_cli_opt opts[] = {
        QW_CLI_MODEL_OPTS(&model),
        {'p', "prompt", QW_CLI_INTS, &l.prompts, "N,...", "tokens of a prefill test; 0 leaves it out (512)", 0,
         1 << 20},
        {'n', "generate", QW_CLI_INTS, &l.steps, "N,...", "tokens of a decode test; 0 leaves it out (64)", 0, 1 << 20},
        {'d', "depth", QW_CLI_INTS, &l.depths, "N,...", "tokens already in the context (0)", 0, 1 << 20},
        {'s', "streams", QW_CLI_INTS, &l.streams, "N,...", "sequences side by side; the total counts (1)", 1,
         STREAMS_MAX},
        {'r', "repeat", QW_CLI_INT, &n_runs, "N", "timed runs of each test; the median counts (5)", 1, RUNS_MAX},
        {0, "profile", QW_CLI_FLAG, &wanted.profile, NULL, "also say where the time goes, by operation", 0, 0},
        {0, "read", QW_CLI_FLAG, &wanted.read, NULL, "also read the weights after each decode step, and compare", 0, 0},
        {0, "json", QW_CLI_FLAG, &wanted.json, NULL, "one JSON line a test", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "bench", .usage = "[options]", .summary = "Measures the speed of prefill and decode.", .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .examples = "qw bench\nqw bench -p 512,2048 -n 64 -d 0,4096 --json\nqw bench -p 0 -n 64 -s 1,2,4,8,16\n"
                    "qw bench --profile\n",
    };
    char path[QW_CLI_PATH_MAX];
    qw_err err;
    qw_status status = QW_OK;
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) goto done;
    if ((rc = qw_cli_resolve(&model, path, sizeof path)) != 0) goto done;
    QW_TRY_GOTO(set_default(&l.prompts, 512, &err));
    QW_TRY_GOTO(set_default(&l.steps, 64, &err));
    QW_TRY_GOTO(set_default(&l.depths, 0, &err));
    QW_TRY_GOTO(set_default(&l.streams, 1, &err));
    if (largest(&l.prompts) == 0 && largest(&l.steps) == 0) {
        rc = qw_cli_usage("bench", "-p 0 and -n 0 leave nothing to measure");
        goto done;
    }
    qw_compute_options o = {.path = path, .n_threads = (int)model.n_threads, .exact = model.exact, .quantize = model.quantize,
                            .no_pack_cache = model.no_pack_cache};
    wanted.n_runs = (size_t)n_runs;
    status = bench_run(&o, &l, &wanted, &err);
fail:
    rc = status == QW_OK ? qw_cli_finish() : qw_cli_error(&err);
done:
    qw_cli_ints_free(&l.prompts);
    qw_cli_ints_free(&l.steps);
    qw_cli_ints_free(&l.depths);
    qw_cli_ints_free(&l.streams);
    return rc;
}
