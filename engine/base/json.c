/* json.c - see json.h. */
#include "base/json.h"

#include "base/fault.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool utf8_valid(const char *text, size_t bytes, size_t *bad)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < bytes) {
        unsigned char c = s[i];
        size_t n = c < 0x80                ? 1
                   : c >= 0xC2 && c < 0xE0 ? 2
                   : (c & 0xF0) == 0xE0    ? 3
                   : c >= 0xF0 && c < 0xF5 ? 4
                                           : 0;
        bool ok = n && n <= bytes - i;
        for (size_t k = 1; ok && k < n; k++)
            ok = (s[i + k] & 0xC0) == 0x80;
        if (ok && n == 3)
            ok = !(c == 0xE0 && s[i + 1] < 0xA0) && !(c == 0xED && s[i + 1] >= 0xA0);
        if (ok && n == 4)
            ok = !(c == 0xF0 && s[i + 1] < 0x90) && !(c == 0xF4 && s[i + 1] >= 0x90);
        if (!ok) {
            if (bad)
                *bad = i;
            return false;
        }
        i += n;
    }
    return true;
}

static bool is_hex4(const char *s, size_t room, unsigned *out)
{
    unsigned v = 0;
    if (room < 4)
        return false;
    for (int i = 0; i < 4; i++) {
        char c = s[i];
        unsigned d = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                     : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
                     : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A') + 10
                                            : 99;
        if (d > 15)
            return false;
        v = v * 16 + d;
    }
    *out = v;
    return true;
}

/* cJSON recurses and reads strings to NUL, so what it must never see is refused here, in one pass.
 * n_nul, where it is not NULL: how many \u0000 there are, which are let through.
 */
static enum err_code scan(const char *text, size_t bytes, int max_depth, size_t *n_nul,
                          struct err *e)
{
    size_t bad = 0;
    if (!utf8_valid(text, bytes, &bad))
        return err_set(e, ERR_INVALID, "JSON: invalid UTF-8 at byte %zu", bad);
    bool in_string = false;
    int depth = 0;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (c == '\0')
            return err_set(e, ERR_INVALID, "JSON: NUL at byte %zu", i);
        if (!in_string) {
            if (c == '"')
                in_string = true;
            else if ((c == '[' || c == '{') && ++depth > max_depth)
                return err_set(e, ERR_INVALID, "JSON: more than %d nested levels at byte %zu",
                               max_depth, i);
            else if (c == ']' || c == '}')
                depth--;
            continue;
        }
        if (c == '"') {
            in_string = false;
        } else if ((unsigned char)c < 0x20) {
            return err_set(e, ERR_INVALID, "JSON: control character %u inside a string at byte %zu",
                           (unsigned)(unsigned char)c, i);
        } else if (c == '\\') {
            unsigned v = 0, low = 0;
            i++;
            if (i >= bytes || text[i] != 'u')
                continue;
            if (!is_hex4(text + i + 1, bytes - i - 1, &v))
                return err_set(e, ERR_INVALID, "JSON: bad \\u escape at byte %zu", i - 1);
            if (v == 0 && n_nul)
                ++*n_nul;
            else if (v == 0)
                return err_set(e, ERR_INVALID, "JSON: \\u0000 at byte %zu", i - 1);
            if (v >= 0xDC00 && v < 0xE000)
                return err_set(e, ERR_INVALID, "JSON: lone surrogate at byte %zu", i - 1);
            if (v >= 0xD800 && v < 0xDC00) {
                if (bytes - i < 11 || text[i + 5] != '\\' || text[i + 6] != 'u' ||
                    !is_hex4(text + i + 7, bytes - i - 7, &low) || low < 0xDC00 || low > 0xDFFF)
                    return err_set(e, ERR_INVALID, "JSON: lone surrogate at byte %zu", i - 1);
                i += 6;
            }
            i += 4;
        }
    }
    return ERR_OK;
}

static enum err_code parse(cJSON **out, const char *text, size_t bytes, struct err *e)
{
    const char *end = NULL;
    cJSON *tree = FAULT("json.parse") ? NULL : cJSON_ParseWithLengthOpts(text, bytes, &end, 0);
    if (!tree)
        return err_set(e, ERR_INVALID, "JSON: cannot be read past byte %zu",
                       end ? (size_t)(end - text) : (size_t)0);
    while (end < text + bytes && (*end == ' ' || *end == '\t' || *end == '\n' || *end == '\r'))
        end++;
    if (end < text + bytes) {
        cJSON_Delete(tree);
        return err_set(e, ERR_INVALID, "JSON: more bytes after the value at byte %zu",
                       (size_t)(end - text));
    }
    *out = tree;
    return ERR_OK;
}

enum err_code json_parse(cJSON **out, const char *text, size_t bytes, int max_depth, struct err *e)
{
    return scan(text, bytes, max_depth, NULL, e) ? e->code : parse(out, text, bytes, e);
}

enum err_code json_parse_nul(cJSON **out, const char *text, size_t bytes, int max_depth,
                             struct err *e)
{
    size_t n_nul = 0, n = 0;
    if (scan(text, bytes, max_depth, &n_nul, e))
        return e->code;
    if (!n_nul)
        return parse(out, text, bytes, e);
    char *copy = FAULT("json.parse") ? NULL : malloc(bytes);
    if (!copy)
        return err_set(e, ERR_NOMEM, "JSON of %zu bytes", bytes);
    for (size_t i = 0; i < bytes;) {
        bool escape = text[i] == '\\';
        if (bytes - i >= 6 && !memcmp(text + i, "\\u0000", 6)) {
            copy[n++] = JSON_NUL[0];
            copy[n++] = JSON_NUL[1];
            i += 6;
            continue;
        }
        copy[n++] = text[i++];
        if (escape && i < bytes)
            copy[n++] = text[i++];
    }
    enum err_code code = parse(out, copy, n, e);
    free(copy);
    return code;
}

enum err_code json_parse_file(cJSON **out, const char *path, struct err *e)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
    char *text = NULL;
    long size = fseek(f, 0, SEEK_END) == 0 ? ftell(f) : -1;
    if (size < 0 || fseek(f, 0, SEEK_SET) != 0) {
        err_set(e, ERR_IO, "%s: %s", path, strerror(errno));
        goto close_file;
    }
    text = malloc((size_t)size + 1);
    if (!text) {
        err_set(e, ERR_NOMEM, "%s: %ld bytes", path, size);
        goto close_file;
    }
    if (fread(text, 1, (size_t)size, f) != (size_t)size) {
        err_set(e, ERR_IO, "%s: read fewer than its %ld bytes", path, size);
        goto free_text;
    }
    if (json_parse(out, text, (size_t)size, JSON_MAX_DEPTH, e))
        err_prefix(e, "%s", path);
    else
        e->code = ERR_OK;
free_text:
    free(text);
close_file:
    fclose(f);
    return e->code;
}

const cJSON *json_get(const cJSON *object, const char *key)
{
    const cJSON *found = NULL;
    if (!cJSON_IsObject(object))
        return NULL;
    for (const cJSON *m = object->child; m; m = m->next) {
        if (m->string && strcmp(m->string, key) == 0)
            found = m;
    }
    return found;
}

static const cJSON *get_present(const cJSON *object, const char *key)
{
    const cJSON *m = json_get(object, key);
    return m && !cJSON_IsNull(m) ? m : NULL;
}

enum err_code json_get_f64(const cJSON *object, const char *key, double min, double max,
                           double *out, struct err *e)
{
    const cJSON *m = get_present(object, key);
    if (!m)
        return ERR_OK;
    if (!cJSON_IsNumber(m))
        return err_set(e, ERR_INVALID, "%s: must be a number", key);
    if (!(m->valuedouble >= min && m->valuedouble <= max))
        return err_set(e, ERR_INVALID, "%s: %g is outside %g..%g", key, m->valuedouble, min, max);
    *out = m->valuedouble;
    return ERR_OK;
}

enum err_code json_get_u32(const cJSON *object, const char *key, uint32_t min, uint32_t max,
                           uint32_t *out, struct err *e)
{
    double v = *out;
    if (!get_present(object, key))
        return ERR_OK;
    if (json_get_f64(object, key, min, max, &v, e))
        return e->code;
    if (v != floor(v))
        return err_set(e, ERR_INVALID, "%s: %g is not a whole number", key, v);
    *out = (uint32_t)v;
    return ERR_OK;
}

enum err_code json_get_bool(const cJSON *object, const char *key, bool *out, struct err *e)
{
    const cJSON *m = get_present(object, key);
    if (!m)
        return ERR_OK;
    if (!cJSON_IsBool(m))
        return err_set(e, ERR_INVALID, "%s: must be true or false", key);
    *out = cJSON_IsTrue(m);
    return ERR_OK;
}

enum err_code json_get_str(const cJSON *object, const char *key, const char **out, struct err *e)
{
    const cJSON *m = get_present(object, key);
    if (!m)
        return ERR_OK;
    if (!cJSON_IsString(m))
        return err_set(e, ERR_INVALID, "%s: must be a string", key);
    *out = m->valuestring;
    return ERR_OK;
}
