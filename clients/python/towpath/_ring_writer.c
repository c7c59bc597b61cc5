/* SPDX-License-Identifier: Apache-2.0
 *
 * towpath._ring.Writer: the writer's half of the ring for Python. (Publishing: _ring_writer_publish.c.)
 *
 * All state is touched under the GIL. wait_room() releases it to sleep; meanwhile other threads may do everything but
 * sleep as well: what they unmap is kept until the sleeper is back, close() too.
 */
#include "_ring_module.h"

PyTypeObject *tp_writer_type;

int tp_writer_usable(WriterObject *self) {
    if (!self->is_open) {
        PyErr_SetString(PyExc_ValueError, "the writer is closed");
        return 0;
    }
    if (tpr_is_forked_(&self->ring.memory)) {
        tp_raise(TPR_E_FORKED);
        return 0;
    }
    return 1;
}

/* "block" or "drop"; -1 with an exception set. */
static int writer_overflow(PyObject *value, uint32_t *out) {
    if (value && PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, "block") == 0)
        *out = TPR_OVERFLOW_BLOCK;
    else if (value && PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, "drop") == 0)
        *out = TPR_OVERFLOW_DROP;
    else if (value) {
        PyErr_Format(PyExc_ValueError, "overflow must be 'block' or 'drop', not %R", value);
        return -1;
    }
    return 0;
}

static PyObject *writer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"source", "ring_bytes", "overflow", "history", "slab_bytes", NULL};
    PyObject *source_value, *bytes_value, *overflow_value = NULL, *history_value = NULL, *slab_value = NULL;
    uint64_t source, ring_bytes, slab_bytes = 0;
    uint32_t overflow = TPR_OVERFLOW_BLOCK, history = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OOO:Writer", names, &source_value, &bytes_value,
                                     &overflow_value, &history_value, &slab_value) ||
        tp_uint64(source_value, "source", &source) < 0 || tp_uint64(bytes_value, "ring_bytes", &ring_bytes) < 0 ||
        writer_overflow(overflow_value, &overflow) < 0 ||
        (history_value && tp_uint32(history_value, "history", &history) < 0) ||
        (slab_value && tp_uint64(slab_value, "slab_bytes", &slab_bytes) < 0))
        return NULL;
    WriterObject *self = (WriterObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    int code = tpr_writer_open_loaning(&self->ring, source, ring_bytes, overflow, history, slab_bytes);
    if (code != TPR_OK) {
        tp_raise(code);
        Py_DECREF(self);
        return NULL;
    }
    self->is_made = self->is_open = 1;
    return (PyObject *)self;
}

/* Writer.recover(fd). */
static PyObject *writer_recover(PyTypeObject *type, PyObject *value) {
    int fd;
    if (tp_int(value, "fd", &fd) < 0)
        return NULL;
    WriterObject *self = (WriterObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    int code = tpr_writer_recover(&self->ring, fd);
    if (code != TPR_OK) {
        tp_raise(code);
        Py_DECREF(self);
        return NULL;
    }
    self->is_made = self->is_open = 1;
    return (PyObject *)self;
}

/* Close for real; not while a thread sleeps in it, or somebody looks at its memory. */
static void writer_release(WriterObject *self) {
    self->is_open = 0;
    if (self->is_made && !self->ring.is_waiting && !self->exports) {
        self->is_made = 0;
        tpr_writer_close(&self->ring);
    }
}

void tp_writer_finish(WriterObject *self) {
    if (!self->is_open)
        writer_release(self);
}

static void writer_dealloc(WriterObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    writer_release(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *writer_close(WriterObject *self, PyObject *Py_UNUSED(ignored)) {
    writer_release(self);
    if (self->is_made)
        tpr_writer_notify(&self->ring); /* the sleeper finishes it */
    Py_RETURN_NONE;
}

static PyObject *writer_share(WriterObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!tp_writer_usable(self))
        return NULL;
    int fd = tpr_writer_share(&self->ring);
    return fd < 0 ? tp_raise(fd) : PyLong_FromLong(fd);
}

static PyObject *writer_keep(WriterObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!tp_writer_usable(self))
        return NULL;
    int fd = tpr_writer_keep(&self->ring);
    return fd < 0 ? tp_raise(fd) : PyLong_FromLong(fd);
}

static PyObject *writer_last_origin(WriterObject *self, PyObject *Py_UNUSED(ignored)) {
    struct tpr_origin origin;
    if (!tp_writer_usable(self))
        return NULL;
    if (!tpr_writer_last_origin(&self->ring, &origin))
        Py_RETURN_NONE;
    return Py_BuildValue("KK", (unsigned long long)origin.source, (unsigned long long)origin.seq);
}

/* ---- readers ---- */

static PyObject *writer_set_generation_table(WriterObject *self, PyObject *const *args, Py_ssize_t nargs,
                                             PyObject *kwnames) {
    static const char *const names[] = {"fd", "index"};
    static const struct tp_signature signature = {"set_generation_table", names, 2, 2};
    PyObject *value[2];
    uint32_t index;
    int fd;
    if (!tp_writer_usable(self) || tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        tp_int(value[0], "fd", &fd) < 0 || tp_uint32(value[1], "index", &index) < 0)
        return NULL;
    int code = tpr_writer_set_table(&self->ring, fd, index);
    if (code != TPR_OK)
        return tp_raise(code);
    Py_RETURN_NONE;
}

static PyObject *writer_attach(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"reader", "control_fd", "slot", "doorbell_fd", "start"};
    static const struct tp_signature signature = {"attach", names, 5, 5};
    PyObject *value[5];
    uint64_t reader;
    uint32_t slot;
    enum tpr_start start;
    int control_fd, doorbell_fd;
    if (!tp_writer_usable(self) || tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        tp_uint64(value[0], "reader", &reader) < 0 || tp_int(value[1], "control_fd", &control_fd) < 0 ||
        tp_uint32(value[2], "slot", &slot) < 0 || tp_int(value[3], "doorbell_fd", &doorbell_fd) < 0 ||
        tp_start(value[4], &start) < 0)
        return NULL;
    if (start == TPR_START_CURSOR) {
        PyErr_SetString(PyExc_ValueError, "start must be 'tail', 'start' or 'history': a cursor that is set says so itself");
        return NULL;
    }
    int code = tpr_writer_attach(&self->ring, reader, control_fd, slot, doorbell_fd, start);
    if (code != TPR_OK)
        return tp_raise(code);
    Py_RETURN_NONE;
}

static PyObject *writer_detach(WriterObject *self, PyObject *value) {
    uint64_t reader;
    if (!tp_writer_usable(self) || tp_uint64(value, "reader", &reader) < 0)
        return NULL;
    return PyBool_FromLong(tpr_writer_detach(&self->ring, reader));
}

static PyObject *writer_part(WriterObject *self, PyObject *value) {
    uint64_t reader;
    if (!tp_writer_usable(self) || tp_uint64(value, "reader", &reader) < 0)
        return NULL;
    return PyBool_FromLong(tpr_writer_part(&self->ring, reader));
}

static PyObject *writer_install(WriterObject *self, PyObject *value) {
    uint64_t generation;
    if (!tp_writer_usable(self) || tp_uint64(value, "generation", &generation) < 0)
        return NULL;
    tpr_writer_install(&self->ring, generation);
    Py_RETURN_NONE;
}

static PyObject *writer_list(WriterObject *self, int violators_only) {
    if (!tp_writer_usable(self))
        return NULL;
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < self->ring.peer_count; i++) {
        if (self->ring.peer[i].is_parted || (violators_only && !self->ring.peer[i].is_violator))
            continue;
        PyObject *reader = PyLong_FromUnsignedLongLong(self->ring.peer[i].reader);
        if (!reader || PyList_Append(list, reader) < 0)
            Py_CLEAR(list);
        Py_XDECREF(reader);
    }
    return list;
}

static PyObject *writer_readers(WriterObject *self, PyObject *Py_UNUSED(ignored)) {
    return writer_list(self, 0);
}

static PyObject *writer_violators(WriterObject *self, PyObject *Py_UNUSED(ignored)) {
    return writer_list(self, 1);
}

static PyObject *writer_slowest_reader(WriterObject *self, PyObject *Py_UNUSED(ignored)) {
    uint64_t reader;
    if (!tp_writer_usable(self))
        return NULL;
    if (!tpr_writer_slowest(&self->ring, &reader))
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(reader);
}

static PyObject *writer_drained(WriterObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!tp_writer_usable(self))
        return NULL;
    return PyBool_FromLong(tpr_writer_is_drained(&self->ring));
}

/* ---- waiting ---- */

static PyObject *writer_notify(WriterObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!tp_writer_usable(self))
        return NULL;
    self->notified++;
    tpr_writer_notify(&self->ring);
    Py_RETURN_NONE;
}

int tp_writer_slept(WriterObject *self, int code, int is_slice) {
    int saved = errno;
    self->ring.is_waiting = 0;
    tpr_writer_reap(&self->ring);
    if (!self->is_open)
        writer_release(self);
    errno = saved;
    return code == TPR_TIMEOUT && is_slice ? TPR_OK : code;
}

/* One sleep of wait_room(), the GIL released. */
static int writer_sleep(WriterObject *self, const struct tpr_room_wait *wait, uint64_t deadline_ns) {
    uint64_t slice_end_ns = tpr_monotonic_ns() + TP_SLICE_NS;
    int code, saved;
    self->ring.is_waiting = 1;
    Py_BEGIN_ALLOW_THREADS
    code = tpr_room_wait_sleep(wait, slice_end_ns < deadline_ns ? slice_end_ns : deadline_ns);
    saved = errno;
    Py_END_ALLOW_THREADS
    errno = saved;
    return tp_writer_slept(self, code, slice_end_ns < deadline_ns);
}

static PyObject *writer_wait_room(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"nbytes", "timeout_ns"};
    static const struct tp_signature signature = {"wait_room", names, 2, 2};
    PyObject *value[2];
    struct tpr_room_wait wait;
    uint64_t bytes;
    int64_t timeout_ns;
    if (tp_arguments(&signature, args, nargs, kwnames, value) < 0 || tp_uint64(value[0], "nbytes", &bytes) < 0 ||
        tp_int64(value[1], "timeout_ns", &timeout_ns) < 0)
        return NULL;
    uint64_t deadline_ns = tpr_deadline_ns(timeout_ns);
    for (;;) {
        if (!tp_writer_usable(self))
            return NULL;
        int code = tpr_writer_wait_begin(&self->ring, bytes, &wait);
        if (code == TPR_OK)
            return PyLong_FromLong(1);
        if (code == TPR_NEEDS_READERS)
            return PyLong_FromLong(-1);
        if (code != TPR_FULL)
            return tp_raise(code);
        if (timeout_ns == 0)
            return PyLong_FromLong(0);
        if (self->ring.is_waiting) {
            PyErr_SetString(PyExc_RuntimeError, "another thread is waiting for room in this writer");
            return NULL;
        }
        if (self->notified != self->notified_seen) {
            self->notified_seen = self->notified;
            return PyLong_FromLong(0);
        }
        code = writer_sleep(self, &wait, deadline_ns);
        if (code < 0)
            return tp_raise(code);
        if (PyErr_CheckSignals() < 0)
            return NULL;
        if (code == TPR_TIMEOUT || !self->is_open)
            return PyLong_FromLong(0);
    }
}

static PyObject *writer_arm_room(WriterObject *self, PyObject *value) {
    uint64_t bytes;
    if (!tp_writer_usable(self) || tp_uint64(value, "nbytes", &bytes) < 0)
        return NULL;
    if (self->ring.is_waiting) {
        PyErr_SetString(PyExc_RuntimeError, "another thread is waiting for room in this writer");
        return NULL;
    }
    int code = tpr_writer_arm_room(&self->ring, bytes);
    return code < 0 ? tp_raise(code) : PyBool_FromLong(code);
}

static PyObject *writer_disarm_room(WriterObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!tp_writer_usable(self))
        return NULL;
    if (!self->ring.is_waiting)
        tpr_writer_disarm_room(&self->ring);
    Py_RETURN_NONE;
}

static PyObject *writer_stalled_reader(WriterObject *self, PyObject *value) {
    uint64_t stall_ns, reader;
    if (!tp_writer_usable(self) || tp_uint64(value, "stall_ns", &stall_ns) < 0)
        return NULL;
    if (!tpr_writer_stalled(&self->ring, stall_ns, &reader))
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(reader);
}

/* ---- the type ---- */

static PyObject *writer_get_source(WriterObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->ring.source);
}

static PyObject *writer_get_capacity(WriterObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->ring.capacity);
}

static PyObject *writer_get_message_bytes_max(WriterObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(tpr_message_bytes_max(self->ring.capacity));
}

static PyObject *writer_get_slab_bytes(WriterObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->ring.slab_bytes);
}

static PyObject *writer_get_tail(WriterObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->ring.tail);
}

static PyObject *writer_get_last_seq(WriterObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->ring.last_seq);
}

static PyObject *writer_get_generation(WriterObject *self, void *Py_UNUSED(closure)) {
    return self->ring.is_installed ? PyLong_FromUnsignedLongLong(self->ring.generation) : PyLong_FromLong(-1);
}

static PyObject *writer_get_readers_changed(WriterObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong((long)self->ring.readers_changed);
}

static PyObject *writer_get_overflow(WriterObject *self, void *Py_UNUSED(closure)) {
    return PyUnicode_FromString(self->ring.overflow == TPR_OVERFLOW_DROP ? "drop" : "block");
}

static PyObject *writer_get_history(WriterObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(self->ring.history);
}

static PyGetSetDef writer_getters[] = {
    {"source", (getter)writer_get_source, NULL, "The source this ring belongs to.", NULL},
    {"capacity", (getter)writer_get_capacity, NULL, "Bytes of data the ring holds.", NULL},
    {"message_bytes_max", (getter)writer_get_message_bytes_max, NULL, "Most bytes of headers and payload.", NULL},
    {"slab_bytes", (getter)writer_get_slab_bytes, NULL, "Bytes that can be loaned; 0: none.", NULL},
    {"overflow", (getter)writer_get_overflow, NULL, "'block' or 'drop'.", NULL},
    {"history", (getter)writer_get_history, NULL, "How many messages a late reader may ask for.", NULL},
    {"tail", (getter)writer_get_tail, NULL, "Bytes ever published.", NULL},
    {"last_seq", (getter)writer_get_last_seq, NULL, "seq of the newest message; 0 before the first.", NULL},
    {"generation", (getter)writer_get_generation, NULL, "The generation installed; -1 for none.", NULL},
    {"readers_changed", (getter)writer_get_readers_changed, NULL, "Readers are coming: attach them soon.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef writer_methods[] = {
    {"recover", TP_METHOD(writer_recover), METH_O | METH_CLASS, "Go on writing the ring of a dead writer."},
    {"keep", TP_METHOD(writer_keep), METH_NOARGS, "A new O_RDWR descriptor, for recover(); owned by the caller."},
    {"last_origin", TP_METHOD(writer_last_origin), METH_NOARGS, "(source, seq) of the newest message's origin, or None."},
    {"share", TP_METHOD(writer_share), METH_NOARGS, "A new O_RDONLY descriptor, owned by the caller."},
    {"set_generation_table", TP_METHOD(writer_set_generation_table), TP_KEYWORDS, "Watch a cell of the core's table."},
    {"attach", TP_METHOD(writer_attach), TP_KEYWORDS, "Wait for, and wake, this reader from now on."},
    {"detach", TP_METHOD(writer_detach), METH_O, "Wait for this reader no more; False when it was not attached."},
    {"part", TP_METHOD(writer_part), METH_O, "Wait for this reader no more; what it holds it holds."},
    {"try_loan", TP_METHOD(tp_writer_try_loan), TP_KEYWORDS, "A piece of the slab to fill; 0: full, -1: readers changed."},
    {"try_publish_loan", TP_METHOD(tp_writer_try_publish_loan), TP_KEYWORDS, "Publish what was loaned: its seq, 0, -1."},
    {"wait_loan", TP_METHOD(tp_writer_wait_loan), TP_KEYWORDS, "Wait until so much can be loaned: 1, 0 (time over), -1."},
    {"arm_loan", TP_METHOD(tp_writer_arm_loan), METH_O, "Have the doorbell rung when so much may be loaned; True: look now."},
    {"disarm_loan", TP_METHOD(tp_writer_disarm_loan), METH_NOARGS, "No doorbell any more."},
    {"readers", TP_METHOD(writer_readers), METH_NOARGS, "The readers attached."},
    {"violators", TP_METHOD(writer_violators), METH_NOARGS, "Attached readers that are ignored: impossible cursor."},
    {"slowest_reader", TP_METHOD(writer_slowest_reader), METH_NOARGS, "The reader furthest behind, or None."},
    {"drained", TP_METHOD(writer_drained), METH_NOARGS, "Has every reader taken everything?"},
    {"install", TP_METHOD(writer_install), METH_O, "All readers of this generation are attached."},
    {"try_publish", TP_METHOD(tp_writer_try_publish), TP_KEYWORDS, "Publish one: its seq, 0 (full), -1 (readers changed)."},
    {"try_publish_many", TP_METHOD(tp_writer_try_publish_many), TP_KEYWORDS,
     "Publish a sequence: how many were taken, 0 (full), -1 (readers changed)."},
    {"try_publish_from", TP_METHOD(tp_writer_try_publish_from), TP_KEYWORDS,
     "Publish one with its origin: its seq, 0 (full), -1 (readers changed)."},
    {"wait_room", TP_METHOD(writer_wait_room), TP_KEYWORDS, "1: room; 0: timeout or notify(); -1: readers changed."},
    {"arm_room", TP_METHOD(writer_arm_room), METH_O,
     "Have the doorbell rung when nbytes may fit; True: they do now, or readers changed."},
    {"disarm_room", TP_METHOD(writer_disarm_room), METH_NOARGS, "No doorbell for room any more."},
    {"stalled_reader", TP_METHOD(writer_stalled_reader), METH_O,
     "The reader that has held the ring full for so long without moving, or None."},
    {"load", TP_METHOD(tp_writer_load), METH_O, "How busy a reader says it is; -1 while it does not read."},
    {"notify", TP_METHOD(writer_notify), METH_NOARGS, "End the wait_room() of another thread, or the next one."},
    {"close", TP_METHOD(writer_close), METH_NOARGS, "Mark the ring closed, wake its readers, release it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot writer_slots[] = {
    {Py_tp_doc, "The one writer of a ring."}, {Py_tp_new, writer_new},         {Py_tp_dealloc, writer_dealloc},
    {Py_tp_methods, writer_methods},          {Py_tp_getset, writer_getters}, {0, NULL},
};

static PyType_Spec writer_spec = {"towpath._ring.Writer", sizeof(WriterObject), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, writer_slots};

int tp_add_writer(PyObject *module) {
    tp_writer_type = (PyTypeObject *)PyType_FromSpec(&writer_spec);
    return tp_writer_type ? PyModule_AddObjectRef(module, "Writer", (PyObject *)tp_writer_type) : -1;
}
