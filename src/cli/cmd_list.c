/* cmd_list.c: `qw list`: the installed models, and with --all those of the catalogue. Main thread. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli/cli.h"
#include "hub/hub.h"
#include "hub/work.h"

static void date_text(int64_t seconds, char out[32])
{
    time_t t = (time_t)seconds;
    struct tm tm;
    out[0] = 0;
    if (seconds > 0 && localtime_r(&t, &tm)) strftime(out, 32, "%Y-%m-%d", &tm);
}

static const char *state_text(const qw_hub_model *m)
{
    if (!m->installed) return "not installed";
    return m->fault[0] ? "damaged" : "";
}

static void print_table(const qw_hub_model *models, size_t n)
{
    int name_width = 4;
    for (size_t i = 0; i < n; i++)
        if ((int)strlen(models[i].name) > name_width) name_width = (int)strlen(models[i].name);
    printf("%-*s  %10s  %10s  %-8s  %-10s\n", name_width, "NAME", "SIZE", "PACKED", "QUANT", "DATE");
    for (size_t i = 0; i < n; i++) {
        const qw_hub_model *m = &models[i];
        char size[32], packed[32] = "-", date[32];
        qw_hub_size_text(m->bytes, size);
        if (m->packed_bytes) qw_hub_size_text(m->packed_bytes, packed);
        date_text(m->added_s, date);
        const char *note = m->installed ? m->fault : m->description;
        const char *state = state_text(m);
        printf("%-*s  %10s  %10s  %-8s  %-10s", name_width, m->name, size, packed,
               m->quantization[0] ? m->quantization : "-", date[0] ? date : "-");
        if (state[0]) printf("  %s%s%s", state, note[0] ? ": " : "", note);
        putchar('\n');
    }
}

/* The side files of packed weights together, those of models that are not installed included. */
static int print_packed(const qw_hub_model *models, size_t n)
{
    qw_hub_packed p;
    qw_err err;
    char size[32], other[32], most[32];
    if (qw_hub_packed_total(models, n, &p, &err) != QW_OK) return qw_cli_error(&err);
    if (n == 0 && p.n_files == 0) return QW_EXIT_OK;
    qw_hub_size_text(p.bytes, size);
    qw_hub_size_text(p.other_bytes, other);
    qw_hub_size_text(p.bytes_max, most);
    printf("packed weights: %s in %zu side file%s", size, p.n_files, p.n_files == 1 ? "" : "s");
    if (p.other_bytes) printf(", %s of it of no installed model", other);
    printf(" (limit %s)\n", most);
    return QW_EXIT_OK;
}

static int print_json(const qw_hub_model *models, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        const qw_hub_model *m = &models[i];
        json_t *o =
            json_pack("{s:s, s:b, s:I, s:I, s:s, s:s, s:s, s:s, s:s, s:I, s:i, s:s, s:s, s:s}", "name", m->name,
                      "installed", m->installed, "size", (json_int_t)m->bytes, "packed",
                      (json_int_t)m->packed_bytes, "quantization", m->quantization, "architecture",
                      m->architecture, "sha256", m->sha256, "source",
                      m->source, "file", m->file, "added", (json_int_t)m->added_s, "parts", (int)m->n_parts,
                      "path", m->path, "fault", m->fault, "description", m->description);
        if (o) json_array_append_new(list, o);
    }
    char *text = json_dumps(list, JSON_INDENT(2));
    json_decref(list);
    if (!text) return qw_cli_fail("out of memory: the list of models");
    puts(text);
    free(text);
    return qw_cli_finish();
}

static int list(const char *catalog, bool all, bool json)
{
    qw_hub *hub = NULL;
    qw_hub_model *models = NULL;
    size_t n = 0;
    qw_err err;
    int rc = QW_EXIT_OK;
    if (qw_hub_open(catalog, &hub, &err) != QW_OK) return qw_cli_error(&err);
    if (qw_hub_list(hub, all, &models, &n, &err) != QW_OK) rc = qw_cli_error(&err);
    else if (json) rc = print_json(models, n);
    else {
        if (n > 0) print_table(models, n);
        else
            fprintf(stderr,
                    "qw: no model is installed; `qw pull %s` fetches the default, `qw list --all` shows the "
                    "others\n",
                    qw_hub_default_model());
        rc = print_packed(models, n);
        if (rc == QW_EXIT_OK) rc = qw_cli_finish();
    }
    free(models);
    qw_hub_close(hub);
    return rc;
}

int qw_cmd_list(int argc, char **argv)
{
    const char *catalog = NULL;
    bool all = false, json = false;
    const qw_cli_opt opts[] = {
        {'a', "all", QW_CLI_FLAG, &all, NULL, "also the models of the catalogue that are not installed", 0,
         0},
        {0, "json", QW_CLI_FLAG, &json, NULL, "one JSON array of objects", 0, 0},
        {0, "catalog", QW_CLI_STR, &catalog, "FILE", "another model catalogue than the built-in one", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "list",
        .usage = "[options]",
        .summary = "Lists the installed models: name, size, size of the side file of packed weights, quantisation\n"
                   "and the day they came; then the size of all side files.",
        .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .examples = "qw list\nqw list --all\nqw list --json\n",
    };
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    return list(catalog, all, json);
}
