// The skeleton that all decoder models share: embedding, pre-norm blocks with two residual adds, final norm, head. An
// architecture's builder (deepseek.cpp, gqa.cpp) adds its attention and its router.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "ggml-lite/ops.h"
#include "model/graphs.h"
#include "model/model.h"

namespace dsv3 {

// Trailing comments give shapes: T tokens, R output rows, d = hidden_size, H heads.
class DecoderBuilder {
 public:
  DecoderBuilder(const Model& model, const GraphOptions& options, const std::vector<lite::Stream>& streams,
                 StepGraph* out)
      : m(model), c(model.config()), o(options), streams_(streams), out_(*out), b(&out->graph) {
    in = out_.in = b.step_inputs(o.limits);
  }
  virtual ~DecoderBuilder() = default;

  Status main();

 protected:
  using Var = lite::Var;

  virtual Var attention(int layer, Var h) = 0;                  // [T, d] -> [T, d]
  virtual lite::RouteParams routing(int layer, Var* bias) = 0;  // how experts are chosen

  Var block(int i, Var x);  // h + Attn(norm h), then h + FFN(norm h)
  Var dense(int i, Var h);
  Var experts(int i, Var h);
  // What the host's experts of layer i add, computed on a GPU, group by group.
  void streamed_experts(int i, Var h, Var ids, Var weights, std::vector<Var>* parts);
  void make_groups();
  int brought_to(int layer) const;
  void head(Var x, const std::string& matrix, Var bias = Var::none());  // [R, d] -> logits [R, output_size]

  lite::FfnWeights swiglu(const std::string& prefix);
  Var linear(const std::string& prefix, Var x);  // with its bias if it has one
  Var norm(Var x, const std::string& name) { return b.rms_norm(x, weight(name), float(c.rms_norm_eps)); }
  Var rope(int i, Var x);
  Var weight(const std::string& name) { return b.weight(m.tensor(name)); }
  Var optional_weight(const std::string& name);
  Var stream(int index) { return b.stream(index, streams_[index]); }
  // Where following nodes run.
  void place(int layer, Role role) { b.set_device(o.placement.device(layer, role)); }
  void keep(const std::string& name, Var x);
  static std::string name(int layer, const char* rest) {
    return lite::str("model.layers.", layer, ".", rest);
  }

  const Model& m;
  const Config& c;
  const GraphOptions& o;
  const std::vector<lite::Stream>& streams_;
  StepGraph& out_;
  lite::Builder b;
  lite::StepInputs in;

 private:
  // Of the host's experts, brought to a GPU together; those that are still to come, in order.
  struct Group {
    int layer;
    lite::ExpertSet set;
    Var staged;
  };
  std::deque<Group> groups_;
};

}  // namespace dsv3
