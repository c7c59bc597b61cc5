/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of `towpath._ring` about lock pages share.
 */
#ifndef TOWPATH_RING_LOCK_H
#define TOWPATH_RING_LOCK_H

#include "_ring_module.h"

#include "towpath_lock.h"

typedef struct {
    PyObject_HEAD
    struct tpr_memory memory;
    uint64_t serial;   /* of all pages of this process; 0: closed */
    PyObject *members; /* a list, that keeps them as long as the page */
} PageObject;

typedef struct {
    PyObject_HEAD
    PageObject *page; /* borrowed: the page has this object */
    uint32_t number;
    Py_ssize_t held; /* locks of the page that this member has; under the GIL */
    uint64_t spin_ns;
} MemberObject;

/* A thread's member; it counts only for the page with its serial. Where the library allows it, found without a call. */
#ifdef __GLIBC__
#define TP_TLS_MODEL __attribute__((tls_model("initial-exec")))
#else
#define TP_TLS_MODEL
#endif
extern _Thread_local TP_TLS_MODEL struct tp_lock_here {
    uint64_t serial;
    MemberObject *member;
} tp_lock_here;

extern PyTypeObject *tp_lock_page_type;

static inline struct tpl_page *tp_lock_page(PageObject *self) {
    return (struct tpl_page *)self->memory.page;
}

int tp_add_lock_page(PyObject *module);

#endif
