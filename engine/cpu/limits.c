/* limits.c - see limits.h. */
#include "cpu/limits.h"

#include "base/clock.h"
#include "cpu/pool.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { SPIN_LOOPS = 20000, SUMS = 12, RUNS = 9 };
enum { CHUNKS_PER_THREAD = 16 }; /* so that a thread that wakes late costs a chunk, not half */
enum { COLD_BYTES = 512 << 20, HOT_BYTES = 512 << 10 }; /* cold: no cache holds a useful part */

struct limits_job {
    struct pool *pool;
    uint32_t threads;
    const char *memory;
    size_t bytes;
    float (*spin)(uint32_t loops);
    float (*read)(const char *p, size_t bytes);
};

static volatile float sink; /* keeps the loops from being left out */

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bf16"))) static float spin_bf16_avx512(uint32_t loops)
{
    __m512 s[SUMS];
    __m512bh x = (__m512bh)_mm512_set1_epi32(0x3C003C00);
    for (int i = 0; i < SUMS; i++)
        s[i] = _mm512_set1_ps((float)i);
    for (uint32_t k = 0; k < loops; k++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++)
            s[i] = _mm512_dpbf16_ps(s[i], x, x);
    }
    for (int i = 1; i < SUMS; i++)
        s[0] = _mm512_add_ps(s[0], s[i]);
    return _mm512_reduce_add_ps(s[0]);
}

__attribute__((target("avx512f"))) static float spin_f32_avx512(uint32_t loops)
{
    __m512 s[SUMS], x = _mm512_set1_ps(0.01f);
    for (int i = 0; i < SUMS; i++)
        s[i] = _mm512_set1_ps((float)i);
    for (uint32_t k = 0; k < loops; k++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++)
            s[i] = _mm512_fmadd_ps(x, x, s[i]);
    }
    for (int i = 1; i < SUMS; i++)
        s[0] = _mm512_add_ps(s[0], s[i]);
    return _mm512_reduce_add_ps(s[0]);
}

__attribute__((target("avx2,fma"))) static float spin_f32_avx2(uint32_t loops)
{
    __m256 s[SUMS], x = _mm256_set1_ps(0.01f);
    for (int i = 0; i < SUMS; i++)
        s[i] = _mm256_set1_ps((float)i);
    for (uint32_t k = 0; k < loops; k++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++)
            s[i] = _mm256_fmadd_ps(x, x, s[i]);
    }
    for (int i = 1; i < SUMS; i++)
        s[0] = _mm256_add_ps(s[0], s[i]);
    return s[0][0];
}
#endif

/* Four lanes by the compiler's own vectors, on any machine. */
static float spin_f32_plain(uint32_t loops)
{
    float s[4 * SUMS], x[4] = {0.01f, 0.01f, 0.01f, 0.01f};
    for (int i = 0; i < 4 * SUMS; i++)
        s[i] = (float)i;
    for (uint32_t k = 0; k < loops; k++) {
        for (int i = 0; i < 4 * SUMS; i++)
            s[i] += x[i % 4] * x[i % 4];
    }
    for (int i = 1; i < 4 * SUMS; i++)
        s[0] += s[i];
    return s[0];
}

static void spin_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct limits_job *j = arg;
    (void)chunk;
    (void)worker;
    sink = j->spin(SPIN_LOOPS);
}

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static float read_avx512(const char *p, size_t bytes)
{
    __m512i s[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                    _mm512_setzero_si512()};
    for (size_t i = 0; i + 256 <= bytes; i += 256)
        for (size_t k = 0; k < 4; k++)
            s[k] = _mm512_xor_si512(s[k], _mm512_loadu_si512(p + i + 64 * k));
    return (float)_mm512_reduce_add_epi64(
        _mm512_xor_si512(_mm512_xor_si512(s[0], s[1]), _mm512_xor_si512(s[2], s[3])));
}

__attribute__((target("avx2"))) static float read_avx2(const char *p, size_t bytes)
{
    __m256i s[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                    _mm256_setzero_si256()};
    for (size_t i = 0; i + 128 <= bytes; i += 128)
        for (size_t k = 0; k < 4; k++)
            s[k] = _mm256_xor_si256(
                s[k], _mm256_loadu_si256((const __m256i *)(const void *)(p + i + 32 * k)));
    s[0] = _mm256_xor_si256(_mm256_xor_si256(s[0], s[1]), _mm256_xor_si256(s[2], s[3]));
    return (float)_mm256_extract_epi64(s[0], 0);
}
#endif

static float read_plain(const char *p, size_t bytes)
{
    uint64_t sum[8] = {0};
    for (size_t i = 0; i + 64 <= bytes; i += 64) {
        uint64_t w[8];
        memcpy(w, p + i, 64);
        for (int k = 0; k < 8; k++)
            sum[k] ^= w[k];
    }
    return (float)(sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7]);
}

static void read_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct limits_job *j = arg;
    size_t part = j->bytes / (CHUNKS_PER_THREAD * (size_t)j->threads) / 256 * 256;
    (void)worker;
    sink = j->read(j->memory + chunk * part, part);
}

/* amount per second, from the fastest of RUNS runs after one to warm up: what the machine can do,
 * not what it does while others use it. */
static double rate(struct limits_job *j, pool_fn *fn, double amount)
{
    uint64_t least_us = UINT64_MAX;
    for (int i = 0; i <= RUNS; i++) {
        uint64_t begin = clock_us();
        pool_run(j->pool, LANE_PREFILL, CHUNKS_PER_THREAD * j->threads, fn, j);
        uint64_t us = clock_us() - begin;
        if (i > 0 && us < least_us)
            least_us = us;
    }
    return amount * 1e6 / (double)(least_us > 0 ? least_us : 1);
}

static double spin_rate(struct limits_job *j, float (*spin)(uint32_t), int lanes)
{
    j->spin = spin;
    return rate(j, spin_chunk, 2.0 * SUMS * lanes * SPIN_LOOPS * CHUNKS_PER_THREAD * j->threads);
}

enum err_code cpu_limits_measure(struct cpu_limits *out, uint32_t n_threads, struct err *e)
{
    struct limits_job j = {.threads = n_threads, .read = read_plain};
    char *memory = malloc(COLD_BYTES);
    *out = (struct cpu_limits){0};
    if (!memory)
        return err_set(e, ERR_NOMEM, "limits: %d bytes", COLD_BYTES);
    if (pool_create(&j.pool, n_threads, e)) {
        free(memory);
        return e->code;
    }
    memset(memory, 1, COLD_BYTES); /* pages of its own, not one shared page of zeros */
    j.memory = memory;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bf16"))
        out->bf16_flops = spin_rate(&j, spin_bf16_avx512, 32);
    if (__builtin_cpu_supports("avx512f")) {
        out->f32_flops = spin_rate(&j, spin_f32_avx512, 16);
        j.read = read_avx512;
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        out->f32_flops = spin_rate(&j, spin_f32_avx2, 8);
        j.read = read_avx2;
    }
#endif
    if (out->f32_flops <= 0)
        out->f32_flops = spin_rate(&j, spin_f32_plain, 4);
    j.bytes = COLD_BYTES;
    out->cold_bytes = rate(&j, read_chunk, COLD_BYTES);
    j.bytes = HOT_BYTES;
    out->hot_bytes = rate(&j, read_chunk, HOT_BYTES);
    pool_destroy(j.pool);
    free(memory);
    return ERR_OK;
}
