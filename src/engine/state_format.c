/* state_format.c: names of files in the store, and one file of computed state: its header, reading and writing.
 *
 *     abc/PARENT-ID-N.kv    a page: keys and values of the N tokens that lead from the past PARENT to the past ID
 *     abc/PARENT-ID-N.st    a snapshot: the recurrent state after them
 *     abc/ID.an             an answer: state_answers.c
 *
 * "abc" are the first digits of the name, so what follows a past is in one small folder. A file of state is a header, a multiple of
 * 4096 bytes, and the data, which are read straight to where they are used. The header says everything that the name says
 * and more, and has a sum of every 256 KiB of the data; its last 8 bytes are its own sum. Numbers are the machine's own:
 * the layout's hash tells machines of another byte order apart.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/clock.h"
#include "base/mem.h"
#include "base/new_file.h"
#include "engine/state_private.h"

enum { BLOCK_BYTES = 256 << 10, SUM_BYTES = 8, ID_DIGITS = 32, SYSTEM_PAGE = 4096 };

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* since Linux 5.14; an error before that */
#endif

#define MAGIC "QWSTATE"

typedef struct file_header {
    char magic[8]; /* MAGIC with its NUL */
    uint32_t version, header_bytes;
    uint8_t layout[STATE_LAYOUT_BYTES];
    qw_state_id parent, id;
    uint32_t snapshot, n_tokens; /* a page is 0 */
    uint64_t data_bytes, block_bytes;
    int32_t tokens[QW_KV_TILE]; /* [n_tokens], then zeros */
} file_header; /* then the sums of the blocks, zeros, the sum of all this */
_Static_assert(sizeof(file_header) == 8 + 2 * 4 + STATE_LAYOUT_BYTES + 2 * 16 + 2 * 4 + 2 * 8 + 4 * QW_KV_TILE,
               "a header has no padding");

/* ---- names ---------------------------------------------------------------------------------------- */

void state_folder(qw_state_id parent, char out[4])
{
    snprintf(out, 4, "%03x", (unsigned)(parent.w[0] >> 52));
}

void state_name_of(const state_name *n, char out[STATE_NAME_MAX])
{
    char folder[4];
    state_folder(n->parent, folder);
    if (n->answer) {
        snprintf(out, STATE_NAME_MAX, "%s/%016llx%016llx.an", folder, (unsigned long long)n->parent.w[0],
                 (unsigned long long)n->parent.w[1]);
        return;
    }
    snprintf(out, STATE_NAME_MAX, "%s/%016llx%016llx-%016llx%016llx-%u.%s", folder, (unsigned long long)n->parent.w[0],
             (unsigned long long)n->parent.w[1], (unsigned long long)n->id.w[0], (unsigned long long)n->id.w[1],
             n->n_tokens, n->snapshot ? "st" : "kv");
}

/* Takes the digits of an id off the text. */
static bool take_id(const char **text, qw_state_id *out)
{
    if (strspn(*text, "0123456789abcdef") != ID_DIGITS) return false;
    for (int i = 0; i < ID_DIGITS; i++, (*text)++) {
        unsigned digit = (unsigned)(**text <= '9' ? **text - '0' : **text - 'a' + 10);
        out->w[i / 16] = out->w[i / 16] << 4 | digit;
    }
    return true;
}

static bool take_dash(const char **text)
{
    return *(*text)++ == '-';
}

static bool take_count(const char **text, uint32_t *out)
{
    size_t n = strspn(*text, "0123456789");
    if (n < 1 || n > 2 || **text == '0') return false;
    for (; n > 0; n--, (*text)++) *out = *out * 10 + (uint32_t)(**text - '0');
    return *out <= QW_KV_TILE;
}

/* "-ID-N.kv" or ".st": the rest of a piece's name, up to a temporary ending. */
static bool take_piece(const char **text, state_name *out)
{
    if (!take_dash(text) || !take_id(text, &out->id) || !take_dash(text) || !take_count(text, &out->n_tokens)) return false;
    out->snapshot = strncmp(*text, ".st", 3) == 0;
    return out->snapshot || strncmp(*text, ".kv", 3) == 0;
}

bool state_name_parse(const char *text, state_name *out)
{
    *out = (state_name){0};
    if (!take_id(&text, &out->parent)) return false;
    out->answer = strncmp(text, ".an", 3) == 0;
    if (!out->answer && !take_piece(&text, out)) return false;
    text += 3;
    out->unfinished = strncmp(text, ".tmp-", 5) == 0;
    return *text == '\0' || out->unfinished;
}

/* ---- header --------------------------------------------------------------------------------------- */

static size_t n_blocks(size_t data_bytes)
{
    return (data_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
}

static size_t block_bytes(size_t data_bytes, size_t at)
{
    return data_bytes - at < BLOCK_BYTES ? data_bytes - at : BLOCK_BYTES;
}

static size_t header_bytes(size_t data_bytes)
{
    size_t bytes = sizeof(file_header) + (n_blocks(data_bytes) + 1) * SUM_BYTES;
    return (bytes + STATE_HEADER_UNIT - 1) / STATE_HEADER_UNIT * STATE_HEADER_UNIT;
}

size_t state_data_bytes(const qw_state_files *s, bool snapshot)
{
    return snapshot ? s->recurrent_bytes : s->page_bytes;
}

size_t state_file_bytes(const qw_state_files *s, bool snapshot)
{
    size_t data = state_data_bytes(s, snapshot);
    return header_bytes(data) + data;
}

/* The fields that a right file has. tokens: NULL leaves them out. */
static file_header expected(const qw_state_files *s, const state_name *name, const int32_t *tokens)
{
    size_t data = state_data_bytes(s, name->snapshot);
    file_header h = {.magic = MAGIC, .version = STATE_VERSION, .header_bytes = (uint32_t)header_bytes(data),
                     .parent = name->parent, .id = name->id, .snapshot = name->snapshot, .n_tokens = name->n_tokens,
                     .data_bytes = data, .block_bytes = BLOCK_BYTES};
    memcpy(h.layout, s->layout, sizeof h.layout);
    if (tokens) memcpy(h.tokens, tokens, name->n_tokens * sizeof *tokens);
    return h;
}

static uint64_t *sums_of(uint8_t *header)
{
    return (uint64_t *)(void *)(header + sizeof(file_header));
}

static uint64_t *own_sum(uint8_t *header, size_t bytes)
{
    return (uint64_t *)(void *)(header + bytes - SUM_BYTES);
}

/* ---- reading -------------------------------------------------------------------------------------- */

bool state_read_all(int fd, void *data, size_t n, size_t offset)
{
    uint8_t *p = data;
    while (n > 0) {
        ssize_t got = pread(fd, p, n, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        p += got;
        n -= (size_t)got;
        offset += (size_t)got;
    }
    return true;
}

int state_open(const char *path, size_t *bytes, int64_t *used_s, state_read *why)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        *why = errno == ELOOP ? STATE_DAMAGED : STATE_MISSING;
        return -1;
    }
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        *used_s = (int64_t)st.st_mtim.tv_sec;
        *bytes = (size_t)st.st_size;
        return fd;
    }
    *why = STATE_DAMAGED;
    close(fd);
    return -1;
}

/* The same, of exactly that size. */
static int open_of_size(const char *path, size_t want, int64_t *used_s, state_read *why)
{
    size_t bytes;
    int fd = state_open(path, &bytes, used_s, why);
    if (fd < 0 || bytes == want) return fd;
    *why = STATE_DAMAGED;
    close(fd);
    return -1;
}

/* A checked header; tokens: what it must hold, or NULL. */
static bool read_header(const qw_state_files *s, int fd, const state_name *name, const int32_t *tokens, uint8_t *header)
{
    file_header want = expected(s, name, tokens), *got = (file_header *)(void *)header;
    if (!state_read_all(fd, header, want.header_bytes, 0)) return false;
    if (*own_sum(header, want.header_bytes) != qw_checksum(header, want.header_bytes - SUM_BYTES)) return false;
    return memcmp(got, &want, tokens ? sizeof want : offsetof(file_header, tokens)) == 0;
}

/* Has the system put memory there in one go: faults one by one, while it copies, take longer than all the rest. A hint. */
static void make_present(uint8_t *at, size_t n)
{
    uintptr_t begin = (uintptr_t)at / SYSTEM_PAGE * SYSTEM_PAGE, end = (uintptr_t)at + n;
    (void)madvise(at - ((uintptr_t)at - begin), end - begin, MADV_POPULATE_WRITE);
}

/* Block by block: each is summed while the processor's cache has it. */
static bool read_data(int fd, const uint64_t *sums, size_t header, uint8_t *data, size_t n)
{
    for (size_t at = 0; at < n; at += BLOCK_BYTES) {
        size_t bytes = block_bytes(n, at);
        make_present(data + at, bytes);
        if (!state_read_all(fd, data + at, bytes, header + at)) return false;
        if (qw_checksum(data + at, bytes) != sums[at / BLOCK_BYTES]) return false;
    }
    return true;
}

state_read state_file_load(const qw_state_files *s, const char *path, const qw_state_piece *p, qw_state_id id, void *data,
                           int64_t *used_s)
{
    const state_name name = {.parent = p->parent, .id = id, .n_tokens = p->n_tokens, .snapshot = p->snapshot};
    size_t n = state_data_bytes(s, p->snapshot), n_header = header_bytes(n);
    uint8_t *header = NULL;
    state_read result;
    int fd = open_of_size(path, n_header + n, used_s, &result);
    if (fd < 0) return result;
    posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    if (qw_alloc(&header, n_header, 1, "header", NULL) != QW_OK) {
        result = STATE_MISSING;
    } else {
        bool good = read_header(s, fd, &name, p->tokens, header) && read_data(fd, sums_of(header), n_header, data, n);
        result = good ? STATE_READ : STATE_DAMAGED;
    }
    free(header);
    close(fd);
    return result;
}

state_read state_file_tokens(const qw_state_files *s, const char *path, const state_name *name,
                             int32_t tokens[QW_KV_TILE])
{
    uint8_t *header = NULL;
    int64_t used_s;
    state_read result;
    int fd = open_of_size(path, state_file_bytes(s, false), &used_s, &result);
    if (fd < 0) return result;
    if (qw_alloc(&header, header_bytes(s->page_bytes), 1, "header", NULL) != QW_OK) {
        result = STATE_MISSING;
    } else {
        result = read_header(s, fd, name, NULL, header) ? STATE_READ : STATE_DAMAGED;
        memcpy(tokens, header + offsetof(file_header, tokens), QW_KV_TILE * sizeof *tokens);
    }
    free(header);
    close(fd);
    return result;
}

/* ---- writing -------------------------------------------------------------------------------------- */

/* Whole seconds are the time, the rest is the depth: of pieces that were used together the deepest are the oldest. */
struct timespec state_use_time(uint32_t depth)
{
    enum { NS_MOST = 999999999 };
    return (struct timespec){.tv_sec = qw_wall_s(), .tv_nsec = depth < NS_MOST ? NS_MOST - (long)depth : 0};
}

static qw_status write_file(qw_new_file *f, const uint8_t *header, size_t n_header, const void *data, size_t n,
                            uint32_t depth, qw_err *err)
{
    const struct timespec used = state_use_time(depth), times[2] = {used, used};
    if (fchmod(f->fd, 0600) != 0) return qw_fail_errno(err, "%s: cannot be written", f->path);
    QW_TRY(qw_new_file_reserve(f, n_header + n, err));
    QW_TRY(qw_new_file_write(f, header, n_header, err));
    QW_TRY(qw_new_file_write(f, data, n, err));
    futimens(f->fd, times); /* it was made now anyway: about the same */
    return qw_new_file_name(f, false, err);
}

qw_status state_file_save(const qw_state_files *s, const char *path, const qw_state_piece *p, qw_state_id id,
                          const void *data, qw_err *err)
{
    const state_name name = {.parent = p->parent, .id = id, .n_tokens = p->n_tokens, .snapshot = p->snapshot};
    const file_header fields = expected(s, &name, p->tokens);
    size_t n = state_data_bytes(s, p->snapshot), n_header = header_bytes(n);
    uint8_t *header = NULL;
    qw_new_file f;
    qw_status status;
    QW_TRY(qw_alloc(&header, n_header, 1, "header", err));
    memcpy(header, &fields, sizeof fields);
    for (size_t at = 0; at < n; at += BLOCK_BYTES)
        sums_of(header)[at / BLOCK_BYTES] = qw_checksum((const uint8_t *)data + at, block_bytes(n, at));
    *own_sum(header, n_header) = qw_checksum(header, n_header - SUM_BYTES);
    status = qw_new_file_open(&f, path, err);
    if (status == QW_OK) status = write_file(&f, header, n_header, data, n, p->depth, err);
    qw_new_file_close(&f);
    free(header);
    return status;
}
