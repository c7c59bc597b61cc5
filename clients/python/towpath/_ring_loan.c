/* SPDX-License-Identifier: Apache-2.0
 *
 * towpath._ring.Loan: a piece of a writer's slab, to be filled; and Held: a loaned message that a reader looks at, behind the
 * memoryview that is its payload. (clients/c/towpath_ring_loan.h, towpath_ring_hold.h.)
 *
 * Both are buffers. Memory stays mapped for as long as somebody has one: a Loan counts its exports, and its writer, when it is
 * closed, waits for them; a Held has its share in the mapping, and keeps its Reader. All is touched under the GIL.
 *
 * Both are made for each message, so dead ones are kept for reuse, TP_FREE_LOANS_MAX of each. A loan refers to its publisher, and
 * a program may have that refer to the loan: it is tracked by the garbage collector. A Held is not; what it refers to
 * never refers back.
 */
#include "_ring_module.h"

#define TP_FREE_LOANS_MAX 64

static PyTypeObject *loan_type, *held_type;
static PyObject *loans_out, *name_publish_loan;

/* ---- Loan ---- */

typedef struct {
    PyObject_HEAD
    WriterObject *writer;
    PyObject *publisher; /* whose publish_loan() publish() is; NULL: none */
    struct tpr_loan loan;
    Py_ssize_t exports;
    int is_out; /* neither published nor given back */
} LoanObject;

static LoanObject *free_loan[TP_FREE_LOANS_MAX];
static int free_loans;

/* The Python object of a loan that was just had; on failure it is given back. */
static PyObject *loan_new(WriterObject *writer, const struct tpr_loan *loan, PyObject *publisher) {
    LoanObject *self;
    if (free_loans) {
        self = free_loan[--free_loans];
        PyObject_Init((PyObject *)self, loan_type);
    } else if (!(self = PyObject_GC_New(LoanObject, loan_type))) {
        tpr_writer_return_loan(&writer->ring, loan);
        return NULL;
    }
    self->writer = (WriterObject *)Py_NewRef(writer);
    self->publisher = Py_XNewRef(publisher);
    self->loan = *loan;
    self->exports = 0;
    self->is_out = 1;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static int loan_usable(LoanObject *self) {
    if (!self->is_out)
        PyErr_SetString(PyExc_BufferError, "the loan was published, or given back: its bytes are not this program's any more");
    return self->is_out && tp_writer_usable(self->writer);
}

static int loan_getbuffer(LoanObject *self, Py_buffer *view, int flags) {
    view->obj = NULL;
    if (!loan_usable(self) || PyBuffer_FillInfo(view, (PyObject *)self, self->loan.data, (Py_ssize_t)self->loan.bytes, 0, flags) < 0)
        return -1;
    self->exports++;
    self->writer->exports++;
    return 0;
}

static void loan_releasebuffer(LoanObject *self, Py_buffer *Py_UNUSED(view)) {
    self->exports--;
    if (--self->writer->exports == 0)
        tp_writer_finish(self->writer);
}

/* 0 with an exception set while somebody can still write to it. */
static int loan_unexported(LoanObject *self) {
    if (self->exports)
        PyErr_Format(PyExc_BufferError,
                     "%zd views of the loan exist; let go of them first (del the array, release() the memoryview)",
                     self->exports);
    return !self->exports;
}

static PyObject *loan_release(LoanObject *self, PyObject *Py_UNUSED(ignored)) {
    if (self->is_out) {
        if (!loan_unexported(self))
            return NULL;
        self->is_out = 0;
        if (self->writer->is_made)
            tpr_writer_return_loan(&self->writer->ring, &self->loan);
    }
    Py_RETURN_NONE;
}

static void loan_dealloc(LoanObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->is_out && self->writer->is_made) /* no view exists: each would keep us */
        tpr_writer_return_loan(&self->writer->ring, &self->loan);
    Py_DECREF(self->writer);
    Py_XDECREF(self->publisher);
    if (free_loans < TP_FREE_LOANS_MAX)
        free_loan[free_loans++] = self;
    else
        PyObject_GC_Del(self);
    Py_DECREF(type);
}

static int loan_traverse(LoanObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->publisher);
    return 0;
}

static int loan_clear(LoanObject *self) {
    Py_CLEAR(self->publisher);
    return 0;
}

#define TP_PUBLISH_KEYWORDS_MAX 8

/* publisher.publish_loan(self, **keywords). */
static PyObject *loan_pass_on(LoanObject *self, PyObject *const *values, PyObject *kwnames) {
    PyObject *stack[2 + TP_PUBLISH_KEYWORDS_MAX] = {self->publisher, (PyObject *)self};
    Py_ssize_t keywords = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    if (keywords > TP_PUBLISH_KEYWORDS_MAX) {
        PyErr_Format(PyExc_TypeError, "publish() takes no %zd keyword arguments", keywords);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < keywords; i++)
        stack[2 + i] = values[i];
    return PyObject_VectorcallMethod(name_publish_loan, stack, 2, kwnames);
}

static PyObject *loan_publish(LoanObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    if (!self->publisher) {
        PyErr_SetString(PyExc_ValueError, "the loan has no publisher");
        return NULL;
    }
    if (nargs) {
        PyErr_Format(PyExc_TypeError, "publish() takes no positional arguments, but %zd were given", nargs);
        return NULL;
    }
    if (!kwnames && self->is_out && !self->exports && self->writer->is_open &&
        tp_is_quick_publisher(self->publisher, self->writer) &&
        tpr_writer_publish_loan(&self->writer->ring, NULL, 0, &self->loan) == TPR_OK) {
        self->is_out = 0;
        return tp_quick_published(self->publisher, self->writer->ring.last_seq);
    }
    return loan_pass_on(self, args, kwnames);
}

static PyObject *loan_enter(PyObject *self, PyObject *Py_UNUSED(ignored)) {
    return Py_NewRef(self);
}

static PyObject *loan_exit(LoanObject *self, PyObject *Py_UNUSED(args)) {
    return loan_release(self, NULL);
}

static Py_ssize_t loan_length(LoanObject *self) {
    return (Py_ssize_t)self->loan.bytes;
}

static PyObject *loan_subscript(PyObject *self, PyObject *key) {
    PyObject *view = PyMemoryView_FromObject(self);
    PyObject *item = view ? PyObject_GetItem(view, key) : NULL;
    Py_XDECREF(view);
    return item;
}

static int loan_ass_subscript(PyObject *self, PyObject *key, PyObject *value) {
    PyObject *view = PyMemoryView_FromObject(self);
    int result = -1;
    if (view)
        result = value ? PyObject_SetItem(view, key, value) : PyObject_DelItem(view, key);
    Py_XDECREF(view);
    return result;
}

static PyObject *loan_get_nbytes(LoanObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->loan.bytes);
}

static PyObject *loan_get_is_out(LoanObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(self->is_out);
}

static PyGetSetDef loan_getters[] = {
    {"nbytes", (getter)loan_get_nbytes, NULL, "How many bytes it has.", NULL},
    {"is_out", (getter)loan_get_is_out, NULL, "Whether it was neither published nor given back.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef loan_members[] = {
    {"publisher", T_OBJECT_EX, offsetof(LoanObject, publisher), 0, "Through which publish() publishes it."},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef loan_methods[] = {
    {"publish", TP_METHOD(loan_publish), TP_KEYWORDS, "As documented at :class:`towpath.loans.Loan`."},
    {"release", TP_METHOD(loan_release), METH_NOARGS, "Give it back unpublished. More than once is fine."},
    {"__enter__", TP_METHOD(loan_enter), METH_NOARGS, NULL},
    {"__exit__", TP_METHOD(loan_exit), METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot loan_slots[] = {
    {Py_tp_doc, "A piece of a writer's shared memory, to be filled and published without a copy."},
    {Py_tp_dealloc, loan_dealloc},
    {Py_tp_traverse, loan_traverse},
    {Py_tp_clear, loan_clear},
    {Py_tp_members, loan_members},
    {Py_tp_methods, loan_methods},
    {Py_tp_getset, loan_getters},
    {Py_mp_length, loan_length},
    {Py_mp_subscript, loan_subscript},
    {Py_mp_ass_subscript, loan_ass_subscript},
    {Py_bf_getbuffer, loan_getbuffer},
    {Py_bf_releasebuffer, loan_releasebuffer},
    {0, NULL},
};

static PyType_Spec loan_spec = {"towpath._ring.Loan", sizeof(LoanObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
                                    Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                loan_slots};

/* ---- Writer's methods ---- */

/* What a code other than TPR_OK becomes: 0 (full), -1 (readers changed), or an exception. */
static PyObject *loan_outcome(WriterObject *self, int code) {
    switch (code) {
    case TPR_FULL: return PyLong_FromLong(0);
    case TPR_NEEDS_READERS: return PyLong_FromLong(-1);
    case TPR_E_LOANS: PyErr_SetString(loans_out, tpr_error_text(code)); return NULL;
    case TPR_E_TOO_LARGE:
        return PyErr_Format(tp_message_too_large, "a loan exceeds %llu bytes",
                            (unsigned long long)(self->ring.slab_bytes < UINT32_MAX ? self->ring.slab_bytes : UINT32_MAX));
    default: return tp_raise(code);
    }
}

PyObject *tp_writer_try_loan(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"nbytes", "publisher"};
    static const struct tp_signature signature = {"try_loan", names, 1, 2};
    PyObject *value[2];
    uint64_t bytes;
    struct tpr_loan loan;
    if (!tp_writer_usable(self) || tp_arguments(&signature, args, nargs, kwnames, value) < 0 ||
        tp_uint64(value[0], "nbytes", &bytes) < 0)
        return NULL;
    int code = tpr_writer_loan(&self->ring, bytes, &loan);
    return code == TPR_OK ? loan_new(self, &loan, value[1]) : loan_outcome(self, code);
}

/* A nap, if it is not in vain, for what readers are about to let go of; the GIL is released. -1 with a signal's exception set. The
 * writer may be closed meanwhile. */
static int loan_nap(WriterObject *self, uint64_t deadline_ns) {
    struct tpr_room_wait nap;
    if (!tpr_writer_loan_nap_begin(&self->ring, &nap))
        return 0;
    self->ring.is_waiting = 1;
    Py_BEGIN_ALLOW_THREADS
    tpr_loan_nap(&nap, deadline_ns);
    Py_END_ALLOW_THREADS
    tp_writer_slept(self, TPR_OK, 0);
    return PyErr_CheckSignals();
}

PyObject *tp_writer_quick_loan(WriterObject *self, uint64_t bytes, PyObject *publisher) {
    struct tpr_loan loan;
    if (!self->is_open)
        return NULL;
    int code = tpr_writer_loan(&self->ring, bytes, &loan);
    if (code == TPR_FULL && !self->ring.is_waiting && loan_nap(self, TPR_FOREVER) == 0 && self->is_open)
        code = tpr_writer_loan(&self->ring, bytes, &loan);
    return code == TPR_OK ? loan_new(self, &loan, publisher) : NULL;
}

PyObject *tp_writer_try_publish_loan(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"loan", "headers"};
    static const struct tp_signature signature = {"try_publish_loan", names, 1, 2};
    PyObject *value[2];
    const char *headers = NULL;
    Py_ssize_t headers_bytes = 0;
    if (!tp_writer_usable(self) || tp_arguments(&signature, args, nargs, kwnames, value) < 0)
        return NULL;
    if (!Py_IS_TYPE(value[0], loan_type)) {
        PyErr_Format(PyExc_TypeError, "loan must be a Loan, not %.100s", Py_TYPE(value[0])->tp_name);
        return NULL;
    }
    LoanObject *loan = (LoanObject *)value[0];
    if (loan->writer != self) {
        PyErr_SetString(PyExc_ValueError, "the loan is another writer's");
        return NULL;
    }
    if (value[1] && value[1] != Py_None) {
        if (!PyBytes_Check(value[1])) {
            PyErr_Format(PyExc_TypeError, "headers must be bytes or None, not %.100s", Py_TYPE(value[1])->tp_name);
            return NULL;
        }
        headers = PyBytes_AS_STRING(value[1]);
        headers_bytes = PyBytes_GET_SIZE(value[1]);
    }
    if (!loan_usable(loan) || !loan_unexported(loan))
        return NULL;
    int code = tpr_writer_publish_loan(&self->ring, headers, (size_t)headers_bytes, &loan->loan);
    if (code == TPR_E_TOO_LARGE)
        return PyErr_Format(tp_message_too_large, "headers exceed %llu bytes; use a larger ring",
                            (unsigned long long)(tpr_message_bytes_max(self->ring.capacity) - TPR_PLACE_BYTES));
    if (code != TPR_OK)
        return loan_outcome(self, code);
    loan->is_out = 0;
    return PyLong_FromUnsignedLongLong(self->ring.last_seq);
}

PyObject *tp_writer_wait_loan(WriterObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"nbytes", "timeout_ns"};
    static const struct tp_signature signature = {"wait_loan", names, 2, 2};
    PyObject *value[2];
    struct tpr_loan_wait wait;
    uint64_t bytes;
    int64_t timeout_ns;
    if (tp_arguments(&signature, args, nargs, kwnames, value) < 0 || tp_uint64(value[0], "nbytes", &bytes) < 0 ||
        tp_int64(value[1], "timeout_ns", &timeout_ns) < 0)
        return NULL;
    uint64_t deadline_ns = tpr_deadline_ns(timeout_ns);
    for (;;) {
        if (!tp_writer_usable(self))
            return NULL;
        if (self->ring.is_waiting) {
            PyErr_SetString(PyExc_RuntimeError, "another thread is waiting for room in this writer");
            return NULL;
        }
        if (timeout_ns != 0 && (loan_nap(self, deadline_ns) < 0 || !tp_writer_usable(self)))
            return NULL;
        int code = tpr_writer_loan_wait_begin(&self->ring, bytes, &wait);
        if (code == TPR_OK)
            return PyLong_FromLong(1);
        if (code != TPR_FULL)
            return loan_outcome(self, code);
        if (timeout_ns == 0 || self->notified != self->notified_seen) {
            self->notified_seen = self->notified;
            tpr_writer_disarm_loan(&self->ring);
            return PyLong_FromLong(0);
        }
        uint64_t slice_end_ns = tpr_monotonic_ns() + TP_SLICE_NS;
        self->ring.is_waiting = 1;
        Py_BEGIN_ALLOW_THREADS
        code = tpr_loan_wait_sleep(&wait, slice_end_ns < deadline_ns ? slice_end_ns : deadline_ns);
        Py_END_ALLOW_THREADS
        code = tp_writer_slept(self, code, slice_end_ns < deadline_ns);
        if (code < 0)
            return tp_raise(code);
        if (PyErr_CheckSignals() < 0)
            return NULL;
        if (code == TPR_TIMEOUT || !self->is_open)
            return PyLong_FromLong(0);
    }
}

PyObject *tp_writer_arm_loan(WriterObject *self, PyObject *value) {
    uint64_t bytes;
    if (!tp_writer_usable(self) || tp_uint64(value, "nbytes", &bytes) < 0)
        return NULL;
    if (self->ring.is_waiting) {
        PyErr_SetString(PyExc_RuntimeError, "another thread is waiting for room in this writer");
        return NULL;
    }
    int code = tpr_writer_arm_loan(&self->ring, bytes);
    if (code < 0)
        return loan_outcome(self, code);
    return PyBool_FromLong(code != TPR_FULL);
}

PyObject *tp_writer_disarm_loan(WriterObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!tp_writer_usable(self))
        return NULL;
    if (!self->ring.is_waiting)
        tpr_writer_disarm_loan(&self->ring);
    Py_RETURN_NONE;
}

/* ---- Held ---- */

typedef struct {
    PyObject_HEAD
    ReaderObject *reader;
    struct tpr_hold hold;
} HeldObject;

static HeldObject *free_held[TP_FREE_LOANS_MAX];
static int free_helds;

static int held_getbuffer(HeldObject *self, Py_buffer *view, int flags) {
    view->obj = NULL;
    if (self->hold.forks != tpr_forks_) {
        PyErr_SetString(PyExc_BufferError, tpr_error_text(TPR_E_FORKED));
        return -1;
    }
    return PyBuffer_FillInfo(view, (PyObject *)self, (void *)(uintptr_t)self->hold.data, (Py_ssize_t)self->hold.bytes, 1, flags);
}

static void held_free(HeldObject *self) {
    if (free_helds < TP_FREE_LOANS_MAX)
        free_held[free_helds++] = self;
    else
        PyObject_Free(self);
}

static void held_dealloc(HeldObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    tpr_hold_release(&self->hold);
    Py_DECREF(self->reader);
    held_free(self);
    Py_DECREF(type);
}

static PyType_Slot held_slots[] = {
    {Py_tp_doc, "A loaned message that is being looked at."},
    {Py_tp_dealloc, held_dealloc},
    {Py_bf_getbuffer, held_getbuffer},
    {0, NULL},
};

static PyType_Spec held_spec = {"towpath._ring.Held", sizeof(HeldObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                held_slots};

PyObject *tp_held_view(ReaderObject *reader, const struct tpr_view *view, int *is_full) {
    *is_full = 0;
    HeldObject *held;
    if (free_helds)
        PyObject_Init((PyObject *)(held = free_held[--free_helds]), held_type);
    else if (!(held = PyObject_New(HeldObject, held_type)))
        return NULL;
    if (tpr_reader_hold(&reader->ring, view, &held->hold) != TPR_OK) {
        *is_full = 1;
        held_free(held);
        Py_DECREF(held_type);
        return NULL;
    }
    held->reader = (ReaderObject *)Py_NewRef(reader);
    PyObject *memory = PyMemoryView_FromObject((PyObject *)held);
    Py_DECREF(held);
    return memory;
}

int tp_add_loan(PyObject *module) {
    loan_type = (PyTypeObject *)PyType_FromSpec(&loan_spec);
    held_type = (PyTypeObject *)PyType_FromSpec(&held_spec);
    loans_out = PyErr_NewExceptionWithDoc("towpath._ring.LoansOut",
                                          "Nothing can be loaned, and waiting for readers cannot help.",
                                          PyExc_ValueError, NULL);
    name_publish_loan = PyUnicode_InternFromString("publish_loan");
    if (!loan_type || !held_type || !loans_out || !name_publish_loan || PyModule_AddObjectRef(module, "LoansOut", loans_out) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Loan", (PyObject *)loan_type);
}
