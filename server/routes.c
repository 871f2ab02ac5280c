/* routes.c - every path that the server knows. */
#include "api.h"
#include "http.h"

const struct route http_routes[] = {
    {"POST", "/v1/chat/completions", "chat", true, true, api_chat},
    {"POST", "/v1/completions", "completions", true, true, api_completions},
    {"POST", "/v1/messages", "messages", true, true, api_messages},
    {"POST", "/v1/messages/count_tokens", "count_tokens", true, true, api_count_tokens},
    {"GET", "/v1/models", "models", false, false, api_models},
    {"GET", "/v1/models/*", "models", false, false, api_model},
    {"POST", "/tokenize", "tokenize", true, true, api_tokenize},
    {"POST", "/detokenize", "detokenize", true, true, api_detokenize},
    {"GET", "/health", "health", false, false, api_health},
    {"GET", "/health/ready", "health", false, false, api_health},
    {"GET", "/metrics", "metrics", false, false, api_metrics},
    {"GET", "/version", "version", false, false, api_version},
    {"POST", "/v1/embeddings", "embeddings", false, false, api_not_implemented},
    {"POST", "/v1/audio/*", "audio", false, false, api_not_implemented},
    {"POST", "/v1/images/*", "images", false, false, api_not_implemented},
    {"POST", "/v1/moderations", "moderations", false, false, api_not_implemented},
    {0},
};
