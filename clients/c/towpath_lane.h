/* SPDX-License-Identifier: Apache-2.0
 *
 * A lock lane: shared memory in which one client asks the core for locks, and gives them back, without the socket.
 *
 *     +--------+-------------------+---------------------+----------------------+------------------------+
 *     | header | tail (the client) | awake, head (core)  | TPN_CELLS answers    | TPN_CELLS cells        |
 *     +--------+-------------------+---------------------+----------------------+------------------------+
 *
 * The client writes a cell and raises `tail`; the core takes cells in their order and raises `head`. A cell asks for a lock
 * (TPN_ASK), or gives back what a request has (TPN_GIVE_BACK), which nobody answers. What is asked is answered in the answer
 * of the same index: its `position` says which cell that was. Only what was granted is answered with something; all else by
 * TPN_ELSEWHERE: the client asks by the socket, with the same number, and is told there.
 *
 * The lane is no door bell: it is used while the core is awake. Before the core sleeps it clears `is_awake`, and looks once
 * more; the client raises `tail`, and then looks whether the core is awake. So if the core has not seen a cell, the client
 * has seen that it sleeps (TPN_UNSURE), and says the same by the socket, which wakes it: the core empties the lane before it
 * takes what came by the socket, and all that is said twice has a number, so that it counts once.
 *
 * The order: a cell has the number of frames that the client had sent by the socket before it; the core leaves it where it is
 * until it has taken so many.
 *
 * The client waits for an answer with a bounded spin, then asleep on the answer's position; it says so (`sleeps`) before it
 * looks the last time, and the core looks at that after it has answered. Nothing that either side reads is trusted: the core
 * keeps `head` for itself, copies a cell once, and checks the copy. Who scribbles harms himself: no other client has the page.
 *
 * Not here: what is asked (an AcquireRequest, without its session and number), who may.
 */
#ifndef TOWPATH_LANE_H
#define TOWPATH_LANE_H

#include "towpath_ring_memfd.h"
#include "towpath_ring_wait.h"

#include <string.h>

#define TPN_MAGIC UINT64_C(0x31454e414c505754) /* "TWPLANE1" */
#define TPN_VERSION 1u
#define TPN_CELLS 16u
#define TPN_ASKED_MAX 224u
#define TPN_PAGE_BYTES 8192u
#define TPN_SPIN_NS UINT64_C(50000)     /* the client's, for an answer; adapts */
#define TPN_PATIENCE_NS UINT64_C(1000000000) /* then it asks by the socket */

enum { TPN_ASK = 1, TPN_GIVE_BACK = 2 };                    /* a cell's kind */
enum { TPN_GRANTED = 1, TPN_ELSEWHERE = 2 };                /* an answer's result */
enum { TPN_OK, TPN_ASLEEP, TPN_FULL, TPN_UNSURE, TPN_SLICE, TPN_NONE, TPN_BROKEN }; /* what functions return */

/* Every change of a page, by name; a test may define TOWPATH_LANE_ON_STEP(step), and stop or kill the process there. */
#define TOWPATH_LANE_STEPS(X)                                                                                 \
    X(CELL)     /* client: what it says */                                                                    \
    X(TAIL)     /* client: it is said */                                                                      \
    X(SLEEPS)   /* client: whether it sleeps for an answer */                                                 \
    X(AWAKE)    /* core: whether it looks here */                                                             \
    X(HEAD)     /* core: taken */                                                                             \
    X(ANSWER)   /* core: the answer */                                                                        \
    X(ANSWERED) /* core: it is there */                                                                       \
    X(HEADER)   /* core: the header of a new page */

#define TPN_STEP_NAME_(name) TPN_STEP_##name,
enum tpn_step { TOWPATH_LANE_STEPS(TPN_STEP_NAME_) TPN_STEP_COUNT };

#ifndef TOWPATH_LANE_ON_STEP
#define TOWPATH_LANE_ON_STEP(step) ((void)0)
#endif

/* A word by which the two sides meet. All are sequentially consistent: `tail` and `is_awake` are each other's partners, and
 * so are `position` and `sleeps`. */
#define TPN_STORE(step, target, value)                                                                        \
    do {                                                                                                      \
        TOWPATH_LANE_ON_STEP(TPN_STEP_##step);                                                                \
        __atomic_store_n((target), (value), __ATOMIC_SEQ_CST);                                                \
    } while (0)

/* A word whose value only matters to those who have seen a later step. */
#define TPN_NOTE(step, target, value)                                                                         \
    do {                                                                                                      \
        TOWPATH_LANE_ON_STEP(TPN_STEP_##step);                                                                \
        __atomic_store_n((target), (value), __ATOMIC_RELAXED);                                                \
    } while (0)

#define TPN_LOAD(source) __atomic_load_n((source), __ATOMIC_SEQ_CST)
#define TPN_LOOK(source) __atomic_load_n((source), __ATOMIC_RELAXED)

struct tpn_cell {
    uint64_t number; /* of the request */
    uint64_t frames; /* that the client has sent before it */
    uint32_t kind;
    uint32_t bytes; /* of what is asked */
    uint64_t unused;
    uint64_t asked[TPN_ASKED_MAX / 8];
};
TPR_STATIC_ASSERT(sizeof(struct tpn_cell) == 256, "a cell of a lane");

struct tpn_answer {
    uint64_t position; /* of the cell that it answers, and 1; its lower half is what the client sleeps on */
    uint64_t token;
    uint64_t since_ns;
    uint32_t result;
    uint32_t sleeps; /* the client's */
    uint64_t unused[4];
};
TPR_STATIC_ASSERT(sizeof(struct tpn_answer) == 64, "an answer of a lane");

struct tpn_page {
    uint64_t magic;
    uint32_t version, cells;
    uint64_t unused_header[6];
    uint64_t tail;
    uint64_t unused_tail[7];
    uint64_t head;
    uint32_t is_awake;
    uint32_t unused_head[13];
    struct tpn_answer answer[TPN_CELLS];
    struct tpn_cell cell[TPN_CELLS];
};
TPR_STATIC_ASSERT(sizeof(struct tpn_page) <= TPN_PAGE_BYTES, "a lane's page");
TPR_STATIC_ASSERT(offsetof(struct tpn_page, answer) == 192, "a lane's answers");

/* ---- the client ---- */

/* Of each index: whether an answer is due. */
enum { TPN_FREE, TPN_WAITS, TPN_LEFT };

struct tpn_client {
    struct tpn_page *page;
    uint64_t tail;
    uint8_t state[TPN_CELLS];
    uint32_t is_closed; /* and a word to sleep on, beside the answer's */
    struct tpr_spin spin;
};

/* Say something: TPN_OK, and the core will see it; TPN_UNSURE: the core may sleep; TPN_ASLEEP, TPN_FULL: nothing was said.
 * One thread at a time. */
static inline int tpn_say(struct tpn_client *client, uint32_t kind, uint64_t number, uint64_t frames, const void *asked,
                          uint32_t bytes, uint64_t *position) {
    struct tpn_page *page = client->page;
    uint64_t tail = client->tail;
    uint32_t at = (uint32_t)(tail % TPN_CELLS);
    struct tpn_cell *cell = &page->cell[at];

    if (!TPN_LOOK(&page->is_awake))
        return TPN_ASLEEP;
    if (bytes > TPN_ASKED_MAX || tail - TPN_LOAD(&page->head) >= TPN_CELLS)
        return TPN_FULL;
    if (client->state[at] == TPN_LEFT && TPN_LOAD(&page->answer[at].position) == tail - TPN_CELLS + 1)
        client->state[at] = TPN_FREE;
    if (client->state[at] != TPN_FREE)
        return TPN_FULL;
    TPN_NOTE(CELL, &cell->number, number);
    TPN_NOTE(CELL, &cell->frames, frames);
    TPN_NOTE(CELL, &cell->kind, kind);
    TPN_NOTE(CELL, &cell->bytes, bytes);
    for (uint32_t i = 0; i * 8 < bytes; i++) {
        uint64_t word = 0;
        uint32_t left = bytes - i * 8;
        memcpy(&word, (const char *)asked + i * 8, left < 8 ? left : 8);
        TPN_NOTE(CELL, &cell->asked[i], word);
    }
    client->state[at] = kind == TPN_ASK ? TPN_WAITS : TPN_FREE;
    client->tail = tail + 1;
    *position = tail;
    TPN_STORE(TAIL, &page->tail, tail + 1);
    return TPN_LOAD(&page->is_awake) ? TPN_OK : TPN_UNSURE;
}

static inline int tpn_is_answered_(const struct tpn_client *client, uint64_t position) {
    return TPN_LOAD(&client->page->answer[position % TPN_CELLS].position) == position + 1;
}

/* Wait for the answer to what was said at a position, until a time: TPN_OK, TPN_SLICE (it is not there), TPN_BROKEN: the
 * lane is closed. `spin` is the caller's copy of the client's; threads may wait at the same time. */
static inline int tpn_wait(struct tpn_client *client, struct tpr_spin *spin, uint64_t position, uint64_t until_ns) {
    struct tpn_answer *answer = &client->page->answer[position % TPN_CELLS];
    struct tpr_spinning_ spinning;
    int result = TPN_SLICE;

    tpr_spin_begin_(spin, &spinning, tpr_monotonic_ns(), until_ns);
    do {
        if (tpn_is_answered_(client, position)) {
            tpr_spin_answered_(spin, &spinning);
            return TPN_OK;
        }
    } while (tpr_spin_goes_on_(&spinning));
    tpr_spin_failed_(spin);
    uint64_t slept_ns = tpr_monotonic_ns();
    TPN_STORE(SLEEPS, &answer->sleeps, 1u);
    for (;;) {
        uint64_t was = TPN_LOAD(&answer->position);
        if (was == position + 1) {
            result = TPN_OK;
            break;
        }
        if (TPN_LOAD(&client->is_closed)) {
            result = TPN_BROKEN;
            break;
        }
        struct tpr_waitv_ entry[2] = {tpr_waitv_entry_(&answer->position, (uint32_t)was, 0),
                                      tpr_waitv_entry_(&client->is_closed, 0, 1)};
        if (tpr_wait_any_(entry, 2, until_ns) != TPR_OK) {
            result = tpn_is_answered_(client, position) ? TPN_OK : TPN_SLICE;
            break;
        }
    }
    TPN_STORE(SLEEPS, &answer->sleeps, 0u);
    tpr_spin_slept_(spin, tpr_monotonic_ns() - slept_ns);
    return result;
}

/* Nobody waits for the answer any more: of `state`, whether it has come. */
static inline void tpn_leave(struct tpn_client *client, uint64_t position, int has_come) {
    client->state[position % TPN_CELLS] = has_come ? TPN_FREE : TPN_LEFT;
}

/* The core is gone. Who waits is told TPN_BROKEN. */
static inline void tpn_client_close(struct tpn_client *client) {
    TPN_STORE(SLEEPS, &client->is_closed, 1u);
    tpr_futex_wake_(&client->is_closed, 1);
}

/* ---- the core ---- */

struct tpn_core {
    struct tpn_page *page;
    uint64_t head;
    uint64_t seen;       /* of the tail */
    uint64_t unanswered; /* a bit for each index */
};

/* Copy the next cell that the client said after so many frames: TPN_OK, TPN_NONE, or TPN_BROKEN: no client says that. */
static inline int tpn_take(struct tpn_core *core, uint64_t frames, struct tpn_cell *cell, uint64_t *position) {
    struct tpn_page *page = core->page;
    uint64_t head = core->head;
    uint32_t at = (uint32_t)(head % TPN_CELLS);

    core->seen = TPN_LOAD(&page->tail);
    if (core->seen == head)
        return TPN_NONE;
    if (core->seen - head > TPN_CELLS)
        return TPN_BROKEN;
    const struct tpn_cell *shared = &page->cell[at];
    cell->frames = TPN_LOOK(&shared->frames);
    if (cell->frames > frames)
        return TPN_NONE;
    cell->number = TPN_LOOK(&shared->number);
    cell->kind = TPN_LOOK(&shared->kind);
    cell->bytes = TPN_LOOK(&shared->bytes);
    if ((cell->kind != TPN_ASK && cell->kind != TPN_GIVE_BACK) || cell->bytes > TPN_ASKED_MAX)
        return TPN_BROKEN;
    if (cell->kind == TPN_ASK && core->unanswered & UINT64_C(1) << at)
        return TPN_BROKEN;
    for (uint32_t i = 0; i * 8 < cell->bytes; i++)
        cell->asked[i] = TPN_LOOK(&shared->asked[i]);
    if (cell->kind == TPN_ASK)
        core->unanswered |= UINT64_C(1) << at;
    *position = head;
    core->head = head + 1;
    TPN_STORE(HEAD, &page->head, head + 1);
    return TPN_OK;
}

/* Whether something was said since it was looked for. */
static inline int tpn_has_news(const struct tpn_core *core) {
    return TPN_LOAD(&core->page->tail) != core->seen;
}

/* What was said last, if that was since it was looked for: 0: nothing; 1: something was given back; 2: something else. */
static inline int tpn_news(const struct tpn_core *core) {
    uint64_t tail = TPN_LOAD(&core->page->tail);
    if (tail == core->seen)
        return 0;
    return TPN_LOOK(&core->page->cell[(tail - 1) % TPN_CELLS].kind) == TPN_GIVE_BACK ? 1 : 2;
}

/* Answer what was said at a position; once. */
static inline int tpn_answer(struct tpn_core *core, uint64_t position, uint32_t result, uint64_t token, uint64_t since_ns) {
    uint32_t at = (uint32_t)(position % TPN_CELLS);
    struct tpn_answer *answer = &core->page->answer[at];
    if (position >= core->head || core->head - position > TPN_CELLS || !(core->unanswered & UINT64_C(1) << at))
        return TPN_NONE;
    core->unanswered &= ~(UINT64_C(1) << at);
    TPN_NOTE(ANSWER, &answer->token, token);
    TPN_NOTE(ANSWER, &answer->since_ns, since_ns);
    TPN_NOTE(ANSWER, &answer->result, result);
    TPN_STORE(ANSWERED, &answer->position, position + 1);
    if (TPN_LOAD(&answer->sleeps))
        tpr_futex_wake_(&answer->position, 0);
    return TPN_OK;
}

/* From now on the core looks here by itself. */
static inline void tpn_attend(struct tpn_core *core) {
    TPN_STORE(AWAKE, &core->page->is_awake, 1u);
}

/* The core is about to sleep. Returns whether it must not, since something was said: then it attends as before. */
static inline int tpn_rest(struct tpn_core *core) {
    TPN_STORE(AWAKE, &core->page->is_awake, 0u);
    if (!tpn_has_news(core))
        return 0;
    TPN_STORE(AWAKE, &core->page->is_awake, 1u);
    return 1;
}

/* ---- memory ---- */

/* A new page, the core's. TPR_OK or TPR_E_SYSTEM. */
static inline int tpn_page_make(struct tpr_memory *memory) {
    int code = tpr_memory_make_(memory, "towpath-lane", TPN_PAGE_BYTES);
    if (code != TPR_OK)
        return code;
    struct tpn_page *page = (struct tpn_page *)memory->page;
    TPN_STORE(HEADER, &page->version, TPN_VERSION);
    TPN_STORE(HEADER, &page->cells, TPN_CELLS);
    TPN_STORE(HEADER, &page->magic, TPN_MAGIC);
    return TPR_OK;
}

/* Check and map one that was handed over, open for writing; `fd` stays the caller's. TPR_OK or an error of the ring's. */
static inline int tpn_page_map(struct tpr_memory *memory, int fd) {
    struct {
        uint64_t magic;
        uint32_t version, cells;
    } header;
    uint64_t bytes;
    int code = tpr_check_(fd, O_RDWR, &header, sizeof header, &bytes);
    if (code != TPR_OK)
        return code;
    if (header.magic != TPN_MAGIC)
        return TPR_E_MAGIC;
    if (header.version != TPN_VERSION)
        return TPR_E_VERSION;
    if (header.cells != TPN_CELLS)
        return TPR_E_FIELD;
    if (bytes != TPN_PAGE_BYTES)
        return TPR_E_SIZE;
    return tpr_memory_recover_(memory, fd, bytes);
}

#endif
