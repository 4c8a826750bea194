// UniqueFunction is std::function for move-only callables (C++23's move_only_function): a completion
// may own a pin. Callables up to 64 bytes are kept in place, so a completion costs no allocation.
#ifndef TIERCEL_BASE_UNIQUE_FUNCTION_H_
#define TIERCEL_BASE_UNIQUE_FUNCTION_H_

#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

#include "base/check.h"

namespace tiercel {

template <class Signature>
class UniqueFunction;

template <class R, class... Args>
class UniqueFunction<R(Args...)> {
 public:
  UniqueFunction() = default;
  UniqueFunction(std::nullptr_t) {}  // NOLINT: as std::function.

  template <class F>
    requires(!std::is_same_v<std::decay_t<F>, UniqueFunction> &&
             std::is_invocable_r_v<R, std::decay_t<F>&, Args...>)
  UniqueFunction(F&& callable) {  // NOLINT: as std::function.
    using Fn = std::decay_t<F>;
    if constexpr (kFits<Fn>) {
      new (storage_) Fn(std::forward<F>(callable));
      static constexpr Ops kOps = {
          [](void* self, Args&&... args) -> R {
            return (*static_cast<Fn*>(self))(std::forward<Args>(args)...);
          },
          [](void* from, void* to) {
            auto* source = static_cast<Fn*>(from);
            if (to != nullptr) new (to) Fn(std::move(*source));
            source->~Fn();
          }};
      ops_ = &kOps;
    } else {
      *reinterpret_cast<Fn**>(storage_) = new Fn(std::forward<F>(callable));
      static constexpr Ops kOps = {
          [](void* self, Args&&... args) -> R {
            return (**static_cast<Fn**>(self))(std::forward<Args>(args)...);
          },
          [](void* from, void* to) {
            auto** source = static_cast<Fn**>(from);
            if (to != nullptr) {
              *static_cast<Fn**>(to) = *source;
            } else {
              delete *source;
            }
          }};
      ops_ = &kOps;
    }
  }

  UniqueFunction(UniqueFunction&& other) noexcept { TakeFrom(other); }
  UniqueFunction& operator=(UniqueFunction&& other) noexcept {
    if (this != &other) {
      Reset();
      TakeFrom(other);
    }
    return *this;
  }
  ~UniqueFunction() { Reset(); }

  explicit operator bool() const { return ops_ != nullptr; }
  R operator()(Args... args) {
    TIERCEL_CHECK(ops_ != nullptr);
    return ops_->call(storage_, std::forward<Args>(args)...);
  }

 private:
  struct Ops {
    R (*call)(void* self, Args&&... args);
    void (*move_or_destroy)(void* from, void* to);  // to == nullptr: destroy
  };
  static constexpr size_t kBytes = 64;
  template <class Fn>
  static constexpr bool kFits = sizeof(Fn) <= kBytes && alignof(Fn) <= alignof(std::max_align_t) &&
                                std::is_nothrow_move_constructible_v<Fn>;

  void Reset() {
    if (ops_ != nullptr) ops_->move_or_destroy(storage_, nullptr);
    ops_ = nullptr;
  }
  void TakeFrom(UniqueFunction& other) {
    ops_ = other.ops_;
    if (ops_ != nullptr) ops_->move_or_destroy(other.storage_, storage_);
    other.ops_ = nullptr;
  }

  const Ops* ops_ = nullptr;
  alignas(std::max_align_t) std::byte storage_[kBytes];
};

}  // namespace tiercel

#endif  // TIERCEL_BASE_UNIQUE_FUNCTION_H_
