/* history.c: the chat's history file (contract in history.h).
 *
 * libedit's own save rewrites the whole file, which loses what a second chat added; appending does not.
 */
#include "cli/history.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/mem.h"

struct qw_history {
    char *path; /* owns */
};

/* Undoes the escapes in place; returns the new length. */
static size_t unescape(char *s, size_t n)
{
    size_t n_out = 0;
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '\\' && i + 1 < n) {
            i++;
            s[n_out++] = s[i] == 'n' ? '\n' : s[i];
        } else {
            s[n_out++] = s[i];
        }
    }
    return n_out;
}

static size_t count_lines(const char *data, size_t n)
{
    size_t n_lines = n > 0 && data[n - 1] != '\n';
    for (size_t i = 0; i < n; i++) n_lines += data[i] == '\n';
    return n_lines;
}

/* Start of the line after the first n_skip ones. */
static size_t skip_lines(const char *data, size_t n, size_t n_skip)
{
    size_t i = 0;
    for (; i < n && n_skip > 0; i++) n_skip -= data[i] == '\n';
    return i;
}

static qw_status load(const char *path, qw_history_fn *each, void *user, qw_err *err)
{
    char *data = NULL;
    size_t n = 0;
    qw_err why;
    qw_status status = qw_file_read(path, QW_HISTORY_FILE_BYTES_MAX, &data, &n, &why);
    if (status == QW_E_NOT_FOUND) return QW_OK;
    if (status != QW_OK) return qw_fail(err, status, "%s", why.text);
    size_t n_lines = count_lines(data, n), n_max = QW_HISTORY_ENTRIES_MAX;
    size_t begin = n_lines > n_max ? skip_lines(data, n, n_lines - n_max) : 0;
    if (n_lines > 2 * n_max) status = qw_file_write(path, data + begin, n - begin, err);
    for (size_t i = begin; i < n && status == QW_OK;) {
        const char *end = memchr(data + i, '\n', n - i);
        size_t len = end != NULL ? (size_t)(end - (data + i)) : n - i;
        size_t n_text = unescape(data + i, len);
        if (n_text > 0) status = each(user, data + i, n_text, err);
        i += len + 1;
    }
    free(data);
    return status;
}

static qw_status make_folder(const char *path, qw_err *err)
{
    const char *slash = strrchr(path, '/');
    char *dir = NULL;
    if (slash == NULL || slash == path) return QW_OK;
    QW_TRY(qw_strndup(&dir, path, (size_t)(slash - path), err));
    qw_status status = qw_make_dirs(dir, err);
    free(dir);
    return status;
}

qw_status qw_history_open(const char *path, qw_history_fn *each, void *user, qw_history **out, qw_err *err)
{
    qw_history *h = NULL;
    QW_TRY(make_folder(path, err));
    QW_TRY(load(path, each, user, err));
    QW_TRY(qw_alloc(&h, 1, sizeof(*h), "history", err));
    qw_status status = qw_strndup(&h->path, path, strlen(path), err);
    if (status != QW_OK) {
        qw_history_close(h);
        return status;
    }
    *out = h;
    return QW_OK;
}

/* Opened anew for each entry: another chat may have replaced the file by a shorter one. */
static qw_status append_line(const char *path, const char *line, size_t n, qw_err *err)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return qw_fail_errno(err, "%s: cannot be opened", path);
    ssize_t written = write(fd, line, n);
    qw_status status = written == (ssize_t)n ? QW_OK : qw_fail_errno(err, "%s: cannot be written", path);
    close(fd);
    return status;
}

qw_status qw_history_append(qw_history *h, const char *text, qw_err *err)
{
    qw_buf line;
    qw_status status = QW_OK;
    if (strlen(text) > QW_HISTORY_ENTRY_BYTES_MAX) return QW_OK;
    qw_buf_init(&line, 4 * (size_t)QW_HISTORY_ENTRY_BYTES_MAX, "history entry");
    for (const char *p = text; *p != 0; p++) {
        const char *escaped = *p == '\n' ? "\\n" : *p == '\\' ? "\\\\" : NULL;
        QW_TRY_GOTO(escaped != NULL ? qw_buf_add_str(&line, escaped, err) : qw_buf_add(&line, p, 1, err));
    }
    QW_TRY_GOTO(qw_buf_add(&line, "\n", 1, err));
    status = append_line(h->path, line.data, line.n, err);
fail:
    qw_buf_free(&line);
    return status;
}

void qw_history_close(qw_history *h)
{
    if (h == NULL) return;
    free(h->path);
    free(h);
}
