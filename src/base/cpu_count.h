/* cpu_count.h: the part of qw_cpu_count() that reads files, apart so that tests can give it others. */
#ifndef QW_BASE_CPU_COUNT_H
#define QW_BASE_CPU_COUNT_H

/* The smallest CPU quota, in whole cores rounded up, of the control groups (v1 or v2) that the list
 * `proc_cgroup` ("/proc/self/cgroup") names below the mount point `root` ("/sys/fs/cgroup"), parents
 * included; 0 when there is none. */
int qw_cpu_quota(const char *proc_cgroup, const char *root);

#endif
