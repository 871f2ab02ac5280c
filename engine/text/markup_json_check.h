/* markup_json_check.h - is this stream of bytes one JSON value?
 *
 * Strictly RFC 8259, a byte at a time, except that UTF-8 is not looked at and that the depth has a
 * bound.
 *
 * Thread: any, one at a time. No memory is taken.
 */
#ifndef GAZE_TEXT_MARKUP_JSON_CHECK_H
#define GAZE_TEXT_MARKUP_JSON_CHECK_H

#include <stdbool.h>
#include <stdint.h>

enum { JSON_CHECK_DEPTH = 512 }; /* nested containers; more is not valid here */

/* What a value may be, as bits. JSON_KIND_INTEGER is a number without fraction and exponent. */
enum {
    JSON_KIND_STRING = 1,
    JSON_KIND_INTEGER = 2,
    JSON_KIND_NUMBER = 4,
    JSON_KIND_BOOL = 8,
    JSON_KIND_NULL = 16,
    JSON_KIND_OBJECT = 32,
    JSON_KIND_ARRAY = 64,
    JSON_KIND_ANY = 127
};

struct json_check {
    uint8_t state;
    uint8_t kind;        /* of the outermost value, once its first byte is there; 0 before */
    bool is_key;         /* the string being read is a member's name */
    uint8_t left;        /* hex digits still to come */
    const char *literal; /* what must still come of true, false, null */
    uint16_t depth, max_depth;
    uint64_t in_object[JSON_CHECK_DEPTH / 64]; /* by depth: object or array */
};

void json_check_init(struct json_check *c, unsigned max_depth); /* at most JSON_CHECK_DEPTH */
void json_check_put(struct json_check *c, char byte);
bool json_check_whole(const struct json_check *c); /* the bytes so far are one value, whole */

#endif
