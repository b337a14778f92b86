// The CUDA backend: every op of ggml-lite on an NVIDIA GPU.
#pragma once

#include <memory>

#include "ggml-lite/backend.h"
#include "ggml-lite/meter.h"

namespace lite {

// How many GPUs the driver counts. Device: none, or no driver, or it is too old.
Result<int> count_cuda_gpus();

// On GPU `device`, as the driver counts them. Device: there is none, or no driver, or it is too old; NotFound: no GPU of
// that number. `exact`: activations are f32 in every product; else they are bf16 in those of prompts, where the matrix unit
// makes them (product.h).
Result<std::unique_ptr<Backend>> make_cuda_backend(int device, bool exact);

// What it would accept and take, on a machine without a GPU: only check() and workspace_bytes() do anything.
std::unique_ptr<Backend> make_cuda_planner(bool exact);

// Its ceilings. Takes 512 MiB of its memory and 64 MiB of the host's. Errors: those above, and OutOfMemory.
Result<std::unique_ptr<Meter>> make_cuda_meter(int device);

}  // namespace lite
