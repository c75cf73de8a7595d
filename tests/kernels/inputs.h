/* inputs.h: read-only inputs of kernels, and the comparison of what they give: for check_float.c and check_attn.c. */
#ifndef QW_TESTS_INPUTS_H
#define QW_TESTS_INPUTS_H

#include "checkasm.h"

/* Its last byte is the last before an unreadable page: reading past the end stops the program. */
typedef struct ca_input {
    void *data;
    void *map;
    size_t map_bytes;
} ca_input;

ca_input ca_input_new(const ca_ctx *ctx, size_t bytes); /* zeros; ends the process when memory is out */
ca_input ca_input_normal(ca_ctx *ctx, size_t n, float scale);
void ca_input_free(ca_input *in);

/* Index of the first difference, or n. NaN equals NaN: the payload is not promised. */
size_t ca_first_unlike(const float *a, const float *b, size_t n);
void ca_expect_same(ca_ctx *ctx, const float *got, const float *want, size_t n, const char *what, size_t shape);

#endif
