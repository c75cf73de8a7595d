/* state_answers.c: answers in the store. See state_files.h.
 *
 *     abc/ID.an    the newest answer with that id
 *
 * A file is small and is written and read in one go: a header, the answer's bytes, and the sum of all before it in the last 8
 * bytes. Other than pieces of computed state, which never change, an answer takes the place of an older one.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/mem.h"
#include "base/new_file.h"
#include "engine/state_private.h"

enum { VERSION = 1, SUM_BYTES = 8 };

#define MAGIC "QWSAID"

typedef struct answer_header {
    char magic[8]; /* MAGIC and zeros */
    uint32_t version, zero;
    uint8_t layout[STATE_LAYOUT_BYTES];
    qw_state_id id;
    uint64_t data_bytes;
} answer_header;
_Static_assert(sizeof(answer_header) == 8 + 2 * 4 + STATE_LAYOUT_BYTES + 16 + 8, "a header has no padding");

qw_state_id qw_state_answer_id(const qw_state_files *s, const uint8_t owner[QW_STATE_OWNER_BYTES],
                               const qw_state_answer_key *key)
{
    const uint64_t kind = UINT64_MAX - key->kind; /* no number of tokens, which pasts are hashed with */
    const qw_state_id root = qw_state_root_id(s, owner);
    qw_state_id id;
    for (int i = 0; i < 2; i++) {
        const qw_sip_key *k = &s->keys[i];
        id.w[i] = qw_siphash(k, qw_siphash(k, qw_siphash(k, kind, &root, sizeof root), key->a.s, key->a.n), key->b.s, key->b.n);
    }
    return id;
}

static answer_header header_of(const qw_state_files *s, qw_state_id id, size_t n)
{
    answer_header h = {.magic = MAGIC, .version = VERSION, .id = id, .data_bytes = n};
    memcpy(h.layout, s->layout, sizeof h.layout);
    return h;
}

/* ---- writing -------------------------------------------------------------------------------------- */

static qw_status write_bytes(qw_new_file *f, const void *bytes, size_t n, qw_err *err)
{
    if (fchmod(f->fd, 0600) != 0) return qw_fail_errno(err, "%s: cannot be written", f->path);
    QW_TRY(qw_new_file_reserve(f, n, err));
    QW_TRY(qw_new_file_write(f, bytes, n, err));
    return qw_new_file_name(f, true, err);
}

/* QW_E_NOT_FOUND: there is no such folder. */
static qw_status write_file(const char *path, const void *bytes, size_t n, qw_err *err)
{
    qw_new_file f;
    qw_status status = qw_new_file_open(&f, path, err);
    if (status == QW_OK) status = write_bytes(&f, bytes, n, err);
    qw_new_file_close(&f);
    return status;
}

static qw_status save(qw_state_files *s, qw_state_id id, const void *bytes, size_t n, qw_err *err)
{
    char path[PATH_MAX];
    state_path(s, &(state_name){.parent = id, .answer = true}, path);
    QW_TRY(state_check_room(s, n, err));
    qw_status status = write_file(path, bytes, n, err);
    if (status == QW_E_NOT_FOUND) {
        QW_TRY(state_make_folder(s, id, err));
        status = write_file(path, bytes, n, err);
    }
    return status;
}

/* The bytes of the file, which *out owns. */
static qw_status make_bytes(const qw_state_files *s, qw_state_id id, qw_text data, uint8_t **out, qw_err *err)
{
    const answer_header h = header_of(s, id, data.n);
    const size_t n = sizeof h + data.n;
    QW_TRY(qw_alloc(out, n + SUM_BYTES, 1, "answer", err));
    memcpy(*out, &h, sizeof h);
    memcpy(*out + sizeof h, data.s, data.n);
    const uint64_t sum = qw_checksum(*out, n);
    memcpy(*out + n, &sum, sizeof sum);
    return QW_OK;
}

qw_status qw_state_save_answer(qw_state_files *s, qw_state_id id, qw_text data, qw_err *err)
{
    const size_t n = sizeof(answer_header) + data.n + SUM_BYTES;
    uint8_t *bytes = NULL;
    qw_status status = data.n <= QW_STATE_ANSWER_BYTES_MAX
                           ? make_bytes(s, id, data, &bytes, err)
                           : qw_fail(err, QW_E_LIMIT, "%s: an answer of %zu bytes is too long to be saved", s->dir, data.n);
    if (status == QW_OK) status = save(s, id, bytes, n, err);
    free(bytes);
    if (status != QW_OK) {
        s->n.failed++;
        return status;
    }
    s->n.saved++;
    s->n.saved_bytes += n;
    s->bytes += n; /* too much, where it took the place of another: until the next trim */
    return QW_OK;
}

/* ---- reading -------------------------------------------------------------------------------------- */

/* Are the n bytes of a file this answer? */
static bool is_good(const qw_state_files *s, qw_state_id id, const uint8_t *bytes, size_t n)
{
    const answer_header h = header_of(s, id, n - sizeof h - SUM_BYTES);
    uint64_t sum;
    memcpy(&sum, bytes + n - SUM_BYTES, sizeof sum);
    return memcmp(bytes, &h, sizeof h) == 0 && sum == qw_checksum(bytes, n - SUM_BYTES);
}

static state_read read_file(const qw_state_files *s, int fd, qw_state_id id, size_t n, qw_buf *out)
{
    uint8_t *bytes = NULL;
    if (n < sizeof(answer_header) + SUM_BYTES) return STATE_DAMAGED;
    if (n > sizeof(answer_header) + SUM_BYTES + QW_STATE_ANSWER_BYTES_MAX) return STATE_DAMAGED;
    if (qw_alloc(&bytes, n, 1, "answer", NULL) != QW_OK) return STATE_MISSING;
    state_read result = state_read_all(fd, bytes, n, 0) && is_good(s, id, bytes, n) ? STATE_READ : STATE_DAMAGED;
    if (result == STATE_READ) {
        size_t n_data = n - sizeof(answer_header) - SUM_BYTES;
        if (qw_buf_add(out, bytes + sizeof(answer_header), n_data, NULL) != QW_OK) result = STATE_MISSING;
    }
    free(bytes);
    return result;
}

bool qw_state_load_answer(qw_state_files *s, qw_state_id id, qw_buf *out, int64_t *saved_s)
{
    char path[PATH_MAX];
    size_t n;
    state_read got;
    int fd = state_open(state_path(s, &(state_name){.parent = id, .answer = true}, path), &n, saved_s, &got);
    if (fd >= 0) {
        got = read_file(s, fd, id, n, out);
        close(fd);
    }
    if (got == STATE_DAMAGED) state_remove_damaged(s, path);
    if (got != STATE_READ) return false;
    s->n.loaded++;
    s->n.loaded_bytes += n;
    return true;
}
