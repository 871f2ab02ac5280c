/* main.c - gaze: picks the command. */
#include "cli.h"

#include "base/fault.h"
#include "version.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

static void help(FILE *to)
{
    fprintf(to,
            "gaze %s: serves DeepSeek-Sparse-Attention models over an OpenAI-compatible API.\n\n",
            version_number);
    fputs("  gaze serve [options]       serve a model\n"
          "  gaze check [--quick]       would it serve? settings, keys, certificate, model\n"
          "  gaze plan [--json]         the memory it would take, without loading it;\n"
          "            [--for BYTES]    as if so much were free, here or on each GPU\n"
          "  gaze info                  what the checkpoint is\n"
          "  gaze tokenize [--jsonl]    text on standard input to token ids\n"
          "  gaze bench [--quick]       tokens/s of prefill and decode\n"
          "  gaze key NAME [LIMIT=N]    a new API key, as a line for --key-file\n"
          "  gaze --help, --version\n\n"
          "Options, also as GAZE_MAX_CONTEXT=... and as \"max_context\" in the file of settings;\n"
          "a flag beats the environment, which beats the file:\n",
          to);
    settings_help(to);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } commands[] = {{"serve", cli_serve},       {"plan", cli_plan},   {"info", cli_info},
                    {"tokenize", cli_tokenize}, {"bench", cli_bench}, {"key", cli_key},
                    {"check", cli_check}};
    fault_arm(getenv("GAZE_FAULT"));
    signal(SIGPIPE, SIG_IGN);
    const char *name = argc > 1 ? argv[1] : "--help";
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            name = "--help";
    if (!strcmp(name, "--help") || !strcmp(name, "help")) {
        help(stdout);
        return argc > 1 ? EXIT_FINE : EXIT_SETTINGS;
    }
    if (!strcmp(name, "--version")) {
        printf("gaze %s (commit %s), back ends: %s\n", version_number, version_commit,
               engine_backends());
        return 0;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (!strcmp(name, commands[i].name))
            return commands[i].run(argc - 2, argv + 2);
    fprintf(stderr,
            "gaze: \"%.60s\" is no command; they are serve, check, plan, info, tokenize, bench,"
            " key.\n",
            name);
    return EXIT_SETTINGS;
}
