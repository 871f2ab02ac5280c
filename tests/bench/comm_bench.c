/* comm_bench.c - timed rows of the collectives on GPUs: time of small sums, bandwidth of large
 * calls.
 *
 *   comm_bench [--pages] [--ranks N] [--one-gpu] [--kind device|nccl] [--blocks N] [--commit TEXT]
 *
 * Without arguments: every kind on 2, 4 and 8 GPUs as far as they are there, and 2 and 4 ranks on
 * one GPU. A row is the time of one call within a recorded graph of CALLS, median of RUNS on the
 * slowest rank, and its spread. "bus": bytes that cross each rank's link in one direction
 * (all_reduce 2 (n - 1) / n, the others (n - 1) / n of the whole) by time; "share" is that of the
 * rate of a plain copy from one GPU to another of LINK_BYTES, measured first. "nccl" adds in rank
 * order, "nccl any" is NCCL's own sum. Output: one JSON object a line.
 */
#include "base/clock.h"
#include "base/thread.h"
#include "comm/comm.h"
#include "comm/meeting.h"
#include "cuda/cuda_ops.h"
#include "tests/kernel/device_memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 7, MOST = 8, LINK_BYTES = 256 << 20 };

struct bench {
    const char *kind;
    uint32_t n_ranks, max_blocks;
    bool spread, any_order;
    double link; /* bytes a second; 0: there is one GPU */
    struct meeting *meeting;
    pthread_barrier_t all;
    double us[MOST][RUNS];
    const char *device, *commit;
};

struct rank {
    struct bench *b;
    uint32_t rank;
    struct comm *comm;
    void *mem, *stream;
    unsigned char *in, *out;
    enum comm_op op;
    size_t bytes; /* of the whole */
    int calls;
};

static void stop(const struct err *e)
{
    fprintf(stderr, "comm_bench: %s\n", e->msg);
    exit(1);
}

static void call(struct rank *r)
{
    struct err e = {0};
    struct comm *c = r->comm;
    size_t part = r->bytes / r->b->n_ranks, at[MOST], bytes[MOST];
    for (uint32_t k = 0; k < r->b->n_ranks; k++) {
        at[k] = k * part;
        bytes[k] = part;
    }
    enum err_code code = ERR_OK;
    switch (r->op) {
    case COMM_ALL_REDUCE:
        code = comm_all_reduce(c, r->in, r->in, r->bytes / 2, COMM_BF16, r->stream, &e);
        break;
    case COMM_ALL_GATHER:
        code = comm_all_gather(c, r->in, r->out, part, r->stream, &e);
        break;
    case COMM_REDUCE_SCATTER:
        code = comm_reduce_scatter(c, r->in, r->out, part / 2, COMM_BF16, r->stream, &e);
        break;
    case COMM_ALL_TO_ALL:
        code = comm_all_to_all(c, r->in, r->out, part, r->stream, &e);
        break;
    case COMM_ALL_TO_ALLV:
        code = comm_all_to_allv(c, r->in, (struct comm_parts){at, bytes}, r->out,
                                (struct comm_parts){at, bytes}, r->stream, &e);
        break;
    case COMM_BROADCAST:
        code = comm_broadcast(c, r->in, r->bytes, 0, r->stream, &e);
        break;
    case COMM_BARRIER:
    case N_COMM_OPS:
        code = comm_barrier(c, r->stream, &e);
        break;
    }
    if (code)
        stop(&e);
}

static void launch(void *arg)
{
    device_rank_launch(((struct rank *)arg)->mem);
}

static void settle(struct rank *r)
{
    struct err e;
    if (comm_wait(r->comm, r->stream, &e))
        stop(&e);
    pthread_barrier_wait(&r->b->all);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double bus_bytes(enum comm_op op, size_t bytes, uint32_t n)
{
    double part = (double)bytes * (n - 1) / n;
    if (op == COMM_BARRIER)
        return 0.0;
    return op == COMM_ALL_REDUCE ? 2 * part : op == COMM_BROADCAST ? (double)bytes : part;
}

static void print_row(struct rank *r)
{
    struct bench *b = r->b;
    double us[RUNS];
    for (int i = 0; i < RUNS; i++) { /* a call is as slow as its slowest rank */
        us[i] = 0.0;
        for (uint32_t k = 0; k < b->n_ranks; k++)
            us[i] = b->us[k][i] > us[i] ? b->us[k][i] : us[i];
    }
    qsort(us, RUNS, sizeof *us, by_value);
    double bus = bus_bytes(r->op, r->bytes, b->n_ranks) / us[RUNS / 2] / 1e3;
    printf(
        "{\"op\": \"%s\", \"kind\": \"%s%s\", \"ranks\": %u, \"gpus\": %u, \"bytes\": %zu, "
        "\"blocks\": %u, \"us\": %.2f, \"least_us\": %.2f, \"most_us\": %.2f, \"bus_gb_s\": %.1f",
        comm_op_name(r->op), b->kind, b->any_order ? " any" : "", b->n_ranks,
        b->spread ? b->n_ranks : 1, r->bytes, b->max_blocks, us[RUNS / 2], us[0], us[RUNS - 1],
        bus);
    if (b->link > 0.0 && b->spread)
        printf(", \"share_of_link\": %.3f", bus * 1e9 / b->link);
    printf(", \"device\": \"%s\", \"commit\": \"%s\"}\n", b->device, b->commit);
    fflush(stdout);
}

/* One row: all ranks record the calls, run them once, and time them. */
static void row(struct rank *r, enum comm_op op, size_t bytes)
{
    r->op = op;
    r->bytes = bytes;
    r->calls = bytes > 4 << 20 ? 5 : 50;
    call(r); /* what a first call sets up is left out */
    settle(r);
    if (!device_rank_record(r->mem))
        exit(1);
    for (int i = 0; i < r->calls; i++)
        call(r);
    device_rank_recorded(r->mem);
    pthread_barrier_wait(&r->b->all); /* making a graph may wait for kernels that wait for us */
    launch(r);
    settle(r);
    for (int i = 0; i < RUNS; i++) {
        pthread_barrier_wait(&r->b->all);
        r->b->us[r->rank][i] = device_rank_time_us(r->mem, launch, r) / r->calls;
        settle(r);
    }
    if (r->rank == 0)
        print_row(r);
    pthread_barrier_wait(&r->b->all);
}

static void *rank_main(void *arg)
{
    static const enum comm_op large[] = {COMM_ALL_REDUCE, COMM_ALL_GATHER,  COMM_REDUCE_SCATTER,
                                         COMM_ALL_TO_ALL, COMM_ALL_TO_ALLV, COMM_BROADCAST};
    /* a token's and 128 tokens' hidden state of DeepSeek-V3.2 in bf16, and sizes between */
    static const size_t small[] = {14336, 28672, 57344, 114688, 229376, 458752, 917504, 1835008};
    struct rank *r = arg;
    struct err e;
    size_t most = 64u << 20;
    struct comm_config cfg = {.kind = r->b->kind,
                              .group = "bench",
                              .rank = r->rank,
                              .n_ranks = r->b->n_ranks,
                              .device = r->b->spread ? r->rank : 0,
                              .max_bytes = most,
                              .any_order = r->b->any_order,
                              .max_blocks = r->b->max_blocks,
                              .meeting = r->b->meeting};
    r->mem = device_rank_open(cfg.device, 2 * most);
    r->stream = device_rank_stream(r->mem);
    r->in = device_rank_area(r->mem);
    r->out = r->in + most;
    pthread_barrier_wait(&r->b->all); /* allocations wait for kernels: all are done before */
    if (comm_open(&r->comm, &cfg, &e))
        stop(&e);
    row(r, COMM_BARRIER, 0);
    for (size_t i = 0; i < sizeof small / sizeof *small; i++)
        row(r, COMM_ALL_REDUCE, small[i]);
    row(r, COMM_ALL_GATHER, small[0]);
    row(r, COMM_ALL_TO_ALL, small[0]);
    for (size_t bytes = 16u << 20; bytes <= most; bytes *= 4)
        for (size_t i = 0; i < sizeof large / sizeof *large; i++)
            if (!r->b->any_order || large[i] == COMM_ALL_REDUCE || large[i] == COMM_REDUCE_SCATTER)
                row(r, large[i], bytes);
    settle(r);
    device_rank_forget(r->mem);
    comm_close(r->comm);
    pthread_barrier_wait(&r->b->all);
    device_rank_close(r->mem);
    return NULL;
}

static void run(struct bench *b)
{
    struct rank r[MOST];
    pthread_t id[MOST];
    struct err e;
    if (comm_kind_check(b->kind, &e)) {
        fprintf(stderr, "comm_bench: no rows: %s\n", e.msg);
        return;
    }
    if (meeting_create(&b->meeting, &e))
        stop(&e);
    pthread_barrier_init(&b->all, NULL, b->n_ranks);
    for (uint32_t i = 0; i < b->n_ranks; i++) {
        r[i] = (struct rank){.b = b, .rank = i};
        if (thread_start(&id[i], "rank", rank_main, &r[i], &e))
            stop(&e);
    }
    for (uint32_t i = 0; i < b->n_ranks; i++)
        thread_join(id[i]);
    pthread_barrier_destroy(&b->all);
    meeting_destroy(b->meeting);
}

enum { POOL_PAGES = 128 };

static struct ops *open_pool(const struct model_config *c, uint32_t device)
{
    struct ops_limits lim = {.precision = PRECISION_FAST,
                             .latent = LATENT_FP8,
                             .index = INDEX_FP8,
                             .n_pages = POOL_PAGES,
                             .max_rows = {16, 16},
                             .max_context = 4096,
                             .max_out_rows = 16,
                             .n_threads = 1};
    struct ops *o;
    struct err e;
    if (cuda_ops_open(&o, c, &lim, device, &e))
        stop(&e);
    return o;
}

static void print_pages(const char *op, double *us, uint32_t n, size_t bytes, uint32_t gpus,
                        double link, const char *device, const char *commit)
{
    qsort(us, RUNS, sizeof *us, by_value);
    double rate = (double)bytes / us[RUNS / 2] * 1e6;
    printf("{\"op\": \"%s\", \"pages\": %u, \"gpus\": %u, \"bytes\": %zu, \"us\": %.1f, "
           "\"least_us\": %.1f, \"most_us\": %.1f, \"gb_s\": %.1f",
           op, n, gpus, bytes, us[RUNS / 2], us[0], us[RUNS - 1], rate / 1e9);
    if (link > 0.0)
        printf(", \"share_of_link\": %.3f", rate / link);
    printf(", \"device\": \"%s\", \"commit\": \"%s\"}\n", device, commit);
    fflush(stdout);
}

static void page_rows(uint32_t n_gpus, double link, const char *device, const char *commit)
{
    struct model_config c = {.family = MODEL_DEEPSEEK_V32,
                             .vocab_size = 128,
                             .hidden_size = 128,
                             .n_layers = 61,
                             .n_dense_layers = 61,
                             .dense_width = 128,
                             .n_heads = 16,
                             .q_lora_rank = 128,
                             .kv_lora_rank = 512,
                             .nope_dim = 128,
                             .rope_dim = 64,
                             .v_dim = 128,
                             .n_group = 1,
                             .n_group_kept = 1,
                             .has_indexer = true,
                             .index_heads = 64,
                             .index_dim = 128,
                             .index_topk = 2048,
                             .max_position = 4096,
                             .rope_gain = 1.0f};
    uint32_t page[POOL_PAGES], there[POOL_PAGES];
    uint64_t sum[POOL_PAGES], sum_there[POOL_PAGES];
    double us[2][RUNS];
    struct err e;
    for (uint32_t i = 0; i < c.n_layers; i++)
        c.index_full[i] = true;
    struct ops *a = open_pool(&c, 0), *b = open_pool(&c, n_gpus > 1 ? 1 : 0);
    size_t bytes = kv_page_bytes(&c, LATENT_FP8, INDEX_FP8);
    for (uint32_t i = 0; i < POOL_PAGES; i++) { /* scattered */
        page[i] = i * 37 % POOL_PAGES;
        there[i] = (i * 51 + 5) % POOL_PAGES;
    }
    for (uint32_t n = 1; n <= 96; n = n == 1 ? 6 : n * 4) { /* 2.9, 17.6, 70 and 281 MB */
        for (int i = -1; i < RUNS; i++) {                   /* the first is not counted */
            uint64_t begin = clock_us();
            if (b->copy_pages(b, there, a, page, n, &e))
                stop(&e);
            uint64_t copied = clock_us();
            if (b->sum_pages(b, there, n, sum_there, &e))
                stop(&e);
            if (i >= 0) {
                us[0][i] = (double)(copied - begin);
                us[1][i] = (double)(clock_us() - copied);
            }
        }
        if (a->sum_pages(a, page, n, sum, &e))
            stop(&e);
        for (uint32_t i = 0; i < n; i++)
            if (sum[i] != sum_there[i])
                exit(1);
        print_pages("page_move", us[0], n, n * bytes, n_gpus > 1 ? 2 : 1, link, device, commit);
        print_pages("page_sum", us[1], n, n * bytes, 1, 0.0, device, commit);
    }
    a->close(a);
    b->close(b);
}

struct options {
    uint32_t ranks, blocks;
    bool one_gpu, only_pages;
    const char *kind, *commit;
};

static void run_rows(const struct options *o, bool spread, uint32_t n, double link,
                     const char *device)
{
    static const char *const kind[] = {"device", "nccl", "nccl"};
    for (int k = 0; k < 3; k++) {
        struct bench b = {.kind = kind[k],
                          .n_ranks = n,
                          .max_blocks = o->blocks,
                          .spread = spread,
                          .any_order = k == 2,
                          .link = link,
                          .device = device,
                          .commit = o->commit};
        if ((o->kind && strcmp(o->kind, kind[k]) != 0) || (k && !spread) ||
            (o->ranks && o->ranks != n))
            continue;
        run(&b);
    }
}

int main(int argc, char **argv)
{
    struct options o = {.commit = "unknown"};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--one-gpu")) {
            o.one_gpu = true;
        } else if (!strcmp(argv[i], "--pages")) {
            o.only_pages = true;
        } else if (!strcmp(argv[i], "--ranks") && i + 1 < argc) {
            o.ranks = (uint32_t)atoi(argv[++i]);
        } else if (!strcmp(argv[i], "--blocks") && i + 1 < argc) {
            o.blocks = (uint32_t)atoi(argv[++i]);
        } else if (!strcmp(argv[i], "--kind") && i + 1 < argc) {
            o.kind = argv[++i];
        } else if (!strcmp(argv[i], "--commit") && i + 1 < argc) {
            o.commit = argv[++i];
        } else {
            fprintf(stderr,
                    "usage: comm_bench [--pages] [--ranks N] [--one-gpu] [--kind device|nccl] "
                    "[--blocks N] [--commit TEXT]\n");
            return 2;
        }
    }
    comm_environment();
    uint32_t n_gpus = cuda_device_count();
    if (!n_gpus) {
        fprintf(stderr, "comm_bench: there is no GPU\n");
        return 1;
    }
    char device[128];
    device_rank_name(device, sizeof device);
    double link = n_gpus > 1 ? device_link_rate(0, 1, LINK_BYTES) : 0.0;
    if (link > 0.0)
        printf("{\"op\": \"copy\", \"kind\": \"cudaMemcpyPeer\", \"bytes\": %d, \"gb_s\": %.1f}\n",
               LINK_BYTES, link / 1e9);
    if (!o.ranks && !o.kind)
        page_rows(o.one_gpu ? 1 : n_gpus, o.one_gpu ? 0.0 : link, device, o.commit);
    for (uint32_t n = 2; n <= MOST && !o.only_pages; n *= 2) {
        if (n <= n_gpus && !o.one_gpu)
            run_rows(&o, true, n, link, device);
        if (n <= 4 && (o.one_gpu || !o.ranks))
            run_rows(&o, false, n, 0.0, device);
    }
    return 0;
}
