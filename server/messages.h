/* messages.h - a request in Anthropic's shape becomes one in the chat endpoint's shape.
 *
 *   system                  the first message
 *   text blocks             content parts
 *   thinking blocks         reasoning_content (signatures are not checked: nothing here made them)
 *   tool_use, tool_result   tool_calls, messages of the role tool
 *   a last assistant turn   is continued
 *   tools, tool_choice      functions; any: required, tool: named; disable_parallel_tool_use
 *   stop_sequences          stop
 *
 * Thinking is off unless it is asked for, as that interface has it. Fields of the chat endpoint
 * that the interface does not know are left out, but for sparse, seed, priority and cache_salt.
 *
 * Thread: any.
 */
#ifndef GAZE_SERVER_MESSAGES_H
#define GAZE_SERVER_MESSAGES_H

#include "params.h"

/* Replaces *root, which stays the caller's; on false it is what it was, or partly emptied.
 * counting: the request is only measured, so max_tokens may be missing. */
bool messages_to_chat(cJSON **root, bool counting, struct api_error *ae);

#endif
