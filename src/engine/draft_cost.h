/* draft_cost.h: what a pass of so many rows costs, as measured lately.
 *
 * Each number of rows has its own estimate, because cost goes in steps. Where none was measured it is guessed from the
 * nearest that was: low, so that it is tried. What slows one pass (a longer context, others on the machine) slows all, so
 * each measurement moves the others a little; and what was not measured for long is forgotten. Engine thread only.
 */
#ifndef QW_ENGINE_DRAFT_COST_H
#define QW_ENGINE_DRAFT_COST_H

#include <stdint.h>

enum { QW_COST_ROWS_MAX = 64 };

typedef struct qw_draft_cost {
    double us[QW_COST_ROWS_MAX + 1];      /* by rows */
    uint8_t n_seen[QW_COST_ROWS_MAX + 1]; /* measurements, older ones count less; 0: not known */
    double us_guess;                      /* of one row, while nothing was measured */
    uint32_t n_notes;
} qw_draft_cost;

void qw_draft_cost_note(qw_draft_cost *c, uint32_t n_rows, double us);
double qw_draft_cost_us(const qw_draft_cost *c, uint32_t n_rows); /* n_rows >= 1 */

#endif
