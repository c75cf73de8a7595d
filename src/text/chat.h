/* chat.h: chat formats of the Qwen families, rendered as typed segments.
 *
 * A conversation becomes a list of segments: markup (trusted text of the format, whose control tokens are
 * real), plain text (everything a user, tool or model wrote: tokenised with control tokens off) and
 * message edges (where later snapshots may be taken). The concatenated text is byte-equal to what the
 * model's own template gives; the template itself is never executed, only recognised by its hash.
 * Any thread; segments own their text.
 */
#ifndef QW_TEXT_CHAT_H
#define QW_TEXT_CHAT_H

#include "qw_types.h"

#include "base/buf.h"
#include "text/tokenizer.h"

typedef enum qw_chat_format {
    QW_CHAT_NONE = 0,
    QW_CHAT_QWEN25,        /* Qwen2.5, Coder: ChatML, Hermes JSON tools */
    QW_CHAT_QWEN25_BRACES, /* the same, but the tool instructions show doubled braces (some Coder files) */
    QW_CHAT_QWEN25_MATH,   /* the same with another default system text */
    QW_CHAT_QWEN2          /* ChatML, no tools */
} qw_chat_format;

enum {
    QW_RENDERED_BYTES_MAX = 64 << 20, /* text of a rendered conversation */
    QW_SEGMENTS_MAX = 1 << 20
};

typedef enum qw_segment_kind { QW_SEGMENT_MARKUP = 0, QW_SEGMENT_PLAIN, QW_SEGMENT_EDGE } qw_segment_kind;

typedef struct qw_segment {
    qw_segment_kind kind;
    size_t begin, end; /* bytes in qw_rendered.text; an edge is empty */
} qw_segment;

/* Zero-initialise; qw_rendered_free frees. Neighbouring segments of one kind are joined. */
typedef struct qw_rendered {
    qw_buf text;
    qw_segment *segments; /* owns */
    size_t n, cap;
} qw_rendered;
void qw_rendered_free(qw_rendered *r);

/* Format for a model's template text: by hash, else by its marks with *known = false (a warning is due),
 * else QW_CHAT_NONE. */
qw_chat_format qw_chat_detect(qw_text template_text, bool *known);
const char *qw_chat_format_name(qw_chat_format f); /* "qwen2.5", "qwen2.5-math", "qwen2", "none" */

/* Renders messages into *out, which was zero-initialised or freed; on failure it holds nothing. tools: JSON
 * text of an array of objects, or empty. Arguments of a tool call: JSON text is written as the template
 * writes that value, none at all as {}, and text that is not JSON as one JSON string. Errors (mostly
 * QW_E_ARG) name the message: unknown role, a key twice, JSON too deep, no UTF-8; or the tools. */
qw_status qw_chat_render(qw_chat_format f, const qw_message *messages, size_t n_messages, qw_text tools,
                         bool add_generation_prompt, qw_rendered *out, qw_err *err) QW_MUST_CHECK;
/* Ids of a rendered conversation: markup with control tokens, plain text without. */
qw_status qw_chat_tokenize(const qw_tokenizer *t, const qw_rendered *r, qw_tokens *out, qw_err *err) QW_MUST_CHECK;

#endif
