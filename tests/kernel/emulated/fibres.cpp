/* fibres.cpp - the emulated device of cuda_runtime.h: one stack per thread of a block. x86-64. */
#include "cuda_runtime.h"

#include <sched.h>
#include <stdio.h>
#include <time.h>

constinit thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

enum { MAX_THREADS = 1024, STACK = 128 << 10, EXCHANGE = 16 };

struct fibre {
    void *sp;
    dim3 id;
    bool done;
};
struct warp {
    unsigned live, arrived;
    unsigned long turn;
    unsigned char slot[32][EXCHANGE];
    float a[16][16], b[16][8];
};
/* A host thread's device; its stacks end with it. */
struct stack_area {
    unsigned char *at;
    ~stack_area()
    {
        free(at);
    }
};
static thread_local fibre fib[MAX_THREADS];
static thread_local warp warps[MAX_THREADS / 32];
static thread_local stack_area area;
static constinit thread_local void *main_sp;
static constinit thread_local unsigned now, n_threads, live, arrived;
static constinit thread_local unsigned long turn = 1, idle;
static constinit thread_local const std::function<void()> *work;
static thread_local unsigned char shared[256 << 10] __attribute__((aligned(1024)));
/* Flags of __syncthreads_or(), by the parity of the turn: a fibre that is one turn ahead uses the
 * other one. */
static constinit thread_local struct {
    unsigned long turn;
    int flag;
} any[2];
static thread_local struct {
    unsigned came;
    unsigned long turn;
} meeting[16];

extern "C" void fibre_switch(void **save, void *to);
__asm__(".text\n.globl fibre_switch\nfibre_switch:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

static void next_fibre(void)
{
    unsigned from = now;
    if (!live)
        return fibre_switch(&fib[from].sp, main_sp);
    do
        now = (now + 1) % n_threads;
    while (fib[now].done);
    if (++idle > 4ul * MAX_THREADS * MAX_THREADS) {
        fprintf(stderr, "emulated device: a barrier that not all threads reach\n");
        abort();
    }
    if (now == from)
        return;
    threadIdx = fib[now].id;
    fibre_switch(&fib[from].sp, fib[now].sp);
}

static void release(void)
{
    if (live && arrived == live) {
        arrived = 0;
        turn++;
        idle = 0;
    }
}
static void release_warp(warp *w)
{
    if (w->live && w->arrived == w->live) {
        w->arrived = 0;
        w->turn++;
        idle = 0;
    }
}

static void fibre_main(void)
{
    (*work)();
    fib[now].done = true;
    live--;
    warps[now / 32].live--;
    release();
    release_warp(&warps[now / 32]);
    next_fibre();
    abort();
}

void __syncthreads(void)
{
    unsigned long mine = turn;
    arrived++;
    release();
    while (turn == mine)
        next_fibre();
}

int __syncthreads_or(int flag)
{
    auto &a = any[turn & 1];
    if (a.turn != turn)
        a = {turn, 0};
    a.flag |= flag != 0;
    __syncthreads();
    return a.flag;
}

void __nanosleep(unsigned)
{
    sched_yield();
}

unsigned long long emulated_clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (unsigned long long)t.tv_sec * 1000000000ull + (unsigned long long)t.tv_nsec;
}

void __syncwarp(unsigned)
{
    warp *w = &warps[now / 32];
    unsigned long mine = w->turn;
    w->arrived++;
    release_warp(w);
    while (w->turn == mine)
        next_fibre();
}

void emulated_exchange(const void *mine, size_t bytes, void *all)
{
    warp *w = &warps[now / 32];
    memcpy(w->slot[now % 32], mine, bytes);
    __syncwarp();
    for (int i = 0; i < 32; i++)
        memcpy((char *)all + i * bytes, w->slot[i], bytes);
    __syncwarp();
}

static float half_of(uint32_t x, int high, bool f16)
{
    uint16_t bits = (uint16_t)(high ? x >> 16 : x);
    if (!f16)
        return __uint_as_float((uint32_t)bits << 16);
    _Float16 h;
    memcpy(&h, &bits, sizeof h);
    return (float)h;
}

uint16_t emulated_f16(float x)
{
    _Float16 h = (_Float16)x;
    uint16_t bits;
    memcpy(&bits, &h, sizeof bits);
    return bits;
}

void emulated_mma(float c[4], const uint32_t a[4], const uint32_t b[2], bool f16)
{
    warp *w = &warps[now / 32];
    unsigned l = now % 32, g = l / 4, t = l % 4;
    for (unsigned i = 0; i < 4; i++)
        for (unsigned h = 0; h < 2; h++)
            w->a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + h] = half_of(a[i], h, f16);
    for (unsigned i = 0; i < 2; i++)
        for (unsigned h = 0; h < 2; h++)
            w->b[2 * t + 8 * i + h][g] = half_of(b[i], h, f16);
    __syncwarp();
    for (unsigned i = 0; i < 4; i++) {
        float sum = c[i];
        for (unsigned k = 0; k < 16; k++)
            sum += w->a[g + 8 * (i / 2)][k] * w->b[k][2 * t + i % 2];
        c[i] = sum;
    }
    __syncwarp();
}

void emulated_ldmatrix(uint32_t r[4], const void *row, bool transposed)
{
    const uint16_t *all[32];
    unsigned l = now % 32, g = l / 4, t = l % 4;
    emulated_exchange(&row, sizeof row, all);
    for (unsigned i = 0; i < 4; i++) {
        const uint16_t *const *m = all + 8 * i;
        r[i] = transposed ? m[2 * t][g] | (uint32_t)m[2 * t + 1][g] << 16
                          : m[g][2 * t] | (uint32_t)m[g][2 * t + 1] << 16;
    }
    __syncwarp();
}

/* Where byte `at` of row `row` of a tile lies. */
static const unsigned char *tile_byte(uint64_t tile, unsigned row, unsigned at)
{
    unsigned from = (unsigned)(tile & 0x3FFF) << 4, group = (unsigned)(tile >> 32 & 0x3FFF) << 4;
    unsigned where = from + row / 8 * group + row % 8 * 128 + at;
    return shared + (where ^ (where >> 3 & 0x70)); /* the row's low bits change the chunk */
}

static float e4m3_of(unsigned char code)
{
    int e = code >> 3 & 15, m = code & 7;
    float x = e ? ldexpf(1.0f + (float)m / 8.0f, e - 7) : ldexpf((float)m / 8.0f, -6);
    return code & 0x80 ? -x : x;
}

static float tile_value(uint64_t tile, unsigned row, unsigned k, bool f16, bool across)
{
    uint16_t bits;
    if (!f16)
        return e4m3_of(*tile_byte(tile, row, k));
    if (across) { /* rows are k, columns go on in further blocks */
        unsigned further = (unsigned)(tile >> 16 & 0x3FFF) << 4;
        memcpy(&bits, tile_byte(tile + (row / 64 * further >> 4), k, row % 64 * 2), 2);
    } else {
        memcpy(&bits, tile_byte(tile, row, k * 2), 2);
    }
    return half_of(bits, 0, true);
}

void emulated_wgmma(float *c, unsigned n, uint64_t a, uint64_t b, bool add, bool f16, bool across)
{
    unsigned l = now % 32, row = now / 32 % 4 * 16 + l / 4, depth = f16 ? 16 : 32;
    float x[2][32];
    for (unsigned r = 0; r < 2; r++)
        for (unsigned k = 0; k < depth; k++)
            x[r][k] = tile_value(a, row + 8 * r, k, f16, false);
    for (unsigned j = 0; j < n / 8; j++)
        for (unsigned h = 0; h < 2; h++) {
            float *at = c + 4 * j + h, sum[2] = {add ? at[0] : 0.0f, add ? at[2] : 0.0f};
            for (unsigned k = 0; k < depth; k++) {
                float y = tile_value(b, 8 * j + l % 4 * 2 + h, k, f16, across);
                sum[0] += x[0][k] * y;
                sum[1] += x[1][k] * y;
            }
            at[0] = sum[0];
            at[2] = sum[1];
        }
}

void emulated_meet(unsigned id, unsigned threads, bool wait)
{
    unsigned long mine = meeting[id].turn;
    if (++meeting[id].came == threads) {
        meeting[id].came = 0;
        meeting[id].turn++;
        idle = 0;
        return;
    }
    while (wait && meeting[id].turn == mine)
        next_fibre();
}

void *emulated_shared(void)
{
    return shared;
}

static void run_block(void)
{
    n_threads = live = blockDim.x * blockDim.y * blockDim.z;
    arrived = 0;
    idle = 0;
    memset(meeting, 0, sizeof meeting);
    for (unsigned i = 0; i < n_threads; i++) {
        fib[i].id = dim3(i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y);
        fib[i].done = false;
        void **top = (void **)(area.at + (size_t)(i + 1) * STACK - 72);
        *--top = (void *)fibre_main;
        for (int r = 0; r < 6; r++)
            *--top = NULL;
        fib[i].sp = top;
    }
    for (unsigned i = 0; i < (n_threads + 31) / 32; i++) {
        warps[i].live = n_threads - 32 * i < 32 ? n_threads - 32 * i : 32;
        warps[i].arrived = 0;
    }
    now = 0;
    threadIdx = fib[0].id;
    fibre_switch(&main_sp, fib[0].sp);
}

void emulated_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                     const std::function<void()> &body)
{
    if (!area.at)
        area.at = (unsigned char *)aligned_alloc(4096, (size_t)MAX_THREADS * STACK);
    if (!area.at || shared_bytes > sizeof shared || block.x * block.y * block.z > MAX_THREADS ||
        !(grid.x && grid.y && grid.z) || grid.y > 65535 || grid.z > 65535) {
        fprintf(stderr, "emulated device: a launch that no device takes\n");
        abort();
    }
    work = &body;
    gridDim = grid;
    blockDim = block;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = dim3(x, y, z);
                memset(shared, 0xFF, shared_bytes);
                run_block();
            }
}
