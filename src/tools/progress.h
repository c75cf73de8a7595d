/* progress.h: how far a long job of a tool is, on standard error: one line that is drawn anew on a terminal, elsewhere a
 * line every few seconds. Main thread.
 */
#ifndef QW_TOOLS_PROGRESS_H
#define QW_TOOLS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct qw_tool_progress {
    const char *what; /* "quantising"; borrows */
    bool terminal, drawn;
    int64_t start_us, shown_us;
} qw_tool_progress;

void qw_tool_progress_begin(qw_tool_progress *p, const char *what);
/* Cheap to call often. */
void qw_tool_progress_at(qw_tool_progress *p, uint64_t done, uint64_t total);
/* Leaves the line of a terminal. */
void qw_tool_progress_end(qw_tool_progress *p);

#endif
