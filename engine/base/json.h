/* json.h - JSON from outside, with errors that say where. A thin face on cJSON.
 *
 * Thread: any; a tree belongs to its caller and ends with cJSON_Delete().
 * Rules:  at most max_depth nested containers; bytes after the value other than white space are an
 *         error; NUL characters (raw or \u0000) are refused, because cJSON's strings end at them,
 *         but see json_parse_nul();
 *         invalid UTF-8 and lone surrogates are refused; of duplicate keys the last one wins.
 */
#ifndef GAZE_BASE_JSON_H
#define GAZE_BASE_JSON_H

#include "base/err.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_MAX_DEPTH = 128 };

/* Gives the tree; ERR_INVALID names the byte offset, ERR_NOMEM. text need not end with NUL. */
MUST_CHECK enum err_code json_parse(cJSON **out, const char *text, size_t bytes, int max_depth,
                                    struct err *e);
/* The same, but \u0000 is read as JSON_NUL, two bytes that no other text holds. */
#define JSON_NUL "\xC0\x80"
MUST_CHECK enum err_code json_parse_nul(cJSON **out, const char *text, size_t bytes, int max_depth,
                                        struct err *e);
/* json_parse() for a whole file; messages start with its path. ERR_IO when it cannot be read. */
MUST_CHECK enum err_code json_parse_file(cJSON **out, const char *path, struct err *e);

/* The last member called key (cJSON itself would give the first), NULL when there is none. */
const cJSON *json_get(const cJSON *object, const char *key);

/* Members of a configuration file. A missing (or null) member leaves *out as it was and is no
 * error; a member of another type or outside [min, max] is ERR_INVALID naming key, value and
 * bounds. */
MUST_CHECK enum err_code json_get_u32(const cJSON *object, const char *key, uint32_t min,
                                      uint32_t max, uint32_t *out, struct err *e);
MUST_CHECK enum err_code json_get_f64(const cJSON *object, const char *key, double min, double max,
                                      double *out, struct err *e);
MUST_CHECK enum err_code json_get_bool(const cJSON *object, const char *key, bool *out,
                                       struct err *e);
/* Borrowed from the tree. */
MUST_CHECK enum err_code json_get_str(const cJSON *object, const char *key, const char **out,
                                      struct err *e);

/* Whether bytes are well-formed UTF-8 (no surrogates, nothing above U+10FFFF, no overlong forms).
 * *bad (may be NULL) gets the offset of the first byte that is not. */
bool utf8_valid(const char *text, size_t bytes, size_t *bad);

#endif
