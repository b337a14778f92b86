// The CUDA backend: every op of ggml-lite on an NVIDIA GPU.
#pragma once

#include <memory>

#include "ggml-lite/backend.h"

namespace lite {

// On GPU `device`, as the driver counts them. Device: there is none, or no driver, or it is too old; NotFound: no GPU of
// that number. With `exact` activations are f32 in every product; without, prompts may be computed by the matrix unit in bf16.
Result<std::unique_ptr<Backend>> make_cuda_backend(int device, bool exact);

// What it would accept and take, on a machine without a GPU: only check() and workspace_bytes() do anything.
std::unique_ptr<Backend> make_cuda_planner();

}  // namespace lite
