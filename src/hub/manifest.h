/* manifest.h: the part of the record of a model that only the store itself uses. See store.h. */
#ifndef QW_HUB_MANIFEST_H
#define QW_HUB_MANIFEST_H

#include "hub/store.h"

void qw_hub_manifest_file(const qw_hub_store *s, const char *name, char out[QW_HUB_PATH_MAX]);
void qw_hub_parts_path(const qw_hub_store *s, const char *name, char out[QW_HUB_PATH_MAX]);
qw_status qw_hub_manifest_write(const qw_hub_store *s, const qw_hub_manifest *m, qw_err *err) QW_MUST_CHECK;

#endif
