/* routes.c - every path that the server knows. */
#include "api.h"
#include "http.h"
#include "schema.h"

#define MODEL_CALL(at, name, schema, run, says, streams)                                           \
    {                                                                                              \
        .method = "POST", .path = (at), .handler = (name), .needs_engine = true,                   \
        .body = &(schema), .handle = (run), .answer = (says), .events = (streams)                  \
    }
#define PLAIN(verb, at, name, run, says)                                                           \
    .method = (verb), .path = (at), .handler = (name), .handle = (run), .answer = (says)
/* Named for what it is, so that the answer can say so. */
#define NOT_HERE(at, name)                                                                         \
    {                                                                                              \
        .method = "POST", .path = (at), .handler = (name), .handle = api_not_implemented           \
    }

const struct route http_routes[] = {
    MODEL_CALL("/v1/chat/completions", "chat", schema_chat, api_chat, "ChatCompletion",
               "ChatCompletionChunk"),
    MODEL_CALL("/v1/completions", "completions", schema_completion, api_completions, "Completion",
               "CompletionChunk"),
    MODEL_CALL("/v1/messages", "messages", schema_messages, api_messages, "Message",
               "MessageEvent"),
    MODEL_CALL("/v1/messages/count_tokens", "count_tokens", schema_count_tokens, api_count_tokens,
               "TokenCount", NULL),
    MODEL_CALL("/v1/responses", "responses", schema_responses, api_responses, "Response",
               "ResponseEvent"),
    {PLAIN("GET", "/v1/responses/*", "responses", api_response, "Response"),
     .query = "starting_after"},
    {PLAIN("DELETE", "/v1/responses/*", "responses", api_response_delete, "Deleted")},
    {PLAIN("POST", "/v1/responses/*", "responses", api_response_cancel, "Response"),
     .shown = "/v1/responses/{id}/cancel"},
    {PLAIN("GET", "/v1/streams/*", "streams", api_stream, "Any"), .media = "text/event-stream",
     .query = "from"},
    {PLAIN("DELETE", "/v1/streams/*", "streams", api_stream_delete, "Deleted")},
    {PLAIN("GET", "/v1/models", "models", api_models, "ModelList")},
    {PLAIN("GET", "/v1/models/*", "models", api_model, "Model")},
    MODEL_CALL("/tokenize", "tokenize", schema_tokenize, api_tokenize, "Tokens", NULL),
    MODEL_CALL("/detokenize", "detokenize", schema_detokenize, api_detokenize, "Text", NULL),
    {PLAIN("GET", "/", "page", api_page, "Any"), .media = "text/html"},
    {PLAIN("GET", "/health", "health", api_health, "Health")},
    {PLAIN("GET", "/health/ready", "health", api_health, "Health")},
    {PLAIN("GET", "/metrics", "metrics", api_metrics, "Any"), .media = "text/plain"},
    {PLAIN("GET", "/version", "version", api_version, "Version")},
    {PLAIN("GET", "/openapi.json", "openapi", api_openapi, "Any")},
    NOT_HERE("/v1/embeddings", "embeddings"),
    NOT_HERE("/v1/audio/*", "audio"),
    NOT_HERE("/v1/images/*", "images"),
    NOT_HERE("/v1/moderations", "moderations"),
    NOT_HERE("/v1/files", "files"),
    NOT_HERE("/v1/batches", "batches"),
    NOT_HERE("/v1/messages/batches", "batches"),
    NOT_HERE("/v1/fine_tuning/*", "fine_tuning"),
    NOT_HERE("/v1/assistants", "assistants"),
    NOT_HERE("/v1/threads", "threads"),
    NOT_HERE("/v1/vector_stores", "vector_stores"),
    NOT_HERE("/v1/rerank", "rerank"),
    NOT_HERE("/v1/score", "score"),
    {0},
};
