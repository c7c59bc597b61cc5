/* SIGKILL of a writer, a reader or the core around every store to shared memory, in every mode of the ring; and proof
 * that there are no other stores.
 *
 * The others must go on to their ends, both readers agreeing on how much a dead writer published.
 *
 * With the argument `guard` nobody is killed; instead every page is unwritable except between BEFORE and AFTER of a
 * step, so a store to shared memory that goes past the macros is a SIGSEGV.
 */
#include "trial.h"

/* Introductions; then let the writers go, and the readers once both writers are full, far enough or dead. */
static void begin_trial(struct party *party, enum role victim, const struct moment *at) {
    struct note note;
    for (int role = 0; role < ROLES; role++)
        begin_party(&party[role], (enum role)role, role == (int)victim ? at : NULL);
    for (int role = 0; role < ROLES; role++)
        receive_note(party[role].socket, &note, &party[role].fd); /* none: killed before it could say HERE */
    introduce(party);
    for (int reader = READER_A; reader <= READER_B; reader++) {
        send_note(party[reader].socket, GO, 0, -1);
        receive_note(party[reader].socket, &note, NULL); /* has added and slept; or is dead */
    }
    for (int writer = WRITER_A; writer <= WRITER_B; writer++) {
        send_note(party[writer].socket, GO, 0, -1);
        receive_note(party[writer].socket, &note, NULL);
    }
    for (int reader = READER_A; reader <= READER_B; reader++)
        send_note(party[reader].socket, GO, 0, -1);
    if (victim == CORE) { /* make it bump; the writers find the generation changed on their own */
        send_note(party[CORE].socket, HERE, 0, -1);
        receive_note(party[CORE].socket, &note, NULL);
    }
}

/* Returns whether the victim was killed. */
static bool trial(enum role victim, const struct moment *at) {
    struct party party[ROLES];
    struct note note;
    uint64_t last[ROLES][ROLES] = {{0}};
    begin_trial(party, victim, at);
    if (victim == READER_A) { /* whatever became of it: its end is what the writers are told */
        hear_last_words(&party[victim], last[victim]);
        end_party(&party[victim], true);
        for (int writer = WRITER_A; writer <= WRITER_B; writer++)
            send_note(party[writer].socket, GONE, victim, -1);
        send_note(party[CORE].socket, HERE, 0, -1);
        CHECK(receive_note(party[CORE].socket, &note, NULL));
    }
    for (int writer = WRITER_A; writer <= WRITER_B; writer++) {
        end_party(&party[writer], writer == (int)victim);
        for (int reader = READER_A; reader <= READER_B; reader++)
            send_note(party[reader].socket, GONE, (uint64_t)writer, -1);
    }
    for (int reader = READER_A; reader <= READER_B; reader++) {
        if (reader == (int)victim)
            continue;
        hear_last_words(&party[reader], last[reader]);
        end_party(&party[reader], false);
    }
    shutdown(party[CORE].socket, SHUT_RDWR);
    end_party(&party[CORE], victim == CORE);

    CHECK(last[READER_B][WRITER_B] == MESSAGES);
    CHECK(victim == WRITER_A || last[READER_B][WRITER_A] == MESSAGES);
    if (victim == WRITER_A || victim == CORE)
        CHECK(last[READER_A][WRITER_A] == last[READER_B][WRITER_A] && last[READER_A][WRITER_B] == MESSAGES);
    close_parties(party);
    return party[victim].is_killed;
}

int main(int count, char **argument) {
    const int hits[] = {1, 2, 7, 40};
    begin_test();
    signal(SIGPIPE, SIG_IGN);
    if (count > 1 && strcmp(argument[1], "guard") == 0) {
        const struct moment never = {-1, 0, 0, 0};
        is_guarded = true;
        for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
            mode = modes[m];
            CHECK(!trial(CORE, &never) && !trial(WRITER_A, &never) && !trial(READER_A, &never));
        }
        puts("ok");
        return 0;
    }
    try_all_steps(SIGKILL, hits, sizeof hits / sizeof *hits, trial);
    return 0;
}
