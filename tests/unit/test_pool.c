/* test_pool.c - fork-join: each chunk once, both lanes at once, nobody waits for a thread that
 * sleeps. */
#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"
#include "cpu/pool.h"
#include "test.h"

#include <stdatomic.h>
#include <unistd.h>

struct count {
    struct pool *pool;
    _Atomic uint32_t *times; /* [n_chunks] */
    _Atomic uint32_t *busy;  /* [workers] of the pool: no worker has two chunks at a time */
    uint32_t n_chunks;
};

static void count_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    struct count *c = arg;
    CHECK(chunk < c->n_chunks && worker < pool_n_workers(c->pool));
    CHECK(atomic_exchange(&c->busy[worker], 1) == 0);
    atomic_fetch_add(&c->times[chunk], 1);
    for (volatile int i = 0; i < (int)(chunk % 7) * 20; i++)
        ;
    CHECK(atomic_exchange(&c->busy[worker], 0) == 1);
}

struct lane_life {
    struct pool *pool;
    enum lane lane;
    _Atomic uint32_t *busy;
    uint64_t seed;
    uint32_t jobs;
};

/* Random jobs in one lane; every chunk of each must have run once when pool_run() returns. */
static void *lane_main(void *arg)
{
    struct lane_life *life = arg;
    struct rng r = {life->seed};
    enum { MOST = 300 };
    _Atomic uint32_t *times = calloc(MOST, sizeof *times);
    CHECK(times);
    for (uint32_t i = 0; i < life->jobs; i++) {
        struct count c = {life->pool, times, life->busy,
                          1 + rng_below(&r, rng_below(&r, 4) ? 8 : MOST)};
        if (rng_below(&r, 8) == 0)
            pool_in_step(life->pool, life->lane, rng_below(&r, 4) != 0);
        pool_run(life->pool, life->lane, c.n_chunks, count_chunk, &c);
        for (uint32_t k = 0; k < c.n_chunks; k++)
            CHECK_MSG(atomic_exchange(&times[k], 0) == 1, "chunk %u of %u", k, c.n_chunks);
        if (rng_below(&r, 200) == 0)
            usleep(rng_below(&r, 300)); /* lets the threads fall asleep now and then */
    }
    pool_in_step(life->pool, life->lane, false);
    free(times);
    return NULL;
}

/* Goal: two lanes with random jobs at once, for pools from one thread to more than the machine has.
 */
TEST_LIMIT(pool_two_lanes_random_life, 60)
{
    struct rng r = {test_seed()};
    for (uint32_t n = 1; n <= 5; n++) {
        struct pool *p;
        struct err e;
        CHECK_OK(pool_create(&p, n, &e), e);
        CHECK(pool_n_threads(p) == n && pool_n_workers(p) == n - 1 + N_LANES);
        _Atomic uint32_t *busy = calloc(pool_n_workers(p), sizeof *busy);
        CHECK(busy);
        struct lane_life life[N_LANES];
        pthread_t id[N_LANES];
        for (int l = 0; l < N_LANES; l++) {
            life[l] = (struct lane_life){p, (enum lane)l, busy, rng_next(&r), 3000};
            CHECK_OK(thread_start(&id[l], "lane", lane_main, &life[l], &e), e);
        }
        for (int l = 0; l < N_LANES; l++)
            thread_join(id[l]);
        pool_destroy(p);
        free(busy);
    }
}

static void add_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)worker;
    atomic_fetch_add((_Atomic uint64_t *)arg, chunk + 1ull);
}

/* Goal: jobs of no chunk, one chunk, and more chunks than one ticket counts. */
TEST(pool_job_sizes)
{
    static const uint32_t SIZES[] = {0, 1, 2, 65534, 65535, 65536, 200001};
    struct pool *p;
    struct err e;
    CHECK_OK(pool_create(&p, 3, &e), e);
    for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++) {
        _Atomic uint64_t sum = 0;
        pool_run(p, LANE_PREFILL, SIZES[i], add_chunk, &sum);
        CHECK(sum == (uint64_t)SIZES[i] * (SIZES[i] + 1ull) / 2);
    }
    pool_destroy(p);
}

static void slow_first_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    _Atomic uint32_t *by = arg;
    atomic_store(&by[chunk], worker + 1);
    if (chunk == 0)
        usleep(100000);
}

/* Goal: while one thread is stuck in a chunk the others take all the rest, and only that chunk is
 * waited for. */
TEST(pool_waits_only_for_taken_chunks)
{
    enum { CHUNKS = 500 };
    static _Atomic uint32_t by[CHUNKS];
    struct pool *p;
    struct err e;
    CHECK_OK(pool_create(&p, 2, &e), e);
    uint64_t start = clock_us();
    pool_run(p, LANE_DECODE, CHUNKS, slow_first_chunk, by);
    uint64_t took = clock_us() - start;
    CHECK_MSG(took >= 100000 && took < 1000000, "%u us", (unsigned)took);
    for (int i = 0; i < CHUNKS; i++)
        CHECK(by[i]);
    pool_destroy(p);
}

static void who_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    (void)chunk;
    atomic_fetch_add(&((_Atomic uint32_t *)arg)[worker], 1);
    usleep(50);
}

/* Goal: while both lanes are in a step, prefill's chunks are done by its half of the pool's threads
 * alone: neither by its caller nor by those that are decode's. Before and after by any. */
TEST(pool_lanes_have_half_each)
{
    enum { THREADS = 4, DECODE_THREADS = 1 };
    struct pool *p;
    struct err e;
    CHECK_OK(pool_create(&p, THREADS, &e), e);
    for (int both = 0; both < 2; both++) {
        _Atomic uint32_t by[THREADS - 1 + N_LANES] = {0};
        pool_in_step(p, LANE_PREFILL, true);
        pool_in_step(p, LANE_DECODE, both);
        for (int i = 0; i < 50; i++)
            pool_run(p, LANE_PREFILL, 40, who_chunk, by);
        uint32_t caller = by[THREADS - 1 + LANE_PREFILL], decode = 0, sum = 0;
        for (uint32_t i = 0; i < pool_n_workers(p); i++)
            sum += by[i];
        for (uint32_t i = 0; i < DECODE_THREADS; i++)
            decode += by[i];
        CHECK(sum == 50 * 40);
        CHECK_MSG(both ? !caller && !decode : caller > 0, "caller %u, decode's threads %u", caller,
                  decode);
    }
    pool_destroy(p);
}

/* Goal: a thread that cannot be started is reported, and those before it end. */
TEST(pool_create_fails_whole)
{
    static const char *const WHERE[] = {"pool.create:1", "thread.start:1", "thread.start:3"};
    for (int i = 0; i < 3; i++) {
        struct pool *p = NULL;
        struct err e;
        fault_arm(WHERE[i]);
        CHECK(pool_create(&p, 4, &e) == ERR_NOMEM && !p);
        fault_arm(NULL);
    }
}
