// Programs of steps of up to 8 tokens.
#include "cuda/stages/run.h"

namespace lite::cuda {

template void launch_program<8>(const std::vector<int64_t>&, int64_t, Stream&, const Level*, const Entry*,
                                const std::byte*);

}  // namespace lite::cuda
