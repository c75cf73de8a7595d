/* line.h: reading a message on a terminal: line editing, history, pasted text.
 *
 * libedit does the editing; this adds what it lacks: bracketed paste (newlines stay in the message), Ctrl-C
 * that clears the line, window resizing, suspending. Main thread; one at a time.
 */
#ifndef QW_CLI_LINE_H
#define QW_CLI_LINE_H

#include <stdbool.h>
#include <stdio.h>

#include "base/buf.h"

typedef struct qw_line qw_line;

typedef enum qw_line_result {
    QW_LINE_TEXT = 0,    /* a line is in `out`, without its final newline */
    QW_LINE_INTERRUPTED, /* Ctrl-C */
    QW_LINE_END,         /* Ctrl-D on an empty line, or the terminal went away */
    QW_LINE_FAILED       /* err says why */
} qw_line_result;

/* Reads from standard input, draws on `screen`. */
qw_status qw_line_create(FILE *screen, qw_line **out, qw_err *err) QW_MUST_CHECK;
void qw_line_destroy(qw_line *line);

/* Appends what was typed to `out` as UTF-8. prompt: ASCII, borrowed until the call returns. */
qw_line_result qw_line_read(qw_line *line, const char *prompt, qw_buf *out, qw_err *err);

/* Whether the terminal shows what is typed while nobody reads it. Off during an answer: the keys wait for the
 * next prompt instead of standing in the text. */
void qw_line_echo(bool on);

/* History, for the up key. Loading a file that does not exist yet is no error. */
qw_status qw_line_history_load(qw_line *line, const char *path, qw_err *err) QW_MUST_CHECK;
/* Adds an entry (may hold newlines) and appends it to the file loaded from. */
qw_status qw_line_history_add(qw_line *line, const char *text, qw_err *err) QW_MUST_CHECK;

#endif
