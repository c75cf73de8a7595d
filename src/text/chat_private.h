/* chat_private.h: what the files of the chat renderer share.
 *
 * chat.c has the table of formats and walks the messages; chat_tools.c writes tool definitions and calls, chat_xml.c
 * those of Qwen3-Coder; chat_history.c decides what of an earlier answer is shown; chat_segments.c keeps the segments,
 * chat_recall.c knows when sampled tokens stand for a turn.
 */
#ifndef QW_TEXT_CHAT_PRIVATE_H
#define QW_TEXT_CHAT_PRIVATE_H

#include "text/chat.h"
#include "text/chat_recall.h"

/* How tools are described. */
typedef enum chat_tools { CHAT_TOOLS_NONE = 0, CHAT_TOOLS_JSON, CHAT_TOOLS_XML } chat_tools;

/* How calls and their values are written. */
typedef enum chat_calls {
    CHAT_CALLS_JSON = 0,     /* {"name": ..., "arguments": ...}; arguments that are a string in quotes */
    CHAT_CALLS_JSON_RAW,     /* the same, a string as it is */
    CHAT_CALLS_XML_LISTS,    /* <parameter=KEY>: objects in JSON, the rest as Python's str() has it */
    CHAT_CALLS_XML_STR,      /* the same, but arrays in JSON too */
    CHAT_CALLS_XML_JSON      /* the same, but strings raw and everything else in JSON */
} chat_calls;

/* What is shown of earlier answers. "After the query": after the last message of the user that is no tool result. */
typedef enum chat_history {
    CHAT_HISTORY_WHOLE = 0,  /* the content */
    CHAT_HISTORY_CUT,        /* the content after its last </think> */
    CHAT_HISTORY_CUT_OLD,    /* the same, the last message whole */
    CHAT_HISTORY_QUERY,      /* thinking after the query, where there is some or the message is the last */
    CHAT_HISTORY_BLOCK,      /* thinking after the query, an empty block where there is none */
    CHAT_HISTORY_FIELD       /* the same; thinking is never looked for in the content */
} chat_history;

/* Who decides whether an answer begins with thinking. */
typedef enum chat_thinking { CHAT_THINKING_NEVER = 0, CHAT_THINKING_ALWAYS, CHAT_THINKING_SWITCH } chat_thinking;
/* Can the thinking of earlier answers be kept? */
typedef enum chat_keeps { CHAT_KEEPS_NEVER = 0, CHAT_KEEPS_ASKED, CHAT_KEEPS_DEFAULT } chat_keeps;

/* A format; what two templates differ in is a column here. */
typedef struct chat_row {
    const char *name;
    const char *system;       /* text of the system turn when no message is one; NULL: no such turn */
    const char *system_tools; /* the same with tools; NULL: they begin the turn */
    const char *tools_begin, *tools_end;
    const char *think, *no_think; /* end of the prompt */
    chat_tools tools;
    chat_calls calls;
    chat_history history;
    chat_thinking thinking;
    chat_keeps keeps;
    bool strips;              /* every content loses white space at its ends */
    bool tools_first;         /* the system text comes after the tools */
    bool wide_results;        /* each tool result ends its line */
    bool efforts;             /* the system turn says how much to think */
} chat_row;

/* One rendering. */
typedef struct chat_renderer {
    const chat_row *row;
    const qw_message *messages;
    size_t n;
    bool thinks, keeps;
    const char *effort; /* text, or NULL */
    const qw_chat_memory *memory; /* or NULL */
    size_t n_done;      /* messages rendered so far */
    qw_rendered *out;
    qw_err *err;
} chat_renderer;

typedef enum chat_role { CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT, CHAT_TOOL, CHAT_ROLES } chat_role;

/* ---- chat_segments.c: the text from the end of the last segment on is of this kind */
qw_status qw_chat_mark(const chat_renderer *w, qw_segment_kind kind) QW_MUST_CHECK;
qw_status qw_chat_markup(const chat_renderer *w, const char *s) QW_MUST_CHECK;
qw_status qw_chat_plain(const chat_renderer *w, qw_text s) QW_MUST_CHECK;
/* Puts these tokens in the place of the first n_replaced bytes after byte `at`. */
qw_status qw_chat_put_recalled(const chat_renderer *w, size_t at, const qw_recalled *r) QW_MUST_CHECK;

/* ---- chat.c */
bool qw_chat_xml_calls(const chat_row *row);
/* Role of message i; QW_E_ARG when there is no such role. */
qw_status qw_chat_role_of(const chat_renderer *w, size_t i, chat_role *out) QW_MUST_CHECK;
/* Puts "where" before the message; what is wrong with somebody's JSON is wrong with the argument. */
qw_status qw_chat_blame(qw_err *err, qw_status status, const char *where) QW_MUST_CHECK;

/* ---- chat_history.c */
typedef struct chat_turn {
    qw_text reasoning, content; /* borrow from the message */
    bool block;                 /* the turn shows its thinking */
    bool may_block;             /* it does, or would if there were some */
    bool strips;                /* content is trimmed */
    bool spoken;                /* something stands before the calls */
} chat_turn;
chat_turn qw_chat_turn(const chat_renderer *w, size_t i, size_t query);
/* Index of the last message of the user that is no tool result; of the last message when there is none. */
size_t qw_chat_query(const chat_renderer *w);

/* ---- chat_tools.c */
/* Checks tool definitions and writes each as one line of JSON, a line break before it. *n becomes their number. */
qw_status qw_chat_tools_json(const chat_renderer *w, qw_text tools, qw_buf *json, size_t *n) QW_MUST_CHECK;
qw_status qw_chat_tools_text(const chat_renderer *w, qw_text json) QW_MUST_CHECK;
qw_status qw_chat_calls(const chat_renderer *w, size_t i, bool spoken) QW_MUST_CHECK;

/* ---- chat_xml.c: one tool definition as nested tags */
qw_status qw_chat_tool_xml(const chat_renderer *w, qw_text tool) QW_MUST_CHECK;
/* str() of a JSON value as plain text; strips it first when asked to. */
qw_status qw_chat_plain_str(const chat_renderer *w, qw_text json, bool strip) QW_MUST_CHECK;

#endif
