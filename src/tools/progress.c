/* progress.c: see progress.h. */
#include "tools/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"

enum { DRAW_EVERY_US = 200000, LINE_EVERY_US = 5000000, LEFT_AFTER_US = 2000000 };

void qw_tool_progress_begin(qw_tool_progress *p, const char *what)
{
    int64_t now = qw_clock_us();
    *p = (qw_tool_progress){.what = what, .terminal = isatty(STDERR_FILENO) == 1, .start_us = now, .shown_us = now};
}

void qw_tool_progress_at(qw_tool_progress *p, uint64_t done, uint64_t total)
{
    int64_t now = qw_clock_us(), spent = now - p->start_us;
    char left[48] = "";
    if (total == 0 || now - p->shown_us < (p->terminal ? DRAW_EVERY_US : LINE_EVERY_US)) return;
    p->shown_us = now;
    if (spent >= LEFT_AFTER_US && done > 0) {
        int64_t left_s = (int64_t)((double)spent / 1e6 * (double)(total - done) / (double)done);
        snprintf(left, sizeof left, ", %lld:%02lld left", (long long)left_s / 60, (long long)left_s % 60);
    }
    fprintf(stderr, "%s%s: %3.0f%%%s%s", p->terminal ? "\r" : "qw: ", p->what, 100.0 * (double)done / (double)total,
            left, p->terminal ? "\033[K" : "\n");
    fflush(stderr);
    p->drawn = p->terminal;
}

void qw_tool_progress_end(qw_tool_progress *p)
{
    if (p->drawn) fputs("\r\033[K", stderr);
    p->drawn = false;
}
