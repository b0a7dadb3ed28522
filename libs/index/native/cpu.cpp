// Which level of x86-64 instructions this CPU has. A module of its own, compiled for the oldest CPU: it is what chooses the others.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace {

PyObject* level(PyObject*, PyObject*) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("x86-64-v4")) return PyLong_FromLong(4);
    if (__builtin_cpu_supports("x86-64-v3")) return PyLong_FromLong(3);
    if (__builtin_cpu_supports("x86-64-v2")) return PyLong_FromLong(2);
    return PyLong_FromLong(1);
#else
    return PyLong_FromLong(0);
#endif
}

PyMethodDef kMethods[] = {{"level", level, METH_NOARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};

PyModuleDef kModule = {PyModuleDef_HEAD_INIT, "shoal cpu", nullptr, -1, kMethods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels_cpu() {
    return PyModule_Create(&kModule);
}
