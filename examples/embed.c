/* Generates text with the C API:
 *
 *     embed MODEL PROMPT [N_TOKENS [SEED]]
 *
 * Without a seed always the likeliest token; with one, random choices that depend on nothing else. It ends at an end
 * token, after N_TOKENS (64), or when the context is full. Exit codes: 1 failed, 2 wrong arguments.
 * Everything that can fail returns a status; dsv3_last_error() says in words what went wrong. */
#include "dsv3.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(dsv3_status status) {
  if (status == DSV3_OK) return;
  fprintf(stderr, "embed: %s\n", dsv3_last_error());
  exit(1);
}

static uint64_t number(const char* name, const char* given, uint64_t largest) {
  char* end;
  errno = 0;
  const uint64_t value = strtoull(given, &end, 10);
  if (given[0] >= '0' && given[0] <= '9' && *end == '\0' && errno == 0 && value <= largest) return value;
  fprintf(stderr, "embed: %s: got \"%s\", expected a whole number in 0..%llu\n", name, given,
          (unsigned long long)largest);
  exit(2);
}

int main(int argc, char** argv) {
  if (argc < 3 || argc > 5) {
    fprintf(stderr, "usage: embed MODEL PROMPT [N_TOKENS [SEED]]\n");
    return 2;
  }
  const char* prompt = argv[2];
  const uint64_t n_tokens = argc > 3 ? number("N_TOKENS", argv[3], INT32_MAX) : 64;
  const uint64_t seed = argc > 4 ? number("SEED", argv[4], UINT64_MAX) : 0;

  dsv3_model* model;
  check(dsv3_model_open(argv[1], NULL, &model));
  const dsv3_tokenizer* tokenizer;
  check(dsv3_model_tokenizer(model, &tokenizer));
  dsv3_session* session; /* one sequence, with the model's default context */
  check(dsv3_session_new(model, NULL, &session));

  /* A first call counts the ids, a second writes them. The tokenizer's own beginning token goes in front. */
  const size_t n_bytes = strlen(prompt);
  size_t n_ids;
  check(dsv3_tokenize(tokenizer, prompt, n_bytes, DSV3_BOS_AUTO, NULL, 0, &n_ids));
  int32_t* ids = malloc((n_ids + 1) * sizeof *ids);
  if (!ids) {
    fprintf(stderr, "embed: no memory for %zu token ids\n", n_ids);
    return 1;
  }
  check(dsv3_tokenize(tokenizer, prompt, n_bytes, DSV3_BOS_AUTO, ids, n_ids, &n_ids));

  const dsv3_sampling sampling = {.struct_size = sizeof sampling, .temperature = argc > 4 ? 1 : 0};
  dsv3_batch batch = {.struct_size = sizeof batch, .n = (int32_t)n_ids, .token = ids};
  int32_t id;
  for (uint64_t i = 0; i < n_tokens; ++i) {
    if (i > 0 && dsv3_seq_length(session, 0) == dsv3_session_context(session)) break;
    check(dsv3_eval(session, &batch)); /* first the whole prompt, then token by token */
    check(dsv3_sample(session, batch.n - 1, &sampling, seed, &id));
    if (dsv3_is_end_token(model, id)) break;

    char text[4096]; /* it may end within a character, which the next one completes */
    size_t length;
    check(dsv3_detokenize(tokenizer, &id, 1, DSV3_SKIP_SPECIAL | DSV3_CONTINUES, text, sizeof text, &length));
    if (length > sizeof text) {
      fprintf(stderr, "embed: token %d has %zu bytes, expected at most %zu\n", (int)id, length, sizeof text);
      return 1;
    }
    fwrite(text, 1, length, stdout);
    fflush(stdout);
    batch.n = 1;
    batch.token = &id;
  }
  printf("\n");

  free(ids);
  dsv3_session_free(session);
  check(dsv3_model_close(model));
  return 0;
}
