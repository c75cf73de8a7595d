/* map_guard.h: the SIGBUS handler behind qw_map, and its registry of mappings. Internal to base. */
#ifndef QW_BASE_MAP_GUARD_H
#define QW_BASE_MAP_GUARD_H

#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

enum { QW_MAPS_MAX = 4096 }; /* mappings at a time */

/* Puts [begin, begin + bytes) under the guard. Any thread. */
qw_status qw_map_guard_add(const void *begin, size_t bytes, int *slot, qw_err *err) QW_MUST_CHECK;
/* Before the range is unmapped. */
void qw_map_guard_remove(int slot);
/* True once a fault hit the range. */
bool qw_map_guard_failed(int slot);

#endif
