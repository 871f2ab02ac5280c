/* comm_device.cu - the "device" body of comm.h: ranks of one process whose GPUs see each other's
 * memory, or that share one GPU.
 *
 * Opening is done over host memory by a "threads" group of the same ranks, the control: there they
 * learn each other's devices and boxes (tile/peer.cuh), and there the reason is kept when the group
 * breaks. A call is then one kernel on each rank; it may be recorded into a graph. Ranks that share
 * a GPU wait for each other inside kernels, so their grids are kept small enough to be resident
 * together with all others, and comm_environment() has seen to it that streams do not share queues.
 *
 * A kernel that waits longer than timeout_ms ends with a report in host memory; comm_wait() reads
 * it, breaks the control, and raises the stop flag, which ends the kernels of the other ranks.
 */
#include "cuda/comm_kernels.cuh"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern "C" {
#include "base/fault.h"
#include "comm/body.h"
}

enum { SPINS = 20000 };
static const uint32_t SHARED_BLOCKS = 16, OWN_BLOCKS = 96;

/* What ranks tell each other at the opening. From then on all of it is held by all: a rank that has
 * closed is still written to by the last kernels of its peers, so the last to close frees. */
struct peer_card {
    int device;
    struct peer_box *box;
    struct peer_report *report;
    uint32_t *stop;    /* rank 0's is the group's */
    uint32_t *holders; /* rank 0's; host memory */
};

struct device_comm {
    struct comm base;
    struct comm *control;
    struct peer_card own, card[PEER_RANKS];
    bool met; /* card[] is there */
    uint32_t *stop;
    struct peer_call call; /* what all calls have in common */
    uint32_t most_blocks;
};

static struct device_comm *of(struct comm *c)
{
    return (struct device_comm *)c;
}

static enum err_code check(struct comm *c, cudaError_t code, const char *what, struct err *e)
{
    if (code == cudaSuccess)
        return ERR_OK;
    (void)cudaGetLastError();
    err_set(e, ERR_CUDA, "comm %s: rank %u: %s: %s", c->group, c->rank, what,
            cudaGetErrorString(code));
    c->body->abort(c, e->msg);
    return e->code;
}

static void abort_group(struct comm *c, const char *why)
{
    struct device_comm *d = of(c);
    d->control->body->abort(d->control, why);
    __atomic_store_n(d->stop, 1u, __ATOMIC_RELEASE);
}

/* What a call of this kind says in its entry: ranks must agree. */
static uint32_t what_of(enum comm_op op, enum comm_dtype t, uint32_t root)
{
    return (1u + (uint32_t)op) | (uint32_t)t << 8 | root << 16;
}

static const char *name_of(uint32_t what)
{
    return comm_op_name((enum comm_op)((what & 0xFF) - 1));
}

/* Turns what a kernel reported into the group's reason. */
static void read_report(struct device_comm *d)
{
    struct comm *c = &d->base;
    char why[200];
    const struct peer_report *r = d->own.report;
    switch ((enum peer_state)__atomic_load_n(&r->state, __ATOMIC_ACQUIRE)) {
    case PEER_FINE:
    case PEER_STOPPED: /* whoever raised the flag gave the reason */
        return;
    case PEER_LATE:
        snprintf(why, sizeof why, "comm %s: rank %u of %u did not come to call %u within %u ms",
                 c->group, r->peer, c->n_ranks, r->call, c->timeout_ms);
        break;
    case PEER_DISAGREES:
        snprintf(why, sizeof why,
                 "comm %s: call %u: rank %u has %llu bytes or values, rank %u came to %s with %llu",
                 c->group, r->call, c->rank, r->my_bytes, r->peer, name_of(r->their_what),
                 r->their_bytes);
        break;
    }
    abort_group(c, why);
}

static enum err_code error(struct comm *c, struct err *e)
{
    struct device_comm *d = of(c);
    read_report(d);
    return comm_error(d->control, e);
}

static struct peer_call begin(struct comm *c, enum comm_op op, enum comm_dtype t, uint32_t root)
{
    struct peer_call call = of(c)->call;
    call.what = what_of(op, t, root);
    return call;
}

static enum err_code launched(struct comm *c, enum comm_op op, struct err *e)
{
    return check(c, cudaGetLastError(), comm_op_name(op), e);
}

static enum err_code sum(struct comm *c, enum comm_op op, const void *in, void *out, size_t n,
                         enum comm_dtype t, void *stream, struct err *e)
{
    struct peer_call call = begin(c, op, t, 0);
    call.in = (const unsigned char *)in;
    call.out = (unsigned char *)out;
    call.n = n;
    peer_launch_sum(&call, t == COMM_BF16, op == COMM_REDUCE_SCATTER, of(c)->most_blocks,
                    (cudaStream_t)stream);
    return launched(c, op, e);
}

static enum err_code all_reduce(struct comm *c, const void *in, void *out, size_t n,
                                enum comm_dtype t, void *stream, struct err *e)
{
    return sum(c, COMM_ALL_REDUCE, in, out, n, t, stream, e);
}

static enum err_code reduce_scatter(struct comm *c, const void *in, void *out, size_t n,
                                    enum comm_dtype t, void *stream, struct err *e)
{
    return sum(c, COMM_REDUCE_SCATTER, in, out, n, t, stream, e);
}

static enum err_code all_gather(struct comm *c, const void *in, void *out, size_t bytes,
                                void *stream, struct err *e)
{
    struct peer_call call = begin(c, COMM_ALL_GATHER, COMM_F32, 0);
    call.in = (const unsigned char *)in;
    call.out = (unsigned char *)out;
    call.n = bytes;
    peer_launch_gather(&call, of(c)->most_blocks, (cudaStream_t)stream);
    return launched(c, COMM_ALL_GATHER, e);
}

static enum err_code all_to_allv(struct comm *c, const void *in, struct comm_parts send, void *out,
                                 struct comm_parts recv, void *stream, struct err *e)
{
    struct peer_call call = begin(c, COMM_ALL_TO_ALLV, COMM_F32, 0);
    struct peer_parts parts = {};
    call.in = (const unsigned char *)in;
    call.out = (unsigned char *)out;
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        parts.send_at[r] = send.at[r];
        parts.send[r] = send.bytes[r];
        parts.recv_at[r] = recv.at[r];
        parts.recv[r] = recv.bytes[r];
    }
    /* ranks have different sums of bytes, and must have the same grid */
    peer_launch_exchange(&call, &parts, of(c)->most_blocks, (cudaStream_t)stream);
    return launched(c, COMM_ALL_TO_ALLV, e);
}

static enum err_code broadcast(struct comm *c, void *buf, size_t bytes, uint32_t root, void *stream,
                               struct err *e)
{
    struct peer_call call = begin(c, COMM_BROADCAST, COMM_F32, root);
    call.in = call.out = (unsigned char *)buf;
    call.n = bytes;
    peer_launch_broadcast(&call, root, of(c)->most_blocks, (cudaStream_t)stream);
    return launched(c, COMM_BROADCAST, e);
}

static enum err_code barrier(struct comm *c, void *stream, struct err *e)
{
    struct peer_call call = begin(c, COMM_BARRIER, COMM_F32, 0);
    peer_launch_broadcast(&call, 0, 1, (cudaStream_t)stream);
    return launched(c, COMM_BARRIER, e);
}

/* The kernels have the time-outs, so the stream always ends. */
static enum err_code wait_done(struct comm *c, void *stream, struct err *e)
{
    struct device_comm *d = of(c);
    cudaError_t code;
    for (uint32_t i = 0; (code = cudaStreamQuery((cudaStream_t)stream)) == cudaErrorNotReady; i++)
        if (i > SPINS) { /* some 20 ms: it is a long step */
            struct timespec nap = {0, 20000};
            nanosleep(&nap, NULL);
        }
    if (check(c, code, "waiting", e))
        return e->code;
    enum peer_state state =
        (enum peer_state)__atomic_load_n(&d->own.report->state, __ATOMIC_ACQUIRE);
    if (state == PEER_STOPPED && !comm_error(d->control, e)) {
        err_set(e, ERR_COMM, "comm %s: another rank stopped the group", c->group);
        comm_abort(d->control, e->msg);
    }
    return error(c, e);
}

static void free_card(const struct peer_card *card)
{
    (void)cudaSetDevice(card->device);
    (void)cudaFree(card->box);
    if (card->report)
        (void)cudaFreeHost(card->report);
    if (card->stop)
        (void)cudaFreeHost(card->stop);
    free(card->holders);
}

static void close_comm(struct comm *c)
{
    struct device_comm *d = of(c);
    uint32_t n = d->call.n_ranks;
    if (!d->met)
        free_card(&d->own);
    else if (__atomic_sub_fetch(d->card[0].holders, 1u, __ATOMIC_ACQ_REL) == 0)
        for (uint32_t r = n; r-- > 0;)
            free_card(&d->card[r]);
    comm_close(d->control);
    free(d);
}

static const struct comm_body body = {all_reduce, all_gather, reduce_scatter, all_to_allv,
                                      broadcast,  barrier,    wait_done,      abort_group,
                                      error,      close_comm};

static enum err_code reserve(struct peer_card *own, const struct comm_config *cfg, struct err *e)
{
    unsigned flags = (unsigned)cudaHostAllocPortable | (unsigned)cudaHostAllocMapped;
    own->device = (int)cfg->device;
    own->holders = (uint32_t *)malloc(sizeof *own->holders);
    if (!own->holders || FAULT("comm.device.box"))
        return err_set(e, ERR_NOMEM, "comm %s: rank %u", cfg->group, cfg->rank);
    *own->holders = cfg->n_ranks;
    cudaError_t code = cudaSetDevice(own->device);
    if (code == cudaSuccess)
        code = cudaMalloc((void **)&own->box, sizeof *own->box);
    if (code == cudaSuccess)
        code = cudaMemset(own->box, 0, sizeof *own->box);
    if (code == cudaSuccess)
        code = cudaHostAlloc((void **)&own->report, sizeof *own->report, flags);
    if (code == cudaSuccess)
        code = cudaHostAlloc((void **)&own->stop, sizeof *own->stop, flags);
    if (code == cudaSuccess)
        code = cudaDeviceSynchronize();
    if (code != cudaSuccess) {
        (void)cudaGetLastError();
        return err_set(e, code == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_CUDA,
                       "comm %s: rank %u on cuda:%d: %s", cfg->group, cfg->rank, own->device,
                       cudaGetErrorString(code));
    }
    memset(own->report, 0, sizeof *own->report);
    *own->stop = 0;
    return ERR_OK;
}

/* Lets this rank's kernels read the memory of the others' devices. */
static enum err_code reach(struct device_comm *d, const struct comm_config *cfg, struct err *e)
{
    const struct peer_card *card = d->card;
    int own = d->own.device;
    for (uint32_t r = 0; r < cfg->n_ranks; r++) {
        int can = 1;
        if (card[r].device == own)
            continue;
        cudaError_t code = cudaDeviceCanAccessPeer(&can, own, card[r].device);
        if (code == cudaSuccess && !can)
            return err_set(e, ERR_INVALID,
                           "comm %s: cuda:%d cannot read the memory of cuda:%d; use nccl",
                           cfg->group, own, card[r].device);
        if (code == cudaSuccess)
            code = cudaDeviceEnablePeerAccess(card[r].device, 0);
        if (code == cudaErrorPeerAccessAlreadyEnabled) {
            (void)cudaGetLastError();
            code = cudaSuccess;
        }
        if (code != cudaSuccess)
            return err_set(e, ERR_CUDA, "comm %s: cuda:%d reaching cuda:%d: %s", cfg->group, own,
                           card[r].device, cudaGetErrorString(code));
    }
    return ERR_OK;
}

static enum err_code open_control(struct device_comm *d, const struct comm_config *cfg,
                                  struct err *e)
{
    struct comm_config control = *cfg;
    char name[64];
    snprintf(name, sizeof name, "%s.control", cfg->group);
    control.kind = "threads";
    control.group = name;
    control.timeout_ms = cfg->open_ms; /* it has calls only while we open */
    control.max_bytes = sizeof(struct peer_card);
    return comm_open(&d->control, &control, e);
}

static enum err_code meet(struct device_comm *d, const struct comm_config *cfg, struct err *e)
{
    const struct peer_card *card = d->card;
    bool shared = false;
    if (comm_all_gather(d->control, &d->own, d->card, sizeof d->own, NULL, e))
        return e->code;
    d->met = true;
    if (reach(d, cfg, e))
        return e->code;
    for (uint32_t r = 0; r < cfg->n_ranks; r++) {
        d->call.box[r] = card[r].box;
        for (uint32_t k = 0; k < r; k++)
            shared = shared || card[k].device == card[r].device;
    }
    d->stop = card[0].stop;
    d->most_blocks = cfg->max_blocks ? cfg->max_blocks : shared ? SHARED_BLOCKS : OWN_BLOCKS;
    d->call.stop = d->stop;
    d->call.report = d->own.report;
    d->call.timeout_ns = (unsigned long long)cfg->timeout_ms * 1000000ull;
    d->call.rank = cfg->rank;
    /* nobody leaves before all can reach all: a first kernel may write at once */
    return comm_barrier(d->control, NULL, e);
}

static_assert((int)PEER_RANKS == (int)COMM_DEVICE_RANKS, "cuda_devices_reach() tells of it");

extern "C" enum err_code comm_device_open(struct comm **out, const struct comm_config *cfg,
                                          struct err *e)
{
    if (cfg->n_ranks > PEER_RANKS)
        return err_set(e, ERR_INVALID, "comm %s: %u ranks, device takes %d at most; use nccl",
                       cfg->group, cfg->n_ranks, PEER_RANKS);
    if (cfg->max_blocks > PEER_BLOCKS)
        return err_set(e, ERR_INVALID, "comm %s: max_blocks: %u is more than %d", cfg->group,
                       cfg->max_blocks, PEER_BLOCKS);
    struct device_comm *d = (struct device_comm *)calloc(1, sizeof *d);
    if (!d)
        return err_set(e, ERR_NOMEM, "comm %s: rank %u", cfg->group, cfg->rank);
    if (open_control(d, cfg, e)) {
        free(d);
        return e->code;
    }
    d->base.capturable = true;
    d->base.body = &body;
    d->call.n_ranks = cfg->n_ranks;
    if (reserve(&d->own, cfg, e) || meet(d, cfg, e)) {
        struct err why = *e;
        comm_abort(d->control, why.msg); /* the others are told, too */
        close_comm(&d->base);
        *e = why;
        return e->code;
    }
    *out = &d->base;
    return ERR_OK;
}
