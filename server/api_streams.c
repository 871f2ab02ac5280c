/* api_streams.c - GET and DELETE /v1/streams/{id}: streams that can be gone on with. */
#include "api.h"
#include "generation.h"
#include "http.h"
#include "stream.h"

static const char *id_of(const struct call *c)
{
    return c->path + sizeof "/v1/streams/" - 1;
}

void api_stream(struct call *c)
{
    uint64_t from = 0;
    if (http_query_number(c, "from", &from))
        stream_read(c, id_of(c), generation_owner(c), from);
}

void api_stream_delete(struct call *c)
{
    struct jo j = {.b = &c->answer};
    if (!stream_delete(c->sv, id_of(c), generation_owner(c))) {
        http_fail(c, 404, "stream_id", "stream_not_found", "The stream \"%.64s\" is not there.",
                  id_of(c));
        return;
    }
    jo_obj(&j);
    jo_kstr(&j, "id", id_of(c));
    jo_kstr(&j, "object", "stream");
    jo_kbool(&j, "deleted", true);
    jo_end(&j, '}');
    http_json(c, 200);
}
