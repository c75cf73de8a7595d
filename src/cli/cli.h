/* cli.h: what every command of the program shares: options, help, errors, opening a model.
 *
 * A command is `int qw_cmd_NAME(int argc, char **argv)`; argv[0] is its name, the result is the exit code.
 * It describes its options in a table and lets qw_cli_parse() do the rest (help, unknown options, ranges):
 *
 *     int qw_cmd_bench(int argc, char **argv)
 *     {
 *         qw_cli_model model = {0};
 *         qw_cli_ints prompts = {0};
 *         int64_t n_runs = 5;
 *         bool json = false;
 *         const qw_cli_opt opts[] = {
 *             QW_CLI_MODEL_OPTS(&model),
 *             {'p', "prompt", QW_CLI_INTS, &prompts, "N,...", "prompt lengths in tokens (512)", 0, 1 << 20},
 *             {'r', "repeat", QW_CLI_INT, &n_runs, "N", "runs of each test (5)", 1, 1000},
 *             {0, "json", QW_CLI_FLAG, &json, NULL, "one JSON line a test", 0, 0},
 *         };
 *         const qw_cli_spec spec = {
 *             .name = "bench", .usage = "[options]", .summary = "Measures prefill and decode speed.",
 *             .opts = opts, .n_opts = QW_CLI_COUNT(opts), .examples = "qw bench -p 512,4096 -n 64 --json\n",
 *         };
 *         int rc = qw_cli_parse(&spec, &argc, argv);
 *         if (rc != QW_CLI_GO) goto done;          // after --help or a usage error
 *         ...
 *     done:
 *         qw_cli_ints_free(&prompts);
 *         return rc;
 *     }
 *
 * Main thread only. Exit codes: 0 ok, 1 failure, 2 wrong usage. An error is one line on standard error.
 */
#ifndef QW_CLI_CLI_H
#define QW_CLI_CLI_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"
#include "qw.h"

enum { QW_EXIT_OK = 0, QW_EXIT_FAILURE = 1, QW_EXIT_USAGE = 2 };
enum { QW_CLI_GO = -1 }; /* of qw_cli_parse: the command goes on */
enum { QW_CLI_PATH_MAX = 4096 };

#define QW_CLI_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- commands --------------------------------------------------------------------------------- */

int qw_cmd_chat(int argc, char **argv);
int qw_cmd_run(int argc, char **argv);
int qw_cmd_tokenize(int argc, char **argv);
int qw_cmd_embed(int argc, char **argv);
int qw_cmd_rerank(int argc, char **argv);
int qw_cmd_logits(int argc, char **argv);
int qw_cmd_bench(int argc, char **argv);
int qw_cmd_eval(int argc, char **argv);
int qw_cmd_imatrix(int argc, char **argv);
int qw_cmd_quantize(int argc, char **argv);
int qw_cmd_serve(int argc, char **argv);
int qw_cmd_pull(int argc, char **argv);
int qw_cmd_list(int argc, char **argv);
int qw_cmd_show(int argc, char **argv);
int qw_cmd_verify(int argc, char **argv);
int qw_cmd_rm(int argc, char **argv);
int qw_cmd_convert(int argc, char **argv);

/* ---- options ---------------------------------------------------------------------------------- */

typedef struct qw_cli_ints {
    int64_t *v; /* owns; qw_cli_ints_free */
    size_t n;
} qw_cli_ints;

typedef struct qw_cli_strs {
    const char **v; /* owns the array, borrows the texts from argv; qw_cli_strs_free */
    size_t n;
} qw_cli_strs;

typedef enum qw_cli_kind { /* what `target` points to */
    QW_CLI_FLAG,  /* bool: set to true */
    QW_CLI_STR,   /* const char *: borrows from argv */
    QW_CLI_STRS,  /* qw_cli_strs: each use of the option adds one */
    QW_CLI_INT,   /* int64_t */
    QW_CLI_INTS,  /* qw_cli_ints: numbers separated by commas; a later use replaces an earlier one */
    QW_CLI_REAL,  /* double */
    QW_CLI_BYTES  /* uint64_t: a size like 20G */
} qw_cli_kind;

typedef struct qw_cli_opt {
    char short_name;       /* 0: none */
    const char *long_name; /* without the dashes; NULL: none */
    qw_cli_kind kind;
    void *target;          /* holds the default before parsing */
    const char *arg;       /* name of the value in the help ("N"); NULL for a flag */
    const char *help;      /* one line, the default in brackets */
    double min, max;       /* range of numbers, both ends included; min == max: any */
} qw_cli_opt;

typedef struct qw_cli_spec {
    const char *name;     /* "chat" */
    const char *usage;    /* what follows "qw chat " in the usage line */
    const char *summary;  /* one or more whole lines */
    const qw_cli_opt *opts;
    size_t n_opts;
    int n_args_min, n_args_max; /* operands beside the options (0, 0: none) */
    const char *details;  /* more lines after the options, or NULL */
    const char *examples; /* one command a line, each line ended by \n */
    const char *exits;    /* NULL: the usual "0 ok, 1 failure, 2 wrong usage" */
} qw_cli_spec;

/* Sets the targets. Operands are moved to argv[1..*argc - 1], in their order. Returns QW_CLI_GO, or the exit
 * code after --help (0, printed on standard output) or a usage error (2, one line on standard error). */
int qw_cli_parse(const qw_cli_spec *spec, int *argc, char **argv) QW_MUST_CHECK;
void qw_cli_ints_free(qw_cli_ints *ints);
void qw_cli_strs_free(qw_cli_strs *strs);

/* ---- model and engine ------------------------------------------------------------------------- */

typedef struct qw_cli_model { /* zeroed: the defaults */
    const char *name;         /* catalogue name or path; NULL: the default model */
    int64_t n_threads;        /* 0: the cores this process may use */
    int64_t context;          /* 0: the model's own, at most 32768 */
    int64_t n_parallel;       /* answers at the same time; 0: the engine's default */
    uint64_t memory_bytes;    /* for everything; 0: three quarters of what is free */
    bool exact, no_pack_cache, plain_decoding, no_mtp;
    bool saves_state, no_state; /* what was computed goes to the cache folder: the command does so; not wanted */
    uint64_t state_bytes;     /* there at most; 0: the engine's default */
    const char *quantize;     /* type of weights, as in qw_model_options */
    const char *draft;        /* another model that drafts, named as `name` is; NULL: none */
} qw_cli_model;

#define QW_CLI_MODEL_NAME_OPT(m)                                                                   \
    {'m', "model", QW_CLI_STR, &(m)->name, "NAME|PATH",                                       \
     "an installed model, a GGUF file or a Hugging Face folder", 0, 0}
#define QW_CLI_MODEL_OPTS(m)                                                                       \
    QW_CLI_MODEL_NAME_OPT(m),                                                                      \
    {'t', "threads", QW_CLI_INT, &(m)->n_threads, "N", "threads (the cores this process may use)", \
     1, 1024},                                                                                     \
    {'c', "context", QW_CLI_INT, &(m)->context, "N",                                               \
     "tokens a conversation may hold (the model's own, at most 32768)", 1, 1 << 24},               \
    {0, "plain-decoding", QW_CLI_FLAG, &(m)->plain_decoding, NULL,                                \
     "one token a pass, without guesses that are checked beside it: the same answers", 0, 0},      \
    {0, "no-mtp", QW_CLI_FLAG, &(m)->no_mtp, NULL,                                                \
     "no guesses by a layer for multi-token prediction", 0, 0},        \
    {0, "memory", QW_CLI_BYTES, &(m)->memory_bytes, "SIZE",                                       \
     "for the model and all it keeps of conversations (three quarters of what is free)", 0, 0},    \
    {0, "quant", QW_CLI_STR, &(m)->quantize, "TYPE",                                               \
     "quantise float weights as they are loaded: q8_0, q4_k, ... (as they are)", 0, 0},            \
    {0, "exact", QW_CLI_FLAG, &(m)->exact, NULL, "reference mode: float32 throughout, slow", 0, 0},\
    {0, "no-pack-cache", QW_CLI_FLAG, &(m)->no_pack_cache, NULL,                                   \
     "do not read or write the side file of packed weights", 0, 0}

/* For commands that save what conversations have computed (qw_cli_model.saves_state). */
#define QW_CLI_STATE_OPTS(m)                                                                       \
    {0, "state-max", QW_CLI_BYTES, &(m)->state_bytes, "SIZE",                                      \
     "on disk at most, of what conversations have computed (21G)", 0, 0},                          \
    {0, "no-state", QW_CLI_FLAG, &(m)->no_state, NULL, "save nothing of that: it ends with the process", 0, 0}

/* For commands that answer. */
#define QW_CLI_DRAFT_OPT(m)                                                                        \
    {0, "draft", QW_CLI_STR, &(m)->draft, "NAME|PATH",                                            \
     "a small model of the same vocabulary, to guess ahead: the same answers", 0, 0}

/* Path of the model file the options name. When no model is installed says how to get one and, on a terminal,
 * offers to fetch the default. Returns 0, or the exit code after printing the error. */
int qw_cli_resolve(const qw_cli_model *m, char *path, size_t cap) QW_MUST_CHECK;
int qw_cli_open_model(const qw_cli_model *m, qw_model **model) QW_MUST_CHECK;
/* The model that drafts; *draft NULL when none is wanted. */
int qw_cli_open_draft(const qw_cli_model *m, qw_model **draft) QW_MUST_CHECK;

typedef struct qw_cli_loaded { /* owns; zeroed: nothing is open */
    qw_model *model, *draft;
    qw_engine *engine;
} qw_cli_loaded;
/* The models and an engine on them; on failure none is left open. */
int qw_cli_open(const qw_cli_model *m, qw_cli_loaded *out) QW_MUST_CHECK;
void qw_cli_close(qw_cli_loaded *l);
/* Whether the chat format fits the model: 0, or 1 after an error when there is none. A format that was only
 * recognised by likeness is said in one line on standard error. */
int qw_cli_check_chat_format(const qw_model *model) QW_MUST_CHECK;
qw_engine_options qw_cli_engine_options(const qw_cli_model *m);

/* ---- sampling options of chat and run --------------------------------------------------------- */

typedef struct qw_cli_sampling { /* from qw_cli_sampling_default(): nothing given */
    double temperature, top_p, min_p, repetition, presence, frequency;
    int64_t top_k, max_tokens, seed; /* each -1 when not given; the numbers above NAN */
    bool greedy, ignore_eos;
    qw_cli_strs stop; /* owns; qw_cli_strs_free */
} qw_cli_sampling;

qw_cli_sampling qw_cli_sampling_default(void);
/* Puts what was given over the request's defaults; r->stop borrows from s. */
void qw_cli_sampling_apply(const qw_cli_sampling *s, qw_request *r);

#define QW_CLI_SAMPLING_OPTS(s)                                                                    \
    {'n', "max-tokens", QW_CLI_INT, &(s)->max_tokens, "N",                                         \
     "end the answer after N tokens (0: as the context allows)", 0, 1 << 24},                      \
    {0, "seed", QW_CLI_INT, &(s)->seed, "N", "the same seed gives the same text (random)", 0,      \
     9e18},                                                                                        \
    {0, "temp", QW_CLI_REAL, &(s)->temperature, "X", "temperature; 0 is greedy (the model's)", 0,  \
     100},                                                                                         \
    {0, "top-k", QW_CLI_INT, &(s)->top_k, "N", "keep the N most probable tokens; 0 is off", 0,     \
     1 << 24},                                                                                     \
    {0, "top-p", QW_CLI_REAL, &(s)->top_p, "X", "keep the tokens that make up X; 1 is off", 0, 1}, \
    {0, "min-p", QW_CLI_REAL, &(s)->min_p, "X", "drop tokens below X times the best; 0 is off", 0, \
     1},                                                                                           \
    {0, "repetition-penalty", QW_CLI_REAL, &(s)->repetition, "X",                                  \
     "over prompt and answer; 1 is off", 0.01, 100},                                               \
    {0, "presence-penalty", QW_CLI_REAL, &(s)->presence, "X", "over the answer; 0 is off", -100,   \
     100},                                                                                         \
    {0, "frequency-penalty", QW_CLI_REAL, &(s)->frequency, "X", "over the answer; 0 is off", -100, \
     100},                                                                                         \
    {0, "greedy", QW_CLI_FLAG, &(s)->greedy, NULL,                                                 \
     "always the most probable token, no penalties", 0, 0},                                        \
    {0, "stop", QW_CLI_STRS, &(s)->stop, "TEXT", "end before this text (may be repeated)", 0, 0},  \
    {0, "ignore-eos", QW_CLI_FLAG, &(s)->ignore_eos, NULL,                                         \
     "go on after the model's end token", 0, 0}

/* ---- thinking of chat and run ------------------------------------------------------------------ */

typedef struct qw_cli_thinking { /* zeroed: as the model does by itself */
    bool on, off;                /* --think, --no-think */
    const char *effort;          /* NULL: the model's own */
    int64_t budget;              /* tokens; 0: no limit */
} qw_cli_thinking;

/* Options for a request. 0, or 2 after an error: both switches, or no such effort. */
int qw_cli_thinking_apply(const qw_cli_thinking *t, const char *command, qw_chat_options *out) QW_MUST_CHECK;
/* Why the model will not do as the switch says, or NULL. */
const char *qw_cli_thinking_fault(const qw_model *model, qw_switch thinking);

#define QW_CLI_THINKING_OPTS(t)                                                                    \
    {0, "think", QW_CLI_FLAG, &(t)->on, NULL, "think before the answer (the model's own way)", 0, 0},  \
    {0, "no-think", QW_CLI_FLAG, &(t)->off, NULL, "answer at once, where the model can", 0, 0},    \
    {0, "effort", QW_CLI_STR, &(t)->effort, "LEVEL", "how much to think: low, medium, xhigh", 0, 0}, \
    {0, "think-budget", QW_CLI_INT, &(t)->budget, "N", "think at most N tokens, then answer", 1, 1 << 30}

/* ---- errors and output ------------------------------------------------------------------------ */

/* "qw: <err->text>" on standard error; returns the exit code (QW_E_ARG: 2, else 1). */
int qw_cli_error(const qw_err *err);
int qw_cli_fail(const char *fmt, ...) QW_PRINTF(1, 2);                      /* "qw: ..."; returns 1 */
int qw_cli_usage(const char *command, const char *fmt, ...) QW_PRINTF(2, 3); /* "qw CMD: ...; see qw CMD
                                                                              * --help"; returns 2 */
/* Flushes standard output. 0, or 1 when it could not be written (said, unless the reader just closed it). To be
 * the last thing a command does: `return qw_cli_finish();` */
int qw_cli_finish(void);
/* True once a write to standard output failed: stop working for nobody. */
bool qw_cli_output_failed(void);
/* Text of a model on standard output. On a terminal control characters other than newline and tab are
 * made visible (^[), so that no answer can drive the terminal; elsewhere the bytes are written as they are. */
void qw_cli_put_text(qw_text text);
/* The same choice for a message of ours that repeats foreign text: always made visible. */
void qw_cli_put_visible(FILE *file, qw_text text);
/* The same, dim where asked for: thinking, and remarks. */
void qw_cli_put_dim(FILE *file, bool dim, qw_text text);
/* Lines about a model (qw_gguf_note) on standard error, each as "qw: note: ...". */
void qw_cli_print_notes(const char *notes);

/* ---- interruption ----------------------------------------------------------------------------- */

/* Set by Ctrl-C once qw_cli_catch_interrupt() was called; the caller resets it. */
extern volatile sig_atomic_t qw_cli_interrupted;
/* once: Ctrl-C ends the command: reads that wait fail with EINTR, and a second one ends the program at once. Otherwise
 * the command decides, and no read or write fails because of Ctrl-C. */
void qw_cli_catch_interrupt(bool once);

/* Takes the next event of `id`, and cancels it when Ctrl-C was pressed or standard output closed. */
void qw_cli_next_event(qw_engine *engine, uint64_t id, qw_event *ev);

#endif
