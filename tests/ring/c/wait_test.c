/* The spin before a sleep: that it adapts, is bounded, and begins with what paid last. And the glance before that. */
#include "testing.h"

static void test_spin_adapts(void) {
    struct tpr_spin spin = {TPR_SPIN_MAX_NS, TPR_SPIN_MAX_NS / 4, 0, TPR_SPIN_PROBE_MIN, 0};
    for (int i = 0; i < 10; i++)
        tpr_spin_paid_(&spin);
    CHECK(spin.budget_ns == TPR_SPIN_MAX_NS);
    for (int i = 0; i < 10; i++)
        tpr_spin_failed_(&spin);
    CHECK(spin.budget_ns == 0);
    tpr_spin_slept_(&spin, TPR_SPIN_SHORT_SLEEP * TPR_SPIN_MAX_NS + 1);
    CHECK(spin.short_sleeps == 0);
    for (uint32_t i = 0; i < TPR_SPIN_PROBE_MAX && !spin.budget_ns; i++)
        tpr_spin_slept_(&spin, 1000);
    CHECK(spin.budget_ns == TPR_SPIN_MAX_NS);
    struct tpr_spin never = {TPR_SPIN_MAX_NS, 0, 0, 0, 0};
    for (uint32_t i = 0; i < 2 * TPR_SPIN_PROBE_MAX; i++)
        tpr_spin_slept_(&never, 1000);
    CHECK(never.budget_ns == 0);
}

/* Looks of one spin that nobody answers. */
static int count_looks(struct tpr_spin *spin, struct tpr_spinning_ *spinning, uint64_t began_ns, uint64_t deadline_ns) {
    int looks = 0;
    tpr_spin_begin_(spin, spinning, began_ns, deadline_ns);
    while (tpr_spin_goes_on_(spinning))
        looks++;
    return looks;
}

static void test_spin_is_bounded(void) {
    struct tpr_spin spin = {TPR_SPIN_MAX_NS, TPR_SPIN_MAX_NS, 0, TPR_SPIN_PROBE_MIN, 0};
    struct tpr_spinning_ spinning;
    uint64_t began_ns = tpr_monotonic_ns();
    CHECK(count_looks(&spin, &spinning, began_ns, TPR_FOREVER) >= TPR_SPIN_LOOKS);
    CHECK(tpr_monotonic_ns() >= began_ns + TPR_SPIN_MAX_NS);
    CHECK(count_looks(&spin, &spinning, began_ns, began_ns) == TPR_SPIN_LOOKS); /* the time is over */
    spin.yields_first = 1;
    CHECK(count_looks(&spin, &spinning, began_ns, began_ns) == 0);
    began_ns = tpr_monotonic_ns();
    CHECK(count_looks(&spin, &spinning, began_ns, began_ns + 5000) >= 1);
    CHECK(spinning.end_ns == began_ns + 5000);
}

static void test_spin_remembers_what_paid(void) {
    struct tpr_spin spin = {TPR_SPIN_MAX_NS, TPR_SPIN_MAX_NS / 8, 0, TPR_SPIN_PROBE_MIN, 0};
    struct tpr_spinning_ spinning;
    tpr_spin_begin_(&spin, &spinning, 1000000, TPR_FOREVER);
    CHECK(tpr_spin_goes_on_(&spinning) && !spinning.has_yielded); /* looks first, without a system call */
    tpr_spin_came_back_(&spinning, spinning.now_ns + TPR_SPIN_SWITCH_NS);
    CHECK(spinning.has_yielded);
    tpr_spin_answered_(&spin, &spinning);
    CHECK(spin.yields_first && spin.budget_ns == TPR_SPIN_MAX_NS / 4);
    tpr_spin_begin_(&spin, &spinning, 1000000, TPR_FOREVER);
    CHECK(spinning.looks == TPR_SPIN_LOOKS && spinning.pure_end_ns == 1000000); /* the first thing is a yield */
    tpr_spin_came_back_(&spinning, spinning.now_ns + TPR_SPIN_SWITCH_NS - 1); /* nobody else was there */
    tpr_spin_answered_(&spin, &spinning);
    CHECK(!spin.yields_first && spin.budget_ns == TPR_SPIN_MAX_NS / 2);
    /* The core came back when the time was over: that has not paid, and says nothing of who shares a core. */
    tpr_spin_begin_(&spin, &spinning, 1000000, TPR_FOREVER);
    tpr_spin_came_back_(&spinning, spinning.end_ns);
    tpr_spin_answered_(&spin, &spinning);
    CHECK(!spin.yields_first && spin.budget_ns == TPR_SPIN_MAX_NS / 4);
}

static void test_what_is_stored_may_take_longer(void) {
    struct tpr_writer writer;
    struct tpr_reader reader;
    struct tpr_room_wait wait;
    CHECK(tpr_writer_open(&writer, 1, 4096) == TPR_OK && tpr_reader_open(&reader, 2, 4) == TPR_OK);
    int control = tpr_reader_share(&reader);
    CHECK(tpr_writer_attach(&writer, 2, control, 0, -1, TPR_START_BEGIN) == TPR_OK);
    CHECK(tpr_writer_publish(&writer, NULL, 0, "x", 1) == TPR_OK);
    CHECK(tpr_writer_wait_begin(&writer, TPR_ALL_READ, &wait) == TPR_FULL && wait.spin == &writer.stored_spin);
    CHECK(wait.spin->budget_ns == TPR_SPIN_STORED_NS && wait.spin->most_ns == TPR_SPIN_STORED_NS);
    CHECK(tpr_room_wait_sleep(&wait, tpr_deadline_ns(2 * TPR_SPIN_STORED_NS)) == TPR_TIMEOUT);
    CHECK(wait.spin->budget_ns == TPR_SPIN_STORED_NS / 2); /* in vain: less the next time, */
    tpr_spin_paid_(wait.spin);
    CHECK(wait.spin->budget_ns == TPR_SPIN_STORED_NS);
    while (tpr_writer_publish(&writer, NULL, 0, "x", 1) == TPR_OK)
        ;
    CHECK(tpr_writer_wait_begin(&writer, 1, &wait) == TPR_FULL && wait.spin == &writer.spin);
    CHECK(wait.spin->budget_ns == TPR_SPIN_MAX_NS); /* and where room is waited for nothing is known of that */
    tpr_writer_close(&writer);
    tpr_reader_close(&reader);
    close(control);
}

static void test_glance(void) {
    struct tpr_writer writer;
    struct tpr_reader reader;
    struct tpr_view view;
    CHECK(tpr_writer_open(&writer, 1, 4096) == TPR_OK && tpr_reader_open(&reader, 2, 4) == TPR_OK);
    int ring = tpr_writer_share(&writer), control = tpr_reader_share(&reader);
    CHECK(tpr_reader_add(&reader, ring, 0, 1, TPR_START_BEGIN, -1, NULL) == TPR_OK);
    CHECK(tpr_writer_attach(&writer, 2, control, 0, -1, TPR_START_BEGIN) == TPR_OK);
    reader.spin.yields_first = 0; /* where there is one core to run on it is set */
    CHECK(!tpr_reader_glance(&reader, 3));
    CHECK(tpr_writer_publish(&writer, NULL, 0, "x", 1) == TPR_OK);
    CHECK(!tpr_reader_glance(&reader, 0) && tpr_reader_glance(&reader, 1));
    reader.spin.yields_first = 1;
    CHECK(!tpr_reader_glance(&reader, 1));
    reader.spin.yields_first = 0;
    reader.spin.budget_ns = 0;
    CHECK(!tpr_reader_glance(&reader, 1));
    reader.spin.budget_ns = 1;
    tpr_reader_begin(&reader);
    CHECK(tpr_reader_peek(&reader, &view) && tpr_reader_consume(&reader, &view));
    tpr_reader_end(&reader);
    CHECK(!tpr_reader_glance(&reader, 1));
    tpr_reader_finish(&reader, 1); /* what is left of it a pass finds, at once */
    CHECK(tpr_writer_publish(&writer, NULL, 0, "x", 1) == TPR_OK && !tpr_reader_glance(&reader, 1));
    tpr_writer_close(&writer);
    tpr_reader_close(&reader);
    close(ring);
    close(control);
}

int main(void) {
    begin_test();
    test_glance();
    test_spin_adapts();
    test_spin_is_bounded();
    test_spin_remembers_what_paid();
    test_what_is_stored_may_take_longer();
    puts("ok");
    return 0;
}
