/* http_parse.h: one strict, incremental parser of HTTP/1.0 and HTTP/1.1 requests (RFC 9112).
 *
 * Bytes go in as they arrive; how they were cut never changes the result. Whatever another HTTP program might
 * read differently is refused instead of repaired: bare LF or CR, folded lines, two Hosts, any doubt about the
 * length of a body. Memory is the parser itself and two bounded buffers. One thread at a time.
 */
#ifndef QW_SERVER_HTTP_PARSE_H
#define QW_SERVER_HTTP_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

enum {
    QW_HTTP_METHOD_BYTES_MAX = 16,
    QW_HTTP_URL_BYTES_MAX = 8 << 10,
    QW_HTTP_HEAD_BYTES_MAX = 32 << 10, /* header lines and trailers, line ends included */
    QW_HTTP_HEADERS_MAX = 100,         /* trailers count as well */
    QW_HTTP_BODY_BYTES_MAX = 16 << 20,
    QW_HTTP_CHUNK_DIGITS_MAX = 16,     /* of a chunk size */
    QW_HTTP_EXTENSION_BYTES_MAX = 1024 /* chunk extensions of one request */
};

typedef enum qw_http_step {
    QW_HTTP_MORE = 0, /* all bytes were taken, the request is not complete */
    QW_HTTP_HEAD,     /* once a request: the header is complete, its fields are valid */
    QW_HTTP_DONE,     /* the body is complete too; bytes after `used` belong to the next request */
    QW_HTTP_BAD       /* refused: `status` and `reason` are set; the connection cannot go on */
} qw_http_step;

typedef struct qw_http_header {
    uint32_t name, value; /* offsets of NUL-terminated text in `head` */
} qw_http_header;

typedef struct qw_http_parser {
    /* the request: valid from QW_HTTP_HEAD to qw_http_reset */
    char method[QW_HTTP_METHOD_BYTES_MAX + 1];
    int minor;            /* HTTP/1.minor */
    bool keep_alive;      /* the client allows another request on this connection */
    bool expect_continue; /* it waits for "100 Continue" before it sends the body */
    bool has_body;        /* more than zero bytes of body follow the header */
    qw_buf body;          /* whole at QW_HTTP_DONE */

    /* after QW_HTTP_BAD */
    int status;         /* of HTTP: 400, 413, 414, ... */
    const char *reason; /* static; one sentence */

    /* inside */
    int state;
    bool cr;            /* the last byte of a line was CR */
    bool blank_seen, close_seen, keep_alive_seen, chunked, has_length;
    unsigned seen;      /* bit set of the headers that may come once */
    qw_buf head;        /* texts, each ended by NUL; the line being read is the last */
    uint32_t line, path, authority, host;
    uint32_t n_headers, n_fields; /* n_fields: with trailers */
    size_t head_bytes, extension_bytes;
    uint64_t left;      /* bytes of the body or the chunk still to come */
    qw_http_header headers[QW_HTTP_HEADERS_MAX];
} qw_http_parser;

void qw_http_init(qw_http_parser *p);
void qw_http_free(qw_http_parser *p);
void qw_http_reset(qw_http_parser *p); /* for the next request of the connection; frees the body */

qw_http_step qw_http_parse(qw_http_parser *p, const char *data, size_t n, size_t *used) QW_MUST_CHECK;

/* True once a byte of the current request was taken. */
bool qw_http_begun(const qw_http_parser *p);
/* The path as it was sent, without query: printable ASCII, never empty ("*" for OPTIONS *). */
const char *qw_http_path(const qw_http_parser *p);
/* Value of a header that may come once (or the first of its name); NULL when it was not sent. */
const char *qw_http_find(const qw_http_parser *p, const char *name);

#endif
