// States as safetensors files, the format that Python's `safetensors` reads and writes: a state saved in one language loads in the other.
//
//   8 bytes, little-endian: the length of the header; the header, JSON: name -> dtype, shape, data_offsets; the tensors' bytes
#pragma once
#include <foveate/tensor.h>

#include <filesystem>
#include <map>
#include <string>

namespace torch::nn { class Module; }

namespace foveate {

/// Writes the parameters and buffers of a module under their dotted names. The file appears whole or not at all.
FOVEATE_API void save_safetensors(const torch::nn::Module& module, const std::filesystem::path& path);

/// Copies a file into the parameters and buffers of a module, converting dtype and device where they differ. Names and shapes must agree:
/// if any is missing, unexpected or misshapen, the error names them all and the module is left as it was.
FOVEATE_API void load_safetensors(torch::nn::Module& module, const std::filesystem::path& path);

/// The content of a file.
struct Safetensors {
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;
};
FOVEATE_API Safetensors read_safetensors(const std::filesystem::path& path);
FOVEATE_API void write_safetensors(const Safetensors& content, const std::filesystem::path& path);

}  // namespace foveate
