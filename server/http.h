/* http.h - calls: from a request's first line to its answer's last byte, over libmicrohttpd.
 *
 * A handler (struct route) gets a call whose body is complete. It answers at once, or leaves the
 * call without an answer: then the connection sleeps until http_wake(). While it sleeps a watch on
 * its socket notices a client that leaves; a call with a generation is then cancelled in the
 * engine.
 *
 * Thread: the loop's. Answers are given from handlers or from the loop's own callbacks; the latter
 * end with server_turn() (loop.h), which lets libmicrohttpd work.
 */
#ifndef GAZE_SERVER_HTTP_H
#define GAZE_SERVER_HTTP_H

#include "server.h"

extern const struct route http_routes[]; /* routes.c; ends with a NULL path */

/* Each of these answers once; then the call must not be answered again. */
void http_json(struct call *c, int status);                           /* c->answer holds the body */
void http_text(struct call *c, int status, const char *content_type); /* likewise */
void http_error(struct call *c, const struct api_error *ae);
bool http_speaks_messages(const struct call *c); /* its errors have the other shape */
/* An error's JSON in the shape of the call's endpoint. */
void http_write_error(const struct call *c, struct buf *out, const struct api_error *ae);
void http_fail(struct call *c, int status, const char *param, const char *code, const char *fmt,
               ...) PRINTF_LIKE(5, 6);
/* 200 and headers now; the body is what goes into c->sse. */
void http_stream(struct call *c);

const char *http_query(struct call *c, const char *name); /* ?name=value; NULL: not sent */
/* Likewise; *out stays when it was not sent. False: it is no number, and the call is answered. */
bool http_query_number(struct call *c, const char *name, uint64_t *out);

/* The call has something to say: its connection goes on in the next server_turn(). Harmless when
 * it does not sleep. */
void http_wake(struct call *c);
/* Ends the call's text worker; frees the call if its client has left meanwhile (then false). */
bool http_work_done(struct call *c);
/* The client gets what is said and nothing more: the socket is shut down. For a request that is
 * still being read, a bare answer of that status goes out first (0: none). */
void http_cut(struct server *sv, struct conn *conn, int status, const char *why);
/* Deadlines of connections and streams; called a few times a second. */
void http_sweep(struct server *sv, uint64_t now_us);

/* Listens on s->host at a port; *port: the one in use. ERR_IO; ERR_INVALID: the address can be
 * reached from outside, keys are not asked for (keyed), and nobody said --insecure. */
MUST_CHECK enum err_code http_listen(const struct settings *s, uint64_t at_port, bool keyed,
                                     int *out, uint16_t *port, struct err *e);

/* Whether the address is one, and may be listened on with these keys; binds nothing. ERR_IO,
 * ERR_INVALID. */
MUST_CHECK enum err_code http_check_address(const struct settings *s, const struct auth *auth,
                                            struct err *e);
/* The certificate again, if there is one; an error leaves the one in use. */
MUST_CHECK enum err_code http_load_tls(struct server *sv, struct err *e);
MUST_CHECK enum err_code http_start(struct server *sv, struct err *e);
void http_stop(struct server *sv); /* wakes and ends all connections */
void http_count(struct server *sv, const char *handler, const char *method, int status);

#endif
