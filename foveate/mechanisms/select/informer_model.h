// Informer as a whole: encoders of a series so far, a decoder that gives all rows to be predicted in one pass.   arXiv 2012.07436
#pragma once
#include <foveate/informer.h>

namespace foveate {

/// What is known of the time of a row.
enum class InformerTime {
  features,  ///< numbers, projected (authors' code: timeF)
  fixed,     ///< month, day, weekday, hour and quarter of an hour, as sinusoids
  learned,   ///< the same, as learned vectors
};
template <> inline constexpr auto names<InformerTime> = std::array<std::string_view, 3>{"features", "fixed", "learned"};

/// A row as a vector: a convolution of the values, its place, its time.
struct FOVEATE_API InformerEmbedding {
  layers::Convolution values;  // [E,C,3]
  optional<layers::Linear> time;
  optional<Tensor> month, day, weekday, hour, quarter;
  void fields(auto&& f) {
    f("values", values, "convolution over three neighbours, circular");
    f("time", time, "projection of time features");
    f("month", month, "[13,*] vectors of months, E wide");
    f("day", day, "[32,*] of days");
    f("weekday", weekday, "[7,*] of weekdays");
    f("hour", hour, "[24,*] of hours");
    f("quarter", quarter, "[4,*] of quarters of an hour");
  }
};

struct FOVEATE_API Informer {
  static constexpr Form form{.card = &informer,
                             .summary = "forecast of a series: ProbSparse encoders and decoder with their embeddings",
                             .returns = "[B,*,*] the rows to be predicted",
                             .example =
                                 R"(model = foveate.nn.Informer(enc_in=7, dec_in=7, c_out=7, d_model=16, num_heads=2, d_ff=32, encoder_layers=[2])
series, time = torch.randn(2, 24, 7), torch.randn(2, 30, 4)  # 24 known rows, 6 to be predicted
out = model(series, time[:, :24], series[:, 12:], time[:, 12:])  # the decoder starts with the last 12
assert out.shape == (2, 6, 7))"};
  struct Options {
    int64_t enc_in = 0;
    int64_t dec_in = 0;
    int64_t c_out = 0;
    InformerTime time_kind = InformerTime::features;
    int64_t time_columns = 4;
    int64_t d_model = 512;
    int64_t num_heads = 8;
    int64_t d_ff = 2048;
    std::vector<int64_t> encoder_layers = {2};
    int64_t decoder_layers = 1;
    int64_t factor = 5;
    bool distil = true;
    bool mix = true;
    InformerActivation activation = InformerActivation::gelu;
    double dropout = 0;
    double layer_norm_eps = 1e-5;
    double batch_norm_eps = 1e-5;
    double batch_norm_momentum = 0.1;
    void fields(auto&& f) {
      f("enc_in", enc_in, "columns of the series that is encoded", required);
      f("dec_in", dec_in, "columns of the rows that the decoder starts with", required);
      f("c_out", c_out, "columns that are predicted", required);
      f("time_kind", time_kind,
        "what is known of the time of a row: features, projected numbers; a calendar, fixed or learned (authors' code: features)");
      f("time_columns", time_columns, "how many numbers that are (authors' code: 4 of hourly data); of a calendar 4, or 5 with quarters of an hour");
      detail::informer_layer_fields(*this, f);
      f("encoder_layers", encoder_layers,
        "layers of the encoder; several numbers make several encoders, see InformerStack (authors' code: 2, or 3, 2, 1)");
      f("decoder_layers", decoder_layers, "layers of the decoder (authors' code: 1)");
      f("distil", distil, "the sequence is convolved and halved between layers (authors' code: True)");
      f("mix", mix, "the decoder joins heads as they lie in memory, see InformerDecoderLayer (authors' code: True)");
      f("batch_norm_eps", batch_norm_eps, "of the distilling layers (1e-5)");
      f("batch_norm_momentum", batch_norm_momentum, "weight of new statistics (0.1)");
    }
    InformerStack::Options encoders() const;
    InformerDecoderLayer::Options decoder() const;
  };
  struct Inputs {
    Tensor x, time, start, target_time;
    optional<Tensor> index_sample, decoder_sample;
    void fields(auto&& f) {
      f("x", x, "[B,N,*] the series so far");
      f("time", time, "[B,N,*] the time of its rows: features, or month, day, weekday, hour and quarter of an hour");
      f("start", start, "[B,L,*] known rows that the decoder starts with, the last ones; those to be predicted follow as zeros");
      f("target_time", target_time, "[B,T,*] the time of both: T - L rows are predicted");
      f("index_sample", index_sample, "int [*,*,*] as InformerStack takes it; drawn if absent");
      f("decoder_sample", decoder_sample, "int [*,T,*] for each layer of the decoder the keys that each query is measured by; drawn if absent");
    }
  };
  struct Parameters {
    InformerEmbedding embedding, target_embedding;
    std::vector<InformerEncoder::Parameters> encoders;
    std::vector<InformerDecoderLayer::Parameters> decoder;
    layers::LayerNorm norm;
    layers::Linear head;
    void fields(auto&& f) {
      f("embedding", embedding, "of the series");
      f("target_embedding", target_embedding, "of what the decoder reads");
      f("encoders", encoders, "the encoders");
      f("decoder", decoder, "layers of the decoder");
      f("norm", norm, "at its end");
      f("head", head, "to what is predicted");
    }
  };
  static void check(const Options&);
  static Parameters shape(const Options&);
  static Parameters init(const Options&);
  static Tensor forward(const Options&, const Parameters&, const Inputs&, bool training);
};

}  // namespace foveate
