/* draft_cost.c: see draft_cost.h. */
#include "engine/draft_cost.h"

#include "base/status.h"

enum { SEEN_MAX = 64, FORGET_EVERY = 512 };

static const double per_row = 0.02;    /* of a pass, while it is not known */
static const double one_weighs = 0.2;  /* a measurement, for its own number of rows */
static const double all_weigh = 0.1;   /* and for the others */
static const double ratio_max = 2;     /* one slow pass is an accident */

static double grown(double us, uint32_t from, uint32_t to)
{
    return us * (1 + per_row * to) / (1 + per_row * from);
}

double qw_draft_cost_us(const qw_draft_cost *c, uint32_t n_rows)
{
    uint32_t below = n_rows < QW_COST_ROWS_MAX ? n_rows : QW_COST_ROWS_MAX, above = below;
    while (below > 0 && c->n_seen[below] == 0) below--;
    while (above <= QW_COST_ROWS_MAX && c->n_seen[above] == 0) above++;
    if (below == 0 && above > QW_COST_ROWS_MAX) return grown(c->us_guess, 1, n_rows);
    if (below == 0) return grown(c->us[above], above, n_rows);
    if (above > QW_COST_ROWS_MAX || above <= below) return grown(c->us[below], below, n_rows);
    return c->us[below] + (c->us[above] - c->us[below]) * (n_rows - below) / (above - below);
}

static void forget(qw_draft_cost *c)
{
    if (++c->n_notes % FORGET_EVERY != 0) return;
    for (uint32_t i = 0; i <= QW_COST_ROWS_MAX; i++) c->n_seen[i] /= 2;
}

void qw_draft_cost_note(qw_draft_cost *c, uint32_t n_rows, double us)
{
    if (n_rows == 0 || n_rows > QW_COST_ROWS_MAX || !(us > 0)) return;
    forget(c);
    if (c->n_seen[n_rows] == 0) {
        c->us[n_rows] = us;
    } else {
        double ratio = us / c->us[n_rows];
        if (ratio > ratio_max) ratio = ratio_max;
        for (uint32_t i = 1; i <= QW_COST_ROWS_MAX; i++) c->us[i] *= 1 + (i == n_rows ? one_weighs : all_weigh) * (ratio - 1);
    }
    if (c->n_seen[n_rows] < SEEN_MAX) c->n_seen[n_rows]++;
}
