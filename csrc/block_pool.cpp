#include "toolprm/block_pool.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace toolprm {

BlockPool::BlockPool(std::int32_t block_size) : block_size_(block_size) {
  if (block_size < 1)
    throw std::invalid_argument("a block must have at least one slot, not " + std::to_string(block_size));
}

std::int32_t BlockPool::allocate() {
  ++in_use_;
  if (!free_.empty()) {
    std::int32_t block = free_.back();
    free_.pop_back();
    references_[static_cast<std::size_t>(block)] = 1;
    return block;
  }
  references_.push_back(1);
  return static_cast<std::int32_t>(references_.size() - 1);
}

void BlockPool::release(std::int32_t block) {
  if (--references_[static_cast<std::size_t>(block)] == 0) {
    free_.push_back(block);
    --in_use_;
  }
}

KvSequence::KvSequence(const KvSequence &other) : pool_(other.pool_), blocks_(other.blocks_), length_(other.length_) {
  for (std::int32_t block : blocks_)
    pool_->retain(block);
}

KvSequence::KvSequence(KvSequence &&other) noexcept
    : pool_(std::move(other.pool_)), blocks_(std::exchange(other.blocks_, {})),
      length_(std::exchange(other.length_, 0)) {}

KvSequence &KvSequence::operator=(KvSequence other) noexcept {
  std::swap(pool_, other.pool_);
  std::swap(blocks_, other.blocks_);
  std::swap(length_, other.length_);
  return *this;
}

KvSequence::~KvSequence() {
  for (std::int32_t block : blocks_)
    pool_->release(block);
}

void KvSequence::append(std::size_t count, std::vector<std::int32_t> &slots, std::vector<SlotCopy> &copies) {
  const std::int32_t size = pool_->block_size();
  for (std::size_t i = 0; i < count; ++i) {
    const std::int32_t offset = length_ % size;
    if (offset == 0) {
      blocks_.push_back(pool_->allocate());
    } else if (pool_->shared(blocks_.back())) {
      const std::int32_t fresh = pool_->allocate();
      copies.push_back({blocks_.back() * size, fresh * size, offset});
      pool_->release(blocks_.back());
      blocks_.back() = fresh;
    }
    slots.push_back(blocks_.back() * size + offset);
    ++length_;
  }
}

} // namespace toolprm
