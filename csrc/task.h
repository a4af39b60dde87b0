// One request of a search: its beams, what becomes of their draws, and what is kept. Private to the core.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "toolprm/chain.h"
#include "toolprm/search.h"

namespace toolprm {

// A prefix under way: what was decided, what it cost, and where its keys and values are. A copy shares all of it.
struct Prefix {
  Matcher matcher;
  KvSequence kv, reward_kv;
  std::vector<TokenId> pending; // accepted, but not run yet
  Chain<ScoredStep> steps;
  std::size_t reward_read = 0; // steps that are in reward_kv
  double logprob = 0;
  double open_logprob = 0; // of the tokens since the last step
  std::int32_t node = -1;
  bool finished = false, closed = false;

  explicit Prefix(Matcher m) : matcher(std::move(m)) {}
};

// A step that is to be scored.
struct Judgement {
  std::int32_t tag;  // of a reward model: index of the tag's last token among what it reads of the row
  std::int64_t step; // index among the prefix's steps
};

// A retained prefix. Its draws have numbers by seats: one a beam, or those of all trees that agree on it.
struct Beam {
  Prefix prefix;
  std::vector<std::uint32_t> seats;
};

// A distinct prefix being expanded, for all the draws that agree so far.
struct Row {
  Prefix prefix;
  std::size_t known; // steps that the beam had already
  std::vector<std::uint32_t> draws;
  std::shared_ptr<const Mask> mask = {};     // of the next token
  std::vector<TokenId> reward_tokens = {};   // what the reward model has yet to read of the steps
  std::vector<Judgement> judgements = {};    // in the order of the steps
  std::uint32_t beam = 0;                    // of distinct rows: which race they are in,
  std::uint32_t key = 0;                     // what their random numbers depend on,
  Perturbed place = {};                      // and how they stand
  std::size_t first_sample = 0, samples = 0; // in the open plan
};

struct Search::Task {
  enum class Phase : std::uint8_t { kExpanding, kScoring, kDone, kFailed };

  // Throws BudgetError where max_tokens is too small for any answer.
  Task(Request request, std::int64_t id);

  const SearchOptions &options() const { return request.options; }
  bool ended() const { return phase == Phase::kDone || phase == Phase::kFailed; }
  // Has a part in forward passes of the reward model.
  bool has_model_reward() const { return request.scoring == Scoring::kModel; }
  // The reward model has something to read for it, or will surely have.
  bool wants_reward() const { return has_model_reward() && (options().confidence <= 0 || phase == Phase::kScoring); }

  // ------------------------------------------------------------------ the search

  // Takes the samples of the rows of the open plan.
  void draw(std::span<const TokenId> tokens, std::span<const double> logprobs, std::span<const Perturbed> perturbed);
  // Scores of the candidates' new steps, one a judged step in their order.
  void score(std::span<const double> scores);
  // Steps from an index on that all answers still possible have in common.
  std::vector<ScoredStep> certain(std::size_t from) const;
  Result result();
  void fail(std::exception_ptr error);

  // ------------------------------------------------------------------ keys and values

  // Begins to use pools (the leases must be there), with everything to be read.
  void settle_in(const std::shared_ptr<BlockPool> &policy, const std::shared_ptr<BlockPool> &reward);
  // Gives all blocks back: what was read has to be read again.
  void give_up_blocks();
  // Begins the search anew. Rows that read their tokens again share no blocks any more, so that a request may find no
  // room where it would have with its first ones. False where it never gave blocks up.
  bool restart();
  // Blocks that the rows of the next pass take of a side's pool.
  std::int32_t needed(Side side) const;

  const std::int64_t id;
  Request request;
  Phase phase = Phase::kExpanding;
  std::exception_ptr error;
  bool admitted = false;
  bool gave_up = false;                            // blocks, since the search began
  std::array<PrefixCache::Lease, 2> leases;        // by side; the policy's is of the prompt without its last token
  std::array<bool, 2> read = {false, false};       // the lease's tokens were run by passes that were committed
  std::array<std::int32_t, 2> prompt_run = {0, 0}; // tokens of the prompts that this request ran itself
  std::array<bool, 2> counted = {false, false};    // those that it did not run are in the stats
  bool scoring_planned = false;                    // the open plan of the reward side asks for its scores
  std::vector<Row> rows;                           // still being expanded
  std::vector<Row> candidates;                     // expanded; distinct once all are
  SearchStats stats;
  std::uint32_t round = 0;

private:
  void begin();
  void expand();
  void place(Row row);
  bool done_expanding(const Row &row) const;
  bool active(const Row &row) const;
  std::int64_t left(const Matcher &matcher) const;
  bool can_close(const Matcher &matcher) const;
  bool write(Prefix &prefix, std::span<const TokenId> tokens, double logprob) const;
  void finish(Prefix &prefix);
  void close(Prefix &prefix);
  void run_forced(Prefix &prefix);
  void take_token(Prefix &prefix, TokenId token, double logprob);
  void part(Row row, std::span<const TokenId> tokens, std::span<const double> logprobs,
            std::span<const Perturbed> perturbed);
  void end_races();
  void grow(std::vector<Row> &drawn, std::span<const TokenId> tokens, std::span<const double> logprobs);
  void settle();
  void prepare_scoring(Row &row) const;
  double rank(const Prefix &prefix) const;
  bool is_certain(const Prefix &prefix) const;
  bool adds_no_doubt(const Row &row) const;
  bool widen();
  void choose();
  void select();
  void answer(const Row &row);
  std::int32_t certain_node() const;
  template <class Use> void each_prefix(const Use &use);

  std::size_t begun_tokens_; // tokens that the request's matcher had read
  std::vector<Beam> beams_;  // between rounds
  // With confidence: how many draws of a seat are expanded, rows of the others, and candidates of earlier waves.
  std::uint32_t wave_ = 0;
  std::vector<Row> parked_, earlier_;
  std::vector<Answer> answers_;
  std::map<std::string, std::size_t> answered_; // answers by what they decide
  std::vector<std::int32_t> ahead_;             // nodes of the beams
  std::vector<TreeNode> tree_;
};

} // namespace toolprm
