/* dsv3: runs DeepSeek-V3-family Mixture-of-Experts language models from one packed weight file.
 *
 * This header is the library's specification. It is C99 and C++; nothing else of the project is needed to use it.
 *
 *     dsv3_model *model;  dsv3_session *session;
 *     dsv3_model_open("model.dsv3", NULL, &model);
 *     dsv3_session_new(model, NULL, &session);
 *     dsv3_eval(session, &(dsv3_batch){.struct_size = sizeof(dsv3_batch), .n = n, .token = ids});
 *     dsv3_sample(session, n - 1, NULL, seed, &id);
 *
 * Conventions
 *   Status     Every call that can fail returns dsv3_status, 0 for success; its output parameters are written only on
 *              success. dsv3_last_error() is the calling thread's last failure in words: what failed, on which
 *              object, what was found, what was expected, what to try.
 *   Handles    are opaque; freeing NULL does nothing. Pointers given out stay the library's; each comment says for
 *              how long they hold.
 *   Structs    of options start with struct_size, to be set to sizeof the struct: a program built against an older
 *              header goes on working, and one built against a newer header too, unless it sets an option that this
 *              library does not know (UNSUPPORTED). NULL means all defaults; so does a zero field unless its comment
 *              differs.
 *   Units      bytes are int64_t or size_t, counts of tokens int32_t. Text is UTF-8 bytes with a length, at most 2^31-1
 *              (a negative number, or one gone wrong, is more: INVALID_ARGUMENT).
 *   Threads    Each comment says who may call. "Any thread": at any time, beside any other call but the one that ends the
 *              handle. "One thread": no two such calls on the same session run at a time. Evaluations of
 *              one model's sessions wait for each other. Callbacks run on the calling thread and must not call the
 *              library on the same model or its sessions, dsv3_cancel excepted.
 *   Promises   The library never prints, exits, reads the environment or lets an exception out.
 */
#ifndef DSV3_H
#define DSV3_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define DSV3_API __attribute__((visibility("default")))
#else
#define DSV3_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Programs work with every library of the same number: calls and fields are added under it, never changed. */
#define DSV3_ABI_VERSION 1

/* The library's DSV3_ABI_VERSION. Any thread. */
DSV3_API int32_t dsv3_abi_version(void);

/* ---- status ---------------------------------------------------------------------------------------------- */

/* What the caller can do next. Numbers are fixed; new ones are only added. */
typedef enum dsv3_status {
  DSV3_OK = 0,
  DSV3_INVALID_ARGUMENT = 1, /* fix the call: null, out of range, wrong size */
  DSV3_NOT_FOUND = 2,        /* fix the path or the name */
  DSV3_IO = 3,               /* look at the disk */
  DSV3_CORRUPT = 4,          /* get the file again: checksum, offset outside the file, damaged index */
  DSV3_UNSUPPORTED = 5,      /* another model or option, or a newer program */
  DSV3_OUT_OF_MEMORY = 6,    /* smaller context or batch; the message has the numbers */
  DSV3_CONTEXT_FULL = 7,     /* truncate or free a sequence */
  DSV3_BUSY = 8,             /* something else must end first: a model with live sessions cannot be closed */
  DSV3_CANCELLED = 9,        /* as asked, by dsv3_cancel or a progress callback */
  DSV3_DEVICE = 10,          /* the device failed; the session is dead */
  DSV3_INTERNAL = 99         /* a bug of ours */
} dsv3_status;

/* The calling thread's last failure, "" before the first: one line, at most some 2000 bytes. Holds until the
 * thread's next failing call. Never null. Any thread. */
DSV3_API const char* dsv3_last_error(void);

/* "invalid argument", "corrupt", ...; "unknown status" for a number that is none. Static. Any thread. */
DSV3_API const char* dsv3_status_name(dsv3_status status);

/* Version, git id, backends and instruction sets of this build and machine, one fact a line. Static. Any
 * thread. */
DSV3_API const char* dsv3_version(void);

/* ---- model ----------------------------------------------------------------------------------------------- */

typedef struct dsv3_model dsv3_model;

/* Called with 0 <= done <= total while a long call works; a value other than 0 stops it (DSV3_CANCELLED). */
typedef int (*dsv3_progress)(void* user, int64_t done, int64_t total);

typedef enum dsv3_log_level { DSV3_LOG_WARNING = 1, DSV3_LOG_INFO = 2 } dsv3_log_level;
typedef void (*dsv3_log)(void* user, dsv3_log_level level, const char* text); /* one line, no newline */

typedef struct dsv3_model_options {
  uint32_t struct_size;
  int32_t verify; /* not 0: compare all data with its checksums first, at the speed of the disk */
  /* "cpu", the fast one (default); "ref", the reference: scalar f32, slow; "cuda" or "cuda:N", the first NVIDIA GPU or that
   * of number N, if this build has it: all the work and the memory are there, or what sessions place there. "auto": the first
   * GPU that can be used, or else "cpu"; the log says which, and why. */
  const char* backend;
  /* Instruction-set path of "cpu": "auto" (default), the best this machine has, or "portable", "avx2", "avx512",
   * "avx512bf16", "avx512fp16", "amx". UNSUPPORTED when the machine has not got it, or there is none of that name. */
  const char* isa;
  /* Warnings, also of the model's sessions when they are made, and at opening one line that says what computes
   * (DSV3_LOG_INFO); default none */
  dsv3_log log;
  void* log_user;
  /* Of the verification and then of the copy, in bytes: only these can be stopped. Without either it is never called:
   * opening reads the file's index and its small files. */
  dsv3_progress progress;
  void* progress_user;
  /* "map" (default): weights stay in the file, mapped, and pages are read as they are used. "copy": all are read into this
   * process's memory now, in huge pages, and on a machine of several NUMA nodes each matrix is divided among these. */
  const char* load;
} dsv3_model_options;

/* Opens a packed file made by dsv3-convert.
 * Errors: NOT_FOUND (also a GPU of that number), IO, CORRUPT, UNSUPPORTED (version, architecture, backend, instruction
 * set), OUT_OF_MEMORY (the copy), DEVICE (no GPU, or no driver for it), CANCELLED. Any thread. */
DSV3_API dsv3_status dsv3_model_open(const char* path, const dsv3_model_options* options, dsv3_model** model);

/* BUSY while a session of the model is alive; then nothing changes. One thread, when no other uses the model. */
DSV3_API dsv3_status dsv3_model_close(dsv3_model* model);

/* What the head computes for a position. */
typedef enum dsv3_task {
  DSV3_TASK_CAUSAL_LM = 0, /* logits of the next token */
  DSV3_TASK_SEQUENCE_CLASSIFICATION =
      1, /* logits of the labels, read at one position: dsv3_classified_position */
  DSV3_TASK_TOKEN_CLASSIFICATION = 2, /* logits of the labels, for every position */
  DSV3_TASK_QUESTION_ANSWERING = 3,   /* two logits: that an answer starts here, that it ends here */
  DSV3_TASK_LAYER = 4                 /* none: a single layer, see dsv3_layer_eval */
} dsv3_task;

typedef struct dsv3_model_info {
  uint32_t struct_size; /* set by the caller */
  int32_t vocab_size;   /* ids are 0..vocab_size-1 */
  int32_t hidden_size;
  int32_t n_layers; /* without multi-token-prediction layers */
  int32_t n_mtp_layers;
  int32_t max_position_embeddings; /* longest sequence the model was made for */
  int64_t n_parameters;            /* of everything in the file; aliases once */
  int64_t file_bytes;
  int64_t bytes_per_token;     /* of weights that decoding one token reads */
  int64_t kv_values_per_token; /* cached values of one token, all layers (without the MTP layers) */
  const char* architecture;    /* "deepseek_v2", "deepseek_v3", ...: holds as long as the model */
  const char* model_type;      /* config.json's: also "kimi_k2" */
  const char* id;              /* 32 hex digits, equal for files that compute the same */
  dsv3_task task;
  int32_t n_outputs;           /* logits per row: vocab_size, the number of labels, or 2 */
  int32_t pad_token_id;        /* -1: none */
  int32_t n_experts_per_token; /* most that any layer chooses; 0: no layer has experts */
  int64_t
      parameters_per_token; /* weights that a token of a prompt is multiplied with: all layers', not the head's */
} dsv3_model_info;

/* Any thread. */
DSV3_API dsv3_status dsv3_model_get_info(const dsv3_model* model, dsv3_model_info* info);

/* Name of label i of a classification model, from config.json's id2label. Holds as long as the model; null for an i
 * that is none. Any thread. */
DSV3_API const char* dsv3_model_label(const dsv3_model* model, int32_t i);

/* Everything about the model as one JSON object: "config" (effective), "layers" (each layer's effective
 * configuration and bytes per role), "tensors" (name, dtype, shape, role, bytes, scale blocks), "sections",
 * "provenance". Built at the first call (some MB for a large model); holds as long as the model. Any thread. */
DSV3_API dsv3_status dsv3_model_describe(dsv3_model* model, const char** json);

/* ---- verification ------------------------------------------------------------------------------------------ */

typedef struct dsv3_verify_options {
  uint32_t struct_size;
  dsv3_log damage; /* a line for each damaged extent, with the names of its tensors; default none */
  void* damage_user;
  dsv3_progress progress; /* in bytes, about twenty times a second */
  void* progress_user;
} dsv3_verify_options;

/* Compares all data of a packed file with its checksums, at the speed of the disk; a few threads, a MB each. Goes
 * on to the end whatever it finds. Opening a file, here and elsewhere, has compared the rest of it, the index, already:
 * so any changed bit is found. It compares bytes and looks at nothing they mean: what it finds whole may still be refused
 * when it is opened as a model (a section of an unknown name, say). Errors: CORRUPT when anything differs or cannot be
 * read, NOT_FOUND, IO, UNSUPPORTED, CANCELLED. Any thread. */
DSV3_API dsv3_status dsv3_verify(const char* path, const dsv3_verify_options* options);

/* ---- text ------------------------------------------------------------------------------------------------ */

/* Any thread may call these functions, also on the same tokenizer, which nothing changes. */
typedef struct dsv3_tokenizer dsv3_tokenizer;

/* From a packed file or a checkpoint folder; weights are not needed. NOT_FOUND when it has no tokenizer,
 * UNSUPPORTED (by name) when the tokenizer asks for something not implemented. */
DSV3_API dsv3_status dsv3_tokenizer_open(const char* path, dsv3_tokenizer** tokenizer);
DSV3_API void dsv3_tokenizer_free(dsv3_tokenizer* tokenizer);

/* The model's own; holds as long as the model and is not to be freed. NOT_FOUND when the checkpoint had none. */
DSV3_API dsv3_status dsv3_model_tokenizer(dsv3_model* model, const dsv3_tokenizer** tokenizer);

enum {
  DSV3_PARSE_ADDED =
      1,        /* recognise added tokens in the text ("<|User|>"); without it they are plain text, but for a
                           vocabulary's own token for the unknown (Mixtral's "<unk>"), as in the reference */
  DSV3_BOS = 2, /* put the beginning-of-sentence token in front */
  DSV3_BOS_AUTO = 4 /* the same, iff the checkpoint's tokenizer does so by itself */
};

/* n_bytes of text to ids. Writes at most `capacity` ids; *n_ids is the full count even when it is larger (then call
 * again with room; `ids` may be null when capacity is 0). INVALID_ARGUMENT for DSV3_BOS without such a token. */
DSV3_API dsv3_status dsv3_tokenize(const dsv3_tokenizer* tokenizer, const char* text, size_t n_bytes,
                                   uint32_t flags, int32_t* ids, size_t capacity, size_t* n_ids);

typedef struct dsv3_span {
  size_t begin, end; /* bytes begin..end-1 of a text */
} dsv3_span;

/* The same, and for each id the bytes of the given text that it comes from, however the tokenizer rewrites texts: what
 * it composes comes from all that it composes, what it puts in front from the first character; a beginning-of-sentence
 * token is 0..0. An id may be part of a character. `ids` and `spans` have room for `capacity` each. */
DSV3_API dsv3_status dsv3_tokenize_spans(const dsv3_tokenizer* tokenizer, const char* text, size_t n_bytes,
                                         uint32_t flags, int32_t* ids, dsv3_span* spans, size_t capacity,
                                         size_t* n_ids);

enum {
  DSV3_SKIP_SPECIAL = 1, /* leave special tokens out */
  DSV3_CONTINUES =
      2 /* the ids go on from others: keep the space that some tokenizers' texts lose at their beginning */
};

/* Ids to bytes, the same convention; not null-terminated. INVALID_ARGUMENT for an id outside the vocabulary. */
DSV3_API dsv3_status dsv3_detokenize(const dsv3_tokenizer* tokenizer, const int32_t* ids, size_t n_ids,
                                     uint32_t flags, char* text, size_t capacity, size_t* n_bytes);

/* How many leading bytes of a growing text can be shown: all but an incomplete UTF-8 sequence at its end. */
DSV3_API size_t dsv3_utf8_complete(const char* text, size_t n_bytes);

/* 1 if the id ends a text: named by generation_config.json, config.json or the tokenizer's files. */
DSV3_API int dsv3_is_end_token(const dsv3_model* model, int32_t id);

/* ---- chat ------------------------------------------------------------------------------------------------ */

/* A chat template turns messages into the text a model was trained on. It is a program in a sandboxed subset of Jinja,
 * with the meaning it has in transformers' apply_chat_template; it is bounded in steps, memory, nesting and output. */
typedef struct dsv3_template dsv3_template;

/* Of a packed file or a checkpoint folder (chat_template.jinja; "chat_template" of tokenizer_config.json or
 * chat_template.json; additional_chat_templates), or a file that is one, named *.jinja. Weights are not needed. `name`:
 * one of several; null: the default one, or "tool_use", if there is one, for arguments with tools.
 * NOT_FOUND; CORRUPT or UNSUPPORTED, with line and construct, for a template that is none or asks for something not
 * implemented. Any thread; so are all calls that use a template. */
DSV3_API dsv3_status dsv3_template_open(const char* path, const char* name, dsv3_template** chat_template);
/* The same of an open model; independent of it from then on. Any thread. */
DSV3_API dsv3_status dsv3_model_template(const dsv3_model* model, const char* name,
                                         dsv3_template** chat_template);
/* From its text. special_tokens: null, or a JSON object such as {"bos_token": "<s>"}, which the template may write as
 * special tokens: any of bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token, each a string, an
 * object with "content", or null for none. INVALID_ARGUMENT, by name, for anything else. Any thread. */
DSV3_API dsv3_status dsv3_template_parse(const char* text, size_t n_bytes, const char* special_tokens,
                                         dsv3_template** chat_template);
/* One thread, as the last to use the template. */
DSV3_API void dsv3_template_free(dsv3_template* chat_template);

/* `arguments` is one JSON object, the template's variables: "messages" ({"role", "content", "tool_calls",
 * "reasoning_content", ...}), "add_generation_prompt", "tools", and what else the template reads ("enable_thinking").
 * apply_chat_template gives "tools" and "documents" as null when there are none; some templates rely on that. The
 * checkpoint's bos_token and the like are there by themselves. An integer that does not fit 64 bits can be written, not
 * computed with. local_time, for strftime_now: null, or seconds since 1970-01-01 00:00 by the clock on the caller's
 * wall.
 * Text and spans come out under the convention of dsv3_tokenize (n_trusted may be null). The spans, ascending, are what
 * the template itself wrote; everything else came from the arguments and is nothing but text.
 * INVALID_ARGUMENT, with the line, when the template refuses the messages or fails; CORRUPT: arguments are no JSON. */
DSV3_API dsv3_status dsv3_template_render(const dsv3_template* chat_template, const char* arguments,
                                          size_t n_bytes, const int64_t* local_time, char* text,
                                          size_t capacity, size_t* n_text, dsv3_span* trusted,
                                          size_t span_capacity, size_t* n_trusted);

/* Renders, and gives the ids: added tokens ("<|User|>") are recognised in the trusted spans only, so nobody can type
 * one. No beginning token is put in front: templates write their own. */
DSV3_API dsv3_status dsv3_template_tokenize(const dsv3_template* chat_template,
                                            const dsv3_tokenizer* tokenizer, const char* arguments,
                                            size_t n_bytes, const int64_t* local_time, int32_t* ids,
                                            size_t capacity, size_t* n_ids);

/* What a model writes, split into its parts while it is being written: reasoning between <think> and </think>, and the
 * tool calls of DeepSeek V3, R1 and V3.1, Kimi-K2 and Qwen3. dsv3_output_new may be called by any thread, the others by
 * one thread at a time per output, dsv3_output_free by the last to use it. */
typedef struct dsv3_output dsv3_output;

typedef enum dsv3_output_kind {
  DSV3_OUTPUT_CONTENT = 0,
  DSV3_OUTPUT_REASONING = 1,
  /* Whole: text is its arguments, a JSON object, byte for byte as the model wrote it. A call ends where its end mark is
   * first read, also inside of a string: such a call is content with a note. */
  DSV3_OUTPUT_TOOL_CALL = 2,
  DSV3_OUTPUT_NOTE = 3 /* why the content before it, which has the marks of a tool call, is none */
} dsv3_output_kind;

typedef struct dsv3_output_event {
  uint32_t struct_size; /* set by the caller */
  dsv3_output_kind kind;
  const char* text; /* null-terminated; text, name and id hold until the next call on the output */
  size_t n_bytes;
  /* Of a tool call, the function's name and, where the format has one, the call's id; else "". Neither has control
   * characters, quotes, angle or curly brackets, or more than 256 bytes. */
  const char* name;
  const char* id;
} dsv3_output_event;

/* `prompt` is what the model goes on from, or its end: if that opens <think>, the answer begins with reasoning. */
DSV3_API dsv3_status dsv3_output_new(const char* prompt, size_t n_bytes, dsv3_output** output);
DSV3_API void dsv3_output_free(dsv3_output* output);
/* Takes more of the text, special tokens spelt out but for end tokens. However it is cut, the events are the same, but
 * for where content and reasoning are cut. What may be the beginning of a mark is held back, and newlines next to a mark
 * are left out. */
DSV3_API dsv3_status dsv3_output_add(dsv3_output* output, const char* text, size_t n_bytes);
/* No more text comes: gives what was held back. */
DSV3_API dsv3_status dsv3_output_finish(dsv3_output* output);
/* 1 and the next event, or 0. Also 0, with dsv3_last_error(), for null or a wrong struct_size. */
DSV3_API int dsv3_output_next(dsv3_output* output, dsv3_output_event* event);

/* ---- session --------------------------------------------------------------------------------------------- */

/* A session holds one pool of cached rows, shared by up to max_seqs sequences that are evaluated together. Creating
 * it reserves every byte it will ever use. */
typedef struct dsv3_session dsv3_session;

/* How multi-head latent attention is computed over the cached latents. Auto: whichever costs fewer multiplications for
 * the evaluated batch as a whole (absorbed in the decode phase). The two agree up to rounding. */
typedef enum dsv3_attention {
  DSV3_ATTENTION_AUTO = 0,
  DSV3_ATTENTION_ABSORBED = 1,
  DSV3_ATTENTION_EXPANDED = 2
} dsv3_attention;

/* How activations enter a product with an FP8 matrix. FP8: rounded to e4m3 with a scale per 128 values first (W8A8),
 * in the scale format of the checkpoint, or always f32, or always powers of two. */
typedef enum dsv3_gemm {
  DSV3_GEMM_F32 = 0,
  DSV3_GEMM_FP8 = 1,
  DSV3_GEMM_FP8_F32 = 2,
  DSV3_GEMM_FP8_UE8M0 = 3
} dsv3_gemm;

/* Type of cached values; auto: bf16, or f32 with `exact` or the reference backend. */
typedef enum dsv3_kv { DSV3_KV_AUTO = 0, DSV3_KV_F32 = 1, DSV3_KV_BF16 = 2 } dsv3_kv;

enum {
  DSV3_KEEP_HIDDEN = 1, /* "hidden.0" (embeddings) .. "hidden.L" and "final": dsv3_kept */
  DSV3_KEEP_ROUTING = 2 /* "router_ids.i", "router_weights.i", "router_logits.i" */
};

typedef struct dsv3_session_options {
  uint32_t struct_size;
  int32_t context;  /* most tokens of one sequence; default min(max_position_embeddings, 4096) */
  int32_t max_seqs; /* default 1 */
  int32_t
      max_batch_tokens; /* tokens of one pass; a longer batch is cut into passes; default min(context, 512) */
  int32_t max_logits;   /* most rows of logits one call may ask for; default max_seqs */
  int32_t n_threads;    /* default: the physical cores this process may run on */
  /* Not 0: f32 activations into every product. Otherwise prompts round them to bf16 where that is faster
   * (docs/accuracy.md has what it costs); decoding never does. */
  int32_t exact;
  dsv3_attention attention;
  dsv3_gemm gemm;
  dsv3_kv kv;
  uint32_t keep;          /* DSV3_KEEP_...; then a batch must fit one pass */
  int32_t given_routing;  /* not 0: the caller chooses the experts, see dsv3_batch */
  int32_t mtp;            /* not 0: also evaluate the multi-token-prediction layer */
  dsv3_progress progress; /* of one evaluation, in tokens, once a pass */
  void* progress_user;
  /* Of a model opened with a GPU: how the work is divided between it and the host. gpu_memory: bytes of the GPU's memory
   * that may be used, for everything, with half a GiB for the driver; what does not fit stays on the host. Default: no
   * limit, all goes to the GPU. What every token reads goes there first: layer by layer attention with its cached rows,
   * router, shared experts and dense FFN, then the head; then routed experts, layer by layer. The embedding stays. */
  int64_t gpu_memory;
  /* Rules that come before that, separated by ';': "[layers A-B] [ROLE | experts A-B] = cpu | cuda | cuda:N". ROLE is embed,
   * attention, dense_ffn, router, shared_experts, routed_experts, mtp or head; N counts the GPUs in use. Of rules for one
   * part the last holds. "layers 3-20 routed_experts=cuda; layers 21-60 experts 0-63=cuda; head=cpu" */
  const char* place;
  /* Prompts, in passes of at least so many tokens: routed experts that are on the host are brought to a GPU layer by layer and
   * computed there, which takes up to half a GiB more of its memory and a GiB of the host's. Default: where that is less work
   * than computing them on the host, for a link of 25 GB/s and a host of 1 TFLOPS (DeepSeek-V3: 641); below 0: never. */
  int32_t stream_from;
} dsv3_session_options;

/* Bytes a session takes, known before any is allocated. */
typedef struct dsv3_memory {
  uint32_t struct_size; /* set by the caller */
  int64_t weights;      /* mapped, shared by all sessions of the model */
  int64_t cache;        /* cached rows and ids of all sequences */
  int64_t activations;  /* the arena that all intermediate results share */
  int64_t total;        /* everything */
  int64_t machine;      /* memory this process may use: RAM or its cgroup's or its own limit */
  int64_t gpu;          /* of GPUs' memory: copies of weights, and what of cache and activations is there */
} dsv3_memory;

/* Touches no weight and allocates little. Errors as dsv3_session_new. Any thread. */
DSV3_API dsv3_status dsv3_session_memory(dsv3_model* model, const dsv3_session_options* options,
                                         dsv3_memory* memory);

/* INVALID_ARGUMENT for options out of range (a context beyond max_position_embeddings, mtp without such a layer, place
 * with a word that is not known); OUT_OF_MEMORY with the numbers when cache and activations exceed what the machine has,
 * or the parts that place names exceed gpu_memory. With a GPU it waits until no session with one evaluates. Any thread. */
DSV3_API dsv3_status dsv3_session_new(dsv3_model* model, const dsv3_session_options* options,
                                      dsv3_session** session);
/* One thread, as the last to use the session. With a GPU it waits until no other with one evaluates. */
DSV3_API void dsv3_session_free(dsv3_session* session);

/* The context per sequence that the session was made with. Any thread. */
DSV3_API int32_t dsv3_session_context(const dsv3_session* session);

typedef enum dsv3_phase { DSV3_PHASE_AUTO = 0, DSV3_PHASE_PROMPT = 1, DSV3_PHASE_DECODE = 2 } dsv3_phase;

typedef struct dsv3_batch {
  uint32_t struct_size;
  int32_t n;                  /* tokens; at least 1 */
  const int32_t* token;       /* [n] ids in 0..vocab_size-1 */
  const int32_t* seq;         /* [n] sequence of each, 0..max_seqs-1; null: all 0. Any interleaving. */
  const uint8_t* want_logits; /* [n] not 0: its logits; null: the last token of each sequence in the batch */
  /* With option given_routing: the experts of each token, [n][m][k] for the m layers that have experts, in order,
   * and k = n_experts_per_token of the model; a layer that chooses fewer reads its first. They are weighted as the
   * layer's router scores them. No layer's are the same twice. An MTP layer chooses for itself. */
  const int32_t* router_ids;
  dsv3_phase phase; /* which kernels: auto is decode iff no sequence has more than one token here */
} dsv3_batch;

/* Appends the tokens to their sequences, each at its sequence's next position, and computes the logits asked for.
 * A token's results depend on its sequence and phase alone: bit for bit the same whatever the batch, its cutting or
 * the number of threads. (With DSV3_ATTENTION_AUTO a prompt's batch decides the form of attention; name one, and the
 * phase, where bits must not depend on the batch.) On any error no sequence has changed. Errors: INVALID_ARGUMENT,
 * CONTEXT_FULL, CANCELLED, DEVICE. One thread; waits for evaluations of the model's other sessions, with a GPU of all with one.
 * Cost: allocates nothing, except that OpenMP makes a thread's team at its first evaluation, or when its sessions
 * differ in n_threads; for one token about bytes_per_token divided by the memory's bandwidth. */
DSV3_API dsv3_status dsv3_eval(dsv3_session* session, const dsv3_batch* batch);

/* Row of logits [n_outputs] of token i of the last batch; holds until the next call on the session.
 * INVALID_ARGUMENT if it was not asked for. One thread. */
DSV3_API dsv3_status dsv3_logits(const dsv3_session* session, int32_t i, const float** logits);

/* Multi-token prediction, with option mtp: logits [vocab_size] for the token after token i of the last batch, which
 * the MTP layer computes from token i and the main model's hidden state one position earlier. There for every token
 * whose logits were asked for, except the first of a sequence. One thread. */
DSV3_API dsv3_status dsv3_mtp_logits(const dsv3_session* session, int32_t i, const float** logits);

typedef enum dsv3_dtype { DSV3_F32 = 0, DSV3_I32 = 1 } dsv3_dtype;

/* Row of a kept intermediate result for token i of the last batch: *n values of *dtype. NOT_FOUND for a name that is
 * not kept (dense layers have no routing). With option mtp the MTP layer's routing rows are there under its layer's
 * number, for every token but the first of a sequence. One thread. */
DSV3_API dsv3_status dsv3_kept(const dsv3_session* session, const char* name, int32_t i, dsv3_dtype* dtype,
                               const void** values, int32_t* n);

/* Makes a running evaluation of the session, or else the next one, stop soon with DSV3_CANCELLED.
 * Any thread; signal handlers. */
DSV3_API void dsv3_cancel(dsv3_session* session);

/* What a session has done since it was made, failed evaluations left out, and what it holds. */
typedef struct dsv3_session_stats {
  uint32_t struct_size;  /* set by the caller */
  int64_t prompt_tokens; /* evaluated in prompt phase */
  double prompt_seconds;
  int64_t decode_tokens; /* evaluated in decode phase */
  int64_t decode_evals;  /* in so many calls */
  double decode_seconds;
  int64_t decode_bytes;  /* of weights read in them: at least bytes_per_token a call */
  int64_t cached_tokens; /* of all sequences now */
  int64_t cache_bytes;   /* of the cache in use now; what forked sequences share counts once */
  /* Of a session that is divided between devices, in those calls: times that one waited for another, bytes copied between
   * them, and seconds that the host stood still for a GPU in the middle of a step. */
  int64_t decode_crossings, decode_crossed_bytes;
  double decode_waited;
} dsv3_session_stats;

/* One thread. */
DSV3_API dsv3_status dsv3_session_get_stats(const dsv3_session* session, dsv3_session_stats* stats);

/* ---- planning -------------------------------------------------------------------------------------------- */

/* What a session would be on a machine that need not be there: which part of the model goes where, what that takes, and
 * how fast a token can come at best. */
typedef struct dsv3_plan dsv3_plan;

typedef struct dsv3_plan_options {
  uint32_t struct_size;
  int32_t n_gpus;      /* default: 1 if session has gpu_memory or place, else 0 */
  int64_t host_memory; /* bytes that weights, cache and activations on the host may take; default: no limit */
  double host_GBps;    /* reading the host's memory; default: measured, which takes 512 MiB and 100 ms */
  double gpu_GBps;     /* reading a GPU's; default: 1000, assumed */
  double pcie_GBps;    /* between the two; default: 25, assumed */
  const dsv3_session_options* session; /* gpu_memory, of each GPU, and place among them; null: defaults */
} dsv3_plan_options;

/* Of a packed file, whose weights are not read, or of a checkpoint's config.json (or its folder), for which types are those
 * of released checkpoints. Needs no GPU, nor a build with CUDA. A session with these options takes these bytes; only the
 * driver's share of a GPU, in which it keeps what we have recorded, is estimated. Errors: those of dsv3_model_open and
 * dsv3_session_new; OUT_OF_MEMORY, with the missing bytes, when host_memory is too little. Any thread. */
DSV3_API dsv3_status dsv3_plan_new(const char* path, const dsv3_plan_options* options, dsv3_plan** plan);
DSV3_API void dsv3_plan_free(dsv3_plan* plan);

/* The plan as one JSON object; holds as long as the plan. Any thread.
 *   "context", "mtp"
 *   "devices"  [{"device": "cpu" or "cuda:N"; bytes: "weights", "cache", "activations", "driver_estimate", "total", "memory"
 *              (the budget, if any), "read_per_token" and "read_per_token_full" (empty and full context);
 *              "GBps", "GBps_from": "stated", "measured" or "assumed"}]
 *   "parts"    [{"role" (also "kv"), "layers": [A, B], "experts": [A, B] where a layer is divided, "device", "bytes"}],
 *              equal consecutive layers in one; "layers" is missing for what is of no layer
 *   "crossings_per_token"  times that one device waits for another; "crossed_per_token"  bytes between them;
 *              "pcie_GBps", "pcie_GBps_from"
 *   "tokens_per_second", "tokens_per_second_full"  at best: all bandwidths reached, devices at work side by side, nothing
 *              but weights and cached rows read
 *   "machine_memory"  bytes this process may use here */
DSV3_API const char* dsv3_plan_json(const dsv3_plan* plan);

/* ---- sequences ------------------------------------------------------------------------------------------- */

/* Tokens in a sequence; -1 for a sequence number out of range. One thread. */
DSV3_API int32_t dsv3_seq_length(const dsv3_session* session, int32_t seq);
/* Their ids, [length]; null for a sequence number out of range. Holds until the next call that changes the sequence.
 * One thread. */
DSV3_API const int32_t* dsv3_seq_tokens(const dsv3_session* session, int32_t seq);
/* Forgets all but the first `length` tokens. INVALID_ARGUMENT if it is longer than the sequence. One thread. */
DSV3_API dsv3_status dsv3_seq_truncate(dsv3_session* session, int32_t seq, int32_t length);
/* Forgets the sequence: truncate to 0. One thread. */
DSV3_API dsv3_status dsv3_seq_free(dsv3_session* session, int32_t seq);
/* Sequence `to` forgets what it held and becomes the first `length` tokens of `from`, as if it had evaluated them.
 * INVALID_ARGUMENT if `to` is `from`, or for a length out of range. Cost: cached rows are shared; the first evaluation
 * of either copies at most 64 of them. One thread. */
DSV3_API dsv3_status dsv3_seq_fork(dsv3_session* session, int32_t from, int32_t to, int32_t length);

/* ---- saved sessions -------------------------------------------------------------------------------------- */

/* All sequences of a session as bytes: ids and cached rows, with a checksum; docs/format.md has the layout. They are
 * bound to what decides bits: the model's id, the model's backend and instruction-set path, and the session's options
 * exact, attention, gemm, kv and mtp. A session that loads them goes on with the very same bits. Logits are not saved: truncate by one token and evaluate it again. Sequences that
 * shared rows share them no more.
 *
 * *n_bytes becomes the size; `bytes` is written if `capacity` is at least that, and may be null if it is 0. The size
 * changes only with the sequences. One thread. */
DSV3_API dsv3_status dsv3_session_save(const dsv3_session* session, void* bytes, size_t capacity,
                                       size_t* n_bytes);

/* Replaces all sequences. The session may have another context, max_seqs, batch size and number of threads than the
 * saved one. Nothing in the bytes is trusted. Errors, which change nothing: CORRUPT, UNSUPPORTED (version),
 * INVALID_ARGUMENT (another model, backend, instruction-set path or options; too many sequences, or too long, for this
 * session). One thread. */
DSV3_API dsv3_status dsv3_session_load(dsv3_session* session, const void* bytes, size_t n_bytes);

/* The same to and from a file. Saving writes a new file, readable by its owner only, that takes the name at the end;
 * what it may replace is a saved session or an empty file (else INVALID_ARGUMENT). Loading first reads and checks all
 * of it: `progress` (or null) is told the bytes checked and can stop it (CANCELLED). Should reading fail after
 * that, all sequences are empty. Also errors: NOT_FOUND, IO. One thread. */
DSV3_API dsv3_status dsv3_session_save_file(const dsv3_session* session, const char* path);
DSV3_API dsv3_status dsv3_session_load_file(dsv3_session* session, const char* path, dsv3_progress progress,
                                            void* progress_user);

/* ---- choosing a token ------------------------------------------------------------------------------------ */

typedef struct dsv3_logit_bias {
  int32_t token;
  float bias;
} dsv3_logit_bias;

/* How a token is chosen. In this order: logit_bias and the penalties change logits; temperature makes them
 * probabilities; top_k, top_p, min_p and typical_p each drop tokens from what the one before has left; one of the rest
 * is drawn. All zero: greedy. */
typedef struct dsv3_sampling {
  uint32_t struct_size;
  int32_t top_k;      /* keep the k most likely; 0: all */
  double temperature; /* 0: the largest logit, ties to the lowest id, whatever top_k and the like say */
  double top_p;       /* keep the fewest most likely tokens that reach this probability; 0 and 1: all */
  double min_p;       /* drop tokens less likely than this share of the most likely one's; 0: none */
  double typical_p;   /* keep the fewest tokens that reach this probability, those first whose
                                -log(probability) is nearest to the entropy; 0 and 1: all */
  double
      repetition_penalty; /* of tokens that the sequence has: divides logits above 0, multiplies those below; 0
                                and 1: none; else 1e-6..1e6 */
  double presence_penalty;  /* of tokens that it has: subtracted from the logit; -1e6..1e6 */
  double frequency_penalty; /* for every time that it has the token: subtracted; -1e6..1e6 */
  int32_t
      penalty_window;   /* penalties look at so many last tokens of the sequence, the prompt's too; 0: all */
  int32_t n_logit_bias; /* entries of logit_bias, at most vocab_size */
  const dsv3_logit_bias* logit_bias; /* added to the tokens' logits; -1e6..1e6 */
} dsv3_sampling;

/* What the checkpoint's generation_config.json asks for; greedy without one. struct_size is set by the caller. Any
 * thread. */
DSV3_API dsv3_status dsv3_model_sampling(const dsv3_model* model, dsv3_sampling* sampling);

/* Chooses the token that follows token i of the last batch, from its logits; ids that name no token of the
 * tokenizer are never chosen. `sampling` null: the model's. The random number is a function of (seed, position in the
 * sequence) only: the same seed, the same text. INVALID_ARGUMENT for a value out of range or not finite, CORRUPT for
 * logits that are no numbers. One thread. */
DSV3_API dsv3_status dsv3_sample(dsv3_session* session, int32_t i, const dsv3_sampling* sampling,
                                 uint64_t seed, int32_t* token);

/* ---- stop texts ------------------------------------------------------------------------------------------ */

/* Ends an answer at a text, wherever its tokens begin and end, and says what of it can be shown meanwhile. */
typedef struct dsv3_stop dsv3_stop;

/* `texts`: n texts of n_bytes[i] bytes, copied; n may be 0. INVALID_ARGUMENT for an empty one, for more than 256, or
 * for more than 1 MiB. Any thread. */
DSV3_API dsv3_status dsv3_stop_new(const char* const* texts, const size_t* n_bytes, int32_t n,
                                   dsv3_stop** stop);
/* One thread, as the last to use it. */
DSV3_API void dsv3_stop_free(dsv3_stop* stop);

/* Appends a token's bytes to the answer. *shown, *n_shown bytes of it, can be shown now: all but what may be the
 * beginning of a stop text, and an incomplete character at the end; they hold until the next call. *stopped becomes 1
 * when a stop text is complete, which is no part of the answer: the rest of the answer is in *shown, and more text is
 * ignored. Of stop texts that are complete at once the longest counts. One thread per stop. */
DSV3_API dsv3_status dsv3_stop_add(dsv3_stop* stop, const char* text, size_t n_bytes, const char** shown,
                                   size_t* n_shown, int* stopped);

/* What is still held back when no more text comes. One thread per stop. */
DSV3_API dsv3_status dsv3_stop_finish(dsv3_stop* stop, const char** shown, size_t* n_shown);

/* ---- heads other than the next token's -------------------------------------------------------------------- */

/* Which of n ids a sequence classification model is read at: the rightmost that is not pad_token_id (the first, if all
 * are); the last, if the model has no pad_token_id. Ask for that token's logits. Padded rows thus give what they give
 * without padding; a batch of rows of several lengths needs a pad_token_id, or rows of their own length. -1: n < 1.
 * Any thread. */
DSV3_API int32_t dsv3_classified_position(const dsv3_model* model, const int32_t* ids, int32_t n);

/* One evaluation of a DSV3_TASK_LAYER model. */
typedef struct dsv3_layer_batch {
  uint32_t struct_size;
  int32_t n_threads;        /* default: the physical cores this process may run on */
  int32_t batch, length;    /* sequences, and tokens of each */
  const float* x;           /* [batch, length, hidden_size] */
  const float* float_mask;  /* [length, length] added to the attention scores; or null */
  const uint8_t* bool_mask; /* [length, length], not 0: token i does not see token j; or null. Not both. */
  int32_t* router_ids;      /* out, [batch, length, num_experts_per_tok], highest weight first; or null */
  float* router_weights;    /* out, the same shape; or null */
  int32_t exact;            /* as in dsv3_session_options */
} dsv3_layer_batch;

/* Hidden states in, hidden states out: y [batch, length, hidden_size]. Without a mask every token sees every token of
 * its sequence. Allocates what it needs. Errors: INVALID_ARGUMENT, OUT_OF_MEMORY. Any thread. */
DSV3_API dsv3_status dsv3_layer_eval(const dsv3_model* model, const dsv3_layer_batch* batch, float* y);

/* ---- ceilings --------------------------------------------------------------------------------------------- */

/* What the machine can do at most, with a number of threads on the model's instruction-set path: the denominators of a
 * share of the ceiling. Machines change their speed from second to second; measure beside what is compared. */
typedef struct dsv3_meter dsv3_meter;
typedef struct dsv3_ceilings {
  uint32_t struct_size; /* set by the caller */
  double read_GBps;     /* reading memory */
  double f32_GFLOPS;    /* f32 multiply-adds, two operations each */
  double matrix_GFLOPS; /* those of the widest bf16 arithmetic that prompts use; f32_GFLOPS without one */
  double
      gpu_copy_GBps; /* of the model's slowest GPU: its memory, read and written by copying; 0 without GPUs */
  double gpu_matrix_GFLOPS; /* bf16 multiply-adds of its matrix units, as prompts give them (mma.sync) */
  double link_GBps;         /* from the host's pinned memory to it */
} dsv3_ceilings;

/* Takes 512 MiB until it is freed. n_threads 0: the physical cores. OUT_OF_MEMORY. The model may be closed before it is
 * freed. Any thread. */
DSV3_API dsv3_status dsv3_meter_new(const dsv3_model* model, int32_t n_threads, dsv3_meter** meter);
/* Takes about 100 ms. One thread at a time per meter. */
DSV3_API dsv3_status dsv3_meter_measure(dsv3_meter* meter, dsv3_ceilings* ceilings);
/* One thread, as the last to use it. */
DSV3_API void dsv3_meter_free(dsv3_meter* meter);

/* The least that a token of one sequence takes when every device reaches its ceiling, as in dsv3_plan_json's
 * tokens_per_second. */
typedef struct dsv3_bound {
  uint32_t struct_size; /* set by the caller */
  double seconds;
  double bytes; /* of weights and cached rows that are read, on all devices */
} dsv3_bound;

/* For a session with `context` cached tokens. INVALID_ARGUMENT for ceilings that the session needs and that are not above
 * 0. One thread. */
DSV3_API dsv3_status dsv3_session_bound(const dsv3_session* session, int64_t context,
                                        const dsv3_ceilings* ceilings, dsv3_bound* bound);

/* ---- expert load ------------------------------------------------------------------------------------------ */

/* The load-balancing loss of router logits, as transformers computes it: n_experts * sum over experts of (share of rows
 * that choose it) * (mean of its softmax), over all rows of all layers; n_experts_per_token when perfectly balanced.
 * logits: n_layers pointers to [n_rows, n_experts]; mask [n_rows]: rows with 0 do not count; null: all do. NaN
 * when no row counts or a logit is not finite. Any thread. */
DSV3_API dsv3_status dsv3_load_balancing_loss(const float* const* logits, int32_t n_layers, int32_t n_rows,
                                              int32_t n_experts, int32_t n_experts_per_token,
                                              const uint8_t* mask, double* loss);

#ifdef __cplusplus
}
#endif
#endif
