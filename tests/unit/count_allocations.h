/* count_allocations.h: for tests of what allocates nothing: the Makefile wraps the allocator, and every call counts.
 * And random numbers that are the same everywhere. Included by one file a program.
 */
#ifndef QW_TESTS_COUNT_ALLOCATIONS_H
#define QW_TESTS_COUNT_ALLOCATIONS_H

#include <stddef.h>
#include <stdint.h>

static size_t n_allocations;
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

void *__wrap_malloc(size_t n)
{
    n_allocations++;
    return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    n_allocations++;
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    n_allocations++;
    return __real_realloc(p, n);
}

static uint64_t rng;

static void seed(uint64_t s)
{
    rng = s * 2654435761u + 12345;
}

static uint32_t below(uint32_t n)
{
    rng = rng * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((rng >> 33) % n);
}

#endif
