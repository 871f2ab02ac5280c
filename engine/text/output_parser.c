/* output_parser.c - see output_parser.h: reasoning and content; calls are the markups' business. */
#include "text/markup_machine.h"

#include "base/fault.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

static const struct marker think_open[] = {{"<think>", MARK_THINK}, {0}};
static const struct marker think_close[] = {{"</think>", MARK_THINK_END}, {0}};

struct format {
    const char *name;
    const struct markup *markup;
    bool thinks;      /* `<think>` at the beginning opens reasoning */
    bool one_newline; /* see struct output_parser */
};
static const struct format formats[] = {
    {"deepseek-v3", &markup_deepseek, false, false},
    {"deepseek-r1", &markup_deepseek, true, false},
    {"deepseek-r1-0528", &markup_deepseek, true, false},
    {"deepseek-v3.1", &markup_deepseek, true, false},
    {"deepseek-v3.2-exp", &markup_deepseek, true, false},
    {"deepseek-v3.2", &markup_dsml, true, false},
    {"glm-4.6", &markup_glm_46, true, true},
    {"glm-5", &markup_glm, true, false},
    {"glm-5.2", &markup_glm, true, false},
    {"kimi-k2", &markup_kimi, false, false},
};

/* ---- outside calls ---- */

static void choose_set(struct output_parser *p)
{
    if (p->mode == MODE_REASONING)
        p->set = p->lead ? &p->reasoning_lead : &p->reasoning;
    else
        p->set = p->may_open ? &p->content_open : p->cut_reasoning ? &p->content_cut : &p->content;
}

static void put_outside(struct output_parser *p, char c)
{
    markup_out_text(&p->out, p->mode == MODE_REASONING ? OUTPUT_REASONING : OUTPUT_CONTENT, c);
}

/* Text begins, so the white space before it is text too. */
static void end_lead(struct output_parser *p)
{
    bool layout = p->one_newline && p->mode == MODE_CONTENT && !p->after_markup && p->n_space &&
                  p->space[0] == '\n';
    for (unsigned i = layout; i < p->n_space; i++)
        put_outside(p, p->space[i]);
    p->n_space = 0;
    p->lead = p->after_markup = p->may_open = false;
    choose_set(p);
}

static void begin_lead(struct output_parser *p, enum parser_mode mode, bool after_markup)
{
    p->mode = mode;
    p->lead = true;
    p->after_markup = after_markup;
    p->may_open = false;
    p->n_space = 0;
    choose_set(p);
}

static void outside_text(struct output_parser *p, char c)
{
    if (p->lead) {
        if (markup_is_space(c) && p->n_space < MARKUP_MAX_SPACE) {
            p->space[p->n_space++] = c;
            return;
        }
        end_lead(p);
    }
    put_outside(p, c);
}

static void outside_marker(struct output_parser *p, uint8_t id)
{
    bool reasoning = p->mode == MODE_REASONING;
    switch (id) {
    case MARK_THINK: /* opens, or repeats what the prompt had */
        begin_lead(p, MODE_REASONING, false);
        break;
    case MARK_THINK_END:
        if (reasoning)
            begin_lead(p, MODE_CONTENT, false);
        else
            begin_lead(p, MODE_CONTENT, true);
        p->cut_reasoning = false;
        choose_set(p);
        break;
    case MARK_STRAY:
        if (!reasoning)
            begin_lead(p, MODE_CONTENT, true);
        break;
    default: /* MARK_SECTION, MARK_CALL */
        p->cut_reasoning |= reasoning;
        begin_lead(p, MODE_CONTENT, true);
        if (id == MARK_CALL) {
            p->mode = MODE_CALL;
            p->named = false;
            p->markup->open(p);
        }
        break;
    }
}

/* ---- every byte ---- */

static void text_byte(struct output_parser *p, char c)
{
    if (p->mode == MODE_CALL)
        p->markup->text(p, c);
    else
        outside_text(p, c);
}

static void take_byte(struct output_parser *p, char c)
{
    uint8_t id = 0;
    if (p->hold.n == 0 && !p->set->first[(unsigned char)c]) {
        text_byte(p, c);
        return;
    }
    switch (marker_push(&p->hold, p->set, c, &id)) {
    case MARKER_PART:
        return;
    case MARKER_WHOLE:
        if (p->mode == MODE_CALL)
            p->markup->marker(p, id);
        else
            outside_marker(p, id);
        return;
    case MARKER_NONE:
        break;
    }
    /* The first byte is text, which may change the state and so the set. The others are fewer than
     * before, so this ends. */
    struct marker_hold held = p->hold;
    p->hold.n = 0;
    text_byte(p, held.byte[0]);
    for (unsigned i = 1; i < held.n; i++)
        take_byte(p, held.byte[i]);
}

/* ---- for machines ---- */

void markup_leave(struct output_parser *p)
{
    begin_lead(p, MODE_CONTENT, true);
}

void markup_give_back(struct output_parser *p, const char *s, size_t bytes)
{
    assert(p->mode == MODE_CONTENT);
    for (size_t i = 0; i < bytes; i++)
        outside_text(p, s[i]);
}

bool markup_word_is_blank(const struct markup_word *w)
{
    for (unsigned i = 0; i < w->n; i++)
        if (!markup_is_space(w->text[i]))
            return false;
    return true;
}

void markup_begin_call(struct output_parser *p, const char *name, size_t bytes)
{
    for (; bytes && markup_is_space(*name); bytes--)
        name++;
    while (bytes && markup_is_space(name[bytes - 1]))
        bytes--;
    if (bytes == 0)
        return;
    memset(&p->raw, 0, sizeof p->raw);
    markup_typed_reset(&p->typed);
    p->parameters = json_get(markup_find_tool(p->tools, name, bytes), "parameters");
    p->named = true;
    markup_out_call_begin(&p->out, name, bytes);
}

/* ---- the face ---- */

static void fill_sets(struct output_parser *p, enum output_markup markup)
{
    const struct marker *outer = markup == OUTPUT_MARKUP_TEXT ? NULL : p->markup->outer;
    marker_set_add(&p->content, outer);
    marker_set_add(&p->content_open, outer);
    marker_set_add(&p->content_open, think_open);
    marker_set_add(&p->content_cut, outer);
    marker_set_add(&p->content_cut, think_close);
    marker_set_add(&p->reasoning, outer);
    marker_set_add(&p->reasoning, think_close);
    marker_set_add(&p->reasoning_lead, outer);
    marker_set_add(&p->reasoning_lead, think_close);
    marker_set_add(&p->reasoning_lead, think_open);
    p->markup->setup(p);
}

enum err_code output_parser_create(struct output_parser **out,
                                   const struct output_parser_config *cfg, struct err *e)
{
    const struct format *f = NULL;
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (cfg->format && strcmp(cfg->format, formats[i].name) == 0)
            f = &formats[i];
    if (!f)
        return err_set(e, ERR_INVALID, "output parser: unknown format \"%.64s\"",
                       cfg->format ? cfg->format : "");
    struct output_parser *p = FAULT("output_parser.create") ? NULL : calloc(1, sizeof *p);
    if (!p)
        return err_set(e, ERR_NOMEM, "output parser");
    p->markup = f->markup;
    p->one_newline = f->one_newline;
    p->tools = cfg->tools;
    p->out.sink = cfg->sink;
    p->out.no_calls = cfg->markup != OUTPUT_MARKUP_CALLS;
    fill_sets(p, cfg->markup);
    begin_lead(p, cfg->thinking_open ? MODE_REASONING : MODE_CONTENT, false);
    p->may_open = f->thinks && !cfg->thinking_open;
    choose_set(p);
    *out = p;
    return ERR_OK;
}

void output_parser_destroy(struct output_parser *p)
{
    if (p)
        markup_typed_free(&p->typed);
    free(p);
}

enum err_code output_parser_put(struct output_parser *p, const char *text, size_t bytes,
                                struct err *e)
{
    assert(!p->finished);
    for (size_t i = 0; i < bytes && !p->failed; i++)
        take_byte(p, text[i]);
    if (p->failed)
        return err_set(e, ERR_NOMEM, "output parser: a value that waits for its type");
    markup_out_flush(&p->out, false);
    return ERR_OK;
}

enum err_code output_parser_finish(struct output_parser *p, bool cut, struct err *e)
{
    assert(!p->finished && !p->failed);
    p->finished = true;
    unsigned n = p->hold.n;
    p->hold.n = 0;
    if (p->mode == MODE_CALL) { /* the beginning of a marker is no part of a call */
        p->markup->finish(p, cut);
    } else {
        for (unsigned i = 0; i < n; i++)
            outside_text(p, p->hold.byte[i]);
        if (p->lead && !p->after_markup)
            end_lead(p);
    }
    markup_out_flush(&p->out, true);
    if (p->failed)
        return err_set(e, ERR_NOMEM, "output parser: a value that waits for its type");
    return ERR_OK;
}

bool output_parser_in_reasoning(const struct output_parser *p)
{
    return p->mode == MODE_REASONING;
}

uint32_t output_parser_calls(const struct output_parser *p)
{
    return p->out.n_calls;
}
