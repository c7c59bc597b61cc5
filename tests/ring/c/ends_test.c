/* Where a ring begins when it goes on with a log, where it ends when its writer was ended; and the load that readers tell.
 */
#include "both.h"

static uint64_t read_all(void) {
    uint64_t count = 0;
    struct tpr_view view;
    tpr_reader_begin(&reader);
    while (tpr_reader_peek(&reader, &view))
        count += (uint64_t)tpr_reader_consume(&reader, &view);
    tpr_reader_end(&reader);
    return count;
}

/* A writer that was ended and goes on is read up to where it was when that was said. */
static void test_nothing_is_read_after_the_end(void) {
    connect_both(4096);
    for (int i = 0; i < 10; i++)
        CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_OK);
    CHECK(tpr_reader_finish(&reader, 7) == 1);
    for (int i = 0; i < 5; i++)
        CHECK(tpr_writer_publish(&writer, NULL, 0, "b", 1) == TPR_OK);
    CHECK(tpr_reader_pending_bytes(&reader) == 10 * 40);
    CHECK(tpr_reader_finish(&reader, 7) == 1); /* said once more: nothing new */
    CHECK(read_all() == 10 && tpr_reader_find(&reader, 7)->state == TPR_SOURCE_DRAINED);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "b", 1) == TPR_OK);
    CHECK(tpr_reader_wait(&reader, 0) == TPR_NOTIFIED && read_all() == 0);
    close_both();
}

/* The same, lapped meanwhile: nothing that it wrote after the end takes the place of what was lost. */
static void test_the_end_is_overwritten(void) {
    CHECK(tpr_writer_open_with(&writer, 7, 4096, TPR_OVERFLOW_DROP, 0) == TPR_OK);
    CHECK(tpr_reader_open(&reader, 9, 4) == TPR_OK);
    attach(0, TPR_START_BEGIN);
    add(0, TPR_START_BEGIN);
    for (int i = 0; i < 10; i++)
        CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_OK);
    CHECK(tpr_reader_finish(&reader, 7) == 1);
    for (int i = 0; i < 1000; i++)
        CHECK(tpr_writer_publish(&writer, NULL, 0, "b", 1) == TPR_OK);
    CHECK(read_all() == 0 && tpr_reader_find(&reader, 7)->state == TPR_SOURCE_DRAINED);
    close_both();
}

/* Every way to begin in a ring whose seqs do not begin with 1. */
static void test_seqs_go_on_with_a_log(void) {
    const enum tpr_start starts[] = {TPR_START_BEGIN, TPR_START_TAIL, TPR_START_HISTORY};
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        struct tpr_view view;
        CHECK(tpr_writer_open_with(&writer, 7, 4096, TPR_OVERFLOW_BLOCK, 3) == TPR_OK);
        CHECK(tpr_reader_open(&reader, 9, 4) == TPR_OK);
        tpr_writer_begin_at(&writer, 1001);
        attach(0, starts[i]);
        add(0, starts[i]);
        for (uint64_t seq = 1001; seq <= 1003; seq++) {
            CHECK(tpr_writer_publish(&writer, NULL, 0, "a", 1) == TPR_OK && writer.last_seq == seq);
            tpr_reader_begin(&reader);
            CHECK(tpr_reader_peek(&reader, &view) && view.seq == seq && view.missed == 0);
            CHECK(tpr_reader_consume(&reader, &view));
            tpr_reader_end(&reader);
        }
        CHECK(reader.lost == 0);
        close_both();
    }
}

static void test_load(void) {
    uint64_t load = 5;
    open_both(4096);
    CHECK(tpr_writer_load(&writer, 9, &load) == TPR_NOTIFIED); /* not attached */
    attach(0, TPR_START_BEGIN);
    CHECK(tpr_reader_set_load(&reader, 3) == TPR_OK);
    CHECK(tpr_writer_load(&writer, 9, &load) == TPR_TIMEOUT); /* has not begun */
    add(0, TPR_START_BEGIN);
    CHECK(tpr_writer_load(&writer, 9, &load) == TPR_OK && load == 3);
    CHECK(tpr_reader_remove(&reader, 7, NULL) == 1);
    CHECK(tpr_writer_load(&writer, 9, &load) == TPR_NOTIFIED); /* has left */
    close_both();
}

int main(void) {
    begin_test();
    test_nothing_is_read_after_the_end();
    test_the_end_is_overwritten();
    test_seqs_go_on_with_a_log();
    test_load();
    puts("ok");
    return 0;
}
