/* linear.c: matrix products of the CPU backend: activations quantised once, pieces of the result shared out to the
 * threads.
 *
 * A piece is some groups of 16 weight rows times some columns. It is computed into the thread's scratch, block by
 * block, and finished from there while it is in cache: bias, residual, or the product of a gate. Which thread computes
 * a piece, and with which others, never changes a result: each output element is one kernel's sum in one order.
 */
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu_private.h"

enum {
    MANY_ROWS = 32,          /* from here on computing, not reading the weights, takes the time */
    BLOCK_COLUMNS = 64,      /* columns in one call of a kernel */
    BLOCK_FLOATS = 64 * 256, /* results in one call: part of an L2 cache */
    ITEM_COLUMNS = 128,      /* many rows: columns of an item, */
    ITEM_GROUPS = 8,         /* and its groups: all activations are read once for them */
    GATE_GROUPS = 16,        /* groups of an item whose result is quantised at once: 256 rows */
    ITEM_BYTES = 64 << 10    /* few rows: weights of an item, at least */
};
_Static_assert(GATE_GROUPS * QW_GROUP_ROWS * BLOCK_COLUMNS <= BLOCK_FLOATS, "an item's result is one block");
_Static_assert(GATE_GROUPS * QW_GROUP_ROWS == QW_CPU_SLICE, "and is quantised as one slice");

size_t qw_cpu_linear_scratch(const qw_cpu_sizes *s)
{
    size_t row = s->k_max * sizeof(float); /* dequantised */
    size_t blocks = 2 * BLOCK_FLOATS * sizeof(float) + (size_t)QW_CPU_SLICE * 4;
    return row > blocks ? row : blocks;
}

/* ---- work shared by both operations ------------------------------------------------------------- */

typedef struct linear_run {
    qw_cpu *cpu;
    const float *x; /* [n_rows, ld_x]: the input */
    size_t ld_x, n_rows, k;
    bool fine;      /* two records a row: record 2r + 1 holds what quantising row r lost */
    qw_act act;     /* being quantised */
    const qw_linear *products;
    size_t n_products;
    size_t item_groups, item_columns; /* rows of the input in an item */
    const qw_weight *up;              /* of a gate: the other factor */
    const qw_weight *down;            /* the product that reads gate times up, when it is quantised for it at once */
} linear_run;

/* Whether a row has two records: of floats, quantising loses nothing. */
static bool two_records(const linear_run *a, qw_act act)
{
    return a->fine && act != QW_ACT_F32;
}

static void quantize_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    linear_run *a = ctx;
    size_t bytes = qw_act_bytes(a->act, a->k);
    bool fine = two_records(a, a->act);
    float *lost = qw_cpu_scratch(a->cpu, thread); /* [k] */
    for (int64_t r = begin; r < end; r++) {
        const float *x = a->x + (size_t)r * a->ld_x;
        uint8_t *record = a->cpu->act[a->act] + (size_t)r * bytes * (fine ? 2 : 1);
        a->cpu->kernels->quantize_act[a->act](x, a->k, record);
        if (!fine) continue;
        qw_act_residual(a->act, x, a->k, record, lost);
        a->cpu->kernels->quantize_act[a->act](lost, a->k, record + bytes);
    }
}

/* Fills the backend's records of x in the forms that the weights want. */
static void quantize_input(linear_run *a, const qw_weight *const *weights, size_t n_weights)
{
    bool wants[QW_ACT_COUNT] = {false};
    for (size_t i = 0; i < n_weights; i++)
        if (weights[i]->pack != QW_PACK_NONE) wants[qw_pack_act(weights[i]->pack)] = true;
    for (int act = 0; act < QW_ACT_COUNT; act++) {
        if (!wants[act]) continue;
        a->act = (qw_act)act;
        if (a->n_rows < QW_CPU_INLINE_ROWS) {
            quantize_rows(a, 0, (int64_t)a->n_rows, 0);
        } else {
            qw_pool_run(a->cpu->pool, (int64_t)a->n_rows, 1 + (int64_t)a->n_rows / (16 * a->cpu->n_threads),
                        quantize_rows, a);
        }
    }
}

/* Groups [g0, g1) of a packed matrix times records [c0, c1): out [c1 - c0, 16 * (g1 - g0)]. */
static void packed_block(const qw_cpu *cpu, const qw_weight *w, size_t g0, size_t g1, size_t c0, size_t c1, float *out)
{
    const uint8_t *groups = (const uint8_t *)w->packed + g0 * qw_pack_group_bytes(w->pack, w->k);
    size_t ld = QW_GROUP_ROWS * (g1 - g0);
    qw_act act = qw_pack_act(w->pack);
    cpu->kernels->gemm[w->pack](groups, g1 - g0, w->k, cpu->act[act] + c0 * qw_act_bytes(act, w->k), c1 - c0, out, ld);
    qw_cpu_apply_scale(w, 0, out, c1 - c0, ld, ld);
}

/* How many items a product of so many groups makes, and what one holds. */
static size_t n_column_items(const linear_run *a)
{
    return (a->n_rows + a->item_columns - 1) / a->item_columns;
}

static size_t n_items(const linear_run *a, size_t n_groups)
{
    return (n_groups + a->item_groups - 1) / a->item_groups * n_column_items(a);
}

/* Few rows: an item is a group, and a thread takes as many at a time as make ITEM_BYTES. Many rows: an item is a block
 * of ITEM_GROUPS groups and ITEM_COLUMNS columns, one group's neighbours first, so that its weights stay in cache. */
static int64_t choose_items(linear_run *a, bool by_column, size_t groups_when_many, size_t group_bytes)
{
    bool many = a->n_rows >= MANY_ROWS;
    a->item_groups = many ? groups_when_many : 1;
    a->item_columns = many && by_column ? ITEM_COLUMNS : a->n_rows;
    return many ? 1 : 1 + (int64_t)(ITEM_BYTES / (group_bytes + 1));
}

/* An item's place in a product: groups [g0, g1), rows of the input [r0, r1). */
typedef struct piece {
    size_t g0, g1, r0, r1;
} piece;

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Of items [i, end) of a product: the largest piece that begins with item i; *n is how many items it takes. */
static piece next_piece(const linear_run *a, const qw_weight *w, size_t i, size_t end, size_t *n)
{
    size_t per_row = n_column_items(a), n_groups = qw_weight_groups(w);
    *n = per_row == 1 ? end - i : 1;
    piece p = {.g0 = i / per_row * a->item_groups, .r0 = i % per_row * a->item_columns};
    p.g1 = min_size(n_groups, p.g0 + (per_row == 1 ? *n : 1) * a->item_groups);
    p.r1 = min_size(a->n_rows, p.r0 + a->item_columns);
    return p;
}

/* ---- out = W x + bias, or out += W x ------------------------------------------------------------- */

/* Writes a block of a product: part [columns of rows r0..r1, ld] holds groups from g0 on. */
static void finish_block(const linear_run *a, const qw_linear *p, size_t g0, size_t g1, size_t r0, size_t r1,
                         const float *part, size_t ld)
{
    size_t row0 = g0 * QW_GROUP_ROWS, n = min_size(p->w->rows, g1 * QW_GROUP_ROWS) - row0;
    bool fine = two_records(a, qw_pack_act(p->w->pack));
    for (size_t r = r0; r < r1; r++) {
        float *out = p->out + r * p->ld + row0;
        const float *sum = part + (r - r0) * (fine ? 2 : 1) * ld;
        if (fine) {
            const float *rest = sum + ld;
            for (size_t i = 0; i < n; i++) out[i] = sum[i] + rest[i];
        } else if (p->add) {
            a->cpu->kernels->add(out, sum, n);
        } else {
            memcpy(out, sum, n * sizeof *out);
        }
        if (p->bias) a->cpu->kernels->add(out, p->bias + row0, n);
    }
}

static void packed_piece(const linear_run *a, const qw_linear *p, piece at, int thread)
{
    float *part = qw_cpu_scratch(a->cpu, thread);
    size_t per_row = two_records(a, qw_pack_act(p->w->pack)) ? 2 : 1;
    for (size_t r = at.r0, r1; r < at.r1; r = r1) {
        r1 = min_size(at.r1, r + BLOCK_COLUMNS / per_row);
        size_t n_cols = (r1 - r) * per_row, step = BLOCK_FLOATS / QW_GROUP_ROWS / n_cols;
        for (size_t g = at.g0, g1; g < at.g1; g = g1) {
            g1 = min_size(at.g1, g + step);
            packed_block(a->cpu, p->w, g, g1, r * per_row, r1 * per_row, part);
            finish_block(a, p, g, g1, r, r1, part, (g1 - g) * QW_GROUP_ROWS);
        }
    }
}

/* The same piece computed in float on dequantised rows. */
static void float_piece(const linear_run *a, const qw_linear *p, piece at, int thread)
{
    const qw_weight *w = p->w;
    float *row = qw_cpu_scratch(a->cpu, thread);
    size_t end = min_size(w->rows, at.g1 * QW_GROUP_ROWS);
    for (size_t i = at.g0 * QW_GROUP_ROWS; i < end; i++) {
        float sums[BLOCK_COLUMNS];
        a->cpu->kernels->dequantize_row(w->type, qw_cpu_row(a->cpu, w, 0, i, thread), row, w->k);
        for (size_t r = at.r0, r1; r < at.r1; r = r1) {
            r1 = min_size(at.r1, r + BLOCK_COLUMNS);
            a->cpu->kernels->dot_f32(row, w->k, a->x + r * a->ld_x, a->ld_x, r1 - r, sums, 1);
            qw_cpu_apply_scale(w, 0, sums, 1, r1 - r, 0);
            for (size_t c = r; c < r1; c++) {
                float *out = p->out + c * p->ld + i;
                *out = p->add ? *out + sums[c - r] : sums[c - r];
                if (p->bias) *out += p->bias[i];
            }
        }
    }
}

/* Items are those of all products, one after the other. */
static void linear_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    linear_run *a = ctx;
    size_t first = 0; /* number of the product's first item */
    for (size_t i = 0; i < a->n_products && first < (size_t)end; i++) {
        const qw_linear *p = &a->products[i];
        size_t n = n_items(a, qw_weight_groups(p->w)), stop = min_size(first + n, (size_t)end), taken;
        for (size_t at = (size_t)begin > first ? (size_t)begin : first; at < stop; at += taken) {
            piece part = next_piece(a, p->w, at - first, stop - first, &taken);
            if (p->w->pack != QW_PACK_NONE)
                packed_piece(a, p, part, thread);
            else
                float_piece(a, p, part, thread);
        }
        first += n;
    }
}

enum { PRODUCTS_MAX = 8 };

static void run_products(linear_run *a)
{
    size_t items = 0, bytes = 0, n_groups = 0;
    bool packed = true;
    for (size_t i = 0; i < a->n_products; i++) {
        const qw_weight *w = a->products[i].w;
        n_groups += qw_weight_groups(w);
        bytes += w->rows * w->row_bytes;
        packed = packed && w->pack != QW_PACK_NONE;
    }
    int64_t chunk = choose_items(a, packed, ITEM_GROUPS, bytes / n_groups);
    for (size_t i = 0; i < a->n_products; i++) items += n_items(a, qw_weight_groups(a->products[i].w));
    qw_pool_run(a->cpu->pool, (int64_t)items, chunk, linear_items, a);
}

void qw_cpu_linear(qw_backend *be, const float *x, size_t ld_x, size_t n_rows, const qw_linear *products,
                   size_t n_products)
{
    qw_cpu *cpu = (qw_cpu *)be;
    const qw_weight *weights[PRODUCTS_MAX];
    linear_run a = {.cpu = cpu, .x = x, .ld_x = ld_x, .n_rows = n_rows, .k = products[0].w->k, .products = products,
                    .n_products = n_products, .fine = products[0].fine};
    QW_ASSERT(n_products <= PRODUCTS_MAX && n_rows * (a.fine ? 2 : 1) <= cpu->sizes.n_rows_max);
    for (size_t i = 0; i < n_products; i++) {
        weights[i] = products[i].w;
        QW_ASSERT(weights[i]->k == a.k && a.k <= cpu->sizes.k_max && products[i].fine == a.fine);
    }
    quantize_input(&a, weights, n_products);
    run_products(&a);
}

/* ---- x += Wdown (silu(Wgate n) * Wup n) ---------------------------------------------------------- */

/* Quantises slice [row0, row0 + QW_CPU_SLICE) of row r of down's input into its record. A kernel pads what it writes to
 * whole lines, which may be the next slice's, hence the copy. */
static void quantize_slice(const linear_run *a, const float *x, size_t r, size_t row0, uint8_t *temp)
{
    qw_act act = qw_pack_act(a->down->pack);
    size_t unit = qw_act_record_bytes(act), n = qw_act_group(act);
    uint8_t *record = a->cpu->act_gated[act] + r * qw_act_bytes(act, a->down->k);
    a->cpu->kernels->quantize_act[act](x, QW_CPU_SLICE, temp);
    memcpy(record + row0 / n * unit, temp, QW_CPU_SLICE / n * unit);
}

/* The gated product of a piece: into out [n_rows, ld], or quantised for the product that reads it. */
static void gate_piece(const linear_run *a, piece at, int thread)
{
    const qw_linear *p = a->products;
    float *gate = qw_cpu_scratch(a->cpu, thread), *up = gate + BLOCK_FLOATS;
    uint8_t *temp = (uint8_t *)(up + BLOCK_FLOATS);
    for (size_t r = at.r0, r1; r < at.r1; r = r1) {
        r1 = min_size(at.r1, r + BLOCK_COLUMNS);
        size_t step = a->down ? GATE_GROUPS : BLOCK_FLOATS / QW_GROUP_ROWS / (r1 - r);
        for (size_t g = at.g0, g1; g < at.g1; g = g1) {
            g1 = min_size(at.g1, g + step);
            size_t ld = (g1 - g) * QW_GROUP_ROWS, row0 = g * QW_GROUP_ROWS, n = min_size(p->w->rows - row0, ld);
            packed_block(a->cpu, p->w, g, g1, r, r1, gate);
            packed_block(a->cpu, a->up, g, g1, r, r1, up);
            for (size_t c = r; c < r1; c++) {
                float *gated = gate + (c - r) * ld;
                a->cpu->kernels->silu_mul(gated, up + (c - r) * ld, n, gated);
                if (a->down)
                    quantize_slice(a, gated, c, row0, temp);
                else
                    memcpy(p->out + c * p->ld + row0, gated, n * sizeof *gated);
            }
        }
    }
}

static void gate_items(void *ctx, int64_t begin, int64_t end, int thread)
{
    linear_run *a = ctx;
    size_t taken;
    for (size_t at = (size_t)begin; at < (size_t)end; at += taken)
        gate_piece(a, next_piece(a, a->products[0].w, at, (size_t)end, &taken), thread);
}

/* As gate_piece, whatever the weights' forms. */
static void gate_in_steps(linear_run *a, const qw_linear *gate, const qw_weight *up, float *up_out)
{
    const qw_linear both[] = {*gate, {.w = up, .out = up_out, .ld = gate->ld}};
    qw_backend *be = &a->cpu->base;
    qw_cpu_linear(be, a->x, a->ld_x, a->n_rows, both, 2);
    be->ops->silu_mul(be, gate->out, up_out, a->n_rows, gate->w->rows, gate->ld);
}

static void swap_records(qw_cpu *cpu, qw_act act)
{
    uint8_t *other = cpu->act[act];
    cpu->act[act] = cpu->act_gated[act];
    cpu->act_gated[act] = other;
}

void qw_cpu_swiglu(qw_backend *be, const float *n, size_t ld_n, size_t n_rows, const qw_swiglu *w, float *x, size_t ld_x)
{
    qw_cpu *cpu = (qw_cpu *)be;
    size_t ffn = w->gate->rows;
    const qw_weight *weights[] = {w->gate, w->up};
    qw_linear gate = {.w = w->gate, .out = w->gate_out, .ld = ffn}, down = {.w = w->down, .out = x, .ld = ld_x, .add = true};
    linear_run a = {.cpu = cpu, .x = n, .ld_x = ld_n, .n_rows = n_rows, .k = w->gate->k, .products = &gate,
                    .n_products = 1, .up = w->up};
    QW_ASSERT(w->up->rows == ffn && w->up->k == a.k && w->down->k == ffn);
    QW_ASSERT(a.k <= cpu->sizes.k_max && ffn <= cpu->sizes.k_max && n_rows <= cpu->sizes.n_rows_max);
    if (w->gate->pack == QW_PACK_NONE || w->up->pack == QW_PACK_NONE) {
        gate_in_steps(&a, &gate, w->up, w->up_out);
        qw_cpu_linear(be, w->gate_out, ffn, n_rows, &down, 1);
        return;
    }
    bool at_once = n_rows >= MANY_ROWS && w->down->pack != QW_PACK_NONE && ffn % QW_CPU_SLICE == 0;
    quantize_input(&a, weights, 2);
    a.down = at_once ? w->down : NULL;
    int64_t chunk = choose_items(&a, true, GATE_GROUPS, w->gate->row_bytes * 2 * QW_GROUP_ROWS);
    qw_pool_run(cpu->pool, (int64_t)n_items(&a, qw_weight_groups(w->gate)), chunk, gate_items, &a);
    if (!at_once) {
        qw_cpu_linear(be, w->gate_out, ffn, n_rows, &down, 1);
        return;
    }
    linear_run rest = {.cpu = cpu, .n_rows = n_rows, .k = ffn, .products = &down, .n_products = 1};
    qw_act act = qw_pack_act(w->down->pack);
    swap_records(cpu, act);
    run_products(&rest);
    swap_records(cpu, act);
}
