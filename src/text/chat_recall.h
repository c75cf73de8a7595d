/* chat_recall.h: the turn of an earlier answer from the tokens that were sampled, instead of from its text.
 *
 * While a conversation is rendered, each answer in it is looked up (qw_chat_memory). If the model is known to have said it,
 * its tokens stand for what the template would write. When that is allowed is decided here, by qw_spoken_match:
 *   - WHOLE: content and calls are what was given out (content as the template trims it, arguments as JSON values), and so
 *     is the thinking, where the template shows it. Then the sampled text is the turn; it differs from what the template
 *     writes in nothing but space between parts and the spelling of JSON. Thinking that the template drops stays dropped:
 *     then only the tokens after it are used, if one begins there.
 *   - PART: else, the tokens up to the first byte in which the two texts differ. What follows is the template's.
 * A control token or a user-defined one stands for itself alone: where the parser, or the template, has markup.
 */
#ifndef QW_TEXT_CHAT_RECALL_H
#define QW_TEXT_CHAT_RECALL_H

#include "text/chat.h"
#include "text/spoken.h"

/* An answer in a conversation that is being rendered. */
typedef struct qw_chat_ask {
    qw_text before;            /* the conversation up to the answer's turn, "<|im_start|>assistant\n" included */
    const qw_message *message;
    qw_text content, reasoning;  /* what the template takes for them */
    bool reasoning_given;      /* the client sent some, if only an empty one */
    bool strips;               /* the template trims the content */
    bool block;                /* it shows a thinking block, */
    bool may_block;            /* or would show one, had the message thinking */
    qw_text turn;              /* what it writes for the answer */
    const qw_segment *segments; /* [n_segments] of what was rendered so far; their bytes count from `before` */
    size_t n_segments;
} qw_chat_ask;

/* These stand for the first n_replaced bytes of the turn. All borrow, until the next question. */
typedef struct qw_recalled {
    const char *lead;              /* markup before the tokens */
    const qw_spoken_token *tokens; /* [n_tokens] */
    size_t n_tokens;
    qw_text text;                  /* of the tokens */
    size_t n_replaced;
} qw_recalled;

typedef enum qw_match { QW_MATCH_NONE = 0, QW_MATCH_PART, QW_MATCH_WHOLE } qw_match;

/* sure: the message is known to be this answer (by a call's id, or the conversation before it), so that thinking which the
 * client did not send back may be restored. */
qw_match qw_spoken_match(const qw_spoken *s, const qw_chat_ask *q, bool sure, qw_recalled *out);

/* Who remembers answers. False: nothing is known of this one. */
typedef struct qw_chat_memory {
    void *ctx;
    bool (*recall)(void *ctx, const qw_chat_ask *q, qw_recalled *out);
} qw_chat_memory;

/* As qw_chat_render; memory: NULL is none. It is asked once for each answer, in order. */
qw_status qw_chat_render_recalled(qw_chat_format f, const qw_message *messages, size_t n_messages, qw_text tools,
                                  const qw_chat_options *options, bool add_generation_prompt,
                                  const qw_chat_memory *memory, qw_rendered *out, qw_err *err) QW_MUST_CHECK;

#endif
