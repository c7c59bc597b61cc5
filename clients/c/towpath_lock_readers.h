/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared locks in a lock page: taken and given back beside other readers, without the daemon.
 *
 * Theory of operation
 *   A count of readers could not say which of them has died. So each has a *cell* of the lock's slot while it reads, or
 *   may be about to:
 *
 *        63            12 11       0
 *       +----------------+----------+
 *       | token's number | member   |    0: free; a number of 0: it may be about to read
 *       +----------------+----------+
 *
 *   To take a lock shared:
 *     1. claim a free cell (CLAIM);
 *     2. count a token in the lock's word and set READERS there, in one compare-and-swap (READ), if the lock is open, has
 *        no owner, and nobody waits for it;
 *     3. write the token's number into the cell (READING), by compare-and-swap;
 *     4. look whether the lock is open still, and then whether the cell is as it was: if not, the lock is open anew.
 *   Who wants it exclusively and sees READERS looks at the cells: if one is claimed, it asks the core. If none is, its
 *   compare-and-swap of the word clears READERS; that fails if somebody came to read meanwhile, since READ counts a token.
 *   So who reads makes itself seen before the word lets it, and a writer that sees no READERS looks at no cell.
 *
 *   The core shuts the word, then reads the cells. Step 4 is the other side of that: either the core has seen the token, or
 *   the reader sees that the lock is shut. If both, the reader tells the core that it does not read (TPL_DENY), and asks
 *   anew. To give back is to free the cell, then to look whether the lock is open; if not, the core is told.
 *
 *   Nobody who has to wait for readers, or as a reader, waits in the page: that is the core's, which has the fair queue.
 *
 * Invariants
 *   1. A cell that names a member is written by that member only, but for tpl_open, which clears them all; so a
 *      compare-and-swap of a cell from what one has written there says that the lock was not given out anew meanwhile.
 *   2. A cell counts if its token's number is one that the word has counted. Who is killed has a cell with such a number,
 *      and held the lock, or has none, and did not.
 *   3. Each tpl_open changes the word's `leaves`, so that who has looked at cells before does not take it for the same.
 */
#ifndef TOWPATH_LOCK_READERS_H
#define TOWPATH_LOCK_READERS_H

#include "towpath_lock_page.h"

#define TPL_CELL_SHIFT 12

static inline uint32_t tpl_cell_member(uint64_t cell) {
    return (uint32_t)(cell & TPL_OWNER_BITS);
}

static inline uint64_t tpl_cell_used(uint64_t cell) {
    return cell >> TPL_CELL_SHIFT;
}

static inline uint64_t tpl_cell_(uint32_t me, uint64_t used) {
    return used << TPL_CELL_SHIFT | me;
}

/* Whether a cell is claimed: somebody reads, or may. */
static inline int tpl_is_read_(struct tpl_page *page, uint32_t at) {
    for (uint32_t i = 0; i < TPL_READERS; i++)
        if (tpl_look_(&page->reader[at][i].cell))
            return 1;
    return 0;
}

/* Whether a lock can be read, by its word: TPL_OK, or why not. */
static inline int tpl_may_read_(uint64_t word) {
    if (!(word & TPL_IS_OPEN))
        return TPL_SHUT;
    if (tpl_owner(word))
        return TPL_HELD;
    if (word & TPL_HAS_WAITERS)
        return TPL_ASK;
    return tpl_used(word) >= TPL_TOKENS - 1 ? TPL_SPENT : TPL_OK;
}

/* Claim a free cell, whose number is `place`; returns whether there was one. */
static inline int tpl_claim_(struct tpl_page *page, uint32_t at, uint32_t me, uint32_t *place) {
    for (uint32_t i = 0; i < TPL_READERS; i++) {
        uint64_t free_cell = 0;
        int done;
        *place = (me + i) % TPL_READERS;
        if (tpl_look_(&page->reader[at][*place].cell))
            continue;
        TPL_CAS(CLAIM, done, &page->reader[at][*place].cell, &free_cell, tpl_cell_(me, 0));
        if (done)
            return 1;
    }
    return 0;
}

/* Free a cell that has `cell`; returns whether it had. */
static inline int tpl_read_over_(struct tpl_page *page, uint32_t at, uint32_t place, uint64_t cell) {
    int done;
    TPL_CAS(READ_OVER, done, &page->reader[at][place].cell, &cell, UINT64_C(0));
    return done;
}

/* Take a lock shared, if nobody has it exclusively or waits for it: TPL_OK with `token` and the cell's number, `place`;
 * TPL_HELD, TPL_ASK, TPL_FULL, TPL_SPENT, TPL_SHUT, TPL_CLOSED, TPL_LOST (it was given out anew meanwhile), or TPL_DENY with
 * `token`. */
static inline int tpl_try_shared(struct tpl_page *page, uint32_t at, uint32_t me, uint32_t *place, uint64_t *token) {
    struct tpl_slot *slot = &page->slot[at];
    int done = 0, result = tpl_may_read_(tpl_look_(&slot->word));
    if (result != TPL_OK)
        return result;
    if (!tpl_claim_(page, at, me, place))
        return TPL_FULL;
    uint64_t claimed = tpl_cell_(me, 0), word = 0, base = 0;
    while (!done) {
        word = tpl_look_(&slot->word);
        result = tpl_may_read_(word);
        if (result != TPL_OK) {
            tpl_read_over_(page, at, *place, claimed);
            return result;
        }
        base = tpl_look_(&slot->base);
        /* Partner: who wants it exclusively looks at the cells, then changes the word as it was before. */
        TPL_CAS(READ, done, &slot->word, &word, (word | TPL_HAS_READERS) + TPL_TOKEN);
    }
    uint64_t reads = tpl_cell_(me, tpl_used(word) + 1);
    TPL_NOTE(READ_SINCE, &page->reader[at][*place].since_ns, tpl_now_ns_());
    TPL_CAS(READING, done, &page->reader[at][*place].cell, &claimed, reads);
    if (!done)
        return TPL_LOST;
    *token = base + tpl_used(word) + 1;
    /* Partners: the core shuts the word, or stores the state, then looks at the cells; and it clears them before it opens. */
    if (!(tpl_look_(&slot->word) & TPL_IS_OPEN))
        result = TPL_DENY;
    else if (tpl_look_(&page->reader[at][*place].cell) != reads)
        return TPL_LOST;
    else if (tpl_look32_(&page->member[me].state) != TPL_MEMBER_OPEN)
        result = TPL_CLOSED;
    if (result != TPL_OK)
        tpl_read_over_(page, at, *place, reads);
    return result;
}

/* Give a shared lock back: TPL_OK; TPL_SHUT: the core has it by now, and must be told; TPL_LOST. */
static inline int tpl_release_shared(struct tpl_page *page, uint32_t at, uint32_t place, uint32_t me, uint64_t token) {
    struct tpl_slot *slot = &page->slot[at];
    if (!tpl_read_over_(page, at, place, tpl_cell_(me, token - tpl_look_(&slot->base))))
        return TPL_LOST;
    /* Partner: the core shuts the word, then looks at the cells. */
    return tpl_look_(&slot->word) & TPL_IS_OPEN ? TPL_OK : TPL_SHUT;
}

/* As tpl_has, of who has it shared. */
static inline int tpl_has_shared(struct tpl_page *page, uint32_t at, uint32_t place, uint32_t me, uint64_t token,
                                 int *is_shut) {
    struct tpl_slot *slot = &page->slot[at];
    uint64_t base = tpl_look_(&slot->base), cell = tpl_look_(&page->reader[at][place].cell);
    *is_shut = !(tpl_look_(&slot->word) & TPL_IS_OPEN);
    return cell == tpl_cell_(me, token - base) && tpl_look32_(&page->member[me].state) == TPL_MEMBER_OPEN;
}

/* ---- the core ---- */

/* Whether a cell counts beside a slot's word. */
static inline int tpl_counts_(uint64_t cell, uint64_t word) {
    uint64_t used = tpl_cell_used(cell);
    return used && used <= tpl_used(word);
}

/* Copy what counts, beside a slot's word, of its cells; the slot was shut before, or this is for people. Returns how many;
 * `found` has room for TPL_READERS. */
static inline uint32_t tpl_find_readers(struct tpl_page *page, uint32_t at, struct tpl_reader *found) {
    uint64_t word = tpl_look_(&page->slot[at].word);
    uint32_t count = 0;
    if (word & TPL_HAS_READERS)
        for (uint32_t i = 0; i < TPL_READERS; i++) {
            uint64_t cell = tpl_look_(&page->reader[at][i].cell);
            if (!tpl_counts_(cell, word))
                continue;
            found[count].cell = cell;
            found[count++].since_ns = tpl_look_(&page->reader[at][i].since_ns);
        }
    return count;
}

/* Whether a cell names a member. */
static inline int tpl_reads_(struct tpl_page *page, uint32_t at, uint32_t member) {
    if (tpl_look_(&page->slot[at].word) & TPL_HAS_READERS)
        for (uint32_t i = 0; i < TPL_READERS; i++)
            if (tpl_cell_member(tpl_look_(&page->reader[at][i].cell)) == member)
                return 1;
    return 0;
}

/* While the word is not open: nobody has a cell. */
static inline void tpl_clear_readers_(struct tpl_page *page, uint32_t at) {
    for (uint32_t i = 0; i < TPL_READERS; i++)
        if (tpl_look_(&page->reader[at][i].cell))
            TPL_STORE(CLEAR_READER, &page->reader[at][i].cell, UINT64_C(0));
}

#endif
