/* markup_machine.h - inside an output parser: what the layer over it and the three markups share.
 *
 * output_parser.c sorts bytes into reasoning, content and calls. When it meets a marker that opens
 * a call it hands over to the markup's machine, which then gets every byte (text) and every marker
 * of the set it chose (parser->set), until it calls markup_leave(). Machines write through
 * parser->out only.
 */
#ifndef GAZE_TEXT_MARKUP_MACHINE_H
#define GAZE_TEXT_MARKUP_MACHINE_H

#include "text/markup_arguments.h"
#include "text/markup_match.h"
#include "text/markup_out.h"

/* What markers outside a call mean. A machine's own ids begin at MARK_MACHINE. */
enum {
    MARK_THINK = 1, /* reasoning opens */
    MARK_THINK_END, /* reasoning closes */
    MARK_SECTION,   /* calls follow: ends reasoning, is swallowed */
    MARK_STRAY,     /* closes or separates something that is not open: swallowed */
    MARK_CALL,      /* a call begins */
    MARK_MACHINE
};

enum parser_mode { MODE_REASONING, MODE_CONTENT, MODE_CALL };

/* A name, key or tag being read. */
struct markup_word {
    char text[OUTPUT_MAX_KEY];
    uint32_t n;
    uint32_t n_quotes; /* of a tag */
    char last;         /* the tag's last byte that is not white space */
};

struct output_parser {
    enum parser_mode mode;
    const struct marker_set *set; /* of the current state */
    struct marker_hold hold;
    struct markup_out out;

    /* outside calls */
    bool lead;          /* nothing but white space yet since the start or the last marker */
    bool after_markup;  /* that marker was a tool's: white space around it is layout */
    bool may_open;      /* `<think>` may still open reasoning */
    bool cut_reasoning; /* a call ended open reasoning: one `</think>` may still come */
    uint8_t n_space;    /* white space that waits in the lead */
    char space[MARKUP_MAX_SPACE];
    struct marker_set reasoning, reasoning_lead, content, content_open, content_cut;

    /* in a call */
    const struct markup *markup;
    const cJSON *tools;
    bool named;                 /* the call was begun in out */
    uint8_t state;              /* the machine's own */
    struct marker_set inner[4]; /* the machine's own, filled by its setup */
    struct markup_word word;    /* what is being read */
    const cJSON *parameters;    /* the called tool's schema */
    struct raw_arguments raw;
    struct typed_arguments typed;

    bool failed; /* no memory */
    bool finished;
    bool one_newline; /* glm-4.6: a newline between marker and text is layout */
};

struct markup {
    const struct marker *outer; /* outside calls: MARK_SECTION, _STRAY, _CALL */
    void (*setup)(struct output_parser *p);
    void (*open)(struct output_parser *p); /* MARK_CALL was met */
    void (*text)(struct output_parser *p, char c);
    void (*marker)(struct output_parser *p, uint8_t id);
    void (*finish)(struct output_parser *p, bool cut); /* the output ended inside a call */
};
extern const struct markup markup_deepseek, markup_kimi, markup_dsml, markup_glm, markup_glm_46;

/* ---- for machines ---- */

void markup_leave(struct output_parser *p); /* the call is over: content again */
void markup_give_back(struct output_parser *p, const char *s, size_t bytes); /* it was content */

bool markup_word_is_blank(const struct markup_word *w);

/* Begins the call in out (white space around the name cut off), finds its schema and readies both
 * ways to write arguments. Without a name nothing is begun and p->named stays false. */
void markup_begin_call(struct output_parser *p, const char *name, size_t bytes);

#endif
