#include "model/tensors.h"

namespace dsv3 {

const char* role_name(Role role) {
  switch (role) {
    case Role::Embed: return "embed";
    case Role::Attention: return "attention";
    case Role::DenseFfn: return "dense_ffn";
    case Role::Router: return "router";
    case Role::SharedExperts: return "shared_experts";
    case Role::RoutedExperts: return "routed_experts";
    case Role::Head: return "head";
    case Role::Mtp: return "mtp";
  }
  return "?";
}

int64_t fewest_tensors(const Config& config) {
  int64_t fewest = 0;
  for (const LayerConfig& l : config.layers) fewest += 1 + 2 * l.n_routed_experts;
  return fewest;
}

std::string TensorInfo::fused_name() const {
  return fused ? lite::str("model.layers.", layer, ".mlp.experts.", fused) : "";
}

namespace {

class Table {
 public:
  explicit Table(const Config& config) : c(config) {}

  std::vector<TensorInfo> build() {
    size_t most = 8;  // in all
    for (const LayerConfig& l : c.layers) most += 24 + 4 * size_t(l.n_routed_experts);
    table_.reserve(most);
    if (c.architecture == Architecture::MoeTransformer) {
      moe_transformer();
      return std::move(table_);
    }
    const int64_t d = c.hidden_size;
    add("model.embed_tokens.weight", {c.vocab_size, d}, Role::Embed);
    for (int i = 0; i < int(c.layers.size()); ++i) {
      enter(i);
      if (i >= int(c.num_hidden_layers)) mtp();
      block();
    }
    enter(-1);
    add("model.norm.weight", {d}, Role::Head);
    head();
    if (c.task == Task::QuestionAnswering)  // transformers 4 calls the backbone of this head "transformer"
      for (TensorInfo& t : table_)
        if (t.name.starts_with("model.")) t.also.push_back("transformer." + t.name.substr(6));
    return std::move(table_);
  }

 private:
  // What is added from here on belongs to this layer, or with -1 to none.
  void enter(int layer) {
    layer_ = layer;
    prefix_ = layer < 0 ? "" : lite::str("model.layers.", layer, ".");
  }

  // The name in two parts: of 90,000 tensors each copy of a name counts.
  TensorInfo& add(std::string_view name, std::vector<int64_t> shape, Role role, bool matrix = false,
                  std::string_view ending = "") {
    TensorInfo& t = table_.emplace_back();
    t.name.reserve(prefix_.size() + name.size() + ending.size());
    t.name.append(prefix_).append(name).append(ending);
    t.shape = std::move(shape);
    t.role = role;
    t.layer = layer_;
    t.matrix = matrix;
    return t;
  }
  TensorInfo& matrix(std::string_view name, int64_t out, int64_t in, Role role) {
    return add(name, {out, in}, role, true, ".weight");
  }
  void norm(std::string_view name, int64_t size, Role role) { add(name, {size}, role, false, ".weight"); }

  void swiglu(const std::string& prefix, int64_t width, Role role, int expert = -1) {
    const int64_t d = c.hidden_size;
    const struct {
      const char *name, *mixtral, *fused;
      int64_t out, in, fused_rows, fused_row;
    } parts[] = {{"gate_proj", "w1", "gate_up_proj", width, d, 2 * width, 0},
                 {"up_proj", "w3", "gate_up_proj", width, d, 2 * width, width},
                 {"down_proj", "w2", "down_proj", d, width, d, 0}};
    std::string name = prefix;
    for (const auto& part : parts) {
      name.resize(prefix.size());
      TensorInfo& t = matrix(name += part.name, part.out, part.in, role);
      t.expert = expert;
      if (expert >= 0) {  // transformers 5
        t.fused = part.fused;
        t.fused_experts = c.layers[layer_].n_routed_experts;
        t.fused_rows = part.fused_rows;
        t.fused_row = part.fused_row;
      }
      if (c.architecture == Architecture::Mixtral)
        t.also.push_back(
            lite::str(prefix_, "block_sparse_moe.experts.", expert, ".", part.mixtral, ".weight"));
    }
  }

  // Multi-head latent attention: arXiv:2405.04434, section 2.1.
  void latent_attention(const LayerConfig& l) {
    const int64_t d = c.hidden_size, heads = l.num_attention_heads, rank = c.kv_lora_rank;
    const Role role = Role::Attention;
    if (c.q_lora_rank) {
      matrix("self_attn.q_a_proj", c.q_lora_rank, d, role);
      if (c.attention_bias) add("self_attn.q_a_proj.bias", {c.q_lora_rank}, role);
      norm("self_attn.q_a_layernorm", c.q_lora_rank, role);
      matrix("self_attn.q_b_proj", heads * c.qk_head_dim(), c.q_lora_rank, role);
    } else {
      matrix("self_attn.q_proj", heads * c.qk_head_dim(), d, role);
    }
    matrix("self_attn.kv_a_proj_with_mqa", c.latent_dim(), d, role);
    if (c.attention_bias) add("self_attn.kv_a_proj_with_mqa.bias", {c.latent_dim()}, role);
    norm("self_attn.kv_a_layernorm", rank, role);
    matrix("self_attn.kv_b_proj", heads * (c.qk_nope_head_dim + c.v_head_dim), rank, role);
    matrix("self_attn.o_proj", d, heads * c.v_head_dim, role);
    if (c.attention_bias) add("self_attn.o_proj.bias", {d}, role);
  }

  // Grouped-query attention; Qwen3 also norms every query and key head.
  void grouped_attention(const LayerConfig& l) {
    const int64_t d = c.hidden_size, queries = l.num_attention_heads * l.head_dim,
                  keys = l.num_key_value_heads * l.head_dim;
    const struct {
      const char* name;
      int64_t out, in;
    } parts[] = {{"q_proj", queries, d}, {"k_proj", keys, d}, {"v_proj", keys, d}, {"o_proj", d, queries}};
    for (const auto& part : parts) {
      matrix(lite::str("self_attn.", part.name), part.out, part.in, Role::Attention);
      if (c.attention_bias) add(lite::str("self_attn.", part.name, ".bias"), {part.out}, Role::Attention);
    }
    if (c.architecture != Architecture::Qwen3Moe) return;
    norm("self_attn.q_norm", l.head_dim, Role::Attention);
    norm("self_attn.k_norm", l.head_dim, Role::Attention);
  }

  void block() {
    const LayerConfig& l = c.layers[layer_];
    const int64_t d = c.hidden_size;
    norm("input_layernorm", d, Role::Attention);
    if (c.is_mla())
      latent_attention(l);
    else
      grouped_attention(l);
    norm("post_attention_layernorm", d, l.moe ? Role::Router : Role::DenseFfn);
    if (!l.moe) return swiglu("mlp.", l.intermediate_size, Role::DenseFfn);
    TensorInfo& gate = add("mlp.gate.weight", {l.n_routed_experts, d}, Role::Router);
    if (c.architecture == Architecture::Mixtral)
      gate.also.push_back(prefix_ + "block_sparse_moe.gate.weight");
    // The bias comes with noaux_tc; where another method's checkpoint has one, it is used too.
    if (c.is_mla())
      add("mlp.gate.e_score_correction_bias", {l.n_routed_experts}, Role::Router).optional =
          c.topk_method != TopkMethod::NoauxTc;
    if (l.n_shared_experts)
      swiglu("mlp.shared_experts.", l.n_shared_experts * l.moe_intermediate_size, Role::SharedExperts);
    for (int e = 0; e < int(l.n_routed_experts); ++e)
      swiglu("mlp.experts." + std::to_string(e) + ".", l.moe_intermediate_size, Role::RoutedExperts, e);
  }

  // What a multi-token-prediction layer has beyond a block: arXiv:2412.19437, section 2.2.
  void mtp() {
    const int64_t d = c.hidden_size;
    TensorInfo& embed = add("embed_tokens.weight", {c.vocab_size, d}, Role::Mtp);
    embed.optional = true;
    embed.same_as = "model.embed_tokens.weight";
    norm("enorm", d, Role::Mtp);
    norm("hnorm", d, Role::Mtp);
    add("eh_proj.weight", {d, 2 * d}, Role::Mtp);
    norm("shared_head.norm", d, Role::Mtp);
    TensorInfo& head = add("shared_head.head.weight", {c.vocab_size, d}, Role::Mtp);
    head.optional = head.output_head = true;
    head.same_as = c.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  }

  void head() {
    const int64_t d = c.hidden_size;
    switch (c.task) {
      case Task::CausalLm: {
        // A tied head is the embedding; files that carry it all the same must carry the same bytes.
        TensorInfo& head = add("lm_head.weight", {c.vocab_size, d}, Role::Head);
        head.output_head = true;
        head.optional = c.tie_word_embeddings;
        if (c.tie_word_embeddings) head.same_as = "model.embed_tokens.weight";
        return;
      }
      case Task::SequenceClassification: add("score.weight", {c.output_size(), d}, Role::Head); return;
      case Task::TokenClassification:
        add("score.weight", {c.output_size(), d}, Role::Head);
        add("score.bias", {c.output_size()}, Role::Head);
        return;
      case Task::QuestionAnswering:
        add("qa_outputs.weight", {c.output_size(), d}, Role::Head);
        add("qa_outputs.bias", {c.output_size()}, Role::Head);
        return;
    }
  }

  // The single layer of LayerNorms, multi-head attention and GELU experts, under the names of its own state
  // dict, which have no layer in them.
  void moe_transformer() {
    const LayerConfig& l = c.layers[0];
    const int64_t d = c.hidden_size, width = l.moe_intermediate_size;
    const auto of_layer = [&](const std::string& name, std::vector<int64_t> shape, Role role,
                              bool is_matrix = false) -> TensorInfo& {
      TensorInfo& t = add(name, std::move(shape), role, is_matrix);
      t.layer = 0;
      return t;
    };
    of_layer("attn_norm.weight", {d}, Role::Attention);
    of_layer("attn_norm.bias", {d}, Role::Attention);
    of_layer("attn.in_proj_weight", {3 * d, d}, Role::Attention, true);
    of_layer("attn.in_proj_bias", {3 * d}, Role::Attention);
    of_layer("attn.out_proj.weight", {d, d}, Role::Attention, true);
    of_layer("attn.out_proj.bias", {d}, Role::Attention);
    of_layer("moe_norm.weight", {d}, Role::Router);
    of_layer("moe_norm.bias", {d}, Role::Router);
    of_layer("moe.gate.weight", {l.n_routed_experts, d}, Role::Router);
    for (int e = 0; e < int(l.n_routed_experts); ++e) {
      const std::string p = lite::str("moe.experts.", e, ".");
      of_layer(p + "w1.weight", {width, d}, Role::RoutedExperts, true).expert = e;
      of_layer(p + "w1.bias", {width}, Role::RoutedExperts).expert = e;
      of_layer(p + "w2.weight", {d, width}, Role::RoutedExperts, true).expert = e;
      of_layer(p + "w2.bias", {d}, Role::RoutedExperts).expert = e;
    }
  }

  const Config& c;
  std::vector<TensorInfo> table_;
  int layer_ = -1;
  std::string prefix_;  // of the names of this layer's tensors
};

}  // namespace

std::vector<TensorInfo> tensor_table(const Config& config) {
  return Table(config).build();
}

}  // namespace dsv3
