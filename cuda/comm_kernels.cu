/* comm_kernels.cu - the collectives of ranks that see each other's memory. See comm_kernels.cuh.
 *
 * Sums are cut into a slice for each rank; rank r reads slice r of all inputs, adds in rank order
 * in fp32 and (all_reduce) writes it to all outputs. An element has one reader when it is written,
 * so sums in place need no copy, and all ranks get the same bits. Small ones travel in words
 * (tile/peer.cuh): each rank sends its values to all others and adds all of them itself.
 *
 * Gathers and exchanges are written into the others' outputs: a store waits for nothing.
 *
 * Cost, n ranks, S bytes: all_reduce 2 (n - 1) / n S over each link direction and two waits of some
 * 2.5 us, in words 2 (n - 1) S and one; the others (n - 1) parts.
 */
#include "cuda/comm_kernels.cuh"

#include "tile/numbers.cuh"

static __device__ __forceinline__ uint4 load_far(const unsigned char *p)
{
    return __ldcg((const uint4 *)p);
}

/* The values of 16 bytes in fp32. */
template <typename T> struct sum16 {
    enum { N = 16 / sizeof(T) };
    float x[N];
    __device__ __forceinline__ void add(const uint4 &v, bool first)
    {
        const T *from = (const T *)&v;
#pragma unroll
        for (int i = 0; i < N; i++)
            x[i] = first ? get(from + i) : x[i] + get(from + i);
    }
    __device__ __forceinline__ uint4 rounded(void) const
    {
        uint4 v;
        T *to = (T *)&v;
#pragma unroll
        for (int i = 0; i < N; i++)
            put(to + i, x[i]);
        return v;
    }
};

static __device__ __forceinline__ bool aligned16(const void *p)
{
    return (size_t)p % 16 == 0;
}

/* [begin, end) of the ranks' elements into out, which is theirs (all) or this rank's own at to. */
template <typename T, int N>
static __device__ void sum_range(const struct peer_call &c, const struct peer_entry *peer,
                                 size_t begin, size_t end, bool to_all, T *to)
{
    enum { V = 16 / sizeof(T), UNROLL = N <= 2 ? 4 : N <= 4 ? 2 : 1 };
    size_t step = (size_t)gridDim.x * blockDim.x, i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    bool wide = to_all || aligned16(to);
    for (uint32_t r = 0; r < c.n_ranks; r++)
        wide = wide && aligned16((const T *)peer[r].in + begin) &&
               (!to_all || aligned16((T *)peer[r].out + begin));
    size_t n16 = wide ? (end - begin) / V : 0;
    for (size_t u = i; u < n16; u += step * UNROLL) {
        uint4 v[UNROLL][N];
#pragma unroll
        for (int k = 0; k < UNROLL; k++)
#pragma unroll
            for (int r = 0; r < N; r++)
                if ((uint32_t)r < c.n_ranks && u + k * step < n16)
                    v[k][r] = load_far(peer[r].in + begin * sizeof(T) + (u + k * step) * 16);
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            if (u + k * step >= n16)
                continue;
            struct sum16<T> sum;
            sum.add(v[k][0], true);
#pragma unroll
            for (int r = 1; r < N; r++)
                if ((uint32_t)r < c.n_ranks)
                    sum.add(v[k][r], false);
            uint4 result = sum.rounded();
            size_t at = (u + k * step) * 16;
            if (!to_all)
                *(uint4 *)((unsigned char *)to + at) = result;
#pragma unroll
            for (int r = 0; r < N; r++)
                if (to_all && (uint32_t)r < c.n_ranks)
                    *(uint4 *)(peer[r].out + begin * sizeof(T) + at) = result;
        }
    }
    for (size_t e = begin + n16 * V + i; e < end; e += step) {
        float sum = 0.0f;
        for (uint32_t r = 0; r < c.n_ranks; r++) {
            float x = get((const T *)peer[r].in + e);
            sum = r ? sum + x : x;
        }
        if (!to_all)
            put(to + (e - begin), sum);
        for (uint32_t r = 0; to_all && r < c.n_ranks; r++)
            put((T *)peer[r].out + e, sum);
    }
}

/* c.n elements; slices begin at multiples of 16 bytes of the buffers. */
template <typename T, int N> static __global__ void all_reduce_kernel(struct peer_call c)
{
    __shared__ struct peer_entry peer[PEER_RANKS];
    if (!peer_enter(c, NULL, NULL, NULL, peer))
        return;
    enum { V = 16 / sizeof(T) };
    size_t units = (c.n + V - 1) / V;
    size_t begin = units * c.rank / c.n_ranks * V, end = units * (c.rank + 1) / c.n_ranks * V;
    sum_range<T, N>(c, peer, begin, end < c.n ? end : (size_t)c.n, true, (T *)NULL);
    peer_leave(c);
}

/* c.n elements of each rank's part. */
template <typename T, int N> static __global__ void reduce_scatter_kernel(struct peer_call c)
{
    __shared__ struct peer_entry peer[PEER_RANKS];
    if (!peer_enter(c, NULL, NULL, NULL, peer))
        return;
    sum_range<T, N>(c, peer, c.rank * c.n, (c.rank + 1) * c.n, false, (T *)c.out);
    peer_leave(c);
}

/* from[bytes] to each to[i], i in [0, n), by the whole grid; one that is `from` itself is left out.
 */
template <int N>
static __device__ void spread_range(unsigned char *const *to, uint32_t n, const unsigned char *from,
                                    size_t bytes)
{
    enum { UNROLL = 4 };
    size_t step = (size_t)gridDim.x * blockDim.x, i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    bool wide = aligned16(from);
    for (uint32_t r = 0; r < n; r++)
        wide = wide && aligned16(to[r]);
    size_t n16 = wide ? bytes / 16 : 0;
    for (size_t u = i; u < n16; u += step * UNROLL) {
        uint4 v[UNROLL];
#pragma unroll
        for (int k = 0; k < UNROLL; k++)
            if (u + k * step < n16)
                v[k] = load_far(from + (u + k * step) * 16);
#pragma unroll
        for (int r = 0; r < N; r++)
#pragma unroll
            for (int k = 0; k < UNROLL; k++)
                if ((uint32_t)r < n && to[r] != from && u + k * step < n16)
                    *(uint4 *)(to[r] + (u + k * step) * 16) = v[k];
    }
    for (size_t b = n16 * 16 + i; b < bytes; b += step)
        for (uint32_t r = 0; r < n; r++)
            to[r][b] = from[b];
}

/* Peers are taken in turn from the next one on, so that no link has all writers at once. */
static __global__ void all_gather_kernel(struct peer_call c)
{
    __shared__ struct peer_entry peer[PEER_RANKS];
    if (!peer_enter(c, NULL, NULL, NULL, peer))
        return;
    unsigned char *to[PEER_RANKS];
    for (uint32_t k = 0; k < c.n_ranks; k++)
        to[k] = peer[(c.rank + 1 + k) % c.n_ranks].out + c.rank * c.n;
    spread_range<PEER_RANKS>(to, c.n_ranks, c.in, c.n);
    peer_leave(c);
}

static __global__ void all_to_all_kernel(struct peer_call c, struct peer_parts p)
{
    __shared__ struct peer_entry peer[PEER_RANKS];
    if (!peer_enter(c, p.recv_at, p.send, p.recv, peer))
        return;
    for (uint32_t k = 1; k <= c.n_ranks; k++) {
        uint32_t r = (c.rank + k) % c.n_ranks;
        unsigned char *to = peer[r].out;
        spread_range<1>(&to, 1, c.in + p.send_at[r], p.send[r]);
    }
    peer_leave(c);
}

static __global__ void broadcast_kernel(struct peer_call c, uint32_t root)
{
    __shared__ struct peer_entry peer[PEER_RANKS];
    if (!peer_enter(c, NULL, NULL, NULL, peer))
        return;
    unsigned char *to[PEER_RANKS];
    for (uint32_t k = 0; k < c.n_ranks; k++)
        to[k] = peer[(c.rank + 1 + k) % c.n_ranks].out;
    if (c.rank == root)
        spread_range<PEER_RANKS>(to, c.n_ranks - 1, c.in, c.n); /* the last one is this rank */
    peer_leave(c);
}

/* ---- in words: 8 bytes of payload a thread ---- */

/* 8 bytes at byte `at` of n; what is behind the end is 0. */
static __device__ __forceinline__ uint2 load8(const unsigned char *from, size_t at, size_t n)
{
    uint2 v = {0, 0};
    if (at + 8 <= n && (size_t)(from + at) % 8 == 0)
        return *(const uint2 *)(from + at);
    unsigned char *to = (unsigned char *)&v;
    for (size_t i = at; i < n && i < at + 8; i++)
        to[i - at] = from[i];
    return v;
}

static __device__ __forceinline__ void store8(unsigned char *to, size_t at, size_t n, uint2 v)
{
    if (at + 8 <= n && (size_t)(to + at) % 8 == 0) {
        *(uint2 *)(to + at) = v;
        return;
    }
    const unsigned char *from = (const unsigned char *)&v;
    for (size_t i = at; i < n && i < at + 8; i++)
        to[i] = from[i - at];
}

static __device__ __forceinline__ ulonglong2 with_flag(uint2 v, uint32_t flag)
{
    ulonglong2 w;
    w.x = (unsigned long long)flag << 32 | v.x;
    w.y = (unsigned long long)flag << 32 | v.y;
    return w;
}

struct word_turn {
    uint32_t flag;
    bool failed;
};

static __device__ __forceinline__ struct word_turn word_begin(const struct peer_call &c)
{
    struct peer_box *own = c.box[c.rank];
    int broken = *(volatile uint32_t *)&own->broken != 0;
    struct word_turn t = {own->word_turn[blockIdx.x] + 1, false};
    t.failed = __syncthreads_or(broken) != 0;
    return t;
}

/* Where turn k of this thread lies in the payload, and in a box. A block has the same place in a
 * box in every call, whatever the grid. */
static __device__ __forceinline__ size_t word_at(const struct peer_call &c, uint32_t k)
{
    return 8 * ((size_t)(blockIdx.x * c.turns + k) * WORD_THREADS + threadIdx.x);
}
static __device__ __forceinline__ uint32_t word_slot(uint32_t k)
{
    return (blockIdx.x * WORD_TURNS + k) * WORD_THREADS + threadIdx.x;
}

static __device__ __forceinline__ void
word_send(const struct peer_call &c, const struct word_turn &t, uint32_t k, uint32_t peer, uint2 v)
{
    store_words(&c.box[peer]->word[t.flag & 1][c.rank][word_slot(k)], with_flag(v, t.flag));
}

static __device__ __forceinline__ bool
word_take(const struct peer_call &c, const struct word_turn &t, uint32_t k, uint32_t peer, uint2 *v)
{
    const ulonglong2 *at = &c.box[c.rank]->word[t.flag & 1][peer][word_slot(k)];
    struct peer_patience patience = {0, 0};
    for (;;) {
        ulonglong2 w = load_words(at);
        if ((uint32_t)(w.x >> 32) == t.flag && (uint32_t)(w.y >> 32) == t.flag) {
            v->x = (uint32_t)w.x;
            v->y = (uint32_t)w.y;
            return true;
        }
        if (!peer_wait_more(c, &patience, peer))
            return false;
    }
}

static __device__ __forceinline__ void word_end(const struct peer_call &c,
                                                const struct word_turn &t)
{
    struct peer_box *own = c.box[c.rank];
    __syncthreads();
    if (threadIdx.x == 0) {
        own->word_turn[blockIdx.x] = t.flag;
        if (blockIdx.x == 0)
            own->calls++;
    }
}

template <typename T> static __device__ __forceinline__ void add8(float *sum, uint2 v, bool first)
{
    const T *from = (const T *)&v;
    for (int i = 0; i < (int)(8 / sizeof(T)); i++)
        sum[i] = first ? get(from + i) : sum[i] + get(from + i);
}

/* c.n elements: of the buffer, or with `scatter` of each rank's part, of which this rank gets its
 * own. All is sent before anything is waited for. */
template <typename T> static __global__ void sum_words_kernel(struct peer_call c, bool scatter)
{
    enum { V = 8 / sizeof(T) };
    struct word_turn t = word_begin(c);
    size_t bytes = c.n * sizeof(T);
    bool good = !t.failed;
    if (t.failed)
        return;
    for (uint32_t k = 0; k < c.turns && word_at(c, k) < bytes; k++)
        for (uint32_t i = 1; i < c.n_ranks; i++) {
            uint32_t r = (c.rank + i) % c.n_ranks;
            word_send(c, t, k, r, load8(c.in + (scatter ? r * bytes : 0), word_at(c, k), bytes));
        }
    for (uint32_t k = 0; k < c.turns && word_at(c, k) < bytes && good; k++) {
        float sum[V] = {0.0f};
        uint2 mine = load8(c.in + (scatter ? c.rank * bytes : 0), word_at(c, k), bytes), result;
        for (uint32_t r = 0; r < c.n_ranks && good; r++) {
            uint2 v = mine;
            good = r == c.rank || word_take(c, t, k, r, &v);
            add8<T>(sum, v, r == 0);
        }
        for (int i = 0; i < V; i++)
            put((T *)&result + i, sum[i]);
        if (good)
            store8(c.out, word_at(c, k), bytes, result);
    }
    word_end(c, t);
}

static __global__ void gather_words_kernel(struct peer_call c)
{
    struct word_turn t = word_begin(c);
    bool good = !t.failed;
    if (t.failed)
        return;
    for (uint32_t k = 0; k < c.turns && word_at(c, k) < c.n; k++) {
        uint2 mine = load8(c.in, word_at(c, k), c.n);
        for (uint32_t i = 1; i < c.n_ranks; i++)
            word_send(c, t, k, (c.rank + i) % c.n_ranks, mine);
        store8(c.out + c.rank * c.n, word_at(c, k), c.n, mine);
    }
    for (uint32_t k = 0; k < c.turns && word_at(c, k) < c.n && good; k++)
        for (uint32_t i = 1; i < c.n_ranks && good; i++) {
            uint32_t r = (c.rank + i) % c.n_ranks;
            uint2 v;
            good = word_take(c, t, k, r, &v);
            if (good)
                store8(c.out + r * c.n, word_at(c, k), c.n, v);
        }
    word_end(c, t);
}

/* ---- launches ---- */

static uint32_t blocks_for(size_t bytes, uint32_t most)
{
    size_t n = (bytes + 16 * PEER_THREADS - 1) / (16 * PEER_THREADS);
    return n < 1 ? 1 : n > most ? most : (uint32_t)n;
}

/* Whether `bytes` for each peer travel in words; then the grid, and c's turns. */
static uint32_t word_blocks(struct peer_call *c, size_t bytes, uint32_t most)
{
    size_t words = (bytes + 7) / 8, blocks = (words + WORD_THREADS - 1) / WORD_THREADS;
    uint32_t peers = c->n_ranks > 1 ? c->n_ranks - 1 : 1;
    most = most < WORD_BLOCKS ? most : (uint32_t)WORD_BLOCKS;
    blocks = blocks < 1 ? 1 : blocks > most ? most : blocks;
    size_t turns = (words + blocks * WORD_THREADS - 1) / (blocks * WORD_THREADS);
    if (bytes * peers > WORD_BYTES || turns > WORD_TURNS)
        return 0;
    c->turns = (uint32_t)turns;
    return (uint32_t)blocks;
}

template <typename T, int N>
static void launch_sum(const struct peer_call &c, bool scatter, uint32_t blocks, cudaStream_t s)
{
    if (scatter)
        CUDA_LAUNCH((reduce_scatter_kernel<T, N>), blocks, PEER_THREADS, 0, s, c);
    else
        CUDA_LAUNCH((all_reduce_kernel<T, N>), blocks, PEER_THREADS, 0, s, c);
}

template <typename T>
static void launch_sum_of(struct peer_call c, bool scatter, uint32_t most, cudaStream_t s)
{
    size_t bytes = c.n * sizeof(T);
    uint32_t blocks = word_blocks(&c, bytes, most);
    if (blocks) {
        CUDA_LAUNCH(sum_words_kernel<T>, blocks, WORD_THREADS, 0, s, c, scatter);
        return;
    }
    blocks = blocks_for(scatter ? bytes : bytes / c.n_ranks, most);
    if (c.n_ranks <= 2)
        launch_sum<T, 2>(c, scatter, blocks, s);
    else if (c.n_ranks <= 4)
        launch_sum<T, 4>(c, scatter, blocks, s);
    else
        launch_sum<T, PEER_RANKS>(c, scatter, blocks, s);
}

void peer_launch_sum(const struct peer_call *c, bool bf16_values, bool scatter, uint32_t most,
                     cudaStream_t s)
{
    if (bf16_values)
        launch_sum_of<bf16>(*c, scatter, most, s);
    else
        launch_sum_of<float>(*c, scatter, most, s);
}

void peer_launch_gather(const struct peer_call *given, uint32_t most, cudaStream_t s)
{
    struct peer_call c = *given;
    uint32_t blocks = word_blocks(&c, c.n, most);
    if (blocks)
        CUDA_LAUNCH(gather_words_kernel, blocks, WORD_THREADS, 0, s, c);
    else
        CUDA_LAUNCH(all_gather_kernel, blocks_for(c.n, most), PEER_THREADS, 0, s, c);
}

void peer_launch_exchange(const struct peer_call *c, const struct peer_parts *p, uint32_t blocks,
                          cudaStream_t s)
{
    CUDA_LAUNCH(all_to_all_kernel, blocks, PEER_THREADS, 0, s, *c, *p);
}

void peer_launch_broadcast(const struct peer_call *c, uint32_t root, uint32_t most, cudaStream_t s)
{
    CUDA_LAUNCH(broadcast_kernel, blocks_for(c->n, most), PEER_THREADS, 0, s, *c, root);
}

/* ---- for bodies that gather first: sums of parts that lie in this rank's memory ---- */

template <typename T>
static __global__ void sum_parts_kernel(const T *in, size_t stride, uint32_t n_parts, T *out,
                                        size_t n)
{
    size_t step = (size_t)gridDim.x * blockDim.x;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        float sum = get(in + i);
        for (uint32_t r = 1; r < n_parts; r++)
            sum += get(in + r * stride + i);
        put(out + i, sum);
    }
}

void sum_parts(const void *in, size_t stride, uint32_t n_parts, void *out, size_t n,
               bool bf16_values, cudaStream_t s)
{
    size_t blocks = (n + 255) / 256;
    uint32_t grid = blocks > 1024 ? 1024 : blocks ? (uint32_t)blocks : 1;
    if (bf16_values)
        CUDA_LAUNCH(sum_parts_kernel<bf16>, grid, 256, 0, s, (const bf16 *)in, stride, n_parts,
                    (bf16 *)out, n);
    else
        CUDA_LAUNCH(sum_parts_kernel<float>, grid, 256, 0, s, (const float *)in, stride, n_parts,
                    (float *)out, n);
}
