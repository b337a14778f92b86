// What ops take of a GPU beside weights and values, and what they are not made for: by shapes alone. Plain code that every build
// has, so that a plan is exact to the byte also where CUDA is not built in; kernels take their workspaces apart by the same functions.
#pragma once

#include <algorithm>
#include <span>

#include "ggml-lite/carver.h"
#include "ggml-lite/graph.h"
#include "ggml-lite/plan.h"

#ifdef __CUDACC__
#define LITE_BOTH __host__ __device__
#else
#define LITE_BOTH
#endif

namespace lite::cuda {

constexpr int kWarp = 32;
// Shared memory of a block: what every launch gets, and what it gets on every GPU by asking, as launch() does.
constexpr int64_t kSharedBytes = 48 << 10, kSharedMost = 99 << 10;
constexpr int64_t kGridX = 0x7FFFFFFF, kGridYZ = 65535;  // most blocks in a direction

constexpr int kStageThreads = 256, kStageWarps = kStageThreads / kWarp;  // of a stage's block (stage.h)
constexpr int kTogether = 8;  // rows of activations that meet a row of weights while it passes

// Unsupported: the op's kernels are not made for the node. Scratch that running it takes.
Status check_node(const Graph& g, const Node& n);
int64_t node_workspace(const Graph& g, const Node& n, bool exact);

// Whether a decode step makes the node and the next one, which adds something to its result, by one stage.
bool joins_next(const Graph& g, int32_t node);

// ---- recordings

// A step is recorded for every power of two of its rows, up to that of the largest that the graph has room for.
int64_t recorded_rows(int64_t rows);
int64_t most_rows(const Graph& g);

// Of a stage in a program (program.h), its arguments being at most so many.
constexpr int64_t kArgumentBytes = 352, kStageBytes = kArgumentBytes + 48;

// The experts of a moe_ffn as its kernels read them: bytes to be brought to the device's memory at an address that is given
// beforehand, once for the life of the graph.
constexpr int64_t kNetworkBytes = 296;
int64_t moe_table_bytes(const ExpertSet& experts);

// The program of a segment's decode steps of up to so many rows.
int64_t program_bytes(const Graph& g, const Segment& segment, int64_t rows);

// All that recording steps of these phases takes: the tables of experts, and programs of decode steps.
int64_t recording_bytes(const Graph& g, const Plan& plan, int device, std::span<const Phase> phases);

// ---- products of prompts by the matrix unit (tile.h)

constexpr int kTileChunk = 64;        // columns of a chunk
constexpr int64_t kRoundGroup = 128;  // values of a row that are rounded by one scale (Rounding in graph.h)

// Of other weights bf16 does not hold every value.
inline bool held_by_bf16(DType dtype) {
  return dtype == DType::F8_E4M3 || dtype == DType::BF16;
}

// Rows of activations as tiles take them.
struct RoundedRows {
  uint16_t* data;  // bf16 [rows, stride], zeros from a row's end to the next whole chunk
  float* factor;   // [rows, groups] of kRoundGroup values each, or null: all are 1
  int64_t stride, groups;
};
// Room for them in a workspace; to_f8: rounded to e4m3 (Rounding), else only to bf16.
RoundedRows carve_rounded(Carver* carve, int64_t rows, int64_t n, bool to_f8);

// Whether a linear map's activations are rounded to e4m3.
bool rounds_linear(const Graph& g, const Node& n);
RoundedRows rounded_of_linear(const Graph& g, const Node& n, Carver* carve);

// ---- moe_ffn

struct MoeTask {
  int32_t network, first, n;  // pairs list[first, first + n) go through this network
};

// Pair t * (K + 1) + j is token t's j-th expert, j = K the shared one. Workspace of a node, sized for the largest step:
struct MoeWorkspace {
  MoeTask* tasks;
  int32_t *n_tasks, *list;
  float *rounded, *hidden, *result;  // [T, d]; [pairs, width]; [pairs, d]
  int64_t bytes;
};
MoeWorkspace moe_workspace(const Graph& g, const Node& n, std::byte* memory);

// What prompts have behind it.
constexpr int kSortPairs = 1024;  // pairs that a block sorts
struct MoePromptWorkspace {
  int32_t* counts;  // [blocks of pairs, networks]; then where a block's pairs of a network begin in the list
  RoundedRows x, hidden;
  int64_t bytes;
};
MoePromptWorkspace moe_prompt_workspace(const Graph& g, const Node& n, bool exact, std::byte* memory);

const ExpertSet& experts_of(const Graph& g, const Node& n);
int64_t width_of(const ExpertSet& set);  // of the widest hidden row
// Every network's types alike, so that one kernel does all.
struct ExpertTypes {
  DType up, down;
};
ExpertTypes types_of(const ExpertSet& set);
// Most tasks of so many pairs: every network may have one that is not full.
int64_t most_tasks(int64_t pairs, int64_t networks, int pairs_per_task);

// Decode steps (stages/experts.h): pairs of one network that are met together; what the blocks of two stages share.
struct PairTask {
  int32_t network, n;
  int32_t pair[kTogether], token[kTogether];
};
int64_t pair_group_bytes(int64_t pairs);
int64_t hidden_shared_bytes(int64_t pairs);
int64_t down_shared_bytes(int64_t pairs);

// ---- products in f32 (gemv.h)

constexpr int kGemvRows = 4;  // rows of the weights that a warp has
// What a block shares: the weights that its warps have on their way, and their sums.
constexpr int64_t kRingBytes = 4 << 10, kRingsBytes = kStageWarps * kRingBytes;
constexpr int64_t kSumsBytes = kStageWarps * kGemvRows * kTogether * int64_t(sizeof(float));

// ---- route: what a token has of shared memory: scores and choices of the experts, the groups' scores, and what has been chosen

int64_t route_bytes(int64_t experts, const RouteParams& p);

// ---- attention in f32 (stages/attention.h)

constexpr int kAttentionChunk = 64;  // positions between two merges of the softmax, at fixed multiples
constexpr int kAttentionHeads = 8;   // most heads of one block

// Values of a head's query and result, and what a block has of shared memory for them. Its threads take pairs of values, and
// where these are fewer, turns at the positions: then it has several sets of sums.
struct AttentionSizes {
  int64_t query, value;

  LITE_BOTH int query_row() const { return int(query + query % 2); }
  LITE_BOTH int pairs() const { return int(value + 1) / 2; }
  LITE_BOTH int sets() const { return pairs() < kStageThreads ? kStageThreads / pairs() : 1; }
  int64_t heads_of_block(int64_t heads_per_group) const;  // as many as there is room for, perhaps none
  int64_t shared_bytes(int64_t heads) const;

 private:
  int64_t bytes_of_head() const;
};

// Parts that a token's context comes in at most in a decode step, tokens whose parts are kept at a time, and bytes of these.
constexpr int64_t kTokenGroup = 8;
int64_t split_of_heads(int64_t heads);
int64_t most_parts(int64_t context, int64_t heads);

// Scratch of attention_expanded: the query and the result in the latent space, [T, H, r] each, and the parts.
struct ExpandedWorkspace {
  float *query, *result, *partials;
  int64_t bytes;
};
ExpandedWorkspace expanded_workspace(const Graph& g, const Node& n, std::byte* memory);

// ---- attention of prompts by the matrix unit (attention_prompt.cu)

constexpr int kAttentionTile = 64;  // positions, and rows of queries
constexpr int kExpandSide = 2 * kAttentionTile;
constexpr int kMostKey = 192, kMostValue = 128;  // values of a padded key and of a value

LITE_BOTH constexpr int64_t padded(int64_t n) {
  return (n + 15) / 16 * 16;
}
LITE_BOTH constexpr int64_t tiles_of(int64_t n, int tile = kAttentionTile) {
  return (n + tile - 1) / tile;
}

// attention_expanded and attention_grouped: whether there is a kernel for the node's sizes.
bool has_prompt_attention(const Graph& g, const Node& n);

// Tiles that `tokens` tokens' sequences can have at most, a sequence being of some token.
int64_t most_tiles(const Graph& g, const Node& n, int64_t tokens);

// Scratch of attention_expanded there. A chunk has 8 positions for each token of the largest step, which for the latents and
// heads of the largest models is the memory that the f32 kernels need; so the rounds are few, however long a context may be.
struct PromptAttentionWorkspace {
  int64_t chunk;   // tiles, an even number
  uint16_t* rows;  // expanded keys and values
  float* state;    // [T, H, 2] largest score and sum of exponentials between rounds
  int64_t bytes;
};
PromptAttentionWorkspace prompt_attention_workspace(const Graph& g, const Node& n, std::byte* memory);

}  // namespace lite::cuda
