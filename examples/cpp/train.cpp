// Trains a small model of two mechanisms to look something up. Every token holds a key and a value; the first holds a key alone, and the
// model is to say which value stands beside that key further on.
#include <foveate/linformer.h>
#include <foveate/module.h>
#include <foveate/vanilla.h>

#include <torch/torch.h>

#include <cstdio>

namespace {

constexpr int64_t length = 17, keys = 16, values = 4, width = 32;

struct Recall : torch::nn::Module {
  torch::nn::Embedding token = register_module("token", torch::nn::Embedding((values + 1) * keys, width));
  torch::nn::LayerNorm norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({width})));
  foveate::Module<foveate::MultiheadAttention> exact =
      register_module("exact", foveate::Module<foveate::MultiheadAttention>({.embed_dim = width, .num_heads = 2}));
  foveate::Module<foveate::LinformerMultiheadAttention> compressed = register_module(
      "compressed", foveate::Module<foveate::LinformerMultiheadAttention>({.embed_dim = width, .num_heads = 2, .length = length, .rank = 8}));
  torch::nn::Linear answer = register_module("answer", torch::nn::Linear(width, values));

  torch::Tensor forward(const torch::Tensor& tokens) {  // [B,N] -> [B,values]
    auto x = token(tokens);
    x = x + exact->forward({.x = x});
    x = x + compressed->forward({.x = norm(x)});
    return answer(x.select(1, 0));
  }
};

struct Batch {
  torch::Tensor tokens;  // [B,N]: key * (values + 1) + value, value 0 where a key stands alone
  torch::Tensor answer;  // [B]
};

Batch draw(int64_t size) {
  const auto order = torch::rand({size, keys}).argsort(int64_t{1});
  const auto beside = torch::randint(values, {size, keys});
  const auto asked = torch::randint(keys, {size, 1});
  const auto pairs = order * (values + 1) + beside + 1;
  const auto question = order.gather(1, asked) * (values + 1);
  return {.tokens = torch::cat({question, pairs}, 1), .answer = beside.gather(1, asked).squeeze(1)};
}

}  // namespace

int main() {
  torch::manual_seed(0);
  Recall model;
  torch::optim::Adam optimizer(model.parameters(), torch::optim::AdamOptions(3e-3));
  for (int step = 0; step <= 300; ++step) {
    const auto [tokens, answer] = draw(128);
    const auto loss = torch::nn::functional::cross_entropy(model.forward(tokens), answer);
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
    if (step % 50 == 0) std::printf("step %3d  loss %.3f\n", step, loss.item<double>());
  }

  const torch::NoGradGuard no_grad;
  const auto [tokens, answer] = draw(1000);
  const double right = model.forward(tokens).argmax(1).eq(answer).to(torch::kFloat64).mean().item<double>();
  std::printf("right answers: %.1f%%\n", 100 * right);
  return right > 0.9 ? 0 : 1;
}
