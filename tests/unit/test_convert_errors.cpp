// The converter: every broken checkpoint is refused in words, with nothing left behind.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <algorithm>
#include <csignal>
#include <cstring>
#include <functional>
#include <limits>

#include "tests/unit/convert_source.h"

using namespace convert_test;

TEST_CASE("convert: tensors that are missing or not needed") {
  Source source;
  source.tensors.erase("model.norm.weight");
  source.tensors.erase(Source::kMatrix);
  source.tensors.erase(Source::kScale);
  refused(source, Code::NotFound,
          {"2 of ", std::string("are missing: ") + Source::kMatrix + ", model.norm.weight", "incomplete"});
  source.tensors.clear();
  refused(source, Code::NotFound, {"are missing: model.embed_tokens.weight, ", " more; "});

  source = Source();
  source.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = {"F32", {1}, std::string(4, '\0')};
  source.tensors["extra.b"] = {"I8", {1}, "x"};
  source.tensors["extra.a"] = {"F8_E8M0", {1}, "x"};
  source.config.set("brand_new_key", 1);
  TempDir dir;
  source.write(dir / "src");
  Notes notes;
  REQUIRE(convert({dir / "src", dir / "m", {}, false}, notes.callbacks()).ok());
  CHECK(notes.has("2 tensors of the checkpoint are not used: extra.a, extra.b"));
  CHECK(!notes.has("inv_freq"));
  CHECK(notes.has("brand_new_key"));
  CHECK(notes.has("no tokenizer"));
  CHECK(notes.texts.size() == 3);
}

TEST_CASE("convert: tensors that have two names") {
  Source source(
      *Json::parse(R"({"model_type": "mixtral", "hidden_act": "silu", "vocab_size": 20, "hidden_size": 32,
      "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
      "num_local_experts": 2, "num_experts_per_tok": 1, "rope_theta": 10000.0, "max_position_embeddings": 64,
      "sliding_window": null, "tie_word_embeddings": false, "rms_norm_eps": 1e-05})",
                   "config.json"));
  const std::string gate = "model.layers.0.mlp.gate.weight",
                    old = "model.layers.0.block_sparse_moe.gate.weight";
  source.tensors[old] = source.tensors.at(gate);
  refused(source, Code::Corrupt, {"1 tensors are there under two names: " + gate + " and " + old});
  source.tensors.erase(gate);
  TempDir dir;
  source.write(dir / "src");
  const auto summary = convert({dir / "src", dir / "m", {}, false});
  REQUIRE_MESSAGE(summary.ok(), summary.status().message());
  const auto file = PackFile::open(dir / "m");
  CHECK(file->find(old) != nullptr);  // a file keeps the checkpoint's name
  CHECK(file->find(gate) == nullptr);
  source.tensors.erase(old);
  refused(source, Code::NotFound, {"are missing: " + gate + " (or " + old + ")"});
}

TEST_CASE("convert: types, shapes and scales that do not fit") {
  const auto with = [](const std::function<void(Source&)>& change) {
    Source source;
    change(source);
    return source;
  };
  const std::string matrix = Source::kMatrix, scale = Source::kScale;
  refused(with([&](Source& s) { s.tensors.erase(scale); }), Code::NotFound,
          {"1 FP8 weights have a missing scale: " + scale});
  refused(with([&](Source& s) {
            s.tensors["model.norm.weight"].shape = {80, 2};
          }),
          Code::Corrupt, {"wrong shape: model.norm.weight: got [80, 2], expected [160]"});
  refused(with([&](Source& s) {
            s.tensors[matrix].shape = {s.tensors[matrix].shape[1], 160};
          }),
          Code::Corrupt, {matrix + ": got ["});
  refused(with([&](Source& s) {
            s.tensors[scale] = {"F32", {1}, std::string(4, '\0')};
          }),
          Code::Corrupt, {"scales do not fit", scale + ": got [1], expected [2, 1]"});
  refused(with([&](Source& s) {
            s.tensors["lm_head.weight_scale_inv"] = {"F32", {1, 2}, std::string(8, '\0')};
          }),
          Code::Corrupt, {"lm_head.weight_scale_inv: the weight is F32"});
  refused(with([&](Source& s) { s.tensors[scale].dtype = "I32"; }), Code::Unsupported, {scale + " (I32)"});
  refused(with([&](Source& s) {
            s.tensors[scale] = {"F8_E8M0", {2, 1}, "xx"};
          }),
          Code::Unsupported, {scale + " (F8_E8M0)"});
  for (const char* type : {"I8", "U8", "F8_E5M2", "F8_E4M3FNUZ", "BOOL"})
    refused(with([&](Source& s) { s.tensors[matrix].dtype = type; }), Code::Unsupported,
            {matrix + " (" + type + ")", "quantisation is not supported"});
  for (const char* type : {"F64", "I64", "I32"})
    refused(with([&](Source& s) {
              s.tensors["model.norm.weight"].dtype = type;
              s.tensors["model.norm.weight"].bytes.resize(160 * (std::string(type).ends_with("64") ? 8 : 4));
            }),
            Code::Unsupported, {std::string("model.norm.weight (") + type + ")"});
  refused(with([&](Source& s) {
            s.tensors["model.norm.weight"] = {"F8_E4M3", {160}, std::string(160, '\0')};
          }),
          Code::Unsupported, {"model.norm.weight (F8_E4M3)", "F8_E4M3 for matrices"});
  refused(with([&](Source& s) {
            s.tensors["lm_head.weight"] = {"F8_E4M3", {50, 160}, std::string(8000, '\0')};
          }),
          Code::NotFound, {"missing scale: lm_head.weight_scale_inv"});
}

TEST_CASE("convert: no NaN and no infinity comes in") {
  const auto with = [](const std::function<void(Source&)>& change) {
    Source source;
    change(source);
    return source;
  };
  const std::string matrix = Source::kMatrix, scale = Source::kScale;
  for (const int code : {0x7F, 0xFF})
    refused(with([&](Source& s) { s.tensors[matrix].bytes[77] = char(code); }), Code::Corrupt,
            {"\"" + matrix + "\": element 77 (row ", "is NaN or infinite"});
  const float nan = std::numeric_limits<float>::quiet_NaN(),
              infinite = std::numeric_limits<float>::infinity();
  for (const float bad : {nan, infinite, -infinite}) {
    refused(with([&](Source& s) { put(&s.tensors[scale].bytes, 1, bad); }), Code::Corrupt,
            {"\"" + scale + "\": element 1 (row 1, column 0)"});
    refused(with([&](Source& s) { put(&s.tensors["model.norm.weight"].bytes, 159, bad); }), Code::Corrupt,
            {"\"model.norm.weight\": element 159 is"});
    refused(with([&](Source& s) {
              put(&s.tensors["model.embed_tokens.weight"].bytes, 7999, bad);
              s.tensors.erase(Source::kMtpEmbed);
            }),
            Code::Corrupt, {"\"model.embed_tokens.weight\": element 7999 (row 49, column 159)"});
  }
  const std::pair<const char*, uint16_t> halves[] = {
      {"BF16", 0x7F80}, {"BF16", 0xFFC0}, {"F16", 0x7C00}, {"F16", 0xFE00}};
  for (const auto& half : halves)
    refused(with([&](Source& s) {
              s.tensors["model.norm.weight"] = {half.first, {160}, std::string(320, '\0')};
              put(&s.tensors["model.norm.weight"].bytes, 3, half.second);
            }),
            Code::Corrupt, {"element 3 is NaN or infinite"});
  // Also in a tensor that is re-encoded, and when the value exists but not in the type asked for.
  refused(with([&](Source& s) { s.tensors[matrix].bytes[77] = 0x7F; }), Code::Corrupt, {"element 77 "},
          DType::BF16);
  for (const auto& [to, large] : {std::pair{DType::F16, 1e3f}, {DType::BF16, 3e38f}, {DType::F32, 3e38f}})
    refused(with([&, &large = large](Source& s) {
              std::fill(s.tensors[matrix].bytes.begin(), s.tensors[matrix].bytes.end(), 0);
              s.tensors[matrix].bytes[130] = 0x7E;
              for (size_t i = 0; i < 2; ++i) put(&s.tensors[scale].bytes, i, large);
            }),
            Code::Corrupt,
            {"\"" + matrix + "\": element 130 ", "does not fit " + std::string(lite::info(to).name)}, to);
}

TEST_CASE("convert: text files of a checkpoint") {
  Source source;
  source.files["generation_config.json"] = "{";
  refused(source, Code::Corrupt, {"generation_config.json", "not valid JSON"});
  source.files["generation_config.json"] = R"({"do_sample": true, "temperature": "hot"})";
  refused(source, Code::Corrupt, {"generation_config.json: temperature: got a string, expected a number"});
  source.files["generation_config.json"] = R"({"do_sample": true, "top_p": 7})";
  refused(source, Code::InvalidArgument, {"generation_config.json", "top_p"});
  source.files = {{"config.json", R"({"model_type": 1e999})"}};
  refused(source, Code::Corrupt, {"config.json: not valid JSON: at byte 2", "beyond the largest double"});
  source.files = {{"tokenizer_config.json", "{\"a\":1,\"a\":1}"}};
  refused(source, Code::Corrupt, {"tokenizer_config.json", "appears twice"});
  source.files = {{"config.json", "{"}};
  refused(source, Code::Corrupt, {"config.json", "not valid JSON"});
  source.files = {{"config.json", "version https://git-lfs.github.com/spec/v1\n"}};
  refused(source, Code::Corrupt, {"config.json", "git lfs pull"});
  source.files = {{"config.json", "{}"}};
  refused(source, Code::InvalidArgument, {"config.json", "model_type"});
  source.files = {{"tokenizer.json", "{}"}};
  refused(source, Code::Corrupt, {"tokenizer.json", "got an object without an object \"model\""});
  for (const char* name : {"generation_config.json", "tokenizer.json", "tokenizer_config.json",
                           "special_tokens_map.json", "chat_template.json"}) {
    source.files = {{name, "[]"}};
    refused(source, Code::Corrupt, {std::string(name) + ": got a list, expected an object"});
  }
  TempDir dir;
  source.files = {{"tokenizer.json", slurp(DSV3_SOURCE_DIR "/examples/demo-model/tokenizer.json")}};
  refused(source, Code::Corrupt, {"its largest token id is ", "vocab_size is 50"});

  source.files = {{"chat_template.jinja", "{{ x }}"},
                  {"special_tokens_map.json", "{}"},
                  {"chat_template.json", "{}"},
                  {"additional_chat_templates/tool_use.jinja", "{{ y }}"},
                  {"additional_chat_templates/README.md", "no"},
                  {"additional_chat_templates/.jinja", "no"},
                  {"README.md", "no"}};
  source.write(dir / "good");
  REQUIRE(convert({dir / "good", dir / "m", {}, false}).ok());
  const auto file = PackFile::open(dir / "m");
  CHECK(file->section_names() == std::vector<std::string>{"additional_chat_templates:tool_use.jinja",
                                                          "chat_template.jinja", "chat_template.json",
                                                          "config.json", "provenance.json",
                                                          "special_tokens_map.json"});
  CHECK(*file->section("chat_template.jinja") == "{{ x }}");
  CHECK(*file->section("additional_chat_templates:tool_use.jinja") == "{{ y }}");
  std::filesystem::create_directory(dir / "good/additional_chat_templates/folder.jinja");
  const auto of_folder = convert({dir / "good", dir / "n", {}, false});
  REQUIRE(!of_folder.ok());
  CHECK(of_folder.status().message().find("folder.jinja") != std::string::npos);
}

TEST_CASE("convert: a chat template that cannot be used is told, and the model still runs") {
  Source source;
  const auto said = [&](const char* name, const std::string& text) {
    TempDir dir;
    source.files = {{name, text}};
    source.write(dir / "src");
    Notes notes;
    const auto summary = convert({dir / "src", dir / "m", {}, false}, notes.callbacks());
    REQUIRE_MESSAGE(summary.ok(), summary.status().message());
    for (const std::string& note : notes.texts)
      if (note.find("chat template") != std::string::npos) return note;
    return std::string();
  };
  CHECK(said("chat_template.jinja", "{{ messages[0].content }}").empty());
  const std::string include = said("chat_template.jinja", "a\nb\n{% include 'x' %}");
  CHECK_MESSAGE(include.find("chat_template.jinja: ") != std::string::npos, include);
  CHECK_MESSAGE(include.find("line 3") != std::string::npos, include);
  CHECK_MESSAGE(include.find("include") != std::string::npos, include);
  CHECK(said("tokenizer_config.json", R"({"chat_template": 3})").find("got an integer") != std::string::npos);
  CHECK(said("chat_template.json", R"({"chat_template": "{{"})").find("chat_template.json: ") !=
        std::string::npos);
}

TEST_CASE("convert: links to files that were not fetched") {
  TempDir dir;
  const Source source;
  source.write(dir / "one");
  source.write_sharded(dir / "several");
  const auto says = [&](const std::string& folder, const std::string& name, const std::string& part) {
    std::filesystem::remove(folder + "/" + name);
    std::filesystem::create_symlink("../blobs/none", folder + "/" + name);
    const Status status = convert({folder, dir / "m", {}, false}).status();
    CHECK(status.code() == Code::NotFound);
    CHECK_MESSAGE(status.message().find(part) != std::string::npos, status.message());
  };
  says(dir / "one", "model.safetensors",
       "model.safetensors: it is a link to ../blobs/none, and nothing is there");
  says(dir / "several", "1.safetensors", "are missing: 1.safetensors (a link to nothing)");
  says(dir / "several", "config.json", "config.json: it is a link to ../blobs/none");
}

TEST_CASE("convert: source and destination") {
  TempDir dir;
  Source().write(dir / "src");
  const auto fails = [&](const ConvertOptions& options, Code code, const std::string& part) {
    const auto summary = convert(options);
    REQUIRE(!summary.ok());
    CHECK(summary.status().code() == code);
    CHECK_MESSAGE(summary.status().message().find(part) != std::string::npos, summary.status().message());
  };
  fails({dir / "none", dir / "m", {}, false}, Code::NotFound, "there is no such folder");
  fails({dir / "src/config.json", dir / "m", {}, false}, Code::InvalidArgument,
        "it is a file, expected a folder; give the one");
  std::filesystem::create_directory(dir / "empty");
  fails({dir / "empty", dir / "m", {}, false}, Code::NotFound, "it has no config.json");
  fails({dir / "src", dir / "none/m", {}, false}, Code::NotFound, "No such file");
  fails({dir / "src", dir / "empty", {}, true}, Code::InvalidArgument, "is not a file");
  fails({dir / "src", dir / "m", DType::I32, false}, Code::InvalidArgument, "cannot be stored as I32");
  std::filesystem::create_symlink("nothing", dir / "link");
  for (const bool force : {false, true})
    fails({dir / "src", dir / "link", {}, force}, Code::InvalidArgument, "it is a link to nothing");
  CHECK(std::filesystem::is_symlink(dir / "link"));

  spill(dir / "m", "precious");
  fails({dir / "src", dir / "m", {}, false}, Code::InvalidArgument,
        "it exists; try another name, or --force");
  fails({dir / "src", dir / "m", {}, true}, Code::InvalidArgument,
        "not a packed file, which --force does not replace");
  CHECK(slurp(dir / "m") == "precious");
  fails({dir / "src", dir / "src/model.safetensors", {}, true}, Code::InvalidArgument,
        "--force does not replace");
  spill(dir / "m", "");
  CHECK(convert({dir / "src", dir / "m", {}, true}).ok());
  fails({dir / "src", dir / "m", {}, false}, Code::InvalidArgument, "it exists");
  CHECK(convert({dir / "src", dir / "m", DType::BF16, true}).ok());
  CHECK(PackFile::open(dir / "m")->find(Source::kMatrix)->entry.dtype == DType::BF16);

  // What was there stays when a forced conversion fails.
  const std::string before = slurp(dir / "m");
  spill(dir / "src/model.safetensors", "");
  CHECK(!convert({dir / "src", dir / "m", {}, true}).ok());
  CHECK(slurp(dir / "m") == before);
}

TEST_CASE("convert: progress, stopping, and a source that changes under it") {
  TempDir dir;
  Source().write(dir / "src");
  int64_t last = 0, total = 0;
  ConvertCallbacks callbacks;
  callbacks.progress = [&](int64_t done, int64_t all) {
    CHECK(done >= last);
    CHECK((done <= all || all == 0));  // 0: still comparing
    last = done;
    total = all;
    return true;
  };
  REQUIRE(convert({dir / "src", dir / "m", {}, false}, callbacks).ok());
  CHECK(last == total);
  CHECK(total > 100'000);

  // Stopped, it leaves what is done, and goes on from there.
  int calls = 0;
  callbacks.progress = [&](int64_t, int64_t) { return ++calls < 40; };
  const auto stopped = convert({dir / "src", dir / "n", {}, false}, callbacks);
  CHECK(stopped.status().code() == Code::Cancelled);
  CHECK_MESSAGE(stopped.status().message().find("the same command goes on") != std::string::npos,
                stopped.status().message());
  CHECK(calls == 40);
  CHECK(!std::filesystem::exists(dir / "n"));
  CHECK(std::filesystem::exists(dir / "n.partial"));
  CHECK(std::filesystem::exists(dir / "n.journal"));
  int64_t first = -1;
  callbacks.progress = [&](int64_t done, int64_t) {
    if (first < 0) first = done;
    return true;
  };
  REQUIRE(convert({dir / "src", dir / "n", {}, false}, callbacks).ok());
  CHECK(first > 0);
  CHECK(slurp(dir / "n") == slurp(dir / "m"));
  CHECK(!std::filesystem::exists(dir / "n.partial"));
  CHECK(!std::filesystem::exists(dir / "n.journal"));
  std::filesystem::remove(dir / "n");

  // Stopped before anything is done, it leaves nothing.
  callbacks.progress = [](int64_t, int64_t) { return false; };
  CHECK(convert({dir / "src", dir / "n", {}, false}, callbacks).status().code() == Code::Cancelled);
  CHECK(dir.names().size() == 2);

  callbacks.progress = [&](int64_t done, int64_t) {
    if (done > 1000) std::filesystem::resize_file(dir / "src/model.safetensors", 60'000);
    return true;
  };
  const auto summary = convert({dir / "src", dir / "n", {}, false}, callbacks);
  CHECK(summary.status().code() == Code::Corrupt);
  CHECK_MESSAGE(summary.status().message().find("the file ends before byte ") != std::string::npos,
                summary.status().message());
  CHECK(!std::filesystem::exists(dir / "n.partial"));
}

TEST_CASE("convert: a full disk") {
  TempDir dir;
  Source().write(dir / "src");
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const rlimit limit = {200'000, 200'000};
    setrlimit(RLIMIT_FSIZE, &limit);
    std::signal(SIGXFSZ, SIG_IGN);
    const auto summary = convert({dir / "src", dir / "m", {}, false});
    const bool good =
        summary.status().code() == Code::Io &&
        summary.status().message().find("may not be so large here at byte") != std::string::npos &&
        summary.status().message().find("the same command goes on") != std::string::npos;
    _exit(good ? 0 : 1);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  // What had room stays, and is not written again.
  CHECK(std::filesystem::exists(dir / "m.partial"));
  Notes notes;
  REQUIRE(convert({dir / "src", dir / "m", {}, false}, notes.callbacks()).ok());
  CHECK(notes.has("going on with an unfinished conversion"));
  REQUIRE(convert({dir / "src", dir / "n", {}, false}).ok());
  CHECK(slurp(dir / "m") == slurp(dir / "n"));
}
