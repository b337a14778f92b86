// Conversion in three steps: match the checkpoint with the table of what the model needs (nothing is written
// until everything is known to fit), fix the file's layout, stream the tensors on all cores.
#include "convert/convert.h"

#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <new>
#include <unordered_map>

#include "convert/consume.h"
#include "convert/hub_cache.h"
#include "convert/layout.h"
#include "convert/plan.h"
#include "convert/reader.h"
#include "convert/workers.h"
#include "ggml-lite/json.h"
#include "model/sections.h"
#include "version.h"

namespace dsv3 {
namespace {

namespace fs = std::filesystem;
using lite::Code;

std::string dtype_text(const ConvertOptions& options) {
  return lite::str(options.dtype ? lite::info(*options.dtype).name : "keep",
                   options.f8_head ? ", F8_E4M3 head" : "");
}

std::string full_path(const std::string& folder) {
  std::error_code error;
  const fs::path path = fs::canonical(folder, error);
  return error ? folder : path.string();
}

// What a shard is known by.
Json identity(const Checkpoint::Shard& shard, int64_t changed_ns) {
  return Json::Array{shard.file.bytes(), changed_ns};
}

// What ties the journal of an unfinished conversion to its checkpoint and options. The aliases are in it because
// finding them takes data that --consume may have deleted since.
Json resume_key(const ConvertOptions& options, const Plan& plan) {
  Json::Object shards;
  for (const Checkpoint::Shard& s : plan.checkpoint().shards())
    shards.emplace_back(s.name, identity(s, s.file.changed_ns()));
  Json key{Json::Object()};
  key.set("converter", DSV3_VERSION_TEXT);
  key.set("folder", full_path(plan.folder()));
  key.set("dtype", dtype_text(options));
  key.set("split_bytes", options.split_bytes);
  key.set("shards", std::move(shards));
  return key;
}

// "14 bytes of 2026-01-31 12:00:00.123456789 UTC"
std::string identity_text(const Json& identity) {
  const Json::Array* pair = identity.array();
  if (!pair || pair->size() != 2 || !(*pair)[0].integer() || !(*pair)[1].integer()) return identity.dump();
  const int64_t ns = *(*pair)[1].integer(), second = 1'000'000'000;
  const std::time_t seconds = std::time_t(ns / second);
  std::tm utc = {};
  char date[32] = "", fraction[16];
  if (::gmtime_r(&seconds, &utc)) std::strftime(date, sizeof date, "%F %T", &utc);
  std::snprintf(fraction, sizeof fraction, ".%09d", int(ns % second));
  return lite::str(*(*pair)[0].integer(), " bytes of ", date, fraction, " UTC");
}

// The first shard that is not what it was: which, what is found, and what was there.
std::string shard_difference(const Json& old, const Json& key) {
  const Json *before = old.find("shards"), *now = key.find("shards");
  if (!before || !before->object() || !now) return "its journal is damaged";
  const Json::Object &a = *before->object(), &b = *now->object();
  const std::string changed = "the checkpoint has changed since: ";
  for (size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    if (i >= a.size() || i >= b.size() || a[i].first != b[i].first)
      return lite::str(changed, "got shard ", i < b.size() ? b[i].first : "none", ", expected ",
                       i < a.size() ? a[i].first : "none");
    if (a[i].second.dump() != b[i].second.dump())
      return lite::str(changed, b[i].first, ": got ", identity_text(b[i].second), ", expected ",
                       identity_text(a[i].second));
  }
  return "";
}

// Why an unfinished conversion cannot be taken up; empty when it can. `old` has aliases, `key` does not yet.
std::string difference(const Json& old, const Json& key) {
  const auto differs = [&](const char* member) {
    const Json *a = old.find(member), *b = key.find(member);
    return !a || !b || a->dump() != b->dump();
  };
  if (std::string shards = shard_difference(old, key); !shards.empty()) return shards;
  if (differs("dtype") || differs("split_bytes")) return "it had other options";
  return differs("converter") ? "it was made by another version" : "";
}

// Of a conversion that consumes: a shard that was consumed and got again is what its journal knows. All that the shard
// holds is in the packed file, so nothing is read of the new one. One that has not changed was about to be deleted when the
// conversion was interrupted: it is there as any other, and goes when it is consumed.
void recognise_consumed(const Json& old, Checkpoint* checkpoint) {
  const Json* shards = old.find("shards");
  if (!shards || !shards->object()) return;
  std::unordered_map<std::string_view, const Json*> known;
  for (const auto& [name, was] : *shards->object()) known.emplace(name, &was);
  for (Checkpoint::Shard& shard : checkpoint->shards()) {
    const auto was = known.find(shard.name);
    if (!shard.consumed_ns || was == known.end() || shard.file.changed_ns() == *shard.consumed_ns ||
        was->second->dump() != identity(shard, *shard.consumed_ns).dump())
      continue;
    shard.file.set_changed_ns(*shard.consumed_ns);
    shard.consumed = true;
  }
}

std::optional<std::vector<lite::PackAlias>> aliases_of(const Json& key) {
  const Json* list = key.find("aliases");
  if (!list || !list->array()) return {};
  std::vector<lite::PackAlias> aliases;
  for (const Json& pair : *list->array()) {
    const auto* names = pair.array();
    if (!names || names->size() != 2 || !(*names)[0].string() || !(*names)[1].string()) return {};
    aliases.push_back({*(*names)[0].string(), *(*names)[1].string()});
  }
  return aliases;
}

// What the shards of that key have left, where they were consumed.
void remove_headers(const Json& key) {
  const Json *folder = key.find("folder"), *shards = key.find("shards");
  if (!folder || !folder->string() || !shards || !shards->object()) return;
  std::vector<std::string> names;
  for (const auto& [name, bytes_and_time] : *shards->object()) names.push_back(name);
  remove_consumed_headers(*folder->string(), names);
}

class Conversion {
 public:
  Conversion(const ConvertOptions& options, const ConvertCallbacks& callbacks, Plan plan)
      : options_(options), callbacks_(callbacks), plan_(std::move(plan)) {}

  Result<ConvertSummary> run();

 private:
  Status take_up();
  Status check_sources(const lite::PackWriter& writer) const;
  Status stream(lite::PackWriter* writer, Consumer* consumer) const;
  Status end_early(Status failure, lite::PackWriter* writer, const Consumer* consumer) const;
  ConvertSummary summary(const lite::PackWriter& writer) const;
  void note(const std::string& text) const {
    if (callbacks_.note) callbacks_.note(text);
  }

  const ConvertOptions& options_;
  const ConvertCallbacks& callbacks_;
  Plan plan_;
  Json key_;
  bool consumed_before_ = false;  // shards are gone: there is no beginning anew
};

Result<ConvertSummary> Conversion::run() {
  LITE_TRY(take_up());
  std::optional<Consumer> consumer;
  if (options_.consume) {
    LITE_ASSIGN(consumer, Consumer::make(&plan_, options_.out, callbacks_));
  }
  lite::PackOptions how;
  how.split_bytes = options_.split_bytes;
  how.resume_key = key_.dump();
  how.only_resume = consumed_before_;
  if (consumer) how.frees = consumer->frees();
  LITE_ASSIGN(lite::PackWriter writer,
              lite::PackWriter::plan(options_.out, plan_.json(), plan_.sections(), plan_.extents(),
                                     plan_.aliases(), std::move(how)));
  LITE_TRY(check_split(writer.parts(), options_.split_bytes));
  for (const lite::PackPart& part : writer.parts()) LITE_TRY(check_destination(part.path, options_.force));
  if (options_.dry_run) return summary(writer);
  LITE_TRY(writer.start());
  LITE_TRY(check_sources(writer));
  if (const int64_t bytes = writer.durable_bytes(); bytes > 0)
    note(lite::str("going on with an unfinished conversion: ", bytes, " of ", writer.file_bytes(),
                   " bytes are written"));
  Status done = stream(&writer, consumer ? &*consumer : nullptr);
  if (done.ok())
    done = writer.finish([&] {
      if (consumer || consumed_before_) remove_headers(resume_key(options_, plan_));
    });
  if (!done.ok()) return end_early(std::move(done), &writer, consumer ? &*consumer : nullptr);
  if (options_.force) remove_replaced(options_.out, writer.parts().size(), callbacks_.note);
  return summary(writer);
}

// Looks for an unfinished conversion to the same place, and lays out the file.
Status Conversion::take_up() {
  const std::optional<std::string> text = lite::unfinished_key(options_.out);
  auto old = text ? Json::parse(*text, "journal") : Result<Json>(lite::not_found("none"));
  const Status sole = lite::check_no_only_copy(options_.out);
  if (old.ok() && !sole.ok()) recognise_consumed(*old, &plan_.checkpoint());
  key_ = resume_key(options_, plan_);
  std::vector<std::string> gone, got_again;
  for (const Checkpoint::Shard& s : plan_.checkpoint().shards())
    if (s.consumed) (s.consumed_ns ? got_again : gone).push_back(s.name);
  consumed_before_ = !gone.empty() || !got_again.empty();
  std::optional<std::vector<lite::PackAlias>> known;
  std::string why = old.ok() ? difference(*old, key_) : "its journal is gone";
  if (why.empty()) {
    known = aliases_of(*old);
    if (!known) why = "its journal is damaged";
  }
  if (!gone.empty() && !known)
    return lite::invalid_argument("convert ", plan_.folder(), ": ", list_names(gone),
                                  ": consumed by a conversion that did not end, and which cannot go on in ",
                                  options_.out, ": ", why,
                                  "; give that conversion's OUT and options, or get these files again");
  if (text && !known) LITE_TRY(sole.in(lite::str("convert ", plan_.folder(), ": ", why)));
  if (!got_again.empty())
    note("got again after they were consumed, and not needed: " + list_names(got_again));
  if (text && !known) note("an unfinished conversion to " + options_.out + " is started over: " + why);
  // A folder may be elsewhere by now and its shards still the same.
  if (known && old->find("folder")) key_.set("folder", *old->find("folder"));
  LITE_TRY(plan_.lay_out(known ? &*known : nullptr));
  Json::Array pairs;
  for (const lite::PackAlias& a : plan_.aliases()) pairs.push_back(Json::Array{a.name, a.target});
  key_.set("aliases", std::move(pairs));
  return {};
}

// A shard that is gone is needed no more, unless another conversion consumed it.
Status Conversion::check_sources(const lite::PackWriter& writer) const {
  if (!consumed_before_) return {};
  for (size_t i = 0; i < plan_.extents().size(); ++i)
    for (const size_t t : plan_.tensors_of()[i]) {
      const Planned& tensor = plan_.match().tensors[t];
      for (const Slice* slice : {&tensor.data, tensor.scale ? &*tensor.scale : nullptr})
        if (slice && slice->tensor.shard->consumed && !writer.finished(i))
          return lite::invalid_argument(
              "convert ", plan_.folder(), ": ", slice->tensor.shard->name,
              ": consumed by another conversion, but \"", tensor.entry.name, "\" is not in ", options_.out,
              " yet; end that conversion with its own command, or get the file again");
    }
  return {};
}

// Workers take extents in order, read and re-encode them and write them where they belong; this thread makes
// durable what is written, again and again, and deletes what is consumed.
Status Conversion::stream(lite::PackWriter* writer, Consumer* consumer) const {
  std::vector<size_t> before, to_do;
  int64_t done = 0, total = 0;
  for (size_t i = 0; i < plan_.extents().size(); ++i) {
    const int64_t bytes = plan_.source_bytes(i);
    total += bytes;
    if (writer->finished(i)) done += bytes;
    (writer->finished(i) ? before : to_do).push_back(i);
  }
  if (consumer) LITE_TRY(consumer->durable(before, writer));
  Progress progress(callbacks_, "convert " + options_.source, done, total);
  const auto make = [&]() -> std::function<Status(size_t)> {
    auto reader = std::make_shared<TensorReader>([&](int64_t bytes) { return progress.add(bytes); });
    return [this, reader, writer, &to_do](size_t job) -> Status {
      const size_t i = to_do[job];
      lite::PackWriter::Extent extent = writer->begin(i);
      for (const size_t t : plan_.tensors_of()[i])
        LITE_TRY(reader->read(plan_.match().tensors[t],
                              [&](std::span<const std::byte> bytes) { return extent.write(bytes); }));
      return {};
    };
  };
  const auto make_durable = [&]() -> Status {
    LITE_ASSIGN(const std::vector<size_t> extents, writer->sync());
    return consumer ? consumer->durable(extents, writer) : Status();
  };
  LITE_TRY(progress.add(0));
  LITE_TRY(run_jobs(to_do.size(), options_.threads, make, make_durable));
  LITE_TRY(make_durable());
  return progress.add(0);
}

// Keeps what can be gone on with, and says so.
Status Conversion::end_early(Status failure, lite::PackWriter* writer, const Consumer* consumer) const {
  const bool consumed = consumed_before_ || (consumer && consumer->has_consumed());
  const bool can_go_on =
      failure.code() == Code::Io || failure.code() == Code::Cancelled || failure.code() == Code::OutOfMemory;
  // Of a full disk this may fail again: then a little less is kept.
  if (can_go_on || consumed) (void)writer->sync().ok();
  if (!consumed && (!can_go_on || writer->durable_bytes() == 0)) {
    writer->discard();
    return failure;
  }
  return {failure.code(), lite::str(failure.message(), "; ", writer->durable_bytes(), " of ",
                                    writer->file_bytes(), " bytes are kept in ", writer->parts()[0].path,
                                    ".partial, and the same command goes on from there")};
}

ConvertSummary Conversion::summary(const lite::PackWriter& writer) const {
  ConvertSummary out;
  out.files = writer.parts();
  out.file_bytes = writer.file_bytes();
  out.aliases = int64_t(plan_.aliases().size());
  out.tensors = int64_t(plan_.match().tensors.size()) - out.aliases;
  out.has_tokenizer = plan_.has_tokenizer();
  std::vector<ConvertSummary::RoleUse> roles(kRoles);
  for (size_t i = 0; i < plan_.extents().size(); ++i) {
    ConvertSummary::RoleUse& use = roles[size_t(plan_.role_of(i))];
    use.role = role_name(plan_.role_of(i));
    ++use.extents;
    use.bytes += *lite::extent_bytes(plan_.extents()[i]);
  }
  std::copy_if(roles.begin(), roles.end(), std::back_inserter(out.roles),
               [](const auto& use) { return use.extents > 0; });
  return out;
}

// Whether the conversion of that key, which came to its end as `file`, is the one that is asked for.
bool is_the_same(const ConvertOptions& options, const Json& key, const lite::PackFile& file) {
  auto plan = Plan::make(options, {});
  if (plan.ok()) {
    recognise_consumed(key, &plan->checkpoint());
    return difference(key, resume_key(options, *plan)).empty();
  }
  // What it has consumed is gone, and headers may be too: the folder, the configuration and the options are left to tell.
  const auto folder = find_checkpoint(options.source, options.hub_cache);
  if (!folder.ok()) return false;
  const auto is = [&](const char* member, const Json& value) {
    const Json* found = key.find(member);
    return found && found->dump() == value.dump();
  };
  const auto config = lite::read_text(*folder + "/config.json", kMaxCheckpointFile);
  const std::string_view* packed = file.section("config.json");
  return is("folder", full_path(*folder)) && is("dtype", dtype_text(options)) &&
         is("split_bytes", options.split_bytes) && config.ok() && packed && *packed == *config;
}

// A conversion to this place that was interrupted while its files got their names is complete but for that. What it
// came to, if it is the one that is asked for.
Result<bool> end_interrupted(const ConvertOptions& options, const ConvertCallbacks& callbacks,
                             ConvertSummary* out) {
  if (options.dry_run) return false;
  bool same = false;  // to be known before what tells of consumed shards is removed
  LITE_ASSIGN(const std::optional<lite::NamedLate> late,
              lite::finish_naming(options.out, [&](const lite::NamedLate& writer) {
                const auto key = Json::parse(writer.key, "journal");
                if (!key.ok()) return;
                const auto file = lite::PackFile::open(writer.path);
                same = file.ok() && is_the_same(options, *key, *file);
                if (writer.only_copy) remove_headers(*key);
              }));
  if (!late || !same) return false;
  const auto file = lite::PackFile::open(late->path);
  if (!file.ok()) return file.status();
  if (options.force) remove_replaced(options.out, file->parts().size(), callbacks.note);
  out->files = file->parts();
  out->file_bytes = file->file_bytes();
  for (const auto& item : file->items()) ++(item.alias_of < 0 ? out->tensors : out->aliases);
  out->has_tokenizer = file->section("tokenizer.json") || file->section("tiktoken.model");
  return true;
}

}  // namespace

Result<ConvertSummary> convert(const ConvertOptions& options, const ConvertCallbacks& callbacks) {
  try {
    if (options.dtype && !lite::info(*options.dtype).is_float)
      return lite::invalid_argument("convert ", options.source, ": weights cannot be stored as ",
                                    lite::info(*options.dtype).name, "; try F32, BF16, F16 or F8_E4M3");
    ConvertSummary late;
    LITE_ASSIGN(const bool ended, end_interrupted(options, callbacks, &late));
    if (ended) return late;
    if (!options.split_bytes) LITE_TRY(check_destination(options.out, options.force));  // before much work
    LITE_ASSIGN(Plan plan, Plan::make(options, callbacks));
    return Conversion(options, callbacks, std::move(plan)).run();
  } catch (const std::bad_alloc&) {
    return lite::out_of_memory("convert ", options.source,
                               ": the machine has no memory left; try fewer threads");
  }
}

}  // namespace dsv3
