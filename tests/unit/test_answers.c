/* test_answers.c: answers on disk: a conversation goes on after a restart as if there had been none.
 *
 * talk.h plays the conversations, over a store in a folder that other tests' stores know nothing of.
 */
#include "talk.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/file.h"
#include "engine/state_private.h"
#include "temp_dir.h"

enum { SEED = 20261130, DAY_S = 86400 };

#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static const qw_state_limits no_limits = {.bytes_max = (uint64_t)1 << 40};

/* ---- a disk --------------------------------------------------------------------------------------- */

typedef struct disk {
    const char *dir;
    const qw_state_limits *limits;
    qw_state_layout layout;
    qw_state_files *files;
    qw_state_io *io;
} disk;

static void disk_open(disk *d)
{
    qw_err err;
    if (qw_state_files_open(d->dir, &d->layout, d->limits, &d->files, &err) != QW_OK) fail_msg("%s", err.text);
    if (qw_state_io_open(&(qw_state_io_options){.files = d->files, .n_threads = 2}, &d->io, &err) != QW_OK)
        fail_msg("%s", err.text);
}

static disk new_disk(void)
{
    static int n;
    char name[16];
    snprintf(name, sizeof name, "%d", n++);
    disk d = {.dir = temp_path(name), .limits = &no_limits,
              .layout = {.model = "0123456789abcdef", .page_bytes = 5003, .shape = {.n_layers = 2, .head_dim = 64}}};
    disk_open(&d);
    return d;
}

/* All that was given to it is saved then. */
static void disk_close(disk *d)
{
    qw_state_io_close(d->io, 0);
    qw_state_files_close(d->files);
}

static qw_memory *memory_on(const disk *d, size_t bytes)
{
    qw_memory *m = open_memory(bytes);
    qw_memory_attach(m, d->io, N_IDS);
    return m;
}

static void memory_off(qw_memory *m, const disk *d)
{
    qw_memory_detach(m, d->io);
    qw_memory_destroy(m);
}

/* The process ends, in good order, and another begins. */
static void restart(talk *t, disk *d, size_t bytes)
{
    talk_release(t);
    memory_off(t->memory, d);
    disk_close(d);
    disk_open(d);
    t->memory = memory_on(d, bytes);
}

static void end(talk *t, disk *d)
{
    qw_memory *m = t->memory;
    talk_close(t);
    memory_off(m, d);
    disk_close(d);
}

static qw_memory_counts counts_of(qw_memory *m)
{
    qw_memory_counts c;
    qw_memory_get_counts(m, &c);
    return c;
}

static qw_state_counts saved_counts(const disk *d)
{
    qw_state_counts c;
    qw_state_get_counts(d->files, &c);
    return c;
}

/* Waits until the disk has so many files more than it began with. */
static void wait_saved(const disk *d, uint64_t n)
{
    while (saved_counts(d).saved < n) usleep(100);
}

/* Calls for each answer's file. */
static int for_files(const disk *d, void (*call)(const char *path, void *ctx), void *ctx)
{
    int n = 0;
    DIR *dir = opendir(d->dir);
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir));) {
        char sub[700], path[1100];
        if (e->d_name[0] == '.' || strcmp(e->d_name, "key") == 0) continue;
        snprintf(sub, sizeof sub, "%s/%s", d->dir, e->d_name);
        DIR *files = opendir(sub);
        assert_non_null(files);
        for (struct dirent *f; (f = readdir(files));) {
            if (f->d_name[0] == '.') continue;
            snprintf(path, sizeof path, "%s/%s", sub, f->d_name);
            if (call) call(path, ctx);
            n++;
        }
        closedir(files);
    }
    closedir(dir);
    return n;
}

static void make_old(const char *path, void *age_s)
{
    const struct timespec t = {.tv_sec = time(NULL) - *(int64_t *)age_s}, times[2] = {t, t};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void grow_old(const char *path, void *by_s)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    int64_t age_s = time(NULL) - st.st_mtim.tv_sec + *(int64_t *)by_s;
    make_old(path, &age_s);
}

/* ---- as bytes ------------------------------------------------------------------------------------- */

static qw_buf packed(const qw_spoken *s)
{
    qw_buf b;
    qw_err err;
    qw_buf_init(&b, 1 << 20, "answer");
    if (qw_spoken_pack(s, &b, &err) != QW_OK) fail_msg("%s", err.text);
    return b;
}

static qw_spoken *unpacked(const void *bytes, size_t n, size_t n_vocab)
{
    qw_spoken *s = NULL;
    qw_err err;
    uint8_t *exact = malloc(n + !n); /* so that a sanitizer sees a byte too far */
    assert_non_null(exact);
    memcpy(exact, bytes, n);
    qw_status status = qw_spoken_unpack((qw_text){(const char *)exact, n}, n_vocab, &s, &err);
    free(exact);
    assert_true(status == QW_OK || (status == QW_E_FORMAT && err.text[0] != '\0' && !s) || status == QW_E_LIMIT);
    return s;
}

/* What qw_spoken says of an answer that was finished. */
static void expect_sane(const qw_spoken *s)
{
    uint32_t end = 0;
    for (size_t i = 0; i < s->n_tokens; i++) {
        const qw_spoken_token *t = &s->tokens[i];
        assert_true(t->id >= 0 && t->id < N_IDS && t->end >= end);
        end = t->end;
        assert_true(i >= s->n_usable || end <= s->text.n);
    }
    assert_true(s->n_usable <= s->n_tokens && s->answer_at <= s->text.n && s->n_calls <= QW_SPOKEN_CALLS_MAX && !s->lost);
    assert_true(!s->whole || (!s->broken && end == s->text.n && (s->n_tokens == 0 || !s->tokens[s->n_tokens - 1].inside)));
    for (size_t i = 0; i < s->n_words; i++) {
        assert_true(s->words[i].begin < s->words[i].end && s->words[i].end <= s->text.n);
        assert_true(i == 0 || s->words[i - 1].end <= s->words[i].begin);
    }
    for (size_t i = 0; i < s->n_calls; i++) assert_non_null(s->calls[i].name);
}

/* Whatever it is, it can be compared with a message. */
static void use(const qw_spoken *s, const talk *t)
{
    const qw_message *m = &t->messages[t->n - 1];
    const qw_chat_ask q = {.before = {"", 0}, .message = m, .content = m->content, .reasoning = m->reasoning, .may_block = true,
                           .turn = m->content};
    qw_recalled got;
    expect_sane(s);
    if (qw_spoken_match(s, &q, true, &got) == QW_MATCH_NONE) return;
    for (size_t i = 0; i < got.n_tokens; i++) assert_true(got.tokens[i].id < N_IDS);
    for (size_t i = 0; i < got.text.n; i++) random_state += (uint8_t)got.text.s[i]; /* a sanitizer looks on */
}

static void expect_same_bytes(const qw_spoken *s, const void *bytes, size_t n)
{
    qw_buf again = packed(s);
    assert_int_equal(again.n, n);
    assert_memory_equal(again.data, bytes, n);
    qw_buf_free(&again);
}

/* What is read back is what was written; what is cut is refused; what is changed is refused or is another answer. */
static void test_packed(void **state)
{
    static const qw_chat_format formats[] = {QW_CHAT_QWEN25, QW_CHAT_QWEN3, QW_CHAT_QWEN35, QW_CHAT_QWEN38};
    enum { ROUNDS = 60, FLIPS = 400 };
    size_t n_taken = 0;
    (void)state;
    random_state = SEED;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        talk *t = talk_open(formats[round % COUNT(formats)], open_memory(QW_MEMORY_BYTES_MAX), "me");
        add_message(t, "user", "hello");
        begin_prompt(t);
        random_answer(t, below(2));
        qw_buf bytes = packed(qw_memory_spoken(t->said));
        qw_spoken *s = unpacked(bytes.data, bytes.n, N_IDS);
        assert_non_null(s);
        expect_same_bytes(s, bytes.data, bytes.n);
        qw_spoken_destroy(s);
        for (size_t n = 0; n < bytes.n; n++) assert_null(unpacked(bytes.data, n, N_IDS));
        assert_null(unpacked(bytes.data, bytes.n + 1, N_IDS)); /* a buffer keeps a NUL */
        for (int i = 0; i < FLIPS; i++) {
            uint8_t *at = (uint8_t *)bytes.data + below((uint32_t)bytes.n), was = *at;
            *at = below(4) ? (uint8_t)(was ^ 1u << below(8)) : (uint8_t)below(256);
            s = unpacked(bytes.data, bytes.n, N_IDS);
            if (s) {
                expect_same_bytes(s, bytes.data, bytes.n);
                use(s, t);
                n_taken++;
            }
            qw_spoken_destroy(s);
            *at = was;
        }
        int32_t most = 0;
        const qw_spoken *said = qw_memory_spoken(t->said);
        for (size_t i = 0; i < said->n_tokens; i++) most = said->tokens[i].id > most ? said->tokens[i].id : most;
        assert_null(unpacked(bytes.data, bytes.n, (size_t)most));
        qw_buf_free(&bytes);
        close_talk(t);
    }
    assert_true(n_taken > ROUNDS); /* letters of a text, for example */
}

/* ---- restarts ------------------------------------------------------------------------------------- */

/* As test_memory's turns; the process begins again when it likes to. */
static void test_restarts(void **state)
{
    enum { ROUNDS = 60 };
    uint64_t n_loaded = 0;
    (void)state;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        const talk_case *c = &talk_cases[round % N_TALK_CASES];
        disk d = new_disk();
        talk *t = talk_open(c->format, memory_on(&d, QW_MEMORY_BYTES_MAX), "me");
        t->options = c->options;
        random_state = SEED + round;
        add_message(t, "user", "hello hello");
        for (int turn = 0; turn < 5; turn++) {
            random_turn(t, c->asks);
            if (below(2)) restart(t, &d, QW_MEMORY_BYTES_MAX);
            expect_continued(t, "round");
            n_loaded += counts_of(t->memory).loaded;
            assert_int_equal(saved_counts(&d).damaged, 0);
        }
        end(t, &d);
    }
    assert_true(n_loaded > ROUNDS);
}

/* Does the next prompt begin with all that was said? The answer is in tokens that its text does not lead to. */
static bool continued(talk *t)
{
    qw_tokens ids = {0};
    static char text[1 << 15];
    render(t, true, &ids, text, sizeof text);
    bool yes = begins_with(&ids, &t->prompt);
    qw_tokens_free(&ids);
    return yes;
}

/* A conversation of one answer, byte by byte. */
static talk *one_answer(qw_memory *m, const char *owner)
{
    talk *t = talk_open(QW_CHAT_QWEN25, m, owner);
    qw_tokens said = {0};
    qw_err err;
    add_message(t, "user", "hello");
    begin_prompt(t);
    for (const char *s = "hello aaaa"; *s; s++) assert_int_equal(qw_tokens_push(&said, (uint8_t)*s, &err), QW_OK);
    answer(t, said.ids, said.n, QW_FINISH_STOP, NULL);
    add_message(t, "user", "hello");
    qw_tokens_free(&said);
    return t;
}

/* Found by its own owner, of its own model, in its own store; and by nobody who only knows the words. */
static void test_strangers(void **state)
{
    (void)state;
    disk d = new_disk(), other = new_disk();
    talk *t = one_answer(memory_on(&d, QW_MEMORY_BYTES_MAX), "me");
    restart(t, &d, QW_MEMORY_BYTES_MAX);
    strcpy((char *)t->owner, "you");
    assert_false(continued(t));
    strcpy((char *)t->owner, "me");
    assert_int_equal(counts_of(t->memory).loaded, 0);
    assert_true(continued(t));
    assert_int_equal(counts_of(t->memory).loaded, 1);
    assert_true(continued(t)); /* and stays */
    assert_int_equal(counts_of(t->memory).loaded, 1);
    t->messages[1].content.n -= 3; /* what does not fit is looked for on disk each time, and kept once */
    for (int i = 0; i < 3; i++) assert_false(continued(t));
    t->messages[1].content.n += 3;
    assert_int_equal(counts_of(t->memory).n_answers, 1);
    d.layout.model[0]++;
    restart(t, &d, QW_MEMORY_BYTES_MAX);
    assert_false(continued(t));
    d.layout.model[0]--;
    restart(t, &d, QW_MEMORY_BYTES_MAX);
    memory_off(t->memory, &d);
    t->memory = memory_on(&other, QW_MEMORY_BYTES_MAX);
    assert_false(continued(t));
    memory_off(t->memory, &other);
    t->memory = open_memory(QW_MEMORY_BYTES_MAX);
    assert_false(continued(t)); /* without a disk */
    qw_memory_attach(t->memory, d.io, N_IDS);
    qw_memory_attach(t->memory, other.io, N_IDS); /* comes too late */
    qw_memory_detach(t->memory, other.io);
    assert_true(continued(t));
    disk_close(&other);
    end(t, &d);
}

/* A call's id is known in any conversation: the thinking before it, which the client dropped, comes back. */
static void test_call_ids(void **state)
{
    (void)state;
    disk d = new_disk();
    talk *t = talk_open(QW_CHAT_QWEN38, memory_on(&d, QW_MEMORY_BYTES_MAX), "me");
    qw_tokens said = {0}, ids = {0};
    char text[TEXT_MAX];
    add_message(t, "user", "hello");
    begin_prompt(t);
    cut("abc\n</think>\n\n<tool_call>\n<function=weather>\n<parameter=place>\naa\n</parameter>\n</function>\n</tool_call>", &said);
    answer(t, said.ids, said.n, QW_FINISH_STOP, NULL);
    assert_int_equal(t->messages[1].n_tool_calls, 1);
    t->messages[1].reasoning = (qw_text){0};
    t->messages[0].content.n--;
    for (int with_id = 1; with_id >= 0; with_id--) {
        restart(t, &d, QW_MEMORY_BYTES_MAX);
        if (!with_id) t->kept[1]->calls[0].id = NULL;
        render(t, true, &ids, text, sizeof text);
        assert_int_equal(strstr(text, "abc") != NULL, with_id);
    }
    qw_tokens_free(&said);
    qw_tokens_free(&ids);
    end(t, &d);
}

/* Of two answers to one question, in the same words, the newer one is known then. */
static void test_newest(void **state)
{
    (void)state;
    disk d = new_disk();
    qw_memory *m = memory_on(&d, QW_MEMORY_BYTES_MAX);
    talk *old = one_answer(m, "me"), *t = talk_open(QW_CHAT_QWEN25, m, "me");
    qw_tokens said = {0};
    qw_err err;
    talk_close(old);
    add_message(t, "user", "hello");
    begin_prompt(t);
    assert_int_equal(qw_tokenizer_encode(tokenizer, "hello aaaa", 10, false, &said, &err), QW_OK);
    answer(t, said.ids, said.n, QW_FINISH_STOP, NULL);
    add_message(t, "user", "hello");
    restart(t, &d, QW_MEMORY_BYTES_MAX);
    assert_int_equal(for_files(&d, NULL, NULL), 2);
    assert_true(continued(t));
    qw_tokens_free(&said);
    end(t, &d);
}

/* What the memory has no room for is found on disk. */
static void test_evicted(void **state)
{
    enum { ANSWERS = 60, BYTES = 8000 };
    (void)state;
    for (int with = 0; with < 2; with++) {
        disk d = new_disk();
        talk *talks[ANSWERS];
        qw_memory *m = with ? memory_on(&d, BYTES) : open_memory(BYTES);
        size_t n_known = 0;
        for (int i = 0; i < ANSWERS; i++) {
            char owner[8];
            snprintf(owner, sizeof owner, "%d", i);
            talks[i] = one_answer(m, owner);
            talk_release(talks[i]);
        }
        if (with) wait_saved(&d, 2 * ANSWERS);
        for (int i = 0; i < ANSWERS; i++) n_known += continued(talks[i]);
        if (with) assert_int_equal(n_known, ANSWERS);
        else assert_true(n_known > 0 && n_known < ANSWERS / 2);
        assert_true(counts_of(m).bytes <= BYTES && counts_of(m).evicted > 0);
        for (int i = 0; i < ANSWERS; i++) talk_close(talks[i]);
        memory_off(m, &d);
        disk_close(&d);
    }
}

/* ---- never trusted -------------------------------------------------------------------------------- */

typedef struct wound {
    size_t at;    /* byte that is changed; beyond the end: the file is cut to `cut` */
    size_t cut;
    size_t n_longest;
} wound;

static void hurt(const char *path, void *ctx)
{
    wound *w = ctx;
    char *data;
    size_t n;
    assert_int_equal(qw_file_read(path, 1 << 20, &data, &n, NULL), QW_OK);
    if (n > w->n_longest) w->n_longest = n;
    if (w->at < n) data[w->at] ^= 4;
    else n = w->cut < n ? w->cut : n - 1;
    int fd = open(path, O_WRONLY | O_TRUNC);
    assert_true(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    close(fd);
    free(data);
}

/* Any byte, any length: as if it had never been saved. */
static void test_damage(void **state)
{
    (void)state;
    disk d = new_disk();
    size_t n_longest = 1;
    for (size_t at = 0; at < n_longest + 20; at++) {
        talk *t = one_answer(memory_on(&d, QW_MEMORY_BYTES_MAX), "me");
        wound w = {.at = at, .cut = (at - n_longest) * 16};
        wait_saved(&d, 2 * (at + 1));
        talk_release(t);
        memory_off(t->memory, &d);
        assert_int_equal(for_files(&d, hurt, &w), 2);
        n_longest = w.n_longest;
        t->memory = memory_on(&d, QW_MEMORY_BYTES_MAX);
        if (continued(t)) fail_msg("byte %zu is trusted", at);
        assert_int_equal(saved_counts(&d).damaged, 2 * (at + 1));
        assert_int_equal(for_files(&d, NULL, NULL), 0);
        talk_release(t);
        memory_off(t->memory, &d);
        talk_close(t);
    }
    disk_close(&d);
    assert_true(n_longest > 100);
}

static void note_path(const char *path, void *paths)
{
    char (*out)[1100] = paths;
    snprintf(out[out[0][0] != '\0'], sizeof *out, "%s", path);
}

/* A file is good under its own name alone. */
static void test_swapped(void **state)
{
    (void)state;
    disk d = new_disk();
    talk *t = one_answer(memory_on(&d, QW_MEMORY_BYTES_MAX), "me");
    char paths[2][1100] = {"", ""}, aside[1200];
    restart(t, &d, QW_MEMORY_BYTES_MAX);
    assert_int_equal(for_files(&d, note_path, paths), 2);
    snprintf(aside, sizeof aside, "%s.aside", paths[0]);
    assert_int_equal(rename(paths[0], aside) | rename(paths[1], paths[0]) | rename(aside, paths[1]), 0);
    assert_false(continued(t));
    assert_int_equal(saved_counts(&d).damaged, 2);
    assert_int_equal(for_files(&d, NULL, NULL), 0);
    end(t, &d);
}

/* Files whose sums are right, and whose answer is none. */
static void test_forged(void **state)
{
    (void)state;
    disk d = new_disk();
    talk *t = one_answer(memory_on(&d, QW_MEMORY_BYTES_MAX), "me");
    const uint64_t place = t->place;
    const qw_state_answer_key key = {.kind = 1, .a = {(const char *)&place, sizeof place}, .b = {"", 0}};
    qw_state_id id = qw_state_answer_id(d.files, t->owner, &key);
    qw_buf good, data;
    qw_err err;
    int64_t saved_s;
    wait_saved(&d, 2);
    qw_buf_init(&good, 1 << 20, "answer");
    assert_true(qw_state_load_answer(d.files, id, &good, &saved_s)); /* the key is the one of its place */
    random_state = SEED;
    for (int i = 0; i < 2000; i++) {
        qw_buf_init(&data, 1 << 20, "answer");
        assert_int_equal(qw_buf_add(&data, good.data, i < 40 ? (size_t)i : good.n, &err), QW_OK);
        for (uint32_t k = below(4); k > 0 && data.n > 0; k--) data.data[below((uint32_t)data.n)] ^= (char)(1 + below(255));
        assert_int_equal(qw_state_save_answer(d.files, id, (qw_text){qw_buf_str(&data), data.n}, &err), QW_OK);
        talk_release(t);
        memory_off(t->memory, &d);
        t->memory = memory_on(&d, QW_MEMORY_BYTES_MAX);
        (void)continued(t); /* a sanitizer looks on */
        qw_buf_free(&data);
    }
    qw_buf_free(&good);
    end(t, &d);
}

/* ---- limits --------------------------------------------------------------------------------------- */

/* Answers that are used stay; others grow old. */
static void test_age(void **state)
{
    const qw_state_limits limits = {.bytes_max = (uint64_t)1 << 40, .age_s_max = 3 * DAY_S};
    int64_t age_s = 2 * DAY_S;
    (void)state;
    disk d = new_disk();
    d.limits = &limits;
    talk *t = one_answer(memory_on(&d, QW_MEMORY_BYTES_MAX), "me");
    talk_close(one_answer(t->memory, "you"));
    restart(t, &d, QW_MEMORY_BYTES_MAX);
    assert_int_equal(for_files(&d, make_old, &age_s), 4);
    assert_true(continued(t)); /* used, so its two files are saved again */
    restart(t, &d, QW_MEMORY_BYTES_MAX);
    assert_true(continued(t));
    assert_int_equal(saved_counts(&d).saved, 0); /* not again so soon */
    assert_int_equal(for_files(&d, NULL, NULL), 4);
    age_s = 2 * DAY_S;
    for_files(&d, grow_old, &age_s); /* two more days: those of the other owner are too old */
    assert_int_equal(qw_state_trim(d.files, NULL), QW_OK);
    assert_int_equal(for_files(&d, NULL, NULL), 2);
    restart(t, &d, QW_MEMORY_BYTES_MAX);
    assert_true(continued(t));
    end(t, &d);
}

/* No room, no folder: it goes on, and says why once. */
static void test_no_room(void **state)
{
    static const qw_state_limits full = {.bytes_max = 100};
    (void)state;
    for (int gone = 0; gone < 2; gone++) {
        disk d = new_disk();
        qw_err err;
        if (!gone) d.limits = &full;
        disk_close(&d);
        disk_open(&d);
        if (gone) assert_int_equal(rename(d.dir, temp_path("aside")), 0);
        talk *t = one_answer(memory_on(&d, QW_MEMORY_BYTES_MAX), "me");
        assert_true(continued(t));
        while (saved_counts(&d).failed < 2) usleep(100);
        while (!qw_state_io_report(d.io, &err)) usleep(100);
        assert_non_null(strstr(err.text, d.dir));
        assert_false(qw_state_io_report(d.io, &err));
        end(t, &d);
    }
}

/* Everything that was given before the end is there after it. */
static void test_end_saves(void **state)
{
    enum { ANSWERS = 300 };
    (void)state;
    disk d = new_disk();
    static talk *talks[ANSWERS];
    qw_memory *m = memory_on(&d, QW_MEMORY_BYTES_MAX);
    for (int i = 0; i < ANSWERS; i++) {
        char owner[8];
        snprintf(owner, sizeof owner, "%d", i);
        talks[i] = one_answer(m, owner);
        talk_release(talks[i]);
    }
    memory_off(m, &d);
    disk_close(&d);
    disk_open(&d);
    m = memory_on(&d, QW_MEMORY_BYTES_MAX);
    for (int i = 0; i < ANSWERS; i++) {
        talks[i]->memory = m;
        assert_true(continued(talks[i]));
        talk_close(talks[i]);
    }
    memory_off(m, &d);
    disk_close(&d);
}

/* ---- kill -9 -------------------------------------------------------------------------------------- */

static _Noreturn void answer_until_killed(disk *d, int out)
{
    disk_open(d);
    qw_memory *m = memory_on(d, QW_MEMORY_BYTES_MAX);
    for (uint32_t i = 0;; i++) {
        char owner[8];
        snprintf(owner, sizeof owner, "%u", i % 1000);
        talk_close(one_answer(m, owner));
        wait_saved(d, 2 * (i + 1));
        if (write(out, &i, sizeof i) != sizeof i) _exit(1);
    }
}

static void test_kill(void **state)
{
    (void)state;
    random_state = SEED;
    for (int round = 0; round < 12; round++) {
        disk d = new_disk();
        int ends[2];
        disk_close(&d); /* threads do not live on in a child */
        assert_int_equal(pipe(ends), 0);
        fflush(stdout);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) answer_until_killed(&d, ends[1]);
        close(ends[1]);
        uint32_t number = 0, n_wanted = 1 + below(100), n_told = 0;
        int status;
        while (n_told < n_wanted && read(ends[0], &number, sizeof number) == sizeof number) n_told++;
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        while (read(ends[0], &number, sizeof number) == sizeof number) n_told++;
        close(ends[0]);
        assert_true(n_told >= n_wanted && number == n_told - 1);
        disk_open(&d);
        qw_memory *elsewhere = open_memory(QW_MEMORY_BYTES_MAX), *m = memory_on(&d, QW_MEMORY_BYTES_MAX);
        for (uint32_t i = 0; i < n_told && i < 1000; i++) {
            char owner[8];
            snprintf(owner, sizeof owner, "%u", i);
            talk *t = one_answer(elsewhere, owner);
            talk_release(t);
            t->memory = m;
            if (!continued(t)) fail_msg("round %d: answer %u was saved and is not known", round, i);
            talk_close(t);
        }
        assert_int_equal(saved_counts(&d).damaged, 0);
        qw_memory_destroy(elsewhere);
        memory_off(m, &d);
        disk_close(&d);
    }
}

/* ---- threads -------------------------------------------------------------------------------------- */

typedef struct asker {
    pthread_t thread;
    qw_memory *m;
    int number;
    size_t n_known;
} asker;

enum { ASKS = 150 };

static void *ask(void *arg)
{
    asker *a = arg;
    const uint8_t owner[QW_OWNER_BYTES] = "me";
    qw_message message = {.role = "assistant"};
    for (int i = 0; i < ASKS; i++) {
        char content[16];
        qw_memory_answer *said;
        qw_memory_reader r;
        qw_recalled found;
        qw_text text = {content, (size_t)snprintf(content, sizeof content, "%d %d", a->number, i)};
        if (qw_memory_begin(a->m, owner, (uint64_t)i, (qw_text){"", 0}, &said, NULL) != QW_OK) return NULL;
        qw_spoken *s = qw_memory_spoken(said);
        for (size_t k = 0; k < text.n; k++) qw_spoken_token_add(s, tokenizer, content[k], k + 1, false);
        qw_spoken_event(s, &(qw_parse_event){.kind = QW_PARSE_CONTENT, .text = text, .raw = text}, false);
        qw_spoken_finish(s, false);
        qw_memory_keep(said);
        qw_memory_release(said);
        text.n = (size_t)snprintf(content, sizeof content, "%d %d", a->number, i / 2); /* given a while ago */
        qw_memory_read(&r, a->m, owner);
        qw_chat_ask q = {.before = {"", 0}, .message = &message, .content = text, .turn = text};
        if (qw_memory_recall(&r, &q, &found)) a->n_known += found.n_tokens == text.n && found.tokens[0].id == content[0];
        qw_memory_read_end(&r);
    }
    return a;
}

/* Many give and ask while a small memory forgets, and the disk comes and goes. */
static void test_threads(void **state)
{
    enum { THREADS = 4 };
    asker askers[THREADS];
    (void)state;
    disk d = new_disk();
    qw_memory *m = memory_on(&d, 20000);
    for (int i = 0; i < THREADS; i++) {
        askers[i] = (asker){.m = m, .number = i};
        assert_int_equal(pthread_create(&askers[i].thread, NULL, ask, &askers[i]), 0);
    }
    for (int i = 0; i < 20; i++) {
        usleep(500);
        qw_memory_detach(m, d.io);
        qw_memory_attach(m, d.io, N_IDS);
    }
    for (int i = 0; i < THREADS; i++) {
        void *result;
        pthread_join(askers[i].thread, &result);
        assert_ptr_equal(result, &askers[i]);
        assert_true(askers[i].n_known > 0);
    }
    qw_memory_counts c = counts_of(m);
    assert_int_equal(c.kept, THREADS * ASKS);
    assert_true(c.bytes <= 20000);
    memory_off(m, &d);
    assert_int_equal(saved_counts(&d).damaged, 0);
    disk_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packed),   cmocka_unit_test(test_restarts), cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_newest),   cmocka_unit_test(test_evicted),  cmocka_unit_test(test_damage),
        cmocka_unit_test(test_call_ids), cmocka_unit_test(test_swapped),
        cmocka_unit_test(test_forged),   cmocka_unit_test(test_age),      cmocka_unit_test(test_no_room),
        cmocka_unit_test(test_end_saves), cmocka_unit_test(test_kill),    cmocka_unit_test(test_threads),
    };
    open_vocab();
    printf("seed %d\n", SEED);
    int failed = cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
    qw_tokenizer_close(tokenizer);
    return failed;
}
