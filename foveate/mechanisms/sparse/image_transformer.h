// Image Transformer: queries in blocks, all of a block seeing one memory block around it, the past of it where causal:
// o_i = softmax over S_i of (scale q_i.k_j), times v_j.  arXiv 1802.05751
#pragma once
#include <foveate/contract.h>
#include <foveate/feed_forward.h>
#include <foveate/heads.h>
#include <foveate/norm.h>

namespace foveate {

inline constexpr Card image_transformer{.slug = "image-transformer",
                                        .title = "Image Transformer",
                                        .paper = "1802.05751",
                                        .year = 2018,
                                        .family = Family::sparse,
                                        .cost = "O(N (block + memory) D)",
                                        .causality = Causality::strict,
                                        .equation = "o_i = sum over j in S_i of softmax_j(scale q_i.k_j) v_j, S_i a block around i"};

/// The options of blocks of a sequence, shared by attention and layer.
void image_transformer_line_fields(auto& o, auto&& f) {
  f("block_length", o.block_length, "positions of a block of queries (tensor2tensor: 128; its models 256)");
  f("memory_length", o.memory_length,
    "causal: positions seen before the block, default block_length (tensor2tensor); 0 is masked_within_block_local_attention_1d");
  f("filter_width", o.filter_width, "not causal: positions seen on each side of the block (tensor2tensor: 100)");
  f("shift_whole_blocks", o.shift_whole_blocks,
    "not causal, filter_width a multiple of block_length: see one block further back and one less ahead, as tensor2tensor does");
}

/// The options of blocks of an image.
void image_transformer_grid_fields(auto& o, auto&& f) {
  f("query_shape", o.query_shape, "height and width of a block of queries (tensor2tensor: 8, 16)");
  f("memory_flange", o.memory_flange, "rows and columns seen around the block; causal: none below it (tensor2tensor: 8, 16)");
  f("padding_takes_part", o.padding_takes_part,
    "causal, a block that the image's right edge cuts: its missing positions count as keys of zeros, as in tensor2tensor");
}

/// What a stream keeps of the past.
struct ImageTransformerState {
  Tensor k, v, first;
  void fields(auto&& f) {
    f("k", k, "[B,H,M,D] keys of the blocks that are still seen");
    f("v", v, "[B,H,M,Dv] their values");
    f("first", first, "int [1] the position of the first of them");
  }
};

/// The bare function on sequences, an image in raster order being one.
struct FOVEATE_API ImageTransformerAttention {
  static constexpr Form form{
      .card = &image_transformer,
      .summary = "1D local attention: the queries of a block all see the block and what lies just before it (causal) or around it",
      .returns = "[B,H,N,Dv] attended values",
      .example = R"(q = k = v = torch.randn(1, 4, 100, 8)
out = foveate.image_transformer_attention(q, k, v, block_length=16, memory_length=40)
assert out.shape == (1, 4, 100, 8))"};
  struct Options {
    int64_t block_length = 128;
    optional<int64_t> memory_length;
    int64_t filter_width = 100;
    bool causal = true;
    bool shift_whole_blocks = false;
    optional<double> scale;
    void fields(auto&& f) {
      image_transformer_line_fields(*this, f);
      f("causal", causal, "a query sees no key after it (masked_local_attention_1d); else local_attention_1d");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,N,D] queries");
      f("k", k, "[B,Hk,N,D] keys; Hk divides H");
      f("v", v, "[B,Hk,N,Dv] values");
      f("key_mask", key_mask, "bool [B,*] True where a key takes part; of all keys so far in a step");
    }
  };
  using Parameters = None;
  using State = ImageTransformerState;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// The bare function on images. Where causal, blocks follow each other row by row, and so do the positions of a block. A step takes
/// positions in that order, as images of one row.
struct FOVEATE_API ImageTransformerGridAttention {
  static constexpr Form form{
      .card = &image_transformer,
      .summary = "2D local attention: the queries of a block of an image all see the block and what lies around it, or the generated part of that",
      .returns = "[B,H,Y,X,Dv] attended values",
      .example = R"(q = k = v = torch.randn(1, 4, 20, 30, 8)
out = foveate.image_transformer_grid_attention(q, k, v, query_shape=[4, 8], memory_flange=[4, 4])
assert out.shape == (1, 4, 20, 30, 8))"};
  struct Options {
    std::vector<int64_t> query_shape = {8, 16};
    std::vector<int64_t> memory_flange = {8, 16};
    bool causal = true;
    bool padding_takes_part = false;
    std::vector<int64_t> image_shape = {};
    optional<double> scale;
    void fields(auto&& f) {
      image_transformer_grid_fields(*this, f);
      f("causal", causal, "a query sees no position generated after it (masked_local_attention_2d); else local_attention_2d");
      f("image_shape", image_shape, "height and width of the whole image, for a step");
      f("scale", scale, "multiplies q.k, default 1/sqrt(D)");
    }
  };
  struct Inputs {
    Tensor q, k, v;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("q", q, "[B,H,Y,X,D] queries");
      f("k", k, "[B,H,Y,X,D] keys");
      f("v", v, "[B,H,Y,X,Dv] values");
      f("key_mask", key_mask, "bool [B,Y,X] True where a key takes part; not in a step");
    }
  };
  using Parameters = None;
  using State = ImageTransformerState;
  static void check(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

/// a = norm1(x + attention(x)), y = norm2(a + W2 relu(W1 a)).
struct FOVEATE_API ImageTransformerLayer {
  static constexpr Form form{.card = &image_transformer,
                             .summary = "layer of local attention, 1D or 2D, and feed-forward network",
                             .returns = "[B,N,E] sequence",
                             .example = R"(layer = foveate.nn.ImageTransformerLayer(embed_dim=32, num_heads=4, ff_dim=64, block_length=16)
assert layer(torch.randn(2, 100, 32)).shape == (2, 100, 32)
grid = foveate.nn.ImageTransformerLayer(embed_dim=32, num_heads=4, image_shape=[10, 10], query_shape=[4, 4], memory_flange=[4, 4])
assert grid(torch.randn(2, 100, 32)).shape == (2, 100, 32))"};
  struct Options {
    int64_t embed_dim = 512;
    int64_t num_heads = 8;
    int64_t ff_dim = 512;
    int64_t block_length = 256;
    optional<int64_t> memory_length;
    int64_t filter_width = 100;
    bool shift_whole_blocks = false;
    std::vector<int64_t> image_shape = {};
    std::vector<int64_t> query_shape = {8, 16};
    std::vector<int64_t> memory_flange = {8, 16};
    bool padding_takes_part = false;
    bool causal = true;
    double dropout = 0;
    double layer_norm_eps = 1e-6;
    void fields(auto&& f) {
      f("embed_dim", embed_dim, "width E (paper: 512)");
      f("num_heads", num_heads, "heads H, a divisor of E (paper: 8; 4 for CIFAR-10)");
      f("ff_dim", ff_dim, "inner width of the feed-forward network (tensor2tensor: 512; 2048 for CIFAR-10)");
      image_transformer_line_fields(*this, f);
      f("image_shape", image_shape, "height and width of the image whose raster x is: attention is then 2D, in blocks of the image; empty: 1D");
      image_transformer_grid_fields(*this, f);
      f("causal", causal, "a position sees none generated after it");
      f("dropout", dropout, "probability of dropping an element of what a sublayer adds, in training (paper, CIFAR-10: 0.3)");
      f("layer_norm_eps", layer_norm_eps, "added to the variance (tensor2tensor: 1e-6)");
    }
    ImageTransformerAttention::Options line() const {
      return {.block_length = block_length,
              .memory_length = memory_length,
              .filter_width = filter_width,
              .causal = causal,
              .shift_whole_blocks = shift_whole_blocks,
              .scale = {}};
    }
    ImageTransformerGridAttention::Options grid() const {
      return {.query_shape = query_shape,
              .memory_flange = memory_flange,
              .causal = causal,
              .padding_takes_part = padding_takes_part,
              .image_shape = image_shape,
              .scale = {}};
    }
  };
  struct Inputs {
    Tensor x;
    optional<Tensor> key_mask;
    void fields(auto&& f) {
      f("x", x, "[B,N,E] sequence, an image row by row; in a step of 2D attention, positions block by block");
      f("key_mask", key_mask, "bool [B,*] True where a position takes part as a key; of all positions so far in a step, which must be 1D");
    }
  };
  struct Parameters {
    layers::Heads attention;
    layers::LayerNorm norm1;
    layers::FeedForward feed_forward;
    layers::LayerNorm norm2;
    void fields(auto&& f) {
      f("attention", attention, "projections, without biases");
      f("norm1", norm1, "after the attention and its residual");
      f("feed_forward", feed_forward, "W2 relu(W1 a)");
      f("norm2", norm2, "after the network and its residual");
    }
  };
  using State = ImageTransformerState;
  static void check(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
  static std::pair<Tensor, State> step(const Options&, const Parameters&, const Inputs&, State&&);
};

}  // namespace foveate
