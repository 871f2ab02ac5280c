/* log.h - an event a line on standard error: time, level, module, key=value.
 *
 *   log_info("sched", "request=%s prompt_tokens=%u", id, n);
 *   2026-11-24T10:00:00.123Z info sched request=chatcmpl-1 prompt_tokens=12
 *
 * Prompts and answers are never logged; what happens per token is a metric, not a line.
 * Thread: any; a line is one write(2), so lines never mix.
 */
#ifndef GAZE_BASE_LOG_H
#define GAZE_BASE_LOG_H

#include "base/err.h"

#include <stdbool.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };

void log_set_level(enum log_level level); /* before threads start; LOG_INFO until then */
enum log_level log_get_level(void);
bool log_level_parse(const char *name, enum log_level *out); /* "debug" ... "off" */

void log_at(enum log_level level, const char *module, const char *fmt, ...) PRINTF_LIKE(3, 4);

#define log_debug(module, ...) log_at(LOG_DEBUG, (module), __VA_ARGS__)
#define log_info(module, ...) log_at(LOG_INFO, (module), __VA_ARGS__)
#define log_warn(module, ...) log_at(LOG_WARN, (module), __VA_ARGS__)
#define log_error(module, ...) log_at(LOG_ERROR, (module), __VA_ARGS__)

#endif
