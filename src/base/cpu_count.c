/* cpu_count.c: how many cores this process may use.
 *
 * Any thread. The affinity mask and the control groups' CPU quota both bind: a container with
 * "--cpus 2" on a machine of 64 cores sees 64 in its mask, and 64 threads on a quota of two are
 * stopped for most of each period. A quota of a parent group binds too, and inside a container the
 * path that /proc names may not exist below the mount: then its parents are tried up to the mount.
 */
#include "base/cpu_count.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"

/* First line of root + mid + group + file into out; 0 when it cannot be read. */
static int read_line(char *out, size_t cap, const char *root, const char *mid, const char *group,
                     const char *file)
{
    char path[PATH_MAX];
    int n = snprintf(path, sizeof path, "%s%s%s/%s", root, mid, group, file);
    if (n < 0 || (size_t)n >= sizeof path) return 0;
    FILE *f = fopen(path, "re");
    if (f == NULL) return 0;
    char *line = fgets(out, (int)cap, f);
    fclose(f);
    return line != NULL;
}

/* quota / period in whole cores, rounded up; 0: no limit. */
static int cores(long long quota, long long period)
{
    if (quota <= 0 || period <= 0) return 0;
    long long n = quota / period + (quota % period != 0);
    return n > INT_MAX ? INT_MAX : (int)n;
}

static int quota_v2(const char *root, const char *mid, const char *group)
{
    char line[128];
    long long quota, period;
    if (!read_line(line, sizeof line, root, mid, group, "cpu.max")) return 0;
    return sscanf(line, "%lld %lld", &quota, &period) == 2 ? cores(quota, period) : 0; /* "max 100000" */
}

static int quota_v1(const char *root, const char *mid, const char *group)
{
    char quota[64], period[64];
    if (!read_line(quota, sizeof quota, root, mid, group, "cpu.cfs_quota_us")) return 0;
    if (!read_line(period, sizeof period, root, mid, group, "cpu.cfs_period_us")) return 0;
    return cores(strtoll(quota, NULL, 10), strtoll(period, NULL, 10));
}

static int smaller(int a, int b)
{
    if (a == 0 || b == 0) return a + b;
    return a < b ? a : b;
}

/* The smallest quota of `group` and its parents below each place the hierarchy is mounted at. */
static int quota_of(const char *root, char *group, int v2)
{
    static const char *const mounts[2][3] = {{"/cpu", "/cpu,cpuacct", "/cpuacct,cpu"},
                                             {"", "/unified", NULL}};
    int best = 0;
    for (;;) {
        for (int i = 0; i < 3 && mounts[v2][i] != NULL; i++)
            best = smaller(best, v2 ? quota_v2(root, mounts[v2][i], group)
                                    : quota_v1(root, mounts[v2][i], group));
        char *slash = strrchr(group, '/');
        if (slash == NULL) return best;
        *slash = '\0';
    }
}

/* True when the comma-separated list has the word "cpu". */
static int lists_cpu(char *list)
{
    char *rest = NULL;
    for (char *word = strtok_r(list, ",", &rest); word != NULL; word = strtok_r(NULL, ",", &rest))
        if (strcmp(word, "cpu") == 0) return 1;
    return 0;
}

int qw_cpu_quota(const char *proc_cgroup, const char *root)
{
    FILE *f = fopen(proc_cgroup, "re");
    if (f == NULL) return 0;
    char line[PATH_MAX];
    int best = 0;
    while (fgets(line, sizeof line, f) != NULL) { /* "ID:CONTROLLERS:/GROUP"; v2 is "0::/GROUP" */
        line[strcspn(line, "\n")] = '\0';
        char *list = strchr(line, ':');
        char *group = list != NULL ? strchr(list + 1, ':') : NULL;
        if (group == NULL) continue;
        *list++ = '\0';
        *group++ = '\0';
        int v2 = strcmp(line, "0") == 0 && *list == '\0';
        if (strcmp(group, "/") == 0) *group = '\0';
        if (v2 || lists_cpu(list)) best = smaller(best, quota_of(root, group, v2));
    }
    fclose(f);
    return best;
}

/* Cores in the affinity mask; the mask of a large machine needs more room than cpu_set_t has. */
static int affinity_count(void)
{
    for (int cpus = CPU_SETSIZE; cpus <= 1 << 20; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        if (set == NULL) break;
        size_t bytes = CPU_ALLOC_SIZE((size_t)cpus);
        int rc = sched_getaffinity(0, bytes, set), why = errno;
        int n = rc == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (rc == 0) return n;
        if (why != EINVAL) break;
    }
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

int qw_cpu_count(void)
{
    int n = smaller(affinity_count(), qw_cpu_quota("/proc/self/cgroup", "/sys/fs/cgroup"));
    return n > 0 ? n : 1;
}
