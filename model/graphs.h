// The computation graphs of a model: what to build, and one builder per architecture.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ggml-lite/graph.h"
#include "model/model.h"
#include "model/placement.h"

namespace dsv3 {

enum class AttentionForm { Absorbed, Expanded };  // of MLA

struct GraphOptions {
  Placement placement;
  AttentionForm attention = AttentionForm::Absorbed;
  lite::Rounding rounding = lite::Rounding::None;
  lite::DType kv = lite::DType::F32;
  bool keep_hidden = false, keep_routing = false;
  bool given_routing = false;  // the caller says which experts the main model's tokens go to
  bool mtp = false;
  // Prompts: routed experts that lie on the host are brought to a GPU layer by layer, so many bytes of them at a time; 0: the
  // host computes them.
  int64_t streamed = 0;
  int64_t context = 0;  // most rows of a sequence
  lite::StepLimits limits = {};
};

// The row stores of a session, one a layer: MLA's [kv_lora_rank normed latent ; qk_rope_head_dim rotated key], or
// [rotated keys ; values]. With mtp also the MTP layer's, and after it the main model's final hidden states, which that
// layer reads.
std::vector<lite::Stream> make_streams(const Model& model, const GraphOptions& options);

// A graph and what the caller writes and reads.
struct StepGraph {
  lite::Graph graph;
  lite::StepInputs in;
  lite::Var logits;                       // [R, output_size], row r of token out_rows[r]
  std::map<std::string, lite::Var> kept;  // [T, ...] by name
  std::vector<lite::Var> chosen;          // with given_routing: [T, K] of every layer with experts, in order
};

// The main model: token ids to logits. With mtp it also leaves every token's final hidden state in the last stream.
// keep_hidden: "hidden.0" .. "hidden.L", "final"; keep_routing: "router_ids.i", "router_weights.i", "router_logits.i".
Status build_main(const Model& model, const GraphOptions& options, const std::vector<lite::Stream>& streams,
                  StepGraph* out);

// The multi-token-prediction layer (arXiv:2412.19437, section 2.2) for position p: ids are the tokens at p + 1,
// positions and kv_rows those of p; logits predict the token at p + 2.
Status build_mtp(const Model& model, const GraphOptions& options, const std::vector<lite::Stream>& streams,
                 StepGraph* out);

// One per family of architectures, for build_main.
Status build_deepseek(const Model& model, const GraphOptions& options,
                      const std::vector<lite::Stream>& streams, StepGraph* out);
Status build_gqa(const Model& model, const GraphOptions& options, const std::vector<lite::Stream>& streams,
                 StepGraph* out);

}  // namespace dsv3
