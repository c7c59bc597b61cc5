/* SIGSTOP of a writer, a reader or the core around every store to shared memory, in every mode of the ring, and SIGCONT
 * when the others have gone as far as they can.
 *
 * A stopped writer or core hinders nobody else; nor does a stopped reader, where overflow = drop. Where overflow = block,
 * the writers find that it has stalled, detach it and go on to their ends. Continued, the victim goes on too: a reader
 * that was detached in the middle of a copy sees that, never a torn message; and all come to their ends.
 *
 * Stops before all know each other end at once: nobody depends on such a victim yet.
 */
#include "trial.h"

/* Let the victim go on until it stops, or `socket` has a note. Returns whether it is stopped. */
static bool await_stop_or_note(pid_t victim, int socket) {
    uint64_t deadline_ns = within_limit();
    for (;;) {
        struct pollfd pending = {.fd = socket, .events = POLLIN};
        siginfo_t info = {.si_pid = 0};
        CHECK(waitid(P_PID, (id_t)victim, &info, WSTOPPED | WEXITED | WNOHANG | WNOWAIT) == 0);
        if (info.si_pid)
            return info.si_code == CLD_STOPPED;
        if (poll(&pending, 1, 1) == 1)
            return false;
        CHECK(tpr_monotonic_ns() < deadline_ns);
    }
}

static void resume_party(struct party *party) {
    siginfo_t info;
    CHECK(waitid(P_PID, (id_t)party->pid, &info, WSTOPPED) == 0); /* takes the news of the stop */
    CHECK(kill(party->pid, SIGCONT) == 0);
}

/* A note from a party that may stop before it, in which case it is continued. Counts the stops. */
static int hear_continuing(struct party *party, struct note *note, int *fd) {
    int stops = 0;
    while (await_stop_or_note(party->pid, party->socket)) {
        resume_party(party);
        stops++;
    }
    receive_note(party->socket, note, fd);
    return stops;
}

static int begin_trial(struct party *party, enum role victim, const struct moment *at) {
    struct note note;
    int stops = 0;
    for (int role = 0; role < ROLES; role++)
        begin_party(&party[role], (enum role)role, role == (int)victim ? at : NULL);
    for (int role = 0; role < ROLES; role++)
        stops += hear_continuing(&party[role], &note, &party[role].fd);
    introduce(party);
    for (int reader = READER_A; reader <= READER_B; reader++) {
        send_note(party[reader].socket, GO, 0, -1);
        stops += hear_continuing(&party[reader], &note, NULL);
    }
    return stops;
}

/* Wait until a reader says that it has drained `writer`. */
static void await_drained(const struct party *party, uint64_t writer) {
    struct note note;
    do
        CHECK(receive_note(party->socket, &note, NULL));
    while (note.what != DRAINED || note.number != writer);
}

/* The victim is stopped: see how far the others get. */
static void see_others(struct party *party, enum role victim) {
    if (victim == READER_A) {
        for (int writer = WRITER_A; writer <= WRITER_B; writer++)
            end_party(&party[writer], false);
        await_drained(&party[READER_B], WRITER_B);
        return;
    }
    int writer = victim == WRITER_B ? WRITER_A : WRITER_B;
    end_party(&party[writer], false);
    for (int reader = READER_A; reader <= READER_B; reader++)
        await_drained(&party[reader], (uint64_t)writer);
}

/* Returns whether the victim was stopped. */
static bool trial(enum role victim, const struct moment *at) {
    struct party party[ROLES];
    uint64_t last[ROLES][ROLES] = {{0}};
    detaches_stalled = victim == READER_A; /* on a busy machine one that is not stopped may seem so */
    int stops = begin_trial(party, victim, at);
    for (int writer = WRITER_A; writer <= WRITER_B; writer++)
        send_note(party[writer].socket, GO, 0, -1);
    for (int reader = READER_A; reader <= READER_B; reader++)
        send_note(party[reader].socket, GO, 0, -1);
    if (victim == CORE)
        send_note(party[CORE].socket, HERE, 0, -1);
    /* It stops, or ends without; the core, which does not end by itself, answers. What the others say is for later. */
    int silent[2];
    make_socketpair(silent);
    if (await_stop_or_note(party[victim].pid, victim == CORE ? party[CORE].socket : silent[0])) {
        stops++;
        see_others(party, victim);
        resume_party(&party[victim]);
    }
    for (int writer = WRITER_A; writer <= WRITER_B; writer++)
        end_party(&party[writer], false);
    for (int reader = READER_A; reader <= READER_B; reader++) {
        hear_last_words(&party[reader], last[reader]);
        end_party(&party[reader], false);
    }
    shutdown(party[CORE].socket, SHUT_RDWR);
    end_party(&party[CORE], false);
    for (int writer = WRITER_A; writer <= WRITER_B; writer++) {
        CHECK(last[READER_B][writer] == MESSAGES);
        CHECK(last[READER_A][writer] == MESSAGES || (victim == READER_A && mode.overflow == TPR_OVERFLOW_BLOCK));
    }
    close(silent[0]);
    close(silent[1]);
    close_parties(party);
    return stops > 0;
}

int main(void) {
    const int hits[] = {1, 7};
    begin_test();
    signal(SIGPIPE, SIG_IGN);
    try_all_steps(SIGSTOP, hits, sizeof hits / sizeof *hits, trial);
    return 0;
}
