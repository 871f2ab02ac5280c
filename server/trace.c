/* trace.c - see trace.h. */
#include "trace.h"

#include "base/hash.h"
#include "hex.h"

#include <stdio.h>
#include <string.h>

/* n bytes, and not all of them zero. */
static bool read_id(const char *s, uint8_t *out, size_t n)
{
    uint8_t some = 0;
    if (!hex_read(s, out, n))
        return false;
    for (size_t i = 0; i < n; i++)
        some |= out[i];
    return some != 0;
}

/* version "-" trace "-" parent "-" flags; later versions may go on behind another "-". */
static bool read_header(struct trace *t, const char *h)
{
    size_t n = strlen(h);
    int v1 = n ? hex_value(h[0]) : -1, v2 = n > 1 ? hex_value(h[1]) : -1;
    if (n < 55 || v1 < 0 || v2 < 0 || (v1 == 15 && v2 == 15))
        return false;
    bool first = v1 == 0 && v2 == 0;
    if (h[2] != '-' || h[35] != '-' || h[52] != '-' || (n > 55 && (first || h[55] != '-')))
        return false;
    int f1 = hex_value(h[53]), f2 = hex_value(h[54]);
    if (f1 < 0 || f2 < 0 || !read_id(h + 3, t->id, TRACE_ID) ||
        !read_id(h + 36, t->parent, SPAN_ID))
        return false;
    t->has_parent = true;
    t->sampled = f2 & 1;
    return true;
}

static void make_id(uint8_t *out, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i += 8) {
        uint64_t v = hash_mix(seed + i * 0x9E3779B97F4A7C15u) | 1; /* never all zero */
        memcpy(out + i, &v, 8);
    }
}

void trace_begin(struct trace *t, const char *header, uint64_t seed)
{
    *t = (struct trace){0};
    if (!header || !read_header(t, header)) {
        *t = (struct trace){.sampled = true};
        make_id(t->id, TRACE_ID, seed);
    }
    make_id(t->span, SPAN_ID, ~seed);
}

void trace_header(char out[TRACE_HEADER], const struct trace *t)
{
    char id[2 * TRACE_ID + 1], span[2 * SPAN_ID + 1];
    hex_write(id, t->id, TRACE_ID);
    hex_write(span, t->span, SPAN_ID);
    snprintf(out, TRACE_HEADER, "00-%s-%s-%s", id, span, t->sampled ? "01" : "00");
}

/* 64-bit integers are strings in protobuf's JSON. */
static void key_long(struct jo *j, const char *key, int64_t v)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)v);
    jo_kstr(j, key, text);
}

static void attribute(struct jo *j, const struct span_attribute *a)
{
    jo_obj(j);
    jo_kstr(j, "key", a->key);
    jo_key(j, "value");
    jo_obj(j);
    if (a->text)
        jo_kstr(j, "stringValue", a->text);
    else
        key_long(j, "intValue", a->number);
    jo_end(j, '}');
    jo_end(j, '}');
}

static void key_id(struct jo *j, const char *key, const uint8_t *id, size_t n)
{
    char hex[2 * TRACE_ID + 1];
    hex_write(hex, id, n);
    jo_kstr(j, key, hex);
}

void span_json(struct buf *out, const struct span *s)
{
    struct jo j = {.b = out};
    jo_obj(&j);
    key_id(&j, "traceId", s->trace_id, TRACE_ID);
    key_id(&j, "spanId", s->id, SPAN_ID);
    if (s->parent)
        key_id(&j, "parentSpanId", s->parent, SPAN_ID);
    jo_kstr(&j, "name", s->name);
    jo_ku64(&j, "kind", s->kind);
    key_long(&j, "startTimeUnixNano", (int64_t)s->begin_ns);
    key_long(&j, "endTimeUnixNano", (int64_t)s->end_ns);
    jo_key(&j, "attributes");
    jo_arr(&j);
    for (uint32_t i = 0; i < s->n_attributes; i++)
        attribute(&j, &s->attribute[i]);
    jo_end(&j, ']');
    jo_key(&j, "status");
    jo_obj(&j);
    if (s->error) {
        jo_kstr(&j, "message", s->error);
        jo_ku64(&j, "code", 2); /* STATUS_CODE_ERROR */
    }
    jo_end(&j, '}');
    jo_end(&j, '}');
}

void spans_request_json(struct buf *out, const char *version, const char *instance,
                        const struct buf *spans)
{
    const struct span_attribute resource[] = {{"service.name", "gaze", 0},
                                              {"service.version", version, 0},
                                              {"service.instance.id", instance, 0}};
    struct jo j = {.b = out};
    jo_obj(&j);
    jo_key(&j, "resourceSpans");
    jo_arr(&j);
    jo_obj(&j);
    jo_key(&j, "resource");
    jo_obj(&j);
    jo_key(&j, "attributes");
    jo_arr(&j);
    for (size_t i = 0; i < sizeof resource / sizeof *resource; i++)
        attribute(&j, &resource[i]);
    jo_end(&j, ']');
    jo_end(&j, '}');
    jo_key(&j, "scopeSpans");
    jo_arr(&j);
    jo_obj(&j);
    jo_key(&j, "scope");
    jo_obj(&j);
    jo_kstr(&j, "name", "gaze");
    jo_end(&j, '}');
    jo_key(&j, "spans");
    jo_arr(&j);
    jo_raw(&j, spans->s ? spans->s : "", spans->n);
    jo_end(&j, ']');
    jo_end(&j, '}');
    jo_end(&j, ']');
    jo_end(&j, '}');
    jo_end(&j, ']');
    jo_end(&j, '}');
}
