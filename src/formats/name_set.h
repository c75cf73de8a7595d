/* name_set.h: names to numbers, for names that come from untrusted files.
 *
 * Open addressing over a keyed hash (SipHash-1-3, key from the system's random source), so that no
 * file can be made in which looking for duplicates takes quadratic time. Borrows the names. Filled by
 * one thread, then read by any.
 */
#ifndef QW_FORMATS_NAME_SET_H
#define QW_FORMATS_NAME_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qw_types.h"

#include "base/status.h"

typedef struct name_set {
    uint64_t key[2];
    struct name_slot {
        qw_text name; /* s is NULL in a free slot */
        size_t value;
    } *slots;       /* [mask + 1], owns */
    size_t mask;    /* slots - 1, a power of two minus one */
    size_t n, n_max;
} name_set;

/* Room for n_max names. */
qw_status qw_name_set_init(name_set *set, size_t n_max, qw_err *err) QW_MUST_CHECK;
void qw_name_set_free(name_set *set);
/* False when the name is there already. At most n_max names. */
bool qw_name_set_add(name_set *set, qw_text name, size_t value);
/* The value of a name, SIZE_MAX when it is not there (or the set was never initialised). */
size_t qw_name_set_find(const name_set *set, qw_text name);

#endif
