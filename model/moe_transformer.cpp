#include "model/moe_transformer.h"

#include <cmath>
#include <cstring>

#include "ggml-lite/machine.h"
#include "ggml-lite/ops.h"
#include "ggml-lite/plan.h"
#include "ggml-lite/scheduler.h"

namespace dsv3 {
namespace {

using lite::Var;

struct LayerGraph {
  lite::Graph graph;
  lite::StepInputs in;
  Var x, mask, y, ids, weights;
};

// T = batch * length tokens, d = hidden_size, H heads of n.
Status build(const Model& m, const LayerBatch& batch, int device, LayerGraph* out) {
  const Config& c = m.config();
  const LayerConfig& l = c.layers[0];
  const int64_t T = batch.batch * batch.length, d = c.hidden_size, H = l.num_attention_heads, n = l.head_dim;
  lite::Builder b(&out->graph);
  b.set_device(device);
  const auto weight = [&](const std::string& name) { return b.weight(m.tensor(name)); };
  const auto norm = [&](const std::string& p, Var x) {
    return b.layer_norm(x, weight(p + ".weight"), weight(p + ".bias"), float(c.rms_norm_eps));
  };
  out->in = b.step_inputs({T, batch.batch, 1, 1});
  out->x = b.input(lite::DType::F32, {T, d}, lite::Rows::Tokens);
  if (batch.mask) out->mask = b.input(lite::DType::F32, {batch.length, batch.length}, lite::Rows::Fixed);

  const Var qkv = b.linear(norm("attn_norm", out->x), weight("attn.in_proj_weight"),
                           weight("attn.in_proj_bias"));  // [T, 3 d]
  const auto part = [&](int64_t i) { return b.view(b.slice(qkv, i * d, d), {T, H, n}); };
  const Var o =
      b.attention_masked(part(0), part(1), part(2), out->mask, out->in, float(1 / std::sqrt(double(n))));
  const Var x = b.add(
      out->x, b.linear(b.view(o, {T, d}), weight("attn.out_proj.weight"), weight("attn.out_proj.bias")));

  const Var h = norm("moe_norm", x);
  // The softmax of the chosen logits is the softmax of all, normalised over the chosen.
  const lite::RouteParams route{
      lite::Scoring::Softmax, lite::GroupScore::None, 1, 1, l.num_experts_per_tok, true, 1.0f};
  const auto [ids, weights] =
      b.route(b.linear(h, weight("moe.gate.weight"), Var::none(), {.f32 = true}), Var::none(), route);
  lite::ExpertSet set;
  set.activation = lite::Activation::Gelu;
  for (int32_t e = 0; e < int32_t(l.n_routed_experts); ++e) {
    const std::string p = lite::str("moe.experts.", e, ".");
    lite::FfnWeights w;
    w.up = m.tensor(p + "w1.weight");
    w.up_bias = m.tensor(p + "w1.bias");
    w.down = m.tensor(p + "w2.weight");
    w.down_bias = m.tensor(p + "w2.bias");
    set.slot_of_expert.push_back(e);
    set.slots.push_back(w);
  }
  out->y = b.keep(b.add(x, b.moe_ffn(h, ids, weights, std::move(set), lite::Rounding::None)));
  out->ids = b.keep(ids);
  out->weights = b.keep(weights);
  return b.status();
}

}  // namespace

Status eval_moe_transformer(Model& m, const LayerBatch& batch, const LayerCompute& compute,
                            const LayerResult& result) {
  if (m.config().architecture != Architecture::MoeTransformer)
    return lite::invalid_argument("evaluate a layer: the model is ", m.config().model_type,
                                  ", expected moe_transformer");
  if (batch.batch < 1 || batch.length < 1 || batch.batch * batch.length > 1 << 24)
    return lite::invalid_argument("evaluate a layer: got ", batch.batch, " sequences of ", batch.length,
                                  " tokens, expected at least one of each and at most ", 1 << 24, " in all");
  LITE_ASSIGN(const auto owned, make_backends(compute.device, compute.n_threads, compute.exact));
  std::vector<lite::Backend*> backends;
  for (const auto& backend : owned) backends.push_back(backend.get());
  LayerGraph g;
  LITE_TRY(build(m, batch, int(backends.size()) - 1, &g));
  LITE_ASSIGN(const lite::Plan plan, lite::make_plan(&g.graph, backends));
  if (plan.arena_bytes[0] > lite::memory_limit())
    return lite::out_of_memory("evaluate a layer: it takes ", plan.arena_bytes[0],
                               " bytes, this machine has ", lite::memory_limit(),
                               "; try fewer or shorter sequences");
  LITE_ASSIGN(const std::vector<lite::Buffer> memory, lite::allocate_arenas(plan.arena_bytes, backends));
  std::vector<std::byte*> arenas;
  for (const lite::Buffer& arena : memory) arenas.push_back(arena.get());
  LITE_TRY(m.device_weights().upload(&g.graph, backends));
  lite::bind(&g.graph, plan, arenas, {});
  static constexpr lite::Phase kPhases[] = {lite::kPrompt};
  LITE_TRY(lite::prepare(g.graph, plan, backends, kPhases));

  const auto data = [&](Var v) { return g.graph.tensor(v).data; };
  const int64_t T = batch.batch * batch.length;
  int32_t* counts = g.graph.tensor(g.in.counts).row<int32_t>(0);
  counts[lite::kTokens] = int32_t(T);
  counts[lite::kSequences] = int32_t(batch.batch);
  counts[lite::kOutputs] = 0;
  counts[lite::kPhase] = lite::kPrompt;
  for (int64_t s = 0; s < batch.batch; ++s) {
    int32_t* entry = g.graph.tensor(g.in.seqs).row<int32_t>(s);
    entry[0] = int32_t(s * batch.length);
    entry[1] = entry[2] = int32_t(batch.length);
  }
  std::memcpy(data(g.x), batch.x, size_t(T * m.config().hidden_size) * sizeof(float));
  if (batch.mask) std::memcpy(data(g.mask), batch.mask, size_t(batch.length * batch.length) * sizeof(float));

  LITE_TRY(lite::run(g.graph, plan, backends, std::atomic<bool>(false)));
  const size_t chosen = size_t(T * m.config().layers[0].num_experts_per_tok);
  std::memcpy(result.y, data(g.y), size_t(T * m.config().hidden_size) * sizeof(float));
  if (result.router_ids) std::memcpy(result.router_ids, data(g.ids), chosen * sizeof(int32_t));
  if (result.router_weights) std::memcpy(result.router_weights, data(g.weights), chosen * sizeof(float));
  return {};
}

}  // namespace dsv3
