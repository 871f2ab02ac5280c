/* routes.c - every path that the server knows. */
#include "api.h"
#include "http.h"
#include "schema.h"

static const char cancel_path[] = "/v1/responses/{id}/cancel";

const struct route http_routes[] = {
    {"POST", "/v1/chat/completions", "chat", true, &schema_chat, api_chat, "ChatCompletion", NULL},
    {"POST", "/v1/completions", "completions", true, &schema_completion, api_completions,
     "Completion", NULL},
    {"POST", "/v1/messages", "messages", true, &schema_messages, api_messages, "Message", NULL},
    {"POST", "/v1/messages/count_tokens", "count_tokens", true, &schema_count_tokens,
     api_count_tokens, "TokenCount", NULL},
    {"POST", "/v1/responses", "responses", true, &schema_responses, api_responses, "Response",
     NULL},
    {"GET", "/v1/responses/*", "responses", false, NULL, api_response, "Response", NULL},
    {"DELETE", "/v1/responses/*", "responses", false, NULL, api_response_delete, "Deleted", NULL},
    {"POST", "/v1/responses/*", "responses", false, NULL, api_response_cancel, "Response",
     cancel_path},
    {"GET", "/v1/models", "models", false, NULL, api_models, "ModelList", NULL},
    {"GET", "/v1/models/*", "models", false, NULL, api_model, "Model", NULL},
    {"POST", "/tokenize", "tokenize", true, &schema_tokenize, api_tokenize, "Tokens", NULL},
    {"POST", "/detokenize", "detokenize", true, &schema_detokenize, api_detokenize, "Text", NULL},
    {"GET", "/health", "health", false, NULL, api_health, "Health", NULL},
    {"GET", "/health/ready", "health", false, NULL, api_health, "Health", NULL},
    {"GET", "/metrics", "metrics", false, NULL, api_metrics, "Any", NULL},
    {"GET", "/version", "version", false, NULL, api_version, "Version", NULL},
    {"GET", "/openapi.json", "openapi", false, NULL, api_openapi, "Any", NULL},
    {"POST", "/v1/embeddings", "embeddings", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/audio/*", "audio", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/images/*", "images", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/moderations", "moderations", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/files", "files", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/batches", "batches", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/messages/batches", "batches", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/fine_tuning/*", "fine_tuning", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/assistants", "assistants", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/threads", "threads", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/vector_stores", "vector_stores", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/rerank", "rerank", false, NULL, api_not_implemented, NULL, NULL},
    {"POST", "/v1/score", "score", false, NULL, api_not_implemented, NULL, NULL},
    {0},
};
