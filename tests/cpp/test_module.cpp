// Forms as torch::nn modules: names, calls, training, copies, archives.
#include <foveate/blockwise.h>
#include <foveate/cbam.h>
#include <foveate/module.h>
#include <foveate/non_local.h>
#include <foveate/vanilla.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <sstream>

namespace foveate {
namespace {

using Layer = Module<MultiheadAttention>;

template <class Items> std::vector<std::string> keys(const Items& items) {
  std::vector<std::string> names;
  for (const auto& item : items) names.push_back(item.key());
  return names;
}

void expect_throw(const std::string& message, const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "accepted; expected: " << message;
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    EXPECT_NE(what.find(message), std::string::npos) << what;
  }
}

TEST(Module, ParametersCarryDottedNames) {
  const Layer layer({.embed_dim = 8, .num_heads = 2});
  EXPECT_EQ(keys(layer->named_parameters()), (std::vector<std::string>{"query.weight", "query.bias", "key.weight", "key.bias", "value.weight",
                                                                       "value.bias", "out.weight", "out.bias"}));
  const Layer plain({.embed_dim = 8, .num_heads = 2, .bias = false});
  EXPECT_EQ(keys(plain->named_parameters()), (std::vector<std::string>{"query.weight", "key.weight", "value.weight", "out.weight"}));
  for (const auto& parameter : layer->parameters()) EXPECT_TRUE(parameter.requires_grad());
}

TEST(Module, GroupsOfVariableNumberBecomeNumberedChildren) {
  const Module<BAM> layer({.gate_channels = 4, .reduction_ratio = 2, .num_layers = 2, .dilation_conv_num = 0});
  EXPECT_EQ(keys(layer->named_buffers()), (std::vector<std::string>{"channel.hidden.0.norm.running_mean", "channel.hidden.0.norm.running_var",
                                                                    "channel.hidden.1.norm.running_mean", "channel.hidden.1.norm.running_var",
                                                                    "spatial.hidden.0.norm.running_mean", "spatial.hidden.0.norm.running_var"}));
  EXPECT_TRUE(layer->named_parameters().contains("channel.hidden.1.linear.weight"));
}

TEST(Module, ForwardIsTheFormsOwn) {
  torch::manual_seed(0);
  Layer layer({.embed_dim = 8, .num_heads = 2, .causal = true});
  const auto x = torch::randn({2, 5, 8});
  const auto want = MultiheadAttention::forward(layer->options(), layer->tensors(), {.x = x});
  EXPECT_TRUE(torch::equal(layer->forward({.x = x}), want));
  EXPECT_TRUE(torch::equal(layer({.x = x}), want));
  EXPECT_TRUE(torch::equal(layer(x), want));
}

TEST(Module, AFormWithoutParametersIsAModuleToo) {
  Module<Attention> attention({.causal = true});
  const auto q = torch::randn({1, 2, 3, 4});
  const auto [out, lse] = attention(q, q, q);
  EXPECT_EQ(out.sizes(), q.sizes());
  EXPECT_EQ(lse.sizes(), (at::IntArrayRef{1, 2, 3}));
  EXPECT_TRUE(attention->parameters().empty());
}

TEST(Module, StreamingEqualsTheWhole) {
  Layer layer({.embed_dim = 8, .num_heads = 2, .causal = true});
  const auto x = torch::randn({2, 7, 8});
  auto [first, state] = layer->step({.x = x.slice(1, 0, 3)});
  auto [second, ended] = layer->step({.x = x.slice(1, 3)}, state);
  EXPECT_TRUE(torch::allclose(torch::cat({first, second}, 1), layer(x), 1e-5, 1e-6));
  EXPECT_EQ(ended.k.size(2), 7);
}

TEST(Module, OptimisersTrainIt) {
  torch::manual_seed(0);
  Layer layer({.embed_dim = 8, .num_heads = 2});
  torch::optim::SGD optimiser(layer->parameters(), 0.1);
  const auto x = torch::randn({2, 5, 8});
  double before = 0, after = 0;
  for (int i = 0; i < 20; ++i) {
    optimiser.zero_grad();
    const auto loss = (layer(x) - x).square().mean();
    loss.backward();
    optimiser.step();
    (i ? after : before) = loss.item<double>();
  }
  EXPECT_LT(after, before);
}

TEST(Module, TrainingFollowsTheModuleAndMovesStatistics) {
  Module<NonLocalBlock> block({.in_channels = 4});
  const auto x = torch::randn({2, 4, 4, 4});
  const auto mean = block->named_buffers()["norm.running_mean"];
  block->eval();
  block(x);
  EXPECT_TRUE(torch::equal(mean, torch::zeros({4})));
  block->train();
  block(x);
  EXPECT_FALSE(torch::equal(mean, torch::zeros({4})));
  EXPECT_TRUE(torch::equal(block->tensors().norm->running_mean, mean));
}

TEST(Module, MovesToAnotherType) {
  Layer layer({.embed_dim = 8, .num_heads = 2});
  layer->to(torch::kDouble);
  EXPECT_EQ(layer(torch::randn({1, 3, 8}, torch::kDouble)).scalar_type(), torch::kDouble);
  expect_throw("multihead_attention: query.weight must be Float like x, got Double", [&] { layer(torch::randn({1, 3, 8})); });
}

TEST(Module, WholeNumbersStayWholeNumbers) {
  Module<BlockwiseMultiheadAttention> layer({.embed_dim = 8, .num_heads = 2});
  const Tensor table = layer->tensors().permutations.clone();
  layer->to(torch::kDouble);
  layer->to(torch::kCPU, torch::kFloat);
  EXPECT_TRUE(layer->tensors().permutations.equal(table));
  EXPECT_EQ(layer->tensors().permutations.scalar_type(), torch::kLong);
  EXPECT_EQ(layer->tensors().attention.query.weight.scalar_type(), torch::kFloat);
  EXPECT_EQ(layer({.x = torch::randn({1, 5, 8})}).scalar_type(), torch::kFloat);
}

TEST(Module, AClonesParametersAreItsOwn) {
  Module<BAM> layer({.gate_channels = 4, .reduction_ratio = 2});
  layer->eval();
  layer->parameters()[0].set_requires_grad(false);
  const Module<BAM> copy(std::dynamic_pointer_cast<ModuleImpl<BAM>>(layer->clone()));
  EXPECT_FALSE(copy->is_training());
  EXPECT_FALSE(copy->parameters()[0].requires_grad());
  EXPECT_TRUE(copy->parameters()[1].requires_grad());
  const auto x = torch::randn({2, 4, 3, 3});
  auto handle = copy;
  EXPECT_TRUE(torch::equal(layer(x), handle(x)));
  {
    const torch::NoGradGuard no_grad;
    for (auto& p : layer->parameters()) p.add_(1);
  }
  EXPECT_FALSE(torch::allclose(layer(x), handle(x)));
}

struct NetImpl : torch::nn::Cloneable<NetImpl> {
  NetImpl() { reset(); }  // NOLINT(clang-analyzer-optin.cplusplus.VirtualCall): as torch's own modules do
  void reset() override { attention = register_module("attention", Layer({.embed_dim = 8, .num_heads = 2})); }
  Layer attention{nullptr};
};

TEST(Module, IsAChildOfOtherModulesAndIsClonedWithThem) {
  const auto net = std::make_shared<NetImpl>();
  const auto copy = std::dynamic_pointer_cast<NetImpl>(net->clone());
  EXPECT_TRUE(net->named_parameters().contains("attention.query.weight"));
  const auto x = torch::randn({1, 3, 8});
  EXPECT_TRUE(torch::equal(net->attention(x), copy->attention(x)));
  EXPECT_FALSE(net->attention->parameters()[0].is_same(copy->attention->parameters()[0]));
}

TEST(Module, ArchivesKeepTheFunction) {
  Layer layer({.embed_dim = 8, .num_heads = 2}), other({.embed_dim = 8, .num_heads = 2});
  std::stringstream archive;
  torch::save(layer, archive);
  torch::load(other, archive);
  const auto x = torch::randn({1, 3, 8});
  EXPECT_TRUE(torch::equal(layer(x), other(x)));
}

TEST(Module, TheSeedDecidesTheInitialValues) {
  torch::manual_seed(3);
  Layer one({.embed_dim = 8, .num_heads = 2});
  Layer two({.embed_dim = 8, .num_heads = 2});
  EXPECT_FALSE(torch::equal(one->parameters()[0], two->parameters()[0]));
  torch::manual_seed(3);
  two->reset_parameters();
  for (std::size_t i = 0; i < one->parameters().size(); ++i) EXPECT_TRUE(torch::equal(one->parameters()[i], two->parameters()[i]));
}

TEST(Module, PrintsItsOptionsAndGroups) {
  std::ostringstream text;
  text << Layer({.embed_dim = 8, .num_heads = 2, .bias = false});
  EXPECT_EQ(text.str(),
            "MultiheadAttention(embed_dim=8, num_heads=2, bias=False, causal=False, causal_align=\"bottom_right\", dropout=0.0)(\n  (query): "
            "Group(weight=[8, 8])\n  (key): Group(weight=[8, 8])\n  (value): Group(weight=[8, 8])\n  (out): Group(weight=[8, 8])\n)");
}

TEST(Module, ChecksOptionsAndArgumentsByName) {
  expect_throw("num_heads must divide embed_dim", [] { Layer({.embed_dim = 8, .num_heads = 3}); });
  Layer layer({.embed_dim = 8, .num_heads = 2});
  expect_throw("multihead_attention: x must be [B,N,E], got [3, 8]", [&] { layer(torch::randn({3, 8})); });
  expect_throw("multihead_attention: x is missing", [&] { layer->forward({}); });
  expect_throw("multihead_attention: key_mask must be bool", [&] { layer({.x = torch::randn({1, 3, 8}), .key_mask = torch::ones({1, 3})}); });
}

}  // namespace
}  // namespace foveate
