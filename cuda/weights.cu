/* weights.cu - cuda_weights_upload: one allocation for the whole model, filled through two pinned
 * buffers, so that reading the file, by several threads, and copying to the device overlap;
 * cuda_weights_dummy: the same with matrices that the device makes up.
 */
#include "cuda/backend.cuh"

#include "tile/hash.cuh"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
}

enum { STAGE_BYTES = 32 << 20, MOST_COPIERS = 8, WORTH_BYTES = 4 << 20 };
static const size_t RATED_BYTES = (size_t)256 << 20; /* from here on a load's rate is printed */

/* Threads that fill a stage together: one cannot read a mapped file as fast as the link takes it.
 * Each has a slice of every copy; who asks for it has the first one. */
struct copiers {
    pthread_mutex_t gate;
    pthread_barrier_t begin, end;
    pthread_t thread[MOST_COPIERS];
    uint32_t n, n_arrived; /* with who asks; threads that have taken their number */
    unsigned char *to;
    const unsigned char *from;
    size_t bytes;
    bool stop;
};

struct upload {
    struct weights *w; /* the copy */
    const struct model_config *cfg;
    unsigned char *dev; /* NULL: the first walk, which counts */
    size_t used;
    unsigned char *stage[2];
    cudaStream_t stream[2];
    uint32_t turn;
    struct copiers *copiers; /* NULL: one thread */
    bool invent;             /* matrices are made up */
    size_t done, total;
    weights_progress *progress;
    void *arg;
    cudaError_t code;
};

/* What weights_close() of the copy frees. */
struct device_weights {
    struct weights w;
    unsigned char *dev;
    int device;
    void **host; /* host tables */
    uint32_t n_host;
};

static void copy_slice(const struct copiers *c, uint32_t i)
{
    size_t each = (c->bytes / c->n + 4095) / 4096 * 4096, from = i * each;
    if (from < c->bytes)
        memcpy(c->to + from, c->from + from, each < c->bytes - from ? each : c->bytes - from);
}

static void *copier_main(void *arg)
{
    struct copiers *c = (struct copiers *)arg;
    mutex_lock(&c->gate);
    uint32_t mine = ++c->n_arrived;
    mutex_unlock(&c->gate);
    for (;;) {
        pthread_barrier_wait(&c->begin);
        if (c->stop)
            return NULL;
        copy_slice(c, mine);
        pthread_barrier_wait(&c->end);
    }
}

/* NULL: there are none, and one thread does it. */
static struct copiers *copiers_start(void)
{
    uint32_t n = thread_n_cpus() < MOST_COPIERS ? thread_n_cpus() : (uint32_t)MOST_COPIERS;
    struct copiers *c = n > 1 ? (struct copiers *)calloc(1, sizeof *c) : NULL;
    struct err e;
    if (!c)
        return NULL;
    pthread_mutex_init(&c->gate, NULL);
    mutex_lock(&c->gate); /* until it is known how many they are */
    for (c->n = 1; c->n < n; c->n++)
        if (thread_start(&c->thread[c->n], "load", copier_main, c, &e)) {
            log_warn("weights", "loading with %u threads: %s", c->n, e.msg);
            break;
        }
    pthread_barrier_init(&c->begin, NULL, c->n);
    pthread_barrier_init(&c->end, NULL, c->n);
    mutex_unlock(&c->gate);
    return c;
}

static void copiers_end(struct copiers *c)
{
    if (!c)
        return;
    c->stop = true;
    pthread_barrier_wait(&c->begin);
    for (uint32_t i = 1; i < c->n; i++)
        thread_join(c->thread[i]);
    pthread_barrier_destroy(&c->begin);
    pthread_barrier_destroy(&c->end);
    pthread_mutex_destroy(&c->gate);
    free(c);
}

static void fill_stage(const struct upload *u, unsigned char *to, const void *from, size_t bytes)
{
    struct copiers *c = u->copiers;
    if (!c || bytes < WORTH_BYTES) {
        memcpy(to, from, bytes);
        return;
    }
    c->to = to;
    c->from = (const unsigned char *)from;
    c->bytes = bytes;
    pthread_barrier_wait(&c->begin);
    copy_slice(c, 0);
    pthread_barrier_wait(&c->end);
}

static unsigned char *room(struct upload *u, size_t bytes)
{
    unsigned char *at = u->dev ? u->dev + u->used : NULL;
    u->used += (bytes + 255) / 256 * 256 + 256;
    return at;
}

/* The device's copy of n rows of `bytes`, `stride` apart, which lie side by side there; on the
 * first walk only a size is noted. */
static const void *send_rows(struct upload *u, const void *from, size_t n, size_t bytes,
                             size_t stride)
{
    if (!from || !n || !bytes)
        return NULL;
    unsigned char *to = room(u, n * bytes);
    size_t fit = STAGE_BYTES / bytes;
    for (size_t i = 0; to && i < n && u->code == cudaSuccess;) {
        size_t k = n - i < fit ? n - i : fit;
        uint32_t t = u->turn++ % 2;
        u->code = cudaStreamSynchronize(u->stream[t]); /* the buffer's last copy is over */
        for (size_t r = 0; r < k && u->code == cudaSuccess; r++)
            memcpy(u->stage[t] + r * bytes, (const unsigned char *)from + (i + r) * stride, bytes);
        if (u->code == cudaSuccess)
            u->code = cudaMemcpyAsync(to + i * bytes, u->stage[t], k * bytes,
                                      cudaMemcpyHostToDevice, u->stream[t]);
        i += k;
        u->done += k * bytes;
        if (u->progress)
            u->progress(u->arg, u->done, u->total);
    }
    return to ? to : from;
}

/* The device's copy of bytes. */
static const void *send(struct upload *u, const void *from, size_t bytes)
{
    if (!from || !bytes)
        return NULL;
    unsigned char *to = room(u, bytes);
    for (size_t i = 0; to && i < bytes && u->code == cudaSuccess;) {
        size_t n = bytes - i < STAGE_BYTES ? bytes - i : (size_t)STAGE_BYTES;
        uint32_t t = u->turn++ % 2;
        u->code = cudaStreamSynchronize(u->stream[t]);
        if (u->code == cudaSuccess) {
            fill_stage(u, u->stage[t], (const unsigned char *)from + i, n);
            u->code = cudaMemcpyAsync(to + i, u->stage[t], n, cudaMemcpyHostToDevice, u->stream[t]);
        }
        i += n;
        u->done += n;
        if (u->progress)
            u->progress(u->arg, u->done, u->total);
    }
    return to ? to : from;
}

/* Values of about a normal distribution (the sum of four uniform numbers), variance 1 / n_in. FP8:
 * as codes under a power of two that the largest, 3.5 deviations, fits. */
static __global__ void invent_kernel(void *data, size_t n, bool fp8, float deviation, float unit,
                                     uint64_t seed)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x) {
        uint64_t x = device_hash_mix((seed + i) * 0x9E3779B97F4A7C15u);
        float sum = (float)(x & 0xFFFF) + (float)(x >> 16 & 0xFFFF) + (float)(x >> 32 & 0xFFFF) +
                    (float)(x >> 48);
        float v = (sum - 131070.0f) * (1.0f / 37837.0f) * deviation; /* 65536 sqrt(4 / 12) */
        if (fp8)
            ((uint8_t *)data)[i] = e4m3_round(v / unit);
        else
            ((uint16_t *)data)[i] = bf16_round(v);
    }
}
static __global__ void repeat_kernel(float *to, size_t n, float value)
{
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        to[i] = value;
}

static struct matrix invent_matrix(struct upload *u, const struct matrix *m)
{
    struct matrix out = *m;
    size_t n = (size_t)m->n_out * m->n_in, bytes = n * dtype_bytes(m->dtype);
    size_t blocks = (size_t)parts_of(m->n_out, 128) * parts_of(m->n_in, 128);
    bool fp8 = m->dtype == DT_F8_E4M3;
    float deviation = 1.0f / sqrtf((float)m->n_in), unit = 1.0f;
    while (fp8 && unit * 448.0f >= 7.0f * deviation)
        unit *= 0.5f;
    unsigned char *data = room(u, bytes), *scale = fp8 ? room(u, blocks * sizeof(float)) : NULL;
    out.data = data ? data : m->data;
    out.scale = scale ? (const float *)scale : m->scale;
    if (!data || u->code != cudaSuccess)
        return out;
    CUDA_LAUNCH(invent_kernel, 2048, 256, 0, u->stream[0], (void *)data, n, fp8, deviation, unit,
                (uint64_t)u->used);
    if (fp8)
        CUDA_LAUNCH(repeat_kernel, 64, 256, 0, u->stream[0], (float *)scale, blocks, unit);
    u->code = cudaGetLastError();
    u->done += bytes;
    if (u->progress)
        u->progress(u->arg, u->done, u->total);
    return out;
}

static struct matrix send_matrix(struct upload *u, const struct matrix *m)
{
    if (u->invent && m->data)
        return invent_matrix(u, m);
    struct matrix out = *m;
    if (!m->data)
        return out;
    size_t blocks = (size_t)parts_of(m->n_out, 128) * parts_of(m->n_in, 128);
    size_t size = dtype_bytes(m->dtype), row = (size_t)m->n_in * size;
    out.stride = 0;
    if (m->stride)
        out.data = send_rows(u, m->data, m->n_out, row, m->stride * size);
    else
        out.data = send(u, m->data, m->n_out * row);
    out.scale = (const float *)send(u, m->scale, m->scale ? blocks * sizeof(float) : 0);
    return out;
}

static float *send_vector(struct upload *u, const float *v, size_t n)
{
    return (float *)send(u, v, n * sizeof(float));
}

static struct ffn_weights send_ffn(struct upload *u, const struct ffn_weights *f)
{
    struct ffn_weights out;
    out.gate = send_matrix(u, &f->gate);
    out.up = send_matrix(u, &f->up);
    out.down = send_matrix(u, &f->down);
    return out;
}

/* Experts, and their table for the grouped products. `to` is NULL on the first walk. */
static void send_experts(struct upload *u, const struct ffn_weights *from, struct ffn_weights *to)
{
    uint32_t n = model_held_experts(u->cfg);
    size_t bytes = 3 * n * sizeof(struct matrix);
    struct matrix *table = (struct matrix *)calloc(3 * (size_t)n, sizeof *table);
    if (!table) {
        u->code = cudaErrorMemoryAllocation;
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct ffn_weights f = send_ffn(u, &from[i]);
        table[3 * i] = f.gate;
        table[3 * i + 1] = f.up;
        table[3 * i + 2] = f.down;
        if (to)
            to[i] = f;
    }
    const void *dev = send(u, table, bytes);
    if (to)
        ((struct expert_header *)(void *)to - 1)->device = (struct matrix *)dev;
    free(table);
}

static void send_layer(struct upload *u, const struct layer_weights *from, struct layer_weights *to)
{
    const struct model_config *c = u->cfg;
    struct layer_weights out = *from;
    out.input_norm = send_vector(u, from->input_norm, c->hidden_size);
    out.post_norm = send_vector(u, from->post_norm, c->hidden_size);
    out.q = send_matrix(u, &from->q);
    out.q_a = send_matrix(u, &from->q_a);
    out.q_b = send_matrix(u, &from->q_b);
    out.q_a_norm = send_vector(u, from->q_a_norm, c->q_lora_rank);
    out.kv_a = send_matrix(u, &from->kv_a);
    out.kv_a_norm = send_vector(u, from->kv_a_norm, c->kv_lora_rank);
    out.kv_b = send_matrix(u, &from->kv_b);
    out.o = send_matrix(u, &from->o);
    out.index_q = send_matrix(u, &from->index_q);
    out.index_k = send_matrix(u, &from->index_k);
    out.index_w = send_matrix(u, &from->index_w);
    out.index_norm = send_vector(u, from->index_norm, c->index_dim);
    out.index_norm_bias = send_vector(u, from->index_norm_bias, c->index_dim);
    out.dense = send_ffn(u, &from->dense);
    out.shared = send_ffn(u, &from->shared);
    out.router = send_matrix(u, &from->router);
    out.router_bias = send_vector(u, from->router_bias, c->n_experts);
    struct ffn_weights *experts = to ? to->expert : NULL;
    if (from->expert && from->expert[0].gate.data)
        send_experts(u, from->expert, experts);
    if (to) {
        *to = out;
        to->expert = experts;
    }
}

static void walk(struct upload *u, const struct weights *from)
{
    struct weights *w = u->w;
    struct matrix embed = send_matrix(u, &from->embed);
    struct matrix head = embed;
    if (from->head.data != from->embed.data || from->head.n_out != from->embed.n_out)
        head = send_matrix(u, &from->head);
    float *norm = send_vector(u, from->final_norm, u->cfg->hidden_size);
    if (u->dev) {
        w->embed = embed;
        w->head = head;
        w->final_norm = norm;
    }
    for (uint32_t i = 0; i < u->cfg->n_layers; i++)
        send_layer(u, &from->layer[i], u->dev ? &w->layer[i] : NULL);
}

void cuda_weights_close(struct weights *w)
{
    struct device_weights *d = (struct device_weights *)(void *)w;
    if (!d)
        return;
    (void)cudaSetDevice(d->device);
    if (d->dev)
        (void)cudaFree(d->dev);
    for (uint32_t i = 0; i < d->n_host; i++)
        free(d->host[i]);
    free(d->host);
    free(d);
}

static void *host_table(struct device_weights *d, size_t bytes)
{
    void *at = calloc(1, bytes);
    if (at)
        d->host[d->n_host++] = at;
    return at;
}

static bool make_tables(struct device_weights *d, const struct model_config *cfg)
{
    size_t expert_bytes =
        sizeof(struct expert_header) + (size_t)model_held_experts(cfg) * sizeof(struct ffn_weights);
    d->host = (void **)calloc((size_t)cfg->n_layers + 1, sizeof *d->host);
    if (!d->host)
        return false;
    d->w.layer = (struct layer_weights *)host_table(d, cfg->n_layers * sizeof *d->w.layer);
    for (uint32_t i = 0; d->w.layer && cfg->n_experts && i < cfg->n_layers; i++) {
        struct expert_header *h = (struct expert_header *)host_table(d, expert_bytes);
        if (!h)
            return false;
        d->w.layer[i].expert = (struct ffn_weights *)(void *)(h + 1);
    }
    return d->w.layer != NULL;
}

/* Bytes per second that the link takes from pinned memory, into memory that is written later. */
static double link_rate(struct upload *u)
{
    enum { TIMES = 8 };
    uint64_t begun_us = clock_us();
    for (int i = 0; i < TIMES && u->code == cudaSuccess; i++)
        u->code = cudaMemcpyAsync(u->dev + (size_t)i % 2 * STAGE_BYTES, u->stage[i % 2],
                                  STAGE_BYTES, cudaMemcpyHostToDevice, u->stream[i % 2]);
    for (int t = 0; t < 2 && u->code == cudaSuccess; t++)
        u->code = cudaStreamSynchronize(u->stream[t]);
    uint64_t us = clock_us() - begun_us;
    return (double)TIMES * STAGE_BYTES * 1e6 / (double)(us ? us : 1);
}

static enum err_code bring(struct weights **out, const struct weights *from, bool invent,
                           const struct model_config *cfg, uint32_t device,
                           weights_progress *progress, void *arg, struct err *e)
{
    struct upload u = {};
    u.invent = invent;
    void *at = NULL;
    struct device_weights *d = (struct device_weights *)calloc(1, sizeof *d);
    if (!d || !make_tables(d, cfg)) {
        cuda_weights_close((struct weights *)(void *)d);
        return err_set(e, ERR_NOMEM, "tables of %u layers", cfg->n_layers);
    }
    d->device = (int)device;
    u.w = &d->w;
    u.cfg = cfg;
    walk(&u, from); /* counts */
    u.total = u.used;
    u.progress = progress;
    u.arg = arg;
    u.code = cudaSetDevice((int)device);
    if (u.code == cudaSuccess)
        u.code = cudaMalloc(&at, u.total + 512); /* vector loads may look past the end */
    if (u.code != cudaSuccess) {
        cuda_weights_close(&d->w);
        return err_set(e, ERR_NOMEM, "%zu MiB of weights: %s", u.total >> 20,
                       cudaGetErrorString(u.code));
    }
    d->dev = u.dev = (unsigned char *)at;
    for (int t = 0; t < 2 && u.code == cudaSuccess; t++) {
        void *stage = NULL;
        u.code = cudaHostAlloc(&stage, STAGE_BYTES, cudaHostAllocDefault);
        u.stage[t] = (unsigned char *)stage;
        if (u.code == cudaSuccess)
            u.code = cudaStreamCreateWithPriority(&u.stream[t], cudaStreamNonBlocking, 0);
    }
    u.used = 0;
    bool rated = !invent && u.total >= RATED_BYTES;
    double link = rated && u.code == cudaSuccess ? link_rate(&u) : 0;
    uint64_t begun_us = clock_us();
    u.copiers = rated ? copiers_start() : NULL;
    if (u.code == cudaSuccess)
        walk(&u, from);
    copiers_end(u.copiers);
    for (int t = 0; t < 2; t++) {
        if (u.stream[t]) {
            cudaError_t code = cudaStreamSynchronize(u.stream[t]);
            u.code = u.code == cudaSuccess ? code : u.code;
            (void)cudaStreamDestroy(u.stream[t]);
        }
        if (u.stage[t])
            (void)cudaFreeHost(u.stage[t]);
    }
    if (rated && u.code == cudaSuccess) {
        double seconds = (double)(clock_us() - begun_us) * 1e-6;
        log_info("weights",
                 "device=cuda:%u bytes=%zu seconds=%.2f gb_per_s=%.1f link_gb_per_s=%.1f", device,
                 u.total, seconds, (double)u.total * 1e-9 / seconds, link * 1e-9);
    }
    if (u.code != cudaSuccess) {
        cuda_weights_close(&d->w);
        return err_set(e, ERR_CUDA, "weights to cuda:%u: %s", device, cudaGetErrorString(u.code));
    }
    d->w.file_bytes = from->file_bytes;
    *out = &d->w;
    return ERR_OK;
}

enum err_code cuda_weights_upload(struct weights **out, const struct weights *from,
                                  const struct model_config *cfg, uint32_t device,
                                  weights_progress *progress, void *arg, struct err *e)
{
    return bring(out, from, false, cfg, device, progress, arg, e);
}

enum err_code cuda_weights_dummy(struct weights **out, const struct weights *shapes,
                                 const struct model_config *cfg, uint32_t device,
                                 weights_progress *progress, void *arg, struct err *e)
{
    return bring(out, shapes, true, cfg, device, progress, arg, e);
}
