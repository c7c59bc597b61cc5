/* SPDX-License-Identifier: Apache-2.0
 *
 * The extension `towpath._ring`: the module itself, its errors, the checks of received descriptors, and the core's
 * generation table. Message, Writer and Reader have files of their own. Documentation for users: _ring.pyi.
 */
#include "_ring_module.h"

PyObject *tp_ring_error;
PyObject *tp_message_too_large;

PyObject *tp_raise(int code) {
    switch (code) {
    case TPR_E_SYSTEM: return PyErr_SetFromErrno(PyExc_OSError);
    case TPR_E_FORKED: PyErr_SetString(PyExc_RuntimeError, tpr_error_text(code)); return NULL;
    case TPR_E_CAPACITY:
    case TPR_E_OVERFLOW:
    case TPR_E_HISTORY:
    case TPR_E_SLAB:
    case TPR_E_HELD:
    case TPR_E_SLOTS: PyErr_SetString(PyExc_ValueError, tpr_error_text(code)); return NULL;
    case TPR_E_TOO_LARGE: PyErr_SetString(tp_message_too_large, tpr_error_text(code)); return NULL;
    default: PyErr_SetString(tp_ring_error, tpr_error_text(code)); return NULL;
    }
}

int tp_arguments(const struct tp_signature *signature, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                 PyObject **out) {
    Py_ssize_t keywords = kwnames ? PyTuple_GET_SIZE(kwnames) : 0;
    if (nargs > signature->count) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %zd arguments (%zd given)", signature->function,
                     signature->count, nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < signature->count; i++)
        out[i] = i < nargs ? args[i] : NULL;
    for (Py_ssize_t k = 0; k < keywords; k++) {
        PyObject *keyword = PyTuple_GET_ITEM(kwnames, k);
        Py_ssize_t i = 0;
        while (i < signature->count && PyUnicode_CompareWithASCIIString(keyword, signature->name[i]) != 0)
            i++;
        if (i == signature->count || out[i]) {
            PyErr_Format(PyExc_TypeError, "%s() got %s argument '%U'", signature->function,
                         i == signature->count ? "an unexpected keyword" : "multiple values for", keyword);
            return -1;
        }
        out[i] = args[nargs + k];
    }
    for (Py_ssize_t i = 0; i < signature->required; i++) {
        if (!out[i]) {
            PyErr_Format(PyExc_TypeError, "%s() missing required argument '%s'", signature->function,
                         signature->name[i]);
            return -1;
        }
    }
    return 0;
}

int tp_uint64(PyObject *value, const char *name, uint64_t *out) {
    if (!PyLong_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be an int, not %.100s", name, Py_TYPE(value)->tp_name);
        return -1;
    }
    *out = PyLong_AsUnsignedLongLong(value);
    if (*out == UINT64_MAX && PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "%s must be from 0 to 18446744073709551615", name);
        return -1;
    }
    return 0;
}

int tp_uint32(PyObject *value, const char *name, uint32_t *out) {
    uint64_t wide;
    if (tp_uint64(value, name, &wide) < 0)
        return -1;
    if (wide > UINT32_MAX) {
        PyErr_Format(PyExc_ValueError, "%s must be from 0 to 4294967295", name);
        return -1;
    }
    *out = (uint32_t)wide;
    return 0;
}

int tp_int64(PyObject *value, const char *name, int64_t *out) {
    if (!PyLong_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be an int, not %.100s", name, Py_TYPE(value)->tp_name);
        return -1;
    }
    *out = PyLong_AsLongLong(value);
    if (*out == -1 && PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "%s must fit 64 bits", name);
        return -1;
    }
    return 0;
}

int tp_int(PyObject *value, const char *name, int *out) {
    int64_t wide;
    if (tp_int64(value, name, &wide) < 0)
        return -1;
    if (wide < INT_MIN || wide > INT_MAX) {
        PyErr_Format(PyExc_ValueError, "%s must fit 32 bits", name);
        return -1;
    }
    *out = (int)wide;
    return 0;
}

int tp_start(PyObject *value, enum tpr_start *out) {
    static const char *const name[] = {"tail", "start", "history", "cursor"};
    static const enum tpr_start start[] = {TPR_START_TAIL, TPR_START_BEGIN, TPR_START_HISTORY, TPR_START_CURSOR};
    if (PyBool_Check(value)) {
        *out = value == Py_True ? TPR_START_BEGIN : TPR_START_TAIL;
        return 0;
    }
    if (!PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "start must be a str, not %.100s", Py_TYPE(value)->tp_name);
        return -1;
    }
    for (size_t i = 0; i < sizeof start / sizeof *start; i++) {
        if (PyUnicode_CompareWithASCIIString(value, name[i]) == 0) {
            *out = start[i];
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "start must be 'tail', 'start', 'history' or 'cursor', not %R", value);
    return -1;
}

/* ---- GenerationTable ---- */

typedef struct {
    PyObject_HEAD
    struct tpr_table table;
    int is_open;
} TableObject;

static int table_usable(TableObject *self) {
    if (!self->is_open)
        PyErr_SetString(PyExc_ValueError, "the generation table is closed");
    return self->is_open;
}

static PyObject *table_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"cells", NULL};
    PyObject *value;
    uint32_t cells;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:GenerationTable", names, &value) ||
        tp_uint32(value, "cells", &cells) < 0)
        return NULL;
    if (cells < 1 || cells > TPR_CELLS_MAX)
        return PyErr_Format(PyExc_ValueError, "cells must be from 1 to %u", TPR_CELLS_MAX);
    TableObject *self = (TableObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    int code = tpr_table_open(&self->table, cells);
    if (code != TPR_OK) {
        tp_raise(code);
        Py_DECREF(self);
        return NULL;
    }
    self->is_open = 1;
    return (PyObject *)self;
}

static void table_dealloc(TableObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (self->is_open)
        tpr_table_close(&self->table);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *table_share(TableObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!table_usable(self))
        return NULL;
    int fd = tpr_table_share(&self->table);
    return fd < 0 ? tp_raise(fd) : PyLong_FromLong(fd);
}

static PyObject *table_cell(TableObject *self, PyObject *value,
                            int (*what)(struct tpr_table *, uint32_t, uint64_t *)) {
    uint32_t index;
    uint64_t generation = 0;
    if (!table_usable(self) || tp_uint32(value, "index", &index) < 0)
        return NULL;
    int code = what(&self->table, index, &generation);
    if (code == TPR_E_CELL) {
        PyErr_Format(PyExc_IndexError, "index must be below %u", self->table.cells);
        return NULL;
    }
    return code == TPR_OK ? PyLong_FromUnsignedLongLong(generation) : tp_raise(code);
}

static int table_read(struct tpr_table *table, uint32_t index, uint64_t *generation) {
    return tpr_table_get(table, index, generation);
}

static PyObject *table_get(TableObject *self, PyObject *index) {
    return table_cell(self, index, table_read);
}

static PyObject *table_bump(TableObject *self, PyObject *index) {
    return table_cell(self, index, tpr_table_bump);
}

static PyObject *table_close(TableObject *self, PyObject *Py_UNUSED(ignored)) {
    if (self->is_open) {
        self->is_open = 0;
        tpr_table_close(&self->table);
    }
    Py_RETURN_NONE;
}

static PyMethodDef table_methods[] = {
    {"share", TP_METHOD(table_share), METH_NOARGS, "A new O_RDONLY descriptor, owned by the caller."},
    {"get", TP_METHOD(table_get), METH_O, "The generation in cell `index`."},
    {"bump", TP_METHOD(table_bump), METH_O, "Count cell `index` up by one, wake its writers, return the new value."},
    {"close", TP_METHOD(table_close), METH_NOARGS, "Release the table; those who mapped it keep it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot table_slots[] = {
    {Py_tp_doc, "The core's generation table: one cell per channel."},
    {Py_tp_new, table_new},
    {Py_tp_dealloc, table_dealloc},
    {Py_tp_methods, table_methods},
    {0, NULL},
};

static PyType_Spec table_spec = {"towpath._ring.GenerationTable", sizeof(TableObject), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, table_slots};

int tp_add_table(PyObject *module) {
    PyObject *type = PyType_FromSpec(&table_spec);
    int result = type ? PyModule_AddObjectRef(module, "GenerationTable", type) : -1;
    Py_XDECREF(type);
    return result;
}

/* ---- the module ---- */

static PyObject *check_ring(PyObject *Py_UNUSED(module), PyObject *value) {
    struct tpr_ring_info info;
    int fd;
    if (tp_int(value, "fd", &fd) < 0)
        return NULL;
    int code = tpr_ring_check(fd, &info);
    if (code != TPR_OK)
        return tp_raise(code);
    return Py_BuildValue("KK", (unsigned long long)info.source, (unsigned long long)info.capacity);
}

static PyObject *check_control(PyObject *Py_UNUSED(module), PyObject *value) {
    struct tpr_control_info info;
    int fd;
    if (tp_int(value, "fd", &fd) < 0)
        return NULL;
    int code = tpr_control_check(fd, &info);
    if (code != TPR_OK)
        return tp_raise(code);
    return Py_BuildValue("KI", (unsigned long long)info.reader, (unsigned int)info.slots);
}

static PyMethodDef module_methods[] = {
    {"check_ring", check_ring, METH_O, "Check a ring's descriptor without mapping it: (source, capacity)."},
    {"check_control", check_control, METH_O, "Check a control page's descriptor without mapping it: (reader, slots)."},
    {"pump", TP_METHOD(tp_pump), TP_KEYWORDS,
     "Move messages from a reader's sources to a writer: how many, -1 (full), -2 (readers changed)."},
    {"set_headers_decoder", TP_METHOD(tp_set_headers_decoder), METH_FASTCALL,
     "Set what Message.headers calls with headers_raw, and what it gives when there are none."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module_definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "towpath._ring",
    .m_doc = "Towpath's shared-memory ring (clients/c/towpath_ring.h) for Python.",
    .m_size = -1,
    .m_methods = module_methods,
};

PyMODINIT_FUNC PyInit__ring(void) {
    PyObject *module = PyModule_Create(&module_definition);
    if (!module)
        return NULL;
    tp_ring_error = PyErr_NewExceptionWithDoc(
        "towpath._ring.RingError",
        "A descriptor, or what lies in it, breaks the rules of the ring. The message says which.", NULL, NULL);
    tp_message_too_large = PyErr_NewExceptionWithDoc("towpath._ring.MessageTooLarge",
                                                     "Headers and payload together exceed the ring's largest message.",
                                                     PyExc_ValueError, NULL);
    if (!tp_ring_error || !tp_message_too_large ||
        PyModule_AddObjectRef(module, "RingError", tp_ring_error) < 0 ||
        PyModule_AddObjectRef(module, "MessageTooLarge", tp_message_too_large) < 0 || tp_add_message(module) < 0 ||
        tp_add_writer(module) < 0 || tp_add_reader(module) < 0 || tp_add_table(module) < 0 ||
        tp_add_parcel(module) < 0 || tp_add_parcel_read(module) < 0 || tp_add_loan(module) < 0 ||
        tp_add_value(module) < 0 || tp_add_quick(module) < 0 || tp_add_lock(module) < 0 ||
        tp_add_lane(module) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
