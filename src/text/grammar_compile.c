/* grammar_compile.c: the ways into the grammar compiler; tool calls among them. See grammar.h.
 *
 * Owner: the thread that compiles; what comes out is immutable.
 */
#include <stdio.h>

#include "base/utf8.h"
#include "text/grammar_private.h"
#include "text/json_text.h"
#include "text/json_view.h"

/* Links what was built and frees the build. */
static qw_status finish(grammar_build *b, uint32_t root, const qw_grammar_options *options, qw_grammar **out)
{
    *out = grammar_link(b, root, options);
    qw_status status = b->status;
    grammar_build_free(b);
    return status;
}

/* A rule for an expression. */
static uint32_t rule_of(grammar_build *b, uint32_t ast)
{
    uint32_t rule = grammar_rule_new(b, RULE_AST);
    if (grammar_ok(b)) b->rules[rule].ast = ast;
    return rule;
}

static void check_size(grammar_build *b, size_t n, const char *what)
{
    if (n > QW_SCHEMA_BYTES_MAX)
        grammar_fail(b, QW_E_LIMIT, "%s has %zu bytes; the limit is %d", what, n, QW_SCHEMA_BYTES_MAX);
}

qw_status qw_grammar_schema(qw_text schema, const qw_grammar_options *options, qw_grammar **out, qw_err *err)
{
    grammar_build b;
    grammar_build_begin(&b, options, err);
    uint32_t root = grammar_schema_rule(&b, schema, "schema");
    return finish(&b, root, options, out);
}

qw_status qw_grammar_json_object(const qw_grammar_options *options, qw_grammar **out, qw_err *err)
{
    static const char schema[] = "{\"type\":\"object\"}";
    return qw_grammar_schema((qw_text){schema, sizeof schema - 1}, options, out, err);
}

qw_status qw_grammar_regex(qw_text pattern, const qw_grammar_options *options, qw_grammar **out, qw_err *err)
{
    grammar_build b;
    grammar_build_begin(&b, options, err);
    check_size(&b, pattern.n, "the regular expression");
    uint32_t dfa = grammar_dfa_one(&b, grammar_regex_ast(&b, pattern, true, "the regular expression"), FORM_RAW);
    uint32_t root = rule_of(&b, ast_new(&b, AST_DFA, dfa, 0));
    return finish(&b, root, options, out);
}

qw_status qw_grammar_choice(const qw_text *choices, size_t n, const qw_grammar_options *options, qw_grammar **out,
                            qw_err *err)
{
    grammar_build b;
    size_t bytes = 0;
    grammar_build_begin(&b, options, err);
    uint32_t alt = ast_new(&b, AST_ALT, 0, 0);
    for (size_t i = 0; i < n && grammar_ok(&b); i++) {
        bytes += choices[i].n;
        check_size(&b, bytes, "the list of choices");
        if (choices[i].n == 0 || !qw_utf8_valid(choices[i].s, choices[i].n))
            grammar_fail(&b, QW_E_ARG, "choice %zu is %s", i, choices[i].n ? "not UTF-8" : "empty");
        ast_add(&b, alt, ast_bytes(&b, choices[i].s, choices[i].n));
    }
    if (n == 0) grammar_fail(&b, QW_E_ARG, "there are no choices");
    uint32_t root = rule_of(&b, alt);
    return finish(&b, root, options, out);
}

qw_status qw_grammar_ebnf(qw_text source, const qw_grammar_options *options, qw_grammar **out, qw_err *err)
{
    grammar_build b;
    grammar_build_begin(&b, options, err);
    check_size(&b, source.n, "the grammar");
    uint32_t root = grammar_ebnf_rules(&b, source);
    return finish(&b, root, options, out);
}

/* ---- tool calls ------------------------------------------------------------------------------- */

/* A tag: its own token where the vocabulary has one, else its characters. */
static uint32_t tag_ast(grammar_build *b, const qw_tokenizer *t, const char *tag)
{
    int32_t id = qw_tokenizer_find(t, tag);
    if (id >= 0 && qw_tokenizer_is_added(t, id)) return ast_new(b, AST_TOKEN, (uint32_t)id, 0);
    return ast_text(b, tag);
}

/* Text that holds no tag of a call. */
static uint32_t text_ast(grammar_build *b)
{
    uint32_t any = grammar_dfa_one(b, ast_repeat(b, ast_any(b), 0, UINT32_MAX), FORM_RAW);
    uint32_t tag = ast_cat(b, ast_repeat(b, ast_any(b), 0, UINT32_MAX), ast_text(b, "<tool_call>"));
    tag = ast_cat(b, tag, ast_repeat(b, ast_any(b), 0, UINT32_MAX));
    return ast_new(b, AST_DFA, grammar_dfa_without(b, any, grammar_dfa_one(b, tag, FORM_RAW)), 0);
}

/* What stands between the tags, for one function. name: JSON text. */
static uint32_t call_ast(grammar_build *b, const qw_grammar_calls *calls, qw_text name, qw_text schema, const char *what)
{
    uint32_t cat = ast_new(b, AST_CAT, 0, 0);
    if (!calls->xml_calls) {
        ast_add(b, cat, ast_text(b, "\n{\"name\": "));
        ast_add(b, cat, ast_bytes(b, name.s, name.n));
        ast_add(b, cat, ast_text(b, ", \"arguments\": "));
        ast_add(b, cat, ast_call(b, grammar_schema_rule(b, schema, what)));
        ast_add(b, cat, ast_text(b, "}\n"));
        return cat;
    }
    ast_add(b, cat, ast_text(b, "\n<function="));
    ast_add(b, cat, ast_bytes(b, name.s + 1, name.n - 2));
    ast_add(b, cat, ast_text(b, ">\n"));
    ast_add(b, cat, grammar_schema_parameters(b, schema, what));
    ast_add(b, cat, ast_text(b, "</function>\n"));
    return cat;
}

static bool is_text(qw_text quoted, qw_text text)
{
    return quoted.n == text.n + 2 && memcmp(quoted.s + 1, text.s, text.n) == 0;
}

/* Adds the calls of one tool to alt. False: it is not the one that is asked for. */
static bool add_tool(grammar_build *b, const qw_grammar_calls *calls, qw_text tool, size_t i, uint32_t alt)
{
    static const char none[] = "{\"type\":\"object\",\"properties\":{}}";
    char what[48];
    qw_text function = qw_json_member(tool, "function");
    if (!function.s) function = tool;
    qw_text name = qw_json_member(function, "name"), schema = qw_json_member(function, "parameters");
    if (qw_json_first(name) != '"' || name.n < 3 || memchr(name.s, '\\', name.n) || memchr(name.s, '>', name.n)) {
        grammar_fail(b, QW_E_ARG, "tools[%zu]: a function needs a name, without quotes, > and backslashes", i);
        return false;
    }
    if (calls->only.n > 0 && !is_text(name, calls->only)) return false;
    snprintf(what, sizeof what, "tools[%zu].parameters", i);
    if (!schema.s) schema = (qw_text){none, sizeof none - 1}; /* a function without parameters */
    ast_add(b, alt, call_ast(b, calls, name, schema, what));
    return true;
}

/* The calls of all tools, one of which is made. */
static uint32_t tools_ast(grammar_build *b, const qw_grammar_calls *calls, qw_text list)
{
    uint32_t alt = ast_new(b, AST_ALT, 0, 0);
    size_t n = 0, found = 0;
    for (size_t i = 0; i < list.n && grammar_ok(b); n++) { /* the text of one holds no line break */
        const char *begin = list.s + i + 1, *end = memchr(begin, '\n', list.n - i - 1);
        qw_text tool = {begin, end ? (size_t)(end - begin) : list.n - i - 1};
        if (n == QW_GRAMMAR_TOOLS_MAX) grammar_fail(b, QW_E_LIMIT, "more than %d tools", QW_GRAMMAR_TOOLS_MAX);
        found += add_tool(b, calls, tool, n, alt);
        i += tool.n + 1;
    }
    if (n == 0) grammar_fail(b, QW_E_ARG, "there are no tools to call");
    if (found == 0)
        grammar_fail(b, QW_E_ARG, "no tool is called \"%.*s\"", calls->only.n < 80 ? (int)calls->only.n : 80,
                     calls->only.s);
    return alt;
}

/* A call between its tags. inner: the rule of what stands there. */
static uint32_t block_ast(grammar_build *b, const qw_grammar_calls *calls, uint32_t inner)
{
    uint32_t block = ast_new(b, AST_CAT, 0, 0);
    ast_add(b, block, tag_ast(b, calls->tokenizer, "<tool_call>"));
    ast_add(b, block, ast_call(b, inner));
    ast_add(b, block, tag_ast(b, calls->tokenizer, "</tool_call>"));
    return block;
}

static uint32_t answer_rule(grammar_build *b, const qw_grammar_calls *calls, qw_text list)
{
    uint32_t inner = rule_of(b, tools_ast(b, calls, list)), answer = block_ast(b, calls, inner);
    if (!calls->one) {
        uint32_t more = ast_cat(b, ast_text(b, "\n"), block_ast(b, calls, inner));
        answer = ast_cat(b, answer, ast_repeat(b, more, 0, QW_GRAMMAR_CALLS_MAX - 1));
    }
    if (!calls->required) answer = ast_cat(b, text_ast(b), ast_repeat(b, answer, 0, 1));
    return rule_of(b, answer);
}

qw_status qw_grammar_tools(const qw_grammar_calls *calls, const qw_grammar_options *options, qw_grammar **out,
                           qw_err *err)
{
    grammar_build b;
    qw_buf list;
    size_t n;
    uint32_t root = 0;
    grammar_build_begin(&b, options, err);
    qw_buf_init(&list, (size_t)QW_GRAMMAR_TOOLS_MAX * QW_SCHEMA_BYTES_MAX, "tools");
    if (grammar_ok(&b) && (b.status = qw_json_rewrite_list(calls->tools, "\n", &list, &n, err)) != QW_OK)
        qw_err_prefix(err, "tools");
    if (grammar_ok(&b)) root = answer_rule(&b, calls, (qw_text){qw_buf_str(&list), list.n});
    qw_buf_free(&list);
    return finish(&b, root, options, out);
}
