#include "toolprm/draw.h"

#include <stdexcept>

namespace toolprm {

Draws draw(const Plan &plan, std::span<const float> logits, std::span<const float> few_logits) {
  const std::size_t outputs = plan.draws.size(), full = static_cast<std::size_t>(plan.full_outputs),
                    few = plan.few_ids.size(), width = full == 0 ? 0 : logits.size() / full;
  if (logits.size() != full * width)
    throw std::invalid_argument("logits must be [" + std::to_string(full) + ", vocabulary], and have " +
                                std::to_string(logits.size()) + " values");
  if (few_logits.size() != (outputs - full) * few)
    throw std::invalid_argument("few_logits must be [" + std::to_string(outputs - full) + ", " + std::to_string(few) +
                                "], and have " + std::to_string(few_logits.size()) + " values");
  Draws out;
  out.tokens.assign(plan.uniforms.size(), -1);
  out.logprobs.assign(plan.uniforms.size(), 0);
  out.perturbed.assign(plan.uniforms.size(), {});
  std::size_t at = 0;
  for (std::size_t output = 0; output < outputs; ++output) {
    const auto draws = static_cast<std::size_t>(plan.draws[output]);
    const Mask &mask = *plan.masks[static_cast<std::size_t>(plan.mask_index[output])];
    const Logits own = output < full ? Logits{logits.subspan(output * width, width)}
                                     : Logits{few_logits.subspan((output - full) * few, few), plan.few_ids};
    const auto uniforms = std::span(plan.uniforms).subspan(at, draws);
    TokenId *const tokens = out.tokens.data() + at;
    double *const logprobs = out.logprobs.data() + at;
    try {
      switch (plan.sampling[output]) {
      case Sampling::kIndependent:
        sample(own, mask, plan.temperatures[output], uniforms, tokens, logprobs);
        break;
      case Sampling::kDistinct:
        sample_distinct(own, mask, plan.temperatures[output], uniforms,
                        std::span(plan.gumbel_uniforms).subspan(at, draws), plan.parents[output], tokens, logprobs,
                        out.perturbed.data() + at);
        break;
      case Sampling::kLikeliest:
        likeliest(own, mask, draws, tokens, logprobs);
        break;
      }
    } catch (const std::logic_error &error) { // domain_error and invalid_argument are
      out.failures.emplace(plan.requests[output], error.what());
    }
    at += draws;
  }
  return out;
}

} // namespace toolprm
