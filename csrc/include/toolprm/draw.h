// Draws what a search's DECODE plan asks for, from logits in host memory.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "toolprm/export.h"
#include "toolprm/sampler.h"
#include "toolprm/search.h"

namespace toolprm {

// What commit_tokens() takes, a sample each.
struct Draws {
  std::vector<TokenId> tokens;
  std::vector<double> logprobs;
  std::vector<Perturbed> perturbed;
  // Requests whose logits cannot be drawn from (a legal one is NaN or missing, the largest is infinite), and why. Their
  // tokens are no tokens: cancel them before the commit.
  std::map<std::int64_t, std::string> failures;
};

// logits: [full_outputs, any width of at least the vocabulary], the rows of the first outputs one after another;
// few_logits: [the other outputs, few_ids].
// Throws std::invalid_argument where they have other sizes. Thread-safe.
TOOLPRM_API Draws draw(const Plan &plan, std::span<const float> logits, std::span<const float> few_logits);

} // namespace toolprm
