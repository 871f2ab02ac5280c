/* markup_json.c - calls whose arguments are JSON between special tokens: DeepSeek up to V3.2-Exp,
 * Kimi.
 *
 *   V3    [begin] function [sep] name \n ```json \n {...} \n ``` [end]
 *   V3.1  [begin] name [sep] {...} [end]
 *   Kimi  [begin] functions.name:0 [sep] {...} [end]
 *
 * DeepSeek's two are one machine: a first word "function" that no JSON follows is V3's. A name also
 * ends where JSON or a fence begins, so a missing separator does no harm.
 */
#include "text/markup_machine.h"

#include <string.h>

enum { ID_SEP = MARK_MACHINE, ID_CALL, ID_END, ID_SECTION_END };

static const struct marker deepseek_outer[] = {
    {"<｜tool▁calls▁begin｜>", MARK_SECTION}, {"<｜tool▁call▁begin｜>", MARK_CALL},
    {"<｜tool▁calls▁end｜>", MARK_STRAY},     {"<｜tool▁call▁end｜>", MARK_STRAY},
    {"<｜tool▁sep｜>", MARK_STRAY},           {"<｜tool▁outputs▁begin｜>", MARK_STRAY},
    {"<｜tool▁outputs▁end｜>", MARK_STRAY},   {"<｜tool▁output▁begin｜>", MARK_STRAY},
    {"<｜tool▁output▁end｜>", MARK_STRAY},    {0}};
static const struct marker deepseek_inner[] = {{"<｜tool▁sep｜>", ID_SEP},
                                               {"<｜tool▁call▁begin｜>", ID_CALL},
                                               {"<｜tool▁call▁end｜>", ID_END},
                                               {"<｜tool▁calls▁end｜>", ID_SECTION_END},
                                               {0}};
static const struct marker kimi_outer[] = {
    {"<|tool_calls_section_begin|>", MARK_SECTION}, {"<|tool_call_begin|>", MARK_CALL},
    {"<|tool_calls_section_end|>", MARK_STRAY},     {"<|tool_call_end|>", MARK_STRAY},
    {"<|tool_call_argument_begin|>", MARK_STRAY},   {0}};
static const struct marker kimi_inner[] = {{"<|tool_call_argument_begin|>", ID_SEP},
                                           {"<|tool_call_begin|>", ID_CALL},
                                           {"<|tool_call_end|>", ID_END},
                                           {"<|tool_calls_section_end|>", ID_SECTION_END},
                                           {0}};

enum {
    WORD,     /* before the separator: the name, or V3's "function" */
    SECOND,   /* V3: the name, after the separator */
    FENCE,    /* white space, then ``` or the arguments */
    LANGUAGE, /* the rest of ```json */
    ARGUMENTS,
};

static void setup_deepseek(struct output_parser *p)
{
    marker_set_add(&p->inner[0], deepseek_inner);
}

static void setup_kimi(struct output_parser *p)
{
    marker_set_add(&p->inner[0], kimi_inner);
}

static void open_call(struct output_parser *p)
{
    p->set = &p->inner[0];
    p->state = WORD;
    p->named = false;
    p->word.n = 0;
}

/* "functions.get_weather:3" is get_weather. */
static void begin_named(struct output_parser *p)
{
    const char *name = p->word.text;
    size_t n = p->word.n, digits = 0;
    if (p->state == SECOND && markup_word_is_blank(&p->word)) { /* V3.1, and a tool of that name */
        name = "function";
        n = 8;
    }
    if (p->markup == &markup_kimi) {
        for (; n && markup_is_space(*name); n--)
            name++;
        while (n && markup_is_space(name[n - 1]))
            n--;
        if (n > 10 && memcmp(name, "functions.", 10) == 0) {
            name += 10;
            n -= 10;
        }
        while (digits < n && name[n - 1 - digits] >= '0' && name[n - 1 - digits] <= '9')
            digits++;
        if (digits && digits + 1 < n && name[n - 1 - digits] == ':')
            n -= digits + 1;
    }
    markup_begin_call(p, name, n); /* without a name there is no call to report */
    p->state = FENCE;
}

static bool word_is_function(const struct output_parser *p)
{
    size_t begin = 0, end = p->word.n;
    while (begin < end && markup_is_space(p->word.text[begin]))
        begin++;
    while (end > begin && markup_is_space(p->word.text[end - 1]))
        end--;
    return end - begin == 8 && memcmp(p->word.text + begin, "function", 8) == 0;
}

static void put_argument(struct output_parser *p, char c)
{
    if (p->named)
        markup_raw_put(&p->raw, &p->out, c);
}

static void call_text(struct output_parser *p, char c)
{
    switch (p->state) {
    case WORD:
    case SECOND:
        if (c == '{' || c == '`') {
            begin_named(p);
            call_text(p, c);
        } else if (p->state == SECOND && c == '\n') {
            if (!markup_word_is_blank(&p->word))
                begin_named(p);
        } else if (p->word.n == OUTPUT_MAX_NAME) { /* this is prose */
            markup_leave(p);
            markup_give_back(p, p->word.text, p->word.n);
            markup_give_back(p, &c, 1);
        } else {
            p->word.text[p->word.n++] = c;
        }
        return;
    case FENCE:
    case LANGUAGE:
        if (c == '`') {
            p->raw.fenced = true;
            p->state = LANGUAGE;
        } else if (p->state == LANGUAGE && c >= 'a' && c <= 'z') {
            return;
        } else if (p->state == LANGUAGE || !markup_is_space(c)) {
            p->state = ARGUMENTS;
            put_argument(p, c);
        }
        return;
    default:
        put_argument(p, c);
        return;
    }
}

static void end_call(struct output_parser *p)
{
    if (p->state == WORD || p->state == SECOND)
        begin_named(p);
    if (p->named) {
        markup_raw_end(&p->raw, &p->out);
        markup_out_call_end(&p->out, true);
    }
    p->named = false;
}

static void call_marker(struct output_parser *p, uint8_t id)
{
    switch (id) {
    case ID_SEP:
        if (p->state == WORD && p->markup == &markup_deepseek && word_is_function(p)) {
            p->state = SECOND;
            p->word.n = 0;
        } else if (p->state == WORD || p->state == SECOND) {
            begin_named(p);
        }
        return;
    case ID_CALL:
        end_call(p);
        open_call(p);
        return;
    default:
        end_call(p);
        markup_leave(p);
        return;
    }
}

static void finish_call(struct output_parser *p, bool cut)
{
    if (!p->named)
        return;
    bool whole = !cut && json_check_whole(&p->out.check);
    if (whole)
        markup_raw_end(&p->raw, &p->out);
    markup_out_call_end(&p->out, whole);
    p->named = false;
}

const struct markup markup_deepseek = {deepseek_outer, setup_deepseek, open_call,
                                       call_text,      call_marker,    finish_call};
const struct markup markup_kimi = {kimi_outer, setup_kimi,  open_call,
                                   call_text,  call_marker, finish_call};
