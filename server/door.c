/* door.c - see http_impl.h: who comes in, and to which handler. */
#include "http_impl.h"

#include "base/clock.h"

#include <string.h>
#include <strings.h>

static bool path_matches(const struct route *r, const char *path)
{
    size_t n = strlen(r->path);
    if (r->path[n - 1] == '*')
        return !strncmp(r->path, path, n - 1) && path[n - 1];
    return !strcmp(r->path, path);
}

static bool method_matches(const struct route *r, const char *method)
{
    return !strcmp(r->method, method) || (!strcmp(r->method, "GET") && !strcmp(method, "HEAD"));
}

const struct route *door_route(const struct call *c, const char **allow, const char **handler)
{
    bool get = false, post = false, drop = false;
    *handler = "none";
    for (const struct route *r = http_routes; r->path; r++) {
        if (!path_matches(r, c->path))
            continue;
        *handler = r->handler;
        if (method_matches(r, c->method))
            return r;
        get |= !strcmp(r->method, "GET");
        post |= !strcmp(r->method, "POST");
        drop |= !strcmp(r->method, "DELETE");
    }
    *allow = drop && post ? "GET, HEAD, POST, DELETE, OPTIONS"
             : drop       ? "GET, HEAD, DELETE, OPTIONS"
             : get        ? "GET, HEAD, OPTIONS"
             : post       ? "POST, OPTIONS"
                          : NULL;
    return NULL;
}

static bool json_content_type(const char *type)
{
    if (!type || !*type)
        return true; /* a client that says nothing means JSON */
    size_t n = strcspn(type, "; ");
    return (n == 16 && !strncasecmp(type, "application/json", 16)) ||
           (n > 5 && !strncasecmp(type + n - 5, "+json", 5));
}

/* "Authorization: Bearer SECRET", or x-api-key as some clients send it. */
static const char *sent_key(struct call *c)
{
    const char *value = http_header(c, "authorization");
    if (!value)
        return http_header(c, "x-api-key");
    if (strncasecmp(value, "bearer ", 7) != 0)
        return NULL;
    return value + 7 + strspn(value + 7, " ");
}

/* Everybody may ask for health and for the page, which then asks for a key, and a browser before it
 * may send one. */
static bool answer_unknown_key(struct call *c, const char *handler)
{
    struct server *sv = c->sv;
    if (!auth_required(sv->auth) || !strcmp(handler, "health") || !strcmp(handler, "page") ||
        !strcmp(c->method, "OPTIONS") ||
        (sv->settings->open_metrics && !strcmp(handler, "metrics")))
        return false;
    const char *secret = sent_key(c);
    c->key = secret ? auth_find(sv->auth, secret, strlen(secret)) : NULL;
    if (c->key)
        return false;
    c->challenge = true;
    http_fail(c, 401, NULL, "invalid_api_key", "%s",
              secret ? "The API key is not known here."
                     : "An API key is needed: send the header Authorization: Bearer KEY.");
    return true;
}

static bool answer_not_permitted(struct call *c, const char *handler)
{
    bool metrics = !strcmp(handler, "metrics");
    if (!c->key || c->key->limit.use == KEY_FOR_ALL ||
        metrics == (c->key->limit.use == KEY_FOR_METRICS))
        return false;
    http_fail(c, 403, NULL, "not_permitted", "The key %s is not for %.120s.", c->key->name,
              c->path);
    return true;
}

static bool answer_over_limit(struct call *c)
{
    struct api_error ae;
    if (!c->key)
        return false;
    c->admitted = auth_admit(c->key, clock_us(), &ae);
    if (!c->admitted)
        http_error(c, &ae);
    return !c->admitted;
}

/* What can be said from the headers alone; true when it was an answer. */
bool door_answers(struct call *c, const char **handler)
{
    struct server *sv = c->sv;
    const char *allow = NULL;
    const struct route *r = door_route(c, &allow, handler);
    if (answer_unknown_key(c, *handler) || answer_not_permitted(c, *handler))
        return true;
    if (!r && !allow) {
        http_fail(c, 404, NULL, "not_found", "There is nothing at %.120s.", c->path);
    } else if (!strcmp(c->method, "OPTIONS")) {
        c->allow = allow ? allow : "GET, HEAD, POST, OPTIONS";
        http_text(c, 204, NULL);
    } else if (!r) {
        c->allow = allow;
        http_fail(c, 405, NULL, "method_not_allowed", "%s is not allowed here, only %s.", c->method,
                  allow);
    } else if (r->body && !json_content_type(http_header(c, "content-type"))) {
        http_fail(c, 415, NULL, "unsupported_media_type",
                  "The content type must be application/json.");
    } else if (r->body && !http_header(c, "content-length") &&
               !http_header(c, "transfer-encoding")) {
        c->close_after = true; /* what follows may be a body that nobody measured */
        http_fail(c, 411, NULL, "length_required",
                  "The request needs a body, with Content-Length or in chunks.");
    } else if (r->needs_engine && sv->lost) {
        struct api_error ae;
        api_fail_err(&ae, &sv->lost_err);
        http_error(c, &ae);
    } else if (r->needs_engine && sv->draining) {
        http_fail(c, 503, NULL, "draining",
                  "The server is shutting down and takes no new requests.");
    } else if (r->needs_engine && !sv->engine) {
        http_fail(c, 503, NULL, "loading", "The model is still loading.");
    } else if (!(r->needs_engine && r->body && answer_over_limit(c))) {
        c->route = r;
        return false;
    }
    return true;
}
