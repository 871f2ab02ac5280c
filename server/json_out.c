/* json_out.c - see json_out.h. */
#include "json_out.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool grow(struct buf *b, size_t more)
{
    if (b->failed)
        return false;
    if (b->max - b->n > more)
        return true;
    size_t want = b->max ? b->max * 2 : 256;
    while (want - b->n <= more)
        want *= 2;
    char *s = realloc(b->s, want);
    if (!s) {
        b->failed = true;
        return false;
    }
    b->s = s;
    b->max = want;
    return true;
}

void buf_add(struct buf *b, const void *s, size_t n)
{
    if (!grow(b, n))
        return;
    if (n)
        memcpy(b->s + b->n, s, n);
    b->n += n;
    b->s[b->n] = 0;
}

void buf_str(struct buf *b, const char *s)
{
    buf_add(b, s, strlen(s));
}

void buf_fmt(struct buf *b, const char *fmt, ...)
{
    char line[512];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    assert(n >= 0 && (size_t)n < sizeof line);
    buf_add(b, line, (size_t)n);
}

void buf_free(struct buf *b)
{
    free(b->s);
    *b = (struct buf){0};
}

static void value(struct jo *j)
{
    if (j->comma)
        buf_add(j->b, ",", 1);
    j->comma = true;
}

void jo_obj(struct jo *j)
{
    value(j);
    buf_add(j->b, "{", 1);
    j->comma = false;
}

void jo_arr(struct jo *j)
{
    value(j);
    buf_add(j->b, "[", 1);
    j->comma = false;
}

void jo_end(struct jo *j, char close)
{
    buf_add(j->b, &close, 1);
    j->comma = true;
}

void jo_key(struct jo *j, const char *key)
{
    jo_str(j, key);
    buf_add(j->b, ":", 1);
    j->comma = false;
}

/* Length of the UTF-8 character at s, 0 when there is none. */
static size_t utf8_char(const unsigned char *s, size_t n)
{
    if (s[0] < 0x80)
        return 1;
    size_t len = s[0] >= 0xF0 && s[0] <= 0xF4  ? 4
                 : s[0] >= 0xE0 && s[0] < 0xF0 ? 3
                 : s[0] >= 0xC2 && s[0] < 0xE0 ? 2
                                               : 0;
    if (!len || n < len)
        return 0;
    for (size_t i = 1; i < len; i++)
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    if ((s[0] == 0xE0 && s[1] < 0xA0) || (s[0] == 0xED && s[1] > 0x9F) ||
        (s[0] == 0xF0 && s[1] < 0x90) || (s[0] == 0xF4 && s[1] > 0x8F))
        return 0;
    return len;
}

static void escape(struct buf *b, unsigned char c)
{
    static const char from[] = "\"\\\n\r\t\b\f", to[] = "\"\\nrtbf";
    const char *at = c ? strchr(from, c) : NULL;
    if (at) {
        char two[2] = {'\\', to[at - from]};
        buf_add(b, two, 2);
    } else {
        buf_fmt(b, "\\u%04x", c);
    }
}

void jo_strn(struct jo *j, const char *s, size_t n)
{
    value(j);
    buf_add(j->b, "\"", 1);
    size_t from = 0;
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)s[i];
        size_t len = utf8_char((const unsigned char *)s + i, n - i);
        if (len && c >= 0x20 && c != '"' && c != '\\' && c != 0x7F) {
            i += len;
            continue;
        }
        buf_add(j->b, s + from, i - from);
        if (len)
            escape(j->b, c);
        else
            buf_add(j->b, "\xEF\xBF\xBD", 3);
        from = ++i;
    }
    buf_add(j->b, s + from, n - from);
    buf_add(j->b, "\"", 1);
}

void jo_str(struct jo *j, const char *s)
{
    if (s)
        jo_strn(j, s, strlen(s));
    else
        jo_null(j);
}

void jo_u64(struct jo *j, uint64_t v)
{
    value(j);
    buf_fmt(j->b, "%llu", (unsigned long long)v);
}

void jo_i64(struct jo *j, int64_t v)
{
    value(j);
    buf_fmt(j->b, "%lld", (long long)v);
}

void jo_num(struct jo *j, double v)
{
    char text[40];
    if (!isfinite(v)) {
        jo_null(j);
        return;
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    value(j);
    buf_str(j->b, text);
}

void jo_f32(struct jo *j, float v)
{
    char text[40];
    if (!isfinite(v)) {
        jo_null(j);
        return;
    }
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)v);
        if (strtof(text, NULL) == v)
            break;
    }
    value(j);
    buf_str(j->b, text);
}

void jo_fix(struct jo *j, double v, int digits)
{
    if (!isfinite(v)) {
        jo_null(j);
        return;
    }
    value(j);
    buf_fmt(j->b, "%.*f", digits, v);
}

void jo_bool(struct jo *j, bool v)
{
    value(j);
    buf_str(j->b, v ? "true" : "false");
}

void jo_null(struct jo *j)
{
    value(j);
    buf_str(j->b, "null");
}

void jo_raw(struct jo *j, const char *json, size_t n)
{
    value(j);
    buf_add(j->b, json, n);
}

void jo_kstr(struct jo *j, const char *key, const char *s)
{
    jo_key(j, key);
    jo_str(j, s);
}

void jo_ku64(struct jo *j, const char *key, uint64_t v)
{
    jo_key(j, key);
    jo_u64(j, v);
}

void jo_kbool(struct jo *j, const char *key, bool v)
{
    jo_key(j, key);
    jo_bool(j, v);
}

void jo_knull(struct jo *j, const char *key)
{
    jo_key(j, key);
    jo_null(j);
}

void jo_kfix(struct jo *j, const char *key, double v, int digits)
{
    jo_key(j, key);
    jo_fix(j, v, digits);
}
