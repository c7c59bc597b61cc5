/* SPDX-License-Identifier: Apache-2.0
 *
 * LockPage, LockMember, LockBase, LockGuardBase: the lock page for Python. Documentation for users: _ring.pyi.
 *
 * What must be quick is here and nothing else: taking a lock that is free, and giving one back. Both find the calling
 * thread's member in a variable of the thread; it counts only for the page whose number it has, and pages live as long as
 * the locks and guards that point to them.
 */
#include "_ring_module.h"

#include "towpath_lock.h"

static PyTypeObject *page_type, *member_type;
static PyObject *name_acquire_slow, *name_enter_slow, *name_exit_slow, *name_release_slow;

typedef struct {
    PyObject_HEAD
    struct tpr_memory memory;
    uint64_t serial; /* of all pages of this process; 0: closed */
    PyObject *members; /* a list, that keeps them as long as the page */
} PageObject;

typedef struct {
    PyObject_HEAD
    PageObject *page; /* borrowed: the page has this object */
    uint32_t number;
    Py_ssize_t held; /* locks of the page that this member has; under the GIL */
    uint64_t spin_ns;
} MemberObject;

typedef struct {
    PyObject_HEAD
    PageObject *page; /* NULL: this lock is the core's */
    PyTypeObject *guard_type;
    PyObject *context; /* what guards of this page have, for their Python side */
    uint32_t at;
    PyObject *entered; /* the guard of `with`, by the thread that is in it */
    unsigned long entered_by;
} LockObject;

typedef struct {
    PyObject_HEAD
    PageObject *page; /* NULL: what is held is the core's */
    MemberObject *member; /* borrowed from the page */
    PyObject *lock, *hold, *context;
    uint64_t token;
    uint32_t at;
    int result; /* of giving it back; TPL_OK: not tried, or done */
} GuardObject;

static _Thread_local struct {
    uint64_t serial;
    MemberObject *member;
} here;

static uint64_t last_serial;

static struct tpl_page *page_of(PageObject *self) {
    return (struct tpl_page *)self->memory.page;
}

static int page_usable(PageObject *self) {
    if (!self->serial || tpr_is_forked_(&self->memory)) {
        PyErr_SetString(PyExc_ValueError, "the lock page is closed");
        return 0;
    }
    return 1;
}

/* ---- LockPage ---- */

static PyObject *page_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", "identity", NULL};
    int fd = -1;
    unsigned long long identity = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|iK:LockPage", names, &fd, &identity))
        return NULL;
    PageObject *self = (PageObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->memory.fd = -1;
    int code = fd < 0 ? tpl_page_make(&self->memory, identity) : tpl_page_map(&self->memory, fd);
    self->members = code == TPR_OK ? PyList_New(0) : NULL;
    if (!self->members) {
        Py_DECREF(self);
        return code == TPR_OK ? NULL : tp_raise(code);
    }
    self->serial = ++last_serial;
    return (PyObject *)self;
}

static void page_dealloc(PageObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    tpr_memory_free_(&self->memory);
    Py_XDECREF(self->members);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *page_close(PageObject *self, PyObject *Py_UNUSED(ignored)) {
    self->serial = 0; /* the memory stays mapped: somebody may sleep in it */
    Py_RETURN_NONE;
}

static PyObject *page_share(PageObject *self, PyObject *Py_UNUSED(ignored)) {
    char path[64];
    if (!page_usable(self))
        return NULL;
    snprintf(path, sizeof path, "/proc/self/fd/%d", self->memory.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(fd);
}

static int page_at(PyObject *args, const char *format, PageObject *self, unsigned int *at) {
    if (!page_usable(self) || !PyArg_ParseTuple(args, format, at))
        return 0;
    if (*at >= TPL_SLOTS) {
        PyErr_SetString(PyExc_ValueError, "there is no such slot");
        return 0;
    }
    return 1;
}

static int check_member(unsigned int number) {
    if (number >= TPL_FIRST_MEMBER && number < TPL_MEMBERS)
        return 1;
    PyErr_SetString(PyExc_ValueError, "there is no such member");
    return 0;
}

static PyObject *page_admit(PageObject *self, PyObject *args) {
    unsigned int number;
    unsigned long long session, owner;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "IKK:admit", &number, &session, &owner) || !check_member(number))
        return NULL;
    tpl_admit(page_of(self), number, session, owner);
    Py_RETURN_NONE;
}

static PyObject *page_dismiss(PageObject *self, PyObject *args) {
    unsigned int number;
    int is_gone;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "Ip:dismiss", &number, &is_gone) || !check_member(number))
        return NULL;
    tpl_dismiss(page_of(self), number, is_gone ? TPL_UNUSED : TPL_MEMBER_CLOSED);
    Py_RETURN_NONE;
}

static PyObject *page_member(PageObject *self, PyObject *args) {
    unsigned int number;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "I:member", &number) || !check_member(number))
        return NULL;
    struct tpl_member *member = &page_of(self)->member[number];
    return Py_BuildValue("IKK", tpl_look32_(&member->state), (unsigned long long)tpl_look_(&member->session),
                         (unsigned long long)tpl_look_(&member->owner));
}

static PyObject *page_open(PageObject *self, PyObject *args) {
    unsigned int at;
    unsigned long long base;
    int is_busy;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "IKp:open", &at, &base, &is_busy))
        return NULL;
    if (at >= TPL_SLOTS)
        return PyErr_Format(PyExc_ValueError, "there is no such slot");
    tpl_open(page_of(self), at, base, is_busy);
    Py_RETURN_NONE;
}

/* (is_open, owner, used, base, since_ns) */
static PyObject *told(struct tpl_slot *slot, uint64_t word) {
    return Py_BuildValue("NIKKK", PyBool_FromLong((word & TPL_IS_OPEN) != 0), tpl_owner(word),
                         (unsigned long long)tpl_used(word), (unsigned long long)tpl_look_(&slot->base),
                         (unsigned long long)tpl_look_(&slot->since_ns));
}

static PyObject *page_look(PageObject *self, PyObject *args) {
    unsigned int at;
    if (!page_at(args, "I:look", self, &at))
        return NULL;
    struct tpl_slot *slot = &page_of(self)->slot[at];
    return told(slot, tpl_look_(&slot->word));
}

static PyObject *page_shut(PageObject *self, PyObject *args) {
    unsigned int at;
    if (!page_at(args, "I:shut", self, &at))
        return NULL;
    return told(&page_of(self)->slot[at], tpl_shut(page_of(self), at));
}

/* [(member, number, remaining_ms or -1)], in the order of the queue */
static PyObject *page_take_waiters(PageObject *self, PyObject *args) {
    unsigned int at;
    uint32_t number[TPL_PLACES];
    if (!page_at(args, "I:take_waiters", self, &at))
        return NULL;
    uint32_t count = tpl_take_waiters(page_of(self), at, number);
    uint64_t now_ns = tpr_monotonic_ns();
    PyObject *list = PyList_New(count);
    for (uint32_t i = 0; list && i < count; i++) {
        struct tpl_member *member = &page_of(self)->member[number[i]];
        uint64_t deadline_ns = tpl_look_(&member->deadline_ns);
        long long left_ms = -1;
        if (deadline_ns != TPR_FOREVER) {
            left_ms = deadline_ns <= now_ns ? 0 : (long long)((deadline_ns - now_ns) / 1000000 + 1);
            if (left_ms > UINT32_MAX)
                left_ms = UINT32_MAX;
        }
        PyObject *each = Py_BuildValue("IKL", number[i], (unsigned long long)tpl_look_(&member->number), left_ms);
        if (each)
            PyList_SET_ITEM(list, i, each);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *page_hand_over(PageObject *self, PyObject *args) {
    unsigned int at;
    if (!page_at(args, "I:hand_over", self, &at))
        return NULL;
    uint64_t base = tpl_look_(&page_of(self)->slot[at].base);
    return PyBool_FromLong(tpl_release(page_of(self), at, TPL_CORE, base + 1) == TPL_OK);
}

static PyObject *page_wake(PageObject *self, PyObject *args) {
    unsigned int number;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "I:wake", &number) || !check_member(number))
        return NULL;
    tpl_wake(page_of(self), number);
    Py_RETURN_NONE;
}

static PyObject *page_names(PageObject *self, PyObject *args) {
    unsigned int at, member;
    if (!page_usable(self) || !PyArg_ParseTuple(args, "II:names", &at, &member))
        return NULL;
    if (at >= TPL_SLOTS)
        return PyErr_Format(PyExc_ValueError, "there is no such slot");
    return PyBool_FromLong(tpl_names(page_of(self), at, member));
}

/* [(token, is_shut)] of what this process's members have */
static PyObject *page_held(PageObject *self, PyObject *Py_UNUSED(ignored)) {
    PyObject *list = page_usable(self) ? PyList_New(0) : NULL;
    for (uint32_t at = 0; list && at < TPL_SLOTS; at++) {
        struct tpl_slot *slot = &page_of(self)->slot[at];
        uint64_t word = tpl_look_(&slot->word);
        if (!tpl_owner(word))
            continue;
        for (Py_ssize_t i = 0; list && i < PyList_GET_SIZE(self->members); i++) {
            if (((MemberObject *)PyList_GET_ITEM(self->members, i))->number != tpl_owner(word))
                continue;
            PyObject *each = Py_BuildValue("KN", (unsigned long long)(tpl_look_(&slot->base) + tpl_used(word)),
                                           PyBool_FromLong(!(word & TPL_IS_OPEN)));
            if (!each || PyList_Append(list, each) < 0)
                Py_CLEAR(list);
            Py_XDECREF(each);
        }
    }
    return list;
}

static PyObject *page_add(PageObject *self, PyObject *value) {
    unsigned long number = PyLong_AsUnsignedLong(value);
    if (!page_usable(self) || PyErr_Occurred() || !check_member((unsigned int)number))
        return NULL;
    MemberObject *member = (MemberObject *)member_type->tp_alloc(member_type, 0);
    if (!member)
        return NULL;
    member->page = self;
    member->number = (uint32_t)number;
    member->spin_ns = TPL_SPIN_NS;
    if (PyList_Append(self->members, (PyObject *)member) < 0)
        Py_CLEAR(member);
    return (PyObject *)member;
}

static PyMethodDef page_methods[] = {
    {"close", (PyCFunction)page_close, METH_NOARGS, NULL},
    {"share", (PyCFunction)page_share, METH_NOARGS, NULL},
    {"admit", (PyCFunction)page_admit, METH_VARARGS, NULL},
    {"dismiss", (PyCFunction)page_dismiss, METH_VARARGS, NULL},
    {"member", (PyCFunction)page_member, METH_VARARGS, NULL},
    {"open", (PyCFunction)page_open, METH_VARARGS, NULL},
    {"look", (PyCFunction)page_look, METH_VARARGS, NULL},
    {"shut", (PyCFunction)page_shut, METH_VARARGS, NULL},
    {"take_waiters", (PyCFunction)page_take_waiters, METH_VARARGS, NULL},
    {"hand_over", (PyCFunction)page_hand_over, METH_VARARGS, NULL},
    {"wake", (PyCFunction)page_wake, METH_VARARGS, NULL},
    {"names", (PyCFunction)page_names, METH_VARARGS, NULL},
    {"held", (PyCFunction)page_held, METH_NOARGS, NULL},
    {"add", (PyCFunction)page_add, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyObject *page_is_open(PageObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(self->serial && !tpr_is_forked_(&self->memory));
}

static PyObject *page_identity(PageObject *self, void *Py_UNUSED(closure)) {
    return page_usable(self) ? PyLong_FromUnsignedLongLong(tpl_look_(&page_of(self)->identity)) : NULL;
}

static PyGetSetDef page_getset[] = {
    {"is_open", (getter)page_is_open, NULL, NULL, NULL},
    {"identity", (getter)page_identity, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot page_slots[] = {{Py_tp_new, page_new},
                                   {Py_tp_dealloc, page_dealloc},
                                   {Py_tp_methods, page_methods},
                                   {Py_tp_getset, page_getset},
                                   {0, NULL}};
static PyType_Spec page_spec = {"towpath._ring.LockPage", sizeof(PageObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, page_slots};

/* ---- LockMember ---- */

static void member_dealloc(MemberObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *member_use(MemberObject *self, PyObject *Py_UNUSED(ignored)) {
    here.serial = self->page->serial;
    here.member = self;
    Py_RETURN_NONE;
}

static PyMethodDef member_methods[] = {
    {"use", (PyCFunction)member_use, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef member_members[] = {
    {"number", T_UINT, offsetof(MemberObject, number), READONLY, NULL},
    {"held", T_PYSSIZET, offsetof(MemberObject, held), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot member_slots[] = {{Py_tp_dealloc, member_dealloc},
                                     {Py_tp_methods, member_methods},
                                     {Py_tp_members, member_members},
                                     {0, NULL}};
static PyType_Spec member_spec = {
    "towpath._ring.LockMember", sizeof(MemberObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION, member_slots};

/* ---- LockBase ---- */

static int lock_is_quick(LockObject *self) {
    PageObject *page = self->page;
    return page && page->serial && here.serial == page->serial && !tpr_is_forked_(&page->memory);
}

/* A guard of what the thread's member has taken; the lock is given back when there is no memory for it. */
static PyObject *lock_guard(LockObject *self, MemberObject *member, uint64_t token) {
    GuardObject *guard = (GuardObject *)self->guard_type->tp_alloc(self->guard_type, 0);
    if (!guard) {
        tpl_release(page_of(self->page), self->at, member->number, token);
        return NULL;
    }
    guard->page = (PageObject *)Py_NewRef(self->page);
    guard->member = member;
    guard->lock = Py_NewRef(self);
    guard->context = Py_NewRef(self->context);
    guard->token = token;
    guard->at = self->at;
    member->held++;
    return (PyObject *)guard;
}

/* NULL without an exception: it is not to be had like this. */
static PyObject *lock_take(LockObject *self) {
    uint64_t token;
    if (!lock_is_quick(self) || tpl_try(page_of(self->page), self->at, here.member->number, &token) != TPL_OK)
        return NULL;
    return lock_guard(self, here.member, token);
}

static PyObject *lock_acquire(LockObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    if (nargs == 0 && !kwnames) {
        PyObject *guard = lock_take(self);
        if (guard || PyErr_Occurred())
            return guard;
    }
    PyObject *slow = PyObject_GetAttr((PyObject *)self, name_acquire_slow);
    PyObject *guard = slow ? PyObject_Vectorcall(slow, args, (size_t)nargs, kwnames) : NULL;
    Py_XDECREF(slow);
    return guard;
}

static PyObject *lock_enter(LockObject *self, PyObject *Py_UNUSED(ignored)) {
    if (!self->entered) {
        PyObject *guard = lock_take(self);
        if (guard) {
            if (self->entered) { /* making the guard has run other code */
                PyObject *given = PyObject_CallMethodOneArg((PyObject *)self, name_enter_slow, guard);
                Py_DECREF(guard);
                return given;
            }
            self->entered = Py_NewRef(guard);
            self->entered_by = PyThread_get_thread_ident();
            return guard;
        }
        if (PyErr_Occurred())
            return NULL;
    }
    return PyObject_CallMethodOneArg((PyObject *)self, name_enter_slow, Py_None);
}

static int guard_give_back(GuardObject *self);

static PyObject *lock_exit(LockObject *self, PyObject *const *args, Py_ssize_t nargs) {
    if (self->entered && self->entered_by == PyThread_get_thread_ident()) {
        PyObject *entered = self->entered;
        self->entered = NULL;
        if (guard_give_back((GuardObject *)entered)) {
            Py_DECREF(entered);
            Py_RETURN_NONE;
        }
        PyObject *slow = PyObject_GetAttr(entered, name_exit_slow);
        PyObject *done = slow ? PyObject_Vectorcall(slow, args, (size_t)nargs, NULL) : NULL;
        Py_XDECREF(slow);
        Py_DECREF(entered);
        return done;
    }
    PyObject *slow = PyObject_GetAttr((PyObject *)self, name_exit_slow);
    PyObject *done = slow ? PyObject_Vectorcall(slow, args, (size_t)nargs, NULL) : NULL;
    Py_XDECREF(slow);
    return done;
}

/* set_page(page or None, slot, guard type, context) */
static PyObject *lock_set_page(LockObject *self, PyObject *args) {
    PyObject *page, *guard_type, *context;
    unsigned int at;
    if (!PyArg_ParseTuple(args, "OIO!O:set_page", &page, &at, &PyType_Type, &guard_type, &context))
        return NULL;
    if ((page != Py_None && Py_TYPE(page) != page_type) || at >= TPL_SLOTS)
        return PyErr_Format(PyExc_ValueError, "set_page takes a LockPage or None, and a slot of it");
    PageObject *before = self->page;
    self->page = page == Py_None ? NULL : (PageObject *)Py_NewRef(page);
    self->at = at;
    Py_XSETREF(self->guard_type, (PyTypeObject *)Py_NewRef(guard_type));
    Py_XSETREF(self->context, Py_NewRef(context));
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

/* try_page() -> (result, guard or None): as acquire() without waiting, and it says why not. */
static PyObject *lock_try_page(LockObject *self, PyObject *Py_UNUSED(ignored)) {
    uint64_t token;
    if (!lock_is_quick(self))
        return Py_BuildValue("iO", TPL_SHUT, Py_None);
    int result = tpl_try(page_of(self->page), self->at, here.member->number, &token);
    if (result != TPL_OK)
        return Py_BuildValue("iO", result, Py_None);
    PyObject *guard = lock_guard(self, here.member, token);
    return guard ? Py_BuildValue("iN", TPL_OK, guard) : NULL;
}

/* wait_page(number, deadline_ns) -> (result, guard or None). Signals are seen to; what they raise ends the wait. */
static PyObject *lock_wait_page(LockObject *self, PyObject *args) {
    unsigned long long number, deadline_ns;
    uint64_t token = 0;
    if (!PyArg_ParseTuple(args, "KK:wait_page", &number, &deadline_ns))
        return NULL;
    if (!lock_is_quick(self))
        return Py_BuildValue("iO", TPL_SHUT, Py_None);
    PageObject *page = (PageObject *)Py_NewRef(self->page); /* this thread waits in it, whatever becomes of the lock */
    MemberObject *member = here.member;
    struct tpl_wait wait = {page_of(page), self->at, member->number, 0, 0, deadline_ns, &member->spin_ns};
    int result = tpl_wait_begin(&wait, number);
    uint64_t slice_ns = TP_SLICE_NS;
    while (result == TPL_OK) {
        Py_BEGIN_ALLOW_THREADS
        result = tpl_wait_on(&wait, tpr_monotonic_ns() + slice_ns, &token);
        Py_END_ALLOW_THREADS
        if (slice_ns < TP_SLICE_MAX_NS)
            slice_ns *= 2;
        if (result != TPL_SLICE)
            break;
        result = TPL_OK;
        if (PyErr_CheckSignals() < 0) {
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            result = tpl_wait_end(&wait, &token);
            if (result == TPL_OK)
                tpl_release(page_of(page), wait.at, member->number, token);
            PyErr_Restore(type, value, traceback);
            Py_DECREF(page);
            return NULL;
        }
    }
    PyObject *guard = NULL;
    if (result == TPL_OK) {
        /* Not self->page, which may be another by now. */
        guard = self->page == page ? lock_guard(self, member, token) : NULL;
        if (!guard && !PyErr_Occurred()) {
            tpl_release(page_of(page), wait.at, member->number, token);
            result = TPL_SHUT;
        }
    }
    Py_DECREF(page);
    if (PyErr_Occurred())
        return NULL;
    return guard ? Py_BuildValue("iN", TPL_OK, guard) : Py_BuildValue("iO", result, Py_None);
}

static int lock_traverse(LockObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->guard_type);
    Py_VISIT(self->context);
    Py_VISIT(self->entered);
    return 0;
}

static int lock_clear(LockObject *self) {
    Py_CLEAR(self->guard_type);
    Py_CLEAR(self->context);
    Py_CLEAR(self->entered);
    return 0;
}

static void lock_dealloc(LockObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    lock_clear(self);
    Py_XDECREF(self->page);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef lock_methods[] = {
    {"acquire", TP_METHOD(lock_acquire), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"__enter__", (PyCFunction)lock_enter, METH_NOARGS, NULL},
    {"__exit__", TP_METHOD(lock_exit), METH_FASTCALL, NULL},
    {"set_page", (PyCFunction)lock_set_page, METH_VARARGS, NULL},
    {"try_page", (PyCFunction)lock_try_page, METH_NOARGS, NULL},
    {"wait_page", (PyCFunction)lock_wait_page, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef lock_members[] = {
    {"page", T_OBJECT, offsetof(LockObject, page), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot lock_slots[] = {{Py_tp_dealloc, lock_dealloc},   {Py_tp_traverse, lock_traverse},
                                   {Py_tp_clear, lock_clear},       {Py_tp_methods, lock_methods},
                                   {Py_tp_members, lock_members},   {0, NULL}};
static PyType_Spec lock_spec = {"towpath._ring.LockBase", sizeof(LockObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, lock_slots};

/* ---- LockGuardBase ---- */

/* It is not held in the page any more. */
static void guard_leave(GuardObject *self) {
    self->member->held--;
    Py_CLEAR(self->page);
}

/* Whether that was all: given back in the page. If not, `result` says why, also when it is tried again. */
static int guard_give_back(GuardObject *self) {
    PageObject *page = self->page;
    if (!page || self->result != TPL_OK)
        return 0;
    if (!page->serial || tpr_is_forked_(&page->memory))
        self->result = TPL_CLOSED;
    else
        self->result = tpl_release(page_of(page), self->at, self->member->number, self->token);
    if (self->result != TPL_OK)
        return 0;
    guard_leave(self);
    return 1;
}

static PyObject *guard_release(GuardObject *self, PyObject *Py_UNUSED(ignored)) {
    if (guard_give_back(self))
        Py_RETURN_NONE;
    return PyObject_CallMethodNoArgs((PyObject *)self, name_release_slow);
}

/* leave_page() -> whether it was in the page: it is not the page's affair any more. */
static PyObject *guard_leave_page(GuardObject *self, PyObject *Py_UNUSED(ignored)) {
    int is_in_page = self->page != NULL;
    if (is_in_page)
        guard_leave(self);
    return PyBool_FromLong(is_in_page);
}

/* look() -> (is_in_page, has, is_shut) */
static PyObject *guard_look(GuardObject *self, PyObject *Py_UNUSED(ignored)) {
    int has = 0, is_shut = 1;
    PageObject *page = self->page;
    if (page && page->serial && !tpr_is_forked_(&page->memory))
        has = tpl_has(page_of(page), self->at, self->member->number, self->token, &is_shut);
    return Py_BuildValue("NNN", PyBool_FromLong(page != NULL), PyBool_FromLong(has), PyBool_FromLong(is_shut));
}

static int guard_traverse(GuardObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->lock);
    Py_VISIT(self->hold);
    Py_VISIT(self->context);
    return 0;
}

static int guard_clear(GuardObject *self) {
    Py_CLEAR(self->lock);
    Py_CLEAR(self->hold);
    Py_CLEAR(self->context);
    return 0;
}

static void guard_dealloc(GuardObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    guard_clear(self);
    Py_XDECREF(self->page);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef guard_methods[] = {
    {"release", (PyCFunction)guard_release, METH_NOARGS, NULL},
    {"leave_page", (PyCFunction)guard_leave_page, METH_NOARGS, NULL},
    {"look", (PyCFunction)guard_look, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef guard_members[] = {
    {"page_lock", T_OBJECT, offsetof(GuardObject, lock), READONLY, NULL},
    {"page_hold", T_OBJECT, offsetof(GuardObject, hold), 0, NULL},
    {"page_context", T_OBJECT, offsetof(GuardObject, context), READONLY, NULL},
    {"page_result", T_INT, offsetof(GuardObject, result), READONLY, NULL},
    {"page_slot", T_UINT, offsetof(GuardObject, at), READONLY, NULL},
    {"page_token", T_ULONGLONG, offsetof(GuardObject, token), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyType_Slot guard_slots[] = {{Py_tp_dealloc, guard_dealloc},   {Py_tp_traverse, guard_traverse},
                                    {Py_tp_clear, guard_clear},       {Py_tp_methods, guard_methods},
                                    {Py_tp_members, guard_members},   {0, NULL}};
static PyType_Spec guard_spec = {"towpath._ring.LockGuardBase", sizeof(GuardObject), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC, guard_slots};

/* ---- the module ---- */

static int add_type(PyObject *module, const char *name, PyType_Spec *spec, PyTypeObject **kept) {
    PyObject *type = PyType_FromSpec(spec);
    if (!type)
        return -1;
    if (kept)
        *kept = (PyTypeObject *)Py_NewRef(type);
    int code = PyModule_AddObjectRef(module, name, type);
    Py_DECREF(type);
    return code;
}

int tp_add_lock(PyObject *module) {
    static const struct {
        const char *name;
        long value;
    } numbers[] = {{"LOCK_OK", TPL_OK},       {"LOCK_HELD", TPL_HELD},     {"LOCK_SHUT", TPL_SHUT},
                   {"LOCK_SPENT", TPL_SPENT}, {"LOCK_CLOSED", TPL_CLOSED}, {"LOCK_LOST", TPL_LOST},
                   {"LOCK_FULL", TPL_FULL},   {"LOCK_OVER", TPL_OVER},     {"LOCK_MEMBERS", TPL_MEMBERS},
                   {"LOCK_SLOTS", TPL_SLOTS}, {"LOCK_CORE", TPL_CORE},     {"LOCK_FIRST_MEMBER", TPL_FIRST_MEMBER},
                   {"LOCK_TOKENS", (long)TPL_TOKENS}};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (PyModule_AddIntConstant(module, numbers[i].name, numbers[i].value) < 0)
            return -1;
    name_acquire_slow = PyUnicode_InternFromString("_acquire_slow");
    name_enter_slow = PyUnicode_InternFromString("_enter_slow");
    name_exit_slow = PyUnicode_InternFromString("_exit_slow");
    name_release_slow = PyUnicode_InternFromString("_release_slow");
    if (!name_acquire_slow || !name_enter_slow || !name_exit_slow || !name_release_slow)
        return -1;
    return add_type(module, "LockPage", &page_spec, &page_type) < 0 ||
                   add_type(module, "LockMember", &member_spec, &member_type) < 0 ||
                   add_type(module, "LockBase", &lock_spec, NULL) < 0 ||
                   add_type(module, "LockGuardBase", &guard_spec, NULL) < 0
               ? -1
               : 0;
}
