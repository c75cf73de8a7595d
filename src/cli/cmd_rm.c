/* cmd_rm.c: `qw rm`: removes installed models, or side files of packed weights. Main thread. Asks nothing: a model can
 * be fetched again, a side file made again. */
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

/* Side files of all models, also of those that are not installed. */
static int rm_packed(void)
{
    qw_hub_packed_removal r;
    qw_err err;
    char freed[32], kept[32];
    if (qw_hub_packed_clear(&r, &err) != QW_OK) return qw_cli_error(&err);
    qw_hub_size_text(r.freed_bytes, freed);
    qw_hub_size_text(r.kept_bytes, kept);
    fprintf(stderr, "qw: removed %zu side file%s of packed weights (%s freed)", r.n_removed,
            r.n_removed == 1 ? "" : "s", freed);
    if (r.n_kept) fprintf(stderr, "; %zu in use stay%s (%s)", r.n_kept, r.n_kept == 1 ? "s" : "", kept);
    fputc('\n', stderr);
    return QW_EXIT_OK;
}

int qw_cmd_rm(int argc, char **argv)
{
    const char *catalog = NULL;
    bool packed = false;
    const qw_cli_opt opts[] = {
        {0, "packed", QW_CLI_FLAG, &packed, NULL,
         "instead of models, all side files of packed weights that are not in use", 0, 0},
        {0, "catalog", QW_CLI_STR, &catalog, "FILE", "another model catalogue than the built-in one", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "rm",
        .usage = "NAME... | --packed",
        .summary = "Removes installed models with their side files, and partial downloads. Takes whole names only\n"
                   "and asks nothing.",
        .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .n_args_max = 64,
        .examples = "qw rm qwen2.5-coder:1.5b\nqw rm --packed\n",
    };
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    if (packed && argc > 1) return qw_cli_usage("rm", "--packed takes no names");
    if (!packed && argc == 1) return qw_cli_usage("rm", "name what to remove");
    return packed ? rm_packed() : rm(catalog, argc - 1, argv + 1);
}
