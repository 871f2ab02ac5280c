/* body.h - what a kind of comm must do: the table behind comm.h.
 *
 * comm.c has checked the arguments, counted the call (c->seq) and passed the place of fault before
 * it calls here; a body need not. Each body embeds struct comm as its first member and frees it in
 * close(). An error from any of these means that the group is broken, or that the body has broken
 * it before it returned.
 */
#ifndef GAZE_COMM_BODY_H
#define GAZE_COMM_BODY_H

#include "comm/comm.h"

struct comm_body {
    enum err_code (*all_reduce)(struct comm *c, const void *in, void *out, size_t n,
                                enum comm_dtype t, void *stream, struct err *e);
    enum err_code (*all_gather)(struct comm *c, const void *in, void *out, size_t bytes,
                                void *stream, struct err *e);
    enum err_code (*reduce_scatter)(struct comm *c, const void *in, void *out, size_t n,
                                    enum comm_dtype t, void *stream, struct err *e);
    enum err_code (*all_to_allv)(struct comm *c, const void *in, struct comm_parts send, void *out,
                                 struct comm_parts recv, void *stream, struct err *e);
    enum err_code (*broadcast)(struct comm *c, void *buf, size_t bytes, uint32_t root, void *stream,
                               struct err *e);
    enum err_code (*barrier)(struct comm *c, void *stream, struct err *e);
    enum err_code (*wait)(struct comm *c, void *stream, struct err *e);
    void (*abort)(struct comm *c, const char *why);        /* any thread; the first reason stays */
    enum err_code (*error)(struct comm *c, struct err *e); /* any thread */
    void (*close)(struct comm *c);
};

/* The openers: cfg is checked, its times are set. They fill c->body and c->capturable; comm.c does
 * the rest of struct comm once they have returned. */
MUST_CHECK enum err_code comm_threads_open(struct comm **out, const struct comm_config *cfg,
                                           struct err *e);
MUST_CHECK enum err_code comm_tcp_open(struct comm **out, const struct comm_config *cfg,
                                       struct err *e);
/* Only in builds with the GPU back end; nccl needs its library beside it. */
MUST_CHECK enum err_code comm_device_open(struct comm **out, const struct comm_config *cfg,
                                          struct err *e);
MUST_CHECK enum err_code comm_nccl_open(struct comm **out, const struct comm_config *cfg,
                                        struct err *e);
MUST_CHECK enum err_code comm_nccl_check(struct err *e); /* ERR_INVALID: the library is not there */

#endif
