/* names.c: model names, pull specifications, URLs: the checks between user text and paths.
 *
 * Owner: any thread, no state. Contract: see names.h. Everything is decided by small alphabets, so that no
 * text that passes can leave a folder, name a device or carry a control byte.
 */
#include "hub/names.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/mem.h"

enum { NAME_BYTES_MAX = 96, SPLIT_TAIL = 20 /* "-00001-of-00003.gguf" */, DISTANCE_MAX = 64 };

static bool is_lower_alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

static bool is_alnum(char c)
{
    return is_lower_alnum(c) || (c >= 'A' && c <= 'Z');
}

bool qw_hub_name_valid(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > NAME_BYTES_MAX) return false;
    bool start = true, tag = false;
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        if (c == ':' && !tag && !start) {
            tag = start = true;
        } else if (is_lower_alnum(c) || (!start && (c == '.' || c == '_' || c == '-'))) {
            start = false;
        } else {
            return false;
        }
    }
    return !start;
}

qw_status qw_hub_name_normal(const char *typed, char out[QW_HUB_NAME_MAX], qw_err *err)
{
    size_t n = strlen(typed);
    if (n <= NAME_BYTES_MAX) {
        for (size_t i = 0; i <= n; i++) {
            char c = typed[i];
            out[i] = (c >= 'A' && c <= 'Z') ? (char)(c - 'A' + 'a') : c;
        }
        if (qw_hub_name_valid(out)) return QW_OK;
    }
    out[0] = 0;
    return qw_fail(
        err, QW_E_ARG,
        "\"%.100s\" is not a model name: letters, digits, '.', '_' and '-', and at most one ':' before a "
        "tag, as in qwen2.5-coder:0.5b",
        typed);
}

void qw_hub_name_to_file(const char *name, char out[QW_HUB_NAME_MAX])
{
    QW_ASSERT(qw_hub_name_valid(name));
    size_t i = 0;
    for (; name[i]; i++) out[i] = name[i] == ':' ? '@' : name[i];
    out[i] = 0;
}

bool qw_hub_name_from_file(const char *file, size_t n, char out[QW_HUB_NAME_MAX])
{
    if (n == 0 || n > NAME_BYTES_MAX || memchr(file, ':', n)) return false;
    for (size_t i = 0; i < n; i++) out[i] = file[i] == '@' ? ':' : file[i];
    out[n] = 0;
    return strlen(out) == n && qw_hub_name_valid(out);
}

qw_status qw_hub_name_from_gguf(const char *file, char out[QW_HUB_NAME_MAX], qw_err *err)
{
    size_t stem = strlen(file), no, count;
    if (!qw_hub_split_parse(file, &stem, &no, &count) && stem > 5 && strcmp(file + stem - 5, ".gguf") == 0)
        stem -= 5;
    size_t n = 0;
    for (size_t i = 0; i < stem && n < NAME_BYTES_MAX; i++) {
        char c = file[i];
        if (c >= 'A' && c <= 'Z') c = (char)(c - 'A' + 'a');
        if (!is_lower_alnum(c) && c != '.' && c != '_' && c != '-') c = '-';
        if (n == 0 && !is_lower_alnum(c)) continue;
        out[n++] = c;
    }
    out[n] = 0;
    if (qw_hub_name_valid(out)) return QW_OK;
    return qw_fail(err, QW_E_ARG, "no model name can be made from \"%.100s\"; give one with --name NAME",
                   file);
}

bool qw_hub_component_valid(const char *s, size_t n)
{
    if (n == 0 || n > 200 || s[0] == '.') return false;
    for (size_t i = 0; i < n; i++)
        if (!is_alnum(s[i]) && !strchr("._-+=", s[i])) return false;
    return memchr(s, 0, n) == NULL;
}

bool qw_hub_digest_valid(const char *sha256)
{
    for (size_t i = 0; i < 64; i++)
        if (!((sha256[i] >= '0' && sha256[i] <= '9') || (sha256[i] >= 'a' && sha256[i] <= 'f'))) return false;
    return sha256[64] == 0;
}

size_t qw_hub_distance(const char *a, const char *b, size_t limit)
{
    size_t na = strlen(a), nb = strlen(b), row[DISTANCE_MAX + 1];
    if (na > DISTANCE_MAX || nb > DISTANCE_MAX) return limit + 1;
    for (size_t j = 0; j <= nb; j++) row[j] = j;
    for (size_t i = 1; i <= na; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[nb] > limit ? limit + 1 : row[nb];
}

void qw_hub_source_clear(qw_hub_source *s)
{
    free(s->repo);
    free(s->file);
    free(s->url);
    free(s->version);
    for (size_t i = 0; i < s->n_packages; i++) {
        if (s->packages) free(s->packages[i]);
        if (s->members) free(s->members[i]);
    }
    free(s->packages);
    free(s->members);
    memset(s, 0, sizeof(*s));
}

static bool ends_in_gguf(const char *s)
{
    size_t n = strlen(s);
    return n >= 5 && strcmp(s + n - 5, ".gguf") == 0;
}

/* A folder whose name could be a model's is one only with a configuration in it. */
static bool has_config(const char *dir)
{
    char path[QW_HUB_PATH_MAX];
    struct stat st;
    return snprintf(path, sizeof path, "%s/config.json", dir) < (int)sizeof path && stat(path, &st) == 0;
}

bool qw_hub_is_path(const char *text)
{
    struct stat st;
    if (strchr(text, '/') || ends_in_gguf(text)) return true;
    if (stat(text, &st) != 0) return false;
    return S_ISREG(st.st_mode) || (S_ISDIR(st.st_mode) && has_config(text));
}

/* OWNER/REPO/FILE.gguf, FILE possibly in folders; every component from the small alphabet. */
static qw_status parse_repo(const char *rest, qw_hub_source *out, qw_err *err)
{
    size_t n_slash = 0, repo_bytes = 0;
    for (const char *at = rest;;) {
        size_t n = strcspn(at, "/");
        if (!qw_hub_component_valid(at, n)) goto bad;
        if (!at[n]) break;
        if (++n_slash == 2) repo_bytes = (size_t)(at + n - rest);
        at += n + 1;
    }
    if (n_slash < 2 || !ends_in_gguf(rest)) goto bad;
    QW_TRY(qw_strndup(&out->repo, rest, repo_bytes, err));
    return qw_strndup(&out->file, rest + repo_bytes + 1, strlen(rest) - repo_bytes - 1, err);
bad:
    return qw_fail(err, QW_E_ARG,
                   "\"%.200s\" is not OWNER/REPO/FILE.gguf, as in hf:Qwen/Qwen3-8B-GGUF/Qwen3-8B-Q4_K_M.gguf",
                   rest);
}

static qw_status parse_source(const char *spec, qw_hub_source *out, qw_err *err)
{
    if (strlen(spec) >= QW_HUB_SPEC_MAX)
        return qw_fail(err, QW_E_ARG, "what to pull is longer than %d bytes", QW_HUB_SPEC_MAX - 1);
    if (strncmp(spec, "hf:", 3) == 0 || strncmp(spec, "ms:", 3) == 0) {
        out->kind = spec[0] == 'h' ? QW_HUB_SRC_HF : QW_HUB_SRC_MS;
        return parse_repo(spec + 3, out, err);
    }
    if (strstr(spec, "://")) {
        char host[256];
        bool plain;
        QW_TRY(qw_hub_url_check(spec, host, &plain, err));
        out->kind = QW_HUB_SRC_URL;
    } else if (qw_hub_is_path(spec)) {
        out->kind = QW_HUB_SRC_FILE;
    } else {
        return qw_fail(err, QW_E_NOT_FOUND, "\"%.100s\" is neither a source nor a file", spec);
    }
    return qw_strndup(&out->url, spec, strlen(spec), err);
}

qw_status qw_hub_source_parse(const char *spec, qw_hub_source *out, qw_err *err)
{
    memset(out, 0, sizeof(*out));
    qw_status status = parse_source(spec, out, err);
    if (status != QW_OK) qw_hub_source_clear(out);
    return status;
}

/* Bytes of a URL or path up to a query or fragment (URLs only). */
static size_t path_bytes(const char *text)
{
    return strstr(text, "://") ? strcspn(text, "?#") : strlen(text);
}

qw_status qw_hub_source_file_name(const qw_hub_source *s, char out[256], qw_err *err)
{
    const char *text = s->kind == QW_HUB_SRC_HF || s->kind == QW_HUB_SRC_MS ? s->file : s->url;
    size_t end = path_bytes(text), start = end;
    while (start > 0 && text[start - 1] != '/') start--;
    size_t n = end - start;
    if (n == 0 || n > 255) return qw_fail(err, QW_E_ARG, "%.300s: names no file", text);
    memcpy(out, text + start, n);
    out[n] = 0;
    return QW_OK;
}

static bool five_digits(const char *s, size_t *value)
{
    *value = 0;
    for (size_t i = 0; i < 5; i++) {
        if (s[i] < '0' || s[i] > '9') return false;
        *value = *value * 10 + (size_t)(s[i] - '0');
    }
    return true;
}

bool qw_hub_split_parse(const char *file, size_t *stem_bytes, size_t *no, size_t *count)
{
    size_t n = strlen(file);
    if (n <= SPLIT_TAIL) return false;
    const char *tail = file + n - SPLIT_TAIL;
    size_t first, second;
    if (tail[0] != '-' || !five_digits(tail + 1, &first) || strncmp(tail + 6, "-of-", 4) != 0 ||
        !five_digits(tail + 10, &second) || strcmp(tail + 15, ".gguf") != 0)
        return false;
    *stem_bytes = n - SPLIT_TAIL;
    *no = first;
    *count = second;
    return true;
}

bool qw_hub_split_renumber(char *text, size_t no)
{
    size_t end = path_bytes(text), stem, old, count;
    char tail[SPLIT_TAIL + 2], digits[8];
    if (end <= SPLIT_TAIL || no > 99999) return false;
    memcpy(tail, text + end - SPLIT_TAIL - 1, SPLIT_TAIL + 1);
    tail[SPLIT_TAIL + 1] = 0;
    if (!qw_hub_split_parse(tail, &stem, &old, &count)) return false;
    snprintf(digits, sizeof(digits), "%05zu", no);
    memcpy(text + end - SPLIT_TAIL + 1, digits, 5);
    return true;
}

static bool is_loopback(const char *host)
{
    static const char *const names[] = {"127.0.0.1", "localhost", "[::1]"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(host, names[i]) == 0) return true;
    return false;
}

qw_status qw_hub_url_check(const char *url, char host[256], bool *plain, qw_err *err)
{
    CURLU *u = NULL;
    char *scheme = NULL, *name = NULL, *port = NULL, *user = NULL;
    qw_status status = QW_OK;
    host[0] = 0;
    for (const char *c = url; *c; c++)
        if ((unsigned char)*c <= 0x20 || (unsigned char)*c >= 0x7f || *c == '\\')
            return qw_fail(err, QW_E_ARG,
                           "%.200s: a URL holds no blanks, backslashes or non-ASCII characters", url);
    u = curl_url();
    if (!u) return qw_fail(err, QW_E_MEMORY, "out of memory: reading a URL");
    if (curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME) ||
        curl_url_get(u, CURLUPART_SCHEME, &scheme, 0)) {
        status = qw_fail(err, QW_E_ARG, "%.200s: not a URL", url);
        goto fail;
    }
    *plain = strcmp(scheme, "https") != 0;
    bool has_host = curl_url_get(u, CURLUPART_HOST, &name, 0) == CURLUE_OK;
    if (!has_host || (*plain && !(strcmp(scheme, "http") == 0 && is_loopback(name)))) {
        status = qw_fail(err, QW_E_ARG, "%.200s: only https is used (http for this machine itself)", url);
        goto fail;
    }
    if (curl_url_get(u, CURLUPART_USER, &user, 0) == CURLUE_OK) {
        status = qw_fail(err, QW_E_ARG, "a URL with a user name in it is not used");
        goto fail;
    }
    bool has_port = curl_url_get(u, CURLUPART_PORT, &port, 0) == CURLUE_OK;
    int n = snprintf(host, 256, "%s%s%s", name, has_port ? ":" : "", has_port ? port : "");
    if (n <= 0 || n >= 256) status = qw_fail(err, QW_E_ARG, "%.100s: the host's name is too long", url);
fail:
    curl_free(scheme);
    curl_free(name);
    curl_free(port);
    curl_free(user);
    curl_url_cleanup(u);
    return status;
}
