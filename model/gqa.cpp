// Qwen3-MoE (arXiv:2505.09388) and Mixtral (arXiv:2401.04088): grouped-query attention and softmax-routed
// experts.
#include "model/decoder.h"

namespace dsv3 {
namespace {

// G key heads of n values, H query heads.
class Gqa final : public DecoderBuilder {
 public:
  using DecoderBuilder::DecoderBuilder;

 private:
  Var attention(int i, Var h) override {
    const LayerConfig& l = c.layers[i];
    const int64_t H = l.num_attention_heads, G = l.num_key_value_heads, n = l.head_dim, T = o.limits.tokens;
    const std::string p = name(i, "self_attn.");
    Var q = b.view(linear(p + "q_proj", h), {T, H, n});
    Var k = b.view(linear(p + "k_proj", h), {T, G, n});
    const Var v = linear(p + "v_proj", h);  // [T, G * n]
    if (c.architecture == Architecture::Qwen3Moe) {
      q = norm(q, p + "q_norm.weight");
      k = norm(k, p + "k_norm.weight");
    }
    const Var keys = b.view(rope(i, k), {T, G * n});
    const Var cache = b.stream_write(stream(i), in.kv_rows, keys, v);
    const float scale = float(c.softmax_scale(l));
    const Var y =
        b.attention_grouped(rope(i, q), cache, in, scale, o.context, c.sliding_window);  // [T, H, n]
    return linear(p + "o_proj", b.view(y, {T, H * n}));
  }

  lite::RouteParams routing(int i, Var*) override {
    lite::RouteParams route;
    route.scoring = lite::Scoring::Softmax;
    route.group_score = lite::GroupScore::None;
    route.n_group = route.topk_group = 1;
    route.n_experts_per_token = c.layers[i].num_experts_per_tok;
    route.normalize = c.norm_topk_prob;
    route.factor = 1;
    return route;
  }
};

}  // namespace

Status build_gqa(const Model& model, const GraphOptions& options, const std::vector<lite::Stream>& streams,
                 StepGraph* out) {
  return Gqa(model, options, streams, out).main();
}

}  // namespace dsv3
