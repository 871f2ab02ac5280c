/* page.c - GET /: the page for a browser; its one file lies in the program. */
#include "api.h"
#include "http.h"

__asm__(".section .rodata\n"
        ".balign 16\n"
        "page_begin:\n"
        ".incbin \"server/page/index.html\"\n"
        "page_end:\n"
        ".previous\n");
extern const char page_begin[], page_end[];

void api_page(struct call *c)
{
    buf_add(&c->answer, page_begin, (size_t)(page_end - page_begin));
    http_text(c, 200, "text/html; charset=utf-8");
}
