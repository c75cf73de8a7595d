/* chat_tools.c: tool definitions in the system turn, and calls of earlier answers. See chat_private.h. */
#include <stdio.h>
#include <string.h>

#include "text/chat_private.h"
#include "text/json_text.h"
#include "text/json_view.h"

/* ---- definitions ------------------------------------------------------------------------------ */

qw_status qw_chat_tools_json(const chat_renderer *w, qw_text tools, qw_buf *json, size_t *n)
{
    *n = 0;
    if (tools.n == 0) return QW_OK;
    qw_status status = qw_json_rewrite_list(tools, "\n", json, n, w->err);
    if (status != QW_OK) return qw_chat_blame(w->err, status, "tools");
    if (*n > 0 && w->row->tools == CHAT_TOOLS_NONE)
        return qw_fail(w->err, QW_E_UNSUPPORTED, "this model's chat format (%s) has no tools", w->row->name);
    return QW_OK;
}

qw_status qw_chat_tools_text(const chat_renderer *w, qw_text json)
{
    QW_TRY(qw_chat_markup(w, w->row->tools_begin));
    if (w->row->tools == CHAT_TOOLS_JSON) {
        QW_TRY(qw_chat_plain(w, json));
    } else {
        for (size_t i = 0; i < json.n;) { /* the text of one holds no line break */
            const char *begin = json.s + i + 1, *end = memchr(begin, '\n', json.n - i - 1);
            size_t n = end ? (size_t)(end - begin) : json.n - i - 1;
            QW_TRY(qw_chat_tool_xml(w, (qw_text){begin, n}));
            i += n + 1;
        }
    }
    return qw_chat_markup(w, w->row->tools_end);
}

/* ---- calls ------------------------------------------------------------------------------------ */

static bool is_blank(qw_text s)
{
    size_t i = 0;
    while (i < s.n && s.s[i] && strchr(" \t\r\n", s.s[i])) i++;
    return i == s.n;
}

/* Arguments as the template's tojson writes them; see qw_chat_render. */
static qw_status render_json(const chat_renderer *w, qw_text arguments)
{
    qw_buf *text = &w->out->text;
    bool raw = w->row->calls == CHAT_CALLS_JSON_RAW;
    size_t begin = text->n;
    qw_err why;
    if (is_blank(arguments)) return qw_chat_plain(w, (qw_text){"{}", 2});
    qw_status status = qw_json_rewrite(arguments, text, &why);
    if (status == QW_E_FORMAT) {
        if (raw) return qw_chat_plain(w, arguments);
        status = qw_json_write_string(arguments, text, &why);
    } else if (status == QW_OK && raw && text->data[begin] == '"') {
        qw_buf words;
        qw_buf_init(&words, QW_RENDERED_BYTES_MAX, "arguments");
        status = qw_json_unquote((qw_text){text->data + begin, text->n - begin}, &words, &why);
        text->n = begin;
        if (status == QW_OK) status = qw_buf_add(text, qw_buf_str(&words), words.n, &why);
        qw_buf_free(&words);
    }
    if (status == QW_OK) return qw_chat_mark(w, QW_SEGMENT_PLAIN);
    return qw_fail(w->err, status, "%s", why.text);
}

static qw_status render_value(const chat_renderer *w, qw_text json)
{
    char kind = qw_json_first(json);
    bool as_json = w->row->calls == CHAT_CALLS_XML_JSON    ? kind != '"'
                   : w->row->calls == CHAT_CALLS_XML_LISTS ? kind == '{'
                                                           : kind == '{' || kind == '[';
    return as_json ? qw_chat_plain(w, json) : qw_chat_plain_str(w, json, false);
}

static qw_status render_parameter(const chat_renderer *w, qw_text key, qw_text value)
{
    QW_TRY(qw_chat_markup(w, "<parameter="));
    QW_TRY(qw_chat_plain_str(w, key, false));
    QW_TRY(qw_chat_markup(w, ">\n"));
    QW_TRY(render_value(w, value));
    return qw_chat_markup(w, "\n</parameter>\n");
}

/* A parameter for each member. The template raises on what is no object: nothing and null have no parameter here, any
 * other text is the parameter "arguments", as it is. */
static qw_status render_parameters(const chat_renderer *w, qw_text arguments)
{
    qw_buf json;
    qw_err why;
    qw_status status = QW_OK;
    if (is_blank(arguments)) return QW_OK;
    qw_buf_init(&json, QW_RENDERED_BYTES_MAX, "arguments");
    status = qw_json_rewrite(arguments, &json, &why);
    qw_text object = {qw_buf_str(&json), json.n}, key, value;
    if (status != QW_OK && status != QW_E_FORMAT) {
        status = qw_fail(w->err, status, "%s", why.text);
    } else if (status == QW_OK && qw_json_first(object) == '{') {
        for (size_t pos = 0; status == QW_OK && qw_json_next(object, &pos, &key, &value);)
            status = render_parameter(w, key, value);
    } else if (status == QW_OK && qw_json_first(object) == 'n') {
        status = QW_OK;
    } else {
        QW_TRY_GOTO(qw_chat_markup(w, "<parameter=arguments>\n"));
        QW_TRY_GOTO(qw_chat_plain(w, arguments));
        QW_TRY_GOTO(qw_chat_markup(w, "\n</parameter>\n"));
    }
fail:
    qw_buf_free(&json);
    return status;
}

static qw_status render_call(const chat_renderer *w, const qw_tool_call *call)
{
    if (!call->name || !*call->name) return qw_fail(w->err, QW_E_ARG, "the call has no name");
    bool xml = qw_chat_xml_calls(w->row);
    QW_TRY(qw_chat_markup(w, xml ? "<tool_call>\n<function=" : "<tool_call>\n{\"name\": \""));
    QW_TRY(qw_chat_plain(w, (qw_text){call->name, strlen(call->name)}));
    QW_TRY(qw_chat_markup(w, xml ? ">\n" : "\", \"arguments\": "));
    QW_TRY(xml ? render_parameters(w, call->arguments) : render_json(w, call->arguments));
    return qw_chat_markup(w, xml ? "</function>\n</tool_call>" : "}\n</tool_call>");
}

qw_status qw_chat_calls(const chat_renderer *w, size_t i, bool spoken)
{
    const qw_message *m = &w->messages[i];
    if (w->row->tools == CHAT_TOOLS_NONE)
        return qw_fail(w->err, QW_E_UNSUPPORTED,
                       "messages[%zu] has tool calls; this model's chat format (%s) has none", i, w->row->name);
    for (size_t k = 0; k < m->n_tool_calls; k++) {
        const char *gap = k > 0 ? "\n" : !spoken ? "" : qw_chat_xml_calls(w->row) ? "\n\n" : "\n";
        QW_TRY(qw_chat_markup(w, gap));
        qw_status status = render_call(w, &m->tool_calls[k]);
        if (status == QW_OK) continue;
        char where[64];
        snprintf(where, sizeof where, "messages[%zu].tool_calls[%zu]", i, k);
        return qw_chat_blame(w->err, status, where);
    }
    return QW_OK;
}
