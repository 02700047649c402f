#pragma once

#include <cstdint>
#include <type_traits>

namespace we::cpu {

using Task = void (*)(void* context, std::uint32_t index);

// Calls task(context, i) for 0 <= i < count, on up to `threads` threads, the caller's among them; returns when all are
// done. Tasks must not throw. If another thread is inside, or count is 1, everything runs in the caller's thread.
void run_tasks(int threads, std::uint32_t count, Task task, void* context);

// Does the same with a callable that takes an index.
template <class F>
void parallel_for(int threads, std::uint32_t count, F&& body) {
  using Body = std::remove_reference_t<F>;
  run_tasks(
      threads, count, [](void* context, std::uint32_t index) { (*static_cast<Body*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace we::cpu
