/* SPDX-License-Identifier: Apache-2.0
 *
 * towpath._ring.QuickPublisher and QuickSubscription: what a publisher and a subscription of the blocking client do for one
 * message, without a line of Python, as long as there is nothing to it.
 *
 * They are bases of Python classes. Each call that has something to it (arguments, a ring that is full, an end, an error)
 * goes to the Python method of the same purpose, `_publish`, `_loan` or `_receive`, as if it had been called in the first
 * place: nothing was taken or published by then. So does publish() of a loan (_ring_loan.c) to its publisher's publish_loan.
 *
 * A subscription may be received from here while its reader is *plain*: nothing has happened, but for messages, since Python
 * looked at all that can happen to one. Python says so (Reader.is_plain); whatever tells the reader of anything takes it
 * back: add, remove, finish, revive, notify.
 */
#include "_ring_module.h"

#define TP_GLANCES 24 /* at the tails, under the GIL, before it is let go of: less than what that costs */

static PyTypeObject *publisher_type;
static PyObject *name_publish, *name_loan, *name_receive, *name_meet_readers, *name_extend, *name_popleft;

/* The method `name` of `self`, with the arguments of the call that came here. */
static PyObject *quick_pass_on(PyObject *self, PyObject *name, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames) {
    PyObject *method = PyObject_GetAttr(self, name);
    if (!method)
        return NULL;
    PyObject *result = PyObject_Vectorcall(method, args, (size_t)nargs, kwnames);
    Py_DECREF(method);
    return result;
}

/* ---- publishing ---- */

typedef struct {
    PyObject_HEAD
    WriterObject *writer;    /* NULL: none given yet */
    uint64_t loan_bytes_max; /* of the loans that are made here */
} QuickPublisher;

static PyObject *quick_set_writer(QuickPublisher *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs < 1 || nargs > 2 || !Py_IS_TYPE(args[0], tp_writer_type) || self->writer) {
        PyErr_SetString(PyExc_TypeError, "a Writer is wanted, once");
        return NULL;
    }
    if (nargs == 2 && tp_uint64(args[1], "loan_bytes_max", &self->loan_bytes_max) < 0)
        return NULL;
    self->writer = (WriterObject *)Py_NewRef(args[0]);
    Py_RETURN_NONE;
}

int tp_is_quick_publisher(PyObject *publisher, const WriterObject *writer) {
    return PyObject_TypeCheck(publisher, publisher_type) && ((QuickPublisher *)publisher)->writer == writer;
}

PyObject *tp_quick_published(PyObject *publisher, uint64_t seq) {
    if (((QuickPublisher *)publisher)->writer->ring.readers_changed) {
        PyObject *met = PyObject_CallMethodNoArgs(publisher, name_meet_readers);
        if (!met)
            return NULL;
        Py_DECREF(met);
    }
    return PyLong_FromUnsignedLongLong(seq);
}

static PyObject *quick_publish(QuickPublisher *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    uint64_t seq;
    if (nargs != 1 || kwnames || !self->writer || !PyBytes_CheckExact(args[0]) ||
        !(seq = tp_writer_publish_plain(self->writer, args[0])))
        return quick_pass_on((PyObject *)self, name_publish, args, nargs, kwnames);
    return tp_quick_published((PyObject *)self, seq);
}

static PyObject *quick_loan(QuickPublisher *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    if (nargs == 1 && !kwnames && self->writer && PyLong_CheckExact(args[0])) {
        int overflow = 0;
        long long nbytes = PyLong_AsLongLongAndOverflow(args[0], &overflow);
        if (nbytes >= 0 && (uint64_t)nbytes <= self->loan_bytes_max) {
            PyObject *loan = tp_writer_quick_loan(self->writer, (uint64_t)nbytes, (PyObject *)self);
            if (loan || PyErr_Occurred())
                return loan;
        }
    }
    return quick_pass_on((PyObject *)self, name_loan, args, nargs, kwnames);
}

static void quick_publisher_dealloc(QuickPublisher *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->writer);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- receiving ---- */

typedef struct {
    PyObject_HEAD
    ReaderObject *reader; /* NULL: none given yet */
    PyObject *buffer;     /* a deque: what was taken and not handed out */
    PyObject *popleft;    /* of the buffer; all three are given once, and stay */
} QuickSubscription;

static PyObject *quick_set_reader(QuickSubscription *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || !Py_IS_TYPE(args[0], tp_reader_type) || self->reader) {
        PyErr_SetString(PyExc_TypeError, "a Reader and a deque are wanted, once");
        return NULL;
    }
    if (!(self->popleft = PyObject_GetAttr(args[1], name_popleft)))
        return NULL;
    self->reader = (ReaderObject *)Py_NewRef(args[0]);
    self->buffer = Py_NewRef(args[1]);
    Py_RETURN_NONE;
}

/* The first of `count` messages; the others go into the buffer. Takes them over. */
static PyObject *quick_hand_out(QuickSubscription *self, PyObject **message, Py_ssize_t count) {
    if (count == 1)
        return message[0];
    PyObject *others = tp_message_list(message + 1, count - 1), *done = NULL;
    if (others) {
        done = PyObject_CallMethodOneArg(self->buffer, name_extend, others);
        Py_DECREF(others);
    }
    if (!done) {
        Py_DECREF(message[0]);
        return NULL;
    }
    Py_DECREF(done);
    return message[0];
}

/* The next message of a plain reader. NULL without an exception: there is none, or, if it is plain no more, ask Python. */
static PyObject *quick_take(QuickSubscription *self, int may_wait) {
    PyObject *message[TP_QUICK_COUNT];
    ReaderObject *reader = self->reader;
    uint64_t slice_ns = TP_SLICE_NS;
    for (;;) {
        if (!reader->is_open || tpr_is_forked_(&reader->ring.memory))
            reader->is_plain = 0;
        if (!reader->is_plain)
            return NULL;
        Py_ssize_t count = tp_reader_take(reader, TP_QUICK_COUNT, TP_QUICK_BYTES, message);
        if (count)
            return count < 0 ? NULL : quick_hand_out(self, message, count);
        if (reader->ring.has_news || reader->notified != reader->notified_seen || reader->ring.is_waiting)
            reader->is_plain = 0;
        if (!may_wait || !reader->is_plain)
            return NULL;
        if (tpr_reader_glance(&reader->ring, TP_GLANCES))
            continue;
        if (tp_reader_sleep(reader, &slice_ns, TPR_FOREVER) < 0 || PyErr_CheckSignals() < 0)
            return NULL; /* what is wrong with sleeping Python finds as well */
    }
}

/* Is this how receive() may be called? The timeout is one at the most, and in seconds. */
static int quick_is_timeout(PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    Py_ssize_t keywords = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    if (nargs + keywords == 0)
        return 1;
    if (nargs + keywords > 1 ||
        (keywords && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(kwnames, 0), "timeout") != 0))
        return 0;
    if (args[0] == Py_None)
        return 1;
    if (PyFloat_CheckExact(args[0]))
        return PyFloat_AS_DOUBLE(args[0]) >= 0;
    int overflow = 0;
    return PyLong_CheckExact(args[0]) && (PyLong_AsLongAndOverflow(args[0], &overflow) >= 0 || overflow > 0);
}

static PyObject *quick_receive(QuickSubscription *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    if (self->reader && quick_is_timeout(args, nargs, kwnames)) {
        if (PyObject_Size(self->buffer) > 0)
            return PyObject_CallNoArgs(self->popleft);
        PyObject *message = quick_take(self, (nargs == 0 && !kwnames) || args[0] == Py_None);
        if (message || PyErr_Occurred())
            return message;
    }
    return quick_pass_on((PyObject *)self, name_receive, args, nargs, kwnames);
}

static PyObject *quick_take_one(QuickSubscription *self, PyObject *Py_UNUSED(ignored)) {
    PyObject *message = NULL;
    if (self->reader && PyObject_Size(self->buffer) > 0)
        return PyObject_CallNoArgs(self->popleft);
    if (self->reader && !(message = quick_take(self, 0)) && PyErr_Occurred())
        return NULL;
    return message ? message : Py_NewRef(Py_None);
}

static void quick_subscription_dealloc(QuickSubscription *self) {
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->reader);
    Py_XDECREF(self->buffer);
    Py_XDECREF(self->popleft);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- the types ---- */

static PyMethodDef publisher_methods[] = {
    {"_set_writer", TP_METHOD(quick_set_writer), METH_FASTCALL, "Publish here from now on, and loan so much at most."},
    {"loan", TP_METHOD(quick_loan), TP_KEYWORDS, "As documented at :class:`towpath.Publisher`."},
    {"publish", TP_METHOD(quick_publish), TP_KEYWORDS,
     "As documented at :class:`towpath.Publisher`."},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef subscription_methods[] = {
    {"_set_reader", TP_METHOD(quick_set_reader), METH_FASTCALL, "Receive from here from now on, after what is buffered."},
    {"_take_one", TP_METHOD(quick_take_one), METH_NOARGS, "The next message that is there; None: there is none."},
    {"receive", TP_METHOD(quick_receive), TP_KEYWORDS,
     "As documented at :class:`towpath.Subscription`."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot publisher_slots[] = {
    {Py_tp_doc, "What publishes single messages without a line of Python, where it can."},
    {Py_tp_dealloc, quick_publisher_dealloc},
    {Py_tp_methods, publisher_methods},
    {0, NULL},
};

static PyType_Slot subscription_slots[] = {
    {Py_tp_doc, "What receives single messages without a line of Python, where it can."},
    {Py_tp_dealloc, quick_subscription_dealloc},
    {Py_tp_methods, subscription_methods},
    {0, NULL},
};

static PyType_Spec publisher_spec = {"towpath._ring.QuickPublisher", sizeof(QuickPublisher), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, publisher_slots};
static PyType_Spec subscription_spec = {"towpath._ring.QuickSubscription", sizeof(QuickSubscription), 0,
                                        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, subscription_slots};

static PyTypeObject *quick_add_type(PyObject *module, PyType_Spec *spec, const char *name) {
    PyTypeObject *type = (PyTypeObject *)PyType_FromSpec(spec);
    if (type && PyModule_AddObjectRef(module, name, (PyObject *)type) < 0)
        Py_CLEAR(type);
    return type;
}

int tp_add_quick(PyObject *module) {
    if (!(name_publish = PyUnicode_InternFromString("_publish")) || !(name_loan = PyUnicode_InternFromString("_loan")) ||
        !(name_receive = PyUnicode_InternFromString("_receive")) ||
        !(name_meet_readers = PyUnicode_InternFromString("_meet_readers")) ||
        !(name_extend = PyUnicode_InternFromString("extend")) || !(name_popleft = PyUnicode_InternFromString("popleft")) ||
        !(publisher_type = quick_add_type(module, &publisher_spec, "QuickPublisher")))
        return -1;
    PyTypeObject *type = quick_add_type(module, &subscription_spec, "QuickSubscription");
    Py_XDECREF(type);
    return type ? 0 : -1;
}
