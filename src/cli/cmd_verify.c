/* cmd_verify.c: `qw verify`: SHA-256 of an installed model's files against its record, then what qw made of them: every
 * weight a number, the side file of packed weights whole. Main thread. */
#include <stdio.h>
#include <stdlib.h>

#include "base/mem.h"
#include "cli/cli.h"
#include "cli/hub_view.h"
#include "hub/hub.h"
#include "hub/work.h"

/* A file that qw cannot run is still whole: its SHA-256 was what it should be. */
static qw_status verify_weights(const char *path, qw_err *err)
{
    qw_model *model;
    qw_model_options options = qw_model_options_default();
    options.path = path;
    if (qw_model_open(&options, &model, NULL) != QW_OK) return QW_OK;
    qw_status status = qw_model_verify(model, err);
    qw_model_close(model);
    return status;
}

static int verify(const char *catalog, const char *name)
{
    qw_hub *hub = NULL;
    qw_hub_model *model = NULL;
    qw_err err;
    char size[32];
    hub_view view;
    if (qw_hub_open(catalog, &hub, &err) != QW_OK) return qw_cli_error(&err);
    hub_view_init(&view, false);
    qw_hub_watch watch = hub_view_watch(&view);
    qw_cli_catch_interrupt(true);
    qw_status status = qw_alloc(&model, 1, sizeof(*model), "a model's description", &err);
    if (status == QW_OK) status = qw_hub_verify(hub, name, &watch, model, &err);
    hub_view_end(&view);
    if (status == QW_OK) status = verify_weights(model->path, &err);
    int rc = status == QW_OK ? QW_EXIT_OK : qw_cli_error(&err);
    if (status == QW_OK) {
        qw_hub_size_text(model->bytes, size);
        if (model->n_parts > 1) printf("%s: ok (%s in %zu parts)\n", model->name, size, model->n_parts);
        else printf("%s: ok (%s, SHA-256 %s)\n", model->name, size, model->sha256);
        rc = qw_cli_finish();
    }
    free(model);
    qw_hub_close(hub);
    return rc;
}

int qw_cmd_verify(int argc, char **argv)
{
    const char *catalog = NULL;
    const qw_cli_opt opts[] = {
        {0, "catalog", QW_CLI_STR, &catalog, "FILE", "another model catalogue than the built-in one", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "verify",
        .usage = "NAME",
        .summary =
            "Reads an installed model whole and compares its SHA-256 with the one it was fetched with.",
        .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .n_args_min = 1,
        .n_args_max = 1,
        .examples = "qw verify qwen2.5-coder:0.5b\n",
        .exits = "0 the model is whole, 1 it is damaged or not installed, 2 wrong usage.",
    };
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    return verify(catalog, argv[1]);
}
