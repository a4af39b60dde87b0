// Which KV-cache blocks belong to whom: reference counts, copy-on-write, no tensors.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace toolprm {

// A run of slots whose keys and values must be copied, in all layers, before the next forward pass.
struct SlotCopy {
  std::int32_t source, target, count;
};

// Hands out blocks of block_size slots. Not thread-safe: its owner (the search) is entered by one thread at a time.
class BlockPool {
public:
  explicit BlockPool(std::int32_t block_size) : block_size_(block_size) {}

  std::int32_t allocate();
  void retain(std::int32_t block) { ++references_[static_cast<std::size_t>(block)]; }
  void release(std::int32_t block);
  bool shared(std::int32_t block) const { return references_[static_cast<std::size_t>(block)] > 1; }
  std::int32_t block_size() const { return block_size_; }
  // Blocks that the tensors behind the pool must hold.
  std::int32_t blocks() const { return static_cast<std::int32_t>(references_.size()); }
  std::int32_t in_use() const { return in_use_; }

private:
  std::int32_t block_size_;
  std::int32_t in_use_ = 0;
  std::vector<std::int32_t> references_; // by block; 0: free
  std::vector<std::int32_t> free_;
};

// The tokens that one row wrote after its shared prefix. A copy is a fork: it shares all blocks.
class KvSequence {
public:
  KvSequence() = default;
  explicit KvSequence(std::shared_ptr<BlockPool> pool) : pool_(std::move(pool)) {}
  KvSequence(const KvSequence &other);
  KvSequence(KvSequence &&other) noexcept;
  KvSequence &operator=(KvSequence other) noexcept;
  ~KvSequence();

  // Makes room for count tokens and appends their slots. A partly filled block that is shared is copied first.
  void append(std::size_t count, std::vector<std::int32_t> &slots, std::vector<SlotCopy> &copies);
  std::int32_t length() const { return length_; }
  const std::vector<std::int32_t> &blocks() const { return blocks_; }

private:
  std::shared_ptr<BlockPool> pool_;
  std::vector<std::int32_t> blocks_;
  std::int32_t length_ = 0;
};

} // namespace toolprm
