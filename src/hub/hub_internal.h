/* hub_internal.h: what hub.c and pull.c share. See hub.h. */
#ifndef QW_HUB_INTERNAL_H
#define QW_HUB_INTERNAL_H

#include "hub/catalog.h"
#include "hub/hub.h"
#include "hub/store.h"

struct qw_hub {
    qw_hub_catalog *catalog; /* owns */
    qw_hub_store store;
};

/* "no model is called X", with the names that are near. Returns QW_E_NOT_FOUND. */
qw_status qw_hub_unknown(const qw_hub *hub, const char *name, qw_err *err);
/* Quantisation and architecture as the file's own metadata names them; empty texts when it does not. */
void qw_hub_describe(const char *path, char quantization[32], char architecture[32]);

#endif
