/* trace.h - W3C trace context and OTLP: where a request belongs, and spans as a collector reads
 * them.
 *
 * A client's `traceparent` is taken when it is well-formed, else a trace begins here; the answer
 * carries ours, so that the client's next request can follow. A span is written as OTLP's JSON (the
 * protobuf mapping with ids in hex) the moment it ends; otlp.h sends what has gathered.
 *
 * Thread: any.
 */
#ifndef GAZE_SERVER_TRACE_H
#define GAZE_SERVER_TRACE_H

#include "json_out.h"

enum { TRACE_ID = 16, SPAN_ID = 8, TRACE_HEADER = 56 };

struct trace {
    uint8_t id[TRACE_ID];
    uint8_t span[SPAN_ID];   /* ours */
    uint8_t parent[SPAN_ID]; /* the caller's, if has_parent */
    bool has_parent;
    bool sampled; /* the caller's word; without one: yes */
};

/* header may be NULL or nonsense: then a new trace begins. seed: a number never used before. */
void trace_begin(struct trace *t, const char *header, uint64_t seed);
/* "00-<trace>-<span>-01" */
void trace_header(char out[TRACE_HEADER], const struct trace *t);

enum span_kind { SPAN_INTERNAL = 1, SPAN_SERVER = 2 }; /* OTLP's numbers */
struct span_attribute {
    const char *key;
    const char *text; /* NULL: it is the number */
    int64_t number;
};
struct span {
    const uint8_t *trace_id, *id, *parent; /* parent NULL: none */
    const char *name;
    enum span_kind kind;
    uint64_t begin_ns, end_ns; /* Unix time */
    const struct span_attribute *attribute;
    uint32_t n_attributes;
    const char *error; /* NULL: status unset, as servers do for all but 5xx */
};
/* Appends one span's object. */
void span_json(struct buf *out, const struct span *s);
/* A whole ExportTraceServiceRequest around spans that span_json() wrote, commas between. */
void spans_request_json(struct buf *out, const char *version, const char *instance,
                        const struct buf *spans);

#endif
