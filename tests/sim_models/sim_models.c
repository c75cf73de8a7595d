/* sim_models.c: conversations on real models, by processes that are killed and leave the rest to the next one.
 *
 *     sim_models [--seeds N] [--base B] [--model PATH]...
 *
 * For each seed: the model computes all conversations alone (script.c). Then processes, one after the other, run the engine on
 * the same model and the same store on disk (life.c), with little memory; most of them get SIGKILL at a moment of the seed's
 * choice, in a pass, a save or at the end. Between two of them files of the store are damaged and conversations return, some
 * to an earlier turn. Every row of logits of every answer has to have the bits of the one computed alone.
 * Options count for the models after them; without any, it is the simulation's fake model. A failure prints its seed. What
 * happened is counted, and a run where something did not happen at all is a failure. Last line: "N passed, N failed".
 */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sim_models.h"

enum { LIVES_MIN = 3, LIVES_MORE = 3, PASSES_MAX = 30, LIFE_MS_MAX = 240000, DIR_MAX = 4096 };

static shared *sh;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* ---- the folder between two processes ------------------------------------------------------------- */

static struct {
    dice *dice;
    uint32_t percent; /* of the files */
    char last[DIR_MAX]; /* a file seen before */
} damage;

/* Changes one bit. */
static void flip(int fd, size_t at, dice *d)
{
    uint8_t byte;
    if (pread(fd, &byte, 1, (off_t)at) != 1) die("damage");
    byte = (uint8_t)(byte ^ 1u << below(d, 8));
    if (pwrite(fd, &byte, 1, (off_t)at) != 1) die("damage");
}

/* What a bad disk, a loss of power and other programs do to a file. */
static void damage_file(const char *path, const struct stat *st)
{
    enum { HEADER = 4096 };
    static const uint8_t zeros[HEADER];
    dice *d = damage.dice;
    uint32_t size = (uint32_t)st->st_size, at = size > HEADER ? below(d, size - HEADER) : 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) die(path);
    bool good = true;
    switch (below(d, 6)) {
    case 0: good = ftruncate(fd, below(d, size)) == 0; break;
    case 1: flip(fd, below(d, size < HEADER ? size : HEADER), d); break;
    case 2: good = pwrite(fd, "x", 1, (off_t)st->st_size) == 1; break;
    case 3: good = damage.last[0] ? rename(damage.last, path) == 0 : ftruncate(fd, 0) == 0; break;
    case 4: good = pwrite(fd, zeros, sizeof zeros, at) == sizeof zeros; break;
    default: flip(fd, below(d, size), d); break;
    }
    if (!good) die(path);
    close(fd);
    damage.last[0] = '\0';
    sh->n[N_DAMAGED]++;
}

/* Damages some files; now and then one goes away. */
static int maybe_damage(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)ftw;
    if (flag != FTW_F || strcmp(strrchr(path, '/'), "/key") == 0) return 0;
    if (st->st_size > 0 && chance(damage.dice, damage.percent)) {
        if (chance(damage.dice, 10)) unlink(path);
        else damage_file(path, st);
    } else {
        snprintf(damage.last, sizeof damage.last, "%s", path);
    }
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
    (void)st, (void)flag, (void)ftw;
    return remove(path);
}

/* ---- one process ---------------------------------------------------------------------------------- */

/* Waits until the process is to be killed, or has ended by itself; kills it. False: neither came in time. */
static bool kill_in_time(pid_t pid, int told_fd, uint32_t delay_us)
{
    struct pollfd p = {.fd = told_fd, .events = POLLIN};
    char byte;
    int rc;
    while ((rc = poll(&p, 1, LIFE_MS_MAX)) < 0 && errno == EINTR) {}
    ssize_t n = rc > 0 ? read(told_fd, &byte, 1) : -1;
    if (n == 0) return true; /* closed: it has ended */
    if (n > 0) usleep(delay_us);
    kill(pid, SIGKILL);
    return n > 0;
}

static void run_life(sim_model *m, const script *s, life_options *o, uint32_t delay_us)
{
    int fds[2], status;
    if (pipe2(fds, O_CLOEXEC) != 0) die("pipe");
    o->told_fd = fds[1];
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid == 0) {
        close(fds[0]);
        life_run(m, s, o, sh);
        fflush(NULL);
        _exit(0);
    }
    close(fds[1]);
    bool in_time = kill_in_time(pid, fds[0], delay_us);
    close(fds[0]);
    if (waitpid(pid, &status, 0) != pid) die("waitpid");
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    sh->n[N_LIVES]++;
    if (!in_time || (killed && o->told_pass == NEVER)) FAIL(sh, s->seed, "a process did not end in time");
    else if (WIFSIGNALED(status) && !killed) FAIL(sh, s->seed, "a process ended by signal %d", WTERMSIG(status));
    else if (!killed && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) FAIL(sh, s->seed, "a process ended with an error");
    if (!killed) return;
    sh->n[N_KILLS]++;
    sh->n[N_CUT] += sh->n_waiting;
    sh->n[N_CUT_SAVES] += sh->n_saving;
}

/* ---- a seed --------------------------------------------------------------------------------------- */

/* Conversations return: one that was cut asks again, and some go back by a turn. */
static void clients_return(const script *s, dice *d)
{
    for (uint32_t i = 0; i < s->n_clients; i++) {
        uint32_t next = sh->next[i];
        if (next > 0 && chance(d, next == s->clients[i].n_turns ? 60 : 20)) sh->next[i] = next - 1;
    }
}

static uint32_t when_to_kill(dice *d)
{
    uint32_t what = below(d, 100);
    if (what < 15) return NEVER;
    return what < 40 ? AT_END : 1 + below(d, what < 75 ? 8 : PASSES_MAX);
}

static bool run_seed(sim_model *m, const char *base_dir, uint64_t seed)
{
    static script s;
    char dir[DIR_MAX];
    dice d = {sim_mix(seed, 4)};
    uint32_t n_lives = LIVES_MIN + below(&d, LIVES_MORE), n_store_max = chance(&d, 30) ? 8 + below(&d, 20) : 100000;
    snprintf(dir, sizeof dir, "%s/sim-models-%ld-%llu", base_dir, (long)getpid(), (unsigned long long)seed);
    sh->failed = false;
    m->begin(m, seed, CONTEXT);
    script_make(m, seed, &s);
    for (uint32_t i = 0; i < CLIENTS_MAX; i++) sh->next[i] = 0;
    for (uint32_t k = 0; k < n_lives && !sh->failed; k++) {
        life_options o = {.dir = dir, .seed = sim_mix(seed, 100 + k), .n_store_max = n_store_max,
                          .told_pass = k + 1 < n_lives ? when_to_kill(&d) : NEVER};
        if (k > 0) {
            clients_return(&s, &d);
            damage.dice = &d;
            damage.percent = chance(&d, 50) ? 0 : 5 + below(&d, 25);
            damage.last[0] = '\0';
            if (nftw(dir, maybe_damage, 16, FTW_PHYS) != 0) die(dir);
        }
        run_life(m, &s, &o, below(&d, 1u << below(&d, 16))); /* some ms, or less than a pass takes */
    }
    for (uint32_t i = 0; i < s.n_clients && !sh->failed; i++)
        if (sh->next[i] != s.clients[i].n_turns) FAIL(sh, seed, "client %u has not all its answers", i);
    nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return !sh->failed;
}

/* ---- all of them ---------------------------------------------------------------------------------- */

static const char *folder_for_files(void)
{
    const char *dir = getenv("TMPDIR");
    return dir && *dir ? dir : "/tmp";
}

/* Prints what happened. Returns how many things did not. */
static uint64_t report(void)
{
#define ROW_OF(name, what, must) {what, must},
    static const struct {
        const char *what;
        bool must;
    } rows[N_COUNTS] = {COUNTS(ROW_OF)};
#undef ROW_OF
    uint64_t n_missing = 0;
    for (int i = 0; i < N_COUNTS; i++) printf("%10llu %s\n", (unsigned long long)sh->n[i], rows[i].what);
    for (int i = 0; i < N_COUNTS; i++) {
        if (!rows[i].must || sh->n[i] > 0) continue;
        printf("FAIL no %s: these seeds prove nothing about that\n", rows[i].what);
        n_missing++;
    }
    return n_missing;
}

/* Returns how many seeds failed, and one for each thing that did not happen. */
static uint64_t run_model(const char *path, uint64_t base, uint64_t n_seeds)
{
    sim_model *m = path ? sim_real_model(path) : sim_fake_model();
    uint64_t n_failed = 0;
    for (int i = 0; i < N_COUNTS; i++) sh->n[i] = 0;
    printf("%s, seeds %llu to %llu\n", path ? path : "the fake model", (unsigned long long)base,
           (unsigned long long)(base + n_seeds - 1));
    for (uint64_t seed = base; seed < base + n_seeds; seed++) n_failed += !run_seed(m, folder_for_files(), seed);
    m->close(m);
    return n_failed + report();
}

static uint64_t number(const char *s)
{
    char *end;
    uint64_t n = strtoull(s, &end, 10);
    if (*s && !*end && n > 0) return n;
    fprintf(stderr, "sim_models: %s is not a number\n", s);
    exit(2);
}

int main(int argc, char **argv)
{
    uint64_t n_seeds = 200, base = 1, n_run = 0, n_failed = 0;
    bool any = false;
    sh = mmap(NULL, sizeof *sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (sh == MAP_FAILED) die("mmap");
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 < argc && strcmp(argv[i], "--seeds") == 0) n_seeds = number(argv[i + 1]);
        else if (i + 1 < argc && strcmp(argv[i], "--base") == 0) base = number(argv[i + 1]);
        else if (i + 1 < argc && strcmp(argv[i], "--model") == 0) {
            n_failed += run_model(argv[i + 1], base, n_seeds);
            n_run += n_seeds;
            any = true;
        } else {
            fprintf(stderr, "usage: sim_models [--seeds N] [--base B] [--model PATH]...\n");
            return 2;
        }
    }
    if (!any) {
        n_failed += run_model(NULL, base, n_seeds);
        n_run += n_seeds;
    }
    uint64_t n_passed = n_run > n_failed ? n_run - n_failed : 0;
    printf("%llu passed, %llu failed\n", (unsigned long long)n_passed, (unsigned long long)n_failed);
    return n_failed > 0;
}
