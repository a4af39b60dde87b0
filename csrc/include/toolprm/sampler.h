// Draws tokens from logits under a mask, with random numbers that depend on nothing but their key.
#pragma once

#include <cstdint>
#include <span>

#include "toolprm/export.h"
#include "toolprm/mask.h"
#include "toolprm/vocabulary.h"

namespace toolprm {

// A uniform number in [0, 1): Philox 4x32-10 (Salmon et al. 2011) with seed as key and (candidate, position, round,
// lane) as counter. The same on every machine, whatever else runs.
TOOLPRM_API double uniform(std::uint64_t seed, std::uint32_t candidate, std::uint32_t position, std::uint32_t round,
                           std::uint32_t lane = 0);

// The logits of one row: those of the whole vocabulary, or of some ids only.
struct Logits {
  std::span<const float> values;
  std::span<const TokenId> ids = {}; // of the values, ascending; empty: value i is token i's
};

// Draws one token a number in uniforms from softmax(logits / temperature) over the legal tokens, by inversion of the
// cumulative distribution in ascending order of token ids, in double. Temperature 0: the likeliest token, the lowest id
// of equals. tokens, logprobs: room for uniforms.size() results each; a logprob is natural, at temperature 1, among the
// legal tokens. Thread-safe.
// Throws std::invalid_argument where a legal token has no logit; std::domain_error where a legal logit is NaN, or the
// largest is infinite.
TOOLPRM_API void sample(const Logits &logits, const Mask &mask, double temperature, std::span<const double> uniforms,
                        TokenId *tokens, double *logprobs);

// The likeliest legal tokens, best first, the lowest ids of equals; returns how many there are: `most`, or fewer where
// fewer are legal. tokens, logprobs: room for `most` each; logprobs as in sample(). Throws as sample().
TOOLPRM_API std::size_t likeliest(const Logits &logits, const Mask &mask, std::size_t most, TokenId *tokens,
                                  double *logprobs);

// A sequence in a race of Gumbel-perturbed log-probabilities (Kool et al. 2019, "Stochastic Beams and Where to Find
// Them"): the k highest of all sequences are a sample of k without replacement. A prefix holds the place of the best
// sequence that goes on from it.
struct Perturbed {
  double logprob = 0; // of the sequence, at the temperature of the draw
  double gumbel = 0;  // the perturbed one
};

// Draws up to uniforms.size() different tokens without replacement from softmax(logits / temperature) over the legal
// ones, and their places in the race below parent, best first: the first inherits the parent's. uniforms choose the
// tokens as in sample(), gumbel_uniforms (as many) the places. Returns how many there are: fewer where fewer are legal.
// tokens, logprobs, perturbed: room for uniforms.size() each. The temperature must be above 0. Throws as sample().
TOOLPRM_API std::size_t sample_distinct(const Logits &logits, const Mask &mask, double temperature,
                                        std::span<const double> uniforms, std::span<const double> gumbel_uniforms,
                                        const Perturbed &parent, TokenId *tokens, double *logprobs,
                                        Perturbed *perturbed);

} // namespace toolprm
