/* tools.h - the tools of a chat request: which the model sees, and whether it must call one.
 *
 * tool_choice none           no tool is rendered, and no call comes
 *             auto           the model decides (the default where there are tools)
 *             required       the answer begins inside a call; of a single tool, behind its name
 *             {function}     the answer begins behind that tool's name
 *             {allowed_tools}  only those are rendered, then its mode: auto or required
 *
 * "Begins inside" means that the opening of a call, exactly as the format writes it, is the end of
 * the prompt (it counts as prompt tokens), and that the output parser is given the same bytes. This
 * holds the model to calling; guide.h holds it to the call's syntax. Where the format cannot
 * be entered this way (the model is to think first; in GLM-5's, where nothing but the next argument
 * ends a tool's name, for one certain tool) the grammar alone holds the model to it, behind
 * `</think>` where there is one; a model that would begin to think by itself finds that done in the
 * prompt. Without such a grammar (a vocabulary without the markers) the request is refused, naming
 * tool_choice.
 *
 * parallel_tool_calls false ends the answer with its first call.
 *
 * Without tools a model may still be used to calling some. The tokens that are markers cannot come
 * then; a text that spells one in plain tokens is text, as it is inside a message. Only where the
 * vocabulary lacks a marker that opens calls (so that they could only be spelled) are calls read
 * and left out of the answer, unless that is held to a form, which keeps every byte.
 */
#ifndef GAZE_SERVER_TOOLS_H
#define GAZE_SERVER_TOOLS_H

#include "params.h"

enum { TOOLS_MAX = 4096 /* of one request */ };

/* Takes the tools out of the request and into p->tools (NULL: none are seen). Sets
 * p->call_required, p->call_name, p->one_call. */
bool tools_read(struct params *p, cJSON *root, struct api_error *ae);

/* How the answer begins where a call is required: parts to go behind the prompt's, of which there
 * are *n (0: the model decides). Sets p->opening. */
enum { TOOLS_MAX_PARTS = 4 };
bool tools_open_call(struct params *p, const struct chat_format *format, const cJSON *messages,
                     const struct chat_options *opt, bool thinking_open,
                     struct text_part part[TOOLS_MAX_PARTS], size_t *n, struct api_error *ae);

/* Without tools: sets p->markup, and the ids that must not come in p->like. The form that the
 * answer is held to has been read. */
bool tools_keep_out(struct params *p, const struct param_env *env, struct api_error *ae);

/* Whether a vocabulary counts some of the formats' markup among the special tokens, which are left
 * out of an answer's text unless they are asked for. */
bool tools_markup_is_special(const struct tokenizer *tok);

#endif
