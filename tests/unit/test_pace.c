/* test_pace.c - what a prefill step costs is learned from the steps that the budget allows. */
#include "base/rng.h"
#include "sched/pace.h"
#include "test.h"

/* A machine: what its steps cost, and how much that varies. */
struct machine {
    double fixed_us, row_us, depth_us, noise;
};

static double step_us(const struct machine *m, struct rng *r, uint32_t pos, uint32_t n)
{
    double us = m->fixed_us + n * (m->row_us + m->depth_us * (pos + n / 2.0));
    return us * (1 + m->noise * (rng_below(r, 2001) / 1000.0 - 1));
}

/* Goal:   after a hundred steps the next ones' time is known, on machines from fast to slow.
 * Method: steps as long as they are predicted to stay within a budget
 * of three times the fixed cost, every fourth with twice the rows; predictions are averaged, times
 * vary by a fifth. */
TEST(pace_learns_any_machine)
{
    struct rng r = {test_seed()};
    for (int round = 0; round < 300; round++) {
        double scale = (double)(1u << rng_below(&r, 12)) * 20;
        struct machine m = {.fixed_us = scale, .noise = 0.2};
        m.row_us = scale / (8 + rng_below(&r, 200));
        m.depth_us = m.row_us / (20000 + rng_below(&r, 80000));
        struct pace p;
        uint32_t pos = 0;
        double planned = 0, took = 0;
        pace_init(&p, 30000);
        for (int i = 0; i < 300; i++) {
            double room = 2 * m.fixed_us * (i % 4 == 3 ? 2 : 1), n = room / pace_row_us(&p, pos);
            uint32_t rows = n < 1 ? 1 : n > 512 ? 512 : (uint32_t)n;
            pace_begin_step(&p);
            pace_add_rows(&p, pos, rows);
            double us = step_us(&m, &r, pos, rows);
            if (i >= 100) {
                planned += pace_planned_us(&p);
                took +=
                    step_us(&(struct machine){m.fixed_us, m.row_us, m.depth_us, 0}, &r, pos, rows);
            }
            pace_learn(&p, us);
            pos += rows;
        }
        CHECK_MSG(planned > 0.9 * took && planned < 1.1 * took,
                  "round %d: fixed %.0f us, row %.1f us: predicted %.3f of what it took", round,
                  m.fixed_us, m.row_us, planned / took);
    }
}

/* Goal: one step that the machine put aside for a hundred times its length changes a prediction by
 * half at most, and twenty steps later it is forgotten. */
TEST(pace_outlasts_a_pause)
{
    struct rng r = {3};
    struct machine m = {2000, 100, 0.001, 0};
    struct pace p;
    double before = 0;
    pace_init(&p, 30000);
    for (int i = 0; i < 200; i++) {
        uint32_t n = i % 4 == 3 ? 40 : 20;
        pace_begin_step(&p);
        pace_add_rows(&p, 1000, n);
        double planned = pace_planned_us(&p), us = step_us(&m, &r, 1000, n);
        if (i == 100)
            before = planned;
        if (i == 101)
            CHECK_MSG(planned < 1.5 * before, "%.0f us, before %.0f", planned, before);
        if (i == 120)
            CHECK_MSG(planned < 1.1 * before && planned > 0.9 * before, "%.0f us, before %.0f",
                      planned, before);
        pace_learn(&p, i == 100 ? 100 * us : us);
    }
}
