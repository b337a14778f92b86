// The ops, each with its contract: inputs, shapes, mathematics. A call appends one node and returns its result, so
// that a model's builder reads like the paper.
//
// T tokens (or R output rows) are the leading dimension of activations; activations are f32. Weights are [out, in],
// of any float type, block-scaled or not, and are decoded exactly. Sums are f32 in a fixed order: a row's result
// depends on that row and the weights only. Each op has its reference in ref/ and its tests in tests/unit/test_ops.cpp.
//
// A wrong shape is a mistake of the builder's caller, not of a user: the first one is kept in status(), later calls do
// nothing. Operands that live on another device are copied by a node of their own, which a device other than the host runs.
#pragma once

#include <map>

#include "ggml-lite/graph.h"

namespace lite {

class Builder {
 public:
  explicit Builder(Graph* graph) : g_(*graph) {}

  Status status() const { return status_; }
  // Where following nodes run: 0 is the host.
  void set_device(int device) { device_ = device; }

  // ---- leaves
  StepInputs step_inputs(const StepLimits& limits);
  // One more tensor that the caller writes before a step, on device 0.
  Var input(DType dtype, std::initializer_list<int64_t> dims, Rows rows);
  Var weight(const Tensor& tensor);  // memory that lives as long as the graph, on the current device
  Var stream(int32_t index, const Stream& stream);
  // Keeps `x` until the end of the step, for the caller to read. Returns it as the host has it.
  Var keep(Var x);

  // Copies values to a device before what the current one does next, so that both can work at once.
  void send(std::initializer_list<Var> values, int device);

  // ---- views: no node, no copy
  Var view(
      Var x,
      std::initializer_list<int64_t> dims);  // another shape of each row, which is contiguous; dims[0] stays
  Var slice(Var x, int64_t first, int64_t n);  // [first, first + n) of the last dimension

  // ---- ops
  // table [V, d], ids [T] -> [T, d]: row ids[t] of the table.
  Var embed(Var table, Var ids);

  // x [T, ..., n], weight [n] -> same shape: x / sqrt(mean(x^2) + eps) * weight over the last dimension.
  Var rms_norm(Var x, Var weight, float eps);

  // x [T, n], weight and bias [n] -> [T, n]: (x - mean) / sqrt(variance + eps) * weight + bias, variance of the n values.
  Var layer_norm(Var x, Var weight, Var bias, float eps);

  // x [T, in], weight [out, in], bias [out] or none -> [T, out]: x weight^T + bias. With rounding,
  // and if the weight is F8, x is rounded first.
  Var linear(Var x, Var weight, Var bias = Var::none(), LinearParams params = {});

  // A matrix of which each head owns head_rows rows; W_h is rows [row0, row0 + rows) of head h's.
  // x [T, H, n], weight [H * head_rows, cols] ->
  //   plain       n = cols: [T, H, rows], y_h = W_h x_h
  //   transposed  n = rows: [T, H, cols], y_h = W_h^T x_h
  // This is how absorbed MLA uses kv_b_proj: W_UK transposed on the query, W_UV plain on the result, in place.
  Var linear_per_head(Var x, Var weight, int64_t head_rows, int64_t row0, int64_t rows, bool transposed);

  // x [T, H, n] or [T, n], positions [T], inv_freq [n / 2] -> same shape: rotates the pairs (2i, 2i + 1) when
  // interleaved, else (i, i + n / 2), by the angle f32(position * inv_freq[i]), and multiplies by scale.
  Var rope(Var x, Var positions, Var inv_freq, float scale, bool interleaved);

  // Writes [a_t ; b_t] (b may be none) into row rows[t] of the stream, rounded to its type. Returns the stream as it
  // is afterwards: what reads it must read this.
  Var stream_write(Var stream, Var rows, Var a, Var b = Var::none());
  // rows [T] -> [T, width]: rows of the stream.
  Var stream_read(Var stream, Var rows);

  // Absorbed MLA (arXiv:2405.04434, section 2.1, with W_UK and W_UV moved to the query and the result), causal.
  // q_latent [T, H, r], q_rope [T, H, n], stream rows [latent r ; key n] -> [T, H, r]:
  //   p = softmax over positions s <= t of scale * (q_latent . latent_s + q_rope . key_s);  y = sum_s p_s latent_s
  Var attention_latent(Var q_latent, Var q_rope, Var stream, const StepInputs& in, float scale,
                       int64_t context);

  // The same attention with keys and values expanded from the latent by kv_b [H * (dn + dv), r], per head first dn
  // key rows, then dv value rows: q_nope [T, H, dn], q_rope [T, H, n] -> [T, H, dv].
  Var attention_expanded(Var q_nope, Var q_rope, Var kv_b, Var stream, const StepInputs& in, float scale,
                         int64_t context);

  // Causal attention with H query heads on G shared key and value heads (GQA; G = H: multi-head): query head h uses key
  // head h / (H / G). q [T, H, n], stream rows [G keys of n ; G values of n] -> [T, H, n]:
  //   p = softmax over visible positions s of scale * q . key_s;  y = sum_s p_s value_s
  // Visible: s <= t, and s > t - window if there is one.
  Var attention_grouped(Var q, Var stream, const StepInputs& in, float scale, int64_t context,
                        int64_t window);

  // Attention inside the step, without a cache or an order: q, k, v [T, H, n], mask [S, S] f32 or none -> [T, H, n].
  // Token i of a sequence sees every token j of it, with mask[i][j] added to the score (-infinity: not at all). A token
  // that sees nothing gets NaN, as its softmax is undefined.
  Var attention_masked(Var q, Var k, Var v, Var mask, const StepInputs& in, float scale);

  // Chooses experts. logits [T, E], bias [E] or none -> ids [T, K] (I32) and weights [T, K], highest weight first.
  //   s = softmax or sigmoid of the logits;  c = s + bias, by which is chosen
  //   group_score: of the n_group equal groups only the topk_group with the highest score stay (score: largest c, or
  //   sum of the two largest); then the K largest c; equal values rank by lower index
  //   w = s of the chosen; normalize: w / (sum w + 1e-20); w * factor
  struct Routing {
    Var ids, weights;
  };
  // With `chosen` [T, K] (I32, ids of the layer) these are the experts, in that order, and only their weights are computed.
  Routing route(Var logits, Var bias, const RouteParams& params, Var chosen = Var::none());

  // x [T, d], ids and weights [T, K] -> [T, d]: sum over k in order of w_k * expert_{ids_k}(x), then + shared(x).
  // Experts the set does not hold add nothing. Rounding as in linear, also before down. With `staged` the weights are
  // those that stage() has brought, of an equal set.
  Var moe_ffn(Var x, Var ids, Var weights, ExpertSet experts, Rounding rounding, Var staged = Var::none());

  // The weights of experts of the host's memory as bytes on another device (staging.h): the host copies them to memory that
  // both reach, while the device is busy with what came before. At most two are under way.
  Var stage(const ExpertSet& experts, int device);

  // gate, up [T, n] -> silu(gate) * up, silu(z) = z / (1 + exp(-z)).
  Var silu_mul(Var gate, Var up);
  // a, b of one shape -> a + b.
  Var add(Var a, Var b);
  // a [T, n], b [T, m] -> [T, n + m].
  Var concat(Var a, Var b);
  // x [T, n], out_rows [R] -> [R, n].
  Var select_rows(Var x, Var out_rows);

 private:
  const Tensor& t(Var v) const { return g_.values[v.id].tensor; }
  Var storage_value(Kind kind, int device, const Tensor& shape, Rows rows);
  Var output(DType dtype, std::initializer_list<int64_t> dims, Rows rows);
  Var like(Var x);
  Var here(Var v);  // the value on the current device
  void append(Op op, std::vector<Var> in, std::vector<Var> out, Params params = {});
  bool require(bool condition, const char* op, const char* what);
  bool usable(std::initializer_list<Var> operands);

  Graph& g_;
  Status status_;
  int device_ = 0;
  std::map<std::pair<int32_t, int>, Var> copies_;  // (value, device) -> its copy there
  std::vector<Var> arrived_;  // by stage(): a value on the host that is there when the device has the bytes
};

}  // namespace lite
