/* api_models.c - GET /v1/models and /v1/models/{id}. */
#include "api.h"
#include "http.h"

#include <string.h>

static void model_object(struct jo *j, const struct server *sv, const char *id)
{
    jo_obj(j);
    jo_kstr(j, "id", id);
    jo_kstr(j, "object", "model");
    jo_ku64(j, "created", sv->created_s);
    jo_kstr(j, "owned_by", "gaze");
    jo_kstr(j, "root", sv->name);
    jo_knull(j, "parent");
    jo_key(j, "max_model_len");
    if (sv->engine)
        jo_u64(j, sv->api->get_plan(sv->engine)->max_context);
    else
        jo_null(j);
    jo_end(j, '}');
}

void api_models(struct call *c)
{
    struct server *sv = c->sv;
    struct jo j = {.b = &c->answer};
    jo_obj(&j);
    jo_kstr(&j, "object", "list");
    jo_key(&j, "data");
    jo_arr(&j);
    model_object(&j, sv, sv->name);
    for (uint32_t i = 0; i < sv->n_aliases; i++)
        model_object(&j, sv, sv->alias[i]);
    jo_end(&j, ']');
    jo_end(&j, '}');
    http_json(c, 200);
}

void api_model(struct call *c)
{
    const char *id = c->path + strlen("/v1/models/");
    struct jo j = {.b = &c->answer};
    if (!server_knows_model(c->sv, id)) {
        http_fail(c, 404, "model", "model_not_found", "The model \"%.100s\" does not exist.", id);
        return;
    }
    model_object(&j, c->sv, id);
    http_json(c, 200);
}
