/* dial.h: how much an answer may think: what a request says in whatever words, and what that means for a model.
 *
 * Four settings: off, on, a budget of tokens, an effort. A format takes of them what it knows; where it has no words for an
 * effort, the effort is a budget. docs/engine-thinking.md has the table. Any thread; no state.
 */
#ifndef QW_ENGINE_DIAL_H
#define QW_ENGINE_DIAL_H

#include "qw.h"

#include "text/chat.h"

enum { QW_LOW_EFFORT_TOKENS = 1024, QW_MEDIUM_EFFORT_TOKENS = 8192 };

typedef struct qw_dial {
    qw_chat_options chat; /* what the format is told */
    int64_t tokens_max;   /* of thinking; 0: no limit */
} qw_dial;
/* A request that is no chat says nothing. */
qw_dial qw_dial_of(qw_chat_format format, const qw_request *request);
/* What is in force for an answer. */
qw_thinking_use qw_dial_use(qw_chat_format format, const qw_request *request);

#endif
