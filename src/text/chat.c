/* chat.c: the table of chat formats, and the walk over a conversation's messages.
 *
 * One table row a template variant: what differs between them is data. The renderer walks the messages as
 * the template does and says of every byte whether it is the format's own (markup) or somebody's words
 * (plain). Any thread; no state. Source of texts and order: the templates that come with the models.
 */
#include "text/chat.h"

#include <string.h>

#include "text/chat_private.h"
#include "text/py_text.h"

/* ---- the table -------------------------------------------------------------------------------- */

#define JSON_BEGIN                                                                                           \
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"                       \
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
#define JSON_END(open, close)                                                                                \
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "    \
    "<tool_call></tool_call> XML tags:\n<tool_call>\n" open                                                  \
    "\"name\": <function-name>, \"arguments\": <args-json-object>" close "\n</tool_call>"
#define XML_BEGIN "You have access to the following functions:\n\n<tools>"
#define XML_END(what, second, rule)                                                                          \
    "\n</tools>\n\nIf you choose to call a " what " ONLY reply in the following format with NO suffix:\n\n"  \
    "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n" \
    "<parameter=example_parameter_2>\n" second "\n</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\n"  \
    "Reminder:\n- Function calls MUST follow the specified format: " rule "\n"                               \
    "- Required parameters MUST be specified\n- You may provide optional reasoning for your function call "  \
    "in natural language BEFORE the function call, but NOT after\n- If there is no function call available, " \
    "answer the question like normal with your current knowledge and do not tell the user about function "   \
    "calls\n</IMPORTANT>"
#define XML_FUNCTIONS_END                                                                                    \
    XML_END("function", "This is the value for the second parameter\nthat can span\nmultiple lines",         \
            "an inner <function=...></function> block must be nested within <tool_call></tool_call> XML tags")
#define XML_TOOLS_END                                                                                        \
    XML_END("tool", "value_2",                                                                               \
            "the tool calling block MUST begin with an opening <tool_call> tag and end with a closing "      \
            "</tool_call> tag.")

#define HELPFUL "You are a helpful assistant."
#define BY_QWEN "You are Qwen, created by Alibaba Cloud. " HELPFUL
#define BOXED "Please reason step by step, and put your final answer within \\boxed{}."
#define CODER "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks."

#define THINK "<think>\n"
#define NO_THINK "<think>\n\n</think>\n\n"

/* What the rows of a family have in common. */
#define JSON_TOOLS(open, close)                                                                              \
    .tools = CHAT_TOOLS_JSON, .tools_begin = JSON_BEGIN, .tools_end = JSON_END(open, close)
#define DEFAULT_SYSTEM(text) .system = (text), .system_tools = (text)
#define QWEN3_TOOLS JSON_TOOLS("{", "}"), .calls = CHAT_CALLS_JSON_RAW
#define CODER_TOOLS .system_tools = CODER, .tools = CHAT_TOOLS_XML
#define QWEN35_TOOLS                                                                                         \
    .tools = CHAT_TOOLS_JSON, .tools_begin = "# Tools\n\n" XML_BEGIN, .tools_end = XML_FUNCTIONS_END,        \
    .tools_first = true, .strips = true
#define ALWAYS_THINKS .thinking = CHAT_THINKING_ALWAYS, .think = THINK
#define SWITCH(on) .thinking = CHAT_THINKING_SWITCH, .think = (on), .no_think = NO_THINK

static const chat_row rows[QW_CHAT_FORMATS] = {
    [QW_CHAT_NONE] = {.name = "none"},
    [QW_CHAT_QWEN25] = {.name = "qwen2.5", DEFAULT_SYSTEM(BY_QWEN), JSON_TOOLS("{", "}")},
    [QW_CHAT_QWEN25_BRACES] = {.name = "qwen2.5", DEFAULT_SYSTEM(BY_QWEN), JSON_TOOLS("{{", "}}")},
    [QW_CHAT_QWEN25_MATH] = {.name = "qwen2.5-math", DEFAULT_SYSTEM(BOXED), JSON_TOOLS("{", "}")},
    [QW_CHAT_QWEN2] = {.name = "qwen2", .system = HELPFUL},
    [QW_CHAT_QWEN25_1M] = {.name = "qwen2.5-1m", DEFAULT_SYSTEM(HELPFUL), JSON_TOOLS("{", "}")},
    [QW_CHAT_QWEN25_OLD] = {.name = "qwen2.5-1m", DEFAULT_SYSTEM(HELPFUL), JSON_TOOLS("{{", "}}")},
    [QW_CHAT_QWQ] = {.name = "qwq", .system_tools = "", JSON_TOOLS("{", "}"), .history = CHAT_HISTORY_CUT,
                     ALWAYS_THINKS},
    [QW_CHAT_QWQ_LAST] = {.name = "qwq", .system_tools = "", JSON_TOOLS("{", "}"),
                          .history = CHAT_HISTORY_CUT_OLD, .thinking = CHAT_THINKING_SWITCH, .think = THINK,
                          .no_think = THINK "</think>"},
    [QW_CHAT_QWEN3] = {.name = "qwen3", QWEN3_TOOLS, .history = CHAT_HISTORY_QUERY, SWITCH("")},
    [QW_CHAT_QWEN3_THINKING] = {.name = "qwen3-thinking", QWEN3_TOOLS, .history = CHAT_HISTORY_QUERY,
                                ALWAYS_THINKS},
    [QW_CHAT_QWEN3_INSTRUCT] = {.name = "qwen3-instruct", QWEN3_TOOLS},
    [QW_CHAT_QWEN3_SPLITS] = {.name = "qwen3-instruct", QWEN3_TOOLS, .history = CHAT_HISTORY_QUERY},
    [QW_CHAT_QWEN3_CODER] = {.name = "qwen3-coder", CODER_TOOLS, .tools_begin = XML_BEGIN,
                             .tools_end = XML_FUNCTIONS_END, .calls = CHAT_CALLS_XML_LISTS,
                             .wide_results = true},
    [QW_CHAT_QWEN3_CODER_TOOLS] = {.name = "qwen3-coder", CODER_TOOLS,
                                   .tools_begin = "# Tools\n\nYou have access to the following tools:\n\n<tools>",
                                   .tools_end = XML_TOOLS_END, .calls = CHAT_CALLS_XML_STR, .wide_results = true},
    [QW_CHAT_QWEN3_CODER_NEXT] = {.name = "qwen3-coder", CODER_TOOLS, .tools_begin = "# Tools\n\n" XML_BEGIN,
                                  .tools_end = XML_FUNCTIONS_END, .calls = CHAT_CALLS_XML_STR,
                                  .wide_results = true},
    [QW_CHAT_QWEN35] = {.name = "qwen3.5", QWEN35_TOOLS, .calls = CHAT_CALLS_XML_STR,
                        .history = CHAT_HISTORY_BLOCK, SWITCH(THINK)},
    [QW_CHAT_QWEN36] = {.name = "qwen3.6", QWEN35_TOOLS, .calls = CHAT_CALLS_XML_JSON,
                        .history = CHAT_HISTORY_BLOCK, .keeps = CHAT_KEEPS_ASKED, SWITCH(THINK)},
    [QW_CHAT_QWEN38] = {.name = "qwen3.8", QWEN35_TOOLS, .calls = CHAT_CALLS_XML_JSON,
                        .history = CHAT_HISTORY_FIELD, .keeps = CHAT_KEEPS_DEFAULT, SWITCH(THINK),
                        .efforts = true},
    [QW_CHAT_QWEN38_MAX] = {.name = "qwen3.8-max", QWEN35_TOOLS, .calls = CHAT_CALLS_XML_JSON,
                            .history = CHAT_HISTORY_FIELD, .keeps = CHAT_KEEPS_DEFAULT, ALWAYS_THINKS,
                            .efforts = true},
};

static const char *const effort_texts[] = {
    [QW_EFFORT_LOW] = "Reasoning effort is set to low. Keep your thinking brief and focused, moving directly to the "
                      "conclusion without unnecessary elaboration.",
    [QW_EFFORT_MEDIUM] = NULL,
    [QW_EFFORT_XHIGH] = "Reasoning effort is set to xhigh. Please think carefully through the task, validate key "
                        "assumptions, consider plausible alternatives, and prioritize correctness, consistency, and "
                        "clarity in the final answer.",
};

bool qw_chat_xml_calls(const chat_row *row)
{
    return row->calls >= CHAT_CALLS_XML_LISTS;
}

static const chat_row *row_of(qw_chat_format f)
{
    return &rows[(size_t)f < QW_CHAT_FORMATS ? f : QW_CHAT_NONE];
}

qw_chat_traits qw_chat_format_traits(qw_chat_format f)
{
    const chat_row *row = row_of(f);
    return (qw_chat_traits){.tools = row->tools != CHAT_TOOLS_NONE,
                            .xml_calls = qw_chat_xml_calls(row),
                            .thinks = row->thinking != CHAT_THINKING_NEVER,
                            .switches = row->thinking == CHAT_THINKING_SWITCH,
                            .efforts = row->efforts};
}

bool qw_chat_thinks(qw_chat_format f, const qw_chat_options *options)
{
    chat_thinking thinking = row_of(f)->thinking;
    return thinking == CHAT_THINKING_ALWAYS ||
           (thinking == CHAT_THINKING_SWITCH && options->thinking != QW_SWITCH_OFF);
}

const char *qw_chat_format_name(qw_chat_format f)
{
    return row_of(f)->name;
}

/* ---- messages --------------------------------------------------------------------------------- */

static const char *const role_names[CHAT_ROLES] = {"system", "user", "assistant", "tool"};

qw_status qw_chat_role_of(const chat_renderer *w, size_t i, chat_role *out)
{
    const char *name = w->messages[i].role;
    if (!name) return qw_fail(w->err, QW_E_ARG, "messages[%zu] has no role", i);
    if (strcmp(name, "developer") == 0) name = role_names[CHAT_SYSTEM]; /* the same under another name */
    for (int r = 0; r < CHAT_ROLES; r++)
        if (strcmp(name, role_names[r]) == 0) {
            *out = (chat_role)r;
            return QW_OK;
        }
    return qw_fail(w->err, QW_E_ARG,
                   "messages[%zu] has the role \"%.40s\"; roles are system, user, assistant, tool", i, name);
}

qw_status qw_chat_blame(qw_err *err, qw_status status, const char *where)
{
    qw_err_prefix(err, "%s", where);
    if (status != QW_E_FORMAT) return status;
    if (err) err->status = QW_E_ARG;
    return QW_E_ARG;
}

static qw_text content_of(const chat_renderer *w, size_t i)
{
    qw_text content = w->messages[i].content;
    return w->row->strips ? qw_py_strip(content) : content;
}

/* The system turn when there are tools: [effort] [system] tools, or [effort] tools [system]. */
static qw_status render_tools_head(const chat_renderer *w, qw_text json, bool own)
{
    const chat_row *row = w->row;
    if (w->effort) {
        QW_TRY(qw_chat_markup(w, w->effort));
        QW_TRY(qw_chat_markup(w, "\n\n"));
    }
    if (!row->tools_first && (own || row->system_tools)) {
        QW_TRY(own ? qw_chat_plain(w, content_of(w, 0)) : qw_chat_markup(w, row->system_tools));
        QW_TRY(qw_chat_markup(w, "\n\n"));
    }
    QW_TRY(qw_chat_tools_text(w, json));
    if (!row->tools_first || !own || content_of(w, 0).n == 0) return QW_OK;
    QW_TRY(qw_chat_markup(w, "\n\n"));
    return qw_chat_plain(w, content_of(w, 0));
}

static qw_status render_plain_head(const chat_renderer *w, bool own)
{
    qw_text content = own ? content_of(w, 0) : (qw_text){0};
    if (w->effort) QW_TRY(qw_chat_markup(w, w->effort));
    if (w->effort && content.n > 0) QW_TRY(qw_chat_markup(w, "\n\n"));
    if (own) return qw_chat_plain(w, content);
    return w->row->system ? qw_chat_markup(w, w->row->system) : QW_OK;
}

/* The system turn that a conversation begins with, where it has one. */
static qw_status render_head(const chat_renderer *w, qw_text tools, bool own)
{
    qw_buf json;
    size_t n_tools;
    qw_status status;
    qw_buf_init(&json, QW_RENDERED_BYTES_MAX, "tool definitions");
    QW_TRY_GOTO(qw_chat_tools_json(w, tools, &json, &n_tools));
    /* A format that may add an effort leaves out an empty system message. */
    bool empty = w->row->efforts && own && content_of(w, 0).n == 0;
    if (n_tools > 0 || w->effort || w->row->system || (own && !empty)) {
        QW_TRY_GOTO(qw_chat_markup(w, "<|im_start|>system\n"));
        if (n_tools > 0) QW_TRY_GOTO(render_tools_head(w, (qw_text){qw_buf_str(&json), json.n}, own));
        else QW_TRY_GOTO(render_plain_head(w, own));
        QW_TRY_GOTO(qw_chat_markup(w, "<|im_end|>\n"));
        QW_TRY_GOTO(qw_chat_mark(w, QW_SEGMENT_EDGE));
    }
fail:
    qw_buf_free(&json);
    return status;
}

/* Where the tokens that the model said in this turn are known, they take the place of what was rendered since byte `at`. */
static qw_status recall(const chat_renderer *w, size_t i, const chat_turn *t, size_t at)
{
    qw_recalled found;
    const qw_message *m = &w->messages[i];
    const char *text = qw_buf_str(&w->out->text);
    qw_chat_ask ask = {.before = {text, at}, .message = m, .content = t->content, .reasoning = t->reasoning,
                       .reasoning_given = m->reasoning.s || t->reasoning.n > 0, .strips = t->strips, .block = t->block,
                       .may_block = t->may_block, .turn = {text + at, w->out->text.n - at},
                       .segments = w->out->segments, .n_segments = w->out->n};
    if (!w->memory || !w->memory->recall(w->memory->ctx, &ask, &found)) return QW_OK;
    return qw_chat_put_recalled(w, at, &found);
}

static qw_status render_assistant(const chat_renderer *w, size_t i, size_t query)
{
    chat_turn t = qw_chat_turn(w, i, query);
    QW_TRY(qw_chat_markup(w, "<|im_start|>assistant\n"));
    size_t at = w->out->text.n;
    if (t.block) {
        QW_TRY(qw_chat_markup(w, "<think>\n"));
        QW_TRY(qw_chat_plain(w, t.reasoning));
        QW_TRY(qw_chat_markup(w, "\n</think>\n\n"));
    }
    QW_TRY(qw_chat_plain(w, t.content));
    if (w->messages[i].n_tool_calls > 0) QW_TRY(qw_chat_calls(w, i, t.spoken));
    QW_TRY(recall(w, i, &t, at));
    return qw_chat_markup(w, "<|im_end|>\n");
}

/* A tool result: neighbouring ones share one user turn. *ends: the turn ends with this one. */
static qw_status render_result(const chat_renderer *w, size_t i, bool *ends)
{
    bool wide = w->row->wide_results;
    chat_role before = CHAT_USER, after = CHAT_USER;
    if (w->row->tools == CHAT_TOOLS_NONE)
        return qw_fail(w->err, QW_E_UNSUPPORTED,
                       "messages[%zu] is a tool result; this model's chat format (%s) has none", i, w->row->name);
    if (i > 0) QW_TRY(qw_chat_role_of(w, i - 1, &before));
    if (i + 1 < w->n) QW_TRY(qw_chat_role_of(w, i + 1, &after));
    *ends = after != CHAT_TOOL;
    if (before != CHAT_TOOL) QW_TRY(qw_chat_markup(w, wide ? "<|im_start|>user\n" : "<|im_start|>user"));
    QW_TRY(qw_chat_markup(w, wide ? "<tool_response>\n" : "\n<tool_response>\n"));
    QW_TRY(qw_chat_plain(w, content_of(w, i)));
    QW_TRY(qw_chat_markup(w, wide ? "\n</tool_response>\n" : "\n</tool_response>"));
    return *ends ? qw_chat_markup(w, "<|im_end|>\n") : QW_OK;
}

static qw_status render_message(const chat_renderer *w, size_t i, size_t query)
{
    bool ends = true;
    chat_role role = CHAT_USER;
    QW_TRY(qw_chat_role_of(w, i, &role));
    if (role == CHAT_TOOL) {
        QW_TRY(render_result(w, i, &ends));
    } else if (role == CHAT_ASSISTANT) {
        QW_TRY(render_assistant(w, i, query));
    } else {
        QW_TRY(qw_chat_markup(w, role == CHAT_SYSTEM ? "<|im_start|>system\n" : "<|im_start|>user\n"));
        QW_TRY(qw_chat_plain(w, content_of(w, i)));
        QW_TRY(qw_chat_markup(w, "<|im_end|>\n"));
    }
    return ends ? qw_chat_mark(w, QW_SEGMENT_EDGE) : QW_OK;
}

/* The beginning of the answer. */
static qw_status render_prompt(const chat_renderer *w)
{
    const char *think = w->thinks ? w->row->think : w->row->no_think;
    QW_TRY(qw_chat_markup(w, "<|im_start|>assistant\n"));
    w->out->answer_at = w->out->text.n;
    if (!think) return QW_OK;
    QW_TRY(qw_chat_markup(w, think));
    w->out->in_thinking = w->thinks && *think;
    return QW_OK;
}

/* ---- the whole -------------------------------------------------------------------------------- */

/* What this format makes of the options. */
static void choose(chat_renderer *w, qw_chat_format f, const qw_chat_options *o)
{
    const chat_row *row = w->row;
    bool asked = o->preserve_thinking == QW_SWITCH_ON, refused = o->preserve_thinking == QW_SWITCH_OFF;
    w->thinks = qw_chat_thinks(f, o);
    w->keeps = (row->keeps == CHAT_KEEPS_ASKED && asked) || (row->keeps == CHAT_KEEPS_DEFAULT && !refused);
    qw_effort effort = o->effort == QW_EFFORT_DEFAULT ? QW_EFFORT_XHIGH : o->effort;
    w->effort = row->efforts && w->thinks ? effort_texts[effort] : NULL;
}

qw_status qw_chat_render(qw_chat_format f, const qw_message *messages, size_t n_messages, qw_text tools,
                         const qw_chat_options *options, bool add_generation_prompt, qw_rendered *out, qw_err *err)
{
    return qw_chat_render_recalled(f, messages, n_messages, tools, options, add_generation_prompt, NULL, out, err);
}

qw_status qw_chat_render_recalled(qw_chat_format f, const qw_message *messages, size_t n_messages, qw_text tools,
                                  const qw_chat_options *options, bool add_generation_prompt,
                                  const qw_chat_memory *memory, qw_rendered *out, qw_err *err)
{
    qw_chat_options o = options ? *options : (qw_chat_options){0};
    *out = (qw_rendered){0};
    qw_buf_init(&out->text, QW_RENDERED_BYTES_MAX, "the rendered conversation");
    if (f == QW_CHAT_NONE || (size_t)f >= QW_CHAT_FORMATS)
        return qw_fail(err, QW_E_UNSUPPORTED, "this model has no chat format that qw knows; give it raw text");
    if (n_messages == 0) return qw_fail(err, QW_E_ARG, "a conversation needs at least one message");
    if ((size_t)o.effort >= sizeof effort_texts / sizeof *effort_texts)
        return qw_fail(err, QW_E_ARG, "there is no thinking effort %d", (int)o.effort);
    chat_renderer w = {.row = &rows[f], .messages = messages, .n = n_messages, .memory = memory, .out = out,
                       .err = err};
    chat_role first = CHAT_USER, other;
    qw_status status;
    choose(&w, f, &o);
    QW_TRY_GOTO(qw_chat_role_of(&w, 0, &first));
    for (size_t i = 1; i < n_messages; i++) QW_TRY_GOTO(qw_chat_role_of(&w, i, &other));
    w.n_done = first == CHAT_SYSTEM;
    QW_TRY_GOTO(render_head(&w, tools, first == CHAT_SYSTEM));
    size_t query = qw_chat_query(&w);
    for (size_t i = first == CHAT_SYSTEM; i < n_messages; i++) {
        w.n_done = i + 1;
        QW_TRY_GOTO(render_message(&w, i, query));
    }
    if (add_generation_prompt) QW_TRY_GOTO(render_prompt(&w));
    return QW_OK;
fail:
    qw_rendered_free(out);
    return status;
}
