/* metrics_parts.h - parts of /metrics that a server has and a process that follows one, too.
 *
 * Each appends whole metrics as Prometheus text. label: the model's name, escaped already.
 * Thread: any, with a buffer of its own.
 */
#ifndef GAZE_SERVER_METRICS_PARTS_H
#define GAZE_SERVER_METRICS_PARTS_H

#include "engine.h"
#include "json_out.h"

void metrics_head(struct buf *b, const char *name, const char *type, const char *help);
/* value with what would end a label escaped, in out. */
const char *metrics_label(char *out, size_t bytes, const char *value);

void metrics_build(struct buf *b);
/* rows[n_layers * n_experts] */
void metrics_experts(struct buf *b, const char *label, const struct model_config *m,
                     const uint64_t *rows);
/* count[REUSE_LAYERS]; of a layer the share is again / selected. */
void metrics_selections(struct buf *b, const char *label, const struct model_config *m,
                        const struct reuse_count *count);
void metrics_memory_plan(struct buf *b, const char *label, const struct engine_plan *p);
void metrics_process(struct buf *b, uint64_t began_s); /* began_s: Unix time */

#endif
