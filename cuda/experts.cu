// Running experts in decode steps.
#include "cuda/stages/experts.h"

namespace lite::cuda {

Status check_decode_experts(int64_t experts_per_token) {
  const int64_t pairs = kTogether * (experts_per_token + 1);
  if (std::max(Hidden::shared_bytes(pairs), Down::shared_bytes(pairs)) <= kSharedBytes) return {};
  return unsupported("moe_ffn on a GPU: ", experts_per_token,
                     " experts of a token are more than a block has room for");
}

void decode_experts(const Step& step, const MoeLayer& l) {
  const int64_t groups = ceil_div(l.live.most, kTogether),
                pairs = l.pairs(std::min<int64_t>(kTogether, l.live.most));
  const bool rounds = l.rounding != Rounding::None;
  if (rounds) step.program->add(RoundInput{l}, {l.live.most, ceil_div(l.x.n, kStageWarps * kRoundGroup)});
  const Hidden hidden = {l};
  step.program->add(hidden, {ceil_div(l.width, hidden.rows_of_block()), pairs, groups},
                    Hidden::shared_bytes(l.pairs(kTogether)));
  if (rounds)
    step.program->add(RoundHidden{l}, {l.pairs(l.live.most), ceil_div(l.width, kStageWarps * kRoundGroup)});
  step.program->add(Down{l}, {ceil_div(l.x.n, kWarpRows), groups}, Down::shared_bytes(l.pairs(kTogether)));
}

}  // namespace lite::cuda
