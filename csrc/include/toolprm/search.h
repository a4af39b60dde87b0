// Grammar-constrained search over step boundaries (arXiv 2510.14703, fine-grained beam search), sans-IO: it never runs
// a model. plan() says what to run next, commit_tokens() and commit_scores() take what came out. The blocks of keys and
// values, the prompts that requests share, and who waits for memory are its affair too.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "toolprm/block_pool.h"
#include "toolprm/export.h"
#include "toolprm/mask.h"
#include "toolprm/matcher.h"
#include "toolprm/prefix_cache.h"
#include "toolprm/sampler.h"

namespace toolprm {

enum class Strategy : std::uint8_t {
  kGreedy,    // the likeliest token, one answer
  kSample,    // width independent answers
  kStepBeam,  // beams prefixes, width candidates each at every step, the best beams go on
  kTokenBeam, // the `beams` likeliest prefixes after every token
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
  // The candidates of a beam (of kSample: the answers) are drawn without replacement, as different token sequences.
  bool distinct = false;
  // kStepBeam: every beam is the root of a tree of its own, of which the best candidate goes on at every step.
  bool independent = false;
  // kStepBeam, above 0: candidates are expanded only as far as they are needed. Of a beam's draws the first is, then
  // the first two, four and so on, until the new steps of the best candidate score no less than the confidence times
  // what was before them, or all are. A candidate whose aggregate reaches the confidence goes on alone. Nothing is
  // scored while there is one candidate and no other draw.
  double confidence = 0;
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
  std::vector<TokenId> prompt = {}; // of the policy; not empty
  std::vector<TokenId> reward_prompt = {};
  std::shared_ptr<const RewardFormat> reward = nullptr;
  std::int32_t reward_room = 0; // tokens that the reward model can read after its prompt; 0: any number
};

// How the samples of an output are drawn.
enum class Sampling : std::uint8_t {
  kIndependent, // by sample()
  kDistinct,    // by sample_distinct()
  kLikeliest,   // by likeliest()
};

// The two models that a search asks.
enum class Side : std::uint8_t { kPolicy, kReward };

enum class PlanKind : std::uint8_t {
  kDecode, // a pass of the policy; its samples go to commit_tokens()
  kScore,  // a pass of the reward model, or prefixes for the caller to score; to commit_scores()
  kDone,   // nothing can be run (on this side) now
};

// What to run next. Rows are distinct prefixes, or parts of prompts that are being read; tokens of all rows lie end to
// end. A row reads the segments of its context, then its own tokens: those in its blocks, and up to itself those of
// this pass. Keys and values of all tokens are to be written before any are read: a row may read a segment that another
// row fills in the same pass.
struct Plan {
  PlanKind kind = PlanKind::kDone;
  // of the forward pass
  std::vector<std::int32_t> tokens, positions, rows, slots; // a token each; positions are absolute
  std::vector<Segment> segments;                            // distinct, of all rows
  std::vector<std::int32_t> contexts;                       // rows x context_width, into segments, -1 padded
  std::int32_t context_width = 0;
  // A row each: own tokens after this pass, of which those before it are in its blocks. A row whose tokens are all of
  // this pass needs no blocks.
  std::vector<std::int32_t> lengths;
  std::vector<std::int32_t> block_tables; // rows x table_width, -1 padded
  std::int32_t table_width = 0;
  std::vector<std::int32_t> outputs; // indices into tokens whose logits are wanted
  std::vector<SlotCopy> copies;      // to be made first
  std::int32_t blocks = 1;           // blocks that the pool's tensors must hold; nobody writes into block 0
  // DECODE: the first full_outputs want the logits of the whole vocabulary, the others those of few_ids alone
  std::int32_t full_outputs = 0;
  std::vector<TokenId> few_ids; // ascending
  // DECODE: an output each
  std::vector<std::shared_ptr<const Mask>> masks; // distinct
  std::vector<std::int32_t> mask_index;           // into masks
  std::vector<std::int32_t> draws;                // samples wanted
  std::vector<double> temperatures;
  std::vector<Sampling> sampling;
  std::vector<Perturbed> parents; // of distinct ones
  // DECODE: a sample each, in the order of outputs
  std::vector<double> uniforms;
  std::vector<double> gumbel_uniforms; // of distinct ones
  // Whose an output (of a SCORE by the caller: a prefix to score) is
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
  // Tokens that were run, and tokens of the prompts that were not, since another request had.
  std::int64_t policy_tokens = 0, reward_tokens = 0, cached_tokens = 0, reward_cached_tokens = 0;
  std::int64_t forced_tokens = 0, candidates = 0, distinct_candidates = 0, masks = 0, rounds = 0, forward_passes = 0;
  std::int64_t preemptions = 0; // how often it gave its blocks to an older request, to be read again later
};

struct Result {
  std::vector<Answer> answers; // best first, never empty
  std::vector<TreeNode> tree;
  SearchStats stats;
};

struct PoolOptions {
  std::int32_t block_size = 16; // slots of a block
  std::int32_t capacity = 0;    // blocks, 0 for no limit
  // Blocks of prompts that no request uses any more and that are kept for those to come; -1: half of the capacity.
  std::int32_t idle = -1;
};

struct SearchConfig {
  PoolOptions policy = {}, reward = {};
  std::int32_t prompt_tokens = 512; // of prompts, read in one pass
  std::int32_t most_requests = 256; // under way at once; the others wait
  std::int32_t most_rows = 512;     // of a pass; a request that has more by itself gets a pass of its own
};

// Many requests at once, each of which may come, end or be cancelled at any time. Not thread-safe: one thread at a time
// may be inside, but the passes of the two sides may run beside each other.
//
//   Search search;
//   auto id = search.add({matcher, options, Scoring::kNone, prompt});
//   for (const Plan *plan = &search.plan(); plan->kind == PlanKind::kDecode; plan = &search.plan()) {
//     run_model(*plan, logits, few_logits); // [full_outputs, vocabulary], [the other outputs, few_ids]
//     Draws drawn = draw(*plan, logits, few_logits); // on a CPU: toolprm/draw.h
//     search.commit_tokens(drawn.tokens, drawn.logprobs, drawn.perturbed);
//   }
//   Result result = search.take(id);
//
// Where blocks lack, idle prompts go first; then the youngest requests give theirs up, wait, and read their tokens
// again later (the answer is the same: random numbers depend on their keys alone). A request that finds no room when
// all others are gone fails with OutOfBlocks.
class TOOLPRM_API Search {
public:
  // Throws std::invalid_argument for sizes out of range.
  explicit Search(SearchConfig config = {});
  ~Search();
  Search(const Search &) = delete;
  Search &operator=(const Search &) = delete;

  // Returns the request's id. Throws std::invalid_argument for options out of range, BudgetError where max_tokens is
  // too small for any answer, and what the tokenizers throw; the search is then as before.
  std::int64_t add(Request request);
  // Drops a request and its blocks; unknown ids are ignored. What an open plan asks for it is ignored at the commit.
  void cancel(std::int64_t id);
  // Requests that are finished or have failed, and wait to be taken.
  std::vector<std::int64_t> ended() const;
  // Throws std::out_of_range for an unknown id.
  bool finished(std::int64_t id) const;
  // Takes a finished request out, or throws what it failed with (its tokenizer's error, BudgetError where its text can
  // be read in too many ways, OutOfBlocks). Throws std::out_of_range where it is unknown or not finished.
  Result take(std::int64_t id);
  // Steps from an index on that all answers still possible have in common.
  std::vector<ScoredStep> certain(std::int64_t id, std::size_t from) const;
  // Requests that wait for room, or that have begun; those that ended are neither.
  std::size_t waiting() const, under_way() const;

  // What a side is to run next; the same plan again until it is committed. Both sides may have a plan open. Requests
  // added meanwhile wait for the next one. The reference is good until the side's next plan is made. Where a side has
  // nothing to run, the other one may have since: ask it too before waiting.
  const Plan &plan(Side side);
  // The same for a caller that runs one pass at a time: scores once as many requests wait for one as do not.
  const Plan &plan();
  // tokens and log-probabilities, one a sample of the policy's plan; perturbed too where it has distinct outputs (a
  // token of -1 stands for one that there was not). Throws std::invalid_argument for illegal tokens or wrong counts;
  // the plan is then still open. A request that cannot go on fails alone: see ended().
  void commit_tokens(std::span<const TokenId> tokens, std::span<const double> logprobs,
                     std::span<const Perturbed> perturbed = {});
  // Scores in [0, 1], one an output of the reward side's plan, or a prefix to score. Throws as commit_tokens() does.
  void commit_scores(std::span<const double> scores);
  // The side's open plan could not be run: its requests fail with what is given, nothing that it wrote is used.
  void fail(Side side, const std::exception_ptr &error);

  const BlockPool &pool(Side side) const { return *side_of(side).pool; }
  // Blocks of prompts that no request uses.
  std::int32_t idle_blocks(Side side) const { return side_of(side).cache->idle(); }
  // Forgets those prompts.
  void clear_cache();

private:
  struct Task;
  struct SideState {
    std::shared_ptr<BlockPool> pool;
    std::shared_ptr<PrefixCache> cache;
    Plan plan;
    bool open = false;
    std::vector<std::int64_t> tasks; // that take part in the open plan
  };
  const SideState &side_of(Side side) const { return sides_[static_cast<std::size_t>(side)]; }
  SideState &side_of(Side side) { return sides_[static_cast<std::size_t>(side)]; }
  bool in_open_plan(std::int64_t id) const;
  bool alone(const Task &task) const;
  void admit();
  bool admit(Task &task);
  bool restart(Task &task);
  static void give_up_blocks(Task &task);
  bool reserve(Task &task, Side side, std::int32_t blocks);
  bool preempt_youngest(const Task &older);
  static bool reads_all(const Task &task, Side side, std::int32_t room);
  template <class Read> static void read_prompt(Task &task, Side side, std::int32_t &room, const Read &read);
  void plan_policy();
  void plan_reward();
  void plan_external();
  template <class Use> void commit(Side side, const Use &use);

  SearchConfig config_;
  std::array<SideState, 2> sides_;
  std::map<std::int64_t, std::unique_ptr<Task>> tasks_; // by age
  std::int64_t next_id_ = 0;
  bool restarted_ = false; // a request, since the last plan was begun
};

} // namespace toolprm
