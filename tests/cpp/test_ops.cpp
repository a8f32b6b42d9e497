// The primitives and the forms as plain C++ functions.
#include <foveate/attention.h>
#include <foveate/catalogue.h>
#include <foveate/merge_attention.h>
#include <foveate/non_local.h>
#include <foveate/norm.h>
#include <foveate/vanilla.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

namespace foveate {
namespace {

TEST(Ops, AttentionIsSoftmaxOfScores) {
  const auto q = torch::randn({2, 3, 5, 4}, torch::kDouble), k = torch::randn({2, 3, 6, 4}, torch::kDouble),
             v = torch::randn({2, 3, 6, 2}, torch::kDouble);
  const auto scores = q.matmul(k.transpose(-1, -2)) / 2;
  const auto [out, lse] = ops::attention(q, k, v);
  EXPECT_TRUE(torch::allclose(out, scores.softmax(-1).matmul(v)));
  EXPECT_TRUE(torch::allclose(lse, scores.logsumexp(-1)));
}

TEST(Ops, AQueryThatSeesNothingGivesZeros) {
  const auto q = torch::randn({1, 1, 2, 4}).requires_grad_();
  const auto [out, lse] = ops::attention(q, q, q, {.key_mask = torch::zeros({1, 2}, torch::kBool)});
  EXPECT_TRUE(torch::equal(out, torch::zeros_like(out)));
  EXPECT_TRUE(lse.isneginf().all().item<bool>());
  EXPECT_TRUE(torch::equal(torch::autograd::grad({out.sum()}, {q})[0], torch::zeros_like(q)));
}

TEST(Ops, PartsOfTheKeysMergeIntoTheWhole) {
  const auto q = torch::randn({1, 2, 3, 4}), k = torch::randn({1, 2, 7, 4}), v = torch::randn({1, 2, 7, 4});
  const std::array parts{ops::attention(q, k.slice(2, 0, 3), v.slice(2, 0, 3)), ops::attention(q, k.slice(2, 3), v.slice(2, 3))};
  EXPECT_TRUE(torch::allclose(ops::merge_attention(parts).out, ops::attention(q, k, v).out, 1e-5, 1e-6));
}

TEST(Ops, WrongArgumentsAreNamed) {
  const auto q = torch::randn({1, 2, 3, 4});
  try {
    ops::attention(q, q.slice(3, 0, 2), q);
    FAIL() << "accepted";
  } catch (const c10::ValueError& error) {
    EXPECT_NE(std::string(error.what_without_backtrace()).find("attention: k must be [B,Hk,M,D]"), std::string::npos)
        << error.what_without_backtrace();
  }
}

TEST(Forms, AreFunctionsOfStructs) {
  const auto q = torch::randn({1, 2, 3, 4});
  const auto found = Attention::forward({.causal = true}, {}, {.q = q, .k = q, .v = q});
  EXPECT_TRUE(torch::equal(found.out, ops::attention(q, q, q, {.causal = true}).out));

  const MultiheadAttention::Options options{.embed_dim = 8, .num_heads = 2};
  const auto parameters = MultiheadAttention::init(options);
  const auto out = MultiheadAttention::forward(options, parameters, {.x = torch::randn({2, 3, 8})});
  EXPECT_EQ(out.sizes(), (at::IntArrayRef{2, 3, 8}));
}

TEST(Forms, BuffersFollowInTrainingOnly) {
  const NonLocalBlock::Options options{.in_channels = 4};
  const auto parameters = NonLocalBlock::init(options);
  const NonLocalBlock::Inputs inputs{.x = torch::randn({2, 4, 4, 4})};
  NonLocalBlock::forward(options, parameters, inputs, /*training=*/false);
  EXPECT_TRUE(torch::equal(parameters.norm->running_mean, torch::zeros({4})));
  NonLocalBlock::forward(options, parameters, inputs, /*training=*/true);
  EXPECT_FALSE(torch::equal(parameters.norm->running_mean, torch::zeros({4})));
}

TEST(Layers, BatchNormDifferentiatesRightlyWhereLibtorchDoesNot) {
  // One sample, and a gradient ordered channels-last, as behind flatten, transpose, matmul.
  auto norm = layers::BatchNorm::init(4);
  for (auto* t : {&norm.weight, &norm.bias, &norm.running_mean, &norm.running_var}) *t = t->to(torch::kDouble);
  const auto x = torch::randn({1, 4, 3, 5}, torch::kDouble).requires_grad_();
  const auto weights = torch::randn({4, 2}, torch::kDouble);
  const auto gradient = [&](const Tensor& y) { return torch::autograd::grad({y.flatten(2).transpose(1, 2).matmul(weights).square().sum()}, {x})[0]; };
  const auto mean = x.mean(at::IntArrayRef{2, 3}, true), variance = x.var(at::IntArrayRef{2, 3}, false, true);
  EXPECT_TRUE(torch::allclose(gradient(norm(x, /*training=*/true)), gradient((x - mean) / (variance + 1e-5).sqrt()), 1e-8, 1e-10));
}

TEST(Catalogue, ListsMechanismsBySlug) {
  const auto all = catalogue();
  EXPECT_TRUE(std::is_sorted(all.begin(), all.end(), [](auto& a, auto& b) { return a.card->slug < b.card->slug; }));
  const auto found = std::find_if(all.begin(), all.end(), [](auto& m) { return m.card->slug == "vanilla"; });
  ASSERT_NE(found, all.end());
  EXPECT_EQ(found->card->paper, "1706.03762");
  ASSERT_EQ(found->forms.size(), 2U);
  EXPECT_EQ(found->forms[1]->class_name, "MultiheadAttention");
  EXPECT_EQ(found->forms[1]->options[0].name, "embed_dim");
}

}  // namespace
}  // namespace foveate
