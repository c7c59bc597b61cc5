/* SPDX-License-Identifier: Apache-2.0
 *
 * SignalTaker: makes signals of messages where they are received (Reader.hand_on), without Python.
 *
 * It knows what Python has found: whom to signal, as pidfds, and by which files they were found, each with its stat. What was
 * written into those files before a message was published counts for it. So before each message is taken they are looked at:
 * by stat(2), if inotify says that something has happened there (it does before the system call that did it returns), and
 * every LOOK_NS, since it does not tell of everything (a directory far above was renamed, a write through a mapping). Where
 * there is no inotify to be had, by stat(2) each time.
 *
 * Whatever is not plain is left to Python, and the message with it: a file has changed, a message has headers, a signal was not
 * taken. Where some of several processes had it by then, served() says who.
 *
 * Counting: the first message after taken() makes a descriptor readable, so that somebody asks again.
 *
 * Everything is under the GIL, also what Reader.hand_on() calls. A pidfd that Python closes was taken away by aim() before.
 */
#include "_native.h"

#include "_ring_taker.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>

#define LOOK_NS 100000000u
#define DIGITS_MAX 18 /* fit into 64 bits, with a sign or without */
#define ON_FILE (IN_MODIFY | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF)
#define ON_DIRECTORY (IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF)

/* A file, and what stat(2) said of it. */
struct stamp {
    char *path;
    int is_there;
    unsigned long long inode, mtime_ns, ctime_ns, size;
};

struct signal_taker {
    PyObject_HEAD
    struct tp_taker taker;
    siginfo_t info; /* of the next signal, but for its value */
    int is_text, eventfd, is_told;
    int watch;                    /* inotify; -1: none */
    unsigned long long looked_ns; /* when the files were as stamped; 0: not yet */
    int *pidfd;
    struct stamp *stamp;
    Py_ssize_t pidfd_count, stamp_count;
    Py_ssize_t served; /* of the message that was left, so many have had it */
    unsigned long long messages, bytes;
};

static unsigned long long to_ns(struct timespec time) {
    return (unsigned long long)time.tv_sec * 1000000000u + (unsigned long long)time.tv_nsec;
}

static int is_as_stamped(const struct stamp *stamp) {
    struct stat now;
    if (stat(stamp->path, &now) < 0)
        return !stamp->is_there;
    return stamp->is_there && stamp->inode == now.st_ino && stamp->mtime_ns == to_ns(now.st_mtim) &&
           stamp->ctime_ns == to_ns(now.st_ctim) && stamp->size == (unsigned long long)now.st_size;
}

static unsigned long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return to_ns(now);
}

/* What is known of the files may not be so any more. */
static int must_look(struct signal_taker *self) {
    char events[4096];
    int bytes = 0;
    if (self->watch < 0 || !self->looked_ns || now_ns() - self->looked_ns >= LOOK_NS)
        return 1;
    if (ioctl(self->watch, FIONREAD, &bytes) == 0 && bytes == 0)
        return 0;
    while (read(self->watch, events, sizeof events) > 0) /* before the look: what comes after it is told again */
        continue;
    return 1;
}

static int begin(void *argument) {
    struct signal_taker *self = argument;
    if (self->stamp_count && must_look(self)) {
        self->looked_ns = now_ns();
        for (Py_ssize_t i = 0; i < self->stamp_count; i++) {
            if (!is_as_stamped(&self->stamp[i])) {
                self->looked_ns = 0;
                return 0;
            }
        }
    }
    return self->pidfd_count > 0;
}

/* The value that a message stands for, where that is plain: its first 8 bytes, or a short decimal number. */
static int value_of(const struct signal_taker *self, const uint8_t *bytes, uint32_t count, uint64_t *value) {
    *value = 0;
    if (!self->is_text) {
        for (uint32_t i = 0; i < 8 && i < count; i++)
            *value |= (uint64_t)bytes[i] << (8 * i);
        return 1;
    }
    uint32_t at = count > 1 && bytes[0] == '-', is_negative = at;
    if (!count || count > DIGITS_MAX)
        return 0;
    for (; at < count; at++) {
        if (bytes[at] < '0' || bytes[at] > '9')
            return 0;
        *value = *value * 10 + (bytes[at] - '0');
    }
    if (is_negative)
        *value = 0 - *value;
    return 1;
}

static int take(void *argument, const uint8_t *bytes, uint32_t payload_bytes, uint32_t headers_bytes) {
    struct signal_taker *self = argument;
    uint64_t value;
    if (headers_bytes || !value_of(self, bytes, payload_bytes, &value))
        return 0;
    for (Py_ssize_t i = 0; i < self->pidfd_count; i++) {
        if (tpn_send_signal(self->pidfd[i], &self->info, value) < 0) {
            self->served = i;
            return 0;
        }
    }
    self->messages++;
    self->bytes += payload_bytes;
    if (!self->is_told) {
        uint64_t one = 1;
        self->is_told = write(self->eventfd, &one, sizeof one) > 0;
    }
    return 1;
}

static void forget_aim(struct signal_taker *self) {
    for (Py_ssize_t i = 0; i < self->stamp_count; i++)
        free(self->stamp[i].path);
    free(self->stamp);
    free(self->pidfd);
    if (self->watch >= 0)
        close(self->watch);
    self->watch = -1;
    self->looked_ns = 0;
    self->stamp = NULL;
    self->pidfd = NULL;
    self->stamp_count = self->pidfd_count = self->served = 0;
}

static PyObject *signal_taker_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    PyObject *value;
    int is_text;
    if (!PyArg_ParseTuple(args, "Op", &value, &is_text) || (keywords && PyDict_GET_SIZE(keywords)))
        return NULL;
    int number = tpn_to_number(value);
    if (number < 0)
        return NULL;
    struct signal_taker *self = (struct signal_taker *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->watch = -1;
    tpn_begin_siginfo(&self->info, number);
    self->is_text = is_text;
    self->taker = (struct tp_taker){.self = self, .bytes_max = DIGITS_MAX, .begin = begin, .take = take};
    self->eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (self->eventfd >= 0)
        return (PyObject *)self;
    PyErr_SetFromErrno(PyExc_OSError);
    Py_DECREF(self);
    return NULL;
}

static PyObject *signal_taker_close(struct signal_taker *self, PyObject *nothing) {
    (void)nothing;
    forget_aim(self);
    if (self->eventfd >= 0)
        close(self->eventfd);
    self->eventfd = -1;
    Py_RETURN_NONE;
}

static void signal_taker_dealloc(struct signal_taker *self) {
    Py_XDECREF(signal_taker_close(self, NULL));
    Py_TYPE(self)->tp_free(self);
}

static int read_pidfds(struct signal_taker *self, PyObject *pidfds) {
    Py_ssize_t count = PyTuple_GET_SIZE(pidfds);
    self->pidfd = calloc((size_t)count + 1, sizeof *self->pidfd);
    if (!self->pidfd)
        return PyErr_NoMemory(), -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        long pidfd = PyLong_AsLong(PyTuple_GET_ITEM(pidfds, i));
        if (pidfd == -1 && PyErr_Occurred())
            return -1;
        self->pidfd[i] = (int)pidfd;
    }
    self->pidfd_count = count;
    return 0;
}

static int read_stamps(struct signal_taker *self, PyObject *stamps) {
    Py_ssize_t count = PyTuple_GET_SIZE(stamps);
    self->stamp = calloc((size_t)count + 1, sizeof *self->stamp);
    if (!self->stamp)
        return PyErr_NoMemory(), -1;
    for (; self->stamp_count < count; self->stamp_count++) {
        struct stamp *stamp = &self->stamp[self->stamp_count];
        PyObject *item = PyTuple_GET_ITEM(stamps, self->stamp_count);
        const char *path;
        if (!PyTuple_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "a stamp is a tuple");
            return -1;
        }
        stamp->is_there = PyTuple_GET_SIZE(item) > 1;
        if (!PyArg_ParseTuple(item, "y|KKKK", &path, &stamp->inode, &stamp->mtime_ns, &stamp->ctime_ns, &stamp->size))
            return -1;
        stamp->path = strdup(path);
        if (!stamp->path)
            return PyErr_NoMemory(), -1;
    }
    return 0;
}

static int watch(const struct signal_taker *self, const char *path, uint32_t events) {
    return inotify_add_watch(self->watch, path, events) >= 0 || errno == ENOENT;
}

/* Watch what is stamped, and the directories in which it is. */
static void watch_stamped(struct signal_taker *self) {
    self->watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    for (Py_ssize_t i = 0; self->watch >= 0 && i < self->stamp_count; i++) {
        char *path = self->stamp[i].path, *end = strrchr(path, '/');
        /* What is found twice is watched for all that is asked: a directory has entries, too. */
        int is_watched = watch(self, path, ON_FILE | ON_DIRECTORY | IN_MASK_ADD);
        if (end && end != path) {
            *end = 0;
            is_watched = is_watched && watch(self, path, ON_DIRECTORY | IN_MASK_ADD);
            *end = '/';
        } else {
            is_watched = is_watched && watch(self, "/", ON_DIRECTORY | IN_MASK_ADD);
        }
        if (!is_watched) {
            close(self->watch);
            self->watch = -1;
        }
    }
}

static PyObject *signal_taker_aim(struct signal_taker *self, PyObject *args) {
    PyObject *pidfds, *stamps;
    if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &pidfds, &PyTuple_Type, &stamps))
        return NULL;
    forget_aim(self);
    if (read_pidfds(self, pidfds) < 0 || read_stamps(self, stamps) < 0) {
        forget_aim(self);
        return NULL;
    }
    if (self->stamp_count)
        watch_stamped(self);
    Py_RETURN_NONE;
}

static PyObject *signal_taker_served(struct signal_taker *self, PyObject *nothing) {
    (void)nothing;
    PyObject *list = PyList_New(0);
    for (Py_ssize_t i = 0; list && i < self->served; i++) {
        PyObject *pidfd = PyLong_FromLong(self->pidfd[i]);
        if (!pidfd || PyList_Append(list, pidfd) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pidfd);
    }
    if (list)
        self->served = 0;
    return list;
}

static PyObject *signal_taker_taken(struct signal_taker *self, PyObject *nothing) {
    (void)nothing;
    uint64_t told;
    ssize_t done = read(self->eventfd, &told, sizeof told);
    (void)done; /* nothing there: nothing was told */
    PyObject *taken = Py_BuildValue("KK", self->messages, self->bytes);
    if (taken)
        self->messages = self->bytes = 0, self->is_told = 0;
    return taken;
}

static PyObject *signal_taker_fileno(struct signal_taker *self, PyObject *nothing) {
    (void)nothing;
    return PyLong_FromLong(self->eventfd);
}

static void forget_capsule(PyObject *capsule) {
    Py_DECREF((PyObject *)PyCapsule_GetContext(capsule));
}

static PyObject *signal_taker_capsule(struct signal_taker *self, PyObject *nothing) {
    (void)nothing;
    PyObject *capsule = PyCapsule_New(&self->taker, TP_TAKER, NULL);
    if (!capsule || PyCapsule_SetContext(capsule, Py_NewRef(self)) < 0)
        return NULL;
    PyCapsule_SetDestructor(capsule, forget_capsule);
    return capsule;
}

static PyMethodDef signal_taker_methods[] = {
    {"aim", (PyCFunction)(void (*)(void))signal_taker_aim, METH_VARARGS, NULL},
    {"served", (PyCFunction)(void (*)(void))signal_taker_served, METH_NOARGS, NULL},
    {"taken", (PyCFunction)(void (*)(void))signal_taker_taken, METH_NOARGS, NULL},
    {"fileno", (PyCFunction)(void (*)(void))signal_taker_fileno, METH_NOARGS, NULL},
    {"close", (PyCFunction)(void (*)(void))signal_taker_close, METH_NOARGS, NULL},
    {"capsule", (PyCFunction)(void (*)(void))signal_taker_capsule, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

/* ---- the thread it is called in ---- */

struct attributes { /* struct sched_attr of linux/sched/types.h, its first version */
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

/* Have this thread scheduled in slices of so many ns: from Linux 6.12 on that lets it run as soon as it is woken, for as
 * little as it has to do, before whoever woke it. Elsewhere nothing changes. */
static PyObject *set_slice(PyObject *self, PyObject *value) {
    (void)self;
    struct attributes attributes = {.size = sizeof attributes};
    unsigned long long slice_ns = PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred())
        return NULL;
    if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) == 0 && attributes.policy == SCHED_OTHER) {
        attributes.runtime = slice_ns;
        syscall(SYS_sched_setattr, 0, &attributes, 0);
    }
    Py_RETURN_NONE;
}

PyMethodDef tpn_thread_methods[] = {
    {"set_slice", set_slice, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject tpn_signal_taker_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "towpath_broker.gateways.bridge._native.SignalTaker",
    .tp_basicsize = sizeof(struct signal_taker),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = signal_taker_new,
    .tp_dealloc = (destructor)signal_taker_dealloc,
    .tp_methods = signal_taker_methods,
};
