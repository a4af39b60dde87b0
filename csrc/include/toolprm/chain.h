// A list that grows at its end and whose copies share all that they have in common: forking one costs a pointer.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace toolprm {

// Not thread-safe: copies of one list may be used by one thread at a time.
template <class T> class Chain {
public:
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  // The last element; the list must not be empty.
  T &back() { return last_->value; }
  const T &back() const { return last_->value; }
  // Another list holds the last element too.
  bool shared() const { return last_.use_count() > 1; }

  void push_back(T value) {
    last_ = std::make_shared<Node>(std::move(value), std::move(last_));
    ++size_;
  }
  // The list must not be empty.
  void pop_back() {
    last_ = std::shared_ptr<Node>(last_)->before; // the node may be ours alone: keep it until its own pointer is copied
    --size_;
  }

  // Pointers to the elements from an index on, in order. They live as long as a list that holds them.
  std::vector<T *> since(std::size_t from) const {
    std::vector<T *> out(size_ > from ? size_ - from : 0);
    Node *node = last_.get();
    for (std::size_t i = out.size(); i-- > 0; node = node->before.get())
      out[i] = &node->value;
    return out;
  }

private:
  struct Node {
    Node(T v, std::shared_ptr<Node> b) : value(std::move(v)), before(std::move(b)) {}
    Node(const Node &) = delete;
    Node &operator=(const Node &) = delete;
    ~Node() { // one after another: a long list must not recurse through its elements
      while (before.use_count() == 1)
        before = std::shared_ptr<Node>(std::move(before))->before;
    }
    T value;
    std::shared_ptr<Node> before;
  };
  std::shared_ptr<Node> last_;
  std::size_t size_ = 0;
};

} // namespace toolprm
