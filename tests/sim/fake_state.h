/* fake_state.h: a store of computed pasts in memory, with delays, failures, damage and losses from a seed.
 *
 * Stands behind qw_state_store as the disk does (engine/state_io.h), on a fake clock: an operation takes effect when its time
 * has come. Until then what a load fills holds garbage, and what a save reads must stay as it was: a change of it ends the
 * program. Pieces outlive the operations: dropping those that are under way is a crash, and the store is opened again.
 */
#ifndef QW_TESTS_FAKE_STATE_H
#define QW_TESTS_FAKE_STATE_H

#include "engine/state_io.h"

typedef struct fake_state_options {
    uint64_t seed;
    size_t page_bytes, recurrent_bytes;
    int64_t delay_us_max;     /* of an operation; 0: done at once */
    uint32_t n_pieces_max;    /* then the one that was used longest ago goes; 0: no limit */
    /* of 1000: */
    uint32_t refuse_permille; /* submits that find no room */
    uint32_t fail_permille;   /* saves that fail */
    uint32_t lose_permille;   /* operations before which some piece goes away */
    uint32_t damage_permille; /* operations before which a bit of some piece changes */
} fake_state_options;

typedef struct fake_state fake_state;

fake_state *fake_state_create(const fake_state_options *o);
void fake_state_destroy(fake_state *f);
qw_state_store fake_state_store(fake_state *f);

/* What is due by then is done. The clock never goes back. */
void fake_state_set_now(fake_state *f, int64_t now_us);
/* When the next operation is due; INT64_MAX: none is under way. */
int64_t fake_state_next_us(const fake_state *f);
/* A crash: operations under way, and those that were not polled, never happened. */
void fake_state_drop_ops(fake_state *f);
/* All pieces go: an empty disk. */
void fake_state_lose_all(fake_state *f);

typedef struct fake_state_counts {
    uint64_t finds, saves, loads, touches; /* done */
    uint64_t refused, failed, lost;
    uint64_t damaged, damage_found; /* bits changed; loads that noticed */
    uint32_t n_pieces;
} fake_state_counts;
void fake_state_get_counts(const fake_state *f, fake_state_counts *out);

#endif
