/* stats.c - see stats.h. The bounds cover what dashboards made for other servers ask for: latencies
 * from a millisecond to minutes, lengths in powers of two. */
#include "sched/stats.h"

const char *const engine_role_names[N_GROUP_ROLES] = {"both", "prefill", "decode"};

const double engine_hist_seconds[ENGINE_HIST_BUCKETS - 1] = {
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0,
    2.5,   5.0,   7.5,  10.0, 20.0, 40.0, 80.0, 160, 320,  640, 2560,
};
const double engine_hist_tokens[ENGINE_HIST_BUCKETS - 1] = {
    1,    2,    4,     8,     16,    32,    64,     128,    256,    512,     1024,    2048,
    4096, 8192, 16384, 24576, 32768, 65536, 131072, 262144, 524288, 1048576, 2097152,
};

static void add(struct engine_hist *h, const double *bound, double value)
{
    uint32_t i = 0;
    while (i < ENGINE_HIST_BUCKETS - 1 && value > bound[i])
        i++;
    h->count[i]++;
    h->n++;
    h->sum += value;
}

void hist_add_seconds(struct engine_hist *h, uint64_t us)
{
    add(h, engine_hist_seconds, (double)us * 1e-6);
}

void hist_add_tokens(struct engine_hist *h, uint64_t tokens)
{
    add(h, engine_hist_tokens, (double)tokens);
}
