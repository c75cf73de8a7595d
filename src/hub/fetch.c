/* fetch.c: one file over HTTP(S) into a partial file, with resume. libcurl does the transport.
 *
 * Owner: the pulling thread. Contract: see fetch.h. Redirects are not left to libcurl, since every hop must
 * pass the one URL check, the token must not travel, and the first answer of a hub carries the file's sum.
 * What an answer promises (size, sum, range) is compared with what is wanted before its first byte is
 * written.
 */
#include "hub/fetch.h"

#include <ctype.h>
#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "qw_types.h"

enum {
    CONNECT_MS = 6000,
    STALL_S = 30, /* no byte for so long ends an attempt */
    HOPS_MAX = 8,
    IDLE_ATTEMPTS_MAX = 4, /* attempts in a row that bring nothing */
    ATTEMPTS_MAX = 100,
    RETRY_MS = 500,
    META_BYTES_MAX = 16384
};

/* ---- the record beside a partial file ---------------------------------------------------------- */

static void copy_text(const json_t *o, const char *key, char *out, size_t cap)
{
    const char *s = json_string_value(json_object_get(o, key));
    if (!s || strlen(s) >= cap) s = "";
    memcpy(out, s, strlen(s) + 1);
}

bool qw_hub_partial_read(const char *path, qw_hub_partial *out)
{
    char *data = NULL;
    size_t n = 0;
    memset(out, 0, sizeof(*out));
    if (qw_file_read(path, META_BYTES_MAX, &data, &n, NULL) != QW_OK) return false;
    json_t *o = json_loadb(data, n, JSON_REJECT_DUPLICATES, NULL);
    free(data);
    copy_text(o, "source", out->source, sizeof(out->source));
    copy_text(o, "etag", out->etag, sizeof(out->etag));
    copy_text(o, "sha256", out->sha256, sizeof(out->sha256));
    if (!qw_hub_digest_valid(strlen(out->sha256) == 64 ? out->sha256 : "")) out->sha256[0] = 0;
    json_int_t total = json_integer_value(json_object_get(o, "total"));
    json_int_t bytes = json_integer_value(json_object_get(o, "bytes"));
    json_int_t packages = json_integer_value(json_object_get(o, "packages"));
    json_decref(o);
    if (total < 0 || bytes < 0 || packages < 0 || packages > QW_HUB_PARTS_MAX) return false;
    out->total = (uint64_t)total;
    out->bytes = (uint64_t)bytes;
    out->packages = (size_t)packages;
    return out->source[0] != 0;
}

qw_status qw_hub_partial_write(const char *path, const qw_hub_partial *p, qw_err *err)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I}", "source", p->source, "etag", p->etag, "sha256",
                          p->sha256, "total", (json_int_t)p->total, "bytes", (json_int_t)p->bytes, "packages",
                          (json_int_t)p->packages);
    char *text = o ? json_dumps(o, JSON_INDENT(1)) : NULL;
    json_decref(o);
    if (!text) return qw_fail(err, QW_E_MEMORY, "out of memory: writing %.300s", path);
    qw_status status = qw_file_write(path, text, strlen(text), err);
    free(text);
    return status;
}

/* ---- one transfer ------------------------------------------------------------------------------ */

typedef struct transfer {
    const qw_hub_fetch *f;
    qw_hub_meter *meter;
    qw_hub_fetched *out;
    qw_hub_partial meta;  /* as on disk, or empty */
    CURL *curl;           /* owns */
    int fd;               /* owns; -1: the partial file is not open */
    char from[256];       /* host of the first URL: what messages speak of */
    bool plain_start;     /* the first URL is http to this machine */
    uint64_t offset;      /* asked for with Range; 0: from the beginning */
    uint64_t have;        /* bytes in the partial file */
    uint64_t total;       /* of the file, 0: not said */
    bool body;            /* begin_body() agreed: bytes are written */
    bool came, ever_came; /* bytes were written in this attempt, in any attempt */
    long code;            /* HTTP status of the last answer, 0: none came */
    char etag[256];       /* of the answer that runs */
    uint64_t range_start, range_total;
    bool has_range;
    qw_status status; /* set when a callback stops the transfer */
    qw_err err;
} transfer;

/* The value of a header line when its name is `name`. */
static bool header_value(const char *line, size_t n, const char *name, char *out, size_t cap)
{
    size_t k = strlen(name);
    if (n <= k || strncasecmp(line, name, k) != 0 || line[k] != ':') return false;
    line += k + 1;
    n -= k + 1;
    while (n > 0 && (*line == ' ' || *line == '\t')) line++, n--;
    while (n > 0 && isspace((unsigned char)line[n - 1])) n--;
    if (n >= cap) n = 0; /* longer than anything we use */
    memcpy(out, line, n);
    out[n] = 0;
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)out[i] < 0x20 || (unsigned char)out[i] > 0x7e) out[0] = 0;
    return true;
}

/* "bytes 100-199/200" */
static bool parse_range(const char *s, uint64_t *start, uint64_t *total)
{
    unsigned long long first, last, all;
    char end;
    if (sscanf(s, "bytes %20llu-%20llu/%20llu%c", &first, &last, &all, &end) != 3) return false;
    if (first > last || last >= all || all > INT64_MAX) return false;
    *start = first;
    *total = all;
    return true;
}

static size_t on_header(char *line, size_t size, size_t n, void *user)
{
    transfer *t = user;
    char value[256];
    n *= size;
    if (n >= 5 && strncmp(line, "HTTP/", 5) == 0) {
        t->etag[0] = 0;
        t->has_range = false;
    } else if (header_value(line, n, "ETag", value, sizeof(value))) {
        /* Weak validators ("W/...") do not promise the same bytes. */
        snprintf(t->etag, sizeof(t->etag), "%s", value[0] == '"' ? value : "");
    } else if (header_value(line, n, "Content-Range", value, sizeof(value))) {
        t->has_range = parse_range(value, &t->range_start, &t->range_total);
    } else if (header_value(line, n, "X-Linked-ETag", value, sizeof(value)) && strlen(value) == 66) {
        value[65] = 0;
        if (qw_hub_digest_valid(value + 1)) memcpy(t->out->sha256, value + 1, 65);
    }
    return n;
}

static qw_status refuse_other_file(transfer *t)
{
    const qw_hub_fetch *f = t->f;
    if (f->sha256[0] && t->out->sha256[0] && strcmp(f->sha256, t->out->sha256) != 0)
        return qw_fail(&t->err, QW_E_CORRUPT,
                       "%s: has another file under this name (SHA-256 %.16s..., wanted %.16s...)", t->from,
                       t->out->sha256, f->sha256);
    if (f->bytes && t->total && f->bytes != t->total)
        return qw_fail(&t->err, QW_E_CORRUPT,
                       "%s: has another file under this name (%llu bytes, wanted %llu)", t->from,
                       (unsigned long long)t->total, (unsigned long long)f->bytes);
    return QW_OK;
}

/* The answer's head is complete and its first byte is here: decides whether and where it is written. */
static qw_status begin_body(transfer *t)
{
    long code = 0;
    curl_off_t length = -1;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &code);
    curl_easy_getinfo(t->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    if (code == 206) {
        if (!t->has_range || t->offset == 0 || t->range_start != t->offset ||
            (t->meta.total && t->range_total != t->meta.total))
            return qw_fail(&t->err, QW_E_FORMAT, "%s: answered with another range than asked for", t->from);
        t->have = t->offset;
        t->total = t->range_total;
    } else {
        t->have = 0;
        t->total = length > 0 ? (uint64_t)length : 0;
    }
    QW_TRY(refuse_other_file(t));
    uint64_t want = t->total ? t->total : t->f->bytes;
    QW_TRY(qw_hub_space(t->f->space_dir, want > t->have ? want - t->have : 0, &t->err));
    if (t->fd < 0) t->fd = open(t->f->part_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (t->fd < 0 || ftruncate(t->fd, (off_t)t->have) != 0 || lseek(t->fd, (off_t)t->have, SEEK_SET) < 0)
        return qw_fail_errno(&t->err, "%.400s", t->f->part_path);
    /* The record comes before the bytes: a kill in between costs what came, never mixes two files. */
    snprintf(t->meta.source, sizeof(t->meta.source), "%s", t->f->url);
    snprintf(t->meta.etag, sizeof(t->meta.etag), "%s", t->etag);
    memcpy(t->meta.sha256, t->out->sha256, sizeof(t->meta.sha256));
    t->meta.total = t->total;
    t->meta.bytes = t->meta.packages = 0;
    QW_TRY(qw_hub_partial_write(t->f->meta_path, &t->meta, &t->err));
    qw_hub_meter_start(t->meter, QW_HUB_DOWNLOAD, want);
    t->meter->now.resumed_bytes = t->have;
    if (t->have > 0) t->out->resumed = true;
    t->body = true;
    return QW_OK;
}

static size_t on_body(char *data, size_t size, size_t n, void *user)
{
    transfer *t = user;
    long code = 0;
    n *= size;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &code);
    if (code != 200 && code != 206) return n; /* the text of an error or redirect: not wanted */
    if (!t->body) t->status = begin_body(t);
    if (t->status == QW_OK && t->have == 0 && n >= 4 && memcmp(data, "GGUF", 4) != 0)
        t->status = qw_fail(&t->err, QW_E_FORMAT, "%s: what it gives is not a GGUF file", t->from);
    uint64_t limit = t->total ? t->total : t->f->bytes;
    if (t->status == QW_OK && limit && n > limit - t->have)
        t->status = qw_fail(&t->err, QW_E_CORRUPT, "%s: sends more bytes than it said", t->from);
    if (t->status == QW_OK) t->status = qw_hub_write(t->fd, data, n, t->f->part_path, &t->err);
    if (t->status != QW_OK) return 0;
    t->have += n;
    t->came = t->ever_came = true;
    return n;
}

static int on_progress(void *user, curl_off_t dl_total, curl_off_t dl_now, curl_off_t ul_total,
                       curl_off_t ul_now)
{
    transfer *t = user;
    (void)dl_total;
    (void)dl_now;
    (void)ul_total;
    (void)ul_now;
    if (qw_hub_meter_tick(t->meter, t->have)) return 0;
    t->status = qw_hub_cancelled(&t->err);
    return 1;
}

/* Same scheme, host and port. */
static bool same_origin(const char *url, const char *base)
{
    char a[256], b[256];
    bool plain_a, plain_b;
    return qw_hub_url_check(url, a, &plain_a, NULL) == QW_OK &&
           qw_hub_url_check(base, b, &plain_b, NULL) == QW_OK && plain_a == plain_b && strcasecmp(a, b) == 0;
}

static const char *curl_reason(CURLcode code)
{
    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST: return "could not resolve host";
    case CURLE_COULDNT_RESOLVE_PROXY: return "could not resolve the proxy";
    case CURLE_COULDNT_CONNECT: return "could not connect";
    case CURLE_OPERATION_TIMEDOUT: return "no answer in time";
    case CURLE_PEER_FAILED_VERIFICATION: return "its TLS certificate is not trusted";
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_RECV_ERROR: return "the connection was cut";
    default: return curl_easy_strerror(code);
    }
}

static void set_options(transfer *t, const char *url, bool plain)
{
    CURL *c = t->curl;
    curl_easy_reset(c);
    curl_easy_setopt(c, CURLOPT_URL, url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, plain ? "http" : "https");
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    if (plain) curl_easy_setopt(c, CURLOPT_PROXY, ""); /* this machine itself */
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "qw/" QW_VERSION);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_MS);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME, (long)STALL_S);
    curl_easy_setopt(c, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    curl_easy_setopt(c, CURLOPT_BUFFERSIZE, 256L << 10);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(c, CURLOPT_XFERINFODATA, t);
}

static struct curl_slist *add_header(struct curl_slist *list, const char *name, const char *value)
{
    char line[1200];
    int n = snprintf(line, sizeof(line), "%s%s", name, value);
    if (n < 0 || (size_t)n >= sizeof(line) || strpbrk(line, "\r\n")) return list;
    struct curl_slist *more = curl_slist_append(list, line);
    return more ? more : list;
}

/* One request. Afterwards t->code is the HTTP status and t->status a callback's verdict. */
static CURLcode request(transfer *t, const char *url, bool plain)
{
    struct curl_slist *headers = NULL;
    char range[64];
    set_options(t, url, plain);
    t->body = false;
    t->status = QW_OK;
    if (t->offset > 0) {
        snprintf(range, sizeof(range), "%llu-", (unsigned long long)t->offset);
        curl_easy_setopt(t->curl, CURLOPT_RANGE, range);
        headers = add_header(headers, "If-Range: ", t->meta.etag);
    }
    if (t->f->token && t->f->token[0] && same_origin(url, t->f->token_base))
        headers = add_header(headers, "Authorization: Bearer ", t->f->token);
    curl_easy_setopt(t->curl, CURLOPT_HTTPHEADER, headers);
    CURLcode rc = curl_easy_perform(t->curl);
    t->code = 0;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &t->code);
    curl_slist_free_all(headers);
    return rc;
}

static qw_status http_error(transfer *t)
{
    long code = t->code;
    if (code == 401 || code == 403)
        return qw_fail(&t->err, QW_E_NETWORK, "%s: access refused (HTTP %ld)%s", t->from, code,
                       t->f->token_base ? "; a gated model needs HF_TOKEN set to a token that may read it"
                                        : "");
    if (code == 404 || code == 410)
        return qw_fail(&t->err, QW_E_NOT_FOUND, "%s: no such file (HTTP %ld)", t->from, code);
    return qw_fail(&t->err, QW_E_NETWORK, "%s: answered HTTP %ld", t->from, code);
}

/* Follows redirects until an answer with a body was taken or refused. */
static qw_status follow(transfer *t)
{
    char url[QW_HUB_SPEC_MAX + 2048], host[256];
    bool plain = t->plain_start;
    snprintf(url, sizeof(url), "%s", t->f->url);
    for (int hop = 0; hop < HOPS_MAX; hop++) {
        CURLcode rc = request(t, url, plain);
        if (t->status != QW_OK) return t->status;
        if (rc != CURLE_OK) return qw_fail(&t->err, QW_E_NETWORK, "%s: %s", t->from, curl_reason(rc));
        if (t->code == 200 || t->code == 206) return QW_OK;
        QW_TRY(refuse_other_file(t));
        char *next = NULL;
        curl_easy_getinfo(t->curl, CURLINFO_REDIRECT_URL, &next);
        if (t->code < 300 || t->code > 399 || !next) return http_error(t);
        if (strlen(next) >= sizeof(url))
            return qw_fail(&t->err, QW_E_NETWORK, "%s: redirects to an overlong URL", t->from);
        memcpy(url, next, strlen(next) + 1);
        if (qw_hub_url_check(url, host, &plain, NULL) != QW_OK || (plain && !t->plain_start))
            return qw_fail(&t->err, QW_E_NETWORK, "%s: redirects to something else than https", t->from);
    }
    return qw_fail(&t->err, QW_E_NETWORK, "%s: redirects more than %d times", t->from, HOPS_MAX);
}

/* How much of the partial file can be kept. */
static void plan_resume(transfer *t)
{
    struct stat st;
    t->offset = 0;
    if (!qw_hub_partial_read(t->f->meta_path, &t->meta) || strcmp(t->meta.source, t->f->url) != 0 ||
        !t->meta.etag[0]) {
        memset(&t->meta, 0, sizeof(t->meta));
        return;
    }
    if (lstat(t->f->part_path, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size <= 0) return;
    if (t->meta.total && (uint64_t)st.st_size > t->meta.total) return;
    t->offset = (uint64_t)st.st_size;
}

/* True when the partial file was complete already, for instance because the program was killed during the
 * checksum. */
static bool complete(const transfer *t)
{
    return t->offset > 0 && t->meta.total == t->offset && (!t->f->bytes || t->f->bytes == t->offset);
}

/* Whether the answer that ended without an error brought the whole file. */
static qw_status whole(transfer *t)
{
    uint64_t want = t->total ? t->total : t->f->bytes;
    if (!t->body || t->have == 0) return qw_fail(&t->err, QW_E_NETWORK, "%s: gave an empty file", t->from);
    if (want && t->have != want) return qw_fail(&t->err, QW_E_NETWORK, "%s: the connection was cut", t->from);
    return QW_OK;
}

/* A source that never gave a byte is left at once; one that did gets time to come back. */
static qw_status attempts(transfer *t)
{
    int idle = 0;
    for (int attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
        plan_resume(t);
        if (complete(t)) {
            memcpy(t->out->sha256, t->meta.sha256, sizeof(t->out->sha256));
            t->out->resumed = true;
            return QW_OK;
        }
        t->came = false;
        qw_status status = follow(t);
        if (status == QW_OK) status = whole(t);
        if (status == QW_OK) return QW_OK;
        if (t->offset > 0 && (status == QW_E_FORMAT || t->code == 416)) {
            /* What is here fits nothing there: forget it. */
            unlink(t->f->meta_path);
            continue;
        }
        idle = t->came ? 0 : idle + 1;
        if (status != QW_E_NETWORK || !t->ever_came || idle >= IDLE_ATTEMPTS_MAX) return status;
        if (t->came) qw_hub_say(t->meter->watch, "%s, trying to go on", t->err.text);
        if (!qw_hub_meter_sleep(t->meter, RETRY_MS << idle)) return qw_hub_cancelled(&t->err);
    }
    return qw_fail(&t->err, QW_E_NETWORK, "%s: the connection was cut %d times", t->from, ATTEMPTS_MAX);
}

qw_status qw_hub_fetch_run(const qw_hub_fetch *f, qw_hub_meter *m, qw_hub_fetched *out, qw_err *err)
{
    transfer t = {.f = f, .meter = m, .out = out, .fd = -1};
    memset(out, 0, sizeof(*out));
    QW_TRY(qw_hub_url_check(f->url, t.from, &t.plain_start, err));
    if (curl_global_init(CURL_GLOBAL_DEFAULT)) return qw_fail(err, QW_E_INTERNAL, "libcurl does not start");
    qw_hub_meter_start(m, QW_HUB_DOWNLOAD, f->bytes);
    t.curl = curl_easy_init();
    qw_status status = t.curl ? attempts(&t) : qw_fail(&t.err, QW_E_MEMORY, "out of memory: a connection");
    if (t.fd >= 0 && fsync(t.fd) != 0 && status == QW_OK)
        status = qw_fail_errno(&t.err, "%.400s", f->part_path);
    if (t.fd >= 0) close(t.fd);
    if (status == QW_OK) qw_hub_meter_finish(m, t.body ? t.have : t.offset);
    curl_easy_cleanup(t.curl);
    curl_global_cleanup();
    if (status != QW_OK && err) *err = t.err;
    return status;
}
