// Running experts in decode steps.
#include "cuda/stages/experts.h"

namespace lite::cuda {

void decode_experts(const Step& step, const MoeLayer& l, const Added& added) {
  const int64_t groups = ceil_div(l.live.most, kTogether),
                pairs = l.pairs(std::min<int64_t>(kTogether, l.live.most));
  const bool rounds = l.rounding != Rounding::None;
  if (rounds) step.program->add(RoundInput{l}, {l.live.most, ceil_div(l.x.n, kStageWarps * kRoundGroup)});
  const Hidden hidden = {l};
  step.program->add(hidden, {ceil_div(l.width, hidden.rows_of_block()), pairs, groups},
                    hidden_shared_bytes(pairs));
  if (rounds)
    step.program->add(RoundHidden{l}, {l.pairs(l.live.most), ceil_div(l.width, kStageWarps * kRoundGroup)});
  step.program->add(Down{l, added}, {ceil_div(l.x.n, kWarpRows), groups}, down_shared_bytes(pairs));
}

}  // namespace lite::cuda
