/* dummy.c - weights_dummy(): random weights, for timing and for tests without a checkpoint.
 *
 * A weight's bits are a table look-up by 12 random bits: normal values, rounded to the dtype once
 * per matrix, so that filling runs at the speed of memory. Each parameter's stream starts from the
 * seed and its name: a model cut to fewer layers has the same ones in those it keeps.
 */
#include "model/weights.h"

#include "base/hash.h"
#include "base/rng.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>

enum { TABLE_BITS = 12, TABLE = 1 << TABLE_BITS, PER_WORD = 64 / TABLE_BITS };

struct inventor {
    struct weights_source source; /* first */
    struct weights *w;
    enum dtype dtype;
    uint64_t seed;
    bool shapes;         /* matrices without values */
    float normal[TABLE]; /* mean 0, variance 1, none beyond MOST */
};
#define MOST 4.0f

static uint16_t to_bf16(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16); /* ties to even; f is finite */
}

/* |f| <= 448. A rounded mantissa of 16 carries into the exponent by itself, as the codes are in
 * order. */
static uint8_t to_e4m3(float f)
{
    float a = fabsf(f);
    int exponent = a < 0x1p-6f ? -6 : ilogbf(a);
    int code = (exponent + 7) * 8 + (int)rintf(ldexpf(a, 3 - exponent)) - 8;
    return (uint8_t)(code | (signbit(f) ? 0x80 : 0));
}

/* out[i] = table[random], by the stream that starts at `state`. Written once for both widths: the
 * inner loop must have a fixed length to be fast. */
#define FILL(out, n, table, state)                                                                 \
    do {                                                                                           \
        size_t at = 0;                                                                             \
        for (uint64_t word; at + PER_WORD <= (n); at += PER_WORD) {                                \
            word = hash_mix((state) += 0x9E3779B97F4A7C15u);                                       \
            for (unsigned k = 0; k < PER_WORD; k++)                                                \
                (out)[at + k] = (table)[(word >> (k * TABLE_BITS)) % TABLE];                       \
        }                                                                                          \
        for (uint64_t word = hash_mix((state) + 1); at < (n); at++, word >>= TABLE_BITS)           \
            (out)[at] = (table)[word % TABLE];                                                     \
    } while (0)

static void fill_bf16(uint16_t *out, size_t n, const uint16_t *table, uint64_t state)
{
    FILL(out, n, table, state);
}

static void fill_e4m3(uint8_t *out, size_t n, const uint8_t *table, uint64_t state)
{
    FILL(out, n, table, state);
}

static uint64_t stream_of(const struct inventor *v, const char *name)
{
    return hash_bytes(v->seed, name, strlen(name));
}

/* Memory for a matrix. Taking a page at a time would cost more than filling it. */
static void *big_alloc(struct weights *w, size_t bytes)
{
    enum { HUGE_PAGE = 2 << 20 };
    void *p = weights_alloc(w, bytes);
    uintptr_t begin = ((uintptr_t)p + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
    if (p && (uintptr_t)p + bytes >= begin + HUGE_PAGE) /* only advice */
        (void)madvise((void *)begin, (uintptr_t)p + bytes - begin, MADV_HUGEPAGE);
    return p;
}

static enum err_code invent_matrix(struct weights_source *s, const char *name, enum param_use use,
                                   const struct cut *cut, struct matrix *out, struct err *e)
{
    struct inventor *v = (struct inventor *)s;
    uint32_t n_out = cut->n_rows, n_in = cut->n_columns;
    struct matrix m = {
        .dtype = use == PARAM_PLAIN ? DT_BF16 : v->dtype, .n_out = n_out, .n_in = n_in};
    size_t n = (size_t)n_out * n_in, size = dtype_bytes(m.dtype);
    float std = 1 / sqrtf((float)n_in); /* outputs as large as inputs */
    if (v->shapes) {
        static const float nothing[1024];
        m.data = nothing;
        m.scale = m.dtype == DT_F8_E4M3 ? nothing : NULL;
        *out = m;
        return ERR_OK;
    }
    void *data = big_alloc(v->w, n * size);
    if (!data)
        return err_set(e, ERR_NOMEM, "%s: %zu random weights", name, n);
    m.data = data;
    if (m.dtype == DT_BF16) {
        uint16_t table[TABLE];
        for (int i = 0; i < TABLE; i++)
            table[i] = to_bf16(v->normal[i] * std);
        fill_bf16(data, n, table, stream_of(v, name));
        *out = m;
        return ERR_OK;
    }
    /* The smallest power of two under which the largest value fits e4m3's 448. */
    float unit = ldexpf(1, (int)ceilf(log2f(MOST * std / 448)));
    uint8_t table[TABLE];
    for (int i = 0; i < TABLE; i++)
        table[i] = to_e4m3(v->normal[i] * std / unit);
    fill_e4m3(data, n, table, stream_of(v, name));
    size_t n_scales = ((n_out + (size_t)127) / 128) * ((n_in + (size_t)127) / 128);
    float *scale = weights_alloc(v->w, n_scales * sizeof *scale);
    if (!scale)
        return err_set(e, ERR_NOMEM, "%s: %zu scales", name, n_scales);
    for (size_t i = 0; i < n_scales; i++)
        scale[i] = unit;
    m.scale = scale;
    *out = m;
    return ERR_OK;
}

static enum err_code invent_vector(struct weights_source *s, const char *name, enum param_use use,
                                   uint32_t n, float **out, struct err *e)
{
    struct inventor *v = (struct inventor *)s;
    struct rng r = {stream_of(v, name)};
    float *p = weights_alloc(v->w, n * sizeof *p);
    if (!p)
        return err_set(e, ERR_NOMEM, "%s: %u random values", name, n);
    for (uint32_t i = 0; i < n; i++)
        p[i] = use == PARAM_GAIN ? 1 : 0.01f * v->normal[rng_next(&r) % TABLE];
    *out = p;
    return ERR_OK;
}

enum err_code weights_dummy_share(struct weights **out, const struct model_config *cfg,
                                  const struct rank_share *share, enum dtype dtype, uint64_t seed,
                                  bool shapes, struct err *e)
{
    assert(dtype == DT_BF16 || dtype == DT_F8_E4M3);
    struct inventor v = {
        .source = {invent_matrix, invent_vector}, .dtype = dtype, .seed = seed, .shapes = shapes};
    struct rng r = {seed};
    for (int i = 0; i < TABLE; i++)
        v.normal[i] = fminf(fmaxf(rng_normal(&r), -MOST), MOST);
    if (weights_create(&v.w, cfg, share, e))
        return e->code;
    if (weights_walk(v.w, cfg, share, &v.source, e)) {
        weights_close(v.w);
        return err_prefix(e, "dummy weights");
    }
    *out = v.w;
    return ERR_OK;
}

enum err_code weights_dummy(struct weights **out, const struct model_config *cfg, enum dtype dtype,
                            uint64_t seed, struct err *e)
{
    return weights_dummy_share(out, cfg, NULL, dtype, seed, false, e);
}

enum err_code weights_dummy_shapes(struct weights **out, const struct model_config *cfg,
                                   enum dtype dtype, uint64_t seed, struct err *e)
{
    return weights_dummy_share(out, cfg, NULL, dtype, seed, true, e);
}
