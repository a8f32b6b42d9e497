#include <torch/library.h>

TORCH_LIBRARY_FRAGMENT(foveate, m) {
  m.def("version() -> str", []() { return std::string(FOVEATE_VERSION); });
}
