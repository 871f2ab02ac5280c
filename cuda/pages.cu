/* pages.cu - whole KV pages out of the planes, into them, and from one GPU's to another's; see
 * ops.h.
 *
 * A page lies in up to 122 parts (61 layers, both planes) of 8 to 42 KB. One kernel copies them
 * all, part by part over BLOCKS blocks: few enough to leave the steps beside it most of the device,
 * enough to fill a link. Between GPUs it runs at the target and reads the source's memory over the
 * link; through the host it packs STAGE_BYTES at a time. Sums are made by a kernel where the page
 * lies, after the copy, so that what is compared is what later steps will read.
 *
 * Cost: a copy reads and writes each byte once; a sum reads it once.
 */
#include "cuda/backend.cuh"

#include "tile/hash.cuh"

#include <stdlib.h>
#include <string.h>

extern "C" {
#include "base/fault.h"
}

enum { BLOCKS = 64, THREADS = 512, MOST_PAGES = 1024, STAGE_BYTES = 8 << 20, MOST_DEVICES = 64 };

/* Where part i of page p lies: base + p * stride. Its words are first, first + 1, ... of the page.
 */
struct page_part {
    unsigned char *base;
    size_t stride, bytes, first;
};

struct page_mover {
    cudaStream_t stream;
    struct page_part *planes, *stage; /* [n_parts] on the device */
    uint32_t n_parts, stage_pages;
    size_t page_bytes;
    unsigned char *stage_memory, *stage_host;
    uint32_t *ids; /* [2, MOST_PAGES] on the device: pages to read, pages to write */
    uint32_t *ids_host;
    unsigned long long *sums, *sums_host; /* [MOST_PAGES] */
    bool reached[MOST_DEVICES];
};

/* n pages: from[i] of `source` to to[i] of `target`. */
static __global__ void copy_pages_kernel(const struct page_part *target, const uint32_t *to,
                                         const struct page_part *source, const uint32_t *from,
                                         uint32_t n_parts, uint32_t n)
{
    enum { UNROLL = 4 };
    for (uint32_t item = blockIdx.x; item < n * n_parts; item += gridDim.x) {
        struct page_part s = source[item % n_parts], t = target[item % n_parts];
        const uint4 *in = (const uint4 *)(s.base + from[item / n_parts] * s.stride);
        uint4 *out = (uint4 *)(t.base + to[item / n_parts] * t.stride);
        size_t n16 = t.bytes / 16;
        for (size_t i = threadIdx.x; i < n16; i += THREADS * UNROLL) {
            uint4 v[UNROLL];
#pragma unroll
            for (int k = 0; k < UNROLL; k++)
                if (i + k * THREADS < n16)
                    v[k] = __ldcg(in + i + k * THREADS);
#pragma unroll
            for (int k = 0; k < UNROLL; k++)
                if (i + k * THREADS < n16)
                    out[i + k * THREADS] = v[k];
        }
    }
}

static __global__ void sum_pages_kernel(const struct page_part *planes, const uint32_t *page,
                                        uint32_t n_parts, uint32_t n, unsigned long long *sums)
{
    __shared__ unsigned long long warp_sum[THREADS / 32];
    for (uint32_t item = blockIdx.x; item < n * n_parts; item += gridDim.x) {
        struct page_part p = planes[item % n_parts];
        const ulonglong2 *in = (const ulonglong2 *)(p.base + page[item / n_parts] * p.stride);
        unsigned long long sum = 0;
        for (size_t i = threadIdx.x; i < p.bytes / 16; i += THREADS) {
            ulonglong2 w = __ldcg(in + i);
            sum += device_hash_mix(w.x + 0x9E3779B97F4A7C15ull * (p.first + 2 * i + 1));
            sum += device_hash_mix(w.y + 0x9E3779B97F4A7C15ull * (p.first + 2 * i + 2));
        }
        for (int m = 16; m; m /= 2)
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, m);
        if (threadIdx.x % 32 == 0)
            warp_sum[threadIdx.x / 32] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int w = 1; w < THREADS / 32; w++)
                sum += warp_sum[w];
            atomicAdd(&sums[item / n_parts], sum);
        }
        __syncthreads();
    }
}

/* For tests: a link that changes a bit and says nothing. */
static __global__ void corrupt_kernel(const struct page_part *planes, uint32_t page)
{
    planes[0].base[page * planes[0].stride] ^= 4;
}

static enum err_code check(struct ops *o, const char *what, cudaError_t code, struct err *e)
{
    if (code == cudaSuccess)
        return ERR_OK;
    (void)cudaGetLastError();
    return err_set(e, ERR_CUDA, "%s: %s: %s", o->name, what, cudaGetErrorString(code));
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Up go n ids to read, and n to write (NULL: 0, 1, ...). */
static cudaError_t send_ids(struct page_mover *m, const uint32_t *from, const uint32_t *to,
                            uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        m->ids_host[i] = from ? from[i] : i;
        m->ids_host[MOST_PAGES + i] = to ? to[i] : i;
    }
    cudaError_t code =
        cudaMemcpyAsync(m->ids, m->ids_host, n * sizeof *from, cudaMemcpyHostToDevice, m->stream);
    if (code == cudaSuccess)
        code = cudaMemcpyAsync(m->ids + MOST_PAGES, m->ids_host + MOST_PAGES, n * sizeof *to,
                               cudaMemcpyHostToDevice, m->stream);
    return code;
}

static void launch_copy(struct page_mover *m, const struct page_part *target,
                        const struct page_part *source, uint32_t n)
{
    uint32_t items = n * m->n_parts;
    CUDA_LAUNCH(copy_pages_kernel, items < (uint32_t)BLOCKS ? items : (uint32_t)BLOCKS, THREADS, 0,
                m->stream, target, m->ids + MOST_PAGES, source, m->ids, m->n_parts, n);
}

static void check_ids(const struct ops *o, const uint32_t *page, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        assert(page[i] < o->limits.n_pages);
}

static enum err_code op_export_pages(struct ops *o, const uint32_t *page, uint32_t n, void *bytes,
                                     struct err *e)
{
    struct page_mover *m = cuda_of(o)->mover;
    if (FAULT("pages.export"))
        return err_set(e, ERR_IO, "export of %u pages: injected fault", n);
    check_ids(o, page, n);
    cudaError_t code = cudaSetDevice(cuda_of(o)->device);
    for (uint32_t i = 0; i < n && code == cudaSuccess; i += m->stage_pages) {
        uint32_t some = least(n - i, m->stage_pages);
        code = send_ids(m, page + i, NULL, some);
        launch_copy(m, m->stage, m->planes, some);
        if (code == cudaSuccess)
            code = cudaMemcpyAsync(m->stage_host, m->stage_memory, some * m->page_bytes,
                                   cudaMemcpyDeviceToHost, m->stream);
        if (code == cudaSuccess)
            code = cudaStreamSynchronize(m->stream);
        if (code == cudaSuccess)
            memcpy((unsigned char *)bytes + i * m->page_bytes, m->stage_host, some * m->page_bytes);
    }
    return check(o, "export of pages", code, e);
}

/* What a test asks for, on the first page that was written. */
static enum err_code arrived(struct ops *o, const uint32_t *page, uint32_t n, cudaError_t code,
                             struct err *e)
{
    struct page_mover *m = cuda_of(o)->mover;
    if (FAULT("pages.import"))
        return err_set(e, ERR_IO, "import of %u pages: injected fault", n);
    if (code == cudaSuccess && n && FAULT("pages.corrupt")) {
        CUDA_LAUNCH(corrupt_kernel, 1, 1, 0, m->stream, m->planes, page[0]);
        code = cudaStreamSynchronize(m->stream);
    }
    return check(o, "import of pages", code, e);
}

static enum err_code op_import_pages(struct ops *o, const uint32_t *page, uint32_t n,
                                     const void *bytes, struct err *e)
{
    struct page_mover *m = cuda_of(o)->mover;
    check_ids(o, page, n);
    cudaError_t code = cudaSetDevice(cuda_of(o)->device);
    for (uint32_t i = 0; i < n && code == cudaSuccess; i += m->stage_pages) {
        uint32_t some = least(n - i, m->stage_pages);
        memcpy(m->stage_host, (const unsigned char *)bytes + i * m->page_bytes,
               some * m->page_bytes);
        code = send_ids(m, NULL, page + i, some);
        if (code == cudaSuccess)
            code = cudaMemcpyAsync(m->stage_memory, m->stage_host, some * m->page_bytes,
                                   cudaMemcpyHostToDevice, m->stream);
        launch_copy(m, m->planes, m->stage, some);
        if (code == cudaSuccess)
            code = cudaStreamSynchronize(m->stream);
    }
    return arrived(o, page, n, code, e);
}

static enum err_code op_sum_pages(struct ops *o, const uint32_t *page, uint32_t n, uint64_t *sum,
                                  struct err *e)
{
    struct page_mover *m = cuda_of(o)->mover;
    if (FAULT("pages.sum"))
        return err_set(e, ERR_IO, "sums of %u pages: injected fault", n);
    check_ids(o, page, n);
    cudaError_t code = cudaSetDevice(cuda_of(o)->device);
    for (uint32_t i = 0; i < n && code == cudaSuccess; i += MOST_PAGES) {
        uint32_t some = least(n - i, MOST_PAGES), items = some * m->n_parts;
        code = send_ids(m, page + i, NULL, some);
        if (code == cudaSuccess)
            code = cudaMemsetAsync(m->sums, 0, some * sizeof *m->sums, m->stream);
        CUDA_LAUNCH(sum_pages_kernel, items < (uint32_t)BLOCKS ? items : (uint32_t)BLOCKS, THREADS,
                    0, m->stream, m->planes, m->ids, m->n_parts, some, m->sums);
        if (code == cudaSuccess)
            code = cudaMemcpyAsync(m->sums_host, m->sums, some * sizeof *m->sums,
                                   cudaMemcpyDeviceToHost, m->stream);
        if (code == cudaSuccess)
            code = cudaStreamSynchronize(m->stream);
        for (uint32_t k = 0; k < some && code == cudaSuccess; k++)
            sum[i + k] = m->sums_host[k];
    }
    return check(o, "sums of pages", code, e);
}

/* Lets this device read the other's memory. */
static enum err_code reach(struct cuda_backend *b, int other, struct err *e)
{
    int can = 0;
    if (b->device == other || b->mover->reached[other])
        return ERR_OK;
    cudaError_t code = cudaDeviceCanAccessPeer(&can, b->device, other);
    if (code == cudaSuccess && !can)
        return err_set(e, ERR_INVALID, "%s cannot read the memory of cuda:%d", b->ops.name, other);
    if (code == cudaSuccess)
        code = cudaDeviceEnablePeerAccess(other, 0);
    if (code == cudaErrorPeerAccessAlreadyEnabled) {
        (void)cudaGetLastError();
        code = cudaSuccess;
    }
    b->mover->reached[other] = code == cudaSuccess;
    return check(&b->ops, "reaching another GPU", code, e);
}

static enum err_code op_copy_pages(struct ops *o, const uint32_t *to, struct ops *from,
                                   const uint32_t *page, uint32_t n, struct err *e)
{
    struct cuda_backend *b = cuda_of(o), *a = cuda_of(from);
    struct page_mover *m = b->mover;
    if (from->copy_pages != op_copy_pages || a->mover->page_bytes != m->page_bytes ||
        a->mover->n_parts != m->n_parts || a->device >= MOST_DEVICES)
        return err_set(e, ERR_INVALID, "pages of %s do not fit into %s", from->name, o->name);
    check_ids(o, to, n);
    check_ids(from, page, n);
    cudaError_t code = cudaSetDevice(b->device);
    if (reach(b, a->device, e))
        return e->code;
    for (uint32_t i = 0; i < n && code == cudaSuccess; i += MOST_PAGES) {
        uint32_t some = least(n - i, MOST_PAGES);
        code = send_ids(m, page + i, to + i, some);
        launch_copy(m, m->planes, a->mover->planes, some);
        if (code == cudaSuccess)
            code = cudaStreamSynchronize(m->stream); /* before the ids are overwritten */
    }
    return arrived(o, to, n, code, e);
}

/* The parts of a page, in ops.h's order; planes: where they lie, otherwise in the stage. */
static uint32_t list_parts(const struct cuda_backend *b, unsigned char *stage,
                           struct page_part *part)
{
    const struct model_config *c = b->ops.cfg;
    size_t at = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < 2 * c->n_layers; i++) {
        bool index = i % 2;
        size_t bytes = index ? b->index_page_bytes : b->latent_page_bytes;
        if (index && !(c->has_indexer && c->index_full[i / 2]))
            continue;
        unsigned char *plane = index ? b->index[i / 2] : b->latent[i / 2];
        part[n++] = (struct page_part){stage ? stage + at : plane,
                                       stage ? b->mover->page_bytes : bytes, bytes, at / 8};
        at += bytes;
    }
    return n;
}

/* After the planes are there; in a plan they are not. */
enum err_code cuda_pages_init(struct cuda_backend *b, struct err *e)
{
    struct page_part part[2 * MODEL_MAX_LAYERS];
    struct page_mover *m = (struct page_mover *)cuda_reserve_host(b, sizeof *m);
    if (!m)
        return err_set(e, ERR_NOMEM, "moves of pages");
    m->page_bytes = kv_page_bytes(b->ops.cfg, b->ops.limits.latent, b->ops.limits.index);
    m->stage_pages = m->page_bytes < STAGE_BYTES ? (uint32_t)(STAGE_BYTES / m->page_bytes) : 1;
    m->stage_pages = least(m->stage_pages, least(MOST_PAGES, b->ops.limits.n_pages));
    size_t stage_bytes = m->stage_pages * m->page_bytes, ids = 2 * MOST_PAGES * sizeof *m->ids;
    size_t sums = MOST_PAGES * sizeof *m->sums;
    b->mover = m;
    m->planes = (struct page_part *)cuda_reserve(b, sizeof part);
    m->stage = (struct page_part *)cuda_reserve(b, sizeof part);
    m->stage_memory = (unsigned char *)cuda_reserve(b, stage_bytes);
    m->stage_host = (unsigned char *)cuda_reserve_pinned(b, stage_bytes);
    m->ids = (uint32_t *)cuda_reserve(b, ids);
    m->ids_host = (uint32_t *)cuda_reserve_pinned(b, ids);
    m->sums = (unsigned long long *)cuda_reserve(b, sums);
    m->sums_host = (unsigned long long *)cuda_reserve_pinned(b, sums);
    if (!m->planes || !m->stage || !m->stage_memory || !m->stage_host || !m->ids || !m->ids_host ||
        !m->sums || !m->sums_host)
        return err_set(e, ERR_NOMEM, "moves of pages of %zu bytes", m->page_bytes);
    b->ops.export_pages = op_export_pages;
    b->ops.import_pages = op_import_pages;
    b->ops.sum_pages = op_sum_pages;
    b->ops.copy_pages = op_copy_pages;
    m->n_parts = list_parts(b, NULL, part);
    if (b->dry)
        return ERR_OK;
    cudaError_t code = cudaMemcpy(m->planes, part, sizeof part, cudaMemcpyHostToDevice);
    (void)list_parts(b, m->stage_memory, part);
    if (code == cudaSuccess)
        code = cudaMemcpy(m->stage, part, sizeof part, cudaMemcpyHostToDevice);
    if (code == cudaSuccess)
        code = cudaStreamCreateWithPriority(&m->stream, cudaStreamNonBlocking, 0);
    return check(&b->ops, "moves of pages", code, e);
}

void cuda_pages_close(struct cuda_backend *b)
{
    if (b->mover && b->mover->stream)
        (void)cudaStreamDestroy(b->mover->stream);
}
