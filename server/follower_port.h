/* follower_port.h - what a process that follows another one's engine says of itself over HTTP.
 *
 *   GET /health, /health/ready   200 while it follows; 503 with the reason while it loads and once
 *                                a process or a rank is lost
 *   GET /metrics                 what its ranks have counted, its memory plan and the process;
 * where keys are asked for, only with open-metrics, as it knows no keys
 *
 * Plain HTTP, from a thread of libmicrohttpd's own, so that it answers whatever the ranks do. Of
 * more than 48 connections the oldest one is ended; what is no HTTP is closed without an answer.
 * Thread: all calls by one; the two callbacks as engine_follow() makes them.
 */
#ifndef GAZE_SERVER_FOLLOWER_PORT_H
#define GAZE_SERVER_FOLLOWER_PORT_H

#include "settings.h"

struct follower_port; /* opaque */

/* Listens on s->host, port s->health_port, and says that it loads. s is borrowed. ERR_IO: the
 * address; ERR_INVALID: a public one without any key; ERR_NOMEM. */
MUST_CHECK enum err_code follower_port_open(struct follower_port **out, const struct settings *s,
                                            uint32_t process, uint32_t n_processes, struct err *e);
void follower_port_close(struct follower_port *p); /* NULL: nothing */

/* engine_follow_calls: ready and ending. */
void follower_port_ready(struct follower_port *p, struct engine_follower *f);
void follower_port_ending(struct follower_port *p);
/* It is over: 503, for as long as probes need to see it. */
void follower_port_lose(struct follower_port *p, const struct err *why);

#endif
