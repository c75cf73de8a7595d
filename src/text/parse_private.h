/* parse_private.h: what the files of the output parser share.
 *
 * parse.c reads text outside of calls and gives out events, parse_call.c the head and end of calls and the JSON form,
 * parse_xml.c the XML form, parse_value.c types. The parser is a state machine of single bytes, hence indifferent to
 * cuts. Bytes that are not decided yet are in `held`; line breaks that are dropped when a tag follows are only counted.
 */
#ifndef QW_TEXT_PARSE_PRIVATE_H
#define QW_TEXT_PARSE_PRIVATE_H

#include <stddef.h>
#include <string.h>

#include "base/buf.h"
#include "text/json_push.h"
#include "text/parse.h"

typedef enum parse_state {
    PARSE_START,      /* nothing but line breaks so far: a thinking block may begin */
    PARSE_THINK_HEAD, /* line breaks after <think> */
    PARSE_THINK,
    PARSE_TEXT_HEAD,  /* line breaks after </think> */
    PARSE_TEXT,
    PARSE_AFTER_CALL, /* line breaks after a call */
    PARSE_OPEN,       /* <tool_call> was read */
    PARSE_JSON,       /* the object of a call whose function is not known yet */
    PARSE_ARGUMENTS,  /* its arguments, as they come */
    PARSE_JSON_TAIL,  /* what follows them */
    PARSE_CLOSE,      /* the call is whole, its block is not closed yet */
    PARSE_NAME,       /* <function= was read */
    PARSE_BODY,       /* between parameters */
    PARSE_KEY,        /* <parameter= was read */
    PARSE_VALUE,
    PARSE_VALUE_END   /* </parameter> was read: it counts when another tag of the call follows */
} parse_state;

typedef enum parse_tag {
    TAG_THINK = 1, TAG_THINK_END = 2, TAG_CALL = 4, TAG_CALL_END = 8, TAG_FUNCTION = 16, TAG_FUNCTION_END = 32,
    TAG_PARAMETER = 64, TAG_PARAMETER_END = 128,
    TAG_NONE = 0,       /* it is none of those looked for */
    TAG_PART = 1 << 30  /* it may become one */
} parse_tag;
enum { PARSE_TAG_BYTES_MAX = 16, PARSE_SPACE_MAX = 64 /* white space before a tag inside a call */ };

typedef enum parse_type {
    TYPE_STRING = 1, TYPE_NUMBER = 2, TYPE_BOOL = 4, TYPE_OBJECT = 8, TYPE_ARRAY = 16, TYPE_NULL = 32,
    TYPE_ANY = 63
} parse_type;

/* A slice of `held`. */
typedef struct parse_slice {
    size_t at, n;
    bool set;
} parse_slice;

struct qw_parser {
    bool thinks, xml_calls, has_tools;
    qw_buf tools;        /* each tool on a line of JSON, a line break before it */
    parse_state state;
    parse_state back;    /* where a call was met */
    bool in_tag;         /* held[tag, n) may become a tag */
    bool wrapped;        /* the call began with <tool_call> */
    bool json_form;
    qw_buf held;
    size_t tag, mark;    /* offsets in held: of a tag, of the name, key or value being read */
    size_t lines;        /* line breaks not decided yet */

    qw_json_push json;   /* JSON form: the object */
    int field;           /* which member is being read */
    bool in_value;
    parse_slice name, arguments;

    qw_buf function;     /* XML form: the tool's definition, or empty */
    bool any_key, value_head;
    int types;           /* of the value, parse_type */
    qw_buf value;        /* what must be whole to be understood */

    qw_parse_fn fn;      /* of the push that runs */
    void *ctx;
    qw_err *err;
    qw_parse_kind kind;  /* of the event being joined, or 0 */
    qw_buf text, raw;
};

static inline qw_text qw_parse_held(const qw_parser *p)
{
    return (qw_text){qw_buf_str(&p->held), p->held.n};
}

static inline bool qw_parse_is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* ---- parse.c */
qw_status qw_parse_step(qw_parser *p, char c) QW_MUST_CHECK;
/* Adds to the event being joined, after giving out another one. */
qw_status qw_parse_emit(qw_parser *p, qw_parse_kind kind, qw_text text, qw_text raw) QW_MUST_CHECK;
/* An event of its own. */
qw_status qw_parse_send(qw_parser *p, qw_parse_event ev) QW_MUST_CHECK;
qw_status qw_parse_warn(qw_parser *p, const char *sentence) QW_MUST_CHECK;
qw_status qw_parse_hold(qw_parser *p, char c) QW_MUST_CHECK;
/* What held[tag, n) is among the tags of a set. */
parse_tag qw_parse_match(const qw_parser *p, int set);
/* Thinking or content, where the parser stands. */
qw_status qw_parse_text(qw_parser *p, qw_text s) QW_MUST_CHECK;
qw_status qw_parse_drop_lines(qw_parser *p) QW_MUST_CHECK; /* they are markup */
/* The last n bytes of held are read again, in the state that was set; the others are text, or read again too. */
qw_status qw_parse_give_back(qw_parser *p, size_t n, bool all) QW_MUST_CHECK;
bool qw_parse_thinking(const qw_parser *p); /* the state is one of thinking */

/* ---- parse_call.c */
qw_status qw_parse_call_step(qw_parser *p, char c) QW_MUST_CHECK;
/* The first byte of a JSON call without <tool_call>. */
qw_status qw_parse_begin_bare(qw_parser *p, char c) QW_MUST_CHECK;
qw_status qw_parse_call_finish(qw_parser *p) QW_MUST_CHECK;
/* held cannot become a call: text again, but for its last n bytes, which are read again. */
qw_status qw_parse_no_call(qw_parser *p, size_t n) QW_MUST_CHECK;
/* The call broke off after it was announced; the same with what is held. */
qw_status qw_parse_broken(qw_parser *p, size_t n, const char *sentence) QW_MUST_CHECK;
qw_status qw_parse_end_call(qw_parser *p, bool complete, qw_text raw) QW_MUST_CHECK;
/* Announces a call: everything held but its last n bytes is its head. False in *ok when a call of this function does
 * not count here. */
qw_status qw_parse_announce(qw_parser *p, qw_text name, size_t n, bool *ok) QW_MUST_CHECK;

/* ---- parse_xml.c */
qw_status qw_parse_xml_step(qw_parser *p, char c) QW_MUST_CHECK;
qw_status qw_parse_xml_finish(qw_parser *p) QW_MUST_CHECK;

/* ---- parse_value.c */
/* The definition of a tool as a JSON object; .s NULL when it is not declared. */
qw_text qw_parse_find_tool(const qw_parser *p, qw_text name);
/* Types that a parameter may have by its function's definition; TYPE_STRING when it is not described. */
int qw_parse_types_of(qw_text function, qw_text key);
/* Appends the JSON value that a text stands for; *fits: it has one of the types. */
qw_status qw_parse_convert(int types, qw_text value, qw_buf *out, bool *fits, qw_err *err) QW_MUST_CHECK;
/* Appends bytes as they stand inside a JSON string. */
qw_status qw_parse_escape(qw_text s, qw_buf *out, qw_err *err) QW_MUST_CHECK;

#endif
