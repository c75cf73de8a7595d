/* inputs.c: see inputs.h. */
#include "inputs.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Bytes between an input and the unreadable page. None, but for qemu: 7.2 reads 16 bytes where a scalar FMA of AVX2
 * reads 4. */
static size_t slack_of(const ca_ctx *ctx)
{
#if defined(__x86_64__)
    return ctx->quick ? 16 : 0;
#else
    (void)ctx;
    return 0;
#endif
}

ca_input ca_input_new(const ca_ctx *ctx, size_t bytes)
{
    size_t slack = slack_of(ctx), page = (size_t)sysconf(_SC_PAGESIZE);
    size_t room = (bytes + slack + page - 1) / page * page;
    ca_input in = {.map_bytes = room + page};
    in.map = mmap(NULL, in.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (in.map == MAP_FAILED || mprotect((char *)in.map + room, page, PROT_NONE) != 0) {
        fputs("checkasm: no memory for an input\n", stderr);
        exit(1);
    }
    in.data = (char *)in.map + (room - slack - bytes);
    return in;
}

ca_input ca_input_normal(ca_ctx *ctx, size_t n, float scale)
{
    ca_input in = ca_input_new(ctx, n * sizeof(float));
    ca_fill_normal(ctx, in.data, n, scale);
    return in;
}

void ca_input_free(ca_input *in)
{
    munmap(in->map, in->map_bytes);
}

size_t ca_first_unlike(const float *a, const float *b, size_t n)
{
    size_t i = 0;
    while (i < n && (memcmp(a + i, b + i, sizeof *a) == 0 || (isnan(a[i]) && isnan(b[i])))) i++;
    return i;
}

void ca_expect_same(ca_ctx *ctx, const float *got, const float *want, size_t n, const char *what, size_t shape)
{
    size_t i = ca_first_unlike(got, want, n);
    ca_check(ctx, i == n, "%s, shape %zu: element %zu is %a, reference has %a", what, shape, i,
             i < n ? (double)got[i] : 0.0, i < n ? (double)want[i] : 0.0);
}
