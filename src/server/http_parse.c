/* http_parse.c: the request parser (contract in http_parse.h).
 *
 * A state machine over lines and counted bytes. Lines are collected byte by byte, so that CR, LF and control
 * bytes are judged in one place for the request line, headers, chunk lines and trailers alike; bodies are copied
 * in bulk. Every refusal names its rule.
 */
#include "server/http_parse.h"

#include <string.h>
#include <strings.h>

enum state {
    REQUEST_LINE = 0,
    HEADER_LINE,
    BODY_BEGIN, /* the header was complete; QW_HTTP_HEAD has been returned */
    BODY_BYTES,
    CHUNK_LINE,
    CHUNK_BYTES,
    CHUNK_END, /* the empty line after a chunk */
    TRAILER_LINE,
    COMPLETE,
    REFUSED
};

enum { NO_TEXT = UINT32_MAX };

/* What the limits allow, and a NUL for each text. */
enum {
    HEAD_TEXT_MAX = QW_HTTP_METHOD_BYTES_MAX + QW_HTTP_URL_BYTES_MAX + QW_HTTP_HEAD_BYTES_MAX +
                    3 * QW_HTTP_HEADERS_MAX + 2 * QW_HTTP_EXTENSION_BYTES_MAX
};

static bool refuse(qw_http_parser *p, int status, const char *reason)
{
    p->state = REFUSED;
    p->status = status;
    p->reason = reason;
    return false;
}

static bool out_of_memory(qw_http_parser *p)
{
    return refuse(p, 503, "the request does not fit into memory now; try again");
}

/* ---- life ------------------------------------------------------------------------------------- */

static void clear(qw_http_parser *p)
{
    qw_buf head = p->head, body = p->body;
    memset(p, 0, sizeof(*p));
    p->head = head;
    p->body = body;
    p->authority = p->host = NO_TEXT;
}

void qw_http_init(qw_http_parser *p)
{
    memset(p, 0, sizeof(*p));
    qw_buf_init(&p->head, HEAD_TEXT_MAX, "HTTP header");
    qw_buf_init(&p->body, QW_HTTP_BODY_BYTES_MAX, "HTTP body");
    clear(p);
}

void qw_http_free(qw_http_parser *p)
{
    qw_buf_free(&p->head);
    qw_buf_free(&p->body);
}

void qw_http_reset(qw_http_parser *p)
{
    qw_buf_clear(&p->head);
    qw_buf_free(&p->body);
    clear(p);
}

bool qw_http_begun(const qw_http_parser *p)
{
    return p->state != REQUEST_LINE || p->head.n > 0 || p->cr || p->blank_seen;
}

static const char *text_at(const qw_http_parser *p, uint32_t at)
{
    return qw_buf_str(&p->head) + at;
}

const char *qw_http_path(const qw_http_parser *p)
{
    return text_at(p, p->path);
}

const char *qw_http_find(const qw_http_parser *p, const char *name)
{
    for (uint32_t i = 0; i < p->n_headers; i++)
        if (strcasecmp(text_at(p, p->headers[i].name), name) == 0) return text_at(p, p->headers[i].value);
    return NULL;
}

/* ---- characters ------------------------------------------------------------------------------- */

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_alnum(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static int hex_value(char c)
{
    if (is_digit(c)) return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* tchar of RFC 9110 5.6.2 */
static bool is_token(const char *s)
{
    if (*s == 0) return false;
    for (; *s != 0; s++)
        if (!is_alnum(*s) && strchr("!#$%&'*+-.^_`|~", *s) == NULL) return false;
    return true;
}

/* host[:port] of RFC 9110 7.2, names and addresses only: no user, no percent-encoding. */
static bool is_host(const char *s)
{
    if (*s == '[') {
        size_t n = strspn(s + 1, "0123456789abcdefABCDEF:.");
        if (n == 0 || s[1 + n] != ']') return false;
        s += n + 2;
    } else {
        size_t n = 0;
        while (is_alnum(s[n]) || (s[n] != 0 && strchr("-._", s[n]) != NULL)) n++;
        if (n == 0) return false;
        s += n;
    }
    if (*s == 0) return true;
    if (*s++ != ':') return false;
    size_t n = strspn(s, "0123456789");
    return n >= 1 && n <= 5 && s[n] == 0;
}

/* ---- request line ----------------------------------------------------------------------------- */

static bool take_version(qw_http_parser *p, const char *s)
{
    if (strlen(s) != 8 || memcmp(s, "HTTP/", 5) != 0 || !is_digit(s[5]) || s[6] != '.' || !is_digit(s[7]))
        return refuse(p, 400, "the request line does not end in HTTP/1.1 or HTTP/1.0");
    if (s[5] != '1' || s[7] > '1') return refuse(p, 505, "only HTTP/1.1 and HTTP/1.0 are spoken here");
    p->minor = s[7] - '0';
    return true;
}

/* s: the target in p->head. Finds the path in it and cuts the query off. */
static bool take_target(qw_http_parser *p, char *s)
{
    static const char scheme[] = "http://";
    if (strlen(s) > QW_HTTP_URL_BYTES_MAX) return refuse(p, 414, "the URL is longer than 8192 bytes");
    for (const char *c = s; *c != 0; c++)
        if ((unsigned char)*c <= 0x20 || (unsigned char)*c >= 0x7f || *c == '#')
            return refuse(p, 400, "the URL holds a character that must be percent-encoded");
    char *path = s;
    if (strncasecmp(s, scheme, strlen(scheme)) == 0) { /* absolute form, as proxies send it */
        char *authority = s + strlen(scheme);
        path = strchr(authority, '/');
        if (path == NULL) return refuse(p, 400, "the URL has no path");
        memmove(authority - 1, authority, (size_t)(path - authority)); /* room for a NUL */
        path[-1] = 0;
        p->authority = (uint32_t)(authority - 1 - p->head.data);
        if (!is_host(authority - 1)) return refuse(p, 400, "the URL names no valid host");
    } else if (strcmp(s, "*") == 0) {
        if (strcmp(p->method, "OPTIONS") != 0) return refuse(p, 400, "* is a target for OPTIONS alone");
    } else if (*s != '/') {
        return refuse(p, 400, "the URL does not begin with /");
    }
    p->path = (uint32_t)(path - p->head.data);
    path[strcspn(path, "?")] = 0;
    return true;
}

static bool take_request_line(qw_http_parser *p, char *line)
{
    if (*line == 0) { /* RFC 9112 2.2: one empty line before a request is forgiven */
        if (p->blank_seen) return refuse(p, 400, "empty lines where a request should begin");
        p->blank_seen = true;
        return true;
    }
    char *target = strchr(line, ' ');
    char *version = target != NULL ? strchr(target + 1, ' ') : NULL;
    if (target == NULL || version == NULL || strchr(line, '\t') != NULL)
        return refuse(p, 400, "the request line is not METHOD URL HTTP/1.1");
    *target++ = 0;
    *version++ = 0;
    if (!is_token(line)) return refuse(p, 400, "the method is not a word");
    if (strlen(line) > QW_HTTP_METHOD_BYTES_MAX) return refuse(p, 501, "the method is unknown");
    memcpy(p->method, line, strlen(line) + 1);
    if (!take_version(p, version) || !take_target(p, target)) return false;
    p->state = HEADER_LINE;
    return true;
}

/* ---- headers ---------------------------------------------------------------------------------- */

static bool take_host(qw_http_parser *p, const char *value)
{
    if (!is_host(value)) return refuse(p, 400, "Host is not a host name or address with an optional port");
    p->host = (uint32_t)(value - p->head.data);
    return true;
}

static bool take_length(qw_http_parser *p, const char *value)
{
    size_t n = strspn(value, "0123456789");
    if (n == 0 || value[n] != 0 || (value[0] == '0' && n > 1))
        return refuse(p, 400, "Content-Length is not one plain decimal number");
    p->has_length = true;
    p->left = 0;
    for (size_t i = 0; i < n && p->left <= QW_HTTP_BODY_BYTES_MAX; i++)
        p->left = p->left * 10 + (uint64_t)(value[i] - '0'); /* cannot overflow: it stops above the limit */
    return true;
}

static bool take_coding(qw_http_parser *p, const char *value)
{
    if (strcasecmp(value, "chunked") != 0)
        return refuse(p, *value == 0 ? 400 : 501, "the only Transfer-Encoding taken here is chunked");
    p->chunked = true;
    return true;
}

static bool take_expect(qw_http_parser *p, const char *value)
{
    if (strcasecmp(value, "100-continue") != 0) return refuse(p, 417, "the only Expect taken here is 100-continue");
    p->expect_continue = true;
    return true;
}

static bool word_is(const char *s, size_t n, const char *word)
{
    return strlen(word) == n && strncasecmp(s, word, n) == 0;
}

static bool take_connection(qw_http_parser *p, const char *value)
{
    while (*value != 0) {
        value += strspn(value, " \t,");
        size_t n = strcspn(value, " \t,");
        if (word_is(value, n, "close")) p->close_seen = true;
        if (word_is(value, n, "keep-alive")) p->keep_alive_seen = true;
        value += n;
    }
    return true;
}

/* Headers that mean something to the parser, and those that two programs could read differently if they came
 * twice. */
static const struct known_header {
    const char *name;
    bool once;
    bool (*take)(qw_http_parser *p, const char *value);
} known_headers[] = {
    {"Host", true, take_host},
    {"Content-Length", true, take_length},
    {"Transfer-Encoding", true, take_coding},
    {"Connection", false, take_connection},
    {"Expect", true, take_expect},
    {"Content-Type", true, NULL},
    {"Content-Encoding", true, NULL},
    {"Authorization", true, NULL},
    {"Origin", true, NULL},
};

static bool take_known(qw_http_parser *p, const char *name, const char *value)
{
    for (size_t i = 0; i < sizeof(known_headers) / sizeof(*known_headers); i++) {
        const struct known_header *h = &known_headers[i];
        if (strcasecmp(name, h->name) != 0) continue;
        if (h->once && (p->seen & 1U << i)) return refuse(p, 400, "a header that may come once came twice");
        p->seen |= 1U << i;
        return h->take == NULL || h->take(p, value);
    }
    return true;
}

/* Splits "name: value", ends both with NUL, counts it. */
static bool split_field(qw_http_parser *p, char *line, char **value)
{
    if (*line == ' ' || *line == '\t') return refuse(p, 400, "a header line is folded");
    if (p->n_fields == QW_HTTP_HEADERS_MAX) return refuse(p, 431, "more than 100 headers");
    p->n_fields++;
    char *colon = strchr(line, ':');
    if (colon == NULL) return refuse(p, 400, "a header line has no colon");
    *colon = 0;
    if (!is_token(line)) return refuse(p, 400, "a header name is empty or holds a character it must not");
    char *v = colon + 1 + strspn(colon + 1, " \t");
    size_t n = strlen(v);
    while (n > 0 && (v[n - 1] == ' ' || v[n - 1] == '\t')) n--;
    v[n] = 0;
    *value = v;
    return true;
}

static bool end_of_headers(qw_http_parser *p)
{
    if (p->minor == 1 && p->host == NO_TEXT) return refuse(p, 400, "HTTP/1.1 needs a Host header");
    if (p->authority != NO_TEXT && p->host != NO_TEXT &&
        strcasecmp(text_at(p, p->authority), text_at(p, p->host)) != 0)
        return refuse(p, 400, "URL and Host name different hosts");
    if (p->chunked && p->has_length) return refuse(p, 400, "Content-Length and Transfer-Encoding exclude each other");
    if (p->chunked && p->minor == 0) return refuse(p, 400, "HTTP/1.0 has no Transfer-Encoding");
    if (p->left > QW_HTTP_BODY_BYTES_MAX) return refuse(p, 413, "the body is longer than 16 MiB");
    p->keep_alive = p->minor == 1 ? !p->close_seen : p->keep_alive_seen && !p->close_seen;
    p->has_body = p->chunked || p->left > 0;
    p->expect_continue = p->expect_continue && p->minor == 1 && p->has_body;
    p->state = BODY_BEGIN;
    return true;
}

static bool take_header_line(qw_http_parser *p, char *line)
{
    char *value = NULL;
    if (*line == 0) return end_of_headers(p);
    if (!split_field(p, line, &value)) return false;
    p->headers[p->n_headers++] = (qw_http_header){.name = (uint32_t)(line - p->head.data),
                                                  .value = (uint32_t)(value - p->head.data)};
    return take_known(p, line, value);
}

/* ---- body ------------------------------------------------------------------------------------- */

static bool take_chunk_line(qw_http_parser *p, char *line)
{
    size_t n = 0;
    p->left = 0;
    for (; hex_value(line[n]) >= 0; n++) {
        if (n == QW_HTTP_CHUNK_DIGITS_MAX) return refuse(p, 400, "a chunk size has too many digits");
        if (p->left > QW_HTTP_BODY_BYTES_MAX) continue; /* too large already */
        p->left = p->left * 16 + (uint64_t)hex_value(line[n]);
    }
    if (n == 0 || (line[n] != 0 && line[n] != ';')) return refuse(p, 400, "a chunk size is not a hexadecimal number");
    p->extension_bytes += strlen(line + n);
    if (p->extension_bytes > QW_HTTP_EXTENSION_BYTES_MAX)
        return refuse(p, 400, "chunk extensions are longer than 1024 bytes");
    if (p->left > QW_HTTP_BODY_BYTES_MAX - p->body.n) return refuse(p, 413, "the body is longer than 16 MiB");
    p->state = p->left > 0 ? CHUNK_BYTES : TRAILER_LINE;
    return true;
}

static bool take_chunk_end(qw_http_parser *p, char *line)
{
    if (*line != 0) return refuse(p, 400, "a chunk is longer than its size says");
    p->state = CHUNK_LINE;
    return true;
}

/* Trailers are checked and dropped: nothing here uses them. */
static bool take_trailer_line(qw_http_parser *p, char *line)
{
    char *value = NULL;
    if (*line == 0) {
        p->state = COMPLETE;
        return true;
    }
    return split_field(p, line, &value);
}

/* Copies what is there of the body or chunk. */
static bool take_bytes(qw_http_parser *p, const char *data, size_t n, size_t *used)
{
    size_t take = n < p->left ? n : (size_t)p->left;
    if (qw_buf_add(&p->body, data, take, NULL) != QW_OK) return out_of_memory(p);
    p->left -= take;
    *used += take;
    if (p->left == 0) p->state = p->state == BODY_BYTES ? COMPLETE : CHUNK_END;
    return true;
}

/* ---- lines ------------------------------------------------------------------------------------ */

/* The longest line a state can need; header lines are bounded by head_bytes. */
static bool line_fits(qw_http_parser *p)
{
    size_t n = p->head.n - p->line;
    switch (p->state) {
    case REQUEST_LINE:
        if (n < QW_HTTP_METHOD_BYTES_MAX + QW_HTTP_URL_BYTES_MAX + 11) return true;
        return refuse(p, 414, "the request line is longer than a URL of 8192 bytes needs");
    case CHUNK_LINE:
        if (n < QW_HTTP_CHUNK_DIGITS_MAX + QW_HTTP_EXTENSION_BYTES_MAX) return true;
        return refuse(p, 400, "chunk extensions are longer than 1024 bytes");
    case CHUNK_END: return n == 0 || refuse(p, 400, "a chunk is longer than its size says");
    default: return true;
    }
}

/* The line is complete: ends it with NUL, hands it on and drops it unless it is part of the header. */
static bool end_line(qw_http_parser *p)
{
    static bool (*const takers[])(qw_http_parser *p, char *line) = {
        [REQUEST_LINE] = take_request_line, [HEADER_LINE] = take_header_line, [CHUNK_LINE] = take_chunk_line,
        [CHUNK_END] = take_chunk_end,       [TRAILER_LINE] = take_trailer_line,
    };
    static const char nul = 0;
    bool keep = p->state == REQUEST_LINE || p->state == HEADER_LINE;
    if (qw_buf_add(&p->head, &nul, 1, NULL) != QW_OK) return out_of_memory(p);
    if (!takers[p->state](p, p->head.data + p->line)) return false;
    if (keep)
        p->line = (uint32_t)p->head.n;
    else
        p->head.n = p->line;
    return true;
}

static bool take_line_byte(qw_http_parser *p, char c)
{
    if (p->state == HEADER_LINE || p->state == TRAILER_LINE) {
        if (++p->head_bytes > QW_HTTP_HEAD_BYTES_MAX) return refuse(p, 431, "the headers are longer than 32768 bytes");
    }
    if (p->cr) {
        p->cr = false;
        return c == '\n' ? end_line(p) : refuse(p, 400, "a line holds a CR that does not end it");
    }
    if (c == '\r') {
        p->cr = true;
        return true;
    }
    if (c == '\n') return refuse(p, 400, "a line ends in LF without CR");
    if (((unsigned char)c < 0x20 && c != '\t') || c == 0x7f) return refuse(p, 400, "a line holds a control character");
    if (!line_fits(p)) return false;
    return qw_buf_add(&p->head, &c, 1, NULL) == QW_OK || out_of_memory(p);
}

qw_http_step qw_http_parse(qw_http_parser *p, const char *data, size_t n, size_t *used)
{
    *used = 0;
    for (;;) {
        switch (p->state) {
        case REFUSED: return QW_HTTP_BAD;
        case COMPLETE: return QW_HTTP_DONE;
        case BODY_BEGIN: /* the second call for this header: go on to the body */
            p->state = p->chunked ? CHUNK_LINE : p->left > 0 ? BODY_BYTES : COMPLETE;
            continue;
        default: break;
        }
        if (*used == n) return QW_HTTP_MORE;
        if (p->state == BODY_BYTES || p->state == CHUNK_BYTES) {
            if (!take_bytes(p, data + *used, n - *used, used)) return QW_HTTP_BAD;
            continue;
        }
        if (!take_line_byte(p, data[(*used)++])) return QW_HTTP_BAD;
        if (p->state == BODY_BEGIN) return QW_HTTP_HEAD;
    }
}
