/* Round trips between two processes that sleep on a futex each: futex_ping RUN_NS PAUSE_NS CORE.
 *
 * Nothing spins and nothing is carried: the least that waking one another costs. PAUSE_NS is slept before each
 * round trip; the other process moves to CORE unless that is -1. Prints one JSON object: the median, the 99th percentile, how many. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SAMPLES_MAX = 200000, SAMPLES_MIN = 20 };

struct words {
    _Alignas(128) _Atomic uint32_t there;
    _Alignas(128) _Atomic uint32_t back;
};

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void tell(_Atomic uint32_t *word, uint32_t value) {
    atomic_store(word, value);
    syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void wait_for(_Atomic uint32_t *word, uint32_t value) {
    uint32_t seen;
    while ((seen = atomic_load(word)) != value)
        syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
}

static int ascending(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    uint64_t run_ns = strtoull(arguments[1], NULL, 10), pause_ns = strtoull(arguments[2], NULL, 10);
    int core = atoi(arguments[3]);
    struct timespec pause = {(time_t)(pause_ns / 1000000000u), (long)(pause_ns % 1000000000u)};
    struct words *words =
        mmap(NULL, sizeof *words, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED) return 1;
    pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (core >= 0) {
            cpu_set_t set;
            CPU_ZERO(&set);
            CPU_SET(core, &set);
            if (sched_setaffinity(0, sizeof set, &set)) _exit(1);
        }
        for (uint32_t trip = 1;; trip++) {
            wait_for(&words->there, trip);
            tell(&words->back, trip);
        }
    }
    static uint64_t times[SAMPLES_MAX];
    uint64_t end_ns = now_ns() + run_ns;
    uint32_t trips = 0;
    while ((now_ns() < end_ns || trips < SAMPLES_MIN) && trips < SAMPLES_MAX) {
        if (pause_ns) nanosleep(&pause, NULL);
        uint64_t began_ns = now_ns();
        tell(&words->there, trips + 1);
        wait_for(&words->back, trips + 1);
        times[trips++] = now_ns() - began_ns;
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    qsort(times, trips, sizeof *times, ascending);
    printf("{\"p50_ns\": %llu, \"p99_ns\": %llu, \"trips\": %u}\n", (unsigned long long)times[trips / 2],
           (unsigned long long)times[trips * 99ull / 100], trips);
    return 0;
}
