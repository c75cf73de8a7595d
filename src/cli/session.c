/* session.c: the conversation of `qw chat` (contract in session.h). Main thread. */
#include "cli/session.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <wchar.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/utf8.h"
#include "cli/report.h"

enum {
    ANSWER_BYTES_MAX = 1 << 30,
    PROGRESS_AFTER_US = 1500000 /* a prompt that is read faster needs no progress line */
};

void qw_session_init(qw_session *s)
{
    *s = (qw_session){.notes = stderr};
}

void qw_session_free(qw_session *s)
{
    qw_session_clear(s);
    free(s->messages);
    free(s->system);
}

/* Columns a word takes on the terminal. */
static int word_width(const char *word, size_t n)
{
    int width = 0;
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        int len = qw_utf8_decode(word + i, n - i, &cp);
        int columns = len > 0 ? wcwidth((wchar_t)cp) : 1;
        width += columns > 0 ? columns : 0;
        i += len > 0 ? (size_t)len : 1;
    }
    return width;
}

/* Breaks a line between words where the terminal would cut through one. Runs of spaces are kept within a line. */
static void put_wrapped(FILE *to, const char *text)
{
    struct winsize window;
    int width = ioctl(fileno(to), TIOCGWINSZ, &window) == 0 && window.ws_col > 0 ? window.ws_col : 80;
    int column = 0;
    while (*text != 0) {
        size_t n_spaces = strspn(text, " "), n = strcspn(text + n_spaces, " ");
        int columns = word_width(text + n_spaces, n);
        if (column > 0 && column + (int)n_spaces + columns > width) {
            fputc('\n', to);
            column = 0;
        } else {
            fprintf(to, "%*s", (int)n_spaces, "");
            column += (int)n_spaces;
        }
        fwrite(text + n_spaces, 1, n, to);
        column += columns;
        text += n_spaces + n;
    }
}

void qw_session_note(qw_session *s, const char *fmt, ...)
{
    qw_err line; /* through qw_fail: control characters in foreign text are replaced */
    char text[QW_ERR_TEXT_MAX];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    qw_fail(&line, QW_E_ARG, "%s", text);
    if (s->notes_dim) {
        fputs("\033[2m", s->notes);
        put_wrapped(s->notes, line.text);
        fputs("\033[0m\n", s->notes);
    } else {
        fprintf(s->notes, "%s\n", line.text);
    }
    fflush(s->notes);
}

/* ---- messages --------------------------------------------------------------------------------- */

static qw_status push(qw_session *s, bool from_user, qw_text text, qw_text reasoning, qw_err *err)
{
    qw_session_message m = {.from_user = from_user, .n = text.n, .n_reasoning = reasoning.n};
    if (s->n == s->cap) {
        size_t cap = s->cap == 0 ? 16 : 2 * s->cap;
        QW_TRY(qw_grow(&s->messages, s->cap, cap, sizeof(*s->messages), "conversation", err));
        s->cap = cap;
    }
    QW_TRY(qw_strndup(&m.text, text.n > 0 ? text.s : "", text.n, err));
    if (reasoning.n > 0 && qw_strndup(&m.reasoning, reasoning.s, reasoning.n, err) != QW_OK) {
        free(m.text);
        return QW_E_MEMORY;
    }
    s->messages[s->n++] = m;
    return QW_OK;
}

/* The last message leaves the conversation; its text stays for /retry when the user wrote it. */
static void pop(qw_session *s)
{
    qw_session_message *m = &s->messages[--s->n];
    free(m->reasoning);
    if (m->from_user) {
        free(s->unsent);
        s->unsent = m->text;
    } else {
        free(m->text);
    }
}

void qw_session_clear(qw_session *s)
{
    while (s->n > 0) pop(s);
    free(s->unsent);
    s->unsent = NULL;
    s->n_retries = 0;
}

qw_status qw_session_set_system(qw_session *s, qw_text text, qw_err *err)
{
    char *copy = NULL;
    if (text.n > 0) QW_TRY(qw_strndup(&copy, text.s, text.n, err));
    free(s->system);
    s->system = copy;
    return QW_OK;
}

/* ---- asking ----------------------------------------------------------------------------------- */

static qw_status submit(qw_session *s, uint64_t *id, qw_err *err)
{
    qw_message *messages = NULL;
    size_t n = 0;
    QW_TRY(qw_alloc(&messages, s->n + 1, sizeof(*messages), "conversation", err));
    if (s->system != NULL)
        messages[n++] = (qw_message){.role = "system", .content = qw_text_of(s->system)};
    for (size_t i = 0; i < s->n; i++) {
        const qw_session_message *m = &s->messages[i];
        messages[n++] = (qw_message){.role = m->from_user ? "user" : "assistant", .content = {m->text, m->n},
                                     .reasoning = {m->reasoning, m->n_reasoning}};
    }
    qw_request request = qw_request_default(s->model);
    request.chat = s->chat;
    request.thinking_tokens_max = s->thinking_tokens_max;
    request.messages = messages;
    request.n_messages = n;
    qw_cli_sampling_apply(s->sampling, &request);
    request.sampling.seed += s->n_retries; /* with a fixed --seed a retry would only repeat itself */
    qw_status status = qw_submit(s->engine, &request, id, err);
    free(messages);
    return status;
}

typedef struct answer_state {
    qw_buf text, reasoning;
    int64_t begin_us;
    bool progress_shown;
    bool thinking_shown;
} answer_state;

static void show_progress(qw_session *s, answer_state *a, const qw_usage *usage)
{
    if (!s->on_terminal || !s->notes_dim || usage->prompt_tokens == 0) return;
    if (qw_clock_us() - a->begin_us < PROGRESS_AFTER_US) return;
    fprintf(s->notes, "\r\033[2mreading the conversation: %u of %u tokens\033[0m\033[K", usage->prefilled,
            usage->prompt_tokens);
    fflush(s->notes);
    a->progress_shown = true;
}

static void hide_progress(qw_session *s, answer_state *a)
{
    if (!a->progress_shown) return;
    fputs("\r\033[K", s->notes);
    fflush(s->notes);
    a->progress_shown = false;
}

/* Thinking is shown to a person; it is kept beside the answer and is no part of it. */
static qw_status take_thinking(qw_session *s, answer_state *a, qw_text text, qw_err *err)
{
    if (s->on_terminal && text.n > 0) {
        qw_cli_put_dim(s->notes, s->notes_dim, text);
        a->thinking_shown = true;
    }
    return qw_buf_add(&a->reasoning, text.s, text.n, err);
}

static void end_thinking(qw_session *s, answer_state *a)
{
    if (a->thinking_shown) fputs("\n\n", s->notes);
    a->thinking_shown = false;
}

static qw_status take_event(qw_session *s, answer_state *a, const qw_event *ev, qw_err *err)
{
    if (ev->type == QW_EVENT_PROGRESS) {
        show_progress(s, a, &ev->usage);
        return QW_OK;
    }
    hide_progress(s, a);
    if (ev->type == QW_EVENT_REASONING) return take_thinking(s, a, ev->text, err);
    if (ev->type == QW_EVENT_WARNING) {
        end_thinking(s, a);
        qw_session_note(s, "(%.*s)", (int)ev->text.n, ev->text.s);
    }
    if (ev->type != QW_EVENT_TEXT || ev->text.n == 0) return QW_OK;
    end_thinking(s, a);
    qw_cli_put_text(ev->text);
    return qw_buf_add(&a->text, ev->text.s, ev->text.n, err);
}

static void count(qw_session *s, const qw_event *ev)
{
    s->usage = ev->usage;
    s->timings = ev->timings;
    s->totals.n_answers++;
    s->totals.prompt_tokens += ev->usage.prompt_tokens;
    s->totals.cached_tokens += ev->usage.cached_tokens;
    s->totals.completion_tokens += ev->usage.completion_tokens;
    s->totals.prefill_us += ev->timings.prefill_us;
    s->totals.decode_us += ev->timings.decode_us;
}

static void note_full(qw_session *s, const char *what)
{
    qw_session_note(s, "(%s; the conversation is kept: /save FILE writes it, /clear starts a new one, qw chat -c N "
                    "holds more than %u tokens)", what, qw_engine_context(s->engine));
}

/* Once: the next start will compute the conversation again. */
static void note_unsaved(qw_session *s)
{
    qw_engine_stats stats;
    if (s->told_unsaved) return;
    qw_engine_get_stats(s->engine, &stats);
    if (stats.save_fault[0] == 0) return;
    qw_session_note(s, "(conversations are not saved: %s)", stats.save_fault);
    s->told_unsaved = true;
}

static qw_session_result finish(qw_session *s, answer_state *a, const qw_event *ev)
{
    qw_err err;
    end_thinking(s, a);
    bool ends_line = a->text.n == 0 || a->text.data[a->text.n - 1] == '\n';
    /* In a pipe each answer is followed by one newline, whatever it ends in. */
    if (!s->on_terminal || !ends_line) putchar('\n');
    if (s->on_terminal && s->notes_dim && ev->finish == QW_FINISH_STOP) putchar('\n');
    fflush(stdout);
    count(s, ev);
    if (a->text.n > 0 || ev->finish == QW_FINISH_STOP || ev->finish == QW_FINISH_LENGTH) {
        qw_text reasoning = {a->reasoning.data, a->reasoning.n};
        if (push(s, false, (qw_text){a->text.data, a->text.n}, reasoning, &err) != QW_OK) {
            qw_cli_error(&err);
            return QW_SESSION_FAILED;
        }
    } else {
        pop(s);
    }
    if (ev->type == QW_EVENT_ERROR) {
        qw_cli_error(&ev->error);
        return QW_SESSION_FAILED;
    }
    note_unsaved(s);
    if (ev->finish == QW_FINISH_CONTEXT)
        note_full(s, "the context is full and the answer is cut");
    if (ev->finish == QW_FINISH_STOP && a->text.n == 0) qw_session_note(s, "(an empty answer)");
    if (ev->finish == QW_FINISH_REPETITION) qw_session_note(s, "(stopped: it went on saying the same)");
    if (ev->finish == QW_FINISH_LENGTH) qw_session_note(s, "(cut at --max-tokens)");
    if (ev->finish == QW_FINISH_CANCELLED) qw_session_note(s, "(stopped)");
    return ev->finish == QW_FINISH_CANCELLED ? QW_SESSION_STOPPED : QW_SESSION_ANSWERED;
}

/* The conversation ends with the user's message. */
static qw_session_result ask(qw_session *s)
{
    answer_state a = {.begin_us = qw_clock_us()};
    uint64_t id = 0;
    qw_event ev;
    qw_err err;
    if (submit(s, &id, &err) != QW_OK) {
        pop(s);
        qw_cli_error(&err);
        if (err.status == QW_E_LIMIT)
            note_full(s, "not sent");
        return QW_SESSION_FAILED;
    }
    qw_buf_init(&a.text, ANSWER_BYTES_MAX, "answer");
    qw_buf_init(&a.reasoning, ANSWER_BYTES_MAX, "thinking");
    qw_status status = QW_OK;
    do {
        qw_cli_next_event(s->engine, id, &ev);
        if (status == QW_OK) {
            status = take_event(s, &a, &ev, &err);
            if (status != QW_OK) qw_cancel(s->engine, id);
        }
    } while (!qw_event_is_terminal(&ev));
    hide_progress(s, &a);
    qw_cli_interrupted = 0;
    qw_session_result result = finish(s, &a, &ev);
    qw_buf_free(&a.text);
    qw_buf_free(&a.reasoning);
    if (status == QW_OK) return result;
    qw_cli_error(&err);
    return QW_SESSION_FAILED;
}

qw_session_result qw_session_say(qw_session *s, qw_text text)
{
    qw_err err;
    s->n_retries = 0;
    free(s->unsent);
    s->unsent = NULL;
    if (push(s, true, text, (qw_text){0}, &err) != QW_OK) {
        qw_cli_error(&err);
        return QW_SESSION_FAILED;
    }
    return ask(s);
}

qw_session_result qw_session_retry(qw_session *s)
{
    qw_err err;
    char *unsent = s->unsent;
    if (unsent != NULL) { /* newer than the last answer */
        s->unsent = NULL;
        qw_status status = push(s, true, qw_text_of(unsent), (qw_text){0}, &err);
        free(unsent);
        if (status != QW_OK) {
            qw_cli_error(&err);
            return QW_SESSION_FAILED;
        }
        return ask(s);
    }
    if (s->n == 0) {
        qw_session_note(s, "nothing to retry yet");
        return QW_SESSION_ANSWERED;
    }
    pop(s); /* the answer */
    s->n_retries++;
    return ask(s);
}

/* ---- stats and saving ------------------------------------------------------------------------- */

void qw_session_stats(qw_session *s)
{
    const qw_session_totals *t = &s->totals;
    if (t->n_answers == 0) {
        qw_session_note(s, "no answer yet");
        return;
    }
    qw_session_note(s, "last answer: %u prompt tokens (%u reused), %u answer tokens (%u of them thinking)",
                    s->usage.prompt_tokens, s->usage.cached_tokens, s->usage.completion_tokens,
                    s->usage.reasoning_tokens);
    qw_session_note(s, "speed: prefill %.1f tokens/s, decode %.1f tokens/s",
                    qw_report_prefill_rate(&s->usage, &s->timings), qw_report_decode_rate(&s->usage, &s->timings));
    qw_session_note(s, "in all: %llu answer%s, %llu prompt tokens (%llu reused), %llu answer tokens",
                    (unsigned long long)t->n_answers, t->n_answers == 1 ? "" : "s",
                    (unsigned long long)t->prompt_tokens, (unsigned long long)t->cached_tokens,
                    (unsigned long long)t->completion_tokens);
    qw_session_note(s, "time: prefill %.1f s, decode %.1f s", (double)t->prefill_us / 1e6,
                    (double)t->decode_us / 1e6);
    qw_session_note(s, "context: %u of %u tokens used", s->usage.prompt_tokens + s->usage.completion_tokens,
                    qw_engine_context(s->engine));
}
