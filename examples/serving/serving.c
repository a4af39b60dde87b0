/* The core by its C interface: two requests at once over a toy model whose memory is what a plan makes of it, and the
 * same two one after the other. The answers must be equal.
 *
 *   serving_c FOLDER          (with weather.grammar and calendar.grammar)
 *
 * Exit status 0 where they are. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <toolprm/toolprm.h>

enum { VOCABULARY = 257, STOP = 256, BLOCK = 4 }; /* the bytes, and a token that ends an answer */

static void must(toolprm_status status, const char *what) {
  if (status != TOOLPRM_OK) {
    fprintf(stderr, "%s: %s\n", what, toolprm_last_error());
    exit(1);
  }
}

static void stop_if(int wrong, const char *what) {
  if (wrong) {
    fprintf(stderr, "WRONG: %s\n", what);
    exit(1);
  }
}

static void *need(void *memory) {
  stop_if(memory == NULL, "there is not enough memory");
  return memory;
}

/* ------------------------------------------------------------------------------------------------ the model */

/* What stands for keys and values: the token and position that a slot was given. */
typedef struct cache {
  struct {
    int32_t token, position;
  } *slots;
  size_t size;
} cache;

static uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * UINT64_C(0xff51afd7ed558ccd);
  return hash ^ (hash >> 29);
}

static void take(const cache *memory, int32_t slot, int32_t *length, uint64_t *hash) {
  stop_if(slot < BLOCK || (size_t)slot >= memory->size, "a slot that is nobody's is read");
  stop_if(memory->slots[slot].position != *length, "a slot is read that holds another position");
  *hash = mix(*hash, (uint64_t)memory->slots[slot].token);
  ++*length;
}

/* A hash of all that a token of the pass sees: the segments of its row's context, then the row's own tokens. */
static uint64_t see(const cache *memory, const toolprm_plan *plan, int32_t token) {
  const size_t row = (size_t)plan->rows[token];
  uint64_t hash = 1;
  int32_t length = 0, own = 0;
  for (size_t c = 0; c < plan->context_width; ++c) {
    const int32_t segment = plan->contexts[row * plan->context_width + c];
    for (int32_t i = 0; segment >= 0 && i < plan->segments[2 * segment + 1]; ++i)
      take(memory, plan->segments[2 * segment] + i, &length, &hash);
  }
  for (; length <= plan->positions[token]; ++own)
    take(memory, plan->block_tables[row * plan->table_width + (size_t)(own / BLOCK)] * BLOCK + own % BLOCK, &length,
         &hash);
  return hash;
}

/* The memory that the plan asks for, its copies, then its tokens. */
static void write_tokens(cache *memory, const toolprm_plan *plan) {
  const size_t size = (size_t)plan->blocks * BLOCK;
  if (size > memory->size) {
    memory->slots = need(realloc(memory->slots, size * sizeof *memory->slots));
    for (; memory->size < size; ++memory->size)
      memory->slots[memory->size].position = -1;
  }
  for (size_t c = 0; c < plan->copy_count; ++c) {
    const int32_t *copy = plan->copies + 3 * c;
    memmove(memory->slots + copy[1], memory->slots + copy[0], (size_t)copy[2] * sizeof *memory->slots);
  }
  for (size_t i = 0; i < plan->token_count; ++i) {
    memory->slots[plan->slots[i]].token = plan->tokens[i];
    memory->slots[plan->slots[i]].position = plan->positions[i];
  }
}

static float logit(uint64_t seen, int32_t token) {
  const float noise = (float)(mix(seen, (uint64_t)token) >> 40) / (float)(1 << 24);
  const int letter = (token | 32) >= 'a' && (token | 32) <= 'z', end = token == '"' || token == '}' || token == ']';
  return 4 * noise + (letter ? 2 : end ? 4 : 0); /* so that answers end */
}

static void decode(toolprm_search *search, cache *memory, const toolprm_plan *plan) {
  const size_t few_rows = plan->output_count - plan->full_outputs, samples = plan->sample_count + 1;
  float *logits = need(malloc((plan->full_outputs * VOCABULARY + 1) * sizeof *logits));
  float *few = need(malloc((few_rows * plan->few_id_count + 1) * sizeof *few));
  int32_t *tokens = need(malloc(samples * sizeof *tokens));
  double *logprobs = need(malloc(samples * sizeof *logprobs)),
         *perturbed = need(malloc(2 * samples * sizeof *perturbed));
  write_tokens(memory, plan);
  for (size_t o = 0; o < plan->output_count; ++o) {
    const uint64_t seen = see(memory, plan, plan->outputs[o]);
    if (o < plan->full_outputs)
      for (int32_t token = 0; token < VOCABULARY; ++token)
        logits[o * VOCABULARY + (size_t)token] = logit(seen, token);
    else
      for (size_t i = 0; i < plan->few_id_count; ++i)
        few[(o - plan->full_outputs) * plan->few_id_count + i] = logit(seen, plan->few_ids[i]);
  }
  must(toolprm_search_draw(search, logits, VOCABULARY, few, tokens, logprobs, perturbed), "draw");
  must(toolprm_search_commit_tokens(search, tokens, logprobs, perturbed, plan->sample_count), "commit_tokens");
  free(logits);
  free(few);
  free(tokens);
  free(logprobs);
  free(perturbed);
}

/* The steps that candidates end with, scored by their texts. */
static void judge(toolprm_search *search, const toolprm_plan *plan) {
  double *scores = need(malloc((plan->request_count + 1) * sizeof *scores));
  for (size_t i = 0; i < plan->prefix_count; ++i) {
    const toolprm_step *steps;
    size_t count;
    uint64_t hash = 3;
    must(toolprm_search_prefix(search, i, &steps, &count), "prefix");
    for (size_t s = 0; s < count; ++s)
      for (size_t b = 0; b < steps[s].text.size; ++b)
        hash = mix(hash, (unsigned char)steps[s].text.data[b]);
    scores[i] = (double)(hash >> 11) / 9007199254740992.0;
  }
  must(toolprm_search_commit_scores(search, scores, plan->request_count), "commit_scores");
  free(scores);
}

static void serve(toolprm_search *search, cache *memory) {
  for (;;) {
    toolprm_plan plan;
    plan.struct_size = sizeof plan;
    must(toolprm_search_plan(search, TOOLPRM_ANY_SIDE, &plan), "plan");
    if (plan.kind == TOOLPRM_DONE)
      return;
    if (plan.kind == TOOLPRM_DECODE)
      decode(search, memory, &plan);
    else
      judge(search, &plan);
  }
}

/* ------------------------------------------------------------------------------------------------ the requests */

static toolprm_vocabulary *make_vocabulary(void) {
  char bytes[STOP];
  toolprm_bytes tokens[VOCABULARY] = {{NULL, 0}};
  const int32_t stop = STOP;
  toolprm_vocabulary *vocabulary;
  for (int b = 0; b < STOP; ++b) {
    bytes[b] = (char)b;
    tokens[b].data = bytes + b;
    tokens[b].size = 1;
  }
  must(toolprm_vocabulary_create(tokens, VOCABULARY, &stop, 1, NULL, &vocabulary), "vocabulary");
  return vocabulary;
}

static toolprm_grammar *read_grammar(const char *folder, const char *tool) {
  char path[4096], data[1 << 16];
  toolprm_grammar *grammar;
  snprintf(path, sizeof path, "%s/%s.grammar", folder, tool);
  FILE *file = fopen(path, "rb");
  if (file == NULL) {
    fprintf(stderr, "cannot read %s\n", path);
    exit(1);
  }
  const size_t size = fread(data, 1, sizeof data, file);
  fclose(file);
  must(toolprm_grammar_deserialize(data, size, 0, &grammar), path);
  return grammar;
}

static toolprm_search *make_search(void) {
  toolprm_search_config config;
  toolprm_search *search;
  must(toolprm_search_config_init(&config, sizeof config), "config");
  config.policy.block_size = config.reward.block_size = BLOCK;
  must(toolprm_search_create(&config, &search), "search");
  return search;
}

static int64_t add(toolprm_search *search, const toolprm_matcher *start, const char *prompt, uint64_t seed) {
  int32_t ids[256];
  toolprm_request request;
  int64_t id;
  must(toolprm_request_init(&request, sizeof request), "request");
  request.matcher = start;
  request.beams = 2;
  request.width = 3;
  request.scoring = TOOLPRM_SCORING_EXTERNAL;
  request.max_tokens = 200;
  request.seed = seed;
  for (request.prompt.size = 0; prompt[request.prompt.size] != '\0'; ++request.prompt.size)
    ids[request.prompt.size] = (unsigned char)prompt[request.prompt.size];
  request.prompt.data = ids;
  must(toolprm_search_add(search, &request, &id), "add");
  return id;
}

/* The best answer, as a string to free. */
static char *answer_of(toolprm_search *search, int64_t id) {
  toolprm_result *result;
  toolprm_answer answer;
  must(toolprm_search_take(search, id, &result), "take");
  answer.struct_size = sizeof answer;
  must(toolprm_result_answer(result, 0, &answer), "answer");
  char *text = need(calloc(answer.text.size + 1, 1));
  memcpy(text, answer.text.data, answer.text.size);
  toolprm_result_free(result);
  return text;
}

int main(int argc, char **argv) {
  static const char *const tools[] = {"weather", "calendar"};
  static const char *const prompts[] = {"You call tools. How warm is it in Oslo?", "You call tools. Lunch with Ana"};
  toolprm_matcher *starts[2];
  int64_t ids[2];
  cache memory = {NULL, 0};
  if (argc != 2) {
    fprintf(stderr, "usage: serving_c FOLDER\n");
    return 2;
  }
  if (toolprm_abi_version() != TOOLPRM_ABI_VERSION || (int32_t)toolprm_abi_revision() < TOOLPRM_ABI_REVISION) {
    fprintf(stderr, "toolprm %s does not have the interface that this program was built for\n", toolprm_version());
    return 1;
  }
  toolprm_vocabulary *vocabulary = make_vocabulary();
  for (int i = 0; i < 2; ++i) {
    toolprm_grammar *grammar = read_grammar(argv[1], tools[i]);
    must(toolprm_matcher_create(grammar, vocabulary, &starts[i]), "matcher");
    toolprm_grammar_free(grammar); /* the matcher keeps it */
  }
  toolprm_vocabulary_free(vocabulary);

  toolprm_search *both = make_search();
  for (int i = 0; i < 2; ++i)
    ids[i] = add(both, starts[i], prompts[i], (uint64_t)i);
  serve(both, &memory);
  for (int i = 0; i < 2; ++i) {
    cache own_memory = {NULL, 0};
    toolprm_search *alone = make_search();
    const int64_t id = add(alone, starts[i], prompts[i], (uint64_t)i);
    serve(alone, &own_memory);
    char *text = answer_of(both, ids[i]), *same = answer_of(alone, id);
    printf("%-8s %s\n", tools[i], text);
    stop_if(strcmp(text, same) != 0, "another request changed the answer");
    free(text);
    free(same);
    free(own_memory.slots);
    toolprm_search_free(alone);
    toolprm_matcher_free(starts[i]);
  }
  toolprm_search_free(both);
  free(memory.slots);
  printf("all answers are right\n");
  return 0;
}
