/* schema.h - JSON Schema as a language: the texts that satisfy it.
 *
 * What is generated is a subset of the legal spellings, the same for all schemas:
 *   - no white space;
 *   - the members that a schema names, in the order in which it names them (its keywords are read
 *     in the order they stand in, `properties` before what `required` alone names); any others
 *     behind them;
 *   - strings as UTF-8; only \" \\ \b \f \n \r \t and \u00xx for the other controls are escaped;
 *   - whole numbers without point and exponent, others with at most 17 decimals; where items must
 *     differ, each number in its one shortest way.
 * Within these, a text is in the language iff it satisfies the schema (drafts 4 to 2020-12;
 * `format` asserts for the formats that schema_format.c knows). What cannot be kept exactly is
 * refused. But for one thing: items of an array that must differ, and do so in the order alone of
 * several members that the schema does not name, see orders.c.
 *
 * Errors: ERR_INVALID, a wrong or refused schema: the message names the keyword and its place as a
 * JSON pointer; ERR_NOMEM. Bounds: SCHEMA_STEPS of work. Thread: as the builder.
 */
#ifndef GAZE_GRAMMAR_SCHEMA_H
#define GAZE_GRAMMAR_SCHEMA_H

#include "grammar/builder.h"

#include <cjson/cJSON.h>

enum { SCHEMA_STEPS = 4000000 }; /* looks at a part of the schema; some 10 ns each */

/* schema: an object, true or false. Numbers that keep their spelling in valuestring
 * (chat_json_keep_numbers) are read from it. The tree is borrowed for the call. */
MUST_CHECK enum err_code grammar_schema(gb_node *out, struct grammar_builder *b,
                                        const cJSON *schema, struct err *e);

/* How an object is written that is not JSON itself: its members one after another. */
struct schema_markup {
    void *arg;
    gb_node text; /* all that a string that stands as it is may hold; regular */
    /* A member. json: its values but strings, as JSON; raw: its strings as they stand. Either may
     * be GB_NEVER. */
    gb_node (*member)(void *arg, struct grammar_builder *b, const char *name, gb_node json,
                      gb_node raw);
};

/* The objects that satisfy the schema; in this markup, if it is not NULL: then without members that
 * the schema does not name. */
MUST_CHECK enum err_code grammar_schema_object(gb_node *out, struct grammar_builder *b,
                                               const cJSON *schema,
                                               const struct schema_markup *markup, struct err *e);

/* After grammar_schema() or grammar_compile() refused the language: e names the keyword and place
 * at fault as well as can be told. */
void grammar_schema_explain(const cJSON *schema, struct err *e);

#endif
