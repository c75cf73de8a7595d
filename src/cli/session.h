/* session.h: one conversation of `qw chat`: its messages, and asking the model for the next one.
 *
 * The whole conversation is sent with every message; the engine finds what it still holds of it. Main thread.
 */
#ifndef QW_CLI_SESSION_H
#define QW_CLI_SESSION_H

#include <stdio.h>

#include "cli/cli.h"

typedef struct qw_session_message {
    bool from_user;    /* else the model's answer */
    char *text;        /* owns; [n] */
    size_t n;
    char *reasoning;   /* owns; [n_reasoning]: the thinking before an answer, or NULL */
    size_t n_reasoning;
} qw_session_message;

typedef struct qw_session_totals {
    uint64_t n_answers, prompt_tokens, cached_tokens, completion_tokens;
    int64_t prefill_us, decode_us;
} qw_session_totals;

typedef struct qw_session {
    qw_model *model;                 /* borrows */
    qw_engine *engine;               /* borrows */
    const qw_cli_sampling *sampling; /* borrows */
    qw_chat_options chat;            /* thinking; /think changes it */
    int64_t thinking_tokens_max;     /* 0: no limit */
    char model_name[256];
    FILE *notes;                     /* borrows: where remarks to the user go */
    bool notes_dim;                  /* it is a terminal */
    bool on_terminal;                /* a person reads the answers as they come */
    char *system;                    /* owns; NULL: the model's own */
    qw_session_message *messages;    /* owns; alternating, from the user first */
    size_t n, cap;
    bool told_unsaved;               /* that what was computed cannot be saved */
    char *unsent;                    /* owns; the last message that got no answer, for /retry; or NULL */
    uint64_t n_retries;
    qw_usage usage;                  /* of the last answer */
    qw_timings timings;
    qw_session_totals totals;
} qw_session;

void qw_session_init(qw_session *s);
void qw_session_free(qw_session *s);

typedef enum qw_session_result {
    QW_SESSION_ANSWERED = 0,
    QW_SESSION_STOPPED, /* by Ctrl-C */
    QW_SESSION_FAILED   /* said on standard error */
} qw_session_result;

/* Adds the user's message and prints the answer as it comes. A message that gets no answer at all (refused, failed,
 * stopped before its first word) leaves the conversation as it was. */
qw_session_result qw_session_say(qw_session *s, qw_text text);
/* Asks again for the last answer, or sends the last unanswered message. */
qw_session_result qw_session_retry(qw_session *s);
void qw_session_clear(qw_session *s);
qw_status qw_session_set_system(qw_session *s, qw_text text, qw_err *err) QW_MUST_CHECK; /* empty: the model's own */

/* A remark for the user, one line, dim on a terminal. */
void qw_session_note(qw_session *s, const char *fmt, ...) QW_PRINTF(2, 3);
void qw_session_stats(qw_session *s);
/* Markdown, or JSON when the path ends in .json. Replaces a file that is there. */
qw_status qw_session_save(const qw_session *s, const char *path, qw_err *err) QW_MUST_CHECK;

#endif
