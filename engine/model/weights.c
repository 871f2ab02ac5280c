/* weights.c - see weights.h. */
#include "model/weights.h"

#include "base/arena.h"
#include "base/fault.h"
#include "base/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    BLOCK = 128,                   /* rows and columns of one FP8 scale */
    NAME_BYTES = 128,              /* the longest name of the family has some 70 */
    ARENA_BLOCK_BYTES = 256 << 10, /* the layers' tables and vectors come out of few of these */
    AHEAD_BYTES = 64 << 20,        /* asked of the disk before we touch it */
    PROGRESS_BYTES = 16 << 20      /* between two calls */
};

/* ---- the list of parameters ---- */

/* One walk. Names are made in `name`, behind the layer's prefix. */
struct walk {
    const struct model_config *c;
    const struct rank_share *share; /* NULL: the whole model */
    struct weights_source *s;
    struct err *e;
    char name[NAME_BYTES];
    size_t prefix_len;
};

static const char *full_name(struct walk *k, const char *rest)
{
    int n = snprintf(k->name + k->prefix_len, NAME_BYTES - k->prefix_len, "%s", rest);
    assert(n >= 0 && (size_t)n < NAME_BYTES - k->prefix_len);
    return k->name;
}

static enum err_code linear(struct walk *k, const char *rest, struct cut cut, struct matrix *out)
{
    return k->s->matrix(k->s, full_name(k, rest), PARAM_LINEAR, &cut, out, k->e);
}

static enum err_code plain(struct walk *k, const char *rest, struct cut cut, struct matrix *out)
{
    return k->s->matrix(k->s, full_name(k, rest), PARAM_PLAIN, &cut, out, k->e);
}

static enum err_code gain(struct walk *k, const char *rest, uint32_t n, float **out)
{
    return k->s->vector(k->s, full_name(k, rest), PARAM_GAIN, n, out, k->e);
}

static enum err_code bias(struct walk *k, const char *rest, uint32_t n, float **out)
{
    return k->s->vector(k->s, full_name(k, rest), PARAM_BIAS, n, out, k->e);
}

/* Which of how many slices of a network's width, or of the heads, is wanted. */
struct slice {
    uint32_t part, n_parts;
};
static struct slice of_group(const struct walk *k)
{
    return k->share ? (struct slice){k->share->tp_rank, k->share->plan->tp} : (struct slice){0, 1};
}
static struct slice of_expert(const struct walk *k)
{
    return k->share ? (struct slice){k->share->width_rank, k->share->plan->n_width}
                    : (struct slice){0, 1};
}

static enum err_code walk_ffn(struct walk *k, const char *at, uint32_t width, struct slice s,
                              struct ffn_weights *out)
{
    char rest[64];
    uint32_t hidden = k->c->hidden_size;
    snprintf(rest, sizeof rest, "%s.gate_proj", at);
    if (linear(k, rest, cut_rows(width, hidden, s.part, s.n_parts), &out->gate))
        return k->e->code;
    snprintf(rest, sizeof rest, "%s.up_proj", at);
    if (linear(k, rest, cut_rows(width, hidden, s.part, s.n_parts), &out->up))
        return k->e->code;
    snprintf(rest, sizeof rest, "%s.down_proj", at);
    return linear(k, rest, cut_columns(hidden, width, s.part, s.n_parts), &out->down);
}

static enum err_code walk_attention(struct walk *k, struct layer_weights *out)
{
    const struct model_config *c = k->c;
    struct slice s = of_group(k);
    uint32_t q_rows = c->n_heads * model_qk_dim(c);
    uint32_t kv_rows = c->n_heads * (c->nope_dim + c->v_dim), v = c->n_heads * c->v_dim;
    if (c->q_lora_rank) {
        if (linear(k, "self_attn.q_a_proj", cut_none(c->q_lora_rank, c->hidden_size), &out->q_a) ||
            gain(k, "self_attn.q_a_layernorm.weight", c->q_lora_rank, &out->q_a_norm) ||
            linear(k, "self_attn.q_b_proj", cut_rows(q_rows, c->q_lora_rank, s.part, s.n_parts),
                   &out->q_b))
            return k->e->code;
    } else if (linear(k, "self_attn.q_proj", cut_rows(q_rows, c->hidden_size, s.part, s.n_parts),
                      &out->q)) {
        return k->e->code;
    }
    if (linear(k, "self_attn.kv_a_proj_with_mqa",
               cut_none(c->kv_lora_rank + c->rope_dim, c->hidden_size), &out->kv_a) ||
        gain(k, "self_attn.kv_a_layernorm.weight", c->kv_lora_rank, &out->kv_a_norm) ||
        linear(k, "self_attn.kv_b_proj", cut_rows(kv_rows, c->kv_lora_rank, s.part, s.n_parts),
               &out->kv_b) ||
        linear(k, "self_attn.o_proj", cut_columns(c->hidden_size, v, s.part, s.n_parts), &out->o))
        return k->e->code;
    return ERR_OK;
}

static enum err_code walk_indexer(struct walk *k, struct layer_weights *out)
{
    const struct model_config *c = k->c;
    if (linear(k, "self_attn.indexer.wq_b", cut_none(c->index_heads * c->index_dim, c->q_lora_rank),
               &out->index_q) ||
        linear(k, "self_attn.indexer.wk", cut_none(c->index_dim, c->hidden_size), &out->index_k) ||
        plain(k, "self_attn.indexer.weights_proj", cut_none(c->index_heads, c->hidden_size),
              &out->index_w) ||
        gain(k, "self_attn.indexer.k_norm.weight", c->index_dim, &out->index_norm) ||
        bias(k, "self_attn.indexer.k_norm.bias", c->index_dim, &out->index_norm_bias))
        return k->e->code;
    return ERR_OK;
}

static enum err_code walk_moe(struct walk *k, uint32_t layer, struct layer_weights *out)
{
    const struct model_config *c = k->c;
    uint32_t n_held = k->share ? k->share->plan->n_held : c->n_experts;
    if (plain(k, "mlp.gate", cut_none(c->n_experts, c->hidden_size), &out->router) ||
        (c->router_bias &&
         bias(k, "mlp.gate.e_score_correction_bias", c->n_experts, &out->router_bias)) ||
        walk_ffn(k, "mlp.shared_experts", c->n_shared * c->expert_width, of_group(k), &out->shared))
        return k->e->code;
    for (uint32_t i = 0; i < n_held; i++) {
        char at[32];
        struct ffn_weights unwanted;
        uint32_t id = k->share ? parallel_held(k->share->plan, layer, k->share->part, i) : i;
        snprintf(at, sizeof at, "mlp.experts.%u", id);
        if (walk_ffn(k, at, c->expert_width, of_expert(k),
                     out->expert ? &out->expert[i] : &unwanted))
            return k->e->code;
    }
    return ERR_OK;
}

static enum err_code walk_layer(struct walk *k, uint32_t i, struct layer_weights *out)
{
    const struct model_config *c = k->c;
    k->prefix_len = 0;
    k->prefix_len = (size_t)snprintf(k->name, NAME_BYTES, "model.layers.%u.", i);
    if (gain(k, "input_layernorm.weight", c->hidden_size, &out->input_norm) ||
        walk_attention(k, out) || (c->has_indexer && c->index_full[i] && walk_indexer(k, out)) ||
        gain(k, "post_attention_layernorm.weight", c->hidden_size, &out->post_norm))
        return k->e->code;
    return model_is_moe(c, i) ? walk_moe(k, i, out)
                              : walk_ffn(k, "mlp", c->dense_width, of_group(k), &out->dense);
}

static enum err_code walk_head(struct walk *k, struct weights *out)
{
    const struct model_config *c = k->c;
    struct cut cut = cut_none(c->vocab_size, c->hidden_size);
    k->prefix_len = 0;
    if (k->share && k->share->plan->cut_head)
        cut = cut_rows(c->vocab_size, c->hidden_size, k->share->tp_rank, k->share->plan->tp);
    else if (c->tie_embeddings) {
        out->head = out->embed;
        return ERR_OK;
    }
    return plain(k, c->tie_embeddings ? "model.embed_tokens" : "lm_head", cut, &out->head);
}

enum err_code weights_walk(struct weights *w, const struct model_config *cfg,
                           const struct rank_share *share, struct weights_source *s, struct err *e)
{
    struct walk k = {.c = cfg, .share = share, .s = s, .e = e};
    struct weights unwanted;
    struct layer_weights unwanted_layer = {.expert = NULL};
    struct weights *out = w ? w : &unwanted;
    if (plain(&k, "model.embed_tokens", cut_none(cfg->vocab_size, cfg->hidden_size), &out->embed))
        return e->code;
    for (uint32_t i = 0; i < cfg->n_layers; i++) {
        if (walk_layer(&k, i, w ? &w->layer[i] : &unwanted_layer))
            return e->code;
    }
    k.prefix_len = 0;
    if (gain(&k, "model.norm.weight", cfg->hidden_size, &out->final_norm))
        return e->code;
    return walk_head(&k, out);
}

/* ---- memory ---- */

enum err_code weights_create(struct weights **out, const struct model_config *cfg,
                             const struct rank_share *share, struct err *e)
{
    size_t n_held = share ? share->plan->n_held : cfg->n_experts;
    struct weights *w = FAULT("weights.create") ? NULL : calloc(1, sizeof *w);
    struct arena *a = FAULT("weights.create") ? NULL : malloc(sizeof *a);
    if (!w || !a) {
        free(w);
        free(a);
        return err_set(e, ERR_NOMEM, "weights");
    }
    arena_init(a, ARENA_BLOCK_BYTES);
    w->owned = a;
    w->layer = arena_zalloc(a, cfg->n_layers * sizeof *w->layer);
    bool ok = w->layer != NULL;
    for (uint32_t i = 0; ok && i < cfg->n_layers; i++) {
        if (!model_is_moe(cfg, i))
            continue;
        w->layer[i].expert = arena_zalloc(a, n_held * sizeof *w->layer[i].expert);
        ok = w->layer[i].expert != NULL;
    }
    if (!ok) {
        weights_close(w);
        return err_set(e, ERR_NOMEM, "tables of %u layers of weights", cfg->n_layers);
    }
    *out = w;
    return ERR_OK;
}

void *weights_alloc(struct weights *w, size_t bytes)
{
    return arena_alloc(w->owned, bytes);
}

void weights_close(struct weights *w)
{
    if (!w)
        return;
    safetensors_close(w->files);
    arena_free(w->owned);
    free(w->owned);
    free(w);
}

/* ---- counting ---- */

struct counter {
    struct weights_source source; /* first */
    enum dtype dtype;
    size_t bytes;
};

static size_t n_blocks(uint32_t n)
{
    return (n + (size_t)BLOCK - 1) / BLOCK;
}

static enum err_code count_matrix(struct weights_source *s, const char *name, enum param_use use,
                                  const struct cut *cut, struct matrix *out, struct err *e)
{
    (void)name, (void)e;
    struct counter *k = (struct counter *)s;
    uint32_t n_out = cut->n_rows, n_in = cut->n_columns;
    bool fp8 = k->dtype == DT_F8_E4M3;
    enum dtype t = fp8 && use == PARAM_PLAIN ? DT_BF16 : k->dtype;
    k->bytes += (size_t)n_out * n_in * dtype_bytes(t);
    if (t == DT_F8_E4M3)
        k->bytes += n_blocks(n_out) * n_blocks(n_in) * sizeof(float);
    *out = (struct matrix){.dtype = t, .n_out = n_out, .n_in = n_in};
    return ERR_OK;
}

static enum err_code count_vector(struct weights_source *s, const char *name, enum param_use use,
                                  uint32_t n, float **out, struct err *e)
{
    (void)name, (void)use, (void)e;
    ((struct counter *)s)->bytes += n * sizeof(float);
    *out = NULL;
    return ERR_OK;
}

size_t weights_bytes_share(const struct model_config *cfg, const struct rank_share *share,
                           enum dtype dtype)
{
    struct err e = {0};
    struct counter k = {.source = {count_matrix, count_vector}, .dtype = dtype};
    enum err_code code = weights_walk(NULL, cfg, share, &k.source, &e);
    assert(code == ERR_OK); /* a counter never refuses */
    return k.bytes;
}

size_t weights_bytes(const struct model_config *cfg, enum dtype dtype)
{
    return weights_bytes_share(cfg, NULL, dtype);
}

/* ---- reading a checkpoint ---- */

/* Bytes in use of a tensor: n_rows pieces, stride apart. */
struct piece {
    const unsigned char *data;
    size_t bytes, stride, n_rows;
};

struct reader {
    struct weights_source source; /* first */
    struct weights *w;
    bool views;
    struct piece *piece; /* of all tensors in use, in the walk's order */
    size_t n_pieces, max_pieces;
};

static enum err_code note_piece(struct reader *r, struct piece p, struct err *e)
{
    if (r->n_pieces == r->max_pieces) {
        size_t max = r->max_pieces ? 2 * r->max_pieces : 1024;
        struct piece *more =
            FAULT("weights.touch") ? NULL : realloc(r->piece, max * sizeof *r->piece);
        if (!more)
            return err_set(e, ERR_NOMEM, "a list of %zu tensors", max);
        r->piece = more;
        r->max_pieces = max;
    }
    r->piece[r->n_pieces++] = p;
    r->w->file_bytes += p.bytes * p.n_rows;
    return ERR_OK;
}

static enum err_code note_tensor(struct reader *r, const struct tensor *t, struct err *e)
{
    return note_piece(r, (struct piece){t->data, t->bytes, t->bytes, 1}, e);
}

/* "[24576, 1536]" for messages. */
static const char *shape_text(char out[64], const struct tensor *t)
{
    size_t n = 0;
    out[n++] = '[';
    for (uint32_t i = 0; i < t->n_dims && n < 40; i++) {
        int k = snprintf(out + n, 64 - n, "%s%llu", i ? ", " : "", (unsigned long long)t->dim[i]);
        n += (size_t)k;
    }
    snprintf(out + n, 64 - n, "]");
    return out;
}

static enum err_code find(struct reader *r, const char *name, const struct tensor **out,
                          struct err *e)
{
    *out = safetensors_find(r->w->files, name);
    return *out ? ERR_OK : err_set(e, ERR_INVALID, "%s: missing from the checkpoint", name);
}

static enum err_code check_matrix_shape(const struct tensor *t, size_t rows, size_t columns,
                                        const char *of, struct err *e)
{
    char shape[64];
    if (t->n_dims == 2 && t->dim[0] == rows && t->dim[1] == columns)
        return ERR_OK;
    return err_set(e, ERR_INVALID, "%s: shape %s, but %s asks for [%zu, %zu]", t->name,
                   shape_text(shape, t), of, rows, columns);
}

/* t's values as fp32, in memory of w. Values may lie at any address. */
static enum err_code widen(struct weights *w, const struct tensor *t, float **out, struct err *e)
{
    size_t size = dtype_bytes(t->dtype), n = t->bytes / size;
    float *v = weights_alloc(w, n * sizeof *v);
    if (!v)
        return err_set(e, ERR_NOMEM, "%s: %zu values as fp32", t->name, n);
    const unsigned char *p = t->data;
    for (size_t i = 0; i < n; i++, p += size) {
        uint32_t bits = 0;
        uint16_t half;
        switch (t->dtype) {
        case DT_F32:
            memcpy(&bits, p, 4);
            break;
        case DT_BF16:
            memcpy(&half, p, 2);
            bits = (uint32_t)half << 16;
            break;
        case DT_F16: {
            memcpy(&half, p, 2);
            uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
            float f = exponent == 31 ? (mantissa ? NAN : INFINITY)
                      : exponent     ? ldexpf((float)(mantissa + 1024), (int)exponent - 25)
                                     : ldexpf((float)mantissa, -24);
            memcpy(&bits, &f, 4);
            bits |= (uint32_t)(half >> 15) << 31;
            break;
        }
        default: { /* a power of two: E8M0, or the same called U8; 255 is NaN */
            assert(t->dtype == DT_F8_E8M0 || t->dtype == DT_U8);
            float f = *p == 255 ? NAN : ldexpf(1, (int)*p - 127);
            memcpy(&bits, &f, 4);
        }
        }
        memcpy(&v[i], &bits, 4);
    }
    *out = v;
    return ERR_OK;
}

static bool is_float(enum dtype t)
{
    return t == DT_F32 || t == DT_BF16 || t == DT_F16;
}

/* The part's bytes in the file, or a copy where the file does not align them to their size, or
 * where columns are to lie side by side. */
static enum err_code part_bytes(struct reader *r, const struct tensor *t, const struct cut *c,
                                struct matrix *m, struct err *e)
{
    size_t size = dtype_bytes(t->dtype), stride = c->n_in * size, row = c->n_columns * size;
    const unsigned char *at = (const unsigned char *)t->data + c->row0 * stride + c->column0 * size;
    bool narrow = c->n_columns < c->n_in, aligned = (uintptr_t)at % size == 0;
    struct piece p = {at, row, stride, c->n_rows};
    if (!narrow)
        p = (struct piece){at, row * c->n_rows, row * c->n_rows, 1};
    if (note_piece(r, p, e))
        return e->code;
    if (aligned && (!narrow || r->views)) {
        m->data = at;
        m->stride = narrow ? c->n_in : 0;
        return ERR_OK;
    }
    unsigned char *copy = weights_alloc(r->w, row * c->n_rows);
    if (!copy)
        return err_set(e, ERR_NOMEM, "%s: a copy of %zu bytes", t->name, row * c->n_rows);
    for (size_t i = 0; i < c->n_rows; i++)
        memcpy(copy + i * row, at + i * stride, row);
    m->data = copy;
    return ERR_OK;
}

/* Whole matrix m's scales, as fp32 wherever they lie. */
static enum err_code read_scale(struct reader *r, const char *name, const struct matrix *m,
                                const float **out, struct err *e)
{
    const struct tensor *t = NULL;
    char shape[64], of[80];
    size_t rows = n_blocks(m->n_out), columns = n_blocks(m->n_in);
    snprintf(of, sizeof of, "an F8_E4M3 matrix of [%u, %u]", m->n_out, m->n_in);
    t = safetensors_find(r->w->files, name);
    if (!t)
        return err_set(e, ERR_INVALID, "%s: missing, but %s needs scales of [%zu, %zu]", name, of,
                       rows, columns);
    if (t->n_dims != 2 || t->dim[0] != rows || t->dim[1] != columns)
        return err_set(e, ERR_INVALID, "%s: shape %s, but %s needs [%zu, %zu]", name,
                       shape_text(shape, t), of, rows, columns);
    if (!is_float(t->dtype) && t->dtype != DT_F8_E8M0 && t->dtype != DT_U8)
        return err_set(e, ERR_INVALID, "%s: %s scales are not supported", name,
                       dtype_name(t->dtype));
    if (note_tensor(r, t, e))
        return e->code;
    if (t->dtype == DT_F32 && (uintptr_t)t->data % sizeof(float) == 0) {
        *out = t->data;
        return ERR_OK;
    }
    float *v = NULL;
    if (widen(r->w, t, &v, e))
        return e->code;
    *out = v;
    return ERR_OK;
}

/* The part's blocks of the whole matrix's scales: a view of rows, or a copy. */
static enum err_code part_scale(struct reader *r, const char *name, const struct cut *c,
                                const float *whole, const float **out, struct err *e)
{
    size_t columns = n_blocks(c->n_in), rows = n_blocks(c->n_rows), n = n_blocks(c->n_columns);
    const float *at = whole + c->row0 / BLOCK * columns + c->column0 / BLOCK;
    *out = at;
    if (n == columns)
        return ERR_OK;
    float *copy = weights_alloc(r->w, rows * n * sizeof *copy);
    if (!copy)
        return err_set(e, ERR_NOMEM, "%s: %zu scales", name, rows * n);
    for (size_t i = 0; i < rows; i++)
        memcpy(copy + i * n, at + i * columns, n * sizeof *copy);
    *out = copy;
    return ERR_OK;
}

static float e4m3_value(uint8_t code)
{
    int exponent = code >> 3 & 15, mantissa = code & 7;
    float f = exponent ? ldexpf((float)(mantissa + 8), exponent - 10) : ldexpf((float)mantissa, -9);
    if (exponent == 15 && mantissa == 7)
        f = NAN;
    return code & 0x80 ? -f : f;
}

/* A part that begins within a block, as fp32. */
static enum err_code widen_part(struct reader *r, const struct tensor *t, const struct cut *c,
                                const float *scale, struct matrix *m, struct err *e)
{
    float *v = weights_alloc(r->w, (size_t)c->n_rows * c->n_columns * sizeof *v);
    size_t columns = n_blocks(c->n_in);
    if (!v)
        return err_set(e, ERR_NOMEM, "%s: [%u, %u] as fp32", t->name, c->n_rows, c->n_columns);
    if (note_tensor(r, t, e))
        return e->code;
    m->dtype = DT_F32;
    m->data = v;
    for (uint32_t i = 0; i < c->n_rows; i++) {
        size_t row = (size_t)c->row0 + i;
        for (uint32_t k = 0; k < c->n_columns; k++) {
            size_t column = (size_t)c->column0 + k;
            *v++ = e4m3_value(((const uint8_t *)t->data)[row * c->n_in + column]) *
                   scale[row / BLOCK * columns + column / BLOCK];
        }
    }
    return ERR_OK;
}

static enum err_code read_matrix(struct weights_source *s, const char *name, enum param_use use,
                                 const struct cut *cut, struct matrix *out, struct err *e)
{
    struct reader *r = (struct reader *)s;
    const struct tensor *t = NULL;
    char full[NAME_BYTES + 24];
    snprintf(full, sizeof full, "%s.weight", name);
    if (find(r, full, &t, e) || check_matrix_shape(t, cut->n_out, cut->n_in, "the config", e))
        return e->code;
    struct matrix m = {.dtype = t->dtype, .n_out = cut->n_rows, .n_in = cut->n_columns};
    bool fp8 = t->dtype == DT_F8_E4M3;
    if (!is_float(t->dtype) && !(fp8 && use == PARAM_LINEAR))
        return err_set(e, ERR_INVALID, "%s: %s is not supported here, only BF16, F16, F32%s", full,
                       dtype_name(t->dtype), use == PARAM_LINEAR ? " and F8_E4M3" : "");
    if (fp8) {
        struct matrix whole = {.n_out = cut->n_out, .n_in = cut->n_in};
        const float *scale = NULL;
        snprintf(full, sizeof full, "%s.weight_scale_inv", name);
        if (read_scale(r, full, &whole, &scale, e))
            return e->code;
        if (cut->row0 % BLOCK || cut->column0 % BLOCK) {
            *out = m;
            return widen_part(r, t, cut, scale, out, e);
        }
        if (part_scale(r, full, cut, scale, &m.scale, e))
            return e->code;
    }
    if (part_bytes(r, t, cut, &m, e))
        return e->code;
    *out = m;
    return ERR_OK;
}

static enum err_code read_vector(struct weights_source *s, const char *name, enum param_use use,
                                 uint32_t n, float **out, struct err *e)
{
    (void)use;
    struct reader *r = (struct reader *)s;
    const struct tensor *t = NULL;
    char shape[64];
    if (find(r, name, &t, e))
        return e->code;
    if (t->n_dims != 1 || t->dim[0] != n)
        return err_set(e, ERR_INVALID, "%s: shape %s, but the config asks for [%u]", name,
                       shape_text(shape, t), n);
    if (!is_float(t->dtype))
        return err_set(e, ERR_INVALID, "%s: %s is not supported here, only BF16, F16, F32", name,
                       dtype_name(t->dtype));
    return note_tensor(r, t, e) ? e->code : widen(r->w, t, out, e);
}

/* ---- bringing the pages in ---- */

static int by_address(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)((const struct piece *)a)->data;
    uintptr_t y = (uintptr_t)((const struct piece *)b)->data;
    return x < y ? -1 : x > y;
}

struct toucher {
    struct reader *r;
    weights_progress *progress;
    void *arg;
    size_t page, done, told;
};

static void touch_row(struct toucher *k, const unsigned char *data, size_t bytes)
{
    const volatile unsigned char *p = data; /* volatile: reading is the point */
    for (size_t at = 0; at < bytes;) {
        (void)p[at];
        size_t step = k->page - (uintptr_t)(p + at) % k->page; /* to the next page */
        step = step < bytes - at ? step : bytes - at;
        at += step;
        k->done += step;
        if (k->progress && k->done - k->told >= PROGRESS_BYTES) {
            k->progress(k->arg, k->done, k->r->w->file_bytes);
            k->told = k->done;
        }
    }
}

/* Touches every page in use once, in the files' order, so that the disk reads forward and the first
 * request does not wait for it. */
static void touch_pages(struct reader *r, weights_progress *progress, void *arg)
{
    struct toucher k = {r, progress, arg, (size_t)sysconf(_SC_PAGESIZE), 0, 0};
    struct piece *p = r->piece;
    size_t asked = 0, next = 0;
    qsort(p, r->n_pieces, sizeof *p, by_address);
    for (size_t i = 0; i < r->n_pieces; i++) {
        for (; next < r->n_pieces && asked < k.done + AHEAD_BYTES; next++) {
            if (p[next].n_rows == 1)
                safetensors_prefetch(p[next].data, p[next].bytes);
            asked += p[next].bytes * p[next].n_rows;
        }
        for (size_t row = 0; row < p[i].n_rows; row++)
            touch_row(&k, p[i].data + row * p[i].stride, p[i].bytes);
    }
    if (progress && (k.told < k.done || !k.done))
        progress(arg, k.done, r->w->file_bytes);
}

static void list_unused(const struct weights *w)
{
    size_t n = 0, bytes = 0;
    for (size_t i = 0; i < safetensors_count(w->files); i++) {
        const struct tensor *t = safetensors_at(w->files, i);
        if (t->used)
            continue;
        log_debug("weights", "unused_tensor=%s bytes=%zu", t->name, t->bytes);
        n++;
        bytes += t->bytes;
    }
    if (n)
        log_info("weights", "unused_tensors=%zu unused_bytes=%zu", n, bytes);
}

enum err_code weights_open_share(struct weights **out, const char *dir,
                                 const struct model_config *cfg, const struct rank_share *share,
                                 bool views, weights_progress *progress, void *arg, struct err *e)
{
    struct reader r = {.source = {read_matrix, read_vector}, .views = views};
    if (weights_create(&r.w, cfg, share, e))
        return e->code;
    if (safetensors_open_dir(&r.w->files, dir, e))
        goto close;
    if (weights_walk(r.w, cfg, share, &r.source, e)) {
        err_prefix(e, "%s", dir);
        goto close;
    }
    touch_pages(&r, progress, arg);
    if (!share || share->plan->n_ranks == 1) /* a rank leaves to others what it does not hold */
        list_unused(r.w);
    free(r.piece);
    *out = r.w;
    return ERR_OK;
close:
    free(r.piece);
    weights_close(r.w);
    return e->code;
}

enum err_code weights_open(struct weights **out, const char *dir, const struct model_config *cfg,
                           weights_progress *progress, void *arg, struct err *e)
{
    return weights_open_share(out, dir, cfg, NULL, false, progress, arg, e);
}
