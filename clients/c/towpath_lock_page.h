/* SPDX-License-Identifier: Apache-2.0
 *
 * The lock page: its layout, and making and mapping one.
 *
 * What it is for and how it is used: towpath_lock.h, and of readers towpath_lock_readers.h. Nothing here changes a lock.
 */
#ifndef TOWPATH_LOCK_PAGE_H
#define TOWPATH_LOCK_PAGE_H

#include "towpath_lock_steps.h"
#include "towpath_ring_memfd.h"
#include "towpath_ring_wait.h"

#define TPL_MAGIC UINT64_C(0x31304b434f4c5054) /* "TPLOCK01" */
#define TPL_VERSION 2u
#define TPL_MEMBERS 1024u /* 0 is nobody, 1 the core */
#define TPL_SLOTS 2048u
#define TPL_PLACES 32u /* who may wait for one lock in the page */
#define TPL_READERS 32u /* who may hold one shared in the page */
#define TPL_CORE 1u
#define TPL_FIRST_MEMBER 2u
#define TPL_TOKENS (UINT64_C(1) << 24) /* in a range; fewer than the word can count */

#define TPL_OWNER_BITS UINT64_C(0xfff)
#define TPL_IS_OPEN (UINT64_C(1) << 12)
#define TPL_HAS_WAITERS (UINT64_C(1) << 13)
#define TPL_HAS_READERS (UINT64_C(1) << 14)
#define TPL_LEAF (UINT64_C(1) << 15)
#define TPL_LEAVES (((UINT64_C(1) << 23) - 1) << 15)
#define TPL_TOKEN (UINT64_C(1) << 38)

#define TPL_SPIN_NS UINT64_C(300000)  /* the longest */
#define TPL_SPIN_PURE_NS UINT64_C(30000) /* from then on it yields between looks */
#define TPL_ROUSE_NS UINT64_C(1000000)
#define TPL_TRIES 10000 /* of a compare-and-swap by the core: so many failures are no contention */

enum tpl_state { TPL_UNUSED = 0, TPL_MEMBER_OPEN = 1, TPL_MEMBER_CLOSED = 2 };
enum tpl_phase { TPL_NONE = 0, TPL_ASLEEP = 1, TPL_WOKEN = 2, TPL_READY = 3, TPL_DUE = 4 };

enum tpl_busy { TPL_FREE = 0, TPL_BUSY = 1, TPL_BUSY_SHARED = 2 };

enum tpl_result {
    TPL_OK = 0,
    TPL_HELD = 1,    /* somebody has it */
    TPL_SHUT = 2,    /* it is the core's: ask there */
    TPL_SPENT = 3,   /* no token is left: ask the core */
    TPL_CLOSED = 4,  /* the member does not count any more */
    TPL_LOST = 5,    /* it is not this member's, or not by this token */
    TPL_FULL = 6,    /* too many wait in the page: ask the core */
    TPL_OVER = 7,    /* the deadline */
    TPL_SLICE = 8,   /* a signal, or the end of a slice: go on waiting */
    TPL_ASK = 9,     /* a reader meets who waits, or a writer readers: who is next is the core's to say */
    TPL_DENY = 10    /* as TPL_SHUT, but the core may think that this member has it: tell it that it has not */
};

struct tpl_member {
    uint64_t session, owner; /* written by the core */
    uint32_t state;          /* written by the core */
    uint32_t wake;           /* its futex word */
    uint32_t phase;
    uint32_t slot; /* what it waits for, plus 1 */
    uint64_t ticket, number, deadline_ns, roused_at_ns;
};

struct tpl_slot {
    uint64_t word;
    uint64_t base;     /* the token before the range's first; written by the core */
    uint64_t since_ns; /* of the owner; CLOCK_REALTIME */
    uint64_t next_ticket;
    uint64_t unused[4];
    uint32_t place[TPL_PLACES]; /* members that wait */
    uint64_t reserved[8];
};

struct tpl_reader {
    uint64_t cell;     /* who reads, or may be about to, and by which token; 0: nobody */
    uint64_t since_ns; /* CLOCK_REALTIME */
};

struct tpl_page {
    uint64_t magic;
    uint32_t version, members, slots, unused;
    uint64_t identity; /* of the core's choosing */
    uint8_t pad[4096 - 32];
    struct tpl_member member[TPL_MEMBERS];
    struct tpl_slot slot[TPL_SLOTS];
    struct tpl_reader reader[TPL_SLOTS][TPL_READERS];
};
TPR_STATIC_ASSERT(sizeof(struct tpl_member) == 64, "a member is a cache line");
TPR_STATIC_ASSERT(sizeof(struct tpl_slot) == 256, "a slot");
TPR_STATIC_ASSERT(offsetof(struct tpl_page, member) == 4096, "members begin on a page of their own");
#define TPL_PAGE_BYTES ((uint64_t)((sizeof(struct tpl_page) + 4095) & ~UINT64_C(4095)))

static inline uint32_t tpl_owner(uint64_t word) {
    return (uint32_t)(word & TPL_OWNER_BITS);
}

static inline uint64_t tpl_used(uint64_t word) {
    return word >> 38;
}

/* Now, to a few milliseconds; for people. */
static inline uint64_t tpl_now_ns_(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static inline uint64_t tpl_look_(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static inline uint32_t tpl_look32_(const uint32_t *word) {
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

/* ---- pages ---- */

/* Make a page; TPR_OK, or TPR_E_SYSTEM with errno set. */
static inline int tpl_page_make(struct tpr_memory *memory, uint64_t identity) {
    int code = tpr_memory_make_(memory, "towpath-locks", TPL_PAGE_BYTES);
    if (code != TPR_OK)
        return code;
    struct tpl_page *page = (struct tpl_page *)memory->page;
    TPL_STORE(PAGE_HEADER, &page->version, TPL_VERSION);
    TPL_STORE(PAGE_HEADER, &page->members, TPL_MEMBERS);
    TPL_STORE(PAGE_HEADER, &page->slots, TPL_SLOTS);
    TPL_STORE(PAGE_HEADER, &page->identity, identity);
    TPL_STORE(PAGE_HEADER, &page->magic, TPL_MAGIC);
    return TPR_OK;
}

/* Check and map a page that was handed over, open for writing; `memory` owns a duplicate of `fd`. TPR_OK, or an error of
 * the ring's and nothing left behind. */
static inline int tpl_page_map(struct tpr_memory *memory, int fd) {
    struct {
        uint64_t magic;
        uint32_t version, members, slots, unused;
    } header;
    uint64_t bytes;
    int code = tpr_check_(fd, O_RDWR, &header, sizeof header, &bytes);
    if (code != TPR_OK)
        return code;
    if (header.magic != TPL_MAGIC)
        return TPR_E_MAGIC;
    if (header.version != TPL_VERSION)
        return TPR_E_VERSION;
    if (header.members != TPL_MEMBERS || header.slots != TPL_SLOTS)
        return TPR_E_FIELD;
    if (bytes != TPL_PAGE_BYTES)
        return TPR_E_SIZE;
    memory->bytes = bytes;
    memory->forks = tpr_fork_count_();
    memory->page = NULL;
    memory->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (memory->fd < 0)
        return TPR_E_SYSTEM;
    void *page = TOWPATH_RING_MMAP(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory->fd, 0);
    if (page == MAP_FAILED || madvise(page, bytes, MADV_DONTFORK) != 0) {
        int saved = errno;
        if (page != MAP_FAILED)
            TOWPATH_RING_MUNMAP(page, bytes);
        close(memory->fd);
        memory->fd = -1;
        errno = saved;
        return TPR_E_SYSTEM;
    }
    memory->page = page;
    return TPR_OK;
}

#endif
