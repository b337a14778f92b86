// Stages, of which ops are made: a struct of arguments and run(), which does one block of a grid with kStageThreads threads.
// In a prompt every stage is a launch; in a decode step it is an entry of a Program.
#pragma once

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/program.h"

namespace lite::cuda {

// A block's place in its stage's grid.
struct Block {
  int x, y, z;
};
// In a kernel for at most so many tokens at once: the fewer, the fewer registers and instructions it takes.
template <int kTokens>
struct BlockOf : Block {};

enum class StageKind : int32_t {
  Embed,
  RmsNorm,
  LayerNorm,
  Rope,
  StreamWrite,
  StreamRead,
  SiluMul,
  Add,
  Concat,
  CopyRows,
  Round,
  Linear,
  Transposed,
  Route,
  Attention,
  Merge,
  RoundInput,
  Hidden,
  RoundHidden,
  Down,
};

template <class S>
__global__ void __launch_bounds__(kStageThreads, 2) one(S stage) {
  stage.run(BlockOf<8>{{block_x(), block_y(), block_z()}});
}

// Gives the step a stage with `grid` blocks of `shared` bytes each.
template <class S>
void give(const Step& step, const S& stage, Grid grid, int64_t shared = 0) {
  if (step.program)
    step.program->add(stage, grid, shared);
  else
    launch(one<S>, grid, kStageThreads, shared, step.stream, stage);
}

}  // namespace lite::cuda
