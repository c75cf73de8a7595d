/* weights_private.h: what weights.c and weights_file.c share. */
#ifndef QW_MODEL_WEIGHTS_PRIVATE_H
#define QW_MODEL_WEIGHTS_PRIVATE_H

#include "base/file.h"
#include "model/weights.h"

typedef struct pack_entry {
    qw_weight *weight;
    qw_pack pack;
    uint64_t offset;      /* in the region, a multiple of 64 */
    size_t n_groups, group_bytes;
} pack_entry;

/* The packed region: entries in the order of qw_net_each_weight. */
typedef struct pack_table {
    pack_entry *entries; /* owns */
    size_t n;
    size_t n_groups;     /* of all entries */
    uint64_t bytes;
} pack_table;

/* Fills region (bytes long) from the weights, spread over the pool. */
void qw_pack_table_fill(const pack_table *t, uint8_t *region, qw_pool *pool);

/* Opens the side file for this table and model; QW_E_NOT_FOUND when there is none, QW_E_CORRUPT when it is not
 * what it should be. *region points into *map. */
qw_status qw_pack_file_open(const char *path, const pack_table *t, const qw_gguf *file, qw_map **map,
                         const uint8_t **region, qw_err *err) QW_MUST_CHECK;
/* Packs into a new side file and renames it into place. */
qw_status qw_pack_file_write(const char *path, const pack_table *t, const qw_gguf *file, qw_pool *pool,
                          qw_err *err) QW_MUST_CHECK;

#endif
