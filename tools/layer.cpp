// dsv3 layer: runs a single-layer model (moe_transformer) on a tensor file.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include <CLI/CLI.hpp>

#include "tools/common.h"
#include "tools/tensor_file.h"

namespace tools {
namespace {

struct LayerOptions {
  std::string model, in, out, mask = "none";
  ComputeOptions compute;
};

void run_layer(const LayerOptions& o) {
  const Model model = open_model(o.model, o.compute);
  const dsv3_model_info info = get_info(model);
  if (info.task != DSV3_TASK_LAYER)
    fail("layer: ", o.model, " is a ", info.model_type, " model, expected a single layer");
  std::error_code error;  // of a file that is not there yet
  if (std::filesystem::equivalent(o.in, o.out, error))
    fail("layer: --out is the file of --in, ", o.in, "; try another name");
  TensorFile::check(o.out);
  const TensorValues x = read_tensor(o.in, "input");
  if (x.type != "F32") fail("layer: ", o.in, ": tensor \"input\": got type ", x.type, ", expected F32");
  if (x.shape.size() != 3 || x.shape[2] != info.hidden_size)
    fail("layer: ", o.in, ": tensor \"input\": got shape ", shape_text(x.shape),
         ", expected [batch, length, ", info.hidden_size, "]");
  const int64_t batch = x.shape[0], length = x.shape[1], tokens = batch * length;
  constexpr int64_t kLongest = 1 << 15;  // of dsv3_layer_eval
  if (length > kLongest || tokens > INT32_MAX)
    fail("layer: ", o.in, ": tensor \"input\": got shape ", shape_text(x.shape),
         ", expected a length of at most ", kLongest, " and at most 2^31-1 tokens");
  TensorValues float_mask;
  std::vector<uint8_t> bool_mask;
  if (o.mask == "causal") {
    for (int64_t i = 0; i < length; ++i)
      for (int64_t j = 0; j < length; ++j) bool_mask.push_back(j > i);
  } else if (o.mask != "none") {
    float_mask = read_tensor(o.in, o.mask);
    if (float_mask.type == "I64")
      fail("layer: ", o.in, ": tensor \"", o.mask, "\": got type I64, expected F32, BOOL or U8");
    if (float_mask.shape != std::vector<int64_t>{length, length})
      fail("layer: ", o.in, ": tensor \"", o.mask, "\": got shape ", shape_text(float_mask.shape),
           ", expected [", length, ", ", length, "]");
    for (size_t i = 0; i < float_mask.values.size(); ++i)
      if (const float v = float_mask.values[i]; !(v < INFINITY))
        fail("layer: ", o.in, ": tensor \"", o.mask, "\": element ", i, ": got ", v,
             ", expected a number or -infinity, which hides");
    if (float_mask.type != "F32")
      for (const float v : float_mask.values) bool_mask.push_back(v != 0);
  }

  std::vector<float> y(x.values.size()), weights(size_t(tokens * info.n_experts_per_token));
  std::vector<int32_t> ids(weights.size());
  dsv3_layer_batch b = {};
  b.struct_size = sizeof b;
  b.n_threads = o.compute.n_threads;
  b.exact = o.compute.exact;
  b.batch = int32_t(batch);
  b.length = int32_t(length);
  b.x = x.values.data();
  b.bool_mask = bool_mask.empty() ? nullptr : bool_mask.data();
  b.float_mask = !bool_mask.empty() || float_mask.values.empty() ? nullptr : float_mask.values.data();
  b.router_ids = ids.data();
  b.router_weights = weights.data();
  check(dsv3_layer_eval(model.get(), &b, y.data()));
  // A token that sees nothing has no output: its softmax is undefined.
  const auto sees_nothing = [&](int64_t i) {
    const auto hidden = [&](int64_t j) {
      const size_t at = size_t(i * length + j);
      return b.bool_mask ? b.bool_mask[at] != 0 : b.float_mask && b.float_mask[at] == -INFINITY;
    };
    for (int64_t j = 0; j < length; ++j)
      if (!hidden(j)) return false;
    return true;
  };
  const int64_t d = info.hidden_size, k = info.n_experts_per_token;
  for (int64_t t = 0; t < tokens; ++t)
    if (!std::all_of(&y[size_t(t * d)], &y[size_t(t * d)] + d, [](float v) { return std::isfinite(v); }) &&
        !sees_nothing(t % length))
      fail("layer: row ", t / length, ": token ", t % length, ": the output is not finite");

  using Type = TensorFile::Type;
  TensorFile file(o.out);
  file.add("output", Type::F32, x.shape);
  file.add("router_ids", Type::I64, {tokens, k});
  file.add("router_weights", Type::F32, {tokens, k});
  file.create();
  const std::vector<int64_t> wide(ids.begin(), ids.end());
  for (int64_t t = 0; t < tokens; ++t) {
    file.write_row("output", t, &y[size_t(t * d)], d);
    file.write_row("router_ids", t, &wide[size_t(t * k)], k);
    file.write_row("router_weights", t, &weights[size_t(t * k)], k);
  }
  file.finish();
}

}  // namespace

void add_layer(CLI::App* program) {
  const auto o = std::make_shared<LayerOptions>();
  CLI::App* command =
      program->add_subcommand("layer", "Run a single-layer model (moe_transformer) on a tensor file");
  command->add_option("MODEL", o->model, "packed file")->required();
  command->add_option("--in", o->in, "safetensors file with \"input\" [batch, length, hidden_size], F32")
      ->required();
  command
      ->add_option("--out", o->out,
                   "safetensors file to write: \"output\", \"router_ids\", \"router_weights\"")
      ->required();
  command
      ->add_option("--mask", o->mask,
                   "none (every token sees every token of its sequence), causal, or the name of a tensor "
                   "[length, length] in "
                   "--in: F32 is added to the scores, BOOL or U8 not 0 hides")
      ->capture_default_str();
  o->compute.add_device_to(command);
  command->callback([o] { run_layer(*o); });
}

}  // namespace tools
