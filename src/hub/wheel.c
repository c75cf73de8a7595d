/* wheel.c: one member out of a wheel. libzip reads the archive.
 *
 * Owner: the pulling thread. Contract: see pip.h. Names in the archive are never used as paths: exactly one
 * member, whose name the catalogue gives, is read, into a file that is open already, and never more bytes
 * than fit.
 */
#include <stdlib.h>
#include <string.h>
#include <zip.h>

#include "base/mem.h"
#include "hub/pip.h"

enum { BLOCK_BYTES = 1 << 20 };

typedef struct sink {
    int fd;
    const char *path;
    uint64_t done_before; /* for the meter */
    uint64_t bytes;       /* the member's size, checked */
} sink;

static qw_status pour(zip_file_t *in, const char *wheel, const sink *to, qw_hub_meter *m, qw_err *err)
{
    char *block = NULL;
    uint64_t done = 0;
    qw_status status;
    QW_TRY_GOTO(qw_alloc(&block, BLOCK_BYTES, 1, "a block for unpacking", err));
    for (;;) {
        zip_int64_t n = zip_fread(in, block, BLOCK_BYTES); /* compares the member's CRC at its end */
        if (n < 0) {
            status = qw_fail(err, QW_E_CORRUPT, "pip: %.200s is damaged: %s", wheel,
                             zip_error_strerror(zip_file_get_error(in)));
            goto fail;
        }
        if (n == 0) break;
        if ((uint64_t)n > to->bytes - done) {
            status = qw_fail(err, QW_E_CORRUPT, "pip: %.200s holds more than it says", wheel);
            goto fail;
        }
        QW_TRY_GOTO(qw_hub_write(to->fd, block, (size_t)n, to->path, err));
        done += (uint64_t)n;
        if (!qw_hub_meter_tick(m, to->done_before + done)) {
            status = qw_hub_cancelled(err);
            goto fail;
        }
    }
    if (done != to->bytes) status = qw_fail(err, QW_E_CORRUPT, "pip: %.200s holds less than it says", wheel);
fail:
    free(block);
    return status;
}

qw_status qw_hub_wheel_append(const char *wheel, const char *member, int fd, const char *fd_path,
                              uint64_t bytes_max, uint64_t *appended, qw_hub_meter *m, uint64_t done_before,
                              qw_err *err)
{
    int code = 0;
    zip_stat_t st;
    zip_file_t *in = NULL;
    qw_status status = QW_OK;
    const char *name = strrchr(wheel, '/') ? strrchr(wheel, '/') + 1 : wheel;
    zip_t *zip = zip_open(wheel, ZIP_RDONLY | ZIP_CHECKCONS, &code);
    if (!zip) return qw_fail(err, QW_E_CORRUPT, "pip: %.200s is not a wheel", name);
    if (zip_stat(zip, member, 0, &st) != 0 || !(st.valid & ZIP_STAT_SIZE)) {
        status = qw_fail(err, QW_E_CORRUPT, "pip: %.200s does not hold %.200s", name, member);
        goto fail;
    }
    if (!(st.valid & ZIP_STAT_COMP_METHOD) ||
        (st.comp_method != ZIP_CM_STORE && st.comp_method != ZIP_CM_DEFLATE) ||
        (st.valid & ZIP_STAT_ENCRYPTION_METHOD && st.encryption_method != ZIP_EM_NONE)) {
        status = qw_fail(err, QW_E_UNSUPPORTED, "pip: %.200s is packed in a way wheels are not", name);
        goto fail;
    }
    if (st.size > bytes_max) {
        status = qw_fail(err, QW_E_CORRUPT, "pip: %.200s holds %llu bytes, at most %llu fit the model's size",
                         name, (unsigned long long)st.size, (unsigned long long)bytes_max);
        goto fail;
    }
    in = zip_fopen_index(zip, st.index, 0);
    if (!in) {
        status = qw_fail(err, QW_E_CORRUPT, "pip: %.200s: %s", name, zip_strerror(zip));
        goto fail;
    }
    sink to = {.fd = fd, .path = fd_path, .done_before = done_before, .bytes = st.size};
    status = pour(in, name, &to, m, err);
    if (status == QW_OK) *appended = st.size;
fail:
    if (in) zip_fclose(in);
    zip_discard(zip);
    return status;
}
