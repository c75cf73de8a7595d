/* weights.c: see weights.h. Chooses where packed weights live; the side file itself is weights_file.c. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "model/weights_private.h"

struct qw_weights {
    qw_map *map;     /* owns; NULL when in memory */
    uint8_t *memory; /* owns; NULL when mapped or empty */
    uint64_t bytes;
    char note[QW_ERR_TEXT_MAX + 64];
};

static void add_entry(void *ctx, qw_weight *w)
{
    pack_table *t = ctx;
    qw_pack pack = qw_pack_of(w->type);
    size_t n_groups = w->n_stacked * qw_weight_groups(w), group_bytes = qw_pack_group_bytes(pack, w->k);
    if (t->entries) {
        t->entries[t->n] = (pack_entry){.weight = w, .pack = pack, .offset = t->bytes, .n_groups = n_groups,
                                        .group_bytes = group_bytes};
    }
    t->n++;
    t->n_groups += n_groups;
    if (group_bytes > t->group_bytes_max) t->group_bytes_max = group_bytes;
    t->bytes += (uint64_t)n_groups * group_bytes;
    size_t source_bytes = (qw_weight_source_bytes(w, QW_GROUP_ROWS) + 63) / 64 * 64;
    if (source_bytes > t->source_bytes) t->source_bytes = source_bytes;
}

static void each_packed(qw_net *net, pack_table *t)
{
    qw_net_each_weight(net, add_entry, t);
    qw_net_each_mtp_weight(net, add_entry, t);
}

static qw_status make_table(qw_net *net, pack_table *t, qw_err *err)
{
    *t = (pack_table){0};
    each_packed(net, t);
    size_t n = t->n;
    *t = (pack_table){0};
    QW_TRY(qw_alloc(&t->entries, n, sizeof *t->entries, "weight table", err));
    each_packed(net, t);
    return QW_OK;
}

static void free_table(pack_table *t)
{
    free(t->entries);
    qw_free_aligned(t->scratch, t->scratch_bytes);
}

uint64_t qw_weights_packed_bytes(qw_net *net)
{
    pack_table t = {0};
    each_packed(net, &t);
    return t.bytes;
}

typedef struct fill_args {
    const pack_table *table;
    size_t first;  /* group that is item 0 */
    uint64_t from; /* offset of out[0] in the region */
    uint8_t *out;
} fill_args;

/* Items are groups, in the order of all entries one after the other. */
static void fill_groups(void *ctx, int64_t begin, int64_t end, int thread)
{
    const fill_args *a = ctx;
    uint8_t *buffer = a->table->scratch + (size_t)thread * a->table->source_bytes;
    size_t from = a->first + (size_t)begin, to = a->first + (size_t)end, first = 0;
    for (size_t i = 0; i < a->table->n && first < to; first += a->table->entries[i++].n_groups) {
        const pack_entry *e = &a->table->entries[i];
        const qw_weight *w = e->weight;
        for (size_t g = from > first ? from - first : 0; g < e->n_groups && first + g < to; g++) {
            size_t matrix = g / qw_weight_groups(w), row = g % qw_weight_groups(w) * QW_GROUP_ROWS;
            size_t n_rows = w->rows - row < QW_GROUP_ROWS ? w->rows - row : QW_GROUP_ROWS;
            qw_pack_group(e->pack, qw_weight_read(w, matrix, row, n_rows, buffer), w->row_bytes, n_rows, w->k,
                          a->out + (e->offset + g * e->group_bytes - a->from));
        }
    }
}

/* Number of the first group that begins at or after an offset of the region. */
static size_t group_at(const pack_table *t, uint64_t offset)
{
    size_t first = 0;
    for (size_t i = 0; i < t->n; first += t->entries[i++].n_groups) {
        const pack_entry *e = &t->entries[i];
        if (offset <= e->offset) return first;
        uint64_t g = (offset - e->offset + e->group_bytes - 1) / e->group_bytes;
        if (g < e->n_groups) return first + (size_t)g;
    }
    return first;
}

/* Where group g of all matrices of w begins in the file; behind the last group, where the last matrix ends. */
static const uint8_t *data_of_group(const qw_weight *w, size_t g)
{
    size_t per_matrix = qw_weight_groups(w);
    if (g == w->n_stacked * per_matrix) return qw_weight_row(w, w->n_stacked - 1, w->rows);
    return qw_weight_row(w, g / per_matrix, g % per_matrix * QW_GROUP_ROWS);
}

/* The rows of groups [from, to) have been read and are not needed again: without this the whole model file would stay
 * in our memory beside its packed copy. A hint; a page that is wanted after all comes back from the file. What rows that
 * are made were made of is not known here: then the whole file's pages are dropped. */
static void drop_rows(const pack_table *t, size_t from, size_t to)
{
    size_t first = 0;
    for (size_t i = 0; i < t->n && first < to; first += t->entries[i++].n_groups) {
        const pack_entry *e = &t->entries[i];
        if (from >= first + e->n_groups || !e->weight->data) continue;
        const uint8_t *begin = data_of_group(e->weight, from > first ? from - first : 0);
        const uint8_t *end = data_of_group(e->weight, to - first < e->n_groups ? to - first : e->n_groups);
        qw_gguf_drop_pages(t->file, begin, (size_t)(end - begin));
    }
    if (t->source_bytes > 0) qw_gguf_drop_pages(t->file, NULL, 0);
}

void qw_pack_table_fill(const pack_table *t, uint64_t from, uint64_t to, uint8_t *out, qw_pool *pool)
{
    size_t first = group_at(t, from), end = group_at(t, to);
    fill_args args = {.table = t, .first = first, .from = from, .out = out};
    qw_pool_run(pool, (int64_t)(end - first), 1, fill_groups, &args);
    drop_rows(t, first, end);
}

/* Packs the whole region into memory. */
static void fill_memory(const pack_table *t, uint8_t *region, qw_pool *pool)
{
    for (uint64_t from = 0; from < t->bytes; from += QW_PACK_PIECE_BYTES) {
        uint64_t left = t->bytes - from;
        uint64_t to = from + (left < QW_PACK_PIECE_BYTES ? left : QW_PACK_PIECE_BYTES);
        qw_pack_table_fill(t, from, to, region + from, pool);
    }
}

static void use_region(const pack_table *t, const uint8_t *region)
{
    for (size_t i = 0; i < t->n; i++) {
        t->entries[i].weight->pack = t->entries[i].pack;
        t->entries[i].weight->packed = region + t->entries[i].offset;
    }
}

/* Maps the side file, building it first where needed; *region stays NULL when QW_CACHE_MAX wants none. */
static qw_status map_side_file(qw_weights *w, const pack_table *t, const qw_net *net, const char *cache_dir,
                               qw_pool *pool, const uint8_t **region, qw_err *err)
{
    char path[4096];
    qw_weights_cache_path(net->file, cache_dir, path, sizeof path);
    if (qw_pack_file_open(path, t, net->file, &w->map, region, NULL) == QW_OK) {
        qw_map_will_need(w->map, 0, qw_map_bytes(w->map));
        return QW_OK;
    }
    return qw_pack_file_make(path, t, net->file, pool, &w->map, region, err);
}

qw_status qw_weights_create(qw_net *net, const char *cache_dir, qw_pool *pool, qw_weights **out, qw_err *err)
{
    qw_weights *w = NULL;
    pack_table table = {0};
    const uint8_t *region = NULL;
    qw_status status;
    qw_err why;
    *out = NULL;
    QW_TRY_GOTO(qw_alloc(&w, 1, sizeof *w, "weights", err));
    QW_TRY_GOTO(make_table(net, &table, err));
    table.file = net->file;
    table.scratch_bytes = table.source_bytes * (size_t)qw_pool_threads(pool);
    QW_TRY_GOTO(qw_alloc_aligned(&table.scratch, table.scratch_bytes, "rows of weights", err));
    w->bytes = table.bytes;
    if (cache_dir && map_side_file(w, &table, net, cache_dir, pool, &region, &why) != QW_OK) {
        snprintf(w->note, sizeof w->note, "packed weights are kept in memory: %s", why.text);
    }
    if (!region) {
        QW_TRY_GOTO(qw_alloc_aligned(&w->memory, table.bytes, "packed weights", err));
        fill_memory(&table, w->memory, pool);
        region = w->memory;
    }
    use_region(&table, region);
    free_table(&table);
    *out = w;
    return QW_OK;
fail:
    free_table(&table);
    qw_weights_destroy(w);
    return status;
}

void qw_weights_destroy(qw_weights *w)
{
    if (!w) return;
    qw_map_close(w->map);
    if (w->memory) qw_free_aligned(w->memory, w->bytes);
    free(w);
}

bool qw_weights_mapped(const qw_weights *w)
{
    return w->map != NULL;
}

const char *qw_weights_note(const qw_weights *w)
{
    return w->note;
}

bool qw_weights_failed(const qw_weights *w)
{
    return w->map && qw_map_failed(w->map);
}
