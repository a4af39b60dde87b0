// The draws of a plan: each output's are what the sampler gives for its logits, mask and numbers, and bad logits are
// told.
#include <limits>

#include "check.h"
#include "toolprm/draw.h"

using namespace toolprm;

namespace {

constexpr std::size_t kWidth = 6;

std::shared_ptr<const Mask> mask_of(std::vector<TokenId> ids) {
  Mask mask;
  mask.count = static_cast<std::uint32_t>(ids.size());
  mask.few = std::move(ids);
  return std::make_shared<const Mask>(std::move(mask));
}

// An output of each way to draw: two of the whole vocabulary, two of three ids.
Plan make_plan() {
  Plan plan;
  plan.kind = PlanKind::kDecode;
  plan.full_outputs = 2;
  plan.few_ids = {1, 3, 4};
  plan.masks = {mask_of({0, 2, 5}), mask_of({1, 3, 4})};
  plan.outputs = {3, 0, 1, 2};
  plan.mask_index = {0, 1, 1, 1};
  plan.draws = {3, 2, 2, 1};
  plan.temperatures = {0.7, 1.5, 0, 0};
  plan.sampling = {Sampling::kIndependent, Sampling::kDistinct, Sampling::kLikeliest, Sampling::kIndependent};
  plan.parents = {{}, {-1.5, 0.3}, {}, {}};
  plan.uniforms = {0.1, 0.5, 0.9, 0.2, 0.8, 0, 0, 0.4};
  plan.gumbel_uniforms = {0, 0, 0, 0.3, 0.6, 0, 0, 0};
  plan.requests = {7, 8, 9, 9};
  return plan;
}

const std::vector<float> kLogits{0.f, 1.f, 2.f, 3.f, 4.f, 1.5f, 1.f, 0.5f, 2.f, 0.25f, -1.f, 3.f};
const std::vector<float> kFewLogits{0.5f, 2.f, 1.f, 4.f, 1.f, 4.f};

void each_output_is_drawn_by_the_sampler() {
  const Plan plan = make_plan();
  const Draws drawn = draw(plan, kLogits, kFewLogits);
  CHECK(drawn.failures.empty());
  std::vector<TokenId> tokens(8);
  std::vector<double> logprobs(8);
  std::vector<Perturbed> places(8);
  const std::span<const float> logits(kLogits), few(kFewLogits);
  const std::span<const double> uniforms(plan.uniforms), gumbels(plan.gumbel_uniforms);
  sample({logits.first(kWidth)}, *plan.masks[0], 0.7, uniforms.first(3), &tokens[0], &logprobs[0]);
  sample_distinct({logits.subspan(kWidth)}, *plan.masks[1], 1.5, uniforms.subspan(3, 2), gumbels.subspan(3, 2),
                  plan.parents[1], &tokens[3], &logprobs[3], &places[3]);
  likeliest({few.first(3), plan.few_ids}, *plan.masks[1], 2, &tokens[5], &logprobs[5]);
  sample({few.subspan(3), plan.few_ids}, *plan.masks[1], 0, uniforms.subspan(7), &tokens[7], &logprobs[7]);
  CHECK(drawn.tokens == tokens);
  CHECK(drawn.logprobs == logprobs);
  for (std::size_t i = 0; i < places.size(); ++i)
    CHECK(drawn.perturbed[i].logprob == places[i].logprob && drawn.perturbed[i].gumbel == places[i].gumbel);
  CHECK_EQ(drawn.tokens[5], 3);
  CHECK_EQ(drawn.tokens[7], 1); // of two that are as likely, the lower id
}

void bad_logits_are_their_requests_alone() {
  std::vector<float> logits = kLogits;
  logits[kWidth + 3] = std::numeric_limits<float>::quiet_NaN();
  const Draws drawn = draw(make_plan(), logits, kFewLogits), good = draw(make_plan(), kLogits, kFewLogits);
  CHECK_EQ(drawn.failures.size(), 1u);
  CHECK(drawn.failures.count(8) == 1 && drawn.failures.at(8).find("NaN") != std::string::npos);
  for (std::size_t i = 0; i < good.tokens.size(); ++i)
    CHECK((i == 3 || i == 4) || drawn.tokens[i] == good.tokens[i]);
  logits = kLogits;
  logits[1] = std::numeric_limits<float>::quiet_NaN(); // of a token that is not legal
  CHECK(draw(make_plan(), logits, kFewLogits).failures.empty());
  logits.resize(2 * 3); // rows that lack legal tokens
  CHECK_EQ(draw(make_plan(), logits, kFewLogits).failures.size(), 2u);
}

void sizes_are_checked() {
  const Plan plan = make_plan();
  CHECK_THROWS(draw(plan, std::span(kLogits).first(11), kFewLogits), std::invalid_argument);
  CHECK_THROWS(draw(plan, kLogits, std::span(kFewLogits).first(5)), std::invalid_argument);
  CHECK_THROWS(draw(Plan{}, kLogits, {}), std::invalid_argument);
  CHECK(draw(Plan{}, {}, {}).tokens.empty());
}

} // namespace

int main() {
  each_output_is_drawn_by_the_sampler();
  bad_logits_are_their_requests_alone();
  sizes_are_checked();
  return check::report();
}
