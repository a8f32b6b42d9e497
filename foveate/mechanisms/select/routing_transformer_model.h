// The Routing Transformer as a language model: layers of local and routed heads, and networks, before each a normalisation.   arXiv 2003.05997
#pragma once
#include <foveate/pre_norm_block.h>
#include <foveate/routing_transformer.h>

namespace foveate {

using RoutingLayer = layers::PreNormBlock<RoutingSelfAttention::Parameters>;

struct FOVEATE_API RoutingTransformer {
  static constexpr Form form{.card = &routing_transformer,
                             .summary = "language model whose layers have local and routed heads",
                             .returns = "",
                             .example = R"(model = foveate.nn.RoutingTransformer(
    vocab_size=50, embed_dim=32, depth=2, num_heads=4, local_heads=[2], num_clusters=4, window_size=8, local_window_size=8, causal=True)
logits, loss = model(torch.randint(50, (2, 32)))  # add loss to that of the task; in training each call moves the centroids
assert logits.shape == (2, 32, 50))"};
  struct Options {
    int64_t vocab_size = 0;
    int64_t embed_dim = 512;
    int64_t depth = 6;
    int64_t num_heads = 8;
    std::vector<int64_t> local_heads = {0};
    int64_t num_clusters = 8;
    int64_t window_size = 64;
    optional<int64_t> context_window_size;
    bool causal = false;
    optional<bool> shared_qk;
    int64_t num_mem_kv = 0;
    int64_t local_window_size = 64;
    int64_t local_radius = 1;
    bool rotary_local = true;
    bool rotary_global = true;
    double commitment = 1e-4;
    double ema_decay = 0.999;
    double eps = 1e-5;
    double dropout = 0;
    int64_t ff_mult = 4;
    double ff_dropout = 0;
    bool tie_embedding = false;
    void fields(auto&& f) {
      f("vocab_size", vocab_size, "tokens that ids name", required);
      f("embed_dim", embed_dim, "width E of the model");
      f("depth", depth, "layers");
      f("num_heads", num_heads, "heads, must divide embed_dim (package: 8)");
      f("local_heads", local_heads, "how many heads of each layer are local, the first; one number for all layers (package: 0)");
      f("num_clusters", num_clusters, "centroids C of each routed head (package: the longest sequence over window_size)");
      detail::routing_fields(*this, f);
      detail::routing_layer_fields(*this, f);
      f("local_window_size", local_window_size, "tokens of a block of the local heads (package: window_size)");
      f("dropout", dropout, "probability of dropping entries of what attention adds, in training (package: 0)");
      f("ff_mult", ff_mult, "inner width of the networks over E (package: 4)");
      f("ff_dropout", ff_dropout, "probability of dropping inner features of the networks, in training (package: 0)");
      f("tie_embedding", tie_embedding, "the head is the embedding's transpose (package: False)");
    }
    RoutingSelfAttention::Options attention(std::size_t layer) const;
  };
  struct Inputs {
    Tensor ids;
    optional<Tensor> mask;
    void fields(auto&& f) {
      f("ids", ids, "int [B,N] token ids");
      f("mask", mask, "bool [B,N] False for padding, which neither reads nor is read");
    }
  };
  struct Parameters {
    Tensor embedding;
    std::vector<RoutingLayer> layers;
    layers::LayerNorm norm;
    optional<layers::Linear> head;
    void fields(auto&& f) {
      f("embedding", embedding, "[*,*] word embeddings");
      f("layers", layers, "the layers");
      f("norm", norm, "at the end");
      f("head", head, "to logits, where not tied");
    }
  };
  struct Outputs {
    Tensor logits, loss;
    void fields(auto&& f) {
      f("logits", logits, "[B,N,*] logits of tokens");
      f("loss", loss, "[] commitments of all layers, summed");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Outputs forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
