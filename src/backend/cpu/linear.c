/* linear.c: matrix products of the CPU backend: activations quantised once, groups of 16 rows shared out to the threads.
 *
 * Which thread computes a group, and with which others, never changes a result: each output element is one kernel's
 * sum in one order.
 */
#include "backend/cpu/cpu_private.h"

enum {
    CHUNK_BYTES = 192 << 10, /* packed weights that stay in L2 while all columns pass over them */
    CHUNK_GROUPS = 8,        /* at least, for many columns: all activations are read once a chunk */
    MANY_ROWS = 32,
    CHUNKS_PER_THREAD = 8    /* so that a late thread costs little at the end of a product */
};

size_t qw_cpu_linear_scratch(const qw_cpu_sizes *s)
{
    size_t row = s->k_max * sizeof(float);                          /* dequantised */
    size_t group = s->n_rows_max * QW_GROUP_ROWS * sizeof(float);   /* a group's outputs of all columns */
    return row > group ? row : group;
}

/* Work on a product is counted in groups of 16 rows, packed or not. */
static size_t n_groups_of(const qw_weight *w)
{
    return (w->rows + QW_GROUP_ROWS - 1) / QW_GROUP_ROWS;
}

typedef struct linear_args {
    qw_cpu *cpu;
    const float *x; /* [n_rows, ld_x] */
    size_t ld_x, n_rows, k;
    const qw_linear *products;
    size_t n_products;
    qw_act act; /* being quantised */
    bool fine;  /* n_rows further columns hold what quantising the first n_rows lost */
} linear_args;

static void quantize_rows(void *ctx, int64_t begin, int64_t end, int thread)
{
    linear_args *a = ctx;
    size_t bytes = qw_act_bytes(a->act, a->k);
    float *lost = qw_cpu_scratch(a->cpu, thread); /* [k] */
    for (int64_t r = begin; r < end; r++) {
        const float *x = a->x + (size_t)r * a->ld_x;
        uint8_t *record = a->cpu->act[a->act] + (size_t)r * bytes;
        a->cpu->kernels->quantize_act[a->act](x, a->k, record);
        if (!a->fine) continue;
        qw_act_residual(a->act, x, a->k, record, lost);
        a->cpu->kernels->quantize_act[a->act](lost, a->k, record + a->n_rows * bytes);
    }
}

/* One group through scratch, for what the kernel cannot write in place: the last group of a matrix, whose padding would
 * land in the next row of out, and fine products, whose two parts are added. */
static void one_group(const linear_args *a, const qw_linear *p, size_t g, int thread)
{
    const qw_weight *w = p->w;
    size_t row0 = g * QW_GROUP_ROWS, n = w->rows - row0 < QW_GROUP_ROWS ? w->rows - row0 : QW_GROUP_ROWS;
    size_t n_cols = a->fine ? 2 * a->n_rows : a->n_rows;
    float *part = qw_cpu_scratch(a->cpu, thread); /* [n_cols, 16] */
    const uint8_t *packed = (const uint8_t *)w->packed + g * qw_pack_group_bytes(w->pack, w->k);
    a->cpu->kernels->gemm[w->pack](packed, 1, w->k, a->cpu->act[qw_pack_act(w->pack)], n_cols, part, QW_GROUP_ROWS);
    for (size_t r = 0; r < a->n_rows; r++) {
        float *out = p->out + r * p->ld + row0;
        const float *rough = part + r * QW_GROUP_ROWS, *rest = rough + a->n_rows * QW_GROUP_ROWS;
        for (size_t i = 0; i < n; i++) out[i] = a->fine ? rough[i] + rest[i] : rough[i];
    }
}

/* Groups [g0, g1) of a packed product. */
static void packed_groups(const linear_args *a, const qw_linear *p, size_t g0, size_t g1, int thread)
{
    const qw_weight *w = p->w;
    size_t n_whole = a->fine ? 0 : w->rows / QW_GROUP_ROWS, whole_end = g1 < n_whole ? g1 : n_whole;
    if (whole_end > g0) {
        const uint8_t *packed = (const uint8_t *)w->packed + g0 * qw_pack_group_bytes(w->pack, w->k);
        a->cpu->kernels->gemm[w->pack](packed, whole_end - g0, w->k, a->cpu->act[qw_pack_act(w->pack)], a->n_rows,
                                       p->out + g0 * QW_GROUP_ROWS, p->ld);
    }
    for (size_t g = g0 > n_whole ? g0 : n_whole; g < g1; g++) one_group(a, p, g, thread);
}

/* The same groups computed in float on dequantised rows. */
static void float_groups(const linear_args *a, const qw_linear *p, size_t g0, size_t g1, int thread)
{
    const qw_weight *w = p->w;
    float *row = qw_cpu_scratch(a->cpu, thread);
    size_t end = g1 * QW_GROUP_ROWS < w->rows ? g1 * QW_GROUP_ROWS : w->rows;
    for (size_t i = g0 * QW_GROUP_ROWS; i < end; i++) {
        a->cpu->kernels->dequantize_row(w->type, w->data + i * w->row_bytes, row, w->k);
        a->cpu->kernels->dot_f32(row, w->k, a->x, a->ld_x, a->n_rows, p->out + i, p->ld);
    }
}

static void add_bias(const linear_args *a, const qw_linear *p, size_t g0, size_t g1)
{
    size_t begin = g0 * QW_GROUP_ROWS;
    size_t end = g1 * QW_GROUP_ROWS < p->w->rows ? g1 * QW_GROUP_ROWS : p->w->rows;
    for (size_t r = 0; r < a->n_rows; r++) {
        float *out = p->out + r * p->ld;
        for (size_t i = begin; i < end; i++) out[i] += p->bias[i];
    }
}

/* Items are the groups of all products, one after the other; a chunk may cross from one into the next. */
static void linear_groups(void *ctx, int64_t begin, int64_t end, int thread)
{
    linear_args *a = ctx;
    size_t first = 0; /* item number of the current product's first group */
    for (size_t i = 0; i < a->n_products && (int64_t)first < end; i++) {
        const qw_linear *p = &a->products[i];
        size_t n_groups = n_groups_of(p->w);
        if (begin < (int64_t)(first + n_groups)) {
            size_t g0 = begin > (int64_t)first ? (size_t)begin - first : 0;
            size_t g1 = end < (int64_t)(first + n_groups) ? (size_t)end - first : n_groups;
            if (p->w->pack != QW_PACK_NONE) {
                packed_groups(a, p, g0, g1, thread);
            } else {
                float_groups(a, p, g0, g1, thread);
            }
            if (p->bias) add_bias(a, p, g0, g1);
        }
        first += n_groups;
    }
}

void qw_cpu_linear(qw_backend *be, const float *x, size_t ld_x, size_t n_rows, const qw_linear *products,
                       size_t n_products)
{
    qw_cpu *cpu = (qw_cpu *)be;
    linear_args args = {.cpu = cpu, .x = x, .ld_x = ld_x, .n_rows = n_rows, .k = products[0].w->k,
                        .products = products, .n_products = n_products, .fine = products[0].fine};
    QW_ASSERT(!args.fine || 2 * n_rows <= cpu->sizes.n_rows_max);
    bool wants[QW_ACT_COUNT] = {false};
    size_t n_groups = 0, bytes = 0;
    for (size_t i = 0; i < n_products; i++) {
        const qw_weight *w = products[i].w;
        QW_ASSERT(w->k == args.k && w->k <= cpu->sizes.k_max && n_rows <= cpu->sizes.n_rows_max);
        QW_ASSERT(products[i].fine == args.fine);
        if (w->pack != QW_PACK_NONE) wants[qw_pack_act(w->pack)] = true;
        n_groups += n_groups_of(w);
        bytes += n_groups_of(w) * QW_GROUP_ROWS * w->row_bytes;
    }
    for (int act = 0; act < QW_ACT_COUNT; act++) {
        if (!wants[act]) continue;
        args.act = (qw_act)act;
        if (n_rows < QW_CPU_INLINE_ROWS) {
            quantize_rows(&args, 0, (int64_t)n_rows, 0);
        } else {
            qw_pool_run(cpu->pool, (int64_t)n_rows, 1 + (int64_t)n_rows / (4 * cpu->n_threads), quantize_rows, &args);
        }
    }
    size_t chunk = CHUNK_BYTES / (bytes / n_groups + 1);
    if (n_rows >= MANY_ROWS && chunk < CHUNK_GROUPS) chunk = CHUNK_GROUPS;
    size_t fair = n_groups / (size_t)(CHUNKS_PER_THREAD * cpu->n_threads);
    if (chunk > fair) chunk = fair;
    if (chunk < 1) chunk = 1;
    qw_pool_run(cpu->pool, (int64_t)n_groups, (int64_t)chunk, linear_groups, &args);
}
