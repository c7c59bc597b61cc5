/* SPDX-License-Identifier: Apache-2.0
 *
 * Every change of a lock page, by name.
 *
 * All of them go through the macros here, and each has a step in TOWPATH_LOCK_STEPS. A test defines
 * TOWPATH_LOCK_ON_STEP(step, phase) and so can kill the process around each of them. Without it the macros are the bare
 * instruction. All are sequentially consistent: several words are each other's partners, and the locked instruction that
 * takes a lock costs what it costs.
 */
#ifndef TOWPATH_LOCK_STEPS_H
#define TOWPATH_LOCK_STEPS_H

#include "towpath_ring_layout.h"

#include <stdint.h>

#define TOWPATH_LOCK_STEPS(X)                                                                                 \
    X(TAKE)          /* client: the lock is mine */                                                           \
    X(SINCE)         /* client: since when */                                                                 \
    X(FREE)          /* client: it is nobody's */                                                             \
    X(HAND_OVER)     /* client: it is the next one's */                                                       \
    X(GIVE_UP)       /* client: it is nobody's, after the core has taken it back */                           \
    X(TICKET)        /* client: my place in the queue */                                                      \
    X(WAIT_SLOT)     /* client: what I wait for, and the rest of my cell */                                   \
    X(WAIT_PHASE)    /* client: whether I sleep */                                                            \
    X(ENQUEUE)       /* client: I am in the queue */                                                          \
    X(WAITERS)       /* client: look into the queue before you free it */                                     \
    X(DEQUEUE)       /* client: I am not in the queue any more */                                             \
    X(LEFT)          /* client: whoever was about to hand it to me, look again */                             \
    X(ROUSE)         /* client: the first who sleeps is to come */                                            \
    X(ROUSED_AT)     /* client: since when */                                                                 \
    X(CLAIM)         /* client: I may be about to read */                                                     \
    X(READ)          /* client: one more has read; look at the cells before you write */                      \
    X(READ_SINCE)    /* client: since when */                                                                 \
    X(READING)       /* client: I read, by this token */                                                      \
    X(READ_OVER)     /* client: I do not */                                                                   \
    X(WAKE)          /* client, core: a futex word */                                                         \
    X(SHUT)          /* core: taken back */                                                                   \
    X(CLEAR_WAITER)  /* core: it is in the core's queue now */                                                \
    X(CLEAR_WORD)    /* core: before it is given out anew */                                                  \
    X(CLEAR_READER)  /* core: what is left in a cell does not count */                                        \
    X(BASE)          /* core: which tokens */                                                                 \
    X(CORE_READS)    /* core: it has it still, shared with others */                                          \
    X(CORE_READ)     /* core: it has not any more */                                                          \
    X(OPEN)          /* core: given out */                                                                    \
    X(MEMBER)        /* core: who has a number */                                                             \
    X(MEMBER_STATE)  /* core: whether it counts */                                                            \
    X(PAGE_HEADER)   /* core: the header of a new page */

#define TPL_STEP_NAME_(name) TPL_STEP_##name,
enum tpl_step { TOWPATH_LOCK_STEPS(TPL_STEP_NAME_) TPL_STEP_COUNT };
enum tpl_moment { TPL_BEFORE, TPL_AFTER };

#ifdef TOWPATH_LOCK_ON_STEP
#define TPL_ON_(step, moment) TOWPATH_LOCK_ON_STEP(TPL_STEP_##step, moment)
#else
#define TPL_ON_(step, moment) ((void)0)
#endif

#define TPL_STORE(step, target, value)                                                                        \
    do {                                                                                                      \
        TPL_ON_(step, TPL_BEFORE);                                                                            \
        __atomic_store_n((target), (value), __ATOMIC_SEQ_CST);                                                \
        TPL_ON_(step, TPL_AFTER);                                                                             \
    } while (0)

/* A word whose value only matters to those who have seen a later step. */
#define TPL_NOTE(step, target, value)                                                                         \
    do {                                                                                                      \
        TPL_ON_(step, TPL_BEFORE);                                                                            \
        __atomic_store_n((target), (value), __ATOMIC_RELAXED);                                                \
        TPL_ON_(step, TPL_AFTER);                                                                             \
    } while (0)

/* `done`: whether the word was `expected`, and is `desired`; if not, `expected` is what it was. */
#define TPL_CAS(step, done, target, expected, desired)                                                        \
    do {                                                                                                      \
        TPL_ON_(step, TPL_BEFORE);                                                                            \
        (done) = __atomic_compare_exchange_n((target), (expected), (desired), 0, __ATOMIC_SEQ_CST,            \
                                             __ATOMIC_SEQ_CST);                                               \
        TPL_ON_(step, TPL_AFTER);                                                                             \
    } while (0)

/* `was`: the word before; `how` is `or`, `and` or `add`. */
#define TPL_FETCH(step, how, was, target, value)                                                              \
    do {                                                                                                      \
        TPL_ON_(step, TPL_BEFORE);                                                                            \
        (was) = __atomic_fetch_##how((target), (value), __ATOMIC_SEQ_CST);                                    \
        TPL_ON_(step, TPL_AFTER);                                                                             \
    } while (0)

#endif
