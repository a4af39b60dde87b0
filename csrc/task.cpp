#include "task.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <numeric>
#include <set>
#include <stdexcept>
#include <utility>

namespace toolprm {

namespace {

constexpr double kNoScore = std::numeric_limits<double>::quiet_NaN();

// Over the steps that were judged; NaN while none is.
double aggregate(const Prefix &prefix, Aggregate how) {
  double product = 1, least = 1, sum = 0, last = kNoScore;
  std::size_t judged = 0;
  for (const ScoredStep *s : prefix.steps.since(0)) {
    if (std::isnan(s->score))
      continue;
    product *= s->score;
    least = std::min(least, s->score);
    sum += s->score;
    last = s->score;
    ++judged;
  }
  if (judged == 0)
    return kNoScore;
  switch (how) {
  case Aggregate::kMin:
    return least;
  case Aggregate::kProduct:
    return product;
  case Aggregate::kMean:
    return sum / static_cast<double>(judged);
  case Aggregate::kLast:
    break;
  }
  return last;
}

// What was decided, however it was spelled: arguments in any order, values canonical.
std::string decisions(const Prefix &prefix) {
  std::string out;
  std::map<std::string, std::string> arguments;
  const auto write = [&](const std::string &text) { out += std::to_string(text.size()) + ':' + text; };
  const auto flush = [&] {
    for (const auto &[path, value] : arguments) {
      write(path);
      write(value);
    }
    arguments.clear();
  };
  for (const ScoredStep *s : prefix.steps.since(0)) {
    if (s->step.kind == StepKind::kArgValue) {
      arguments[s->step.path] = canonical_value(std::string_view(s->step.text).substr(s->step.value));
      continue;
    }
    flush();
    if (s->step.kind == StepKind::kFuncName)
      write(s->step.text);
    out += static_cast<char>('A' + static_cast<int>(s->step.kind));
  }
  flush();
  if (prefix.finished)
    out += '.';
  return out;
}

// A bound of closing_tokens() from below that costs nothing: a schema may ask for a string of millions.
std::size_t least_closing_tokens(const Matcher &matcher) {
  const std::size_t longest = std::max<std::size_t>(1, matcher.vocabulary().longest());
  return (matcher.closing_bytes() + longest - 1) / longest;
}

std::size_t closing_tokens(const Matcher &matcher) { return matcher.vocabulary().tokenize(matcher.closing()).size(); }

void add_steps(Prefix &prefix, std::vector<Step> &steps) {
  for (Step &step : steps) {
    prefix.steps.push_back({std::move(step), kNoScore, prefix.open_logprob});
    prefix.open_logprob = 0;
  }
  steps.clear();
}

void read_tokens(Matcher &matcher, std::span<const TokenId> tokens, std::vector<Step> &steps) {
  for (TokenId token : tokens)
    if (!matcher.accept(token, &steps))
      throw std::logic_error("a token that the grammar had offered was refused");
}

// Of a node in the tree of a race: whoever continues it by this token.
std::uint32_t child_key(std::uint32_t key, TokenId token) {
  std::uint64_t h = (std::uint64_t{key} << 32 | static_cast<std::uint32_t>(token)) + 0x9E3779B97F4A7C15u;
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u; // splitmix64 (Steele et al. 2014)
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
  return static_cast<std::uint32_t>((h ^ (h >> 31)) >> 32);
}

// Ranks count to four decimals: what differs by the models' rounding alone, such as the same step scored in two rows,
// must stay equal, or batching could change the answer.
double comparable(double rank) { return std::round(rank * 1e4); }

std::vector<ScoredStep> copied(const Chain<ScoredStep> &steps, std::size_t from) {
  std::vector<ScoredStep> out;
  for (const ScoredStep *step : steps.since(from))
    out.push_back(*step);
  return out;
}

} // namespace

Search::Task::Task(Request r, std::int64_t number)
    : id(number), request(std::move(r)), begun_tokens_(request.matcher.tokens().size()) {
  begin();
}

void Search::Task::begin() {
  Prefix root(request.matcher);
  const auto check = [&](std::size_t needed, const char *words) {
    if (root.matcher.token_count() + needed > static_cast<std::size_t>(options().max_tokens))
      throw BudgetError("max_tokens is " + std::to_string(options().max_tokens) +
                        ", but the shortest legal answer needs " + words +
                        std::to_string(root.matcher.token_count() + needed));
  };
  check(least_closing_tokens(root.matcher), "at least ");
  check(closing_tokens(root.matcher), "");
  root.pending.push_back(request.prompt.back());
  run_forced(root);
  std::vector<std::uint32_t> seats(options().independent ? static_cast<std::size_t>(options().beams) : 1);
  std::iota(seats.begin(), seats.end(), 0);
  beams_.push_back({std::move(root), std::move(seats)});
  expand();
}

// Every beam becomes one row with as many draws as its width, for each of its seats.
void Search::Task::expand() {
  rows.clear();
  candidates.clear();
  const auto width = static_cast<std::uint32_t>(options().width);
  const bool together = options().distinct || options().strategy == Strategy::kTokenBeam; // one number for all
  wave_ = options().confidence > 0 ? 1 : width;
  for (std::size_t b = 0; b < beams_.size(); ++b) {
    Row row{std::move(beams_[b].prefix), 0, {}};
    row.known = round == 0 ? 0 : row.prefix.steps.size();
    row.beam = row.key = static_cast<std::uint32_t>(b);
    for (const std::uint32_t seat : beams_[b].seats)
      for (std::uint32_t m = 0; m < (together ? 1 : width); ++m)
        row.draws.push_back(seat * width + m);
    if (options().confidence <= 0)
      stats.candidates += static_cast<std::int64_t>(beams_[b].seats.size() * width);
    place(std::move(row));
  }
  beams_.clear();
  ++stats.rounds;
  if (rows.empty())
    settle();
}

bool Search::Task::done_expanding(const Row &row) const {
  if (row.prefix.finished)
    return true;
  return options().strategy == Strategy::kStepBeam && row.prefix.steps.size() > row.known;
}

// One of its draws belongs to the wave that is under way, or to an earlier one.
bool Search::Task::active(const Row &row) const {
  const auto width = static_cast<std::uint32_t>(options().width);
  return std::any_of(row.draws.begin(), row.draws.end(), [&](std::uint32_t draw) { return draw % width < wave_; });
}

void Search::Task::place(Row row) {
  if (!active(row)) {
    parked_.push_back(std::move(row));
    return;
  }
  const bool done = done_expanding(row);
  row.mask = done ? nullptr : row.prefix.matcher.mask(); // here, not in plan(), which must not fail half-way
  (done ? candidates : rows).push_back(std::move(row));
}

// -------------------------------------------------------------------- tokens

std::int64_t Search::Task::left(const Matcher &matcher) const {
  return options().max_tokens - static_cast<std::int64_t>(matcher.token_count());
}

// Whether the answer can still be completed within max_tokens. Bytes bound tokens from above and come for free.
bool Search::Task::can_close(const Matcher &matcher) const {
  const std::int64_t room = left(matcher);
  if (room < 0)
    return false;
  return matcher.closing_bytes() <= static_cast<std::uint64_t>(room) ||
         (least_closing_tokens(matcher) <= static_cast<std::size_t>(room) &&
          closing_tokens(matcher) <= static_cast<std::size_t>(room));
}

// Writes tokens, unless the answer could then not be completed within max_tokens any more.
bool Search::Task::write(Prefix &prefix, std::span<const TokenId> tokens, double logprob) const {
  Matcher after(prefix.matcher);
  std::vector<Step> steps;
  read_tokens(after, tokens, steps);
  if (!can_close(after))
    return false;
  prefix.matcher = std::move(after);
  prefix.pending.insert(prefix.pending.end(), tokens.begin(), tokens.end());
  prefix.logprob += logprob;
  prefix.open_logprob += logprob;
  add_steps(prefix, steps);
  return true;
}

void Search::Task::finish(Prefix &prefix) {
  std::vector<Step> steps;
  if (!prefix.matcher.is_stopped())
    prefix.matcher.finish(&steps);
  add_steps(prefix, steps);
  prefix.finished = true;
  prefix.pending.clear();
  prefix.kv = KvSequence(); // nothing goes on from here
}

// Writes the shortest end. The invariant of can_close() makes it fit.
void Search::Task::close(Prefix &prefix) {
  std::vector<Step> steps;
  read_tokens(prefix.matcher, prefix.matcher.vocabulary().tokenize(prefix.matcher.closing()), steps);
  add_steps(prefix, steps);
  prefix.closed = true;
  finish(prefix);
}

void Search::Task::run_forced(Prefix &prefix) {
  if (options().forced_runs) {
    const std::vector<TokenId> run = prefix.matcher.forced();
    if (!run.empty()) {
      if (!write(prefix, run, 0)) { // the run and the end tokenised apart may be longer than together
        close(prefix);
        return;
      }
      stats.forced_tokens += static_cast<std::int64_t>(run.size());
    }
  }
  if (prefix.matcher.is_over())
    finish(prefix);
}

void Search::Task::take_token(Prefix &prefix, TokenId token, double logprob) {
  if (prefix.matcher.vocabulary().is_stop(token)) {
    prefix.logprob += logprob;
    prefix.open_logprob += logprob;
    std::vector<Step> steps;
    read_tokens(prefix.matcher, {&token, 1}, steps);
    add_steps(prefix, steps);
    finish(prefix);
  } else if (write(prefix, {&token, 1}, logprob)) {
    run_forced(prefix);
  } else {
    close(prefix);
  }
}

// One draw a candidate: rows part where their draws differ.
void Search::Task::part(Row row, std::span<const TokenId> tokens, std::span<const double> logprobs,
                        std::span<const Perturbed> perturbed) {
  std::vector<TokenId> distinct;
  for (TokenId token : tokens)
    if (token >= 0 && std::find(distinct.begin(), distinct.end(), token) == distinct.end())
      distinct.push_back(token);
  for (TokenId token : distinct) {
    Row child{token == distinct.back() ? std::move(row.prefix) : row.prefix, row.known, {}};
    child.beam = row.beam;
    double logprob = 0;
    for (std::size_t i = 0; i < tokens.size(); ++i)
      if (tokens[i] == token) {
        logprob = logprobs[i];
        if (options().distinct) {
          child.draws = row.draws;
          child.key = child_key(row.key, token);
          child.place = perturbed[i];
        } else {
          child.draws.push_back(row.draws[i]);
        }
      }
    take_token(child.prefix, token, logprob);
    place(std::move(child));
  }
}

void Search::Task::draw(std::span<const TokenId> tokens, std::span<const double> logprobs,
                        std::span<const Perturbed> perturbed) {
  std::vector<Row> drawn = std::move(rows);
  rows.clear();
  if (options().strategy == Strategy::kTokenBeam) {
    grow(drawn, tokens, logprobs);
  } else {
    for (Row &row : drawn) {
      const std::size_t first = row.first_sample, count = row.samples;
      part(std::move(row), tokens.subspan(first, count), logprobs.subspan(first, count),
           options().distinct ? perturbed.subspan(first, count) : perturbed);
    }
  }
  if (options().distinct)
    end_races();
  if (rows.empty())
    settle();
}

// Of each beam's prefixes, expanded or not, the width that stand best go on: the others cannot be among the best any
// more, for a prefix stands where the best of its continuations does.
void Search::Task::end_races() {
  struct Runner {
    std::uint32_t beam;
    double gumbel;
    Row *row;
  };
  std::vector<Runner> runners;
  for (std::vector<Row> *list : {&candidates, &rows})
    for (Row &row : *list)
      runners.push_back({row.beam, row.place.gumbel, &row});
  std::stable_sort(runners.begin(), runners.end(), [](const Runner &a, const Runner &b) {
    return a.beam != b.beam ? a.beam < b.beam : a.gumbel > b.gumbel;
  });
  std::uint32_t beam = 0, rank = 0;
  const auto width = static_cast<std::uint32_t>(options().width);
  for (const Runner &runner : runners) {
    rank = runner.beam == beam ? rank : 0;
    beam = runner.beam;
    runner.row->draws.assign(rank < width ? 1 : 0, beam * width + rank);
    ++rank;
  }
  const auto lost = [](const Row &row) { return row.draws.empty(); };
  std::erase_if(candidates, lost);
  std::erase_if(rows, lost);
}

// The likeliest continuations of all rows go on. Prefixes that are finished compete with them as they are: a
// continuation never gets likelier, so that one which stands among the best at the end is among the best of all.
void Search::Task::grow(std::vector<Row> &drawn, std::span<const TokenId> tokens, std::span<const double> logprobs) {
  struct Continuation {
    double total; // log-probability
    Row *row;
    TokenId token; // -1: none, it is finished
    double own;
  };
  std::vector<Continuation> all;
  for (Row &row : candidates)
    all.push_back({row.prefix.logprob, &row, -1, 0});
  for (Row &row : drawn)
    for (std::size_t i = row.first_sample; i < row.first_sample + row.samples; ++i)
      if (tokens[i] >= 0)
        all.push_back({row.prefix.logprob + logprobs[i], &row, tokens[i], logprobs[i]});
  std::stable_sort(all.begin(), all.end(),
                   [](const Continuation &a, const Continuation &b) { return a.total > b.total; });
  all.resize(std::min(all.size(), static_cast<std::size_t>(options().beams)));
  std::vector<Row> best;
  for (const Continuation &continuation : all) {
    Row row = *continuation.row;
    row.draws = {static_cast<std::uint32_t>(best.size())};
    if (continuation.token >= 0)
      take_token(row.prefix, continuation.token, continuation.own);
    best.push_back(std::move(row));
  }
  candidates.clear();
  for (Row &row : best)
    place(std::move(row));
}

// -------------------------------------------------------------------- candidates

// All draws of the wave are made: equal decisions become one candidate.
void Search::Task::settle() {
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Row &a, const Row &b) { return a.draws.front() < b.draws.front(); });
  std::map<std::string, std::size_t> known, before;
  for (std::size_t i = 0; i < earlier_.size(); ++i)
    before.emplace(decisions(earlier_[i].prefix), i);
  std::vector<Row> distinct;
  std::vector<std::vector<std::uint32_t>> draws;
  for (Row &row : candidates) {
    const std::string decided = decisions(row.prefix);
    if (const auto same = answered_.find(decided); same != answered_.end()) { // written in other tokens, rounds ago
      const auto more = static_cast<std::int32_t>(row.draws.size());
      answers_[same->second].multiplicity += more;
      tree_[static_cast<std::size_t>(answers_[same->second].node)].multiplicity += more;
      continue;
    }
    if (const auto same = before.find(decided); same != before.end()) {
      Row &first = earlier_[same->second];
      first.draws.insert(first.draws.end(), row.draws.begin(), row.draws.end());
      tree_[static_cast<std::size_t>(first.prefix.node)].multiplicity = static_cast<std::int32_t>(first.draws.size());
      continue;
    }
    auto [at, fresh] = known.emplace(decided, distinct.size());
    if (fresh) {
      draws.push_back(row.draws);
      distinct.push_back(std::move(row));
      continue;
    }
    auto &all = draws[at->second];
    all.insert(all.end(), row.draws.begin(), row.draws.end());
    if (row.draws.size() > distinct[at->second].draws.size()) // the most frequent spelling stands for all
      distinct[at->second] = std::move(row);
  }
  for (std::size_t i = 0; i < distinct.size(); ++i) {
    distinct[i].draws = std::move(draws[i]);
    Prefix &prefix = distinct[i].prefix;
    TreeNode node;
    node.parent = prefix.node;
    node.steps = copied(prefix.steps, distinct[i].known);
    node.multiplicity = static_cast<std::int32_t>(distinct[i].draws.size());
    node.finished = prefix.finished;
    node.closed = prefix.closed;
    prefix.node = static_cast<std::int32_t>(tree_.size());
    tree_.push_back(std::move(node));
  }
  candidates = std::move(distinct);
  stats.distinct_candidates += static_cast<std::int64_t>(candidates.size());
  const bool choice = earlier_.size() + candidates.size() > 1 || !parked_.empty();
  bool to_score = false;
  if (choice || options().confidence <= 0)
    for (Row &row : candidates) {
      prepare_scoring(row);
      to_score = to_score || !row.judgements.empty() || !row.reward_tokens.empty();
    }
  if (to_score)
    phase = Phase::kScoring;
  else
    choose();
}

// Which steps of a candidate are to be scored, and what the reward model has yet to read. Those that were judged before
// are not asked again.
void Search::Task::prepare_scoring(Row &row) const {
  row.reward_tokens.clear();
  row.judgements.clear();
  if (request.scoring == Scoring::kNone)
    return;
  const bool model = has_model_reward();
  std::int64_t index = model ? static_cast<std::int64_t>(row.prefix.reward_read) : 0;
  for (const ScoredStep *scored : row.prefix.steps.since(static_cast<std::size_t>(index))) {
    const Step &step = scored->step;
    bool judged = true;
    if (model) {
      const RewardFormat &reward = *request.reward;
      if (!step.text.empty()) {
        const std::vector<TokenId> text = reward.tokenize(step.text);
        row.reward_tokens.insert(row.reward_tokens.end(), text.begin(), text.end());
      }
      const auto &tag = reward.tags[static_cast<std::size_t>(step.kind)];
      row.reward_tokens.insert(row.reward_tokens.end(), tag.begin(), tag.end());
      judged = !tag.empty(); // else read, but not judged
    }
    if (judged && std::isnan(scored->score))
      row.judgements.push_back({static_cast<std::int32_t>(row.reward_tokens.size()) - 1, index});
    ++index;
  }
  const auto length = static_cast<std::int64_t>(row.reward_tokens.size()) + row.prefix.reward_kv.length();
  if (request.reward_room > 0 && length > request.reward_room)
    throw BudgetError("the steps of an answer have " + std::to_string(length) +
                      " tokens of the reward model, which has room for " + std::to_string(request.reward_room) +
                      " after its prompt");
}

double Search::Task::rank(const Prefix &prefix) const {
  if (request.scoring == Scoring::kNone)
    return prefix.logprob;
  const double score = aggregate(prefix, options().aggregate);
  return std::log(std::isnan(score) ? 1 : std::max(score, 1e-300)) + options().policy_weight * prefix.logprob;
}

void Search::Task::score(std::span<const double> scores) {
  std::size_t next = 0;
  for (const Row &row : candidates) {
    if (row.judgements.empty())
      continue;
    const std::vector<ScoredStep *> steps = row.prefix.steps.since(0);
    for (const Judgement &judgement : row.judgements)
      steps[static_cast<std::size_t>(judgement.step)]->score = scores[next++];
    // Steps of nodes before, which nobody had doubted until now.
    std::int32_t node = tree_[static_cast<std::size_t>(row.prefix.node)].parent;
    for (std::size_t end = row.known; node >= 0 && end > static_cast<std::size_t>(row.judgements.front().step);) {
      TreeNode &earlier = tree_[static_cast<std::size_t>(node)];
      end -= earlier.steps.size();
      for (std::size_t i = 0; i < earlier.steps.size(); ++i)
        earlier.steps[i].score = steps[end + i]->score;
      node = earlier.parent;
    }
  }
  choose();
}

// The score leaves no doubt.
bool Search::Task::is_certain(const Prefix &prefix) const {
  return options().confidence > 0 && aggregate(prefix, options().aggregate) >= options().confidence;
}

// The steps that a candidate added make it no less likely to be right, but for 1 - confidence of what it was before.
bool Search::Task::adds_no_doubt(const Row &row) const {
  double before = 1, least = kNoScore;
  std::size_t index = 0;
  for (const ScoredStep *step : row.prefix.steps.since(0)) {
    const bool added = index++ >= row.known;
    if (std::isnan(step->score))
      continue;
    if (added)
      least = std::isnan(least) ? step->score : std::min(least, step->score);
    else
      before = step->score;
  }
  return least >= options().confidence * before;
}

// Begins the next wave: twice as many draws a seat are expanded. False where it has none left.
bool Search::Task::widen() {
  if (parked_.empty())
    return false;
  std::vector<Row> parked = std::exchange(parked_, {});
  while (std::none_of(parked.begin(), parked.end(), [&](const Row &row) { return active(row); }))
    wave_ *= 2;
  for (Row &row : parked)
    place(std::move(row));
  return true;
}

// Ends the round, unless it is in doubt and there are draws left.
void Search::Task::choose() {
  if (options().confidence > 0) {
    std::move(candidates.begin(), candidates.end(), std::back_inserter(earlier_));
    candidates.clear();
    const auto best = std::max_element(earlier_.begin(), earlier_.end(), [&](const Row &a, const Row &b) {
      return comparable(rank(a.prefix)) < comparable(rank(b.prefix));
    });
    if (best == earlier_.end() || !adds_no_doubt(*best)) {
      wave_ *= 2;
      if (widen()) {
        phase = Phase::kExpanding;
        if (rows.empty())
          settle();
        return;
      }
    }
    parked_.clear();
    candidates = std::exchange(earlier_, {});
    for (Row &row : candidates) {
      std::sort(row.draws.begin(), row.draws.end());
      stats.candidates += static_cast<std::int64_t>(row.draws.size());
    }
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Row &a, const Row &b) { return a.draws.front() < b.draws.front(); });
  }
  select();
}

// The best candidates are kept; those among them that are finished become answers.
void Search::Task::select() {
  std::vector<std::pair<double, std::size_t>> order;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    Prefix &prefix = candidates[i].prefix;
    const double r = rank(prefix);
    TreeNode &node = tree_[static_cast<std::size_t>(prefix.node)];
    node.rank = r;
    node.steps = copied(prefix.steps, candidates[i].known);
    order.emplace_back(comparable(r), i);
  }
  std::stable_sort(order.begin(), order.end(), [&](const auto &a, const auto &b) {
    if (a.first != b.first)
      return a.first > b.first;
    const std::size_t x = candidates[a.second].draws.size(), y = candidates[b.second].draws.size();
    if (x != y)
      return x > y;
    return candidates[a.second].prefix.logprob > candidates[b.second].prefix.logprob;
  });
  std::size_t keep = order.size();
  if (options().strategy == Strategy::kStepBeam && !options().independent) {
    const std::size_t seats = static_cast<std::size_t>(options().beams) -
                              std::min(answers_.size(), static_cast<std::size_t>(options().beams));
    keep = std::min(keep, std::max<std::size_t>(seats, 1));
  }
  if (!order.empty() && is_certain(candidates[order.front().second].prefix))
    keep = 1;
  std::set<std::uint32_t> seated;
  beams_.clear();
  for (std::size_t k = 0; k < keep; ++k) {
    Row &row = candidates[order[k].second];
    std::vector<std::uint32_t> seats{static_cast<std::uint32_t>(beams_.size())};
    if (options().independent) { // each tree takes the first that it drew
      seats.clear();
      for (const std::uint32_t draw : row.draws)
        if (const auto seat = draw / static_cast<std::uint32_t>(options().width); seated.insert(seat).second)
          seats.push_back(seat);
      if (seats.empty())
        continue;
    }
    tree_[static_cast<std::size_t>(row.prefix.node)].kept = true;
    if (row.prefix.finished)
      answer(row);
    else
      beams_.push_back({std::move(row.prefix), std::move(seats)});
  }
  candidates.clear();
  ahead_.clear();
  for (const Beam &beam : beams_)
    ahead_.push_back(beam.prefix.node);
  ++round;
  if (beams_.empty()) {
    std::stable_sort(answers_.begin(), answers_.end(),
                     [](const Answer &a, const Answer &b) { return comparable(a.rank) > comparable(b.rank); });
    phase = Phase::kDone;
    leases = {};
    return;
  }
  phase = Phase::kExpanding;
  expand();
}

void Search::Task::answer(const Row &row) {
  const Prefix &prefix = row.prefix;
  answered_.emplace(decisions(prefix), answers_.size());
  Answer out;
  out.text = prefix.matcher.text();
  out.tokens = prefix.matcher.tokens();
  while (!out.tokens.empty() && prefix.matcher.vocabulary().is_stop(out.tokens.back()))
    out.tokens.pop_back();
  out.steps = copied(prefix.steps, 0);
  out.rank = rank(prefix);
  out.score = request.scoring == Scoring::kNone ? kNoScore : aggregate(prefix, options().aggregate);
  out.logprob = prefix.logprob;
  out.multiplicity = static_cast<std::int32_t>(row.draws.size());
  out.closed = prefix.closed;
  out.node = prefix.node;
  answers_.push_back(std::move(out));
}

std::vector<ScoredStep> Search::Task::certain(std::size_t from) const {
  if (phase == Phase::kFailed)
    return {};
  std::vector<std::int32_t> path;
  for (std::int32_t n = certain_node(); n >= 0; n = tree_[static_cast<std::size_t>(n)].parent)
    path.push_back(n);
  std::vector<ScoredStep> steps;
  std::size_t index = 0;
  for (auto n = path.rbegin(); n != path.rend(); ++n)
    for (const ScoredStep &step : tree_[static_cast<std::size_t>(*n)].steps)
      if (index++ >= from)
        steps.push_back(step);
  return steps;
}

// Up to which all answers still possible agree, -1 for the start.
std::int32_t Search::Task::certain_node() const {
  if (phase == Phase::kDone)
    return answers_.front().node;
  std::vector<std::int32_t> nodes = ahead_;
  for (const Answer &answer : answers_)
    nodes.push_back(answer.node);
  // Parents come before their children: the larger of two unequal nodes is not an ancestor of the other.
  std::int32_t common = nodes.empty() ? -1 : nodes.front();
  for (std::int32_t node : nodes)
    while (common != node) {
      std::int32_t &later = common > node ? common : node;
      later = tree_[static_cast<std::size_t>(later)].parent;
    }
  return common;
}

Result Search::Task::result() { return {std::move(answers_), std::move(tree_), stats}; }

void Search::Task::fail(std::exception_ptr what) {
  phase = Phase::kFailed;
  error = std::move(what);
  for (std::vector<Row> *list : {&rows, &candidates, &parked_, &earlier_})
    list->clear();
  beams_.clear();
  leases = {};
}

// -------------------------------------------------------------------- keys and values

template <class Use> void Search::Task::each_prefix(const Use &use) {
  for (std::vector<Row> *list : {&rows, &candidates, &parked_, &earlier_})
    for (Row &row : *list)
      use(row.prefix);
}

void Search::Task::settle_in(const std::shared_ptr<BlockPool> &policy, const std::shared_ptr<BlockPool> &reward) {
  admitted = true;
  read = {false, !has_model_reward()};
  each_prefix([&](Prefix &prefix) {
    if (!prefix.finished)
      prefix.kv = KvSequence(policy);
    if (has_model_reward())
      prefix.reward_kv = KvSequence(reward);
  });
}

void Search::Task::give_up_blocks() {
  admitted = false;
  gave_up = true;
  read = {false, false};
  prompt_run = {0, 0};
  leases = {};
  each_prefix([&](Prefix &prefix) {
    prefix.kv = prefix.reward_kv = KvSequence();
    prefix.reward_read = 0;
    if (prefix.finished)
      return;
    const std::vector<TokenId> tokens = prefix.matcher.tokens();
    prefix.pending = {request.prompt.back()};
    prefix.pending.insert(prefix.pending.end(), tokens.begin() + static_cast<std::ptrdiff_t>(begun_tokens_),
                          tokens.end());
  });
  if (phase == Phase::kScoring && has_model_reward())
    for (Row &row : candidates)
      prepare_scoring(row);
}

bool Search::Task::restart() {
  if (!gave_up)
    return false;
  for (std::vector<Row> *list : {&rows, &candidates, &parked_, &earlier_})
    list->clear();
  give_up_blocks();
  gave_up = scoring_planned = false;
  phase = Phase::kExpanding;
  round = 0;
  beams_.clear();
  answers_.clear();
  answered_.clear();
  ahead_.clear();
  tree_.clear();
  SearchStats spent;
  spent.policy_tokens = stats.policy_tokens;
  spent.reward_tokens = stats.reward_tokens;
  spent.cached_tokens = stats.cached_tokens;
  spent.reward_cached_tokens = stats.reward_cached_tokens;
  spent.forward_passes = stats.forward_passes;
  spent.preemptions = stats.preemptions;
  stats = spent;
  begin();
  return true;
}

std::int32_t Search::Task::needed(Side side) const {
  std::int32_t sum = 0;
  if (side == Side::kPolicy) {
    if (phase == Phase::kExpanding)
      for (const Row &row : rows)
        sum += row.prefix.kv.needed(row.prefix.pending.size());
  } else if (phase == Phase::kScoring && has_model_reward()) {
    for (const Row &row : candidates)
      sum += row.prefix.reward_kv.needed(row.reward_tokens.size());
  }
  return sum;
}

} // namespace toolprm
