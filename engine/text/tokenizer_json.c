/* tokenizer_json.c - reading tokenizer.json and tokenizer_config.json.
 *
 * What we cannot do exactly is refused by name, not passed over: a tokenizer that is almost right
 * gives a model that is almost right, and nobody finds out why.
 */
#include "base/fault.h"
#include "base/json.h"
#include "text/tokenizer_impl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static enum err_code refuse_unless_absent(const cJSON *object, const char *key, struct err *e)
{
    const cJSON *m = json_get(object, key);
    bool absent = !m || cJSON_IsNull(m) || cJSON_IsFalse(m) ||
                  (cJSON_IsString(m) && m->valuestring[0] == '\0') ||
                  (cJSON_IsNumber(m) && !(m->valuedouble > 0 || m->valuedouble < 0));
    return absent ? ERR_OK : err_set(e, ERR_INVALID, "model.%s is not supported", key);
}

static enum err_code check_normalizer(const cJSON *n, struct err *e)
{
    const char *type = NULL;
    if (!n || cJSON_IsNull(n))
        return ERR_OK;
    if (json_get_str(n, "type", &type, e))
        return err_prefix(e, "normalizer");
    const cJSON *list = json_get(n, "normalizers");
    if (type && strcmp(type, "Sequence") == 0 && cJSON_IsArray(list) && !list->child)
        return ERR_OK;
    return err_set(e, ERR_INVALID, "normalizer %s is not supported",
                   type ? type : "without a type");
}

static enum err_code check_decoder(const cJSON *d, struct err *e)
{
    const char *type = NULL;
    if (!d || cJSON_IsNull(d))
        return ERR_OK;
    if (json_get_str(d, "type", &type, e))
        return err_prefix(e, "decoder");
    if (type && strcmp(type, "ByteLevel") == 0)
        return ERR_OK;
    return err_set(e, ERR_INVALID, "decoder %s is not supported (ByteLevel is)",
                   type ? type : "without a type");
}

static enum err_code check_model(const cJSON *root, const cJSON *model, bool *ignore_merges,
                                 struct err *e)
{
    static const char *const refused[] = {"dropout", "byte_fallback", "continuing_subword_prefix",
                                          "end_of_word_suffix"};
    const char *type = "BPE"; /* older files leave it out */
    if (!cJSON_IsObject(model))
        return err_set(e, ERR_INVALID, "model is missing");
    if (json_get_str(model, "type", &type, e))
        return err_prefix(e, "model");
    if (strcmp(type, "BPE") != 0)
        return err_set(e, ERR_INVALID, "model.type %s is not supported (BPE is)", type);
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        if (refuse_unless_absent(model, refused[i], e))
            return e->code;
    }
    if (json_get_bool(model, "ignore_merges", ignore_merges, e))
        return err_prefix(e, "model");
    if (check_normalizer(json_get(root, "normalizer"), e) ||
        check_decoder(json_get(root, "decoder"), e))
        return e->code;
    return ERR_OK;
}

static enum err_code check_id(const cJSON *n, uint32_t *id, struct err *e)
{
    double v = cJSON_IsNumber(n) ? n->valuedouble : -1;
    if (!(v >= 0 && v < VOCAB_MAX_IDS) || v != (double)(uint32_t)v)
        return err_set(e, ERR_INVALID, "must be a whole number below %d", VOCAB_MAX_IDS);
    *id = (uint32_t)v;
    return ERR_OK;
}

/* Ids and bytes are counted first: the tables are made once, at their size. */
static enum err_code make_vocab(struct tokenizer *t, const cJSON *vocab, const cJSON *added,
                                struct err *e)
{
    uint32_t max_id = 0, id = 0, n_plain = 0;
    size_t bytes = 0, i = 0;
    const cJSON *m = NULL;
    if (!cJSON_IsObject(vocab) || !vocab->child)
        return err_set(e, ERR_INVALID, "model.vocab is missing");
    for (m = vocab->child; m; m = m->next) {
        if (check_id(m, &id, e))
            return err_prefix(e, "model.vocab %.60s", m->string);
        max_id = id > max_id ? id : max_id;
        bytes += strlen(m->string);
        if (++n_plain > VOCAB_MAX_IDS)
            return err_set(e, ERR_INVALID, "model.vocab: more than %d tokens", VOCAB_MAX_IDS);
    }
    if (added && !cJSON_IsNull(added) && !cJSON_IsArray(added))
        return err_set(e, ERR_INVALID, "added_tokens: must be an array");
    for (m = added ? added->child : NULL; m; m = m->next, i++) {
        const char *text = NULL;
        if (check_id(json_get(m, "id"), &id, e))
            return err_prefix(e, "added_tokens[%zu].id", i);
        if (json_get_str(m, "content", &text, e))
            return err_prefix(e, "added_tokens[%zu]", i);
        if (!text)
            return err_set(e, ERR_INVALID, "added_tokens[%zu].content is missing", i);
        max_id = id > max_id ? id : max_id;
        bytes += strlen(text);
    }
    if (vocab_init(&t->vocab, max_id + 1, n_plain, bytes, e))
        return e->code;
    t->flags = FAULT("tokenizer.flags") ? NULL : calloc(max_id + 1, 1);
    t->whole = calloc(max_id + 1, sizeof *t->whole);
    if (!t->flags || !t->whole)
        return err_set(e, ERR_NOMEM, "a vocabulary of %u tokens", max_id + 1);
    return ERR_OK;
}

/* The longest text of one token that we take; a merge joins two. */
enum { MAX_TOKEN_BYTES = 1 << 16 };

static enum err_code read_vocab(struct tokenizer *t, const cJSON *vocab, char *buf, struct err *e)
{
    for (const cJSON *m = vocab->child; m; m = m->next) {
        size_t n = strlen(m->string), bytes = 0;
        uint32_t id = (uint32_t)m->valuedouble;
        if (n > MAX_TOKEN_BYTES)
            return err_set(e, ERR_INVALID, "model.vocab: a token of %zu bytes", n);
        bool plain = vocab_unspell(m->string, n, buf, &bytes);
        if (!vocab_put(&t->vocab, id, plain ? buf : m->string, plain ? bytes : n, plain))
            return err_set(e, ERR_INVALID, "model.vocab: \"%.60s\" or its id %u stands there twice",
                           m->string, id);
    }
    for (unsigned b = 0; b < 256; b++) {
        char byte = (char)b;
        t->bpe.byte_id[b] = vocab_find(&t->vocab, &byte, 1);
        if (t->bpe.byte_id[b] == VOCAB_NONE)
            return err_set(e, ERR_INVALID, "model.vocab has no token for byte 0x%02x", b);
    }
    return ERR_OK;
}

static enum err_code read_added(struct tokenizer *t, const cJSON *added, struct err *e)
{
    static const char *const refused[] = {"single_word", "lstrip", "rstrip"};
    size_t i = 0;
    for (const cJSON *m = added ? added->child : NULL; m; m = m->next, i++) {
        const char *text = NULL;
        uint32_t id = 0;
        bool special = false;
        if (json_get_str(m, "content", &text, e) || json_get_bool(m, "special", &special, e))
            return err_prefix(e, "added_tokens[%zu]", i);
        for (size_t k = 0; k < sizeof refused / sizeof refused[0]; k++) {
            bool on = false;
            if (json_get_bool(m, refused[k], &on, e))
                return err_prefix(e, "added_tokens[%zu]", i);
            if (on)
                return err_set(e, ERR_INVALID, "added_tokens[%zu] (%.60s): %s is not supported", i,
                               text, refused[k]);
        }
        if (check_id(json_get(m, "id"), &id, e) ||
            !text[0]) /* an empty one would match everywhere */
            continue;
        if (!vocab_put(&t->vocab, id, text, strlen(text), false))
            return err_set(e, ERR_INVALID, "added_tokens[%zu] (%.60s): %u is another token's id", i,
                           text, id);
        if (added_tokens_put(&t->added, text, strlen(text), id, e))
            return e->code;
        t->flags[id] = (uint8_t)(TOKEN_ADDED | (special ? TOKEN_SPECIAL : 0));
    }
    return ERR_OK;
}

/* "a b" or ["a", "b"]: the two halves, spelt. */
static bool merge_halves(const cJSON *m, const char *half[2], size_t n[2])
{
    if (cJSON_IsString(m)) {
        const char *space = strchr(m->valuestring, ' ');
        if (!space || strchr(space + 1, ' '))
            return false;
        half[0] = m->valuestring;
        n[0] = (size_t)(space - m->valuestring);
        half[1] = space + 1;
    } else {
        const cJSON *a = cJSON_IsArray(m) ? m->child : NULL, *b = a ? a->next : NULL;
        if (!cJSON_IsString(a) || !cJSON_IsString(b) || b->next)
            return false;
        half[0] = a->valuestring;
        n[0] = strlen(half[0]);
        half[1] = b->valuestring;
    }
    n[1] = strlen(half[1]);
    return n[0] && n[1] && n[0] <= MAX_TOKEN_BYTES && n[1] <= MAX_TOKEN_BYTES;
}

static enum err_code read_merges(struct tokenizer *t, const cJSON *merges, char *buf, struct err *e)
{
    uint32_t n_merges = 0, i = 0;
    const cJSON *m = NULL;
    if (!cJSON_IsArray(merges))
        return err_set(e, ERR_INVALID, "model.merges is missing");
    for (m = merges->child; m; m = m->next) {
        if (++n_merges >= VOCAB_MAX_IDS)
            return err_set(e, ERR_INVALID, "model.merges: more than %d", VOCAB_MAX_IDS);
    }
    if (bpe_init(&t->bpe, n_merges, e))
        return e->code;
    for (m = merges->child; m; m = m->next, i++) {
        const char *half[2] = {NULL, NULL};
        size_t n[2] = {0, 0}, bytes[2] = {0, 0};
        if (!merge_halves(m, half, n))
            return err_set(e, ERR_INVALID, "model.merges[%u]: must be two tokens", i);
        if (!vocab_unspell(half[0], n[0], buf, &bytes[0]) ||
            !vocab_unspell(half[1], n[1], buf + bytes[0], &bytes[1]))
            return err_set(e, ERR_INVALID, "model.merges[%u]: not spelt in bytes", i);
        uint32_t left = vocab_find(&t->vocab, buf, bytes[0]),
                 right = vocab_find(&t->vocab, buf + bytes[0], bytes[1]),
                 joined = vocab_find(&t->vocab, buf, bytes[0] + bytes[1]);
        if (left == VOCAB_NONE || right == VOCAB_NONE || joined == VOCAB_NONE)
            return err_set(e, ERR_INVALID, "model.merges[%u]: a token that the vocabulary lacks",
                           i);
        if (t->flags[joined] & TOKEN_SPECIAL)
            return err_set(e, ERR_INVALID, "model.merges[%u] makes the special token %u", i,
                           joined);
        bpe_add(&t->bpe, left, right, joined);
    }
    return ERR_OK;
}

static enum err_code read_model(struct tokenizer *t, const cJSON *root, struct err *e)
{
    const cJSON *model = json_get(root, "model"), *vocab = json_get(model, "vocab"),
                *added = json_get(root, "added_tokens");
    if (check_model(root, model, &t->ignore_merges, e) || make_vocab(t, vocab, added, e))
        return e->code;
    char *buf = FAULT("tokenizer.buffer") ? NULL : malloc(2 * MAX_TOKEN_BYTES);
    if (!buf)
        return err_set(e, ERR_NOMEM, "reading the vocabulary");
    e->code = ERR_OK;
    if (read_vocab(t, vocab, buf, e) || read_added(t, added, e) ||
        read_merges(t, json_get(model, "merges"), buf, e) ||
        pretok_create(&t->pretok, json_get(root, "pre_tokenizer"), e))
        assert(e->code != ERR_OK);
    free(buf);
    return e->code;
}

/* ---- tokenizer_config.json ---- */

static enum err_code dup_str(char **out, const char *s, struct err *e)
{
    char *copy = FAULT("tokenizer.dup") ? NULL : strdup(s);
    if (!copy)
        return err_set(e, ERR_NOMEM, "chat_template");
    free(*out);
    *out = copy;
    return ERR_OK;
}

/* "<token>" or {"content": "<token>"}. */
static uint32_t config_token(const struct tokenizer *t, const cJSON *config, const char *key)
{
    const cJSON *m = json_get(config, key);
    if (cJSON_IsObject(m))
        m = json_get(m, "content");
    return cJSON_IsString(m) ? tokenizer_find(t, m->valuestring, strlen(m->valuestring))
                             : UINT32_MAX;
}

static enum err_code read_config(struct tokenizer *t, const cJSON *config, struct err *e)
{
    const char *class_name = NULL, *text = NULL;
    t->bos = config_token(t, config, "bos_token");
    t->eos = config_token(t, config, "eos_token");
    if (json_get_str(config, "tokenizer_class", &class_name, e))
        return e->code;
    t->add_bos = class_name && strncmp(class_name, "LlamaTokenizer", 14) == 0; /* its default */
    if (json_get_bool(config, "add_bos_token", &t->add_bos, e))
        return e->code;
    t->add_bos = t->add_bos && t->bos != UINT32_MAX;
    const cJSON *tmpl = json_get(config, "chat_template"), *m = NULL;
    if (cJSON_IsString(tmpl))
        text = tmpl->valuestring;
    for (m = cJSON_IsArray(tmpl) ? tmpl->child : NULL; m; m = m->next) { /* several, by name */
        const cJSON *name = json_get(m, "name"), *body = json_get(m, "template");
        if (cJSON_IsString(name) && strcmp(name->valuestring, "default") == 0 &&
            cJSON_IsString(body))
            text = body->valuestring;
    }
    return text ? dup_str(&t->chat_template, text, e) : ERR_OK;
}

static enum err_code build(struct tokenizer **out, const cJSON *root, const cJSON *config,
                           const char *config_name, struct err *e)
{
    struct tokenizer *t = FAULT("tokenizer.create") ? NULL : calloc(1, sizeof *t);
    if (!t)
        return err_set(e, ERR_NOMEM, "tokenizer");
    t->bos = t->eos = UINT32_MAX;
    if (read_model(t, root, e)) {
        err_prefix(e, "tokenizer.json");
        goto fail;
    }
    if (config && read_config(t, config, e)) {
        err_prefix(e, "%s", config_name);
        goto fail;
    }
    *out = t;
    return ERR_OK;
fail:
    tokenizer_close(t);
    return e->code;
}

enum err_code tokenizer_parse(struct tokenizer **out, const char *json, size_t json_bytes,
                              const char *config, size_t config_bytes, struct err *e)
{
    cJSON *root = NULL, *conf = NULL;
    e->code = ERR_OK;
    if (json_parse(&root, json, json_bytes, JSON_MAX_DEPTH, e))
        return err_prefix(e, "tokenizer.json");
    if (config && json_parse(&conf, config, config_bytes, JSON_MAX_DEPTH, e))
        err_prefix(e, "tokenizer_config.json");
    else
        e->code = build(out, root, conf, "tokenizer_config.json", e);
    cJSON_Delete(conf);
    cJSON_Delete(root);
    return e->code;
}

/* Newer directories keep the template in a file of its own; it wins over the one in the settings.
 */
static enum err_code read_template_file(struct tokenizer *t, const char *dir, struct err *e)
{
    enum { MAX_TEMPLATE_BYTES = 1 << 20 };
    char path[4096];
    snprintf(path, sizeof path, "%s/chat_template.jinja", dir);
    FILE *f = fopen(path, "rb");
    if (!f)
        return errno == ENOENT || errno == ENOTDIR
                   ? ERR_OK
                   : err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    char *text = malloc(MAX_TEMPLATE_BYTES + 1);
    if (!text) {
        fclose(f);
        return err_set(e, ERR_NOMEM, "%s", path);
    }
    size_t n = fread(text, 1, MAX_TEMPLATE_BYTES + 1, f);
    bool failed = ferror(f) != 0;
    fclose(f);
    e->code = ERR_OK;
    if (failed || n > MAX_TEMPLATE_BYTES) {
        err_set(e, ERR_IO, "%s: cannot be read, or is larger than 1 MiB", path);
    } else {
        text[n] = '\0';
        e->code = dup_str(&t->chat_template, text, e);
    }
    free(text);
    return e->code;
}

enum err_code tokenizer_open(struct tokenizer **out, const char *dir, struct err *e)
{
    char path[4096], config_path[4096];
    cJSON *root = NULL, *conf = NULL;
    struct tokenizer *t = NULL;
    if (snprintf(path, sizeof path, "%s/tokenizer.json", dir) >= (int)sizeof path - 32)
        return err_set(e, ERR_IO, "%.100s...: the path is too long", dir);
    snprintf(config_path, sizeof config_path, "%s/tokenizer_config.json", dir);
    e->code = ERR_OK;
    if (json_parse_file(&root, path, e))
        return e->code;
    if (access(config_path, F_OK) == 0 && json_parse_file(&conf, config_path, e))
        goto free_trees;
    if (build(&t, root, conf, "tokenizer_config.json", e)) {
        err_prefix(e, "%s", dir);
        goto free_trees;
    }
    if (read_template_file(t, dir, e)) {
        tokenizer_close(t);
        goto free_trees;
    }
    e->code = ERR_OK;
    *out = t;
free_trees:
    cJSON_Delete(conf);
    cJSON_Delete(root);
    return e->code;
}
