#include "cuda/plan/sizes.h"

#include <bit>

#include "ggml-lite/kv.h"

namespace lite::cuda {

static_assert(kAttentionTile == kBlockRows, "a tile of positions is a block of the block table");

namespace {

constexpr int64_t kFloat = sizeof(float);

// Of attention's shared memory: rows, scores, and three floats of a head.
constexpr int64_t kChunkBytes =
    kAttentionChunk * (int64_t(sizeof(int64_t)) + kAttentionHeads * kFloat) + 3 * kAttentionHeads * kFloat;

int64_t partial_bytes(int64_t tokens, int64_t context, int64_t heads, int64_t n) {
  return std::min<int64_t>(tokens, kTokenGroup) * most_parts(context, heads) * heads * (2 + n) * kFloat;
}

Status check_attention(const Graph& g, const Node& n) {
  AttentionSizes sizes = {};
  const int64_t width = g.tensor(n.in[0]).shape[2];
  switch (n.op) {
    case Op::AttentionLatent: sizes = {g.tensor(n.in[2]).shape[1], width}; break;
    case Op::AttentionExpanded: sizes = {g.tensor(n.in[3]).shape[1], g.tensor(n.in[2]).shape[1]}; break;
    default: sizes = {width, width};
  }
  if (sizes.heads_of_block(1) >= 1) return {};
  return unsupported(op_name(n.op), " on a GPU: a head's query of ", sizes.query, " values and result of ",
                     sizes.value, " do not fit the ", kSharedBytes, " bytes that a block shares");
}

int64_t attention_workspace(const Graph& g, const Node& n) {
  const Tensor& y = g.tensor(n.out[0]);
  switch (n.op) {
    case Op::AttentionExpanded:  // one or the other
      return std::max(expanded_workspace(g, n, nullptr).bytes,
                      has_prompt_attention(g, n) ? prompt_attention_workspace(g, n, nullptr).bytes : 0);
    case Op::AttentionLatent:
    case Op::AttentionGrouped:
      return partial_bytes(y.shape[0], std::get<AttentionParams>(n.params).context, y.shape[1], y.shape[2]);
    default: return 0;
  }
}

Status check_route(const Graph& g, const Node& n) {
  const int64_t experts = g.tensor(n.in[0]).shape[1];
  if (route_bytes(experts, std::get<RouteParams>(n.params)) <= kSharedBytes) return {};
  return unsupported("route on a GPU: the scores of ", experts, " experts do not fit the ", kSharedBytes,
                     " bytes that a block shares");
}

Status check_moe(const Graph& g, const Node& n) {
  const int64_t tokens = g.tensor(n.in[0]).shape[0], k = g.tensor(n.in[1]).shape[1],
                group = kTogether * (k + 1);
  if (std::max(hidden_shared_bytes(group), down_shared_bytes(group)) > kSharedMost)
    return unsupported("moe_ffn on a GPU: ", k, " experts of a token are more than a block has room for");
  const int64_t networks = int64_t(experts_of(g, n).slots.size()) + 1,
                most = kSharedBytes / int64_t(sizeof(int32_t));
  if (networks > most)
    return unsupported("moe_ffn on a GPU: ", networks - 1, " experts of one layer, expected at most ",
                       most - 1);
  if (most_tasks(tokens * (k + 1), networks, kTogether) > kGridYZ)
    return unsupported("moe_ffn on a GPU: steps of ", tokens,
                       " tokens are too large; try a smaller max_batch_tokens");
  return {};
}

// The rounded activations, of the one way or the other.
int64_t linear_workspace(const Graph& g, const Node& n, bool exact) {
  const int64_t rounded = rounds_linear(g, n) ? g.tensor(n.in[0]).elements() * kFloat : 0;
  if (exact || std::get<LinearParams>(n.params).f32 || !held_by_bf16(g.tensor(n.in[1]).dtype)) return rounded;
  Carver carve(nullptr);
  rounded_of_linear(g, n, &carve);
  return std::max(rounded, carve.used());
}

}  // namespace

// Blocks of a grid's second direction hold 8 rows or 256 columns each.
constexpr int64_t kLargest = 500000;

Status check_node(const Graph& g, const Node& n) {
  for (const std::vector<Var>* values : {&n.in, &n.out})
    for (const Var v : *values)
      for (int i = 0; v && i < g.tensor(v).rank; ++i)
        if (g.tensor(v).shape[i] > kLargest)
          return unsupported(op_name(n.op), " on a GPU: a dimension of ", g.tensor(v).shape[i],
                             ", expected at most ", kLargest);
  switch (n.op) {
    case Op::AttentionLatent:
    case Op::AttentionExpanded:
    case Op::AttentionGrouped:
    case Op::AttentionMasked: return check_attention(g, n);
    case Op::Route: return check_route(g, n);
    case Op::MoeFfn: return check_moe(g, n);
    case Op::Stage: return unsupported("stage on a GPU: it is the host's work");
    default: return {};
  }
}

int64_t node_workspace(const Graph& g, const Node& n, bool exact) {
  switch (n.op) {
    case Op::Linear: return linear_workspace(g, n, exact);
    case Op::AttentionLatent:
    case Op::AttentionExpanded:
    case Op::AttentionGrouped:
    case Op::AttentionMasked: return attention_workspace(g, n);
    case Op::MoeFfn:
      return moe_workspace(g, n, nullptr).bytes + moe_prompt_workspace(g, n, exact, nullptr).bytes;
    default: return 0;
  }
}

bool joins_next(const Graph& g, int32_t node) {
  if (size_t(node) + 1 >= g.nodes.size()) return false;
  const Node &n = g.nodes[size_t(node)], &next = g.nodes[size_t(node) + 1];
  if (next.op != Op::Add || next.device != n.device || (n.op != Op::Linear && n.op != Op::MoeFfn))
    return false;
  const int32_t made = n.out[0].id;
  return (next.in[0].id == made) != (next.in[1].id == made);
}

// ---- recordings

int64_t recorded_rows(int64_t rows) {
  return int64_t(std::bit_ceil(uint64_t(rows)));
}

int64_t most_rows(const Graph& g) {
  int64_t most = 1;
  for (const Value& v : g.values)
    if (v.rows != Rows::Fixed) most = std::max(most, v.tensor.shape[0]);
  return most;
}

namespace {
// Of a node in a decode step of up to so many rows.
int64_t most_stages(const Graph& g, const Node& n, int64_t rows) {
  const int64_t parts = 2 * ceil_div(rows, kTokenGroup);  // of attention, and their merging
  switch (n.op) {
    case Op::Linear: return rounds_linear(g, n) ? 2 : 1;
    case Op::AttentionLatent:
    case Op::AttentionGrouped: return parts;
    case Op::AttentionExpanded: return parts + 2;
    case Op::MoeFfn: return std::get<MoeParams>(n.params).rounding == Rounding::None ? 2 : 4;
    default: return 1;
  }
}
}  // namespace

int64_t program_bytes(const Graph& g, const Segment& segment, int64_t rows) {
  int64_t stages = 0;
  for (int32_t i = 0; i < segment.n_nodes; ++i)
    stages += most_stages(g, g.nodes[size_t(segment.first_node + i)], rows);
  return stages * kStageBytes;
}

// The table, then the networks, then the slots.
int64_t moe_table_bytes(const ExpertSet& set) {
  return 2 * int64_t(sizeof(void*)) + (int64_t(set.slots.size()) + 1) * kNetworkBytes +
         int64_t(set.slot_of_expert.size() * sizeof(int32_t));
}

int64_t recording_bytes(const Graph& g, const Plan& plan, int device, std::span<const Phase> phases) {
  Carver carve(nullptr);
  for (const Node& n : g.nodes)
    if (n.device == device && n.op == Op::MoeFfn) carve.take<std::byte>(moe_table_bytes(experts_of(g, n)));
  if (std::find(phases.begin(), phases.end(), kDecode) == phases.end()) return carve.used();
  for (int64_t rows = 1; rows <= recorded_rows(most_rows(g)); rows *= 2)
    for (const Segment& segment : plan.segments)
      if (segment.device == device && !segment.aside) carve.take<std::byte>(program_bytes(g, segment, rows));
  return carve.used();
}

// ---- products of prompts

RoundedRows carve_rounded(Carver* carve, int64_t rows, int64_t n, bool to_f8) {
  RoundedRows r = {};
  r.stride = round_up(n, kTileChunk);
  r.groups = ceil_div(n, kRoundGroup);
  r.data = carve->take<uint16_t>(rows * r.stride);
  r.factor = to_f8 ? carve->take<float>(rows * r.groups) : nullptr;
  return r;
}

bool rounds_linear(const Graph& g, const Node& n) {
  return std::get<LinearParams>(n.params).rounding != Rounding::None &&
         g.tensor(n.in[1]).dtype == DType::F8_E4M3;
}

RoundedRows rounded_of_linear(const Graph& g, const Node& n, Carver* carve) {
  const Tensor& x = g.tensor(n.in[0]);
  return carve_rounded(carve, x.shape[0], x.shape[1], rounds_linear(g, n));
}

// ---- moe_ffn

const ExpertSet& experts_of(const Graph& g, const Node& n) {
  return g.experts[size_t(std::get<MoeParams>(n.params).experts)];
}

int64_t width_of(const ExpertSet& set) {
  const int64_t routed = set.slots.empty() ? 0 : set.slots[0].up.shape[0];
  return set.has_shared ? std::max(routed, set.shared.up.shape[0]) : routed;
}

ExpertTypes types_of(const ExpertSet& set) {
  const FfnWeights& f = set.slots.empty() ? set.shared : set.slots[0];
  return {f.up.dtype, f.down.dtype};
}

int64_t most_tasks(int64_t pairs, int64_t networks, int pairs_per_task) {
  return networks == 0 ? 0 : pairs / pairs_per_task + std::min(pairs, networks);
}

MoeWorkspace moe_workspace(const Graph& g, const Node& n, std::byte* memory) {
  const ExpertSet& set = experts_of(g, n);
  const int64_t tokens = g.tensor(n.in[0]).shape[0], d = g.tensor(n.in[0]).shape[1],
                pairs = tokens * (g.tensor(n.in[1]).shape[1] + 1),
                networks = int64_t(set.slots.size()) + (set.has_shared ? 1 : 0);
  MoeWorkspace w;
  Carver carve(memory);
  w.tasks = carve.take<MoeTask>(most_tasks(pairs, networks, kTogether));
  w.n_tasks = carve.take<int32_t>(1);
  w.list = carve.take<int32_t>(pairs);
  w.rounded = carve.take<float>(std::get<MoeParams>(n.params).rounding == Rounding::None ? 0 : tokens * d);
  w.hidden = carve.take<float>(pairs * width_of(set));
  w.result = carve.take<float>(pairs * d);
  w.bytes = carve.used();
  return w;
}

MoePromptWorkspace moe_prompt_workspace(const Graph& g, const Node& n, bool exact, std::byte* memory) {
  const ExpertSet& set = experts_of(g, n);
  const int64_t tokens = g.tensor(n.in[0]).shape[0], pairs = tokens * (g.tensor(n.in[1]).shape[1] + 1),
                networks = int64_t(set.slots.size()) + (set.has_shared ? 1 : 0);
  MoePromptWorkspace w = {};
  Carver carve(memory);
  w.counts = carve.take<int32_t>(ceil_div(pairs, kSortPairs) * networks);
  const auto [up, down] = types_of(set);
  if (!exact && set.activation == Activation::SwiGlu && held_by_bf16(up) && held_by_bf16(down)) {
    const bool rounds = std::get<MoeParams>(n.params).rounding != Rounding::None;
    w.x = carve_rounded(&carve, tokens, g.tensor(n.in[0]).shape[1], rounds && up == DType::F8_E4M3);
    w.hidden = carve_rounded(&carve, pairs, width_of(set), rounds && down == DType::F8_E4M3);
  }
  w.bytes = carve.used();
  return w;
}

int64_t pair_group_bytes(int64_t pairs) {
  return pairs * int64_t(sizeof(PairTask) + sizeof(int32_t)) + 16;
}
int64_t hidden_shared_bytes(int64_t pairs) {
  return kRingsBytes + pair_group_bytes(pairs) + 2 * kSumsBytes;
}
int64_t down_shared_bytes(int64_t pairs) {
  return kRingsBytes + pair_group_bytes(pairs) + pairs * kStageWarps * kGemvRows * kFloat;
}

// ---- route

int64_t route_bytes(int64_t experts, const RouteParams& p) {
  return (2 * experts + p.n_group + 2 * p.n_experts_per_token) * kFloat;
}

// ---- attention

int64_t AttentionSizes::bytes_of_head() const {
  return (query_row() + int64_t(sets()) * pairs() * 2) * kFloat;
}
int64_t AttentionSizes::heads_of_block(int64_t heads_per_group) const {
  return std::min(
      {int64_t(kAttentionHeads), heads_per_group, (kSharedBytes - kChunkBytes) / bytes_of_head()});
}
int64_t AttentionSizes::shared_bytes(int64_t heads) const {
  return kChunkBytes + heads * bytes_of_head();
}

// Enough for every processor, whatever the number of heads.
int64_t split_of_heads(int64_t heads) {
  return std::clamp<int64_t>(4096 / heads, 32, 256);
}
int64_t most_parts(int64_t context, int64_t heads) {
  return std::min(split_of_heads(heads), ceil_div(context, kAttentionChunk));
}

ExpandedWorkspace expanded_workspace(const Graph& g, const Node& n, std::byte* memory) {
  const int64_t tokens = g.tensor(n.in[0]).shape[0], heads = g.tensor(n.in[0]).shape[1],
                r = g.tensor(n.in[2]).shape[1], context = std::get<AttentionParams>(n.params).context;
  ExpandedWorkspace w;
  Carver carve(memory);
  w.query = carve.take<float>(tokens * heads * r);
  w.result = carve.take<float>(tokens * heads * r);
  w.partials = carve.take<float>(partial_bytes(tokens, context, heads, r) / kFloat);
  w.bytes = carve.used();
  return w;
}

bool has_prompt_attention(const Graph& g, const Node& n) {
  const Tensor &q = g.tensor(n.in[0]), &y = g.tensor(n.out[0]);
  const bool from_latents = n.op == Op::AttentionExpanded;
  if (!from_latents && n.op != Op::AttentionGrouped) return false;
  const int64_t key = padded(q.shape[2]) + (from_latents ? padded(g.tensor(n.in[1]).shape[2]) : 0),
                value = padded(y.shape[2]);
  return key <= kMostKey && value <= kMostValue && q.shape[1] * (key + value) / kExpandSide < kGridYZ;
}

int64_t most_tiles(const Graph& g, const Node& n, int64_t tokens) {
  const int64_t context = std::get<AttentionParams>(n.params).context, sequences = g.tensor(n.in[4]).shape[0];
  return std::min(sequences, tokens) * tiles_of(context);
}

PromptAttentionWorkspace prompt_attention_workspace(const Graph& g, const Node& n, std::byte* memory) {
  const Tensor &q = g.tensor(n.in[0]), &y = g.tensor(n.out[0]);
  const int64_t tokens = y.shape[0], heads = y.shape[1];
  PromptAttentionWorkspace w;
  w.chunk = round_up(std::min(std::max<int64_t>(4, tiles_of(8 * tokens)), most_tiles(g, n, tokens)), 2);
  Carver carve(memory);
  w.rows = carve.take<uint16_t>(heads * w.chunk * kAttentionTile * (padded(q.shape[2]) + padded(y.shape[2])));
  w.state = carve.take<float>(tokens * heads * 2);
  w.bytes = carve.used();
  return w;
}

}  // namespace lite::cuda
