// Answers what tests/test_cpp_equality.py asks: does the C++ layer do what the Python layer does?
//
//   foveate_equality DIRECTORY
//
// Each DIRECTORY/x.question.safetensors names a form and its options in its metadata ("form", "option.embed_dim", "training", "step") and holds
// the inputs; x.state.safetensors is a state that Python saved. The answer goes to x.answer.safetensors: the initial values of a fresh
// layer (seed 0), the outputs; and the state after the call to x.saved.safetensors.
#include "equality.h"

#include <iostream>

namespace foveate::equality {
namespace {

void run(const fs::path& folder) {
  const std::string suffix = ".question.safetensors";
  for (const auto& file : fs::directory_iterator(folder)) {
    const std::string path = file.path().string();
    if (!path.ends_with(suffix)) continue;
    const std::string stem = path.substr(0, path.size() - suffix.size());
    const auto question = read_safetensors(path);
    const std::string& form = question.metadata.at("form");
    try {
      write_safetensors(answers().at(form)(question, stem + ".state.safetensors", stem + ".saved.safetensors"), stem + ".answer.safetensors");
    } catch (const std::exception& error) {
      std::cerr << stem << ": " << form << ": " << error.what() << '\n';
    }
  }
}

}  // namespace
}  // namespace foveate::equality

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: foveate_equality DIRECTORY\n";
    return 2;
  }
  foveate::equality::run(arguments[1]);
  return 0;
}
