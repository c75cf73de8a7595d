/* packed.h: what hub.c and store.c ask about the side files of packed weights; the rest is in hub.h. */
#ifndef QW_HUB_PACKED_H
#define QW_HUB_PACKED_H

#include "hub/hub.h"

/* What the side file of a model is named after, which only the file itself can tell; "" when it cannot be read: then
 * it has none that could be used. */
void qw_hub_packed_identity(const char *model_path, char identity[65]);
/* Size of the side file of that name, 0 when there is none; path is "" without a cache folder. */
uint64_t qw_hub_packed_bytes(const char *identity, char path[QW_HUB_PATH_MAX]);
/* Removes the side files of a model that is gone, also one that a process still has mapped, because nobody could open
 * it again. Returns the bytes freed. Losing a side file costs time only and keeping one only room, so nothing here
 * is an error. */
uint64_t qw_hub_packed_remove(const char *identity);

#endif
