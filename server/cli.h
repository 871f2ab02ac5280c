/* cli.h - the commands of the program. Each takes the arguments after its name and gives the exit
 * code; an error is one sentence on standard error and code 1. Thread: the first one. */
#ifndef GAZE_SERVER_CLI_H
#define GAZE_SERVER_CLI_H

#include "settings.h"

int cli_serve(int argc, char **argv);
int cli_plan(int argc, char **argv);
int cli_info(int argc, char **argv);
int cli_tokenize(int argc, char **argv);
int cli_bench(int argc, char **argv); /* bench.c */
int cli_key(int argc, char **argv);   /* cli_key.c */

int cli_fail(const struct err *e); /* prints it; returns 1 */
void cli_print_plan(FILE *to, const struct engine_plan *p);

#endif
