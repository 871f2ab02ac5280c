/* pool.c - see pool.h.
 *
 * A lane's job is one 64-bit ticket: which job it is (32 bits), chunks taken, chunks in all (16
 * each). A chunk is taken by raising the middle field with a compare-and-swap, which fails when the
 * ticket has come to mean another job; so what a thread read of the job (fn, arg, base) belongs to
 * the chunk it took, and a thread that slept through a job's end harms nothing.
 *
 * Two steps: while each lane has one under way, the first n_decode of the pool's threads take
 * decode's chunks alone; the others take prefill's, and decode's where there are none of those; and
 * prefill's caller takes none. There is always a thread that takes prefill's: who leaves chunks to
 * it wakes it.
 *
 * Sleep: a pool thread that found nothing for SPIN_US announces itself in `sleepers`, looks once
 * more, and waits on `wakes` (a futex). A caller posts first and looks at `sleepers` after; one of
 * the two must see the other. A caller whose last chunks are in other hands spins for JOIN_SPINS
 * looks, then waits on the lane's `done` counter in the same way: the core it leaves is where a
 * chunk's owner can be moved to.
 */
#include "cpu/pool.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"

#include <limits.h>
#include <linux/futex.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPIN_US = 40 }; /* how long an idle pool thread stays awake: longer than decode's gaps */
enum { LOOKS_PER_CLOCK = 16 };    /* for work, between two looks at the clock */
enum { JOIN_SPINS = 200 };        /* some microseconds of pauses */
enum { MAX_CHUNKS = UINT16_MAX }; /* of one ticket; longer jobs are posted in parts */

struct job {
    alignas(64) _Atomic uint64_t ticket;
    _Atomic(pool_fn *) fn;
    _Atomic(void *) arg;
    _Atomic uint32_t base; /* chunk number of the ticket's first */
    alignas(64) _Atomic uint32_t done;
    _Atomic uint32_t waiting; /* the caller sleeps on done */
};

struct pool {
    struct job job[N_LANES];
    alignas(64) _Atomic uint32_t sleepers;
    _Atomic uint32_t wakes;
    _Atomic bool stop, in_step[N_LANES];
    uint32_t n_threads, n_started;
    uint32_t n_decode; /* of the pool's threads, for decode while both lanes are in a step */
    struct pool_thread {
        struct pool *pool;
        uint32_t worker;
        pthread_t id;
    } thread[];
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, uint32_t n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n > INT_MAX ? INT_MAX : (int)n, NULL, NULL, 0);
}

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static inline uint32_t ticket_taken(uint64_t t)
{
    return (uint32_t)(t >> 16) & 0xFFFFu;
}
static inline uint32_t ticket_chunks(uint64_t t)
{
    return (uint32_t)t & 0xFFFFu;
}

/* Takes and does one chunk of lane l; false when there is none left. */
static bool take(struct pool *p, enum lane l, uint32_t worker)
{
    struct job *j = &p->job[l];
    uint64_t t = atomic_load_explicit(&j->ticket, memory_order_acquire);
    while (ticket_taken(t) < ticket_chunks(t)) {
        pool_fn *fn = atomic_load_explicit(&j->fn, memory_order_relaxed);
        void *arg = atomic_load_explicit(&j->arg, memory_order_relaxed);
        uint32_t base = atomic_load_explicit(&j->base, memory_order_relaxed), n = ticket_chunks(t);
        if (!atomic_compare_exchange_weak_explicit(&j->ticket, &t, t + (1u << 16),
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        fn(arg, base + ticket_taken(t), worker);
        if (atomic_fetch_add(&j->done, 1) + 1 == n && atomic_load(&j->waiting))
            futex_wake(&j->done, 1);
        return true;
    }
    return false;
}

static bool both_in_step(const struct pool *p)
{
    return atomic_load_explicit(&p->in_step[LANE_DECODE], memory_order_relaxed) &&
           atomic_load_explicit(&p->in_step[LANE_PREFILL], memory_order_relaxed);
}

static bool take_any(struct pool *p, uint32_t worker)
{
    bool both = both_in_step(p);
    if (both && worker < p->n_decode)
        return take(p, LANE_DECODE, worker);
    enum lane first = both ? LANE_PREFILL : LANE_DECODE;
    return take(p, first, worker) ||
           take(p, first == LANE_DECODE ? LANE_PREFILL : LANE_DECODE, worker);
}

static bool lane_has_work(struct pool *p, enum lane l)
{
    uint64_t t = atomic_load(&p->job[l].ticket);
    return ticket_taken(t) < ticket_chunks(t);
}

static bool has_work(struct pool *p, uint32_t worker)
{
    return lane_has_work(p, LANE_DECODE) ||
           (lane_has_work(p, LANE_PREFILL) && !(worker < p->n_decode && both_in_step(p)));
}

static void *thread_main(void *arg)
{
    struct pool_thread *self = arg;
    struct pool *p = self->pool;
    uint64_t idle_since = 0;
    while (!atomic_load_explicit(&p->stop, memory_order_relaxed)) {
        if (take_any(p, self->worker)) {
            idle_since = 0;
            continue;
        }
        for (int i = 0; i < LOOKS_PER_CLOCK && !has_work(p, self->worker); i++)
            pause_cpu();
        uint64_t now = clock_us();
        if (!idle_since)
            idle_since = now;
        if (now - idle_since < SPIN_US)
            continue;
        uint32_t seen = atomic_load(&p->wakes);
        atomic_fetch_add(&p->sleepers, 1);
        if (!has_work(p, self->worker) && !atomic_load(&p->stop))
            futex_wait(&p->wakes, seen);
        atomic_fetch_sub(&p->sleepers, 1);
        idle_since = 0;
    }
    return NULL;
}

static void wake_sleepers(struct pool *p, uint32_t n)
{
    if (n && atomic_load(&p->sleepers)) {
        atomic_fetch_add(&p->wakes, 1);
        futex_wake(&p->wakes, n);
    }
}

static void join(struct job *j, uint32_t n_chunks)
{
    for (int i = 0; i < JOIN_SPINS; i++) {
        if (atomic_load_explicit(&j->done, memory_order_acquire) == n_chunks)
            return;
        pause_cpu();
    }
    atomic_store(&j->waiting, 1);
    for (;;) {
        uint32_t done = atomic_load(&j->done);
        if (done == n_chunks)
            break;
        futex_wait(&j->done, done);
    }
    atomic_store(&j->waiting, 0);
}

/* Whether a lane's own thread leaves its chunks to the pool's. */
static bool gives_way(const struct pool *p, enum lane l)
{
    return l == LANE_PREFILL && both_in_step(p);
}

static void run_part(struct pool *p, enum lane l, uint32_t base, uint32_t n_chunks, pool_fn *fn,
                     void *arg)
{
    struct job *j = &p->job[l];
    uint32_t worker = p->n_threads - 1 + (uint32_t)l;
    uint64_t last = atomic_load_explicit(&j->ticket, memory_order_relaxed);
    atomic_store_explicit(&j->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&j->arg, arg, memory_order_relaxed);
    atomic_store_explicit(&j->base, base, memory_order_relaxed);
    atomic_store_explicit(&j->done, 0, memory_order_relaxed);
    atomic_store(&j->ticket, ((last >> 32) + 1) << 32 | n_chunks);
    wake_sleepers(p, n_chunks - 1);
    bool away = gives_way(p, l);
    while (!away && take(p, l, worker))
        away = gives_way(p, l);
    if (away)
        wake_sleepers(p, INT_MAX); /* a thread that takes such chunks is among them, or awake */
    join(j, n_chunks);
}

void pool_run(struct pool *p, enum lane l, uint32_t n_chunks, pool_fn *fn, void *arg)
{
    if (n_chunks == 1 || p->n_threads == 1) { /* nobody to share with */
        for (uint32_t c = 0; c < n_chunks; c++)
            fn(arg, c, p->n_threads - 1 + (uint32_t)l);
        return;
    }
    for (uint32_t base = 0; base < n_chunks; base += MAX_CHUNKS)
        run_part(p, l, base, n_chunks - base < MAX_CHUNKS ? n_chunks - base : MAX_CHUNKS, fn, arg);
}

void pool_in_step(struct pool *p, enum lane l, bool is)
{
    atomic_store_explicit(&p->in_step[l], is, memory_order_relaxed);
}

uint32_t pool_n_workers(const struct pool *p)
{
    return p->n_threads - 1 + N_LANES;
}

uint32_t pool_n_threads(const struct pool *p)
{
    return p->n_threads;
}

enum err_code pool_create(struct pool **out, uint32_t n_threads, struct err *e)
{
    assert(n_threads >= 1);
    size_t bytes = sizeof(struct pool) + (n_threads - 1) * sizeof(struct pool_thread);
    bytes = (bytes + 63) / 64 * 64;
    struct pool *p = FAULT("pool.create") ? NULL : aligned_alloc(64, bytes);
    if (!p)
        return err_set(e, ERR_NOMEM, "thread pool of %u threads", n_threads);
    for (int l = 0; l < N_LANES; l++) {
        struct job *j = &p->job[l];
        atomic_init(&p->in_step[l], false);
        atomic_init(&j->ticket, 0);
        atomic_init(&j->fn, NULL);
        atomic_init(&j->arg, NULL);
        atomic_init(&j->base, 0);
        atomic_init(&j->done, 0);
        atomic_init(&j->waiting, 0);
    }
    atomic_init(&p->sleepers, 0);
    atomic_init(&p->wakes, 0);
    atomic_init(&p->stop, false);
    p->n_threads = n_threads;
    p->n_decode = (n_threads + 1) / 2 - 1; /* with decode's caller half of them */
    p->n_started = 0;
    for (uint32_t i = 0; i + 1 < n_threads; i++) {
        char name[16];
        snprintf(name, sizeof name, "op%u", i + 1);
        p->thread[i].pool = p;
        p->thread[i].worker = i;
        if (thread_start(&p->thread[i].id, name, thread_main, &p->thread[i], e)) {
            pool_destroy(p);
            return e->code;
        }
        p->n_started++;
    }
    *out = p;
    return ERR_OK;
}

void pool_destroy(struct pool *p)
{
    atomic_store(&p->stop, true);
    atomic_fetch_add(&p->wakes, 1);
    futex_wake(&p->wakes, INT_MAX);
    for (uint32_t i = 0; i < p->n_started; i++)
        thread_join(p->thread[i].id);
    free(p);
}
