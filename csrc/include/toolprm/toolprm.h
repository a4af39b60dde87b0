/* The C interface of the core: vocabulary, grammar, matcher and search. C99, and C++. The same things as the C++
 * headers beside it, which say more about what they mean; docs/sdk.md has the arrays of a plan in a table.
 *
 *   toolprm_vocabulary *vocabulary;
 *   if (toolprm_vocabulary_create(tokens, count, &stop_id, 1, NULL, &vocabulary) != TOOLPRM_OK)
 *     fprintf(stderr, "%s\n", toolprm_last_error());
 *
 * What may fail returns a toolprm_status; what it hands out goes to its last parameters, which are set only where it
 * returns TOOLPRM_OK (a handle is set to NULL otherwise). No exception leaves the library, and no null pointer, wrong
 * size or unknown id makes it crash. What it cannot check: that a pointer which is not null points to as much as its
 * count says, and that a handle was not freed.
 *
 * Versions. Functions, numbers of enums, and structs as far as they are declared here stay as they are as long as
 * toolprm_abi_version() is TOOLPRM_ABI_VERSION. What comes in addition raises toolprm_abi_revision(): functions, enum
 * values, and fields at the ends of structs that begin with struct_size. A program built against a lower revision runs
 * with a higher one; one that needs more than it finds sees it by comparing the two numbers at its start.
 *
 * Structs that begin with struct_size: the caller sets it to sizeof(the struct). An _init function does, and sets the
 * defaults. The library reads and writes no more than that; it refuses fields that it does not know yet unless they are
 * zero.
 *
 * Lifetime. A handle lives until its _free, which takes NULL too. Handles keep alive what they were made from: a
 * grammar may be freed while matchers use it. What a function hands out as a pointer into a handle (its parameter has
 * `const` and two stars) stays until the next call with that handle, unless its comment says otherwise.
 *
 * Threads. Vocabularies, grammars and reward formats may be used by any number of threads at once. A matcher, a search
 * or a result may be used by one thread at a time; different ones (forks of one matcher, too) by different threads at
 * once. */
#ifndef TOOLPRM_H
#define TOOLPRM_H

#include <stddef.h>
#include <stdint.h>

#include "toolprm/export.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TOOLPRM_ABI_VERSION 1
#define TOOLPRM_ABI_REVISION 0

TOOLPRM_API uint32_t toolprm_abi_version(void);
TOOLPRM_API uint32_t toolprm_abi_revision(void);
/* Of the package, such as "0.1.0". */
TOOLPRM_API const char *toolprm_version(void);

typedef int32_t toolprm_status;
enum {
  TOOLPRM_OK = 0,
  TOOLPRM_INVALID_ARGUMENT = 1,  /* null, out of range, of the wrong size, or not what was asked for */
  TOOLPRM_ILLEGAL_TOKEN = 2,     /* the grammar does not allow it here; nothing was changed */
  TOOLPRM_BUDGET_EXCEEDED = 3,   /* instructions of a grammar, ways to read a text, or tokens of an answer */
  TOOLPRM_MALFORMED_GRAMMAR = 4, /* the bytes are no serialised grammar */
  TOOLPRM_OUT_OF_BLOCKS = 5,     /* a request does not fit into the memory for keys and values, even alone */
  TOOLPRM_UNKNOWN_REQUEST = 6,   /* no such request, or it has not ended */
  TOOLPRM_BAD_LOGITS = 7,        /* a request's logits cannot be drawn from */
  TOOLPRM_PASS_FAILED = 8,       /* the caller said so, by toolprm_search_fail() */
  TOOLPRM_CALLBACK_FAILED = 9,   /* a tokenizer returned less than 0 */
  TOOLPRM_OUT_OF_MEMORY = 10,
  TOOLPRM_INTERNAL = 11 /* a mistake of the library */
};

/* What was wrong in the last call of this thread that did not return TOOLPRM_OK, and what to do: never NULL, and good
 * until the next such call of the thread. */
TOOLPRM_API const char *toolprm_last_error(void);

typedef struct toolprm_vocabulary toolprm_vocabulary;
typedef struct toolprm_grammar toolprm_grammar;
typedef struct toolprm_matcher toolprm_matcher;
typedef struct toolprm_reward_format toolprm_reward_format;
typedef struct toolprm_search toolprm_search;
typedef struct toolprm_result toolprm_result;

/* size bytes at data, which need not end with a null byte. */
typedef struct toolprm_bytes {
  const char *data;
  size_t size;
} toolprm_bytes;

/* size token ids. */
typedef struct toolprm_ids {
  const int32_t *data;
  size_t size;
} toolprm_ids;

/* ------------------------------------------------------------------------------------------------ vocabulary */

/* Turns bytes into token ids the way the model's own tokenizer would. tokenize writes up to capacity ids and returns
 * how many there are; where that is more, it is called again with room for all. Below 0: it failed. It may be called
 * from any thread that uses a handle made with it, from several at once. destroy (or NULL) is called once, when nothing
 * uses user any more; also where the function that was given the tokenizer fails. */
typedef struct toolprm_tokenizer {
  int32_t (*tokenize)(void *user, const char *bytes, size_t size, int32_t *ids, int32_t capacity);
  void (*destroy)(void *user);
  void *user;
} toolprm_tokenizer;

/* tokens[id]: the bytes that the token writes; empty for special and unused ids, which are never legal. stop_ids end an
 * answer. tokenizer: NULL for the longest match; it may return 0 ids where it does not know, or ids that do not spell
 * the bytes: the longest match is taken then.
 * TOOLPRM_INVALID_ARGUMENT: stop ids out of range, or tokens over 8,192 bytes. */
TOOLPRM_API toolprm_status toolprm_vocabulary_create(const toolprm_bytes *tokens, size_t count, const int32_t *stop_ids,
                                                     size_t stop_count, const toolprm_tokenizer *tokenizer,
                                                     toolprm_vocabulary **vocabulary);
TOOLPRM_API void toolprm_vocabulary_free(toolprm_vocabulary *vocabulary);

/* ------------------------------------------------------------------------------------------------ grammar */

/* Reads what CallGrammar.serialize() (Python) or Grammar::serialize() (C++) wrote; data may go afterwards. Bytes from
 * anywhere are safe. max_instructions: the compile budget, 0 for the default of 4,000,000.
 * TOOLPRM_MALFORMED_GRAMMAR, TOOLPRM_BUDGET_EXCEEDED. */
TOOLPRM_API toolprm_status toolprm_grammar_deserialize(const void *data, size_t size, size_t max_instructions,
                                                       toolprm_grammar **grammar);
TOOLPRM_API void toolprm_grammar_free(toolprm_grammar *grammar);

/* ------------------------------------------------------------------------------------------------ matcher */

enum {
  TOOLPRM_FUNC_NAME = 0,
  TOOLPRM_ARG_VALUE = 1,
  TOOLPRM_PARAM_FINISH = 2,
  TOOLPRM_FUNC_FINISH = 3,
  TOOLPRM_TOTAL_FINISH = 4
};

/* One decision inside a call. The steps of a text lie end to end. */
typedef struct toolprm_step {
  int32_t kind;
  uint32_t start, end; /* byte offsets into the text */
  uint32_t value;      /* ARG_VALUE: where the value begins in text */
  toolprm_bytes path;  /* JSON pointer into the list of calls (or into the value, for a schema) */
  toolprm_bytes text;  /* the bytes from start to end */
} toolprm_step;

/* At the start of a text. */
TOOLPRM_API toolprm_status toolprm_matcher_create(const toolprm_grammar *grammar, const toolprm_vocabulary *vocabulary,
                                                  toolprm_matcher **matcher);
TOOLPRM_API void toolprm_matcher_free(toolprm_matcher *matcher);
/* An independent matcher at the same place, at the cost of a pointer. */
TOOLPRM_API toolprm_status toolprm_matcher_fork(const toolprm_matcher *matcher, toolprm_matcher **fork);
/* Reads a token. steps, count: those that it completed; both may be NULL.
 * TOOLPRM_ILLEGAL_TOKEN: nothing was changed; ids outside the vocabulary are illegal too. */
TOOLPRM_API toolprm_status toolprm_matcher_accept(toolprm_matcher *matcher, int32_t token, const toolprm_step **steps,
                                                  size_t *count);
/* Takes the last tokens back. TOOLPRM_INVALID_ARGUMENT where there are fewer. */
TOOLPRM_API toolprm_status toolprm_matcher_rollback(toolprm_matcher *matcher, size_t tokens);
/* Writes the legal tokens to row: token i is bit i % 32 of word i / 32, 1 = legal. words: of the row, at least
 * ceil(vocabulary / 32); further words are 0. */
TOOLPRM_API toolprm_status toolprm_matcher_fill_mask(const toolprm_matcher *matcher, int32_t *row, size_t words);
/* Writes those of each matcher to its row of rows, [count, words], which may be more than one vocabulary's. threads:
 * how many may work at once on masks that are new. */
TOOLPRM_API toolprm_status toolprm_fill_masks(const toolprm_matcher *const *matchers, size_t count, int32_t *rows,
                                              size_t words, size_t threads);
/* The tokens of the only text that can follow, as the tokenizer would write it; none where there is a choice. */
TOOLPRM_API toolprm_status toolprm_matcher_forced(toolprm_matcher *matcher, const int32_t **tokens, size_t *count);
/* 1 where the text may end here. */
TOOLPRM_API toolprm_status toolprm_matcher_is_complete(const toolprm_matcher *matcher, int32_t *complete);
/* 1 where a stop token was read. */
TOOLPRM_API toolprm_status toolprm_matcher_is_stopped(const toolprm_matcher *matcher, int32_t *stopped);
/* What was read so far. */
TOOLPRM_API toolprm_status toolprm_matcher_text(toolprm_matcher *matcher, toolprm_bytes *text);

/* ------------------------------------------------------------------------------------------------ search */

enum { TOOLPRM_GREEDY = 0, TOOLPRM_SAMPLE = 1, TOOLPRM_STEP_BEAM = 2, TOOLPRM_TOKEN_BEAM = 3 };
enum { TOOLPRM_LAST = 0, TOOLPRM_MIN = 1, TOOLPRM_PRODUCT = 2, TOOLPRM_MEAN = 3 };
/* Who scores the steps: nobody; a reward model that reads step texts and tags; the caller. */
enum { TOOLPRM_SCORING_NONE = 0, TOOLPRM_SCORING_MODEL = 1, TOOLPRM_SCORING_EXTERNAL = 2 };
enum { TOOLPRM_ANY_SIDE = -1, TOOLPRM_POLICY = 0, TOOLPRM_REWARD = 1 };
enum { TOOLPRM_DECODE = 0, TOOLPRM_SCORE = 1, TOOLPRM_DONE = 2 };
/* How the samples of an output are drawn. */
enum { TOOLPRM_INDEPENDENT = 0, TOOLPRM_DISTINCT = 1, TOOLPRM_LIKELIEST = 2 };

typedef struct toolprm_pool_options {
  int32_t block_size; /* slots of a block */
  int32_t capacity;   /* blocks, 0 for no limit */
  int32_t idle;       /* blocks of prompts that are kept when no request uses them; -1: half of the capacity */
} toolprm_pool_options;

typedef struct toolprm_search_config {
  size_t struct_size;
  toolprm_pool_options policy, reward;
  int32_t prompt_tokens; /* of prompts, read in one pass */
  int32_t most_requests; /* under way at once; the others wait */
  int32_t most_rows;     /* of a pass */
} toolprm_search_config;

/* How the reward model reads steps: each step's own tokens, then the tag of its kind. tags: five, by kind of step;
 * steps of a kind with an empty tag are read, not judged. */
TOOLPRM_API toolprm_status toolprm_reward_format_create(const toolprm_tokenizer *tokenizer, const toolprm_ids *tags,
                                                        toolprm_reward_format **format);
TOOLPRM_API void toolprm_reward_format_free(toolprm_reward_format *format);

typedef struct toolprm_request {
  size_t struct_size;
  const toolprm_matcher *matcher; /* where the answer begins; it is forked */
  int32_t strategy, beams, width;
  int32_t aggregate, scoring;
  int32_t distinct, independent, forced_runs; /* 0 or 1 */
  int32_t max_tokens;
  int32_t reward_room; /* tokens that the reward model can read after its prompt; 0: any number */
  double temperature, policy_weight, confidence;
  uint64_t seed;
  toolprm_ids prompt;        /* of the policy; not empty */
  toolprm_ids reward_prompt; /* of SCORING_MODEL, as is */
  const toolprm_reward_format *reward;
} toolprm_request;

/* What to run next: see Plan in toolprm/search.h. Arrays belong to the search, and stay until the next plan of the same
 * side is made. Those of [n, m] lie row after row. */
typedef struct toolprm_plan {
  size_t struct_size;
  int32_t kind;
  int32_t blocks; /* that the pool's tensors must hold */
  /* of the forward pass */
  size_t token_count, row_count, segment_count, context_width, table_width, copy_count, output_count;
  const int32_t *tokens, *positions, *rows, *slots; /* [token_count] */
  const int32_t *segments;                          /* [segment_count, 2]: first slot, slots */
  const int32_t *contexts;                          /* [row_count, context_width], into segments, -1 padded */
  const int32_t *lengths;                           /* [row_count] */
  const int32_t *block_tables;                      /* [row_count, table_width], -1 padded */
  const int32_t *outputs;                           /* [output_count], into tokens */
  const int32_t *copies;                            /* [copy_count, 3]: source slot, target slot, slots */
  /* DECODE: what to draw */
  size_t full_outputs, few_id_count, mask_count, sample_count;
  const int32_t *few_ids;        /* [few_id_count] */
  const int32_t *mask_index;     /* [output_count], into the masks of toolprm_search_plan_masks() */
  const int32_t *draws;          /* [output_count] */
  const double *temperatures;    /* [output_count] */
  const uint8_t *sampling;       /* [output_count] */
  const double *parents;         /* [output_count, 2]: log-probability, perturbed; of DISTINCT ones */
  const double *uniforms;        /* [sample_count] */
  const double *gumbel_uniforms; /* [sample_count], of DISTINCT ones */
  /* whose an output, or a prefix to score, is */
  size_t request_count; /* output_count, or prefix_count */
  const int64_t *requests;
  size_t prefix_count; /* SCORE by the caller: see toolprm_search_prefix() */
} toolprm_plan;

typedef struct toolprm_scored_step {
  toolprm_step step;
  double score;   /* NaN where nothing scored it */
  double logprob; /* of its tokens */
} toolprm_scored_step;

/* Set struct_size and the defaults; size: sizeof(the struct). */
TOOLPRM_API toolprm_status toolprm_search_config_init(toolprm_search_config *config, size_t size);
TOOLPRM_API toolprm_status toolprm_request_init(toolprm_request *request, size_t size);

/* config: NULL for the defaults. */
TOOLPRM_API toolprm_status toolprm_search_create(const toolprm_search_config *config, toolprm_search **search);
TOOLPRM_API void toolprm_search_free(toolprm_search *search);
/* What request points to may go afterwards. TOOLPRM_INVALID_ARGUMENT: options out of range; TOOLPRM_BUDGET_EXCEEDED:
 * max_tokens is too small for any answer. */
TOOLPRM_API toolprm_status toolprm_search_add(toolprm_search *search, const toolprm_request *request, int64_t *id);
/* Drops a request and its blocks; unknown ids are ignored. */
TOOLPRM_API toolprm_status toolprm_search_cancel(toolprm_search *search, int64_t id);
/* Requests that have finished or failed, and wait to be taken. */
TOOLPRM_API toolprm_status toolprm_search_ended(toolprm_search *search, const int64_t **ids, size_t *count);
/* How many requests wait for room, and how many have begun; those that ended are neither. */
TOOLPRM_API toolprm_status toolprm_search_load(const toolprm_search *search, size_t *waiting, size_t *under_way);
/* Takes an ended request out. Its failure is the status: TOOLPRM_BUDGET_EXCEEDED, TOOLPRM_OUT_OF_BLOCKS,
 * TOOLPRM_BAD_LOGITS, TOOLPRM_PASS_FAILED, TOOLPRM_CALLBACK_FAILED, TOOLPRM_INVALID_ARGUMENT (no token writes a byte of
 * the answer). TOOLPRM_UNKNOWN_REQUEST where it is unknown or has not ended. */
TOOLPRM_API toolprm_status toolprm_search_take(toolprm_search *search, int64_t id, toolprm_result **result);
/* Steps from an index on that all answers still possible have in common. TOOLPRM_UNKNOWN_REQUEST. */
TOOLPRM_API toolprm_status toolprm_search_certain(toolprm_search *search, int64_t id, size_t from,
                                                  const toolprm_scored_step **steps, size_t *count);

/* What a side is to run next, the same again until it is committed: TOOLPRM_POLICY, TOOLPRM_REWARD, or TOOLPRM_ANY_SIDE
 * for a caller that runs one pass at a time. A DECODE plan is the policy's, a SCORE plan the reward side's. Set
 * plan->struct_size first. */
TOOLPRM_API toolprm_status toolprm_search_plan(toolprm_search *search, int32_t side, toolprm_plan *plan);
/* The masks of the policy's open plan, [mask_count, words] as toolprm_matcher_fill_mask() writes them. */
TOOLPRM_API toolprm_status toolprm_search_plan_masks(const toolprm_search *search, int32_t *rows, size_t words);
/* The steps of a prefix that the reward side's open plan asks the caller to score: up to and with the one to score. */
TOOLPRM_API toolprm_status toolprm_search_prefix(toolprm_search *search, size_t prefix, const toolprm_step **steps,
                                                 size_t *count);
/* Draws what the policy's open plan asks for from logits in host memory: [full_outputs, width] of the first outputs,
 * width at least the vocabulary, and [output_count - full_outputs, few_id_count] of the others; NULL where there are
 * none. Writes what toolprm_search_commit_tokens() takes, [sample_count]; perturbed: [sample_count, 2].
 * A request whose logits cannot be drawn from (NaN, or all infinite) ends alone: toolprm_search_take() says why. */
TOOLPRM_API toolprm_status toolprm_search_draw(toolprm_search *search, const float *logits, size_t width,
                                               const float *few_logits, int32_t *tokens, double *logprobs,
                                               double *perturbed);
/* What came out of the policy's open plan, count = sample_count each; perturbed [count, 2], NULL where no output is
 * DISTINCT. A token of -1 stands for one that there was not (of DISTINCT and LIKELIEST, not the first).
 * TOOLPRM_INVALID_ARGUMENT: illegal tokens or wrong counts; the plan is then still open. */
TOOLPRM_API toolprm_status toolprm_search_commit_tokens(toolprm_search *search, const int32_t *tokens,
                                                        const double *logprobs, const double *perturbed, size_t count);
/* Scores in [0, 1], count = request_count of the reward side's open plan. TOOLPRM_INVALID_ARGUMENT as above. */
TOOLPRM_API toolprm_status toolprm_search_commit_scores(toolprm_search *search, const double *scores, size_t count);
/* A side's open plan could not be run: its requests fail with TOOLPRM_PASS_FAILED and the reason. */
TOOLPRM_API toolprm_status toolprm_search_fail(toolprm_search *search, int32_t side, const char *reason);
/* Forgets prompts that no request uses. */
TOOLPRM_API toolprm_status toolprm_search_clear_cache(toolprm_search *search);

/* ------------------------------------------------------------------------------------------------ results */

/* Structs that a result fills point into it, and stay as long as it does. */

typedef struct toolprm_answer {
  size_t struct_size;
  toolprm_bytes text;
  toolprm_ids tokens;
  const toolprm_scored_step *steps;
  size_t step_count;
  double rank, score, logprob; /* score: the aggregate, NaN without a scorer */
  int32_t multiplicity;        /* how many draws ended here */
  int32_t closed;              /* 1: max_tokens cut it short, and the shortest legal end was written */
  int32_t node;                /* of the tree; -1: none */
} toolprm_answer;

/* A distinct candidate that the search looked at. */
typedef struct toolprm_node {
  size_t struct_size;
  int32_t parent; /* -1: the start */
  int32_t multiplicity;
  int32_t kept, finished, closed; /* 0 or 1 */
  double rank;
  const toolprm_scored_step *steps;
  size_t step_count;
} toolprm_node;

typedef struct toolprm_stats {
  size_t struct_size;
  /* Tokens that were run, and tokens of the prompts that were not, since another request had. */
  int64_t policy_tokens, reward_tokens, cached_tokens, reward_cached_tokens;
  int64_t forced_tokens, candidates, distinct_candidates, masks, rounds, forward_passes, preemptions;
} toolprm_stats;

TOOLPRM_API void toolprm_result_free(toolprm_result *result);
/* How many answers (one at least) and nodes of the tree there are. */
TOOLPRM_API toolprm_status toolprm_result_size(const toolprm_result *result, size_t *answers, size_t *nodes);
/* Answers come best first. TOOLPRM_INVALID_ARGUMENT where there is none at the index. */
TOOLPRM_API toolprm_status toolprm_result_answer(const toolprm_result *result, size_t index, toolprm_answer *answer);
TOOLPRM_API toolprm_status toolprm_result_node(const toolprm_result *result, size_t index, toolprm_node *node);
TOOLPRM_API toolprm_status toolprm_result_stats(const toolprm_result *result, toolprm_stats *stats);

#ifdef __cplusplus
}
#endif

#endif
