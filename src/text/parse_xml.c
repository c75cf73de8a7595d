/* parse_xml.c: calls in the XML form: <function=NAME>, <parameter=KEY>, values as raw text.
 *
 * A value that can only be a string is given out as it comes; another one when it is whole. One line break after the
 * opening tag and one before the closing one belong to the form. </parameter> ends a value only where another tag of
 * the call follows, so that a text about this format can be a value.
 */
#include "text/parse_private.h"

static const char broken[] = "a tool call broke off: what follows is not in its format";

static qw_status arguments(qw_parser *p, const char *text, qw_text raw)
{
    return qw_parse_emit(p, QW_PARSE_ARGUMENTS, (qw_text){text, strlen(text)}, raw);
}

static size_t tail(const qw_parser *p)
{
    return p->in_tag ? p->held.n - p->tag : 1;
}

/* ---- names ------------------------------------------------------------------------------------ */

/* Reads up to '>'; *end: c is that. False: no name goes on like this. */
static bool name_goes_on(const qw_parser *p, char c, bool *end)
{
    size_t n = p->held.n - p->mark;
    *end = c == '>';
    return *end ? n > 1 : c != '<' && c != '\n' && n <= QW_PARSE_NAME_MAX;
}

static qw_status name_step(qw_parser *p, char c)
{
    bool end, ok = true;
    QW_TRY(qw_parse_hold(p, c));
    if (!name_goes_on(p, c, &end)) return qw_parse_no_call(p, 1);
    if (!end) return QW_OK;
    QW_TRY(qw_parse_announce(p, (qw_text){p->held.data + p->mark, p->held.n - 1 - p->mark}, 0, &ok));
    if (!ok) return qw_parse_no_call(p, 1);
    qw_buf_clear(&p->held);
    p->state = PARSE_BODY;
    p->json_form = p->any_key = false;
    return arguments(p, "{", (qw_text){0});
}

static qw_status key_step(qw_parser *p, char c)
{
    bool end;
    qw_buf text;
    QW_TRY(qw_parse_hold(p, c));
    if (!name_goes_on(p, c, &end)) return qw_parse_broken(p, 1, broken);
    if (!end) return QW_OK;
    qw_text key = {p->held.data + p->mark, p->held.n - 1 - p->mark};
    p->types = qw_parse_types_of((qw_text){qw_buf_str(&p->function), p->function.n}, key);
    qw_buf_init(&text, QW_PARSE_NAME_MAX * 8, "a parameter's name");
    qw_status status = qw_buf_add_str(&text, p->any_key ? ", \"" : "\"", p->err);
    if (status == QW_OK) status = qw_parse_escape(key, &text, p->err);
    if (status == QW_OK) status = qw_buf_add_str(&text, p->types == TYPE_STRING ? "\": \"" : "\": ", p->err);
    if (status == QW_OK) status = arguments(p, qw_buf_str(&text), qw_parse_held(p));
    qw_buf_free(&text);
    qw_buf_clear(&p->held);
    qw_buf_clear(&p->value);
    p->any_key = p->value_head = true;
    p->state = PARSE_VALUE;
    return status;
}

/* ---- values ----------------------------------------------------------------------------------- */

/* A piece of a value that is a string. */
static qw_status string_piece(qw_parser *p, const char *before, qw_text s)
{
    qw_buf text;
    qw_buf_init(&text, 8 * QW_PARSE_HELD_MAX, "a value");
    qw_status status = qw_buf_add_str(&text, before, p->err);
    if (status == QW_OK) status = qw_parse_escape(s, &text, p->err);
    if (status == QW_OK)
        status = qw_parse_emit(p, QW_PARSE_ARGUMENTS, (qw_text){qw_buf_str(&text), text.n}, (qw_text){0});
    qw_buf_free(&text);
    return status;
}

/* A value too long to be held becomes a string, whatever its type. */
static qw_status too_long(qw_parser *p)
{
    QW_TRY(string_piece(p, "\"", (qw_text){qw_buf_str(&p->value), p->value.n}));
    qw_buf_clear(&p->value);
    p->types = TYPE_STRING;
    return qw_parse_warn(p, "a parameter is too long to be anything but a string");
}

static qw_status value_byte(qw_parser *p, char c)
{
    qw_text s = {&c, 1};
    bool plain = (unsigned char)c >= 0x20 && c != '"' && c != '\\';
    p->value_head = false;
    if (p->types != TYPE_STRING && p->value.n == QW_PARSE_HELD_MAX) QW_TRY(too_long(p));
    if (p->types == TYPE_STRING && plain) return qw_parse_emit(p, QW_PARSE_ARGUMENTS, s, s);
    QW_TRY(arguments(p, "", s));
    return p->types == TYPE_STRING ? string_piece(p, "", s) : qw_buf_add(&p->value, &c, 1, p->err);
}

/* A byte of the value, or the line break that may be the form's. */
static qw_status value_text(qw_parser *p, char c)
{
    if (p->value_head && c == '\n') {
        p->value_head = false;
        return arguments(p, "", (qw_text){&c, 1});
    }
    bool line = p->lines > 0;
    p->lines = c == '\n';
    if (line) QW_TRY(value_byte(p, '\n'));
    return c == '\n' ? QW_OK : value_byte(p, c);
}

static qw_status end_value(qw_parser *p)
{
    bool fits;
    qw_buf json;
    if (p->lines > 0) QW_TRY(arguments(p, "", (qw_text){"\n", 1}));
    p->lines = 0;
    if (p->types == TYPE_STRING) return arguments(p, "\"", (qw_text){0});
    qw_buf_init(&json, 8 * QW_PARSE_HELD_MAX, "a value");
    qw_status status = qw_parse_convert(p->types, (qw_text){qw_buf_str(&p->value), p->value.n}, &json, &fits, p->err);
    if (status == QW_OK) status = arguments(p, qw_buf_str(&json), (qw_text){0});
    qw_buf_free(&json);
    if (status == QW_OK && !fits)
        status = qw_parse_warn(p, "a parameter has another type than its tool asks for; it is a string");
    return status;
}

static qw_status value_step(qw_parser *p, char c)
{
    if (p->in_tag) {
        QW_TRY(qw_parse_hold(p, c));
        parse_tag tag = qw_parse_match(p, TAG_PARAMETER_END);
        if (tag == TAG_PART) return QW_OK;
        p->in_tag = false;
        if (tag != TAG_NONE) {
            p->state = PARSE_VALUE_END;
            p->mark = p->held.n;
            return QW_OK;
        }
        for (size_t i = 0; i + 1 < p->held.n; i++) QW_TRY(value_text(p, p->held.data[i]));
        qw_buf_clear(&p->held);
    }
    if (c != '<') return value_text(p, c);
    p->in_tag = true;
    p->tag = 0;
    return qw_parse_hold(p, c);
}

/* ---- tags ------------------------------------------------------------------------------------- */

/* A tag of the call was read, between parameters or after a value. */
static qw_status take_tag(qw_parser *p, parse_tag tag)
{
    p->in_tag = false;
    if (tag == TAG_PARAMETER) {
        p->mark = p->held.n;
        p->state = PARSE_KEY;
        return QW_OK;
    }
    qw_text raw = qw_parse_held(p);
    if (tag == TAG_FUNCTION_END) {
        QW_TRY(arguments(p, "}", raw));
        p->state = PARSE_CLOSE;
    } else { /* </function> was left out */
        QW_TRY(arguments(p, "}", (qw_text){0}));
        QW_TRY(qw_parse_end_call(p, true, raw));
    }
    qw_buf_clear(&p->held);
    return QW_OK;
}

/* The bytes after </parameter> are no tag of the call: all of it was the value's. The beginning of a tag among them is
 * read again. */
static qw_status value_goes_on(qw_parser *p)
{
    char again[PARSE_TAG_BYTES_MAX];
    size_t n = tail(p);
    QW_ASSERT(n <= sizeof again);
    memcpy(again, p->held.data + p->held.n - n, n);
    p->state = PARSE_VALUE;
    p->in_tag = false;
    for (size_t i = 0; i < p->held.n - n; i++) QW_TRY(value_text(p, p->held.data[i]));
    qw_buf_clear(&p->held);
    for (size_t i = 0; i < n; i++) QW_TRY(qw_parse_step(p, again[i]));
    return QW_OK;
}

static qw_status between_step(qw_parser *p, char c)
{
    bool after_value = p->state == PARSE_VALUE_END;
    QW_TRY(qw_parse_hold(p, c));
    if (p->in_tag) {
        parse_tag tag = qw_parse_match(p, TAG_PARAMETER | TAG_FUNCTION_END | TAG_CALL_END);
        if (tag == TAG_PART) return QW_OK;
        if (tag == TAG_NONE) return after_value ? value_goes_on(p) : qw_parse_broken(p, tail(p), broken);
        if (after_value) QW_TRY(end_value(p));
        return take_tag(p, tag);
    }
    if (c == '<') {
        p->in_tag = true;
        p->tag = p->held.n - 1;
        return QW_OK;
    }
    bool many = p->held.n > (after_value ? p->mark : 0) + PARSE_SPACE_MAX;
    if (qw_parse_is_space(c) && !many) return QW_OK;
    return after_value ? value_goes_on(p) : qw_parse_broken(p, 1, broken);
}

qw_status qw_parse_xml_step(qw_parser *p, char c)
{
    switch (p->state) {
    case PARSE_NAME: return name_step(p, c);
    case PARSE_KEY: return key_step(p, c);
    case PARSE_VALUE: return value_step(p, c);
    default: return between_step(p, c);
    }
}

/* The answer ends inside a call. What was read of a value is given out; a string is left open. */
qw_status qw_parse_xml_finish(qw_parser *p)
{
    if (p->state == PARSE_NAME) return qw_parse_no_call(p, 0);
    if (p->state == PARSE_VALUE) {
        for (size_t i = 0; i < p->held.n; i++) QW_TRY(value_text(p, p->held.data[i]));
        qw_buf_clear(&p->held);
        if (p->types != TYPE_STRING) QW_TRY(end_value(p));
        else if (p->lines > 0) QW_TRY(value_byte(p, '\n'));
        p->lines = 0;
    } else if (p->state == PARSE_VALUE_END) {
        QW_TRY(end_value(p));
    }
    QW_TRY(qw_parse_end_call(p, false, qw_parse_held(p)));
    qw_buf_clear(&p->held);
    return qw_parse_warn(p, "the answer ended inside a tool call");
}
