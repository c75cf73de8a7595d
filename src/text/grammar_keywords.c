/* grammar_keywords.c: reading a schema: its keywords, its references, and what can be seen of it without compiling.
 *
 * A keyword that is not in the table is refused by its name. Errors say where: the JSON pointer of a schema is found by
 * walking the document to its place. Owner: the thread that compiles.
 */
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "text/grammar_schema.h"
#include "text/json_text.h"
#include "text/json_view.h"

/* The first KW_COUNT rows are in the order of schema_keyword. */
static const struct {
    const char *name;
    schema_keyword keyword;
} keywords[] = {
    {"type", KW_TYPE}, {"enum", KW_ENUM}, {"const", KW_CONST}, {"anyOf", KW_ANY_OF}, {"oneOf", KW_ONE_OF},
    {"allOf", KW_ALL_OF}, {"$ref", KW_REF}, {"minimum", KW_MINIMUM}, {"maximum", KW_MAXIMUM},
    {"exclusiveMinimum", KW_EXCLUSIVE_MINIMUM}, {"exclusiveMaximum", KW_EXCLUSIVE_MAXIMUM},
    {"multipleOf", KW_MULTIPLE_OF}, {"minLength", KW_MIN_LENGTH}, {"maxLength", KW_MAX_LENGTH},
    {"pattern", KW_PATTERN}, {"format", KW_FORMAT}, {"items", KW_ITEMS}, {"prefixItems", KW_PREFIX_ITEMS},
    {"minItems", KW_MIN_ITEMS}, {"maxItems", KW_MAX_ITEMS}, {"uniqueItems", KW_UNIQUE_ITEMS},
    {"properties", KW_PROPERTIES}, {"required", KW_REQUIRED}, {"additionalProperties", KW_ADDITIONAL},
    {"patternProperties", KW_PATTERN_PROPERTIES}, {"minProperties", KW_MIN_PROPERTIES},
    {"maxProperties", KW_MAX_PROPERTIES},
    {"title", KW_ANNOTATION}, {"description", KW_ANNOTATION}, {"default", KW_ANNOTATION}, {"examples", KW_ANNOTATION},
    {"deprecated", KW_ANNOTATION}, {"readOnly", KW_ANNOTATION}, {"writeOnly", KW_ANNOTATION},
    {"$schema", KW_ANNOTATION}, {"$comment", KW_ANNOTATION}, {"$defs", KW_ANNOTATION}, {"definitions", KW_ANNOTATION},
    {"contentEncoding", KW_ANNOTATION}, {"contentMediaType", KW_ANNOTATION}, {"contentSchema", KW_ANNOTATION},
};

/* ---- places ----------------------------------------------------------------------------------- */

/* JSON pointer of a slice of the document: from the root to the child that holds it, until it is the child. */
static void pointer_of(const schema_compiler *c, qw_text at, char *out, size_t size)
{
    qw_text in = c->root, key, value;
    size_t used = (size_t)snprintf(out, size, "#");
    while (in.s != at.s && used < size) {
        bool found = false;
        uint32_t i = 0;
        for (size_t pos = 0; !found && qw_json_next(in, &pos, &key, &value); i++)
            found = value.s <= at.s && at.s < value.s + value.n;
        if (!found) return;
        in = value;
        if (key.s)
            used += (size_t)snprintf(out + used, size - used, "/%.*s", key.n < 66 ? (int)key.n - 2 : 64, key.s + 1);
        else used += (size_t)snprintf(out + used, size - used, "/%u", i - 1);
    }
}

void schema_fail(schema_compiler *c, qw_status status, qw_text at, const char *fmt, ...)
{
    char text[QW_ERR_TEXT_MAX], place[256];
    va_list ap;
    if (!grammar_ok(c->b)) return;
    va_start(ap, fmt);
    if (vsnprintf(text, sizeof text, fmt, ap) < 0) text[0] = '\0';
    va_end(ap);
    pointer_of(c, at, place, sizeof place);
    grammar_fail(c->b, status, "%s %s: %s", c->what, place, text);
}

/* ---- keywords --------------------------------------------------------------------------------- */

static bool is_key(qw_text quoted, const char *name)
{
    size_t n = strlen(name);
    return quoted.n == n + 2 && memcmp(quoted.s + 1, name, n) == 0;
}

static void read_keyword(schema_compiler *c, qw_text s, schema_node *node, qw_text key, qw_text value)
{
    for (size_t i = 0; i < sizeof keywords / sizeof *keywords; i++) {
        if (!is_key(key, keywords[i].name)) continue;
        if (keywords[i].keyword == KW_ANNOTATION) return;
        node->kw[keywords[i].keyword] = value;
        return;
    }
    if (is_key(key, "$id") && s.s == c->root.s) return; /* a name for the whole document */
    schema_fail(c, QW_E_UNSUPPORTED, s, "the keyword %.*s is not supported", key.n < 80 ? (int)key.n : 80, key.s);
}

bool schema_read(schema_compiler *c, qw_text s, schema_node *node)
{
    qw_text key, value;
    *node = (schema_node){.item.s = s, .never = qw_json_first(s) == 'f'};
    if (!grammar_work(c->b, s.n)) return false;
    if (qw_json_first(s) == 't' || node->never) return true;
    if (qw_json_first(s) != '{') {
        schema_fail(c, QW_E_ARG, s, "a schema is an object, true or false");
        return false;
    }
    for (size_t pos = 0; grammar_ok(c->b) && qw_json_next(s, &pos, &key, &value);) read_keyword(c, s, node, key, value);
    return grammar_ok(c->b);
}

qw_text schema_member(qw_text object, qw_text quoted)
{
    size_t pos = 0;
    qw_text key, value;
    if (qw_json_first(object) != '{') return (qw_text){0};
    while (qw_json_next(object, &pos, &key, &value))
        if (key.n == quoted.n && memcmp(key.s, quoted.s, key.n) == 0) return value;
    return (qw_text){0};
}

static unsigned type_named(qw_text quoted)
{
    static const struct {
        const char *name;
        unsigned type;
    } names[] = {{"null", TYPE_NULL}, {"boolean", TYPE_BOOL}, {"integer", TYPE_INTEGER},
                 {"number", TYPE_NUMBER | TYPE_INTEGER}, {"string", TYPE_STRING}, {"array", TYPE_ARRAY},
                 {"object", TYPE_OBJECT}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (is_key(quoted, names[i].name)) return names[i].type;
    return 0;
}

unsigned schema_types(schema_compiler *c, const schema_node *node)
{
    qw_text type = node->kw[KW_TYPE], key, value;
    unsigned types = 0;
    bool ok = true;
    if (!type.s) return TYPE_EVERY;
    if (qw_json_first(type) == '"') types = type_named(type);
    for (size_t pos = 0; qw_json_first(type) == '[' && qw_json_next(type, &pos, &key, &value);) {
        ok &= type_named(value) != 0;
        types |= type_named(value);
    }
    if (!ok || types == 0) schema_fail(c, QW_E_ARG, node->item.s, "type names no type of JSON");
    return types;
}

unsigned schema_type_of_value(qw_text value)
{
    switch (qw_json_first(value)) {
    case '{': return TYPE_OBJECT;
    case '[': return TYPE_ARRAY;
    case '"': return TYPE_STRING;
    case 't':
    case 'f': return TYPE_BOOL;
    case 'n': return TYPE_NULL;
    default: return grammar_number_is_integer(value) ? TYPE_INTEGER | TYPE_NUMBER : TYPE_NUMBER;
    }
}

uint32_t schema_count(schema_compiler *c, const schema_node *node, schema_keyword k)
{
    qw_text v = node->kw[k];
    uint32_t value = 0;
    bool number = qw_json_first(v) == '\0' && v.s[v.n - 1] >= '0' && v.s[v.n - 1] <= '9';
    if (!number || v.s[0] == '-' || !grammar_number_is_integer(v)) {
        schema_fail(c, QW_E_ARG, node->item.s, "%s is no count", keywords[k].name);
        return 0;
    }
    if (grammar_number_compare(v, (qw_text){"65534", 5}) >= 0) return GRAMMAR_COUNT_MAX;
    for (size_t i = 0; i < v.n && v.s[i] >= '0' && v.s[i] <= '9'; i++) value = value * 10 + (uint32_t)(v.s[i] - '0');
    return value;
}

/* ---- references ------------------------------------------------------------------------------- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One step of a pointer, out of %XX and ~0 ~1, as a JSON string in out. */
static qw_status step_name(qw_text step, qw_buf *out, qw_err *err)
{
    qw_buf name;
    qw_buf_init(&name, QW_SCHEMA_BYTES_MAX, "a $ref");
    qw_status status = QW_OK;
    for (size_t i = 0; i < step.n && status == QW_OK; i++) {
        char c = step.s[i];
        if (c == '%' && i + 2 < step.n && hex_digit(step.s[i + 1]) >= 0 && hex_digit(step.s[i + 2]) >= 0) {
            c = (char)(hex_digit(step.s[i + 1]) << 4 | hex_digit(step.s[i + 2]));
            i += 2;
        } else if (c == '~' && i + 1 < step.n && (step.s[i + 1] == '0' || step.s[i + 1] == '1')) {
            c = step.s[++i] == '0' ? '~' : '/';
        }
        status = qw_buf_add(&name, &c, 1, err);
    }
    qw_buf_clear(out);
    if (status == QW_OK) status = qw_json_write_string((qw_text){qw_buf_str(&name), name.n}, out, err);
    qw_buf_free(&name);
    return status;
}

/* The child of an object or array that a step leads to. */
static qw_text child(qw_text in, qw_text step, qw_buf *quoted)
{
    qw_text key, value;
    if (qw_json_first(in) == '[') {
        char *end;
        unsigned long index = step.n > 0 && step.n < 7 ? strtoul(step.s, &end, 10) : ULONG_MAX, i = 0;
        if (index == ULONG_MAX || end != step.s + step.n) return (qw_text){0};
        for (size_t pos = 0; qw_json_next(in, &pos, &key, &value); i++)
            if (i == index) return value;
        return (qw_text){0};
    }
    if (step_name(step, quoted, NULL) != QW_OK) return (qw_text){0};
    return schema_member(in, (qw_text){qw_buf_str(quoted), quoted->n});
}

qw_text schema_resolve(schema_compiler *c, qw_text ref, qw_text at)
{
    qw_buf pointer, quoted;
    qw_text in = c->root;
    qw_buf_init(&pointer, QW_SCHEMA_BYTES_MAX, "a $ref");
    qw_buf_init(&quoted, QW_SCHEMA_BYTES_MAX, "a $ref");
    if (qw_json_first(ref) != '"' || qw_json_unquote(ref, &pointer, NULL) != QW_OK) {
        schema_fail(c, QW_E_ARG, at, "$ref is no text");
        in.s = NULL;
    } else if (pointer.n == 0 || pointer.data[0] != '#' || (pointer.n > 1 && pointer.data[1] != '/')) {
        schema_fail(c, QW_E_UNSUPPORTED, at, "$ref %.*s: only places of the same schema (#/...) can be had",
                    ref.n < 100 ? (int)ref.n : 100, ref.s);
        in.s = NULL;
    }
    for (size_t i = 1; in.s && i < pointer.n && grammar_work(c->b, in.n);) {
        const char *begin = pointer.data + i + 1, *end = memchr(begin, '/', pointer.n - i - 1);
        size_t n = end ? (size_t)(end - begin) : pointer.n - i - 1;
        in = child(in, (qw_text){begin, n}, &quoted);
        i += n + 1;
        if (!in.s)
            schema_fail(c, QW_E_ARG, at, "$ref %.*s leads nowhere", ref.n < 100 ? (int)ref.n : 100, ref.s);
    }
    qw_buf_free(&pointer);
    qw_buf_free(&quoted);
    return grammar_ok(c->b) ? in : (qw_text){0};
}

/* ---- what excludes what ----------------------------------------------------------------------- */

bool schema_same_value(qw_text x, qw_text y)
{
    if (qw_json_first(x) == '\0' && qw_json_first(y) == '\0') return grammar_number_compare(x, y) == 0;
    return x.n == y.n && memcmp(x.s, y.s, x.n) == 0;
}

/* Keywords of a schema, through $ref where it stands alone. */
static bool look_at(schema_compiler *c, qw_text s, schema_node *node)
{
    for (int i = 0; i < 16; i++) {
        if (!schema_read(c, s, node)) return false;
        if (!node->kw[KW_REF].s) return true;
        s = schema_resolve(c, node->kw[KW_REF], s);
        if (!s.s) return false;
    }
    return true;
}

/* The values that a schema allows, when it names them; else false. */
static bool values_of(const schema_node *node, qw_text *list, bool *one)
{
    *one = node->kw[KW_CONST].s != NULL;
    *list = *one ? node->kw[KW_CONST] : node->kw[KW_ENUM];
    return list->s != NULL;
}

static unsigned types_of(schema_compiler *c, const schema_node *node)
{
    qw_text list, key, value;
    bool one;
    unsigned types = node->never ? 0 : schema_types(c, node), named = 0;
    if (!values_of(node, &list, &one)) return types;
    if (one) return types & schema_type_of_value(list);
    for (size_t pos = 0; qw_json_next(list, &pos, &key, &value);) named |= schema_type_of_value(value);
    return types & named;
}

static bool in_list(qw_text value, qw_text list, bool one)
{
    qw_text key, other;
    if (one) return schema_same_value(value, list);
    for (size_t pos = 0; qw_json_next(list, &pos, &key, &other);)
        if (schema_same_value(value, other)) return true;
    return false;
}

static bool is_container(qw_text value)
{
    return qw_json_first(value) == '[' || qw_json_first(value) == '{';
}

/* Both name their values, and none is named by both. */
static bool values_differ(schema_compiler *c, const schema_node *x, const schema_node *y)
{
    qw_text a, b, key, value;
    bool a_one, b_one;
    if (!values_of(x, &a, &a_one) || !values_of(y, &b, &b_one)) return false;
    /* Arrays and objects may be the same and written otherwise. */
    if (!a_one && qw_json_first(a) != '[') return false;
    if (a_one) return !is_container(a) && !in_list(a, b, b_one);
    for (size_t pos = 0; qw_json_next(a, &pos, &key, &value);)
        if (!grammar_work(c->b, b.n) || is_container(value) || in_list(value, b, b_one)) return false;
    return true;
}

static bool requires(const schema_node *node, qw_text name)
{
    qw_text list = node->kw[KW_REQUIRED], key, value;
    for (size_t pos = 0; qw_json_first(list) == '[' && qw_json_next(list, &pos, &key, &value);)
        if (value.n == name.n && memcmp(value.s, name.s, name.n) == 0) return true;
    return false;
}

/* Both are objects, and a property that both require differs. */
static bool tags_differ(schema_compiler *c, const schema_node *x, const schema_node *y)
{
    qw_text key, value;
    if (qw_json_first(x->kw[KW_PROPERTIES]) != '{') return false;
    for (size_t pos = 0; grammar_ok(c->b) && qw_json_next(x->kw[KW_PROPERTIES], &pos, &key, &value);) {
        schema_node a, b;
        grammar_work(c->b, y->item.s.n);
        qw_text other = y->kw[KW_PROPERTIES].s ? schema_member(y->kw[KW_PROPERTIES], key) : (qw_text){0};
        if (!other.s || !requires(x, key) || !requires(y, key)) continue;
        if (look_at(c, value, &a) && look_at(c, other, &b) && values_differ(c, &a, &b)) return true;
    }
    return false;
}

bool schema_disjoint(schema_compiler *c, qw_text x, qw_text y)
{
    schema_node a, b;
    if (!look_at(c, x, &a) || !look_at(c, y, &b)) return false;
    unsigned types = types_of(c, &a) & types_of(c, &b);
    if (types == 0 || values_differ(c, &a, &b)) return true;
    return types == TYPE_OBJECT && tags_differ(c, &a, &b);
}
