/* responses.h - a request of /v1/responses becomes one in the chat endpoint's shape.
 *
 *   previous_response_id   the messages of that answer's conversation come first
 *   instructions           a system message before them; not kept for the next request
 *   input                  a string, or items:
 *     message                a message; its text parts are content parts
 *     function_call(_output) tool_calls, messages of the role tool
 *     reasoning              reasoning_content of the assistant's turn that follows
 *   tools, tool_choice     functions; no tools that a server would run
 *   reasoning.effort       reasoning_effort; "none" switches thinking off, all others on
 *   text.format            response_format
 *   max_output_tokens      max_tokens
 * Items of the assistant that follow each other are one message. What would bind the answer and is
 * not kept (background, truncation "auto", prompt templates ...) is refused by name. The chat
 * endpoint's own sampling fields, thinking, sparse, priority and cache_salt go through.
 *
 * Thread: any.
 */
#ifndef GAZE_SERVER_RESPONSES_H
#define GAZE_SERVER_RESPONSES_H

#include "params.h"

/* Replaces *root, which stays the caller's; on false it is what it was, or partly emptied. Sets
 * p->responses. */
bool responses_to_chat(cJSON **root, struct params *p, const struct param_env *env,
                       struct api_error *ae);
/* An error of the chat reader names the field as this endpoint's clients know it. */
void responses_rename(struct api_error *ae);

#endif
