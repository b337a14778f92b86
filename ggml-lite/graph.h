// A static computation graph: values, and the nodes that make them, in the order of execution.
//
// Built once (ops.h), laid out in memory (plan.h), then run any number of times (scheduler.h). Nothing in it changes
// between steps: what varies from step to step is the content of the input tensors (StepInputs), so a device may
// record the whole graph and replay it. Every value is sized for the largest step; how many of its leading rows are
// live in a step is read from StepInputs::counts.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "ggml-lite/status.h"
#include "ggml-lite/tensor.h"

namespace lite {

enum class Op : uint8_t {
  Embed,
  RmsNorm,
  LayerNorm,
  Linear,
  LinearPerHead,
  Rope,
  StreamWrite,
  StreamRead,
  AttentionLatent,
  AttentionExpanded,
  AttentionGrouped,
  AttentionMasked,
  Route,
  MoeFfn,
  SiluMul,
  Add,
  Concat,
  SelectRows,
  Copy,
  Stage,
};
const char* op_name(Op op);

// Index of a value in its graph; none() stands for an operand that is not there (a linear map without bias).
struct Var {
  int32_t id = -1;
  static Var none() { return {}; }
  explicit operator bool() const { return id >= 0; }
};

// Which count of the step says how many leading rows of a value are live.
enum class Rows : uint8_t { Fixed, Tokens, Outputs };

// How activations are rounded before they meet an FP8 matrix (arXiv:2412.19437, section 3.3.2): to e4m3 with one
// scale per 128 consecutive values, f32 or a power of two. Matrices of other types take them as they are.
enum class Rounding : uint8_t { None, F8, F8PowerOfTwo };

struct NormParams {
  float eps;
};
struct LinearParams {
  Rounding rounding = Rounding::None;
  bool f32 =
      false;  // activations stay f32 in every mode: what follows decides (a router) or is the result (a head)
};
struct LinearPerHeadParams {
  int64_t head_rows, row0, rows;
  bool transposed;
};
struct RopeParams {
  float scale;
  bool interleaved;
};
struct AttentionParams {
  float scale;
  int64_t context;     // most rows a sequence can have
  int64_t window = 0;  // a token sees itself and the window - 1 positions before it; 0: all before it
};
enum class Scoring : uint8_t { Softmax, Sigmoid };
enum class GroupScore : uint8_t { None, Largest, TwoLargest };
struct RouteParams {
  Scoring scoring;
  GroupScore group_score;
  int64_t n_group, topk_group, n_experts_per_token;
  bool normalize;
  float factor;
};
struct MoeParams {
  int32_t experts;
  Rounding rounding;
};
using Params = std::variant<std::monostate, NormParams, LinearParams, LinearPerHeadParams, RopeParams,
                            AttentionParams, RouteParams, MoeParams>;

struct Node {
  Op op;
  int device;
  std::vector<Var> in;
  std::vector<Var> out;
  Params params;
  Var counts;     // StepInputs::counts on the node's device
  Var workspace;  // scratch that the device asked for; made by plan()
};

// One network: SwiGLU down(silu(gate x) * up x), or GELU down(gelu(up x + up_bias)) + down_bias.
struct FfnWeights {
  Tensor gate, up, down;
  Tensor up_bias, down_bias;
};
enum class Activation : uint8_t { SwiGlu, Gelu };

// The experts of one layer that live on one device.
struct ExpertSet {
  std::vector<int32_t> slot_of_expert;  // [experts] index into `slots`, or -1: held by another device
  std::vector<FfnWeights> slots;
  Activation activation = Activation::SwiGlu;
  bool has_shared = false;  // a shared expert, added with weight 1
  FfnWeights shared;
};

// A row store that outlives the step: one row of `width` values for every cached token. Shared by the graphs of a
// session; rows are addressed through block tables (kv.h).
struct Stream {
  std::string name;
  DType dtype;
  int64_t width;
  int device;
};

// Where a value's bytes are.
enum class Kind : uint8_t {
  Weight,      // memory of the model, known when the graph is built
  Input,       // written by the caller before a step
  Activation,  // made by a node, gone when nobody reads it any more
  Kept,        // an activation that the caller reads after the step
  Workspace,   // one node's scratch
  Stream,      // memory of the session
};

struct Storage {
  Kind kind;
  int device;
  int64_t bytes = 0;
  int32_t stream = -1;
  std::byte* data = nullptr;  // set by bind() unless a weight
};

struct Value {
  Tensor tensor;  // data: null until bound
  Rows rows = Rows::Fixed;
  int device = 0;
  int32_t storage = -1;
  int64_t offset = 0;  // bytes into the storage
};

class Graph {
 public:
  std::vector<Value> values;
  std::vector<Storage> storages;
  std::vector<Node> nodes;
  std::vector<ExpertSet> experts;
  Var counts;  // StepInputs::counts as the caller writes it

  const Value& value(Var v) const { return values[v.id]; }
  const Tensor& tensor(Var v) const { return values[v.id].tensor; }
  // Live leading rows of a value in the step that `node` is part of.
  int64_t live_rows(const Node& node, Var v) const;
};

// Positions in StepInputs::counts.
enum Count { kTokens, kSequences, kOutputs, kPhase, kCounts };

// What the caller says a step is. A device may compute the two by different kernels, and so give a row other bits; it
// never chooses by the number of rows.
enum Phase : int32_t { kDecode, kPrompt };

// Everything that varies between steps; all I32, on device 0, written by the caller.
//   counts    [4]      tokens T, sequences S, output rows R of this step, and its Phase
//   ids       [T]      token ids
//   positions [T]      place of each token in its sequence
//   kv_rows   [T]      row of every stream that belongs to the token
//   seqs      [S, 3]   first token, number of tokens, and cached rows including these; tokens of a sequence are
//                      consecutive
//   blocks    [S, B]   block table: position p of sequence s is row blocks[s][p / kBlockRows] * kBlockRows + p % kBlockRows
//   out_rows  [R]      tokens whose logits are wanted
struct StepInputs {
  Var counts, ids, positions, kv_rows, seqs, blocks, out_rows;
};
struct StepLimits {
  int64_t tokens, sequences, blocks, outputs;
};

}  // namespace lite
