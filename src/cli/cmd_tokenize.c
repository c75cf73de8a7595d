/* cmd_tokenize.c: `qw tokenize`: standard input, byte for byte, to token ids.
 *
 * Main thread; no engine is created. Input is read whole (limit: QW_PROMPT_BYTES_MAX), nothing is trimmed.
 */
#include <stdlib.h>

#include "base/file.h"
#include "cli/cli.h"

static void print_ids(const int32_t *ids, size_t n, bool json)
{
    if (json) putchar('[');
    for (size_t i = 0; i < n && !qw_cli_output_failed(); i++)
        if (json)
            printf("%s%d", i ? "," : "", (int)ids[i]);
        else
            printf("%d\n", (int)ids[i]);
    if (json) fputs("]\n", stdout);
}

int qw_cmd_tokenize(int argc, char **argv)
{
    qw_cli_model m = {0};
    bool json = false, special = false;
    qw_model *model = NULL;
    char *data = NULL;
    int32_t *ids = NULL;
    size_t n = 0, n_ids = 0;
    qw_err err;
    const qw_cli_opt opts[] = {
        QW_CLI_MODEL_NAME_OPT(&m),
        {0, "json", QW_CLI_FLAG, &json, NULL, "one JSON array of numbers", 0, 0},
        {0, "special", QW_CLI_FLAG, &special, NULL, "control tokens in the text (<|im_end|>) count as such", 0, 0},
    };
    const qw_cli_spec spec = {
        .name = "tokenize",
        .usage = "[options] < FILE",
        .summary = "Turns standard input, as it is, into token ids, one a line.",
        .opts = opts,
        .n_opts = QW_CLI_COUNT(opts),
        .examples = "printf 'Hello' | qw tokenize\nqw tokenize --json -m model.gguf < README.md\n",
    };
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    rc = qw_cli_open_model(&m, &model);
    if (rc != 0) return rc;
    if (qw_file_read("-", QW_PROMPT_BYTES_MAX, &data, &n, &err) != QW_OK ||
        qw_tokenize(model, (qw_text){data, n}, special, &ids, &n_ids, &err) != QW_OK) {
        rc = qw_cli_error(&err);
    } else {
        print_ids(ids, n_ids, json);
        rc = qw_cli_finish();
    }
    free(ids);
    free(data);
    qw_model_close(model);
    return rc;
}
