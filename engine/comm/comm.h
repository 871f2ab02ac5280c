/* comm.h - ranks that work on one step together: sums, gathers and exchanges among them.
 *
 * A group is n_ranks ranks that meet under one name; each rank has a struct comm of its own. All
 * ranks of a group make the same calls in the same order: a call is named by its operation and its
 * number (seq, from 1), and a rank that comes with another operation or size breaks the group. A
 * rank may be in several groups, and has one struct comm for each group and lane.
 *
 * Four bodies, chosen by name; which one is for whom:
 *   - threads: ranks are threads of one process, buffers are host memory. Done on return; the
 *     stream is NULL.
 *   - tcp: ranks are threads of one or several processes, buffers are host memory, the bytes go
 * over TCP. Done on return; the stream is NULL.
 *   - device: ranks are threads of one process, buffers are device memory: several ranks on one
 *     GPU, or GPUs that read each other's memory (NVLink). Queued on the stream.
 *   - nccl: ranks on GPUs of one or several nodes. Queued on the stream.
 *
 * A stream is the back end's own (cudaStream_t), opaque here. What is queued may be recorded into a
 * CUDA graph when `capturable` says so.
 *
 * Order of sums: with `any_order` unset, element i is ((x0 + x1) + x2) + ... over the ranks, in
 * fp32, rounded once at the end when it is bf16: the same bits on all ranks, in each run, whatever
 * the body. With `any_order` the body may use the order that is cheapest for it: the same on all
 * ranks still, but different from another body's or another number of ranks'.
 *
 * Failure: a call that fails breaks the group for good, for all its ranks, with one message; nobody
 * waits for longer than timeout_ms for a peer. ERR_COMM: who did not come, to which operation, with
 * its number. What the buffers hold is then undefined; only comm_close() is left to do. Calls that
 * are queued report in comm_wait() what happened on the device.
 *
 * Thread: a struct comm has one caller at a time; comm_abort() and comm_error() from any.
 */
#ifndef GAZE_COMM_COMM_H
#define GAZE_COMM_COMM_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct meeting; /* comm/meeting.h: how ranks find each other */

enum { COMM_MAX_RANKS = 64, COMM_TIMEOUT_MS = 8000, COMM_OPEN_MS = 60000 };
enum { COMM_DEVICE_RANKS = 8 }; /* most of a "device" group */

enum comm_dtype { COMM_F32, COMM_BF16 };
size_t comm_dtype_bytes(enum comm_dtype t);

enum comm_op {
    COMM_ALL_REDUCE,
    COMM_ALL_GATHER,
    COMM_REDUCE_SCATTER,
    COMM_ALL_TO_ALL,
    COMM_ALL_TO_ALLV,
    COMM_BROADCAST,
    COMM_BARRIER,
    N_COMM_OPS
};
const char *comm_op_name(enum comm_op op); /* "all_reduce" */

struct comm_config {
    const char *kind;       /* "threads", "tcp", "device" or "nccl" */
    const char *group;      /* the name under which this group's ranks meet; at most 40 letters */
    uint32_t rank, n_ranks; /* of the group */
    uint32_t device;        /* CUDA's number of this rank's GPU; threads: unused */
    uint32_t timeout_ms;    /* of a call; 0: COMM_TIMEOUT_MS */
    uint32_t open_ms;       /* for all to come to comm_open(); 0: COMM_OPEN_MS */
    size_t max_bytes;       /* largest n * element size, or bytes, of one call of one rank */
    bool any_order;
    uint32_t
        max_blocks; /* device: of a call's kernel, the same on all ranks; 0: as measured best */
    struct meeting *meeting; /* borrowed until comm_open() returns */
};

/* What an operation moves. at: offset, bytes: size, for each peer; bytes sent by i to j must be
 * what j expects of i. */
struct comm_parts {
    const size_t *at, *bytes; /* [n_ranks] */
};

struct comm {
    const char *kind;  /* static */
    const char *group; /* the name; own storage */
    uint32_t rank, n_ranks;
    bool capturable; /* calls may be recorded into a CUDA graph */
    bool any_order;
    uint32_t timeout_ms;
    size_t max_bytes;
    uint32_t seq; /* of the last call */
    enum comm_op op;
    uint64_t n_calls[N_COMM_OPS], n_bytes[N_COMM_OPS]; /* this rank's, for metrics; bytes in */
    uint64_t meeting;             /* its number tells groups of one name apart */
    struct comm *next_open;       /* comm.c's list */
    const struct comm_body *body; /* the table of functions: comm/body.h */
};

/* ERR_INVALID: why ranks of this kind cannot be in this process (an unknown kind, a build without
 * GPU, a library that is not there). */
MUST_CHECK enum err_code comm_kind_check(const char *kind, struct err *e);

/* Joins the group: returns when all its ranks have come. ERR_COMM (who is missing), ERR_INVALID (a
 * kind that this build does not have, or that these ranks cannot use), ERR_NOMEM, ERR_CUDA. */
MUST_CHECK enum err_code comm_open(struct comm **out, const struct comm_config *cfg, struct err *e);
/* No call may be under way on this rank, and graphs that have recorded calls are destroyed before.
 * Does not wait for peers. NULL: nothing. */
void comm_close(struct comm *c);

/* out[n] = the sum over ranks of in[n]; in may be out. */
MUST_CHECK enum err_code comm_all_reduce(struct comm *c, const void *in, void *out, size_t n,
                                         enum comm_dtype t, void *stream, struct err *e);
/* out[n_ranks * bytes]: rank r's in[bytes] at r * bytes; in may be that place of out. */
MUST_CHECK enum err_code comm_all_gather(struct comm *c, const void *in, void *out, size_t bytes,
                                         void *stream, struct err *e);
/* out[n] = part `rank` of the sum over ranks of in[n_ranks * n]; out may be that part of in. */
MUST_CHECK enum err_code comm_reduce_scatter(struct comm *c, const void *in, void *out, size_t n,
                                             enum comm_dtype t, void *stream, struct err *e);
/* out's part r of `bytes` = part `rank` of rank r's in; in and out are apart. */
MUST_CHECK enum err_code comm_all_to_all(struct comm *c, const void *in, void *out, size_t bytes,
                                         void *stream, struct err *e);
/* The same with parts of any size: in + send.at[r] goes to rank r, out + recv.at[r] is rank r's.
 * The arrays are read during the call; the sum of bytes is at most max_bytes. */
MUST_CHECK enum err_code comm_all_to_allv(struct comm *c, const void *in, struct comm_parts send,
                                          void *out, struct comm_parts recv, void *stream,
                                          struct err *e);
/* All ranks get root's buf[bytes]. With nccl root may be done before the others have come. */
MUST_CHECK enum err_code comm_broadcast(struct comm *c, void *buf, size_t bytes, uint32_t root,
                                        void *stream, struct err *e);
/* Nothing after it on any rank's stream starts before all ranks' streams have reached it. */
MUST_CHECK enum err_code comm_barrier(struct comm *c, void *stream, struct err *e);

/* Waits until the stream has done all that is queued, for timeout_ms at most after the last peer
 * was heard of; a late or dead peer is ERR_COMM, and breaks the group. Use it in place of
 * cudaStreamSynchronize() wherever collectives are queued. threads and
 * tcp: the group's state, at once. */
MUST_CHECK enum err_code comm_wait(struct comm *c, void *stream, struct err *e);

/* Breaks the group for all its ranks in this process, with `why` as the message: calls under way
 * end soon. Ranks in other processes find out by their time-out, or are told (watch.h). */
void comm_abort(struct comm *c, const char *why);
/* The same for all groups of this process. */
void comm_abort_all(const char *why);
/* ERR_OK, or why the group is broken; waits for nothing. */
MUST_CHECK enum err_code comm_error(struct comm *c, struct err *e);

/* Sets the environment that the bodies need and the user did not set, before the first call of CUDA
 * and while the process has one thread: NVLink multicast off, kernels loaded at start (a kernel
 * loaded later waits for those that wait for it), a hardware queue for each stream. */
void comm_environment(void);

#endif
