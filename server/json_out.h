/* json_out.h - JSON written piece by piece into a growing buffer.
 *
 *   struct jo j = {.b = &buf};
 *   jo_obj(&j); jo_kstr(&j, "id", id); jo_key(&j, "choices"); jo_arr(&j); ... jo_end(&j, ']');
 *
 * Commas are put where they belong; strings are escaped as RFC 8259 asks, and bytes that are not
 * UTF-8 become U+FFFD, so the result always parses. Thread: a buffer belongs to its caller. Errors:
 * no memory sets buf.failed, which stays; later writes do nothing. Look once, at the end.
 */
#ifndef GAZE_SERVER_JSON_OUT_H
#define GAZE_SERVER_JSON_OUT_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf { /* zeroed is empty and ready */
    char *s; /* NUL-terminated once something was added */
    size_t n, max;
    bool failed;
};
void buf_add(struct buf *b, const void *s, size_t n);
void buf_str(struct buf *b, const char *s);
void buf_fmt(struct buf *b, const char *fmt, ...) PRINTF_LIKE(2, 3);
void buf_free(struct buf *b); /* b is as zeroed */

struct jo {
    struct buf *b;
    bool comma; /* the next value or key needs one before it */
};
void jo_obj(struct jo *j);                  /* { */
void jo_arr(struct jo *j);                  /* [ */
void jo_end(struct jo *j, char close);      /* '}' or ']' */
void jo_key(struct jo *j, const char *key); /* key: plain letters */
void jo_strn(struct jo *j, const char *s, size_t n);
void jo_str(struct jo *j, const char *s); /* NULL: null */
void jo_u64(struct jo *j, uint64_t v);
void jo_i64(struct jo *j, int64_t v);
void jo_num(struct jo *j, double v);             /* shortest that reads back; not finite: null */
void jo_f32(struct jo *j, float v);              /* likewise, for the shorter type */
void jo_fix(struct jo *j, double v, int digits); /* with so many digits after the point */
void jo_bool(struct jo *j, bool v);
void jo_null(struct jo *j);
void jo_raw(struct jo *j, const char *json, size_t n); /* a value already written */

void jo_kstr(struct jo *j, const char *key, const char *s);
void jo_ku64(struct jo *j, const char *key, uint64_t v);
void jo_kbool(struct jo *j, const char *key, bool v);
void jo_knull(struct jo *j, const char *key);
void jo_kfix(struct jo *j, const char *key, double v, int digits);

#endif
