/* cmd_rm.c: `qw rm`: removes installed models. Main thread. Asks nothing: a model can be fetched again. */
#include <stdio.h>

#include "cli/cli.h"
#include "cli/hub_view.h"
#include "hub/hub.h"
#include "hub/work.h"

static int rm(const char *catalog, int n, char **names)
{
    qw_hub *hub = NULL;
    qw_err err;
    hub_view view;
    int rc = QW_EXIT_OK;
    if (qw_hub_open(catalog, &hub, &err) != QW_OK) return qw_cli_error(&err);
    hub_view_init(&view, true);
    qw_hub_watch watch = hub_view_watch(&view);
    qw_cli_catch_interrupt(true);
    for (int i = 0; i < n && rc == QW_EXIT_OK; i++) {
        uint64_t freed_bytes = 0;
        char size[32];
        if (qw_hub_remove(hub, names[i], &watch, &freed_bytes, &err) != QW_OK) rc = qw_cli_error(&err);
        else {
            qw_hub_size_text(freed_bytes, size);
            fprintf(stderr, "qw: removed %s (%s freed)\n", names[i], size);
        }
    }
    qw_hub_close(hub);
    return rc;
}

int qw_cmd_rm(int argc, char **argv)
{
    const char *catalog = NULL;
    const qw_cli_opt opts[] = {
        {0, "catalog", QW_CLI_STR, &catalog, "FILE", "another model catalogue than the built-in one", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "rm",
        .usage = "NAME...",
        .summary = "Removes installed models and partial downloads. Takes whole names only and asks nothing.",
        .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .n_args_min = 1,
        .n_args_max = 64,
        .examples = "qw rm qwen2.5-coder:1.5b\n",
    };
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    return rm(catalog, argc - 1, argv + 1);
}
