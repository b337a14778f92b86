// DeepSeek-V2 and V3, and what shares their mathematics: Kimi-K2, Moonlight.
#include "model/decoder.h"

namespace dsv3 {
namespace {

using lite::str;

// r = kv_lora_rank; dn, dr, dv: the parts of a head.
class Deepseek final : public DecoderBuilder {
 public:
  using DecoderBuilder::DecoderBuilder;

  Status mtp() {
    const int i = int(c.num_hidden_layers);
    const std::string p = str("model.layers.", i, ".");
    place(i, Role::Embed);
    const Var token = b.embed(weight(p + "embed_tokens.weight"), in.ids);  // [T, d]
    place(i, Role::Head);  // where the main graph has left them
    const Var hidden = b.stream_read(stream(int(streams_.size()) - 1), in.kv_rows);  // [T, d]
    place(i, Role::Mtp);
    const Var e = norm(token, p + "enorm.weight"), h = norm(hidden, p + "hnorm.weight");
    const Var z = linear(p + "eh_proj", b.concat(e, h));  // embedding first
    const Var x = block(i, z);
    place(i, Role::Mtp);
    const Var out = norm(b.select_rows(x, in.out_rows), p + "shared_head.norm.weight");
    place(i, Role::Head);
    head(out, p + "shared_head.head.weight");
    return b.status();
  }

 private:
  // Multi-head latent attention (arXiv:2405.04434, section 2.1). Only the normed latent and the rotated key
  // are cached.
  Var attention(int i, Var h) override {
    const int64_t H = c.layers[i].num_attention_heads, dn = c.qk_nope_head_dim, dr = c.qk_rope_head_dim,
                  dv = c.v_head_dim;
    const int64_t r = c.kv_lora_rank, T = o.limits.tokens;
    const std::string p = name(i, "self_attn.");
    const float scale = float(c.softmax_scale(c.layers[i])), eps = float(c.mla_norm_eps);

    // What is independent is built side by side, so that a device can run it so: values of one time have memory of their own.
    const Var a = c.q_lora_rank ? linear(p + "q_a_proj", h) : Var::none();  // [T, q_lora_rank]
    const Var kv = linear(p + "kv_a_proj_with_mqa", h);                     // [T, r + dr]
    const Var latent = b.rms_norm(b.slice(kv, 0, r), weight(p + "kv_a_layernorm.weight"), eps);  // [T, r]
    const Var key = rope(i, b.slice(kv, r, dr));                                                 // [T, dr]
    const Var q = b.view(a ? linear(p + "q_b_proj", b.rms_norm(a, weight(p + "q_a_layernorm.weight"), eps))
                           : linear(p + "q_proj", h),
                         {T, H, dn + dr});
    const Var cache = b.stream_write(stream(i), in.kv_rows, latent, key);
    const Var q_nope = b.slice(q, 0, dn), q_rope = rope(i, b.slice(q, dn, dr));  // [T, H, dn], [T, H, dr]

    const Var kv_b = weight(p + "kv_b_proj.weight");  // per head dn rows W_UK, then dv rows W_UV
    Var y;                                            // [T, H, dv]
    if (o.attention == AttentionForm::Absorbed) {
      const Var q_latent = b.linear_per_head(q_nope, kv_b, dn + dv, 0, dn, true);           // [T, H, r]
      const Var mixed = b.attention_latent(q_latent, q_rope, cache, in, scale, o.context);  // [T, H, r]
      y = b.linear_per_head(mixed, kv_b, dn + dv, dn, dv, false);
    } else {
      y = b.attention_expanded(q_nope, q_rope, kv_b, cache, in, scale, o.context);
    }
    return linear(p + "o_proj", b.view(y, {T, H * dv}));
  }

  // V2 (arXiv:2405.04434, section 2.2) limits groups by their best expert, V3 (arXiv:2412.19437,
  // section 2.1.2) by the sum of their two best biased scores; the bias chooses and does not weigh.
  lite::RouteParams routing(int i, Var* bias) override {
    const LayerConfig& l = c.layers[i];
    *bias = optional_weight(name(i, "mlp.gate.e_score_correction_bias"));
    lite::RouteParams route;
    route.scoring = c.scoring_func == ScoringFunc::Sigmoid ? lite::Scoring::Sigmoid : lite::Scoring::Softmax;
    route.group_score = c.topk_method == TopkMethod::Greedy               ? lite::GroupScore::None
                        : c.topk_method == TopkMethod::GroupLimitedGreedy ? lite::GroupScore::Largest
                                                                          : lite::GroupScore::TwoLargest;
    const bool grouped = route.group_score != lite::GroupScore::None;
    route.n_group = grouped ? l.n_group : 1;
    route.topk_group = grouped ? l.topk_group : 1;
    route.n_experts_per_token = l.num_experts_per_tok;
    route.normalize = c.norm_topk_prob && l.num_experts_per_tok > 1;
    // V2's gate either normalises or scales; V3's always scales.
    const bool scales = c.architecture == Architecture::DeepseekV3 || !route.normalize;
    route.factor = scales ? float(c.routed_scaling_factor) : 1.0f;
    return route;
  }
};

}  // namespace

Status build_deepseek(const Model& model, const GraphOptions& options,
                      const std::vector<lite::Stream>& streams, StepGraph* out) {
  return Deepseek(model, options, streams, out).main();
}

Status build_mtp(const Model& model, const GraphOptions& options, const std::vector<lite::Stream>& streams,
                 StepGraph* out) {
  return Deepseek(model, options, streams, out).mtp();
}

}  // namespace dsv3
