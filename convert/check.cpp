// A packed file against the checkpoint it was made of: the conversion is done again, and compared instead of
// written.
#include <atomic>
#include <cstring>
#include <new>

#include "convert/convert.h"
#include "convert/plan.h"
#include "convert/provenance.h"
#include "convert/reader.h"
#include "convert/workers.h"

namespace dsv3 {
namespace {

using lite::corrupt;
using lite::PackFile;

// Everything but the bytes of the tensors.
Status compare_index(const Plan& plan, const PackFile& file) {
  const Json* config = file.json().find("config");
  if (!config || config->dump() != plan.match().config.effective.dump())
    return corrupt("the configurations differ");
  for (const lite::PackSection& s : plan.sections()) {
    const std::string_view* text = file.section(s.name);
    if (!text) return corrupt(s.name, " is missing in the packed file");
    if (s.name != kProvenance && *text != s.bytes) return corrupt(s.name, " differs");
  }
  if (file.section_names().size() != plan.sections().size())
    return corrupt("the packed file has ", file.section_names().size(), " text files, the checkpoint ",
                   plan.sections().size());
  for (const Planned& t : plan.match().tensors) {
    const PackFile::Item* item = file.find(t.entry.name);
    if (!item) return corrupt("tensor \"", t.entry.name, "\" is missing in the packed file");
    const lite::PackEntry &a = item->entry, &b = t.entry;
    if (a.dtype != b.dtype || a.shape != b.shape || a.scaled != b.scaled ||
        (a.scaled &&
         (a.scale_dtype != b.scale_dtype || a.block_rows != b.block_rows || a.block_cols != b.block_cols)))
      return corrupt("tensor \"", t.entry.name, "\" has another type, shape or scales");
  }
  if (file.items().size() != plan.match().tensors.size())
    return corrupt("the packed file has ", file.items().size(), " tensors, the checkpoint ",
                   plan.match().tensors.size());
  return {};
}

// Bytes that should be those of a tensor, as they come: elements, then scales.
class Comparison {
 public:
  explicit Comparison(const PackFile::Item& item) : item_(item) {}

  Status compare(std::span<const std::byte> bytes) {
    const lite::PackEntry& e = item_.entry;
    while (!bytes.empty()) {
      const bool scales = at_ >= e.data_bytes();
      const int64_t from = scales ? at_ - e.data_bytes() : at_,
                    end = scales ? e.scale_bytes() : e.data_bytes();
      const std::byte* stored = (scales ? item_.tensor.scale.data : item_.tensor.data) + from;
      const size_t n = std::min(bytes.size(), size_t(end - from));
      if (n == 0) return lite::internal_error("tensor \"", e.name, "\" is longer than it should be");
      if (std::memcmp(stored, bytes.data(), n) != 0) {
        const size_t i =
            size_t(std::mismatch(bytes.begin(), bytes.begin() + ptrdiff_t(n), stored).first - bytes.begin());
        const int64_t size = lite::size_of(scales ? e.scale_dtype : e.dtype);
        return corrupt("tensor \"", e.name, "\": ", scales ? "scale " : "element ",
                       (from + int64_t(i)) / size, " differs (byte ", from + int64_t(i), ": got ",
                       int(stored[i]), ", the checkpoint has ", int(bytes[i]), ")");
      }
      at_ += int64_t(n);
      bytes = bytes.subspan(n);
    }
    return {};
  }

 private:
  const PackFile::Item& item_;
  int64_t at_ = 0;
};

Status run(const std::string& source, const std::string& hub_cache, const std::string& model, int threads,
           const ConvertCallbacks& callbacks) {
  const std::string what = "check " + model + " against " + source;
  LITE_ASSIGN(const PackFile file, PackFile::open(model));
  LITE_ASSIGN(const Provenance provenance, read_provenance(file));
  ConvertOptions options;
  options.source = source;
  options.hub_cache = hub_cache;
  options.dtype = provenance.dtype;
  options.f8_head = provenance.f8_head;
  const ConvertCallbacks quiet = {{}, callbacks.progress};  // the notes came with the conversion
  LITE_ASSIGN(const Plan plan, Plan::make(options, quiet));
  for (const Checkpoint::Shard& shard : plan.checkpoint().shards())
    if (shard.consumed)
      return lite::invalid_argument(
          what, ": ", shard.name,
          " was consumed by a conversion that did not end, so there is nothing to compare "
          "with; let that conversion end, or get the checkpoint again");
  const auto differs = [&](const Status& how) {
    return how.code() != lite::Code::Corrupt
               ? how
               : corrupt(what, ": ", how.message(), "; try dsv3 verify, and convert the checkpoint again");
  };
  if (const Status same = compare_index(plan, file); !same.ok()) return differs(same);
  const std::vector<Planned>& tensors = plan.match().tensors;
  int64_t total = 0;
  for (const Planned& t : tensors) total += t.data.bytes + (t.scale ? t.scale->bytes : 0);
  Progress progress(callbacks, what, 0, total);
  const auto make = [&]() -> std::function<Status(size_t)> {
    auto reader = std::make_shared<TensorReader>([&](int64_t bytes) { return progress.add(bytes); });
    return [&tensors, &file, reader](size_t i) {
      Comparison comparison(*file.find(tensors[i].entry.name));
      return reader->read(tensors[i],
                          [&](std::span<const std::byte> bytes) { return comparison.compare(bytes); });
    };
  };
  return differs(run_jobs(tensors.size(), threads, make));
}

}  // namespace

Status check(const std::string& source, const std::string& hub_cache, const std::string& model, int threads,
             const ConvertCallbacks& callbacks) {
  try {
    return run(source, hub_cache, model, threads, callbacks);
  } catch (const std::bad_alloc&) {
    return lite::out_of_memory("check ", model, ": the machine has no memory left; try fewer threads");
  }
}

}  // namespace dsv3
