/* peer.cuh - how blocks of kernels on different ranks wait for each other and read each other.
 *
 * Each rank has a box in its device's memory that its peers write into. Blocks meet one by one:
 * block b of a rank's kernel with block b of every other rank's kernel, which is enough because a
 * kernel starts only when all that its stream had queued before is done. All ranks launch the same
 * grid, so nobody waits for a block that does not exist; a grid is small enough to be resident.
 *
 * Two ways to meet:
 *   entry and exit  each leaves the addresses of its buffers and a flag with all peers, and waits
 *                   for theirs; then reads (or writes) their buffers in place; then a second flag
 *                   says that it is done with them. For sizes that are worth two waits.
 *   words           each value travels in 64 bits beside a flag of 32, so the data is its own flag:
 *                   one store to each peer, one look at one's own box. A word of call e + 2 takes
 *                   the place of call e's: its writer has had all words of call e + 1, so every
 *                   reader of call e had left it (calls of one group are in order on each rank).
 *
 * Flags are counted on the device, block by block, so a recorded graph may run again and again.
 * Nobody waits for ever: a wait ends with a report when the group's stop flag is up or timeout_ns
 * have passed; the rank's later kernels then return at once.
 */
#ifndef GAZE_CUDA_TILE_PEER_CUH
#define GAZE_CUDA_TILE_PEER_CUH

#include "tile/launch.cuh"

#include <stddef.h>

enum {
    PEER_RANKS = 8,
    PEER_BLOCKS = 128,  /* of a grid, at most */
    PEER_THREADS = 512, /* of a block that reads or writes peers' buffers */
    WORD_BLOCKS = 64,
    WORD_THREADS = 256,
    WORD_TURNS = 4,                         /* words that a thread sends in one call, at most */
    WORD_SLOTS = WORD_THREADS * WORD_TURNS, /* of a block */
    /* Payload that travels in words: 8 bytes each. All peers together get so much at most. */
    WORD_BYTES = 8 * WORD_BLOCKS * WORD_SLOTS
};

/* What a rank leaves with a peer at the entry. */
struct peer_entry {
    const unsigned char *in;
    unsigned char *out;
    unsigned long long bytes; /* that the peer is to take, or of the whole call */
    uint32_t what, flag;
};

struct peer_box {
    uint32_t broken;            /* own: a wait has failed */
    uint32_t calls;             /* own: done */
    uint32_t turn[PEER_BLOCKS]; /* own: entries of each block */
    uint32_t word_turn[WORD_BLOCKS];
    struct peer_entry entry[PEER_RANKS][PEER_BLOCKS];
    uint32_t exit[PEER_RANKS][PEER_BLOCKS];
    ulonglong2 word[2][PEER_RANKS][WORD_BLOCKS * WORD_SLOTS]; /* value and flag, twice */
};

enum peer_state { PEER_FINE, PEER_LATE, PEER_DISAGREES, PEER_STOPPED };

/* What a kernel that gave up tells its host; in host memory. */
struct peer_report {
    uint32_t state, peer, call;
    uint32_t their_what;
    unsigned long long my_bytes, their_bytes;
};

struct peer_call {
    struct peer_box *box[PEER_RANKS];
    const uint32_t *stop; /* the group's, in host memory */
    struct peer_report *report;
    unsigned long long timeout_ns;
    uint32_t rank, n_ranks, what;
    uint32_t turns; /* in words: of each thread */
    const unsigned char *in;
    unsigned char *out;
    unsigned long long n; /* elements or bytes of one part */
};

#ifdef __CUDACC__
static __device__ __forceinline__ void store_release(uint32_t *p, uint32_t x)
{
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
static __device__ __forceinline__ uint32_t load_acquire(const uint32_t *p)
{
    uint32_t x;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
    return x;
}
static __device__ __forceinline__ void store_words(ulonglong2 *p, ulonglong2 x)
{
    asm volatile("st.volatile.global.v2.u64 [%0], {%1, %2};" ::"l"(p), "l"(x.x), "l"(x.y)
                 : "memory");
}
static __device__ __forceinline__ ulonglong2 load_words(const ulonglong2 *p)
{
    ulonglong2 x;
    asm volatile("ld.volatile.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(x.x), "=l"(x.y)
                 : "l"(p)
                 : "memory");
    return x;
}
static __device__ __forceinline__ unsigned long long clock_ns(void)
{
    unsigned long long ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}
#else
static inline void store_release(uint32_t *p, uint32_t x)
{
    __atomic_store_n(p, x, __ATOMIC_RELEASE);
}
static inline uint32_t load_acquire(const uint32_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
static inline void store_words(ulonglong2 *p, ulonglong2 x)
{
    __atomic_store_n(&p->x, x.x, __ATOMIC_RELEASE);
    __atomic_store_n(&p->y, x.y, __ATOMIC_RELEASE);
}
static inline ulonglong2 load_words(const ulonglong2 *p)
{
    ulonglong2 x;
    x.x = __atomic_load_n(&p->x, __ATOMIC_ACQUIRE);
    x.y = __atomic_load_n(&p->y, __ATOMIC_ACQUIRE);
    return x;
}
static inline unsigned long long clock_ns(void)
{
    return emulated_clock_ns();
}
#endif

/* A wait's clock: reads the time and the stop flag now and then. */
struct peer_patience {
    uint32_t looks;
    unsigned long long since;
};

/* Whether to go on waiting for peer; if not, it is reported. */
static __device__ __forceinline__ bool peer_wait_more(const struct peer_call &c,
                                                      struct peer_patience *p, uint32_t peer)
{
    if (++p->looks % 512)
        return true;
    struct peer_box *own = c.box[c.rank];
    __nanosleep(20);
    unsigned long long now = clock_ns();
    if (!p->since)
        p->since = now;
    if (load_acquire(&own->broken))
        return false; /* another thread has reported */
    bool stopped = load_acquire(c.stop) != 0;
    if (!stopped && now - p->since < c.timeout_ns)
        return true;
    if (!atomicExch(&own->broken, 1u)) { /* the first report stays */
        c.report->peer = peer;
        c.report->call = own->calls + 1;
        store_release(&c.report->state, stopped ? PEER_STOPPED : PEER_LATE);
    }
    return false;
}

static __device__ __forceinline__ bool
peer_wait_flag(const struct peer_call &c, const uint32_t *flag, uint32_t want, uint32_t peer)
{
    struct peer_patience p = {0, 0};
    while ((int32_t)(load_acquire(flag) - want) < 0)
        if (!peer_wait_more(c, &p, peer))
            return false;
    return true;
}

/* The entry: all threads of the block call it. part: bytes for each peer, or NULL: c.n for all;
 * expected: of each, likewise; out_at: where in out each peer may write, or NULL. Then peer[r] is
 * what rank r left. false: return, it failed. */
static __device__ __forceinline__ bool peer_enter(const struct peer_call &c,
                                                  const unsigned long long *out_at,
                                                  const unsigned long long *part,
                                                  const unsigned long long *expected,
                                                  struct peer_entry *peer)
{
    struct peer_box *own = c.box[c.rank];
    uint32_t b = blockIdx.x, t = threadIdx.x, turn = own->turn[b] + 1;
    int failed = *(volatile uint32_t *)&own->broken != 0;
    if (__syncthreads_or(failed))
        return false;
    if (t < c.n_ranks) {
        struct peer_entry *e = &c.box[t]->entry[c.rank][b];
        e->in = c.in;
        e->out = c.out + (out_at ? out_at[t] : 0);
        e->bytes = part ? part[t] : c.n;
        e->what = c.what;
        store_release(&e->flag, turn);
    }
    __syncwarp();
    if (t < c.n_ranks) {
        const struct peer_entry *e = &own->entry[t][b];
        failed = !peer_wait_flag(c, &e->flag, turn, t);
        if (!failed) {
            unsigned long long want = expected ? expected[t] : c.n;
            peer[t] = *e;
            if (e->what != c.what || e->bytes != want) {
                failed = 1;
                if (!atomicExch(&own->broken, 1u)) {
                    c.report->peer = t;
                    c.report->call = own->calls + 1;
                    c.report->their_what = e->what;
                    c.report->my_bytes = want;
                    c.report->their_bytes = e->bytes;
                    store_release(&c.report->state, PEER_DISAGREES);
                }
            }
        }
    }
    return !__syncthreads_or(failed);
}

/* The exit: nobody reads this rank's buffers any more, and all that others wrote has come. */
static __device__ __forceinline__ void peer_leave(const struct peer_call &c)
{
    struct peer_box *own = c.box[c.rank];
    uint32_t b = blockIdx.x, t = threadIdx.x, turn = own->turn[b] + 1;
    __syncthreads(); /* this block's reads and writes come before its flags */
    if (t < c.n_ranks)
        store_release(&c.box[t]->exit[c.rank][b], turn);
    __syncwarp();
    if (t < c.n_ranks)
        (void)peer_wait_flag(c, &own->exit[t][b], turn, t);
    __syncthreads();
    if (t == 0) {
        own->turn[b] = turn;
        if (b == 0)
            own->calls++;
    }
}

#endif
