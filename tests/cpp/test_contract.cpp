// The contract itself: what fields() gives, and what it refuses.
#include <foveate/contract.h>
#include <foveate/linear.h>
#include <gtest/gtest.h>

namespace foveate {
namespace {

enum class Kind { soft, hard };

inline constexpr Card tidal{.slug = "tidal",
                            .title = "Tidal attention",
                            .paper = "0000.00000",
                            .year = 2020,
                            .family = Family::sparse,
                            .cost = "O(N)",
                            .causality = Causality::none,
                            .equation = "out = tide"};

struct Tidal {
  static constexpr Form form{.card = &tidal, .summary = "a form that only tests have"};
  struct Options {
    int64_t window;
    double strength = 1;
    bool deep = false;
    optional<double> scale;
    std::vector<int64_t> periods{2, 3};
    Kind kind = Kind::hard;
    void fields(auto&& f);
  };
  struct Inputs {
    Tensor q;
    optional<Tensor> mask;
    void fields(auto&& f) {
      f("q", q, "[B,N] queries");
      f("mask", mask, "bool [B,N] mask");
    }
  };
  struct Parameters {
    layers::Linear up;
    optional<layers::Linear> gate;
    std::vector<layers::Linear> blocks;
    Tensor mean;
    void fields(auto&& f) {
      f("up", up, "projection");
      f("gate", gate, "gate");
      f("blocks", blocks, "stack");
      f("mean", mean, "[*] moving mean", buffer);
    }
  };
  static Parameters shape(const Options&) { return {.blocks = std::vector<layers::Linear>(2)}; }
  static Parameters init(const Options& o) { return shape(o); }
  static Tensor forward(const Options&, const Parameters&, const Inputs& in) { return in.q; }
};

}  // namespace

template <> inline constexpr auto names<Kind> = std::array<std::string_view, 2>{"soft", "hard"};

namespace {

void Tidal::Options::fields(auto&& f) {
  f("window", window, "keys seen", required);
  f("strength", strength, "how strongly");
  f("deep", deep, "whether deep");
  f("scale", scale, "multiplies");
  f("periods", periods, "two periods");
  f("kind", kind, "which kind");
}

struct Forgetful {
  Tensor seen, forgotten;
  void fields(auto&& f) { f("seen", seen, "the only one named"); }
};

TEST(Contract, OptionsBecomeSchemaTypesAndDefaults) {
  const auto info = registry::form_info<Tidal>("Tidal");
  std::vector<std::string> found;
  for (const auto& field : info.options) found.push_back(field.type + " " + field.name + "=" + field.value);
  EXPECT_EQ(found, (std::vector<std::string>{"int window=", "float strength=1.0", "bool deep=False", "float? scale=None", "int[] periods=[2, 3]",
                                             "str kind=\"hard\""}));
  EXPECT_EQ(info.options.back().choices, (std::vector<std::string>{"soft", "hard"}));
}

TEST(Contract, GroupsBecomeDottedNamesAndAVariableGroupTravelsAsAList) {
  const auto info = registry::form_info<Tidal>("Tidal");
  std::vector<std::string> found;
  for (const auto& field : info.parameters) found.push_back(field.type + " " + field.name);
  EXPECT_EQ(found, (std::vector<std::string>{"Tensor up.weight", "Tensor? up.bias", "Tensor? gate.weight", "Tensor? gate.bias",
                                             "Tensor blocks.*.weight", "Tensor? blocks.*.bias", "Tensor mean"}));
  EXPECT_TRUE(info.listed);
  EXPECT_EQ(info.parameters.back().role, Role::buffer);
}

TEST(Contract, TextsDeclareTypeAndShape) {
  const auto info = registry::form_info<Tidal>("Tidal");
  EXPECT_EQ(info.inputs[1].dtype, "bool");
  EXPECT_EQ(info.inputs[1].shape, "B,N");
  EXPECT_EQ(info.inputs[1].text, "mask");
}

TEST(Contract, AForgottenMemberIsRefused) { EXPECT_THROW(registry::describe<Forgetful>("forgetful"), c10::Error); }

TEST(Contract, NamesOfOperatorsFollowTheNamesOfStructs) {
  EXPECT_EQ(registry::snake_case("LinformerAttention"), "linformer_attention");
  EXPECT_EQ(registry::snake_case("TransformerXLLayer"), "transformer_xl_layer");
  EXPECT_EQ(registry::snake_case("ISAB"), "isab");
  EXPECT_EQ(registry::snake_case("T5Attention"), "t5_attention");
}

TEST(Contract, AnUnknownChoiceNamesTheOnesThatExist) {
  try {
    registry::find_choice("kind", "softly", names<Kind>.data(), names<Kind>.size());
    FAIL() << "accepted";
  } catch (const c10::Error& error) {
    EXPECT_NE(std::string(error.what()).find("kind must be one of soft, hard; got 'softly'"), std::string::npos);
  }
}

}  // namespace
}  // namespace foveate
