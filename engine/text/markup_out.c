/* markup_out.c - see markup_out.h. */
#include "text/markup_out.h"

#include <string.h>

size_t markup_whole_characters(const char *s, size_t n)
{
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        unsigned char c = (unsigned char)s[n - back];
        if ((c & 0xC0) == 0x80)
            continue;
        size_t need = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 1;
        return need > back ? n - back : n;
    }
    return n;
}

static void say(struct markup_out *o, struct output_event ev)
{
    bool of_call = ev.kind != OUTPUT_REASONING && ev.kind != OUTPUT_CONTENT;
    if (of_call && o->no_calls)
        return;
    o->n_calls += ev.kind == OUTPUT_CALL_BEGIN;
    if (of_call)
        ev.call = o->n_calls - 1;
    o->sink.event(o->sink.arg, &ev);
}

void markup_out_flush(struct markup_out *o, bool all)
{
    uint32_t n = all ? o->n : (uint32_t)markup_whole_characters(o->gathered, o->n);
    if (n == 0)
        return;
    say(o, (struct output_event){.kind = o->kind, .text = o->gathered, .bytes = n});
    memmove(o->gathered, o->gathered + n, o->n - n);
    o->n -= n;
}

static void gather(struct markup_out *o, enum output_event_kind kind, char c)
{
    if (o->kind != kind) {
        markup_out_flush(o, true);
        o->kind = kind;
    }
    if (o->n == MARKUP_DELTA_BYTES)
        markup_out_flush(o, false);
    o->gathered[o->n++] = c;
}

void markup_out_text(struct markup_out *o, enum output_event_kind kind, char c)
{
    assert(!o->in_call && (kind == OUTPUT_REASONING || kind == OUTPUT_CONTENT));
    gather(o, kind, c);
}

void markup_out_call_begin(struct markup_out *o, const char *name, size_t bytes)
{
    assert(!o->in_call);
    markup_out_flush(o, true);
    o->in_call = true;
    o->argument_bytes = 0;
    json_check_init(&o->check, JSON_CHECK_DEPTH);
    say(o, (struct output_event){.kind = OUTPUT_CALL_BEGIN, .text = name, .bytes = bytes});
}

void markup_out_argument(struct markup_out *o, char c)
{
    assert(o->in_call);
    json_check_put(&o->check, c);
    o->argument_bytes++;
    gather(o, OUTPUT_CALL_ARGUMENTS, c);
}

void markup_out_arguments(struct markup_out *o, const char *s, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        markup_out_argument(o, s[i]);
}

void markup_out_call_end(struct markup_out *o, bool complete)
{
    assert(o->in_call);
    markup_out_flush(o, true);
    o->in_call = false;
    say(o, (struct output_event){.kind = OUTPUT_CALL_END,
                                 .complete = complete,
                                 .valid_json = json_check_whole(&o->check)});
}
