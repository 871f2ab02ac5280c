/* pages.c - whole KV pages out of the planes and into them; see ops.h. On the caller's thread: a
 * move runs beside steps and takes no worker from them. */
#include "cpu/backend.h"

#include "base/fault.h"

#include <string.h>

/* The parts of a page in the order of ops.h; false: that was the last one. */
struct part {
    unsigned char *at;
    size_t bytes;
};
static bool next_part(const struct cpu_backend *b, uint32_t page, uint32_t *i, struct part *out)
{
    for (; *i < 2 * b->ops.cfg->n_layers; (*i)++) {
        unsigned char *plane = *i % 2 ? b->index[*i / 2] : b->latent[*i / 2];
        size_t bytes = *i % 2 ? b->index_page_bytes : b->latent_page_bytes;
        if (!plane)
            continue;
        *out = (struct part){plane + page * bytes, bytes};
        (*i)++;
        return true;
    }
    return false;
}

static enum err_code op_export_pages(struct ops *o, const uint32_t *page, uint32_t n, void *bytes,
                                     struct err *e)
{
    unsigned char *to = bytes;
    struct part p;
    if (FAULT("pages.export"))
        return err_set(e, ERR_IO, "export of %u pages: injected fault", n);
    for (uint32_t k = 0; k < n; k++) {
        assert(page[k] < o->limits.n_pages);
        for (uint32_t i = 0; next_part(cpu_of(o), page[k], &i, &p); to += p.bytes)
            memcpy(to, p.at, p.bytes);
    }
    return ERR_OK;
}

static enum err_code op_import_pages(struct ops *o, const uint32_t *page, uint32_t n,
                                     const void *bytes, struct err *e)
{
    const unsigned char *from = bytes;
    struct part p;
    for (uint32_t k = 0; k < n; k++) {
        assert(page[k] < o->limits.n_pages);
        for (uint32_t i = 0; next_part(cpu_of(o), page[k], &i, &p); from += p.bytes)
            memcpy(p.at, from, p.bytes);
        if (FAULT("pages.import"))
            return err_set(e, ERR_IO, "import of %u pages: injected fault after %u", n, k + 1);
        if (FAULT("pages.corrupt")) /* a link that changes a bit and says nothing */
            cpu_of(o)->latent[0][page[k] * cpu_of(o)->latent_page_bytes] ^= 4;
    }
    return ERR_OK;
}

static enum err_code op_sum_pages(struct ops *o, const uint32_t *page, uint32_t n, uint64_t *sum,
                                  struct err *e)
{
    struct part p;
    if (FAULT("pages.sum"))
        return err_set(e, ERR_IO, "sums of %u pages: injected fault", n);
    for (uint32_t k = 0; k < n; k++) {
        uint64_t first = 0;
        assert(page[k] < o->limits.n_pages);
        sum[k] = 0;
        for (uint32_t i = 0; next_part(cpu_of(o), page[k], &i, &p); first += p.bytes / 8)
            sum[k] += kv_page_sum(p.at, p.bytes, first);
    }
    return ERR_OK;
}

void cpu_pages_init(struct cpu_backend *b)
{
    b->ops.export_pages = op_export_pages;
    b->ops.import_pages = op_import_pages;
    b->ops.sum_pages = op_sum_pages;
}
