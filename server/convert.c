/* convert.c - see convert.h. */
#include "convert.h"

#include "base/json.h"

static bool no_memory(struct api_error *ae)
{
    struct err e = {.code = ERR_NOMEM};
    api_fail_err(ae, &e);
    return false;
}

bool convert_begin(struct conversion *c, cJSON *from, struct api_error *ae)
{
    *c = (struct conversion){.from = from, .to = cJSON_CreateObject(), .ae = ae};
    return c->to || no_memory(ae);
}

bool convert_end(struct conversion *c, cJSON **root, bool ok)
{
    if (!ok || (c->failed && !no_memory(c->ae))) {
        cJSON_Delete(c->to);
        return false;
    }
    cJSON_Delete(*root);
    *root = c->to;
    return true;
}

cJSON *convert_add(struct conversion *c, cJSON *object, const char *key, cJSON *value)
{
    bool ok =
        object && value &&
        (key ? cJSON_AddItemToObject(object, key, value) : cJSON_AddItemToArray(object, value));
    if (ok)
        return value;
    cJSON_Delete(value);
    c->failed = true;
    return NULL;
}

void convert_move(struct conversion *c, cJSON *from, const char *key, cJSON *to, const char *as)
{
    const cJSON *v = json_get(from, key);
    if (v && !cJSON_IsNull(v))
        convert_add(c, to, as, cJSON_DetachItemViaPointer(from, (cJSON *)(uintptr_t)v));
}

const char *convert_type(const cJSON *part)
{
    const cJSON *type = json_get(part, "type");
    return cJSON_IsString(type) ? type->valuestring : "";
}

cJSON *convert_message(struct conversion *c, const char *role)
{
    cJSON *m = convert_add(c, c->messages, NULL, cJSON_CreateObject());
    convert_add(c, m, "role", cJSON_CreateString(role));
    return m;
}

bool convert_text(struct conversion *c, const struct field_reader *r, const cJSON *part,
                  cJSON *message)
{
    const cJSON *text = json_get(part, "text");
    cJSON *parts = (cJSON *)(uintptr_t)json_get(message, "content");
    if (!cJSON_IsString(text))
        return field_fail(r, "text", "expected a string");
    if (!parts)
        parts = convert_add(c, message, "content", cJSON_CreateArray());
    cJSON *to = convert_add(c, parts, NULL, cJSON_CreateObject());
    convert_add(c, to, "type", cJSON_CreateString("text"));
    convert_add(c, to, "text", cJSON_CreateString(text->valuestring));
    return true;
}
