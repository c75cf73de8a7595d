/* cli.c: options, help and errors of the commands (contract in cli.h).
 *
 * Everything is driven by the command's table: parsing, ranges and the help text come from the same rows, so
 * they cannot disagree. Main thread only.
 */
#include "cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "base/utf8.h"

/* ---- errors and output ------------------------------------------------------------------------ */

int qw_cli_fail(const char *fmt, ...)
{
    qw_err err; /* through qw_fail: foreign bytes in the message cannot break the line or the terminal */
    char text[QW_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    qw_fail(&err, QW_E_INTERNAL, "%s", text);
    fprintf(stderr, "qw: %s\n", err.text);
    return QW_EXIT_FAILURE;
}

int qw_cli_error(const qw_err *err)
{
    fprintf(stderr, "qw: %s\n", err->text);
    return err->status == QW_E_ARG ? QW_EXIT_USAGE : QW_EXIT_FAILURE;
}

int qw_cli_usage(const char *command, const char *fmt, ...)
{
    qw_err err;
    char text[QW_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    qw_fail(&err, QW_E_ARG, "%s", text);
    fprintf(stderr, "qw %s: %s; see qw %s --help\n", command, err.text, command);
    return QW_EXIT_USAGE;
}

bool qw_cli_output_failed(void)
{
    return ferror(stdout) != 0;
}

int qw_cli_finish(void)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return QW_EXIT_OK;
    /* The reader closed the pipe: it knows. Anything else (a full disk) the user has to know. */
    if (errno != 0 && errno != EPIPE) qw_cli_fail("standard output: %s", strerror(errno));
    return QW_EXIT_FAILURE;
}

void qw_cli_put_visible(FILE *file, qw_text text)
{
    for (size_t i = 0; i < text.n;) {
        uint32_t cp = 0;
        int len = qw_utf8_decode(text.s + i, text.n - i, &cp);
        if (len == 0) {
            fputs("\xEF\xBF\xBD", file); /* U+FFFD for a byte that is no UTF-8 */
            i++;
            continue;
        }
        if (cp == '\n' || cp == '\t' || (cp >= 0x20 && cp < 0x7f) || cp >= 0xa0)
            fwrite(text.s + i, 1, (size_t)len, file);
        else if (cp < 0x80)
            fprintf(file, "^%c", (char)(cp ^ 0x40));
        else /* C1 controls: some terminals act on them as on ESC */
            fprintf(file, "<%02X>", (unsigned)cp);
        i += (size_t)len;
    }
}

void qw_cli_print_notes(const char *notes)
{
    for (const char *end; *notes != '\0'; notes = end + 1) {
        end = strchr(notes, '\n');
        fputs("qw: note: ", stderr);
        qw_cli_put_visible(stderr, (qw_text){notes, (size_t)(end - notes)});
        fputc('\n', stderr);
    }
}

void qw_cli_put_text(qw_text text)
{
    static int is_terminal = -1;
    if (is_terminal < 0) is_terminal = isatty(STDOUT_FILENO);
    if (is_terminal)
        qw_cli_put_visible(stdout, text);
    else
        fwrite(text.s, 1, text.n, stdout);
    fflush(stdout);
}

void qw_cli_put_dim(FILE *file, bool dim, qw_text text)
{
    if (dim) fputs("\033[2m", file);
    qw_cli_put_visible(file, text);
    if (dim) fputs("\033[0m", file);
    fflush(file);
}

/* ---- interruption ----------------------------------------------------------------------------- */

volatile sig_atomic_t qw_cli_interrupted;

static void on_interrupt(int signo)
{
    (void)signo;
    qw_cli_interrupted = 1;
}

void qw_cli_catch_interrupt(bool once)
{
    struct sigaction sa = {.sa_handler = on_interrupt};
    sigemptyset(&sa.sa_mask);
    /* At the end a read that waits has to notice. Where the command goes on no write may: stdout would stay failed. */
    sa.sa_flags = once ? (int)SA_RESETHAND : SA_RESTART;
    sigaction(SIGINT, &sa, NULL);
}

void qw_cli_next_event(qw_engine *engine, uint64_t id, qw_event *ev)
{
    for (;;) {
        /* The wait for an event goes on after a signal, so it is cut into short pieces. */
        if (qw_cli_interrupted || qw_cli_output_failed()) qw_cancel(engine, id);
        if (qw_poll(engine, 50, ev) && ev->request == id) return;
    }
}

/* ---- help ------------------------------------------------------------------------------------- */

static int opt_label(const qw_cli_opt *o, char *out, size_t cap)
{
    char short_part[8] = "    ", long_part[64] = "";
    if (o->short_name != 0)
        snprintf(short_part, sizeof(short_part), "-%c%s", o->short_name, o->long_name ? ", " : "");
    if (o->long_name != NULL) snprintf(long_part, sizeof(long_part), "--%s", o->long_name);
    return snprintf(out, cap, "%s%s%s%s", short_part, long_part, o->arg ? " " : "", o->arg ? o->arg : "");
}

static void print_help(const qw_cli_spec *spec)
{
    static const qw_cli_opt help = {'h', "help", QW_CLI_FLAG, NULL, NULL, "this text", 0, 0};
    char label[160];
    int width = 0;
    for (size_t i = 0; i < spec->n_opts; i++) {
        int n = opt_label(&spec->opts[i], label, sizeof(label));
        if (n > width) width = n;
    }
    printf("qw %s: %s\n\nUsage: qw %s %s\n\nOptions:\n", spec->name, spec->summary, spec->name, spec->usage);
    for (size_t i = 0; i <= spec->n_opts; i++) {
        const qw_cli_opt *o = i < spec->n_opts ? &spec->opts[i] : &help;
        opt_label(o, label, sizeof(label));
        printf("  %-*s  %s\n", width, label, o->help);
    }
    if (spec->details != NULL) printf("\n%s", spec->details);
    fputs("\nExamples:\n", stdout);
    for (const char *line = spec->examples; line != NULL && *line != 0;) {
        size_t n = strcspn(line, "\n");
        printf("  %.*s\n", (int)n, line);
        line += n + (line[n] == '\n');
    }
    printf("\nExit codes: %s\n", spec->exits ? spec->exits : "0 ok, 1 failure, 2 wrong usage.");
}

/* ---- parsing ---------------------------------------------------------------------------------- */

/* -> 0, or 2 after printing what is wrong with the value. */
static int out_of_range(const qw_cli_spec *spec, const qw_cli_opt *o, const char *opt_text)
{
    return qw_cli_usage(spec->name, "option %s takes a number from %.10g to %.10g", opt_text, o->min, o->max);
}

static bool in_range(const qw_cli_opt *o, double value)
{
    return o->min == o->max || (value >= o->min && value <= o->max);
}

/* Reads a whole decimal number that ends at `end`. */
static bool read_int(const char *s, const char *end, int64_t *out)
{
    char *stop = NULL;
    if (s == end || isspace((unsigned char)*s)) return false;
    errno = 0;
    long long v = strtoll(s, &stop, 10);
    *out = v;
    return errno == 0 && stop == end;
}

static int set_ints(const qw_cli_spec *spec, const qw_cli_opt *o, const char *opt_text, const char *value)
{
    qw_cli_ints *ints = o->target, fresh = {0};
    qw_err err;
    size_t n = 1;
    for (const char *p = value; *p != 0; p++) n += *p == ',';
    if (qw_alloc(&fresh.v, n, sizeof(*fresh.v), opt_text, &err)) return qw_cli_error(&err);
    for (const char *p = value; fresh.n < n; p += strcspn(p, ",") + 1) {
        int64_t v = 0;
        if (!read_int(p, p + strcspn(p, ","), &v)) {
            qw_cli_ints_free(&fresh);
            return qw_cli_usage(spec->name, "option %s takes whole numbers separated by commas, not \"%s\"",
                                opt_text, value);
        }
        if (!in_range(o, (double)v)) {
            qw_cli_ints_free(&fresh);
            return out_of_range(spec, o, opt_text);
        }
        fresh.v[fresh.n++] = v;
    }
    qw_cli_ints_free(ints);
    *ints = fresh;
    return 0;
}

static int set_number(const qw_cli_spec *spec, const qw_cli_opt *o, const char *opt_text, const char *value)
{
    if (o->kind == QW_CLI_INT) {
        int64_t v = 0;
        if (!read_int(value, value + strlen(value), &v))
            return qw_cli_usage(spec->name, "option %s takes a whole number, not \"%s\"", opt_text, value);
        if (!in_range(o, (double)v)) return out_of_range(spec, o, opt_text);
        *(int64_t *)o->target = v;
        return 0;
    }
    char *end = NULL;
    errno = 0;
    double v = strtod(value, &end);
    if (end == value || *end != 0 || errno != 0 || !isfinite(v) || isspace((unsigned char)*value))
        return qw_cli_usage(spec->name, "option %s takes a number, not \"%s\"", opt_text, value);
    if (!in_range(o, v)) return out_of_range(spec, o, opt_text);
    *(double *)o->target = v;
    return 0;
}

static int set_bytes(const qw_cli_spec *spec, const qw_cli_opt *o, const char *opt_text, const char *value)
{
    if (qw_parse_bytes(value, o->target)) return 0;
    return qw_cli_usage(spec->name, "option %s takes a size like 12G or 900M, not \"%s\"", opt_text, value);
}

static int add_str(const qw_cli_opt *o, const char *value)
{
    qw_cli_strs *strs = o->target;
    qw_err err;
    if (qw_grow(&strs->v, strs->n, strs->n + 1, sizeof(*strs->v), "option values", &err))
        return qw_cli_error(&err);
    strs->v[strs->n++] = value;
    return 0;
}

static int set_value(const qw_cli_spec *spec, const qw_cli_opt *o, const char *opt_text, const char *value)
{
    switch (o->kind) {
    case QW_CLI_FLAG: *(bool *)o->target = true; return 0;
    case QW_CLI_STR: *(const char **)o->target = value; return 0;
    case QW_CLI_STRS: return add_str(o, value);
    case QW_CLI_INTS: return set_ints(spec, o, opt_text, value);
    case QW_CLI_INT:
    case QW_CLI_REAL: return set_number(spec, o, opt_text, value);
    case QW_CLI_BYTES: return set_bytes(spec, o, opt_text, value);
    }
    return 0;
}

/* --name, --name=value, --name value. Moves *i over what it used. */
static int parse_long(const qw_cli_spec *spec, int argc, char **argv, int *i)
{
    const char *name = argv[*i] + 2;
    size_t n = strcspn(name, "=");
    const char *inline_value = name[n] == '=' ? name + n + 1 : NULL;
    char opt_text[64];
    snprintf(opt_text, sizeof(opt_text), "--%.*s", (int)(n < 60 ? n : 60), name);
    for (size_t k = 0; k < spec->n_opts; k++) {
        const qw_cli_opt *o = &spec->opts[k];
        if (o->long_name == NULL || strlen(o->long_name) != n || memcmp(o->long_name, name, n) != 0) continue;
        if (o->kind == QW_CLI_FLAG && inline_value != NULL)
            return qw_cli_usage(spec->name, "option %s takes no value", opt_text);
        if (o->kind != QW_CLI_FLAG && inline_value == NULL) {
            if (*i + 1 >= argc) return qw_cli_usage(spec->name, "option %s needs a value", opt_text);
            inline_value = argv[++*i];
        }
        return set_value(spec, o, opt_text, inline_value);
    }
    return qw_cli_usage(spec->name, "unknown option %s", opt_text);
}

/* -x, -xVALUE, -x VALUE, and flags run together (-xy). */
static int parse_short(const qw_cli_spec *spec, int argc, char **argv, int *i)
{
    for (const char *p = argv[*i] + 1; *p != 0; p++) {
        const char opt_text[3] = {'-', *p, 0};
        const qw_cli_opt *o = NULL;
        for (size_t k = 0; k < spec->n_opts && o == NULL; k++)
            if (spec->opts[k].short_name == *p) o = &spec->opts[k];
        if (o == NULL) return qw_cli_usage(spec->name, "unknown option %s", opt_text);
        if (o->kind == QW_CLI_FLAG) {
            *(bool *)o->target = true;
            continue;
        }
        if (p[1] != 0) return set_value(spec, o, opt_text, p + 1);
        if (*i + 1 >= argc) return qw_cli_usage(spec->name, "option %s needs a value", opt_text);
        return set_value(spec, o, opt_text, argv[++*i]);
    }
    return 0;
}

/* --help anywhere before "--" wins over mistakes elsewhere in the line. */
static bool wants_help(int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return true;
    return false;
}

int qw_cli_parse(const qw_cli_spec *spec, int *argc, char **argv)
{
    int n_args = 0;
    bool options_ended = false;
    if (wants_help(*argc, argv)) {
        print_help(spec);
        return qw_cli_finish();
    }
    for (int i = 1; i < *argc; i++) {
        int rc = 0;
        if (!options_ended && strcmp(argv[i], "--") == 0)
            options_ended = true;
        else if (!options_ended && strncmp(argv[i], "--", 2) == 0)
            rc = parse_long(spec, *argc, argv, &i);
        else if (!options_ended && argv[i][0] == '-' && argv[i][1] != 0)
            rc = parse_short(spec, *argc, argv, &i);
        else
            argv[++n_args] = argv[i];
        if (rc != 0) return rc;
    }
    *argc = n_args + 1;
    if (n_args < spec->n_args_min) return qw_cli_usage(spec->name, "too few arguments");
    if (n_args > spec->n_args_max)
        return qw_cli_usage(spec->name, "unexpected argument \"%s\"", argv[spec->n_args_max + 1]);
    return QW_CLI_GO;
}

void qw_cli_ints_free(qw_cli_ints *ints)
{
    free(ints->v);
    *ints = (qw_cli_ints){0};
}

void qw_cli_strs_free(qw_cli_strs *strs)
{
    free(strs->v);
    *strs = (qw_cli_strs){0};
}

/* ---- sampling options ------------------------------------------------------------------------- */

qw_cli_sampling qw_cli_sampling_default(void)
{
    return (qw_cli_sampling){
        .temperature = NAN, .top_p = NAN, .min_p = NAN, .repetition = NAN, .presence = NAN,
        .frequency = NAN,   .top_k = -1,  .max_tokens = -1, .seed = -1,
    };
}

void qw_cli_sampling_apply(const qw_cli_sampling *s, qw_request *r)
{
    qw_sampling *to = &r->sampling;
    if (s->greedy) { /* before the single options: they may add a penalty again */
        to->temperature = 0;
        to->repetition_penalty = 1;
        to->presence_penalty = to->frequency_penalty = 0;
    }
    const struct {
        double from;
        float *to;
    } reals[] = {
        {s->temperature, &to->temperature},       {s->top_p, &to->top_p},
        {s->min_p, &to->min_p},                   {s->repetition, &to->repetition_penalty},
        {s->presence, &to->presence_penalty},     {s->frequency, &to->frequency_penalty},
    };
    for (size_t i = 0; i < QW_CLI_COUNT(reals); i++)
        if (!isnan(reals[i].from)) *reals[i].to = (float)reals[i].from;
    if (s->top_k >= 0) to->top_k = (int32_t)s->top_k;
    if (s->seed >= 0) to->seed = (uint64_t)s->seed;
    if (s->max_tokens >= 0) r->max_tokens = s->max_tokens;
    r->ignore_eos = s->ignore_eos;
    r->stop = s->stop.v;
    r->n_stop = s->stop.n;
}

/* ---- thinking ---------------------------------------------------------------------------------- */

int qw_cli_thinking_apply(const qw_cli_thinking *t, const char *command, qw_chat_options *out)
{
    static const struct {
        const char *word;
        qw_effort effort;
    } efforts[] = {{"low", QW_EFFORT_LOW}, {"medium", QW_EFFORT_MEDIUM}, {"xhigh", QW_EFFORT_XHIGH}};
    if (t->on && t->off) return qw_cli_usage(command, "--think and --no-think exclude each other");
    if (t->on || t->off) out->thinking = t->on ? QW_SWITCH_ON : QW_SWITCH_OFF;
    if (t->effort == NULL) return 0;
    for (size_t i = 0; i < QW_CLI_COUNT(efforts); i++) {
        if (strcmp(t->effort, efforts[i].word) != 0) continue;
        out->effort = efforts[i].effort;
        return 0;
    }
    return qw_cli_usage(command, "option --effort takes low, medium or xhigh, not \"%s\"", t->effort);
}

const char *qw_cli_thinking_fault(const qw_model *model, qw_switch thinking)
{
    qw_model_info info;
    qw_model_get_info(model, &info);
    if (thinking == QW_SWITCH_ON && !info.thinks) return "this model does not think before it answers";
    if (thinking == QW_SWITCH_OFF && info.thinks_always) return "this model always thinks before it answers";
    return NULL;
}
