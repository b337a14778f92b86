// The CPU reference backend: scalar f32, obviously right, on any processor.
//
// A segment runs in one OpenMP region. Every thread walks all its nodes; an op splits its rows among the team and
// ends at a barrier. Which thread computes a row never changes the row.
#pragma once

#include <memory>
#include <utility>

#include "ggml-lite/backend.h"

namespace lite {

std::unique_ptr<Backend> make_ref_backend(int n_threads);

namespace ref {

// One thread's place in the team that runs an op.
struct Team {
  int index, size;
  // The part [first, second) of n items that is this thread's.
  std::pair<int64_t, int64_t> share(int64_t n) const { return {n * index / size, n * (index + 1) / size}; }
  void barrier() const;  // all threads of the team must come here
};

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
