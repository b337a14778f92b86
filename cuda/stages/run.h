// The kernel that walks through levels of stages (program.h).
#pragma once

#include "cuda/levels.h"
#include "cuda/stages/attention.h"
#include "cuda/stages/experts.h"
#include "cuda/stages/linear.h"
#include "cuda/stages/route.h"
#include "cuda/stages/rows.h"

namespace lite::cuda {

static_assert(sizeof(Level) <= 16 && sizeof(Level) + sizeof(Entry) + kArgumentBytes <= kStageBytes);

template <class S, int kTokens>
__device__ void run_stage(const std::byte* arguments, BlockOf<kTokens> at) {
  reinterpret_cast<const S*>(arguments)->run(at);
}

template <int kTokens>
__device__ void run_stage(StageKind kind, const std::byte* arguments, BlockOf<kTokens> at) {
  switch (kind) {
    case StageKind::Embed: return run_stage<Embed>(arguments, at);
    case StageKind::RmsNorm: return run_stage<RmsNorm>(arguments, at);
    case StageKind::LayerNorm: return run_stage<LayerNorm>(arguments, at);
    case StageKind::Rope: return run_stage<Rope>(arguments, at);
    case StageKind::StreamWrite: return run_stage<StreamWrite>(arguments, at);
    case StageKind::StreamRead: return run_stage<StreamRead>(arguments, at);
    case StageKind::SiluMul: return run_stage<SiluMul>(arguments, at);
    case StageKind::Add: return run_stage<Add>(arguments, at);
    case StageKind::Concat: return run_stage<Concat>(arguments, at);
    case StageKind::CopyRows: return run_stage<CopyRows>(arguments, at);
    case StageKind::Round: return run_stage<Round>(arguments, at);
    case StageKind::Linear: return run_stage<Linear>(arguments, at);
    case StageKind::Transposed: return run_stage<Transposed>(arguments, at);
    case StageKind::Route: return run_stage<Route>(arguments, at);
    case StageKind::Attention: return run_stage<Attention>(arguments, at);
    case StageKind::Merge: return run_stage<Merge>(arguments, at);
    case StageKind::RoundInput: return run_stage<RoundInput>(arguments, at);
    case StageKind::Hidden: return run_stage<Hidden>(arguments, at);
    case StageKind::RoundHidden: return run_stage<RoundHidden>(arguments, at);
    case StageKind::Down: return run_stage<Down>(arguments, at);
  }
}

// Levels [first, end): the blocks of a level's stages, one stage after the other, are dealt out to the grid's blocks.
template <int kTokens>
__global__ void __launch_bounds__(kStageThreads, 2)
    run_levels(int first, int end, const Level* __restrict__ levels, const Entry* __restrict__ entries,
               const std::byte* __restrict__ arguments) {
  for (int l = first; l < end; ++l) {
    const Level level = levels[l];
    for (int b = block_x(); b < level.blocks; b += blocks()) {
      int i = level.first, within = b;
      for (; within >= entries[i].blocks; ++i) within -= entries[i].blocks;
      const Entry& e = entries[i];
      const BlockOf<kTokens> at = {{within % e.x, within / e.x % e.y, within / e.x / e.y}};
      run_stage(e.kind, arguments + e.arguments, at);
      if (b + blocks() < level.blocks) sync_block();  // the next one has the same shared memory
    }
    if (l + 1 < end) sync_grid();
  }
}

template <int kTokens>
void launch_program(const std::vector<int64_t>& blocks, int64_t shared, Stream& stream, const Level* levels,
                    const Entry* entries, const std::byte* arguments) {
  launch_levels(run_levels<kTokens>, blocks, kStageThreads, shared, stream, levels, entries, arguments);
}

}  // namespace lite::cuda
