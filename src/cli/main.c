/* main.c: the program `qw`: finds the command and hands over.
 *
 * Main thread. Exit codes: 0 ok, 1 failure, 2 wrong usage. Standard output carries results alone; everything
 * said about the work goes to standard error. SIGPIPE is ignored: a write to a closed pipe fails, the command
 * notices (qw_cli_output_failed) and ends with 1.
 */
#include <langinfo.h>
#include <locale.h>
#include <string.h>

#include "cli/cli.h"

typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} command;

static int cmd_version(int argc, char **argv);
static int cmd_help(int argc, char **argv);

static const command commands[] = {
    {"chat", qw_cmd_chat, "talk with a model in the terminal"},
    {"run", qw_cmd_run, "answer one prompt"},
    {"serve", qw_cmd_serve, "answer over HTTP, and a chat page for the browser"},
    {"pull", qw_cmd_pull, "fetch a model"},
    {"list", qw_cmd_list, "list the models that are installed or can be fetched"},
    {"show", qw_cmd_show, "describe a model and the memory it takes"},
    {"verify", qw_cmd_verify, "check an installed model against its SHA-256"},
    {"rm", qw_cmd_rm, "remove an installed model"},
    {"convert", qw_cmd_convert, "make a GGUF file from a Hugging Face folder"},
    {"embed", qw_cmd_embed, "turn texts into embeddings"},
    {"rerank", qw_cmd_rerank, "score documents by how well they answer a query"},
    {"tokenize", qw_cmd_tokenize, "turn standard input into token ids"},
    {"logits", qw_cmd_logits, "write the logits of a token sequence to a file"},
    {"bench", qw_cmd_bench, "measure prefill and decode speed"},
    {"eval", qw_cmd_eval, "measure the perplexity of a text"},
    {"imatrix", qw_cmd_imatrix, "measure what quantisation should spare"},
    {"quantize", qw_cmd_quantize, "write a model with smaller weights"},
    {"version", cmd_version, "print the version"},
    {"help", cmd_help, "describe a command"},
};

static const command *command_find(const char *name)
{
    for (size_t i = 0; i < QW_CLI_COUNT(commands); i++)
        if (strcmp(commands[i].name, name) == 0) return &commands[i];
    return NULL;
}

static void print_overview(FILE *to)
{
    fputs("qw runs the open Qwen language models on this machine.\n\nUsage: qw COMMAND [options]\n\nCommands:\n", to);
    for (size_t i = 0; i < QW_CLI_COUNT(commands); i++)
        fprintf(to, "  %-9s %s\n", commands[i].name, commands[i].help);
    fputs("\nStart with `qw chat`. `qw COMMAND --help` describes a command and its options.\n"
          "Exit codes: 0 ok, 1 failure, 2 wrong usage.\n",
          to);
}

static int cmd_version(int argc, char **argv)
{
    const qw_cli_spec spec = {
        .name = "version", .usage = "", .summary = "Prints the version.", .examples = "qw version\n"};
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    puts("qw " QW_VERSION);
    return qw_cli_finish();
}

static int cmd_help(int argc, char **argv)
{
    const qw_cli_spec spec = {.name = "help",
                              .usage = "[COMMAND]",
                              .summary = "Describes a command, or lists all.",
                              .n_args_max = 1,
                              .examples = "qw help\nqw help chat\n"};
    int rc = qw_cli_parse(&spec, &argc, argv);
    if (rc != QW_CLI_GO) return rc;
    if (argc == 1) {
        print_overview(stdout);
        return qw_cli_finish();
    }
    const command *c = command_find(argv[1]);
    if (c == NULL) return qw_cli_usage("help", "unknown command \"%s\"", argv[1]);
    char name[16], option[] = "--help";
    snprintf(name, sizeof(name), "%s", c->name);
    char *help_argv[] = {name, option, NULL};
    return c->run(2, help_argv);
}

/* Text is UTF-8. A machine without a configured locale still gets wide characters right. */
static void use_utf8_locale(void)
{
    if (setlocale(LC_CTYPE, "") == NULL || strcmp(nl_langinfo(CODESET), "UTF-8") != 0)
        setlocale(LC_CTYPE, "C.UTF-8");
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    use_utf8_locale();
    if (argc < 2) {
        print_overview(stderr);
        return QW_EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) name = "help";
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) name = "version";
    const command *c = command_find(name);
    if (c == NULL) {
        qw_cli_fail("unknown %s \"%s\"; see qw --help", name[0] == '-' ? "option" : "command", name);
        return QW_EXIT_USAGE;
    }
    return c->run(argc - 1, argv + 1);
}
