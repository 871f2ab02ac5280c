/* token_vec.c - token ids that grow; see tokenizer.h. */
#include "base/fault.h"
#include "text/tokenizer.h"
#include "text/tokenizer_impl.h"

#include <stdlib.h>

enum err_code token_vec_reserve(struct token_vec *v, size_t more, struct err *e)
{
    if (v->max - v->n >= more)
        return ERR_OK;
    if (more > SIZE_MAX / 16 - v->n)
        return err_set(e, ERR_NOMEM, "%zu more token ids", more);
    size_t max = v->max * 2 > v->n + more ? v->max * 2 : v->n + more;
    if (max < 64)
        max = 64;
    uint32_t *id = FAULT("token_vec.grow") ? NULL : realloc(v->id, max * sizeof *id);
    if (!id)
        return err_set(e, ERR_NOMEM, "%zu token ids", max);
    v->id = id;
    v->max = max;
    return ERR_OK;
}

enum err_code token_vec_push(struct token_vec *v, uint32_t id, struct err *e)
{
    if (v->n == v->max && token_vec_reserve(v, 1, e))
        return e->code;
    v->id[v->n++] = id;
    return ERR_OK;
}

void token_vec_free(struct token_vec *v)
{
    free(v->id);
    *v = (struct token_vec){0};
}
