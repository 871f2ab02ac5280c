/* log.h - an event a line on standard error: time, level, module, key=value.
 *
 *   log_info("sched", "request=%s prompt_tokens=%u", id, n);
 *   2026-11-24T10:00:00.123Z info sched request=chatcmpl-1 prompt_tokens=12
 *
 * As JSON the same event is an object: {"time":..., "level":"info", "module":"sched",
 * "request":"chatcmpl-1", "prompt_tokens":12}. A value in quotes may hold spaces; what comes from
 * outside stands in quotes with \" and \\ escaped (log_escape). Words without '=' are "message".
 *
 * Prompts and answers are not logged unless the operator asks for it; what happens per token is a
 * metric, not a line.
 * Thread: any; a line is one write(2), so lines never mix.
 */
#ifndef GAZE_BASE_LOG_H
#define GAZE_BASE_LOG_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR, LOG_OFF };

void log_set_level(enum log_level level); /* LOG_INFO until then */
enum log_level log_get_level(void);
enum log_format { LOG_TEXT, LOG_JSON };
void log_set_format(enum log_format format);                 /* LOG_TEXT until then */
bool log_level_parse(const char *name, enum log_level *out); /* "debug" ... "off" */

void log_at(enum log_level level, const char *module, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Writes value so that it can stand in quotes: quotes and backslashes escaped, control characters
 * and what is not UTF-8 replaced. Cut where out is full. Returns out. */
const char *log_escape(char *out, size_t bytes, const char *value);

/* The line for an event, with its newline; a pure function, for log_at() and for tests. */
size_t log_line(char *out, size_t bytes, enum log_format format, enum log_level level,
                const struct timespec *at, const char *module, const char *event);

#define log_debug(module, ...) log_at(LOG_DEBUG, (module), __VA_ARGS__)
#define log_info(module, ...) log_at(LOG_INFO, (module), __VA_ARGS__)
#define log_warn(module, ...) log_at(LOG_WARN, (module), __VA_ARGS__)
#define log_error(module, ...) log_at(LOG_ERROR, (module), __VA_ARGS__)

#endif
