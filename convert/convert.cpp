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
#include "ggml-lite/file.h"
#include "ggml-lite/hash.h"
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

// What a text file is known by: the packed file's sections are made of it.
Json identity(std::string_view text) {
  lite::Hash hash;
  hash.add(text.data(), text.size());
  return Json::Array{int64_t(text.size()), lite::str(std::hex, hash.digest64())};
}

// What ties the journal of an unfinished conversion to its checkpoint and options. The aliases are in it because
// finding them takes data that --consume may have deleted since.
Json resume_key(const ConvertOptions& options, const Plan& plan) {
  Json::Object shards;
  for (const Checkpoint::Shard& s : plan.checkpoint().shards())
    shards.emplace_back(s.name, identity(s, s.file.changed_ns()));
  Json::Object texts;
  for (const lite::PackSection& s : plan.sections())
    if (s.name != kProvenance) texts.emplace_back(path_of_section(s.name), identity(s.bytes));
  Json key{Json::Object()};
  key.set("converter", DSV3_VERSION_TEXT);
  key.set("folder", full_path(plan.folder()));
  key.set("dtype", dtype_text(options));
  key.set("split_bytes", options.split_bytes);
  key.set("shards", std::move(shards));
  key.set("texts", std::move(texts));
  return key;
}

// "14 bytes of 2026-01-31 12:00:00.123456789 UTC", or "14 bytes with checksum 1f"
std::string identity_text(const Json& identity) {
  const Json::Array* pair = identity.array();
  if (!pair || pair->size() != 2 || !(*pair)[0].integer()) return identity.dump();
  if (const std::string* checksum = (*pair)[1].string())
    return lite::str(*(*pair)[0].integer(), " bytes with checksum ", *checksum);
  if (!(*pair)[1].integer()) return identity.dump();
  const int64_t ns = *(*pair)[1].integer(), second = 1'000'000'000;
  const std::time_t seconds = std::time_t(ns / second);
  std::tm utc = {};
  char date[32] = "", fraction[16];
  if (::gmtime_r(&seconds, &utc)) std::strftime(date, sizeof date, "%F %T", &utc);
  std::snprintf(fraction, sizeof fraction, ".%09d", int(ns % second));
  return lite::str(*(*pair)[0].integer(), " bytes of ", date, fraction, " UTC");
}

// Why an unfinished conversion cannot be taken up, and what must be done so that it can.
struct Difference {
  std::string why, remedy;
};

Difference damaged() {
  return {"its journal is damaged", "give that conversion's OUT"};
}

// The first file among `member` of two keys that is not what it was: which, what is found, and what was there.
std::optional<Difference> file_difference(const Json& old, const Json& key, const char* member) {
  const Json *before = old.find(member), *now = key.find(member);
  if (!before || !before->object() || !now) return damaged();
  const Json::Object &a = *before->object(), &b = *now->object();
  const std::string changed = "the checkpoint has changed since: ";
  for (size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
    const bool has_more = i >= a.size() || (i < b.size() && b[i].first < a[i].first);
    if (has_more)
      return Difference{lite::str(changed, "got a file ", b[i].first, ", expected none of this name"),
                        lite::str("take ", b[i].first, " away")};
    if (i >= b.size() || a[i].first != b[i].first)
      return Difference{
          lite::str(changed, "got no file ", a[i].first, ", expected ", identity_text(a[i].second)),
          lite::str("put ", a[i].first, " back")};
    if (a[i].second.dump() != b[i].second.dump())
      return Difference{lite::str(changed, a[i].first, ": got ", identity_text(b[i].second), ", expected ",
                                  identity_text(a[i].second)),
                        lite::str("put ", a[i].first, " back as it was")};
  }
  return {};
}

// Nothing when an unfinished conversion can be taken up. `old` has aliases, `key` does not yet.
std::optional<Difference> difference(const Json& old, const Json& key) {
  const auto differs = [&](const char* member) {
    const Json *a = old.find(member), *b = key.find(member);
    return !a || !b || a->dump() != b->dump();
  };
  if (differs("converter")) return Difference{"it was made by another version", "use that version"};
  for (const char* files : {"shards", "texts"})
    if (auto changed = file_difference(old, key, files)) return changed;
  if (differs("dtype") || differs("split_bytes"))
    return Difference{"it had other options", "give that conversion's options"};
  return {};
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
  void note_begun_anew(const std::string& why) const {
    note("an unfinished conversion to " + options_.out + " is started over: " + why);
  }

  const ConvertOptions& options_;
  const ConvertCallbacks& callbacks_;
  Plan plan_;
  Json key_;
  bool consumed_before_ = false;  // shards are gone: there is no beginning anew
  bool goes_on_ = false;          // with what a journal of this very conversion tells of
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
  LITE_TRY(check_destination(writer.parts(), options_.force));
  if (options_.dry_run) return summary(writer);
  LITE_TRY(writer.start());
  LITE_TRY(check_sources(writer));
  if (goes_on_ && !writer.has_resumed())
    note_begun_anew("its partial files are not what its journal tells of");
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
  auto differs = old.ok() ? difference(*old, key_)
                          : Difference{"its journal is gone", "give that conversion's OUT and options"};
  if (!differs) {
    known = aliases_of(*old);
    if (!known) differs = damaged();
  }
  if (!gone.empty() && differs)
    return lite::invalid_argument("convert ", plan_.folder(), ": ", list_names(gone),
                                  ": consumed by a conversion that did not end, and which cannot go on in ",
                                  options_.out, ": ", differs->why, "; ", differs->remedy,
                                  ", or get these files again");
  if (text && differs)
    LITE_TRY(sole.in(lite::str("convert ", plan_.folder(), ": ", differs->why, "; ", differs->remedy)));
  if (!got_again.empty())
    note("got again after they were consumed, and not needed: " + list_names(got_again));
  if (text && differs) note_begun_anew(differs->why);
  goes_on_ = known.has_value();
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

// Whether the conversion of that key, which came to its end, is the one that is asked for.
bool is_the_same(const ConvertOptions& options, const Json& key) {
  auto plan = Plan::make(options, {});
  if (plan.ok()) {
    recognise_consumed(key, &plan->checkpoint());
    return !difference(key, resume_key(options, *plan));
  }
  // What it has consumed is gone, and headers may be too: the folder, its text files and the options are left to tell.
  const auto folder = find_checkpoint(options.source, options.hub_cache);
  if (!folder.ok()) return false;
  const auto texts = read_checkpoint_texts(*folder);
  if (!texts.ok()) return false;
  Json::Object found_texts;
  for (const auto& [path, bytes] : *texts) found_texts.emplace_back(path, identity(bytes));
  const auto is = [&](const char* member, const Json& value) {
    const Json* found = key.find(member);
    return found && found->dump() == value.dump();
  };
  return is("folder", full_path(*folder)) && is("dtype", dtype_text(options)) &&
         is("split_bytes", options.split_bytes) && is("texts", std::move(found_texts));
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
                same = is_the_same(options, *key);
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

// A checkpoint that has nothing to convert any more, because --consume came to its end, is no broken one.
Status explain_failure(Status failure, const ConvertOptions& options) {
  const auto folder = find_checkpoint(options.source, options.hub_cache);
  if (failure.code() != Code::NotFound || !folder.ok()) return failure;
  const auto config = lite::read_text(*folder + "/config.json", kMaxCheckpointFile);
  for (const std::string& path : lite::files_of_model(options.out)) {
    if (const auto place = lite::packed_place(path); !place || place->index > 0) continue;
    const auto file = lite::PackFile::open(path);
    const std::string_view* packed = file.ok() ? file->section("config.json") : nullptr;
    if (config.ok() && packed && *packed == *config)
      return lite::invalid_argument(
          "create ", path, ": it exists, is complete, and has the config.json of ", options.source,
          ": if it was made with --consume, nothing is left to do; else: ", failure.message());
  }
  return failure;
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
    if (!options.split_bytes)
      LITE_TRY(check_destination({{options.out, 0}}, options.force));  // before much work
    auto plan = Plan::make(options, callbacks);
    if (!plan.ok()) return explain_failure(plan.status(), options);
    return Conversion(options, callbacks, std::move(*plan)).run();
  } catch (const std::bad_alloc&) {
    return lite::out_of_memory("convert ", options.source,
                               ": the machine has no memory left; try fewer threads");
  }
}

}  // namespace dsv3
