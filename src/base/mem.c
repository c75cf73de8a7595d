/* mem.c: heap memory with checked sizes.
 *
 * Any thread. Blocks of 4 MiB and more from qw_alloc_aligned are mappings of their own, 2 MiB-aligned
 * and advised huge, so that weights and key-value pages need few TLB entries and go back to the
 * system when freed; that choice depends on the byte count alone, which is why freeing needs it.
 */
#include "base/mem.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGN = 64 };
static const size_t huge_min = (size_t)4 << 20;
static const size_t huge_page = (size_t)2 << 20;

static qw_status out_of_memory(qw_err *err, const char *what, size_t bytes)
{
    return qw_fail(err, QW_E_MEMORY, "out of memory: %s needs %zu bytes", what, bytes);
}

qw_status qw_alloc(void *out_ptr, size_t n, size_t size, const char *what, qw_err *err)
{
    size_t bytes;
    if (qw_mul_overflows(n, size, &bytes) || bytes > PTRDIFF_MAX)
        return qw_fail(err, QW_E_MEMORY, "out of memory: %s needs %zu times %zu bytes", what, n, size);
    void *p = calloc(1, bytes > 0 ? bytes : 1);
    if (p == NULL) return out_of_memory(err, what, bytes);
    memcpy(out_ptr, &p, sizeof p); /* out_ptr is the address of any object pointer */
    return QW_OK;
}

qw_status qw_grow(void *ptr_ptr, size_t n_old, size_t n_new, size_t size, const char *what, qw_err *err)
{
    size_t bytes_old, bytes;
    if (qw_mul_overflows(n_new, size, &bytes) || bytes > PTRDIFF_MAX ||
        qw_mul_overflows(n_old, size, &bytes_old))
        return qw_fail(err, QW_E_MEMORY, "out of memory: %s needs %zu times %zu bytes", what, n_new,
                       size);
    void *p;
    memcpy(&p, ptr_ptr, sizeof p);
    char *q = realloc(p, bytes > 0 ? bytes : 1);
    if (q == NULL) return out_of_memory(err, what, bytes);
    if (bytes > bytes_old) memset(q + bytes_old, 0, bytes - bytes_old);
    memcpy(ptr_ptr, &q, sizeof q);
    return QW_OK;
}

static size_t page_round(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) & ~(page - 1);
}

/* A zeroed mapping that starts on a 2 MiB boundary; NULL when there is no room. */
static void *map_huge(size_t bytes)
{
    size_t need;
    if (qw_add_overflows(bytes, huge_page, &need) || need > PTRDIFF_MAX) return NULL;
    size_t kept = page_round(bytes), all = page_round(need);
    char *p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
    size_t head = (huge_page - (uintptr_t)p % huge_page) % huge_page;
    size_t tail = all - head - kept;
    if (head > 0) munmap(p, head);
    if (tail > 0) munmap(p + head + kept, tail);
    madvise(p + head, kept, MADV_HUGEPAGE); /* a hint: kernels without it still work */
    return p + head;
}

qw_status qw_alloc_aligned(void *out_ptr, size_t bytes, const char *what, qw_err *err)
{
    void *p = NULL;
    if (bytes >= huge_min) {
        p = map_huge(bytes);
        if (p == NULL) return out_of_memory(err, what, bytes);
    } else {
        size_t n = bytes > 0 ? bytes : 1;
        if (posix_memalign(&p, ALIGN, n) != 0) return out_of_memory(err, what, bytes);
        memset(p, 0, n);
    }
    memcpy(out_ptr, &p, sizeof p);
    return QW_OK;
}

void qw_free_aligned(void *ptr, size_t bytes)
{
    if (ptr == NULL) return;
    if (bytes >= huge_min)
        munmap(ptr, page_round(bytes));
    else
        free(ptr);
}

qw_status qw_strndup(char **out, const char *s, size_t n, qw_err *err)
{
    size_t bytes;
    if (qw_add_overflows(n, 1, &bytes)) return out_of_memory(err, "a text", n);
    char *p = malloc(bytes);
    if (p == NULL) return out_of_memory(err, "a text", bytes);
    if (n > 0) memcpy(p, s, n);
    p[n] = '\0';
    *out = p;
    return QW_OK;
}
