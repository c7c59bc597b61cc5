/* A writer (source 7) and a reader (9) in one process and one thread. */
#ifndef BOTH_H
#define BOTH_H

#include "testing.h"

static struct tpr_writer writer;
static struct tpr_reader reader;

static void open_both(uint64_t capacity) {
    CHECK(tpr_writer_open(&writer, 7, capacity) == TPR_OK);
    CHECK(tpr_reader_open(&reader, 9, 4) == TPR_OK);
}

static void attach(uint32_t slot, int from_start) {
    int fd = tpr_reader_share(&reader);
    CHECK(tpr_writer_attach(&writer, 9, fd, slot, -1, from_start) == TPR_OK);
    close(fd);
}

static void add(uint32_t slot, int from_start) {
    int fd = tpr_writer_share(&writer);
    CHECK(tpr_reader_add(&reader, fd, slot, 7, from_start, -1, NULL) == TPR_OK);
    close(fd);
}

static void connect_both(uint64_t capacity) {
    open_both(capacity);
    attach(0, 1);
    add(0, 1);
}

static void close_both(void) {
    tpr_writer_close(&writer);
    tpr_reader_close(&reader);
}

#endif
