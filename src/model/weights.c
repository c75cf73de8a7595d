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
    if (pack == QW_PACK_NONE) return;
    if (t->entries) {
        pack_entry *e = &t->entries[t->n];
        e->weight = w;
        e->pack = pack;
        e->offset = t->bytes;
        e->n_groups = (w->rows + QW_GROUP_ROWS - 1) / QW_GROUP_ROWS;
        e->group_bytes = qw_pack_group_bytes(pack, w->k);
    }
    size_t n_groups = (w->rows + QW_GROUP_ROWS - 1) / QW_GROUP_ROWS;
    t->n++;
    t->n_groups += n_groups;
    t->bytes += (uint64_t)n_groups * qw_pack_group_bytes(pack, w->k);
}

static qw_status make_table(qw_net *net, pack_table *t, qw_err *err)
{
    *t = (pack_table){0};
    qw_net_each_weight(net, add_entry, t);
    size_t n = t->n;
    *t = (pack_table){0};
    QW_TRY(qw_alloc(&t->entries, n, sizeof *t->entries, "weight table", err));
    qw_net_each_weight(net, add_entry, t);
    return QW_OK;
}

uint64_t qw_weights_packed_bytes(qw_net *net)
{
    pack_table t = {0};
    qw_net_each_weight(net, add_entry, &t);
    return t.bytes;
}

typedef struct fill_args {
    const pack_table *table;
    uint8_t *region;
} fill_args;

/* Items are the groups of all entries, one after the other. */
static void fill_groups(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const fill_args *a = ctx;
    size_t first = 0;
    for (size_t i = 0; i < a->table->n && (int64_t)first < end; first += a->table->entries[i++].n_groups) {
        const pack_entry *e = &a->table->entries[i];
        const qw_weight *w = e->weight;
        size_t g = begin > (int64_t)first ? (size_t)begin - first : 0;
        for (; g < e->n_groups && (int64_t)(first + g) < end; g++) {
            size_t row = g * QW_GROUP_ROWS, n_rows = w->rows - row < QW_GROUP_ROWS ? w->rows - row : QW_GROUP_ROWS;
            qw_pack_group(e->pack, w->data + row * w->row_bytes, w->row_bytes, n_rows, w->k,
                          a->region + e->offset + g * e->group_bytes);
        }
    }
}

void qw_pack_table_fill(const pack_table *t, uint8_t *region, qw_pool *pool)
{
    fill_args args = {.table = t, .region = region};
    qw_pool_run(pool, (int64_t)t->n_groups, 16, fill_groups, &args);
}

static void use_region(const pack_table *t, const uint8_t *region)
{
    for (size_t i = 0; i < t->n; i++) {
        t->entries[i].weight->pack = t->entries[i].pack;
        t->entries[i].weight->packed = region + t->entries[i].offset;
    }
}

/* Maps the side file, building it first where needed. */
static qw_status map_side_file(qw_weights *w, const pack_table *t, const qw_net *net, const char *cache_dir,
                               qw_pool *pool, const uint8_t **region, qw_err *err)
{
    char path[4096];
    qw_weights_cache_path(net->file, cache_dir, path, sizeof path);
    if (qw_pack_file_open(path, t, net->file, &w->map, region, NULL) == QW_OK) {
        qw_map_will_need(w->map, 0, qw_map_bytes(w->map));
        return QW_OK;
    }
    QW_TRY(qw_make_dirs(cache_dir, err));
    QW_TRY(qw_pack_file_write(path, t, net->file, pool, err));
    return qw_pack_file_open(path, t, net->file, &w->map, region, err);
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
    w->bytes = table.bytes;
    if (table.n > 0 && cache_dir && map_side_file(w, &table, net, cache_dir, pool, &region, &why) != QW_OK) {
        snprintf(w->note, sizeof w->note, "packed weights are kept in memory: %s", why.text);
    }
    if (table.n > 0 && !region) {
        QW_TRY_GOTO(qw_alloc_aligned(&w->memory, table.bytes, "packed weights", err));
        qw_pack_table_fill(&table, w->memory, pool);
        region = w->memory;
    }
    use_region(&table, region);
    free(table.entries);
    *out = w;
    return QW_OK;
fail:
    free(table.entries);
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
