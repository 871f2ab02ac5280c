/* sample_kernel.cu - from a row of logits to a token, all of it on the device. See sample.h.
 *
 * A block of 1024 threads per row, a few passes over the vocabulary: usable and the argmax, bias
 * and penalties where they are wished for, then top-k (radix selection), weights, top-p (bisection
 * over the 32-bit keys of the weights, sums in double and in one fixed order), min-p, and the draw.
 * Where a few thousand of the largest weights are enough for top-p, they go to shared memory, in
 * order, and all that follows looks at them alone.
 */
#include "cuda/sample.cuh"

#include "tile/likely.cuh"
#include "tile/select.cuh"

#include <float.h>

enum { THREADS = 1024, LOADS = 8, LEVELS = 3 };
static_assert((int)THREADS == (int)LIKELY_THREADS, "the same block");

typedef unsigned long long ranked; /* key, then the id upside down: the largest is the best */
static __device__ __forceinline__ ranked rank_of(float x, uint32_t id)
{
    return (ranked)order_key(x) << 32 | (0xFFFFFFFFu - id);
}
static __device__ __forceinline__ uint32_t id_of(ranked r)
{
    return 0xFFFFFFFFu - (uint32_t)r;
}

/* The best of x[0, n) that comes after `bound`, 0: none; and how many are no usable logits. */
static __device__ ranked block_best(const float *x, uint32_t n, ranked bound, uint32_t *bad)
{
    ranked best = 0;
    *bad = 0;
    for (uint32_t i0 = threadIdx.x; i0 < n; i0 += LOADS * THREADS) {
        float v[LOADS];
#pragma unroll
        for (uint32_t k = 0; k < LOADS; k++)
            v[k] = i0 + k * THREADS < n ? x[i0 + k * THREADS] : 0.0f;
#pragma unroll
        for (uint32_t k = 0; k < LOADS; k++) {
            ranked r = i0 + k * THREADS < n ? rank_of(v[k], i0 + k * THREADS) : 0;
            *bad += !(v[k] <= FLT_MAX);
            best = r < bound && r > best ? r : best;
        }
    }
    return block_max(best);
}

static __device__ __forceinline__ bool is_adjusted(const struct wish &w)
{
    return w.n_bias || w.n_history || w.n_banned || w.has_allowed;
}

static __device__ void adjust(const struct sample_args &a, const struct wish &w, const float *raw,
                              float *x, uint32_t *count)
{
    const uint32_t in_prompt = 1u << 31;
    bool penalties =
        w.n_history && (w.presence != 0.0f || w.frequency != 0.0f || w.repetition != 1.0f);
    for (uint32_t i = threadIdx.x; i < a.vocab; i += THREADS) {
        x[i] = raw[i];
        if (penalties)
            count[i] = 0;
    }
    __syncthreads();
    if (threadIdx.x == 0) /* in order: an id may come twice */
        for (uint32_t i = 0; i < w.n_bias; i++)
            if (a.pool[w.bias + 2 * i] < a.vocab)
                x[a.pool[w.bias + 2 * i]] += __uint_as_float(a.pool[w.bias + 2 * i + 1]);
    for (uint32_t i = threadIdx.x; penalties && i < w.n_history; i += THREADS) {
        uint32_t id = a.pool[w.history + i];
        if (id >= a.vocab)
            continue;
        if (i < w.n_prompt)
            atomicOr(&count[id], in_prompt);
        else
            atomicAdd(&count[id], 1u);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < a.vocab; i += THREADS) {
        float v = x[i], n = penalties ? (float)(count[i] & ~in_prompt) : 0.0f;
        if (penalties && count[i] && w.repetition != 1.0f)
            v = v > 0.0f ? v / w.repetition : v * w.repetition;
        if (n > 0.0f)
            v -= w.frequency * n + w.presence;
        if (w.has_allowed && !(a.pool[w.allowed + i / 32] >> (i % 32) & 1u))
            v = -INFINITY;
        x[i] = v;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < w.n_banned; i += THREADS)
        if (a.pool[w.banned + i] < a.vocab)
            x[a.pool[w.banned + i]] = -INFINITY;
    __syncthreads();
}

/* Leaves in what beats the threshold and its first ties; others become `gone`. */
static __device__ void keep_selection(float *x, uint32_t n, uint32_t threshold, uint32_t ties,
                                      float gone)
{
    uint32_t seen = 0, here;
    for (uint32_t i0 = 0; i0 < n; i0 += THREADS) {
        uint32_t i = i0 + threadIdx.x, key = i < n ? order_key(x[i]) : 0;
        bool tie = i < n && key == threshold;
        uint32_t rank = seen + block_rank(tie, &here);
        if (i < n && !(key > threshold || (tie && rank < ties)))
            x[i] = gone;
        seen += here;
    }
    __syncthreads();
}

/* Sum of the weights whose key is above `bound`. Excluded entries are -1. */
static __device__ double sum_above(const float *x, uint32_t n, uint32_t bound)
{
    double sum = 0.0;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
        if (x[i] >= 0.0f && order_key(x[i]) > bound)
            sum += (double)x[i];
    return block_sum(sum);
}

static __device__ void cut_top_p(float *x, uint32_t n, float top_p)
{
    /* The largest key t such that the keys above t - 1 reach the target: weights of key t are the
     * last to come in. Weights lie in [0, 1]. */
    double target = (double)top_p * sum_above(x, n, 0);
    uint32_t low = order_key(0.0f), high = order_key(1.0f);
    while (low < high) {
        uint32_t mid = low + (high - low + 1) / 2;
        if (sum_above(x, n, mid - 1) >= target)
            low = mid;
        else
            high = mid - 1;
    }
    double reached = sum_above(x, n, low);
    float each = __uint_as_float(low ^ 0x80000000u);
    uint32_t ties = 0; /* at most n: rounding may leave the target out of reach */
    do {
        reached += (double)each;
        ties++;
    } while (reached < target && ties < n);
    keep_selection(x, n, low, ties, -1.0f);
}

static __device__ uint2 philox_words(const struct wish &w)
{
    uint32_t c0 = w.position, c1 = w.stream, c2 = 0, c3 = 0, k0 = w.key[0], k1 = w.key[1];
    for (int round = 0; round < 10; round++) {
        uint32_t n0 = __umulhi(0xCD9E8D57u, c2) ^ c1 ^ k0, n2 = __umulhi(0xD2511F53u, c0) ^ c3 ^ k1;
        c1 = 0xCD9E8D57u * c2;
        c3 = 0xD2511F53u * c0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    uint2 r;
    r.x = c0;
    r.y = c1;
    return r;
}

/* A number in [0, 1) for the row's position. */
static __device__ double noise_of(const struct wish &w)
{
    uint2 noise = philox_words(w);
    return ((double)(noise.x >> 5) * 67108864.0 + (double)(noise.y >> 6)) / 9007199254740992.0;
}

/* The first id at which the sum of the weights so far passes its share of all. A warp has a piece
 * of the row; the one whose piece passes it goes through that again. */
static __device__ uint32_t draw(const float *x, uint32_t n, const struct wish &w)
{
    __shared__ double part[THREADS / 32];
    __shared__ uint32_t token;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, each = parts_of(n, THREADS) * 32;
    uint32_t begin = warp * each, end = begin + each < n ? begin + each : n;
    double sum = 0.0;
    uint32_t last = 0; /* behind the last weight */
#pragma unroll 8
    for (uint32_t i = begin + lane; i < end; i += 32) {
        sum += x[i] > 0.0f ? (double)x[i] : 0.0;
        last = x[i] > 0.0f ? i + 1 : last;
    }
    sum = warp_sum(sum);
    last = block_max(last);
    if (lane == 0)
        part[warp] = sum;
    if (threadIdx.x == 0)
        token = last ? last - 1 : 0; /* where rounding leaves the target at the very end */
    __syncthreads();
    double total = 0.0, reached = 0.0;
    for (uint32_t i = 0; i < THREADS / 32; i++)
        total += part[i];
    double target = noise_of(w) * total;
    uint32_t chosen = 0;
    while (chosen + 1 < THREADS / 32 && reached + part[chosen] <= target)
        reached += part[chosen++];
    if (warp == chosen)
        for (uint32_t i0 = begin; i0 < n; i0 += 32) { /* to the row's end, if rounding wants it */
            uint32_t i = i0 + lane;
            double mine = i < n && x[i] > 0.0f ? (double)x[i] : 0.0, upto = warp_upto(mine);
            uint32_t passed = __ballot_sync(WARP_ALL, mine > 0.0 && reached + upto > target);
            if (passed) {
                if (lane == 0)
                    token = i0 + (uint32_t)__ffs((int)passed) - 1;
                break;
            }
            reached += __shfl_sync(WARP_ALL, upto, 31);
        }
    __syncthreads();
    return token;
}

/* Weights [0, 1] that are at least this much count as likely, at the first level that is enough. */
static __device__ __forceinline__ float level(int i)
{
    return i == 0 ? 0x1p-7f : i == 1 ? 0x1p-14f : 0x1p-21f;
}

/* x becomes weights, -1 for what is excluded; total[i], count[i]: of those from level i on, and
 * total[LEVELS] of all. */
static __device__ void weigh(const float *from, float *x, uint32_t n, float max, float temperature,
                             double (&total)[LEVELS + 1], uint32_t (&count)[LEVELS])
{
    for (int l = 0; l < LEVELS; l++)
        total[l] = count[l] = 0;
    total[LEVELS] = 0.0;
    for (uint32_t i0 = threadIdx.x; i0 < n; i0 += LOADS * THREADS) {
        float v[LOADS];
#pragma unroll
        for (uint32_t k = 0; k < LOADS; k++)
            v[k] = i0 + k * THREADS < n ? from[i0 + k * THREADS] : -INFINITY;
#pragma unroll
        for (uint32_t k = 0; k < LOADS; k++) {
            float weight = v[k] >= -FLT_MAX ? expf((v[k] - max) / temperature) : -1.0f;
            if (i0 + k * THREADS < n)
                x[i0 + k * THREADS] = weight;
            total[LEVELS] += weight > 0.0f ? (double)weight : 0.0;
#pragma unroll
            for (int l = 0; l < LEVELS; l++)
                if (weight >= level(l)) {
                    total[l] += (double)weight;
                    count[l]++;
                }
        }
    }
    for (int l = 0; l < LEVELS; l++) {
        total[l] = block_sum(total[l]);
        count[l] = block_sum(count[l]);
    }
    total[LEVELS] = block_sum(total[LEVELS]);
}

/* Whether there was anything to choose from; `from`: the row's logits, best of which is `best`. */
static __device__ bool choose(const float *from, float *x, uint32_t n, ranked best,
                              const struct wish &w, uint32_t *token)
{
    __shared__ struct likely likely;
    float max = from[id_of(best)];
    if (!(max >= -FLT_MAX))
        return false;
    *token = id_of(best);
    if (w.temperature <= 0.0f)
        return true;
    if (w.top_k && w.top_k < n) {
        for (uint32_t i = threadIdx.x; from != x && i < n; i += THREADS)
            x[i] = from[i];
        __syncthreads();
        struct selection s = select_largest(x, n, w.top_k);
        keep_selection(x, n, s.threshold, s.ties, -INFINITY);
        from = x;
    }
    double total[LEVELS + 1];
    uint32_t count[LEVELS];
    __syncthreads(); /* everyone knows the largest; it is written next where from is x */
    weigh(from, x, n, max, w.temperature, total, count);
    double target = (double)w.top_p * total[LEVELS];
    for (int l = 0; w.top_p < 1.0f && l < LEVELS; l++)
        if (count[l] <= LIKELY && total[l] > target * (1.0 + 1e-9)) { /* whatever sums round to */
            gather_likely(x, n, level(l), likely);
            *token = choose_likely(likely, count[l], level(l), target, w.min_p, noise_of(w));
            return true;
        }
    if (w.top_p < 1.0f)
        cut_top_p(x, n, w.top_p);
    for (uint32_t i = threadIdx.x; w.min_p > 0.0f && i < n; i += THREADS)
        if (x[i] < w.min_p) /* the largest weight is 1 */
            x[i] = -1.0f;
    __syncthreads();
    *token = draw(x, n, w);
    return true;
}

static __device__ void log_probabilities(const float *x, uint32_t n, float max, uint32_t n_top,
                                         struct sample_out *out, uint32_t token)
{
    double sum = 0.0;
    float mine = x[token];
    uint32_t before = 0, bad;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        sum += (double)expf(x[i] - max);
        before += x[i] > mine || (x[i] == mine && i < token);
    }
    double log_sum = log(block_sum(sum));
    before = block_sum(before);
    if (threadIdx.x == 0) {
        out->logprob = (float)((double)(mine - max) - log_sum);
        out->rank = before + 1;
        out->n_top = n_top < n ? n_top : n;
    }
    ranked bound = ~(ranked)0;
    for (uint32_t t = 0; t < n_top && t < n; t++) {
        bound = block_best(x, n, bound, &bad);
        if (threadIdx.x == 0) {
            out->top[t].id = id_of(bound);
            out->top[t].logprob = (float)((double)(x[id_of(bound)] - max) - log_sum);
        }
    }
}

static __global__ void __launch_bounds__(THREADS) sample_kernel(struct sample_args a)
{
    const struct wish &w = a.wish[blockIdx.x];
    const float *raw = a.logits + (size_t)blockIdx.x * a.vocab;
    float *x = a.work + (size_t)blockIdx.x * a.vocab;
    struct sample_out *out = a.out + blockIdx.x;
    uint32_t bad, token = a.end_id;
    ranked best = block_best(raw, a.vocab, ~(ranked)0, &bad);
    float max = raw[id_of(best)];
    bool usable = !block_sum(bad) && max >= -FLT_MAX;
    if (w.given) {
        token = w.given_token;
    } else if (usable) {
        const float *from = raw;
        if (is_adjusted(w)) {
            adjust(a, w, raw, x, a.count + (size_t)blockIdx.x * a.vocab);
            best = block_best(x, a.vocab, ~(ranked)0, &bad);
            from = x;
        }
        if (!choose(from, x, a.vocab, best, w, &token)) {
            token = a.end_id;
            usable = false;
        }
    }
    if (threadIdx.x == 0) {
        out->token = token;
        out->logprob = 0.0f;
        out->rank = 0;
        out->n_top = 0;
        out->bad_logits = !usable;
    }
    __syncthreads();
    if (usable && w.want_logprob)
        log_probabilities(raw, a.vocab, max, w.n_top, out, token);
}

void sample_launch(cudaStream_t s, const struct sample_args *a, uint32_t n)
{
    CUDA_LAUNCH(sample_kernel, n, THREADS, 0, s, *a);
}
