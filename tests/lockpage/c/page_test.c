/* SIGKILL of a process around every change that it makes to a lock page, and of the core around every one of its own.
 *
 * Two processes take a lock ROUNDS times each, now and then giving up waiting; a counter that only the lock protects
 * tells whether they were ever inside together. The victim is killed at its n-th step of a kind, before or after it; where a
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
#define ATTEMPTS 200 /* until a step comes about */
#define VICTIM 2u
#define OTHER 3u
#define THIRD 4u
#define SECONDS_NS UINT64_C(1000000000)

/* What the processes tell each other, beside the page. */
struct board {
    uint32_t inside; /* who, 0: nobody; only by the lock */
    uint32_t is_done[8], is_dead[8];
    uint32_t asks[8]; /* wants the lock from the core: its request; answered by granting in `core_has` */
    uint64_t granted[8]; /* the answer: by what it has it */
    uint32_t core_has; /* who has the lock, as the core sees it */
    uint64_t core_by; /* by what: a token of the page, or of the core's own */
    uint64_t released[8]; /* what a member says that it has given back: one-way */
    uint64_t last_token, grants;
    uint32_t is_over;
};

static struct board *board;
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

/* Inside: nobody else is, but one that is dead, and the token is the newest. */
static void use(uint32_t me, uint64_t token) {
    uint32_t found = get(&board->inside);
    CHECK(found == 0 || get(&board->is_dead[found]));
    set(&board->inside, me);
    CHECK(token == 0 || token > board->last_token);
    if (token)
        board->last_token = token;
    board->grants++;
    CHECK(get(&board->inside) == me);
    set(&board->inside, 0);
}

/* Ask the core, which has the lock. */
static void by_the_core(uint32_t me) {
    set(&board->asks[me], 1);
    while (!get64(&board->granted[me]))
        usleep(50);
    uint64_t by = get64(&board->granted[me]);
    set64(&board->granted[me], 0);
    use(me, 0);
    set64(&board->released[me], by);
}

static void member(uint32_t me) {
    uint64_t spin_ns = TPL_SPIN_NS, token = 0;
    for (int round = 0; round < ROUNDS; round++) {
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
            CHECK(result == TPL_SHUT || result == TPL_LOST);
            by_the_core(me);
            continue;
        }
        use(me, token);
        if (round % 4 == 0)
            usleep(round % 8 ? 30 : 300); /* others come to wait, and the core to take it back */
        result = tpl_release(page, 0, me, token);
        CHECK(result == TPL_OK || result == TPL_SHUT);
        if (result == TPL_SHUT) /* the core may know that this one has it */
            set64(&board->released[me], token);
    }
    set(&board->is_done[me], 1);
}

/* One turn of the core: deaths, what is asked, what is given back. `is_out`, `base`: what a successor finds out. */
static void look_after(uint64_t *base, bool *is_out, int turn) {
    bool must = turn % 5 == 0;
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
        uint32_t count = tpl_take_waiters(page, 0, waiting), owner = tpl_owner(word);
        *is_out = false;
        if (owner >= VICTIM) {
            set64(&board->core_by, *base + tpl_used(word));
            set(&board->core_has, owner);
        }
        for (uint32_t i = 0; i < count; i++)
            tpl_wake(page, waiting[i]);
    }
    if (*is_out)
        return;
    uint32_t has = get(&board->core_has);
    if (has && (get(&board->is_dead[has]) || get64(&board->released[has]) == get64(&board->core_by)))
        set(&board->core_has, has = 0);
    if (has)
        return;
    for (uint32_t each = VICTIM; each <= THIRD; each++)
        if (get(&board->asks[each]) && !get(&board->is_dead[each])) {
            static uint64_t serial;
            uint64_t by = (UINT64_C(1) << 63) + ((uint64_t)getpid() << 32) + ++serial;
            set(&board->asks[each], 0);
            set64(&board->core_by, by);
            set(&board->core_has, each);
            set64(&board->granted[each], by);
            return;
        }
    *base += TPL_TOKENS;
    tpl_open(page, 0, *base, turn % 2);
    *is_out = true;
    if (turn % 2)
        tpl_release(page, 0, TPL_CORE, *base + 1);
}

/* The core: one that begins finds in the page how things are. */
static void core(void) {
    uint64_t word = get64(&page->slot[0].word), base = get64(&page->slot[0].base);
    bool is_out = (word & TPL_IS_OPEN) != 0;
    for (uint32_t each = VICTIM; each <= THIRD; each++)
        if (get(&page->member[each].state) == TPL_UNUSED && !get(&board->is_dead[each]))
            tpl_admit(page, each, each, 1);
    if (!is_out && tpl_owner(word) >= VICTIM && !get(&board->core_has)) { /* its predecessor died before it said so */
        set64(&board->core_by, base + tpl_used(word));
        set(&board->core_has, tpl_owner(word));
    }
    if (is_out && tpl_owner(word) == TPL_CORE)
        tpl_release(page, 0, TPL_CORE, base + 1);
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
static bool trial(bool is_core, int step, int moment, int hit) {
    struct tpr_memory made;
    CHECK(tpl_page_make(&made, 1) == TPR_OK);
    memory = made;
    memory.fd = tpr_memory_keep_(&made); /* open for writing, as it is handed out */
    CHECK(memory.fd >= 0);
    page = (struct tpl_page *)made.page;
    memset(board, 0, sizeof *board);
    pid_t pids[8] = {0};
    pid_t core_pid = start(run_core, TPL_CORE, is_core, step, moment, hit);
    for (int tries = 0; tries < 200 && page->member[THIRD].state != TPL_MEMBER_OPEN; tries++)
        usleep(500);
    bool was_killed = false;
    if (page->member[THIRD].state != TPL_MEMBER_OPEN) { /* it was killed before: the next one goes on */
        int status;
        CHECK(waitpid(core_pid, &status, 0) == core_pid && WIFSIGNALED(status));
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
                    if (trial(is_core, step, moment, hit[i])) {
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
