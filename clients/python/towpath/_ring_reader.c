/* SPDX-License-Identifier: Apache-2.0
 *
 * towpath._ring.Reader: the reader's half of the ring for Python.
 *
 * All state is touched under the GIL. receive() releases it to spin and sleep; meanwhile other threads may do
 * everything but sleep or arm as well: rings they remove stay mapped until the sleeper is back, close() too.
 */
#include "_ring_module.h"

PyTypeObject *tp_reader_type;

int tp_reader_usable(ReaderObject *self) {
    if (!self->is_open) {
        PyErr_SetString(PyExc_ValueError, "the reader is closed");
        return 0;
    }
    if (tpr_is_forked_(&self->ring.memory)) {
        tp_raise(TPR_E_FORKED);
        return 0;
    }
    return 1;
}

static PyObject *reader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"reader", "slots", "held_max", NULL};
    PyObject *reader_value, *slots_value = NULL, *held_value = NULL;
    uint64_t reader;
    uint32_t slots = TPR_SLOTS_DEFAULT, held_max = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O$O:Reader", names, &reader_value, &slots_value, &held_value) ||
        tp_uint64(reader_value, "reader", &reader) < 0 || (slots_value && tp_uint32(slots_value, "slots", &slots) < 0) ||
        (held_value && tp_uint32(held_value, "held_max", &held_max) < 0))
        return NULL;
    ReaderObject *self = (ReaderObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    int code = tpr_reader_open_holding(&self->ring, reader, slots, held_max);
    if (code != TPR_OK) {
        tp_raise(code);
        Py_DECREF(self);
        return NULL;
    }
    self->is_made = self->is_open = 1;
    return (PyObject *)self;
}

/* Reader.recover(fd). */
static PyObject *reader_recover(PyTypeObject *type, PyObject *value) {
    int fd;
    if (tp_int(value, "fd", &fd) < 0)
        return NULL;
    ReaderObject *self = (ReaderObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    int code = tpr_reader_recover(&self->ring, fd);
    if (code != TPR_OK) {
        tp_raise(code);
        Py_DECREF(self);
        return NULL;
    }
    self->is_made = self->is_open = 1;
    return (PyObject *)self;
}

/* Close for real; not while a thread sleeps in it. */
static void reader_release(ReaderObject *self) {
    self->is_open = 0;
    if (!self->is_made || self->ring.is_waiting)
        return;
    self->is_made = 0;
    for (uint32_t i = 0; i < self->ring.count; i++)
        Py_DECREF((PyObject *)self->ring.source[i]->tag);
    tpr_reader_close(&self->ring);
}

static void reader_dealloc(ReaderObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    reader_release(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *reader_close(ReaderObject *self, PyObject *Py_UNUSED(ignored)) {
    reader_release(self);
    if (self->is_made)
        tpr_reader_notify(&self->ring); /* the sleeper finishes it */
    Py_RETURN_NONE;
}

static PyObject *reader_share(ReaderObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!tp_reader_usable(self))
        return NULL;
    int fd = tpr_reader_share(&self->ring);
    return fd < 0 ? tp_raise(fd) : PyLong_FromLong(fd);
}

static PyObject *reader_keep(ReaderObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!tp_reader_usable(self))
        return NULL;
    int fd = tpr_reader_keep(&self->ring);
    return fd < 0 ? tp_raise(fd) : PyLong_FromLong(fd);
}

/* ---- sources ---- */

static PyObject *reader_add(ReaderObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"ring_fd", "slot", "source", "channel", "start", "doorbell_fd", "announced"};
    static const struct tp_signature signature = {"add", names, 5, 7};
    PyObject *value[7];
    enum tpr_start start;
    uint64_t source, announced = TPR_TAIL_UNKNOWN;
    uint32_t slot;
    int fd, doorbell_fd = -1;
    if (!tp_reader_usable(self) || tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        tp_int(value[0], "ring_fd", &fd) < 0 || tp_uint32(value[1], "slot", &slot) < 0 ||
        tp_uint64(value[2], "source", &source) < 0 || tp_start(value[4], &start) < 0 ||
        (value[5] && tp_int(value[5], "doorbell_fd", &doorbell_fd) < 0) ||
        (value[6] && value[6] != Py_None && tp_uint64(value[6], "announced", &announced) < 0))
        return NULL;
    self->is_plain = 0;
    if (!PyUnicode_Check(value[3])) {
        PyErr_Format(PyExc_TypeError, "channel must be a str, not %.100s", Py_TYPE(value[3])->tp_name);
        return NULL;
    }
    int code = tpr_reader_add_from(&self->ring, fd, slot, source, start, announced, doorbell_fd, value[3]);
    if (code != TPR_OK)
        return tp_raise(code);
    Py_INCREF(value[3]);
    Py_RETURN_NONE;
}

static PyObject *reader_exclude(ReaderObject *self, PyObject *value) {
    uint64_t origin;
    if (!tp_reader_usable(self) || tp_uint64(value, "origin_source", &origin) < 0)
        return NULL;
    int code = tpr_reader_exclude(&self->ring, origin);
    if (code == TPR_E_LIMIT)
        return PyErr_Format(PyExc_ValueError, "a reader leaves out %u origins at most", TPR_EXCLUDES_MAX);
    if (code != TPR_OK)
        return tp_raise(code);
    Py_RETURN_NONE;
}

static PyObject *reader_set_doorbell(ReaderObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"source", "doorbell_fd"};
    static const struct tp_signature signature = {"set_doorbell", names, 2, 2};
    PyObject *value[2];
    uint64_t source;
    int fd;
    if (!tp_reader_usable(self) || tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        tp_uint64(value[0], "source", &source) < 0 || tp_int(value[1], "doorbell_fd", &fd) < 0)
        return NULL;
    int code = tpr_reader_set_doorbell(&self->ring, source, fd);
    if (code != TPR_OK)
        return tp_raise(code);
    Py_RETURN_NONE;
}

static PyObject *reader_pass_over(ReaderObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"source", "seq"};
    static const struct tp_signature signature = {"pass_over", names, 2, 2};
    PyObject *value[2];
    uint64_t source, seq;
    if (!tp_reader_usable(self) || tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        tp_uint64(value[0], "source", &source) < 0 || tp_uint64(value[1], "seq", &seq) < 0)
        return NULL;
    return PyBool_FromLong(tpr_reader_pass_over(&self->ring, source, seq));
}

static PyObject *reader_finish(ReaderObject *self, PyObject *value) {
    uint64_t source;
    if (!tp_reader_usable(self) || tp_uint64(value, "source", &source) < 0)
        return NULL;
    self->is_plain = 0;
    tpr_reader_finish(&self->ring, source);
    Py_RETURN_NONE;
}

static PyObject *reader_revive(ReaderObject *self, PyObject *value) {
    uint64_t source;
    if (!tp_reader_usable(self) || tp_uint64(value, "source", &source) < 0)
        return NULL;
    self->is_plain = 0;
    return PyBool_FromLong(tpr_reader_revive(&self->ring, source));
}

static PyObject *reader_expect(ReaderObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"source", "seq"};
    static const struct tp_signature signature = {"expect", names, 2, 2};
    PyObject *value[2];
    uint64_t source, seq;
    if (!tp_reader_usable(self) || tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        tp_uint64(value[0], "source", &source) < 0 || tp_uint64(value[1], "seq", &seq) < 0)
        return NULL;
    tpr_reader_expect(&self->ring, source, seq);
    Py_RETURN_NONE;
}

static PyObject *reader_remove(ReaderObject *self, PyObject *value) {
    uint64_t source;
    void *tag = NULL;
    if (!tp_reader_usable(self) || tp_uint64(value, "source", &source) < 0)
        return NULL;
    self->is_plain = 0;
    if (tpr_reader_remove(&self->ring, source, &tag))
        Py_DECREF((PyObject *)tag);
    Py_RETURN_NONE;
}

static PyObject *reader_sources(ReaderObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!tp_reader_usable(self))
        return NULL;
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < self->ring.count; i++) {
        PyObject *source = PyLong_FromUnsignedLongLong(self->ring.source[i]->source);
        if (!source || PyList_Append(list, source) < 0)
            Py_CLEAR(list);
        Py_XDECREF(source);
    }
    return list;
}

/* What happened to a source, as its caller wants to hear it. */
static PyObject *reader_news_of(const struct tpr_source *source) {
    if (source->state == TPR_SOURCE_VIOLATED)
        return Py_BuildValue("Ks", (unsigned long long)source->source, source->violation);
    return PyLong_FromUnsignedLongLong(source->source);
}

/* The sources in `state` that were not told yet. */
static PyObject *reader_take(ReaderObject *self, enum tpr_source_state state) {
    if (!tp_reader_usable(self))
        return NULL;
    tpr_reader_look(&self->ring); /* the caller need not receive for a source to become drained */
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < self->ring.count; i++) {
        struct tpr_source *source = self->ring.source[i];
        if (source->state != state || source->is_told)
            continue;
        PyObject *item = reader_news_of(source);
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        else
            source->is_told = 1;
        Py_XDECREF(item);
    }
    return list;
}

static PyObject *reader_take_drained(ReaderObject *self, PyObject *Py_UNUSED(ignored)) {
    return reader_take(self, TPR_SOURCE_DRAINED);
}

static PyObject *reader_take_detached(ReaderObject *self, PyObject *Py_UNUSED(ignored)) {
    return reader_take(self, TPR_SOURCE_DETACHED);
}

static PyObject *reader_take_violations(ReaderObject *self, PyObject *Py_UNUSED(ignored)) {
    return reader_take(self, TPR_SOURCE_VIOLATED);
}

/* ---- receiving ---- */

/* A message of what the view shows: loaned, and held, or copied. */
static PyObject *reader_message(ReaderObject *self, const struct tpr_view *view) {
    int is_full = 1;
    PyObject *payload = view->is_loan && self->ring.held_max ? tp_held_view(self, view, &is_full) : NULL;
    if (payload)
        return tp_message_of_loan(view, payload);
    return is_full ? tp_message_of(view) : NULL;
}

Py_ssize_t tp_reader_take(ReaderObject *self, int64_t count_max, int64_t bytes_max, PyObject **message) {
    Py_ssize_t count = 0;
    int64_t bytes = 0;
    struct tpr_view view;
    tpr_reader_begin(&self->ring);
    while (count < count_max && tpr_reader_peek(&self->ring, &view)) {
        /* What is held is not copied; but it is memory that its publisher cannot use. */
        int is_held = view.is_loan && self->ring.held_count < self->ring.held_max;
        int64_t more = (int64_t)view.headers_bytes + (is_held ? TP_HELD_LEAST + view.payload_bytes / TP_HELD_SHARE : view.payload_bytes);
        if ((bytes + more > bytes_max && count) || !(message[count] = reader_message(self, &view)))
            break;
        if (tpr_reader_consume(&self->ring, &view)) {
            bytes += more;
            count++;
        } else {
            Py_DECREF(message[count]); /* overwritten while it was copied */
        }
    }
    tpr_reader_end(&self->ring);
    if (PyErr_Occurred()) {
        if (!count)
            return -1;
        PyErr_Clear(); /* out of memory after some: those are consumed and must be handed over */
    }
    return count;
}

PyObject *tp_message_list(PyObject **message, Py_ssize_t count) {
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (list)
            PyList_SET_ITEM(list, i, message[i]);
        else
            Py_DECREF(message[i]);
    }
    return list;
}

/* One pass, as a list, empty when there is none. NULL with an exception set: nothing was taken (but where memory fails even
 * for the list, it was). */
static PyObject *reader_pass(ReaderObject *self, int64_t count_max, int64_t bytes_max) {
    PyObject *message[TP_RECEIVE_COUNT_MAX];
    Py_ssize_t count = tp_reader_take(self, count_max > TP_RECEIVE_COUNT_MAX ? TP_RECEIVE_COUNT_MAX : count_max, bytes_max, message);
    return count < 0 ? NULL : tp_message_list(message, count);
}

int tp_reader_sleep(ReaderObject *self, uint64_t *slice_ns, uint64_t deadline_ns) {
    uint64_t slice_end_ns = *slice_ns == TPR_FOREVER ? TPR_FOREVER : tpr_monotonic_ns() + *slice_ns;
    if (*slice_ns < TP_SLICE_MAX_NS)
        *slice_ns *= 2;
    int saved, code = tpr_reader_wait_begin(&self->ring);
    if (code != TPR_OK)
        return code;
    /* Every notify comes from under the GIL: whatever was said up to now, the caller has looked at. */
    self->ring.wake_seen = self->ring.wake_word;
    self->ring.is_waiting = 1;
    Py_BEGIN_ALLOW_THREADS
    code = tpr_reader_wait_sleep(&self->ring, slice_end_ns < deadline_ns ? slice_end_ns : deadline_ns);
    saved = errno;
    Py_END_ALLOW_THREADS
    self->ring.is_waiting = 0;
    tpr_reader_reap(&self->ring);
    if (!self->is_open)
        reader_release(self);
    errno = saved;
    return code == TPR_TIMEOUT && slice_end_ns < deadline_ns ? TPR_OK : code;
}

static PyObject *reader_receive(ReaderObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"count_max", "bytes_max", "timeout_ns"};
    static const struct tp_signature signature = {"receive", names, 3, 3};
    PyObject *value[3];
    int64_t count_max, bytes_max, timeout_ns;
    if (tp_arguments(&signature, args, nargs, kwnames, value) < 0 || tp_int64(value[0], "count_max", &count_max) < 0 ||
        tp_int64(value[1], "bytes_max", &bytes_max) < 0 || tp_int64(value[2], "timeout_ns", &timeout_ns) < 0)
        return NULL;
    if (count_max < 1 || bytes_max < 1) {
        PyErr_SetString(PyExc_ValueError, "count_max and bytes_max must be at least 1");
        return NULL;
    }
    uint64_t deadline_ns = 0, slice_ns = TP_SLICE_NS;
    for (;;) {
        if (!tp_reader_usable(self))
            return NULL;
        PyObject *list = reader_pass(self, count_max, bytes_max);
        if (!list || PyList_GET_SIZE(list) || timeout_ns == 0)
            return list;
        if (self->ring.has_news || self->notified != self->notified_seen) {
            self->ring.has_news = 0;
            self->notified_seen = self->notified;
            return list;
        }
        if (self->ring.is_waiting) {
            Py_DECREF(list);
            PyErr_SetString(PyExc_RuntimeError, "another thread is waiting in this reader");
            return NULL;
        }
        if (!deadline_ns)
            deadline_ns = tpr_deadline_ns(timeout_ns);
        int code = tp_reader_sleep(self, &slice_ns, deadline_ns);
        if (code < 0 || PyErr_CheckSignals() < 0) {
            Py_DECREF(list);
            return code < 0 ? tp_raise(code) : NULL;
        }
        /* A ring that laps us all the time always has something, and a pass may still find nothing: look at the clock. */
        if (code == TPR_TIMEOUT || !self->is_open || tpr_monotonic_ns() >= deadline_ns)
            return list;
        Py_DECREF(list);
    }
}

static PyObject *reader_notify(ReaderObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!tp_reader_usable(self))
        return NULL;
    self->is_plain = 0;
    self->notified++;
    tpr_reader_notify(&self->ring);
    Py_RETURN_NONE;
}

static int reader_may_arm(ReaderObject *self) {
    if (!tp_reader_usable(self))
        return 0;
    if (self->ring.is_waiting) {
        PyErr_SetString(PyExc_RuntimeError, "another thread is waiting in this reader");
        return 0;
    }
    return 1;
}

static PyObject *reader_arm(ReaderObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!reader_may_arm(self))
        return NULL;
    return PyBool_FromLong(tpr_reader_arm(&self->ring));
}

static PyObject *reader_disarm(ReaderObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!reader_may_arm(self))
        return NULL;
    tpr_reader_disarm(&self->ring);
    Py_RETURN_NONE;
}

/* ---- the type ---- */

static PyObject *reader_get_reader(ReaderObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->ring.reader);
}

static PyObject *reader_get_pending_bytes(ReaderObject *self, void *Py_UNUSED(closure)) {
    if (!tp_reader_usable(self))
        return NULL;
    return PyLong_FromUnsignedLongLong(tpr_reader_pending_bytes(&self->ring));
}

static PyObject *reader_get_held(ReaderObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(self->ring.held_count);
}

static PyObject *reader_get_loans_copied(ReaderObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->ring.loans_copied);
}

static PyObject *reader_get_is_plain(ReaderObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(self->is_plain);
}

static int reader_set_is_plain(ReaderObject *self, PyObject *value, void *Py_UNUSED(closure)) {
    int is_plain = value ? PyObject_IsTrue(value) : 0;
    if (is_plain < 0)
        return -1;
    self->is_plain = is_plain;
    return 0;
}

static PyObject *reader_get_lost(ReaderObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->ring.lost);
}

static PyGetSetDef reader_getters[] = {
    {"reader", (getter)reader_get_reader, NULL, "The subscription this control page belongs to.", NULL},
    {"is_plain", (getter)reader_get_is_plain, (setter)reader_set_is_plain,
     "Nothing but messages has come since this was set (_ring_quick.c).", NULL},
    {"held", (getter)reader_get_held, NULL, "Loaned messages that somebody looks at.", NULL},
    {"loans_copied", (getter)reader_get_loans_copied, NULL, "Loaned messages copied as held_max were held.", NULL},
    {"lost", (getter)reader_get_lost, NULL, "Messages missed so far, of all sources.", NULL},
    {"pending_bytes", (getter)reader_get_pending_bytes, NULL, "Bytes published and not received yet.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef reader_methods[] = {
    {"recover", TP_METHOD(reader_recover), METH_O | METH_CLASS, "Go on with the control page of a dead reader."},
    {"keep", TP_METHOD(reader_keep), METH_NOARGS, "A new O_RDWR descriptor, for recover(); owned by the caller."},
    {"share", TP_METHOD(reader_share), METH_NOARGS, "A new O_RDONLY descriptor, owned by the caller."},
    {"add", TP_METHOD(reader_add), TP_KEYWORDS, "Read this ring too."},
    {"finish", TP_METHOD(reader_finish), METH_O, "The source's writer is gone: read on to its tail."},
    {"revive", TP_METHOD(reader_revive), METH_O, "Undo finish(); False when it has been read to its end."},
    {"expect", TP_METHOD(reader_expect), TP_KEYWORDS, "What lies between this seq and the next message is missed."},
    {"remove", TP_METHOD(reader_remove), METH_O, "Let go of a source."},
    {"sources", TP_METHOD(reader_sources), METH_NOARGS, "The sources being read."},
    {"pass_over", TP_METHOD(reader_pass_over), TP_KEYWORDS, "A dead pump had published these already."},
    {"exclude", TP_METHOD(reader_exclude), METH_O, "Pass over messages that this source published first."},
    {"set_doorbell", TP_METHOD(reader_set_doorbell), TP_KEYWORDS, "Ring this when the source's writer waits for room."},
    {"take_detached", TP_METHOD(reader_take_detached), METH_NOARGS,
     "Sources whose writer waits for us no more; each is told once."},
    {"take_drained", TP_METHOD(reader_take_drained), METH_NOARGS, "Sources read to their end; each is told once."},
    {"take_violations", TP_METHOD(reader_take_violations), METH_NOARGS,
     "Sources whose ring breaks the rules, and which; each is told once."},
    {"receive", TP_METHOD(reader_receive), TP_KEYWORDS, "The next messages."},
    {"hand_on", TP_METHOD(tp_reader_hand_on), METH_O, "Hand messages to C code."},
    {"set_load", TP_METHOD(tp_reader_set_load), METH_O, "Tell the writers how busy this reader is."},
    {"notify", TP_METHOD(reader_notify), METH_NOARGS, "End the receive() or hand_on() of another thread, or the next one."},
    {"arm", TP_METHOD(reader_arm), METH_NOARGS, "Have the doorbell rung at the next message; True: there is one now."},
    {"disarm", TP_METHOD(reader_disarm), METH_NOARGS, "No doorbell any more."},
    {"close", TP_METHOD(reader_close), METH_NOARGS, "Let go of all sources and release everything."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot reader_slots[] = {
    {Py_tp_doc, "One subscription's reader of any number of rings."},
    {Py_tp_new, reader_new},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, reader_methods},
    {Py_tp_getset, reader_getters},
    {0, NULL},
};

static PyType_Spec reader_spec = {"towpath._ring.Reader", sizeof(ReaderObject), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, reader_slots};

int tp_add_reader(PyObject *module) {
    tp_reader_type = (PyTypeObject *)PyType_FromSpec(&reader_spec);
    return tp_reader_type ? PyModule_AddObjectRef(module, "Reader", (PyObject *)tp_reader_type) : -1;
}
