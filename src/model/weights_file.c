/* weights_file.c: the side file of packed weights.
 *
 * Layout: a header of one system page, SHA-256 of every 1 MiB block of the region, then the region on a page
 * border. Opening checks everything but the blocks' sums, which `qw verify` compares: a start must not read
 * the whole file. The writer fsyncs before it renames, so a name that exists is a whole file. It holds a lock on its
 * temporary file; what a killed process left is not locked and goes when the next file is made.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/mem.h"
#include "model/weights_private.h"

enum {
    LAYOUT_VERSION = 1, /* raise with every change of qw_pack_group's layout or of this file's */
    PAGE = 4096,
    BLOCK_BYTES = 1 << 20,
    HASH_BYTES = 32
};

#define SUFFIX ".qwp"

typedef struct file_header {
    char magic[8]; /* "QWPACK\n" */
    uint32_t layout_version, header_bytes;
    uint64_t file_bytes, region_offset, region_bytes, n_blocks;
    char identity[64];             /* of the model file: 64 hex digits */
    uint8_t table_hash[HASH_BYTES]; /* of every entry's name, form, shape and offset */
    uint8_t sums_hash[HASH_BYTES];  /* of the block sums that follow */
    uint8_t header_hash[HASH_BYTES]; /* of all fields above */
} file_header;

static qw_status sha256(const void *data, size_t n, uint8_t out[HASH_BYTES], qw_err *err)
{
    if (EVP_Digest(data, n, out, NULL, EVP_sha256(), NULL) == 1) return QW_OK;
    return qw_fail(err, QW_E_INTERNAL, "SHA-256 is not available from the crypto library");
}

static qw_status hash_table(const pack_table *t, uint8_t out[HASH_BYTES], qw_err *err)
{
    qw_buf text;
    qw_status status;
    qw_buf_init(&text, 64 << 20, "weight table");
    for (size_t i = 0; i < t->n; i++) {
        const pack_entry *e = &t->entries[i];
        QW_TRY_GOTO(qw_buf_printf(&text, err, "%s %s %zu %zu %llu\n", e->weight->name, qw_pack_name(e->pack),
                                  e->weight->rows, e->weight->k, (unsigned long long)e->offset));
    }
    status = sha256(text.data, text.n, out, err);
fail:
    qw_buf_free(&text);
    return status;
}

/* The header that a right file has, except for the sums of its blocks. */
static qw_status expected_header(const pack_table *t, const qw_gguf *file, file_header *h, qw_err *err)
{
    char identity[65];
    memset(h, 0, sizeof *h);
    memcpy(h->magic, "QWPACK\n", 8);
    h->layout_version = LAYOUT_VERSION;
    h->header_bytes = sizeof *h;
    h->region_bytes = t->bytes;
    h->n_blocks = (t->bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
    h->region_offset = PAGE + (h->n_blocks * HASH_BYTES + PAGE - 1) / PAGE * PAGE;
    h->file_bytes = h->region_offset + t->bytes;
    qw_gguf_identity(file, identity);
    memcpy(h->identity, identity, sizeof h->identity);
    return hash_table(t, h->table_hash, err);
}

static qw_status seal_header(file_header *h, const uint8_t *sums, qw_err *err)
{
    QW_TRY(sha256(sums, h->n_blocks * HASH_BYTES, h->sums_hash, err));
    return sha256(h, offsetof(file_header, header_hash), h->header_hash, err);
}

void qw_weights_cache_path(const qw_gguf *file, const char *cache_dir, char *out, size_t cap)
{
    char identity[65];
    qw_gguf_identity(file, identity);
    snprintf(out, cap, "%s/%s" SUFFIX, cache_dir, identity);
}

qw_status qw_pack_file_open(const char *path, const pack_table *t, const qw_gguf *file, qw_map **map,
                         const uint8_t **region, qw_err *err)
{
    file_header want;
    qw_status status;
    *region = NULL;
    QW_TRY(qw_map_open(path, map, err));
    QW_TRY_GOTO(expected_header(t, file, &want, err));
    const uint8_t *data = qw_map_data(*map);
    if (qw_map_bytes(*map) != want.file_bytes) {
        status = qw_fail(err, QW_E_CORRUPT, "%s: has %zu bytes, want %llu", path, qw_map_bytes(*map),
                         (unsigned long long)want.file_bytes);
        goto fail;
    }
    QW_TRY_GOTO(seal_header(&want, data + PAGE, err));
    if (memcmp(data, &want, sizeof want) != 0) {
        status = qw_fail(err, QW_E_CORRUPT, "%s: was made from another model file or by another version", path);
        goto fail;
    }
    *region = data + want.region_offset;
    return QW_OK;
fail:
    qw_map_close(*map);
    *map = NULL;
    return status;
}

typedef struct sum_args {
    const uint8_t *region;
    uint64_t bytes;
    uint8_t *sums;
} sum_args;

static size_t block_bytes(uint64_t region_bytes, size_t block)
{
    uint64_t left = region_bytes - (uint64_t)block * BLOCK_BYTES;
    return left < BLOCK_BYTES ? (size_t)left : BLOCK_BYTES;
}

static void sum_blocks(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    sum_args *a = ctx;
    for (int64_t i = begin; i < end; i++) {
        /* A digest that fails leaves zeros, which the header's check then refuses. */
        if (sha256(a->region + (size_t)i * BLOCK_BYTES, block_bytes(a->bytes, (size_t)i), a->sums + i * HASH_BYTES,
                   NULL) != QW_OK) {
            memset(a->sums + i * HASH_BYTES, 0, HASH_BYTES);
        }
    }
}

/* Fills an open, empty temporary file. */
static qw_status write_contents(int fd, const char *path, const pack_table *t, const qw_gguf *file, qw_pool *pool,
                                qw_err *err)
{
    file_header h;
    QW_TRY(expected_header(t, file, &h, err));
    /* Space first: a full disk must be an error here, not a fault in the mapping. */
    int failed = posix_fallocate(fd, 0, (off_t)h.file_bytes);
    if (failed) {
        errno = failed;
        return qw_fail_errno(err, "%s: cannot reserve %llu bytes", path, (unsigned long long)h.file_bytes);
    }
    uint8_t *data = mmap(NULL, h.file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) return qw_fail_errno(err, "%s: cannot map", path);
    qw_pack_table_fill(t, data + h.region_offset, pool);
    sum_args args = {.region = data + h.region_offset, .bytes = t->bytes, .sums = data + PAGE};
    qw_pool_run(pool, (int64_t)h.n_blocks, 1, sum_blocks, &args);
    qw_status status = seal_header(&h, args.sums, err);
    if (status == QW_OK && qw_gguf_map_failed(file)) {
        status = qw_fail(err, QW_E_CORRUPT, "%s: the model file changed while it was read", qw_gguf_path(file));
    }
    memcpy(data, &h, sizeof h);
    munmap(data, h.file_bytes);
    if (status == QW_OK && fsync(fd) != 0) status = qw_fail_errno(err, "%s: cannot sync", path);
    return status;
}

/* Removes temporary files whose writer is gone. A hint: errors are the next step's. */
static void remove_orphans(const char *dir)
{
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        const char *tail = strstr(e->d_name, SUFFIX ".");
        if (!tail || strlen(tail) != sizeof SUFFIX + 6) continue;
        int fd = openat(dirfd(d), e->d_name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        if (fd < 0) continue;
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) unlinkat(dirfd(d), e->d_name, 0);
        close(fd);
    }
    if (d) closedir(d);
}

/* A new temporary file with our lock on it. */
static int create_temp(const char *path, char *temp, size_t cap)
{
    for (;;) {
        struct stat st;
        snprintf(temp, cap, "%s.XXXXXX", path);
        int fd = mkostemp(temp, O_CLOEXEC);
        if (fd < 0) return -1;
        /* Another process may have taken it for an orphan before the lock was there. */
        if (flock(fd, LOCK_EX) != 0 || fstat(fd, &st) != 0 || st.st_nlink > 0) return fd;
        close(fd);
    }
}

qw_status qw_pack_file_write(const char *path, const pack_table *t, const qw_gguf *file, qw_pool *pool, qw_err *err)
{
    char temp[4128], dir[4096];
    snprintf(dir, sizeof dir, "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash) *slash = 0;
    remove_orphans(slash ? dir : ".");
    int fd = create_temp(path, temp, sizeof temp);
    if (fd < 0) return qw_fail_errno(err, "%s: cannot create", temp);
    qw_status status = write_contents(fd, temp, t, file, pool, err);
    if (status == QW_OK && rename(temp, path) != 0) status = qw_fail_errno(err, "%s: cannot rename", temp);
    if (status != QW_OK) unlink(temp);
    close(fd);
    return status == QW_OK ? qw_sync_dir(slash ? dir : ".", err) : status;
}

/* Numbers of the file are used only after they agree with each other, with its size and with their sums. */
static qw_status check_header(const qw_map *map, file_header *h, bool *whole, qw_err *err)
{
    const uint8_t *data = qw_map_data(map);
    uint8_t sum[HASH_BYTES];
    *whole = qw_map_bytes(map) >= PAGE;
    if (!*whole) return QW_OK;
    memcpy(h, data, sizeof *h);
    *whole = h->region_bytes <= qw_map_bytes(map) && h->n_blocks == (h->region_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES &&
             h->region_offset == PAGE + (h->n_blocks * HASH_BYTES + PAGE - 1) / PAGE * PAGE &&
             h->region_offset + h->region_bytes == qw_map_bytes(map);
    if (!*whole) return QW_OK;
    QW_TRY(sha256(h, offsetof(file_header, header_hash), sum, err));
    *whole = memcmp(sum, h->header_hash, HASH_BYTES) == 0;
    QW_TRY(sha256(data + PAGE, h->n_blocks * HASH_BYTES, sum, err));
    *whole = *whole && memcmp(sum, h->sums_hash, HASH_BYTES) == 0;
    return QW_OK;
}

qw_status qw_weights_verify(const qw_gguf *file, const char *cache_dir, qw_err *err)
{
    char path[4096];
    qw_map *map;
    qw_status status;
    uint8_t sum[HASH_BYTES];
    file_header h;
    bool whole;
    qw_weights_cache_path(file, cache_dir, path, sizeof path);
    status = qw_map_open(path, &map, err);
    if (status == QW_E_NOT_FOUND) return QW_OK;
    if (status != QW_OK) return status;
    const uint8_t *data = qw_map_data(map);
    QW_TRY_GOTO(check_header(map, &h, &whole, err));
    for (size_t i = 0; whole && i < h.n_blocks; i++) {
        QW_TRY_GOTO(sha256(data + h.region_offset + i * BLOCK_BYTES, block_bytes(h.region_bytes, i), sum, err));
        whole = memcmp(sum, data + PAGE + i * HASH_BYTES, HASH_BYTES) == 0;
    }
    if (!whole) status = qw_fail(err, QW_E_CORRUPT, "%s: packed weights are damaged; remove this file", path);
fail:
    qw_map_close(map);
    return status;
}
