/* parse.h: what a model writes, taken apart as it comes: thinking, content and tool calls.
 *
 * Text goes in as it is decoded, cut anywhere; typed events come out. Calls are understood in the JSON form
 * (<tool_call>{"name": ..., "arguments": ...}</tool_call>) and in the XML form (<function=NAME><parameter=KEY>), whose
 * values get the types that the tool's schema asks for. The rules are in docs/chat.md; two of them are promises:
 *   - Nothing is lost: every byte that went in is in the `raw` of exactly one event, in order. What cannot be
 *     understood is content, with a warning.
 *   - The cuts make no difference: neighbouring events of one kind joined, the events are the same.
 * Memory is bounded by QW_PARSE_HELD_MAX and the pieces pushed, time is linear. One thread a parser.
 */
#ifndef QW_TEXT_PARSE_H
#define QW_TEXT_PARSE_H

#include <stdbool.h>

#include "qw_types.h"

#include "base/status.h"

enum {
    QW_PARSE_HELD_MAX = 1 << 20, /* bytes of a value or of the head of a call that cannot be given out yet */
    QW_PARSE_NAME_MAX = 256      /* bytes of a function's or a parameter's name */
};

typedef enum qw_parse_kind {
    QW_PARSE_THINKING = 1, /* text: a piece of the thinking */
    QW_PARSE_CONTENT,      /* text: a piece of the answer */
    QW_PARSE_MARKUP,       /* nothing to show: tags, and line breaks beside them */
    QW_PARSE_CALL,         /* a call begins; text: its function */
    QW_PARSE_ARGUMENTS,    /* text: a piece of its arguments, which together are the JSON text of an object */
    QW_PARSE_CALL_END,     /* complete: the arguments are whole; else the call broke off */
    QW_PARSE_WARNING       /* text: one sentence about what could not be understood */
} qw_parse_kind;

typedef struct qw_parse_event {
    qw_parse_kind kind;
    qw_text text;   /* both valid during the call of the function */
    qw_text raw;    /* what the model wrote for it; may be empty */
    bool complete;  /* CALL_END */
} qw_parse_event;
typedef qw_status (*qw_parse_fn)(void *ctx, const qw_parse_event *ev, qw_err *err);

typedef struct qw_parse_options {
    qw_text tools;     /* JSON text of the request's tools; empty: calls are content */
    bool thinks;       /* <think> at the beginning opens a thinking block */
    bool in_thinking;  /* the prompt opened it (qw_rendered.in_thinking) */
    bool xml_calls;    /* a call of a known tool may leave out <tool_call> */
} qw_parse_options;

typedef struct qw_parser qw_parser;
/* Copies what it needs. Errors are those of the tools' JSON text. */
qw_status qw_parser_create(const qw_parse_options *options, qw_parser **out, qw_err *err) QW_MUST_CHECK;
void qw_parser_destroy(qw_parser *p);
/* Takes text and calls fn for what is certain by now. Fails when memory is out, or with what fn returned; then the
 * parser can only be destroyed. */
qw_status qw_parser_push(qw_parser *p, qw_text text, qw_parse_fn fn, void *ctx, qw_err *err) QW_MUST_CHECK;
/* Whether what comes next is thinking, or a call within it. */
bool qw_parser_in_thinking(const qw_parser *p);
/* The answer ended: gives out what was held back. */
qw_status qw_parser_finish(qw_parser *p, qw_parse_fn fn, void *ctx, qw_err *err) QW_MUST_CHECK;

#endif
