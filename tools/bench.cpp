// dsv3 bench: prompts and decoding of a model, against what the machine can do in the same moment.
#include <algorithm>
#include <numeric>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "tools/common.h"

namespace tools {
namespace {

using nlohmann::ordered_json;

struct BenchOptions {
  std::string model, versus;
  int32_t prompt = 512, generate = 32, repeat = 5;
  std::vector<int32_t> depths = {0};
  bool json = false, csv = false, markdown = false;
  ComputeOptions compute;
};

// One setting under test: a model opened with it, and a session.
struct Setting {
  std::string name;
  Model model;
  Session session;
};

// What one setting did at one depth, in every round, and the ceilings measured around it.
struct Samples {
  std::vector<double> seconds;
  std::vector<dsv3_ceilings> ceilings;
  // Of a session divided between devices: per token.
  double crossings = 0, crossed_bytes = 0;
  std::vector<double> waited;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n == 0 ? 0 : n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

struct FreeMeter {
  void operator()(dsv3_meter* meter) const { dsv3_meter_free(meter); }
};
using Meter = std::unique_ptr<dsv3_meter, FreeMeter>;

class Bench {
 public:
  explicit Bench(const BenchOptions& o) : o_(o) {
    add_setting("", o.compute);
    if (!o.versus.empty()) add_setting(o.versus, versus_options());
    info_ = get_info(settings_[0].model);
    dsv3_meter* meter = nullptr;
    check(dsv3_meter_new(settings_[0].model.get(), o.compute.n_threads, &meter));
    meter_.reset(meter);
  }

  ordered_json run() {
    ordered_json rows = ordered_json::array();
    for (const int32_t depth : o_.depths) {
      std::vector<Samples> prefill(settings_.size()), decode(settings_.size());
      for (Setting& s : settings_) {
        truncate(s, 0);
        if (depth) evaluate(s, tokens(depth, 0), DSV3_PHASE_PROMPT);
      }
      // Settings take turns, so that all see the machine in the same states; the first round warms up.
      for (int32_t round = 0; round <= o_.repeat; ++round)
        for (size_t i = 0; i < settings_.size(); ++i) {
          Setting& s = settings_[i];
          if (o_.prompt) {
            sample(&prefill[i], round > 0, [&] { evaluate(s, tokens(o_.prompt, depth), DSV3_PHASE_PROMPT); });
            truncate(s, depth);
          }
          if (o_.generate) {
            const dsv3_session_stats before = stats(s);
            sample(&decode[i], round > 0, [&] {
              for (int32_t n = 0; n < o_.generate; ++n) evaluate(s, tokens(1, depth + n), DSV3_PHASE_DECODE);
            });
            if (round > 0) add_crossings(&decode[i], before, stats(s));
            truncate(s, depth);
          }
        }
      for (size_t i = 0; i < settings_.size(); ++i)
        rows.push_back(row(settings_[i], depth, prefill[i], decode[i]));
    }
    return rows;
  }

 private:
  void add_setting(const std::string& name, const ComputeOptions& compute) {
    Model model = open_model(o_.model, compute);
    dsv3_session_options options = compute.session_options();
    const int32_t deepest = *std::max_element(o_.depths.begin(), o_.depths.end());
    options.context = deepest + std::max({o_.prompt, o_.generate, 1});
    if (compute.batch == 0) options.max_batch_tokens = 2048;
    options.max_batch_tokens = std::max(1, std::min(options.context, options.max_batch_tokens));
    Session session = new_session(model, options);
    settings_.push_back({name, std::move(model), std::move(session)});
  }

  ComputeOptions versus_options() const {
    ComputeOptions compute = o_.compute;
    CLI::App parser("the other setting");
    compute.add_to(&parser);
    compute.add_batch_to(&parser);
    try {
      parser.parse(o_.versus);
    } catch (const CLI::ParseError& e) {
      fail("--versus \"", o_.versus, "\": ", e.what());
    }
    return compute;
  }

  // Any ids do: they go through every id in a fixed, uneven order.
  std::vector<int32_t> tokens(int32_t n, int32_t position) const {
    std::vector<int32_t> ids(static_cast<size_t>(n));
    for (int32_t i = 0; i < n; ++i)
      ids[size_t(i)] = int32_t(uint64_t(position + i) * 2654435761u % uint64_t(info_.vocab_size));
    return ids;
  }

  void evaluate(const Setting& s, const std::vector<int32_t>& ids, dsv3_phase phase) const {
    dsv3_batch batch = {};
    batch.struct_size = sizeof batch;
    batch.n = int32_t(ids.size());
    batch.token = ids.data();
    batch.phase = phase;
    check(dsv3_eval(s.session.get(), &batch));
  }
  static void truncate(const Setting& s, int32_t length) {
    if (dsv3_seq_length(s.session.get(), 0) > length) check(dsv3_seq_truncate(s.session.get(), 0, length));
  }

  template <class Work>
  void sample(Samples* samples, bool counts, Work&& work) {
    const dsv3_ceilings before = measure();
    const double start = seconds();
    work();
    const double taken = seconds() - start;
    const dsv3_ceilings after = measure();
    if (!counts) return;
    samples->seconds.push_back(taken);
    dsv3_ceilings mean = before;
    for (double dsv3_ceilings::*one :
         {&dsv3_ceilings::read_GBps, &dsv3_ceilings::f32_GFLOPS, &dsv3_ceilings::matrix_GFLOPS,
          &dsv3_ceilings::gpu_copy_GBps, &dsv3_ceilings::gpu_matrix_GFLOPS, &dsv3_ceilings::link_GBps})
      mean.*one = (before.*one + after.*one) / 2;
    samples->ceilings.push_back(mean);
  }
  dsv3_ceilings measure() const {
    dsv3_ceilings c = {};
    c.struct_size = sizeof c;
    check(dsv3_meter_measure(meter_.get(), &c));
    return c;
  }

  static dsv3_session_stats stats(const Setting& s) {
    dsv3_session_stats now = {};
    now.struct_size = sizeof now;
    check(dsv3_session_get_stats(s.session.get(), &now));
    return now;
  }
  void add_crossings(Samples* samples, const dsv3_session_stats& before, const dsv3_session_stats& after) {
    samples->crossings = double(after.decode_crossings - before.decode_crossings) / o_.generate;
    samples->crossed_bytes = double(after.decode_crossed_bytes - before.decode_crossed_bytes) / o_.generate;
    samples->waited.push_back((after.decode_waited - before.decode_waited) / o_.generate);
    divided_ = divided_ || samples->crossings > 0;
  }

  // Median over the rounds of f(seconds, ceilings).
  template <class F>
  static double over(const Samples& s, F&& f) {
    std::vector<double> values;
    for (size_t i = 0; i < s.seconds.size(); ++i) values.push_back(f(s.seconds[i], s.ceilings[i]));
    return median(values);
  }
  static double over(const Samples& s, double dsv3_ceilings::*ceiling) {
    return over(s, [&](double, const dsv3_ceilings& c) { return c.*ceiling; });
  }
  // Prompts may use every device's matrix units.
  static double matrix_GFLOPS(const dsv3_ceilings& c) { return c.matrix_GFLOPS + c.gpu_matrix_GFLOPS; }
  static dsv3_bound bound(const Setting& s, int64_t context, const dsv3_ceilings& c) {
    dsv3_bound b = {};
    b.struct_size = sizeof b;
    check(dsv3_session_bound(s.session.get(), context, &c, &b));
    return b;
  }

  ordered_json row(const Setting& s, int32_t depth, const Samples& prefill, const Samples& decode) const {
    ordered_json r;
    r["setting"] = s.name;
    r["depth"] = depth;
    if (!prefill.seconds.empty()) {
      // Multiply-adds of the weights; attention's come on top and are not counted.
      const double flop = 2.0 * double(info_.parameters_per_token) * o_.prompt;
      r["prompt"] = o_.prompt;
      r["prefill_tok_s"] = o_.prompt / median(prefill.seconds);
      r["prefill_TFLOPS"] = flop / median(prefill.seconds) / 1e12;
      r["matrix_ceiling_TFLOPS"] =
          over(prefill, [](double, const dsv3_ceilings& c) { return matrix_GFLOPS(c) / 1e3; });
      r["prefill_share"] =
          over(prefill, [&](double t, const dsv3_ceilings& c) { return flop / t / 1e9 / matrix_GFLOPS(c); });
    }
    if (!decode.seconds.empty()) {
      const int64_t context = depth + o_.generate / 2;  // on average
      const double bytes = o_.generate * bound(s, context, decode.ceilings[0]).bytes;
      r["generate"] = o_.generate;
      r["decode_tok_s"] = o_.generate / median(decode.seconds);
      r["decode_GBps"] = bytes / median(decode.seconds) / 1e9;
      r["read_ceiling_GBps"] = over(decode, &dsv3_ceilings::read_GBps);
      if (decode.ceilings[0].gpu_copy_GBps > 0) {
        r["gpu_ceiling_GBps"] = over(decode, &dsv3_ceilings::gpu_copy_GBps);
        r["link_ceiling_GBps"] = over(decode, &dsv3_ceilings::link_GBps);
      }
      r["decode_share"] = over(decode, [&](double t, const dsv3_ceilings& c) {
        return o_.generate * bound(s, context, c).seconds / t;
      });
      if (divided_) {
        r["crossings"] = decode.crossings;
        r["crossed_kB"] = decode.crossed_bytes / 1e3;
        r["waited_us_per_layer"] = median(decode.waited) * 1e6 / info_.n_layers;
      }
    }
    return r;
  }

  const BenchOptions& o_;
  std::vector<Setting> settings_;
  dsv3_model_info info_ = {};
  bool divided_ = false;  // a setting, between devices
  Meter meter_;
};

std::string cell(const ordered_json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_integer()) return std::to_string(value.get<int64_t>());
  return decimal(value.get<double>(), value.get<double>() < 10 ? 3 : 1);
}

void print(const BenchOptions& o, const ordered_json& rows) {
  if (o.json) {
    write_stdout(rows.dump(2) + "\n");
    return;
  }
  const std::string between = o.csv ? "," : " | ", begin = o.csv ? "" : "| ", end = o.csv ? "\n" : " |\n";
  std::string out;
  for (bool head = true; const ordered_json& r : rows) {
    std::string names, rule, values;
    for (const auto& [name, value] : r.items()) {
      if (o.versus.empty() && name == "setting") continue;
      names += (names.empty() ? "" : between) + name;
      rule += rule.empty() ? "---" : "|---";
      values += (values.empty() ? "" : between) + cell(value);
    }
    if (head) out += begin + names + end + (o.csv ? "" : "|" + rule + "|\n");
    head = false;
    out += begin + values + end;
  }
  write_stdout(out);
}

}  // namespace

void add_bench(CLI::App* program) {
  const auto o = std::make_shared<BenchOptions>();
  CLI::App* command = program->add_subcommand(
      "bench", "Speed of prompts and decoding, and its share of what the machine can do");
  command->add_option("MODEL", o->model, "packed file")->required();
  command->add_option("--prompt", o->prompt, "tokens of a prompt; 0: no prompts")
      ->check(number(0, 1 << 20))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--generate", o->generate, "tokens to decode; 0: none")
      ->check(number(0, 1 << 20))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--depth", o->depths, "tokens in the context before, one row for each")
      ->delimiter(',')
      ->check(number(0, 1 << 24))
      ->type_name("N,N");
  command->add_option("--repeat", o->repeat, "rounds; medians are printed")
      ->check(number(1, 1000))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--versus", o->versus,
                      "options of a second setting, \"--isa avx2 --exact\"; the two take turns in one run");
  CLI::Option* json = command->add_flag("--json", o->json, "a JSON list");
  CLI::Option* csv = command->add_flag("--csv", o->csv, "comma-separated values")->excludes(json);
  command->add_flag("--markdown", o->markdown, "a Markdown table (default)")->excludes(json)->excludes(csv);
  o->compute.add_to(command);
  o->compute.add_batch_to(command);
  command->callback([o] {
    catch_signals();
    print(*o, Bench(*o).run());
  });
}

}  // namespace tools
