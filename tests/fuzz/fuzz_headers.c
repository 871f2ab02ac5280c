/* fuzz_headers.c - a traceparent of any bytes, and the same bytes in a line of the log: what is
 * taken is well-formed, a line stays one line, and as JSON it parses with no field more than it
 * should.
 */
#include "base/json.h"
#include "base/log.h"
#include "server/json_out.c"
#include "server/trace.c"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_trace(const char *text)
{
    struct trace t;
    char header[TRACE_HEADER];
    trace_begin(&t, text, 1);
    trace_header(header, &t);
    assert(strlen(header) == TRACE_HEADER - 1);
    struct trace again;
    trace_begin(&again, header, 2); /* what goes out is what another server takes */
    assert(again.has_parent && !memcmp(again.id, t.id, TRACE_ID));
    assert(!memcmp(again.parent, t.span, SPAN_ID) && again.sampled == t.sampled);
    if (t.has_parent)
        assert(!memcmp(header + 3, text + 3, 32));
}

static void check_line(const char *event, int n_fields)
{
    static char line[16384];
    const struct timespec at = {.tv_sec = 1};
    struct err e = {0};
    cJSON *v = NULL;
    size_t n = log_line(line, sizeof line, LOG_JSON, LOG_INFO, &at, "m", event);
    assert(n && line[n - 1] == '\n' && memchr(line, '\n', n) == line + n - 1);
    if (json_parse(&v, line, n, 4, &e))
        abort();
    assert(n_fields < 0 || cJSON_GetArraySize(v) == n_fields || json_get(v, "cut"));
    cJSON_Delete(v);
    n = log_line(line, sizeof line, LOG_TEXT, LOG_INFO, &at, "m", event);
    assert(n && memchr(line, '\n', n) == line + n - 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char text[4096], escaped[4096], event[8300];
    if (size >= sizeof text)
        return 0;
    memcpy(text, data, size);
    text[size] = 0;
    check_trace(text);
    check_line(text, -1);
    snprintf(event, sizeof event, "v=\"%s\" z=1", log_escape(escaped, sizeof escaped, text));
    check_line(event, 5);
    return 0;
}
