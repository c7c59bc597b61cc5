/* SPDX-License-Identifier: Apache-2.0
 *
 * Waiting: clocks, futexes, and the bounded spin before them. Nothing here knows what a ring is.
 *
 * futex_waitv(2) (Linux 5.16) waits on many words at once, also in read-only mappings. Where the kernel lacks
 * it, the wait is on the first word alone and ends after TPR_SLICE_NS, so a change of another word is
 * noticed at most that much later. Compile with TOWPATH_RING_NO_WAITV to get that behaviour everywhere.
 *
 * The spin adapts. A wake-up costs the other side a system call and this side tens of microseconds across cores, so
 * spinning first pays when the answer is near, and is pure loss when it is not. The budget doubles each time the spin was
 * answered in time and halves each time it was not, down to none; from none it is tried again only after a number of
 * sleeps that were short enough for a spin to have caught their end, and that number grows each time the trial fails.
 * How long it may be at most depends on what is waited for: another program's answer, or a disk's, which takes longer.
 *
 * A spin looks without a system call for TPR_SPIN_PURE_NS; from then on it offers the core to others between looks
 * (sched_yield(2)), because whoever is waited for may need it. Both sides on one core then hand it to each other for less
 * than what a sleep and a wake-up cost. The spin remembers whether the last answer came while somebody else ran on its
 * core, and begins with a yield if so. Where the core went to somebody else for long, the budget is over, and that counts
 * as a failure, whatever is found then.
 */
#ifndef TOWPATH_RING_WAIT_H
#define TOWPATH_RING_WAIT_H

#include "towpath_ring_layout.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define TPR_FOREVER UINT64_MAX /* as a deadline */
#define TPR_SLICE_NS UINT64_C(2000000)
#define TPR_WAITV_MAX 128u /* the kernel's FUTEX_WAITV_MAX */
#define TPR_FUTEX_U32_ 2u  /* FUTEX_32 of futex_waitv */
#define TPR_SPIN_MAX_NS UINT64_C(50000) /* the longest */
#define TPR_SPIN_STORED_NS UINT64_C(500000) /* the same where that is stored first: some times a quick disk's fdatasync(2) */
#define TPR_SPIN_MIN_NS UINT64_C(1000)
#define TPR_SPIN_PURE_NS UINT64_C(3000)
#define TPR_SPIN_LOOKS 16 /* between two looks at the clock */
#define TPR_SPIN_SWITCH_NS UINT64_C(1000) /* a yield that took longer has let somebody else run */
#define TPR_SPIN_SHORT_SLEEP 2u /* times the longest spin */
#define TPR_SPIN_PROBE_MIN 16u
#define TPR_SPIN_PROBE_MAX 1024u

/* The kernel's struct futex_waitv, spelled out because older <linux/futex.h> lacks it. */
struct tpr_waitv_ {
    uint64_t value;
    uint64_t address;
    uint32_t flags;
    uint32_t reserved;
};
TPR_STATIC_ASSERT(sizeof(struct tpr_waitv_) == 24, "struct futex_waitv");

static inline uint64_t tpr_clock_ns_(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static inline uint64_t tpr_monotonic_ns(void) {
    return tpr_clock_ns_(CLOCK_MONOTONIC);
}

/* A deadline `timeout_ns` from now; less than 0 means never. */
static inline uint64_t tpr_deadline_ns(int64_t timeout_ns) {
    if (timeout_ns < 0)
        return TPR_FOREVER;
    uint64_t now = tpr_monotonic_ns();
    return (uint64_t)timeout_ns > TPR_FOREVER - 1 - now ? TPR_FOREVER - 1 : now + (uint64_t)timeout_ns;
}

static inline void tpr_futex_wake_(const void *word, int is_private) {
    syscall(SYS_futex, word, is_private ? FUTEX_WAKE_PRIVATE : FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static inline struct tpr_waitv_ tpr_waitv_entry_(const void *word, uint64_t value, int is_private) {
    struct tpr_waitv_ entry = {(uint32_t)value, (uint64_t)(uintptr_t)word,
                               TPR_FUTEX_U32_ | (is_private ? FUTEX_PRIVATE_FLAG : 0), 0};
    return entry;
}

static inline struct timespec tpr_timespec_(uint64_t ns) {
    uint64_t seconds = ns / UINT64_C(1000000000);
    struct timespec spec;
    spec.tv_sec = seconds > (uint64_t)INT64_MAX ? INT64_MAX : (time_t)seconds;
    spec.tv_nsec = (long)(ns % UINT64_C(1000000000));
    return spec;
}

/* Sleep until a word of `entry` no longer has its value, or was woken, or the deadline (CLOCK_MONOTONIC).
 * Returns TPR_OK (also spuriously: recheck), TPR_TIMEOUT, TPR_INTERRUPTED, or TPR_E_SYSTEM. */
static inline int tpr_wait_any_(const struct tpr_waitv_ *entry, uint32_t count, uint64_t deadline_ns) {
    static int has_waitv = 1;
    struct timespec until = tpr_timespec_(deadline_ns);
    long result = -1;
#ifdef TOWPATH_RING_NO_WAITV
    __atomic_store_n(&has_waitv, 0, __ATOMIC_RELAXED); /* private */
#endif
    if (__atomic_load_n(&has_waitv, __ATOMIC_RELAXED)) {
        result = syscall(449 /* SYS_futex_waitv on every architecture */, entry, count, 0,
                         deadline_ns == TPR_FOREVER ? NULL : &until, CLOCK_MONOTONIC);
        if (result >= 0)
            return TPR_OK;
        if (errno == ENOSYS)
            __atomic_store_n(&has_waitv, 0, __ATOMIC_RELAXED); /* private */
    }
    if (!__atomic_load_n(&has_waitv, __ATOMIC_RELAXED)) {
        uint64_t slice_end_ns = tpr_monotonic_ns() + TPR_SLICE_NS;
        int is_slice = slice_end_ns < deadline_ns;
        if (is_slice)
            until = tpr_timespec_(slice_end_ns);
        int operation = FUTEX_WAIT_BITSET | (int)(entry[0].flags & FUTEX_PRIVATE_FLAG);
        result = syscall(SYS_futex, (void *)(uintptr_t)entry[0].address, operation, (uint32_t)entry[0].value,
                         &until, NULL, FUTEX_BITSET_MATCH_ANY);
        if (result == 0 || (errno == ETIMEDOUT && is_slice))
            return TPR_OK;
    }
    switch (errno) {
    case EAGAIN: return TPR_OK;
    case ETIMEDOUT: return TPR_TIMEOUT;
    case EINTR: return TPR_INTERRUPTED;
    default: return TPR_E_SYSTEM;
    }
}

static inline void tpr_relax_(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

struct tpr_spin {
    uint64_t most_ns; /* of a budget */
    uint64_t budget_ns;
    uint32_t short_sleeps;
    uint32_t probe_after;  /* so many short sleeps; 0 with a budget of 0: never spin */
    uint32_t yields_first; /* the last answer came while somebody else ran on our core */
};

static inline void tpr_spin_init_(struct tpr_spin *spin, uint64_t most_ns) {
    cpu_set_t cores;
    spin->budget_ns = spin->most_ns = most_ns;
    spin->short_sleeps = 0;
    spin->probe_after = TPR_SPIN_PROBE_MIN;
    spin->yields_first = sched_getaffinity(0, sizeof cores, &cores) == 0 && CPU_COUNT(&cores) == 1;
}

static inline void tpr_spin_paid_(struct tpr_spin *spin) {
    spin->budget_ns = spin->budget_ns * 2 > spin->most_ns ? spin->most_ns : spin->budget_ns * 2;
    spin->short_sleeps = 0;
    spin->probe_after = TPR_SPIN_PROBE_MIN;
}

static inline void tpr_spin_failed_(struct tpr_spin *spin) {
    spin->budget_ns = spin->budget_ns / 2 < TPR_SPIN_MIN_NS ? 0 : spin->budget_ns / 2;
    if (spin->budget_ns == 0 && spin->probe_after < TPR_SPIN_PROBE_MAX)
        spin->probe_after *= 2;
}

/* After a sleep of this length: was it short enough for a spin to be worth a trial some time? */
static inline void tpr_spin_slept_(struct tpr_spin *spin, uint64_t slept_ns) {
    if (spin->budget_ns || !spin->probe_after || slept_ns > TPR_SPIN_SHORT_SLEEP * spin->most_ns)
        return;
    if (++spin->short_sleeps >= spin->probe_after) {
        spin->short_sleeps = 0;
        spin->budget_ns = spin->most_ns; /* one try; a failure halves it from there */
    }
}

/* One spin: begin, then look as long as tpr_spin_goes_on_() says so, then tell how it ended. */
struct tpr_spinning_ {
    uint64_t pure_end_ns, end_ns, now_ns;
    uint32_t looks;       /* since the clock was read */
    uint32_t has_yielded; /* just before the look that is next, and somebody else has run */
};

static inline void tpr_spin_begin_(const struct tpr_spin *spin, struct tpr_spinning_ *spinning, uint64_t began_ns,
                                   uint64_t deadline_ns) {
    spinning->now_ns = began_ns;
    spinning->end_ns = deadline_ns < began_ns + spin->budget_ns ? deadline_ns : began_ns + spin->budget_ns;
    spinning->pure_end_ns = spin->yields_first ? began_ns : began_ns + TPR_SPIN_PURE_NS;
    spinning->looks = spin->yields_first ? TPR_SPIN_LOOKS : 0;
    spinning->has_yielded = 0;
}

/* Back from a yield. */
static inline void tpr_spin_came_back_(struct tpr_spinning_ *spinning, uint64_t now_ns) {
    spinning->has_yielded = now_ns - spinning->now_ns >= TPR_SPIN_SWITCH_NS;
    spinning->now_ns = now_ns;
}

/* Is another look due? Pauses or yields before it. */
static inline int tpr_spin_goes_on_(struct tpr_spinning_ *spinning) {
    spinning->has_yielded = 0;
    if (spinning->looks++ < TPR_SPIN_LOOKS) {
        tpr_relax_();
        return 1;
    }
    spinning->looks = 1;
    spinning->now_ns = tpr_monotonic_ns();
    if (spinning->now_ns >= spinning->end_ns)
        return 0;
    if (spinning->now_ns >= spinning->pure_end_ns) {
        sched_yield();
        tpr_spin_came_back_(spinning, tpr_monotonic_ns()); /* late, perhaps: still worth the look that follows */
    }
    return 1;
}

/* What was waited for is there. */
static inline void tpr_spin_answered_(struct tpr_spin *spin, const struct tpr_spinning_ *spinning) {
    if (spinning->now_ns >= spinning->end_ns) {
        tpr_spin_failed_(spin);
        return;
    }
    spin->yields_first = spinning->has_yielded;
    tpr_spin_paid_(spin);
}

#endif
