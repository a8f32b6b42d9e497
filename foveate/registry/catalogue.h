// What the library holds: every mechanism with its forms, their inputs, parameters, options and outputs.
//
//   for (const auto& [card, forms] : foveate::catalogue()) std::cout << card->title << " (arXiv " << card->paper << ")\n";
#pragma once
#include <foveate/contract.h>

#include <vector>

namespace foveate {

struct Mechanism {
  const Card* card = nullptr;
  std::vector<const registry::FormInfo*> forms;  ///< by name
};

/// Every mechanism that has been registered, by slug. The pointers stay valid.
FOVEATE_API std::vector<Mechanism> catalogue();

}  // namespace foveate
