// The Sinkhorn Transformer as a language model: axial positions, layers of sorted buckets, before each a normalisation.   arXiv 2002.11296
#pragma once
#include <foveate/pre_norm_block.h>
#include <foveate/sparse_sinkhorn.h>

namespace foveate {

using SinkhornLayer = layers::PreNormBlock<SinkhornSelfAttention::Parameters>;

struct FOVEATE_API SinkhornTransformer {
  static constexpr Form form{.card = &sparse_sinkhorn,
                             .summary = "language model whose layers attend by sorted buckets",
                             .returns = "[B,N,*] logits of tokens",
                             .example = R"(model = foveate.nn.SinkhornTransformer(
    vocab_size=50, embed_dim=16, depth=2, max_len=48, num_heads=2, bucket_size=8, causal=True)
ids = torch.randint(50, (2, 24))
first, state = model.step(ids[:, :20])
rest, state = model.step(ids[:, 20:], state=state)
assert torch.allclose(torch.cat([first, rest], 1), model(ids), atol=1e-5))"};
  struct Options {
    int64_t vocab_size = 0;
    int64_t max_len = 0;
    int64_t depth = 6;
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    optional<int64_t> head_dim;
    int64_t bucket_size = 64;
    bool causal = false;
    int64_t n_local_attn_heads = 0;
    optional<int64_t> kv_bucket_size;
    SortNet sort_net = SortNet::attention;
    optional<int64_t> max_buckets;
    bool non_permutative = true;
    int64_t sinkhorn_iter = 5;
    double temperature = 0.75;
    int64_t n_sortcut = 0;
    int64_t n_top_buckets = 2;
    bool values_from_keys = false;
    double attention_dropout = 0;
    double dropout = 0;
    int64_t ff_mult = 4;
    double ff_dropout = 0;
    double embedding_dropout = 0;
    void fields(auto&& f) {
      f("vocab_size", vocab_size, "tokens that ids name", required);
      f("max_len", max_len, "the longest sequence, of whole buckets: positions are a bucket's and those within it, added", required);
      f("depth", depth, "layers");
      f("embed_dim", embed_dim, "width E of the model");
      f("num_heads", num_heads, "heads H (lucidrains: 8)");
      f("head_dim", head_dim, "width D of a head, default E/H");
      f("bucket_size", bucket_size, "queries of a bucket; the last one may hold fewer (lucidrains: 64)");
      f("causal", causal, "no token sees a later one; then n_sortcut is 0 and S not a mixture");
      f("n_local_attn_heads", n_local_attn_heads, "so many heads, the first ones, attend to their own bucket and those beside it, without sorting");
      detail::sorting_fields(f, *this);
      f("values_from_keys", values_from_keys, "sorted values are sorted keys, an error of sinkhorn-transformer 0.11.4, for models trained with it");
      f("attention_dropout", attention_dropout, "probability of dropping an attention weight, in training");
      f("dropout", dropout, "the same of an element of what attention adds");
      f("ff_mult", ff_mult, "inner width of the networks over E (lucidrains: 4)");
      f("ff_dropout", ff_dropout, "probability of dropping inner features of the networks, in training");
      f("embedding_dropout", embedding_dropout, "the same of entries of embeddings");
    }
    SinkhornSelfAttention::Options attention() const;
  };
  struct Inputs {
    Tensor ids;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("ids", ids, "int [B,N] token ids");
      f("key_mask", key_mask, "bool [B,*] True where a token takes part; of all so far in a step");
    }
  };
  struct Parameters {
    Tensor embedding, bucket_positions, inner_positions;
    std::vector<SinkhornLayer> layers;
    layers::LayerNorm norm;
    layers::Linear head;
    void fields(auto&& f) {
      f("embedding", embedding, "[*,*] word embeddings");
      f("bucket_positions", bucket_positions, "[1,*,1,*] of each bucket");
      f("inner_positions", inner_positions, "[1,1,*,*] of each place within one");
      f("layers", layers, "the layers");
      f("norm", norm, "at the end");
      f("head", head, "to logits");
    }
  };
  struct State {
    std::vector<Tensor> kept;
    void fields(auto&& f) { f("kept", kept, "what each layer keeps, in a row, see SinkhornSelfAttention"); }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&, bool training);
};

}  // namespace foveate
