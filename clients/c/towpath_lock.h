/* SPDX-License-Identifier: Apache-2.0
 *
 * The lock page: locks that processes of one uid take, give back and hand to each other without the daemon.
 *
 * Theory of operation
 *   The core makes one page for a uid and hands it, open for writing, to the uid's local lock sessions. It gives out a
 *   lock to a *slot* of the page (tpl_open), with a range of tokens, and writes in its journal that it has; and it takes it
 *   back (tpl_shut) whenever it wants to judge for itself: for somebody who cannot use the page, for deaths, deadlocks and
 *   inspection. A slot has the same lock's name for as long as the page lives, so whoever has kept a slot's number can do no
 *   harm with it. A *member* is one owner (a thread of a session); its number is issued by the core, and its cell in the
 *   page says for whom.
 *
 *   All that is true of a lock is in one word, but who has it shared (towpath_lock_readers.h):
 *
 *        63           38 37         15     14        13       12    11       0
 *       +---------------+-------------+---------+---------+------+-----------+
 *       | tokens used   | leaves      | READERS | WAITERS | OPEN | owner     |
 *       +---------------+-------------+---------+---------+------+-----------+
 *
 *   To take it is one compare-and-swap of a word that is OPEN and has no owner; it names the owner and counts a token,
 *   which is `base` plus the number. To give it back is another. So whoever is killed, at whatever instruction, has the lock
 *   or has not, and the word says so. tpl_shut clears OPEN and sees in the same instruction who has it: from then on that
 *   one is known to the core, and when it gives it back it finds OPEN gone and tells the core.
 *
 *   Waiting. Who waits writes its cell (ticket, what for), puts its number into one of the slot's places, sets WAITERS, and
 *   looks again before it sleeps on a word of its cell. Who gives back a lock that has WAITERS looks for the lowest ticket:
 *     - if that one is awake and looking (READY), or has been passed by before (DUE), the lock is *handed over*: one
 *       compare-and-swap from owner to owner, and a wake-up if it sleeps;
 *     - if it sleeps and has not been passed by, it is woken (WOKEN), and the lock is free meanwhile: whoever runs may have
 *       it for the tens of microseconds that a wake-up takes. It comes and is READY, so the next who gives back hands over;
 *       if it does not come within TPL_ROUSE_NS it is handed the lock all the same.
 *   So tickets are served in turn, and the lock does not stand idle while somebody wakes up.
 *
 *   Leaving. Who gives up (its time is over) takes its number out of its place and then changes the word (`leaves`), so
 *   that nobody hands the lock to it who looked before; if the lock is free it wakes the next one, as it may have been woken
 *   for that.
 *
 * Invariants
 *   1. Between tpl_open and tpl_shut the page alone says who has the lock. After tpl_shut the core's machine does.
 *   2. Tokens of a lock grow: within a range by the word, and ranges by the core.
 *   3. Who waits in the page holds nothing else, so that no circle leads through it: the client sees to that.
 *   4. The core never waits for a word of the page, and trusts none: numbers out of range are as if they were not there.
 *      A process that scribbles in it harms the locks of its own uid.
 *   5. After a member's death the core closes it, takes back every lock whose word or queue names it, and wakes all who
 *      wait in the page: one that died between handing a lock over and waking leaves nobody asleep.
 *
 * Not here: who may have a page, the journal (towpath_broker.local.lock_pages); semaphores, upgrades, conditions, which are
 * the core's own. docs/decisions/0012 says why so. tests/lockpage/model explores every interleaving.
 */
#ifndef TOWPATH_LOCK_H
#define TOWPATH_LOCK_H

#include "towpath_lock_page.h"
#include "towpath_lock_readers.h"

/* ---- waking ---- */

static inline void tpl_wake_(struct tpl_member *member) {
    uint32_t was;
    TPL_FETCH(WAKE, add, was, &member->wake, 1u);
    (void)was;
    tpr_futex_wake_(&member->wake, 0);
}

/* The member with the lowest ticket in a slot's queue; 0: nobody. */
static inline uint32_t tpl_first_(struct tpl_page *page, uint32_t at) {
    uint32_t first = 0;
    uint64_t lowest = UINT64_MAX;
    for (uint32_t i = 0; i < TPL_PLACES; i++) {
        uint32_t number = tpl_look32_(&page->slot[at].place[i]);
        if (number < TPL_FIRST_MEMBER || number >= TPL_MEMBERS)
            continue;
        struct tpl_member *member = &page->member[number];
        uint64_t ticket = tpl_look_(&member->ticket);
        if (tpl_look32_(&member->slot) == at + 1 && ticket < lowest) {
            lowest = ticket;
            first = number;
        }
    }
    return first;
}

/* The lock is free: have the first who sleeps come. */
static inline void tpl_rouse_first_(struct tpl_page *page, uint32_t at) {
    uint32_t number = tpl_first_(page, at), expected = TPL_ASLEEP;
    int done;
    if (!number)
        return;
    struct tpl_member *member = &page->member[number];
    TPL_STORE(ROUSED_AT, &member->roused_at_ns, tpr_monotonic_ns());
    TPL_CAS(ROUSE, done, &member->phase, &expected, (uint32_t)TPL_WOKEN);
    if (done || expected == TPL_DUE)
        tpl_wake_(member);
}

/* ---- taking and giving back ---- */

static inline void tpl_taken_(struct tpl_slot *slot) {
    TPL_NOTE(SINCE, &slot->since_ns, tpl_now_ns_());
}

/* What a word that names the member as owner comes to: TPL_OK with `token`, or TPL_LOST, TPL_CLOSED. */
static inline int tpl_mine_(struct tpl_page *page, uint32_t at, uint32_t me, uint64_t word, uint64_t *token) {
    struct tpl_slot *slot = &page->slot[at];
    *token = tpl_look_(&slot->base) + tpl_used(word);
    /* Who gives a slot out anew clears the word before it changes the base: if the base is not the one of this grant, the
     * word is not this grant's either. */
    uint64_t again = tpl_look_(&slot->word);
    if (tpl_owner(again) != me || tpl_used(again) != tpl_used(word))
        return TPL_LOST;
    /* Partner: the core's store of the state, before it looks for the member in words. */
    return tpl_look32_(&page->member[me].state) == TPL_MEMBER_OPEN ? TPL_OK : TPL_CLOSED;
}

static inline int tpl_release(struct tpl_page *page, uint32_t at, uint32_t me, uint64_t token);

/* Take a lock if it is free: TPL_OK with `token`, TPL_HELD, TPL_ASK (it is held shared), TPL_SHUT, TPL_SPENT, TPL_CLOSED,
 * TPL_LOST (it was taken away at once). */
static inline int tpl_try(struct tpl_page *page, uint32_t at, uint32_t me, uint64_t *token) {
    struct tpl_slot *slot = &page->slot[at];
    uint64_t word = tpl_look_(&slot->word);
    for (;;) {
        if (!(word & TPL_IS_OPEN))
            return TPL_SHUT;
        if (tpl_owner(word))
            return TPL_HELD;
        if (tpl_used(word) >= TPL_TOKENS - 1)
            return TPL_SPENT;
        /* Partner: who reads claims a cell, then changes the word. */
        if (word & TPL_HAS_READERS && tpl_is_read_(page, at))
            return TPL_ASK;
        uint64_t mine = ((word & ~TPL_HAS_READERS) + TPL_TOKEN) | me;
        int done;
        TPL_CAS(TAKE, done, &slot->word, &word, mine);
        if (!done)
            continue;
        tpl_taken_(slot);
        int result = tpl_mine_(page, at, me, mine, token);
        if (result == TPL_CLOSED)
            tpl_release(page, at, me, *token);
        return result;
    }
}

/* Give a lock back, or hand it to who is next: TPL_OK; TPL_SHUT: the core has it by now, and must be told; TPL_LOST. Bounded
 * for TPL_CORE: TPL_HELD when others change the word all the time. */
static inline int tpl_release(struct tpl_page *page, uint32_t at, uint32_t me, uint64_t token) {
    struct tpl_slot *slot = &page->slot[at];
    uint64_t used = token - tpl_look_(&slot->base);
    uint64_t word = tpl_look_(&slot->word);
    int done;
    for (int tries = 0; me != TPL_CORE || tries < TPL_TRIES; tries++) {
        if (tpl_owner(word) != me || tpl_used(word) != used)
            return TPL_LOST;
        uint64_t freed = word & ~TPL_OWNER_BITS;
        if (!(word & TPL_IS_OPEN)) {
            TPL_CAS(GIVE_UP, done, &slot->word, &word, freed);
            if (done)
                return TPL_SHUT;
            continue;
        }
        if (!(word & TPL_HAS_WAITERS)) {
            TPL_CAS(FREE, done, &slot->word, &word, freed);
            if (done)
                return TPL_OK;
            continue;
        }
        uint32_t next = tpl_first_(page, at);
        uint32_t phase = next ? tpl_look32_(&page->member[next].phase) : (uint32_t)TPL_NONE;
        int is_due = phase == TPL_READY || phase == TPL_DUE ||
                     (phase == TPL_WOKEN &&
                      tpr_monotonic_ns() - tpl_look_(&page->member[next].roused_at_ns) > TPL_ROUSE_NS);
        if (is_due && used < TPL_TOKENS - 1) {
            TPL_CAS(HAND_OVER, done, &slot->word, &word, (freed + TPL_TOKEN) | next);
            if (!done)
                continue;
            /* Partner: who goes to sleep says so, then looks at the word. */
            if (tpl_look32_(&page->member[next].phase) != TPL_READY)
                tpl_wake_(&page->member[next]);
            return TPL_OK;
        }
        TPL_CAS(FREE, done, &slot->word, &word, next ? freed : freed & ~TPL_HAS_WAITERS);
        if (!done)
            continue;
        /* Partner: who waits is in its place, then looks at the word. */
        if (phase != TPL_WOKEN || is_due)
            tpl_rouse_first_(page, at);
        return TPL_OK;
    }
    return TPL_HELD;
}

/* Whether a member has a lock by a token, as far as the page knows; `is_shut`: whether the core has taken it back. */
static inline int tpl_has(struct tpl_page *page, uint32_t at, uint32_t me, uint64_t token, int *is_shut) {
    uint64_t base = tpl_look_(&page->slot[at].base), word = tpl_look_(&page->slot[at].word);
    *is_shut = !(word & TPL_IS_OPEN);
    return tpl_owner(word) == me && base + tpl_used(word) == token &&
           tpl_look32_(&page->member[me].state) == TPL_MEMBER_OPEN;
}

/* ---- waiting ---- */

struct tpl_wait {
    struct tpl_page *page;
    uint32_t at, me, place;
    uint64_t base, deadline_ns;
    uint64_t *spin_ns; /* the member's budget, kept from one wait to the next */
};

/* Stand in a slot's queue: TPL_OK, or TPL_FULL, TPL_SHUT. `number`: of the request, for the core. */
static inline int tpl_wait_begin(struct tpl_wait *wait, uint64_t number) {
    struct tpl_slot *slot = &wait->page->slot[wait->at];
    struct tpl_member *member = &wait->page->member[wait->me];
    uint64_t ticket;
    wait->base = tpl_look_(&slot->base);
    int is_first = tpl_first_(wait->page, wait->at) == 0;
    TPL_FETCH(TICKET, add, ticket, &slot->next_ticket, UINT64_C(1));
    TPL_STORE(WAIT_SLOT, &member->ticket, ticket);
    TPL_STORE(WAIT_SLOT, &member->number, number);
    TPL_STORE(WAIT_SLOT, &member->deadline_ns, wait->deadline_ns);
    TPL_STORE(WAIT_SLOT, &member->slot, wait->at + 1);
    TPL_STORE(WAIT_PHASE, &member->phase, (uint32_t)(is_first ? TPL_READY : TPL_ASLEEP));
    for (wait->place = 0; wait->place < TPL_PLACES; wait->place++) {
        uint32_t expected = 0;
        int done;
        TPL_CAS(ENQUEUE, done, &slot->place[wait->place], &expected, wait->me);
        if (done)
            return TPL_OK;
    }
    TPL_STORE(WAIT_SLOT, &member->slot, 0u);
    return TPL_FULL;
}

/* Leave the queue: TPL_OK: with the lock, which was handed over meanwhile; TPL_OVER: without; TPL_SHUT: without, and the core
 * may have taken the request over. */
static inline int tpl_wait_end(struct tpl_wait *wait, uint64_t *token) {
    struct tpl_slot *slot = &wait->page->slot[wait->at];
    uint32_t expected = wait->me;
    int done;
    /* First this: a place may be left that an earlier process of this number took, and does not count without. */
    TPL_STORE(WAIT_SLOT, &wait->page->member[wait->me].slot, 0u);
    TPL_CAS(DEQUEUE, done, &slot->place[wait->place], &expected, 0u);
    (void)done; /* the core may have */
    int result = TPL_SHUT;
    for (;;) {
        uint64_t word = tpl_look_(&slot->word);
        if (tpl_owner(word) == wait->me) {
            int mine = tpl_mine_(wait->page, wait->at, wait->me, word, token);
            if (mine == TPL_LOST)
                continue; /* it has changed */
            if (mine == TPL_OK && tpl_look_(&slot->base) == wait->base) {
                tpl_taken_(slot);
                result = TPL_OK;
                break;
            }
            /* Handed over by who saw a place that should not count any more. */
            tpl_release(wait->page, wait->at, wait->me, *token);
            break;
        }
        if (!(word & TPL_IS_OPEN))
            break;
        uint64_t left = (word & ~TPL_LEAVES) | ((word + TPL_LEAF) & TPL_LEAVES);
        TPL_CAS(LEFT, done, &slot->word, &word, left);
        if (!done)
            continue;
        if (!tpl_owner(word))
            tpl_rouse_first_(wait->page, wait->at);
        result = tpl_look_(&slot->base) == wait->base ? TPL_OVER : TPL_SHUT;
        break;
    }
    return result;
}

/* Look for a bounded time without sleeping, while somebody has the lock. Returns whether it changed hands in time. */
static inline int tpl_spin_(struct tpl_wait *wait) {
    struct tpl_slot *slot = &wait->page->slot[wait->at];
    uint64_t began_ns = tpr_monotonic_ns(), now_ns = began_ns;
    while (now_ns - began_ns < *wait->spin_ns && now_ns < wait->deadline_ns) {
        for (int looks = 0; looks < 64; looks++) {
            uint64_t word = tpl_look_(&slot->word);
            if (!(word & TPL_IS_OPEN) || !tpl_owner(word) || tpl_owner(word) == wait->me) {
                *wait->spin_ns = *wait->spin_ns * 2 > TPL_SPIN_NS ? TPL_SPIN_NS : *wait->spin_ns * 2;
                return 1;
            }
            tpr_relax_();
        }
        if (now_ns - began_ns > TPL_SPIN_PURE_NS)
            sched_yield();
        now_ns = tpr_monotonic_ns();
    }
    *wait->spin_ns = *wait->spin_ns / 2 < TPL_SPIN_NS / 32 ? TPL_SPIN_NS / 32 : *wait->spin_ns / 2;
    return 0;
}

/* Wait for the lock, until `slice_end_ns` at most: TPL_OK with `token`, TPL_ASK, TPL_SHUT, TPL_SPENT, TPL_CLOSED, TPL_OVER: it
 * has left the queue; TPL_SLICE: it has not. */
static inline int tpl_wait_on(struct tpl_wait *wait, uint64_t slice_end_ns, uint64_t *token) {
    struct tpl_slot *slot = &wait->page->slot[wait->at];
    struct tpl_member *member = &wait->page->member[wait->me];
    uint64_t word;
    for (;;) {
        uint32_t woken = tpl_look32_(&member->wake);
        uint32_t phase = tpl_look32_(&member->phase);
        if (phase == TPL_WOKEN || phase == TPL_READY) {
            TPL_STORE(WAIT_PHASE, &member->phase, (uint32_t)TPL_READY);
            if (!tpl_spin_(wait))
                TPL_STORE(WAIT_PHASE, &member->phase, (uint32_t)TPL_DUE);
        }
        TPL_FETCH(WAITERS, or, word, &slot->word, TPL_HAS_WAITERS);
        int is_old = tpl_look_(&slot->base) != wait->base;
        int is_closed = tpl_look32_(&member->state) != TPL_MEMBER_OPEN;
        if (tpl_owner(word) == wait->me || !(word & TPL_IS_OPEN) || is_old || is_closed) {
            int result = tpl_wait_end(wait, token);
            return is_closed && result != TPL_OK ? TPL_CLOSED : result == TPL_OVER ? TPL_SHUT : result;
        }
        if (!tpl_owner(word)) {
            int result = tpl_try(wait->page, wait->at, wait->me, token);
            if (result == TPL_HELD)
                continue;
            /* Also if it has been handed over since somebody read. */
            int left = tpl_wait_end(wait, token);
            return result == TPL_OK || left == TPL_OK ? left : result == TPL_LOST ? TPL_SHUT : result;
        }
        if (tpl_look32_(&member->phase) == TPL_READY)
            continue; /* it was free, and is not any more */
        uint64_t now_ns = tpr_monotonic_ns();
        if (now_ns >= wait->deadline_ns)
            return tpl_wait_end(wait, token);
        if (now_ns >= slice_end_ns)
            return TPL_SLICE;
        struct tpr_waitv_ entry = tpr_waitv_entry_(&member->wake, woken, 0);
        uint64_t until_ns = slice_end_ns < wait->deadline_ns ? slice_end_ns : wait->deadline_ns;
        if (tpr_wait_any_(&entry, 1, until_ns) == TPR_INTERRUPTED)
            return TPL_SLICE;
    }
}

/* ---- the core ---- */

/* Give a member's number to an owner. */
static inline void tpl_admit(struct tpl_page *page, uint32_t number, uint64_t session, uint64_t owner) {
    struct tpl_member *member = &page->member[number];
    TPL_STORE(MEMBER, &member->session, session);
    TPL_STORE(MEMBER, &member->owner, owner);
    TPL_STORE(MEMBER, &member->slot, 0u);
    TPL_STORE(MEMBER_STATE, &member->state, (uint32_t)TPL_MEMBER_OPEN);
}

/* A member counts no more: TPL_MEMBER_CLOSED, or TPL_UNUSED when its process is gone. */
static inline void tpl_dismiss(struct tpl_page *page, uint32_t number, uint32_t state) {
    TPL_STORE(MEMBER_STATE, &page->member[number].state, state);
}

/* Give a lock out: its tokens are those after `base`. The core may have it still, by the token base + 1, until tpl_drained:
 * exclusively, or shared, so that others may have it shared too. */
static inline void tpl_open(struct tpl_page *page, uint32_t at, uint64_t base, enum tpl_busy busy) {
    struct tpl_slot *slot = &page->slot[at];
    uint64_t leaves = (tpl_look_(&slot->word) + TPL_LEAF) & TPL_LEAVES;
    TPL_STORE(CLEAR_WORD, &slot->word, leaves);
    tpl_clear_readers_(page, at);
    TPL_STORE(BASE, &slot->base, base);
    uint64_t word = leaves | TPL_IS_OPEN;
    if (busy == TPL_BUSY)
        word |= TPL_TOKEN | TPL_CORE;
    if (busy == TPL_BUSY_SHARED) {
        TPL_STORE(CORE_READS, &page->reader[at][0].cell, tpl_cell_(TPL_CORE, 1));
        word |= TPL_TOKEN | TPL_HAS_READERS;
    }
    TPL_STORE(OPEN, &slot->word, word);
}

/* The core does not have it any more: TPL_OK, or TPL_LOST, TPL_HELD: that could not be said. */
static inline int tpl_drained(struct tpl_page *page, uint32_t at) {
    uint64_t cell = tpl_cell_(TPL_CORE, 1);
    int done;
    if (tpl_look_(&page->reader[at][0].cell) != cell)
        return tpl_release(page, at, TPL_CORE, tpl_look_(&page->slot[at].base) + 1);
    TPL_CAS(CORE_READ, done, &page->reader[at][0].cell, &cell, UINT64_C(0));
    return done ? TPL_OK : TPL_LOST;
}

/* Take a lock back; the word as it was says who has it. Once it is shut, again tells the same. */
static inline uint64_t tpl_shut(struct tpl_page *page, uint32_t at) {
    uint64_t was;
    TPL_FETCH(SHUT, and, was, &page->slot[at].word, ~TPL_IS_OPEN);
    return was;
}

/* After tpl_shut: those who wait, by ticket. Returns how many; fills `number` with up to TPL_PLACES members. */
static inline uint32_t tpl_take_waiters(struct tpl_page *page, uint32_t at, uint32_t *number) {
    uint64_t ticket[TPL_PLACES];
    uint32_t count = 0;
    for (uint32_t i = 0; i < TPL_PLACES; i++) {
        uint32_t found = tpl_look32_(&page->slot[at].place[i]);
        TPL_STORE(CLEAR_WAITER, &page->slot[at].place[i], 0u);
        if (found < TPL_FIRST_MEMBER || found >= TPL_MEMBERS)
            continue;
        if (tpl_look32_(&page->member[found].slot) != at + 1)
            continue;
        uint64_t its = tpl_look_(&page->member[found].ticket);
        uint32_t to = count;
        int is_known = 0;
        for (uint32_t k = 0; k < count; k++)
            is_known |= number[k] == found;
        if (is_known)
            continue;
        for (; to && ticket[to - 1] > its; to--) {
            ticket[to] = ticket[to - 1];
            number[to] = number[to - 1];
        }
        ticket[to] = its;
        number[to] = found;
        count++;
    }
    return count;
}

/* Whether a slot's word, queue or readers name a member. */
static inline int tpl_names(struct tpl_page *page, uint32_t at, uint32_t member) {
    if (tpl_owner(tpl_look_(&page->slot[at].word)) == member || tpl_reads_(page, at, member))
        return 1;
    for (uint32_t i = 0; i < TPL_PLACES; i++)
        if (tpl_look32_(&page->slot[at].place[i]) == member)
            return 1;
    return 0;
}

/* Wake a member, to look again. */
static inline void tpl_wake(struct tpl_page *page, uint32_t number) {
    tpl_wake_(&page->member[number]);
}

#endif
