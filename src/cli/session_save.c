/* session_save.c: writing a conversation to a file, as Markdown to read or as JSON to use again. Main thread. */
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/file.h"
#include "cli/report.h"
#include "cli/session.h"

enum { SAVE_BYTES_MAX = 1 << 30 };

static qw_status add_section(qw_buf *b, const char *title, qw_text text, qw_err *err)
{
    QW_TRY(qw_buf_printf(b, err, "## %s\n\n", title));
    QW_TRY(qw_buf_add(b, text.s, text.n, err));
    return qw_buf_add_str(b, text.n > 0 && text.s[text.n - 1] == '\n' ? "\n" : "\n\n", err);
}

static qw_status as_markdown(const qw_session *s, qw_buf *b, qw_err *err)
{
    QW_TRY(qw_buf_printf(b, err, "# Conversation with %s\n\n", s->model_name));
    if (s->system != NULL) QW_TRY(add_section(b, "System", qw_text_of(s->system), err));
    for (size_t i = 0; i < s->n; i++) {
        const qw_session_message *m = &s->messages[i];
        if (m->n_reasoning > 0) QW_TRY(add_section(b, "Thinking", (qw_text){m->reasoning, m->n_reasoning}, err));
        QW_TRY(add_section(b, m->from_user ? "User" : "Assistant", (qw_text){m->text, m->n}, err));
    }
    return QW_OK;
}

/* As the service takes messages back: thinking is a field of its own. */
static int add_message(json_t *messages, const char *role, qw_text text, qw_text reasoning)
{
    json_t *message = json_pack("{s:s, s:o}", "role", role, "content", qw_report_text(text));
    int bad = 0;
    if (reasoning.n > 0) bad = json_object_set_new(message, "reasoning_content", qw_report_text(reasoning));
    return bad | json_array_append_new(messages, message);
}

static qw_status as_json(const qw_session *s, qw_buf *b, qw_err *err)
{
    json_t *messages = json_array();
    int bad = messages == NULL;
    if (s->system != NULL) bad |= add_message(messages, "system", qw_text_of(s->system), (qw_text){0});
    for (size_t i = 0; i < s->n; i++) {
        const qw_session_message *m = &s->messages[i];
        bad |= add_message(messages, m->from_user ? "user" : "assistant", (qw_text){m->text, m->n},
                           (qw_text){m->reasoning, m->n_reasoning});
    }
    json_t *root = json_pack("{s:o, s:o}", "model", qw_report_text(qw_text_of(s->model_name)), "messages", messages);
    char *text = bad || root == NULL ? NULL : json_dumps(root, JSON_INDENT(2));
    qw_status status = QW_OK;
    if (text == NULL) status = qw_fail(err, QW_E_MEMORY, "out of memory: the conversation as JSON");
    else status = qw_buf_printf(b, err, "%s\n", text);
    free(text);
    json_decref(root);
    return status;
}

qw_status qw_session_save(const qw_session *s, const char *path, qw_err *err)
{
    qw_buf b;
    size_t n = strlen(path);
    bool json = n >= 5 && strcmp(path + n - 5, ".json") == 0;
    qw_buf_init(&b, SAVE_BYTES_MAX, "conversation");
    qw_status status = json ? as_json(s, &b, err) : as_markdown(s, &b, err);
    if (status == QW_OK) status = qw_file_write(path, qw_buf_str(&b), b.n, err);
    qw_buf_free(&b);
    return status;
}
