/* test.h - the test frame: each TEST is its own process with a time limit.
 *
 *   TEST(kv_pool_random_life) { ... CHECK(x == y); CHECK_MSG(ok, "row %d", i); }
 *
 * A test file links against frame.c, which has main(): it runs every TEST of the file in a child,
 * prints one line each, then "N passed, M failed", and exits with 1 when one failed. Arguments
 * choose tests by part of their name; --list lists them. SEED=n in the environment replays a random
 * test; a failure prints its seed. TEST_SKIP("why") ends a test that cannot be made here (it counts
 * as skipped, with the reason in its line).
 */
#ifndef GAZE_TEST_H
#define GAZE_TEST_H

#include "base/err.h"
#include "base/rng.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct test_case {
    const char *name;
    void (*run)(void);
    unsigned limit_s;
    struct test_case *next;
};
void test_register(struct test_case *t);
_Noreturn void test_fail(const char *file, int line, const char *fmt, ...) PRINTF_LIKE(3, 4);
_Noreturn void test_skip(const char *why);
uint64_t test_seed(void);                  /* SEED, or a fresh one, printed if the test fails */
const char *test_fixture(const char *rel); /* path of tests/fixtures/<rel>; a static buffer each */
char *test_tmpdir(void);                   /* a fresh folder, removed when the test ends */

/* limit_s: seconds in an ordinary build; sanitizer builds get ten times as long. */
#define TEST_LIMIT(test_name, seconds)                                                             \
    static void test_##test_name(void);                                                            \
    __attribute__((constructor)) static void register_##test_name(void)                            \
    {                                                                                              \
        static struct test_case t = {#test_name, test_##test_name, (seconds), NULL};               \
        test_register(&t);                                                                         \
    }                                                                                              \
    static void test_##test_name(void)
#define TEST(test_name) TEST_LIMIT(test_name, 90)
#define TEST_SKIP(why) test_skip(why)

#define CHECK(cond)                                                                                \
    do {                                                                                           \
        if (!(cond))                                                                               \
            test_fail(__FILE__, __LINE__, "%s", #cond);                                            \
    } while (0)
#define CHECK_MSG(cond, ...)                                                                       \
    do {                                                                                           \
        if (!(cond))                                                                               \
            test_fail(__FILE__, __LINE__, __VA_ARGS__);                                            \
    } while (0)
/* The call must succeed; its message is printed when it does not. */
#define CHECK_OK(call, e)                                                                          \
    do {                                                                                           \
        if ((call) != ERR_OK)                                                                      \
            test_fail(__FILE__, __LINE__, "%s: %s", #call, (e).msg);                               \
    } while (0)

#endif
