// The ceilings of the host's processors.
#pragma once

#include <memory>

#include "ggml-lite/backend.h"
#include "ggml-lite/cpu/isa.h"
#include "ggml-lite/meter.h"

namespace lite {

// With n_threads of a path; memory is read by each walking eight rows at once. Takes 512 MiB, more than any cache.
// OutOfMemory.
Result<std::unique_ptr<Meter>> make_cpu_meter(int n_threads, Isa isa);

}  // namespace lite
