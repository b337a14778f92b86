#include "ggml-lite/ops.h"

#include "ggml-lite/staging.h"

namespace lite {

const char* op_name(Op op) {
  static const char* const names[] = {"embed",
                                      "rms_norm",
                                      "layer_norm",
                                      "linear",
                                      "linear_per_head",
                                      "rope",
                                      "stream_write",
                                      "stream_read",
                                      "attention_latent",
                                      "attention_expanded",
                                      "attention_grouped",
                                      "attention_masked",
                                      "route",
                                      "moe_ffn",
                                      "silu_mul",
                                      "add",
                                      "concat",
                                      "select_rows",
                                      "copy",
                                      "stage"};
  return names[int(op)];
}

int64_t Graph::live_rows(const Node& node, Var v) const {
  const Value& x = value(v);
  if (x.rows == Rows::Fixed) return x.tensor.shape[0];
  return tensor(node.counts).row<int32_t>(0)[x.rows == Rows::Tokens ? kTokens : kOutputs];
}

// ---- values -----------------------------------------------------------------------------------------------

Var Builder::storage_value(Kind kind, int device, const Tensor& shape, Rows rows) {
  Storage s{kind, device};
  s.bytes = shape.elements() * size_of(shape.dtype);
  s.data = shape.data;
  g_.storages.push_back(s);
  g_.values.push_back({shape, rows, device, int32_t(g_.storages.size()) - 1, 0});
  return {int32_t(g_.values.size()) - 1};
}

Var Builder::input(DType dtype, std::initializer_list<int64_t> dims, Rows rows) {
  return storage_value(Kind::Input, 0, Tensor::of(dtype, dims), rows);
}

Var Builder::output(DType dtype, std::initializer_list<int64_t> dims, Rows rows) {
  return storage_value(Kind::Activation, device_, Tensor::of(dtype, dims), rows);
}

Var Builder::like(Var x) {
  const Tensor shape = t(x);
  Tensor fresh = Tensor::of(DType::F32, {shape.shape[0], shape.shape[1], shape.shape[2], shape.shape[3]});
  fresh.rank = shape.rank;
  return storage_value(Kind::Activation, device_, fresh, g_.value(x).rows);
}

StepInputs Builder::step_inputs(const StepLimits& n) {
  StepInputs in;
  in.counts = g_.counts = input(DType::I32, {kCounts}, Rows::Fixed);
  in.ids = input(DType::I32, {n.tokens}, Rows::Tokens);
  in.positions = input(DType::I32, {n.tokens}, Rows::Tokens);
  in.kv_rows = input(DType::I32, {n.tokens}, Rows::Tokens);
  in.seqs = input(DType::I32, {n.sequences, 3}, Rows::Fixed);
  in.blocks = input(DType::I32, {n.sequences, n.blocks}, Rows::Fixed);
  in.out_rows = input(DType::I32, {n.outputs}, Rows::Outputs);
  return in;
}

Var Builder::weight(const Tensor& tensor) {
  return storage_value(Kind::Weight, device_, tensor, Rows::Fixed);
}

Var Builder::stream(int32_t index, const Stream& stream) {
  const Var v =
      storage_value(Kind::Stream, stream.device, Tensor::of(stream.dtype, {1, stream.width}), Rows::Fixed);
  g_.storages[g_.value(v).storage].stream = index;
  return v;
}

Var Builder::keep(Var x) {
  if (!usable({x})) return Var::none();
  const int device = std::exchange(device_, 0);
  const Var kept = here(x);
  device_ = device;
  if (!kept) return kept;
  Storage& s = g_.storages[g_.value(kept).storage];
  if (s.kind == Kind::Activation) s.kind = Kind::Kept;
  return kept;
}

void Builder::send(std::initializer_list<Var> values, int device) {
  const int mine = std::exchange(device_, device);
  for (const Var v : values)
    if (usable({v})) here(v);
  device_ = mine;
}

Var Builder::view(Var x, std::initializer_list<int64_t> dims) {
  if (!usable({x})) return Var::none();
  Value v = g_.value(x);
  Tensor shaped = Tensor::of(v.tensor.dtype, dims);
  Tensor row = v.tensor;
  row.shape[0] = 1;
  if (!require(row.contiguous() && shaped.shape[0] == v.tensor.shape[0] &&
                   shaped.elements() == v.tensor.elements(),
               "view", "contiguous rows of as many elements"))
    return Var::none();
  shaped.data = v.tensor.data;
  shaped.stride[0] = v.tensor.stride[0];
  v.tensor = shaped;
  g_.values.push_back(v);
  return {int32_t(g_.values.size()) - 1};
}

Var Builder::slice(Var x, int64_t first, int64_t n) {
  if (!usable({x})) return Var::none();
  Value v = g_.value(x);
  const int64_t last = v.tensor.shape[v.tensor.rank - 1];
  if (!require(first >= 0 && n >= 1 && first + n <= last, "slice", "a range inside the last dimension"))
    return Var::none();
  v.offset += first * size_of(v.tensor.dtype);
  v.tensor = slice_cols(v.tensor, first, n);
  g_.values.push_back(v);
  return {int32_t(g_.values.size()) - 1};
}

Var Builder::here(Var v) {
  if (!v || g_.value(v).device == device_ || g_.storages[g_.value(v).storage].kind == Kind::Weight) return v;
  const auto [it, fresh] = copies_.try_emplace({v.id, device_});
  if (!fresh) return it->second;
  const Value from = g_.value(v);
  const bool movable = from.tensor.contiguous() && g_.storages[from.storage].kind != Kind::Stream;
  if (!require(movable, "copy", "a contiguous value that is not a stream")) return Var::none();
  Tensor shape = from.tensor;
  shape.data = nullptr;
  it->second = storage_value(Kind::Activation, device_, shape, from.rows);
  // The host's memory is reached by both sides, so the other one copies, and finds the counts there.
  const int device = device_ != 0 ? device_ : from.device;
  g_.nodes.push_back({Op::Copy, device, {v}, {it->second}, {}, g_.counts, Var::none()});
  return it->second;
}

void Builder::append(Op op, std::vector<Var> in, std::vector<Var> out, Params params) {
  for (Var& v : in) v = here(v);
  g_.nodes.push_back({op, device_, std::move(in), std::move(out), params, here(g_.counts), Var::none()});
}

bool Builder::require(bool condition, const char* op, const char* what) {
  if (!condition && status_.ok())
    status_ = internal_error("build graph: node ", g_.nodes.size(), " (", op, "): expected ", what);
  return condition && status_.ok();
}

bool Builder::usable(std::initializer_list<Var> operands) {
  for (const Var v : operands)
    if (!v) require(false, "operand", "a value");
  return status_.ok();
}

// ---- ops --------------------------------------------------------------------------------------------------

Var Builder::embed(Var table, Var ids) {
  if (!usable({table, ids}) ||
      !require(t(table).rank == 2 && t(ids).rank == 1, "embed", "table [V, d], ids [T]"))
    return Var::none();
  const Var y = output(DType::F32, {t(ids).shape[0], t(table).shape[1]}, Rows::Tokens);
  append(Op::Embed, {table, ids}, {y});
  return y;
}

Var Builder::rms_norm(Var x, Var weight, float eps) {
  if (!usable({x, weight}) || !require(t(weight).rank == 1 && t(weight).shape[0] == t(x).shape[t(x).rank - 1],
                                       "rms_norm", "x [..., n], weight [n]"))
    return Var::none();
  const Var y = like(x);
  append(Op::RmsNorm, {x, weight}, {y}, NormParams{eps});
  return y;
}

Var Builder::layer_norm(Var x, Var weight, Var bias, float eps) {
  if (!usable({x, weight, bias}) ||
      !require(t(x).rank == 2 && t(weight).shape[0] == t(x).shape[1] && t(bias).shape[0] == t(x).shape[1],
               "layer_norm", "x [T, n], weight and bias [n]"))
    return Var::none();
  const Var y = like(x);
  append(Op::LayerNorm, {x, weight, bias}, {y}, NormParams{eps});
  return y;
}

Var Builder::linear(Var x, Var weight, Var bias, LinearParams params) {
  if (!usable({x, weight}) ||
      !require(t(x).rank == 2 && t(weight).rank == 2 && t(weight).shape[1] == t(x).shape[1] &&
                   (!bias || (t(bias).rank == 1 && t(bias).shape[0] == t(weight).shape[0])),
               "linear", "x [T, in], weight [out, in], bias [out]"))
    return Var::none();
  const Var y = output(DType::F32, {t(x).shape[0], t(weight).shape[0]}, g_.value(x).rows);
  append(Op::Linear, {x, weight, bias}, {y}, params);
  return y;
}

Var Builder::linear_per_head(Var x, Var weight, int64_t head_rows, int64_t row0, int64_t rows,
                             bool transposed) {
  if (!usable({x, weight}) ||
      !require(t(x).rank == 3 && t(weight).rank == 2 && t(weight).shape[0] == t(x).shape[1] * head_rows &&
                   row0 >= 0 && rows >= 1 && row0 + rows <= head_rows &&
                   t(x).shape[2] == (transposed ? rows : t(weight).shape[1]),
               "linear_per_head", "x [T, H, n], weight [H * head_rows, cols]"))
    return Var::none();
  const Var y = output(DType::F32, {t(x).shape[0], t(x).shape[1], transposed ? t(weight).shape[1] : rows},
                       g_.value(x).rows);
  append(Op::LinearPerHead, {x, weight}, {y}, LinearPerHeadParams{head_rows, row0, rows, transposed});
  return y;
}

Var Builder::rope(Var x, Var positions, Var inv_freq, float scale, bool interleaved) {
  if (!usable({x, positions, inv_freq}) ||
      !require((t(x).rank == 2 || t(x).rank == 3) && t(x).shape[t(x).rank - 1] == 2 * t(inv_freq).shape[0] &&
                   t(positions).shape[0] == t(x).shape[0],
               "rope", "x [T, H, n] or [T, n], positions [T], inv_freq [n / 2]"))
    return Var::none();
  const Var y = like(x);
  append(Op::Rope, {x, positions, inv_freq}, {y}, RopeParams{scale, interleaved});
  return y;
}

Var Builder::stream_write(Var stream, Var rows, Var a, Var b) {
  if (!usable({stream, rows, a}) ||
      !require(t(a).rank == 2 && t(a).shape[1] + (b ? t(b).shape[1] : 0) == t(stream).shape[1],
               "stream_write", "parts as wide as the stream together"))
    return Var::none();
  g_.values.push_back(g_.value(stream));
  const Var after{int32_t(g_.values.size()) - 1};
  append(Op::StreamWrite, {stream, rows, a, b}, {after});
  return after;
}

Var Builder::stream_read(Var stream, Var rows) {
  if (!usable({stream, rows})) return Var::none();
  const Var y = output(DType::F32, {t(rows).shape[0], t(stream).shape[1]}, Rows::Tokens);
  append(Op::StreamRead, {stream, rows}, {y});
  return y;
}

Var Builder::attention_latent(Var q_latent, Var q_rope, Var stream, const StepInputs& in, float scale,
                              int64_t context) {
  if (!usable({q_latent, q_rope, stream}) ||
      !require(t(q_latent).rank == 3 && t(q_rope).rank == 3 && t(q_latent).shape[1] == t(q_rope).shape[1] &&
                   t(q_latent).shape[2] + t(q_rope).shape[2] == t(stream).shape[1],
               "attention_latent", "q_latent [T, H, r], q_rope [T, H, n], stream [r + n]"))
    return Var::none();
  const Var y = like(q_latent);
  append(Op::AttentionLatent, {q_latent, q_rope, stream, in.seqs, in.blocks}, {y},
         AttentionParams{scale, context});
  return y;
}

Var Builder::attention_expanded(Var q_nope, Var q_rope, Var kv_b, Var stream, const StepInputs& in,
                                float scale, int64_t context) {
  if (!usable({q_nope, q_rope, kv_b, stream})) return Var::none();
  const int64_t heads = t(q_nope).shape[1], dn = t(q_nope).shape[2], head_rows = t(kv_b).shape[0] / heads;
  if (!require(t(q_nope).rank == 3 && t(q_rope).rank == 3 && t(q_rope).shape[1] == heads &&
                   head_rows * heads == t(kv_b).shape[0] && head_rows > dn &&
                   t(kv_b).shape[1] + t(q_rope).shape[2] == t(stream).shape[1],
               "attention_expanded",
               "q_nope [T, H, dn], q_rope [T, H, n], kv_b [H * (dn + dv), r], stream [r + n]"))
    return Var::none();
  const Var y = output(DType::F32, {t(q_nope).shape[0], heads, head_rows - dn}, g_.value(q_nope).rows);
  append(Op::AttentionExpanded, {q_nope, q_rope, kv_b, stream, in.seqs, in.blocks}, {y},
         AttentionParams{scale, context});
  return y;
}

Var Builder::attention_grouped(Var q, Var stream, const StepInputs& in, float scale, int64_t context,
                               int64_t window) {
  if (!usable({q, stream})) return Var::none();
  const int64_t heads = t(q).shape[1], n = t(q).shape[2], groups = t(stream).shape[1] / (2 * n);
  if (!require(t(q).rank == 3 && groups >= 1 && groups * 2 * n == t(stream).shape[1] && heads % groups == 0 &&
                   window >= 0,
               "attention_grouped", "q [T, H, n], stream [2 * G * n], H a multiple of G"))
    return Var::none();
  const Var y = like(q);
  append(Op::AttentionGrouped, {q, stream, in.seqs, in.blocks}, {y}, AttentionParams{scale, context, window});
  return y;
}

Var Builder::attention_masked(Var q, Var k, Var v, Var mask, const StepInputs& in, float scale) {
  if (!usable({q, k, v}) ||
      !require(t(q).rank == 3 && t(q).shape == t(k).shape && t(q).shape == t(v).shape &&
                   (!mask || (t(mask).rank == 2 && t(mask).shape[0] == t(mask).shape[1])),
               "attention_masked", "q, k, v [T, H, n], mask [S, S]"))
    return Var::none();
  const Var y = like(q);
  append(Op::AttentionMasked, {q, k, v, mask, in.seqs}, {y}, AttentionParams{scale, t(q).shape[0]});
  return y;
}

Builder::Routing Builder::route(Var logits, Var bias, const RouteParams& p, Var chosen) {
  if (!usable({logits}) ||
      !require(t(logits).rank == 2 && (!bias || t(bias).shape[0] == t(logits).shape[1]) &&
                   p.n_experts_per_token >= 1 && p.n_experts_per_token <= t(logits).shape[1] &&
                   p.n_group >= 1 && t(logits).shape[1] % p.n_group == 0 &&
                   (p.group_score != GroupScore::TwoLargest || p.n_group == 1 ||
                    t(logits).shape[1] / p.n_group >= 2) &&
                   (!chosen || (t(chosen).rank == 2 && t(chosen).shape[1] == p.n_experts_per_token)),
               "route", "logits [T, E], bias [E], E a multiple of n_group, K <= E, chosen [T, K]"))
    return {};
  const int64_t rows = t(logits).shape[0];
  const Var ids = output(DType::I32, {rows, p.n_experts_per_token}, g_.value(logits).rows);
  const Var weights = output(DType::F32, {rows, p.n_experts_per_token}, g_.value(logits).rows);
  append(Op::Route, {logits, bias, chosen}, {ids, weights}, p);
  return {ids, weights};
}

Var Builder::moe_ffn(Var x, Var ids, Var weights, ExpertSet experts, Rounding rounding, Var staged) {
  if (!usable({x, ids, weights})) return Var::none();
  const int64_t d = t(x).shape[1];
  const auto fits = [d, gated = experts.activation == Activation::SwiGlu](const FfnWeights& w) {
    const int64_t width = w.up.shape[0];
    return w.up.shape[1] == d && w.down.shape[0] == d && w.down.shape[1] == width &&
           (gated ? w.gate.shape == w.up.shape : w.up_bias.shape[0] == width && w.down_bias.shape[0] == d);
  };
  bool shapes = t(x).rank == 2 && t(ids).shape[1] == t(weights).shape[1] &&
                (!experts.has_shared || fits(experts.shared));
  for (const FfnWeights& w : experts.slots)
    shapes = shapes && fits(w) && w.up.shape == experts.slots[0].up.shape;
  for (const int32_t slot : experts.slot_of_expert)
    shapes = shapes && slot >= -1 && slot < int64_t(experts.slots.size());
  if (!require(shapes, "moe_ffn", "x [T, d], ids and weights [T, K], experts of one width"))
    return Var::none();
  g_.experts.push_back(std::move(experts));
  const Var y = like(x);
  std::vector<Var> in = {x, ids, weights};
  if (staged) in.push_back(staged);
  append(Op::MoeFfn, std::move(in), {y}, MoeParams{int32_t(g_.experts.size()) - 1, rounding});
  return y;
}

Var Builder::stage(const ExpertSet& experts, int device) {
  const int mine = std::exchange(device_, 0);
  g_.experts.push_back(experts);
  const Var bytes =
      output(DType::I32, {ceil_div(staged_bytes(experts), kStagedRow), kStagedRow / 4}, Rows::Fixed);
  std::vector<Var> after;
  if (arrived_.size() >= 2) after.push_back(arrived_[arrived_.size() - 2]);
  append(Op::Stage, std::move(after), {bytes}, MoeParams{int32_t(g_.experts.size()) - 1, Rounding::None});
  device_ = device;
  const Var there = here(bytes);
  Value first = g_.value(there);
  first.tensor = slice_rows(first.tensor, 0, 1);
  g_.values.push_back(first);
  device_ = 0;
  arrived_.push_back(here({int32_t(g_.values.size()) - 1}));
  device_ = mine;
  return there;
}

Var Builder::silu_mul(Var gate, Var up) {
  if (!usable({gate, up}) ||
      !require(t(gate).rank == 2 && t(gate).shape == t(up).shape, "silu_mul", "two values of one shape"))
    return Var::none();
  const Var y = like(gate);
  append(Op::SiluMul, {gate, up}, {y});
  return y;
}

Var Builder::add(Var a, Var b) {
  if (!usable({a, b}) ||
      !require(t(a).rank == 2 && t(a).shape == t(b).shape, "add", "two values of one shape"))
    return Var::none();
  const Var y = like(a);
  append(Op::Add, {a, b}, {y});
  return y;
}

Var Builder::concat(Var a, Var b) {
  if (!usable({a, b}) || !require(t(a).rank == 2 && t(b).rank == 2 && t(a).shape[0] == t(b).shape[0],
                                  "concat", "[T, n], [T, m]"))
    return Var::none();
  const Var y = output(DType::F32, {t(a).shape[0], t(a).shape[1] + t(b).shape[1]}, g_.value(a).rows);
  append(Op::Concat, {a, b}, {y});
  return y;
}

Var Builder::select_rows(Var x, Var out_rows) {
  if (!usable({x, out_rows}) ||
      !require(t(x).rank == 2 && t(out_rows).rank == 1, "select_rows", "x [T, n], out_rows [R]"))
    return Var::none();
  const Var y = output(DType::F32, {t(out_rows).shape[0], t(x).shape[1]}, Rows::Outputs);
  append(Op::SelectRows, {x, out_rows}, {y});
  return y;
}

}  // namespace lite
