/* comm_rig.h - ranks as threads, and calls whose results each rank can tell beforehand: for tests
 * of every body of comm.h.
 *
 * Where buffers lie is a struct rank_memory: each rank has one area of it, and moves bytes in and
 * out. A buffer begins at a multiple of 16 bytes, or off by some, which bodies must bear.
 */
#ifndef GAZE_TEST_COMM_RIG_H
#define GAZE_TEST_COMM_RIG_H

#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"
#include "comm/comm.h"
#include "comm/meeting.h"
#include "test.h"

#include <stdatomic.h>
#include <unistd.h>

enum { MOST_RANKS = 8 };

struct rank_memory {
    void *(*open)(uint32_t device, size_t bytes); /* in the rank's thread */
    unsigned char *(*area)(void *self);
    void *(*stream)(void *self);
    void (*put)(void *self, void *to, const void *from, size_t bytes);
    void (*get)(void *self, void *to, const void *from, size_t bytes);
    void (*close)(void *self);
};

struct rank {
    /* set by the test */
    const char *kind;
    const struct rank_memory *memory;
    void (*life)(struct rank *r);
    uint32_t device, timeout_ms, open_ms;
    uint64_t seed;
    int calls;
    uint32_t most;   /* values that a rank has in one call, at most */
    enum comm_op op; /* of what goes wrong */
    bool any_order;
    /* set by the rig */
    struct meeting *meeting;
    pthread_barrier_t *all; /* for the ranks' hosts */
    uint32_t rank, n_ranks;
    enum err_code opened; /* comm_open()'s */
    struct comm *comm;
    void *mem, *stream;
    unsigned char *in, *out, *host; /* host: as large as both */
    /* what the life leaves */
    struct err err;     /* of the first call that failed */
    uint32_t n_good;    /* calls before it */
    uint64_t waited_us; /* in the call that failed */
};

static size_t rank_bytes(const struct rank *r)
{
    return (size_t)r->most * 4 * r->n_ranks;
}

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    size_t half = rank_bytes(r) + 4096;
    struct comm_config cfg = {.kind = r->kind,
                              .group = "test",
                              .rank = r->rank,
                              .n_ranks = r->n_ranks,
                              .device = r->device,
                              .timeout_ms = r->timeout_ms,
                              .open_ms = r->open_ms,
                              .max_bytes = rank_bytes(r),
                              .any_order = r->any_order,
                              .meeting = r->meeting};
    r->mem = r->memory->open(r->device, 2 * half);
    r->stream = r->memory->stream(r->mem);
    r->in = r->memory->area(r->mem);
    r->out = r->in + half;
    r->host = malloc(2 * half);
    CHECK(r->host);
    pthread_barrier_wait(r->all); /* taking memory may wait for kernels that wait for us */
    r->opened = comm_open(&r->comm, &cfg, &r->err);
    if (!r->opened) {
        r->life(r);
        struct err e; /* nothing of this rank may be under way when it closes */
        (void)!comm_wait(r->comm, r->stream, &e);
        comm_close(r->comm);
    }
    free(r->host);
    return NULL;
}

static void run_ranks(struct rank *r, uint32_t n)
{
    struct err e;
    struct meeting *m;
    pthread_t id[MOST_RANKS];
    pthread_barrier_t all;
    CHECK(n <= MOST_RANKS);
    pthread_barrier_init(&all, NULL, n);
    CHECK_OK(meeting_create(&m, &e), e);
    for (uint32_t i = 0; i < n; i++) {
        r[i].meeting = m;
        r[i].all = &all;
        r[i].rank = i;
        r[i].n_ranks = n;
        CHECK_OK(thread_start(&id[i], "rank", rank_main, &r[i], &e), e);
    }
    for (uint32_t i = 0; i < n; i++)
        thread_join(id[i]);
    for (uint32_t i = 0; i < n; i++)
        r[i].memory->close(r[i].mem);
    pthread_barrier_destroy(&all);
    meeting_destroy(m);
}

/* What rank r has at i in call `seed`: every rank can tell what the others have. */
static float value(uint64_t seed, uint32_t r, size_t i)
{
    uint64_t h = (seed * 1000003 + r * 7919 + i) * 0x9E3779B97F4A7C15u;
    float x = (float)(int32_t)(h >> 32) * 4.6e-10f; /* in [-1, 1) */
    return h & 1 ? x * 1000.0f : x * 0.001f;
}

static uint16_t to_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

static float from_bf16(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

static void put_value(unsigned char *buf, enum comm_dtype t, size_t i, float x)
{
    uint16_t h = to_bf16(x);
    if (t == COMM_F32)
        memcpy(buf + 4 * i, &x, 4);
    else
        memcpy(buf + 2 * i, &h, 2);
}

/* Whether buf[at] has the bits of the sum in rank order of element i. */
static bool is_sum(const struct rank *r, const unsigned char *buf, enum comm_dtype t, size_t at,
                   uint64_t seed, size_t i)
{
    float sum = 0.0f, most = 0.0f, got;
    for (uint32_t k = 0; k < r->n_ranks; k++) {
        float x = value(seed, k, i);
        x = t == COMM_F32 ? x : from_bf16(to_bf16(x));
        sum = k ? sum + x : x;
        most += x < 0 ? -x : x;
    }
    uint16_t h = to_bf16(sum);
    if (!r->any_order)
        return t == COMM_F32 ? !memcmp(buf + 4 * at, &sum, 4) : !memcmp(buf + 2 * at, &h, 2);
    /* in another order: each of n - 1 additions rounds by half a unit of at most `most` */
    memcpy(&h, buf + 2 * at, 2);
    memcpy(&got, buf + 4 * at, t == COMM_F32 ? 4 : 0);
    got = t == COMM_F32 ? got : from_bf16(h);
    float unit = t == COMM_F32 ? 1.2e-7f : 7.9e-3f, off = got < sum ? sum - got : got - sum;
    return off <= (float)r->n_ranks * unit * most;
}

/* A place in buf, aligned or not, the same for all ranks or not. */
static unsigned char *place_in(unsigned char *buf, struct rng *g, size_t size, uint32_t rank)
{
    size_t off = rng_below(g, 3) ? 0 : size * rng_below(g, 16), own = rng_below(g, 16);
    return buf + (rng_below(g, 4) ? off : size * ((own + rank) % 16));
}

static void finish_call(struct rank *r, const void *from, size_t bytes)
{
    struct err e;
    CHECK_OK(comm_wait(r->comm, r->stream, &e), e);
    r->memory->get(r->mem, r->host, from, bytes);
}

static void one_sum(struct rank *r, uint64_t seed, enum comm_op op, size_t n, struct rng *g)
{
    struct err e;
    enum comm_dtype t = rng_below(g, 2) ? COMM_F32 : COMM_BF16;
    bool in_place = rng_below(g, 2), scatter = op == COMM_REDUCE_SCATTER;
    size_t size = comm_dtype_bytes(t), all = scatter ? n * r->n_ranks : n, at = n * r->rank;
    unsigned char *in = place_in(r->in, g, size, r->rank);
    unsigned char *out = place_in(r->out, g, size, r->rank);
    if (in_place)
        out = scatter ? in + at * size : in;
    for (size_t i = 0; i < all; i++)
        put_value(r->host, t, i, value(seed, r->rank, i));
    r->memory->put(r->mem, in, r->host, all * size);
    if (scatter)
        CHECK_OK(comm_reduce_scatter(r->comm, in, out, n, t, r->stream, &e), e);
    else
        CHECK_OK(comm_all_reduce(r->comm, in, out, n, t, r->stream, &e), e);
    finish_call(r, out, n * size);
    for (size_t i = 0; i < n; i++)
        CHECK_MSG(is_sum(r, r->host, t, i, seed, scatter ? at + i : i),
                  "rank %u of %u: %s %u: element %zu of %zu is not the sum", r->rank, r->n_ranks,
                  comm_op_name(op), r->comm->seq, i, n);
}

static unsigned char byte(uint64_t seed, uint32_t from, uint32_t to, size_t i)
{
    return (unsigned char)(seed * 31 + from * 101 + to * 17 + i * 7 + i / 256);
}

static void one_gather(struct rank *r, uint64_t seed, size_t n, struct rng *g)
{
    struct err e;
    unsigned char *out = place_in(r->out, g, 1, r->rank), *own = place_in(r->in, g, 1, r->rank);
    unsigned char *in = rng_below(g, 2) ? own : out + r->rank * n;
    for (size_t i = 0; i < n; i++)
        r->host[i] = byte(seed, r->rank, 0, i);
    r->memory->put(r->mem, in, r->host, n);
    CHECK_OK(comm_all_gather(r->comm, in, out, n, r->stream, &e), e);
    finish_call(r, out, n * r->n_ranks);
    for (uint32_t k = 0; k < r->n_ranks; k++)
        for (size_t i = 0; i < n; i++)
            CHECK_MSG(r->host[k * n + i] == byte(seed, k, 0, i), "rank %u: gather: %zu of rank %u",
                      r->rank, i, k);
}

/* Bytes from a to b in an exchange of call `seed`. */
static size_t part_of(uint64_t seed, uint32_t a, uint32_t b, size_t n)
{
    struct rng g = {seed * 64 + a * 8 + b};
    return rng_below(&g, 3) ? rng_below(&g, (uint32_t)n + 1) : 0;
}

static void one_exchange(struct rank *r, uint64_t seed, bool equal, size_t n)
{
    struct err e;
    size_t send_at[MOST_RANKS], send_n[MOST_RANKS], recv_at[MOST_RANKS], recv_n[MOST_RANKS];
    size_t sent = 0, got = 0;
    for (uint32_t k = 0; k < r->n_ranks; k++) {
        send_n[k] = equal ? n : part_of(seed, r->rank, k, n);
        recv_n[k] = equal ? n : part_of(seed, k, r->rank, n);
        send_at[k] = sent;
        recv_at[k] = got;
        for (size_t i = 0; i < send_n[k]; i++)
            r->host[sent + i] = byte(seed, r->rank, k, i);
        sent += send_n[k];
        got += recv_n[k];
    }
    r->memory->put(r->mem, r->in, r->host, sent);
    if (equal)
        CHECK_OK(comm_all_to_all(r->comm, r->in, r->out, n, r->stream, &e), e);
    else
        CHECK_OK(comm_all_to_allv(r->comm, r->in, (struct comm_parts){send_at, send_n}, r->out,
                                  (struct comm_parts){recv_at, recv_n}, r->stream, &e),
                 e);
    finish_call(r, r->out, got);
    for (uint32_t k = 0; k < r->n_ranks; k++)
        for (size_t i = 0; i < recv_n[k]; i++)
            CHECK_MSG(r->host[recv_at[k] + i] == byte(seed, k, r->rank, i),
                      "rank %u: exchange: %zu of rank %u", r->rank, i, k);
}

static void one_broadcast(struct rank *r, uint64_t seed, size_t n, uint32_t root, struct rng *g)
{
    struct err e;
    unsigned char *buf = place_in(r->in, g, 1, r->rank);
    for (size_t i = 0; i < n; i++)
        r->host[i] = byte(seed, r->rank, 1, i);
    r->memory->put(r->mem, buf, r->host, n);
    CHECK_OK(comm_broadcast(r->comm, buf, n, root, r->stream, &e), e);
    finish_call(r, buf, n);
    for (size_t i = 0; i < n; i++)
        CHECK_MSG(r->host[i] == byte(seed, root, 1, i), "rank %u: broadcast: %zu", r->rank, i);
}

static _Atomic uint32_t at_barrier;

static void one_barrier(struct rank *r, struct rng *g)
{
    struct err e;
    uint32_t late = rng_below(g, r->n_ranks), by_us = rng_below(g, 300);
    if (late == r->rank)
        usleep(by_us);
    uint32_t before = atomic_fetch_add(&at_barrier, 1);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(comm_barrier(r->comm, r->stream, &e), e);
        CHECK_OK(comm_wait(r->comm, r->stream, &e), e);
        CHECK(atomic_load(&at_barrier) >= before / r->n_ranks * r->n_ranks + r->n_ranks);
    }
}

/* All ranks draw the same calls from the same seed. */
static void random_life(struct rank *r)
{
    struct err e;
    struct rng g = {r->seed};
    uint64_t counted = 0;
    for (int i = 0; i < r->calls; i++) {
        uint64_t seed = rng_next(&g) % 1000000;
        enum comm_op op = (enum comm_op)rng_below(&g, N_COMM_OPS);
        size_t n = rng_below(&g, rng_below(&g, 4) ? 40 : r->most);
        if (op == COMM_ALL_REDUCE || op == COMM_REDUCE_SCATTER)
            one_sum(r, seed, op, n, &g);
        else if (op == COMM_ALL_GATHER)
            one_gather(r, seed, n, &g);
        else if (op == COMM_BROADCAST)
            one_broadcast(r, seed, n, (uint32_t)(seed % r->n_ranks), &g);
        else if (op == COMM_BARRIER)
            one_barrier(r, &g);
        else
            one_exchange(r, seed, op == COMM_ALL_TO_ALL, n);
    }
    CHECK_OK(comm_error(r->comm, &e), e);
    for (int op = 0; op < N_COMM_OPS; op++)
        counted += r->comm->n_calls[op];
    CHECK(counted == r->comm->seq && counted >= (uint64_t)r->calls);
}

/* One call of any operation, of sizes that do not matter, and the wait for it. */
static enum err_code any_call(struct rank *r, enum comm_op op, struct err *e)
{
    struct comm *c = r->comm;
    void *i = r->in, *o = r->out, *s = r->stream;
    size_t at[MOST_RANKS], bytes[MOST_RANKS];
    enum err_code code = ERR_OK;
    for (uint32_t k = 0; k < c->n_ranks; k++) {
        at[k] = 16 * k;
        bytes[k] = 16;
    }
    switch (op) {
    case COMM_ALL_REDUCE:
        code = comm_all_reduce(c, i, o, 200, COMM_F32, s, e);
        break;
    case COMM_ALL_GATHER:
        code = comm_all_gather(c, i, o, 16, s, e);
        break;
    case COMM_REDUCE_SCATTER:
        code = comm_reduce_scatter(c, i, o, 16, COMM_BF16, s, e);
        break;
    case COMM_ALL_TO_ALL:
        code = comm_all_to_all(c, i, o, 16, s, e);
        break;
    case COMM_ALL_TO_ALLV:
        code = comm_all_to_allv(c, i, (struct comm_parts){at, bytes}, o,
                                (struct comm_parts){at, bytes}, s, e);
        break;
    case COMM_BROADCAST:
        code = comm_broadcast(c, o, 64, 0, s, e);
        break;
    case COMM_BARRIER:
    case N_COMM_OPS:
        code = comm_barrier(c, s, e);
        break;
    }
    return code ? code : comm_wait(c, s, e);
}

/* Calls op until one fails; the last rank stays away from call number r->calls. */
static void stay_away(struct rank *r)
{
    for (;; r->n_good++) {
        if (r->rank == r->n_ranks - 1 && r->comm->seq + 1 == (uint32_t)r->calls) {
            while (!comm_error(r->comm, &r->err)) /* it is there, but does not come */
                usleep(1000);
            return;
        }
        uint64_t begin = clock_us();
        if (any_call(r, r->op, &r->err)) {
            r->waited_us = clock_us() - begin;
            return;
        }
    }
}

static void call_until_broken(struct rank *r)
{
    while (!any_call(r, r->op, &r->err))
        r->n_good++;
    struct err again = {0};
    CHECK(any_call(r, COMM_BARRIER, &again) == ERR_COMM);
    CHECK(comm_error(r->comm, &again) == ERR_COMM);
    CHECK(comm_wait(r->comm, r->stream, &again) == ERR_COMM);
}

static void abort_in_the_middle(struct rank *r)
{
    if (r->rank == 1) {
        for (int i = 0; i < r->calls; i++)
            CHECK(!any_call(r, r->op, &r->err));
        comm_abort(r->comm, "the test wants it");
        comm_abort(r->comm, "a second reason");
    }
    call_until_broken(r);
}

#endif
