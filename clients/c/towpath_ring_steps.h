/* SPDX-License-Identifier: Apache-2.0
 *
 * Every store to shared memory, by name; and the fences.
 *
 * All stores to shared memory go through TPR_STORE and TPR_COPY, and each has a step of its own in
 * TOWPATH_RING_STEPS. A test defines TOWPATH_RING_ON_STEP(step, phase) and so can kill the process around
 * each of them, or keep the memory unwritable between them (which proves that no store goes past the
 * macros). TOWPATH_RING_STORE and TOWPATH_RING_ON_FENCE let a test hold each store back until the next fence, as a
 * store buffer may: a missing fence is then a hang, every time. TOWPATH_RING_MEMCPY stands for the copies of message
 * bytes. Without these definitions the macros are the bare store.
 *
 * Seeded faults. A build with -DTOWPATH_RING_FAULT=TPR_FAULT_x does one thing wrong, at the place of TPR_FAULT_(x):
 * tests/ring/test_faults.py shows for each that the tests find it. In any other build TPR_FAULT_(x) is a constant 0.
 */
#ifndef TOWPATH_RING_STEPS_H
#define TOWPATH_RING_STEPS_H

#include "towpath_ring_layout.h"

#include <stdint.h>
#include <string.h>

#define TOWPATH_RING_STEPS(X)                                                                                 \
    X(RING_HEADER)     /* writer: the header of a new ring */                                                 \
    X(BASE_SEQ)        /* writer: the seq before its first message's, where that is not 0 */                  \
    X(PADDING)         /* writer: the padding record at the wrap */                                           \
    X(RECORD_HEADER)   /* writer */                                                                           \
    X(RECORD_ORIGIN)   /* writer */                                                                           \
    X(RECORD_HEADERS)  /* writer */                                                                           \
    X(RECORD_PAYLOAD)  /* writer */                                                                           \
    X(RECORD_LOAN)     /* writer: where the payload lies in its slab */                                       \
    X(OLDEST)          /* writer: takes leave to overwrite */                                                 \
    X(ANCHOR)          /* writer: where the batch begins that is about to be published */                     \
    X(LAST_SEQ)        /* writer: how many there have been, for statistics */                                 \
    X(TAIL)            /* writer: publishes the batch */                                                      \
    X(HISTORY)         /* writer: where a late reader may begin */                                            \
    X(WAITS_SET)       /* writer: is about to sleep for room */                                               \
    X(WAITS_DOORBELL)  /* writer: wants its doorbell rung when there is room */                               \
    X(WAITS_CLEAR)     /* writer: sleeps no more */                                                           \
    X(LOANS_WANTED)    /* writer: waits for a piece of its slab, or does so no more */                        \
    X(TAIL_CLOSED)     /* writer: the end */                                                                  \
    X(CONTROL_HEADER)  /* reader: the header of a new control page */                                         \
    X(SLOT_RESET)      /* reader: the slot's last cursor is void */                                           \
    X(SLOT_TAKEN)      /* reader: what a dead pump had published of it; 0 for a new source */                 \
    X(SLOT_SOURCE)     /* reader: whose slot it is from now on */                                             \
    X(SLOT_START)      /* reader: its first cursor */                                                         \
    X(CURSOR)          /* reader: has copied a batch out */                                                   \
    X(HELD_UNTIL)      /* reader: how much of its held table is in use */                                     \
    X(HELD_SOURCE)     /* reader: whose message it is about to hold */                                        \
    X(HELD_SEQ)        /* reader: holds it */                                                                 \
    X(HELD_FREE)       /* reader: looks at it no more */                                                      \
    X(RELEASED)        /* reader: tells a writer that wants to hear of it */                                  \
    X(SLOT_LEFT)       /* reader: lets go of the source */                                                    \
    X(SLEEP_FUTEX)     /* reader: is about to sleep on tails */                                               \
    X(SLEEP_DOORBELL)  /* reader: wants its doorbell rung */                                                  \
    X(SLEEP_AWAKE)     /* reader: needs no waking */                                                          \
    X(LOAD)            /* reader: how busy it is; a hint */                                                   \
    X(TABLE_HEADER)    /* core: the header of a new generation table */                                       \
    X(GENERATION)      /* core: the readers of a channel have changed */

#define TOWPATH_RING_FAULTS(X)                                                                                \
    X(NONE)                                                                                                   \
    X(NO_FENCE_PUBLISH)    /* writer: between the tail and its look at who sleeps */                          \
    X(NO_FENCE_SLEEP)      /* reader: between saying that it sleeps and its second look at the tails */       \
    X(NO_FENCE_COMMIT)     /* reader: between the cursor and its look at writer_waits_for */                  \
    X(NO_FENCE_ROOM)       /* writer: between writer_waits_for and its second look at the cursors */          \
    X(NO_FENCE_HOLD)       /* reader: between holding a message and its look at oldest_pos */                 \
    X(NO_FENCE_REUSE)      /* writer: between oldest_pos and its look at who holds what */                    \
    X(NO_FENCE_LOANS)      /* writer: between loans_wanted and its second look at who holds what */           \
    X(NO_FENCE_RELEASE)    /* reader: between a release and its look at loans_wanted */                       \
    X(HOLDS_IGNORED)       /* writer: takes a message's bytes back when all cursors are past it */            \
    X(REUSE_BEFORE_CURSOR) /* writer: takes them back when nobody holds them */                               \
    X(TAIL_BEFORE_RECORD)  /* writer: publishes, then writes */                                               \
    X(OLDEST_AFTER_RECORD) /* writer: overwrites, then says so */                                             \
    X(NO_OVERRUN_CHECK)    /* reader: hands out what it copied without another look */                        \
    X(COMMIT_BEFORE_COPY)  /* reader: moves its cursor, then copies */                                        \
    X(NO_PIN)              /* writer: a reader without a cursor holds nothing */                              \
    X(NO_NEWS_CHECK)       /* writer: does not look at the generation after it has published */               \
    X(RESUME_NOT_COUNTED)  /* reader: forgets where it was when it was lapped */                              \
    X(RUNG_ONCE)           /* writer: wakes a reader but once for each sleep */                               \
    X(NO_END)              /* reader: reads on, whoever has ended the writer */                               \
    X(NO_PADDING)          /* writer: leaves the end of the ring as it is when it wraps */                    \
    X(CURSOR_BEFORE_BATCH) /* pump: moves the source's cursor, then publishes */                              \
    X(CURSOR_LEFT_BEHIND)  /* pump: does not move the cursor of a source that broke its ring */               \
    X(TAKEN_TWICE)         /* pump: does not pass over what a dead one has published */

#define TPR_FAULT_NAME_(name) TPR_FAULT_##name,
enum tpr_fault { TOWPATH_RING_FAULTS(TPR_FAULT_NAME_) TPR_FAULT_COUNT };
#ifdef TOWPATH_RING_FAULT
#define TPR_FAULT_(name) (TOWPATH_RING_FAULT == TPR_FAULT_##name)
#else
#define TPR_FAULT_(name) 0
#endif

#define TPR_STEP_NAME_(name) TPR_STEP_##name,
enum tpr_step { TOWPATH_RING_STEPS(TPR_STEP_NAME_) TPR_STEP_COUNT };

enum tpr_phase { TPR_BEFORE, TPR_MIDDLE, TPR_AFTER }; /* MIDDLE: half of a copy is done */

#ifndef TOWPATH_RING_STORE
#define TOWPATH_RING_STORE(target, value, order) __atomic_store_n((target), (value), (order))
#endif
#ifndef TOWPATH_RING_ON_FENCE
#define TOWPATH_RING_ON_FENCE() ((void)0)
#endif

#ifndef TOWPATH_RING_MEMCPY
#define TOWPATH_RING_MEMCPY(target, origin, bytes) memcpy((target), (origin), (bytes))
#endif

#ifdef TOWPATH_RING_ON_STEP
#define TPR_STORE(step, target, value, order)                                                                 \
    do {                                                                                                      \
        TOWPATH_RING_ON_STEP(TPR_STEP_##step, TPR_BEFORE);                                                    \
        TOWPATH_RING_STORE((target), (value), (order));                                                       \
        TOWPATH_RING_ON_STEP(TPR_STEP_##step, TPR_AFTER);                                                     \
    } while (0)
#define TPR_COPY(step, target, origin, bytes)                                                                 \
    do {                                                                                                      \
        size_t half_ = (bytes) / 2;                                                                           \
        TOWPATH_RING_ON_STEP(TPR_STEP_##step, TPR_BEFORE);                                                    \
        TOWPATH_RING_MEMCPY((target), (origin), half_);                                                       \
        TOWPATH_RING_ON_STEP(TPR_STEP_##step, TPR_MIDDLE);                                                    \
        TOWPATH_RING_MEMCPY((uint8_t *)(target) + half_, (const uint8_t *)(origin) + half_, (bytes)-half_);   \
        TOWPATH_RING_ON_STEP(TPR_STEP_##step, TPR_AFTER);                                                     \
    } while (0)
#else
#define TPR_STORE(step, target, value, order) TOWPATH_RING_STORE((target), (value), (order))
#define TPR_COPY(step, target, origin, bytes) TOWPATH_RING_MEMCPY((target), (origin), (bytes))
#endif

#if defined(__SANITIZE_THREAD__)
#define TPR_UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TPR_UNDER_TSAN 1
#endif
#endif

/* The sequentially consistent fence between one's own store and the load of the other side's word: without
 * it both sides may miss each other's store, and a wake-up is lost. ThreadSanitizer does not know fences
 * (and the compiler refuses them under it), so there the bare instruction stands in: nothing but these
 * store/load pairs needs a fence, all data is ordered by release and acquire, which TSan does know. */
static inline void tpr_fence_(void) {
    TOWPATH_RING_ON_FENCE();
#if defined(TPR_UNDER_TSAN) && defined(__x86_64__)
    __asm__ volatile("mfence" ::: "memory");
#elif defined(TPR_UNDER_TSAN) && defined(__aarch64__)
    __asm__ volatile("dmb ish" ::: "memory");
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* The fence called `name`: every one can be left out by a seeded fault. */
#define TPR_FENCE(name)                                                                                       \
    do {                                                                                                      \
        if (!TPR_FAULT_(NO_FENCE_##name))                                                                     \
            tpr_fence_();                                                                                     \
    } while (0)

/* Between the store of oldest_pos and the stores that overwrite: who sees any of those sees that one too. And between
 * copying a record and the load of oldest_pos. (A compiler barrier on x86; TSan is told nothing of it, see above.) */
static inline void tpr_fence_release_(void) {
#if defined(TPR_UNDER_TSAN) && defined(__x86_64__)
    __asm__ volatile("" ::: "memory");
#elif defined(TPR_UNDER_TSAN) && defined(__aarch64__)
    __asm__ volatile("dmb ish" ::: "memory");
#else
    __atomic_thread_fence(__ATOMIC_RELEASE);
#endif
}

static inline void tpr_fence_acquire_(void) {
#if defined(TPR_UNDER_TSAN) && defined(__x86_64__)
    __asm__ volatile("" ::: "memory");
#elif defined(TPR_UNDER_TSAN) && defined(__aarch64__)
    __asm__ volatile("dmb ishld" ::: "memory");
#else
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
#endif
}

static inline uint64_t tpr_load_acquire_(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* For words read after a fence, or whose value is only a hint, and for untrusted data: one load, never two. */
static inline uint64_t tpr_load_relaxed_(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

#endif
