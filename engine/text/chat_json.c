/* chat_json.c - see chat_json.h. */
#include "text/chat_json.h"

#include "base/fault.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void chat_buf_add(struct chat_buf *b, const char *s, size_t n)
{
    if (b->failed || n == 0)
        return;
    if (n > b->max - b->n) {
        size_t max = 2 * (b->n + n) < 256 ? 256 : 2 * (b->n + n);
        char *bigger = arena_alloc(b->arena, max);
        if (!bigger) {
            b->failed = true;
            return;
        }
        if (b->n)
            memcpy(bigger, b->s, b->n);
        b->s = bigger;
        b->max = max;
    }
    memcpy(b->s + b->n, s, n);
    b->n += n;
}

void chat_buf_str(struct chat_buf *b, const char *s)
{
    chat_buf_add(b, s, strlen(s));
}

/* ---- writing ---- */

static void dump_string(struct chat_buf *b, const char *s)
{
    size_t from = 0, i = 0;
    chat_buf_add(b, "\"", 1);
    for (; s[i]; i++) {
        char esc[8];
        unsigned char c = (unsigned char)s[i];
        const char *name = c == '"'    ? "\\\""
                           : c == '\\' ? "\\\\"
                           : c == '\n' ? "\\n"
                           : c == '\r' ? "\\r"
                           : c == '\t' ? "\\t"
                           : c == '\b' ? "\\b"
                           : c == '\f' ? "\\f"
                                       : NULL;
        if (!name && c >= 0x20)
            continue;
        if (!name) {
            snprintf(esc, sizeof esc, "\\u%04x", c);
            name = esc;
        }
        chat_buf_add(b, s + from, i - from);
        chat_buf_str(b, name);
        from = i + 1;
    }
    chat_buf_add(b, s + from, i - from);
    chat_buf_add(b, "\"", 1);
}

/* As Python's repr: the fewest digits that read back as v; an exponent below 1e-4 and from 1e16 on.
 * Whole numbers below 2^53 are written without a point, as they are nearly always sent. */
static void dump_double(struct chat_buf *b, double v)
{
    char text[64], digits[32], *exp_at = NULL;
    int precision = 0;
    if (isfinite(v) && v == floor(v) && fabs(v) <= 9007199254740992.0) {
        snprintf(text, sizeof text, "%.0f", v);
        chat_buf_str(b, text);
        return;
    }
    if (!isfinite(v)) { /* 1e999 was sent; Python, too, reads and writes it so */
        chat_buf_str(b, v < 0 ? "-Infinity" : "Infinity");
        return;
    }
    do
        snprintf(digits, sizeof digits, "%.*e", precision, v);
    while (strtod(digits, NULL) != v && ++precision < 17);
    exp_at = strchr(digits, 'e');
    int exponent = exp_at ? atoi(exp_at + 1) : 0;
    if (exponent < -4 || exponent >= 16) {
        chat_buf_str(
            b, digits); /* "%e" writes the exponent with a sign and two digits, as Python does */
        return;
    }
    int decimals = precision - exponent;
    snprintf(text, sizeof text, "%.*f", decimals > 0 ? decimals : 1, v);
    chat_buf_str(b, text);
}

/* Recursion: json_parse() bounds the depth of every tree that comes here. */
void chat_json_dump(struct chat_buf *b, const cJSON *value)
{
    bool object = cJSON_IsObject(value);
    if (cJSON_IsNumber(value)) {
        if (value->valuestring)
            chat_buf_str(b, value->valuestring);
        else
            dump_double(b, value->valuedouble);
    } else if (cJSON_IsString(value)) {
        dump_string(b, value->valuestring);
    } else if (cJSON_IsBool(value)) {
        chat_buf_str(b, cJSON_IsTrue(value) ? "true" : "false");
    } else if (object || cJSON_IsArray(value)) {
        chat_buf_add(b, object ? "{" : "[", 1);
        for (const cJSON *m = value->child; m; m = m->next) {
            if (m != value->child)
                chat_buf_add(b, ", ", 2);
            if (object) {
                dump_string(b, m->string);
                chat_buf_add(b, ": ", 2);
            }
            chat_json_dump(b, m);
        }
        chat_buf_add(b, object ? "}" : "]", 1);
    } else {
        chat_buf_str(b, "null");
    }
}

/* ---- keeping the spelling of numbers ---- */

/* What the next character of a value begins; the text is known to be JSON, so a glance is enough.
 */
static size_t skip_string(const char *s, size_t n, size_t i)
{
    for (i++; i < n && s[i] != '"'; i++)
        i += s[i] == '\\';
    return i + 1;
}

static size_t number_end(const char *s, size_t n, size_t i)
{
    while (i < n && s[i] && strchr("0123456789+-.eE", s[i]))
        i++;
    return i;
}

/* Written back from the double it would be the same: nothing to keep. */
static bool is_plain_integer(const char *s, size_t n)
{
    bool minus = n && s[0] == '-';
    if (n - minus == 0 || n - minus > 15 || s[n - 1] == '-')
        return false;
    for (size_t i = minus; i < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
    }
    return !(minus && s[1] == '0');
}

static enum err_code keep(cJSON *node, const char *s, size_t n, struct err *e)
{
    if (is_plain_integer(s, n) || node->valuestring)
        return ERR_OK;
    char *copy = FAULT("chat_json.keep") ? NULL : cJSON_malloc(n + 1); /* cJSON_Delete() frees it */
    if (!copy)
        return err_set(e, ERR_NOMEM, "the spelling of a number");
    memcpy(copy, s, n);
    copy[n] = '\0';
    node->valuestring = copy;
    return ERR_OK;
}

/* The numbers of a JSON text come in the order in which a walk through the tree meets them, so one
 * cursor over the text is enough: strings are jumped over, anything that begins like a number is
 * one. */
struct cursor {
    const char *s;
    size_t n, at;
};

static enum err_code walk(cJSON *node, struct cursor *c, struct err *e)
{
    if (cJSON_IsNumber(node)) {
        while (c->at < c->n && c->s[c->at] != '-' && (c->s[c->at] < '0' || c->s[c->at] > '9'))
            c->at = c->s[c->at] == '"' ? skip_string(c->s, c->n, c->at) : c->at + 1;
        if (c->at >= c->n)
            return err_set(e, ERR_INVALID, "JSON: the text is not this tree's");
        size_t begin = c->at;
        c->at = number_end(c->s, c->n, begin);
        return keep(node, c->s + begin, c->at - begin, e);
    }
    for (cJSON *m = node->child; m; m = m->next) {
        if (walk(m, c, e))
            return e->code;
    }
    return ERR_OK;
}

enum err_code chat_json_keep_numbers(cJSON *tree, const char *text, size_t bytes, struct err *e)
{
    struct cursor c = {text, bytes, 0};
    return walk(tree, &c, e);
}
