// The ops on a GPU. Each function gives a step the stages (stage.h) of one node of a bound graph; contracts are in ops.h.
//
// Nothing of a step is in a stage: its counts, positions and tables are read from the device's memory, so what is launched
// once can be recorded and replayed. A grid has room for as many rows as a recording is made for (Step); blocks
// without a live row return at once.
#pragma once

#include "cuda/runtime.h"
#include "ggml-lite/graph.h"

namespace lite::cuda {

struct MoeTable;
class Program;

// What launches are made for: steps of a phase with at most so many tokens, and at most so many outputs.
struct Step {
  Stream& stream;
  Phase phase;
  int64_t rows;
  bool exact;                     // f32 activations in every product
  const MoeTable* moe = nullptr;  // of a node that is moe_ffn, in the device's memory
  Program* program = nullptr;     // of a decode step: it takes the stages that a prompt launches
  const Node* sum = nullptr;  // what adds something to the node's result, if it is made with it (joins_next)
};

// Whether there is code for the GPU that was asked last (device_info).
bool has_kernels();

void embed(const Graph& g, const Node& n, const Step& step);
void rms_norm(const Graph& g, const Node& n, const Step& step);
void layer_norm(const Graph& g, const Node& n, const Step& step);
void linear(const Graph& g, const Node& n, const Step& step);
void linear_per_head(const Graph& g, const Node& n, const Step& step);
void rope(const Graph& g, const Node& n, const Step& step);
void stream_write(const Graph& g, const Node& n, const Step& step);
void stream_read(const Graph& g, const Node& n, const Step& step);
void attention_latent(const Graph& g, const Node& n, const Step& step);
void attention_expanded(const Graph& g, const Node& n, const Step& step);
void attention_grouped(const Graph& g, const Node& n, const Step& step);
void attention_masked(const Graph& g, const Node& n, const Step& step);
void route(const Graph& g, const Node& n, const Step& step);
void moe_ffn(const Graph& g, const Node& n, const Step& step);
void silu_mul(const Graph& g, const Node& n, const Step& step);
void add(const Graph& g, const Node& n, const Step& step);
void concat(const Graph& g, const Node& n, const Step& step);
void select_rows(const Graph& g, const Node& n, const Step& step);
void copy(const Graph& g, const Node& n, const Step& step);

// Waits until another device's segment has been done: `finished` is its word (Plan::finished). If it has been stopped, the
// device's `counts` (null: it has none) become those of a step without rows.
void await_segment(const int32_t* finished, int32_t* counts, Stream& stream);
// Says that all the stream did before is done, or stopped.
void tell_segment(int32_t* finished, const int32_t* counts, Stream& stream);

// The experts of a moe_ffn as its kernels read them, moe_table_bytes() of them, for an address in the device's memory.
void write_moe_table(const ExpertSet& experts, std::byte* to, const std::byte* device_address);

}  // namespace lite::cuda
