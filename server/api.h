/* api.h - the handlers that http_routes names. Each answers its call, now or later. Thread: the
 * loop's. */
#ifndef GAZE_SERVER_API_H
#define GAZE_SERVER_API_H

#include "server.h"

void api_chat(struct call *c);
void api_messages(struct call *c);
void api_count_tokens(struct call *c); /* of a message */
void api_responses(struct call *c);
void api_response(struct call *c); /* /v1/responses/{id} */
void api_response_delete(struct call *c);
void api_response_cancel(struct call *c);
void api_stream(struct call *c); /* /v1/streams/{id} */
void api_stream_delete(struct call *c);
void api_completions(struct call *c);
void api_openapi(struct call *c); /* what this server takes and gives, as a document */
void api_models(struct call *c);
void api_model(struct call *c); /* /v1/models/{id} */
void api_tokenize(struct call *c);
void api_detokenize(struct call *c);
void api_page(struct call *c);
void api_version(struct call *c);
void api_health(struct call *c);
void api_metrics(struct call *c);
void api_not_implemented(struct call *c);

/* Why the server cannot serve just now; NULL when it can. */
const char *health_problem(struct server *sv);

#endif
