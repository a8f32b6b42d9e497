// Safetensors files: what is written is read, and files that are wrong are refused with a reason.
#include <foveate/cbam.h>
#include <foveate/module.h>
#include <foveate/safetensors.h>
#include <foveate/vanilla.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <filesystem>
#include <fstream>

namespace foveate {
namespace {

namespace fs = std::filesystem;

class SafetensorsFile : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / (std::string("foveate-") + testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path path() const { return folder_ / "state.safetensors"; }

  /// A file of this header and so many bytes of data.
  void write(const std::string& header, std::size_t data, optional<uint64_t> length = {}) const {
    std::ofstream out(path(), std::ios::binary);
    const uint64_t written = length.value_or(header.size());
    for (int i = 0; i < 8; ++i) out.put(static_cast<char>(written >> (8 * i)));
    out << header << std::string(data, '\0');
  }

  void expect_refused(const std::string& why) const {
    try {
      read_safetensors(path());
      ADD_FAILURE() << "accepted; expected: " << why;
    } catch (const c10::Error& error) {
      EXPECT_NE(std::string(error.what_without_backtrace()).find(why), std::string::npos) << error.what_without_backtrace();
    }
  }

  fs::path folder_;
};

TEST_F(SafetensorsFile, EveryTypeAndShapeComesBack) {
  Safetensors content{.tensors = {}, .metadata = {{"quote\"d", "a\nb\\ \xC3\xBC"}}};
  for (const auto type : {at::kBool, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kBFloat16, at::kFloat, at::kDouble}) {
    content.tensors[c10::str("t.", type)] = torch::arange(6).view({2, 3}).to(type);
  }
  content.tensors["scalar"] = torch::tensor(3.5);
  content.tensors["empty"] = torch::zeros({0, 4});
  content.tensors["transposed"] = torch::randn({3, 4}).t();
  content.tensors["of a layer"] = torch::randn({2}).requires_grad_();
  write_safetensors(content, path());
  const auto read = read_safetensors(path());
  EXPECT_EQ(read.metadata, content.metadata);
  ASSERT_EQ(read.tensors.size(), content.tensors.size());
  for (const auto& [name, tensor] : content.tensors) {
    EXPECT_EQ(read.tensors.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(torch::equal(read.tensors.at(name), tensor.detach())) << name;
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1) << "a temporary file is left";
}

TEST_F(SafetensorsFile, AStateGoesFromOneLayerIntoAnother) {
  Module<BAM> one({.gate_channels = 4, .reduction_ratio = 2}), two({.gate_channels = 4, .reduction_ratio = 2});
  const auto x = torch::randn({3, 4, 5, 5});
  one(x);  // statistics move
  save_safetensors(*one, path());
  load_safetensors(*two, path());
  one->eval();
  two->eval();
  EXPECT_TRUE(torch::equal(one(x), two(x)));
  EXPECT_TRUE(two->parameters()[0].requires_grad());
}

TEST_F(SafetensorsFile, LoadingConvertsTheType) {
  Module<MultiheadAttention> one({.embed_dim = 4, .num_heads = 2}), two({.embed_dim = 4, .num_heads = 2});
  one->to(torch::kDouble);
  save_safetensors(*one, path());
  load_safetensors(*two, path());
  EXPECT_EQ(two->parameters()[0].scalar_type(), torch::kFloat);
  EXPECT_TRUE(torch::allclose(two->parameters()[0], one->parameters()[0].to(torch::kFloat)));
}

TEST_F(SafetensorsFile, WhatDoesNotFitIsNamedAndNothingChanges) {
  Module<MultiheadAttention> layer({.embed_dim = 4, .num_heads = 2});
  const auto before = layer->tensors().query.weight.clone();
  write_safetensors(
      {.tensors = {{"query.weight", torch::zeros({4, 4})}, {"key.weight", torch::zeros({4, 5})}, {"gate", torch::zeros({1})}}, .metadata = {}},
      path());
  try {
    load_safetensors(*layer, path());
    FAIL() << "accepted";
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    for (const auto* part : {"does not fit MultiheadAttention", "missing: key.bias, out.bias, out.weight, query.bias, value.bias, value.weight",
                             "unexpected: gate", "misshapen: key.weight [4, 5] instead of [4, 4]"}) {
      EXPECT_NE(what.find(part), std::string::npos) << part << " in " << what;
    }
  }
  EXPECT_TRUE(torch::equal(before, layer->tensors().query.weight));
}

TEST_F(SafetensorsFile, AFileThatCannotBeWrittenLeavesTheOldOne) {
  write_safetensors({.tensors = {{"a", torch::ones({2})}}, .metadata = {}}, path());
  EXPECT_THROW(write_safetensors({.tensors = {{"a", Tensor()}}, .metadata = {}}, path()), c10::Error);
  EXPECT_THROW(write_safetensors({.tensors = {{"a", torch::ones({2})}}, .metadata = {}}, folder_ / "absent" / "x"), c10::Error);
  EXPECT_TRUE(torch::equal(read_safetensors(path()).tensors.at("a"), torch::ones({2})));
}

TEST_F(SafetensorsFile, EscapesInNames) {
  write(R"({"a\u00e9\ud83d\ude00\n\"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1);
  EXPECT_TRUE(read_safetensors(path()).tensors.contains("a\xC3\xA9\xF0\x9F\x98\x80\n\""));
}

TEST_F(SafetensorsFile, MalformedFilesAreRefusedWithAReason) {
  const auto entry = [](const std::string& rest) { return R"({"a":{"dtype":"F32",)" + rest + "}}"; };
  const std::vector<std::tuple<std::string, std::size_t, std::string>> cases{
      {"", 0, "expected '{'"},
      {"[]", 0, "expected '{'"},
      {"{} x", 0, "text behind"},
      {"{\"a", 0, "a string without end"},
      {"{\"a\x01\":{}}", 0, "a control character"},
      {"{\"a\\q\":{}}", 0, "an unknown escape"},
      {"{\"a\\u12g4\":{}}", 0, "not hexadecimal"},
      {"{\"a\\ud800\":{}}", 0, "surrogate"},
      {"{\"a\":{}}", 0, "needs dtype, shape and data_offsets for a"},
      {R"({"a":{"dtype":"F31","shape":[],"data_offsets":[0,4]}})", 4, "unknown dtype 'F31'"},
      {entry(R"("shape":[1],"data_offsets":[0])"), 4, "needs two data_offsets"},
      {entry(R"("shape":[-1],"data_offsets":[0,4])"), 4, "not negative"},
      {entry(R"("shape":[1.5],"data_offsets":[0,4])"), 4, "expected ']'"},
      {entry(R"("shape":[99999999999999999999],"data_offsets":[0,4])"), 4, "beyond 64 bits"},
      {entry(R"("shape":[4294967296,4294967296],"data_offsets":[0,4])"), 4, "gives a 4 bytes"},
      {entry(R"("shape":[2],"data_offsets":[0,4])"), 4, "its shape needs 8"},
      {entry(R"("shape":[1],"data_offsets":[4,8])"), 8, "expected it to start at 0"},
      {entry(R"("shape":[1],"data_offsets":[4,0])"), 8, "expected it to start at 0"},
      {entry(R"("shape":[1],"data_offsets":[0,4])"), 3, "describes 4 bytes of tensors and holds 3"},
      {entry(R"("shape":[1],"data_offsets":[0,4])"), 5, "describes 4 bytes of tensors and holds 5"},
      {entry(R"("shape":[1],"data_offsets":[0,4],"strides":[1])"), 4, "says 'strides'"},
      {R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2, "names 'a' twice"},
      {R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})", 2,
       "expected it to start at 2"},
      {R"({"__metadata__":{"a":1}})", 0, "expected '\"'"},
  };
  for (const auto& [header, data, why] : cases) {
    SCOPED_TRACE(header);
    write(header, data);
    expect_refused(why);
  }
  write("{}", 0, 3);
  expect_refused("a header of 3 bytes in a file of 10");
  write("{}", 0, ~uint64_t{0});
  expect_refused("is no safetensors file");
  std::ofstream(path(), std::ios::binary) << "short";
  expect_refused("is too short: 5 bytes");
  fs::remove(path());
  expect_refused("cannot open");
}

TEST_F(SafetensorsFile, EveryTruncationIsRefused) {
  write_safetensors({.tensors = {{"a", torch::randn({3})}, {"b", torch::arange(4)}}, .metadata = {{"k", "v"}}}, path());
  std::ifstream in(path(), std::ios::binary);
  const std::string whole{std::istreambuf_iterator<char>(in), {}};
  for (std::size_t size = 0; size < whole.size(); ++size) {
    std::ofstream(path(), std::ios::binary | std::ios::trunc) << whole.substr(0, size);
    EXPECT_THROW(read_safetensors(path()), c10::Error) << size;
  }
}

}  // namespace
}  // namespace foveate
