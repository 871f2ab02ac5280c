/* pace.c - see pace.h. */
#include "sched/pace.h"

#include <assert.h>
#include <math.h>

/* FIRST_ROWS: few enough for any machine. EARLY: steps that are taken at their word. A step that
 * the machine put aside for a while says little of the next one: a known prediction is off by
 * MAX_OFF at most. A row costs between ROW_LEAST and ROW_MOST of what every step costs, or so it is
 * said: within these bounds steps have rows, but not only, and so can tell the two apart.
 *
 * NOISE, DRIFT: of one step's time, and of what is true from one step to the next, as a share;
 * their ratio is how much of an error is learned at once, about a sixth. UNSURE: of a part of which
 * nothing is known any more. */
enum { FIRST_ROWS = 64, FIRST_DEPTH = 1 << 16, EARLY = 4 };
static const double MAX_OFF = 3, FIRST_MAX_OFF = 16, ROW_LEAST = 1.0 / 512, ROW_MOST = 0.25;
static const double NOISE = 0.3, DRIFT = 0.05, FIRST_UNSURE = 3, UNSURE = 1;

void pace_init(struct pace *p, double budget_us)
{
    *p = (struct pace){0};
    p->us[PACE_FIXED] = budget_us / 4;
    p->us[PACE_ROW] = budget_us / 2 / FIRST_ROWS;
    p->us[PACE_DEPTH] = budget_us / 4 / FIRST_ROWS / FIRST_DEPTH;
    for (int i = 0; i < PACE_PARTS; i++)
        p->unsure[i][i] = FIRST_UNSURE * FIRST_UNSURE;
}

double pace_row_us(const struct pace *p, uint32_t pos)
{
    return p->us[PACE_ROW] + p->us[PACE_DEPTH] * pos;
}

void pace_begin_step(struct pace *p)
{
    p->step[PACE_FIXED] = 1;
    p->step[PACE_ROW] = p->step[PACE_DEPTH] = 0;
}

void pace_add_rows(struct pace *p, uint32_t pos, uint32_t n)
{
    p->step[PACE_ROW] += n;
    p->step[PACE_DEPTH] += (double)n * pos + (double)n * (n - 1) / 2;
}

double pace_planned_us(const struct pace *p)
{
    double us = 0;
    for (int i = 0; i < PACE_PARTS; i++)
        us += p->us[i] * p->step[i];
    return us;
}

static double clamp(double v, double low, double high)
{
    return v < low ? low : v > high ? high : v;
}

/* What is not known grows with each step, up to a bound; a bound on one part keeps how it hangs
 * together with the others. */
static void drift(struct pace *p)
{
    for (int i = 0; i < PACE_PARTS; i++) {
        p->unsure[i][i] += DRIFT * DRIFT;
        double most = UNSURE * UNSURE, by = sqrt(most / p->unsure[i][i]);
        for (int k = 0; k < PACE_PARTS && by < 1; k++) {
            p->unsure[i][k] *= by;
            p->unsure[k][i] *= by;
        }
    }
}

/* A Kalman filter on the parts as shares of the prediction: x, which add up to 1. */
void pace_learn(struct pace *p, double us)
{
    double planned = pace_planned_us(p), most = p->n_seen < EARLY ? FIRST_MAX_OFF : MAX_OFF;
    double x[PACE_PARTS], gain[PACE_PARTS] = {0}, seen = NOISE * NOISE;
    assert(planned > 0);
    double error = clamp(us / planned, 1 / most, most) - 1;
    for (int i = 0; i < PACE_PARTS; i++)
        x[i] = p->us[i] * p->step[i] / planned;
    for (int i = 0; i < PACE_PARTS; i++)
        for (int k = 0; k < PACE_PARTS; k++)
            gain[i] += p->unsure[i][k] * x[k];
    for (int i = 0; i < PACE_PARTS; i++)
        seen += x[i] * gain[i];
    for (int i = 0; i < PACE_PARTS; i++)
        p->us[i] *= clamp(1 + gain[i] * error / seen, 1 / most, most);
    for (int i = 0; i < PACE_PARTS; i++)
        for (int k = 0; k < PACE_PARTS; k++)
            p->unsure[i][k] -= gain[i] * gain[k] / seen;
    drift(p);
    double fixed = p->us[PACE_FIXED];
    p->us[PACE_ROW] = clamp(p->us[PACE_ROW], ROW_LEAST * fixed, ROW_MOST * fixed);
    p->n_seen++;
}
