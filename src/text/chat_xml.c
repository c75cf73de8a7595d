/* chat_xml.c: tool definitions as nested tags, the way of Qwen3-Coder.
 *
 * Names of tags that come from a definition, and all values, are plain text: they are somebody's words. Source: the
 * template of Qwen3-Coder; values are written as Python's str() gives them.
 */
#include <string.h>

#include "text/chat_private.h"
#include "text/json_view.h"
#include "text/py_text.h"

enum { HANDLED_MAX = 5 };

qw_status qw_chat_plain_str(const chat_renderer *w, qw_text json, bool strip)
{
    qw_buf text;
    qw_buf_init(&text, QW_RENDERED_BYTES_MAX, "a tool's text");
    qw_status status = qw_py_str(json, &text, w->err);
    qw_text s = {qw_buf_str(&text), text.n};
    if (status == QW_OK) status = qw_chat_plain(w, strip ? qw_py_strip(s) : s);
    qw_buf_free(&text);
    return status;
}

/* "\n<TAG>VALUE</TAG>" for a tag of the format; nothing when the value is absent. */
static qw_status tag(const chat_renderer *w, const char *open, qw_text json, bool strip, const char *close)
{
    if (!json.s) return QW_OK;
    QW_TRY(qw_chat_markup(w, open));
    QW_TRY(qw_chat_plain_str(w, json, strip));
    return qw_chat_markup(w, close);
}

static bool is_handled(qw_text key, const char *const handled[HANDLED_MAX])
{
    for (int i = 0; i < HANDLED_MAX && handled[i]; i++)
        if (key.n == strlen(handled[i]) + 2 && memcmp(key.s + 1, handled[i], key.n - 2) == 0) return true;
    return false;
}

/* Every other member of an object, its key as the tag. */
static qw_status other_keys(const chat_renderer *w, qw_text object, const char *const handled[HANDLED_MAX])
{
    qw_text key, value;
    if (qw_json_first(object) != '{') return QW_OK;
    for (size_t pos = 0; qw_json_next(object, &pos, &key, &value);) {
        char kind = qw_json_first(value);
        bool json = kind == '{' || (kind == '[' && w->row->calls != CHAT_CALLS_XML_LISTS);
        if (is_handled(key, handled)) continue;
        QW_TRY(qw_chat_markup(w, "\n<"));
        QW_TRY(qw_chat_plain_str(w, key, false));
        QW_TRY(qw_chat_markup(w, ">"));
        QW_TRY(json ? qw_chat_plain(w, value) : qw_chat_plain_str(w, value, false));
        QW_TRY(qw_chat_markup(w, "</"));
        QW_TRY(qw_chat_plain_str(w, key, false));
        QW_TRY(qw_chat_markup(w, ">"));
    }
    return QW_OK;
}

static qw_status parameter(const chat_renderer *w, qw_text name, qw_text fields)
{
    static const char *const handled[HANDLED_MAX] = {"name", "type", "description"};
    QW_TRY(tag(w, "\n<parameter>\n<name>", name, false, "</name>"));
    QW_TRY(tag(w, "\n<type>", qw_json_member(fields, "type"), false, "</type>"));
    QW_TRY(tag(w, "\n<description>", qw_json_member(fields, "description"), true, "</description>"));
    QW_TRY(other_keys(w, fields, handled));
    return qw_chat_markup(w, "\n</parameter>");
}

qw_status qw_chat_tool_xml(const chat_renderer *w, qw_text tool)
{
    static const char *const of_parameters[HANDLED_MAX] = {"type", "properties"};
    static const char *const of_tool[HANDLED_MAX] = {"type", "name", "description", "parameters"};
    qw_text function = qw_json_member(tool, "function"), name, fields;
    if (function.s) tool = function;
    qw_text own_name = qw_json_member(tool, "name"), parameters = qw_json_member(tool, "parameters");
    QW_TRY(tag(w, "\n<function>\n<name>", own_name.s ? own_name : (qw_text){"\"\"", 2}, false, "</name>"));
    QW_TRY(tag(w, "\n<description>", qw_json_member(tool, "description"), true, "</description>"));
    QW_TRY(qw_chat_markup(w, "\n<parameters>"));
    qw_text properties = qw_json_member(parameters, "properties");
    if (qw_json_first(properties) == '{')
        for (size_t pos = 0; qw_json_next(properties, &pos, &name, &fields);) QW_TRY(parameter(w, name, fields));
    QW_TRY(other_keys(w, parameters, of_parameters));
    QW_TRY(qw_chat_markup(w, "\n</parameters>"));
    QW_TRY(other_keys(w, tool, of_tool));
    return qw_chat_markup(w, "\n</function>");
}
