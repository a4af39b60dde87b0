#include "toolprm/search.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>

#include "toolprm/sampler.h"

namespace toolprm {

namespace {

constexpr double kNoScore = std::numeric_limits<double>::quiet_NaN();

void check(bool ok, const char *message) {
  if (!ok)
    throw std::invalid_argument(message);
}

// A prefix under way: what was decided, what it cost, and where its keys and values are.
struct Prefix {
  Matcher matcher;
  KvSequence kv, reward_kv;
  std::vector<TokenId> pending; // accepted, but not run yet
  std::vector<ScoredStep> steps;
  double logprob = 0;
  double open_logprob = 0; // of the tokens since the last step
  std::int32_t node = -1;
  bool finished = false, closed = false;

  explicit Prefix(Matcher m) : matcher(std::move(m)) {}
};

// A distinct prefix being expanded, for all the draws that agree so far.
struct Row {
  Prefix prefix;
  std::size_t known; // steps that the beam had already
  std::vector<std::uint32_t> draws;
  std::shared_ptr<const Mask> mask{};      // of the next token
  std::vector<TokenId> reward_tokens{};    // what the reward model reads of the new steps
  std::vector<std::int32_t> reward_tags{}; // indices into them: the last token of each judged step's tag
};

// Over the steps that were judged; 1 while none is.
double aggregate(const std::vector<ScoredStep> &steps, Aggregate how) {
  double product = 1, least = 1, sum = 0, last = 1;
  std::size_t judged = 0;
  for (const ScoredStep &s : steps) {
    if (std::isnan(s.score))
      continue;
    product *= s.score;
    least = std::min(least, s.score);
    sum += s.score;
    last = s.score;
    ++judged;
  }
  switch (how) {
  case Aggregate::kMin:
    return least;
  case Aggregate::kProduct:
    return product;
  case Aggregate::kMean:
    return judged > 0 ? sum / static_cast<double>(judged) : 1;
  case Aggregate::kLast:
    break;
  }
  return last;
}

// What was decided, however it was spelled: arguments in any order, values canonical.
std::string decisions(const Prefix &prefix) {
  std::string out;
  std::map<std::string, std::string> arguments;
  const auto write = [&](const std::string &text) { out += std::to_string(text.size()) + ':' + text; };
  const auto flush = [&] {
    for (const auto &[path, value] : arguments) {
      write(path);
      write(value);
    }
    arguments.clear();
  };
  for (const ScoredStep &s : prefix.steps) {
    if (s.step.kind == StepKind::kArgValue) {
      arguments[s.step.path] = canonical_value(std::string_view(s.step.text).substr(s.step.value));
      continue;
    }
    flush();
    if (s.step.kind == StepKind::kFuncName)
      write(s.step.text);
    out += static_cast<char>('A' + static_cast<int>(s.step.kind));
  }
  flush();
  if (prefix.finished)
    out += '.';
  return out;
}

} // namespace

struct Search::Task {
  enum class Phase : std::uint8_t { kExpanding, kScoring, kDone };

  explicit Task(Request r) : request(std::move(r)) {}

  Request request;
  Phase phase = Phase::kExpanding;
  std::uint32_t round = 0;
  std::vector<Prefix> beams;
  std::vector<Row> rows;       // still being expanded
  std::vector<Row> candidates; // expanded; distinct once all are
  std::vector<Answer> answers;
  std::map<std::string, std::size_t> answered; // answers by what they decide
  std::vector<TreeNode> tree;
  SearchStats stats;

  const SearchOptions &options() const { return request.options; }

  void start(const std::shared_ptr<BlockPool> &policy, const std::shared_ptr<BlockPool> &reward) {
    Prefix root(request.matcher);
    const std::size_t needed = root.matcher.token_count() + closing_tokens(root.matcher);
    if (needed > static_cast<std::size_t>(options().max_tokens))
      throw BudgetError("max_tokens is " + std::to_string(options().max_tokens) +
                        ", but the shortest legal answer needs " + std::to_string(needed));
    root.kv = KvSequence(policy);
    root.reward_kv = KvSequence(reward);
    root.pending.push_back(request.last_token);
    stats.policy_tokens += request.policy_length;
    if (request.scoring == Scoring::kModel)
      stats.reward_tokens += request.reward_length;
    run_forced(root);
    beams.push_back(std::move(root));
    expand();
  }

  // Every beam becomes one row with as many draws as its width.
  void expand() {
    rows.clear();
    candidates.clear();
    const auto width = static_cast<std::uint32_t>(options().strategy == Strategy::kGreedy ? 1 : options().width);
    for (std::size_t b = 0; b < beams.size(); ++b) {
      Row row{std::move(beams[b]), 0, {}};
      row.known = round == 0 ? 0 : row.prefix.steps.size();
      for (std::uint32_t m = 0; m < width; ++m)
        row.draws.push_back(static_cast<std::uint32_t>(b) * width + m);
      stats.candidates += static_cast<std::int64_t>(width);
      place(std::move(row));
    }
    beams.clear();
    ++stats.rounds;
    if (rows.empty())
      settle();
  }

  bool done_expanding(const Row &row) const {
    if (row.prefix.finished)
      return true;
    return options().strategy == Strategy::kStepBeam && row.prefix.steps.size() > row.known;
  }

  void place(Row row) {
    const bool done = done_expanding(row);
    row.mask = done ? nullptr : row.prefix.matcher.mask(); // here, not in plan(), which must not fail half-way
    (done ? candidates : rows).push_back(std::move(row));
  }

  // ------------------------------------------------------------------ tokens

  std::int64_t left(const Matcher &matcher) const {
    return options().max_tokens - static_cast<std::int64_t>(matcher.token_count());
  }

  static std::size_t closing_tokens(const Matcher &matcher) {
    return matcher.vocabulary().tokenize(matcher.closing()).size();
  }

  // Whether the answer can still be completed within max_tokens. Bytes bound tokens from above and come for free.
  bool can_close(const Matcher &matcher) const {
    const std::int64_t room = left(matcher);
    if (room < 0)
      return false;
    return matcher.closing_bytes() <= static_cast<std::uint64_t>(room) ||
           closing_tokens(matcher) <= static_cast<std::size_t>(room);
  }

  static void add_steps(Prefix &prefix, std::vector<Step> &steps) {
    for (Step &step : steps) {
      prefix.steps.push_back({std::move(step), kNoScore, prefix.open_logprob});
      prefix.open_logprob = 0;
    }
    steps.clear();
  }

  static void read(Matcher &matcher, std::span<const TokenId> tokens, std::vector<Step> &steps) {
    for (TokenId token : tokens)
      if (!matcher.accept(token, &steps))
        throw std::logic_error("a token that the grammar had offered was refused");
  }

  // Writes tokens, unless the answer could then not be completed within max_tokens any more.
  bool write(Prefix &prefix, std::span<const TokenId> tokens, double logprob) const {
    Matcher after(prefix.matcher);
    std::vector<Step> steps;
    read(after, tokens, steps);
    if (!can_close(after))
      return false;
    prefix.matcher = std::move(after);
    prefix.pending.insert(prefix.pending.end(), tokens.begin(), tokens.end());
    prefix.logprob += logprob;
    prefix.open_logprob += logprob;
    add_steps(prefix, steps);
    return true;
  }

  void finish(Prefix &prefix) {
    std::vector<Step> steps;
    if (!prefix.matcher.is_stopped())
      prefix.matcher.finish(&steps);
    add_steps(prefix, steps);
    prefix.finished = true;
    prefix.pending.clear();
  }

  // Writes the shortest end. The invariant of can_close() makes it fit.
  void close(Prefix &prefix) {
    std::vector<Step> steps;
    read(prefix.matcher, prefix.matcher.vocabulary().tokenize(prefix.matcher.closing()), steps);
    add_steps(prefix, steps);
    prefix.closed = true;
    finish(prefix);
  }

  void run_forced(Prefix &prefix) {
    if (options().forced_runs) {
      const std::vector<TokenId> run = prefix.matcher.forced();
      if (!run.empty()) {
        if (!write(prefix, run, 0)) { // the run and the end tokenised apart may be longer than together
          close(prefix);
          return;
        }
        stats.forced_tokens += static_cast<std::int64_t>(run.size());
      }
    }
    if (prefix.matcher.is_over())
      finish(prefix);
  }

  void take_token(Prefix &prefix, TokenId token, double logprob) {
    if (prefix.matcher.vocabulary().is_stop(token)) {
      prefix.logprob += logprob;
      prefix.open_logprob += logprob;
      std::vector<Step> steps;
      read(prefix.matcher, {&token, 1}, steps);
      add_steps(prefix, steps);
      finish(prefix);
    } else if (write(prefix, {&token, 1}, logprob)) {
      run_forced(prefix);
    } else {
      close(prefix);
    }
  }

  // One draw a candidate: rows part where their draws differ.
  void draw(Row row, std::span<const TokenId> tokens, std::span<const double> logprobs) {
    std::vector<TokenId> distinct;
    for (TokenId token : tokens)
      if (std::find(distinct.begin(), distinct.end(), token) == distinct.end())
        distinct.push_back(token);
    for (TokenId token : distinct) {
      Row child{token == distinct.back() ? std::move(row.prefix) : row.prefix, row.known, {}};
      double logprob = 0;
      for (std::size_t i = 0; i < tokens.size(); ++i)
        if (tokens[i] == token) {
          child.draws.push_back(row.draws[i]);
          logprob = logprobs[i];
        }
      take_token(child.prefix, token, logprob);
      place(std::move(child));
    }
  }

  // ------------------------------------------------------------------ candidates

  // All draws are made: equal decisions become one candidate.
  void settle() {
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Row &a, const Row &b) { return a.draws.front() < b.draws.front(); });
    std::map<std::string, std::size_t> known;
    std::vector<Row> distinct;
    std::vector<std::vector<std::uint32_t>> draws;
    for (Row &row : candidates) {
      const std::string decided = decisions(row.prefix);
      if (const auto same = answered.find(decided); same != answered.end()) { // written in other tokens, rounds ago
        const auto more = static_cast<std::int32_t>(row.draws.size());
        answers[same->second].multiplicity += more;
        tree[static_cast<std::size_t>(answers[same->second].node)].multiplicity += more;
        continue;
      }
      auto [at, fresh] = known.emplace(decided, distinct.size());
      if (fresh) {
        draws.push_back(row.draws);
        distinct.push_back(std::move(row));
        continue;
      }
      auto &all = draws[at->second];
      all.insert(all.end(), row.draws.begin(), row.draws.end());
      if (row.draws.size() > distinct[at->second].draws.size()) // the most frequent spelling stands for all
        distinct[at->second] = std::move(row);
    }
    for (std::size_t i = 0; i < distinct.size(); ++i) {
      distinct[i].draws = std::move(draws[i]);
      Prefix &prefix = distinct[i].prefix;
      TreeNode node;
      node.parent = prefix.node;
      node.steps.assign(prefix.steps.begin() + static_cast<std::ptrdiff_t>(distinct[i].known), prefix.steps.end());
      node.multiplicity = static_cast<std::int32_t>(distinct[i].draws.size());
      node.finished = prefix.finished;
      node.closed = prefix.closed;
      prefix.node = static_cast<std::int32_t>(tree.size());
      tree.push_back(std::move(node));
    }
    candidates = std::move(distinct);
    stats.distinct_candidates += static_cast<std::int64_t>(candidates.size());
    bool to_score = false;
    for (Row &row : candidates) {
      if (request.scoring == Scoring::kModel)
        write_reward(row);
      const bool fresh = row.prefix.steps.size() > row.known;
      to_score = to_score || (request.scoring == Scoring::kExternal ? fresh : !row.reward_tokens.empty());
    }
    if (to_score)
      phase = Phase::kScoring;
    else
      select();
  }

  // What the reward model reads of a candidate's new steps.
  void write_reward(Row &row) const {
    const RewardFormat &reward = *request.reward;
    for (std::size_t s = row.known; s < row.prefix.steps.size(); ++s) {
      const Step &step = row.prefix.steps[s].step;
      if (!step.text.empty()) {
        const std::vector<TokenId> text = reward.tokenize(step.text);
        row.reward_tokens.insert(row.reward_tokens.end(), text.begin(), text.end());
      }
      const auto &tag = reward.tags[static_cast<std::size_t>(step.kind)];
      if (tag.empty()) // read, but not judged
        continue;
      row.reward_tokens.insert(row.reward_tokens.end(), tag.begin(), tag.end());
      row.reward_tags.push_back(static_cast<std::int32_t>(row.reward_tokens.size() - 1));
    }
  }

  double rank(const Prefix &prefix) const {
    if (request.scoring == Scoring::kNone)
      return prefix.logprob;
    return std::log(std::max(aggregate(prefix.steps, options().aggregate), 1e-300)) +
           options().policy_weight * prefix.logprob;
  }

  // Ranks count to four decimals: what differs by the models' rounding alone, such as the same step scored in two rows,
  // must stay equal, or batching could change the answer.
  static double comparable(double rank) { return std::round(rank * 1e4); }

  // The best candidates are kept; those among them that are finished become answers.
  void select() {
    std::vector<std::pair<double, std::size_t>> order;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      Prefix &prefix = candidates[i].prefix;
      const double r = rank(prefix);
      TreeNode &node = tree[static_cast<std::size_t>(prefix.node)];
      node.rank = r;
      for (std::size_t s = 0; s < node.steps.size(); ++s)
        node.steps[s].score = prefix.steps[candidates[i].known + s].score;
      order.emplace_back(comparable(r), i);
    }
    std::stable_sort(order.begin(), order.end(), [&](const auto &a, const auto &b) {
      if (a.first != b.first)
        return a.first > b.first;
      const std::size_t x = candidates[a.second].draws.size(), y = candidates[b.second].draws.size();
      if (x != y)
        return x > y;
      return candidates[a.second].prefix.logprob > candidates[b.second].prefix.logprob;
    });
    std::size_t keep = order.size();
    if (options().strategy == Strategy::kStepBeam) {
      const std::size_t seats = static_cast<std::size_t>(options().beams) -
                                std::min(answers.size(), static_cast<std::size_t>(options().beams));
      keep = std::min(keep, std::max<std::size_t>(seats, 1));
    }
    beams.clear();
    for (std::size_t k = 0; k < keep; ++k) {
      Row &row = candidates[order[k].second];
      tree[static_cast<std::size_t>(row.prefix.node)].kept = true;
      if (row.prefix.finished)
        answer(row);
      else
        beams.push_back(std::move(row.prefix));
    }
    candidates.clear();
    ++round;
    if (beams.empty()) {
      std::stable_sort(answers.begin(), answers.end(),
                       [](const Answer &a, const Answer &b) { return comparable(a.rank) > comparable(b.rank); });
      phase = Phase::kDone;
      return;
    }
    phase = Phase::kExpanding;
    expand();
  }

  void answer(const Row &row) {
    const Prefix &prefix = row.prefix;
    answered.emplace(decisions(prefix), answers.size());
    Answer out;
    out.text = prefix.matcher.text();
    out.tokens = prefix.matcher.tokens();
    while (!out.tokens.empty() && prefix.matcher.vocabulary().is_stop(out.tokens.back()))
      out.tokens.pop_back();
    out.steps = prefix.steps;
    out.rank = rank(prefix);
    out.score = request.scoring == Scoring::kNone ? kNoScore : aggregate(prefix.steps, options().aggregate);
    out.logprob = prefix.logprob;
    out.multiplicity = static_cast<std::int32_t>(row.draws.size());
    out.closed = prefix.closed;
    out.node = prefix.node;
    answers.push_back(std::move(out));
  }
};

Search::Search(std::int32_t block_size, std::int32_t reward_block_size)
    : policy_pool_(std::make_shared<BlockPool>(block_size)),
      reward_pool_(std::make_shared<BlockPool>(reward_block_size == 0 ? block_size : reward_block_size)) {}

Search::~Search() = default;

std::int64_t Search::add(Request request) {
  const SearchOptions &o = request.options;
  check(o.beams >= 1 && o.beams <= 4096, "beams must be between 1 and 4,096");
  check(o.width >= 1 && o.width <= 4096, "width must be between 1 and 4,096");
  check(std::isfinite(o.temperature) && o.temperature >= 0, "temperature must be 0 or more");
  check(std::isfinite(o.policy_weight), "policy_weight must be a number");
  check(o.max_tokens >= 1, "max_tokens must be 1 or more");
  check(request.policy_length >= 0 && request.reward_length >= 0, "a prefix cannot be shorter than nothing");
  check(request.scoring != Scoring::kModel || (request.reward != nullptr && request.reward->tokenize != nullptr),
        "a reward model needs its format, with a tokenizer");
  if (request.options.strategy == Strategy::kGreedy) {
    request.options.temperature = 0;
    request.options.beams = request.options.width = 1;
  }
  auto task = std::make_unique<Task>(std::move(request));
  task->start(policy_pool_, reward_pool_);
  const std::int64_t id = next_id_++;
  tasks_.emplace(id, std::move(task));
  return id;
}

void Search::cancel(std::int64_t id) { tasks_.erase(id); }

bool Search::finished(std::int64_t id) const {
  auto at = tasks_.find(id);
  if (at == tasks_.end())
    throw std::out_of_range("request " + std::to_string(id) + " is unknown");
  return at->second->phase == Task::Phase::kDone;
}

Result Search::take(std::int64_t id) {
  auto at = tasks_.find(id);
  if (at == tasks_.end() || at->second->phase != Task::Phase::kDone)
    throw std::out_of_range("request " + std::to_string(id) + " is unknown or not finished");
  Task &task = *at->second;
  Result result{std::move(task.answers), std::move(task.tree), task.stats};
  tasks_.erase(at);
  return result;
}

namespace {

// Appends one row to the forward pass.
void add_row(Plan &plan, KvSequence &kv, std::span<const TokenId> tokens, std::int32_t prefix, std::int32_t offset,
             std::vector<std::vector<std::int32_t>> &tables) {
  const auto row = static_cast<std::int32_t>(plan.prefixes.size());
  const std::int32_t before = kv.length();
  kv.append(tokens.size(), plan.slots, plan.copies);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    plan.tokens.push_back(tokens[i]);
    plan.positions.push_back(offset + before + static_cast<std::int32_t>(i));
    plan.rows.push_back(row);
  }
  plan.prefixes.push_back(prefix);
  plan.lengths.push_back(kv.length());
  tables.push_back(kv.blocks());
}

void set_tables(Plan &plan, const std::vector<std::vector<std::int32_t>> &tables) {
  std::size_t width = 0;
  for (const auto &table : tables)
    width = std::max(width, table.size());
  plan.table_width = static_cast<std::int32_t>(width);
  plan.block_tables.assign(tables.size() * width, -1);
  for (std::size_t r = 0; r < tables.size(); ++r)
    std::copy(tables[r].begin(), tables[r].end(), plan.block_tables.begin() + static_cast<std::ptrdiff_t>(r * width));
}

} // namespace

const Plan &Search::plan() {
  if (planned_)
    return plan_;
  plan_ = Plan{};
  shares_.clear();
  std::vector<std::vector<std::int32_t>> tables;
  std::map<const Mask *, std::int32_t> known;
  for (auto &[id, task] : tasks_) {
    if (task->phase != Task::Phase::kExpanding)
      continue;
    plan_.kind = PlanKind::kDecode;
    ++task->stats.forward_passes;
    const std::size_t before = plan_.uniforms.size();
    std::set<const Mask *> own;
    for (Row &row : task->rows) {
      Prefix &prefix = row.prefix;
      add_row(plan_, prefix.kv, prefix.pending, task->request.policy_prefix, task->request.policy_length, tables);
      task->stats.policy_tokens += static_cast<std::int64_t>(prefix.pending.size());
      prefix.pending.clear();
      plan_.outputs.push_back(static_cast<std::int32_t>(plan_.tokens.size() - 1));
      auto [at, fresh] = known.emplace(row.mask.get(), static_cast<std::int32_t>(plan_.masks.size()));
      if (fresh)
        plan_.masks.push_back(row.mask);
      task->stats.masks += own.insert(row.mask.get()).second ? 1 : 0;
      plan_.mask_index.push_back(at->second);
      plan_.draws.push_back(static_cast<std::int32_t>(row.draws.size()));
      plan_.temperatures.push_back(task->options().temperature);
      for (std::uint32_t draw : row.draws)
        plan_.uniforms.push_back(
            uniform(task->options().seed, draw, static_cast<std::uint32_t>(prefix.matcher.token_count()), task->round));
    }
    shares_.emplace_back(id, plan_.uniforms.size() - before);
  }
  if (plan_.kind == PlanKind::kDecode) {
    plan_.blocks = policy_pool_->blocks();
    set_tables(plan_, tables);
    planned_ = true;
    return plan_;
  }
  // Scores by the reward model for all requests at once, or by callers.
  for (Scoring scoring : {Scoring::kModel, Scoring::kExternal}) {
    for (auto &[id, task] : tasks_) {
      if (task->phase != Task::Phase::kScoring || task->request.scoring != scoring)
        continue;
      plan_.kind = PlanKind::kScore;
      std::size_t share = 0;
      for (Row &row : task->candidates) {
        if (scoring == Scoring::kExternal)
          share += row.prefix.steps.size() - row.known;
        Prefix &prefix = row.prefix;
        if (scoring == Scoring::kExternal) {
          std::vector<Step> steps;
          for (std::size_t s = 0; s < prefix.steps.size(); ++s) {
            steps.push_back(prefix.steps[s].step);
            if (s >= row.known) {
              plan_.requests.push_back(id);
              plan_.prefixes_to_score.push_back(steps);
            }
          }
          continue;
        }
        if (row.reward_tokens.empty()) // nothing new to score
          continue;
        for (std::int32_t tag : row.reward_tags)
          plan_.outputs.push_back(static_cast<std::int32_t>(plan_.tokens.size()) + tag);
        add_row(plan_, prefix.reward_kv, row.reward_tokens, task->request.reward_prefix, task->request.reward_length,
                tables);
        task->stats.reward_tokens += static_cast<std::int64_t>(row.reward_tokens.size());
        share += row.reward_tags.size();
      }
      shares_.emplace_back(id, share);
    }
    if (plan_.kind == PlanKind::kScore)
      break;
  }
  plan_.blocks = reward_pool_->blocks();
  set_tables(plan_, tables);
  planned_ = plan_.kind != PlanKind::kDone; // requests that come later want a plan of their own
  return plan_;
}

// Hands each request of the open plan what is its own, from an index on.
template <class Use> void Search::commit(const Use &use) {
  planned_ = false;
  std::exception_ptr failure;
  std::size_t first = 0;
  for (auto [id, share] : shares_) {
    auto found = tasks_.find(id);
    if (found != tasks_.end()) { // else cancelled meanwhile
      try {
        use(*found->second, first);
      } catch (...) {
        tasks_.erase(found);
        if (!failure)
          failure = std::current_exception();
      }
    }
    first += share;
  }
  if (failure)
    std::rethrow_exception(failure);
}

void Search::commit_tokens(std::span<const TokenId> tokens, std::span<const double> logprobs) {
  check(planned_ && plan_.kind == PlanKind::kDecode, "tokens were not asked for: plan() first");
  check(tokens.size() == plan_.uniforms.size() && logprobs.size() == tokens.size(),
        "as many tokens and log-probabilities as the plan's draws are wanted");
  std::size_t at = 0;
  for (std::size_t output = 0; output < plan_.draws.size(); ++output) {
    const Mask &mask = *plan_.masks[static_cast<std::size_t>(plan_.mask_index[output])];
    for (std::int32_t i = 0; i < plan_.draws[output]; ++i, ++at) {
      if (!mask.legal(tokens[at]))
        throw std::invalid_argument("token " + std::to_string(tokens[at]) + " is not legal in row " +
                                    std::to_string(output));
      check(std::isfinite(logprobs[at]), "a log-probability must be a finite number");
    }
  }
  commit([&](Task &task, std::size_t first) {
    std::vector<Row> rows = std::move(task.rows);
    task.rows.clear();
    for (Row &row : rows) {
      const std::size_t draws = row.draws.size();
      task.draw(std::move(row), tokens.subspan(first, draws), logprobs.subspan(first, draws));
      first += draws;
    }
    if (task.rows.empty())
      task.settle();
  });
}

void Search::commit_scores(std::span<const double> scores) {
  check(planned_ && plan_.kind == PlanKind::kScore, "scores were not asked for: plan() first");
  const bool external = !plan_.prefixes_to_score.empty();
  check(scores.size() == (external ? plan_.prefixes_to_score.size() : plan_.outputs.size()),
        "as many scores as the plan's outputs are wanted");
  for (double score : scores)
    check(score >= 0 && score <= 1, "a score must be between 0 and 1");
  commit([&](Task &task, std::size_t next) {
    const RewardFormat *reward = external ? nullptr : task.request.reward.get();
    for (Row &row : task.candidates)
      for (std::size_t s = row.known; s < row.prefix.steps.size(); ++s) {
        ScoredStep &step = row.prefix.steps[s];
        if (!reward || !reward->tags[static_cast<std::size_t>(step.step.kind)].empty())
          step.score = scores[next++];
      }
    task.select();
  });
}

} // namespace toolprm
