/* cmd_chat.c: `qw chat`: a conversation on a terminal, or one prompt a line from a pipe.
 *
 * Main thread. On a terminal Ctrl-C stops the answer and Ctrl-D leaves; in a pipe standard output carries the
 * answers alone and Ctrl-C ends the program.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/file.h"
#include "cli/cli.h"
#include "cli/line.h"
#include "cli/session.h"

typedef struct chat {
    qw_session session;
    qw_line *line;     /* owns; NULL when standard input is a pipe */
    bool input_is_terminal;
    bool ended;        /* /exit */
    int rc;            /* 1 once something in a pipe failed */
} chat;

/* ---- commands --------------------------------------------------------------------------------- */

static void do_help(chat *c, const char *argument);

static void do_system(chat *c, const char *argument)
{
    qw_session *s = &c->session;
    qw_err err;
    if (argument[0] == 0) {
        if (s->system == NULL)
            qw_session_note(s, "system message: the model's own");
        else
            qw_session_note(s, "system message (/system - goes back to the model's own): %s", s->system);
        return;
    }
    qw_text text = qw_text_of(strcmp(argument, "-") == 0 ? NULL : argument);
    if (qw_session_set_system(s, text, &err) != QW_OK)
        qw_cli_error(&err);
    else
        qw_session_note(s, "system message %s", text.n > 0 ? "set" : "is the model's own again");
}

static void do_think(chat *c, const char *argument)
{
    static const char *const words[] = {[QW_SWITCH_DEFAULT] = "auto", [QW_SWITCH_ON] = "on", [QW_SWITCH_OFF] = "off"};
    qw_session *s = &c->session;
    size_t i = 0;
    while (i < QW_CLI_COUNT(words) && strcmp(argument, words[i]) != 0) i++;
    if (i == QW_CLI_COUNT(words)) {
        qw_session_note(s, "thinking is %s; /think takes on, off or auto (as the model does by itself)",
                        words[s->chat.thinking]);
        return;
    }
    s->chat.thinking = (qw_switch)i;
    const char *fault = qw_cli_thinking_fault(s->model, s->chat.thinking);
    qw_session_note(s, "thinking is %s%s%s", words[i], fault != NULL ? ", but " : "", fault != NULL ? fault : "");
}

static void do_clear(chat *c, const char *argument)
{
    (void)argument;
    qw_session_clear(&c->session);
    qw_session_note(&c->session, "new conversation");
}

static void take_result(chat *c, qw_session_result result)
{
    if (c->input_is_terminal) return;
    if (result != QW_SESSION_ANSWERED) c->rc = QW_EXIT_FAILURE;
    if (result == QW_SESSION_STOPPED) c->ended = true;
}

/* Sends a message (text.s NULL: asks again for the last answer). */
static void say(chat *c, qw_text text)
{
    if (c->input_is_terminal) qw_line_echo(false);
    qw_session_result result = text.s != NULL ? qw_session_say(&c->session, text) : qw_session_retry(&c->session);
    if (c->input_is_terminal) qw_line_echo(true);
    take_result(c, result);
}

static void do_retry(chat *c, const char *argument)
{
    (void)argument;
    say(c, (qw_text){NULL, 0});
}

static void do_stats(chat *c, const char *argument)
{
    (void)argument;
    qw_session_stats(&c->session);
}

/* True when the file may be written: it is not there, or the user agrees to replace it. */
static bool may_replace(chat *c, const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0) return true;
    if (!S_ISREG(st.st_mode)) {
        qw_session_note(&c->session, "not saved: %s is not a regular file", path);
        return false;
    }
    if (!c->input_is_terminal) {
        qw_session_note(&c->session, "not saved: %s exists", path);
        c->rc = QW_EXIT_FAILURE;
        return false;
    }
    qw_buf reply;
    qw_err err;
    qw_buf_init(&reply, 1 << 16, "reply");
    qw_session_note(&c->session, "%s exists. Replace it?", path);
    bool yes = qw_line_read(c->line, "y/n> ", &reply, &err) == QW_LINE_TEXT &&
               (qw_buf_str(&reply)[0] == 'y' || qw_buf_str(&reply)[0] == 'Y');
    qw_buf_free(&reply);
    if (!yes) qw_session_note(&c->session, "not saved");
    return yes;
}

static void do_save(chat *c, const char *argument)
{
    qw_session *s = &c->session;
    char path[QW_CLI_PATH_MAX];
    const char *home = getenv("HOME"); /* what ~ means to every shell */
    qw_err err;
    if (argument[0] == 0) {
        qw_session_note(s, "/save needs a file name: talk.md to read, talk.json to use again");
        return;
    }
    bool tilde = argument[0] == '~' && argument[1] == '/' && home != NULL;
    int n = snprintf(path, sizeof(path), "%s%s", tilde ? home : "", tilde ? argument + 1 : argument);
    if (n < 0 || (size_t)n >= sizeof(path)) {
        qw_session_note(s, "not saved: the file name is too long");
        return;
    }
    if (!may_replace(c, path)) return;
    if (qw_session_save(s, path, &err) == QW_OK) {
        qw_session_note(s, "saved to %s", path);
        return;
    }
    qw_cli_error(&err);
    if (!c->input_is_terminal) c->rc = QW_EXIT_FAILURE;
}

static void do_exit(chat *c, const char *argument)
{
    (void)argument;
    c->ended = true;
}

static const struct {
    const char *name, *argument, *help;
    void (*run)(chat *c, const char *argument);
} chat_commands[] = {
    {"/help", "", "this list", do_help},
    {"/system", "TEXT", "set the system message; - for the model's own", do_system},
    {"/think", "on|off", "think before the answer, where the model can", do_think},
    {"/clear", "", "new conversation; the system message stays", do_clear},
    {"/retry", "", "answer the last message anew", do_retry},
    {"/stats", "", "tokens and speed", do_stats},
    {"/save", "FILE", "write the conversation to FILE, Markdown or .json", do_save},
    {"/exit", "", "leave (also Ctrl-D)", do_exit},
};

static void do_help(chat *c, const char *argument)
{
    static const char *const keys[] = {
        "Ctrl-C stops an answer or clears the line. Pasted lines stay together.",
        "A \\ at the end of a line continues it; \"\"\" begins and ends a longer text.",
        "A message that begins with / is written //.",
    };
    char label[64];
    (void)argument;
    for (size_t i = 0; i < QW_CLI_COUNT(chat_commands); i++) {
        snprintf(label, sizeof(label), "%s %s", chat_commands[i].name, chat_commands[i].argument);
        qw_session_note(&c->session, "%-13s %s", label, chat_commands[i].help);
    }
    for (size_t i = 0; c->input_is_terminal && i < QW_CLI_COUNT(keys); i++)
        qw_session_note(&c->session, "%s", keys[i]);
}

static void run_command(chat *c, const char *text)
{
    size_t n = strcspn(text, " \t\n");
    const char *argument = text + n + strspn(text + n, " \t\n");
    for (size_t i = 0; i < QW_CLI_COUNT(chat_commands); i++) {
        if (strlen(chat_commands[i].name) == n && memcmp(chat_commands[i].name, text, n) == 0) {
            chat_commands[i].run(c, argument);
            return;
        }
    }
    qw_session_note(&c->session, "unknown command %.*s; /help lists them, // sends a /", (int)n, text);
}

/* ---- messages --------------------------------------------------------------------------------- */

static bool is_blank(const char *s)
{
    return s[strspn(s, " \t\r\n")] == 0;
}

/* One message as it was typed; cuts the white space at its end. */
static void take_message(chat *c, qw_buf *message)
{
    while (message->n > 0 && strchr(" \t\r\n", message->data[message->n - 1]) != NULL) message->n--;
    if (message->data == NULL || message->n == 0) return;
    message->data[message->n] = 0;
    if (message->data[0] == '/' && message->data[1] != '/')
        run_command(c, message->data);
    else if (message->data[0] == '/')
        say(c, (qw_text){message->data + 1, message->n - 1});
    else
        say(c, (qw_text){message->data, message->n});
}

/* ---- terminal --------------------------------------------------------------------------------- */

static bool ends_with(const char *s, size_t n, const char *end)
{
    size_t n_end = strlen(end);
    return n >= n_end && memcmp(s + n - n_end, end, n_end) == 0;
}

/* Reads lines until a message is whole: a \ at the end of a line and an open """ go on. */
static qw_line_result read_message(chat *c, qw_buf *message, qw_err *err)
{
    static const char fence[] = "\"\"\"";
    qw_buf line;
    qw_line_result result;
    bool fenced = false, more = true;
    qw_buf_init(&line, QW_PROMPT_BYTES_MAX, "message");
    qw_buf_clear(message);
    for (int i = 0; more; i++) {
        qw_buf_clear(&line);
        result = qw_line_read(c->line, i == 0 ? "> " : ". ", &line, err);
        if (result != QW_LINE_TEXT) break;
        const char *text = qw_buf_str(&line);
        size_t n = line.n;
        if (i == 0 && strncmp(text, fence, 3) == 0) {
            fenced = true;
            text += 3;
            n -= 3;
        }
        bool closed = fenced && ends_with(text, n, fence);
        bool continued = !fenced && ends_with(text, n, "\\");
        if (closed) n -= 3;
        if (continued) n--;
        more = fenced ? !closed : continued;
        qw_status status = QW_OK;
        if (message->n > 0) status = qw_buf_add(message, "\n", 1, err);
        if (status == QW_OK) status = qw_buf_add(message, text, n, err);
        if (status != QW_OK) {
            result = QW_LINE_FAILED;
            break;
        }
    }
    qw_buf_free(&line);
    return result;
}

static void open_history(chat *c)
{
    char home[QW_CLI_PATH_MAX], path[QW_CLI_PATH_MAX + 16];
    qw_err err;
    qw_status status = qw_home_dir(home, sizeof(home), &err);
    if (status == QW_OK) {
        snprintf(path, sizeof(path), "%s/history", home);
        status = qw_line_history_load(c->line, path, &err);
    }
    if (status != QW_OK) qw_session_note(&c->session, "history is not kept: %s", err.text);
}

static void greet(chat *c)
{
    qw_session *s = &c->session;
    int n = qw_engine_threads(s->engine);
    qw_session_note(s, "%s, context %u tokens, %d thread%s. /help lists the commands.", s->model_name,
                    qw_engine_context(s->engine), n, n == 1 ? "" : "s");
}

static int chat_terminal(chat *c)
{
    qw_buf message;
    qw_err err;
    FILE *screen = isatty(STDOUT_FILENO) ? stdout : stderr;
    if (qw_line_create(screen, &c->line, &err) != QW_OK) return qw_cli_error(&err);
    qw_buf_init(&message, QW_PROMPT_BYTES_MAX, "message");
    greet(c);
    open_history(c);
    while (!c->ended && !qw_cli_output_failed()) {
        qw_line_result result = read_message(c, &message, &err);
        if (result == QW_LINE_END) {
            fputc('\n', screen);
            break;
        }
        if (result == QW_LINE_FAILED) qw_session_note(&c->session, "%s", err.text);
        if (result != QW_LINE_TEXT || is_blank(qw_buf_str(&message))) continue;
        if (qw_line_history_add(c->line, qw_buf_str(&message), &err) != QW_OK)
            qw_session_note(&c->session, "history is not kept: %s", err.text);
        take_message(c, &message);
    }
    qw_buf_free(&message);
    qw_line_destroy(c->line);
    return qw_cli_finish();
}

/* ---- pipe ------------------------------------------------------------------------------------- */

static int chat_pipe(chat *c)
{
    char *data = NULL;
    size_t cap = 0;
    ssize_t n = 0;
    qw_err err;
    qw_buf message;
    qw_buf_init(&message, QW_PROMPT_BYTES_MAX, "message");
    while (!c->ended && !qw_cli_output_failed() && (n = getline(&data, &cap, stdin)) >= 0) {
        qw_buf_clear(&message);
        if (qw_buf_add(&message, data, (size_t)n, &err) == QW_OK) {
            take_message(c, &message);
        } else {
            c->rc = qw_cli_error(&err);
        }
    }
    if (qw_cli_interrupted) c->rc = QW_EXIT_FAILURE;
    free(data);
    qw_buf_free(&message);
    int rc = qw_cli_finish();
    return c->rc != 0 ? c->rc : rc;
}

/* ---- the command ------------------------------------------------------------------------------ */

static void set_model_name(qw_session *s, const qw_model_info *info)
{
    const char *slash = strrchr(info->path, '/');
    bool named = info->name != NULL && info->name[0] != 0;
    snprintf(s->model_name, sizeof(s->model_name), "%s (%s)", named ? info->name : slash ? slash + 1 : info->path,
             info->quantization);
}

static int run_chat(const qw_cli_model *m, const qw_cli_sampling *sampling, const qw_chat_options *options,
                    int64_t thinking_tokens_max, const char *system)
{
    chat c = {.input_is_terminal = isatty(STDIN_FILENO)};
    qw_session *s = &c.session;
    qw_cli_loaded loaded;
    qw_model_info info;
    qw_err err;
    int rc = qw_cli_open(m, &loaded);
    if (rc != 0) return rc;
    qw_session_init(s);
    s->model = loaded.model;
    s->engine = loaded.engine;
    s->sampling = sampling;
    s->chat = *options;
    s->thinking_tokens_max = thinking_tokens_max;
    s->on_terminal = c.input_is_terminal;
    s->notes = c.input_is_terminal && isatty(STDOUT_FILENO) ? stdout : stderr;
    s->notes_dim = c.input_is_terminal && isatty(fileno(s->notes));
    qw_model_get_info(s->model, &info);
    set_model_name(s, &info);
    rc = qw_cli_check_chat_format(s->model);
    if (rc == 0 && qw_session_set_system(s, qw_text_of(system), &err) != QW_OK) rc = qw_cli_error(&err);
    if (rc == 0) {
        const char *fault = qw_cli_thinking_fault(s->model, s->chat.thinking);
        if (fault != NULL) qw_session_note(s, "%s", fault);
        qw_cli_catch_interrupt(!c.input_is_terminal);
        rc = c.input_is_terminal ? chat_terminal(&c) : chat_pipe(&c);
    }
    qw_session_free(s);
    qw_cli_close(&loaded);
    return rc;
}

int qw_cmd_chat(int argc, char **argv)
{
    qw_cli_model m = {.n_parallel = 1, .saves_state = true};
    qw_cli_sampling sampling = qw_cli_sampling_default();
    qw_cli_thinking thinking = {0};
    qw_chat_options options = {0};
    const char *system = NULL;
    const qw_cli_opt opts[] = {
        {0, "system", QW_CLI_STR, &system, "TEXT", "the system message", 0, 0},
        QW_CLI_THINKING_OPTS(&thinking),
        QW_CLI_SAMPLING_OPTS(&sampling),
        QW_CLI_MODEL_OPTS(&m),
        QW_CLI_DRAFT_OPT(&m),
        QW_CLI_STATE_OPTS(&m),
    };
    const qw_cli_spec spec = {
        .name = "chat",
        .usage = "[options]",
        .summary = "Talks with a model. /help in the chat lists its commands.",
        .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .details = "When standard input is a pipe each line is a message, and standard output carries the answers\n"
                   "alone, each followed by a newline. Thinking is shown on a terminal only.\n",
        .examples = "qw chat\n"
                    "qw chat -m qwen2.5-coder:1.5b -c 8192\n"
                    "qw chat --system 'Answer in one sentence.' --temp 0.3\n"
                    "printf 'What is a mutex?\\nAnd a semaphore?\\n' | qw chat\n",
        .exits = "0 ok, 1 failure (from a pipe: also when a message got no answer), 2 wrong usage.",
    };
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc == QW_CLI_GO) {
        rc = qw_cli_thinking_apply(&thinking, "chat", &options);
        if (rc == 0) rc = run_chat(&m, &sampling, &options, thinking.budget, system);
    }
    qw_cli_strs_free(&sampling.stop);
    return rc;
}
