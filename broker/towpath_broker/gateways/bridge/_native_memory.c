/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that another program owns, and may take away at any moment.
 *
 * A mapping past the end of its file raises SIGBUS when it is touched. So nothing here touches one: bytes are copied
 * by process_vm_readv/writev(2) on ourselves, and words are changed by FUTEX_WAKE_OP; both answer EFAULT. The
 * exceptions are the C library's semaphores, which can only be worked on where they lie.
 */
#include "_native.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/uio.h>

static PyObject *map_memory(PyObject *self, PyObject *args) {
    (void)self;
    int descriptor, is_writable;
    unsigned long long length;
    if (!PyArg_ParseTuple(args, "iKp", &descriptor, &length, &is_writable))
        return NULL;
    void *address =
        mmap(NULL, (size_t)length, PROT_READ | (is_writable ? PROT_WRITE : 0), MAP_SHARED, descriptor, 0);
    return address == MAP_FAILED ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromVoidPtr(address);
}

static PyObject *unmap_memory(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long address, length;
    if (!PyArg_ParseTuple(args, "KK", &address, &length))
        return NULL;
    if (munmap((void *)(uintptr_t)address, (size_t)length) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *find_segment(PyObject *self, PyObject *args) {
    (void)self;
    unsigned int key;
    struct shmid_ds status;
    if (!PyArg_ParseTuple(args, "I", &key))
        return NULL;
    int segment = shmget((key_t)key, 0, 0);
    if (segment < 0 || shmctl(segment, IPC_STAT, &status) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return Py_BuildValue("iK", segment, (unsigned long long)status.shm_segsz);
}

static PyObject *attach_segment(PyObject *self, PyObject *args) {
    (void)self;
    int segment, is_writable;
    if (!PyArg_ParseTuple(args, "ip", &segment, &is_writable))
        return NULL;
    void *address = shmat(segment, NULL, is_writable ? 0 : SHM_RDONLY);
    return address == (void *)-1 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromVoidPtr(address);
}

static PyObject *detach_segment(PyObject *self, PyObject *value) {
    (void)self;
    void *address = PyLong_AsVoidPtr(value);
    if (!address && PyErr_Occurred())
        return NULL;
    if (shmdt(address) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *read_memory(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long address;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(args, "Kn", &address, &length))
        return NULL;
    PyObject *data = PyBytes_FromStringAndSize(NULL, length);
    if (!data)
        return NULL;
    struct iovec here = {PyBytes_AS_STRING(data), (size_t)length}, there = {(void *)(uintptr_t)address, (size_t)length};
    ssize_t done = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
    if (done == length)
        return data;
    Py_DECREF(data);
    errno = done < 0 ? errno : EFAULT;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *write_memory(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long address;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "Ky*", &address, &data))
        return NULL;
    struct iovec here = {data.buf, (size_t)data.len}, there = {(void *)(uintptr_t)address, (size_t)data.len};
    ssize_t length = data.len, done = process_vm_writev(getpid(), &here, 1, &there, 1, 0);
    int error = errno;
    PyBuffer_Release(&data);
    if (done == length)
        Py_RETURN_NONE;
    errno = done < 0 ? error : EFAULT;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *add_and_wake(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long address;
    int amount;
    if (!PyArg_ParseTuple(args, "Ki", &address, &amount))
        return NULL;
    if (tpn_add_and_wake((uint32_t *)(uintptr_t)address, amount, INT_MAX) < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *fence(PyObject *self, PyObject *nothing) {
    (void)self, (void)nothing;
    atomic_thread_fence(memory_order_seq_cst);
    Py_RETURN_NONE;
}

/* -- semaphores ---------------------------------------------------------------------------------------------- */

/* Sleeping on semaphores together with other words needs to know where the C library has the word that sem_post(3)
 * wakes, and where it counts who sleeps. For glibc from 2.21 on 64-bit machines: value and count, in this order; told
 * from others by looking. The pair (0, 4) is relative to the semaphore; None elsewhere. */
static PyObject *semaphore_words(PyObject *self, PyObject *nothing) {
    (void)self, (void)nothing;
#if defined(__GLIBC__) && __SIZEOF_POINTER__ == 8 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    union {
        sem_t semaphore;
        uint32_t word[sizeof(sem_t) / sizeof(uint32_t)];
    } probe = {.word = {0}};
    if (sem_init(&probe.semaphore, 1, 5) == 0 && probe.word[0] == 5 && probe.word[1] == 0 &&
        sem_post(&probe.semaphore) == 0 && probe.word[0] == 6)
        return Py_BuildValue("iii", 0, 4, (int)sizeof(sem_t));
#endif
    Py_RETURN_NONE;
}

static PyObject *open_semaphore(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    if (!PyArg_ParseTuple(args, "s", &name))
        return NULL;
    sem_t *semaphore = sem_open(name, 0);
    return semaphore == SEM_FAILED ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromVoidPtr(semaphore);
}

static PyObject *on_semaphore(PyObject *value, int (*work)(sem_t *)) {
    sem_t *semaphore = PyLong_AsVoidPtr(value);
    if (!semaphore) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "not a semaphore");
        return NULL;
    }
    if (work(semaphore) == 0)
        Py_RETURN_TRUE;
    if (errno == EAGAIN)
        Py_RETURN_FALSE;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *take_semaphore(PyObject *self, PyObject *value) {
    (void)self;
    return on_semaphore(value, sem_trywait);
}

static PyObject *post_semaphore(PyObject *self, PyObject *value) {
    (void)self;
    return on_semaphore(value, sem_post);
}

static PyObject *close_semaphore(PyObject *self, PyObject *value) {
    (void)self;
    return on_semaphore(value, sem_close);
}

static PyObject *find_semaphores(PyObject *self, PyObject *args) {
    (void)self;
    unsigned int key;
    if (!PyArg_ParseTuple(args, "I", &key))
        return NULL;
    int semaphores = semget((key_t)key, 0, 0);
    return semaphores < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyLong_FromLong(semaphores);
}

static PyObject *change_semaphores(PyObject *self, PyObject *args) {
    (void)self;
    int semaphores;
    unsigned short index;
    short amount;
    if (!PyArg_ParseTuple(args, "iHh", &semaphores, &index, &amount))
        return NULL;
    struct sembuf operation = {.sem_num = index, .sem_op = amount, .sem_flg = IPC_NOWAIT};
    if (semop(semaphores, &operation, 1) == 0)
        Py_RETURN_TRUE;
    if (errno == EAGAIN)
        Py_RETURN_FALSE;
    return PyErr_SetFromErrno(PyExc_OSError);
}

PyMethodDef tpn_memory_methods[] = {
    {"map_memory", map_memory, METH_VARARGS, NULL},
    {"unmap_memory", unmap_memory, METH_VARARGS, NULL},
    {"find_segment", find_segment, METH_VARARGS, NULL},
    {"attach_segment", attach_segment, METH_VARARGS, NULL},
    {"detach_segment", detach_segment, METH_O, NULL},
    {"read_memory", read_memory, METH_VARARGS, NULL},
    {"write_memory", write_memory, METH_VARARGS, NULL},
    {"add_and_wake", add_and_wake, METH_VARARGS, NULL},
    {"fence", fence, METH_NOARGS, NULL},
    {"semaphore_words", semaphore_words, METH_NOARGS, NULL},
    {"open_semaphore", open_semaphore, METH_VARARGS, NULL},
    {"take_semaphore", take_semaphore, METH_O, NULL},
    {"post_semaphore", post_semaphore, METH_O, NULL},
    {"close_semaphore", close_semaphore, METH_O, NULL},
    {"find_semaphores", find_semaphores, METH_VARARGS, NULL},
    {"change_semaphores", change_semaphores, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
