// Precompiled for every source of the library: what nearly all of them include.
#pragma once
#include <ATen/ATen.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>
