// Draws tokens from logits under a mask, with random numbers that depend on nothing but their key.
#pragma once

#include <cstdint>
#include <span>

#include "toolprm/mask.h"
#include "toolprm/vocabulary.h"

namespace toolprm {

// A uniform number in [0, 1): Philox 4x32-10 (Salmon et al. 2011) with seed as key and (candidate, position, round, 0)
// as counter. The same on every machine, whatever else runs.
double uniform(std::uint64_t seed, std::uint32_t candidate, std::uint32_t position, std::uint32_t round);

// Draws one token a number in uniforms from softmax(logits / temperature) over the legal tokens, by inversion of the
// cumulative distribution in ascending order of token ids, in double. Temperature 0: the likeliest token, the lowest id
// of equals. tokens, logprobs: room for uniforms.size() results each; a logprob is natural, at temperature 1, among the
// legal tokens. Thread-safe.
// Throws std::invalid_argument where a legal token has no logit; std::domain_error where a legal logit is NaN, or the
// largest is infinite.
void sample(std::span<const float> logits, const Mask &mask, double temperature, std::span<const double> uniforms,
            TokenId *tokens, double *logprobs);

} // namespace toolprm
