// Follows one text through a grammar, token by token. Copying a matcher forks it, at the cost of a pointer.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "toolprm/export.h"
#include "toolprm/grammar.h"
#include "toolprm/mask.h"
#include "toolprm/vocabulary.h"

namespace toolprm {

// One completed decision. The steps of a text lie end to end: each starts where the one before ended.
struct Step {
  StepKind kind;
  std::uint32_t start, end; // byte offsets into the text
  std::string path;         // JSON pointer into the list of calls (or into the value, for a schema)
  std::string text;         // the bytes from start to end
  std::uint32_t value = 0;  // ARG_VALUE: where the value begins in text
};

struct State; // what a text has come to: private to the core
class StatePool;

// Not thread-safe itself; matchers of one grammar, forks of each other among them, may be used from different threads
// at once. Keeps its grammar and vocabulary alive.
//
//   Matcher m(grammar, vocabulary);
//   while (!m.is_over()) {
//     m.fill_mask(row);
//     m.accept(choose(row)); // a stop token ends the text
//   }
//
// All that read ahead or write masks throw BudgetError where the text can be read in too many ways at once (the
// alternatives of a schema overlap exponentially); the matcher is then unchanged.
class TOOLPRM_API Matcher {
public:
  // At the start of a text. Throws std::invalid_argument where one of them is null.
  Matcher(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const Vocabulary> vocabulary);

  // Reads a token. Returns false, and changes nothing, where it is illegal (ids outside the vocabulary among them).
  // Appends the steps that it completed.
  bool accept(TokenId token, std::vector<Step> *steps = nullptr);
  // Reads bytes without tokens (they count as one token for rollback).
  bool accept_bytes(std::string_view bytes, std::vector<Step> *steps = nullptr);
  // Ends the text, as a stop token would.
  bool finish(std::vector<Step> *steps = nullptr);
  // Takes the last count tokens back. Throws std::out_of_range when there are fewer.
  void rollback(std::size_t count);

  // The legal tokens. Computed once a state: matchers in equal states share it.
  std::shared_ptr<const Mask> mask() const;
  // Writes them to row, at least ceil(vocabulary / 32) words, bit = legal; further words are 0.
  void fill_mask(std::span<std::int32_t> row) const;
  // Whether they were computed before.
  bool knows_mask() const;
  // The legal tokens found the slow way, by reading every one of them: what mask() can be checked against.
  std::vector<TokenId> plain_mask() const;
  // Tokens of the only text that can follow, as the tokenizer would write it; at the end of the run those are left
  // out with which the next byte could still merge. Empty where there is a choice. Throws as Vocabulary::tokenize().
  std::vector<TokenId> forced() const;
  // The only bytes that can follow (up to limit), whatever the tokens.
  std::string forced_bytes(std::size_t limit = 4096) const;
  // A shortest text that completes the answer from here; empty where it is complete.
  std::string closing() const;
  // Fewest bytes that complete the answer.
  std::uint32_t closing_bytes() const;
  // The text may end here.
  bool is_complete() const;
  // The text may end here, and nothing else can follow.
  bool is_over() const;
  // A stop token was read.
  bool is_stopped() const;

  // What was read so far. tokens(): without the bytes read by accept_bytes(); token_count(): with those runs, one each.
  std::string text() const;
  std::vector<TokenId> tokens() const;
  std::size_t token_count() const;
  std::uint32_t text_bytes() const;
  // Where the last completed step ended.
  std::uint32_t boundary() const;
  // All steps completed so far.
  std::vector<Step> steps() const;
  // A key: among living matchers of one grammar and vocabulary, equal states allow exactly the same continuations.
  const State *state() const;
  const Grammar &grammar() const { return *source_->grammar; }
  const Vocabulary &vocabulary() const { return *source_->vocabulary; }

private:
  struct Node;
  struct Source { // what all forks share
    std::shared_ptr<const Grammar> grammar;
    std::shared_ptr<const Vocabulary> vocabulary;
    std::shared_ptr<StatePool> pool;
  };
  StatePool &pool() const { return *source_->pool; }
  bool read(std::string_view bytes, bool stop, TokenId token, std::vector<Step> *steps);

  std::shared_ptr<const Source> source_;
  std::shared_ptr<const Node> node_;
};

// Writes the legal tokens of each matcher to its row; rows lie behind each other, all as wide as the first vocabulary
// or wider. threads: how many may work at once; what was computed before costs too little to be shared out. Throws what
// Matcher::mask() does.
TOOLPRM_API void fill_masks(std::span<const Matcher *const> matchers, std::span<std::int32_t> rows,
                            std::size_t threads);

// A JSON (or Python literal) value in one canonical spelling: members sorted, numbers and escapes normalised.
// What cannot be parsed comes back as it is.
TOOLPRM_API std::string canonical_value(std::string_view text);

} // namespace toolprm
