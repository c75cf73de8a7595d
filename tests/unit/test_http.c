/* test_http.c: the request parser of the service, rule by rule, at every cut, and with random changes.
 *
 * The service is not part of the library, so its parser is compiled in here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/http_parse.c"

#define LINE "GET /x HTTP/1.1\r\n"
#define HOST "Host: localhost:8080\r\n"
#define POST "POST /x HTTP/1.1\r\n" HOST
#define CHUNKED POST "Transfer-Encoding: chunked\r\n\r\n"

/* status 0: the request is fine, its body is `body` and `rest` bytes are left; else it is refused; -1: it goes on */
typedef struct http_case {
    const char *text;
    size_t n; /* 0: strlen */
    int status;
    const char *body;
    size_t rest;
} http_case;

static const http_case cases[] = {
    /* what is good */
    {LINE HOST "\r\n", 0, 0, "", 0},
    {"\r\n" LINE HOST "\r\n", 0, 0, "", 0},
    {"GET /x HTTP/1.0\r\n\r\n", 0, 0, "", 0},
    {"HEAD /x?a=b HTTP/1.1\r\n" HOST "\r\n", 0, 0, "", 0},
    {"OPTIONS * HTTP/1.1\r\n" HOST "\r\n", 0, 0, "", 0},
    {"GET http://localhost:8080/x HTTP/1.1\r\n" HOST "\r\n", 0, 0, "", 0},
    {LINE "Host: [::1]:80\r\n\r\n", 0, 0, "", 0},
    {LINE "Host:\t 127.0.0.1 \t\r\n\r\n", 0, 0, "", 0},
    {LINE HOST "Empty:\r\nOther: caf\xC3\xA9\r\n\r\n", 0, 0, "", 0},
    {LINE HOST "\r\n" LINE HOST "\r\n", 0, 0, "", sizeof(LINE HOST "\r\n") - 1},
    {POST "Content-Length: 5\r\n\r\nhello", 0, 0, "hello", 0},
    {POST "content-length:5\r\n\r\nhelloGET", 0, 0, "hello", 3},
    {POST "Content-Length: 0\r\n\r\n", 0, 0, "", 0},
    {POST "Content-Length: 3\r\n\r\n\n\r\n", 0, 0, "\n\r\n", 0},
    {CHUNKED "5\r\nhello\r\n0\r\n\r\n", 0, 0, "hello", 0},
    {CHUNKED "5\r\nhello\r\n00006\r\n world\r\n0\r\n\r\nX", 0, 0, "hello world", 1},
    {CHUNKED "a;name=\"v\"\r\n0123456789\r\n0;last\r\nTrailer: 1\r\nHost: other\r\n\r\n", 0, 0, "0123456789", 0},
    {POST "Transfer-Encoding: CHUNKED\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n", 0, 0, "0123456789", 0},
    /* incomplete */
    {LINE HOST, 0, -1, NULL, 0},
    {POST "Content-Length: 5\r\n\r\nhell", 0, -1, NULL, 0},
    {CHUNKED "5\r\nhello\r\n0\r\n", 0, -1, NULL, 0},
    /* line ends and control bytes */
    {"GET /x HTTP/1.1\n" HOST "\r\n", 0, 400, NULL, 0},
    {LINE "Host: a\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "\n", 0, 400, NULL, 0},
    {LINE HOST "A: b\rc\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "A: b\r\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "A: b\0c\r\n\r\n", sizeof(LINE HOST "A: b\0c\r\n\r\n") - 1, 400, NULL, 0},
    {LINE HOST "A: \x01\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "A: \x7F\r\n\r\n", 0, 400, NULL, 0},
    {"\x16\x03\x01\x02", 0, 400, NULL, 0}, /* TLS */
    {"\r\n\r\n" LINE HOST "\r\n", 0, 400, NULL, 0},
    /* request line */
    {"GET /x\r\n\r\n", 0, 400, NULL, 0}, /* HTTP/0.9 */
    {"GET /x \r\n\r\n", 0, 400, NULL, 0},
    {"GET  /x HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET /x  HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET /x HTTP/1.1 \r\n" HOST "\r\n", 0, 400, NULL, 0},
    {" GET /x HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET\t/x HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET /x http/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET /x HTTP/1.10\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET /x HTTP/11\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET /x HTTP/1.2\r\n" HOST "\r\n", 0, 505, NULL, 0},
    {"GET /x HTTP/3.0\r\n" HOST "\r\n", 0, 505, NULL, 0},
    {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, 505, NULL, 0},
    {"GE(T /x HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"ABCDEFGHIJKLMNOPQ /x HTTP/1.1\r\n" HOST "\r\n", 0, 501, NULL, 0},
    {"GET x HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET * HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET /x#y HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET /\xC3\xA9 HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET http://localhost HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET http://evil/ HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"GET http://a@localhost:8080/x HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    {"CONNECT localhost:80 HTTP/1.1\r\n" HOST "\r\n", 0, 400, NULL, 0},
    /* headers */
    {LINE "\r\n", 0, 400, NULL, 0},
    {LINE "Host:\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "Host: localhost:8080\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "host: other\r\n\r\n", 0, 400, NULL, 0},
    {LINE "Host: a b\r\n\r\n", 0, 400, NULL, 0},
    {LINE "Host: a@b\r\n\r\n", 0, 400, NULL, 0},
    {LINE "Host: a/b\r\n\r\n", 0, 400, NULL, 0},
    {LINE "Host: a,b\r\n\r\n", 0, 400, NULL, 0},
    {LINE "Host: a:b\r\n\r\n", 0, 400, NULL, 0},
    {LINE "Host: a:\r\n\r\n", 0, 400, NULL, 0},
    {LINE "Host: a:123456\r\n\r\n", 0, 400, NULL, 0},
    {LINE "Host: [::1\r\n\r\n", 0, 400, NULL, 0},
    {LINE "Host: [::1]x\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "A: b\r\n c\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "A: b\r\n\tc\r\n\r\n", 0, 400, NULL, 0},
    {LINE " " HOST "\r\n", 0, 400, NULL, 0},
    {LINE "Host : a\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "A\t: b\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "A\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST ": b\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "A(: b\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "\xC3\xA9: b\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "Content-Type: a/b\r\nContent-Type: a/b\r\n\r\n", 0, 400, NULL, 0},
    {LINE HOST "Expect: the unexpected\r\n\r\n", 0, 417, NULL, 0},
    /* length of the body */
    {POST "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 0, 400, NULL, 0},
    {POST "Content-Length: 5\r\ncontent-length: 6\r\n\r\nhello", 0, 400, NULL, 0},
    {POST "Content-Length: 5, 5\r\n\r\nhello", 0, 400, NULL, 0},
    {POST "Content-Length: +5\r\n\r\nhello", 0, 400, NULL, 0},
    {POST "Content-Length: -5\r\n\r\nhello", 0, 400, NULL, 0},
    {POST "Content-Length: 05\r\n\r\nhello", 0, 400, NULL, 0},
    {POST "Content-Length: 5 5\r\n\r\nhello", 0, 400, NULL, 0},
    {POST "Content-Length: 0x5\r\n\r\nhello", 0, 400, NULL, 0},
    {POST "Content-Length: 5.0\r\n\r\nhello", 0, 400, NULL, 0},
    {POST "Content-Length:\r\n\r\n", 0, 400, NULL, 0},
    {POST "Content-Length: 16777217\r\n\r\n", 0, 413, NULL, 0},
    {POST "Content-Length: 18446744073709551621\r\n\r\nhello", 0, 413, NULL, 0},
    {POST "Content-Length: 99999999999999999999999999999999\r\n\r\nhello", 0, 413, NULL, 0},
    {POST "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {POST "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {POST "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 0, 501, NULL, 0},
    {POST "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 0, 501, NULL, 0},
    {POST "Transfer-Encoding: identity\r\n\r\n", 0, 501, NULL, 0},
    {POST "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 0, 501, NULL, 0},
    {POST "Transfer-Encoding: \x0B" "chunked\r\n\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {POST "Transfer-Encoding:\r\n\r\n", 0, 400, NULL, 0},
    {"POST /x HTTP/1.0\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, 400, NULL, 0},
    /* chunks */
    {CHUNKED "\r\n", 0, 400, NULL, 0},
    {CHUNKED "g\r\n", 0, 400, NULL, 0},
    {CHUNKED "0x5\r\nhello\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {CHUNKED "-1\r\n", 0, 400, NULL, 0},
    {CHUNKED "+5\r\nhello\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {CHUNKED " 5\r\nhello\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {CHUNKED "5 \r\nhello\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {CHUNKED "5 ;a\r\nhello\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {CHUNKED "5\nhello\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {CHUNKED "5\r\nhello!\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {CHUNKED "5\r\nhello\n0\r\n\r\n", 0, 400, NULL, 0},
    {CHUNKED "5;a\nb\r\nhello\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {CHUNKED "00000000000000005\r\nhello\r\n0\r\n\r\n", 0, 400, NULL, 0},
    {CHUNKED "1000001\r\n", 0, 413, NULL, 0},
    {CHUNKED "ffffffffffffffff\r\n", 0, 413, NULL, 0},
    {CHUNKED "8000000000000005\r\nhello", 0, 413, NULL, 0},
    {CHUNKED "0\r\nTrailer : 1\r\n\r\n", 0, 400, NULL, 0},
    {CHUNKED "0\r\n\n", 0, 400, NULL, 0},
};

/* Everything a caller can see of a parse. */
typedef struct outcome {
    int status; /* 0 done, -1 more, else of HTTP */
    size_t used;
    int n_heads;
    char method[QW_HTTP_METHOD_BYTES_MAX + 1], path[256], body[256];
    size_t body_n;
    bool keep_alive, expect_continue, has_body;
} outcome;

/* Feeds the text in pieces: up to `first` bytes, then `piece` at a time. */
static void parse_pieces(const char *text, size_t n, size_t first, size_t piece, outcome *out)
{
    qw_http_parser p;
    qw_http_step step = QW_HTTP_MORE;
    memset(out, 0, sizeof(*out));
    qw_http_init(&p);
    size_t end = first < n ? first : n;
    while (step == QW_HTTP_MORE || step == QW_HTTP_HEAD) {
        size_t used = 0;
        step = qw_http_parse(&p, text + out->used, end - out->used, &used);
        assert_true(used <= end - out->used);
        if (step == QW_HTTP_MORE) assert_int_equal(used, end - out->used);
        out->used += used;
        out->n_heads += step == QW_HTTP_HEAD;
        if (step == QW_HTTP_MORE && end == n) break;
        if (step == QW_HTTP_MORE) end = n - end < piece ? n : end + piece;
    }
    out->status = step == QW_HTTP_DONE ? 0 : step == QW_HTTP_BAD ? p.status : -1;
    if (step == QW_HTTP_BAD) assert_non_null(p.reason);
    if (out->n_heads > 0) {
        memcpy(out->method, p.method, sizeof(out->method));
        snprintf(out->path, sizeof(out->path), "%s", qw_http_path(&p));
        out->keep_alive = p.keep_alive;
        out->expect_continue = p.expect_continue;
        out->has_body = p.has_body;
    }
    out->body_n = p.body.n;
    memcpy(out->body, qw_buf_str(&p.body), p.body.n < sizeof(out->body) ? p.body.n : sizeof(out->body));
    qw_http_free(&p);
}

static size_t case_bytes(const http_case *c)
{
    return c->n ? c->n : strlen(c->text);
}

static void test_rules(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const http_case *c = &cases[i];
        outcome o;
        size_t n = case_bytes(c);
        parse_pieces(c->text, n, n, 1, &o);
        if (o.status != c->status) fail_msg("case %zu: status %d, want %d: %s", i, o.status, c->status, c->text);
        if (c->status != 0) continue;
        assert_int_equal(o.n_heads, 1);
        assert_int_equal(n - o.used, c->rest);
        assert_int_equal(o.body_n, strlen(c->body));
        assert_memory_equal(o.body, c->body, o.body_n);
    }
}

static void test_every_cut(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        const http_case *c = &cases[i];
        outcome whole, cut;
        size_t n = case_bytes(c);
        parse_pieces(c->text, n, n, 1, &whole);
        for (size_t at = 0; at <= n; at++) {
            parse_pieces(c->text, n, at, n, &cut);
            if (memcmp(&whole, &cut, sizeof(cut)) != 0) fail_msg("case %zu differs when cut at byte %zu", i, at);
        }
        parse_pieces(c->text, n, 1, 1, &cut);
        if (memcmp(&whole, &cut, sizeof(cut)) != 0) fail_msg("case %zu differs byte by byte", i);
    }
}

static void test_fields(void **state)
{
    static const char text[] = "POST /v1/x?key=1 HTTP/1.1\r\nHOST: LocalHost\r\nX-Thing:  a, b \r\n"
                               "Content-Type: application/json\r\nexpect: 100-Continue\r\nContent-Length: 2\r\n\r\n{}";
    qw_http_parser p;
    size_t used = 0;
    (void)state;
    qw_http_init(&p);
    assert_false(qw_http_begun(&p));
    assert_int_equal(qw_http_parse(&p, text, sizeof(text) - 1, &used), QW_HTTP_HEAD);
    assert_true(qw_http_begun(&p));
    assert_int_equal(used, sizeof(text) - 3);
    assert_string_equal(p.method, "POST");
    assert_string_equal(qw_http_path(&p), "/v1/x");
    assert_string_equal(qw_http_find(&p, "host"), "LocalHost");
    assert_string_equal(qw_http_find(&p, "x-thing"), "a, b");
    assert_string_equal(qw_http_find(&p, "content-type"), "application/json");
    assert_null(qw_http_find(&p, "origin"));
    assert_true(p.expect_continue && p.keep_alive && p.has_body);
    assert_int_equal(qw_http_parse(&p, "{}", 2, &used), QW_HTTP_DONE);
    assert_string_equal(p.body.data, "{}");
    assert_int_equal(qw_http_parse(&p, "x", 1, &used), QW_HTTP_DONE); /* stays, takes nothing */
    assert_int_equal(used, 0);
    qw_http_reset(&p);
    assert_false(qw_http_begun(&p));
    assert_int_equal(qw_http_parse(&p, LINE HOST "\r\n", sizeof(LINE HOST "\r\n") - 1, &used), QW_HTTP_HEAD);
    assert_null(qw_http_find(&p, "x-thing"));
    assert_false(p.expect_continue || p.has_body);
    qw_http_free(&p);
}

/* A trailer is never mistaken for a header. */
static void test_trailers_dropped(void **state)
{
    static const char text[] = CHUNKED "0\r\nContent-Type: application/json\r\n\r\n";
    qw_http_parser p;
    size_t used = 0, more = 0;
    (void)state;
    qw_http_init(&p);
    assert_int_equal(qw_http_parse(&p, text, sizeof(text) - 1, &used), QW_HTTP_HEAD);
    assert_int_equal(qw_http_parse(&p, text + used, sizeof(text) - 1 - used, &more), QW_HTTP_DONE);
    assert_null(qw_http_find(&p, "Content-Type"));
    qw_http_free(&p);
}

static void test_keep_alive(void **state)
{
    static const struct {
        const char *text;
        bool keep;
    } rows[] = {
        {LINE HOST "\r\n", true},
        {LINE HOST "Connection: close\r\n\r\n", false},
        {LINE HOST "Connection: foo, Close\r\n\r\n", false},
        {LINE HOST "Connection: keep-alive\r\nConnection: close\r\n\r\n", false},
        {LINE HOST "Connection: closed\r\n\r\n", true},
        {"GET /x HTTP/1.0\r\n\r\n", false},
        {"GET /x HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true},
        {"GET /x HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        outcome o;
        parse_pieces(rows[i].text, strlen(rows[i].text), SIZE_MAX, 1, &o);
        assert_int_equal(o.status, 0);
        if (o.keep_alive != rows[i].keep) fail_msg("row %zu", i);
    }
}

/* ---- limits: one below, at and above --------------------------------------------------------------- */

static int status_of(const qw_buf *text)
{
    outcome whole, pieces;
    parse_pieces(qw_buf_str(text), text->n, text->n, 1, &whole);
    parse_pieces(qw_buf_str(text), text->n, 7, 4093, &pieces);
    assert_int_equal(whole.status, pieces.status);
    assert_int_equal(whole.used, pieces.used);
    return whole.status;
}

static void repeat(qw_buf *b, char c, size_t n)
{
    for (size_t i = 0; i < n; i++) assert_int_equal(qw_buf_add(b, &c, 1, NULL), QW_OK);
}

static void add(qw_buf *b, const char *s)
{
    assert_int_equal(qw_buf_add_str(b, s, NULL), QW_OK);
}

static int url_status(size_t n)
{
    qw_buf b;
    qw_buf_init(&b, 1 << 20, "test");
    add(&b, "GET /");
    repeat(&b, 'a', n - 1);
    add(&b, " HTTP/1.1\r\n" HOST "\r\n");
    int status = status_of(&b);
    qw_buf_free(&b);
    return status;
}

static int headers_status(size_t n)
{
    qw_buf b;
    qw_buf_init(&b, 1 << 20, "test");
    add(&b, LINE HOST);
    for (size_t i = 1; i < n; i++) add(&b, "A: b\r\n");
    add(&b, "\r\n");
    int status = status_of(&b);
    qw_buf_free(&b);
    return status;
}

static int head_bytes_status(size_t n)
{
    qw_buf b;
    qw_buf_init(&b, 1 << 20, "test");
    add(&b, LINE HOST "A: ");
    repeat(&b, 'a', n - strlen(HOST "A: \r\n\r\n"));
    add(&b, "\r\n\r\n");
    int status = status_of(&b);
    qw_buf_free(&b);
    return status;
}

static int extension_status(size_t n_chunks, size_t n)
{
    qw_buf b;
    qw_buf_init(&b, 1 << 20, "test");
    add(&b, CHUNKED);
    for (size_t i = 0; i < n_chunks; i++) {
        add(&b, "1;");
        repeat(&b, 'e', n - 1);
        add(&b, "\r\nx\r\n");
    }
    add(&b, "0\r\n\r\n");
    int status = status_of(&b);
    qw_buf_free(&b);
    return status;
}

static int trailer_status(size_t n)
{
    qw_buf b;
    qw_buf_init(&b, 1 << 20, "test");
    add(&b, CHUNKED "0\r\n");
    for (size_t i = 0; i < n; i++) add(&b, "A: b\r\n");
    add(&b, "\r\n");
    int status = status_of(&b);
    qw_buf_free(&b);
    return status;
}

static int body_status(size_t n, bool chunked)
{
    qw_buf b;
    qw_buf_init(&b, 32 << 20, "test");
    if (chunked) {
        assert_int_equal(qw_buf_printf(&b, NULL, CHUNKED "1\r\nx\r\n%zx\r\n", n - 1), QW_OK);
        repeat(&b, 'x', n - 1);
        add(&b, "\r\n0\r\n\r\n");
    } else {
        assert_int_equal(qw_buf_printf(&b, NULL, POST "Content-Length: %zu\r\n\r\n", n), QW_OK);
        repeat(&b, 'x', n);
    }
    int status = status_of(&b);
    qw_buf_free(&b);
    return status;
}

static void test_limits(void **state)
{
    (void)state;
    assert_int_equal(url_status(QW_HTTP_URL_BYTES_MAX), 0);
    assert_int_equal(url_status(QW_HTTP_URL_BYTES_MAX + 1), 414);
    assert_int_equal(url_status(100000), 414);
    assert_int_equal(headers_status(QW_HTTP_HEADERS_MAX), 0);
    assert_int_equal(headers_status(QW_HTTP_HEADERS_MAX + 1), 431);
    assert_int_equal(head_bytes_status(QW_HTTP_HEAD_BYTES_MAX), 0);
    assert_int_equal(head_bytes_status(QW_HTTP_HEAD_BYTES_MAX + 1), 431);
    assert_int_equal(extension_status(1, QW_HTTP_EXTENSION_BYTES_MAX), 0);
    assert_int_equal(extension_status(1, QW_HTTP_EXTENSION_BYTES_MAX + 1), 400);
    assert_int_equal(extension_status(64, QW_HTTP_EXTENSION_BYTES_MAX / 64), 0);
    assert_int_equal(extension_status(65, QW_HTTP_EXTENSION_BYTES_MAX / 64), 400);
    assert_int_equal(trailer_status(QW_HTTP_HEADERS_MAX - 2), 0);
    assert_int_equal(trailer_status(QW_HTTP_HEADERS_MAX - 1), 431);
    assert_int_equal(body_status(QW_HTTP_BODY_BYTES_MAX, false), 0);
    assert_int_equal(body_status(QW_HTTP_BODY_BYTES_MAX + 1, false), 413);
    assert_int_equal(body_status(QW_HTTP_BODY_BYTES_MAX, true), 0);
    assert_int_equal(body_status(QW_HTTP_BODY_BYTES_MAX + 1, true), 413);
}

/* ---- random changes -------------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *s)
{
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

static size_t mutate(char *text, size_t n, size_t cap, uint64_t *seed)
{
    static const char bytes[] = "\r\n\t :;,0159afxGHT/.\x7F\xFF";
    for (uint64_t left = 1 + next_random(seed) % 4; left > 0 && n > 2; left--) {
        size_t at = (size_t)(next_random(seed) % n);
        char c = bytes[next_random(seed) % (sizeof(bytes))]; /* its NUL too */
        switch (next_random(seed) % 4) {
        case 0: text[at] = c; break;
        case 1: memmove(text + at, text + at + 1, --n - at); break;
        case 2:
            if (n == cap) break;
            memmove(text + at + 1, text + at, n++ - at);
            text[at] = c;
            break;
        default: text[at] = (char)(text[at] ^ (1 << next_random(seed) % 8)); break;
        }
    }
    return n;
}

/* The result of a changed request never depends on the cut, and what is accepted keeps its promises. */
static void test_fuzz(void **state)
{
    uint64_t seed = 20240611;
    size_t n_accepted = 0, n_rounds = 60000;
    (void)state;
    print_message("fuzz seed %llu\n", (unsigned long long)seed);
    for (size_t round = 0; round < n_rounds; round++) {
        const http_case *c = &cases[next_random(&seed) % (sizeof(cases) / sizeof(*cases))];
        char text[1024];
        outcome whole, cut;
        size_t n = case_bytes(c);
        memcpy(text, c->text, n);
        n = mutate(text, n, sizeof(text), &seed);
        parse_pieces(text, n, n, 1, &whole);
        parse_pieces(text, n, (size_t)(next_random(&seed) % n), 1 + (size_t)(next_random(&seed) % 9), &cut);
        if (memcmp(&whole, &cut, sizeof(cut)) != 0) fail_msg("round %zu: the cut changes the result", round);
        if (whole.status == 0) {
            n_accepted++;
            assert_true(whole.path[0] == '/' || whole.path[0] == '*');
            assert_true(whole.body_n <= n);
            assert_int_equal(whole.n_heads, 1);
        }
    }
    print_message("%zu of %zu changed requests were still acceptable\n", n_accepted, n_rounds);
    assert_true(n_accepted > 0 && n_accepted < n_rounds / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules),      cmocka_unit_test(test_every_cut), cmocka_unit_test(test_fields),
        cmocka_unit_test(test_trailers_dropped), cmocka_unit_test(test_keep_alive), cmocka_unit_test(test_limits),
        cmocka_unit_test(test_fuzz),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
