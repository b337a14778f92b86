// Experts whose weights a step brings to another device while it runs: how they lie in one run of bytes.
#pragma once

#include "ggml-lite/graph.h"
#include "ggml-lite/team.h"

namespace lite {

constexpr int64_t kStagedRow = 16 << 10;  // staged bytes are a value [rows, kStagedRow / 4] of I32

// Bytes of one tensor's elements, from the first to the end of the last, and of its grid of scales (0 without one).
int64_t data_bytes(const Tensor& t);
int64_t scale_bytes(const Tensor& t);

// Of all tensors of a set, each part at a multiple of 256.
int64_t staged_bytes(const ExpertSet& experts);
// Copies them to `to`, every thread its share.
void stage(const ExpertSet& experts, std::byte* to, const Team& team);
// Makes the tensors of a set with the same shapes views of such bytes at `at`.
void point_into(ExpertSet* experts, std::byte* at);

}  // namespace lite
