/* kv.c - rope_q, kv_store and index_store: what a step leaves in the slots of its rows. See kv.h.
 */
#include "cpu/kv.h"

#include "cpu/fp8.h"
#include "cpu/rope.h"

#include <math.h>

enum { GROUP = LATENT_GROUP, ROWS_PER_CHUNK = 16, MAX_RECORD = 4096, MAX_INDEX_DIM = 1024 };

static const float INDEX_NORM_EPS = 1e-6f; /* whatever rms_norm_eps says */

size_t kv_record_bytes(const struct model_config *c, enum latent_form f)
{
    size_t r = c->kv_lora_rank, d = c->rope_dim;
    switch (f) {
    case LATENT_F32:
        return 4 * (r + d);
    case LATENT_BF16:
        return 2 * (r + d);
    case LATENT_FP8:
        break;
    }
    return r + 4 * ((r + GROUP - 1) / GROUP) + 2 * d;
}

void kv_load(const struct cpu_backend *b, uint32_t layer, const struct step_seq *s, uint32_t pos,
             float *out)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t r = c->kv_lora_rank, d = c->rope_dim;
    const unsigned char *at = cpu_page(b->latent[layer], b->latent_page_bytes, s, pos) +
                              (b->latent_page_bytes / KV_PAGE_TOKENS) * (pos % KV_PAGE_TOKENS);
    switch (b->ops.limits.latent) {
    case LATENT_F32:
        memcpy(out, at, 4 * (size_t)(r + d));
        return;
    case LATENT_BF16:
        b->k->bf16_to_f32((const uint16_t *)(const void *)at, out, r + d);
        return;
    case LATENT_FP8:
        break;
    }
    const unsigned char *scale = at + r, *key = scale + 4 * ((r + GROUP - 1) / GROUP);
    for (uint32_t g = 0; g < r; g += GROUP, scale += 4) {
        float x;
        memcpy(&x, scale, 4);
        b->k->fp8_to_f32(at + g, x, out + g, r - g < GROUP ? r - g : GROUP);
    }
    if (r % 2 == 0) { /* the key's address is even */
        b->k->bf16_to_f32((const uint16_t *)(const void *)key, out + r, d);
        return;
    }
    for (uint32_t i = 0; i < d; i++) {
        uint16_t h;
        memcpy(&h, key + 2 * (size_t)i, 2);
        out[r + i] = bf16_value(h);
    }
}

void hadamard(float *x, uint32_t n)
{
    for (uint32_t w = 1; w < n; w *= 2)
        for (uint32_t i = 0; i < n; i += 2 * w)
            for (uint32_t j = i; j < i + w; j++) {
                float a = x[j], b = x[j + w];
                x[j] = a + b;
                x[j + w] = a - b;
            }
    float scale = (float)(1.0 / sqrt((double)n));
    for (uint32_t i = 0; i < n; i++)
        x[i] *= scale;
}

float index_quantise(float *x, uint32_t n, uint8_t *code)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] = bf16_value(bf16_round(x[i]));
    hadamard(x, n);
    for (uint32_t i = 0; i < n; i++)
        x[i] = bf16_value(bf16_round(x[i]));
    return e4m3_quantise(x, n, code);
}

/* What the three ops below pass to their chunks. */
struct store_job {
    struct cpu_backend *b;
    const struct cpu_lane *lane;
    uint32_t layer;
    const float *x, *gain, *bias;
    float *q;
};

static void run_rows(struct store_job *j, enum lane l, pool_fn *fn)
{
    uint32_t n = j->lane->step->n_rows;
    pool_run(j->b->pool, l, (n + ROWS_PER_CHUNK - 1) / ROWS_PER_CHUNK, fn, j);
}

static uint32_t chunk_end(const struct store_job *j, uint32_t chunk)
{
    uint32_t end = (chunk + 1) * ROWS_PER_CHUNK, n = j->lane->step->n_rows;
    return end < n ? end : n;
}

static const float *angles(const struct cpu_backend *b, const float *table, uint32_t pos)
{
    return table + (size_t)pos * (b->ops.cfg->rope_dim / 2);
}

static void rope_q_rows(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct store_job *j = arg;
    const struct model_config *c = j->b->ops.cfg;
    size_t head = model_qk_dim(c);
    (void)worker;
    for (uint32_t i = chunk * ROWS_PER_CHUNK; i < chunk_end(j, chunk); i++) {
        const float *cs = angles(j->b, j->b->rope_cos, j->lane->row_pos[i]);
        const float *sn = angles(j->b, j->b->rope_sin, j->lane->row_pos[i]);
        float *q = j->q + (size_t)i * c->n_heads * head + c->nope_dim;
        for (uint32_t h = 0; h < c->n_heads; h++)
            rope_interleaved(q + h * head, c->rope_dim, cs, sn);
    }
}

static void op_rope_q(struct ops *o, enum lane l, act *q)
{
    struct cpu_backend *b = cpu_of(o);
    struct store_job j = {.b = b, .lane = &b->lane[l], .q = q};
    run_rows(&j, l, rope_q_rows);
}

static void store_latent(const struct cpu_backend *b, const float *latent, const float *key,
                         unsigned char *at)
{
    const struct model_config *c = b->ops.cfg;
    uint32_t r = c->kv_lora_rank, d = c->rope_dim;
    if (b->ops.limits.latent == LATENT_F32) {
        memcpy(at, latent, 4 * (size_t)r);
        memcpy(at + 4 * (size_t)r, key, 4 * (size_t)d);
        return;
    }
    if (b->ops.limits.latent == LATENT_BF16) {
        b->k->f32_to_bf16(latent, (uint16_t *)(void *)at, r);
        b->k->f32_to_bf16(key, (uint16_t *)(void *)at + r, d);
        return;
    }
    unsigned char *scale = at + r, *tail = scale + 4 * ((r + GROUP - 1) / GROUP);
    for (uint32_t g = 0; g < r; g += GROUP, scale += 4) {
        float x = e4m3_quantise(latent + g, r - g < GROUP ? r - g : GROUP, at + g);
        memcpy(scale, &x, 4);
    }
    for (uint32_t i = 0; i < d; i++) {
        uint16_t h = bf16_round(key[i]);
        memcpy(tail + 2 * (size_t)i, &h, 2);
    }
}

static void kv_store_rows(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct store_job *j = arg;
    struct cpu_backend *b = j->b;
    const struct model_config *c = b->ops.cfg;
    uint32_t r = c->kv_lora_rank;
    size_t record = b->latent_page_bytes / KV_PAGE_TOKENS;
    float row[MAX_RECORD];
    (void)worker;
    for (uint32_t i = chunk * ROWS_PER_CHUNK; i < chunk_end(j, chunk); i++) {
        uint32_t pos = j->lane->row_pos[i];
        const struct step_seq *s = &j->lane->step->seq[j->lane->row_seq[i]];
        const float *x = j->x + (size_t)i * (r + c->rope_dim);
        float f = 1.0f / sqrtf(b->k->sum_squares(x, r) / (float)r + c->low_rank_eps);
        for (uint32_t d = 0; d < r; d++)
            row[d] = x[d] * f * j->gain[d];
        memcpy(row + r, x + r, 4 * (size_t)c->rope_dim);
        rope_interleaved(row + r, c->rope_dim, angles(b, b->rope_cos, pos),
                         angles(b, b->rope_sin, pos));
        unsigned char *page =
            b->latent[j->layer] + (size_t)s->page[pos / KV_PAGE_TOKENS] * b->latent_page_bytes;
        store_latent(b, row, row + r, page + record * (pos % KV_PAGE_TOKENS));
    }
}

static void op_kv_store(struct ops *o, enum lane l, uint32_t layer, const act *kv_raw,
                        const float *gain)
{
    struct cpu_backend *b = cpu_of(o);
    struct store_job j = {.b = b, .lane = &b->lane[l], .layer = layer, .x = kv_raw, .gain = gain};
    run_rows(&j, l, kv_store_rows);
}

static void layer_norm(const float *x, const float *gain, const float *bias, uint32_t n, float *y)
{
    float mean = 0.0f, var = 0.0f;
    for (uint32_t i = 0; i < n; i++)
        mean += x[i];
    mean /= (float)n;
    for (uint32_t i = 0; i < n; i++)
        var += (x[i] - mean) * (x[i] - mean);
    float f = 1.0f / sqrtf(var / (float)n + INDEX_NORM_EPS);
    for (uint32_t i = 0; i < n; i++)
        y[i] = (x[i] - mean) * f * gain[i] + bias[i];
}

static void index_store_rows(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct store_job *j = arg;
    struct cpu_backend *b = j->b;
    const struct model_config *c = b->ops.cfg;
    uint32_t dim = c->index_dim;
    float row[MAX_INDEX_DIM];
    (void)worker;
    for (uint32_t i = chunk * ROWS_PER_CHUNK; i < chunk_end(j, chunk); i++) {
        uint32_t pos = j->lane->row_pos[i], slot = pos % KV_PAGE_TOKENS;
        const struct step_seq *s = &j->lane->step->seq[j->lane->row_seq[i]];
        layer_norm(j->x + (size_t)i * dim, j->gain, j->bias, dim, row);
        (c->index_rope_interleaved ? rope_interleaved : rope_half_split)(
            row, c->rope_dim, angles(b, b->rope_cos, pos), angles(b, b->rope_sin, pos));
        unsigned char *page =
            b->index[j->layer] + (size_t)s->page[pos / KV_PAGE_TOKENS] * b->index_page_bytes;
        if (b->ops.limits.index == INDEX_EXACT) {
            memcpy(page + (size_t)slot * dim * 4, row, 4 * (size_t)dim);
            continue;
        }
        float scale = index_quantise(row, dim, page + (size_t)slot * dim);
        memcpy(page + (size_t)KV_PAGE_TOKENS * dim + 4 * slot, &scale, 4);
    }
}

static void op_index_store(struct ops *o, enum lane l, uint32_t layer, const act *k_raw,
                           const float *gain, const float *bias)
{
    struct cpu_backend *b = cpu_of(o);
    struct store_job j = {
        .b = b, .lane = &b->lane[l], .layer = layer, .x = k_raw, .gain = gain, .bias = bias};
    assert(b->index[layer]);
    run_rows(&j, l, index_store_rows);
}

enum err_code cpu_kv_init(struct cpu_backend *b, struct err *e)
{
    const struct model_config *c = b->ops.cfg;
    if (c->rope_dim % 2)
        return err_set(e, ERR_INVALID, "qk_rope_head_dim=%u: pairs need an even number",
                       c->rope_dim);
    if ((uint64_t)c->kv_lora_rank + c->rope_dim > MAX_RECORD)
        return err_set(e, ERR_INVALID, "kv_lora_rank=%u and qk_rope_head_dim=%u: over %d together",
                       c->kv_lora_rank, c->rope_dim, MAX_RECORD);
    assert(b->latent_page_bytes >= KV_PAGE_TOKENS * kv_record_bytes(c, b->ops.limits.latent));
    b->ops.rope_q = op_rope_q;
    b->ops.kv_store = op_kv_store;
    if (!c->has_indexer)
        return ERR_OK;
    if (c->index_dim > MAX_INDEX_DIM)
        return err_set(e, ERR_INVALID, "index_head_dim=%u: over %d", c->index_dim, MAX_INDEX_DIM);
    if (c->rope_dim > c->index_dim)
        return err_set(e, ERR_INVALID, "qk_rope_head_dim=%u is larger than index_head_dim=%u",
                       c->rope_dim, c->index_dim);
    if (b->ops.limits.index == INDEX_FP8 &&
        (c->index_dim < 4 || (c->index_dim & (c->index_dim - 1))))
        return err_set(e, ERR_INVALID,
                       "index_head_dim=%u: the FP8 index form needs a power of two from 4 on",
                       c->index_dim);
    b->ops.index_store = op_index_store;
    return ERR_OK;
}
