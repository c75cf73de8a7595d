/* profile_report.h: where the time of passes went, as a table or as JSON, for `qw bench --profile`.
 *
 * Main thread; writes to standard output.
 */
#ifndef QW_TOOLS_PROFILE_REPORT_H
#define QW_TOOLS_PROFILE_REPORT_H

#include "backend/profile.h"

/* What was measured: so many units (steps or prompts) that took so long in all. */
typedef struct qw_profile_span {
    const qw_backend *profile;
    double n_units;
    double seconds;
} qw_profile_span;

/* One line an operation, most time first, then the time outside of operations and the sum. All numbers but the rates
 * are for one unit. */
void qw_profile_print(const qw_profile_span *span, const char *unit);
/* The same as an array of objects; the time outside has "op":"outside". */
void qw_profile_print_json(const qw_profile_span *span);

#endif
