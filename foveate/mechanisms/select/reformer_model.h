// Reformer as a whole: reversible layers of local and LSH attention, with axial positions.   arXiv 2001.04451
#pragma once
#include <foveate/reformer.h>

namespace foveate {

enum class ReformerLayerKind { local, lsh };
template <> inline constexpr auto names<ReformerLayerKind> = std::array<std::string_view, 2>{"local", "lsh"};

struct FOVEATE_API ReformerLayer {
  layers::LayerNorm attention_norm;
  optional<layers::Linear> query_key, query, key;
  layers::Linear value, out;
  layers::LayerNorm network_norm;
  layers::FeedForward network;
  void fields(auto&& f) {
    f("attention_norm", attention_norm, "before attention");
    f("query_key", query_key, "queries and keys of an LSH layer");
    f("query", query, "queries of a local layer");
    f("key", key, "keys of a local layer");
    f("value", value, "values");
    f("out", out, "output projection");
    f("network_norm", network_norm, "before the network");
    f("network", network, "position-wise network");
  }
};

/// The encoder of transformers: two streams, y1 = x1 + attention(norm(x2)), y2 = x2 + network(norm(y1)). The gradient reads the last streams
/// alone and runs the layers backwards: what training keeps does not grow with their number.
struct FOVEATE_API Reformer {
  static constexpr Form form{.card = &reformer,
                             .summary = "reversible stack of local and LSH layers, with axial positions",
                             .returns = "[B,N,*] both streams side by side, normalised: 2E features",
                             .example = R"(stack = foveate.nn.Reformer(embed_dim=16, num_heads=2, head_dim=8, inner_dim=32, chunk_length=8,
    layers=["local", "lsh"], num_buckets=[4], axial_shape=[4, 8], axial_dims=[8, 8])
assert stack(torch.randn(2, 30, 16)).shape == (2, 30, 32))"};
  struct Options {
    int64_t embed_dim = 256;
    int64_t num_heads = 12;
    int64_t head_dim = 64;
    int64_t inner_dim = 512;
    optional<std::vector<ReformerLayerKind>> layers;
    int64_t chunk_length = 64;
    int64_t num_hashes = 1;
    std::vector<int64_t> num_buckets = {};
    int64_t chunks_before = 1;
    int64_t chunks_after = 0;
    optional<int64_t> local_chunk_length, local_chunks_before, local_chunks_after;
    bool causal = false;
    std::vector<int64_t> axial_shape = {};
    std::vector<int64_t> axial_dims = {};
    int64_t ff_chunk = 0;
    layers::Activation ff_activation = layers::Activation::relu;
    double layer_norm_eps = 1e-12;
    double dropout = 0;
    double lsh_dropout = 0;
    double local_dropout = 0;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E of the model (transformers: 256)");
      f("inner_dim", inner_dim, "inner width of the feed-forward networks (transformers: 512)");
      f("layers", layers, "kinds of the layers; default local, lsh");
      detail::reformer_chunk_fields(*this, f);
      f("local_chunk_length", local_chunk_length, "L of the local layers, default chunk_length");
      f("local_chunks_before", local_chunks_before, "the same of them, default chunks_before");
      f("local_chunks_after", local_chunks_after, "the same of them, default chunks_after");
      f("num_hashes", num_hashes, "rounds of hashing (transformers: 1)");
      f("num_buckets", num_buckets, "even numbers whose product is the number of buckets; default the largest power of two up to 2 N / L");
      f("axial_shape", axial_shape, "rows and columns of the grid of positions, N or more places; empty for no positions");
      f("axial_dims", axial_dims, "features of a row's and of a column's position, E together");
      f("ff_chunk", ff_chunk, "tokens that go through the networks at a time, 0 for all (0); the result is the same");
      f("ff_activation", ff_activation, "of the networks (transformers: relu)");
      f("layer_norm_eps", layer_norm_eps, "added to the variance (transformers: 1e-12)");
      f("dropout", dropout, "probability of dropping what sublayers add, in training or where a seed is given (transformers: 0.05)");
      f("lsh_dropout", lsh_dropout, "the same of attention weights of LSH layers (transformers: 0)");
      f("local_dropout", local_dropout, "the same of local layers (transformers: 0.05)");
    }
    ReformerLSHSelfAttention::Options hashed() const;
    ReformerLocalSelfAttention::Options local() const;
    std::vector<ReformerLayerKind> kinds() const;
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> rotations, mask, seed;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] embedded sequence");
      f("rotations", rotations, "[*,H,*,*,*] normal numbers of each LSH layer and head, by D, R, half the buckets; drawn if absent");
      f("mask", mask, "bool [B,N] True where a token takes part as key");
      f("seed", seed, "int [] what rotations, where absent, and dropout are drawn from; drawn itself if absent");
    }
  };
  struct Parameters {
    optional<Tensor> row_positions, column_positions;
    std::vector<ReformerLayer> layers;
    layers::LayerNorm norm;
    void fields(auto&& f) {
      f("row_positions", row_positions, "[*,1,*] of the rows of the grid");
      f("column_positions", column_positions, "[1,*,*] of its columns");
      f("layers", layers, "the layers");
      f("norm", norm, "of both streams");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
