/* parse_call.c: the head and the end of a call, and the JSON form: {"name": ..., "arguments": {...}}.
 *
 * Small models forget <tool_call>, so the object may also begin an answer by itself. Until a call is announced all of it
 * is held and may still turn out to be text. It is announced where its arguments begin and its function is known; when the
 * arguments come first, at the end of the object.
 */
#include "text/json_view.h"
#include "text/parse_private.h"

enum { FIELD_NONE = 0, FIELD_NAME, FIELD_ARGUMENTS };

static const char broken_json[] = "a tool call broke off: its arguments are not JSON";
static const char goes_on[] = "something follows a tool call inside its block; it is shown as content";

/* ---- ends ------------------------------------------------------------------------------------- */

qw_status qw_parse_no_call(qw_parser *p, size_t n)
{
    p->state = p->back;
    if (!qw_parse_thinking(p) && p->wrapped)
        QW_TRY(qw_parse_warn(p, "what begins like a tool call is none; it is shown as content"));
    return qw_parse_give_back(p, n, false);
}

qw_status qw_parse_end_call(qw_parser *p, bool complete, qw_text raw)
{
    QW_TRY(qw_parse_send(p, (qw_parse_event){.kind = QW_PARSE_CALL_END, .raw = raw, .complete = complete}));
    p->state = p->back;
    p->state = p->back = qw_parse_thinking(p) ? PARSE_THINK : PARSE_AFTER_CALL;
    p->in_tag = false;
    return QW_OK;
}

qw_status qw_parse_broken(qw_parser *p, size_t n, const char *sentence)
{
    QW_TRY(qw_parse_end_call(p, false, (qw_text){0}));
    QW_TRY(qw_parse_warn(p, sentence));
    return qw_parse_give_back(p, n, false);
}

/* The call is whole; what is held follows it and is text. */
static qw_status end_before_text(qw_parser *p)
{
    QW_TRY(qw_parse_end_call(p, true, (qw_text){0}));
    if (p->wrapped) QW_TRY(qw_parse_warn(p, goes_on));
    return qw_parse_give_back(p, 0, true);
}

/* ---- the head --------------------------------------------------------------------------------- */

qw_status qw_parse_announce(qw_parser *p, qw_text name, size_t n, bool *ok)
{
    qw_text tool = qw_parse_find_tool(p, name);
    parse_state state = p->state;
    p->state = p->back;
    bool sure = p->wrapped && !qw_parse_thinking(p);
    p->state = state;
    /* In thinking, and without <tool_call>, the words may be about calls: only known functions count. */
    *ok = name.n > 0 && name.n <= QW_PARSE_NAME_MAX && (sure || tool.s);
    if (!*ok) return QW_OK;
    QW_TRY(qw_parse_drop_lines(p));
    qw_buf_clear(&p->function);
    QW_TRY(qw_buf_add(&p->function, tool.s, tool.n, p->err));
    qw_text raw = {qw_buf_str(&p->held), p->held.n - n};
    return qw_parse_send(p, (qw_parse_event){.kind = QW_PARSE_CALL, .text = name, .raw = raw});
}

static void begin_object(qw_parser *p)
{
    p->json = (qw_json_push){0};
    p->field = FIELD_NONE;
    p->in_value = false;
    p->name = p->arguments = (parse_slice){0};
    p->json_form = true;
    p->state = PARSE_JSON;
    qw_json_push_byte(&p->json, '{');
}

qw_status qw_parse_begin_bare(qw_parser *p, char c)
{
    p->back = p->state;
    p->wrapped = false;
    QW_TRY(qw_parse_hold(p, c));
    begin_object(p);
    return QW_OK;
}

static qw_status open_step(qw_parser *p, char c)
{
    QW_TRY(qw_parse_hold(p, c));
    if (p->in_tag) {
        parse_tag tag = qw_parse_match(p, TAG_FUNCTION);
        if (tag == TAG_PART) return QW_OK;
        if (tag == TAG_NONE) return qw_parse_no_call(p, p->held.n - p->tag);
        p->in_tag = false;
        p->mark = p->held.n;
        p->state = PARSE_NAME;
    } else if (c == '{') {
        begin_object(p);
    } else if (c == '<') {
        p->in_tag = true;
        p->tag = p->held.n - 1;
    } else if (!qw_parse_is_space(c) || p->held.n > p->mark + PARSE_SPACE_MAX) {
        return qw_parse_no_call(p, 1);
    }
    return QW_OK;
}

/* ---- the JSON form ---------------------------------------------------------------------------- */

static bool held_is(const qw_parser *p, size_t at, const char *text)
{
    return p->held.n - at == strlen(text) && memcmp(p->held.data + at, text, p->held.n - at) == 0;
}

/* A key of the object ends; false when it is none of a call's, or there twice. */
static bool take_key(qw_parser *p)
{
    p->field = held_is(p, p->mark, "\"name\"") ? FIELD_NAME
               : held_is(p, p->mark, "\"arguments\"") || held_is(p, p->mark, "\"parameters\"") ? FIELD_ARGUMENTS
                                                                                                : FIELD_NONE;
    return (p->field == FIELD_NAME && !p->name.set) || (p->field == FIELD_ARGUMENTS && !p->arguments.set);
}

/* The decoded name. */
static qw_status read_name(const qw_parser *p, qw_buf *name)
{
    qw_text quoted = {p->held.data + p->name.at, p->name.n};
    qw_buf_init(name, QW_PARSE_HELD_MAX, "a function's name");
    return qw_json_unquote(quoted, name, p->err);
}

/* Announces the call with its name; held but its last n bytes is its head. */
static qw_status announce_named(qw_parser *p, size_t n, bool *ok)
{
    qw_buf name;
    qw_status status = read_name(p, &name);
    if (status == QW_OK) status = qw_parse_announce(p, (qw_text){qw_buf_str(&name), name.n}, n, ok);
    qw_buf_free(&name);
    return status;
}

/* Arguments begin with this byte and can be given out as they come. */
static qw_status begin_arguments(qw_parser *p, char c)
{
    bool ok = false;
    QW_TRY(announce_named(p, 1, &ok));
    if (!ok) return qw_parse_no_call(p, 1);
    qw_buf_clear(&p->held);
    p->state = PARSE_ARGUMENTS;
    return qw_parse_emit(p, QW_PARSE_ARGUMENTS, (qw_text){&c, 1}, (qw_text){&c, 1});
}

/* Arguments that were held. Some models put the object into a string. */
static qw_status held_arguments(qw_parser *p, qw_text json, qw_buf *out)
{
    qw_json_push check = {0};
    if (json.n == 0) return qw_buf_add(out, "{}", 2, p->err);
    if (json.s[0] != '"') return qw_buf_add(out, json.s, json.n, p->err);
    QW_TRY(qw_json_unquote(json, out, p->err));
    for (size_t i = 0; i < out->n; i++) qw_json_push_byte(&check, out->data[i]);
    if (check.state == QW_JSON_DONE && out->data[0] == '{') return QW_OK;
    qw_buf_clear(out);
    return qw_buf_add(out, json.s, json.n, p->err);
}

/* The object ended before its arguments could be given out. */
static qw_status whole_object(qw_parser *p)
{
    bool ok = false;
    qw_buf arguments;
    if (!p->name.set) return qw_parse_no_call(p, 1);
    QW_TRY(announce_named(p, 0, &ok));
    if (!ok) return qw_parse_no_call(p, 1);
    qw_text json = {p->held.data + p->arguments.at, p->arguments.n};
    qw_buf_init(&arguments, QW_PARSE_HELD_MAX, "arguments");
    qw_status status = held_arguments(p, json, &arguments);
    if (status == QW_OK)
        status = qw_parse_emit(p, QW_PARSE_ARGUMENTS, (qw_text){qw_buf_str(&arguments), arguments.n}, (qw_text){0});
    qw_buf_free(&arguments);
    qw_buf_clear(&p->held);
    p->state = PARSE_CLOSE;
    return status;
}

static bool is_number(qw_json_state s)
{
    return s >= QW_JSON_MINUS && s <= QW_JSON_EXPONENT;
}

/* A value of the object has ended, with this byte or before it. */
static void end_value(qw_parser *p, bool before)
{
    parse_slice *slice = p->field == FIELD_NAME ? &p->name : &p->arguments;
    *slice = (parse_slice){.at = p->mark, .n = p->held.n - before - p->mark, .set = true};
    p->in_value = false;
}

static qw_status json_step(qw_parser *p, char c)
{
    qw_json_push was = p->json;
    QW_TRY(qw_parse_hold(p, c));
    if (!qw_json_push_byte(&p->json, c) || p->held.n >= QW_PARSE_HELD_MAX) return qw_parse_no_call(p, 1);
    bool outer = was.depth == 1;
    if (p->in_value && p->json.depth <= 1 && (p->json.state == QW_JSON_AFTER || p->json.state == QW_JSON_DONE ||
                                              p->json.state == QW_JSON_KEY))
        end_value(p, is_number(was.state));
    if (p->json.state == QW_JSON_DONE) return whole_object(p);
    if (outer && (was.state == QW_JSON_KEY || was.state == QW_JSON_FIRST_KEY) && c == '"') {
        p->mark = p->held.n - 1;
    } else if (outer && was.state == QW_JSON_STRING && p->json.state == QW_JSON_COLON) {
        if (!take_key(p)) return qw_parse_no_call(p, 1);
    } else if (outer && was.state == QW_JSON_VALUE && !qw_parse_is_space(c)) {
        p->mark = p->held.n - 1;
        p->in_value = true;
        if (p->field == FIELD_NAME && c != '"') return qw_parse_no_call(p, 1);
        if (p->field == FIELD_ARGUMENTS && p->name.set && (c == '{' || c == '[')) return begin_arguments(p, c);
    }
    return QW_OK;
}

/* Control characters inside a string are no JSON, but models write them: they are escaped. */
static qw_status arguments_step(qw_parser *p, char c)
{
    qw_text raw = {&c, 1};
    if (p->json.state == QW_JSON_STRING && (unsigned char)c < 0x20) {
        char text[8];
        qw_buf escaped;
        qw_buf_init(&escaped, sizeof text, "a character");
        qw_status status = qw_parse_escape(raw, &escaped, p->err);
        if (status == QW_OK)
            status = qw_parse_emit(p, QW_PARSE_ARGUMENTS, (qw_text){qw_buf_str(&escaped), escaped.n}, raw);
        qw_buf_free(&escaped);
        return status;
    }
    if (!qw_json_push_byte(&p->json, c)) {
        QW_TRY(qw_parse_hold(p, c));
        return qw_parse_broken(p, 1, broken_json);
    }
    QW_TRY(qw_parse_emit(p, QW_PARSE_ARGUMENTS, raw, raw));
    if (p->json.depth == 1) p->state = PARSE_JSON_TAIL;
    return QW_OK;
}

/* The object has to end after its arguments. */
static qw_status tail_step(qw_parser *p, char c)
{
    QW_TRY(qw_parse_hold(p, c));
    if (c != '}') return qw_parse_is_space(c) && p->held.n <= PARSE_SPACE_MAX ? QW_OK : end_before_text(p);
    QW_TRY(qw_parse_emit(p, QW_PARSE_ARGUMENTS, (qw_text){0}, qw_parse_held(p)));
    qw_buf_clear(&p->held);
    p->state = PARSE_CLOSE;
    return QW_OK;
}

/* ---- the end of the block --------------------------------------------------------------------- */

static qw_status close_step(qw_parser *p, char c)
{
    if (!p->in_tag && c == '{' && p->json_form) { /* another call in the same block */
        QW_TRY(qw_parse_end_call(p, true, qw_parse_held(p)));
        qw_buf_clear(&p->held);
        QW_TRY(qw_parse_hold(p, c));
        begin_object(p);
        return QW_OK;
    }
    QW_TRY(qw_parse_hold(p, c));
    if (!p->in_tag && c == '<') {
        p->in_tag = true;
        p->tag = p->held.n - 1;
        return QW_OK;
    }
    if (!p->in_tag) return qw_parse_is_space(c) && p->held.n <= PARSE_SPACE_MAX ? QW_OK : end_before_text(p);
    parse_tag tag = qw_parse_match(p, p->json_form ? TAG_CALL_END : TAG_CALL_END | TAG_FUNCTION);
    if (tag == TAG_PART) return QW_OK;
    if (tag == TAG_NONE) return end_before_text(p);
    if (tag == TAG_CALL_END) {
        QW_TRY(qw_parse_end_call(p, true, qw_parse_held(p)));
        qw_buf_clear(&p->held);
        return QW_OK;
    }
    QW_TRY(qw_parse_end_call(p, true, (qw_text){qw_buf_str(&p->held), p->tag}));
    qw_buf_clear(&p->held);
    QW_TRY(qw_buf_add_str(&p->held, "<function=", p->err));
    p->mark = p->held.n;
    p->state = PARSE_NAME;
    return QW_OK;
}

qw_status qw_parse_call_step(qw_parser *p, char c)
{
    switch (p->state) {
    case PARSE_OPEN: return open_step(p, c);
    case PARSE_JSON: return json_step(p, c);
    case PARSE_ARGUMENTS: return arguments_step(p, c);
    case PARSE_JSON_TAIL: return tail_step(p, c);
    default: return close_step(p, c);
    }
}

/* The answer ends inside a call. */
qw_status qw_parse_call_finish(qw_parser *p)
{
    if (p->state == PARSE_OPEN || p->state == PARSE_JSON) return qw_parse_no_call(p, 0);
    bool complete = p->state != PARSE_ARGUMENTS;
    QW_TRY(qw_parse_end_call(p, complete, qw_parse_held(p)));
    qw_buf_clear(&p->held);
    return complete ? QW_OK : qw_parse_warn(p, "the answer ended inside a tool call");
}
