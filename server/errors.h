/* errors.h - what a client hears when something is wrong: one struct, one JSON shape, one mapping.
 *
 * Thread: any; a struct api_error belongs to its caller.
 */
#ifndef GAZE_SERVER_ERRORS_H
#define GAZE_SERVER_ERRORS_H

#include "json_out.h"

struct api_error {
    int status;       /* 0: no error */
    const char *type; /* static */
    const char *code; /* static, or NULL */
    char param[96];   /* "" : none */
    char message[480];
    unsigned retry_after_s; /* 0: no such header */
};

/* Fills *ae; the type follows from the status. Returns false, so that a parser can
 * `return api_fail(...)`. param and code may be NULL. */
bool api_fail(struct api_error *ae, int status, const char *param, const char *code,
              const char *fmt, ...) PRINTF_LIKE(5, 6);
/* The one mapping from what the engine says to what HTTP says. */
void api_fail_err(struct api_error *ae, const struct err *e);
/* {"error":{message, type, param, code}} */
void api_error_json(struct buf *out, const struct api_error *ae);
/* {"type":"error","error":{type, message},"request_id"}, as clients of /v1/messages read it. */
void api_error_messages_json(struct buf *out, const struct api_error *ae, const char *request_id);

#endif
