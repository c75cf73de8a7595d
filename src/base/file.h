/* file.h: mapped files, atomic writes, paths.
 *
 * A qw_map is a read-only private mapping of a whole regular file, opened once and never re-opened by
 * name. If the file shrinks or its disk fails while mapped, the fault does not end the process: the
 * page reads as zeros and qw_map_failed() becomes true, so that the owner can end that model with an
 * error. The SIGBUS handler is installed with the first map and passes on faults that are not ours.
 * Any thread may read a map; open and close from one thread.
 */
#ifndef QW_BASE_FILE_H
#define QW_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct qw_map qw_map;

/* Maps the file. Errors name the path: not found, not a regular file, empty, larger than the address
 * space. A failure to map is QW_E_IO. */
qw_status qw_map_open(const char *path, qw_map **out, qw_err *err) QW_MUST_CHECK;
void qw_map_close(qw_map *map);
const uint8_t *qw_map_data(const qw_map *map);
size_t qw_map_bytes(const qw_map *map);
/* True once a fault hit the map, or when the file is now smaller than what was mapped. */
bool qw_map_failed(const qw_map *map);
/* Device, inode, size and modification time, as one stable text "dev-ino-size-mtime_ns". */
void qw_map_identity(const qw_map *map, char out[96]);
/* Holds a shared lock (flock) on the mapped file until the map is closed, so that other processes see that it is in use;
 * waits for one that holds it alone. Where the file system has no locks there is none: no error. */
void qw_map_hold(const qw_map *map);
/* Tells the kernel the range will be read soon. A hint: no error. */
void qw_map_will_need(const qw_map *map, size_t offset, size_t bytes);

/* Tells the kernel that the pages of a range of memory, as far as it lies in the map, are not needed for now. A hint: no
 * error. Memory outside the map is never touched: dropping it would lose what is in it. */
void qw_map_drop(const qw_map *map, const void *begin, size_t bytes);

/* Writes a whole file: temporary name beside it, fsync, rename, fsync of the folder. */
qw_status qw_file_write(const char *path, const void *data, size_t n, qw_err *err) QW_MUST_CHECK;
/* Reads a whole file of at most bytes_max into *data (owned by the caller, NUL after the end). path
 * "-" reads standard input. */
qw_status qw_file_read(const char *path, size_t bytes_max, char **data, size_t *n,
                       qw_err *err) QW_MUST_CHECK;
/* mkdir -p, mode 0700 for the folders it makes. */
qw_status qw_make_dirs(const char *path, qw_err *err) QW_MUST_CHECK;
/* fsync of a folder, so that a rename in it survives a power loss. */
qw_status qw_sync_dir(const char *path, qw_err *err) QW_MUST_CHECK;
/* $QW_HOME, else $XDG_DATA_HOME/qw, else $HOME/.local/share/qw; not created. */
qw_status qw_home_dir(char *out, size_t cap, qw_err *err) QW_MUST_CHECK;
/* $XDG_CACHE_HOME/qw, else $HOME/.cache/qw, or $QW_HOME/cache when QW_HOME is set; not created. */
qw_status qw_cache_dir(char *out, size_t cap, qw_err *err) QW_MUST_CHECK;
/* Where side files of packed weights lie: <cache>/packed, as <identity of the model file>.qwp; not created. */
qw_status qw_packed_dir(char *out, size_t cap, qw_err *err) QW_MUST_CHECK;

#endif
