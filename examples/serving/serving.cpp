// Serves several requests at once over the toy model, and checks the answers: they are those of each request alone, in
// any memory, and those of a model without a cache.
//
//   serving FOLDER          (with weather.grammar, calendar.grammar and search.grammar, as tools.py writes them)
//
// Exit status 0 where all is as it should be.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include <toolprm/grammar.h>
#include <toolprm/matcher.h>

#include "engine.h"

namespace {

using namespace toolprm;
using Grammars = std::map<std::string, std::shared_ptr<const Grammar>>;

struct Job {
  const char *name, *tool, *prompt;
  Strategy strategy;
  std::int32_t beams, width;
  Scoring scoring = Scoring::kNone;
  bool distinct = false;
  int arrives = 0; // before this pass
  int leaves = -1; // cancelled before this pass
};

const std::vector<Job> kJobs = {
    {"greedy", "weather", "You call tools. How warm is it in Oslo?", Strategy::kGreedy, 1, 1},
    {"judged", "weather", "You call tools. Will it rain in Lima on day 3?", Strategy::kStepBeam, 2, 4, Scoring::kModel},
    {"scored", "calendar", "You call tools. Lunch with Ana, 30 minutes", Strategy::kStepBeam, 2, 3, Scoring::kExternal},
    {"cancelled", "calendar", "You call tools. Never mind", Strategy::kSample, 1, 4, Scoring::kNone, false, 0, 4},
    {"sampled", "search", "You call tools. Find papers on beam search", Strategy::kSample, 1, 6},
    {"distinct", "search", "You call tools. Find anything", Strategy::kStepBeam, 2, 3, Scoring::kExternal, true, 3},
    {"likely", "calendar", "You call tools. Lunch with Ana, 45 minutes", Strategy::kTokenBeam, 3, 1, Scoring::kNone,
     false, 6},
};

std::vector<TokenId> bytes_as_tokens(std::string_view text) {
  std::vector<TokenId> ids;
  for (const char c : text)
    ids.push_back(static_cast<unsigned char>(c));
  return ids;
}

Request request_of(const Job &job, const Grammars &grammars, const std::shared_ptr<const Vocabulary> &vocabulary) {
  static const auto reward = [] {
    auto format = std::make_shared<RewardFormat>();
    format->tokenize = bytes_as_tokens;
    for (std::size_t kind = 0; kind < format->tags.size(); ++kind)
      format->tags[kind] = {static_cast<TokenId>(256 + kind)};
    return format;
  }();
  Request request{Matcher(grammars.at(job.tool), vocabulary)};
  request.options.strategy = job.strategy;
  request.options.beams = job.beams;
  request.options.width = job.width;
  request.options.distinct = job.distinct;
  request.options.seed = 11;
  request.options.max_tokens = 160;
  request.scoring = job.scoring;
  request.prompt = request.reward_prompt = bytes_as_tokens(job.prompt);
  request.reward = reward;
  return request;
}

// A reward from outside: by the texts of the steps.
double outside_score(const std::vector<Step> &steps) {
  std::uint64_t hash = 3;
  for (const Step &step : steps)
    for (const char c : step.text)
      hash = mix(hash, static_cast<unsigned char>(c));
  return score(hash);
}

struct Served {
  std::optional<Result> result;
  std::string failure;
  std::vector<std::string> streamed; // texts of steps
};

// Runs jobs together; what became of each.
std::vector<Served> serve(Engine &engine, const std::vector<Job> &jobs, const Grammars &grammars,
                          const std::shared_ptr<const Vocabulary> &vocabulary) {
  std::vector<Served> served(jobs.size());
  std::vector<std::int64_t> ids(jobs.size(), -1);
  bool more = true;
  for (int pass = 0; more; ++pass) {
    more = false;
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      Served &own = served[i];
      if (pass == jobs[i].arrives)
        ids[i] = engine.submit(request_of(jobs[i], grammars, vocabulary),
                               {[&own](const ScoredStep &step) { own.streamed.push_back(step.step.text); },
                                [&own](Result result) { own.result = std::move(result); },
                                [&own](const std::string &reason) { own.failure = reason; }, outside_score});
      if (pass == jobs[i].leaves)
        engine.cancel(ids[i]);
      more = more || pass < jobs[i].arrives || pass < jobs[i].leaves;
    }
    more = engine.step() || more;
  }
  return served;
}

// The likeliest legal token at each step, without a cache: what the greedy request must have found.
std::string greedy_without_cache(const Job &job, const Grammars &grammars,
                                 const std::shared_ptr<const Vocabulary> &vocabulary) {
  Matcher matcher(grammars.at(job.tool), vocabulary);
  std::vector<TokenId> read = bytes_as_tokens(job.prompt);
  while (!matcher.is_over()) {
    std::vector<TokenId> next = matcher.forced(); // is written without asking the model
    if (next.empty()) {
      std::uint64_t hash = 1;
      for (const TokenId token : read)
        hash = mix(hash, static_cast<std::uint64_t>(token));
      const auto mask = matcher.mask();
      TokenId best = -1;
      for (TokenId id = 0; id < static_cast<TokenId>(vocabulary->size()); ++id)
        if (mask->legal(id) && (best < 0 || logit(hash, id, *vocabulary) > logit(hash, best, *vocabulary)))
          best = id;
      next = {best};
    }
    for (const TokenId token : next) {
      if (!matcher.accept(token) || matcher.is_stopped())
        return matcher.text();
      read.push_back(token);
    }
  }
  return matcher.text();
}

int failures = 0;

void check(bool ok, const std::string &what) {
  if (!ok)
    std::printf("WRONG: %s\n", what.c_str());
  failures += ok ? 0 : 1;
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void check_same(const std::string &name, const Served &one, const Served &other) {
  check(one.result && other.result, name + " has an answer" + one.failure + other.failure);
  if (!one.result || !other.result)
    return;
  const std::vector<Answer> &a = one.result->answers, &b = other.result->answers;
  check(a.size() == b.size(), name + " has as many answers");
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i) {
    check(a[i].text == b[i].text && a[i].tokens == b[i].tokens, name + ": " + a[i].text + " is " + b[i].text);
    check(same(a[i].rank, b[i].rank) && same(a[i].score, b[i].score), name + " is ranked alike");
  }
}

Grammars read_grammars(const std::string &folder) {
  Grammars out;
  for (const char *tool : {"weather", "calendar", "search"}) {
    const std::string path = folder + "/" + tool + ".grammar";
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    if (!file)
      throw std::runtime_error("cannot read " + path);
    out[tool] = Grammar::deserialize(std::as_bytes(std::span(bytes)));
  }
  return out;
}

void run(const std::string &folder) {
  const auto vocabulary = make_vocabulary();
  const Grammars grammars = read_grammars(folder);

  SearchConfig roomy;
  roomy.policy.block_size = roomy.reward.block_size = 4;
  roomy.prompt_tokens = 24; // prompts are read in parts
  Engine engine(roomy, vocabulary);
  const std::vector<Served> together = serve(engine, kJobs, grammars, vocabulary);

  SearchConfig tight = roomy; // requests give their blocks up to each other, and read their tokens again
  tight.policy.capacity = 60;
  Engine small(tight, vocabulary);
  const std::vector<Served> squeezed = serve(small, kJobs, grammars, vocabulary);

  std::int64_t preemptions = 0;
  for (std::size_t i = 0; i < kJobs.size(); ++i) {
    Job job = kJobs[i];
    if (job.leaves >= 0) {
      check(!together[i].result && !squeezed[i].result, std::string(job.name) + " has no answer");
      continue;
    }
    job.arrives = 0;
    Engine own(roomy, vocabulary);
    const Served alone = serve(own, {job}, grammars, vocabulary).at(0);
    check_same(job.name, together[i], alone);
    check_same(std::string(job.name) + " in little memory", squeezed[i], alone);
    if (!together[i].result)
      continue;
    const Answer &best = together[i].result->answers[0];
    std::printf("%-8s %s\n", job.name, best.text.c_str());
    for (std::size_t s = 0; s < together[i].streamed.size(); ++s)
      check(s < best.steps.size() && best.steps[s].step.text == together[i].streamed[s],
            std::string(job.name) + " was streamed as it ended");
    if (job.strategy == Strategy::kGreedy)
      check(best.text == greedy_without_cache(job, grammars, vocabulary), "greedy is what a model without cache says");
    if (squeezed[i].result)
      preemptions += squeezed[i].result->stats.preemptions;
  }
  check(engine.policy_cache().copies > 0 && engine.reward_cache().copies > 0, "blocks were copied on write");
  check(engine.policy_cache().segments_shared > 0, "prompts were shared");
  check(preemptions > 0, "memory was short");
}

} // namespace

int main(int argc, char **argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: serving FOLDER\n");
    return 2;
  }
  try {
    run(argv[1]);
  } catch (const std::exception &error) {
    check(false, error.what());
  }
  std::printf(failures ? "%d checks failed\n" : "all answers are right\n", failures);
  return failures ? 1 : 0;
}
