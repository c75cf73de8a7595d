/* hub_view.c: progress of downloads and checksums for people. Contract in hub_view.h. */
#include "cli/hub_view.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/cli.h"
#include "hub/work.h"

enum {
    LINE_EVERY_US = 5000000,
    BAR_EVERY_US = 100000,
    SAMPLE_EVERY_US = 250000,
    COLUMNS_DEFAULT = 80,
    BAR_MAX = 40,
    RIGHT_COLUMNS = 46
};

void hub_view_init(hub_view *v, bool quiet)
{
    memset(v, 0, sizeof(*v));
    v->terminal = isatty(STDERR_FILENO) == 1;
    v->quiet = quiet;
    v->drawn_us = qw_clock_us();
}

void hub_view_end(hub_view *v)
{
    if (v->drawn) fputc('\n', stderr);
    v->drawn = false;
}

static void on_line(void *user, const char *text)
{
    hub_view *v = user;
    if (v->drawn) fputs("\r\033[K", stderr);
    v->drawn = false;
    fputs("qw: ", stderr);
    qw_cli_put_visible(stderr, qw_text_of(text));
    fputc('\n', stderr);
}

/* Bytes a second over what the ring holds; 0 while nothing can be said. */
static double rate(hub_view *v, const qw_hub_progress *p)
{
    int64_t now = qw_clock_us();
    if (v->stage != p->stage || v->part != p->part) {
        v->n_samples = 0;
        v->stage = p->stage;
        v->part = p->part;
    }
    size_t last = (v->n_samples + HUB_VIEW_SAMPLES - 1) % HUB_VIEW_SAMPLES;
    if (v->n_samples > 0 && p->done_bytes < v->samples[last].bytes) v->n_samples = 0; /* it began anew */
    if (v->n_samples == 0 || now - v->samples[last].us >= SAMPLE_EVERY_US) {
        size_t at = v->n_samples++ % HUB_VIEW_SAMPLES;
        v->samples[at].us = now;
        v->samples[at].bytes = v->n_samples == 1 && p->resumed_bytes ? p->resumed_bytes : p->done_bytes;
    }
    size_t first = v->n_samples > HUB_VIEW_SAMPLES ? v->n_samples % HUB_VIEW_SAMPLES : 0;
    int64_t us = now - v->samples[first].us;
    if (us < SAMPLE_EVERY_US || p->done_bytes <= v->samples[first].bytes) return 0;
    return (double)(p->done_bytes - v->samples[first].bytes) * 1e6 / (double)us;
}

static const char *stage_text(qw_hub_stage stage)
{
    switch (stage) {
    case QW_HUB_CHECKSUM: return "checking";
    case QW_HUB_COPY: return "copying";
    case QW_HUB_WAIT: return "waiting";
    default: return "";
    }
}

/* "35.2 MB/s  0:07 left" */
static void speed_text(double bytes_per_s, const qw_hub_progress *p, char out[64])
{
    char size[32];
    out[0] = 0;
    if (bytes_per_s <= 0) return;
    qw_hub_size_text((uint64_t)bytes_per_s, size);
    int n = snprintf(out, 64, "  %s/s", size);
    if (p->total_bytes <= p->done_bytes) return;
    double left_s = (double)(p->total_bytes - p->done_bytes) / bytes_per_s;
    if (left_s >= 360000) return;
    unsigned s = (unsigned)(left_s + 0.5);
    if (s >= 3600) snprintf(out + n, 64 - (size_t)n, "  %u:%02u:%02u left", s / 3600, s / 60 % 60, s % 60);
    else snprintf(out + n, 64 - (size_t)n, "  %u:%02u left", s / 60, s % 60);
}

/* What stands left and right of the bar. */
static void describe(hub_view *v, const qw_hub_progress *p, char left[256], char right[160])
{
    char done[32], total[32] = "", part[64] = "", speed[64];
    const char *stage = stage_text(p->stage);
    speed_text(rate(v, p), p, speed);
    qw_hub_size_text(p->done_bytes, done);
    if (p->total_bytes) qw_hub_size_text(p->total_bytes, total);
    if (p->n_parts > 1) snprintf(part, sizeof(part), " part %zu of %zu", p->part, p->n_parts);
    snprintf(left, 256, "%.100s%s%s%s", p->model, part, stage[0] ? " " : "", stage);
    if (p->total_bytes)
        snprintf(right, 160, "%3u%%  %s of %s%s",
                 (unsigned)((double)p->done_bytes * 100 / (double)p->total_bytes), done, total, speed);
    else snprintf(right, 160, "%s%s", done, speed);
}

static size_t columns(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col >= 20) return size.ws_col;
    return COLUMNS_DEFAULT;
}

static void draw_bar(hub_view *v, const qw_hub_progress *p)
{
    char left[256], right[160], bar[BAR_MAX + 1], line[512];
    describe(v, p, left, right);
    /* What the bar leaves to the numbers is fixed: it must not jump while they change. */
    size_t width = columns() - 1, used = strlen(left) + RIGHT_COLUMNS + 6;
    size_t n = used + 4 < width ? width - used : 0;
    if (n > BAR_MAX) n = BAR_MAX;
    if (p->total_bytes == 0) n = 0;
    size_t full = n ? (size_t)((double)n * (double)p->done_bytes / (double)p->total_bytes) : 0;
    for (size_t i = 0; i < n; i++) bar[i] = i < full ? '=' : i == full ? '>' : ' ';
    bar[n] = 0;
    if (n > 0) snprintf(line, sizeof(line), "%s  [%s]  %s", left, bar, right);
    else snprintf(line, sizeof(line), "%s  %s", left, right);
    if (width < sizeof(line)) line[width] = 0;
    fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
    v->drawn = true;
}

static bool on_progress(void *user, const qw_hub_progress *p)
{
    hub_view *v = user;
    int64_t now = qw_clock_us();
    bool finished = p->total_bytes > 0 && p->done_bytes == p->total_bytes;
    if (!v->quiet && p->stage != QW_HUB_WAIT) {
        if (v->terminal && (finished || now - v->drawn_us >= BAR_EVERY_US)) {
            draw_bar(v, p);
            v->drawn_us = now;
        } else if (!v->terminal && now - v->drawn_us >= LINE_EVERY_US) {
            char left[256], right[160];
            describe(v, p, left, right);
            fprintf(stderr, "qw: %s %s\n", left, right[0] == ' ' ? right + strspn(right, " ") : right);
            v->drawn_us = now;
        } else {
            rate(v, p);
        }
    }
    return !qw_cli_interrupted;
}

qw_hub_watch hub_view_watch(hub_view *v)
{
    return (qw_hub_watch){.user = v, .line = on_line, .progress = on_progress};
}
