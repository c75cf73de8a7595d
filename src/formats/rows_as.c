/* rows_as.c: see rows_as.h. */
#include "formats/rows_as.h"

#include <string.h>

static size_t round64(size_t n)
{
    return (n + 63) / 64 * 64;
}

void qw_rows_in_read(const qw_rows_in *in, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch)
{
    size_t bytes = qw_type_row_bytes(in->type, in->k);
    if (in->data) memcpy(out, in->data + row0 * bytes, n * bytes);
    else in->make->make(in->make, row0, n, out, scratch);
}

static void make_as(const qw_rows *rows, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch)
{
    const qw_rows_as *a = (const qw_rows_as *)rows;
    size_t in_bytes = qw_type_row_bytes(a->in.type, a->in.k), out_bytes = qw_type_row_bytes(a->type, a->in.k);
    float *floats = (float *)(void *)(scratch + a->input_bytes);
    for (size_t done = 0; done < n;) {
        size_t step = n - done < QW_ROWS_AT_ONCE ? n - done : QW_ROWS_AT_ONCE;
        qw_rows_in_read(&a->in, row0 + done, step, scratch, scratch + a->input_bytes + a->float_bytes);
        for (size_t r = 0; r < step; r++) {
            qw_dequantize_row(a->in.type, scratch + r * in_bytes, floats, a->in.k);
            qw_quantize_row(a->type, floats, out + (done + r) * out_bytes, a->in.k, NULL);
        }
        done += step;
    }
}

void qw_rows_as_init(qw_rows_as *a, const qw_rows_in *in, qw_type type)
{
    *a = (qw_rows_as){.base = {.make = make_as}, .in = *in, .type = type,
                      .input_bytes = round64(QW_ROWS_AT_ONCE * qw_type_row_bytes(in->type, in->k)),
                      .float_bytes = round64(in->k * sizeof(float))};
    a->base.scratch_bytes = a->input_bytes + a->float_bytes + qw_rows_in_scratch(in);
}
