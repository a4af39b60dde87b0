// The search core with models that exist only here, against a plain search that draws one candidate after another and
// shares nothing: no rows, no forks, no blocks.
#include <array>
#include <cmath>
#include <map>
#include <optional>
#include <set>

#include "check.h"
#include "grammars.h"
#include "toolprm/sampler.h"
#include "toolprm/search.h"

using namespace toolprm;

namespace {

using Ids = std::vector<TokenId>;

std::uint64_t mix(std::uint64_t h, std::uint64_t v) {
  h = (h ^ v) * 0x9e3779b97f4a7c15ull;
  return h ^ (h >> 29);
}

// ---------------------------------------------------------------------------------------------- models

// Logits that depend on nothing but the tokens so far.
std::vector<float> logits_after(const Ids &tokens, std::size_t vocabulary) {
  std::uint64_t h = 17;
  for (TokenId t : tokens)
    h = mix(h, static_cast<std::uint64_t>(t));
  std::vector<float> out(vocabulary);
  for (std::size_t id = 0; id < vocabulary; ++id)
    out[id] = static_cast<float>(mix(h, id) % 4000) / 1000.0f;
  return out;
}

double reward_after(const Ids &tokens) {
  std::uint64_t h = 23;
  for (TokenId t : tokens)
    h = mix(h, static_cast<std::uint64_t>(t));
  return 0.05 + static_cast<double>(h % 9001) / 10'000.0;
}

double opinion(const std::vector<Step> &steps) {
  std::uint64_t h = 29;
  for (const Step &s : steps)
    for (char c : s.text)
      h = mix(h, static_cast<std::uint8_t>(c));
  return 0.05 + static_cast<double>(h % 9001) / 10'000.0;
}

std::shared_ptr<const RewardFormat> reward_format() {
  auto format = std::make_shared<RewardFormat>();
  format->tokenize = [](std::string_view text) { // another tokenizer than the policy's
    Ids ids;
    for (std::size_t i = 0; i < text.size(); i += 3)
      ids.push_back(static_cast<TokenId>(1000 + mix(5, std::hash<std::string_view>()(text.substr(i, 3))) % 1000));
    return ids;
  };
  format->tags = {Ids{1}, Ids{2, 3}, Ids{4}, Ids{}, Ids{5}}; // the end of a call is read, but not judged
  return format;
}

// What was written into the slots of a pool.
class Memory {
public:
  // The tokens that each output reads, its own the last.
  std::vector<Ids> run(const Plan &plan, std::int32_t block_size) {
    const std::size_t rows = plan.lengths.size();
    CHECK_EQ(plan.positions.size(), plan.tokens.size());
    CHECK_EQ(plan.rows.size(), plan.tokens.size());
    CHECK_EQ(plan.slots.size(), plan.tokens.size());
    CHECK_EQ(plan.contexts.size(), rows * static_cast<std::size_t>(plan.context_width));
    CHECK_EQ(plan.block_tables.size(), rows * static_cast<std::size_t>(plan.table_width));
    slots_.resize(static_cast<std::size_t>(plan.blocks * block_size), -1);
    for (const SlotCopy &copy : plan.copies)
      for (std::int32_t i = 0; i < copy.count; ++i)
        at(copy.target + i) = at(copy.source + i);
    std::set<std::int32_t> written;
    for (std::size_t i = 0; i < plan.tokens.size(); ++i) {
      CHECK(plan.slots[i] >= block_size); // block 0 is nobody's
      CHECK(written.insert(plan.slots[i]).second);
      at(plan.slots[i]) = plan.tokens[i];
    }
    std::vector<Ids> read;
    for (std::int32_t output : plan.outputs) {
      const auto o = static_cast<std::size_t>(output);
      const auto row = static_cast<std::size_t>(plan.rows.at(o));
      Ids tokens;
      for (std::int32_t c = 0; c < plan.context_width; ++c)
        if (const auto s =
                plan.contexts[row * static_cast<std::size_t>(plan.context_width) + static_cast<std::size_t>(c)];
            s >= 0)
          for (std::int32_t i = 0; i < plan.segments.at(static_cast<std::size_t>(s)).count; ++i)
            tokens.push_back(at(plan.segments[static_cast<std::size_t>(s)].slot + i));
      const std::int32_t count = plan.positions[o] - static_cast<std::int32_t>(tokens.size()) + 1;
      CHECK(count >= 1 && count <= plan.lengths[row]);
      for (std::int32_t i = 0; i < count; ++i) {
        const std::int32_t block = plan.block_tables.at(row * static_cast<std::size_t>(plan.table_width) +
                                                        static_cast<std::size_t>(i / block_size));
        tokens.push_back(at(block * block_size + i % block_size));
      }
      CHECK_EQ(tokens.back(), plan.tokens[o]);
      read.push_back(std::move(tokens));
    }
    return read;
  }

private:
  TokenId &at(std::int32_t slot) { return slots_.at(static_cast<std::size_t>(slot)); }
  Ids slots_;
};

// Runs the models for one search.
class Runner {
public:
  explicit Runner(SearchConfig config = {{4}, {4}}) : search(config) {}

  // False when there is nothing left to do.
  bool step(const std::function<void()> &before_commit = {}) {
    const Plan &plan = search.plan();
    if (plan.kind == PlanKind::kDone)
      return false;
    CHECK(&plan == &search.plan()); // the same until it is committed
    const Side side = plan.kind == PlanKind::kDecode ? Side::kPolicy : Side::kReward;
    run(side, plan);
    if (before_commit)
      before_commit();
    commit(side);
    return true;
  }

  // Both sides beside each other, in any order. False when there is nothing left to do.
  bool step_sides(std::mt19937 &random) {
    std::array<bool, 2> open{};
    for (const Side side :
         below(random, 2) ? std::array{Side::kPolicy, Side::kReward} : std::array{Side::kReward, Side::kPolicy})
      open[static_cast<std::size_t>(side)] = start(side);
    if (below(random, 2) && open[0])
      commit(Side::kPolicy), open[0] = false;
    if (open[1])
      commit(Side::kReward);
    if (open[0])
      commit(Side::kPolicy);
    return search.under_way() + search.waiting() > 0;
  }

  void run() {
    while (step()) {
    }
  }

  Search search;

  // Runs a side's pass, without its commit. False where there is none.
  bool start(Side side) {
    const Plan &plan = search.plan(side);
    if (plan.kind == PlanKind::kDone)
      return false;
    run(side, plan);
    return true;
  }

  void commit(Side side) {
    if (side == Side::kPolicy)
      search.commit_tokens(tokens_, logprobs_, perturbed_);
    else
      search.commit_scores(scores_);
  }

private:
  void run(Side side, const Plan &plan) {
    CHECK(plan.prefixes_to_score.empty() || plan.tokens.empty());
    const std::vector<Ids> read = memory_[static_cast<std::size_t>(side)].run(plan, search.pool(side).block_size());
    if (side == Side::kReward) {
      scores_.clear();
      for (const Ids &tokens : read)
        scores_.push_back(reward_after(tokens));
      for (const auto &steps : plan.prefixes_to_score)
        scores_.push_back(opinion(steps));
      CHECK_EQ(plan.requests.size(), scores_.size());
      return;
    }
    CHECK_EQ(read.size(), plan.draws.size());
    tokens_.assign(plan.uniforms.size(), -1);
    logprobs_.assign(plan.uniforms.size(), 0);
    perturbed_.assign(plan.uniforms.size(), {});
    std::size_t at = 0;
    for (std::size_t o = 0; o < read.size(); ++o) {
      const auto draws = static_cast<std::size_t>(plan.draws[o]);
      const std::vector<float> whole = logits_after(read[o], 200);
      std::vector<float> some;
      for (TokenId id : plan.few_ids)
        some.push_back(whole[static_cast<std::size_t>(id)]);
      const bool few = o >= static_cast<std::size_t>(plan.full_outputs);
      const Logits logits = few ? Logits{some, plan.few_ids} : Logits{whole};
      const Mask &mask = *plan.masks[static_cast<std::size_t>(plan.mask_index[o])];
      const auto uniforms = std::span(plan.uniforms).subspan(at, draws);
      if (plan.sampling[o] == Sampling::kLikeliest)
        likeliest(logits, mask, draws, tokens_.data() + at, logprobs_.data() + at);
      else if (plan.sampling[o] == Sampling::kDistinct)
        sample_distinct(logits, mask, plan.temperatures[o], uniforms,
                        std::span(plan.gumbel_uniforms).subspan(at, draws), plan.parents[o], tokens_.data() + at,
                        logprobs_.data() + at, perturbed_.data() + at);
      else
        sample(logits, mask, plan.temperatures[o], uniforms, tokens_.data() + at, logprobs_.data() + at);
      at += draws;
    }
    CHECK_EQ(at, plan.uniforms.size());
  }

  std::array<Memory, 2> memory_;
  Ids tokens_;
  std::vector<double> logprobs_, scores_;
  std::vector<Perturbed> perturbed_;
};

// ---------------------------------------------------------------------------------------------- the plain search

struct Beam {
  Matcher matcher;
  Ids ran;  // what the policy has read after the prompt
  Ids path; // what was drawn, tokens that were not taken among them
  std::vector<Step> steps;
  std::vector<double> scores; // NaN: not judged
  double logprob = 0;
  bool finished = false, closed = false;
};

struct Outcome {
  std::string text;
  Ids tokens;
  double rank, logprob;
  int multiplicity;
  bool closed;
};

class Plain {
public:
  explicit Plain(const Request &request) : r_(request), o_(request.options) {
    if (o_.strategy == Strategy::kGreedy) {
      o_.temperature = 0;
      o_.width = o_.beams = 1;
    }
  }

  std::vector<Outcome> run() {
    Beam root{r_.matcher, r_.prompt, {}, {}, {}, 0, false, false};
    forced(root);
    std::vector<Beam> beams{root};
    for (std::uint32_t round = 0; !beams.empty(); ++round) {
      std::vector<Beam> drawn;
      for (std::size_t b = 0; b < beams.size(); ++b)
        for (std::int32_t m = 0; m < o_.width; ++m)
          drawn.push_back(
              draw(beams[b],
                   static_cast<std::uint32_t>(b) * static_cast<std::uint32_t>(o_.width) + static_cast<std::uint32_t>(m),
                   round));
      select(drawn, beams);
    }
    std::stable_sort(answers_.begin(), answers_.end(), [](const Outcome &a, const Outcome &b) {
      return std::round(a.rank * 1e4) > std::round(b.rank * 1e4);
    });
    return answers_;
  }

private:
  bool can_close(const Matcher &m) const {
    const std::string end = m.closing();
    return m.token_count() + std::min(end.size(), m.vocabulary().tokenize(end).size()) <=
           static_cast<std::size_t>(o_.max_tokens);
  }

  static void accept(Beam &b, TokenId token) {
    CHECK(b.matcher.accept(token, &b.steps));
    b.ran.push_back(token);
  }

  static void finish(Beam &b) {
    if (!b.matcher.is_stopped())
      CHECK(b.matcher.finish(&b.steps));
    b.finished = true;
  }

  static void close(Beam &b) {
    for (TokenId token : b.matcher.vocabulary().tokenize(b.matcher.closing()))
      accept(b, token);
    b.closed = true;
    finish(b);
  }

  void forced(Beam &b) const {
    if (o_.forced_runs) {
      const Ids run = b.matcher.forced();
      Matcher after(b.matcher);
      for (TokenId token : run)
        CHECK(after.accept(token));
      if (!run.empty() && !can_close(after)) {
        close(b);
        return;
      }
      for (TokenId token : run)
        accept(b, token);
    }
    if (b.matcher.is_over())
      finish(b);
  }

  Beam draw(Beam b, std::uint32_t candidate, std::uint32_t round) const {
    const std::size_t known = round == 0 ? 0 : b.steps.size();
    while (!b.finished && !(o_.strategy == Strategy::kStepBeam && b.steps.size() > known)) {
      const std::vector<float> logits = logits_after(b.ran, 200);
      Ids legal;
      for (std::size_t id = 0; id < b.matcher.vocabulary().size(); ++id)
        if (Matcher fork(b.matcher); fork.accept(static_cast<TokenId>(id)))
          legal.push_back(static_cast<TokenId>(id));
      const auto logit = [&](TokenId id) { return static_cast<double>(logits[static_cast<std::size_t>(id)]); };
      double total = 0, scaled = 0;
      for (TokenId id : legal) {
        total += std::exp(logit(id));
        scaled += std::exp(logit(id) / o_.temperature);
      }
      TokenId token = legal.at(0);
      if (o_.temperature > 0) {
        const double u = uniform(o_.seed, candidate, static_cast<std::uint32_t>(b.matcher.token_count()), round);
        double sum = 0;
        for (TokenId id : legal) {
          token = id;
          if ((sum += std::exp(logit(id) / o_.temperature)) > u * scaled)
            break;
        }
      } else {
        for (TokenId id : legal)
          if (logit(id) > logit(token))
            token = id;
      }
      b.path.push_back(token);
      const double logprob = logit(token) - std::log(total);
      Matcher after(b.matcher);
      CHECK(after.accept(token));
      if (after.is_stopped()) {
        b.logprob += logprob;
        accept(b, token);
        finish(b);
      } else if (!can_close(after)) {
        close(b);
      } else {
        b.logprob += logprob;
        accept(b, token);
        forced(b);
      }
    }
    return b;
  }

  // Calls as values: arguments by name.
  static std::string decided(const Beam &b) {
    std::string out;
    std::map<std::string, std::string> arguments;
    const auto flush = [&] {
      for (const auto &[path, value] : arguments)
        out += path + "=" + value + ";";
      arguments.clear();
    };
    for (const Step &s : b.steps) {
      if (s.kind == StepKind::kArgValue) {
        arguments[s.path] = s.text.substr(s.value);
        continue;
      }
      flush();
      out += step_kind_name(s.kind) + (s.kind == StepKind::kFuncName ? s.text : std::string()) + ";";
    }
    flush();
    return out + (b.finished ? "!" : "");
  }

  void score(Beam &b) const {
    for (std::size_t s = b.scores.size(); s < b.steps.size(); ++s) {
      double value = std::nan("");
      const std::vector<Step> until(b.steps.begin(), b.steps.begin() + static_cast<std::ptrdiff_t>(s) + 1);
      if (r_.scoring == Scoring::kExternal) {
        value = opinion(until);
      } else if (r_.scoring == Scoring::kModel && !r_.reward->tags[static_cast<std::size_t>(b.steps[s].kind)].empty()) {
        Ids read = r_.reward_prompt;
        for (const Step &step : until) {
          const Ids text = step.text.empty() ? Ids{} : r_.reward->tokenize(step.text);
          read.insert(read.end(), text.begin(), text.end());
          const Ids &tag = r_.reward->tags[static_cast<std::size_t>(step.kind)];
          read.insert(read.end(), tag.begin(), tag.end());
        }
        value = reward_after(read);
      }
      b.scores.push_back(value);
    }
  }

  double rank(const Beam &b) const {
    if (r_.scoring == Scoring::kNone)
      return b.logprob;
    std::vector<double> judged;
    for (double s : b.scores)
      if (!std::isnan(s))
        judged.push_back(s);
    double value = 1;
    if (!judged.empty())
      switch (o_.aggregate) {
      case Aggregate::kLast:
        value = judged.back();
        break;
      case Aggregate::kMin:
        value = *std::min_element(judged.begin(), judged.end());
        break;
      case Aggregate::kProduct:
        for (double s : judged)
          value *= s;
        break;
      case Aggregate::kMean:
        value = 0;
        for (double s : judged)
          value += s / static_cast<double>(judged.size());
        break;
      }
    return std::log(value) + o_.policy_weight * b.logprob;
  }

  void select(std::vector<Beam> &drawn, std::vector<Beam> &beams) {
    struct Candidate {
      Beam beam;
      int multiplicity, own; // own: draws in the very same tokens
    };
    std::vector<Candidate> spelled; // by tokens, in the order of their first draws
    std::map<Ids, std::size_t> spelling;
    for (Beam &b : drawn) {
      const auto [at, fresh] = spelling.emplace(b.path, spelled.size());
      if (fresh)
        spelled.push_back({std::move(b), 1, 1});
      else
        spelled[at->second].own = ++spelled[at->second].multiplicity;
    }
    std::vector<Candidate> distinct;
    std::map<std::string, std::size_t> known;
    for (Candidate &c : spelled) {
      const std::string key = decided(c.beam);
      if (const auto same = answered_.find(key); same != answered_.end()) {
        answers_[same->second].multiplicity += c.multiplicity;
        continue;
      }
      const auto [at, fresh] = known.emplace(key, distinct.size());
      if (fresh) {
        distinct.push_back(std::move(c));
        continue;
      }
      Candidate &first = distinct[at->second];
      first.multiplicity += c.multiplicity;
      if (c.own > first.own) {
        first.own = c.own;
        first.beam = std::move(c.beam);
      }
    }
    for (Candidate &c : distinct)
      score(c.beam);
    const auto rounded = [&](const Candidate &c) { return std::round(rank(c.beam) * 1e4); };
    std::stable_sort(distinct.begin(), distinct.end(), [&](const Candidate &a, const Candidate &b) {
      return std::tuple(-rounded(a), -a.multiplicity, -a.beam.logprob) <
             std::tuple(-rounded(b), -b.multiplicity, -b.beam.logprob);
    });
    if (o_.strategy == Strategy::kStepBeam) {
      const auto seats = std::max<std::ptrdiff_t>(1, o_.beams - static_cast<std::ptrdiff_t>(answers_.size()));
      if (std::ssize(distinct) > seats)
        distinct.erase(distinct.begin() + seats, distinct.end());
    }
    beams.clear();
    for (Candidate &c : distinct) {
      c.beam.path.clear();
      if (!c.beam.finished) {
        beams.push_back(std::move(c.beam));
        continue;
      }
      answered_.emplace(decided(c.beam), answers_.size());
      Ids tokens = c.beam.matcher.tokens();
      while (!tokens.empty() && c.beam.matcher.vocabulary().is_stop(tokens.back()))
        tokens.pop_back();
      answers_.push_back({c.beam.matcher.text(), tokens, rank(c.beam), c.beam.logprob, c.multiplicity, c.beam.closed});
    }
    // A beam's path tells it from the others in the next round.
    for (std::size_t b = 0; b < beams.size(); ++b)
      beams[b].path.push_back(static_cast<TokenId>(b));
  }

  const Request &r_;
  SearchOptions o_;
  std::vector<Outcome> answers_;
  std::map<std::string, std::size_t> answered_;
};

// ---------------------------------------------------------------------------------------------- checks

Request random_request(std::mt19937 &random, const std::shared_ptr<const Grammar> &grammar) {
  Request r{Matcher(grammar, call_vocabulary()), {}};
  r.options.strategy =
      std::array{Strategy::kGreedy, Strategy::kSample, Strategy::kStepBeam, Strategy::kStepBeam}[below(random, 4)];
  r.options.beams = 1 + static_cast<std::int32_t>(below(random, 4));
  r.options.width = 1 + static_cast<std::int32_t>(below(random, 6));
  r.options.temperature = std::array{0.0, 0.3, 0.8, 1.5}[below(random, 4)];
  r.options.aggregate =
      std::array{Aggregate::kLast, Aggregate::kMin, Aggregate::kProduct, Aggregate::kMean}[below(random, 4)];
  r.options.policy_weight = below(random, 2) ? 0.0 : 0.2;
  r.options.seed = random();
  r.options.max_tokens = static_cast<std::int32_t>(std::array<std::size_t, 4>{4, 20, 35, 60}[below(random, 4)]);
  r.options.forced_runs = below(random, 4) != 0;
  r.scoring = std::array{Scoring::kNone, Scoring::kModel, Scoring::kExternal}[below(random, 3)];
  // Prompts begin alike, as those over the same tools do.
  for (Ids *prompt : {&r.prompt, &r.reward_prompt}) {
    const std::size_t shared = below(random, 30), own = 1 + below(random, 12);
    for (std::size_t i = 0; i < shared; ++i)
      prompt->push_back(static_cast<TokenId>(i * i % 40));
    for (std::size_t i = 0; i < own; ++i)
      prompt->push_back(static_cast<TokenId>(below(random, 40)));
  }
  r.reward = reward_format();
  return r;
}

bool close_to(double a, double b) { return std::abs(a - b) < 1e-9 * (1 + std::abs(a)); }

void compare(const Request &request, const Result &result) {
  const std::vector<Outcome> expected = Plain(request).run();
  const int before = check::failures;
  CHECK_EQ(result.answers.size(), expected.size());
  CHECK(!result.answers.empty());
  for (std::size_t i = 0; i < std::min(expected.size(), result.answers.size()); ++i) {
    const Answer &a = result.answers[i];
    const Outcome &e = expected[i];
    CHECK_EQ(a.text, e.text);
    CHECK_EQ(a.tokens, e.tokens);
    CHECK_EQ(a.multiplicity, e.multiplicity);
    CHECK_EQ(a.closed, e.closed);
    CHECK(close_to(a.rank, e.rank) && close_to(a.logprob, e.logprob));
    // What holds of every answer.
    Matcher whole(request.matcher);
    std::vector<Step> steps;
    CHECK(whole.accept_bytes(a.text, &steps) && whole.is_complete() && whole.finish(&steps));
    CHECK_EQ(steps.size(), a.steps.size());
    double logprob = 0;
    for (std::size_t s = 0; s < std::min(steps.size(), a.steps.size()); ++s) {
      CHECK(steps[s].kind == a.steps[s].step.kind && steps[s].text == a.steps[s].step.text &&
            steps[s].path == a.steps[s].step.path);
      logprob += a.steps[s].logprob;
    }
    CHECK(close_to(logprob, a.logprob));
    CHECK(a.tokens.size() <= static_cast<std::size_t>(request.options.max_tokens));
    CHECK_EQ(std::isnan(a.score), request.scoring == Scoring::kNone);
    CHECK(a.node >= 0 && static_cast<std::size_t>(a.node) < result.tree.size());
    CHECK(result.tree[static_cast<std::size_t>(a.node)].finished && result.tree[static_cast<std::size_t>(a.node)].kept);
  }
  for (std::size_t n = 0; n < result.tree.size(); ++n)
    CHECK(result.tree[n].parent < static_cast<std::int32_t>(n));
  CHECK_EQ(result.stats.distinct_candidates, result.tree.size());
  if (check::failures > before)
    std::fprintf(stderr, "strategy %d, beams %d, width %d, temperature %g, scoring %d, max_tokens %d, forced runs %d\n",
                 static_cast<int>(request.options.strategy), request.options.beams, request.options.width,
                 request.options.temperature, static_cast<int>(request.scoring), request.options.max_tokens,
                 request.options.forced_runs);
}

void check_returned(Search &search) {
  for (const Side side : {Side::kPolicy, Side::kReward})
    CHECK_EQ(search.pool(side).in_use(), search.idle_blocks(side));
  search.clear_cache();
  for (const Side side : {Side::kPolicy, Side::kReward})
    CHECK_EQ(search.pool(side).in_use(), 0);
}

SearchConfig random_config(std::mt19937 &random) {
  SearchConfig config;
  config.policy.block_size = 1 + static_cast<std::int32_t>(below(random, 5));
  config.reward.block_size = 1 + static_cast<std::int32_t>(below(random, 5));
  config.prompt_tokens = static_cast<std::int32_t>(std::array<std::size_t, 4>{1, 3, 20, 500}[below(random, 4)]);
  config.most_requests = static_cast<std::int32_t>(std::array<std::size_t, 3>{1, 3, 100}[below(random, 3)]);
  config.most_rows = static_cast<std::int32_t>(std::array<std::size_t, 3>{1, 6, 100}[below(random, 3)]);
  return config;
}

// Both models beside each other, few blocks, and passes that fail: what is answered is answered right.
void scarce_memory_changes_no_answer() {
  std::mt19937 random(seed() + 3);
  const auto grammar = calls_grammar();
  std::int64_t preempted = 0, refused = 0, answered = 0;
  for (int i = 0; i < 60 && check::failures == 0; ++i) {
    SearchConfig config = random_config(random);
    for (PoolOptions *pool : {&config.policy, &config.reward}) {
      pool->capacity = (40 + static_cast<std::int32_t>(below(random, 160))) / pool->block_size + 1;
      pool->idle = static_cast<std::int32_t>(below(random, 2)) * pool->capacity;
    }
    Runner runner(config);
    std::map<std::int64_t, Request> requests;
    while (requests.size() < 6) {
      const Request request = random_request(random, grammar);
      requests.emplace(runner.search.add(request), request);
    }
    while (runner.step_sides(random)) {
    }
    for (const auto &[id, request] : requests)
      try {
        const Result result = runner.search.take(id);
        preempted += result.stats.preemptions;
        ++answered;
        compare(request, result);
      } catch (const OutOfBlocks &) { // alone, it is refused as well
        ++refused;
        config.policy.idle = config.reward.idle = 0;
        Runner alone(config);
        const std::int64_t again = alone.search.add(request);
        alone.run();
        CHECK_THROWS(alone.search.take(again), OutOfBlocks);
      }
    check_returned(runner.search);
  }
  CHECK(preempted > 20 && refused > 5 && answered > 100);
}

void a_failed_pass_fails_its_requests_alone() {
  std::mt19937 random(seed() + 4);
  const auto grammar = calls_grammar();
  int failed = 0;
  for (int i = 0; i < 60 && check::failures == 0; ++i) {
    SearchConfig config = random_config(random);
    if (i % 2 == 0) // little memory besides
      for (PoolOptions *pool : {&config.policy, &config.reward})
        pool->capacity = (60 + static_cast<std::int32_t>(below(random, 160))) / pool->block_size + 1;
    Runner runner(config);
    std::map<std::int64_t, Request> requests;
    const auto add = [&] {
      Request request = random_request(random, grammar);
      request.scoring = Scoring::kModel;
      requests.emplace(runner.search.add(request), request);
    };
    for (int k = 0; k < 4; ++k)
      add();
    for (std::size_t steps = below(random, 12); steps > 0; --steps)
      runner.step_sides(random);
    // A pass of one side fails while one of the other is under way, and newcomers wait for what it was to read.
    const Side side = below(random, 2) ? Side::kPolicy : Side::kReward;
    if (runner.search.plan(side).kind != PlanKind::kDone) {
      std::set<std::int64_t> in_plan(runner.search.plan(side).requests.begin(),
                                     runner.search.plan(side).requests.end());
      for (int k = 0; k < 3; ++k)
        add();
      const Side other = side == Side::kPolicy ? Side::kReward : Side::kPolicy;
      const bool beside = runner.start(other);
      runner.search.fail(side, std::make_exception_ptr(std::domain_error("the pass failed")));
      if (beside)
        runner.commit(other);
      for (const std::int64_t id : in_plan)
        CHECK(runner.search.finished(id));
    }
    while (runner.step_sides(random)) {
      for (const auto &[id, request] : requests)
        static_cast<void>(runner.search.certain(id, 0));
    }
    for (const auto &[id, request] : requests)
      try {
        compare(request, runner.search.take(id));
      } catch (const std::domain_error &) {
        ++failed;
      } catch (const OutOfBlocks &) {
        CHECK(i % 2 == 0);
      }
    check_returned(runner.search);
  }
  CHECK(failed > 20);
}

void certain_steps_come_true() {
  std::mt19937 random(seed() + 5);
  const auto grammar = calls_grammar();
  std::size_t early = 0;
  for (int i = 0; i < 60; ++i) {
    Request request = random_request(random, grammar);
    request.options.strategy = Strategy::kStepBeam;
    request.options.distinct = request.options.temperature > 0 && i % 3 == 0;
    Runner runner(random_config(random));
    const std::int64_t id = runner.search.add(request);
    std::vector<ScoredStep> certain;
    bool more = true;
    while (more) {
      more = runner.step();
      early += certain.size();
      for (ScoredStep &step : runner.search.certain(id, certain.size()))
        certain.push_back(std::move(step));
    }
    const Result result = runner.search.take(id);
    CHECK_EQ(certain.size(), result.answers[0].steps.size());
    for (std::size_t s = 0; s < std::min(certain.size(), result.answers[0].steps.size()); ++s) {
      CHECK_EQ(certain[s].step.text, result.answers[0].steps[s].step.text);
      CHECK(certain[s].score == result.answers[0].steps[s].score || std::isnan(certain[s].score));
    }
    CHECK_THROWS(runner.search.certain(id, 0), std::out_of_range);
  }
  CHECK(early > 100);
}

void searches_agree_with_the_plain_one() {
  std::mt19937 random(seed());
  const auto grammar = calls_grammar();
  for (int i = 0; i < 150 && check::failures == 0; ++i) {
    const Request request = random_request(random, grammar);
    Runner runner(random_config(random));
    const std::int64_t id = runner.search.add(request);
    runner.run();
    CHECK(runner.search.finished(id));
    compare(request, runner.search.take(id));
    check_returned(runner.search);
  }
}

bool same(const Result &a, const Result &b) {
  const auto equal = [](const Answer &x, const Answer &y) {
    return x.text == y.text && x.tokens == y.tokens && x.rank == y.rank && x.logprob == y.logprob &&
           x.multiplicity == y.multiplicity && x.closed == y.closed && x.node == y.node &&
           x.steps.size() == y.steps.size();
  };
  const auto tokens = [](const Result &r) {
    const SearchStats &s = r.stats;
    return std::pair(s.policy_tokens + s.cached_tokens, s.reward_tokens + s.reward_cached_tokens);
  };
  return a.tree.size() == b.tree.size() && (tokens(a) == tokens(b) || a.stats.preemptions + b.stats.preemptions > 0) &&
         a.stats.forced_tokens == b.stats.forced_tokens &&
         std::equal(a.answers.begin(), a.answers.end(), b.answers.begin(), b.answers.end(), equal);
}

// Ways to search that the plain one does not know.
void vary(std::mt19937 &random, Request &request) {
  SearchOptions &options = request.options;
  switch (below(random, 5)) {
  case 0:
    options.distinct = options.temperature > 0;
    break;
  case 1:
    options.strategy = Strategy::kTokenBeam;
    break;
  case 2:
    options.strategy = Strategy::kStepBeam;
    options.independent = true;
    [[fallthrough]];
  case 3:
    if (request.scoring != Scoring::kNone) {
      options.strategy = Strategy::kStepBeam;
      options.confidence = 0.25 * static_cast<double>(1 + below(random, 4));
    }
    break;
  default:
    break;
  }
}

void requests_do_not_disturb_each_other() {
  std::mt19937 random(seed() + 1);
  const auto grammar = calls_grammar();
  for (int i = 0; i < 20; ++i) {
    std::vector<Request> requests;
    std::vector<Result> alone;
    for (int k = 0; k < 8; ++k) {
      requests.push_back(random_request(random, grammar));
      vary(random, requests.back());
      Runner runner;
      const std::int64_t id = runner.search.add(requests.back());
      runner.run();
      alone.push_back(runner.search.take(id));
    }
    // Together: some come later, some are cancelled on the way, between a plan and its commit among others.
    Runner runner(random_config(random));
    std::vector<std::int64_t> ids;
    std::vector<bool> cancelled(requests.size(), false);
    const auto disturb = [&] {
      if (ids.size() < requests.size() && below(random, 2))
        ids.push_back(runner.search.add(requests[ids.size()]));
      if (!ids.empty() && below(random, 30) == 0) {
        const std::size_t which = below(random, ids.size());
        runner.search.cancel(ids[which]);
        cancelled[which] = true;
      }
    };
    do {
      disturb();
    } while (runner.step(disturb) || ids.size() < requests.size());
    runner.run();
    for (std::size_t k = 0; k < ids.size(); ++k) {
      if (cancelled[k]) {
        CHECK_THROWS(runner.search.take(ids[k]), std::out_of_range);
        CHECK_THROWS(runner.search.finished(ids[k]), std::out_of_range);
      } else {
        CHECK(same(runner.search.take(ids[k]), alone[k]));
      }
    }
    check_returned(runner.search);
  }
}

void equal_draws_share_a_row() {
  Request request{Matcher(calls_grammar(), call_vocabulary()), {}};
  request.options.strategy = Strategy::kSample;
  request.options.width = 16;
  request.options.temperature = 0; // all draws agree all the way
  request.prompt = {1};
  Runner runner;
  const std::int64_t id = runner.search.add(request);
  while (runner.search.plan().kind == PlanKind::kDecode) {
    CHECK_EQ(runner.search.plan().draws, std::vector<std::int32_t>{16});
    CHECK(runner.search.plan().copies.empty());
    runner.step();
  }
  const Result result = runner.search.take(id);
  CHECK_EQ(result.answers.size(), 1u);
  CHECK_EQ(result.answers[0].multiplicity, 16);
}

void short_budgets_are_closed() {
  const auto grammar = calls_grammar();
  Request request{Matcher(grammar, call_vocabulary()), {}};
  request.prompt = {1};
  request.options.max_tokens = 1; // `[]` is one token
  Search search;
  search.cancel(search.add(request));
  GrammarBuilder b;
  const auto long_text = b.build(b.sequence({b.literal("abnsabnsabns"), b.stop()}), false);
  request.matcher = Matcher(long_text, call_vocabulary());
  CHECK_THROWS(search.add(request), BudgetError);
  // A text of millions is refused without being written.
  const auto endless = b.build(b.sequence({b.repeat(strings_dfa({"a"}), 5'000'000, kUnbounded), b.stop()}), false);
  request.matcher = Matcher(endless, call_vocabulary());
  CHECK_THROWS(search.add(request), BudgetError);
  // What the matcher has read already counts.
  request.matcher = Matcher(grammar, call_vocabulary());
  CHECK(request.matcher.accept_bytes("["));
  CHECK_THROWS(search.add(request), BudgetError);
  request.options.max_tokens = 2;
  CHECK(search.finished(search.add(request)) || search.plan().kind == PlanKind::kDecode);
  search.cancel(1);
  check_returned(search);
}

void a_text_without_choices_needs_no_model() {
  GrammarBuilder b;
  const auto only = b.build(b.sequence({b.literal("ab"), b.step(StepKind::kTotalFinish), b.stop()}), false);
  for (const Scoring scoring : {Scoring::kNone, Scoring::kExternal}) {
    Request request{Matcher(only, call_vocabulary()), {}};
    request.scoring = scoring;
    request.prompt = {1};
    Runner runner;
    const std::int64_t id = runner.search.add(request);
    CHECK(runner.search.plan().kind == (scoring == Scoring::kNone ? PlanKind::kDone : PlanKind::kScore));
    runner.run();
    CHECK_EQ(runner.search.take(id).answers.at(0).text, std::string("ab"));
  }
  // Nor does one that has been stopped before.
  Request request{Matcher(only, call_vocabulary()), {}};
  request.prompt = {1};
  CHECK(request.matcher.accept_bytes("ab") && request.matcher.finish());
  Runner runner;
  const std::int64_t id = runner.search.add(request);
  runner.run();
  CHECK_EQ(runner.search.take(id).answers.at(0).text, std::string("ab"));
}

void mistakes_are_refused() {
  const auto grammar = calls_grammar();
  Request request{Matcher(grammar, call_vocabulary()), {}};
  request.prompt = {1};
  request.options.max_tokens = 60;
  CHECK_THROWS(Search({{0}, {16}}), std::invalid_argument);
  CHECK_THROWS(Search({{16}, {16, -1}}), std::invalid_argument);
  CHECK_THROWS(Search({{16, 0, -2}, {}}), std::invalid_argument);
  CHECK_THROWS(Search({{}, {}, 0}), std::invalid_argument);
  CHECK_THROWS(Search({{}, {}, 1, 0}), std::invalid_argument);
  CHECK_THROWS(Search({{}, {}, 1, 1, 0}), std::invalid_argument);
  Search search;
  const auto refused = [&](const std::function<void(Request &)> &change) {
    Request bad = request;
    change(bad);
    CHECK_THROWS(search.add(bad), std::invalid_argument);
  };
  refused([](Request &r) { r.options.beams = 0; });
  refused([](Request &r) { r.options.width = 5000; });
  refused([](Request &r) { r.options.temperature = -1; });
  refused([](Request &r) { r.options.temperature = std::nan(""); });
  refused([](Request &r) { r.options.policy_weight = std::nan(""); });
  refused([](Request &r) { r.options.max_tokens = 0; });
  refused([](Request &r) { r.prompt.clear(); });
  refused([](Request &r) {
    r.options.distinct = true;
    r.options.temperature = 0;
  });
  refused([](Request &r) { r.scoring = Scoring::kModel; });
  refused([](Request &r) {
    r.scoring = Scoring::kModel;
    r.reward = std::make_shared<RewardFormat>();
  });
  CHECK(search.plan().kind == PlanKind::kDone);
  CHECK_THROWS(search.commit_tokens({}, {}), std::invalid_argument);
  CHECK_THROWS(search.take(0), std::out_of_range);
  CHECK_THROWS(search.finished(7), std::out_of_range);
  search.cancel(7);

  request.scoring = Scoring::kExternal;
  request.options.width = 2;
  request.options.temperature = 1;
  Runner runner;
  const std::int64_t id = runner.search.add(request);
  const Plan &plan = runner.search.plan();
  CHECK_THROWS(runner.search.take(id), std::out_of_range);
  CHECK_EQ(plan.uniforms.size(), 2u);
  const TokenId legal = plan.masks[0]->few.at(0);
  const double nan = std::nan("");
  CHECK_THROWS(runner.search.commit_scores(std::vector<double>{0.5, 0.5}), std::invalid_argument);
  CHECK_THROWS(runner.search.commit_tokens(Ids{legal}, std::vector<double>{0.0}), std::invalid_argument);
  CHECK_THROWS(runner.search.commit_tokens(Ids{legal, legal}, std::vector<double>{0.0}), std::invalid_argument);
  CHECK_THROWS(runner.search.commit_tokens(Ids{legal, -1}, std::vector<double>{0.0, 0.0}), std::invalid_argument);
  CHECK_THROWS(runner.search.commit_tokens(Ids{legal, 9999}, std::vector<double>{0.0, 0.0}), std::invalid_argument);
  CHECK_THROWS(runner.search.commit_tokens(Ids{legal, legal}, std::vector<double>{0.0, nan}), std::invalid_argument);
  CHECK_EQ(&plan, &runner.search.plan()); // still open
  while (runner.search.plan().kind == PlanKind::kDecode)
    runner.step();
  CHECK(runner.search.plan().kind == PlanKind::kScore);
  const std::size_t wanted = runner.search.plan().prefixes_to_score.size();
  CHECK_THROWS(runner.search.commit_scores(std::vector<double>(wanted + 1, 0.5)), std::invalid_argument);
  CHECK_THROWS(runner.search.commit_scores(std::vector<double>(wanted, 1.5)), std::invalid_argument);
  CHECK_THROWS(runner.search.commit_scores(std::vector<double>(wanted, nan)), std::invalid_argument);
  CHECK_THROWS(runner.search.commit_tokens(Ids{}, std::vector<double>{}), std::invalid_argument);
  runner.run();
  compare(request, runner.search.take(id));
  check_returned(runner.search);
}

// A tokenizer that breaks takes its own request down, and nothing else.
void a_failing_request_leaves_the_others_alone() {
  std::mt19937 random(seed() + 2);
  const auto grammar = calls_grammar();
  for (int i = 0; i < 10; ++i) {
    std::vector<Request> requests;
    while (requests.size() < 4) {
      Request r = random_request(random, grammar);
      r.options.strategy = Strategy::kStepBeam;
      r.options.max_tokens = 60;
      r.scoring = Scoring::kModel;
      requests.push_back(r);
    }
    auto fragile = std::make_shared<RewardFormat>(*reward_format());
    std::size_t left = below(random, 20);
    fragile->tokenize = [&left, sound = fragile->tokenize](std::string_view text) {
      if (left-- == 0)
        throw std::runtime_error("the tokenizer is broken");
      return sound(text);
    };
    Runner runner;
    std::vector<std::int64_t> ids;
    for (std::size_t k = 0; k < requests.size(); ++k) {
      Request r = requests[k];
      if (k == 1)
        r.reward = fragile;
      ids.push_back(runner.search.add(r));
    }
    runner.run();
    CHECK_EQ(runner.search.ended(), ids);
    for (std::size_t k = 0; k < requests.size(); ++k) {
      try {
        compare(requests[k], runner.search.take(ids[k]));
      } catch (const std::runtime_error &error) {
        CHECK_EQ(k, 1u);
        CHECK_EQ(std::string(error.what()), std::string("the tokenizer is broken"));
      }
      CHECK_THROWS(runner.search.take(ids[k]), std::out_of_range);
    }
    check_returned(runner.search);
  }
}

} // namespace

int main() {
  searches_agree_with_the_plain_one();
  scarce_memory_changes_no_answer();
  a_failed_pass_fails_its_requests_alone();
  certain_steps_come_true();
  requests_do_not_disturb_each_other();
  equal_draws_share_a_row();
  short_budgets_are_closed();
  a_text_without_choices_needs_no_model();
  mistakes_are_refused();
  a_failing_request_leaves_the_others_alone();
  return check::report();
}
