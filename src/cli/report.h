/* report.h: numbers and names of a finished answer, as `run --json` and the chat's /stats and /save show them. */
#ifndef QW_CLI_REPORT_H
#define QW_CLI_REPORT_H

#include <jansson.h>

#include "qw.h"

/* Tokens a second; 0 when nothing was computed. Decode counts the tokens after the first, as its time does. */
double qw_report_prefill_rate(const qw_usage *usage, const qw_timings *timings);
double qw_report_decode_rate(const qw_usage *usage, const qw_timings *timings);
const char *qw_report_finish(qw_finish finish); /* "stop", "length", ... */

/* New references; NULL when memory is out. */
json_t *qw_report_text(qw_text text); /* bytes that are no UTF-8 become U+FFFD */
json_t *qw_report_usage(const qw_usage *usage);
json_t *qw_report_timings(const qw_usage *usage, const qw_timings *timings);

#endif
