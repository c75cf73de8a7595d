/* spawn.c: runs another program for the hub and watches it.
 *
 * Owner: the pulling thread. Contract: see pip.h. No shell, a process group of its own (so that Ctrl-C
 * reaches us, and we end it in order), default signals, empty standard input, bounded output.
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "hub/pip.h"

enum { POLL_MS = 100, END_US = 3000000, SIZE_EVERY_US = 250000 };

extern char **environ;

/* The environment with TMPDIR set: a package may be larger than the machine's /tmp, and what a killed run
 * leaves is found and removed. */
static qw_status environment(const char *tmp_dir, char ***out, char **tmp_entry, qw_err *err)
{
    size_t n = 0, k = 0;
    while (environ[n]) n++;
    *tmp_entry = NULL;
    QW_TRY(qw_alloc(out, n + 2, sizeof(**out), "an environment", err));
    if (asprintf(tmp_entry, "TMPDIR=%s", tmp_dir) < 0) {
        free(*out);
        return qw_fail(err, QW_E_MEMORY, "out of memory: an environment");
    }
    for (size_t i = 0; i < n; i++)
        if (strncmp(environ[i], "TMPDIR=", 7) != 0) (*out)[k++] = environ[i];
    (*out)[k] = *tmp_entry;
    return QW_OK;
}

static qw_status start(const char *const *argv, const char *tmp_dir, int out_fd, pid_t *pid, qw_err *err)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none, standard;
    char **env = NULL, *tmp_entry = NULL, **args = NULL;
    size_t n = 0;
    while (argv[n]) n++;
    QW_TRY(environment(tmp_dir, &env, &tmp_entry, err));
    qw_status status = qw_alloc(&args, n + 1, sizeof(*args), "a command line", err);
    if (status != QW_OK) goto fail;
    for (size_t i = 0; i < n; i++)
        memcpy(&args[i], &argv[i], sizeof(args[i])); /* posix_spawn takes no const */
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&files, out_fd, 1);
    posix_spawn_file_actions_adddup2(&files, out_fd, 2);
    sigemptyset(&none);
    sigemptyset(&standard);
    for (int s = SIGHUP; s <= SIGTERM; s++) sigaddset(&standard, s);
    posix_spawnattr_setsigmask(&attr, &none);
    posix_spawnattr_setsigdefault(&attr, &standard);
    posix_spawnattr_setpgroup(&attr, 0);
    posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    int rc = posix_spawnp(pid, args[0], &files, &attr, args, env);
    posix_spawnattr_destroy(&attr);
    posix_spawn_file_actions_destroy(&files);
    errno = rc;
    if (rc == ENOENT || rc == EACCES)
        status = qw_fail(err, QW_E_NOT_FOUND, "there is no program %s", argv[0]);
    else if (rc != 0) status = qw_fail_errno(err, "%s cannot be started", argv[0]);
fail:
    free(args);
    free(tmp_entry);
    free(env);
    return status;
}

static _Thread_local uint64_t tree_bytes;

static int add_size(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)path;
    (void)ftw;
    if (type == FTW_F && st->st_size > 0) tree_bytes += (uint64_t)st->st_size;
    return 0;
}

/* Keeps the last bytes of the output. */
static void keep_tail(char tail[2048], const char *data, size_t n)
{
    size_t have = strlen(tail), cap = 2047;
    if (n > cap) data += n - cap, n = cap;
    if (have + n > cap) {
        size_t drop = have + n - cap;
        memmove(tail, tail + drop, have - drop);
        have -= drop;
    }
    for (size_t i = 0; i < n; i++) tail[have + i] = data[i] ? data[i] : ' ';
    tail[have + n] = 0;
}

/* Ends the group: politely, then not. */
static void end(pid_t pid)
{
    int64_t until = qw_clock_us() + END_US;
    kill(-pid, SIGTERM);
    while (waitpid(pid, NULL, WNOHANG) == 0) {
        if (qw_clock_us() > until) {
            kill(-pid, SIGKILL);
            waitpid(pid, NULL, 0);
            return;
        }
        poll(NULL, 0, POLL_MS);
    }
}

typedef struct view { /* what the meter shows meanwhile */
    const char *tmp_dir;
    uint64_t base_bytes, limit;
    int64_t sized_us;
} view;

static bool tick(qw_hub_meter *m, view *v)
{
    int64_t now = qw_clock_us();
    if (now - v->sized_us >= SIZE_EVERY_US) {
        tree_bytes = 0;
        nftw(v->tmp_dir, add_size, 8, FTW_PHYS);
        v->sized_us = now;
    }
    uint64_t more = tree_bytes > v->limit ? v->limit : tree_bytes;
    uint64_t shown = v->base_bytes + more;
    return qw_hub_meter_tick(m, shown > m->now.done_bytes ? shown : m->now.done_bytes);
}

static qw_status watch(pid_t pid, int fd, qw_hub_meter *m, view *v, char tail[2048], int *exit_code,
                       qw_err *err)
{
    char data[4096];
    bool open = true;
    for (;;) {
        struct pollfd p = {.fd = open ? fd : -1, .events = POLLIN};
        int ready = poll(&p, 1, POLL_MS);
        if (ready > 0) {
            ssize_t n = read(fd, data, sizeof(data));
            if (n > 0) keep_tail(tail, data, (size_t)n);
            if (n == 0) open = false;
        }
        if (!tick(m, v)) {
            end(pid);
            return qw_hub_cancelled(err);
        }
        int state = 0;
        if (open && ready > 0) continue; /* all output first */
        pid_t got = waitpid(pid, &state, WNOHANG);
        if (got == 0) continue;
        *exit_code = got == pid && WIFEXITED(state) ? WEXITSTATUS(state) : 255;
        return QW_OK;
    }
}

qw_status qw_hub_spawn(const char *const *argv, const char *tmp_dir, qw_hub_meter *m, uint64_t base_bytes,
                       uint64_t limit, char tail[2048], int *exit_code, qw_err *err)
{
    int fds[2];
    pid_t pid = -1;
    view v = {.tmp_dir = tmp_dir, .base_bytes = base_bytes, .limit = limit, .sized_us = qw_clock_us()};
    tail[0] = 0;
    tree_bytes = 0;
    if (pipe2(fds, O_CLOEXEC) != 0) return qw_fail_errno(err, "a pipe cannot be made");
    qw_status status = start(argv, tmp_dir, fds[1], &pid, err);
    close(fds[1]);
    if (status == QW_OK) status = watch(pid, fds[0], m, &v, tail, exit_code, err);
    /* Where posix_spawn cannot tell (some emulators), the child ends with 127 and says nothing. */
    if (status == QW_OK && *exit_code == 127 && !tail[0])
        status = qw_fail(err, QW_E_NOT_FOUND, "there is no program %s", argv[0]);
    close(fds[0]);
    return status;
}
