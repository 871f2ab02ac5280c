/* engine_api.c - see engine_api.h. */
#include "engine_api.h"

const struct engine_api engine_api_real = {
    .open = engine_open,
    .close = engine_close,
    .submit = engine_submit,
    .cancel = engine_cancel,
    .take_events = engine_take_events,
    .drain = engine_drain,
    .lost = engine_lost,
    .get_stats = engine_get_stats,
    .get_expert_rows = engine_get_expert_rows,
    .get_selection_reuse = engine_get_selection_reuse,
    .model = engine_model,
    .tokenizer = engine_tokenizer,
    .chat_format = engine_chat_format,
    .get_plan = engine_get_plan,
    .backend_name = engine_backend_name,
    .fingerprint = engine_fingerprint,
};
