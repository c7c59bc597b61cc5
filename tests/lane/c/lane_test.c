/* A lock lane: either side killed around every change that it makes; and, WITH_THREADS, both as threads, for sanitizers.
 *
 * The client says numbers and waits for each answer, which is what it said and one more. What the core may not have seen it
 * says by a pipe, which stands for the socket; the core sleeps in that. A client that was killed leaves nothing that no
 * client says; a core that was killed leaves a client that hears of it (the pipe's end), and nothing is taken twice.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int wanted_step = -1, wanted_hit, hits;

static void on_step(int step) {
    if (step == wanted_step && ++hits == wanted_hit)
        kill(getpid(), SIGKILL);
}

#define TOWPATH_LANE_ON_STEP(step) on_step((int)(step))
#include "towpath_lane.h"

#define CHECK(condition)                                                                                      \
    do {                                                                                                      \
        if (!(condition)) {                                                                                   \
            fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition);                     \
            _exit(99);                                                                                        \
        }                                                                                                     \
    } while (0)

#define ROUNDS 300u
#define LOOKS 200
#define SLICE_NS UINT64_C(20000000)

static struct tpn_page *page;
static int bell[2];

static void ring(void) {
    CHECK(write(bell[1], "", 1) >= 0 || errno == EPIPE);
}

/* ---- the core ---- */

static uint64_t given_back;

/* Take all that there is, and answer it. */
static void empty(struct tpn_core *core) {
    struct tpn_cell cell;
    uint64_t position;
    int result;
    while ((result = tpn_take(core, 7, &cell, &position)) == TPN_OK) {
        if (cell.kind == TPN_GIVE_BACK) {
            given_back++;
            continue;
        }
        CHECK(cell.bytes == 8 && cell.asked[0] == cell.number * 3);
        CHECK(tpn_answer(core, position, TPN_GRANTED, cell.number + 1, 5) == TPN_OK);
        CHECK(tpn_answer(core, position, TPN_GRANTED, 0, 0) == TPN_NONE);
    }
    CHECK(result == TPN_NONE);
}

/* Until the pipe's end. */
static void serve(void) {
    struct tpn_core core = {page, 0, 0, 0};
    char byte[64];
    for (;;) {
        ssize_t got = read(bell[0], byte, sizeof byte);
        empty(&core);
        if (got <= 0)
            return;
        tpn_attend(&core);
        do {
            for (int look = 0; look < LOOKS; look++)
                if (tpn_has_news(&core)) {
                    empty(&core);
                    look = 0;
                } else if (look % 16 == 15) {
                    sched_yield();
                }
        } while (tpn_rest(&core) && (empty(&core), 1));
    }
}

/* ---- the client ---- */

static struct tpn_client client;
static pthread_mutex_t one_says = PTHREAD_MUTEX_INITIALIZER;

static int say(uint32_t kind, uint64_t number, uint64_t *position) {
    uint64_t asked = number * 3;
    for (;;) {
        pthread_mutex_lock(&one_says);
        int said = tpn_say(&client, kind, number, 7, &asked, kind == TPN_ASK ? 8 : 0, position);
        pthread_mutex_unlock(&one_says);
        if (said == TPN_OK)
            return said;
        ring();
        if (said == TPN_UNSURE)
            return said;
        sched_yield();
        if (TPN_LOAD(&client.is_closed))
            return TPN_BROKEN;
    }
}

/* Say numbers from `first` on; returns how many were answered. */
static uint64_t talk(uint64_t first, uint64_t count) {
    struct tpr_spin spin;
    uint64_t position, answered = 0;
    tpr_spin_init_(&spin, TPN_SPIN_NS);
    for (uint64_t number = first; number < first + count; number++) {
        if (say(TPN_ASK, number, &position) == TPN_BROKEN)
            return answered;
        if (number % 3 == 0)
            spin.budget_ns = 0; /* it sleeps */
        int result;
        do
            result = tpn_wait(&client, &spin, position, tpr_monotonic_ns() + SLICE_NS);
        while (result == TPN_SLICE && !TPN_LOAD(&client.is_closed));
        struct tpn_answer *answer = &page->answer[position % TPN_CELLS];
        if (result == TPN_OK) {
            CHECK(TPN_LOOK(&answer->token) == number + 1 && TPN_LOOK(&answer->result) == TPN_GRANTED);
            answered++;
        }
        pthread_mutex_lock(&one_says);
        tpn_leave(&client, position, result == TPN_OK);
        pthread_mutex_unlock(&one_says);
        if (result != TPN_OK)
            return answered;
        if (say(TPN_GIVE_BACK, number, &position) == TPN_BROKEN)
            return answered;
    }
    return answered;
}

static void begin(struct tpr_memory *memory) {
    CHECK(tpn_page_make(memory) == TPR_OK);
    CHECK(madvise(memory->page, TPN_PAGE_BYTES, MADV_DOFORK) == 0);
    page = memory->page;
    memset(&client, 0, sizeof client);
    client.page = page;
    tpr_spin_init_(&client.spin, TPN_SPIN_NS);
    CHECK(pipe2(bell, O_CLOEXEC) == 0);
}

#ifdef WITH_THREADS

#define TALKERS 3

static void *as_core(void *unused) {
    serve();
    return unused;
}

static void *as_client(void *at) {
    CHECK(talk((uint64_t)(uintptr_t)at * ROUNDS * 10 + 1, ROUNDS * 10) == ROUNDS * 10);
    return NULL;
}

int main(void) {
    struct tpr_memory memory;
    pthread_t core, talker[TALKERS];
    begin(&memory);
    CHECK(pthread_create(&core, NULL, as_core, NULL) == 0);
    for (uintptr_t i = 0; i < TALKERS; i++)
        CHECK(pthread_create(&talker[i], NULL, as_client, (void *)i) == 0);
    for (int i = 0; i < TALKERS; i++)
        CHECK(pthread_join(talker[i], NULL) == 0);
    close(bell[1]);
    CHECK(pthread_join(core, NULL) == 0);
    CHECK(given_back == TALKERS * ROUNDS * 10);
    close(bell[0]);
    tpr_memory_free_(&memory);
    puts("ok");
    return 0;
}

#else

static const char *const names[] = {
#define NAME(name) #name,
    TOWPATH_LANE_STEPS(NAME)};

/* A thread of the client's own hears of the core's end, as it would by the socket. */
static void *hear_the_end(void *unused) {
    struct pollfd end = {bell[1], 0, 0};
    CHECK(poll(&end, 1, -1) == 1);
    tpn_client_close(&client);
    return unused;
}

/* Kill one side at the n-th step of a kind. Whether it was killed there: 0: it came to its end before. */
static int killed(int step, int hit, int is_core) {
    struct tpr_memory memory;
    int status;
    begin(&memory);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        tpr_forks_ = memory.forks;
        wanted_step = step;
        wanted_hit = hit;
        close(bell[is_core]);
        if (is_core)
            serve();
        else
            CHECK(talk(1, ROUNDS) == ROUNDS);
        _exit(0);
    }
    close(bell[!is_core]);
    if (!is_core) {
        serve(); /* whatever the client leaves is what a client says */
        close(bell[0]);
        CHECK(waitpid(child, &status, 0) == child);
    } else {
        pthread_t hearer;
        CHECK(pthread_create(&hearer, NULL, hear_the_end, NULL) == 0);
        talk(1, ROUNDS);
        kill(child, SIGTERM); /* if it is there still */
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(pthread_join(hearer, NULL) == 0);
        close(bell[1]);
    }
    tpr_memory_free_(&memory);
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        return 1;
    CHECK(is_core ? WIFSIGNALED(status) : WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    for (int step = 0; step < TPN_STEP_COUNT; step++) {
        if (step == TPN_STEP_HEADER)
            continue;
        int is_core = step >= TPN_STEP_AWAKE, deaths = 0;
        for (int hit = 1; hit <= 8; hit++)
            deaths += killed(step, hit, is_core);
        if (!deaths) {
            fprintf(stderr, "%s: never reached\n", names[step]);
            return 1;
        }
        puts(names[step]);
    }
    puts("ok");
    return 0;
}

#endif
