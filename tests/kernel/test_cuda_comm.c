/* test_cuda_comm.c - ranks on GPUs: several on one, one on each of several, through peer memory and
 * through NCCL; the same calls and the same bits as ranks on host memory have.
 *
 * GAZE_TEST_DEVICES: how many devices to use at most (all that are there).
 */
#include "cuda/cuda_ops.h"
#include "tests/kernel/device_memory.h"
#include "tests/unit/comm_rig.h"

static const struct rank_memory device_memory = {device_rank_open,   device_rank_area,
                                                 device_rank_stream, device_rank_put,
                                                 device_rank_get,    device_rank_close};

static __attribute__((constructor)) void set_environment(void)
{
    comm_environment(); /* before CUDA starts */
}

static uint32_t n_devices(void)
{
    const char *s = getenv("GAZE_TEST_DEVICES");
    uint32_t n = cuda_device_count(), most = s ? (uint32_t)atoi(s) : n;
    return n < most ? n : most;
}

/* The emulated device is a hundred thousand times slower. */
static bool is_emulated(void)
{
    return cuda_device_free_bytes(0) == (size_t)1 << 40;
}

struct layout {
    const char *kind;
    uint32_t n_ranks;
    bool spread; /* a device for each rank; otherwise all on the first */
    bool any_order;
};

static void fill(struct rank *r, const struct layout *l, void (*life)(struct rank *))
{
    for (uint32_t i = 0; i < l->n_ranks; i++)
        r[i] = (struct rank){.kind = l->kind,
                             .memory = &device_memory,
                             .life = life,
                             .device = l->spread ? i : 0,
                             .any_order = l->any_order,
                             .most = is_emulated() ? 150000 : 300000,
                             .calls = is_emulated() ? 40 : 150};
}

static void need_devices(const struct layout *l)
{
    if (!cuda_device_count())
        TEST_SKIP("there is no GPU");
    struct err e;
    if (!strcmp(l->kind, "nccl") && comm_kind_check(l->kind, &e)) {
        fprintf(stderr, "  %s\n", e.msg);
        TEST_SKIP("there is no NCCL");
    }
    if (l->spread && n_devices() < l->n_ranks)
        TEST_SKIP("there are not as many GPUs");
}

/* Any sequence of calls, of any size, aligned or not, gives what it must. */
static void live(struct layout l)
{
    struct rng g = {test_seed()};
    struct rank r[MOST_RANKS];
    need_devices(&l);
    fill(r, &l, random_life);
    uint64_t seed = rng_next(&g);
    for (uint32_t i = 0; i < l.n_ranks; i++)
        r[i].seed = seed;
    run_ranks(r, l.n_ranks);
    for (uint32_t i = 0; i < l.n_ranks; i++)
        CHECK_MSG(!r[i].opened, "%s", r[i].err.msg);
}

TEST_LIMIT(comm_device_one_gpu_1_rank, 300)
{
    live((struct layout){"device", 1, false, false});
}
TEST_LIMIT(comm_device_one_gpu_2_ranks, 300)
{
    live((struct layout){"device", 2, false, false});
}
TEST_LIMIT(comm_device_one_gpu_3_ranks, 300)
{
    live((struct layout){"device", 3, false, false});
}
TEST_LIMIT(comm_device_one_gpu_4_ranks, 300)
{
    live((struct layout){"device", 4, false, false});
}
TEST_LIMIT(comm_device_one_gpu_8_ranks, 300)
{
    live((struct layout){"device", 8, false, false});
}
TEST_LIMIT(comm_device_2_gpus, 300)
{
    live((struct layout){"device", 2, true, false});
}
TEST_LIMIT(comm_device_4_gpus, 300)
{
    live((struct layout){"device", 4, true, false});
}
TEST_LIMIT(comm_nccl_1_gpu, 300)
{
    live((struct layout){"nccl", 1, true, false});
}
TEST_LIMIT(comm_nccl_2_gpus, 300)
{
    live((struct layout){"nccl", 2, true, false});
}
TEST_LIMIT(comm_nccl_4_gpus, 300)
{
    live((struct layout){"nccl", 4, true, false});
}
TEST_LIMIT(comm_nccl_2_gpus_any_order, 300)
{
    live((struct layout){"nccl", 2, true, true});
}
TEST_LIMIT(comm_nccl_4_gpus_any_order, 300)
{
    live((struct layout){"nccl", 4, true, true});
}

/* A rank that does not come: all others are told in time, by its number. */
static void miss_one(struct layout l, const char *who)
{
    need_devices(&l);
    for (int op = 0; op < N_COMM_OPS; op += l.spread ? 1 : 2) {
        struct rank r[MOST_RANKS];
        if (op == COMM_BROADCAST && !strcmp(l.kind, "nccl"))
            continue; /* its root does not wait for the others */
        fill(r, &l, stay_away);
        for (uint32_t i = 0; i < l.n_ranks; i++) {
            r[i].timeout_ms = 300;
            r[i].calls = 4;
            r[i].op = (enum comm_op)op;
        }
        run_ranks(r, l.n_ranks);
        for (uint32_t i = 0; i < l.n_ranks; i++) {
            CHECK_MSG(!r[i].opened && r[i].n_good == 3 && r[i].err.code == ERR_COMM,
                      "%s: rank %u: %u good, %s", comm_op_name((enum comm_op)op), i, r[i].n_good,
                      r[i].err.msg);
            CHECK_MSG(strstr(r[i].err.msg, who), "%s", r[i].err.msg);
            CHECK(!strcmp(r[i].err.msg, r[0].err.msg) && r[i].waited_us < 5000000);
        }
    }
}

TEST_LIMIT(comm_device_a_rank_that_does_not_come, 60)
{
    miss_one((struct layout){"device", 3, false, false}, "rank 2 of 3 did not come to call 4");
}
TEST_LIMIT(comm_device_a_gpu_that_does_not_come, 60)
{
    miss_one((struct layout){"device", 2, true, false}, "rank 1 of 2 did not come to call 4");
}
TEST_LIMIT(comm_nccl_a_gpu_that_does_not_come, 120)
{
    miss_one((struct layout){"nccl", 2, true, false}, "4 did not end within 300 ms");
}

/* comm_abort() ends the calls of all ranks long before their time-out. */
static void abort_one(struct layout l)
{
    need_devices(&l);
    uint64_t begin = clock_us();
    for (int op = 0; op < N_COMM_OPS; op += 3) {
        struct rank r[MOST_RANKS];
        fill(r, &l, abort_in_the_middle);
        for (uint32_t i = 0; i < l.n_ranks; i++) {
            r[i].timeout_ms = 60000;
            r[i].calls = 5;
            r[i].op = (enum comm_op)op;
        }
        run_ranks(r, l.n_ranks);
        for (uint32_t i = 0; i < l.n_ranks; i++)
            CHECK_MSG(!strcmp(r[i].err.msg, "the test wants it"), "rank %u: %s", i, r[i].err.msg);
    }
    CHECK(clock_us() - begin < 50000000);
}

TEST_LIMIT(comm_device_abort_in_the_middle, 60)
{
    abort_one((struct layout){"device", 4, false, false});
}
TEST_LIMIT(comm_device_abort_on_2_gpus, 60)
{
    abort_one((struct layout){"device", 2, true, false});
}
TEST_LIMIT(comm_nccl_abort_on_2_gpus, 120)
{
    abort_one((struct layout){"nccl", 2, true, false});
}

/* Each operation's place of fault, on its first and a later passage. */
static void fail_one(struct layout l)
{
    need_devices(&l);
    for (int op = 0; op <= N_COMM_OPS; op++) {
        struct rank r[MOST_RANKS];
        char spec[64];
        const char *name = op < N_COMM_OPS ? comm_op_name((enum comm_op)op) : "wait";
        fill(r, &l, call_until_broken);
        for (uint32_t i = 0; i < l.n_ranks; i++)
            r[i].op = (enum comm_op)op;
        /* opening makes calls of its own over host memory: a passage behind those */
        snprintf(spec, sizeof spec, "comm.%s:%d", name, op % 2 ? 12 : 5 + (int)l.n_ranks);
        fault_arm(spec);
        run_ranks(r, l.n_ranks);
        fault_arm(NULL);
        for (uint32_t i = 0; i < l.n_ranks; i++)
            CHECK_MSG(!r[i].opened && strstr(r[i].err.msg, name), "%s: rank %u: %s", spec, i,
                      r[i].err.msg);
    }
}

TEST_LIMIT(comm_device_a_call_that_fails, 60)
{
    fail_one((struct layout){"device", 3, false, false});
}
TEST_LIMIT(comm_nccl_a_call_that_fails, 120)
{
    fail_one((struct layout){"nccl", 2, true, false});
}

static void come_with_less(struct rank *r)
{
    struct err e;
    size_t n = r->rank == 1 ? 100000 : 100001; /* too large for words */
    CHECK_OK(any_call(r, COMM_BARRIER, &e), e);
    if (!comm_broadcast(r->comm, r->in, n, 0, r->stream, &r->err))
        CHECK(comm_wait(r->comm, r->stream, &r->err));
}

/* Ranks whose sizes differ are told. */
TEST(comm_device_calls_that_do_not_agree)
{
    struct layout l = {"device", 2, false, false};
    struct rank r[MOST_RANKS];
    need_devices(&l);
    fill(r, &l, come_with_less);
    run_ranks(r, 2);
    for (int i = 0; i < 2; i++)
        CHECK_MSG(r[i].err.code == ERR_COMM && strstr(r[i].err.msg, "call 2") &&
                      strstr(r[i].err.msg, "100000") && strstr(r[i].err.msg, "100001"),
                  "%s", r[i].err.msg);
}

/* Records small and large sums, a gather and an exchange, and runs the record again and again with
 * other values. */
static void record_life(struct rank *r)
{
    enum { SMALL = 3584, LARGE = 30001, PART = 512, RUNS = 60 };
    struct err e;
    struct comm *c = r->comm;
    size_t after = 4 * LARGE + 12, all = after + 4 * SMALL + 4 * PART * r->n_ranks;
    unsigned char *large = r->in, *small = r->in + after, *part = small + 4 * SMALL;
    CHECK(all <= rank_bytes(r));
    if (!device_rank_record(r->mem))
        return;
    CHECK_OK(comm_all_reduce(c, small, small, SMALL, COMM_F32, r->stream, &e), e);
    CHECK_OK(comm_all_reduce(c, large, large, LARGE, COMM_F32, r->stream, &e), e);
    CHECK_OK(comm_all_gather(c, small, r->out, 4 * PART, r->stream, &e), e);
    CHECK_OK(comm_all_to_all(c, r->out, part, 4 * PART, r->stream, &e), e);
    CHECK_OK(comm_barrier(c, r->stream, &e), e);
    device_rank_recorded(r->mem);
    pthread_barrier_wait(r->all); /* making a graph may wait for kernels that wait for us */
    for (int run = 0; run < RUNS; run++) {
        for (size_t i = 0; i < LARGE; i++)
            put_value(r->host, COMM_F32, i, value((uint64_t)run, r->rank, i));
        r->memory->put(r->mem, large, r->host, 4 * LARGE);
        r->memory->put(r->mem, small, r->host, 4 * SMALL);
        device_rank_launch(r->mem);
        finish_call(r, r->in, all);
        for (size_t i = 0; i < LARGE; i++)
            CHECK(is_sum(r, r->host, COMM_F32, i, (uint64_t)run, i));
        for (size_t i = 0; i < SMALL; i++)
            CHECK(is_sum(r, r->host + after, COMM_F32, i, (uint64_t)run, i));
        for (uint32_t k = 0; k < r->n_ranks; k++)
            for (size_t i = 0; i < PART; i++)
                CHECK(is_sum(r, r->host + after + 4 * SMALL + 4 * PART * k, COMM_F32, i,
                             (uint64_t)run, i));
    }
    pthread_barrier_wait(r->all);
    device_rank_forget(r->mem);
}

static void record(struct layout l)
{
    struct rank r[MOST_RANKS];
    need_devices(&l);
    if (is_emulated())
        TEST_SKIP("the emulated device has no graphs");
    fill(r, &l, record_life);
    run_ranks(r, l.n_ranks);
    for (uint32_t i = 0; i < l.n_ranks; i++)
        CHECK_MSG(!r[i].opened, "%s", r[i].err.msg);
}

TEST_LIMIT(comm_device_graphs_on_one_gpu, 60)
{
    record((struct layout){"device", 4, false, false});
}
TEST_LIMIT(comm_device_graphs_on_2_gpus, 60)
{
    record((struct layout){"device", 2, true, false});
}
TEST_LIMIT(comm_device_graphs_on_4_gpus, 60)
{
    record((struct layout){"device", 4, true, false});
}
TEST_LIMIT(comm_nccl_graphs_on_2_gpus, 120)
{
    record((struct layout){"nccl", 2, true, false});
}
