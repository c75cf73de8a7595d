/* weights.h: packed weights of a network: made once, mapped ever after.
 *
 * All matrices are packed (kernels.h) into one region. With a cache folder the region
 * is a side file `<identity>.qwp`: written to a temporary name, synced, renamed; its header, identity, table
 * and size are checked on open, and it is rebuilt when anything disagrees. Never needed for correctness:
 * without a folder, or when it cannot be written, the region is memory. Two processes may build at once; the
 * last rename wins and both are whole. All side files together have a bound (base/side_files.h): before one is
 * written others make way, never one that is in use. The model file's pages are dropped as they are packed, so
 * that the two are not in memory together. Create and destroy from one thread; read by any.
 */
#ifndef QW_MODEL_WEIGHTS_H
#define QW_MODEL_WEIGHTS_H

#include "base/pool.h"
#include "model/net.h"

typedef struct qw_weights qw_weights;

/* Bytes of the packed region. */
uint64_t qw_weights_packed_bytes(qw_net *net);
/* Packs or maps, and sets `pack` and `packed` of every weight of net. cache_dir: folder of side files, or NULL
 * for memory alone. */
qw_status qw_weights_create(qw_net *net, const char *cache_dir, qw_pool *pool, qw_weights **out,
                            qw_err *err) QW_MUST_CHECK;
void qw_weights_destroy(qw_weights *w);
bool qw_weights_mapped(const qw_weights *w); /* true: in a side file */
/* A note for the user when a side file was wanted but could not be used ("" when all is well). */
const char *qw_weights_note(const qw_weights *w);
bool qw_weights_failed(const qw_weights *w); /* the mapped side file shrank under us */

/* Path of the side file of a model file in a cache folder. */
void qw_weights_cache_path(const qw_gguf *file, const char *cache_dir, char *out, size_t cap);
/* Compares every block's checksum of the side file; QW_OK when there is none. */
qw_status qw_weights_verify(const qw_gguf *file, const char *cache_dir, qw_err *err) QW_MUST_CHECK;

#endif
