// The extension module. Importing it loads the library, and loading it registers the ops. Beside that it reads the
// headers of many tensors at once, through the table of C functions that torch offers to other libraries
// (https://dmlc.github.io/dlpack/latest/c_api.html): a third of what it costs to hand them to an op.
#define Py_LIMITED_API 0x030A0000
// DLPack's own C interface, not of torch's; torch ships it, but hides it from who keeps to torch's stable ABI.
#undef TORCH_TARGET_VERSION
#include <ATen/dlpack.h>
#include <Python.h>
#include <torch/headeronly/core/DeviceType.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <exception>

#include "cpu/kernels.h"
#include "header.h"

namespace bnb {
namespace {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;

// Of torch, from `accept`.
PyObject *tensor_type = nullptr, *parameter_type = nullptr;
DLPackDLTensorFromPyObjectNoSync read_tensor = nullptr;

constexpr Py_ssize_t kAhead = 8;  // objects that are fetched into the cache before they are read

// Whether `header` could be filled in with what the tensor's dtype is for torch.
bool read_dtype(DLDataType dtype, Header& header) {
  struct Known {
    int code, bits;
    ScalarType dtype;
  };
  constexpr Known kKnown[]{{kDLFloat, 32, ScalarType::Float}, {kDLBfloat, 16, ScalarType::BFloat16},
                           {kDLFloat, 16, ScalarType::Half},  {kDLFloat, 64, ScalarType::Double},
                           {kDLUInt, 8, ScalarType::Byte},    {kDLInt, 64, ScalarType::Long}};
  const auto* const found = std::find_if(std::begin(kKnown), std::end(kKnown), [&](const Known& known) {
    return known.code == dtype.code && known.bits == dtype.bits && dtype.lanes == 1;
  });
  if (found == std::end(kKnown)) return false;
  header.dtype = static_cast<std::int8_t>(found->dtype);
  return true;
}

bool read_device(DLDevice device, Header& header) {
  if (device.device_type != kDLCPU && device.device_type != kDLCUDA) return false;
  const DeviceType type = device.device_type == kDLCPU ? DeviceType::CPU : DeviceType::CUDA;
  header.device_type = static_cast<std::int8_t>(type);
  header.device_index = static_cast<std::int8_t>(device.device_id);
  return true;
}

// Whether an object is a plain tensor, whose header says all that an op must know.
bool read_header(PyObject* object, Header& header) {
  auto* const type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  if (read_tensor == nullptr || (type != tensor_type && type != parameter_type)) return false;
  DLTensor tensor;
  if (read_tensor(object, &tensor) != 0) return false;
  header.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  header.numel = 1;
  header.contiguous = 1;
  header.shape = 2166136261U;  // by FNV-1a
  for (int d = tensor.ndim - 1; d >= 0; --d) {
    if (tensor.shape[d] != 1 && tensor.strides[d] != header.numel) header.contiguous = 0;
    header.numel *= tensor.shape[d];
    header.shape = (header.shape ^ static_cast<std::uint32_t>(tensor.shape[d])) * 16777619U;
  }
  if (header.numel == 0) header.contiguous = 1;
  // Elements without memory: the tensor stands for something, zeros for one, that its dispatch knows.
  const bool there = header.data != nullptr || header.numel == 0;
  return there && read_dtype(tensor.dtype, header) && read_device(tensor.device, header);
}

PyObject* accept(PyObject*, PyObject* args) {
  if (!PyArg_ParseTuple(args, "OO", &tensor_type, &parameter_type)) return nullptr;
  Py_INCREF(tensor_type);
  Py_INCREF(parameter_type);
  PyObject* const capsule = PyObject_GetAttrString(tensor_type, "__dlpack_c_exchange_api__");
  const void* const found = capsule == nullptr ? nullptr : PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  const auto* const api = static_cast<const DLPackExchangeAPI*>(found);
  if (api != nullptr && api->header.version.major == DLPACK_MAJOR_VERSION)
    read_tensor = api->dltensor_from_py_object_no_sync;
  Py_XDECREF(capsule);
  PyErr_Clear();  // a torch without it: no header can be read, and tensors are handed over
  Py_RETURN_NONE;
}

PyObject* read_headers(PyObject*, PyObject* args) {
  PyObject *tensors, *out;
  if (!PyArg_ParseTuple(args, "O!O", &PyList_Type, &tensors, &out)) return nullptr;
  const Py_ssize_t n = PyList_Size(tensors);
  constexpr std::int64_t kNumbers = sizeof(Header) / sizeof(std::int64_t);
  Header table{};
  bool all = read_header(out, table) && table.dtype == static_cast<int>(ScalarType::Long) && table.contiguous &&
             table.numel == kNumbers * n && table.device_type == static_cast<int>(DeviceType::CPU);
  auto* const headers = static_cast<Header*>(table.data);
  for (Py_ssize_t i = 0; all && i < n; ++i) {
    if (i + kAhead < n) __builtin_prefetch(PyList_GetItem(tensors, i + kAhead));
    all = read_header(PyList_GetItem(tensors, i), headers[i]);
  }
  PyErr_Clear();  // what cannot be read goes to the op as a tensor, and the op says what is wrong with it
  return PyBool_FromLong(all);
}

PyObject* instruction_set(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(cpu::kernels().isa);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyMethodDef methods[]{
    {"accept", accept, METH_VARARGS, "accept(Tensor, Parameter): the classes whose instances are plain tensors"},
    {"read_headers", read_headers, METH_VARARGS,
     "read_headers(tensors: list, out: Tensor) -> bool: fills `out`, int64 of shape (n, 3), if all are plain tensors"},
    {"instruction_set", instruction_set, METH_NOARGS, "instruction_set() -> str: of the CPU's kernels in use"},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace
}  // namespace bnb

extern "C" PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, bnb::methods, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
