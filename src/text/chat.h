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

/* One for each variant of a template; several may share a name. The rows are in chat.c. */
typedef enum qw_chat_format {
    QW_CHAT_NONE = 0,
    QW_CHAT_QWEN25,          /* Qwen2.5, Coder: ChatML, Hermes JSON tools */
    QW_CHAT_QWEN25_BRACES,   /* the same, but the tool instructions show doubled braces (some Coder files) */
    QW_CHAT_QWEN25_MATH,     /* the same with another default system text */
    QW_CHAT_QWEN2,           /* ChatML, no tools */
    QW_CHAT_QWEN25_1M,       /* Qwen2.5 with the default system text of Qwen2 */
    QW_CHAT_QWEN25_OLD,      /* the same with doubled braces (first Coder files) */
    QW_CHAT_QWQ,             /* thinks always; earlier answers without their thinking */
    QW_CHAT_QWQ_LAST,        /* the same, but the last message is left whole and thinking can be closed */
    QW_CHAT_QWEN3,           /* thinking can be switched */
    QW_CHAT_QWEN3_THINKING,  /* 2507, Next and VL Thinking */
    QW_CHAT_QWEN3_INSTRUCT,  /* Next and 2507 Instruct */
    QW_CHAT_QWEN3_SPLITS,    /* 2507 Instruct whose template still knows of thinking in history */
    QW_CHAT_QWEN3_CODER,     /* XML tools */
    QW_CHAT_QWEN3_CODER_TOOLS,   /* the same, other instructions */
    QW_CHAT_QWEN3_CODER_NEXT,    /* the same, other heading */
    QW_CHAT_QWEN35,          /* XML calls, tools described in JSON; thinking can be switched */
    QW_CHAT_QWEN36,          /* the same; earlier thinking can be kept */
    QW_CHAT_QWEN38,          /* the same, kept by default; effort */
    QW_CHAT_QWEN38_MAX,      /* the same; thinks always */
    QW_CHAT_FORMATS
} qw_chat_format;

enum {
    QW_RENDERED_BYTES_MAX = 64 << 20, /* text of a rendered conversation */
    QW_SEGMENTS_MAX = 1 << 20
};

typedef enum qw_segment_kind {
    QW_SEGMENT_MARKUP = 0,
    QW_SEGMENT_PLAIN,
    QW_SEGMENT_EDGE,
    QW_SEGMENT_TOKENS /* of an earlier answer, as they were sampled (chat_recall.h); markup follows */
} qw_segment_kind;

typedef struct qw_segment {
    qw_segment_kind kind;
    size_t begin, end; /* bytes in qw_rendered.text; an edge is empty */
    size_t n_messages; /* EDGE: so many messages are before it, tools and a default system text not counted */
    size_t token, n_tokens; /* TOKENS: in qw_rendered.tokens */
} qw_segment;

/* Zero-initialise; qw_rendered_free frees. Neighbouring segments of one kind are joined. */
typedef struct qw_rendered {
    qw_buf text;
    qw_segment *segments; /* owns */
    size_t n, cap;
    qw_tokens tokens;     /* owns: of all TOKENS segments */
    size_t answer_at;     /* with a generation prompt: bytes up to the end of "<|im_start|>assistant\n" */
    bool in_thinking;     /* the text ends inside a thinking block: the answer begins there */
} qw_rendered;
void qw_rendered_free(qw_rendered *r);

/* Format for a model's template text: by hash, else by its marks with *known = false (a warning is due),
 * else QW_CHAT_NONE. */
qw_chat_format qw_chat_detect(qw_text template_text, bool *known);
const char *qw_chat_format_name(qw_chat_format f); /* "qwen2.5", "qwen3-thinking", "none" */

/* What answers in a format may hold; the output parser asks. */
typedef struct qw_chat_traits {
    bool tools;       /* calls, in JSON or XML */
    bool xml_calls;   /* <function=NAME> */
    bool thinks;      /* may begin with a thinking block */
    bool switches;    /* thinking can be switched off */
    bool efforts;     /* the format has words for how much to think */
} qw_chat_traits;
qw_chat_traits qw_chat_format_traits(qw_chat_format f);
/* Whether an answer begins with thinking when it is asked for with these options. */
bool qw_chat_thinks(qw_chat_format f, const qw_chat_options *options);

/* Renders messages into *out, which was zero-initialised or freed; on failure it holds nothing. tools: JSON
 * text of an array of objects, or empty. options: NULL is all zero. Arguments of a tool call: JSON text is written as
 * the template writes that value, none at all as an empty object, and text that is not JSON as a string. Errors (mostly
 * QW_E_ARG) name the message: unknown role, a key twice, JSON too deep, no UTF-8; or the tools.
 * Where the template raises, this goes on; docs/chat.md has the rules. */
qw_status qw_chat_render(qw_chat_format f, const qw_message *messages, size_t n_messages, qw_text tools,
                         const qw_chat_options *options, bool add_generation_prompt, qw_rendered *out,
                         qw_err *err) QW_MUST_CHECK;
/* Where in the token ids a message ends. */
typedef struct qw_edge {
    uint32_t n_tokens;   /* before it */
    uint32_t n_messages; /* as in qw_segment */
} qw_edge;

/* Zero-initialise; free(at). */
typedef struct qw_edges {
    qw_edge *at; /* [n], owns; ascending */
    size_t n, cap;
} qw_edges;

/* Ids of a rendered conversation: markup with control tokens, plain text without. Appends to *edges, unless that is NULL,
 * those edges that are borders of tokens. */
qw_status qw_chat_tokenize(const qw_tokenizer *t, const qw_rendered *r, qw_tokens *out, qw_edges *edges,
                           qw_err *err) QW_MUST_CHECK;

/* What the model cards of embedding and reranking models give as the instruct of a search. */
#define QW_SEARCH_INSTRUCTION "Given a web search query, retrieve relevant passages that answer the query"

/* Prompt of an embedding model: a document as it is, or with an instruct (.s not NULL) a query. Ends with
 * <|endoftext|>, whose hidden state is the embedding. *out as in qw_chat_render. */
qw_status qw_embed_render(qw_text text, qw_text instruct, qw_rendered *out, qw_err *err) QW_MUST_CHECK;
/* Prompt of a reranking model; the next token is "yes" or "no". instruct: .s NULL for QW_SEARCH_INSTRUCTION. */
qw_status qw_rerank_render(qw_text query, qw_text document, qw_text instruct, qw_rendered *out,
                           qw_err *err) QW_MUST_CHECK;

#endif
