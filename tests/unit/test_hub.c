/* test_hub.c: names, checksums, URLs, the built-in catalogue, manifests, locks and wheels of the model store.
 * The whole of a pull is tested by tests/cli/hub.py. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zip.h>

#include "base/file.h"
#include "formats/gguf.h"
#include "gguf_writer.h"
#include "hub/catalog.h"
#include "hub/fetch.h"
#include "hub/hub.h"
#include "hub/manifest.h"
#include "hub/names.h"
#include "hub/pip.h"
#include "hub/store.h"
#include "temp_dir.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const char sum_a[] = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"; /* of "a" */

/* ---- names ------------------------------------------------------------------------------------- */

static void test_names(void **state)
{
    (void)state;
    static const char *const good[] = {"a", "0", "qwen2.5-coder:0.5b", "a_b.c-d", "a:b", "x.json"};
    static const char *const bad[] = {"",     ".",   "..",  ".a",  "-a",    "_a",   "a/b",
                                      "../a", "a:",  ":a",  "a::", "a:b:c", "a:.b", "A",
                                      "a b",  "a@b", "a\n", "a%",  "é",     "a\\b"};
    for (size_t i = 0; i < COUNT(good); i++) {
        char file[QW_HUB_NAME_MAX], back[QW_HUB_NAME_MAX];
        assert_true(qw_hub_name_valid(good[i]));
        qw_hub_name_to_file(good[i], file);
        assert_null(strpbrk(file, "/:"));
        assert_true(qw_hub_name_from_file(file, strlen(file), back));
        assert_string_equal(back, good[i]);
    }
    for (size_t i = 0; i < COUNT(bad); i++) {
        char out[QW_HUB_NAME_MAX];
        assert_false(qw_hub_name_valid(bad[i]));
        if (strcmp(bad[i], "A") != 0) assert_int_equal(qw_hub_name_normal(bad[i], out, NULL), QW_E_ARG);
    }
    char longest[98], out[QW_HUB_NAME_MAX];
    memset(longest, 'a', 97);
    longest[97] = 0;
    assert_false(qw_hub_name_valid(longest));
    longest[96] = 0;
    assert_true(qw_hub_name_valid(longest));
    assert_int_equal(qw_hub_name_normal("Qwen2.5-Coder:0.5B", out, NULL), QW_OK);
    assert_string_equal(out, "qwen2.5-coder:0.5b");
    assert_false(qw_hub_name_from_file("a:b", 3, out)); /* not what name_to_file makes */
    assert_false(qw_hub_name_from_file("a\0b", 3, out));
}

static void test_name_from_gguf(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        {"Qwen3-8B-Q4_K_M.gguf", "qwen3-8b-q4_k_m"},
        {"m-00001-of-00003.gguf", "m"},
        {"My Model.gguf", "my-model"},
        {"..hidden.gguf", "hidden"},
        {"a%20b+c.gguf", "a-20b-c"},
        {"x.bin", "x.bin"},
    };
    char out[QW_HUB_NAME_MAX];
    for (size_t i = 0; i < COUNT(pairs); i++) {
        assert_int_equal(qw_hub_name_from_gguf(pairs[i][0], out, NULL), QW_OK);
        assert_string_equal(out, pairs[i][1]);
    }
    assert_int_equal(qw_hub_name_from_gguf("---.gguf", out, NULL), QW_E_ARG);
}

static void test_digests(void **state)
{
    (void)state;
    qw_hub_store s = {.home = "/store"};
    char out[QW_HUB_PATH_MAX], text[80];
    assert_int_equal(qw_hub_blob_path(&s, sum_a, out, NULL), QW_OK);
    assert_string_equal(strrchr(out, '/') + 1,
                        "sha256-ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb");
    for (size_t n = 0; n < 70; n++) { /* every length but the right one */
        memset(text, 'a', sizeof(text));
        text[n] = 0;
        assert_int_equal(qw_hub_blob_path(&s, text, out, NULL), n == 64 ? QW_OK : QW_E_FORMAT);
    }
    for (int c = 1; c < 256; c++) { /* every byte at every place */
        for (size_t at = 0; at < 64; at += 9) {
            memcpy(text, sum_a, 65);
            text[at] = (char)c;
            bool hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
            assert_int_equal(qw_hub_blob_path(&s, text, out, NULL), hex ? QW_OK : QW_E_FORMAT);
        }
    }
}

static void test_sha256(void **state)
{
    (void)state;
    char hex[65];
    uint64_t bytes = 0;
    qw_hub_meter m = {0};
    assert_int_equal(qw_hub_sha256_text("a", hex, NULL), QW_OK);
    assert_string_equal(hex, sum_a);
    assert_int_equal(qw_file_write(temp_path("a"), "a", 1, NULL), QW_OK);
    assert_int_equal(qw_hub_sha256_file(temp_path("a"), &m, hex, &bytes, NULL), QW_OK);
    assert_string_equal(hex, sum_a);
    assert_int_equal(bytes, 1);
    assert_int_equal(qw_hub_sha256_file(temp_dir, &m, hex, &bytes, NULL), QW_E_FORMAT);
    assert_int_equal(qw_hub_sha256_file(temp_path("none"), &m, hex, &bytes, NULL), QW_E_NOT_FOUND);
}

static void test_split(void **state)
{
    (void)state;
    size_t stem, no, count;
    assert_true(qw_hub_split_parse("m-00002-of-00010.gguf", &stem, &no, &count));
    assert_int_equal(stem, 1);
    assert_int_equal(no, 2);
    assert_int_equal(count, 10);
    static const char *const bad[] = {"-00001-of-00002.gguf",
                                      "m-0001-of-00002.gguf",
                                      "m-00001-of-00002.ggu",
                                      "m-00001-of-0000x.gguf",
                                      "m_00001-of-00002.gguf",
                                      "m.gguf",
                                      ""};
    for (size_t i = 0; i < COUNT(bad); i++) assert_false(qw_hub_split_parse(bad[i], &stem, &no, &count));
    char url[] = "https://h/a-00001-of-00003.gguf?b-00001-of-00003.gguf";
    assert_true(qw_hub_split_renumber(url, 3));
    assert_string_equal(url, "https://h/a-00003-of-00003.gguf?b-00001-of-00003.gguf");
    char path[] = "/d?/a-00001-of-00003.gguf"; /* a '?' in a path is no query */
    assert_true(qw_hub_split_renumber(path, 2));
    assert_string_equal(path, "/d?/a-00002-of-00003.gguf");
    char plain[] = "https://h/a.gguf";
    assert_false(qw_hub_split_renumber(plain, 2));
}

static void test_distance(void **state)
{
    (void)state;
    assert_int_equal(qw_hub_distance("abc", "abc", 4), 0);
    assert_int_equal(qw_hub_distance("abc", "abd", 4), 1);
    assert_int_equal(qw_hub_distance("abc", "ac", 4), 1);
    assert_int_equal(qw_hub_distance("", "abc", 4), 3);
    assert_int_equal(qw_hub_distance("kitten", "sitting", 4), 3);
    assert_int_equal(qw_hub_distance("abcdefgh", "zyxwvuts", 4), 5);
}

/* ---- sources and URLs -------------------------------------------------------------------------- */

static void test_urls(void **state)
{
    (void)state;
    char host[256];
    bool plain;
    assert_int_equal(qw_hub_url_check("https://example.com:8443/a?b#c", host, &plain, NULL), QW_OK);
    assert_string_equal(host, "example.com:8443");
    assert_false(plain);
    static const char *const local[] = {"http://127.0.0.1/a", "http://localhost:80/a", "http://[::1]:1/a"};
    for (size_t i = 0; i < COUNT(local); i++) {
        assert_int_equal(qw_hub_url_check(local[i], host, &plain, NULL), QW_OK);
        assert_true(plain);
    }
    static const char *const bad[] = {
        "http://example.com/a",
        "http://127.0.0.1.evil.com/a",
        "http://127.0.0.2/a",
        "http://localhost.evil/a",
        "http://[::2]/a",
        "file:///etc/passwd",
        "ftp://h/a",
        "https://u:p@h/a",
        "https://u@127.0.0.1/a",
        "https://h/a b",
        "https://h\\@g/a",
        "https://h/\r\nX: y",
        "https://h/\x01",
        "https://",
        "//h/a",
        "https://\xc3\xa9/a",
        "http://0x7f.1/x\t",
        "gopher://h/",
        "http://evil.com#@127.0.0.1/",
        "",
    };
    for (size_t i = 0; i < COUNT(bad); i++)
        assert_int_equal(qw_hub_url_check(bad[i], host, &plain, NULL), QW_E_ARG);
}

static void test_sources(void **state)
{
    (void)state;
    qw_hub_source s;
    char file[256];
    assert_int_equal(qw_hub_source_parse("hf:Qwen/Qwen3-8B-GGUF/sub/Q.gguf", &s, NULL), QW_OK);
    assert_int_equal(s.kind, QW_HUB_SRC_HF);
    assert_string_equal(s.repo, "Qwen/Qwen3-8B-GGUF");
    assert_string_equal(s.file, "sub/Q.gguf");
    assert_int_equal(qw_hub_source_file_name(&s, file, NULL), QW_OK);
    assert_string_equal(file, "Q.gguf");
    qw_hub_source_clear(&s);
    assert_int_equal(qw_hub_source_parse("https://h/d/x.gguf?download=true", &s, NULL), QW_OK);
    assert_int_equal(qw_hub_source_file_name(&s, file, NULL), QW_OK);
    assert_string_equal(file, "x.gguf");
    qw_hub_source_clear(&s);
    assert_int_equal(qw_hub_source_parse("./x", &s, NULL), QW_OK);
    assert_int_equal(s.kind, QW_HUB_SRC_FILE);
    qw_hub_source_clear(&s);
    assert_int_equal(qw_hub_source_parse("qwen2.5-coder:0.5b", &s, NULL), QW_E_NOT_FOUND);
    static const char *const bad[] = {"hf:a/b",          "hf:/a/b.gguf",         "hf:a/../x.gguf",
                                      "hf:a/b/",         "ms:a/b/c.safetensors", "hf:a//b/c.gguf",
                                      "hf:a/b/c?d.gguf", "hf:a/b/%2e%2e/c.gguf"};
    for (size_t i = 0; i < COUNT(bad); i++) assert_int_equal(qw_hub_source_parse(bad[i], &s, NULL), QW_E_ARG);
    char *huge = malloc(5000);
    memset(huge, 'a', 4999);
    memcpy(huge, "https://h/", 10);
    huge[4999] = 0;
    assert_int_equal(qw_hub_source_parse(huge, &s, NULL), QW_E_ARG);
    free(huge);
}

/* ---- catalogue --------------------------------------------------------------------------------- */

static void test_catalog(void **state)
{
    (void)state;
    qw_hub_catalog *c = NULL;
    qw_err err;
    assert_int_equal(qw_hub_catalog_open(NULL, &c, &err), QW_OK);
    assert_string_equal(c->default_id, qw_hub_default_model());
    const qw_hub_entry *e = qw_hub_catalog_find(c, "qwen2.5-coder");
    assert_non_null(e);
    assert_string_equal(e->id, qw_hub_default_model());
    assert_null(qw_hub_catalog_find(c, "qwen2.5"));
    for (size_t i = 0; i < c->n_entries;
         i++) { /* no name means two models; every model has a way without a hub's account */
        e = &c->entries[i];
        assert_ptr_equal(qw_hub_catalog_find(c, e->id), e);
        for (size_t j = 0; j < e->n_aliases; j++) assert_ptr_equal(qw_hub_catalog_find(c, e->aliases[j]), e);
        assert_true(e->n_sources > 0 && e->licence[0] && e->description[0]);
    }
    qw_hub_catalog_close(c);
    static const char *const bad[] = {
        "",
        "{}",
        "[]",
        "{\"format\":1}",
        "{\"format\":2}",
        "{\"format\":1,\"hosts\":{\"hf\":\"http://h\",\"ms\":\"https://h\"},\"default\":\"a\",\"models\":[]}",
        "{\"format\":1,\"hosts\":{\"hf\":\"https://h\",\"ms\":\"https://"
        "h\"},\"default\":\"a\",\"models\":[]}",
        "{\"format\":1,\"hosts\":{\"hf\":\"https://h\",\"ms\":\"https://"
        "h\"},\"default\":\"a\",\"models\":[1]}",
    };
    for (size_t i = 0; i < COUNT(bad); i++) {
        assert_int_equal(qw_file_write(temp_path("c.json"), bad[i], strlen(bad[i]), NULL), QW_OK);
        assert_int_not_equal(qw_hub_catalog_open(temp_path("c.json"), &c, &err), QW_OK);
        assert_non_null(strstr(err.text, "c.json"));
        assert_null(c);
    }
}

/* ---- store ------------------------------------------------------------------------------------- */

static void fresh_store(qw_hub_store *s, const char *name)
{
    snprintf(s->home, sizeof(s->home), "%s", temp_path(name));
    assert_int_equal(qw_hub_store_make(s, NULL), QW_OK);
}

/* A commit of one file with the content "a" as model `name`. */
static void commit_a(const qw_hub_store *s, const char *name)
{
    qw_hub_file file = {.name = "a.gguf", .bytes = 1};
    qw_hub_manifest m = {.files = &file, .n_files = 1, .added_s = 5};
    qw_hub_meter meter = {0};
    memcpy(file.sha256, sum_a, 65);
    snprintf(m.name, sizeof(m.name), "%s", name);
    snprintf(m.source, sizeof(m.source), "https://h/\"\\\xc3\xa9");
    const char *staged = temp_path("staged");
    assert_int_equal(qw_file_write(staged, "a", 1, NULL), QW_OK);
    assert_int_equal(qw_hub_commit(s, &m, &staged, &meter, NULL), QW_OK);
    assert_int_not_equal(access(staged, F_OK), 0);
}

static void test_commit_and_remove(void **state)
{
    (void)state;
    qw_hub_store s;
    qw_hub_manifest m;
    qw_hub_meter meter = {0};
    char **names, fault[160], path[QW_HUB_PATH_MAX];
    size_t n;
    uint64_t freed;
    fresh_store(&s, "store1");
    commit_a(&s, "x:1");
    commit_a(&s, "w");
    commit_a(&s, "w"); /* again: a repair */
    assert_int_equal(qw_hub_store_names(&s, &names, &n, NULL), QW_OK);
    assert_int_equal(n, 2);
    assert_string_equal(names[0], "w");
    assert_string_equal(names[1], "x:1");
    qw_hub_names_free(names, n);

    assert_int_equal(qw_hub_manifest_read(&s, "x:1", &m, NULL), QW_OK);
    assert_string_equal(m.source, "https://h/\"\\\xc3\xa9");
    assert_int_equal(m.added_s, 5);
    assert_int_equal(qw_hub_manifest_bytes(&m), 1);
    assert_true(qw_hub_manifest_whole(&s, &m, fault));
    assert_int_equal(qw_hub_manifest_verify(&s, &m, &meter, NULL), QW_OK);
    assert_int_equal(qw_hub_uncommit(&s, &m, &meter, &freed, NULL), QW_OK);
    assert_int_equal(freed, 0); /* "w" uses the blob */
    assert_int_equal(qw_hub_blob_path(&s, sum_a, path, NULL), QW_OK);
    assert_int_equal(access(path, F_OK), 0);
    qw_hub_manifest_clear(&m);

    assert_int_equal(qw_hub_manifest_read(&s, "x:1", &m, NULL), QW_E_NOT_FOUND);
    assert_int_equal(qw_hub_manifest_read(&s, "w", &m, NULL), QW_OK);
    assert_int_equal(qw_file_write(path, "b", 1, NULL), QW_OK);
    assert_true(qw_hub_manifest_whole(&s, &m, fault)); /* the size is right */
    assert_int_equal(qw_hub_manifest_verify(&s, &m, &meter, NULL), QW_E_CORRUPT);
    assert_int_equal(qw_hub_uncommit(&s, &m, &meter, &freed, NULL), QW_OK);
    assert_int_equal(freed, 1);
    assert_int_not_equal(access(path, F_OK), 0);
    qw_hub_manifest_clear(&m);
}

static int stop_at;

static bool stopper(void *user, const qw_hub_progress *p)
{
    (void)user;
    (void)p;
    return --stop_at > 0;
}

static void count_line(void *user, const char *text)
{
    assert_non_null(strstr(text, "another process"));
    ++*(int *)user;
}

static void test_locks(void **state)
{
    (void)state;
    qw_hub_store s;
    int lines = 0, a = -1, b = -1, c = -1;
    qw_hub_watch watch = {.user = &lines, .line = count_line, .progress = stopper};
    qw_hub_meter meter = {.watch = &watch};
    fresh_store(&s, "store2");
    stop_at = 3;
    assert_int_equal(qw_hub_lock(&s, "x", &meter, &a, NULL), QW_OK);
    assert_int_equal(qw_hub_lock(&s, "y", &meter, &b, NULL), QW_OK);
    assert_int_equal(lines, 0);
    assert_int_equal(qw_hub_lock(&s, "x", &meter, &c, NULL), QW_E_CANCELLED); /* the watcher stops the wait */
    assert_int_equal(lines, 1);
    assert_int_equal(c, -1);
    qw_hub_unlock(a);
    meter.stopped = false;
    stop_at = 100;
    assert_int_equal(qw_hub_lock(&s, "x", &meter, &c, NULL), QW_OK);
    qw_hub_unlock(b);
    qw_hub_unlock(c);
}

static void test_cancel_checksum(void **state)
{
    (void)state;
    qw_hub_watch watch = {.progress = stopper};
    qw_hub_meter meter = {.watch = &watch};
    char hex[65];
    uint64_t bytes;
    stop_at = 1;
    assert_int_equal(qw_file_write(temp_path("a"), "a", 1, NULL), QW_OK);
    assert_int_equal(qw_hub_sha256_file(temp_path("a"), &meter, hex, &bytes, NULL), QW_E_CANCELLED);
}

static void test_partial_record(void **state)
{
    (void)state;
    qw_hub_partial p = {.total = 10, .bytes = 5, .packages = 2}, q;
    snprintf(p.source, sizeof(p.source), "https://h/x");
    snprintf(p.etag, sizeof(p.etag), "\"e\"");
    memcpy(p.sha256, sum_a, 65);
    assert_int_equal(qw_hub_partial_write(temp_path("p.json"), &p, NULL), QW_OK);
    assert_true(qw_hub_partial_read(temp_path("p.json"), &q));
    assert_memory_equal(&p, &q, sizeof(p));
    static const char *const bad[] = {"",
                                      "{",
                                      "[]",
                                      "{\"source\":\"x\",\"total\":-1}",
                                      "{\"source\":\"x\",\"packages\":99999}",
                                      "{\"total\":1}"};
    for (size_t i = 0; i < COUNT(bad); i++) {
        assert_int_equal(qw_file_write(temp_path("p.json"), bad[i], strlen(bad[i]), NULL), QW_OK);
        assert_false(qw_hub_partial_read(temp_path("p.json"), &q));
    }
    assert_false(qw_hub_partial_read(temp_path("none"), &q));
}

static void test_space_and_sizes(void **state)
{
    (void)state;
    char text[32];
    qw_err err;
    assert_int_equal(qw_hub_space(temp_dir, 1, &err), QW_OK);
    assert_int_equal(qw_hub_space(temp_dir, UINT64_MAX, &err), QW_E_LIMIT);
    assert_int_equal(qw_hub_space(temp_path("none"), 1, &err), QW_E_NOT_FOUND);
    static const struct {
        uint64_t bytes;
        const char *text;
    } sizes[] = {{0, "0 bytes"},          {999, "999 bytes"},      {1000, "1 kB"},
                 {491400064, "491.4 MB"}, {999949999, "999.9 MB"}, {999950000, "1.00 GB"},
                 {1117320768, "1.12 GB"}, {UINT64_MAX, "18.45 EB"}};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        qw_hub_size_text(sizes[i].bytes, text);
        assert_string_equal(text, sizes[i].text);
    }
}

static void test_clone(void **state)
{
    (void)state;
    qw_hub_meter m = {0};
    char *data = NULL;
    size_t n;
    assert_int_equal(qw_file_write(temp_path("from"), "hello", 5, NULL), QW_OK);
    assert_int_equal(symlink("from", temp_path("link")), 0);
    assert_int_equal(qw_hub_clone(temp_path("link"), temp_path("to"), &m, NULL), QW_OK);
    struct stat st;
    assert_int_equal(lstat(temp_path("to"), &st), 0);
    assert_true(S_ISREG(st.st_mode));
    assert_int_equal(qw_file_read(temp_path("to"), 100, &data, &n, NULL), QW_OK);
    assert_string_equal(data, "hello");
    free(data);
    assert_int_not_equal(qw_hub_clone(temp_path("from"), temp_path("to"), &m, NULL),
                         QW_OK); /* never over something */
    assert_int_equal(mkfifo(temp_path("fifo"), 0600), 0);
    assert_int_equal(qw_hub_clone(temp_path("fifo"), temp_path("to2"), &m, NULL), QW_E_FORMAT);
}

/* Pulling a file from this machine, and the side file of packed weights that goes with it. */
static void test_side_file(void **state)
{
    (void)state;
    gw w = {0};
    qw_hub *hub = NULL;
    qw_gguf *g = NULL;
    qw_hub_model *m = calloc(1, sizeof(*m));
    qw_err err;
    char name[QW_HUB_NAME_MAX], identity[65], side[1000], unfinished[1010], other[1000], cache[700],
        found[QW_HUB_PATH_MAX];
    uint64_t freed, bytes;
    qw_hub_model *list;
    qw_hub_packed total;
    size_t n;
    gw_header(&w, 3, 1, 2);
    gw_kv_str(&w, "general.architecture", "qwen2");
    gw_kv_u32(&w, "general.file_type", 7);
    gw_info(&w, "t.weight", 8, 0, 0, 0);
    gw_pad(&w, 32);
    gw_fill(&w, 32, 0);
    gw_save(&w, temp_path("m.gguf"));
    gw_free(&w);
    assert_int_equal(setenv("QW_HOME", temp_path("store4"), 1), 0);
    assert_int_equal(qw_hub_open(NULL, &hub, &err), QW_OK);
    char spec[700];
    snprintf(spec, sizeof(spec), "%s", temp_path("m.gguf"));
    const qw_hub_pull_options options = {.spec = spec};
    assert_int_equal(qw_hub_pull(hub, &options, NULL, name, &err), QW_OK);
    assert_string_equal(name, "m");
    assert_int_equal(qw_hub_find(hub, "m", m, &err), QW_OK);
    assert_string_equal(m->architecture, "qwen2");
    assert_string_equal(m->quantization, "Q8_0");
    assert_string_equal(m->source, spec);
    assert_int_equal(qw_gguf_open(m->path, &g, &err), QW_OK);
    qw_gguf_identity(g, identity);
    qw_gguf_close(g);
    snprintf(cache, sizeof(cache), "%s/packed", temp_path("store4/cache"));
    assert_int_equal(qw_make_dirs(cache, &err), QW_OK);
    snprintf(side, sizeof(side), "%s/%s.qwp", cache, identity);
    identity[0] = identity[0] == '0' ? '1' : '0';
    snprintf(other, sizeof(other), "%s/%s.qwp", cache, identity);
    assert_true(qw_hub_packed_find(m->path, found, &bytes)); /* where it will be */
    assert_string_equal(found, side);
    assert_int_equal(bytes, 0);
    assert_false(qw_hub_packed_find(temp_path("none"), found, &bytes));
    snprintf(unfinished, sizeof(unfinished), "%s.x1Y2z3", side);
    assert_int_equal(qw_file_write(side, "abc", 3, &err), QW_OK);
    assert_int_equal(qw_file_write(unfinished, "abcde", 5, &err), QW_OK);
    assert_int_equal(qw_file_write(other, "x", 1, &err), QW_OK);
    assert_true(qw_hub_packed_find(m->path, found, &bytes));
    assert_int_equal(bytes, 3);
    assert_int_equal(qw_hub_list(hub, true, &list, &n, &err), QW_OK);
    assert_string_equal(list[0].name, "m");
    assert_int_equal(list[0].packed_bytes, 3);
    assert_int_equal(qw_hub_packed_total(list, n, &total, &err), QW_OK);
    free(list);
    assert_int_equal(total.n_files, 3);
    assert_int_equal(total.bytes, 9);
    assert_int_equal(total.other_bytes, 1);
    int used = open(side, O_RDONLY); /* a removed model's side file goes even while a process has it */
    assert_int_equal(flock(used, LOCK_SH), 0);
    assert_int_equal(qw_hub_remove(hub, "m", NULL, &freed, &err), QW_OK);
    close(used);
    assert_int_equal(freed, m->bytes + 8);
    assert_int_not_equal(access(side, F_OK), 0);
    assert_int_not_equal(access(unfinished, F_OK), 0);
    assert_int_equal(access(other, F_OK), 0);
    assert_int_equal(qw_hub_remove(hub, "m", NULL, &freed, &err), QW_E_NOT_FOUND);
    qw_hub_close(hub);
    free(m);
}

/* `qw rm --packed`: all that nobody uses, and nothing else. */
static void test_packed_clear(void **state)
{
    (void)state;
    qw_err err;
    qw_hub_packed_removal r;
    char paths[3][1000], cache[700];
    assert_int_equal(setenv("QW_HOME", temp_path("store5"), 1), 0);
    snprintf(cache, sizeof(cache), "%s/packed", temp_path("store5/cache"));
    assert_int_equal(qw_hub_packed_clear(&r, &err), QW_OK);
    assert_int_equal(r.n_removed + r.n_kept, 0);
    assert_int_not_equal(access(temp_path("store5"), F_OK), 0); /* nothing is created */
    assert_int_equal(qw_make_dirs(cache, &err), QW_OK);
    for (int i = 0; i < 3; i++) {
        snprintf(paths[i], sizeof(paths[i]), "%s/%c%s.qwp", cache, 'a' + i, sum_a + 1);
        assert_int_equal(qw_file_write(paths[i], "abcdef", (size_t)i + 1, &err), QW_OK);
    }
    int used = open(paths[1], O_RDONLY);
    assert_int_equal(flock(used, LOCK_SH), 0);
    assert_int_equal(qw_hub_packed_clear(&r, &err), QW_OK);
    assert_int_equal(r.n_removed, 2);
    assert_int_equal(r.freed_bytes, 4);
    assert_int_equal(r.n_kept, 1);
    assert_int_equal(r.kept_bytes, 2);
    assert_int_equal(access(paths[1], F_OK), 0);
    assert_int_not_equal(access(paths[0], F_OK), 0);
    assert_int_not_equal(access(paths[2], F_OK), 0);
    close(used);
    assert_int_equal(qw_hub_packed_clear(&r, &err), QW_OK);
    assert_int_equal(r.n_removed, 1);
    assert_int_equal(r.freed_bytes, 2);
}

/* ---- wheels and programs ----------------------------------------------------------------------- */

static void make_zip(const char *path, const char *member, const char *data, bool store)
{
    int code;
    zip_t *z = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, &code);
    assert_non_null(z);
    zip_source_t *s = zip_source_buffer(z, data, strlen(data), 0);
    zip_int64_t i = zip_file_add(z, member, s, 0);
    assert_true(i >= 0);
    assert_int_equal(zip_set_file_compression(z, (zip_uint64_t)i, store ? ZIP_CM_STORE : ZIP_CM_DEFLATE, 0),
                     0);
    assert_int_equal(zip_close(z), 0);
}

static qw_status append(const char *member, uint64_t bytes_max, uint64_t *appended)
{
    qw_hub_meter m = {0};
    int fd = open(temp_path("out"), O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    qw_status status =
        qw_hub_wheel_append(temp_path("w.whl"), member, fd, "out", bytes_max, appended, &m, 0, NULL);
    close(fd);
    return status;
}

static void test_wheel(void **state)
{
    (void)state;
    uint64_t got = 0;
    const char *text = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbb";
    for (int store = 0; store < 2; store++) {
        make_zip(temp_path("w.whl"), "p/data.bin", text, store);
        assert_int_equal(append("p/data.bin", 60, &got), QW_OK);
        assert_int_equal(got, 60);
        char *data = NULL;
        size_t n;
        assert_int_equal(qw_file_read(temp_path("out"), 1000, &data, &n, NULL), QW_OK);
        assert_string_equal(data, text);
        free(data);
        assert_int_equal(append("p/data.bin", 59, &got), QW_E_CORRUPT);
        assert_int_equal(append("p/other", 60, &got), QW_E_CORRUPT);
        assert_int_equal(append("../p/data.bin", 60, &got), QW_E_CORRUPT);
    }
    /* Every byte of the archive changed in turn: the text or an error, never anything else. */
    char *whole = NULL;
    size_t n;
    assert_int_equal(qw_file_read(temp_path("w.whl"), 10000, &whole, &n, NULL), QW_OK);
    for (size_t i = 0; i < n; i++) {
        whole[i] = (char)(whole[i] ^ 0x41);
        assert_int_equal(qw_file_write(temp_path("w.whl"), whole, n, NULL), QW_OK);
        if (append("p/data.bin", 60, &got) == QW_OK) {
            char *data = NULL;
            size_t bytes;
            assert_int_equal(qw_file_read(temp_path("out"), 1000, &data, &bytes, NULL), QW_OK);
            assert_string_equal(data, text);
            free(data);
        }
        whole[i] = (char)(whole[i] ^ 0x41);
    }
    free(whole);
    assert_int_equal(qw_file_write(temp_path("w.whl"), "not a zip file", 14, NULL), QW_OK);
    assert_int_equal(append("p/data.bin", 60, &got), QW_E_CORRUPT);
}

static void test_spawn(void **state)
{
    (void)state;
    qw_hub_meter m = {0};
    char tail[2048];
    int code = -1;
    const char *const shell[] = {
        "sh", "-c", "echo out; echo err >&2; echo \"$TMPDIR\"; read x || echo empty; exit 3", NULL};
    assert_int_equal(qw_hub_spawn(shell, temp_dir, &m, 0, 0, tail, &code, NULL), QW_OK);
    assert_int_equal(code, 3);
    char want[600];
    snprintf(want, sizeof(want), "out\nerr\n%s\nempty\n", temp_dir);
    assert_string_equal(tail, want);
    const char *const flood[] = {"sh", "-c", "yes 12345678 | head -c 100000; printf END", NULL};
    assert_int_equal(qw_hub_spawn(flood, temp_dir, &m, 0, 0, tail, &code, NULL), QW_OK);
    assert_int_equal(strlen(tail), 2047);
    assert_string_equal(tail + 2044, "END");
    const char *const none[] = {"no-such-program-of-qw", NULL};
    assert_int_equal(qw_hub_spawn(none, temp_dir, &m, 0, 0, tail, &code, NULL), QW_E_NOT_FOUND);
    qw_hub_watch watch = {.progress = stopper};
    qw_hub_meter stopped = {.watch = &watch};
    const char *const sleeper[] = {"sleep", "600", NULL};
    stop_at = 2;
    assert_int_equal(qw_hub_spawn(sleeper, temp_dir, &stopped, 0, 0, tail, &code, NULL), QW_E_CANCELLED);
}

/* ---- resolve ----------------------------------------------------------------------------------- */

static void test_resolve(void **state)
{
    (void)state;
    qw_hub_store s;
    qw_err err;
    char path[QW_HUB_PATH_MAX];
    assert_int_equal(setenv("QW_HOME", temp_path("store3"), 1), 0);
    assert_int_equal(qw_hub_resolve("dir/x", path, sizeof(path), &err), QW_OK);
    assert_string_equal(path, "dir/x");
    assert_int_equal(qw_hub_resolve("x.gguf", path, sizeof(path), &err), QW_OK);
    assert_int_equal(qw_hub_resolve("dir/x", path, 3, &err), QW_E_LIMIT);
    assert_int_equal(qw_hub_resolve("Qwen2.5-Coder", path, sizeof(path), &err), QW_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "qw pull qwen2.5-coder:0.5b"));
    assert_int_equal(qw_hub_resolve("a b", path, sizeof(path), &err), QW_E_ARG);
    fresh_store(&s, "store3");
    commit_a(&s, "qwen2.5-coder:1.5b");
    assert_int_equal(qw_hub_resolve("qwen2.5-coder", path, sizeof(path), &err),
                     QW_OK); /* the only one that begins so */
    assert_non_null(strstr(path, sum_a));
    commit_a(&s, "qwen2.5-coder:7b");
    assert_int_equal(qw_hub_resolve("qwen2.5-coder", path, sizeof(path), &err), QW_E_NOT_FOUND);
    assert_non_null(strstr(err.text, "qwen2.5-coder:1.5b, qwen2.5-coder:7b"));
    commit_a(&s, "qwen2.5-coder:0.5b");
    assert_int_equal(qw_hub_resolve("qwen2.5-coder", path, sizeof(path), &err),
                     QW_OK); /* the alias decides */
    assert_int_equal(qw_hub_resolve("qwen2.5-coder:7", path, sizeof(path), &err), QW_OK);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(qw_hub_resolve("qwen2.5-coder:7b", path, sizeof(path), &err), QW_E_CORRUPT);
    assert_non_null(strstr(err.text, "qw pull qwen2.5-coder:7b"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),          cmocka_unit_test(test_name_from_gguf),
        cmocka_unit_test(test_digests),        cmocka_unit_test(test_sha256),
        cmocka_unit_test(test_split),          cmocka_unit_test(test_distance),
        cmocka_unit_test(test_urls),           cmocka_unit_test(test_sources),
        cmocka_unit_test(test_catalog),        cmocka_unit_test(test_commit_and_remove),
        cmocka_unit_test(test_locks),          cmocka_unit_test(test_cancel_checksum),
        cmocka_unit_test(test_partial_record), cmocka_unit_test(test_space_and_sizes),
        cmocka_unit_test(test_clone),          cmocka_unit_test(test_wheel),
        cmocka_unit_test(test_spawn),          cmocka_unit_test(test_resolve),
        cmocka_unit_test(test_side_file),      cmocka_unit_test(test_packed_clear),
    };
    return cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
}
