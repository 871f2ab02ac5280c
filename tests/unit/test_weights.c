/* test_weights.c - checkpoints of all families, edited ones that must be refused, dummy weights. */
#include "base/fault.h"
#include "base/json.h"
#include "base/log.h"
#include "model/weights.h"
#include "test.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const fixtures[] = {"v2-lite-bf16",       "v3-bf16",     "v32-bf16", "v32-fp8",
                                       "v32-true-heads-fp8", "glm-dsa-bf16"};
enum { N_FIXTURES = sizeof fixtures / sizeof *fixtures };

static struct model_config config_of(const char *name)
{
    struct model_config c;
    struct err e = {0};
    CHECK_OK(model_config_read(&c, test_fixture(name), &e), e);
    return c;
}

/* ---- a checkpoint in memory that tests change before they write it ---- */

struct edit {
    cJSON *header;
    unsigned char *data;
    size_t data_bytes;
    unsigned pad; /* spaces behind the header */
};

static struct edit load(const char *name)
{
    char rel[96];
    struct edit d = {0};
    struct err e = {0};
    snprintf(rel, sizeof rel, "%s/model.safetensors", name);
    FILE *f = fopen(test_fixture(rel), "rb");
    uint64_t n = 0;
    CHECK(f && fread(&n, 8, 1, f) == 1 && n < 1 << 20);
    char *text = malloc(n);
    CHECK(text && fread(text, 1, n, f) == n);
    CHECK_OK(json_parse(&d.header, text, n, 16, &e), e);
    free(text);
    long begin = ftell(f);
    CHECK(fseek(f, 0, SEEK_END) == 0);
    d.data_bytes = (size_t)(ftell(f) - begin);
    d.data = malloc(d.data_bytes + (1 << 20)); /* room for what tests add */
    CHECK(d.data && fseek(f, begin, SEEK_SET) == 0);
    CHECK(fread(d.data, 1, d.data_bytes, f) == d.data_bytes && fclose(f) == 0);
    return d;
}

static cJSON *member(const struct edit *d, const char *name)
{
    cJSON *m = cJSON_GetObjectItemCaseSensitive(d->header, name);
    CHECK_MSG(m != NULL, "no %s", name);
    return m;
}

/* Gives tensor `name` another form; its data are put behind all others. */
static void set(struct edit *d, const char *name, const char *dtype, const char *shape,
                const void *data, size_t bytes)
{
    cJSON *m = cJSON_CreateObject();
    cJSON_AddStringToObject(m, "dtype", dtype);
    cJSON_AddItemToObject(m, "shape", cJSON_Parse(shape));
    cJSON *o = cJSON_AddArrayToObject(m, "data_offsets");
    cJSON_AddItemToArray(o, cJSON_CreateNumber((double)d->data_bytes));
    memcpy(d->data + d->data_bytes, data, bytes);
    d->data_bytes += bytes;
    cJSON_AddItemToArray(o, cJSON_CreateNumber((double)d->data_bytes));
    cJSON_DeleteItemFromObjectCaseSensitive(d->header, name);
    cJSON_AddItemToObject(d->header, name, m);
}

static void reshape(struct edit *d, const char *name, const char *shape)
{
    cJSON_ReplaceItemInObjectCaseSensitive(member(d, name), "shape", cJSON_Parse(shape));
}

static const unsigned char *bytes_of(const struct edit *d, const char *name)
{
    const cJSON *o = json_get(member(d, name), "data_offsets");
    return d->data + (size_t)o->child->valuedouble;
}

static void store_as(const struct edit *d, const char *file)
{
    char path[256], *text = cJSON_PrintUnformatted(d->header);
    snprintf(path, sizeof path, "%s/%s", test_tmpdir(), file);
    FILE *f = fopen(path, "wb");
    uint64_t n = strlen(text) + d->pad;
    CHECK(f && fwrite(&n, 8, 1, f) == 1 && fputs(text, f) >= 0);
    for (unsigned i = 0; i < d->pad; i++)
        fputc(' ', f);
    CHECK(fwrite(d->data, 1, d->data_bytes, f) == d->data_bytes && fclose(f) == 0);
    free(text);
}

/* Writes d as a checkpoint and ends it. */
static void store(struct edit *d)
{
    store_as(d, "model.safetensors");
    cJSON_Delete(d->header);
    free(d->data);
}

static struct weights *open_stored(const struct model_config *c)
{
    struct weights *w = NULL;
    struct err e = {0};
    CHECK_OK(weights_open(&w, test_tmpdir(), c, NULL, NULL, &e), e);
    return w;
}

static void refuse(struct edit *d, const struct model_config *c, const char *message)
{
    struct weights *w = NULL;
    struct err e = {0};
    store(d);
    CHECK_MSG(weights_open(&w, test_tmpdir(), c, NULL, NULL, &e) == ERR_INVALID, "accepted: %s",
              message);
    CHECK_MSG(!w && strstr(e.msg, message) && strstr(e.msg, test_tmpdir()) == e.msg, "%s", e.msg);
}

/* ---- opening ---- */

struct seen {
    size_t calls, last, total;
};

static void note_progress(void *arg, size_t done, size_t total)
{
    struct seen *s = arg;
    CHECK(done > s->last && done <= total);
    *s = (struct seen){s->calls + 1, done, total};
}

static bool is(const struct matrix *m, uint32_t n_out, uint32_t n_in)
{
    return m->data && m->n_out == n_out && m->n_in == n_in &&
           (m->scale != NULL) == (m->dtype == DT_F8_E4M3);
}

static void check_arranged(const struct weights *w, const struct model_config *c)
{
    CHECK(is(&w->embed, c->vocab_size, c->hidden_size) && w->final_norm);
    CHECK(is(&w->head, c->vocab_size, c->hidden_size));
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const struct layer_weights *l = &w->layer[i];
        CHECK(l->input_norm && l->post_norm && l->kv_a_norm);
        CHECK(is(&l->kv_a, c->kv_lora_rank + c->rope_dim, c->hidden_size));
        CHECK(is(&l->kv_b, c->n_heads * (c->nope_dim + c->v_dim), c->kv_lora_rank));
        CHECK(is(&l->o, c->hidden_size, c->n_heads * c->v_dim));
        if (c->q_lora_rank) {
            CHECK(is(&l->q_b, c->n_heads * model_qk_dim(c), c->q_lora_rank) && l->q_a_norm);
            CHECK(is(&l->q_a, c->q_lora_rank, c->hidden_size) && !l->q.data);
        } else {
            CHECK(is(&l->q, c->n_heads * model_qk_dim(c), c->hidden_size) && !l->q_a.data);
        }
        bool full = c->has_indexer && c->index_full[i];
        CHECK(full == (l->index_q.data != NULL) && full == (l->index_norm_bias != NULL));
        if (full)
            CHECK(is(&l->index_k, c->index_dim, c->hidden_size) && l->index_norm &&
                  is(&l->index_w, c->index_heads, c->hidden_size));
        CHECK(model_is_moe(c, i) == (l->expert != NULL));
        CHECK(model_is_moe(c, i) == (l->dense.gate.data == NULL));
        if (!model_is_moe(c, i))
            continue;
        CHECK(is(&l->router, c->n_experts, c->hidden_size));
        CHECK(c->router_bias == (l->router_bias != NULL));
        CHECK(is(&l->shared.up, c->n_shared * c->expert_width, c->hidden_size));
        for (uint32_t x = 0; x < c->n_experts; x++)
            CHECK(is(&l->expert[x].down, c->hidden_size, c->expert_width));
    }
}

TEST(every_fixture_opens_whole)
{
    for (int i = 0; i < N_FIXTURES; i++) {
        struct model_config c = config_of(fixtures[i]);
        struct weights *w = NULL;
        struct err e = {0};
        struct seen seen = {0};
        CHECK_OK(weights_open(&w, test_fixture(fixtures[i]), &c, note_progress, &seen, &e), e);
        check_arranged(w, &c);
        CHECK(w->file_bytes == safetensors_bytes(w->files)); /* nothing was left over */
        CHECK(seen.calls == 1 && seen.last == seen.total && seen.total == w->file_bytes);
        weights_close(w);
    }
}

/* Two matrices of 30 MB, holes in a sparse file: told of every 16 MB, and at the end. */
TEST(progress_comes_every_16_mb)
{
    enum { ROWS = 96000 };
    static const char *const grown[] = {"model.embed_tokens.weight", "lm_head.weight"};
    struct model_config c = config_of("v3-bf16");
    struct edit d = load("v3-bf16");
    size_t bytes = (size_t)ROWS * 160 * 2, end = d.data_bytes;
    for (int i = 0; i < 2; i++, end += bytes) {
        double at[2] = {(double)end, (double)(end + bytes)};
        reshape(&d, grown[i], "[96000,160]");
        cJSON_ReplaceItemInObjectCaseSensitive(member(&d, grown[i]), "data_offsets",
                                               cJSON_CreateDoubleArray(at, 2));
    }
    store(&d);
    char path[256];
    struct stat sb;
    snprintf(path, sizeof path, "%s/model.safetensors", test_tmpdir());
    CHECK(stat(path, &sb) == 0 && truncate(path, sb.st_size + (off_t)(2 * bytes)) == 0);
    c.vocab_size = ROWS;
    struct weights *w = NULL;
    struct err e = {0};
    struct seen seen = {0};
    CHECK_OK(weights_open(&w, test_tmpdir(), &c, note_progress, &seen, &e), e);
    CHECK(seen.calls == 4 && seen.last == seen.total && seen.total == w->file_bytes);
    weights_close(w);
}

static float bf16(const unsigned char *p)
{
    uint32_t bits = (uint32_t)p[1] << 24 | (uint32_t)p[0] << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

TEST(values_are_the_files)
{
    struct model_config c = config_of("v32-fp8");
    struct edit d = load("v32-fp8");
    store_as(&d, "model.safetensors");
    struct weights *w = open_stored(&c);
    const unsigned char *p = bytes_of(&d, "model.layers.1.self_attn.indexer.k_norm.bias");
    for (uint32_t i = 0; i < c.index_dim; i++)
        CHECK(w->layer[1].index_norm_bias[i] == bf16(p + 2 * i));
    CHECK(memcmp(w->layer[1].router_bias,
                 bytes_of(&d, "model.layers.1.mlp.gate."
                              "e_score_correction_bias"),
                 4 * c.n_experts) == 0);
    const struct matrix *m = &w->layer[1].expert[7].up;
    CHECK(m->dtype == DT_F8_E4M3);
    CHECK(memcmp(m->data, bytes_of(&d, "model.layers.1.mlp.experts.7.up_proj.weight"),
                 (size_t)m->n_out * m->n_in) == 0);
    CHECK(memcmp(m->scale, bytes_of(&d, "model.layers.1.mlp.experts.7.up_proj.weight_scale_inv"),
                 8) == 0);
    weights_close(w);
    store(&d);
}

TEST(tied_embeddings_need_no_head)
{
    struct model_config c = config_of("v3-bf16");
    struct edit d = load("v3-bf16");
    c.tie_embeddings = true;
    cJSON_DeleteItemFromObjectCaseSensitive(d.header, "lm_head.weight");
    store(&d);
    struct weights *w = open_stored(&c);
    CHECK(w->head.data == w->embed.data && w->head.n_out == c.vocab_size);
    weights_close(w);
    d = load("v3-bf16"); /* a head that is there all the same is not used */
    size_t head_bytes = (size_t)c.vocab_size * c.hidden_size * 2;
    store(&d);
    w = open_stored(&c);
    CHECK(w->head.data == w->embed.data);
    CHECK(w->file_bytes + head_bytes == safetensors_bytes(w->files));
    weights_close(w);
}

/* Tensors of the MTP layer and of an indexer on a layer that shares selections are left alone. */
TEST(what_nothing_uses_is_ignored)
{
    struct model_config c = config_of("glm-dsa-bf16");
    struct edit d = load("glm-dsa-bf16");
    set(&d, "model.layers.3.self_attn.indexer.wk.weight", "F64", "[1]", "01234567", 8);
    set(&d, "model.layers.4.eh_proj.weight", "BF16", "[1]", "01", 2);
    set(&d, "model.layers.4.self_attn.indexer.wk.weight", "BF16", "[1]", "01", 2);
    store(&d);
    log_set_level(LOG_DEBUG);
    struct weights *w = open_stored(&c);
    log_set_level(LOG_INFO);
    CHECK(!w->layer[3].index_k.data && w->file_bytes + 12 == safetensors_bytes(w->files));
    weights_close(w);
    model_config_cut(&c, 1);
    w = open_stored(&c);
    check_arranged(w, &c);
    weights_close(w);
}

TEST(odd_addresses_are_copied)
{
    struct model_config c = config_of("v3-bf16");
    struct edit d = load("v3-bf16");
    char *text = cJSON_PrintUnformatted(d.header);
    d.pad = strlen(text) % 2 == 0 ? 1 : 2;
    free(text);
    store_as(&d, "model.safetensors");
    struct weights *w = open_stored(&c);
    const struct tensor *t = safetensors_find(w->files, "lm_head.weight");
    CHECK((uintptr_t)t->data % 2 == 1 && w->head.data != t->data);
    CHECK((uintptr_t)w->head.data % 2 == 0 && memcmp(w->head.data, t->data, t->bytes) == 0);
    const unsigned char *p = bytes_of(&d, "model.norm.weight");
    for (uint32_t i = 0; i < c.hidden_size; i++)
        CHECK(w->final_norm[i] == bf16(p + 2 * i));
    weights_close(w);
    store(&d);
}

TEST(scales_of_other_dtypes_become_fp32)
{
#define GATE "model.layers.0.mlp.gate_proj.weight_scale_inv"
    struct model_config c = config_of("v32-fp8");
    static const unsigned char e8m0[4] = {127, 0, 130, 117};
    static const uint16_t brain[4] = {0x3F80, 0x4000, 0xBF00, 0x0000};
    static const uint16_t half[4] = {0x3C00, 0x0001, 0xC000, 0x03FF};
    static const struct {
        const char *dtype;
        const void *data;
        size_t bytes;
        float want[4];
    } form[] = {
        {"F8_E8M0", e8m0, 4, {1, 0x1p-127f, 8, 0x1p-10f}},
        {"U8", e8m0, 4, {1, 0x1p-127f, 8, 0x1p-10f}},
        {"BF16", brain, 8, {1, 2, -0.5f, 0}},
        {"F16", half, 8, {1, 0x1p-24f, -2, 0x1.ff8p-15f}},
    };
    for (size_t i = 0; i < sizeof form / sizeof *form; i++) {
        struct edit d = load("v32-fp8");
        set(&d, GATE, form[i].dtype, "[2,2]", form[i].data, form[i].bytes);
        store(&d);
        struct weights *w = open_stored(&c);
        CHECK(memcmp(w->layer[0].dense.gate.scale, form[i].want, sizeof form[i].want) == 0);
        weights_close(w);
    }
}

TEST(routers_and_vectors_of_other_dtypes)
{
    struct model_config c = config_of("v3-bf16");
    struct edit d = load("v3-bf16");
    float *router = calloc(16 * 160, sizeof *router);
    router[5] = 1.5f;
    set(&d, "model.layers.1.mlp.gate.weight", "F32", "[16,160]", router, 16 * 160 * 4);
    uint16_t bias[16] = {0x3F80, 0xBF80};
    set(&d, "model.layers.1.mlp.gate.e_score_correction_bias", "BF16", "[16]", bias, 32);
    uint16_t norm[160] = {0x3C00, 0x7C00, 0xFC00};
    set(&d, "model.norm.weight", "F16", "[160]", norm, 320);
    store(&d);
    struct weights *w = open_stored(&c);
    const struct matrix *m = &w->layer[1].router;
    CHECK(m->dtype == DT_F32 && ((const float *)m->data)[5] == 1.5f);
    CHECK(w->layer[1].router_bias[0] == 1 && w->layer[1].router_bias[1] == -1);
    CHECK(w->final_norm[0] == 1 && w->final_norm[1] == INFINITY && w->final_norm[2] == -INFINITY);
    weights_close(w);
    free(router);
}

TEST(refusals_name_the_tensor_and_both_shapes)
{
    struct model_config c = config_of("v32-fp8");
    struct edit d = load("v32-fp8");
    cJSON_DeleteItemFromObjectCaseSensitive(d.header, "model.layers.1.self_attn.o_proj.weight");
    refuse(&d, &c, "model.layers.1.self_attn.o_proj.weight: missing from the checkpoint");
    d = load("v32-fp8");
    cJSON_DeleteItemFromObjectCaseSensitive(d.header, "lm_head.weight");
    refuse(&d, &c, "lm_head.weight: missing");
    d = load("v32-fp8");
    cJSON_DeleteItemFromObjectCaseSensitive(d.header, GATE);
    refuse(&d, &c, GATE ": missing, but an F8_E4M3 matrix of [224, 160] needs scales of [2, 2]");
    d = load("v32-fp8");
    reshape(&d, GATE, "[1,4]");
    refuse(&d, &c, GATE ": shape [1, 4], but an F8_E4M3 matrix of [224, 160] needs [2, 2]");
    d = load("v32-fp8");
    reshape(&d, GATE, "[4]");
    refuse(&d, &c, GATE ": shape [4], but");
    d = load("v32-fp8");
    set(&d, GATE, "I8", "[2,2]", "0123", 4);
    refuse(&d, &c, GATE ": I8 scales are not supported");
    d = load("v32-fp8");
    reshape(&d, "model.layers.1.mlp.experts.3.up_proj.weight", "[160,48]");
    refuse(&d, &c,
           "model.layers.1.mlp.experts.3.up_proj.weight: shape [160, 48], but the config asks for "
           "[48, 160]");
    d = load("v32-fp8");
    reshape(&d, "model.norm.weight", "[1,160]");
    refuse(&d, &c, "model.norm.weight: shape [1, 160], but the config asks for [160]");
    d = load("v32-fp8");
    reshape(&d, "model.norm.weight", "[1,1,1,1,1,1,1,160]");
    refuse(&d, &c, "model.norm.weight: shape [1, 1, 1, 1, 1, 1, 1, 160], but");
    d = load("v32-fp8");
    cJSON_ReplaceItemInObjectCaseSensitive(member(&d, "model.norm.weight"), "dtype",
                                           cJSON_CreateString("I16"));
    refuse(&d, &c, "model.norm.weight: I16 is not supported here, only BF16, F16, F32");
    d = load("v32-fp8");
    cJSON_ReplaceItemInObjectCaseSensitive(member(&d, "lm_head.weight"), "dtype",
                                           cJSON_CreateString("I16"));
    refuse(&d, &c, "lm_head.weight: I16 is not supported here, only BF16, F16, F32");
    d = load("v32-fp8");
    unsigned char eight[16 * 160] = {0};
    set(&d, "model.layers.1.mlp.gate.weight", "F8_E4M3", "[16,160]", eight, sizeof eight);
    refuse(&d, &c, "model.layers.1.mlp.gate.weight: F8_E4M3 is not supported here");
    c.hidden_size = 192;
    d = load("v32-fp8");
    refuse(&d, &c,
           "model.embed_tokens.weight: shape [384, 160], but the config asks for [384, 192]");
}

TEST(a_folder_without_weights)
{
    struct model_config c = config_of("v3-bf16");
    struct weights *w = NULL;
    struct err e = {0};
    CHECK(weights_open(&w, test_tmpdir(), &c, NULL, NULL, &e) == ERR_IO && !w);
    CHECK(strstr(e.msg, "neither model.safetensors nor"));
}

/* Half of the tensors in each of two shards. */
TEST(a_sharded_checkpoint)
{
    struct model_config c = config_of("v2-lite-bf16");
    struct edit d = load("v2-lite-bf16");
    cJSON *index = cJSON_CreateObject(), *map = cJSON_AddObjectToObject(index, "weight_map");
    cJSON *all = d.header;
    for (int s = 0; s < 2; s++) {
        char file[32];
        int i = 0;
        snprintf(file, sizeof file, "model-%d.safetensors", s);
        d.header = cJSON_CreateObject();
        for (const cJSON *m = all->child; m; m = m->next) {
            if (i++ % 2 != s || !json_get(m, "dtype"))
                continue;
            cJSON_AddItemToObject(d.header, m->string, cJSON_Duplicate(m, true));
            cJSON_AddStringToObject(map, m->string, file);
        }
        store_as(&d, file);
        cJSON_Delete(d.header);
    }
    char path[256], *text = cJSON_Print(index);
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", test_tmpdir());
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
    struct weights *w = open_stored(&c);
    check_arranged(w, &c);
    CHECK(w->file_bytes == safetensors_bytes(w->files));
    weights_close(w);
    free(text);
    cJSON_Delete(index);
    cJSON_Delete(all);
    free(d.data);
}

/* ---- dummy weights ---- */

static float e4m3(uint8_t code)
{
    int exponent = code >> 3 & 15, mantissa = code & 7;
    CHECK((code & 0x7F) != 0x7F);
    float a = exponent ? ldexpf((float)(8 + mantissa), exponent - 10) : ldexpf((float)mantissa, -9);
    return code & 0x80 ? -a : a;
}

static double deviation(const struct matrix *m)
{
    double sum = 0, squares = 0, n = (double)m->n_out * m->n_in;
    size_t columns = (m->n_in + 127) / 128;
    for (size_t i = 0; i < (size_t)m->n_out * m->n_in; i++) {
        float v = m->dtype == DT_BF16
                      ? bf16((const unsigned char *)m->data + 2 * i)
                      : e4m3(((const uint8_t *)m->data)[i]) *
                            m->scale[i / m->n_in / 128 * columns + i % m->n_in / 128];
        CHECK(isfinite(v));
        sum += (double)v;
        squares += (double)v * (double)v;
    }
    double std = sqrt(squares / n);
    CHECK(fabs(sum / n) < 5 * std / sqrt(n));
    return std;
}

static bool as_wide_as_it_should(const struct matrix *m)
{
    double n = (double)m->n_out * m->n_in, want = 1 / sqrt(m->n_in);
    return fabs(deviation(m) / want - 1) < 0.05 + 4 / sqrt(n);
}

TEST(dummy_weights_are_sane_and_complete)
{
    for (int i = 0; i < N_FIXTURES; i++) {
        struct model_config c = config_of(fixtures[i]);
        for (int fp8 = 0; fp8 < 2; fp8++) {
            struct weights *w = NULL;
            struct err e = {0};
            CHECK_OK(weights_dummy(&w, &c, fp8 ? DT_F8_E4M3 : DT_BF16, 7, &e), e);
            check_arranged(w, &c);
            CHECK(!w->files && w->file_bytes == 0 && w->embed.dtype == DT_BF16);
            const struct layer_weights *l = &w->layer[c.n_layers - 1];
            CHECK(l->o.dtype == (fp8 ? DT_F8_E4M3 : DT_BF16) && l->router.dtype == DT_BF16);
            CHECK(as_wide_as_it_should(&l->o) && as_wide_as_it_should(&l->expert[3].down));
            CHECK(as_wide_as_it_should(&w->head) && as_wide_as_it_should(&l->router));
            CHECK(l->input_norm[0] == 1 && l->kv_a_norm[c.kv_lora_rank - 1] == 1);
            CHECK(!l->router_bias || (l->router_bias[1] != 0 && fabsf(l->router_bias[1]) < 0.05f));
            weights_close(w);
        }
    }
}

TEST(dummy_weights_depend_on_seed_and_name_alone)
{
    struct model_config c = config_of("v32-bf16"), cut = c;
    struct weights *a = NULL, *b = NULL, *other = NULL;
    struct err e = {0};
    model_config_cut(&cut, 1);
    CHECK_OK(weights_dummy(&a, &c, DT_F8_E4M3, 1, &e), e);
    CHECK_OK(weights_dummy(&b, &cut, DT_F8_E4M3, 1, &e), e);
    CHECK_OK(weights_dummy(&other, &c, DT_F8_E4M3, 2, &e), e);
    size_t n = (size_t)a->layer[0].o.n_out * a->layer[0].o.n_in;
    CHECK(memcmp(a->layer[0].o.data, b->layer[0].o.data, n) == 0);
    CHECK(memcmp(a->layer[0].o.data, other->layer[0].o.data, n) != 0);
    CHECK(memcmp(a->layer[0].o.data, a->layer[1].o.data, n) != 0);
    weights_close(a);
    weights_close(b);
    weights_close(other);
}

TEST(bytes_of_the_published_models)
{
    struct model_config c = config_of("v32-bf16");
    struct weights *w = NULL;
    struct err e = {0};
    CHECK_OK(weights_open(&w, test_fixture("v32-bf16"), &c, NULL, NULL, &e), e);
    size_t bf16_bytes = weights_bytes(&c, DT_BF16);
    /* The file's vectors are BF16, ours fp32. */
    CHECK(bf16_bytes > w->file_bytes && bf16_bytes < w->file_bytes + 4096);
    weights_close(w);
    c = (struct model_config){.family = MODEL_DEEPSEEK_V32,
                              .vocab_size = 129280,
                              .hidden_size = 7168,
                              .n_layers = 61,
                              .n_dense_layers = 3,
                              .dense_width = 18432,
                              .n_heads = 128,
                              .q_lora_rank = 1536,
                              .kv_lora_rank = 512,
                              .nope_dim = 128,
                              .rope_dim = 64,
                              .v_dim = 128,
                              .n_experts = 256,
                              .n_active = 8,
                              .n_shared = 1,
                              .expert_width = 2048,
                              .router_bias = true,
                              .has_indexer = true,
                              .index_heads = 64,
                              .index_dim = 128};
    for (int i = 0; i < 61; i++)
        c.index_full[i] = true;
    /* 671.88e9 parameters in the layers, embedding and head. */
    CHECK(fabs((double)weights_bytes(&c, DT_BF16) / 2 - 671.88e9) < 0.01e9);
    CHECK(fabs((double)weights_bytes(&c, DT_F8_E4M3) - 674e9) < 1e9);
}

/* ---- failures ---- */

static enum err_code open_or_invent(struct weights **w, bool dummy, const struct model_config *c,
                                    struct err *e)
{
    return dummy ? weights_dummy(w, c, DT_F8_E4M3, 1, e)
                 : weights_open(w, test_tmpdir(), c, NULL, NULL, e);
}

/* Goal:   whichever step fails, nothing is left behind and nothing is given.
 * Method: the first passage fails, then the second ... until none is left. The data are odd and the
 *         scales are narrow, so that copies are made too. */
TEST_LIMIT(faults_leave_nothing_behind, 60)
{
    struct model_config c = config_of("v32-fp8");
    static const unsigned char e8m0[4] = {127, 127, 127, 127};
    struct edit d = load("v32-fp8");
    set(&d, GATE, "U8", "[2,2]", e8m0, 4);
    char *text = cJSON_PrintUnformatted(d.header);
    d.pad = strlen(text) % 2 == 0 ? 1 : 2;
    free(text);
    store(&d);
    log_set_level(LOG_OFF);
    for (int dummy = 0; dummy < 2; dummy++) {
        int n = 1;
        for (;; n++) {
            char spec[32];
            struct weights *w = NULL;
            struct err e = {0};
            snprintf(spec, sizeof spec, "*:%d", n);
            fault_arm(spec);
            enum err_code code = open_or_invent(&w, dummy, &c, &e);
            bool passed = fault_passages() >= (uint64_t)n;
            fault_arm(NULL);
            CHECK_MSG(passed == (code != ERR_OK), "passage %d: code %d, %s", n, (int)code, e.msg);
            CHECK(passed == (w == NULL));
            weights_close(w);
            if (!passed)
                break;
        }
        CHECK_MSG(n > 50, "%d passages", n);
    }
}
