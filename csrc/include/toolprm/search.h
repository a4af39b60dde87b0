// Grammar-constrained search over step boundaries (arXiv 2510.14703, fine-grained beam search), sans-IO: it never runs
// a model. plan() says what to run next, commit_tokens() and commit_scores() take what came out.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "toolprm/block_pool.h"
#include "toolprm/mask.h"
#include "toolprm/matcher.h"

namespace toolprm {

enum class Strategy : std::uint8_t {
  kGreedy,   // the likeliest token, one answer
  kSample,   // width independent answers
  kStepBeam, // beams prefixes, width candidates each at every step, the best beams go on
};
enum class Aggregate : std::uint8_t { kLast, kMin, kProduct, kMean };

// Who scores the steps.
enum class Scoring : std::uint8_t {
  kNone,     // nobody: candidates rank by the policy's log-probability
  kModel,    // a reward model that reads step texts and tags: SCORE plans carry its tokens
  kExternal, // the caller: SCORE plans name the prefixes, it returns a score each
};

struct SearchOptions {
  Strategy strategy = Strategy::kStepBeam;
  std::int32_t beams = 4, width = 4;
  double temperature = 0.8;
  Aggregate aggregate = Aggregate::kLast;
  double policy_weight = 0; // rank = log(score) + policy_weight * log-probability
  std::uint64_t seed = 0;
  std::int32_t max_tokens = 512;
  bool forced_runs = true; // write what the grammar leaves no choice about without asking the model
};

// How the reward model reads steps: each step's own tokens, then the tag of its kind.
struct RewardFormat {
  Tokenize tokenize;
  std::array<std::vector<TokenId>, 5> tags; // by StepKind; steps of a kind without a tag are read, not judged
};

struct Request {
  Matcher matcher;
  SearchOptions options = {};
  Scoring scoring = Scoring::kNone;
  std::int32_t policy_prefix = 0; // the engine's id of the prompt without its last token
  std::int32_t policy_length = 0; // tokens of that prefix
  TokenId last_token = 0;         // the prompt's last token: the first one that the search runs
  std::int32_t reward_prefix = 0;
  std::int32_t reward_length = 0;
  std::shared_ptr<const RewardFormat> reward = nullptr;
};

enum class PlanKind : std::uint8_t { kDecode, kScore, kDone };

// What to run next. Rows are distinct prefixes; tokens of all rows lie end to end.
struct Plan {
  PlanKind kind = PlanKind::kDone;
  // of the forward pass
  std::vector<std::int32_t> tokens, positions, rows, slots; // a token each; positions are absolute
  std::vector<std::int32_t> prefixes, lengths;              // a row each; lengths: own tokens after this pass
  std::vector<std::int32_t> block_tables;                   // rows x table_width, -1 padded
  std::int32_t table_width = 0;
  std::vector<std::int32_t> outputs; // indices into tokens whose logits are wanted
  std::vector<SlotCopy> copies;      // to be made first
  std::int32_t blocks = 0;           // blocks that the pool's tensors must hold
  // DECODE: an output each
  std::vector<std::shared_ptr<const Mask>> masks; // distinct
  std::vector<std::int32_t> mask_index;           // into masks
  std::vector<std::int32_t> draws;                // samples wanted
  std::vector<double> temperatures;
  // DECODE: a sample each, in the order of outputs
  std::vector<double> uniforms;
  // SCORE by the caller: an output each
  std::vector<std::int64_t> requests;
  std::vector<std::vector<Step>> prefixes_to_score; // the steps up to and with the one to score
};

struct ScoredStep {
  Step step;
  double score = 0;   // NaN where nothing scored it
  double logprob = 0; // of its tokens
};

// A distinct candidate that the search looked at.
struct TreeNode {
  std::int32_t parent = -1; // -1: the start
  std::vector<ScoredStep> steps;
  double rank = 0;
  std::int32_t multiplicity = 0; // how many draws ended here
  bool kept = false, finished = false, closed = false;
};

struct Answer {
  std::string text;
  std::vector<TokenId> tokens;
  std::vector<ScoredStep> steps;
  double rank = 0, score = 0, logprob = 0; // score: the aggregate, NaN without a scorer
  std::int32_t multiplicity = 0;
  bool closed = false; // max_tokens cut it short: the shortest legal end was written
  std::int32_t node = -1;
};

struct SearchStats {
  std::int64_t policy_tokens = 0, reward_tokens = 0, forced_tokens = 0;
  std::int64_t candidates = 0, distinct_candidates = 0, masks = 0, rounds = 0, forward_passes = 0;
};

struct Result {
  std::vector<Answer> answers; // best first, never empty
  std::vector<TreeNode> tree;
  SearchStats stats;
};

// Several requests at once. Not thread-safe: one thread at a time.
//
//   Search search;
//   auto id = search.add({matcher, options});
//   for (const Plan *plan = &search.plan(); plan->kind == PlanKind::kDecode; plan = &search.plan()) {
//     run_model(*plan, logits); // [outputs, vocabulary]
//     draw(*plan, logits, tokens, logprobs); // by sample() on a CPU
//     search.commit_tokens(tokens, logprobs);
//   }
//   Result result = search.take(id);
class Search {
public:
  // block_size: slots of a block of keys and values of the policy; reward_block_size: of the reward model, 0 for the
  // same. Throws std::invalid_argument for sizes below 1.
  explicit Search(std::int32_t block_size = 16, std::int32_t reward_block_size = 0);
  ~Search();
  Search(const Search &) = delete;
  Search &operator=(const Search &) = delete;

  // Returns the request's id. Throws std::invalid_argument for options out of range, BudgetError where max_tokens is
  // too small for any answer, and what the tokenizers throw; the search is then as before.
  std::int64_t add(Request request);
  // Drops a request and its blocks; unknown ids are ignored. What an open plan asks for it is ignored at the commit.
  void cancel(std::int64_t id);
  // Throws std::out_of_range for an unknown id.
  bool finished(std::int64_t id) const;
  // Takes a finished request out. Throws std::out_of_range where it is unknown or not finished.
  Result take(std::int64_t id);

  // What to run next; the same plan again until it is committed. Requests added meanwhile wait for the next one.
  // The reference is good until the next call that makes another plan.
  const Plan &plan();
  // tokens and log-probabilities, one a sample of the plan. Throws std::invalid_argument for illegal tokens or wrong
  // counts; the plan is then still open. Where a request cannot go on (its tokenizer throws, or its text can be read in
  // too many ways), all others are committed, it is dropped, and what it threw is thrown.
  void commit_tokens(std::span<const TokenId> tokens, std::span<const double> logprobs);
  // Scores in [0, 1], one an output of the plan. Throws as commit_tokens() does.
  void commit_scores(std::span<const double> scores);

  const BlockPool &policy_pool() const { return *policy_pool_; }
  const BlockPool &reward_pool() const { return *reward_pool_; }

private:
  struct Task;
  template <class Use> void commit(const Use &use);
  std::shared_ptr<BlockPool> policy_pool_, reward_pool_;
  std::map<std::int64_t, std::unique_ptr<Task>> tasks_;
  std::int64_t next_id_ = 0;
  Plan plan_;
  std::vector<std::pair<std::int64_t, std::size_t>> shares_; // of the open plan: request, its samples or scores
  bool planned_ = false;
};

} // namespace toolprm
