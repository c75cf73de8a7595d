/* mem_left.c: how much more memory this process may use.
 *
 * Any thread. A group's limit binds its children too, and inside a container the path that /proc names may not exist
 * below the mount: then its parents are tried up to the mount. Pages of the file cache count as used by a group
 * although the kernel takes them back when memory is wanted; a model that was just downloaded fills a group with them.
 */
#include "base/mem_left.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The number after `key` at the start of a line of a file; 0 when absent. */
static uint64_t keyed_number(const char *path, const char *key)
{
    char line[256];
    unsigned long long v = 0;
    size_t n = strlen(key);
    FILE *f = fopen(path, "re");
    if (f == NULL) return 0;
    while (v == 0 && fgets(line, sizeof line, f) != NULL) {
        if (strncmp(line, key, n) == 0 && strchr(": ", line[n]) != NULL) v = strtoull(line + n + 1, NULL, 10);
    }
    fclose(f);
    return v;
}

/* The number a file holds; 0 when it cannot be read or holds a word ("max"). */
static uint64_t whole_number(const char *path)
{
    char line[64];
    FILE *f = fopen(path, "re");
    if (f == NULL) return 0;
    uint64_t v = fgets(line, sizeof line, f) != NULL ? strtoull(line, NULL, 10) : 0;
    fclose(f);
    return v;
}

/* Names of the same things in the two versions of the interface. */
static const struct {
    const char *mounts[2], *limit, *used, *files[2];
} versions[2] = {
    {{"/memory", NULL}, "memory.limit_in_bytes", "memory.usage_in_bytes", {"total_inactive_file", "total_active_file"}},
    {{"", "/unified"}, "memory.max", "memory.current", {"inactive_file", "active_file"}},
};

enum { FILE_NAME_MAX = 32 }; /* of those above */

static const char *join(char out[PATH_MAX + FILE_NAME_MAX], const char *folder, const char *name)
{
    snprintf(out, PATH_MAX + FILE_NAME_MAX, "%s/%s", folder, name);
    return out;
}

static uint64_t group_left(const char *folder, int v2)
{
    char path[PATH_MAX + FILE_NAME_MAX];
    uint64_t limit = whole_number(join(path, folder, versions[v2].limit));
    if (limit == 0 || limit >= (uint64_t)1 << 60) return UINT64_MAX;
    uint64_t used = whole_number(join(path, folder, versions[v2].used)), files = 0;
    join(path, folder, "memory.stat");
    for (int i = 0; i < 2; i++) files += keyed_number(path, versions[v2].files[i]);
    used = used > files ? used - files : 0;
    return limit > used ? limit - used : 0;
}

/* The least that `group` and its parents leave. */
static uint64_t groups_left(const char *root, char *group, int v2)
{
    uint64_t least = UINT64_MAX;
    for (;;) {
        for (int i = 0; i < 2 && versions[v2].mounts[i] != NULL; i++) {
            char folder[PATH_MAX];
            if (snprintf(folder, sizeof folder, "%s%s%s", root, versions[v2].mounts[i], group) >= PATH_MAX) continue;
            uint64_t left = group_left(folder, v2);
            if (left < least) least = left;
        }
        char *slash = strrchr(group, '/');
        if (slash == NULL) return least;
        *slash = '\0';
    }
}

uint64_t qw_mem_quota_left(const char *proc_cgroup, const char *root)
{
    char line[PATH_MAX];
    uint64_t least = UINT64_MAX;
    FILE *f = fopen(proc_cgroup, "re");
    if (f == NULL) return least;
    while (fgets(line, sizeof line, f) != NULL) { /* "ID:CONTROLLERS:/GROUP"; v2 is "0::/GROUP" */
        line[strcspn(line, "\n")] = '\0';
        char *list = strchr(line, ':'), *group = list != NULL ? strchr(list + 1, ':') : NULL;
        if (group == NULL) continue;
        *group++ = '\0';
        int v2 = strcmp(line, "0:") == 0;
        if (!v2 && strcmp(list + 1, "memory") != 0) continue;
        if (strcmp(group, "/") == 0) *group = '\0';
        uint64_t left = groups_left(root, group, v2);
        if (left < least) least = left;
    }
    fclose(f);
    return least;
}

uint64_t qw_mem_left(void)
{
    uint64_t machine = keyed_number("/proc/meminfo", "MemAvailable") << 10; /* the file says kB */
    uint64_t groups = qw_mem_quota_left("/proc/self/cgroup", "/sys/fs/cgroup");
    if (machine == 0) machine = UINT64_MAX >> 1;
    return machine < groups ? machine : groups;
}
