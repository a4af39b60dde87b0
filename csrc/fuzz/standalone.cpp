// Runs a fuzz target without libFuzzer, so that any compiler can: first what a corpus holds, then random changes of it.
//
//   fuzz_matcher [--seconds N] [--seed S] [--timeout N] [--artifacts PREFIX] [FILE or FOLDER...]
//
// It prints the seed. An input that fails is written to PREFIXcrash-<hash>, one that takes more CPU time than the
// timeout (10 seconds) to PREFIXtimeout-<hash>, and the process ends.
#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include <sys/time.h>

#include "source.h"

// With a sanitizer its reports end by abort(), where the input is saved.
extern "C" const char *__asan_default_options();
extern "C" const char *__asan_default_options() { return "abort_on_error=1"; }
extern "C" const char *__ubsan_default_options();
extern "C" const char *__ubsan_default_options() { return "abort_on_error=1:print_stacktrace=1"; }

namespace {

using Input = std::vector<std::uint8_t>;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kMostBytes = 1024;
Input now; // what runs: the handler saves it
long timeout_seconds = 10;
std::string prefix;

void save_and_end(int signal) { // runs after a failure: only what works then
  std::uint64_t hash = 14695981039346656037ull;
  for (std::uint8_t b : now)
    hash = (hash ^ b) * 1099511628211ull;
  static char name[4096];
  std::snprintf(name, sizeof name, "%s%s-%016llx", prefix.c_str(), signal == SIGPROF ? "timeout" : "crash",
                static_cast<unsigned long long>(hash));
  if (std::FILE *file = std::fopen(name, "wb")) {
    std::fwrite(now.data(), 1, now.size(), file);
    std::fclose(file);
  }
  std::fprintf(stderr, "%s: %s\n", name, signal == SIGPROF ? "took too long" : "failed");
  std::_Exit(1);
}

void set_timer(long seconds) { // of CPU time: a busy machine is no defect
  itimerval timer{};
  timer.it_value.tv_sec = seconds;
  setitimer(ITIMER_PROF, &timer, nullptr);
}

void run(const Input &input) {
  now = input;
  set_timer(timeout_seconds);
  LLVMFuzzerTestOneInput(now.data(), now.size());
  set_timer(0);
}

void read_corpus(const std::filesystem::path &path, std::vector<Input> &corpus) {
  if (std::filesystem::is_directory(path)) {
    std::vector<std::filesystem::path> files;
    for (const auto &entry : std::filesystem::directory_iterator(path))
      files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    for (const auto &file : files)
      read_corpus(file, corpus);
    return;
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    std::fprintf(stderr, "cannot read %s\n", path.c_str());
    std::exit(2);
  }
  corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

class Changes {
public:
  Changes(std::uint32_t seed, const std::vector<Input> &corpus) : random_(seed), corpus_(corpus) {}

  Input operator()() {
    Input input;
    if (!corpus_.empty() && below(4) > 0)
      input = corpus_[below(corpus_.size())];
    else
      for (std::size_t n = below(400); n > 0; --n)
        input.push_back(byte());
    for (std::size_t n = below(8); n > 0; --n)
      change(input);
    input.resize(std::min(input.size(), kMostBytes));
    return input;
  }

private:
  std::size_t below(std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random_); }
  std::uint8_t byte() { return static_cast<std::uint8_t>(below(256)); }

  void change(Input &input) {
    const auto place = [&] { return input.begin() + static_cast<std::ptrdiff_t>(below(input.size() + 1)); };
    switch (below(5)) {
    case 0:
      input.insert(place(), byte());
      break;
    case 1:
      if (auto at = place(); at != input.end())
        *at = below(2) ? byte() : static_cast<std::uint8_t>(*at + 1);
      break;
    case 2: {
      auto from = place(), to = place();
      input.erase(std::min(from, to), std::max(from, to));
      break;
    }
    case 3: // the end of another
      if (!corpus_.empty()) {
        const Input &other = corpus_[below(corpus_.size())];
        input.erase(place(), input.end());
        input.insert(input.end(), other.begin() + static_cast<std::ptrdiff_t>(below(other.size() + 1)), other.end());
      }
      break;
    default:
      for (std::size_t n = below(64); n > 0; --n)
        input.push_back(byte());
    }
  }

  std::mt19937 random_;
  const std::vector<Input> &corpus_;
};

} // namespace

int main(int argc, char **argv) {
  double seconds = 0;
  std::uint32_t seed = std::random_device()();
  std::vector<Input> corpus;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (i + 1 < argc && option == "--seconds")
      seconds = std::strtod(argv[++i], nullptr);
    else if (i + 1 < argc && option == "--seed")
      seed = static_cast<std::uint32_t>(std::strtoul(argv[++i], nullptr, 10));
    else if (i + 1 < argc && option == "--timeout")
      timeout_seconds = std::strtol(argv[++i], nullptr, 10);
    else if (i + 1 < argc && option == "--artifacts")
      prefix = argv[++i];
    else
      read_corpus(option, corpus);
  }
  std::printf("seed %u, %zu inputs of the corpus\n", seed, corpus.size());
  std::fflush(stdout);
  for (int signal : {SIGABRT, SIGPROF, SIGFPE})
    std::signal(signal, save_and_end);
#ifndef __SANITIZE_ADDRESS__ // else its own report comes first
  std::signal(SIGSEGV, save_and_end);
#endif
  for (const Input &input : corpus)
    run(input);
  std::size_t runs = corpus.size();
  Changes changes(seed, corpus);
  const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  for (; Clock::now() < end; ++runs)
    run(changes());
  std::printf("%zu executions, %.1f CPU seconds\n", runs, static_cast<double>(std::clock()) / CLOCKS_PER_SEC);
  return 0;
}
