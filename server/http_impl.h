/* http_impl.h - what the HTTP side's files share; http.h is the interface.
 *
 *   http.c      calls: answers, clients that leave, the life of a call
 *   door.c      what the headers alone decide: path, method, key, limits
 *   listener.c  the address, connections, and their deadlines
 *   refusals.c  what libmicrohttpd would say by itself of a request that it cannot read
 */
#ifndef GAZE_SERVER_HTTP_IMPL_H
#define GAZE_SERVER_HTTP_IMPL_H

#include "http.h"

/* ---- http.c ---- */
const char *http_header(struct call *c, const char *name); /* of the request; NULL: not sent */
void http_set_state(struct conn *conn, enum conn_state state);
void http_stop_watch(struct call *c);
void http_free_call(struct call *c); /* libmicrohttpd and the text workers are through with it */
void http_wake_to_close(struct call *c);
/* libmicrohttpd's callbacks. */
enum MHD_Result http_on_request(void *cls, struct MHD_Connection *mhd, const char *url,
                                const char *method, const char *version, const char *upload,
                                size_t *upload_bytes, void **con_cls);
void *http_on_request_line(void *cls, const char *uri, struct MHD_Connection *mhd);
void http_on_completed(void *cls, struct MHD_Connection *mhd, void **con_cls,
                       enum MHD_RequestTerminationCode why);

/* ---- door.c ---- */
/* The route, or NULL with *allow telling which methods the path has (NULL: no such path). */
const struct route *door_route(const struct call *c, const char **allow, const char **handler);
/* Answers what can be answered from the headers alone; false: the route's handler is next. */
bool door_answers(struct call *c, const char **handler);

/* ---- refusals.c ---- */
/* The library's MHD_queue_response(), for answers of ours on connections without a struct conn. */
enum MHD_Result http_queue(struct MHD_Connection *mhd, unsigned status, struct MHD_Response *r);

/* ---- listener.c ---- */
void http_cut_error(struct api_error *ae, int status, const char *why); /* what http_cut() says */

#endif
