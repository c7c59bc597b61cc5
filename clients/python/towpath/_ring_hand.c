/* SPDX-License-Identifier: Apache-2.0
 *
 * towpath._ring.Reader.hand_on: messages go from the rings to C code, without a Python object made for any.
 *
 * The thread that waits is woken by the publisher itself, and what is to be done is done there and then, under the GIL, which
 * an idle event loop does not want. The cursor is moved when a message was taken, one by one: who is killed meanwhile leaves
 * one message that may have been taken, and comes again.
 */
#include "_ring_module.h"
#include "_ring_taker.h"

/* Messages handed over before others may have the GIL. */
#define TP_HAND_COUNT_MAX 64

/* Hand over what there is. Returns how many were; `is_left` says that the taker left one, or wants to be looked after. */
static int hand_pass(ReaderObject *self, const struct tp_taker *taker, int *is_left) {
    struct tpr_view view;
    uint8_t bytes[TP_TAKER_BYTES_MAX];
    int count = 0;
    tpr_reader_begin(&self->ring);
    while (count < TP_HAND_COUNT_MAX && tpr_reader_peek(&self->ring, &view)) {
        struct tpr_unread unread;
        /* Each time: this message may have been published after the one before was taken, and what it needs looked at. */
        if (!taker->begin(taker->self)) {
            *is_left = 1;
            break;
        }
        memcpy(bytes, view.payload, view.payload_bytes < taker->bytes_max ? view.payload_bytes : taker->bytes_max);
        tpr_reader_note_unread(&self->ring, &view, &unread);
        if (!tpr_reader_consume(&self->ring, &view))
            continue; /* overwritten while it was copied */
        if (!taker->take(taker->self, bytes, view.payload_bytes, view.headers_bytes)) {
            tpr_reader_unread(&self->ring, &view, &unread);
            *is_left = 1;
            break;
        }
        tpr_source_commit_(view.from);
        count++;
    }
    tpr_reader_end(&self->ring);
    return count;
}

PyObject *tp_reader_hand_on(ReaderObject *self, PyObject *capsule) {
    const struct tp_taker *taker = PyCapsule_GetPointer(capsule, TP_TAKER);
    if (!taker)
        return NULL;
    if (taker->bytes_max > TP_TAKER_BYTES_MAX) {
        PyErr_SetString(PyExc_ValueError, "the taker wants to see too much of each message");
        return NULL;
    }
    for (;;) {
        int is_left = 0;
        if (!tp_reader_usable(self))
            return NULL;
        if (self->ring.is_waiting) {
            PyErr_SetString(PyExc_RuntimeError, "another thread is waiting in this reader");
            return NULL;
        }
        if (self->notified != self->notified_seen) {
            self->notified_seen = self->notified;
            Py_RETURN_NONE;
        }
        int count = hand_pass(self, taker, &is_left);
        if (is_left)
            Py_RETURN_NONE;
        if (self->ring.has_news) {
            self->ring.has_news = 0;
            Py_RETURN_NONE;
        }
        if (count == TP_HAND_COUNT_MAX) {
            Py_BEGIN_ALLOW_THREADS /* to whoever wants the GIL */
            Py_END_ALLOW_THREADS
            continue;
        }
        /* Not in slices: this thread is not the one that Python looks for signals in. */
        uint64_t slice_ns = TPR_FOREVER;
        int code = tp_reader_sleep(self, &slice_ns, TPR_FOREVER);
        if (code < 0)
            return tp_raise(code);
    }
}
