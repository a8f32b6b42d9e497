// The primitives against what a user would pick instead, in one process: `make bench`.
//   BM_Attention/.../0 is torch's scaled_dot_product_attention, /1 is foveate's.
#include <foveate/attention.h>
#include <foveate/merge_attention.h>

#include <benchmark/benchmark.h>
#include <torch/torch.h>

namespace {

struct Heads {
  torch::Tensor q, k, v;  // [1,8,N,64]
};

Heads heads(int64_t length) {
  torch::manual_seed(0);
  const auto draw = [&]() { return torch::randn({1, 8, length, 64}); };
  return {.q = draw(), .k = draw(), .v = draw()};
}

void count(benchmark::State& state, int64_t length) {  // 2 GEMMs of N x N x 64 in 8 heads
  state.counters["GFLOP/s"] =
      benchmark::Counter(4.0 * 8 * 64 * static_cast<double>(length * length) * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

void BM_Attention(benchmark::State& state) {
  const c10::InferenceMode inference;
  const auto [q, k, v] = heads(state.range(0));
  const bool ours = state.range(1) != 0;
  for (auto _ : state) benchmark::DoNotOptimize(ours ? foveate::ops::attention(q, k, v).out : at::scaled_dot_product_attention(q, k, v));
  count(state, state.range(0));
}
BENCHMARK(BM_Attention)->ArgNames({"N", "foveate"})->ArgsProduct({{512, 2048}, {0, 1}})->UseRealTime();

void BM_MergeAttention(benchmark::State& state) {  // kernel against formula; bound by memory
  const c10::InferenceMode inference;
  const auto outs = torch::randn({4, 1, 8, 4096, 64});
  const auto lses = torch::randn({4, 1, 8, 4096});
  const bool kernel = state.range(0) != 0;
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow(kernel ? "foveate::_merge_attention" : "foveate::_merge_attention_formula", "")
                      .typed<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&)>();
  for (auto _ : state) benchmark::DoNotOptimize(op.call(outs, lses));
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(outs.nbytes() * 5 / 4));
}
BENCHMARK(BM_MergeAttention)->ArgName("kernel")->Arg(0)->Arg(1)->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
