#include "toolprm/prefix_cache.h"

#include <algorithm>
#include <cstddef>

namespace toolprm {

PrefixCache::PrefixCache(std::shared_ptr<BlockPool> pool, std::int32_t idle_limit)
    : pool_(std::move(pool)), idle_limit_(idle_limit) {}

PrefixCache::~PrefixCache() { clear(); }

PrefixCache::Key PrefixCache::key(std::span<const TokenId> tokens) const {
  const auto first = tokens.first(std::min(tokens.size(), static_cast<std::size_t>(pool_->block_size())));
  return {first.begin(), first.end()};
}

std::int32_t PrefixCache::blocks(const Node &node) const {
  std::int32_t count = 0;
  for (const BlockRun &run : node.runs)
    count += run.count;
  return count;
}

std::size_t PrefixCache::common(const Node &child, std::span<const TokenId> tokens) const {
  const auto size = static_cast<std::size_t>(pool_->block_size());
  const auto end = std::mismatch(child.tokens.begin(), child.tokens.end(), tokens.begin(), tokens.end());
  const auto same = static_cast<std::size_t>(end.first - child.tokens.begin());
  if (same == child.tokens.size() && (same == tokens.size() || same % size == 0))
    return same;
  return same / size * size;
}

// The node keeps what comes after count tokens (whole blocks), so that leases of it stay good; a new one above it takes
// the rest.
void PrefixCache::split(Node &node, std::size_t count) {
  auto at = node.parent->children.find(key(node.tokens));
  std::unique_ptr<Node> lower = std::move(at->second);
  auto upper = std::make_unique<Node>();
  upper->parent = node.parent;
  upper->leases = node.leases;
  upper->used = node.used;
  const auto border = node.tokens.begin() + static_cast<std::ptrdiff_t>(count);
  upper->tokens.assign(node.tokens.begin(), border);
  node.tokens.erase(node.tokens.begin(), border);
  upper->filled = std::min(node.filled, static_cast<std::int32_t>(count));
  node.filled -= upper->filled;
  std::vector<BlockRun> below;
  std::int32_t left = static_cast<std::int32_t>(count) / pool_->block_size();
  for (const BlockRun &run : node.runs) {
    const std::int32_t mine = std::min(left, run.count);
    if (mine > 0)
      upper->runs.push_back({run.first, mine});
    if (mine < run.count)
      below.push_back({run.first + mine, run.count - mine});
    left -= mine;
  }
  node.runs = std::move(below);
  node.parent = upper.get();
  upper->children.emplace(key(node.tokens), std::move(lower));
  at->second = std::move(upper);
}

// Adds to the leases of a node and of all above it.
void PrefixCache::hold(Node &node, std::int32_t change) {
  ++clock_;
  for (Node *n = &node; n->parent; n = n->parent) {
    if (idle_leaf(*n))
      leaves_.erase({n->used, n});
    if (n->leases == 0)
      idle_ -= blocks(*n);
    n->leases += change;
    n->used = clock_;
    if (n->leases == 0)
      idle_ += blocks(*n);
    if (idle_leaf(*n))
      leaves_.emplace(n->used, n);
  }
}

// Forgets an idle leaf.
void PrefixCache::drop(Node &node) {
  leaves_.erase({node.used, &node});
  idle_ -= blocks(node);
  for (const BlockRun &run : node.runs)
    pool_->release(run);
  Node *parent = node.parent;
  parent->children.erase(key(node.tokens)); // the node is gone
  if (idle_leaf(*parent))
    leaves_.emplace(parent->used, parent);
}

bool PrefixCache::make_room(std::int32_t blocks) {
  if (pool_->available() + idle_ < blocks)
    return false;
  while (pool_->available() < blocks)
    drop(*leaves_.begin()->second);
  return true;
}

void PrefixCache::clear() {
  while (!leaves_.empty())
    drop(*leaves_.begin()->second);
}

std::optional<PrefixCache::Lease> PrefixCache::acquire(std::span<const TokenId> tokens) {
  const std::span<const TokenId> whole = tokens;
  Node *node = &root_;
  while (!tokens.empty()) {
    const auto child = node->children.find(key(tokens));
    if (child == node->children.end())
      break;
    const std::size_t shared = common(*child->second, tokens);
    if (shared < child->second->tokens.size())
      split(*child->second, shared);
    node = node->children.find(key(tokens))->second.get();
    tokens = tokens.subspan(shared);
  }
  // What is shared must outlive the search for room.
  Lease lease(shared_from_this(), node, static_cast<std::int32_t>(whole.size()));
  if (tokens.empty())
    return lease;
  const std::int32_t size = pool_->block_size();
  std::int32_t wanted = (static_cast<std::int32_t>(tokens.size()) + size - 1) / size;
  if (!make_room(wanted))
    return std::nullopt;
  auto leaf = std::make_unique<Node>();
  leaf->parent = node;
  leaf->tokens.assign(tokens.begin(), tokens.end());
  while (wanted > 0) {
    leaf->runs.push_back(pool_->allocate_run(wanted));
    wanted -= leaf->runs.back().count;
  }
  Node *made = leaf.get();
  idle_ += blocks(*made); // until the lease holds it
  node->children.emplace(key(tokens), std::move(leaf));
  return Lease(shared_from_this(), made, static_cast<std::int32_t>(whole.size()));
}

PrefixCache::Lease::Lease(std::shared_ptr<PrefixCache> cache, Node *node, std::int32_t size)
    : cache_(std::move(cache)), node_(node), size_(size) {
  cache_->hold(*node_, 1);
}

PrefixCache::Lease::Lease(Lease &&other) noexcept
    : cache_(std::move(other.cache_)), node_(std::exchange(other.node_, nullptr)), size_(other.size_) {}

PrefixCache::Lease &PrefixCache::Lease::operator=(Lease &&other) noexcept {
  if (this != &other) {
    release();
    cache_ = std::move(other.cache_);
    node_ = std::exchange(other.node_, nullptr);
    size_ = other.size_;
  }
  return *this;
}

void PrefixCache::Lease::release() {
  if (!node_)
    return;
  Node *node = std::exchange(node_, nullptr);
  cache_->hold(*node, -1);
  // What was never read to its end is of no use to anybody.
  while (cache_->idle_leaf(*node) && node->filled < static_cast<std::int32_t>(node->tokens.size())) {
    Node *parent = node->parent;
    cache_->drop(*node);
    node = parent;
  }
  while (cache_->idle_ > cache_->idle_limit_ && !cache_->leaves_.empty())
    cache_->drop(*cache_->leaves_.begin()->second);
  cache_.reset();
}

std::vector<PrefixCache::Node *> PrefixCache::Lease::chain() const {
  std::vector<Node *> out;
  for (Node *n = node_; n && n->parent; n = n->parent)
    out.push_back(n);
  std::reverse(out.begin(), out.end());
  return out;
}

std::int32_t PrefixCache::Lease::filled() const {
  std::int32_t sum = 0;
  for (const Node *n : chain()) {
    sum += n->filled;
    if (n->filled < static_cast<std::int32_t>(n->tokens.size()))
      break;
  }
  return sum;
}

void PrefixCache::Lease::fill(std::int32_t count, std::vector<std::int32_t> &slots) {
  const std::int32_t block_size = cache_->pool_->block_size();
  for (Node *n : chain()) {
    const std::int32_t fresh = std::min(count, static_cast<std::int32_t>(n->tokens.size()) - n->filled);
    std::int32_t at = 0; // token of the node at the start of a run
    for (const BlockRun &run : n->runs) {
      const std::int32_t end = at + run.count * block_size;
      for (std::int32_t i = std::max(at, n->filled); i < std::min(end, n->filled + fresh); ++i)
        slots.push_back(run.first * block_size + i - at);
      at = end;
    }
    n->filled += fresh;
    count -= fresh;
    if (count == 0)
      break;
  }
}

std::vector<Segment> PrefixCache::Lease::segments(std::int32_t count) const {
  std::vector<Segment> out;
  const std::int32_t block_size = cache_ ? cache_->pool_->block_size() : 1;
  for (const Node *n : chain()) {
    std::int32_t left = std::min(count, static_cast<std::int32_t>(n->tokens.size()));
    count -= left;
    for (const BlockRun &run : n->runs) {
      if (left == 0)
        break;
      const std::int32_t taken = std::min(left, run.count * block_size);
      out.push_back({run.first * block_size, taken});
      left -= taken;
    }
    if (count == 0)
      break;
  }
  return out;
}

} // namespace toolprm
