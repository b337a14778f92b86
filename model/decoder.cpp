#include "model/decoder.h"

#include <functional>
#include <map>

#include "ggml-lite/staging.h"

namespace dsv3 {

using lite::str;
using lite::Var;

Status DecoderBuilder::main() {
  make_groups();
  place(-1, Role::Embed);
  Var x = b.embed(weight("model.embed_tokens.weight"), in.ids);  // [T, d]
  if (o.keep_hidden) keep("hidden.0", x);
  for (int i = 0; i < int(c.num_hidden_layers); ++i) {
    x = block(i, x);
    if (o.keep_hidden) keep(str("hidden.", i + 1), x);
  }
  place(-1, Role::Head);
  // Only rows whose logits are wanted need the final norm, unless somebody reads it for all.
  if (o.mtp || o.keep_hidden) {
    x = norm(x, "model.norm.weight");
    if (o.keep_hidden) keep("final", x);
    if (o.mtp) b.stream_write(stream(int(streams_.size()) - 1), in.kv_rows, x);
    x = b.select_rows(x, in.out_rows);  // [R, d]
  } else {
    x = norm(b.select_rows(x, in.out_rows), "model.norm.weight");
  }
  switch (c.task) {
    case Task::CausalLm: head(x, "lm_head.weight"); break;
    case Task::SequenceClassification: head(x, "score.weight"); break;
    case Task::TokenClassification: head(x, "score.weight", weight("score.bias")); break;
    case Task::QuestionAnswering: head(x, "qa_outputs.weight", weight("qa_outputs.bias")); break;
  }
  return b.status();
}

Var DecoderBuilder::block(int i, Var x) {
  place(i, Role::Attention);
  x = b.add(x, attention(i, norm(x, name(i, "input_layernorm.weight"))));
  const bool moe = c.layers[i].moe;
  place(i, moe ? Role::Router : Role::DenseFfn);
  const Var h = norm(x, name(i, "post_attention_layernorm.weight"));
  return b.add(x, moe ? experts(i, h) : dense(i, h));
}

Var DecoderBuilder::dense(int i, Var h) {
  const std::string p = name(i, "mlp.");
  return linear(p + "down_proj", b.silu_mul(linear(p + "gate_proj", h), linear(p + "up_proj", h)));
}

Var DecoderBuilder::experts(int i, Var h) {
  const LayerConfig& l = c.layers[i];
  const std::string p = name(i, "mlp.");
  const Var logits = b.linear(h, weight(p + "gate.weight"), Var::none(), {.f32 = true});  // [T, E]
  Var bias;
  const lite::RouteParams params = routing(i, &bias);
  Var chosen;
  if (o.given_routing && i < c.num_hidden_layers) {
    chosen = b.input(lite::DType::I32, {o.limits.tokens, l.num_experts_per_tok}, lite::Rows::Tokens);
    out_.chosen.push_back(chosen);
  }
  const auto [ids, weights] = b.route(logits, bias, params, chosen);
  if (o.keep_routing) {
    keep(str("router_logits.", i), logits);
    keep(str("router_ids.", i), ids);
    keep(str("router_weights.", i), weights);
  }

  // Every device runs the experts it holds. GPUs are given their share first: they work while the host does its own. Results
  // are added in this order.
  std::map<int, lite::ExpertSet, std::greater<>> sets;
  if (l.n_shared_experts) {
    lite::ExpertSet& set = sets[o.placement.device(i, Role::SharedExperts)];
    set.has_shared = true;
    set.shared = swiglu(p + "shared_experts.");
  }
  const auto held_by = [&](int e, int device) {
    return o.placement.expert_device(i, e) == device && (device != 0 || !o.streamed);
  };
  for (int e = 0; e < int(l.n_routed_experts); ++e)
    if (const int device = o.placement.expert_device(i, e); held_by(e, device))
      sets[device].slots.push_back(swiglu(str(p, "experts.", e, ".")));
  for (const auto& [device, set] : sets) b.send({h, ids, weights}, device);
  std::vector<Var> parts;
  for (auto& [device, set] : sets) {
    int32_t slot = 0;
    for (int e = 0; e < int(l.n_routed_experts); ++e)
      set.slot_of_expert.push_back(held_by(e, device) ? slot++ : -1);
    b.set_device(device);
    parts.push_back(b.moe_ffn(h, ids, weights, std::move(set), o.rounding));
  }
  streamed_experts(i, h, ids, weights, &parts);
  place(i, Role::Router);
  Var y = parts[0];
  for (size_t k = 1; k < parts.size(); ++k) y = b.add(y, parts[k]);
  return y;
}

// The next group is on its way while this one is computed, also from one layer to the next.
void DecoderBuilder::streamed_experts(int i, Var h, Var ids, Var weights, std::vector<Var>* parts) {
  for (; !groups_.empty() && groups_.front().layer == i; groups_.pop_front()) {
    for (size_t next = 0; next < std::min<size_t>(2, groups_.size()); ++next)
      if (Group& g = groups_[next]; !g.staged) g.staged = b.stage(g.set, brought_to(g.layer));
    b.set_device(brought_to(i));
    parts->push_back(
        b.moe_ffn(h, ids, weights, std::move(groups_.front().set), o.rounding, groups_.front().staged));
  }
}

void DecoderBuilder::make_groups() {
  for (int i = 0; o.streamed && i < int(c.num_hidden_layers); ++i) {
    const int n = int(c.layers[i].n_routed_experts);
    for (int e = 0; e < n;) {
      Group group = {i, {}, {}};
      group.set.slot_of_expert.assign(size_t(n), -1);
      // At least one, then as many as there is room for.
      for (; e < n && (group.set.slots.empty() || lite::staged_bytes(group.set) < o.streamed); ++e) {
        if (o.placement.expert_device(i, e) != 0) continue;
        group.set.slot_of_expert[size_t(e)] = int32_t(group.set.slots.size());
        group.set.slots.push_back(swiglu(str(name(i, "mlp.experts."), e, ".")));
      }
      if (!group.set.slots.empty()) groups_.push_back(std::move(group));
    }
  }
}

// The router's GPU, or else the first.
int DecoderBuilder::brought_to(int i) const {
  return std::max(1, o.placement.device(i, Role::Router));
}

void DecoderBuilder::head(Var x, const std::string& matrix, Var bias) {
  out_.logits = b.keep(b.linear(x, weight(matrix), bias, {.f32 = true}));
}

lite::FfnWeights DecoderBuilder::swiglu(const std::string& p) {
  lite::FfnWeights w;
  w.gate = m.tensor(p + "gate_proj.weight");
  w.up = m.tensor(p + "up_proj.weight");
  w.down = m.tensor(p + "down_proj.weight");
  return w;
}

Var DecoderBuilder::linear(const std::string& p, Var x) {
  return b.linear(x, weight(p + ".weight"), optional_weight(p + ".bias"), {.rounding = o.rounding});
}

Var DecoderBuilder::rope(int i, Var x) {
  const Var inv_freq = b.weight(m.rope_inv_freq(c.rotary_dim(c.layers[i])));
  return b.rope(x, in.positions, inv_freq, float(c.rope_cos_sin_scale()), c.rope_interleave);
}

Var DecoderBuilder::optional_weight(const std::string& tensor_name) {
  const lite::Tensor t = m.tensor(tensor_name);
  return t.data ? b.weight(t) : Var::none();
}

void DecoderBuilder::keep(const std::string& kept_name, Var x) {
  out_.kept[kept_name] = b.keep(x);
}

std::vector<lite::Stream> make_streams(const Model& model, const GraphOptions& options) {
  const Config& c = model.config();
  std::vector<lite::Stream> streams;
  const int64_t layers = c.num_hidden_layers + (options.mtp ? 1 : 0);
  for (int i = 0; i < int(layers); ++i)
    streams.push_back({str("layer.", i), options.kv, c.cached_values(c.layers[i]),
                       options.placement.device(i, Role::Attention)});
  if (options.mtp)
    streams.push_back({"final", lite::DType::F32, c.hidden_size, options.placement.device(-1, Role::Head)});
  return streams;
}

Status build_main(const Model& model, const GraphOptions& options, const std::vector<lite::Stream>& streams,
                  StepGraph* out) {
  switch (model.config().architecture) {
    case Architecture::DeepseekV2:
    case Architecture::DeepseekV3: return build_deepseek(model, options, streams, out);
    case Architecture::Qwen3Moe:
    case Architecture::Mixtral: return build_gqa(model, options, streams, out);
    case Architecture::MoeTransformer: break;
  }
  return lite::invalid_argument(
      "evaluate: a moe_transformer layer has no vocabulary; it takes hidden states");
}

}  // namespace dsv3
