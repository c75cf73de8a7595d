/* temp_dir.h: a fresh folder for one test program, removed with everything in it. */
#ifndef QW_TESTS_TEMP_DIR_H
#define QW_TESTS_TEMP_DIR_H

#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char temp_dir[512];

static inline int temp_dir_remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

/* cmocka group setup and teardown. */
static inline int temp_dir_setup(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(temp_dir, sizeof temp_dir, "%s/qw-test-XXXXXX", base != NULL && *base ? base : "/tmp");
    return mkdtemp(temp_dir) != NULL ? 0 : -1;
}

static inline int temp_dir_teardown(void **state)
{
    (void)state;
    return nftw(temp_dir, temp_dir_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* Path of a file in the folder; one of 64 static buffers in turn. */
static inline const char *temp_path(const char *name)
{
    static char paths[64][sizeof temp_dir + 320];
    static int next;
    char *p = paths[next++ % 64];
    snprintf(p, sizeof paths[0], "%s/%s", temp_dir, name);
    return p;
}

#endif
