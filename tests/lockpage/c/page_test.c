/* SIGKILL of a process around every change that it makes to a lock page, and of the core around every one of its own.
 *
 * Three processes take a lock ROUNDS times each, some of them shared, now and then giving up waiting; what only the lock
 * protects tells whether one was ever inside that should not have been. The victim is killed at its n-th step of a kind, before or after it; where a
 * step depends on who comes when, until it has come about. The
 * core, a process too, hears of a death, closes the dead one's member and takes the lock back if that is in it; what it
 * took back it gives out again when nobody has it. The others must come to their ends.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int wanted_step = -1, wanted_moment, wanted_hit, hits;

static void on_step(int step, int moment) {
    if (step == wanted_step && moment == wanted_moment && ++hits == wanted_hit)
        kill(getpid(), SIGKILL);
}

#define TOWPATH_LOCK_ON_STEP(step, moment) on_step((int)(step), (int)(moment))
#include "towpath_lock.h"

#include <pthread.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#define CHECK(condition)                                                                                      \
    do {                                                                                                      \
        if (!(condition)) {                                                                                   \
            fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition);                     \
            _exit(99);                                                                                        \
        }                                                                                                     \
    } while (0)

#define ROUNDS 100
#define ATTEMPTS 400 /* until a step comes about */
#define VICTIM 2u
#define OTHER 3u
#define THIRD 4u
#define SECONDS_NS UINT64_C(1000000000)

/* What the processes tell each other, beside the page. */
struct board {
    uint32_t inside; /* who, 0: nobody; only by the lock */
    uint32_t reads[8];
    uint32_t is_done[8], is_dead[8];
    uint32_t asks[8]; /* wants the lock from the core: in which way; answered by `granted` */
    uint64_t granted[8]; /* the answer: by what it has it */
    uint32_t has[8]; /* who has the lock in which way, as the core sees it */
    uint64_t by[8]; /* by what: a token of the page, or of the core's own */
    uint64_t released[8][8]; /* what a member says that it has given back, in turn: one-way */
    uint64_t last_token; /* of who was inside alone */
    uint64_t last_shared; /* the newest by which somebody read */
    uint64_t grants;
    uint32_t is_over;
};

enum { NOTHING = 0, ALONE = 1, SHARED = 2, BY_PAGE = 4 };
#define OWN (UINT64_C(1) << 63) /* of what the core grants by itself */

static struct board *board;
static int shared_blocks = 4; /* of eight blocks of rounds, so many are of readers */
static bool is_of_sleepers; /* the step comes about only when the victim gives back what somebody sleeps for */
static struct tpr_memory memory;
static struct tpl_page *page;

static uint32_t get(uint32_t *word) {
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static void set(uint32_t *word, uint32_t value) {
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static uint64_t get64(uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

static void set64(uint64_t *word, uint64_t value) {
    __atomic_store_n(word, value, __ATOMIC_SEQ_CST);
}

static void give_back(uint32_t me, uint64_t by) {
    static _Thread_local int turn;
    set64(&board->released[me][turn++ % 8], by);
}

static bool is_given_back(uint32_t member, uint64_t by) {
    for (int turn = 0; turn < 8; turn++)
        if (get64(&board->released[member][turn]) == by)
            return true;
    return false;
}

static void check_nobody_is_alone(void) {
    uint32_t found = get(&board->inside);
    CHECK(found == 0 || get(&board->is_dead[found]));
}

/* Inside: nobody else is, but one that is dead, and the token is the newest. */
static void use(uint32_t me, uint64_t token) {
    check_nobody_is_alone();
    set(&board->inside, me);
    for (uint32_t each = VICTIM; each <= THIRD; each++)
        CHECK(!get(&board->reads[each]) || get(&board->is_dead[each]));
    CHECK(token == 0 || (token > board->last_token && token > get64(&board->last_shared)));
    if (token)
        board->last_token = token;
    board->grants++;
    CHECK(get(&board->inside) == me);
    set(&board->inside, 0);
}

/* Inside beside others who read: nobody is alone, and the token is newer than theirs who were. */
static void use_shared(uint32_t me, uint64_t token, useconds_t span_us) {
    set(&board->reads[me], 1);
    check_nobody_is_alone();
    CHECK(token == 0 || token > board->last_token);
    uint64_t newest = get64(&board->last_shared);
    while (token > newest && !__atomic_compare_exchange_n(&board->last_shared, &newest, token, 0, __ATOMIC_SEQ_CST,
                                                          __ATOMIC_SEQ_CST))
        continue;
    if (span_us)
        usleep(span_us);
    check_nobody_is_alone();
    set(&board->reads[me], 0);
}

/* Ask the core, which has the lock. */
static void by_the_core(uint32_t me, uint32_t how) {
    set(&board->asks[me], how);
    while (!get64(&board->granted[me]))
        usleep(50);
    uint64_t by = get64(&board->granted[me]);
    set64(&board->granted[me], 0);
    if (how == SHARED)
        use_shared(me, 0, 100);
    else
        use(me, 0);
    give_back(me, by);
}

static void read_once(uint32_t me, int round) {
    uint32_t place;
    uint64_t token = 0;
    int result = tpl_try_shared(page, 0, me, &place, &token);
    if (result == TPL_DENY) /* the core may think that this one has it */
        give_back(me, token);
    if (result != TPL_OK) {
        CHECK(result != TPL_CLOSED && result != TPL_SPENT);
        by_the_core(me, SHARED);
        return;
    }
    use_shared(me, token, round % 4 == 0 ? 30 : 0);
    result = tpl_release_shared(page, 0, place, me, token);
    CHECK(result == TPL_OK || result == TPL_SHUT);
    if (result == TPL_SHUT)
        give_back(me, token);
}

/* Hold it until somebody sleeps for it, or it is taken back. */
static void await_sleeper(void) {
    for (int turn = 0; turn < 1000 && get64(&page->slot[0].word) & TPL_IS_OPEN; turn++) {
        for (uint32_t each = OTHER; each <= THIRD; each++)
            if (get(&page->member[each].phase) == TPL_ASLEEP)
                return;
        usleep(10);
    }
}

static void member(uint32_t me) {
    uint64_t spin_ns = TPL_SPIN_NS, token = 0;
    for (int round = 0; round < ROUNDS; round++) {
        if ((round + (int)me) / 5 % 8 < shared_blocks) {
            read_once(me, round);
            continue;
        }
        int result = tpl_try(page, 0, me, &token);
        if (result == TPL_HELD) {
            uint64_t now_ns = tpr_monotonic_ns();
            /* Some give up at once, some after a while, most never; some sleep at once. */
            spin_ns = round % 3 ? 0 : TPL_SPIN_NS;
            struct tpl_wait wait = {page, 0, me, 0, 0, round % 5 == 1 ? now_ns + 20000 : TPR_FOREVER, &spin_ns};
            result = tpl_wait_begin(&wait, 1);
            while (result == TPL_OK) {
                result = tpl_wait_on(&wait, tpr_monotonic_ns() + SECONDS_NS, &token);
                if (result != TPL_SLICE)
                    break;
                result = TPL_OK;
            }
        }
        if (result == TPL_OVER)
            continue;
        if (result != TPL_OK) {
            CHECK(result == TPL_SHUT || result == TPL_LOST || result == TPL_ASK);
            by_the_core(me, ALONE);
            continue;
        }
        use(me, token);
        if (is_of_sleepers && me == VICTIM)
            await_sleeper();
        else if (round % 4 == 0)
            usleep(round % 8 ? 30 : 300); /* others come to wait, and the core to take it back */
        result = tpl_release(page, 0, me, token);
        CHECK(result == TPL_OK || result == TPL_SHUT);
        if (result == TPL_SHUT) /* the core may know that this one has it */
            give_back(me, token);
    }
    set(&board->is_done[me], 1);
}

/* What the word and the cells say of who has it, of a lock that is taken back. */
static void adopt(uint64_t word, uint64_t base) {
    struct tpl_reader found[TPL_READERS];
    uint32_t count = tpl_find_readers(page, 0, found), owner = tpl_owner(word);
    if (owner >= VICTIM) {
        set64(&board->by[owner], base + tpl_used(word));
        set(&board->has[owner], ALONE);
    }
    for (uint32_t i = 0; i < count; i++) {
        uint32_t member = tpl_cell_member(found[i].cell);
        if (member < VICTIM)
            continue;
        CHECK(owner < VICTIM && member <= THIRD);
        set64(&board->by[member], base + tpl_cell_used(found[i].cell));
        set(&board->has[member], SHARED);
    }
}

/* In which ways it is held, all together; BY_PAGE: somebody took it there. */
static uint32_t all_that_have(void) {
    uint32_t all = NOTHING;
    for (uint32_t each = VICTIM; each <= THIRD; each++) {
        uint32_t how = get(&board->has[each]);
        if (how && (get(&board->is_dead[each]) || is_given_back(each, get64(&board->by[each]))))
            set(&board->has[each], how = NOTHING);
        if (how)
            all |= how | (get64(&board->by[each]) & OWN ? NOTHING : BY_PAGE);
    }
    return all;
}

/* The core's own: grant it to one that asks; returns whether somebody asks. */
static bool serve(uint32_t all) {
    bool is_asked = false;
    for (uint32_t each = VICTIM; each <= THIRD; each++) {
        uint32_t how = get(&board->asks[each]);
        if (!how || get(&board->is_dead[each]))
            continue;
        is_asked = true;
        if (get(&board->has[each]) || all & ALONE || (how == ALONE && all))
            continue;
        static uint64_t serial;
        uint64_t by = OWN + ((uint64_t)getpid() << 32) + ++serial;
        set(&board->asks[each], NOTHING);
        set64(&board->by[each], by);
        set(&board->has[each], how);
        set64(&board->granted[each], by);
        return true;
    }
    return is_asked;
}

/* One turn of the core: deaths, what is asked, what is given back. `is_out`, `base`: what a successor finds out. */
static void look_after(uint64_t *base, bool *is_out, int turn) {
    bool must = turn % 5 == 0 && !is_of_sleepers;
    for (uint32_t each = VICTIM; each <= THIRD; each++) {
        if (get(&board->asks[each]))
            must = true;
        if (get(&board->is_dead[each]) && get(&page->member[each].state) == TPL_MEMBER_OPEN) {
            tpl_dismiss(page, each, TPL_UNUSED);
            must = must || tpl_names(page, 0, each);
            for (uint32_t other = VICTIM; other <= THIRD; other++)
                tpl_wake(page, other);
        }
    }
    if (*is_out && must) {
        uint32_t waiting[TPL_PLACES];
        uint64_t word = tpl_shut(page, 0);
        uint32_t count = tpl_take_waiters(page, 0, waiting);
        *is_out = false;
        adopt(word, *base);
        for (uint32_t i = 0; i < count; i++)
            tpl_wake(page, waiting[i]);
    }
    uint32_t all = all_that_have();
    if (*is_out) {
        if (!all && get64(&page->reader[0][0].cell) == tpl_cell_(TPL_CORE, 1))
            CHECK(tpl_drained(page, 0) == TPL_OK);
        return;
    }
    if (serve(all) || all & (ALONE | BY_PAGE))
        return;
    *base += TPL_TOKENS;
    tpl_open(page, 0, *base, all ? TPL_BUSY_SHARED : turn % 2 ? TPL_BUSY : TPL_FREE);
    *is_out = true;
    if (!all && turn % 2)
        tpl_drained(page, 0);
}

/* The core: one that begins finds in the page how things are. */
static void core(void) {
    uint64_t word = get64(&page->slot[0].word), base = get64(&page->slot[0].base);
    bool is_out = (word & TPL_IS_OPEN) != 0;
    for (uint32_t each = VICTIM; each <= THIRD; each++)
        if (get(&page->member[each].state) == TPL_UNUSED && !get(&board->is_dead[each]))
            tpl_admit(page, each, each, 1);
    if (!is_out) /* its predecessor may have died before it said so */
        adopt(word, base);
    if (is_out && tpl_owner(word) == TPL_CORE)
        tpl_drained(page, 0);
    for (uint32_t each = VICTIM; each <= THIRD; each++)
        tpl_wake(page, each); /* and between taking back and waking */
    for (int turn = 1; !get(&board->is_over); turn++) {
        look_after(&base, &is_out, turn);
        usleep(30);
    }
}

#ifndef WITH_THREADS
static pid_t start(void (*run)(uint32_t), uint32_t me, bool is_victim, int step, int moment, int hit) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct tpr_memory own;
    CHECK(tpl_page_map(&own, memory.fd) == TPR_OK);
    page = (struct tpl_page *)own.page;
    hits = 0;
    wanted_step = is_victim ? step : -1;
    wanted_moment = moment;
    wanted_hit = hit;
    run(me);
    _exit(0);
}

static void run_core(uint32_t me) {
    (void)me;
    core();
}

/* Returns whether the victim was killed. */
static bool trial(bool is_core, int step, int moment, int hit, int attempt) {
    struct tpr_memory made;
    CHECK(tpl_page_make(&made, 1) == TPR_OK);
    memory = made;
    bool is_of_readers = (step >= TPL_STEP_CLAIM && step <= TPL_STEP_READ_OVER) || step == TPL_STEP_CLEAR_READER ||
                         step == TPL_STEP_CORE_READS || step == TPL_STEP_CORE_READ;
    is_of_sleepers = step == TPL_STEP_ROUSED_AT || step == TPL_STEP_ROUSE;
    shared_blocks = is_of_readers ? 4 : is_of_sleepers ? 0 : 2 * (attempt % 4 == 0);
    memory.fd = tpr_memory_keep_(&made); /* open for writing, as it is handed out */
    CHECK(memory.fd >= 0);
    page = (struct tpl_page *)made.page;
    memset(board, 0, sizeof *board);
    page->reader[0][5].cell = tpl_cell_(9, 3); /* somebody's who is gone */
    pid_t pids[8] = {0};
    pid_t core_pid = start(run_core, TPL_CORE, is_core, step, moment, hit);
    bool was_killed = false;
    while (!was_killed && get(&page->member[THIRD].state) != TPL_MEMBER_OPEN) {
        int status;
        pid_t ended = waitpid(core_pid, &status, WNOHANG);
        if (!ended) {
            usleep(500);
            continue;
        }
        CHECK(ended == core_pid && is_core && WIFSIGNALED(status)); /* before that: the next one goes on */
        core_pid = start(run_core, TPL_CORE, false, 0, 0, 0);
        was_killed = true;
    }
    for (uint32_t each = VICTIM; each <= THIRD; each++)
        pids[each] = start(member, each, !is_core && each == VICTIM, step, moment, hit);
    for (int left = THIRD - VICTIM + 1; left;) {
        int status;
        pid_t ended = wait(&status);
        if (ended == core_pid) {
            CHECK(is_core && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
            was_killed = true;
            core_pid = start(run_core, TPL_CORE, false, 0, 0, 0);
            continue;
        }
        for (uint32_t each = VICTIM; each <= THIRD; each++)
            if (ended == pids[each]) {
                left--;
                if (WIFSIGNALED(status)) {
                    CHECK(each == VICTIM && WTERMSIG(status) == SIGKILL);
                    was_killed = true;
                    set(&board->is_dead[each], 1);
                } else
                    CHECK(WEXITSTATUS(status) == 0);
            }
    }
    set(&board->is_over, 1);
    int status;
    CHECK(waitpid(core_pid, &status, 0) == core_pid);
    CHECK(board->is_done[OTHER] && board->is_done[THIRD]);
    close(memory.fd);
    tpr_memory_free_(&made);
    return was_killed;
}

#define NAME_(name) #name,
static const char *const step_name[] = {TOWPATH_LOCK_STEPS(NAME_)};
#endif

#ifdef WITH_THREADS
/* The same by threads on one mapping, and nobody killed: for ThreadSanitizer, which also sees what only the lock orders. */
static void *run_member(void *me) {
    member((uint32_t)(uintptr_t)me);
    return NULL;
}

static void *run_core_thread(void *unused) {
    (void)unused;
    core();
    return NULL;
}

int main(void) {
    pthread_t threads[8], core_thread;
    alarm(120);
    board = calloc(1, sizeof *board);
    CHECK(board && tpl_page_make(&memory, 1) == TPR_OK);
    page = (struct tpl_page *)memory.page;
    for (uint32_t each = VICTIM; each <= THIRD; each++)
        tpl_admit(page, each, each, 1);
    CHECK(pthread_create(&core_thread, NULL, run_core_thread, NULL) == 0);
    for (uint32_t each = VICTIM; each <= THIRD; each++)
        CHECK(pthread_create(&threads[each], NULL, run_member, (void *)(uintptr_t)each) == 0);
    for (uint32_t each = VICTIM; each <= THIRD; each++)
        CHECK(pthread_join(threads[each], NULL) == 0);
    set(&board->is_over, 1);
    CHECK(pthread_join(core_thread, NULL) == 0);
    puts("ok");
    return 0;
}
#else
int main(void) {
    static const int hit[] = {1};
    int killed = 0;
    alarm(270);
    board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(board != MAP_FAILED);
    for (int step = 0; step < TPL_STEP_PAGE_HEADER; step++) {
        bool is_core = step >= TPL_STEP_SHUT;
        int of_step = 0;
        for (int moment = TPL_BEFORE; moment <= TPL_AFTER; moment++)
            for (size_t i = 0; i < sizeof hit / sizeof *hit; i++)
                for (int attempt = 0; attempt < ATTEMPTS; attempt++)
                    if (trial(is_core, step, moment, hit[i], attempt)) {
                        of_step++;
                        break;
                    }
        puts(step_name[step]);
        fflush(stdout);
        CHECK(of_step);
        killed += of_step;
    }
    printf("%d killed\nok\n", killed);
    return 0;
}
#endif
