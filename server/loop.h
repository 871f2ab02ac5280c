/* loop.h - the server's one thread: libuv around libmicrohttpd and the engine's events.
 *
 *   server_open -> server_run (until drained) -> server_close
 *
 * The HTTP side is up while the model still loads in a thread of its own; /health says so.
 * SIGHUP reads keys and certificates again, and those settings that may change (settings.h); what
 * cannot be read stays as it was. SIGTERM or SIGINT drains: new requests get 503, running ones end,
 * then server_run() returns. A second signal ends them at once, and their clients are told.
 *
 * When the engine has lost a rank, running requests end with an error event (503 engine_lost where
 * nothing was sent yet), new ones and /health get 503 with the reason, and 0.7 s later
 * server_run() returns: a supervisor starts the server again.
 */
#ifndef GAZE_SERVER_LOOP_H
#define GAZE_SERVER_LOOP_H

#include "server.h"

/* settings and api are borrowed for the server's life. Listens when it returns. ERR_INVALID,
 * ERR_IO, ERR_NOMEM; a failure leaves nothing behind. */
MUST_CHECK enum err_code server_open(struct server **out, const struct settings *settings,
                                     const struct engine_api *api, struct err *e);
/* Returns 0 after a drain, SERVER_NOT_LOADED when the model did not load, SERVER_LOST when a rank
 * of the engine was lost (*e says why). */
enum { SERVER_NOT_LOADED = 1, SERVER_LOST = 2 };
int server_run(struct server *sv, struct err *e);
void server_close(struct server *sv);

/* Lets libmicrohttpd work and sets its next deadline. Every callback of the loop that touched a
 * call ends with it. */
void server_turn(struct server *sv);
void server_reload(struct server *sv);
/* What a signal does; tests call it from the loop's thread. */
void server_drain(struct server *sv);

#endif
