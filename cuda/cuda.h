// The CUDA backend: every op of ggml-lite on an NVIDIA GPU.
#pragma once

#include <memory>

#include "ggml-lite/backend.h"

namespace lite {

// On GPU `device`, as the driver counts them. Device: there is none, or no driver, or it is too old; NotFound: no GPU of
// that number. Activations are f32 in every product.
Result<std::unique_ptr<Backend>> make_cuda_backend(int device);

}  // namespace lite
