/* work.h: what every long piece of work in the hub shares: progress, checksums, moving bytes.
 *
 * One thread. A meter limits how often the watcher is called and remembers that it said stop.
 */
#ifndef QW_HUB_WORK_H
#define QW_HUB_WORK_H

#include "hub/hub.h"

typedef struct qw_hub_meter {
    const qw_hub_watch *watch; /* borrows; may be NULL */
    qw_hub_progress now;
    int64_t told_us; /* clock of the last call */
    bool stopped;
} qw_hub_meter;

/* "12.3 GB" and so on, decimal units; one digit after the point for MB, two from GB on. */
void qw_hub_size_text(uint64_t bytes, char out[32]);

void qw_hub_say(const qw_hub_watch *watch, const char *fmt, ...) QW_PRINTF(2, 3);
void qw_hub_meter_start(qw_hub_meter *m, qw_hub_stage stage, uint64_t total_bytes);
/* False once the watcher wants to stop. done_bytes is absolute. */
bool qw_hub_meter_tick(qw_hub_meter *m, uint64_t done_bytes);
/* As tick, but the watcher is told at once (the last value of a stage must be seen). */
void qw_hub_meter_finish(qw_hub_meter *m, uint64_t done_bytes);
qw_status qw_hub_cancelled(qw_err *err);
/* Waits, ticking; false when the watcher wants to stop. */
bool qw_hub_meter_sleep(qw_hub_meter *m, int ms);

/* SHA-256 of a text, 64 hexadecimal digits. */
qw_status qw_hub_sha256_text(const char *text, char hex[65], qw_err *err) QW_MUST_CHECK;
/* SHA-256 of a regular file, ticking; *bytes receives its size. */
qw_status qw_hub_sha256_file(const char *path, qw_hub_meter *m, char hex[65], uint64_t *bytes,
                             qw_err *err) QW_MUST_CHECK;

/* Writes all bytes; a full disk is QW_E_LIMIT, everything else QW_E_IO. */
qw_status qw_hub_write(int fd, const void *data, size_t n, const char *path, qw_err *err) QW_MUST_CHECK;
/* QW_E_LIMIT when the file system of `dir` has less than bytes + 5% free: says both numbers. */
qw_status qw_hub_space(const char *dir, uint64_t bytes, qw_err *err) QW_MUST_CHECK;
/* A file in the store made from a local one: reflink, else hard link, else copy. `to` must not exist. A hard
 * link is never written to afterwards by anybody, see store.c. */
qw_status qw_hub_clone(const char *from, const char *to, qw_hub_meter *m, qw_err *err) QW_MUST_CHECK;

#endif
