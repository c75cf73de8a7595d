/* profile_report.c: see profile_report.h. */
#include "tools/profile_report.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct sum {
    double calls, ns, bytes, macs;
} sum;

static int by_time(const void *a, const void *b)
{
    const qw_profile_row *x = *(const qw_profile_row *const *)a, *y = *(const qw_profile_row *const *)b;
    return x->ns > y->ns ? -1 : x->ns < y->ns;
}

/* Rows by time into sorted; returns their number. */
static size_t sort_rows(const qw_backend *profile, const qw_profile_row **sorted)
{
    const qw_profile_row *rows;
    size_t n = qw_profile_rows(profile, &rows);
    for (size_t i = 0; i < n; i++) sorted[i] = &rows[i];
    qsort(sorted, n, sizeof *sorted, by_time);
    return n;
}

static sum of_row(const qw_profile_row *r)
{
    return (sum){.calls = (double)r->n_calls, .ns = (double)r->ns, .bytes = (double)r->n_bytes,
                 .macs = (double)r->n_macs};
}

static sum add_up(const qw_profile_row *const *rows, size_t n)
{
    sum all = {0};
    for (size_t i = 0; i < n; i++) {
        sum s = of_row(rows[i]);
        all = (sum){all.calls + s.calls, all.ns + s.ns, all.bytes + s.bytes, all.macs + s.macs};
    }
    return all;
}

static void print_line(const char *op, const char *weights, sum s, const qw_profile_span *span)
{
    char name[80];
    snprintf(name, sizeof name, "%s%s%s", op, *weights ? " " : "", weights);
    printf("  %-30s %8.1f %11.1f %6.1f%%", name, s.calls / span->n_units, s.ns / 1e3 / span->n_units,
           100 * s.ns / 1e9 / span->seconds);
    if (s.bytes > 0) printf(" %10.3f", s.bytes / 1e6 / span->n_units);
    if (s.macs > 0) {
        printf(" %10.1f %8.1f %8.1f", s.macs / 1e6 / span->n_units, s.bytes / s.ns, s.macs / s.ns);
    } else if (s.bytes > 0) {
        printf(" %10s %8.1f", "-", s.bytes / s.ns);
    }
    printf("\n");
}

void qw_profile_print(const qw_profile_span *span, const char *unit)
{
    const qw_profile_row *rows[QW_PROFILE_ROWS_MAX];
    size_t n = sort_rows(span->profile, rows);
    sum all = add_up(rows, n);
    char title[64];
    snprintf(title, sizeof title, "one %s", unit);
    printf("  %-30s %8s %11s %7s %10s %10s %8s %8s\n", title, "calls", "us", "share", "MB read", "M MAC", "GB/s",
           "GMAC/s");
    for (size_t i = 0; i < n; i++) print_line(rows[i]->op, rows[i]->weights, of_row(rows[i]), span);
    print_line("outside of operations", "", (sum){.ns = span->seconds * 1e9 - all.ns}, span);
    all.ns = span->seconds * 1e9;
    print_line("all", "", all, span);
}

static void print_object(const char *op, const char *weights, sum s, const qw_profile_span *span)
{
    printf("{\"op\":\"%s\",\"weights\":\"%s\",\"calls\":%.2f,\"us\":%.3f,\"share\":%.5f,\"bytes\":%.0f,\"macs\":%.0f}",
           op, weights, s.calls / span->n_units, s.ns / 1e3 / span->n_units, s.ns / 1e9 / span->seconds,
           s.bytes / span->n_units, s.macs / span->n_units);
}

void qw_profile_print_json(const qw_profile_span *span)
{
    const qw_profile_row *rows[QW_PROFILE_ROWS_MAX];
    size_t n = sort_rows(span->profile, rows);
    printf("[");
    for (size_t i = 0; i < n; i++) {
        print_object(rows[i]->op, rows[i]->weights, of_row(rows[i]), span);
        printf(",");
    }
    print_object("outside", "", (sum){.ns = span->seconds * 1e9 - add_up(rows, n).ns}, span);
    printf("]");
}
