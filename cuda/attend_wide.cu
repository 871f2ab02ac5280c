/* attend_wide.cu - attention over FP8 records of 512 + 64 values for models of more than 32 heads,
 * with Hopper's products of a warpgroup (tile/wgmma.cuh).
 *
 * A block has a row, 64 heads and some splits, one after the other; four warpgroups:
 * - the last two bring tiles of 64 records: codes and keys stay in their registers while the stage
 *   they are for is still read, and go to shared memory as f16, codes times their group's scale (a
 *   power of two: exact from 2^-15 on, then to 2^-25). Nine blocks of 64 values, so that one tile
 *   is scores' operand along rows and sums' operand across. One warpgroup alone took 80 % of the
 *   time for that, and the others waited for it.
 * - warpgroup w makes the scores and weights of every second tile (w = 0: the even ones) and adds
 *   all tiles to columns [256 w, 256 w + 256) of the sums. Weights lie as f16 where their tile's
 *   keys were, which nobody needs any more. A tile's maximum follows from the one before, so the
 *   sums are those of one running softmax over the tiles in order, whoever makes which.
 * A split leaves its means, in f16; attend.cuh says in which order.
 * Queries are f16 under a power of two that each head's largest fits (2^-12 of it), weights f16.
 * Cost: 2 (576 + 512) flops per (row, head, position); a record is read once per 64 heads.
 */
#include "cuda/attend.cuh"

#include "tile/block.cuh"
#include "tile/copy.cuh"
#include "tile/split.cuh"
#include "tile/wgmma.cuh"

enum { TILE = 64, HEADS = 64, LATENT = 512, ROPE = 64, WIDTH = LATENT + ROPE, BLOCKS = WIDTH / 64 };
enum { RECORD = LATENT + 4 * LATENT / GROUP + 2 * ROPE, SUMS = 128, KEYS = LATENT / 64 };
enum { STAGE = BLOCKS * WGMMA_BLOCK, LEAST_HEADS = 33 };
enum { BOTH = 2 * WARPGROUP, THREADS = 2 * BOTH, BRINGERS = 8 /* warps */ };
/* Records are looked up for so many tiles at once, one a thread, and kept for so many lots. */
enum { LOT = 2 * WARPGROUP / TILE, LOTS = 4 };
enum { PER_WARP = TILE / BRINGERS, ROPE_LOADS = PER_WARP * 2 * ROPE / 16 / 32 };
static_assert(RECORD == 656, "the deployed model's record");
static_assert((int)WIDE_SPLIT_STEP == 2 * (int)TILE, "a split begins in the first stage");
/* Who meets where: a stage is full (who brings, its warpgroup), empty (all), its weights are there
 * (both), a warpgroup's own, both warpgroups; who brings. */
enum { MEET_FULL = 1, MEET_EMPTY = 3, MEET_WEIGHTS = 5, MEET_GROUP = 7, MEET_BOTH = 9 };
enum { MEET_BRINGERS = 10 };

struct wide_shared {
    unsigned char q[STAGE], tile[2][STAGE];
    float max[HEADS], shrink[2][HEADS]; /* running maximum, base 2; factors that a tile brought */
    float unit[HEADS];                  /* of a score: the scale over the query's power, base 2 */
    float sum[2][2][HEADS]; /* by a split's parity: see leave_split() */
    uint32_t place[LOTS * LOT][BRINGERS][PER_WARP]; /* of records, by tile: see bring_tiles() */
};
static_assert(sizeof(struct wide_shared) + 1024 <= 227 << 10, "fits in what the device gives");

/* The part of a row that a block has. */
struct part {
    const int32_t *list;
    uint32_t row, begin, end, n_tiles;
    uint32_t split, split_tiles; /* the first split, and how many tiles each has */
};

#if WGMMA_HERE

static __device__ __forceinline__ float exp2_of(float x)
{
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}
static __device__ __forceinline__ uint32_t f16_times(uint32_t a, uint32_t b)
{
#ifdef __CUDACC__
    uint32_t c;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
#else
    return f16_two(f16_value((uint16_t)a) * f16_value((uint16_t)b),
                   f16_value((uint16_t)(a >> 16)) * f16_value((uint16_t)(b >> 16)));
#endif
}

/* Eight codes times their scale. */
static __device__ __forceinline__ void store_codes(unsigned char *to, uint32_t first, uint32_t last,
                                                   uint32_t scale)
{
    uint32_t wide[4];
    e4m3_four_f16(wide, first);
    e4m3_four_f16(wide + 2, last);
    *(uint4 *)to = uint4{f16_times(wide[0], scale), f16_times(wide[1], scale),
                         f16_times(wide[2], scale), f16_times(wide[3], scale)};
}

/* Two bf16 as two f16. */
static __device__ __forceinline__ uint32_t f16_of_bf16(uint32_t two)
{
    return f16_two(__uint_as_float(two << 16), __uint_as_float(two & 0xFFFF0000u));
}

/* Records' places count 16 bytes; NOWHERE: behind the end, zeros. */
static const uint32_t NOWHERE = 0xFFFFFFFFu;

struct bringer {
    const unsigned char *plane;
    const uint32_t *page; /* of the row's sequence */
    struct part p;
};

/* The position of a tile's record, and its place. */
static __device__ __forceinline__ int32_t position_of(const struct bringer &b, uint32_t tile,
                                                      uint32_t record)
{
    uint32_t t = b.p.begin + tile * TILE + record;
    if (t >= b.p.end)
        return -1;
    return b.p.list ? b.p.list[t] : (int32_t)t;
}
static __device__ __forceinline__ uint32_t page_at(const struct bringer &b, int32_t pos)
{
    return pos < 0 ? 0 : b.page[(uint32_t)pos / KV_PAGE_TOKENS];
}
static __device__ __forceinline__ uint32_t place_in(uint32_t page, int32_t pos)
{
    return pos < 0 ? NOWHERE
                   : page * (KV_PAGE_TOKENS * RECORD / 16) +
                         (uint32_t)pos % KV_PAGE_TOKENS * (RECORD / 16);
}
static __device__ __forceinline__ uint32_t place_of(const struct bringer &b, int32_t pos)
{
    return place_in(page_at(b, pos), pos);
}
static __device__ __forceinline__ uint4 load_chunk(const struct bringer &b, uint32_t place,
                                                   uint32_t chunk)
{
    uint4 none = {0, 0, 0, 0};
    return place == NOWHERE ? none : *(const uint4 *)(b.plane + 16 * ((size_t)place + chunk));
}

/* What a lane has of a tile on its way: 16 codes of each of its warp's records w, w + 8 ..., 8
 * values of every fourth one's key, and a scale of the (lane / 4)th. */
struct tile_part {
    uint4 code[PER_WARP], key[ROPE_LOADS];
    float scale;
};
static_assert(PER_WARP == 8, "the scales of a warp's records are one a lane");

/* place: of the warp's records. All loads start before anything waits for one. */
static __device__ __forceinline__ void load_part(const struct bringer &b, const uint32_t *place,
                                                 struct tile_part &t)
{
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < PER_WARP; i++)
        t.code[i] = load_chunk(b, place[i], lane);
#pragma unroll
    for (int i = 0; i < ROPE_LOADS; i++)
        t.key[i] = load_chunk(b, place[4 * i + lane / 8], LATENT / 16 + 1 + lane % 8);
    uint32_t from = place[lane / 4];
    t.scale = from == NOWHERE
                  ? 0.0f
                  : *(const float *)(b.plane + 16 * (size_t)from + LATENT + lane % 4 * 4);
}

static __device__ __forceinline__ void store_part(const struct tile_part &t, unsigned char *tile)
{
    uint32_t warp = threadIdx.x / 32 % BRINGERS, lane = threadIdx.x % 32;
    bool odd = lane & 4; /* which half goes first, so that eight lanes meet all banks */
    uint32_t half = f16_two(t.scale, t.scale);
    /* The lane's 64 values; records 8 further: 8 rows further. */
    unsigned char *block = tile + lane / 4 * WGMMA_BLOCK;
    uint32_t at = wgmma_at(warp, lane % 4 * 32 + (odd ? 16 : 0));
#pragma unroll
    for (int i = 0; i < PER_WARP; i++) {
        uint32_t f = __shfl_sync(WARP_ALL, half, i * 4 + (int)lane / 8);
        unsigned char *to = block + i * 8 * WGMMA_ROW;
        store_codes(to + at, odd ? t.code[i].z : t.code[i].x, odd ? t.code[i].w : t.code[i].y, f);
        store_codes(to + (at ^ 16u), odd ? t.code[i].x : t.code[i].z,
                    odd ? t.code[i].y : t.code[i].w, f);
    }
    block = tile + KEYS * WGMMA_BLOCK + wgmma_at(lane / 8 * 8 + warp, lane % 8 * 16);
#pragma unroll
    for (int i = 0; i < ROPE_LOADS; i++)
        *(uint4 *)(block + i * 32 * WGMMA_ROW) =
            uint4{f16_of_bf16(t.key[i].x), f16_of_bf16(t.key[i].y), f16_of_bf16(t.key[i].z),
                  f16_of_bf16(t.key[i].w)};
}

/* Some of a record's lines on their way to the second-level cache: 656 bytes from a multiple of 16
 * touch 6 lines of 128 at most. place: of record lane % 8, so each quarter of the warp has two. */
static __device__ __forceinline__ void fetch_ahead(const struct bringer &b, uint32_t place)
{
    if (place == NOWHERE)
        return;
    const unsigned char *from = b.plane + 16 * (size_t)place,
                        *line = from - ((size_t)from & 127) + threadIdx.x % 32 / 8 * 128;
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (line + i * 512 < from + RECORD)
            cache_ahead(line + i * 512);
}

/* The last two warpgroups. A tile's loads start when the one before has gone to shared memory, all
 * at once (one by one they would wait for each other: a warp has few scoreboards), and arrive while
 * the others work; one tile earlier its lines were asked for, so that the loads find them near.
 *
 * Where the records lie is looked up LOT tiles at a time, each step (position, page, place) in
 * another tile's turn, so that nothing waits for it: two lots ahead of the one that is brought. */
static __device__ __forceinline__ void bring_tiles(const struct bringer &b, struct wide_shared &x)
{
    uint32_t me = threadIdx.x % (2 * WARPGROUP), warp = me / 32, lane = me % 32;
    uint32_t tile = me / TILE, record = me % TILE; /* that this thread looks up in each lot */
    auto keep = [&](uint32_t lot, uint32_t place) {
        x.place[lot % LOTS * LOT + tile][record % BRINGERS][record / BRINGERS] = place;
    };
    auto places = [&](uint32_t j) { return x.place[j % (LOTS * LOT)][warp]; };
    int32_t pos[2];
#pragma unroll
    for (uint32_t k = 0; k < 2; k++)
        pos[k] = position_of(b, k * LOT + tile, record);
#pragma unroll
    for (uint32_t k = 0; k < 2; k++)
        keep(k, place_of(b, pos[k]));
    meet_wait(MEET_BRINGERS, 2 * WARPGROUP);
    struct tile_part t;
    uint32_t page = 0;
    load_part(b, places(0), t);
    fetch_ahead(b, places(1)[lane % 8]);
    for (uint32_t j = 0; j < b.p.n_tiles; j++) {
        uint32_t lot = j / LOT + 2, turn = j % LOT;
        if (turn == 0)
            pos[0] = position_of(b, lot * LOT + tile, record);
        else if (turn == 1)
            page = page_at(b, pos[0]);
        else if (turn == 2)
            keep(lot, place_in(page, pos[0]));
        if (j >= 2)
            meet_wait(MEET_EMPTY + j % 2, THREADS);
        store_part(t, x.tile[j % 2]);
        shared_written();
        meet_tell(MEET_FULL + j % 2, BOTH + WARPGROUP);
        load_part(b, places(j + 1), t);
        fetch_ahead(b, places(j + 2)[lane % 8]);
    }
}

/* Queries as f16: a warp of the first eight has every eighth head. */
static __device__ void load_queries(const struct attend_args &a, uint32_t i, uint32_t head0,
                                    struct wide_shared &x)
{
    enum { PAIRS = WIDTH / 2 / 32, AT_ONCE = 4 };
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (uint32_t h0 = warp; h0 < HEADS; h0 += 8 * AT_ONCE) {
        float2 v[AT_ONCE][PAIRS];
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) {
            uint32_t head = head0 + h0 + 8 * k;
            const float *from = a.q + ((size_t)i * a.heads + head) * WIDTH;
#pragma unroll
            for (uint32_t c = 0; c < PAIRS; c++) {
                float2 none = {0.0f, 0.0f};
                v[k][c] = head < a.heads ? *(const float2 *)(from + 2 * (32 * c + lane)) : none;
            }
        }
#pragma unroll
        for (uint32_t k = 0; k < AT_ONCE; k++) {
            uint32_t h = h0 + 8 * k;
            float most = 0.0f;
#pragma unroll
            for (uint32_t c = 0; c < PAIRS; c++)
                most = fmaxf(most, fmaxf(fabsf(v[k][c].x), fabsf(v[k][c].y)));
            float f = f16_row_scale(warp_max(most));
#pragma unroll
            for (uint32_t c = 0; c < PAIRS; c++)
                *(uint32_t *)(x.q + c * WGMMA_BLOCK + wgmma_at(h, 4 * lane)) =
                    f16_two(v[k][c].x * f, v[k][c].y * f);
            if (lane == 0) {
                x.unit[h] = a.scale * 1.4426950408889634f / f;
                x.max[h] = -INFINITY;
            }
        }
    }
    shared_written();
}

/* A tile's scores, in registers, become weights in the place of its keys; the factors that they
 * bring to what was summed before are noted, and the row sums of this thread's columns kept. */
static __device__ __forceinline__ void make_weights(float (&s)[TILE / 2], struct wide_shared &x,
                                                    uint32_t stage, uint32_t n_tile,
                                                    float (&sum)[2], float (&shrink)[2])
{
    uint32_t warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, t = lane % 4;
    unsigned char *to = x.tile[stage] + KEYS * WGMMA_BLOCK;
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        uint32_t head = 16 * warp + lane / 4 + 8 * r;
        float unit = x.unit[head], before = x.max[head], top = -INFINITY, all = 0.0f;
#pragma unroll
        for (uint32_t c = 0; c < TILE / 4; c++) {
            float &v = s[c / 2 * 4 + 2 * r + c % 2];
            v = c / 2 * 8 + 2 * t + c % 2 < n_tile ? v : -INFINITY;
            top = fmaxf(top, v);
        }
        top = fmaxf(top, __shfl_xor_sync(WARP_ALL, top, 1));
        top = fmaxf(top, __shfl_xor_sync(WARP_ALL, top, 2)) * unit;
        top = fmaxf(top, before);
        shrink[r] = exp2_of(before - top);
#pragma unroll
        for (uint32_t j = 0; j < TILE / 8; j++) {
            float u = exp2_of(fmaf(s[4 * j + 2 * r], unit, -top));
            float v = exp2_of(fmaf(s[4 * j + 2 * r + 1], unit, -top));
            all += u + v;
            *(uint32_t *)(to + wgmma_at(head, 16 * j + 4 * t)) = f16_two(u, v);
        }
        sum[r] = fmaf(sum[r], shrink[r], all);
        __syncwarp(); /* all four lanes have read the maximum */
        if (t == 0) {
            x.max[head] = top;
            x.shrink[stage][head] = shrink[r];
        }
    }
    shared_written();
}

static __device__ __forceinline__ void shrink_sums(float (&z)[SUMS], const float (&by)[2])
{
    if (!__ballot_sync(WARP_ALL, by[0] != 1.0f || by[1] != 1.0f))
        return;
#pragma unroll
    for (int i = 0; i < SUMS; i++)
        z[i] *= by[i / 2 % 2];
}

/* Warpgroup W's part of the sums of a tile whose weights are there. */
template <int W> static __device__ __forceinline__ void add_tile(float (&z)[SUMS], uint32_t stage)
{
    uint64_t weight = wgmma_tile(stage + KEYS * WGMMA_BLOCK, 0);
    uint64_t value = wgmma_tile(stage + 4 * W * WGMMA_BLOCK, WGMMA_BLOCK);
    wgmma_pin(z);
    wgmma_open();
#pragma unroll
    for (uint32_t k = 0; k < TILE / 16; k++) { /* no product has more sums than registers begin */
        uint64_t from = value + (16 * WGMMA_ROW >> 4) * k;
        wgmma_across<SUMS, 0>(z, weight + 2 * k, from);
        wgmma_across<SUMS, SUMS / 2>(z, weight + 2 * k, from + (2 * WGMMA_BLOCK >> 4));
    }
    wgmma_close();
}
static __device__ __forceinline__ void make_scores(float (&s)[TILE / 2], uint32_t q, uint32_t stage)
{
    uint64_t query = wgmma_tile(q, 0), key = wgmma_tile(stage, 0);
    wgmma_pin(s);
    wgmma_open();
#pragma unroll
    for (uint32_t b = 0; b < BLOCKS; b++)
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            uint32_t further = (b * WGMMA_BLOCK >> 4) + 2 * k;
            if (b || k)
                wgmma<WGMMA_F16, WGMMA_ADD>(s, query + further, key + further);
            else
                wgmma<WGMMA_F16, WGMMA_OVER>(s, query + further, key + further);
        }
    wgmma_close();
}

/* A split's mean, in f16, its sum and its maximum; the maximum starts anew. In a split of one tile
 * the first warpgroup never waits for the second, which may still read the sums of the split
 * before: they lie elsewhere. It cannot be two splits ahead, since both meet here in each. */
template <int W>
static __device__ __forceinline__ void leave_split(const struct attend_args &a, uint32_t i,
                                                   uint32_t head0, uint32_t split,
                                                   const float (&z)[SUMS], float (&sum)[2],
                                                   struct wide_shared &x)
{
    uint32_t warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, t = lane % 4;
    uint32_t h = 16 * warp + lane / 4; /* and h + 8 */
    float(&both)[2][HEADS] = x.sum[split % 2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(WARP_ALL, sum[r], 1);
        sum[r] += __shfl_xor_sync(WARP_ALL, sum[r], 2);
        if (t == 0)
            both[W][h + 8 * r] = sum[r];
    }
    meet_wait(MEET_BOTH, BOTH);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        uint32_t head = head0 + h + 8 * r;
        if (head >= a.heads)
            continue;
        size_t at = ((size_t)i * a.heads + head) * SPLITS + split;
        float all = both[0][h + 8 * r] + both[1][h + 8 * r], per = 1.0f / all;
        if (W == 0 && t == 0) {
            a.sum[at] = all;
            a.max[at] = x.max[h + 8 * r] * 0.6931471805599453f;
        }
        uint4 *to = (uint4 *)a.z + (at * LATENT + 256 * W) / 8 + t;
#pragma unroll
        for (int j = 0; j < SUMS / 4; j += 4) { /* mean_place() */
            uint32_t two[4];
#pragma unroll
            for (int c = 0; c < 4; c++)
                two[c] = f16_two(z[4 * (j + c) + 2 * r] * per, z[4 * (j + c) + 2 * r + 1] * per);
            to[j] = uint4{two[0], two[1], two[2], two[3]};
        }
    }
    if (W == 0 && t == 0)
        x.max[h] = x.max[h + 8] = -INFINITY;
    __syncwarp();
}

/* Warpgroup W of the first two: the tiles [from, to) of the block. */
template <int W>
static __device__ __forceinline__ void sum_split(const struct part &p, uint32_t from, uint32_t to,
                                                 float (&z)[SUMS], float (&s)[TILE / 2],
                                                 float (&sum)[2], struct wide_shared &x)
{
    uint32_t warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    uint32_t h = 16 * warp + lane / 4; /* and h + 8 */
    uint32_t q = shared_address(x.q),
             stage[2] = {shared_address(x.tile[0]), shared_address(x.tile[1])};
    float own[2], other[2];
#pragma unroll
    for (int k = 0; k < SUMS; k++)
        z[k] = 0.0f;
    sum[0] = sum[1] = 0.0f;
    for (uint32_t j = from; j < to; j += 2) {
        bool two = j + 1 < to, more[2] = {j + 2 < p.n_tiles, j + 3 < p.n_tiles};
        uint32_t t0 = p.begin + (j + W) * TILE;
        if (W == 0 || two) {
            meet_wait(MEET_FULL + W, BOTH + WARPGROUP);
            make_scores(s, q, stage[W]);
        }
        if (W == 1) {
            meet_wait(MEET_WEIGHTS, BOTH);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                other[r] = x.shrink[0][h + 8 * r];
                sum[r] *= other[r];
            }
        }
        if (W == 0 || two) {
            wgmma_wait<0>();
            wgmma_pin(s);
            make_weights(s, x, W, p.end - t0, sum, own);
            meet_wait(MEET_GROUP + W, WARPGROUP);
            meet_tell(MEET_WEIGHTS + W, BOTH);
        }
        shrink_sums(z, W == 0 ? own : other);
        add_tile<W>(z, stage[0]);
        if (W == 0 && two) {
            meet_wait(MEET_WEIGHTS + 1, BOTH);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                other[r] = x.shrink[1][h + 8 * r];
                sum[r] *= other[r];
            }
        }
        wgmma_wait<0>();
        wgmma_pin(z);
        if (more[0])
            meet_tell(MEET_EMPTY, THREADS);
        if (!two)
            break;
        shrink_sums(z, W == 0 ? other : own);
        add_tile<W>(z, stage[1]);
        wgmma_wait<0>();
        wgmma_pin(z);
        if (more[1])
            meet_tell(MEET_EMPTY + 1, THREADS);
    }
}

template <int W>
static __device__ __forceinline__ void sum_tiles(const struct attend_args &a, const struct part &p,
                                                 uint32_t i, uint32_t head0, struct wide_shared &x)
{
    float z[SUMS], s[TILE / 2], sum[2];
#pragma unroll
    for (int k = 0; k < TILE / 2; k++)
        s[k] = 0.0f;
    for (uint32_t from = 0, split = p.split; from < p.n_tiles; from += p.split_tiles, split++) {
        uint32_t to = from + p.split_tiles < p.n_tiles ? from + p.split_tiles : p.n_tiles;
        sum_split<W>(p, from, to, z, s, sum, x);
        leave_split<W>(a, i, head0, split, z, sum, x);
    }
}

static __device__ __forceinline__ void wide_block(const struct attend_args &a,
                                                  unsigned char *shared)
{
    struct wide_shared &x = *(struct wide_shared *)(shared + (-shared_address(shared) & 1023u));
    struct part p;
    uint32_t i = blockIdx.z, head0 = blockIdx.y * HEADS;
    uint32_t group = __shfl_sync(WARP_ALL, threadIdx.x / WARPGROUP, 0); /* one for the warp */
    p.row = a.row0 + i;
    uint32_t n = row_length(a, p.row, &p.list), each = split_length(a, n);
    p.split = blockIdx.x * a.splits;
    p.split_tiles = each / TILE;
    p.begin = p.split * each;
    p.end = p.begin + a.splits * each < n ? p.begin + a.splits * each : n;
    if (p.begin >= n)
        return;
    p.n_tiles = (p.end - p.begin + TILE - 1) / TILE;
    if (group >= 2) {
        registers_lower<56>();
        struct bringer b = {a.plane, a.view.page + a.view.seq[a.view.seq_of[p.row]].page0, p};
        bring_tiles(b, x);
    } else {
        registers_raise<200>();
        load_queries(a, i, head0, x);
        meet_wait(MEET_BOTH, BOTH);
        if (group == 0)
            sum_tiles<0>(a, p, i, head0, x);
        else
            sum_tiles<1>(a, p, i, head0, x);
    }
}
#endif

static __global__ void __launch_bounds__(THREADS, 1) wide_kernel(struct attend_args a)
{
#if WGMMA_HERE
    DYNAMIC_SHARED(unsigned char, shared);
    wide_block(a, shared);
#endif
}

bool cuda_attend_wide_fits(const struct cuda_backend *b)
{
    const struct model_config *c = b->ops.cfg;
    return b->fast && (b->hopper || b->dry) && b->ops.limits.latent == LATENT_FP8 &&
           c->kv_lora_rank == LATENT && c->rope_dim == ROPE && c->n_heads >= LEAST_HEADS;
}

enum err_code cuda_attend_wide_init(struct err *e)
{
    cudaError_t code =
        cudaFuncSetAttribute(wide_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)sizeof(struct wide_shared) + 1024);
    return code == cudaSuccess ? ERR_OK
                               : err_set(e, ERR_CUDA, "attention: %s", cudaGetErrorString(code));
}

/* How many of a row's splits a block takes: all, while there are blocks for the whole device;
 * queries are read once, and a split's first records come while the one before is summed. What a
 * split leaves does not hang on it. */
static uint32_t splits_of_block(uint32_t n_splits, size_t blocks)
{
    uint32_t splits = n_splits;
    while (splits > 1 && blocks * parts_of(n_splits, splits) < ATTEND_FILL_BLOCKS)
        splits = (splits + 1) / 2;
    return splits;
}

void cuda_attend_wide(cudaStream_t s, const struct attend_args &from, uint32_t n_splits)
{
    struct attend_args a = from;
    uint32_t heads = parts_of(a.heads, HEADS);
    a.splits = splits_of_block(n_splits, (size_t)heads * a.n);
    dim3 grid(parts_of(n_splits, a.splits), heads, a.n);
    CUDA_LAUNCH(wide_kernel, grid, THREADS, sizeof(struct wide_shared) + 1024, s, a);
}
