/* parse_value.c: the types of parameters, and texts as JSON values. See parse_private.h. */
#include "text/json_text.h"
#include "text/json_view.h"
#include "text/parse_private.h"

enum { SCHEMA_DEPTH_MAX = 8 };

/* ---- the request's tools ---------------------------------------------------------------------- */

qw_status qw_parse_escape(qw_text s, qw_buf *out, qw_err *err)
{
    static const char named[] = "\b\f\n\r\t\"\\", letters[] = "bfnrt\"\\";
    size_t done = 0;
    for (size_t i = 0; i < s.n; i++) {
        unsigned char c = (unsigned char)s.s[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        const char *at = c ? strchr(named, c) : NULL;
        QW_TRY(qw_buf_add(out, s.s + done, i - done, err));
        QW_TRY(at ? qw_buf_printf(out, err, "\\%c", letters[at - named]) : qw_buf_printf(out, err, "\\u%04x", c));
        done = i + 1;
    }
    return qw_buf_add(out, s.s + done, s.n - done, err);
}

/* Is this JSON string the text? Names are short; what does not fit the buffer is none of them. */
static bool is_string(qw_text json, qw_text text)
{
    qw_buf quoted;
    qw_buf_init(&quoted, QW_PARSE_NAME_MAX * 6, "a name");
    bool same = qw_json_first(json) == '"' && qw_parse_escape(text, &quoted, NULL) == QW_OK && quoted.n + 2 == json.n &&
                memcmp(json.s + 1, qw_buf_str(&quoted), quoted.n) == 0;
    qw_buf_free(&quoted);
    return same;
}

qw_text qw_parse_find_tool(const qw_parser *p, qw_text name)
{
    const char *s = qw_buf_str(&p->tools);
    for (size_t i = 0; i < p->tools.n;) { /* the text of one holds no line break */
        const char *begin = s + i + 1, *end = memchr(begin, '\n', p->tools.n - i - 1);
        qw_text tool = {begin, end ? (size_t)(end - begin) : p->tools.n - i - 1};
        qw_text function = qw_json_member(tool, "function");
        if (function.s == NULL) function = tool;
        if (is_string(qw_json_member(function, "name"), name)) return function;
        i += tool.n + 1;
    }
    return (qw_text){0};
}

/* ---- types ------------------------------------------------------------------------------------ */

static int type_named(qw_text json)
{
    static const struct {
        const char *name;
        int type;
    } names[] = {{"string", TYPE_STRING}, {"number", TYPE_NUMBER}, {"integer", TYPE_NUMBER}, {"boolean", TYPE_BOOL},
                 {"object", TYPE_OBJECT}, {"array", TYPE_ARRAY},   {"null", TYPE_NULL}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (is_string(json, (qw_text){names[i].name, strlen(names[i].name)})) return names[i].type;
    return TYPE_ANY;
}

static int type_of_value(qw_text json)
{
    switch (qw_json_first(json)) {
    case '{': return TYPE_OBJECT;
    case '[': return TYPE_ARRAY;
    case '"': return TYPE_STRING;
    case 't':
    case 'f': return TYPE_BOOL;
    case 'n': return TYPE_NULL;
    default: return TYPE_NUMBER;
    }
}

static int types_of_schema(qw_text schema, int depth);

/* All types of the elements of an array: names of types, values, or schemas. */
static int types_of_all(qw_text array, int what, int depth)
{
    int types = 0;
    qw_text key, value;
    if (qw_json_first(array) != '[') return 0;
    for (size_t pos = 0; qw_json_next(array, &pos, &key, &value);)
        types |= what == 't'   ? type_named(value)
                 : what == 'v' ? type_of_value(value)
                               : types_of_schema(value, depth + 1);
    return types;
}

/* By its type, else by its enum, else by its alternatives; a schema that says nothing allows anything. */
static int types_of_schema(qw_text schema, int depth)
{
    static const char *const alternatives[] = {"anyOf", "oneOf", "allOf"};
    qw_text type = qw_json_member(schema, "type");
    int types = qw_json_first(type) == '"' ? type_named(type) : types_of_all(type, 't', depth);
    if (!types) types = types_of_all(qw_json_member(schema, "enum"), 'v', depth);
    for (int i = 0; !types && i < 3 && depth < SCHEMA_DEPTH_MAX; i++)
        types = types_of_all(qw_json_member(schema, alternatives[i]), 's', depth);
    return types ? types : TYPE_ANY;
}

int qw_parse_types_of(qw_text function, qw_text key)
{
    qw_text properties = qw_json_member(qw_json_member(function, "parameters"), "properties"), name, schema;
    if (qw_json_first(properties) != '{') return TYPE_STRING;
    for (size_t pos = 0; qw_json_next(properties, &pos, &name, &schema);)
        if (is_string(name, key)) return types_of_schema(schema, 0);
    return TYPE_STRING;
}

/* ---- values ----------------------------------------------------------------------------------- */

/* White space off both ends; True, False and None, which some templates show the model, as JSON's words. */
static qw_text as_json(qw_text s)
{
    static const char *const words[][2] = {{"True", "true"}, {"False", "false"}, {"None", "null"}};
    for (; s.n > 0 && qw_parse_is_space(s.s[0]); s.n--) s.s++;
    while (s.n > 0 && qw_parse_is_space(s.s[s.n - 1])) s.n--;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (s.n == strlen(words[i][0]) && memcmp(s.s, words[i][0], s.n) == 0)
            return (qw_text){words[i][1], strlen(words[i][1])};
    return s;
}

static qw_status is_json(qw_text s, bool *is, qw_err *err)
{
    qw_buf ignored;
    qw_err why;
    qw_buf_init(&ignored, 8 * QW_PARSE_HELD_MAX, "a value");
    qw_status status = qw_json_rewrite(s, &ignored, &why);
    qw_buf_free(&ignored);
    *is = status == QW_OK;
    return status == QW_E_MEMORY ? qw_fail(err, status, "%s", why.text) : QW_OK;
}

qw_status qw_parse_convert(int types, qw_text value, qw_buf *out, bool *fits, qw_err *err)
{
    qw_text s = as_json(value);
    bool is = false;
    *fits = true;
    /* Strings stand without quotes: a text in quotes is no JSON string but has quotes. */
    if (s.n > 0 && s.s[0] != '"' && (types & type_of_value(s))) QW_TRY(is_json(s, &is, err));
    if (is) return qw_buf_add(out, s.s, s.n, err);
    *fits = (types & TYPE_STRING) != 0;
    QW_TRY(qw_buf_add(out, "\"", 1, err));
    QW_TRY(qw_parse_escape(value, out, err));
    return qw_buf_add(out, "\"", 1, err);
}
