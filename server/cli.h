/* cli.h - the commands of the program. Each takes the arguments after its name and gives the exit
 * code; an error is one sentence on standard error. Thread: the first one. */
#ifndef GAZE_SERVER_CLI_H
#define GAZE_SERVER_CLI_H

#include "settings.h"

/* What a script or a supervisor can tell apart; README.md and gaze.1 say it to others. */
enum exit_code {
    EXIT_FINE = 0,     /* done; serve: drained after a signal */
    EXIT_OTHER = 1,    /* no memory, unreadable standard input */
    EXIT_SETTINGS = 2, /* command line, environment, files of settings and keys, certificate */
    EXIT_MODEL = 3,    /* missing, broken, or too large for this machine */
    EXIT_LISTEN = 4,   /* the address */
    EXIT_RANK = 5      /* serve: a rank of the engine was lost, or a step did not end */
};

int cli_serve(int argc, char **argv);
int cli_plan(int argc, char **argv);
int cli_info(int argc, char **argv);
int cli_tokenize(int argc, char **argv);
int cli_bench(int argc, char **argv); /* bench.c */
int cli_key(int argc, char **argv);   /* cli_key.c */
int cli_check(int argc, char **argv); /* cli_check.c */

int cli_fail(const struct err *e);                         /* prints it; returns EXIT_OTHER */
int cli_fail_as(enum exit_code code, const struct err *e); /* prints it; returns code */
void cli_print_plan(FILE *to, const struct engine_plan *p);

/* cli_ranks.c: what each rank holds, as text, or as members of an open JSON object. ERR_NOMEM. */
struct jo;
MUST_CHECK enum err_code cli_print_ranks(FILE *to, const struct engine_options *o,
                                         const struct engine_plan *p, struct err *e);
MUST_CHECK enum err_code cli_json_ranks(struct jo *j, const struct engine_options *o,
                                        const struct engine_plan *p, struct err *e);

#endif
