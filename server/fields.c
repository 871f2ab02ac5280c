/* fields.c - one field of a request at a time; see params.h. */
#include "params.h"

#include "base/json.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool field_fail(const struct field_reader *r, const char *key, const char *fmt, ...)
{
    char message[360], param[96];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    snprintf(param, sizeof param, "%s%s", r->prefix, key);
    return api_fail(r->ae, 400, param, "invalid_value", "%s: %s", param, message);
}

const cJSON *field_get(const struct field_reader *r, const char *key)
{
    const cJSON *v = json_get(r->root, key);
    return v && !cJSON_IsNull(v) ? v : NULL;
}

bool field_number(const struct field_reader *r, const char *key, double *out)
{
    const cJSON *v = field_get(r, key);
    if (!v)
        return true;
    if (!cJSON_IsNumber(v))
        return field_fail(r, key, "expected a number");
    *out = v->valuedouble;
    return true;
}

static bool read_int(const struct field_reader *r, const char *key, double min, double max,
                     int64_t *out)
{
    const cJSON *v = field_get(r, key);
    if (!v)
        return true;
    double x = cJSON_IsNumber(v) ? v->valuedouble : 0.5;
    if (x != floor(x) || !isfinite(x))
        return field_fail(r, key, "expected an integer");
    if (x < min || x > max)
        return field_fail(r, key, "%.0f is outside %.0f..%.0f", x, min, max);
    *out = (int64_t)x;
    return true;
}

bool field_int(const struct field_reader *r, const char *key, int64_t *out)
{
    return read_int(r, key, -9007199254740992.0, 9007199254740992.0, out); /* exact in a double */
}

bool field_u32(const struct field_reader *r, const char *key, uint32_t *out)
{
    return field_u32_within(r, key, 0, UINT32_MAX, out);
}

bool field_u32_within(const struct field_reader *r, const char *key, uint32_t min, uint32_t max,
                      uint32_t *out)
{
    int64_t v = *out;
    if (!read_int(r, key, min, max, &v))
        return false;
    *out = (uint32_t)v;
    return true;
}

bool field_bool(const struct field_reader *r, const char *key, bool *out)
{
    const cJSON *v = field_get(r, key);
    if (!v)
        return true;
    if (!cJSON_IsBool(v))
        return field_fail(r, key, "expected true or false");
    *out = cJSON_IsTrue(v);
    return true;
}

bool field_text(const struct field_reader *r, const char *key, const char **out)
{
    const cJSON *v = field_get(r, key);
    if (!v)
        return true;
    if (!cJSON_IsString(v))
        return field_fail(r, key, "expected a string");
    *out = v->valuestring;
    return true;
}

/* Commas outside of strings: as many values, less one per container. A parsed value takes some
 * eighty bytes, so a body of "1,1,1,..." would take thirty times its size. */
static size_t count_commas(const char *s, size_t n)
{
    size_t commas = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        if (in_string && s[i] == '\\')
            i++;
        else if (s[i] == '"')
            in_string = !in_string;
        else if (s[i] == ',' && !in_string)
            commas++;
    }
    return commas;
}

/* Whether there is a JSON_NUL in a key or string of v, or of what comes behind it, outside of these
 * schemas. */
static bool has_nul(const cJSON *v, const cJSON *const schema[3])
{
    for (; v; v = v->next) {
        if (v->string && strstr(v->string, JSON_NUL))
            return true;
        bool is_schema = v == schema[0] || v == schema[1] || v == schema[2];
        if (is_schema && !cJSON_IsString(v))
            continue;
        if ((cJSON_IsString(v) && strstr(v->valuestring, JSON_NUL)) || has_nul(v->child, schema))
            return true;
    }
    return false;
}

/* \u0000 is for names and values that a schema demands; text for a model has none. */
static enum err_code parse_body(cJSON **out, const char *body, size_t bytes, struct err *e)
{
    cJSON *root;
    if (!memmem(body, bytes, "\\u0000", 6))
        return json_parse(out, body, bytes, JSON_MAX_DEPTH, e);
    if (json_parse_nul(&root, body, bytes, JSON_MAX_DEPTH, e))
        return e->code;
    const cJSON *format = json_get(json_get(root, "response_format"), "json_schema");
    const cJSON *schema[3] = {json_get(format, "schema"),
                              json_get(json_get(root, "structured_outputs"), "json"),
                              json_get(root, "guided_json")};
    if (has_nul(root, schema)) {
        cJSON_Delete(root);
        return json_parse(out, body, bytes, JSON_MAX_DEPTH, e); /* says where */
    }
    *out = root;
    return ERR_OK;
}

bool params_parse_json(cJSON **out, const char *body, size_t bytes, struct api_error *ae)
{
    struct err e = {0};
    *out = NULL;
    if (!bytes)
        return api_fail(ae, 400, NULL, "invalid_json", "The request has no body.");
    if (count_commas(body, bytes) > PARAMS_MAX_VALUES)
        return api_fail(ae, 400, NULL, "too_many_values", "The body holds more than %d values.",
                        PARAMS_MAX_VALUES);
    if (parse_body(out, body, bytes, &e) || chat_json_keep_numbers(*out, body, bytes, &e)) {
        cJSON_Delete(*out);
        *out = NULL;
        if (e.code == ERR_INVALID)
            return api_fail(ae, 400, NULL, "invalid_json", "The body is not valid JSON: %s.",
                            e.msg);
        api_fail_err(ae, &e);
        return false;
    }
    if (!cJSON_IsObject(*out)) {
        cJSON_Delete(*out);
        *out = NULL;
        return api_fail(ae, 400, NULL, "invalid_json", "The body must be a JSON object.");
    }
    return true;
}
