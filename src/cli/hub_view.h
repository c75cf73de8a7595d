/* hub_view.h: shows what the hub does on standard error: a bar on a terminal, a plain line now and then
 * elsewhere.
 *
 * Main thread. Ctrl-C (caught with qw_cli_catch_interrupt) makes the hub stop at the next tick.
 */
#ifndef QW_CLI_HUB_VIEW_H
#define QW_CLI_HUB_VIEW_H

#include "hub/hub.h"

enum { HUB_VIEW_SAMPLES = 32 };

typedef struct hub_view {
    bool terminal;
    bool quiet;         /* news only, no progress */
    bool drawn;         /* a bar stands on the current line of the terminal */
    int64_t drawn_us;   /* when the last bar or line was written */
    qw_hub_stage stage; /* what the samples are of */
    size_t part;
    struct {
        int64_t us;
        uint64_t bytes;
    } samples[HUB_VIEW_SAMPLES]; /* ring: for the rate of the last seconds */
    size_t n_samples;            /* ever taken */
} hub_view;

void hub_view_init(hub_view *v, bool quiet);
qw_hub_watch hub_view_watch(hub_view *v);
/* Ends the bar's line, so that what follows starts on its own. */
void hub_view_end(hub_view *v);

#endif
