/* cuda_products.cu - the products of cuda/gemm.cuh alone: are they right, and how fast, beside
 * cuBLASLt's.
 *
 *   cuda_products [check] [dense] [grouped] [--rows N] [--every]
 *
 * check: every tile shape against a plain kernel in double precision, outputs poisoned first, and
 * all shapes and row counts against each other bit by bit; the first wrong value is printed.
 * dense, grouped: DeepSeek-V3.2's shapes; --every: each tile shape, otherwise the chosen one;
 * cuBLASLt (if libcublasLt.so.13 is there): the best of what its heuristics offer, with the same
 * block scales and with one scale a tensor, bf16 out. Peers' microseconds (H100) are those of
 * DeepGEMM. Floor: the larger of bytes at COPY_RATE and operations at FP8_RATE. Graphs of launches
 * over weights in turn, so that these come from memory; median of 5 replays.
 */
#include "cuda/gemm.cuh"

#include <cublasLt.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tile/numbers.cuh"

#include <vector>

static const double COPY_RATE = 4.3e12, FP8_RATE = 1575e12;
static int failures;

#define MUST(call)                                                                                 \
    do {                                                                                           \
        cudaError_t code_ = (call);                                                                \
        if (code_ != cudaSuccess) {                                                                \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(code_));       \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

template <typename T> static T *room(size_t n)
{
    void *p = NULL;
    MUST(cudaMalloc(&p, n * sizeof(T) + 512));
    return (T *)p;
}

static uint32_t up(size_t n, size_t part)
{
    return (uint32_t)((n + part - 1) / part);
}

static __device__ uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}
static __device__ float normal(uint64_t seed, size_t i)
{
    uint64_t x = mix((seed << 40) + (uint64_t)i * 0x9E3779B97F4A7C15u);
    float sum = (float)(x & 0xFFFF) + (float)(x >> 16 & 0xFFFF) + (float)(x >> 32 & 0xFFFF) +
                (float)(x >> 48);
    return (sum - 131070.0f) * (1.0f / 37837.0f);
}
static __global__ void fill_codes(uint8_t *to, size_t n, uint64_t seed)
{
    for (size_t i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256)
        to[i] = e4m3_round(normal(seed, i) * 60.0f);
}
static __global__ void fill_bf16(uint16_t *to, size_t n, uint64_t seed)
{
    for (size_t i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256)
        to[i] = bf16_round(normal(seed, i));
}
static __global__ void fill_floats(float *to, size_t n, uint64_t seed)
{
    for (size_t i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256)
        to[i] = normal(seed, i) * (i / 1000 % 7 ? 1.0f : 30.0f);
}
/* Not powers of two: older checkpoints' are none either. */
static __global__ void fill_scales(float *to, size_t n, uint64_t seed)
{
    for (size_t i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256)
        to[i] = 0.001f * (1.0f + (float)(mix(seed + i) % 1000) * 0.002f);
}

/* ---- right? ---- */

struct plain_args {
    bool fp8;
    const void *w, *x;
    const float *w_scale, *x_scale;
    uint32_t n_out, n_in, stride;
};
static __global__ void plain(struct plain_args a, uint32_t row0, double *y)
{
    uint32_t o = blockIdx.x * 64 + threadIdx.x, r = row0 + blockIdx.y;
    if (o >= a.n_out)
        return;
    double sum = 0;
    for (uint32_t k = 0; k < a.n_in; k++) {
        size_t wi = (size_t)o * a.n_in + k, xi = (size_t)r * a.n_in + k;
        if (a.fp8)
            sum += (double)e4m3_value(((const uint8_t *)a.w)[wi]) *
                   a.w_scale[(size_t)(o / 128) * ((a.n_in + 127) / 128) + k / 128] *
                   (double)e4m3_value(((const uint8_t *)a.x)[xi]) *
                   a.x_scale[(size_t)(k / 128) * a.stride + r];
        else
            sum += (double)bf16_value(((const uint16_t *)a.w)[wi]) *
                   (double)bf16_value(((const uint16_t *)a.x)[xi]);
    }
    y[(size_t)blockIdx.y * a.n_out + o] = sum;
}

struct problem {
    bool fp8;
    uint32_t n_out, n_in, groups, rows, stride;
    size_t w_bytes, scales; /* of a group */
    uint8_t *w, *x;
    float *w_scale, *x_scale, *fp32;
};
static struct problem make_problem(bool fp8, uint32_t n_out, uint32_t n_in, uint32_t groups,
                                   uint32_t rows, bool from_fp32)
{
    struct problem p = {fp8, n_out, n_in, groups, rows, up(rows, 4) * 4};
    size_t value = fp8 ? 1 : 2;
    p.w_bytes = up((size_t)n_out * n_in * value, 256) * (size_t)256;
    p.scales = (size_t)up(n_out, 128) * up(n_in, 128);
    p.w = room<uint8_t>(p.w_bytes * groups);
    p.x = room<uint8_t>((size_t)rows * n_in * value);
    p.w_scale = room<float>(p.scales * groups);
    p.x_scale = room<float>((size_t)p.stride * up(n_in, 128));
    p.fp32 = NULL;
    if (fp8)
        fill_codes<<<1024, 256>>>(p.w, p.w_bytes * groups, 1);
    else
        fill_bf16<<<1024, 256>>>((uint16_t *)p.w, p.w_bytes / 2 * groups, 1);
    fill_scales<<<64, 256>>>(p.w_scale, p.scales * groups, 3);
    if (!fp8) {
        fill_bf16<<<1024, 256>>>((uint16_t *)p.x, (size_t)rows * n_in, 2);
    } else if (from_fp32) {
        p.fp32 = room<float>((size_t)rows * n_in);
        fill_floats<<<1024, 256>>>(p.fp32, (size_t)rows * n_in, 5);
        struct gemm_source from = {true, p.fp32, NULL, rows, n_in, NULL};
        struct gemm_rows to = {p.x, p.x_scale, p.stride, rows};
        MUST(gemm_make_rows(0, &from, &to));
    } else {
        fill_codes<<<1024, 256>>>(p.x, (size_t)rows * n_in, 2);
        fill_scales<<<64, 256>>>(p.x_scale, (size_t)p.stride * up(n_in, 128), 4);
    }
    MUST(cudaDeviceSynchronize());
    return p;
}
static void free_problem(struct problem *p)
{
    cudaFree(p->w);
    cudaFree(p->x);
    cudaFree(p->w_scale);
    cudaFree(p->x_scale);
    cudaFree(p->fp32);
}
static struct gemm gemm_of(const struct problem *p)
{
    struct gemm g = {};
    g.fp8 = p->fp8;
    g.w[0] = p->w;
    g.w_scale[0] = p->w_scale;
    g.step = p->w_bytes;
    g.scale_step = p->scales;
    g.n_out = p->n_out;
    g.n_in = p->n_in;
    g.n_groups = g.busy = 1;
    g.likely = p->rows;
    g.x = (struct gemm_rows){p->x, p->fp8 ? p->x_scale : NULL, p->stride, p->rows};
    g.shape = -1;
    return g;
}

static std::vector<float> read(const float *at, size_t n)
{
    std::vector<float> v(n);
    MUST(cudaMemcpy(v.data(), at, n * 4, cudaMemcpyDeviceToHost));
    return v;
}
static std::vector<double> reference(const struct problem *p, uint32_t group, uint32_t row0,
                                     uint32_t n)
{
    std::vector<double> v((size_t)n * p->n_out);
    if (!n)
        return v;
    double *y = room<double>(v.size());
    struct plain_args a = {p->fp8,  p->w + group * p->w_bytes, p->x, p->w_scale + group * p->scales,
                           p->x_scale, p->n_out, p->n_in, p->stride};
    plain<<<dim3(up(p->n_out, 64), n), 64>>>(a, row0, y);
    MUST(cudaMemcpy(v.data(), y, v.size() * 8, cudaMemcpyDeviceToHost));
    cudaFree(y);
    return v;
}
/* The largest error over the root mean square of what is wanted; names the first bad one. */
static double error_of(const std::vector<double> &want, const std::vector<float> &have,
                       uint32_t n_out, double bound, const char *what)
{
    double square = 0, worst = 0;
    for (double v : want)
        square += v * v;
    double size = sqrt(square / (double)want.size());
    bool told = false;
    for (size_t i = 0; i < want.size(); i++) {
        double e = fabs(have[i] - want[i]) / size;
        if (!(e <= bound) && !told) {
            printf("WRONG %s: row %zu output %zu: %g, want %g\n", what, i / n_out, i % n_out,
                   have[i], want[i]);
            told = true;
            failures++;
        }
        if (isnan(e) || e > worst)
            worst = e;
    }
    return worst;
}

/* e4m3: the tensor cores add products to 14 bits of the largest, 4 times 32 of them: some 2^-12 of
 * a block's largest partial sum, a few root mean squares of the result. bf16: each of n_in / 16
 * additions cuts the sum off below 24 bits, always towards zero, 2^-24 of it on average. */
static double bound_of(bool fp8, uint32_t n_in)
{
    return fp8 ? 4e-3 : 5e-7 + n_in / 16 * 3e-7;
}

static void check_dense(bool fp8)
{
    static const uint32_t sizes[][2] = {{64, 128},   {128, 256}, {576, 1040}, {200, 144},
                                        {256, 1536}, {72, 7168}, {1030, 512}};
    static const uint32_t rows[] = {1,  2,  7,  8,   15,  16,  17,  32, 33,
                                    63, 64, 65, 127, 128, 129, 257, 300};
    for (auto &size : sizes) {
        struct problem p = make_problem(fp8, size[0], size[1], 1, 300, false);
        size_t all = (size_t)p.rows * p.n_out;
        float *y = room<float>(all);
        std::vector<double> want = reference(&p, 0, 0, p.rows);
        std::vector<float> first;
        double worst = 0;
        for (int s = 0; s < GEMM_SHAPES; s++) {
            char what[96];
            struct gemm g = gemm_of(&p);
            if (gemm_shapes[s].gated)
                continue;
            snprintf(what, sizeof what, "%s %ux%u %s", fp8 ? "e4m3" : "bf16", p.n_out, p.n_in,
                     gemm_shapes[s].name);
            g.y = y;
            g.shape = s;
            MUST(cudaMemset(y, 0xFF, all * 4));
            MUST(gemm_launch(0, &g));
            cudaError_t code = cudaDeviceSynchronize();
            if (code != cudaSuccess) {
                printf("FAILS %s: %s\n", what, cudaGetErrorString(code));
                exit(1);
            }
            std::vector<float> have = read(y, all);
            double e = error_of(want, have, p.n_out, bound_of(fp8, p.n_in), what);
            worst = e > worst ? e : worst;
            if (first.empty())
                first = have;
            size_t other = 0, where = 0;
            for (size_t i = 0; i < all; i++)
                if (memcmp(&first[i], &have[i], 4)) {
                    where = other ? where : i;
                    other++;
                }
            if (other) {
                printf("OTHER BITS %s: %zu of %zu values, first at row %zu output %zu: %.9g, "
                       "%.9g\n",
                       what, other, all, where / p.n_out, where % p.n_out, first[where],
                       have[where]);
                failures++;
            }
            for (uint32_t n : rows) {
                g.x.n = g.likely = n;
                MUST(cudaMemset(y, 0xFF, all * 4));
                MUST(gemm_launch(0, &g));
                have = read(y, all);
                size_t end = (size_t)n * p.n_out;
                if (memcmp(have.data(), first.data(), end * 4)) {
                    printf("OTHER BITS %s among %u rows\n", what, n);
                    failures++;
                }
                for (size_t i = end; i < all; i++)
                    if (!isnan(have[i])) {
                        printf("WRITES BEHIND %s of %u rows\n", what, n);
                        failures++;
                        break;
                    }
            }
            g.x.n = p.rows;
            g.add = true;
            MUST(cudaMemcpy(y, first.data(), all * 4, cudaMemcpyHostToDevice));
            MUST(gemm_launch(0, &g));
            have = read(y, all);
            for (size_t i = 0; i < all; i++)
                if (have[i] != 2 * first[i]) {
                    printf("WRONG %s added\n", what);
                    failures++;
                    break;
                }
        }
        printf("%s %u x %u: error %.1e\n", fp8 ? "e4m3" : "bf16", p.n_out, p.n_in, worst);
        cudaFree(y);
        free_problem(&p);
    }
}

static void check_grouped(void)
{
    static const uint32_t counts[] = {0, 1, 130, 17, 0, 64, 300, 5};
    enum { GROUPS = sizeof counts / sizeof *counts };
    uint32_t start[GROUPS + 1] = {0};
    for (int i = 0; i < GROUPS; i++)
        start[i + 1] = start[i] + counts[i];
    uint32_t rows = start[GROUPS];
    struct problem p = make_problem(true, 384, 1152, 2 * GROUPS, rows, true);
    size_t all = (size_t)rows * p.n_out;
    uint32_t *dev = room<uint32_t>(GROUPS + 1);
    float *y = room<float>(all), *second = room<float>(all);
    uint8_t *mid = room<uint8_t>(all), *want_mid = room<uint8_t>(all);
    float *scale = room<float>((size_t)p.stride * 3);
    float *want_scale = room<float>((size_t)p.stride * 3);
    MUST(cudaMemcpy(dev, start, sizeof start, cudaMemcpyHostToDevice));
    std::vector<float> first[2];
    std::vector<double> want[2];
    for (int m = 0; m < 2; m++)
        for (uint32_t i = 0; i < GROUPS; i++) {
            std::vector<double> v = reference(&p, 2 * i + m, start[i], counts[i]);
            want[m].insert(want[m].end(), v.begin(), v.end());
        }
    struct gemm g = gemm_of(&p);
    g.w[1] = p.w + p.w_bytes;
    g.w_scale[1] = p.w_scale + p.scales;
    g.step = 2 * p.w_bytes;
    g.scale_step = 2 * p.scales;
    g.n_groups = g.busy = GROUPS;
    g.start = dev;
    for (int s = 0; s < GEMM_SHAPES; s++) {
        char what[96];
        snprintf(what, sizeof what, "grouped %s", gemm_shapes[s].name);
        g.shape = s;
        if (!gemm_shapes[s].gated) {
            g.y = y;
            g.second = second;
            MUST(cudaMemset(y, 0xFF, all * 4));
            MUST(cudaMemset(second, 0xFF, all * 4));
            MUST(gemm_launch(0, &g));
            cudaError_t code = cudaDeviceSynchronize();
            if (code != cudaSuccess) {
                printf("FAILS %s: %s\n", what, cudaGetErrorString(code));
                exit(1);
            }
            for (int m = 0; m < 2; m++) {
                std::vector<float> have = read(m ? second : y, all);
                double e = error_of(want[m], have, p.n_out, bound_of(true, p.n_in), what);
                if (first[m].empty())
                    first[m] = have;
                if (memcmp(first[m].data(), have.data(), all * 4)) {
                    printf("OTHER BITS %s\n", what);
                    failures++;
                }
                printf("%s, matrix %d: error %.1e\n", what, m, e);
            }
            continue;
        }
        MUST(cudaMemcpy(y, first[0].data(), all * 4, cudaMemcpyHostToDevice));
        MUST(cudaMemcpy(second, first[1].data(), all * 4, cudaMemcpyHostToDevice));
        struct gemm_source from = {true, y, second, rows, p.n_out, NULL};
        struct gemm_rows to = {want_mid, want_scale, p.stride, rows};
        MUST(gemm_make_rows(0, &from, &to));
        MUST(cudaMemset(mid, 0x7F, all));
        MUST(cudaMemset(scale, 0xFF, (size_t)p.stride * 3 * 4));
        g.second = NULL;
        g.mid = mid;
        g.mid_scale = scale;
        g.mid_stride = p.stride;
        MUST(gemm_launch(0, &g));
        cudaError_t code = cudaDeviceSynchronize();
        if (code != cudaSuccess) {
            printf("FAILS %s: %s\n", what, cudaGetErrorString(code));
            exit(1);
        }
        g.mid = NULL;
        std::vector<uint8_t> a(all), b(all);
        MUST(cudaMemcpy(a.data(), mid, all, cudaMemcpyDeviceToHost));
        MUST(cudaMemcpy(b.data(), want_mid, all, cudaMemcpyDeviceToHost));
        std::vector<float> sa = read(scale, (size_t)p.stride * 3),
                           sb = read(want_scale, (size_t)p.stride * 3);
        size_t other = 0, where = 0, scales = 0;
        for (size_t i = 0; i < all; i++)
            if (a[i] != b[i]) {
                where = other ? where : i;
                other++;
            }
        for (uint32_t k = 0; k < 3; k++)
            for (uint32_t r = 0; r < rows; r++)
                scales += sa[k * p.stride + r] != sb[k * p.stride + r];
        printf("%s: %zu codes and %zu scales differ from two products and a pass\n", what, other,
               scales);
        if (other || scales) {
            printf("WRONG %s: first at row %zu column %zu: %u, want %u\n", what, where / p.n_out,
                   where % p.n_out, a[where], b[where]);
            failures++;
        }
    }
    cudaFree(dev);
    cudaFree(y);
    cudaFree(second);
    cudaFree(mid);
    cudaFree(want_mid);
    cudaFree(scale);
    cudaFree(want_scale);
    free_problem(&p);
}

/* Codes and scales of rows against the same on the host, where the rule is written plainly. */
static void check_quantise(void)
{
    struct problem p = make_problem(true, 128, 1040, 1, 77, true);
    size_t n = (size_t)p.rows * p.n_in;
    std::vector<float> x = read(p.fp32, n), s = read(p.x_scale, (size_t)p.stride * 9);
    std::vector<uint8_t> code(n);
    MUST(cudaMemcpy(code.data(), p.x, n, cudaMemcpyDeviceToHost));
    size_t bad = 0;
    for (uint32_t r = 0; r < p.rows; r++)
        for (uint32_t k = 0; k < p.n_in; k++) {
            double most = 1e-4;
            for (uint32_t i = k / 128 * 128; i < p.n_in && i < k / 128 * 128 + 128; i++)
                most = fmax(most, fabs((double)x[(size_t)r * p.n_in + i]));
            double scale = exp2(ceil(log2(most / 448))), v = x[(size_t)r * p.n_in + k] / scale;
            uint8_t c = code[(size_t)r * p.n_in + k];
            double have = (c & 0x80 ? -1 : 1) * ((c & 0x78) ? ldexp(8 + (c & 7), (c >> 3 & 15) - 10)
                                                           : ldexp(c & 7, -9));
            double step = fmax(ldexp(1, -9), ldexp(1, (int)floor(log2(fmax(fabs(v), 1e-9))) - 3));
            bad += s[(size_t)(k / 128) * p.stride + r] != scale || !(fabs(have - v) <= step / 2);
        }
    printf("quantise: %zu of %zu wrong\n", bad, n);
    failures += bad != 0;
    free_problem(&p);
}

/* ---- fast? ---- */

static int by_value(const void *x, const void *y)
{
    float a = *(const float *)x, b = *(const float *)y;
    return (a > b) - (a < b);
}

/* Microseconds of one f(i), i in turn; negative: it failed. */
template <typename F> static double time_of(cudaStream_t s, double guess_us, F f)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t a, b;
    int n = guess_us > 2000 ? 3 : guess_us > 200 ? 10 : 40;
    if (!f(0) || cudaStreamSynchronize(s) != cudaSuccess) {
        (void)cudaGetLastError();
        return -1;
    }
    MUST(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < n; i++)
        f(i);
    MUST(cudaStreamEndCapture(s, &graph));
    MUST(cudaGraphInstantiate(&exec, graph, 0));
    MUST(cudaEventCreate(&a));
    MUST(cudaEventCreate(&b));
    float ms[5];
    MUST(cudaGraphLaunch(exec, s));
    for (float &t : ms) {
        MUST(cudaEventRecord(a, s));
        MUST(cudaGraphLaunch(exec, s));
        MUST(cudaEventRecord(b, s));
        MUST(cudaEventSynchronize(b));
        MUST(cudaEventElapsedTime(&t, a, b));
    }
    qsort(ms, 5, sizeof *ms, by_value);
    MUST(cudaGraphExecDestroy(exec));
    MUST(cudaGraphDestroy(graph));
    MUST(cudaEventDestroy(a));
    MUST(cudaEventDestroy(b));
    return ms[2] * 1e3 / n;
}

static struct {
    cublasLtHandle_t handle;
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulDescCreate) desc_create;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatmulDescDestroy) desc_destroy;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) pref_create;
    decltype(&cublasLtMatmulPreferenceSetAttribute) pref_set;
    decltype(&cublasLtMatmulPreferenceDestroy) pref_destroy;
    decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
    void *space;
} lt;
enum { LT_SPACE = 64 << 20 };

static bool open_lt(void)
{
    void *lib = dlopen("libcublasLt.so.13", RTLD_NOW);
    if (!lib)
        return false;
#define FIND(member, name) lt.member = (decltype(lt.member))dlsym(lib, "cublasLt" name)
    FIND(create, "Create");
    FIND(matmul, "Matmul");
    FIND(desc_create, "MatmulDescCreate");
    FIND(desc_set, "MatmulDescSetAttribute");
    FIND(desc_destroy, "MatmulDescDestroy");
    FIND(layout_create, "MatrixLayoutCreate");
    FIND(layout_destroy, "MatrixLayoutDestroy");
    FIND(pref_create, "MatmulPreferenceCreate");
    FIND(pref_set, "MatmulPreferenceSetAttribute");
    FIND(pref_destroy, "MatmulPreferenceDestroy");
    FIND(heuristic, "MatmulAlgoGetHeuristic");
    if (!lt.create || !lt.heuristic || lt.create(&lt.handle) != CUBLAS_STATUS_SUCCESS)
        return false;
    lt.space = room<uint8_t>(LT_SPACE);
    return true;
}

enum lt_kind { LT_BLOCKS, LT_TENSOR, LT_BF16 };

/* The best algorithm's time; negative: none. */
static double time_lt(cudaStream_t s, enum lt_kind kind, const struct problem *p, uint32_t copies,
                      size_t w_step, uint32_t rows, void *y, double guess)
{
    cublasLtMatmulDesc_t d;
    cublasLtMatrixLayout_t la, lb, lc;
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t found[8];
    int n = 0;
    double best = -1;
    cudaDataType_t in = kind == LT_BF16 ? CUDA_R_16BF : CUDA_R_8F_E4M3;
    cublasOperation_t yes = CUBLAS_OP_T;
    int32_t mode_a = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F,
            mode_b = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
    size_t space = LT_SPACE;
    const void *sa = p->w_scale, *sb = p->x_scale;
    lt.desc_create(&d, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    lt.desc_set(d, CUBLASLT_MATMUL_DESC_TRANSA, &yes, sizeof yes);
    if (kind != LT_BF16) {
        lt.desc_set(d, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &sa, sizeof sa);
        lt.desc_set(d, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &sb, sizeof sb);
    }
    if (kind == LT_BLOCKS) {
        lt.desc_set(d, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode_a, sizeof mode_a);
        lt.desc_set(d, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode_b, sizeof mode_b);
    }
    lt.layout_create(&la, in, p->n_in, p->n_out, p->n_in);
    lt.layout_create(&lb, in, p->n_in, rows, p->n_in);
    lt.layout_create(&lc, CUDA_R_16BF, p->n_out, rows, p->n_out);
    lt.pref_create(&pref);
    lt.pref_set(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &space, sizeof space);
    float one = 1, zero = 0;
    if (lt.heuristic(lt.handle, d, la, lb, lc, lc, pref, 8, found, &n) != CUBLAS_STATUS_SUCCESS)
        n = 0;
    for (int i = 0; i < n && i < 4; i++) {
        double us = time_of(s, guess, [&](int turn) {
            return lt.matmul(lt.handle, d, &one, p->w + turn % copies * w_step, la, p->x, lb, &zero,
                             y, lc, y, lc, &found[i].algo, lt.space, LT_SPACE,
                             s) == CUBLAS_STATUS_SUCCESS;
        });
        if (us > 0 && (best < 0 || us < best))
            best = us;
    }
    lt.pref_destroy(pref);
    lt.layout_destroy(la);
    lt.layout_destroy(lb);
    lt.layout_destroy(lc);
    lt.desc_destroy(d);
    return best;
}

static double floor_of(double bytes, double flops)
{
    double read = bytes / COPY_RATE, compute = flops / FP8_RATE;
    return 1e6 * (read > compute ? read : compute);
}

static void dense(uint32_t only, bool every)
{
    /* DeepGEMM's microseconds at 1, 16, 64, 128, 512, 4096 rows, best of DeepGEMM and cuBLASLt with
     * one scale a tensor where that is less. */
    static const struct {
        uint32_t n_out, n_in;
        const char *what;
        float peer[6];
    } shape[] = {{2112, 7168, "q_a+kv_a", {15.2f, 10.6f, 9.6f, 10.3f, 14.8f, 94.9f}},
                 {24576, 1536, "q_b", {18.0f, 18.2f, 17.6f, 19.0f, 35.6f, 255.0f}},
                 {7168, 16384, "o", {45.6f, 45.3f, 45.2f, 46.3f, 119.5f, 676.3f}},
                 {36864, 7168, "dense gate_up", {93.1f, 93.7f, 94.4f, 97.8f, 234.7f, 1574.0f}},
                 {7168, 18432, "dense down", {53.0f, 50.5f, 50.3f, 51.3f, 132.8f, 786.1f}},
                 {4096, 7168, "shared gate_up", {18.6f, 15.1f, 13.5f, 13.6f, 24.2f, 174.9f}},
                 {7168, 2048, "shared down", {9.1f, 8.7f, 8.2f, 9.0f, 18.2f, 93.6f}},
                 {8192, 1536, "index wq_b", {7.7f, 7.6f, 7.2f, 8.0f, 13.7f, 83.2f}},
                 {3072, 1536, "q_b TP8", {5.7f, 5.2f, 4.9f, 5.0f, 7.1f, 32.8f}},
                 {4608, 7168, "gate_up TP8", {18.3f, 15.7f, 15.0f, 16.3f, 32.6f, 193.0f}}};
    static const uint32_t rows[] = {1, 16, 64, 128, 512, 4096};
    cudaStream_t s;
    MUST(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    bool lib = open_lt();
    printf("\n%-15s %6s %6s %5s  %-12s %8s %7s %7s %7s %6s | %8s %8s | %8s\n", "dense e4m3", "out",
           "in", "rows", "tile", "us", "GB/s", "TF/s", "floor", "ratio", "Lt-block", "Lt-tens",
           "DG(H100)");
    for (auto &sh : shape) {
        size_t bytes = (size_t)sh.n_out * sh.n_in;
        uint32_t copies = (uint32_t)up(220u << 20, bytes);
        struct problem p = make_problem(true, sh.n_out, sh.n_in, copies, 4096, false);
        float *y = room<float>((size_t)4096 * sh.n_out);
        for (int r = 0; r < 6; r++) {
            uint32_t n = rows[r];
            if (only && n != only)
                continue;
            double flops = 2.0 * n * sh.n_out * sh.n_in, guess = floor_of((double)bytes, flops);
            double moved = (double)bytes + 1.0 * n * sh.n_in + 2.0 * n * sh.n_out;
            double floor_us = floor_of(moved, flops);
            double blocks = lib ? time_lt(s, LT_BLOCKS, &p, copies, p.w_bytes, n, y, guess) : -1;
            double tensor = lib ? time_lt(s, LT_TENSOR, &p, copies, p.w_bytes, n, y, guess) : -1;
            for (int k = every ? 0 : -1; k < (every ? GEMM_SHAPES : 0); k++) {
                if (k >= 0 && (gemm_shapes[k].gated ||
                               (gemm_shapes[k].rows > 16 && gemm_shapes[k].rows >= 4 * n) ||
                               (gemm_shapes[k].rows < 128 && gemm_shapes[k].rows * 2 < n)))
                    continue;
                struct gemm g = gemm_of(&p);
                g.y = y;
                g.shape = k;
                g.x.n = g.likely = n;
                double us = time_of(s, guess, [&](int i) {
                    g.w[0] = p.w + i % copies * p.w_bytes;
                    g.w_scale[0] = p.w_scale + i % copies * p.scales;
                    return gemm_launch(s, &g) == cudaSuccess;
                });
                printf("%-15s %6u %6u %5u  %-12s %8.1f %7.0f %7.0f %7.1f %6.2f | %8.1f %8.1f | "
                       "%8.1f\n",
                       sh.what, sh.n_out, sh.n_in, n, k < 0 ? "chosen" : gemm_shapes[k].name, us,
                       (double)bytes / us * 1e-3, flops / us * 1e-6, floor_us, us / floor_us,
                       blocks, tensor, sh.peer[r]);
            }
            fflush(stdout);
        }
        cudaFree(y);
        free_problem(&p);
    }
    MUST(cudaStreamDestroy(s));
}

static void grouped(bool every)
{
    static const struct {
        uint32_t groups, n_out, n_in, rows;
        float peer;
    } shape[] = {{32, 4096, 7168, 1, 332.6f},   {32, 4096, 7168, 4, 331.8f},
                 {32, 4096, 7168, 16, 331.3f},  {32, 4096, 7168, 32, 330.8f},
                 {32, 4096, 7168, 64, 344.4f},  {32, 4096, 7168, 128, 384.8f},
                 {32, 4096, 7168, 1024, 1487},  {32, 7168, 2048, 1, 181.2f},
                 {32, 7168, 2048, 4, 180.1f},   {32, 7168, 2048, 16, 179.4f},
                 {32, 7168, 2048, 32, 178.6f},  {32, 7168, 2048, 64, 182.7f},
                 {32, 7168, 2048, 128, 207.5f}, {32, 7168, 2048, 1024, 750.0f}};
    cudaStream_t s;
    MUST(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    printf("\n%-9s %6s %6s %6s %5s  %-14s %8s %7s %7s %7s %6s | %8s\n", "grouped", "groups", "out",
           "in", "rows", "tile", "us", "GB/s", "TF/s", "floor", "ratio", "DG(H100)");
    for (auto &sh : shape) {
        bool gate = sh.n_out == 4096;
        uint32_t n_out = gate ? sh.n_out / 2 : sh.n_out, per = gate ? 2 : 1;
        std::vector<uint32_t> start(sh.groups + 1);
        for (uint32_t i = 0; i < sh.groups; i++) /* around the figure, as routers do */
            start[i + 1] = start[i] + (sh.rows < 4 ? sh.rows : sh.rows * (70 + i * 37 % 61) / 100);
        uint32_t all = start[sh.groups];
        struct problem p = make_problem(true, n_out, sh.n_in, sh.groups * per, all, false);
        uint32_t *dev = room<uint32_t>(sh.groups + 1);
        float *y = room<float>((size_t)all * n_out), *second = room<float>((size_t)all * n_out);
        uint8_t *mid = room<uint8_t>((size_t)all * n_out);
        float *mid_scale = room<float>((size_t)up(n_out, 128) * p.stride);
        MUST(cudaMemcpy(dev, start.data(), 4 * start.size(), cudaMemcpyHostToDevice));
        double bytes = (double)sh.groups * sh.n_out * sh.n_in;
        double flops = 2.0 * all * sh.n_out * sh.n_in;
        double floor_us = floor_of(bytes + all * (1.0 * sh.n_in + 2.0 * sh.n_out), flops);
        for (int k = -2; k < (every ? GEMM_SHAPES : 0); k++) {
            bool mixed = k == -2 || (k >= 0 && gemm_shapes[k].gated); /* one gated output */
            uint32_t t = k >= 0 ? gemm_shapes[k].rows : 0;
            bool far = (t > 16 && t >= 4 * sh.rows) || (t < 128 && t * 2 < sh.rows);
            if ((mixed && !gate) || (k >= 0 && far))
                continue;
            struct gemm g = gemm_of(&p);
            g.n_groups = g.busy = sh.groups;
            g.start = dev;
            g.likely = sh.rows;
            g.shape = k < 0 ? -1 : k;
            g.step = per * p.w_bytes;
            g.scale_step = per * p.scales;
            g.w[1] = gate ? p.w + p.w_bytes : NULL;
            g.w_scale[1] = gate ? p.w_scale + p.scales : NULL;
            g.y = y;
            g.second = gate && !mixed ? second : NULL;
            g.mid = mixed ? mid : NULL;
            g.mid_scale = mid_scale;
            g.mid_stride = p.stride;
            double us =
                time_of(s, floor_us, [&](int) { return gemm_launch(s, &g) == cudaSuccess; });
            printf("%-9s %6u %6u %6u %5u  %-14s %8.1f %7.0f %7.0f %7.1f %6.2f | %8.1f\n",
                   gate ? "gate+up" : "down", sh.groups, sh.n_out, sh.n_in, sh.rows,
                   k == -2 ? "gated, chosen" : k == -1 ? "chosen" : gemm_shapes[k].name, us,
                   bytes / us * 1e-3, flops / us * 1e-6, floor_us, us / floor_us, sh.peer);
            fflush(stdout);
        }
        cudaFree(dev);
        cudaFree(y);
        cudaFree(second);
        cudaFree(mid);
        cudaFree(mid_scale);
        free_problem(&p);
    }
    MUST(cudaStreamDestroy(s));
}

int main(int argc, char **argv)
{
    bool want_check = false, want_dense = false, want_grouped = false, every = false;
    uint32_t only = 0;
    for (int i = 1; i < argc; i++) {
        want_check |= !strcmp(argv[i], "check");
        want_dense |= !strcmp(argv[i], "dense");
        want_grouped |= !strcmp(argv[i], "grouped");
        every |= !strcmp(argv[i], "--every");
        if (!strcmp(argv[i], "--rows") && i + 1 < argc)
            only = (uint32_t)atoi(argv[++i]);
    }
    if (!gemm_runs_here()) {
        printf("no Hopper GPU here\n");
        return 1;
    }
    MUST(gemm_init());
    if (want_check) {
        check_quantise();
        check_dense(true);
        check_dense(false);
        check_grouped();
        printf("%d failures\n", failures);
    }
    if (want_dense)
        dense(only, every);
    if (want_grouped)
        grouped(every);
    return failures != 0;
}
