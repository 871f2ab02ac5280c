/* ranks.h - the ranks of a model that run in this process, all or its share: weights, back end and
 * layers of each.
 *
 * One rank is the ordinary case: the whole model on the CPU or on one GPU. With several, each loads
 * its own part by a thread of its own, meets the others (comm.h), and opens its back end; on the
 * CPU they share the cores, on GPUs the i-th rank here has GPU first_device + i, or several share
 * one. Where several processes share the ranks, process p of P has n_ranks / P of them, in order,
 * and opens its own together with the others.
 *
 * Thread: opened and closed by one; each rank's ops and forward then belong to its worker threads.
 */
#ifndef GAZE_RANKS_H
#define GAZE_RANKS_H

#include "model/forward.h"
#include "model/parallel.h"

struct meeting;

struct rank {
    struct rank_share share;
    struct model_config cfg; /* its part's sizes */
    struct ops_peers peers;
    struct weights *weights;        /* in the mapped files; dummy: shapes or values */
    struct weights *device_weights; /* what a GPU reads; NULL on the CPU */
    struct ops *ops;
    struct forward *forward;
};

struct ranks {
    struct parallel plan;
    uint32_t first, n_here;               /* those of this process */
    struct rank rank[PARALLEL_MAX_RANKS]; /* [plan.n_ranks]; of others: their share alone */
};

struct ranks_options {
    const char *model_dir;
    const struct model_config *cfg; /* the whole model's */
    uint32_t tp, dp, ep;
    const char *placement; /* a file, or NULL */
    bool load_dummy;
    enum dtype dummy_dtype;
    int32_t device;           /* the first GPU; -1: the CPU */
    uint32_t ranks_per_gpu;   /* 1; more: for tests */
    const char *comm;         /* kind of communicator; NULL: what fits */
    uint32_t comm_timeout_ms; /* 0: comm.h's */
    struct meeting *meeting;  /* of all processes, borrowed for the opening; NULL: one process */
    uint32_t process, n_processes;
    struct ops_limits limits;   /* of each rank; n_threads: of all ranks here together */
    weights_progress *progress; /* tells of the first rank here */
    void *progress_arg;
};

/* ERR_INVALID (what does not divide, a device that is not there), ERR_NOMEM, ERR_IO, ERR_COMM. A
 * failure leaves nothing behind, and names the rank where there are several. o->limits and o->cfg
 * are copied. */
MUST_CHECK enum err_code ranks_open(struct ranks **out, const struct ranks_options *o,
                                    struct err *e);
/* No step may be in flight. */
void ranks_close(struct ranks *r);

/* Ends all communication with `why`: steps in flight fail soon. Any thread. */
void ranks_abort(struct ranks *r, const char *why);

#endif
