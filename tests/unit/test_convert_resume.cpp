// Conversions that are interrupted, split, consumed or only planned.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <algorithm>
#include <functional>

#include "convert/random.h"
#include "ggml-lite/pack_journal.h"
#include "tests/unit/convert_source.h"

using namespace convert_test;
namespace fs = std::filesystem;

namespace {

ConvertOptions to(const TempDir& dir, const std::string& out, bool consume = false, int64_t split = 0) {
  ConvertOptions options{dir / "src", dir / out, {}, false};
  options.consume = consume;
  options.split_bytes = split;
  options.threads = 1;
  return options;
}

// Stops a conversion when a part of it is done, between two syncs as a kill would.
Status interrupted(const ConvertOptions& options, double part = 0.5) {
  ConvertCallbacks callbacks;
  callbacks.progress = [&](int64_t done, int64_t total) {
    return total == 0 || double(done) < part * double(total);
  };
  return convert(options, callbacks).status();
}

std::vector<std::string> shards_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().string().find(".safetensors") != std::string::npos &&
        entry.path().extension() != ".json")
      names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

TEST_CASE("convert: what was interrupted goes on, unless something has changed") {
  TempDir dir;
  const Source source;
  source.write(dir / "src");
  REQUIRE(convert(to(dir, "good")).ok());
  const auto goes_on = [&](const ConvertOptions& options, const std::string& note) {
    Notes notes;
    const auto summary = convert(options, notes.callbacks());
    REQUIRE_MESSAGE(summary.ok(), summary.status().message());
    CHECK_MESSAGE(notes.has(note), notes.texts.back());
    CHECK(notes.has("going on with") == (note == "going on with an unfinished conversion"));
    CHECK(!fs::exists(dir / "m.journal"));
    CHECK(!fs::exists(dir / "m.partial"));
  };
  says(interrupted(to(dir, "m")), Code::Cancelled, {"are kept in " + (dir / "m") + ".partial", "goes on"});
  goes_on(to(dir, "m"), "going on with an unfinished conversion");
  CHECK(slurp(dir / "m") == slurp(dir / "good"));

  fs::remove(dir / "m");
  CHECK(!interrupted(to(dir, "m")).ok());
  fs::last_write_time(dir / "src/model.safetensors",
                      fs::file_time_type::clock::now() + std::chrono::hours(1));
  goes_on(to(dir, "m"), "started over: the checkpoint has changed since");
  CHECK(slurp(dir / "m") == slurp(dir / "good"));

  fs::remove(dir / "m");
  CHECK(!interrupted(to(dir, "m")).ok());
  ConvertOptions other = to(dir, "m");
  other.dtype = DType::F32;
  goes_on(other, "started over: it had other options");

  fs::remove(dir / "m");
  CHECK(!interrupted(to(dir, "m", false, 220'000)).ok());
  goes_on(to(dir, "m"), "started over: it had other options");
  CHECK(slurp(dir / "m") == slurp(dir / "good"));
  CHECK(dir.names().size() == 3);  // no partial file of the split one

  // What another error ends leaves nothing.
  fs::remove(dir / "m");
  CHECK(!interrupted(to(dir, "m")).ok());
  Source bad = source;
  bad.tensors["model.norm.weight"].bytes.replace(0, 4, "\xFF\xFF\xFF\xFF");
  bad.write(dir / "src");
  says(convert(to(dir, "m")).status(), Code::Corrupt, {"NaN"});
  CHECK(dir.names().size() == 2);
}

TEST_CASE("convert: interrupted between the last byte and the names") {
  TempDir dir;
  Source().write_sharded(dir / "src");
  REQUIRE(convert(to(dir, "good")).ok());
  CHECK(!interrupted(to(dir, "m"), 1.0).ok());  // at the very end
  REQUIRE(fs::exists(dir / "m.journal"));
  const auto summary = convert(to(dir, "m"));
  REQUIRE(summary.ok());
  CHECK(slurp(dir / "m") == slurp(dir / "good"));
}

TEST_CASE("convert: several files have the same content") {
  TempDir dir;
  Source().write(dir / "src");
  REQUIRE(convert(to(dir, "one.dsv3")).ok());
  const auto summary = convert(to(dir, "m.dsv3", false, 220'000));
  REQUIRE_MESSAGE(summary.ok(), summary.status().message());
  REQUIRE(summary->files.size() > 3);
  const auto one = PackFile::open(dir / "one.dsv3");
  int64_t bytes = 0;
  for (const lite::PackPart& part : summary->files) {
    CHECK(int64_t(fs::file_size(part.path)) == part.bytes);
    bytes += part.bytes;
    const auto file = PackFile::open(part.path);
    REQUIRE_MESSAGE(file.ok(), file.status().message());
    CHECK(file->model_id() == one->model_id());
    CHECK(file->verify().ok());
  }
  CHECK(bytes == summary->file_bytes);
  says(convert(to(dir, "m.dsv3", false, 220'000)).status(), Code::InvalidArgument,
       {"-00001-of-", "it exists"});
  ConvertOptions force = to(dir, "m.dsv3", false, 220'000);
  force.force = true;
  CHECK(convert(force).ok());
}

TEST_CASE("convert: a dry run says what would be written, and writes nothing") {
  TempDir dir;
  Source().write(dir / "src");
  for (const int64_t split : {0, 220'000}) {
    ConvertOptions options = to(dir, "m.dsv3", false, split);
    options.dry_run = true;
    const auto planned = convert(options);
    REQUIRE(planned.ok());
    CHECK(dir.names() == std::vector<std::string>{"src"});
    options.dry_run = false;
    const auto written = convert(options);
    REQUIRE(written.ok());
    REQUIRE(planned->files.size() == written->files.size());
    for (size_t i = 0; i < written->files.size(); ++i) {
      CHECK(planned->files[i].path == written->files[i].path);
      CHECK(planned->files[i].bytes == int64_t(fs::file_size(written->files[i].path)));
      fs::remove(written->files[i].path);
    }
    int64_t bytes = 0, extents = 0;
    for (const auto& use : planned->roles) {
      bytes += use.bytes;
      extents += use.extents;
      if (use.role == "routed_experts") CHECK(use.extents == 2 * 4);
    }
    CHECK(planned->aliases == 2);
    CHECK(bytes < planned->file_bytes);
    CHECK(extents > 20);
  }
}

TEST_CASE("convert: shards are consumed, and an interrupted conversion needs them no more") {
  TempDir dir;
  const Source source;
  source.write_sharded(dir / "src");
  REQUIRE(convert(to(dir, "good")).ok());
  CHECK(shards_in(dir / "src").size() == 3);
  // What has no name any more is not open either: it would keep its room on the disk.
  ConvertCallbacks callbacks;
  size_t looks = 0;
  callbacks.progress = [&](int64_t done, int64_t total) {
    if (done < total) return true;
    std::error_code error;
    for (const auto& fd : fs::directory_iterator("/proc/self/fd", error))
      CHECK(fs::read_symlink(fd.path(), error).string().find("(deleted)") == std::string::npos);
    looks += !fs::exists(dir / "src/0.safetensors");
    return true;
  };
  REQUIRE(convert(to(dir, "m", true), callbacks).ok());
  CHECK(looks > 0);
  CHECK(slurp(dir / "m") == slurp(dir / "good"));
  CHECK(shards_in(dir / "src").empty());
  CHECK(fs::exists(dir / "src/config.json"));
  CHECK(fs::exists(dir / "src/model.safetensors.index.json"));

  // Interrupted when shards are gone already.
  for (const double part : {0.3, 0.7, 0.95, 1.0}) {
    CAPTURE(part);
    fs::remove_all(dir / "src");
    fs::remove(dir / "m");
    source.write_sharded(dir / "src");
    CHECK(interrupted(to(dir, "m", true), part).code() == Code::Cancelled);
    if (part == 1.0) {
      // All but the last extent is durable: the next start consumes what that needs no more, and stops.
      CHECK(interrupted(to(dir, "m", true), 0.0).code() == Code::Cancelled);
      const std::vector<std::string> left = shards_in(dir / "src");
      CHECK(left.size() == 3);
      CHECK(std::count_if(left.begin(), left.end(), [](const auto& n) { return n.ends_with(".consumed"); }) >
            0);
      says(check(dir / "src", "", dir / "good", 1), Code::InvalidArgument,
           {".safetensors was consumed by a conversion that did not end"});
      says(convert(to(dir, "elsewhere", true)).status(), Code::InvalidArgument,
           {".safetensors: consumed by a conversion that did not end", "its journal is gone"});
      ConvertOptions other = to(dir, "m", true);
      other.dtype = DType::BF16;
      says(convert(other).status(), Code::InvalidArgument, {"it had other options"});
      const std::string partial = slurp(dir / "m.partial");
      spill(dir / "m.partial", "");
      says(convert(to(dir, "m", true)).status(), Code::Corrupt, {"are not there any more"});
      spill(dir / "m.partial", partial);
    }
    const auto summary = convert(to(dir, "m", true));
    REQUIRE_MESSAGE(summary.ok(), summary.status().message());
    CHECK(slurp(dir / "m") == slurp(dir / "good"));
    CHECK(shards_in(dir / "src").empty());
    CHECK(!fs::exists(dir / "m.journal"));
  }
}

TEST_CASE("convert: a shard that was consumed and is got again") {
  TempDir dir;
  const Source source;
  source.write_sharded(dir / "src");
  REQUIRE(convert(to(dir, "good")).ok());
  CHECK(!interrupted(to(dir, "n"), 0.3).ok());  // another conversion of the same
  CHECK(!interrupted(to(dir, "m", true), 1.0).ok());
  CHECK(!interrupted(to(dir, "m", true), 0.0).ok());  // what is durable is consumed at the start
  std::vector<std::string> consumed, kept;
  for (int i = 0; i < 3; ++i) {
    const std::string name = lite::str(i, ".safetensors");
    (fs::exists(dir / ("src/" + name)) ? kept : consumed).push_back(name);
  }
  REQUIRE(!consumed.empty());
  REQUIRE(!kept.empty());
  says(convert(to(dir, "n")).status(), Code::InvalidArgument,
       {consumed[0] + ": consumed by another conversion", "is not in " + (dir / "n"), "get the file again"});

  source.write_sharded(dir / "again");
  const auto later = fs::file_time_type::clock::now() + std::chrono::hours(1);
  const auto get_again = [&](const std::string& name) {
    fs::copy_file(dir / ("again/" + name), dir / ("src/" + name), fs::copy_options::overwrite_existing);
    fs::last_write_time(dir / ("src/" + name), later);
  };
  fs::copy(dir / "src", dir / "src_before");
  const std::string partial = slurp(dir / "m.partial"), journal = slurp(dir / "m.journal");
  const auto as_before = [&] {
    fs::remove_all(dir / "src");
    fs::create_directory(dir / "src");
    for (const auto& entry : fs::directory_iterator(dir / "src_before")) {
      const std::string path = (dir / "src/") + entry.path().filename().string();
      fs::copy_file(entry.path(), path);
      fs::last_write_time(path, fs::last_write_time(entry.path()));
    }
    fs::remove(dir / "m");
    spill(dir / "m.partial", partial);
    spill(dir / "m.journal", journal);
  };
  // With the times of before: copying gave the copies others.
  for (const std::string& name : shards_in(dir / "src"))
    fs::last_write_time(dir / ("src_before/" + name), fs::last_write_time(dir / ("src/" + name)));

  // One or all of them, with --consume or without, and interrupted once more.
  for (const bool all : {false, true})
    for (const bool consume : {false, true}) {
      CAPTURE(all);
      CAPTURE(consume);
      as_before();
      for (const std::string& name : consumed) {
        get_again(name);
        if (!all) break;
      }
      CHECK(!interrupted(to(dir, "m", consume), 0.0).ok());
      Notes notes;
      const auto summary = convert(to(dir, "m", consume), notes.callbacks());
      REQUIRE_MESSAGE(summary.ok(), summary.status().message());
      CHECK(notes.has("got again after they were consumed, and not needed: " + consumed[0]));
      CHECK(slurp(dir / "m") == slurp(dir / "good"));
      CHECK(!fs::exists(dir / "m.journal"));
      CHECK(fs::exists(dir / ("src/" + consumed[0])));
      for (const std::string& name : shards_in(dir / "src")) CHECK(!name.ends_with(".consumed"));
    }

  // One that is not what it was, and one that was not consumed and has changed: which, and how.
  as_before();
  Source other = source;
  other.tensors["extra"] = {"F32", {1}, std::string(4, '\0')};
  other.write_sharded(dir / "other");
  fs::copy_file(dir / "other/0.safetensors", dir / "src/" + consumed[0]);
  says(convert(to(dir, "m", true)).status(), Code::Corrupt, {"tensors of its shards: extra"});
  as_before();
  for (const std::string& name : consumed) get_again(name);
  fs::last_write_time(dir / ("src/" + kept[0]), later);
  says(convert(to(dir, "m", true)).status(), Code::InvalidArgument,
       {"the checkpoint has changed since: " + kept[0] + ": got ", " UTC, expected ",
        "m.partial holds the only copy", "delete"});
  as_before();
  fs::last_write_time(dir / ("src/" + kept[0]), later);
  says(convert(to(dir, "m", true)).status(), Code::InvalidArgument,
       {consumed[0] + ": consumed by a conversion", "has changed since: " + kept[0] + ": got ",
        "get these files again"});

  // All of the checkpoint is there again, and of the conversion less and less.
  as_before();
  for (const std::string& name : consumed) get_again(name);
  fs::remove(dir / "m.partial");
  says(convert(to(dir, "m", true)).status(), Code::Corrupt,
       {"are not there any more", "delete " + (dir / "m.journal")});
  fs::remove(dir / "m.journal");
  CHECK(!interrupted(to(dir, "m", true), 1.0).ok());
  REQUIRE(convert(to(dir, "m", true)).ok());
  CHECK(slurp(dir / "m") == slurp(dir / "good"));
  CHECK(shards_in(dir / "src").empty());
}

TEST_CASE("convert: a text file that changes between two starts") {
  TempDir dir;
  Source source;
  const std::string name = "special_tokens_map.json";
  source.files[name] = "{}";
  source.write_sharded(dir / "src");
  REQUIRE(convert(to(dir, "good")).ok());
  struct Change {
    std::function<void()> make, undo;
    std::string why, remedy;
  };
  const std::string text = dir / ("src/" + name), more = dir / "src/chat_template.json";
  const Change changes[] = {
      {[&] { spill(text, "{ }"); }, [&] { spill(text, "{}"); }, name + ": got 3 bytes with checksum ",
       "put " + name + " back as it was, or get these files again"},
      {[&] { fs::remove(text); }, [&] { spill(text, "{}"); },
       "got no file " + name + ", expected 2 bytes with", "put " + name + " back, or get"},
      {[&] { spill(more, "{}"); }, [&] { fs::remove(more); },
       "got a file chat_template.json, expected none of this name", "take chat_template.json away, or get"}};
  for (const Change& change : changes) {
    CAPTURE(change.why);
    CHECK(!interrupted(to(dir, "m")).ok());
    change.make();
    Notes notes;
    REQUIRE(convert(to(dir, "m"), notes.callbacks()).ok());
    CHECK_MESSAGE(notes.has("started over: the checkpoint has changed since: " + change.why),
                  notes.texts.back());
    CHECK(check(dir / "src", "", dir / "m", 1).ok());
    fs::remove(dir / "m");
    change.undo();
  }
  CHECK(!interrupted(to(dir, "m", true), 1.0).ok());
  CHECK(!interrupted(to(dir, "m", true), 0.0).ok());  // what is durable is consumed at the start
  for (const Change& change : changes) {
    change.make();
    says(convert(to(dir, "m", true)).status(), Code::InvalidArgument,
         {".safetensors: consumed by a conversion that did not end",
          "the checkpoint has changed since: " + change.why, change.remedy});
    change.undo();
  }
  REQUIRE(convert(to(dir, "m", true)).ok());
  CHECK(slurp(dir / "m") == slurp(dir / "good"));
}

TEST_CASE("convert: partial files that are not those of the journal") {
  TempDir dir;
  Source source;
  source.write(dir / "src");
  REQUIRE(convert(to(dir, "good")).ok());
  source.tensors["model.norm.weight"].bytes[0] ^= 1;  // the same layout
  source.write(dir / "other");
  ConvertOptions of_other = to(dir, "n");
  of_other.source = dir / "other";
  CHECK(!interrupted(of_other).ok());
  const std::string partial = slurp(dir / "n.partial");

  // Somebody else's, as long as the journal's: it stays.
  CHECK(!interrupted(to(dir, "m")).ok());
  const std::string journal = slurp(dir / "m.journal"), foreign = "precious" + partial.substr(8);
  for (const bool force : {false, true}) {
    ConvertOptions options = to(dir, "m");
    options.force = force;
    spill(dir / "m.partial", foreign);
    says(convert(options).status(), Code::InvalidArgument, {"m.partial", "was not made by this program"});
    CHECK(slurp(dir / "m.partial") == foreign);
    CHECK(slurp(dir / "m.journal") == journal);
  }
  // Another conversion's: nothing of it is taken.
  spill(dir / "m.partial", partial);
  Notes notes;
  REQUIRE(convert(to(dir, "m"), notes.callbacks()).ok());
  CHECK(notes.has("is started over: its partial files are not what its journal tells of"));
  CHECK(slurp(dir / "m") == slurp(dir / "good"));

  // Of several, where another layout is begun: what is not its own is no business of it.
  fs::remove(dir / "m");
  CHECK(!interrupted(to(dir, "m", false, 220'000)).ok());
  std::vector<std::string> parts;
  for (const std::string& name : dir.names())
    if (name.starts_with("m-")) parts.push_back(name);
  REQUIRE(parts.size() > 3);
  spill(dir / parts[1], "precious");
  REQUIRE(convert(to(dir, "m")).ok());
  CHECK(slurp(dir / "m") == slurp(dir / "good"));
  CHECK(slurp(dir / parts[1]) == "precious");
  CHECK(std::none_of(parts.begin(), parts.end(),
                     [&](const auto& name) { return name != parts[1] && fs::exists(dir / name); }));
}

TEST_CASE("convert: a conversion that consumed all, once more") {
  TempDir dir;
  const Source source;
  for (const int64_t split : {0, 220'000}) {
    fs::remove_all(dir / "src");
    source.write_sharded(dir / "src");
    ConvertOptions options = to(dir, split ? "split.dsv3" : "one.dsv3", true, split);
    const auto summary = convert(options);
    REQUIRE_MESSAGE(summary.ok(), summary.status().message());
    const std::vector<std::string> names = dir.names();
    for (const bool force : {false, true}) {
      options.force = force;
      says(convert(options).status(), Code::InvalidArgument, {summary->files[0].path + ": it exists"});
      if (split || force)
        says(convert(options).status(), Code::InvalidArgument,
             {"is complete", "if it was made with --consume, nothing is left to do", "3 of 3 shards",
              "get them again"});
    }
    options.force = false;
    CHECK(dir.names() == names);
    CHECK(PackFile::open(summary->files[0].path)->verify().ok());
    Json config = source.config;  // of another checkpoint the weights are missing, whatever is there
    config.set("rope_theta", 5000.0);
    spill(dir / "src/config.json", config.dump());
    if (split) says(convert(options).status(), Code::NotFound, {"read " + (dir / "src") + ": 3 of 3 shards"});
  }
}

TEST_CASE("convert: one of a split model's files is not replaced alone") {
  TempDir dir;
  Source().write(dir / "src");
  const auto summary = convert(to(dir, "m.dsv3", false, 220'000));
  REQUIRE(summary.ok());
  const std::vector<std::string> names = dir.names();
  for (const lite::PackPart& part : {summary->files.front(), summary->files.back()}) {
    ConvertOptions options = to(dir, "m.dsv3");
    options.out = part.path;
    RandomOptions random;
    random.config = dir / "src/config.json";
    random.out = part.path;
    for (const bool force : {false, true}) {
      options.force = random.force = force;
      const std::string what = part.path == summary->files[0].path ? "it is file 1 of the " : " of a model";
      says(convert(options).status(), Code::InvalidArgument,
           {part.path, what, "--force and the model's name"});
      says(write_random_model(random, {}).status(), Code::InvalidArgument, {part.path, what});
    }
  }
  CHECK(dir.names() == names);
  CHECK(PackFile::open(summary->files[0].path)->verify().ok());
  ConvertOptions all = to(dir, "m.dsv3");
  all.force = true;
  REQUIRE(convert(all).ok());
  CHECK(dir.names().size() == 2);
}

TEST_CASE("convert: --force replaces a model that is split otherwise, and no other file") {
  TempDir dir;
  const Source source;
  source.write(dir / "src");
  REQUIRE(convert(to(dir, "good.dsv3")).ok());
  REQUIRE(convert(to(dir, "m2.dsv3", false, 220'000)).ok());  // another model, of a name that begins like it
  const size_t others = dir.names().size();
  // Names like those of the model's files, on what are none of its files.
  const std::vector<std::string> strange = {"m-00001-of-00009.dsv3", "m-00002-of-00002.dsv3", "m-x.dsv3"};
  spill(dir / strange[0], "precious");
  spill(dir / strange[1], slurp(dir / "good.dsv3"));
  spill(dir / strange[2], slurp(dir / "good.dsv3"));
  const auto files_of_model = [&] { return dir.names().size() - others - strange.size(); };
  const auto write = [&](int64_t split, bool force) {
    ConvertOptions options = to(dir, "m.dsv3", false, split);
    options.force = force;
    Notes notes;
    const auto summary = convert(options, notes.callbacks());
    REQUIRE_MESSAGE(summary.ok(), summary.status().message());
    CHECK(PackFile::open(summary->files[0].path)->verify().ok());
    CHECK(notes.has("of the model that was replaced") == force);
    return summary->files.size();
  };
  const size_t small = write(220'000, false), one = write(0, false);
  CHECK(files_of_model() == small + one);  // not without --force
  fs::remove(dir / "m.dsv3");
  CHECK(write(0, true) == 1);
  CHECK(files_of_model() == 1);
  CHECK(slurp(dir / "m.dsv3") == slurp(dir / "good.dsv3"));
  const size_t large = write(330'000, true);
  CHECK(large != small);
  CHECK(files_of_model() == large);
  CHECK(write(220'000, true) == small);
  CHECK(files_of_model() == small);
  CHECK(slurp(dir / strange[0]) == "precious");
  CHECK(slurp(dir / strange[1]) == slurp(dir / "good.dsv3"));

  // Nothing goes before the new one is there.
  ConvertOptions force = to(dir, "m.dsv3");
  force.force = true;
  CHECK(!interrupted(force).ok());
  CHECK(files_of_model() == small + 2);  // a partial file and its journal
  RandomOptions random;
  random.config = dir / "src/config.json";
  random.out = dir / "m.dsv3";
  random.force = true;
  REQUIRE(write_random_model(random, {}).ok());
  CHECK(files_of_model() == 1);
}

TEST_CASE("convert: names that were to be given yet are given, whatever comes then") {
  TempDir dir;
  const Source source;
  Source(false).write(dir / "other");
  ConvertOptions of_other = to(dir, "good_other");
  of_other.source = dir / "other";
  REQUIRE(convert(of_other).ok());
  source.write_sharded(dir / "src");
  REQUIRE(convert(to(dir, "good")).ok());
  // As a kill leaves it before the first name is given, or when all are.
  enum Killed { Before, After };
  const auto killed = [&](Killed when, bool consume) {
    for (const char* old : {"src", "m", "m.journal", "headers"}) fs::remove_all(dir / old);
    source.write_sharded(dir / "src");
    fs::create_directory(dir / "headers");
    ConvertCallbacks callbacks;
    callbacks.progress = [&](int64_t done, int64_t total) {
      if (done < total || total == 0) return true;
      fs::copy_file(dir / "m.journal", dir / "headers/journal", fs::copy_options::overwrite_existing);
      for (const std::string& name : shards_in(dir / "src"))
        if (name.ends_with(".consumed")) {  // its time is the shard's
          const std::string from = dir / ("src/" + name), to = dir / ("headers/" + name);
          fs::copy_file(from, to, fs::copy_options::overwrite_existing);
          fs::last_write_time(to, fs::last_write_time(from));
        }
      return true;
    };
    REQUIRE(convert(to(dir, "m", consume), callbacks).ok());
    fs::rename(dir / "headers/journal", dir / "m.journal");
    const auto content = lite::pack::Journal::read(dir / "m.journal");
    REQUIRE(content);
    CHECK(content->only_copy == consume);
    lite::pack::Journal journal;
    REQUIRE(journal.resume(dir / "m.journal", *content).ok());
    REQUIRE(journal.add({{lite::pack::Journal::kPublishing, 0, 0}}).ok());
    if (when == After) return;
    fs::rename(dir / "m", dir / "m.partial");
    for (const std::string& name : shards_in(dir / "headers"))
      fs::rename(dir / ("headers/" + name), dir / ("src/" + name));
  };
  const auto is_named = [&] {
    CHECK(slurp(dir / "m") == slurp(dir / "good"));
    CHECK(!fs::exists(dir / "m.partial"));
    CHECK(!fs::exists(dir / "m.journal"));
  };
  for (const Killed when : {Before, After})
    for (const bool consume : {false, true}) {
      CAPTURE(when);
      CAPTURE(consume);
      killed(when, consume);
      const auto summary = convert(to(dir, "m", consume));  // the same command
      REQUIRE_MESSAGE(summary.ok(), summary.status().message());
      CHECK(summary->tensors > 20);
      is_named();
      CHECK(shards_in(dir / "src").size() == (consume ? 0 : 3));

      ConvertOptions other = to(dir, "m");
      other.source = dir / "other";
      killed(when, consume);
      says(convert(other).status(), Code::InvalidArgument, {"it exists", "--force"});
      is_named();
      CHECK(shards_in(dir / "src").size() == (consume ? 0 : 3));
      killed(when, consume);
      other.force = true;
      REQUIRE(convert(other).ok());
      CHECK(slurp(dir / "m") == slurp(dir / "good_other"));

      killed(when, consume);
      other.source = dir / "nowhere";
      CHECK(convert(other).status().code() == Code::NotFound);
      is_named();

      killed(when, consume);
      ConvertOptions options = to(dir, "m", consume);
      options.dtype = DType::F32;
      CHECK(!convert(options).ok());
      is_named();
    }
  // Headers of another conversion's shards stay.
  killed(Before, false);
  spill(dir / "src/0.safetensors.consumed", "of another");
  spill(dir / "other/model.safetensors.consumed", "of another");
  ConvertOptions other = to(dir, "m", true);
  other.source = dir / "other";
  says(convert(other).status(), Code::InvalidArgument, {"it exists"});
  CHECK(fs::exists(dir / "src/0.safetensors.consumed"));
  CHECK(fs::exists(dir / "other/model.safetensors.consumed"));
}

TEST_CASE("convert: nothing begins anew where the only copy of consumed weights lies") {
  TempDir dir;
  const Source source;
  source.write_sharded(dir / "src");
  source.write(dir / "other");
  REQUIRE(convert(to(dir, "good")).ok());
  CHECK(!interrupted(to(dir, "m", true), 1.0).ok());
  CHECK(!interrupted(to(dir, "m", true), 0.0).ok());  // what is durable is consumed at the start
  const std::vector<std::string> left = shards_in(dir / "src");
  REQUIRE(std::any_of(left.begin(), left.end(), [](const auto& n) { return n.ends_with(".consumed"); }));
  const std::string partial = slurp(dir / "m.partial"), journal = slurp(dir / "m.journal");

  ConvertOptions other = to(dir, "m");
  other.source = dir / "other";
  RandomOptions random;
  random.config = dir / "other/config.json";
  random.out = dir / "m";
  for (const bool force : {false, true}) {
    other.force = random.force = force;
    says(convert(other).status(), Code::InvalidArgument, {"m.partial holds the only copy", "m.journal"});
    other.split_bytes = 220'000;
    says(convert(other).status(), Code::InvalidArgument, {"m.partial holds the only copy"});
    other.split_bytes = 0;
    says(write_random_model(random, {}).status(), Code::InvalidArgument, {"m.partial holds the only copy"});
  }
  CHECK(slurp(dir / "m.partial") == partial);
  CHECK(slurp(dir / "m.journal") == journal);
  const auto summary = convert(to(dir, "m", true));
  REQUIRE_MESSAGE(summary.ok(), summary.status().message());
  CHECK(slurp(dir / "m") == slurp(dir / "good"));
  CHECK(dir.names().size() == 4);
}

TEST_CASE("convert: only what is in the packed file is consumed, and nothing that others use") {
  TempDir dir;
  Source source;
  source.tensors["extra"] = {"F32", {1}, std::string(4, '\0')};
  source.write_sharded(dir / "src");
  Notes notes;
  REQUIRE(convert(to(dir, "m", true), notes.callbacks()).ok());
  CHECK(shards_in(dir / "src").size() == 1);
  CHECK(notes.has("--consume keeps shards with tensors that are not converted: 0.safetensors"));

  // A link out of the folder.
  source = Source();
  fs::remove_all(dir / "src");
  source.write_sharded(dir / "src");
  fs::rename(dir / "src/1.safetensors", dir / "elsewhere");
  fs::create_symlink(dir / "elsewhere", dir / "src/1.safetensors");
  says(convert(to(dir, "n", true)).status(), Code::InvalidArgument,
       {"1.safetensors", "it is a link to", "elsewhere"});
  CHECK(shards_in(dir / "src").size() == 3);
  CHECK(!fs::exists(dir / "n.partial"));

  // A snapshot of the cache: the blob goes with the link, unless another link leads there, too, from wherever.
  for (const std::string other : {"", "b", "b/sub", "a/sub"}) {
    CAPTURE(other);
    const bool shared = !other.empty();
    const std::string repository = dir / ("models--o--" + std::to_string(other.size()) + other.substr(0, 1));
    const std::string a = repository + "/snapshots/" + std::string(40, 'a'),
                      b = repository + "/snapshots/" + std::string(40, 'b');
    fs::create_directories(b);
    fs::create_directories(repository + "/blobs");
    source.write_sharded(a);
    for (const char* name : {"0.safetensors", "1.safetensors", "2.safetensors"}) {
      fs::rename(a + "/" + name, repository + "/blobs/hash" + name);
      fs::create_symlink("../../blobs/hash" + std::string(name), a + "/" + name);
    }
    if (shared) {
      const std::string folder = (other[0] == 'a' ? a : b) + other.substr(1);
      fs::create_directories(folder);
      fs::create_symlink(repository + "/blobs/hash0.safetensors", folder + "/0.safetensors");
    }
    ConvertOptions options = to(dir, "of" + std::to_string(other.size()) + other.substr(0, 1), true);
    options.source = a;
    Notes said;
    const auto summary = convert(options, said.callbacks());
    REQUIRE_MESSAGE(summary.ok(), summary.status().message());
    CHECK(said.has(lite::str("--consume will delete ", shared ? 2 : 3, " blobs of the Hugging Face cache")));
    CHECK(said.has("another snapshot in the cache uses: 0.safetensors") == shared);
    CHECK(fs::exists(repository + "/blobs/hash0.safetensors") == shared);
    CHECK(!fs::exists(repository + "/blobs/hash1.safetensors"));
    CHECK(shards_in(a).size() == (shared ? 1 : 0));
  }
}
