// The CPU reference backend: scalar f32, obviously right, on any processor.
//
// A segment runs in one OpenMP region. Every thread walks all its nodes; an op splits its rows among the team and
// ends at a barrier. Which thread computes a row never changes the row.
#pragma once

#include <memory>

#include "ggml-lite/backend.h"
#include "ggml-lite/team.h"

namespace lite {

std::unique_ptr<Backend> make_ref_backend(int n_threads);

namespace ref {

// One thread's part in node `n` of bound graph `g`, and the scratch it takes.
void run_node(const Graph& g, const Node& n, const Team& team);
int64_t workspace_bytes(const Graph& g, const Node& n, int threads);

// Every op: node `n` of bound graph `g`. Contracts in ops.h. Scratch: see workspace_bytes in backend.cpp.
void embed(const Graph& g, const Node& n, const Team& team);
void rms_norm(const Graph& g, const Node& n, const Team& team);
void layer_norm(const Graph& g, const Node& n, const Team& team);
void linear(const Graph& g, const Node& n, const Team& team);
void linear_per_head(const Graph& g, const Node& n, const Team& team);
void rope(const Graph& g, const Node& n, const Team& team);
void stream_write(const Graph& g, const Node& n, const Team& team);
void stream_read(const Graph& g, const Node& n, const Team& team);
void attention_latent(const Graph& g, const Node& n, const Team& team);
void attention_expanded(const Graph& g, const Node& n, const Team& team);
void attention_grouped(const Graph& g, const Node& n, const Team& team);
void attention_masked(const Graph& g, const Node& n, const Team& team);
void route(const Graph& g, const Node& n, const Team& team);
void moe_ffn(const Graph& g, const Node& n, const Team& team);
void silu_mul(const Graph& g, const Node& n, const Team& team);
void add(const Graph& g, const Node& n, const Team& team);
void concat(const Graph& g, const Node& n, const Team& team);
void select_rows(const Graph& g, const Node& n, const Team& team);
void copy(const Graph& g, const Node& n, const Team& team);
void stage(const Graph& g, const Node& n, const Team& team);

int64_t linear_workspace(const Graph& g, const Node& n, int threads);
int64_t linear_per_head_workspace(const Graph& g, const Node& n, int threads);
int64_t attention_workspace(const Graph& g, const Node& n, int threads);
int64_t route_workspace(const Graph& g, const Node& n, int threads);
int64_t moe_workspace(const Graph& g, const Node& n, int threads);

// Sum of a[i] * b[i]: 16 partial sums, added in a fixed order, whatever the compiler makes of the loop.
float dot(const float* a, const float* b, int64_t n);
float silu(float x);  // x / (1 + exp(-x))
float gelu(float x);  // x / 2 (1 + erf(x / sqrt 2))
// Rounds one activation row as `rounding` says (graph.h); from and to may be the same.
void round_row(Rounding rounding, const float* from, float* to, int64_t n);

}  // namespace ref
}  // namespace lite
