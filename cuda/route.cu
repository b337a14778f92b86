// Choosing experts.
#include "cuda/stages/route.h"

namespace lite::cuda {
namespace {

Route stage_of(const Graph& g, const Node& n, const Live& live) {
  Route stage = {};
  stage.logits = values_of<float>(g.tensor(n.in[0]));
  if (n.in[1]) stage.bias = vector_of(g.tensor(n.in[1]));
  if (n.in[2]) stage.chosen = values_of<int32_t>(g.tensor(n.in[2]));
  stage.p = std::get<RouteParams>(n.params);
  stage.ids = values_of<int32_t>(g.tensor(n.out[0]));
  stage.weights = values_of<float>(g.tensor(n.out[1]));
  stage.live = live;
  stage.token_bytes = int(route_bytes(stage.logits.n, stage.p));
  stage.tokens_of_block = int(std::min<int64_t>(kStageWarps, kSharedBytes / stage.token_bytes));
  return stage;
}

}  // namespace

void route(const Graph& g, const Node& n, const Step& step) {
  const Route stage = stage_of(g, n, live_rows(g, n, n.in[0], step));
  const int64_t tokens = std::min<int64_t>(stage.tokens_of_block, stage.live.most);
  give(step, stage, {ceil_div(stage.live.most, stage.tokens_of_block)}, tokens * stage.token_bytes);
}

}  // namespace lite::cuda
