/* test_comm.c - ranks as threads: the same bits everywhere, and nobody waits for ever. */
#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"
#include "comm/comm.h"
#include "comm/meeting.h"
#include "test.h"

#include <stdatomic.h>
#include <unistd.h>

enum { MOST_RANKS = 5, MOST = 5000 }; /* elements a rank has */

struct rank {
    struct meeting *meeting;
    uint32_t rank, n_ranks, timeout_ms;
    uint64_t seed;
    int calls;
    enum comm_op op;      /* of what goes wrong */
    enum err_code opened; /* comm_open()'s */
    struct err err;       /* of the first call that failed */
    uint32_t n_good;      /* calls before it */
    uint64_t waited_us;   /* in the call that failed */
    uint64_t sum_of_bits; /* of all results */
    struct comm *comm;
    void (*life)(struct rank *r);
};

static void *rank_main(void *arg)
{
    struct rank *r = arg;
    struct comm_config cfg = {.kind = "threads",
                              .group = "test",
                              .rank = r->rank,
                              .n_ranks = r->n_ranks,
                              .timeout_ms = r->timeout_ms,
                              .max_bytes = MOST * 4 * MOST_RANKS,
                              .meeting = r->meeting};
    r->opened = comm_open(&r->comm, &cfg, &r->err);
    if (!r->opened) {
        r->life(r);
        comm_close(r->comm);
    }
    return NULL;
}

static void run_ranks(struct rank *r, uint32_t n)
{
    struct err e;
    struct meeting *m;
    pthread_t id[MOST_RANKS];
    CHECK_OK(meeting_create(&m, &e), e);
    for (uint32_t i = 0; i < n; i++) {
        r[i].meeting = m;
        r[i].rank = i;
        r[i].n_ranks = n;
        CHECK_OK(thread_start(&id[i], "rank", rank_main, &r[i], &e), e);
    }
    for (uint32_t i = 0; i < n; i++)
        thread_join(id[i]);
    meeting_destroy(m);
}

/* What rank r has at i in call `seed`: every rank can tell what the others have. */
static float value(uint64_t seed, uint32_t r, size_t i)
{
    struct rng g = {seed * 1000003 + r * 7919 + i};
    return rng_normal(&g) * (rng_below(&g, 2) ? 1000.0f : 0.001f);
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

static void put(void *buf, enum comm_dtype t, size_t i, float x)
{
    if (t == COMM_F32)
        ((float *)buf)[i] = x;
    else
        ((uint16_t *)buf)[i] = to_bf16(x);
}

/* The sum in rank order of element i, as it must lie in memory. */
static bool is_sum(const void *buf, enum comm_dtype t, size_t at, uint64_t seed, uint32_t n_ranks,
                   size_t i)
{
    float sum = 0.0f;
    for (uint32_t r = 0; r < n_ranks; r++) {
        float x = value(seed, r, i);
        x = t == COMM_F32 ? x : from_bf16(to_bf16(x));
        sum = r ? sum + x : x;
    }
    uint16_t h = to_bf16(sum);
    return t == COMM_F32 ? !memcmp((const float *)buf + at, &sum, 4)
                         : !memcmp((const uint16_t *)buf + at, &h, 2);
}

static void one_sum(struct rank *r, uint64_t seed, enum comm_op op, size_t n, struct rng *g)
{
    struct err e;
    enum comm_dtype t = rng_below(g, 2) ? COMM_F32 : COMM_BF16;
    bool in_place = rng_below(g, 2), scatter = op == COMM_REDUCE_SCATTER;
    size_t size = comm_dtype_bytes(t), all = scatter ? n * r->n_ranks : n, at = n * r->rank;
    unsigned char *in = malloc(all * size + 1), *out = in_place ? in : malloc(n * size + 1);
    CHECK(in && out);
    for (size_t i = 0; i < all; i++)
        put(in, t, i, value(seed, r->rank, i));
    if (scatter) {
        unsigned char *to = in_place ? in + at * size : out;
        CHECK_OK(comm_reduce_scatter(r->comm, in, to, n, t, NULL, &e), e);
        for (size_t i = 0; i < n; i++)
            CHECK(is_sum(to, t, i, seed, r->n_ranks, at + i));
    } else {
        CHECK_OK(comm_all_reduce(r->comm, in, out, n, t, NULL, &e), e);
        for (size_t i = 0; i < n; i++)
            CHECK(is_sum(out, t, i, seed, r->n_ranks, i));
    }
    if (!in_place)
        free(out);
    free(in);
}

static unsigned char byte(uint64_t seed, uint32_t from, uint32_t to, size_t i)
{
    return (unsigned char)(seed * 31 + from * 101 + to * 17 + i * 7);
}

static void one_gather(struct rank *r, uint64_t seed, size_t n, struct rng *g)
{
    struct err e;
    unsigned char *out = malloc(n * r->n_ranks + 1), *own = malloc(n + 1);
    CHECK(out && own);
    unsigned char *in = rng_below(g, 2) ? own : out + r->rank * n;
    for (size_t i = 0; i < n; i++)
        in[i] = byte(seed, r->rank, 0, i);
    CHECK_OK(comm_all_gather(r->comm, in, out, n, NULL, &e), e);
    for (uint32_t k = 0; k < r->n_ranks; k++)
        for (size_t i = 0; i < n; i++)
            CHECK(out[k * n + i] == byte(seed, k, 0, i));
    free(own);
    free(out);
}

/* Bytes from a to b in an exchange of call `seed`. */
static size_t part(uint64_t seed, uint32_t a, uint32_t b, size_t n)
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
        send_n[k] = equal ? n : part(seed, r->rank, k, n);
        recv_n[k] = equal ? n : part(seed, k, r->rank, n);
        send_at[k] = sent;
        recv_at[k] = got;
        sent += send_n[k];
        got += recv_n[k];
    }
    unsigned char *in = malloc(sent + 1), *out = malloc(got + 1);
    CHECK(in && out);
    for (uint32_t k = 0; k < r->n_ranks; k++)
        for (size_t i = 0; i < send_n[k]; i++)
            in[send_at[k] + i] = byte(seed, r->rank, k, i);
    if (equal)
        CHECK_OK(comm_all_to_all(r->comm, in, out, n, NULL, &e), e);
    else
        CHECK_OK(comm_all_to_allv(r->comm, in, (struct comm_parts){send_at, send_n}, out,
                                  (struct comm_parts){recv_at, recv_n}, NULL, &e),
                 e);
    for (uint32_t k = 0; k < r->n_ranks; k++)
        for (size_t i = 0; i < recv_n[k]; i++)
            CHECK(out[recv_at[k] + i] == byte(seed, k, r->rank, i));
    free(in);
    free(out);
}

static void one_broadcast(struct rank *r, uint64_t seed, size_t n, uint32_t root)
{
    struct err e;
    unsigned char *buf = malloc(n + 1);
    CHECK(buf);
    for (size_t i = 0; i < n; i++)
        buf[i] = byte(seed, r->rank, 1, i);
    CHECK_OK(comm_broadcast(r->comm, buf, n, root, NULL, &e), e);
    for (size_t i = 0; i < n; i++)
        CHECK(buf[i] == byte(seed, root, 1, i));
    free(buf);
}

static _Atomic uint32_t at_barrier;

static void one_barrier(struct rank *r, struct rng *g)
{
    struct err e;
    uint32_t late = rng_below(g, r->n_ranks), by_us = rng_below(g, 300);
    if (late == r->rank)
        usleep(by_us);
    uint32_t before = atomic_fetch_add(&at_barrier, 1);
    CHECK_OK(comm_barrier(r->comm, NULL, &e), e);
    CHECK(atomic_load(&at_barrier) >= before / r->n_ranks * r->n_ranks + r->n_ranks);
    CHECK_OK(comm_barrier(r->comm, NULL, &e), e);
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
        size_t n = rng_below(&g, rng_below(&g, 4) ? 40 : MOST);
        if (op == COMM_ALL_REDUCE || op == COMM_REDUCE_SCATTER)
            one_sum(r, seed, op, n, &g);
        else if (op == COMM_ALL_GATHER)
            one_gather(r, seed, n, &g);
        else if (op == COMM_BROADCAST)
            one_broadcast(r, seed, n, (uint32_t)(seed % r->n_ranks));
        else if (op == COMM_BARRIER)
            one_barrier(r, &g);
        else
            one_exchange(r, seed, op == COMM_ALL_TO_ALL, n);
    }
    CHECK_OK(comm_wait(r->comm, NULL, &e), e);
    CHECK_OK(comm_error(r->comm, &e), e);
    for (int op = 0; op < N_COMM_OPS; op++)
        counted += r->comm->n_calls[op];
    CHECK(counted == r->comm->seq && counted >= (uint64_t)r->calls);
}

/* Goal: any sequence of calls, of any size, gives what it must, on 1 to 5 ranks; sums have the bits
 * of a sum in rank order. */
TEST_LIMIT(comm_random_life, 60)
{
    struct rng g = {test_seed()};
    for (uint32_t n = 1; n <= MOST_RANKS; n++) {
        struct rank r[MOST_RANKS] = {0};
        uint64_t seed = rng_next(&g);
        atomic_store(&at_barrier, 0);
        for (uint32_t i = 0; i < n; i++)
            r[i] = (struct rank){.seed = seed, .calls = 150, .life = random_life};
        run_ranks(r, n);
        for (uint32_t i = 0; i < n; i++)
            CHECK_MSG(!r[i].opened, "%s", r[i].err.msg);
    }
}

/* One call of any operation, of sizes that do not matter. */
static enum err_code any_call(struct comm *c, enum comm_op op, struct err *e)
{
    static float in[MOST_RANKS][256], out[MOST_RANKS][256];
    size_t at[MOST_RANKS], bytes[MOST_RANKS];
    float *i = in[c->rank], *o = out[c->rank];
    for (uint32_t r = 0; r < c->n_ranks; r++) {
        at[r] = 16 * r;
        bytes[r] = 16;
    }
    switch (op) {
    case COMM_ALL_REDUCE:
        return comm_all_reduce(c, i, o, 200, COMM_F32, NULL, e);
    case COMM_ALL_GATHER:
        return comm_all_gather(c, i, o, 16, NULL, e);
    case COMM_REDUCE_SCATTER:
        return comm_reduce_scatter(c, i, o, 16, COMM_BF16, NULL, e);
    case COMM_ALL_TO_ALL:
        return comm_all_to_all(c, i, o, 16, NULL, e);
    case COMM_ALL_TO_ALLV:
        return comm_all_to_allv(c, i, (struct comm_parts){at, bytes}, o,
                                (struct comm_parts){at, bytes}, NULL, e);
    case COMM_BROADCAST:
        return comm_broadcast(c, o, 64, 0, NULL, e);
    case COMM_BARRIER:
    case N_COMM_OPS:
        break;
    }
    return comm_barrier(c, NULL, e);
}

/* Calls op until one fails; the last rank stays away from call number r->calls. */
static void stay_away(struct rank *r)
{
    for (;; r->n_good++) {
        if (r->rank == r->n_ranks - 1 && r->comm->seq + 1 == (uint32_t)r->calls)
            return;
        uint64_t begin = clock_us();
        if (any_call(r->comm, r->op, &r->err)) {
            r->waited_us = clock_us() - begin;
            return;
        }
    }
}

/* Goal: a rank that does not come ends the call of all others with one message that names it, the
 * call and its number, in time; nothing after that works. */
TEST(comm_a_rank_that_does_not_come)
{
    for (int op = 0; op < N_COMM_OPS; op++) {
        struct rank r[3] = {0};
        char want[64];
        for (int i = 0; i < 3; i++)
            r[i] = (struct rank){
                .timeout_ms = 100, .calls = 4, .op = (enum comm_op)op, .life = stay_away};
        run_ranks(r, 3);
        snprintf(want, sizeof want, "rank 2 of 3 did not come to %s 4",
                 comm_op_name(op == COMM_ALL_TO_ALL ? COMM_ALL_TO_ALLV : (enum comm_op)op));
        for (int i = 0; i < 2; i++) {
            CHECK(r[i].n_good == 3 && r[i].err.code == ERR_COMM);
            CHECK_MSG(strstr(r[i].err.msg, want), "%s", r[i].err.msg);
            CHECK(r[i].waited_us >= 10000 && !strcmp(r[i].err.msg, r[0].err.msg));
        }
        CHECK(r[0].waited_us >= 90000 || r[1].waited_us >= 90000);
    }
}

static void call_until_broken(struct rank *r)
{
    while (!any_call(r->comm, r->op, &r->err))
        r->n_good++;
    struct err again = {0};
    CHECK(any_call(r->comm, COMM_BARRIER, &again) == ERR_COMM);
    CHECK(comm_error(r->comm, &again) == ERR_COMM && comm_wait(r->comm, NULL, &again) == ERR_COMM);
}

/* Goal: a call that fails on one rank fails on all, wherever it is; each operation, on its first
 * and a later passage. */
TEST(comm_a_call_that_fails)
{
    for (int op = 0; op < N_COMM_OPS; op++)
        for (int at = 1; at < 12; at += 5) {
            struct rank r[3] = {0};
            char spec[64];
            snprintf(spec, sizeof spec, "comm.%s:%d", comm_op_name((enum comm_op)op), at);
            fault_arm(spec);
            for (int i = 0; i < 3; i++)
                r[i] = (struct rank){.op = (enum comm_op)op, .life = call_until_broken};
            run_ranks(r, 3);
            fault_arm(NULL);
            for (int i = 0; i < 3; i++) {
                CHECK(r[i].err.code == ERR_COMM && !strcmp(r[i].err.msg, r[0].err.msg));
                CHECK_MSG(strstr(r[i].err.msg, comm_op_name((enum comm_op)op)), "%s", r[i].err.msg);
            }
        }
}

static void abort_in_the_middle(struct rank *r)
{
    if (r->rank == 1) {
        for (int i = 0; i < r->calls; i++)
            CHECK(!any_call(r->comm, r->op, &r->err));
        comm_abort(r->comm, "the test wants it");
        comm_abort(r->comm, "a second reason");
    }
    call_until_broken(r);
}

/* Goal: comm_abort() ends the calls of all ranks, long before their time-out. */
TEST(comm_abort_in_the_middle)
{
    struct rng g = {test_seed()};
    for (int op = 0; op < N_COMM_OPS; op++) {
        struct rank r[4] = {0};
        int calls = (int)rng_below(&g, 20);
        uint64_t begin = clock_us();
        for (int i = 0; i < 4; i++)
            r[i] = (struct rank){.timeout_ms = 60000,
                                 .calls = calls,
                                 .op = (enum comm_op)op,
                                 .life = abort_in_the_middle};
        run_ranks(r, 4);
        for (int i = 0; i < 4; i++)
            CHECK_MSG(!strcmp(r[i].err.msg, "the test wants it"), "%s", r[i].err.msg);
        CHECK(clock_us() - begin < 10000000);
    }
}

static void come_with_another_call(struct rank *r)
{
    float x[64] = {0}, y[64];
    size_t n = r->rank == 1 ? 7 : 8, at[3] = {0, 16, 32}, bytes[3] = {16, 16, 16};
    CHECK_OK(comm_barrier(r->comm, NULL, &r->err), r->err);
    if (r->op == COMM_ALL_REDUCE) {
        CHECK(comm_all_reduce(r->comm, x, x, n, COMM_F32, NULL, &r->err));
    } else if (r->op == COMM_ALL_TO_ALLV) {
        struct comm_parts all = {at, bytes};
        size_t less[3] = {16, 12, 16};
        struct comm_parts recv = {at, r->rank == 2 ? less : bytes};
        CHECK(comm_all_to_allv(r->comm, x, all, y, recv, NULL, &r->err));
    } else {
        CHECK(r->rank == 1 ? comm_barrier(r->comm, NULL, &r->err)
                           : comm_all_reduce(r->comm, x, x, n, COMM_F32, NULL, &r->err));
    }
}

/* Goal: ranks that come to one call with another operation or size are told, all of them. */
TEST(comm_calls_that_do_not_agree)
{
    static const enum comm_op op[] = {COMM_ALL_REDUCE, COMM_ALL_TO_ALLV, COMM_BARRIER};
    static const char *const want[] = {
        "rank 0 came to all_reduce 2 of 8, rank 1 to all_reduce 2 of 7",
        "rank 1 sends 16 bytes to rank 2, who expects 12",
        "rank 0 came to all_reduce 2 of 8, rank 1 to barrier 2"};
    for (int k = 0; k < 3; k++) {
        struct rank r[3] = {0};
        for (int i = 0; i < 3; i++)
            r[i] = (struct rank){.op = op[k], .life = come_with_another_call};
        run_ranks(r, 3);
        for (int i = 0; i < 3; i++)
            CHECK_MSG(r[i].err.code == ERR_COMM && strstr(r[i].err.msg, want[k]), "%s",
                      r[i].err.msg);
    }
}

static void too_large(struct rank *r)
{
    static float x[MOST * MOST_RANKS + 1];
    CHECK(comm_all_reduce(r->comm, x, x, MOST * MOST_RANKS + 1, COMM_F32, NULL, &r->err) != ERR_OK);
}

TEST(comm_a_call_beyond_the_bound)
{
    struct rank r[1] = {{.life = too_large}};
    run_ranks(r, 1);
    CHECK(r[0].err.code == ERR_INVALID &&
          strstr(r[0].err.msg, "100004 bytes: the bound is 100000"));
}

static void nothing(struct rank *r)
{
    (void)r;
}

/* Goal: a group whose ranks do not all join is no group: all are told, none waits for ever. */
TEST(comm_a_rank_that_cannot_join)
{
    static const char *const place[] = {"comm.open",    "comm.open:2",    "comm.open:3",
                                        "comm.threads", "comm.threads:3", "comm.group",
                                        "meeting.pin"};
    for (size_t k = 0; k < sizeof place / sizeof *place; k++) {
        struct rank r[3] = {0};
        fault_arm(place[k]);
        for (int i = 0; i < 3; i++)
            r[i] = (struct rank){.timeout_ms = 150, .life = nothing};
        run_ranks(r, 3);
        fault_arm(NULL);
        for (int i = 0; i < 3; i++)
            CHECK_MSG(r[i].opened == ERR_COMM || r[i].opened == ERR_NOMEM, "%s rank %d: %s",
                      place[k], i, r[i].err.msg);
    }
}

TEST(comm_refuses)
{
    struct err e;
    struct meeting *m;
    struct comm *c = NULL;
    struct comm_config good = {.kind = "threads", .group = "g", .n_ranks = 2, .timeout_ms = 20};
    struct comm_config bad;
    CHECK_OK(meeting_create(&m, &e), e);
    good.meeting = m;
    bad = good;
    bad.kind = "tcp";
    CHECK(comm_open(&c, &bad, &e) == ERR_INVALID && strstr(e.msg, "\"tcp\" is no kind"));
    bad = good;
    bad.rank = 2;
    CHECK(comm_open(&c, &bad, &e) == ERR_INVALID && strstr(e.msg, "rank 2 of 2"));
    bad = good;
    bad.n_ranks = COMM_MAX_RANKS + 1;
    CHECK(comm_open(&c, &bad, &e) == ERR_INVALID);
    bad = good;
    bad.group = "";
    CHECK(comm_open(&c, &bad, &e) == ERR_INVALID);
    bad = good;
    bad.rank = 1; /* rank 0 is not there */
    CHECK(comm_open(&c, &bad, &e) == ERR_COMM && strstr(e.msg, "rank 0 did not come"));
    CHECK(comm_open(&c, &good, &e) == ERR_COMM && strstr(e.msg, "rank 1 of 2 did not come"));
    bad = good;
    bad.rank = 1; /* rank 0 was there, and has left */
    CHECK(comm_open(&c, &bad, &e) == ERR_COMM && strstr(e.msg, "after the group had ended"));
    CHECK(comm_open(&c, &good, &e) == ERR_INVALID && strstr(e.msg, "already"));
    CHECK(!c);
    meeting_destroy(m);
    fault_arm("meeting.create");
    CHECK(meeting_create(&m, &e) == ERR_NOMEM);
    fault_arm(NULL);
}

TEST(meeting_notes)
{
    struct err e;
    struct meeting *m;
    char back[8], big[MEETING_NAME_BYTES + 1];
    CHECK_OK(meeting_create(&m, &e), e);
    CHECK_OK(meeting_pin(m, "a", "abcd", 5, &e), e);
    CHECK_OK(meeting_read(m, "a", back, 5, 10, &e), e);
    CHECK(!strcmp(back, "abcd"));
    CHECK(meeting_read(m, "a", back, 4, 10, &e) == ERR_INVALID && strstr(e.msg, "has 5 bytes"));
    CHECK(meeting_read(m, "b", back, 4, 10, &e) == ERR_COMM && strstr(e.msg, "nobody pinned b"));
    memset(big, 'x', sizeof big);
    big[MEETING_NAME_BYTES] = '\0';
    CHECK(meeting_pin(m, big, "", 0, &e) == ERR_INVALID);
    CHECK(meeting_process() && meeting_process() == meeting_process());
    meeting_destroy(m);
}
