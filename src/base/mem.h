/* mem.h: heap memory with checked sizes.
 *
 * Every product is overflow-checked and the checked value is the value allocated. Memory is zeroed.
 * Any thread. Free with free() (qw_alloc, qw_realloc) or qw_free_aligned.
 */
#ifndef QW_BASE_MEM_H
#define QW_BASE_MEM_H

#include <stddef.h>

#include "base/status.h"

/* n * size zeroed bytes into *out; "out of memory: <what> needs N bytes" when that fails.
 * n * size == 0 gives a valid pointer to one byte. */
qw_status qw_alloc(void *out_ptr, size_t n, size_t size, const char *what, qw_err *err) QW_MUST_CHECK;

/* Grows *ptr from n_old to n_new elements; the new ones are zero. *ptr stays valid on failure. */
qw_status qw_grow(void *ptr_ptr, size_t n_old, size_t n_new, size_t size, const char *what,
                  qw_err *err) QW_MUST_CHECK;

/* Zeroed memory on a 64-byte boundary (2 MiB-aligned and advised huge when bytes >= 4 MiB). */
qw_status qw_alloc_aligned(void *out_ptr, size_t bytes, const char *what, qw_err *err) QW_MUST_CHECK;
void qw_free_aligned(void *ptr, size_t bytes);

/* Copies n bytes and adds a NUL. */
qw_status qw_strndup(char **out, const char *s, size_t n, qw_err *err) QW_MUST_CHECK;

static inline int qw_mul_overflows(size_t a, size_t b, size_t *out)
{
    return __builtin_mul_overflow(a, b, out);
}
static inline int qw_add_overflows(size_t a, size_t b, size_t *out)
{
    return __builtin_add_overflow(a, b, out);
}

#endif
