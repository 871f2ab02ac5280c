/* topk.cuh - the positions of the k largest of n scores, exactly, by one block of 1024 threads:
 * ascending, the lower position on ties, NaN below everything.
 *
 * - A bound from below: the scores lie in 4096 interleaved chunks, and the k-th largest of the
 *   chunks' maxima has at least k scores on it or over it, whatever the scores look like.
 * - Candidates: the scores over the bound, some 1.3 k of them where large ones are spread over the
 *   chunks; a short row is all candidates. The k-th largest among them is found by radix selection
 *   from their first differing bit on.
 * - Where fewer than k are over the bound it is the threshold itself; where more than CANDIDATES
 *   are, the selection runs over the scores themselves.
 * - The chosen become bits of a window of positions, and its words, counted and summed, the
 *   positions in order.
 * Cost: two passes over the scores, the second from L2.
 */
#ifndef GAZE_CUDA_TILE_TOPK_CUH
#define GAZE_CUDA_TILE_TOPK_CUH

#include "tile/block.cuh"
#include "tile/numbers.cuh"

enum { TOPK_THREADS = 1024, TOPK_CANDIDATES = 8192, TOPK_WORDS = 4096, TOPK_BINS = 256 };
enum { TOPK_CHUNKS = 4 * TOPK_THREADS, TOPK_EACH = TOPK_WORDS / TOPK_THREADS };
/* Up to so many rows have a multiprocessor each, and blocks twice the registers. */
enum { TOPK_FEW_ROWS = 132, TOPK_DEEP_FEW = 4, TOPK_DEEP_MANY = 2 };

struct topk_shared {
    uint32_t key[TOPK_CANDIDATES], pos[TOPK_CANDIDATES];
    uint32_t in[TOPK_WORDS], tie[TOPK_WORDS]; /* bits of a window of 32 TOPK_WORDS positions */
    uint32_t bin[TOPK_BINS], state[4], n_candidates;
};
static_assert(sizeof(struct topk_shared) <= 98 << 10, "fits in what every device gives on request");

struct topk_cut {
    uint32_t threshold; /* key of the k-th largest: all larger keys are in */
    uint32_t ties;      /* and so many of those equal to it */
    uint32_t equal;     /* of so many */
};

static __device__ __forceinline__ uint32_t topk_block_max(uint32_t x)
{
    __shared__ uint32_t part[32];
    for (int d = 16; d > 0; d /= 2) {
        uint32_t y = __shfl_xor_sync(WARP_ALL, x, d);
        x = y > x ? y : x;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    x = part[threadIdx.x % 32];
    for (int d = 16; d > 0; d /= 2) {
        uint32_t y = __shfl_xor_sync(WARP_ALL, x, d);
        x = y > x ? y : x;
    }
    return x;
}

/* Sum over the threads before this one; *total: over all. */
static __device__ __forceinline__ uint32_t topk_before(uint32_t x, uint32_t *total)
{
    __shared__ uint32_t part[32];
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, upto = x;
    for (uint32_t d = 1; d < 32; d *= 2) {
        uint32_t y = __shfl_up_sync(WARP_ALL, upto, d);
        upto += lane >= d ? y : 0;
    }
    __syncthreads();
    if (lane == 31)
        part[warp] = upto;
    __syncthreads();
    uint32_t all = part[lane], whole = all;
    for (uint32_t d = 1; d < 32; d *= 2) {
        uint32_t y = __shfl_up_sync(WARP_ALL, whole, d);
        whole += lane >= d ? y : 0;
    }
    *total = __shfl_sync(WARP_ALL, whole, 31);
    return upto - x + __shfl_sync(WARP_ALL, whole - all, (int)warp);
}

/* The k-th largest of the keys that each(f) brings, all of them in [low, high]; each calls f(key)
 * for the thread's own ones, the same at every call. */
template <typename Each>
static __device__ __forceinline__ struct topk_cut
topk_radix(struct topk_shared &s, Each each, uint32_t k, uint32_t low, uint32_t high)
{
    int bits = low == high ? 0 : 32 - __clz((int)(low ^ high)); /* that may differ */
    struct topk_cut cut = {bits < 32 ? high >> bits : 0, k, 0xFFFFFFFFu};
    while (bits > 0) {
        int step = bits < 8 ? bits : 8, shift = bits - step;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < TOPK_BINS; i += TOPK_THREADS)
            s.bin[i] = 0;
        __syncthreads();
        each([&](uint32_t key) {
            if (bits == 32 || key >> bits == cut.threshold)
                atomicAdd(&s.bin[key >> shift & ((1u << step) - 1u)], 1u);
        });
        __syncthreads();
        if (threadIdx.x < 32) { /* a lane has 8 bins, the largest keys' the first */
            uint32_t top = 255 - 8 * threadIdx.x, mine = 0, upto;
            for (uint32_t i = 0; i < 8; i++)
                mine += s.bin[top - i];
            upto = mine;
            for (uint32_t d = 1; d < 32; d *= 2) {
                uint32_t before = __shfl_up_sync(WARP_ALL, upto, d);
                upto += threadIdx.x >= d ? before : 0;
            }
            if (upto - mine < cut.ties && cut.ties <= upto) {
                uint32_t above = upto - mine;
                while (above + s.bin[top] < cut.ties)
                    above += s.bin[top--];
                s.state[0] = top;
                s.state[1] = cut.ties - above;
                s.state[2] = s.bin[top];
            }
        }
        __syncthreads();
        cut.threshold = cut.threshold << step | s.state[0];
        cut.ties = s.state[1];
        cut.equal = s.state[2];
        bits = shift;
    }
    return cut;
}

/* The number whose key it is. */
static __device__ __forceinline__ float topk_number(uint32_t key)
{
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

/* The largest score of each of the thread's chunks, as keys. What is behind n counts as nothing. */
template <uint32_t AT_ONCE>
static __device__ __forceinline__ void topk_maxima(const float *x, uint32_t n, uint32_t most[4])
{
    float m[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    for (uint32_t i0 = 4 * threadIdx.x; i0 < n; i0 += AT_ONCE * TOPK_CHUNKS) {
        float4 v[AT_ONCE];
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            float4 none = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
            v[j] = i0 + j * TOPK_CHUNKS < n ? *(const float4 *)(x + i0 + j * TOPK_CHUNKS) : none;
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            uint32_t i = i0 + j * TOPK_CHUNKS;
            if (i < n && n - i < 4) { /* the last ones */
                v[j].y = n - i > 1 ? v[j].y : -INFINITY;
                v[j].z = n - i > 2 ? v[j].z : -INFINITY;
                v[j].w = -INFINITY;
            }
            m[0] = fmaxf(m[0], v[j].x); /* a NaN loses */
            m[1] = fmaxf(m[1], v[j].y);
            m[2] = fmaxf(m[2], v[j].z);
            m[3] = fmaxf(m[3], v[j].w);
        }
    }
#pragma unroll
    for (int c = 0; c < 4; c++)
        most[c] = order_key(m[c]);
}

/* Scores over the bound (the key of a number) become candidates; how many there are (those beyond
 * the room are not kept). */
template <uint32_t AT_ONCE>
static __device__ __forceinline__ uint32_t topk_filter(struct topk_shared &s, const float *x,
                                                       uint32_t n, uint32_t bound)
{
    uint32_t lane = threadIdx.x % 32, before = (1u << lane) - 1u;
    float least = topk_number(bound);
    if (threadIdx.x == 0)
        s.n_candidates = 0;
    __syncthreads();
    for (uint32_t begin = 4 * (threadIdx.x - lane); begin < n; begin += AT_ONCE * TOPK_CHUNKS) {
        uint32_t i0 = begin + 4 * lane;
        float4 v[AT_ONCE];
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            float4 none = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
            v[j] = i0 + j * TOPK_CHUNKS < n ? *(const float4 *)(x + i0 + j * TOPK_CHUNKS) : none;
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            uint32_t i = i0 + j * TOPK_CHUNKS, hit[4], sum = 0;
            float value[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
            bool over[4];
#pragma unroll
            for (uint32_t c = 0; c < 4; c++)
                over[c] = value[c] > least; /* not a NaN */
            if (!__ballot_sync(WARP_ALL, over[0] || over[1] || over[2] || over[3]))
                continue;
#pragma unroll
            for (uint32_t c = 0; c < 4; c++)
                over[c] = over[c] && i + c < n;
#pragma unroll
            for (uint32_t c = 0; c < 4; c++) {
                hit[c] = __ballot_sync(WARP_ALL, over[c]);
                sum += (uint32_t)__popc(hit[c]);
            }
            uint32_t at = 0;
            if (lane == 0)
                at = atomicAdd(&s.n_candidates, sum);
            at = __shfl_sync(WARP_ALL, at, 0);
#pragma unroll
            for (uint32_t c = 0; c < 4; c++) {
                uint32_t mine = at + (uint32_t)__popc(hit[c] & before);
                if (over[c] && mine < TOPK_CANDIDATES) {
                    s.key[mine] = order_key(value[c]);
                    s.pos[mine] = i + c;
                }
                at += (uint32_t)__popc(hit[c]);
            }
        }
    }
    __syncthreads();
    return s.n_candidates;
}

/* Calls f(key) for the thread's scores. */
struct topk_scores {
    const float *x;
    uint32_t n;
    template <typename F> __device__ __forceinline__ void operator()(F f) const
    {
        for (uint32_t i = threadIdx.x; i < n; i += TOPK_THREADS)
            f(order_key(x[i]));
    }
};

/* Marks of a window that begins at `from` and has so many words. By the scores: what is over the
 * cut and what is on it. */
static __device__ __forceinline__ void topk_mark_scores(struct topk_shared &s, const float *x,
                                                        uint32_t n, uint32_t from, uint32_t words,
                                                        uint32_t cut)
{
    uint32_t lane = threadIdx.x % 32;
    for (uint32_t w = threadIdx.x / 32; w < words; w += TOPK_THREADS / 32) {
        uint32_t i = from + 32 * w + lane, key = i < n ? order_key(x[i]) : 0;
        uint32_t in = __ballot_sync(WARP_ALL, i < n && key > cut);
        uint32_t tie = __ballot_sync(WARP_ALL, i < n && key == cut);
        if (lane == 0) {
            s.in[w] = in;
            s.tie[w] = tie;
        }
    }
}
/* By candidates: all that are over the cut are among them, and, `ties`, all that are on it. */
static __device__ __forceinline__ void topk_mark_candidates(struct topk_shared &s,
                                                            uint32_t n_candidates, uint32_t from,
                                                            uint32_t words, uint32_t cut, bool ties)
{
    for (uint32_t w = threadIdx.x; w < words; w += TOPK_THREADS)
        s.in[w] = s.tie[w] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_candidates; i += TOPK_THREADS) {
        uint32_t key = s.key[i], at = s.pos[i] - from;
        if (at < 32 * words && key >= cut)
            atomicOr(key == cut && ties ? &s.tie[at / 32] : &s.in[at / 32], 1u << at % 32);
    }
}
/* Marks scores on the cut, in order, until there are `wanted` of them or the window ends. */
template <uint32_t AT_ONCE>
static __device__ __forceinline__ void topk_mark_ties(struct topk_shared &s, const float *x,
                                                      uint32_t n, uint32_t from, uint32_t words,
                                                      uint32_t cut, uint32_t wanted)
{
    enum { WARPS = TOPK_THREADS / 32 };
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float on = topk_number(cut);
    if (threadIdx.x == 0)
        s.n_candidates = 0; /* of those found */
    for (uint32_t w0 = warp; w0 - warp < words; w0 += AT_ONCE * WARPS) {
        uint32_t found = 0;
        float v[AT_ONCE];
        __syncthreads();
        if (s.n_candidates >= wanted)
            break;
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            uint32_t w = w0 + j * WARPS, i = from + 32 * w + lane;
            v[j] = w < words && i < n ? x[i] : NAN;
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            uint32_t tie = __ballot_sync(WARP_ALL, v[j] == on);
            if (lane == 0 && tie)
                s.tie[w0 + j * WARPS] = tie;
            found += (uint32_t)__popc(tie);
        }
        __syncthreads(); /* all have seen how many there were */
        if (lane == 0)
            atomicAdd(&s.n_candidates, found);
    }
}

/* 1 <= k <= n; x is aligned to 16 bytes and may be read up to the next multiple of four values.
 * Every thread of the block takes part; out[k]. DEEP: loads under way, twice as many of them in
 * blocks that have registers for it. */
template <uint32_t DEEP>
static __device__ void topk_row(struct topk_shared &s, const float *x, uint32_t n, uint32_t k,
                                int32_t *out)
{
    uint32_t most[4], bound = 0, n_candidates, top;
    struct topk_cut cut;
    enum { BY_CANDIDATES, BY_BOUND, BY_SCORES } how = BY_CANDIDATES;
    if (n <= TOPK_CANDIDATES) {
        top = 0;
        for (uint32_t i = threadIdx.x; i < n; i += TOPK_THREADS) {
            uint32_t key = order_key(x[i]);
            s.key[i] = key;
            s.pos[i] = i;
            top = key > top ? key : top;
        }
        top = topk_block_max(top);
        n_candidates = n;
    } else {
        topk_maxima<2 * DEEP>(x, n, most);
        top = most[0];
#pragma unroll
        for (int c = 1; c < 4; c++)
            top = most[c] > top ? most[c] : top;
        top = topk_block_max(top);
        auto maxima = [&](auto f) {
#pragma unroll
            for (int c = 0; c < 4; c++)
                f(most[c]);
        };
        if (k <= TOPK_CHUNKS)
            bound = topk_radix(s, maxima, k, order_key(-INFINITY), top).threshold;
        /* A chunk of NaN counts as one of -inf: that bound says nothing. */
        bound = bound == order_key(-INFINITY) ? 0 : bound;
        n_candidates = bound ? topk_filter<DEEP>(s, x, n, bound) : 0;
    }
    if (n_candidates < k && bound) { /* so many are on the bound as are missing, or more */
        cut = (struct topk_cut){bound, k - n_candidates, 0};
        how = BY_BOUND;
    } else if (n_candidates > TOPK_CANDIDATES || n_candidates < k) {
        cut = topk_radix(s, topk_scores{x, n}, k, 0, top);
        how = BY_SCORES;
    } else {
        auto candidates = [&](auto f) {
            for (uint32_t i = threadIdx.x; i < n_candidates; i += TOPK_THREADS)
                f(s.key[i]);
        };
        cut = topk_radix(s, candidates, k, bound, top);
    }
    uint32_t n_out = 0, n_ties = 0, here;
    for (uint32_t from = 0; from < n; from += 32 * TOPK_WORDS) {
        uint32_t word[TOPK_EACH], sum = 0, w0 = threadIdx.x * TOPK_EACH;
        uint32_t words = (n - from + 31) / 32;
        words = words < TOPK_WORDS ? words : (uint32_t)TOPK_WORDS;
        __syncthreads();
        if (how == BY_SCORES)
            topk_mark_scores(s, x, n, from, words, cut.threshold);
        else
            topk_mark_candidates(s, n_candidates, from, words, cut.threshold, how == BY_CANDIDATES);
        if (how == BY_BOUND && n_ties < cut.ties)
            topk_mark_ties<2 * DEEP>(s, x, n, from, words, cut.threshold, cut.ties - n_ties);
        __syncthreads();
        if (how != BY_CANDIDATES ||
            cut.equal != cut.ties) { /* the lower positions of those on the cut */
#pragma unroll
            for (int i = 0; i < TOPK_EACH; i++)
                sum += w0 + i < words ? (uint32_t)__popc(s.tie[w0 + i]) : 0;
            uint32_t rank = n_ties + topk_before(sum, &here);
            n_ties += here;
#pragma unroll
            for (int i = 0; i < TOPK_EACH; i++) {
                uint32_t tie = w0 + i < words ? s.tie[w0 + i] : 0, kept = 0;
                for (; tie && rank < cut.ties; rank++) {
                    kept |= tie & (0u - tie);
                    tie &= tie - 1;
                }
                word[i] = (w0 + i < words ? s.in[w0 + i] : 0) | kept;
            }
            sum = 0;
        } else {
#pragma unroll
            for (int i = 0; i < TOPK_EACH; i++)
                word[i] = w0 + i < words ? s.in[w0 + i] | s.tie[w0 + i] : 0;
        }
#pragma unroll
        for (int i = 0; i < TOPK_EACH; i++)
            sum += (uint32_t)__popc(word[i]);
        uint32_t at = n_out + topk_before(sum, &here);
        n_out += here;
#pragma unroll
        for (int i = 0; i < TOPK_EACH; i++)
            for (uint32_t left = word[i]; left; left &= left - 1)
                out[at++] = (int32_t)(from + 32 * (w0 + i) + (uint32_t)__ffs((int)left) - 1);
    }
}

#endif
