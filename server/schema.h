/* schema.h - the fields of every request, in tables.
 *
 * A body is checked against its table before anything is read from it: types, ranges, words, what
 * must be there. /openapi.json is written from the same tables, so the two cannot differ. What a
 * table cannot say (a bound that depends on the model or on another field) its reader checks.
 * Fields that no table knows are ignored.
 *
 * Thread: any; the tables are constant.
 */
#ifndef GAZE_SERVER_SCHEMA_H
#define GAZE_SERVER_SCHEMA_H

#include "params.h"

enum { /* bits: a field may allow several */
       FIELD_BOOL = 1,
       FIELD_INT = 2,
       FIELD_NUMBER = 4,
       FIELD_TEXT = 8,
       FIELD_ARRAY = 16,
       FIELD_OBJECT = 32,
};

struct field_rule {
    const char *name; /* NULL: the table's end */
    unsigned kinds;
    double min, max; /* of numbers; both 0: any */
    bool above_min;  /* min itself is outside */
    bool required;
    const char *words;               /* of texts, with spaces between; NULL: any */
    const struct field_rule *fields; /* of objects; NULL: any */
    const char *help;
};

struct body_schema {
    const char *name; /* in the document */
    const struct field_rule *fields;
};
extern const struct body_schema schema_chat, schema_completion, schema_messages,
    schema_count_tokens, schema_responses, schema_tokenize, schema_detokenize;

/* False: *ae names the field. A null is a field that is missing. */
bool schema_check(const struct body_schema *s, const cJSON *root, struct api_error *ae);

#endif
