/* markup_arguments.c - see markup_arguments.h. */
#include "text/markup_arguments.h"

#include "base/fault.h"

#include <stdlib.h>
#include <string.h>

bool markup_is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

/* ---- raw ---- */

static void release_tail(struct raw_arguments *r, struct markup_out *o)
{
    markup_out_arguments(o, r->tail, r->n);
    r->n = r->n_spaces = r->n_ticks = 0;
}

void markup_raw_put(struct raw_arguments *r, struct markup_out *o, char c)
{
    if (markup_is_space(c)) {
        if (!r->begun)
            return;
        if (r->n_spaces == MARKUP_MAX_SPACE || (r->n_ticks && r->n_ticks < 3))
            release_tail(r, o);
        r->tail[r->n++] = c;
        r->n_spaces++;
        return;
    }
    r->begun = true;
    if (r->fenced && c == '`') {
        if (r->n_ticks == 3 || (r->n_ticks && r->n_spaces))
            release_tail(r, o);
        r->n_spaces = 0; /* those before the ticks are counted in n */
        r->n_ticks++;
        r->tail[r->n++] = c;
        return;
    }
    release_tail(r, o);
    markup_out_argument(o, c);
}

void markup_raw_end(struct raw_arguments *r, struct markup_out *o)
{
    r->n = r->n_spaces = r->n_ticks = 0;
    if (o->argument_bytes == 0)
        markup_out_arguments(o, "{}", 2);
}

/* ---- typed ---- */

static void put_escaped(struct markup_out *o, char c)
{
    static const char hex[] = "0123456789abcdef";
    static const char from[] = "\"\\\n\t\r\b\f", to[] = "\"\\ntrbf";
    unsigned char u = (unsigned char)c;
    const char *special = c ? strchr(from, c) : NULL;
    if (special) {
        markup_out_argument(o, '\\');
        markup_out_argument(o, to[special - from]);
    } else if (u < 0x20) {
        char escape[6] = {'\\', 'u', '0', '0', hex[u >> 4], hex[u & 15]};
        markup_out_arguments(o, escape, sizeof escape);
    } else {
        markup_out_argument(o, c);
    }
}

static void put_string(struct markup_out *o, const char *s, size_t bytes)
{
    markup_out_argument(o, '"');
    for (size_t i = 0; i < bytes; i++)
        put_escaped(o, s[i]);
}

void markup_typed_key(struct typed_arguments *t, struct markup_out *o, const char *key,
                      size_t bytes)
{
    assert(!t->in_value);
    if (t->n_written++ == 0)
        markup_out_argument(o, '{');
    else
        markup_out_arguments(o, ", ", 2);
    put_string(o, key, markup_whole_characters(key, bytes)); /* it may have been cut off */
    markup_out_arguments(o, "\": ", 3);
}

void markup_typed_begin(struct typed_arguments *t, struct markup_out *o, uint8_t kinds)
{
    assert(!t->in_value);
    t->in_value = true;
    t->kinds = kinds;
    t->streams = kinds == JSON_KIND_STRING;
    t->n = 0;
    if (t->streams)
        markup_out_argument(o, '"');
}

bool markup_typed_put(struct typed_arguments *t, struct markup_out *o, char c)
{
    assert(t->in_value);
    if (!t->streams && t->n == OUTPUT_MAX_VALUE) {
        put_string(o, t->value, t->n);
        t->streams = true;
    }
    if (t->streams) {
        put_escaped(o, c);
        return true;
    }
    if (t->n == t->max) {
        size_t max = t->max ? 2 * t->max : 256;
        char *value = FAULT("markup.value") ? NULL : realloc(t->value, max);
        if (!value)
            return false;
        t->value = value;
        t->max = max;
    }
    t->value[t->n++] = c;
    return true;
}

/* Whether the text, JSON of this kind, may stand for a value of one of these kinds. Where a string
 * would do as well, quotes belong to it: strings are written bare. */
static bool kind_fits(uint8_t kind, uint8_t kinds)
{
    if (kinds == JSON_KIND_ANY || !(kinds & JSON_KIND_STRING))
        return true; /* nothing better is known: JSON if it reads as JSON */
    if (kind == JSON_KIND_STRING)
        return false;
    if (kind == JSON_KIND_INTEGER)
        return kinds & (JSON_KIND_INTEGER | JSON_KIND_NUMBER);
    return kinds & kind;
}

void markup_typed_end(struct typed_arguments *t, struct markup_out *o)
{
    assert(t->in_value);
    t->in_value = false;
    if (t->streams) {
        markup_out_argument(o, '"');
        return;
    }
    struct json_check check;
    json_check_init(&check, JSON_CHECK_DEPTH - 1); /* the object around it is a level too */
    size_t begin = 0, end = t->n;
    for (size_t i = 0; i < t->n; i++)
        json_check_put(&check, t->value[i]);
    if (json_check_whole(&check) && kind_fits(check.kind, t->kinds)) {
        while (begin < end && markup_is_space(t->value[begin]))
            begin++;
        while (end > begin && markup_is_space(t->value[end - 1]))
            end--;
        markup_out_arguments(o, t->value + begin, end - begin);
        return;
    }
    put_string(o, t->value, t->n);
    markup_out_argument(o, '"');
}

void markup_typed_close(struct typed_arguments *t, struct markup_out *o)
{
    assert(!t->in_value);
    if (t->n_written == 0)
        markup_out_argument(o, '{');
    markup_out_argument(o, '}');
}

void markup_typed_reset(struct typed_arguments *t)
{
    t->n_written = 0;
    t->in_value = t->streams = false;
    t->n = 0;
}

void markup_typed_free(struct typed_arguments *t)
{
    free(t->value);
    memset(t, 0, sizeof *t);
}
