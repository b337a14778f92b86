// text/generation_config: generation_config.json. What it takes can be sampled with.
#include "text/generation_config.h"

#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto config = dsv3::read_generation_config(fuzz::text_of(data, size));
  fuzz::check(config.status());
  if (!config.ok()) return 0;
  for (const int32_t id : config->end_ids) fuzz::require(id >= 0, "an end token is a token id");
  const float logits[] = {1, -2, 0.5f, 1, 3};
  dsv3::SampleScratch scratch;
  const auto id = dsv3::sample(logits, 5, config->sampling, 1, 7, &scratch);
  fuzz::require(id.ok() && *id >= 0 && *id < 5, "a token is drawn");
  return 0;
}
