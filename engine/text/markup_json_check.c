/* markup_json_check.c - see markup_json_check.h. */
#include "text/markup_json_check.h"

#include <assert.h>
#include <string.h>

enum {
    WANT_VALUE,
    WANT_VALUE_OR_END, /* after [ */
    WANT_KEY,          /* after , in an object */
    WANT_KEY_OR_END,   /* after { */
    WANT_COLON,
    AFTER_VALUE,
    IN_STRING,
    IN_ESCAPE,
    IN_HEX,
    IN_LITERAL,
    AFTER_MINUS,
    AFTER_ZERO,
    IN_DIGITS,
    AFTER_DOT,
    IN_FRACTION,
    AFTER_E,
    AFTER_E_SIGN,
    IN_EXPONENT,
    BROKEN
};

void json_check_init(struct json_check *c, unsigned max_depth)
{
    assert(max_depth <= JSON_CHECK_DEPTH);
    memset(c, 0, sizeof *c);
    c->max_depth = (uint16_t)max_depth;
    c->state = WANT_VALUE;
}

static bool is_space(char b)
{
    return b == ' ' || b == '\n' || b == '\r' || b == '\t';
}

static bool is_digit(char b)
{
    return b >= '0' && b <= '9';
}

static bool top_is_object(const struct json_check *c)
{
    unsigned d = c->depth - 1u;
    return c->in_object[d / 64] >> (d % 64) & 1;
}

static void push(struct json_check *c, bool object)
{
    if (c->depth == c->max_depth) {
        c->state = BROKEN;
        return;
    }
    uint64_t bit = (uint64_t)1 << (c->depth % 64);
    if (object)
        c->in_object[c->depth / 64] |= bit;
    else
        c->in_object[c->depth / 64] &= ~bit;
    c->depth++;
    c->state = object ? WANT_KEY_OR_END : WANT_VALUE_OR_END;
}

static void begin_value(struct json_check *c, char b)
{
    uint8_t kind = 0;
    if (b == '"') {
        kind = JSON_KIND_STRING;
        c->is_key = false;
        c->state = IN_STRING;
    } else if (b == '{' || b == '[') {
        kind = b == '{' ? JSON_KIND_OBJECT : JSON_KIND_ARRAY;
        push(c, b == '{');
    } else if (b == '-' || is_digit(b)) {
        kind = JSON_KIND_INTEGER;
        c->state = b == '-' ? AFTER_MINUS : b == '0' ? AFTER_ZERO : IN_DIGITS;
    } else if (b == 't' || b == 'f' || b == 'n') {
        kind = b == 'n' ? JSON_KIND_NULL : JSON_KIND_BOOL;
        c->literal = b == 't' ? "rue" : b == 'f' ? "alse" : "ull";
        c->state = IN_LITERAL;
    } else {
        c->state = BROKEN;
    }
    if (c->kind == 0)
        c->kind = kind;
}

static void after_value(struct json_check *c, char b)
{
    c->state = AFTER_VALUE;
    if (is_space(b))
        return;
    if (c->depth && b == ',')
        c->state = top_is_object(c) ? WANT_KEY : WANT_VALUE;
    else if (c->depth && b == (top_is_object(c) ? '}' : ']'))
        c->depth--;
    else
        c->state = BROKEN;
}

static void not_integer(struct json_check *c)
{
    if (c->depth == 0)
        c->kind = JSON_KIND_NUMBER;
}

static void in_number(struct json_check *c, char b)
{
    bool digit = is_digit(b), e = b == 'e' || b == 'E';
    switch (c->state) {
    case AFTER_MINUS:
        c->state = b == '0' ? AFTER_ZERO : digit ? IN_DIGITS : BROKEN;
        return;
    case AFTER_DOT:
        c->state = digit ? IN_FRACTION : BROKEN;
        return;
    case AFTER_E:
        c->state = digit ? IN_EXPONENT : b == '+' || b == '-' ? AFTER_E_SIGN : BROKEN;
        return;
    case AFTER_E_SIGN:
        c->state = digit ? IN_EXPONENT : BROKEN;
        return;
    case AFTER_ZERO:
    case IN_DIGITS:
        if (b == '.') {
            not_integer(c);
            c->state = AFTER_DOT;
            return;
        }
        if (c->state == AFTER_ZERO)
            digit = false; /* 01 is two values */
        break;
    case IN_FRACTION:
        break;
    default: /* IN_EXPONENT */
        e = false;
        break;
    }
    if (digit)
        return;
    if (e) {
        not_integer(c);
        c->state = AFTER_E;
        return;
    }
    after_value(c, b);
}

static void in_string(struct json_check *c, char b)
{
    if (c->state == IN_HEX) {
        if (!is_digit(b) && !(b >= 'a' && b <= 'f') && !(b >= 'A' && b <= 'F'))
            c->state = BROKEN;
        else if (--c->left == 0)
            c->state = IN_STRING;
    } else if (c->state == IN_ESCAPE) {
        c->left = 4;
        c->state = b == 'u' ? IN_HEX : b && strchr("\"\\/bfnrt", b) ? IN_STRING : BROKEN;
    } else if (b == '"') {
        c->state = c->is_key ? WANT_COLON : AFTER_VALUE;
    } else if (b == '\\') {
        c->state = IN_ESCAPE;
    } else if ((unsigned char)b < 0x20) {
        c->state = BROKEN;
    }
}

void json_check_put(struct json_check *c, char b)
{
    switch (c->state) {
    case BROKEN:
        return;
    case IN_STRING:
    case IN_ESCAPE:
    case IN_HEX:
        in_string(c, b);
        return;
    case IN_LITERAL:
        if (b != *c->literal)
            c->state = BROKEN;
        else if (*++c->literal == '\0')
            c->state = AFTER_VALUE;
        return;
    case AFTER_VALUE:
        after_value(c, b);
        return;
    case WANT_VALUE:
    case WANT_VALUE_OR_END:
    case WANT_KEY:
    case WANT_KEY_OR_END:
    case WANT_COLON:
        break;
    default:
        in_number(c, b);
        return;
    }
    if (is_space(b))
        return;
    if ((c->state == WANT_VALUE_OR_END && b == ']') || (c->state == WANT_KEY_OR_END && b == '}')) {
        c->depth--;
        c->state = AFTER_VALUE;
    } else if (c->state == WANT_COLON) {
        c->state = b == ':' ? WANT_VALUE : BROKEN;
    } else if (c->state == WANT_VALUE || c->state == WANT_VALUE_OR_END) {
        begin_value(c, b);
    } else if (b == '"') {
        c->is_key = true;
        c->state = IN_STRING;
    } else {
        c->state = BROKEN;
    }
}

bool json_check_whole(const struct json_check *c)
{
    if (c->depth)
        return false;
    return c->state == AFTER_VALUE || c->state == AFTER_ZERO || c->state == IN_DIGITS ||
           c->state == IN_FRACTION || c->state == IN_EXPONENT;
}
