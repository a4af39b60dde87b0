// An engine around the search: requests come and go, each pass is one batch over all that are under way.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <toolprm/draw.h>
#include <toolprm/search.h>

#include "model.h"

// One thread at a time may be inside.
class Engine {
public:
  // What a request is told: the steps that are certain by now, then how it ended.
  struct Listener {
    std::function<void(const toolprm::ScoredStep &)> on_step;
    std::function<void(toolprm::Result)> on_result;
    std::function<void(const std::string &)> on_failure;
    // Scores the last of the steps in [0, 1]; of requests whose scoring is external.
    std::function<double(const std::vector<toolprm::Step> &)> scorer;
  };

  Engine(toolprm::SearchConfig config, std::shared_ptr<const toolprm::Vocabulary> vocabulary)
      : vocabulary_(std::move(vocabulary)), search_(config), policy_(config.policy.block_size),
        reward_(config.reward.block_size) {}

  // Throws what Search::add() throws.
  std::int64_t submit(toolprm::Request request, Listener listener) {
    const std::int64_t id = search_.add(std::move(request));
    running_.emplace(id, Running{std::move(listener)});
    return id;
  }

  void cancel(std::int64_t id) {
    search_.cancel(id);
    running_.erase(id);
  }

  // Runs one pass, and tells what came of it. False where there is nothing to run.
  bool step() {
    const toolprm::Plan &plan = search_.plan();
    if (plan.kind == toolprm::PlanKind::kDone)
      return false;
    if (plan.kind == toolprm::PlanKind::kDecode)
      decode(plan);
    else
      search_.commit_scores(plan.prefixes_to_score.empty() ? scores(plan) : outside_scores(plan));
    tell();
    return true;
  }

  const Cache &policy_cache() const { return policy_; }
  const Cache &reward_cache() const { return reward_; }

private:
  struct Running {
    Listener listener;
    std::size_t told = 0; // steps
  };

  void decode(const toolprm::Plan &plan) {
    const std::vector<std::uint64_t> reads = policy_.forward(plan);
    const auto full = static_cast<std::size_t>(plan.full_outputs);
    std::vector<float> logits, few; // [full outputs, vocabulary], [the others, few ids]
    for (std::size_t i = 0; i < reads.size(); ++i)
      if (i < full)
        for (std::size_t id = 0; id < vocabulary_->size(); ++id)
          logits.push_back(logit(reads[i], static_cast<toolprm::TokenId>(id), *vocabulary_));
      else
        for (const toolprm::TokenId id : plan.few_ids)
          few.push_back(logit(reads[i], id, *vocabulary_));
    const toolprm::Draws drawn = toolprm::draw(plan, logits, few);
    for (const auto &[id, reason] : drawn.failures)
      fail(id, reason);
    search_.commit_tokens(drawn.tokens, drawn.logprobs, drawn.perturbed);
  }

  // The reward model's own pass, over its own memory.
  std::vector<double> scores(const toolprm::Plan &plan) {
    std::vector<double> out;
    for (const std::uint64_t read : reward_.forward(plan))
      out.push_back(score(read));
    return out;
  }

  std::vector<double> outside_scores(const toolprm::Plan &plan) {
    std::vector<double> out;
    for (std::size_t i = 0; i < plan.requests.size(); ++i) {
      const auto known = running_.find(plan.requests[i]);
      out.push_back(known == running_.end() ? 0 : known->second.listener.scorer(plan.prefixes_to_score[i]));
    }
    return out;
  }

  void tell() {
    for (auto &[id, running] : running_) {
      const std::vector<toolprm::ScoredStep> steps = search_.certain(id, running.told);
      running.told += steps.size();
      if (running.listener.on_step)
        for (const toolprm::ScoredStep &step : steps)
          running.listener.on_step(step);
    }
    for (const std::int64_t id : search_.ended()) {
      const Listener listener = std::move(running_.at(id).listener);
      running_.erase(id);
      try {
        listener.on_result(search_.take(id));
      } catch (const std::exception &error) {
        if (listener.on_failure)
          listener.on_failure(error.what());
      }
    }
  }

  void fail(std::int64_t id, const std::string &reason) {
    const auto known = running_.find(id);
    if (known == running_.end())
      return;
    const Listener listener = std::move(known->second.listener);
    cancel(id);
    if (listener.on_failure)
      listener.on_failure(reason);
  }

  std::shared_ptr<const toolprm::Vocabulary> vocabulary_;
  toolprm::Search search_;
  Cache policy_, reward_;
  std::map<std::int64_t, Running> running_;
};
