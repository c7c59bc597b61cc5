/* Two processes with a ring each, and what they do with them. */
#ifndef PAIR_H
#define PAIR_H

#include "testing.h"

/* Each side has made a writer and a reader: connect them to the other's, through `socket`. Spins are off. */
static void exchange(int socket, struct tpr_writer *writer, struct tpr_reader *reader, uint64_t other) {
    struct note note;
    int fd;
    send_note(socket, 0, 0, tpr_writer_share(writer));
    send_note(socket, 0, 0, tpr_reader_share(reader));
    CHECK(receive_note(socket, &note, &fd) && tpr_reader_add(reader, fd, 0, other, 1, -1, NULL) == TPR_OK);
    CHECK(receive_note(socket, &note, &fd) && tpr_writer_attach(writer, other, fd, 0, -1, 1) == TPR_OK);
    send_note(socket, 1, 0, -1); /* attached */
    CHECK(receive_note(socket, &note, NULL));
    no_spin(&writer->spin);
    no_spin(&reader->spin);
}

/* Wait for messages, and take all there are. */
static void receive_round(struct tpr_reader *reader) {
    struct tpr_view view;
    tpr_reader_begin(reader);
    while (!tpr_reader_peek(reader, &view)) {
        int code = tpr_reader_wait(reader, within_limit());
        CHECK(code == TPR_OK || code == TPR_NOTIFIED); /* a timeout is a lost wake-up */
        tpr_reader_begin(reader);
    }
    do
        CHECK(tpr_reader_consume(reader, &view));
    while (tpr_reader_peek(reader, &view));
    tpr_reader_end(reader);
}

#endif
