/* hf_rows.c: matrices on their way from a safetensors file to a GGUF tensor: parts, other orders, other types.
 *
 * A matrix is bytes in a mapping as long as nothing has to be changed; each change puts a maker (kernels/rows.h) in front of
 * what it reads. Makers hand their input's scratch on behind their own.
 */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "formats/hf_private.h"

static size_t round64(size_t n)
{
    return (n + 63) / 64 * 64;
}

static size_t row_bytes(const hf_matrix *m)
{
    return qw_type_row_bytes(m->in.type, m->in.k);
}

/* ---- as the file has them ---------------------------------------------------------------------- */

qw_status hf_matrix_of(const qw_hf *hf, const qw_st_tensor *t, hf_matrix *out, qw_err *err)
{
    static const struct {
        const char *dtype;
        qw_type type;
    } types[] = {{"BF16", QW_TYPE_BF16}, {"F16", QW_TYPE_F16}, {"F32", QW_TYPE_F32}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        if (!qw_st_is(t, types[i].dtype)) continue;
        uint64_t k = t->n_dims ? t->shape[t->n_dims - 1] : 1;
        if (t->n == 0) return qw_fail(err, QW_E_FORMAT, "%s: tensor '%s' is empty", hf_path_of(hf, t), t->name);
        *out = (hf_matrix){.in = {.type = types[i].type, .k = k, .data = t->data}, .rows = t->n / k};
        return QW_OK;
    }
    return qw_fail(err, QW_E_UNSUPPORTED, "%s: tensor '%s' is of type %s, which is not supported here: want BF16, F16 or F32",
                   hf_path_of(hf, t), t->name, t->dtype->name);
}

hf_matrix hf_matrix_part(const hf_matrix *m, uint64_t row0, uint64_t rows)
{
    hf_matrix part = *m;
    part.rows = rows;
    part.in.data += row0 * row_bytes(m);
    return part;
}

/* ---- transposed -------------------------------------------------------------------------------- */

typedef struct turned {
    qw_rows base;
    const uint8_t *data; /* of element (0, 0) */
    uint64_t ld, k;
    size_t elem;         /* bytes of an element */
} turned;

/* Column by column of the result, because that is how the input lies. */
static void make_turned(const qw_rows *rows, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch)
{
    (void)scratch;
    const turned *t = (const turned *)rows;
    for (uint64_t c = 0; c < t->k; c++) {
        const uint8_t *from = t->data + (c * t->ld + row0) * t->elem;
        for (size_t r = 0; r < n; r++) memcpy(out + (r * t->k + c) * t->elem, from + r * t->elem, t->elem);
    }
}

qw_status hf_matrix_turned(qw_hf *hf, const hf_matrix *m, uint64_t column0, uint64_t ld, uint64_t rows, uint64_t k,
                           hf_matrix *out, qw_err *err)
{
    turned *t;
    size_t elem = qw_type_row_bytes(m->in.type, 1);
    QW_TRY(hf_alloc(hf, &t, 1, sizeof *t, err));
    *t = (turned){.base = {.make = make_turned}, .data = m->in.data + column0 * elem, .ld = ld, .k = k, .elem = elem};
    *out = (hf_matrix){.in = {.type = m->in.type, .k = k, .make = &t->base}, .rows = rows};
    return QW_OK;
}

/* ---- rows in another order --------------------------------------------------------------------- */

typedef struct gather {
    qw_rows base;
    hf_matrix *in;       /* [n_in] */
    size_t n_in, row_bytes;
    const uint64_t *from; /* [blocks] */
    uint64_t block_rows;
} gather;

static void make_gathered(const qw_rows *rows, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch)
{
    const gather *g = (const gather *)rows;
    while (n > 0) {
        uint64_t block = row0 / g->block_rows, at = row0 % g->block_rows;
        size_t run = g->block_rows - at < n ? (size_t)(g->block_rows - at) : n;
        qw_rows_in_read(&g->in[g->n_in == 1 ? 0 : block].in, g->from[block] + at, run, out, scratch);
        out += run * g->row_bytes;
        row0 += run;
        n -= run;
    }
}

qw_status hf_matrix_gather(qw_hf *hf, const hf_matrix *in, size_t n_in, const uint64_t *from, size_t n_blocks,
                           uint64_t block_rows, hf_matrix *out, qw_err *err)
{
    gather *g;
    uint64_t *kept;
    QW_TRY(hf_alloc(hf, &g, 1, sizeof *g, err));
    QW_TRY(hf_alloc(hf, &g->in, n_in, sizeof *g->in, err));
    QW_TRY(hf_alloc(hf, &kept, n_blocks, sizeof *kept, err));
    memcpy(kept, from, n_blocks * sizeof *kept);
    memcpy(g->in, in, n_in * sizeof *in);
    g->base.make = make_gathered;
    g->n_in = n_in;
    g->row_bytes = row_bytes(in);
    g->from = kept;
    g->block_rows = block_rows;
    for (size_t i = 0; i < n_in; i++) {
        QW_ASSERT(in[i].in.type == in[0].in.type && in[i].in.k == in[0].in.k);
        if (qw_rows_in_scratch(&in[i].in) > g->base.scratch_bytes) g->base.scratch_bytes = qw_rows_in_scratch(&in[i].in);
    }
    *out = (hf_matrix){.in = {.type = in->in.type, .k = in->in.k, .make = &g->base}, .rows = n_blocks * block_rows};
    return QW_OK;
}

/* ---- columns in another order ------------------------------------------------------------------ */

typedef struct columns {
    qw_rows base;
    hf_matrix in;
    const uint64_t *from; /* [n_blocks] */
    size_t n_blocks, block_bytes, input_bytes; /* input_bytes: of the input's rows in our scratch */
} columns;

static void make_columns(const qw_rows *rows, uint64_t row0, size_t n, uint8_t *out, uint8_t *scratch)
{
    const columns *c = (const columns *)rows;
    size_t bytes = row_bytes(&c->in);
    for (size_t done = 0; done < n;) {
        size_t step = n - done < QW_ROWS_AT_ONCE ? n - done : QW_ROWS_AT_ONCE;
        qw_rows_in_read(&c->in.in, row0 + done, step, scratch, scratch + c->input_bytes);
        for (size_t r = 0; r < step; r++)
            for (size_t b = 0; b < c->n_blocks; b++)
                memcpy(out + (done + r) * bytes + b * c->block_bytes, scratch + r * bytes + c->from[b] * c->block_bytes,
                       c->block_bytes);
        done += step;
    }
}

qw_status hf_matrix_columns(qw_hf *hf, const hf_matrix *m, const uint64_t *from, size_t n_blocks, uint64_t block_k,
                            hf_matrix *out, qw_err *err)
{
    columns *c;
    uint64_t *kept;
    QW_ASSERT(block_k % qw_type_get(m->in.type)->block_n == 0 && n_blocks * block_k == m->in.k);
    QW_TRY(hf_alloc(hf, &c, 1, sizeof *c, err));
    QW_TRY(hf_alloc(hf, &kept, n_blocks, sizeof *kept, err));
    memcpy(kept, from, n_blocks * sizeof *kept);
    *c = (columns){.base = {.make = make_columns}, .in = *m, .from = kept, .n_blocks = n_blocks,
                   .block_bytes = qw_type_row_bytes(m->in.type, block_k),
                   .input_bytes = round64(QW_ROWS_AT_ONCE * row_bytes(m))};
    c->base.scratch_bytes = c->input_bytes + qw_rows_in_scratch(&m->in);
    *out = (hf_matrix){.in = {.type = m->in.type, .k = m->in.k, .make = &c->base}, .rows = m->rows};
    return QW_OK;
}

/* ---- another type ------------------------------------------------------------------------------ */

qw_status hf_matrix_as(qw_hf *hf, const hf_matrix *m, qw_type type, hf_matrix *out, qw_err *err)
{
    qw_rows_as *a;
    *out = *m;
    if (m->in.type == type) return QW_OK;
    QW_TRY(hf_alloc(hf, &a, 1, sizeof *a, err));
    qw_rows_as_init(a, &m->in, type);
    *out = (hf_matrix){.in = {.type = type, .k = m->in.k, .make = &a->base}, .rows = m->rows};
    return QW_OK;
}

qw_status hf_matrix_load(qw_hf *hf, const hf_matrix *m, uint8_t **out, qw_err *err)
{
    uint8_t *scratch = NULL;
    size_t bytes;
    if (qw_mul_overflows((size_t)m->rows, row_bytes(m), &bytes))
        return qw_fail(err, QW_E_LIMIT, "%s: a tensor has more than 2^64 bytes", hf->dir);
    QW_TRY(hf_alloc(hf, out, bytes, 1, err));
    QW_TRY(qw_alloc_aligned(&scratch, qw_rows_in_scratch(&m->in), "rows of a tensor", err));
    qw_rows_in_read(&m->in, 0, (size_t)m->rows, *out, scratch);
    qw_free_aligned(scratch, qw_rows_in_scratch(&m->in));
    return QW_OK;
}
