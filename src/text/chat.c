/* chat.c: chat formats as typed segments.
 *
 * One table row a template variant: what differs between them is data. The renderer walks the messages as
 * the template does and says of every byte whether it is the format's own (markup) or somebody's words
 * (plain). Any thread; no state.
 */
#include "text/chat.h"

#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "text/json_text.h"

#define TOOLS_BEGIN                                                                                          \
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"                   \
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
#define TOOLS_END(open, close)                                                                               \
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "    \
    "<tool_call></tool_call> XML tags:\n<tool_call>\n" open                                                  \
    "\"name\": <function-name>, \"arguments\": <args-json-object>" close "\n</tool_call><|im_end|>\n"
#define QWEN25_BY "You are Qwen, created by Alibaba Cloud."
#define QWEN25_SYSTEM QWEN25_BY " You are a helpful assistant."

struct format {
    const char *name;
    const char *default_system; /* when the first message is no system message */
    const char *tools_end;      /* NULL: the format has no tools */
};
static const struct format formats[] = {
    [QW_CHAT_NONE] = {"none", "", NULL},
    [QW_CHAT_QWEN25] = {"qwen2.5", QWEN25_SYSTEM, TOOLS_END("{", "}")},
    [QW_CHAT_QWEN25_BRACES] = {"qwen2.5", QWEN25_SYSTEM, TOOLS_END("{{", "}}")},
    [QW_CHAT_QWEN25_MATH] = {"qwen2.5-math",
                             "Please reason step by step, and put your final answer within \\boxed{}.",
                             TOOLS_END("{", "}")},
    [QW_CHAT_QWEN2] = {"qwen2", "You are a helpful assistant.", NULL},
};

/* ---- which format ----------------------------------------------------------------------------- */

/* SHA-256 of template texts that the tests compare with. */
static const struct {
    qw_chat_format format;
    unsigned char sha256[SHA256_DIGEST_LENGTH];
} known_templates[] = {
    {QW_CHAT_QWEN25,
     {0xcd, 0x8e, 0x94, 0x39, 0xf0, 0x57, 0x08, 0x56, 0xfd, 0x70, 0x47, 0x0b, 0xf8, 0x88, 0x9e, 0xbd,
      0x8b, 0x5d, 0x11, 0x07, 0x20, 0x7f, 0x67, 0xa5, 0xef, 0xb4, 0x6e, 0x34, 0x23, 0x30, 0x52, 0x7f}},
    {QW_CHAT_QWEN25_BRACES,
     {0xd5, 0x49, 0x5a, 0x1e, 0x5d, 0xb0, 0x61, 0x11, 0x32, 0xa9, 0x7e, 0x46, 0xa6, 0x5d, 0xbb, 0x64,
      0xa6, 0x42, 0xa4, 0x99, 0x42, 0x12, 0x28, 0xb9, 0xc8, 0xb9, 0x32, 0x29, 0x09, 0x7f, 0xa9, 0xa4}},
};

enum { MARKS_MAX = 4 };
/* Marks of templates with an unknown hash: the first row all of whose `with` and none of whose `without`
 * occur. Thinking and XML tools are other families. */
static const struct {
    qw_chat_format format;
    const char *with[MARKS_MAX], *without[MARKS_MAX];
} marks[] = {
    {QW_CHAT_QWEN25_BRACES,
     {"<|im_start|>", "<tool_call>\\n{{\\\"name\\\": <function-name>", QWEN25_BY},
     {"think", "<function="}},
    {QW_CHAT_QWEN25,
     {"<|im_start|>", "<tool_call>\\n{\\\"name\\\": <function-name>", QWEN25_BY},
     {"think", "<function="}},
    {QW_CHAT_QWEN25_MATH,
     {"<|im_start|>", "<tool_call>\\n{\\\"name\\\": <function-name>", "Please reason step by step, and"},
     {"think", "<function="}},
    {QW_CHAT_QWEN2,
     {"<|im_start|>", "<|im_end|>", "You are a helpful assistant.<|im_end|>"},
     {"think", "tool", "<function="}},
};

static bool has(qw_text text, const char *part)
{
    return text.n > 0 && memmem(text.s, text.n, part, strlen(part)) != NULL;
}

qw_chat_format qw_chat_detect(qw_text template_text, bool *known)
{
    unsigned char hash[SHA256_DIGEST_LENGTH];
    *known = false;
    if (template_text.n == 0) return QW_CHAT_NONE;
    SHA256((const unsigned char *)template_text.s, template_text.n, hash);
    for (size_t i = 0; i < sizeof known_templates / sizeof *known_templates; i++)
        if (memcmp(known_templates[i].sha256, hash, sizeof hash) == 0) {
            *known = true;
            return known_templates[i].format;
        }
    for (size_t i = 0; i < sizeof marks / sizeof *marks; i++) {
        bool fits = true;
        for (size_t k = 0; k < MARKS_MAX; k++) {
            if (marks[i].with[k] && !has(template_text, marks[i].with[k])) fits = false;
            if (marks[i].without[k] && has(template_text, marks[i].without[k])) fits = false;
        }
        if (fits) return marks[i].format;
    }
    return QW_CHAT_NONE;
}

const char *qw_chat_format_name(qw_chat_format f)
{
    return (size_t)f < sizeof formats / sizeof *formats ? formats[f].name : "none";
}

/* ---- segments --------------------------------------------------------------------------------- */

void qw_rendered_free(qw_rendered *r)
{
    qw_buf_free(&r->text);
    free(r->segments);
    *r = (qw_rendered){0};
}

/* The text from the end of the last segment to the end of the text is of this kind. */
static qw_status mark(qw_rendered *r, qw_segment_kind kind, qw_err *err)
{
    qw_segment *last = r->n ? &r->segments[r->n - 1] : NULL;
    size_t begin = last ? last->end : 0;
    if (kind != QW_SEGMENT_EDGE && begin == r->text.n) return QW_OK;
    if (last && last->kind == kind) {
        last->end = r->text.n;
        return QW_OK;
    }
    if (r->n == r->cap) {
        if (r->n >= QW_SEGMENTS_MAX)
            return qw_fail(err, QW_E_LIMIT, "the conversation has more than %d segments", QW_SEGMENTS_MAX);
        size_t cap = r->cap ? r->cap * 2 : 32;
        QW_TRY(qw_grow(&r->segments, r->cap, cap, sizeof *r->segments, "chat segments", err));
        r->cap = cap;
    }
    r->segments[r->n++] = (qw_segment){.kind = kind, .begin = begin, .end = r->text.n};
    return QW_OK;
}

static qw_status markup(qw_rendered *r, const char *s, qw_err *err)
{
    QW_TRY(qw_buf_add_str(&r->text, s, err));
    return mark(r, QW_SEGMENT_MARKUP, err);
}

static qw_status plain(qw_rendered *r, qw_text s, qw_err *err)
{
    if (s.n == 0) return QW_OK;
    QW_TRY(qw_buf_add(&r->text, s.s, s.n, err));
    return mark(r, QW_SEGMENT_PLAIN, err);
}

/* ---- rendering -------------------------------------------------------------------------------- */

typedef enum role { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL, ROLE_COUNT } role;
static const char *const role_names[ROLE_COUNT] = {"system", "user", "assistant", "tool"};

struct renderer {
    const struct format *format;
    const qw_message *messages;
    size_t n;
    qw_rendered *out;
    qw_err *err;
};

/* Role of message i; QW_E_ARG when there is no such role. */
static qw_status role_of(const struct renderer *w, size_t i, role *out)
{
    const char *name = w->messages[i].role;
    if (!name) return qw_fail(w->err, QW_E_ARG, "messages[%zu] has no role", i);
    for (int r = 0; r < ROLE_COUNT; r++)
        if (strcmp(name, role_names[r]) == 0) {
            *out = (role)r;
            return QW_OK;
        }
    return qw_fail(w->err, QW_E_ARG,
                   "messages[%zu] has the role \"%.40s\"; roles are system, user, assistant, tool", i, name);
}

/* Puts "where" before the message; what is wrong with somebody's JSON is wrong with the argument. */
static qw_status blame(qw_err *err, qw_status status, const char *where)
{
    qw_err_prefix(err, "%s", where);
    if (status != QW_E_FORMAT) return status;
    if (err) err->status = QW_E_ARG;
    return QW_E_ARG;
}

/* Tool definitions, one a line, into json; *n becomes their number. */
static qw_status render_tools(const struct renderer *w, qw_text tools, qw_buf *json, size_t *n)
{
    *n = 0;
    if (tools.n == 0) return QW_OK;
    qw_status status = qw_json_rewrite_list(tools, "\n", json, n, w->err);
    if (status != QW_OK) return blame(w->err, status, "tools");
    if (*n > 0 && !w->format->tools_end)
        return qw_fail(w->err, QW_E_UNSUPPORTED, "this model's chat format (%s) has no tools", w->format->name);
    return QW_OK;
}

/* The system turn that every conversation begins with. */
static qw_status render_head(const struct renderer *w, qw_text tools, bool own_system)
{
    qw_buf json;
    size_t n_tools;
    qw_status status;
    qw_buf_init(&json, QW_RENDERED_BYTES_MAX, "tool definitions");
    QW_TRY_GOTO(render_tools(w, tools, &json, &n_tools));
    QW_TRY_GOTO(markup(w->out, "<|im_start|>system\n", w->err));
    if (own_system) QW_TRY_GOTO(plain(w->out, w->messages[0].content, w->err));
    else QW_TRY_GOTO(markup(w->out, w->format->default_system, w->err));
    if (n_tools > 0) {
        QW_TRY_GOTO(markup(w->out, TOOLS_BEGIN, w->err));
        QW_TRY_GOTO(plain(w->out, (qw_text){qw_buf_str(&json), json.n}, w->err));
        QW_TRY_GOTO(markup(w->out, w->format->tools_end, w->err));
    } else {
        QW_TRY_GOTO(markup(w->out, "<|im_end|>\n", w->err));
    }
    QW_TRY_GOTO(mark(w->out, QW_SEGMENT_EDGE, w->err));
fail:
    qw_buf_free(&json);
    return status;
}

/* Arguments as the template's tojson writes them; see qw_chat_render. */
static qw_status render_arguments(const struct renderer *w, qw_text json)
{
    size_t blank = 0;
    while (blank < json.n && strchr(" \t\r\n", json.s[blank]) && json.s[blank]) blank++;
    if (blank == json.n) return plain(w->out, (qw_text){"{}", 2}, w->err);
    qw_err why;
    qw_status status = qw_json_rewrite(json, &w->out->text, &why);
    if (status == QW_E_FORMAT) status = qw_json_write_string(json, &w->out->text, &why);
    if (status == QW_OK) return mark(w->out, QW_SEGMENT_PLAIN, w->err);
    return qw_fail(w->err, status, "%s", why.text);
}

static qw_status render_call(const struct renderer *w, const qw_tool_call *call)
{
    if (!call->name || !*call->name) return qw_fail(w->err, QW_E_ARG, "the call has no name");
    QW_TRY(markup(w->out, "\n<tool_call>\n{\"name\": \"", w->err));
    QW_TRY(plain(w->out, (qw_text){call->name, strlen(call->name)}, w->err));
    QW_TRY(markup(w->out, "\", \"arguments\": ", w->err));
    QW_TRY(render_arguments(w, call->arguments));
    return markup(w->out, "}\n</tool_call>", w->err);
}

/* An assistant turn with calls: the content is left out when there is none. */
static qw_status render_calls(const struct renderer *w, size_t i)
{
    const qw_message *m = &w->messages[i];
    if (!w->format->tools_end)
        return qw_fail(w->err, QW_E_UNSUPPORTED,
                       "messages[%zu] has tool calls; this model's chat format (%s) has none", i, w->format->name);
    QW_TRY(markup(w->out, "<|im_start|>assistant", w->err));
    if (m->content.n > 0) {
        QW_TRY(markup(w->out, "\n", w->err));
        QW_TRY(plain(w->out, m->content, w->err));
    }
    for (size_t k = 0; k < m->n_tool_calls; k++) {
        qw_status status = render_call(w, &m->tool_calls[k]);
        if (status == QW_OK) continue;
        char where[64];
        snprintf(where, sizeof where, "messages[%zu].tool_calls[%zu]", i, k);
        return blame(w->err, status, where);
    }
    return markup(w->out, "<|im_end|>\n", w->err);
}

/* A tool result: neighbouring ones share one user turn. *ends: the turn ends with this one. */
static qw_status render_result(const struct renderer *w, size_t i, bool *ends)
{
    if (!w->format->tools_end)
        return qw_fail(w->err, QW_E_UNSUPPORTED,
                       "messages[%zu] is a tool result; this model's chat format (%s) has none", i,
                       w->format->name);
    role before = ROLE_USER, after = ROLE_USER;
    if (i > 0) QW_TRY(role_of(w, i - 1, &before));
    if (i + 1 < w->n) QW_TRY(role_of(w, i + 1, &after));
    *ends = after != ROLE_TOOL;
    if (before != ROLE_TOOL) QW_TRY(markup(w->out, "<|im_start|>user", w->err));
    QW_TRY(markup(w->out, "\n<tool_response>\n", w->err));
    QW_TRY(plain(w->out, w->messages[i].content, w->err));
    QW_TRY(markup(w->out, "\n</tool_response>", w->err));
    return *ends ? markup(w->out, "<|im_end|>\n", w->err) : QW_OK;
}

static qw_status render_message(const struct renderer *w, size_t i)
{
    const qw_message *m = &w->messages[i];
    bool ends = true;
    role who = ROLE_USER;
    QW_TRY(role_of(w, i, &who));
    if (who == ROLE_TOOL) {
        QW_TRY(render_result(w, i, &ends));
    } else if (who == ROLE_ASSISTANT && m->n_tool_calls > 0) {
        QW_TRY(render_calls(w, i));
    } else {
        QW_TRY(markup(w->out, "<|im_start|>", w->err));
        QW_TRY(markup(w->out, role_names[who], w->err));
        QW_TRY(markup(w->out, "\n", w->err));
        QW_TRY(plain(w->out, m->content, w->err));
        QW_TRY(markup(w->out, "<|im_end|>\n", w->err));
    }
    return ends ? mark(w->out, QW_SEGMENT_EDGE, w->err) : QW_OK;
}

qw_status qw_chat_render(qw_chat_format f, const qw_message *messages, size_t n_messages, qw_text tools,
                         bool add_generation_prompt, qw_rendered *out, qw_err *err)
{
    *out = (qw_rendered){0};
    qw_buf_init(&out->text, QW_RENDERED_BYTES_MAX, "the rendered conversation");
    if (f == QW_CHAT_NONE || (size_t)f >= sizeof formats / sizeof *formats)
        return qw_fail(err, QW_E_UNSUPPORTED, "this model has no chat format that qw knows; give it raw text");
    if (n_messages == 0) return qw_fail(err, QW_E_ARG, "a conversation needs at least one message");
    struct renderer w = {.format = &formats[f], .messages = messages, .n = n_messages, .out = out, .err = err};
    role first = ROLE_USER;
    qw_status status;
    QW_TRY_GOTO(role_of(&w, 0, &first));
    QW_TRY_GOTO(render_head(&w, tools, first == ROLE_SYSTEM));
    for (size_t i = first == ROLE_SYSTEM; i < n_messages; i++) QW_TRY_GOTO(render_message(&w, i));
    if (add_generation_prompt) QW_TRY_GOTO(markup(out, "<|im_start|>assistant\n", err));
    return QW_OK;
fail:
    qw_rendered_free(out);
    return status;
}

/* ---- tokens ----------------------------------------------------------------------------------- */

/* Added tokens are recognised inside markup only. What stands between two of them is one text for the
 * tokenizer, markup and plain together: the pieces it is cut into may span both. */
qw_status qw_chat_tokenize(const qw_tokenizer *t, const qw_rendered *r, qw_tokens *out, qw_err *err)
{
    const char *text = qw_buf_str(&r->text);
    size_t done = 0, before = out->n;
    qw_status status;
    for (size_t i = 0; i < r->n; i++) {
        size_t at, len, pos = r->segments[i].begin;
        int32_t id;
        if (r->segments[i].kind != QW_SEGMENT_MARKUP) continue;
        while (qw_tokenizer_find_added(t, text, r->segments[i].end, pos, &at, &len, &id)) {
            QW_TRY_GOTO(qw_tokenizer_encode(t, text + done, at - done, false, out, err));
            QW_TRY_GOTO(qw_tokens_push(out, id, err));
            done = pos = at + len;
        }
    }
    QW_TRY_GOTO(qw_tokenizer_encode(t, text + done, r->text.n - done, false, out, err));
    return QW_OK;
fail:
    out->n = before;
    return status;
}
