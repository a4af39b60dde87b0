// Searches that are driven at random, with models that exist only here: requests come, end, fail and are cancelled at
// any time. No row reads a slot that nobody wrote, every answer is legal in its own tokens, and no block is lost.
#include <array>
#include <cmath>
#include <map>
#include <set>

#include "random_grammar.h"
#include "toolprm/search.h"

using namespace toolprm;

namespace {

using Ids = std::vector<TokenId>;

constexpr int kMostPasses = 300;
constexpr std::uint64_t kMix = 0xff51afd7ed558ccd;

std::uint64_t hash_of(const Ids &ids, std::uint64_t salt) {
  std::uint64_t h = kMix + salt;
  for (TokenId id : ids) {
    h = (h ^ static_cast<std::uint64_t>(id)) * kMix;
    h ^= h >> 29;
  }
  return h;
}

// What was written into the slots of a pool.
class Memory {
public:
  // The tokens that each output reads, its own the last.
  std::vector<Ids> run(const Plan &plan, std::int32_t block_size) {
    REQUIRE(plan.positions.size() == plan.tokens.size() && plan.rows.size() == plan.tokens.size() &&
            plan.slots.size() == plan.tokens.size());
    const std::size_t rows = plan.lengths.size(), contexts = index(plan.context_width),
                      blocks = index(plan.table_width);
    REQUIRE(plan.contexts.size() == rows * contexts && plan.block_tables.size() == rows * blocks);
    slots_.resize(index(plan.blocks * block_size), -1);
    for (const SlotCopy &copy : plan.copies)
      for (std::int32_t i = 0; i < copy.count; ++i)
        at(copy.target + i) = at(copy.source + i);
    std::set<std::int32_t> written;
    for (std::size_t i = 0; i < plan.tokens.size(); ++i) {
      REQUIRE(plan.slots[i] >= block_size && written.insert(plan.slots[i]).second); // block 0 is nobody's
      at(plan.slots[i]) = plan.tokens[i];
    }
    std::vector<Ids> read;
    for (std::int32_t output : plan.outputs) {
      const std::size_t o = index(output), row = index(plan.rows.at(o));
      Ids tokens;
      for (std::size_t c = 0; c < contexts; ++c)
        if (const std::int32_t s = plan.contexts[row * contexts + c]; s >= 0)
          for (std::int32_t i = 0; i < plan.segments.at(index(s)).count; ++i)
            tokens.push_back(at(plan.segments[index(s)].slot + i));
      const std::int32_t own = plan.positions[o] - static_cast<std::int32_t>(tokens.size()) + 1;
      REQUIRE(own >= 1 && own <= plan.lengths[row]);
      for (std::int32_t i = 0; i < own; ++i)
        tokens.push_back(at(plan.block_tables.at(row * blocks + index(i / block_size)) * block_size + i % block_size));
      REQUIRE(tokens.back() == plan.tokens[o]);
      for (TokenId token : tokens)
        REQUIRE(token >= 0); // written by somebody
      read.push_back(std::move(tokens));
    }
    return read;
  }

private:
  static std::size_t index(std::int32_t i) {
    REQUIRE(i >= 0);
    return static_cast<std::size_t>(i);
  }
  TokenId &at(std::int32_t slot) { return slots_.at(index(slot)); }
  Ids slots_;
};

std::shared_ptr<const RewardFormat> reward_format() {
  auto format = std::make_shared<RewardFormat>();
  format->tokenize = [](std::string_view text) {
    Ids ids;
    for (std::size_t i = 0; i < text.size(); i += 2)
      ids.push_back(static_cast<TokenId>(100 + static_cast<unsigned char>(text[i])));
    return ids;
  };
  format->tags = {Ids{1}, Ids{2, 3}, Ids{4}, Ids{}, Ids{5}};
  return format;
}

class Driver {
public:
  Driver(Source &source, std::shared_ptr<const Vocabulary> vocabulary)
      : s_(source), vocabulary_(std::move(vocabulary)), search_(config(source)) {}

  void run(const std::vector<std::shared_ptr<const Grammar>> &grammars) {
    add(grammars[0]);
    for (int passes = 0; passes < kMostPasses; ++passes) {
      if (s_.rarely(8))
        add(grammars[s_.below(grammars.size())]);
      if (s_.rarely(32) && !requests_.empty())
        cancel(std::next(requests_.begin(), static_cast<std::ptrdiff_t>(s_.below(requests_.size())))->first);
      const bool any = s_.below(2) ? pass() : both();
      take();
      if (!any && search_.waiting() + search_.under_way() == 0 && s_.done())
        break;
    }
    while (!requests_.empty())
      cancel(requests_.begin()->first);
    for (Side side : {Side::kPolicy, Side::kReward})
      search_.fail(side, std::make_exception_ptr(BudgetError("the end")));
    REQUIRE(search_.waiting() + search_.under_way() == 0);
    search_.clear_cache();
    for (Side side : {Side::kPolicy, Side::kReward})
      REQUIRE(search_.pool(side).in_use() == 0 && search_.idle_blocks(side) == 0);
  }

private:
  struct Known {
    Matcher start;
    std::int32_t max_tokens;
  };

  static SearchConfig config(Source &source) {
    SearchConfig config;
    for (PoolOptions *pool : {&config.policy, &config.reward}) {
      pool->block_size = 1 + static_cast<std::int32_t>(source.below(5));
      pool->capacity = source.below(2) ? 0 : static_cast<std::int32_t>(source.below(64));
      pool->idle = static_cast<std::int32_t>(source.below(8)) - 1;
    }
    config.prompt_tokens = 1 + static_cast<std::int32_t>(source.below(16));
    config.most_requests = 1 + static_cast<std::int32_t>(source.below(4));
    config.most_rows = 1 + static_cast<std::int32_t>(source.below(16));
    return config;
  }

  void add(const std::shared_ptr<const Grammar> &grammar) {
    Request r{Matcher(grammar, vocabulary_)};
    SearchOptions &o = r.options;
    o.strategy = static_cast<Strategy>(s_.below(4));
    o.beams = static_cast<std::int32_t>(s_.below(5));
    o.width = static_cast<std::int32_t>(s_.below(6));
    o.temperature = std::array{0.8, 0.0, 0.3, 2.0}[s_.below(4)];
    o.aggregate = static_cast<Aggregate>(s_.below(4));
    o.policy_weight = s_.below(2) ? 0.3 : 0;
    o.distinct = s_.rarely(3);
    o.independent = s_.rarely(4);
    o.confidence = s_.rarely(4) ? 0.6 : 0;
    o.seed = s_.byte();
    o.max_tokens = 1 + static_cast<std::int32_t>(s_.below(40));
    o.forced_runs = !s_.rarely(4);
    r.scoring = static_cast<Scoring>(s_.below(3));
    for (Ids *prompt : {&r.prompt, &r.reward_prompt}) {
      for (std::size_t i = s_.below(24); i > 0; --i) // prompts begin alike
        prompt->push_back(static_cast<TokenId>(i % 7));
      for (std::size_t i = s_.below(4); i > 0; --i)
        prompt->push_back(static_cast<TokenId>(s_.below(8)));
    }
    if (r.scoring == Scoring::kModel && !s_.rarely(16))
      r.reward = reward_format();
    r.reward_room = s_.rarely(4) ? static_cast<std::int32_t>(s_.below(32)) : 0;
    const Known known{r.matcher, o.max_tokens};
    try {
      const std::int64_t id = search_.add(std::move(r));
      REQUIRE(requests_.emplace(id, known).second);
    } catch (const BudgetError &) {
    } catch (const std::invalid_argument &) {
    }
  }

  void cancel(std::int64_t id) {
    search_.cancel(id);
    requests_.erase(id);
    bool unknown = false;
    try {
      search_.finished(id);
    } catch (const std::out_of_range &) {
      unknown = true;
    }
    REQUIRE(unknown);
  }

  bool pass() {
    if (open_[0] || open_[1])
      return both();
    const Plan &plan = search_.plan();
    if (plan.kind == PlanKind::kDone)
      return false;
    const Side side = plan.kind == PlanKind::kDecode ? Side::kPolicy : Side::kReward;
    model(side, plan);
    commit(side);
    return true;
  }

  bool both() {
    bool any = false;
    for (Side side : {Side::kPolicy, Side::kReward}) {
      bool &open = open_[static_cast<std::size_t>(side)];
      if (!open) {
        const Plan &plan = search_.plan(side);
        if (plan.kind == PlanKind::kDone)
          continue;
        model(side, plan);
        open = true;
      }
      any = true;
      if (s_.rarely(4)) // later
        continue;
      commit(side);
      open = false;
    }
    return any;
  }

  void commit(Side side) {
    if (s_.rarely(32) || (side == Side::kPolicy && stuck_)) {
      search_.fail(side, std::make_exception_ptr(BudgetError("the model failed")));
      return;
    }
    const auto refused = [&](const auto &give) {
      try {
        give();
      } catch (const std::invalid_argument &) {
        return true;
      }
      return false;
    };
    if (side == Side::kPolicy) {
      if (s_.rarely(8) && !tokens_.empty())
        REQUIRE(refused([&] { search_.commit_tokens(std::span(tokens_).subspan(1), logprobs_, perturbed_); }));
      search_.commit_tokens(tokens_, logprobs_, perturbed_);
    } else {
      if (s_.rarely(8) && !scores_.empty())
        REQUIRE(refused([&] { search_.commit_scores(std::span(scores_).subspan(1)); }));
      search_.commit_scores(scores_);
    }
  }

  void model(Side side, const Plan &plan) {
    REQUIRE(&plan == &search_.plan(side)); // the same until it is committed
    const auto read = memory_[static_cast<std::size_t>(side)].run(plan, search_.pool(side).block_size());
    if (side == Side::kReward) {
      scores_.clear();
      for (const Ids &tokens : read)
        scores_.push_back(static_cast<double>(hash_of(tokens, 1) % 1001) / 1000);
      for (const auto &steps : plan.prefixes_to_score)
        scores_.push_back(static_cast<double>(steps.size() % 7) / 7);
      REQUIRE(plan.requests.size() == scores_.size());
      return;
    }
    REQUIRE(read.size() == plan.draws.size() && plan.masks.size() <= read.size());
    tokens_.assign(plan.uniforms.size(), -1);
    logprobs_.assign(plan.uniforms.size(), 0);
    perturbed_.assign(plan.uniforms.size(), {});
    std::size_t at = 0;
    stuck_ = false;
    for (std::size_t i = 0; i < read.size(); ++i) {
      const auto draws = static_cast<std::size_t>(plan.draws[i]);
      std::vector<float> whole;
      for (std::size_t id = 0; id < vocabulary_->size(); ++id)
        whole.push_back(static_cast<float>(hash_of(read[i], id + 2) % 4000) / 1000);
      std::vector<float> some;
      for (TokenId id : plan.few_ids)
        some.push_back(whole.at(static_cast<std::size_t>(id)));
      const Logits logits =
          i >= static_cast<std::size_t>(plan.full_outputs) ? Logits{some, plan.few_ids} : Logits{whole};
      const Mask &mask = *plan.masks.at(static_cast<std::size_t>(plan.mask_index[i]));
      stuck_ = stuck_ || mask.count == 0;
      if (stuck_)
        return;
      const auto uniforms = std::span(plan.uniforms).subspan(at, draws);
      if (plan.sampling[i] == Sampling::kLikeliest)
        likeliest(logits, mask, draws, tokens_.data() + at, logprobs_.data() + at);
      else if (plan.sampling[i] == Sampling::kDistinct)
        sample_distinct(logits, mask, plan.temperatures[i], uniforms,
                        std::span(plan.gumbel_uniforms).subspan(at, draws), plan.parents[i], tokens_.data() + at,
                        logprobs_.data() + at, perturbed_.data() + at);
      else
        sample(logits, mask, plan.temperatures[i], uniforms, tokens_.data() + at, logprobs_.data() + at);
      at += draws;
    }
    REQUIRE(at == plan.uniforms.size());
  }

  void take() {
    for (std::int64_t id : search_.ended()) {
      if (s_.rarely(4))
        continue; // later
      const Known known = requests_.at(id);
      requests_.erase(id);
      try {
        check(search_.take(id), known);
      } catch (const BudgetError &) {
      } catch (const OutOfBlocks &) {
      } catch (const std::invalid_argument &) { // no token writes a byte of the text that closes the answer
      }
    }
  }

  static void check(const Result &result, const Known &known) {
    REQUIRE(!result.answers.empty());
    for (std::size_t i = 0; i < result.answers.size(); ++i) {
      const Answer &answer = result.answers[i];
      REQUIRE(i == 0 || !(answer.rank > result.answers[i - 1].rank + 2e-4));
      REQUIRE(answer.tokens.size() <= static_cast<std::size_t>(known.max_tokens));
      REQUIRE(answer.multiplicity >= 1 && answer.node < static_cast<std::int32_t>(result.tree.size()));
      Matcher m(known.start);
      for (TokenId token : answer.tokens)
        REQUIRE(m.accept(token));
      REQUIRE(m.text() == answer.text && m.finish());
      const std::vector<Step> steps = m.steps();
      REQUIRE(steps.size() == answer.steps.size());
      for (std::size_t s = 0; s < steps.size(); ++s)
        REQUIRE(steps[s].text == answer.steps[s].step.text && steps[s].path == answer.steps[s].step.path);
    }
  }

  Source &s_;
  std::shared_ptr<const Vocabulary> vocabulary_;
  Search search_;
  std::map<std::int64_t, Known> requests_;
  std::array<Memory, 2> memory_;
  std::array<bool, 2> open_{};
  bool stuck_ = false; // the vocabulary lacks a byte that has to follow: there is nothing to draw
  Ids tokens_;
  std::vector<double> logprobs_, scores_;
  std::vector<Perturbed> perturbed_;
};

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  Source source(data, size);
  try {
    const auto vocabulary = random_vocabulary(source, !source.rarely(16));
    std::vector<std::shared_ptr<const Grammar>> grammars{RandomGrammar::make(source)};
    if (source.below(2))
      grammars.push_back(RandomGrammar::make(source));
    Driver(source, vocabulary).run(grammars);
  } catch (const BudgetError &) {
  } catch (const ImpossibleGrammar &) {
  } catch (const std::invalid_argument &) {
  }
  return 0;
}
