/* line.c: the line editor of the chat (contract in line.h).
 *
 * libedit reads its characters through get_char() below, which decodes UTF-8, takes pasted text out of the stream,
 * and waits with the signals of the terminal blocked except inside ppoll(): so Ctrl-C, a resized window and a
 * return from suspension are seen at once and never lost. Keys of our own are handled there too and not with
 * EL_ADDFN, whose names libedit never frees. Main thread.
 */
#include "cli/line.h"

#include <errno.h>
#include <histedit.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#include "base/mem.h"
#include "base/utf8.h"
#include "cli/cli.h"
#include "cli/history.h"

enum {
    PASTE_CHARS_MAX = 4 << 20, /* characters of one paste */
    ESCAPE_WAIT_MS = 50,       /* the bytes of a key follow its ESC within this time */
    KEY_REDISPLAY = 034,       /* bound to ed-redisplay; the terminal keeps this key (quit) to itself */
    READ_INTERRUPTED = 2       /* of the readers below: 1 read, 0 end or time out, -1 error */
};

struct qw_line {
    EditLine *el;        /* owns */
    HistoryW *history;   /* owns */
    qw_history *file;    /* owns; NULL: history is not kept */
    FILE *screen;        /* borrows */
    const char *prompt;  /* borrows during qw_line_read */
    bool paste_mode;     /* the terminal understands bracketed paste */
    bool interrupted;    /* Ctrl-C ended the line */
    bool paste_too_long; /* a paste did not fit: nothing of it was taken */
    sigset_t unblocked;  /* the mask outside get_char */
    unsigned char unread[8]; /* bytes read ahead after an ESC */
    size_t n_unread;
};

/* ---- signals ---------------------------------------------------------------------------------- */

static volatile sig_atomic_t window_changed, suspended;

static void on_window_change(int signo)
{
    (void)signo;
    window_changed = 1;
}

static void on_suspend(int signo)
{
    (void)signo;
    suspended = 1;
}

static void paste_mode_set(qw_line *line, bool on)
{
    if (!line->paste_mode) return;
    fputs(on ? "\033[?2004h" : "\033[?2004l", line->screen);
    fflush(line->screen);
}

/* Gives the terminal back in its usual mode, stops, and takes it again when the program goes on. */
static void suspend(qw_line *line)
{
    suspended = 0;
    paste_mode_set(line, false);
    el_set(line->el, EL_PREP_TERM, 0);
    raise(SIGSTOP);
    el_set(line->el, EL_PREP_TERM, 1);
    paste_mode_set(line, true);
    el_set(line->el, EL_REFRESH);
}

/* ---- characters ------------------------------------------------------------------------------- */

/* Ctrl-C that ppoll() left waiting because there was something to read. It goes first: the terminal dropped what was
 * typed before it. */
static bool take_waiting_interrupt(void)
{
    const struct timespec at_once = {0};
    sigset_t interrupt;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    return sigtimedwait(&interrupt, NULL, &at_once) == SIGINT;
}

static int wait_readable(qw_line *line, int timeout_ms)
{
    struct pollfd fd = {.fd = STDIN_FILENO, .events = POLLIN};
    struct timespec limit = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000L};
    for (;;) {
        if (qw_cli_interrupted) return READ_INTERRUPTED;
        if (suspended) suspend(line);
        if (window_changed) {
            window_changed = 0;
            el_resize(line->el);
            el_set(line->el, EL_REFRESH);
        }
        int n = ppoll(&fd, 1, timeout_ms < 0 ? NULL : &limit, &line->unblocked);
        if (n > 0 && take_waiting_interrupt())
            qw_cli_interrupted = 1;
        else if (n >= 0)
            return n;
        else if (errno != EINTR)
            return -1;
    }
}

static int get_byte(qw_line *line, int timeout_ms, unsigned char *byte)
{
    if (line->n_unread > 0) {
        *byte = line->unread[0];
        memmove(line->unread, line->unread + 1, --line->n_unread);
        return 1;
    }
    for (;;) {
        int ready = wait_readable(line, timeout_ms);
        if (ready != 1) return ready;
        ssize_t n = read(STDIN_FILENO, byte, 1);
        if (n >= 0) return (int)n;
        if (errno != EINTR && errno != EAGAIN) return -1;
    }
}

static int decode_char(qw_line *line, wchar_t *out)
{
    char bytes[4];
    size_t n = 0;
    for (;;) {
        unsigned char byte = 0;
        int got = get_byte(line, -1, &byte);
        if (got != 1) return got;
        if (n > 0 && (byte & 0xC0) != 0x80) n = 0; /* a cut character: what follows counts */
        bytes[n++] = (char)byte;
        uint32_t cp = 0;
        if (qw_utf8_decode(bytes, n, &cp) > 0) {
            *out = (wchar_t)cp;
            return 1;
        }
        if (qw_utf8_incomplete_tail(bytes, n) == n) continue;
        *out = 0xFFFD;
        return 1;
    }
}

/* ---- pasted text ------------------------------------------------------------------------------ */

/* Reads up to the end mark of a paste. False at its limit, or when the input ended or Ctrl-C came. */
static bool read_paste(qw_line *line, wchar_t **text, size_t *n)
{
    static const wchar_t end_mark[] = L"\033[201~";
    const size_t n_mark = QW_CLI_COUNT(end_mark) - 1;
    size_t cap = 0;
    *n = 0;
    for (;;) {
        wchar_t c = 0;
        if (decode_char(line, &c) != 1) return false;
        if (*n + 1 >= cap) {
            size_t want = cap == 0 ? 4096 : 2 * cap;
            if (qw_grow(text, cap, want, sizeof(**text), "pasted text", NULL) != QW_OK) return false;
            cap = want;
        }
        (*text)[(*n)++] = c;
        if (*n >= n_mark && wmemcmp(*text + *n - n_mark, end_mark, n_mark) == 0) {
            *n -= n_mark;
            return !line->paste_too_long;
        }
        if (*n > PASTE_CHARS_MAX) { /* read on to the mark, so that the rest is not taken for keys */
            line->paste_too_long = true;
            wmemmove(*text, *text + *n - n_mark, n_mark);
            *n = n_mark;
        }
    }
}

/* Terminals send CR for a newline; other control characters are not text. Ends the text with NUL. */
static void clean_paste(wchar_t *text, size_t n)
{
    size_t n_kept = 0;
    for (size_t i = 0; i < n; i++) {
        wchar_t c = text[i];
        if (c == L'\n' && i > 0 && text[i - 1] == L'\r') continue;
        if (c == L'\r') c = L'\n';
        if (c == L'\n' || c == L'\t' || (c >= 0x20 && c != 0x7f && (c < 0x80 || c >= 0xa0))) text[n_kept++] = c;
    }
    text[n_kept] = 0;
}

static void take_paste(EditLine *el, qw_line *line)
{
    wchar_t *text = NULL;
    size_t n = 0;
    if (read_paste(line, &text, &n)) {
        clean_paste(text, n);
        if (text[0] != 0) el_winsertstr(el, text);
    }
    free(text);
}

/* ---- keys of our own -------------------------------------------------------------------------- */

/* After an ESC: takes a paste or Alt-Enter and returns true, or leaves the bytes for libedit. */
static bool take_escape(EditLine *el, qw_line *line)
{
    static const char paste_mark[] = "[200~";
    unsigned char seen[sizeof(paste_mark) - 1];
    size_t n = 0;
    bool same = true;
    while (same && n < sizeof(seen) && get_byte(line, ESCAPE_WAIT_MS, &seen[n]) == 1) {
        same = seen[n] == (unsigned char)paste_mark[n];
        n++;
    }
    if (same && n == sizeof(seen)) {
        take_paste(el, line);
        return true;
    }
    if (n == 1 && (seen[0] == '\r' || seen[0] == '\n')) {
        el_winsertstr(el, L"\n");
        return true;
    }
    memmove(line->unread + n, line->unread, line->n_unread);
    memcpy(line->unread, seen, n);
    line->n_unread += n;
    return false;
}

static bool line_is_empty(EditLine *el)
{
    const LineInfoW *info = el_wline(el);
    return info->lastchar == info->buffer;
}

/* libedit's source of characters. */
static int get_char(EditLine *el, wchar_t *out)
{
    qw_line *line = NULL;
    el_get(el, EL_CLIENTDATA, &line);
    /* In the middle of a key libedit takes the newline for a part of it, and asks again. */
    int got = line->interrupted ? READ_INTERRUPTED : decode_char(line, out);
    if (got == READ_INTERRUPTED || (got == 1 && *out == 3)) {
        qw_cli_interrupted = 0;
        line->interrupted = true;
        *out = L'\n'; /* ends the line, and moves the cursor below it */
        return 1;
    }
    if (got != 1) return got;
    if (*out == 4 && line_is_empty(el)) return 0; /* here, because libedit would write "^D" */
    if (*out == 033 && take_escape(el, line)) *out = KEY_REDISPLAY;
    return 1;
}

static char *get_prompt(EditLine *el)
{
    qw_line *line = NULL;
    static char text[16];
    el_get(el, EL_CLIENTDATA, &line);
    snprintf(text, sizeof(text), "%s", line->prompt != NULL ? line->prompt : "");
    return text;
}

static void bind_keys(EditLine *el)
{
    static const char *const keys[][2] = {
        {"\034", "ed-redisplay"},
        {"^R", "em-inc-search-prev"},
        {"^W", "ed-delete-prev-word"},
        {"\033[3~", "ed-delete-next-char"},
        {"\033[1~", "ed-move-to-beg"},
        {"\033[4~", "ed-move-to-end"},
        {"\033[H", "ed-move-to-beg"},
        {"\033[F", "ed-move-to-end"},
        {"\033OH", "ed-move-to-beg"},
        {"\033OF", "ed-move-to-end"},
        {"\033[1;5C", "em-next-word"},
        {"\033[1;5D", "ed-prev-word"},
        {"\033[A", "ed-prev-history"},
        {"\033[B", "ed-next-history"},
        {"\033OA", "ed-prev-history"},
        {"\033OB", "ed-next-history"},
    };
    for (size_t i = 0; i < QW_CLI_COUNT(keys); i++) el_set(el, EL_BIND, keys[i][0], keys[i][1], NULL);
}

/* ---- life ------------------------------------------------------------------------------------- */

qw_status qw_line_create(FILE *screen, qw_line **out, qw_err *err)
{
    qw_line *line = NULL;
    HistEventW event;
    const char *term = getenv("TERM"); /* of the terminal, not a setting of ours */
    QW_TRY(qw_alloc(&line, 1, sizeof(*line), "line editor", err));
    line->screen = screen;
    line->paste_mode = term != NULL && term[0] != 0 && strcmp(term, "dumb") != 0;
    line->el = el_init("qw", stdin, screen, stderr);
    line->history = history_winit();
    if (line->el == NULL || line->history == NULL) {
        qw_line_destroy(line);
        return qw_fail(err, QW_E_MEMORY, "the line editor cannot start on this terminal (TERM=%s)",
                       term != NULL ? term : "");
    }
    history_w(line->history, &event, H_SETSIZE, (int)QW_HISTORY_ENTRIES_MAX);
    history_w(line->history, &event, H_SETUNIQUE, 1);
    el_set(line->el, EL_CLIENTDATA, line);
    el_set(line->el, EL_PROMPT, get_prompt);
    el_set(line->el, EL_EDITOR, "emacs");
    el_set(line->el, EL_SIGNAL, 0);
    el_wset(line->el, EL_HIST, history_w, line->history);
    el_wset(line->el, EL_GETCFN, get_char);
    bind_keys(line->el);
    *out = line;
    return QW_OK;
}

void qw_line_destroy(qw_line *line)
{
    if (line == NULL) return;
    if (line->el != NULL) el_end(line->el);
    if (line->history != NULL) history_wend(line->history);
    qw_history_close(line->file);
    free(line);
}

/* ---- reading ---------------------------------------------------------------------------------- */

static qw_status append_wide(qw_buf *out, const wchar_t *text, size_t n, qw_err *err)
{
    for (size_t i = 0; i < n; i++) {
        char bytes[4];
        int len = qw_utf8_encode((uint32_t)text[i], bytes);
        QW_TRY(qw_buf_add(out, bytes, (size_t)len, err));
    }
    return QW_OK;
}

qw_line_result qw_line_read(qw_line *line, const char *prompt, qw_buf *out, qw_err *err)
{
    struct sigaction old_window, old_suspend, window = {.sa_handler = on_window_change},
                                              stop = {.sa_handler = on_suspend};
    sigset_t blocked;
    int n = 0;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGINT);
    sigaddset(&blocked, SIGWINCH);
    sigaddset(&blocked, SIGTSTP);
    sigaction(SIGWINCH, &window, &old_window);
    sigaction(SIGTSTP, &stop, &old_suspend);
    sigprocmask(SIG_BLOCK, &blocked, &line->unblocked);
    line->prompt = prompt;
    line->interrupted = line->paste_too_long = false;
    el_resize(line->el); /* the window may have changed while an answer was printed */
    paste_mode_set(line, true);
    const wchar_t *text = el_wgets(line->el, &n);
    paste_mode_set(line, false);
    line->prompt = NULL;
    sigprocmask(SIG_SETMASK, &line->unblocked, NULL);
    sigaction(SIGTSTP, &old_suspend, NULL);
    sigaction(SIGWINCH, &old_window, NULL);

    if (line->interrupted) return QW_LINE_INTERRUPTED;
    if (text == NULL || n <= 0) return QW_LINE_END;
    size_t n_chars = (size_t)n;
    if (text[n_chars - 1] == L'\n') n_chars--;
    if (line->paste_too_long) {
        qw_fail(err, QW_E_LIMIT, "the pasted text is longer than %d characters; save it to a file and use "
                "`qw run -f FILE`", (int)PASTE_CHARS_MAX);
        return QW_LINE_FAILED;
    }
    return append_wide(out, text, n_chars, err) == QW_OK ? QW_LINE_TEXT : QW_LINE_FAILED;
}

void qw_line_echo(bool on)
{
    struct termios mode;
    if (tcgetattr(STDIN_FILENO, &mode) != 0) return;
    if (on)
        mode.c_lflag |= (tcflag_t)ECHO;
    else
        mode.c_lflag &= ~(tcflag_t)ECHO;
    tcsetattr(STDIN_FILENO, TCSADRAIN, &mode);
}

/* ---- history ---------------------------------------------------------------------------------- */

/* An entry of the file, or a new one, into libedit's list. */
static qw_status remember(void *user, const char *text, size_t n, qw_err *err)
{
    qw_line *line = user;
    wchar_t *wide = NULL;
    HistEventW event;
    size_t n_wide = 0;
    QW_TRY(qw_alloc(&wide, n + 1, sizeof(*wide), "history", err));
    for (size_t i = 0; i < n;) {
        uint32_t cp = 0;
        int len = qw_utf8_decode(text + i, n - i, &cp);
        wide[n_wide++] = len > 0 ? (wchar_t)cp : 0xFFFD;
        i += len > 0 ? (size_t)len : 1;
    }
    history_w(line->history, &event, H_ENTER, wide);
    free(wide);
    return QW_OK;
}

qw_status qw_line_history_load(qw_line *line, const char *path, qw_err *err)
{
    return qw_history_open(path, remember, line, &line->file, err);
}

qw_status qw_line_history_add(qw_line *line, const char *text, qw_err *err)
{
    QW_TRY(remember(line, text, strlen(text), err));
    return line->file != NULL ? qw_history_append(line->file, text, err) : QW_OK;
}
