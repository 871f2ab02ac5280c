/* cli_key.c - gaze key: a fresh API key, as a line for the file of keys. */
#include "cli.h"

#include "auth.h"

#include <string.h>
#include <unistd.h>

/* A secret that somebody has already, from standard input: up to the end of the line. */
static enum err_code read_secret(char *out, size_t bytes, struct err *e)
{
    if (!fgets(out, (int)bytes, stdin))
        return err_set(e, ERR_INVALID, "no secret on standard input");
    size_t n = strcspn(out, "\r\n");
    if (!out[n] && n == bytes - 1)
        return err_set(e, ERR_INVALID, "the secret is longer than %zu characters", bytes - 2);
    out[n] = 0;
    for (size_t i = 0; i < n; i++)
        if (out[i] <= ' ' || out[i] > '~') /* a header could not carry it */
            return err_set(e, ERR_INVALID, "the secret has a character that is no printable ASCII");
    if (n < 16)
        return err_set(e, ERR_INVALID, "the secret has %zu characters, at least 16 are needed", n);
    return ERR_OK;
}

int cli_key(int argc, char **argv)
{
    struct err e = {0};
    char secret[256], line[512];
    bool given = argc > 0 && !strcmp(argv[0], "--stdin");
    if (given) {
        argc--;
        argv++;
    }
    if (argc < 1 || argv[0][0] == '-') {
        err_set(&e, ERR_INVALID,
                "usage: gaze key [--stdin] NAME [requests=N] [tokens=N] "
                "[concurrent=N] [weight=N] [priority=N] [use=all|metrics|api]");
        return cli_fail_as(EXIT_SETTINGS, &e);
    }
    if ((given ? read_secret(secret, sizeof secret, &e) : auth_make_secret(secret, &e)) ||
        auth_make_line(line, sizeof line, argv[0], secret, argv + 1, argc - 1, &e))
        return cli_fail_as(EXIT_SETTINGS, &e);
    puts(line);
    if (given)
        return 0;
    fflush(stdout);
    if (isatty(STDOUT_FILENO))
        fprintf(stderr, "The line above is for the file of keys. ");
    fprintf(stderr, "The key itself, shown only now:\n%s\n", secret);
    return 0;
}
