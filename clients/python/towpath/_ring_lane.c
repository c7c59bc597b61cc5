/* SPDX-License-Identifier: Apache-2.0
 *
 * LaneClient and LaneCore: the two ends of a lock lane (towpath_lane.h), for Python. Documentation for users: _ring.pyi.
 *
 * Everything is touched under the GIL but for the two waits: an answer's (the client's), which touches the page, `is_closed`
 * and its own copy of the spin, and the core's look for news, which touches pages.
 */
#include "_ring_module.h"

#include "towpath_lane.h"

#include <sys/epoll.h>

static PyTypeObject *core_type;

/* ---- the client's end ---- */

typedef struct {
    PyObject_HEAD
    struct tpr_memory memory;
    struct tpn_client lane;
} ClientObject;

static PyObject *client_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", NULL};
    int fd;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i:LaneClient", names, &fd))
        return NULL;
    ClientObject *self = (ClientObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->memory.fd = -1;
    int code = tpn_page_map(&self->memory, fd);
    if (code != TPR_OK) {
        Py_DECREF(self);
        return tp_raise(code);
    }
    close(self->memory.fd);
    self->memory.fd = -1;
    self->lane.page = (struct tpn_page *)self->memory.page;
    self->lane.tail = TPN_LOAD(&self->lane.page->tail);
    tpr_spin_init_(&self->lane.spin, TPN_SPIN_NS);
    return (PyObject *)self;
}

static void client_dealloc(ClientObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    tpr_memory_free_(&self->memory);
    type->tp_free(self);
    Py_DECREF(type);
}

static int client_is_open(const ClientObject *self) {
    return !TPN_LOOK(&self->lane.is_closed) && !tpr_is_forked_(&self->memory);
}

/* Wait for the answer to a cell; -1 with an exception set: what a signal's handler has raised. */
static int client_wait(ClientObject *self, uint64_t position) {
    uint64_t end_ns = tpr_monotonic_ns() + TPN_PATIENCE_NS;
    struct tpr_spin spin = self->lane.spin;
    int result;
    do {
        Py_BEGIN_ALLOW_THREADS
        result = tpn_wait(&self->lane, &spin, position, end_ns);
        Py_END_ALLOW_THREADS
        if (result == TPN_SLICE && PyErr_CheckSignals() < 0)
            result = -1;
    } while (result == TPN_SLICE && tpr_monotonic_ns() < end_ns);
    self->lane.spin = spin;
    return result;
}

/* ask(number, frames, asked) -> (token, since_ns); True: it was said, and is to be asked elsewhere; False: nothing was said */
static PyObject *client_ask(ClientObject *self, PyObject *const *args, Py_ssize_t nargs) {
    uint64_t number, frames, position;
    if (nargs != 3 || !PyBytes_Check(args[2]))
        return PyErr_Format(PyExc_TypeError, "ask takes two numbers and bytes");
    if (tp_uint64(args[0], "number", &number) < 0 || tp_uint64(args[1], "frames", &frames) < 0)
        return NULL;
    if (!client_is_open(self) || PyBytes_GET_SIZE(args[2]) > (Py_ssize_t)TPN_ASKED_MAX)
        Py_RETURN_FALSE;
    int said = tpn_say(&self->lane, TPN_ASK, number, frames, PyBytes_AS_STRING(args[2]),
                       (uint32_t)PyBytes_GET_SIZE(args[2]), &position);
    if (said == TPN_ASLEEP || said == TPN_FULL)
        Py_RETURN_FALSE;
    int result = said == TPN_OK ? client_wait(self, position) : TPN_SLICE;
    tpn_leave(&self->lane, position, result == TPN_OK);
    if (result < 0)
        return NULL;
    const struct tpn_answer *answer = &self->lane.page->answer[position % TPN_CELLS];
    if (result == TPN_OK && TPN_LOOK(&answer->result) == TPN_GRANTED)
        return Py_BuildValue("KK", (unsigned long long)TPN_LOOK(&answer->token),
                             (unsigned long long)TPN_LOOK(&answer->since_ns));
    Py_RETURN_TRUE;
}

/* give_back(number, frames) -> whether the core will see it */
static PyObject *client_give_back(ClientObject *self, PyObject *const *args, Py_ssize_t nargs) {
    uint64_t number, frames, position;
    if (nargs != 2)
        return PyErr_Format(PyExc_TypeError, "give_back takes two numbers");
    if (tp_uint64(args[0], "number", &number) < 0 || tp_uint64(args[1], "frames", &frames) < 0)
        return NULL;
    if (!client_is_open(self))
        Py_RETURN_FALSE;
    return PyBool_FromLong(tpn_say(&self->lane, TPN_GIVE_BACK, number, frames, NULL, 0, &position) == TPN_OK);
}

static PyObject *client_close(ClientObject *self, PyObject *Py_UNUSED(ignored)) {
    tpn_client_close(&self->lane);
    Py_RETURN_NONE;
}

static PyMethodDef client_methods[] = {
    {"ask", TP_METHOD(client_ask), METH_FASTCALL, NULL},
    {"give_back", TP_METHOD(client_give_back), METH_FASTCALL, NULL},
    {"close", (PyCFunction)client_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot client_slots[] = {
    {Py_tp_new, client_new}, {Py_tp_dealloc, client_dealloc}, {Py_tp_methods, client_methods}, {0, NULL}};
static PyType_Spec client_spec = {"towpath._ring.LaneClient", sizeof(ClientObject), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, client_slots};

/* ---- the core's end ---- */

typedef struct {
    PyObject_HEAD
    struct tpr_memory memory;
    struct tpn_core lane;
} CoreObject;

static PyObject *core_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":LaneCore", names))
        return NULL;
    CoreObject *self = (CoreObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->memory.fd = -1;
    int code = tpn_page_make(&self->memory);
    if (code != TPR_OK) {
        Py_DECREF(self);
        return tp_raise(code);
    }
    self->lane.page = (struct tpn_page *)self->memory.page;
    return (PyObject *)self;
}

static void core_dealloc(CoreObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    tpr_memory_free_(&self->memory);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *core_share(CoreObject *self, PyObject *Py_UNUSED(ignored)) {
    if (self->memory.fd < 0)
        return PyErr_Format(PyExc_ValueError, "it was shared already");
    int fd = tpr_memory_keep_(&self->memory);
    if (fd < 0)
        return tp_raise(fd);
    close(self->memory.fd); /* the core may have very many */
    self->memory.fd = -1;
    return PyLong_FromLong(fd);
}

/* take(frames) -> (position, number, asked), asked being None where it gives back; or None: there is nothing */
static PyObject *core_take(CoreObject *self, PyObject *value) {
    uint64_t frames, position;
    struct tpn_cell cell;
    if (tp_uint64(value, "frames", &frames) < 0)
        return NULL;
    switch (tpn_take(&self->lane, frames, &cell, &position)) {
    case TPN_NONE: Py_RETURN_NONE;
    case TPN_BROKEN: return PyErr_Format(tp_ring_error, "the lock lane has what no client writes there");
    }
    PyObject *asked = cell.kind == TPN_ASK ? PyBytes_FromStringAndSize((const char *)cell.asked, cell.bytes)
                                           : Py_NewRef(Py_None);
    return asked ? Py_BuildValue("KKN", (unsigned long long)position, (unsigned long long)cell.number, asked) : NULL;
}

static PyObject *answer(CoreObject *self, uint32_t result, uint64_t position, uint64_t token, uint64_t since_ns) {
    if (tpn_answer(&self->lane, position, result, token, since_ns) != TPN_OK)
        return PyErr_Format(PyExc_ValueError, "nothing is to be answered there");
    Py_RETURN_NONE;
}

static PyObject *core_granted(CoreObject *self, PyObject *const *args, Py_ssize_t nargs) {
    uint64_t position, token, since_ns;
    if (nargs != 3)
        return PyErr_Format(PyExc_TypeError, "granted takes three numbers");
    if (tp_uint64(args[0], "position", &position) < 0 || tp_uint64(args[1], "token", &token) < 0 ||
        tp_uint64(args[2], "since_ns", &since_ns) < 0)
        return NULL;
    return answer(self, TPN_GRANTED, position, token, since_ns);
}

static PyObject *core_elsewhere(CoreObject *self, PyObject *value) {
    uint64_t position;
    return tp_uint64(value, "position", &position) < 0 ? NULL : answer(self, TPN_ELSEWHERE, position, 0, 0);
}

static PyObject *core_attend(CoreObject *self, PyObject *Py_UNUSED(ignored)) {
    tpn_attend(&self->lane);
    Py_RETURN_NONE;
}

static PyObject *core_rest(CoreObject *self, PyObject *Py_UNUSED(ignored)) {
    return PyBool_FromLong(tpn_rest(&self->lane));
}

static PyObject *core_has_news(CoreObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(tpn_has_news(&self->lane));
}

static PyMethodDef core_methods[] = {
    {"share", (PyCFunction)core_share, METH_NOARGS, NULL},
    {"take", (PyCFunction)core_take, METH_O, NULL},
    {"granted", TP_METHOD(core_granted), METH_FASTCALL, NULL},
    {"elsewhere", (PyCFunction)core_elsewhere, METH_O, NULL},
    {"attend", (PyCFunction)core_attend, METH_NOARGS, NULL},
    {"rest", (PyCFunction)core_rest, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef core_getset[] = {
    {"has_news", (getter)core_has_news, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot core_slots[] = {{Py_tp_new, core_new},
                                   {Py_tp_dealloc, core_dealloc},
                                   {Py_tp_methods, core_methods},
                                   {Py_tp_getset, core_getset},
                                   {0, NULL}};
static PyType_Spec core_spec = {"towpath._ring.LaneCore", sizeof(CoreObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, core_slots};

/* ---- the core's look ---- */

/* One spin of the core for all lanes; whoever runs on its core meanwhile is let in, as in all spins. */
static struct tpr_spin look_spin = {0, 0, 0, 0, 0};

/* Who gives back often asks anew at once; what comes together is carried out, and kept, together. */
#define GATHER_NS UINT64_C(8000)

/* 1: something was given back, and who did so may be about to ask; 2: something was asked. */
static int any_news(CoreObject *const *lane, Py_ssize_t count) {
    int found = 0;
    for (Py_ssize_t i = 0; i < count && found < 2; i++) {
        int kind = tpn_news(&lane[i]->lane);
        found = kind > found ? kind : found;
    }
    return found;
}

/* lanes_look(lanes, epoll, span_ns) -> 1: one has news; -1: the epoll has an event; 0: neither in that time */
static PyObject *lanes_look(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    CoreObject *lane[64];
    struct tpr_spinning_ spinning;
    struct epoll_event event;
    uint64_t span_ns;
    int epoll, found, has_gathered = 0;
    if (nargs != 3 || !PyTuple_Check(args[0]) || PyTuple_GET_SIZE(args[0]) > 64)
        return PyErr_Format(PyExc_TypeError, "lanes_look takes up to 64 lanes, a descriptor and a number");
    if (tp_int(args[1], "epoll", &epoll) < 0 || tp_uint64(args[2], "span_ns", &span_ns) < 0)
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(args[0]);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!Py_IS_TYPE(PyTuple_GET_ITEM(args[0], i), core_type))
            return PyErr_Format(PyExc_TypeError, "lanes_look takes ends of the core");
        lane[i] = (CoreObject *)PyTuple_GET_ITEM(args[0], i);
    }
    found = any_news(lane, count);
    if (found > 1 || !span_ns)
        return PyLong_FromLong(found > 0);
    if (!look_spin.most_ns)
        tpr_spin_init_(&look_spin, TPN_SPIN_NS);
    struct tpr_spin spin = look_spin;
    spin.budget_ns = spin.most_ns = span_ns;
    Py_BEGIN_ALLOW_THREADS
    tpr_spin_begin_(&spin, &spinning, tpr_monotonic_ns(), TPR_FOREVER);
    do {
        found = any_news(lane, count);
        if (found == 1 && !has_gathered) {
            has_gathered = 1;
            spinning.end_ns = tpr_monotonic_ns() + GATHER_NS;
        }
        if (!found && spinning.looks >= TPR_SPIN_LOOKS && epoll_wait(epoll, &event, 1, 0) != 0)
            found = -1;
    } while (found >= 0 && found < 2 && tpr_spin_goes_on_(&spinning));
    Py_END_ALLOW_THREADS
    if (found > 0)
        look_spin.yields_first = spinning.has_yielded;
    return PyLong_FromLong(found > 1 ? 1 : found);
}

static PyMethodDef functions[] = {
    {"lanes_look", TP_METHOD(lanes_look), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int tp_add_lane(PyObject *module) {
    PyTypeObject *client_type = (PyTypeObject *)PyType_FromSpec(&client_spec);
    core_type = (PyTypeObject *)PyType_FromSpec(&core_spec);
    if (!client_type || !core_type || PyModule_AddFunctions(module, functions) < 0 ||
        PyModule_AddIntConstant(module, "LANE_CELLS", TPN_CELLS) < 0 ||
        PyModule_AddIntConstant(module, "LANE_ASKED_MAX", TPN_ASKED_MAX) < 0)
        return -1;
    int code = PyModule_AddObjectRef(module, "LaneCore", (PyObject *)core_type);
    if (code == 0)
        code = PyModule_AddObjectRef(module, "LaneClient", (PyObject *)client_type);
    Py_DECREF(client_type);
    return code;
}
