/* test_kernels.c - every kernel of every table this CPU has, against plain double-precision loops.
 *
 * Tolerances: a sum of n products of magnitude m in fp32 is off by at most about n ulp of the sum
 * of magnitudes; sums here are compared relative to that sum, which bounds any order of adding.
 */
#include "cpu/fp8.h"
#include "cpu/kernels.h"
#include "test.h"

#include <math.h>

static const char *const TABLES[] = {"portable", "avx2", "avx512"};
enum { N_TABLES = 3 };
static const uint32_t SIZES[] = {1, 31, 32, 33, 127, 128, 129, 160, 192, 255, 257, 576};
enum { N_SIZES = sizeof SIZES / sizeof *SIZES };

/* Exactly as large as asked, so that a sanitizer sees a read beyond. */
static void *room(size_t bytes)
{
    void *p = malloc(bytes ? bytes : 1);
    CHECK(p);
    return p;
}

static float *random_f32(struct rng *r, size_t n)
{
    float *x = room(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = rng_normal(r);
    return x;
}

static uint16_t *random_bf16(struct rng *r, size_t n)
{
    uint16_t *x = room(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = bf16_round(rng_normal(r));
    return x;
}

/* f16 of magnitudes from denormal to some hundreds */
static uint16_t *random_f16(struct rng *r, size_t n)
{
    uint16_t *x = room(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (uint16_t)((rng_next(r) & 0x83FFu) | rng_below(r, 24) << 10);
    return x;
}

static uint8_t *random_fp8(struct rng *r, size_t n)
{
    uint8_t *x = room(n);
    for (size_t i = 0; i < n; i++)
        do
            x[i] = (uint8_t)rng_below(r, 256);
        while ((x[i] & 0x7F) == 0x7F);
    return x;
}

static const struct kernels *table(int t)
{
    return kernels_by_name(TABLES[t]);
}

/* ---- scalar formats ---- */

/* Goal: narrowing picks the nearest value of the format, the even code on ties; widening undoes it.
 */
TEST(formats_scalar)
{
    for (uint32_t c = 0; c < 256; c++) {
        float v = e4m3_value((uint8_t)c);
        CHECK(f32_bits(v) == f32_bits(e4m3_table[c]) || isnan(v));
        CHECK(isnan(v) == ((c & 0x7F) == 0x7F) && isnan(v) == isnan(e4m3_table[c]));
        if (!isnan(v)) {
            int e = (int)(c >> 3 & 15), m = (int)(c & 7);
            double want = e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
            CHECK((double)v == (c & 0x80 ? -want : want));
            CHECK_MSG(e4m3_round(v) == c, "code %u", c);
        }
    }
    for (uint32_t c = 0; c < 0x7E; c++) { /* between neighbours: below, at and above the middle */
        float a = e4m3_value((uint8_t)c), b = e4m3_value((uint8_t)(c + 1)), mid = (a + b) / 2;
        CHECK(e4m3_round(nextafterf(mid, a)) == c);
        CHECK(e4m3_round(mid) == (c & 1 ? c + 1 : c));
        CHECK(e4m3_round(nextafterf(mid, b)) == c + 1);
        CHECK(e4m3_round(-mid) == (0x80 | (c & 1 ? c + 1 : c)));
    }
    CHECK(e4m3_round(448.0f) == 0x7E && e4m3_round(460.0f) == 0x7E && e4m3_round(INFINITY) == 0x7E);
    CHECK(e4m3_round(-INFINITY) == 0xFE && (e4m3_round(NAN) & 0x7F) == 0x7F);
    CHECK(e4m3_round(0.0019531f) == 1 && e4m3_round(17.0f) == e4m3_round(16.0f));
    CHECK(e4m3_round(19.0f) == e4m3_round(20.0f) && e4m3_round(1e-30f) == 0);

    CHECK(bf16_round(1.0f) == 0x3F80 && bf16_round(f32_from_bits(0x3F808000)) == 0x3F80);
    CHECK(bf16_round(f32_from_bits(0x3F818000)) == 0x3F82 &&
          bf16_round(f32_from_bits(0x3F808001)) == 0x3F81);
    CHECK(bf16_round(f32_from_bits(0x7F7FFFFF)) == 0x7F80 && isnan(bf16_value(bf16_round(NAN))));
    CHECK(isnan(bf16_value(bf16_round(f32_from_bits(0x7F800001)))));
    CHECK(bf16_round(f32_from_bits(0x00008001)) == 1 && bf16_round(f32_from_bits(0x00008000)) == 0);

    for (uint32_t h = 0; h < 65536; h++) {
        int e = (int)(h >> 10 & 31), m = (int)(h & 1023);
        float v = f16_value((uint16_t)h);
        if (e == 31) {
            CHECK(m ? isnan(v) : isinf(v));
            continue;
        }
        double want = e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);
        CHECK((double)v == (h & 0x8000 ? -want : want));
    }

    CHECK(ue8m0_scale(448.0f) == 1.0f && ue8m0_scale(nextafterf(448.0f, 500.0f)) == 2.0f);
    CHECK(ue8m0_scale(1.0f) == 0.00390625f && ue8m0_scale(0.0f) == 0x1p-22f);
    float x[3] = {1.0f, -0.5f, 0.25f};
    uint8_t q[3];
    CHECK(e4m3_quantise(x, 3, q) == 0.00390625f && e4m3_value(q[0]) == 256.0f);
    CHECK(e4m3_value(q[1]) == -128.0f && e4m3_value(q[2]) == 64.0f);
}

/* hi + lo is x up to 2^-16 of it (half a unit of lo's last place, 2^-9 of at most 2^-8 x; below
 * 2^-126 lo's denormals leave 2^-134), and hi is x rounded. */
static void check_split(const struct kernels *k, const float *x, size_t n)
{
    uint16_t hi[256], lo[256];
    CHECK(n <= 256);
    k->split_bf16(x, hi, lo, n);
    for (size_t i = 0; i < n; i++) {
        CHECK(hi[i] == bf16_round(x[i]));
        if (!isfinite(bf16_value(hi[i]))) {
            CHECK(lo[i] == 0);
            continue;
        }
        double sum = (double)bf16_value(hi[i]) + (double)bf16_value(lo[i]);
        CHECK(fabs(sum - (double)x[i]) <= fabs((double)x[i]) * 0x1p-16 + 0x1p-133);
    }
}

/* Goal: the tables' conversions give the scalar ones' bits, for odd lengths, NaN, infinity,
 * denormals. */
TEST(conversions)
{
    struct rng r = {test_seed()};
    for (int t = 0; t < N_TABLES; t++) {
        const struct kernels *k = table(t);
        for (uint32_t n = 0; k && n < 70; n++) {
            float *x = room(n * 4), *y = room(n * 4);
            uint16_t *h = room(n * 2);
            for (uint32_t i = 0; i < n; i++)
                x[i] = f32_from_bits((uint32_t)rng_next(&r) & (i % 5 ? ~0u : 0x807FFFFFu));
            if (k->split_bf16)
                check_split(k, x, n);
            k->f32_to_bf16(x, h, n);
            for (uint32_t i = 0; i < n; i++)
                CHECK(h[i] == bf16_round(x[i]));
            k->bf16_to_f32(h, y, n);
            for (uint32_t i = 0; i < n; i++)
                CHECK(f32_bits(y[i]) == (uint32_t)h[i] << 16);
            free(x);
            free(y);
            free(h);
        }
        for (uint32_t first = 0; k && first < 256;
             first++) { /* all codes at all places of a vector */
            uint8_t code[67];
            float y[67];
            for (uint32_t i = 0; i < 67; i++)
                code[i] = (uint8_t)(first + i);
            k->fp8_to_f32(code, 0.5f, y, 67);
            for (uint32_t i = 0; i < 67; i++) {
                float want = e4m3_value(code[i]) * 0.5f;
                CHECK(isnan(want) ? isnan(y[i]) : f32_bits(y[i]) == f32_bits(want));
            }
        }
    }
}

/* ---- products ---- */

enum wkind { W_F32, W_BF16, W_F16, W_FP8, N_WKINDS };

struct product {
    enum wkind kind;
    bool split;
    uint32_t j0, n_out, n_in, n;
    size_t ldx, ldy;
    void *w, *x;
    float *scale;
    size_t scale_stride;
};

static void call(const struct kernels *k, const struct product *p, uint32_t out0, uint32_t n_out,
                 uint32_t x0, uint32_t n, float *y, size_t ldy, bool add)
{
    size_t first = (size_t)out0 * p->n_in;
    const float *xf = (const float *)p->x + x0 * p->ldx;
    const uint16_t *xh = (const uint16_t *)p->x + x0 * p->ldx;
    switch (p->kind) {
    case W_F32:
        k->gemm_f32_f32((float *)p->w + first, n_out, p->n_in, xf, p->ldx, n, y, ldy, add);
        break;
    case W_F16:
        k->gemm_f16_f32((uint16_t *)p->w + first, n_out, p->n_in, xf, p->ldx, n, y, ldy, add);
        break;
    case W_BF16:
        if (p->split)
            k->gemm_bf16_split((uint16_t *)p->w + first, n_out, p->n_in, xh, p->ldx, n, y, ldy,
                               add);
        else
            k->gemm_bf16_f32((uint16_t *)p->w + first, n_out, p->n_in, xf, p->ldx, n, y, ldy, add);
        break;
    default:
        if (p->split)
            k->gemm_fp8_split((uint8_t *)p->w + first, p->j0 + out0, n_out, p->n_in, p->scale,
                              p->scale_stride, xh, p->ldx, n, y, ldy, add);
        else
            k->gemm_fp8_f32((uint8_t *)p->w + first, p->j0 + out0, n_out, p->n_in, p->scale,
                            p->scale_stride, xf, p->ldx, n, y, ldy, add);
    }
}

static struct product make(struct rng *r, enum wkind kind, bool split, uint32_t n_out,
                           uint32_t n_in, uint32_t n)
{
    struct product p = {
        kind, split, rng_below(r, 200), n_out, n_in, n, (split ? 2 : 1) * n_in + 3, n_out + 5, 0,
        0,    0,     (n_in + 127) / 128};
    size_t n_w = (size_t)n_out * n_in, n_x = n * p.ldx;
    p.w = kind == W_F32    ? (void *)random_f32(r, n_w)
          : kind == W_BF16 ? (void *)random_bf16(r, n_w)
          : kind == W_F16  ? (void *)random_f16(r, n_w)
                           : (void *)random_fp8(r, n_w);
    p.x = split ? (void *)random_bf16(r, n_x) : (void *)random_f32(r, n_x);
    size_t n_scale = ((p.j0 + n_out + 127) / 128) * p.scale_stride;
    p.scale = random_f32(r, n_scale);
    return p;
}

/* Tables of machines that multiply no bf16 take fp32 rows alone. */
static bool splits(const struct kernels *k, bool wanted)
{
    return wanted && k->gemm_bf16_split;
}

static void unmake(struct product *p)
{
    free(p->w);
    free(p->x);
    free(p->scale);
}

static double w_at(const struct product *p, uint32_t j, uint32_t k)
{
    size_t at = (size_t)j * p->n_in + k;
    switch (p->kind) {
    case W_F32:
        return (double)((float *)p->w)[at];
    case W_F16:
        return (double)f16_value(((uint16_t *)p->w)[at]);
    case W_BF16:
        return (double)bf16_value(((uint16_t *)p->w)[at]);
    default:
        return (double)e4m3_value(((uint8_t *)p->w)[at]) *
               (double)p->scale[(p->j0 + j) / 128 * p->scale_stride + k / 128];
    }
}

static void check_product(const struct kernels *t, const struct product *p, const float *y,
                          const float *was)
{
    for (uint32_t i = 0; i < p->n; i++) {
        for (uint32_t j = 0; j < p->n_out; j++) {
            double sum = was ? (double)was[i * p->ldy + j] : 0.0, size = fabs(sum);
            for (uint32_t k = 0; k < p->n_in; k++) {
                size_t at = i * p->ldx + k;
                const uint16_t *hi = (const uint16_t *)p->x + at;
                double x = p->split ? (double)bf16_value(hi[0]) + (double)bf16_value(hi[p->n_in])
                                    : (double)((float *)p->x)[at];
                sum += w_at(p, j, k) * x;
                size += fabs(w_at(p, j, k) * x);
            }
            /* 2^-24 for each of at most n_in / 8 additions in a lane, and the tree's few; f16
             * weights may be so small that 1e-30 of slack is all that is left of a product */
            double limit = size * (p->n_in / 8.0 + 16) * 0x1p-23 + 1e-30;
            CHECK_MSG(fabs((double)y[i * p->ldy + j] - sum) <= limit,
                      "%s kind %d split %d [%u, %u] n %u: y[%u][%u] is %g, not %g", t->name,
                      p->kind, p->split, p->n_out, p->n_in, p->n, i, j, (double)y[i * p->ldy + j],
                      sum);
        }
    }
}

/* Goal: right sums for every size of row, tile edge and stride, plain and adding, gaps left alone.
 */
TEST_LIMIT(products_against_double, 60)
{
    struct rng r = {test_seed()};
    static const uint32_t N[] = {1, 2, 3, 4, 5, 6, 7, 13};
    for (int t = 0; t < N_TABLES; t++) {
        for (uint32_t s = 0; table(t) && s < N_SIZES * 6; s++) {
            enum wkind kind = (enum wkind)(s % 6 < 4 ? s % 6 : s % 6 == 4 ? W_BF16 : W_FP8);
            uint32_t n_out = 1 + rng_below(&r, 21), n = N[rng_below(&r, 8)];
            struct product p = make(&r, kind, splits(table(t), s % 6 >= 4), n_out, SIZES[s / 6], n);
            size_t n_y = (n - 1) * p.ldy + n_out;
            float *y = random_f32(&r, n_y), *was = room(n_y * 4);
            memcpy(was, y, n_y * 4);
            call(table(t), &p, 0, n_out, 0, n, y, p.ldy, true);
            check_product(table(t), &p, y, was);
            for (uint32_t i = 0; i + 1 < n; i++)
                for (size_t j = n_out; j < p.ldy; j++)
                    CHECK(y[i * p.ldy + j] == was[i * p.ldy + j]);
            call(table(t), &p, 0, n_out, 0, n, y, p.ldy, false);
            check_product(table(t), &p, y, NULL);
            free(y);
            free(was);
            unmake(&p);
        }
    }
}

/* Goal:   an output's bits depend on its row of W and its row of x alone.
 * Method: all of 64 rows at once, then the same in random parts of rows and columns. */
TEST_LIMIT(products_same_bits_in_any_parts, 60)
{
    struct rng r = {test_seed()};
    enum { N = 64 };
    for (int t = 0; t < N_TABLES; t++) {
        for (uint32_t s = 0; table(t) && s < N_SIZES * 6; s++) {
            enum wkind kind = (enum wkind)(s % 6 < 4 ? s % 6 : s % 6 == 4 ? W_BF16 : W_FP8);
            uint32_t n_out = 30 + rng_below(&r, 9);
            struct product p = make(&r, kind, splits(table(t), s % 6 >= 4), n_out, SIZES[s / 6], N);
            float *whole = room(N * p.ldy * 4), *part = room(N * p.ldy * 4);
            call(table(t), &p, 0, n_out, 0, N, whole, p.ldy, false);
            for (int round = 0; round < 12; round++) {
                uint32_t most_x = round < 4 ? 1 : 17, most_w = 1 + rng_below(&r, n_out);
                for (uint32_t i = 0, n; i < N; i += n) {
                    n = 1 + rng_below(&r, most_x);
                    n = n < N - i ? n : N - i;
                    for (uint32_t j = 0, m; j < n_out; j += m) {
                        m = 1 + rng_below(&r, most_w);
                        m = m < n_out - j ? m : n_out - j;
                        call(table(t), &p, j, m, i, n, part + i * p.ldy + j, p.ldy, false);
                    }
                }
                for (uint32_t i = 0; i < N; i++)
                    for (uint32_t j = 0; j < n_out; j++)
                        CHECK_MSG(f32_bits(whole[i * p.ldy + j]) == f32_bits(part[i * p.ldy + j]),
                                  "%s kind %d split %d n_in %u", TABLES[t], kind, p.split, p.n_in);
            }
            free(whole);
            free(part);
            unmake(&p);
        }
    }
}

/* Goal: rows too long for the widened panel, and too many for one block of x, give the same bits as
 * one row at a time. */
TEST_LIMIT(products_long_rows, 60)
{
    struct rng r = {test_seed()};
    for (int t = 0; t < N_TABLES; t++) {
        static const uint32_t LONG[] = {8192, 8191, 8193, 9000};
        for (int s = 0; table(t) && s < 4; s++) {
            for (int bf16 = 0; bf16 < 2; bf16++) {
                struct product p = make(&r, W_FP8, splits(table(t), bf16), 5, LONG[s], 40);
                float *y = room(40 * p.ldy * 4), one[5];
                call(table(t), &p, 0, 5, 0, 40, y, p.ldy, false);
                for (uint32_t i = 0; i < 40; i++) {
                    call(table(t), &p, 0, 5, i, 1, one, 5, false);
                    CHECK(!memcmp(one, y + i * p.ldy, sizeof one));
                }
                free(y);
                unmake(&p);
            }
        }
    }
}

/* ---- vectors ---- */

static void check_near(const char *what, const char *set, double got, double want, double limit)
{
    CHECK_MSG(fabs(got - want) <= limit, "%s %s: %.9g, not %.9g", set, what, got, want);
}

TEST(vectors_against_double)
{
    struct rng r = {test_seed()};
    for (int t = 0; t < N_TABLES; t++) {
        const struct kernels *k = table(t);
        for (uint32_t s = 0; k && s < N_SIZES; s++) {
            uint32_t n = SIZES[s];
            float *a = random_f32(&r, n), *b = random_f32(&r, n), *y = room(n * 4);
            double squares = 0, max = -1e30;
            for (uint32_t i = 0; i < n; i++) {
                squares += (double)a[i] * (double)a[i];
                max = fmax(max, (double)a[i]);
            }
            check_near("sum_squares", k->name, (double)k->sum_squares(a, n), squares,
                       squares * 1e-5);
            CHECK((double)k->max_f32(a, n) == max);

            memcpy(y, b, n * 4);
            k->axpy_f32(0.7f, a, y, n);
            for (uint32_t i = 0; i < n; i++)
                check_near("axpy", k->name, (double)y[i],
                           (double)b[i] + (double)0.7f * (double)a[i], 1e-6);

            k->silu_mul(a, b, y, n);
            for (uint32_t i = 0; i < n; i++) {
                double want = (double)a[i] / (1 + exp(-(double)a[i])) * (double)b[i];
                check_near("silu_mul", k->name, (double)y[i], want, fabs(want) * 5e-7 + 1e-30);
            }
            memcpy(y, a, n * 4);
            double sum = 0;
            float got = k->softmax_exp(y, (float)max, n);
            for (uint32_t i = 0; i < n; i++) {
                double want = exp((double)(a[i] - (float)max));
                check_near("softmax_exp", k->name, (double)y[i], want, want * 3e-7);
                sum += want;
            }
            check_near("softmax sum", k->name, (double)got, sum, sum * 2e-6);
            free(a);
            free(b);
            free(y);
        }
    }
}

/* Goal: exp holds at the ends: 0 for what is far below, infinity above, NaN for NaN. */
TEST(exp_extremes)
{
    for (int t = 0; t < N_TABLES; t++) {
        const struct kernels *k = table(t);
        if (!k)
            continue;
        float x[20], one = 1.0f;
        static const float AT[] = {0, -INFINITY, -200, -87, -88, -95, -103.9f, 88, NAN, -1e-8f};
        for (int i = 0; i < 20; i++)
            x[i] = AT[i % 10];
        (void)k->softmax_exp(x, 0, 20);
        for (int i = 0; i < 20; i++) {
            double want = exp((double)AT[i % 10]);
            if (isnan(want))
                CHECK(isnan(x[i]));
            else /* a unit of the last place, which for denormals is 2^-149 */
                check_near("exp", k->name, (double)x[i], want, want * 3e-7 + 0x1p-149);
        }
        static const float GATE[] = {-INFINITY, -200, -90, 0, 90, 200, NAN};
        for (int i = 0; i < 7; i++) {
            float y;
            k->silu_mul(&GATE[i], &one, &y, 1);
            if (i == 0 || i == 6)
                CHECK(isnan(y)); /* -inf * 0, as the formula says */
            else
                check_near("silu", k->name, (double)y,
                           (double)GATE[i] / (1 + exp(-(double)GATE[i])),
                           fabs((double)GATE[i]) * 1e-6);
        }
    }
}

/* Goal: GAZE_SIMD picks a table by name, and nothing for a name that does not exist. */
TEST(table_choice)
{
    unsetenv("GAZE_SIMD");
    CHECK(kernels_pick() == (table(2) ? table(2) : table(1) ? table(1) : table(0)));
    setenv("GAZE_SIMD", "portable", 1);
    CHECK(kernels_pick() == table(0) && table(0));
    setenv("GAZE_SIMD", "mmx", 1);
    CHECK(!kernels_pick());
}
