#include "toolprm/search.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <stdexcept>

#include "task.h"

namespace toolprm {

namespace {

// Of few_ids: more would make their rows of the head cost as much as the whole.
constexpr std::size_t kMostFewIds = 2048;

void check(bool ok, const char *message) {
  if (!ok)
    throw std::invalid_argument(message);
}

// Puts the rows of a forward pass together.
class PlanBuilder {
public:
  explicit PlanBuilder(Plan &plan) : plan_(plan) {}

  // The next part of a prompt.
  void read_prompt(PrefixCache::Lease &lease, std::span<const TokenId> tokens) {
    const std::int32_t before = lease.filled();
    add_row(lease, before, tokens);
    lease.fill(static_cast<std::int32_t>(tokens.size()), plan_.slots);
    plan_.lengths.push_back(static_cast<std::int32_t>(tokens.size()));
    tables_.emplace_back();
  }

  // Tokens of a row after its prompt.
  void read_row(const PrefixCache::Lease &lease, KvSequence &kv, std::span<const TokenId> tokens) {
    const std::int32_t before = kv.length();
    kv.append(tokens.size(), plan_.slots, plan_.copies);
    add_row(lease, lease.size(), tokens, before);
    plan_.lengths.push_back(kv.length());
    tables_.push_back(kv.blocks());
  }

  void finish(const BlockPool &pool) {
    plan_.blocks = pool.blocks();
    plan_.table_width = pad(tables_, plan_.block_tables);
    plan_.context_width = pad(contexts_, plan_.contexts);
  }

private:
  void add_row(const PrefixCache::Lease &lease, std::int32_t held, std::span<const TokenId> tokens,
               std::int32_t own = 0) {
    std::vector<std::int32_t> context;
    for (const Segment &segment : lease.segments(held)) {
      const auto [at, fresh] =
          known_.emplace(std::pair(segment.slot, segment.count), static_cast<std::int32_t>(plan_.segments.size()));
      if (fresh)
        plan_.segments.push_back(segment);
      context.push_back(at->second);
    }
    const auto row = static_cast<std::int32_t>(contexts_.size());
    contexts_.push_back(std::move(context));
    plan_.tokens.insert(plan_.tokens.end(), tokens.begin(), tokens.end());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      plan_.positions.push_back(held + own + static_cast<std::int32_t>(i));
      plan_.rows.push_back(row);
    }
  }

  static std::int32_t pad(const std::vector<std::vector<std::int32_t>> &lists, std::vector<std::int32_t> &out) {
    std::size_t width = 0;
    for (const auto &list : lists)
      width = std::max(width, list.size());
    out.assign(lists.size() * width, -1);
    for (std::size_t r = 0; r < lists.size(); ++r)
      std::copy(lists[r].begin(), lists[r].end(), out.begin() + static_cast<std::ptrdiff_t>(r * width));
    return static_cast<std::int32_t>(width);
  }

  Plan &plan_;
  std::map<std::pair<std::int32_t, std::int32_t>, std::int32_t> known_;
  std::vector<std::vector<std::int32_t>> tables_, contexts_;
};

} // namespace

Search::Search(SearchConfig config) : config_(config) {
  check(config_.prompt_tokens >= 1, "a pass must read at least one token of a prompt");
  check(config_.most_requests >= 1, "at least one request must be under way");
  check(config_.most_rows >= 1, "a pass must have at least one row");
  for (const Side side : {Side::kPolicy, Side::kReward}) {
    const PoolOptions &options = side == Side::kPolicy ? config_.policy : config_.reward;
    check(options.idle >= -1, "the blocks of idle prompts cannot be fewer than none");
    SideState &state = side_of(side);
    state.pool = std::make_shared<BlockPool>(options.block_size, options.capacity);
    state.cache =
        std::make_shared<PrefixCache>(state.pool, options.idle < 0 ? state.pool->capacity() / 2 : options.idle);
  }
}

Search::~Search() = default;

std::int64_t Search::add(Request request) {
  SearchOptions &o = request.options;
  check(o.beams >= 1 && o.beams <= 4096, "beams must be between 1 and 4,096");
  check(o.width >= 1 && o.width <= 4096, "width must be between 1 and 4,096");
  check(std::isfinite(o.temperature) && (o.temperature == 0 || o.temperature >= 1e-6),
        "temperature must be 0 or at least 1e-6");
  check(std::isfinite(o.policy_weight), "policy_weight must be a number");
  check(o.max_tokens >= 1, "max_tokens must be 1 or more");
  check(!request.prompt.empty(), "a prompt must have at least one token");
  check(request.scoring != Scoring::kModel || (request.reward != nullptr && request.reward->tokenize != nullptr),
        "a reward model needs its format, with a tokenizer");
  if (o.strategy == Strategy::kGreedy) {
    o.temperature = 0;
    o.beams = o.width = 1;
    o.distinct = false;
  }
  if (o.strategy == Strategy::kTokenBeam) {
    o.width = o.beams;
    o.distinct = false;
  }
  if (o.strategy != Strategy::kStepBeam) {
    o.independent = false;
    o.confidence = 0;
  }
  check(!o.distinct || o.temperature > 0, "distinct candidates need a temperature above 0");
  check(o.confidence >= 0 && o.confidence <= 1, "confidence must be between 0 and 1");
  check(o.confidence == 0 || request.scoring != Scoring::kNone, "confidence needs somebody who scores the steps");
  check(!o.distinct || (!o.independent && o.confidence == 0),
        "distinct candidates cannot be drawn for independent beams, or in parts as confidence does");
  const std::int64_t id = next_id_;
  auto task = std::make_unique<Task>(std::move(request), id);
  tasks_.emplace(id, std::move(task));
  ++next_id_;
  return id;
}

void Search::cancel(std::int64_t id) { tasks_.erase(id); }

std::vector<std::int64_t> Search::ended() const {
  std::vector<std::int64_t> out;
  for (const auto &[id, task] : tasks_)
    if (task->ended())
      out.push_back(id);
  return out;
}

bool Search::finished(std::int64_t id) const {
  const auto at = tasks_.find(id);
  if (at == tasks_.end())
    throw std::out_of_range("request " + std::to_string(id) + " is unknown");
  return at->second->ended();
}

Result Search::take(std::int64_t id) {
  const auto at = tasks_.find(id);
  if (at == tasks_.end() || !at->second->ended())
    throw std::out_of_range("request " + std::to_string(id) + " is unknown or not finished");
  const std::unique_ptr<Task> task = std::move(at->second);
  tasks_.erase(at);
  if (task->phase == Task::Phase::kFailed)
    std::rethrow_exception(task->error);
  return task->result();
}

std::vector<ScoredStep> Search::certain(std::int64_t id, std::size_t from) const {
  const auto at = tasks_.find(id);
  if (at == tasks_.end())
    throw std::out_of_range("request " + std::to_string(id) + " is unknown");
  return at->second->certain(from);
}

std::size_t Search::waiting() const {
  return static_cast<std::size_t>(std::count_if(tasks_.begin(), tasks_.end(), [](const auto &entry) {
    return !entry.second->ended() && !entry.second->admitted;
  }));
}

std::size_t Search::under_way() const {
  return static_cast<std::size_t>(std::count_if(tasks_.begin(), tasks_.end(), [](const auto &entry) {
    return !entry.second->ended() && entry.second->admitted;
  }));
}

void Search::clear_cache() {
  for (SideState &side : sides_)
    side.cache->clear();
}

// -------------------------------------------------------------------- room

bool Search::in_open_plan(std::int64_t id) const {
  return std::any_of(sides_.begin(), sides_.end(), [&](const SideState &side) {
    return side.open && std::find(side.tasks.begin(), side.tasks.end(), id) != side.tasks.end();
  });
}

// No other request has blocks, so waiting for some would never end.
bool Search::alone(const Task &task) const {
  return std::none_of(tasks_.begin(), tasks_.end(), [&](const auto &entry) {
    return entry.second.get() != &task && entry.second->admitted && !entry.second->ended();
  });
}

// Requests begin, or go on, in the order of their age: none overtakes another.
void Search::admit() {
  std::size_t begun = under_way();
  for (auto &[id, task] : tasks_) {
    if (task->admitted || task->ended())
      continue;
    if (begun >= static_cast<std::size_t>(config_.most_requests))
      return;
    if (!admit(*task)) {
      if (!task->ended())
        return;
      continue;
    }
    ++begun;
  }
}

bool Search::admit(Task &task) {
  if (in_open_plan(task.id)) // it gave its blocks up meanwhile: what comes of the plan is for it as it is now
    return false;
  const std::span<const TokenId> prompt(task.request.prompt);
  const std::span<const TokenId> none;
  bool enough = true;
  for (const Side side : {Side::kPolicy, Side::kReward}) {
    const auto s = static_cast<std::size_t>(side);
    const auto tokens = side == Side::kPolicy     ? prompt.first(prompt.size() - 1)
                        : task.has_model_reward() ? std::span<const TokenId>(task.request.reward_prompt)
                                                  : none;
    auto lease = side_of(side).cache->acquire(tokens);
    enough = enough && lease.has_value();
    if (lease)
      task.leases[s] = std::move(*lease);
  }
  if (enough) {
    task.settle_in(side_of(Side::kPolicy).pool, side_of(Side::kReward).pool);
    for (const Side side : {Side::kPolicy, Side::kReward})
      enough = enough && side_of(side).cache->make_room(task.needed(side));
  }
  if (enough)
    return true;
  const bool hopeless = alone(task);
  const bool before = task.gave_up;
  give_up_blocks(task);
  task.gave_up = before;
  if (!hopeless || task.ended())
    return false;
  if (restart(task))
    return !task.ended() && admit(task);
  if (!task.ended()) {
    const auto blocks = [&](Side side) {
      return std::to_string(side_of(side).pool->capacity()) + " blocks of " +
             std::to_string(side_of(side).pool->block_size()) + " tokens";
    };
    task.fail(std::make_exception_ptr(OutOfBlocks(
        "a prompt of " + std::to_string(prompt.size()) + " tokens" +
        (task.has_model_reward() ? " (" + std::to_string(task.request.reward_prompt.size()) + " of the reward model)"
                                 : std::string()) +
        " does not fit into the memory for keys and values: " + blocks(Side::kPolicy) +
        (task.has_model_reward() ? ", and " + blocks(Side::kReward) + " of the reward model" : std::string()))));
  }
  return false;
}

// Fails the request where what it has to read again cannot be written down: by its tokenizer.
void Search::give_up_blocks(Task &task) {
  try {
    task.give_up_blocks();
  } catch (...) {
    task.fail(std::current_exception());
  }
}

bool Search::restart(Task &task) {
  try {
    const bool done = task.restart();
    restarted_ = restarted_ || done;
    return done;
  } catch (...) {
    task.fail(std::current_exception());
    return true;
  }
}

// Makes the blocks available that a request needs for its next rows: idle prompts go first, then younger requests wait.
// False where it has to wait itself, begins anew, or has failed.
bool Search::reserve(Task &task, Side side, std::int32_t blocks) {
  SideState &state = side_of(side);
  while (!state.cache->make_room(blocks)) {
    if (preempt_youngest(task))
      continue;
    if (alone(task) && !restart(task))
      task.fail(std::make_exception_ptr(OutOfBlocks(
          "its beams need " + std::to_string(blocks) + " more blocks of " + std::to_string(state.pool->block_size()) +
          " tokens beside " + std::to_string(state.pool->in_use() - state.cache->idle()) +
          ", and the memory for keys and values has " + std::to_string(state.pool->capacity()))));
    return false;
  }
  return true;
}

bool Search::preempt_youngest(const Task &older) {
  for (auto entry = tasks_.rbegin(); entry != tasks_.rend() && entry->first > older.id; ++entry) {
    Task &task = *entry->second;
    if (!task.admitted || task.ended() || in_open_plan(task.id))
      continue;
    give_up_blocks(task);
    ++task.stats.preemptions;
    return true;
  }
  return false;
}

// -------------------------------------------------------------------- plans

const Plan &Search::plan(Side side) {
  SideState &state = side_of(side);
  if (state.open)
    return state.plan;
  state.tasks.clear();
  do { // a request that begins anew may have something to run at once
    restarted_ = false;
    state.plan = Plan{};
    admit();
    if (side == Side::kPolicy) {
      plan_policy();
    } else {
      plan_reward();
      if (state.tasks.empty())
        plan_external();
    }
  } while (state.tasks.empty() && restarted_);
  if (!state.tasks.empty()) {
    state.plan.kind = side == Side::kPolicy ? PlanKind::kDecode : PlanKind::kScore;
    state.open = true;
  }
  return state.plan;
}

const Plan &Search::plan() {
  for (const SideState &side : sides_)
    if (side.open)
      return side.plan;
  admit();
  std::size_t expanding = 0, scoring = 0;
  for (const auto &[id, task] : tasks_) {
    if (task->phase == Task::Phase::kScoring)
      ++scoring;
    else if (task->admitted && !task->ended())
      ++expanding;
  }
  const Side first = scoring >= expanding ? Side::kReward : Side::kPolicy;
  const Side second = first == Side::kReward ? Side::kPolicy : Side::kReward;
  if (const Plan &plan = this->plan(first); plan.kind != PlanKind::kDone)
    return plan;
  if (const Plan &plan = this->plan(second); plan.kind != PlanKind::kDone || !restarted_)
    return plan;
  return plan(first); // which has something to run, now that a request has begun anew
}

// Reads what is left of a request's prompt, as far as the pass has room for it.
template <class Read> void Search::read_prompt(Task &task, Side side, std::int32_t &room, const Read &read) {
  const auto s = static_cast<std::size_t>(side);
  PrefixCache::Lease &lease = task.leases[s];
  const std::int32_t filled = lease.filled(), count = std::min(room, lease.size() - filled);
  SearchStats &stats = task.stats;
  if (count > 0) {
    const std::vector<TokenId> &prompt = side == Side::kPolicy ? task.request.prompt : task.request.reward_prompt;
    read(lease, std::span(prompt).subspan(static_cast<std::size_t>(filled), static_cast<std::size_t>(count)));
    room -= count;
    task.prompt_run[s] += count;
    (side == Side::kPolicy ? stats.policy_tokens : stats.reward_tokens) += count;
  }
  if (filled + count == lease.size() && !std::exchange(task.counted[s], true))
    (side == Side::kPolicy ? stats.cached_tokens : stats.reward_cached_tokens) += lease.size() - task.prompt_run[s];
}

// Whether the pass has room for all that is left of its prompt.
bool Search::reads_all(const Task &task, Side side, std::int32_t room) {
  const PrefixCache::Lease &lease = task.leases[static_cast<std::size_t>(side)];
  return lease.size() - lease.filled() <= room;
}

void Search::plan_policy() {
  SideState &state = side_of(Side::kPolicy);
  Plan &plan = state.plan;
  PlanBuilder builder(plan);
  struct Output {
    Task *task;
    Row *row;
    std::int32_t index;
  };
  std::vector<Output> full, few;
  std::set<TokenId> few_ids;
  std::map<const Mask *, bool> narrow; // whether its ids are among them
  // Adds a mask's ids, unless there would be too many.
  const auto narrowed = [&](const Mask &mask) {
    const auto [known, fresh] = narrow.emplace(&mask, !mask.words);
    if (!fresh || !known->second)
      return known->second;
    std::vector<TokenId> added;
    for (const TokenId id : mask.few)
      if (few_ids.insert(id).second)
        added.push_back(id);
    if (few_ids.size() > kMostFewIds) {
      known->second = false;
      for (const TokenId id : added)
        few_ids.erase(id);
    }
    return known->second;
  };
  std::size_t rows = 0;
  std::int32_t room = config_.prompt_tokens;
  for (auto &[id, task] : tasks_) {
    if (!task->admitted || task->phase != Task::Phase::kExpanding)
      continue;
    if (rows > 0 && rows + task->rows.size() > static_cast<std::size_t>(config_.most_rows))
      continue;
    // Room is made before anything of the request is planned: where there is none, it may fail.
    const bool decodes =
        reads_all(*task, Side::kPolicy, room) && reserve(*task, Side::kPolicy, task->needed(Side::kPolicy));
    if (task->ended() || !task->admitted)
      continue;
    const std::int32_t before = room;
    read_prompt(*task, Side::kPolicy, room, [&](auto &lease, auto tokens) { builder.read_prompt(lease, tokens); });
    if (decodes || room < before)
      state.tasks.push_back(id);
    if (!decodes)
      continue;
    ++task->stats.forward_passes;
    std::set<const Mask *> masks;
    for (Row &row : task->rows) {
      Prefix &prefix = row.prefix;
      builder.read_row(task->leases[0], prefix.kv, prefix.pending);
      task->stats.policy_tokens += static_cast<std::int64_t>(prefix.pending.size());
      prefix.pending.clear();
      task->stats.masks += masks.insert(row.mask.get()).second ? 1 : 0;
      (narrowed(*row.mask) ? few : full)
          .push_back({task.get(), &row, static_cast<std::int32_t>(plan.tokens.size() - 1)});
    }
    rows += task->rows.size();
  }
  plan.full_outputs = static_cast<std::int32_t>(full.size());
  plan.few_ids.assign(few_ids.begin(), few_ids.end());
  std::map<const Mask *, std::int32_t> known;
  for (const std::vector<Output> *outputs : {&full, &few})
    for (const auto &[task, row, index] : *outputs) {
      const SearchOptions &options = task->options();
      plan.outputs.push_back(index);
      plan.requests.push_back(task->id);
      const auto [mask, fresh] = known.emplace(row->mask.get(), static_cast<std::int32_t>(plan.masks.size()));
      if (fresh)
        plan.masks.push_back(row->mask);
      plan.mask_index.push_back(mask->second);
      plan.temperatures.push_back(options.temperature);
      plan.sampling.push_back(options.distinct                           ? Sampling::kDistinct
                              : options.strategy == Strategy::kTokenBeam ? Sampling::kLikeliest
                                                                         : Sampling::kIndependent);
      plan.parents.push_back(row->place);
      row->first_sample = plan.uniforms.size();
      const auto position = static_cast<std::uint32_t>(row->prefix.matcher.token_count());
      if (options.distinct) {
        const std::uint32_t count = std::min(static_cast<std::uint32_t>(options.width), row->mask->count);
        row->samples = count;
        for (std::uint32_t i = 0; i < count; ++i) {
          plan.uniforms.push_back(uniform(options.seed, row->key, position, task->round, 2 * i));
          plan.gumbel_uniforms.push_back(uniform(options.seed, row->key, position, task->round, 2 * i + 1));
        }
      } else if (options.strategy == Strategy::kTokenBeam) {
        row->samples = std::min(static_cast<std::uint32_t>(options.beams), row->mask->count);
        plan.uniforms.resize(plan.uniforms.size() + row->samples);
        plan.gumbel_uniforms.resize(plan.uniforms.size());
      } else {
        row->samples = row->draws.size();
        for (std::uint32_t draw : row->draws) {
          plan.uniforms.push_back(uniform(options.seed, draw, position, task->round));
          plan.gumbel_uniforms.push_back(0);
        }
      }
      plan.draws.push_back(static_cast<std::int32_t>(row->samples));
    }
  builder.finish(*state.pool);
}

void Search::plan_reward() {
  SideState &state = side_of(Side::kReward);
  Plan &plan = state.plan;
  PlanBuilder builder(plan);
  std::size_t rows = 0;
  std::int32_t room = config_.prompt_tokens;
  for (auto &[id, task] : tasks_) {
    if (!task->admitted || task->ended() || !task->wants_reward())
      continue;
    if (rows > 0 && rows + task->candidates.size() > static_cast<std::size_t>(config_.most_rows))
      continue;
    const bool scores = task->phase == Task::Phase::kScoring && reads_all(*task, Side::kReward, room) &&
                        reserve(*task, Side::kReward, task->needed(Side::kReward));
    if (task->ended() || !task->admitted)
      continue;
    const std::int32_t before = room;
    read_prompt(*task, Side::kReward, room, [&](auto &lease, auto tokens) { builder.read_prompt(lease, tokens); });
    if (scores || room < before)
      state.tasks.push_back(id);
    if (!scores)
      continue;
    task->scoring_planned = true;
    rows += task->candidates.size();
    for (Row &row : task->candidates) {
      row.prefix.reward_read = row.prefix.steps.size();
      if (row.reward_tokens.empty())
        continue;
      for (const Judgement &judgement : row.judgements) {
        plan.outputs.push_back(static_cast<std::int32_t>(plan.tokens.size()) + judgement.tag);
        plan.requests.push_back(id);
      }
      builder.read_row(task->leases[1], row.prefix.reward_kv, row.reward_tokens);
      task->stats.reward_tokens += static_cast<std::int64_t>(row.reward_tokens.size());
    }
  }
  builder.finish(*state.pool);
}

void Search::plan_external() {
  SideState &state = side_of(Side::kReward);
  for (auto &[id, task] : tasks_) {
    if (task->phase != Task::Phase::kScoring || task->request.scoring != Scoring::kExternal)
      continue;
    state.tasks.push_back(id);
    task->scoring_planned = true;
    for (Row &row : task->candidates) {
      std::vector<Step> steps;
      for (const ScoredStep *step : row.prefix.steps.since(0))
        steps.push_back(step->step);
      for (const Judgement &judgement : row.judgements) {
        state.plan.requests.push_back(id);
        state.plan.prefixes_to_score.emplace_back(steps.begin(), steps.begin() + judgement.step + 1);
      }
    }
  }
}

// -------------------------------------------------------------------- commits

// Hands each request of a side's open plan its part.
template <class Use> void Search::commit(Side side, const Use &use) {
  SideState &state = side_of(side);
  state.open = false;
  for (const std::int64_t id : state.tasks) {
    const auto found = tasks_.find(id);
    if (found == tasks_.end() || found->second->ended()) // cancelled meanwhile
      continue;
    Task &task = *found->second;
    const PrefixCache::Lease &lease = task.leases[static_cast<std::size_t>(side)];
    task.read[static_cast<std::size_t>(side)] = task.admitted && lease.filled() == lease.size();
    try {
      use(task);
    } catch (...) {
      task.fail(std::current_exception());
    }
  }
}

void Search::commit_tokens(std::span<const TokenId> tokens, std::span<const double> logprobs,
                           std::span<const Perturbed> perturbed) {
  const SideState &state = side_of(Side::kPolicy);
  const Plan &plan = state.plan;
  check(state.open, "tokens were not asked for: plan() first");
  check(tokens.size() == plan.uniforms.size() && logprobs.size() == tokens.size(),
        "as many tokens and log-probabilities as the plan's draws are wanted");
  const auto &ways = plan.sampling;
  const bool any_distinct = std::find(ways.begin(), ways.end(), Sampling::kDistinct) != ways.end();
  check(perturbed.size() == tokens.size() || (perturbed.empty() && !any_distinct),
        "distinct samples come with their perturbed log-probabilities, one each");
  std::size_t at = 0;
  for (std::size_t output = 0; output < plan.draws.size(); ++output) {
    const Mask &mask = *plan.masks[static_cast<std::size_t>(plan.mask_index[output])];
    const bool distinct = ways[output] == Sampling::kDistinct, gone = tasks_.count(plan.requests[output]) == 0;
    for (std::int32_t i = 0; i < plan.draws[output]; ++i, ++at) {
      if (gone || (ways[output] != Sampling::kIndependent && i > 0 && tokens[at] == -1))
        continue;
      if (!mask.legal(tokens[at]))
        throw std::invalid_argument("token " + std::to_string(tokens[at]) + " is not legal in row " +
                                    std::to_string(output));
      check(std::isfinite(logprobs[at]), "a log-probability must be a finite number");
      check(!distinct || (!std::isnan(perturbed[at].logprob) && !std::isnan(perturbed[at].gumbel)),
            "a perturbed log-probability must be a number");
    }
  }
  const std::set<std::int64_t> drawn(plan.requests.begin(), plan.requests.end());
  commit(Side::kPolicy, [&](Task &task) {
    if (drawn.count(task.id) != 0)
      task.draw(tokens, logprobs, perturbed);
  });
}

void Search::commit_scores(std::span<const double> scores) {
  const SideState &state = side_of(Side::kReward);
  const Plan &plan = state.plan;
  check(state.open, "scores were not asked for: plan() first");
  check(scores.size() == plan.requests.size(), "as many scores as the plan's outputs are wanted");
  for (std::size_t i = 0; i < scores.size(); ++i)
    check(tasks_.count(plan.requests[i]) == 0 || (scores[i] >= 0 && scores[i] <= 1), "a score must be between 0 and 1");
  std::map<std::int64_t, std::vector<double>> shares;
  for (std::size_t i = 0; i < scores.size(); ++i)
    shares[plan.requests[i]].push_back(scores[i]);
  commit(Side::kReward, [&](Task &task) {
    if (std::exchange(task.scoring_planned, false))
      task.score(shares[task.id]);
  });
}

void Search::fail(Side side, const std::exception_ptr &error) {
  SideState &state = side_of(side);
  check(state.open, "there is no open plan that could have failed");
  state.open = false;
  for (const std::int64_t id : state.tasks)
    if (const auto found = tasks_.find(id); found != tasks_.end() && !found->second->ended())
      found->second->fail(error);
  // What the pass was to write is not there, and others may already count on it.
  for (auto &[id, task] : tasks_)
    if (task->admitted && !task->ended() && !task->read[static_cast<std::size_t>(side)])
      give_up_blocks(*task);
  state.cache->clear();
}

} // namespace toolprm
