/* cmd_run.c: `qw run`: one prompt, one answer.
 *
 * Main thread. Text streams to standard output; --json collects instead and prints one object. Thinking is shown to a
 * person, dim, before the answer; a pipe gets the answer alone. The first Ctrl-C cancels (what was said stays printed,
 * exit 1), a second one ends the program at once.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/mem.h"
#include "cli/cli.h"
#include "cli/report.h"

enum { FORM_BYTES_MAX = 1 << 20 }; /* of a file; what a form may have, the engine says */

typedef struct run_options {
    qw_cli_model model;
    qw_cli_sampling sampling;
    qw_cli_thinking thinking;
    qw_chat_options chat; /* from it */
    const char *prompt, *file, *system, *suffix;
    const char *schema, *grammar, *regex; /* what the answer is held to: two files, an expression, */
    qw_cli_strs choices;                  /* or one of these */
    bool raw, special, json;
    int64_t n_logprobs; /* -1: none */
} run_options;

typedef struct run_state {
    qw_cli_loaded loaded;
    qw_model *model;   /* loaded.model */
    qw_engine *engine; /* loaded.engine */
    qw_buf prompt; /* the whole prompt text */
    char *form;    /* the file of --schema or --grammar */
    qw_text *choices;
    qw_buf text, reasoning; /* the answer, for --json */
    json_t *tokens;
    bool shows_thinking, thinking_shown;
    char last;     /* last byte printed; 0: nothing yet */
} run_state;

/* -p, then -f (or a pipe), with an empty line between when both are there. */
static int read_prompt(const run_options *o, run_state *s)
{
    qw_err err;
    const char *file = o->file;
    if (o->prompt == NULL && file == NULL) {
        if (isatty(STDIN_FILENO))
            return qw_cli_usage("run", "no prompt: give one with -p or -f, or pipe it in");
        file = "-";
    }
    if (o->prompt != NULL && qw_buf_add_str(&s->prompt, o->prompt, &err) != QW_OK) return qw_cli_error(&err);
    if (file == NULL) return 0;
    char *data = NULL;
    size_t n = 0;
    if (qw_file_read(file, QW_PROMPT_BYTES_MAX, &data, &n, &err) != QW_OK) return qw_cli_error(&err);
    /* The newline that ends a file is not part of what is asked; --raw and --suffix take bytes as they are. */
    if (!o->raw && o->suffix == NULL)
        while (n > 0 && (data[n - 1] == '\n' || data[n - 1] == '\r')) n--;
    qw_status status = QW_OK;
    if (o->prompt != NULL && n > 0) status = qw_buf_add_str(&s->prompt, "\n\n", &err);
    if (status == QW_OK) status = qw_buf_add(&s->prompt, data, n, &err);
    free(data);
    return status == QW_OK ? 0 : qw_cli_error(&err);
}

/* What the answer is held to, from at most one option. */
static int read_form(const run_options *o, run_state *s, qw_form_request *form)
{
    const char *file = o->schema ? o->schema : o->grammar;
    qw_err err;
    size_t n = 0;
    if ((o->schema != NULL) + (o->grammar != NULL) + (o->regex != NULL) + (o->choices.n > 0) > 1)
        return qw_cli_usage("run", "an answer is held to one of --schema, --grammar, --regex and --choice");
    if (file && qw_file_read(file, FORM_BYTES_MAX, &s->form, &n, &err) != QW_OK) return qw_cli_error(&err);
    if (o->schema) form->kind = QW_FORM_SCHEMA;
    if (o->grammar) form->kind = QW_FORM_GRAMMAR;
    if (file) form->source = (qw_text){s->form, n};
    if (o->regex) *form = (qw_form_request){.kind = QW_FORM_REGEX, .source = qw_text_of(o->regex)};
    if (o->choices.n == 0) return 0;
    if (qw_alloc(&s->choices, o->choices.n, sizeof *s->choices, "the choices", &err) != QW_OK) return qw_cli_error(&err);
    for (size_t i = 0; i < o->choices.n; i++) s->choices[i] = qw_text_of(o->choices.v[i]);
    *form = (qw_form_request){.kind = QW_FORM_CHOICE, .choices = s->choices, .n_choices = o->choices.n};
    return 0;
}

static int check_options(const run_options *o)
{
    if (o->raw && o->suffix != NULL) return qw_cli_usage("run", "--raw and --suffix exclude each other");
    if (o->system != NULL && (o->raw || o->suffix != NULL))
        return qw_cli_usage("run", "--system needs the chat format: not with --raw or --suffix");
    if (o->special && !o->raw) return qw_cli_usage("run", "--special needs --raw");
    bool thinking = o->thinking.on || o->thinking.off || o->thinking.effort != NULL || o->thinking.budget > 0;
    if (thinking && (o->raw || o->suffix != NULL))
        return qw_cli_usage("run", "--think, --no-think, --effort and --think-budget need the chat format: not with --raw "
                                   "or --suffix");
    if (o->n_logprobs >= 0 && !o->json) return qw_cli_usage("run", "--logprobs needs --json");
    return 0;
}

static json_t *token_bytes(qw_text text)
{
    json_t *bytes = json_array();
    for (size_t i = 0; i < text.n; i++) json_array_append_new(bytes, json_integer((unsigned char)text.s[i]));
    return bytes;
}

static json_t *token_json(const qw_model *model, int32_t id, float logprob)
{
    qw_text text = qw_token_text(model, id);
    return json_pack("{s:i, s:o, s:o, s:f}", "id", (int)id, "text", qw_report_text(text), "bytes",
                     token_bytes(text), "logprob", (double)logprob);
}

static void collect_tokens(run_state *s, const qw_event *ev)
{
    for (size_t i = 0; i < ev->n_tokens; i++) {
        const qw_event_token *t = &ev->tokens[i];
        json_t *one = token_json(s->model, t->token, t->logprob), *top = json_array();
        for (size_t k = 0; k < t->n_top; k++)
            json_array_append_new(top, token_json(s->model, t->top[k].token, t->top[k].logprob));
        json_object_set_new(one, "top", top);
        json_array_append_new(s->tokens, one);
    }
}

static void show_thinking(run_state *s, qw_text text)
{
    if (!s->shows_thinking) return;
    qw_cli_put_dim(stdout, true, text);
    s->thinking_shown = true;
}

static void show_text(run_state *s, qw_text text)
{
    if (s->thinking_shown) fputs("\n\n", stdout);
    s->thinking_shown = false;
    qw_cli_put_text(text);
    s->last = text.s[text.n - 1];
}

static qw_status take_event(const run_options *o, run_state *s, const qw_event *ev, qw_err *err)
{
    if (s->tokens != NULL) collect_tokens(s, ev);
    if (ev->type == QW_EVENT_WARNING) fprintf(stderr, "qw: note: %.*s\n", (int)ev->text.n, ev->text.s);
    if ((ev->type != QW_EVENT_TEXT && ev->type != QW_EVENT_REASONING) || ev->text.n == 0) return QW_OK;
    bool thinking = ev->type == QW_EVENT_REASONING;
    if (o->json) return qw_buf_add(thinking ? &s->reasoning : &s->text, ev->text.s, ev->text.n, err);
    if (thinking) show_thinking(s, ev->text);
    else show_text(s, ev->text);
    return QW_OK;
}

static int print_json(run_state *s, const qw_event *done, bool held)
{
    json_t *root = json_pack("{s:o, s:s, s:o, s:o}", "text", qw_report_text((qw_text){s->text.data, s->text.n}),
                             "finish_reason", qw_report_finish(done->finish), "usage",
                             qw_report_usage(&done->usage), "timings",
                             qw_report_timings(&done->usage, &done->timings));
    if (root != NULL && s->reasoning.n > 0)
        json_object_set_new(root, "reasoning", qw_report_text((qw_text){s->reasoning.data, s->reasoning.n}));
    if (root != NULL && s->tokens != NULL) json_object_set(root, "tokens", s->tokens);
    if (root != NULL && held) json_object_set_new(root, "closed", json_boolean(done->closed));
    if (root == NULL) return qw_cli_fail("out of memory: the JSON of the answer");
    json_dumpf(root, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(root);
    return 0;
}

static int answer(const run_options *o, run_state *s, const qw_request *request)
{
    uint64_t id = 0;
    qw_event ev;
    qw_err err;
    int rc = 0;
    if (qw_submit(s->engine, request, &id, &err) != QW_OK) return qw_cli_error(&err);
    do {
        qw_cli_next_event(s->engine, id, &ev);
        if (rc == 0 && take_event(o, s, &ev, &err) != QW_OK) {
            rc = qw_cli_error(&err);
            qw_cancel(s->engine, id);
        }
    } while (!qw_event_is_terminal(&ev));
    if (rc != 0) return rc;
    /* Chat text ends in a newline for the reader; raw text in a pipe stays exactly what the model wrote. */
    bool exact_bytes = (o->raw || o->suffix != NULL) && !isatty(STDOUT_FILENO);
    if (!o->json && !exact_bytes && (s->thinking_shown || (s->last != 0 && s->last != '\n'))) putchar('\n');
    if (ev.type == QW_EVENT_ERROR) return qw_cli_error(&ev.error);
    if (o->json && (rc = print_json(s, &ev, request->form.kind != QW_FORM_NONE)) != 0) return rc;
    if (ev.finish == QW_FINISH_CONTEXT)
        fprintf(stderr, "qw: the context of %u tokens is full and the answer is cut; a larger -c holds more\n",
                qw_engine_context(s->engine));
    if (ev.finish == QW_FINISH_REPETITION)
        fprintf(stderr, "qw: the answer is cut: it went on saying the same\n");
    rc = qw_cli_finish();
    return ev.finish == QW_FINISH_CANCELLED ? QW_EXIT_FAILURE : rc;
}

static int run(run_options *o, run_state *s)
{
    qw_form_request form = {.kind = QW_FORM_NONE};
    int rc = check_options(o);
    if (rc == 0) rc = qw_cli_thinking_apply(&o->thinking, "run", &o->chat);
    if (rc == 0) rc = read_form(o, s, &form);
    if (rc == 0) rc = read_prompt(o, s);
    if (rc == 0) rc = qw_cli_open(&o->model, &s->loaded);
    s->model = s->loaded.model;
    s->engine = s->loaded.engine;
    if (rc == 0 && !o->raw && o->suffix == NULL) rc = qw_cli_check_chat_format(s->model);
    if (rc != 0) return rc;
    const char *fault = qw_cli_thinking_fault(s->model, o->chat.thinking);
    if (fault != NULL) fprintf(stderr, "qw: note: %s\n", fault);
    s->shows_thinking = !o->json && isatty(STDOUT_FILENO);
    qw_text text = {qw_buf_str(&s->prompt), s->prompt.n};
    qw_message messages[2];
    size_t n = 0;
    if (o->system != NULL) messages[n++] = (qw_message){.role = "system", .content = qw_text_of(o->system)};
    messages[n++] = (qw_message){.role = "user", .content = text};
    qw_request request = qw_request_default(s->model);
    request.kind = o->raw ? QW_PROMPT_RAW : o->suffix != NULL ? QW_PROMPT_FIM : QW_PROMPT_CHAT;
    request.messages = messages;
    request.n_messages = n;
    request.chat = o->chat;
    request.thinking_tokens_max = o->thinking.budget;
    request.text = text;
    request.suffix = qw_text_of(o->suffix);
    request.raw_special = o->special;
    request.form = form;
    qw_cli_sampling_apply(&o->sampling, &request);
    request.sampling.top_logprobs = (int32_t)o->n_logprobs;
    if (o->n_logprobs >= 0) s->tokens = json_array();
    qw_cli_catch_interrupt(true);
    return answer(o, s, &request);
}

int qw_cmd_run(int argc, char **argv)
{
    run_options o = {.model = {.n_parallel = 1}, .sampling = qw_cli_sampling_default(), .n_logprobs = -1};
    run_state s = {0};
    const qw_cli_opt opts[] = {
        {'p', "prompt", QW_CLI_STR, &o.prompt, "PROMPT", "the prompt", 0, 0},
        {'f', "file", QW_CLI_STR, &o.file, "FILE", "the prompt, or what follows -p, from a file (-: a pipe)", 0, 0},
        {0, "system", QW_CLI_STR, &o.system, "TEXT", "the system message", 0, 0},
        {0, "raw", QW_CLI_FLAG, &o.raw, NULL, "continue the prompt as text, without the chat format", 0, 0},
        {0, "special", QW_CLI_FLAG, &o.special, NULL, "with --raw: control tokens in the prompt count as such", 0, 0},
        {0, "suffix", QW_CLI_STR, &o.suffix, "TEXT", "fill in between the prompt and TEXT (Coder models)", 0, 0},
        {0, "schema", QW_CLI_STR, &o.schema, "FILE", "the answer is JSON that satisfies this JSON schema", 0, 0},
        {0, "regex", QW_CLI_STR, &o.regex, "PATTERN", "the whole answer matches this expression", 0, 0},
        {0, "choice", QW_CLI_STRS, &o.choices, "TEXT", "the answer is one of these (repeat it for each)", 0, 0},
        {0, "grammar", QW_CLI_STR, &o.grammar, "FILE", "the answer follows this EBNF", 0, 0},
        {0, "json", QW_CLI_FLAG, &o.json, NULL, "one JSON object with text, token counts and timings", 0, 0},
        {0, "logprobs", QW_CLI_INT, &o.n_logprobs, "N",
         "with --json: log-probabilities, with N alternatives", 0, QW_TOP_LOGPROBS_MAX},
        QW_CLI_THINKING_OPTS(&o.thinking),
        QW_CLI_SAMPLING_OPTS(&o.sampling),
        QW_CLI_MODEL_OPTS(&o.model),
        QW_CLI_DRAFT_OPT(&o.model),
    };
    const qw_cli_spec spec = {
        .name = "run",
        .usage = "[-p PROMPT] [-f FILE] [options]",
        .summary = "Answers one prompt. Without -p and -f the prompt is read from a pipe.",
        .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .details = "On a terminal the thinking of a model is shown, dim, before its answer; with --json it is the field\n"
                   "reasoning. A pipe gets the answer alone.\n",
        .examples = "qw run -p 'What is a mutex?'\n"
                    "qw run -p 'Explain this file.' -f main.c\n"
                    "git diff | qw run --system 'Write a commit message.' --temp 0.2\n"
                    "qw run --raw -p 'Once upon a time' -n 64 --seed 7\n"
                    "qw run -p 'def add(a, b):' --suffix 'print(add(1, 2))'\n"
                    "qw run -p 'Hi' --json --logprobs 3\n"
                    "qw run -p 'Is 91 prime?' --choice yes --choice no\n",
        .exits = "0 ok, 1 failure or stopped with Ctrl-C, 2 wrong usage.",
    };
    qw_buf_init(&s.prompt, QW_PROMPT_BYTES_MAX, "prompt");
    qw_buf_init(&s.text, (size_t)1 << 30, "answer");
    qw_buf_init(&s.reasoning, (size_t)1 << 30, "thinking");
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc == QW_CLI_GO) rc = run(&o, &s);
    json_decref(s.tokens);
    qw_cli_close(&s.loaded);
    qw_buf_free(&s.prompt);
    qw_buf_free(&s.text);
    qw_buf_free(&s.reasoning);
    qw_cli_strs_free(&o.sampling.stop);
    qw_cli_strs_free(&o.choices);
    free(s.form);
    free(s.choices);
    return rc;
}
