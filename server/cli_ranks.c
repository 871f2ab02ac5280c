/* cli_ranks.c - gaze plan, where the model is cut over ranks: what each holds, and what a step
 * moves between them. Made from the configuration; no weight is read.
 */
#include "cli.h"

#include "json_out.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_KINDS = 64, KIND_BYTES = 64 };

/* All matrices of one name in all layers, as one rank has them. */
struct kind {
    char name[KIND_BYTES]; /* "self_attn.o_proj" */
    uint32_t count;
    struct cut cut; /* of the last one; all of a kind are cut alike */
    double bytes;
};

struct kinds {
    struct weights_source source; /* first */
    bool fp8;
    uint32_t n;
    struct kind kind[MAX_KINDS];
};

/* Leaves out the numbers of layers and experts. */
static void kind_of(char out[KIND_BYTES], const char *name)
{
    static const char layers[] = "model.layers.", experts[] = "mlp.experts.";
    if (!strncmp(name, layers, sizeof layers - 1)) {
        name += sizeof layers - 1;
        name += strspn(name, "0123456789.");
    }
    if (strncmp(name, experts, sizeof experts - 1) != 0) {
        snprintf(out, KIND_BYTES, "%s", name);
        return;
    }
    name += sizeof experts - 1;
    snprintf(out, KIND_BYTES, "mlp.experts.*.%s", name + strspn(name, "0123456789."));
}

static enum err_code add_matrix(struct weights_source *s, const char *name, enum param_use use,
                                const struct cut *cut, struct matrix *out, struct err *e)
{
    struct kinds *k = (struct kinds *)s;
    char kind[KIND_BYTES];
    uint32_t i = 0;
    (void)e;
    kind_of(kind, name);
    while (i < k->n && strcmp(k->kind[i].name, kind) != 0)
        i++;
    assert(i < MAX_KINDS);
    if (i == k->n) {
        k->n++;
        memcpy(k->kind[i].name, kind, sizeof kind);
    }
    double values = (double)cut->n_rows * cut->n_columns;
    k->kind[i].count++;
    k->kind[i].cut = *cut;
    k->kind[i].bytes += values * (k->fp8 && use == PARAM_LINEAR ? 1.0 + 4.0 / 16384 : 2.0);
    *out = (struct matrix){.n_out = cut->n_rows, .n_in = cut->n_columns};
    return ERR_OK;
}

/* Vectors are small, and whole on each rank. */
static enum err_code add_vector(struct weights_source *s, const char *name, enum param_use use,
                                uint32_t n, float **out, struct err *e)
{
    (void)s, (void)name, (void)use, (void)n, (void)e;
    *out = NULL;
    return ERR_OK;
}

static void list_kinds(struct kinds *k, const struct model_config *cfg,
                       const struct rank_share *share)
{
    struct err e = {0};
    *k = (struct kinds){.source = {add_matrix, add_vector}, .fp8 = cfg->fp8_blocks};
    enum err_code code = weights_walk(NULL, cfg, share, &k->source, &e);
    assert(code == ERR_OK); /* nothing in it refuses */
}

static double sum_of(const struct kinds *k)
{
    double sum = 0;
    for (uint32_t i = 0; i < k->n; i++)
        sum += k->kind[i].bytes;
    return sum;
}

/* Of a rank, in a full decode step. */
static struct parallel_traffic decode_traffic(const struct parallel *par,
                                              const struct model_config *cfg,
                                              const struct engine_options *o,
                                              const struct engine_plan *p)
{
    double value_bytes = o->expert == EXPERT_FP8 ? 1 + 4.0 / 128 : 4;
    return parallel_step_traffic(par, cfg, p->max_seqs, p->max_seqs, value_bytes);
}

static enum err_code open_plan(struct parallel *p, struct model_config *cfg,
                               const struct engine_options *o, struct err *e)
{
    if (model_config_read(cfg, o->model_dir, e))
        return e->code;
    if (o->n_layers)
        model_config_cut(cfg, o->n_layers);
    return parallel_make(p, cfg, o->tp ? o->tp : 1, o->dp ? o->dp : 1, o->ep ? o->ep : 1,
                         o->placement, e);
}

static void print_kind(FILE *to, const struct kind *k)
{
    const struct cut *c = &k->cut;
    fprintf(to, "    %-36s %6u x", k->name, k->count);
    if (c->n_rows < c->n_out)
        fprintf(to, "  rows %u..%u of %u", c->row0, c->row0 + c->n_rows, c->n_out);
    if (c->n_columns < c->n_in)
        fprintf(to, "  columns %u..%u of %u", c->column0, c->column0 + c->n_columns, c->n_in);
    if (c->n_rows == c->n_out && c->n_columns == c->n_in)
        fprintf(to, "  whole");
    fprintf(to, "  %.1f MB\n", k->bytes / 1e6);
}

enum err_code cli_print_ranks(FILE *to, const struct engine_options *o, const struct engine_plan *p,
                              struct err *e)
{
    struct model_config cfg;
    struct parallel par;
    if (open_plan(&par, &cfg, o, e))
        return e->code;
    struct kinds *k = malloc(sizeof *k);
    if (!k) {
        parallel_free(&par);
        return err_set(e, ERR_NOMEM, "a list of tensors");
    }
    fprintf(
        to,
        "%u ranks: tp %u, dp %u, ep %u; each with %.2f GB of KV pages and %.2f GB of workspace\n",
        par.n_ranks, par.tp, par.dp, par.ep, (double)p->kv_bytes / par.n_ranks / 1e9,
        (double)p->workspace_bytes / par.n_ranks / 1e9);
    for (uint32_t r = 0; r < par.n_ranks; r++) {
        struct rank_share s = parallel_share(&par, r);
        fprintf(to, "  rank %u, group %u", r, s.group);
        if (par.ep > 1)
            fprintf(to, ", part %u of the experts", s.part);
        list_kinds(k, &cfg, &s);
        fprintf(to, ": %.3f GB of matrices\n", sum_of(k) / 1e9);
        for (uint32_t i = 0; i < k->n; i++)
            print_kind(to, &k->kind[i]);
    }
    struct parallel_traffic t = decode_traffic(&par, &cfg, o, p);
    fprintf(to, "a decode step of %u rows in each group, per rank:\n", p->max_seqs);
    fprintf(to, "  %u sums over a group, %.2f MB; logits %.2f MB\n", t.n_sums, t.sum_bytes / 1e6,
            t.logits_bytes / 1e6);
    fprintf(to, "  %u exchanges with experts: rows %.2f MB, values %.2f MB\n", t.n_exchanges,
            t.dispatch_bytes / 1e6, t.combine_bytes / 1e6);
    free(k);
    parallel_free(&par);
    return ERR_OK;
}

static void json_kind(struct jo *j, const struct kind *k)
{
    jo_obj(j);
    jo_kstr(j, "name", k->name);
    jo_ku64(j, "count", k->count);
    jo_ku64(j, "row0", k->cut.row0);
    jo_ku64(j, "rows", k->cut.n_rows);
    jo_ku64(j, "of_rows", k->cut.n_out);
    jo_ku64(j, "column0", k->cut.column0);
    jo_ku64(j, "columns", k->cut.n_columns);
    jo_ku64(j, "of_columns", k->cut.n_in);
    jo_ku64(j, "bytes", (uint64_t)k->bytes);
    jo_end(j, '}');
}

enum err_code cli_json_ranks(struct jo *j, const struct engine_options *o,
                             const struct engine_plan *p, struct err *e)
{
    struct model_config cfg;
    struct parallel par;
    if (open_plan(&par, &cfg, o, e))
        return e->code;
    struct kinds *k = malloc(sizeof *k);
    if (!k) {
        parallel_free(&par);
        return err_set(e, ERR_NOMEM, "a list of tensors");
    }
    jo_ku64(j, "tp", par.tp);
    jo_ku64(j, "dp", par.dp);
    jo_ku64(j, "ep", par.ep);
    struct parallel_traffic t = decode_traffic(&par, &cfg, o, p);
    jo_ku64(j, "rank_kv_bytes", p->kv_bytes / par.n_ranks);
    jo_ku64(j, "rank_workspace_bytes", p->workspace_bytes / par.n_ranks);
    jo_ku64(j, "decode_sum_bytes", (uint64_t)t.sum_bytes);
    jo_ku64(j, "decode_logits_bytes", (uint64_t)t.logits_bytes);
    jo_ku64(j, "decode_dispatch_bytes", (uint64_t)t.dispatch_bytes);
    jo_ku64(j, "decode_combine_bytes", (uint64_t)t.combine_bytes);
    jo_key(j, "ranks");
    jo_arr(j);
    for (uint32_t r = 0; r < par.n_ranks; r++) {
        struct rank_share s = parallel_share(&par, r);
        list_kinds(k, &cfg, &s);
        jo_obj(j);
        jo_ku64(j, "rank", r);
        jo_ku64(j, "group", s.group);
        jo_ku64(j, "part", s.part);
        jo_ku64(j, "matrix_bytes", (uint64_t)sum_of(k));
        jo_key(j, "tensors");
        jo_arr(j);
        for (uint32_t i = 0; i < k->n; i++)
            json_kind(j, &k->kind[i]);
        jo_end(j, ']');
        jo_end(j, '}');
    }
    jo_end(j, ']');
    free(k);
    parallel_free(&par);
    return ERR_OK;
}
