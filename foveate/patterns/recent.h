// The latest results of something that is worth keeping: by key, the least recently used one goes.
#pragma once
#include <foveate/tensor.h>

#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <utility>

namespace foveate::patterns {

template <class T> class Recent {
 public:
  using Key = std::tuple<std::string, int64_t, int64_t, int64_t, int64_t, int64_t>;  // expression, heads, N, M, offset, block
  explicit Recent(std::size_t most) : most_(most) {}

  template <class Make> std::shared_ptr<const T> get(const Key& key, const Make& make) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto one = kept_.begin(); one != kept_.end(); ++one) {
        if (one->first != key) continue;
        kept_.splice(kept_.begin(), kept_, one);
        return one->second;
      }
    }
    auto made = make();  // not under the lock: two threads may make the same
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.emplace_front(key, made);
    if (kept_.size() > most_) kept_.pop_back();
    return made;
  }

 private:
  std::size_t most_;
  std::mutex mutex_;
  std::list<std::pair<Key, std::shared_ptr<const T>>> kept_;
};

}  // namespace foveate::patterns
