/* cmd_pull.c: `qw pull`: fetches a model into the store. Main thread. The work is hub/pull.c; here are
 * options, progress and the words around it. */
#include <stdio.h>

#include "cli/cli.h"
#include "cli/hub_view.h"
#include "hub/hub.h"
#include "hub/work.h"

static int pull(const char *catalog, const qw_hub_pull_options *options, bool quiet)
{
    qw_hub *hub = NULL;
    qw_err err;
    char name[QW_HUB_NAME_MAX];
    hub_view view;
    if (qw_hub_open(catalog, &hub, &err) != QW_OK) return qw_cli_error(&err);
    hub_view_init(&view, quiet);
    qw_hub_watch watch = hub_view_watch(&view);
    qw_cli_catch_interrupt(true);
    qw_status status = qw_hub_pull(hub, options, &watch, name, &err);
    hub_view_end(&view);
    qw_hub_close(hub);
    if (status != QW_OK) return qw_cli_error(&err);
    if (!quiet) fprintf(stderr, "qw: %s is ready: qw chat -m %s\n", name, name);
    return qw_cli_finish();
}

int qw_cmd_pull(int argc, char **argv)
{
    qw_hub_pull_options options = {0};
    const char *catalog = NULL;
    bool quiet = false;
    const qw_cli_opt opts[] = {
        {0, "name", QW_CLI_STR, &options.name, "NAME", "what to call it (made from the file's name)", 0, 0},
        {0, "if-missing", QW_CLI_FLAG, &options.if_missing, NULL,
         "do nothing when it is installed, not even a check", 0, 0},
        {'q', "quiet", QW_CLI_FLAG, &quiet, NULL, "no progress", 0, 0},
        {0, "catalog", QW_CLI_STR, &catalog, "FILE", "another model catalogue than the built-in one", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "pull",
        .usage =
            "[options] NAME | hf:OWNER/REPO/FILE.gguf | ms:OWNER/REPO/FILE.gguf | https://... | ./FILE.gguf",
        .summary = "Fetches a model: by its name in the catalogue (`qw list --all`), from a repository of\n"
                   "Hugging Face (hf:) or ModelScope (ms:), from a URL, or from a file of this machine.",
        .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .n_args_min = 1,
        .n_args_max = 1,
        .details =
            "Of a split model give the first part (...-00001-of-00003.gguf); the others are fetched with "
            "it.\n"
            "An interrupted pull goes on where it stopped. A model that is installed is checked against its\n"
            "SHA-256 and fetched again when it is damaged. HF_TOKEN, when set, is sent to Hugging Face "
            "alone.\n",
        .examples =
            "qw pull qwen2.5-coder:0.5b\n"
            "qw pull hf:Qwen/Qwen2.5-7B-Instruct-GGUF/qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf\n"
            "qw pull ./model.gguf --name mine\n",
    };
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    options.spec = argv[1];
    return pull(catalog, &options, quiet);
}
