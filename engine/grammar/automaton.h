/* automaton.h - the places a grammar can be in, made as they are reached.
 *
 * A *cell* is something still to be matched and what comes after it: a node of the graph, how far
 * it has got, and the cell that follows (0: the end). Equal cells get the same number, so a chain
 * of cells is a stack that is shared with all others that end alike. A *state* is the set of cells
 * of which one must come next, each at its first byte, and whether the text may end here. Equal
 * sets are one state. State 0 is the empty set without an end: nothing can follow, and no byte
 * leads there that is allowed. Every cell of a state has some continuation to an end.
 *
 * An intersection or difference is one cell that holds two states, one of each side, run alone. A
 * repetition whose body is a lexeme is one cell that holds the lexeme's state and the count.
 *
 * What follows a cell can be a choice: a *join*, a list of cells of which one comes. Cells that say
 * the same and differ in what follows are one cell with a join after it, at each depth of the
 * stack: so a text that can be read in many ways has as many cells as it has different ones at each
 * depth, not as many as it has stacks (stacks.c).
 *
 * A unique scope and an item leave *marks* on the stack: cells of b == 1. A scope's mark holds the
 * set of finished items, an item's mark the bytes it has so far; both change by making the cells
 * above them anew (scope.c). Where an item ends as one of the set, there is no way on.
 *
 * Thread: one at a time, under the grammar's lock. Bounds: AUTOMATON_BYTES, then what no matcher
 * needs is forgotten; where even the rest is too much, or there is no memory, `failed` is set and
 * everything leads to state 0 up to the end of the call. What was found until then stays true.
 */
#ifndef GAZE_GRAMMAR_AUTOMATON_H
#define GAZE_GRAMMAR_AUTOMATON_H

#include "grammar/builder_nodes.h"
#include "grammar/lexeme.h"

#include <pthread.h>
#include <stdatomic.h>

#define AUTOMATON_BYTES ((size_t)6 << 20)       /* then compact: tables that double are a pause */
#define MAX_AUTOMATON_BYTES ((size_t)384 << 20) /* of what matchers need */
enum { MAX_CELLS = 1 << 23, MAX_STATES = 1 << 22 };
/* What looking for ends in pairs may cost while compiling and in one call of a matcher, in some
 * 0.1 us: a pair takes a few, a new state (which what grows without end makes) many. */
enum { COMPILE_SEARCH = 400000, CALL_SEARCH = 800000 };

struct cell {
    uint32_t expr; /* node; of a join: behind the last one */
    uint32_t a, b; /* pair: its two states; seq: b, the next part; repeat: b, how many are done,
                      a, the lexeme's state; bytes: b, the next one; marks: a, see scope.c;
                      join: a, a cell or, as next is, one of those that follow */
    uint32_t next; /* cell */
};

struct cell_info {
    uint32_t seen;  /* the closure that met it last */
    uint32_t marks; /* the marks at or below it, as a stack of nothing else */
    uint32_t turn;  /* of stacks_change(): in which image was found */
    uint32_t image;
    uint8_t flags; /* IN_ITEM, ... */
};

struct state {
    uint32_t cell; /* offset in the list pool */
    uint32_t n_cells;
    bool may_end;
    uint8_t n_asked;  /* transitions looked for; many: it gets a table of its own */
    uint32_t *to;     /* NULL, or 256 states, UNKNOWN where not asked yet */
    uint8_t *classes; /* NULL, or each byte's class */
};
#define UNKNOWN UINT32_MAX
#define FAR UINT32_MAX /* a lexeme's count: past its minimum, and its maximum is out of sight */

struct word_set { /* hash table from words to words; key 0 is a free place */
    uint64_t *key;
    uint32_t *value;
    uint32_t n, n_slots;
};

struct vec { /* of numbers */
    uint32_t *at;
    uint32_t n, max;
};

/* Strings and sets of strings, each a longer one's beginning. String 0 and set 0 are empty. */
struct link {
    uint32_t rest;  /* the string without its last byte; the set without its last string */
    uint32_t added; /* the byte; the string */
    uint32_t n;     /* bytes; strings */
    uint32_t first; /* added to the empty one */
};
struct scopes {
    struct link *string, *set;
    uint32_t n_strings, max_strings, n_sets, max_sets;
    struct word_set string_of, set_of;
};
/* What is below: an item's mark; that of a scope whose items are few; a count to be forgotten. */
enum { IN_ITEM = 1, IN_SCOPE = 2, IN_MARK = 3, IN_COUNT = 4 };
enum { FAR_BYTES = 24 }; /* hardly a token is longer */
/* Masks that took long to find. A state has one place. */
enum { N_KEPT_MASKS = 128 };
struct kept_mask {
    uint32_t state; /* 0: none */
    uint32_t *mask;
};
#define ANY_STRING UINT32_MAX /* an item's mark: unlike all others, whatever it will be */
#define SEVERAL UINT32_MAX
#define PLENTY UINT32_MAX

enum {
    PRODUCTIVE = 1,
    NULLABLE = 2,
    REACHED = 4,
    TEXT_PLAIN = 8, /* its strings are whole characters, see texts.c */
    TEXT_JSON = 16,
    ANY_TEXT = 32, /* all texts of that kind, from some length on */
    ANY_CHARS = 64 /* all texts of that kind within some bounds of length */
};

struct grammar {
    atomic_uint holders;
    atomic_size_t bytes; /* of all, as of the last call that could make states */
    const struct grammar_vocab *vocab;
    /* The graph, as the builder left it, and what is known of each node. Written by compile alone.
     */
    struct gb_node_data *node;
    uint32_t *part;
    char *text;
    struct byte_set *set;
    uint64_t *placed; /* see gb_placed(); sorted */
    uint32_t n_placed;
    uint32_t n_nodes;
    uint8_t *known;
    uint32_t *start_a, *start_b;  /* of pairs: the states both sides begin in */
    uint32_t *demand;             /* per node: how many items of few texts it has at least */
    gb_node *few;                 /* per node: the one such item in it, GB_NEVER or SEVERAL */
    uint32_t *supply;             /* per item: how many texts it has, or PLENTY */
    uint8_t *least;               /* per node: its matches have so many bytes or more */
    const struct lexeme **lexeme; /* of repetitions, and of classes of characters, or NULL */
    uint32_t root;                /* state */
    /* What was reached so far. Under the lock. */
    pthread_mutex_t lock;
    struct grammar_matcher *matchers; /* a list: their states are kept when others are forgotten */
    size_t graph_bytes;
    size_t max_bytes; /* beyond: what no matcher needs is forgotten */
    struct kept_mask kept[N_KEPT_MASKS];
    uint32_t search;  /* what may still be spent; nothing left: failed */
    uint32_t charged; /* states that were paid for */
    bool failed;      /* in this call */
    bool broken;      /* for good: what the matchers need could not be kept */
    struct cell *cell;
    uint32_t n_cells, max_cells;
    uint32_t *cell_table, n_cell_table;
    struct cell_info *info; /* per cell */
    uint32_t closure, turn;
    struct state *state;
    uint32_t n_states, max_states;
    uint32_t n_tables; /* of states' own transitions */
    uint32_t *state_table, n_state_table;
    struct vec list;   /* the states' cells */
    struct vec work;   /* scratch of closures */
    struct vec narrow; /* scratch of masks */
    struct vec chain;  /* scratch of changes */
    struct vec join;   /* scratch of joins */
    uint32_t *met;     /* per node: the merge that met it last */
    uint32_t merges;
    struct scopes scopes;
    struct word_set step;  /* state << 8 | byte + 1 -> state */
    struct word_set away;  /* pair cell + 1 -> bodies of its right side to the nearest end */
    struct word_set slack; /* pair cell + 1 -> the most of them, of all it leads to */
    struct word_set live;  /* pair cell + 1 -> 1 or 0: an end is in reach */
};

enum err_code automaton_open(struct grammar *g, struct err *e);
void automaton_free(struct grammar *g);
void automaton_forget(struct grammar *g); /* as before automaton_open: nothing is freed */
bool automaton_push(struct grammar *g, struct vec *v, uint32_t x); /* false: no memory */
/* The state in which node x is to be matched, and then the end. */
uint32_t automaton_start(struct grammar *g, gb_node x);
uint32_t automaton_step(struct grammar *g, uint32_t state, unsigned byte);
/* Whether the two sides of pair node x, at its beginning, have an end in reach. */
bool automaton_pair_live(struct grammar *g, gb_node x);
/* The same from these states of its sides. */
bool automaton_live(struct grammar *g, gb_node x, uint32_t a, uint32_t b);
bool automaton_pair_ends(const struct grammar *g, gb_node x, uint32_t a, uint32_t b);
/* The lexeme of what node x matches, if it is one: short, not empty, no match the beginning of
 * another. */
const struct lexeme *automaton_lexeme(struct grammar *g, gb_node x);
/* How often the node of a lexeme's cell goes round. */
void automaton_limits(const struct grammar *g, gb_node x, uint32_t *min, uint32_t *max);
/* How many bodies a lexeme's cell still wants, at least and at most. */
void automaton_left(const struct grammar *g, const struct cell *c, uint32_t *least, uint32_t *most);
/* For an intersection whose right side is a lexeme that goes round: the right side as if it had no
 * minimum and its maximum were far away (0: it is no such thing, or wants more than `need` bodies
 * to its minimum), and how many bodies are left (*most; GB_UNBOUNDED: any, and then *slack is 0). A
 * token of n bytes then leaves room for an end if n + *slack <= *most. length: the right side says
 * nothing but the length. Then the nearest end of the left side does not depend on how often its
 * counted rounds went on, which is left out of sight. */
uint32_t automaton_far(struct grammar *g, gb_node x, uint32_t a, uint32_t b, uint32_t need,
                       bool length, uint32_t *most, uint32_t *slack);
/* The state as it is in a mask that serves many places, see scope_loosen(); 0: there is none. */
uint32_t automaton_loosen(struct grammar *g, uint32_t state, uint32_t *room);
/* Bodies to the nearest end from pair x of state a and far state b, which automaton_far() of a
 * length has met on its way; UINT32_MAX: it has not, or there is no end. */
uint32_t automaton_away(struct grammar *g, gb_node x, uint32_t a, uint32_t b);
/* The state of what this state has left, and then cell `next`. */
uint32_t automaton_then(struct grammar *g, uint32_t state, uint32_t next);
/* The state of what follows cell `at`; items that go on there are unlike all others. */
uint32_t automaton_next_state(struct grammar *g, uint32_t at);
/* The state of exactly these cells, with an end or without. */
uint32_t automaton_cells_state(struct grammar *g, const uint32_t *at, uint32_t n, bool may_end);
/* The state of some of a state's cells, without an end. */
uint32_t automaton_some_cells(struct grammar *g, const uint32_t *at, uint32_t n);
/* The bytes that may follow. */
struct byte_set automaton_first(struct grammar *g, uint32_t state);

/* The cell that says this; 0: none can be had, failed is set. */
uint32_t automaton_cell(struct grammar *g, uint32_t expr, uint32_t a, uint32_t b, uint32_t next);
bool automaton_grow(struct grammar *g, void **p, uint32_t *max, uint32_t want,
                    size_t element_bytes);
uint32_t *word_set_find(const struct word_set *s, uint64_t key);
bool word_set_add(struct grammar *g, struct word_set *s, uint64_t key, uint32_t value);

/* scope.c: what marks a new cell is above, once it is in the table. */
uint8_t scope_flags(const struct grammar *g, const struct cell *c);
/* The cells with one more byte in all items they are in, in place. ANY_STRING for byte: with items
 * unlike all. */
void scope_read(struct grammar *g, uint32_t *at, uint32_t n, uint32_t byte);
uint32_t scope_string(struct grammar *g, uint32_t string, uint32_t byte);
uint32_t scope_set(struct grammar *g, uint32_t set, uint32_t string);
/* What follows an item's mark, with the item in its scope's set; false: it is there already. */
bool scope_finish(struct grammar *g, uint32_t mark, uint32_t *next);
/* Whether the items that this cell is in, and those demanded after it, can be new ones. */
bool scope_alive(struct grammar *g, uint32_t at);
/* How many texts node x has, up to PLENTY. */
uint32_t scope_supply(struct grammar *g, gb_node x);
/* The cell as it is in a mask that serves many places: items of many texts unlike all others, their
 * scopes without finished ones, and counts of rounds that are past their minimum and far from their
 * maximum as if they had just begun. *room: lowered to the bytes that the rounds left hold.
 * *mark: UNKNOWN for the first of the cells of a state, then it is the caller's to keep. */
uint32_t scope_loosen(struct grammar *g, uint32_t at, uint32_t *mark, uint32_t *room);
/* How many bytes surely stay within the maximum of a cell that counts rounds and is past its
 * minimum; 0: it is no such thing, or fewer than FAR_BYTES. */
uint32_t scope_count_room(const struct grammar *g, const struct cell *c);
/* Of the items of many texts that `at` is in the i-th from the top; false: there is none. */
struct item {
    uint32_t read, finished; /* the string that it has read; its scope's set */
};
bool scope_item(const struct grammar *g, uint32_t at, uint32_t i, struct item *item);
/* What the finished ones hold behind the bytes that an item has read, and as a whole. */
struct ends {
    unsigned char **text;
    size_t *bytes;
    uint32_t n;
    bool objects;        /* there are such; of the whole, they are left out */
    unsigned char *read; /* what the item itself has read: n_read bytes */
    size_t n_read;
};
bool scope_ends(struct grammar *g, const struct item *item, struct ends *behind,
                struct ends *whole); /* false: failed is set */
void scope_ends_free(struct ends *e);

/* orders.c: the set and all texts that say the same as this string, which has these bytes, with the
 * members of its objects in other orders. */
uint32_t orders_add(struct grammar *g, uint32_t set, uint32_t string, const unsigned char *text,
                    size_t bytes);
void orders_sort(struct grammar *g);

/* stacks.c: of the n cells at the end of the list pool, those that differ only in what follows
 * become one. */
uint32_t stacks_merge(struct grammar *g, uint32_t n);
static inline bool is_join(const struct grammar *g, uint32_t at)
{
    return at && g->cell[at].expr == g->n_nodes;
}
/* A stack made anew, from the top down to where nothing changes. */
struct change {
    enum {
        CHANGE_END,    /* `with` comes in the place of the end */
        CHANGE_READ,   /* items have read byte `with` */
        CHANGE_FINISH, /* the first scope holds set `with` */
        CHANGE_CUT,    /* the end is where these marks begin: mark */
        CHANGE_LOOSEN  /* see scope_loosen() */
    } what;
    uint32_t with;
    uint32_t mark, lowest; /* marks, as cell_info has them */
    uint32_t *room;
};
/* Cells that share a stack are changed together: what was found holds until the next begin. */
void stacks_begin(struct grammar *g);
uint32_t stacks_change(struct grammar *g, const struct change *ch, uint32_t at);
/* scope.c: whether a stack changes below or at this cell; and a cell of it, with what follows. */
enum changes { UNCHANGED, CHANGED, CHANGED_ALONE /* not what follows */ };
enum changes scope_changes(const struct grammar *g, const struct change *ch, uint32_t at);
uint32_t scope_changed(struct grammar *g, const struct change *ch, uint32_t at, uint32_t next);

/* texts.c: what compiling learns of node x, whose longest match has so many bytes; its parts are
 * known. */
void texts_learn(struct grammar *g, gb_node x, unsigned longest);
/* Of the n cells at the end of the list pool, those that no cell of any text covers. */
uint32_t texts_absorb(struct grammar *g, uint32_t n);

/* compact.c: makes room when the automaton has grown too large: keeps the states that the n
 * pointers name, which get new numbers, and forgets the others. */
bool automaton_large(struct grammar *g); /* counts its bytes anew */
void automaton_compact(struct grammar *g, uint32_t **state, size_t n);

/* The tokens that may follow (mask.c). */
void automaton_mask(struct grammar *g, uint32_t state, uint32_t *mask);

#endif
