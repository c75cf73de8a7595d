/* qw_types.h: plain data that passes through the public door and the layers below it.
 *
 * No functions, no ownership: whoever hands one of these over keeps the memory.
 */
#ifndef QW_TYPES_H
#define QW_TYPES_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QW_VERSION "0.1.0"

/* A piece of UTF-8 text (or bytes, where said) that need not end in NUL. */
typedef struct qw_text {
    const char *s;
    size_t n;
} qw_text;

typedef struct qw_tool_call {
    const char *id;    /* may be NULL */
    const char *name;
    qw_text arguments; /* JSON text of an object */
} qw_tool_call;

typedef struct qw_message {
    const char *role;  /* "system" ("developer" is the same), "user", "assistant", "tool" */
    qw_text content;   /* never becomes control tokens */
    qw_text reasoning; /* thinking of an earlier answer, for models that keep it; .s is NULL when none is given */
    const qw_tool_call *tool_calls;
    size_t n_tool_calls;
    const char *tool_call_id; /* of a tool result; may be NULL */
} qw_message;

typedef enum qw_switch { QW_SWITCH_DEFAULT = 0, QW_SWITCH_ON, QW_SWITCH_OFF } qw_switch;
typedef enum qw_effort { QW_EFFORT_DEFAULT = 0, QW_EFFORT_LOW, QW_EFFORT_MEDIUM, QW_EFFORT_XHIGH } qw_effort;

/* How a conversation is rendered, where the model has the choice; what it lacks is ignored. All zero: as the model's
 * own template does without being told. */
typedef struct qw_chat_options {
    qw_switch thinking;          /* think before the answer */
    qw_switch preserve_thinking; /* keep the thinking of all earlier answers, not of the last ones alone */
    qw_effort effort;            /* how much to think */
} qw_chat_options;

#ifdef __cplusplus
}
#endif
#endif
