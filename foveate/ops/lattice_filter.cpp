#include <foveate/lattice_filter.h>

#include "kernels/lattice.h"

#include <foveate/op.h>
#include <foveate/prepared.h>

namespace foveate::ops {
namespace {

/// alpha: what a point on a vertex gives itself on the paths of a blur that come back counts as 1.
double response(int64_t d) { return 1 / (1 + std::pow(2., -static_cast<double>(d))); }

}  // namespace

LatticeSimplex lattice_simplex(const Tensor& features) {
  const int64_t d = plain_extent(features, -1);
  TORCH_CHECK_VALUE(d >= 1 && d <= lattice_widest, "lattice_simplex: features must be 1 to ", lattice_widest, " wide, got ", features.sym_sizes());
  const auto every = static_cast<double>(d + 1);
  const Tensor k = at::arange(1, d + 1, features.options());                       // columns of E: s_k above row k, -k s_k in it
  const Tensor x = features * (std::sqrt(2. / 3) * every) / (k * (k + 1)).sqrt();  // [...,d]
  const Tensor from = x.flip(-1).cumsum(-1).flip(-1);                              // sums over columns k and on
  const Tensor e = at::cat({from.narrow(-1, 0, 1), from - (k + 1) * x}, -1);       // [...,d+1]
  constexpr double limit = kernels::lattice_limit;
  Tensor r = (e.detach() / every).round().nan_to_num(0).clamp(-limit, limit);
  const Tensor order = at::argsort(e.detach() - r * every, /*stable=*/true, /*dim=*/-1, /*descending=*/true);
  Tensor rank = at::argsort(order, /*stable=*/true, /*dim=*/-1, /*descending=*/false) + r.sum(-1, true).to(at::kLong);
  const Tensor wraps = (rank < 0).to(at::kLong) - (rank > d).to(at::kLong);  // back into 0..d, by one multiple of d + 1 more or less
  r = r + wraps.to(r.scalar_type());
  rank = (rank + (d + 1) * wraps).clamp(0, d);
  const Tensor place = at::argsort(rank, /*stable=*/true, /*dim=*/-1, /*descending=*/true);
  const Tensor rising = (e / every - r).gather(-1, place);
  const Tensor first = rising.narrow(-1, 0, 1) + 1 - rising.narrow(-1, d, 1), others = rising.narrow(-1, 1, d) - rising.narrow(-1, 0, d);
  return {.weights = at::cat({first, others}, -1), .rank = rank, .quotient = r.narrow(-1, 0, d).to(at::kLong)};
}

namespace {

/// Quotients of the coordinates of all vertices: int [...,d+1,d]. Of vertex k those are one less whose rank is d + 1 - k or more.
Tensor quotients(const LatticeSimplex& simplex) {
  const int64_t d = plain_extent(simplex.quotient, -1);
  const Tensor bar = at::arange(d + 1, 0, -1, simplex.rank.options()).unsqueeze(-1);  // [d+1,1]
  return simplex.quotient.unsqueeze(-2) - (simplex.rank.narrow(-1, 0, d).unsqueeze(-2) >= bar).to(at::kLong);
}

}  // namespace

Tensor lattice_vertices(const LatticeSimplex& simplex) {
  const int64_t d = plain_extent(simplex.quotient, -1);
  return quotients(simplex) * (d + 1) + at::arange(d + 1, simplex.rank.options()).unsqueeze(-1);
}

namespace {

/// Numbers the vertices of tables of points, without knowing beforehand how many there are.
class VertexTable {
 public:
  /// remainder [T,P] and quotient [T,P,d] of each point's vertex; those of remainder d + 1 are nobody's.
  VertexTable(const Tensor& remainder, const Tensor& quotient) : remainder_(remainder), quotient_(quotient), d_(quotient.size(2)) {
    id = number(remainder, quotient, /*learn=*/true);
  }
  Tensor id;  // int [T,P], below P

  /// For each number the vertex one step along `direction`, P where there is none: int [T,P+1]
  Tensor neighbour(int64_t direction, bool up) const {
    const int64_t P = id.size(1), end = up ? 0 : d_, turn = up ? -1 : 1;
    const Tensor wraps = (remainder_ == end).to(at::kLong);
    const Tensor remainder = at::where(remainder_ > d_, remainder_, (remainder_ + turn + wraps * -turn * (d_ + 1)));
    const Tensor step = (at::arange(d_, id.options()) == direction).to(at::kLong);
    const Tensor found = number(remainder, quotient_ + (step - wraps.unsqueeze(-1)) * -turn, /*learn=*/false);
    const Tensor row = at::where((found < 0).logical_or(remainder_ > d_), P, found);
    return at::full({id.size(0), P + 1}, P, id.options()).scatter(1, id, row);
  }

 private:
  /// Column by column: the number so far and the next column make one integer, whose place among all sorted ones is the next number.
  Tensor number(const Tensor& remainder, const Tensor& quotient, bool learn) const {
    Tensor found = remainder;
    for (int64_t i = 0; i < d_; ++i) {
      const Tensor code = found * (int64_t{1} << 32) + (quotient.select(2, i) + (int64_t{1} << 31));
      if (learn) sorted_.push_back(std::get<0>(code.sort(1)));
      const Tensor& known = sorted_[static_cast<std::size_t>(i)];
      const Tensor place = at::searchsorted(known, code.contiguous());
      const Tensor near = place.clamp_max(std::max<int64_t>(known.size(1) - 1, 0));
      found = at::where((known.gather(1, near) == code).logical_and(found >= 0), near, -1);
    }
    return found;
  }
  Tensor remainder_, quotient_;
  int64_t d_;
  mutable std::vector<Tensor> sorted_;
};

Tensor lattice_filter_formula(const Tensor& features, const Tensor& values, const optional<Tensor>& mask, bool shared) {
  if (values.numel() == 0) return values.clone(at::MemoryFormat::Contiguous);
  const auto type = accumulation_type(features.scalar_type());
  const int64_t B = features.size(0), H = features.size(1), N = features.size(2), d = features.size(3), c = values.size(3);
  const int64_t tables = shared ? H : B * H, samples = shared ? B : 1, points = N * (d + 1), P = samples * points;
  const auto simplex = lattice_simplex(features.to(type));
  const auto by_table = [&](const Tensor& x) {  // [B,H,...] -> [tables,samples,...]
    return shared ? x.transpose(0, 1) : x.flatten(0, 1).unsqueeze(1);
  };
  Tensor weights = simplex.weights, remainder = at::arange(d + 1, simplex.rank.options()).expand({B, H, N, -1});
  if (mask) {
    const Tensor shown = mask->unsqueeze(1).unsqueeze(-1);  // [B,1,N,1]
    weights = weights.masked_fill(shown.logical_not(), 0);
    remainder = at::where(shown, remainder, d + 1);
  }
  const VertexTable vertices(by_table(remainder).reshape({tables, P}), by_table(quotients(simplex)).reshape({tables, P, d}));
  const auto wide = [&](const Tensor& index, int64_t rows) { return index.reshape({tables, -1, rows, 1}).expand({-1, samples, -1, c}); };
  const Tensor id = wide(vertices.id, points), w = weights.unsqueeze(-1);  // [B,H,N,d+1,1]
  const Tensor shares = by_table(w * values.to(type).unsqueeze(3)).reshape({tables, samples, points, c});
  Tensor L = at::zeros({tables, samples, P + 1, c}, shares.options()).scatter_add(2, id, shares);
  for (int64_t a = 0; a <= d; ++a) {
    L = L + 0.5 * (L.gather(2, wide(vertices.neighbour(a, true), P + 1)) + L.gather(2, wide(vertices.neighbour(a, false), P + 1)));
  }
  const Tensor taken = by_table(w) * L.gather(2, id).reshape({tables, samples, N, d + 1, c});
  const Tensor out = response(d) * taken.sum(3);  // [tables,samples,N,c]
  return (shared ? out.transpose(0, 1) : out.reshape({B, H, N, c})).to(values.scalar_type()).contiguous();
}

Tensor lattice_filter_meta(const Tensor&, const Tensor& values, const optional<Tensor>&, bool) { return values.new_empty_symint(values.sym_sizes()); }

template <class scalar> const kernels::LatticeEngine<scalar>& engine() {
  if constexpr (std::is_same_v<scalar, double>) return *cpu_kernels().lattice_double;
  else return *cpu_kernels().lattice_float;
}

constexpr int64_t points_a_thread = 256;

/// One table: what its arguments point into, and the steps.
template <class scalar> class LatticeTable {
 public:
  kernels::Lattice<scalar> a;

  explicit LatticeTable(const kernels::Lattice<scalar>& given) : a(given) {
    const int64_t P = a.points(), every = a.d + 1;
    a.weights = room<scalar>(every * P, at::CppTypeToScalarType<scalar>::value);
    a.rank = room<unsigned char>(every * P, at::kByte);
    a.quotient = room<int>(a.d * P, at::kInt);
    at::parallel_for(0, P, points_a_thread, [&](int64_t begin, int64_t end) { run_.simplex(a, begin, end); });
    run_.bounds(a);
    pack();
    a.keys = reinterpret_cast<unsigned long*>(room<int64_t>(every * P * a.words, at::kLong));
    a.order = room<int>(every * P, at::kInt);
    a.vertex = room<int>(every * P, at::kInt);
    a.start = room<int>(every * (P + 1), at::kInt);
    at::parallel_for(0, every, 1, [&](int64_t begin, int64_t end) {
      const Tensor scratch = at::empty({(2 * a.words + 1) * P}, at::kLong);
      run_.group(a, begin, end, reinterpret_cast<unsigned long*>(scratch.mutable_data_ptr<int64_t>()));
    });
    a.first[0] = 0;
    for (int64_t k = 0; k <= a.d; ++k) a.first[k + 1] = a.first[k] + a.count[k];
  }

  /// source, like values, splatted and blurred along all directions, in turn or in reverse: [vertices,width]
  Tensor spread(const scalar* source, scalar factor, bool reverse) const {
    const int64_t rows = a.first[a.d + 1], width = a.width();
    const auto options = at::TensorOptions(at::CppTypeToScalarType<scalar>::value);
    Tensor from = at::empty({rows, width}, options), to = at::empty({rows, width}, options);
    const Tensor zeros = at::zeros({width}, options);
    at::parallel_for(0, rows, points_a_thread,
                     [&](int64_t begin, int64_t end) { run_.splat(a, source, factor, begin, end, from.template mutable_data_ptr<scalar>()); });
    for (int64_t step = 0; step <= a.d; ++step) {
      at::parallel_for(0, rows, points_a_thread, [&](int64_t begin, int64_t end) {
        run_.blur(a, reverse ? a.d - step : step, begin, end, from.template const_data_ptr<scalar>(), to.template mutable_data_ptr<scalar>(),
                  zeros.template const_data_ptr<scalar>());
      });
      std::swap(from, to);
    }
    return from;
  }

  void forward() const {
    const Tensor sums = spread(a.values, 1, false);
    at::parallel_for(0, a.points(), points_a_thread,
                     [&](int64_t begin, int64_t end) { run_.slice(a, sums.template const_data_ptr<scalar>(), alpha_, begin, end); });
  }

  void backward() const {
    const Tensor grads = spread(a.d_out, alpha_, true);
    const Tensor sums = a.d_features ? spread(a.values, 1, false) : grads;
    at::parallel_for(0, a.points(), points_a_thread, [&](int64_t begin, int64_t end) {
      run_.backward(a, sums.template const_data_ptr<scalar>(), grads.template const_data_ptr<scalar>(), alpha_, begin, end);
    });
  }

 private:
  template <class T> T* room(int64_t count, at::ScalarType type) {
    return static_cast<T*>(rooms_.emplace_back(at::empty({count}, type)).mutable_data_ptr());
  }

  /// Lays the quotients into words: each has room for two below the lowest and one above the highest, where neighbours are.
  void pack() {
    int64_t word = 0, taken = 0;
    for (int64_t i = 0; i < a.d; ++i) {
      const int64_t most = static_cast<int64_t>(a.high[i]) - a.low[i] + 3;
      const auto bits = static_cast<int64_t>(std::bit_width(static_cast<uint64_t>(most)));
      if (taken + bits > 64) {
        ++word;
        taken = 0;
      }
      a.word[i] = static_cast<int>(word);
      a.shift[i] = static_cast<int>(taken);
      taken += bits;
    }
    a.words = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(word + 1)));
    TORCH_INTERNAL_ASSERT(a.words <= kernels::lattice_words);
  }

  const kernels::LatticeEngine<scalar>& run_ = engine<scalar>();
  const scalar alpha_ = static_cast<scalar>(response(a.d));
  std::vector<Tensor> rooms_;
};

/// Calls f with each table of features [B,H,N,d] and values [B,H,N,c].
template <class scalar, class F> void each_table(const Tensor& features, const Tensor& values, const unsigned char* mask, bool shared, const F& f) {
  const int64_t B = features.size(0), H = features.size(1), N = features.size(2), d = features.size(3), c = values.size(3);
  at::parallel_for(0, shared ? H : B * H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t table = begin; table < end; ++table) {
      kernels::Lattice<scalar> a{};
      a.d = d;
      a.c = c;
      a.samples = shared ? B : 1;
      a.N = N;
      a.features = features.const_data_ptr<scalar>() + table * N * d;
      a.values = values.const_data_ptr<scalar>() + table * N * c;
      a.mask = mask ? mask + (shared ? 0 : table / H * N) : nullptr;
      a.features_apart = H * N * d;
      a.values_apart = H * N * c;
      a.mask_apart = N;
      f(a, table * N);
    }
  });
}

void check_points(const Tensor& features, bool shared) {
  TORCH_CHECK_VALUE((shared ? features.size(0) : 1) * features.size(2) < std::numeric_limits<int>::max(),
                    "lattice_filter: a table has fewer than 2^31 points, got features ", features.sizes());
}

template <class scalar> Tensor filter(const Tensor& given_features, const Tensor& given_values, const optional<Tensor>& mask, bool shared) {
  Alive alive(given_features);
  const Tensor features = given_features.to(alive.options.dtype()).contiguous(), values = given_values.to(alive.options.dtype()).contiguous();
  const Tensor out = at::empty(values.sizes(), alive.options);
  each_table<scalar>(features, values, alive.bytes(mask), shared, [&](kernels::Lattice<scalar>& a, int64_t row) {
    a.out = out.mutable_data_ptr<scalar>() + row * a.c;
    LatticeTable<scalar>(a).forward();
  });
  return out.to(given_values.scalar_type());
}

bool empty(const Tensor& features, const Tensor& values) { return features.numel() == 0 || values.numel() == 0; }

Tensor lattice_filter_cpu(const Tensor& features, const Tensor& values, const optional<Tensor>& mask, bool shared) {
  if (empty(features, values)) return at::zeros_like(values, at::MemoryFormat::Contiguous);
  check_points(features, shared);
  return features.scalar_type() == at::kDouble ? filter<double>(features, values, mask, shared) : filter<float>(features, values, mask, shared);
}

template <class scalar> std::vector<Tensor> backward(const Backward& call, const Tensor& given_features, const Tensor& given_values,
                                                     const optional<Tensor>& mask, bool shared) {
  Alive alive(given_features);
  const auto exact = [&](const Tensor& x) { return x.to(alive.options.dtype()).contiguous(); };
  const Tensor features = exact(given_features), values = exact(given_values), d_out = exact(call.gradients[0]);
  Wanted wanted(call);
  const bool wants_features = wanted(features), wants_values = wanted(values);
  Tensor d_features = wants_features ? at::empty(features.sizes(), alive.options) : Tensor();
  Tensor d_values = wants_values ? at::empty(values.sizes(), alive.options) : Tensor();
  each_table<scalar>(features, values, alive.bytes(mask), shared, [&](kernels::Lattice<scalar>& a, int64_t row) {
    a.d_out = d_out.const_data_ptr<scalar>() + row * a.c;
    if (wants_values) a.d_values = d_values.mutable_data_ptr<scalar>() + row * a.c;
    if (wants_features) a.d_features = d_features.mutable_data_ptr<scalar>() + row * a.d;
    LatticeTable<scalar>(a).backward();
  });
  std::vector<Tensor> found;
  give(found, wants_features, given_features, [&] { return d_features; });
  give(found, wants_values, given_values, [&] { return d_values; });
  return found;
}

Gradients lattice_filter_backward_cpu(const Backward& call, Tensor features, Tensor values, optional<Tensor> mask, bool shared) {
  if (empty(features, values) || !call.gradients[0].defined()) return std::nullopt;
  return features.scalar_type() == at::kDouble ? backward<double>(call, features, values, mask, shared)
                                               : backward<float>(call, features, values, mask, shared);
}

}  // namespace

FOVEATE_OP(
    lattice_filter, "_lattice_filter(Tensor features, Tensor values, Tensor? mask, bool shared) -> Tensor",
    {.formula = &lattice_filter_formula, .meta = &lattice_filter_meta, .cpu = &lattice_filter_cpu, .cpu_backward = &lattice_filter_backward_cpu})

Tensor lattice_filter(const Tensor& features, const Tensor& values, const optional<Tensor>& mask, bool shared) {
  TORCH_CHECK_VALUE(features.dim() == 4 && values.dim() == 4, "lattice_filter: features and values must be [B,H,N,d] and [B,H,N,c], got ",
                    features.sym_sizes(), " and ", values.sym_sizes());
  for (int64_t i = 0; i < 3; ++i) {
    TORCH_CHECK_VALUE(extent(features, i) == extent(values, i), "lattice_filter: features and values must be [B,H,N,d] and [B,H,N,c], got ",
                      features.sym_sizes(), " and ", values.sym_sizes());
  }
  const int64_t d = plain_extent(features, 3);
  TORCH_CHECK_VALUE(d >= 1 && d <= lattice_widest, "lattice_filter: features must be 1 to ", lattice_widest, " wide, got ", d);
  TORCH_CHECK_TYPE(features.scalar_type() == values.scalar_type(), "lattice_filter: values must be ", features.scalar_type(), " like features, got ",
                   values.scalar_type());
  if (mask) {
    TORCH_CHECK_VALUE(mask->dim() == 2 && extent(*mask, 0) == extent(features, 0) && extent(*mask, 1) == extent(features, 2),
                      "lattice_filter: mask must be [B,N] beside features ", features.sym_sizes(), ", got ", mask->sym_sizes());
    TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, "lattice_filter: mask must be bool, got ", mask->scalar_type());
  }
  return primitive<decltype(lattice_filter_formula)>("foveate::_lattice_filter").call(features, values, mask, shared);
}

}  // namespace foveate::ops
