/* SPDX-License-Identifier: Apache-2.0
 *
 * Reader.set_load and Writer.load. Documentation for users: _ring.pyi.
 */
#include "_ring_module.h"

PyObject *tp_reader_set_load(ReaderObject *self, PyObject *value) {
    uint64_t load;
    if (!tp_reader_usable(self) || tp_uint64(value, "load", &load) < 0)
        return NULL;
    int code = tpr_reader_set_load(&self->ring, load);
    if (code != TPR_OK)
        return tp_raise(code);
    Py_RETURN_NONE;
}

PyObject *tp_writer_load(WriterObject *self, PyObject *value) {
    uint64_t reader, load = 0;
    if (!tp_writer_usable(self) || tp_uint64(value, "reader", &reader) < 0)
        return NULL;
    int code = tpr_writer_load(&self->ring, reader, &load);
    if (code < 0)
        return tp_raise(code);
    return code == TPR_OK ? PyLong_FromUnsignedLongLong(load) : PyLong_FromLong(code == TPR_TIMEOUT ? -1 : -2);
}
