// The prompts whose keys and values a block pool holds, as a radix tree over tokens: what several prompts begin with
// is held once, in whole blocks, and stays for later prompts while there is room.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "toolprm/block_pool.h"
#include "toolprm/export.h"
#include "toolprm/vocabulary.h"

namespace toolprm {

// Adjacent slots that hold consecutive tokens of a prompt.
struct Segment {
  std::int32_t slot, count;
  bool operator==(const Segment &) const = default;
};

// Not thread-safe, like the pool: its owner is entered by one thread at a time.
class TOOLPRM_API PrefixCache : public std::enable_shared_from_this<PrefixCache> {
  struct Node;

public:
  // A prompt in use: its blocks stay until the lease goes. Movable; an empty lease holds nothing.
  class TOOLPRM_API Lease {
  public:
    Lease() = default;
    Lease(Lease &&other) noexcept;
    Lease &operator=(Lease &&other) noexcept;
    ~Lease() { release(); }

    explicit operator bool() const { return node_ != nullptr; }
    // Tokens of the prompt.
    std::int32_t size() const { return size_; }
    // How many of them, from the first on, have been given to a forward pass.
    std::int32_t filled() const;
    // Says that the next count tokens are given to a pass now, and appends the slots that take them.
    void fill(std::int32_t count, std::vector<std::int32_t> &slots);
    // The slots of the first count tokens. Prompts that share tokens share whole segments.
    std::vector<Segment> segments(std::int32_t count) const;

  private:
    friend class PrefixCache;
    Lease(std::shared_ptr<PrefixCache> cache, Node *node, std::int32_t size);
    void release();
    std::vector<Node *> chain() const;
    std::shared_ptr<PrefixCache> cache_;
    Node *node_ = nullptr;
    std::int32_t size_ = 0;
  };

  // idle_limit: most blocks of prompts that no lease holds; what was used least recently goes first.
  PrefixCache(std::shared_ptr<BlockPool> pool, std::int32_t idle_limit);
  ~PrefixCache();
  PrefixCache(const PrefixCache &) = delete;
  PrefixCache &operator=(const PrefixCache &) = delete;

  // Finds or makes room for a prompt, dropping idle ones where blocks lack. Without a value where even that is not
  // enough.
  std::optional<Lease> acquire(std::span<const TokenId> tokens);
  // Drops idle prompts until the pool has this many blocks available; false where there are not enough of them.
  bool make_room(std::int32_t blocks);
  // Drops all idle prompts.
  void clear();
  // Blocks of prompts that no lease holds.
  std::int32_t idle() const { return idle_; }

private:
  using Key = std::vector<TokenId>; // the tokens of a node's first block
  struct Node {
    Node *parent = nullptr;
    std::vector<TokenId> tokens; // whole blocks, unless it is a leaf
    std::vector<BlockRun> runs;  // the blocks that hold them
    std::int32_t filled = 0;     // tokens that were given to a pass
    std::int32_t leases = 0;     // of this node and those below
    std::uint64_t used = 0;      // when a lease last came or went
    std::map<Key, std::unique_ptr<Node>> children;
  };
  Key key(std::span<const TokenId> tokens) const;
  std::int32_t blocks(const Node &node) const;
  // How many tokens of a child can be shared with what a prompt goes on with: whole blocks, or all of both.
  std::size_t common(const Node &child, std::span<const TokenId> tokens) const;
  void split(Node &node, std::size_t count);
  void hold(Node &node, std::int32_t change);
  void drop(Node &node);
  bool idle_leaf(const Node &node) const { return node.leases == 0 && node.children.empty() && node.parent; }

  std::shared_ptr<BlockPool> pool_;
  std::int32_t idle_limit_, idle_ = 0;
  std::uint64_t clock_ = 0;
  Node root_;
  std::set<std::pair<std::uint64_t, Node *>> leaves_; // idle ones, least recently used first
};

} // namespace toolprm
