/* mem_left.h: how much more memory this process may use. Any thread. */
#ifndef QW_BASE_MEM_LEFT_H
#define QW_BASE_MEM_LEFT_H

#include <stdint.h>

/* What the machine has available and the control groups leave, in bytes; a huge number when nothing is known. */
uint64_t qw_mem_left(void);
/* What the memory limits of the control groups (v1 or v2) that the list `proc_cgroup` ("/proc/self/cgroup") names
 * below the mount point `root` ("/sys/fs/cgroup") leave, parents included; UINT64_MAX when there is no limit.
 * Apart so that tests can give it other files. */
uint64_t qw_mem_quota_left(const char *proc_cgroup, const char *root);

#endif
