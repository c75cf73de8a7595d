/* windows.h: which tokens of a text count when it is read in windows.
 *
 * Each window is read on its own from position 0, and its second half counts, so that every scored token has at least half a
 * window before it. Pure functions, any thread.
 */
#ifndef QW_TOOLS_WINDOWS_H
#define QW_TOOLS_WINDOWS_H

#include <stddef.h>

/* Of a pass whose row 0 is token `first` of the window: rows [*begin, *end) predict tokens that count. Row r predicts token
 * first + r + 1, so the window's last row predicts nothing. */
static inline void qw_window_rows(size_t window, size_t first, size_t n_rows, size_t *begin, size_t *end)
{
    *begin = window / 2 > first + 1 ? window / 2 - first - 1 : 0;
    *end = first + n_rows < window ? n_rows : n_rows - 1;
}

#endif
