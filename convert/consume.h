// --consume: a shard of the checkpoint is deleted once everything in it is durable in the packed file. Until the
// conversion is complete its header stays, as NAME.safetensors.consumed: with it an interrupted conversion goes on.
#pragma once

#include <string>
#include <vector>

#include "convert/convert.h"
#include "convert/plan.h"

namespace dsv3 {

class Consumer {
 public:
  // Decides which shards may go. A shard with a tensor that is not converted stays, and so does one that is a link
  // into a cache where another snapshot uses it; a link to anywhere else is refused. All of this is said in notes.
  static Result<Consumer> make(Plan* plan, const std::string& out, const ConvertCallbacks& callbacks);

  // By extent: bytes that will be freed on the disk of `out` once it is durable.
  const std::vector<int64_t>& frees() const { return frees_; }
  // These have become durable: deletes what is not needed any more, once the writer's journal says that it may be
  // gone.
  Status durable(const std::vector<size_t>& extents, lite::PackWriter* writer);
  bool has_consumed() const { return consumed_; }

 private:
  struct Shard {
    std::string path, blob;  // blob: where a link leads, else empty
    SafetensorsFile* file;
    size_t waiting = 0;  // extents
  };
  Status remove(const Shard& shard) const;

  std::vector<Shard> shards_;
  std::vector<std::vector<size_t>> shards_of_;  // of each extent
  std::vector<int64_t> frees_;
  bool consumed_ = false;  // a shard is gone
};

// Removes what these shards have left in a folder where they were consumed, when the packed file is complete.
void remove_consumed_headers(const std::string& folder, const std::vector<std::string>& shards);

}  // namespace dsv3
