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

static enum err_code linear(struct walk *k, const char *rest, uint32_t n_out, uint32_t n_in,
                            struct matrix *out)
{
    return k->s->matrix(k->s, full_name(k, rest), PARAM_LINEAR, n_out, n_in, out, k->e);
}

static enum err_code plain(struct walk *k, const char *rest, uint32_t n_out, uint32_t n_in,
                           struct matrix *out)
{
    return k->s->matrix(k->s, full_name(k, rest), PARAM_PLAIN, n_out, n_in, out, k->e);
}

static enum err_code gain(struct walk *k, const char *rest, uint32_t n, float **out)
{
    return k->s->vector(k->s, full_name(k, rest), PARAM_GAIN, n, out, k->e);
}

static enum err_code bias(struct walk *k, const char *rest, uint32_t n, float **out)
{
    return k->s->vector(k->s, full_name(k, rest), PARAM_BIAS, n, out, k->e);
}

static enum err_code walk_ffn(struct walk *k, const char *at, uint32_t width,
                              struct ffn_weights *out)
{
    char rest[64];
    uint32_t hidden = k->c->hidden_size;
    snprintf(rest, sizeof rest, "%s.gate_proj", at);
    if (linear(k, rest, width, hidden, &out->gate))
        return k->e->code;
    snprintf(rest, sizeof rest, "%s.up_proj", at);
    if (linear(k, rest, width, hidden, &out->up))
        return k->e->code;
    snprintf(rest, sizeof rest, "%s.down_proj", at);
    return linear(k, rest, hidden, width, &out->down);
}

static enum err_code walk_attention(struct walk *k, struct layer_weights *out)
{
    const struct model_config *c = k->c;
    uint32_t q_rows = c->n_heads * model_qk_dim(c);
    if (c->q_lora_rank) {
        if (linear(k, "self_attn.q_a_proj", c->q_lora_rank, c->hidden_size, &out->q_a) ||
            gain(k, "self_attn.q_a_layernorm.weight", c->q_lora_rank, &out->q_a_norm) ||
            linear(k, "self_attn.q_b_proj", q_rows, c->q_lora_rank, &out->q_b))
            return k->e->code;
    } else if (linear(k, "self_attn.q_proj", q_rows, c->hidden_size, &out->q)) {
        return k->e->code;
    }
    if (linear(k, "self_attn.kv_a_proj_with_mqa", c->kv_lora_rank + c->rope_dim, c->hidden_size,
               &out->kv_a) ||
        gain(k, "self_attn.kv_a_layernorm.weight", c->kv_lora_rank, &out->kv_a_norm) ||
        linear(k, "self_attn.kv_b_proj", c->n_heads * (c->nope_dim + c->v_dim), c->kv_lora_rank,
               &out->kv_b) ||
        linear(k, "self_attn.o_proj", c->hidden_size, c->n_heads * c->v_dim, &out->o))
        return k->e->code;
    return ERR_OK;
}

static enum err_code walk_indexer(struct walk *k, struct layer_weights *out)
{
    const struct model_config *c = k->c;
    if (linear(k, "self_attn.indexer.wq_b", c->index_heads * c->index_dim, c->q_lora_rank,
               &out->index_q) ||
        linear(k, "self_attn.indexer.wk", c->index_dim, c->hidden_size, &out->index_k) ||
        plain(k, "self_attn.indexer.weights_proj", c->index_heads, c->hidden_size, &out->index_w) ||
        gain(k, "self_attn.indexer.k_norm.weight", c->index_dim, &out->index_norm) ||
        bias(k, "self_attn.indexer.k_norm.bias", c->index_dim, &out->index_norm_bias))
        return k->e->code;
    return ERR_OK;
}

static enum err_code walk_moe(struct walk *k, struct layer_weights *out)
{
    const struct model_config *c = k->c;
    if (plain(k, "mlp.gate", c->n_experts, c->hidden_size, &out->router) ||
        (c->router_bias &&
         bias(k, "mlp.gate.e_score_correction_bias", c->n_experts, &out->router_bias)) ||
        walk_ffn(k, "mlp.shared_experts", c->n_shared * c->expert_width, &out->shared))
        return k->e->code;
    for (uint32_t i = 0; i < c->n_experts; i++) {
        char at[32];
        struct ffn_weights unwanted;
        snprintf(at, sizeof at, "mlp.experts.%u", i);
        if (walk_ffn(k, at, c->expert_width, out->expert ? &out->expert[i] : &unwanted))
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
    return model_is_moe(c, i) ? walk_moe(k, out) : walk_ffn(k, "mlp", c->dense_width, &out->dense);
}

enum err_code weights_walk(struct weights *w, const struct model_config *cfg,
                           struct weights_source *s, struct err *e)
{
    struct walk k = {.c = cfg, .s = s, .e = e};
    struct weights unwanted;
    struct layer_weights unwanted_layer = {.expert = NULL};
    struct weights *out = w ? w : &unwanted;
    if (plain(&k, "model.embed_tokens", cfg->vocab_size, cfg->hidden_size, &out->embed))
        return e->code;
    for (uint32_t i = 0; i < cfg->n_layers; i++) {
        if (walk_layer(&k, i, w ? &w->layer[i] : &unwanted_layer))
            return e->code;
    }
    k.prefix_len = 0;
    if (gain(&k, "model.norm.weight", cfg->hidden_size, &out->final_norm))
        return e->code;
    if (cfg->tie_embeddings) {
        out->head = out->embed;
        return ERR_OK;
    }
    return plain(&k, "lm_head", cfg->vocab_size, cfg->hidden_size, &out->head);
}

/* ---- memory ---- */

enum err_code weights_create(struct weights **out, const struct model_config *cfg, struct err *e)
{
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
        w->layer[i].expert = arena_zalloc(a, cfg->n_experts * sizeof *w->layer[i].expert);
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
                                  uint32_t n_out, uint32_t n_in, struct matrix *out, struct err *e)
{
    (void)name, (void)e;
    struct counter *k = (struct counter *)s;
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

size_t weights_bytes(const struct model_config *cfg, enum dtype dtype)
{
    struct err e = {0};
    struct counter k = {.source = {count_matrix, count_vector}, .dtype = dtype};
    enum err_code code = weights_walk(NULL, cfg, &k.source, &e);
    assert(code == ERR_OK); /* a counter never refuses */
    return k.bytes;
}

/* ---- reading a checkpoint ---- */

struct reader {
    struct weights_source source; /* first */
    struct weights *w;
};

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

/* The file's bytes, or a copy where the file does not align them to their size. */
static enum err_code aligned_bytes(struct weights *w, const struct tensor *t, const void **out,
                                   struct err *e)
{
    if ((uintptr_t)t->data % dtype_bytes(t->dtype) == 0) {
        *out = t->data;
        return ERR_OK;
    }
    void *copy = weights_alloc(w, t->bytes);
    if (!copy)
        return err_set(e, ERR_NOMEM, "%s: an aligned copy of %zu bytes", t->name, t->bytes);
    *out = memcpy(copy, t->data, t->bytes);
    return ERR_OK;
}

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
    if (t->dtype == DT_F32) {
        const void *p = NULL;
        if (aligned_bytes(r->w, t, &p, e))
            return e->code;
        *out = p;
        return ERR_OK;
    }
    float *v = NULL;
    if (widen(r->w, t, &v, e))
        return e->code;
    *out = v;
    return ERR_OK;
}

static enum err_code read_matrix(struct weights_source *s, const char *name, enum param_use use,
                                 uint32_t n_out, uint32_t n_in, struct matrix *out, struct err *e)
{
    struct reader *r = (struct reader *)s;
    const struct tensor *t = NULL;
    char full[NAME_BYTES + 24];
    snprintf(full, sizeof full, "%s.weight", name);
    if (find(r, full, &t, e) || check_matrix_shape(t, n_out, n_in, "the config", e))
        return e->code;
    struct matrix m = {.dtype = t->dtype, .n_out = n_out, .n_in = n_in};
    bool fp8 = t->dtype == DT_F8_E4M3;
    if (!is_float(t->dtype) && !(fp8 && use == PARAM_LINEAR))
        return err_set(e, ERR_INVALID, "%s: %s is not supported here, only BF16, F16, F32%s", full,
                       dtype_name(t->dtype), use == PARAM_LINEAR ? " and F8_E4M3" : "");
    if (aligned_bytes(r->w, t, &m.data, e))
        return e->code;
    if (fp8) {
        snprintf(full, sizeof full, "%s.weight_scale_inv", name);
        if (read_scale(r, full, &m, &m.scale, e))
            return e->code;
    }
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
    return widen(r->w, t, out, e);
}

/* ---- bringing the pages in ---- */

/* A tensor in use. */
struct piece {
    const struct tensor *t;
    const volatile unsigned char *data; /* volatile: reading is the point */
};

static int by_address(const void *a, const void *b)
{
    uintptr_t x = (uintptr_t)((const struct piece *)a)->data;
    uintptr_t y = (uintptr_t)((const struct piece *)b)->data;
    return x < y ? -1 : x > y;
}

/* Touches every page of the used tensors once, in the files' order, so that the disk reads forward
 * and the first request does not wait for it. */
static enum err_code touch_pages(struct weights *w, weights_progress *progress, void *arg,
                                 struct err *e)
{
    size_t n = 0, count = safetensors_count(w->files);
    struct piece *p = FAULT("weights.touch") ? NULL : malloc((count + 1) * sizeof *p);
    if (!p)
        return err_set(e, ERR_NOMEM, "a list of %zu tensors", count);
    for (size_t i = 0; i < count; i++) {
        const struct tensor *t = safetensors_at(w->files, i);
        if (!t->used)
            continue;
        p[n++] = (struct piece){t, t->data};
        w->file_bytes += t->bytes;
    }
    qsort(p, n, sizeof *p, by_address);
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t done = 0, told = 0, asked = 0, next = 0;
    for (size_t i = 0; i < n; i++) {
        for (; next < n && asked < done + AHEAD_BYTES; next++) {
            safetensors_prefetch(p[next].t);
            asked += p[next].t->bytes;
        }
        for (size_t at = 0, bytes = p[i].t->bytes; at < bytes;) {
            (void)p[i].data[at];
            size_t step = page - (uintptr_t)(p[i].data + at) % page; /* to the next page */
            step = step < bytes - at ? step : bytes - at;
            at += step;
            done += step;
            if (progress && done - told >= PROGRESS_BYTES) {
                progress(arg, done, w->file_bytes);
                told = done;
            }
        }
    }
    if (progress && (told < done || !done))
        progress(arg, done, w->file_bytes);
    free(p);
    return ERR_OK;
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

enum err_code weights_open(struct weights **out, const char *dir, const struct model_config *cfg,
                           weights_progress *progress, void *arg, struct err *e)
{
    struct reader r = {.source = {read_matrix, read_vector}};
    if (weights_create(&r.w, cfg, e))
        return e->code;
    if (safetensors_open_dir(&r.w->files, dir, e))
        goto close;
    if (weights_walk(r.w, cfg, &r.source, e) || touch_pages(r.w, progress, arg, e)) {
        err_prefix(e, "%s", dir);
        goto close;
    }
    list_unused(r.w);
    *out = r.w;
    return ERR_OK;
close:
    weights_close(r.w);
    return e->code;
}
