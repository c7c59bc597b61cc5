/* One side falls asleep while the other does what should wake it, and then nothing more: thousands of times, at every
 * distance. One lost wake-up is a hang. (Built with a store buffer, so that a missing fence needs no luck to show.)
 */
#include "pair.h"

struct board {
    _Atomic uint64_t round, answer;
};

static struct board *make_board(void) {
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    return (struct board *)page;
}

static void await_word(_Atomic uint64_t *word, uint64_t value) {
    uint64_t deadline_ns = within_limit();
    for (uint32_t i = 1; *word != value; i++) {
        tpr_relax_();
        if (i % 1000 == 0) {
            sched_yield(); /* the other side may need this very core */
            CHECK(tpr_monotonic_ns() < deadline_ns);
        }
    }
}

/* Between nothing and about as long as it takes to fall asleep. Looks at `word` all the while, so that it lies in this
 * core's cache: then a load of it is quicker than the store before it, which is what the fences are against. */
static void hesitate(uint64_t round, const uint64_t *word) {
    for (uint64_t i = mix(round) % 300; i; i--)
        tpr_load_acquire_(word);
}

static void duel(uint64_t rounds, bool is_reader_asleep) {
    static const uint8_t payload[900];
    struct board *board = make_board();
    struct tpr_writer writer;
    struct tpr_reader reader;
    int pair[2];
    make_socketpair(pair);
    pid_t child = begin_child();
    if (child == 0) {
        CHECK(tpr_writer_open(&writer, 3, 4096) == TPR_OK && tpr_reader_open(&reader, 3, 1) == TPR_OK);
        exchange(pair[1], &writer, &reader, 4);
        for (uint64_t round = 1; round <= rounds; round++) {
            if (is_reader_asleep) {
                receive_round(&reader);
                board->answer = round;
            } else {
                await_word(&board->round, round); /* the ring is full */
                hesitate(round, &reader.source[0]->page->writer_waits_for);
                receive_round(&reader);
            }
        }
        _exit(0);
    }
    CHECK(tpr_writer_open(&writer, 4, 4096) == TPR_OK && tpr_reader_open(&reader, 4, 1) == TPR_OK);
    exchange(pair[0], &writer, &reader, 3);
    for (uint64_t round = 1; round <= rounds; round++) {
        if (is_reader_asleep) {
            hesitate(round, &writer.peer[0].control->sleeping);
            CHECK(tpr_writer_publish(&writer, NULL, 0, &round, sizeof round) == TPR_OK);
            await_word(&board->answer, round);
        } else {
            while (tpr_writer_publish(&writer, NULL, 0, payload, sizeof payload) == TPR_OK)
                ;
            board->round = round;
            CHECK(tpr_writer_wait_room(&writer, sizeof payload, within_limit()) == TPR_OK);
        }
    }
    CHECK(wait_child(child) == 0);
    tpr_writer_close(&writer);
    tpr_reader_close(&reader);
    close(pair[0]);
    close(pair[1]);
    munmap(board, 4096);
}

int main(void) {
    begin_test();
    duel(100000, true);
    duel(20000, false);
    puts("ok");
    return 0;
}
