// The fast CPU backend: the ops of ggml-lite/ops.h at the speed of memory (decode) and of the matrix units (prompts).
//
// What takes the time is here: products, experts, attention; what does not is the reference's. The phase of a step
// (StepInputs) picks the kernels, never the number of rows, so a row's bits depend on its phase and the
// instruction-set path only. Threads but the caller's are pinned, one to a core.
#pragma once

#include <memory>

#include "ggml-lite/backend.h"
#include "ggml-lite/carver.h"
#include "ggml-lite/cpu/isa.h"
#include "ggml-lite/cpu/product.h"
#include "ggml-lite/team.h"

namespace lite {

struct CpuOptions {
  int n_threads = 1;
  Isa isa = Isa::Portable;  // isa_usable()
  bool exact = false;       // f32 activations into every product, an f32 softmax and f32 values
};
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

namespace cpu {

// The ops that are not the reference's, and the scratch they take.
void linear(const Graph& g, const Node& n, const Team& team, const Arithmetic& a);
void linear_per_head(const Graph& g, const Node& n, const Team& team, const Arithmetic& a);
void attention_latent(const Graph& g, const Node& n, const Team& team, const Arithmetic& a);
void attention_expanded(const Graph& g, const Node& n, const Team& team, const Arithmetic& a);
void attention_grouped(const Graph& g, const Node& n, const Team& team, const Arithmetic& a);
void moe_ffn(const Graph& g, const Node& n, const Team& team, const Arithmetic& a);
void silu_mul(const Graph& g, const Node& n, const Team& team, const Arithmetic& a);

int64_t linear_workspace(const Graph& g, const Node& n, int threads, const Arithmetic& a);
int64_t linear_per_head_workspace(const Graph& g, const Node& n, int threads, const Arithmetic& a);
int64_t attention_workspace(const Graph& g, const Node& n, int threads, const Arithmetic& a);
int64_t moe_workspace(const Graph& g, const Node& n, int threads, const Arithmetic& a);

bool is_prompt(const Graph& g, const Node& n);

}  // namespace cpu
}  // namespace lite
