/* comm_nccl.cu - the "nccl" body of comm.h: ranks on GPUs of one or several nodes, a GPU each.
 *
 * The library is opened when the first group of this kind is, by its name (libnccl.so.2): it has
 * some 200 MB, and a server with one GPU, or with GPUs that read each other's memory, neither needs
 * nor loads it. Its version may differ from the header's.
 *
 * NCCL adds in an order of its own, which depends on the number of ranks, the size and the links.
 * With `any_order` that is what a caller gets; otherwise parts are exchanged and added here in rank
 * order: small ones are gathered by all and added by all, large ones are cut into a slice for each
 * rank, as in comm_kernels.cu. That moves the same bytes as NCCL's own sum would.
 *
 * Communicators are non-blocking: each call is followed until NCCL has taken it, and comm_wait()
 * until the stream is done, with NCCL's state, the group's and the clock looked at; on a failure
 * the communicator is aborted, which ends its kernels. NVLink multicast stays off:
 * comm_environment() says so to NCCL before it is opened. Sizes of all_to_allv that do not agree
 * end by the time-out.
 *
 * Its calls are not recorded into graphs. NCCL asks that each recorded call is recorded, and each
 * graph launched, by all ranks alike; with graphs and plain calls taking turns on one communicator
 * texts differed from run to run (tests/bench/results/h200_x2_layouts.txt).
 */
#include "cuda/comm_kernels.cuh"

#include <assert.h>
#include <dlfcn.h>
#include <nccl.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

extern "C" {
#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/thread.h"
#include "comm/body.h"
#include "comm/meeting.h"
}

enum { SMALL_BYTES = 64 << 10, SPINS = 20000, SLICE_VALUES = 8, CLOSE_MS = 2000 };
static_assert(sizeof(ncclUniqueId) <= MEETING_NOTE_BYTES, "the id is a note");

/* ---- the library ---- */

static struct {
    decltype(&ncclGetVersion) get_version;
    decltype(&ncclGetUniqueId) get_unique_id;
    decltype(&ncclCommInitRankConfig) init;
    decltype(&ncclCommGetAsyncError) state;
    decltype(&ncclCommAbort) abort;
    decltype(&ncclCommFinalize) finalize;
    decltype(&ncclCommDestroy) destroy;
    decltype(&ncclAllReduce) all_reduce;
    decltype(&ncclReduceScatter) reduce_scatter;
    decltype(&ncclAllGather) all_gather;
    decltype(&ncclBroadcast) broadcast;
    decltype(&ncclSend) send;
    decltype(&ncclRecv) recv;
    decltype(&ncclGroupStart) group_start;
    decltype(&ncclGroupEnd) group_end;
    decltype(&ncclGetErrorString) text;
} lib;
static pthread_once_t loaded = PTHREAD_ONCE_INIT;
static struct err load_err;

static void load(void)
{
    static const struct {
        const char *name;
        void **to;
    } symbol[] = {{"ncclGetVersion", (void **)&lib.get_version},
                  {"ncclGetUniqueId", (void **)&lib.get_unique_id},
                  {"ncclCommInitRankConfig", (void **)&lib.init},
                  {"ncclCommGetAsyncError", (void **)&lib.state},
                  {"ncclCommAbort", (void **)&lib.abort},
                  {"ncclCommFinalize", (void **)&lib.finalize},
                  {"ncclCommDestroy", (void **)&lib.destroy},
                  {"ncclAllReduce", (void **)&lib.all_reduce},
                  {"ncclReduceScatter", (void **)&lib.reduce_scatter},
                  {"ncclAllGather", (void **)&lib.all_gather},
                  {"ncclBroadcast", (void **)&lib.broadcast},
                  {"ncclSend", (void **)&lib.send},
                  {"ncclRecv", (void **)&lib.recv},
                  {"ncclGroupStart", (void **)&lib.group_start},
                  {"ncclGroupEnd", (void **)&lib.group_end},
                  {"ncclGetErrorString", (void **)&lib.text}};
    if (!getenv("NCCL_NVLS_ENABLE")) {
        err_set(&load_err, ERR_INVALID, "nccl: NCCL_NVLS_ENABLE is not set (comm_environment)");
        return;
    }
    void *so = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!so) {
        err_set(&load_err, ERR_INVALID, "nccl: %s", dlerror());
        return;
    }
    for (const auto &s : symbol)
        if (!(*s.to = dlsym(so, s.name))) {
            err_set(&load_err, ERR_INVALID, "nccl: libnccl.so.2 has no %s", s.name);
            return;
        }
}

extern "C" enum err_code comm_nccl_check(struct err *e)
{
    pthread_once(&loaded, load);
    *e = load_err;
    return e->code;
}

/* ---- a rank ---- */

struct nccl_comm {
    struct comm base;
    ncclComm_t comm; /* NULL once it was aborted */
    int device;
    unsigned char *scratch; /* parts that are added here */
    size_t scratch_bytes;
    pthread_mutex_t lock;
    uint32_t broken; /* set under lock, read without */
    struct err why;
};

static struct nccl_comm *of(struct comm *c)
{
    return (struct nccl_comm *)c;
}

/* Any thread: only notes it; the rank's own thread aborts. */
static void note_broken(struct comm *c, const char *why)
{
    struct nccl_comm *d = of(c);
    mutex_lock(&d->lock);
    if (!d->broken) {
        err_set(&d->why, ERR_COMM, "%s", why);
        __atomic_store_n(&d->broken, 1u, __ATOMIC_RELEASE);
    }
    mutex_unlock(&d->lock);
}

static enum err_code error(struct comm *c, struct err *e)
{
    struct nccl_comm *d = of(c);
    mutex_lock(&d->lock);
    *e = d->why;
    mutex_unlock(&d->lock);
    return e->code;
}

/* The end of a communicator, in a thread of its own: NCCL waits there for graphs that hold its
 * calls, and for whatever else may never come. */
struct ending {
    ncclComm_t comm;
    int device;
    bool orderly;     /* all is done: not only aborted */
    uint32_t holders; /* the thread, and who waits for it */
    uint32_t done;
};

static void let_go(struct ending *x)
{
    if (__atomic_sub_fetch(&x->holders, 1u, __ATOMIC_ACQ_REL) == 0)
        free(x);
}

static void *end_main(void *arg)
{
    struct ending *x = (struct ending *)arg;
    (void)cudaSetDevice(x->device);
    if (x->orderly) {
        ncclResult_t code = lib.finalize(x->comm);
        while (code == ncclInProgress && lib.state(x->comm, &code) == ncclSuccess)
            sched_yield();
        (void)lib.destroy(x->comm);
    } else {
        (void)lib.abort(x->comm);
    }
    __atomic_store_n(&x->done, 1u, __ATOMIC_RELEASE);
    let_go(x);
    return NULL;
}

/* Waits for it for CLOSE_MS; what is not done by then is left alone. */
static void end_comm(struct nccl_comm *d, bool orderly)
{
    struct ending *x = (struct ending *)calloc(1, sizeof *x);
    uint64_t end_us = clock_us() + CLOSE_MS * 1000ull;
    struct timespec nap = {0, 100000};
    pthread_t thread;
    struct err e;
    if (!d->comm || !x) {
        free(x);
        return;
    }
    *x = {d->comm, d->device, orderly, 2, 0};
    d->comm = NULL;
    if (thread_start(&thread, "nccl-end", end_main, x, &e)) {
        log_error("comm", "group=%s rank=%u left_open=nccl error=\"%s\"", d->base.group,
                  d->base.rank, e.msg);
        free(x);
        return;
    }
    (void)pthread_detach(thread);
    while (!__atomic_load_n(&x->done, __ATOMIC_ACQUIRE) && clock_us() < end_us)
        nanosleep(&nap, NULL);
    if (!__atomic_load_n(&x->done, __ATOMIC_ACQUIRE))
        log_error("comm", "group=%s rank=%u left_open=nccl after_ms=%d", d->base.group,
                  d->base.rank, CLOSE_MS);
    let_go(x);
}

static void give_up(struct nccl_comm *d)
{
    end_comm(d, false);
}

/* The rank's own thread: breaks the group, if it is not broken, and ends what is under way. */
static enum err_code fail(struct comm *c, const char *what, struct err *e)
{
    char why[220];
    snprintf(why, sizeof why, "comm %s: rank %u: %s %u %s", c->group, c->rank, comm_op_name(c->op),
             c->seq, what);
    comm_abort(c, why);
    give_up(of(c));
    return error(c, e);
}

static bool is_broken(const struct nccl_comm *d)
{
    return __atomic_load_n(&d->broken, __ATOMIC_ACQUIRE) != 0;
}

/* Follows what NCCL was told until it has taken it. */
static ncclResult_t settled(struct nccl_comm *d, ncclResult_t code, uint32_t timeout_ms)
{
    uint64_t end_us = clock_us() + (uint64_t)timeout_ms * 1000;
    while (code == ncclInProgress && !is_broken(d) && clock_us() < end_us) {
        ncclResult_t asked = lib.state(d->comm, &code);
        if (asked != ncclSuccess)
            return asked;
        sched_yield();
    }
    return code;
}

static enum err_code took(struct comm *c, ncclResult_t code, struct err *e)
{
    char what[120];
    code = settled(of(c), code, c->timeout_ms);
    if (code == ncclSuccess)
        return ERR_OK;
    if (code == ncclInProgress)
        snprintf(what, sizeof what, "was not taken within %u ms", c->timeout_ms);
    else
        snprintf(what, sizeof what, "failed: %s", lib.text(code));
    return fail(c, what, e);
}

static enum err_code usable(struct comm *c, struct err *e)
{
    if (!is_broken(of(c)))
        return ERR_OK;
    give_up(of(c));
    return error(c, e);
}

static enum err_code launched(struct comm *c, cudaError_t code, struct err *e)
{
    return code == cudaSuccess ? ERR_OK : fail(c, cudaGetErrorString(code), e);
}

static ncclDataType_t type_of(enum comm_dtype t)
{
    return t == COMM_F32 ? ncclFloat32 : ncclBfloat16;
}

/* Bytes at from.at[r] go to rank r, bytes of rank r come to to.at[r]; the own part is copied. */
static enum err_code exchange(struct comm *c, const void *in, struct comm_parts from, void *out,
                              struct comm_parts to, cudaStream_t s, struct err *e)
{
    struct nccl_comm *d = of(c);
    const unsigned char *src = (const unsigned char *)in;
    unsigned char *dst = (unsigned char *)out;
    uint32_t own = c->rank;
    assert(from.bytes[own] == to.bytes[own]);
    if (from.bytes[own] && dst + to.at[own] != src + from.at[own] &&
        launched(c,
                 cudaMemcpyAsync(dst + to.at[own], src + from.at[own], from.bytes[own],
                                 cudaMemcpyDeviceToDevice, s),
                 e))
        return e->code;
    ncclResult_t code = lib.group_start();
    for (uint32_t k = 1; k < c->n_ranks && (code == ncclSuccess || code == ncclInProgress); k++) {
        uint32_t r = (own + k) % c->n_ranks;
        if (from.bytes[r])
            code = lib.send(src + from.at[r], from.bytes[r], ncclUint8, (int)r, d->comm, s);
        if (to.bytes[r] && (code == ncclSuccess || code == ncclInProgress))
            code = lib.recv(dst + to.at[r], to.bytes[r], ncclUint8, (int)r, d->comm, s);
    }
    ncclResult_t end = lib.group_end();
    return took(c, code == ncclSuccess || code == ncclInProgress ? end : code, e);
}

/* Equal parts of in to each rank's scratch, where they are added into out. */
static enum err_code sum_of_parts(struct comm *c, const void *in, const size_t *begin, void *out,
                                  enum comm_dtype t, cudaStream_t s, struct err *e)
{
    struct nccl_comm *d = of(c);
    size_t size = comm_dtype_bytes(t), own = begin[c->rank + 1] - begin[c->rank];
    size_t from_at[COMM_MAX_RANKS], from[COMM_MAX_RANKS], to_at[COMM_MAX_RANKS], to[COMM_MAX_RANKS];
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        from_at[r] = begin[r] * size;
        from[r] = (begin[r + 1] - begin[r]) * size;
        to_at[r] = r * own * size;
        to[r] = own * size;
    }
    assert(c->n_ranks * own * size <= d->scratch_bytes);
    struct comm_parts give = {from_at, from}, take = {to_at, to};
    if (exchange(c, in, give, d->scratch, take, s, e))
        return e->code;
    if (own)
        sum_parts(d->scratch, own, c->n_ranks, out, own, t == COMM_BF16, s);
    return launched(c, cudaGetLastError(), e);
}

static enum err_code all_reduce(struct comm *c, const void *in, void *out, size_t n,
                                enum comm_dtype t, void *stream, struct err *e)
{
    struct nccl_comm *d = of(c);
    cudaStream_t s = (cudaStream_t)stream;
    size_t size = comm_dtype_bytes(t), begin[COMM_MAX_RANKS + 1];
    if (usable(c, e))
        return e->code;
    if (c->any_order)
        return took(c, lib.all_reduce(in, out, n, type_of(t), ncclSum, d->comm, s), e);
    if (n * size <= SMALL_BYTES) {
        if (took(c, lib.all_gather(in, d->scratch, n * size, ncclUint8, d->comm, s), e))
            return e->code;
        if (n)
            sum_parts(d->scratch, n, c->n_ranks, out, n, t == COMM_BF16, s);
        return launched(c, cudaGetLastError(), e);
    }
    size_t from_at[COMM_MAX_RANKS], from[COMM_MAX_RANKS], to_at[COMM_MAX_RANKS], to[COMM_MAX_RANKS];
    for (uint32_t r = 0; r <= c->n_ranks; r++)
        begin[r] = r == c->n_ranks ? n : n * r / c->n_ranks / SLICE_VALUES * SLICE_VALUES;
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        from_at[r] = begin[c->rank] * size; /* the own sum to all */
        from[r] = (begin[c->rank + 1] - begin[c->rank]) * size;
        to_at[r] = begin[r] * size;
        to[r] = (begin[r + 1] - begin[r]) * size;
    }
    struct comm_parts give = {from_at, from}, take = {to_at, to};
    if (sum_of_parts(c, in, begin, (unsigned char *)out + begin[c->rank] * size, t, s, e))
        return e->code;
    return exchange(c, out, give, out, take, s, e);
}

static enum err_code reduce_scatter(struct comm *c, const void *in, void *out, size_t n,
                                    enum comm_dtype t, void *stream, struct err *e)
{
    struct nccl_comm *d = of(c);
    cudaStream_t s = (cudaStream_t)stream;
    size_t begin[COMM_MAX_RANKS + 1];
    if (usable(c, e))
        return e->code;
    if (c->any_order)
        return took(c, lib.reduce_scatter(in, out, n, type_of(t), ncclSum, d->comm, s), e);
    for (uint32_t r = 0; r <= c->n_ranks; r++)
        begin[r] = r * n;
    return sum_of_parts(c, in, begin, out, t, s, e);
}

static enum err_code all_gather(struct comm *c, const void *in, void *out, size_t bytes,
                                void *stream, struct err *e)
{
    if (usable(c, e))
        return e->code;
    return took(c, lib.all_gather(in, out, bytes, ncclUint8, of(c)->comm, (cudaStream_t)stream), e);
}

static enum err_code all_to_allv(struct comm *c, const void *in, struct comm_parts send, void *out,
                                 struct comm_parts recv, void *stream, struct err *e)
{
    if (usable(c, e))
        return e->code;
    if (send.bytes[c->rank] != recv.bytes[c->rank])
        return fail(c, "sends itself another size than it expects", e);
    return exchange(c, in, send, out, recv, (cudaStream_t)stream, e);
}

static enum err_code broadcast(struct comm *c, void *buf, size_t bytes, uint32_t root, void *stream,
                               struct err *e)
{
    if (usable(c, e))
        return e->code;
    return took(
        c, lib.broadcast(buf, buf, bytes, ncclUint8, (int)root, of(c)->comm, (cudaStream_t)stream),
        e);
}

static enum err_code barrier(struct comm *c, void *stream, struct err *e)
{
    float *one = (float *)of(c)->scratch;
    if (usable(c, e))
        return e->code;
    return took(
        c, lib.all_reduce(one, one, 1, ncclFloat32, ncclSum, of(c)->comm, (cudaStream_t)stream), e);
}

static void nap(uint32_t turn)
{
    struct timespec t = {0, 20000};
    if (turn > SPINS) /* some 20 ms: it is a long step */
        nanosleep(&t, NULL);
}

/* The stream after give_up(): its kernels end soon. */
static void drain(cudaStream_t s)
{
    uint64_t end_us = clock_us() + CLOSE_MS * 1000ull;
    while (cudaStreamQuery(s) == cudaErrorNotReady && clock_us() < end_us)
        nap(SPINS + 1);
    (void)cudaGetLastError();
}

static enum err_code wait_done(struct comm *c, void *stream, struct err *e)
{
    struct nccl_comm *d = of(c);
    cudaStream_t s = (cudaStream_t)stream;
    uint64_t end_us = clock_us() + (uint64_t)c->timeout_ms * 1000;
    cudaError_t code;
    for (uint32_t i = 0; (code = cudaStreamQuery(s)) == cudaErrorNotReady; i++) {
        ncclResult_t state = ncclSuccess;
        char what[120] = "";
        nap(i);
        if (is_broken(d)) {
            give_up(d);
            break;
        }
        if (i % 64)
            continue;
        if (lib.state(d->comm, &state) != ncclSuccess ||
            (state != ncclSuccess && state != ncclInProgress))
            snprintf(what, sizeof what, "failed: %s", lib.text(state));
        else if (clock_us() > end_us)
            snprintf(what, sizeof what, "did not end within %u ms", c->timeout_ms);
        if (what[0]) {
            (void)fail(c, what, e);
            break;
        }
    }
    if (code == cudaErrorNotReady)
        drain(s);
    else if (code != cudaSuccess)
        return fail(c, cudaGetErrorString(code), e);
    return error(c, e);
}

static void close_comm(struct comm *c)
{
    struct nccl_comm *d = of(c);
    (void)cudaSetDevice(d->device);
    end_comm(d, !is_broken(d));
    (void)cudaFree(d->scratch);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static const struct comm_body body = {all_reduce, all_gather, reduce_scatter, all_to_allv,
                                      broadcast,  barrier,    wait_done,      note_broken,
                                      error,      close_comm};

static enum err_code reserve(struct nccl_comm *d, const struct comm_config *cfg, struct err *e)
{
    size_t small = (size_t)SMALL_BYTES * cfg->n_ranks;
    size_t large = cfg->max_bytes + (size_t)cfg->n_ranks * 4 * SLICE_VALUES * cfg->n_ranks;
    d->scratch_bytes = cfg->any_order ? 256 : small > large ? small : large;
    cudaError_t code = cudaSetDevice(d->device);
    if (code == cudaSuccess)
        code = FAULT("comm.nccl.scratch") ? cudaErrorMemoryAllocation
                                          : cudaMalloc((void **)&d->scratch, d->scratch_bytes);
    if (code == cudaSuccess)
        code = cudaMemset(d->scratch, 0, d->scratch_bytes);
    if (code == cudaSuccess)
        return ERR_OK;
    (void)cudaGetLastError();
    return err_set(e, code == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_CUDA,
                   "comm %s: rank %u on cuda:%d: %s", cfg->group, cfg->rank, d->device,
                   cudaGetErrorString(code));
}

static enum err_code join(struct nccl_comm *d, const struct comm_config *cfg, struct err *e)
{
    char name[MEETING_NAME_BYTES];
    ncclUniqueId id;
    ncclConfig_t how = NCCL_CONFIG_INITIALIZER;
    how.blocking = 0;
    snprintf(name, sizeof name, "nccl/%s", cfg->group);
    if (cfg->rank == 0) {
        ncclResult_t code = lib.get_unique_id(&id);
        if (code != ncclSuccess)
            return err_set(e, ERR_COMM, "comm %s: nccl: %s", cfg->group, lib.text(code));
        if (meeting_pin(cfg->meeting, name, &id, sizeof id, e))
            return e->code;
    } else if (meeting_read(cfg->meeting, name, &id, sizeof id, cfg->open_ms, e)) {
        return err_prefix(e, "comm %s: rank %u: rank 0 did not come", cfg->group, cfg->rank);
    }
    ncclResult_t code = settled(d, lib.init(&d->comm, (int)cfg->n_ranks, id, (int)cfg->rank, &how),
                                cfg->timeout_ms);
    if (code == ncclInProgress)
        return err_set(e, ERR_COMM, "comm %s: rank %u: not all %u ranks came within %u ms",
                       cfg->group, cfg->rank, cfg->n_ranks, cfg->open_ms);
    if (code != ncclSuccess)
        return err_set(e, ERR_COMM, "comm %s: rank %u: nccl: %s", cfg->group, cfg->rank,
                       lib.text(code));
    return ERR_OK;
}

extern "C" enum err_code comm_nccl_open(struct comm **out, const struct comm_config *cfg,
                                        struct err *e)
{
    if (comm_nccl_check(e))
        return e->code;
    struct nccl_comm *d = (struct nccl_comm *)calloc(1, sizeof *d);
    if (!d)
        return err_set(e, ERR_NOMEM, "comm %s: rank %u", cfg->group, cfg->rank);
    pthread_mutex_init(&d->lock, NULL);
    d->device = (int)cfg->device;
    d->base.body = &body;
    d->base.capturable = false; /* see above */
    if (reserve(d, cfg, e) || join(d, cfg, e)) {
        struct err why = *e;
        give_up(d);
        close_comm(&d->base);
        *e = why;
        return e->code;
    }
    *out = &d->base;
    return ERR_OK;
}
