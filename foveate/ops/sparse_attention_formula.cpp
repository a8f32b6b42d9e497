// sparse_attention by gathering: each block of queries takes the key blocks that its pattern names, scores them densely, hides what
// the pattern hides inside them.
//
// A *unit* is one block of queries: of all heads together where the pattern treats them alike, of one head else. Either way queries
// are laid out [B, L, units, G, block, D] and keys [B, L, key units, block, D]:
//
//   heads alike   L = Hk, G = H / Hk, a unit for each query block;   heads told apart   L = 1, G = 1, a unit for each head and block.
//
// Units with about as many key blocks are computed together, in pieces that bound the memory of what is gathered.
#include <foveate/attention_formula.h>
#include <foveate/lowering.h>
#include <foveate/rules.h>

#include <bit>
#include <map>

namespace foveate::ops {
namespace {

using patterns::BlockTable;

int64_t block_for(int64_t longest) { return longest <= 256 ? 16 : longest <= 1024 ? 32 : 64; }

/// Room for `count` key blocks: 1, 2, 3, 4, 6, 8, 12, 16, 24, ...
int64_t padded(int64_t count) {
  const auto top = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count)));
  return count <= top / 4 * 3 && top >= 4 ? top / 4 * 3 : top;
}

/// [...] -> four dimensions, ones in front.
Tensor four(const Tensor& t) {
  Tensor wide = t;
  while (wide.dim() < 4) wide = wide.unsqueeze(0);
  return wide;
}

/// x [B,H,N,D] -> [B,H,blocks,block,D], zeros behind the end.
Tensor in_blocks(const Tensor& x, int64_t blocks, int64_t block) {
  return at::constant_pad_nd(x, {0, 0, 0, blocks * block - x.size(2)}).unflatten(2, {blocks, block});
}

/// Numbers as a tensor. (The factories of ATen would wrap it under function transforms; what holds numbers must be a plain tensor first.)
Tensor tensor_of(c10::ArrayRef<int64_t> numbers, at::IntArrayRef shape, at::Device device) {
  const Tensor here = at::from_blob(const_cast<int64_t*>(numbers.data()), shape, at::kLong);  // NOLINT: read only
  return device.is_cpu() ? here.clone() : here.to(device);
}

struct Problem {
  const AttentionArguments& c;
  int64_t B, H, Hk, N, M, D, Dv;
  int64_t offset;
  std::shared_ptr<const patterns::Rule> rule;
  std::vector<Tensor> tables;  // where the scores are
  std::shared_ptr<const BlockTable> blocks;
  Tensor q, k, v, row_query;  // in units

  bool alike() const { return blocks->heads == 1; }
  int64_t L() const { return alike() ? Hk : 1; }
  int64_t G() const { return alike() ? H / Hk : 1; }
  int64_t block() const { return blocks->block; }
  int64_t key_units() const { return blocks->key_blocks + 1; }  // the last one is empty: what short rows are padded with
};

/// Some units with room for C = room * block keys each, on the device of the scores.
struct Piece {
  Tensor unit;       // [u]
  Tensor head;       // [u]
  Tensor i;          // [u,block]: indices of queries
  Tensor key_block;  // [u,room]
  Tensor j;          // [u,C]: indices of keys, M or more where there is none
  bool partial;      // whether some block needs a test of elements
};

Piece piece(const Problem& p, c10::ArrayRef<int64_t> rows, int64_t room) {
  const auto& table = *p.blocks;
  std::vector<int64_t> places(rows.size() * static_cast<std::size_t>(room), table.key_blocks);
  bool partial = false;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const auto start = static_cast<std::size_t>(table.start[static_cast<std::size_t>(rows[r])]);
    for (std::size_t c = 0; c < static_cast<std::size_t>(table.count(rows[r])); ++c) {
      places[r * static_cast<std::size_t>(room) + c] = table.key_block[start + c];
      partial = partial || table.full[start + c] == 0;
    }
  }
  const auto count = static_cast<int64_t>(rows.size());
  const Tensor unit = tensor_of(rows, {count}, p.q.device()), key_block = tensor_of(places, {count, room}, p.q.device());
  const Tensor within = at::arange(table.block, unit.options());
  return {.unit = unit,
          .head = unit.floor_divide(table.query_blocks),
          .i = (unit.remainder(table.query_blocks) * table.block).unsqueeze(1) + within,
          .key_block = key_block,
          .j = (key_block.unsqueeze(2) * table.block + within).flatten(1),
          .partial = partial};
}

/// The elements of t, broadcastable to [B,H,N,M], at the queries and keys of a piece: broadcastable to [B,L,u,G,block,C].
Tensor gathered(const Problem& p, const Piece& piece, const Tensor& t) {
  const Tensor wide = four(t);
  const int64_t b = wide.size(0), h = wide.size(1), n = wide.size(2), m = wide.size(3);
  const Tensor i = n == 1 ? at::zeros_like(piece.i) : piece.i.clamp_max(n - 1), j = m == 1 ? at::zeros_like(piece.j) : piece.j.clamp_max(m - 1);
  Tensor place = i.unsqueeze(2) * m + j.unsqueeze(1);  // [u,block,C]
  if (p.alike()) {
    const Tensor taken = wide.reshape({b, h, n * m}).index_select(2, place.flatten()).unflatten(2, place.sizes());  // [b,h,u,block,C]
    const int64_t heads = h == 1 ? 1 : p.L();
    return taken.unflatten(1, {heads, h / heads}).transpose(2, 3);  // [b,L,u,G,block,C]
  }
  if (h > 1) place = place + piece.head.view({-1, 1, 1}) * (n * m);
  return wide.reshape({b, h * n * m}).index_select(1, place.flatten()).unflatten(1, place.sizes()).unsqueeze(2).unsqueeze(1);
}

/// out [B,L,u,G,block,Dv] and lse [B,L,u,G,block] of a piece.
std::pair<Tensor, Tensor> attend(const Problem& p, const Piece& piece) {
  const int64_t units = piece.unit.size(0), keys = piece.j.size(1);
  const Tensor q = p.q.index_select(2, piece.unit);  // [B,L,u,G,block,D]
  const Tensor key_block = p.alike() ? piece.key_block : (piece.head.floor_divide(p.H / p.Hk) * p.key_units()).unsqueeze(1) + piece.key_block;
  const auto take = [&](const Tensor& x) { return x.index_select(2, key_block.flatten()).reshape({p.B, p.L(), units, keys, x.size(-1)}); };
  const auto numbers = [&](int64_t count, at::IntArrayRef shape) { return at::arange(count, piece.unit.options()).view(shape); };
  Scores scores{
      .products = at::matmul(q.flatten(3, 4), take(p.k).transpose(-1, -2)).unflatten(3, {p.G(), p.block()}) * p.c.scale,  // [B,L,u,G,block,C]
      .b = numbers(p.B, {p.B, 1, 1, 1, 1, 1}),
      .head = p.alike() ? numbers(p.H, {p.L(), 1, p.G(), 1, 1}) : piece.head.view({units, 1, 1, 1}),
      .i = piece.i.unsqueeze(2).unsqueeze(1),                     // [u,1,block,1]
      .j = piece.j.clamp_max(p.M - 1).unsqueeze(1).unsqueeze(1),  // [u,1,1,C]
      .row_query = p.row_query.defined() ? p.row_query.index_select(2, piece.unit) : Tensor(),
      .of_all = [&](const Tensor& t) { return gathered(p, piece, t); },
      .of_all_keys =
          [&](const Tensor& t) {
            const Tensor taken = t.index_select(1, piece.j.clamp_max(p.M - 1).flatten()).unflatten(1, piece.j.sizes());  // [B,u,C]
            return taken.unsqueeze(2).unsqueeze(2).unsqueeze(1);
          }};
  Tensor seen = (piece.j < p.M).unsqueeze(1);  // [u,1,C]
  if (piece.partial) {
    seen = seen & p.rule->test({.h = piece.head.view({-1, 1, 1}), .i = piece.i.unsqueeze(2) + p.offset, .j = piece.j.unsqueeze(1)}, p.tables);
  }
  scores.seen = seen.unsqueeze(1);
  const auto [probabilities, lse] = weigh(p.c, scores);
  const Tensor out = at::matmul(probabilities.flatten(3, 4), take(p.v)).unflatten(3, {p.G(), p.block()});
  return {plus_value_rows(p.c, scores, probabilities, out), lse};
}

/// Rows by the room that their key blocks need; rows without any are left out.
std::map<int64_t, std::vector<int64_t>> rows_by_room(const BlockTable& table) {
  std::map<int64_t, std::vector<int64_t>> rows;
  for (int64_t row = 0; row < table.rows(); ++row) {
    if (const int64_t count = table.count(row); count > 0) rows[padded(count)].push_back(row);
  }
  return rows;
}

/// [B,L,units,G,block,X] -> [B,H,N,X]
Tensor out_of_units(const Problem& p, const Tensor& x) {
  const Tensor by_head = p.alike() ? x.transpose(2, 3).flatten(1, 2) : x.reshape({p.B, p.H, p.blocks->query_blocks, p.block(), x.size(-1)});
  return by_head.flatten(2, 3).narrow(2, 0, p.N);
}

std::pair<Tensor, Tensor> by_blocks(const Problem& p) {
  // What a unit takes while it is computed bounds how many are computed together.
  const auto elements = [&](int64_t room) {
    const int64_t keys = room * p.block(), queries = p.G() * p.block();
    return std::max<int64_t>(1, p.B * p.L() * (keys * (p.D + p.Dv) + queries * (p.D + p.Dv) + 4 * queries * keys));
  };
  constexpr int64_t most_elements = int64_t{1} << 24;
  std::vector<Tensor> outs{p.q.new_zeros({p.B, p.L(), 1, p.G(), p.block(), p.Dv})};  // what a query that sees nothing gets
  std::vector<Tensor> lses{p.q.new_full({p.B, p.L(), 1, p.G(), p.block()}, -std::numeric_limits<double>::infinity())};
  std::vector<int64_t> place(static_cast<std::size_t>(p.blocks->rows()), 0);  // of each unit among the results
  int64_t next = 1;
  for (const auto& [room, rows] : rows_by_room(*p.blocks)) {
    const auto together = static_cast<std::size_t>(std::max<int64_t>(1, most_elements / elements(room)));
    for (std::size_t first = 0; first < rows.size(); first += together) {
      const c10::ArrayRef<int64_t> some(rows.data() + first, std::min(together, rows.size() - first));
      for (const int64_t row : some) place[static_cast<std::size_t>(row)] = next++;
      auto [out, lse] = attend(p, piece(p, some, room));
      outs.push_back(std::move(out));
      lses.push_back(std::move(lse));
    }
  }
  const Tensor order = tensor_of(place, {static_cast<int64_t>(place.size())}, p.q.device());
  return {out_of_units(p, at::cat(outs, 2).index_select(2, order)),
          out_of_units(p, at::cat(lses, 2).index_select(2, order).unsqueeze(-1)).squeeze(-1)};
}

/// Every score, hidden where the pattern hides it: for patterns that leave little out, and tiny inputs.
OutAndLse densely(const AttentionArguments& c, const patterns::Rule& rule, patterns::Tables tables) {
  const auto whole = c.q.options().dtype(at::kLong);
  const Tensor h = at::arange(c.q.size(1), whole).view({-1, 1, 1}), i = at::arange(c.q.size(2), whole).unsqueeze(1),
               j = at::arange(c.k.size(2), whole);
  const bool alike = patterns::check_heads(rule, tables, c.q.size(1)) == 1;
  const Tensor seen = rule.test({.h = alike ? at::zeros_like(i) : h, .i = i + c.offset.guard_int(__FILE__, __LINE__), .j = j.unsqueeze(0)}, tables);
  AttentionArguments dense = c;
  dense.mask = c.mask ? seen & *c.mask : seen;
  dense.pattern = std::nullopt;
  return attention_formula(dense);
}

}  // namespace

OutAndLse sparse_attention_formula(const AttentionArguments& c) {
  const int64_t N = c.q.size(2), M = c.k.size(2), offset = c.offset.guard_int(__FILE__, __LINE__);
  Problem p{.c = c,
            .B = c.q.size(0),
            .H = c.q.size(1),
            .Hk = c.k.size(1),
            .N = N,
            .M = M,
            .D = c.q.size(3),
            .Dv = c.v.size(3),
            .offset = offset,
            .rule = patterns::parse(*c.pattern)};
  for (const auto& t : c.tables) p.tables.push_back(t.to(c.q.device()));
  constexpr int64_t tiny = 256;  // scores
  // Inside a function transform a table may be wrapped: its numbers cannot be read, only computed with.
  const bool wrapped = std::any_of(c.tables.begin(), c.tables.end(), [](const Tensor& t) { return !t.has_storage(); });
  const bool whole = wrapped || N * M <= tiny || p.H == 0;
  if (!whole) p.blocks = patterns::lower({*c.pattern, c.tables}, p.H, N, M, offset, block_for(std::max(N, M)));
  if (whole || 2 * static_cast<int64_t>(p.blocks->key_block.size()) > p.blocks->rows() * p.blocks->key_blocks) {
    return densely(c, *p.rule, p.tables);
  }
  const auto type = accumulation_type(c.q.scalar_type());
  const auto units = [&](const Tensor& x, int64_t blocks) {  // [B,L,heads,units,block,...]
    return in_blocks(x.to(type), blocks, p.block());
  };
  const auto queries = [&](const Tensor& x) {
    const Tensor blocks = units(x, p.blocks->query_blocks);
    return p.alike() ? blocks.unflatten(1, {p.Hk, p.H / p.Hk}).transpose(2, 3) : blocks.flatten(1, 2).unsqueeze(2).unsqueeze(1);
  };
  const auto keys = [&](const Tensor& x) { return p.alike() ? units(x, p.key_units()) : units(x, p.key_units()).flatten(1, 2).unsqueeze(1); };
  p.q = queries(c.q);
  p.k = keys(c.k);
  p.v = keys(c.v);
  if (c.rows) p.row_query = queries(c.row_query.value_or(c.q));
  const auto [out, lse] = by_blocks(p);
  return {out.to(c.q.scalar_type()).contiguous(), lse.contiguous()};
}

}  // namespace foveate::ops
