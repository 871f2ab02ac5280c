/* errors.c - see errors.h. */
#include "errors.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *type_of(int status)
{
    switch (status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 429:
        return "rate_limit_error";
    case 501:
        return "not_implemented_error";
    case 503:
        return "service_unavailable_error";
    default:
        return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

bool api_fail(struct api_error *ae, int status, const char *param, const char *code,
              const char *fmt, ...)
{
    *ae = (struct api_error){.status = status, .type = type_of(status), .code = code};
    if (param)
        snprintf(ae->param, sizeof ae->param, "%s", param);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(ae->message, sizeof ae->message, fmt, ap);
    va_end(ap);
    if (status == 429)
        ae->retry_after_s = 1;
    if (status == 503)
        ae->retry_after_s = 5;
    return false;
}

void api_fail_err(struct api_error *ae, const struct err *e)
{
    switch (e->code) {
    case ERR_INVALID:
        api_fail(ae, 400, NULL, strstr(e->msg, "context") ? "context_length_exceeded" : NULL, "%s",
                 e->msg);
        break;
    case ERR_BUSY:
    case ERR_NO_PAGES:
        api_fail(ae, 429, NULL, "rate_limit_exceeded", "The server is busy: %s. Try again shortly.",
                 e->msg);
        break;
    case ERR_CLOSED:
        api_fail(ae, 503, NULL, "draining",
                 "The server is shutting down and takes no new requests.");
        break;
    case ERR_COMM:
        api_fail(ae, 503, NULL, "engine_lost",
                 "A rank of the engine is lost, and the server ends: %s.", e->msg);
        break;
    case ERR_NOMEM:
        api_fail(ae, 503, NULL, "out_of_memory",
                 "The machine has no memory left for this request.");
        break;
    default: /* nothing internal goes out; the log has the rest */
        api_fail(ae, 500, NULL, "internal_error", "The request failed inside the server.");
    }
}

void api_error_json(struct buf *out, const struct api_error *ae)
{
    struct jo j = {.b = out};
    jo_obj(&j);
    jo_key(&j, "error");
    jo_obj(&j);
    jo_kstr(&j, "message", ae->message);
    jo_kstr(&j, "type", ae->type);
    jo_kstr(&j, "param", ae->param[0] ? ae->param : NULL);
    jo_kstr(&j, "code", ae->code);
    jo_end(&j, '}');
    jo_end(&j, '}');
}

static const char *messages_type_of(int status)
{
    switch (status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 404:
        return "not_found_error";
    case 413:
        return "request_too_large";
    case 429:
        return "rate_limit_error";
    case 503:
        return "overloaded_error";
    default:
        return status >= 500 ? "api_error" : "invalid_request_error";
    }
}

void api_error_messages_json(struct buf *out, const struct api_error *ae, const char *request_id)
{
    struct jo j = {.b = out};
    jo_obj(&j);
    jo_kstr(&j, "type", "error");
    jo_key(&j, "error");
    jo_obj(&j);
    jo_kstr(&j, "type", messages_type_of(ae->status));
    jo_kstr(&j, "message", ae->message);
    jo_end(&j, '}');
    jo_kstr(&j, "request_id", request_id);
    jo_end(&j, '}');
}
