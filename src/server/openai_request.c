/* openai_request.c: the JSON of a chat completion request becomes a qw_request (contract in openai.h).
 *
 * Any thread; no state. Fields that OpenAI clients send and that do not matter here are ignored; a field that
 * would change the answer and cannot be obeyed is refused, never dropped in silence.
 */
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/mem.h"
#include "server/openai.h"

enum { TOP_K_ABSENT = -2 };

static bool out_of_memory(qw_api_error *e)
{
    qw_api_error_set(e, 503, NULL, "", "the request does not fit into memory now; try again");
    e->retry_after_s = 1;
    return false;
}

/* An array of n zeroed elements; at least one, so that NULL means no memory. */
static void *array_of(size_t n, size_t size)
{
    void *out = NULL;
    return qw_alloc(&out, n, size, "request", NULL) == QW_OK ? out : NULL;
}

static qw_text text_of(const json_t *string)
{
    return (qw_text){json_string_value(string), json_string_length(string)};
}

/* The string as C text; NULL when it is none, or holds a NUL: only texts of messages may (models write them). */
static const char *c_text(const json_t *value)
{
    const char *s = json_string_value(value);
    return s != NULL && strlen(s) == json_string_length(value) ? s : NULL;
}

/* ---- simple fields ---------------------------------------------------------------------------- */

static bool take_model(void *target, const char *param, json_t *value, qw_api_error *e)
{
    qw_chat_request *r = target;
    r->model = c_text(value);
    return r->model != NULL || qw_field_bad(e, param, "want a plain string, got %s", qw_json_kind(value));
}

static bool take_seed(void *target, const char *param, json_t *value, qw_api_error *e)
{
    qw_chat_request *r = target;
    if (!json_is_integer(value)) return qw_field_bad(e, param, "want an integer, got %s", qw_json_kind(value));
    r->request.sampling.seed = (uint64_t)json_integer_value(value);
    return true;
}

static bool take_stop(void *target, const char *param, json_t *value, qw_api_error *e)
{
    qw_chat_request *r = target;
    size_t n = json_is_array(value) ? json_array_size(value) : 1;
    if (!json_is_array(value) && !json_is_string(value))
        return qw_field_bad(e, param, "want a string or an array of strings, got %s", qw_json_kind(value));
    if (n > QW_STOP_MAX) return qw_field_bad(e, param, "%zu stop strings, at most %d are allowed", n, QW_STOP_MAX);
    r->stop = array_of(n, sizeof(*r->stop));
    if (r->stop == NULL) return out_of_memory(e);
    for (size_t i = 0; i < n; i++) {
        json_t *one = json_is_array(value) ? json_array_get(value, i) : value;
        r->stop[i] = c_text(one);
        if (r->stop[i] == NULL) return qw_field_bad(e, param, "want strings without NUL, got %s", qw_json_kind(one));
        size_t bytes = json_string_length(one);
        if (bytes < 1 || bytes > QW_STOP_BYTES_MAX)
            return qw_field_bad(e, param, "a stop string has %zu bytes, want 1 to %d", bytes, QW_STOP_BYTES_MAX);
    }
    r->request.stop = r->stop;
    r->request.n_stop = n;
    return true;
}

static bool take_bias(void *target, const char *param, json_t *value, qw_api_error *e)
{
    qw_chat_request *r = target;
    const char *key = NULL;
    json_t *bias = NULL;
    size_t i = 0;
    if (!json_is_object(value)) return qw_field_bad(e, param, "want an object, got %s", qw_json_kind(value));
    if (json_object_size(value) > QW_LOGIT_BIAS_MAX)
        return qw_field_bad(e, param, "%zu entries, at most %d are allowed", json_object_size(value),
                            QW_LOGIT_BIAS_MAX);
    r->bias = array_of(json_object_size(value), sizeof(*r->bias));
    if (r->bias == NULL) return out_of_memory(e);
    json_object_foreach(value, key, bias) {
        size_t n = strspn(key, "0123456789");
        if (n == 0 || n > 9 || key[n] != 0) return qw_field_bad(e, param, "\"%.40s\" is not a token id", key);
        double v = json_number_value(bias);
        if (!json_is_number(bias) || !(v >= -100 && v <= 100))
            return qw_field_bad(e, param, "the bias of token %s is not a number from -100 to 100", key);
        r->bias[i++] = (qw_logit_bias){.token = (int32_t)strtol(key, NULL, 10), .bias = (float)v};
    }
    r->request.sampling.bias = r->bias;
    r->request.sampling.n_bias = i;
    return true;
}

static bool take_stream_options(void *target, const char *param, json_t *value, qw_api_error *e)
{
    static const qw_field fields[] = {
        {"include_usage", QW_FIELD_BOOL, offsetof(qw_chat_request, include_usage), 0, 0, NULL}};
    qw_chat_request *r = target;
    if (!json_is_object(value)) return qw_field_bad(e, param, "want an object, got %s", qw_json_kind(value));
    r->has_stream_options = true;
    return qw_fields_read(fields, 1, value, "stream_options.", target, e);
}

/* ---- tools ------------------------------------------------------------------------------------ */

static bool check_tool(size_t i, json_t *tool, qw_api_error *e)
{
    char param[QW_PARAM_BYTES];
    qw_field_name(param, "tools[%zu]", i);
    if (!json_is_object(tool)) return qw_field_bad(e, param, "want an object, got %s", qw_json_kind(tool));
    const char *type = c_text(json_object_get(tool, "type"));
    if (type == NULL || strcmp(type, "function") != 0)
        return qw_field_bad(e, param, "the type of a tool must be \"function\"");
    const char *name = c_text(json_object_get(json_object_get(tool, "function"), "name"));
    if (name == NULL || *name == 0) return qw_field_bad(e, param, "the function has no name");
    return true;
}

static bool take_tools(void *target, const char *param, json_t *value, qw_api_error *e)
{
    qw_chat_request *r = target;
    if (!json_is_array(value)) return qw_field_bad(e, param, "want an array, got %s", qw_json_kind(value));
    size_t n = json_array_size(value);
    if (n > QW_TOOLS_MAX) return qw_field_bad(e, param, "%zu tools, at most %d are allowed", n, QW_TOOLS_MAX);
    for (size_t i = 0; i < n; i++) {
        json_t *tool = json_array_get(value, i);
        if (!check_tool(i, tool, e)) return false;
        r->strict_tools = r->strict_tools || json_is_true(json_object_get(json_object_get(tool, "function"), "strict"));
    }
    if (n == 0) return true;
    char *text = json_dumps(value, JSON_COMPACT);
    json_t *kept = text != NULL ? json_string(text) : NULL;
    free(text);
    if (json_array_append_new(r->texts, kept) != 0) return out_of_memory(e);
    r->request.tools = text_of(kept);
    return true;
}

static bool take_parallel(void *target, const char *param, json_t *value, qw_api_error *e)
{
    qw_chat_request *r = target;
    if (!json_is_boolean(value)) return qw_field_bad(e, param, "want true or false, got %s", qw_json_kind(value));
    r->request.one_call = r->request.one_call || json_is_false(value); /* a function asked for by name is called once */
    return true;
}

static bool take_tool_choice(void *target, const char *param, json_t *value, qw_api_error *e)
{
    qw_chat_request *r = target;
    const char *s = c_text(value);
    r->without_tools = s != NULL && strcmp(s, "none") == 0;
    if (r->without_tools || (s != NULL && strcmp(s, "auto") == 0)) return true;
    r->n_forms++;
    r->request.form.kind = QW_FORM_CALLS;
    r->request.form.call_required = true;
    if (s != NULL && strcmp(s, "required") == 0) return true;
    json_t *name = json_object_get(json_object_get(value, "function"), "name");
    if (!json_is_string(name)) return qw_field_bad(e, param, "want \"auto\", \"none\", \"required\" or a function's name");
    r->request.form.source = text_of(name);
    r->request.one_call = true;
    return true;
}

/* ---- thinking --------------------------------------------------------------------------------- */

static bool take_switch(qw_switch *out, const char *param, json_t *value, qw_api_error *e)
{
    if (!json_is_boolean(value)) return qw_field_bad(e, param, "want true or false, got %s", qw_json_kind(value));
    *out = json_is_true(value) ? QW_SWITCH_ON : QW_SWITCH_OFF;
    return true;
}

static bool take_thinking(void *target, const char *param, json_t *value, qw_api_error *e)
{
    return take_switch(&((qw_chat_request *)target)->request.chat.thinking, param, value, e);
}

static bool take_preserve(void *target, const char *param, json_t *value, qw_api_error *e)
{
    return take_switch(&((qw_chat_request *)target)->request.chat.preserve_thinking, param, value, e);
}

/* Every client has its own words; the models know three, and "none" is no thinking. */
static bool take_effort(void *target, const char *param, json_t *value, qw_api_error *e)
{
    static const struct {
        const char *word;
        qw_effort effort;
    } words[] = {{"none", QW_EFFORT_DEFAULT}, {"minimal", QW_EFFORT_LOW}, {"low", QW_EFFORT_LOW},
                 {"medium", QW_EFFORT_MEDIUM}, {"high", QW_EFFORT_XHIGH}, {"xhigh", QW_EFFORT_XHIGH},
                 {"max", QW_EFFORT_XHIGH}};
    qw_chat_request *r = target;
    const char *s = c_text(value);
    for (size_t i = 0; s != NULL && i < sizeof(words) / sizeof(*words); i++) {
        if (strcmp(s, words[i].word) != 0) continue;
        r->request.chat.effort = words[i].effort;
        if (words[i].effort == QW_EFFORT_DEFAULT) r->request.chat.thinking = QW_SWITCH_OFF;
        return true;
    }
    return qw_field_bad(e, param, "want none, minimal, low, medium, high, xhigh or max");
}

/* So many tokens; none at all is thinking switched off, and where it cannot be, closed at once. */
static bool take_budget(void *target, const char *param, json_t *value, qw_api_error *e)
{
    qw_chat_request *r = target;
    json_int_t n = json_integer_value(value);
    if (!json_is_integer(value) || n < 0 || n > 1 << 30)
        return qw_field_bad(e, param, "want a number of tokens from 0 to %d, got %s", 1 << 30, qw_json_kind(value));
    if (n == 0) r->request.chat.thinking = QW_SWITCH_OFF;
    r->request.thinking_tokens_max = n > 0 ? n : 1;
    return true;
}

/* {"type": "enabled" or "disabled", "budget_tokens": N}, as clients of other services send it. */
static bool take_thinking_object(void *target, const char *param, json_t *value, qw_api_error *e)
{
    char inner[QW_PARAM_BYTES];
    qw_chat_request *r = target;
    const char *type = c_text(json_object_get(value, "type"));
    json_t *budget = json_object_get(value, "budget_tokens");
    bool on = type != NULL && strcmp(type, "enabled") == 0, off = type != NULL && strcmp(type, "disabled") == 0;
    if (!on && !off) return qw_field_bad(e, param, "want an object whose type is \"enabled\" or \"disabled\"");
    r->request.chat.thinking = on ? QW_SWITCH_ON : QW_SWITCH_OFF;
    qw_field_name(inner, "%s.budget_tokens", param);
    return off || budget == NULL || take_budget(target, inner, budget, e);
}

static bool take_stop_loops(void *target, const char *param, json_t *value, qw_api_error *e)
{
    return take_switch(&((qw_chat_request *)target)->request.stop_loops, param, value, e);
}

/* Later rows win. */
#define THINKING_FIELDS                                                                                      \
    {"reasoning_effort", QW_FIELD_CUSTOM, 0, 0, 0, take_effort},                                             \
    {"enable_thinking", QW_FIELD_CUSTOM, 0, 0, 0, take_thinking},                                            \
    {"thinking_budget", QW_FIELD_CUSTOM, 0, 0, 0, take_budget},                                              \
    {"thinking_token_budget", QW_FIELD_CUSTOM, 0, 0, 0, take_budget},                                        \
    {"preserve_thinking", QW_FIELD_CUSTOM, 0, 0, 0, take_preserve}

/* Where clients of other servers put what goes to the template. */
static bool take_template_kwargs(void *target, const char *param, json_t *value, qw_api_error *e)
{
    static const qw_field fields[] = {THINKING_FIELDS};
    if (!json_is_object(value)) return qw_field_bad(e, param, "want an object, got %s", qw_json_kind(value));
    return qw_fields_read(fields, sizeof(fields) / sizeof(*fields), value, "chat_template_kwargs.", target, e);
}

/* ---- fields that are refused unless they ask for what happens anyway --------------------------- */

/* JSON text of a value, as the source of a form. */
static bool keep_json(qw_chat_request *r, json_t *value, qw_form_kind kind, qw_api_error *e)
{
    char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
    json_t *kept = json_is_string(value) ? json_incref(value) : text != NULL ? json_string(text) : NULL;
    free(text);
    if (json_array_append_new(r->texts, kept) != 0) return out_of_memory(e);
    r->request.form.kind = kind;
    r->request.form.source = text_of(kept);
    return true;
}

static bool keep_choices(qw_chat_request *r, const char *param, json_t *list, qw_api_error *e)
{
    size_t n = json_array_size(list);
    if (n == 0 || n > QW_CHOICES_MAX) return qw_field_bad(e, param, "%zu choices, want 1 to %d", n, QW_CHOICES_MAX);
    if (qw_alloc(&r->choices, n, sizeof(*r->choices), "choices", NULL) != QW_OK) return out_of_memory(e);
    for (size_t i = 0; i < n; i++) {
        json_t *one = json_array_get(list, i);
        if (!json_is_string(one)) return qw_field_bad(e, param, "a choice must be a string, got %s", qw_json_kind(one));
        r->choices[i] = text_of(one);
    }
    r->request.form.kind = QW_FORM_CHOICE;
    r->request.form.choices = r->choices;
    r->request.form.n_choices = n;
    return true;
}

static bool take_response_format(void *target, const char *param, json_t *value, qw_api_error *e)
{
    qw_chat_request *r = target;
    const char *type = c_text(json_object_get(value, "type"));
    if (type != NULL && strcmp(type, "text") == 0) return true;
    r->n_forms++;
    if (type != NULL && strcmp(type, "json_object") == 0) {
        r->request.form.kind = QW_FORM_JSON;
        return true;
    }
    if (type == NULL || strcmp(type, "json_schema") != 0)
        return qw_field_bad(e, param, "the type must be \"text\", \"json_object\" or \"json_schema\"");
    json_t *schema = json_object_get(json_object_get(value, "json_schema"), "schema");
    if (schema == NULL) return qw_field_bad(e, param, "json_schema has no \"schema\"");
    return keep_json(r, schema, QW_FORM_SCHEMA, e);
}

/* What vLLM calls its forms: one member of json, regex, choice, grammar. */
static bool take_structured(void *target, const char *param, json_t *value, qw_api_error *e)
{
    qw_chat_request *r = target;
    json_t *schema = json_object_get(value, "json"), *regex = json_object_get(value, "regex");
    json_t *choice = json_object_get(value, "choice"), *grammar = json_object_get(value, "grammar");
    r->n_forms++;
    if (!json_is_object(value) || json_object_size(value) != 1)
        return qw_field_bad(e, param, "want an object with one of json, regex, choice, grammar");
    if (json_is_string(regex) || json_is_string(grammar)) {
        r->request.form = (qw_form_request){.kind = regex ? QW_FORM_REGEX : QW_FORM_GRAMMAR,
                                            .source = text_of(regex ? regex : grammar)};
        return true;
    }
    if (json_is_array(choice)) return keep_choices(r, param, choice, e);
    if (schema != NULL) return keep_json(r, schema, QW_FORM_SCHEMA, e);
    return qw_field_bad(e, param, "want an object with one of json, regex, choice, grammar");
}

static bool take_modalities(void *target, const char *param, json_t *value, qw_api_error *e)
{
    const char *only = c_text(json_array_get(value, 0));
    (void)target;
    if (json_array_size(value) == 1 && only != NULL && strcmp(only, "text") == 0) return true;
    return qw_field_bad(e, param, "only [\"text\"] is supported");
}

static bool take_old_functions(void *target, const char *param, json_t *value, qw_api_error *e)
{
    (void)target;
    (void)value;
    return qw_field_bad(e, param, "not supported; use tools and tool_choice, which replaced it");
}

/* ---- messages --------------------------------------------------------------------------------- */

static bool bad_part(qw_api_error *e, const char *param, const char *type)
{
    if (type == NULL) return qw_field_bad(e, param, "want an object with a type");
    if (strcmp(type, "image_url") == 0 || strcmp(type, "input_audio") == 0 || strcmp(type, "file") == 0 ||
        strcmp(type, "video_url") == 0)
        return qw_field_bad(e, param, "this model reads text alone; it takes no %s", type);
    return qw_field_bad(e, param, "unknown type \"%.40s\" of content, want \"text\"", type);
}

/* Text parts of an array, one after the other as the model's template writes them. */
static bool join_parts(qw_chat_request *r, const char *param, json_t *parts, qw_text *out, qw_api_error *e)
{
    char inner[QW_PARAM_BYTES];
    qw_buf joined;
    bool ok = true;
    qw_buf_init(&joined, QW_PROMPT_BYTES_MAX, "content");
    for (size_t i = 0; ok && i < json_array_size(parts); i++) {
        json_t *part = json_array_get(parts, i);
        const char *type = c_text(json_object_get(part, "type"));
        bool refusal = type != NULL && strcmp(type, "refusal") == 0;
        json_t *text = json_object_get(part, refusal ? "refusal" : "text");
        qw_field_name(inner, "%s[%zu]", param, i);
        if (type == NULL || (strcmp(type, "text") != 0 && !refusal))
            ok = bad_part(e, inner, type);
        else if (!json_is_string(text))
            ok = qw_field_bad(e, inner, "its text is not a string");
        else if (qw_buf_add(&joined, json_string_value(text), json_string_length(text), NULL) != QW_OK)
            ok = out_of_memory(e);
    }
    if (ok) {
        json_t *kept = json_stringn(qw_buf_str(&joined), joined.n);
        if (json_array_append_new(r->texts, kept) != 0)
            ok = out_of_memory(e);
        else
            *out = text_of(kept);
    }
    qw_buf_free(&joined);
    return ok;
}

static bool take_content(qw_chat_request *r, const char *param, json_t *value, bool required, qw_text *out,
                         qw_api_error *e)
{
    if (json_is_string(value)) {
        *out = text_of(value);
        return true;
    }
    if (json_is_array(value)) return join_parts(r, param, value, out, e);
    if ((value == NULL || json_is_null(value)) && !required) return true;
    return qw_field_bad(e, param, "want a string or an array of text parts, got %s", qw_json_kind(value));
}

static bool take_call(qw_chat_request *r, const char *param, json_t *value, qw_tool_call *out, qw_api_error *e)
{
    json_t *function = json_object_get(value, "function"), *arguments = json_object_get(function, "arguments");
    const char *type = c_text(json_object_get(value, "type"));
    if (type != NULL && strcmp(type, "function") != 0)
        return qw_field_bad(e, param, "the type of a call must be \"function\"");
    out->id = c_text(json_object_get(value, "id"));
    out->name = c_text(json_object_get(function, "name"));
    if (out->name == NULL) return qw_field_bad(e, param, "the function has no name");
    if (json_is_string(arguments)) {
        out->arguments = text_of(arguments);
    } else if (json_is_object(arguments)) { /* some clients send the object itself */
        char *text = json_dumps(arguments, JSON_COMPACT);
        json_t *kept = text != NULL ? json_string(text) : NULL;
        free(text);
        if (json_array_append_new(r->texts, kept) != 0) return out_of_memory(e);
        out->arguments = text_of(kept);
    } else {
        return qw_field_bad(e, param, "arguments: want a string of JSON, got %s", qw_json_kind(arguments));
    }
    return true;
}

static bool take_calls(qw_chat_request *r, const char *path, size_t index, json_t *value, qw_api_error *e)
{
    char param[QW_PARAM_BYTES];
    qw_message *m = &r->messages[index];
    size_t n = json_array_size(value);
    if (value == NULL || json_is_null(value)) return true;
    qw_field_name(param, "%stool_calls", path);
    if (!json_is_array(value)) return qw_field_bad(e, param, "want an array, got %s", qw_json_kind(value));
    if (n > QW_TOOLS_MAX) return qw_field_bad(e, param, "%zu calls, at most %d are allowed", n, QW_TOOLS_MAX);
    r->calls[index] = array_of(n, sizeof(qw_tool_call));
    if (r->calls[index] == NULL) return out_of_memory(e);
    for (size_t i = 0; i < n; i++) {
        qw_field_name(param, "%stool_calls[%zu]", path, i);
        if (!take_call(r, param, json_array_get(value, i), &r->calls[index][i], e)) return false;
    }
    m->tool_calls = r->calls[index];
    m->n_tool_calls = n;
    return true;
}

/* OpenAI's roles and what the chat formats call them. */
static const char *known_role(const char *role)
{
    static const char *const roles[][2] = {{"system", "system"},       {"developer", "system"}, {"user", "user"},
                                           {"assistant", "assistant"}, {"tool", "tool"}};
    for (size_t i = 0; role != NULL && i < sizeof(roles) / sizeof(*roles); i++)
        if (strcmp(role, roles[i][0]) == 0) return roles[i][1];
    return NULL;
}

static bool take_message(qw_chat_request *r, size_t index, json_t *value, qw_api_error *e)
{
    char path[QW_PARAM_BYTES], param[QW_PARAM_BYTES];
    qw_message *m = &r->messages[index];
    json_t *role = json_object_get(value, "role"), *reasoning = json_object_get(value, "reasoning_content");
    if (!json_is_string(reasoning)) reasoning = json_object_get(value, "reasoning");
    qw_field_name(path, "messages[%zu]", index);
    if (!json_is_object(value)) return qw_field_bad(e, path, "want an object, got %s", qw_json_kind(value));
    qw_field_name(path, "messages[%zu].", index);
    qw_field_name(param, "%srole", path);
    if (!json_is_string(role)) return qw_field_bad(e, param, "want a string, got %s", qw_json_kind(role));
    m->role = known_role(c_text(role));
    if (m->role == NULL)
        return qw_field_bad(e, param, "unknown role \"%.40s\", want system, developer, user, assistant or tool",
                            json_string_value(role));
    bool assistant = strcmp(m->role, "assistant") == 0;
    qw_field_name(param, "%scontent", path);
    if (!take_content(r, param, json_object_get(value, "content"), !assistant, &m->content, e)) return false;
    m->tool_call_id = c_text(json_object_get(value, "tool_call_id"));
    if (assistant && json_is_string(reasoning)) m->reasoning = text_of(reasoning);
    return !assistant || take_calls(r, path, index, json_object_get(value, "tool_calls"), e);
}

static bool take_messages(void *target, const char *param, json_t *value, qw_api_error *e)
{
    qw_chat_request *r = target;
    if (!json_is_array(value)) return qw_field_bad(e, param, "want an array, got %s", qw_json_kind(value));
    size_t n = json_array_size(value);
    if (n > QW_MESSAGES_MAX) return qw_field_bad(e, param, "%zu messages, at most %d are allowed", n, QW_MESSAGES_MAX);
    r->messages = array_of(n, sizeof(*r->messages));
    r->calls = array_of(n, sizeof(*r->calls));
    if (r->messages == NULL || r->calls == NULL) return out_of_memory(e);
    r->request.messages = r->messages;
    r->request.n_messages = n;
    for (size_t i = 0; i < n; i++)
        if (!take_message(r, i, json_array_get(value, i), e)) return false;
    return true;
}

/* ---- the request ------------------------------------------------------------------------------ */

#define AT(member) offsetof(qw_chat_request, member)
#define SAMPLING(member) offsetof(qw_chat_request, request.sampling.member)

static const qw_field request_fields[] = {
    {"model", QW_FIELD_CUSTOM, 0, 0, 0, take_model},
    {"messages", QW_FIELD_CUSTOM, 0, 0, 0, take_messages},
    {"tools", QW_FIELD_CUSTOM, 0, 0, 0, take_tools},
    {"tool_choice", QW_FIELD_CUSTOM, 0, 0, 0, take_tool_choice},
    {"parallel_tool_calls", QW_FIELD_CUSTOM, 0, 0, 0, take_parallel},
    {"chat_template_kwargs", QW_FIELD_CUSTOM, 0, 0, 0, take_template_kwargs},
    {"thinking", QW_FIELD_CUSTOM, 0, 0, 0, take_thinking_object},
    THINKING_FIELDS,
    {"stop_loops", QW_FIELD_CUSTOM, 0, 0, 0, take_stop_loops},
    {"ignore_eos", QW_FIELD_BOOL, AT(request.ignore_eos), 0, 0, NULL},
    {"temperature", QW_FIELD_FLOAT, SAMPLING(temperature), 0, 2, NULL},
    {"top_p", QW_FIELD_FLOAT, SAMPLING(top_p), 0, 1, NULL},
    {"top_k", QW_FIELD_I32, AT(top_k), -1, 1 << 24, NULL},
    {"min_p", QW_FIELD_FLOAT, SAMPLING(min_p), 0, 1, NULL},
    {"repetition_penalty", QW_FIELD_FLOAT, SAMPLING(repetition_penalty), 0.01, 100, NULL},
    {"presence_penalty", QW_FIELD_FLOAT, SAMPLING(presence_penalty), -2, 2, NULL},
    {"frequency_penalty", QW_FIELD_FLOAT, SAMPLING(frequency_penalty), -2, 2, NULL},
    {"seed", QW_FIELD_CUSTOM, 0, 0, 0, take_seed},
    {"logit_bias", QW_FIELD_CUSTOM, 0, 0, 0, take_bias},
    {"logprobs", QW_FIELD_BOOL, AT(logprobs), 0, 0, NULL},
    {"top_logprobs", QW_FIELD_I32, AT(top_logprobs), 0, QW_TOP_LOGPROBS_MAX, NULL},
    {"max_tokens", QW_FIELD_I64, AT(request.max_tokens), 1, 1 << 30, NULL},
    {"max_completion_tokens", QW_FIELD_I64, AT(request.max_tokens), 1, 1 << 30, NULL}, /* wins: it comes later */
    {"deadline_ms", QW_FIELD_I64, AT(request.deadline_ms), 1, QW_DEADLINE_MS_MAX, NULL},
    {"stop", QW_FIELD_CUSTOM, 0, 0, 0, take_stop},
    {"stream", QW_FIELD_BOOL, AT(stream), 0, 0, NULL},
    {"stream_options", QW_FIELD_CUSTOM, 0, 0, 0, take_stream_options},
    {"n", QW_FIELD_I64, AT(n_answers), 1, 1, NULL},
    {"response_format", QW_FIELD_CUSTOM, 0, 0, 0, take_response_format},
    {"structured_outputs", QW_FIELD_CUSTOM, 0, 0, 0, take_structured},
    {"modalities", QW_FIELD_CUSTOM, 0, 0, 0, take_modalities},
    {"functions", QW_FIELD_CUSTOM, 0, 0, 0, take_old_functions},
    {"function_call", QW_FIELD_CUSTOM, 0, 0, 0, take_old_functions},
};

/* What can be judged only with all fields read. */
static bool check_together(qw_chat_request *r, qw_api_error *e)
{
    qw_sampling *s = &r->request.sampling;
    if (r->request.n_messages == 0) return qw_field_bad(e, "messages", "at least one message is needed");
    if (r->has_stream_options && !r->stream)
        return qw_field_bad(e, "stream_options", "goes with \"stream\": true alone");
    if (r->top_logprobs >= 0 && !r->logprobs)
        return qw_field_bad(e, "top_logprobs", "goes with \"logprobs\": true alone");
    s->top_logprobs = r->logprobs ? (r->top_logprobs >= 0 ? r->top_logprobs : 0) : -1;
    if (r->top_k != TOP_K_ABSENT) s->top_k = r->top_k > 0 ? r->top_k : 0; /* -1 is another word for off */
    if (r->without_tools) r->request.tools = (qw_text){0};
    if (r->n_forms > 1)
        return qw_field_bad(e, "response_format",
                            "response_format, structured_outputs and a required tool_choice: one of them at most");
    if (r->n_forms == 0 && r->strict_tools && r->request.tools.n > 0) r->request.form.kind = QW_FORM_CALLS;
    return true;
}

bool qw_chat_request_read(const qw_model *model, const char *body, size_t n, qw_chat_request *out, qw_api_error *e)
{
    json_error_t fault;
    *out = (qw_chat_request){.request = qw_request_default(model), .model = "", .top_logprobs = -1,
                             .top_k = TOP_K_ABSENT, .n_answers = 1};
    if (!qw_json_bounded(body, n, e)) return false;
    out->texts = json_array();
    out->root = json_loadb(body, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &fault);
    if (out->texts == NULL) return out_of_memory(e);
    if (out->root == NULL)
        return qw_field_bad(e, "", "the body is not valid JSON: line %d, column %d: %s", fault.line, fault.column,
                            fault.text);
    if (!json_is_object(out->root))
        return qw_field_bad(e, "", "the body is %s, want a JSON object", qw_json_kind(out->root));
    return qw_fields_read(request_fields, sizeof(request_fields) / sizeof(*request_fields), out->root, "", out, e) &&
           check_together(out, e);
}

void qw_chat_request_free(qw_chat_request *r)
{
    for (size_t i = 0; r->calls != NULL && i < r->request.n_messages; i++) free(r->calls[i]);
    free(r->calls);
    free(r->messages);
    free(r->stop);
    free(r->choices);
    free(r->bias);
    json_decref(r->texts);
    json_decref(r->root);
    *r = (qw_chat_request){0};
}
