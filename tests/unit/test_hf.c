/* test_hf.c: Hugging Face folders: good ones, and one with each thing wrong that docs/huggingface.md lists.
 *
 * A folder is made of a list of tensors and some JSON texts; a case changes one of them and wants the exact words of the
 * message. What the transforms compute is tests/parity/folders.py's affair.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/file.h"
#include "base/mem.h"
#include "formats/gguf.h"
#include "formats/safetensors.h"
#include "temp_dir.h"

/* ---- one safetensors file ----------------------------------------------------------------------- */

static void put_file(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    if (n > 0) assert_int_equal(fwrite(data, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* Length, header, and bytes that count up. */
static void put_safetensors(const char *path, const char *header, size_t n_header, size_t n_data)
{
    uint8_t *all = calloc(1, 8 + n_header + n_data + 1);
    assert_non_null(all);
    for (size_t i = 0; i < 8; i++) all[i] = (uint8_t)((uint64_t)n_header >> 8 * i);
    memcpy(all + 8, header, n_header);
    for (size_t i = 0; i < n_data; i++) all[8 + n_header + i] = (uint8_t)i;
    put_file(path, all, 8 + n_header + n_data);
    free(all);
}

static void test_safetensors_good(void **state)
{
    (void)state;
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],"
                                 "\"data_offsets\":[4,16]},\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
                                 "\"none\":{\"dtype\":\"I32\",\"shape\":[0,5],\"data_offsets\":[4,4]}}   ";
    qw_st_file f;
    qw_err err;
    const char *path = temp_path("good.safetensors");
    put_safetensors(path, header, sizeof header - 1, 16);
    assert_int_equal(qw_st_open(path, &f, &err), QW_OK);
    assert_int_equal(f.n, 3);
    assert_string_equal(f.tensors[0].name, "a");
    assert_int_equal(f.tensors[0].n_dims, 0);
    assert_int_equal(f.tensors[0].n, 1);
    assert_string_equal(f.tensors[1].name, "none");
    assert_int_equal(f.tensors[1].n, 0);
    assert_string_equal(f.tensors[2].name, "b");
    assert_true(qw_st_is(&f.tensors[2], "BF16") && f.tensors[2].shape[1] == 3 && f.tensors[2].bytes == 12);
    assert_int_equal(f.tensors[2].data[0], 4);
    qw_st_close(&f);
}

#define T(dtype, shape, offsets) "\"t\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
typedef struct st_case {
    const char *number, *header;
    size_t n_data;
    const char *want;
} st_case;

static const st_case st_cases[] = {
    {"3: UTF-8", "{\"\xff\":{}}", 0, "is not valid UTF-8"},
    {"4: leading space", " {}", 0, "the header is no JSON object followed by spaces"},
    {"4: an array", "[]", 0, "the header is no JSON object followed by spaces"},
    {"4: a newline after it", "{}\n", 0, "the header is no JSON object followed by spaces"},
    {"4: only spaces", "    ", 0, "the header is no JSON object followed by spaces"},
    {"5: no JSON", "{\"t\":}", 0, "no valid JSON in line 1"},
    {"5: twice", "{" T("U8", "[1]", "[0,1]") "," T("U8", "[1]", "[0,1]") "}", 1, "duplicate object key"},
    {"5: a fraction", "{" T("U8", "[1.0]", "[0,1]") "}", 1, "tensor 't': \"shape\": want integers from 0 to 2^53"},
    {"5: an exponent", "{" T("U8", "[1]", "[0,1e0]") "}", 1, "tensor 't': \"data_offsets\": want two integers from 0 to 2^53"},
    {"5: negative", "{" T("U8", "[-1]", "[0,1]") "}", 1, "tensor 't': \"shape\": want integers from 0 to 2^53"},
    {"5: above 2^53", "{" T("U8", "[9007199254740993]", "[0,1]") "}", 1, "want integers from 0 to 2^53"},
    {"5: not a number", "{" T("U8", "[NaN]", "[0,1]") "}", 1, "no valid JSON"},
    {"5: half a surrogate", "{\"\\ud800\":1}", 0, "no valid JSON"},
    {"5: a zero byte in a name", "{\"a\\u0000b\":1}", 0, "no valid JSON"},
    {"6: metadata is a list", "{\"__metadata__\":[]}", 0, "__metadata__ is no object"},
    {"6: metadata holds a number", "{\"__metadata__\":{\"a\":1}}", 0, "__metadata__: \"a\" is no text"},
    {"7: no object", "{\"t\":3}", 0, "tensor 't': want exactly \"dtype\", \"shape\" and \"data_offsets\""},
    {"7: a key more", "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1, "want exactly \"dtype\""},
    {"7: a key less", "{\"t\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, "want exactly \"dtype\""},
    {"8: dtype", "{" T("F7", "[1]", "[0,1]") "}", 1, "tensor 't': \"dtype\" is missing or unknown"},
    {"9: rank", "{" T("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]") "}", 1, "tensor 't': more than 8 dimensions"},
    {"10: elements", "{" T("U8", "[4294967296,4294967296]", "[0,0]") "}", 0, "tensor 't': more than 2^64 elements"},
    {"10: bits", "{" T("F64", "[4294967296,1073741824]", "[0,0]") "}", 0, "tensor 't': more than 2^64 bits"},
    {"10: half a byte", "{" T("F4", "[3]", "[0,2]") "}", 2, "tensor 't': does not end with a whole byte"},
    {"11: backwards", "{" T("U8", "[1]", "[2,1]") "}", 2, "tensor 't': bytes 2 to 1, the data has 2"},
    {"11: behind the end", "{" T("U8", "[3]", "[0,3]") "}", 2, "tensor 't': bytes 0 to 3, the data has 2"},
    {"12: size", "{" T("U8", "[3]", "[0,2]") "}", 2, "tensor 't': has 2 bytes, its shape asks for 3"},
    {"13: a hole", "{" T("U8", "[1]", "[1,2]") "}", 2, "tensor 't': begins at byte 1 and leaves a gap: want 0"},
    {"13: overlap", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}," T("U8", "[2]", "[1,3]") "}", 3,
     "tensor 't': begins at byte 1 and overlaps the one before it: want 2"},
    {"14: bytes after it", "{" T("U8", "[1]", "[0,1]") "}", 3, "2 bytes follow the last tensor: want none"},
    {"16: no name", "{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "a tensor's name has 0 bytes"},
};

static void test_safetensors_bad(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof st_cases / sizeof *st_cases; i++) {
        const st_case *c = &st_cases[i];
        qw_st_file f;
        qw_err err = {0};
        const char *path = temp_path("bad.safetensors");
        put_safetensors(path, c->header, strlen(c->header), c->n_data);
        qw_status status = qw_st_open(path, &f, &err);
        if (status == QW_OK || strstr(err.text, c->want) == NULL || strncmp(err.text, path, strlen(path)) != 0)
            fail_msg("%s: %s", c->number, status == QW_OK ? "is accepted" : err.text);
        qw_st_close(&f);
    }
}

static void refuse_bytes(const void *data, size_t n, const char *want)
{
    qw_st_file f;
    qw_err err = {0};
    put_file(temp_path("cut.safetensors"), data, n);
    assert_int_not_equal(qw_st_open(temp_path("cut.safetensors"), &f, &err), QW_OK);
    if (strstr(err.text, want) == NULL) fail_msg("want \"%s\", have \"%s\"", want, err.text);
    qw_st_close(&f);
}

static void test_safetensors_lengths(void **state)
{
    (void)state;
    refuse_bytes("1234567", 7, "the file is cut short: 7 bytes are no safetensors header");          /* 1 */
    refuse_bytes("\x03\0\0\0\0\0\0\0{}", 10, "the file is cut short: a header of 3 bytes, 2 remain"); /* 2 */
    refuse_bytes("\x01\xe1\xf5\x05\0\0\0\0{}", 10, "a header of 100000001 bytes, the limit is 100000000");
    refuse_bytes("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, "a header of 18446744073709551615 bytes");
    refuse_bytes("", 0, "the file is empty");
}

/* A long name: in a header that is built. */
static void test_safetensors_long_name(void **state)
{
    (void)state;
    char header[1024], name[600];
    qw_st_file f;
    qw_err err = {0};
    memset(name, 'n', sizeof name);
    name[513] = '\0';
    int n = snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name);
    put_safetensors(temp_path("long.safetensors"), header, (size_t)n, 1);
    assert_int_equal(qw_st_open(temp_path("long.safetensors"), &f, &err), QW_E_FORMAT);
    assert_non_null(strstr(err.text, "a tensor's name has 513 bytes, want 1 to 512"));
    qw_st_close(&f);
}

/* Any prefix of a good file is refused, and any flipped bit is refused or changes nothing that leads outside. */
static void test_safetensors_cut_and_flipped(void **state)
{
    (void)state;
    static const char header[] = "{\"a\":{\"dtype\":\"F16\",\"shape\":[2,2],\"data_offsets\":[0,8]}}";
    const char *path = temp_path("flip.safetensors");
    char *data = NULL;
    size_t n = 0;
    put_safetensors(path, header, sizeof header - 1, 8);
    assert_int_equal(qw_file_read(path, 4096, &data, &n, NULL), QW_OK);
    for (size_t cut = 1; cut < n; cut++) {
        qw_st_file f;
        put_file(path, data, cut);
        assert_int_not_equal(qw_st_open(path, &f, NULL), QW_OK);
        qw_st_close(&f);
    }
    for (size_t bit = 0; bit < 8 * (n - 8); bit++) {
        qw_st_file f;
        data[bit / 8] = (char)(data[bit / 8] ^ 1 << bit % 8);
        put_file(path, data, n);
        if (qw_st_open(path, &f, NULL) == QW_OK)
            for (size_t i = 0; i < f.n; i++) {
                const uint8_t *end = qw_map_data(f.map) + qw_map_bytes(f.map);
                assert_true(f.tensors[i].bytes == 0 || (f.tensors[i].data > qw_map_data(f.map) && f.tensors[i].data < end));
                assert_true(f.tensors[i].bytes <= (size_t)(end - f.tensors[i].data));
            }
        qw_st_close(&f);
        data[bit / 8] = (char)(data[bit / 8] ^ 1 << bit % 8);
    }
    free(data);
}

/* ---- folders ------------------------------------------------------------------------------------ */

typedef struct tensor {
    char name[96], dtype[12];
    uint64_t shape[3]; /* 0: no such dimension */
} tensor;

typedef struct folder {
    tensor tensors[64];
    size_t n;
    char config[2048];
    char path[600];
} folder;

static void add(folder *f, const char *name, uint64_t a, uint64_t b)
{
    tensor *t = &f->tensors[f->n++];
    snprintf(t->name, sizeof t->name, "%s", name);
    snprintf(t->dtype, sizeof t->dtype, "F32");
    t->shape[0] = a;
    t->shape[1] = b;
}

static tensor *find(folder *f, const char *name)
{
    for (size_t i = 0; i < f->n; i++)
        if (strcmp(f->tensors[i].name, name) == 0) return &f->tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

/* qwen3, one layer: 32 wide, 2 heads of 16, 1 for keys and values, 8 tokens. */
static void make_good(folder *f)
{
    static int n_made;
    *f = (folder){0};
    snprintf(f->config, sizeof f->config,
             "{\"model_type\":\"qwen3\",\"num_hidden_layers\":1,\"hidden_size\":32,\"num_attention_heads\":2,"
             "\"num_key_value_heads\":1,\"head_dim\":16,\"intermediate_size\":64,\"max_position_embeddings\":128,"
             "\"rope_theta\":10000.0,\"tie_word_embeddings\":true}");
    add(f, "model.embed_tokens.weight", 8, 32);
    add(f, "model.layers.0.input_layernorm.weight", 32, 0);
    add(f, "model.layers.0.self_attn.q_proj.weight", 32, 32);
    add(f, "model.layers.0.self_attn.k_proj.weight", 16, 32);
    add(f, "model.layers.0.self_attn.v_proj.weight", 16, 32);
    add(f, "model.layers.0.self_attn.o_proj.weight", 32, 32);
    add(f, "model.layers.0.self_attn.q_norm.weight", 16, 0);
    add(f, "model.layers.0.self_attn.k_norm.weight", 16, 0);
    add(f, "model.layers.0.post_attention_layernorm.weight", 32, 0);
    add(f, "model.layers.0.mlp.gate_proj.weight", 64, 32);
    add(f, "model.layers.0.mlp.up_proj.weight", 64, 32);
    add(f, "model.layers.0.mlp.down_proj.weight", 32, 64);
    add(f, "model.norm.weight", 32, 0);
    snprintf(f->path, sizeof f->path, "%s/folder-%d", temp_dir, n_made++);
    assert_int_equal(mkdir(f->path, 0700), 0);
}

static const char *in(const folder *f, const char *name)
{
    static char path[900];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    return path;
}

static void put_text(const folder *f, const char *name, const char *text)
{
    put_file(in(f, name), text, strlen(text));
}

/* Tensors [first, end) as a file. */
static void put_tensors(const folder *f, const char *name, size_t first, size_t end)
{
    qw_buf header;
    size_t at = 0;
    qw_buf_init(&header, 1 << 20, "header");
    for (size_t i = first; i < end; i++) {
        const tensor *t = &f->tensors[i];
        size_t bytes = strcmp(t->dtype, "F32") == 0 || strcmp(t->dtype, "I32") == 0 ? 4 : strcmp(t->dtype, "F8_E4M3") == 0 ? 1 : 2;
        qw_status s = qw_buf_printf(&header, NULL, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i == first ? "{" : ",", t->name, t->dtype);
        for (size_t d = 0; d < 3 && t->shape[d]; d++) {
            bytes *= t->shape[d];
            if (s == QW_OK) s = qw_buf_printf(&header, NULL, "%s%llu", d ? "," : "", (unsigned long long)t->shape[d]);
        }
        if (s == QW_OK) s = qw_buf_printf(&header, NULL, "],\"data_offsets\":[%zu,%zu]}", at, at + bytes);
        assert_int_equal(s, QW_OK);
        at += bytes;
    }
    assert_int_equal(qw_buf_add_str(&header, "}", NULL), QW_OK);
    put_safetensors(in(f, name), header.data, header.n, at);
    qw_buf_free(&header);
}

static void put_folder(const folder *f)
{
    put_text(f, "config.json", f->config);
    put_tensors(f, "model.safetensors", 0, f->n);
}

static void refuse(const folder *f, const char *want)
{
    qw_gguf *g = NULL;
    qw_err err = {0};
    qw_status status = qw_gguf_open(f->path, &g, &err);
    if (status == QW_OK || strstr(err.text, want) == NULL)
        fail_msg("want \"%s\", have \"%s\"", want, status == QW_OK ? "(it is accepted)" : err.text);
}

static void test_folder_good(void **state)
{
    (void)state;
    folder f;
    qw_gguf *g = NULL, *again = NULL;
    qw_err err;
    uint64_t n = 0;
    char a[65], b[65];
    make_good(&f);
    put_folder(&f);
    assert_int_equal(qw_gguf_open(f.path, &g, &err), QW_OK);
    assert_string_equal(qw_gguf_path(g), f.path);
    assert_int_equal(qw_gguf_n_tensors(g), f.n);
    assert_int_equal(qw_gguf_get_u64(g, "qwen3.attention.key_length", &n, &err), QW_OK);
    assert_int_equal(n, 16);
    const qw_tensor *t = qw_gguf_find_tensor(g, "blk.0.ffn_down.weight");
    assert_non_null(t);
    assert_true(t->ne[0] == 64 && t->ne[1] == 32 && t->type == QW_TYPE_F32 && t->data != NULL && t->source == NULL);
    assert_false(qw_gguf_map_failed(g));
    assert_non_null(strstr(qw_gguf_first_file(g), "/model.safetensors"));
    assert_string_equal(qw_gguf_note(g), "there is no tokenizer.json: only token ids can be used\n");
    assert_int_equal(qw_gguf_open(f.path, &again, &err), QW_OK);
    qw_gguf_identity(g, a);
    qw_gguf_identity(again, b);
    assert_string_equal(a, b);
    qw_gguf_close(again);
    /* Another configuration is another model, and so is another type of its weights. */
    f.config[strlen(f.config) - 1] = ' ';
    strcat(f.config, "}");
    put_text(&f, "config.json", f.config);
    assert_int_equal(qw_gguf_open(f.path, &again, &err), QW_OK);
    qw_gguf_identity(again, b);
    assert_string_not_equal(a, b);
    qw_gguf_close(again);
    assert_int_equal(qw_gguf_open_as(f.path, &(qw_gguf_options){.quantize = true, .type = QW_TYPE_Q8_0}, &again, &err), QW_OK);
    qw_gguf_identity(again, a);
    assert_string_not_equal(a, b);
    qw_gguf_close(again);
    qw_gguf_close(g);
}

static void test_folder_without(void **state)
{
    (void)state;
    folder f;
    make_good(&f);
    refuse(&f, "is a folder without config.json: want a GGUF file or a Hugging Face folder");
    put_text(&f, "config.json", f.config);
    refuse(&f, "has neither model.safetensors nor model.safetensors.index.json");
    put_text(&f, "pytorch_model.bin", "x");
    refuse(&f, "has its weights in pytorch_model.bin, which can hold programs and is never read"); /* 20 */
    put_folder(&f);
    put_text(&f, "config.json", "{\"a\":1,\"a\":2}"); /* 18 */
    refuse(&f, "/config.json: no valid JSON in line 1, column");
    put_text(&f, "config.json", "[]");
    refuse(&f, "/config.json: want a JSON object");
    char *large = calloc(1, (1 << 20) + 1);
    assert_non_null(large);
    memset(large, ' ', 1 << 20);
    put_text(&f, "config.json", large);
    refuse(&f, "/config.json: no valid JSON");
    put_file(in(&f, "config.json"), large, (1 << 20) + 1);
    refuse(&f, "/config.json: 1048577 bytes, the limit is 1048576");
    free(large);
}

typedef struct config_case {
    const char *from, *to, *want; /* a text of the good configuration is replaced */
} config_case;

static const config_case config_cases[] = {
    {"\"qwen3\"", "\"llama\"", "config.json: model_type \"llama\" is not supported; this version reads qwen2,"},
    {"\"model_type\":\"qwen3\",", "", "model_type \"\" is not supported"},
    {"\"num_hidden_layers\":1", "\"num_hidden_layers\":0", "\"num_hidden_layers\" is 0, want 1 to 1024"},
    {"\"num_hidden_layers\":1", "\"num_hidden_layers\":1.0", "\"num_hidden_layers\" is no integer"},
    {"\"num_hidden_layers\":1,", "", "\"num_hidden_layers\" is missing"},
    {"\"hidden_size\":32", "\"hidden_size\":\"32\"", "\"hidden_size\" is no integer"},
    {"\"num_attention_heads\":2", "\"num_attention_heads\":-2", "\"num_attention_heads\" is -2, want 1 to 65536"},
    {"\"max_position_embeddings\":128,", "", "\"max_position_embeddings\" is missing"},
    {"\"head_dim\":16", "\"head_dim\":16,\"hidden_act\":\"gelu\"", "hidden_act \"gelu\" is not supported"},
    {"\"head_dim\":16", "\"head_dim\":16,\"rms_norm_eps\":\"x\"", "\"rms_norm_eps\" is no number"},
    {"\"head_dim\":16", "\"head_dim\":16,\"use_sliding_window\":true", "use_sliding_window is not supported"},
    {"\"head_dim\":16", "\"head_dim\":16,\"layer_types\":[\"sliding_attention\"]",
     "layer_types[0] is \"sliding_attention\", which is not supported"},
    {"\"head_dim\":16", "\"head_dim\":16,\"layer_types\":[]", "layer_types has 0 entries for 1 layers"},
    {"\"rope_theta\":10000.0", "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}", "rope_type \"linear\" is not supported"},
    {"\"rope_theta\":10000.0", "\"rope_scaling\":{\"type\":\"yarn\"}", "\"factor\" is missing"},
    {"\"rope_theta\":10000.0", "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":0.5}", "the yarn factor is 0.5, want 1 or more"},
    {"\"rope_theta\":10000.0", "\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2,\"truncate\":false}",
     "yarn with \"truncate\": false is not supported"},
    {"\"rope_theta\":10000.0", "\"rope_parameters\":{\"partial_rotary_factor\":0}", "partial_rotary_factor is 0, want more than 0"},
    {"\"tie_word_embeddings\":true", "\"tie_word_embeddings\":1", "\"tie_word_embeddings\" is neither true nor false"},
    {"\"tie_word_embeddings\":true", "\"tie_word_embeddings\":false", "tensor 'lm_head.weight' is missing"},
    {"\"head_dim\":16", "\"head_dim\":16,\"eos_token_id\":[-1]", "eos_token_id: want an id or a list of ids"},
    {"\"head_dim\":16", "\"head_dim\":16,\"quantization_config\":{\"quant_method\":\"bitsandbytes\"}",
     "quant_method \"bitsandbytes\" is not supported; fp8, gptq and awq are"},
    {"\"head_dim\":16", "\"head_dim\":16,\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":8,\"group_size\":32}",
     "weights of 8 bits are not supported"},
    {"\"head_dim\":16", "\"head_dim\":16,\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}",
     "FP8 in the format \"e5m2\" is not supported"},
    {"\"head_dim\":16", "\"head_dim\":16,\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128]}",
     "weight_block_size: want two integers from 1"},
    {"\"head_dim\":16", "\"head_dim\":16,\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":32,"
     "\"version\":\"gemv\"}", "AWQ in the layout \"gemv\" is not supported"},
};

static void test_config_bad(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof config_cases / sizeof *config_cases; i++) {
        const config_case *c = &config_cases[i];
        folder f;
        char config[sizeof f.config];
        make_good(&f);
        const char *at = strstr(f.config, c->from);
        assert_non_null(at);
        snprintf(config, sizeof config, "%.*s%s%s", (int)(at - f.config), f.config, c->to, at + strlen(c->from));
        memcpy(f.config, config, sizeof config);
        put_folder(&f);
        refuse(&f, c->want);
    }
}

static void test_tensors_bad(void **state)
{
    (void)state;
    folder f;
    make_good(&f);
    find(&f, "model.layers.0.self_attn.v_proj.weight")->name[0] = 'x';
    find(&f, "model.layers.0.mlp.up_proj.weight")->name[0] = 'y';
    put_folder(&f);
    refuse(&f, "2 faults: tensor 'model.layers.0.self_attn.v_proj.weight' is missing; tensor 'model.layers.0.mlp.up_proj.weight'");

    make_good(&f);
    add(&f, "model.layers.0.self_attn.extra.weight", 4, 4);
    put_folder(&f);
    refuse(&f, "model.safetensors: tensor 'model.layers.0.self_attn.extra.weight' is not part of the qwen3 architecture");

    make_good(&f);
    add(&f, "model.layers.0.mlp.up_proj.bias", 64, 0); /* not all zero */
    put_folder(&f);
    refuse(&f, "tensor 'model.layers.0.mlp.up_proj.bias' is not part of the qwen3 architecture");

    make_good(&f);
    find(&f, "model.embed_tokens.weight")->name[0] = 'x';
    put_folder(&f);
    refuse(&f, "tensor 'model.embed_tokens.weight' is missing");

    make_good(&f);
    snprintf(find(&f, "model.norm.weight")->dtype, 12, "I32");
    put_folder(&f);
    refuse(&f, "model.safetensors: tensor 'model.norm.weight' is of type I32, which is not supported here");

    make_good(&f);
    snprintf(find(&f, "model.layers.0.mlp.up_proj.weight")->dtype, 12, "F8_E4M3");
    put_folder(&f);
    refuse(&f, "tensor 'model.layers.0.mlp.up_proj.weight' is there, 'model.layers.0.mlp.up_proj.weight_scale_inv' is missing");
    add(&f, "model.layers.0.mlp.up_proj.weight_scale_inv", 1, 1);
    put_folder(&f);
    refuse(&f, "is FP8, but config.json has no quantization_config of fp8");

    make_good(&f);
    snprintf(find(&f, "model.layers.0.mlp.up_proj.weight")->name, 96, "model.layers.0.mlp.up_proj.qweight");
    put_folder(&f);
    refuse(&f, "tensor 'model.layers.0.mlp.up_proj.qweight' is there, 'model.layers.0.mlp.up_proj.qzeros' is missing");
    add(&f, "model.layers.0.mlp.up_proj.qzeros", 1, 8);
    add(&f, "model.layers.0.mlp.up_proj.scales", 1, 64);
    put_folder(&f);
    refuse(&f, "is quantised, but config.json has no quantization_config of gptq or awq");
}

/* Parts that belong to a quantised matrix, in shapes that do not fit it. */
static void test_quantised_bad(void **state)
{
    (void)state;
    static const struct {
        const char *part;
        uint64_t rows, columns;
        const char *dtype, *want;
    } cases[] = {
        {"qweight", 4, 64, "F32", "mlp.up_proj.qweight': the shape does not fit: want I32 [inputs / 8, outputs]"},
        {"qzeros", 2, 8, "I32", "mlp.up_proj.qzeros': the shape does not fit: want I32 [groups, outputs / 8]"},
        {"qzeros", 1, 8, "F32", "mlp.up_proj.qzeros': the shape does not fit"},
        {"scales", 1, 63, "F16", "mlp.up_proj.scales': the shape does not fit: want [groups, outputs]"},
        {"scales", 1, 64, "I32", "mlp.up_proj.scales' is of type I32, which is not supported here: want BF16, F16 or F32"},
        {"g_idx", 31, 0, "I32", "mlp.up_proj.g_idx': the shape does not fit: want I32 [inputs]"},
        {"g_idx", 32, 0, "I32", "mlp.up_proj.g_idx': element 0 is no group"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        folder f;
        make_good(&f);
        snprintf(f.config + strlen(f.config) - 1, 200,
                 ",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32}}");
        snprintf(find(&f, "model.layers.0.mlp.up_proj.weight")->name, 96, "model.layers.0.mlp.up_proj.qweight");
        tensor *w = find(&f, "model.layers.0.mlp.up_proj.qweight");
        w->shape[0] = 4;
        w->shape[1] = 64;
        snprintf(w->dtype, 12, "I32");
        add(&f, "model.layers.0.mlp.up_proj.qzeros", 1, 8);
        snprintf(find(&f, "model.layers.0.mlp.up_proj.qzeros")->dtype, 12, "I32");
        add(&f, "model.layers.0.mlp.up_proj.scales", 1, 64);
        snprintf(find(&f, "model.layers.0.mlp.up_proj.scales")->dtype, 12, "F16");
        char name[96];
        snprintf(name, sizeof name, "model.layers.0.mlp.up_proj.%s", cases[i].part);
        if (strcmp(cases[i].part, "g_idx") == 0) add(&f, name, 1, 0);
        tensor *t = find(&f, name);
        t->shape[0] = cases[i].rows;
        t->shape[1] = cases[i].columns;
        snprintf(t->dtype, 12, "%s", cases[i].dtype);
        put_folder(&f);
        refuse(&f, cases[i].want);
    }
}

/* qwen3_moe with fused experts in FP8: 3 of 64, [3, 128, 32] and [3, 32, 64], in blocks of 32 by 32. */
static void make_fused(folder *f)
{
    make_good(f);
    snprintf(f->config, sizeof f->config,
             "{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":1,\"hidden_size\":32,\"num_attention_heads\":2,"
             "\"num_key_value_heads\":1,\"head_dim\":16,\"moe_intermediate_size\":64,\"max_position_embeddings\":128,"
             "\"num_experts\":3,\"num_experts_per_tok\":2,\"tie_word_embeddings\":true,"
             "\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[32,32]}}");
    *find(f, "model.layers.0.mlp.gate_proj.weight") = (tensor){"model.layers.0.mlp.gate.weight", "F32", {3, 32, 0}};
    *find(f, "model.layers.0.mlp.up_proj.weight") = (tensor){"model.layers.0.mlp.experts.gate_up_proj", "F8_E4M3", {3, 128, 32}};
    *find(f, "model.layers.0.mlp.down_proj.weight") = (tensor){"model.layers.0.mlp.experts.down_proj", "F8_E4M3", {3, 32, 64}};
    add(f, "model.layers.0.mlp.experts.gate_up_proj_scale_inv", 3, 4);
    add(f, "model.layers.0.mlp.experts.down_proj_scale_inv", 3, 1);
    find(f, "model.layers.0.mlp.experts.gate_up_proj_scale_inv")->shape[2] = 1;
    find(f, "model.layers.0.mlp.experts.down_proj_scale_inv")->shape[2] = 2;
}

static void test_fused_fp8(void **state)
{
    (void)state;
    static const char up[] = "model.layers.0.mlp.experts.gate_up_proj", scales[] = "model.layers.0.mlp.experts.gate_up_proj_scale_inv";
    folder f;
    qw_gguf *g = NULL;
    qw_err err;
    make_fused(&f);
    put_folder(&f);
    if (qw_gguf_open(f.path, &g, &err) != QW_OK) fail_msg("%s", err.text);
    const qw_tensor *t = qw_gguf_find_tensor(g, "blk.0.ffn_up_exps.weight");
    assert_true(t && t->type == QW_TYPE_F32 && t->source && t->ne[0] == 32 && t->ne[1] == 64 && t->ne[2] == 3);
    qw_gguf_close(g);
    static const struct {
        uint64_t shape[3];
        const char *dtype, *want;
    } cases[] = {
        {{3, 3, 1}, "F32", "gate_up_proj_scale_inv': the shape does not fit: want [experts, blocks of rows, blocks of columns]"},
        {{2, 4, 1}, "F32", "gate_up_proj_scale_inv': the shape does not fit"},
        {{3, 4, 2}, "F32", "gate_up_proj_scale_inv': the shape does not fit"},
        {{3, 4, 0}, "F32", "gate_up_proj_scale_inv': the shape does not fit"},
        {{3, 4, 1}, "I32", "gate_up_proj_scale_inv' is of type I32, which is not supported here"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        make_fused(&f);
        memcpy(find(&f, scales)->shape, cases[i].shape, sizeof cases[i].shape);
        snprintf(find(&f, scales)->dtype, 12, "%s", cases[i].dtype);
        put_folder(&f);
        refuse(&f, cases[i].want);
    }
    make_fused(&f);
    find(&f, scales)->name[0] = 'x';
    put_folder(&f);
    refuse(&f, "experts.gate_up_proj' is FP8, and its scales 'model.layers.0.mlp.experts.gate_up_proj_scale_inv' are missing");
    make_fused(&f);
    find(&f, up)->shape[1] = 32; /* transposed, and so is down */
    find(&f, up)->shape[2] = 128;
    find(&f, "model.layers.0.mlp.experts.down_proj")->shape[1] = 64;
    find(&f, "model.layers.0.mlp.experts.down_proj")->shape[2] = 32;
    put_folder(&f);
    refuse(&f, "experts.*' are [32,128] and [64,32] in FP8: want [128,32] and [32,64]");
    make_fused(&f);
    char *method = strstr(f.config, "fp8");
    memcpy(method, "awq", 3);
    strcpy(strstr(f.config, "\"weight_block_size\""), "\"bits\":4,\"group_size\":32}}");
    put_folder(&f);
    refuse(&f, "experts.gate_up_proj' is FP8, but config.json has no quantization_config of fp8");
}

/* ---- several files ------------------------------------------------------------------------------ */

static void put_index(const folder *f, const char *second, const char *more)
{
    qw_buf text;
    qw_buf_init(&text, 1 << 20, "index");
    assert_int_equal(qw_buf_add_str(&text, "{\"metadata\":{\"total_size\":1},\"weight_map\":{", NULL), QW_OK);
    for (size_t i = 0; i < f->n; i++)
        assert_int_equal(qw_buf_printf(&text, NULL, "%s\"%s\":\"%s\"", i ? "," : "", f->tensors[i].name,
                                       i < 5 ? "model-1.safetensors" : second), QW_OK);
    assert_int_equal(qw_buf_printf(&text, NULL, "%s}}", more), QW_OK);
    put_text(f, "model.safetensors.index.json", qw_buf_str(&text));
    qw_buf_free(&text);
}

static void test_index(void **state)
{
    (void)state;
    folder f;
    qw_gguf *g = NULL;
    qw_err err;
    make_good(&f);
    put_text(&f, "config.json", f.config);
    put_tensors(&f, "model-1.safetensors", 0, 5);
    put_tensors(&f, "model-2.safetensors", 5, f.n);
    put_index(&f, "model-2.safetensors", "");
    assert_int_equal(qw_gguf_open(f.path, &g, &err), QW_OK);
    assert_non_null(strstr(qw_gguf_note(g), "model.safetensors.index.json says 1 bytes of tensors, there are "));
    qw_gguf_close(g);
    /* 17 */
    put_index(&f, "../model-2.safetensors", "");
    refuse(&f, "\"../model-2.safetensors\" is no name of a safetensors file");
    put_index(&f, "..safetensors", "");
    refuse(&f, "is no name of a safetensors file");
    put_index(&f, "model-2.bin", "");
    refuse(&f, "\"model-2.bin\" is no name of a safetensors file");
    put_index(&f, "model-3.safetensors", "");
    refuse(&f, "model-2.safetensors: is not in model.safetensors.index.json");
    put_index(&f, "model-2.safetensors", ",\"b\":\"model-4.safetensors\"");
    refuse(&f, "model-4.safetensors: cannot be opened: No such file or directory");
    put_index(&f, "model-2.safetensors", ",\"b\":\"model-2.safetensors\"");
    refuse(&f, "model.safetensors.index.json: tensor 'b': model-2.safetensors does not have it");
    put_index(&f, "model-1.safetensors", ",\"b\":\"model-2.safetensors\"");
    refuse(&f, "model-2.safetensors: tensor 'model.layers.0.self_attn.o_proj.weight': the index has it in model-1.safetensors");
    put_index(&f, "model-2.safetensors", ",\"b\":7");
    refuse(&f, "tensor 'b': \"(no text)\" is no name of a safetensors file");
    put_text(&f, "model.safetensors.index.json", "{\"weight_map\":[]}");
    refuse(&f, "model.safetensors.index.json: \"weight_map\" is no object");
    put_text(&f, "model.safetensors.index.json", "{\"weight_map\":{}}");
    refuse(&f, "model.safetensors.index.json: names no file");
    put_tensors(&f, "model-2.safetensors", 4, f.n); /* one tensor is in both */
    put_index(&f, "model-2.safetensors", "");
    refuse(&f, "model-2.safetensors: tensor 'model.layers.0.self_attn.v_proj.weight': the index has it in model-1.safetensors");
}

/* ---- text --------------------------------------------------------------------------------------- */

#define REGEX                                                                                                       \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|" \
    "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
#define TOKENIZER(vocab, merges, added)                                                                             \
    "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" REGEX "\"}},\"model\":{\"type\":\"BPE\",\"vocab\":" vocab \
    ",\"merges\":" merges "},\"added_tokens\":" added "}"

static void test_text_bad(void **state)
{
    (void)state;
    static const struct {
        const char *text, *want;
    } cases[] = {
        {"{", "tokenizer.json: no valid JSON"},
        {"{\"model\":{\"type\":\"Unigram\"}}", "tokenizer.json: the model's type is \"Unigram\"; the Qwen models have \"BPE\""},
        {"{\"model\":{\"type\":\"BPE\"}}", "tokenizer.json: text is cut by an expression that no Qwen model has"},
        {TOKENIZER("[]", "[]", "[]"), "tokenizer.json: model.vocab is no object"},
        {TOKENIZER("{\"a\":8}", "[]", "[]"), "tokenizer.json: token \"a\" has id 8, the embedding has 8 rows"},
        {TOKENIZER("{\"a\":-1}", "[]", "[]"), "token \"a\" has id -1"},
        {TOKENIZER("{\"a\":1,\"b\":1}", "[]", "[]"), "tokens \"a\" and \"b\" have the same id 1"},
        {TOKENIZER("{\"a\":1}", "[]", "[{\"id\":1,\"content\":\"b\"}]"), "tokens \"a\" and \"b\" have the same id 1"},
        {TOKENIZER("{\"a\":1}", "[]", "[{\"id\":2}]"), "added_tokens[0] has no content"},
        {TOKENIZER("{\"a\":1}", "{}", "[]"), "model.merges: want a list"},
        {TOKENIZER("{\"a\":1}", "[[\"a\"]]", "[]"), "model.merges[0] is no pair of texts"},
    };
    folder f;
    make_good(&f);
    put_folder(&f);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put_text(&f, "tokenizer.json", cases[i].text);
        refuse(&f, cases[i].want);
    }
    put_text(&f, "tokenizer.json", TOKENIZER("{\"a\":0}", "[]", "[]"));
    put_text(&f, "generation_config.json", "{\"eos_token_id\":8}");
    refuse(&f, "eos_token_id is 8, but there are 8 tokens");
    put_text(&f, "generation_config.json", "{\"eos_token_id\":\"x\"}");
    refuse(&f, "generation_config.json: eos_token_id: want an id or a list of ids");
    put_text(&f, "generation_config.json", "{\"temperature\":\"hot\"}");
    refuse(&f, "generation_config.json: \"temperature\" is no number");
    put_text(&f, "generation_config.json", "{\"top_k\":-1}");
    refuse(&f, "generation_config.json: \"top_k\" is -1, want 0 to 2147483647");
    put_text(&f, "generation_config.json", "{\"do_sample\":false,\"temperature\":\"hot\"}"); /* not looked at */
    put_text(&f, "chat_template.jinja", "\xff");
    refuse(&f, "chat_template.jinja: is not valid UTF-8");
}

/* ---- rows ---------------------------------------------------------------------------------------- */

/* Made rows do not depend on how they are asked for. */
static void test_rows_in_pieces(void **state)
{
    (void)state;
    folder f;
    qw_gguf *g = NULL;
    qw_err err;
    make_good(&f);
    put_folder(&f);
    assert_int_equal(qw_gguf_open_as(f.path, &(qw_gguf_options){.quantize = true, .type = QW_TYPE_Q8_0}, &g, &err), QW_OK);
    const qw_tensor *t = qw_gguf_find_tensor(g, "blk.0.ffn_up.weight");
    assert_true(t->type == QW_TYPE_Q8_0 && t->data == NULL && t->source != NULL);
    assert_int_equal(t->bytes, 64 * 34);
    uint8_t *whole = malloc(t->bytes), *pieces = malloc(t->bytes), *scratch = NULL;
    assert_int_equal(qw_alloc_aligned(&scratch, qw_tensor_scratch(t), "scratch", NULL), QW_OK);
    qw_tensor_read(t, 0, 64, whole, scratch);
    for (size_t row = 0, n = 1; row < 64; row += n, n = n % 7 + 1) {
        if (n > 64 - row) n = 64 - row;
        qw_tensor_read(t, row, n, pieces + row * 34, scratch);
    }
    assert_memory_equal(whole, pieces, t->bytes);
    /* Vectors stay as they are. */
    assert_int_equal(qw_gguf_find_tensor(g, "blk.0.attn_norm.weight")->type, QW_TYPE_F32);
    qw_free_aligned(scratch, qw_tensor_scratch(t));
    free(whole);
    free(pieces);
    qw_gguf_close(g);
    assert_int_equal(qw_gguf_options_parse("q9", &(qw_gguf_options){0}, &err), QW_E_ARG);
    assert_non_null(strstr(err.text, "\"q9\" is no type to quantise to"));
    assert_int_equal(qw_gguf_options_parse("iq2_xxs", &(qw_gguf_options){0}, &err), QW_E_ARG); /* only read */
    assert_int_equal(qw_gguf_options_parse("MXFP4", &(qw_gguf_options){0}, &err), QW_OK);
}

/* Pages of the files may be dropped, memory that is not theirs may not. */
static void test_drop_pages(void **state)
{
    (void)state;
    folder f;
    qw_gguf *g = NULL;
    make_good(&f);
    put_folder(&f);
    assert_int_equal(qw_gguf_open(f.path, &g, NULL), QW_OK);
    const qw_tensor *norm = qw_gguf_find_tensor(g, "blk.0.attn_norm.weight"), *up = qw_gguf_find_tensor(g, "blk.0.ffn_up.weight");
    uint8_t *a = malloc(norm->bytes), *b = malloc(up->bytes);
    memcpy(a, norm->data, norm->bytes);
    memcpy(b, up->data, up->bytes);
    qw_gguf_drop_pages(g, norm->data, norm->bytes);
    qw_gguf_drop_pages(g, up->data, up->bytes);
    qw_gguf_drop_pages(g, NULL, 0);
    assert_memory_equal(a, norm->data, norm->bytes);
    assert_memory_equal(b, up->data, up->bytes);
    free(a);
    free(b);
    qw_gguf_close(g);
}

/* A shard that shrinks ends the model, not the process. */
static void test_shrinks(void **state)
{
    (void)state;
    folder f;
    qw_gguf *g = NULL;
    make_good(&f);
    put_folder(&f);
    assert_int_equal(qw_gguf_open(f.path, &g, NULL), QW_OK);
    assert_int_equal(truncate(in(&f, "model.safetensors"), 100), 0);
    const qw_tensor *t = qw_gguf_find_tensor(g, "blk.0.ffn_down.weight");
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < t->bytes; i++) sum = (uint8_t)(sum + t->data[i]);
    assert_true(qw_gguf_map_failed(g));
    qw_gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_safetensors_good), cmocka_unit_test(test_safetensors_bad),
        cmocka_unit_test(test_safetensors_lengths), cmocka_unit_test(test_safetensors_long_name),
        cmocka_unit_test(test_safetensors_cut_and_flipped),
        cmocka_unit_test(test_folder_good), cmocka_unit_test(test_folder_without), cmocka_unit_test(test_config_bad),
        cmocka_unit_test(test_tensors_bad), cmocka_unit_test(test_quantised_bad), cmocka_unit_test(test_fused_fp8),
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_text_bad), cmocka_unit_test(test_rows_in_pieces), cmocka_unit_test(test_drop_pages),
        cmocka_unit_test(test_shrinks),
    };
    return cmocka_run_group_tests(tests, temp_dir_setup, temp_dir_teardown);
}
