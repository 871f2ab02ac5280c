/* parallel.c - see parallel.h. */
#include "model/parallel.h"

#include "base/fault.h"
#include "base/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- what divides ---- */

static enum err_code divides(uint32_t n, const char *what, uint32_t by, const char *option,
                             struct err *e)
{
    if (n % by == 0)
        return ERR_OK;
    return err_set(e, ERR_INVALID, "%s: %u does not divide %s: %u", option, by, what, n);
}

static enum err_code check(const struct parallel *p, const struct model_config *c, struct err *e)
{
    if (p->tp < 1 || p->dp < 1 || p->ep < 1)
        return err_set(e, ERR_INVALID, "tp %u, dp %u, ep %u: each is at least 1", p->tp, p->dp,
                       p->ep);
    if ((uint64_t)p->tp * p->dp > PARALLEL_MAX_RANKS)
        return err_set(e, ERR_INVALID, "tp %u times dp %u is more than %d ranks", p->tp, p->dp,
                       (int)PARALLEL_MAX_RANKS);
    if (divides(c->n_heads, "num_attention_heads", p->tp, "tp", e) ||
        (c->n_dense_layers && divides(c->dense_width, "intermediate_size", p->tp, "tp", e)))
        return e->code;
    if (!c->n_experts)
        return p->ep == 1 ? ERR_OK
                          : err_set(e, ERR_INVALID, "ep: %u, but the model has no experts", p->ep);
    if (divides(p->n_ranks, "tp * dp", p->ep, "ep", e) ||
        divides(c->n_shared * c->expert_width, "the shared experts' width", p->tp, "tp", e) ||
        divides(c->expert_width, "moe_intermediate_size", p->n_width, "ranks of an expert", e))
        return e->code;
    return ERR_OK;
}

/* ---- placement ---- */

static enum err_code reserve(struct parallel *p, uint32_t n_maps, uint32_t n_held, struct err *e)
{
    struct placement *m = &p->placement;
    size_t places = (size_t)n_maps * p->ep * n_held;
    bool fault = FAULT("parallel.placement");
    p->n_held = n_held;
    m->n_maps = n_maps;
    m->held = fault ? NULL : calloc(places, sizeof *m->held);
    m->first = calloc((size_t)n_maps * (p->n_experts + 1), sizeof *m->first);
    m->place = calloc(places, sizeof *m->place);
    if (m->held && m->first && m->place)
        return ERR_OK;
    return err_set(e, ERR_NOMEM, "a placement of %u experts in %u parts", p->n_experts, p->ep);
}

/* Sorts a map's places by expert; each expert must have one. */
static enum err_code index_map(struct parallel *p, uint32_t map, const char *where, struct err *e)
{
    struct placement *m = &p->placement;
    uint32_t n = p->ep * p->n_held;
    uint32_t *first = m->first + (size_t)map * (p->n_experts + 1);
    const uint32_t *held = m->held + (size_t)map * n;
    uint32_t *place = m->place + (size_t)map * n;
    for (uint32_t i = 0; i < n; i++)
        first[held[i] + 1]++;
    for (uint32_t x = 0; x < p->n_experts; x++) {
        if (!first[x + 1])
            return err_set(e, ERR_INVALID, "%s: expert %u of %u has no place", where, x,
                           p->n_experts);
        first[x + 1] += first[x];
    }
    for (uint32_t x = 0; x < p->n_experts; x++) {
        uint32_t at = first[x];
        for (uint32_t i = 0; i < n; i++)
            if (held[i] == x)
                place[at++] = i;
    }
    return ERR_OK;
}

static enum err_code even_placement(struct parallel *p, struct err *e)
{
    if (divides(p->n_experts, "n_routed_experts", p->ep, "ep", e) ||
        reserve(p, 1, p->n_experts / p->ep, e))
        return e->code;
    for (uint32_t i = 0; i < p->n_experts; i++)
        p->placement.held[i] = i;
    return index_map(p, 0, "experts", e);
}

/* One list of parts into map number `map`; the first one read decides n_held. */
static enum err_code read_parts(struct parallel *p, const cJSON *parts, uint32_t map,
                                uint32_t n_maps, const char *where, struct err *e)
{
    int n_parts = cJSON_IsArray(parts) ? cJSON_GetArraySize(parts) : -1;
    if (n_parts != (int)p->ep)
        return err_set(e, ERR_INVALID, "%s: %d lists of experts, ep is %u", where,
                       n_parts < 0 ? 0 : n_parts, p->ep);
    uint32_t part = 0;
    for (const cJSON *list = parts->child; list; list = list->next, part++) {
        int n = cJSON_IsArray(list) ? cJSON_GetArraySize(list) : 0;
        if (n < 1 || (uint32_t)n > p->n_experts)
            return err_set(e, ERR_INVALID, "%s: list %u has %d experts, outside 1..%u", where, part,
                           n, p->n_experts);
        if (!p->placement.held && reserve(p, n_maps, (uint32_t)n, e))
            return e->code;
        if ((uint32_t)n != p->n_held)
            return err_set(e, ERR_INVALID, "%s: list %u has %d experts, the first one %u", where,
                           part, n, p->n_held);
        uint32_t *to = p->placement.held + ((size_t)map * p->ep + part) * p->n_held, i = 0;
        for (const cJSON *id = list->child; id; id = id->next, i++) {
            double v = cJSON_IsNumber(id) ? id->valuedouble : -1;
            if (!(v >= 0) || v >= p->n_experts || v != floor(v))
                return err_set(e, ERR_INVALID, "%s: list %u: entry %u is no expert below %u", where,
                               part, i, p->n_experts);
            to[i] = (uint32_t)v;
            for (uint32_t k = 0; k < i; k++)
                if (to[k] == to[i])
                    return err_set(e, ERR_INVALID, "%s: list %u has expert %u twice", where, part,
                                   to[i]);
        }
    }
    return index_map(p, map, where, e);
}

static enum err_code read_placement(struct parallel *p, const struct model_config *c,
                                    const cJSON *o, struct err *e)
{
    const cJSON *parts = json_get(o, "parts"), *layers = json_get(o, "layers");
    if (!parts == !layers)
        return err_set(e, ERR_INVALID, "one of \"parts\" and \"layers\" must be there");
    if (parts)
        return read_parts(p, parts, 0, 1, "parts", e);
    for (uint32_t l = 0; l < c->n_layers; l++) {
        char key[16], where[32];
        /* layers without experts take the first map that was read, which nobody asks for */
        uint32_t from = model_is_moe(c, l) ? l : c->n_dense_layers;
        snprintf(key, sizeof key, "%u", from);
        snprintf(where, sizeof where, "layers: %u", from);
        const cJSON *of = json_get(layers, key);
        if (!of)
            return err_set(e, ERR_INVALID, "layers: %u is missing", from);
        if (read_parts(p, of, l, c->n_layers, where, e))
            return e->code;
    }
    return ERR_OK;
}

static enum err_code place_experts(struct parallel *p, const struct model_config *c,
                                   const char *map, struct err *e)
{
    cJSON *o = NULL;
    p->n_held = c->n_experts;
    if (!parallel_spreads(p))
        return map ? err_set(e, ERR_INVALID, "%s: a placement needs ep above 1, it is %u", map,
                             p->ep)
                   : ERR_OK;
    if (!map)
        return even_placement(p, e);
    if (json_parse_file(&o, map, e))
        return e->code;
    e->code = ERR_OK;
    if (read_placement(p, c, o, e))
        err_prefix(e, "%s", map);
    cJSON_Delete(o);
    return e->code;
}

enum err_code parallel_make(struct parallel *out, const struct model_config *cfg, uint32_t tp,
                            uint32_t dp, uint32_t ep, const char *map, struct err *e)
{
    struct parallel p = {.tp = tp,
                         .dp = dp,
                         .ep = ep,
                         .n_ranks = tp * dp,
                         .n_experts = cfg->n_experts,
                         .cut_head = tp > 1 && cfg->vocab_size % tp == 0};
    p.n_width = ep > 1 && p.n_ranks % ep == 0 ? p.n_ranks / ep : tp;
    if (check(&p, cfg, e) || place_experts(&p, cfg, map, e)) {
        parallel_free(&p);
        return e->code;
    }
    *out = p;
    return ERR_OK;
}

void parallel_free(struct parallel *p)
{
    free(p->placement.held);
    free(p->placement.first);
    free(p->placement.place);
    p->placement = (struct placement){0};
}

/* ---- a rank's part ---- */

struct rank_share parallel_share(const struct parallel *p, uint32_t rank)
{
    assert(rank < p->n_ranks);
    struct rank_share s = {.plan = p, .rank = rank, .group = rank / p->tp, .tp_rank = rank % p->tp};
    s.part = parallel_spreads(p) ? rank / p->n_width : 0;
    s.width_rank = rank % p->n_width;
    return s;
}

struct model_config parallel_config(const struct rank_share *s, const struct model_config *whole)
{
    const struct parallel *p = s->plan;
    struct model_config c = *whole;
    c.n_heads /= p->tp;
    c.dense_width /= p->tp;
    c.shared_width = whole->n_shared * whole->expert_width / p->tp;
    c.expert_width /= p->n_width;
    c.n_held = p->n_held;
    return c;
}

struct parallel_traffic parallel_step_traffic(const struct parallel *p,
                                              const struct model_config *whole, uint32_t n_rows,
                                              uint32_t n_out, double dispatch_value_bytes)
{
    struct parallel_traffic t = {0};
    double row = whole->hidden_size, f32 = sizeof(float);
    if (p->tp > 1) {
        t.n_sums = 2 * whole->n_layers;
        t.sum_bytes = t.n_sums * (double)n_rows * row * f32;
        if (p->cut_head)
            t.logits_bytes = n_out * (double)whole->vocab_size / p->tp * f32;
    }
    if (!parallel_spreads(p) || !whole->n_experts)
        return t;
    double own = (double)n_rows / p->tp, active = whole->n_active;
    /* Parts that a row meets, when its experts are spread evenly. */
    double parts = p->ep * (1 - pow(1 - 1.0 / p->ep, active));
    t.n_exchanges = whole->n_layers - whole->n_dense_layers;
    t.dispatch_bytes = t.n_exchanges * own * parts * p->n_width * row * dispatch_value_bytes;
    t.combine_bytes = t.n_exchanges * own * active * p->n_width * row * f32;
    return t;
}
