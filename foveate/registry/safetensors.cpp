#include <foveate/json.h>
#include <foveate/safetensors.h>
#include <torch/nn/module.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <fstream>
#include <limits>
#include <set>
#include <string_view>
#include <system_error>

namespace foveate {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are written as they lie in memory");

constexpr int64_t longest_header = 100'000'000;  // as the reference implementation

struct Dtype {
  std::string_view name;
  at::ScalarType type;
};
constexpr std::array<Dtype, 14> dtypes{{
    {"BOOL", at::kBool},
    {"U8", at::kByte},
    {"I8", at::kChar},
    {"I16", at::kShort},
    {"U16", at::kUInt16},
    {"I32", at::kInt},
    {"U32", at::kUInt32},
    {"I64", at::kLong},
    {"U64", at::kUInt64},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"F32", at::kFloat},
    {"F64", at::kDouble},
    {"C64", at::kComplexFloat},
}};

/// One tensor as the header describes it.
struct Entry {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;
  int64_t begin = 0, end = 0;
};

/// Reads the one kind of JSON that headers are: an object of entries, and of strings under __metadata__.
class HeaderReader {
 public:
  HeaderReader(std::string_view text, std::string file) : text_(text), file_(std::move(file)) {}

  void read(std::vector<Entry>& entries, std::map<std::string, std::string>& metadata) {
    std::set<std::string> seen;
    object([&](std::string name) {
      require(seen.insert(name).second, "names '", name, "' twice");
      if (name == "__metadata__") {
        object([&](const std::string& key) { metadata[key] = string(); });
      } else {
        entries.push_back(entry(std::move(name)));
      }
    });
    skip_space();
    require(at_ == text_.size(), "has text behind its header");
  }

 private:
  template <class... What> void require(bool condition, const What&... what) const {
    TORCH_CHECK_VALUE(condition, "safetensors: ", file_, " ", what..., " (byte ", at_, " of the header)");
  }
  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  bool take(char c) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) { require(take(c), "has a malformed header: expected '", c, "'"); }

  template <class F> void object(F member) {
    expect('{');
    if (take('}')) return;
    do {
      std::string name = string();
      expect(':');
      member(std::move(name));
    } while (take(','));
    expect('}');
  }

  std::string string() {
    expect('"');
    std::string value;
    for (;;) {
      require(at_ < text_.size(), "has a malformed header: a string without end");
      const char c = text_[at_++];
      if (c == '"') return value;
      require(static_cast<unsigned char>(c) >= 0x20, "has a malformed header: a control character in a string");
      if (c == '\\') escape(value);
      else value += c;
    }
  }

  void escape(std::string& value) {
    require(at_ < text_.size(), "has a malformed header: a string without end");
    constexpr std::string_view letters = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
    const char c = text_[at_++];
    if (const auto i = letters.find(c); i != std::string_view::npos) {
      value += meanings[i];
      return;
    }
    require(c == 'u', "has a malformed header: an unknown escape");
    uint32_t code = hex();
    if (code >= 0xD800 && code < 0xDC00) {  // half of a pair
      require(text_.substr(at_, 2) == "\\u", "has a malformed header: half a surrogate pair");
      at_ += 2;
      const uint32_t low = hex();
      require(low >= 0xDC00 && low < 0xE000, "has a malformed header: half a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    require(code < 0xD800 || code >= 0xE000, "has a malformed header: half a surrogate pair");
    const auto byte = [&](uint32_t b) { value += static_cast<char>(b); };
    const auto tail = [&](int shift) { byte(0x80 | ((code >> shift) & 0x3F)); };
    if (code < 0x80) return byte(code);
    if (code < 0x800) return byte(0xC0 | (code >> 6)), tail(0);
    if (code < 0x10000) return byte(0xE0 | (code >> 12)), tail(6), tail(0);
    byte(0xF0 | (code >> 18)), tail(12), tail(6), tail(0);
  }

  uint32_t hex() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      constexpr std::string_view digits = "0123456789abcdef";
      const auto digit = at_ < text_.size() ? digits.find(static_cast<char>(text_[at_] | (text_[at_] >= 'A' && text_[at_] <= 'F' ? 0x20 : 0)))
                                            : std::string_view::npos;
      require(digit != std::string_view::npos, "has a malformed header: an escape that is not hexadecimal");
      code = code * 16 + static_cast<uint32_t>(digit);
      ++at_;
    }
    return code;
  }

  int64_t integer() {
    skip_space();
    int64_t value = 0;
    const std::size_t start = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const int64_t digit = text_[at_] - '0';
      require(value <= (std::numeric_limits<int64_t>::max() - digit) / 10, "has a number beyond 64 bits");
      value = value * 10 + digit;
    }
    require(at_ > start, "has a malformed header: expected a whole number that is not negative");
    return value;
  }

  std::vector<int64_t> integers() {
    std::vector<int64_t> values;
    expect('[');
    if (take(']')) return values;
    do values.push_back(integer());
    while (take(','));
    expect(']');
    return values;
  }

  Entry entry(std::string name) {
    Entry made{.name = std::move(name)};
    std::array<bool, 3> found{};
    object([&](const std::string& key) {
      if (key == "dtype") {
        const std::string type = string();
        const auto* const known = std::find_if(dtypes.begin(), dtypes.end(), [&](const Dtype& d) { return d.name == type; });
        require(known != dtypes.end(), "holds ", made.name, " of the unknown dtype '", type, "'");
        made.dtype = known->type;
        found[0] = true;
      } else if (key == "shape") {
        made.shape = integers();
        found[1] = true;
      } else if (key == "data_offsets") {
        const auto offsets = integers();
        require(offsets.size() == 2, "needs two data_offsets for ", made.name);
        made.begin = offsets[0];
        made.end = offsets[1];
        found[2] = true;
      } else {
        require(false, "says '", key, "' of ", made.name, ", which the format does not know");
      }
    });
    require(found[0] && found[1] && found[2], "needs dtype, shape and data_offsets for ", made.name);
    return made;
  }

  std::string_view text_;
  std::string file_;
  std::size_t at_ = 0;
};

/// The bytes that a shape needs; -1 where they are more than 64 bits can count.
int64_t bytes_of(const Entry& entry) {
  int64_t bytes = static_cast<int64_t>(c10::elementSize(entry.dtype));
  if (std::find(entry.shape.begin(), entry.shape.end(), 0) != entry.shape.end()) return 0;
  for (const int64_t size : entry.shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) return -1;
  }
  return bytes;
}

/// Entries must fill the data without overlap or hole, in whatever order.
void check_layout(const std::vector<Entry>& entries, int64_t data, const std::string& file) {
  std::vector<const Entry*> in_order;
  for (const auto& entry : entries) in_order.push_back(&entry);
  std::sort(in_order.begin(), in_order.end(), [](auto* a, auto* b) { return std::pair(a->begin, a->end) < std::pair(b->begin, b->end); });
  int64_t at = 0;
  for (const Entry* entry : in_order) {
    TORCH_CHECK_VALUE(entry->begin == at && entry->end >= at, "safetensors: ", file, " places ", entry->name, " at ", entry->begin, " to ",
                      entry->end, ", expected it to start at ", at);
    TORCH_CHECK_VALUE(bytes_of(*entry) == entry->end - entry->begin, "safetensors: ", file, " gives ", entry->name, " ", entry->end - entry->begin,
                      " bytes, its shape needs ", bytes_of(*entry));
    at = entry->end;
  }
  TORCH_CHECK_VALUE(at == data, "safetensors: ", file, " describes ", at, " bytes of tensors and holds ", data);
}

std::string header_of(const Safetensors& content) {
  json::Writer w;
  w.open('{');
  if (!content.metadata.empty()) {
    w.key("__metadata__").open('{');
    for (const auto& [key, value] : content.metadata) w.pair(key, value);
    w.close('}');
  }
  int64_t at = 0;
  for (const auto& [name, tensor] : content.tensors) {
    TORCH_CHECK_VALUE(tensor.defined() && tensor.layout() == at::kStrided, "safetensors: ", name, " must be a dense tensor");
    const auto* const dtype = std::find_if(dtypes.begin(), dtypes.end(), [&](const Dtype& d) { return d.type == tensor.scalar_type(); });
    TORCH_CHECK_VALUE(dtype != dtypes.end(), "safetensors: ", name, ": the format has no ", tensor.scalar_type());
    const auto end = at + static_cast<int64_t>(tensor.nbytes());
    w.key(name).open('{').pair("dtype", dtype->name).key("shape").list(tensor.sizes().vec());
    w.key("data_offsets").list(std::vector<int64_t>{at, end}).close('}');
    at = end;
  }
  w.close('}');
  std::string header = w.text();
  header.resize((header.size() + 7) / 8 * 8, ' ');  // tensors start aligned
  return header;
}

/// A neighbour of the path that no other writer uses.
std::filesystem::path temporary_beside(const std::filesystem::path& path) {
  static std::atomic<int> count = 0;
  auto beside = path;
  return beside += c10::str(".tmp", ::getpid(), "-", count++);
}

}  // namespace

Safetensors read_safetensors(const std::filesystem::path& path) {
  const std::string file = path.string();
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  TORCH_CHECK_VALUE(in, "safetensors: cannot open ", file);
  const auto size = static_cast<int64_t>(in.tellg());
  in.seekg(0);
  std::array<unsigned char, 8> prefix{};
  TORCH_CHECK_VALUE(size >= 8 && in.read(reinterpret_cast<char*>(prefix.data()), 8), "safetensors: ", file, " is too short: ", size, " bytes");
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | prefix[static_cast<std::size_t>(i)];
  TORCH_CHECK_VALUE(length <= static_cast<uint64_t>(std::min(size - 8, longest_header)), "safetensors: ", file,
                    " is no safetensors file: a header of ", length, " bytes in a file of ", size);
  std::string header(length, '\0');
  TORCH_CHECK_VALUE(in.read(header.data(), static_cast<std::streamsize>(length)), "safetensors: cannot read ", file);

  Safetensors content;
  std::vector<Entry> entries;
  HeaderReader(header, file).read(entries, content.metadata);
  const int64_t data = 8 + static_cast<int64_t>(length);
  check_layout(entries, size - data, file);
  for (const auto& entry : entries) {
    const Tensor tensor = at::empty(entry.shape, entry.dtype);
    if (entry.end > entry.begin) {
      in.seekg(data + entry.begin);
      TORCH_CHECK_VALUE(in.read(static_cast<char*>(tensor.data_ptr()), entry.end - entry.begin), "safetensors: cannot read ", entry.name, " of ",
                        file);
    }
    content.tensors.emplace(entry.name, tensor);
  }
  return content;
}

void write_safetensors(const Safetensors& content, const std::filesystem::path& path) {
  const std::string header = header_of(content);
  const auto temporary = temporary_beside(path);
  try {
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    TORCH_CHECK_VALUE(out, "safetensors: cannot write ", temporary.string());
    std::array<char, 8> prefix{};
    for (std::size_t i = 0; i < 8; ++i) prefix[i] = static_cast<char>(static_cast<uint64_t>(header.size()) >> (8 * i));
    out.write(prefix.data(), 8);
    out.write(header.data(), static_cast<std::streamsize>(header.size()));
    for (const auto& [name, tensor] : content.tensors) {
      const Tensor solid = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg();
      if (solid.nbytes() > 0) out.write(static_cast<const char*>(solid.const_data_ptr()), static_cast<std::streamsize>(solid.nbytes()));
    }
    out.close();
    TORCH_CHECK_VALUE(out, "safetensors: cannot write ", path.string(), ": is the disk full?");
    std::filesystem::rename(temporary, path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
}

namespace {

std::map<std::string, Tensor> state_of(const torch::nn::Module& module) {
  std::map<std::string, Tensor> state;
  for (const auto& item : module.named_parameters()) state.emplace(item.key(), item.value());
  for (const auto& item : module.named_buffers()) state.emplace(item.key(), item.value());
  return state;
}

}  // namespace

void save_safetensors(const torch::nn::Module& module, const std::filesystem::path& path) {
  write_safetensors({.tensors = state_of(module), .metadata = {{"format", "pt"}}}, path);
}

void load_safetensors(torch::nn::Module& module, const std::filesystem::path& path) {
  const auto given = read_safetensors(path).tensors;
  auto state = state_of(module);
  std::string missing, unexpected, misshapen;
  const auto note = [](std::string& list, std::string_view what) { (list += list.empty() ? "" : ", ") += what; };
  for (const auto& [name, tensor] : state) {
    const auto found = given.find(name);
    if (found == given.end()) note(missing, name);
    else if (found->second.sizes() != tensor.sizes()) note(misshapen, c10::str(name, " ", found->second.sizes(), " instead of ", tensor.sizes()));
  }
  for (const auto& [name, tensor] : given) {
    if (!state.contains(name)) note(unexpected, name);
  }
  std::string problems;
  for (const auto& [kind, names] : {std::pair("missing", missing), {"unexpected", unexpected}, {"misshapen", misshapen}}) {
    if (!names.empty()) problems += c10::str("; ", kind, ": ", names);
  }
  TORCH_CHECK_VALUE(problems.empty(), "safetensors: ", path.string(), " does not fit ", module.name(), problems);
  const at::NoGradGuard no_grad;
  for (auto& [name, tensor] : state) tensor.copy_(given.at(name));
}

}  // namespace foveate
