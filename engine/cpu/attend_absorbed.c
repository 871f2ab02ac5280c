/* attend_absorbed.c - attention in latent space. See attend.c.
 *
 *   q~ = W_UK^T q_nope    sums over nope in rising order, rows of a chunk together
 *   z  = sum p c          over the selected latents, or over all
 *   o  = W_UV z           one dot product each
 */
#include "cpu/attend.h"

#include "cpu/fp8.h"

#include <math.h>

/* Running softmax of some rows (row and head): total, and the split at hand. */
struct stream {
    float *z, *max, *sum;
};

/* W_UK of head h as fp32 rows. FP8 blocks do not care where heads begin, so each row finds its own.
 */
static const float *widen_w_uk(const struct attend_job *j, uint32_t h, float *to)
{
    const struct model_config *c = j->b->ops.cfg;
    const struct matrix *m = j->kv_b;
    size_t r = c->kv_lora_rank, first = (size_t)h * (c->nope_dim + c->v_dim);
    size_t n_blocks = (r + 127) / 128;
    switch (m->dtype) {
    case DT_F32:
        return (const float *)m->data + first * r;
    case DT_BF16:
        j->b->k->bf16_to_f32((const uint16_t *)m->data + first * r, to, c->nope_dim * r);
        return to;
    case DT_F16:
        for (size_t i = 0; i < c->nope_dim * r; i++)
            to[i] = f16_value(((const uint16_t *)m->data)[first * r + i]);
        return to;
    default:
        assert(m->dtype == DT_F8_E4M3);
        for (size_t d = 0; d < c->nope_dim; d++)
            for (size_t g = 0; g < n_blocks; g++)
                j->b->k->fp8_to_f32((const uint8_t *)m->data + (first + d) * r + g * 128,
                                    m->scale[(first + d) / 128 * n_blocks + g],
                                    to + d * r + g * 128, r - g * 128 < 128 ? r - g * 128 : 128);
        return to;
    }
}

/* y[n, v] = W_UV of head h times x[n, kv_lora]. */
static void times_w_uv(const struct attend_job *j, uint32_t h, const float *x, size_t ldx,
                       uint32_t n, float *y, size_t ldy)
{
    const struct model_config *c = j->b->ops.cfg;
    const struct kernels *k = j->b->k;
    const struct matrix *m = j->kv_b;
    uint32_t r = c->kv_lora_rank, first = h * (c->nope_dim + c->v_dim) + c->nope_dim;
    size_t at = (size_t)first * r;
    switch (m->dtype) {
    case DT_F32:
        k->gemm_f32_f32((const float *)m->data + at, c->v_dim, r, x, ldx, n, y, ldy, false);
        return;
    case DT_BF16:
        k->gemm_bf16_f32((const uint16_t *)m->data + at, c->v_dim, r, x, ldx, n, y, ldy, false);
        return;
    case DT_F16:
        k->gemm_f16_f32((const uint16_t *)m->data + at, c->v_dim, r, x, ldx, n, y, ldy, false);
        return;
    default:
        k->gemm_fp8_f32((const uint8_t *)m->data + at, first, c->v_dim, r, m->scale,
                        (r + 127) / 128, x, ldx, n, y, ldy, false);
    }
}

/* to[row - row0][head - head0][kv_lora + rope]: queries in latent space. */
static void absorb_queries(const struct attend_job *j, struct attend_worker *w, uint32_t row0,
                           uint32_t n_rows, uint32_t head0, uint32_t n_heads, float *to)
{
    const struct model_config *c = j->b->ops.cfg;
    size_t r = c->kv_lora_rank, width = r + c->rope_dim, qk = model_qk_dim(c);
    size_t ldq = c->n_heads * qk, ld = n_heads * width;
    memset(to, 0, sizeof(float) * n_rows * ld);
    for (uint32_t i = 0; i < n_rows; i++) {
        w->n[i] = c->nope_dim;
        w->shrink[i] = 1.0f;
    }
    for (uint32_t h = 0; h < n_heads; h++) {
        const float *uk = widen_w_uk(j, head0 + h, w->w_uk);
        const float *q = j->q + row0 * ldq + (head0 + h) * qk;
        j->loops->values(q, ldq, w->n, n_rows, uk, r, (uint32_t)r, w->shrink, to + h * width, ld);
        for (uint32_t i = 0; i < n_rows; i++)
            memcpy(to + i * ld + h * width + r, q + i * ldq + c->nope_dim,
                   sizeof(float) * c->rope_dim);
    }
}

/* Rows [row, row + n_rows) of one sequence over entries [begin, end) of list, or over those
 * positions where list is NULL: there a row sees no more than its own position allows, and all see
 * `begin`. */
static void stream_split(const struct attend_job *j, struct attend_worker *w, uint32_t row,
                         uint32_t n_rows, uint32_t n_heads, const float *q, const int32_t *list,
                         uint32_t begin, uint32_t end, struct stream st)
{
    const struct model_config *c = j->b->ops.cfg;
    const uint32_t *pos = j->lane->row_pos;
    const struct step_seq *s = &j->lane->step->seq[j->lane->row_seq[row]];
    size_t r = c->kv_lora_rank, width = r + c->rope_dim;
    memset(st.z, 0, sizeof(float) * n_rows * n_heads * r);
    for (uint32_t i = 0; i < n_rows * n_heads; i++) {
        st.max[i] = -INFINITY;
        st.sum[i] = 0.0f;
    }
    for (uint32_t t = begin; t < end; t += TILE) {
        uint32_t n_tile = end - t < TILE ? end - t : TILE, i0 = 0;
        for (uint32_t i = 0; i < n_tile; i++)
            kv_load(j->b, j->layer, s, list ? (uint32_t)list[t + i] : t + i, w->latent + i * width);
        while (!list && pos[row + i0] < t)
            i0++; /* the last row sees all of [begin, end) */
        uint32_t first = i0 * n_heads, n = n_rows * n_heads - first;
        j->loops->transpose(w->latent, width, n_tile, (uint32_t)width, w->kt);
        j->loops->scores(q + first * width, width, n, (uint32_t)width, w->kt, w->s);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t seen = list ? n_tile : pos[row + i0 + i / n_heads] - t + 1;
            w->n[i] = seen < n_tile ? seen : n_tile;
            j->loops->softmax(w->s + (size_t)i * TILE, w->n[i], c->softmax_scale,
                              &st.max[first + i], &st.sum[first + i], &w->shrink[i]);
        }
        j->loops->values(w->s, TILE, w->n, n, w->latent, width, (uint32_t)r, w->shrink,
                         st.z + first * r, r);
    }
}

/* total += part, for rows [first, n). */
static void merge(struct stream total, struct stream part, uint32_t first, uint32_t n, size_t r)
{
    for (uint32_t i = first; i < n; i++) {
        float max = part.max[i] > total.max[i] ? part.max[i] : total.max[i];
        float a = total.max[i] == max ? 1.0f : expf(total.max[i] - max);
        float b = part.max[i] == max ? 1.0f : expf(part.max[i] - max);
        total.sum[i] = total.sum[i] * a + part.sum[i] * b;
        total.max[i] = max;
        for (size_t d = 0; d < r; d++)
            total.z[i * r + d] = total.z[i * r + d] * a + part.z[i * r + d] * b;
    }
}

static void normalise(struct stream st, uint32_t n, size_t r)
{
    for (uint32_t i = 0; i < n; i++) {
        float f = st.sum[i] == 0.0f ? 0.0f : 1.0f / st.sum[i]; /* 0: a row that selects nothing */
        for (size_t d = 0; d < r; d++)
            st.z[i * r + d] *= f;
    }
}

/* All that rows [row, row + n_rows) see; the result is divided by its sum. */
static void stream_rows(const struct attend_job *j, struct attend_worker *w, uint32_t row,
                        uint32_t n_rows, uint32_t n_heads, const float *q, const int32_t *list,
                        uint32_t n_list, float *z)
{
    size_t r = j->b->ops.cfg->kv_lora_rank;
    uint32_t n = n_rows * n_heads;
    struct stream total = {z, w->state, w->state + n};
    struct stream part = {w->z_part, w->state + 2 * (size_t)n, w->state + 3 * (size_t)n};
    stream_split(j, w, row, n_rows, n_heads, q, list, 0, n_list < SPLIT ? n_list : SPLIT, total);
    for (uint32_t p = SPLIT; p < n_list; p += SPLIT) {
        uint32_t i0 = 0;
        while (!list && j->lane->row_pos[row + i0] < p)
            i0++;
        size_t first = (size_t)i0 * n_heads;
        struct stream here = {part.z, part.max, part.sum};
        stream_split(j, w, row + i0, n_rows - i0, n_heads,
                     q + first * (r + j->b->ops.cfg->rope_dim), list, p,
                     n_list - p < SPLIT ? n_list : p + SPLIT, here);
        struct stream rest = {total.z + first * r, total.max + first, total.sum + first};
        merge(rest, here, 0, n - (uint32_t)first, r);
    }
    normalise(total, n, r);
}

static uint32_t list_length(const struct attend_job *j, const int32_t *list, uint32_t row)
{
    uint32_t n = 0, max = j->lane->step->seq[j->lane->row_seq[row]].top_k;
    max = max < j->b->ops.cfg->index_topk ? max : j->b->ops.cfg->index_topk;
    while (n < max && list[n] >= 0)
        n++;
    return n;
}

/* NULL: the row sees all of its past. */
static const int32_t *list_of(const struct attend_job *j, uint32_t row)
{
    bool all = !j->sel || j->lane->row_pos[row] < j->lane->step->seq[j->lane->row_seq[row]].top_k;
    return all ? NULL : j->sel + (size_t)row * j->b->ops.cfg->index_topk;
}

static void absorbed_chunk(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct attend_job *j = arg;
    const struct model_config *c = j->b->ops.cfg;
    struct attend_worker *w = &j->x->worker[worker];
    uint32_t n_groups = (c->n_heads + j->n_heads - 1) / j->n_heads;
    uint32_t row0 = j->row0 + chunk / n_groups * j->n_rows, head0 = chunk % n_groups * j->n_heads;
    uint32_t row1 = row0 + j->n_rows < j->row1 ? row0 + j->n_rows : j->row1;
    uint32_t n_heads = c->n_heads - head0 < j->n_heads ? c->n_heads - head0 : j->n_heads;
    size_t r = c->kv_lora_rank, width = r + c->rope_dim, ldo = (size_t)c->n_heads * c->v_dim;
    absorb_queries(j, w, row0, row1 - row0, head0, n_heads, w->q);
    for (uint32_t row = row0, next; row < row1; row = next) {
        const int32_t *list = list_of(j, row);
        next = row + 1; /* neighbours that see all share the latents they read */
        while (!list && next < row1 && j->lane->row_seq[next] == j->lane->row_seq[row] &&
               !list_of(j, next))
            next++;
        uint32_t n_list = list ? list_length(j, list, row) : j->lane->row_pos[next - 1] + 1;
        size_t first = (size_t)(row - row0) * n_heads;
        stream_rows(j, w, row, next - row, n_heads, w->q + first * width, list, n_list,
                    w->z + first * r);
    }
    for (uint32_t h = 0; h < n_heads; h++)
        times_w_uv(j, head0 + h, w->z + h * r, n_heads * r, row1 - row0,
                   j->out + row0 * ldo + (head0 + h) * (size_t)c->v_dim, ldo);
}

static void attend_rows(struct attend_job *j, enum lane l, uint32_t row0, uint32_t row1)
{
    uint32_t n = row1 - row0, threads = pool_n_threads(j->b->pool), heads = j->b->ops.cfg->n_heads;
    uint32_t per_thread = (n + threads - 1) / threads;
    j->row0 = row0;
    j->row1 = row1;
    j->n_rows = per_thread < ABSORB_ROWS ? per_thread : ABSORB_ROWS;
    j->n_heads = heads < ABSORB_HEADS ? heads : ABSORB_HEADS;
    uint32_t n_blocks = (n + j->n_rows - 1) / j->n_rows;
    while (n_blocks * ((heads + j->n_heads - 1) / j->n_heads) < threads &&
           j->n_heads >= 2 * ABSORB_HEADS_MIN)
        j->n_heads = (j->n_heads + 1) / 2;
    uint32_t n_groups = (heads + j->n_heads - 1) / j->n_heads;
    pool_run(j->b->pool, l, n_blocks * n_groups, absorbed_chunk, j);
}

/* ---- one long row, its splits side by side: the same sums, merged in the same order ---- */

static struct stream long_part(const struct attend_job *j, uint32_t split, uint32_t head)
{
    size_t at = (size_t)split * j->b->ops.cfg->n_heads + head;
    return (struct stream){j->x->long_z + at * j->b->ops.cfg->kv_lora_rank, j->x->long_max + at,
                           j->x->long_sum + at};
}

static uint32_t group_heads(const struct attend_job *j, uint32_t head0)
{
    uint32_t left = j->b->ops.cfg->n_heads - head0;
    return left < j->n_heads ? left : j->n_heads;
}

static void long_queries(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct attend_job *j = arg;
    const struct model_config *c = j->b->ops.cfg;
    uint32_t head0 = chunk * j->n_heads;
    absorb_queries(j, &j->x->worker[worker], j->row0, 1, head0, group_heads(j, head0),
                   j->x->long_q + (size_t)head0 * (c->kv_lora_rank + c->rope_dim));
}

static void long_split(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct attend_job *j = arg;
    const struct model_config *c = j->b->ops.cfg;
    uint32_t n_groups = (c->n_heads + j->n_heads - 1) / j->n_heads;
    uint32_t split = chunk / n_groups, head0 = chunk % n_groups * j->n_heads, p = split * SPLIT;
    stream_split(j, &j->x->worker[worker], j->row0, 1, group_heads(j, head0),
                 j->x->long_q + (size_t)head0 * (c->kv_lora_rank + c->rope_dim),
                 list_of(j, j->row0), p, j->n_pos - p < SPLIT ? j->n_pos : p + SPLIT,
                 long_part(j, split, head0));
}

static void long_output(void *arg, uint32_t chunk, uint32_t worker)
{
    const struct attend_job *j = arg;
    const struct model_config *c = j->b->ops.cfg;
    uint32_t head0 = chunk * j->n_heads, n = group_heads(j, head0);
    size_t r = c->kv_lora_rank, ldo = (size_t)c->n_heads * c->v_dim;
    struct stream total = long_part(j, 0, head0);
    (void)worker;
    for (uint32_t s = 1; s * SPLIT < j->n_pos; s++)
        merge(total, long_part(j, s, head0), 0, n, r);
    normalise(total, n, r);
    for (uint32_t h = 0; h < n; h++)
        times_w_uv(j, head0 + h, total.z + h * r, r, 1,
                   j->out + j->row0 * ldo + (head0 + h) * (size_t)c->v_dim, ldo);
}

static uint32_t row_length(const struct attend_job *j, uint32_t row)
{
    const int32_t *list = list_of(j, row);
    return list ? list_length(j, list, row) : j->lane->row_pos[row] + 1;
}

static void attend_long_row(struct attend_job *j, enum lane l, uint32_t row)
{
    uint32_t heads = j->b->ops.cfg->n_heads;
    j->row0 = row;
    j->row1 = row + 1;
    j->n_pos = row_length(j, row);
    j->n_heads = heads < ABSORB_HEADS ? heads : ABSORB_HEADS;
    uint32_t n_groups = (heads + j->n_heads - 1) / j->n_heads;
    pool_run(j->b->pool, l, n_groups, long_queries, j);
    pool_run(j->b->pool, l, (j->n_pos + SPLIT - 1) / SPLIT * n_groups, long_split, j);
    pool_run(j->b->pool, l, n_groups, long_output, j);
}

void attend_absorbed(struct attend_job *j, enum lane l, uint32_t row0, uint32_t row1)
{
    uint32_t threads = pool_n_threads(j->b->pool), first = row0;
    if (!j->x->long_z || row1 - row0 >= threads) {
        attend_rows(j, l, row0, row1);
        return;
    }
    for (uint32_t row = row0; row < row1; row++) { /* fewer rows than threads */
        if (row_length(j, row) <= 2 * SPLIT)
            continue;
        if (first < row)
            attend_rows(j, l, first, row);
        attend_long_row(j, l, row);
        first = row + 1;
    }
    if (first < row1)
        attend_rows(j, l, first, row1);
}
