/* cli_model.c: from -m, -t, -c to an open model and engine, and the first run without a model.
 *
 * Main thread. Prints its errors; the caller passes the exit code on.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "cli/cli.h"
#include "hub/hub.h"

/* Asks on the terminal; anything but a yes is a no. */
static bool confirm_fetch(const char *name)
{
    char line[64];
    fprintf(stderr, "qw: no model is installed. Fetch %s, the default, now? [y/n] ", name);
    fflush(stderr);
    if (fgets(line, sizeof(line), stdin) == NULL) {
        fputc('\n', stderr);
        return false;
    }
    return line[0] == 'y' || line[0] == 'Y';
}

static int fetch_default(const char *name)
{
    char command[] = "pull", copy[256];
    snprintf(copy, sizeof(copy), "%s", name);
    char *argv[] = {command, copy, NULL};
    return qw_cmd_pull(2, argv);
}

/* Without -m and without the default model: the only installed one serves, several have to be told apart. */
static int resolve_other(const char *fallback, char *path, size_t cap)
{
    qw_hub *hub = NULL;
    qw_hub_model *models = NULL;
    size_t n = 0;
    qw_err err;
    int rc = 0;
    if (qw_hub_open(NULL, &hub, &err) != QW_OK || qw_hub_list(hub, false, &models, &n, &err) != QW_OK) {
        rc = qw_cli_error(&err);
    } else if (n == 0) {
        rc = QW_CLI_GO;
    } else if (n > 1) {
        rc = qw_cli_fail("which model? -m takes a name from `qw list`; `qw pull %s` fetches the default", fallback);
    } else if (models[0].fault[0] != 0) {
        rc = qw_cli_fail("%s: %s; `qw pull %s` repairs it", models[0].name, models[0].fault, models[0].name);
    } else if ((size_t)snprintf(path, cap, "%s", models[0].path) >= cap) {
        rc = qw_cli_fail("%s: the path of the model file is too long", models[0].name);
    }
    free(models);
    qw_hub_close(hub);
    return rc;
}

int qw_cli_resolve(const qw_cli_model *m, char *path, size_t cap)
{
    qw_err err;
    const char *fallback = qw_hub_default_model();
    qw_status status = qw_hub_resolve(m->name != NULL ? m->name : fallback, path, cap, &err);
    if (status == QW_OK) return 0;
    if (m->name != NULL || status != QW_E_NOT_FOUND) return qw_cli_error(&err);
    int rc = resolve_other(fallback, path, cap);
    if (rc != QW_CLI_GO) return rc;
    if (isatty(STDIN_FILENO) && isatty(STDERR_FILENO) && confirm_fetch(fallback)) {
        rc = fetch_default(fallback);
        if (rc != 0) return rc;
        status = qw_hub_resolve(fallback, path, cap, &err);
        return status == QW_OK ? 0 : qw_cli_error(&err);
    }
    return qw_cli_fail("no model is installed: `qw pull %s` fetches the default, `qw list` shows others, "
                       "-m takes a name, a GGUF file or a Hugging Face folder",
                       fallback);
}

int qw_cli_open_model(const qw_cli_model *m, qw_model **model)
{
    char path[QW_CLI_PATH_MAX];
    qw_err err;
    int rc = qw_cli_resolve(m, path, sizeof(path));
    if (rc != 0) return rc;
    qw_model_options options = qw_model_options_default();
    options.path = path;
    options.exact = m->exact;
    options.quantize = m->quantize;
    options.no_pack_cache = m->no_pack_cache;
    if (qw_model_open(&options, model, &err) != QW_OK) return qw_cli_error(&err);
    return 0;
}

int qw_cli_check_chat_format(const qw_model *model)
{
    qw_model_info info;
    qw_model_get_info(model, &info);
    if (strcmp(info.chat_format, "none") == 0)
        return qw_cli_fail("%s: the model has no chat format that qw knows; `qw run --raw` continues a text with it",
                           info.path);
    if (!info.chat_template_known)
        fprintf(stderr, "qw: note: the chat template of this model is not one qw knows; it is taken for %s\n",
                info.chat_format);
    return 0;
}

qw_engine_options qw_cli_engine_options(const qw_cli_model *m)
{
    qw_engine_options options = qw_engine_options_default();
    options.n_threads = (int)m->n_threads;
    options.context = (uint32_t)m->context;
    options.n_parallel = (uint32_t)m->n_parallel;
    options.memory_bytes_max = m->memory_bytes;
    options.plain_decoding = m->plain_decoding;
    options.no_mtp = m->no_mtp;
    return options;
}

/* Where what was computed is saved; "" when it is not, or there is no such place. */
static void find_state_dir(const qw_cli_model *m, char *out, size_t cap)
{
    char cache[QW_CLI_PATH_MAX];
    *out = 0;
    if (!m->saves_state || m->no_state || qw_cache_dir(cache, sizeof(cache), NULL) != QW_OK) return;
    if ((size_t)snprintf(out, cap, "%s/state", cache) >= cap) *out = 0;
}

int qw_cli_open_draft(const qw_cli_model *m, qw_model **draft)
{
    qw_cli_model other = *m;
    *draft = NULL;
    if (m->draft == NULL) return 0;
    other.name = m->draft;
    return qw_cli_open_model(&other, draft);
}

static int open_engine(const qw_cli_model *m, qw_cli_loaded *l)
{
    qw_err err;
    qw_engine_options options = qw_cli_engine_options(m);
    char state[QW_CLI_PATH_MAX + 8];
    find_state_dir(m, state, sizeof(state));
    if (state[0] != 0) options.state_dir = state;
    options.state_bytes_max = m->state_bytes;
    options.draft = l->draft;
    if (qw_engine_create(l->model, &options, &l->engine, &err) != QW_OK) return qw_cli_error(&err);
    if (qw_engine_note(l->engine)[0]) fprintf(stderr, "qw: note: %s\n", qw_engine_note(l->engine));
    return 0;
}

int qw_cli_open(const qw_cli_model *m, qw_cli_loaded *out)
{
    *out = (qw_cli_loaded){0};
    int rc = qw_cli_open_model(m, &out->model);
    if (rc == 0) rc = qw_cli_open_draft(m, &out->draft);
    if (rc == 0) rc = open_engine(m, out);
    if (rc != 0) qw_cli_close(out);
    return rc;
}

void qw_cli_close(qw_cli_loaded *l)
{
    qw_engine_destroy(l->engine);
    qw_model_close(l->draft);
    qw_model_close(l->model);
    *l = (qw_cli_loaded){0};
}
