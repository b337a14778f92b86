// Where a checkpoint lies: in a folder of its own, or in the local cache of the Hugging Face hub, whose layout is
// models--ORG--NAME/{refs,snapshots,blobs}.
#pragma once

#include <string>

#include "ggml-lite/status.h"

namespace dsv3 {

// The folder that holds config.json, from: such a folder; a "models--ORG--NAME" folder of the cache, whose
// refs/main is taken; or "ORG/NAME[@REVISION]", looked up in the folder `hub_cache` (empty: there is none). A
// folder of that name goes before the cache.
lite::Result<std::string> find_checkpoint(const std::string& source, const std::string& hub_cache);

}  // namespace dsv3
