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

/* The packed region: entries in the order of qw_net_each_weight, then qw_net_each_mtp_weight. */
typedef struct pack_table {
    pack_entry *entries; /* owns */
    size_t n;
    size_t n_groups;     /* of all entries */
    size_t group_bytes_max;
    uint64_t bytes;
    const qw_gguf *file;  /* borrows */
    size_t source_bytes;  /* the most that reading a group's rows through a source takes; 0: all lie in the file */
    uint8_t *scratch;     /* [threads][source_bytes], owns */
    size_t scratch_bytes;
} pack_table;

/* Packing goes by pieces of the region, so that it never holds more of the model file in memory than one of them. */
enum { QW_PACK_PIECE_BYTES = 16 << 20 };

/* Packs the groups that begin in [from, to) of the region, spread over the pool, and drops the pages of the model
 * file they came from. out is the region from `from` on; the last group may end up to group_bytes_max - 1 bytes
 * behind `to`. */
void qw_pack_table_fill(const pack_table *t, uint64_t from, uint64_t to, uint8_t *out, qw_pool *pool);

/* Opens the side file for this table and model; QW_E_NOT_FOUND when there is none, QW_E_CORRUPT when it is not
 * what it should be. *region points into *map, which keeps the file in use. */
qw_status qw_pack_file_open(const char *path, const pack_table *t, const qw_gguf *file, qw_map **map,
                            const uint8_t **region, qw_err *err) QW_MUST_CHECK;
/* Makes the folder and room in it, packs into a new side file, renames it into place and opens it. *map and *region
 * are NULL when QW_CACHE_MAX wants no side files. */
qw_status qw_pack_file_make(const char *path, const pack_table *t, const qw_gguf *file, qw_pool *pool, qw_map **map,
                            const uint8_t **region, qw_err *err) QW_MUST_CHECK;

#endif
