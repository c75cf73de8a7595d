/* qw_status.h: how every fallible call of qw reports.
 *
 * A call returns a qw_status and, when it fails, writes one sentence for the user into the qw_err it
 * was given: what is wrong, where, and what to do. The library never prints and never exits.
 * Any thread; a qw_err belongs to the caller and holds no pointers.
 */
#ifndef QW_STATUS_H
#define QW_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qw_status {
    QW_OK = 0,
    QW_E_ARG,         /* the caller asked for something that makes no sense (HTTP 400, exit 2) */
    QW_E_NOT_FOUND,   /* no such file, model, request */
    QW_E_FORMAT,      /* bytes of a file or message break their format */
    QW_E_UNSUPPORTED, /* well formed, but not something qw runs */
    QW_E_LIMIT,       /* a named limit was reached: context, queue, body size */
    QW_E_MEMORY,      /* memory: what was asked does not fit */
    QW_E_IO,          /* the operating system refused a file operation */
    QW_E_NETWORK,     /* a remote source could not be reached or answered wrongly */
    QW_E_CORRUPT,     /* a checksum does not agree, or a mapped file changed under us */
    QW_E_CANCELLED,   /* ended because somebody asked for it */
    QW_E_BUSY,        /* a bounded queue is full: try again later */
    QW_E_INTERNAL     /* a defect of qw */
} qw_status;

enum { QW_ERR_TEXT_MAX = 1024 };

typedef struct qw_err {
    qw_status status;
    char text[QW_ERR_TEXT_MAX]; /* one line without a final newline; empty when status is QW_OK */
} qw_err;

#ifdef __cplusplus
}
#endif
#endif
