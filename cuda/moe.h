// The experts of a layer as kernels see them: their weights, and the (token, k) pairs of a step sorted by expert.
#pragma once

#include "cuda/matrix.h"

namespace lite::cuda {

// One network as kernels read it (FfnWeights).
struct Network {
  Matrix gate, up, down;
  Vector up_bias, down_bias;
};
static_assert(sizeof(Network) == kNetworkBytes);

// Networks of the slots, then of the shared expert if there is one; and the slot of every expert, or -1.
struct MoeTable {
  const Network* networks;
  const int32_t* slot_of_expert;
};

// The sizes of a node, and where its step is.
struct MoeLayer {
  const MoeTable* table;
  MoeWorkspace w;
  Values<float> x, weights, y;
  Values<int32_t> ids;
  Live live;
  int64_t k, slots, width;  // slots: of routed experts held here; width: of the widest hidden row
  bool shared, gated;
  Rounding rounding;

  __host__ __device__ int64_t networks() const { return slots + (shared ? 1 : 0); }
  __host__ __device__ int64_t pairs(int64_t tokens) const { return tokens * (k + 1); }
  __device__ int64_t token_of(int64_t pair) const { return pair / (k + 1); }
  // The network of a pair, or -1: not held here.
  __device__ int32_t network_of(int64_t pair) const {
    const int64_t t = token_of(pair), j = pair % (k + 1);
    if (j == k) return shared ? int32_t(slots) : -1;
    return table->slot_of_expert[ids.row(t)[j]];
  }
  __device__ const float* input(const Matrix& m, int64_t t) const {
    return rounds(m) ? w.rounded + t * x.n : x.row(t);
  }
  __device__ bool rounds(const Matrix& m) const {
    return rounding != Rounding::None && m.dtype == DType::F8_E4M3;
  }
};

// Of decode steps: experts.cu.
void decode_experts(const Step& step, const MoeLayer& layer, const Added& added);

}  // namespace lite::cuda
