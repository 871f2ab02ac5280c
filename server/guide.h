/* guide.h - what an answer must look like: fields of a request to a grammar that steers it.
 *
 *   response_format                json_object, json_schema; schemas are kept exactly
 *   structured_outputs             {json, regex, choice, grammar, json_object}: one of them
 *   guided_json, guided_regex, guided_choice, guided_grammar, guided_json_object
 *   tools                          where a call begins it is held to the format's syntax, to the
 *                                  names of the tools, and its arguments to an object; where each
 *                                  argument has a tag, to the declared ones and their types; with
 *                                  strict, to the schema
 *
 * A grammar is compiled once per text and kept (grammar/cache.h). Where the model may call a tool
 * and a format is asked for, the answer is one or the other. The grammar begins behind `</think>`.
 *
 * Thread: guide_read() and guide_make() any; guides are shared by all.
 */
#ifndef GAZE_SERVER_GUIDE_H
#define GAZE_SERVER_GUIDE_H

#include "grammar/cache.h"
#include "params.h"

struct guides; /* opaque: the vocabulary as grammars know it, and the cache */
MUST_CHECK enum err_code guides_open(struct guides **out, struct err *e);
void guides_close(struct guides *gs); /* no request holds a grammar any more */

/* Reads the fields into p->guide. What it points to is root's until guide_settle(). */
bool guide_read(struct params *p, const cJSON *root, const struct param_env *env,
                struct api_error *ae);
/* What they come to, once the tools and the prompt have been read. */
bool guide_settle(struct params *p, const struct param_env *env, struct api_error *ae);
/* Whether guide_make() would have to compile, which may take long. */
bool guide_is_new(const struct params *p, const struct param_env *env);
/* The grammar into p->like; true when there is none to be made, too. */
bool guide_make(struct params *p, const struct param_env *env, struct api_error *ae);

struct grammar_cache_counts guides_counts(struct guides *gs);

#endif
