/* tokenizer_tool.c: the tokenizer and the chat renderer behind a pipe, for the parity tests.
 *
 * Use: tokenizer_tool MODEL [--pre qwen2|qwen35] [--template FILE] [--time]; MODEL is a GGUF file or a folder.
 * Requests on standard input: one byte of what to do, a 32-bit length, that many bytes. Answers on standard
 * output: a 32-bit status (qw_status), a 32-bit length, that many bytes (the error's sentence on failure).
 *   E, S   text to ids (int32 each), without and with added tokens
 *   D      ids to text: for each id, and for the end, a 32-bit length and the bytes that came out
 *   R, T   a conversation (JSON: messages, tools as text, add_generation_prompt, thinking, preserve_thinking, effort
 *          as a number) to text, or to ids
 *   G      a conversation to its segments: three 32-bit numbers each (kind, begin, end)
 *   K      the chat format's number and 1 when the template's hash is known, else 0 (32 bits each)
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "formats/gguf.h"
#include "text/chat.h"
#include "text/tokenizer.h"

enum { REQUEST_MAX = 1 << 28, FILE_MAX = 1 << 28 };

struct tool {
    qw_tokenizer *tokenizer;
    qw_chat_format format;
    bool known;
};

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "tokenizer_tool: %s\n", what);
    exit(2);
}

static uint32_t take_u32(const char **s, const char *end)
{
    uint32_t value;
    if (end - *s < 4) die("input ends inside a number");
    memcpy(&value, *s, 4);
    *s += 4;
    return value;
}

static qw_status put_u32(qw_buf *out, size_t value, qw_err *err)
{
    uint32_t v = (uint32_t)value;
    return qw_buf_add(out, &v, 4, err);
}

/* ---- opening ---------------------------------------------------------------------------------- */

/* Opens the file's tokenizer; with another pre-tokenizer its vocabulary is taken as plain data. */
static qw_status open_gguf(const char *path, const qw_pre *pre, struct tool *tool, qw_err *err)
{
    qw_gguf *g;
    qw_text template_text;
    QW_TRY(qw_gguf_open(path, &g, err));
    qw_status status = QW_OK;
    if (qw_gguf_has(g, "tokenizer.chat_template")) {
        QW_TRY_GOTO(qw_gguf_get_str(g, "tokenizer.chat_template", &template_text, err));
        tool->format = qw_chat_detect(template_text, &tool->known);
    }
    if (!pre) {
        QW_TRY_GOTO(qw_tokenizer_open_gguf(g, &tool->tokenizer, err));
    } else {
        qw_gguf_array tokens, types, merges;
        QW_TRY_GOTO(qw_gguf_get_array(g, "tokenizer.ggml.tokens", QW_GGUF_STRING, &tokens, err));
        QW_TRY_GOTO(qw_gguf_get_array(g, "tokenizer.ggml.token_type", QW_GGUF_I32, &types, err));
        QW_TRY_GOTO(qw_gguf_get_array(g, "tokenizer.ggml.merges", QW_GGUF_STRING, &merges, err));
        qw_text *texts = calloc(tokens.n + merges.n + 1, sizeof *texts);
        uint8_t *kinds = calloc(tokens.n + 1, 1);
        if (!texts || !kinds || types.n != tokens.n) die("vocabulary");
        for (size_t i = 0; i < tokens.n; i++) {
            texts[i] = qw_gguf_array_str(&tokens, i);
            kinds[i] = (uint8_t)qw_gguf_array_int(&types, i);
        }
        for (size_t i = 0; i < merges.n; i++) texts[tokens.n + i] = qw_gguf_array_str(&merges, i);
        status = qw_tokenizer_open(texts, kinds, tokens.n, texts + tokens.n, merges.n, *pre, &tool->tokenizer, err);
        free(texts);
        free(kinds);
    }
fail:
    qw_gguf_close(g);
    return status;
}

/* ---- conversations ---------------------------------------------------------------------------- */

struct conversation {
    json_t *root;
    qw_message *messages;
    size_t n;
};

static qw_text text_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return (qw_text){json_string_value(value), json_string_length(value)};
}

/* True, false, or not said. */
static qw_switch switch_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_true(value) ? QW_SWITCH_ON : json_is_false(value) ? QW_SWITCH_OFF : QW_SWITCH_DEFAULT;
}

static void read_conversation(const char *s, size_t n, struct conversation *c)
{
    json_error_t error;
    c->root = json_loadb(s, n, JSON_ALLOW_NUL, &error);
    if (!c->root) die(error.text);
    const json_t *messages = json_object_get(c->root, "messages");
    c->n = json_array_size(messages);
    c->messages = calloc(c->n + 1, sizeof *c->messages);
    if (!c->messages) die("out of memory");
    for (size_t i = 0; i < c->n; i++) {
        const json_t *m = json_array_get(messages, i), *calls = json_object_get(m, "tool_calls");
        size_t n_calls = json_array_size(calls);
        qw_tool_call *list = calloc(n_calls + 1, sizeof *list);
        if (!list) die("out of memory");
        for (size_t k = 0; k < n_calls; k++) {
            const json_t *call = json_array_get(calls, k);
            list[k].name = json_string_value(json_object_get(call, "name"));
            list[k].arguments = text_of(call, "arguments");
        }
        c->messages[i] = (qw_message){.role = json_string_value(json_object_get(m, "role")),
                                      .content = text_of(m, "content"),
                                      .reasoning = text_of(m, "reasoning_content"),
                                      .tool_calls = list,
                                      .n_tool_calls = n_calls};
    }
}

static void free_conversation(struct conversation *c)
{
    for (size_t i = 0; i < c->n; i++) {
        const void *calls = c->messages[i].tool_calls;
        void *owned;
        memcpy(&owned, &calls, sizeof owned); /* the public type has them const */
        free(owned);
    }
    free(c->messages);
    json_decref(c->root);
}

/* ---- requests --------------------------------------------------------------------------------- */

static qw_status do_ids(const qw_tokens *ids, qw_buf *out, qw_err *err)
{
    return qw_buf_add(out, ids->ids, ids->n * sizeof *ids->ids, err);
}

static qw_status do_encode(const struct tool *tool, const char *s, size_t n, bool special, qw_buf *out, qw_err *err)
{
    qw_tokens ids = {0};
    qw_status status = qw_tokenizer_encode(tool->tokenizer, s, n, special, &ids, err);
    if (status == QW_OK) status = do_ids(&ids, out, err);
    qw_tokens_free(&ids);
    return status;
}

static qw_status do_decode(const struct tool *tool, const char *s, size_t n, qw_buf *out, qw_err *err)
{
    qw_detok stream = {0};
    qw_buf piece;
    qw_status status = QW_OK;
    qw_buf_init(&piece, REQUEST_MAX, "piece");
    for (const char *end = s + n; s <= end;) {
        bool last = s == end;
        qw_buf_clear(&piece);
        if (last) QW_TRY_GOTO(qw_detok_flush(&stream, &piece, err));
        else QW_TRY_GOTO(qw_detok_push(&stream, tool->tokenizer, (int32_t)take_u32(&s, end), &piece, err));
        QW_TRY_GOTO(put_u32(out, piece.n, err));
        QW_TRY_GOTO(qw_buf_add(out, qw_buf_str(&piece), piece.n, err));
        if (last) break;
    }
fail:
    qw_buf_free(&piece);
    return status;
}

static qw_status do_chat(const struct tool *tool, char op, const char *s, size_t n, qw_buf *out, qw_err *err)
{
    struct conversation c;
    qw_rendered rendered = {0};
    qw_tokens ids = {0};
    qw_status status;
    read_conversation(s, n, &c);
    bool prompt = json_is_true(json_object_get(c.root, "add_generation_prompt"));
    qw_chat_options options = {.thinking = switch_of(c.root, "thinking"),
                               .preserve_thinking = switch_of(c.root, "preserve_thinking"),
                               .effort = (qw_effort)json_integer_value(json_object_get(c.root, "effort"))};
    QW_TRY_GOTO(qw_chat_render(tool->format, c.messages, c.n, text_of(c.root, "tools"), &options, prompt, &rendered, err));
    if (op == 'R') {
        QW_TRY_GOTO(qw_buf_add(out, qw_buf_str(&rendered.text), rendered.text.n, err));
    } else if (op == 'T') {
        QW_TRY_GOTO(qw_chat_tokenize(tool->tokenizer, &rendered, &ids, NULL, err));
        QW_TRY_GOTO(do_ids(&ids, out, err));
    } else {
        for (size_t i = 0; i < rendered.n; i++) {
            QW_TRY_GOTO(put_u32(out, (size_t)rendered.segments[i].kind, err));
            QW_TRY_GOTO(put_u32(out, rendered.segments[i].begin, err));
            QW_TRY_GOTO(put_u32(out, rendered.segments[i].end, err));
        }
    }
fail:
    qw_tokens_free(&ids);
    qw_rendered_free(&rendered);
    free_conversation(&c);
    return status;
}

static qw_status do_request(const struct tool *tool, char op, const char *s, size_t n, qw_buf *out, qw_err *err)
{
    switch (op) {
    case 'E': return do_encode(tool, s, n, false, out, err);
    case 'S': return do_encode(tool, s, n, true, out, err);
    case 'D': return do_decode(tool, s, n, out, err);
    case 'R':
    case 'T':
    case 'G': return do_chat(tool, op, s, n, out, err);
    case 'K':
        QW_TRY(put_u32(out, (size_t)tool->format, err));
        return put_u32(out, tool->known, err);
    default: die("unknown request");
    }
}

static void serve(const struct tool *tool)
{
    char head[5], *data = NULL;
    qw_buf out;
    qw_buf_init(&out, REQUEST_MAX, "answer");
    while (fread(head, 1, sizeof head, stdin) == sizeof head) {
        uint32_t n, reply[2];
        qw_err err = {0};
        memcpy(&n, head + 1, 4);
        if (n > REQUEST_MAX) die("request too long");
        char *grown = realloc(data, (size_t)n + 1);
        if (!grown) die("out of memory");
        data = grown;
        if (fread(data, 1, n, stdin) != n) die("input ends inside a request");
        qw_buf_clear(&out);
        qw_status status = do_request(tool, head[0], data, n, &out, &err);
        const char *answer = status == QW_OK ? qw_buf_str(&out) : err.text;
        reply[0] = (uint32_t)status;
        reply[1] = (uint32_t)(status == QW_OK ? out.n : strlen(err.text));
        fwrite(reply, 1, sizeof reply, stdout);
        fwrite(answer, 1, reply[1], stdout);
        fflush(stdout);
    }
    free(data);
    qw_buf_free(&out);
}

int main(int argc, char **argv)
{
    struct tool tool = {0};
    const char *model = NULL, *template_path = NULL;
    qw_pre pre = QW_PRE_QWEN2;
    bool have_pre = false, show_time = false;
    qw_err err = {0};
    for (int i = 1; i < argc; i++) {
        bool value = i + 1 < argc;
        if (strcmp(argv[i], "--time") == 0) show_time = true;
        else if (strcmp(argv[i], "--template") == 0 && value) template_path = argv[++i];
        else if (strcmp(argv[i], "--pre") == 0 && value) {
            pre = strcmp(argv[++i], "qwen35") == 0 ? QW_PRE_QWEN35 : QW_PRE_QWEN2;
            have_pre = true;
        } else model = argv[i];
    }
    if (!model) die("a model is needed");
    int64_t begin = qw_clock_us();
    qw_status status = open_gguf(model, have_pre ? &pre : NULL, &tool, &err);
    if (status != QW_OK) die(err.text);
    if (show_time) fprintf(stderr, "opened in %lld us\n", (long long)(qw_clock_us() - begin));
    if (template_path) {
        char *text;
        size_t n;
        if (qw_file_read(template_path, FILE_MAX, &text, &n, &err) != QW_OK) die(err.text);
        tool.format = qw_chat_detect((qw_text){text, n}, &tool.known);
        free(text);
    }
    serve(&tool);
    qw_tokenizer_close(tool.tokenizer);
    return 0;
}
