/* cmd_serve.c: `qw serve`: options, the model's name, start and end of the service. Main thread. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "hub/hub.h"
#include "server/service.h"

enum { MODEL_ID_BYTES = 256 };

typedef struct serve_options {
    qw_cli_model model;
    const char *host;
    int64_t port;
    bool allow_remote, verbose;
    qw_cli_strs hosts, aliases;
} serve_options;

/* What clients call the model: the catalogue name it was asked for by, else the file's name without .gguf. */
static void name_model(const serve_options *o, const char *path, char out[MODEL_ID_BYTES])
{
    const char *name = o->model.name, *slash = strrchr(path, '/');
    char fallback_path[QW_CLI_PATH_MAX];
    size_t n = name != NULL ? strlen(name) : 0;
    if (name == NULL) {
        const char *fallback = qw_hub_default_model();
        if (qw_hub_resolve(fallback, fallback_path, sizeof(fallback_path), NULL) == QW_OK &&
            strcmp(fallback_path, path) == 0)
            name = fallback;
    } else if (strchr(name, '/') != NULL || (n > 5 && strcmp(name + n - 5, ".gguf") == 0)) {
        name = NULL; /* a path */
    }
    snprintf(out, MODEL_ID_BYTES, "%s", name != NULL ? name : slash != NULL ? slash + 1 : path);
    n = strlen(out);
    if (name == NULL && n > 5 && strcmp(out + n - 5, ".gguf") == 0) out[n - 5] = 0;
}

static int serve(const serve_options *o)
{
    char id[MODEL_ID_BYTES];
    qw_cli_loaded loaded;
    qw_model_info info;
    qw_service service;
    qw_err err;
    qw_service_options so = {.host = o->host, .port = (int)o->port, .allow_remote = o->allow_remote,
                             .verbose = o->verbose, .model_id = id, .aliases = o->aliases.v,
                             .n_aliases = o->aliases.n, .hosts = o->hosts.v, .n_hosts = o->hosts.n};
    if (qw_service_check_host(&so, &err) != QW_OK) return qw_cli_usage("serve", "%s", err.text);
    int rc = qw_cli_open(&o->model, &loaded);
    if (rc != 0) return rc;
    qw_model_get_info(loaded.model, &info);
    name_model(o, info.path, id);
    if (strcmp(info.chat_format, "none") == 0)
        rc = qw_cli_fail("%s has no chat format, so it cannot be served; `qw run --raw` continues a text with it", id);
    /* What the event loop's own handling falls back to when it ends: a signal that comes while the engine is taken
     * down must not turn an orderly end into a death. */
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    if (rc == 0 && qw_service_open(&service, &so, loaded.model, loaded.engine, &err) != QW_OK) rc = qw_cli_error(&err);
    if (rc == 0) {
        if (!info.chat_template_known)
            fprintf(stderr, "qw: the chat template of %s is not known; it is treated as %s\n", id, info.chat_format);
        printf("listening on %s\n", service.url);
        rc = qw_cli_finish();
        if (rc == 0 && qw_service_run(&service, &err) != QW_OK) rc = qw_cli_error(&err);
        qw_service_close(&service);
    }
    qw_cli_close(&loaded);
    return rc;
}

int qw_cmd_serve(int argc, char **argv)
{
    serve_options o = {.model = {.saves_state = true}, .host = "127.0.0.1", .port = 8080};
    const qw_cli_opt opts[] = {
        {0, "host", QW_CLI_STR, &o.host, "HOST", "address or name to listen on (127.0.0.1)", 0, 0},
        {0, "port", QW_CLI_INT, &o.port, "N", "port; 0 takes a free one (8080)", 0, 65535},
        {0, "alias", QW_CLI_STRS, &o.aliases, "NAME", "another name clients may call the model (may be repeated)", 0,
         0},
        {0, "allow-host", QW_CLI_STRS, &o.hosts, "NAME", "accept this name of the machine too (may be repeated)", 0, 0},
        {0, "allow-remote", QW_CLI_FLAG, &o.allow_remote, NULL,
         "HOST may be reachable from other machines: anyone there may use the model", 0, 0},
        {0, "parallel", QW_CLI_INT, &o.model.n_parallel, "N", "answers at the same time; others wait (8)", 1, 64},
        {0, "verbose", QW_CLI_FLAG, &o.verbose, NULL, "a line on standard error for every request", 0, 0},
        QW_CLI_MODEL_OPTS(&o.model),
        QW_CLI_DRAFT_OPT(&o.model),
        QW_CLI_STATE_OPTS(&o.model),
    };
    const qw_cli_spec spec = {
        .name = "serve",
        .usage = "[options]",
        .summary = "Answers over HTTP: OpenAI's chat completions under /v1, a chat page at /.\n"
                   "Prints \"listening on http://HOST:PORT\" when it is ready. Ctrl-C ends it: running answers\n"
                   "may finish for 10 seconds, a second Ctrl-C stops them.",
        .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .examples = "qw serve\n"
                    "qw serve -m qwen2.5-coder:1.5b --port 8000\n"
                    "qw serve --alias gpt-4o-mini --verbose\n"
                    "qw serve --host 0.0.0.0 --allow-remote --allow-host chat.example.org\n",
    };
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc == QW_CLI_GO) rc = serve(&o);
    qw_cli_strs_free(&o.hosts);
    qw_cli_strs_free(&o.aliases);
    return rc;
}
