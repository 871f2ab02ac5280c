/* engine_api.h - the engine as the server calls it: engine.h's functions in a table.
 *
 * The server knows the engine through this table alone, so a test can put another one in its place
 * and decide token by token, millisecond by millisecond, what the server hears.
 * Threads are those of engine.h.
 */
#ifndef GAZE_SERVER_ENGINE_API_H
#define GAZE_SERVER_ENGINE_API_H

#include "engine.h"

struct engine_api {
    enum err_code (*open)(struct engine **out, const struct engine_options *o, struct err *e);
    void (*close)(struct engine *en);
    enum err_code (*submit)(struct engine *en, struct gen_request *req, struct req_id *id,
                            struct err *e);
    void (*cancel)(struct engine *en, struct req_id id);
    struct gen_event *(*take_events)(struct engine *en);
    void (*drain)(struct engine *en);
    bool (*lost)(struct engine *en, struct err *why);
    void (*get_stats)(struct engine *en, struct engine_stats *out);
    void (*get_expert_rows)(struct engine *en, uint64_t *rows);
    void (*get_selection_reuse)(struct engine *en, struct reuse_count *count);
    const struct model_config *(*model)(const struct engine *en);
    const struct tokenizer *(*tokenizer)(const struct engine *en);
    const struct chat_format *(*chat_format)(const struct engine *en);
    const struct engine_plan *(*get_plan)(const struct engine *en);
    const char *(*backend_name)(const struct engine *en);
    const char *(*fingerprint)(const struct engine *en);
};
extern const struct engine_api engine_api_real;

#endif
