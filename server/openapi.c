/* openapi.c - GET /openapi.json: what this server takes and gives, as OpenAPI 3.1.
 *
 * Paths come from the routes, requests from the tables of schema.h, answers from
 * openapi_answers.c.
 */
#include "openapi.h"
#include "api.h"
#include "http.h"
#include "schema.h"
#include "version.h"

#include <ctype.h>
#include <math.h>
#include <string.h>

static void write_answers(struct buf *b)
{
    const char *const answers = openapi_answers;
    size_t n = strlen(answers), from = 0;
    for (size_t i = 0; i <= n; i++) {
        if (i < n && answers[i] != '\'')
            continue;
        buf_add(b, answers + from, i - from);
        if (i < n)
            buf_add(b, "\"", 1);
        from = i + 1;
    }
}

/* --- requests ----------------------------------------------------------------------------------
 */

static void write_kinds(struct jo *j, unsigned kinds, bool required)
{
    static const char *const names[] = {"boolean", "integer", "number",
                                        "string",  "array",   "object"};
    jo_key(j, "type");
    jo_arr(j);
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (kinds & 1u << i)
            jo_str(j, names[i]);
    if (!required)
        jo_str(j, "null");
    jo_end(j, ']');
}

static void write_bound(struct jo *j, const char *key, double v)
{
    jo_key(j, key);
    jo_num(j, v);
}

static void write_words(struct jo *j, const char *words, bool required)
{
    jo_key(j, "enum");
    jo_arr(j);
    for (const char *w = words; *w; w += *w == ' ') {
        size_t n = strcspn(w, " ");
        jo_strn(j, w, n);
        w += n;
    }
    if (!required)
        jo_null(j);
    jo_end(j, ']');
}

static void write_fields(struct jo *j, const struct field_rule *rules)
{
    bool any_required = false;
    jo_obj(j);
    jo_key(j, "type");
    jo_arr(j);
    jo_str(j, "object");
    jo_end(j, ']');
    jo_key(j, "properties");
    jo_obj(j);
    for (const struct field_rule *f = rules; f->name; f++) {
        any_required |= f->required;
        jo_key(j, f->name);
        if (f->fields) {
            jo_obj(j);
            jo_key(j, "anyOf");
            jo_arr(j);
            write_fields(j, f->fields);
        }
        jo_obj(j);
        write_kinds(j, f->fields ? f->kinds & ~(unsigned)FIELD_OBJECT : f->kinds, f->required);
        if (f->min < 0 || f->max > 0) {
            write_bound(j, f->above_min ? "exclusiveMinimum" : "minimum", f->min);
            write_bound(j, "maximum", f->max);
        }
        if (f->words)
            write_words(j, f->words, f->required);
        if (f->help && !f->fields)
            jo_kstr(j, "description", f->help);
        jo_end(j, '}');
        if (f->fields) {
            jo_end(j, ']');
            if (f->help)
                jo_kstr(j, "description", f->help);
            jo_end(j, '}');
        }
    }
    jo_end(j, '}');
    if (any_required) {
        jo_key(j, "required");
        jo_arr(j);
        for (const struct field_rule *f = rules; f->name; f++)
            if (f->required)
                jo_str(j, f->name);
        jo_end(j, ']');
    }
    jo_end(j, '}');
}

/* --- paths -------------------------------------------------------------------------------------
 */

static void write_media(struct jo *j, const char *media, const char *name)
{
    char ref[80];
    snprintf(ref, sizeof ref, "#/components/schemas/%s", name);
    jo_key(j, media);
    jo_obj(j);
    jo_key(j, "schema");
    jo_obj(j);
    jo_kstr(j, "$ref", ref);
    jo_end(j, '}');
    jo_end(j, '}');
}

static void write_ref(struct jo *j, const char *media, const char *name)
{
    jo_key(j, "content");
    jo_obj(j);
    write_media(j, media, name);
    jo_end(j, '}');
}

static const char *shown_path(const struct route *r, char *out, size_t bytes)
{
    size_t n = strlen(r->path);
    if (r->shown)
        return r->shown;
    if (r->path[n - 1] != '*')
        return r->path;
    snprintf(out, bytes, "%.*s{id}", (int)(n - 1), r->path);
    return out;
}

static void write_answer(struct jo *j, const struct route *r)
{
    bool messages = !strncmp(r->path, "/v1/messages", 12);
    jo_key(j, "responses");
    jo_obj(j);
    if (r->answer) {
        jo_key(j, "200");
        jo_obj(j);
        jo_kstr(j, "description", r->answer);
        jo_key(j, "content");
        jo_obj(j);
        write_media(j, r->media ? r->media : "application/json", r->answer);
        if (r->events) /* each event's data; but for the last, [DONE], of the first two */
            write_media(j, "text/event-stream", r->events);
        jo_end(j, '}');
        jo_end(j, '}');
    }
    jo_key(j, r->answer ? "default" : "501");
    jo_obj(j);
    jo_kstr(j, "description", r->answer ? "what is wrong" : "not implemented");
    write_ref(j, "application/json", messages ? "MessagesError" : "Error");
    jo_end(j, '}');
    jo_end(j, '}');
}

static void write_parameter(struct jo *j, const char *name, size_t n, const char *in,
                            const char *type)
{
    bool path = !strcmp(in, "path");
    jo_obj(j);
    jo_key(j, "name");
    jo_strn(j, name, n);
    jo_kstr(j, "in", in);
    jo_kbool(j, "required", path);
    jo_key(j, "schema");
    jo_obj(j);
    jo_kstr(j, "type", type);
    jo_end(j, '}');
    jo_end(j, '}');
}

static void write_operation(struct jo *j, const struct route *r, const char *path)
{
    char method[8] = "";
    for (size_t i = 0; r->method[i] && i + 1 < sizeof method; i++)
        method[i] = (char)tolower((unsigned char)r->method[i]);
    jo_key(j, method);
    jo_obj(j);
    jo_key(j, "tags");
    jo_arr(j);
    jo_str(j, r->handler);
    jo_end(j, ']');
    bool has_id = strstr(path, "{id}");
    if (has_id || r->query) {
        jo_key(j, "parameters");
        jo_arr(j);
        if (has_id)
            write_parameter(j, "id", 2, "path", "string");
        for (const char *q = r->query; q && *q; q += strcspn(q, " "), q += *q == ' ')
            write_parameter(j, q, strcspn(q, " "), "query", "integer");
        jo_end(j, ']');
    }
    if (r->body) {
        jo_key(j, "requestBody");
        jo_obj(j);
        jo_kbool(j, "required", true);
        write_ref(j, "application/json", r->body->name);
        jo_end(j, '}');
    }
    write_answer(j, r);
    jo_end(j, '}');
}

/* Routes of one path may stand anywhere; a path is written where its first one stands. */
static void write_paths(struct jo *j)
{
    char a[96], b[96];
    jo_key(j, "paths");
    jo_obj(j);
    for (const struct route *r = http_routes; r->path; r++) {
        const char *path = shown_path(r, a, sizeof a);
        const struct route *before = http_routes;
        while (before < r && strcmp(shown_path(before, b, sizeof b), path) != 0)
            before++;
        if (before < r)
            continue;
        jo_key(j, path);
        jo_obj(j);
        for (const struct route *same = r; same->path; same++)
            if (!strcmp(shown_path(same, b, sizeof b), path))
                write_operation(j, same, path);
        jo_end(j, '}');
    }
    jo_end(j, '}');
}

static void write_schemas(struct jo *j)
{
    jo_key(j, "schemas");
    jo_obj(j);
    for (const struct route *r = http_routes; r->path; r++) {
        if (!r->body)
            continue;
        jo_key(j, r->body->name);
        write_fields(j, r->body->fields);
    }
    buf_str(j->b, ","); /* bodies come first, and there are some */
    write_answers(j->b);
    jo_end(j, '}');
}

void api_openapi(struct call *c)
{
    struct jo j = {.b = &c->answer};
    jo_obj(&j);
    jo_kstr(&j, "openapi", "3.1.0");
    jo_key(&j, "info");
    jo_obj(&j);
    jo_kstr(&j, "title", "gaze");
    jo_kstr(&j, "version", version_number);
    jo_end(&j, '}');
    jo_key(&j, "security");
    jo_arr(&j);
    jo_obj(&j);
    jo_end(&j, '}');
    jo_obj(&j);
    jo_key(&j, "key");
    jo_arr(&j);
    jo_end(&j, ']');
    jo_end(&j, '}');
    jo_end(&j, ']');
    write_paths(&j);
    jo_key(&j, "components");
    jo_obj(&j);
    jo_key(&j, "securitySchemes");
    jo_obj(&j);
    jo_key(&j, "key");
    jo_obj(&j);
    jo_kstr(&j, "type", "http");
    jo_kstr(&j, "scheme", "bearer");
    jo_end(&j, '}');
    jo_end(&j, '}');
    write_schemas(&j);
    jo_end(&j, '}');
    jo_end(&j, '}');
    http_json(c, 200);
}
